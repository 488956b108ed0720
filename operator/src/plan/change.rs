//! From what exists to what should: which steps are due now. Pure; called by reconcile, and by the `plan`
//! subcommand of kubectl-fanout.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::{
    Action, Desired, MARK_SETTLES, OVERDUE, Observed, ObservedPod, Step, passed, redis,
    rollout::{Fleet, Squad},
    signed,
    victim::{self, Candidate},
};
use crate::api::Reason;

/// The steps that are due at `now`, in the order in which they are to be performed.
///
/// It is called again after each change of what it observed and at [`next_look`], and always speaks of the next
/// step only; a rollout is many plans.
pub fn plan(observed: &Observed, desired: &Desired, now: Timestamp) -> Vec<Action> {
    let fleet = Fleet::new(observed, desired, now);
    let candidates = fleet.candidates();
    let mut actions = restore(&fleet, &candidates);
    actions.extend(grow(&fleet, desired));
    actions.extend(give_up_missing(&fleet));
    actions.extend(advance(&fleet, &candidates, desired, now));
    actions.extend(retire(&fleet, &candidates, desired));
    actions.extend(forget(&fleet, observed, desired));
    actions.extend(redis::steps(observed, desired, now));
    actions
}

/// How long until a plan may say something new although nothing changed.
pub fn next_look(observed: &Observed, desired: &Desired, now: Timestamp) -> Option<Duration> {
    let waits = observed.pods.iter().flat_map(|pod| {
        let overdue = pod.ends_by.map(|end| (end, OVERDUE));
        let marked = pod.released.filter(|_| !pod.is_ending()).map(|released| (released, MARK_SETTLES));
        let settled = pod.retired.filter(|_| !pod.is_ending()).map(|retired| (retired, desired.settle));
        let proved = pod.ready_since.filter(|_| !pod.is_ending()).map(|ready| (ready, desired.min_ready));
        [overdue, marked, settled, proved]
    });
    let left = |(since, wait)| signed(wait).checked_sub(now.duration_since(since));
    let left = waits.flatten().filter_map(left).filter_map(|left| Duration::try_from(left).ok());
    let left = left.filter(|left| !left.is_zero());
    left.chain(redis::next_look(observed, desired, now)).min()
}

/// Pods that were to go and stay after all, and pods whose label somebody else changed, serve again.
fn restore(fleet: &Fleet<'_>, candidates: &[Candidate<'_>]) -> Vec<Action> {
    let goes = |pod: &ObservedPod| candidates.iter().any(|candidate| candidate.pod.name == pod.name);
    let staying = fleet.squads.iter().flat_map(|squad| &squad.staying);
    let idle = staying.filter(|pod| !pod.serving || pod.retired.is_some() || pod.released.is_some());
    idle.filter(|pod| !goes(pod))
        .map(|pod| action(Step::Restore { pod: pod.name.clone() }, Reason::NodeRestored))
        .collect()
}

/// The current revision gets as many pods as the surge lets it.
fn grow(fleet: &Fleet<'_>, desired: &Desired) -> Option<Action> {
    let room = fleet.room();
    let Some(current) = fleet.current() else {
        let step = Step::CreateSet { revision: desired.revision.clone(), replicas: fleet.target().min(room) };
        return Some(action(step, Reason::RevisionCreated));
    };
    if fleet.is_stuck() && fleet.old().iter().any(|old| old.set.replicas > 0) {
        return grow_old(fleet);
    }
    let to = fleet.target().min(current.set.replicas + room);
    let reason = if fleet.old().iter().any(|old| old.set.replicas > 0) {
        Reason::RollingOut
    } else {
        Reason::ScalingUp
    };
    (to > current.set.replicas).then(|| action(Step::ResizeSet { set: current.set.name.clone(), to }, reason))
}

/// While the new revision does not get up, a scale-up is served by the newest one that does.
fn grow_old(fleet: &Fleet<'_>) -> Option<Action> {
    let newest = fleet.old().iter().rev().find(|old| old.staying.iter().any(|pod| pod.ready))?;
    let more = fleet.shortfall_of_old();
    let to = newest.set.replicas + more;
    (more > 0).then(|| action(Step::ResizeSet { set: newest.set.name.clone(), to }, Reason::ScalingUp))
}

/// A set that should shrink first gives up the pods that it has not made yet: that disturbs nobody.
fn give_up_missing(fleet: &Fleet<'_>) -> Vec<Action> {
    let give_up = |(squad, surplus): (&Squad<'_>, u32)| {
        let step = Step::ResizeSet { set: squad.set.name.clone(), to: squad.set.replicas - surplus };
        action(step, fleet.leaving_reason(&squad.set.name))
    };
    fleet.unmade().into_iter().map(give_up).collect()
}

/// Pods that are on their way out take their next step, where its time has come.
fn advance(
    fleet: &Fleet<'_>,
    candidates: &[Candidate<'_>],
    desired: &Desired,
    now: Timestamp,
) -> Vec<Action> {
    let mut shrunk: Vec<&str> = Vec::new();
    let mut actions = Vec::new();
    for candidate in candidates {
        let pod = candidate.pod;
        let Some(retired) = pod.retired else { continue };
        // Nobody is sent to a pod that is not ready, so there is nothing to wait for.
        let settled = !pod.ready || passed(retired, desired.settle, now);
        let step = match pod.released {
            _ if !settled => None,
            None => Some(Step::Release { pod: pod.name.clone() }),
            Some(released) if !passed(released, MARK_SETTLES, now) => None,
            // One pod of a set at a time, so that each is the one that was meant.
            Some(_) if shrunk.contains(&pod.set.as_str()) => None,
            Some(_) => remove(fleet, candidates, pod),
        };
        if matches!(step, Some(Step::Remove { .. })) {
            shrunk.push(&pod.set);
        }
        actions.extend(step.map(|step| action(step, fleet.leaving_reason(&pod.set))));
    }
    actions
}

/// Shrinks the pod's set, unless its controller could then delete a pod that should stay.
fn remove(fleet: &Fleet<'_>, candidates: &[Candidate<'_>], pod: &ObservedPod) -> Option<Step> {
    let squad = fleet.squad_of(pod)?;
    let next = victim::next_out(&squad.staying);
    // A pod that is not ready goes before any mark. It may, where it is to go as well.
    let meant = |next: &&ObservedPod| candidates.iter().any(|candidate| candidate.pod.name == next.name);
    let goes = next.iter().find(|next| next.name == pod.name).or(next.first())?;
    let to = squad.set.replicas.checked_sub(1)?;
    (next.iter().all(meant) && squad.missing() == 0).then(|| Step::Remove {
        set: squad.set.name.clone(),
        to,
        pod: goes.name.clone(),
    })
}

/// New pods to go: as many as may drain at once, and never so many that too few serve. A pod that is not ready takes
/// nothing from those that serve; whether it may go at all is what made it a candidate.
fn retire(fleet: &Fleet<'_>, candidates: &[Candidate<'_>], desired: &Desired) -> Vec<Action> {
    let mut budget = desired.strategy.max_draining().saturating_sub(fleet.draining());
    let mut spare = fleet.available().saturating_sub(fleet.min_available());
    let mut actions = Vec::new();
    for candidate in candidates.iter().filter(|candidate| candidate.pod.retired.is_none()) {
        let pod = candidate.pod;
        let costs = u32::from(fleet.is_available(pod));
        if budget == 0 || costs > spare {
            continue;
        }
        budget -= 1;
        spare -= costs;
        actions.push(action(Step::Retire { pod: pod.name.clone() }, fleet.leaving_reason(&pod.set)));
    }
    actions
}

/// Revisions without pods are kept for a while, to return to; the oldest are forgotten.
fn forget(fleet: &Fleet<'_>, observed: &Observed, desired: &Desired) -> Vec<Action> {
    let empty = |name: &str| !observed.pods.iter().any(|pod| pod.set == name);
    let mut kept = fleet.old().iter().rev().filter(|squad| squad.set.replicas == 0 && empty(&squad.set.name));
    kept.by_ref().take(desired.history_limit).for_each(drop);
    kept.map(|squad| action(Step::DeleteSet { set: squad.set.name.clone() }, Reason::RevisionForgotten))
        .collect()
}

fn action(step: Step, reason: Reason) -> Action {
    Action { step, reason }
}
