//! The boot document: ports, broker and runtime. It is stored in one ConfigMap per revision and read once, at start-up.

use std::{
    net::{Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Mistake, parse::Document};

/// Settings that take effect only when the process starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BootSettings {
    /// Name of the cluster that this node belongs to, used in logs and metrics. Defaults to `fanout`.
    #[serde(default = "default_cluster")]
    #[schemars(length(min = 1, max = 253), extend("x-fanout-change" = "roll"))]
    pub cluster: String,
    /// Addresses to listen on.
    #[serde(default)]
    #[schemars(extend("x-fanout-change" = "roll"))]
    pub listen: Listen,
    /// Threads of the process.
    #[serde(default)]
    #[schemars(extend("x-fanout-change" = "roll"))]
    pub runtime: Runtime,
    /// Broker that carries publications between nodes. Set exactly one of `memory` and `redis`.
    #[schemars(extend("x-fanout-change" = "roll"))]
    pub broker: BrokerSettings,
    /// Set to `true` if containers of the user run beside this process. Readiness then waits at most ten seconds for
    /// the broker, so that a Redis outage does not remove the user's application from its own Services. Defaults to
    /// `false`.
    #[serde(default)]
    #[schemars(extend("x-fanout-change" = "roll"))]
    pub app_containers: bool,
}

/// Listen address of each port. Port 0 selects a free port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Listen {
    /// Address for client connections (WebSocket and SSE). Defaults to port 8000 on all addresses.
    #[schemars(with = "String", extend("format" = "socket-address"))]
    pub client: SocketAddr,
    /// Address of the server API, which backends call. Defaults to port 8001 on all addresses.
    #[schemars(with = "String", extend("format" = "socket-address"))]
    pub api: SocketAddr,
    /// Address for probes and metrics. Must not be exposed publicly. Defaults to port 8002 on all addresses.
    #[schemars(with = "String", extend("format" = "socket-address"))]
    pub admin: SocketAddr,
}

/// Threads of the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Runtime {
    /// Number of shards. Each shard is a thread that owns its connections. 0 runs one shard per CPU core available to
    /// the process. Defaults to 0.
    #[schemars(range(max = 256))]
    pub shards: u16,
    /// Records the latency of every delivery, from publishing until the kernel accepts the bytes, in a histogram per
    /// namespace. Defaults to `true`.
    pub time_deliveries: bool,
    /// Memory available to the process, in bytes. A quarter of it is for publications, messages and replies that are
    /// waiting to be sent or processed. Defaults to the memory limit of the control group, which in a pod is that of
    /// the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16_777_216))]
    pub memory_bytes: Option<u64>,
}

/// Selection of exactly one broker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BrokerSettings {
    /// In-process broker. Limits the cluster to one node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryBroker>,
    /// Redis or Valkey Pub/Sub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisBroker>,
}

/// The selected broker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BrokerKind<'a> {
    /// In-process broker.
    Memory,
    /// Redis or Valkey Pub/Sub.
    Redis(&'a RedisBroker),
}

/// In-process broker. Has no settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MemoryBroker {}

/// Standalone Redis or Valkey server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisBroker {
    /// Address of the server, in the form `host:port`. The host name is resolved again for every connection.
    #[schemars(extend("format" = "host-port"))]
    pub address: String,
    /// Number of the logical database that commands use, as in `SELECT`. Pub/Sub channels are shared by all databases.
    /// Defaults to 0.
    #[serde(default)]
    pub database: u16,
    /// Prefix of channel names in Redis, separated from them by a colon: `<prefix>:<channel>`. A prefix that itself
    /// contains a colon overlaps with the channels of another cluster and causes a warning.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[^\s{}\x00-\x1f\x7f]+$"))]
    pub channel_prefix: String,
    /// File that contains the ACL user name. If unset, the `default` user of Redis is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub username_file: Option<PathBuf>,
    /// File that contains the password. If unset, the node connects without authentication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub password_file: Option<PathBuf>,
    /// TLS settings of connections to Redis. If unset, plain TCP is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RedisTls>,
}

/// TLS settings of connections to Redis.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RedisTls {
    /// PEM file with the certificate authorities to trust. Defaults to those of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub ca_file: Option<PathBuf>,
    /// PEM file with the client certificate. Requires `keyFile`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub cert_file: Option<PathBuf>,
    /// PEM file with the private key of the client certificate. Requires `certFile`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub key_file: Option<PathBuf>,
    /// Server name that the server certificate must match. Defaults to the host of `address`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "server-name"))]
    pub server_name: Option<String>,
}

// === impl BootSettings ===

impl Document for BootSettings {
    fn check(document: &Value) -> Vec<Mistake> {
        let broker = &document["broker"];
        let tls = &broker["redis"]["tls"];
        let is_set = |value: &Value| !value.is_null();
        let mut mistakes = Vec::new();
        // An unknown key may be a misspelling of one of the two, which is already reported.
        let known = ["memory", "redis"].into_iter().filter(|kind| is_set(&broker[kind])).count();
        if broker
            .as_object()
            .is_some_and(|broker| known == 2 || (known == 0 && broker.values().all(Value::is_null)))
        {
            mistakes.push(Mistake::new("broker", "set exactly one of `memory` and `redis`"));
        }
        if tls.is_object() && is_set(&tls["certFile"]) != is_set(&tls["keyFile"]) {
            mistakes.push(Mistake::new(
                "broker.redis.tls",
                "`certFile` and `keyFile` require each other: set both or neither",
            ));
        }
        mistakes
    }
}

// === impl BootSettings ===

impl BootSettings {
    /// Returns warnings about settings that are accepted because existing clusters use them, but that should be
    /// changed.
    pub fn warnings(&self) -> Vec<Mistake> {
        let prefix = self.broker.redis.as_ref().map(|redis| &redis.channel_prefix);
        let ambiguous = prefix.filter(|prefix| prefix.contains(':')).map(|prefix| {
            let (outer, _) = prefix.split_once(':').unwrap_or((prefix, ""));
            Mistake::new(
                "broker.redis.channelPrefix",
                format!(
                    "`{prefix}` contains a colon: a cluster with the prefix `{outer}` on the same Redis can reach all of these channels"
                ),
            )
        });
        ambiguous.into_iter().collect()
    }
}

// === impl BrokerSettings ===

impl BrokerSettings {
    /// Returns the broker that is set, or `None` if none or both are.
    pub fn kind(&self) -> Option<BrokerKind<'_>> {
        match (&self.memory, &self.redis) {
            (Some(MemoryBroker {}), None) => Some(BrokerKind::Memory),
            (None, Some(redis)) => Some(BrokerKind::Redis(redis)),
            _ => None,
        }
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Self { shards: 0, time_deliveries: true, memory_bytes: None }
    }
}

impl Default for Listen {
    fn default() -> Self {
        // All addresses of both IP families.
        let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        Self { client: any(8000), api: any(8001), admin: any(8002) }
    }
}

fn default_cluster() -> String {
    "fanout".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_with_a_colon_is_taken_and_warned_of() {
        let told = |prefix: &str| {
            let text = format!("broker: {{redis: {{address: 'r:1', channelPrefix: '{prefix}'}}}}");
            let boot: BootSettings = crate::parse(&text).expect("clusters run by it");
            boot.warnings().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(told("pfx.team"), [""; 0]);
        let warned = told("pfx:team:a");
        assert!(warned.len() == 1 && warned[0].contains("a cluster with the prefix `pfx`"), "{warned:?}");
    }
}
