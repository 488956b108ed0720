//! Types for a node: its image, hub and authentication.

use k8s_openapi::api::core::v1::LocalObjectReference;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sidecar_config::{Compression, JwtAlgorithm, Limits};

use super::all_defaults;

/// Container image of the sidecar.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Image repository, without a tag. Defaults to the repository configured in the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), extend("x-fanout-change" = "roll"))]
    pub repository: Option<String>,
    /// Image tag. Defaults to `spec.version`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9A-Za-z_][0-9A-Za-z._-]{0,127}$"), extend("x-fanout-change" = "roll"))]
    pub tag: Option<String>,
    /// Image digest, in the form `sha256:…`. Takes precedence over the tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^sha256:[0-9a-f]{64}$"), extend("x-fanout-change" = "roll"))]
    pub digest: Option<String>,
    /// Image pull policy. Defaults to `IfNotPresent`.
    #[serde(default)]
    #[schemars(extend("x-fanout-change" = "roll"))]
    pub pull_policy: PullPolicy,
    /// Secrets with credentials for the image registry. Also used to pull the image of the managed Redis.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-fanout-change" = "roll"))]
    pub pull_secrets: Vec<LocalObjectReference>,
}

/// Image pull policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub enum PullPolicy {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

/// Ports of the sidecar, and settings and limits of client connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.pongTimeoutSeconds < self.pingIntervalSeconds")
        .message("a ping must be answered before the next one: set pongTimeoutSeconds below pingIntervalSeconds")
        .field_path(".pongTimeoutSeconds")
)]
pub struct Hub {
    /// Ports that the sidecar listens on.
    #[serde(default)]
    #[schemars(extend("x-fanout-change" = "roll"))]
    pub ports: Ports,
    /// Maximum number of client connections per node. Defaults to 50000.
    #[serde(default = "default_max_connections")]
    #[schemars(range(min = 1, max = 10_000_000), extend("x-fanout-change" = "hot"))]
    pub max_connections_per_node: u32,
    /// Maximum payload size, in bytes, of one message from a client or of one publication. Defaults to 65536.
    #[serde(default = "default_max_message_bytes")]
    #[schemars(range(min = 1, max = 16_777_216), extend("x-fanout-change" = "hot"))]
    pub max_message_bytes: u32,
    /// Interval between pings to a client, in seconds. Defaults to 25.
    #[serde(default = "default_ping_interval")]
    #[schemars(range(min = 2, max = 3_600), extend("x-fanout-change" = "hot"))]
    pub ping_interval_seconds: u32,
    /// Time that a client has to answer a ping, in seconds. Must be less than `pingIntervalSeconds`. Defaults to 10.
    #[serde(default = "default_pong_timeout")]
    #[schemars(range(min = 1, max = 3_600), extend("x-fanout-change" = "hot"))]
    pub pong_timeout_seconds: u32,
    /// Origins from which browsers may connect: `https://app.example`, `https://*.example` (any subdomain) or `*`. If
    /// empty, all browsers are rejected. Requests without an `Origin` header do not come from browsers and are not
    /// restricted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 253)), extend("x-fanout-change" = "hot"))]
    #[x_kube(validation = Rule::new(r"self.all(o, o == '*' || o.matches('^[A-Za-z][A-Za-z0-9+.-]*://([*][.])?[^*/ ]+$'))")
        .message("an origin is 'https://app.example', 'https://*.example' or '*', without a path or a trailing slash"))]
    pub allowed_origins: Vec<String>,
    /// Networks (CIDR) of trusted proxies. `X-Forwarded-For`, `Forwarded` and PROXY protocol headers are accepted only
    /// from these addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 49)), extend("x-fanout-change" = "hot"))]
    #[x_kube(validation = Rule::new("self.all(p, isCIDR(p))")
        .message("a trusted proxy is a network such as '10.0.0.0/8' or 'fd00::/8': for one address write /32 or /128"))]
    pub trusted_proxies: Vec<String>,
    /// TLS on the client port, including HTTP/2 and WebSockets over HTTP/2. If unset, the port serves plain HTTP, for
    /// use behind a proxy that terminates TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-fanout-change" = "roll"))]
    pub tls: Option<ClientTls>,
    /// Compression of WebSocket messages.
    #[serde(default)]
    #[schemars(extend("x-fanout-change" = "hot"))]
    pub compression: Compression,
    /// Limits on clients, connections and handshakes.
    #[serde(default)]
    #[schemars(extend("x-fanout-change" = "hot"))]
    pub limits: Limits,
}

/// TLS on the client port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClientTls {
    /// Secret of type `kubernetes.io/tls`, such as those that cert-manager creates. A renewed certificate is used from
    /// the next handshake on, without a restart.
    pub secret_ref: LocalObjectName,
}

/// Ports that the sidecar listens on in the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.client != self.api && self.client != self.admin && self.client != self.control && self.api != self.admin && self.api != self.control && self.admin != self.control")
        .message("the hub's ports must differ: give client, api, admin and control a port each")
)]
pub struct Ports {
    /// Port for client connections (WebSocket and SSE). Defaults to 8000.
    #[serde(default = "default_client_port")]
    #[schemars(range(min = 1_024, max = 65_535))]
    pub client: u16,
    /// Port of the server API, which backends call. Defaults to 8001.
    #[serde(default = "default_api_port")]
    #[schemars(range(min = 1_024, max = 65_535))]
    pub api: u16,
    /// Port for probes and metrics. Must not be exposed publicly. Defaults to 8002.
    #[serde(default = "default_admin_port")]
    #[schemars(range(min = 1_024, max = 65_535))]
    pub admin: u16,
    /// Reserved for the operator's control connection. Defaults to 8003.
    #[serde(default = "default_control_port")]
    #[schemars(range(min = 1_024, max = 65_535))]
    pub control: u16,
}

/// Authentication of clients and of callers of the server API. Access to channels is granted in `namespaces`, not here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Auth {
    /// Secret whose values are all accepted as API keys of the server API, in addition to the generated key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_keys_secret_ref: Option<ApiKeysRef>,
    /// Verification of connection tokens. If unset, no token is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<Jwt>,
}

/// Reference to a Secret of API keys. Changes of the Secret's data take effect while clients stay connected; referring
/// to another Secret requires new pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApiKeysRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), extend("x-fanout-change" = "roll"))]
    pub name: String,
}

/// Verification of connection tokens, which are JSON Web Tokens (RFC 7519).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Jwt {
    /// Required value of the `iss` claim. If unset, any issuer is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1_024), extend("x-fanout-change" = "hot"))]
    pub issuer: Option<String>,
    /// Required value of the `aud` claim. If unset, any audience is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1_024), extend("x-fanout-change" = "hot"))]
    pub audience: Option<String>,
    /// Rejects tokens without an `exp` claim. If `false`, such tokens never expire. Defaults to `false`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(extend("x-fanout-change" = "hot"))]
    pub require_exp: bool,
    /// Keys that tokens are verified with. A token with a `kid` header is verified only with the key of that `kid`.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("self.all(k, !has(k.kid) || self.exists_one(o, has(o.kid) && o.kid == k.kid))")
        .message("two keys have the same kid: give each key its own"))]
    pub keys: Vec<JwtKeySpec>,
}

/// Key for verifying tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JwtKeySpec {
    /// Key ID, matched against the `kid` header of tokens. A key without one is tried for tokens that have no `kid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), extend("x-fanout-change" = "hot"))]
    pub kid: Option<String>,
    /// Algorithm that this key is used with. Tokens signed with any other algorithm are rejected.
    #[schemars(extend("x-fanout-change" = "hot"))]
    pub algorithm: JwtAlgorithm,
    /// Reference to the shared secret (HMAC) or the public key (PEM).
    pub secret_key_ref: SecretKeyRef,
}

/// Reference to a key of a Secret. Changes of its value take effect while clients stay connected; referring to another
/// Secret requires new pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), extend("x-fanout-change" = "roll"))]
    pub name: String,
    /// Key within the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"), extend("x-fanout-change" = "hot"))]
    pub key: String,
}

/// Reference to an object in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LocalObjectName {
    /// Name of the referent.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

fn default_max_connections() -> u32 {
    sidecar_config::HubSettings::default().max_connections
}

fn default_max_message_bytes() -> u32 {
    sidecar_config::HubSettings::default().max_message_bytes
}

fn default_ping_interval() -> u32 {
    sidecar_config::HubSettings::default().ping_interval_seconds
}

fn default_pong_timeout() -> u32 {
    sidecar_config::HubSettings::default().pong_timeout_seconds
}

fn default_client_port() -> u16 {
    8000
}

fn default_api_port() -> u16 {
    8001
}

fn default_admin_port() -> u16 {
    8002
}

fn default_control_port() -> u16 {
    8003
}

impl Default for Image {
    fn default() -> Self {
        all_defaults()
    }
}

impl Default for Hub {
    fn default() -> Self {
        all_defaults()
    }
}

impl Default for Ports {
    fn default() -> Self {
        all_defaults()
    }
}

impl PullPolicy {
    /// Returns the name that Kubernetes uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}
