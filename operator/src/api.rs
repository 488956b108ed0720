//! The custom resource `FanoutCluster`: its types, schema, rules and condition reasons.
//!
//! This module is used everywhere. It makes no API calls and does not know how a field is applied, except for the class
//! of change that each field declares ([`change`]).

pub mod canonical;
pub mod change;
pub mod condition;
pub mod crd;
pub(crate) mod schema;
pub mod v1alpha1;

pub use change::ChangeClass;
pub use condition::{ConditionType, Reason};
pub use v1alpha1::{FanoutCluster, FanoutClusterSpec, FanoutClusterStatus};

/// API group, and prefix of all labels and annotations of this project.
pub const GROUP: &str = "fanout.dev";

/// Label of a FanoutCluster with the class of the operator that manages it. A FanoutCluster without the label or with
/// an empty value belongs to the operator without a class. This is a label rather than a field so that it can be read
/// even from objects that the operator cannot parse.
pub const OPERATOR_CLASS: &str = "fanout.dev/operator-class";

/// Annotation of a FanoutCluster. A new value creates a new revision of the same pods. `spec.restartedAt` does the same
/// and also increments `metadata.generation`, so that its rollout can be waited for.
pub const RESTARTED_AT: &str = "fanout.dev/restarted-at";
