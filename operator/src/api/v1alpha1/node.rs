//! What a node is: its image, its hub and who may use it.

use k8s_openapi::api::core::v1::LocalObjectReference;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sidecar_config::{Compression, JwtAlgorithm, Limits};

use super::all_defaults;

/// Image of the sidecar.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Repository without a tag; absent: the operator's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), extend("x-fanout-change" = "roll"))]
    pub repository: Option<String>,
    /// Tag; absent: `spec.version`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9A-Za-z_][0-9A-Za-z._-]{0,127}$"), extend("x-fanout-change" = "roll"))]
    pub tag: Option<String>,
    /// Digest, as `sha256:…`; it wins over the tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^sha256:[0-9a-f]{64}$"), extend("x-fanout-change" = "roll"))]
    pub digest: Option<String>,
    /// When the image is pulled.
    #[serde(default)]
    #[schemars(extend("x-fanout-change" = "roll"))]
    pub pull_policy: PullPolicy,
    /// Secrets of the registry; for the managed Redis too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-fanout-change" = "roll"))]
    pub pull_secrets: Vec<LocalObjectReference>,
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the names are Kubernetes'")]
pub enum PullPolicy {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

/// Ports, connections and their limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.pongTimeoutSeconds < self.pingIntervalSeconds")
        .message("a ping must be answered before the next one: set pongTimeoutSeconds below pingIntervalSeconds")
        .field_path(".pongTimeoutSeconds")
)]
pub struct Hub {
    /// Ports of the sidecar.
    #[serde(default)]
    #[schemars(extend("x-fanout-change" = "roll"))]
    pub ports: Ports,
    /// Connections that a node holds at most.
    #[serde(default = "default_max_connections")]
    #[schemars(range(min = 1, max = 10_000_000), extend("x-fanout-change" = "hot"))]
    pub max_connections_per_node: u32,
    /// Payload bytes of one message from a client, or of one publication.
    #[serde(default = "default_max_message_bytes")]
    #[schemars(range(min = 1, max = 16_777_216), extend("x-fanout-change" = "hot"))]
    pub max_message_bytes: u32,
    /// Seconds between pings to a client.
    #[serde(default = "default_ping_interval")]
    #[schemars(range(min = 2, max = 3_600), extend("x-fanout-change" = "hot"))]
    pub ping_interval_seconds: u32,
    /// Seconds that a client has to answer a ping.
    #[serde(default = "default_pong_timeout")]
    #[schemars(range(min = 1, max = 3_600), extend("x-fanout-change" = "hot"))]
    pub pong_timeout_seconds: u32,
    /// Origins from which browsers may connect: `https://app.example`, `https://*.example` (any subdomain) or `*`.
    /// Empty refuses every browser; a request without `Origin` is no browser and passes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 253)), extend("x-fanout-change" = "hot"))]
    #[x_kube(validation = Rule::new(r"self.all(o, o == '*' || o.matches('^[A-Za-z][A-Za-z0-9+.-]*://([*][.])?[^*/ ]+$'))")
        .message("an origin is 'https://app.example', 'https://*.example' or '*': no path, no slash at the end"))]
    pub allowed_origins: Vec<String>,
    /// Networks (CIDR) of the proxies whose `X-Forwarded-For`, `Forwarded` and PROXY header are believed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 49)), extend("x-fanout-change" = "hot"))]
    #[x_kube(validation = Rule::new("self.all(p, isCIDR(p))")
        .message("a trusted proxy is a network such as '10.0.0.0/8' or 'fd00::/8': for one address write /32 or /128"))]
    pub trusted_proxies: Vec<String>,
    /// TLS on the client port, with HTTP/2 and its WebSockets; absent: plain HTTP, for a proxy in front that speaks TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-fanout-change" = "roll"))]
    pub tls: Option<ClientTls>,
    /// Compression of WebSocket messages.
    #[serde(default)]
    #[schemars(extend("x-fanout-change" = "hot"))]
    pub compression: Compression,
    /// Limits of one connection.
    #[serde(default)]
    #[schemars(extend("x-fanout-change" = "hot"))]
    pub limits: Limits,
}

/// TLS on the client port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClientTls {
    /// Secret of type `kubernetes.io/tls`, as cert-manager makes it. A renewed certificate is used by the next
    /// handshake; nothing restarts.
    pub secret_ref: LocalObjectName,
}

/// Ports of the sidecar in the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.client != self.api && self.client != self.admin && self.client != self.control && self.api != self.admin && self.api != self.control && self.admin != self.control")
        .message("the hub's ports must differ: give client, api, admin and control a port each")
)]
pub struct Ports {
    /// WebSocket and SSE, for browsers and devices.
    #[serde(default = "default_client_port")]
    #[schemars(range(min = 1_024, max = 65_535))]
    pub client: u16,
    /// Server API, for backends.
    #[serde(default = "default_api_port")]
    #[schemars(range(min = 1_024, max = 65_535))]
    pub api: u16,
    /// Probes and metrics, never public.
    #[serde(default = "default_admin_port")]
    #[schemars(range(min = 1_024, max = 65_535))]
    pub admin: u16,
    /// Reserved for the operator's control connection.
    #[serde(default = "default_control_port")]
    #[schemars(range(min = 1_024, max = 65_535))]
    pub control: u16,
}

/// Who may connect and who may call the server API. Nothing here opens a channel: `namespaces` does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Auth {
    /// Secret whose every value is a key of the server API, besides the generated one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_keys_secret_ref: Option<ApiKeysRef>,
    /// Connection tokens; absent: no token is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<Jwt>,
}

/// A Secret of API keys. What it holds is taken over while clients stay; another Secret needs new pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApiKeysRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), extend("x-fanout-change" = "roll"))]
    pub name: String,
}

/// Connection tokens: JSON Web Tokens (RFC 7519).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Jwt {
    /// Required value of `iss`; absent: any is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1_024), extend("x-fanout-change" = "hot"))]
    pub issuer: Option<String>,
    /// Required value of `aud`; absent: any is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1_024), extend("x-fanout-change" = "hot"))]
    pub audience: Option<String>,
    /// Whether a token must end, by `exp`; otherwise one without never does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(extend("x-fanout-change" = "hot"))]
    pub require_exp: bool,
    /// Keys that may have signed a token. A token that names a `kid` is checked by the key of that name only.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("self.all(k, !has(k.kid) || self.exists_one(o, has(o.kid) && o.kid == k.kid))")
        .message("two keys have the same kid: give each key its own"))]
    pub keys: Vec<JwtKeySpec>,
}

/// One verification key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JwtKeySpec {
    /// Name that a token's `kid` header gives; absent: tried for tokens without a `kid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), extend("x-fanout-change" = "hot"))]
    pub kid: Option<String>,
    /// The only algorithm this key is good for.
    #[schemars(extend("x-fanout-change" = "hot"))]
    pub algorithm: JwtAlgorithm,
    /// Where the secret (HMAC) or the public key (PEM) is.
    pub secret_key_ref: SecretKeyRef,
}

/// A key of a Secret. What it holds is taken over while clients stay; another Secret needs new pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), extend("x-fanout-change" = "roll"))]
    pub name: String,
    /// Key in the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"), extend("x-fanout-change" = "hot"))]
    pub key: String,
}

/// An object of the same namespace, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LocalObjectName {
    /// Its name.
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
    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}
