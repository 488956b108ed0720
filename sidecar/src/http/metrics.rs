//! What the client port refuses and why.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Counters of the client port. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    refused: Family<Labels, Counter>,
    pub(super) waits: Counter,
    pub(super) pauses: Counter,
    pub(super) accepting: Gauge,
    pub(super) on_their_way: Gauge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    reason: &'static str,
}

impl Metrics {
    /// Registers them below `registry`'s prefix.
    pub fn register(&self, registry: &mut Registry) {
        let Self { refused, waits, pauses, accepting, on_their_way } = self;
        let help = "Requests and connections that the client port refused";
        registry.register("client_refused", help, refused.clone());
        let help = "Times that the next client had to wait for hub.limits.acceptsPerSecond, or for a place among handshakesInFlight";
        registry.register("client_accept_waits", help, waits.clone());
        let help = "Times that no client could be accepted, as when no file descriptor was left";
        registry.register("client_accept_pauses", help, pauses.clone());
        let help = "1 while clients are accepted";
        registry.register("client_accepting", help, accepting.clone());
        let help = "Connections that are neither a WebSocket nor an event stream yet";
        registry.register("client_handshakes_inflight", help, on_their_way.clone());
    }

    pub(super) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Labels { reason }).inc();
    }
}
