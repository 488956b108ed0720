//! The words of `status.conditions` and of Events: both are enumerated, so that alerts and people can rely on them.

use std::fmt;

/// Type of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// All nodes that are asked for serve, at the current revision, and nothing is wrong.
    Ready,
    /// At least one node serves.
    Available,
    /// Nodes are being added, replaced or removed.
    Progressing,
    /// Something a person must mend stands in the way.
    Degraded,
    /// The nodes reach their broker and see their own messages come back.
    RedisReachable,
    /// Every node runs by the live settings of the spec.
    SettingsInSync,
    /// `spec.paused` is set: the operator changes nothing.
    Paused,
    /// The cluster works as it is asked to, and something in its spec or its secrets should be otherwise.
    Advisory,
}

/// Why a condition has its status, or why an Event was sent.
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
    /// Nodes are being drained and removed because fewer are asked for.
    ScalingDown,
    /// Nodes of an older revision are being replaced.
    RollingOut,
    /// A new node did not become ready; older ones are left alone.
    RolloutStuck,
    /// A new revision exists, and `updateStrategy.type: OnDelete` waits for a person to delete pods.
    WaitingForDelete,
    /// Nothing is being changed.
    UpToDate,
    /// Nothing is wrong.
    AsExpected,
    /// An image cannot be pulled.
    ImagePullFailed,
    /// A container ends again and again.
    ContainerCrashing,
    /// A pod finds no Kubernetes node to run on.
    Unschedulable,
    /// The API server refused a pod, for quota or policy.
    PodRefused,
    /// A container runs on although its node has drained and it was told to end.
    ContainerIgnoresTermination,
    /// A node did not become ready in time.
    NotReadyInTime,
    /// A node refused its live settings and keeps the old ones.
    SettingsRejected,
    /// Every node runs by the live settings of the spec.
    SettingsCurrent,
    /// A node runs by older live settings: the kubelet takes up to two minutes to hand them over.
    SettingsPropagating,
    /// A Secret that the cluster names does not exist.
    SecretMissing,
    /// A Secret lacks a key, or the key is empty.
    SecretKeyMissing,
    /// The API server accepted the object, but it cannot work.
    InvalidSpec,
    /// `redis.channelPrefix` holds a colon: its channels are those of another cluster, too.
    AmbiguousChannelPrefix,
    /// Two bounds leave each other no room.
    ContradictingBounds,
    /// A node warns of a setting that is hardly meant, or of a secret that it cannot read.
    SettingsWarning,
    /// A setting needs a newer version of the sidecar than `spec.version`.
    VersionTooOld,
    /// A child could not be written.
    ApplyFailed,
    /// A child of that name belongs to somebody else, or to nobody.
    NotOurs,
    /// A child is being removed and is still there: a finalizer holds it, or the garbage collector is late.
    ChildLeaving,
    /// What is repaired in a child comes back: another controller, a webhook or a policy wants something else.
    RepairDisputed,
    /// The operator itself failed on this cluster.
    OperatorFailed,
    /// Every node's canary came back through the broker.
    CanaryReturned,
    /// A node has no connection to its broker.
    RedisUnreachable,
    /// A node is connected, but its canary does not come back.
    CanaryLost,
    /// Redis refuses a node's publications by its access rules.
    PublishRefused,
    /// There are several nodes, and none of the others hears some node: it may be on another Redis.
    NodesApart,
    /// No node could be asked yet.
    NotObserved,
    /// `redis.memory`: there is no broker between nodes.
    MemoryBroker,
    /// `spec.paused` is set.
    Paused,
    /// `spec.paused` is not set.
    Reconciling,
    /// A node is removed because fewer are asked for.
    ScaleDown,
    /// A node is removed because a newer revision replaces it.
    Rollout,
    /// The managed Redis is made anew: its spec or its password changed.
    RedisChanged,
    /// The Kubernetes node of the managed Redis does not answer.
    RedisNodeLost,
    /// A revision was made.
    RevisionCreated,
    /// A child was made or brought back.
    ChildApplied,
    /// A node that was to go stays after all.
    NodeRestored,
    /// A revision without nodes that nobody returns to is deleted.
    RevisionForgotten,
}

// === impl ConditionType ===

impl ConditionType {
    /// Every condition, in the order they are shown.
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
