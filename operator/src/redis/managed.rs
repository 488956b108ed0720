//! The managed Redis: one pod, for a start and for small sites.
//!
//! Its password is in a Secret and nowhere else: the server reads it from a file of that Secret, `redis-cli` in the
//! probes from an environment variable. The command runs in every image with `redis-server` and `redis-cli` on its
//! PATH; no shell is needed.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::{
        apps::v1::{StatefulSet, StatefulSetSpec},
        core::v1::{
            Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource, ExecAction,
            LocalObjectReference, PersistentVolumeClaim, PersistentVolumeClaimSpec,
            PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
            SeccompProfile, Secret, SecretKeySelector, SecretVolumeSource, SecurityContext, Service,
            ServicePort, ServiceSpec, Volume, VolumeMount, VolumeResourceRequirements,
        },
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use serde_json::{Map, Value, json};

use super::RedisServer;
use crate::{
    api::{
        FanoutCluster, canonical,
        v1alpha1::{ChildMetadata, CredentialsRef, ManagedRedis, Storage},
    },
    controller::build::{GeneratedSecret, ManagedRedisResources, OperatorConfig},
    resources::labels::{self, Component, metadata, ownerless},
};

/// Port of the managed Redis.
pub const PORT: u16 = 6379;
/// Key of its Secret that holds the password.
pub const PASSWORD: &str = "password";

const CONF: &str = "redis.conf";
const CONF_DIR: &str = "/etc/fanout-redis";
const DATA_DIR: &str = "/data";
/// The part of the spec that holds labels and annotations of the pod.
const CHILD_METADATA: &str = "childMetadata";
/// Fields of the spec that the pod has under the same names.
const PLACEMENT: [&str; 4] = ["nodeSelector", "tolerations", "affinity", "priorityClassName"];
/// User and group of the official images.
const REDIS_USER: i64 = 999;

/// Name of everything that belongs to the managed Redis of `cluster`.
pub fn name(cluster: &FanoutCluster) -> String {
    format!("{}-redis", cluster.name())
}

/// How nodes reach it.
pub fn server(cluster: &FanoutCluster) -> RedisServer {
    RedisServer {
        address: format!("{}.{}.svc:{PORT}", name(cluster), cluster.namespace()),
        database: 0,
        credentials: Some(CredentialsRef {
            name: name(cluster),
            username_key: None,
            password_key: PASSWORD.to_owned(),
        }),
        tls: None,
    }
}

/// The managed Redis, where the spec asks for one.
pub fn resources(cluster: &FanoutCluster, operator: &OperatorConfig) -> Option<ManagedRedisResources> {
    let managed = cluster.spec.redis.managed.as_ref()?;
    Some(ManagedRedisResources {
        stateful_set: stateful_set(cluster, managed, operator),
        canonical: canonical(cluster, managed),
        service: service(cluster),
        password: password(cluster),
        claim: managed.storage.as_ref().map(|storage| claim(cluster, storage)),
    })
}

/// The StatefulSet for a Secret whose values have this digest. The server and its probes read the password once, when
/// the pod starts: with another one the pod is replaced, and nodes follow by the file of their mounted Secret.
pub fn sealed(mut stateful_set: StatefulSet, digest: &str) -> StatefulSet {
    let pod = stateful_set.spec.template.metadata.get_or_insert_default();
    pod.annotations.get_or_insert_default().insert(labels::PASSWORD.to_owned(), digest.to_owned());
    stateful_set
}

/// The part of the spec that makes the pod, defaults included: a default that moves with the operator's version moves
/// no pod then.
fn canonical(cluster: &FanoutCluster, managed: &ManagedRedis) -> Value {
    let mut part = fields(managed);
    let pull_secrets: Vec<_> = pull_secrets(cluster).into_iter().map(|secret| secret.name).collect();
    part.insert("persistent".to_owned(), managed.storage.is_some().into());
    part.insert("pullSecrets".to_owned(), json!(pull_secrets));
    let given = &cluster.spec.child_metadata;
    if *given != ChildMetadata::default() {
        part.insert(CHILD_METADATA.to_owned(), json!(given));
    }
    part.into()
}

/// Each field of which a change makes another pod.
fn fields(managed: &ManagedRedis) -> Map<String, Value> {
    let value = serde_json::to_value(managed).expect("a spec is JSON");
    let Value::Object(mut fields) = canonical::resources(value) else { return Map::new() };
    for beside_the_pod in ["storage", "replaceAfterSeconds"] {
        fields.remove(beside_the_pod);
    }
    fields
}

/// Whether a pod that was made for the stored part of a spec is the one that `wanted` asks for. A field that the
/// operator of that time did not know had today's default.
pub fn stands_for(stored: &Value, wanted: &Value) -> bool {
    let (Value::Object(stored), Value::Object(wanted)) = (stored, wanted) else { return false };
    let defaults = fields(&ManagedRedis::default());
    stored.keys().chain(wanted.keys()).all(|field| {
        let was = stored.get(field).or(defaults.get(field));
        was == wanted.get(field)
    })
}

/// Whether a pod template has what the part of a spec says outright; what the operator adds is not looked at. A part
/// that says nothing at all is none.
pub fn is_as_spec_says(template: &Value, canonical: &Value) -> bool {
    let pod = &template["spec"];
    let container = &pod["containers"][0];
    let given = ["labels", "annotations"].into_iter().all(|part| {
        let stated = canonical[CHILD_METADATA][part].as_object().into_iter().flatten();
        // Ours stand, whatever was asked for before a rule forbade them.
        let ours = |name: &str| name.starts_with(labels::PREFIX) || name.starts_with(labels::STANDARD);
        let mut theirs = stated.filter(|(name, _)| !ours(name));
        theirs.all(|(name, text)| template["metadata"][part][name] == *text)
    });
    let image = canonical.get("image").is_none_or(|image| *image == container["image"]);
    let resources = canonical::resources(container["resources"].clone());
    let placed = PLACEMENT.iter().all(|field| pruned(&pod[*field]) == pruned(&canonical[*field]));
    let names = pod["imagePullSecrets"].as_array().into_iter().flatten().map(|secret| secret["name"].clone());
    let volumes = pod["volumes"].as_array().into_iter().flatten();
    let persistent = volumes.into_iter().any(|volume| volume["persistentVolumeClaim"].is_object());
    given
        && image
        && placed
        && canonical["persistent"] == persistent
        && resources == canonical["resources"]
        && Value::from(names.collect::<Vec<_>>()) == canonical["pullSecrets"]
}

/// A value without what is empty in it, which the API server may leave out.
fn pruned(value: &Value) -> Value {
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    };
    let pruned = match value {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (name.clone(), pruned(value)));
            Value::Object(fields.filter(|(_, value)| !value.is_null()).collect())
        }
        // An empty item has a meaning: it selects all.
        Value::Array(items) => Value::Array(items.clone()),
        value => value.clone(),
    };
    if is_empty(&pruned) { Value::Null } else { pruned }
}

fn password(cluster: &FanoutCluster) -> GeneratedSecret {
    let shell = Secret {
        metadata: metadata(cluster, Component::Redis, name(cluster)),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    };
    GeneratedSecret { shell, key: PASSWORD, also: &[(CONF, "requirepass {}\n")] }
}

fn service(cluster: &FanoutCluster) -> Service {
    Service {
        metadata: metadata(cluster, Component::Redis, name(cluster)),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(labels::redis(cluster)),
            ports: Some(vec![ServicePort {
                name: Some("redis".to_owned()),
                port: PORT.into(),
                protocol: Some("TCP".to_owned()),
                target_port: Some(IntOrString::String("redis".to_owned())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// A claim of its own, not one of the StatefulSet's templates: these cannot grow.
fn claim(cluster: &FanoutCluster, storage: &Storage) -> PersistentVolumeClaim {
    let Storage { size, storage_class_name } = storage;
    PersistentVolumeClaim {
        metadata: ownerless(cluster, Component::Redis, name(cluster)),
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".to_owned(), size.clone())])),
                limits: None,
            }),
            storage_class_name: storage_class_name.clone(),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

fn stateful_set(cluster: &FanoutCluster, managed: &ManagedRedis, operator: &OperatorConfig) -> StatefulSet {
    let ChildMetadata { labels: given, annotations } = &cluster.spec.child_metadata;
    let mut pod_labels = given.clone();
    pod_labels.extend(labels::standard(cluster, Component::Redis));
    pod_labels.extend(labels::redis(cluster));
    StatefulSet {
        metadata: metadata(cluster, Component::Redis, name(cluster)),
        spec: StatefulSetSpec {
            replicas: Some(1),
            service_name: Some(name(cluster)),
            // The default, OrderedReady, never replaces a pod that is not ready, so that a wrong image or request
            // would outlast its correction. No version that left this field out was released; it cannot be changed
            // later, which is why a StatefulSet made with another value would have to be made anew.
            pod_management_policy: Some("Parallel".to_owned()),
            selector: labels::selector(labels::redis(cluster)),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(pod_labels),
                    annotations: (!annotations.is_empty()).then(|| annotations.clone()),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(cluster, managed, operator)),
            },
            ..StatefulSetSpec::default()
        },
        status: None,
    }
}

fn pod(cluster: &FanoutCluster, managed: &ManagedRedis, operator: &OperatorConfig) -> PodSpec {
    let pull_secrets = pull_secrets(cluster);
    let user = operator.fixed_uids.then_some(REDIS_USER);
    let ManagedRedis {
        image: _,
        storage: _,
        resources: _,
        replace_after_seconds: _,
        node_selector,
        tolerations,
        affinity,
        priority_class_name,
    } = managed;
    PodSpec {
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        image_pull_secrets: (!pull_secrets.is_empty()).then_some(pull_secrets),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: user,
            run_as_group: user,
            fs_group: user,
            seccomp_profile: Some(runtime_default()),
            ..PodSecurityContext::default()
        }),
        node_selector: (!node_selector.is_empty()).then(|| node_selector.clone()),
        tolerations: (!tolerations.is_empty()).then(|| tolerations.clone()),
        affinity: affinity.clone(),
        priority_class_name: priority_class_name.clone(),
        containers: vec![container(cluster, managed, operator)],
        volumes: Some(vec![conf_volume(cluster), data_volume(cluster, managed)]),
        ..PodSpec::default()
    }
}

/// Each once: server-side apply refuses a list that has a key twice.
fn pull_secrets(cluster: &FanoutCluster) -> Vec<LocalObjectReference> {
    let mut named = BTreeSet::new();
    let secrets = cluster.spec.image.pull_secrets.iter();
    secrets.filter(|secret| named.insert(&secret.name)).cloned().collect()
}

fn container(cluster: &FanoutCluster, managed: &ManagedRedis, operator: &OperatorConfig) -> Container {
    let ManagedRedis { image, storage, resources, .. } = managed;
    Container {
        name: "redis".to_owned(),
        image: Some(image.clone().unwrap_or_else(|| operator.redis_image.clone())),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        command: Some(command(storage.is_some())),
        env: Some(vec![EnvVar {
            name: "REDISCLI_AUTH".to_owned(),
            value: None,
            value_from: Some(EnvVarSource {
                secret_key_ref: Some(SecretKeySelector {
                    name: name(cluster),
                    key: PASSWORD.to_owned(),
                    optional: None,
                }),
                ..EnvVarSource::default()
            }),
        }]),
        ports: Some(vec![ContainerPort {
            name: Some("redis".to_owned()),
            container_port: PORT.into(),
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        startup_probe: Some(Probe { period_seconds: Some(1), failure_threshold: Some(300), ..ping() }),
        readiness_probe: Some(Probe { period_seconds: Some(5), ..ping() }),
        liveness_probe: Some(Probe { period_seconds: Some(10), failure_threshold: Some(6), ..ping() }),
        resources: Some(resources.clone()),
        security_context: Some(restricted()),
        volume_mounts: Some(vec![
            VolumeMount {
                name: "conf".to_owned(),
                mount_path: CONF_DIR.to_owned(),
                read_only: Some(true),
                ..VolumeMount::default()
            },
            VolumeMount {
                name: "data".to_owned(),
                mount_path: DATA_DIR.to_owned(),
                ..VolumeMount::default()
            },
        ]),
        ..Container::default()
    }
}

fn command(persistent: bool) -> Vec<String> {
    let conf = format!("{CONF_DIR}/{CONF}");
    let append = if persistent { "yes" } else { "no" };
    // Snapshots are off: the append-only file is the whole truth, or nothing is to be kept.
    let settings = ["--dir", DATA_DIR, "--save", "", "--appendonly", append, "--appendfsync", "everysec"];
    [&["redis-server", conf.as_str()], settings.as_slice()].concat().into_iter().map(str::to_owned).collect()
}

/// `-e`: an error, such as one while the file is loaded, ends it with a failure.
fn ping() -> Probe {
    Probe {
        exec: Some(ExecAction { command: Some(["redis-cli", "-e", "ping"].map(str::to_owned).to_vec()) }),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}

fn conf_volume(cluster: &FanoutCluster) -> Volume {
    Volume {
        name: "conf".to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(name(cluster)),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}

fn data_volume(cluster: &FanoutCluster, managed: &ManagedRedis) -> Volume {
    let claim = managed
        .storage
        .as_ref()
        .map(|_| PersistentVolumeClaimVolumeSource { claim_name: name(cluster), read_only: None });
    let empty = claim.is_none().then(EmptyDirVolumeSource::default);
    Volume { name: "data".to_owned(), persistent_volume_claim: claim, empty_dir: empty, ..Volume::default() }
}

fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        seccomp_profile: Some(runtime_default()),
        ..SecurityContext::default()
    }
}

fn runtime_default() -> SeccompProfile {
    SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_as_the_spec_says_only_where_its_pod_is_placed_so() {
        let judged = |managed: Value, template: &Value| {
            let mut cluster = FanoutCluster::new("chat", Default::default());
            cluster.spec.redis.managed = serde_json::from_value(managed).expect("a managed Redis");
            let managed = cluster.spec.redis.managed.as_ref().expect("there is one");
            is_as_spec_says(template, &canonical(&cluster, managed))
        };
        let template = |pod: Value| {
            let mut pod = pod;
            pod["containers"] = json!([{"name": "redis", "image": "redis:8", "resources": {}}]);
            let canonical_resources = json!(ManagedRedis::default().resources);
            pod["containers"][0]["resources"] = canonical_resources;
            json!({"metadata": {}, "spec": pod})
        };
        let bare = template(json!({}));
        assert!(judged(json!({}), &bare));
        for (field, value) in [
            ("nodeSelector", json!({"disk": "ssd"})),
            ("tolerations", json!([{"operator": "Exists"}])),
            (
                "affinity",
                json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": {}}]}}),
            ),
            ("priorityClassName", json!("high")),
        ] {
            let [spec, pod] = [json!({field: value}), template(json!({field: value}))];
            assert!(!judged(spec.clone(), &bare), "{field} is not in the pod");
            assert!(judged(spec, &pod), "{field}");
            assert!(!judged(json!({}), &pod), "{field} is asked for no longer");
        }
    }

    #[test]
    fn a_pull_secret_that_is_named_twice_is_in_the_pod_once() {
        let mut cluster = FanoutCluster::new("chat", Default::default());
        let secrets = json!([{"name": "one"}, {"name": "two"}, {"name": "one"}]);
        cluster.spec.image.pull_secrets = serde_json::from_value(secrets).expect("secrets");
        cluster.spec.redis.managed = Some(ManagedRedis::default());
        let made = resources(&cluster, &OperatorConfig::default()).expect("a managed Redis");
        let pod = serde_json::to_value(&made.stateful_set).expect("JSON")["spec"]["template"].take();
        assert_eq!(pod["spec"]["imagePullSecrets"], json!([{"name": "one"}, {"name": "two"}]));
        assert!(is_as_spec_says(&pod, &made.canonical));
    }
}
