//! The broker that was chosen, in the terms of a node: where Redis is and where its credentials are.
//!
//! Exactly one of managed, external and memory gives one [`RedisTarget`]. `resources::config_map` writes it into
//! the boot document, `resources::replica_set` mounts what it names.

pub mod managed;

use std::path::Path;

use sidecar_config::{BrokerSettings, MemoryBroker, RedisBroker, RedisTls};

use crate::api::{
    FanoutCluster,
    v1alpha1::{CaRef, CredentialsRef, ExternalRedis, LocalObjectName, RedisKind, RedisTlsSpec},
};

/// How nodes reach their broker.
#[derive(Clone, Debug, PartialEq)]
pub enum RedisTarget {
    /// No broker between nodes.
    Memory,
    /// A Redis.
    Redis(RedisServer),
}

/// A Redis, by address and by the Secrets that open it.
#[derive(Clone, Debug, PartialEq)]
pub struct RedisServer {
    /// `host:port`.
    pub address: String,
    /// Logical database.
    pub database: u16,
    /// Where user name and password are.
    pub credentials: Option<CredentialsRef>,
    /// TLS, where it is on.
    pub tls: Option<RedisTlsSpec>,
}

// === impl RedisTarget ===

impl RedisTarget {
    /// The target that the spec asks for; `None` where it names none or several, which the schema refuses.
    pub fn of(cluster: &FanoutCluster) -> Option<Self> {
        Some(match cluster.spec.redis.kind()? {
            RedisKind::Memory => Self::Memory,
            RedisKind::Managed(_) => Self::Redis(managed::server(cluster)),
            RedisKind::External(external) => Self::Redis(RedisServer::external(external)?),
        })
    }

    /// The broker part of the boot document of a node whose secrets lie under `root`.
    pub fn broker(&self, channel_prefix: String, root: &Path) -> BrokerSettings {
        match self {
            Self::Memory => BrokerSettings { memory: Some(MemoryBroker {}), redis: None },
            Self::Redis(server) => {
                BrokerSettings { memory: None, redis: Some(server.broker(channel_prefix, root)) }
            }
        }
    }
}

// === impl RedisServer ===

impl RedisServer {
    fn external(external: &ExternalRedis) -> Option<Self> {
        let ExternalRedis { mode: _, addresses, database, credentials_secret_ref, tls } = external;
        Some(Self {
            address: addresses.first()?.clone(),
            database: *database,
            credentials: credentials_secret_ref.clone(),
            tls: tls.clone(),
        })
    }

    fn broker(&self, channel_prefix: String, root: &Path) -> RedisBroker {
        let Self { address, database, credentials, tls } = self;
        let credential = |name: &str| root.join("redis").join(name);
        RedisBroker {
            address: address.clone(),
            database: *database,
            channel_prefix,
            username_file: credentials
                .as_ref()
                .and_then(|c| c.username_key.as_ref())
                .map(|_| credential("username")),
            password_file: credentials.as_ref().map(|_| credential("password")),
            tls: tls.as_ref().map(|tls| files(tls, &root.join("redis-tls"))),
        }
    }
}

fn files(tls: &RedisTlsSpec, root: &Path) -> RedisTls {
    let RedisTlsSpec { ca_secret_ref, client_cert_secret_ref, server_name } = tls;
    RedisTls {
        ca_file: ca_secret_ref.as_ref().map(|CaRef { .. }| root.join("ca.crt")),
        cert_file: client_cert_secret_ref.as_ref().map(|LocalObjectName { .. }| root.join("tls.crt")),
        key_file: client_cert_secret_ref.as_ref().map(|LocalObjectName { .. }| root.join("tls.key")),
        server_name: server_name.clone(),
    }
}
