//! Who may open connections, port by port: each with a peer that may and one that may not.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fanout_e2e::{
    Fanout,
    pods::{can_connect, start_peer},
    with_operator,
};
use fanout_lab::Namespace;
use serde_json::json;

const CLIENT: u16 = 8000;
const API: u16 = 8001;
const ADMIN: u16 = 8002;
const REDIS: u16 = 6379;

#[tokio::test]
async fn each_port_admits_those_it_is_for_and_refuses_the_others() {
    with_operator("policy", async |namespace| {
        let elsewhere = namespace.cluster().namespace("policy-other", true).await?;
        let fanout = Fanout::apply(namespace, "chat", json!({})).await?;
        let nodes = fanout.ready(2).await?;
        let node = nodes[0].ip.as_deref().context("the node has no address")?;
        start_peer(namespace, "neighbour").await?;
        start_peer(&elsewhere, "stranger").await?;

        admitted(namespace, "neighbour", node, CLIENT).await?;
        admitted(&elsewhere, "stranger", node, CLIENT).await?;
        admitted(namespace, "neighbour", node, API).await?;
        refused(&elsewhere, "stranger", node, API).await?;
        refused(namespace, "neighbour", node, ADMIN).await?;
        refused(&elsewhere, "stranger", node, ADMIN).await?;
        operator_reads_admin(&fanout).await?;

        let redis = fanout_lab::pods(namespace, "fanout.dev/redis=chat").await?;
        let redis = redis[0].ip.as_deref().context("the Redis has no address")?;
        refused(namespace, "neighbour", redis, REDIS).await?;
        // That the nodes reach it is what Ready with a verified delivery says.
        fanout.condition("RedisReachable", "True").await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn api_from_admits_another_namespace_to_the_api_and_to_nothing_else() {
    with_operator("policy-from", async |namespace| {
        let elsewhere = namespace.cluster().namespace("policy-backend", true).await?;
        let peer =
            json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": elsewhere.name()}}});
        let spec = json!({"replicas": 1, "networkPolicy": {"apiFrom": [peer]}});
        let fanout = Fanout::apply(namespace, "chat", spec).await?;
        let nodes = fanout.ready(1).await?;
        let node = nodes[0].ip.as_deref().context("the node has no address")?;
        start_peer(&elsewhere, "backend").await?;
        admitted(&elsewhere, "backend", node, API).await?;
        refused(&elsewhere, "backend", node, ADMIN).await
    })
    .await;
}

#[tokio::test]
async fn a_quota_and_the_restricted_standard_are_satisfied() {
    with_operator("quota", async |namespace| {
        let quota = "--hard=limits.cpu=8,limits.memory=4Gi,requests.cpu=2,requests.memory=2Gi,pods=8";
        namespace.kubectl(&["create", "quota", "team", quota]).await?;
        let fanout = Fanout::apply(namespace, "chat", json!({})).await?;
        fanout.ready(2).await?;
        Ok(())
    })
    .await;
}

/// The operator reads connection counts at the admin port, so that a count in status shows that it was let in.
async fn operator_reads_admin(fanout: &Fanout<'_>) -> Result<()> {
    let client = fanout_e2e::open_lobby(&fanout.nodes().await?[0]).await?;
    fanout_lab::await_condition(
        "status.connections to count a client",
        Duration::from_secs(60),
        async || Ok((fanout.object().await?["status"]["connections"] == 1).then_some(())),
    )
    .await?;
    ensure!(client.is_open(), "the client lost its connection");
    Ok(())
}

/// Policies take effect a moment after a pod starts, either way.
async fn admitted(namespace: &Namespace, pod: &str, host: &str, port: u16) -> Result<()> {
    expect(namespace, pod, host, port, true).await
}

async fn refused(namespace: &Namespace, pod: &str, host: &str, port: u16) -> Result<()> {
    expect(namespace, pod, host, port, false).await
}

async fn expect(namespace: &Namespace, pod: &str, host: &str, port: u16, admitted: bool) -> Result<()> {
    let what = format!("{pod} to be {} at {host}:{port}", if admitted { "admitted" } else { "refused" });
    namespace
        .until(&what, Duration::from_secs(20), async || {
            Ok((can_connect(namespace, pod, host, port).await? == admitted).then_some(()))
        })
        .await
}
