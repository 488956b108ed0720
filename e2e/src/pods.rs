//! Pods and Deployments of the tests' own: peers that connect, servers to connect to. They satisfy the restricted Pod
//! Security Standard.

use std::time::Duration;

use anyhow::Result;
use fanout_lab::{Namespace, pods};
use serde_json::{Value, json};

/// An image that `make images` builds; it has a shell, `nc`, `wget`, `httpd`, `redis-server` and `redis-cli`.
pub const IMAGE: &str = "docker.io/library/redis:7.2-alpine";

const READY: Duration = Duration::from_secs(60);

/// A container that runs `command` in a shell.
pub fn container(command: &str, cpu: &str) -> Value {
    json!({
        "name": "main",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", command],
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": true,
            "runAsUser": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "resources": {
            "requests": {"cpu": cpu, "memory": "16Mi"},
            "limits": {"cpu": "200m", "memory": "64Mi"},
        },
    })
}

/// A pod specification around `container`.
pub fn pod_spec(container: &Value) -> Value {
    json!({
        "terminationGracePeriodSeconds": 0,
        "containers": [container],
    })
}

/// A pod named `name`, labelled `app: <name>`.
pub fn pod(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": spec,
    })
}

/// A pod that waits for commands to be run in it.
pub fn peer(name: &str) -> Value {
    pod(name, &pod_spec(&container("exec sleep 3600", "10m")))
}

/// Applies a peer and waits until it is ready.
///
/// # Errors
/// When it does not become so.
pub async fn start_peer(namespace: &Namespace, name: &str) -> Result<()> {
    namespace.apply(&peer(name).to_string()).await?;
    all_ready(namespace, &format!("app={name}"), 1).await
}

/// A Deployment of web servers spread over the Kubernetes nodes, and its Service on port 8080; both named `name`.
pub fn web(name: &str, replicas: u32) -> Value {
    let mut container = container("exec httpd -f -p 8080 -h /etc", "20m");
    container["readinessProbe"] = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
    let mut spec = pod_spec(&container);
    spec["topologySpreadConstraints"] = json!([{
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"app": name}},
    }]);
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}}, "spec": spec},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"selector": {"app": name}, "ports": [{"port": 8080}]},
        },
    ]})
}

/// Waits until exactly `count` pods of `selector` are ready.
///
/// # Errors
/// When that takes too long.
pub async fn all_ready(namespace: &Namespace, selector: &str, count: usize) -> Result<()> {
    let what = format!("{count} ready pods of {selector}");
    namespace
        .until(&what, READY, async || {
            let ready = pods(namespace, selector).await?.iter().filter(|pod| pod.ready).count();
            Ok((ready == count).then_some(()))
        })
        .await
}

/// Whether a TCP connection from inside `pod` to `host`'s `port` is accepted within two seconds.
///
/// # Errors
/// When the command cannot be run.
pub async fn can_connect(namespace: &Namespace, pod: &str, host: &str, port: u16) -> Result<bool> {
    let script = format!("timeout 2 nc {host} {port} </dev/null >/dev/null 2>&1");
    Ok(namespace.try_kubectl(&["exec", pod, "--", "sh", "-c", &script], None).await?.success)
}
