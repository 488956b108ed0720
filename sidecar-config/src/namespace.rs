//! What may be done in which channels; the same type in the FanoutCluster and in the live document.

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Mistake, Pattern};

/// Namespace of channels whose name has no `namespace:` prefix.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Namespace of the channels over which nodes speak with each other; no settings may list it.
pub const RESERVED_NAMESPACE: &str = "fanout";

/// A group of channels and its policy. Channel `chat:room-1` is in namespace `chat`, `lobby` in `default`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Namespace {
    /// The prefix of its channels, or `default`.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"))]
    pub name: String,
    /// Channels that exist, by the part of their name behind the prefix; `*` stands for any characters.
    /// Empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 255), regex(pattern = r"^[^\s{}\x00-\x1f\x7f]+$"))
    )]
    pub channels: Vec<String>,
    /// Who may publish over a client connection. The server API always may.
    #[serde(default)]
    pub publish: Access,
    /// Who may subscribe.
    #[serde(default)]
    pub subscribe: Access,
    /// What happens to a client that reads too slowly.
    #[serde(default)]
    pub slow_consumer: SlowConsumer,
    /// Publications of one connection.
    #[serde(default)]
    pub rate_limit: RateLimit,
    /// Whether publications are compressed where `hub.compression` is enabled; set false for payloads that do not
    /// shrink, such as images.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub compression: bool,
    /// Whether framed subscribers are told which user and client sent a message (`publisher`), and its `id`, `key` and
    /// `tags`. False by default.
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

/// Who may do a thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Everyone who may connect.
    Allowed,
    /// Connections whose token grants the channel.
    Token,
    /// Nobody.
    #[default]
    Denied,
}

/// What happens to a client that reads too slowly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SlowConsumer {
    /// What to do once a bound is passed.
    pub policy: SlowConsumerPolicy,
    /// Bytes that a subscription may lag behind, frame headers included. The message that is being sent is no lag, and
    /// a client that takes what it is sent may lag further for two seconds, unless its policy is `conflate`.
    #[schemars(range(min = 1_024, max = 268_435_456))]
    pub max_lag_bytes: u32,
    /// Messages that a subscription may lag behind, as above.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_lag_messages: u32,
}

/// What to do with a subscription that lags too far behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum SlowConsumerPolicy {
    /// Close the connection with a code of its own; the client may come back.
    #[default]
    Disconnect,
    /// Skip the oldest messages; a framed client is told by a `gap`.
    DropOldest,
    /// Keep what waits and skip what comes until that is sent; a framed client is told by a `gap`.
    DropNewest,
    /// Skip all but the newest message of each `key`, messages without one counting as one key. Nobody is told:
    /// set `maxLagMessages: 1` for values of which only the last one matters.
    Conflate,
}

/// Publications of one connection in one namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RateLimit {
    /// Publications a second that a connection keeps up.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub publishes_per_second: u32,
    /// Publications that may come at once.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: u32,
}

/// What a schema cannot say of a list of namespaces.
pub(crate) fn check(namespaces: &Value) -> Vec<Mistake> {
    let mut seen = HashSet::new();
    let mut mistakes = Vec::new();
    for (at, namespace) in namespaces.as_array().into_iter().flatten().enumerate() {
        let Some(name) = namespace["name"].as_str() else { continue };
        let mut wrong = |text| mistakes.push(Mistake::new(format!("namespaces[{at}].name"), text));
        if name == RESERVED_NAMESPACE {
            wrong(format!("`{name}` is kept for the nodes themselves: choose another name"));
        }
        if !seen.insert(name) {
            wrong(format!("`{name}` is listed twice: give each namespace once"));
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
        // A second of a busy channel (1,000 messages of 1 KiB), as Centrifugo's queue of 1 MiB.
        Self { policy: SlowConsumerPolicy::default(), max_lag_bytes: 1_048_576, max_lag_messages: 10_000 }
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self { publishes_per_second: 500, burst: 1_000 }
    }
}
