//! What is built of a FanoutCluster, whole: each child as YAML beside this file. The instance is called `chat` and
//! lives in `web`, so that no name can be mistaken for the product's.
//!
//! `FANOUT_GENERATE=1 cargo test -p fanout-operator --test builders` writes the files anew; the diff is the review.

use std::{collections::BTreeMap, path::Path};

use fanout_operator::{
    api::{FanoutCluster, FanoutClusterSpec},
    controller::{
        build::{
            GeneratedSecret, ManagedRedisResources, NodePlace, OperatorConfig, Resources, RevisionSpec,
            build, render_node,
        },
        validate::{Dereferenced, SecretShape, referenced_secrets, validate},
    },
    redis::{RedisTarget, managed},
    resources::config_map::{LIVE, live_hash},
};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::Resource;
use serde_json::{Value, json};
use sidecar_config::{BootSettings, LiveSettings};

fn cluster(spec: Value) -> FanoutCluster {
    let spec: FanoutClusterSpec = serde_json::from_value(spec).expect("the spec is good");
    let mut cluster = FanoutCluster::new("chat", spec);
    cluster.metadata.namespace = Some("web".to_owned());
    cluster.metadata.uid = Some("11111111-2222-3333-4444-555555555555".to_owned());
    cluster
}

fn operator() -> OperatorConfig {
    OperatorConfig { namespace: "operators".to_owned(), ..OperatorConfig::default() }
}

/// Every Secret that is named exists and has every key.
fn found(cluster: &FanoutCluster) -> Dereferenced {
    let keys = ["user", "password", "ca.crt", "tls.crt", "tls.key", "one", "two"];
    let shape = SecretShape { sizes: keys.map(|key| (key.to_owned(), 1)).into(), api_key: None };
    let secrets = referenced_secrets(cluster).into_iter().map(|name| (name, Some(shape.clone())));
    Dereferenced { secrets: secrets.collect(), ..Dereferenced::default() }
}

fn built(cluster: &FanoutCluster) -> Resources {
    let validated = validate(cluster, &found(cluster)).expect("the cluster is good");
    build(cluster, &validated, &operator())
}

fn everything() -> FanoutCluster {
    cluster(json!({
        "version": "0.3.0", "replicas": 5, "logLevel": "debug",
        "image": {"repository": "mirror.example/sidecar", "pullPolicy": "Always", "pullSecrets": [{"name": "pull"}]},
        "resources": {"requests": {"cpu": "1"}},
        "hub": {"ports": {"client": 9000, "api": 9001, "admin": 9002, "control": 9003},
            "allowedOrigins": ["https://*.example"], "trustedProxies": ["10.0.0.0/8"], "maxMessageBytes": 1024,
            "tls": {"secretRef": {"name": "certificate"}}},
        "auth": {"apiKeysSecretRef": {"name": "keys"}, "jwt": {"issuer": "i", "keys": [
            {"kid": "b", "algorithm": "HS256", "secretKeyRef": {"name": "zwei", "key": "two"}},
            {"algorithm": "EdDSA", "secretKeyRef": {"name": "eins", "key": "one"}}]}},
        "namespaces": [{"name": "default", "channels": ["lobby"], "publish": "allowed"}],
        "redis": {"channelPrefix": "p", "onUnavailable": "NotReady", "external": {
            "addresses": ["redis.example:6380"], "database": 2,
            "credentialsSecretRef": {"name": "redis", "usernameKey": "user", "passwordKey": "password"},
            "tls": {"caSecretRef": {"name": "ca", "key": "ca.crt"}, "clientCertSecretRef": {"name": "client"},
                "serverName": "redis"}}},
        "podTemplate": {
            "metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}},
            "spec": {
                "initContainers": [{"name": "migrate", "image": "app:1"}],
                "containers": [
                    {"name": "app", "image": "app:1", "env": [{"name": "FANOUT_API_URL", "value": "mine"}, {"name": "X", "value": "y"}],
                        "volumeMounts": [{"name": "cache", "mountPath": "/cache"}]},
                    {"name": "helper", "image": "helper:1", "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}},
                ],
                "volumes": [{"name": "cache", "emptyDir": {}}],
                "serviceAccountName": "mine", "securityContext": {"fsGroup": 7}, "nodeSelector": {"disk": "fast"},
                "fieldOfTheFuture": [1],
            },
        },
        "drain": {"timeoutSeconds": 50, "terminationGracePeriodSeconds": 60},
        "service": {"type": "LoadBalancer", "port": 443, "annotations": {"lb": "x"}, "externalTrafficPolicy": "Local",
            "loadBalancerSourceRanges": ["10.0.0.0/8"], "loadBalancerClass": "example.com/lb",
            "sessionAffinity": "ClientIP"},
        "childMetadata": {"labels": {"cost": "x", "app.kubernetes.io/name": "mine"}, "annotations": {"owner": "y"}},
        "disruption": {"podDisruptionBudget": {"maxUnavailable": "20%"}},
        "networkPolicy": {"apiFrom": [{"namespaceSelector": {"matchLabels": {"team": "b"}}}],
            "metricsFrom": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}], "egress": [{}]},
    }))
}

/// Every child in one text, Secrets with the value `RANDOM`.
fn text(resources: Resources) -> String {
    let Resources {
        revision,
        live_config_map,
        too_new: _,
        services,
        api_key,
        managed_redis,
        pdb,
        service_account,
        network_policies,
    } = resources;
    let RevisionSpec { name: _, canonical: _, replica_set, boot_config_map } = revision;
    let secret = |secret: &GeneratedSecret| json!(secret.with_value("RANDOM"));
    let mut children = vec![replica_set, json!(boot_config_map), json!(live_config_map)];
    children.extend(services.map(|service| json!(service)));
    children.push(secret(&api_key));
    if let Some(ManagedRedisResources { stateful_set, canonical: _, service, password, claim }) =
        managed_redis
    {
        children.extend([json!(stateful_set), json!(service), secret(&password)]);
        children.extend(claim.map(|claim| json!(claim)));
    }
    children.extend(pdb.map(|pdb| json!(pdb)));
    children.push(json!(service_account));
    children.extend(network_policies.iter().map(|policy| json!(policy)));
    let texts: Vec<_> =
        children.iter().map(|child| serde_yaml::to_string(child).expect("a child is YAML")).collect();
    texts.join("---\n")
}

#[track_caller]
fn is_as_in(file: &str, cluster: &FanoutCluster) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    let text = text(built(cluster));
    if std::env::var_os("FANOUT_GENERATE").is_some() {
        std::fs::write(&path, &text).expect("the file can be written");
    }
    let held = std::fs::read_to_string(&path).expect("the file can be read");
    similar_asserts::assert_eq!(held: held, built: text);
}

fn revision(cluster: &FanoutCluster) -> String {
    built(cluster).revision.name
}

#[test]
fn an_empty_spec_gives_nodes_over_a_managed_redis() {
    is_as_in("empty.yaml", &cluster(json!({"version": "0.3.0"})));
}

#[test]
fn a_full_spec_gives_native_sidecars_beside_the_users_containers() {
    is_as_in("everything.yaml", &everything());
}

#[test]
fn a_single_node_without_redis_has_no_budget_and_stored_redis_has_a_claim() {
    let single = built(&cluster(json!({"replicas": 1, "redis": {"memory": {}}})));
    assert!(single.pdb.is_none() && single.managed_redis.is_none());
    assert_eq!(single.network_policies.len(), 1);
    let stored = built(&cluster(
        json!({"redis": {"managed": {"storage": {"size": "1Gi", "storageClassName": "fast"}}}}),
    ));
    let redis = stored.managed_redis.expect("it is managed");
    let claim = redis.claim.expect("it is stored");
    assert!(claim.metadata.owner_references.is_none(), "the claim outlives the FanoutCluster");
    let set = json!(redis.stateful_set);
    let command = set["spec"]["template"]["spec"]["containers"][0]["command"].to_string();
    assert!(command.contains(r#""--appendonly","yes","--appendfsync","everysec""#), "{command}");
}

#[test]
fn what_is_asked_of_every_child_is_on_every_child_and_on_the_pod_of_redis() {
    let spec = json!({
        "redis": {"managed": {"storage": {"size": "1Gi"}, "nodeSelector": {"disk": "fast"},
            "tolerations": [{"key": "redis"}], "priorityClassName": "high",
            "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}}},
        "childMetadata": {"labels": {"cost": "x"}, "annotations": {"owner": "y"}},
    });
    let built = built(&cluster(spec));
    let set = json!(built.managed_redis.as_ref().expect("it is managed").stateful_set);
    let pod = &set["spec"]["template"];
    assert_eq!(
        (&pod["metadata"]["labels"]["cost"], &pod["metadata"]["annotations"]["owner"]),
        (&json!("x"), &json!("y"))
    );
    assert_eq!(pod["spec"]["nodeSelector"]["disk"], "fast");
    assert_eq!(
        (&pod["spec"]["priorityClassName"], &pod["spec"]["tolerations"][0]["key"]),
        (&json!("high"), &json!("redis"))
    );
    assert!(pod["spec"]["affinity"]["nodeAffinity"].is_object());
    let nodes = &built.revision.replica_set["spec"]["template"]["metadata"];
    assert_eq!(nodes["labels"]["cost"], Value::Null, "they have podTemplate.metadata, which rolls");
    for document in text(built).split("---\n") {
        let child: Value = serde_yaml::from_str(document).expect("a child is YAML");
        let metadata = &child["metadata"];
        assert_eq!(
            (&metadata["labels"]["cost"], &metadata["annotations"]["owner"]),
            (&json!("x"), &json!("y")),
            "{child}"
        );
    }
}

#[test]
fn switches_that_are_off_leave_nothing_behind() {
    let off = built(&cluster(json!({
        "disruption": {"podDisruptionBudget": {"enabled": false}}, "networkPolicy": {"enabled": false},
    })));
    assert!(off.pdb.is_none() && off.network_policies.is_empty());
}

#[test]
fn the_password_of_the_managed_redis_is_in_its_secret_alone() {
    let redis = built(&cluster(json!({}))).managed_redis.expect("it is managed");
    let secret = redis.password.with_value("s3cret");
    let values = secret.string_data.expect("it has values");
    assert_eq!(values["password"], "s3cret");
    assert_eq!(values["redis.conf"], "requirepass s3cret\n");
    assert!(!json!(redis.stateful_set).to_string().contains("s3cret"));
}

#[test]
fn building_twice_gives_the_same_bytes() {
    assert_eq!(text(built(&everything())), text(built(&everything())));
}

#[test]
fn what_running_nodes_take_over_makes_no_revision() {
    let before = everything();
    let changes: [fn(&mut FanoutClusterSpec); 8] = [
        |spec| spec.replicas = 9,
        |spec| spec.namespaces.clear(),
        |spec| spec.hub.max_message_bytes += 1,
        |spec| spec.log_level = sidecar_config::LogLevel::Error,
        |spec| spec.drain.timeout_seconds = 1,
        |spec| spec.network_policy.enabled = false,
        |spec| spec.auth.jwt.as_mut().expect("it has one").keys.reverse(),
        |spec| spec.auth.jwt.as_mut().expect("it has one").keys[0].secret_key_ref.key = "one".to_owned(),
    ];
    for (at, change) in changes.into_iter().enumerate() {
        let mut after = before.clone();
        change(&mut after.spec);
        assert_eq!(revision(&before), revision(&after), "change {at}");
    }
}

#[test]
fn what_needs_new_pods_makes_a_revision() {
    let before = everything();
    let changes: [fn(&mut FanoutClusterSpec); 8] = [
        |spec| spec.version = "0.4.0".to_owned(),
        |spec| spec.restarted_at = Some("2026-01-01T00:00:00Z".to_owned()),
        |spec| spec.image.tag = Some("x".to_owned()),
        |spec| spec.hub.ports.client = 9999,
        |spec| spec.drain.termination_grace_period_seconds += 1,
        |spec| spec.pod_template = None,
        |spec| spec.auth.jwt.as_mut().expect("it has one").keys[0].secret_key_ref.name = "drei".to_owned(),
        |spec| spec.redis.external.as_mut().expect("it has one").database = 3,
    ];
    for (at, change) in changes.into_iter().enumerate() {
        let mut after = before.clone();
        change(&mut after.spec);
        assert_ne!(revision(&before), revision(&after), "change {at}");
    }
    let mut restarted = before.clone();
    restarted.metadata.annotations = Some([("fanout.dev/restarted-at".to_owned(), "now".to_owned())].into());
    assert_ne!(revision(&before), revision(&restarted));
}

#[test]
fn where_the_platform_chooses_the_users_no_pod_names_one() {
    for cluster in [everything(), cluster(json!({}))] {
        let validated = validate(&cluster, &found(&cluster)).expect("the cluster is good");
        let chosen = OperatorConfig { fixed_uids: false, ..operator() };
        let text = text(build(&cluster, &validated, &chosen));
        for field in ["runAsUser", "runAsGroup"] {
            assert!(!text.contains(field), "{text}");
        }
        assert!(text.contains("runAsNonRoot: true"));
        let here = build(&cluster, &validated, &operator()).revision;
        assert_eq!(here.name, build(&cluster, &validated, &chosen).revision.name, "it makes no revision");
    }
}

#[test]
fn defaults_of_the_operator_are_not_in_a_revision() {
    let cluster = cluster(json!({}));
    let validated = validate(&cluster, &Dereferenced::default()).expect("the cluster is good");
    let moved = OperatorConfig { sidecar_repository: "mirror.example/x".to_owned(), ..operator() };
    let (here, there) = (build(&cluster, &validated, &operator()), build(&cluster, &validated, &moved));
    assert_eq!(here.revision.name, there.revision.name);
    assert_ne!(here.revision.replica_set, there.revision.replica_set);
}

#[test]
fn another_api_key_is_another_revision_of_app_containers_alone() {
    let revision = |spec: &Value, key: Option<&str>| {
        let named = Dereferenced { api_key: key.map(str::to_owned), ..Dereferenced::default() };
        let cluster = cluster(spec.clone());
        build(&cluster, &validate(&cluster, &named).expect("it is good"), &operator()).revision
    };
    let app = json!({"podTemplate": {"spec": {"containers": [{"name": "app", "image": "shop/app:1"}]}}});
    let one = revision(&app, Some("one"));
    assert!(one.stands_for(&one.canonical));
    assert!(!one.stands_for(&revision(&app, Some("two")).canonical));
    assert!(one.stands_for(&revision(&app, None).canonical), "it was made before keys were counted");
    let bare = revision(&json!({}), Some("one"));
    assert_eq!(bare.name, revision(&json!({}), Some("two")).name);
}

#[test]
fn a_restart_in_the_spec_is_another_revision() {
    let of = |spec: Value| built(&cluster(spec)).revision.name;
    assert_ne!(of(json!({})), of(json!({"restartedAt": "2026-01-31T12:00:00Z"})));
}

#[test]
fn equal_quantities_and_explicit_defaults_make_no_other_revision() {
    let revision = |cpu: &str, memory: &str, explicit: bool| {
        let mut app =
            json!({"name": "app", "image": "shop/app:1", "resources": {"limits": {"memory": memory}}});
        if explicit {
            app["imagePullPolicy"] = json!("IfNotPresent");
            app["terminationMessagePolicy"] = json!("File");
        }
        let resources = json!({"limits": {"cpu": cpu, "memory": memory}});
        built(&cluster(json!({"resources": resources, "podTemplate": {"spec": {"containers": [app]}}})))
            .revision
    };
    let one = revision("1", "1Gi", false);
    assert_eq!(one.name, revision("1000m", "1024Mi", true).name);
    assert_ne!(one.name, revision("1001m", "1Gi", false).name);
    // What an operator stored that did not know the canonical form.
    let app = json!({"name": "app", "image": "shop/app:1", "imagePullPolicy": "IfNotPresent", "resources": {"limits": {"memory": "1024Mi"}}});
    let mut stored = one.canonical.clone();
    stored["spec"]["podTemplate"]["spec"]["containers"] = json!([app]);
    stored["spec"]["resources"]["limits"]["memory"] = json!("1024Mi");
    assert_ne!(stored, one.canonical);
    assert!(one.stands_for(&stored));
    // The default, in another notation.
    let spelled = json!({"requests": {"cpu": "0.1", "memory": "131072Ki"}, "limits": {"cpu": "2000m", "memory": "1024Mi"}});
    let default = built(&cluster(json!({}))).revision;
    assert_eq!(built(&cluster(json!({"resources": spelled}))).revision.name, default.name);
}

#[test]
fn a_revision_that_an_older_operator_stored_stands_for_the_same_pods() {
    let revision = built(&everything()).revision;
    let annotation = &revision.replica_set["metadata"]["annotations"]["fanout.dev/revision-spec"];
    let stored: Value = serde_json::from_str(annotation.as_str().expect("it is text")).expect("it is JSON");
    assert!(revision.stands_for(&stored));
    // It counted a field that is hot today, and wrote out a default.
    let mut older = stored.clone();
    older["spec"]["hub"]["maxMessageBytes"] = 7.into();
    older["spec"]["updateStrategy"] = json!({"type": "RollingUpdate"});
    assert!(revision.stands_for(&older));
    let mut other = stored;
    other["spec"]["version"] = "9.9.9".into();
    assert!(!revision.stands_for(&other));
}

#[test]
fn a_node_reads_what_the_operator_writes() {
    let resources = built(&everything());
    let boot = resources
        .revision
        .boot_config_map
        .data
        .expect("it has data")
        .remove("boot.yaml")
        .expect("a document");
    let live = resources.live_config_map.data.clone().expect("it has data").remove(LIVE).expect("a document");
    let expected = render_node(&everything(), &in_pod(&everything()));
    let read: (BootSettings, LiveSettings) = (
        sidecar_config::parse(&boot).expect("it is good"),
        sidecar_config::parse(&live).expect("it is good"),
    );
    assert_eq!(read, expected);
    assert_eq!(live_hash(&resources.live_config_map).len(), 16);
}

fn in_pod(cluster: &FanoutCluster) -> NodePlace {
    NodePlace::in_pod(cluster, RedisTarget::of(cluster).expect("it has one"))
}

#[test]
fn every_file_that_a_node_is_told_to_read_is_mounted() {
    let cluster = everything();
    let (boot, live) = render_node(&cluster, &in_pod(&cluster));
    let redis = boot.broker.redis.expect("it has one");
    let tls = redis.tls.expect("it is on");
    let files = [redis.username_file, redis.password_file, tls.ca_file, tls.cert_file, tls.key_file];
    let keys = live.auth.jwt.expect("it has one").keys.into_iter().map(|key| key.file);
    let pod = built(&cluster).revision.replica_set["spec"]["template"]["spec"].take();
    let mounts: Vec<_> = pod["initContainers"][0]["volumeMounts"]
        .as_array()
        .expect("it has mounts")
        .iter()
        .map(|mount| mount["mountPath"].as_str().expect("a path").to_owned())
        .collect();
    for file in files.into_iter().flatten().chain(keys).chain(live.auth.api_key_files) {
        assert!(
            mounts.iter().any(|mount| file.starts_with(mount)),
            "{} is not under {mounts:?}",
            file.display()
        );
    }
}

#[test]
fn documents_leave_out_what_an_older_node_might_not_know() {
    let live = |spec: Value| {
        let data = built(&cluster(spec)).live_config_map.data;
        data.expect("it has data").remove(LIVE).expect("a document")
    };
    assert_eq!(
        live(json!({})),
        "auth:\n  apiKeyFiles:\n  - /etc/fanout/api-keys/chat-api-key\ndrain:\n  timeoutSeconds: 300\n"
    );
    let room = |room: Value| live(json!({"namespaces": [room]}));
    let before = room(json!({"name": "room"}));
    assert_eq!(room(json!({"name": "room", "exposePublisher": false})), before);
    assert_eq!(
        room(json!({"name": "room", "exposePublisher": true})),
        before.replace("- name: room\n", "- exposePublisher: true\n  name: room\n")
    );
    assert!(!before.contains("exposePublisher") && before.contains("- name: room\n"), "{before}");
}

#[test]
fn a_drain_is_told_to_end_before_the_pods_that_do_not_know_when_they_are_killed() {
    let cluster = cluster(json!({"drain": {"timeoutSeconds": 300, "terminationGracePeriodSeconds": 330}}));
    let told = |untold_grace_seconds| {
        let found = Dereferenced { untold_grace_seconds, ..Dereferenced::default() };
        let validated = validate(&cluster, &found).expect("the cluster is good");
        let live = build(&cluster, &validated, &operator()).live_config_map;
        let live = live.data.expect("it has data").remove(LIVE).expect("a document");
        sidecar_config::parse::<LiveSettings>(&live).expect("it is good").drain.timeout_seconds
    };
    assert_eq!(told(None), 300);
    assert_eq!(told(Some(60)), 50);
    assert_eq!(told(Some(600)), 300);
    assert_eq!(told(Some(5)), 1, "the schema knows no drain of no time");
}

#[test]
fn nodes_that_drain_at_once_share_what_the_cluster_may_disconnect() {
    let of_node = |surge: Value, replicas: u32| {
        let strategy = json!({"maxSurge": surge, "maxUnavailable": 1});
        let cluster = cluster(json!({
            "replicas": replicas, "updateStrategy": strategy, "drain": {"maxDisconnectsPerSecond": 100},
        }));
        render_node(&cluster, &in_pod(&cluster)).1.drain.max_disconnects_per_second
    };
    assert_eq!(of_node(json!(1), 3), 100);
    assert_eq!(of_node(json!(4), 3), 25);
    assert_eq!(of_node(json!("50%"), 20), 10);
    assert_eq!(of_node(json!(1_000), 3), 1, "a node that drains ends");
}

fn kept(data: Value, labels: &Value) -> Secret {
    let owners = cluster(json!({})).controller_owner_ref(&()).map(|owner| vec![owner]);
    let object = json!({"metadata": {"name": "chat-redis", "resourceVersion": "7", "labels": labels, "ownerReferences": owners}});
    let mut secret: Secret = serde_json::from_value(object).expect("a Secret");
    let values: BTreeMap<String, String> = serde_json::from_value(data).expect("values");
    secret.data = Some(values.into_iter().map(|(key, text)| (key, ByteString(text.into_bytes()))).collect());
    secret
}

#[test]
fn a_generated_secret_gets_back_what_it_lost_and_keeps_what_it_has() {
    let secret = built(&cluster(json!({}))).managed_redis.expect("it is managed").password;
    let labels = json!(secret.shell.metadata.labels);
    let whole = json!({"password": "old", "redis.conf": "requirepass old\n", "theirs": "x"});
    assert_eq!(secret.repair(&kept(whole.clone(), &labels), "new"), None);

    let lost = |data: Value| secret.repair(&kept(data, &labels), "new").expect("it lacks something");
    let at = json!({"resourceVersion": "7", "labels": {}});
    let anew = json!({"metadata": at, "stringData": {"password": "new", "redis.conf": "requirepass new\n"}});
    assert_eq!(lost(json!({"redis.conf": "requirepass old\n"})), anew, "the server and its clients agree");
    assert_eq!(lost(json!({"password": "", "redis.conf": "requirepass old\n"})), anew);
    let derived = json!({"metadata": at, "stringData": {"redis.conf": "requirepass mine\n"}});
    assert_eq!(lost(json!({"password": "mine", "redis.conf": "requirepass old\n"})), derived);

    let unlabelled =
        secret.repair(&kept(whole, &json!({"theirs": "x"})), "new").expect("it lacks its labels");
    assert_eq!(unlabelled, json!({"metadata": {"resourceVersion": "7", "labels": labels}, "stringData": {}}));
}

#[test]
fn the_pod_of_the_managed_redis_is_another_for_another_password_alone() {
    let redis = built(&cluster(json!({}))).managed_redis.expect("it is managed");
    let sealed = |data: Value| {
        let digest = redis.password.digest(&kept(data, &json!({})));
        json!(managed::sealed(redis.stateful_set.clone(), &digest))["spec"]["template"].take()
    };
    let one = sealed(json!({"password": "a", "redis.conf": "requirepass a\n"}));
    assert_eq!(one, sealed(json!({"password": "a", "redis.conf": "requirepass a\n", "theirs": "x"})));
    assert_ne!(one, sealed(json!({"password": "b", "redis.conf": "requirepass b\n"})));
}

#[test]
fn a_secret_that_is_missing_or_lacks_a_key_is_told_with_its_field_and_the_fix() {
    let cluster = everything();
    let mut found = found(&cluster);
    found.secrets.insert("keys".to_owned(), None);
    found.secrets.insert("zwei".to_owned(), Some(SecretShape::default()));
    found.secrets.insert(
        "redis".to_owned(),
        Some(SecretShape { sizes: [("user".into(), 3), ("password".into(), 0)].into(), api_key: None }),
    );
    let problems = validate(&cluster, &found).expect("nodes that run go on").missing;
    let told: Vec<_> =
        problems.iter().map(|p| (p.reason.to_string(), p.object.as_str(), p.message.as_str())).collect();
    similar_asserts::assert_eq!(
        told,
        [
            (
                "SecretMissing".to_owned(),
                "Secret/keys",
                "Secret web/keys, named in spec.auth.apiKeysSecretRef, does not exist: create it, or name another"
            ),
            (
                "SecretKeyMissing".to_owned(),
                "Secret/zwei",
                "Secret web/zwei, named in spec.auth.jwt.keys[0].secretKeyRef, has no key `two`: add the value, or name another key"
            ),
            (
                "SecretKeyMissing".to_owned(),
                "Secret/redis",
                "Secret web/redis, named in spec.redis.external.credentialsSecretRef, has nothing in key `password`: add the value, or name another key"
            ),
        ]
    );
}
