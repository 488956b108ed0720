//! Metrics of the client port.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Metrics of the client port. Cheap to clone.
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
    /// Registers the metrics under the prefix of `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let Self { refused, waits, pauses, accepting, on_their_way } = self;
        let help = "Requests and connections rejected by the client port, by reason";
        registry.register("client_refused", help, refused.clone());
        let help = "Times that accepting a connection was delayed by hub.limits.acceptsPerSecond or hub.limits.handshakesInFlight";
        registry.register("client_accept_waits", help, waits.clone());
        let help = "Times that accepting connections was paused because of an error, such as running out of file descriptors";
        registry.register("client_accept_pauses", help, pauses.clone());
        let help = "1 while connections are accepted, otherwise 0";
        registry.register("client_accepting", help, accepting.clone());
        let help = "Connections that have not yet become a WebSocket or an event stream";
        registry.register("client_handshakes_inflight", help, on_their_way.clone());
    }

    pub(super) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Labels { reason }).inc();
    }
}
