//! Kubernetes as far as a plan can tell: the ReplicaSet controller, the kubelet, and a clock that nobody waits for. Pure;
//! `kubectl fanout plan` plays a plan to its end in it, and the plan's own tests look for what never may happen.
//!
//! A managed Redis is not in it: its steps rest on nothing that the nodes do.

use std::{cmp::Reverse, collections::BTreeSet, time::Duration};

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::{Action, Desired, Observed, ObservedPod, ObservedSet, Step, next_look, plan, signed};

/// Time that a new pod takes to become ready.
pub const STARTS_WITHIN: Duration = Duration::from_millis(500);
/// Time after which a node that turned ready has been asked.
pub const ASKED_WITHIN: Duration = Duration::from_millis(300);
/// Time between two looks where something is under way.
const MOMENT: Duration = Duration::from_millis(100);
/// Plans after which a play is given up: some thirty for each of a thousand nodes.
const MAX_PLANS: usize = 30_000;

/// A cluster that is played with.
#[derive(Clone, Debug)]
pub struct Model {
    /// What exists.
    pub observed: Observed,
    /// The time.
    pub now: Timestamp,
    /// Sets whose pods never become ready.
    pub bad: BTreeSet<String>,
    /// Pods that are not ready and need help, for now.
    pub down: BTreeSet<String>,
    /// Time that an ending pod takes.
    pub drain: Duration,
    made: u64,
}

/// How a play ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Played {
    /// The steps that were taken.
    pub actions: Vec<Action>,
    /// What exists at the end.
    pub observed: Observed,
    /// Time from the first step until nothing was left to do; `None`: there was no end.
    pub took: Option<Duration>,
    /// Pods that existed at most, those that were ending apart.
    pub most: usize,
    /// Pods that clients were sent to at least.
    pub least_available: usize,
}

// === impl Model ===

impl Model {
    /// A cluster at a time.
    pub fn new(observed: Observed, now: Timestamp) -> Self {
        let (bad, down) = (BTreeSet::new(), BTreeSet::new());
        Self { observed, now, bad, down, drain: Duration::from_secs(3), made: 0 }
    }

    /// The end of a play in which nothing is done.
    pub fn rest(self) -> Played {
        let (most, least_available) = (self.living(), self.available());
        Played {
            actions: Vec::new(),
            observed: self.observed,
            took: Some(Duration::ZERO),
            most,
            least_available,
        }
    }

    /// Plans, performs and lets time pass, until nothing is left to do.
    pub fn play(mut self, desired: &Desired) -> Played {
        let begun = self.now;
        let mut actions = Vec::new();
        let (mut most, mut least_available) = (self.living(), self.available());
        let mut ended = false;
        for _ in 0..MAX_PLANS {
            let due = plan(&self.observed, desired, self.now);
            due.iter().for_each(|action| self.perform(&action.step));
            let wait = if due.is_empty() { self.next_event(desired) } else { Some(MOMENT) };
            actions.extend(due);
            let Some(wait) = wait else {
                ended = true;
                break;
            };
            self.pass(wait);
            most = most.max(self.living());
            least_available = least_available.min(self.available());
        }
        let took = Duration::try_from(self.now.duration_since(begun)).unwrap_or_default();
        Played { actions, observed: self.observed, took: ended.then_some(took), most, least_available }
    }

    /// Performs a step.
    ///
    /// # Panics
    /// It names a set or a pod that does not exist.
    pub fn perform(&mut self, step: &Step) {
        let now = self.now;
        match step {
            Step::CreateSet { revision, replicas } => self.observed.sets.push(ObservedSet {
                name: revision.clone(),
                revision: revision.clone(),
                replicas: *replicas,
                created: now,
            }),
            Step::ResizeSet { set, to } => self.set_mut(set).replicas = *to,
            Step::Remove { set, to, pod: _ } => {
                self.set_mut(set).replicas = *to;
                self.control();
            }
            Step::Retire { pod } => {
                let pod = self.pod_mut(pod);
                (pod.serving, pod.retired) = (false, Some(now));
            }
            Step::Restore { pod } => {
                let pod = self.pod_mut(pod);
                (pod.serving, pod.retired, pod.released) = (true, None, None);
            }
            Step::Release { pod } => self.pod_mut(pod).released = Some(now),
            Step::DeleteSet { set } => self.observed.sets.retain(|known| known.name != *set),
            Step::MoveRedis { .. } | Step::DeleteRedisPod { .. } => {}
        }
    }

    /// Lets time pass; tells whether anything changed.
    pub fn pass(&mut self, time: Duration) -> bool {
        let before = self.observed.clone();
        self.now += signed(time);
        self.control();
        let Self { observed, now, bad, down, .. } = self;
        observed.pods.retain(|pod| pod.ends_by.is_none_or(|end| end > *now));
        for pod in &mut observed.pods {
            let up = elapsed(pod.created, *now) >= signed(STARTS_WITHIN);
            let (is_bad, is_down) = (bad.contains(&pod.set), down.contains(&pod.name));
            pod.ready = (pod.ready || (up && !is_bad)) && !is_down;
            pod.ready_since = pod.ready.then(|| pod.ready_since.unwrap_or(*now));
            let asked = pod.ready_since.is_some_and(|since| elapsed(since, *now) >= signed(ASKED_WITHIN));
            pod.verified = asked.then_some(true);
            pod.stuck = up && (is_bad || is_down);
        }
        *observed != before
    }

    /// Lets the ReplicaSet controller do its work, with the ranking of Kubernetes.
    pub fn control(&mut self) {
        for set in self.observed.sets.clone() {
            let is_live = |pod: &&ObservedPod| pod.set == set.name && pod.ends_by.is_none();
            let mut live: Vec<_> = self.observed.pods.iter().filter(is_live).collect();
            live.sort_by_key(|pod| (pod.ready, pod.released.is_none(), Reverse(pod.created)));
            let surplus = live.len().saturating_sub(set.replicas as usize);
            let missing = (set.replicas as usize).saturating_sub(live.len());
            let out: Vec<_> = live.iter().take(surplus).map(|pod| pod.name.clone()).collect();
            for name in out {
                self.pod_mut(&name).ends_by = Some(self.now + signed(self.drain));
            }
            for _ in 0..missing {
                self.made += 1;
                let name = format!("{}-{}", set.name, self.made);
                self.observed.pods.push(ObservedPod::new(&name, &set.name, self.now));
            }
        }
    }

    /// Pods that clients are sent to.
    pub fn available(&self) -> usize {
        self.observed.pods.iter().filter(|pod| pod.is_available()).count()
    }

    /// A pod.
    ///
    /// # Panics
    /// There is none of this name.
    pub fn pod_mut(&mut self, name: &str) -> &mut ObservedPod {
        let pods = &mut self.observed.pods;
        pods.iter_mut().find(|pod| pod.name == name).expect("a plan names pods that exist")
    }

    fn set_mut(&mut self, name: &str) -> &mut ObservedSet {
        let sets = &mut self.observed.sets;
        sets.iter_mut().find(|set| set.name == name).expect("a plan names sets that exist")
    }

    fn living(&self) -> usize {
        self.observed.pods.iter().filter(|pod| !pod.is_ending()).count()
    }

    /// Time until something happens by itself, or the plan wants to look again; `None`: never.
    fn next_event(&self, desired: &Desired) -> Option<Duration> {
        let pods = self.observed.pods.iter();
        let events = pods.filter_map(|pod| {
            let stays_down = self.bad.contains(&pod.set) || self.down.contains(&pod.name);
            match (pod.ends_by, pod.ready_since) {
                (Some(end), _) => Some(end),
                (None, None) if stays_down => None,
                (None, None) => Some(pod.created + signed(STARTS_WITHIN)),
                (None, Some(_)) if pod.verified.is_some() => None,
                (None, Some(since)) => Some(since + signed(ASKED_WITHIN)),
            }
        });
        let next = events.min().map(|at| Duration::try_from(elapsed(self.now, at)).unwrap_or_default());
        let look = next_look(&self.observed, desired, self.now);
        // What was due before is due now.
        next.into_iter().chain(look).min().map(|wait| wait.max(Duration::from_millis(1)))
    }
}

// === impl ObservedPod ===

impl ObservedPod {
    /// A pod that was just made.
    pub fn new(name: &str, set: &str, created: Timestamp) -> Self {
        Self {
            name: name.to_owned(),
            set: set.to_owned(),
            created,
            ready: false,
            ready_since: None,
            verified: None,
            stuck: false,
            serving: true,
            retired: None,
            released: None,
            ends_by: None,
            connections: Some(0),
        }
    }
}

fn elapsed(since: Timestamp, now: Timestamp) -> SignedDuration {
    now.duration_since(since)
}
