//! Types and reasons of `status.conditions` and of Events. Both are enumerated, so that alerts and people can rely on
//! them.

use std::fmt;

/// Type of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// All desired nodes serve at the current revision, and no problem is known.
    Ready,
    /// At least one node serves.
    Available,
    /// Nodes are being added, replaced or removed.
    Progressing,
    /// A problem that requires manual action exists.
    Degraded,
    /// The nodes are connected to the broker and receive their own messages back.
    RedisReachable,
    /// Every node runs with the live settings of the spec.
    SettingsInSync,
    /// `spec.paused` is set, so the operator makes no changes.
    Paused,
    /// The cluster works as specified, but something in its spec or Secrets should be changed.
    Advisory,
}

/// Reason of a condition or of an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Every node serves.
    AllNodesServing,
    /// Some nodes do not serve yet.
    NodesNotReady,
    /// No node serves.
    NoNodeServing,
    /// `spec.replicas` is 0.
    ScaledToZero,
    /// Nodes are being added.
    ScalingUp,
    /// Nodes are being drained and removed because `spec.replicas` was lowered.
    ScalingDown,
    /// Nodes of an older revision are being replaced.
    RollingOut,
    /// A new node did not become ready, so older nodes are not replaced.
    RolloutStuck,
    /// A new revision exists, and `updateStrategy.type: OnDelete` waits for a person to delete pods.
    WaitingForDelete,
    /// No changes are in progress.
    UpToDate,
    /// No problem is known.
    AsExpected,
    /// An image cannot be pulled.
    ImagePullFailed,
    /// A container exits repeatedly.
    ContainerCrashing,
    /// A pod cannot be scheduled to any Kubernetes node.
    Unschedulable,
    /// The API server rejected a pod because of a quota or a policy.
    PodRefused,
    /// A container keeps running although its node has drained and termination was requested.
    ContainerIgnoresTermination,
    /// A node did not become ready in time.
    NotReadyInTime,
    /// A node rejected its live settings and keeps the old ones.
    SettingsRejected,
    /// Every node runs with the live settings of the spec.
    SettingsCurrent,
    /// A node runs with older live settings: the kubelet takes up to two minutes to propagate new ones.
    SettingsPropagating,
    /// A Secret that the cluster refers to does not exist.
    SecretMissing,
    /// A Secret lacks a key, or the key is empty.
    SecretKeyMissing,
    /// The API server accepted the object, but it cannot work.
    InvalidSpec,
    /// `redis.channelPrefix` contains a colon, so its channels also belong to another cluster.
    AmbiguousChannelPrefix,
    /// Two bounds contradict each other.
    ContradictingBounds,
    /// A node reports a setting that is probably unintended, or a secret that it cannot read.
    SettingsWarning,
    /// A setting requires a newer version of the sidecar than `spec.version`.
    VersionTooOld,
    /// A child object could not be written.
    ApplyFailed,
    /// A child object of that name exists and is owned by something else or has no owner.
    NotOurs,
    /// A child object is being deleted and still exists: a finalizer blocks the deletion, or the garbage collector is late.
    ChildLeaving,
    /// Repaired fields of a child object are changed again by another controller, a webhook or a policy.
    RepairDisputed,
    /// The operator encountered an internal error while processing this cluster.
    OperatorFailed,
    /// The canary messages of all nodes returned through the broker.
    CanaryReturned,
    /// A node has no connection to its broker.
    RedisUnreachable,
    /// A node is connected to its broker, but its canary messages do not return.
    CanaryLost,
    /// The access rules of Redis reject a node's publications.
    PublishRefused,
    /// There are several nodes, and one of them is not received by any other: it may be connected to another Redis.
    NodesApart,
    /// No node has been queried yet.
    NotObserved,
    /// `redis.memory` is set, so there is no broker between nodes.
    MemoryBroker,
    /// `spec.paused` is set.
    Paused,
    /// `spec.paused` is not set.
    Reconciling,
    /// A node is removed because `spec.replicas` was lowered.
    ScaleDown,
    /// A node is removed because a newer revision replaces it.
    Rollout,
    /// The managed Redis is recreated because its spec or its password changed.
    RedisChanged,
    /// The Kubernetes node of the managed Redis does not respond.
    RedisNodeLost,
    /// A revision was created.
    RevisionCreated,
    /// A child object was created or restored.
    ChildApplied,
    /// The removal of a node was cancelled.
    NodeRestored,
    /// A revision that is no longer used by any node was deleted.
    RevisionForgotten,
}

// === impl ConditionType ===

impl ConditionType {
    /// All conditions, in display order.
    pub const ALL: [Self; 8] = [
        Self::Ready,
        Self::Available,
        Self::Progressing,
        Self::Degraded,
        Self::RedisReachable,
        Self::SettingsInSync,
        Self::Paused,
        Self::Advisory,
    ];
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The names of the variants are the words of the API.
        fmt::Debug::fmt(self, f)
    }
}

// === impl Reason ===

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
