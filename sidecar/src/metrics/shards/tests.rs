use prometheus_client::{encoding::text, registry::Registry};

use super::*;
use crate::{
    domain::{CloseReason, CommandError},
    protocol::Protocol,
};

/// The page of sums that are known.
#[derive(Debug)]
struct Known(Totals);

impl Collector for Known {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        Page(encoder).totals(self.0.clone())
    }
}

fn page(totals: Totals) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Known(totals)));
    let mut page = String::new();
    text::encode(&mut page, &registry).unwrap();
    page
}

/// Each of these under a number of its own.
fn counted<K: Copy>(all: &[K], from: u64) -> Vec<(K, u64)> {
    all.iter().copied().zip(from..).collect()
}

/// The lines of a family, as they have to be shown.
fn family<'a>(name: &str, label: &str, values: impl Iterator<Item = (&'a str, u64)>) -> Vec<String> {
    values.map(|(value, count)| format!("{name}{{{label}=\"{value}\"}} {count}")).collect()
}

#[test]
fn each_sum_is_shown_under_its_own_name() {
    // Every field is named, so that a new one is missed here.
    let totals = Totals {
        connections: counted(&Protocol::ALL, 101),
        accepted: counted(&Protocol::ALL, 201),
        closed: counted(&CloseReason::ALL, 301),
        failed: counted(&CommandError::KINDS, 401),
        slow_disconnected: 1,
        slow_dropped: 2,
        slow_dropped_newest: 3,
        slow_conflated: 4,
        write_timeouts: 5,
        panics: 6,
        log_full: 7,
        messages_in: 8,
        bytes_in: 9,
        messages_out: 10,
        bytes_out: 11,
        writes: 12,
        publications: 13,
        deflate_in: 14,
        deflate_out: 15,
        gaps: 16,
        subscriptions: 17,
        channels: 18,
        log_bytes: 19,
        own_bytes: 20,
    };
    let Totals { connections, accepted, closed, failed, .. } = totals.clone();
    let protocols = |counts: Vec<(Protocol, u64)>| {
        counts.into_iter().map(|(protocol, count)| (protocol.name(), count)).collect::<Vec<_>>()
    };
    let reasons = closed.into_iter().map(|(reason, count)| (reason.name(), count));
    let actions = ["disconnect", "drop_oldest", "drop_newest", "conflate", "write_timeout"];
    let single = [
        "client_panics_total 6",
        "node_log_full_total 7",
        "transport_messages_received_total 8",
        "transport_messages_received_size_total 9",
        "transport_messages_sent_total 10",
        "transport_messages_sent_size_total 11",
        "transport_writes_total 12",
        "node_publications_total 13",
        "compression_input_size_total 14",
        "compression_output_size_total 15",
        "client_gaps_total 16",
        "node_subscriptions 17",
        "node_log_bytes 19",
        "node_connection_bytes 20",
    ];
    let expected = [
        family("client_connections_inflight", "protocol", protocols(connections).into_iter()),
        family("client_connections_accepted_total", "protocol", protocols(accepted).into_iter()),
        family("client_disconnects_total", "reason", reasons),
        family("client_command_errors_total", "error", failed.into_iter()),
        family("client_slow_consumer_total", "action", actions.into_iter().zip(1..)),
        single.map(str::to_owned).to_vec(),
    ];
    let page = page(totals);
    for line in expected.concat() {
        assert!(page.lines().any(|shown| shown == line), "{line} in {page}");
    }
}
