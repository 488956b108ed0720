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

/// Version of the sidecar that a FanoutCluster without `spec.version` gets: that of this operator.
pub const DEFAULT_VERSION: &str = env!("CARGO_PKG_VERSION");

/// A time with its offset, as `date --utc +%FT%TZ` prints it.
const RFC_3339: &str =
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$";

/// What a FanoutCluster should be.
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
        .message("metadata.name names Services and pods too: use at most 40 of a-z, 0-9 and '-', beginning with a letter and not ending with '-'")
        .field_path(".metadata.name")
)]
#[x_kube(
    // At spec, for it looks at replicas. In modes with several servers addresses are seeds, free to change.
    validation = Rule::new("!has(self.redis.external) || !has(oldSelf.redis.external) || self.redis.external.mode != 'Standalone' || oldSelf.redis.external.mode != 'Standalone' || self.redis.external.addresses == oldSelf.redis.external.addresses || oldSelf.replicas == 0")
        .message("nodes at the old address and at the new one would not hear each other while they are replaced: move the name to the new server in DNS, or set replicas to 0 first and back afterwards, or make a second FanoutCluster at the new address and move clients to it")
        .field_path(".redis.external.addresses"),
    validation = Rule::new("!has(self.redis.memory) || self.replicas <= 1")
        .message("redis.memory joins no nodes: set replicas to 1 (or 0), or choose redis.managed or redis.external")
        .field_path(".replicas"),
    validation = Rule::new("!has(self.podTemplate) || !has(self.podTemplate.spec) || !has(self.podTemplate.spec.containers) || self.podTemplate.spec.containers.all(c, !has(c.ports) || c.ports.all(p, p.containerPort != self.hub.ports.client && p.containerPort != self.hub.ports.api && p.containerPort != self.hub.ports.admin && p.containerPort != self.hub.ports.control))")
        .message("a container's containerPort is one of the hub's: give the container another port, or move the hub's in hub.ports")
        .field_path(".podTemplate"),
    validation = Rule::new("!has(self.podTemplate) || !has(self.podTemplate.spec) || !has(self.podTemplate.spec.initContainers) || self.podTemplate.spec.initContainers.all(c, !has(c.ports) || c.ports.all(p, p.containerPort != self.hub.ports.client && p.containerPort != self.hub.ports.api && p.containerPort != self.hub.ports.admin && p.containerPort != self.hub.ports.control))")
        .message("a container's containerPort is one of the hub's: give the container another port, or move the hub's in hub.ports")
        .field_path(".podTemplate")
)]
pub struct FanoutClusterSpec {
    /// Version of the sidecar. Set once at creation, by default to the operator's, and moved by you alone: a newer
    /// operator leaves running nodes as they are.
    #[serde(default = "default_version")]
    #[schemars(regex(pattern = r"^[0-9A-Za-z_][0-9A-Za-z._-]{0,127}$"), extend("x-fanout-change" = "roll"))]
    pub version: String,
    /// Stops the operator from changing anything; status is still kept.
    #[serde(default)]
    #[schemars(extend("x-fanout-change" = "operator"))]
    pub paused: bool,
    /// Number of nodes. An autoscaler may own it by the scale subresource.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 0, max = 1_000), extend("x-fanout-change" = "operator"))]
    pub replicas: i32,
    /// Image of the sidecar.
    #[serde(default)]
    pub image: Image,
    /// CPU and memory of the sidecar's container.
    #[serde(default = "default_resources")]
    #[schemars(extend("x-fanout-change" = "roll"))]
    pub resources: ResourceRequirements,
    /// Least severe level that nodes log.
    #[serde(default)]
    #[schemars(extend("x-fanout-change" = "hot"))]
    pub log_level: LogLevel,
    /// Ports, connections and their limits.
    #[serde(default)]
    pub hub: Hub,
    /// Who may connect and who may call the server API.
    #[serde(default)]
    pub auth: Auth,
    /// What may be done in which channels. Channel `x:y` belongs to namespace `x`, one without a prefix to
    /// `default`; a channel whose namespace is not listed is denied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend("x-fanout-change" = "hot"))]
    #[x_kube(
        validation = Rule::new("self.all(n, n.name != 'fanout')")
            .message("the namespace 'fanout' is kept for the nodes themselves: give yours another name"),
        merge_strategy = ListMerge::Map(vec!["name".into()])
    )]
    pub namespaces: Vec<Namespace>,
    /// What carries publications between nodes: exactly one of `managed`, `external` and `memory`.
    #[serde(default)]
    pub redis: Redis,
    /// Your own containers, run beside the sidecar in each pod, and what else the pod should have.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-fanout-change" = "roll"))]
    pub pod_template: Option<PodTemplate>,
    /// A time (RFC 3339) whose new value replaces every node by one of the same settings, at the pace of
    /// `updateStrategy` and `drain`. It need not be the present time: only that it differs counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = RFC_3339), extend("x-fanout-change" = "roll"))]
    pub restarted_at: Option<String>,
    /// How nodes are replaced when a change needs new pods.
    #[serde(default)]
    pub update_strategy: UpdateStrategy,
    /// Seconds that a node has to become ready before it counts as stuck: it is named in the conditions, and older nodes
    /// are left alone.
    #[serde(default = "default_progress_deadline")]
    #[schemars(range(min = 10, max = 86_400), extend("x-fanout-change" = "operator"))]
    pub progress_deadline_seconds: u32,
    /// Seconds that a new node must have been ready before the next older one leaves. Its own messages must come back
    /// through the broker too, where those of other nodes do.
    #[serde(default)]
    #[schemars(range(min = 0, max = 3_600), extend("x-fanout-change" = "operator"))]
    pub min_ready_seconds: u32,
    /// How clients leave a node that ends.
    #[serde(default)]
    pub drain: Drain,
    /// The Service that clients connect to.
    #[serde(default)]
    pub service: ServiceSpec,
    /// Labels and annotations of every object that the operator makes, as policies demand them.
    #[serde(default, skip_serializing_if = "ChildMetadata::is_empty")]
    pub child_metadata: ChildMetadata,
    /// What may evict nodes.
    #[serde(default)]
    pub disruption: Disruption,
    /// Who may open connections to the nodes.
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

/// The value that the schema gives to a field whose parts are all left out.
fn all_defaults<T: serde::de::DeserializeOwned>() -> T {
    serde_json::from_value(serde_json::json!({})).expect("every field has a default")
}

// === impl FanoutCluster ===

impl FanoutCluster {
    /// Its name; an object from the API server always has one.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// Its namespace; `default` for an object that was read from a file and names none.
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or("default")
    }

    /// What stands before each channel in Redis.
    pub fn channel_prefix(&self) -> String {
        match &self.spec.redis.channel_prefix {
            Some(prefix) => prefix.clone(),
            None => format!("{}.{}", self.namespace(), self.name()),
        }
    }

    /// Whether containers of the user run beside the sidecar.
    pub fn has_app_containers(&self) -> bool {
        self.spec.pod_template.as_ref().is_some_and(|template| !template.containers().is_empty())
    }
}

impl Default for FanoutClusterSpec {
    fn default() -> Self {
        all_defaults()
    }
}
