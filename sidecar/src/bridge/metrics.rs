//! What is counted between broker and shards.

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::latency::SharedHistogram;

/// Counters and gauges of the bridge.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(super) connected: Gauge,
    pub(super) verified: Gauge,
    pub(super) reconnects: Counter,
    pub(super) rebuilds: Counter,
    pub(super) publish_refused: Gauge,
    pub(super) unheard: Gauge,
    pub(super) refused_channels: Gauge,
    pub(super) received: Counter,
    pub(super) malformed: Counter,
    pub(super) too_large: Counter,
    pub(super) mailbox_full: Counter,
    pub(super) channels_forgotten: Counter,
    pub(super) round_trip: Histogram,
    pub(super) lag: SharedHistogram,
    pub(super) nodes: Gauge,
    pub(super) former_names: Gauge,
    pub(super) unfinished_disconnects: Gauge,
    gaps: Family<GapLabels, Counter>,
}

/// Why publications are, or may be, missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum GapCause {
    /// One that a node published did not arrive.
    Sequence,
    /// The connection to the broker was away.
    Reconnect,
    /// A shard did not keep up.
    MailboxFull,
    /// The broker refused the channel that it had brought before.
    Refused,
    /// This version cannot read one.
    Unreadable,
    /// One that no node had checked is larger than the settings allow.
    TooLarge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GapLabels {
    cause: GapCause,
}

impl GapCause {
    /// What clients are told.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Sequence => "lost between nodes",
            Self::Reconnect => "the broker was away",
            Self::MailboxFull => "the node is overloaded",
            Self::Refused => "the broker refuses the channel",
            Self::Unreadable => "the node cannot read the message",
            Self::TooLarge => "the message is larger than hub.maxMessageBytes",
        }
    }

    /// Returns `true` if publications are lost, `false` if they may be.
    pub(super) fn is_certain(self) -> bool {
        match self {
            Self::Sequence | Self::MailboxFull | Self::Refused | Self::Unreadable | Self::TooLarge => true,
            Self::Reconnect => false,
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        // From a Redis on the same machine to one that is nearly given up.
        let round_trip = [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];
        Self {
            connected: Gauge::default(),
            verified: Gauge::default(),
            reconnects: Counter::default(),
            rebuilds: Counter::default(),
            publish_refused: Gauge::default(),
            unheard: Gauge::default(),
            refused_channels: Gauge::default(),
            received: Counter::default(),
            malformed: Counter::default(),
            too_large: Counter::default(),
            mailbox_full: Counter::default(),
            channels_forgotten: Counter::default(),
            round_trip: Histogram::new(round_trip),
            lag: SharedHistogram::default(),
            nodes: Gauge::default(),
            former_names: Gauge::default(),
            unfinished_disconnects: Gauge::default(),
            gaps: Family::default(),
        }
    }
}

impl Metrics {
    /// Registers them below `registry`'s prefix.
    pub fn register(&self, registry: &mut Registry) {
        let Self {
            connected,
            verified,
            reconnects,
            rebuilds,
            publish_refused,
            unheard,
            refused_channels,
            received,
            malformed,
            too_large,
            mailbox_full,
            channels_forgotten,
            round_trip,
            lag,
            nodes,
            former_names,
            unfinished_disconnects,
            gaps,
        } = self;
        let broker = registry.sub_registry_with_prefix("broker");
        broker.register(
            "connected",
            "1 while all subscriptions at the broker are live, otherwise 0",
            connected.clone(),
        );
        broker.register(
            "verified",
            "1 while this node's canaries return in time over the current connection and, if there are other nodes, at least one of them receives this node's messages; otherwise 0",
            verified.clone(),
        );
        broker.register("reconnects", "Broker connections re-established after a loss", reconnects.clone());
        broker.register("rebuilds", "Broker connections closed because no canary returned", rebuilds.clone());
        let help = "1 while the broker's access rules reject this node's canary, so that delivery cannot be verified; otherwise 0";
        broker.register("publish_refused", help, publish_refused.clone());
        let help = "1 while there are other nodes but none of them receives this node's messages, which may mean that it is connected to another server; otherwise 0";
        broker.register("unheard", help, unheard.clone());
        let help = "Channels with subscribers that the broker's access rules reject; retried with back-off";
        broker.register("refused_channels", help, refused_channels.clone());
        broker.register("received", "Publications received from the broker", received.clone());
        let help = "Publications dropped because this version cannot read their envelope; subscribers were notified of a gap";
        broker.register("malformed", help, malformed.clone());
        let help = "Publications from outside the cluster that were dropped because they are larger than \
            hub.maxMessageBytes; subscribers were notified of a gap";
        broker.register("too_large", help, too_large.clone());
        let help = "Time from publishing a canary until its return";
        broker.register("canary_round_trip_seconds", help, round_trip.clone());
        let help = "Time from publishing, by the clock of the publishing node, until arrival from the broker";
        broker.register("lag_seconds", help, lag.clone());
        let bridge = registry.sub_registry_with_prefix("bridge");
        bridge.register("gaps", "Gaps that subscribers were notified of, by cause", gaps.clone());
        let help = "Publications dropped because a shard did not keep up; subscribers were notified of a gap";
        bridge.register("mailbox_full", help, mailbox_full.clone());
        let help =
            "Channels no longer monitored for lost publications because the table of sequences was full";
        bridge.register("channels_forgotten", help, channels_forgotten.clone());
        let peers = registry.sub_registry_with_prefix("peers");
        peers.register(
            "nodes",
            "Other nodes that this node received a message from in the last ten seconds",
            nodes.clone(),
        );
        let help = "1 while this node also listens on the channel names used by nodes of the first version, otherwise 0";
        peers.register("former_names", help, former_names.clone());
        let help = "Disconnect requests of the last five minutes that some node may not have executed yet";
        peers.register("unfinished_disconnects", help, unfinished_disconnects.clone());
    }

    pub(super) fn gap(&self, cause: GapCause) {
        self.gaps.get_or_create(&GapLabels { cause }).inc();
    }

    #[cfg(test)]
    pub(super) fn gaps_of(&self, cause: GapCause) -> u64 {
        self.gaps.get_or_create(&GapLabels { cause }).get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operator_finds_what_it_reads() {
        let (mut registry, metrics) = (Registry::with_prefix("fanout"), Metrics::default());
        metrics.register(&mut registry);
        metrics.connected.set(1);
        metrics.gap(GapCause::Reconnect);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        for line in [
            "fanout_broker_connected 1",
            "fanout_broker_verified 0",
            "fanout_bridge_gaps_total{cause=\"Reconnect\"} 1",
            "fanout_broker_canary_round_trip_seconds_count 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
