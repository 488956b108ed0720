//! `status.nodes`: one line for each pod. Pure.

use kube::ResourceExt;

use crate::{
    api::v1alpha1::{NodeState, NodeStatus},
    controller::dereference::{Found, Node, RETIRED_AT, has_ended, is_ready, phase},
    resources::labels,
};

/// Pods that have not ended.
pub(super) fn existing(found: &Found) -> impl Iterator<Item = &Node> {
    found.nodes.iter().filter(|node| !has_ended(&node.pod))
}

/// All nodes, by name.
pub(super) fn list(found: &Found) -> Vec<NodeStatus> {
    let mut nodes: Vec<_> = existing(found).map(status).collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    nodes
}

fn status(node: &Node) -> NodeStatus {
    let answered = node.report.as_ref().filter(|report| report.answered);
    NodeStatus {
        name: node.pod.name_any(),
        revision: node.pod.labels().get(labels::REVISION).cloned().unwrap_or_default(),
        state: state(node),
        connections: answered.map(|report| whole(report.connections)),
        channels: answered.map(|report| whole(report.channels)),
        settings_hash: answered.and_then(|report| report.settings_hash.clone()),
        verified: answered.and_then(|report| report.broker_verified),
    }
}

fn state(node: &Node) -> NodeState {
    let Node { pod, report } = node;
    let answered = report.as_ref().filter(|report| report.answered);
    if pod.metadata.deletion_timestamp.is_some() {
        // Its clients leave from now on: the drain is the pod's preStop. Later it answers no more.
        return match answered.map(|report| report.connections) {
            None => NodeState::Terminating,
            Some(0) => NodeState::Drained,
            Some(_) => NodeState::Draining,
        };
    }
    match phase(pod) {
        "Running" if answered.is_some_and(|report| report.draining) => NodeState::Draining,
        // Marked as the next to go or not: it keeps its clients until it is told to end.
        "Running" if pod.annotations().contains_key(RETIRED_AT) => NodeState::Cordoned,
        "Running" if !is_ready(pod) => NodeState::Starting,
        "Running" if report.is_some() && answered.is_none() => NodeState::Unreachable,
        "Running" => NodeState::Serving,
        _ => NodeState::Pending,
    }
}

fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::{controller::dereference::RELEASED_AT, scrape::Report};

    fn node(metadata: &serde_json::Value, report: Option<Report>) -> Node {
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let pod = json!({"metadata": metadata, "status": {"phase": "Running", "conditions": ready}});
        Node { pod: Arc::new(serde_json::from_value(pod).expect("a pod")), report }
    }

    fn with(connections: u64) -> Option<Report> {
        Some(Report { answered: true, connections, ..Report::default() })
    }

    #[test]
    fn a_node_that_was_marked_to_go_keeps_its_clients_until_it_is_told_to_end() {
        let marked =
            json!({"annotations": {RETIRED_AT: "2026-01-01T00:00:00Z", RELEASED_AT: "2026-01-01T00:00:01Z"}});
        assert_eq!(state(&node(&marked, with(7))), NodeState::Cordoned);
        assert_eq!(state(&node(&marked, None)), NodeState::Cordoned);
    }

    #[test]
    fn a_node_that_ends_is_drained_only_once_it_says_that_it_has_no_clients() {
        let ends = json!({"deletionTimestamp": "2026-01-01T00:05:00Z"});
        assert_eq!(state(&node(&ends, with(7))), NodeState::Draining);
        assert_eq!(state(&node(&ends, with(0))), NodeState::Drained);
        assert_eq!(state(&node(&ends, Some(Report::default()))), NodeState::Terminating);
        assert_eq!(state(&node(&ends, None)), NodeState::Terminating);
    }

    #[test]
    fn a_node_that_drains_by_itself_says_so() {
        let draining = Some(Report { answered: true, draining: true, connections: 3, ..Report::default() });
        assert_eq!(state(&node(&json!({}), draining)), NodeState::Draining);
        assert_eq!(state(&node(&json!({}), with(3))), NodeState::Serving);
        assert_eq!(state(&node(&json!({}), Some(Report::default()))), NodeState::Unreachable);
    }
}
