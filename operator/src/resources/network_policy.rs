//! Who may open connections: to the nodes, and to the managed Redis.

use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::labels::{self, Component, metadata};
use crate::{
    api::{
        FanoutCluster,
        v1alpha1::{self, Ports},
    },
    controller::build::OperatorConfig,
    redis::managed,
};

/// The policies; none where they are switched off.
pub fn policies(cluster: &FanoutCluster, operator: &OperatorConfig) -> Vec<NetworkPolicy> {
    if !cluster.spec.network_policy.enabled {
        return Vec::new();
    }
    let redis = cluster.spec.redis.managed.as_ref().map(|_| redis(cluster));
    std::iter::once(nodes(cluster, operator)).chain(redis).collect()
}

fn nodes(cluster: &FanoutCluster, operator: &OperatorConfig) -> NetworkPolicy {
    let v1alpha1::NetworkPolicySpec { enabled: _, api_from, metrics_from, egress } =
        &cluster.spec.network_policy;
    let Ports { client, api, admin, control } = cluster.spec.hub.ports;
    let same_namespace =
        NetworkPolicyPeer { pod_selector: Some(LabelSelector::default()), ..NetworkPolicyPeer::default() };
    let operator = operator_pods(operator);
    let mut ingress = vec![
        rule(None, vec![tcp(client)]),
        rule(Some([&[same_namespace], api_from.as_slice()].concat()), vec![tcp(api)]),
        rule(Some([std::slice::from_ref(&operator), metrics_from.as_slice()].concat()), vec![tcp(admin)]),
        rule(Some(vec![operator]), vec![tcp(control)]),
    ];
    if cluster.has_app_containers() {
        ingress.push(rule(None, all_but([client, api, admin, control])));
    }
    let types = if egress.is_some() { vec!["Ingress", "Egress"] } else { vec!["Ingress"] };
    NetworkPolicy {
        metadata: metadata(cluster, Component::Node, cluster.name().to_owned()),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(labels::selector(labels::nodes(cluster))),
            policy_types: Some(types.into_iter().map(str::to_owned).collect()),
            ingress: Some(ingress),
            egress: egress.clone(),
        }),
    }
}

fn redis(cluster: &FanoutCluster) -> NetworkPolicy {
    let nodes = NetworkPolicyPeer {
        pod_selector: Some(labels::selector(labels::nodes(cluster))),
        ..NetworkPolicyPeer::default()
    };
    NetworkPolicy {
        metadata: metadata(cluster, Component::Redis, managed::name(cluster)),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(labels::selector(labels::redis(cluster))),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(vec![rule(Some(vec![nodes]), vec![tcp(managed::PORT)])]),
            egress: None,
        }),
    }
}

fn operator_pods(operator: &OperatorConfig) -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        namespace_selector: Some(labels::selector(labels::map([(
            "kubernetes.io/metadata.name",
            &operator.namespace,
        )]))),
        pod_selector: Some(labels::selector(labels::map([("app.kubernetes.io/name", labels::MANAGER)]))),
        ip_block: None,
    }
}

/// A rule; without `from` it is open to all.
fn rule(from: Option<Vec<NetworkPolicyPeer>>, ports: Vec<NetworkPolicyPort>) -> NetworkPolicyIngressRule {
    NetworkPolicyIngressRule { from, ports: Some(ports) }
}

fn tcp(port: u16) -> NetworkPolicyPort {
    NetworkPolicyPort {
        port: Some(IntOrString::Int(port.into())),
        end_port: None,
        protocol: Some("TCP".to_owned()),
    }
}

/// Every port except these, which are TCP: the user's containers stay as reachable as they were.
fn all_but(mut ours: [u16; 4]) -> Vec<NetworkPolicyPort> {
    ours.sort_unstable();
    let starts = std::iter::once(1).chain(ours.map(|port| i32::from(port) + 1));
    let ends = ours.map(|port| i32::from(port) - 1).into_iter().chain([65_535]);
    let tcp = starts.zip(ends).filter(|(start, end)| start <= end).map(|(start, end)| NetworkPolicyPort {
        port: Some(IntOrString::Int(start)),
        end_port: Some(end),
        protocol: Some("TCP".to_owned()),
    });
    let rest = ["UDP", "SCTP"].map(|protocol| NetworkPolicyPort {
        port: None,
        end_port: None,
        protocol: Some(protocol.to_owned()),
    });
    tcp.chain(rest).collect()
}
