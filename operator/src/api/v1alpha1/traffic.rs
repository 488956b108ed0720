//! What reaches the nodes, and what may take them away.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::networking::v1::{NetworkPolicyEgressRule, NetworkPolicyPeer},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::all_defaults;

/// The Service that clients connect to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.type != 'ClusterIP' || self.externalTrafficPolicy == 'Cluster'")
        .message("externalTrafficPolicy Local is for the types NodePort and LoadBalancer: set service.type, or leave it out")
        .field_path(".externalTrafficPolicy"),
    validation = Rule::new("self.type == 'LoadBalancer' || !has(self.loadBalancerClass)")
        .message("loadBalancerClass is for the type LoadBalancer: set service.type, or leave it out")
        .field_path(".loadBalancerClass"),
    validation = Rule::new("self.type == 'LoadBalancer' || !has(self.loadBalancerSourceRanges)")
        .message("loadBalancerSourceRanges is for the type LoadBalancer: set service.type, or leave it out")
        .field_path(".loadBalancerSourceRanges"),
    validation = Rule::new("self.type != 'LoadBalancer' || oldSelf.type != 'LoadBalancer' || (has(self.loadBalancerClass) == has(oldSelf.loadBalancerClass) && (!has(self.loadBalancerClass) || self.loadBalancerClass == oldSelf.loadBalancerClass))")
        .message("a load balancer keeps its class: set service.type to ClusterIP first, and back with the new class")
        .field_path(".loadBalancerClass")
)]
pub struct ServiceSpec {
    /// Type of the Service.
    #[serde(default, rename = "type")]
    #[schemars(extend("x-fanout-change" = "operator"))]
    pub type_: ServiceType,
    /// Its port.
    #[serde(default = "default_service_port")]
    #[schemars(range(min = 1, max = 65_535), extend("x-fanout-change" = "operator"))]
    pub port: u16,
    /// Annotations, as load balancers want them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("x-fanout-change" = "operator"))]
    pub annotations: BTreeMap<String, String>,
    /// `Local` sends what comes from outside only to nodes on the same machine and keeps the client's address, which
    /// limits and logs then use; `Cluster` to all.
    #[serde(default)]
    #[schemars(extend("x-fanout-change" = "operator"))]
    pub external_traffic_policy: TrafficPolicy,
    /// Networks (CIDR) from which the load balancer lets clients in; absent: from all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 49)), extend("x-fanout-change" = "operator"))]
    #[x_kube(validation = Rule::new("self.all(n, isCIDR(n))")
        .message("a source range is a network such as '10.0.0.0/8' or 'fd00::/8': for one address write /32 or /128"))]
    pub load_balancer_source_ranges: Vec<String>,
    /// Which controller makes the load balancer; absent: the platform's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 317),
        regex(pattern = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"),
        extend("x-fanout-change" = "operator")
    )]
    pub load_balancer_class: Option<String>,
    /// Whether a client's connections go to one node. Any node serves any client, so that it is seldom of use.
    #[serde(default)]
    #[schemars(extend("x-fanout-change" = "operator"))]
    pub session_affinity: SessionAffinity,
}

/// Where what comes from outside goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub enum TrafficPolicy {
    #[default]
    Cluster,
    Local,
}

/// Whether a client's connections go to one node.
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

/// What may evict nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disruption {
    /// The PodDisruptionBudget of the nodes. It exists while `replicas` is above 1.
    #[serde(default)]
    pub pod_disruption_budget: PodDisruptionBudgetSpec,
}

/// The PodDisruptionBudget of the nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("string(self.maxUnavailable) == self.maxUnavailable ? self.maxUnavailable.matches('^([0-9]{1,2}|100)%$') : self.maxUnavailable >= 0")
        .message("maxUnavailable is a number of nodes (1) or a percentage ('25%', at most 100%)")
        .field_path(".maxUnavailable")
)]
pub struct PodDisruptionBudgetSpec {
    /// Whether there is one. Set false where a budget of your own selects these pods: two on one pod block eviction.
    #[serde(default = "default_true")]
    #[schemars(extend("x-fanout-change" = "operator"))]
    pub enabled: bool,
    /// Nodes that evictions may take away at once: a number or a percentage.
    #[serde(default = "default_max_unavailable")]
    #[schemars(extend("x-fanout-change" = "operator"))]
    pub max_unavailable: IntOrString,
}

/// Who may open connections to the nodes. Where your network plugin knows no NetworkPolicy it has no effect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicySpec {
    /// Whether there is one. The client port stays open to all; the server API to this namespace and `apiFrom`; the
    /// admin port to the operator and `metricsFrom`.
    #[serde(default = "default_true")]
    #[schemars(extend("x-fanout-change" = "operator"))]
    pub enabled: bool,
    /// Who may call the server API besides the pods of this namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-fanout-change" = "operator"))]
    pub api_from: Vec<NetworkPolicyPeer>,
    /// Who may read metrics: your Prometheus.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-fanout-change" = "operator"))]
    pub metrics_from: Vec<NetworkPolicyPeer>,
    /// What nodes may connect to; absent: anything. Where set, DNS and Redis must be in it.
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
    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIP => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

impl TrafficPolicy {
    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "Cluster",
            Self::Local => "Local",
        }
    }
}

impl SessionAffinity {
    /// As Kubernetes writes it.
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
