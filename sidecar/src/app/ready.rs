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
    serving.set(Err("the node is draining".to_owned()));
}

/// Ready while the client port accepts: not while the process has no descriptor left. A drain has a part of its own.
pub(super) async fn follow_port(part: Part, mut accepting: watch::Receiver<bool>, drain: DrainWatch) {
    loop {
        let open = *accepting.borrow_and_update();
        part.set(if open { Ok(()) } else { Err("connections cannot be accepted".to_owned()) });
        tokio::select! {
            _ = drain.begun() => break,
            changed = accepting.changed() => {
                if changed.is_err() {
                    break;
                }
            }
        }
    }
    part.ready();
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
            tracing::info!(ready, reason, "readiness changed by the broker's state");
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sidecar_config::OnUnavailable;
    use tokio::time::sleep;

    use super::*;
    use crate::admin::Readiness;

    struct Fixture {
        readiness: Readiness,
        health: watch::Sender<BrokerHealth>,
        live: watch::Sender<Arc<LiveSettings>>,
    }

    fn fixture(app_containers: bool) -> Fixture {
        let readiness = Readiness::default();
        let part = readiness.part("broker", "unknown");
        let (health, health_watch) = watch::channel(BrokerHealth::default());
        let (live, live_watch) = watch::channel(Arc::default());
        let rule = BrokerRule { app_containers, ..BrokerRule::default() };
        tokio::spawn(follow_broker(part, rule, health_watch, live_watch));
        Fixture { readiness, health, live }
    }

    impl Fixture {
        async fn is_ready(&self) -> bool {
            sleep(Duration::from_millis(1)).await;
            self.readiness.missing().is_empty()
        }

        fn verified(&self, verified: bool) {
            self.health.send_replace(BrokerHealth { verified, ..BrokerHealth::default() });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn beside_app_containers_a_node_is_ready_after_ten_seconds_without_redis() {
        let (beside, alone) = (fixture(true), fixture(false));
        sleep(BrokerRule::APP_WAIT - Duration::from_millis(10)).await;
        assert!(!beside.is_ready().await && !alone.is_ready().await);
        sleep(Duration::from_millis(20)).await;
        assert!(beside.is_ready().await && !alone.is_ready().await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_policy_counts_at_once() {
        let f = fixture(false);
        f.verified(true);
        assert!(f.is_ready().await);
        f.verified(false);
        assert!(f.is_ready().await, "KeepClients");
        let on_unavailable = OnUnavailable::NotReady;
        f.live.send_replace(Arc::new(LiveSettings { on_unavailable, ..LiveSettings::default() }));
        assert!(!f.is_ready().await);
        f.verified(true);
        assert!(f.is_ready().await);
    }
}
