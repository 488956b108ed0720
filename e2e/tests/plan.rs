//! `kubectl fanout plan`: what it says is what the operator then does.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use fanout_e2e::{Fanout, kubectl_fanout, with_operator};
use fanout_lab::{Namespace, pods, sample};
use serde_json::{Value, json};

/// A rollout of two nodes on a busy machine, and the two minutes that the kubelet takes to hand over settings.
const DEADLINE: Duration = Duration::from_secs(240);

/// What Kubernetes calls a pod, beside its name.
type Uids = BTreeSet<(String, String)>;

#[tokio::test]
async fn a_plan_says_what_the_operator_then_does() {
    with_operator("plan", async |namespace| {
        let lobby =
            json!({"name": "default", "channels": ["lobby"], "publish": "allowed", "subscribe": "allowed"});
        let news = json!({"name": "news", "subscribe": "allowed"});
        let annotated = |text: &str| json!({"metadata": {"annotations": {"example.com/build": text}}});
        // What follows keeps what was before, as edits of one file do.
        let edits = [
            ("a new cluster", json!({})),
            ("a namespace", json!({"namespaces": [lobby, news]})),
            ("an annotation of the pods", json!({"podTemplate": annotated("1")})),
            ("more nodes", json!({"replicas": 3})),
            ("fewer nodes", json!({"replicas": 2})),
            ("the image of the managed Redis", json!({"redis": {"managed": {"image": "redis:7.2-alpine"}}})),
            ("a pause", json!({"paused": true, "podTemplate": annotated("2")})),
            ("the end of the pause", json!({"paused": false})),
        ];
        let mut spec = json!({"replicas": 2});
        for (what, edit) in edits {
            spec.as_object_mut().expect("an object").extend(edit.as_object().expect("an object").clone());
            agrees(namespace, &Fanout::manifest("chat", spec.clone()))
                .await
                .with_context(|| what.to_owned())?;
        }
        Ok(())
    })
    .await;
}

/// Plans a manifest, applies it, and compares what was said with what happened.
async fn agrees(namespace: &Namespace, manifest: &Value) -> Result<()> {
    let fanout = Fanout::at(namespace, "chat");
    let said = plan(namespace, manifest).await?;
    let [nodes, redis] = [uids(namespace, "cluster").await?, uids(namespace, "redis").await?];
    namespace.apply(&manifest.to_string()).await?;
    if said["state"] == "paused" {
        return sample("every pod's being left alone", Duration::from_secs(10), async || {
            Ok(uids(namespace, "cluster").await? == nodes && uids(namespace, "redis").await? == redis)
        })
        .await;
    }
    let number = |field: &str| said["nodes"][field].as_u64().with_context(|| format!("no {field}: {said}"));
    let [wanted, replaced, added, removed] =
        [number("wanted")?, number("replaced")?, number("added")?, number("removed")?];
    let now = namespace
        .until("the cluster to be as it was applied", DEADLINE, async || {
            let object = fanout.object().await?;
            let (status, generation) = (&object["status"], &object["metadata"]["generation"]);
            ensure!(status["observedGeneration"] == *generation, "the status is of before");
            let conditions = status["conditions"].as_array().context("no conditions")?;
            let ready = conditions.iter().any(|told| told["type"] == "Ready" && told["status"] == "True");
            ensure!(ready, "it is not ready: {status}");
            ensure!(status["updateRevision"] == said["revision"]["name"], "another revision: {status}");
            let server = uids(namespace, "redis").await?;
            let is_replaced = server.is_disjoint(&redis) && server.len() == 1;
            ensure!(
                is_replaced == (said["redis"] != "kept"),
                "Redis was {redis:?} and is {server:?}: {said}"
            );
            let now = uids(namespace, "cluster").await?;
            Ok((now.len() as u64 == wanted).then_some(now))
        })
        .await?;
    let gone: Vec<_> = nodes.difference(&now).map(|(name, _)| name.as_str()).collect();
    ensure!(gone.len() as u64 == replaced + removed, "{gone:?} went: {said}");
    ensure!(now.difference(&nodes).count() as u64 == replaced + added, "{nodes:?} became {now:?}: {said}");
    let leaving = said["nodes"]["leaving"].as_array().context("a list")?;
    if leaving.iter().all(|node| !node["connections"].is_null()) {
        let named: BTreeSet<_> = leaving.iter().filter_map(|node| node["name"].as_str()).collect();
        ensure!(named == gone.iter().copied().collect(), "{gone:?} went: {said}");
    }
    let again = plan(namespace, manifest).await?;
    ensure!(again["changes"] == false, "it is not done: {again}");
    let by_name = kubectl_fanout(namespace, &["plan", "chat", "--exit-code"], None).await?;
    let printed = by_name.ok("kubectl fanout plan --exit-code")?;
    ensure!(printed.contains("No changes: the cluster is as this says."), "{printed}");
    Ok(())
}

async fn plan(namespace: &Namespace, manifest: &Value) -> Result<Value> {
    let stored = ["get", "foc", "-o", "jsonpath={.items[*].metadata['uid','generation']}"];
    let before = namespace.kubectl(&stored).await?;
    let args = ["plan", "-f", "-", "-o", "json"];
    let printed = kubectl_fanout(namespace, &args, Some(&manifest.to_string())).await?;
    let mut printed: Value = serde_json::from_str(&printed.ok("kubectl fanout plan")?)?;
    let after = namespace.kubectl(&stored).await?;
    ensure!(before == after, "planning wrote: {before} became {after}");
    Ok(printed["clusters"][0].take())
}

/// Pods by the label that names `chat`, those that end apart.
async fn uids(namespace: &Namespace, label: &str) -> Result<Uids> {
    let mut pods = pods(namespace, &format!("fanout.dev/{label}=chat")).await?;
    pods.retain(|pod| !pod.terminating && pod.object["status"]["phase"] != "Succeeded");
    Ok(pods.into_iter().map(|pod| (pod.name, pod.uid)).collect())
}
