//! The custom resource `FanoutCluster`: types, schema, rules and the words of its status.
//!
//! Everything reads it. It calls no API and knows nothing of how a field is carried out, except the class of
//! change that each field declares ([`change`]).

pub mod canonical;
pub mod change;
pub mod condition;
pub mod crd;
pub(crate) mod schema;
pub mod v1alpha1;

pub use change::ChangeClass;
pub use condition::{ConditionType, Reason};
pub use v1alpha1::{FanoutCluster, FanoutClusterSpec, FanoutClusterStatus};

/// Group of the API, and prefix of every label and annotation of this project.
pub const GROUP: &str = "fanout.dev";

/// Label of a FanoutCluster: the class of the operator that manages it. One without it, or with an empty one, belongs to
/// the operator without a class. A label rather than a field, so that an object that an operator cannot read still
/// says whose it is.
pub const OPERATOR_CLASS: &str = "fanout.dev/operator-class";

/// Annotation of a FanoutCluster whose new value makes a new revision of the same pods. `spec.restartedAt` does the
/// same and moves `metadata.generation`, so that its rollout can be waited for.
pub const RESTARTED_AT: &str = "fanout.dev/restarted-at";
