//! What carries publications between nodes.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Affinity, ResourceRequirements, Toleration},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sidecar_config::OnUnavailable;

use super::{LocalObjectName, all_defaults, workload};

/// What carries publications between nodes: exactly one of `managed`, `external` and `memory`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.managed), has(self.external), has(self.memory)].filter(x, x).size() == 1")
        .message("set exactly one of redis.managed, redis.external and redis.memory"),
    validation = Rule::new("has(self.managed) == has(oldSelf.managed) && has(self.external) == has(oldSelf.external) && has(self.memory) == has(oldSelf.memory)")
        .message("the kind of redis cannot be changed, for nodes would lose each other midway: make a second FanoutCluster and move clients to it"),
    validation = Rule::new("has(self.channelPrefix) == has(oldSelf.channelPrefix) && (!has(self.channelPrefix) || self.channelPrefix == oldSelf.channelPrefix)")
        .message("redis.channelPrefix cannot be changed, for nodes would lose each other midway: make a second FanoutCluster and move clients to it")
        .field_path(".channelPrefix")
)]
pub struct Redis {
    /// Stands before each channel name in Redis, with a colon between; absent: `<namespace>.<name>`. It holds no colon
    /// itself: `a:b` would be namespace `b` of the cluster whose prefix is `a`. One from before this rule stays as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 128),
        regex(pattern = r"^[^\s:{}\x00-\x1f\x7f]+$"),
        extend("x-fanout-change" = "roll")
    )]
    // A value that does not change is not judged again: the API server ratchets both.
    #[x_kube(validation = Rule::new("!self.contains(':')")
        .message("a colon in channelPrefix makes its channels those of another cluster, whose prefix is the part before it: write a dot instead"))]
    pub channel_prefix: Option<String>,
    /// What an outage of Redis does to readiness. Clients stay connected in both.
    #[serde(default)]
    #[schemars(extend("x-fanout-change" = "hot"))]
    pub on_unavailable: OnUnavailable,
    /// One Redis of this cluster's own: for a start and for small sites.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-fanout-change" = "operator"))]
    pub managed: Option<ManagedRedis>,
    /// A Redis or Valkey that you run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-fanout-change" = "roll"))]
    pub external: Option<ExternalRedis>,
    /// No Redis: one node, alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-fanout-change" = "roll"))]
    pub memory: Option<MemoryRedis>,
}

/// The kind that was chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RedisKind<'a> {
    /// One Redis of this cluster's own.
    Managed(&'a ManagedRedis),
    /// A Redis that the user runs.
    External(&'a ExternalRedis),
    /// No Redis.
    Memory,
}

/// One Redis of this cluster's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.storage) == has(oldSelf.storage)")
        .message("storage cannot be added to or taken from a managed Redis that runs: make a second FanoutCluster")
        .field_path(".storage")
)]
pub struct ManagedRedis {
    /// Image, with tag or digest; absent: the operator's default. `redis-server` and `redis-cli` must be on its PATH.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// A volume, with an append-only file written every second; absent: nothing survives a restart. The claim
    /// outlives the FanoutCluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// CPU and memory of its container.
    #[serde(default = "default_resources")]
    pub resources: ResourceRequirements,
    /// Seconds after which the pod of a lost Kubernetes node is made anew on another, without `storage`. With it the pod
    /// waits for its volume: see docs/operations.md.
    #[serde(default = "default_replace_after")]
    #[schemars(range(min = 5, max = 86_400))]
    pub replace_after_seconds: u32,
    /// Labels of the Kubernetes nodes that its pod may run on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that its pod tolerates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Where its pod is drawn to, and what it keeps away from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Priority class of its pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
}

/// A volume for the managed Redis.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("isQuantity(self.size) && quantity(self.size).isGreaterThan(quantity('0'))")
        .message("storage.size is a quantity above zero, such as 5Gi")
        .field_path(".size"),
    validation = Rule::new("!isQuantity(self.size) || !isQuantity(oldSelf.size) || quantity(self.size).compareTo(quantity(oldSelf.size)) >= 0")
        .message("a volume cannot shrink: set storage.size to what it was or more")
        .field_path(".size"),
    validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)")
        .message("a volume keeps its storage class: set storageClassName back")
        .field_path(".storageClassName")
)]
pub struct Storage {
    /// Size; it can grow where the storage class allows it.
    #[schemars(with = "String", length(min = 1, max = 32))]
    pub size: Quantity,
    /// Storage class; absent: the cluster's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub storage_class_name: Option<String>,
}

/// A host, or an IPv6 address in brackets, and a port from 1 to 65535.
const ADDRESS: &str = r"^(\[[0-9a-fA-F:.]+\]|[^\s:/@]+):([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$";
/// A DNS name or an IP address.
const SERVER_NAME: &str = r"^([-_a-zA-Z0-9]+(\.[-_a-zA-Z0-9]+)*\.?|[0-9a-fA-F]*:[0-9a-fA-F:.]*)$";

/// A Redis or Valkey that you run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.mode != 'Standalone' || self.addresses.size() == 1")
        .message("mode Standalone takes one address: that of the one Redis")
        .field_path(".addresses")
)]
pub struct ExternalRedis {
    /// What stands behind the addresses.
    #[serde(default)]
    pub mode: RedisMode,
    /// `host:port` of each; resolved anew at every connect.
    #[schemars(
        length(min = 1, max = 32),
        inner(length(min = 3, max = 261), regex(pattern = ADDRESS))
    )]
    pub addresses: Vec<String>,
    /// Logical database. Pub/Sub does not know databases; commands do.
    #[serde(default)]
    #[schemars(range(min = 0, max = 65_535))]
    pub database: u16,
    /// Where user name and password are; absent: no authentication.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<CredentialsRef>,
    /// TLS to Redis; absent: plain TCP. `{}` trusts the authorities of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<RedisTlsSpec>,
}

/// What stands behind the addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RedisMode {
    /// One Redis.
    #[default]
    Standalone,
}

/// User name and password in a Secret. What it holds is taken over while clients stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CredentialsRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key of the ACL user name; absent: Redis' `default` user.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub username_key: Option<String>,
    /// Key of the password.
    #[serde(default = "default_password_key")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub password_key: String,
}

/// TLS to Redis.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RedisTlsSpec {
    /// Certificate authorities to trust; absent: those of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<CaRef>,
    /// Secret of type `kubernetes.io/tls` with the client certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cert_secret_ref: Option<LocalObjectName>,
    /// Name to verify in the certificate; absent: the host of the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = SERVER_NAME))]
    pub server_name: Option<String>,
}

/// Certificate authorities in a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CaRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key of the PEM file.
    #[serde(default = "default_ca_key")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// No Redis: one node, alone. It has no settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemoryRedis {}

fn default_resources() -> ResourceRequirements {
    workload::resources([("cpu", "50m"), ("memory", "64Mi")], [("cpu", "1"), ("memory", "512Mi")])
}

fn default_replace_after() -> u32 {
    // Kubernetes itself waits for five minutes, and then for the kubelet that is gone.
    30
}

fn default_password_key() -> String {
    "password".to_owned()
}

fn default_ca_key() -> String {
    "ca.crt".to_owned()
}

// === impl Redis ===

impl Redis {
    /// The kind that is set; `None` where none or several are, which the schema refuses.
    pub fn kind(&self) -> Option<RedisKind<'_>> {
        match (&self.managed, &self.external, &self.memory) {
            (Some(managed), None, None) => Some(RedisKind::Managed(managed)),
            (None, Some(external), None) => Some(RedisKind::External(external)),
            (None, None, Some(MemoryRedis {})) => Some(RedisKind::Memory),
            _ => None,
        }
    }
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            channel_prefix: None,
            on_unavailable: OnUnavailable::default(),
            managed: Some(ManagedRedis::default()),
            external: None,
            memory: None,
        }
    }
}

impl Default for ManagedRedis {
    fn default() -> Self {
        all_defaults()
    }
}
