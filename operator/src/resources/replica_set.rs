//! The nodes: one ReplicaSet for each revision.
//!
//! It is JSON rather than a typed object, so that what the user wrote in `podTemplate` for a newer Kubernetes
//! passes through. `spec.replicas` is not in here: `plan` decides it.

use std::collections::BTreeSet;

use kube::ResourceExt;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{
    config_map::{self, BOOT, LIVE, ROOT},
    labels::{self, Component, metadata},
    secret, service,
};
use crate::{
    api::{
        FanoutCluster, RESTARTED_AT, change,
        v1alpha1::{
            ApiKeysRef, CaRef, ClientTls, CredentialsRef, Image, LocalObjectName, PodTemplate, Ports,
            RedisTlsSpec,
        },
    },
    controller::build::{OperatorConfig, RevisionSpec},
    redis::RedisTarget,
};

/// Name of the sidecar's container.
pub const CONTAINER: &str = "fanout";
/// Environment variable that tells the sidecar how long its pod has to end. A sidecar of before it knows only what the live
/// document says of the drain.
pub const GRACE: &str = "FANOUT_TERMINATION_GRACE_SECONDS";
/// Directory in the user's containers that holds the generated API key.
const APP_KEY_DIR: &str = "/var/run/secrets/fanout.dev";
/// User of the sidecar; `nonroot` of the images.
const NON_ROOT: i64 = 65_532;

/// A volume and where the sidecar sees it.
struct Mount {
    volume: Value,
    path: String,
}

/// The revision that the spec asks for.
///
/// `api_key`: digest of the generated key. App containers have it in their environment, which is read once, so another key
/// makes another revision of those that have some.
pub fn revision(
    cluster: &FanoutCluster,
    redis: &RedisTarget,
    api_key: Option<&str>,
    operator: &OperatorConfig,
) -> RevisionSpec {
    let canonical = canonical_of(cluster, api_key);
    let name = short_hash(&canonical);
    RevisionSpec {
        replica_set: replica_set(cluster, redis, operator, &name, &canonical),
        boot_config_map: config_map::boot(cluster, redis, &name),
        name,
        canonical,
    }
}

/// Brings what an older operator stored to today's classes of change, so that it can be compared.
pub fn canonical(stored: &Value) -> Value {
    json!({
        "spec": change::roll_part_of(&stored["spec"]),
        "restartedAt": stored["restartedAt"],
        "apiKey": stored["apiKey"],
    })
}

fn canonical_of(cluster: &FanoutCluster, api_key: Option<&str>) -> Value {
    let restarted_at = cluster.annotations().get(RESTARTED_AT);
    let mut canonical = json!({"spec": change::roll_part(&cluster.spec), "restartedAt": restarted_at});
    if let Some(digest) = api_key.filter(|_| cluster.has_app_containers()) {
        canonical["apiKey"] = digest.into();
    }
    canonical
}

/// Ten hexadecimal digits: short enough for a pod's name, and 40 bits are plenty for the revisions of one cluster.
fn short_hash(canonical: &Value) -> String {
    Sha256::digest(canonical.to_string()).iter().take(5).map(|byte| format!("{byte:02x}")).collect()
}

fn replica_set(
    cluster: &FanoutCluster,
    redis: &RedisTarget,
    operator: &OperatorConfig,
    revision: &str,
    canonical: &Value,
) -> Value {
    let mut metadata = metadata(cluster, Component::Node, format!("{}-{revision}", cluster.name()));
    metadata.labels.get_or_insert_default().insert(labels::REVISION.to_owned(), revision.to_owned());
    metadata.annotations.get_or_insert_default().extend(labels::map([
        (labels::REVISION_SPEC, &canonical.to_string()),
        (labels::RENDERED_BY, env!("CARGO_PKG_VERSION")),
    ]));
    json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": metadata,
        "spec": {
            "selector": {"matchLabels": selected(cluster, revision)},
            "template": {
                "metadata": pod_metadata(cluster, revision),
                "spec": pod(cluster, redis, operator, revision),
            },
        },
    })
}

/// What the ReplicaSet selects: not `serving`, which the operator takes away without letting go of the pod.
fn selected(cluster: &FanoutCluster, revision: &str) -> Value {
    json!({labels::CLUSTER: cluster.name(), labels::REVISION: revision})
}

fn pod_metadata(cluster: &FanoutCluster, revision: &str) -> Value {
    let template = cluster.spec.pod_template.clone().unwrap_or_default();
    let mut pod_labels = template.labels();
    pod_labels.extend(labels::standard(cluster, Component::Node));
    pod_labels.extend(labels::serving_nodes(cluster));
    pod_labels.insert(labels::REVISION.to_owned(), revision.to_owned());
    let mut annotations = template.annotations();
    // `kubectl logs` and `exec` mean the user's container where there is one.
    let main =
        template.containers().first().and_then(|container| container["name"].as_str()).unwrap_or(CONTAINER);
    annotations
        .entry("kubectl.kubernetes.io/default-container".to_owned())
        .or_insert_with(|| main.to_owned());
    json!({"labels": pod_labels, "annotations": annotations})
}

/// The user's pod with the sidecar in it: the only container when alone, else the first native sidecar, so that it
/// is up before the user's containers and goes after them.
fn pod(cluster: &FanoutCluster, redis: &RedisTarget, operator: &OperatorConfig, revision: &str) -> Value {
    let template = cluster.spec.pod_template.clone().unwrap_or_default();
    let mounts = mounts(cluster, redis, revision);
    let mut hub = hub(cluster, operator, &mounts);
    let mut pod = template.spec();
    let mut init = take_list(&mut pod, "initContainers");
    if cluster.has_app_containers() {
        hub["restartPolicy"] = "Always".into();
        init.insert(0, hub);
        pod.insert("containers".to_owned(), app_containers(cluster, &template).into());
    } else {
        pod.insert("containers".to_owned(), json!([hub]));
    }
    if !init.is_empty() {
        pod.insert("initContainers".to_owned(), init.into());
    }
    let volumes = mounts.into_iter().map(|mount| mount.volume);
    let volumes: Vec<_> = volumes.chain(take_list(&mut pod, "volumes")).collect();
    pod.insert("volumes".to_owned(), volumes.into());
    let ours = cluster.spec.image.pull_secrets.iter().map(|secret| json!(secret));
    let mut pull_secrets: Vec<Value> = Vec::new();
    // Server-side apply refuses a list that has a key twice.
    for secret in ours.chain(take_list(&mut pod, "imagePullSecrets")) {
        if pull_secrets.iter().all(|known| known["name"] != secret["name"]) {
            pull_secrets.push(secret);
        }
    }
    if !pull_secrets.is_empty() {
        pod.insert("imagePullSecrets".to_owned(), pull_secrets.into());
    }
    pod.insert(
        "terminationGracePeriodSeconds".to_owned(),
        cluster.spec.drain.termination_grace_period_seconds.into(),
    );
    pod_defaults(cluster, revision, &mut pod);
    Value::Object(pod)
}

/// What the pod has unless the user says otherwise.
fn pod_defaults(cluster: &FanoutCluster, revision: &str, pod: &mut Map<String, Value>) {
    let spread = |topology: &str| {
        json!({
            "maxSkew": 1,
            "topologyKey": topology,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selected(cluster, revision)},
        })
    };
    let defaults = [
        ("serviceAccountName", json!(cluster.name())),
        ("automountServiceAccountToken", json!(false)),
        ("enableServiceLinks", json!(false)),
        ("securityContext", json!({})),
        (
            "topologySpreadConstraints",
            json!([spread("topology.kubernetes.io/zone"), spread("kubernetes.io/hostname")]),
        ),
    ];
    for (field, value) in defaults {
        pod.entry(field).or_insert(value);
    }
    if let Some(security) = pod["securityContext"].as_object_mut() {
        security.entry("seccompProfile").or_insert(json!({"type": "RuntimeDefault"}));
    }
}

fn hub(cluster: &FanoutCluster, operator: &OperatorConfig, mounts: &[Mount]) -> Value {
    let Ports { client, api, admin, control } = cluster.spec.hub.ports;
    let grace = cluster.spec.drain.termination_grace_period_seconds;
    let port = |name: &str, port: u16| json!({"name": name, "containerPort": port, "protocol": "TCP"});
    let probe = |path: &str, period: u32, failures: u32| {
        json!({
            "httpGet": {"path": path, "port": "admin"},
            "periodSeconds": period,
            "failureThreshold": failures,
            "timeoutSeconds": 5,
        })
    };
    let mut security = json!({
        "runAsNonRoot": true,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    if operator.fixed_uids {
        security["runAsUser"] = NON_ROOT.into();
        security["runAsGroup"] = NON_ROOT.into();
    }
    json!({
        "name": CONTAINER,
        "image": image(cluster, operator),
        "imagePullPolicy": cluster.spec.image.pull_policy,
        "args": [
            "run",
            format!("--config={ROOT}/boot/{BOOT}"),
            format!("--live={ROOT}/live/{LIVE}"),
            "--node-name=$(FANOUT_NODE_NAME)",
            "--log-format=json",
        ],
        // No argument: a sidecar of an older version would refuse it.
        "env": [
            {"name": "FANOUT_NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "FANOUT_NODES_SERVICE", "value": service::nodes_host(cluster)},
            // The kubelet keeps to the pod, the drain follows the live document: the sidecar takes the shorter.
            {"name": GRACE, "value": grace.to_string()},
        ],
        "ports": [port("client", client), port("api", api), port("admin", admin), port("control", control)],
        "startupProbe": probe("/live", 1, 60),
        "livenessProbe": probe("/live", 10, 3),
        "readinessProbe": probe("/ready", 2, 2),
        "lifecycle": {"preStop": {"exec": {"command": [
            "fanout-sidecar", "drain", format!("--admin=127.0.0.1:{admin}"),
        ]}}},
        "resources": cluster.spec.resources,
        "securityContext": security,
        "volumeMounts": mounts.iter().map(Mount::of_hub).collect::<Vec<_>>(),
    })
}

fn image(cluster: &FanoutCluster, operator: &OperatorConfig) -> String {
    let Image { repository, tag, digest, pull_policy: _, pull_secrets: _ } = &cluster.spec.image;
    let repository = repository.as_ref().unwrap_or(&operator.sidecar_repository);
    match digest {
        Some(digest) => format!("{repository}@{digest}"),
        None => format!("{repository}:{}", tag.as_ref().unwrap_or(&cluster.spec.version)),
    }
}

/// The user's containers, told where the sidecar is and kept until its clients have left. What the user sets stands.
fn app_containers(cluster: &FanoutCluster, template: &PodTemplate) -> Vec<Value> {
    let Ports { api, admin, .. } = cluster.spec.hub.ports;
    let env = [
        json!({"name": "FANOUT_API_URL", "value": format!("http://127.0.0.1:{api}")}),
        json!({"name": "FANOUT_API_KEY", "valueFrom": {"secretKeyRef": {
            "name": secret::api_key_name(cluster), "key": secret::API_KEY,
        }}}),
        json!({"name": "FANOUT_API_KEY_FILE", "value": format!("{APP_KEY_DIR}/{}", secret::API_KEY)}),
    ];
    let mount = json!({"name": "fanout-api-key", "mountPath": APP_KEY_DIR, "readOnly": true});
    let wait = json!({"httpGet": {"path": "/drain/wait", "port": admin}});
    let with_hub = |container: &Value| {
        let mut container = container.as_object().cloned().unwrap_or_default();
        let own = take_list(&mut container, "env");
        let ours = env.iter().filter(|ours| own.iter().all(|own| own["name"] != ours["name"])).cloned();
        let all: Vec<_> = ours.chain(own.iter().cloned()).collect();
        container.insert("env".to_owned(), all.into());
        let mounts: Vec<_> =
            [mount.clone()].into_iter().chain(take_list(&mut container, "volumeMounts")).collect();
        container.insert("volumeMounts".to_owned(), mounts.into());
        if let Some(lifecycle) = container.entry("lifecycle").or_insert(json!({})).as_object_mut() {
            lifecycle.entry("preStop").or_insert(wait.clone());
        }
        Value::Object(container)
    };
    template.containers().iter().map(with_hub).collect()
}

/// What the sidecar reads: its two documents, and a directory for each Secret.
fn mounts(cluster: &FanoutCluster, redis: &RedisTarget, revision: &str) -> Vec<Mount> {
    let api_key = secret::api_key_name(cluster);
    let mut mounts = vec![
        Mount::config_map("fanout-boot", "boot", &config_map::boot_name(cluster, revision)),
        Mount::config_map("fanout-live", "live", &config_map::live_name(cluster)),
        Mount::secret("fanout-api-key", &format!("api-keys/{api_key}"), &api_key),
    ];
    if let Some(ApiKeysRef { name }) = &cluster.spec.auth.api_keys_secret_ref {
        mounts.push(Mount::secret("fanout-api-keys", &format!("api-keys/{name}"), name));
    }
    let jwt = cluster.spec.auth.jwt.iter().flat_map(|jwt| &jwt.keys).map(|key| &key.secret_key_ref.name);
    // In the order of their names, so that the order of keys in the spec makes no other pod.
    for (at, name) in jwt.collect::<BTreeSet<_>>().into_iter().enumerate() {
        mounts.push(Mount::secret(&format!("fanout-jwt-{at}"), &format!("jwt/{name}"), name));
    }
    if let Some(ClientTls { secret_ref }) = &cluster.spec.hub.tls {
        mounts.push(Mount::secret("fanout-tls", "tls", &secret_ref.name));
    }
    if let RedisTarget::Redis(server) = redis {
        mounts.extend(server.credentials.as_ref().map(Mount::credentials));
        mounts.extend(server.tls.as_ref().and_then(Mount::tls));
    }
    mounts
}

fn take_list(map: &mut Map<String, Value>, field: &str) -> Vec<Value> {
    match map.remove(field) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

// === impl Mount ===

impl Mount {
    fn config_map(volume: &str, path: &str, name: &str) -> Self {
        Self { volume: json!({"name": volume, "configMap": {"name": name}}), path: path.to_owned() }
    }

    fn secret(volume: &str, path: &str, name: &str) -> Self {
        Self { volume: json!({"name": volume, "secret": {"secretName": name}}), path: path.to_owned() }
    }

    fn credentials(credentials: &CredentialsRef) -> Self {
        let CredentialsRef { name, username_key, password_key } = credentials;
        let username = username_key.iter().map(|key| json!({"key": key, "path": "username"}));
        let items: Vec<_> =
            username.chain(std::iter::once(json!({"key": password_key, "path": "password"}))).collect();
        Self {
            volume: json!({"name": "fanout-redis", "secret": {"secretName": name, "items": items}}),
            path: "redis".to_owned(),
        }
    }

    /// One directory for authorities and client certificate; none where TLS trusts the image's authorities.
    fn tls(tls: &RedisTlsSpec) -> Option<Self> {
        let RedisTlsSpec { ca_secret_ref, client_cert_secret_ref, server_name: _ } = tls;
        let ca = ca_secret_ref.iter().map(|CaRef { name, key }| {
            json!({"secret": {"name": name, "items": [{"key": key, "path": "ca.crt"}]}})
        });
        let client = client_cert_secret_ref.iter().map(|LocalObjectName { name }| {
            let item = |key: &str| json!({"key": key, "path": key});
            json!({"secret": {"name": name, "items": [item("tls.crt"), item("tls.key")]}})
        });
        let sources: Vec<_> = ca.chain(client).collect();
        (!sources.is_empty()).then(|| Self {
            volume: json!({"name": "fanout-redis-tls", "projected": {"sources": sources}}),
            path: "redis-tls".to_owned(),
        })
    }

    fn of_hub(&self) -> Value {
        json!({"name": self.volume["name"], "mountPath": format!("{ROOT}/{}", self.path), "readOnly": true})
    }
}
