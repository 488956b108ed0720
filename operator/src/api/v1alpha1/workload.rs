//! Types for the pods: their template, how they are replaced and how clients are drained from them.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::{
    api::core::v1::{PodTemplateSpec, ResourceRequirements},
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::all_defaults;

/// Pod template as written by the user. Kept as JSON so that fields of newer Kubernetes versions pass through.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PodTemplate(Map<String, Value>);

/// Labels and annotations added to every object that the operator creates, including the pod of a managed Redis, which
/// restarts when they change. A ReplicaSet keeps those from its creation. For the pods of nodes, use
/// `podTemplate.metadata` instead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChildMetadata {
    /// Labels to add. Keys under `fanout.dev/` and `app.kubernetes.io/` are reserved.
    // The schema validates values: as a CEL rule this would exceed the API server's cost limit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend(
        "maxProperties" = 32,
        "additionalProperties" = {"type": "string", "maxLength": 63, "pattern": LABEL_VALUE},
        "x-fanout-change" = "operator"
    ))]
    #[x_kube(validation = Rule::new("self.all(k, !k.startsWith('fanout.dev/') && !k.startsWith('app.kubernetes.io/'))")
        .message("labels under fanout.dev/ and app.kubernetes.io/ are set by the operator: use a prefix of your own"))]
    pub labels: BTreeMap<String, String>,
    /// Annotations to add. Keys under `fanout.dev/` are reserved.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend(
        "maxProperties" = 32,
        "additionalProperties" = {"type": "string", "maxLength": 16_384},
        "x-fanout-change" = "operator"
    ))]
    #[x_kube(validation = Rule::new("self.all(k, !k.startsWith('fanout.dev/'))")
        .message("annotations under fanout.dev/ are reserved for the operator: use a prefix of your own"))]
    pub annotations: BTreeMap<String, String>,
}

/// Valid values of a label.
const LABEL_VALUE: &str = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";

/// Strategy for replacing nodes when a change requires new pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!string(self.maxSurge).matches('^0+%?$') || !string(self.maxUnavailable).matches('^0+%?$')")
        .message("maxSurge and maxUnavailable are both zero, so no node could ever be replaced: set one of them to 1 or more"),
    // A string equals its own string form; a number does not.
    validation = Rule::new("string(self.maxSurge) == self.maxSurge ? self.maxSurge.matches('^[0-9]{1,3}%$') : self.maxSurge >= 0")
        .message("maxSurge is a number of nodes (1) or a percentage of replicas ('25%')")
        .field_path(".maxSurge"),
    validation = Rule::new("string(self.maxUnavailable) == self.maxUnavailable ? self.maxUnavailable.matches('^([0-9]{1,2}|100)%$') : self.maxUnavailable >= 0")
        .message("maxUnavailable is a number of nodes (1) or a percentage of replicas ('25%', at most 100%)")
        .field_path(".maxUnavailable")
)]
pub struct UpdateStrategy {
    /// Type of the strategy. Defaults to `RollingUpdate`.
    #[serde(default, rename = "type")]
    #[schemars(extend("x-fanout-change" = "operator"))]
    pub type_: UpdateStrategyType,
    /// Maximum number of nodes above `replicas` during an update, as a number or a percentage (rounded up). Defaults to
    /// 1.
    #[serde(default = "default_max_surge")]
    #[schemars(extend("x-fanout-change" = "operator"))]
    pub max_surge: IntOrString,
    /// Maximum number of nodes below `replicas` during an update, as a number or a percentage (rounded down). Defaults
    /// to 0.
    #[serde(default = "default_max_unavailable")]
    #[schemars(extend("x-fanout-change" = "operator"))]
    pub max_unavailable: IntOrString,
}

/// Type of an update strategy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UpdateStrategyType {
    /// Nodes are replaced progressively, within `maxSurge` and `maxUnavailable`, and each node is drained first.
    #[default]
    RollingUpdate,
    /// A node is replaced only when you delete its pod.
    OnDelete,
}

/// Draining of client connections from a node before it terminates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.timeoutSeconds <= self.terminationGracePeriodSeconds - 10")
        .message("a drain must end 10 s before the kubelet kills the pod: raise terminationGracePeriodSeconds, or lower timeoutSeconds")
        .field_path(".timeoutSeconds")
)]
pub struct Drain {
    /// Maximum number of connections that the whole cluster closes per second. The budget is divided equally among the
    /// number of nodes that `updateStrategy` allows to drain at once. The rate is exceeded when the deadline requires
    /// it, and when nodes are deleted or evicted by something other than the operator. Defaults to 200.
    #[serde(default = "default_max_disconnects")]
    #[schemars(range(min = 1, max = 1_000_000), extend("x-fanout-change" = "hot"))]
    pub max_disconnects_per_second: u32,
    /// Seconds after which all remaining clients of a draining node are disconnected at once. Must be at least 10 less
    /// than `terminationGracePeriodSeconds`. Defaults to 300.
    #[serde(default = "default_drain_timeout")]
    #[schemars(range(min = 1, max = 86_400), extend("x-fanout-change" = "hot"))]
    pub timeout_seconds: u32,
    /// Time that the kubelet gives a pod to terminate, in seconds. Defaults to 330.
    #[serde(default = "default_termination_grace")]
    #[schemars(range(min = 11, max = 86_410), extend("x-fanout-change" = "roll"))]
    pub termination_grace_period_seconds: u32,
    /// Upper bound, in seconds, of the random delay after which disconnected clients are asked to reconnect. Defaults
    /// to 15.
    #[serde(default = "default_reconnect_jitter")]
    #[schemars(range(min = 0, max = 3_600), extend("x-fanout-change" = "hot"))]
    pub reconnect_jitter_seconds: u32,
}

fn default_max_surge() -> IntOrString {
    IntOrString::Int(1)
}

fn default_max_unavailable() -> IntOrString {
    IntOrString::Int(0)
}

fn default_max_disconnects() -> u32 {
    sidecar_config::DrainSettings::default().max_disconnects_per_second
}

fn default_drain_timeout() -> u32 {
    // 50,000 clients at 200 a second are gone in 250 s.
    300
}

fn default_termination_grace() -> u32 {
    // The drain and half a minute; cluster autoscalers honour 600 s.
    330
}

fn default_reconnect_jitter() -> u32 {
    sidecar_config::DrainSettings::default().reconnect_jitter_seconds
}

/// Builds requests and limits from pairs of name and quantity.
pub(super) fn resources<const N: usize>(
    requests: [(&str, &str); N],
    limits: [(&str, &str); N],
) -> ResourceRequirements {
    let quantities = |pairs: [(&str, &str); N]| -> BTreeMap<_, _> {
        pairs.into_iter().map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned()))).collect()
    };
    ResourceRequirements {
        claims: None,
        limits: Some(quantities(limits)),
        requests: Some(quantities(requests)),
    }
}

// === impl ChildMetadata ===

impl ChildMetadata {
    /// Returns `true` if there are neither labels nor annotations.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

// === impl PodTemplate ===

impl PodTemplate {
    /// Creates a template from JSON with the structure of a Kubernetes PodTemplateSpec.
    pub fn new(template: Map<String, Value>) -> Self {
        Self(template)
    }

    /// Returns the pod specification, which is empty if the template has none.
    pub fn spec(&self) -> Map<String, Value> {
        self.0.get("spec").and_then(Value::as_object).cloned().unwrap_or_default()
    }

    /// Returns the user's containers.
    pub fn containers(&self) -> &[Value] {
        let containers = self.0.get("spec").and_then(|spec| spec.get("containers"));
        containers.and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// Returns the labels that the pods get in addition to those set by the operator.
    pub fn labels(&self) -> BTreeMap<String, String> {
        self.metadata("labels")
    }

    /// Returns the annotations that the pods get in addition to those set by the operator.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        self.metadata("annotations")
    }

    fn metadata(&self, part: &str) -> BTreeMap<String, String> {
        let map = self.0.get("metadata").and_then(|metadata| metadata.get(part)).and_then(Value::as_object);
        map.into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect()
    }
}

impl JsonSchema for PodTemplate {
    fn schema_name() -> Cow<'static, str> {
        "PodTemplate".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        PodTemplateSpec::json_schema(generator)
    }
}

impl Default for UpdateStrategy {
    fn default() -> Self {
        all_defaults()
    }
}

impl Default for Drain {
    fn default() -> Self {
        all_defaults()
    }
}
