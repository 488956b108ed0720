//! What others break is put back; what nobody breaks is left alone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fanout_e2e::{Fanout, audit_log, operator, warm_up, with_operator};
use fanout_lab::{ApiRequest, Namespace, sample};
use serde_json::{Value, json};

/// The promise is one second; `kubectl` itself takes part of another.
const AT_ONCE: Duration = Duration::from_secs(3);

#[tokio::test]
async fn a_deleted_or_edited_child_is_back_at_once() {
    with_operator("drift", async |namespace| {
        let fanout = Fanout::apply(namespace, "chat", json!({})).await?;
        fanout.ready(2).await?;
        for child in ["service/chat", "service/chat-api", "networkpolicy/chat", "poddisruptionbudget/chat"] {
            let uid = uid(namespace, child).await?;
            namespace.kubectl(&["delete", child, "--wait=false"]).await?;
            let took = until(namespace, child, |object| object["metadata"]["uid"] != uid.as_str()).await?;
            eprintln!("{child} was back after {} ms", took.as_millis());
        }
        let edit = json!({"spec": {"selector": {"fanout.dev/cluster": "another"}}}).to_string();
        namespace.kubectl(&["patch", "service/chat", "--type=merge", "-p", &edit]).await?;
        let selected = "/spec/selector/fanout.dev~1cluster";
        until(namespace, "service/chat", |object| object.pointer(selected) == Some(&json!("chat"))).await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn what_somebody_took_from_a_generated_secret_or_a_replica_set_is_put_back_at_once() {
    with_operator("mend", async |namespace| {
        let fanout = Fanout::apply(namespace, "chat", json!({})).await?;
        let nodes = fanout.ready(2).await?;
        let secret = "secret/chat-api-key";
        namespace.kubectl(&["label", secret, "fanout.dev/cluster-"]).await?;
        let label = "/metadata/labels/fanout.dev~1cluster";
        until(namespace, secret, |object| object.pointer(label) == Some(&json!("chat"))).await?;
        let gone = json!({"data": {"api-key": null}}).to_string();
        namespace.kubectl(&["patch", secret, "--type=merge", "-p", &gone]).await?;
        until(namespace, secret, |object| object.pointer("/data/api-key").is_some_and(Value::is_string))
            .await?;

        let set = namespace.kubectl(&["get", "rs", "-l", "fanout.dev/cluster=chat", "-o", "name"]).await?;
        namespace.kubectl(&["annotate", set.trim(), "fanout.dev/rendered-"]).await?;
        let rendered = "/metadata/annotations/fanout.dev~1rendered";
        until(namespace, set.trim(), |object| object.pointer(rendered).is_some()).await?;
        fanout.scale(3).await?;
        let grown = fanout.ready(3).await?;
        ensure!(nodes.iter().all(|pod| grown.iter().any(|node| node.uid == pod.uid)), "pods were replaced");
        fanout.condition("Degraded", "False").await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn an_idle_cluster_with_clients_causes_no_write() {
    with_operator("idle", async |namespace| {
        let Some(audit) = audit_log(namespace.cluster()) else { return Ok(()) };
        let fanout = Fanout::apply(namespace, "chat", json!({})).await?;
        let nodes = fanout.ready(2).await?;
        let mut clients = fanout.clients(&nodes).await?;
        warm_up(&mut clients).await?;
        // The clients are counted in status within 30 s; after that there is nothing to say.
        namespace
            .until("status to count the clients", Duration::from_secs(60), async || {
                Ok((fanout.object().await?["status"]["connections"] == clients.len()).then_some(()))
            })
            .await?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let began = audit.position()?;
        sample("every client's connection", Duration::from_secs(60), async || {
            Ok(clients.iter().all(fanout_lab::WebSocket::is_open))
        })
        .await?;
        let requests = audit.requests_since(began, operator::USER)?;
        let writes: Vec<_> = requests.iter().filter(|request| concerns(request, namespace.name())).collect();
        ensure!(writes.is_empty(), "{} writes in 60 s: {writes:#?}", writes.len());
        Ok(())
    })
    .await;
}

fn concerns(request: &ApiRequest, namespace: &str) -> bool {
    request.is_write() && request.namespace == namespace
}

async fn uid(namespace: &Namespace, child: &str) -> Result<String> {
    let object = namespace.get(&[child]).await?;
    Ok(object["metadata"]["uid"].as_str().context("an object without a uid")?.to_owned())
}

async fn until(namespace: &Namespace, child: &str, is_met: impl Fn(&Value) -> bool) -> Result<Duration> {
    let began = Instant::now();
    let what = format!("{child} to be put back");
    namespace
        .until(&what, AT_ONCE, async || Ok(is_met(&namespace.get(&[child]).await?).then_some(())))
        .await?;
    Ok(began.elapsed())
}
