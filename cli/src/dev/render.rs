//! Settings of a node: the operator's own, at a place on this machine instead of one in a pod.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use fanout_operator::{
    api::{FanoutCluster, v1alpha1::RedisKind},
    controller::build::{NodePlace, render_node},
    redis::{RedisServer, RedisTarget},
};
use sidecar_config::{BootSettings, Listen, LiveSettings};

use super::ports::NodePorts;

/// Where things are on this machine.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    /// Port of the Redis between the nodes.
    pub(crate) redis: Option<u16>,
    /// Directory of the secrets, laid out as in a pod.
    pub(crate) secrets: PathBuf,
    /// Origins of the playground.
    pub(crate) origins: Vec<String>,
}

/// Whether nodes of this cluster meet in a Redis.
pub(crate) fn needs_redis(cluster: &FanoutCluster) -> bool {
    !matches!(cluster.spec.redis.kind(), Some(RedisKind::Memory))
}

/// Time that clients have to leave a node.
pub(crate) fn drain_timeout(cluster: &FanoutCluster) -> Duration {
    Duration::from_secs(cluster.spec.drain.timeout_seconds.into())
}

// === impl Local ===

impl Local {
    /// What a node with these ports is started with.
    pub(crate) fn boot(&self, cluster: &FanoutCluster, ports: NodePorts) -> BootSettings {
        render_node(cluster, &self.place(ports)).0
    }

    /// What all nodes take over while they run.
    pub(crate) fn live(&self, cluster: &FanoutCluster) -> LiveSettings {
        let unused = NodePorts { client: 0, api: 0, admin: 0 };
        let (_, mut live) = render_node(cluster, &self.place(unused));
        live.hub.allowed_origins.extend(self.origins.iter().cloned());
        live
    }

    fn place(&self, ports: NodePorts) -> NodePlace {
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let server =
            |port| RedisServer { address: at(port).to_string(), database: 0, credentials: None, tls: None };
        NodePlace {
            listen: Listen { client: at(ports.client), api: at(ports.api), admin: at(ports.admin) },
            redis: self.redis.map_or(RedisTarget::Memory, |port| RedisTarget::Redis(server(port))),
            secrets: self.secrets.clone(),
            app_containers: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(spec: &str) -> FanoutCluster {
        FanoutCluster::new("demo", serde_yaml::from_str(spec).unwrap())
    }

    #[test]
    fn a_node_listens_on_loopback_and_meets_others_in_the_local_redis() {
        let local = Local { redis: Some(6400), secrets: "/run/demo".into(), origins: Vec::new() };
        let boot = local.boot(&cluster("{}"), NodePorts { client: 1, api: 2, admin: 3 });
        assert_eq!(boot.listen.api.to_string(), "127.0.0.1:2");
        let redis = boot.broker.redis.unwrap();
        assert_eq!(
            (redis.address.as_str(), redis.channel_prefix.as_str()),
            ("127.0.0.1:6400", "default.demo")
        );
    }

    #[test]
    fn the_playground_may_connect_besides_the_origins_of_the_cluster() {
        let local =
            Local { redis: None, secrets: "/run/demo".into(), origins: vec!["http://127.0.0.1:7900".into()] };
        let live = local.live(&cluster("{hub: {allowedOrigins: ['https://app.example']}}"));
        assert_eq!(live.hub.allowed_origins, ["https://app.example", "http://127.0.0.1:7900"]);
        assert_eq!(live.auth.api_key_files, [PathBuf::from("/run/demo/api-keys/demo-api-key")]);
    }
}
