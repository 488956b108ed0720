use prometheus_client::{encoding::text, registry::Registry};

use super::*;
use crate::domain::CloseReason;

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

#[test]
fn each_sum_is_shown_under_its_own_name() {
    let closed = CloseReason::ALL.iter().zip(101..).map(|(reason, count)| (*reason, count));
    let page = page(Totals {
        closed: closed.clone().collect(),
        slow_disconnected: 1,
        slow_dropped: 2,
        slow_dropped_newest: 3,
        slow_conflated: 4,
        write_timeouts: 5,
        panics: 6,
        log_full: 7,
        ..Totals::default()
    });
    let closed = closed
        .map(|(reason, count)| format!("client_disconnects_total{{reason=\"{}\"}} {count}", reason.name()));
    let slow = ["disconnect", "drop_oldest", "drop_newest", "conflate", "write_timeout"]
        .iter()
        .zip(1..)
        .map(|(action, count)| format!("client_slow_consumer_total{{action=\"{action}\"}} {count}"));
    let single = ["client_panics_total 6", "node_log_full_total 7"].map(str::to_owned);
    for line in closed.chain(slow).chain(single) {
        assert!(page.lines().any(|shown| shown == line), "{line} in {page}");
    }
}
