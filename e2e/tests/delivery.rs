//! From a message to every client on every node, whichever way it came in and whichever way they listen.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fanout_e2e::{Fanout, assert_silent, exchange, operator, pods::start_peer, warm_up, with_operator};
use fanout_lab::{EventStream, Namespace, WebSocket, run};
use serde_json::json;

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn what_a_client_sends_reaches_the_clients_of_every_node_once_and_in_order() {
    with_operator("delivery", async |namespace| {
        let fanout = Fanout::apply(namespace, "chat", json!({"replicas": 3})).await?;
        let nodes = fanout.ready(3).await?;
        let mut clients = fanout.clients(&nodes).await?;
        clients.push(WebSocket::open(&fanout.service_url("ws", "/ws/lobby").await?, &[]).await?);
        warm_up(&mut clients).await?;
        let median = exchange(&mut clients).await?;
        assert_silent(&mut clients).await?;
        eprintln!("median delivery across three nodes: {:.1} ms", median.as_secs_f64() * 1e3);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn an_event_source_receives_through_the_service_what_a_websocket_sends() {
    with_operator("sse", async |namespace| {
        let fanout = Fanout::apply(namespace, "chat", json!({})).await?;
        let nodes = fanout.ready(2).await?;
        let mut clients = fanout.clients(&nodes).await?;
        warm_up(&mut clients).await?;
        let mut listener = EventStream::open(&fanout.service_url("http", "/sse/lobby").await?).await?;
        let received = namespace
            .until("an event to arrive", SOON, async || {
                clients[0].send(r#"{"seen":"by EventSource"}"#).await?;
                listener.next(Duration::from_secs(1)).await.map(Some)
            })
            .await?;
        ensure!(received.data == r#"{"seen":"by EventSource"}"#, "received {received:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn the_readmes_publish_in_redis_reaches_every_client() {
    with_operator("redis-cli", async |namespace| {
        let fanout = Fanout::apply(namespace, "chat", json!({})).await?;
        let nodes = fanout.ready(2).await?;
        let mut clients = fanout.clients(&nodes).await?;
        warm_up(&mut clients).await?;
        let receivers = shell(namespace, &readme_command("redis-cli PUBLISH")?).await?;
        ensure!(receivers.trim() == "2", "Redis had {} subscribers, not one a node", receivers.trim());
        all_receive(&mut clients, r#"{"text": "hello"}"#).await?;
        assert_silent(&mut clients).await
    })
    .await;
}

#[tokio::test]
async fn a_backend_publishes_by_http_through_the_api_service() {
    with_operator("http-api", async |namespace| {
        let fanout = Fanout::apply(namespace, "chat", json!({})).await?;
        let nodes = fanout.ready(2).await?;
        start_peer(namespace, "backend").await?;
        let mut clients = fanout.clients(&nodes).await?;
        warm_up(&mut clients).await?;
        let key = api_key(namespace, "chat-api-key").await?;
        let body = r#"{"channel":"lobby","data":{"from":"backend"}}"#;
        namespace
            .until("the API Service to answer", SOON, async || publish(namespace, &key, body).await.map(Some))
            .await?;
        all_receive(&mut clients, r#"{"from":"backend"}"#).await?;
        let refused = publish(namespace, "wrong", body).await;
        ensure!(refused.is_err(), "a wrong key was accepted: {refused:?}");
        assert_silent(&mut clients).await
    })
    .await;
}

/// The command of the README that says `words`.
fn readme_command(words: &str) -> Result<String> {
    let readme = std::fs::read_to_string(operator::root().join("README.md"))?;
    let blocks = readme.split("```sh\n").skip(1).filter_map(|block| block.split("```").next());
    let found = blocks.filter(|block| block.contains(words)).collect::<Vec<_>>();
    let [command] = found[..] else { bail!("the README has {} commands with {words}", found.len()) };
    Ok(command.to_owned())
}

/// Runs a command as a person would whose namespace this is, where the README's reader has `default`.
async fn shell(namespace: &Namespace, command: &str) -> Result<String> {
    let here = command
        .replace("kubectl ", &format!("kubectl --namespace {} ", namespace.name()))
        .replace(" default.", &format!(" {}.", namespace.name()));
    run("sh", &["-c", &here], None).await?.ok(&here)
}

async fn all_receive(clients: &mut [WebSocket], text: &str) -> Result<()> {
    for client in clients {
        let received = client.next_text(SOON).await?;
        ensure!(received == text, "received {received}");
    }
    Ok(())
}

async fn api_key(namespace: &Namespace, secret: &str) -> Result<String> {
    let template = r#"go-template={{index .data "api-key" | base64decode}}"#;
    namespace.kubectl(&["get", "secret", secret, "-o", template]).await.context("no API key")
}

async fn publish(namespace: &Namespace, key: &str, body: &str) -> Result<String> {
    let key = format!("--header=X-API-Key: {key}");
    let data = format!("--post-data={body}");
    let url = "http://chat-api:8001/api/publish";
    let json = "--header=Content-Type: application/json";
    namespace.exec("backend", None, &["timeout", "5", "wget", "-q", "-O", "-", &key, json, &data, url]).await
}
