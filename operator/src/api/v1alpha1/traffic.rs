//! Types for network access to nodes and for their disruption.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::networking::v1::{NetworkPolicyEgressRule, NetworkPolicyPeer},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::all_defaults;

/// Service that clients connect to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.type != 'ClusterIP' || self.externalTrafficPolicy == 'Cluster'")
        .message("externalTrafficPolicy Local requires the type NodePort or LoadBalancer: set service.type, or leave it out")
        .field_path(".externalTrafficPolicy"),
    validation = Rule::new("self.type == 'LoadBalancer' || !has(self.loadBalancerClass)")
        .message("loadBalancerClass requires the type LoadBalancer: set service.type, or leave it out")
        .field_path(".loadBalancerClass"),
    validation = Rule::new("self.type == 'LoadBalancer' || !has(self.loadBalancerSourceRanges)")
        .message("loadBalancerSourceRanges requires the type LoadBalancer: set service.type, or leave it out")
        .field_path(".loadBalancerSourceRanges"),
    validation = Rule::new("self.type != 'LoadBalancer' || oldSelf.type != 'LoadBalancer' || (has(self.loadBalancerClass) == has(oldSelf.loadBalancerClass) && (!has(self.loadBalancerClass) || self.loadBalancerClass == oldSelf.loadBalancerClass))")
        .message("the class of a load balancer cannot be changed: set service.type to ClusterIP first, then back with the new class")
        .field_path(".loadBalancerClass")
)]
pub struct ServiceSpec {
    /// Type of the Service. Defaults to `ClusterIP`.
    #[serde(default, rename = "type")]
    #[schemars(extend("x-fanout-change" = "operator"))]
    pub type_: ServiceType,
    /// Port of the Service. Defaults to 80.
    #[serde(default = "default_service_port")]
    #[schemars(range(min = 1, max = 65_535), extend("x-fanout-change" = "operator"))]
    pub port: u16,
    /// Annotations of the Service, for example to configure a load balancer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("x-fanout-change" = "operator"))]
    pub annotations: BTreeMap<String, String>,
    /// Routing of external traffic. `Local` routes it only to nodes on the same machine and preserves the client
    /// address, which limits and logs then use; `Cluster` routes it to all nodes. Defaults to `Cluster`.
    #[serde(default)]
    #[schemars(extend("x-fanout-change" = "operator"))]
    pub external_traffic_policy: TrafficPolicy,
    /// Networks (CIDR) from which the load balancer accepts clients. If empty, clients are accepted from anywhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 49)), extend("x-fanout-change" = "operator"))]
    #[x_kube(validation = Rule::new("self.all(n, isCIDR(n))")
        .message("a source range must be a network such as '10.0.0.0/8' or 'fd00::/8': for one address write /32 or /128"))]
    pub load_balancer_source_ranges: Vec<String>,
    /// Class of the load balancer implementation that serves this Service. Defaults to the default of the platform.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 317),
        regex(pattern = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"),
        extend("x-fanout-change" = "operator")
    )]
    pub load_balancer_class: Option<String>,
    /// Session affinity of the Service: `ClientIP` sends all connections from a client address to the same node. Rarely
    /// useful, because any node can serve any client. Defaults to `None`.
    #[serde(default)]
    #[schemars(extend("x-fanout-change" = "operator"))]
    pub session_affinity: SessionAffinity,
}

/// Routing of external traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub enum TrafficPolicy {
    #[default]
    Cluster,
    Local,
}

/// Session affinity of a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub enum SessionAffinity {
    #[default]
    None,
    ClientIP,
}

/// Type of a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub enum ServiceType {
    #[default]
    ClusterIP,
    NodePort,
    LoadBalancer,
}

/// Limits on voluntary disruptions of nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disruption {
    /// PodDisruptionBudget of the nodes. Created only while `replicas` is greater than 1.
    #[serde(default)]
    pub pod_disruption_budget: PodDisruptionBudgetSpec,
}

/// PodDisruptionBudget of the nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("string(self.maxUnavailable) == self.maxUnavailable ? self.maxUnavailable.matches('^([0-9]{1,2}|100)%$') : self.maxUnavailable >= 0")
        .message("maxUnavailable is a number of nodes (1) or a percentage ('25%', at most 100%)")
        .field_path(".maxUnavailable")
)]
pub struct PodDisruptionBudgetSpec {
    /// Creates the PodDisruptionBudget. Set to `false` if a budget of your own selects these pods: a pod that matches
    /// two budgets cannot be evicted. Defaults to `true`.
    #[serde(default = "default_true")]
    #[schemars(extend("x-fanout-change" = "operator"))]
    pub enabled: bool,
    /// Maximum number of nodes that may be unavailable because of evictions, as a number or a percentage. Defaults to
    /// 1.
    #[serde(default = "default_max_unavailable")]
    #[schemars(extend("x-fanout-change" = "operator"))]
    pub max_unavailable: IntOrString,
}

/// NetworkPolicy of the nodes. Has no effect if the network plugin does not support NetworkPolicy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicySpec {
    /// Creates the NetworkPolicy. The client port stays open to all sources; the server API is open to this namespace
    /// and `apiFrom`, and the admin port to the operator and `metricsFrom`. Defaults to `true`.
    #[serde(default = "default_true")]
    #[schemars(extend("x-fanout-change" = "operator"))]
    pub enabled: bool,
    /// Additional peers that may call the server API, besides the pods of this namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-fanout-change" = "operator"))]
    pub api_from: Vec<NetworkPolicyPeer>,
    /// Peers that may read metrics, such as Prometheus.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-fanout-change" = "operator"))]
    pub metrics_from: Vec<NetworkPolicyPeer>,
    /// Egress rules of the nodes. If unset, egress is not restricted. If set, the rules must allow DNS and Redis.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), extend("x-fanout-change" = "operator"))]
    pub egress: Option<Vec<NetworkPolicyEgressRule>>,
}

fn default_true() -> bool {
    true
}

fn default_service_port() -> u16 {
    80
}

fn default_max_unavailable() -> IntOrString {
    IntOrString::Int(1)
}

impl ServiceType {
    /// Returns the name that Kubernetes uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIP => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

impl TrafficPolicy {
    /// Returns the name that Kubernetes uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "Cluster",
            Self::Local => "Local",
        }
    }
}

impl SessionAffinity {
    /// Returns the name that Kubernetes uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::ClientIP => "ClientIP",
        }
    }
}

impl Default for ServiceSpec {
    fn default() -> Self {
        all_defaults()
    }
}

impl Default for PodDisruptionBudgetSpec {
    fn default() -> Self {
        all_defaults()
    }
}

impl Default for NetworkPolicySpec {
    fn default() -> Self {
        all_defaults()
    }
}
