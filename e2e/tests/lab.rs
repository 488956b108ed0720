//! The cluster itself: what the other tests rely on is proved here with plain manifests.

use std::time::Duration;

use anyhow::{Result, ensure};
use fanout_e2e::{
    PodSecurity, cluster, in_namespace, operator,
    pods::{self, IMAGE, all_ready, container, pod, pod_spec, start_peer},
};
use fanout_lab::Namespace;
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn restricted_pods_serve_by_name_from_every_kubernetes_node() {
    in_namespace("lab-serve", PodSecurity::Restricted, async |namespace| {
        namespace.apply(&pods::web("web", 4).to_string()).await?;
        start_peer(namespace, "peer").await?;
        all_ready(namespace, "app=web", 4).await?;
        let web = fanout_lab::pods(namespace, "app=web").await?;
        let mut machines: Vec<_> = web.into_iter().filter_map(|pod| pod.node).collect();
        machines.sort();
        machines.dedup();
        ensure!(machines.len() > 1, "all pods are on {machines:?}");
        let url = format!("http://web.{}.svc.cluster.local:8080/group", namespace.name());
        fetched(namespace, "peer", &url).await
    })
    .await;
}

#[tokio::test]
async fn a_network_policy_admits_the_named_peer_and_refuses_the_other() {
    in_namespace("lab-policy", PodSecurity::Restricted, async |namespace| {
        namespace.apply(&pods::web("web", 2).to_string()).await?;
        start_peer(namespace, "friend").await?;
        start_peer(namespace, "stranger").await?;
        all_ready(namespace, "app=web", 2).await?;
        fetched(namespace, "stranger", "http://web:8080/group").await?;
        let only_friends = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "only-friends"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "web"}},
                "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}], "ports": [{"port": 8080}]}],
            },
        });
        namespace.apply(&only_friends.to_string()).await?;
        namespace
            .until("the policy to refuse the stranger", DEADLINE, async || {
                Ok((!can_fetch(namespace, "stranger", "http://web:8080/group").await?).then_some(()))
            })
            .await?;
        fetched(namespace, "friend", "http://web:8080/group").await
    })
    .await;
}

#[tokio::test]
async fn an_autoscaler_grows_a_busy_deployment_and_shrinks_it_when_idle() {
    in_namespace("lab-hpa", PodSecurity::Restricted, async |namespace| {
        namespace.apply(&pods::web("web", 1).to_string()).await?;
        all_ready(namespace, "app=web", 1).await?;
        namespace.kubectl(&["autoscale", "deployment", "web", "--min=1", "--max=3", "--cpu=50%"]).await?;
        let pod = &fanout_lab::pods(namespace, "app=web").await?[0];
        namespace.exec(&pod.name, None, &["sh", "-c", "yes >/dev/null 2>&1 &"]).await?;
        replicas(namespace, "web", 3).await?;
        namespace.exec(&pod.name, None, &["sh", "-c", "kill $(pidof yes)"]).await?;
        replicas(namespace, "web", 1).await
    })
    .await;
}

#[tokio::test]
async fn a_claim_of_the_default_class_is_bound_and_writable_by_another_user() {
    in_namespace("lab-volume", PodSecurity::Restricted, async |namespace| {
        let claim = json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "data"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        });
        namespace.apply(&claim.to_string()).await?;
        let mut container = container("exec sleep 3600", "10m");
        container["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        let mut spec = pod_spec(&container);
        spec["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
        namespace.apply(&pod("writer", &spec).to_string()).await?;
        all_ready(namespace, "app=writer", 1).await?;
        namespace.exec("writer", None, &["sh", "-c", "echo kept > /data/file"]).await?;
        let read = namespace.exec("writer", None, &["cat", "/data/file"]).await?;
        ensure!(read.trim() == "kept", "read {read:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_pod_without_limits_is_refused_by_a_quota_and_a_careless_one_by_pod_security() {
    in_namespace("lab-admission", PodSecurity::Restricted, async |namespace| {
        let quota = "--hard=limits.cpu=1,limits.memory=256Mi,pods=4";
        namespace.kubectl(&["create", "quota", "small", quota]).await?;
        let image = format!("--image={IMAGE}");
        let careless = namespace.try_kubectl(&["run", "careless", &image], None).await?;
        ensure!(careless.stderr.contains("violates PodSecurity"), "not refused: {}", careless.stderr);
        let mut container = container("exec sleep 3600", "10m");
        container["resources"] = json!({});
        let greedy = pod("greedy", &pod_spec(&container)).to_string();
        let greedy = namespace.try_kubectl(&["apply", "-f", "-"], Some(&greedy)).await?;
        ensure!(greedy.stderr.contains("must specify limits.cpu"), "not refused: {}", greedy.stderr);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn lab_the_readme_names_the_kubernetes_that_is_tested() {
    let cluster = cluster().await;
    assert!(cluster.is_lab(), "KUBECONFIG names another cluster: run this by `make e2e` without KUBECONFIG");
    let version = cluster.kubectl_json(&["version"]).await.expect("the API server tells its version");
    let version = version["serverVersion"]["gitVersion"].as_str().expect("a version").trim_start_matches('v');
    let readme = std::fs::read_to_string(operator::root().join("README.md")).expect("the README");
    assert!(readme.contains(&format!("Tested on Kubernetes {version},")), "it is {version}");
}

async fn replicas(namespace: &Namespace, deployment: &str, count: u64) -> Result<()> {
    let what = format!("{deployment} to have {count} replicas");
    namespace
        .until(&what, Duration::from_secs(150), async || {
            let object = namespace.get(&["deployment", deployment]).await?;
            Ok((object["status"]["replicas"] == count).then_some(()))
        })
        .await
}

async fn can_fetch(namespace: &Namespace, pod: &str, url: &str) -> Result<bool> {
    let command = ["exec", pod, "--", "timeout", "2", "wget", "-q", "-O", "-", url];
    Ok(namespace.try_kubectl(&command, None).await?.success)
}

async fn fetched(namespace: &Namespace, pod: &str, url: &str) -> Result<()> {
    let what = format!("{pod} to fetch {url}");
    let deadline = Duration::from_secs(20);
    namespace.until(&what, deadline, async || Ok(can_fetch(namespace, pod, url).await?.then_some(()))).await
}
