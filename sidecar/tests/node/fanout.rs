//! A message published anywhere reaches every subscriber everywhere, once and in order.

use serde_json::json;

use crate::{
    redis_server::{PREFIX, Server},
    support::{Client, Cluster, Setup, eventually, with_sidecar},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_message_published_on_any_node_reaches_every_subscriber_of_three() {
    let cluster = Cluster::of(3).await;
    reaches_all(&cluster).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_over_a_real_redis_and_redis_cli_is_a_publisher_too() {
    let redis = Server::start();
    let cluster = Cluster::over(&redis, 3).await;
    reaches_all(&cluster).await;
    let mut clients = Vec::new();
    for node in &cluster.nodes {
        clients.push(node.connect("/ws/lobby").await);
    }
    assert_eq!(redis.cli(&["PUBLISH", &format!("{PREFIX}:lobby"), r#"{"hi":1}"#]).trim(), "3");
    for client in &mut clients {
        assert_eq!(client.text().await, r#"{"hi":1}"#);
    }
    cluster.stop().await;
}

/// A WebSocket in each mode and an event stream on each node; each node publishes by its API and by a client.
async fn reaches_all(cluster: &Cluster) {
    let (mut bare, mut framed, mut events): (Vec<Client>, Vec<Client>, Vec<_>) = Default::default();
    for node in &cluster.nodes {
        bare.push(node.connect("/ws/lobby").await);
        framed.push(node.framed("/ws/lobby").await);
        events.push(node.events("/sse/lobby").await);
    }
    for client in &mut framed {
        assert_eq!(client.json().await, json!({"subscribed": {"channel": "lobby"}}));
    }
    let mut sent = Vec::new();
    for (number, node) in cluster.nodes.iter().enumerate() {
        node.publish("lobby", &json!({"api": number})).await;
        sent.push(json!({"api": number}));
        bare[number].send(&json!({"client": number}).to_string()).await;
        sent.push(json!({"client": number}));
        // Two publishers have no common order until one has seen the other's message.
        for client in &mut bare {
            assert_eq!(client.json().await, sent[sent.len() - 2]);
            assert_eq!(client.json().await, sent[sent.len() - 1]);
        }
    }
    for message in &sent {
        for client in &mut framed {
            let arrived = client.json().await;
            assert_eq!((&arrived["pub"]["channel"], &arrived["pub"]["data"]), (&json!("lobby"), message));
            assert!(
                arrived["pub"]["node"].is_string() && arrived["pub"]["publishedAt"].is_u64(),
                "{arrived}"
            );
        }
        for stream in &mut events {
            assert_eq!(stream.event().await, format!("data: {message}"));
        }
    }
    for client in bare.iter_mut().chain(&mut framed) {
        client.nothing_comes().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_arrives_whole_and_in_order_on_the_other_node() {
    let cluster = Cluster::of(2).await;
    let mut reader = cluster.nodes[1].connect("/ws/room-1").await;
    let mut writer = cluster.nodes[0].connect("/ws/room-1").await;
    for number in 0..400 {
        writer.send(&number.to_string()).await;
    }
    for number in 0..400 {
        assert_eq!(reader.text().await, number.to_string());
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_arrive_as_bytes_and_text_as_text() {
    with_sidecar(Setup::open(), async |node| {
        let mut bare = node.connect("/ws/lobby").await;
        let mut framed = node.framed("/ws/lobby").await;
        framed.json().await;
        bare.send_binary(&[0, 255]).await;
        assert_eq!(bare.message().await.into_data(), vec![0, 255]);
        assert_eq!(framed.json().await["pub"]["b64data"], "AP8=");
        bare.send("no JSON").await;
        assert_eq!(framed.json().await["pub"]["data"], "no JSON");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_comes_back_is_subscribed_to_again() {
    let mut redis = Server::start();
    let cluster = Cluster::over(&redis, 2).await;
    let [first, second] = &cluster.nodes[..] else { unreachable!() };
    let mut client = second.framed("/ws/lobby").await;
    client.json().await;
    redis.kill();
    first.until_metric("fanout_broker_connected", 0.0).await;
    let refused = first.api("publish", &json!({"channel": "lobby", "data": 1})).await;
    assert_eq!(refused["error"]["code"], 100, "{refused}");
    assert!(first.app.readiness().missing().is_empty(), "KeepClients: an outage does not take the node away");
    redis.restart();
    let published = async || {
        let reply = first.api("publish", &json!({"channel": "lobby", "data": "back"})).await;
        reply.get("result").map(drop)
    };
    eventually("published again", published).await;
    for node in &cluster.nodes {
        node.until_metric("fanout_broker_connected", 1.0).await;
    }
    first.publish("lobby", &json!("last")).await;
    let mut seen = vec![client.json().await];
    while seen[seen.len() - 1]["pub"]["data"] != "last" {
        seen.push(client.json().await);
    }
    assert!(seen.iter().any(|message| message.get("gap").is_some()), "the outage is told: {seen:?}");
    cluster.stop().await;
}
