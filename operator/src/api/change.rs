//! How a change of a field is carried out. Each field of the spec declares it beside its type, by the schema
//! extension `x-fanout-change`; this module reads it back and never lists fields of its own.

use std::{collections::BTreeSet, sync::LazyLock};

use serde_json::{Map, Value};
use sidecar_config::CHANGE_CLASS;

use super::{FanoutClusterSpec, canonical, schema};

/// How a change of a field is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChangeClass {
    /// By the operator, on objects beside the pods.
    Operator,
    /// Running nodes take it over; clients stay.
    Hot,
    /// Running pods are patched; clients stay.
    InPlace,
    /// New pods replace the old ones, at the pace of `updateStrategy` and `drain`.
    Roll,
}

/// A field whose value differs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldChange {
    /// How the change is carried out.
    pub class: ChangeClass,
    /// Where the field is, as `hub.maxMessageBytes`.
    pub path: String,
}

/// With defaults in the same form as the values that they are compared with.
static SPEC_SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let mut schema = schema::plain::<FanoutClusterSpec>();
    let default = schema["properties"]["resources"]["default"].take();
    schema["properties"]["resources"]["default"] = canonical::resources(default);
    schema
});

/// The part of a spec that makes a revision, in its [canonical form](super::canonical): fields of class
/// [`ChangeClass::Roll`] that do not have their default. A field that a newer operator adds with a default is
/// therefore absent, and an upgrade makes no new revision. `version` is always in it, for its default moves.
///
/// A list of which only parts roll (the keys of `auth.jwt`) counts as a set of these parts.
pub fn roll_part(spec: &FanoutClusterSpec) -> Value {
    roll_part_of(&serde_json::to_value(spec).expect("a spec is JSON"))
}

/// The same of a spec in JSON, or of a part of one: what an older operator stored is brought to today's classes.
pub fn roll_part_of(spec: &Value) -> Value {
    let spec = &canonical::spec(spec.clone());
    let mut part = project(&SPEC_SCHEMA, spec).unwrap_or_else(|| Value::Object(Map::new()));
    part["version"] = spec["version"].clone();
    part
}

/// Each field whose value differs between two specs, and how its change is carried out.
pub fn changes(old: &FanoutClusterSpec, new: &FanoutClusterSpec) -> BTreeSet<FieldChange> {
    let [old, new] = [old, new].map(|spec| serde_json::to_value(spec).expect("a spec is JSON"));
    let mut found = BTreeSet::new();
    compare(&SPEC_SCHEMA, &old, &new, "", &mut found);
    found
}

/// Paths of fields that declare no class; none in a schema that is fit to ship.
pub fn unclassified() -> Vec<String> {
    let mut found = Vec::new();
    find_unclassified(&SPEC_SCHEMA, "", &mut found);
    found
}

fn project(schema: &Value, value: &Value) -> Option<Value> {
    if let Some(class) = ChangeClass::declared_in(schema) {
        return (class == ChangeClass::Roll).then(|| value.clone());
    }
    match value {
        Value::Object(fields) => {
            let part: Map<_, _> = fields
                .iter()
                .filter(|(name, value)| schema["properties"][name.as_str()].get("default") != Some(value))
                .filter_map(|(name, value)| {
                    Some((name.clone(), project(&schema["properties"][name.as_str()], value)?))
                })
                .collect();
            (!part.is_empty()).then_some(Value::Object(part))
        }
        Value::Array(items) => {
            let mut parts: Vec<_> = items.iter().filter_map(|item| project(&schema["items"], item)).collect();
            parts.sort_by_key(Value::to_string);
            parts.dedup();
            (!parts.is_empty()).then_some(Value::Array(parts))
        }
        _ => None,
    }
}

fn compare(schema: &Value, old: &Value, new: &Value, path: &str, found: &mut BTreeSet<FieldChange>) {
    if old == new {
        return;
    }
    if let Some(class) = ChangeClass::declared_in(schema) {
        found.insert(FieldChange { class, path: path.to_owned() });
        return;
    }
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        compare(field, &old[name], &new[name], &below(name), found);
    }
    let items = |list: &Value| list.as_array().map_or(0, Vec::len);
    for at in 0..items(old).max(items(new)) {
        compare(&schema["items"], &old[at], &new[at], &format!("{path}[{at}]"), found);
    }
}

fn find_unclassified(schema: &Value, path: &str, found: &mut Vec<String>) {
    if schema.get(CHANGE_CLASS).is_some() {
        if ChangeClass::declared_in(schema).is_none() {
            found.push(path.to_owned());
        }
        return;
    }
    let fields = schema.get("properties").and_then(Value::as_object);
    match (fields, schema.get("items")) {
        (Some(fields), _) => fields.iter().for_each(|(name, field)| {
            find_unclassified(field, format!("{path}.{name}").trim_start_matches('.'), found);
        }),
        (None, Some(items)) => find_unclassified(items, &format!("{path}[]"), found),
        (None, None) => found.push(path.to_owned()),
    }
}

// === impl ChangeClass ===

impl ChangeClass {
    fn declared_in(schema: &Value) -> Option<Self> {
        match schema.get(CHANGE_CLASS)?.as_str()? {
            "operator" => Some(Self::Operator),
            "hot" => Some(Self::Hot),
            "inPlace" => Some(Self::InPlace),
            "roll" => Some(Self::Roll),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(value: Value) -> FanoutClusterSpec {
        serde_json::from_value(value).expect("the spec is good")
    }

    fn told(old: Value, new: Value) -> Vec<(ChangeClass, String)> {
        changes(&spec(old), &spec(new)).into_iter().map(|change| (change.class, change.path)).collect()
    }

    #[test]
    fn equal_specs_differ_in_nothing() {
        assert_eq!(told(json!({}), json!({"replicas": 3})), []);
    }

    #[test]
    fn each_change_is_told_with_its_path_and_its_class() {
        let new = json!({
            "replicas": 5, "logLevel": "debug", "hub": {"ports": {"client": 9000}, "maxMessageBytes": 1},
            "namespaces": [{"name": "default"}], "podTemplate": {"spec": {"nodeSelector": {"a": "b"}}},
        });
        let told = told(json!({}), new);
        let expected = [
            (ChangeClass::Operator, "replicas"),
            (ChangeClass::Hot, "hub.maxMessageBytes"),
            (ChangeClass::Hot, "logLevel"),
            (ChangeClass::Hot, "namespaces"),
            (ChangeClass::Roll, "hub.ports"),
            (ChangeClass::Roll, "podTemplate"),
        ];
        assert_eq!(told, expected.map(|(class, path)| (class, path.to_owned())));
    }

    #[test]
    fn a_change_inside_a_list_is_told_with_its_place() {
        let with = |key: &str, name: &str| {
            let item = json!({"algorithm": "HS256", "secretKeyRef": {"name": name, "key": key}});
            json!({"auth": {"jwt": {"keys": [item]}}})
        };
        let path = "auth.jwt.keys[0].secretKeyRef.";
        assert_eq!(told(with("a", "s"), with("b", "s")), [(ChangeClass::Hot, format!("{path}key"))]);
        assert_eq!(told(with("a", "s"), with("a", "t")), [(ChangeClass::Roll, format!("{path}name"))]);
    }

    #[test]
    fn a_field_with_its_default_is_not_part_of_a_revision_but_the_version_is() {
        assert_eq!(roll_part(&spec(json!({"version": "1"}))), json!({"version": "1"}));
        let part =
            roll_part(&spec(json!({"version": "1", "image": {"tag": "x"}, "hub": {"maxMessageBytes": 1}})));
        assert_eq!(part, json!({"version": "1", "image": {"tag": "x"}}));
    }
}
