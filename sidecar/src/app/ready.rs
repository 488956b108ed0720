//! Watches what readiness hangs on while the node runs.

use std::sync::Arc;

use sidecar_config::LiveSettings;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    admin::{BrokerRule, Part},
    bridge::BrokerHealth,
    drain::DrainWatch,
};

/// Ready from now on, until a drain begins.
pub(super) async fn until_drain(serving: Part, drain: DrainWatch) {
    serving.ready();
    drain.begun().await;
    serving.set(Err("the node drains".to_owned()));
}

/// Ready as the broker's health and the policy say.
pub(super) async fn follow_broker(
    part: Part,
    mut rule: BrokerRule,
    mut health: watch::Receiver<BrokerHealth>,
    mut live: watch::Receiver<Arc<LiveSettings>>,
) {
    let started = Instant::now();
    let waited = started + BrokerRule::APP_WAIT;
    loop {
        let policy = live.borrow_and_update().on_unavailable;
        let judged = rule.judge(&health.borrow_and_update().clone(), policy, started.elapsed());
        let (ready, reason) = (judged.is_ok(), judged.clone().err());
        if part.set(judged) {
            tracing::info!(ready, reason, "readiness by the broker");
        }
        let changed = tokio::select! {
            changed = health.changed() => changed,
            changed = live.changed() => changed,
            () = sleep_until(waited), if Instant::now() < waited => Ok(()),
        };
        if changed.is_err() {
            return;
        }
    }
}
