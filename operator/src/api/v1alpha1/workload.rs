//! The pods: what runs in them, how they are replaced and how clients leave them.

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

/// A pod template as the user wrote it. Kept as JSON, so that fields of a newer Kubernetes pass through.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PodTemplate(Map<String, Value>);

/// Labels and annotations of every object that the operator makes, the pod of a managed Redis included, which a change
/// restarts. A ReplicaSet gets those of the moment it is made. The nodes' pods have `podTemplate.metadata` instead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChildMetadata {
    /// Labels.
    // The form of a value is the schema's: as a rule it would cost more than the API server allows.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend(
        "maxProperties" = 32,
        "additionalProperties" = {"type": "string", "maxLength": 63, "pattern": LABEL_VALUE},
        "x-fanout-change" = "operator"
    ))]
    #[x_kube(validation = Rule::new("self.all(k, !k.startsWith('fanout.dev/') && !k.startsWith('app.kubernetes.io/'))")
        .message("labels under fanout.dev/ and app.kubernetes.io/ are set by the operator: use a prefix of your own"))]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend(
        "maxProperties" = 32,
        "additionalProperties" = {"type": "string", "maxLength": 16_384},
        "x-fanout-change" = "operator"
    ))]
    #[x_kube(validation = Rule::new("self.all(k, !k.startsWith('fanout.dev/'))")
        .message("annotations under fanout.dev/ are the operator's: use a prefix of your own"))]
    pub annotations: BTreeMap<String, String>,
}

/// What a label may hold.
const LABEL_VALUE: &str = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";

/// How nodes are replaced when a change needs new pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!string(self.maxSurge).matches('^0+%?$') || !string(self.maxUnavailable).matches('^0+%?$')")
        .message("maxSurge and maxUnavailable are both zero, so no node could ever be replaced: set one of them to 1 or more"),
    // Text equals its own text, a number does not.
    validation = Rule::new("string(self.maxSurge) == self.maxSurge ? self.maxSurge.matches('^[0-9]{1,3}%$') : self.maxSurge >= 0")
        .message("maxSurge is a number of nodes (1) or a percentage of replicas ('25%')")
        .field_path(".maxSurge"),
    validation = Rule::new("string(self.maxUnavailable) == self.maxUnavailable ? self.maxUnavailable.matches('^([0-9]{1,2}|100)%$') : self.maxUnavailable >= 0")
        .message("maxUnavailable is a number of nodes (1) or a percentage of replicas ('25%', at most 100%)")
        .field_path(".maxUnavailable")
)]
pub struct UpdateStrategy {
    /// How.
    #[serde(default, rename = "type")]
    #[schemars(extend("x-fanout-change" = "operator"))]
    pub type_: UpdateStrategyType,
    /// Nodes above `replicas` that may exist meanwhile: a number or a percentage, rounded up.
    #[serde(default = "default_max_surge")]
    #[schemars(extend("x-fanout-change" = "operator"))]
    pub max_surge: IntOrString,
    /// Nodes below `replicas` that may be missing meanwhile: a number or a percentage, rounded down.
    #[serde(default = "default_max_unavailable")]
    #[schemars(extend("x-fanout-change" = "operator"))]
    pub max_unavailable: IntOrString,
}

/// How nodes are replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UpdateStrategyType {
    /// One after the other, each drained first.
    #[default]
    RollingUpdate,
    /// Only where you delete the old pods.
    OnDelete,
}

/// How clients leave a node that ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.timeoutSeconds <= self.terminationGracePeriodSeconds - 10")
        .message("a drain needs 10 s to end before the kubelet kills the pod: raise terminationGracePeriodSeconds, or lower timeoutSeconds")
        .field_path(".timeoutSeconds")
)]
pub struct Drain {
    /// Connections that the whole cluster closes each second. Each node gets an equal part for as many nodes as
    /// `updateStrategy` lets drain at once. More are closed where the deadline asks for it, and where others than the
    /// operator delete or evict several nodes at a time.
    #[serde(default = "default_max_disconnects")]
    #[schemars(range(min = 1, max = 1_000_000), extend("x-fanout-change" = "hot"))]
    pub max_disconnects_per_second: u32,
    /// Seconds after which the rest of a node's clients is closed at once.
    #[serde(default = "default_drain_timeout")]
    #[schemars(range(min = 1, max = 86_400), extend("x-fanout-change" = "hot"))]
    pub timeout_seconds: u32,
    /// Seconds that the kubelet gives a pod to end.
    #[serde(default = "default_termination_grace")]
    #[schemars(range(min = 11, max = 86_410), extend("x-fanout-change" = "roll"))]
    pub termination_grace_period_seconds: u32,
    /// Clients are asked to come back after a random part of this many seconds.
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

/// Requests and limits from pairs of name and quantity.
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
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

// === impl PodTemplate ===

impl PodTemplate {
    /// A template from JSON of the shape of Kubernetes' PodTemplateSpec.
    pub fn new(template: Map<String, Value>) -> Self {
        Self(template)
    }

    /// Its pod specification; empty where there is none.
    pub fn spec(&self) -> Map<String, Value> {
        self.0.get("spec").and_then(Value::as_object).cloned().unwrap_or_default()
    }

    /// The user's containers.
    pub fn containers(&self) -> &[Value] {
        let containers = self.0.get("spec").and_then(|spec| spec.get("containers"));
        containers.and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// The labels that the pods get besides ours.
    pub fn labels(&self) -> BTreeMap<String, String> {
        self.metadata("labels")
    }

    /// The annotations that the pods get besides ours.
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
