//! The managed Redis: when its pod is replaced. Pure; called by [`change`](super::change) only.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::{Action, Desired, Observed, Step, passed, signed};
use crate::{api::Reason, redis::managed};

/// Time between two looks at a Kubernetes node that is not watched.
const LOOK: Duration = Duration::from_secs(10);

/// What exists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedRedis {
    /// Its StatefulSet.
    pub set: String,
    /// The part of the spec that it was made for; `None`: it does not say yet.
    pub spec: Option<Value>,
    /// Digest of the password that it was made for.
    pub password: String,
    /// Its pods: one, but for a moment.
    pub pods: Vec<ObservedRedisPod>,
}

/// A pod of a managed Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedRedisPod {
    /// Its name.
    pub name: String,
    /// Since when it is not ready; `None`: it is, or it never said.
    pub unready_since: Option<Timestamp>,
    /// When it is to have ended, if it is ending.
    pub ends_by: Option<Timestamp>,
    /// The Kubernetes node that it is on.
    pub machine: Machine,
}

/// State of a Kubernetes node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Machine {
    /// It was not looked at, or could not be.
    #[default]
    Unknown,
    /// Its kubelet answers.
    Ready,
    /// Its kubelet does not answer the API server.
    NotReady,
    /// It was removed from the cluster.
    Gone,
}

/// What should exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredRedis {
    /// The part of the spec that the pod is made for.
    pub spec: Value,
    /// Digest of its password.
    pub password: String,
    /// Time after which a pod on a lost Kubernetes node is replaced; `None`: never, for it has a volume.
    pub replace_after: Option<Duration>,
}

/// The steps that are due.
pub(super) fn steps(observed: &Observed, desired: &Desired, now: Timestamp) -> Vec<Action> {
    let (Some(redis), Some(wanted)) = (&observed.redis, &desired.redis) else { return Vec::new() };
    let is_other = |spec: &Value| *spec != wanted.spec && !managed::stands_for(spec, &wanted.spec);
    let changed = redis.spec.as_ref().is_some_and(is_other) || redis.password != wanted.password;
    let moved = changed.then(|| Step::MoveRedis { set: redis.set.clone() });
    let moved = moved.map(|step| Action { step, reason: Reason::RedisChanged });
    let lost = redis.pods.iter().filter_map(|pod| pod.step(wanted, now));
    moved.into_iter().chain(lost.map(|step| Action { step, reason: Reason::RedisNodeLost })).collect()
}

/// How long until there may be a step although nothing changed.
pub(super) fn next_look(observed: &Observed, desired: &Desired, now: Timestamp) -> Option<Duration> {
    let replace_after = desired.redis.as_ref()?.replace_after?;
    let pods = observed.redis.iter().flat_map(|redis| &redis.pods).filter(|pod| pod.is_away());
    let looks = pods.map(|pod| {
        let due = pod.ends_by.or_else(|| pod.unready_since?.checked_add(signed(replace_after)).ok());
        let left = due.and_then(|due| Duration::try_from(due.duration_since(now)).ok());
        left.filter(|left| !left.is_zero()).unwrap_or(LOOK).min(LOOK)
    });
    looks.min()
}

// === impl ObservedRedisPod ===

impl ObservedRedisPod {
    fn is_away(&self) -> bool {
        self.unready_since.is_some() || self.ends_by.is_some()
    }

    /// First it is asked to end, should its kubelet come back; then it is taken for gone. Where the machine still runs,
    /// there are two for a while: nodes that reach the old one find that out by themselves.
    fn step(&self, wanted: &DesiredRedis, now: Timestamp) -> Option<Step> {
        let replace_after = wanted.replace_after?;
        if !self.machine.is_lost() {
            return None;
        }
        let force = match (self.ends_by, self.unready_since) {
            (Some(end), _) if now >= end => true,
            (None, Some(since)) if passed(since, replace_after, now) => false,
            _ => return None,
        };
        Some(Step::DeleteRedisPod { pod: self.name.clone(), force })
    }
}

// === impl Machine ===

impl Machine {
    /// Whether nothing that runs on it can be asked to end.
    pub fn is_lost(self) -> bool {
        match self {
            Self::NotReady | Self::Gone => true,
            Self::Unknown | Self::Ready => false,
        }
    }
}
