//! The plan against a small model of Kubernetes: what holds for every cluster and every order of events.

use std::{
    ops::{Deref, DerefMut},
    time::Duration,
};

use fanout_operator::{
    api::{Reason, v1alpha1::UpdateStrategy},
    plan::{
        Action, Desired, DesiredRedis, MARK_SETTLES, Machine, Observed, ObservedPod, ObservedRedis,
        ObservedRedisPod, ObservedSet, Replace, Step, Strategy, model::Model, next_look, plan,
    },
};
use k8s_openapi::{
    apimachinery::pkg::util::intstr::IntOrString,
    jiff::{SignedDuration, Timestamp},
};
use proptest::{prelude::*, strategy::Strategy as _};

const SETTLE: Duration = Duration::from_secs(1);

/// The plan's model of Kubernetes, and what must hold in it at any time.
struct World(Model);

impl Deref for World {
    type Target = Model;

    fn deref(&self) -> &Model {
        &self.0
    }
}

impl DerefMut for World {
    fn deref_mut(&mut self) -> &mut Model {
        &mut self.0
    }
}

impl World {
    fn new(observed: Observed) -> Self {
        Self(Model::new(observed, second(1_000_000)))
    }

    /// A cluster that runs `revision` and is left alone.
    fn settled(desired: &Desired) -> Self {
        let mut world = Self::new(Observed::default());
        world.play(desired);
        world
    }

    /// Performs the plan and lets a tenth of a second pass, until nothing is left to do.
    fn play(&mut self, desired: &Desired) -> Vec<Action> {
        let mut all = Vec::new();
        let mut quiet = 0;
        for _ in 0..20_000 {
            let actions = plan(&self.observed, desired, self.now);
            let idle = actions.is_empty() && next_look(&self.observed, desired, self.now).is_none();
            self.check(desired, &actions);
            for action in &actions {
                self.perform(&action.step);
            }
            all.extend(actions);
            let changed = self.pass(100);
            quiet = if idle && !changed { quiet + 1 } else { 0 };
            // Longer than a pod takes to become ready.
            if quiet > 10 {
                return all;
            }
        }
        panic!("the plan does not come to an end: {:#?}", self.observed);
    }

    /// What must hold of every plan.
    fn check(&self, desired: &Desired, actions: &[Action]) {
        let retired = actions.iter().filter(|action| matches!(action.step, Step::Retire { .. })).count();
        let draining = self.draining();
        assert!(
            retired == 0 || draining + retired <= desired.strategy.max_draining() as usize,
            "{retired} pods are retired while {draining} drain"
        );
        for action in actions {
            let Step::Remove { pod, .. } = &action.step else { continue };
            let pod = self.pod(pod);
            let Some(retired) = pod.retired else {
                assert!(!pod.ready, "{} is removed while it serves", pod.name);
                continue;
            };
            assert!(!pod.ready || self.now.duration_since(retired) >= signed(SETTLE), "removed too early");
        }
    }

    /// One of the old pods turns unready, turns ready again, or is deleted by somebody.
    fn blip(&mut self, what: u8, which: &proptest::sample::Index) {
        let old = |pod: &&ObservedPod| pod.set == "a" && pod.ends_by.is_none();
        let pods: Vec<_> = self.observed.pods.iter().filter(old).collect();
        if pods.is_empty() {
            return;
        }
        let at = which.index(pods.len());
        let name = pods[at].name.clone();
        match what {
            0 => {
                self.pod_mut(&name).ready = false;
                self.down.insert(name);
            }
            1 => drop(self.down.remove(&name)),
            _ => self.pod_mut(&name).ends_by = Some(self.now + signed(self.drain)),
        }
    }

    fn draining(&self) -> usize {
        let leaves = |pod: &&ObservedPod| pod.retired.is_some() || pod.ends_by.is_some();
        self.observed.pods.iter().filter(leaves).count()
    }

    fn serving(&self) -> usize {
        self.available()
    }

    fn pod(&self, name: &str) -> &ObservedPod {
        self.observed.pods.iter().find(|pod| pod.name == name).expect("the plan names pods that exist")
    }

    fn perform(&mut self, step: &Step) {
        match step {
            Step::Remove { set: _, to: _, pod } => {
                // What was on its way out before is not this step's doing.
                self.control();
                let served = self.serving();
                self.0.perform(step);
                assert_eq!(self.serving(), served, "the ReplicaSet removed a pod that serves, not {pod}");
            }
            Step::DeleteSet { set } => {
                assert!(self.observed.pods.iter().all(|pod| pod.set != *set), "a set with pods was deleted");
                self.0.perform(step);
            }
            Step::MoveRedis { .. } | Step::DeleteRedisPod { .. } => panic!("there is no managed Redis"),
            step => self.0.perform(step),
        }
    }

    fn pass(&mut self, milliseconds: u64) -> bool {
        self.0.pass(Duration::from_millis(milliseconds))
    }
}

fn pod(name: &str, set: &str, created: Timestamp, ready: bool) -> ObservedPod {
    ObservedPod { ready, ..ObservedPod::new(name, set, created) }
}

fn second(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time of this century")
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).expect("a short time")
}

fn desired(revision: &str, replicas: u32) -> Desired {
    Desired {
        revision: revision.to_owned(),
        replicas,
        strategy: Strategy { replace: Replace::Rolling, max_surge: 1, max_unavailable: 0 },
        settle: SETTLE,
        min_ready: Duration::ZERO,
        history_limit: 3,
        redis: None,
    }
}

fn strategies() -> impl proptest::strategy::Strategy<Value = Strategy> {
    (0_u32..3, 0_u32..3)
        .prop_filter("both zero is refused by the schema", |(surge, unavailable)| surge + unavailable > 0)
        .prop_map(|(max_surge, max_unavailable)| Strategy {
            replace: Replace::Rolling,
            max_surge,
            max_unavailable,
        })
}

/// A cluster in any state, reachable or not.
fn clusters() -> impl proptest::strategy::Strategy<Value = Observed> {
    let pods = proptest::collection::vec((any::<[bool; 4]>(), 0_i64..100, 0_u64..50), 0..12);
    (pods, proptest::collection::vec(0_u32..5, 3)).prop_map(|(pods, replicas)| {
        let set = |(at, replicas): (usize, u32)| ObservedSet {
            name: format!("r{at}"),
            revision: format!("r{at}"),
            replicas,
            created: second(999_000 + at as i64),
        };
        let member = |(at, ([ready, serving, retired, released], age, connections)): (
            usize,
            ([bool; 4], i64, u64),
        )| {
            ObservedPod {
                serving,
                retired: retired.then(|| second(1_000_000 - age / 10)),
                released: (retired && released).then(|| second(1_000_000 - age / 20)),
                connections: Some(connections),
                ..pod(&format!("p{at}"), &format!("r{}", at % 3), second(999_900 - age), ready)
            }
        };
        Observed {
            sets: replicas.into_iter().enumerate().map(set).collect(),
            pods: pods.into_iter().enumerate().map(member).collect(),
            redis: None,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn observed_as_desired_plans_nothing(replicas in 0_u32..8, strategy in strategies()) {
        let desired = Desired { strategy, ..desired("a", replicas) };
        let mut world = World::settled(&desired);
        prop_assert_eq!(world.serving(), replicas as usize);
        prop_assert_eq!(world.play(&desired), vec![]);
    }

    #[test]
    fn any_cluster_comes_to_what_is_desired_and_stays(observed in clusters(), replicas in 0_u32..6, strategy in strategies()) {
        let desired = Desired { strategy, ..desired("r2", replicas) };
        let mut world = World::new(observed);
        world.play(&desired);
        prop_assert_eq!(world.serving(), replicas as usize);
        prop_assert!(world.observed.pods.iter().all(|pod| pod.set == "r2"));
        prop_assert_eq!(world.play(&desired), vec![]);
    }

    #[test]
    fn a_rollout_never_goes_below_what_must_serve(replicas in 1_u32..8, strategy in strategies()) {
        let mut world = World::settled(&Desired { strategy, ..desired("a", replicas) });
        let next = Desired { strategy, ..desired("b", replicas) };
        let least = replicas.saturating_sub(strategy.max_unavailable) as usize;
        for _ in 0..2_000 {
            let actions = plan(&world.observed, &next, world.now);
            world.check(&next, &actions);
            actions.iter().for_each(|action| world.perform(&action.step));
            world.pass(100);
            prop_assert!(world.serving() >= least, "{} serve, {least} must", world.serving());
            let asked: u32 = world.observed.sets.iter().map(|set| set.replicas).sum();
            prop_assert!(asked <= replicas + strategy.max_surge, "{asked} pods are asked for");
        }
        prop_assert!(world.observed.pods.iter().all(|pod| pod.set == "b" && pod.ready));
    }

    #[test]
    fn a_bad_revision_leaves_old_pods_alone(replicas in 1_u32..8, surge in 1_u32..3) {
        let strategy = Strategy { replace: Replace::Rolling, max_surge: surge, max_unavailable: 0 };
        let mut world = World::settled(&Desired { strategy, ..desired("a", replicas) });
        let before: Vec<_> = world.observed.pods.iter().map(|pod| pod.name.clone()).collect();
        world.bad.insert("bad".to_owned());
        world.play(&Desired { strategy, ..desired("bad", replicas) });
        let after: Vec<_> = world.observed.pods.iter().filter(|pod| pod.ready).map(|pod| pod.name.clone()).collect();
        prop_assert_eq!(&before, &after);
        // And the way back touches none of them either.
        world.play(&Desired { strategy, ..desired("a", replicas) });
        let after: Vec<_> = world.observed.pods.iter().map(|pod| pod.name.clone()).collect();
        prop_assert_eq!(before, after);
    }

    #[test]
    fn a_bad_revision_takes_no_old_pod_that_turns_unready_or_is_made_anew(
        replicas in 1_u32..6,
        surge in 1_u32..3,
        max_unavailable in 0_u32..3,
        blips in proptest::collection::vec((0_u8..3, any::<proptest::sample::Index>(), 0_i64..3_000), 1..25),
    ) {
        let strategy = Strategy { replace: Replace::Rolling, max_surge: surge, max_unavailable };
        let mut world = World::settled(&Desired { strategy, ..desired("a", replicas) });
        world.bad.insert("bad".to_owned());
        let next = Desired { strategy, ..desired("bad", replicas) };
        for (what, which, then) in blips {
            world.blip(what, &which);
            let begun = world.now;
            while world.now.duration_since(begun) <= SignedDuration::from_millis(then) {
                let actions = plan(&world.observed, &next, world.now);
                for action in &actions {
                    let touches_old = match &action.step {
                        Step::CreateSet { .. } | Step::MoveRedis { .. } | Step::DeleteRedisPod { .. } => false,
                        Step::ResizeSet { set, .. } | Step::Remove { set, .. } | Step::DeleteSet { set } => set == "a",
                        Step::Retire { pod } | Step::Release { pod } | Step::Restore { pod } => pod.starts_with("a-"),
                    };
                    prop_assert!(!touches_old, "{action:?}");
                    world.perform(&action.step);
                }
                world.pass(100);
            }
        }
        world.down.clear();
        world.play(&next);
        prop_assert_eq!(world.serving(), replicas as usize);
    }

    #[test]
    fn a_change_midway_still_ends(replicas in 1_u32..6, then in 0_u32..6, steps in 0_usize..60, strategy in strategies()) {
        let mut world = World::settled(&Desired { strategy, ..desired("a", replicas) });
        let next = Desired { strategy, ..desired("b", replicas) };
        for _ in 0..steps {
            let actions = plan(&world.observed, &next, world.now);
            actions.iter().for_each(|action| world.perform(&action.step));
            world.pass(100);
        }
        let last = Desired { strategy, ..desired("c", then) };
        world.play(&last);
        prop_assert_eq!(world.serving(), then as usize);
        prop_assert!(world.observed.pods.iter().all(|pod| pod.set == "c"));
    }
}

#[test]
fn a_strategy_of_percentages_that_come_to_nothing_still_replaces_one() {
    let text = |percent: &str| IntOrString::String(percent.to_owned());
    let update =
        UpdateStrategy { max_surge: text("0%"), max_unavailable: text("10%"), ..UpdateStrategy::default() };
    let of = |replicas| Strategy::of(&update, replicas);
    assert_eq!((of(3).max_surge, of(3).max_unavailable), (0, 1));
    assert_eq!((of(30).max_surge, of(30).max_unavailable), (0, 3));
}

#[test]
fn a_first_install_makes_all_pods_at_once() {
    let actions = plan(&Observed::default(), &desired("a", 3), second(0));
    let step = Step::CreateSet { revision: "a".to_owned(), replicas: 3 };
    assert_eq!(actions, [Action { step, reason: Reason::RevisionCreated }]);
}

#[test]
fn the_pod_with_the_fewest_connections_goes() {
    let mut world = World::settled(&desired("a", 3));
    for (at, connections) in [9, 4, 7].into_iter().enumerate() {
        world.observed.pods[at].connections = Some(connections);
    }
    let fewest = world.observed.pods[1].name.clone();
    let actions = plan(&world.observed, &desired("a", 2), world.now);
    assert_eq!(actions, [Action { step: Step::Retire { pod: fewest }, reason: Reason::ScaleDown }]);
}

#[test]
fn a_pod_that_is_not_ready_goes_first_only_where_it_is_known_to_be_empty() {
    let retired = |broken: ObservedPod| {
        let mut world = World::settled(&desired("a", 3));
        world.observed.pods.iter_mut().for_each(|pod| pod.connections = Some(9));
        let name = world.observed.pods[2].name.clone();
        world.observed.pods[2] = ObservedPod { name: name.clone(), ..broken };
        let actions = plan(&world.observed, &desired("a", 2), world.now);
        actions.iter().any(|action| action.step == Step::Retire { pod: name.clone() })
    };
    let broken = |connections| ObservedPod { connections, ..pod("x", "a", second(0), false) };
    assert!(retired(broken(Some(0))));
    assert!(!retired(broken(Some(50))));
    assert!(!retired(broken(None)));
    // Its set cannot shrink while it stays.
    assert!(retired(ObservedPod { stuck: true, ..broken(None) }));
}

#[test]
fn a_pod_that_could_not_be_asked_is_the_last_to_go() {
    let mut world = World::settled(&desired("a", 3));
    for (at, connections) in [None, Some(9_000), None].into_iter().enumerate() {
        world.observed.pods[at].connections = connections;
    }
    let known = world.observed.pods[1].name.clone();
    let actions = plan(&world.observed, &desired("a", 2), world.now);
    assert_eq!(actions, [Action { step: Step::Retire { pod: known }, reason: Reason::ScaleDown }]);
}

#[test]
fn a_set_does_not_shrink_while_its_controller_would_take_a_pod_with_clients() {
    let mut world = World::settled(&desired("a", 4));
    world.observed.pods.iter_mut().for_each(|pod| pod.connections = Some(9));
    world.observed.pods[2].connections = None;
    let unknown = world.observed.pods[2].name.clone();
    world.down.insert(unknown.clone());
    let less = desired("a", 3);
    for _ in 0..50 {
        world.pod_mut(&unknown).ready = false;
        let actions = plan(&world.observed, &less, world.now);
        assert!(actions.iter().all(|action| !matches!(action.step, Step::Remove { .. })), "{actions:?}");
        actions.iter().for_each(|action| world.perform(&action.step));
        world.now += SignedDuration::from_millis(100);
    }
    world.down.clear();
    world.play(&less);
    assert!(world.observed.pods.iter().any(|pod| pod.name == unknown), "another went");
}

#[test]
fn an_old_pod_goes_before_a_new_one() {
    let mut world = World::settled(&desired("a", 2)).0;
    world.observed.sets.push(ObservedSet {
        name: "b".to_owned(),
        revision: "b".to_owned(),
        replicas: 2,
        created: world.now,
    });
    for name in ["b-1", "b-2"] {
        world.observed.pods.push(ObservedPod { verified: Some(true), ..pod(name, "b", world.now, true) });
    }
    world.observed.pods.iter_mut().filter(|pod| pod.set == "a").for_each(|pod| pod.connections = Some(99));
    let actions = plan(&world.observed, &desired("b", 2), world.now);
    let Step::Retire { pod } = &actions[0].step else { panic!("{actions:?}") };
    assert!(pod.starts_with("a-"), "{pod} was chosen");
}

#[test]
fn a_pod_is_marked_after_it_settled_and_removed_after_the_mark_settled() {
    let mut world = World::settled(&desired("a", 2));
    let less = desired("a", 1);
    let steps = |world: &World| {
        let actions = plan(&world.observed, &less, world.now);
        actions.into_iter().map(|action| action.step).collect::<Vec<_>>()
    };
    let [Step::Retire { pod }] = &steps(&world)[..] else { panic!() };
    world.perform(&Step::Retire { pod: pod.clone() });
    assert_eq!(steps(&world), []);
    assert_eq!(next_look(&world.observed, &less, world.now), Some(SETTLE));
    world.now += signed(SETTLE);
    assert_eq!(steps(&world), [Step::Release { pod: pod.clone() }]);
    world.perform(&Step::Release { pod: pod.clone() });
    assert_eq!(steps(&world), []);
    world.now += signed(MARK_SETTLES);
    assert_eq!(steps(&world), [Step::Remove { set: "a".to_owned(), to: 1, pod: pod.clone() }]);
}

#[test]
fn a_pod_that_stays_after_all_serves_again() {
    let mut world = World::settled(&desired("a", 2));
    let [Action { step, .. }] = &plan(&world.observed, &desired("a", 1), world.now)[..] else { panic!() };
    world.perform(step);
    let actions = plan(&world.observed, &desired("a", 2), world.now);
    let Step::Retire { pod } = step else { panic!() };
    assert_eq!(actions, [Action { step: Step::Restore { pod: pod.clone() }, reason: Reason::NodeRestored }]);
}

#[test]
fn a_label_that_somebody_took_away_is_given_back() {
    let mut world = World::settled(&desired("a", 2));
    world.observed.pods[0].serving = false;
    let name = world.observed.pods[0].name.clone();
    let actions = plan(&world.observed, &desired("a", 2), world.now);
    assert_eq!(actions[0].step, Step::Restore { pod: name });
}

#[test]
fn a_scale_up_during_a_stuck_rollout_is_served_by_the_revision_that_works() {
    let mut world = World::settled(&desired("a", 2));
    world.bad.insert("bad".to_owned());
    world.play(&desired("bad", 2));
    world.play(&desired("bad", 5));
    assert_eq!(world.serving(), 5, "the pod that does not start serves nobody");
    assert!(world.observed.pods.iter().filter(|pod| pod.ready).all(|pod| pod.set == "a"));
}

#[test]
fn a_scale_down_during_a_stuck_rollout_takes_old_pods_that_are_too_many_and_no_more() {
    let mut world = World::settled(&desired("a", 4));
    world.bad.insert("bad".to_owned());
    world.play(&desired("bad", 4));
    let broken = world.observed.pods.iter().position(|pod| pod.set == "a").expect("there is one");
    let broken = world.observed.pods[broken].name.clone();
    world.pod_mut(&broken).ready = false;
    world.down.insert(broken.clone());
    let actions = world.play(&desired("bad", 3));
    let retired = Action { step: Step::Retire { pod: broken }, reason: Reason::ScaleDown };
    assert!(actions.contains(&retired), "the one that is not ready goes: {actions:?}");
    assert_eq!(world.serving(), 3);
    world.play(&desired("bad", 2));
    assert_eq!(world.serving(), 2);
}

#[test]
fn without_a_surge_one_old_pod_makes_room_for_the_first_new_one_and_the_others_wait() {
    let strategy = Strategy { replace: Replace::Rolling, max_surge: 0, max_unavailable: 2 };
    let mut world = World::settled(&Desired { strategy, ..desired("a", 4) });
    world.bad.insert("bad".to_owned());
    let next = Desired { strategy, ..desired("bad", 4) };
    world.play(&next);
    assert_eq!(world.serving(), 3);
    let blip = world.observed.pods.iter().find(|pod| pod.set == "a").expect("there is one").name.clone();
    world.pod_mut(&blip).ready = false;
    assert_eq!(plan(&world.observed, &next, world.now), []);
}

#[test]
fn a_surge_that_is_lowered_because_new_pods_find_no_room_lets_an_old_pod_make_some() {
    let with = |max_surge, revision| {
        let strategy = Strategy { replace: Replace::Rolling, max_surge, max_unavailable: 1 };
        Desired { strategy, ..desired(revision, 3) }
    };
    let mut world = World::settled(&with(1, "a"));
    world.bad.insert("big".to_owned());
    world.play(&with(1, "big"));
    assert_eq!(world.serving(), 3);
    world.play(&with(0, "big"));
    assert_eq!(world.serving(), 2);
    let asked: Vec<_> = world.observed.sets.iter().map(|set| (set.name.as_str(), set.replicas)).collect();
    assert_eq!(asked, [("a", 2), ("big", 1)]);
    world.bad.clear();
    world.play(&with(0, "big"));
    assert!(world.observed.pods.iter().all(|pod| pod.set == "big" && pod.ready));
}

#[test]
fn an_old_pod_that_is_not_ready_goes_first_once_the_new_revision_works() {
    let mut world = World::settled(&desired("a", 3));
    let broken = world.observed.pods[1].name.clone();
    world.observed.pods[1].ready = false;
    world.down.insert(broken.clone());
    let next = desired("b", 3);
    let first = plan(&world.observed, &next, world.now);
    assert!(matches!(first[..], [Action { step: Step::CreateSet { .. }, .. }]), "{first:?}");
    let retired = world.play(&next).into_iter().find(|action| matches!(action.step, Step::Retire { .. }));
    assert_eq!(retired.map(|action| action.step), Some(Step::Retire { pod: broken }));
}

#[test]
fn a_revision_that_stops_working_midway_gives_back_the_old_pod_that_was_to_go() {
    let mut world = World::settled(&desired("a", 3));
    let next = desired("b", 3);
    let leaves = |world: &World| world.observed.pods.iter().find(|pod| pod.retired.is_some()).cloned();
    while leaves(&world).is_none() {
        plan(&world.observed, &next, world.now).iter().for_each(|action| world.perform(&action.step));
        world.pass(100);
    }
    let pod = leaves(&world).expect("one leaves").name;
    world.observed.pods.iter_mut().filter(|pod| pod.set == "b").for_each(|pod| pod.ready = false);
    let actions = plan(&world.observed, &next, world.now);
    assert_eq!(actions, [Action { step: Step::Restore { pod }, reason: Reason::NodeRestored }]);
}

#[test]
fn a_pod_on_a_lost_machine_holds_nothing_up_for_ever() {
    let mut world = World::settled(&desired("a", 3));
    let ended = world.now;
    let lost = &mut world.observed.pods[0];
    lost.ends_by = Some(ended);
    world.control();
    let less = desired("a", 2);
    world.observed.pods.iter_mut().for_each(|pod| pod.ready = true);
    assert_eq!(plan(&world.observed, &less, world.now), [], "one drains already");
    let wait = next_look(&world.observed, &less, world.now).expect("it looks again");
    world.now += signed(wait);
    assert!(matches!(
        plan(&world.observed, &less, world.now)[..],
        [Action { step: Step::Retire { .. }, .. }]
    ));
}

#[test]
fn old_revisions_are_forgotten_beyond_the_limit() {
    let mut world = World::settled(&desired("r0", 1));
    for revision in ["r1", "r2", "r3", "r4", "r5"] {
        world.play(&desired(revision, 1));
    }
    let names: Vec<_> = world.observed.sets.iter().map(|set| set.name.as_str()).collect();
    assert_eq!(names, ["r2", "r3", "r4", "r5"]);
}

#[test]
fn the_next_old_pod_leaves_once_the_new_one_was_ready_long_enough_and_is_verified() {
    let mut world = World::settled(&desired("a", 2));
    let next = Desired { min_ready: Duration::from_secs(5), ..desired("b", 2) };
    let retires = |world: &World| {
        let actions = plan(&world.observed, &next, world.now);
        actions.iter().any(|action| matches!(action.step, Step::Retire { .. }))
    };
    plan(&world.observed, &next, world.now).iter().for_each(|action| world.perform(&action.step));
    world.pass(600);
    world.pass(600);
    let new = world.observed.pods.iter().position(|pod| pod.set == "b").expect("it was made");
    let since = world.observed.pods[new].ready_since.expect("it is ready");
    assert!(next_look(&world.observed, &next, world.now).is_some_and(|wait| wait <= Duration::from_secs(5)));
    assert!(!retires(&world), "it was ready for a moment only");
    world.now = since + SignedDuration::from_secs(5);
    for verified in [None, Some(false)] {
        world.observed.pods[new].verified = verified;
        assert!(!retires(&world), "the old ones are verified, and it is {verified:?}");
    }
    world.observed.pods[new].verified = Some(true);
    assert!(retires(&world));
    world.observed.pods.iter_mut().for_each(|pod| pod.verified = None);
    assert!(retires(&world), "no node can be asked");
}

#[test]
fn a_pod_of_a_superseded_revision_leaves_for_the_rollout_and_not_for_a_scale_down() {
    let mut world = World::settled(&desired("a", 3));
    world.bad.insert("b".to_owned());
    world.play(&desired("b", 3));
    world.bad.insert("c".to_owned());
    let actions = world.play(&desired("c", 3));
    let left =
        actions.iter().filter(|action| matches!(action.step, Step::Retire { .. } | Step::Remove { .. }));
    let reasons: Vec<_> = left.map(|action| action.reason).collect();
    assert!(!reasons.is_empty() && reasons.iter().all(|reason| *reason == Reason::Rollout), "{actions:?}");
}

#[test]
fn a_redis_is_moved_by_its_spec_or_its_password_and_by_nothing_else() {
    let spec = |image: &str| serde_json::json!({"image": image, "persistent": false, "pullSecrets": []});
    let with = |stored: Option<serde_json::Value>, password: &str| {
        let mut world = World::settled(&desired("a", 1));
        let redis = ObservedRedis {
            set: "redis".to_owned(),
            spec: stored,
            password: password.to_owned(),
            pods: Vec::new(),
        };
        world.observed.redis = Some(redis);
        let wanted = DesiredRedis { spec: spec("x:1"), password: "p".to_owned(), replace_after: None };
        plan(&world.observed, &Desired { redis: Some(wanted), ..desired("a", 1) }, world.now)
    };
    let moved = [Action { step: Step::MoveRedis { set: "redis".to_owned() }, reason: Reason::RedisChanged }];
    assert_eq!(with(Some(spec("x:1")), "p"), []);
    assert_eq!(with(None, "p"), [], "it does not say yet");
    assert_eq!(with(Some(spec("x:2")), "p"), moved);
    assert_eq!(with(Some(spec("x:1")), "q"), moved);
}

#[test]
fn a_redis_on_a_lost_machine_is_asked_to_end_and_then_taken_for_gone() {
    let later = |seconds: i64| second(2_000_000 + seconds);
    let now = later(1_000);
    let pod = ObservedRedisPod {
        name: "redis-0".to_owned(),
        unready_since: Some(later(980)),
        ends_by: None,
        machine: Machine::NotReady,
    };
    let planned = |pod: &ObservedRedisPod, replace_after: Option<u64>, now| {
        let spec = serde_json::json!({});
        let redis = ObservedRedis {
            set: "redis".to_owned(),
            spec: Some(spec.clone()),
            pods: vec![pod.clone()],
            ..ObservedRedis::default()
        };
        let observed = Observed { redis: Some(redis), ..World::settled(&desired("a", 1)).0.observed };
        let replace_after = replace_after.map(Duration::from_secs);
        let wanted = DesiredRedis { spec, password: String::new(), replace_after };
        let desired = Desired { redis: Some(wanted), ..desired("a", 1) };
        (
            plan(&observed, &desired, now).into_iter().map(|action| action.step).collect::<Vec<_>>(),
            next_look(&observed, &desired, now),
        )
    };
    let delete = |force| vec![Step::DeleteRedisPod { pod: "redis-0".to_owned(), force }];
    assert_eq!(planned(&pod, Some(25), now), (vec![], Some(Duration::from_secs(5))));
    assert_eq!(planned(&pod, Some(20), now).0, delete(false));
    assert_eq!(planned(&pod, None, now), (vec![], None), "its volume may still be written");
    let ending = ObservedRedisPod { ends_by: Some(later(1_005)), ..pod.clone() };
    assert_eq!(planned(&ending, Some(20), now), (vec![], Some(Duration::from_secs(5))));
    assert_eq!(planned(&ending, Some(20), later(1_005)).0, delete(true));
    for machine in [Machine::Ready, Machine::Unknown] {
        assert_eq!(planned(&ObservedRedisPod { machine, ..ending.clone() }, Some(20), later(2_000)).0, []);
    }
    assert_eq!(
        planned(&ObservedRedisPod { machine: Machine::Gone, ..ending }, Some(20), later(2_000)).0,
        delete(true)
    );
}

#[test]
fn on_delete_replaces_only_what_a_person_deleted() {
    let strategy = Strategy { replace: Replace::OnDelete, max_surge: 1, max_unavailable: 0 };
    let mut world = World::settled(&Desired { strategy, ..desired("a", 3) });
    let next = Desired { strategy, ..desired("b", 3) };
    world.pass(1_000);
    world.play(&next);
    assert_eq!(world.observed.pods.iter().filter(|pod| pod.set == "a").count(), 3);
    world.pass(1_000);
    world.observed.pods.remove(0);
    world.play(&next);
    let of = |set: &str| world.observed.pods.iter().filter(|pod| pod.set == set && pod.ready).count();
    assert_eq!((of("a"), of("b")), (2, 1));
}
