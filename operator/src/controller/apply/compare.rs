//! Where an object is not as it should be, and how it would be. Pure.
//!
//! Foreign labels, annotations, finalizers and owners are no drift, nor is a scalar that we do not state: the API server
//! adds defaults and allocates, and other controllers have their say. What is stated whole is compared whole: selectors,
//! data, lists, and what a list is made of. A field in [`DEFAULTS`] that we leave out is compared with its default.

use std::fmt;

use kube::api::DynamicObject;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::api::canonical::amount;

/// Fields that hold quantities, or objects of them.
const QUANTITIES: [&str; 5] = ["requests", "limits", "overhead", "sizeLimit", "divisor"];

/// Fields below which nothing counts but what we state: Kubernetes replaces them whole, or an entry more changes
/// what the others mean.
const EXACT: [&str; 11] = [
    "selector",
    "podSelector",
    "namespaceSelector",
    "labelSelector",
    "nodeSelector",
    "affinity",
    "data",
    "binaryData",
    "limits",
    "requests",
    "tolerations",
];

/// Kinds whose whole `spec` is ours.
const EXACT_SPECS: [&str; 2] = ["NetworkPolicy", "PodDisruptionBudget"];

/// Lists that Kubernetes merges by keys, and these keys. A port of a Service or of a container has the one or the other.
const KEYED: [(&str, &[&str]); 10] = [
    ("containers", &["name"]),
    ("initContainers", &["name"]),
    ("env", &["name"]),
    ("volumes", &["name"]),
    ("imagePullSecrets", &["name"]),
    ("volumeMounts", &["mountPath"]),
    ("volumeDevices", &["devicePath"]),
    ("ports", &["port", "containerPort", "protocol"]),
    ("topologySpreadConstraints", &["topologyKey", "whenUnsatisfiable"]),
    ("ownerReferences", &["uid"]),
];

/// What a key is where an item leaves it out.
const KEY_DEFAULTS: [(&str, &str); 1] = [("protocol", "TCP")];

/// Fields of `spec` that are left out because their default is meant: kind, field, default (`""`: the field is empty).
/// Listed one by one, since the rest of these specs is allocated by the API server, set by a cloud's controllers, or
/// unknown to this version.
const DEFAULTS: [(&str, &str, &str); 16] = [
    ("Service", "allocateLoadBalancerNodePorts", "true"),
    ("Service", "externalIPs", ""),
    ("Service", "externalName", ""),
    ("Service", "externalTrafficPolicy", "Cluster"),
    ("Service", "internalTrafficPolicy", "Cluster"),
    ("Service", "loadBalancerSourceRanges", ""),
    ("Service", "publishNotReadyAddresses", ""),
    ("Service", "sessionAffinity", "None"),
    ("Service", "sessionAffinityConfig.clientIP.timeoutSeconds", "10800"),
    ("Service", "trafficDistribution", ""),
    ("ReplicaSet", "minReadySeconds", ""),
    ("StatefulSet", "minReadySeconds", ""),
    ("StatefulSet", "ordinals", ""),
    ("StatefulSet", "revisionHistoryLimit", "10"),
    ("StatefulSet", "updateStrategy.rollingUpdate.partition", ""),
    ("StatefulSet", "updateStrategy.type", "RollingUpdate"),
];

/// Where a live object differs from what it should be. Items of lists are named by their keys, in brackets:
/// `spec.template.spec.containers[app].env[MODE]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Path(Vec<String>);

/// An object beside what it should be.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Comparison {
    /// Where it differs; empty: it is as it should be.
    pub(super) deviations: Vec<Path>,
    /// The object with every difference undone, and all else as it is.
    pub(super) corrected: Value,
}

/// Where a value stands in its object.
#[derive(Clone)]
struct Place {
    path: Path,
    /// Name of the field, or of the list that an item is in.
    field: String,
    /// Nothing counts here but what we state.
    exact: bool,
    /// The value is a quantity, or holds some: the API server rewrites them.
    amounts: bool,
    /// It is part of a pod's specification, where the API server adds scalars, but no list of its own.
    pod: bool,
}

/// Compares an object with what it should be.
pub(super) fn compare(desired: &Value, live: &DynamicObject) -> Comparison {
    let live = serde_json::to_value(live).expect("a Kubernetes object is JSON");
    let mut corrected = live.clone();
    let mut deviations = Vec::new();
    let kind = desired["kind"].as_str().unwrap_or_default();
    for (name, desired) in desired.as_object().into_iter().flatten() {
        // An object that came in a list does not say what it is.
        if matches!(name.as_str(), "apiVersion" | "kind" | "status") {
            continue;
        }
        let place = Place::root(kind, name);
        let value = match name.as_str() {
            "metadata" => metadata(&place, desired, &live[name], &mut deviations),
            _ => place.correct(desired, &live[name], &mut deviations),
        };
        set(&mut corrected, name, value);
    }
    if kind == "ConfigMap" {
        for foreign in ["data", "binaryData"].into_iter().filter(|field| desired.get(field).is_none()) {
            if !is_empty(&live[foreign]) {
                deviations.push(Path::of(foreign));
                set(&mut corrected, foreign, Value::Null);
            }
        }
    }
    for (_, field, default) in DEFAULTS.iter().filter(|(of, ..)| *of == kind) {
        let path = Path::of(&format!("spec.{field}"));
        let is_default =
            |value: &Value| if default.is_empty() { is_empty(value) } else { is_text(value, default) };
        if path.in_object(desired).is_none() && !path.in_object(&live).is_none_or(is_default) {
            path.remove_from(&mut corrected);
            deviations.push(path);
        }
    }
    Comparison { deviations, corrected }
}

/// Of metadata we state labels, annotations and owners, and share each with others.
fn metadata(place: &Place, desired: &Value, live: &Value, deviations: &mut Vec<Path>) -> Value {
    let mut corrected = live.clone();
    for part in ["labels", "annotations"] {
        if let Some(stated) = desired.get(part) {
            let value = place.child(part).correct(stated, &live[part], deviations);
            set(&mut corrected, part, value);
        }
    }
    let owners = |metadata: &Value| metadata["ownerReferences"].as_array().cloned().unwrap_or_default();
    let (stated, mut present) = (owners(desired), owners(live));
    for owner in &stated {
        let is_it = |known: &&Value| {
            known["uid"] == owner["uid"] && (known["controller"] == true || owner["controller"] != true)
        };
        if !present.iter().any(|known| is_it(&known)) {
            deviations.push(place.path.join("ownerReferences"));
            present.retain(|known| known["uid"] != owner["uid"]);
            present.push(owner.clone());
        }
    }
    if !stated.is_empty() {
        set(&mut corrected, "ownerReferences", Value::Array(present));
    }
    corrected
}

/// A JSON merge patch that makes `from` into `to`; `None` where they are equal.
pub(super) fn merge_patch(from: &Value, to: &Value) -> Option<Value> {
    if from == to {
        return None;
    }
    let (Value::Object(old), Value::Object(new)) = (from, to) else { return Some(to.clone()) };
    let gone = old.keys().filter(|name| !new.contains_key(*name)).map(|name| (name.clone(), Value::Null));
    let changed = new.iter().filter_map(|(name, value)| {
        Some((name.clone(), merge_patch(old.get(name).unwrap_or(&Value::Null), value)?))
    });
    Some(Value::Object(gone.chain(changed).collect()))
}

/// Sets a field, or removes it by null.
fn set(object: &mut Value, name: &str, value: Value) {
    let Some(fields) = object.as_object_mut() else { return };
    if value.is_null() {
        fields.remove(name);
    } else {
        fields.insert(name.to_owned(), value);
    }
}

/// Who owns a field, by what the API server keeps of its managers; we do not count.
pub(super) fn managers(object: &DynamicObject, path: &Path, ours: &str) -> Vec<String> {
    let entries = object.metadata.managed_fields.iter().flatten();
    let others = entries.filter(|entry| entry.subresource.as_deref().unwrap_or_default().is_empty());
    let owners =
        others.filter(|entry| entry.fields_v1.as_ref().is_some_and(|fields| path.is_owned_in(&fields.0)));
    let names = owners.filter_map(|entry| entry.manager.clone()).filter(|manager| manager != ours);
    let mut names: Vec<_> = names.collect();
    names.sort();
    names.dedup();
    names
}

// === impl Path ===

impl Path {
    /// A path of names alone.
    pub(super) fn of(dotted: &str) -> Self {
        Self(dotted.split('.').map(str::to_owned).collect())
    }

    fn join(&self, segment: &str) -> Self {
        Self(self.0.iter().cloned().chain([segment.to_owned()]).collect())
    }

    /// The value at a path of names alone.
    fn in_object<'a>(&self, object: &'a Value) -> Option<&'a Value> {
        self.0.iter().try_fold(object, |value, name| value.get(name))
    }

    fn remove_from(&self, object: &mut Value) {
        let Some((last, parents)) = self.0.split_last() else { return };
        let parent = parents.iter().try_fold(object, |value, name| value.get_mut(name));
        if let Some(fields) = parent.and_then(Value::as_object_mut) {
            fields.remove(last);
        }
    }

    /// Whether it is this field or below it.
    pub(super) fn is_below(&self, field: &Self) -> bool {
        self.0.starts_with(&field.0)
    }

    /// Whether a set of fields (`FieldsV1`) has this one, or something below it.
    fn is_owned_in(&self, fields: &Value) -> bool {
        let mut fields = fields;
        let mut list = "";
        for segment in &self.0 {
            let name = segment.strip_prefix('[').and_then(|item| item.strip_suffix(']'));
            let found = match name {
                None => fields.get(format!("f:{segment}")),
                Some(name) => item_in(fields, list, name),
            };
            let Some(found) = found else {
                // What is below it has this owner as a whole.
                return !list.is_empty() && fields.as_object().is_some_and(serde_json::Map::is_empty);
            };
            (fields, list) = (found, segment);
        }
        true
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, segment) in self.0.iter().enumerate() {
            let dot = if at == 0 || segment.starts_with('[') { "" } else { "." };
            write!(f, "{dot}{segment}")?;
        }
        Ok(())
    }
}

fn item_in<'a>(fields: &'a Value, list: &str, name: &str) -> Option<&'a Value> {
    let (_, keys) = KEYED.iter().find(|(known, _)| *known == list)?;
    let mut items = fields.as_object()?.iter().filter_map(|(key, below)| {
        let parsed: Value = serde_json::from_str(key.strip_prefix("k:")?).ok()?;
        Some((self::key(keys, &parsed), below))
    });
    items.find(|(key, _)| key == name).map(|(_, below)| below)
}

// === impl Place ===

impl Place {
    fn root(kind: &str, name: &str) -> Self {
        Self {
            path: Path::of(name),
            field: name.to_owned(),
            exact: EXACT.contains(&name) || (name == "spec" && EXACT_SPECS.contains(&kind)),
            amounts: false,
            pod: false,
        }
    }

    fn child(&self, name: &str) -> Self {
        Self {
            path: self.path.join(name),
            field: name.to_owned(),
            exact: self.exact || EXACT.contains(&name),
            amounts: self.amounts || QUANTITIES.contains(&name),
            // The specification in a template, not that of the object around it.
            pod: self.pod || (self.field == "template" && name == "spec"),
        }
    }

    fn item(&self, name: &str) -> Self {
        Self { path: self.path.join(&format!("[{name}]")), ..self.clone() }
    }

    /// `live` with every difference from `desired` undone; notes where there was one.
    fn correct(&self, desired: &Value, live: &Value, deviations: &mut Vec<Path>) -> Value {
        match (desired, live) {
            (Value::Object(desired), Value::Object(live)) => self.object(desired, live, deviations),
            (Value::Array(desired), Value::Array(live)) => match self.keys() {
                Some(keys) => self.keyed(keys, desired, live, deviations),
                None => self.list(desired, live, deviations),
            },
            // What the API server may leave out.
            (desired, Value::Null) if is_empty(desired) => Value::Null,
            (desired, live) if desired == live || (self.amounts && is_same_amount(desired, live)) => {
                live.clone()
            }
            (desired, _) => {
                deviations.push(self.path.clone());
                desired.clone()
            }
        }
    }

    fn object(
        &self,
        desired: &Map<String, Value>,
        live: &Map<String, Value>,
        deviations: &mut Vec<Path>,
    ) -> Value {
        let mut corrected = Value::Object(live.clone());
        for (name, value) in desired {
            let live = live.get(name).unwrap_or(&Value::Null);
            let value = self.child(name).correct(value, live, deviations);
            set(&mut corrected, name, value);
        }
        for (name, value) in live.iter().filter(|(name, _)| !desired.contains_key(*name)) {
            if !is_key_default(name, value) && self.child(name).is_foreign(value) {
                deviations.push(self.child(name).path);
                set(&mut corrected, name, Value::Null);
            }
        }
        corrected
    }

    /// Whether a value that we do not state may not be here.
    fn is_foreign(&self, value: &Value) -> bool {
        match value {
            _ if self.exact => !is_empty(value),
            Value::Array(items) => self.pod && !items.is_empty(),
            Value::Object(fields) => {
                self.pod && fields.iter().any(|(name, value)| self.child(name).is_foreign(value))
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        }
    }

    fn keys(&self) -> Option<&'static [&'static str]> {
        let known = KEYED.iter().find(|(list, _)| *list == self.field).map(|(_, keys)| *keys);
        // The ports of a NetworkPolicy have no keys.
        known.filter(|_| !self.exact)
    }

    fn keyed(&self, keys: &[&str], desired: &[Value], live: &[Value], deviations: &mut Vec<Path>) -> Value {
        let [wanted, present] =
            [desired, live].map(|items| items.iter().map(|item| key(keys, item)).collect::<Vec<_>>());
        let before = deviations.len();
        let corrected = desired.iter().zip(&wanted).map(|(item, key)| {
            let place = self.item(key);
            match present.iter().position(|known| known == key) {
                Some(at) => place.correct(item, &live[at], deviations),
                None => {
                    deviations.push(place.path);
                    item.clone()
                }
            }
        });
        let corrected = corrected.collect();
        let foreign = present.iter().filter(|key| !wanted.contains(key));
        deviations.extend(foreign.map(|key| self.item(key).path));
        // The order has a meaning: variables refer to those before them, and init containers run in it.
        if deviations.len() == before && wanted != present {
            deviations.push(self.path.clone());
        }
        Value::Array(corrected)
    }

    fn list(&self, desired: &[Value], live: &[Value], deviations: &mut Vec<Path>) -> Value {
        let mut within = Vec::new();
        let mut inner = self.clone();
        inner.field = String::new();
        let pairs = desired.iter().zip(live);
        let corrected = pairs.map(|(desired, live)| inner.correct(desired, live, &mut within)).collect();
        if desired.len() == live.len() && within.is_empty() {
            return Value::Array(corrected);
        }
        deviations.push(self.path.clone());
        Value::Array(desired.to_vec())
    }
}

/// The key of an item, as it is shown in a path.
fn key(keys: &[&str], item: &Value) -> String {
    let parts = keys.iter().filter_map(|name| match &item[*name] {
        Value::Null => {
            KEY_DEFAULTS.iter().find(|(key, _)| key == name).map(|(_, default)| (*default).to_owned())
        }
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    });
    parts.collect::<Vec<_>>().join("/")
}

/// Whether this is what the API server fills in for a key that is left out.
fn is_key_default(name: &str, value: &Value) -> bool {
    KEY_DEFAULTS.iter().any(|(key, default)| *key == name && value == default)
}

/// Whether a quantity is as large as another.
pub(super) fn is_at_least(quantity: &Value, other: &Value) -> bool {
    amount(quantity).zip(amount(other)).is_some_and(|(one, other)| one >= other)
}

/// Whether two quantities are the same amount: `1024Mi` is stored as `1Gi`, `0.5` as `500m`.
fn is_same_amount(desired: &Value, live: &Value) -> bool {
    amount(desired).is_some_and(|desired| Some(desired) == amount(live))
}

/// What the API server may leave out: the zero values of its types.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Array(items) => items.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
    }
}

/// Whether a scalar reads so.
fn is_text(value: &Value, text: &str) -> bool {
    match value {
        Value::String(value) => value == text,
        Value::Number(value) => value.to_string() == text,
        Value::Bool(value) => value.to_string() == text,
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

/// Hash of a pod's specification in a template, where an object has one.
pub(super) fn pod_hash(object: &DynamicObject) -> Option<String> {
    let pod = object.data.pointer("/spec/template/spec")?;
    Some(hash(pod.to_string().as_bytes()))
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

    fn deviations(desired: &Value, live: Value) -> Vec<String> {
        let live = object(live);
        let Comparison { deviations, corrected } = compare(desired, &live);
        let mended = compare(desired, &object(corrected.clone()));
        assert_eq!(mended.deviations, [], "what is corrected is as it should be: {corrected}");
        assert_eq!(
            deviations.is_empty(),
            corrected == serde_json::to_value(&live).expect("JSON"),
            "{corrected}"
        );
        deviations.iter().map(Path::to_string).collect()
    }

    fn service(spec: &Value) -> Value {
        json!({"kind": "Service", "metadata": {"name": "a"}, "spec": spec})
    }

    fn set(pod: &Value) -> Value {
        json!({"kind": "ReplicaSet", "metadata": {"name": "a"}, "spec": {"template": {"spec": pod}}})
    }

    #[test]
    fn defaults_allocations_and_what_is_shared_with_others_do_not_count() {
        let desired = json!({
            "kind": "Service",
            "metadata": {"name": "a", "labels": {}, "annotations": {"ours": "x"}, "ownerReferences": [{"uid": "u"}]},
            "spec": {"ports": [{"port": 80}], "type": "LoadBalancer"},
        });
        let live = json!({
            "metadata": {"name": "a", "labels": {"theirs": "x"}, "annotations": {"ours": "x", "theirs": "x"},
                "finalizers": ["theirs/x"], "ownerReferences": [{"uid": "u"}, {"uid": "theirs"}]},
            "spec": {"ports": [{"port": 80, "protocol": "TCP", "nodePort": 30_000}], "type": "LoadBalancer",
                "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "healthCheckNodePort": 30_001,
                "loadBalancerClass": "a-cloud/nlb", "allocateLoadBalancerNodePorts": true,
                "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None"},
        });
        assert_eq!(deviations(&desired, live), [""; 0]);
    }

    #[test]
    fn an_owner_that_controls_the_child_no_longer_counts_as_lost() {
        let with = |owners: Value| json!({"metadata": {"name": "a", "ownerReferences": owners}});
        let ours = with(json!([{"uid": "u", "controller": true}]));
        assert_eq!(deviations(&ours, with(json!([{"uid": "u", "controller": true}, {"uid": "x"}]))), [""; 0]);
        for edited in
            [json!([{"uid": "u", "controller": false}]), json!([{"uid": "u"}]), json!([{"uid": "x"}])]
        {
            assert_eq!(deviations(&ours, with(edited)), ["metadata.ownerReferences"]);
        }
    }

    #[test]
    fn a_field_that_is_left_to_its_default_counts_where_it_has_another_value() {
        for (edit, path) in [
            (json!({"internalTrafficPolicy": "Local"}), "spec.internalTrafficPolicy"),
            (json!({"externalTrafficPolicy": "Local"}), "spec.externalTrafficPolicy"),
            (json!({"externalIPs": ["192.0.2.1"]}), "spec.externalIPs"),
            (json!({"loadBalancerSourceRanges": ["192.0.2.0/24"]}), "spec.loadBalancerSourceRanges"),
            (json!({"publishNotReadyAddresses": true}), "spec.publishNotReadyAddresses"),
            (json!({"sessionAffinity": "ClientIP"}), "spec.sessionAffinity"),
            (json!({"allocateLoadBalancerNodePorts": false}), "spec.allocateLoadBalancerNodePorts"),
        ] {
            assert_eq!(
                deviations(&service(&json!({"type": "LoadBalancer"})), service(&edit)).last(),
                Some(&path.to_owned())
            );
        }
        let sticky = json!({"sessionAffinity": "ClientIP"});
        let config = |seconds: u32| json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}});
        assert_eq!(deviations(&service(&sticky), service(&config(10_800))), [""; 0]);
        let found = deviations(&service(&sticky), service(&config(1)));
        assert_eq!(found, ["spec.sessionAffinityConfig.clientIP.timeoutSeconds"]);

        let redis = |spec: Value| json!({"kind": "StatefulSet", "metadata": {"name": "a"}, "spec": spec});
        let defaults = json!({"revisionHistoryLimit": 10, "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain"},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}});
        assert_eq!(deviations(&redis(json!({})), redis(defaults)), [""; 0]);
        let held = json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}});
        let found = deviations(&redis(json!({})), redis(held));
        assert_eq!(found, ["spec.updateStrategy.rollingUpdate.partition"]);
        let by_hand = json!({"updateStrategy": {"type": "OnDelete"}, "ordinals": {"start": 1}});
        assert_eq!(
            deviations(&redis(json!({})), redis(by_hand)),
            ["spec.ordinals", "spec.updateStrategy.type"]
        );
    }

    #[test]
    fn an_edit_a_removal_and_an_addition_to_what_is_ours_alone_count() {
        let ours = json!({"type": "ClusterIP", "selector": {"a": "b"}, "ports": [{"name": "c", "port": 80}]});
        for (edit, path) in [
            (json!({"type": "NodePort"}), "spec.type"),
            (json!({"selector": {"a": "b", "more": "x"}}), "spec.selector.more"),
            (json!({"selector": null}), "spec.selector"),
            (json!({"ports": [{"name": "c", "port": 80}, {"name": "d", "port": 81}]}), "spec.ports[81/TCP]"),
        ] {
            let mut live = ours.clone();
            live.as_object_mut().expect("an object").extend(edit.as_object().expect("an object").clone());
            assert_eq!(deviations(&service(&ours), service(&live)), [path]);
        }
        let moved =
            json!({"type": "ClusterIP", "selector": {"a": "b"}, "ports": [{"name": "c", "port": 81}]});
        assert_eq!(
            deviations(&service(&ours), service(&moved)),
            ["spec.ports[80/TCP]", "spec.ports[81/TCP]"]
        );
    }

    #[test]
    fn a_settings_document_and_a_policy_are_ours_whole() {
        let desired = json!({"kind": "ConfigMap", "metadata": {}, "data": {"live.yaml": "x"}});
        let live =
            json!({"metadata": {}, "data": {"live.yaml": "x", "more": "y"}, "binaryData": {"b": "eA=="}});
        assert_eq!(deviations(&desired, live), ["data.more", "binaryData"]);
        let policy = |spec: Value| json!({"kind": "NetworkPolicy", "metadata": {}, "spec": spec});
        let ours = json!({"podSelector": {"matchLabels": {"a": "b"}}, "ingress": [{"ports": [{"port": 1}]}]});
        let mut more = ours.clone();
        more["podSelector"]["matchExpressions"] = json!([{"key": "never", "operator": "Exists"}]);
        more["egress"] = json!([{}]);
        let found = deviations(&policy(ours.clone()), policy(more));
        assert_eq!(found, ["spec.podSelector.matchExpressions", "spec.egress"]);
        let mut opened = ours.clone();
        opened["ingress"] = json!([{"ports": [{"port": 1}]}, {}]);
        assert_eq!(deviations(&policy(ours), policy(opened)), ["spec.ingress"]);

        let egress = json!({"podSelector": {}, "egress": [{"ports": [{"port": 443}]}]});
        let mut stored = egress.clone();
        stored["egress"][0]["ports"][0]["protocol"] = json!("TCP");
        assert_eq!(deviations(&policy(egress.clone()), policy(stored.clone())), [""; 0], "it is the default");
        stored["egress"][0]["ports"][0]["protocol"] = json!("UDP");
        assert_eq!(deviations(&policy(egress), policy(stored)), ["spec.egress"]);
    }

    #[test]
    fn what_is_added_to_a_pod_counts_but_for_scalars() {
        let ours =
            json!({"containers": [{"name": "fanout", "env": [{"name": "A", "value": ""}], "stdin": false}]});
        let defaulted = json!({"restartPolicy": "Always", "securityContext": {},
            "containers": [{"name": "fanout", "env": [{"name": "A"}], "terminationMessagePath": "/dev/x"}]});
        assert_eq!(deviations(&set(&ours), set(&defaulted)), [""; 0]);
        let with = |change: &dyn Fn(&mut Value)| {
            let mut pod = defaulted.clone();
            change(&mut pod);
            deviations(&set(&ours), set(&pod))
        };
        assert_eq!(
            with(&|pod| pod["containers"][0]["env"] = json!([{"name": "B"}, {"name": "A"}])),
            ["spec.template.spec.containers[fanout].env[B]"]
        );
        assert_eq!(
            with(&|pod| pod["containers"].as_array_mut().expect("a list").push(json!({"name": "spy"}))),
            ["spec.template.spec.containers[spy]"]
        );
        for (field, value) in [
            ("initContainers", json!([{"name": "first"}])),
            ("tolerations", json!([{"operator": "Exists"}])),
            ("nodeSelector", json!({"disk": "ssd"})),
            ("affinity", json!({"nodeAffinity": {"x": [1]}})),
        ] {
            let found = with(&|pod| pod[field] = value.clone());
            assert_eq!(found, [format!("spec.template.spec.{field}")]);
        }
        assert_eq!(
            with(&|pod| pod["containers"][0]["resources"] = json!({"limits": {"cpu": "1"}})),
            ["spec.template.spec.containers[fanout].resources"]
        );
    }

    #[test]
    fn the_order_of_variables_counts() {
        let pod = |names: [&str; 2]| json!({"containers": [{"name": "c", "env": names.map(|name| json!({"name": name, "value": "x"}))}]});
        let found = deviations(&set(&pod(["A", "B"])), set(&pod(["B", "A"])));
        assert_eq!(found, ["spec.template.spec.containers[c].env"]);
    }

    #[test]
    fn a_quantity_is_compared_by_its_amount_and_a_label_by_its_text() {
        let holds = |desired: &Value, live: Value| deviations(desired, live).is_empty();
        for (desired, live) in [
            (json!("1024Mi"), "1Gi"),
            (json!("0.5"), "500m"),
            (json!(0.5), "500m"),
            (json!(2), "2"),
            (json!("1.5Gi"), "1536Mi"),
            (json!("1e3"), "1k"),
            (json!("1E"), "1000P"),
            (json!("0.1"), "100m"),
        ] {
            let with = |amount: &Value| json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "resources": {"limits": {"memory": amount}}}]}});
            assert!(holds(&with(&desired), with(&json!(live))), "{desired} {live}");
        }
        let with = |amount: &str| json!({"metadata": {"name": "a"}, "spec": {"resources": {"limits": {"memory": amount}}}});
        for live in ["1Mi", "1G", "1025Mi", "much"] {
            assert!(!holds(&with("1Gi"), with(live)), "{live}");
        }
        let labelled = |label: &str| json!({"metadata": {"name": "a", "labels": {"x": label}}});
        assert!(!holds(&labelled("1024Mi"), labelled("1Gi")));
    }

    #[test]
    fn a_merge_patch_makes_the_one_into_the_other() {
        let from = json!({"a": 1, "b": {"c": [1, 2], "d": 1}, "e": {"f": 1}});
        let to = json!({"a": 1, "b": {"c": [1], "d": 1}, "g": 1});
        assert_eq!(merge_patch(&from, &to), Some(json!({"b": {"c": [1]}, "e": null, "g": 1})));
        assert_eq!(merge_patch(&to, &to), None);
    }

    #[test]
    fn whose_field_it_is_is_read_from_the_managers() {
        let managed = |manager: &str, fields: Value| json!({"manager": manager, "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": fields});
        let live = object(json!({"metadata": {"managedFields": [
            managed("fanout-operator", json!({"f:spec": {"f:ports": {"k:{\"port\":81,\"protocol\":\"TCP\"}": {}}}})),
            managed("kubectl-edit", json!({"f:spec": {"f:ports": {"k:{\"port\":81,\"protocol\":\"TCP\"}": {".": {}}}}})),
            managed("other", json!({"f:spec": {"f:type": {}}})),
        ]}}));
        let port = Path::of("spec.ports").join("[81/TCP]");
        assert_eq!(managers(&live, &port, "fanout-operator"), ["kubectl-edit"]);
        assert_eq!(managers(&live, &Path::of("spec.type"), "fanout-operator"), ["other"]);
        assert_eq!(
            managers(&live, &Path::of("spec.type.part"), "fanout-operator"),
            ["other"],
            "it is owned whole"
        );
        assert_eq!(managers(&live, &Path::of("spec.selector"), "fanout-operator"), [""; 0]);
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
