//! The boot document: ports, broker and runtime; one ConfigMap per revision, read once.

use std::{
    net::{Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Mistake, parse::Document};

/// Settings that a running process cannot take over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BootSettings {
    /// Name of the cluster this node belongs to, for logs and metrics.
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
    /// What carries publications between nodes: exactly one of `memory` and `redis`.
    #[schemars(extend("x-fanout-change" = "roll"))]
    pub broker: BrokerSettings,
    /// Whether containers of the user run beside this process. With them, readiness waits at most ten seconds
    /// for the broker, so that an outage of Redis does not take the user's app out of its own Services.
    #[serde(default)]
    #[schemars(extend("x-fanout-change" = "roll"))]
    pub app_containers: bool,
}

/// Where each port listens. Port 0 takes a free one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Listen {
    /// WebSocket and SSE, for browsers and devices.
    #[schemars(with = "String", extend("format" = "socket-address"))]
    pub client: SocketAddr,
    /// Server API, for backends.
    #[schemars(with = "String", extend("format" = "socket-address"))]
    pub api: SocketAddr,
    /// Probes and metrics, never public.
    #[schemars(with = "String", extend("format" = "socket-address"))]
    pub admin: SocketAddr,
}

/// Threads of the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Runtime {
    /// Number of shards, each a thread that owns its connections; 0 means one for each core the process may use.
    #[schemars(range(max = 256))]
    pub shards: u16,
    /// Whether the time of every delivery, from its publishing to the kernel, is counted in a histogram of its
    /// namespace.
    pub time_deliveries: bool,
    /// Memory that the process may have, in bytes, of which a quarter is for publications, messages and replies that
    /// wait; absent means the limit of its control group, which in a pod is the container's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16_777_216))]
    pub memory_bytes: Option<u64>,
}

/// Exactly one broker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BrokerSettings {
    /// This process alone; for one node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryBroker>,
    /// Redis or Valkey Pub/Sub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisBroker>,
}

/// The broker that was chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BrokerKind<'a> {
    /// This process alone.
    Memory,
    /// Redis or Valkey Pub/Sub.
    Redis(&'a RedisBroker),
}

/// The memory broker has no settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MemoryBroker {}

/// A standalone Redis or Valkey.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisBroker {
    /// `host:port`; resolved anew at every connect.
    #[schemars(extend("format" = "host-port"))]
    pub address: String,
    /// Logical database, as for `SELECT`. Pub/Sub does not know databases; commands do.
    #[serde(default)]
    pub database: u16,
    /// Put before each channel name in Redis, with a colon between: `<prefix>:<channel>`. One that holds a colon itself
    /// is the channels of another cluster, and is warned of.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[^\s{}\x00-\x1f\x7f]+$"))]
    pub channel_prefix: String,
    /// File that holds the ACL user name; absent means Redis' `default` user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub username_file: Option<PathBuf>,
    /// File that holds the password; absent means no authentication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub password_file: Option<PathBuf>,
    /// TLS to Redis; absent means plain TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RedisTls>,
}

/// TLS to Redis.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RedisTls {
    /// PEM file of the certificate authorities to trust; absent means those of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client certificate, with `keyFile`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client key, with `certFile`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub key_file: Option<PathBuf>,
    /// Name to verify in the certificate; absent means the host of `address`.
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
        // An unknown key may be one of the two, misspelt: that is told already.
        let known = ["memory", "redis"].into_iter().filter(|kind| is_set(&broker[kind])).count();
        if broker
            .as_object()
            .is_some_and(|broker| known == 2 || (known == 0 && broker.values().all(Value::is_null)))
        {
            mistakes.push(Mistake::new("broker", "needs exactly one of `memory` and `redis`"));
        }
        if tls.is_object() && is_set(&tls["certFile"]) != is_set(&tls["keyFile"]) {
            mistakes.push(Mistake::new(
                "broker.redis.tls",
                "`certFile` and `keyFile` go together: set both or none",
            ));
        }
        mistakes
    }
}

// === impl BootSettings ===

impl BootSettings {
    /// What is allowed, for clusters run by it, and should not be.
    pub fn warnings(&self) -> Vec<Mistake> {
        let prefix = self.broker.redis.as_ref().map(|redis| &redis.channel_prefix);
        let ambiguous = prefix.filter(|prefix| prefix.contains(':')).map(|prefix| {
            let (outer, _) = prefix.split_once(':').unwrap_or((prefix, ""));
            Mistake::new(
                "broker.redis.channelPrefix",
                format!(
                    "`{prefix}` holds a colon: a cluster with the prefix `{outer}` on the same Redis reaches all of these channels"
                ),
            )
        });
        ambiguous.into_iter().collect()
    }
}

// === impl BrokerSettings ===

impl BrokerSettings {
    /// The one broker that is set; `None` where none or both are.
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
        // Every address of both families.
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
