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

pub(super) use self::field::{is_denied, is_invalid, of_cluster as fields_behind};
pub use self::write::FIELD_MANAGER;
use self::{
    act::Stored,
    redis::StoredRedis,
    write::{Cause, Trouble, Writer},
};
use super::{
    Error, ErrorClass, Shared,
    build::{GeneratedSecret, ManagedRedisResources, Resources, RevisionSpec},
    dereference::{Found, is_owned_by, revision_of},
    mirror::Mirrors,
    validate::Problem,
};
use crate::{
    api::FanoutCluster,
    events::Events,
    lease::territory::Territory,
    plan::{self, Action, Desired, Observed, Strategy},
    redis::managed,
    resources::config_map,
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
    /// The revision that the spec asks for; `None` where the spec was refused, or where its pods would wait for a Secret.
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
        // One request may fail in two places.
        let problem = failed.problem(lasting || self.lasting);
        self.problems.extend(problem.filter(|problem| !self.problems.contains(problem)));
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

    /// Makes everything of a cluster what it should be; of a paused one, nothing. `missing`: what is missing of the Secrets
    /// that it names. Without them no new revision begins, and what runs is kept as it is. `lasting`: this has failed for a
    /// while.
    pub(super) async fn apply(
        &self,
        cluster: &FanoutCluster,
        found: &Found,
        resources: Resources,
        missing: Vec<Problem>,
        lasting: bool,
    ) -> Result<Applied, Error> {
        let is_in_doubt = !missing.is_empty() || !found.unread.is_empty();
        let mut applied = Applied { problems: missing, lasting, ..Applied::default() };
        for error in &found.unread {
            applied.note::<()>(Err(error.clone().into()))?;
        }
        let Some(target) = Target::of(cluster, found, &resources.revision, is_in_doubt) else {
            return Ok(applied);
        };
        let name = target.revision.clone();
        applied.revision = Some(name.clone()).filter(|_| !target.is_held);
        if cluster.spec.paused {
            return Ok(applied);
        }
        let version = &cluster.spec.version;
        applied.problems.extend(resources.too_new.iter().map(|unknown| Problem::too_new(unknown, version)));
        let rendered = self.children(cluster, found, resources, &target, &mut applied).await?;
        // A key that cannot be read is in doubt, and may be any.
        if cluster.has_app_containers() && found.named.api_key.is_none() && !is_in_doubt {
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
        self.act(cluster, found, &rendered, &mut applied).await?;
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
        target: &Target,
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
        let server = server.as_ref().map(|(digest, live)| (&**digest, live.as_ref()));
        let settings = config_map::live_hash(&resources.live_config_map);
        let (mut wanted, redis) = Wanted::of(cluster, &resources, server);
        if target.is_held {
            wanted.keep_what_is_there(found);
        }
        for child in &wanted.children {
            let mut done = self.writer.ensure(cluster, found, child.clone(), &self.events).await;
            if let (Some(rendered), Some((_, Some(live)))) = (&redis, server)
                && child["kind"] == "StatefulSet"
                && done.as_ref().is_err_and(Trouble::is_malformed)
            {
                // What is stored cannot be; what is there can.
                let adopted = StoredRedis::adopt(cluster, live, rendered).object();
                done = self.writer.ensure(cluster, found, adopted, &self.events).await;
            }
            if applied.note(done)?.is_some() && child["kind"] == "ConfigMap" {
                // The only one here is that of the live settings.
                applied.settings = Some(settings.clone());
            }
        }
        for set in own_revisions(cluster, found) {
            self.revision(cluster, found, set, applied).await?;
        }
        for (resource, child) in orphans(cluster, found, &wanted, &resources.revision, target) {
            let removed = async {
                self.writer.confirm(cluster).await?;
                self.writer.delete(cluster, resource, child).await
            };
            applied.note(removed.await)?;
        }
        let Target { revision: _, is_held: _, is_in_doubt } = *target;
        Ok(Rendered { revision: resources.revision, redis, has_api_key, is_in_doubt })
    }

    /// A revision as it was written. Where the API server refuses that for what it is, it is not what was written, and the
    /// revision is what is there: else each step of the plan would be refused with it.
    async fn revision(
        &self,
        cluster: &FanoutCluster,
        found: &Found,
        set: &DynamicObject,
        applied: &mut Applied,
    ) -> Result<(), Error> {
        for child in Stored::of(cluster, set, found).as_it_should_be(set) {
            let done = self.writer.ensure(cluster, found, child, &self.events).await;
            if done.as_ref().is_err_and(Trouble::is_malformed) {
                for there in Stored::adopt(cluster, set, found).as_it_should_be(set) {
                    applied.note(self.writer.ensure(cluster, found, there, &self.events).await)?;
                }
                return Ok(());
            }
            applied.note(done)?;
        }
        Ok(())
    }

    /// The StatefulSet of the managed Redis. One that lost the cluster's label is in no mirror, and is still the cluster's:
    /// what it was rendered as is read from the API server then.
    async fn redis(&self, cluster: &FanoutCluster, found: &Found) -> Result<Option<DynamicObject>, Trouble> {
        let name = managed::name(cluster);
        if let Some(live) = found.child("StatefulSet", &name) {
            return Ok(Some(live.clone()));
        }
        let read = self.writer.read(cluster, "StatefulSet", &name).await?;
        Ok(read.filter(|live| is_owned_by(live, cluster)))
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
        rendered: &Rendered,
        applied: &mut Applied,
    ) -> Result<(), Error> {
        let Some((mut observed, mut desired)) = rendered.to_plan(cluster, found) else { return Ok(()) };
        if !plan::plan(&observed, &desired, found.at).is_empty() {
            let fresh = self.writer.look(cluster, found).await.map_err(Trouble::from);
            let Some(fresh) = applied.note(fresh)? else { return Ok(()) };
            // The revision too: it may have been repaired, or made, since.
            let Some(planned) = rendered.to_plan(cluster, &fresh) else { return Ok(()) };
            (observed, desired) = planned;
            applied.revision = applied.revision.take().map(|_| desired.revision.clone());
            for action in plan::plan(&observed, &desired, fresh.at) {
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
        let at = again(&observed, &desired, found);
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
    /// Whether pods of a new revision would wait, or may.
    is_in_doubt: bool,
}

/// The revision that nodes are brought to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    revision: String,
    /// It is one that runs, in the place of the one that the spec asks for.
    is_held: bool,
    /// Whether pods of a new revision would wait, or may.
    is_in_doubt: bool,
}

/// Children that should exist.
#[derive(Default)]
struct Wanted {
    children: Vec<Value>,
    /// Kind and name of those that stay as they are.
    kept: Vec<(String, String)>,
}

// === impl Rendered ===

impl Rendered {
    /// What exists and what should, in the plan's words.
    fn to_plan(&self, cluster: &FanoutCluster, found: &Found) -> Option<(Observed, Desired)> {
        let Self { revision, redis, has_api_key: _, is_in_doubt } = self;
        let target = Target::of(cluster, found, revision, *is_in_doubt)?;
        let observed = redis::observed(cluster, found, redis.as_ref());
        let desired = target.desired(cluster, &observed, redis.as_ref());
        Some((observed, desired))
    }

    /// Whether the spec does not take effect yet.
    fn is_held(&self, cluster: &FanoutCluster, found: &Found) -> bool {
        Target::of(cluster, found, &self.revision, self.is_in_doubt).is_some_and(|target| target.is_held)
    }
}

// === impl Target ===

impl Target {
    /// The revision that the spec asks for. While it is in doubt whether its pods could start, only where it runs already:
    /// else the one that does; `None` where none does.
    fn of(
        cluster: &FanoutCluster,
        found: &Found,
        revision: &RevisionSpec,
        is_in_doubt: bool,
    ) -> Option<Self> {
        let asked = revision_name(cluster, found, revision);
        let told = cluster.status.as_ref().map(|status| status.update_revision.as_str());
        let runs = |set: &DynamicObject| told == Some(revision_of(set)) || has_replicas(set);
        if !is_in_doubt || found.of_kind("ReplicaSet").any(|set| revision_of(set) == asked && runs(set)) {
            return Some(Self { revision: asked, is_held: false, is_in_doubt });
        }
        let rank = |set: &&DynamicObject| {
            let is_told = told == Some(revision_of(set));
            (is_told, has_replicas(set), set.creation_timestamp(), set.name_any())
        };
        let running = found.of_kind("ReplicaSet").max_by_key(rank)?;
        Some(Self { revision: revision_of(running).to_owned(), is_held: true, is_in_doubt })
    }

    fn desired(&self, cluster: &FanoutCluster, observed: &Observed, redis: Option<&StoredRedis>) -> Desired {
        let mut redis = redis.map(|redis| redis.desired(replace_after(cluster)));
        // The Redis of the nodes that run is not moved for a spec that does not take effect.
        let present = observed.redis.as_ref().and_then(|redis| redis.spec.clone()).filter(|_| self.is_held);
        if let (Some(redis), Some(present)) = (&mut redis, present) {
            redis.spec = present;
        }
        Desired { redis, ..desired(cluster, self.revision.clone()) }
    }
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

    /// Makes what is gone, and leaves the rest as the nodes have it that run by another spec.
    fn keep_what_is_there(&mut self, found: &Found) {
        let Self { children, kept } = self;
        children.retain(|child| {
            let (kind, name) = write::identity(child);
            // The StatefulSet is as it was stored.
            let stays = kind != "StatefulSet" && found.child(&kind, &name).is_some();
            if stays {
                kept.push((kind, name));
            }
            !stays
        });
    }

    fn contains(&self, kind: &str, name: &str) -> bool {
        self.children.iter().any(|child| child["kind"] == kind && child["metadata"]["name"] == name)
            || self.kept.iter().any(|kept| *kept == (kind.to_owned(), name.to_owned()))
    }
}

/// Each revision that exists.
fn own_revisions<'a>(
    cluster: &'a FanoutCluster,
    found: &'a Found,
) -> impl Iterator<Item = &'a DynamicObject> {
    found.of_kind("ReplicaSet").filter(|set| is_owned_by(*set, cluster))
}

/// The same, as they were written.
fn revisions<'a>(cluster: &'a FanoutCluster, found: &'a Found) -> impl Iterator<Item = Value> + 'a {
    own_revisions(cluster, found).flat_map(|set| Stored::of(cluster, set, found).as_it_should_be(set))
}

/// Children that are wanted no longer. ReplicaSets are the plan's, claims outlive, and a boot document lives as long as
/// its revision.
fn orphans<'a>(
    cluster: &FanoutCluster,
    found: &'a Found,
    wanted: &Wanted,
    revision: &RevisionSpec,
    target: &Target,
) -> Vec<(&'a ApiResource, &'a DynamicObject)> {
    if target.is_held {
        // They are wanted by the nodes that run.
        return Vec::new();
    }
    let revisions: BTreeSet<_> = found.of_kind("ReplicaSet").map(ResourceExt::name_any).collect();
    let current = revision.boot_config_map.metadata.name.as_deref();
    let is_kept = |kind: &str, name: &str| match kind {
        "ReplicaSet" | "PersistentVolumeClaim" => true,
        "ConfigMap" if revisions.contains(name) || current == Some(name) => true,
        kind => wanted.contains(kind, name),
    };
    let children = found.children.iter().map(|(resource, child)| (resource, child.as_ref()));
    children
        .filter(|(_, child)| is_owned_by(*child, cluster))
        .filter(|(resource, child)| !is_kept(&resource.kind, &child.name_any()))
        .collect()
}

/// Whether a revision has its ReplicaSet.
fn exists(found: &Found, revision: &str) -> bool {
    found.of_kind("ReplicaSet").any(|set| revision_of(set) == revision)
}

/// The revision that the spec asks for. One that an older operator made for the same spec is it, whatever its name. There
/// may be several, where a field that made two revisions is now taken over by running nodes: the one of exactly this
/// name is it, else one that has pods, else the newest. One that lost every word of what it stands for is what the status
/// says of it, where that speaks of the same spec.
fn revision_name(cluster: &FanoutCluster, found: &Found, revision: &RevisionSpec) -> String {
    let told = cluster.status.as_ref().filter(|told| told.observed_generation == cluster.metadata.generation);
    let stands_for_it = |set: &&DynamicObject| match Stored::of(cluster, set, found).stands_for() {
        Some(stored) => revision.stands_for(&stored),
        None => told.is_some_and(|told| told.update_revision == revision_of(set)),
    };
    let rank = |set: &&DynamicObject| {
        let exact = revision_of(set) == revision.name;
        (exact, has_replicas(set), set.creation_timestamp(), set.name_any())
    };
    let existing = found.of_kind("ReplicaSet").filter(stands_for_it).max_by_key(rank);
    existing.map_or_else(|| revision.name.clone(), |set| revision_of(set).to_owned())
}

fn has_replicas(set: &DynamicObject) -> bool {
    set.data["spec"]["replicas"].as_u64().is_some_and(|replicas| replicas > 0)
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
        resources::labels,
    };

    #[test]
    fn of_several_revisions_that_stand_for_the_spec_the_exact_one_counts_then_one_with_pods_then_the_newest()
    {
        let cluster = FanoutCluster::new("chat", Default::default());
        let redis = RedisTarget::of(&cluster).expect("one is set");
        let readers =
            config_map::Readers { version: cluster.spec.version.clone(), untold_grace_seconds: None };
        let validated = validate::Validated { redis, api_key: None, readers, missing: Vec::new() };
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
            revision_name(&cluster, &found, &revision)
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
