//! Types for the broker that carries publications between nodes.

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

/// Broker that carries publications between nodes. Set exactly one of `managed`, `external` and `memory`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.managed), has(self.external), has(self.memory)].filter(x, x).size() == 1")
        .message("set exactly one of redis.managed, redis.external and redis.memory"),
    validation = Rule::new("has(self.managed) == has(oldSelf.managed) && has(self.external) == has(oldSelf.external) && has(self.memory) == has(oldSelf.memory)")
        .message("the kind of redis cannot be changed, because nodes would lose contact with each other during the change: create a second FanoutCluster and move clients to it"),
    validation = Rule::new("has(self.channelPrefix) == has(oldSelf.channelPrefix) && (!has(self.channelPrefix) || self.channelPrefix == oldSelf.channelPrefix)")
        .message("redis.channelPrefix cannot be changed, because nodes would lose contact with each other during the change: create a second FanoutCluster and move clients to it")
        .field_path(".channelPrefix")
)]
pub struct Redis {
    /// Prefix of channel names in Redis, separated from them by a colon. Defaults to `<namespace>.<name>`. The prefix
    /// must not contain a colon, because `a:b` would also be namespace `b` of a cluster with the prefix `a`. An
    /// existing prefix that predates this rule is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 128),
        regex(pattern = r"^[^\s:{}\x00-\x1f\x7f]+$"),
        extend("x-fanout-change" = "roll")
    )]
    // An unchanged value is not validated again: the API server ratchets both.
    #[x_kube(validation = Rule::new("!self.contains(':')")
        .message("a colon in channelPrefix makes its channels also belong to another cluster, whose prefix is the part before the colon: use a dot instead"))]
    pub channel_prefix: Option<String>,
    /// Effect of a Redis outage on readiness. Clients stay connected in either case. Defaults to `KeepClients`.
    #[serde(default)]
    #[schemars(extend("x-fanout-change" = "hot"))]
    pub on_unavailable: OnUnavailable,
    /// Single Redis server that the operator runs for this cluster, suitable for evaluation and small deployments.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-fanout-change" = "operator"))]
    pub managed: Option<ManagedRedis>,
    /// Redis or Valkey server that you operate.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-fanout-change" = "roll"))]
    pub external: Option<ExternalRedis>,
    /// No Redis. Limits the cluster to one node.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-fanout-change" = "roll"))]
    pub memory: Option<MemoryRedis>,
}

/// The selected kind of broker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RedisKind<'a> {
    /// Single Redis server that the operator runs for this cluster.
    Managed(&'a ManagedRedis),
    /// Redis server that the user operates.
    External(&'a ExternalRedis),
    /// No Redis.
    Memory,
}

/// Single Redis server that the operator runs for this cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.storage) == has(oldSelf.storage)")
        .message("storage cannot be added to or removed from an existing managed Redis: create a second FanoutCluster")
        .field_path(".storage")
)]
pub struct ManagedRedis {
    /// Container image, with a tag or digest. Must provide `redis-server` and `redis-cli` on its PATH. Defaults to the
    /// image configured in the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// Persistent volume for an append-only file that is synced every second. If unset, no data survives a restart. The
    /// PersistentVolumeClaim is kept when the FanoutCluster is deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// CPU and memory requests and limits of the Redis container.
    #[serde(default = "default_resources")]
    pub resources: ResourceRequirements,
    /// Seconds after which, without `storage`, the Redis pod of a lost Kubernetes node is recreated on another node.
    /// With `storage`, the pod waits for its volume; see docs/operations.md. Defaults to 30.
    #[serde(default = "default_replace_after")]
    #[schemars(range(min = 5, max = 86_400))]
    pub replace_after_seconds: u32,
    /// Labels that a Kubernetes node must have for the Redis pod to run on it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Tolerations of the Redis pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Scheduling affinity and anti-affinity of the Redis pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Priority class of the Redis pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
}

/// Persistent volume of the managed Redis.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("isQuantity(self.size) && quantity(self.size).isGreaterThan(quantity('0'))")
        .message("storage.size must be a quantity greater than zero, such as 5Gi")
        .field_path(".size"),
    validation = Rule::new("!isQuantity(self.size) || !isQuantity(oldSelf.size) || quantity(self.size).compareTo(quantity(oldSelf.size)) >= 0")
        .message("a volume cannot shrink: set storage.size to its previous value or more")
        .field_path(".size"),
    validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)")
        .message("the storage class of a volume cannot be changed: restore storageClassName")
        .field_path(".storageClassName")
)]
pub struct Storage {
    /// Requested size of the volume. Can be increased if the storage class allows volume expansion.
    #[schemars(with = "String", length(min = 1, max = 32))]
    pub size: Quantity,
    /// Storage class of the volume. Defaults to the default storage class of the Kubernetes cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub storage_class_name: Option<String>,
}

/// A host, or an IPv6 address in brackets, and a port from 1 to 65535.
const ADDRESS: &str = r"^(\[[0-9a-fA-F:.]+\]|[^\s:/@]+):([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$";
/// A DNS name or an IP address.
const SERVER_NAME: &str = r"^([-_a-zA-Z0-9]+(\.[-_a-zA-Z0-9]+)*\.?|[0-9a-fA-F]*:[0-9a-fA-F:.]*)$";

/// Redis or Valkey server that you operate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.mode != 'Standalone' || self.addresses.size() == 1")
        .message("mode Standalone requires exactly one address")
        .field_path(".addresses")
)]
pub struct ExternalRedis {
    /// Topology of the Redis deployment. Defaults to `Standalone`.
    #[serde(default)]
    pub mode: RedisMode,
    /// Addresses of the Redis servers, each in the form `host:port`. Host names are resolved again for every
    /// connection.
    #[schemars(
        length(min = 1, max = 32),
        inner(length(min = 3, max = 261), regex(pattern = ADDRESS))
    )]
    pub addresses: Vec<String>,
    /// Number of the logical database that commands use. Pub/Sub channels are shared by all databases. Defaults to 0.
    #[serde(default)]
    #[schemars(range(min = 0, max = 65_535))]
    pub database: u16,
    /// Secret with the user name and password. If unset, the nodes connect without authentication.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<CredentialsRef>,
    /// TLS settings of connections to Redis. If unset, plain TCP is used. `{}` enables TLS and trusts the certificate
    /// authorities of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<RedisTlsSpec>,
}

/// Topology of the Redis deployment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RedisMode {
    /// Single Redis server.
    #[default]
    Standalone,
}

/// Reference to a Secret with the user name and password for Redis. Changes of the Secret's data take effect while
/// clients stay connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CredentialsRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key within the Secret that holds the ACL user name. If unset, the `default` user of Redis is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub username_key: Option<String>,
    /// Key within the Secret that holds the password. Defaults to `password`.
    #[serde(default = "default_password_key")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub password_key: String,
}

/// TLS settings of connections to Redis.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RedisTlsSpec {
    /// Certificate authorities to trust. Defaults to those of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<CaRef>,
    /// Secret of type `kubernetes.io/tls` with the client certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cert_secret_ref: Option<LocalObjectName>,
    /// Server name that the server certificate must match. Defaults to the host of the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = SERVER_NAME))]
    pub server_name: Option<String>,
}

/// Reference to a Secret with certificate authorities.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CaRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key within the Secret that holds the certificates, in PEM format. Defaults to `ca.crt`.
    #[serde(default = "default_ca_key")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// No Redis. Limits the cluster to one node. Has no settings.
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
    /// Returns the kind that is set, or `None` if none or several are, which the schema rejects.
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
