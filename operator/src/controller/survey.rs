//! What a reconcile would rest on, read once from the API server. For `kubectl fanout plan`: it has neither watches nor
//! the nodes' reports, and perhaps not every right that the operator has. Nothing here writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Pod, Secret},
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams},
};

use super::{
    Error,
    build::{self, OperatorConfig},
    dereference::{self, Found, Node},
    mirror,
    validate::{self, Dereferenced, SecretShape, Validated},
};
use crate::{
    api::{FanoutCluster, OPERATOR_CLASS},
    lease::territory,
    plan::Machine,
    redis::{RedisTarget, managed},
    resources::{config_map::Readers, labels, secret::api_key_name},
    scrape::Report,
};

/// What a reconcile would rest on.
pub struct Survey {
    /// Children, pods and what the spec names. The reports of the nodes are those of the operator's last status.
    pub found: Found,
    /// Objects that have the name of a child, and not the label of the cluster.
    pub namesakes: Vec<(ApiResource, Arc<DynamicObject>)>,
    /// The Secret of the generated API key.
    pub api_key: Read,
    /// The Secret of the managed Redis.
    pub password: Read,
    /// The operator that holds the namespace, as `<namespace>/<lease>`; `None`: none has claimed it, or that may not be
    /// read.
    pub operator: Option<String>,
    /// What could not be read.
    pub unread: Vec<Unread>,
}

/// A Secret that was looked for.
pub enum Read {
    /// It does not exist.
    Absent,
    /// It is there.
    Live(Box<Secret>),
    /// It may not be read.
    Unread,
}

/// Something that the API server does not let this user read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// Kind of the objects.
    pub kind: String,
    /// Name of the object; `None`: any of the kind.
    pub name: Option<String>,
    /// What was tried, and the API server's words.
    pub message: String,
}

/// Reads, and notes what may not be read.
struct Reader<'a> {
    client: &'a Client,
    cluster: &'a FanoutCluster,
    unread: Vec<Unread>,
}

// === impl Survey ===

impl Survey {
    /// Reads what a reconcile of `cluster` would rest on. `given`: Secrets that are to be made or changed together with
    /// it; they count as they will be.
    ///
    /// # Errors
    /// A request failed, or the pods and ReplicaSets may not be listed: nothing can be said then.
    pub async fn take(
        client: &Client,
        cluster: &FanoutCluster,
        given: &BTreeMap<String, SecretShape>,
    ) -> Result<Self, Error> {
        let mut reader = Reader { client, cluster, unread: Vec::new() };
        let (pods, redis) = (reader.pods(labels::CLUSTER).await?, reader.pods(labels::REDIS).await?);
        let labelled = reader.children().await?;
        let all = pods.iter().chain(&redis);
        let lost = dereference::unlabelled_sets(client, cluster, &labelled, all).await?;
        let children = dereference::own_sets(cluster, labelled.into_iter().chain(lost).collect());
        let nodes = dereference::pods_of(&children, "ReplicaSet", pods);
        let redis = dereference::pods_of(&children, "StatefulSet", redis);
        let api_key = reader.secret(&api_key_name(cluster)).await?;
        let managed = cluster.spec.redis.managed.is_some();
        let password = if managed { reader.secret(&managed::name(cluster)).await? } else { Read::Absent };
        let mut named = Dereferenced {
            secrets: reader.named(given).await?,
            api_key: api_key.shape().and_then(|shape| shape.api_key).filter(|_| cluster.has_app_containers()),
            ..Dereferenced::default()
        };
        dereference::note_readers(&mut named, &children, &nodes);
        let mut found = Found {
            named,
            // Each counts as what the spec wants it to be, and is told apart.
            unread: Vec::new(),
            machines: reader.machines(&redis).await,
            nodes: nodes.into_iter().map(|pod| Node { report: told_of(cluster, &pod), pod }).collect(),
            redis,
            children,
            mounts: BTreeMap::new(),
            deadline: Duration::from_secs(cluster.spec.progress_deadline_seconds.into()),
            at: Timestamp::now(),
        };
        if found.managed_redis_is_down(cluster) {
            let reports = found.nodes.iter_mut().filter_map(|node| node.report.as_mut());
            reports.for_each(|report| report.broker_verified = None);
        }
        let namesakes = reader.namesakes(&found).await?;
        let operator = reader.operator().await?;
        Ok(Self { found, namesakes, api_key, password, operator, unread: reader.unread })
    }

    /// Whether an object that was not found may exist nevertheless.
    pub(super) fn is_unread(&self, kind: &str, name: &str) -> bool {
        self.unread
            .iter()
            .any(|unread| unread.kind == kind && unread.name.as_deref().is_none_or(|unread| unread == name))
    }

    /// An object by kind and name, labelled or not.
    pub(super) fn live(&self, kind: &str, name: &str) -> Option<&DynamicObject> {
        let has_name = |child: &DynamicObject| child.metadata.name.as_deref() == Some(name);
        let mut namesakes = self.namesakes.iter().filter(|(resource, _)| resource.kind == kind);
        self.found
            .child(kind, name)
            .or_else(|| namesakes.find(|(_, child)| has_name(child)).map(|(_, child)| child.as_ref()))
    }
}

/// What the operator's last status says of a node; `None`: it could not be asked then, or is not listed.
fn told_of(cluster: &FanoutCluster, pod: &Pod) -> Option<Report> {
    let nodes = &cluster.status.as_ref()?.nodes;
    let told = nodes.iter().find(|node| pod.metadata.name.as_ref() == Some(&node.name))?;
    let connections = u64::try_from(told.connections?).ok()?;
    Some(Report { answered: true, connections, broker_verified: told.verified, ..Report::default() })
}

// === impl Read ===

impl Read {
    fn shape(&self) -> Option<SecretShape> {
        match self {
            Self::Live(secret) => Some(dereference::shape_of(secret)),
            Self::Absent | Self::Unread => None,
        }
    }
}

// === impl Reader ===

impl Reader<'_> {
    /// Takes note of what may not be read, and goes on.
    fn note<T>(
        &mut self,
        kind: &str,
        name: Option<&str>,
        read: Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        match read {
            Ok(read) => Ok(Some(read)),
            Err(error) if error.is_forbidden() => {
                let (kind, name) = (kind.to_owned(), name.map(str::to_owned));
                self.unread.push(Unread { kind, name, message: error.to_string() });
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn api(&self, resource: &ApiResource) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), self.cluster.namespace(), resource)
    }

    fn labelled(&self, label: &str) -> ListParams {
        ListParams::default().labels(&format!("{label}={}", self.cluster.name()))
    }

    /// Children that carry the cluster's label.
    async fn children(&mut self) -> Result<Vec<(ApiResource, Arc<DynamicObject>)>, Error> {
        let mut children = Vec::new();
        for resource in mirror::child_kinds() {
            let listed = self.api(&resource).list(&self.labelled(labels::CLUSTER)).await;
            let listed = listed.map_err(Error::api("list", &resource.kind, self.cluster.name()));
            let listed = match resource.kind.as_str() {
                "ReplicaSet" => Some(listed?),
                kind => self.note(kind, None, listed)?,
            };
            let listed = listed.into_iter().flatten();
            children.extend(listed.map(|child| (resource.clone(), Arc::new(child))));
        }
        Ok(children)
    }

    async fn pods(&self, label: &str) -> Result<Vec<Arc<Pod>>, Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), self.cluster.namespace());
        let pods = api.list(&self.labelled(label)).await;
        let pods = pods.map_err(Error::api("list", "Pod", self.cluster.name()))?;
        Ok(pods.into_iter().map(Arc::new).collect())
    }

    async fn secret(&mut self, name: &str) -> Result<Read, Error> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), self.cluster.namespace());
        let read = api.get_opt(name).await.map_err(Error::api("read", "Secret", name));
        Ok(match self.note("Secret", Some(name), read)? {
            Some(Some(secret)) => Read::Live(Box::new(secret)),
            Some(None) => Read::Absent,
            None => Read::Unread,
        })
    }

    /// The Secrets that the spec names. One that may not be read counts as what the spec wants it to be.
    async fn named(
        &mut self,
        given: &BTreeMap<String, SecretShape>,
    ) -> Result<BTreeMap<String, Option<SecretShape>>, Error> {
        let mut named = BTreeMap::new();
        for name in validate::referenced_secrets(self.cluster) {
            let shape = match given.get(&name) {
                Some(given) => Some(given.clone()),
                None => match self.secret(&name).await? {
                    Read::Unread => Some(validate::presumed(self.cluster, &name)),
                    read => read.shape(),
                },
            };
            named.insert(name, shape);
        }
        Ok(named)
    }

    async fn machines(&mut self, redis: &[Arc<Pod>]) -> BTreeMap<String, Machine> {
        let machines = dereference::machines(self.client, redis).await;
        let unknown = machines.iter().filter(|(_, machine)| **machine == Machine::Unknown);
        self.unread.extend(unknown.map(|(name, _)| Unread {
            kind: "Node".to_owned(),
            name: Some(name.clone()),
            message: format!("the Kubernetes node {name} may not be read"),
        }));
        machines
    }

    /// Objects that have the name of a child that was not found by its label.
    async fn namesakes(&mut self, found: &Found) -> Result<Vec<(ApiResource, Arc<DynamicObject>)>, Error> {
        let Some(redis) = RedisTarget::of(self.cluster) else { return Ok(Vec::new()) };
        let readers = Readers { version: self.cluster.spec.version.clone(), untold_grace_seconds: None };
        let validated =
            Validated { redis, api_key: found.named.api_key.clone(), readers, missing: Vec::new() };
        let names = build::build(self.cluster, &validated, &OperatorConfig::default()).names();
        let unread: BTreeSet<_> = self.unread.iter().map(|unread| unread.kind.clone()).collect();
        let missing = names.into_iter().filter(|(kind, name)| found.child(kind, name).is_none());
        let mut namesakes = Vec::new();
        for (kind, name) in missing.filter(|(kind, _)| !unread.contains(*kind)) {
            let resource = mirror::resource_of(kind);
            let read = self.api(&resource).get_opt(&name).await.map_err(Error::api("read", kind, &name));
            let read = self.note(kind, Some(&name), read)?.flatten();
            namesakes.extend(read.map(|object| (resource, Arc::new(object))));
        }
        Ok(namesakes)
    }

    /// The operator that holds the namespace, or did last.
    async fn operator(&mut self) -> Result<Option<String>, Error> {
        let class = self.cluster.labels().get(OPERATOR_CLASS).filter(|class| !class.is_empty());
        let name = territory::lease_name(class.map(String::as_str));
        let api: Api<Lease> = Api::namespaced(self.client.clone(), self.cluster.namespace());
        let kind = Lease::kind(&());
        let read = api.get_opt(&name).await.map_err(Error::api("read", &kind, &name));
        let lease = self.note(&kind, Some(&name), read)?.flatten();
        // Whether it is still alive only somebody who watches can tell.
        let holder = lease.and_then(|lease| lease.spec?.holder_identity);
        Ok(holder.filter(|holder| !holder.is_empty()))
    }
}
