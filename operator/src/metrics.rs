//! Metrics of the operator. All of them are registered here; the field docs state what is counted.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::api::Reason;

/// Handles to all metrics. Clones share the same metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// 1 while this process is the leader, otherwise 0.
    pub leading: Gauge,
    reconciles: Family<ReconcileLabels, Counter>,
    reconcile_seconds: Histogram,
    writes: Family<WriteLabels, Counter>,
    noop_writes: Family<WriteLabels, Counter>,
    actions: Family<ActionLabels, Counter>,
    /// Watches that failed and were restarted.
    pub watch_errors: Counter,
    /// Objects from the API server that could not be parsed.
    pub malformed_objects: Counter,
    scrapes: Family<ScrapeLabels, Counter>,
}

/// Outcome of a reconcile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(missing_docs, reason = "the words of controller::ErrorClass, and a panic")]
pub enum Outcome {
    Success,
    Terminal,
    Waiting,
    Transient,
    Conflict,
    Panic,
}

/// Outcome of querying a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Scrape {
    /// The node responded.
    Answered,
    /// The node did not respond.
    Unreachable,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReconcileLabels {
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ActionLabels {
    reason: ReasonLabel,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ScrapeLabels {
    outcome: Scrape,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ReasonLabel(Reason);

// === impl Metrics ===

impl Metrics {
    /// Creates metrics in a registry of their own, starting at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("fanout_operator");
        let mut metrics = Self {
            registry: Arc::default(),
            leading: Gauge::default(),
            reconciles: Family::default(),
            // 1 ms (a reconcile that writes nothing) to 16 s (a first installation).
            reconcile_seconds: Histogram::new([0.001, 0.004, 0.016, 0.064, 0.25, 1.0, 4.0, 16.0]),
            writes: Family::default(),
            noop_writes: Family::default(),
            actions: Family::default(),
            watch_errors: Counter::default(),
            malformed_objects: Counter::default(),
            scrapes: Family::default(),
        };
        metrics.register(&mut registry);
        metrics.registry = Arc::new(registry);
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        let Self {
            registry: _,
            leading,
            reconciles,
            reconcile_seconds,
            writes,
            noop_writes,
            actions,
            watch_errors,
            malformed_objects,
            scrapes,
        } = self;
        registry.register("leading", "1 while this process is the leader, otherwise 0", leading.clone());
        registry.register("reconciles", "Reconciles, by outcome", reconciles.clone());
        registry.register_with_unit(
            "reconcile_duration",
            "Duration of a reconcile",
            Unit::Seconds,
            reconcile_seconds.clone(),
        );
        registry.register(
            "writes",
            "Writes to the API server, by kind, excluding lease renewals",
            writes.clone(),
        );
        registry.register(
            "noop_writes",
            "Writes to the API server that changed nothing, by kind; each one indicates a bug",
            noop_writes.clone(),
        );
        registry.register("actions", "Plan steps performed, by reason", actions.clone());
        registry.register("watch_errors", "Watches that failed and were restarted", watch_errors.clone());
        registry.register(
            "malformed_objects",
            "Objects from the API server that could not be parsed",
            malformed_objects.clone(),
        );
        registry.register("scrapes", "Queries of nodes for their metrics, by outcome", scrapes.clone());
    }

    /// Records that a reconcile ended.
    pub fn reconciled(&self, outcome: Outcome, took: Duration) {
        self.reconciles.get_or_create(&ReconcileLabels { outcome }).inc();
        self.reconcile_seconds.observe(took.as_secs_f64());
    }

    /// Records that a write was sent to the API server.
    pub fn wrote(&self, kind: &str) {
        self.writes.get_or_create(&WriteLabels { kind: kind.to_owned() }).inc();
    }

    /// Records that a write left the object unchanged.
    pub fn wrote_nothing(&self, kind: &str) {
        self.noop_writes.get_or_create(&WriteLabels { kind: kind.to_owned() }).inc();
    }

    /// Records that a step of a plan was performed.
    pub fn acted(&self, reason: Reason) {
        self.actions.get_or_create(&ActionLabels { reason: ReasonLabel(reason) }).inc();
    }

    /// Records that a node was queried.
    pub fn scraped(&self, outcome: Scrape) {
        self.scrapes.get_or_create(&ScrapeLabels { outcome }).inc();
    }

    /// Returns all metrics as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut page = String::new();
        text::encode(&mut page, &self.registry).expect("writing to a string does not fail");
        page
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

// === impl ReasonLabel ===

impl EncodeLabelValue for ReasonLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        use std::fmt::Write;
        write!(encoder, "{}", self.0)
    }
}
