//! `kubectl fanout helm-test`: what `helm test` runs. It makes a small FanoutCluster, sends a message through it
//! as a client and a backend would, and removes it again. What a test that was killed has left the next one removes.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use fanout_operator::{
    api::{FanoutCluster, FanoutClusterSpec, OPERATOR_CLASS},
    resources::secret,
};
use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Api, Client as Kube, ResourceExt,
    api::{DeleteParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::client::Client;

/// Channel of the test.
const CHANNEL: &str = "helm-test";
/// Label of the FanoutClusters that a test made: a test may remove these and no others.
const MADE_BY_TEST: &str = "fanout.dev/helm-test";
/// Time between two looks at the cluster.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Time for a message; the rules of a Service take a second to follow its pods.
const PATIENCE: Duration = Duration::from_secs(15);
/// Time for one try to subscribe: what was sent where nobody is any more, by rules that were late, is not answered.
const TRY: Duration = Duration::from_secs(4);

/// Arguments of `kubectl fanout helm-test`.
#[derive(Debug, clap::Args)]
pub(crate) struct HelmTestArgs {
    /// Namespace of the FanoutCluster. Defaults to that of the pod or of the kubeconfig.
    #[arg(short, long, env = "POD_NAMESPACE")]
    namespace: Option<String>,
    /// Name of the FanoutCluster.
    #[arg(long, default_value = "fanout-helm-test")]
    name: String,
    /// Broker of the FanoutCluster: `managed` runs two nodes and a Redis, `memory` a single node.
    #[arg(long, value_enum, default_value_t = Broker::Managed)]
    redis: Broker,
    /// Class of the operator under test.
    #[arg(long, env = "FANOUT_OPERATOR_CLASS", default_value = "")]
    operator_class: String,
    /// Time that the FanoutCluster may take to become ready, in seconds.
    #[arg(long, default_value_t = 180)]
    timeout_seconds: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Broker {
    Managed,
    Memory,
}

/// A FanoutCluster under test.
struct Trial {
    clusters: Api<FanoutCluster>,
    secrets: Api<Secret>,
    name: String,
    namespace: String,
}

pub(crate) async fn run(args: HelmTestArgs) -> anyhow::Result<()> {
    let HelmTestArgs { namespace, name, redis, operator_class, timeout_seconds } = args;
    let kube = Kube::try_default().await.context("failed to find a Kubernetes cluster")?;
    let namespace = namespace.unwrap_or_else(|| kube.default_namespace().to_owned());
    let trial = Trial {
        clusters: Api::namespaced(kube.clone(), &namespace),
        secrets: Api::namespaced(kube, &namespace),
        name,
        namespace,
    };
    let timeout = Duration::from_secs(timeout_seconds);
    let created = trial.create(manifest(&trial.name, redis, &operator_class), timeout).await?;
    let done = trial.prove(&created, timeout).await;
    let removed = trial.clusters.delete(&trial.name, &DeleteParams::foreground()).await;
    done?;
    removed.with_context(|| format!("failed to delete FanoutCluster {trial}"))?;
    println!("removed FanoutCluster {trial}");
    Ok(())
}

/// A small FanoutCluster with one channel open to everyone.
fn manifest(name: &str, redis: Broker, operator_class: &str) -> FanoutCluster {
    let (replicas, redis) = match redis {
        Broker::Managed => (2, json!({"managed": {}})),
        Broker::Memory => (1, json!({"memory": {}})),
    };
    let spec = json!({
        "replicas": replicas,
        "redis": redis,
        "namespaces": [{"name": "default", "channels": [CHANNEL], "subscribe": "allowed"}],
    });
    let spec: FanoutClusterSpec = serde_json::from_value(spec).expect("the test's own spec is valid");
    let mut cluster = FanoutCluster::new(name, spec);
    cluster.labels_mut().insert(MADE_BY_TEST.to_owned(), "true".to_owned());
    if !operator_class.is_empty() {
        cluster.labels_mut().insert(OPERATOR_CLASS.to_owned(), operator_class.to_owned());
    }
    cluster
}

// === impl Trial ===

impl Trial {
    /// Makes the FanoutCluster, once one that an earlier test has left is gone.
    async fn create(&self, manifest: FanoutCluster, timeout: Duration) -> anyhow::Result<FanoutCluster> {
        if let Some(left) = self.read().await? {
            ensure!(
                left.labels().contains_key(MADE_BY_TEST),
                "FanoutCluster {self} already exists and was not created by a test: use another --name"
            );
            println!("removing FanoutCluster {self}, which an earlier test left");
            self.remove(timeout).await?;
        }
        let created = self.clusters.create(&PostParams::default(), &manifest).await;
        let created = created.with_context(|| format!("failed to create FanoutCluster {self}"))?;
        println!("created FanoutCluster {self}");
        Ok(created)
    }

    async fn read(&self) -> anyhow::Result<Option<FanoutCluster>> {
        self.clusters
            .get_opt(&self.name)
            .await
            .with_context(|| format!("failed to read FanoutCluster {self}"))
    }

    /// Deletes the FanoutCluster and waits until it and its children are gone.
    async fn remove(&self, timeout: Duration) -> anyhow::Result<()> {
        let deleted = self.clusters.delete(&self.name, &DeleteParams::foreground()).await;
        deleted.with_context(|| format!("failed to delete FanoutCluster {self}"))?;
        let started = Instant::now();
        while self.read().await?.is_some() {
            ensure!(
                started.elapsed() < timeout,
                "FanoutCluster {self} was not gone within {} s",
                timeout.as_secs()
            );
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Waits until it is ready, then publishes as a backend and receives as a client.
    async fn prove(&self, created: &FanoutCluster, timeout: Duration) -> anyhow::Result<()> {
        let started = Instant::now();
        self.wait_ready(timeout).await?;
        println!("ready after {:.1} s", started.elapsed().as_secs_f64());
        let key = self.api_key(created).await?;
        let Self { name, namespace, .. } = self;
        let client = format!("ws://{name}.{namespace}.svc:{}", created.spec.service.port);
        let mut subscriber = self.subscribe(&client).await?;
        println!("subscribed at {client}");
        let api = format!("http://{name}-api.{namespace}.svc:{}", created.spec.hub.ports.api);
        let data = json!({"sent-by": "helm test"});
        let sent = Instant::now();
        publish(&api, &key, &data).await?;
        let arrived = subscriber.next(PATIENCE).await?;
        let arrival =
            arrived.with_context(|| format!("published at {api}, but nothing arrived at {client}"))?;
        ensure!(arrival.data == data, "published {data}, but {} arrived", arrival.data);
        println!(
            "published at {api}, arrived after {:.1} ms",
            arrival.at.duration_since(sent).as_secs_f64() * 1_000.0
        );
        subscriber.close().await;
        Ok(())
    }

    async fn wait_ready(&self, timeout: Duration) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            let cluster =
                self.clusters.get(&self.name).await.with_context(|| format!("failed to read {self}"))?;
            let conditions = cluster.status.map(|status| status.conditions).unwrap_or_default();
            if conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True") {
                return Ok(());
            }
            if started.elapsed() > timeout {
                bail!("{self} was not ready within {} s:\n{}", timeout.as_secs(), told(&conditions));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// The key that the operator generated.
    async fn api_key(&self, cluster: &FanoutCluster) -> anyhow::Result<String> {
        let name = secret::api_key_name(cluster);
        let found = self.secrets.get(&name).await.with_context(|| format!("failed to read Secret {name}"))?;
        let value = found.data.and_then(|mut data| data.remove(secret::API_KEY));
        let value = value.with_context(|| format!("Secret {name} has no key {}", secret::API_KEY))?;
        String::from_utf8(value.0).with_context(|| format!("the value in Secret {name} is not text"))
    }

    /// Subscribes through the Service, again and again until its rules are in place.
    async fn subscribe(&self, base: &str) -> anyhow::Result<Client> {
        let started = Instant::now();
        loop {
            match Client::subscribe(base, CHANNEL, TRY).await {
                Err(_) if started.elapsed() < PATIENCE => sleep(LOOK_EVERY).await,
                done => return done,
            }
        }
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Publishes through the Service; a refused connection is tried again, an answer is final.
async fn publish(api: &str, key: &str, data: &Value) -> anyhow::Result<()> {
    let http = reqwest::Client::builder()
        .no_proxy()
        .timeout(PATIENCE)
        .build()
        .context("failed to make an HTTP client")?;
    let body = json!({"channel": CHANNEL, "data": data});
    let started = Instant::now();
    let reply = loop {
        match http.post(format!("{api}/api/publish")).header("X-API-Key", key).json(&body).send().await {
            Err(error) if error.is_connect() && started.elapsed() < PATIENCE => sleep(LOOK_EVERY).await,
            reply => break reply.with_context(|| format!("failed to publish at {api}"))?,
        }
    };
    let status = reply.status();
    let text = reply.text().await.with_context(|| format!("failed to read the answer of {api}"))?;
    let accepted = serde_json::from_str::<Value>(&text).is_ok_and(|reply| reply.get("result").is_some());
    ensure!(status.is_success() && accepted, "{api} answered {status}: {text}");
    Ok(())
}

fn told(conditions: &[Condition]) -> String {
    if conditions.is_empty() {
        return "  it has no conditions yet: does the operator run, does it watch this namespace, and is it of this class?"
            .to_owned();
    }
    let lines = conditions.iter().map(|condition| {
        let Condition { type_, status, reason, message, .. } = condition;
        format!("  {type_}={status} {reason}: {message}")
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::{
        Json, Router, extract,
        http::StatusCode,
        routing::{get, post},
    };

    use super::*;

    #[test]
    fn the_test_cluster_is_one_that_an_api_server_accepts() {
        for redis in [Broker::Managed, Broker::Memory] {
            let refused: Vec<_> = kube::core::cel::validate_cel(&manifest("demo", redis, ""))
                .err()
                .map(|errors| errors.into_vec())
                .unwrap_or_default()
                .into_iter()
                .filter(|error| error.kind != kube::core::cel::ErrorKind::UnsupportedReference)
                .collect();
            assert!(refused.is_empty(), "{refused:?}");
        }
    }

    #[test]
    fn a_cluster_without_conditions_points_at_the_operator() {
        assert!(told(&[]).contains("does the operator run"));
    }

    /// As much of an API server as a FanoutCluster needs that is gone a moment after its deletion.
    #[derive(Clone, Default)]
    struct ApiServer(Arc<Mutex<State>>);

    #[derive(Default)]
    struct State {
        cluster: Option<Value>,
        looks_until_gone: Option<u8>,
        writes: Vec<&'static str>,
    }

    impl ApiServer {
        fn holding(cluster: &FanoutCluster) -> Self {
            let server = Self::default();
            server.0.lock().unwrap().cluster = Some(serde_json::to_value(cluster).unwrap());
            server
        }

        fn trial(&self) -> Trial {
            let one = get(Self::read).delete(Self::delete);
            let all = "/apis/fanout.dev/v1alpha1/namespaces/test/fanoutclusters";
            let routes = Router::new().route(all, post(Self::create)).route(&format!("{all}/demo"), one);
            let kube = Kube::new(routes.with_state(self.clone()), "test");
            Trial {
                clusters: Api::namespaced(kube.clone(), "test"),
                secrets: Api::namespaced(kube, "test"),
                name: "demo".to_owned(),
                namespace: "test".to_owned(),
            }
        }

        fn writes(&self) -> Vec<&'static str> {
            self.0.lock().unwrap().writes.clone()
        }

        async fn read(server: extract::State<Self>) -> (StatusCode, Json<Value>) {
            let mut state = server.0.0.lock().unwrap();
            match state.looks_until_gone {
                Some(0) => (state.cluster, state.looks_until_gone) = (None, None),
                Some(looks) => state.looks_until_gone = Some(looks - 1),
                None => {}
            }
            match &state.cluster {
                Some(cluster) => (StatusCode::OK, Json(cluster.clone())),
                None => failed(StatusCode::NOT_FOUND),
            }
        }

        async fn create(server: extract::State<Self>, cluster: Json<Value>) -> (StatusCode, Json<Value>) {
            let mut state = server.0.0.lock().unwrap();
            if state.cluster.is_some() {
                return failed(StatusCode::CONFLICT);
            }
            state.writes.push("create");
            state.cluster = Some(cluster.0.clone());
            (StatusCode::CREATED, cluster)
        }

        async fn delete(server: extract::State<Self>) -> (StatusCode, Json<Value>) {
            let mut state = server.0.0.lock().unwrap();
            state.writes.push("delete");
            state.looks_until_gone = Some(1);
            (StatusCode::OK, Json(state.cluster.clone().unwrap_or_default()))
        }
    }

    fn failed(status: StatusCode) -> (StatusCode, Json<Value>) {
        let reason = status.canonical_reason().unwrap_or_default().replace(' ', "");
        let told = json!({"kind": "Status", "status": "Failure", "reason": reason, "code": status.as_u16()});
        (status, Json(told))
    }

    #[tokio::test]
    async fn what_a_killed_test_has_left_is_removed_before_the_next() {
        let server = ApiServer::holding(&manifest("demo", Broker::Managed, ""));
        server.trial().create(manifest("demo", Broker::Memory, ""), PATIENCE).await.unwrap();
        assert_eq!(server.writes(), ["delete", "create"]);
    }

    #[tokio::test]
    async fn a_cluster_of_somebody_else_is_left_alone() {
        let mut cluster = manifest("demo", Broker::Managed, "");
        cluster.metadata.labels = None;
        let server = ApiServer::holding(&cluster);
        let error = server
            .trial()
            .create(manifest("demo", Broker::Memory, ""), PATIENCE)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("FanoutCluster test/demo already exists"), "{error}");
        assert!(server.writes().is_empty());
    }
}
