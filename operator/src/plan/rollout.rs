//! How many: the arithmetic of a rollout, taken once per plan from what exists. Pure; called by
//! [`change`](super::change) only.

use k8s_openapi::jiff::Timestamp;

use super::{
    Desired, Observed, ObservedPod, ObservedSet, Replace, passed,
    victim::{self, Candidate},
};
use crate::api::Reason;

/// One set and its pods.
#[derive(Debug)]
pub(super) struct Squad<'a> {
    pub(super) set: &'a ObservedSet,
    /// Pods that exist and are not on their way out.
    pub(super) staying: Vec<&'a ObservedPod>,
    /// Pods that exist although the set is asked for fewer.
    leaving: usize,
    pub(super) current: bool,
}

/// All sets of a cluster, the current one last, and the numbers that bound what may be done to them.
#[derive(Debug)]
pub(super) struct Fleet<'a> {
    pub(super) squads: Vec<Squad<'a>>,
    desired: &'a Desired,
    now: Timestamp,
    ending: usize,
    /// Whether any pod is known to see its own messages come back: then a new one must as well.
    verifies: bool,
}

// === impl Squad ===

impl<'a> Squad<'a> {
    fn new(set: &'a ObservedSet, observed: &'a Observed, desired: &Desired) -> Self {
        let (staying, leaving) = victim::split(set, &observed.pods);
        Self { set, staying, leaving: leaving.len(), current: set.revision == desired.revision }
    }

    /// Pods that the set is asked for and that do not exist yet.
    pub(super) fn missing(&self) -> u32 {
        self.set.replicas.saturating_sub(count(self.staying.len()))
    }
}

// === impl Fleet ===

impl<'a> Fleet<'a> {
    pub(super) fn new(observed: &'a Observed, desired: &'a Desired, now: Timestamp) -> Self {
        let mut squads: Vec<_> = observed.sets.iter().map(|set| Squad::new(set, observed, desired)).collect();
        squads.sort_by_key(|squad| (squad.current, squad.set.created));
        let ending = observed.pods.iter().filter(|pod| pod.is_ending() && !pod.is_overdue(now)).count();
        let verifies = observed.pods.iter().any(|pod| pod.verified == Some(true));
        Self { squads, desired, now, ending, verifies }
    }

    pub(super) fn current(&self) -> Option<&Squad<'a>> {
        self.squads.last().filter(|squad| squad.current)
    }

    pub(super) fn old(&self) -> &[Squad<'a>] {
        let end = self.squads.len() - usize::from(self.current().is_some());
        &self.squads[..end]
    }

    pub(super) fn squad_of(&self, pod: &ObservedPod) -> Option<&Squad<'a>> {
        self.squads.iter().find(|squad| squad.set.name == pod.set)
    }

    fn staying(&self) -> impl Iterator<Item = &'a ObservedPod> {
        self.squads.iter().flat_map(|squad| squad.staying.iter().copied())
    }

    /// Pods to which clients are sent.
    pub(super) fn available(&self) -> u32 {
        count(self.staying().filter(|pod| self.is_available(pod)).count())
    }

    /// Whether a pod counts towards what must serve. In a rollout one of the new revision does once it has shown that it
    /// works.
    pub(super) fn is_available(&self, pod: &ObservedPod) -> bool {
        let new = self.current().is_some_and(|current| current.set.name == pod.set);
        let rolling = self.old().iter().any(|old| old.set.replicas > 0);
        pod.is_available() && (!new || !rolling || self.has_proved(pod))
    }

    /// Whether a pod has been ready long enough, and is connected no worse than the others.
    fn has_proved(&self, pod: &ObservedPod) -> bool {
        let long_enough = pod.ready_since.is_none_or(|since| passed(since, self.desired.min_ready, self.now));
        pod.ready && long_enough && (!self.verifies || pod.verified == Some(true))
    }

    /// Pods to which clients must be sent at any time.
    pub(super) fn min_available(&self) -> u32 {
        self.desired.replicas.saturating_sub(self.desired.strategy.max_unavailable)
    }

    /// Nodes that lose their clients now or soon.
    pub(super) fn draining(&self) -> u32 {
        let retired = self.staying().filter(|pod| pod.retired.is_some()).count();
        let leaving: usize = self.squads.iter().map(|squad| squad.leaving).sum();
        count(retired + leaving + self.ending)
    }

    fn asked_for(&self) -> u32 {
        self.squads.iter().map(|squad| squad.set.replicas).sum()
    }

    /// Pods that may exist at one time.
    fn limit(&self) -> u32 {
        self.desired.replicas + self.desired.strategy.max_surge
    }

    /// Pods that may be added before the surge is used up.
    pub(super) fn room(&self) -> u32 {
        self.limit().saturating_sub(self.asked_for())
    }

    /// Pods that are missing from what the user asked for where those of the current revision serve nobody, as far as
    /// the surge lets there be more.
    pub(super) fn shortfall_of_old(&self) -> u32 {
        let old: u32 = self.old().iter().map(|squad| squad.set.replicas).sum();
        self.desired.replicas.saturating_sub(old).min(self.room())
    }

    /// Pods that the current revision should have in the end.
    pub(super) fn target(&self) -> u32 {
        self.desired.replicas.saturating_sub(self.kept())
    }

    /// Pods of older revisions that stay, since a person replaces them.
    fn kept(&self) -> u32 {
        self.old()
            .iter()
            .map(|squad| squad.set.replicas - self.quota(squad))
            .sum::<u32>()
            .min(self.desired.replicas)
    }

    /// Whether the current revision has a pod that needs help before it serves.
    pub(super) fn is_stuck(&self) -> bool {
        self.current().is_some_and(|squad| squad.staying.iter().any(|pod| pod.stuck && !pod.ready))
    }

    /// Whether the current revision has shown that it works: a pod of it has, and none needs help.
    fn is_proven(&self) -> bool {
        let works = |squad: &Squad<'_>| squad.staying.iter().any(|pod| self.has_proved(pod));
        self.current().is_some_and(works) && !self.is_stuck()
    }

    /// Old pods that may go now. Before the current revision has shown that it works, an old pod may hold clients
    /// and be the only one that serves next, ready or not at this moment: none goes for the sake of the revision.
    /// But a scale-down is done meanwhile; and where no surge is left for a first new pod, one old pod makes room.
    fn old_that_may_go(&self) -> u32 {
        if self.is_proven() {
            return u32::MAX;
        }
        let untried = self.current().is_none_or(|squad| squad.set.replicas == 0);
        self.surplus().max(u32::from(untried && self.room() == 0))
    }

    /// Old pods beyond what the user asks for in all.
    fn surplus(&self) -> u32 {
        let old: u32 = self.old().iter().map(|squad| squad.set.replicas).sum();
        old.saturating_sub(self.desired.replicas)
    }

    /// Why a pod of a set goes.
    pub(super) fn leaving_reason(&self, set: &str) -> Reason {
        let outdated = self.old().iter().any(|old| old.set.name == set);
        if outdated && (self.is_proven() || self.surplus() == 0 || self.is_superseded(set)) {
            Reason::Rollout
        } else {
            Reason::ScaleDown
        }
    }

    /// Whether a set is of a revision that was itself still replacing an older one.
    fn is_superseded(&self, set: &str) -> bool {
        let first = self.old().iter().find(|old| old.set.replicas > 0);
        first.is_some_and(|first| first.set.name != set)
    }

    /// Pods that each set gives up before they exist.
    pub(super) fn unmade(&self) -> Vec<(&Squad<'a>, u32)> {
        let mut old_left = self.old_that_may_go();
        let surplus = self.squads.iter().map(|squad| {
            let surplus = self.quota(squad).min(squad.missing());
            if squad.current {
                return (squad, surplus);
            }
            let surplus = surplus.min(old_left);
            old_left -= surplus;
            (squad, surplus)
        });
        surplus.filter(|(_, surplus)| *surplus > 0).collect()
    }

    /// Pods that a set should give up in the end, those that do not exist yet included.
    pub(super) fn quota(&self, squad: &Squad<'_>) -> u32 {
        if squad.current {
            return squad.set.replicas.saturating_sub(self.target()).max(self.beyond_surge(squad));
        }
        match self.desired.strategy.replace {
            Replace::Rolling => squad.set.replicas,
            Replace::OnDelete => self.replaced_by_hand(squad).min(squad.set.replicas),
        }
    }

    /// New pods that are not ready, where a person lowered the surge while they wait, perhaps for room: they give it up
    /// first, so that an old pod may then make some.
    fn beyond_surge(&self, current: &Squad<'_>) -> u32 {
        if self.is_proven() {
            return 0;
        }
        let waiting = current.staying.iter().filter(|pod| !pod.ready).count();
        let beyond = self.asked_for().saturating_sub(self.limit()).saturating_sub(self.surplus());
        beyond.min(count(waiting))
    }

    /// With OnDelete: pods that the old set made after the current revision was there. A person has deleted their
    /// predecessors, and wants new ones.
    fn replaced_by_hand(&self, squad: &Squad<'_>) -> u32 {
        let Some(current) = self.current() else { return 0 };
        let late = squad.staying.iter().filter(|pod| pod.created > current.set.created).count();
        count(late) + self.surplus_of_old(squad)
    }

    /// With OnDelete, after a scale-down: old pods beyond what the user asks for in all, oldest sets first.
    fn surplus_of_old(&self, squad: &Squad<'_>) -> u32 {
        let mut surplus = self.surplus();
        for old in self.old() {
            let share = surplus.min(old.set.replicas);
            if old.set.name == squad.set.name {
                return share;
            }
            surplus -= share;
        }
        0
    }

    /// Every pod that should go and may, whom we would give up first in front.
    pub(super) fn candidates(&self) -> Vec<Candidate<'a>> {
        let mut all: Vec<_> = self
            .squads
            .iter()
            .flat_map(|squad| {
                let going = self.quota(squad).saturating_sub(squad.missing());
                victim::choose(&squad.staying, !squad.current, going as usize)
            })
            .collect();
        all.sort_by(|a, b| victim::preference(a).cmp(&victim::preference(b)));
        let unmade = self.unmade().into_iter().filter(|(squad, _)| !squad.current);
        let unmade: u32 = unmade.map(|(_, surplus)| surplus).sum();
        let mut old_left = self.old_that_may_go().saturating_sub(unmade);
        all.retain(|candidate| {
            let goes = !candidate.outdated || old_left > 0;
            old_left = old_left.saturating_sub(u32::from(candidate.outdated));
            goes
        });
        all
    }
}

fn count(pods: usize) -> u32 {
    u32::try_from(pods).unwrap_or(u32::MAX)
}
