//! The disruption budget of the nodes.

use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement},
};

use super::labels::{self, Component, metadata};
use crate::api::{FanoutCluster, v1alpha1};

/// The budget; none for a single node, which it would make unevictable or not protect at all.
pub fn pdb(cluster: &FanoutCluster) -> Option<PodDisruptionBudget> {
    let v1alpha1::PodDisruptionBudgetSpec { enabled, max_unavailable } =
        &cluster.spec.disruption.pod_disruption_budget;
    (*enabled && cluster.spec.replicas > 1).then(|| PodDisruptionBudget {
        metadata: metadata(cluster, Component::Node, cluster.name().to_owned()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(max_unavailable.clone()),
            min_available: None,
            selector: Some(undrained(cluster)),
            // A node that does not serve protects nobody: it may always go.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
        }),
        status: None,
    })
}

/// A node that was marked to go leaves the budget, so that it can be evicted while the others are held.
fn undrained(cluster: &FanoutCluster) -> LabelSelector {
    LabelSelector {
        match_labels: Some(labels::nodes(cluster)),
        match_expressions: Some(vec![LabelSelectorRequirement {
            key: labels::STATE.to_owned(),
            operator: "NotIn".to_owned(),
            values: Some(vec!["drained".to_owned()]),
        }]),
    }
}
