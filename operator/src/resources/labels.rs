//! Labels, annotations and names: what ties children to their FanoutCluster.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::Resource;

use crate::api::{FanoutCluster, v1alpha1::ChildMetadata};

/// What the names of our labels and annotations begin with.
pub const PREFIX: &str = "fanout.dev/";
/// What the labels that Kubernetes recommends begin with.
pub const STANDARD: &str = "app.kubernetes.io/";
/// Name of the FanoutCluster; on every child, and on the pods of nodes.
pub const CLUSTER: &str = "fanout.dev/cluster";
/// Name of the revision; on ReplicaSets and pods.
pub const REVISION: &str = "fanout.dev/revision";
/// `"true"` on a pod whose Services send it clients. ReplicaSets do not select it.
pub const SERVING: &str = "fanout.dev/serving";
/// State of a node that is taken out. `drained` leaves the disruption budget, and is set as the node is marked to go:
/// its drain is its preStop, so its clients leave after its deletion, and a pod that is deleted counts in no budget any
/// more. Between mark and deletion alone can the label tell the budget anything, and there it lets an eviction take the
/// node that goes anyway. What the node really does is in `status.nodes`.
pub const STATE: &str = "fanout.dev/state";
/// Name of the FanoutCluster; on the pod of its managed Redis, which must not count as a node.
pub const REDIS: &str = "fanout.dev/redis";
/// Annotation of a ReplicaSet: the part of the spec it stands for, as canonical JSON.
pub const REVISION_SPEC: &str = "fanout.dev/revision-spec";
/// Annotation of a ReplicaSet: the revision as it was first written, in full. Of the StatefulSet of a managed Redis: that.
/// It is what repairs go back to, so a newer operator never renders it again.
pub const RENDERED: &str = "fanout.dev/rendered";
/// Annotation of the StatefulSet of a managed Redis: the part of the spec it stands for, as canonical JSON.
pub const REDIS_SPEC: &str = "fanout.dev/redis-spec";
/// Annotation of a ReplicaSet, for people: version of the operator that rendered its template.
pub const RENDERED_BY: &str = "fanout.dev/rendered-by";
/// Annotation of the pod of a managed Redis: digest of the Secret that it was started with.
pub const PASSWORD: &str = "fanout.dev/password-digest";
/// Value of `app.kubernetes.io/managed-by`, and field manager of the children.
pub const MANAGER: &str = "fanout-operator";

/// What a child is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// The nodes.
    Node,
    /// The managed Redis.
    Redis,
}

/// Metadata of a child: owned by its FanoutCluster, and gone with it.
pub fn metadata(cluster: &FanoutCluster, component: Component, name: String) -> ObjectMeta {
    ObjectMeta {
        owner_references: cluster.controller_owner_ref(&()).map(|owner| vec![owner]),
        ..ownerless(cluster, component, name)
    }
}

/// Metadata of a child that outlives its FanoutCluster.
pub fn ownerless(cluster: &FanoutCluster, component: Component, name: String) -> ObjectMeta {
    let ChildMetadata { labels: given, annotations } = &cluster.spec.child_metadata;
    let mut labels = given.clone();
    labels.extend(standard(cluster, component));
    labels.insert(CLUSTER.to_owned(), cluster.name().to_owned());
    ObjectMeta {
        name: Some(name),
        namespace: Some(cluster.namespace().to_owned()),
        labels: Some(labels),
        annotations: (!annotations.is_empty()).then(|| annotations.clone()),
        ..ObjectMeta::default()
    }
}

/// The labels that Kubernetes recommends; never in a selector.
pub fn standard(cluster: &FanoutCluster, component: Component) -> BTreeMap<String, String> {
    let component = match component {
        Component::Node => "node",
        Component::Redis => "redis",
    };
    map([
        ("app.kubernetes.io/name", "fanout"),
        ("app.kubernetes.io/instance", cluster.name()),
        ("app.kubernetes.io/component", component),
        ("app.kubernetes.io/part-of", "fanout"),
        ("app.kubernetes.io/managed-by", MANAGER),
    ])
}

/// Selects all nodes of a cluster.
pub fn nodes(cluster: &FanoutCluster) -> BTreeMap<String, String> {
    map([(CLUSTER, cluster.name())])
}

/// Selects the nodes that take clients.
pub fn serving_nodes(cluster: &FanoutCluster) -> BTreeMap<String, String> {
    map([(CLUSTER, cluster.name()), (SERVING, "true")])
}

/// Selects the pod of the managed Redis.
pub fn redis(cluster: &FanoutCluster) -> BTreeMap<String, String> {
    map([(REDIS, cluster.name())])
}

/// `status.selector`: what an autoscaler averages over.
pub fn status_selector(cluster: &FanoutCluster) -> String {
    format!("{CLUSTER}={},{SERVING}=true", cluster.name())
}

/// A selector by labels alone.
pub fn selector(labels: BTreeMap<String, String>) -> LabelSelector {
    LabelSelector { match_labels: Some(labels), match_expressions: None }
}

/// An owned map from pairs.
pub fn map<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}
