//! What a FanoutCluster is: written by the operator alone.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a FanoutCluster is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct FanoutClusterStatus {
    /// Generation of the spec that this status speaks of; the one before, until nodes that are ready run the settings of
    /// the new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Nodes that count as replicas: those that `selector` selects.
    #[serde(default)]
    pub replicas: i32,
    /// Of these, the ready ones.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Of these, those of the update revision.
    #[serde(default)]
    pub updated_replicas: i32,
    /// Label selector of the replicas, as autoscalers read it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub selector: String,
    /// Version of the sidecar that all nodes run; the old one until a rollout has ended.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Revision that all nodes had last.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub current_revision: String,
    /// Revision that the nodes are brought to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub update_revision: String,
    /// Open client connections of all nodes.
    #[serde(default)]
    pub connections: i64,
    /// Where clients inside the cluster connect.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub endpoint: String,
    /// Hash of the live settings that every node should run by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings_hash: Option<String>,
    /// The nodes, the first hundred by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub nodes: Vec<NodeStatus>,
    /// Ready, Available, Progressing, Degraded, RedisReachable, SettingsInSync, Paused and Advisory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Name of its pod.
    pub name: String,
    /// Revision of its pod.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub revision: String,
    /// What it does.
    pub state: NodeState,
    /// Its open client connections; absent: it could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<i64>,
    /// Channels with a subscriber on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels: Option<i64>,
    /// Hash of the live settings it runs by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings_hash: Option<String>,
    /// Whether its canary comes back through the broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified: Option<bool>,
}

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NodeState {
    /// Its pod runs nowhere yet.
    Pending,
    /// Its pod runs, but is not ready.
    Starting,
    /// It takes clients.
    Serving,
    /// It is out of its Services, and keeps its clients.
    Cordoned,
    /// Its clients are leaving.
    Draining,
    /// Its clients have left, and its pod ends.
    Drained,
    /// It runs, but does not answer the operator.
    Unreachable,
    /// Its pod is ending, and it does not say whether it has clients.
    Terminating,
}
