//! What clients and backends hear when Redis, or the node itself, stands still.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    binary::{Program, sidecar},
    redis_server::{PREFIX, Server},
    support::{Client, Node, Setup, eventually, http, token},
};

/// Why a channel has a gap that Redis no longer delivers, or delivers again.
const REFUSED: &str = "the broker refuses the channel";

fn over(server: &Server) -> Setup {
    let redis = json!({"address": format!("localhost:{}", server.port), "channelPrefix": PREFIX});
    Setup::open().boot("broker", json!({"redis": redis}))
}

async fn framed(node: &Node, path: &str) -> Client {
    let mut client = node.framed(path).await;
    assert!(client.json().await.get("subscribed").is_some());
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_key_reaches_clients_once_whichever_node_takes_it() {
    let server = Server::start();
    let nodes = [over(&server).start().await, over(&server).start().await];
    let mut client = framed(&nodes[1], "/ws/lobby").await;
    let publish = async |node: &Node, data: u32, key: Option<&str>| {
        let answer =
            node.api("publish", &json!({"channel": "lobby", "data": data, "idempotency_key": key})).await;
        answer["result"]["duplicate"].as_bool().unwrap_or_default()
    };
    let mut told = Vec::new();
    for (at, data, key) in
        [(0, 1, Some("k")), (0, 2, Some("k")), (1, 3, Some("k")), (0, 4, None), (1, 5, Some("l"))]
    {
        told.push(publish(&nodes[at], data, key).await);
    }
    assert_eq!(told, [false, true, true, false, false]);
    for expected in [1, 4, 5] {
        assert_eq!(client.json().await["pub"]["data"], expected, "no gap in between");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_belongs_to_its_user() {
    let server = Server::start();
    let node = over(&server).start().await;
    let publish = json!({"publish": {"channel": "lobby", "data": 1, "id": "1", "idempotencyKey": "k"}});
    let mut anonymous = framed(&node, "/ws/lobby").await;
    anonymous.send_json(&publish).await;
    let error = anonymous.json().await;
    assert_eq!(error["error"]["code"], 107);
    assert!(error["error"]["message"].as_str().unwrap().contains("`sub`"), "{error}");
    for (user, duplicate) in [("ann", Value::Null), ("bob", Value::Null), ("ann", true.into())] {
        let token = token(&json!({"sub": user}));
        let mut client = framed(&node, &format!("/ws?channel=room-1&token={token}")).await;
        client.send_json(&publish).await;
        assert_eq!(client.json().await["published"]["duplicate"], duplicate, "{user}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_is_unknown_is_called_so_in_every_protocol() {
    let server = Server::start();
    let node = over(&server).start().await;
    let mut listener = framed(&node, "/ws/lobby").await;
    let (mut sender, mut bare) = (framed(&node, "/ws/room-1").await, node.connect("/ws/lobby").await);
    server.freeze();
    sender.send_json(&json!({"publish": {"channel": "lobby", "data": 1, "id": "1"}})).await;
    bare.send("2").await;
    let body = json!({"channel": "lobby", "data": 3});
    let api = node.api("publish", &body).await;
    assert_eq!(api["error"]["code"], 120, "{api}");
    assert!(api["error"]["message"].as_str().unwrap().contains("`idempotency_key`"), "{api}");
    let error = sender.json().await;
    assert_eq!(
        (&error["error"]["code"], &error["error"]["temporary"]),
        (&json!(120), &json!(false)),
        "{error}"
    );
    assert_eq!(bare.closed().await.0, 4020);
    let later = node.api("publish", &body).await;
    assert_eq!(later["error"]["code"], 100, "not sent at all: {later}");
    let broadcast = node.api("broadcast", &json!({"channels": ["lobby"], "data": 4})).await;
    assert_eq!(broadcast["result"]["responses"][0]["error"]["code"], 100, "{broadcast}");
    server.thaw();
    let mut came = Vec::new();
    for _ in 0..3 {
        came.push(listener.json().await["pub"]["data"].as_u64().unwrap());
    }
    came.sort_unstable();
    assert_eq!(came, [1, 2, 3], "what was sent is delivered all the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_stopped_delivers_what_lies_in_its_socket() {
    let server = Server::start();
    let program = Program::start(&over(&server)).await;
    let mut client = program.connect("/ws/lobby").await;
    program.signal(Signal::STOP);
    let stopped = Instant::now();
    for number in 0..13 {
        server.cli(&["PUBLISH", &format!("{PREFIX}:lobby"), &number.to_string()]);
    }
    // Longer than any deadline of a silent connection.
    sleep(Duration::from_secs(16).saturating_sub(stopped.elapsed())).await;
    program.signal(Signal::CONT);
    for number in 0..13 {
        assert_eq!(client.text().await, number.to_string());
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(program.metric("fanout_broker_rebuilds_total").await, 0);
    assert_eq!(program.metric("fanout_broker_reconnects_total").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_new_subscribes_to_a_channel_while_redis_refuses_it() {
    let server = Server::start();
    let node = over(&server).start().await;
    let mut early = framed(&node, "/ws/room-1").await;
    let mut other = framed(&node, "/ws/lobby").await;
    let nodes = format!("&fanout-nodes/{PREFIX}/*");
    server.cli(&["ACL", "SETUSER", "default", "resetchannels", &nodes, &format!("&{PREFIX}:lobby")]);
    // Redis closes the connection of a client that may no longer receive.
    while early.json().await["gap"]["reason"] != REFUSED {}
    // On every shard, whether it has a subscriber already or not.
    for _ in 0..8 {
        let (status, body) = node.try_connect("/ws/room-1", &[]).await.err().expect("refused");
        assert_eq!((status.as_u16(), &body["error"]["code"]), (503, &json!(100)), "{body}");
    }
    other.send_json(&json!({"subscribe": {"channel": "room-1", "id": "1"}})).await;
    let told = loop {
        let message = other.json().await;
        if message.get("error").is_some() {
            break message;
        }
    };
    assert_eq!((&told["error"]["code"], &told["error"]["id"]), (&json!(100), &json!("1")), "{told}");
    server.cli(&["ACL", "SETUSER", "default", "allchannels"]);
    while early.json().await["gap"]["reason"] != REFUSED {}
    let mut late = node.connect("/ws/room-1").await;
    server.cli(&["PUBLISH", &format!("{PREFIX}:room-1"), "back"]);
    assert_eq!(late.text().await, "back");
    assert_eq!(early.json().await["pub"]["data"], "back");
}

/// Stands for the address of another node in DNS. Nothing listens there.
const OTHER_NODE: &str = "127.0.0.2";

/// A node that knows from outside of Redis that there is another.
async fn listed(server: &Server) -> Program {
    Program::start_by(sidecar().env("FANOUT_NODES_SERVICE", OTHER_NODE), &over(server)).await
}

/// Whether the node is ready, whether another hears it, and how many connections it gave up by itself.
async fn state(program: &Program) -> (bool, bool, u64) {
    let ready = http().get(format!("http://{}/ready", program.addresses.admin)).send().await.unwrap();
    let heard = program.metric("fanout_broker_unheard").await == 0;
    (ready.status().is_success(), heard, program.metric("fanout_broker_rebuilds_total").await)
}

async fn heard(program: &Program, expected: bool) {
    eventually("it knows whether it is heard", async || (state(program).await.1 == expected).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_node_stays_ready_where_all_others_were_killed_or_stopped() {
    let server = Server::start();
    let (last, mut killed, stopped) = (listed(&server).await, listed(&server).await, listed(&server).await);
    for program in [&last, &killed, &stopped] {
        heard(program, true).await;
    }
    killed.child.kill().unwrap();
    stopped.signal(Signal::STOP);
    // Within 15 s of the last echo. DNS still lists a node, so nobody takes this for solitude.
    heard(&last, false).await;
    // Longer than the canary's and the subscriber's deadlines: a missing echo tears nothing down.
    let until = Instant::now() + Duration::from_secs(8);
    while Instant::now() < until {
        assert_eq!(state(&last).await, (true, false, 0));
        sleep(Duration::from_millis(250)).await;
    }
    let mut client = last.connect("/ws/lobby").await;
    server.cli(&["PUBLISH", &format!("{PREFIX}:lobby"), "still here"]);
    assert_eq!(client.text().await, "still here");
    let info = last.api("info").await;
    assert_eq!((info["nodes"].as_array().unwrap().len(), &info["complete"]), (1, &json!(false)), "{info}");
    stopped.signal(Signal::CONT);
    heard(&last, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_on_two_servers_stay_ready_and_each_says_that_nobody_hears_it() {
    let servers = [Server::start(), Server::start()];
    let nodes = [listed(&servers[0]).await, listed(&servers[1]).await];
    for (node, server) in nodes.iter().zip(&servers) {
        heard(node, false).await;
        assert_eq!(state(node).await, (true, false, 0));
        assert_eq!(node.metric("fanout_broker_verified").await, 0);
        let mut client = node.connect("/ws/lobby").await;
        server.cli(&["PUBLISH", &format!("{PREFIX}:lobby"), "here alone"]);
        assert_eq!(client.text().await, "here alone");
        let channels = node.api("channels").await;
        assert_eq!(channels["channels"]["lobby"]["num_clients"], 1);
        assert_eq!(channels["complete"], false, "{channels}");
    }
}
