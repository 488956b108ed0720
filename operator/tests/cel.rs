//! Every rule of the CRD, by an object that it accepts and one that it refuses with a message that says what to do.
//! An object goes the way it goes in the API server: defaults, then the schema, then CEL.
//!
//! With `FANOUT_CEL_KUBECTL` set to a command (`kubectl`, or with options behind it) a real API server judges the
//! same objects; the CRD must be installed there.

#![expect(clippy::needless_pass_by_value, reason = "values are written in place")]

use std::{
    io::Write,
    process::{Command, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use fanout_operator::api::{FanoutCluster, crd::crd};
use kube::core::cel::{CompiledSchema, Validator, apply_defaults, compile_schema};
use serde_json::{Value, json};

/// The schema, its validator and its compiled rules.
static CRD: LazyLock<(Value, jsonschema::Validator, CompiledSchema)> = LazyLock::new(|| {
    let schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take();
    let shape = jsonschema::validator_for(&schema).expect("the CRD's schema is a schema");
    let rules = compile_schema(&schema);
    assert!(!rules.has_errors(), "{:?}", rules.compilation_errors());
    (schema, shape, rules)
});

/// Default-filled, or every complaint as `path: message`.
fn admit(object: &Value, old: Option<&Value>) -> Result<Value, Vec<String>> {
    match std::env::var("FANOUT_CEL_KUBECTL") {
        Ok(kubectl) => admit_by_server(&kubectl, object, old).map_err(|complaint| vec![complaint]),
        Err(_) => admit_here(object, old),
    }
}

fn admit_here(object: &Value, old: Option<&Value>) -> Result<Value, Vec<String>> {
    let (schema, shape, rules) = &*CRD;
    let filled = apply_defaults(schema, object);
    let mut found: Vec<_> = shape
        .iter_errors(&filled)
        .map(|error| format!("{}: {error}", error.instance_path().as_str()))
        .collect();
    if let Err(errors) = Validator::new().validate_compiled(rules, object, old) {
        found
            .extend(errors.as_slice().iter().map(|error| format!("{}: {}", error.field_path, error.message)));
    }
    // The API server ratchets: what is wrong with a value already and does not change is not told again.
    if let Some(Err(before)) = old.map(|old| admit_here(old, None)) {
        found.retain(|complaint| !before.contains(complaint));
    }
    if found.is_empty() { Ok(filled) } else { Err(found) }
}

/// A change is judged on an object of its own, for the tests run side by side.
fn admit_by_server(command: &str, object: &Value, old: Option<&Value>) -> Result<Value, String> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let Some(old) = old else {
        return kubectl(command, &["create", "--dry-run=server"], object);
    };
    let name = format!("cel-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
    let called = |object: &Value| {
        let mut object = object.clone();
        object["metadata"]["name"] = name.clone().into();
        object
    };
    kubectl(command, &["create"], &called(old)).expect("the old object is good");
    let judged = kubectl(command, &["replace", "--dry-run=server"], &called(object));
    kubectl(command, &["delete"], &called(old)).expect("the old object can go");
    judged
}

fn kubectl(command: &str, verb: &[&str], object: &Value) -> Result<Value, String> {
    let mut words = command.split_whitespace();
    let output = if verb[0] == "delete" { "name" } else { "json" };
    let mut child = Command::new(words.next().expect("a command"))
        .args(words)
        .args(verb)
        .args(["-f", "-", "-o", output])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl runs");
    child.stdin.take().expect("stdin is a pipe").write_all(object.to_string().as_bytes()).expect("it reads");
    let done = child.wait_with_output().expect("kubectl ends");
    if done.status.success() {
        Ok(serde_json::from_slice(&done.stdout).unwrap_or_default())
    } else {
        Err(String::from_utf8_lossy(&done.stderr).into_owned())
    }
}

fn cluster(spec: Value) -> Value {
    named("chat", spec)
}

fn named(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "fanout.dev/v1alpha1", "kind": "FanoutCluster", "metadata": {"name": name}, "spec": spec})
}

/// Accepted, and read by the operator.
#[track_caller]
fn accepts(object: &Value) -> FanoutCluster {
    match admit(object, None) {
        Ok(filled) => {
            serde_json::from_value(filled).expect("what the API server accepts the operator can read")
        }
        Err(found) => panic!("refused: {found:#?}"),
    }
}

/// Refused by exactly one complaint, which says `message`.
#[track_caller]
fn rejects(object: &Value, message: &str) {
    refused_with(admit(object, None), message);
}

#[track_caller]
fn accepts_change(from: Value, to: Value) {
    let (from, to) = (cluster(from), cluster(to));
    accepts(&from);
    if let Err(found) = admit(&to, Some(&from)) {
        panic!("refused: {found:#?}");
    }
}

#[track_caller]
fn rejects_change(from: Value, to: Value, message: &str) {
    let (from, to) = (cluster(from), cluster(to));
    accepts(&from);
    accepts(&to);
    refused_with(admit(&to, Some(&from)), message);
}

#[track_caller]
fn refused_with(result: Result<Value, Vec<String>>, message: &str) {
    let found = result.expect_err("the rule refuses it");
    // The API server writes `/spec/a/0` as `spec.a[0]`.
    let by_server = message.trim_start_matches('/').replace('/', ".").replace(".0", "[0]");
    let says = |line: &String| line.contains(message) || line.contains(&by_server);
    assert!(found.iter().any(says), "`{message}` is not in {found:#?}");
    assert_eq!(found.len(), 1, "{found:#?}");
}

fn template(spec: Value) -> Value {
    cluster(json!({"podTemplate": {"spec": spec}}))
}

fn app(container: Value) -> Value {
    let mut app = json!({"name": "app", "image": "example/app:1"});
    app.as_object_mut().expect("an object").extend(container.as_object().expect("an object").clone());
    template(json!({"containers": [app]}))
}

#[test]
fn accepts_an_empty_spec_and_fills_in_every_default() {
    let read = accepts(&cluster(json!({})));
    assert_eq!(read.spec, fanout_operator::api::FanoutClusterSpec::default());
    assert_eq!((read.spec.replicas, read.spec.hub.ports.client, read.spec.service.port), (3, 8000, 80));
    assert!(read.spec.redis.managed.is_some() && read.spec.network_policy.enabled);
    assert_eq!(read.spec.version, env!("CARGO_PKG_VERSION"));
}

#[test]
fn accepts_a_cluster_that_sets_everything() {
    let read = accepts(&cluster(json!({
        "version": "0.2.0", "paused": true, "replicas": 5, "logLevel": "debug",
        "image": {"repository": "r.example/fanout", "tag": "x", "digest": format!("sha256:{}", "a".repeat(64)),
            "pullPolicy": "Always", "pullSecrets": [{"name": "pull"}]},
        "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": 2, "memory": "2Gi"}},
        "hub": {"ports": {"client": 9000, "api": 9001, "admin": 9002, "control": 9003},
            "maxConnectionsPerNode": 1000, "maxMessageBytes": 1024, "pingIntervalSeconds": 20,
            "pongTimeoutSeconds": 5, "allowedOrigins": ["https://app.example", "https://*.example:8443", "*"],
            "trustedProxies": ["10.0.0.0/8", "fd00::/8"], "limits": {"channelsPerConnection": 10}},
        "auth": {"apiKeysSecretRef": {"name": "keys"}, "jwt": {"issuer": "i", "audience": "a", "keys": [
            {"kid": "1", "algorithm": "HS256", "secretKeyRef": {"name": "jwt", "key": "one"}},
            {"algorithm": "EdDSA", "secretKeyRef": {"name": "jwt", "key": "two"}}]}},
        "namespaces": [{"name": "default", "channels": ["lobby", "room-*"], "publish": "allowed",
            "subscribe": "token", "slowConsumer": {"policy": "dropOldest", "maxLagBytes": 4096, "maxLagMessages": 5},
            "rateLimit": {"publishesPerSecond": 1, "burst": 2}, "exposePublisher": true}],
        "redis": {"channelPrefix": "prod.chat", "onUnavailable": "NotReady", "external": {
            "mode": "Standalone", "addresses": ["redis.example:6380"], "database": 3,
            "credentialsSecretRef": {"name": "redis", "usernameKey": "user", "passwordKey": "pass"},
            "tls": {"caSecretRef": {"name": "ca"}, "clientCertSecretRef": {"name": "client"}, "serverName": "r"}}},
        "podTemplate": {"metadata": {"labels": {"team": "chat"}, "annotations": {"a": "b"}},
            "spec": {"containers": [{"name": "app", "image": "app:1", "ports": [{"containerPort": 3000}]}],
                "nodeSelector": {"disk": "fast"}, "someFutureField": {"x": 1}}},
        "updateStrategy": {"type": "OnDelete", "maxSurge": "25%", "maxUnavailable": 1},
        "drain": {"maxDisconnectsPerSecond": 50, "timeoutSeconds": 60, "terminationGracePeriodSeconds": 70,
            "reconnectJitterSeconds": 0},
        "service": {"type": "LoadBalancer", "port": 443, "annotations": {"lb": "x"}, "externalTrafficPolicy": "Local",
            "loadBalancerSourceRanges": ["10.0.0.0/8", "fd00::/8"], "loadBalancerClass": "service.k8s.aws/nlb",
            "sessionAffinity": "ClientIP"},
        "childMetadata": {"labels": {"team": "chat"}, "annotations": {"example.com/owner": "chat"}},
        "disruption": {"podDisruptionBudget": {"enabled": false, "maxUnavailable": "10%"}},
        "networkPolicy": {"enabled": false, "apiFrom": [{"namespaceSelector": {}}],
            "metricsFrom": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "egress": [{}]},
    })));
    assert_eq!(read.spec.pod_template.unwrap().spec()["someFutureField"], json!({"x": 1}));
}

#[test]
fn accepts_a_time_of_a_restart_and_nothing_else() {
    for time in ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00.5Z", "2026-01-01T00:00:00+01:00"] {
        assert_eq!(accepts(&cluster(json!({"restartedAt": time}))).spec.restarted_at.as_deref(), Some(time));
    }
    for other in ["now", "2026-01-01", "1767225600", ""] {
        rejects(&cluster(json!({"restartedAt": other})), "restartedAt");
    }
}

#[test]
fn accepts_a_name_of_forty_characters() {
    accepts(&named(&"a".repeat(40), json!({})));
}

#[test]
fn rejects_a_name_that_leaves_no_room_for_pods_or_is_no_service_name() {
    for name in [&"a".repeat(41), "1chat", "chat.prod", "chat-"] {
        rejects(&named(name, json!({})), "use at most 40 of a-z");
    }
}

#[test]
fn accepts_each_kind_of_redis() {
    for redis in [
        json!({"managed": {}}),
        json!({"managed": {"storage": {"size": "1Gi"}, "image": "valkey/valkey:8"}}),
        json!({"external": {"addresses": ["r:6379"]}}),
    ] {
        accepts(&cluster(json!({"redis": redis})));
    }
    accepts(&cluster(json!({"replicas": 1, "redis": {"memory": {}}})));
}

#[test]
fn rejects_two_kinds_of_redis_or_none() {
    for redis in [json!({}), json!({"managed": {}, "external": {"addresses": ["r:6379"]}})] {
        rejects(
            &cluster(json!({"redis": redis})),
            "set exactly one of redis.managed, redis.external and redis.memory",
        );
    }
}

#[test]
fn rejects_memory_with_several_nodes() {
    rejects(&cluster(json!({"replicas": 2, "redis": {"memory": {}}})), "set replicas to 1");
}

#[test]
fn accepts_the_same_redis_again() {
    let redis = |database: u16| json!({"redis": {"channelPrefix": "p", "external": {"addresses": ["r:6379"], "database": database}}});
    accepts_change(redis(0), redis(1));
}

#[test]
fn rejects_another_address_of_a_standalone_redis_while_there_are_nodes() {
    let at = |address: &str, replicas: u32| json!({"replicas": replicas, "redis": {"external": {"addresses": [address]}}});
    rejects_change(at("r:6379", 1), at("other:6379", 1), "set replicas to 0 first");
    rejects_change(at("r:6379", 1), at("r:6380", 0), "set replicas to 0 first");
    accepts_change(at("r:6379", 0), at("other:6379", 3));
    accepts_change(at("r:6379", 1), at("r:6379", 3));
}

#[test]
fn accepts_where_the_pod_of_a_managed_redis_runs() {
    let anti = json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 1, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname"}}]}});
    let managed = json!({"nodeSelector": {"disk": "fast"}, "tolerations": [{"key": "redis", "operator": "Exists"}],
        "affinity": anti, "priorityClassName": "high"});
    let read = accepts(&cluster(json!({"redis": {"managed": managed}}))).spec.redis.managed.unwrap();
    assert_eq!(read.node_selector["disk"], "fast");
}

#[test]
fn rejects_another_kind_of_redis() {
    let external = json!({"redis": {"external": {"addresses": ["r:6379"]}}});
    rejects_change(json!({"redis": {"managed": {}}}), external, "the kind of redis cannot be changed");
}

#[test]
fn rejects_another_channel_prefix() {
    let with = |prefix: Value| json!({"redis": {"managed": {}, "channelPrefix": prefix}});
    rejects_change(with("a".into()), with("b".into()), "redis.channelPrefix cannot be changed");
    rejects_change(json!({}), with("b".into()), "redis.channelPrefix cannot be changed");
    rejects_change(with("a".into()), json!({}), "redis.channelPrefix cannot be changed");
}

#[test]
fn rejects_a_channel_prefix_that_redis_cluster_would_cut_in_two() {
    rejects(&cluster(json!({"redis": {"managed": {}, "channelPrefix": "a{b"}})), "/spec/redis/channelPrefix");
}

#[test]
fn rejects_a_channel_prefix_that_is_a_namespace_of_another_cluster() {
    let redis = |prefix: &str| cluster(json!({"redis": {"managed": {}, "channelPrefix": prefix}}));
    let found = admit(&redis("pfx:team"), None).unwrap_err().join("");
    assert!(found.contains("should match") || found.contains("does not match"), "{found}");
    assert!(found.contains("use a dot instead"), "{found}");
    accepts(&redis("pfx.team"));
}

#[test]
fn accepts_changes_of_a_cluster_whose_channel_prefix_is_from_before_the_rule() {
    if std::env::var_os("FANOUT_CEL_KUBECTL").is_some() {
        // No such object can be made there any more.
        return;
    }
    let with = |replicas: u32| {
        cluster(json!({"replicas": replicas, "redis": {"managed": {}, "channelPrefix": "pfx:team"}}))
    };
    assert_eq!(admit(&with(5), Some(&with(3))).map(drop), Ok(()));
    let other = cluster(json!({"redis": {"managed": {}, "channelPrefix": "pfx:other"}}));
    assert!(admit(&other, Some(&with(3))).is_err());
}

#[test]
fn rejects_what_a_service_of_that_type_cannot_have() {
    for (field, value) in [
        ("externalTrafficPolicy", json!("Local")),
        ("loadBalancerClass", json!("example.com/lb")),
        ("loadBalancerSourceRanges", json!(["10.0.0.0/8"])),
    ] {
        let service = |type_: &str| cluster(json!({"service": {"type": type_, field: value.clone()}}));
        rejects(&service("ClusterIP"), "set service.type, or leave it out");
        accepts(&service("LoadBalancer"));
    }
    let ranges = json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.1"]});
    rejects(&cluster(json!({"service": ranges})), "a source range must be a network");
}

#[test]
fn rejects_another_class_of_a_load_balancer_that_exists() {
    let with = |class: &str| json!({"service": {"type": "LoadBalancer", "loadBalancerClass": class}});
    rejects_change(with("a"), with("b"), "the class of a load balancer cannot be changed");
    rejects_change(
        json!({"service": {"type": "LoadBalancer"}}),
        with("b"),
        "the class of a load balancer cannot be changed",
    );
    accepts_change(json!({"service": {"type": "ClusterIP"}}), with("b"));
}

#[test]
fn rejects_metadata_of_children_that_the_operator_sets() {
    for (part, key) in [
        ("labels", "fanout.dev/cluster"),
        ("labels", "app.kubernetes.io/name"),
        ("annotations", "fanout.dev/x"),
    ] {
        rejects(&cluster(json!({"childMetadata": {part: {key: "x"}}})), "use a prefix of your own");
    }
    rejects(
        &cluster(json!({"childMetadata": {"labels": {"team": "a b"}}})),
        "/spec/childMetadata/labels/team",
    );
    accepts(&cluster(
        json!({"childMetadata": {"labels": {"team": "a", "empty": ""}, "annotations": {"a/b": "c d"}}}),
    ));
}

#[test]
fn rejects_several_addresses_of_a_standalone_redis() {
    let redis = json!({"external": {"addresses": ["a:6379", "b:6379"]}});
    rejects(&cluster(json!({"redis": redis})), "mode Standalone requires exactly one address");
}

#[test]
fn rejects_an_address_without_a_port_that_there_is() {
    for address in ["redis", "redis:0", "redis:65536", "redis:99999", "redis:06379"] {
        rejects(
            &cluster(json!({"redis": {"external": {"addresses": [address]}}})),
            "/spec/redis/external/addresses/0",
        );
    }
    for address in ["redis:1", "redis:59999", "redis:65535", "[fd00::1]:6379"] {
        accepts(&cluster(json!({"redis": {"external": {"addresses": [address]}}})));
    }
}

#[test]
fn rejects_a_server_name_that_no_certificate_has() {
    let named =
        |name: &str| json!({"redis": {"external": {"addresses": ["r:1"], "tls": {"serverName": name}}}});
    for name in ["a b", "a..b", ".a", "a/b"] {
        rejects(&cluster(named(name)), "/spec/redis/external/tls/serverName");
    }
    for name in ["redis.example", "192.0.2.1", "fd00::1"] {
        accepts(&cluster(named(name)));
    }
}

fn stored(storage: Value) -> Value {
    json!({"redis": {"managed": {"storage": storage}}})
}

#[test]
fn accepts_storage_that_grows() {
    accepts_change(stored(json!({"size": "1Gi"})), stored(json!({"size": "1.5Gi"})));
}

#[test]
fn rejects_storage_that_shrinks() {
    rejects_change(
        stored(json!({"size": "1Gi"})),
        stored(json!({"size": "999Mi"})),
        "a volume cannot shrink",
    );
}

#[test]
fn rejects_storage_that_is_no_quantity_or_nothing() {
    for size in ["much", "0", "-1Gi"] {
        rejects(&cluster(stored(json!({"size": size}))), "storage.size must be a quantity greater than zero");
    }
}

#[test]
fn rejects_storage_that_comes_or_goes() {
    let none = json!({"redis": {"managed": {}}});
    rejects_change(
        none.clone(),
        stored(json!({"size": "1Gi"})),
        "storage cannot be added to or removed from",
    );
    rejects_change(stored(json!({"size": "1Gi"})), none, "storage cannot be added to or removed from");
}

#[test]
fn rejects_another_storage_class() {
    let of = |class: &str| stored(json!({"size": "1Gi", "storageClassName": class}));
    accepts_change(of("fast"), of("fast"));
    rejects_change(of("fast"), of("slow"), "the storage class of a volume cannot be changed");
    rejects_change(
        stored(json!({"size": "1Gi"})),
        of("slow"),
        "the storage class of a volume cannot be changed",
    );
}

fn strategy(surge: Value, unavailable: Value) -> Value {
    cluster(json!({"updateStrategy": {"maxSurge": surge, "maxUnavailable": unavailable}}))
}

#[test]
fn accepts_an_update_strategy_with_room() {
    for (surge, unavailable) in [
        (json!(1), json!(0)),
        (json!(0), json!(1)),
        (json!("25%"), json!("0%")),
        (json!("0%"), json!("100%")),
    ] {
        accepts(&strategy(surge, unavailable));
    }
}

#[test]
fn rejects_an_update_strategy_that_could_replace_nothing() {
    for (surge, unavailable) in [(json!(0), json!(0)), (json!("0%"), json!(0)), (json!("00%"), json!("0%"))] {
        rejects(&strategy(surge, unavailable), "no node could ever be replaced");
    }
}

#[test]
fn rejects_an_update_strategy_that_is_no_number() {
    rejects(&strategy(json!("one"), json!(0)), "maxSurge is a number of nodes");
    rejects(&strategy(json!(-1), json!(0)), "maxSurge is a number of nodes");
    rejects(&strategy(json!(1), json!("101%")), "maxUnavailable is a number of nodes");
}

#[test]
fn accepts_a_drain_that_ends_ten_seconds_early() {
    accepts(&cluster(json!({"drain": {"timeoutSeconds": 50, "terminationGracePeriodSeconds": 60}})));
}

#[test]
fn rejects_a_drain_that_the_kubelet_would_cut_off() {
    let drain = json!({"drain": {"timeoutSeconds": 51, "terminationGracePeriodSeconds": 60}});
    rejects(&cluster(drain), "raise terminationGracePeriodSeconds");
}

#[test]
fn accepts_a_disruption_budget_in_percent() {
    accepts(&cluster(json!({"disruption": {"podDisruptionBudget": {"maxUnavailable": "20%"}}})));
}

#[test]
fn rejects_a_disruption_budget_that_is_no_number() {
    for value in [json!("some"), json!(-1)] {
        let spec = json!({"disruption": {"podDisruptionBudget": {"maxUnavailable": value}}});
        rejects(&cluster(spec), "maxUnavailable is a number of nodes");
    }
}

#[test]
fn rejects_ports_of_the_hub_that_collide() {
    rejects(&cluster(json!({"hub": {"ports": {"api": 8000}}})), "the hub's ports must differ");
}

#[test]
fn rejects_a_pong_after_the_next_ping() {
    let hub = json!({"hub": {"pingIntervalSeconds": 5, "pongTimeoutSeconds": 5}});
    rejects(&cluster(hub), "set pongTimeoutSeconds below pingIntervalSeconds");
}

#[test]
fn rejects_origins_that_no_browser_sends() {
    for origin in ["https://app.example/", "app.example", "https://a*.example", "https://"] {
        rejects(&cluster(json!({"hub": {"allowedOrigins": [origin]}})), "an origin is 'https://app.example'");
    }
}

#[test]
fn rejects_trusted_proxies_that_are_no_network() {
    for proxy in ["10.0.0.1", "10.0.0.0/33", "proxy"] {
        rejects(&cluster(json!({"hub": {"trustedProxies": [proxy]}})), "a trusted proxy is a network");
    }
}

#[test]
fn accepts_keys_without_a_kid_side_by_side() {
    let key = json!({"algorithm": "HS256", "secretKeyRef": {"name": "s", "key": "k"}});
    accepts(&cluster(json!({"auth": {"jwt": {"keys": [key, key]}}})));
}

#[test]
fn rejects_two_keys_of_one_kid() {
    let key = json!({"kid": "a", "algorithm": "HS256", "secretKeyRef": {"name": "s", "key": "k"}});
    rejects(&cluster(json!({"auth": {"jwt": {"keys": [key, key]}}})), "two keys have the same kid");
}

#[test]
fn rejects_a_channel_pattern_with_white_space_or_braces() {
    for pattern in ["a b", "{a}"] {
        let spec = json!({"namespaces": [{"name": "default", "channels": [pattern]}]});
        rejects(&cluster(spec), "/spec/namespaces/0/channels/0");
    }
}

#[test]
fn accepts_namespaces_that_only_look_like_the_reserved_one() {
    for name in ["fanout2", "Fanout", "my.fanout", "default"] {
        accepts(&cluster(json!({"namespaces": [{"name": name}]})));
    }
}

#[test]
fn rejects_the_namespace_of_the_nodes_themselves() {
    let spec = json!({"namespaces": [{"name": "default"}, {"name": sidecar_config::RESERVED_NAMESPACE}]});
    rejects(&cluster(spec), "reserved for internal use by the nodes: choose another name");
}

#[test]
fn namespaces_are_a_map_by_name_so_that_the_api_server_refuses_a_second_of_one_name() {
    let crd = crd();
    let fields = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    for (list, key) in [
        (&fields["spec"]["properties"]["namespaces"], "name"),
        (&fields["status"]["properties"]["conditions"], "type"),
        (&fields["status"]["properties"]["nodes"], "name"),
    ] {
        assert_eq!(list["x-kubernetes-list-type"], "map");
        assert_eq!(list["x-kubernetes-list-map-keys"], json!([key]));
    }
}

#[test]
fn accepts_containers_beside_the_sidecar() {
    accepts(&app(json!({"ports": [{"containerPort": 3000}]})));
    accepts(&template(json!({"tolerations": [{"operator": "Exists"}]})));
}

#[test]
fn rejects_the_name_of_the_sidecars_container() {
    rejects(&app(json!({"name": "fanout"})), "the container name 'fanout' is reserved for the sidecar");
    let init = json!({"initContainers": [{"name": "fanout", "image": "x"}]});
    rejects(&template(init), "the container name 'fanout' is reserved for the sidecar");
}

#[test]
fn rejects_a_container_port_of_the_hub() {
    for port in [8000, 8001, 8002, 8003] {
        rejects(&app(json!({"ports": [{"containerPort": port}]})), "give the container another port");
        let proxy = json!({"name": "proxy", "image": "x", "restartPolicy": "Always", "ports": [{"containerPort": port}]});
        rejects(&template(json!({"initContainers": [proxy]})), "give the container another port");
    }
}

#[test]
fn rejects_a_volume_name_of_the_operator() {
    rejects(
        &template(json!({"volumes": [{"name": "fanout-x", "emptyDir": {}}]})),
        "volume names that start with",
    );
}

#[test]
fn rejects_labels_that_the_operator_sets() {
    for label in ["fanout.dev/serving", "app.kubernetes.io/name"] {
        let spec = json!({"podTemplate": {"metadata": {"labels": {label: "x"}}}});
        rejects(&cluster(spec), "use a prefix of your own");
    }
}

#[test]
fn rejects_what_a_node_cannot_be() {
    for (spec, message) in [
        (json!({"hostNetwork": true}), "with hostNetwork the ports"),
        (json!({"restartPolicy": "Never"}), "leave restartPolicy out"),
        (json!({"terminationGracePeriodSeconds": 5}), "set spec.drain.terminationGracePeriodSeconds instead"),
        (json!({"shareProcessNamespace": true}), "a shared process namespace"),
    ] {
        rejects(&template(spec), message);
    }
}

#[test]
fn rejects_numbers_out_of_their_bounds() {
    for (spec, path) in [
        (json!({"replicas": -1}), "/spec/replicas"),
        (json!({"replicas": 1001}), "/spec/replicas"),
        (json!({"hub": {"maxConnectionsPerNode": 0}}), "/spec/hub/maxConnectionsPerNode"),
        (json!({"hub": {"ports": {"client": 80}}}), "/spec/hub/ports/client"),
        (json!({"service": {"port": 70000}}), "/spec/service/port"),
        (
            json!({"redis": {"external": {"addresses": ["r:1"], "database": 65536}}}),
            "/spec/redis/external/database",
        ),
    ] {
        rejects(&cluster(spec), path);
    }
}

#[test]
fn accepts_every_example() {
    let files =
        std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples")).expect("there are examples");
    let mut seen = 0;
    for file in files.map(|file| file.expect("the directory can be read").path()) {
        let text = std::fs::read_to_string(&file).expect("an example can be read");
        for document in serde_yaml::Deserializer::from_str(&text) {
            let object: Value = serde::Deserialize::deserialize(document).expect("an example is YAML");
            if object["kind"] == "FanoutCluster" {
                accepts(&object);
                seen += 1;
            }
        }
    }
    assert!(seen >= 6, "{seen}");
}
