//! Why a pod does not become ready, in words that name what to mend. Pure; called by dereference and status.

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{ContainerState, ContainerStatus, Pod},
    jiff::{SignedDuration, Timestamp},
};
use kube::ResourceExt;

use super::{
    dereference::{condition, is_ready, phase},
    validate::Problem,
};
use crate::api::Reason;

/// A pod that is not ready for longer than this will hardly become so. An image of 100 MB and a slow start fit in.
pub const READY_WITHIN: Duration = Duration::from_secs(120);

/// Exit code of a sidecar that refused its settings.
const EXIT_BAD_CONFIGURATION: i32 = 64;

/// Ends of a container after which it counts as crashing, even between two starts.
const CRASHES: i32 = 3;

/// What keeps a pod from being ready; `None` where it is, or where it may still become so by itself.
pub(super) fn pod(pod: &Pod, now: Timestamp) -> Option<Problem> {
    if is_ready(pod) || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let container = containers(pod).find_map(|status| container(pod, status));
    container.or_else(|| unschedulable(pod)).or_else(|| late(pod, now))
}

/// When a pod that is not ready will count as late; `None` where it is ready or ends.
pub(super) fn late_at(pod: &Pod) -> Option<Timestamp> {
    if is_ready(pod) || pod.metadata.deletion_timestamp.is_some() || phase(pod) != "Running" {
        return None;
    }
    let since = condition(pod, "Ready")?.last_transition_time.as_ref()?.0;
    since.checked_add(SignedDuration::try_from(READY_WITHIN).ok()?).ok()
}

fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.iter();
    status.flat_map(|status| {
        let ordinary = status.container_statuses.iter().flatten();
        status.init_container_statuses.iter().flatten().chain(ordinary)
    })
}

fn container(pod: &Pod, status: &ContainerStatus) -> Option<Problem> {
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
        _ => crashing(pod, status, reason),
    }
}

fn crashing(pod: &Pod, status: &ContainerStatus, reason: &str) -> Option<Problem> {
    if reason != "CrashLoopBackOff" && status.restart_count < CRASHES {
        return None;
    }
    let ended = |state: &Option<ContainerState>| state.as_ref().and_then(|state| state.terminated.clone());
    let ended = ended(&status.last_state).or_else(|| ended(&status.state));
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

fn unschedulable(pod: &Pod) -> Option<Problem> {
    let scheduled = condition(pod, "PodScheduled")?;
    (scheduled.status == "False" && scheduled.reason.as_deref() == Some("Unschedulable")).then(|| Problem {
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

fn late(pod: &Pod, now: Timestamp) -> Option<Problem> {
    (late_at(pod)? <= now).then(|| Problem {
        reason: Reason::NotReadyInTime,
        object: object(pod),
        key: None,
        message: format!(
            "pod {name} runs, but is not ready for {} s: see `kubectl describe pod {name}` and its logs",
            READY_WITHIN.as_secs(),
            name = pod.name_any(),
        ),
    })
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
        let object = json!({"metadata": {"name": "chat-a-1"}, "status": status.into()});
        pod(&serde_json::from_value(object).expect("a pod"), now())
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
    fn a_pod_without_a_place_is_unschedulable() {
        let condition = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes"});
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
