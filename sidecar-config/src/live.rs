//! The live document: all settings that a running node applies without closing connections.

use std::{path::PathBuf, time::Duration};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Mistake, namespace::Namespace, parse::Document};

/// Settings that a running process applies without a restart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LiveSettings {
    /// Minimum severity of logged messages. Defaults to `info`.
    #[schemars(extend("x-fanout-change" = "hot"))]
    pub log_level: LogLevel,
    /// Effect of a broker outage on readiness. Clients stay connected in either case.
    #[schemars(extend("x-fanout-change" = "hot"))]
    pub on_unavailable: OnUnavailable,
    /// Settings and limits of client connections.
    #[schemars(extend("x-fanout-change" = "hot"))]
    pub hub: HubSettings,
    /// Authentication of clients and of callers of the server API.
    #[schemars(extend("x-fanout-change" = "hot"))]
    pub auth: AuthSettings,
    /// Channel namespaces and their policies. Access to a channel whose namespace is not listed is denied.
    #[schemars(length(max = 256), extend("x-fanout-change" = "hot"))]
    pub namespaces: Vec<Namespace>,
    /// Draining of client connections before this node terminates.
    #[schemars(extend("x-fanout-change" = "hot"))]
    pub drain: DrainSettings,
}

/// Minimum severity of logged messages.
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

/// Effect of a broker outage on readiness. Clients stay connected in either case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnUnavailable {
    /// A node that has become ready stays ready during an outage.
    #[default]
    KeepClients,
    /// The node is not ready while its canary messages do not come back through the broker.
    NotReady,
}

/// Settings and limits of client connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HubSettings {
    /// Maximum number of client connections of this node. Lowered automatically if the limit on open files is too low
    /// for it. Defaults to 50000.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_connections: u32,
    /// Maximum payload size, in bytes, of one message from a client or of one publication. Defaults to 65536.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub max_message_bytes: u32,
    /// Interval between pings to a client, in seconds. Defaults to 25.
    #[schemars(range(min = 1, max = 3_600))]
    pub ping_interval_seconds: u32,
    /// Time that a client has to answer a ping before its connection is closed, in seconds. Defaults to 10.
    #[schemars(range(min = 1, max = 3_600))]
    pub pong_timeout_seconds: u32,
    /// Origins from which browsers may connect: `https://app.example`, `https://*.example` (any subdomain) or `*`. If
    /// empty, all browsers are rejected. Requests without an `Origin` header do not come from browsers and are not
    /// restricted.
    #[schemars(length(max = 256), extend("items" = {"type": "string", "maxLength": 253, "format": "origin"}))]
    pub allowed_origins: Vec<String>,
    /// Networks (CIDR) of trusted proxies. `X-Forwarded-For`, `Forwarded` and PROXY protocol headers are accepted only
    /// from these addresses.
    #[schemars(length(max = 256), with = "Vec<String>", extend("items" = {"type": "string", "format": "network"}))]
    pub trusted_proxies: Vec<IpNet>,
    /// Compression of WebSocket messages.
    pub compression: Compression,
    /// TLS on the client port. If unset, the port serves plain HTTP, for use behind a proxy that terminates TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSettings>,
    /// Limits on clients, connections and handshakes.
    pub limits: Limits,
}

/// TLS on the client port. New handshakes use updated files; existing connections are unaffected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsSettings {
    /// PEM file with the certificate chain, starting with the server's own certificate: `tls.crt` of a Secret of type
    /// `kubernetes.io/tls`.
    #[schemars(with = "String")]
    pub cert_file: PathBuf,
    /// PEM file with the private key of the certificate: `tls.key`.
    #[schemars(with = "String")]
    pub key_file: PathBuf,
}

/// permessage-deflate (RFC 7692) without context takeover: each publication is compressed once for all clients that
/// negotiated compression, and connections hold no compression state in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Compression {
    /// Negotiates compression with clients that offer it. Compression trades CPU for bandwidth. Defaults to `false`.
    pub enabled: bool,
    /// Compression level, from 1 (fastest) to 9 (smallest output). Defaults to 3.
    #[schemars(range(min = 1, max = 9))]
    pub level: u32,
    /// Minimum payload size, in bytes, for compression. Smaller payloads are sent uncompressed. Defaults to 256.
    #[schemars(range(max = 16_777_216))]
    pub min_bytes: u32,
}

/// Limits on clients, connections and handshakes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Maximum number of subscriptions per connection. Defaults to 128.
    #[schemars(range(min = 1, max = 10_000))]
    pub channels_per_connection: u32,
    /// Maximum length of a channel name, including the namespace, in bytes. Defaults to 255.
    #[schemars(range(min = 1, max = 1_024))]
    pub channel_name_bytes: u32,
    /// Maximum payload size of one WebSocket frame as it is sent, in bytes. 0 applies no limit other than the one on
    /// the whole message. Defaults to 0.
    #[schemars(range(max = 16_777_216))]
    pub frame_bytes: u32,
    /// Maximum size of the request line and headers, in bytes. Defaults to 8192.
    #[schemars(range(min = 1_024, max = 65_536))]
    pub header_bytes: u32,
    /// Time allowed for the headers of a request to arrive, in seconds. Defaults to 10.
    #[schemars(range(min = 1, max = 300))]
    pub header_timeout_seconds: u32,
    /// Time, in seconds, that a connection with pending output may go without accepting any bytes before it is closed
    /// as a slow consumer. Defaults to 30.
    #[schemars(range(min = 1, max = 3_600))]
    pub write_timeout_seconds: u32,
    /// Maximum length of the query string of a request, in bytes. Defaults to 4096.
    #[schemars(range(min = 64, max = 65_536))]
    pub query_bytes: u32,
    /// Maximum number of connections to this node from one client address, or from one IPv6 /64 network, determined
    /// with `trustedProxies`. Further connections are rejected with status 429. Each node counts its own connections. 0
    /// disables the limit, because behind an untrusted proxy all clients share the proxy's address. Defaults to 0.
    #[schemars(range(max = 10_000_000))]
    pub connections_per_ip: u32,
    /// Maximum number of connections to this node per user, identified by the `sub` claim of the token. Further
    /// connections are rejected with status 429. Each node counts its own connections, so the cluster as a whole admits
    /// this number times the number of nodes. 0 disables the limit. Defaults to 0.
    #[schemars(range(max = 10_000_000))]
    pub connections_per_user: u32,
    /// Maximum number of connections accepted per second, and in a burst after a pause. Further connections wait in the
    /// listen queue of the operating system. 0 disables the limit. Defaults to 25000.
    #[schemars(range(max = 1_000_000))]
    pub accepts_per_second: u32,
    /// Maximum number of connections that have not yet become a WebSocket or an event stream. Further connections wait
    /// to be accepted. To make room for them, connections that have not sent anything are closed, oldest first,
    /// starting with those from an address that holds more than an eighth of the limit. Defaults to 4096.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub handshakes_in_flight: u32,
    /// Maximum number of frames per second from one connection, including pings and fragments. A burst of two seconds'
    /// worth is allowed. Connections that exceed the limit are closed with code 3013. Defaults to 1000.
    #[schemars(range(min = 1, max = 100_000_000))]
    pub messages_per_second: u32,
    /// Maximum number of bytes per second from one connection, where compressed messages count with their uncompressed
    /// size. A burst of two seconds' worth, or of one message, is allowed. Connections that exceed the limit are closed
    /// with code 3013. Defaults to 4194304.
    #[schemars(range(min = 1_024, max = 1_000_000_000))]
    pub bytes_per_second: u32,
    /// Time without a message in either direction, not counting pings, after which a connection is closed, in seconds.
    /// 0 disables the timeout. Defaults to 0.
    #[schemars(range(max = 31_536_000))]
    pub idle_timeout_seconds: u32,
    /// Age at which a connection is closed so that its client reconnects, possibly to another node, in seconds and
    /// varied by up to 10% in either direction. 0 disables the limit. Defaults to 0.
    #[schemars(range(max = 31_536_000))]
    pub max_connection_age_seconds: u32,
}

/// Authentication of clients and of callers of the server API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AuthSettings {
    /// Files that contain API keys of the server API, one key per line. If a path is a directory, all files in it are
    /// read. If empty, the API rejects all calls.
    #[schemars(length(max = 64), with = "Vec<String>")]
    pub api_key_files: Vec<PathBuf>,
    /// Verification of connection tokens. If unset, no token is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<JwtSettings>,
}

/// Verification of connection tokens, which are JSON Web Tokens (RFC 7519).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtSettings {
    /// Required value of the `iss` claim. If unset, any issuer is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// Required value of the `aud` claim. If unset, any audience is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// Rejects tokens without an `exp` claim. If `false`, such tokens never expire. Clocks may differ by up to 5
    /// seconds. Defaults to `false`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub require_exp: bool,
    /// Keys that tokens are verified with. A token with a `kid` header is verified only with the key of that `kid`.
    #[schemars(length(min = 1, max = 32))]
    pub keys: Vec<JwtKey>,
}

/// Key for verifying tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtKey {
    /// Key ID, matched against the `kid` header of tokens. A key without one is tried for tokens that have no `kid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// Algorithm that this key is used with. Tokens signed with any other algorithm are rejected.
    pub algorithm: JwtAlgorithm,
    /// File with the shared secret (HMAC; the raw bytes, without one trailing line break) or the public key (PEM).
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

/// Draining of client connections before this node terminates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DrainSettings {
    /// Maximum number of connections closed per second. Exceeded if the deadline requires it. Defaults to 200.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_disconnects_per_second: u32,
    /// Seconds after which all remaining connections are closed at once. Defaults to 60.
    #[schemars(range(min = 1, max = 86_400))]
    pub timeout_seconds: u32,
    /// Upper bound, in seconds, of the random delay after which disconnected clients are asked to reconnect. Defaults
    /// to 15.
    #[schemars(range(max = 3_600))]
    pub reconnect_jitter_seconds: u32,
}

// === impl DrainSettings ===

impl DrainSettings {
    /// Returns the longest time that a drain may take in a pod that is killed `grace` after it was asked to terminate.
    /// The last 10 s are reserved for the process, which exits once the drain has completed.
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
            // Below the 30 s after which common load balancers close an idle connection.
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
            // Longer than a phone's change of networks, shorter than ping and pong together.
            write_timeout_seconds: 30,
            // Half of the header limit: enough for a token and some channels.
            query_bytes: 4_096,
            connections_per_ip: 0,
            connections_per_user: 0,
            // More handshakes than one node can complete; the first second's worth covers a crowd that reconnects at once.
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
