//! The settings of the nodes: a boot document for each revision, a live document for each cluster.
//!
//! [`render_node`] is the one place that turns a FanoutCluster into a node's settings. In a pod it is given the
//! pod's mounts; `kubectl fanout dev` gives it local addresses and a directory.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::LazyLock,
};

use k8s_openapi::api::core::v1::ConfigMap;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sidecar_config::{
    AuthSettings, BootSettings, DrainSettings, HubSettings, JwtKey, JwtSettings, Listen, LiveSettings,
    Runtime, TlsSettings,
};

use super::{
    labels::{Component, metadata},
    secret,
};
use crate::{
    api::{
        FanoutCluster, schema,
        v1alpha1::{ApiKeysRef, Auth, Drain, Hub, Jwt, JwtKeySpec, Ports, SecretKeyRef},
    },
    plan::Strategy,
    redis::RedisTarget,
};

/// Directory in a pod under which all settings and secrets are mounted.
pub const ROOT: &str = "/etc/fanout";
/// Key and file name of the boot document.
pub const BOOT: &str = "boot.yaml";
/// Key and file name of the live document.
pub const LIVE: &str = "live.yaml";

static BOOT_SCHEMA: LazyLock<Value> = LazyLock::new(schema::plain::<BootSettings>);
static LIVE_SCHEMA: LazyLock<Value> = LazyLock::new(schema::plain::<LiveSettings>);

/// Where a node runs: what of its settings the FanoutCluster does not say.
#[derive(Clone, Debug, PartialEq)]
pub struct NodePlace {
    /// Addresses it listens on.
    pub listen: Listen,
    /// How it reaches its broker.
    pub redis: RedisTarget,
    /// Directory of its secrets: `api-keys/<secret>/`, `jwt/<secret>/<key>`, `redis/{username,password}` and
    /// `redis-tls/{ca.crt,tls.crt,tls.key}`.
    pub secrets: PathBuf,
    /// Whether containers of the user run beside it.
    pub app_containers: bool,
}

/// The settings of a node of `cluster` that runs at `place`.
pub fn render_node(cluster: &FanoutCluster, place: &NodePlace) -> (BootSettings, LiveSettings) {
    let NodePlace { listen, redis, secrets, app_containers } = place;
    let boot = BootSettings {
        cluster: cluster.name().to_owned(),
        listen: listen.clone(),
        runtime: Runtime::default(),
        broker: redis.broker(cluster.channel_prefix(), secrets),
        app_containers: *app_containers,
    };
    let live = LiveSettings {
        log_level: cluster.spec.log_level,
        on_unavailable: cluster.spec.redis.on_unavailable,
        hub: hub(&cluster.spec.hub, secrets),
        auth: auth(cluster, secrets),
        namespaces: cluster.spec.namespaces.clone(),
        drain: drain(cluster),
    };
    (boot, live)
}

/// The boot document of a revision.
pub fn boot(cluster: &FanoutCluster, redis: &RedisTarget, revision: &str) -> ConfigMap {
    let (boot, _) = render_node(cluster, &NodePlace::in_pod(cluster, redis.clone()));
    ConfigMap {
        metadata: metadata(cluster, Component::Node, boot_name(cluster, revision)),
        data: Some(BTreeMap::from([(BOOT.to_owned(), document(&boot, &BOOT_SCHEMA))])),
        immutable: Some(true),
        ..ConfigMap::default()
    }
}

/// The live document of a cluster.
pub fn live(cluster: &FanoutCluster, redis: &RedisTarget) -> ConfigMap {
    let (_, live) = render_node(cluster, &NodePlace::in_pod(cluster, redis.clone()));
    ConfigMap {
        metadata: metadata(cluster, Component::Node, live_name(cluster)),
        data: Some(BTreeMap::from([(LIVE.to_owned(), document(&live, &LIVE_SCHEMA))])),
        ..ConfigMap::default()
    }
}

/// Name of the ConfigMap with a revision's boot document.
pub fn boot_name(cluster: &FanoutCluster, revision: &str) -> String {
    format!("{}-{revision}", cluster.name())
}

/// Name of the ConfigMap with the live document.
pub fn live_name(cluster: &FanoutCluster) -> String {
    format!("{}-live", cluster.name())
}

/// What a node reports in `fanout_settings_info` once it runs by this live document.
pub fn live_hash(live: &ConfigMap) -> String {
    let text = live.data.as_ref().and_then(|data| data.get(LIVE)).map_or("", String::as_str);
    Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// A settings document as YAML. Values that equal their default are left out: nodes of an older version refuse
/// keys they do not know, and so keep running by the documents of a newer operator.
fn document<D: Serialize>(settings: &D, schema: &Value) -> String {
    let mut value = serde_json::to_value(settings).expect("settings are JSON");
    drop_defaults(schema, &mut value);
    serde_yaml::to_string(&value).expect("JSON is YAML")
}

fn drop_defaults(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let properties = &schema["properties"];
            fields.retain(|name, value| properties[name.as_str()].get("default") != Some(value));
            fields.iter_mut().for_each(|(name, value)| drop_defaults(&properties[name.as_str()], value));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| drop_defaults(&schema["items"], item)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn hub(hub: &Hub, secrets: &Path) -> HubSettings {
    let Hub {
        ports: _,
        max_connections_per_node,
        max_message_bytes,
        ping_interval_seconds,
        pong_timeout_seconds,
        allowed_origins,
        trusted_proxies,
        tls,
        compression,
        limits,
    } = hub;
    HubSettings {
        max_connections: *max_connections_per_node,
        max_message_bytes: *max_message_bytes,
        ping_interval_seconds: *ping_interval_seconds,
        pong_timeout_seconds: *pong_timeout_seconds,
        allowed_origins: allowed_origins.clone(),
        // `validate` has told of those that are no network.
        trusted_proxies: trusted_proxies.iter().filter_map(|network| network.parse().ok()).collect(),
        compression: *compression,
        tls: tls.as_ref().map(|_| TlsSettings {
            cert_file: secrets.join("tls/tls.crt"),
            key_file: secrets.join("tls/tls.key"),
        }),
        limits: limits.clone(),
    }
}

fn auth(cluster: &FanoutCluster, secrets: &Path) -> AuthSettings {
    let Auth { api_keys_secret_ref, jwt } = &cluster.spec.auth;
    let given = api_keys_secret_ref.iter().map(|ApiKeysRef { name }| name.clone());
    let names = std::iter::once(secret::api_key_name(cluster)).chain(given);
    AuthSettings {
        api_key_files: names.map(|name| secrets.join("api-keys").join(name)).collect(),
        jwt: jwt.as_ref().map(|jwt| tokens(jwt, &secrets.join("jwt"))),
    }
}

fn tokens(jwt: &Jwt, root: &Path) -> JwtSettings {
    let Jwt { issuer, audience, keys } = jwt;
    let key = |JwtKeySpec { kid, algorithm, secret_key_ref: SecretKeyRef { name, key } }: &JwtKeySpec| {
        JwtKey { kid: kid.clone(), algorithm: *algorithm, file: root.join(name).join(key) }
    };
    JwtSettings { issuer: issuer.clone(), audience: audience.clone(), keys: keys.iter().map(key).collect() }
}

fn drain(cluster: &FanoutCluster) -> DrainSettings {
    let Drain {
        max_disconnects_per_second,
        timeout_seconds,
        termination_grace_period_seconds: _,
        reconnect_jitter_seconds,
    } = cluster.spec.drain;
    let replicas = u32::try_from(cluster.spec.replicas).unwrap_or(0);
    let at_once = Strategy::of(&cluster.spec.update_strategy, replicas).max_draining();
    DrainSettings {
        // The budget is the cluster's. Nodes do not know of each other's drains, so each gets the part that is left to
        // it when as many drain as the plan ever lets.
        max_disconnects_per_second: (max_disconnects_per_second / at_once).max(1),
        timeout_seconds,
        reconnect_jitter_seconds,
    }
}

// === impl NodePlace ===

impl NodePlace {
    /// A node in its pod.
    pub fn in_pod(cluster: &FanoutCluster, redis: RedisTarget) -> Self {
        let Ports { client, api, admin, control: _ } = cluster.spec.hub.ports;
        // Every address of both families: pods have one or two of them.
        let at = |port| SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
        Self {
            listen: Listen { client: at(client), api: at(api), admin: at(admin) },
            redis,
            secrets: PathBuf::from(ROOT),
            app_containers: cluster.has_app_containers(),
        }
    }
}
