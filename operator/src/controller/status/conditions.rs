//! The conditions: each is judged from what is there, and its time moves only when its status flips. Pure.

use std::{fmt, time::Duration};

use k8s_openapi::{
    api::core::v1::Pod,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::{Timestamp, Unit},
};
use kube::{ResourceExt, api::DynamicObject, core::ObjectMeta};

use super::{Counts, nodes};
use crate::{
    api::{
        ConditionType, FanoutCluster, FanoutClusterStatus, Reason,
        v1alpha1::{RedisKind, UpdateStrategyType},
    },
    controller::{
        apply::Applied,
        dereference::{Found, Node, is_ready, machine_name, phase},
        validate::{self, Problem},
    },
    redis::managed,
    scrape::Report,
};

/// Problems that one message names, and bytes it may have. Kubernetes refuses more than 32 KiB.
const MAX_PROBLEMS: usize = 5;
const MESSAGE_BYTES: usize = 4096;

/// Time that Redis may be away before it counts as a problem: what a pod needs to move.
const REDIS_GRACE: Duration = Duration::from_secs(15);

/// What a condition should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    type_: ConditionType,
    status: &'static str,
    reason: Reason,
    message: String,
}

/// Judges each condition.
pub(super) fn judge(
    cluster: &FanoutCluster,
    found: &Found,
    problems: &[Problem],
    counts: &Counts,
    settings: Option<&str>,
) -> Vec<Verdict> {
    let stuck = found.nodes.iter().any(|node| found.problem_of(&node.pod).is_some());
    let judge = |type_: ConditionType| match type_ {
        ConditionType::Ready => ready(cluster, counts, problems),
        ConditionType::Available => available(cluster, counts),
        ConditionType::Progressing => progressing(cluster, counts, stuck),
        ConditionType::Degraded => degraded(problems),
        ConditionType::RedisReachable => redis(cluster, found),
        ConditionType::SettingsInSync => in_sync(found, settings),
        ConditionType::Paused => paused(cluster),
        ConditionType::Advisory => advisory(&advice_of(cluster, found)),
    };
    ConditionType::ALL.into_iter().map(judge).collect()
}

/// Everything that stands in the way, what was found first in front.
pub(super) fn problems(cluster: &FanoutCluster, found: &Found, applied: &Applied) -> Vec<Problem> {
    let pods = found.nodes.iter().map(|node| &node.pod).chain(&found.redis);
    let pods = pods.filter_map(|pod| found.problem_of(pod));
    let sets =
        ["ReplicaSet", "StatefulSet"].into_iter().flat_map(|kind| found.of_kind(kind)).filter_map(refused);
    let settings = nodes::existing(found).filter_map(rejected);
    let broker = unreachable(cluster, found);
    let lost = found.redis.iter().filter_map(|pod| lost_redis(cluster, found, pod));
    applied
        .problems
        .iter()
        .cloned()
        .chain(lost)
        .chain(sets)
        .chain(pods)
        .chain(settings)
        .chain(broker)
        .chain(found.lingering())
        .collect()
}

/// The managed Redis is on a Kubernetes node that does not answer.
fn lost_redis(cluster: &FanoutCluster, found: &Found, pod: &Pod) -> Option<Problem> {
    let machine = machine_name(pod).filter(|_| found.machine_of(pod).is_lost() && !is_ready(pod))?;
    let name = pod.name_any();
    let managed = cluster.spec.redis.managed.as_ref()?;
    let what = match &managed.storage {
        None => format!("it is made anew on another after {} s", managed.replace_after_seconds),
        Some(_) => format!(
            "its volume may still be written there: bring {machine} back, or once it is off, `kubectl taint node {machine} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute` or delete it"
        ),
    };
    Some(Problem {
        reason: Reason::RedisNodeLost,
        object: format!("Pod/{name}"),
        key: None,
        message: format!(
            "pod {name} of the managed Redis is on Kubernetes node {machine}, which does not answer: {what}"
        ),
    })
}

/// Redis counts as a problem once it has been away for [`REDIS_GRACE`]: a first start and a moved pod are none.
fn unreachable(cluster: &FanoutCluster, found: &Found) -> Option<Problem> {
    let Verdict { type_: _, status, reason, message } = redis(cluster, found);
    if status != "False" || redis_grace(cluster, found.at) != Some(Duration::ZERO) {
        return None;
    }
    let object = match cluster.spec.redis.kind() {
        Some(RedisKind::Managed(_)) => format!("StatefulSet/{}", managed::name(cluster)),
        _ => format!("FanoutCluster/{}", cluster.name()),
    };
    Some(Problem { reason, object, key: None, message })
}

/// How much longer Redis may be away before it counts as a problem; `None` where it was not away yet.
pub(super) fn redis_grace(cluster: &FanoutCluster, now: Timestamp) -> Option<Duration> {
    let before = cluster.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let away = find(before, ConditionType::RedisReachable).filter(|condition| condition.status == "False")?;
    let passed = Duration::try_from(now.duration_since(away.last_transition_time.0)).unwrap_or_default();
    Some(REDIS_GRACE.saturating_sub(passed))
}

fn refused(set: &DynamicObject) -> Option<Problem> {
    let conditions = set.data["status"]["conditions"].as_array()?;
    let failure = conditions.iter().find(|c| c["type"] == "ReplicaFailure" && c["status"] == "True")?;
    Some(Problem {
        reason: Reason::PodRefused,
        object: format!("ReplicaSet/{}", set.name_any()),
        key: None,
        message: format!(
            "the API server refuses the pods of {}: {}",
            set.name_any(),
            failure["message"].as_str().unwrap_or("no reason was given")
        ),
    })
}

fn rejected(node: &Node) -> Option<Problem> {
    let name = node.pod.name_any();
    node.report.as_ref().filter(|report| report.settings_rejected).map(|_| Problem {
        reason: Reason::SettingsRejected,
        object: format!("Pod/{name}"),
        key: None,
        message: format!(
            "node {name} refuses its new settings and keeps the old ones: see `kubectl logs {name}` for the field"
        ),
    })
}

fn ready(cluster: &FanoutCluster, counts: &Counts, problems: &[Problem]) -> Verdict {
    let wanted = cluster.spec.replicas;
    let numbers =
        format!("{} of {} at the current revision", counts.updated_ready, nodes_that(wanted, "serve"));
    // Nodes serve whoever has the last word about a child. A container that does not end holds up a node that serves
    // nobody any more.
    let harmless = [Reason::RepairDisputed, Reason::ContainerIgnoresTermination];
    let grave = problems.iter().find(|problem| !harmless.contains(&problem.reason));
    let (status, reason, message) = match grave {
        Some(problem) => ("False", problem.reason, problem.message.clone()),
        None if counts.is_complete(cluster) && wanted == 0 => ("True", Reason::ScaledToZero, numbers),
        None if counts.is_complete(cluster) => ("True", Reason::AllNodesServing, numbers),
        None if counts.outdated > 0 => ("False", Reason::RollingOut, numbers),
        None => ("False", Reason::NodesNotReady, numbers),
    };
    Verdict { type_: ConditionType::Ready, status, reason, message }
}

fn available(cluster: &FanoutCluster, counts: &Counts) -> Verdict {
    let message = nodes_that(counts.ready, "serve");
    let (status, reason) = match counts.ready {
        0 if cluster.spec.replicas == 0 => ("False", Reason::ScaledToZero),
        0 => ("False", Reason::NoNodeServing),
        ready if ready >= cluster.spec.replicas => ("True", Reason::AllNodesServing),
        _ => ("True", Reason::NodesNotReady),
    };
    Verdict { type_: ConditionType::Available, status, reason, message }
}

fn progressing(cluster: &FanoutCluster, counts: &Counts, stuck: bool) -> Verdict {
    let wanted = cluster.spec.replicas;
    let by_hand = cluster.spec.update_strategy.type_ == UpdateStrategyType::OnDelete;
    let present = counts.serving;
    let (status, reason, message) = if cluster.spec.paused {
        ("False", Reason::Paused, "spec.paused is set".to_owned())
    } else if counts.outdated > 0 && stuck {
        let message = format!(
            "a new node does not become ready; {} of an older revision and left alone",
            nodes_that(counts.outdated, "are")
        );
        ("False", Reason::RolloutStuck, message)
    } else if counts.outdated > 0 && by_hand && counts.leaving == 0 && present == wanted {
        let message =
            format!("{} of an older revision: delete what is left of it", nodes_that(counts.outdated, "are"));
        ("False", Reason::WaitingForDelete, message)
    } else if counts.outdated > 0 {
        let message = format!("{} of {} of the new revision", counts.updated, nodes_that(wanted, "are"));
        ("True", Reason::RollingOut, message)
    } else if present < wanted || counts.ready < wanted {
        ("True", Reason::ScalingUp, format!("{} of {} ready", counts.ready, nodes_that(wanted, "are")))
    } else if present > wanted || counts.leaving > 0 {
        let message = nodes_that(counts.leaving.max(present - wanted), "leave");
        ("True", Reason::ScalingDown, message)
    } else {
        ("False", Reason::UpToDate, format!("{wanted} of {} as the spec asks", nodes_that(wanted, "are")))
    };
    Verdict { type_: ConditionType::Progressing, status, reason, message }
}

/// Whether nodes run by the settings of this hash. Only what a node says of itself counts.
fn in_sync(found: &Found, wanted: Option<&str>) -> Verdict {
    let verdict =
        |status, reason, message| Verdict { type_: ConditionType::SettingsInSync, status, reason, message };
    let Some(wanted) = wanted else {
        return verdict("Unknown", Reason::NotObserved, "the settings were not written".to_owned());
    };
    let nodes: Vec<_> =
        nodes::existing(found).filter(|node| node.pod.metadata.deletion_timestamp.is_none()).collect();
    let runs = |node: &&&Node| node.report.as_ref().filter(|report| report.answered)?.settings_hash.clone();
    let asked: Vec<_> = nodes.iter().filter_map(|node| Some((node.pod.name_any(), runs(&node)?))).collect();
    let behind: Vec<_> =
        asked.iter().filter(|(_, hash)| hash != wanted).map(|(name, _)| name.as_str()).collect();
    if !behind.is_empty() {
        let names = behind.iter().take(MAX_PROBLEMS).copied().collect::<Vec<_>>().join(", ");
        let message =
            format!("{} of {} run by older settings ({names})", behind.len(), some_nodes(nodes.len()));
        return verdict("False", Reason::SettingsPropagating, message);
    }
    if asked.len() < nodes.len() || asked.is_empty() {
        let message =
            format!("{} of {} said which settings they run by", asked.len(), some_nodes(nodes.len()));
        return verdict("Unknown", Reason::NotObserved, message);
    }
    verdict("True", Reason::SettingsCurrent, format!("{} run by settings {wanted}", some_nodes(nodes.len())))
}

fn some_nodes(count: usize) -> String {
    if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") }
}

/// The generation that readiness is told of: the one before, while nothing but time stands in the way and some nodes run by
/// its settings, or a write has yet to be repeated.
pub(super) fn generation_in_force(
    cluster: &FanoutCluster,
    before: &FanoutClusterStatus,
    verdicts: &[Verdict],
    is_written: bool,
) -> Option<i64> {
    let verdict = |type_| verdicts.iter().find(|verdict| verdict.type_ == type_);
    let comes = |ready: &Verdict| {
        ready.status == "True" || [Reason::RollingOut, Reason::NodesNotReady].contains(&ready.reason)
    };
    let in_sync = verdict(ConditionType::SettingsInSync).is_none_or(|settings| settings.status != "False");
    let behind = verdict(ConditionType::Ready).is_some_and(comes) && !(is_written && in_sync);
    let earlier = find(&before.conditions, ConditionType::Ready).and_then(|ready| ready.observed_generation);
    if behind { earlier.or(before.observed_generation) } else { cluster.metadata.generation }
}

fn degraded(problems: &[Problem]) -> Verdict {
    listed(ConditionType::Degraded, problems, "nothing stands in the way")
}

fn advisory(advice: &[Problem]) -> Verdict {
    listed(ConditionType::Advisory, advice, "there is no advice")
}

/// True with the first problems in its message, or false.
fn listed(type_: ConditionType, problems: &[Problem], none: &str) -> Verdict {
    let Some(first) = problems.first() else {
        let message = none.to_owned();
        return Verdict { type_, status: "False", reason: Reason::AsExpected, message };
    };
    let mut told: Vec<_> =
        problems.iter().take(MAX_PROBLEMS).map(|problem| problem.message.as_str()).collect();
    let more = format!("and {} more", problems.len().saturating_sub(MAX_PROBLEMS));
    if problems.len() > MAX_PROBLEMS {
        told.push(&more);
    }
    Verdict { type_, status: "True", reason: first.reason, message: told.join("; ") }
}

fn redis(cluster: &FanoutCluster, found: &Found) -> Verdict {
    let verdict =
        |status, reason, message| Verdict { type_: ConditionType::RedisReachable, status, reason, message };
    if cluster.spec.redis.kind() == Some(RedisKind::Memory) {
        return verdict("True", Reason::MemoryBroker, "redis.memory: there is no Redis to reach".to_owned());
    }
    let answers: Vec<_> = nodes::existing(found)
        .filter(|node| phase(&node.pod) == "Running" && node.pod.metadata.deletion_timestamp.is_none())
        .filter_map(|node| node.report.as_ref().filter(|report| report.answered).map(|report| (node, report)))
        .collect();
    let named = |nodes: Vec<&(&Node, &Report)>| {
        let names: Vec<_> = nodes.iter().take(MAX_PROBLEMS).map(|(node, _)| node.pod.name_any()).collect();
        (nodes.len(), names.join(", "))
    };
    let cut: Vec<_> = answers.iter().filter(|(_, report)| report.broker_connected == Some(false)).collect();
    let lost: Vec<_> = answers.iter().filter(|(_, report)| report.broker_verified == Some(false)).collect();
    if found.managed_redis_is_down(cluster) && !answers.is_empty() {
        let message = format!("StatefulSet {} has no ready pod", managed::name(cluster));
        return verdict("False", Reason::RedisUnreachable, message);
    }
    let asked = answers.iter().filter(|(_, report)| report.broker_verified.is_some()).count();
    if asked < answers.len() && redis_grace(cluster, found.at).is_some() {
        let message = format!(
            "{} is back; {asked} of {} asked since whether their messages get through",
            target(cluster),
            nodes_that(answers.len(), "were")
        );
        return verdict("False", Reason::RedisUnreachable, message);
    }
    if asked == 0 {
        return verdict("Unknown", Reason::NotObserved, "no node could be asked yet".to_owned());
    }
    if !cut.is_empty() {
        let (count, names) = named(cut);
        let message = format!(
            "{count} of {} no connection to {} ({names}): {}",
            nodes_that(answers.len(), "have"),
            target(cluster),
            advice(cluster)
        );
        return verdict("False", Reason::RedisUnreachable, message);
    }
    // The diagnosis that says most: a node that may not publish hears nothing of itself either.
    for (reason, of, words) in [
        (
            Reason::PublishRefused,
            refused_publishing as fn(&Report) -> bool,
            "Redis refuses their messages by its ACL: docs/redis.md has the rules, and their logs the refusal",
        ),
        (
            Reason::NodesApart,
            unheard,
            "no other node hears them: they may be on another server, see the address and its DNS",
        ),
        (Reason::CanaryLost, |_| true, "their own messages do not come back: see its load and its logs"),
    ] {
        let these: Vec<_> = lost.iter().copied().filter(|(_, report)| of(report)).collect();
        if !these.is_empty() {
            let (count, names) = named(these);
            let connected = nodes_that(answers.len(), "are");
            let message =
                format!("{count} of {connected} connected to {}, but {words} ({names})", target(cluster));
            return verdict("False", reason, message);
        }
    }
    let seen = nodes_that(answers.len(), "see");
    let message = format!("{seen} their own messages come back through {}", target(cluster));
    verdict("True", Reason::CanaryReturned, message)
}

fn refused_publishing(report: &Report) -> bool {
    report.publish_refused
}

fn unheard(report: &Report) -> bool {
    report.unheard
}

/// Nodes that warn of their settings.
fn warned(node: &Node) -> Option<Problem> {
    let (name, report) = (node.pod.name_any(), node.report.as_ref()?);
    (report.answered && report.settings_warnings > 0).then(|| Problem {
        reason: Reason::SettingsWarning,
        object: format!("Pod/{name}"),
        key: None,
        message: format!(
            "node {name} warns of {} of its settings or secrets: `kubectl logs {name}` names each",
            report.settings_warnings
        ),
    })
}

/// What works, and should be asked for otherwise: by the spec itself, and by what its nodes say.
pub(super) fn advice_of(cluster: &FanoutCluster, found: &Found) -> Vec<Problem> {
    let mut advice = validate::advice(cluster);
    // Nodes warn of what the spec shows as well; what is left are secrets, which only they read.
    if advice.iter().all(|problem| problem.reason != Reason::ContradictingBounds) {
        advice.extend(nodes::existing(found).filter_map(warned).take(1));
    }
    advice
}

/// `1 node serves`, `2 nodes serve`.
fn nodes_that(count: impl fmt::Display, verb: &str) -> String {
    let count = count.to_string();
    if count != "1" {
        return format!("{count} nodes {verb}");
    }
    match verb {
        "are" => "1 node is".to_owned(),
        "were" => "1 node was".to_owned(),
        "have" => "1 node has".to_owned(),
        verb => format!("1 node {verb}s"),
    }
}

fn target(cluster: &FanoutCluster) -> String {
    match cluster.spec.redis.kind() {
        Some(RedisKind::External(external)) => format!("Redis at {}", external.addresses.join(", ")),
        _ => "the managed Redis".to_owned(),
    }
}

fn advice(cluster: &FanoutCluster) -> String {
    let Some(RedisKind::External(external)) = cluster.spec.redis.kind() else {
        return "see the pod of its StatefulSet".to_owned();
    };
    let credentials = external.credentials_secret_ref.as_ref().map_or_else(
        || "whether it asks for a password (spec.redis.external.credentialsSecretRef)".to_owned(),
        |secret| format!("key {} of Secret/{}", secret.password_key, secret.name),
    );
    let tls = if external.tls.is_some() { ", and spec.redis.external.tls" } else { "" };
    format!("check spec.redis.external.addresses, {credentials}{tls}; the nodes' logs say what Redis answers")
}

fn paused(cluster: &FanoutCluster) -> Verdict {
    let (status, reason, message) = if cluster.spec.paused {
        ("True", Reason::Paused, "spec.paused is set: nothing is changed")
    } else {
        ("False", Reason::Reconciling, "spec.paused is not set")
    };
    Verdict { type_: ConditionType::Paused, status, reason, message: message.to_owned() }
}

/// The conditions of an object that cannot be read.
pub(super) fn malformed(metadata: &ObjectMeta, error: &str, now: Timestamp) -> Vec<Condition> {
    let verdict =
        |type_, status| Verdict { type_, status, reason: Reason::InvalidSpec, message: error.to_owned() };
    let verdicts = [verdict(ConditionType::Ready, "False"), verdict(ConditionType::Degraded, "True")];
    merge(&[], verdicts.into(), metadata.generation, now)
}

/// The conditions of a cluster whose reconcile ended early: Ready and Degraded say why, the others are as they were.
pub(super) fn broken(
    before: &[Condition],
    cluster: &FanoutCluster,
    problem: &Problem,
    now: Timestamp,
) -> Vec<Condition> {
    let Problem { reason, message, .. } = problem;
    let verdict = |type_, status| Verdict { type_, status, reason: *reason, message: message.clone() };
    let verdicts = vec![verdict(ConditionType::Ready, "False"), verdict(ConditionType::Degraded, "True")];
    let told = merge(before, verdicts, cluster.metadata.generation, now);
    let kept = before.iter().filter(|condition| told.iter().all(|told| told.type_ != condition.type_));
    let mut all: Vec<_> = told.iter().chain(kept).cloned().collect();
    all.sort_by_key(|condition| {
        ConditionType::ALL.iter().position(|type_| type_.to_string() == condition.type_)
    });
    all
}

/// Verdicts as conditions. A time moves only when its status flips.
pub(super) fn merge(
    before: &[Condition],
    verdicts: Vec<Verdict>,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let conditions = verdicts.into_iter().map(|Verdict { type_, status, reason, message }| {
        let kept = find(before, type_).filter(|old| old.status == status);
        Condition {
            type_: type_.to_string(),
            status: status.to_owned(),
            reason: reason.to_string(),
            message: message[..message.floor_char_boundary(MESSAGE_BYTES)].to_owned(),
            observed_generation: generation,
            // Whole seconds, as the API server keeps them.
            last_transition_time: kept.map_or_else(
                || Time(now.round(Unit::Second).unwrap_or(now)),
                |old| old.last_transition_time.clone(),
            ),
        }
    });
    conditions.collect()
}

/// A condition by type.
pub(super) fn find(conditions: &[Condition], type_: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|condition| condition.type_ == type_.to_string())
}

/// Whether conditions say the same, whenever they began to.
pub(super) fn same_words(one: &[Condition], other: &[Condition]) -> bool {
    let words = |c: &Condition| (c.type_.clone(), c.status.clone(), c.reason.clone(), c.message.clone());
    one.iter().map(words).eq(other.iter().map(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn verdict(status: &'static str, message: &str) -> Vec<Verdict> {
        let (type_, reason) = (ConditionType::Ready, Reason::AsExpected);
        vec![Verdict { type_, status, reason, message: message.to_owned() }]
    }

    #[test]
    fn a_time_moves_only_when_the_status_flips() {
        let first = merge(&[], verdict("True", "a"), Some(1), at(10));
        let same = merge(&first, verdict("True", "b"), Some(2), at(20));
        assert_eq!((same[0].last_transition_time.0, same[0].message.as_str()), (at(10), "b"));
        let flipped = merge(&same, verdict("False", "b"), Some(2), at(30));
        assert_eq!(flipped[0].last_transition_time.0, at(30));
    }

    #[test]
    fn settings_are_in_sync_by_the_word_of_every_node_and_readiness_is_told_of_the_generation_before() {
        let found = |hashes: &[Option<&str>]| {
            let nodes = hashes.iter().enumerate().map(|(at, hash)| {
                let pod = serde_json::json!({"metadata": {"name": format!("n{at}")}, "status": {"phase": "Running"}});
                let report = hash.map(|hash| Report {
                    answered: true,
                    settings_hash: Some(hash.to_owned()),
                    ..Report::default()
                });
                Node { pod: std::sync::Arc::new(serde_json::from_value(pod).expect("a pod")), report }
            });
            Found { nodes: nodes.collect(), ..Found::nothing() }
        };
        let judged = |hashes: &[Option<&str>]| in_sync(&found(hashes), Some("new")).status;
        assert_eq!(judged(&[Some("new"), Some("new")]), "True");
        assert_eq!(judged(&[Some("new"), Some("old")]), "False");
        assert_eq!(judged(&[Some("old"), None]), "False");
        assert_eq!(judged(&[Some("new"), None]), "Unknown");
        assert_eq!(judged(&[]), "Unknown");
        assert_eq!(in_sync(&found(&[Some("new")]), None).status, "Unknown", "nothing was written");

        let mut cluster = FanoutCluster::new("chat", Default::default());
        cluster.metadata.generation = Some(2);
        let before = FanoutClusterStatus {
            observed_generation: Some(1),
            conditions: merge(&[], verdict("True", "ready"), Some(1), at(1)),
            ..FanoutClusterStatus::default()
        };
        let shown = |ready, hashes: &[Option<&str>]| {
            let verdicts = [verdict(ready, ""), vec![in_sync(&found(hashes), Some("new"))]].concat();
            generation_in_force(&cluster, &before, &verdicts, true)
        };
        assert_eq!(shown("True", &[Some("old")]), Some(1));
        assert_eq!(shown("True", &[Some("new")]), Some(2));
        assert_eq!(shown("True", &[None]), Some(2), "nobody can be asked");
        assert_eq!(shown("False", &[Some("old")]), Some(2), "something stands in the way");
        let moving = |reason| {
            let mut verdicts = verdict("False", "");
            verdicts[0].reason = reason;
            verdicts.push(in_sync(&found(&[Some("old")]), Some("new")));
            generation_in_force(&cluster, &before, &verdicts, true)
        };
        assert_eq!(moving(Reason::RollingOut), Some(1), "it may be ready before the settings are there");
        assert_eq!(moving(Reason::NodesNotReady), Some(1));
    }

    #[test]
    fn the_reason_says_why_messages_do_not_get_through() {
        let mut cluster = FanoutCluster::new("chat", Default::default());
        cluster.spec.redis.external =
            Some(serde_json::from_value(serde_json::json!({"addresses": ["redis:6379"]})).expect("external"));
        let judged = |change: fn(&mut Report)| {
            let mut report = Report { answered: true, broker_connected: Some(true), ..Report::default() };
            report.broker_verified = Some(false);
            change(&mut report);
            let pod = serde_json::json!({"metadata": {"name": "n"}, "status": {"phase": "Running"}});
            let node = Node {
                pod: std::sync::Arc::new(serde_json::from_value(pod).expect("a pod")),
                report: Some(report),
            };
            redis(&cluster, &Found { nodes: vec![node], ..Found::nothing() })
        };
        assert_eq!(judged(|_| {}).reason, Reason::CanaryLost);
        let refused = judged(|report| report.publish_refused = true);
        assert_eq!(refused.reason, Reason::PublishRefused);
        assert!(
            refused.message.contains("docs/redis.md") && refused.message.contains("(n)"),
            "{}",
            refused.message
        );
        assert_eq!(judged(|report| report.unheard = true).reason, Reason::NodesApart);
        assert_eq!(judged(|report| report.broker_verified = Some(true)).reason, Reason::CanaryReturned);
    }

    #[test]
    fn one_node_is_no_nodes() {
        assert_eq!(nodes_that(1, "serve"), "1 node serves");
        assert_eq!(nodes_that(1, "have"), "1 node has");
        assert_eq!(nodes_that(0, "are"), "0 nodes are");
        assert_eq!(nodes_that(2, "leave"), "2 nodes leave");
    }

    #[test]
    fn a_message_is_never_longer_than_the_api_server_takes() {
        let merged = merge(&[], verdict("True", &"ä".repeat(9_000)), None, at(0));
        assert!(merged[0].message.len() <= MESSAGE_BYTES);
    }
}
