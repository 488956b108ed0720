//! Performs the plan's actions. Each is safe to repeat, and each disruptive one names exactly what was seen, by uid
//! and resourceVersion.

use k8s_openapi::{
    api::{apps::v1::ReplicaSet, core::v1::ConfigMap},
    jiff::{Timestamp, Unit},
};
use kube::{Resource, ResourceExt, api::DynamicObject};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::{
    Rendered,
    redis::StoredRedis,
    write::{APPLIED, Cause, Trouble, Writer, identity, is_adopted_or_owned},
};
use crate::{
    api::{FanoutCluster, Reason, canonical},
    controller::{
        build::RevisionSpec,
        dereference::{Found, Node, RELEASED_AT, RETIRED_AT},
        mirror,
        validate::Problem,
    },
    events::{Events, Severity},
    plan::{Action, Step},
    resources::labels::{self, RENDERED},
    scrape::Report,
};

/// Kubernetes' hint for which pod of a ReplicaSet goes first, and the value that puts one before all others.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const FIRST_TO_GO: &str = "-2147483648";

/// Seconds that a Redis without a volume has to end, should its kubelet answer after all: it has nothing to write.
const REDIS_GRACE: u32 = 5;
/// Bytes that the annotations of one object may have; Kubernetes' limit, less what others may want of it.
const MAX_ANNOTATION_BYTES: usize = (256 << 10) - (8 << 10);

/// A revision as it was first written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stored {
    replica_set: Value,
    boot_config_map: Value,
}

// === impl Stored ===

impl Stored {
    pub(super) fn new(revision: &RevisionSpec) -> Self {
        let boot = serde_json::to_value(&revision.boot_config_map).expect("a Kubernetes object is JSON");
        Self { replica_set: revision.replica_set.clone(), boot_config_map: boot }
    }

    /// What a ReplicaSet says of itself. Where that is gone, cannot be read or is not of its kind and name, the revision
    /// is what is there: its pods were made of it, and so are the next.
    pub(super) fn of(cluster: &FanoutCluster, set: &DynamicObject, found: &Found) -> Self {
        Self::said_by(cluster, set, found).with_api_key(found.named.api_key.as_deref())
    }

    fn said_by(cluster: &FanoutCluster, set: &DynamicObject, found: &Found) -> Self {
        let Some(said) = set.annotations().get(RENDERED) else { return Self::adopt(cluster, set, found) };
        let stored = serde_json::from_str(said).map_err(|error| error.to_string());
        stored.and_then(|stored: Self| stored.checked(cluster, set)).unwrap_or_else(|error| {
            warn!(
                name = set.name_any(),
                error, "the stored revision cannot be used and is taken from what is there"
            );
            Self::adopt(cluster, set, found)
        })
    }

    /// An annotation is input like any other: it may describe this ReplicaSet and its boot document, and nothing else.
    fn checked(self, cluster: &FanoutCluster, set: &DynamicObject) -> Result<Self, String> {
        let Self { replica_set, boot_config_map } = self;
        let checked = Self {
            replica_set: labelled(described::<ReplicaSet>(replica_set, cluster, set, "ReplicaSet")?, set),
            boot_config_map: match boot_config_map {
                Value::Null => Value::Null,
                boot => described::<ConfigMap>(boot, cluster, set, "ConfigMap")?,
            },
        };
        let wanted = &checked.replica_set["spec"];
        if wanted["selector"] != set.data["spec"]["selector"] {
            return Err("its selector is not that of the ReplicaSet".to_owned());
        }
        if wanted["template"]["spec"]["containers"].as_array().is_none_or(Vec::is_empty) {
            return Err("its template has no containers".to_owned());
        }
        if checked.stands_for().is_none()
            && stands_for(set.annotations().get(labels::REVISION_SPEC)).is_some()
        {
            return Err("it does not say what it stands for, and the ReplicaSet does".to_owned());
        }
        Ok(checked)
    }

    /// A revision that is to be made. One that is there was not found, for it lost its label and has no pods: it is what
    /// it was.
    pub(super) fn to_make(
        cluster: &FanoutCluster,
        live: Option<&DynamicObject>,
        found: &Found,
        revision: &RevisionSpec,
    ) -> Self {
        match live.filter(|live| is_adopted_or_owned(*live, cluster)) {
            Some(live) => Self::of(cluster, live, found),
            None => Self::new(revision),
        }
    }

    /// What is there.
    pub(super) fn adopt(cluster: &FanoutCluster, set: &DynamicObject, found: &Found) -> Self {
        let boot = found.child("ConfigMap", &set.name_any());
        Self {
            replica_set: labelled(bare(cluster, set, "ReplicaSet"), set),
            boot_config_map: boot.map_or(Value::Null, |boot| bare(cluster, boot, "ConfigMap")),
        }
    }

    /// A revision from before the key of the server API was counted does not say which one its app containers have. It is
    /// taken for the one that is there when the revision is seen first, and noted, so that the next is another.
    fn with_api_key(mut self, digest: Option<&str>) -> Self {
        let has_key = |spec: &Value| {
            let apps = spec["spec"]["podTemplate"]["spec"]["containers"].as_array();
            !spec["apiKey"].is_null() || apps.is_none_or(Vec::is_empty)
        };
        if let Some(digest) = digest
            && let Some(mut spec) = self.stands_for().filter(|spec| !has_key(spec))
        {
            spec["apiKey"] = digest.into();
            self.replica_set["metadata"]["annotations"][labels::REVISION_SPEC] = spec.to_string().into();
        }
        self
    }

    /// The part of the spec that the revision stands for; `None` where that is lost.
    pub(super) fn stands_for(&self) -> Option<Value> {
        stands_for(self.replica_set["metadata"]["annotations"][labels::REVISION_SPEC].as_str())
    }

    /// The ReplicaSet with its number, or without any where nobody may change it.
    pub(super) fn replica_set(&self, replicas: &Value) -> Value {
        let mut set = self.replica_set.clone();
        let text = serde_json::to_string(self).expect("a stored revision is JSON");
        set["metadata"]["annotations"][RENDERED] = Value::String(text);
        set["spec"]["replicas"] = replicas.clone();
        set
    }

    /// Its boot document; `None` where that is lost.
    pub(super) fn boot(&self) -> Option<Value> {
        Some(self.boot_config_map.clone()).filter(|boot| !boot.is_null())
    }

    /// ReplicaSet and boot document as they should be, with the number that the ReplicaSet has.
    pub(super) fn as_it_should_be(&self, set: &DynamicObject) -> impl Iterator<Item = Value> + use<> {
        // The boot document first: pods wait for it, and find it there.
        self.boot().into_iter().chain([self.replica_set(&set.data["spec"]["replicas"])])
    }
}

fn stands_for(text: Option<impl AsRef<str>>) -> Option<Value> {
    let stored: Value = serde_json::from_str(text?.as_ref()).ok()?;
    stored["spec"].is_object().then_some(stored)
}

/// A ReplicaSet with the labels by which it is found: they follow from what nobody can change.
fn labelled(mut object: Value, set: &DynamicObject) -> Value {
    let labels = &mut object["metadata"]["labels"];
    for label in [labels::CLUSTER, labels::REVISION] {
        let selected = &set.data["spec"]["selector"]["matchLabels"][label];
        if selected.is_string() {
            labels[label] = selected.clone();
        }
    }
    object
}

/// An object of this kind with the name of `set`, owned by the cluster, and of its metadata only what we write. A field of
/// another type than Kubernetes has would be refused with each repair, and so would what else is to be changed.
pub(super) fn described<K: DeserializeOwned>(
    mut object: Value,
    cluster: &FanoutCluster,
    set: &DynamicObject,
    kind: &str,
) -> Result<Value, String> {
    let api_version = mirror::resource_of(kind).api_version;
    let metadata = &object["metadata"];
    let is_it = object["apiVersion"] == api_version
        && object["kind"] == kind
        && metadata["name"] == set.name_any()
        && metadata["namespace"] == json!(set.metadata.namespace);
    let texts = |part: &str| match &metadata[part] {
        Value::Null => true,
        Value::Object(texts) => texts.values().all(Value::is_string),
        _ => false,
    };
    if !is_it || !texts("labels") || !texts("annotations") {
        return Err(format!("it describes no {kind} {}", set.name_any()));
    }
    // A quantity may be a number, which the type does not know.
    serde_json::from_value::<K>(canonical::resources(object.clone())).map_err(|error| error.to_string())?;
    let mut kept = json!({
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "labels": metadata["labels"],
        "ownerReferences": owners(cluster),
    });
    if metadata["annotations"].is_object() {
        kept["annotations"] = metadata["annotations"].clone();
    }
    object["metadata"] = kept;
    Ok(object)
}

fn owners(cluster: &FanoutCluster) -> Value {
    cluster.controller_owner_ref(&()).map_or(Value::Null, |owner| json!([owner]))
}

/// An object without what the API server counts and what others wrote about it. Whose an annotation is tells its name: it
/// is one of ours, or one that the cluster gives its children.
pub(super) fn bare(cluster: &FanoutCluster, object: &DynamicObject, kind: &str) -> Value {
    let resource = mirror::resource_of(kind);
    let mut value = serde_json::to_value(object).expect("a Kubernetes object is JSON");
    let metadata = &value["metadata"];
    let mut kept = json!({
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "labels": metadata["labels"],
        "ownerReferences": owners(cluster),
    });
    let ours = |name: &str| name.starts_with(labels::PREFIX) && name != RENDERED && name != APPLIED;
    let annotations = object.annotations().iter().filter(|(name, _)| ours(name));
    let annotations = annotations.chain(&cluster.spec.child_metadata.annotations);
    kept["annotations"] = annotations.map(|(name, text)| (name.clone(), text.clone())).collect();
    value["metadata"] = kept;
    value["apiVersion"] = resource.api_version.into();
    value["kind"] = kind.into();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("status");
    }
    // By `get_mut`: an index would make the field where there is none.
    if let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove("replicas");
    }
    value
}

// === impl Writer ===

impl Writer {
    /// Takes one step, and tells about it.
    pub(super) async fn perform(
        &self,
        cluster: &FanoutCluster,
        found: &Found,
        rendered: &Rendered,
        action: &Action,
        events: &Events,
    ) -> Result<(), Trouble> {
        let Action { step, reason } = action;
        info!(cluster = cluster.name(), namespace = cluster.namespace(), %step, %reason, "acting");
        match step {
            Step::CreateSet { revision: _, replicas } => {
                self.create(cluster, found, &rendered.revision, *replicas, events).await?
            }
            Step::ResizeSet { set, to } | Step::Remove { set, to, pod: _ } => {
                self.resize(cluster, found, set, *to).await?;
            }
            Step::Retire { pod } => {
                self.mark_by_name(cluster, found, pod, "retire", retired(found.at)).await?
            }
            Step::Restore { pod } => self.mark_by_name(cluster, found, pod, "restore", restored()).await?,
            Step::Release { pod } => {
                self.mark_by_name(cluster, found, pod, "release", released(found.at)).await?
            }
            Step::DeleteSet { set } => {
                if let Some(set) = found.child("ReplicaSet", set) {
                    self.delete(cluster, &mirror::resource_of("ReplicaSet"), set).await?;
                }
            }
            Step::MoveRedis { set } => self.move_redis(cluster, found, rendered, set).await?,
            Step::DeleteRedisPod { pod, force } => {
                let grace = if *force { 0 } else { REDIS_GRACE };
                if let Some(pod) = found.redis.iter().find(|redis| redis.name_any() == *pod) {
                    self.delete_pod(cluster, pod, grace).await?;
                }
            }
        }
        self.acted(*reason);
        if let Some((severity, note)) = redis_note(step) {
            events.publish(cluster, severity, *reason, &note, None).await;
        }
        if let Some((pod, note)) = farewell(action, found) {
            events.publish(cluster, Severity::Normal, *reason, &note, Some(pod)).await;
        }
        Ok(())
    }

    async fn create(
        &self,
        cluster: &FanoutCluster,
        found: &Found,
        revision: &RevisionSpec,
        replicas: u32,
        events: &Events,
    ) -> Result<(), Trouble> {
        let (kind, name) = identity(&revision.replica_set);
        let live = match found.child(&kind, &name) {
            Some(live) => Some(live.clone()),
            None => self.read(cluster, &kind, &name).await?,
        };
        let stored = Stored::to_make(cluster, live.as_ref(), found, revision);
        let set = stored.replica_set(&json!(replicas));
        is_small_enough(cluster, &set)?;
        // The boot document first: pods wait for it, and find it there.
        let boot = stored.boot().unwrap_or_else(|| json!(revision.boot_config_map));
        let boot = self.ensure(cluster, found, boot, events).await;
        if matches!(boot, Err(Trouble { cause: Cause::Failed(_), .. })) {
            return boot;
        }
        let set = self.ensure(cluster, found, set, events).await;
        if matches!(set, Err(Trouble { cause: Cause::Failed(_), .. })) {
            return set;
        }
        let plural = if replicas == 1 { "" } else { "s" };
        let note = format!("revision {} begins with {replicas} node{plural}", revision.name);
        events.publish(cluster, Severity::Normal, Reason::RevisionCreated, &note, None).await;
        boot.and(set)
    }

    async fn resize(
        &self,
        cluster: &FanoutCluster,
        found: &Found,
        name: &str,
        to: u32,
    ) -> Result<(), Trouble> {
        let Some(live) = found.child("ReplicaSet", name) else { return Ok(()) };
        let resized = |stored: Stored| {
            let mut set = stored.replica_set(&json!(to));
            set["metadata"]["uid"] = json!(live.metadata.uid);
            set["metadata"]["resourceVersion"] = json!(live.resource_version());
            set
        };
        match self.put(cluster, resized(Stored::of(cluster, live, found)), live).await {
            // What is stored cannot be; what is there can.
            Err(trouble) if trouble.is_malformed() => {
                self.put(cluster, resized(Stored::adopt(cluster, live, found)), live).await
            }
            done => done,
        }
    }

    async fn move_redis(
        &self,
        cluster: &FanoutCluster,
        found: &Found,
        rendered: &Rendered,
        name: &str,
    ) -> Result<(), Trouble> {
        let (Some(live), Some(redis)) = (found.child("StatefulSet", name), &rendered.redis) else {
            return Ok(());
        };
        let mut set =
            StoredRedis::of(cluster, live, redis).moved_to(redis, rendered.is_held(cluster, found)).object();
        set["metadata"]["uid"] = json!(live.metadata.uid);
        set["metadata"]["resourceVersion"] = json!(live.resource_version());
        self.put(cluster, set, live).await
    }

    async fn mark_by_name(
        &self,
        cluster: &FanoutCluster,
        found: &Found,
        pod: &str,
        what: &str,
        metadata: Value,
    ) -> Result<(), Trouble> {
        match node(found, pod) {
            Some(node) => self.mark(cluster, &node.pod, what, metadata).await,
            None => Ok(()),
        }
    }
}

/// What is told of a step that replaces the managed Redis.
fn redis_note(step: &Step) -> Option<(Severity, String)> {
    match step {
        Step::MoveRedis { set } => {
            let note = format!("the pod of {set} is replaced: its spec or its password changed");
            Some((Severity::Normal, note))
        }
        Step::DeleteRedisPod { pod, force: false } => {
            let note = format!("pod {pod} is replaced: its Kubernetes node does not answer");
            Some((Severity::Warning, note))
        }
        Step::DeleteRedisPod { pod, force: true } => {
            let note = format!(
                "pod {pod} is taken for gone: its Kubernetes node does not answer, and its time to end is over"
            );
            Some((Severity::Warning, note))
        }
        Step::CreateSet { .. }
        | Step::ResizeSet { .. }
        | Step::Retire { .. }
        | Step::Restore { .. }
        | Step::Release { .. }
        | Step::Remove { .. }
        | Step::DeleteSet { .. } => None,
    }
}

/// A revision is kept in annotations of its ReplicaSet, and these are bounded.
pub(super) fn is_small_enough(cluster: &FanoutCluster, set: &Value) -> Result<(), Trouble> {
    let annotations = set["metadata"]["annotations"].as_object().into_iter().flatten();
    let bytes: usize = annotations.map(|(name, text)| name.len() + text.as_str().map_or(0, str::len)).sum();
    if bytes <= MAX_ANNOTATION_BYTES {
        return Ok(());
    }
    let bytes_of = |part: Value| part.to_string().len();
    // The one is in the record and in the spec that it stands for; the other is an annotation of its own, and in the record
    // of both objects.
    let template = 2 * bytes_of(json!(cluster.spec.pod_template));
    let metadata = 3 * bytes_of(json!(cluster.spec.child_metadata));
    let (field, advice) = if metadata > template {
        ("spec.childMetadata", "keep its annotations short")
    } else {
        ("spec.podTemplate", "move what is long, such as scripts and settings, into a ConfigMap and mount it")
    };
    let message = format!(
        "{field} is too large: the record of its revision would take {} KiB, and Kubernetes keeps at most {}: {advice}",
        bytes.div_ceil(1 << 10),
        MAX_ANNOTATION_BYTES >> 10
    );
    let key = Some(field.to_owned());
    let problem = Problem { reason: Reason::InvalidSpec, object: "FanoutCluster".to_owned(), key, message };
    Err(Trouble { cause: Cause::Told(problem), again: None, lasting: true })
}

/// What is told of a step that takes a pod away: once for each pod, when it is decided.
fn farewell<'a>(action: &'a Action, found: &Found) -> Option<(&'a str, String)> {
    let (pod, node) = match &action.step {
        Step::Retire { pod } => (pod, node(found, pod)?),
        // One that is not ready may go in the place of the one that was marked, and was never told of.
        Step::Remove { set: _, to: _, pod } => {
            let node = node(found, pod)?;
            (pod, Some(node).filter(|node| !node.pod.annotations().contains_key(RETIRED_AT))?)
        }
        Step::CreateSet { .. }
        | Step::ResizeSet { .. }
        | Step::Restore { .. }
        | Step::Release { .. }
        | Step::DeleteSet { .. }
        | Step::MoveRedis { .. }
        | Step::DeleteRedisPod { .. } => return None,
    };
    let clients = match node.report.as_ref().filter(|report| report.answered) {
        Some(Report { connections: 1, .. }) => "1 connection".to_owned(),
        Some(report) => format!("{} connections", report.connections),
        None => "an unknown number of connections".to_owned(),
    };
    let why = match action.reason {
        Reason::Rollout => "a newer revision replaces it",
        _ => "fewer nodes are asked for",
    };
    Some((pod, format!("node {pod} with {clients} leaves: {why}")))
}

fn node<'a>(found: &'a Found, name: &str) -> Option<&'a Node> {
    found.nodes.iter().find(|node| node.pod.metadata.name.as_deref() == Some(name))
}

fn retired(now: Timestamp) -> Value {
    json!({"labels": {labels::SERVING: "false"}, "annotations": {RETIRED_AT: text(now)}})
}

fn released(now: Timestamp) -> Value {
    json!({
        // For the disruption budget; see there why it is this early.
        "labels": {labels::STATE: "drained"},
        "annotations": {RELEASED_AT: text(now), DELETION_COST: FIRST_TO_GO},
    })
}

fn restored() -> Value {
    json!({
        "labels": {labels::SERVING: "true", labels::STATE: null},
        "annotations": {RETIRED_AT: null, RELEASED_AT: null, DELETION_COST: null},
    })
}

fn text(time: Timestamp) -> String {
    time.round(Unit::Millisecond).unwrap_or(time).to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::Pod;

    use super::*;
    use crate::{
        controller::build::OperatorConfig, redis::RedisTarget, resources::replica_set, scrape::Report,
    };

    /// A pod that was retired, one that was not, and the ReplicaSet `chat-a`.
    fn found() -> Found {
        let pod = |name: &str, annotations: Value| {
            let pod: Pod =
                serde_json::from_value(json!({"metadata": {"name": name, "annotations": annotations}}))
                    .expect("a pod");
            let report = Some(Report { answered: true, connections: 7, ..Report::default() });
            Node { pod: Arc::new(pod), report }
        };
        let boot = json!({"metadata": {"name": "chat-a", "uid": "u"}, "immutable": true, "data": {"boot.yaml": "x"}});
        let boot = serde_json::from_value(boot).expect("a ConfigMap");
        Found {
            children: vec![
                (mirror::resource_of("ConfigMap"), Arc::new(boot)),
                (mirror::resource_of("ReplicaSet"), Arc::new(set(&json!({})))),
            ],
            nodes: vec![pod("old", json!({RETIRED_AT: "2026-01-01T00:00:00Z"})), pod("new", json!({}))],
            ..Found::nothing()
        }
    }

    fn cluster() -> FanoutCluster {
        FanoutCluster::new("chat", Default::default())
    }

    fn set(annotations: &Value) -> DynamicObject {
        let set = json!({
            "metadata": {"name": "chat-a", "namespace": "web", "uid": "u", "resourceVersion": "7",
                "labels": {"fanout.dev/revision": "a"}, "annotations": annotations},
            "spec": {"replicas": 3, "template": {"spec": {"containers": [{"name": "fanout"}]}}},
            "status": {"replicas": 3},
        });
        serde_json::from_value(set).expect("a ReplicaSet")
    }

    fn told(step: Step, reason: Reason) -> Option<(String, String)> {
        let action = Action { step, reason };
        farewell(&action, &found()).map(|(pod, note)| (pod.to_owned(), note))
    }

    #[test]
    fn each_pod_that_goes_is_told_once_with_its_name_and_why() {
        let retire = |pod: &str| Step::Retire { pod: pod.to_owned() };
        let remove = |pod: &str| Step::Remove { set: "chat-a".to_owned(), to: 2, pod: pod.to_owned() };
        let (pod, note) = told(retire("new"), Reason::ScaleDown).expect("an Event");
        assert_eq!(
            (pod.as_str(), note.as_str()),
            ("new", "node new with 7 connections leaves: fewer nodes are asked for")
        );
        let (_, note) = told(retire("new"), Reason::Rollout).expect("an Event");
        assert!(note.ends_with("a newer revision replaces it"), "{note}");
        assert_eq!(told(remove("old"), Reason::ScaleDown), None, "it was told when it was retired");
        let (pod, _) = told(remove("new"), Reason::ScaleDown).expect("it was never retired");
        assert_eq!(pod, "new");
        assert_eq!(told(Step::Release { pod: "old".to_owned() }, Reason::ScaleDown), None);
    }

    #[test]
    fn a_revision_whose_stored_form_is_gone_is_what_is_there() {
        let mut cluster = cluster();
        cluster.spec.child_metadata.annotations = labels::map([("owner", "y")]);
        let others = json!({"theirs": "x", "fanout.dev/revision-spec": "{}", "fanout.dev/applied": "abc"});
        for annotations in [others, json!({RENDERED: "not JSON", "fanout.dev/revision-spec": "{}"})] {
            let lost = set(&annotations);
            let [boot, restored] = Stored::of(&cluster, &lost, &found())
                .as_it_should_be(&lost)
                .collect::<Vec<_>>()
                .try_into()
                .expect("two");
            assert_eq!(boot["data"], json!({"boot.yaml": "x"}));
            assert_eq!((&boot["apiVersion"], &boot["kind"]), (&json!("v1"), &json!("ConfigMap")));
            assert_eq!(boot.get("spec"), None, "the API server knows no such field");
            assert_eq!(restored["spec"]["replicas"], 3);
            assert_eq!(restored["metadata"]["resourceVersion"], Value::Null);
            assert_eq!(restored["status"], Value::Null);
            let annotations = restored["metadata"]["annotations"].as_object().expect("it has annotations");
            assert_eq!(
                annotations.keys().collect::<Vec<_>>(),
                [RENDERED, "fanout.dev/revision-spec", "owner"]
            );
            assert_eq!(boot["metadata"]["annotations"], json!({"owner": "y"}));
            // And what it says of itself from now on is the same.
            let again: DynamicObject = serde_json::from_value(restored.clone()).expect("a ReplicaSet");
            let stored = Stored::of(&cluster, &again, &found());
            assert_eq!(stored.as_it_should_be(&again).last(), Some(restored));
        }
    }

    #[test]
    fn a_stored_form_that_describes_something_else_is_not_believed() {
        let good = json!({
            "replicaSet": {
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "chat-a", "namespace": "web"},
                "spec": {"template": {"spec": {"containers": [{"name": "stored"}]}}},
            },
            "bootConfigMap": {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "chat-a", "namespace": "web"}},
        });
        let containers = |stored: &Value| {
            let set = set(&json!({RENDERED: stored.to_string()}));
            let all: Vec<_> = Stored::of(&cluster(), &set, &found()).as_it_should_be(&set).collect();
            all.last().expect("the ReplicaSet")["spec"]["template"]["spec"]["containers"][0]["name"].clone()
        };
        assert_eq!(containers(&good), "stored");
        let (set, boot) = ("/replicaSet", "/bootConfigMap");
        for (place, edit) in [
            (set, json!("x")),
            (set, Value::Null),
            (set, json!([1])),
            ("/replicaSet/kind", json!("Deployment")),
            ("/replicaSet/metadata/name", json!("other")),
            ("/replicaSet/metadata/namespace", json!("kube-system")),
            ("/replicaSet/metadata/annotations", json!("x")),
            ("/replicaSet/metadata/labels", json!({"x": 1})),
            ("/replicaSet/spec", json!("x")),
            ("/replicaSet/spec/selector", json!({"matchLabels": {}})),
            ("/replicaSet/spec/template/spec/containers", json!({})),
            ("/replicaSet/spec/template/spec/containers", json!([{"name": 5}])),
            ("/replicaSet/spec/template/metadata", json!("x")),
            (boot, json!("x")),
            (
                boot,
                json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "chat-a", "namespace": "web"}}),
            ),
            ("/bootConfigMap/metadata/name", json!("kube-root-ca.crt")),
            ("/bootConfigMap/data", json!([1])),
        ] {
            let mut bad = good.clone();
            let (parent, field) = place.rsplit_once('/').expect("a pointer");
            bad.pointer_mut(parent).expect("it is there")[field] = edit.clone();
            assert_eq!(containers(&bad), "fanout", "{place} {edit}");
        }
        // Kubernetes takes a quantity for a number, too.
        let mut number = good.clone();
        number["replicaSet"]["spec"]["template"]["spec"]["containers"][0]["resources"] =
            json!({"limits": {"cpu": 1}});
        assert_eq!(containers(&number), "stored");
        let mut more = good.clone();
        more["replicaSet"]["metadata"]["finalizers"] = json!(["theirs/x"]);
        more["replicaSet"]["metadata"]["resourceVersion"] = json!("1");
        let stored: Stored = serde_json::from_value(more).expect("it can be read");
        let kept = stored.checked(&cluster(), &super::tests::set(&json!({}))).expect("it is the ReplicaSet");
        assert_eq!(kept.replica_set["metadata"].get("finalizers"), None);
        assert_eq!(kept.replica_set["metadata"].get("resourceVersion"), None);
    }

    #[test]
    fn a_pod_template_of_60_kb_fits_and_one_that_does_not_is_refused_with_words() {
        let revision = |cluster: &FanoutCluster| {
            let redis = RedisTarget::of(cluster).expect("the managed one");
            let revision = replica_set::revision(cluster, &redis, None, &OperatorConfig::default());
            Stored::new(&revision).replica_set(&json!(1))
        };
        let with = |variables: usize| {
            let env: Vec<_> = (0..variables)
                .map(|nth| json!({"name": format!("V{nth:04}"), "value": "x".repeat(24)}))
                .collect();
            let template = json!({"spec": {"containers": [{"name": "app", "image": "app:1", "env": env}]}});
            let mut cluster = cluster();
            cluster.spec.pod_template = serde_json::from_value(template.clone()).expect("a template");
            (template.to_string().len(), cluster)
        };
        let refused = |cluster: &FanoutCluster| match is_small_enough(cluster, &revision(cluster)) {
            Ok(()) => String::new(),
            Err(Trouble { cause: Cause::Told(problem), .. }) => problem.message,
            Err(Trouble { cause: Cause::Failed(error), .. }) => panic!("it is told, not {error}"),
        };
        let (bytes, mut fits) = with(1_200);
        assert!(bytes > 60_000, "{bytes}");
        assert_eq!(refused(&fits), "");
        let told = refused(&with(2_400).1);
        assert!(told.starts_with("spec.podTemplate is too large"), "{told}");

        fits.spec.child_metadata.annotations = labels::map([("note", "x".repeat(60_000).as_str())]);
        let told = refused(&fits);
        assert!(told.starts_with("spec.childMetadata is too large"), "{told}");
    }
}
