//! Which field of the FanoutCluster stands behind a field of a child that the API server refused. Pure.

use kube::core::response::{Status, StatusCause};
use serde_json::Value;

use crate::resources::replica_set::CONTAINER;

/// Begin of what server-side apply says of an object that does not fit its schema: a field that is not known or of another
/// type, a key that is twice in a list. The answer names no cause, and its code is that of a failure.
const NO_TYPED_OBJECT: &str = "failed to create typed patch object (";

/// The fields of the FanoutCluster that the API server means, as `spec.podTemplate.spec.containers[app].image`.
pub(crate) fn of_cluster(child: &Value, status: &Status) -> Vec<String> {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let named: Vec<_> =
        causes.map(|StatusCause { field, .. }| field.as_str()).filter(|field| !field.is_empty()).collect();
    let named = if named.is_empty() { untyped(&status.message) } else { named };
    let mut fields: Vec<_> =
        named.into_iter().filter_map(|field| behind(child, &segments(child, field))).collect();
    if fields.is_empty() {
        fields.extend(behind(child, &[]));
    }
    let mut told = Vec::new();
    fields.retain(|field| {
        !told.contains(field) && {
            told.push(field.clone());
            true
        }
    });
    fields
}

/// Whether the API server refused an object for what it is, whatever its code says: it answers one that does not fit its
/// schema with 500.
pub(crate) fn is_invalid(status: &Status) -> bool {
    matches!(status.code, 400 | 413 | 422) || status.message.contains(NO_TYPED_OBJECT)
}

/// Whether an admission webhook or policy rejected the request. It judges the change, not the object: another change of the
/// same object may pass.
pub(crate) fn is_denied(status: &Status) -> bool {
    ["admission webhook", "ValidatingAdmissionPolicy", "denied the request"]
        .iter()
        .any(|words| status.message.contains(words))
}

/// The fields of an object that does not fit its schema: behind the name of the object one `<path>: <what is wrong>`, or
/// `errors:` and a line of that kind for each.
fn untyped(message: &str) -> Vec<&str> {
    let Some((_, said)) = message.split_once(NO_TYPED_OBJECT) else { return Vec::new() };
    let Some((_, errors)) = said.split_once("): ") else { return Vec::new() };
    let paths = errors.lines().filter_map(|line| line.trim_start().split_once(": "));
    paths.map(|(path, _)| path).filter(|path| path.starts_with('.')).collect()
}

/// A path in parts. An item is named: `containers[0]` and `containers[name="app"]` are `containers`, `[app]`.
fn segments(child: &Value, field: &str) -> Vec<String> {
    let mut here = child;
    let mut parts = Vec::new();
    let mut in_item = false;
    // The key of an item may hold a dot.
    let is_dot = |char: char| {
        in_item = char == '[' || (in_item && char != ']');
        char == '.' && !in_item
    };
    for part in field.trim_start_matches('.').split(is_dot) {
        let (name, items) = part.split_once('[').map_or((part, None), |(name, items)| (name, Some(items)));
        here = &here[name];
        parts.push(name.to_owned());
        for item in items.into_iter().flat_map(|items| items.trim_end_matches(']').split("][")) {
            let named = item.split_once("name=").map(|(_, name)| name.trim_matches('"').to_owned());
            let at = item.parse::<usize>().ok();
            here = at.map_or(&Value::Null, |at| &here[at]);
            let name = named.or_else(|| here["name"].as_str().map(str::to_owned));
            parts.push(format!("[{}]", name.as_deref().unwrap_or(item)));
        }
    }
    parts
}

fn behind(child: &Value, path: &[String]) -> Option<String> {
    let name = child["metadata"]["name"].as_str().unwrap_or_default();
    let path: Vec<_> = path.iter().map(String::as_str).collect();
    match child["kind"].as_str()? {
        "ReplicaSet" => Some(of_pod(&path)),
        "StatefulSet" => Some(of_redis(&path)),
        "Service" if name.ends_with("-api") || name.ends_with("-nodes") => Some("spec.hub.ports".to_owned()),
        "Service" => Some(match path[..] {
            ["spec", "ports", ..] => "spec.service.port".to_owned(),
            ["spec", field, ..] => format!("spec.service.{field}"),
            ["metadata", "annotations", ..] => "spec.service.annotations".to_owned(),
            _ => "spec.service".to_owned(),
        }),
        "PersistentVolumeClaim" => Some(match path[..] {
            ["spec", "storageClassName", ..] => "spec.redis.managed.storage.storageClassName".to_owned(),
            ["spec", "resources", ..] => "spec.redis.managed.storage.size".to_owned(),
            _ => "spec.redis.managed.storage".to_owned(),
        }),
        "NetworkPolicy" => Some("spec.networkPolicy".to_owned()),
        "PodDisruptionBudget" => Some("spec.disruption.podDisruptionBudget".to_owned()),
        "ConfigMap" if name.ends_with("-live") => Some("spec.namespaces".to_owned()),
        _ => None,
    }
}

fn of_pod(path: &[&str]) -> String {
    let sidecar = format!("[{CONTAINER}]");
    match path {
        ["spec", "template", "spec", "containers" | "initContainers", item, rest @ ..]
            if *item == sidecar =>
        {
            match rest.first() {
                Some(&"resources") => join("spec", rest),
                Some(&"image" | &"imagePullPolicy") => "spec.image".to_owned(),
                _ => "spec".to_owned(),
            }
        }
        ["spec", "template", "spec", "terminationGracePeriodSeconds"] => {
            "spec.drain.terminationGracePeriodSeconds".to_owned()
        }
        ["spec", "template", rest @ ..] => join("spec.podTemplate", rest),
        _ => "spec.podTemplate".to_owned(),
    }
}

fn of_redis(path: &[&str]) -> String {
    match path {
        ["spec", "template", "spec", "containers", _, rest @ ..] => match rest.first() {
            Some(&"image" | &"resources") => join("spec.redis.managed", rest),
            _ => "spec.redis.managed".to_owned(),
        },
        _ => "spec.redis.managed".to_owned(),
    }
}

fn join(root: &str, rest: &[&str]) -> String {
    rest.iter().fold(root.to_owned(), |path, part| {
        let dot = if part.starts_with('[') { "" } else { "." };
        format!("{path}{dot}{part}")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(code: u16, message: &str, fields: &[&str]) -> Status {
        let causes: Vec<_> = fields
            .iter()
            .map(|field| json!({"reason": "FieldValueInvalid", "message": "", "field": field}))
            .collect();
        let status =
            json!({"code": code, "message": message, "reason": "Invalid", "details": {"causes": causes}});
        serde_json::from_value(status).expect("a status")
    }

    fn set() -> Value {
        json!({"kind": "ReplicaSet", "metadata": {"name": "chat-a"}, "spec": {"template": {"spec": {
            "containers": [{"name": "fanout"}, {"name": "app"}],
            "volumes": [{"name": "fanout-boot"}, {"name": "cache"}],
        }}}})
    }

    #[test]
    fn a_field_of_the_pod_is_one_of_the_pod_template_and_items_are_named() {
        let status = refused(
            422,
            "",
            &[
                "spec.template.spec.containers[1].ports[0].containerPort",
                "spec.template.spec.volumes[1].emptyDir.sizeLimit",
                "spec.template.spec.containers[0].resources.requests",
                "spec.template.spec.containers[1].ports[0].containerPort",
            ],
        );
        assert_eq!(
            of_cluster(&set(), &status),
            [
                "spec.podTemplate.spec.containers[app].ports[0].containerPort",
                "spec.podTemplate.spec.volumes[cache].emptyDir.sizeLimit",
                "spec.resources.requests",
            ]
        );
    }

    #[test]
    fn a_field_that_kubernetes_does_not_know_is_named_and_invalid() {
        let message = "failed to create typed patch object (web/chat-a; apps/v1, Kind=ReplicaSet): \
            .spec.template.spec.containers[name=\"app\"].imag: field not declared in schema";
        let status = refused(500, message, &[]);
        assert!(is_invalid(&status));
        assert_eq!(of_cluster(&set(), &status), ["spec.podTemplate.spec.containers[app].imag"]);
        assert!(!is_invalid(&refused(500, "etcdserver: request timed out", &[])));
    }

    #[test]
    fn a_key_that_is_twice_in_a_list_is_invalid_and_each_place_is_named() {
        let message = "failed to create typed patch object (web/chat-a; apps/v1, Kind=ReplicaSet): errors:\n  \
            .spec.template.spec.containers[name=\"app\"].env: duplicate entries for key [name=\"MODE\"]\n  \
            .spec.template.spec.containers[name=\"app\"].volumeMounts[mountPath=\"/etc/app.d\"].name: expected string, got &value.valueUnstructured{Value:1}\n  \
            .spec.template.spec.imagePullSecrets: element 0: associative list with keys has an element that omits key field \"name\" (and doesn't have default value)";
        let status = refused(500, message, &[]);
        assert!(is_invalid(&status));
        assert_eq!(
            of_cluster(&set(), &status),
            [
                "spec.podTemplate.spec.containers[app].env",
                "spec.podTemplate.spec.containers[app].volumeMounts[mountPath=\"/etc/app.d\"].name",
                "spec.podTemplate.spec.imagePullSecrets",
            ]
        );
        let live = "failed to create typed live object: .spec.x: expected string, got 1";
        assert!(!is_invalid(&refused(500, live, &[])), "what is there does not come from the spec");
    }

    #[test]
    fn other_children_have_fields_too() {
        let of = |kind: &str, name: &str, field: &str| {
            let child = json!({"kind": kind, "metadata": {"name": name}});
            of_cluster(&child, &refused(422, "", &[field])).join(" ")
        };
        assert_eq!(of("Service", "chat", "spec.ports[0].port"), "spec.service.port");
        assert_eq!(of("Service", "chat-api", "spec.ports[0].port"), "spec.hub.ports");
        assert_eq!(
            of("StatefulSet", "chat-redis", "spec.template.spec.containers[0].image"),
            "spec.redis.managed.image"
        );
        let claim = "PersistentVolumeClaim";
        assert_eq!(
            of(claim, "chat-redis", "spec.resources.requests.storage"),
            "spec.redis.managed.storage.size"
        );
        assert_eq!(of(claim, "chat-redis", ""), "spec.redis.managed.storage");
        assert_eq!(of("ServiceAccount", "chat", "metadata.name"), "");
    }
}
