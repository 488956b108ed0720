//! Metrics of publishing.

use prometheus_client::{metrics::counter::Counter, registry::Registry};

/// Counters of the [`Publisher`](super::Publisher).
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(super) published: Counter,
    pub(super) errors: Counter,
    pub(super) unknown: Counter,
    pub(super) duplicates: Counter,
    pub(super) sequences_forgotten: Counter,
}

impl Metrics {
    /// Registers the metrics under the prefix of `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let Self { published, errors, unknown, duplicates, sequences_forgotten } = self;
        let registry = registry.sub_registry_with_prefix("broker");
        registry.register("publish", "Publications sent to the broker", published.clone());
        registry.register(
            "publish_errors",
            "Publications that failed and were not published",
            errors.clone(),
        );
        let help = "Publications sent to the broker without an answer, so that it is unknown whether they were published";
        registry.register("publish_unknown", help, unknown.clone());
        let help = "Repeated publications that were not published again because of their idempotency key";
        registry.register("publish_duplicates", help, duplicates.clone());
        registry.register(
            "sequences_forgotten",
            "Channels whose publication sequence restarted without a known predecessor because the table of sequences was full",
            sequences_forgotten.clone(),
        );
    }
}
