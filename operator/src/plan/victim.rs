//! Who goes. Pure; called by the other modules of [`plan`](super) only.
//!
//! Two orders meet here and must not be mixed up: [`preference`] is whom we would give up first, and
//! [`next_out`] is whom the ReplicaSet controller may delete when its set shrinks. The mark that a released pod
//! carries (its deletion cost) makes the second follow the first.

use std::cmp::Reverse;

use k8s_openapi::jiff::Timestamp;

use super::{ObservedPod, ObservedSet};

/// A pod that should go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    pub(super) pod: &'a ObservedPod,
    pub(super) outdated: bool,
}

/// Sort key of the pods we would give up first: those that can serve nobody, then already leaving, then of an older
/// revision, then with the fewest connections; one whose connections are not known is taken for the one with the most.
/// The youngest of equals goes, for its clients came last; the name makes it stable.
pub(super) fn preference<'a>(candidate: &Candidate<'a>) -> impl Ord + use<'a> {
    let Candidate { pod, outdated } = *candidate;
    (
        !is_expendable(pod),
        pod.retired.is_none(),
        !outdated,
        pod.connections.unwrap_or(u64::MAX),
        Reverse(pod.created),
        pod.name.as_str(),
    )
}

/// Whether a pod that is not ready goes before those that are. It may have lost its readiness and kept its clients, so
/// it must be known to be empty. But the ReplicaSet controller deletes it before any pod that is ready, so that its
/// set cannot shrink while it stays; after its time it goes all the same, and its clients are asked to leave first.
fn is_expendable(pod: &ObservedPod) -> bool {
    !pod.ready && (pod.connections == Some(0) || pod.stuck)
}

/// The `count` pods of one set that should go first.
pub(super) fn choose<'a>(pods: &[&'a ObservedPod], outdated: bool, count: usize) -> Vec<Candidate<'a>> {
    let mut candidates: Vec<_> = pods.iter().map(|&pod| Candidate { pod, outdated }).collect();
    candidates.sort_by(|a, b| preference(a).cmp(&preference(b)));
    candidates.truncate(count);
    candidates
}

/// The order in which a ReplicaSet controller deletes: not ready before ready, then by deletion cost, then the
/// youngest. (It also looks at phase and at its own restarts; both come with not being ready.)
fn deletion_rank(pod: &ObservedPod) -> (bool, bool, Reverse<Timestamp>) {
    (pod.ready, pod.released.is_none(), Reverse(pod.created))
}

/// The pods of which one goes when the set shrinks by one. Several, where the controller decides by what the plan
/// cannot see.
pub(super) fn next_out<'a>(pods: &[&'a ObservedPod]) -> Vec<&'a ObservedPod> {
    let rank = |pod: &ObservedPod| (pod.ready, pod.released.is_none());
    let first = pods.iter().map(|pod| rank(pod)).min();
    pods.iter().copied().filter(|pod| Some(rank(pod)) == first).collect()
}

/// Splits a set's pods into those that stay for now and those that its controller is about to delete, because the
/// set is asked for fewer than exist. A pod that is ending is in neither.
pub(super) fn split<'a>(
    set: &ObservedSet,
    pods: &'a [ObservedPod],
) -> (Vec<&'a ObservedPod>, Vec<&'a ObservedPod>) {
    let mut live: Vec<_> = pods.iter().filter(|pod| pod.set == set.name && !pod.is_ending()).collect();
    live.sort_by_key(|pod| deletion_rank(pod));
    let surplus = live.len().saturating_sub(set.replicas as usize);
    let staying = live.split_off(surplus);
    (staying, live)
}
