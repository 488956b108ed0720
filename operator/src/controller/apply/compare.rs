//! Whether an object is already as it should be. Pure.

use kube::api::DynamicObject;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Whether `live` is as `desired` says. The API server adds defaults, and others may add fields of their own; neither
/// counts. Lists count as wholes.
pub(super) fn holds(desired: &Value, live: &DynamicObject) -> bool {
    let mut live = serde_json::to_value(live).expect("a Kubernetes object is JSON");
    // An object that came in a list does not say what it is.
    for said_by_the_list in ["apiVersion", "kind"] {
        live[said_by_the_list] = desired[said_by_the_list].clone();
    }
    is_within(desired, &live)
}

fn is_within(desired: &Value, live: &Value) -> bool {
    match (desired, live) {
        (Value::Object(desired), Value::Object(live)) => desired.iter().all(|(name, value)| {
            live.get(name).map_or_else(|| is_empty(value), |live| is_within(value, live))
        }),
        (Value::Array(desired), Value::Array(live)) => {
            desired.len() == live.len()
                && desired.iter().zip(live).all(|(desired, live)| is_within(desired, live))
        }
        (desired, live) => desired == live,
    }
}

/// What the API server may leave out.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Array(items) => items.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// Hash of what somebody may have edited: the object without its status and without what the API server counts.
pub(super) fn fingerprint(live: &DynamicObject) -> String {
    let mut value = serde_json::to_value(live).expect("a Kubernetes object is JSON");
    if let Some(object) = value.as_object_mut() {
        // Type and status: an object that came in a list does not say what it is.
        ["status", "apiVersion", "kind"].into_iter().for_each(|field| drop(object.remove(field)));
    }
    if let Some(metadata) = value["metadata"].as_object_mut() {
        for counted in ["resourceVersion", "generation", "managedFields"] {
            metadata.remove(counted);
        }
    }
    // serde_json's maps are sorted, so equal objects give equal text.
    hash(value.to_string().as_bytes())
}

/// First 16 hex digits of the SHA-256.
pub(super) fn hash(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> DynamicObject {
        serde_json::from_value(value).expect("a Kubernetes object")
    }

    #[test]
    fn defaults_and_fields_of_others_do_not_count() {
        let desired = json!({"kind": "Service", "metadata": {"name": "a", "labels": {}}, "spec": {"ports": [{"port": 80}]}});
        let live = json!({
            "metadata": {"name": "a", "annotations": {"theirs": "x"}},
            "spec": {"ports": [{"port": 80, "protocol": "TCP"}], "clusterIP": "10.0.0.1"},
        });
        assert!(holds(&desired, &object(live)));
    }

    #[test]
    fn an_edit_an_addition_to_a_list_and_a_removal_count() {
        let desired =
            json!({"metadata": {"name": "a"}, "spec": {"type": "ClusterIP", "ports": [{"port": 80}]}});
        for spec in [
            json!({"type": "NodePort", "ports": [{"port": 80}]}),
            json!({"type": "ClusterIP", "ports": [{"port": 80}, {"port": 81}]}),
            json!({"type": "ClusterIP"}),
        ] {
            assert!(!holds(&desired, &object(json!({"metadata": {"name": "a"}, "spec": spec}))), "{spec}");
        }
    }

    #[test]
    fn a_fingerprint_moves_with_what_people_edit_and_not_with_what_the_server_counts() {
        let base = json!({"metadata": {"name": "a", "resourceVersion": "1"}, "spec": {"x": 1}});
        let counted = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "a", "resourceVersion": "2", "generation": 3}, "spec": {"x": 1}, "status": {"y": 2},
        });
        let edited = json!({"metadata": {"name": "a", "resourceVersion": "1"}, "spec": {"x": 2}});
        assert_eq!(fingerprint(&object(base.clone())), fingerprint(&object(counted)));
        assert_ne!(fingerprint(&object(base)), fingerprint(&object(edited)));
    }
}
