//! Who may open connections, port by port: each with a peer that may and one that may not.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fanout_e2e::{
    Fanout,
    pods::{can_connect, container, start_peer},
    with_operator,
};
use fanout_lab::Namespace;
use serde_json::json;

const CLIENT: u16 = 8000;
const API: u16 = 8001;
const ADMIN: u16 = 8002;
const CONTROL: u16 = 8003;
/// A port of the user's own container.
const APP: u16 = 9000;
/// For a policy to take effect, or a container to listen.
const PATIENCE: Duration = Duration::from_secs(20);
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

        // Clients come from everywhere, by design: nobody is refused.
        admitted(namespace, "neighbour", node, CLIENT).await?;
        admitted(&elsewhere, "stranger", node, CLIENT).await?;
        // Backends are those of the namespace.
        admitted(namespace, "neighbour", node, API).await?;
        refused(&elsewhere, "stranger", node, API).await?;
        // Probes, counts and profiles are for the operator.
        operator_reads_admin(&fanout).await?;
        refused(namespace, "neighbour", node, ADMIN).await?;
        refused(&elsewhere, "stranger", node, ADMIN).await?;

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
async fn peers_that_the_spec_names_are_admitted_to_the_port_they_are_named_for_and_to_no_other() {
    with_operator("policy-from", async |namespace| {
        let elsewhere = namespace.cluster().namespace("policy-backend", true).await?;
        let peer = |namespace: &Namespace, app: &str| {
            json!({
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace.name()}},
                "podSelector": {"matchLabels": {"app": app}},
            })
        };
        let policy = json!({
            "apiFrom": [peer(&elsewhere, "backend")],
            "metricsFrom": [peer(&elsewhere, "prometheus"), peer(namespace, "scraper")],
        });
        let fanout =
            Fanout::apply(namespace, "chat", json!({"replicas": 1, "networkPolicy": policy})).await?;
        let nodes = fanout.ready(1).await?;
        let node = nodes[0].ip.as_deref().context("the node has no address")?;
        for name in ["backend", "prometheus", "stranger"] {
            start_peer(&elsewhere, name).await?;
        }
        for name in ["scraper", "neighbour"] {
            start_peer(namespace, name).await?;
        }

        admitted(&elsewhere, "backend", node, API).await?;
        refused(&elsewhere, "prometheus", node, API).await?;
        refused(&elsewhere, "stranger", node, API).await?;
        admitted(&elsewhere, "prometheus", node, ADMIN).await?;
        admitted(namespace, "scraper", node, ADMIN).await?;
        refused(&elsewhere, "backend", node, ADMIN).await?;
        refused(namespace, "neighbour", node, ADMIN).await
    })
    .await;
}

#[tokio::test]
async fn the_reserved_port_is_refused_even_where_something_listens() {
    with_operator("policy-control", async |namespace| {
        let elsewhere = namespace.cluster().namespace("policy-control-other", true).await?;
        // The hub does not listen there yet, so that a refusal would prove nothing: the app does, and at a port of its
        // own, which stays as open as without a hub.
        let listen = format!("httpd -f -p {CONTROL} -h /etc & exec httpd -f -p {APP} -h /etc");
        let mut app = container(&listen, "10m");
        app["name"] = "app".into();
        let spec = json!({"replicas": 1, "podTemplate": {"spec": {"containers": [app]}}});
        let nodes = Fanout::apply(namespace, "chat", spec).await?.ready(1).await?;
        let node = nodes[0].ip.as_deref().context("the node has no address")?;
        start_peer(namespace, "neighbour").await?;
        start_peer(&elsewhere, "stranger").await?;
        namespace
            .until("the app to listen at the reserved port", PATIENCE, async || {
                Ok(can_connect_inside(namespace, &nodes[0].name).await?.then_some(()))
            })
            .await?;

        for (peer, from) in [("neighbour", namespace), ("stranger", &elsewhere)] {
            admitted(from, peer, node, APP).await?;
            refused(from, peer, node, CONTROL).await?;
        }
        Ok(())
    })
    .await;
}

/// Whether the app container itself reaches the reserved port.
async fn can_connect_inside(namespace: &Namespace, pod: &str) -> Result<bool> {
    let probe = format!("timeout 2 nc 127.0.0.1 {CONTROL} </dev/null");
    let args = ["exec", pod, "-c", "app", "--", "sh", "-c", &probe];
    Ok(namespace.try_kubectl(&args, None).await?.success)
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
        .until(&what, PATIENCE, async || {
            Ok((can_connect(namespace, pod, host, port).await? == admitted).then_some(()))
        })
        .await
}
