//! The identity of the pods. They call no Kubernetes API, so no token is mounted.

use k8s_openapi::api::core::v1::ServiceAccount;

use super::labels::{Component, metadata};
use crate::api::FanoutCluster;

/// The ServiceAccount of the nodes.
pub fn service_account(cluster: &FanoutCluster) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(cluster, Component::Node, cluster.name().to_owned()),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}
