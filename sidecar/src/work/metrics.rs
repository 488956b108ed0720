//! What is counted of publishing.

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
    /// Registers them below `registry`'s prefix.
    pub fn register(&self, registry: &mut Registry) {
        let Self { published, errors, unknown, duplicates, sequences_forgotten } = self;
        let registry = registry.sub_registry_with_prefix("broker");
        registry.register("publish", "Publications sent to the broker", published.clone());
        registry.register("publish_errors", "Publications that were not published", errors.clone());
        let help = "Publications that were sent and not answered: published or not";
        registry.register("publish_unknown", help, unknown.clone());
        let help = "Publications recognised by their idempotency key as repetitions, and not published again";
        registry.register("publish_duplicates", help, duplicates.clone());
        registry.register(
            "sequences_forgotten",
            "Channels whose publications restarted with an unknown predecessor for want of room",
            sequences_forgotten.clone(),
        );
    }
}
