//! What a reconcile would do, by the code that does it, without doing it. Pure; called by `kubectl fanout plan`.
//!
//! It rests on a [`Survey`] alone. A process that runs remembers more: which repairs others undo, and what its nodes
//! said a moment ago.

use std::time::Duration;

use kube::{ResourceExt, api::DynamicObject};
use serde_json::{Value, json};

use super::{
    Target, Wanted, act,
    compare::{self, Path},
    exists, orphans,
    redis::{self, StoredRedis},
    revisions,
    write::{self, Cause, Trouble},
};
use crate::{
    api::FanoutCluster,
    controller::{
        build::{self, GeneratedSecret, OperatorConfig, Resources},
        dereference::is_owned_by,
        is_collected,
        survey::{Read, Survey},
        validate::{self, Problem, Validated},
    },
    plan::{
        self, Action, Desired, Observed, Step,
        model::{Model, Played},
    },
    resources::labels,
};

/// Digest of a value that the operator has yet to make.
const PENDING: &str = "pending";

/// What a reconcile would do.
#[derive(Clone, Debug)]
pub struct Preview {
    /// What exists of the nodes and of the managed Redis.
    pub observed: Observed,
    /// What is done about it.
    pub outcome: Outcome,
    /// What stands in the way.
    pub problems: Vec<Problem>,
    /// What works, and should be asked for otherwise.
    pub advice: Vec<Problem>,
}

/// What is done about a FanoutCluster.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Nothing: it is being deleted.
    Collected,
    /// Nothing: its spec cannot work, as the problems say.
    Refused,
    /// Nothing: it is paused.
    Paused,
    /// It is made what it should be.
    Planned(Box<Planned>),
}

/// The way to what should be.
#[derive(Clone, Debug)]
pub struct Planned {
    /// What should be.
    pub desired: Desired,
    /// Whether the name of the revision is known. A new one that holds an API key which was not read is named otherwise.
    pub is_named: bool,
    /// Children that are written or deleted, or would have to be.
    pub children: Vec<Child>,
    /// The steps that are due.
    pub actions: Vec<Action>,
    /// All steps and their end, should every new node become ready and nobody else change anything.
    pub played: Played,
    /// Time that the kubelet gives the nodes to end that are there; the longest of theirs.
    pub grace: Duration,
    /// What becomes of the managed Redis.
    pub redis: RedisChange,
}

/// A child that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Child {
    /// Its kind.
    pub kind: String,
    /// Its name; `None`: it is made of what is not known yet.
    pub name: Option<String>,
    /// What is done about it.
    pub change: Change,
}

/// What is done about a child.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// It is made.
    Create,
    /// These fields are changed; none: only what the operator notes of it.
    Update(Vec<String>),
    /// It is deleted.
    Delete,
    /// Nothing, for a reason that is among the problems.
    Blocked,
    /// It may not be read.
    Unknown,
}

/// What becomes of a managed Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisChange {
    /// There is none.
    None,
    /// It is made.
    Created,
    /// Its pod stays.
    Kept,
    /// Its pod is replaced.
    Replaced,
    /// It may not be read.
    Unknown,
}

/// A reconcile that is looked ahead to.
struct Ahead<'a> {
    cluster: &'a FanoutCluster,
    survey: &'a Survey,
    resources: &'a Resources,
    children: Vec<Child>,
    problems: Vec<Problem>,
}

/// What the operator would do about `cluster`, where `survey` is what exists.
pub fn preview(cluster: &FanoutCluster, survey: &Survey) -> Preview {
    let (outcome, problems) = outcome(cluster, survey);
    Preview { observed: survey.found.observed(), outcome, problems, advice: validate::advice(cluster) }
}

fn outcome(cluster: &FanoutCluster, survey: &Survey) -> (Outcome, Vec<Problem>) {
    if is_collected(cluster) {
        return (Outcome::Collected, Vec::new());
    }
    let mut validated = match validate::validate(cluster, &survey.found.named) {
        Ok(validated) => validated,
        Err(problems) => return (Outcome::Refused, problems),
    };
    if cluster.spec.paused {
        return (Outcome::Paused, validated.missing);
    }
    let resources = build::build(cluster, &validated, &OperatorConfig::default());
    if cluster.has_app_containers() && will_be_made(&resources.api_key, &survey.api_key) {
        validated.api_key = Some(PENDING.to_owned());
    }
    let resources = build::build(cluster, &validated, &config(survey));
    let problems = validated.missing.clone();
    let Some(target) = Target::of(cluster, &survey.found, &resources.revision, !problems.is_empty()) else {
        return (Outcome::Refused, problems);
    };
    let ahead = Ahead { cluster, survey, resources: &resources, children: Vec::new(), problems };
    let (planned, problems) = ahead.look(&validated, &target);
    (Outcome::Planned(Box::new(planned)), problems)
}

/// As far as it can be told from here. Images and users are in no child that exists: those were rendered once.
fn config(survey: &Survey) -> OperatorConfig {
    let default = OperatorConfig::default();
    match survey.operator.as_deref().and_then(|holder| holder.split_once('/')) {
        Some((namespace, _)) => OperatorConfig { namespace: namespace.to_owned(), ..default },
        None => default,
    }
}

/// Whether a generated Secret gets a value that nobody knows yet.
fn will_be_made(secret: &GeneratedSecret, read: &Read) -> bool {
    match read {
        Read::Absent => true,
        Read::Live(live) => secret.repaired_digest(live).is_none(),
        Read::Unread => false,
    }
}

// === impl Ahead ===

impl<'a> Ahead<'a> {
    fn look(mut self, validated: &Validated, target: &Target) -> (Planned, Vec<Problem>) {
        let Self { cluster, survey, resources, .. } = self;
        let found = &survey.found;
        let version = &cluster.spec.version;
        self.problems.extend(resources.too_new.iter().map(|unknown| Problem::too_new(unknown, version)));
        let has_key = self.secret(&resources.api_key, &survey.api_key);
        let stateful = self.stateful_set();
        let server = self.password().zip(stateful);
        let (mut wanted, redis) =
            Wanted::of(cluster, resources, server.as_ref().map(|(digest, live)| (&**digest, *live)));
        if target.is_held {
            wanted.keep_what_is_there(found);
        }
        for child in wanted.children.iter().cloned().chain(revisions(cluster, found)) {
            self.child(child);
        }
        for (resource, child) in orphans(cluster, found, &wanted, &resources.revision, target) {
            self.note(&resource.kind, Some(child.name_any()), Change::Delete);
        }
        let observed = &redis::observed(cluster, found, redis.as_ref());
        let desired = target.desired(cluster, observed, redis.as_ref());
        let is_new = !exists(found, &desired.revision);
        // A new revision waits for its key.
        let waits = is_new && cluster.has_app_containers() && found.named.api_key.is_none() && !has_key;
        let key = &found.named.api_key;
        let is_named =
            !is_new || !cluster.has_app_containers() || (key.is_some() && *key == validated.api_key);
        let actions = if waits { Vec::new() } else { plan::plan(observed, &desired, found.at) };
        let actions: Vec<_> =
            actions.into_iter().filter(|action| self.is_possible(action, is_named)).collect();
        let grace = self.grace();
        let played = self.play(observed, &desired, &actions, grace);
        self.forgotten(&played);
        let redis = self.redis_change(stateful, redis.as_ref(), &actions, target.is_held);
        let Self { mut children, problems, .. } = self;
        children.sort();
        (Planned { desired, is_named, children, actions, played, grace, redis }, problems)
    }

    fn note(&mut self, kind: &str, name: Option<String>, change: Change) {
        self.children.push(Child { kind: kind.to_owned(), name, change });
    }

    fn trouble(&mut self, kind: &str, name: &str, trouble: Trouble) {
        let problem = match trouble.cause {
            Cause::Told(problem) => Some(problem),
            Cause::Failed(error) => error.problem(true),
        };
        self.problems.extend(problem);
        self.note(kind, Some(name.to_owned()), Change::Blocked);
    }

    /// Looks at a child; `false`: it cannot be written.
    fn child(&mut self, desired: Value) -> bool {
        let (kind, name) = write::identity(&desired);
        let Some(live) = self.survey.live(&kind, &name) else {
            let unread = self.survey.is_unread(&kind, &name);
            self.note(&kind, Some(name), if unread { Change::Unknown } else { Change::Create });
            return true;
        };
        match write::due(self.cluster, live, desired) {
            Ok(None) => true,
            // It names the operator's namespace, which is not known.
            Ok(Some(_)) if kind == "NetworkPolicy" && self.survey.operator.is_none() => {
                self.note(&kind, Some(name), Change::Unknown);
                true
            }
            Ok(Some(paths)) => {
                let own = format!("metadata.annotations.{}", labels::PREFIX);
                let paths = paths.iter().map(ToString::to_string).filter(|path| !path.starts_with(&own));
                self.note(&kind, Some(name), Change::Update(paths.collect()));
                true
            }
            Err(trouble) => {
                self.trouble(&kind, &name, trouble);
                false
            }
        }
    }

    /// Looks at a generated Secret; `false`: there will be none.
    fn secret(&mut self, secret: &GeneratedSecret, read: &Read) -> bool {
        let change = match read {
            Read::Absent => Change::Create,
            Read::Unread => Change::Unknown,
            Read::Live(live) if !write::is_adopted_or_owned(live.as_ref(), self.cluster) => {
                self.trouble(
                    "Secret",
                    secret.name(),
                    write::not_ours(live.as_ref(), self.cluster, "Secret", secret.name()).into(),
                );
                return false;
            }
            Read::Live(live) => match secret.repair(live, PENDING) {
                Some(_) => Change::Update(Vec::new()),
                None => return true,
            },
        };
        self.note("Secret", Some(secret.name().to_owned()), change);
        true
    }

    /// Digest of the managed Redis' password as it will be. One that may not be read counts as the one that its
    /// StatefulSet was made for.
    fn password(&mut self) -> Option<String> {
        let redis = self.resources.managed_redis.as_ref()?;
        let survey = self.survey;
        if !self.secret(&redis.password, &survey.password) {
            return None;
        }
        let digest = match &survey.password {
            Read::Absent => None,
            Read::Live(live) => redis.password.repaired_digest(live),
            Read::Unread => survey.found.observed().redis.map(|redis| redis.password),
        };
        Some(digest.unwrap_or_else(|| PENDING.to_owned()))
    }

    /// The StatefulSet of the managed Redis, where there is one of ours; `None`: it may not be read.
    fn stateful_set(&self) -> Option<Option<&'a DynamicObject>> {
        let name = self.resources.managed_redis.as_ref()?.stateful_set.name_any();
        match self.survey.live("StatefulSet", &name) {
            None if self.survey.is_unread("StatefulSet", &name) => None,
            live => Some(live.filter(|live| is_owned_by(*live, self.cluster))),
        }
    }

    /// Whether a step can be taken; notes the children that it makes or changes.
    fn is_possible(&mut self, action: &Action, is_named: bool) -> bool {
        match &action.step {
            Step::CreateSet { revision: _, replicas } => self.create(*replicas, is_named),
            Step::MoveRedis { set } => {
                self.children.retain(|child| child.kind != "StatefulSet");
                self.note("StatefulSet", Some(set.clone()), Change::Update(Vec::new()));
                true
            }
            Step::ResizeSet { .. }
            | Step::Retire { .. }
            | Step::Restore { .. }
            | Step::Release { .. }
            | Step::Remove { .. }
            | Step::DeleteSet { .. }
            | Step::DeleteRedisPod { .. } => true,
        }
    }

    fn create(&mut self, replicas: u32, is_named: bool) -> bool {
        let revision = &self.resources.revision;
        let (kind, name) = write::identity(&revision.replica_set);
        let live = self.survey.live(&kind, &name);
        let stored = act::Stored::to_make(self.cluster, live, &self.survey.found, revision);
        let set = stored.replica_set(&json!(replicas));
        if let Err(trouble) = act::is_small_enough(self.cluster, &set) {
            self.trouble(&kind, &name, trouble);
            return false;
        }
        if is_named {
            let boot = stored.boot().unwrap_or_else(|| json!(revision.boot_config_map));
            return self.child(boot) & self.child(set);
        }
        self.note("ConfigMap", None, Change::Create);
        self.note("ReplicaSet", None, Change::Create);
        true
    }

    /// Time that the kubelet gives the nodes that are there, or will be.
    fn grace(&self) -> Duration {
        let pods = self.survey.found.nodes.iter().filter_map(|node| node.pod.spec.as_ref());
        let seconds = pods.filter_map(|pod| u64::try_from(pod.termination_grace_period_seconds?).ok()).max();
        let asked = self.cluster.spec.drain.termination_grace_period_seconds;
        Duration::from_secs(seconds.unwrap_or_else(|| asked.into()))
    }

    fn play(&self, observed: &Observed, desired: &Desired, actions: &[Action], grace: Duration) -> Played {
        // The Redis is not played: without what is desired of it, nothing is planned for it.
        let desired = &Desired { redis: None, ..desired.clone() };
        let mut model = Model::new(observed.clone(), self.survey.found.at);
        let stuck = observed.pods.iter().filter(|pod| pod.stuck);
        model.down = stuck.map(|pod| pod.name.clone()).collect();
        model.drain = grace;
        // Where the first step cannot be taken, nothing follows.
        let starts = exists(&self.survey.found, &desired.revision)
            || actions.iter().any(|action| matches!(action.step, Step::CreateSet { .. }));
        if starts { model.play(desired) } else { model.rest() }
    }

    /// Notes the revisions that are forgotten in the end, and their boot documents.
    fn forgotten(&mut self, played: &Played) {
        for action in &played.actions {
            let Step::DeleteSet { set } = &action.step else { continue };
            self.children.retain(|child| child.name.as_ref() != Some(set));
            self.note("ReplicaSet", Some(set.clone()), Change::Delete);
            if self.survey.found.child("ConfigMap", set).is_some() {
                self.note("ConfigMap", Some(set.clone()), Change::Delete);
            }
        }
    }

    fn redis_change(
        &self,
        stateful: Option<Option<&DynamicObject>>,
        rendered: Option<&StoredRedis>,
        actions: &[Action],
        is_held: bool,
    ) -> RedisChange {
        if self.resources.managed_redis.is_none() {
            return RedisChange::None;
        }
        let live = match (stateful, rendered) {
            (None, _) => return RedisChange::Unknown,
            (Some(None), Some(_)) => return RedisChange::Created,
            // Somebody else has the Secret of its password.
            (Some(None), None) => return RedisChange::None,
            (Some(live), _) => live,
        };
        let replaces = |action: &Action| match &action.step {
            Step::MoveRedis { .. } => {
                live.zip(rendered).is_none_or(|(live, to)| self.is_another_pod(live, to, is_held))
            }
            Step::DeleteRedisPod { .. } => true,
            _ => false,
        };
        if actions.iter().any(replaces) { RedisChange::Replaced } else { RedisChange::Kept }
    }

    /// Whether the pod of a managed Redis that is moved is another one: Kubernetes replaces none whose template stays.
    /// The image that the operator gives where the spec names none is not known, and counts as another.
    fn is_another_pod(&self, live: &DynamicObject, rendered: &StoredRedis, is_held: bool) -> bool {
        let named = self.cluster.spec.redis.managed.as_ref().is_some_and(|managed| managed.image.is_some());
        let moved = StoredRedis::of(self.cluster, live, rendered).moved_to(rendered, is_held).object();
        !named
            || compare::compare(&moved, live)
                .deviations
                .iter()
                .any(|path| path.is_below(&Path::of("spec.template")))
    }
}
