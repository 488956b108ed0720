//! Observed state of a FanoutCluster, written only by the operator.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Observed state of the FanoutCluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct FanoutClusterStatus {
    /// Generation of the spec that this status reflects. Stays at the previous generation until ready nodes run with
    /// the settings of the new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Number of nodes that count as replicas, which are the pods matched by `selector`.
    #[serde(default)]
    pub replicas: i32,
    /// Number of replicas that are ready.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Number of replicas that belong to the update revision.
    #[serde(default)]
    pub updated_replicas: i32,
    /// Label selector of the replicas, in the form that autoscalers read.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub selector: String,
    /// Version of the sidecar that all nodes run. Stays at the old version until a rollout has completed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Revision that all nodes ran most recently.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub current_revision: String,
    /// Revision that nodes are being updated to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub update_revision: String,
    /// Number of open client connections on all nodes.
    #[serde(default)]
    pub connections: i64,
    /// Address that clients inside the Kubernetes cluster connect to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub endpoint: String,
    /// Hash of the live settings that every node is expected to run with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings_hash: Option<String>,
    /// Nodes of the cluster, sorted by name and limited to the first 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub nodes: Vec<NodeStatus>,
    /// Conditions of the cluster: Ready, Available, Progressing, Degraded, RedisReachable, SettingsInSync, Paused and
    /// Advisory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// Observed state of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Name of the node's pod.
    pub name: String,
    /// Revision of the node's pod.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub revision: String,
    /// Current state of the node.
    pub state: NodeState,
    /// Number of open client connections on the node. Absent if the node could not be queried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<i64>,
    /// Number of channels with at least one subscriber on the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels: Option<i64>,
    /// Hash of the live settings that the node runs with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings_hash: Option<String>,
    /// Set to `true` if the node receives its own canary messages back through the broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified: Option<bool>,
}

/// State of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NodeState {
    /// The pod has not started yet.
    Pending,
    /// The pod is running but not ready.
    Starting,
    /// The node accepts clients.
    Serving,
    /// The node has been removed from its Services and keeps its existing clients.
    Cordoned,
    /// The node is disconnecting its clients.
    Draining,
    /// All clients have left, and the pod is terminating.
    Drained,
    /// The pod is running, but the node does not respond to the operator.
    Unreachable,
    /// The pod is terminating, and the node does not report whether it still has clients.
    Terminating,
}
