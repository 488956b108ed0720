//! Version `v1alpha1` of the FanoutCluster: additive only. Rules stand beside their fields as CEL.

#![expect(unreachable_pub, reason = "KubeSchema copies each public struct into a function")]

mod node;
mod redis;
mod status;
mod traffic;
mod workload;

use k8s_openapi::api::core::v1::ResourceRequirements;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};
use sidecar_config::{LogLevel, Namespace};

pub use node::{
    ApiKeysRef, Auth, ClientTls, Hub, Image, Jwt, JwtKeySpec, LocalObjectName, Ports, PullPolicy,
    SecretKeyRef,
};
pub use redis::{
    CaRef, CredentialsRef, ExternalRedis, ManagedRedis, MemoryRedis, Redis, RedisKind, RedisMode,
    RedisTlsSpec, Storage,
};
pub use status::{FanoutClusterStatus, NodeState, NodeStatus};
pub use traffic::{
    Disruption, NetworkPolicySpec, PodDisruptionBudgetSpec, ServiceSpec, ServiceType, SessionAffinity,
    TrafficPolicy,
};
pub use workload::{ChildMetadata, Drain, PodTemplate, UpdateStrategy, UpdateStrategyType};

/// Sidecar version that a FanoutCluster without `spec.version` gets: the version of this operator.
pub const DEFAULT_VERSION: &str = env!("CARGO_PKG_VERSION");

/// A timestamp with a UTC offset, in the form printed by `date --utc +%FT%TZ`.
const RFC_3339: &str =
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$";

/// Desired state of the FanoutCluster.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "fanout.dev",
    version = "v1alpha1",
    kind = "FanoutCluster",
    namespaced,
    status = "FanoutClusterStatus",
    derive = "PartialEq",
    shortname = "foc",
    category = "all",
    category = "fanout",
    annotation("helm.sh/resource-policy", "keep"),
    doc = "A set of WebSocket nodes that behave as one: publish on any, and every subscriber on every node receives it.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".spec.replicas"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Conns", type_ = "integer", json_path = ".status.connections"),
    printcolumn(
        name = "Redis",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"RedisReachable\")].status"
    ),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type==\"Ready\")].message"
    ),
    validation = Rule::new("self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name is also used to name Services and pods: use at most 40 of a-z, 0-9 and '-', starting with a letter and not ending with '-'")
        .field_path(".metadata.name")
)]
#[x_kube(
    // At spec level because it reads replicas. In modes with several servers, addresses are seeds and may change.
    validation = Rule::new("!has(self.redis.external) || !has(oldSelf.redis.external) || self.redis.external.mode != 'Standalone' || oldSelf.redis.external.mode != 'Standalone' || self.redis.external.addresses == oldSelf.redis.external.addresses || oldSelf.replicas == 0")
        .message("nodes at the old address and at the new one would not receive each other's messages while nodes are replaced: point the DNS name at the new server, or set replicas to 0 first and back afterwards, or create a second FanoutCluster with the new address and move clients to it")
        .field_path(".redis.external.addresses"),
    validation = Rule::new("!has(self.redis.memory) || self.replicas <= 1")
        .message("redis.memory cannot connect several nodes: set replicas to 1 (or 0), or choose redis.managed or redis.external")
        .field_path(".replicas"),
    validation = Rule::new("!has(self.podTemplate) || !has(self.podTemplate.spec) || !has(self.podTemplate.spec.containers) || self.podTemplate.spec.containers.all(c, !has(c.ports) || c.ports.all(p, p.containerPort != self.hub.ports.client && p.containerPort != self.hub.ports.api && p.containerPort != self.hub.ports.admin && p.containerPort != self.hub.ports.control))")
        .message("a container's containerPort is already used by the hub: give the container another port, or change the hub's in hub.ports")
        .field_path(".podTemplate"),
    validation = Rule::new("!has(self.podTemplate) || !has(self.podTemplate.spec) || !has(self.podTemplate.spec.initContainers) || self.podTemplate.spec.initContainers.all(c, !has(c.ports) || c.ports.all(p, p.containerPort != self.hub.ports.client && p.containerPort != self.hub.ports.api && p.containerPort != self.hub.ports.admin && p.containerPort != self.hub.ports.control))")
        .message("a container's containerPort is already used by the hub: give the container another port, or change the hub's in hub.ports")
        .field_path(".podTemplate")
)]
pub struct FanoutClusterSpec {
    /// Version of the sidecar. Set at creation to the operator's version unless specified, and never changed by the
    /// operator afterwards: upgrading the operator does not upgrade running nodes.
    #[serde(default = "default_version")]
    #[schemars(regex(pattern = r"^[0-9A-Za-z_][0-9A-Za-z._-]{0,127}$"), extend("x-fanout-change" = "roll"))]
    pub version: String,
    /// Stops the operator from making any changes. Status is still updated.
    #[serde(default)]
    #[schemars(extend("x-fanout-change" = "operator"))]
    pub paused: bool,
    /// Number of nodes to run. Can be managed by an autoscaler through the scale subresource. Defaults to 3.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 0, max = 1_000), extend("x-fanout-change" = "operator"))]
    pub replicas: i32,
    /// Container image of the sidecar.
    #[serde(default)]
    pub image: Image,
    /// CPU and memory requests and limits of the sidecar container.
    #[serde(default = "default_resources")]
    #[schemars(extend("x-fanout-change" = "roll"))]
    pub resources: ResourceRequirements,
    /// Minimum severity of the messages that nodes log. Defaults to `info`.
    #[serde(default)]
    #[schemars(extend("x-fanout-change" = "hot"))]
    pub log_level: LogLevel,
    /// Ports of the sidecar, and settings and limits of client connections.
    #[serde(default)]
    pub hub: Hub,
    /// Authentication of clients and of callers of the server API.
    #[serde(default)]
    pub auth: Auth,
    /// Channel namespaces and their policies. Channel `x:y` belongs to namespace `x`; a channel without a prefix
    /// belongs to `default`. Access to a channel whose namespace is not listed is denied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend("x-fanout-change" = "hot"))]
    #[x_kube(
        validation = Rule::new("self.all(n, n.name != 'fanout')")
            .message("the namespace 'fanout' is reserved for internal use by the nodes: choose another name"),
        merge_strategy = ListMerge::Map(vec!["name".into()])
    )]
    pub namespaces: Vec<Namespace>,
    /// Broker that carries publications between nodes. Set exactly one of `managed`, `external` and `memory`.
    #[serde(default)]
    pub redis: Redis,
    /// Template for the pods of the nodes: your own containers, which run beside the sidecar in each pod, and other pod
    /// settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-fanout-change" = "roll"))]
    pub pod_template: Option<PodTemplate>,
    /// RFC 3339 timestamp. Changing it replaces every node with a new one of the same settings, at the pace set by
    /// `updateStrategy` and `drain`. The value does not have to be the current time; any change triggers the restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = RFC_3339), extend("x-fanout-change" = "roll"))]
    pub restarted_at: Option<String>,
    /// Strategy for replacing nodes when a change requires new pods.
    #[serde(default)]
    pub update_strategy: UpdateStrategy,
    /// Seconds that a node may take to become ready before it is considered stuck. A stuck node is reported in the
    /// conditions, and older nodes are not replaced in the meantime. Defaults to 120.
    #[serde(default = "default_progress_deadline")]
    #[schemars(range(min = 10, max = 86_400), extend("x-fanout-change" = "operator"))]
    pub progress_deadline_seconds: u32,
    /// Seconds that a new node must have been ready before the next older node is removed. Where other nodes receive
    /// their own messages back through the broker, the new node must receive its own too. Defaults to 0.
    #[serde(default)]
    #[schemars(range(min = 0, max = 3_600), extend("x-fanout-change" = "operator"))]
    pub min_ready_seconds: u32,
    /// Draining of client connections from a node before it terminates.
    #[serde(default)]
    pub drain: Drain,
    /// Service that clients connect to.
    #[serde(default)]
    pub service: ServiceSpec,
    /// Labels and annotations added to every object that the operator creates, for example to satisfy admission
    /// policies.
    #[serde(default, skip_serializing_if = "ChildMetadata::is_empty")]
    pub child_metadata: ChildMetadata,
    /// Limits on voluntary disruptions of nodes.
    #[serde(default)]
    pub disruption: Disruption,
    /// NetworkPolicy of the nodes.
    #[serde(default)]
    pub network_policy: NetworkPolicySpec,
}

fn default_version() -> String {
    DEFAULT_VERSION.to_owned()
}

fn default_progress_deadline() -> u32 {
    // An image of 100 MB and a slow start fit in.
    120
}

fn default_replicas() -> i32 {
    // Three: one may be drained and one lost, and a third still serves.
    3
}

fn default_resources() -> ResourceRequirements {
    // Limits on both, so that a ResourceQuota is satisfied; 1 GiB holds 50,000 idle connections many times over.
    workload::resources([("cpu", "100m"), ("memory", "128Mi")], [("cpu", "2"), ("memory", "1Gi")])
}

/// Returns the value that the schema's defaults give to a field whose subfields are all omitted.
fn all_defaults<T: serde::de::DeserializeOwned>() -> T {
    serde_json::from_value(serde_json::json!({})).expect("every field has a default")
}

// === impl FanoutCluster ===

impl FanoutCluster {
    /// Returns the name of the FanoutCluster. Objects from the API server always have one.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// Returns the namespace of the FanoutCluster, or `default` for an object read from a file that names no namespace.
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or("default")
    }

    /// Returns the prefix of channel names in Redis.
    pub fn channel_prefix(&self) -> String {
        match &self.spec.redis.channel_prefix {
            Some(prefix) => prefix.clone(),
            None => format!("{}.{}", self.namespace(), self.name()),
        }
    }

    /// Returns `true` if containers of the user run beside the sidecar.
    pub fn has_app_containers(&self) -> bool {
        self.spec.pod_template.as_ref().is_some_and(|template| !template.containers().is_empty())
    }
}

impl Default for FanoutClusterSpec {
    fn default() -> Self {
        all_defaults()
    }
}
