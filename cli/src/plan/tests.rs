//! The command against an API server in memory, with the operator beside it: what a plan says is compared with what the
//! operator then writes.

use std::{collections::BTreeSet, time::Duration};

use clap::Parser;
use fanout_operator::{
    controller::{self, Shared, build::OperatorConfig},
    events::Events,
    health::Readiness,
    lease::{Lease, LeaseArgs, Timing},
    metrics::Metrics,
};
use http::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::api_server::ApiServer;
use super::{
    PlanArgs,
    desired::LAST_APPLIED,
    plan,
    report::{ChildChange, Class, ClusterReport, ObjectChange, Redis, Report, State, fields},
    text::text,
};

#[expect(dead_code, reason = "the operator's tests use the rest")]
#[path = "../../../operator/tests/errors/api_server.rs"]
mod api_server;

const CHAT: &str = "/apis/fanout.dev/v1alpha1/namespaces/test/fanoutclusters/chat";
const SETS: &str = "/apis/apps/v1/namespaces/test/replicasets";
const PODS: &str = "/api/v1/namespaces/test/pods";

/// An API server, and an operator that leads.
struct Stage {
    server: ApiServer,
    stop: CancellationToken,
}

#[derive(Debug, Parser)]
struct Command {
    #[command(flatten)]
    plan: PlanArgs,
}

// === impl Stage ===

impl Stage {
    /// One without FanoutClusters.
    async fn empty() -> Self {
        let server = ApiServer::default();
        let args = LeaseArgs {
            lease_name: "operator".to_owned(),
            lease_namespace: "ops".to_owned(),
            identity: Some("one".to_owned()),
        };
        let mut lease = Lease::new(server.client(), &args, Timing::default());
        lease.acquire().await;
        let claim = lease.claim();
        tokio::spawn(async move { lease.keep().await });
        let shared = Shared {
            events: Events::new(server.client(), "one"),
            client: server.client(),
            config: OperatorConfig {
                namespace: "ops".to_owned(),
                installation: "ops/operator".to_owned(),
                ..OperatorConfig::default()
            },
            claim,
            metrics: Metrics::new(),
            readiness: Readiness::default(),
        };
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(async move { controller::run(shared, &["test".to_owned()], stopped).await });
        Self { server, stop }
    }

    /// One with the FanoutCluster `chat` as its nodes run.
    async fn running(spec: &Value) -> Self {
        let stage = Self::empty().await;
        stage.server.put(CHAT, manifest(spec));
        seconds(5).await;
        let set = stage.server.below(SETS).remove(0);
        for at in 0..set["spec"]["replicas"].as_u64().unwrap() {
            stage.server.put(&format!("{PODS}/chat-{at}"), ready_pod(&format!("chat-{at}"), &set));
        }
        seconds(5).await;
        stage
    }

    /// What the command says of a manifest.
    async fn plan(&self, manifest: &Value) -> anyhow::Result<Report> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), manifest.to_string()).unwrap();
        self.run(&["-f", file.path().to_str().unwrap()]).await
    }

    async fn run(&self, args: &[&str]) -> anyhow::Result<Report> {
        let args = Command::parse_from([&["plan"], args].concat()).plan;
        self.server.take_writes();
        let report = plan(&self.server.client(), &args).await;
        assert_eq!(self.server.take_writes(), [""; 0], "a plan writes nothing");
        report
    }

    /// Kind and name of what the operator writes at first, once `manifest` is applied.
    async fn writes_of(&self, manifest: &Value) -> BTreeSet<String> {
        self.server.take_writes();
        match self.server.get(CHAT) {
            Some(_) => self.server.edit(CHAT, manifest),
            None => self.server.put(CHAT, manifest.clone()),
        }
        // Longer than changes are gathered, shorter than a node that leaves is waited for.
        tokio::time::sleep(Duration::from_millis(700)).await;
        let writes = self.server.take_writes();
        let ours = writes.iter().filter(|write| !write.contains("/events") && !write.ends_with("/status"));
        ours.map(|write| named(write)).collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// `PATCH …/services/chat` as `services/chat`; of a Secret that is created only the collection is in the path.
fn named(write: &str) -> String {
    match write.strip_prefix("POST ") {
        Some(path) => path.rsplit('/').next().unwrap().to_owned(),
        None => {
            write.rsplitn(3, '/').take(2).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("/")
        }
    }
}

/// What a plan says will be written at first.
fn said(cluster: &ClusterReport) -> BTreeSet<String> {
    let mut said = BTreeSet::new();
    for child in &cluster.children {
        let plural = format!("{}s", child.kind.to_lowercase()).replace("policys", "policies");
        match (child.change, &child.name) {
            (ChildChange::Create, _) if child.kind == "Secret" => said.insert("secrets".to_owned()),
            (ChildChange::Create | ChildChange::Update | ChildChange::Delete, Some(name)) => {
                said.insert(format!("{plural}/{name}"))
            }
            (change, name) => panic!("{change:?} {name:?}"),
        };
    }
    for step in &cluster.steps {
        match step.step {
            "Retire" | "Restore" | "Release" | "DeleteRedisPod" => {
                said.insert(format!("pods/{}", step.object))
            }
            "ResizeSet" => said.insert(format!("replicasets/{}", step.object)),
            _ => continue,
        };
    }
    said
}

fn manifest(spec: &Value) -> Value {
    json!({
        "apiVersion": "fanout.dev/v1alpha1", "kind": "FanoutCluster",
        "metadata": {"name": "chat", "namespace": "test", "generation": 1},
        "spec": spec,
    })
}

fn two_nodes() -> Value {
    json!({"version": "0.1.0", "replicas": 2, "redis": {"managed": {}}})
}

/// The manifest of [`two_nodes`] with a change.
fn changed(change: &Value) -> Value {
    let mut spec = two_nodes();
    for (field, value) in change.as_object().unwrap() {
        spec[field] = value.clone();
    }
    manifest(&spec)
}

fn ready_pod(name: &str, set: &Value) -> Value {
    let metadata = &set["metadata"];
    let owner = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": metadata["name"], "uid": metadata["uid"], "controller": true,
    }]);
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": labels, "ownerReferences": owner},
        "spec": {"terminationGracePeriodSeconds": 330, "containers": []},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

fn revision(report: &Report) -> String {
    report.clusters[0].revision.as_ref().unwrap().name.clone().unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_a_plan_says_is_what_the_operator_then_writes() {
    let edits = [
        ("nothing", json!({})),
        ("a namespace", json!({"namespaces": [{"name": "news", "subscribe": "allowed"}]})),
        ("an image", json!({"image": {"tag": "other"}})),
        ("an annotation of the pods", json!({"podTemplate": {"metadata": {"annotations": {"a": "b"}}}})),
        ("a restart", json!({"restartedAt": "2026-01-01T00:00:00Z"})),
        ("more nodes", json!({"replicas": 4})),
        ("fewer nodes", json!({"replicas": 1})),
        ("no nodes", json!({"replicas": 0})),
        ("a pause", json!({"paused": true, "image": {"tag": "other"}})),
        ("the image of Redis", json!({"redis": {"managed": {"image": "redis:8"}}})),
        ("another Service", json!({"service": {"type": "LoadBalancer"}})),
        ("no policies", json!({"networkPolicy": {"enabled": false}})),
        ("labels", json!({"childMetadata": {"labels": {"team": "chat"}}})),
        ("an app", json!({"podTemplate": {"spec": {"containers": [{"name": "app", "image": "app:1"}]}}})),
        ("a missing Secret", json!({"auth": {"apiKeysSecretRef": {"name": "none"}}})),
        ("surge", json!({"updateStrategy": {"maxSurge": 2}, "image": {"tag": "other"}})),
    ];
    for (what, edit) in edits {
        let stage = Stage::running(&two_nodes()).await;
        let manifest = changed(&edit);
        let report = stage.plan(&manifest).await.unwrap();
        let cluster = &report.clusters[0];
        assert_eq!(stage.writes_of(&manifest).await, said(cluster), "{what}: {}", text(&report));
        if let Some(revision) = &cluster.revision {
            let exists = |set: &Value| {
                set["metadata"]["labels"]["fanout.dev/revision"] == *revision.name.as_ref().unwrap()
            };
            assert!(stage.server.below(SETS).iter().any(exists), "{what}: {}", text(&report));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_does_not_exist_yet_is_planned_as_it_is_made() {
    for more in [json!({}), json!({"redis": {"memory": {}}, "replicas": 1})] {
        let stage = Stage::empty().await;
        let manifest = changed(&more);
        let report = stage.plan(&manifest).await.unwrap();
        let cluster = &report.clusters[0];
        assert_eq!((cluster.object, cluster.state), (ObjectChange::Created, State::Planned));
        assert_eq!(cluster.nodes.as_ref().unwrap().added, cluster.nodes.as_ref().unwrap().wanted as usize);
        assert_eq!(stage.server.get(CHAT), None, "it was a dry run");
        assert_eq!(stage.writes_of(&manifest).await, said(cluster), "{}", text(&report));
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_right_to_secrets_a_new_cluster_is_planned_all_the_same() {
    let stage = Stage::empty().await;
    stage.server.fail(Method::GET, "/secrets", 403, 9);
    let report = stage.plan(&changed(&json!({}))).await.unwrap();
    let cluster = &report.clusters[0];
    assert_eq!((cluster.redis, cluster.nodes.as_ref().unwrap().added), (Some(Redis::Created), 2));
    let unknown = cluster.children.iter().filter(|child| child.change == ChildChange::Unknown);
    assert!(unknown.clone().all(|child| child.kind == "Secret") && unknown.count() == 2, "{}", text(&report));
}

#[tokio::test(start_paused = true)]
async fn a_new_revision_is_planned_to_its_end() {
    let stage = Stage::running(&two_nodes()).await;
    let report = stage.plan(&changed(&json!({"image": {"tag": "other"}}))).await.unwrap();
    let new = revision(&report);
    let expected = format!(
        "FanoutCluster test/chat would change
  roll      spec.image.tag: new nodes replace the old ones
Revision: {new}, a new one
Nodes: 2 replaced
  1 at a time (maxSurge 1, maxUnavailable 0); at most 3 exist and at least 2 serve meanwhile
  order: chat-0 (connections not known), chat-1 (connections not known)
  each closes its connections within 5 min (drain.timeoutSeconds), and is killed after 5 min 30 s
  all drains take at most 11 min 4 s, besides the time in which new nodes become ready
Clients: those of a node that leaves are asked to connect again, and find another; all others stay
Redis: its pod stays
Objects:
  create  ConfigMap chat-{new}
  create  ReplicaSet chat-{new}
First steps:
  CreateSet {new}, to 1 node (RevisionCreated)
Not known:
  the connections of nodes that the operator's status does not give: another node may leave in the place of one that is named
"
    );
    assert_eq!(text(&report), expected);
}

#[tokio::test(start_paused = true)]
async fn the_node_with_the_fewest_connections_by_the_operators_status_leaves_first() {
    let stage = Stage::running(&two_nodes()).await;
    stage.stop.cancel();
    seconds(1).await;
    let node =
        |name: &str, connections: u32| json!({"name": name, "state": "Serving", "connections": connections});
    stage.server.edit(CHAT, &json!({"status": {"nodes": [node("chat-0", 128), node("chat-1", 1)]}}));
    let report = stage.plan(&changed(&json!({"image": {"tag": "other"}}))).await.unwrap();
    let text = text(&report);
    assert!(text.contains("  order: chat-1 (1 connection), chat-0 (128 connections)\n"), "{text}");
    assert_eq!(report.clusters[0].unknown, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_redis_whose_pod_would_be_the_same_is_not_replaced() {
    let stage = Stage::running(&two_nodes()).await;
    let same = OperatorConfig::default().redis_image;
    for (image, change) in [(same.as_str(), Redis::Kept), ("redis:8", Redis::Replaced)] {
        let report = stage.plan(&changed(&json!({"redis": {"managed": {"image": image}}}))).await.unwrap();
        assert_eq!(report.clusters[0].redis, Some(change), "{image}");
        assert!(report.clusters[0].nodes.as_ref().unwrap().finishes, "nothing happens to the nodes");
        assert_eq!(report.clusters[0].steps[0].step, "MoveRedis");
    }
}

#[tokio::test(start_paused = true)]
async fn the_form_of_json_is_stable() {
    let stage = Stage::running(&two_nodes()).await;
    let report = stage.plan(&changed(&json!({"replicas": 1, "logLevel": "debug"}))).await.unwrap();
    let name = revision(&report);
    let expected = json!({"version": 1, "changes": true, "clusters": [{
        "namespace": "test", "name": "chat", "object": "changed", "changes": true, "state": "planned",
        "fields": [{"path": "spec.logLevel", "class": "hot"}, {"path": "spec.replicas", "class": "operator"}],
        "revision": {"name": name, "new": false},
        "nodes": {
            "now": 2, "wanted": 1, "replaced": 0, "added": 0, "removed": 1, "kept": 1, "outdated": 0, "stuck": 0,
            "finishes": true, "leaving": [{"name": "chat-0", "connections": null}], "most": 2, "leastServing": 1,
            "secondsAtMost": 332,
            "pace": {"replace": "RollingUpdate", "maxSurge": 1, "maxUnavailable": 0, "maxDraining": 1,
                "minReadySeconds": 0, "drainTimeoutSeconds": 300, "terminationGracePeriodSeconds": 330},
        },
        "redis": "kept",
        "children": [
            {"kind": "ConfigMap", "name": "chat-live", "change": "update", "fields": ["data.live.yaml"]},
            {"kind": "PodDisruptionBudget", "name": "chat", "change": "delete", "fields": []},
        ],
        "steps": [{"step": "Retire", "object": "chat-0", "nodes": null, "reason": "ScaleDown"}],
        "problems": [], "warnings": [],
        "unknown": ["the connections of nodes that the operator's status does not give: another node may leave in the \
                     place of one that is named"],
    }]});
    assert_eq!(json!(report), expected);
}

#[tokio::test(start_paused = true)]
async fn a_cluster_as_it_should_be_has_no_changes_by_file_or_by_name() {
    let stage = Stage::running(&two_nodes()).await;
    for report in [stage.plan(&changed(&json!({}))).await, stage.run(&["chat", "-n", "test"]).await] {
        let report = report.unwrap();
        assert!(!report.changes);
        assert_eq!(text(&report), "FanoutCluster test/chat\nNo changes: the cluster is as this says.\n");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_about_to_be_done_to_a_cluster_as_it_stands_is_told_by_its_name() {
    let stage = Stage::running(&two_nodes()).await;
    stage.stop.cancel();
    seconds(1).await;
    stage.server.edit(CHAT, &json!({"spec": {"redis": {"managed": {"image": "redis:8"}}}}));
    stage.server.delete("/api/v1/namespaces/test/services/chat");
    let report = stage.run(&["chat", "-n", "test"]).await.unwrap();
    let cluster = &report.clusters[0];
    assert_eq!((cluster.object, cluster.redis), (ObjectChange::Unchanged, Some(Redis::Replaced)));
    let expected = BTreeSet::from(["services/chat".to_owned(), "statefulsets/chat-redis".to_owned()]);
    assert_eq!(said(cluster), expected);
    assert!(report.changes);
}

#[test]
fn of_metadata_what_the_operator_reads_is_told_apart_from_the_rest() {
    let with = |metadata: Value| {
        let mut object = manifest(&json!({}));
        object["metadata"] = metadata;
        serde_json::from_value(object).unwrap()
    };
    let after = with(json!({
        "labels": {"fanout.dev/operator-class": "blue", "team": "chat"},
        "annotations": {"fanout.dev/restarted-at": "now", LAST_APPLIED: "{}"},
    }));
    let told: Vec<_> =
        fields(&with(json!({})), &after).into_iter().map(|field| (field.path, field.class)).collect();
    let expected = [
        ("metadata.annotations.fanout.dev/restarted-at", Class::Roll),
        ("metadata.labels.fanout.dev/operator-class", Class::Operator),
        ("metadata.labels.team", Class::None),
    ];
    assert_eq!(told, expected.map(|(path, class)| (path.to_owned(), class)));
}

#[tokio::test(start_paused = true)]
async fn the_api_servers_refusal_is_told_in_its_words() {
    let stage = Stage::running(&two_nodes()).await;
    let words = api_server::invalid("FanoutCluster", "spec.redis", "the kind of redis cannot be changed");
    stage.server.refuse(Method::PATCH, CHAT, 422, words, 1);
    let refused = stage.plan(&changed(&json!({"redis": {"memory": {}}}))).await.unwrap_err();
    assert_eq!(
        format!("{refused:#}"),
        "FanoutCluster test/chat would be refused: FanoutCluster \"chat\" is invalid: spec.redis: the kind of redis cannot be changed"
    );
}

#[tokio::test(start_paused = true)]
async fn an_unknown_field_is_refused_with_its_line_and_a_value_is_left_to_the_api_server() {
    let stage = Stage::empty().await;
    let refused = stage.plan(&changed(&json!({"replica": 2}))).await.unwrap_err();
    assert!(format!("{refused:#}").contains("line 1: spec.replica: unknown field"), "{refused:#}");
    let old = changed(&json!({"redis": {"managed": {}, "channelPrefix": "a:b"}}));
    let report = stage.plan(&old).await.unwrap();
    assert_eq!(report.clusters[0].warnings[0].reason, "AmbiguousChannelPrefix");
}

#[tokio::test(start_paused = true)]
async fn nodes_that_a_person_replaces_and_nodes_that_are_stuck_are_told_apart() {
    let stage = Stage::running(&two_nodes()).await;
    let by_hand = changed(&json!({"updateStrategy": {"type": "OnDelete"}, "image": {"tag": "other"}}));
    let report = stage.plan(&by_hand).await.unwrap();
    let nodes = report.clusters[0].nodes.clone().unwrap();
    assert_eq!((nodes.kept, nodes.replaced, nodes.outdated, nodes.finishes), (2, 0, 2, false));
    assert!(
        text(&report).contains("2 nodes stay at an older revision until somebody deletes them"),
        "{}",
        text(&report)
    );

    stage.server.edit(CHAT, &json!({"spec": {"image": {"tag": "bad"}}}));
    seconds(1).await;
    let sets = stage.server.below(SETS);
    let new = sets.iter().find(|set| set["spec"]["replicas"] == 1).unwrap();
    let mut pod = ready_pod("chat-bad", new);
    let waiting = json!({"reason": "ImagePullBackOff", "message": "no such image"});
    pod["status"] = json!({"phase": "Pending", "conditions": [{"type": "Ready", "status": "False"}],
        "containerStatuses": [{"name": "fanout", "image": "bad", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": waiting}}]});
    stage.server.put(&format!("{PODS}/chat-bad"), pod);
    let report = stage.run(&["chat", "-n", "test"]).await.unwrap();
    let nodes = report.clusters[0].nodes.clone().unwrap();
    assert_eq!(
        (nodes.now, nodes.stuck, nodes.replaced, nodes.finishes),
        (3, 1, 0, false),
        "{}",
        text(&report)
    );
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_read_is_unknown_and_nothing_is_guessed() {
    let stage = Stage::running(&two_nodes()).await;
    for (path, words) in
        [("/networkpolicies", "list NetworkPolicy"), ("/secrets/chat-redis", "read Secret chat-redis")]
    {
        stage.server.fail(Method::GET, path, 403, 9);
        let report = stage.run(&["chat", "-n", "test"]).await.unwrap();
        stage.server.recover();
        let cluster = &report.clusters[0];
        assert!(cluster.unknown.iter().any(|unknown| unknown.contains(words)), "{:?}", cluster.unknown);
        assert!(
            cluster.children.iter().all(|child| child.change == ChildChange::Unknown),
            "{:?}",
            cluster.children
        );
        assert_eq!(cluster.redis, Some(Redis::Kept), "its StatefulSet was read");
        assert!(text(&report).contains("No changes, as far as can be seen."), "{}", text(&report));
    }
    stage.server.fail(Method::GET, "/statefulsets", 403, 9);
    let report = stage.run(&["chat", "-n", "test"]).await.unwrap();
    assert_eq!(report.clusters[0].redis, Some(Redis::Unknown));
    stage.server.recover();
    for path in ["/replicasets", "/pods"] {
        stage.server.fail(Method::GET, path, 403, 9);
        let refused = stage.run(&["chat", "-n", "test"]).await.unwrap_err();
        assert!(format!("{refused:#}").contains("refuses to list"), "{refused:#}");
        stage.server.recover();
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_of_the_same_file_counts_as_there() {
    let stage = Stage::running(&two_nodes()).await;
    let manifest = changed(&json!({"auth": {"apiKeysSecretRef": {"name": "api-keys"}}}));
    let report = stage.plan(&manifest).await.unwrap();
    assert_eq!(
        (report.clusters[0].state, &*report.clusters[0].problems[0].reason),
        (State::Planned, "SecretMissing")
    );
    assert_eq!(report.clusters[0].nodes.as_ref().unwrap().replaced, 0, "new nodes would wait for it");
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "api-keys"}, "stringData": {"a": "b"}});
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{secret}\n---\n{manifest}\n")).unwrap();
    let report = stage.run(&["-f", file.path().to_str().unwrap()]).await.unwrap();
    assert_eq!(report.clusters[0].state, State::Planned);
    assert_eq!(report.clusters[0].nodes.as_ref().unwrap().replaced, 2, "it is mounted");
}

#[tokio::test(start_paused = true)]
async fn the_namespace_of_the_command_line_may_not_contradict_the_file() {
    let stage = Stage::empty().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), changed(&json!({})).to_string()).unwrap();
    let refused = stage.run(&["-f", file.path().to_str().unwrap(), "-n", "other"]).await.unwrap_err();
    assert!(refused.to_string().starts_with("the namespace in the file is test"), "{refused}");
}
