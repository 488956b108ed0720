//! Why a pod does not become ready, or does not end, in words that name what to mend. Pure; called by dereference and
//! status.

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{ContainerState, ContainerStatus, Pod},
    jiff::{SignedDuration, Timestamp},
};
use kube::ResourceExt;

use super::{
    dereference::{condition, has_ended, is_ready, phase},
    validate::Problem,
};
use crate::{api::Reason, resources::replica_set::CONTAINER};

/// Time that a scheduler needs on a busy day. A pod that finds no place at once often finds one then.
const SCHEDULED_WITHIN: Duration = Duration::from_secs(10);

/// An end of a container that is older than this says nothing about the pod of today.
const RECENT: Duration = Duration::from_secs(600);

/// Time that an app container may run on after its node has drained and it was told to end.
const ENDS_WITHIN: Duration = Duration::from_secs(15);

/// Exit code of a sidecar that refused its settings.
const EXIT_BAD_CONFIGURATION: i32 = 64;

/// Ends of a container after which it counts as crashing, even between two starts, where the last is recent.
const CRASHES: i32 = 3;

/// When and how a pod is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look<'a> {
    /// Now.
    pub(super) at: Timestamp,
    /// Time that a pod has to become ready.
    pub(super) deadline: Duration,
    /// What Kubernetes said last about a volume that could not be attached or mounted.
    pub(super) mount: Option<&'a str>,
}

/// What keeps a pod from being ready; `None` where it is, or where it may still become so by itself.
pub(super) fn pod(pod: &Pod, look: Look<'_>) -> Option<Problem> {
    if !is_awaited(pod) {
        return None;
    }
    let container = containers(pod).find_map(|status| container(pod, status, look.at));
    container.or_else(|| unschedulable(pod, look.at)).or_else(|| late(pod, look))
}

/// Whether a pod is to become ready. One that has ended never is: its controller makes another, and it stays for people to
/// read until Kubernetes collects it, such as one that was evicted.
fn is_awaited(pod: &Pod) -> bool {
    !is_ready(pod) && pod.metadata.deletion_timestamp.is_none() && !has_ended(pod)
}

/// When more may be wrong with a pod although nothing changed.
pub(super) fn next_look(pod: &Pod, deadline: Duration, now: Timestamp) -> Option<Timestamp> {
    if !is_awaited(pod) {
        return None;
    }
    let unscheduled = is_unschedulable(pod).then(|| unscheduled_since(pod)).flatten();
    let looks = [(unscheduled, SCHEDULED_WITHIN), (unready_since(pod), deadline)];
    looks.into_iter().filter_map(|(since, wait)| after(since?, wait)).filter(|at| *at > now).min()
}

/// An app container that holds its pod up: the node has drained, and the container was told to end and runs on.
pub(super) fn lingering(pod: &Pod, drained: Option<Timestamp>, now: Timestamp) -> Option<Problem> {
    let ending = pod.metadata.deletion_timestamp.as_ref().filter(|_| !has_ended(pod))?;
    if after(drained?, ENDS_WITHIN)? > now {
        return None;
    }
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let mut running =
        statuses.filter(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()));
    let status = running.find(|status| status.name != CONTAINER)?;
    let message = format!(
        "container {} of pod {} runs on although its node has drained and it was told to end: let it end at SIGTERM, or the kubelet kills it at {}",
        status.name,
        pod.name_any(),
        ending.0
    );
    Some(problem(pod, Reason::ContainerIgnoresTermination, status, message))
}

/// When [`lingering`] may say more.
pub(super) fn lingers_at(pod: &Pod, drained: Option<Timestamp>) -> Option<Timestamp> {
    pod.metadata.deletion_timestamp.as_ref().filter(|_| !has_ended(pod))?;
    after(drained?, ENDS_WITHIN)
}

fn after(since: Timestamp, wait: Duration) -> Option<Timestamp> {
    since.checked_add(SignedDuration::try_from(wait).ok()?).ok()
}

/// Since when a pod is not ready: from its creation on, where no kubelet has taken it yet.
fn unready_since(pod: &Pod) -> Option<Timestamp> {
    let said = condition(pod, "Ready").and_then(|ready| Some(ready.last_transition_time.as_ref()?.0));
    said.or_else(|| created(pod))
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.creation_timestamp().map(|time| time.0)
}

fn is_unschedulable(pod: &Pod) -> bool {
    let scheduled = condition(pod, "PodScheduled");
    scheduled.is_some_and(|said| said.status == "False" && said.reason.as_deref() == Some("Unschedulable"))
}

fn unscheduled_since(pod: &Pod) -> Option<Timestamp> {
    let said = condition(pod, "PodScheduled").and_then(|said| Some(said.last_transition_time.as_ref()?.0));
    said.or_else(|| created(pod))
}

fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.iter();
    status.flat_map(|status| {
        let ordinary = status.container_statuses.iter().flatten();
        status.init_container_statuses.iter().flatten().chain(ordinary)
    })
}

fn container(pod: &Pod, status: &ContainerStatus, now: Timestamp) -> Option<Problem> {
    let waiting = status.state.as_ref().and_then(|state| state.waiting.as_ref());
    let reason = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or_default();
    let detail = waiting.and_then(|waiting| waiting.message.as_deref()).unwrap_or(reason);
    match reason {
        "ImagePullBackOff" | "ErrImagePull" | "InvalidImageName" | "ErrImageNeverPull" => Some(problem(
            pod,
            Reason::ImagePullFailed,
            status,
            format!(
                "image {} of container {} cannot be pulled: correct its name, or give a pull secret in spec.image.pullSecrets; `kubectl describe pod {}` says what the registry answered",
                status.image,
                status.name,
                pod.name_any()
            ),
        )),
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => Some(problem(
            pod,
            Reason::ContainerCrashing,
            status,
            format!("container {} cannot be started: {detail}", status.name),
        )),
        _ => crashing(pod, status, reason, now),
    }
}

fn crashing(pod: &Pod, status: &ContainerStatus, reason: &str, now: Timestamp) -> Option<Problem> {
    let ended = |state: &Option<ContainerState>| state.as_ref().and_then(|state| state.terminated.clone());
    let ended = ended(&status.last_state).or_else(|| ended(&status.state));
    let finished = ended.as_ref().and_then(|ended| Some(ended.finished_at.as_ref()?.0));
    let recent = finished.and_then(|finished| after(finished, RECENT)).is_none_or(|until| now < until);
    if reason != "CrashLoopBackOff" && (status.restart_count < CRASHES || !recent) {
        return None;
    }
    // Without the number of restarts: a message that counts is a status that never rests.
    let how = match ended {
        Some(ended) if ended.exit_code == EXIT_BAD_CONFIGURATION => {
            "refuses its settings (exit code 64)".to_owned()
        }
        Some(ended) => format!("ends again and again with exit code {}", ended.exit_code),
        None => "ends again and again".to_owned(),
    };
    let message = format!(
        "container {name} {how}: see `kubectl logs {pod} -c {name} --previous`",
        name = status.name,
        pod = pod.name_any()
    );
    Some(problem(pod, Reason::ContainerCrashing, status, message))
}

fn unschedulable(pod: &Pod, now: Timestamp) -> Option<Problem> {
    let scheduled = condition(pod, "PodScheduled").filter(|_| is_unschedulable(pod))?;
    let waited = unscheduled_since(pod).and_then(|since| after(since, SCHEDULED_WITHIN));
    waited.is_none_or(|until| until <= now).then(|| Problem {
        reason: Reason::Unschedulable,
        object: object(pod),
        key: None,
        message: format!(
            "pod {} finds no Kubernetes node to run on: {}",
            pod.name_any(),
            scheduled.message.as_deref().unwrap_or("no reason was given")
        ),
    })
}

fn late(pod: &Pod, look: Look<'_>) -> Option<Problem> {
    (after(unready_since(pod)?, look.deadline)? <= look.at).then(|| Problem {
        reason: Reason::NotReadyInTime,
        object: object(pod),
        key: None,
        message: format!(
            "pod {name} is not ready for {} s: {}; see `kubectl describe pod {name}`",
            look.deadline.as_secs(),
            waits_for(pod, look.mount),
            name = pod.name_any(),
        ),
    })
}

/// What a pod that is late waits for.
fn waits_for(pod: &Pod, mount: Option<&str>) -> String {
    let gates = pod.spec.iter().flat_map(|spec| spec.scheduling_gates.iter().flatten());
    let gates: Vec<_> = gates.map(|gate| gate.name.as_str()).collect();
    if !gates.is_empty() {
        return format!("its scheduling gate {} is still set", gates.join(", "));
    }
    if pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none()) {
        return "no scheduler has looked at it".to_owned();
    }
    if let Some(mount) = mount {
        return format!("its volume is not there: {}", mount.trim());
    }
    let mut init = pod.status.iter().flat_map(|status| status.init_container_statuses.iter().flatten());
    let sidecars: Vec<_> = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten()).collect();
    let stays = |name: &str| {
        sidecars.iter().any(|init| init.name == name && init.restart_policy.as_deref() == Some("Always"))
    };
    let ended = |status: &&ContainerStatus| {
        status.state.as_ref().is_some_and(|state| state.terminated.is_some())
            || (stays(&status.name) && status.started == Some(true))
    };
    if let Some(status) = init.find(|status| !ended(status)).filter(|_| phase(pod) == "Pending") {
        let what = if stays(&status.name) { "has not started" } else { "has not ended" };
        return format!("its init container {} {what}", status.name);
    }
    let waiting = containers(pod).find_map(|status| {
        let reason = status.state.as_ref()?.waiting.as_ref()?.reason.as_deref()?;
        Some(format!("its container {} is {reason}", status.name))
    });
    let unready = containers(pod).find(|status| !status.ready);
    let unready = unready.map(|status| format!("its container {} runs and is not ready", status.name));
    waiting.or(unready).unwrap_or_else(|| "the kubelet has not said why".to_owned())
}

fn problem(pod: &Pod, reason: Reason, status: &ContainerStatus, message: String) -> Problem {
    Problem { reason, object: object(pod), key: Some(status.name.clone()), message }
}

fn object(pod: &Pod) -> String {
    format!("Pod/{}", pod.name_any())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:10:00Z".parse().expect("a time")
    }

    fn diagnosed(status: impl Into<Value>) -> Option<Problem> {
        let machine = json!({"nodeName": "m1", "containers": []});
        judged(&json!({"metadata": {"name": "chat-a-1"}, "spec": machine, "status": status.into()}), None)
    }

    fn judged(object: &Value, mount: Option<&str>) -> Option<Problem> {
        let look = Look { at: now(), deadline: Duration::from_secs(120), mount };
        pod(&serde_json::from_value(object.clone()).expect("a pod"), look)
    }

    fn container(rest: &Value) -> Value {
        let mut status = json!({"name": "fanout", "image": "registry/x:1", "imageID": "", "ready": false, "restartCount": 0});
        status.as_object_mut().expect("an object").extend(rest.as_object().expect("an object").clone());
        json!({"phase": "Pending", "containerStatuses": [status]})
    }

    #[test]
    fn an_image_that_cannot_be_pulled_is_named() {
        let problem = diagnosed(container(&json!({"state": {"waiting": {"reason": "ImagePullBackOff"}}})));
        let problem = problem.expect("a problem");
        assert_eq!(problem.reason, Reason::ImagePullFailed);
        assert!(problem.message.contains("registry/x:1"), "{}", problem.message);
    }

    #[test]
    fn a_container_that_ends_again_and_again_is_named_with_its_exit_code() {
        let crash = |code: i32| {
            json!({
                "restartCount": 4,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": code}},
            })
        };
        let problem = diagnosed(container(&crash(1))).expect("a problem");
        assert!(problem.message.contains("exit code 1"), "{}", problem.message);
        let problem = diagnosed(container(&crash(64))).expect("a problem");
        assert!(problem.message.contains("refuses its settings"), "{}", problem.message);
    }

    #[test]
    fn ends_of_long_ago_do_not_make_a_pod_crash() {
        let ended = |at: &str| {
            container(
                &json!({"restartCount": 7, "lastState": {"terminated": {"exitCode": 1, "finishedAt": at}}}),
            )
        };
        assert!(diagnosed(ended("2026-01-01T00:05:00Z")).is_some());
        assert_eq!(diagnosed(ended("2025-12-31T12:00:00Z")), None);
    }

    #[test]
    fn what_a_late_pod_waits_for_is_named_whatever_its_phase() {
        let created = |age: &str, spec: Value, status: Value| json!({"metadata": {"name": "chat-a-1", "creationTimestamp": age}, "spec": spec, "status": status});
        let old = "2026-01-01T00:07:00Z";
        let on = json!({"nodeName": "m1", "containers": []});
        let message = |object: &Value, mount: Option<&str>| judged(object, mount).expect("a problem").message;

        let gated = json!({"containers": [], "schedulingGates": [{"name": "policy/gate"}]});
        let pending = json!({"phase": "Pending"});
        assert!(message(&created(old, gated.clone(), pending.clone()), None).contains("policy/gate"));
        assert_eq!(
            judged(&created("2026-01-01T00:09:00Z", gated, pending.clone()), None),
            None,
            "it is young"
        );

        let mount = "MountVolume.SetUp failed for volume \"cfg\": configmap \"missing\" not found";
        assert!(message(&created(old, on.clone(), pending), Some(mount)).contains(mount));

        let running = json!({"running": {}});
        let init = json!({"name": "wait", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": running});
        let hung = json!({"phase": "Pending", "initContainerStatuses": [init]});
        assert!(message(&created(old, on.clone(), hung), None).contains("init container wait has not ended"));

        let app = json!({"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": running});
        let up = json!({"phase": "Running", "containerStatuses": [app]});
        assert!(message(&created(old, on, up), None).contains("container app runs and is not ready"));
    }

    #[test]
    fn an_app_container_that_ignores_sigterm_is_named() {
        let running = json!({"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"running": {}}});
        let object = json!({
            "metadata": {"name": "chat-a-1", "deletionTimestamp": "2026-01-01T00:15:00Z"},
            "status": {"phase": "Running", "containerStatuses": [running]},
        });
        let pod = serde_json::from_value(object).expect("a pod");
        let since = |time: &str| Some(time.parse().expect("a time"));
        let problem = lingering(&pod, since("2026-01-01T00:09:45Z"), now()).expect("a problem");
        assert_eq!(problem.reason, Reason::ContainerIgnoresTermination);
        assert!(problem.message.contains("container app of pod chat-a-1"), "{}", problem.message);
        assert_eq!(lingering(&pod, since("2026-01-01T00:09:46Z"), now()), None);
        assert_eq!(lingering(&pod, None, now()), None, "its clients are still leaving");
    }

    #[test]
    fn a_pod_without_a_place_is_unschedulable_once_the_scheduler_had_time() {
        let condition = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes"});
        let mut young = condition.clone();
        young["lastTransitionTime"] = json!("2026-01-01T00:09:55Z");
        assert_eq!(diagnosed(json!({"phase": "Pending", "conditions": [young]})), None);
        let problem = diagnosed(json!({"phase": "Pending", "conditions": [condition]})).expect("a problem");
        assert_eq!(problem.reason, Reason::Unschedulable);
        assert!(problem.message.contains("0/2 nodes"), "{}", problem.message);
    }

    #[test]
    fn a_pod_that_starts_is_given_time_and_then_is_late() {
        let since = |at: &str| json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": at}]});
        assert_eq!(diagnosed(since("2026-01-01T00:08:01Z")), None);
        let problem = diagnosed(since("2026-01-01T00:08:00Z")).expect("a problem");
        assert_eq!(problem.reason, Reason::NotReadyInTime);
    }

    #[test]
    fn nothing_is_awaited_of_a_pod_that_has_ended() {
        let ready =
            json!([{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        for phase in ["Failed", "Succeeded"] {
            assert_eq!(diagnosed(json!({"phase": phase, "conditions": ready})), None);
        }
        assert!(diagnosed(json!({"phase": "Running", "conditions": ready})).is_some());
    }

    #[test]
    fn nothing_is_wrong_with_a_pod_that_is_ready_or_begins() {
        assert_eq!(
            diagnosed(json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})),
            None
        );
        assert_eq!(
            diagnosed(container(&json!({"state": {"waiting": {"reason": "ContainerCreating"}}}))),
            None
        );
    }
}
