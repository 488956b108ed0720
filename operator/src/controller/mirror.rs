//! What the API server has, kept in step by watches: one [`Mirrors`] for each watched scope.
//!
//! Called by `controller` (which polls the stream of changes) and read by dereference. Nothing here writes. Only
//! labelled children are kept, without what nothing here reads; of Secrets only the metadata.

use std::{
    fmt::{self, Debug},
    sync::Arc,
    time::Duration,
};

use futures::{
    Stream, StreamExt,
    stream::{BoxStream, select_all},
};
use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, StatefulSet},
        core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    serde::de::DeserializeOwned,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, PartialObjectMeta},
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store, store::Writer},
        watcher::{self, Event},
    },
};
use tokio::sync::watch;

use super::validate::referenced_secrets;
use crate::{
    api::FanoutCluster,
    health::{Obstacle, Readiness},
    metrics::Metrics,
    resources::labels,
};

/// Time between two looks for a CRD that is missing.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A FanoutCluster as the API server has it: read, or not readable.
pub(crate) type Guarded = DeserializeGuard<FanoutCluster>;

/// A cluster that should be looked at.
pub(crate) type Trigger = ObjectRef<Guarded>;

/// What to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    All,
    Namespace(String),
}

/// Copies of what the API server has.
#[derive(Clone)]
pub(crate) struct Mirrors {
    scope: Scope,
    clusters: Store<Guarded>,
    children: Arc<[(ApiResource, Store<DynamicObject>)]>,
    pods: Store<Pod>,
    redis: Store<Pod>,
    secrets: Store<PartialObjectMeta<Secret>>,
    stage: Arc<watch::Sender<Stage>>,
}

/// How far the operator's knowledge has come. Nothing is decided before the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// The watches are being filled.
    #[default]
    Filling,
    /// The mirrors have been filled once.
    Filled,
    /// And the nodes have been asked once: a new leader does not forget what the old one knew.
    InStep,
}

// === impl Scope ===

impl Scope {
    /// One scope for everything, or one for each namespace.
    pub(crate) fn all_of(namespaces: &[String]) -> Vec<Self> {
        if namespaces.is_empty() {
            return vec![Self::All];
        }
        namespaces.iter().cloned().map(Self::Namespace).collect()
    }

    fn api<K>(&self, client: Client) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        match self {
            Self::All => Api::all(client),
            Self::Namespace(namespace) => Api::namespaced(client, namespace),
        }
    }

    fn dynamic(&self, client: Client, resource: &ApiResource) -> Api<DynamicObject> {
        match self {
            Self::All => Api::all_with(client, resource),
            Self::Namespace(namespace) => Api::namespaced_with(client, namespace, resource),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all namespaces"),
            Self::Namespace(namespace) => write!(f, "namespace {namespace}"),
        }
    }
}

// === impl Everyone ===

impl Everyone {
    /// The clusters that something a watch says concerns.
    fn concerned<K: Send + 'static>(
        &self,
        touched: impl Stream<Item = Touched<K>> + Send + 'static,
        by: impl Fn(&K) -> Vec<Trigger> + Send + 'static,
    ) -> BoxStream<'static, Trigger> {
        let Self(clusters) = self.clone();
        let concerned = move |touched| match touched {
            Touched::Object(object) => by(&object),
            Touched::All => {
                clusters.state().iter().map(|cluster| ObjectRef::from_obj(cluster.as_ref())).collect()
            }
        };
        touched.flat_map(move |touched| futures::stream::iter(concerned(touched))).boxed()
    }
}

// === impl Mirrors ===

impl Mirrors {
    /// Starts to watch `scope`. The mirrors move while the stream is polled.
    pub(crate) fn start(
        client: &Client,
        scope: &Scope,
        metrics: &Metrics,
        readiness: &Readiness,
    ) -> (Self, impl Stream<Item = Trigger> + Send + use<>) {
        let watch = watched(watcher::watcher(scope.api(client.clone()), config()), scope, readiness);
        let (clusters, touched) = reflect(watch, (), slim, metrics);
        let all = Everyone(clusters.clone());
        let mut changes: Vec<BoxStream<'static, Trigger>> =
            vec![all.concerned(touched, |cluster: &Guarded| vec![ObjectRef::from_obj(cluster)])];

        let children = child_kinds().map(|resource| {
            let api = scope.dynamic(client.clone(), &resource);
            let watch = watcher::watcher(api, config().labels(labels::CLUSTER));
            let (store, touched) = reflect(watch, resource.clone(), slim, metrics);
            changes.push(
                all.concerned(touched, |child: &DynamicObject| labelled_cluster(child).into_iter().collect()),
            );
            (resource, store)
        });
        let pods_by = |label| watcher::watcher(scope.api(client.clone()), config().labels(label));
        let (pods, touched) = reflect(pods_by(labels::CLUSTER), (), slim_pod, metrics);
        changes.push(all.concerned(touched, |pod: &Pod| labelled_cluster(pod).into_iter().collect()));
        let (redis, touched) = reflect(pods_by(labels::REDIS), (), slim_pod, metrics);
        changes.push(all.concerned(touched, |pod: &Pod| named_by(pod, labels::REDIS).into_iter().collect()));

        let (secrets, touched) =
            reflect(watcher::watcher(scope.api(client.clone()), config()), (), slim_secret, metrics);
        let index = clusters.clone();
        changes.push(all.concerned(touched, move |secret| users_of(&index, secret)));

        (
            Self {
                scope: scope.clone(),
                clusters,
                children: children.into(),
                pods,
                redis,
                secrets,
                stage: Arc::default(),
            },
            select_all(changes),
        )
    }

    /// Waits until the mirrors have been filled once. For one caller: of several that wait for a store, only the last
    /// is woken. The store of clusters is not waited for, for the applier does that.
    pub(crate) async fn fill(&self) {
        let Self { scope: _, clusters: _, children, pods, redis, secrets, stage } = self;
        // A writer that is gone means that the process ends; there is nothing to wait for then.
        _ = pods.wait_until_ready().await;
        _ = redis.wait_until_ready().await;
        _ = secrets.wait_until_ready().await;
        for (_, store) in children.iter() {
            _ = store.wait_until_ready().await;
        }
        stage.send_replace(Stage::Filled);
    }

    /// The nodes have been asked once.
    pub(crate) fn asked(&self) {
        self.stage.send_replace(Stage::InStep);
    }

    /// Waits for a stage. For any number of callers.
    pub(crate) async fn reach(&self, stage: Stage) {
        // The sender is in `self`, so it cannot be gone.
        _ = self.stage.subscribe().wait_for(|reached| *reached >= stage).await;
    }

    /// Whether Kubernetes nodes may be read: the rights in single namespaces reach none.
    pub(crate) fn may_read_machines(&self) -> bool {
        match self.scope {
            Scope::All => true,
            Scope::Namespace(_) => false,
        }
    }

    /// The clusters themselves.
    pub(crate) fn clusters(&self) -> Store<Guarded> {
        self.clusters.clone()
    }

    /// Children that carry a cluster's label, whoever made them; pods and Secrets apart.
    pub(crate) fn children_of(&self, cluster: &FanoutCluster) -> Vec<(ApiResource, Arc<DynamicObject>)> {
        let belongs = |child: &DynamicObject| belongs_to(child, cluster);
        let of_kind = |(resource, store): &(ApiResource, Store<DynamicObject>)| {
            let found = store.state_filter(belongs);
            found.into_iter().map(|child| (resource.clone(), child)).collect::<Vec<_>>()
        };
        self.children.iter().flat_map(of_kind).collect()
    }

    /// Pods that carry the label of a cluster's nodes, whoever made them.
    pub(crate) fn nodes_of(&self, cluster: &FanoutCluster) -> Vec<Arc<Pod>> {
        self.pods.state_filter(|pod| belongs_to(pod, cluster))
    }

    /// Pods of every cluster's nodes.
    pub(crate) fn nodes(&self) -> Vec<Arc<Pod>> {
        self.pods.state()
    }

    /// Pods that carry the label of a cluster's managed Redis, whoever made them.
    pub(crate) fn redis_of(&self, cluster: &FanoutCluster) -> Vec<Arc<Pod>> {
        self.redis.state_filter(|pod| is_labelled(pod, labels::REDIS, cluster))
    }

    /// Metadata of a Secret.
    pub(crate) fn secret(&self, namespace: &str, name: &str) -> Option<Arc<PartialObjectMeta<Secret>>> {
        self.secrets.get(&ObjectRef::new(name).within(namespace))
    }
}

/// Kinds of children; pods and Secrets apart.
pub(super) fn child_kinds() -> [ApiResource; 8] {
    [
        ApiResource::erase::<ReplicaSet>(&()),
        ApiResource::erase::<Service>(&()),
        ApiResource::erase::<ConfigMap>(&()),
        ApiResource::erase::<ServiceAccount>(&()),
        ApiResource::erase::<StatefulSet>(&()),
        ApiResource::erase::<PersistentVolumeClaim>(&()),
        ApiResource::erase::<PodDisruptionBudget>(&()),
        ApiResource::erase::<NetworkPolicy>(&()),
    ]
}

/// A kind of child by its name.
pub(crate) fn resource_of(kind: &str) -> ApiResource {
    let known = child_kinds().into_iter().find(|resource| resource.kind == kind);
    known.expect("every kind of child is listed in child_kinds")
}

fn config() -> watcher::Config {
    watcher::Config::default()
}

/// What a watch says.
enum Touched<K> {
    /// This object is new, another, or gone.
    Object(K),
    /// Everything was listed anew. What went while the watch was away is gone without a word.
    All,
}

/// All clusters.
#[derive(Clone)]
struct Everyone(Store<Guarded>);

/// A store that follows a watch, and what the watch says. A watch that breaks is started again, with back-off. Objects
/// are kept as `slim` leaves them.
fn reflect<K, W>(
    watch: W,
    kind: K::DynamicType,
    slim: fn(&mut K),
    metrics: &Metrics,
) -> (Store<K>, impl Stream<Item = Touched<K>> + Send + use<K, W>)
where
    W: Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Eq + std::hash::Hash + Clone + Send + Sync,
{
    let writer = Writer::new(kind);
    let store = writer.as_reader();
    let broken = metrics.watch_errors.clone();
    let events = reflector::reflector(writer, watch.default_backoff().modify(slim));
    let touched = events.filter_map(move |event| {
        let event = event.inspect_err(|error| {
            broken.inc();
            tracing::warn!(error = %super::chain(error), "watch failed, restarting");
        });
        let touched = match event {
            Ok(Event::Apply(object) | Event::InitApply(object) | Event::Delete(object)) => {
                Some(Touched::Object(object))
            }
            Ok(Event::InitDone) => Some(Touched::All),
            Ok(Event::Init) | Err(_) => None,
        };
        std::future::ready(touched)
    });
    (store, touched)
}

/// The watch of the FanoutClusters themselves, which says in readiness whether there can be any: every other watch
/// works without their CRD.
fn watched<W>(watch: W, scope: &Scope, readiness: &Readiness) -> impl Stream<Item = W::Item> + Send + use<W>
where
    W: Stream<Item = watcher::Result<watcher::Event<Guarded>>> + Send + 'static,
{
    let (obstacle, readiness) = (Obstacle::Clusters(scope.to_string()), readiness.clone());
    readiness.block(obstacle.clone(), format!("{scope}: the FanoutClusters are not listed yet"));
    watch.inspect(move |event| match event {
        // The first is told before the API server was asked.
        Ok(watcher::Event::Init) => {}
        Ok(_) => drop(readiness.clear(&obstacle)),
        Err(error) => {
            if let Some(words) = unlisted(error)
                && readiness.block(obstacle.clone(), words.clone())
            {
                tracing::warn!("{words}");
            }
        }
    })
}

/// Looks whether FanoutClusters can be listed again, for as long as they cannot. A watch that starts again says nothing
/// of itself where nothing has changed.
pub(crate) async fn look_for_clusters(client: &Client, scope: &Scope, readiness: &Readiness) {
    let (api, obstacle): (Api<Guarded>, _) =
        (scope.api(client.clone()), Obstacle::Clusters(scope.to_string()));
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if readiness.is_blocked_by(&obstacle) && api.list(&ListParams::default().limit(1)).await.is_ok() {
            readiness.clear(&obstacle);
        }
    }
}

/// Why FanoutClusters cannot be listed, where that does not pass by itself.
fn unlisted(error: &watcher::Error) -> Option<String> {
    let status = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status,
        _ => return None,
    };
    match status.code {
        404 => Some(format!(
            "the CustomResourceDefinition {}.{} is not installed: set crds.enabled in the chart, or run `kubectl apply -f crds/`",
            FanoutCluster::plural(&()),
            FanoutCluster::group(&())
        )),
        401 | 403 => Some(format!("the FanoutClusters may not be listed: {}", status.message)),
        _ => None,
    }
}

/// Drops what nothing here reads and what may be half of an object.
fn slim(object: &mut impl ResourceExt) {
    object.managed_fields_mut().clear();
    object.annotations_mut().remove("kubectl.kubernetes.io/last-applied-configuration");
}

fn slim_pod(pod: &mut Pod) {
    slim(pod);
    let Some(spec) = pod.spec.as_mut() else { return };
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        (container.env, container.env_from, container.volume_mounts) = (None, None, None);
        (container.command, container.args, container.lifecycle) = (None, None, None);
        (container.startup_probe, container.liveness_probe, container.readiness_probe) = (None, None, None);
        (container.resources, container.security_context) = (None, None);
    }
}

fn slim_secret(secret: &mut PartialObjectMeta<Secret>) {
    slim(secret);
    secret.annotations_mut().clear();
}

fn belongs_to(child: &impl ResourceExt, cluster: &FanoutCluster) -> bool {
    is_labelled(child, labels::CLUSTER, cluster)
}

fn is_labelled(child: &impl ResourceExt, label: &str, cluster: &FanoutCluster) -> bool {
    child.namespace().as_deref() == cluster.metadata.namespace.as_deref()
        && child.labels().get(label).map(String::as_str) == Some(cluster.name())
}

/// The cluster that a child belongs to.
pub(crate) fn labelled_cluster(child: &impl ResourceExt) -> Option<Trigger> {
    named_by(child, labels::CLUSTER)
}

fn named_by(child: &impl ResourceExt, label: &str) -> Option<Trigger> {
    let name = child.labels().get(label)?;
    Some(ObjectRef::new(name).within(&child.namespace()?))
}

/// Clusters that made a Secret or name it.
fn users_of(clusters: &Store<Guarded>, secret: &PartialObjectMeta<Secret>) -> Vec<Trigger> {
    let name = secret.name_any();
    let uses = |guarded: &Guarded| {
        let DeserializeGuard(Ok(cluster)) = guarded else { return false };
        cluster.metadata.namespace == secret.namespace()
            && (secret.labels().get(labels::CLUSTER).map(String::as_str) == Some(cluster.name())
                // One that lost the label is still its owner's.
                || secret.owner_references().iter().any(|owner| Some(&owner.uid) == cluster.metadata.uid.as_ref())
                || referenced_secrets(cluster).contains(&name))
    };
    clusters.state_filter(uses).iter().map(|cluster| ObjectRef::from_obj(cluster.as_ref())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_kept_of_a_pod_is_what_is_read_of_it() {
        let pod = json!({
            "metadata": {"name": "chat-a", "labels": {"fanout.dev/cluster": "chat"}, "managedFields": [{"manager": "x"}],
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "fanout.dev/retired-at": "x"}},
            "spec": {"nodeName": "n", "volumes": [{"name": "v"}], "containers": [{"name": "fanout", "image": "i",
                "env": [{"name": "A"}], "args": ["x"], "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                "ports": [{"name": "admin", "containerPort": 8002}], "readinessProbe": {}, "resources": {}}]},
        });
        let mut pod: Pod = serde_json::from_value(pod).expect("a pod");
        slim_pod(&mut pod);
        let kept = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "chat-a", "labels": {"fanout.dev/cluster": "chat"}, "managedFields": [],
                "annotations": {"fanout.dev/retired-at": "x"}},
            "spec": {"nodeName": "n", "volumes": [{"name": "v"}], "containers": [{"name": "fanout", "image": "i",
                "ports": [{"name": "admin", "containerPort": 8002}]}]},
        });
        assert_eq!(serde_json::to_value(pod).expect("JSON"), kept);
    }

    #[tokio::test]
    async fn a_list_anew_concerns_every_cluster() {
        let mut writer = Writer::<Guarded>::default();
        let cluster = json!({"apiVersion": "fanout.dev/v1alpha1", "kind": "FanoutCluster",
            "metadata": {"name": "chat", "namespace": "web"}, "spec": {}});
        writer.apply_watcher_event(&Event::Apply(serde_json::from_value(cluster).expect("a cluster")));
        let watch = futures::stream::iter([Ok(Event::<Pod>::Init), Ok(Event::InitDone)]);
        let (_, touched) = reflect(watch, (), slim_pod, &Metrics::new());
        let all = Everyone(writer.as_reader());
        let mut concerned = all.concerned(touched, |pod: &Pod| labelled_cluster(pod).into_iter().collect());
        assert_eq!(concerned.next().await, Some(ObjectRef::new("chat").within("web")));
    }
}
