//! The operator against an API server that does what a test says: what is written, what is not, and what happens
//! when an answer is an error.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "errors/api_server.rs"]
mod api_server;

use std::time::Duration;

use fanout_operator::{
    controller::{self, Shared, build::OperatorConfig},
    events::Events,
    health::Readiness,
    lease::{Lease, LeaseArgs, Lost, Timing},
    metrics::Metrics,
    resources::config_map::live_hash,
};
use http::Method;
use k8s_openapi::{api::core::v1::ConfigMap, jiff::Timestamp};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::api_server::ApiServer;

const CLUSTERS: &str = "/apis/fanout.dev/v1alpha1/namespaces/test/fanoutclusters";
const SERVICE: &str = "/api/v1/namespaces/test/services/chat";
const SECRET: &str = "/api/v1/namespaces/test/secrets/chat-api-key";
const PASSWORD: &str = "/api/v1/namespaces/test/secrets/chat-redis";
const REDIS: &str = "/apis/apps/v1/namespaces/test/statefulsets/chat-redis";
const SETS: &str = "/apis/apps/v1/namespaces/test/replicasets";
const PODS: &str = "/api/v1/namespaces/test/pods";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/test/events";
const KEYS: &str = "/api/v1/namespaces/test/secrets/keys";
const LIVE: &str = "/api/v1/namespaces/test/configmaps/chat-live";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/test/leases/operator";

/// An operator that leads.
struct Operator {
    stop: CancellationToken,
    work: JoinHandle<()>,
    keep: JoinHandle<()>,
    metrics: Metrics,
    readiness: Readiness,
}

impl Operator {
    async fn start(server: &ApiServer) -> Self {
        Self::with(server, OperatorConfig::default()).await
    }

    async fn with(server: &ApiServer, config: OperatorConfig) -> Self {
        Self::of(server, "operator", config).await
    }

    /// One that watches every namespace.
    async fn everywhere(server: &ApiServer) -> Self {
        Self::watching(server, "operator", OperatorConfig::default(), Vec::new()).await
    }

    /// One process of the installation `name`, with a Lease of its own.
    async fn of(server: &ApiServer, name: &str, config: OperatorConfig) -> Self {
        Self::watching(server, name, config, vec!["test".to_owned()]).await
    }

    async fn watching(
        server: &ApiServer,
        name: &str,
        config: OperatorConfig,
        namespaces: Vec<String>,
    ) -> Self {
        let mut lease = lease_of(server, name, "one");
        lease.acquire().await;
        let claim = lease.claim();
        let keep = tokio::spawn(async move { drop(lease.keep().await) });
        let (metrics, readiness) = (Metrics::new(), Readiness::default());
        let shared = Shared {
            events: Events::new(server.client(), "one"),
            client: server.client(),
            config: OperatorConfig { installation: format!("test/{name}"), ..config },
            claim,
            metrics: metrics.clone(),
            readiness: readiness.clone(),
        };
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let work = tokio::spawn(async move { controller::run(shared, &namespaces, stopped).await });
        Self { stop, work, keep, metrics, readiness }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.work.await.unwrap();
        self.keep.abort();
    }

    fn metric(&self, line: &str) -> String {
        let page = self.metrics.encode();
        let found = page.lines().find_map(|known| known.strip_prefix(line));
        found.map(|value| value.trim().to_owned()).unwrap_or_default()
    }
}

fn lease(server: &ApiServer, identity: &str) -> Lease {
    lease_of(server, "operator", identity)
}

fn lease_of(server: &ApiServer, name: &str, identity: &str) -> Lease {
    let args = LeaseArgs {
        lease_name: name.to_owned(),
        lease_namespace: "test".to_owned(),
        identity: Some(identity.to_owned()),
    };
    Lease::new(server.client(), &args, Timing::default())
}

fn cluster(name: &str) -> Value {
    json!({
        "apiVersion": "fanout.dev/v1alpha1",
        "kind": "FanoutCluster",
        "metadata": {"name": name, "generation": 1},
        "spec": {"replicas": 1, "redis": {"memory": {}}},
    })
}

fn with_cluster() -> ApiServer {
    let server = ApiServer::default();
    server.put(&format!("{CLUSTERS}/chat"), cluster("chat"));
    server
}

fn with_managed_redis() -> ApiServer {
    let server = ApiServer::default();
    let mut managed = cluster("chat");
    managed["spec"]["redis"] = json!({"managed": {}});
    server.put(&format!("{CLUSTERS}/chat"), managed);
    server
}

/// A cluster with app containers, which have the key of the server API.
fn with_app() -> ApiServer {
    let server = with_cluster();
    let containers = json!([{"name": "app", "image": "shop/app:1"}]);
    server.edit(
        &format!("{CLUSTERS}/chat"),
        &json!({"spec": {"podTemplate": {"spec": {"containers": containers}}}}),
    );
    server
}

/// A ready pod of a ReplicaSet.
fn ready_pod(name: &str, labels: &Value, set: &Value) -> Value {
    let metadata = &set["metadata"];
    let owner = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": metadata["name"], "uid": metadata["uid"], "controller": true,
    }]);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": labels, "ownerReferences": owner},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

/// A cluster of two nodes that run, and its ReplicaSet.
async fn with_two_nodes(server: &ApiServer) -> (Operator, Value) {
    server.edit(&format!("{CLUSTERS}/chat"), &json!({"spec": {"replicas": 2}}));
    let operator = Operator::start(server).await;
    seconds(5).await;
    let set = server.below(SETS).remove(0);
    for name in ["chat-one", "chat-two"] {
        let labels = &set["spec"]["template"]["metadata"]["labels"];
        server.put(&format!("{PODS}/{name}"), ready_pod(name, labels, &set));
    }
    seconds(5).await;
    (operator, set)
}

fn status_nodes(server: &ApiServer) -> Vec<String> {
    let cluster = server.get(&format!("{CLUSTERS}/chat")).unwrap();
    let nodes = cluster["status"]["nodes"].as_array().cloned().unwrap_or_default();
    nodes.iter().map(|node| node["name"].as_str().unwrap().to_owned()).collect()
}

/// Events of a reason, each as note and, behind it, the pod that it is about.
fn told(server: &ApiServer, reason: &str) -> Vec<String> {
    let events = server.below(EVENTS).into_iter().filter(|event| event["reason"] == reason);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    events.map(|event| format!("{} [{}]", text(&event["note"]), text(&event["related"]["name"]))).collect()
}

async fn nothing_is_written_for_an_hour(server: &ApiServer) {
    server.take_writes();
    seconds(3_600).await;
    assert_eq!(server.take_writes(), [""; 0]);
}

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

fn condition(server: &ApiServer, name: &str, type_: &str) -> Value {
    let cluster = server.get(&format!("{CLUSTERS}/{name}")).unwrap();
    let conditions = cluster["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|condition| condition["type"] == type_).unwrap_or(Value::Null)
}

#[tokio::test(start_paused = true)]
async fn a_cluster_gets_its_children_and_then_nothing_is_written() {
    let server = with_cluster();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    assert!(server.get(SERVICE).is_some());
    assert!(server.get(SECRET).is_some());
    assert!(server.take_writes().iter().any(|write| write.contains("/replicasets/chat-")));
    seconds(3_600).await;
    assert_eq!(server.take_writes(), [""; 0]);
    assert_eq!(operator.metric("fanout_operator_noop_writes_total"), "");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_operator_that_starts_anew_writes_nothing() {
    let server = with_managed_redis();
    let first = Operator::start(&server).await;
    seconds(5).await;
    first.stop().await;
    server.take_writes();
    let second = Operator::start(&server).await;
    seconds(60).await;
    assert_eq!(server.take_writes(), [""; 0]);
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_operator_takes_the_clusters_of_its_class_and_no_others() {
    let server = with_cluster();
    let mut blue = cluster("blue");
    blue["metadata"]["labels"] = json!({"fanout.dev/operator-class": "blue"});
    server.put(&format!("{CLUSTERS}/blue"), blue);
    let mut empty = cluster("empty");
    empty["metadata"]["labels"] = json!({"fanout.dev/operator-class": ""});
    server.put(&format!("{CLUSTERS}/empty"), empty);
    let mut unreadable = cluster("unreadable");
    unreadable["metadata"]["labels"] = json!({"fanout.dev/operator-class": "blue"});
    unreadable["spec"]["replicas"] = json!("three");
    server.put(&format!("{CLUSTERS}/unreadable"), unreadable);
    let service = |name: &str| server.get(&format!("/api/v1/namespaces/test/services/{name}"));

    let plain = Operator::start(&server).await;
    seconds(60).await;
    assert!(service("chat").is_some() && service("empty").is_some());
    assert_eq!(service("blue"), None);
    assert_eq!(server.get(&format!("{CLUSTERS}/blue")).unwrap()["status"], Value::Null);
    assert_eq!(server.get(&format!("{CLUSTERS}/unreadable")).unwrap()["status"], Value::Null);

    server.take_writes();
    let classed = Operator::of(
        &server,
        "second",
        OperatorConfig { class: Some("blue".to_owned()), ..OperatorConfig::default() },
    )
    .await;
    seconds(60).await;
    assert!(service("blue").is_some());
    assert_eq!(condition(&server, "unreadable", "Degraded")["reason"], "InvalidSpec");
    assert_ne!(classed.metric("fanout_operator_malformed_objects_total"), "0");
    assert_eq!(plain.metric("fanout_operator_malformed_objects_total"), "0");
    let writes = server.take_writes();
    assert!(writes.iter().all(|write| !write.contains("/chat") && !write.contains("/empty")), "{writes:#?}");
    nothing_is_written_for_an_hour(&server).await;
    assert_eq!((plain.readiness.obstacles(), classed.readiness.obstacles()), (vec![], vec![]));

    // Another class hands a cluster over.
    server.edit(
        &format!("{CLUSTERS}/chat"),
        &json!({"metadata": {"labels": {"fanout.dev/operator-class": "blue"}}}),
    );
    seconds(5).await;
    plain.stop().await;
    server.delete(SERVICE);
    seconds(1).await;
    assert!(service("chat").is_some());
    classed.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_second_operator_of_the_same_class_leaves_the_clusters_alone_until_the_first_is_gone() {
    let server = with_cluster();
    let first = Operator::start(&server).await;
    seconds(5).await;
    let second = Operator::of(&server, "second", OperatorConfig::default()).await;
    seconds(5).await;
    server.take_writes();
    server.delete(SERVICE);
    seconds(1).await;
    assert_eq!(server.take_writes().iter().filter(|write| write.contains("/services/")).count(), 1);
    nothing_is_written_for_an_hour(&server).await;
    assert_eq!(second.metric("fanout_operator_writes_total"), "", "not by the second either");
    let told = second.readiness.obstacles().join("");
    assert!(told.contains("namespace test are held by the operator test/operator:"), "{told}");
    assert!(told.contains("watchNamespaces") && told.contains("operatorClass"), "{told}");
    assert_eq!(first.readiness.obstacles(), [""; 0]);

    // A restart of the first is no chance for the second.
    first.stop().await;
    seconds(20).await;
    let first = Operator::start(&server).await;
    seconds(120).await;
    assert_eq!(first.readiness.obstacles(), [""; 0]);
    assert_ne!(second.readiness.obstacles(), [""; 0]);

    first.stop().await;
    server.delete(SERVICE);
    seconds(50).await;
    assert_eq!(server.get(SERVICE), None, "the lease of the first has not run out yet");
    seconds(30).await;
    assert!(server.get(SERVICE).is_some());
    assert_eq!(second.readiness.obstacles(), [""; 0]);
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_operator_that_waits_for_a_namespace_is_ready_once_there_is_nothing_to_wait_for() {
    let server = with_cluster();
    let first = Operator::start(&server).await;
    seconds(5).await;
    let second = Operator::of(&server, "second", OperatorConfig::default()).await;
    seconds(30).await;
    assert_ne!(second.readiness.obstacles(), [""; 0]);
    server.delete(&format!("{CLUSTERS}/chat"));
    seconds(10).await;
    assert_eq!(second.readiness.obstacles(), [""; 0]);
    // The first has let go of the namespace, so that whoever comes first has it.
    second.stop().await;
    first.stop().await;
    let third = Operator::of(&server, "third", OperatorConfig::default()).await;
    server.put(&format!("{CLUSTERS}/chat"), cluster("chat"));
    seconds(5).await;
    assert!(server.take_writes().iter().any(|write| write.contains("/replicasets/chat-")));
    assert_eq!(third.readiness.obstacles(), [""; 0]);
    third.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_operator_whose_rights_are_from_before_the_leases_of_namespaces_manages_on() {
    let server = with_cluster();
    server.fail(Method::GET, "/leases/fanoutclusters.fanout.dev", 403, 1_000);
    let operator = Operator::start(&server).await;
    seconds(5).await;
    assert!(server.get(SERVICE).is_some());
    seconds(600).await;
    server.delete(SERVICE);
    seconds(1).await;
    assert!(server.get(SERVICE).is_some());
    assert_eq!(operator.readiness.obstacles(), [""; 0]);
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_operator_that_cannot_renew_a_namespace_stops_before_another_takes_it() {
    let server = with_cluster();
    let first = Operator::start(&server).await;
    seconds(5).await;
    let second = Operator::of(&server, "second", OperatorConfig::default()).await;
    seconds(5).await;
    server.fail(Method::PUT, "/leases/fanoutclusters.fanout.dev", 500, 12);
    seconds(36).await;
    server.take_writes();
    server.delete(SERVICE);
    seconds(1).await;
    assert_eq!(
        server.take_writes(),
        [""; 0],
        "its time to renew is over, and that of the other has not come"
    );
    seconds(60).await;
    assert!(server.get(SERVICE).is_some(), "one of them has it");
    let ready = [&first, &second].map(|operator| operator.readiness.obstacles().is_empty());
    assert_eq!(ready.iter().filter(|ready| **ready).count(), 1, "{ready:?}");
    first.stop().await;
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_reconcile_that_outlasts_the_lease_of_its_namespace_writes_nothing_more() {
    let nodes = "/api/v1/namespaces/test/services/chat-nodes";
    let server = with_cluster();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    server.fail(Method::PUT, "/leases/fanoutclusters.fanout.dev", 500, usize::MAX);
    seconds(25).await;
    // The answer takes until the Lease, of 40 s, is over.
    server.hang(Method::PATCH, SERVICE);
    server.delete(SERVICE);
    server.delete(nodes);
    seconds(30).await;
    assert_eq!([server.get(SERVICE), server.get(nodes)], [None, None]);
    server.recover();
    seconds(60).await;
    assert!(server.get(SERVICE).is_some() && server.get(nodes).is_some());
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_namespace_lease_that_cannot_be_had_keeps_the_operator_from_being_ready() {
    let lease = "/leases/fanoutclusters.fanout.dev";
    let server = with_cluster();
    server.fail(Method::GET, lease, 500, usize::MAX);
    let operator = Operator::start(&server).await;
    seconds(5).await;
    let told = operator.readiness.obstacles().join("");
    assert!(told.contains("as the test wants it") && told.contains("create and update"), "{told}");
    assert!(told.contains("Lease test/fanoutclusters.fanout.dev"), "{told}");
    assert_eq!(server.get(SERVICE), None);
    server.recover();
    seconds(60).await;
    assert!(server.get(SERVICE).is_some());
    assert_eq!(operator.readiness.obstacles(), [""; 0]);
    // While the Lease is good, a renewal that fails is no obstacle.
    server.fail(Method::PUT, lease, 500, 2);
    for _ in 0..30 {
        seconds(1).await;
        assert_eq!(operator.readiness.obstacles(), [""; 0]);
    }
    server.fail(Method::PUT, lease, 500, usize::MAX);
    seconds(60).await;
    assert_ne!(operator.readiness.obstacles(), [""; 0]);
    server.delete(&format!("{CLUSTERS}/chat"));
    seconds(10).await;
    assert_eq!(operator.readiness.obstacles(), [""; 0], "there is nothing to hold any more");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_operator_without_its_crd_is_not_ready_and_names_it() {
    let server = with_cluster();
    server.fail(Method::GET, "/fanoutclusters", 404, 5);
    let operator = Operator::start(&server).await;
    seconds(5).await;
    let told = operator.readiness.obstacles().join("");
    assert!(told.contains("CustomResourceDefinition fanoutclusters.fanout.dev is not installed"), "{told}");
    assert!(server.take_writes().is_empty());
    seconds(120).await;
    assert_eq!(operator.readiness.obstacles(), [""; 0]);
    assert!(server.get(SERVICE).is_some());
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_operator_whose_crd_goes_and_comes_back_says_so_both_times() {
    let server = ApiServer::default();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    assert_eq!(operator.readiness.obstacles(), [""; 0]);
    server.fail(Method::GET, "/fanoutclusters", 404, 4);
    server.end_watches(CLUSTERS);
    seconds(2).await;
    assert!(operator.readiness.obstacles().join("").contains("fanoutclusters.fanout.dev is not installed"));
    seconds(120).await;
    assert_eq!(operator.readiness.obstacles(), [""; 0], "though no FanoutCluster has come");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_child_is_back_within_a_second() {
    let server = with_cluster();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    server.delete(SERVICE);
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert!(server.get(SERVICE).is_some());
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_edited_child_is_repaired_and_the_fields_of_others_stay() {
    let server = with_cluster();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    let edit = json!({"metadata": {"annotations": {"theirs": "stays"}}, "spec": {"selector": {"fanout.dev/serving": "no"}}});
    server.edit(SERVICE, &edit);
    seconds(1).await;
    let service = server.get(SERVICE).unwrap();
    assert_eq!(service["spec"]["selector"]["fanout.dev/serving"], "true");
    assert_eq!(service["metadata"]["annotations"]["theirs"], "stays");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_generated_secret_is_never_overwritten() {
    let server = with_cluster();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    server.edit(SECRET, &json!({"data": {"api-key": "bWluZQ=="}}));
    server
        .edit(&format!("{CLUSTERS}/chat"), &json!({"metadata": {"generation": 2}, "spec": {"replicas": 0}}));
    seconds(60).await;
    assert_eq!(server.get(SECRET).unwrap()["data"]["api-key"], "bWluZQ==");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_gone_from_a_generated_secret_is_made_anew_and_told() {
    let server = with_cluster();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    let before = server.get(SECRET).unwrap();
    server.edit(SECRET, &json!({"data": {"api-key": null, "theirs": "eA=="}}));
    seconds(1).await;
    let after = server.get(SECRET).unwrap();
    assert!(after["data"]["api-key"].as_str().unwrap().len() > 60, "{after}");
    assert_ne!(after["data"]["api-key"], before["data"]["api-key"]);
    assert_eq!(after["data"]["theirs"], "eA==");
    assert!(told(&server, "ChildApplied")[0].contains("chat-api-key"), "{:?}", told(&server, "ChildApplied"));
    nothing_is_written_for_an_hour(&server).await;
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_generated_secret_that_lost_its_label_is_still_its_owners_and_gets_it_back() {
    let server = with_cluster();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    let before = server.get(SECRET).unwrap();
    server.edit(SECRET, &json!({"metadata": {"labels": {"fanout.dev/cluster": null}}}));
    seconds(1).await;
    let after = server.get(SECRET).unwrap();
    assert_eq!(after["metadata"]["labels"], before["metadata"]["labels"]);
    assert_eq!(after["data"], before["data"]);
    assert_ne!(condition(&server, "chat", "Degraded")["status"], "True");
    nothing_is_written_for_an_hour(&server).await;
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_secret_of_somebody_else_is_not_taken_over() {
    let server = with_cluster();
    let theirs =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "chat-api-key"}, "data": {}});
    server.put(SECRET, theirs);
    let before = server.get(SECRET);
    let operator = Operator::start(&server).await;
    seconds(60).await;
    assert_eq!(server.get(SECRET), before);
    assert_eq!(condition(&server, "chat", "Degraded")["reason"], "NotOurs");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn another_password_replaces_the_pod_of_the_managed_redis_and_nothing_else_does() {
    let server = with_managed_redis();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    let template = || server.get(REDIS).unwrap()["spec"]["template"].take();
    let first = template();
    let digest = &first["metadata"]["annotations"]["fanout.dev/password-digest"];
    assert!(digest.as_str().is_some_and(|digest| digest.len() == 16), "{first}");
    nothing_is_written_for_an_hour(&server).await;

    server.edit(PASSWORD, &json!({"metadata": {"annotations": {"theirs": "x"}}, "data": {"theirs": "eA=="}}));
    nothing_is_written_for_an_hour(&server).await;

    server.delete(PASSWORD);
    seconds(1).await;
    assert!(server.get(PASSWORD).is_some());
    let second = template();
    assert_ne!(second, first);
    nothing_is_written_for_an_hour(&server).await;

    server.edit(PASSWORD, &json!({"data": {"password": "bWluZQ=="}}));
    seconds(1).await;
    let secret = server.get(PASSWORD).unwrap();
    assert_eq!(secret["data"]["password"], "bWluZQ==", "a value that is there is never overwritten");
    assert_eq!(secret["data"]["redis.conf"], "cmVxdWlyZXBhc3MgbWluZQo=", "the server follows it");
    assert_ne!(template(), second);
    nothing_is_written_for_an_hour(&server).await;
    operator.stop().await;

    let again = Operator::start(&server).await;
    seconds(5).await;
    nothing_is_written_for_an_hour(&server).await;
    again.stop().await;
}

/// A newer operator, whose defaults are others.
async fn newer_operator(server: &ApiServer) -> Operator {
    let config = OperatorConfig {
        sidecar_repository: "registry.test/sidecar".to_owned(),
        redis_image: "registry.test/redis:9".to_owned(),
        ..OperatorConfig::default()
    };
    Operator::with(server, config).await
}

#[tokio::test(start_paused = true)]
async fn an_operator_with_other_defaults_restarts_nothing_and_the_spec_moves_redis() {
    let server = with_managed_redis();
    let first = Operator::start(&server).await;
    seconds(5).await;
    first.stop().await;
    server.take_writes();
    let second = newer_operator(&server).await;
    seconds(60).await;
    assert_eq!(server.take_writes(), [""; 0]);
    let container = || server.get(REDIS).unwrap()["spec"]["template"]["spec"]["containers"][0].take();
    assert_eq!(container()["image"], OperatorConfig::default().redis_image);

    server.edit(PASSWORD, &json!({"data": {"password": "bWluZQ=="}}));
    seconds(5).await;
    assert_eq!(
        container()["image"],
        OperatorConfig::default().redis_image,
        "another password is no other image"
    );
    assert_eq!(told(&server, "RedisChanged").len(), 1);

    let more = json!({"spec": {"redis": {"managed": {"resources": {"limits": {"memory": "2Gi"}}}}}});
    server.edit(&format!("{CLUSTERS}/chat"), &more);
    seconds(5).await;
    assert_eq!(container()["image"], "registry.test/redis:9");
    assert_eq!(container()["resources"]["limits"]["memory"], "2Gi");
    nothing_is_written_for_an_hour(&server).await;

    let same = json!({"spec": {"redis": {"managed": {"resources": {"limits": {"memory": "2048Mi"}}}}}});
    server.edit(&format!("{CLUSTERS}/chat"), &same);
    seconds(5).await;
    assert_eq!(container()["resources"]["limits"]["memory"], "2Gi", "an equal quantity is no change");
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_redis_that_was_made_before_it_was_stored_stays_as_it_is() {
    let server = with_managed_redis();
    let given = json!({"spec": {"childMetadata": {"annotations": {"owner": "x"}}}});
    server.edit(&format!("{CLUSTERS}/chat"), &given);
    let first = Operator::start(&server).await;
    seconds(5).await;
    first.stop().await;
    let gone =
        json!({"fanout.dev/rendered": null, "fanout.dev/redis-spec": null, "fanout.dev/applied": "old"});
    server.edit(REDIS, &json!({"metadata": {"annotations": gone}}));
    let template = server.get(REDIS).unwrap()["spec"]["template"].take();
    let second = newer_operator(&server).await;
    seconds(60).await;
    let live = server.get(REDIS).unwrap();
    assert_eq!(live["spec"]["template"], template);
    assert!(live["metadata"]["annotations"]["fanout.dev/redis-spec"].is_string());
    let stored = live["metadata"]["annotations"]["fanout.dev/rendered"].as_str().unwrap();
    let stored: Value = serde_json::from_str(stored).unwrap();
    assert_eq!(stored["metadata"]["annotations"]["owner"], "x", "the next write does not take it away");
    nothing_is_written_for_an_hour(&server).await;
    second.stop().await;
}

/// The pod of the managed Redis on machine `m1`, not ready.
fn put_unready_redis(server: &ApiServer, ends: Value) {
    let set = server.get(REDIS).unwrap();
    let mut pod = ready_pod("chat-redis-0", &set["spec"]["template"]["metadata"]["labels"], &set);
    pod["metadata"]["deletionTimestamp"] = ends;
    pod["spec"] = json!({"nodeName": "m1", "containers": []});
    pod["status"]["conditions"] =
        json!([{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    server.put(&format!("{PODS}/chat-redis-0"), pod);
}

#[tokio::test(start_paused = true)]
async fn an_operator_of_single_namespaces_asks_for_no_machine() {
    let server = with_managed_redis();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    put_unready_redis(&server, Value::Null);
    seconds(60).await;
    let asked = |server: &ApiServer| server.take_reads().iter().any(|path| path == "/api/v1/nodes/m1");
    assert!(!asked(&server));
    operator.stop().await;
    let operator = Operator::everywhere(&server).await;
    seconds(60).await;
    assert!(asked(&server));
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_redis_that_lost_its_label_stays_as_it_was_rendered() {
    for lost in [json!({}), json!({"fanout.dev/rendered": null})] {
        let server = with_managed_redis();
        let first = Operator::start(&server).await;
        seconds(5).await;
        first.stop().await;
        let template = server.get(REDIS).unwrap()["spec"]["template"].take();
        let stripped = json!({"labels": {"fanout.dev/cluster": null}, "annotations": lost});
        server.edit(REDIS, &json!({"metadata": stripped}));
        let second = newer_operator(&server).await;
        seconds(60).await;
        let live = server.get(REDIS).unwrap();
        assert_eq!(live["spec"]["template"], template);
        assert_eq!(live["metadata"]["labels"]["fanout.dev/cluster"], "chat");
        nothing_is_written_for_an_hour(&server).await;
        second.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn metadata_of_children_reaches_the_pod_of_the_managed_redis_and_is_no_loss_of_a_secret() {
    let server = with_managed_redis();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    let given =
        json!({"spec": {"childMetadata": {"labels": {"team": "chat"}, "annotations": {"owner": "x"}}}});
    server.edit(&format!("{CLUSTERS}/chat"), &given);
    seconds(5).await;
    let metadata = server.get(REDIS).unwrap()["spec"]["template"]["metadata"].take();
    assert_eq!(
        (&metadata["labels"]["team"], &metadata["annotations"]["owner"]),
        (&json!("chat"), &json!("x"))
    );
    nothing_is_written_for_an_hour(&server).await;
    operator.stop().await;

    let again = Operator::start(&server).await;
    seconds(5).await;
    assert!(told(&server, "ChildApplied").iter().all(|note| !note.contains("Secret")), "nothing was lost");
    server.edit(&format!("{CLUSTERS}/chat"), &json!({"spec": {"childMetadata": null}}));
    seconds(5).await;
    assert_eq!(told(&server, "RedisChanged").len(), 2, "nor does what is taken away stay");
    nothing_is_written_for_an_hour(&server).await;
    again.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_redis_on_a_lost_machine_is_replaced_and_only_without_a_volume() {
    for (storage, ends, expected) in [
        (json!(null), json!(null), Some(5)),
        (json!(null), json!("2026-01-01T00:00:30Z"), Some(0)),
        (json!({"size": "1Gi"}), json!(null), None),
        (json!({"size": "1Gi"}), json!("2026-01-01T00:00:30Z"), None),
    ] {
        let server = ApiServer::default();
        let mut managed = cluster("chat");
        managed["spec"]["redis"] = json!({"managed": {"storage": storage}});
        server.put(&format!("{CLUSTERS}/chat"), managed);
        let operator = Operator::everywhere(&server).await;
        seconds(5).await;
        let ready = |status: &str| json!([{"type": "Ready", "status": status, "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        server.put("/api/v1/nodes/m1", json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "m1"}, "status": {"conditions": ready("True")}}));
        put_unready_redis(&server, ends);
        server.take_sent();
        seconds(60).await;
        let deleted = || {
            server
                .take_sent()
                .into_iter()
                .find(|(method, path, _)| *method == Method::DELETE && path.ends_with("/chat-redis-0"))
        };
        assert!(deleted().is_none(), "its machine answers");
        server.edit("/api/v1/nodes/m1", &json!({"status": {"conditions": ready("Unknown")}}));
        server.edit(&format!("{PODS}/chat-redis-0"), &json!({"status": {"reason": "NodeLost"}}));
        seconds(60).await;
        let grace = deleted().map(|(_, _, body)| {
            assert!(body["preconditions"]["uid"].is_string(), "{body}");
            body["gracePeriodSeconds"].as_i64().unwrap()
        });
        assert_eq!(grace, expected, "{storage}");
        if expected.is_none() {
            let degraded = condition(&server, "chat", "Degraded");
            assert!(degraded["message"].as_str().unwrap().contains("out-of-service"), "{degraded}");
        }
        operator.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn app_containers_are_replaced_when_the_api_key_is_another() {
    let server = with_app();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    assert_eq!(server.below(SETS).len(), 1);
    nothing_is_written_for_an_hour(&server).await;
    server.edit(SECRET, &json!({"data": {"theirs": "eA=="}}));
    seconds(5).await;
    assert_eq!(server.below(SETS).len(), 1, "a key of somebody else is not in their environment");
    server.delete(SECRET);
    seconds(5).await;
    assert!(server.get(SECRET).is_some());
    assert_eq!(server.below(SETS).len(), 2);
    nothing_is_written_for_an_hour(&server).await;
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_api_key_that_cannot_be_made_is_tried_seldom_and_stops_no_scaling() {
    let server = with_app();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    server.fail(Method::POST, "/secrets", 403, usize::MAX);
    server.delete(SECRET);
    seconds(60).await;
    assert_eq!(condition(&server, "chat", "Degraded")["status"], "True");
    scale(&server, 3);
    seconds(5).await;
    assert_eq!(asked_for(&server), 3);
    let tries = || operator.metric("fanout_operator_writes_total{kind=\"Secret\"}").parse::<u32>().unwrap();
    let before = tries();
    seconds(3_600).await;
    assert!(tries() - before <= 400, "tried {} times in an hour", tries() - before);
    server.recover();
    seconds(700).await;
    assert!(server.get(SECRET).is_some());
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn settings_that_were_not_written_are_not_said_to_spread() {
    let server = with_cluster();
    server.fail(Method::PATCH, "/configmaps/chat-live", 403, usize::MAX);
    let operator = Operator::start(&server).await;
    seconds(10).await;
    let settings = condition(&server, "chat", "SettingsInSync");
    assert_eq!(settings["message"], "the settings were not written", "{settings}");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn readiness_is_told_of_a_generation_only_once_all_of_it_is_written() {
    let server = with_cluster();
    let (operator, _) = with_two_nodes(&server).await;
    let ready = || condition(&server, "chat", "Ready");
    assert_eq!((&ready()["status"], &ready()["observedGeneration"]), (&json!("True"), &json!(1)));
    let failures =
        [(SERVICE, json!({"service": {"port": 81}})), (LIVE, json!({"drain": {"timeoutSeconds": 40}}))];
    for (generation, (path, spec)) in (2..).zip(failures) {
        let before = server.get(path);
        server.fail(Method::PATCH, path, 409, 3);
        server.hang(Method::PATCH, path);
        server.edit(
            &format!("{CLUSTERS}/chat"),
            &json!({"metadata": {"generation": generation}, "spec": spec}),
        );
        while server.get(path) == before {
            let told = ready();
            assert_eq!(
                (&told["status"], &told["observedGeneration"]),
                (&json!("True"), &json!(generation - 1))
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        seconds(5).await;
        assert_eq!(ready()["observedGeneration"], generation);
    }
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn ready_ends_with_a_lost_machine_although_nobody_there_answers() {
    // The kernel accepts, and nobody ever answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let server = with_managed_redis();
    server.put("/api/v1/nodes/m1", json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "m1"}}));
    let operator = Operator::everywhere(&server).await;
    seconds(5).await;
    let (set, redis) = (server.below(SETS).remove(0), server.get(REDIS).unwrap());
    let put = |name: &str, set: &Value, ready: &str| {
        let mut pod = ready_pod(name, &set["spec"]["template"]["metadata"]["labels"], set);
        let admin = json!({"name": "admin", "containerPort": port});
        pod["spec"] = json!({"nodeName": "m1", "containers": [{"name": "fanout", "ports": [admin]}]});
        pod["status"]["podIP"] = json!("127.0.0.1");
        pod["status"]["conditions"] =
            json!([{"type": "Ready", "status": ready, "lastTransitionTime": Timestamp::now().to_string()}]);
        server.put(&format!("{PODS}/{name}"), pod);
    };
    server.edit(REDIS, &json!({"status": {"readyReplicas": 1}}));
    put("chat-one", &set, "True");
    put("chat-redis-0", &redis, "True");
    seconds(15).await;
    assert_eq!(condition(&server, "chat", "Ready")["status"], "True", "it was scraped in vain meanwhile");

    // As the node lifecycle controller says it, and with it every EndpointSlice.
    server.hang(Method::GET, "/api/v1/nodes/m1");
    put("chat-redis-0", &redis, "False");
    put("chat-one", &set, "False");
    seconds(4).await;
    assert_eq!(condition(&server, "chat", "Ready")["status"], "False");
    operator.stop().await;
}

/// The time that the live settings give a drain.
fn drain_timeout(server: &ApiServer) -> Value {
    let live: ConfigMap = serde_json::from_value(server.get(LIVE).unwrap()).unwrap();
    let settings: Value = serde_yaml::from_str(&live.data.unwrap()["live.yaml"]).unwrap();
    settings["drain"]["timeoutSeconds"].clone()
}

/// Makes a ReplicaSet what it was before sidecars were told how long their pods have to end.
fn untell(server: &ApiServer, set: &Value) {
    let path = format!("{SETS}/{}", set["metadata"]["name"].as_str().unwrap());
    let without = |template: &mut Value| {
        let env = template["spec"]["containers"][0]["env"].as_array_mut().unwrap();
        env.retain(|variable| variable["name"] != "FANOUT_TERMINATION_GRACE_SECONDS");
    };
    let mut older = set.clone();
    without(&mut older["spec"]["template"]);
    let annotation = "fanout.dev/rendered";
    let mut stored: Value =
        serde_json::from_str(set["metadata"]["annotations"][annotation].as_str().unwrap()).unwrap();
    without(&mut stored["replicaSet"]["spec"]["template"]);
    older["metadata"]["annotations"][annotation] = stored.to_string().into();
    server.put(&path, older);
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_within_the_grace_of_pods_that_were_not_told_it_until_the_last_of_them_is_gone() {
    let (server, chat) = (with_cluster(), format!("{CLUSTERS}/chat"));
    let drain =
        |timeout: u32| json!({"timeoutSeconds": timeout, "terminationGracePeriodSeconds": timeout + 20});
    server.edit(&chat, &json!({"spec": {"drain": drain(40)}}));
    let (operator, set) = with_two_nodes(&server).await;
    assert_eq!(drain_timeout(&server), 40);
    server.edit(&chat, &json!({"metadata": {"generation": 2}, "spec": {"drain": drain(900)}}));
    seconds(5).await;
    assert_eq!(drain_timeout(&server), 900, "these know better themselves");

    untell(&server, &set);
    seconds(5).await;
    assert_eq!(drain_timeout(&server), 50, "the kubelet kills them after 60 s");
    let live: ConfigMap = serde_json::from_value(server.get(LIVE).unwrap()).unwrap();
    assert_eq!(server.get(&chat).unwrap()["status"]["settingsHash"], live_hash(&live));

    // A scale to none leaves pods that drain.
    let path = format!("{SETS}/{}", set["metadata"]["name"].as_str().unwrap());
    server.edit(&path, &json!({"spec": {"replicas": 0}}));
    server.delete(&format!("{PODS}/chat-one"));
    seconds(5).await;
    assert_eq!(server.get(&path).unwrap()["spec"]["replicas"], 0);
    assert_eq!(drain_timeout(&server), 50);
    server.edit(&format!("{PODS}/chat-two"), &json!({"status": {"phase": "Failed"}}));
    seconds(5).await;
    assert_eq!(drain_timeout(&server), 900, "what is left of it does not drain");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_secret_does_not_make_nodes_outdated() {
    let server = with_cluster();
    let (operator, _) = with_two_nodes(&server).await;
    let updated = || server.get(&format!("{CLUSTERS}/chat")).unwrap()["status"]["updatedReplicas"].take();
    assert_eq!(updated(), 2);
    server.edit(
        &format!("{CLUSTERS}/chat"),
        &json!({"spec": {"auth": {"apiKeysSecretRef": {"name": "keys"}}}}),
    );
    seconds(5).await;
    assert_eq!(condition(&server, "chat", "Degraded")["reason"], "SecretMissing");
    assert_eq!(updated(), 2);
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_waits_for_a_volume_is_told_with_the_words_of_the_kubelet() {
    let server = with_cluster();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    let set = server.below(SETS).remove(0);
    let mut pod = ready_pod("chat-one", &set["spec"]["template"]["metadata"]["labels"], &set);
    pod["spec"] = json!({"nodeName": "m1", "containers": []});
    pod["status"] = json!({"phase": "Pending", "conditions": [
        {"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"},
    ]});
    for (name, at, message) in [
        ("old", "2026-01-01T00:01:00Z", "configmap first"),
        ("new", "2026-01-01T00:02:00Z", "configmap missing"),
    ] {
        let event = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": name}, "involvedObject": {}, "reason": "FailedMount",
            "message": message, "lastTimestamp": at,
        });
        server.put(&format!("/api/v1/namespaces/test/events/{name}"), event);
    }
    server.put(&format!("{PODS}/chat-one"), pod);
    seconds(5).await;
    let degraded = condition(&server, "chat", "Degraded");
    assert_eq!(degraded["reason"], "NotReadyInTime");
    assert!(degraded["message"].as_str().unwrap().contains("configmap missing"), "{degraded}");
    nothing_is_written_for_an_hour(&server).await;
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_revision_that_lost_its_stored_form_gets_it_back_and_is_repaired_as_before() {
    let server = with_cluster();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    let set = || server.below(SETS).remove(0);
    let path = format!("{SETS}/{}", set()["metadata"]["name"].as_str().unwrap());
    server.edit(&path, &json!({"metadata": {"annotations": {"fanout.dev/rendered": null}}}));
    seconds(1).await;
    assert!(set()["metadata"]["annotations"]["fanout.dev/rendered"].is_string());
    nothing_is_written_for_an_hour(&server).await;
    server.edit(&path, &json!({"spec": {"template": {"spec": {"serviceAccountName": "other"}}}}));
    seconds(1).await;
    assert_eq!(set()["spec"]["template"]["spec"]["serviceAccountName"], "chat");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_goes_is_told_by_an_event_with_its_name_and_why() {
    let server = with_cluster();
    server.edit(&format!("{CLUSTERS}/chat"), &json!({"spec": {"replicas": 2}}));
    let operator = Operator::start(&server).await;
    seconds(5).await;
    let set = server.below(SETS).remove(0);
    let template = &set["spec"]["template"]["metadata"];
    for name in ["chat-one", "chat-two"] {
        server.put(&format!("{PODS}/{name}"), ready_pod(name, &template["labels"], &set));
    }
    seconds(5).await;
    assert_eq!(told(&server, "ScaleDown"), [""; 0]);
    server
        .edit(&format!("{CLUSTERS}/chat"), &json!({"metadata": {"generation": 2}, "spec": {"replicas": 1}}));
    seconds(5).await;
    let going: Vec<_> = server
        .below(PODS)
        .into_iter()
        .filter(|pod| pod["metadata"]["labels"]["fanout.dev/serving"] == "false")
        .collect();
    let [pod] = &going[..] else { panic!("{going:#?}") };
    let name = pod["metadata"]["name"].as_str().unwrap();
    let note = format!(
        "node {name} with an unknown number of connections leaves: fewer nodes are asked for [{name}]"
    );
    assert_eq!(told(&server, "ScaleDown"), [note]);
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn pods_and_sets_that_only_carry_the_label_are_neither_counted_nor_touched() {
    let server = with_cluster();
    let (operator, set) = with_two_nodes(&server).await;
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    let mut theirs = set.clone();
    theirs["metadata"]["name"] = json!("backend");
    theirs["metadata"]["uid"] = json!("backend");
    theirs["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "Deployment", "name": "backend", "uid": "d", "controller": true,
    }]);
    server.take_writes();
    server.put(&format!("{SETS}/backend"), theirs.clone());
    server.put(&format!("{PODS}/backend-one"), ready_pod("backend-one", labels, &theirs));
    let mut debug = ready_pod("chat-debug", labels, &set);
    debug["metadata"]["ownerReferences"] = Value::Null;
    server.put(&format!("{PODS}/chat-debug"), debug);
    seconds(60).await;
    assert_eq!(server.take_writes(), [""; 0]);
    assert_eq!(status_nodes(&server), ["chat-one", "chat-two"]);
    assert_eq!(condition(&server, "chat", "Ready")["status"], "True");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_is_made_anew_takes_nothing_over_from_its_predecessor() {
    let server = with_cluster();
    let (operator, _) = with_two_nodes(&server).await;
    assert_eq!(condition(&server, "chat", "Ready")["status"], "True");
    let key = server.get(SECRET).unwrap()["data"].take();
    // The garbage collector takes its time.
    let left: Vec<_> = [SETS, PODS].iter().flat_map(|of| server.below(of)).collect();
    server.delete(&format!("{CLUSTERS}/chat"));
    seconds(1).await;
    let mut anew = cluster("chat");
    anew["spec"]["replicas"] = json!(2);
    server.put(&format!("{CLUSTERS}/chat"), anew);
    seconds(5).await;
    assert_ne!(condition(&server, "chat", "Degraded")["status"], "True", "it is on its way");
    seconds(25).await;
    let degraded = condition(&server, "chat", "Degraded");
    assert_eq!(degraded["reason"], "ChildLeaving", "the garbage collector is late");
    assert!(degraded["message"].as_str().unwrap().contains("that was deleted"), "{degraded}");
    assert_eq!(told(&server, "NotOurs"), [""; 0], "it is of no other owner");
    assert_eq!(status_nodes(&server), [""; 0]);
    assert_eq!(condition(&server, "chat", "Ready")["status"], "False");
    let same: Vec<_> = [SETS, PODS].iter().flat_map(|of| server.below(of)).collect();
    assert_eq!(left, same);
    assert_eq!(server.get(SECRET).unwrap()["data"], key);

    let all = ["services", "secrets", "configmaps", "serviceaccounts"]
        .map(|kind| format!("/api/v1/namespaces/test/{kind}"));
    let policies = "/apis/networking.k8s.io/v1/namespaces/test/networkpolicies".to_owned();
    let budgets = "/apis/policy/v1/namespaces/test/poddisruptionbudgets".to_owned();
    for of in all.into_iter().chain([SETS.to_owned(), PODS.to_owned(), policies, budgets]) {
        for object in server.below(&of) {
            server.delete(&format!("{of}/{}", object["metadata"]["name"].as_str().unwrap()));
        }
    }
    seconds(30).await;
    assert_ne!(server.get(SECRET).unwrap()["data"], key);
    assert_eq!(server.below(SETS).len(), 1);
    let edited = told(&server, "ChildApplied");
    assert!(edited.iter().all(|note| !note.contains("deleted or edited")), "{edited:?}");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_was_paused_a_moment_ago_loses_no_pod() {
    let server = with_cluster();
    let (operator, _) = with_two_nodes(&server).await;
    let path = format!("{CLUSTERS}/chat");
    server.edit(&path, &json!({"spec": {"replicas": 1}}));
    server.silence(CLUSTERS);
    server.edit(&path, &json!({"spec": {"paused": true}}));
    server.take_writes();
    seconds(30).await;
    let touched: Vec<_> =
        server.take_writes().into_iter().filter(|write| !write.contains("/fanoutclusters/")).collect();
    assert_eq!(touched, [""; 0]);
    server.edit(&path, &json!({"spec": {"paused": false}}));
    seconds(30).await;
    assert!(server.take_writes().iter().any(|write| write.contains("/pods/")), "undone, it goes on");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn each_disruptive_write_names_the_object_that_was_seen() {
    let server = with_cluster();
    let (operator, _) = with_two_nodes(&server).await;
    server.take_sent();
    for replicas in [1, 3] {
        server.edit(&format!("{CLUSTERS}/chat"), &json!({"spec": {"replicas": replicas}}));
        seconds(5).await;
    }
    let disruptive = |path: &str| path.contains("/pods/") || path.contains("/replicasets/");
    let sent: Vec<_> = server.take_sent().into_iter().filter(|(_, path, _)| disruptive(path)).collect();
    assert!(sent.len() >= 3, "retired, restored and resized: {sent:?}");
    for (_, path, body) in &sent {
        let seen = &body["metadata"];
        assert!(seen["uid"].is_string() && seen["resourceVersion"].is_string(), "{path}: {body}");
    }
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_never_answers_holds_a_cluster_up_for_seconds() {
    let server = with_cluster();
    server.hang(Method::PATCH, "/services/chat-api");
    let operator = Operator::start(&server).await;
    seconds(10).await;
    assert_eq!(server.get("/api/v1/namespaces/test/services/chat-api"), None);
    seconds(30).await;
    assert!(server.get("/api/v1/namespaces/test/services/chat-api").is_some());
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn each_missing_secret_has_an_event_of_its_own_and_none_is_repeated() {
    let server = ApiServer::default();
    let mut needy = cluster("chat");
    let key = json!({"algorithm": "HS256", "secretKeyRef": {"name": "tokens", "key": "hs"}});
    needy["spec"]["auth"] = json!({"apiKeysSecretRef": {"name": "keys"}, "jwt": {"keys": [key]}});
    server.put(&format!("{CLUSTERS}/chat"), needy);
    let secret = |name: &str, key: &str| {
        let values = json!({key: "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA=="});
        server.put(
            &format!("/api/v1/namespaces/test/secrets/{name}"),
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": values}),
        );
    };
    let named = || {
        let notes = told(&server, "SecretMissing");
        ["keys", "tokens"]
            .map(|name| notes.iter().filter(|note| note.contains(&format!("test/{name},"))).count())
    };
    let operator = Operator::start(&server).await;
    seconds(5).await;
    assert_eq!(named(), [1, 1]);
    secret("keys", "a");
    seconds(5).await;
    nothing_is_written_for_an_hour(&server).await;
    assert_eq!(named(), [1, 1], "what lasts is not told again");
    secret("tokens", "other");
    seconds(5).await;
    let lacking = told(&server, "SecretKeyMissing");
    assert!(lacking.len() == 1 && lacking[0].contains("`hs`"), "{lacking:?}");
    operator.stop().await;

    let again = Operator::start(&server).await;
    seconds(5).await;
    assert_eq!(told(&server, "SecretKeyMissing").len(), 1, "the operator before this one told it");
    secret("tokens", "hs");
    seconds(5).await;
    assert_eq!(condition(&server, "chat", "Degraded")["status"], "False");
    again.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_conflict_is_tried_again_at_once() {
    let server = with_cluster();
    server.fail(Method::PATCH, "/replicasets/", 409, 2);
    let operator = Operator::start(&server).await;
    seconds(2).await;
    let sets = server.take_writes().iter().filter(|write| write.contains("/replicasets/")).count();
    assert_eq!(sets, 1, "refused requests are not counted as writes");
    assert_eq!(operator.metric("fanout_operator_reconciles_total{outcome=\"Conflict\"}"), "2");
    assert_ne!(condition(&server, "chat", "Degraded")["status"], "True", "a conflict is nobody's business");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_fails_is_tried_again_later_and_said_so() {
    let server = with_cluster();
    server.fail(Method::PATCH, "/services/chat-api", 500, 6);
    let operator = Operator::start(&server).await;
    seconds(5).await;
    let degraded = condition(&server, "chat", "Degraded");
    assert_eq!((&degraded["status"], &degraded["reason"]), (&json!("True"), &json!("ApplyFailed")));
    seconds(600).await;
    assert!(server.get("/api/v1/namespaces/test/services/chat-api").is_some());
    assert_eq!(condition(&server, "chat", "Degraded")["status"], "False");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_too_busy_for_a_moment_is_nobodys_business() {
    let server = with_cluster();
    let (operator, _) = with_two_nodes(&server).await;
    for (path, method, collection) in
        [(SERVICE, Method::PATCH, SERVICE), (SECRET, Method::POST, "/api/v1/namespaces/test/secrets")]
    {
        for status in [429, 503, 504] {
            server.fail(method.clone(), collection, status, 1);
            server.delete(path);
            for _ in 0..50 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                assert_eq!(condition(&server, "chat", "Ready")["status"], "True", "{status} {path}");
            }
            assert!(server.get(path).is_some(), "{status} {path}");
        }
        server.fail(method, collection, 503, usize::MAX);
        server.delete(path);
        seconds(60).await;
        assert_eq!(condition(&server, "chat", "Degraded")["reason"], "ApplyFailed", "it lasts");
        assert_eq!(condition(&server, "chat", "Ready")["status"], "False");
        server.recover();
        seconds(300).await;
        assert_eq!(condition(&server, "chat", "Ready")["status"], "True");
    }
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn in_a_namespace_that_is_being_deleted_nothing_is_told_and_hardly_anything_tried() {
    let server = with_cluster();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    server.take_writes();
    server.terminate();
    server.delete(SERVICE);
    seconds(5).await;
    assert!(server.take_writes().iter().all(|write| *write == format!("PATCH {SERVICE}")), "nothing is told");
    seconds(300).await;
    let again = server.take_writes().len();
    assert!(again <= 1, "looked at {again} times in five minutes");
    assert_ne!(condition(&server, "chat", "Degraded")["status"], "True");
    assert_eq!(operator.metric("fanout_operator_reconciles_total{outcome=\"Waiting\"}"), "");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_object_that_cannot_be_read_is_told_and_leaves_others_alone() {
    let server = with_cluster();
    let mut bad = cluster("bad");
    bad["spec"]["replicas"] = json!("three");
    server.put(&format!("{CLUSTERS}/bad"), bad);
    let operator = Operator::start(&server).await;
    seconds(5).await;
    assert!(server.get(SERVICE).is_some());
    let degraded = condition(&server, "bad", "Degraded");
    assert_eq!((&degraded["status"], &degraded["reason"]), (&json!("True"), &json!("InvalidSpec")));
    server.take_writes();
    seconds(3_600).await;
    assert_eq!(server.take_writes(), [""; 0]);
    server.put(&format!("{CLUSTERS}/bad"), cluster("bad"));
    seconds(5).await;
    assert!(server.get("/api/v1/namespaces/test/services/bad").is_some());
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_child_of_somebody_else_is_left_alone_until_its_name_is_free() {
    let server = with_cluster();
    let theirs =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "chat"}, "spec": {"ports": []}});
    server.put(SERVICE, theirs);
    let before = server.get(SERVICE);
    let operator = Operator::start(&server).await;
    seconds(60).await;
    assert_eq!(server.get(SERVICE), before);
    assert_eq!(condition(&server, "chat", "Degraded")["reason"], "NotOurs");
    server.delete(SERVICE);
    seconds(15).await;
    assert_eq!(condition(&server, "chat", "Degraded")["status"], "False");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_secret_touches_nothing_and_heals_by_itself() {
    let server = ApiServer::default();
    let mut needy = cluster("chat");
    needy["spec"]["auth"] = json!({"apiKeysSecretRef": {"name": "keys"}});
    server.put(&format!("{CLUSTERS}/chat"), needy);
    let operator = Operator::start(&server).await;
    seconds(5).await;
    assert!(
        server
            .take_writes()
            .iter()
            .all(|write| write.contains("/fanoutclusters/") || write.contains("/events"))
    );
    let degraded = condition(&server, "chat", "Degraded");
    assert_eq!(degraded["reason"], "SecretMissing");
    assert!(degraded["message"].as_str().unwrap().contains("keys"), "{degraded}");
    let keys = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "data": {"a": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA=="}});
    server.put("/api/v1/namespaces/test/secrets/keys", keys);
    seconds(5).await;
    assert!(server.get(SERVICE).is_some());
    assert_eq!(condition(&server, "chat", "Degraded")["status"], "False");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_works_and_should_be_otherwise_is_advised_once_and_stands_in_nobodys_way() {
    let server = ApiServer::default();
    let mut old = cluster("chat");
    old["spec"]["redis"] = json!({"memory": {}, "channelPrefix": "pfx:team"});
    old["spec"]["namespaces"] = json!([{"name": "default", "slowConsumer": {"maxLagBytes": 1024}}]);
    server.put(&format!("{CLUSTERS}/chat"), old);
    let operator = Operator::start(&server).await;
    seconds(5).await;
    assert!(server.get(SERVICE).is_some());
    let boot = server.below("/api/v1/namespaces/test/configmaps").into_iter();
    let boot: String = boot.map(|map| map["data"].to_string()).collect();
    assert!(boot.contains("memory"), "{boot}");
    let advisory = condition(&server, "chat", "Advisory");
    assert_eq!(
        (&advisory["status"], &advisory["reason"]),
        (&json!("True"), &json!("AmbiguousChannelPrefix"))
    );
    let message = advisory["message"].as_str().unwrap();
    assert!(message.contains("a FanoutCluster with the prefix `pfx`"), "{message}");
    assert!(message.contains("spec.namespaces[0].slowConsumer.maxLagBytes: 1024"), "{message}");
    assert_eq!(condition(&server, "chat", "Degraded")["status"], "False");
    assert_eq!(told(&server, "AmbiguousChannelPrefix").len(), 1);
    assert_eq!(told(&server, "ContradictingBounds").len(), 1);
    nothing_is_written_for_an_hour(&server).await;
    operator.stop().await;

    let again = Operator::start(&server).await;
    seconds(5).await;
    nothing_is_written_for_an_hour(&server).await;
    assert_eq!(told(&server, "AmbiguousChannelPrefix").len(), 1, "the operator before this one told it");
    let better =
        json!({"metadata": {"generation": 2}, "spec": {"redis": {"channelPrefix": "pfx"}, "namespaces": []}});
    server.edit(&format!("{CLUSTERS}/chat"), &better);
    seconds(5).await;
    assert_eq!(condition(&server, "chat", "Advisory")["status"], "False");
    again.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_paused_cluster_is_reported_and_not_touched() {
    let server = ApiServer::default();
    let mut paused = cluster("chat");
    paused["spec"]["paused"] = json!(true);
    server.put(&format!("{CLUSTERS}/chat"), paused);
    let operator = Operator::start(&server).await;
    seconds(60).await;
    assert_eq!(server.get(SERVICE), None);
    assert_eq!(condition(&server, "chat", "Paused")["status"], "True");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn without_the_lease_nothing_is_written() {
    let server = with_cluster();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    // Somebody takes the lease by force; the operator notices at its next renewal.
    server.edit(LEASE, &json!({"spec": {"holderIdentity": "two"}}));
    seconds(3).await;
    server.take_writes();
    server.delete(SERVICE);
    seconds(60).await;
    assert_eq!(server.take_writes(), [""; 0]);
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn of_two_candidates_one_leads_and_the_other_waits() {
    let server = ApiServer::default();
    let (mut one, mut two) = (lease(&server, "one"), lease(&server, "two"));
    one.acquire().await;
    let keep = tokio::spawn(async move { drop(one.keep().await) });
    let waited = tokio::time::timeout(Duration::from_secs(600), two.acquire()).await;
    assert!(waited.is_err(), "the lease is held and renewed");
    assert!(!two.claim().holds());
    keep.abort();
    // The holder is gone as by a crash: its record does not change any more.
    let begun = tokio::time::Instant::now();
    two.acquire().await;
    assert!(
        (Duration::from_secs(13)..Duration::from_secs(18)).contains(&begun.elapsed()),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_released_lease_is_taken_at_the_next_attempt() {
    let server = ApiServer::default();
    let (mut one, mut two) = (lease(&server, "one"), lease(&server, "two"));
    one.acquire().await;
    let waiting = tokio::spawn(async move {
        two.acquire().await;
        two
    });
    seconds(5).await;
    let begun = tokio::time::Instant::now();
    one.release().await;
    let two = waiting.await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(two.claim().holds());
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_cannot_renew_gives_up_before_others_take_over() {
    let server = ApiServer::default();
    let (mut one, mut two) = (lease(&server, "one"), lease(&server, "two"));
    one.acquire().await;
    let claim = one.claim();
    let waiting = tokio::spawn(async move { two.acquire().await });
    seconds(1).await;
    server.fail(Method::PUT, "/leases/", 500, 5);
    let begun = tokio::time::Instant::now();
    let lost = one.keep().await;
    assert!(matches!(lost, Lost::NotRenewed(_)), "{lost}");
    assert!(begun.elapsed() < Duration::from_secs(11), "{:?}", begun.elapsed());
    assert!(!claim.holds());
    assert!(!waiting.is_finished(), "nobody else leads yet");
    waiting.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_claim_runs_out_by_itself() {
    let server = ApiServer::default();
    let mut one = lease(&server, "one");
    one.acquire().await;
    let claim = one.claim();
    seconds(9).await;
    assert!(claim.holds());
    seconds(2).await;
    assert!(!claim.holds(), "it was not renewed");
}

/// What the plan asks for of the cluster's only ReplicaSet.
fn asked_for(server: &ApiServer) -> Value {
    server.below(SETS).remove(0)["spec"]["replicas"].clone()
}

fn set_path(server: &ApiServer) -> String {
    format!("{SETS}/{}", server.below(SETS).remove(0)["metadata"]["name"].as_str().unwrap())
}

fn scale(server: &ApiServer, replicas: u32) {
    server.edit(&format!("{CLUSTERS}/chat"), &json!({"spec": {"replicas": replicas}}));
}

#[tokio::test(start_paused = true)]
async fn an_annotation_that_makes_no_sense_is_put_right_and_harms_nobody() {
    let server = with_managed_redis();
    server.put(&format!("{CLUSTERS}/other"), cluster("other"));
    let operator = Operator::start(&server).await;
    seconds(5).await;
    let path = server.below(SETS).iter().find_map(|set| {
        let name = set["metadata"]["name"].as_str().unwrap();
        name.starts_with("chat-").then(|| format!("{SETS}/{name}"))
    });
    let path = path.unwrap();
    let before = server.get(&path).unwrap();
    for text in [
        r#"{"replicaSet":"x","bootConfigMap":null}"#,
        r#"{"replicaSet":null,"bootConfigMap":null}"#,
        r#"{"replicaSet":{"kind":"ReplicaSet","metadata":"x"},"bootConfigMap":[]}"#,
        "[]",
        "",
    ] {
        server.edit(&path, &json!({"metadata": {"annotations": {"fanout.dev/rendered": text}}}));
        // More than a minute: this is no dispute.
        seconds(61).await;
        let after = server.get(&path).unwrap();
        assert_eq!(after["spec"], before["spec"], "{text}");
        assert_ne!(after["metadata"]["annotations"]["fanout.dev/rendered"], text);
    }
    for annotation in ["fanout.dev/revision-spec", "fanout.dev/applied"] {
        server.edit(&path, &json!({"metadata": {"annotations": {annotation: "[1, {}]"}}}));
        seconds(2).await;
        assert_eq!(server.get(&path).unwrap()["spec"], before["spec"]);
    }
    server.delete("/api/v1/namespaces/test/services/other");
    seconds(1).await;
    assert!(server.get("/api/v1/namespaces/test/services/other").is_some());
    assert_eq!(operator.metric("fanout_operator_reconciles_total{outcome=\"Panic\"}"), "");
    operator.stop().await;
}

/// A cluster of two nodes whose revision has a name that an operator of before gave it.
async fn with_a_revision_of_another_name(server: &ApiServer) -> Operator {
    with_a_revision_of_before(server, |_| {}).await
}

/// The same, where that operator stored another part of the spec.
async fn with_a_revision_of_before(server: &ApiServer, edit: impl Fn(&mut Value)) -> Operator {
    scale(server, 2);
    let first = Operator::start(server).await;
    seconds(5).await;
    first.stop().await;
    let (path, set) = (set_path(server), server.below(SETS).remove(0));
    let revision = set["metadata"]["labels"]["fanout.dev/revision"].as_str().unwrap();
    let mut set: Value = serde_json::from_str(&set.to_string().replace(revision, "0123456789")).unwrap();
    server.delete(&path);
    set["metadata"]["uid"] = json!("older");
    let parsed = |text: &Value| serde_json::from_str::<Value>(text.as_str().unwrap()).unwrap();
    let annotations = &mut set["metadata"]["annotations"];
    let (mut rendered, mut spec) =
        (parsed(&annotations["fanout.dev/rendered"]), parsed(&annotations["fanout.dev/revision-spec"]));
    edit(&mut spec);
    annotations["fanout.dev/revision-spec"] = spec.to_string().into();
    rendered["replicaSet"]["metadata"]["annotations"]["fanout.dev/revision-spec"] = spec.to_string().into();
    annotations["fanout.dev/rendered"] = rendered.to_string().into();
    server.put(&format!("{SETS}/chat-0123456789"), set.clone());
    for name in ["chat-one", "chat-two"] {
        let labels = &set["spec"]["template"]["metadata"]["labels"];
        server.put(&format!("{PODS}/{name}"), ready_pod(name, labels, &set));
    }
    let operator = Operator::start(server).await;
    seconds(5).await;
    operator
}

#[tokio::test(start_paused = true)]
async fn a_revision_of_another_name_that_lost_a_label_or_an_annotation_is_what_it_was() {
    let server = with_cluster();
    let operator = with_a_revision_of_another_name(&server).await;
    let before = server.get(&set_path(&server)).unwrap();
    for lost in [
        json!({"annotations": {"fanout.dev/revision-spec": null}}),
        json!({"annotations": {"fanout.dev/revision-spec": "{}"}}),
        json!({"annotations": {"fanout.dev/rendered": null}}),
        json!({"labels": {"fanout.dev/revision": null}}),
        json!({"labels": {"fanout.dev/revision": null}, "annotations": {"fanout.dev/rendered": null}}),
        json!({"labels": {"fanout.dev/revision": "x"}, "annotations": {"fanout.dev/rendered": "x"}}),
    ] {
        server.edit(&set_path(&server), &json!({ "metadata": lost }));
        // More than a minute: this is no dispute.
        seconds(61).await;
        let sets = server.below(SETS);
        assert_eq!(sets.len(), 1, "{lost}: {sets:#?}");
        assert_eq!(sets[0]["metadata"]["labels"], before["metadata"]["labels"], "{lost}");
        let spec = "fanout.dev/revision-spec";
        assert_eq!(sets[0]["metadata"]["annotations"][spec], before["metadata"]["annotations"][spec]);
        assert_eq!(sets[0]["spec"], before["spec"], "{lost}");
    }
    let all = json!({"fanout.dev/revision-spec": null, "fanout.dev/rendered": null});
    server.edit(&set_path(&server), &json!({"metadata": {"annotations": all}}));
    seconds(61).await;
    assert_eq!(server.below(SETS).len(), 1, "the status names it");
    server.edit(
        &format!("{CLUSTERS}/chat"),
        &json!({"metadata": {"generation": 2}, "spec": {"version": "9.9.9"}}),
    );
    seconds(5).await;
    assert_eq!(server.below(SETS).len(), 2, "and of another spec it says nothing");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stored_revision_that_cannot_be_applied_does_not_stop_scaling() {
    let server = with_cluster();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    let path = set_path(&server);
    let before = server.get(&path).unwrap();
    let stored = before["metadata"]["annotations"]["fanout.dev/rendered"].as_str().unwrap();
    let edits: [fn(&mut Value); 4] = [
        |stored| stored["replicaSet"]["spec"]["template"]["spec"]["containers"][0]["name"] = json!(""),
        |stored| stored["replicaSet"]["spec"]["template"]["spec"]["containers"] = json!([5]),
        |stored| stored["replicaSet"]["spec"]["template"]["metadata"] = json!("x"),
        |stored| stored["bootConfigMap"]["data"] = json!([1]),
    ];
    for (at, edit) in edits.into_iter().enumerate() {
        let mut stored: Value = serde_json::from_str(stored).unwrap();
        edit(&mut stored);
        let stored = json!({"fanout.dev/rendered": stored.to_string()});
        server.edit(&path, &json!({"metadata": {"annotations": stored}}));
        let replicas = u32::try_from(at).unwrap() + 2;
        scale(&server, replicas);
        seconds(61).await;
        assert_eq!(asked_for(&server), replicas, "{stored}");
        assert_eq!(condition(&server, "chat", "Degraded")["status"], "False", "{stored}");
        assert_eq!(server.get(&path).unwrap()["spec"]["template"], before["spec"]["template"]);
    }
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_repair_that_a_policy_denies_is_not_taken_for_a_form_that_cannot_be() {
    let server = with_cluster();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    let path = set_path(&server);
    let stored = || server.get(&path).unwrap()["metadata"]["annotations"]["fanout.dev/rendered"].clone();
    let before = stored();
    let message = "replicasets.apps \"chat\" is forbidden: ValidatingAdmissionPolicy 'frozen' with binding 'frozen' denied request: templates are frozen";
    let causes = json!([{"message": message}]);
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 422, "reason": "Invalid", "message": message, "details": {"causes": causes}});
    // A try is an apply and, where that is refused, a patch.
    server.refuse(Method::PATCH, &path, 422, status, 8);
    let mut template = server.get(&path).unwrap()["spec"]["template"].take();
    template["spec"]["containers"][0]["image"] = json!("theirs");
    server.edit(&path, &json!({"spec": {"template": template}}));
    for _ in 0..60 {
        seconds(1).await;
        // Something else wakes the operator all the time.
        server.edit(SERVICE, &json!({"metadata": {"labels": {"theirs": "x"}}}));
    }
    assert_eq!(stored(), before, "what was edited is not what the operator wrote");
    let degraded = condition(&server, "chat", "Degraded");
    assert!(degraded["message"].as_str().unwrap().contains("templates are frozen"), "{degraded}");
    let image = server.get(&path).unwrap()["spec"]["template"]["spec"]["containers"][0]["image"].take();
    assert_eq!(image, "theirs", "another try would have gone through");
    seconds(120).await;
    let image = server.get(&path).unwrap()["spec"]["template"]["spec"]["containers"][0]["image"].take();
    assert_ne!(image, "theirs");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_stored_of_a_redis_makes_neither_another_pod_nor_a_second_one() {
    let server = with_managed_redis();
    let first = Operator::start(&server).await;
    seconds(5).await;
    first.stop().await;
    let before = server.get(REDIS).unwrap();
    let operator = newer_operator(&server).await;
    seconds(5).await;
    let rendered = before["metadata"]["annotations"]["fanout.dev/rendered"].as_str().unwrap();
    let edited = |place: &str, value: Value| {
        let mut stored: Value = serde_json::from_str(rendered).unwrap();
        let (parent, field) = place.rsplit_once('/').unwrap();
        stored.pointer_mut(parent).unwrap()[field] = value;
        json!({"fanout.dev/rendered": stored.to_string()})
    };
    let spec = |text: &str| json!({"fanout.dev/redis-spec": text});
    for annotations in [
        spec("{}"),
        spec("[]"),
        spec(r#"{"resources":{},"persistent":false,"pullSecrets":[],"nodeSelector":{"a":"b"}}"#),
        spec(r#"{"resources":{},"persistent":true,"pullSecrets":[]}"#),
        edited("/spec/replicas", json!(2)),
        edited("/spec/replicas", json!("two")),
        edited("/spec/template/metadata", json!("x")),
        edited("/spec/template/spec/containers/0/name", json!("")),
        edited("/spec/selector", json!({"matchLabels": {"a": "b"}})),
    ] {
        server.edit(REDIS, &json!({"metadata": {"annotations": annotations}}));
        seconds(61).await;
        let live = server.get(REDIS).unwrap();
        assert_eq!(live["spec"], before["spec"], "{annotations}");
        assert_eq!(condition(&server, "chat", "Degraded")["status"], "False", "{annotations}");
        assert_eq!(told(&server, "RedisChanged"), [""; 0], "{annotations}");
    }
    // The step that moves it rests on what is stored, too.
    server.edit(REDIS, &json!({"metadata": {"annotations": edited("/spec/template/metadata", json!("x"))}}));
    server.edit(PASSWORD, &json!({"data": {"password": "bWluZQ=="}}));
    seconds(5).await;
    assert_eq!(told(&server, "RedisChanged").len(), 1);
    assert_eq!(server.get(REDIS).unwrap()["spec"]["replicas"], 1);
    assert_eq!(operator.metric("fanout_operator_reconciles_total{outcome=\"Panic\"}"), "");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_key_of_a_list_that_somebody_edited_is_taken_back() {
    let server = with_cluster();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    let before = server.get(SERVICE).unwrap()["spec"].clone();
    let mut moved = before["ports"].clone();
    moved[0]["port"] = json!(81);
    moved[0]["nodePort"] = json!(30_081);
    server.edit(SERVICE, &json!({"spec": {"ports": moved}}));
    seconds(1).await;
    assert_eq!(server.get(SERVICE).unwrap()["spec"], before);
    let told = told(&server, "ChildApplied");
    assert!(told.len() == 1 && told[0].contains("spec.ports[81/TCP]"), "{told:?}");
    assert_ne!(condition(&server, "chat", "Degraded")["status"], "True");
    nothing_is_written_for_an_hour(&server).await;
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_somebody_added_to_a_child_is_taken_back_and_told_once_it_is() {
    let server = with_managed_redis();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    let live = "/api/v1/namespaces/test/configmaps/chat-live";
    let set = set_path(&server);
    let spy = json!({"name": "spy", "image": "x"});
    let containers = |path: &str| server.get(path).unwrap()["spec"]["template"]["spec"]["containers"].clone();
    let with_spy = |path: &str| {
        let mut all = containers(path);
        all.as_array_mut().unwrap().push(spy.clone());
        json!({"spec": {"template": {"spec": {"containers": all}}}})
    };
    let with_variable = |path: &str| {
        let mut all = containers(path);
        all[0]["env"].as_array_mut().unwrap().push(json!({"name": "THEIRS", "value": "x"}));
        json!({"spec": {"template": {"spec": {"containers": all}}}})
    };
    let more_ports = {
        let mut ports =
            server.get("/api/v1/namespaces/test/services/chat-api").unwrap()["spec"]["ports"].clone();
        ports.as_array_mut().unwrap().push(json!({"name": "more", "port": 9_000}));
        json!({"spec": {"ports": ports}})
    };
    for (path, edit) in [
        (SERVICE, json!({"spec": {"selector": {"never": "matches"}}})),
        (SERVICE, json!({"spec": {"externalTrafficPolicy": "Local", "externalIPs": ["192.0.2.1"]}})),
        ("/api/v1/namespaces/test/services/chat-api", more_ports),
        (live, json!({"data": {"more.yaml": "x"}})),
        (set.as_str(), with_spy(&set)),
        (set.as_str(), with_variable(&set)),
        (set.as_str(), json!({"spec": {"template": {"spec": {"initContainers": [spy]}}}})),
        (set.as_str(), json!({"spec": {"template": {"spec": {"hostPID": true}}}})),
        (
            set.as_str(),
            json!({"spec": {"template": {"spec": {"hostIPC": true, "tolerations": [{"operator": "Exists"}]}}}}),
        ),
        (REDIS, with_spy(REDIS)),
    ] {
        let before = server.get(path).unwrap();
        let events = told(&server, "ChildApplied").len();
        server.edit(path, &edit);
        seconds(2).await;
        let after = server.get(path).unwrap();
        for part in ["spec", "data"] {
            assert_eq!(after[part], before[part], "{path} {edit}");
        }
        assert_eq!(told(&server, "ChildApplied").len(), events + 1, "{path} {edit}");
    }
    nothing_is_written_for_an_hour(&server).await;
    assert_eq!(condition(&server, "chat", "Degraded")["status"], "False");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_others_may_add_or_allocate_is_neither_written_nor_told() {
    let server = with_managed_redis();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    server.take_writes();
    let shared =
        json!({"labels": {"theirs": "x"}, "annotations": {"theirs": "x"}, "finalizers": ["theirs/x"]});
    let mut ports = server.get(SERVICE).unwrap()["spec"]["ports"].clone();
    ports[0]["nodePort"] = json!(30_080);
    let allocated = json!({"clusterIP": "10.0.0.7", "clusterIPs": ["10.0.0.7"], "healthCheckNodePort": 30_081, "ports": ports});
    server.edit(SERVICE, &json!({"metadata": shared, "spec": allocated}));
    for path in [set_path(&server).as_str(), REDIS] {
        server.edit(path, &json!({"metadata": shared, "spec": {"template": {"metadata": shared}}}));
    }
    nothing_is_written_for_an_hour(&server).await;
    assert_eq!(told(&server, "ChildApplied"), [""; 0]);
    operator.stop().await;
    let again = Operator::start(&server).await;
    nothing_is_written_for_an_hour(&server).await;
    again.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_admission_policy_has_the_last_word_and_is_reported() {
    let server = with_managed_redis();
    server.admit(|path, object| {
        if !path.contains("/replicasets/") && !path.contains("/statefulsets/") {
            return;
        }
        object["metadata"]["labels"]["policy"] = json!("x");
        let template = &mut object["spec"]["template"];
        template["metadata"]["labels"]["policy"] = json!("x");
        template["spec"]["tolerations"] = json!([{"key": "policy", "operator": "Exists"}]);
        for container in template["spec"]["containers"].as_array_mut().into_iter().flatten() {
            let env = container["env"].as_array_mut().unwrap();
            if env.iter().all(|env| env["name"] != "POLICY") {
                env.push(json!({"name": "POLICY", "value": "x"}));
            }
        }
    });
    let operator = Operator::start(&server).await;
    seconds(5).await;
    let degraded = condition(&server, "chat", "Degraded");
    assert_eq!(degraded["reason"], "RepairDisputed", "{degraded}");
    let message = degraded["message"].as_str().unwrap();
    assert!(message.contains("env[POLICY]") && message.contains("tolerations"), "{message}");
    assert_ne!(condition(&server, "chat", "Ready")["reason"], "RepairDisputed", "nodes serve all the same");
    let templates = || {
        [set_path(&server), REDIS.to_owned()]
            .map(|path| server.get(&path).unwrap()["spec"]["template"].take())
    };
    let before = templates();
    server.take_writes();
    seconds(3 * 3_600).await;
    let writes = server.take_writes();
    assert!(writes.len() <= 2 * 8, "{} writes in three hours: {writes:?}", writes.len());
    assert!(
        writes.iter().all(|write| write.contains("/replicasets/")),
        "the pod of Redis is not touched: {writes:?}"
    );
    scale(&server, 3);
    seconds(2).await;
    assert_eq!(asked_for(&server), 3);
    assert_eq!(templates(), before);
    operator.stop().await;

    server.take_writes();
    let again = Operator::start(&server).await;
    seconds(60).await;
    let writes = server.take_writes();
    assert!(!writes.iter().any(|write| write.contains("/statefulsets/")), "{writes:?}");
    assert_eq!(templates(), before);
    again.stop().await;
}

#[tokio::test(start_paused = true)]
async fn another_controller_that_insists_is_named_and_the_writes_stay_bounded() {
    let server = with_managed_redis();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    let fields = json!({"f:spec": {"f:selector": {"f:theirs": {}}, "f:type": {}}});
    let theirs = json!([{"manager": "their-controller", "operation": "Update", "fieldsV1": fields}]);
    server.take_writes();
    let mut redis = 0;
    for second in 0..3_600 {
        if server.get(SERVICE).unwrap()["spec"]["selector"]["theirs"].is_null() {
            server.edit(
                SERVICE,
                &json!({"metadata": {"managedFields": theirs}, "spec": {"selector": {"theirs": "x"}}}),
            );
        }
        let containers = &server.get(REDIS).unwrap()["spec"]["template"]["spec"]["containers"];
        if containers.as_array().unwrap().len() == 1 {
            let mut all = containers.clone();
            all.as_array_mut().unwrap().push(json!({"name": "theirs"}));
            server.edit(REDIS, &json!({"spec": {"template": {"spec": {"containers": all}}}}));
            redis += 1;
        }
        if second == 20 {
            scale(&server, 3);
        }
        seconds(1).await;
    }
    assert_eq!(asked_for(&server), 3);
    let writes = server.take_writes();
    let of = |kind: &str| writes.iter().filter(|write| write.contains(kind)).count();
    assert!(of("/services/chat") <= 2 * 9, "{} writes in an hour", of("/services/chat"));
    assert_eq!(redis, 3, "twice it was taken back, and then left");
    let degraded = condition(&server, "chat", "Degraded");
    assert_eq!(degraded["reason"], "RepairDisputed");
    let message = degraded["message"].as_str().unwrap();
    assert!(message.contains("spec.selector.theirs") && message.contains("their-controller"), "{message}");
    // It ends: the selector is taken back once more, and stays.
    server.edit(SERVICE, &json!({"spec": {"selector": {"theirs": null}}}));
    let ours = server.get(REDIS).unwrap()["spec"]["template"]["spec"]["containers"][0].clone();
    server.edit(REDIS, &json!({"spec": {"template": {"spec": {"containers": [ours]}}}}));
    seconds(5).await;
    assert_eq!(condition(&server, "chat", "Degraded")["status"], "False");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_child_stops_neither_the_others_nor_the_plan() {
    let server = with_managed_redis();
    let broken = "/services/chat-api";
    server.refuse(
        Method::PATCH,
        broken,
        422,
        api_server::invalid("Service", "spec.ports[0].port", "must be less"),
        usize::MAX,
    );
    let operator = Operator::start(&server).await;
    seconds(10).await;
    for there in [SERVICE, "/api/v1/namespaces/test/services/chat-nodes", REDIS] {
        assert!(server.get(there).is_some(), "{there}");
    }
    let degraded = condition(&server, "chat", "Degraded");
    assert_eq!(degraded["reason"], "InvalidSpec");
    let message = "spec.hub.ports: the API server refuses to apply Service chat-api: Service \"chat\" is invalid: spec.ports[0].port: must be less";
    assert_eq!(degraded["message"], message, "once, and without a dump");
    scale(&server, 3);
    seconds(2).await;
    assert_eq!(asked_for(&server), 3);
    server.delete(SERVICE);
    seconds(1).await;
    assert!(server.get(SERVICE).is_some());
    let before = operator.metric("fanout_operator_writes_total{kind=\"Service\"}").parse::<u32>().unwrap();
    seconds(3_600).await;
    let after = operator.metric("fanout_operator_writes_total{kind=\"Service\"}").parse::<u32>().unwrap();
    assert!((1..=12).contains(&(after - before)), "tried {} times in an hour", after - before);
    server.recover();
    seconds(700).await;
    assert!(server.get("/api/v1/namespaces/test/services/chat-api").is_some());
    assert_eq!(condition(&server, "chat", "Degraded")["status"], "False");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_number_of_nodes_that_is_refused_is_tried_ever_more_seldom_and_another_at_once() {
    let server = with_cluster();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    server.fail(Method::PATCH, "/replicasets/", 403, usize::MAX);
    scale(&server, 3);
    seconds(10).await;
    let tried =
        || operator.metric("fanout_operator_writes_total{kind=\"ReplicaSet\"}").parse::<u32>().unwrap();
    let before = tried();
    seconds(3_600).await;
    let times = tried() - before;
    assert!((1..=12).contains(&times), "tried {times} times in an hour");
    server.recover();
    scale(&server, 4);
    seconds(2).await;
    assert_eq!(asked_for(&server), 4);
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pull_secret_that_is_named_twice_is_in_the_pod_once() {
    let server = with_app();
    let secrets = json!({
        "image": {"pullSecrets": [{"name": "one"}, {"name": "one"}]},
        "podTemplate": {"spec": {"imagePullSecrets": [{"name": "two"}, {"name": "one"}]}},
    });
    server.edit(&format!("{CLUSTERS}/chat"), &json!({"spec": secrets}));
    let operator = Operator::start(&server).await;
    seconds(5).await;
    let set = server.below(SETS).remove(0);
    let named = &set["spec"]["template"]["spec"]["imagePullSecrets"];
    assert_eq!(*named, json!([{"name": "one"}, {"name": "two"}]));
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn every_child_that_is_refused_is_named() {
    let server = with_cluster();
    for child in ["/services/chat-api", "/serviceaccounts/chat"] {
        server.fail(Method::PATCH, child, 403, usize::MAX);
    }
    let operator = Operator::start(&server).await;
    seconds(10).await;
    let message = condition(&server, "chat", "Degraded")["message"].clone();
    let message = message.as_str().unwrap();
    assert!(message.contains("Service chat-api") && message.contains("ServiceAccount chat"), "{message}");
    assert_eq!(told(&server, "ApplyFailed").len(), 2);
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_cannot_grow_is_told_and_a_larger_one_is_taken_as_it_is() {
    let server = with_managed_redis();
    let of = |size: &str| json!({"spec": {"redis": {"managed": {"storage": {"size": size}}}}});
    server.edit(&format!("{CLUSTERS}/chat"), &of("1Gi"));
    let claim = "/api/v1/namespaces/test/persistentvolumeclaims/chat-redis";
    let kept = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": "chat-redis", "labels": {"fanout.dev/cluster": "chat"}},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}},
    });
    server.put(claim, kept);
    let operator = Operator::start(&server).await;
    seconds(5).await;
    let size = || server.get(claim).unwrap()["spec"]["resources"]["requests"]["storage"].clone();
    assert_eq!(size(), "2Gi");
    assert_ne!(condition(&server, "chat", "Degraded")["status"], "True");

    let no = "persistentvolumeclaims \"chat-redis\" is forbidden: only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden", "message": no});
    server.refuse(Method::PATCH, "/persistentvolumeclaims/", 403, status, usize::MAX);
    server.edit(&format!("{CLUSTERS}/chat"), &of("4Gi"));
    seconds(5).await;
    let degraded = condition(&server, "chat", "Degraded");
    assert_eq!(degraded["reason"], "ApplyFailed");
    let message = degraded["message"].as_str().unwrap();
    assert!(
        message.starts_with("spec.redis.managed.storage") && message.matches(no).count() == 1,
        "{message}"
    );
    scale(&server, 2);
    seconds(2).await;
    assert_eq!(asked_for(&server), 2);
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_child_without_an_owner_is_named_and_taken_over_only_when_it_is_handed_over() {
    let server = with_cluster();
    for (path, kind, name) in [(SERVICE, "Service", "chat"), (SECRET, "Secret", "chat-api-key")] {
        let object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "labels": {"fanout.dev/cluster": "chat"}}});
        server.put(path, object);
    }
    let before = [SERVICE, SECRET].map(|path| server.get(path));
    let operator = Operator::start(&server).await;
    seconds(60).await;
    assert_eq!([SERVICE, SECRET].map(|path| server.get(path)), before);
    let message = condition(&server, "chat", "Degraded")["message"].clone();
    let message = message.as_str().unwrap();
    for told in ["Service chat is there and has no owner", "Secret chat-api-key", "fanout.dev/adopt"] {
        assert!(message.contains(told), "{message}");
    }
    for (cluster, path) in [("another", SERVICE), ("another", SECRET)] {
        server.edit(path, &json!({"metadata": {"annotations": {"fanout.dev/adopt": cluster}}}));
    }
    seconds(60).await;
    assert_eq!(condition(&server, "chat", "Degraded")["reason"], "NotOurs", "it was handed to another");
    for path in [SERVICE, SECRET] {
        server.edit(path, &json!({"metadata": {"annotations": {"fanout.dev/adopt": "chat"}}}));
    }
    seconds(15).await;
    let uid = server.get(&format!("{CLUSTERS}/chat")).unwrap()["metadata"]["uid"].clone();
    for path in [SERVICE, SECRET] {
        assert_eq!(server.get(path).unwrap()["metadata"]["ownerReferences"][0]["uid"], uid);
    }
    assert!(server.get(SECRET).unwrap()["data"]["api-key"].is_string());
    assert_eq!(condition(&server, "chat", "Degraded")["status"], "False");
    nothing_is_written_for_an_hour(&server).await;
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn two_clusters_that_want_one_name_say_whose_it_is() {
    let server = with_managed_redis();
    server.put(&format!("{CLUSTERS}/chat-redis"), cluster("chat-redis"));
    let operator = Operator::start(&server).await;
    seconds(15).await;
    let of =
        |name: &str| condition(&server, name, "Degraded")["message"].as_str().unwrap_or_default().to_owned();
    let both = [of("chat"), of("chat-redis")];
    let owner =
        server.get("/api/v1/namespaces/test/services/chat-redis").unwrap()["metadata"]["ownerReferences"][0]
            ["name"]
            .clone();
    let loser = usize::from(owner == "chat");
    let whose = format!("Service chat-redis belongs to FanoutCluster {}:", owner.as_str().unwrap());
    assert!(both[loser].contains(&whose), "{both:?}");
    // The one that does not get the name has all else.
    assert!(
        server.below(SETS).len() == 2
            && server.get("/api/v1/namespaces/test/services/chat-redis-api").is_some()
    );
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_finalizer_of_somebody_else_does_not_end_repair() {
    let server = with_cluster();
    let operator = Operator::start(&server).await;
    seconds(5).await;
    let leaves =
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["theirs/x"]}});
    server.edit(SERVICE, &leaves);
    server.edit(SERVICE, &json!({"spec": {"selector": {"fanout.dev/serving": "no"}}}));
    seconds(1).await;
    assert_eq!(server.get(SERVICE).unwrap()["spec"]["selector"]["fanout.dev/serving"], "true");
    let degraded = condition(&server, "chat", "Degraded");
    assert_eq!(degraded["reason"], "ChildLeaving");
    assert!(degraded["message"].as_str().unwrap().contains("theirs/x"), "{degraded}");
    server.delete(SERVICE);
    seconds(2).await;
    assert!(server.get(SERVICE).unwrap()["metadata"]["deletionTimestamp"].is_null());
    assert_eq!(condition(&server, "chat", "Degraded")["status"], "False");

    server.edit(&format!("{CLUSTERS}/chat"), &leaves);
    server.delete(SERVICE);
    seconds(1).await;
    assert!(server.get(SERVICE).is_some(), "the cluster serves as long as it is there");
    scale(&server, 3);
    seconds(5).await;
    assert_eq!(asked_for(&server), 3, "and is scaled");
    nothing_is_written_for_an_hour(&server).await;
    server.edit(&format!("{CLUSTERS}/chat"), &json!({"metadata": {"finalizers": ["foregroundDeletion"]}}));
    server.delete(SERVICE);
    seconds(60).await;
    assert!(server.get(SERVICE).is_none(), "Kubernetes is removing it");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_cannot_be_read_is_told_and_one_that_was_read_before_counts_as_it_was() {
    let server = ApiServer::default();
    let mut needy = cluster("chat");
    needy["spec"]["auth"] = json!({"apiKeysSecretRef": {"name": "keys"}});
    server.put(&format!("{CLUSTERS}/chat"), needy);
    let path = "/api/v1/namespaces/test/secrets/keys";
    let keys = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "data": {"a": "c2VjcmV0"}});
    server.put(path, keys);
    server.fail(Method::GET, path, 403, usize::MAX);
    let operator = Operator::start(&server).await;
    seconds(5).await;
    let degraded = condition(&server, "chat", "Degraded");
    assert_eq!(degraded["reason"], "ApplyFailed");
    assert_eq!(degraded["message"], "the API server refuses to read Secret keys: as the test wants it");
    assert_eq!(told(&server, "ApplyFailed").len(), 1);
    nothing_is_written_for_an_hour(&server).await;
    server.recover();
    seconds(30).await;
    assert!(server.get(SERVICE).is_some());
    assert_eq!(condition(&server, "chat", "Degraded")["status"], "False");

    server.fail(Method::GET, path, 403, usize::MAX);
    server.edit(path, &json!({"data": {"b": "c2VjcmV0"}}));
    scale(&server, 3);
    seconds(5).await;
    assert_eq!(asked_for(&server), 3);
    assert_eq!(condition(&server, "chat", "Degraded")["status"], "False");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_replica_set_that_lost_its_label_is_still_the_clusters() {
    let server = with_cluster();
    let (operator, set) = with_two_nodes(&server).await;
    let path = set_path(&server);
    let boot = format!("/api/v1/namespaces/test/configmaps/{}", set["metadata"]["name"].as_str().unwrap());
    let stripped = json!({"metadata": {"labels": {"fanout.dev/cluster": null}}});
    let holds = |case: &str| {
        let live = server.get(&path).unwrap();
        assert_eq!(live["metadata"]["labels"]["fanout.dev/cluster"], "chat", "{case}");
        assert_eq!(live["spec"], set["spec"], "{case}");
        assert_eq!(live["metadata"]["annotations"], set["metadata"]["annotations"], "{case}");
        assert_eq!(server.below(SETS).len(), 1, "{case}");
    };
    let deleted = |writes: Vec<String>| writes.into_iter().find(|write| write.contains("DELETE"));
    server.take_writes();
    server.edit(&path, &stripped);
    seconds(5).await;
    holds("it was seen");
    assert_eq!(status_nodes(&server), ["chat-one", "chat-two"]);
    assert_eq!(deleted(server.take_writes()), None, "nor is its boot document an orphan");
    operator.stop().await;

    server.edit(&path, &stripped);
    let newer = newer_operator(&server).await;
    seconds(60).await;
    holds("it was lost before the operator began");
    assert_eq!(status_nodes(&server), ["chat-one", "chat-two"]);
    assert_eq!(deleted(server.take_writes()), None);
    assert!(server.get(&boot).is_some());
    newer.stop().await;

    for pod in ["chat-one", "chat-two"] {
        server.delete(&format!("{PODS}/{pod}"));
    }
    server.edit(&path, &stripped);
    let newer = newer_operator(&server).await;
    seconds(60).await;
    holds("it has no pods that name it");
    newer.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_no_longer_controls_its_child_controls_it_again() {
    let server = with_managed_redis();
    let (operator, set) = with_two_nodes(&server).await;
    let children = [set_path(&server), REDIS.to_owned(), SERVICE.to_owned(), SECRET.to_owned()];
    let specs = || children.clone().map(|path| server.get(&path).unwrap()["spec"].take());
    let before = specs();
    for path in &children {
        let mut owners = server.get(path).unwrap()["metadata"]["ownerReferences"].take();
        owners[0]["controller"] = json!(false);
        server.edit(path, &json!({"metadata": {"ownerReferences": owners}}));
    }
    seconds(5).await;
    for path in &children {
        let owners = server.get(path).unwrap()["metadata"]["ownerReferences"].take();
        assert_eq!(owners.as_array().unwrap().len(), 1, "{path}: {owners}");
        assert_eq!(owners[0]["controller"], true, "{path}: {owners}");
    }
    assert_eq!(specs(), before);
    assert_eq!(told(&server, "RevisionCreated").len(), 1);
    assert_eq!(status_nodes(&server), ["chat-one", "chat-two"]);
    nothing_is_written_for_an_hour(&server).await;

    // Kubernetes knows one controller alone.
    let theirs = json!([
        {"apiVersion": "fanout.dev/v1alpha1", "kind": "FanoutCluster", "name": "chat",
            "uid": set["metadata"]["ownerReferences"][0]["uid"], "controller": false},
        {"apiVersion": "apps/v1", "kind": "Deployment", "name": "theirs", "uid": "d", "controller": true},
    ]);
    server.edit(SERVICE, &json!({"metadata": {"ownerReferences": theirs}}));
    seconds(5).await;
    let degraded = condition(&server, "chat", "Degraded");
    assert_eq!(degraded["reason"], "NotOurs");
    assert!(degraded["message"].as_str().unwrap().contains("belongs to Deployment theirs"), "{degraded}");
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_revision_from_before_the_api_key_was_counted_stands_for_the_key_that_was_found_first() {
    let server = with_app();
    let stored = |server: &ApiServer| {
        let sets = server.below(SETS);
        let texts =
            sets.iter().filter_map(|set| set["metadata"]["annotations"]["fanout.dev/revision-spec"].as_str());
        texts.map(|text| serde_json::from_str::<Value>(text).unwrap()["apiKey"].clone()).collect::<Vec<_>>()
    };
    let operator = with_a_revision_of_before(&server, |spec| spec["apiKey"] = Value::Null).await;
    let [digest] = &stored(&server)[..] else { panic!("one revision") };
    assert!(digest.is_string(), "{digest}");
    nothing_is_written_for_an_hour(&server).await;
    server.delete(SECRET);
    seconds(5).await;
    assert_eq!(server.below(SETS).len(), 2, "its containers have the key of before");
    nothing_is_written_for_an_hour(&server).await;
    operator.stop().await;
}

/// A cluster that names a Secret `keys`, of two nodes that run.
async fn with_keys(server: &ApiServer) -> (Operator, Value) {
    server.put(KEYS, json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "data": {"a": "c2VjcmV0"}}));
    server.edit(
        &format!("{CLUSTERS}/chat"),
        &json!({"spec": {"auth": {"apiKeysSecretRef": {"name": "keys"}}}}),
    );
    with_two_nodes(server).await
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_is_gone_stops_neither_repair_nor_the_plan_of_what_runs() {
    let server = with_cluster();
    let (operator, _) = with_keys(&server).await;
    server.delete(KEYS);
    seconds(5).await;
    let ready = condition(&server, "chat", "Ready");
    assert_eq!((&ready["status"], &ready["reason"]), (&json!("False"), &json!("SecretMissing")));
    server.delete(SERVICE);
    scale(&server, 3);
    seconds(5).await;
    assert!(server.get(SERVICE).is_some());
    assert_eq!(asked_for(&server), 3);
    let chat = || server.get(&format!("{CLUSTERS}/chat")).unwrap();
    let version = chat()["status"]["version"].clone();

    // A revision whose pods would wait for the Secret does not begin.
    let more = json!({"metadata": {"generation": 2}, "spec": {"version": "9.9.9", "replicas": 2}});
    server.edit(&format!("{CLUSTERS}/chat"), &more);
    seconds(5).await;
    assert_eq!(server.below(SETS).len(), 1);
    assert_eq!(asked_for(&server), 2, "but fewer nodes are fewer nodes");
    assert_eq!(chat()["status"]["version"], version);
    assert_eq!(chat()["status"]["updatedReplicas"], 2);
    assert_eq!(told(&server, "SecretMissing").len(), 1);
    nothing_is_written_for_an_hour(&server).await;
    server.put(KEYS, json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "data": {"a": "c2VjcmV0"}}));
    seconds(5).await;
    assert_eq!(server.below(SETS).len(), 2);
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_cannot_be_read_stops_neither_repair_nor_the_plan_of_what_runs() {
    for (path, status) in [(KEYS, 403), (KEYS, 500), (SECRET, 403)] {
        let server = with_app();
        let (first, _) = with_keys(&server).await;
        first.stop().await;
        server.fail(Method::GET, path, status, usize::MAX);
        server.delete(SERVICE);
        scale(&server, 3);
        let operator = Operator::start(&server).await;
        seconds(10).await;
        assert!(server.get(SERVICE).is_some(), "{path} {status}");
        assert_eq!((asked_for(&server), server.below(SETS).len()), (json!(3), 1), "{path} {status}");
        // A failure that may pass by itself is told once it has lasted.
        seconds(60).await;
        let degraded = condition(&server, "chat", "Degraded");
        assert_eq!(degraded["reason"], "ApplyFailed", "{path} {status}");
        server.edit(&format!("{CLUSTERS}/chat"), &json!({"spec": {"version": "9.9.9"}}));
        seconds(10).await;
        assert_eq!(server.below(SETS).len(), 1, "{path} {status}: whether it could start is not known");
        server.recover();
        seconds(700).await;
        assert_eq!(server.below(SETS).len(), 2, "{path} {status}");
        operator.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_has_ended_does_not_count_against_those_that_run() {
    let server = with_cluster();
    let (operator, set) = with_two_nodes(&server).await;
    let mut evicted = ready_pod("chat-gone", &set["spec"]["template"]["metadata"]["labels"], &set);
    evicted["status"] = json!({"phase": "Failed", "reason": "Evicted", "conditions": [
        {"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"},
    ], "containerStatuses": [{"name": "fanout", "image": "i", "imageID": "", "ready": false, "restartCount": 9,
        "state": {"terminated": {"exitCode": 137}}}]});
    server.put(&format!("{PODS}/chat-gone"), evicted);
    seconds(5).await;
    for (type_, status) in [("Ready", "True"), ("Degraded", "False"), ("Progressing", "False")] {
        assert_eq!(condition(&server, "chat", type_)["status"], status, "{type_}");
    }
    nothing_is_written_for_an_hour(&server).await;
    operator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_repair_that_replaces_a_pod_rests_on_a_fresh_look_and_names_what_was_seen() {
    let server = with_managed_redis();
    let (operator, _) = with_two_nodes(&server).await;
    let path = format!("{CLUSTERS}/chat");
    let edit = json!({"spec": {"template": {"spec": {"priorityClassName": "theirs"}}}});
    server.silence(CLUSTERS);
    server.edit(&path, &json!({"spec": {"paused": true}}));
    server.take_sent();
    server.edit(REDIS, &edit);
    seconds(30).await;
    let sent = |server: &ApiServer, of: &str| {
        let sent = server.take_sent().into_iter().filter(|(_, path, _)| path.contains(of));
        sent.map(|(_, _, body)| body["metadata"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(sent(&server, "/statefulsets/"), [Value::Null; 0], "it was paused a moment ago");
    server.edit(&path, &json!({"spec": {"paused": false}}));
    for (of, edited) in [("/statefulsets/", REDIS.to_owned()), ("/replicasets/", set_path(&server))] {
        server.take_sent();
        server.edit(&edited, &edit);
        seconds(5).await;
        let seen = sent(&server, of);
        assert!(!seen.is_empty(), "{of}");
        for seen in seen {
            assert!(seen["uid"].is_string() && seen["resourceVersion"].is_string(), "{of}: {seen}");
        }
    }
    operator.stop().await;
}
