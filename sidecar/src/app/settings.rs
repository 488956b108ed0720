//! Puts the live document in force, at the start and whenever it changes: whole, or not at all.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use sidecar_config::{LiveSettings, Mistake};
use tokio::{
    sync::{Notify, watch},
    task::spawn_blocking,
    time::sleep,
};

use super::listen::tell_if_lowered;
use crate::{
    auth::Auth,
    config::{Live, LiveFile, Poll},
    domain::Policies,
    http::ClientPort,
    shard::{Rules, Shards},
    telemetry::LogControl,
    work::Publisher,
};

/// A look costs a few reads of small files.
const LOOK: Duration = Duration::from_secs(1);
/// Between the look that finds something new and the one that takes it: no writer pauses for so long in a small file.
const SETTLE: Duration = Duration::from_millis(250);

/// What is counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    rejected: Gauge,
    warnings: Gauge,
    reloads: Counter,
    info: Family<InfoLabels, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InfoLabels {
    hash: String,
}

/// Who has to know of new settings.
pub(super) struct Joined {
    pub(super) auth: Arc<Auth>,
    pub(super) http: ClientPort,
    pub(super) shards: Arc<Shards>,
    pub(super) publisher: Publisher,
    pub(super) log: LogControl,
    pub(super) live: watch::Sender<Arc<LiveSettings>>,
    pub(super) warnings: watch::Sender<Arc<[String]>>,
    pub(super) metrics: Metrics,
}

/// What the shards follow.
pub(super) fn rules(settings: &LiveSettings) -> Arc<Rules> {
    Arc::new(Rules {
        policies: Policies::new(&settings.namespaces),
        hub: settings.hub.clone(),
        reconnect_jitter: Duration::from_secs(settings.drain.reconnect_jitter_seconds.into()),
    })
}

/// Checks the file every second, and immediately when notified, for as long as the process runs.
pub(super) async fn follow(mut file: LiveFile, joined: Joined, reload: Arc<Notify>) {
    let mut wait = Duration::ZERO;
    loop {
        let told = tokio::select! {
            () = sleep(wait) => false,
            () = reload.notified() => true,
        };
        let look = spawn_blocking(move || {
            if told {
                file.forget();
            }
            let found = file.poll();
            (file, found)
        });
        let Ok((same_file, found)) = look.await else { return };
        file = same_file;
        wait = if matches!(found, Poll::Unsettled) { SETTLE } else { LOOK };
        match found {
            Poll::Same | Poll::Unsettled => {}
            Poll::New(live) => joined.put_in_force(*live),
            Poll::Bad(error) => {
                joined.metrics.rejected.set(1);
                tracing::error!(file = %file.path().display(), mistakes = %error, "new settings rejected, keeping the old ones");
            }
        }
    }
}

/// Logs the warnings about the settings in effect and publishes them for `/ready?verbose`.
pub(super) fn tell(warnings: &[Mistake], metrics: &Metrics, shown: &watch::Sender<Arc<[String]>>) {
    for warning in warnings {
        tracing::warn!(%warning, "settings applied with a warning");
    }
    metrics.warnings.set(warnings.len().try_into().unwrap_or(i64::MAX));
    shown.send_replace(warnings.iter().map(Mistake::to_string).collect());
}

impl Joined {
    /// Who may come in first, then what they may do.
    fn put_in_force(&self, live: Live) {
        let Live { settings, auth, tls, hash, warnings } = live;
        let Self { auth: in_force, http, shards, publisher, log, live, warnings: shown, metrics } = self;
        let pace = settings.drain.max_disconnects_per_second;
        in_force.replace(auth, |keys| shards.set_keys(keys, pace));
        http.set_tls(tls);
        publisher.set_max_bytes(settings.hub.max_message_bytes as usize);
        shards.set_rules(&rules(&settings));
        tell_if_lowered(settings.hub.max_connections, shards.door().capacity());
        log.set(settings.log_level);
        live.send_replace(Arc::new(settings));
        metrics.reloads.inc();
        metrics.in_force(&hash);
        tracing::info!(hash, "new settings applied");
        tell(&warnings, metrics, shown);
    }
}

// === impl Metrics ===

impl Metrics {
    pub(super) fn new(hash: &str) -> Self {
        let metrics = Self::default();
        metrics.in_force(hash);
        metrics
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let Self { rejected, warnings, reloads, info } = self;
        let registry = registry.sub_registry_with_prefix("settings");
        let help = "1 while the latest live document is rejected and an older one is in effect, otherwise 0";
        registry.register("rejected", help, rejected.clone());
        let help = "Warnings about the live document in effect and about secrets that cannot be read; listed by `/ready?verbose`";
        registry.register("warnings", help, warnings.clone());
        registry.register("reloads", "Live documents applied since start-up", reloads.clone());
        registry.register(
            "info",
            "Live document in effect, identified by the SHA-256 of its text",
            info.clone(),
        );
    }

    fn in_force(&self, hash: &str) {
        self.rejected.set(0);
        self.info.clear();
        self.info.get_or_create(&InfoLabels { hash: hash.to_owned() }).set(1);
    }
}
