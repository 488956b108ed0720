//! The live document: everything that a running node takes over without closing a connection.

use std::{path::PathBuf, time::Duration};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Mistake, namespace::Namespace, parse::Document};

/// Settings that a running process takes over.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LiveSettings {
    /// Least severe level that is logged.
    #[schemars(extend("x-fanout-change" = "hot"))]
    pub log_level: LogLevel,
    /// What an outage of the broker does to readiness.
    #[schemars(extend("x-fanout-change" = "hot"))]
    pub on_unavailable: OnUnavailable,
    /// Connections and their limits.
    #[schemars(extend("x-fanout-change" = "hot"))]
    pub hub: HubSettings,
    /// Who may connect and who may call the server API.
    #[schemars(extend("x-fanout-change" = "hot"))]
    pub auth: AuthSettings,
    /// What may be done in which channel. A channel whose namespace is not listed is denied.
    #[schemars(length(max = 256), extend("x-fanout-change" = "hot"))]
    pub namespaces: Vec<Namespace>,
    /// How clients leave when this node ends.
    #[schemars(extend("x-fanout-change" = "hot"))]
    pub drain: DrainSettings,
}

/// Least severe level that is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are tracing's")]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// What an outage of the broker does to readiness. Clients stay connected in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnUnavailable {
    /// Once ready, the node stays ready through an outage.
    #[default]
    KeepClients,
    /// The node is not ready while a canary does not come back.
    NotReady,
}

/// Connections and their limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HubSettings {
    /// Connections this node holds at most; it lowers the number to what its open-files limit allows.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_connections: u32,
    /// Payload bytes of one message from a client, or of one publication.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub max_message_bytes: u32,
    /// Seconds between pings to a client.
    #[schemars(range(min = 1, max = 3_600))]
    pub ping_interval_seconds: u32,
    /// Seconds that a client has to answer a ping before its connection is closed.
    #[schemars(range(min = 1, max = 3_600))]
    pub pong_timeout_seconds: u32,
    /// Origins from which browsers may connect: `https://app.example`, `https://*.example` (any subdomain) or
    /// `*`. Empty refuses every browser; a request without `Origin` is no browser and passes.
    #[schemars(length(max = 256), extend("items" = {"type": "string", "maxLength": 253, "format": "origin"}))]
    pub allowed_origins: Vec<String>,
    /// Networks of the proxies whose `X-Forwarded-For`, `Forwarded` and PROXY header are believed.
    #[schemars(length(max = 256), with = "Vec<String>", extend("items" = {"type": "string", "format": "network"}))]
    pub trusted_proxies: Vec<IpNet>,
    /// Compression of WebSocket messages.
    pub compression: Compression,
    /// TLS on the client port; absent means plain HTTP, behind a proxy that speaks TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSettings>,
    /// What one client may do, and how clients come in.
    pub limits: Limits,
}

/// TLS on the client port. New handshakes use new files; connections stay as they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsSettings {
    /// Certificate chain, PEM, the server's own first: `tls.crt` of a Secret of type `kubernetes.io/tls`.
    #[schemars(with = "String")]
    pub cert_file: PathBuf,
    /// Its private key, PEM: `tls.key`.
    #[schemars(with = "String")]
    pub key_file: PathBuf,
}

/// permessage-deflate (RFC 7692), without context takeover: a publication is compressed once for all who negotiated
/// it, and a connection holds no memory for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Compression {
    /// Whether it is negotiated with clients that offer it. It trades CPU for bandwidth.
    pub enabled: bool,
    /// From 1, the fastest, to 9, the smallest.
    #[schemars(range(min = 1, max = 9))]
    pub level: u32,
    /// Payloads with fewer bytes are sent as they are.
    #[schemars(range(max = 16_777_216))]
    pub min_bytes: u32,
}

/// What one client may do, and how clients come in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Subscriptions of one connection.
    #[schemars(range(min = 1, max = 10_000))]
    pub channels_per_connection: u32,
    /// Bytes of a channel name, namespace included.
    #[schemars(range(min = 1, max = 1_024))]
    pub channel_name_bytes: u32,
    /// Payload bytes of one WebSocket frame, as it is sent; 0 means that only the message it is a part of is bounded.
    #[schemars(range(max = 16_777_216))]
    pub frame_bytes: u32,
    /// Bytes of a request's line and headers.
    #[schemars(range(min = 1_024, max = 65_536))]
    pub header_bytes: u32,
    /// Seconds for a request's headers to arrive.
    #[schemars(range(min = 1, max = 300))]
    pub header_timeout_seconds: u32,
    /// Seconds that a connection may take no byte of what waits for it before it is closed as a slow consumer.
    #[schemars(range(min = 1, max = 3_600))]
    pub write_timeout_seconds: u32,
    /// Bytes of a request's query.
    #[schemars(range(min = 64, max = 65_536))]
    pub query_bytes: u32,
    /// Connections to this node from one address, or from one /64 of IPv6, as `trustedProxies` show it; more are
    /// answered with 429. Each node counts its own. 0: no bound, since behind a proxy that is not trusted all clients have its address.
    #[schemars(range(max = 10_000_000))]
    pub connections_per_ip: u32,
    /// Connections of one user to this node, by the `sub` of its token; more are answered with 429. Each node counts its
    /// own: a cluster admits so many times its nodes. 0: no bound.
    #[schemars(range(max = 10_000_000))]
    pub connections_per_user: u32,
    /// Connections accepted a second, and at once after a pause; more wait in the system's queue. 0: no bound.
    #[schemars(range(max = 1_000_000))]
    pub accepts_per_second: u32,
    /// Connections that are neither a WebSocket nor an event stream yet; more wait to be accepted. Those that have said
    /// nothing make room for them, the oldest first, of an address that has more than an eighth of the places before
    /// all others.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub handshakes_in_flight: u32,
    /// Frames a second from one connection, pings and fragments included; two seconds' worth may come at once. Above
    /// it the connection is closed with 3013.
    #[schemars(range(min = 1, max = 100_000_000))]
    pub messages_per_second: u32,
    /// Bytes a second from one connection, compressed messages as they unpack; two seconds' worth, or one message, may
    /// come at once. Above it the connection is closed with 3013.
    #[schemars(range(min = 1_024, max = 1_000_000_000))]
    pub bytes_per_second: u32,
    /// Seconds without a message in either direction, pings not counted, after which a connection is closed. 0: never.
    #[schemars(range(max = 31_536_000))]
    pub idle_timeout_seconds: u32,
    /// Seconds, give or take a tenth, after which a connection is closed so that its client comes back, perhaps to
    /// another node. 0: never.
    #[schemars(range(max = 31_536_000))]
    pub max_connection_age_seconds: u32,
}

/// Who may connect and who may call the server API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AuthSettings {
    /// Files that hold keys of the server API, one key a line; of a directory, each file. None: the API refuses all.
    #[schemars(length(max = 64), with = "Vec<String>")]
    pub api_key_files: Vec<PathBuf>,
    /// Connection tokens; absent means that no token is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<JwtSettings>,
}

/// Connection tokens: JSON Web Tokens (RFC 7519).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtSettings {
    /// Required value of `iss`; absent means that any is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// Required value of `aud`; absent means that any is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// Whether a token must end, by `exp`; otherwise one without never does. Clocks may differ by 5 seconds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub require_exp: bool,
    /// Keys that may have signed a token. A token that names a `kid` is checked by the key of that name only.
    #[schemars(length(min = 1, max = 32))]
    pub keys: Vec<JwtKey>,
}

/// One verification key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtKey {
    /// Name that a token's `kid` header gives; absent: tried for tokens without a `kid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// The only algorithm this key is good for.
    pub algorithm: JwtAlgorithm,
    /// File of the secret (HMAC: its bytes, one trailing line break ignored) or of the public key (PEM).
    #[schemars(with = "String")]
    pub file: PathBuf,
}

/// Signature algorithms (RFC 7518 §3.1, RFC 8037 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the names are the RFC's")]
pub enum JwtAlgorithm {
    HS256,
    HS384,
    HS512,
    RS256,
    ES256,
    EdDSA,
}

/// How clients leave when this node ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DrainSettings {
    /// Connections closed each second; more where the deadline asks for it.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_disconnects_per_second: u32,
    /// Seconds after which the rest is closed at once.
    #[schemars(range(min = 1, max = 86_400))]
    pub timeout_seconds: u32,
    /// Clients are asked to come back after a random part of this many seconds.
    #[schemars(range(max = 3_600))]
    pub reconnect_jitter_seconds: u32,
}

// === impl DrainSettings ===

impl DrainSettings {
    /// Longest time that a drain may take in a pod that is killed `grace` after it was told to end: the last 10 s are for
    /// the process, which ends once the drain has.
    pub fn longest_within(grace: Duration) -> Duration {
        grace.saturating_sub(Duration::from_secs(10)).max(Duration::from_secs(1))
    }
}

// === impl LiveSettings ===

impl Document for LiveSettings {
    fn check(document: &Value) -> Vec<Mistake> {
        crate::namespace::check(&document["namespaces"])
    }
}

impl Default for HubSettings {
    fn default() -> Self {
        Self {
            max_connections: 50_000,
            // 64 KiB: what browsers' chat and sync payloads stay under, and Centrifugo's default.
            max_message_bytes: 65_536,
            // Under the 30 s after which common load balancers cut an idle connection.
            ping_interval_seconds: 25,
            pong_timeout_seconds: 10,
            allowed_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            tls: None,
            compression: Compression::default(),
            limits: Limits::default(),
        }
    }
}

impl Default for Compression {
    fn default() -> Self {
        // Level 3 made messages of 500 bytes as small as level 9 did; shorter ones seldom pay for their header.
        Self { enabled: false, level: 3, min_bytes: 256 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        // 128 channels and 255 bytes are Centrifugo's defaults; 8 KiB is nginx's large header buffer.
        Self {
            channels_per_connection: 128,
            channel_name_bytes: 255,
            frame_bytes: 0,
            header_bytes: 8_192,
            header_timeout_seconds: 10,
            // Longer than a change of networks of a phone, shorter than ping and pong together.
            write_timeout_seconds: 30,
            // Half of the headers: a token and some channels.
            query_bytes: 4_096,
            connections_per_ip: 0,
            connections_per_user: 0,
            // More than one node can shake hands with; its first second is a crowd that comes back at once.
            accepts_per_second: 25_000,
            handshakes_in_flight: 4_096,
            // Twice the publications that a namespace admits by default.
            messages_per_second: 1_000,
            bytes_per_second: 4_194_304,
            idle_timeout_seconds: 0,
            max_connection_age_seconds: 0,
        }
    }
}

impl Default for DrainSettings {
    fn default() -> Self {
        Self { max_disconnects_per_second: 200, timeout_seconds: 60, reconnect_jitter_seconds: 15 }
    }
}
