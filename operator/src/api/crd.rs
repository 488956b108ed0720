//! The CustomResourceDefinition as it is installed: kube's derive, brought into the form that this project ships.

use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use super::FanoutCluster;

/// Parts of the spec whose types are Kubernetes' own. They keep their types and lose their descriptions, which
/// would make the CRD seven times as large and too large for `kubectl apply`.
const KUBERNETES_TYPES: [&str; 8] = [
    "/podTemplate",
    "/resources",
    "/redis/properties/managed/properties/affinity",
    "/redis/properties/managed/properties/resources",
    "/redis/properties/managed/properties/tolerations/items",
    "/networkPolicy/properties/apiFrom/items",
    "/networkPolicy/properties/metricsFrom/items",
    "/networkPolicy/properties/egress/items",
];

/// Kinds of volumes whose code has left Kubernetes.
const REMOVED_VOLUMES: [&str; 14] = [
    "awsElasticBlockStore",
    "azureDisk",
    "cephfs",
    "cinder",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

/// The CustomResourceDefinition.
pub fn crd() -> Value {
    let mut crd = serde_json::to_value(FanoutCluster::crd()).expect("a CRD is JSON");
    crd.as_object_mut().expect("a CRD is an object").remove("status");
    let schema = crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema").expect("the CRD has a schema");
    tidy(schema);
    // A rule can name the field at fault only where the schema has it.
    schema["properties"]["metadata"] = json!({"type": "object", "properties": {"name": {"type": "string"}}});
    let spec = schema.pointer_mut("/properties/spec/properties").expect("the schema has a spec");
    for path in KUBERNETES_TYPES {
        strip_descriptions(spec.pointer_mut(path).expect("the path names a field of the spec"));
    }
    shape_pod_template(&mut spec["podTemplate"]);
    spec.as_object_mut()
        .expect("the spec has fields")
        .values_mut()
        .for_each(|field| drop_item_defaults(field, false));
    shape_conditions(&mut schema["properties"]["status"]["properties"]["conditions"]);
    crd
}

/// The CustomResourceDefinition as YAML, with a first line that says where it comes from. The chart holds the same
/// bytes; its annotation `helm.sh/resource-policy` keeps it when the chart goes, for with it every FanoutCluster would.
pub fn yaml() -> String {
    let body = serde_yaml::to_string(&crd()).expect("a CRD is YAML");
    format!("# Made by `fanout-operator crd`; edit operator/src/api instead.\n{body}")
}

/// Rewrites what kube's derive leaves behind: `nullable`, which would store an explicit null; bounds as floats;
/// formats that the API server does not know.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.remove("nullable");
            // Only a schema has a `type` that is text; a property of that name is an object.
            if fields.get("type").is_some_and(Value::is_string) {
                fields.retain(|name, value| {
                    name != "format" || !value.as_str().is_some_and(|f| f.starts_with("uint"))
                });
            }
            fields.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Number(number) => {
            if let Some(whole) = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 9e15) {
                #[expect(clippy::cast_possible_truncation, reason = "the number is whole and small")]
                let whole = whole as i64;
                *number = whole.into();
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// Takes the defaults out of what is an item of a list. `kubectl apply` compares lists as wholes, so that one with
/// defaults filled in differs from its file for ever; the operator reads the same defaults itself.
fn drop_item_defaults(schema: &mut Value, in_item: bool) {
    let Some(fields) = schema.as_object_mut() else { return };
    if in_item {
        fields.remove("default");
    }
    for (name, below) in fields {
        match name.as_str() {
            "items" => drop_item_defaults(below, true),
            "additionalProperties" => drop_item_defaults(below, in_item),
            "properties" => {
                let fields = below.as_object_mut().into_iter().flat_map(|fields| fields.values_mut());
                fields.for_each(|field| drop_item_defaults(field, in_item));
            }
            _ => {}
        }
    }
}

fn strip_descriptions(schema: &mut Value) {
    let own = schema.get("description").cloned();
    strip(schema);
    if let (Some(own), Some(fields)) = (own, schema.as_object_mut()) {
        fields.insert("description".to_owned(), own);
    }
}

fn strip(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else { return };
    fields.remove("description");
    for (name, value) in fields.iter_mut() {
        match name.as_str() {
            "properties" => value.as_object_mut().into_iter().flat_map(Map::values_mut).for_each(strip),
            "items" | "additionalProperties" => strip(value),
            _ => {}
        }
    }
}

/// The pod template: fields of a newer Kubernetes pass through, what makes no sense here is refused with the fix.
fn shape_pod_template(template: &mut Value) {
    template["properties"]["metadata"] = json!({
        "type": "object",
        "properties": {
            "labels": {"type": "object", "maxProperties": 64, "additionalProperties": {"type": "string", "maxLength": 63}},
            "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
        },
        "x-kubernetes-validations": [{
            "rule": "!has(self.labels) || self.labels.all(k, !k.startsWith('fanout.dev/') && !k.startsWith('app.kubernetes.io/'))",
            "message": "labels under fanout.dev/ and app.kubernetes.io/ are set by the operator: use a prefix of your own",
        }],
    });
    let spec = &mut template["properties"]["spec"];
    let fields = spec.as_object_mut().expect("a pod specification is an object");
    fields.remove("required");
    // A pod template cannot have them; they would be a tenth of the CRD.
    fields["properties"].as_object_mut().expect("it has fields").remove("ephemeralContainers");
    fields.insert("x-kubernetes-preserve-unknown-fields".to_owned(), true.into());
    for list in ["containers", "initContainers"] {
        let containers = &mut spec["properties"][list];
        containers["maxItems"] = 16.into();
        containers["items"]["x-kubernetes-preserve-unknown-fields"] = true.into();
        containers["items"]["properties"]["name"]["maxLength"] = 63.into();
        containers["items"]["properties"]["ports"]["maxItems"] = 64.into();
    }
    let volumes = &mut spec["properties"]["volumes"];
    volumes["maxItems"] = 64.into();
    volumes["items"]["x-kubernetes-preserve-unknown-fields"] = true.into();
    let kinds = volumes["items"]["properties"].as_object_mut().expect("a volume has fields");
    // Kinds that Kubernetes has removed; where one still works, it passes through unchecked.
    kinds.retain(|kind, _| !REMOVED_VOLUMES.contains(&kind.as_str()));
    kinds["name"]["maxLength"] = 63.into();
    // A Kubernetes type cannot carry rules beside its field, so the rules of the pod stand here.
    spec["x-kubernetes-validations"] =
        POD_RULES.iter().map(|(rule, message)| json!({"rule": rule, "message": message})).collect();
}

/// Rules of `podTemplate.spec`, each with what to do instead.
const POD_RULES: [(&str, &str); 7] = [
    (
        "!has(self.containers) || self.containers.all(c, c.name != 'fanout')",
        "the container name 'fanout' is reserved for the sidecar: choose another name, or set the sidecar's image and resources in spec.image and spec.resources",
    ),
    (
        "!has(self.initContainers) || self.initContainers.all(c, c.name != 'fanout')",
        "the container name 'fanout' is reserved for the sidecar: choose another name for the init container",
    ),
    (
        "!has(self.volumes) || self.volumes.all(v, !v.name.startsWith('fanout-'))",
        "volume names that start with 'fanout-' are reserved for the operator: choose another name",
    ),
    (
        "!has(self.hostNetwork) || !self.hostNetwork",
        "with hostNetwork the ports of two nodes on one machine would conflict: leave it out and use spec.service",
    ),
    (
        "!has(self.restartPolicy) || self.restartPolicy == 'Always'",
        "nodes must run until they are drained: leave restartPolicy out",
    ),
    (
        "!has(self.terminationGracePeriodSeconds)",
        "set spec.drain.terminationGracePeriodSeconds instead, which drain.timeoutSeconds is validated against",
    ),
    (
        "!has(self.shareProcessNamespace) || !self.shareProcessNamespace",
        "a shared process namespace would expose the sidecar's secrets to your containers: leave it out",
    ),
];

fn shape_conditions(conditions: &mut Value) {
    let item = &mut conditions["items"];
    strip(item);
    item["properties"]["reason"]["pattern"] = r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$".into();
    item["properties"]["message"]["maxLength"] = 32_768.into();
    item["properties"]["status"]["enum"] = json!(["True", "False", "Unknown"]);
}
