//! Namespaces of channels and their policies. The FanoutCluster and the live document share these types.

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Mistake, Pattern};

/// Namespace of channels whose name has no `namespace:` prefix.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Namespace of the channels that nodes use to communicate with each other. Settings must not list it.
pub const RESERVED_NAMESPACE: &str = "fanout";

/// Group of channels and its policy. Channel `chat:room-1` belongs to namespace `chat`, channel `lobby` to `default`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Namespace {
    /// Name of the namespace: the prefix of its channels, or `default` for channels without a prefix.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"))]
    pub name: String,
    /// Patterns of the channels that exist in the namespace, matched against the part of the name after the prefix. `*`
    /// matches any sequence of characters. If empty, all channels exist.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 255), regex(pattern = r"^[^\s{}\x00-\x1f\x7f]+$"))
    )]
    pub channels: Vec<String>,
    /// Access of clients to publishing over their connection. The server API may always publish. Defaults to `denied`.
    #[serde(default)]
    pub publish: Access,
    /// Access of clients to subscribing. Defaults to `denied`.
    #[serde(default)]
    pub subscribe: Access,
    /// Handling of clients that read too slowly.
    #[serde(default)]
    pub slow_consumer: SlowConsumer,
    /// Rate limit on the publications of one connection.
    #[serde(default)]
    pub rate_limit: RateLimit,
    /// Compresses publications if `hub.compression` is enabled. Set to `false` for payloads that do not shrink, such as
    /// images. Defaults to `true`.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub compression: bool,
    /// Sends the user and client that published a message (`publisher`) and the `id`, `key` and `tags` of the message
    /// to framed subscribers. Defaults to `false`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub expose_publisher: bool,
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_yes(value: &bool) -> bool {
    *value
}

/// Access of clients to an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// All clients that may connect.
    Allowed,
    /// Only clients whose token grants access to the channel.
    Token,
    /// No client.
    #[default]
    Denied,
}

/// Handling of clients that read too slowly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SlowConsumer {
    /// Action to take when a bound is exceeded. Defaults to `disconnect`.
    pub policy: SlowConsumerPolicy,
    /// Maximum lag of a subscription in bytes, including frame headers. The message currently being sent does not
    /// count. A client that keeps reading may exceed the bound for two seconds, unless the policy is `conflate`.
    /// Defaults to 1048576.
    #[schemars(range(min = 1_024, max = 268_435_456))]
    pub max_lag_bytes: u32,
    /// Maximum lag of a subscription in messages, under the same rules as `maxLagBytes`. Defaults to 10000.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_lag_messages: u32,
}

/// Action to take on a subscription that lags too far behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum SlowConsumerPolicy {
    /// Close the connection with a dedicated close code. The client may reconnect.
    #[default]
    Disconnect,
    /// Skip the oldest messages. Framed clients are notified with a `gap`.
    DropOldest,
    /// Keep the pending messages and skip new ones until the pending messages have been sent. Framed clients are
    /// notified with a `gap`.
    DropNewest,
    /// Skip all but the newest message of each `key`; messages without a key are treated as having the same key.
    /// Clients are not notified. Set `maxLagMessages: 1` for values of which only the latest matters.
    Conflate,
}

/// Rate limit on the publications of one connection in one namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RateLimit {
    /// Sustained number of publications per second. Defaults to 500.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub publishes_per_second: u32,
    /// Number of publications allowed in a burst. Defaults to 1000.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: u32,
}

/// Checks the rules on namespaces that a JSON Schema cannot express.
pub(crate) fn check(namespaces: &Value) -> Vec<Mistake> {
    let mut seen = HashSet::new();
    let mut mistakes = Vec::new();
    for (at, namespace) in namespaces.as_array().into_iter().flatten().enumerate() {
        let Some(name) = namespace["name"].as_str() else { continue };
        let mut wrong = |text| mistakes.push(Mistake::new(format!("namespaces[{at}].name"), text));
        if name == RESERVED_NAMESPACE {
            wrong(format!("`{name}` is reserved for internal use by the nodes: choose another name"));
        }
        if !seen.insert(name) {
            wrong(format!("`{name}` is listed twice: list each namespace once"));
        }
    }
    mistakes.extend(check_patterns(namespaces));
    mistakes
}

fn check_patterns(namespaces: &Value) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    for (at, namespace) in namespaces.as_array().into_iter().flatten().enumerate() {
        for (pattern_at, pattern) in namespace["channels"].as_array().into_iter().flatten().enumerate() {
            if let Some(Err(error)) = pattern.as_str().map(str::parse::<Pattern>) {
                let path = format!("namespaces[{at}].channels[{pattern_at}]");
                mistakes.push(Mistake::new(path, error.to_string()));
            }
        }
    }
    mistakes
}

impl Default for SlowConsumer {
    fn default() -> Self {
        // One second of a busy channel (1,000 messages of 1 KiB), like Centrifugo's queue of 1 MiB.
        Self { policy: SlowConsumerPolicy::default(), max_lag_bytes: 1_048_576, max_lag_messages: 10_000 }
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self { publishes_per_second: 500, burst: 1_000 }
    }
}
