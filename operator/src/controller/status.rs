//! Fifth step: tells the truth. [`compute`] is pure; `Reporter` writes it where it differs from what is there, at
//! most once a second for a cluster, and sends an Event for each thing that begins to stand in the way.

mod conditions;
mod news;
mod nodes;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    core::{DeserializeGuard, ObjectMeta, error_boundary::InvalidObject},
};
use serde_json::json;
use tokio::time::Instant;

use self::news::Told;
use super::{
    Error, Shared,
    apply::Applied,
    dereference::{Found, is_ready},
    mirror::Guarded,
    validate::Problem,
};
use crate::{
    api::{ConditionType, FanoutCluster, FanoutClusterStatus, Reason, v1alpha1::NodeStatus},
    events::{Events, Severity},
    lease::territory::Territory,
    metrics::Metrics,
    resources::{labels, service},
};

/// Who the operator is to the API server when it writes status.
pub const FIELD_MANAGER: &str = "fanout-operator-status";

/// Nodes that are listed one by one.
const MAX_NODES: usize = 100;

/// Time between two writes of one cluster's status.
const PACE: Duration = Duration::from_secs(1);

/// Writes status. One for all clusters of a scope.
#[derive(Clone)]
pub(super) struct Reporter {
    client: Client,
    territory: Territory,
    events: Events,
    metrics: Metrics,
    /// By [`key`].
    memory: Arc<Mutex<HashMap<String, Written>>>,
    told: Arc<Mutex<HashMap<String, Told>>>,
}

/// The last status that was written.
#[derive(Clone, Debug)]
struct Written {
    status: FanoutClusterStatus,
    version: u64,
    at: Instant,
}

/// The status of a cluster, from what was found and what was done.
pub fn compute(cluster: &FanoutCluster, found: &Found, applied: &Applied) -> FanoutClusterStatus {
    let before = cluster.status.clone().unwrap_or_default();
    // A spec that was refused asks for no revision: the nodes are what they were.
    let update = applied.revision.clone().unwrap_or_else(|| before.update_revision.clone());
    let counts = Counts::of(found, Some(&update));
    let nodes = nodes::list(found);
    // Nor are they of this spec.
    let complete = applied.revision.is_some() && counts.is_complete(cluster);
    let problems = conditions::problems(cluster, found, applied);
    let verdicts = conditions::judge(cluster, found, &problems, &counts, applied.settings.as_deref());
    // Whoever waits for a generation waits for its children and its settings too. Until all are written and nodes have taken
    // the settings over, what is told of being ready is told of the generation before.
    let is_written = applied.failures().is_empty();
    let shown = conditions::generation_in_force(cluster, &before, &verdicts, is_written);
    let mut conditions =
        conditions::merge(&before.conditions, verdicts, cluster.metadata.generation, found.at);
    let ready = ConditionType::Ready.to_string();
    for condition in conditions.iter_mut().filter(|condition| condition.type_ == ready) {
        condition.observed_generation = shown;
    }
    FanoutClusterStatus {
        observed_generation: shown,
        replicas: counts.serving,
        ready_replicas: counts.ready,
        updated_replicas: counts.updated,
        selector: labels::status_selector(cluster),
        version: if complete { cluster.spec.version.clone() } else { before.version },
        current_revision: if complete { update.clone() } else { before.current_revision },
        update_revision: update,
        connections: nodes.iter().filter_map(|node| node.connections).sum(),
        endpoint: service::endpoint(cluster),
        nodes: nodes.into_iter().take(MAX_NODES).collect::<Vec<NodeStatus>>(),
        settings_hash: applied.settings.clone().or(before.settings_hash),
        conditions,
    }
}

/// Numbers of nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Selected by `status.selector`.
    serving: i32,
    /// Of these, ready.
    ready: i32,
    /// Of these, of the revision that the spec asks for.
    updated: i32,
    /// Ready and of that revision.
    updated_ready: i32,
    /// Of an older revision, serving or not.
    outdated: i32,
    /// Taken out of their Services, or ending.
    leaving: i32,
}

// === impl Counts ===

impl Counts {
    fn of(found: &Found, revision: Option<&str>) -> Self {
        let mut counts = Self::default();
        for node in nodes::existing(found) {
            let pod = &node.pod;
            let updated = pod.labels().get(labels::REVISION).map(String::as_str) == revision;
            let ending = pod.metadata.deletion_timestamp.is_some();
            let serving =
                pod.labels().get(labels::SERVING).is_some_and(|serving| serving == "true") && !ending;
            let ready = serving && is_ready(pod);
            counts.serving += i32::from(serving);
            counts.ready += i32::from(ready);
            counts.updated += i32::from(serving && updated);
            counts.updated_ready += i32::from(ready && updated);
            counts.outdated += i32::from(!updated && !ending);
            counts.leaving += i32::from(!serving);
        }
        counts
    }

    /// Whether every node is as the spec wants it.
    fn is_complete(&self, cluster: &FanoutCluster) -> bool {
        let wanted = cluster.spec.replicas;
        self.updated_ready == wanted && self.serving == wanted && self.outdated == 0
    }
}

// === impl Reporter ===

impl Reporter {
    pub(super) fn new(shared: &Shared, territory: Territory) -> Self {
        Self {
            client: shared.client.clone(),
            territory,
            events: shared.events.clone(),
            metrics: shared.metrics.clone(),
            memory: Arc::default(),
            told: Arc::default(),
        }
    }

    /// Writes what is true now. `Some`: it was written a moment ago, and there is more to say after this time.
    pub(super) async fn report(
        &self,
        cluster: &FanoutCluster,
        found: &Found,
        applied: &Applied,
    ) -> Result<Option<Duration>, Error> {
        let mut told = conditions::problems(cluster, found, applied);
        told.extend(conditions::advice_of(cluster, found));
        self.tell_problems(cluster, &told).await;
        let status = compute(cluster, found, applied);
        let key = key(&cluster.metadata);
        let written = self.lock().get(&key).cloned();
        if is_told(cluster, &status, written.as_ref()) {
            return Ok(conditions::redis_grace(cluster, found.at).filter(|wait| !wait.is_zero()));
        }
        let wait = written.and_then(|written| PACE.checked_sub(written.at.elapsed()));
        if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
            return Ok(Some(wait));
        }
        let version = self.write(&cluster.metadata, json!(status)).await?;
        self.lock().insert(key, Written { status, version, at: Instant::now() });
        Ok(None)
    }

    /// The reconcile of a cluster ended before there was anything to judge: the conditions say why, and all else stays as
    /// it was.
    pub(super) async fn broken(&self, cluster: &Guarded, problem: &Problem) -> Result<(), Error> {
        let DeserializeGuard(Ok(cluster)) = cluster else { return Ok(()) };
        let before = cluster.status.clone().unwrap_or_default();
        let conditions = conditions::broken(&before.conditions, cluster, problem, Timestamp::now());
        let same = |told: &Told| told.clone().news(std::slice::from_ref(problem)).0.is_empty();
        let key = key(&cluster.metadata);
        let is_told = self.told.lock().unwrap_or_else(PoisonError::into_inner).get(&key).is_some_and(same);
        if is_told && conditions::same_words(&before.conditions, &conditions) {
            return Ok(());
        }
        self.tell_problems(cluster, std::slice::from_ref(problem)).await;
        let status = FanoutClusterStatus { conditions, ..before };
        self.write(&cluster.metadata, json!(status)).await.map(drop)
    }

    /// Sheds what is remembered of clusters that are gone.
    pub(super) fn keep_only(&self, lives: impl Fn(&str, &str) -> bool) {
        let is_alive = |key: &String| {
            let mut parts = key.split('/');
            parts.next().zip(parts.next()).is_some_and(|(namespace, name)| lives(namespace, name))
        };
        self.lock().retain(|key, _| is_alive(key));
        self.told.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| is_alive(key));
    }

    /// An object that this operator cannot read.
    pub(super) async fn malformed(&self, invalid: &InvalidObject) -> Result<(), Error> {
        let InvalidObject { error, metadata } = invalid;
        let key = key(metadata);
        let conditions = conditions::malformed(metadata, error, Timestamp::now());
        let status = FanoutClusterStatus { conditions, ..FanoutClusterStatus::default() };
        let told = |written: &Written| conditions::same_words(&written.status.conditions, &status.conditions);
        if self.lock().get(&key).is_some_and(told) {
            return Ok(());
        }
        let mut cluster = FanoutCluster::new("", Default::default());
        cluster.metadata = metadata.clone();
        self.events.publish(&cluster, Severity::Warning, Reason::InvalidSpec, error, None).await;
        let version = self.write(metadata, json!({ "conditions": status.conditions })).await?;
        self.lock().insert(key, Written { status, version, at: Instant::now() });
        Ok(())
    }

    /// An Event for each thing that begins to stand in the way.
    async fn tell_problems(&self, cluster: &FanoutCluster, problems: &[Problem]) {
        let key = key(&cluster.metadata);
        let news = {
            let mut all = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            let told = all.remove(&key).unwrap_or_else(|| Told::before(cluster, problems));
            let (news, told) = told.news(problems);
            all.insert(key, told);
            news
        };
        for Problem { reason, object, key: _, message } in news {
            let pod = object.strip_prefix("Pod/");
            self.events.publish(cluster, Severity::Warning, *reason, message, pod).await;
        }
    }

    async fn write(&self, metadata: &ObjectMeta, status: serde_json::Value) -> Result<u64, Error> {
        let kind = "FanoutCluster";
        let name = metadata.name.clone().unwrap_or_default();
        let namespace = metadata.namespace.clone().unwrap_or_default();
        self.territory.check(&namespace)?;
        // Untyped, for the answer may be an object that this operator cannot read.
        let resource = ApiResource::erase::<FanoutCluster>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &namespace, &resource);
        let patch = json!({
            "apiVersion": FanoutCluster::api_version(&()),
            "kind": kind,
            "metadata": { "name": name, "uid": metadata.uid },
            "status": status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        self.metrics.wrote("FanoutCluster/status");
        let made = api.patch_status(&name, &params, &Patch::Apply(patch)).await;
        let made = made.map_err(Error::api("write the status of", kind, &name))?;
        if made.metadata.resource_version == metadata.resource_version {
            self.metrics.wrote_nothing("FanoutCluster/status");
        }
        Ok(version(&made.metadata))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Written>> {
        // Entries are replaced whole, so a panic elsewhere leaves nothing half done.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// By what a cluster is remembered: its name, and which of that name it is.
fn key(metadata: &ObjectMeta) -> String {
    let [namespace, name, uid] =
        [&metadata.namespace, &metadata.name, &metadata.uid].map(|part| part.as_deref().unwrap_or_default());
    format!("{namespace}/{name}/{uid}")
}

/// Whether the API server has this status already. Our copy of the cluster may be older than our own last write; it
/// says nothing then.
fn is_told(cluster: &FanoutCluster, status: &FanoutClusterStatus, written: Option<&Written>) -> bool {
    let current = cluster.status.as_ref() == Some(status);
    match written {
        Some(written) if version(&cluster.metadata) < written.version => written.status == *status,
        _ => current,
    }
}

fn version(metadata: &ObjectMeta) -> u64 {
    metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}
