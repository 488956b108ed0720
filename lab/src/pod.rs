//! Pods as a test sees them: where they are, whether they are ready.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::Namespace;

/// What tests ask of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its unique id: another one means another pod, whatever its name.
    pub uid: String,
    /// Its address, once it has one.
    pub ip: Option<String>,
    /// The Kubernetes node it is on.
    pub node: Option<String>,
    /// Whether its Ready condition is True.
    pub ready: bool,
    /// Whether its deletion was asked for.
    pub terminating: bool,
    /// Restarts of all its containers together.
    pub restarts: u64,
    /// The object itself.
    pub object: Value,
}

impl Pod {
    fn from_object(object: Value) -> Result<Self> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let statuses = ["/status/containerStatuses", "/status/initContainerStatuses"];
        Ok(Self {
            name: text("/metadata/name").context("a pod without a name")?,
            uid: text("/metadata/uid").context("a pod without a uid")?,
            ip: text("/status/podIP"),
            node: text("/spec/nodeName"),
            ready: condition(&object, "Ready").is_some_and(|status| status == "True"),
            terminating: object.pointer("/metadata/deletionTimestamp").is_some(),
            restarts: statuses
                .iter()
                .filter_map(|pointer| object.pointer(pointer)?.as_array())
                .flatten()
                .filter_map(|status| status["restartCount"].as_u64())
                .sum(),
            object,
        })
    }
}

/// The pods that `selector` finds, in order of their names.
///
/// # Errors
/// When they cannot be listed.
pub async fn pods(namespace: &Namespace, selector: &str) -> Result<Vec<Pod>> {
    let mut list = namespace.get(&["pods", "-l", selector]).await?;
    let items = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
    let mut pods = items.into_iter().map(Pod::from_object).collect::<Result<Vec<_>>>()?;
    pods.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(pods)
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = object.pointer("/status/conditions")?.as_array()?;
    conditions.iter().find(|condition| condition["type"] == kind)?["status"].as_str()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_counts_the_restarts_of_sidecars_too() {
        let pod = Pod::from_object(json!({
            "metadata": {"name": "chat-1", "uid": "u"},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{"restartCount": 1}],
                "initContainerStatuses": [{"restartCount": 2}],
            },
        }))
        .expect("a pod with a name");
        assert!(pod.ready && !pod.terminating);
        assert_eq!(pod.restarts, 3);
    }

    #[test]
    fn a_pod_whose_ready_condition_is_false_is_not_ready() {
        let object = json!({
            "metadata": {"name": "chat-1", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"conditions": [{"type": "Ready", "status": "False"}]},
        });
        let pod = Pod::from_object(object).expect("a pod with a name");
        assert!(!pod.ready && pod.terminating);
    }
}
