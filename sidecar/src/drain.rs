//! How this node empties itself: one signal that all parts watch, and the pace at which clients leave.
//!
//! Order: readiness goes, nobody is let in any more, each shard finishes what its clients asked for and closes
//! them at the pace, what is left at the deadline is forced. `app` starts it, `admin` and the signals of the
//! process begin it. A drain is never taken back: a node that drained ends.

mod pace;

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use sidecar_config::DrainSettings;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

use self::pace::Pace;
use crate::shard::Shards;

/// A client leaves within a tick; two hundred a second are ten a tick.
const TICK: Duration = Duration::from_millis(50);

/// After the deadline the shards write what they can and close; nobody waits longer than this for it.
const FORCE_TIME: Duration = Duration::from_secs(2);

/// How far a drain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Clients come and go.
    Serving,
    /// Clients leave, until all are gone or the deadline.
    Draining {
        /// When the rest is forced.
        deadline: Instant,
    },
    /// Nobody is left.
    Drained,
}

/// Begins a drain. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DrainSignal(Arc<watch::Sender<Stage>>);

/// Sees a drain. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DrainWatch(watch::Receiver<Stage>);

/// What is counted.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    draining: Gauge,
    drained: Gauge,
    shed: Counter,
    forced: Counter,
}

/// A signal and what sees it.
pub fn channel() -> (DrainSignal, DrainWatch) {
    let (signal, watch) = watch::channel(Stage::Serving);
    (DrainSignal(Arc::new(signal)), DrainWatch(watch))
}

// === impl DrainSignal ===

impl DrainSignal {
    /// Begins the drain unless it has already begun. Returns `true` if this call began it.
    pub fn begin(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        self.0.send_if_modified(|stage| {
            let begins = *stage == Stage::Serving;
            if begins {
                *stage = Stage::Draining { deadline };
            }
            begins
        })
    }

    /// Sets the deadline to now.
    pub fn force(&self) {
        self.0.send_if_modified(|stage| {
            let waits = *stage != Stage::Drained;
            if waits {
                *stage = Stage::Draining { deadline: Instant::now() };
            }
            waits
        });
    }

    fn finish(&self) {
        self.0.send_replace(Stage::Drained);
    }
}

// === impl DrainWatch ===

impl DrainWatch {
    /// How far it is.
    pub fn stage(&self) -> Stage {
        *self.0.borrow()
    }

    /// Returns once a drain has begun.
    pub async fn begun(&self) -> Stage {
        self.reached(|stage| *stage != Stage::Serving).await
    }

    /// Returns once nobody is left.
    pub async fn drained(&self) {
        self.reached(|stage| *stage == Stage::Drained).await;
    }

    async fn reached(&self, far: impl FnMut(&Stage) -> bool + Send) -> Stage {
        let mut watch = self.0.clone();
        let stage = watch.wait_for(far).await.map(|stage| *stage);
        match stage {
            Ok(stage) => stage,
            // The signal is gone without a drain: the process ends by another way.
            Err(_) => std::future::pending().await,
        }
    }
}

// === impl Metrics ===

impl Metrics {
    /// Registers the metrics under the prefix of `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let Self { draining, drained, shed, forced } = self;
        let registry = registry.sub_registry_with_prefix("drain");
        registry.register("draining", "1 while this node is draining, otherwise 0", draining.clone());
        registry.register(
            "drained",
            "1 once this node has drained and has no clients left, otherwise 0",
            drained.clone(),
        );
        registry.register("shed", "Clients asked to disconnect at the pace of a drain", shed.clone());
        registry.register(
            "forced",
            "Clients still connected at the deadline of a drain, which were disconnected at once",
            forced.clone(),
        );
    }

    /// Returns the number of clients that were still connected at the deadline.
    pub fn forced(&self) -> u64 {
        self.forced.get()
    }
}

/// Waits for a drain to begin and carries it out. The settings of the pace are read at each tick.
pub async fn run(
    shards: Arc<Shards>,
    signal: DrainSignal,
    watch: DrainWatch,
    settings: impl Fn() -> DrainSettings,
    metrics: Metrics,
) {
    watch.begun().await;
    let began = Instant::now();
    metrics.draining.set(1);
    shards.door().shut();
    tracing::info!(connections = shards.connections(), "draining started");
    let forced =
        if empty(&shards, &watch, settings, &metrics).await { 0 } else { force(&shards, &metrics).await };
    metrics.drained.set(1);
    signal.finish();
    tracing::info!(seconds = began.elapsed().as_secs_f64(), forced, "draining finished");
}

/// Closes connections at the configured pace. Returns `true` if none was left before the deadline.
async fn empty(
    shards: &Shards,
    watch: &DrainWatch,
    settings: impl Fn() -> DrainSettings,
    metrics: &Metrics,
) -> bool {
    let mut pace = Pace::default();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let clients = shards.connections() as usize;
        if clients == 0 {
            return true;
        }
        // The deadline may come nearer while it waits: a second signal forces.
        let Stage::Draining { deadline } = watch.stage() else { return true };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let DrainSettings { max_disconnects_per_second, reconnect_jitter_seconds, timeout_seconds: _ } =
            settings();
        let count = pace.tick(TICK, clients, left, max_disconnects_per_second.into());
        if count > 0 {
            metrics.shed.inc_by(count as u64);
            shards.shed(count, Duration::ZERO, Duration::from_secs(reconnect_jitter_seconds.into()));
        }
    }
}

/// Closes the remaining connections and returns their number.
async fn force(shards: &Shards, metrics: &Metrics) -> u32 {
    let forced = shards.connections();
    metrics.forced.inc_by(forced.into());
    tracing::warn!(connections = forced, "drain deadline passed, closing remaining connections");
    shards.force();
    let until = Instant::now() + FORCE_TIME;
    let mut ticks = interval(TICK);
    while shards.connections() > 0 && Instant::now() < until {
        ticks.tick().await;
    }
    forced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_begins_once_and_may_only_be_shortened() {
        let (signal, watch) = channel();
        assert_eq!(watch.stage(), Stage::Serving);
        assert!(signal.begin(Duration::from_secs(60)));
        assert!(!signal.begin(Duration::from_secs(600)), "it has begun");
        let deadline = Instant::now() + Duration::from_secs(60);
        assert_eq!(watch.begun().await, Stage::Draining { deadline });
        signal.force();
        assert_eq!(watch.stage(), Stage::Draining { deadline: Instant::now() });
        signal.finish();
        signal.force();
        watch.drained().await;
        assert_eq!(watch.stage(), Stage::Drained, "what is over stays over");
    }
}
