//! The managed Redis as it was rendered last. It is stored beside what it stands for and only the plan moves it, as a
//! revision, so that a newer operator with another default image, probe or command line restarts no Redis.

use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use kube::{ResourceExt, api::DynamicObject};
use serde_json::Value;
use tracing::warn;

use super::act::{bare, described};
use crate::{
    api::FanoutCluster,
    controller::dereference::Found,
    plan::{DesiredRedis, Observed},
    redis::managed,
    resources::labels::{self, RENDERED},
};

const DIGEST: &str = "/spec/template/metadata/annotations/fanout.dev~1password-digest";

/// Fields of a StatefulSet that cannot be changed.
const FIXED: [&str; 4] = ["selector", "serviceName", "podManagementPolicy", "volumeClaimTemplates"];

/// A StatefulSet and what it stands for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StoredRedis {
    /// Without the annotations that hold this.
    stateful_set: Value,
    spec: Value,
}

// === impl StoredRedis ===

impl StoredRedis {
    /// As this operator renders it.
    pub(super) fn rendered(stateful_set: &StatefulSet, spec: Value) -> Self {
        let stateful_set = serde_json::to_value(stateful_set).expect("a Kubernetes object is JSON");
        Self { stateful_set, spec }
    }

    /// What a StatefulSet says of itself. One that says nothing, or nothing that can be used, was made before it was
    /// stored, or was edited: it is what is there.
    pub(super) fn of(cluster: &FanoutCluster, live: &DynamicObject, rendered: &Self) -> Self {
        let parsed = |name: &str| serde_json::from_str::<Value>(live.annotations().get(name)?.as_str()).ok();
        let Some(stateful_set) = parsed(RENDERED).and_then(|stored| checked(stored, cluster, live, rendered))
        else {
            return Self::adopt(cluster, live, rendered);
        };
        match parsed(labels::REDIS_SPEC) {
            Some(spec) if managed::is_as_spec_says(&stateful_set["spec"]["template"], &spec) => {
                Self { stateful_set, spec }
            }
            _ => Self::standing_for(stateful_set, rendered),
        }
    }

    /// What is there.
    pub(super) fn adopt(cluster: &FanoutCluster, live: &DynamicObject, rendered: &Self) -> Self {
        warn!(name = live.name_any(), "the managed Redis is not stored and is taken from what is there");
        let mut stateful_set = bare(cluster, live, "StatefulSet");
        stateful_set["spec"]["replicas"] = rendered.stateful_set["spec"]["replicas"].clone();
        if let Some(annotations) = stateful_set["metadata"]["annotations"].as_object_mut() {
            annotations.remove(labels::REDIS_SPEC);
        }
        // One that lost its labels gets them back.
        let labels = rendered.stateful_set["metadata"]["labels"].as_object();
        for (label, value) in labels.into_iter().flatten() {
            stateful_set["metadata"]["labels"][label] = value.clone();
        }
        Self::standing_for(stateful_set, rendered)
    }

    /// One that does not say what it stands for. Where it differs from what the spec says itself, that is nothing, and
    /// the plan moves it: to what this operator renders, which always stands.
    fn standing_for(stateful_set: Value, rendered: &Self) -> Self {
        let stands = managed::is_as_spec_says(&stateful_set["spec"]["template"], &rendered.spec)
            || is_same_pod(&stateful_set, &rendered.stateful_set);
        Self { stateful_set, spec: if stands { rendered.spec.clone() } else { Value::Null } }
    }

    /// What it is moved to: for another password the same pod, for another spec what this operator renders; that not while
    /// the spec is held back.
    pub(super) fn moved_to(&self, rendered: &Self, is_held: bool) -> Self {
        if !is_held && !managed::stands_for(&self.spec, &rendered.spec) {
            return rendered.clone();
        }
        let mut moved = self.clone();
        let template = &mut moved.stateful_set["spec"]["template"]["metadata"];
        template["annotations"][labels::PASSWORD] = rendered.digest().into();
        moved
    }

    /// The object to apply.
    pub(super) fn object(&self) -> Value {
        let mut object = self.stateful_set.clone();
        let annotations = &mut object["metadata"]["annotations"];
        annotations[RENDERED] = Value::String(self.stateful_set.to_string());
        annotations[labels::REDIS_SPEC] = Value::String(self.spec.to_string());
        object
    }

    /// What the plan is to bring it to.
    pub(super) fn desired(&self, replace_after: Option<Duration>) -> DesiredRedis {
        DesiredRedis { spec: self.spec.clone(), password: self.digest().to_owned(), replace_after }
    }

    fn digest(&self) -> &str {
        self.stateful_set.pointer(DIGEST).and_then(Value::as_str).unwrap_or_default()
    }
}

/// An annotation is input: what it describes has to be this object, and no more of it is taken than we write. There is
/// one server, whatever it says: two would each have half of the clients.
fn checked(
    stored: Value,
    cluster: &FanoutCluster,
    live: &DynamicObject,
    rendered: &StoredRedis,
) -> Option<Value> {
    let mut stored = described::<StatefulSet>(stored, cluster, live, "StatefulSet").ok()?;
    let containers = stored["spec"]["template"]["spec"]["containers"].as_array();
    containers.filter(|containers| !containers.is_empty())?;
    let is_kept = |field: &&str| {
        let stated = &stored["spec"][*field];
        stated.is_null() || *stated == live.data["spec"][*field]
    };
    if !FIXED.iter().all(is_kept) {
        return None;
    }
    stored["spec"]["replicas"] = rendered.stateful_set["spec"]["replicas"].clone();
    Some(stored)
}

/// Whether the pods of two StatefulSets are the same but for the password.
fn is_same_pod(one: &Value, other: &Value) -> bool {
    let [one, other] = [one, other].map(|set| {
        let mut template = set["spec"]["template"].clone();
        let annotations = template.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut);
        annotations.into_iter().for_each(|annotations| drop(annotations.remove(labels::PASSWORD)));
        template
    });
    one == other
}

/// What exists, with the managed Redis as it was rendered: what its annotations say may have been edited.
pub(super) fn observed(cluster: &FanoutCluster, found: &Found, rendered: Option<&StoredRedis>) -> Observed {
    let mut observed = found.observed();
    if let (Some(redis), Some(rendered)) = (&mut observed.redis, rendered)
        && let Some(live) = found.child("StatefulSet", &redis.set)
    {
        let stored = StoredRedis::of(cluster, live, rendered);
        redis.password = stored.digest().to_owned();
        redis.spec = Some(stored.spec);
    }
    observed
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::controller::build::OperatorConfig;

    #[test]
    fn what_was_stored_of_any_spec_is_what_it_was() {
        let pod = json!({
            "image": "redis:8", "resources": {"limits": {"memory": "1024Mi"}}, "storage": {"size": "1Gi"},
            "nodeSelector": {"disk": "ssd"}, "tolerations": [{"operator": "Exists"}], "priorityClassName": "high",
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "disk", "operator": "Exists"}]},
            ]}}},
        });
        let given = json!({
            "labels": {"team": "chat", "app.kubernetes.io/name": "theirs"}, "annotations": {"owner": "x"},
        });
        for (managed, given) in [(json!({}), json!({})), (pod, given)] {
            let cluster = json!({
                "apiVersion": "fanout.dev/v1alpha1", "kind": "FanoutCluster",
                "metadata": {"name": "chat", "namespace": "web", "uid": "u"},
                "spec": {"redis": {"managed": managed}, "childMetadata": given,
                    "image": {"pullSecrets": [{"name": "registry"}]}},
            });
            let cluster: FanoutCluster = serde_json::from_value(cluster).expect("a cluster");
            let of = |image: &str| {
                let config = OperatorConfig { redis_image: image.to_owned(), ..OperatorConfig::default() };
                let redis = managed::resources(&cluster, &config).expect("one is asked for");
                StoredRedis::rendered(&managed::sealed(redis.stateful_set, "digest"), redis.canonical)
            };
            let (older, rendered) = (of("redis:7"), of("redis:9"));
            let live: DynamicObject = serde_json::from_value(older.object()).expect("an object");
            assert_eq!(StoredRedis::of(&cluster, &live, &rendered), older);
            let mut live = live;
            live.annotations_mut().insert(labels::REDIS_SPEC.to_owned(), "{}".to_owned());
            assert_eq!(StoredRedis::of(&cluster, &live, &rendered), older);
            live.annotations_mut().remove(RENDERED);
            let adopted = StoredRedis::of(&cluster, &live, &rendered);
            assert_eq!(adopted.spec, older.spec);
            let template = |of: &StoredRedis| of.stateful_set["spec"]["template"].clone();
            assert_eq!(
                template(&adopted.moved_to(&rendered, false)),
                template(&older),
                "no other image, and no restart"
            );
            let unknown = StoredRedis { spec: Value::Null, ..older.clone() };
            assert_eq!(
                template(&unknown.moved_to(&rendered, true)),
                template(&older),
                "nor while it is held back"
            );
        }
    }
}
