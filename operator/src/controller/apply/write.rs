//! Single writes, each only where it changes something.
//!
//! An object is left alone when it still is what our last write made it (its fingerprint), or where [`compare`] finds
//! nothing amiss. A read that is older than our own last write says nothing. Server-side apply cannot undo everything:
//! an item that somebody else added to a list stays, and an edited key of a list makes a second item. So each answer is
//! compared again, and what is still amiss is undone by a merge patch. What then comes back is another controller's
//! will: see [`memory`](super::memory). A write to what keeps pods names what was seen, and one that replaces a pod asks
//! first whether the cluster is still the same. Every write asks the territory first: only the leader writes, and only
//! where it holds the namespace.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Pod, Secret},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, ListParams, PartialObjectMeta, Patch, PatchParams,
        PostParams, Preconditions,
    },
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    compare::{self, Comparison, Path},
    memory::{Attempt, Memory, Written},
};
use crate::{
    api::{FanoutCluster, GROUP, OPERATOR_CLASS, RESTARTED_AT, Reason},
    controller::{
        Error, ErrorClass, Shared,
        build::GeneratedSecret,
        dereference::{self, Found, Node, is_owned_by},
        mirror,
        validate::Problem,
    },
    events::{Events, Severity},
    lease::territory::Territory,
    metrics::Metrics,
    resources::labels,
};

/// Who the operator is to the API server when it writes children.
pub const FIELD_MANAGER: &str = "fanout-operator";

/// Hash of what the operator last wanted of an object.
pub(super) const APPLIED: &str = "fanout.dev/applied";

/// Annotation by which a person hands an object without an owner to the FanoutCluster that it names.
const ADOPT: &str = "fanout.dev/adopt";

/// Finalizers of Kubernetes' own garbage collector, which are gone in a moment.
const COLLECTOR: [&str; 2] = ["foregroundDeletion", "orphan"];

/// Bytes of a generated key or password.
const RANDOM_BYTES: usize = 32;

/// Fields that one message names.
const MAX_FIELDS: usize = 5;

/// Writes to the API server. Clones share what was written.
#[derive(Clone)]
pub(super) struct Writer {
    client: Client,
    territory: Territory,
    metrics: Metrics,
    memory: Arc<Mutex<HashMap<Key, Memory>>>,
    sealed: Arc<Mutex<HashMap<Key, Sealed>>>,
}

/// An object of one cluster. A cluster that is made anew under an old name knows nothing of its predecessor's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    /// Its uid, ...
    uid: Option<String>,
    /// ... and its name, by which it is forgotten.
    cluster: String,
    kind: String,
    namespace: String,
    name: String,
}

/// A generated Secret that has all it should have, at the version that was read or written last.
#[derive(Clone, Debug)]
struct Sealed {
    uid: Option<String>,
    version: u64,
    digest: String,
}

/// Why a child is not what it should be, and when that is tried again; `None`: when something changes.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) cause: Cause,
    pub(super) again: Option<Duration>,
    /// Whether it has failed a few times in a row.
    pub(super) lasting: bool,
}

/// What keeps a child from being what it should be.
#[derive(Debug)]
pub(super) enum Cause {
    /// A request failed.
    Failed(Error),
    /// It cannot be, for now: somebody else wants something else, or it is too large.
    Told(Problem),
}

/// What to do about a child.
enum Verdict {
    /// Nothing.
    Settled,
    /// Nothing now: it would be in vain.
    Disputed(Trouble),
    /// To write it.
    Due(Box<Due>),
}

/// A write that is due.
struct Due {
    /// What the object should be; with the template that is there, where that is disputed.
    desired: Value,
    comparison: Comparison,
    /// Hash that the pod's specification had, where it has another now: perhaps it has something that we do not state.
    pod: Option<String>,
    /// Disputed fields that are left as they are.
    frozen: Vec<Path>,
    /// Whether it had been written as it is wanted now, so that somebody else changed it.
    repair: bool,
}

// === impl Writer ===

impl Writer {
    pub(super) fn new(shared: &Shared, territory: Territory) -> Self {
        Self {
            client: shared.client.clone(),
            territory,
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
    ) -> Result<(), Trouble> {
        let (kind, name) = identity(&desired);
        let live = match found.child(&kind, &name) {
            Some(live) => Some(live.clone()),
            // Not ours, or not seen yet: the API server knows.
            None => self.read(cluster, &kind, &name).await?,
        };
        let wanted = prepare(cluster, live.as_ref(), &mut desired)?;
        let key = Key::new(cluster, &kind, &name);
        match &live {
            None => self.make(cluster, &key, &wanted, desired, events).await?,
            Some(live) => match self.judge(&key, &wanted, &desired, live) {
                Verdict::Settled => {}
                Verdict::Disputed(trouble) => return Err(trouble),
                Verdict::Due(due) => self.mend(cluster, &key, &wanted, live, *due, events).await?,
            },
        }
        live.as_ref().map_or(Ok(()), |live| is_staying(live, &kind, &name))
    }

    pub(super) async fn read(
        &self,
        cluster: &FanoutCluster,
        kind: &str,
        name: &str,
    ) -> Result<Option<DynamicObject>, Error> {
        self.api(cluster, kind).get_opt(name).await.map_err(Error::api("read", kind, name))
    }

    /// What is to be done about a child that exists.
    fn judge(&self, key: &Key, wanted: &str, desired: &Value, live: &DynamicObject) -> Verdict {
        let now = Instant::now();
        let mut all = self.lock();
        let memory = all.entry(key.clone()).or_default();
        let fingerprint = compare::fingerprint(live);
        let same = memory
            .written
            .as_ref()
            .filter(|written| written.uid == live.metadata.uid && written.wanted == wanted);
        let is_older = same.is_some_and(|same| version(live) < same.version);
        if is_older {
            let standing = memory.disputes.standing();
            let trouble = || Verdict::Disputed(disputed(key, memory, &standing, now));
            return if standing.is_empty() { Verdict::Settled } else { trouble() };
        }
        if memory.disputes.is_empty() && same.is_some_and(|same| same.fingerprint == fingerprint) {
            return Verdict::Settled;
        }
        let applied = live.annotations().get(APPLIED).map(String::as_str);
        let repair = same.is_some() || applied == Some(wanted);
        let comparison = compare::compare(desired, live);
        let pod = same.and_then(|same| same.pod.clone());
        let mut due = Due { desired: desired.clone(), comparison, pod, frozen: Vec::new(), repair };
        due.renew_pod(live);
        let template = is_redis_template(&key.kind);
        if repair && memory.written.is_none() {
            // It was so before this process began, and perhaps fought over: each attempt would restart the pod.
            let before: Vec<_> =
                due.comparison.deviations.iter().filter(|path| template(path)).cloned().collect();
            memory.disputes.overruled(&before, &[], now);
        }
        memory.disputes.settle(&due.comparison.deviations, now);
        if repair {
            due.freeze(live, |path| template(path) && memory.disputes.is_disputed(path));
        }
        let deviations = &due.comparison.deviations;
        if deviations.is_empty() && due.frozen.is_empty() {
            memory.accepted(Written::new(live, wanted.to_owned()));
            return Verdict::Settled;
        }
        if !repair || deviations.iter().any(|path| memory.disputes.may_repair(path, now)) {
            return Verdict::Due(Box::new(due));
        }
        let standing: Vec<_> = deviations.iter().chain(&due.frozen).cloned().collect();
        Verdict::Disputed(disputed(key, memory, &standing, now))
    }

    /// Makes a child that does not exist.
    async fn make(
        &self,
        cluster: &FanoutCluster,
        key: &Key,
        wanted: &str,
        desired: Value,
        events: &Events,
    ) -> Result<(), Trouble> {
        let attempt = Attempt { wanted: wanted.to_owned(), live: None };
        let known = self.lock().get(key).and_then(|memory| memory.written.clone());
        let comparison = Comparison { deviations: Vec::new(), corrected: Value::Null };
        let due = Due { desired, comparison, pod: None, frozen: Vec::new(), repair: false };
        self.attempt(cluster, key, attempt, None, due).await?;
        if known.is_some_and(|known| known.wanted == wanted) {
            let Key { kind, name, .. } = key;
            let note = format!("{kind} {name} was deleted, and is there again");
            events.publish(cluster, Severity::Normal, Reason::ChildApplied, &note, None).await;
        }
        Ok(())
    }

    /// Writes a child that is not what it should be.
    async fn mend(
        &self,
        cluster: &FanoutCluster,
        key: &Key,
        wanted: &str,
        live: &DynamicObject,
        mut due: Due,
        events: &Events,
    ) -> Result<(), Trouble> {
        let attempt = Attempt { wanted: wanted.to_owned(), live: Some(compare::fingerprint(live)) };
        if has_pods(&key.kind) {
            // A write from an old reading could remove pods.
            due.desired["metadata"]["uid"] = json!(live.metadata.uid);
            due.desired["metadata"]["resourceVersion"] = json!(live.resource_version());
        }
        if due.replaces_pods(&key.kind) {
            self.confirm(cluster).await?;
        }
        if !due.repair {
            return self.attempt(cluster, key, attempt, Some(live), due).await;
        }
        let (deviations, frozen) = (due.comparison.deviations.clone(), due.frozen.clone());
        let names = self.managers(cluster, key, &deviations).await?;
        let made = self.attempt(cluster, key, attempt, Some(live), due).await;
        let left = self.counted(key, &made, &deviations, &frozen, &names);
        if made.is_ok() {
            let Key { kind, name, .. } = key;
            let note = format!(
                "{kind} {name} was edited ({}), and is as it should be again",
                by(&deviations, &names)
            );
            events.publish(cluster, Severity::Normal, Reason::ChildApplied, &note, None).await;
        }
        made.and(left)
    }

    /// Counts a repair; an error where something is left alone.
    fn counted(
        &self,
        key: &Key,
        made: &Result<(), Trouble>,
        deviations: &[Path],
        frozen: &[Path],
        names: &[String],
    ) -> Result<(), Trouble> {
        let now = Instant::now();
        let mut all = self.lock();
        let memory = all.entry(key.clone()).or_default();
        let held: Vec<_> = match made {
            Ok(()) => deviations.to_vec(),
            // Those that came back with the write itself have been counted.
            Err(Trouble { cause: Cause::Told(_), .. }) => {
                deviations.iter().filter(|path| !memory.disputes.is_disputed(path)).cloned().collect()
            }
            Err(Trouble { cause: Cause::Failed(_), .. }) => Vec::new(),
        };
        memory.disputes.repaired(&held, names, now);
        if frozen.is_empty() { Ok(()) } else { Err(disputed(key, memory, frozen, now)) }
    }

    /// Who else has a say in these fields; the mirrors do not keep that.
    async fn managers(
        &self,
        cluster: &FanoutCluster,
        key: &Key,
        paths: &[Path],
    ) -> Result<Vec<String>, Error> {
        let live = self.read(cluster, &key.kind, &key.name).await?;
        let names = |live: &DynamicObject| {
            let all = paths.iter().flat_map(|path| compare::managers(live, path, FIELD_MANAGER));
            all.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
        };
        Ok(live.as_ref().map(names).unwrap_or_default())
    }

    /// Writes, unless the same was refused a moment ago; remembers what came of it.
    async fn attempt(
        &self,
        cluster: &FanoutCluster,
        key: &Key,
        attempt: Attempt,
        live: Option<&DynamicObject>,
        due: Due,
    ) -> Result<(), Trouble> {
        let Attempt { wanted, .. } = attempt.clone();
        let (made, left) = self.tried(key, attempt, self.write(cluster, live, due)).await?;
        let now = Instant::now();
        let mut all = self.lock();
        let memory = all.entry(key.clone()).or_default();
        memory.accepted(Written::new(&made, wanted));
        if left.is_empty() {
            return Ok(());
        }
        let names: Vec<_> =
            left.iter().flat_map(|path| compare::managers(&made, path, FIELD_MANAGER)).collect();
        memory.disputes.overruled(&left, &names, now);
        Err(disputed(key, memory, &left, now))
    }

    /// Sends a request, unless the same was refused a moment ago; remembers a refusal. Its success is remembered by the
    /// caller, who knows what it made.
    async fn tried<T>(
        &self,
        key: &Key,
        attempt: Attempt,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Trouble> {
        let known = self.lock().get(key).cloned().unwrap_or_default();
        if let Some((error, left)) = known.refusal(&attempt, Instant::now()) {
            let lasting = known.is_lasting();
            return Err(Trouble { cause: Cause::Failed(error), again: Some(left), lasting });
        }
        let error = match request.await {
            Ok(made) => return Ok(made),
            Err(error) => error,
        };
        let mut all = self.lock();
        let mut memory = all.get(key).cloned().unwrap_or_default();
        let again = memory.refuse(attempt, &error, Instant::now());
        let lasting = memory.is_lasting();
        if again.is_some() {
            warn!(kind = key.kind, name = key.name, %error, "a child could not be written");
            all.insert(key.clone(), memory);
        }
        Err(Trouble { cause: Cause::Failed(error), again, lasting })
    }

    /// Server-side apply, and what that cannot undo by a merge patch. Gives what is there then, and where it is still
    /// not as it should be.
    async fn write(
        &self,
        cluster: &FanoutCluster,
        live: Option<&DynamicObject>,
        due: Due,
    ) -> Result<(DynamicObject, Vec<Path>), Error> {
        let Due { desired, comparison, .. } = &due;
        let made = match self.apply(cluster, desired, live).await {
            Ok(made) => made,
            // An edited key of a list can make what is applied invalid beside what is there.
            Err(error) if error.is_invalid() && !comparison.deviations.is_empty() => {
                let Some(live) = live else { return Err(error) };
                let undone = self.undo(cluster, desired, live, comparison).await;
                return undone.map_err(|second| if second.is_invalid() { error } else { second });
            }
            Err(error) => return Err(error),
        };
        let mut due = Due { comparison: compare::compare(desired, &made), ..due };
        due.renew_pod(&made);
        if due.comparison.deviations.is_empty() {
            return Ok((made, Vec::new()));
        }
        self.undo(cluster, &due.desired, &made, &due.comparison).await
    }

    async fn apply(
        &self,
        cluster: &FanoutCluster,
        desired: &Value,
        live: Option<&DynamicObject>,
    ) -> Result<DynamicObject, Error> {
        let (kind, name) = identity(desired);
        self.may_write(cluster.namespace(), &kind)?;
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let made = self.api(cluster, &kind).patch(&name, &params, &Patch::Apply(desired)).await;
        let made = made.map_err(Error::refused("apply", desired))?;
        info!(kind, name, "applied a child");
        if live.is_some_and(|live| live.resource_version() == made.resource_version()) {
            self.metrics.wrote_nothing(&kind);
        }
        Ok(made)
    }

    /// Takes back what server-side apply leaves: exactly at the version that was seen.
    async fn undo(
        &self,
        cluster: &FanoutCluster,
        desired: &Value,
        live: &DynamicObject,
        comparison: &Comparison,
    ) -> Result<(DynamicObject, Vec<Path>), Error> {
        let (kind, name) = identity(desired);
        let present = serde_json::to_value(live).expect("a Kubernetes object is JSON");
        let Some(mut patch) = compare::merge_patch(&present, &comparison.corrected) else {
            return Ok((live.clone(), comparison.deviations.clone()));
        };
        self.may_write(cluster.namespace(), &kind)?;
        patch["metadata"]["uid"] = json!(live.metadata.uid);
        patch["metadata"]["resourceVersion"] = json!(live.resource_version());
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let made = self.api(cluster, &kind).patch(&name, &params, &Patch::Merge(patch)).await;
        let made = made.map_err(Error::refused("repair", desired))?;
        info!(kind, name, "took back what others added to a child");
        let left = compare::compare(desired, &made).deviations;
        Ok((made, left))
    }

    /// Writes an object as it is given, whatever there is; the caller has seen it.
    pub(super) async fn put(
        &self,
        cluster: &FanoutCluster,
        mut desired: Value,
        live: &DynamicObject,
    ) -> Result<(), Trouble> {
        let (kind, name) = identity(&desired);
        let wanted = stamp(&mut desired);
        let key = Key::new(cluster, &kind, &name);
        // The number of nodes is not in the stamp, and another number is another attempt.
        let number = &desired["spec"]["replicas"];
        let attempt =
            Attempt { wanted: format!("{wanted}/{number}"), live: Some(compare::fingerprint(live)) };
        let made = self.tried(&key, attempt, self.apply(cluster, &desired, Some(live))).await?;
        self.lock().entry(key).or_default().accepted(Written::new(&made, wanted));
        Ok(())
    }

    /// Sheds what is remembered of clusters that are gone.
    pub(super) fn keep_only(&self, lives: impl Fn(&str, &str) -> bool) {
        // The name of a pod does not come back, so what is remembered of one is not kept for long.
        let is_alive = |key: &Key| key.kind != "Pod" && lives(&key.namespace, &key.cluster);
        self.lock().retain(|key, _| is_alive(key));
        self.sealed().retain(|key, _| is_alive(key));
    }

    /// Makes a generated Secret what it should be, and gives the digest of its values. Its values are not watched:
    /// they are read once for each version that the watch shows.
    pub(super) async fn ensure_secret(
        &self,
        cluster: &FanoutCluster,
        secret: &GeneratedSecret,
        live: Option<&PartialObjectMeta<Secret>>,
        events: &Events,
    ) -> Result<String, Trouble> {
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
            Some(read) if !is_adopted_or_owned(&read, cluster) => {
                return Err(not_ours(&read, cluster, "Secret", name).into());
            }
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
        self.may_write(api.namespace().unwrap_or_default(), "Secret")?;
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let made = api.create(&params, &secret.with_value(&random_hex())).await;
        let made = made.map_err(Error::api("create", "Secret", secret.name()))?;
        info!(name = secret.name(), "made a secret");
        Ok(made)
    }

    async fn repair_secret(&self, api: &Api<Secret>, name: &str, patch: Value) -> Result<Secret, Error> {
        self.may_write(api.namespace().unwrap_or_default(), "Secret")?;
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let made = api.patch(name, &params, &Patch::Merge(patch)).await;
        let made = made.map_err(Error::api("mend", "Secret", name))?;
        info!(name, "mended a secret");
        Ok(made)
    }

    /// Deletes exactly the object that was seen.
    pub(super) async fn delete(
        &self,
        cluster: &FanoutCluster,
        resource: &ApiResource,
        child: &DynamicObject,
    ) -> Result<(), Trouble> {
        if child.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), cluster.namespace(), resource);
        self.remove(cluster, &api, &resource.kind, child, DeleteParams::background()).await
    }

    /// Deletes exactly the pod that was seen.
    pub(super) async fn delete_pod(
        &self,
        cluster: &FanoutCluster,
        pod: &Pod,
        grace_seconds: u32,
    ) -> Result<(), Trouble> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), cluster.namespace());
        let params = DeleteParams { grace_period_seconds: Some(grace_seconds), ..DeleteParams::default() };
        self.remove(cluster, &api, "Pod", pod, params).await
    }

    async fn remove<K>(
        &self,
        cluster: &FanoutCluster,
        api: &Api<K>,
        kind: &str,
        object: &impl ResourceExt,
        params: DeleteParams,
    ) -> Result<(), Trouble>
    where
        K: Clone + DeserializeOwned + std::fmt::Debug,
    {
        let name = object.name_any();
        let key = Key::new(cluster, kind, &name);
        let seen = Preconditions { uid: object.uid(), resource_version: object.resource_version() };
        let how = if params.grace_period_seconds == Some(0) { "delete at once" } else { "delete" };
        let attempt = Attempt::on(how, object);
        let params = params.preconditions(seen);
        let request = async {
            self.may_write(cluster.namespace(), kind)?;
            match api.delete(&name, &params).await {
                Ok(_) => {
                    info!(kind, name, "deleted a child");
                    Ok(())
                }
                Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
                Err(error) => Err(Error::api("delete", kind, &name)(error)),
            }
        };
        self.tried(&key, attempt, request).await?;
        self.lock().remove(&key);
        Ok(())
    }

    /// Changes labels and annotations of exactly the pod that was seen. `what` is done by it is tried again the later the
    /// more often it was refused.
    pub(super) async fn mark(
        &self,
        cluster: &FanoutCluster,
        pod: &Pod,
        what: &str,
        metadata: Value,
    ) -> Result<(), Trouble> {
        let name = pod.name_any();
        let key = Key::new(cluster, "Pod", &name);
        let mut patch = json!({ "metadata": metadata });
        patch["metadata"]["uid"] = json!(pod.metadata.uid);
        patch["metadata"]["resourceVersion"] = json!(pod.metadata.resource_version);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), cluster.namespace());
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let request = async {
            self.may_write(cluster.namespace(), "Pod")?;
            let marked = api.patch_metadata(&name, &params, &Patch::Merge(patch)).await;
            marked.map(drop).map_err(Error::api("mark", "Pod", &name))
        };
        self.tried(&key, Attempt::on(what, pod), request).await?;
        self.lock().remove(&key);
        Ok(())
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
        let [pods, redis] = [pods, redis].map(|pods| pods.into_iter().map(Arc::new).collect::<Vec<_>>());
        let stateful = stateful.into_iter().map(typed("StatefulSet"));
        let mut sets: Vec<_> = sets.into_iter().map(typed("ReplicaSet")).chain(stateful).collect();
        let all = pods.iter().chain(&redis);
        let lost = dereference::unlabelled_sets(&self.client, cluster, &sets, all).await?;
        sets.extend(lost);
        let sets = dereference::own_sets(cluster, sets);
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
            unread: found.unread.clone(),
            redis: dereference::pods_of(&sets, "StatefulSet", redis),
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

    fn may_write(&self, namespace: &str, kind: &str) -> Result<(), Error> {
        self.territory.check(namespace)?;
        self.metrics.wrote(kind);
        Ok(())
    }

    fn sealed(&self) -> MutexGuard<'_, HashMap<Key, Sealed>> {
        // As in `lock`.
        self.sealed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Memory>> {
        // Entries are replaced whole, so a panic elsewhere leaves nothing half done.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether all that a plan rests on is the same: not the status, which is the operator's own. One that is being deleted
/// and held by a finalizer is served as long as both stay so.
fn is_unchanged(before: &FanoutCluster, now: &FanoutCluster) -> bool {
    let restart = |cluster: &FanoutCluster| cluster.annotations().get(RESTARTED_AT).cloned();
    let class = |cluster: &FanoutCluster| cluster.labels().get(OPERATOR_CLASS).cloned();
    before.metadata.uid == now.metadata.uid
        && before.metadata.deletion_timestamp == now.metadata.deletion_timestamp
        && before.finalizers() == now.finalizers()
        && before.spec == now.spec
        && restart(before) == restart(now)
        && class(before) == class(now)
}

/// A child is ours if we own it, or where nobody does and it was handed to us; a claim, which nobody owns, if it
/// carries our label.
fn is_ours(live: &DynamicObject, cluster: &FanoutCluster, kind: &str) -> bool {
    let labelled = || live.labels().get(labels::CLUSTER).map(String::as_str) == Some(cluster.name());
    is_adopted_or_owned(live, cluster) || (kind == "PersistentVolumeClaim" && labelled())
}

pub(super) fn is_adopted_or_owned(live: &impl ResourceExt, cluster: &FanoutCluster) -> bool {
    let handed_over = live.annotations().get(ADOPT).map(String::as_str) == Some(cluster.name());
    is_owned_by(live, cluster) || (live.owner_references().is_empty() && handed_over)
}

/// Why a child of that name is not taken over.
pub(super) fn not_ours(live: &impl ResourceExt, cluster: &FanoutCluster, kind: &str, name: &str) -> Error {
    let owners = live.owner_references();
    let owner = owners.iter().find(|owner| owner.controller == Some(true)).or(owners.first());
    let is_predecessor = |owner: &OwnerReference| {
        owner.kind == FanoutCluster::kind(&())
            && owner.api_version.starts_with(&format!("{GROUP}/"))
            && owner.name == cluster.name()
            && Some(&owner.uid) != cluster.metadata.uid.as_ref()
    };
    if owner.is_some_and(is_predecessor) {
        return Error::Predecessor { kind: kind.to_owned(), name: name.to_owned() };
    }
    let owner = owner.map(|owner| format!("{} {}", owner.kind, owner.name));
    Error::NotOurs { kind: kind.to_owned(), name: name.to_owned(), owner }
}

/// Makes what is wanted of a child fit what is there, stamps it and gives the stamp; an error where what is there is not
/// ours.
fn prepare(
    cluster: &FanoutCluster,
    live: Option<&DynamicObject>,
    desired: &mut Value,
) -> Result<String, Error> {
    if let Some(live) = live {
        let (kind, name) = identity(desired);
        if !is_ours(live, cluster, &kind) {
            return Err(not_ours(live, cluster, &kind, &name));
        }
        keep_larger_claim(desired, live);
    }
    Ok(stamp(desired))
}

/// Where a child differs from what is wanted of it, by what the API server has alone; `None`: nothing is to be written.
/// What a process remembers of earlier writes may keep it from writing, where somebody else undoes them.
pub(super) fn due(
    cluster: &FanoutCluster,
    live: &DynamicObject,
    mut desired: Value,
) -> Result<Option<Vec<Path>>, Trouble> {
    let (kind, name) = identity(&desired);
    prepare(cluster, Some(live), &mut desired)?;
    is_staying(live, &kind, &name)?;
    Ok(Some(compare::compare(&desired, live).deviations).filter(|deviations| !deviations.is_empty()))
}

/// Whether a child is not about to vanish.
fn is_staying(live: &DynamicObject, kind: &str, name: &str) -> Result<(), Trouble> {
    let finalizers = live.finalizers().iter().filter(|finalizer| !COLLECTOR.contains(&finalizer.as_str()));
    let finalizers: Vec<_> = finalizers.cloned().collect();
    if live.metadata.deletion_timestamp.is_none() || finalizers.is_empty() {
        return Ok(());
    }
    let (kind, name) = (kind.to_owned(), name.to_owned());
    Err(Error::Leaving { kind, name, finalizers: finalizers.join(", ") }.into())
}

/// A claim that is larger than what is asked for is taken as it is: a volume cannot shrink.
fn keep_larger_claim(desired: &mut Value, live: &DynamicObject) {
    let size = "/spec/resources/requests/storage";
    let present = live.data.pointer(size).filter(|_| desired["kind"] == "PersistentVolumeClaim");
    if let (Some(present), Some(asked)) = (present, desired.pointer_mut(size))
        && compare::is_at_least(present, asked)
    {
        *asked = present.clone();
    }
}

/// Whether a field is part of the template of a kind whose pods follow it.
fn is_redis_template(kind: &str) -> impl Fn(&Path) -> bool + Copy + use<> {
    let restarts = kind == "StatefulSet";
    move |path| restarts && path.is_below(&Path::of("spec.template"))
}

/// Whether objects of a kind keep pods.
fn has_pods(kind: &str) -> bool {
    matches!(kind, "ReplicaSet" | "StatefulSet")
}

/// What is told of fields that others keep changing.
fn disputed(key: &Key, memory: &Memory, deviations: &[Path], now: Instant) -> Trouble {
    let Key { kind, name, .. } = key;
    let paths: Vec<_> = deviations.iter().filter(|path| memory.disputes.is_disputed(path)).cloned().collect();
    let frozen = is_redis_template(kind);
    let again = paths.iter().filter(|path| !frozen(path)).map(|path| memory.disputes.left(path, now)).min();
    let names = memory.disputes.managers(&paths);
    let advice = if paths.iter().any(frozen) {
        "it is left alone, for another attempt would restart the pod"
    } else {
        "it is tried again, ever more seldom"
    };
    let message = format!(
        "{kind} {name} does not stay as this FanoutCluster wants it: what is repaired comes back ({}); {advice}: end it there, or let the FanoutCluster say the same",
        by(&paths, &names)
    );
    let problem =
        Problem { reason: Reason::RepairDisputed, object: format!("{kind}/{name}"), key: None, message };
    Trouble { cause: Cause::Told(problem), again, lasting: true }
}

/// Fields and who changes them.
fn by(paths: &[Path], names: &[String]) -> String {
    let mut fields: Vec<_> = paths.iter().take(MAX_FIELDS).map(Path::to_string).collect();
    if paths.len() > MAX_FIELDS {
        fields.push(format!("and {} more", paths.len() - MAX_FIELDS));
    }
    let fields = fields.join(", ");
    if names.is_empty() { fields } else { format!("{fields}, by {}", names.join(", ")) }
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

pub(super) fn identity(object: &Value) -> (String, String) {
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
            uid: cluster.metadata.uid.clone(),
            cluster: cluster.name().to_owned(),
            kind: kind.to_owned(),
            namespace: cluster.namespace().to_owned(),
            name: name.to_owned(),
        }
    }
}

// === impl Attempt ===

impl Attempt {
    /// Something that is done to an object as it was seen.
    fn on(what: &str, object: &impl ResourceExt) -> Self {
        Self {
            wanted: what.to_owned(),
            live: object
                .uid()
                .zip(object.resource_version())
                .map(|(uid, version)| format!("{uid}/{version}")),
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
            pod: compare::pod_hash(made),
        }
    }
}

// === impl Due ===

impl Due {
    /// Whether Kubernetes replaces or removes pods for it. The pods of a ReplicaSet follow no template, and how many there
    /// are is the plan's.
    fn replaces_pods(&self, kind: &str) -> bool {
        let spec = Path::of("spec");
        kind == "StatefulSet" && self.comparison.deviations.iter().any(|path| path.is_below(&spec))
    }

    /// Replaces the pod's specification whole, where it has something that was not there after our own write: what is not
    /// stated gets its default.
    fn renew_pod(&mut self, live: &DynamicObject) {
        if self.pod.is_none() || self.pod == compare::pod_hash(live) {
            return;
        }
        let pod = "/spec/template/spec";
        if let (Some(pod), Some(ours)) =
            (self.comparison.corrected.pointer_mut(pod), self.desired.pointer(pod))
        {
            *pod = ours.clone();
            let whole = Path::of("spec.template.spec");
            if self.comparison.deviations.iter().all(|path| !path.is_below(&whole)) {
                self.comparison.deviations.push(whole);
            }
        }
    }

    /// Leaves the template as it is, where it has such fields.
    fn freeze(&mut self, live: &DynamicObject, is_frozen: impl Fn(&Path) -> bool) {
        self.frozen = self.comparison.deviations.iter().filter(|path| is_frozen(path)).cloned().collect();
        if !self.frozen.is_empty() {
            self.pod = None;
            self.desired["spec"]["template"] = live.data["spec"]["template"].clone();
            self.comparison = compare::compare(&self.desired, live);
        }
    }
}

// === impl Trouble ===

impl Trouble {
    /// Whether somebody was faster.
    pub(super) fn is_conflict(&self) -> bool {
        matches!(&self.cause, Cause::Failed(error) if error.class() == ErrorClass::Conflict)
    }

    /// Whether no object of this form can be written.
    pub(super) fn is_malformed(&self) -> bool {
        matches!(&self.cause, Cause::Failed(error) if error.is_malformed())
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self { cause: Cause::Failed(error), again: None, lasting: false }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{health::Readiness, lease::Claim};

    #[tokio::test]
    async fn what_is_remembered_of_a_cluster_that_is_gone_is_forgotten() {
        let silent = tower::service_fn(|_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, tower::BoxError>>()
        });
        let client = Client::new(silent, "test");
        let territory = Territory::new(client.clone(), "one", None, Claim::default(), Readiness::default());
        let (memory, sealed) = (Arc::default(), Arc::default());
        let writer = Writer { client, territory, metrics: Metrics::new(), memory, sealed };
        let key = |name: &str| {
            let mut cluster = FanoutCluster::new(name, Default::default());
            cluster.metadata.namespace = Some("test".to_owned());
            Key::new(&cluster, "Service", name)
        };
        for name in ["gone", "there"] {
            writer.lock().insert(key(name), Memory::default());
            writer.sealed().insert(key(name), Sealed { uid: None, version: 1, digest: String::new() });
        }
        writer.keep_only(|namespace, name| (namespace, name) == ("test", "there"));
        assert_eq!(writer.lock().keys().cloned().collect::<Vec<_>>(), [key("there")]);
        assert_eq!(writer.sealed().keys().cloned().collect::<Vec<_>>(), [key("there")]);
    }

    #[test]
    fn a_plan_rests_on_the_spec_the_class_and_what_holds_the_cluster() {
        let with = |metadata: Value, replicas: u32| -> FanoutCluster {
            let cluster = json!({"apiVersion": "fanout.dev/v1alpha1", "kind": "FanoutCluster",
                "metadata": metadata, "spec": {"replicas": replicas}});
            serde_json::from_value(cluster).expect("a cluster")
        };
        let held = json!({"name": "chat", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["theirs/x"]});
        let before = with(held.clone(), 2);
        assert!(is_unchanged(&before, &before), "it is served as long as it is held");
        assert!(!is_unchanged(&before, &with(held.clone(), 3)));
        for (field, value) in [
            ("uid", json!("other")),
            ("deletionTimestamp", Value::Null),
            ("finalizers", json!(["theirs/x", "foregroundDeletion"])),
            ("labels", json!({"fanout.dev/operator-class": "blue"})),
            ("annotations", json!({"fanout.dev/restarted-at": "2026-01-01T00:00:00Z"})),
        ] {
            let mut now = held.clone();
            now[field] = value;
            assert!(!is_unchanged(&before, &with(now, 2)), "{field}");
        }
    }
}
