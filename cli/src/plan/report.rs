//! A plan as it is printed: the stable form of `--output json`, documented in docs/operations.md. Fields are added to it,
//! and the version moves where one changes its meaning.

use std::collections::{BTreeMap, BTreeSet};

use fanout_operator::{
    api::{ChangeClass, FanoutCluster, OPERATOR_CLASS, RESTARTED_AT, change},
    controller::{
        apply::preview::{Change, Outcome, Planned, Preview, RedisChange},
        survey::Survey,
        validate::Problem,
    },
    plan::{Observed, ObservedPod, Replace, Step, model::Played},
};
use kube::ResourceExt;
use serde::Serialize;

use super::desired::{Desired, LAST_APPLIED};

/// Version of the form.
const VERSION: u32 = 1;

/// The plans of one call.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Report {
    pub(crate) version: u32,
    /// Whether anything would change, in an object or by the operator.
    pub(crate) changes: bool,
    pub(crate) clusters: Vec<ClusterReport>,
}

/// The plan of one FanoutCluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClusterReport {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// What happens to the FanoutCluster itself.
    pub(crate) object: ObjectChange,
    pub(crate) changes: bool,
    /// What the operator does about it.
    pub(crate) state: State,
    /// Fields of the FanoutCluster that differ; none of one that is created.
    pub(crate) fields: Vec<Field>,
    /// The revision that every node should have; null unless `state` is `planned`.
    pub(crate) revision: Option<Revision>,
    /// What becomes of the nodes; null unless `state` is `planned`.
    pub(crate) nodes: Option<Nodes>,
    /// What becomes of the managed Redis; null unless `state` is `planned`.
    pub(crate) redis: Option<Redis>,
    /// Children that are not as they should be.
    pub(crate) children: Vec<Child>,
    /// The steps that are due first.
    pub(crate) steps: Vec<NodeStep>,
    /// What stands in the way.
    pub(crate) problems: Vec<Note>,
    /// What works, and should be asked for otherwise.
    pub(crate) warnings: Vec<Note>,
    /// What cannot be known from here.
    pub(crate) unknown: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum ObjectChange {
    Created,
    Changed,
    Unchanged,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum State {
    /// It is made what it should be.
    Planned,
    /// `spec.paused` is set: nothing is done.
    Paused,
    /// It cannot work, as the problems say: nothing is done.
    Refused,
    /// It is being deleted: nothing is done.
    Deleting,
}

/// A field that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Field {
    pub(crate) path: String,
    pub(crate) class: Class,
}

/// How a change is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Class {
    /// New nodes replace the old ones.
    Roll,
    /// Running pods are patched.
    InPlace,
    /// Running nodes take it over.
    Hot,
    /// The operator changes objects beside the nodes.
    Operator,
    /// Nobody reads it.
    None,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Revision {
    /// Null: it holds an API key that is not known.
    pub(crate) name: Option<String>,
    /// Whether it does not exist yet.
    pub(crate) new: bool,
}

/// What becomes of the nodes, should every new one become ready and nobody else change anything.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Nodes {
    /// Nodes that exist, those that are ending apart.
    pub(crate) now: usize,
    /// Nodes that are asked for.
    pub(crate) wanted: u32,
    pub(crate) replaced: usize,
    pub(crate) added: usize,
    pub(crate) removed: usize,
    pub(crate) kept: usize,
    /// Nodes that stay at an older revision, until a person deletes them or what is stuck is mended.
    pub(crate) outdated: usize,
    /// Nodes that are not ready and need help.
    pub(crate) stuck: usize,
    /// Whether all nodes that are asked for serve in the end.
    pub(crate) finishes: bool,
    /// Those that leave, in their order.
    pub(crate) leaving: Vec<Leaving>,
    /// Nodes that exist at most meanwhile.
    pub(crate) most: usize,
    /// Nodes that serve at least meanwhile.
    pub(crate) least_serving: usize,
    /// Seconds that drains and waits take at most, besides the time in which new nodes become ready; null: it has no end.
    pub(crate) seconds_at_most: Option<u64>,
    pub(crate) pace: Pace,
}

/// A node that leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Leaving {
    pub(crate) name: String,
    /// Its clients by the operator's last status; null: not known.
    pub(crate) connections: Option<u64>,
}

/// What bounds a rollout.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pace {
    /// `RollingUpdate`, or `OnDelete`.
    pub(crate) replace: &'static str,
    pub(crate) max_surge: u32,
    pub(crate) max_unavailable: u32,
    /// Nodes that drain at one time.
    pub(crate) max_draining: u32,
    pub(crate) min_ready_seconds: u64,
    pub(crate) drain_timeout_seconds: u32,
    /// Of the nodes that are there.
    pub(crate) termination_grace_period_seconds: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Redis {
    /// There is no managed Redis.
    None,
    Created,
    Kept,
    Replaced,
    Unknown,
}

/// A child that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Child {
    pub(crate) kind: String,
    /// Null: it is named after what is not known yet.
    pub(crate) name: Option<String>,
    pub(crate) change: ChildChange,
    /// Fields that are updated.
    pub(crate) fields: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum ChildChange {
    Create,
    Update,
    Delete,
    Blocked,
    Unknown,
}

/// A step of the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct NodeStep {
    pub(crate) step: &'static str,
    /// The ReplicaSet, StatefulSet, pod or revision that it is about.
    pub(crate) object: String,
    /// Nodes that a ReplicaSet then keeps.
    pub(crate) nodes: Option<u32>,
    pub(crate) reason: String,
}

/// Something to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Note {
    pub(crate) reason: String,
    pub(crate) object: String,
    pub(crate) message: String,
}

// === impl Report ===

impl Report {
    pub(crate) fn of(clusters: Vec<ClusterReport>) -> Self {
        Self { version: VERSION, changes: clusters.iter().any(|cluster| cluster.changes), clusters }
    }
}

// === impl ClusterReport ===

impl ClusterReport {
    pub(crate) fn of(desired: &Desired, survey: &Survey, preview: &Preview) -> Self {
        let Desired { before, after } = desired;
        let fields = before.as_ref().map(|before| fields(before, after)).unwrap_or_default();
        let object = match before {
            None => ObjectChange::Created,
            Some(_) if fields.is_empty() => ObjectChange::Unchanged,
            Some(_) => ObjectChange::Changed,
        };
        let (state, planned) = match &preview.outcome {
            Outcome::Planned(planned) => (State::Planned, Some(planned.as_ref())),
            Outcome::Paused => (State::Paused, None),
            Outcome::Refused => (State::Refused, None),
            Outcome::Collected => (State::Deleting, None),
        };
        let children: Vec<_> = planned.iter().flat_map(|planned| &planned.children).map(Child::of).collect();
        let steps: Vec<_> = planned
            .iter()
            .flat_map(|planned| &planned.actions)
            .map(|action| NodeStep::of(&action.step, action.reason.to_string()))
            .collect();
        let nodes = planned.map(|planned| Nodes::of(after, &preview.observed, planned));
        let acts = children.iter().any(|child| child.change.is_one())
            || !steps.is_empty()
            || nodes.as_ref().is_some_and(|nodes| nodes.added + nodes.leaving.len() > 0);
        Self {
            namespace: after.namespace().to_owned(),
            name: after.name().to_owned(),
            object,
            changes: object != ObjectChange::Unchanged || acts,
            state,
            fields,
            revision: planned.map(|planned| Revision::of(&preview.observed, planned)),
            redis: planned.map(|planned| Redis::of(planned.redis)),
            problems: preview.problems.iter().map(Note::of).collect(),
            warnings: preview.advice.iter().map(Note::of).collect(),
            unknown: unknown(desired, survey, planned, nodes.as_ref()),
            nodes,
            children,
            steps,
        }
    }
}

/// Fields that differ, those that disturb most first.
pub(super) fn fields(before: &FanoutCluster, after: &FanoutCluster) -> Vec<Field> {
    let spec = change::changes(&before.spec, &after.spec).into_iter().map(|change| Field {
        path: format!("spec.{}", change.path),
        class: match change.class {
            ChangeClass::Roll => Class::Roll,
            ChangeClass::InPlace => Class::InPlace,
            ChangeClass::Hot => Class::Hot,
            ChangeClass::Operator => Class::Operator,
        },
    });
    let metadata = |part: &str, [before, after]: [&BTreeMap<String, String>; 2]| {
        let names: BTreeSet<_> = before.keys().chain(after.keys()).cloned().collect();
        let differing = names.into_iter().filter(|name| before.get(name) != after.get(name));
        // It follows from the others.
        let differing = differing.filter(|name| name != LAST_APPLIED);
        let fields = differing.map(|name| Field {
            class: match name.as_str() {
                RESTARTED_AT if part == "annotations" => Class::Roll,
                OPERATOR_CLASS if part == "labels" => Class::Operator,
                _ => Class::None,
            },
            path: format!("metadata.{part}.{name}"),
        });
        fields.collect::<Vec<_>>()
    };
    let labels = metadata("labels", [before.labels(), after.labels()]);
    let annotations = metadata("annotations", [before.annotations(), after.annotations()]);
    let mut fields: Vec<_> = spec.chain(labels).chain(annotations).collect();
    fields.sort_by_key(|field| field.class);
    fields
}

fn unknown(
    desired: &Desired,
    survey: &Survey,
    planned: Option<&Planned>,
    nodes: Option<&Nodes>,
) -> Vec<String> {
    let mut unknown: Vec<_> = survey.unread.iter().map(|unread| unread.message.clone()).collect();
    let is_unread = |kind: &str| survey.unread.iter().any(|unread| unread.kind == kind);
    if survey.operator.is_none() && desired.before.is_some() && !is_unread("Lease") {
        unknown.push(format!(
            "no operator has claimed namespace {}: nothing happens there until one runs",
            desired.after.namespace()
        ));
    }
    if planned.is_some_and(|planned| !planned.is_named) {
        unknown.push("the name of the new revision: it holds the API key, which is not known".to_owned());
    }
    let uncounted = nodes.is_some_and(|nodes| nodes.leaving.iter().any(|node| node.connections.is_none()));
    if uncounted {
        unknown.push(
            "the connections of nodes that the operator's status does not give: another node may leave in the place of \
             one that is named"
                .to_owned(),
        );
    }
    unknown
}

// === impl Revision ===

impl Revision {
    fn of(observed: &Observed, planned: &Planned) -> Self {
        let name = &planned.desired.revision;
        let new = observed.sets.iter().all(|set| set.revision != *name);
        Self { name: Some(name.clone()).filter(|_| planned.is_named), new }
    }
}

// === impl Nodes ===

impl Nodes {
    fn of(cluster: &FanoutCluster, observed: &Observed, planned: &Planned) -> Self {
        let Planned { desired, played, grace, .. } = planned;
        let living = |observed: &Observed| -> Vec<ObservedPod> {
            observed.pods.iter().filter(|pod| !pod.is_ending()).cloned().collect()
        };
        let (before, after) = (living(observed), living(&played.observed));
        let leaving = leaving(&before, &after, played);
        let added = after.iter().filter(|pod| before.iter().all(|old| old.name != pod.name)).count();
        let replaced = leaving.len().min(added);
        let current = |pod: &&ObservedPod| {
            let mut sets = played.observed.sets.iter();
            sets.any(|set| set.name == pod.set && set.revision == desired.revision)
        };
        let outdated = after.len() - after.iter().filter(current).count();
        let serving = after.iter().filter(|pod| pod.is_available()).count();
        Self {
            now: before.len(),
            wanted: desired.replicas,
            replaced,
            added: added - replaced,
            removed: leaving.len() - replaced,
            kept: before.len() - leaving.len(),
            outdated,
            stuck: before.iter().filter(|pod| pod.stuck).count(),
            finishes: played.took.is_some() && outdated == 0 && serving == desired.replicas as usize,
            leaving,
            most: played.most,
            least_serving: played.least_available,
            seconds_at_most: played.took.map(|took| took.as_millis().div_ceil(1_000) as u64),
            pace: Pace {
                replace: match desired.strategy.replace {
                    Replace::Rolling => "RollingUpdate",
                    Replace::OnDelete => "OnDelete",
                },
                max_surge: desired.strategy.max_surge,
                max_unavailable: desired.strategy.max_unavailable,
                max_draining: desired.strategy.max_draining(),
                min_ready_seconds: desired.min_ready.as_secs(),
                drain_timeout_seconds: cluster.spec.drain.timeout_seconds,
                termination_grace_period_seconds: grace.as_secs(),
            },
        }
    }
}

/// The nodes that are there and not at the end, in the order in which they are taken out.
fn leaving(before: &[ObservedPod], after: &[ObservedPod], played: &Played) -> Vec<Leaving> {
    let taken = |name: &str| {
        played.actions.iter().position(|action| match &action.step {
            Step::Retire { pod } | Step::Remove { pod, .. } => pod == name,
            _ => false,
        })
    };
    let mut gone: Vec<_> =
        before.iter().filter(|pod| after.iter().all(|kept| kept.name != pod.name)).collect();
    gone.sort_by_key(|pod| taken(&pod.name));
    gone.into_iter().map(|pod| Leaving { name: pod.name.clone(), connections: pod.connections }).collect()
}

// === impl Redis ===

impl Redis {
    fn of(change: RedisChange) -> Self {
        match change {
            RedisChange::None => Self::None,
            RedisChange::Created => Self::Created,
            RedisChange::Kept => Self::Kept,
            RedisChange::Replaced => Self::Replaced,
            RedisChange::Unknown => Self::Unknown,
        }
    }
}

// === impl Child ===

impl Child {
    fn of(child: &fanout_operator::controller::apply::preview::Child) -> Self {
        let (change, fields) = match &child.change {
            Change::Create => (ChildChange::Create, Vec::new()),
            Change::Update(fields) => (ChildChange::Update, fields.clone()),
            Change::Delete => (ChildChange::Delete, Vec::new()),
            Change::Blocked => (ChildChange::Blocked, Vec::new()),
            Change::Unknown => (ChildChange::Unknown, Vec::new()),
        };
        Self { kind: child.kind.clone(), name: child.name.clone(), change, fields }
    }
}

impl ChildChange {
    fn is_one(self) -> bool {
        match self {
            Self::Create | Self::Update | Self::Delete => true,
            Self::Blocked | Self::Unknown => false,
        }
    }
}

// === impl NodeStep ===

impl NodeStep {
    fn of(step: &Step, reason: String) -> Self {
        let (step, object, nodes) = match step {
            Step::CreateSet { revision, replicas } => ("CreateSet", revision, Some(*replicas)),
            Step::ResizeSet { set, to } => ("ResizeSet", set, Some(*to)),
            Step::Retire { pod } => ("Retire", pod, None),
            Step::Restore { pod } => ("Restore", pod, None),
            Step::Release { pod } => ("Release", pod, None),
            Step::Remove { set: _, to, pod } => ("Remove", pod, Some(*to)),
            Step::DeleteSet { set } => ("DeleteSet", set, None),
            Step::MoveRedis { set } => ("MoveRedis", set, None),
            Step::DeleteRedisPod { pod, force: _ } => ("DeleteRedisPod", pod, None),
        };
        Self { step, object: object.clone(), nodes, reason }
    }
}

// === impl Note ===

impl Note {
    fn of(problem: &Problem) -> Self {
        let Problem { reason, object, key: _, message } = problem;
        Self { reason: reason.to_string(), object: object.clone(), message: message.clone() }
    }
}
