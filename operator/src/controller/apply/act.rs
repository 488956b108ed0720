//! Performs the plan's actions. Each is safe to repeat, and each disruptive one names exactly what was seen: a pod
//! by its uid, a ReplicaSet by its resourceVersion.

use k8s_openapi::jiff::{Timestamp, Unit};
use kube::{ResourceExt, api::DynamicObject};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::write::{APPLIED, Writer};
use crate::{
    api::{FanoutCluster, Reason},
    controller::{
        Error,
        build::RevisionSpec,
        dereference::{Found, Node, RELEASED_AT, RETIRED_AT},
        mirror,
    },
    events::{Events, Severity},
    plan::{Action, Step},
    resources::labels,
};

/// Annotation of a ReplicaSet: the revision as it was first written, in full. It is what repairs go back to, so a
/// newer operator never renders it again.
const RENDERED: &str = "fanout.dev/rendered";

/// Kubernetes' hint for which pod of a ReplicaSet goes first, and the value that puts one before all others.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const FIRST_TO_GO: &str = "-2147483648";

/// A revision as it was first written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stored {
    replica_set: Value,
    boot_config_map: Value,
}

// === impl Stored ===

impl Stored {
    fn new(revision: &RevisionSpec) -> Self {
        let boot = serde_json::to_value(&revision.boot_config_map).expect("a Kubernetes object is JSON");
        Self { replica_set: revision.replica_set.clone(), boot_config_map: boot }
    }

    /// What a ReplicaSet says of itself. Where that is gone or cannot be read, the revision is what is there: its pods
    /// were made of it, and so are the next.
    pub(super) fn of(set: &DynamicObject, found: &Found) -> Self {
        let said = set.annotations().get(RENDERED).map(|text| serde_json::from_str(text));
        match said {
            Some(Ok(stored)) => stored,
            Some(Err(error)) => {
                warn!(name = set.name_any(), %error, "the stored revision cannot be read and is taken from what is there");
                Self::adopt(set, found)
            }
            None => Self::adopt(set, found),
        }
    }

    fn adopt(set: &DynamicObject, found: &Found) -> Self {
        let boot = found.child("ConfigMap", &set.name_any());
        Self {
            replica_set: bare(set, "ReplicaSet"),
            boot_config_map: boot.map_or(Value::Null, |boot| bare(boot, "ConfigMap")),
        }
    }

    /// The ReplicaSet with its number, or without any where nobody may change it.
    fn replica_set(&self, replicas: &Value) -> Value {
        let mut set = self.replica_set.clone();
        let text = serde_json::to_string(self).expect("a stored revision is JSON");
        set["metadata"]["annotations"][RENDERED] = Value::String(text);
        set["spec"]["replicas"] = replicas.clone();
        set
    }

    /// ReplicaSet and boot document as they should be, with the number that the ReplicaSet has.
    pub(super) fn as_it_should_be(&self, set: &DynamicObject) -> impl Iterator<Item = Value> {
        let boot = Some(self.boot_config_map.clone()).filter(|boot| !boot.is_null());
        // The boot document first: pods wait for it, and find it there.
        boot.into_iter().chain([self.replica_set(&set.data["spec"]["replicas"])])
    }
}

/// An object without what the API server counts and what others wrote about it.
fn bare(object: &DynamicObject, kind: &str) -> Value {
    let resource = mirror::resource_of(kind);
    let mut value = serde_json::to_value(object).expect("a Kubernetes object is JSON");
    let metadata = &value["metadata"];
    let mut kept = json!({
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "labels": metadata["labels"],
        "ownerReferences": metadata["ownerReferences"],
    });
    let ours = |name: &str| name.starts_with(labels::PREFIX) && name != RENDERED && name != APPLIED;
    let annotations = object.annotations().iter().filter(|(name, _)| ours(name));
    kept["annotations"] = annotations.map(|(name, text)| (name.clone(), text.clone())).collect();
    value["metadata"] = kept;
    value["apiVersion"] = resource.api_version.into();
    value["kind"] = kind.into();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("status");
    }
    if let Some(spec) = value["spec"].as_object_mut() {
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
        revision: &RevisionSpec,
        Action { step, reason }: &Action,
        events: &Events,
    ) -> Result<(), Error> {
        info!(cluster = cluster.name(), namespace = cluster.namespace(), ?step, %reason, "acting");
        match step {
            Step::CreateSet { revision: _, replicas } => {
                self.create(cluster, found, revision, *replicas, events).await?
            }
            Step::ResizeSet { set, to } | Step::Remove { set, to, pod: _ } => {
                self.resize(cluster, found, set, *to).await?;
            }
            Step::Retire { pod } => self.retire(cluster, found, pod, *reason, events).await?,
            Step::Restore { pod } => self.mark_by_name(found, pod, restored()).await?,
            Step::Release { pod } => self.mark_by_name(found, pod, released(found.at)).await?,
            Step::DeleteSet { set } => {
                if let Some(set) = found.child("ReplicaSet", set) {
                    self.delete(&mirror::resource_of("ReplicaSet"), set).await?;
                }
            }
        }
        self.acted(*reason);
        Ok(())
    }

    async fn create(
        &self,
        cluster: &FanoutCluster,
        found: &Found,
        revision: &RevisionSpec,
        replicas: u32,
        events: &Events,
    ) -> Result<(), Error> {
        let stored = Stored::new(revision);
        // The boot document first: pods wait for it, and find it there.
        self.ensure(cluster, found, stored.boot_config_map.clone(), events).await?;
        self.ensure(cluster, found, stored.replica_set(&json!(replicas)), events).await?;
        let note = format!("revision {} begins with {replicas} nodes", revision.name);
        events.publish(cluster, Severity::Normal, Reason::RevisionCreated, &note, None).await;
        Ok(())
    }

    async fn resize(&self, cluster: &FanoutCluster, found: &Found, name: &str, to: u32) -> Result<(), Error> {
        let Some(live) = found.child("ReplicaSet", name) else { return Ok(()) };
        let mut set = Stored::of(live, found).replica_set(&json!(to));
        set["metadata"]["resourceVersion"] = json!(live.resource_version());
        self.put(cluster, set, Some(live)).await
    }

    async fn retire(
        &self,
        cluster: &FanoutCluster,
        found: &Found,
        pod: &str,
        reason: Reason,
        events: &Events,
    ) -> Result<(), Error> {
        let Some(node) = node(found, pod) else { return Ok(()) };
        self.mark(&node.pod, retired(found.at)).await?;
        let clients = match node.report.as_ref().filter(|report| report.answered) {
            Some(report) => format!("{} connections", report.connections),
            None => "an unknown number of connections".to_owned(),
        };
        let why = match reason {
            Reason::Rollout => "a newer revision replaces it",
            _ => "fewer nodes are asked for",
        };
        let note = format!("node {pod} with {clients} leaves: {why}");
        events.publish(cluster, Severity::Normal, reason, &note, Some(pod)).await;
        Ok(())
    }

    async fn mark_by_name(&self, found: &Found, pod: &str, metadata: Value) -> Result<(), Error> {
        match node(found, pod) {
            Some(node) => self.mark(&node.pod, metadata).await,
            None => Ok(()),
        }
    }
}

fn node<'a>(found: &'a Found, name: &str) -> Option<&'a Node> {
    found.nodes.iter().find(|node| node.pod.metadata.name.as_deref() == Some(name))
}

fn retired(now: Timestamp) -> Value {
    json!({"labels": {labels::SERVING: "false"}, "annotations": {RETIRED_AT: text(now)}})
}

fn released(now: Timestamp) -> Value {
    json!({
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
