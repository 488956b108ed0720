//! `status.nodes`: one line for each pod. Pure.

use kube::ResourceExt;

use crate::{
    api::v1alpha1::{NodeState, NodeStatus},
    controller::dereference::{Found, Node, RELEASED_AT, RETIRED_AT, is_ready, phase},
    resources::labels,
};

/// Pods that have not ended.
pub(super) fn existing(found: &Found) -> impl Iterator<Item = &Node> {
    found.nodes.iter().filter(|node| !matches!(phase(&node.pod), "Failed" | "Succeeded"))
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
    let says = |annotation: &str| pod.annotations().contains_key(annotation);
    let unreachable = report.as_ref().is_some_and(|report| !report.answered);
    let draining = report.as_ref().is_some_and(|report| report.draining);
    if pod.metadata.deletion_timestamp.is_some() {
        return if draining { NodeState::Draining } else { NodeState::Terminating };
    }
    match phase(pod) {
        "Running" if says(RELEASED_AT) => NodeState::Drained,
        "Running" if says(RETIRED_AT) => NodeState::Cordoned,
        "Running" if draining => NodeState::Draining,
        "Running" if !is_ready(pod) => NodeState::Starting,
        "Running" if unreachable => NodeState::Unreachable,
        "Running" => NodeState::Serving,
        _ => NodeState::Pending,
    }
}

fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
