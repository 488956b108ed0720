//! Decides every step that could disturb a client: which pods come, which go, and when. Pure.
//!
//! [`plan`] is called between build and apply; apply performs its actions in order, and no disruptive step has
//! another source. It knows neither the API server nor a clock of its own: what it may know is in [`Observed`],
//! so a new operator goes on where the old one stopped.
//!
//! What holds for every plan (tested as properties): where observed and desired agree it is empty; never are more
//! nodes being drained than allowed; a node is removed only after it was out of its Services long enough; played
//! step by step, it ends; a revision whose pods do not become ready leaves the older pods alone, whatever happens to
//! these meanwhile.

mod change;
pub mod model;
mod redis;
mod rollout;
mod victim;

use std::{fmt, time::Duration};

use k8s_openapi::{
    apimachinery::pkg::util::intstr::IntOrString,
    jiff::{SignedDuration, Timestamp},
};

pub use change::{next_look, plan};
pub use redis::{DesiredRedis, Machine, ObservedRedis, ObservedRedisPod};

use crate::api::{
    Reason,
    v1alpha1::{UpdateStrategy, UpdateStrategyType},
};

/// Time between marking a pod as the next to go and shrinking its ReplicaSet: the ReplicaSet controller must have
/// seen the mark, or it removes another pod.
pub const MARK_SETTLES: Duration = Duration::from_millis(500);

/// Time after which a pod that should have ended no longer counts as draining: its Kubernetes node is gone, and
/// nothing may wait for it for ever.
pub const OVERDUE: Duration = Duration::from_secs(30);

/// What exists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// ReplicaSets of the cluster, in any order.
    pub sets: Vec<ObservedSet>,
    /// Their pods, in any order.
    pub pods: Vec<ObservedPod>,
    /// The managed Redis; `None` where there is none yet.
    pub redis: Option<ObservedRedis>,
}

/// A ReplicaSet: the pods of one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedSet {
    /// Its name.
    pub name: String,
    /// The revision it stands for.
    pub revision: String,
    /// Pods that it is asked to keep.
    pub replicas: u32,
    /// When it was made.
    pub created: Timestamp,
}

/// A pod of one of the sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedPod {
    /// Its name.
    pub name: String,
    /// Name of its ReplicaSet.
    pub set: String,
    /// When it was made.
    pub created: Timestamp,
    /// Whether Kubernetes calls it ready.
    pub ready: bool,
    /// Since when, as far as Kubernetes says.
    pub ready_since: Option<Timestamp>,
    /// Whether its own messages come back through the broker; `None` where it could not be asked.
    pub verified: Option<bool>,
    /// Whether it will not become ready without help: its image cannot be pulled, it crashes, its time is up.
    pub stuck: bool,
    /// Whether its label lets Services select it.
    pub serving: bool,
    /// When the operator took it out of its Services in order to remove it.
    pub retired: Option<Timestamp>,
    /// When it was marked as the next to go.
    pub released: Option<Timestamp>,
    /// When it is to have ended, if it is ending.
    pub ends_by: Option<Timestamp>,
    /// Its open connections; `None` where it could not be asked.
    pub connections: Option<u64>,
}

/// What should exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Revision that every pod should have.
    pub revision: String,
    /// Pods that should serve.
    pub replicas: u32,
    /// How pods are replaced.
    pub strategy: Strategy,
    /// Time a node stays up after it left its Services, so that nobody is sent to it while it closes.
    pub settle: Duration,
    /// Time that a new node must have been ready before the next older one leaves.
    pub min_ready: Duration,
    /// Older revisions that are kept without pods, to return to.
    pub history_limit: usize,
    /// The managed Redis; `None` where the spec asks for none.
    pub redis: Option<DesiredRedis>,
}

/// How pods are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strategy {
    /// Whether the operator replaces old pods, or a person does by deleting them.
    pub replace: Replace,
    /// Pods above `replicas` that may exist meanwhile.
    pub max_surge: u32,
    /// Pods below `replicas` that may be missing meanwhile.
    pub max_unavailable: u32,
}

/// Who replaces pods of an older revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// The operator.
    Rolling,
    /// A person, by deleting them.
    OnDelete,
}

/// One step and why it is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// What to do.
    pub step: Step,
    /// Why.
    pub reason: Reason,
}

/// What to do. Each is safe to repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the ReplicaSet of a revision.
    CreateSet {
        /// The revision.
        revision: String,
        /// Pods to begin with.
        replicas: u32,
    },
    /// Let a ReplicaSet keep more pods, or give up pods that do not exist yet.
    ResizeSet {
        /// Its name.
        set: String,
        /// Pods to keep.
        to: u32,
    },
    /// Take a pod out of its Services, because it will be removed.
    Retire {
        /// Its name.
        pod: String,
    },
    /// Put a pod back into its Services: it stays after all.
    Restore {
        /// Its name.
        pod: String,
    },
    /// Mark a pod as the next that its ReplicaSet gives up.
    Release {
        /// Its name.
        pod: String,
    },
    /// Shrink a ReplicaSet by the pod that goes.
    Remove {
        /// The ReplicaSet.
        set: String,
        /// Pods to keep.
        to: u32,
        /// The pod that goes.
        pod: String,
    },
    /// Delete the ReplicaSet of a revision that nobody returns to.
    DeleteSet {
        /// Its name.
        set: String,
    },
    /// Make the managed Redis what the spec asks for; its pod is replaced.
    MoveRedis {
        /// Its StatefulSet.
        set: String,
    },
    /// Delete the pod of a managed Redis whose Kubernetes node is lost, so that another takes its place.
    DeleteRedisPod {
        /// Its name.
        pod: String,
        /// Without the kubelet's word that it has ended.
        force: bool,
    },
}

// === impl Step ===

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateSet { revision, replicas } => {
                write!(f, "create the ReplicaSet of revision {revision} with replicas {replicas}")
            }
            Self::ResizeSet { set, to } => write!(f, "set the replicas of ReplicaSet {set} to {to}"),
            Self::Retire { pod } => write!(f, "take pod {pod} out of its Services"),
            Self::Restore { pod } => write!(f, "put pod {pod} back into its Services"),
            Self::Release { pod } => write!(f, "mark pod {pod} as the next to go"),
            Self::Remove { set, to, pod } => {
                write!(f, "remove pod {pod}: set the replicas of ReplicaSet {set} to {to}")
            }
            Self::DeleteSet { set } => write!(f, "delete ReplicaSet {set}"),
            Self::MoveRedis { set } => write!(f, "move StatefulSet {set} to what the spec asks for"),
            Self::DeleteRedisPod { pod, force: false } => write!(f, "delete pod {pod}"),
            Self::DeleteRedisPod { pod, force: true } => write!(f, "delete pod {pod} by force"),
        }
    }
}

// === impl Strategy ===

impl Strategy {
    /// What `updateStrategy` says for so many replicas.
    pub fn of(update: &UpdateStrategy, replicas: u32) -> Self {
        let UpdateStrategy { type_, max_surge, max_unavailable } = update;
        let max_surge = part_of(max_surge, replicas, u32::div_ceil);
        let max_unavailable = part_of(max_unavailable, replicas, |part, whole| part / whole);
        Self {
            replace: match type_ {
                UpdateStrategyType::RollingUpdate => Replace::Rolling,
                UpdateStrategyType::OnDelete => Replace::OnDelete,
            },
            max_surge,
            // A small percentage of few is none; then nothing could ever be replaced, so it counts as one.
            max_unavailable: max_unavailable.max(u32::from(max_surge == 0)),
        }
    }

    /// Nodes that may be draining at one time. One at least, or nothing could ever be replaced or removed.
    pub fn max_draining(self) -> u32 {
        self.max_surge.max(self.max_unavailable).max(1)
    }
}

// === impl ObservedPod ===

impl ObservedPod {
    /// Whether clients are sent to it.
    pub fn is_available(&self) -> bool {
        self.ready && self.serving && self.retired.is_none() && !self.is_ending()
    }

    /// Whether it has been told to end.
    pub fn is_ending(&self) -> bool {
        self.ends_by.is_some()
    }

    fn is_overdue(&self, now: Timestamp) -> bool {
        self.ends_by.is_some_and(|end| passed(end, OVERDUE, now))
    }
}

/// A number, or a percentage of `replicas`. The schema refuses anything else, which counts as none here.
fn part_of(amount: &IntOrString, replicas: u32, divide: fn(u32, u32) -> u32) -> u32 {
    match amount {
        IntOrString::Int(number) => u32::try_from(*number).unwrap_or(0),
        IntOrString::String(text) => {
            let percent = text.strip_suffix('%').and_then(|percent| percent.parse::<u32>().ok());
            percent.map_or(0, |percent| divide(replicas.saturating_mul(percent), 100))
        }
    }
}

fn passed(since: Timestamp, wait: Duration, now: Timestamp) -> bool {
    now.duration_since(since) >= signed(wait)
}

fn signed(wait: Duration) -> SignedDuration {
    SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX)
}
