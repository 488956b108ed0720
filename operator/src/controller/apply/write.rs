//! Single writes, each only where it changes something.
//!
//! An object is left alone when it still is what our last write made it (its fingerprint), or, after a start of the
//! operator, when it carries the hash of what we want and every field of it. A read that is older than our own last
//! write says nothing. Every write asks the claim first: only the leader writes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::{
    api::core::v1::{Pod, Secret},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, ListParams, PartialObjectMeta, Patch, PatchParams,
        PostParams, Preconditions,
    },
};
use serde_json::{Value, json};
use tracing::info;

use super::compare;
use crate::{
    api::{FanoutCluster, RESTARTED_AT, Reason},
    controller::{
        Error, Shared,
        build::GeneratedSecret,
        dereference::{self, Found, Node},
        mirror,
    },
    events::{Events, Severity},
    lease::Claim,
    metrics::Metrics,
    resources::labels,
};

/// Who the operator is to the API server when it writes children.
pub const FIELD_MANAGER: &str = "fanout-operator";

/// Hash of what the operator last wanted of an object.
pub(super) const APPLIED: &str = "fanout.dev/applied";

/// Bytes of a generated key or password.
const RANDOM_BYTES: usize = 32;

/// Writes to the API server. Clones share what was written.
#[derive(Clone)]
pub(super) struct Writer {
    client: Client,
    claim: Claim,
    metrics: Metrics,
    memory: Arc<Mutex<HashMap<Key, Written>>>,
    sealed: Arc<Mutex<HashMap<Key, Sealed>>>,
}

/// An object of one cluster. A cluster that is made anew under an old name knows nothing of its predecessor's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    cluster: Option<String>,
    kind: String,
    namespace: String,
    name: String,
}

/// What our last write of an object made it.
#[derive(Clone, Debug)]
struct Written {
    uid: Option<String>,
    version: u64,
    wanted: String,
    fingerprint: String,
}

/// A generated Secret that has all it should have, at the version that was read or written last.
#[derive(Clone, Debug)]
struct Sealed {
    uid: Option<String>,
    version: u64,
    digest: String,
}

/// Whether a child carries our cluster as its owner.
pub(super) fn is_owned_by(child: &impl ResourceExt, cluster: &FanoutCluster) -> bool {
    child.owner_references().iter().any(|owner| Some(&owner.uid) == cluster.metadata.uid.as_ref())
}

// === impl Writer ===

impl Writer {
    pub(super) fn new(shared: &Shared) -> Self {
        Self {
            client: shared.client.clone(),
            claim: shared.claim.clone(),
            metrics: shared.metrics.clone(),
            memory: Arc::default(),
            sealed: Arc::default(),
        }
    }

    /// Makes a child what it should be. `desired` names its kind and name.
    pub(super) async fn ensure(
        &self,
        cluster: &FanoutCluster,
        found: &Found,
        mut desired: Value,
        events: &Events,
    ) -> Result<(), Error> {
        let (kind, name) = identity(&desired);
        let wanted = stamp(&mut desired);
        let live = match found.child(&kind, &name) {
            Some(live) => Some(live.clone()),
            // Not ours, or not seen yet: the API server knows.
            None => {
                self.api(cluster, &kind).get_opt(&name).await.map_err(Error::api("read", &kind, &name))?
            }
        };
        let key = Key::new(cluster, &kind, &name);
        if let Some(live) = &live {
            if !is_ours(live, cluster, &kind) {
                return Err(Error::NotOurs { kind, name });
            }
            if self.is_settled(&key, &wanted, &desired, live) {
                return Ok(());
            }
        }
        let repaired = self.lock().get(&key).is_some_and(|written| written.wanted == wanted);
        self.put(cluster, desired, live.as_ref()).await?;
        if repaired {
            let note = format!("{kind} {name} was deleted or edited, and is as it should be again");
            events.publish(cluster, Severity::Normal, Reason::ChildApplied, &note, None).await;
        }
        Ok(())
    }

    /// Server-side apply. A write that changed nothing is counted.
    pub(super) async fn put(
        &self,
        cluster: &FanoutCluster,
        mut desired: Value,
        live: Option<&DynamicObject>,
    ) -> Result<(), Error> {
        let (kind, name) = identity(&desired);
        self.may_write(&kind)?;
        let wanted = stamp(&mut desired);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let made = self.api(cluster, &kind).patch(&name, &params, &Patch::Apply(desired)).await;
        let made = made.map_err(Error::api("apply", &kind, &name))?;
        info!(kind, name, "applied a child");
        if live.is_some_and(|live| live.resource_version() == made.resource_version()) {
            self.metrics.wrote_nothing(&kind);
        }
        self.lock().insert(Key::new(cluster, &kind, &name), Written::new(&made, wanted));
        Ok(())
    }

    fn is_settled(&self, key: &Key, wanted: &str, desired: &Value, live: &DynamicObject) -> bool {
        let mut memory = self.lock();
        if let Some(written) = memory.get(key).filter(|written| written.uid == live.metadata.uid) {
            let older = version(live) < written.version;
            if written.wanted == wanted && (older || written.fingerprint == compare::fingerprint(live)) {
                return true;
            }
        }
        let hashed = live.annotations().get(APPLIED).is_some_and(|applied| applied == wanted);
        let settled = hashed && compare::holds(desired, live);
        if settled {
            memory.insert(key.clone(), Written::new(live, wanted.to_owned()));
        }
        settled
    }

    /// Makes a generated Secret what it should be, and gives the digest of its values. Its values are not watched:
    /// they are read once for each version that the watch shows.
    pub(super) async fn ensure_secret(
        &self,
        cluster: &FanoutCluster,
        secret: &GeneratedSecret,
        live: Option<&PartialObjectMeta<Secret>>,
        events: &Events,
    ) -> Result<String, Error> {
        let name = secret.name();
        let key = Key::new(cluster, "Secret", name);
        let known = self.sealed().get(&key).cloned();
        if let Some(known) = known.as_ref().filter(|known| live.is_some_and(|live| known.covers(live))) {
            return Ok(known.digest.clone());
        }
        let api: Api<Secret> = Api::namespaced(self.client.clone(), cluster.namespace());
        let read = api.get_opt(name).await.map_err(Error::api("read", "Secret", name))?;
        let (made, mended) = match read {
            None => (self.create_secret(&api, secret).await?, known.is_some()),
            Some(read) if !is_our_secret(&read, cluster) => return Err(not_ours("Secret", name)),
            Some(read) => match secret.repair(&read, &random_hex()) {
                Some(patch) => (self.repair_secret(&api, name, patch).await?, true),
                None => (read, false),
            },
        };
        let sealed = Sealed::new(&made, secret.digest(&made));
        let digest = sealed.digest.clone();
        self.sealed().insert(key, sealed);
        if mended {
            let note = format!(
                "Secret {name} was deleted or edited, and has all it should have again; a value that was lost is a new one"
            );
            events.publish(cluster, Severity::Normal, Reason::ChildApplied, &note, None).await;
        }
        Ok(digest)
    }

    async fn create_secret(&self, api: &Api<Secret>, secret: &GeneratedSecret) -> Result<Secret, Error> {
        self.may_write("Secret")?;
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let made = api.create(&params, &secret.with_value(&random_hex())).await;
        let made = made.map_err(Error::api("create", "Secret", secret.name()))?;
        info!(name = secret.name(), "made a secret");
        Ok(made)
    }

    async fn repair_secret(&self, api: &Api<Secret>, name: &str, patch: Value) -> Result<Secret, Error> {
        self.may_write("Secret")?;
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let made = api.patch(name, &params, &Patch::Merge(patch)).await;
        let made = made.map_err(Error::api("mend", "Secret", name))?;
        info!(name, "mended a secret");
        Ok(made)
    }

    /// Deletes exactly the object that was seen.
    pub(super) async fn delete(&self, resource: &ApiResource, child: &DynamicObject) -> Result<(), Error> {
        self.may_write(&resource.kind)?;
        let name = child.name_any();
        let namespace = child.namespace().unwrap_or_default();
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &namespace, resource);
        let seen = Preconditions {
            uid: child.metadata.uid.clone(),
            resource_version: child.metadata.resource_version.clone(),
        };
        let params = DeleteParams::background().preconditions(seen);
        match api.delete(&name, &params).await {
            Ok(_) => {
                info!(kind = resource.kind, name, "deleted a child");
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(Error::api("delete", &resource.kind, &name)(error)),
        }
    }

    /// Deletes exactly the pod that was seen.
    pub(super) async fn delete_pod(&self, pod: &Pod, grace_seconds: u32) -> Result<(), Error> {
        self.may_write("Pod")?;
        let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
        let seen = Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
        };
        let params = DeleteParams { grace_period_seconds: Some(grace_seconds), ..DeleteParams::default() }
            .preconditions(seen);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        match api.delete(&name, &params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(Error::api("delete", "Pod", &name)(error)),
        }
    }

    /// Changes labels and annotations of exactly the pod that was seen.
    pub(super) async fn mark(&self, pod: &Pod, metadata: Value) -> Result<(), Error> {
        self.may_write("Pod")?;
        let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
        let mut patch = json!({ "metadata": metadata });
        patch["metadata"]["uid"] = json!(pod.metadata.uid);
        patch["metadata"]["resourceVersion"] = json!(pod.metadata.resource_version);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let marked = api.patch_metadata(&name, &params, &Patch::Merge(patch)).await;
        marked.map(drop).map_err(Error::api("mark", "Pod", &name))
    }

    /// Sets and pods as the API server has them now, not as a watch had them. An error where the cluster is no
    /// longer what `cluster` says: it was paused, edited or deleted, perhaps to prevent what was planned.
    pub(super) async fn look(&self, cluster: &FanoutCluster, found: &Found) -> Result<Found, Error> {
        self.confirm(cluster).await?;
        let of_cluster = ListParams::default().labels(&format!("{}={}", labels::CLUSTER, cluster.name()));
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), cluster.namespace());
        let pods = pods.list(&of_cluster).await.map_err(Error::api("list", "Pod", cluster.name()))?;
        let sets = self.api(cluster, "ReplicaSet").list(&of_cluster).await;
        let sets = sets.map_err(Error::api("list", "ReplicaSet", cluster.name()))?;
        let stateful = self.api(cluster, "StatefulSet").list(&of_cluster).await;
        let stateful = stateful.map_err(Error::api("list", "StatefulSet", cluster.name()))?;
        let of_redis = ListParams::default().labels(&format!("{}={}", labels::REDIS, cluster.name()));
        let redis = Api::<Pod>::namespaced(self.client.clone(), cluster.namespace()).list(&of_redis).await;
        let redis = redis.map_err(Error::api("list", "Pod", cluster.name()))?;
        let typed = |kind: &str| {
            let resource = mirror::resource_of(kind);
            move |set| (resource.clone(), Arc::new(set))
        };
        let stateful = stateful.into_iter().map(typed("StatefulSet"));
        let sets = sets.into_iter().map(typed("ReplicaSet")).chain(stateful).collect();
        let sets = dereference::own_sets(cluster, sets);
        let pods = pods.into_iter().map(Arc::new).collect();
        let pods = dereference::pods_of(&sets, "ReplicaSet", pods);
        let others = found
            .children
            .iter()
            .filter(|(resource, _)| !matches!(resource.kind.as_str(), "ReplicaSet" | "StatefulSet"));
        let others = others.cloned();
        let report_of = |pod: &Pod| {
            let known = found.nodes.iter().find(|node| node.pod.metadata.uid == pod.metadata.uid);
            known.and_then(|node| node.report.clone())
        };
        Ok(Found {
            named: found.named.clone(),
            redis: dereference::pods_of(&sets, "StatefulSet", redis.into_iter().map(Arc::new).collect()),
            machines: found.machines.clone(),
            mounts: found.mounts.clone(),
            deadline: found.deadline,
            children: others.chain(sets).collect(),
            nodes: pods.into_iter().map(|pod| Node { report: report_of(&pod), pod }).collect(),
            at: Timestamp::now(),
        })
    }

    /// Whether the API server still has the cluster as `cluster` says.
    pub(super) async fn confirm(&self, cluster: &FanoutCluster) -> Result<(), Error> {
        let api: Api<FanoutCluster> = Api::namespaced(self.client.clone(), cluster.namespace());
        let now = api.get_opt(cluster.name()).await;
        let now = now.map_err(Error::api("read", "FanoutCluster", cluster.name()))?;
        match now {
            Some(now) if is_unchanged(cluster, &now) => Ok(()),
            Some(_) | None => Err(Error::Superseded),
        }
    }

    pub(super) fn api(&self, cluster: &FanoutCluster, kind: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), cluster.namespace(), &mirror::resource_of(kind))
    }

    /// A step of a plan was performed.
    pub(super) fn acted(&self, reason: Reason) {
        self.metrics.acted(reason);
    }

    fn may_write(&self, kind: &str) -> Result<(), Error> {
        if !self.claim.holds() {
            return Err(Error::NotLeading);
        }
        self.metrics.wrote(kind);
        Ok(())
    }

    fn sealed(&self) -> MutexGuard<'_, HashMap<Key, Sealed>> {
        // As in `lock`.
        self.sealed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Written>> {
        // Entries are replaced whole, so a panic elsewhere leaves nothing half done.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether all that a plan rests on is the same: not the status, which is the operator's own.
fn is_unchanged(before: &FanoutCluster, now: &FanoutCluster) -> bool {
    let restart = |cluster: &FanoutCluster| cluster.annotations().get(RESTARTED_AT).cloned();
    before.metadata.uid == now.metadata.uid
        && now.metadata.deletion_timestamp.is_none()
        && before.spec == now.spec
        && restart(before) == restart(now)
}

/// A child is ours if we own it; a claim, which nobody owns, if it carries our label.
fn is_ours(live: &DynamicObject, cluster: &FanoutCluster, kind: &str) -> bool {
    let labelled = || live.labels().get(labels::CLUSTER).map(String::as_str) == Some(cluster.name());
    is_owned_by(live, cluster) || (kind == "PersistentVolumeClaim" && labelled())
}

/// The same of a generated Secret: one that lost its owner or its label is ours by the other. One that another object
/// controls, such as a deleted cluster of the same name, is not.
fn is_our_secret(live: &Secret, cluster: &FanoutCluster) -> bool {
    let labelled = live.labels().get(labels::CLUSTER).map(String::as_str) == Some(cluster.name());
    let controlled = live.owner_references().iter().any(|owner| owner.controller == Some(true));
    is_owned_by(live, cluster) || (labelled && !controlled)
}

fn not_ours(kind: &str, name: &str) -> Error {
    Error::NotOurs { kind: kind.to_owned(), name: name.to_owned() }
}

/// Writes into an object the hash of what we want of it, and returns it. What a plan changes is not in it.
fn stamp(desired: &mut Value) -> String {
    // There from the first stamp on, so that a second one gives the same hash.
    if !desired["metadata"]["annotations"].is_object() {
        desired["metadata"]["annotations"] = json!({});
    }
    let mut lasting = desired.clone();
    for (parent, counted) in
        [("/metadata", "resourceVersion"), ("/metadata", "uid"), ("/metadata/annotations", APPLIED)]
    {
        if let Some(Value::Object(fields)) = lasting.pointer_mut(parent) {
            fields.remove(counted);
        }
    }
    if let Some(Value::Object(spec)) =
        lasting.pointer_mut("/spec").filter(|_| desired["kind"] == "ReplicaSet")
    {
        spec.remove("replicas");
    }
    let wanted = compare::hash(lasting.to_string().as_bytes());
    desired["metadata"]["annotations"][APPLIED] = Value::String(wanted.clone());
    wanted
}

fn identity(object: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&object["kind"]), text(&object["metadata"]["name"]))
}

fn version(object: &impl ResourceExt) -> u64 {
    // Kubernetes promises that versions of one resource compare as numbers.
    object.resource_version().and_then(|version| version.parse().ok()).unwrap_or(0)
}

fn random_hex() -> String {
    let bytes: [u8; RANDOM_BYTES] = rand::random();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

// === impl Key ===

impl Key {
    fn new(cluster: &FanoutCluster, kind: &str, name: &str) -> Self {
        Self {
            cluster: cluster.metadata.uid.clone(),
            kind: kind.to_owned(),
            namespace: cluster.namespace().to_owned(),
            name: name.to_owned(),
        }
    }
}

// === impl Written ===

impl Written {
    fn new(made: &DynamicObject, wanted: String) -> Self {
        Self {
            uid: made.metadata.uid.clone(),
            version: version(made),
            wanted,
            fingerprint: compare::fingerprint(made),
        }
    }
}

// === impl Sealed ===

impl Sealed {
    fn new(made: &Secret, digest: String) -> Self {
        Self { uid: made.metadata.uid.clone(), version: version(made), digest }
    }

    /// Whether the watch shows what is known already, or what was there before our own last write.
    fn covers(&self, live: &PartialObjectMeta<Secret>) -> bool {
        self.uid == live.metadata.uid && version(live) <= self.version
    }
}
