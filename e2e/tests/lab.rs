//! The cluster itself: what the other tests rely on is proved here with plain manifests.

use std::time::Duration;

use anyhow::{Result, ensure};
use fanout_e2e::{PodSecurity, in_namespace};
use fanout_lab::{Namespace, pods};

/// An image that `make images` builds; it has a shell, `nc`, `wget` and `httpd`.
const IMAGE: &str = "docker.io/library/redis:7.2-alpine";
const READY: Duration = Duration::from_secs(60);

#[tokio::test]
async fn restricted_pods_serve_by_name_from_every_kubernetes_node() {
    in_namespace("lab-serve", PodSecurity::Restricted, async |namespace| {
        namespace.apply(&web("web", 4, "20m")).await?;
        namespace.apply(&peer("peer", "{}")).await?;
        all_ready(namespace, "app=web", 4).await?;
        all_ready(namespace, "app=peer", 1).await?;
        let mut machines: Vec<_> =
            pods(namespace, "app=web").await?.into_iter().filter_map(|pod| pod.node).collect();
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
        namespace.apply(&web("web", 2, "20m")).await?;
        namespace.apply(&peer("friend", "{role: friend}")).await?;
        namespace.apply(&peer("stranger", "{role: stranger}")).await?;
        all_ready(namespace, "app in (web,friend,stranger)", 4).await?;
        fetched(namespace, "stranger", "http://web:8080/group").await?;
        namespace.apply(ONLY_FRIENDS).await?;
        namespace
            .until("the policy to refuse the stranger", READY, async || {
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
        namespace.apply(&web("web", 1, "20m")).await?;
        all_ready(namespace, "app=web", 1).await?;
        namespace.kubectl(&["autoscale", "deployment", "web", "--min=1", "--max=3", "--cpu=50%"]).await?;
        let pod = &pods(namespace, "app=web").await?[0];
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
        namespace.apply(CLAIM).await?;
        let volume = "volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]";
        let mount = "volumeMounts: [{name: data, mountPath: /data}]";
        namespace.apply(&pod_yaml("writer", "{app: writer}", volume, mount)).await?;
        all_ready(namespace, "app=writer", 1).await?;
        namespace.exec("writer", None, &["sh", "-c", "echo kept > /data/file"]).await?;
        let read = namespace.exec("writer", None, &["cat", "/data/file"]).await?;
        ensure!(read.trim() == "kept", "read {read:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_pod_without_limits_is_refused_by_a_quota_and_a_privileged_one_by_pod_security() {
    in_namespace("lab-admission", PodSecurity::Restricted, async |namespace| {
        let quota = "--hard=limits.cpu=1,limits.memory=256Mi,pods=4";
        namespace.kubectl(&["create", "quota", "small", quota]).await?;
        let image = format!("--image={IMAGE}");
        let bare = namespace.try_kubectl(&["run", "bare", &image], None).await?;
        ensure!(bare.stderr.contains("violates PodSecurity"), "not refused by Pod Security: {}", bare.stderr);
        let unlimited = pod_yaml("greedy", "{}", "", "").replace("resources:", "# resources:");
        let greedy = namespace.try_kubectl(&["apply", "-f", "-"], Some(&unlimited)).await?;
        ensure!(
            greedy.stderr.contains("must specify limits.cpu"),
            "not refused by the quota: {}",
            greedy.stderr
        );
        Ok(())
    })
    .await;
}

async fn all_ready(namespace: &Namespace, selector: &str, count: usize) -> Result<()> {
    let what = format!("{count} ready pods of {selector}");
    namespace
        .until(&what, READY, async || {
            let ready = pods(namespace, selector).await?.iter().filter(|pod| pod.ready).count();
            Ok((ready == count).then_some(()))
        })
        .await
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
    namespace
        .until(&what, Duration::from_secs(20), async || {
            Ok(can_fetch(namespace, pod, url).await?.then_some(()))
        })
        .await
}

fn web(name: &str, replicas: u32, cpu: &str) -> String {
    let container = container(
        "httpd -f -p 8080 -h /etc",
        cpu,
        "readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}",
    );
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints:
        - {{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {{matchLabels: {{app: {name}}}}}}}
      securityContext: {{runAsNonRoot: true, runAsUser: 65532, seccompProfile: {{type: RuntimeDefault}}}}
      containers:
        {container}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: {name}}}, ports: [{{port: 8080}}]}}
"
    )
}

fn peer(name: &str, labels: &str) -> String {
    let labels = labels.replace('{', &format!("{{app: {name}, "));
    pod_yaml(name, &labels, "", "")
}

fn pod_yaml(name: &str, labels: &str, volumes: &str, mounts: &str) -> String {
    let container = container("sleep 3600", "20m", mounts).replace("\n    ", "\n");
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {labels}}}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {{runAsNonRoot: true, runAsUser: 65532, seccompProfile: {{type: RuntimeDefault}}}}
  {volumes}
  containers:
    {container}
"
    )
}

fn container(command: &str, cpu: &str, more: &str) -> String {
    format!(
        "- name: main
          image: {IMAGE}
          imagePullPolicy: IfNotPresent
          command: [sh, -c, 'exec {command}']
          securityContext: {{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {{drop: [ALL]}}}}
          resources: {{requests: {{cpu: {cpu}, memory: 16Mi}}, limits: {{cpu: 200m, memory: 64Mi}}}}
          {more}"
    )
}

const ONLY_FRIENDS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-friends}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}], ports: [{port: 8080}]}]
";

const CLAIM: &str = "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
";
