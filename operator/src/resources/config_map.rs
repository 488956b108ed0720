//! The settings of the nodes: a boot document for each revision, a live document for each cluster.
//!
//! [`render_node`] is the one place that turns a FanoutCluster into a node's settings. In a pod it is given the
//! pod's mounts; `kubectl fanout dev` gives it local addresses and a directory.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::LazyLock,
    time::Duration,
};

use k8s_openapi::api::core::v1::ConfigMap;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sidecar_config::{
    AuthSettings, BootSettings, DrainSettings, HubSettings, JwtKey, JwtSettings, Listen, LiveSettings,
    Runtime, SINCE, TlsSettings,
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

/// The running nodes that read the live document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readers {
    /// Version of the oldest sidecar among them.
    pub version: String,
    /// Shortest time, in seconds, that a pod has to end whose sidecar was not told it; `None` where all were.
    pub untold_grace_seconds: Option<u32>,
}

/// A setting that a version of the sidecar does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// Where it is, as `hub.maxMessageBytes`.
    pub path: String,
    /// The first version that knows it.
    pub since: String,
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
        data: Some(BTreeMap::from([(BOOT.to_owned(), document(&boot, &BOOT_SCHEMA, &cluster.spec.version))])),
        immutable: Some(true),
        ..ConfigMap::default()
    }
}

/// The live document of a cluster. It is one for all of its nodes, so it suits each of them.
pub fn live(cluster: &FanoutCluster, redis: &RedisTarget, readers: &Readers) -> ConfigMap {
    let Readers { version, untold_grace_seconds } = readers;
    let (_, mut live) = render_node(cluster, &NodePlace::in_pod(cluster, redis.clone()));
    if let Some(grace) = untold_grace_seconds {
        let longest = DrainSettings::longest_within(Duration::from_secs((*grace).into())).as_secs();
        live.drain.timeout_seconds =
            live.drain.timeout_seconds.min(u32::try_from(longest).unwrap_or(u32::MAX));
    }
    ConfigMap {
        metadata: metadata(cluster, Component::Node, live_name(cluster)),
        data: Some(BTreeMap::from([(LIVE.to_owned(), document(&live, &LIVE_SCHEMA, version))])),
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

/// Settings of the spec that a sidecar of `spec.version` does not know, each with the version that does.
pub fn too_new(cluster: &FanoutCluster, redis: &RedisTarget) -> Vec<Unknown> {
    let (boot, live) = render_node(cluster, &NodePlace::in_pod(cluster, redis.clone()));
    let version = &cluster.spec.version;
    let (_, unknown_in_boot) = known_to(version, &boot, &BOOT_SCHEMA);
    let (_, unknown_in_live) = known_to(version, &live, &LIVE_SCHEMA);
    [unknown_in_boot, unknown_in_live].concat()
}

/// The older of two versions of the sidecar. One that is no version is taken for the newest.
pub fn older<'a>(one: &'a str, other: &'a str) -> &'a str {
    match (numbers(one), numbers(other)) {
        (Some(first), Some(second)) if second < first => other,
        (None, Some(_)) => other,
        _ => one,
    }
}

/// A settings document as YAML, for nodes of a version: they refuse keys they do not know. Values that equal their default
/// are left out, so that most documents of a newer operator are what an older one would have written.
fn document<D: Serialize>(settings: &D, schema: &Value, version: &str) -> String {
    let (value, _) = known_to(version, settings, schema);
    serde_yaml::to_string(&value).expect("JSON is YAML")
}

fn known_to<D: Serialize>(version: &str, settings: &D, schema: &Value) -> (Value, Vec<Unknown>) {
    let mut value = serde_json::to_value(settings).expect("settings are JSON");
    drop_defaults(schema, &mut value);
    let mut unknown = Vec::new();
    drop_unknown(version, schema, &mut value, "", &mut unknown);
    (value, unknown)
}

/// Takes out what a version does not know. Of each, the path is kept, and the version that does.
fn drop_unknown(version: &str, schema: &Value, value: &mut Value, path: &str, unknown: &mut Vec<Unknown>) {
    match value {
        Value::Object(fields) => {
            let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            fields.retain(|name, value| {
                let field = &schema["properties"][name.as_str()];
                let since = field[SINCE].as_str().filter(|since| is_before(version, since));
                unknown.extend(since.map(|since| Unknown { path: below(name), since: since.to_owned() }));
                if since.is_none() {
                    drop_unknown(version, field, value, &below(name), unknown);
                }
                since.is_none()
            });
        }
        Value::Array(items) => {
            for (at, item) in items.iter_mut().enumerate() {
                drop_unknown(version, &schema["items"], item, &format!("{path}[{at}]"), unknown);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn is_before(version: &str, since: &str) -> bool {
    numbers(version).zip(numbers(since)).is_some_and(|(version, since)| version < since)
}

/// The three numbers of a version; a release candidate knows what its release does.
fn numbers(version: &str) -> Option<[u64; 3]> {
    let release = version.split(['-', '+']).next()?;
    let numbers: Vec<_> = release.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    numbers.try_into().ok()
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
    let Jwt { issuer, audience, require_exp, keys } = jwt;
    let key = |JwtKeySpec { kid, algorithm, secret_key_ref: SecretKeyRef { name, key } }: &JwtKeySpec| {
        JwtKey { kid: kid.clone(), algorithm: *algorithm, file: root.join(name).join(key) }
    };
    JwtSettings {
        issuer: issuer.clone(),
        audience: audience.clone(),
        require_exp: *require_exp,
        keys: keys.iter().map(key).collect(),
    }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_version_does_not_know_is_left_out_and_named() {
        let schema = json!({"properties": {
            "old": {},
            "new": {SINCE: "0.3.0", "default": 1},
            "list": {"items": {"properties": {"name": {}, "rate": {SINCE: "0.2.0"}}}},
        }});
        let settings = json!({"old": 1, "new": 2, "list": [{"name": "a"}, {"name": "b", "rate": 3}]});
        let (value, unknown) = known_to("0.1.4", &settings, &schema);
        assert_eq!(value, json!({"old": 1, "list": [{"name": "a"}, {"name": "b"}]}));
        let named: Vec<_> =
            unknown.iter().map(|unknown| (unknown.path.as_str(), unknown.since.as_str())).collect();
        assert_eq!(named, [("list[1].rate", "0.2.0"), ("new", "0.3.0")]);
        for version in ["0.3.0", "0.3.0-rc.1", "1.0.0", "nightly"] {
            assert_eq!(known_to(version, &settings, &schema), (settings.clone(), vec![]), "{version}");
        }
        let default = json!({"new": 1});
        assert_eq!(known_to("0.1.0", &default, &schema), (json!({}), vec![]), "a default needs no version");
    }

    #[test]
    fn the_older_of_two_versions_is_found_by_number() {
        assert_eq!(older("0.10.0", "0.9.1"), "0.9.1");
        assert_eq!(older("0.1.0", "0.1.0"), "0.1.0");
        assert_eq!(older("nightly", "0.1.0"), "0.1.0");
        assert_eq!(older("0.1.0", "nightly"), "0.1.0");
    }
}
