//! Fourth step: makes the API server's objects what build and plan say.
//!
//! Children are written by server-side apply with one field manager, and only where something differs: see
//! `write`. What is refused or disputed is noted in [`Applied`] and stops nothing else. Then the plan's actions are
//! performed in order. A plan that wants something is made again from a fresh reading, so that no disruptive step
//! rests on an old one.

mod act;
mod compare;
mod field;
mod memory;
pub mod preview;
mod redis;
mod write;

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::{
    api::apps::v1::StatefulSet,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    ResourceExt,
    api::{ApiResource, DynamicObject},
};
use serde::Serialize;
use serde_json::Value;

pub(super) use self::field::{is_invalid, of_cluster as fields_behind};
pub use self::write::FIELD_MANAGER;
use self::{
    redis::StoredRedis,
    write::{Cause, Trouble, Writer},
};
use super::{
    Error, ErrorClass, Shared,
    build::{GeneratedSecret, ManagedRedisResources, Resources, RevisionSpec},
    dereference::Found,
    mirror::Mirrors,
    validate::Problem,
};
use crate::{
    api::FanoutCluster,
    events::Events,
    lease::territory::Territory,
    plan::{self, Action, Desired, Observed, Strategy},
    redis::managed,
    resources::{config_map, labels},
};

/// Time between a node's leaving its Services and its removal: what kube-proxy needs on a slow day. The drain itself
/// begins with the removal, in the pod's preStop.
const SETTLE: Duration = Duration::from_secs(1);

/// Revisions without pods that are kept to return to.
const REVISION_HISTORY_LIMIT: usize = 3;

/// What was made of a cluster; status speaks of nothing else.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// What stands in the way.
    pub problems: Vec<Problem>,
    /// The revision that the spec asks for; `None` where the spec was refused.
    pub revision: Option<String>,
    /// The steps that were taken.
    pub actions: Vec<Action>,
    /// Hash of the live settings that nodes should run by; `None` where they were not written.
    pub settings: Option<String>,
    /// What failed, each with the time until it is tried again where that is known.
    failures: Vec<(ErrorClass, Option<Duration>)>,
    /// Until when nothing is due although nothing changes.
    again: Option<Timestamp>,
    /// Whether reconciles of this cluster have failed for a while.
    lasting: bool,
}

/// Writes. One for all clusters of a scope.
#[derive(Clone)]
pub(super) struct Applier {
    writer: Writer,
    events: Events,
    mirrors: Mirrors,
}

// === impl Applied ===

impl Applied {
    /// The spec cannot work; nothing was touched.
    pub(super) fn refused(problems: Vec<Problem>) -> Self {
        Self { problems, ..Self::default() }
    }

    /// What failed, by what is to be done about it; with the time until the next try where that is known.
    pub(super) fn failures(&self) -> &[(ErrorClass, Option<Duration>)] {
        &self.failures
    }

    /// Takes note of what went wrong, and goes on.
    ///
    /// # Errors
    /// What ends the reconcile: another process leads, or the namespace takes nothing new.
    fn note<T>(&mut self, result: Result<T, Trouble>) -> Result<Option<T>, Error> {
        let Trouble { cause, again, lasting } = match result {
            Ok(done) => return Ok(Some(done)),
            Err(trouble) => trouble,
        };
        let failed = match cause {
            Cause::Told(problem) => {
                self.problems.push(problem);
                // It is looked at again, but nothing failed.
                let at = again.and_then(|again| Timestamp::now().checked_add(again).ok());
                self.again = self.again.into_iter().chain(at).min();
                return Ok(None);
            }
            Cause::Failed(error) if error.ends_reconcile() => return Err(error),
            Cause::Failed(error) => error,
        };
        self.problems.extend(failed.problem(lasting || self.lasting));
        self.failures.push((failed.class(), again));
        Ok(None)
    }

    /// How long until something is due although nothing changes.
    pub(super) fn look_again(&self, now: Timestamp) -> Option<Duration> {
        let left = self.again?.duration_since(now);
        Some(Duration::try_from(left).unwrap_or_default().max(Duration::from_millis(50)))
    }
}

// === impl Applier ===

impl Applier {
    pub(super) fn new(shared: &Shared, territory: Territory, mirrors: Mirrors) -> Self {
        Self { writer: Writer::new(shared, territory), events: shared.events.clone(), mirrors }
    }

    /// Makes everything of a cluster what it should be; of a paused one, nothing. `lasting`: this has failed for a while.
    pub(super) async fn apply(
        &self,
        cluster: &FanoutCluster,
        found: &Found,
        resources: Resources,
        lasting: bool,
    ) -> Result<Applied, Error> {
        let name = revision_name(found, &resources.revision);
        let mut applied = Applied { revision: Some(name.clone()), lasting, ..Applied::default() };
        if cluster.spec.paused {
            return Ok(applied);
        }
        let version = &cluster.spec.version;
        applied.problems =
            resources.too_new.iter().map(|unknown| Problem::too_new(unknown, version)).collect();
        let rendered = self.children(cluster, found, resources, &mut applied).await?;
        if cluster.has_app_containers() && found.named.api_key.is_none() {
            if rendered.has_api_key {
                // The key was made a moment ago. The revision rests on it, and the watch tells of it.
                let soon = found.at.checked_add(SignedDuration::from_secs(1)).ok();
                applied.again = applied.again.into_iter().chain(soon).min();
                return Ok(applied);
            }
            if !exists(found, &name) {
                // A new revision waits for its key; one that runs has the key of before.
                return Ok(applied);
            }
        }
        let redis = rendered.redis.as_ref().map(|redis| redis.desired(replace_after(cluster)));
        let desired = Desired { redis, ..desired(cluster, name) };
        self.act(cluster, found, &desired, &rendered, &mut applied).await?;
        Ok(applied)
    }

    /// Sheds what is remembered of clusters that are gone.
    pub(super) fn keep_only(&self, lives: impl Fn(&str, &str) -> bool) {
        self.writer.keep_only(lives);
    }

    /// Every child but what the plan moves. One that is refused stops no other.
    async fn children(
        &self,
        cluster: &FanoutCluster,
        found: &Found,
        resources: Resources,
        applied: &mut Applied,
    ) -> Result<Rendered, Error> {
        // Secrets first: pods wait for them, and find them there.
        let has_api_key = applied.note(self.secret(cluster, &resources.api_key).await)?.is_some();
        let mut server = None;
        if let Some(redis) = &resources.managed_redis {
            let digest = applied.note(self.secret(cluster, &redis.password).await)?;
            let live = applied.note(self.redis(cluster, found).await)?;
            server = digest.zip(live);
        }
        let settings = config_map::live_hash(&resources.live_config_map);
        let (wanted, redis) =
            Wanted::of(cluster, &resources, server.as_ref().map(|(digest, live)| (&**digest, live.as_ref())));
        for child in &wanted.children {
            let done = applied.note(self.writer.ensure(cluster, found, child.clone(), &self.events).await)?;
            if done.is_some() && child["kind"] == "ConfigMap" {
                // The only one here is that of the live settings.
                applied.settings = Some(settings.clone());
            }
        }
        for child in revisions(cluster, found) {
            applied.note(self.writer.ensure(cluster, found, child, &self.events).await)?;
        }
        for (resource, child) in orphans(cluster, found, &wanted, &resources.revision) {
            let removed = async {
                self.writer.confirm(cluster).await?;
                self.writer.delete(cluster, resource, child).await
            };
            applied.note(removed.await)?;
        }
        Ok(Rendered { revision: resources.revision, redis, has_api_key })
    }

    /// The StatefulSet of the managed Redis. One that lost the cluster's label is in no mirror, and is still the cluster's:
    /// what it was rendered as is read from the API server then.
    async fn redis(&self, cluster: &FanoutCluster, found: &Found) -> Result<Option<DynamicObject>, Trouble> {
        let name = managed::name(cluster);
        if let Some(live) = found.child("StatefulSet", &name) {
            return Ok(Some(live.clone()));
        }
        let read = self.writer.read(cluster, "StatefulSet", &name).await?;
        Ok(read.filter(|live| write::is_owned_by(live, cluster)))
    }

    async fn secret(&self, cluster: &FanoutCluster, secret: &GeneratedSecret) -> Result<String, Trouble> {
        let live = self.mirrors.secret(cluster.namespace(), secret.name());
        self.writer.ensure_secret(cluster, secret, live.as_deref(), &self.events).await
    }

    /// Plans and acts. A step that is refused stops no other, but none is taken on a reading that is out of date.
    async fn act(
        &self,
        cluster: &FanoutCluster,
        found: &Found,
        desired: &Desired,
        rendered: &Rendered,
        applied: &mut Applied,
    ) -> Result<(), Error> {
        let mut observed = found.observed();
        if !plan::plan(&observed, desired, found.at).is_empty() {
            let fresh = self.writer.look(cluster, found).await.map_err(Trouble::from);
            let Some(fresh) = applied.note(fresh)? else { return Ok(()) };
            observed = fresh.observed();
            for action in plan::plan(&observed, desired, fresh.at) {
                let performed = self.writer.perform(cluster, &fresh, rendered, &action, &self.events).await;
                let stale = performed.as_ref().is_err_and(Trouble::is_conflict);
                if applied.note(performed)?.is_some() {
                    applied.actions.push(action);
                }
                if stale {
                    break;
                }
            }
        }
        let at = again(&observed, desired, found);
        applied.again = applied.again.into_iter().chain(at).min();
        Ok(())
    }
}

/// What the plan moves to, as this operator renders it.
struct Rendered {
    revision: RevisionSpec,
    redis: Option<StoredRedis>,
    /// Whether the Secret of the server API's key is there.
    has_api_key: bool,
}

/// Children that should exist.
#[derive(Default)]
struct Wanted {
    children: Vec<Value>,
    /// Kind and name of those that stay as they are.
    kept: Vec<(String, String)>,
}

// === impl Wanted ===

impl Wanted {
    /// Every child but Secrets and what the plan moves, in the order in which they are written; and the managed Redis as
    /// this operator renders it. `server`: digest of its password, and its StatefulSet where there is one; `None` where
    /// either is not known.
    fn of(
        cluster: &FanoutCluster,
        resources: &Resources,
        server: Option<(&str, Option<&DynamicObject>)>,
    ) -> (Self, Option<StoredRedis>) {
        let Resources {
            revision: _,
            live_config_map,
            too_new: _,
            services,
            api_key: _,
            managed_redis,
            pdb,
            service_account,
            network_policies,
        } = resources;
        let mut wanted = Self::default();
        wanted.add(service_account);
        wanted.add(live_config_map);
        services.iter().for_each(|service| wanted.add(service));
        network_policies.iter().for_each(|policy| wanted.add(policy));
        pdb.iter().for_each(|pdb| wanted.add(pdb));
        let Some(ManagedRedisResources { stateful_set, canonical, service, password: _, claim }) =
            managed_redis
        else {
            return (wanted, None);
        };
        claim.iter().for_each(|claim| wanted.add(claim));
        wanted.add(service);
        let Some((digest, live)) = server else {
            // Without the password's digest, or where it cannot be read, it stays as it is.
            wanted.keep(stateful_set);
            return (wanted, None);
        };
        let rendered =
            StoredRedis::rendered(&managed::sealed(stateful_set.clone(), digest), canonical.clone());
        let stored = live.map(|live| StoredRedis::of(cluster, live, &rendered));
        wanted.children.push(stored.as_ref().unwrap_or(&rendered).object());
        (wanted, Some(rendered))
    }

    fn add(&mut self, child: &impl Serialize) {
        self.children.push(serde_json::to_value(child).expect("a Kubernetes object is JSON"));
    }

    fn keep(&mut self, child: &StatefulSet) {
        self.kept.push(("StatefulSet".to_owned(), child.name_any()));
    }

    fn contains(&self, kind: &str, name: &str) -> bool {
        self.children.iter().any(|child| child["kind"] == kind && child["metadata"]["name"] == name)
            || self.kept.iter().any(|kept| *kept == (kind.to_owned(), name.to_owned()))
    }
}

/// Each revision that exists, as it was written.
fn revisions<'a>(cluster: &'a FanoutCluster, found: &'a Found) -> impl Iterator<Item = Value> + 'a {
    let sets = found.of_kind("ReplicaSet").filter(|set| write::is_owned_by(*set, cluster));
    sets.flat_map(|set| act::Stored::of(cluster, set, found).as_it_should_be(set))
}

/// Children that are wanted no longer. ReplicaSets are the plan's, claims outlive, and a boot document lives as long as
/// its revision.
fn orphans<'a>(
    cluster: &FanoutCluster,
    found: &'a Found,
    wanted: &Wanted,
    revision: &RevisionSpec,
) -> Vec<(&'a ApiResource, &'a DynamicObject)> {
    let revisions: BTreeSet<_> = found.of_kind("ReplicaSet").map(ResourceExt::name_any).collect();
    let current = revision.boot_config_map.metadata.name.as_deref();
    let is_kept = |kind: &str, name: &str| match kind {
        "ReplicaSet" | "PersistentVolumeClaim" => true,
        "ConfigMap" if revisions.contains(name) || current == Some(name) => true,
        kind => wanted.contains(kind, name),
    };
    let children = found.children.iter().map(|(resource, child)| (resource, child.as_ref()));
    children
        .filter(|(_, child)| write::is_owned_by(*child, cluster))
        .filter(|(resource, child)| !is_kept(&resource.kind, &child.name_any()))
        .collect()
}

/// Whether a revision has its ReplicaSet.
fn exists(found: &Found, revision: &str) -> bool {
    found
        .of_kind("ReplicaSet")
        .any(|set| set.labels().get(labels::REVISION).is_some_and(|name| name == revision))
}

/// The revision that the spec asks for. One that an older operator made for the same spec is it, whatever its name. There
/// may be several, where a field that made two revisions is now taken over by running nodes: the one of exactly this
/// name is it, else one that has pods, else the newest.
fn revision_name(found: &Found, revision: &RevisionSpec) -> String {
    let stands_for_it = |set: &&DynamicObject| {
        let stored = set.annotations().get(labels::REVISION_SPEC);
        let stored = stored.and_then(|text| serde_json::from_str(text).ok());
        stored.is_some_and(|stored| revision.stands_for(&stored))
    };
    let rank = |set: &&DynamicObject| {
        let exact = set.labels().get(labels::REVISION) == Some(&revision.name);
        let has_pods = set.data["spec"]["replicas"].as_u64().is_some_and(|replicas| replicas > 0);
        (exact, has_pods, set.creation_timestamp(), set.name_any())
    };
    let existing = found.of_kind("ReplicaSet").filter(stands_for_it).max_by_key(rank);
    existing
        .and_then(|set| set.labels().get(labels::REVISION).cloned())
        .unwrap_or_else(|| revision.name.clone())
}

/// What the spec asks the plan for, the managed Redis apart.
pub fn desired(cluster: &FanoutCluster, revision: String) -> Desired {
    let replicas = u32::try_from(cluster.spec.replicas).unwrap_or(0);
    Desired {
        revision,
        replicas,
        strategy: Strategy::of(&cluster.spec.update_strategy, replicas),
        settle: SETTLE,
        min_ready: Duration::from_secs(cluster.spec.min_ready_seconds.into()),
        history_limit: REVISION_HISTORY_LIMIT,
        redis: None,
    }
}

/// `None` for a Redis with a volume: two pods must never write it.
fn replace_after(cluster: &FanoutCluster) -> Option<Duration> {
    let managed = cluster.spec.redis.managed.as_ref().filter(|managed| managed.storage.is_none())?;
    Some(Duration::from_secs(managed.replace_after_seconds.into()))
}

fn again(observed: &Observed, desired: &Desired, found: &Found) -> Option<Timestamp> {
    plan::next_look(observed, desired, found.at).and_then(|wait| found.at.checked_add(wait).ok())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::{
        controller::{build, mirror, validate},
        redis::RedisTarget,
    };

    #[test]
    fn of_several_revisions_that_stand_for_the_spec_the_exact_one_counts_then_one_with_pods_then_the_newest()
    {
        let cluster = FanoutCluster::new("chat", Default::default());
        let redis = RedisTarget::of(&cluster).expect("one is set");
        let readers =
            config_map::Readers { version: cluster.spec.version.clone(), untold_grace_seconds: None };
        let validated = validate::Validated { redis, api_key: None, readers };
        let revision = build::build(&cluster, &validated, &build::OperatorConfig::default()).revision;
        let set = |name: &str, replicas: u32, created: &str| {
            let metadata = json!({
                "name": name, "creationTimestamp": created, "labels": {labels::REVISION: name},
                "annotations": {labels::REVISION_SPEC: revision.canonical.to_string()},
            });
            let set = json!({"metadata": metadata, "spec": {"replicas": replicas}});
            (mirror::resource_of("ReplicaSet"), Arc::new(serde_json::from_value(set).expect("a ReplicaSet")))
        };
        let chosen = |children: Vec<_>| {
            let found = Found { children, ..Found::nothing() };
            revision_name(&found, &revision)
        };
        let [old, running, new] =
            [("old", 0, "2026-01-01"), ("running", 2, "2026-01-02"), ("new", 0, "2026-01-03")]
                .map(|(name, replicas, day)| set(name, replicas, &format!("{day}T00:00:00Z")));
        assert_eq!(chosen(vec![]), revision.name);
        assert_eq!(chosen(vec![old.clone(), new.clone()]), "new");
        assert_eq!(chosen(vec![old.clone(), running.clone(), new.clone()]), "running");
        let exact = set(&revision.name, 0, "2025-01-01T00:00:00Z");
        assert_eq!(chosen(vec![old, exact, running, new]), revision.name);
    }
}
