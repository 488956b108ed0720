//! A FanoutCluster under test: applied, watched, connected to, the way its user would.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fanout_lab::{Namespace, Pod, WebSocket, pods};
use serde_json::{Value, json};

/// Enough for a node that starts on a busy machine; each test says in its name what must happen, not how fast.
const DEADLINE: Duration = Duration::from_secs(90);

/// A condition of `status.conditions`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// An enumerated word.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

/// A FanoutCluster in a test's namespace.
#[derive(Debug, Clone)]
pub struct Fanout<'a> {
    namespace: &'a Namespace,
    name: String,
}

impl<'a> Fanout<'a> {
    /// A FanoutCluster of the quickstart's kind: a channel `lobby` that everyone may use; `more` is merged into its spec.
    /// Small requests, so that several clusters fit on a small machine.
    pub fn manifest(name: &str, more: Value) -> Value {
        let lobby =
            json!([{"name": "default", "channels": ["lobby"], "publish": "allowed", "subscribe": "allowed"}]);
        let small =
            json!({"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"cpu": "1", "memory": "256Mi"}});
        let mut spec = json!({"replicas": 2, "resources": small, "namespaces": lobby});
        merge(&mut spec, more);
        json!({
            "apiVersion": "fanout.dev/v1alpha1",
            "kind": "FanoutCluster",
            "metadata": {"name": name},
            "spec": spec,
        })
    }

    /// Applies such a FanoutCluster.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn apply(namespace: &'a Namespace, name: &str, more: Value) -> Result<Self> {
        namespace.apply(&Self::manifest(name, more).to_string()).await?;
        Ok(Self::at(namespace, name))
    }

    /// One that is there already.
    pub fn at(namespace: &'a Namespace, name: &str) -> Self {
        Self { namespace, name: name.to_owned() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The object.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn object(&self) -> Result<Value> {
        self.namespace.get(&["foc", &self.name]).await
    }

    /// Merges `patch` into the object, as `kubectl patch` does.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn patch(&self, patch: Value) -> Result<()> {
        self.namespace
            .kubectl(&["patch", "foc", &self.name, "--type=merge", "-p", &patch.to_string()])
            .await
            .map(drop)
    }

    /// `kubectl scale`.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn scale(&self, replicas: usize) -> Result<()> {
        let count = format!("--replicas={replicas}");
        self.namespace.kubectl(&["scale", &format!("foc/{}", self.name), &count]).await.map(drop)
    }

    /// The pods of its nodes that nobody has asked to go.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn nodes(&self) -> Result<Vec<Pod>> {
        let mut nodes = pods(self.namespace, &format!("fanout.dev/cluster={}", self.name)).await?;
        nodes.retain(|pod| !pod.terminating && pod.object["status"]["phase"] != "Succeeded");
        Ok(nodes)
    }

    /// Waits until the cluster says Ready with `count` nodes, and `count` pods are.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn ready(&self, count: usize) -> Result<Vec<Pod>> {
        let what = format!("{} to be Ready with {count} nodes", self.name);
        self.namespace
            .until(&what, DEADLINE, async || {
                let object = self.object().await?;
                let current = object["status"]["observedGeneration"] == object["metadata"]["generation"];
                let ready = condition(&object, "Ready").is_some_and(|ready| ready.status == "True");
                let nodes = self.nodes().await?;
                let all = nodes.len() == count && nodes.iter().all(|pod| pod.ready);
                Ok((current && ready && all && object["status"]["readyReplicas"] == count).then_some(nodes))
            })
            .await
    }

    /// Scales to `count` and waits until they are ready, `nodes` still among them: the operator works and replaces
    /// nobody.
    ///
    /// # Errors
    /// When that takes too long, or a pod was replaced.
    pub async fn grow(&self, nodes: &[Pod], count: usize) -> Result<()> {
        self.scale(count).await?;
        let grown = self.ready(count).await?;
        ensure!(nodes.iter().all(|pod| grown.iter().any(|node| node.uid == pod.uid)), "pods were replaced");
        Ok(())
    }

    /// Waits until a condition has a status, and gives it.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn condition(&self, kind: &str, status: &str) -> Result<Condition> {
        let what = format!("{}'s condition {kind} to be {status}", self.name);
        self.namespace
            .until(&what, DEADLINE, async || {
                let object = self.object().await?;
                Ok(condition(&object, kind).filter(|condition| condition.status == status))
            })
            .await
    }

    /// Waits until a condition has a status and a message with all of `words`, and gives it.
    ///
    /// # Errors
    /// When that takes longer than `deadline`.
    pub async fn says(
        &self,
        kind: &str,
        status: &str,
        words: &[&str],
        deadline: Duration,
    ) -> Result<Condition> {
        let what = format!("{}'s condition {kind} to be {status} and to say {words:?}", self.name);
        self.namespace
            .until(&what, deadline, async || {
                let object = self.object().await?;
                let told = condition(&object, kind).context("there is no such condition")?;
                let says = told.status == status && words.iter().all(|word| told.message.contains(word));
                ensure!(says, "it is {told:?}");
                Ok(Some(told))
            })
            .await
    }

    /// What the Events of a reason on it say, a line each.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn events(&self, reason: &str) -> Result<String> {
        let which = format!("--field-selector=involvedObject.name={},reason={reason}", self.name);
        let lines = r#"jsonpath={range .items[*]}{.message}{"\n"}{end}"#;
        self.namespace.kubectl(&["get", "events", &which, "-o", lines]).await
    }

    /// Where clients connect at one node: by its pod's address.
    ///
    /// # Errors
    /// When the pod has no address.
    pub fn node_url(pod: &Pod, scheme: &str, path: &str) -> Result<String> {
        let ip = pod.ip.as_ref().with_context(|| format!("{} has no address", pod.name))?;
        Ok(format!("{scheme}://{ip}:8000{path}"))
    }

    /// Where clients connect at the Service: by its cluster address.
    ///
    /// # Errors
    /// When there is no such Service.
    pub async fn service_url(&self, scheme: &str, path: &str) -> Result<String> {
        let service = self.namespace.get(&["service", &self.name]).await?;
        let ip = service["spec"]["clusterIP"].as_str().context("the Service has no address")?;
        Ok(format!("{scheme}://{ip}:80{path}"))
    }

    /// A client in `lobby` at each of `nodes`.
    ///
    /// # Errors
    /// When one is refused.
    pub async fn clients(&self, nodes: &[Pod]) -> Result<Vec<WebSocket>> {
        let mut clients = Vec::new();
        for pod in nodes {
            clients.push(open_lobby(pod).await?);
        }
        Ok(clients)
    }

    /// Waits until none of the cluster's objects is left.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn gone(&self) -> Result<()> {
        let what = format!("all children of {} to be gone", self.name);
        let selector = format!("app.kubernetes.io/instance={}", self.name);
        let kinds = "replicasets,statefulsets,pods,services,configmaps,secrets,poddisruptionbudgets,networkpolicies,serviceaccounts";
        self.namespace
            .until(&what, DEADLINE, async || {
                let left = self.namespace.kubectl(&["get", kinds, "-l", &selector, "-o", "name"]).await?;
                ensure!(left.is_empty(), "left: {}", left.replace('\n', " "));
                Ok(Some(()))
            })
            .await
    }
}

/// A client in `lobby` at one node, bare: what it sends is published, what is published it receives.
///
/// # Errors
/// When it is refused.
pub async fn open_lobby(pod: &Pod) -> Result<WebSocket> {
    WebSocket::open(&Fanout::node_url(pod, "ws", "/ws/lobby")?, &[]).await
}

fn condition(object: &Value, kind: &str) -> Option<Condition> {
    let conditions = object.pointer("/status/conditions")?.as_array()?;
    let found = conditions.iter().find(|condition| condition["type"] == kind)?;
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    Some(Condition { status: text("status"), reason: text("reason"), message: text("message") })
}

/// As `kubectl patch --type=merge` does it, but that null is a value.
fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more,
    }
}
