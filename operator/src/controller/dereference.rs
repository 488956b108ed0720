//! First step: everything that a decision may rest on, read before any is taken.
//!
//! Children, pods and the nodes' reports come from memory; a Secret that the spec names is read from the API server
//! once per version of it, and only the sizes of its values are kept. `observed` puts what was found into the
//! words of [`plan`](crate::plan).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Event, Node as KubernetesNode, Pod, Secret},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams},
};
use sha2::{Digest, Sha256};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{
    Error, chain, diagnose,
    mirror::{self, Mirrors},
    validate::{Dereferenced, Problem, SecretShape, presumed, referenced_secrets},
};
use crate::{
    api::{FanoutCluster, Reason, v1alpha1::RedisKind},
    plan::{Machine, Observed, ObservedPod, ObservedRedis, ObservedRedisPod, ObservedSet},
    redis::managed,
    resources::{
        labels,
        replica_set::{CONTAINER, GRACE},
        secret::{API_KEY, api_key_name},
    },
    scrape::{Report, Reports},
};

/// When the operator took a pod out of its Services to remove it.
pub const RETIRED_AT: &str = "fanout.dev/retired-at";

/// When a pod was marked as the next to go.
pub const RELEASED_AT: &str = "fanout.dev/released-at";

/// Seconds that Kubernetes gives a pod to end which does not say.
const DEFAULT_GRACE: u32 = 30;

/// Time for what only adds to a reading, as the state of a pod's Kubernetes node: status does not wait longer to say that a
/// node does not serve.
const PATIENCE: Duration = Duration::from_secs(2);

/// By so much the clocks of two operators may differ.
const SKEW: SignedDuration = SignedDuration::from_secs(60);

/// Late pods of which the Events are read, in one reconcile.
const MOUNTS_ASKED: usize = 3;

/// What was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// What the spec names.
    pub named: Dereferenced,
    /// Why Secrets could not be read. Each counts as what the spec wants it to be, for the nodes run by it.
    pub unread: Vec<Error>,
    /// Labelled children, pods and Secrets apart, and sets that lost the label. ReplicaSets and StatefulSets are the cluster's own; of others, the
    /// owner is still to be looked at.
    pub children: Vec<(ApiResource, Arc<DynamicObject>)>,
    /// The pods of the cluster's own ReplicaSets.
    pub nodes: Vec<Node>,
    /// The pods of the cluster's own StatefulSet.
    pub redis: Vec<Arc<Pod>>,
    /// The Kubernetes nodes of those of them that are not ready, by name.
    pub machines: BTreeMap<String, Machine>,
    /// What the kubelet said last about a volume that it could not mount, by the uid of the pod.
    pub mounts: BTreeMap<String, String>,
    /// Time that a pod has to become ready.
    pub deadline: Duration,
    /// When that was.
    pub at: Timestamp,
}

/// A pod of a node and what it said last.
#[derive(Clone, Debug)]
pub struct Node {
    /// The pod.
    pub pod: Arc<Pod>,
    /// `None`: it was not asked yet.
    pub report: Option<Report>,
}

/// Shapes of the Secrets that were read, each with the version it was read at.
pub(super) struct SecretShapes {
    client: Client,
    known: Mutex<HashMap<(String, String), (String, SecretShape)>>,
}

/// Reads what a cluster rests on.
pub(super) async fn dereference(
    cluster: &FanoutCluster,
    mirrors: &Mirrors,
    reports: &Reports,
    secrets: &SecretShapes,
) -> Result<Found, Error> {
    let (mut named, mut unread) = (Dereferenced::default(), Vec::new());
    for name in referenced_secrets(cluster) {
        let read = secrets.shape(mirrors, cluster.namespace(), &name).await;
        let shape = read.unwrap_or_else(|error| {
            unread.push(error);
            Some(presumed(cluster, &name))
        });
        named.secrets.insert(name, shape);
    }
    if cluster.has_app_containers() {
        match secrets.shape(mirrors, cluster.namespace(), &api_key_name(cluster)).await {
            Ok(key) => named.api_key = key.and_then(|key| key.api_key),
            Err(error) => unread.push(error),
        }
    }
    let (pods, redis) = (mirrors.nodes_of(cluster), mirrors.redis_of(cluster));
    let labelled = mirrors.children_of(cluster);
    let lost = unlabelled_sets(&secrets.client, cluster, &labelled, pods.iter().chain(&redis)).await?;
    let children = own_sets(cluster, labelled.into_iter().chain(lost).collect());
    let nodes = pods_of(&children, "ReplicaSet", pods);
    note_readers(&mut named, &children, &nodes);
    let redis = pods_of(&children, "StatefulSet", redis);
    let machines =
        if mirrors.may_read_machines() { machines(&secrets.client, &redis).await } else { BTreeMap::new() };
    let mut found = Found {
        named,
        unread,
        machines,
        nodes: nodes.into_iter().map(|pod| Node { report: reports.of(&pod), pod }).collect(),
        redis,
        children,
        mounts: BTreeMap::new(),
        deadline: Duration::from_secs(cluster.spec.progress_deadline_seconds.into()),
        at: Timestamp::now(),
    };
    found.mounts = found.failed_mounts(&secrets.client, cluster.namespace()).await;
    if found.managed_redis_is_down(cluster) {
        for node in &mut found.nodes {
            reports.doubt(&node.pod);
            node.report = reports.of(&node.pod);
        }
    }
    Ok(found)
}

/// Notes what the revisions say of the nodes that read the live document.
pub(super) fn note_readers(
    named: &mut Dereferenced,
    children: &[(ApiResource, Arc<DynamicObject>)],
    nodes: &[Arc<Pod>],
) {
    named.versions = inhabited(children, nodes).filter_map(version_of).collect();
    named.untold_grace_seconds = inhabited(children, nodes).filter_map(untold_grace).min();
}

/// ReplicaSets that have pods, or are about to. The last pods of one that is to have none still drain.
fn inhabited<'a>(
    children: &'a [(ApiResource, Arc<DynamicObject>)],
    nodes: &'a [Arc<Pod>],
) -> impl Iterator<Item = &'a DynamicObject> {
    let sets = children.iter().filter(|(resource, _)| resource.kind == "ReplicaSet");
    sets.map(|(_, set)| set.as_ref()).filter(move |set| {
        let is_of_set = |pod: &Pod| controller(pod) == set.metadata.uid.as_deref();
        set.data["spec"]["replicas"].as_u64().is_some_and(|replicas| replicas > 0)
            || nodes.iter().any(|pod| !has_ended(pod) && is_of_set(pod))
    })
}

/// Seconds that the pods of a revision have to end, where its sidecar was not told. The revision is as it was first
/// written, so it may be from before the sidecar asked for it.
fn untold_grace(set: &DynamicObject) -> Option<u32> {
    let pod = &set.data["spec"]["template"]["spec"];
    let containers = ["initContainers", "containers"].iter().flat_map(|list| pod[list].as_array());
    let sidecar = containers.flatten().find(|container| container["name"] == CONTAINER)?;
    let mut env = sidecar["env"].as_array().into_iter().flatten();
    let grace = &pod["terminationGracePeriodSeconds"];
    let seconds = || grace.as_u64().and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(DEFAULT_GRACE);
    env.all(|variable| variable["name"] != GRACE).then(seconds)
}

/// Version of the sidecar of a revision. Either annotation may be lost or edited until it is repaired by the other.
fn version_of(set: &DynamicObject) -> Option<String> {
    let parsed = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    let version = |text: &str| parsed(text)?["spec"]["version"].as_str().map(str::to_owned);
    let rendered = set.annotations().get(labels::RENDERED).and_then(|text| parsed(text));
    let stored = rendered.as_ref().and_then(|rendered| {
        rendered["replicaSet"]["metadata"]["annotations"][labels::REVISION_SPEC].as_str()
    });
    stored.and_then(version).or_else(|| version(set.annotations().get(labels::REVISION_SPEC)?))
}

/// The revision of a ReplicaSet. Its selector says so, which nobody can change; a label is lost with one edit.
pub(super) fn revision_of(set: &DynamicObject) -> &str {
    let selected = set.data["spec"]["selector"]["matchLabels"][labels::REVISION].as_str();
    selected.or_else(|| set.labels().get(labels::REVISION).map(String::as_str)).unwrap_or_default()
}

/// State of the Kubernetes nodes of pods that are not ready, by name. Only these are read: nodes are many and change
/// often.
pub(super) async fn machines(client: &Client, pods: &[Arc<Pod>]) -> BTreeMap<String, Machine> {
    let api: Api<KubernetesNode> = Api::all(client.clone());
    let mut machines = BTreeMap::new();
    for name in pods.iter().filter(|pod| !is_ready(pod)).filter_map(|pod| machine_name(pod)) {
        let machine = match detail("the Kubernetes node of a pod", name, api.get_opt(name)).await {
            Some(Some(machine)) if is_machine_ready(&machine) => Machine::Ready,
            Some(Some(_)) => Machine::NotReady,
            Some(None) => Machine::Gone,
            None => Machine::Unknown,
        };
        machines.insert(name.to_owned(), machine);
    }
    machines
}

/// What the API server says of a detail; `None` where it does not within [`PATIENCE`].
async fn detail<T>(what: &str, name: &str, answer: impl Future<Output = kube::Result<T>>) -> Option<T> {
    match timeout(PATIENCE, answer).await {
        Ok(Ok(answer)) => return Some(answer),
        Ok(Err(error)) => debug!(name, error = %chain(&error), "{what} cannot be read"),
        Err(_) => debug!(name, "{what} cannot be read within {} s", PATIENCE.as_secs()),
    }
    None
}

/// The Kubernetes node of a pod.
pub(super) fn machine_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// What Kubernetes said last of a volume that a pod waits for. While a volume cannot be attached, the kubelet says only
/// that it waits for it, and says so again and again.
fn volume_trouble(events: &[Event]) -> Option<String> {
    let at = |event: &Event| {
        event.last_timestamp.as_ref().map(|time| time.0).or(event.event_time.as_ref().map(|time| time.0))
    };
    let newest = |reason: &str| {
        let of_reason = events.iter().filter(|event| event.reason.as_deref() == Some(reason));
        of_reason.max_by_key(|event| at(event))
    };
    let attached = newest("SuccessfulAttachVolume").and_then(at);
    let attach = newest("FailedAttachVolume").filter(|failed| at(failed) > attached);
    attach.or_else(|| newest("FailedMount"))?.message.clone()
}

fn is_machine_ready(machine: &KubernetesNode) -> bool {
    let conditions = machine.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The sets that made some of `pods` and are not among those found by the label: they may have lost it. Read one by one,
/// for there are none but for a moment. One without pods is found by its name, once its revision is to be made.
pub(super) async fn unlabelled_sets(
    client: &Client,
    cluster: &FanoutCluster,
    labelled: &[(ApiResource, Arc<DynamicObject>)],
    pods: impl Iterator<Item = &Arc<Pod>>,
) -> Result<Vec<(ApiResource, Arc<DynamicObject>)>, Error> {
    let known: BTreeSet<_> = labelled.iter().filter_map(|(_, set)| set.metadata.uid.as_deref()).collect();
    // Anybody may label a pod; what made it is ours only where it has a name of ours.
    let prefix = format!("{}-", cluster.name());
    let is_lost = |owner: &&OwnerReference| {
        matches!(owner.kind.as_str(), "ReplicaSet" | "StatefulSet")
            && owner.name.starts_with(&prefix)
            && !known.contains(owner.uid.as_str())
    };
    let owners = pods.filter_map(|pod| controller_of(pod.as_ref())).filter(is_lost);
    let lost: BTreeSet<_> = owners.map(|owner| (owner.kind.as_str(), owner.name.as_str())).collect();
    let mut sets = Vec::new();
    for (kind, name) in lost {
        let resource = mirror::resource_of(kind);
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), cluster.namespace(), &resource);
        let set = api.get_opt(name).await.map_err(Error::api("read", kind, name))?;
        sets.extend(set.map(|set| (resource, Arc::new(set))));
    }
    Ok(sets)
}

/// Children without the ReplicaSets and StatefulSets that only carry the cluster's label. Anybody may set a label, and
/// a cluster that was deleted leaves children of the same label for a while; only the uid of the controller tells.
pub(super) fn own_sets(
    cluster: &FanoutCluster,
    mut children: Vec<(ApiResource, Arc<DynamicObject>)>,
) -> Vec<(ApiResource, Arc<DynamicObject>)> {
    children.retain(|(resource, child)| match resource.kind.as_str() {
        "ReplicaSet" | "StatefulSet" => is_owned_by(child.as_ref(), cluster),
        _ => true,
    });
    children
}

/// Whether a child has our cluster as its owner, and no other controller. An owner that was edited so that it controls
/// the child no longer is put right, as any other edit is.
pub(super) fn is_owned_by(child: &impl ResourceExt, cluster: &FanoutCluster) -> bool {
    let Some(uid) = &cluster.metadata.uid else { return false };
    let owners = child.owner_references();
    owners.iter().any(|owner| owner.uid == *uid)
        && controller(child).is_none_or(|controller| controller == uid)
}

/// The pods that one of the sets of a kind controls.
pub(super) fn pods_of(
    sets: &[(ApiResource, Arc<DynamicObject>)],
    kind: &str,
    mut pods: Vec<Arc<Pod>>,
) -> Vec<Arc<Pod>> {
    let sets = sets.iter().filter(|(resource, _)| resource.kind == kind);
    let uids: BTreeSet<_> = sets.filter_map(|(_, set)| set.metadata.uid.as_deref()).collect();
    pods.retain(|pod| controller(pod.as_ref()).is_some_and(|uid| uids.contains(uid)));
    pods
}

/// The uid of an object's controller.
fn controller(object: &impl ResourceExt) -> Option<&str> {
    controller_of(object).map(|owner| owner.uid.as_str())
}

fn controller_of(object: &impl ResourceExt) -> Option<&OwnerReference> {
    object.owner_references().iter().find(|owner| owner.controller == Some(true))
}

fn observed_set(set: &DynamicObject) -> ObservedSet {
    ObservedSet {
        name: set.name_any(),
        revision: revision_of(set).to_owned(),
        replicas: set.data["spec"]["replicas"].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
        created: created(set),
    }
}

/// `None` for a pod that has ended, and for one without a controller.
fn observed_pod(found: &Found, node: &Node) -> Option<ObservedPod> {
    let Node { pod, report } = node;
    if has_ended(pod) {
        return None;
    }
    let owner = controller_of(pod.as_ref())?;
    Some(ObservedPod {
        name: pod.name_any(),
        set: owner.name.clone(),
        created: created(pod.as_ref()),
        ready: is_ready(pod),
        ready_since: ready_since(pod),
        verified: report.as_ref().filter(|report| report.answered).and_then(|report| report.broker_verified),
        stuck: found.problem_of(pod).is_some(),
        serving: pod.labels().get(labels::SERVING).is_some_and(|serving| serving == "true"),
        retired: time_of(pod, RETIRED_AT, found.at),
        released: time_of(pod, RELEASED_AT, found.at),
        ends_by: pod.metadata.deletion_timestamp.as_ref().map(|time| time.0),
        connections: connections(pod, report.as_ref()),
    })
}

/// Open connections of a node; `None` where they are not known. A sidecar that does not run has none. The kubelet's
/// word counts for that: where it is lost with its Kubernetes node, its last word is that the sidecar runs.
fn connections(pod: &Pod, report: Option<&Report>) -> Option<u64> {
    if !sidecar_runs(pod) {
        return Some(0);
    }
    report.filter(|report| report.answered).map(|report| report.connections)
}

fn sidecar_runs(pod: &Pod) -> bool {
    let status = pod.status.iter();
    let mut containers = status.flat_map(|status| {
        let init = status.init_container_statuses.iter().flatten();
        init.chain(status.container_statuses.iter().flatten())
    });
    match containers.find(|container| container.name == CONTAINER) {
        Some(sidecar) => sidecar.state.as_ref().is_some_and(|state| state.running.is_some()),
        None => phase(pod) == "Running",
    }
}

fn ready_since(pod: &Pod) -> Option<Timestamp> {
    Some(condition(pod, "Ready").filter(|ready| ready.status == "True")?.last_transition_time.as_ref()?.0)
}

/// Whether Kubernetes calls a pod ready.
pub(super) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

/// A condition of a pod.
pub(super) fn condition<'a>(
    pod: &'a Pod,
    type_: &str,
) -> Option<&'a k8s_openapi::api::core::v1::PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// The phase of a pod; empty where the kubelet has not said any.
pub(super) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Whether all of a pod's containers have ended, and none starts again.
pub(super) fn has_ended(pod: &Pod) -> bool {
    matches!(phase(pod), "Failed" | "Succeeded")
}

fn created(object: &impl ResourceExt) -> Timestamp {
    object.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

/// A time that the operator wrote. One that cannot be read or is yet to come is long past, so that nothing waits for it.
fn time_of(pod: &Pod, annotation: &str, now: Timestamp) -> Option<Timestamp> {
    let text = pod.annotations().get(annotation)?;
    let time: Option<Timestamp> = text.parse().ok();
    let is_past = |time: &Timestamp| time.duration_since(now) <= SKEW;
    Some(time.filter(is_past).unwrap_or(Timestamp::UNIX_EPOCH))
}

// === impl Node ===

impl Node {
    /// Since when it says that all its clients have left.
    fn drained(&self) -> Option<Timestamp> {
        self.report.as_ref().filter(|report| report.answered)?.drained_since
    }
}

// === impl Found ===

impl Found {
    /// A cluster of which nothing exists.
    #[cfg(test)]
    pub(super) fn nothing() -> Self {
        Self {
            named: Dereferenced::default(),
            unread: Vec::new(),
            children: Vec::new(),
            nodes: Vec::new(),
            redis: Vec::new(),
            machines: BTreeMap::new(),
            mounts: BTreeMap::new(),
            deadline: Duration::from_secs(120),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    /// A child by kind and name.
    pub(super) fn child(&self, kind: &str, name: &str) -> Option<&DynamicObject> {
        self.of_kind(kind).find(|child| child.metadata.name.as_deref() == Some(name))
    }

    /// Children of a kind.
    pub(super) fn of_kind(&self, kind: &str) -> impl Iterator<Item = &DynamicObject> {
        self.children
            .iter()
            .filter(move |(resource, _)| resource.kind == kind)
            .map(|(_, child)| child.as_ref())
    }

    /// Whether the cluster's own Redis has no ready pod.
    pub(super) fn managed_redis_is_down(&self, cluster: &FanoutCluster) -> bool {
        let managed = matches!(cluster.spec.redis.kind(), Some(RedisKind::Managed(_)));
        let set = self.child("StatefulSet", &managed::name(cluster));
        managed && set.is_some_and(|set| set.data["status"]["readyReplicas"].as_u64().unwrap_or(0) == 0)
    }

    /// Why late pods that wait for a volume wait: only Events say so.
    async fn failed_mounts(&self, client: &Client, namespace: &str) -> BTreeMap<String, String> {
        let pods = self.nodes.iter().map(|node| &node.pod).chain(&self.redis);
        let late = pods.filter(|pod| {
            let is_late =
                self.problem_of(pod).is_some_and(|problem| problem.reason == Reason::NotReadyInTime);
            is_late && phase(pod) == "Pending" && machine_name(pod).is_some()
        });
        let api: Api<Event> = Api::namespaced(client.clone(), namespace);
        let asked = late.take(MOUNTS_ASKED).map(async |pod| {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let of_pod = ListParams::default().fields(&format!("involvedObject.uid={uid}"));
            let events = detail("the events of a pod", &pod.name_any(), api.list(&of_pod)).await?;
            Some((uid, volume_trouble(&events.items)?))
        });
        futures::future::join_all(asked).await.into_iter().flatten().collect()
    }

    /// What keeps a pod from being ready.
    pub(super) fn problem_of(&self, pod: &Pod) -> Option<Problem> {
        let mount = pod.metadata.uid.as_ref().and_then(|uid| self.mounts.get(uid)).map(String::as_str);
        diagnose::pod(pod, diagnose::Look { at: self.at, deadline: self.deadline, mount })
    }

    /// App containers that hold up a node that has drained.
    pub(super) fn lingering(&self) -> impl Iterator<Item = Problem> {
        self.nodes.iter().filter_map(|node| diagnose::lingering(&node.pod, node.drained(), self.at))
    }

    /// How long until more may be wrong although nothing changed.
    pub(super) fn next_look(&self) -> Option<Duration> {
        let pods = self.nodes.iter().map(|node| &node.pod).chain(&self.redis);
        let late = pods.filter_map(|pod| diagnose::next_look(pod, self.deadline, self.at));
        let lingering = self.nodes.iter().filter_map(|node| diagnose::lingers_at(&node.pod, node.drained()));
        let next = late.chain(lingering).filter(|at| *at > self.at).min()?;
        Duration::try_from(next.duration_since(self.at)).ok()
    }

    /// The plan's view of it.
    pub(super) fn observed(&self) -> Observed {
        Observed {
            sets: self.of_kind("ReplicaSet").map(observed_set).collect(),
            pods: self.nodes.iter().filter_map(|node| observed_pod(self, node)).collect(),
            redis: self.of_kind("StatefulSet").next().map(|set| self.observed_redis(set)),
        }
    }

    fn observed_redis(&self, set: &DynamicObject) -> ObservedRedis {
        let spec = set.annotations().get(labels::REDIS_SPEC);
        let template = &set.data["spec"]["template"]["metadata"]["annotations"];
        ObservedRedis {
            set: set.name_any(),
            spec: spec.and_then(|spec| serde_json::from_str(spec).ok()),
            password: template[labels::PASSWORD].as_str().unwrap_or_default().to_owned(),
            pods: self.redis.iter().map(|pod| self.observed_redis_pod(pod)).collect(),
        }
    }

    fn observed_redis_pod(&self, pod: &Pod) -> ObservedRedisPod {
        let unready = condition(pod, "Ready").filter(|ready| ready.status != "True");
        ObservedRedisPod {
            name: pod.name_any(),
            unready_since: unready.and_then(|ready| Some(ready.last_transition_time.as_ref()?.0)),
            ends_by: pod.metadata.deletion_timestamp.as_ref().map(|time| time.0),
            machine: self.machine_of(pod),
        }
    }

    /// State of the Kubernetes node of a pod of the managed Redis.
    pub(super) fn machine_of(&self, pod: &Pod) -> Machine {
        machine_name(pod).and_then(|name| self.machines.get(name)).copied().unwrap_or_default()
    }
}

// === impl SecretShapes ===

impl SecretShapes {
    /// Nothing read yet.
    pub(super) fn new(client: Client) -> Self {
        Self { client, known: Mutex::default() }
    }

    async fn shape(
        &self,
        mirrors: &Mirrors,
        namespace: &str,
        name: &str,
    ) -> Result<Option<SecretShape>, Error> {
        let key = (namespace.to_owned(), name.to_owned());
        let Some(metadata) = mirrors.secret(namespace, name) else {
            self.lock().remove(&key);
            return Ok(None);
        };
        let version = metadata.resource_version().unwrap_or_default();
        if let Some((_, shape)) = self.lock().get(&key).filter(|(read, _)| *read == version) {
            return Ok(Some(shape.clone()));
        }
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let read = api.get_opt(name).await.map_err(Error::api("read", "Secret", name));
        let known = self.lock().get(&key).map(|(_, shape)| shape.clone());
        let secret = match (read, known) {
            (Ok(secret), _) => secret,
            // What cannot be read is unknown, not gone: what was read before still holds.
            (Err(error), Some(known)) => {
                warn!(namespace, name, %error, "a Secret cannot be read and is taken as it was");
                return Ok(Some(known));
            }
            (Err(error), None) => return Err(error),
        };
        let shape = secret.map(|secret| shape_of(&secret));
        if let Some(shape) = &shape {
            self.lock().insert(key, (version, shape.clone()));
        }
        Ok(shape)
    }

    /// Sheds what is known of Secrets that are gone.
    pub(super) fn keep_only(&self, mirrors: &Mirrors) {
        self.lock().retain(|(namespace, name), _| mirrors.secret(namespace, name).is_some());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), (String, SecretShape)>> {
        // Entries are replaced whole, so a panic elsewhere leaves nothing half done.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn shape_of(secret: &Secret) -> SecretShape {
    let sizes = secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.len()));
    let api_key = secret.data.as_ref().and_then(|data| data.get(API_KEY));
    SecretShape { sizes: sizes.collect(), api_key: api_key.map(|key| digest(&key.0)) }
}

/// First 16 hexadecimal digits of the SHA-256. It tells nothing of a random value.
fn digest(value: &[u8]) -> String {
    Sha256::digest(value).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_waits_for_a_time_that_cannot_be_read_or_lies_ahead() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let retired = |text: &str| {
            let pod = json!({"metadata": {"name": "n", "annotations": {RETIRED_AT: text}}});
            time_of(&serde_json::from_value(pod).expect("a pod"), RETIRED_AT, now)
        };
        assert_eq!(retired("2025-12-31T23:59:59Z"), Some("2025-12-31T23:59:59Z".parse().expect("a time")));
        assert_eq!(retired("2026-01-01T00:00:30Z"), Some("2026-01-01T00:00:30Z".parse().expect("a time")));
        for text in ["2099-01-01T00:00:00Z", "soon", ""] {
            assert_eq!(retired(text), Some(Timestamp::UNIX_EPOCH), "{text}");
        }
    }

    #[test]
    fn why_a_volume_cannot_be_attached_says_more_than_that_the_kubelet_waits_for_it() {
        let said = |events: &[(&str, u32)]| {
            let events = events.iter().map(|(reason, minute)| {
                let event = json!({"metadata": {}, "involvedObject": {}, "reason": reason,
                    "message": format!("{reason} {minute}"), "lastTimestamp": format!("2026-01-01T00:{minute:02}:00Z")});
                serde_json::from_value(event).expect("an Event")
            });
            volume_trouble(&events.collect::<Vec<_>>())
        };
        let (mount, attach, attached) = ("FailedMount", "FailedAttachVolume", "SuccessfulAttachVolume");
        assert_eq!(said(&[("Scheduled", 9)]), None);
        assert_eq!(said(&[(mount, 1), (mount, 2), ("Scheduled", 9)]).as_deref(), Some("FailedMount 2"));
        assert_eq!(said(&[(attach, 1), (mount, 2)]).as_deref(), Some("FailedAttachVolume 1"));
        assert_eq!(said(&[(attach, 1), (attached, 2), (mount, 3)]).as_deref(), Some("FailedMount 3"));
    }
}
