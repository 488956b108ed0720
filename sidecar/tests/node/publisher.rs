//! Who published a message, as subscribers on another node are told where the namespace exposes it.

use serde_json::{Value, json};

use crate::{
    redis_server::{PREFIX, Server},
    support::{Client, Cluster, Events, Node, Setup, eventually, token},
};

fn namespaces(expose: bool) -> Value {
    json!([
        {"name": "default", "publish": "allowed", "subscribe": "allowed", "exposePublisher": expose},
        {"name": "room", "publish": "token", "subscribe": "token", "exposePublisher": expose},
    ])
}

/// Two nodes over one Redis.
async fn cluster(redis: &Server, expose: bool) -> Cluster {
    let setup = Setup::open().live("namespaces", namespaces(expose));
    Cluster::over_as(redis, 2, &setup).await
}

/// A path to the channel for `user`.
fn as_user(user: &str, channel: &str) -> String {
    format!("/ws/{channel}?token={}", token(&json!({"sub": user, "grants": [channel]})))
}

async fn framed(node: &Node, path: &str) -> (Client, String) {
    let (mut client, id) = node.framed_with_id(path).await;
    assert!(client.json().await.get("subscribed").is_some());
    (client, id)
}

/// The next publication, without what tells where and when it was published.
async fn publication(client: &mut Client) -> Value {
    let mut message = client.json().await;
    let publication = message["pub"].as_object_mut().unwrap_or_else(|| panic!("a publication"));
    for field in ["channel", "node", "publishedAt"] {
        publication.remove(field);
    }
    message["pub"].take()
}

async fn publish(client: &mut Client, channel: &str, data: &Value, id: Option<&str>) {
    client.send_json(&json!({"publish": {"channel": channel, "data": data, "id": id}})).await;
}

async fn nothing_but_the_payload(bare: &mut Client, events: &mut Events, payload: &str) {
    assert_eq!(bare.text().await, payload);
    assert_eq!(events.event().await, format!("data: {payload}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_on_another_node_is_told_user_and_client_and_that_client_can_be_disconnected() {
    let redis = Server::start();
    let cluster = cluster(&redis, true).await;
    let [near, far] = &cluster.nodes[..] else { unreachable!() };
    let (mut ann, id) = framed(near, &as_user("ann", "room:1")).await;
    let (mut second, other) = framed(near, &as_user("ann", "room:1")).await;
    assert_ne!(id, other);
    let path = as_user("bob", "room:1");
    let (mut bob, _) = framed(far, &path).await;
    let mut bare = far.connect(&path).await;
    let mut events = far.events(&path.replacen("/ws", "/sse", 1)).await;

    publish(&mut ann, "room:1", &json!(1), Some("m1")).await;
    let told = json!({"data": 1, "id": "m1", "publisher": {"user": "ann", "client": id}});
    assert_eq!(publication(&mut bob).await, told);
    nothing_but_the_payload(&mut bare, &mut events, "1").await;
    publish(&mut second, "room:1", &json!(2), None).await;
    let told = json!({"data": 2, "publisher": {"user": "ann", "client": other}});
    assert_eq!(publication(&mut bob).await, told);
    nothing_but_the_payload(&mut bare, &mut events, "2").await;

    // Nobody speaks for another: a message's own words are its payload.
    let forged = json!({"publisher": {"user": "eve", "client": other}});
    publish(&mut ann, "room:1", &forged, None).await;
    let told = json!({"data": forged, "publisher": {"user": "ann", "client": id}});
    assert_eq!(publication(&mut bob).await, told);
    let with_publisher = json!({"channel": "room:1", "data": 1, "publisher": {"user": "eve"}, "id": "x"});
    second.send_json(&json!({ "publish": with_publisher })).await;
    while second.json().await["error"]["code"] != 107 {}

    let reply = far.api("disconnect", &json!({"client": id})).await;
    assert_eq!(reply["result"]["num_clients"], 1, "{reply}");
    assert_eq!(ann.closed().await.0, 3503);
    second.ping().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_no_client_has_no_publisher_and_whoever_has_no_token_has_no_user() {
    let redis = Server::start();
    let cluster = cluster(&redis, true).await;
    let [near, far] = &cluster.nodes[..] else { unreachable!() };
    let (mut subscriber, _) = framed(far, "/ws/lobby").await;

    let (mut anonymous, id) = framed(near, "/ws/lobby").await;
    publish(&mut anonymous, "lobby", &json!(1), None).await;
    assert_eq!(publication(&mut subscriber).await, json!({"data": 1, "publisher": {"client": id}}));
    // A bare client is not told its id, but has one.
    let mut bare = near.connect("/ws/lobby").await;
    bare.send("2").await;
    let told = publication(&mut subscriber).await;
    let client = told["publisher"]["client"].as_str().unwrap();
    assert_eq!(told, json!({"data": 2, "publisher": {"client": client}}));
    assert_eq!(far.api("disconnect", &json!({"client": client})).await["result"]["num_clients"], 1);
    assert_eq!(bare.closed().await.0, 3503);

    let labels = json!({"channel": "lobby", "data": 3, "idempotency_key": "order-17", "key": "price",
        "tags": {"to": "all", "from": "shop"}});
    near.api("publish", &labels).await;
    let told = json!({"data": 3, "id": "order-17", "key": "price", "tags": {"from": "shop", "to": "all"}});
    assert_eq!(publication(&mut subscriber).await, told);
    redis.cli(&["PUBLISH", &format!("{PREFIX}:lobby"), "4"]);
    assert_eq!(subscriber.json().await, json!({"pub": {"channel": "lobby", "data": 4}}));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_publisher_is_told_unless_the_settings_of_the_moment_say_so() {
    let redis = Server::start();
    let mut cluster = cluster(&redis, false).await;
    let [near, far] = &mut cluster.nodes[..] else { unreachable!() };
    let (mut ann, id) = framed(near, &as_user("ann", "room:1")).await;
    let (mut bob, _) = framed(far, &as_user("bob", "room:1")).await;
    let change = async |node: &mut Node, expose: bool| {
        let reloads = "fanout_settings_reloads_total";
        let before = node.metric(reloads).unwrap();
        node.change("namespaces", namespaces(expose));
        node.app.reload();
        eventually("taken over", async || (node.metric(reloads) > Some(before)).then_some(())).await;
    };
    let mut number = 0;
    let mut expect = async |publisher: Value| {
        number += 1;
        publish(&mut ann, "room:1", &json!(number), Some("m")).await;
        let mut told = json!({"data": number});
        if !publisher.is_null() {
            told["id"] = json!("m");
            told["publisher"] = publisher;
        }
        assert_eq!(publication(&mut bob).await, told);
    };
    expect(Value::Null).await;
    // The node of the subscriber alone decides, the node of the publisher alone names the client.
    change(far, true).await;
    expect(json!({"user": "ann"})).await;
    change(near, true).await;
    expect(json!({"user": "ann", "client": id})).await;
    change(far, false).await;
    expect(Value::Null).await;
    cluster.stop().await;
}
