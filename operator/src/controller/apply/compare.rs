//! Whether an object is already as it should be. Pure.

use kube::api::DynamicObject;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Fields that hold quantities, or objects of them.
const QUANTITIES: [&str; 5] = ["requests", "limits", "overhead", "sizeLimit", "divisor"];

/// Whether `live` is as `desired` says. The API server adds defaults, and others may add fields of their own; neither
/// counts. Lists count as wholes.
pub(super) fn holds(desired: &Value, live: &DynamicObject) -> bool {
    let mut live = serde_json::to_value(live).expect("a Kubernetes object is JSON");
    // An object that came in a list does not say what it is.
    for said_by_the_list in ["apiVersion", "kind"] {
        live[said_by_the_list] = desired[said_by_the_list].clone();
    }
    is_within(desired, &live, false)
}

/// `amounts`: what is compared is below a field that holds quantities, which the API server rewrites.
fn is_within(desired: &Value, live: &Value, amounts: bool) -> bool {
    match (desired, live) {
        (Value::Object(desired), Value::Object(live)) => desired.iter().all(|(name, value)| {
            let amounts = amounts || QUANTITIES.contains(&name.as_str());
            live.get(name).map_or_else(|| is_empty(value), |live| is_within(value, live, amounts))
        }),
        (Value::Array(desired), Value::Array(live)) => {
            desired.len() == live.len()
                && desired.iter().zip(live).all(|(desired, live)| is_within(desired, live, amounts))
        }
        (desired, live) => desired == live || (amounts && is_same_amount(desired, live)),
    }
}

/// Whether two quantities are the same amount: `1024Mi` is stored as `1Gi`, `0.5` as `500m`.
fn is_same_amount(desired: &Value, live: &Value) -> bool {
    amount(desired).is_some_and(|desired| Some(desired) == amount(live))
}

/// A quantity in billionths, the finest that Kubernetes keeps; `None` for what is none, or too large for this.
fn amount(quantity: &Value) -> Option<i128> {
    let text = match quantity {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    let end = text.find(|c: char| !c.is_ascii_digit() && !"+-.".contains(c)).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (factor, tenths) = unit(suffix)?;
    let tenths = tenths + 9 - i32::try_from(fraction.len()).ok()?;
    let scale = 10_i128.checked_pow(tenths.unsigned_abs())?;
    let scaled = digits.checked_mul(factor)?;
    if tenths >= 0 { scaled.checked_mul(scale) } else { (scaled % scale == 0).then_some(scaled / scale) }
}

/// What a suffix multiplies by: a power of two, and a power of ten.
fn unit(suffix: &str) -> Option<(i128, i32)> {
    const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    const DECIMAL: [(&str, i32); 10] = [
        ("n", -9),
        ("u", -6),
        ("m", -3),
        ("", 0),
        ("k", 3),
        ("M", 6),
        ("G", 9),
        ("T", 12),
        ("P", 15),
        ("E", 18),
    ];
    let binary = BINARY.iter().zip(1..).find(|(name, _)| **name == suffix);
    let decimal = DECIMAL.iter().find(|(name, _)| *name == suffix);
    let exponent = || suffix.strip_prefix(['e', 'E'])?.parse().ok();
    match (binary, decimal) {
        (Some((_, power)), _) => Some((1 << (10 * power), 0)),
        (None, Some((_, power))) => Some((1, *power)),
        (None, None) => exponent().map(|power| (1, power)),
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
    fn a_quantity_is_compared_by_its_amount_and_a_label_by_its_text() {
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
            let with = |amount: &Value| json!({"metadata": {"name": "a"}, "spec": {"containers": [{"resources": {"limits": {"memory": amount}}}]}});
            assert!(holds(&with(&desired), &object(with(&json!(live)))), "{desired} {live}");
        }
        let with = |amount: &str| json!({"metadata": {"name": "a"}, "spec": {"resources": {"limits": {"memory": amount}}}});
        for live in ["1Mi", "1G", "1025Mi", "much"] {
            assert!(!holds(&with("1Gi"), &object(with(live))), "{live}");
        }
        let labelled = |label: &str| json!({"metadata": {"name": "a", "labels": {"x": label}}});
        assert!(!holds(&labelled("1024Mi"), &object(labelled("1Gi"))));
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
