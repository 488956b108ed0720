//! From a manifest to the object that the API server would store: by a dry run of the apply that the user is about to
//! make, with defaults, rules and webhooks.

use anyhow::Context;
use fanout_operator::api::FanoutCluster;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::{Map, Value, json};

/// Annotation in which `kubectl apply` keeps what it applied last.
pub(crate) const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Field manager of `kubectl apply`.
const CLIENT_SIDE: &str = "kubectl-client-side-apply";

/// A FanoutCluster as it is and as it would be.
#[derive(Clone, Debug)]
pub(crate) struct Desired {
    /// `None`: there is none yet.
    pub(crate) before: Option<FanoutCluster>,
    pub(crate) after: FanoutCluster,
}

/// How a manifest is applied.
#[derive(Clone, Debug)]
pub(crate) enum Apply {
    /// As `kubectl apply`: what was in the manifest of before and is not in this one is removed.
    ClientSide,
    /// As `kubectl apply --server-side`.
    ServerSide { manager: String, force: bool },
}

// === impl Apply ===

impl Apply {
    pub(crate) fn of(server_side: bool, manager: &str, force: bool) -> Self {
        if server_side { Self::ServerSide { manager: manager.to_owned(), force } } else { Self::ClientSide }
    }
}

/// What a manifest would make of the FanoutCluster of its name.
///
/// # Errors
/// The API server refuses it, in its own words.
pub(crate) async fn applied(
    client: &Client,
    namespace: &str,
    manifest: &Value,
    apply: &Apply,
) -> anyhow::Result<Desired> {
    let name = manifest["metadata"]["name"].as_str().context("the FanoutCluster has no metadata.name")?;
    let api = api(client, namespace);
    let before = api.get_opt(name).await.map_err(said);
    let before = before.with_context(|| format!("failed to read FanoutCluster {namespace}/{name}"))?;
    let after = dry_run(&api, name, before.as_ref(), manifest, apply).await.map_err(said);
    let after = after.with_context(|| format!("FanoutCluster {namespace}/{name} would be refused"))?;
    Ok(Desired { before: before.map(typed).transpose()?, after: typed(after)? })
}

/// A FanoutCluster as it stands.
///
/// # Errors
/// There is none, or it may not be read.
pub(crate) async fn stored(client: &Client, namespace: &str, name: &str) -> anyhow::Result<Desired> {
    let stored = api(client, namespace).get(name).await.map_err(said);
    let stored = typed(stored.with_context(|| format!("failed to read FanoutCluster {namespace}/{name}"))?)?;
    Ok(Desired { before: Some(stored.clone()), after: stored })
}

fn api(client: &Client, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), namespace, &ApiResource::erase::<FanoutCluster>(&()))
}

async fn dry_run(
    api: &Api<DynamicObject>,
    name: &str,
    before: Option<&DynamicObject>,
    manifest: &Value,
    apply: &Apply,
) -> kube::Result<DynamicObject> {
    let params = |manager: &str| PatchParams {
        dry_run: true,
        field_manager: Some(manager.to_owned()),
        ..PatchParams::default()
    };
    match (apply, before) {
        (Apply::ServerSide { manager, force }, _) => {
            let params = PatchParams { force: *force, ..params(manager) };
            api.patch(name, &params, &Patch::Apply(manifest)).await
        }
        (Apply::ClientSide, None) => {
            let params = PostParams { dry_run: true, field_manager: Some(CLIENT_SIDE.to_owned()) };
            let object = serde_json::from_value(manifest.clone()).map_err(kube::Error::SerdeError)?;
            api.create(&params, &object).await
        }
        (Apply::ClientSide, Some(before)) => {
            let last = before.annotations().get(LAST_APPLIED);
            let last = last.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_else(|| json!({}));
            let patch = three_way(&last, &completed(manifest, before), &json!(before));
            if patch == json!({}) {
                return Ok(before.clone());
            }
            api.patch(name, &params(CLIENT_SIDE), &Patch::Merge(patch)).await
        }
    }
}

/// A manifest with the namespace and the annotations that `kubectl apply` gives it, so that neither counts as taken out.
fn completed(manifest: &Value, before: &DynamicObject) -> Value {
    let mut manifest = manifest.clone();
    let metadata = &mut manifest["metadata"];
    metadata["namespace"] = json!(before.metadata.namespace);
    if !metadata["annotations"].is_object() {
        metadata["annotations"] = json!({});
    }
    manifest
}

/// The merge patch of `kubectl apply`: what the manifest says, and `null` for what `last` said and it does not.
fn three_way(last: &Value, manifest: &Value, live: &Value) -> Value {
    let (Value::Object(last), Value::Object(manifest)) = (last, manifest) else { return manifest.clone() };
    let gone = last.keys().filter(|field| !manifest.contains_key(*field) && live.get(field).is_some());
    let mut patch: Map<_, _> = gone.map(|field| (field.clone(), Value::Null)).collect();
    for (field, value) in manifest {
        let live = live.get(field);
        if value.is_object() && live.is_some_and(Value::is_object) {
            let last = last.get(field).cloned().filter(Value::is_object).unwrap_or_else(|| json!({}));
            let below = three_way(&last, value, live.unwrap_or(&Value::Null));
            if below != json!({}) {
                patch.insert(field.clone(), below);
            }
        } else if live != Some(value) {
            patch.insert(field.clone(), value.clone());
        }
    }
    Value::Object(patch)
}

/// The API server's words alone: kube's text has all of the answer, twice.
fn said(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => anyhow::Error::msg(status.message),
        error => error.into(),
    }
}

fn typed(object: DynamicObject) -> anyhow::Result<FanoutCluster> {
    let name = object.name_any();
    let kind = FanoutCluster::kind(&());
    let read = serde_json::to_value(object).and_then(serde_json::from_value);
    read.with_context(|| format!("this version of kubectl fanout cannot read {kind} {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_manifest_no_longer_says_is_removed_and_what_others_set_stays() {
        let last =
            json!({"spec": {"replicas": 3, "podTemplate": {"spec": {}}, "hub": {"ports": {}, "x": 1}}});
        let manifest = json!({"spec": {"logLevel": "debug", "hub": {"x": 2}}});
        let live = json!({
            "metadata": {"uid": "u"},
            "spec": {"replicas": 3, "podTemplate": {"spec": {}}, "logLevel": "info",
                "hub": {"ports": {}, "x": 1, "theirs": 7}},
        });
        assert_eq!(
            three_way(&last, &manifest, &live),
            json!({"spec": {"replicas": null, "podTemplate": null, "logLevel": "debug", "hub": {"ports": null, "x": 2}}})
        );
        assert_eq!(
            three_way(&json!({}), &manifest, &live)["spec"].get("replicas"),
            None,
            "it was never ours"
        );
    }

    #[test]
    fn namespace_and_annotations_that_kubectl_adds_by_itself_are_not_taken_out() {
        let last = json!({"metadata": {"name": "chat", "namespace": "web", "annotations": {}}, "spec": {}});
        let before = json!({
            "metadata": {"name": "chat", "namespace": "web", "annotations": {LAST_APPLIED: last.to_string(), "theirs": "x"}},
            "spec": {},
        });
        let manifest = json!({"metadata": {"name": "chat"}, "spec": {}});
        let object = serde_json::from_value(before.clone()).unwrap();
        assert_eq!(three_way(&last, &completed(&manifest, &object), &before), json!({}));
    }

    #[test]
    fn a_manifest_that_says_what_is_there_patches_nothing() {
        let live = json!({"metadata": {"name": "chat", "uid": "u"}, "spec": {"replicas": 3, "redis": {"managed": {"a": 1}}}});
        let manifest = json!({"metadata": {"name": "chat"}, "spec": {"redis": {"managed": {}}}});
        assert_eq!(three_way(&manifest, &manifest, &live), json!({}));
        let list = json!({"spec": {"namespaces": [1]}});
        assert_eq!(
            three_way(&list, &json!({"spec": {"namespaces": [2]}}), &list),
            json!({"spec": {"namespaces": [2]}})
        );
    }
}
