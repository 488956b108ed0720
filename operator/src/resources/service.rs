//! The three Services: for clients, for backends, and headless for each node.

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::labels::{self, Component, metadata};
use crate::api::{
    FanoutCluster,
    v1alpha1::{self, SessionAffinity, TrafficPolicy},
};

/// `<name>`, `<name>-api` and `<name>-nodes`.
pub fn services(cluster: &FanoutCluster) -> [Service; 3] {
    [client(cluster), api(cluster), nodes(cluster)]
}

/// Where clients inside the cluster connect.
pub fn endpoint(cluster: &FanoutCluster) -> String {
    let (scheme, default_port) = if cluster.spec.hub.tls.is_some() { ("wss", 443) } else { ("ws", 80) };
    let port = match cluster.spec.service.port {
        port if port == default_port => String::new(),
        port => format!(":{port}"),
    };
    format!("{scheme}://{}.{}.svc{port}", cluster.name(), cluster.namespace())
}

fn client(cluster: &FanoutCluster) -> Service {
    let v1alpha1::ServiceSpec {
        type_,
        port,
        annotations,
        external_traffic_policy,
        load_balancer_source_ranges,
        load_balancer_class,
        session_affinity,
    } = &cluster.spec.service;
    let mut metadata = metadata(cluster, Component::Node, cluster.name().to_owned());
    if !annotations.is_empty() {
        metadata.annotations.get_or_insert_default().extend(annotations.clone());
    }
    // Left out where they are Kubernetes' defaults: a Service from before these fields is not written again.
    let affinity = (*session_affinity != SessionAffinity::None).then(|| session_affinity.as_str().to_owned());
    let policy = *external_traffic_policy;
    let policy = (policy != TrafficPolicy::Cluster).then(|| policy.as_str().to_owned());
    let ranges = load_balancer_source_ranges;
    let app_protocol = if cluster.spec.hub.tls.is_some() { "kubernetes.io/wss" } else { "kubernetes.io/ws" };
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(type_.as_str().to_owned()),
            external_traffic_policy: policy,
            load_balancer_source_ranges: (!ranges.is_empty()).then(|| ranges.clone()),
            load_balancer_class: load_balancer_class.clone(),
            session_affinity: affinity,
            selector: Some(labels::serving_nodes(cluster)),
            ports: Some(vec![ServicePort {
                // Tells gateways and meshes that connections are upgraded.
                app_protocol: Some(app_protocol.to_owned()),
                ..service_port("client", *port)
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn api(cluster: &FanoutCluster) -> Service {
    Service {
        metadata: metadata(cluster, Component::Node, format!("{}-api", cluster.name())),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(labels::serving_nodes(cluster)),
            ports: Some(vec![service_port("api", cluster.spec.hub.ports.api)]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// Where nodes look up how many there are.
pub(super) fn nodes_host(cluster: &FanoutCluster) -> String {
    format!("{}.{}.svc", nodes_name(cluster), cluster.namespace())
}

fn nodes_name(cluster: &FanoutCluster) -> String {
    format!("{}-nodes", cluster.name())
}

/// All nodes, those that drain or are not ready included: who asks here wants each by itself.
fn nodes(cluster: &FanoutCluster) -> Service {
    let v1alpha1::Ports { client, api, admin, control } = cluster.spec.hub.ports;
    let ports = [("client", client), ("api", api), ("admin", admin), ("control", control)];
    Service {
        metadata: metadata(cluster, Component::Node, nodes_name(cluster)),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(labels::nodes(cluster)),
            ports: Some(ports.map(|(name, port)| service_port(name, port)).to_vec()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// A port whose target is the container port of the same name.
fn service_port(name: &str, port: u16) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: port.into(),
        protocol: Some("TCP".to_owned()),
        target_port: Some(IntOrString::String(name.to_owned())),
        ..ServicePort::default()
    }
}
