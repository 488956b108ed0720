//! One form for all specs that give the same pods: equal quantities are written alike (`1000m` is `1`), and what
//! Kubernetes would have added to a pod template is left out. Without it, a tool that writes a quantity in another
//! way would replace every node. Pure; called where a revision is named or compared.

use serde_json::{Map, Value, json};

/// Fields whose values are quantities, or objects of them.
const QUANTITIES: [&str; 5] = ["requests", "limits", "overhead", "sizeLimit", "divisor"];

/// Defaults of Kubernetes for a pod, a container and a probe that leave a field out.
const POD: [(&str, &str); 3] =
    [("dnsPolicy", "ClusterFirst"), ("restartPolicy", "Always"), ("schedulerName", "default-scheduler")];
const CONTAINER: [(&str, &str); 2] =
    [("terminationMessagePath", "/dev/termination-log"), ("terminationMessagePolicy", "File")];
const PROBE: [(&str, i64); 4] =
    [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)];

/// Mode of the files of a volume, 0644.
const FILE_MODE: i64 = 420;

/// The canonical form of a FanoutCluster's spec, or of a part of one.
pub fn spec(mut spec: Value) -> Value {
    if let Some(resources) = spec.get_mut("resources") {
        quantities(resources, false);
    }
    if let Some(template) = spec.get_mut("podTemplate") {
        pod_template(template);
    }
    spec
}

/// Writes all quantities of container resources, or of what holds some, in one way.
pub fn resources(mut resources: Value) -> Value {
    quantities(&mut resources, false);
    resources
}

fn pod_template(template: &mut Value) {
    quantities(template, false);
    without_nulls(template);
    let Some(pod) = template.get_mut("spec").and_then(Value::as_object_mut) else { return };
    POD.iter().for_each(|(field, default)| leave_out(pod, field, &json!(default)));
    for list in ["initContainers", "containers"] {
        items(pod, list).for_each(container);
    }
    items(pod, "volumes").for_each(volume);
}

fn container(container: &mut Map<String, Value>) {
    CONTAINER.iter().for_each(|(field, default)| leave_out(container, field, &json!(default)));
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let pulled = json!(pull_policy(image));
    leave_out(container, "imagePullPolicy", &pulled);
    items(container, "ports").for_each(|port| leave_out(port, "protocol", &json!("TCP")));
    for entry in items(container, "env") {
        if let Some(field) = entry.get_mut("valueFrom").and_then(|from| from.get_mut("fieldRef")) {
            field.as_object_mut().into_iter().for_each(|field| leave_out(field, "apiVersion", &json!("v1")));
        }
    }
    for name in ["startupProbe", "livenessProbe", "readinessProbe"] {
        if let Some(probe) = container.get_mut(name).and_then(Value::as_object_mut) {
            PROBE.iter().for_each(|(field, default)| leave_out(probe, field, &json!(default)));
            scheme(probe);
        }
    }
    if let Some(lifecycle) = container.get_mut("lifecycle").and_then(Value::as_object_mut) {
        lifecycle.values_mut().filter_map(Value::as_object_mut).for_each(scheme);
    }
}

fn scheme(action: &mut Map<String, Value>) {
    if let Some(get) = action.get_mut("httpGet").and_then(Value::as_object_mut) {
        leave_out(get, "scheme", &json!("HTTP"));
    }
}

fn volume(volume: &mut Map<String, Value>) {
    for kind in ["configMap", "secret", "projected", "downwardAPI"] {
        if let Some(source) = volume.get_mut(kind).and_then(Value::as_object_mut) {
            leave_out(source, "defaultMode", &json!(FILE_MODE));
        }
    }
}

/// When Kubernetes pulls an image of which the container says nothing.
fn pull_policy(image: &str) -> &'static str {
    let name = image.rsplit_once('/').map_or(image, |(_, name)| name);
    match name.split_once(':') {
        _ if name.contains('@') => "IfNotPresent",
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn leave_out(fields: &mut Map<String, Value>, field: &str, default: &Value) {
    if fields.get(field) == Some(default) {
        fields.remove(field);
    }
}

fn items<'a>(
    parent: &'a mut Map<String, Value>,
    list: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    let items = parent.get_mut(list).and_then(Value::as_array_mut);
    items.into_iter().flatten().filter_map(Value::as_object_mut)
}

/// A field that is null is one that is not there.
fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// `amounts`: the value is a quantity, or holds nothing else.
fn quantities(value: &mut Value, amounts: bool) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                quantities(value, amounts || QUANTITIES.contains(&name.as_str()));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| quantities(item, amounts)),
        Value::String(_) | Value::Number(_) if amounts => {
            if let Some(amount) = amount(value) {
                *value = Value::String(plain(amount));
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// An amount in billionths as a decimal number without a suffix.
fn plain(billionths: i128) -> String {
    const ONE: u128 = 1_000_000_000;
    let sign = if billionths < 0 { "-" } else { "" };
    let (whole, rest) = (billionths.unsigned_abs() / ONE, billionths.unsigned_abs() % ONE);
    let text = format!("{sign}{whole}.{rest:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A quantity in billionths, the finest that Kubernetes keeps; `None` for what is none, or too large for this.
pub(crate) fn amount(quantity: &Value) -> Option<i128> {
    let text = match quantity {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    let end = text.find(|c: char| !c.is_ascii_digit() && !"+-.".contains(c)).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (factor, power) = unit(suffix)?;
    let power = power + 9 - i32::try_from(fraction.len()).ok()?;
    let scale = 10_i128.checked_pow(power.unsigned_abs())?;
    let scaled = digits.checked_mul(factor)?;
    if power >= 0 { scaled.checked_mul(scale) } else { (scaled % scale == 0).then_some(scaled / scale) }
}

/// What a suffix multiplies by: a factor, and a power of ten.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn with_container(container: &Value) -> Value {
        spec(json!({"podTemplate": {"spec": {"containers": [container]}}}))
    }

    #[test]
    fn equal_quantities_have_one_form_and_other_text_is_kept() {
        let limits = |amount: Value| resources(json!({"limits": {"cpu": amount}}));
        for (one, other) in [
            (json!("1000m"), json!("1")),
            (json!("1024Mi"), json!("1Gi")),
            (json!(2), json!("2")),
            (json!("0.5"), json!("500m")),
            (json!("1e3"), json!("1k")),
        ] {
            assert_eq!(limits(one.clone()), limits(other), "{one}");
        }
        assert_ne!(limits(json!("1G")), limits(json!("1Gi")));
        assert_eq!(limits(json!("much")), json!({"limits": {"cpu": "much"}}));
        let label = json!({"podTemplate": {"metadata": {"labels": {"size": "1024Mi"}}}});
        assert_eq!(spec(label.clone()), label);
    }

    #[test]
    fn what_kubernetes_would_have_added_to_a_container_is_left_out() {
        let bare = json!({"name": "app", "image": "shop/app:1", "ports": [{"containerPort": 1}], "livenessProbe": {"httpGet": {"port": 1}}});
        let full = json!({
            "name": "app", "image": "shop/app:1", "imagePullPolicy": "IfNotPresent", "terminationMessagePath": "/dev/termination-log",
            "ports": [{"containerPort": 1, "protocol": "TCP"}], "command": null,
            "livenessProbe": {"httpGet": {"port": 1, "scheme": "HTTP"}, "periodSeconds": 10, "timeoutSeconds": 1},
        });
        assert_eq!(with_container(&bare), with_container(&full));
        let image = |image: &str, policy: &str| {
            with_container(&json!({"image": image, "imagePullPolicy": policy}))
                == with_container(&json!({"image": image}))
        };
        assert!(image("host:5000/app", "Always") && image("app:latest", "Always"));
        assert!(image("app@sha256:0", "IfNotPresent") && !image("app:1", "Always"));
    }
}
