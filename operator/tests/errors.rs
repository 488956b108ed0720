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
};
use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::api_server::ApiServer;

const CLUSTERS: &str = "/apis/fanout.dev/v1alpha1/namespaces/test/fanoutclusters";
const SERVICE: &str = "/api/v1/namespaces/test/services/chat";
const SECRET: &str = "/api/v1/namespaces/test/secrets/chat-api-key";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/test/leases/operator";

/// An operator that leads.
struct Operator {
    stop: CancellationToken,
    work: JoinHandle<()>,
    keep: JoinHandle<()>,
    metrics: Metrics,
}

impl Operator {
    async fn start(server: &ApiServer) -> Self {
        let mut lease = lease(server, "one");
        lease.acquire().await;
        let claim = lease.claim();
        let keep = tokio::spawn(async move { drop(lease.keep().await) });
        let metrics = Metrics::new();
        let shared = Shared {
            events: Events::new(server.client(), "one"),
            client: server.client(),
            config: OperatorConfig::default(),
            claim,
            metrics: metrics.clone(),
            readiness: Readiness::default(),
        };
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let work = tokio::spawn(async move { controller::run(shared, &["test".to_owned()], stopped).await });
        Self { stop, work, keep, metrics }
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
    let args = LeaseArgs {
        lease_name: "operator".to_owned(),
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
    let server = with_cluster();
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
    seconds(3).await;
    let degraded = condition(&server, "chat", "Degraded");
    assert_eq!((&degraded["status"], &degraded["reason"]), (&json!("True"), &json!("ApplyFailed")));
    seconds(600).await;
    assert!(server.get("/api/v1/namespaces/test/services/chat-api").is_some());
    assert_eq!(condition(&server, "chat", "Degraded")["status"], "False");
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
