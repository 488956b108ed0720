//! `kubectl fanout restart`: replaces every node of a FanoutCluster by one of the same settings, by a new value of
//! `spec.restartedAt`, and waits for it if asked to.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use fanout_operator::api::{ConditionType, FanoutCluster};
use k8s_openapi::jiff::{Timestamp, Unit};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::sleep;

/// Who this command is to the API server.
const FIELD_MANAGER: &str = "kubectl-fanout-restart";
/// Time between two looks at the cluster.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Arguments of `kubectl fanout restart`.
#[derive(Debug, clap::Args)]
pub(crate) struct RestartArgs {
    /// Name of the FanoutCluster.
    name: String,
    /// Namespace of the FanoutCluster. Defaults to that of the kubeconfig.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Wait until every node has been replaced and the cluster is ready.
    #[arg(long)]
    wait: bool,
    /// Maximum time to wait, in seconds.
    #[arg(long, default_value_t = 1_800, value_name = "SECONDS")]
    timeout_seconds: u64,
}

pub(crate) async fn run(args: RestartArgs) -> anyhow::Result<()> {
    let RestartArgs { name, namespace, wait, timeout_seconds } = args;
    let kube = Client::try_default().await.context("failed to find a Kubernetes cluster")?;
    let namespace = namespace.unwrap_or_else(|| kube.default_namespace().to_owned());
    let clusters: Api<FanoutCluster> = Api::namespaced(kube, &namespace);
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let asked = clusters.patch(&name, &params, &Patch::Merge(patch(Timestamp::now()))).await;
    let asked = asked.with_context(|| format!("failed to restart FanoutCluster {namespace}/{name}"))?;
    let generation = asked.metadata.generation.unwrap_or_default();
    println!("FanoutCluster {namespace}/{name}: {}", how(&asked));
    if wait {
        wait_for(&clusters, &name, generation, Duration::from_secs(timeout_seconds)).await?;
        println!("FanoutCluster {namespace}/{name}: every node is replaced");
    }
    Ok(())
}

/// What is changed. Whole seconds: two restarts within one are one.
fn patch(now: Timestamp) -> Value {
    json!({"spec": {"restartedAt": now.round(Unit::Second).unwrap_or(now).to_string()}})
}

fn how(cluster: &FanoutCluster) -> &'static str {
    if cluster.spec.paused {
        "its nodes are replaced once spec.paused is false"
    } else {
        "its nodes are replaced one after the other"
    }
}

async fn wait_for(
    clusters: &Api<FanoutCluster>,
    name: &str,
    generation: i64,
    patience: Duration,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut told = None;
    loop {
        let cluster = clusters.get(name).await.context("failed to read the FanoutCluster")?;
        let state = state(&cluster, generation);
        if state.done {
            return Ok(());
        }
        if begun.elapsed() >= patience {
            bail!("not complete after {} s: {}", patience.as_secs(), state.words);
        }
        if told.as_ref() != Some(&state.words) {
            println!("  {}", state.words);
            told = Some(state.words);
        }
        sleep(LOOK_EVERY).await;
    }
}

/// How far the operator has come with a generation of the spec.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    done: bool,
    words: String,
}

fn state(cluster: &FanoutCluster, generation: i64) -> State {
    let status = cluster.status.as_ref();
    let seen = status.filter(|status| status.observed_generation.is_some_and(|seen| seen >= generation));
    let conditions = seen.map(|status| status.conditions.as_slice()).unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.type_ == ConditionType::Ready.to_string());
    match ready {
        None => State { done: false, words: "the operator has not seen it yet".to_owned() },
        Some(ready) => State { done: ready.status == "True", words: ready.message.clone() },
    }
}

#[cfg(test)]
mod tests {
    use fanout_operator::api::FanoutClusterSpec;

    use super::*;

    fn cluster(status: Value) -> FanoutCluster {
        let mut cluster = FanoutCluster::new("chat", FanoutClusterSpec::default());
        cluster.status = Some(serde_json::from_value(status).unwrap());
        cluster
    }

    #[test]
    fn the_time_of_a_restart_is_one_that_an_api_server_accepts() {
        let spec = patch(Timestamp::UNIX_EPOCH)["spec"].take();
        assert_eq!(spec["restartedAt"], "1970-01-01T00:00:00Z");
        let pattern = &fanout_operator::api::crd::crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
            ["spec"]["properties"]["restartedAt"];
        let schema = jsonschema::validator_for(pattern).unwrap();
        assert!(schema.is_valid(&patch(Timestamp::now())["spec"]["restartedAt"]));
    }

    #[test]
    fn a_restart_is_done_once_the_operator_says_so_of_this_generation() {
        let ready = |status: &str| {
            json!({"type": "Ready", "status": status, "reason": "X", "message": "1 of 3 nodes serve",
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        let state = |seen: i64, status: &str| {
            state(&cluster(json!({"observedGeneration": seen, "conditions": [ready(status)]})), 2)
        };
        assert!(!state(1, "True").done, "of the generation before");
        assert!(!state(2, "False").done);
        assert_eq!(state(2, "False").words, "1 of 3 nodes serve");
        assert!(state(2, "True").done && state(3, "True").done);
    }
}
