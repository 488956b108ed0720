//! The generated key of the server API.

use k8s_openapi::api::core::v1::Secret;

use super::labels::{Component, metadata};
use crate::{api::FanoutCluster, controller::build::GeneratedSecret};

/// Key of the Secret that holds the API key.
pub const API_KEY: &str = "api-key";

/// Name of the Secret that holds the generated API key.
pub fn api_key_name(cluster: &FanoutCluster) -> String {
    format!("{}-api-key", cluster.name())
}

/// The Secret of the generated API key.
pub fn api_key(cluster: &FanoutCluster) -> GeneratedSecret {
    let shell = Secret {
        metadata: metadata(cluster, Component::Node, api_key_name(cluster)),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    };
    GeneratedSecret { shell, key: API_KEY, also: &[] }
}
