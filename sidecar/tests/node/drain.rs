//! How a node empties itself.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};

use crate::support::{SOON, Setup, eventually, http, soon, with_sidecar};

fn pace(per_second: u32, timeout: u32) -> Value {
    json!({"maxDisconnectsPerSecond": per_second, "timeoutSeconds": timeout, "reconnectJitterSeconds": 7})
}

#[tokio::test(flavor = "multi_thread")]
async fn three_clients_leave_at_once_with_advice_when_to_come_back() {
    with_sidecar(Setup::open().live("drain", pace(200, 60)), async |node| {
        let mut bare = node.connect("/ws/lobby").await;
        let mut framed = node.framed("/ws/lobby").await;
        let mut events = node.events("/sse/lobby").await;
        framed.json().await;
        let began = Instant::now();
        let answer = http().post(node.admin_url("/drain")).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        assert_eq!(answer.json::<Value>().await.unwrap()["draining"], true);
        assert_eq!(bare.closed().await.0, 1012);
        assert_eq!(framed.json().await["reconnect"]["jitterMs"], 7_000);
        assert_eq!(framed.closed().await.0, 1012);
        let event = events.event().await;
        assert!(event.starts_with("event: close\n") && event.contains("1012"), "{event}");
        soon(node.app.drain().drained()).await;
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        assert_eq!(node.metric("fanout_drain_drained"), Some(1.0));
        assert_eq!(node.metric("fanout_drain_forced_total"), Some(0.0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_node_is_not_ready_and_lets_nobody_in_but_serves_its_api() {
    with_sidecar(Setup::open().live("drain", pace(1, 3_600)), async |node| {
        let mut clients = Vec::new();
        for _ in 0..10 {
            clients.push(node.connect("/ws/lobby").await);
        }
        node.app.begin_drain();
        crate::support::eventually("not ready", async || {
            let (status, text) = node.admin("/ready").await;
            (status == StatusCode::SERVICE_UNAVAILABLE
                && text == "not ready: serving: the node is draining\n")
                .then_some(())
        })
        .await;
        let refused = async || TcpStream::connect(node.client_address()).await.is_err().then_some(());
        crate::support::eventually("the listener is closed", refused).await;
        assert_eq!(node.admin("/live").await.0, StatusCode::OK);
        node.publish("lobby", &json!("to whoever is left")).await;
        assert_eq!(clients[9].text().await, r#""to whoever is left""#, "the oldest leave first");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_leave_at_the_pace_that_is_allowed() {
    with_sidecar(Setup::open().live("drain", pace(50, 600)), async |node| {
        let mut clients = Vec::new();
        for _ in 0..75 {
            clients.push(node.connect("/ws/lobby").await);
        }
        let began = Instant::now();
        node.app.begin_drain();
        let ended = clients.iter_mut().map(async |client| {
            assert_eq!(client.closed().await.0, 1012);
            began.elapsed()
        });
        let mut ended = futures::future::join_all(ended).await;
        ended.sort();
        assert!(ended[74] > Duration::from_millis(1_200), "75 at 50 a second: {:?}", ended[74]);
        assert!(ended[37] < ended[74] * 3 / 4, "spread, not bunched at the end: {ended:?}");
        soon(node.app.drain().drained()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_left_at_the_deadline_is_closed_and_counted() {
    with_sidecar(Setup::open().live("drain", pace(200, 1)), async |node| {
        // They never read, so they never answer the server's close.
        let mut silent = Vec::new();
        for _ in 0..3 {
            silent.push(node.connect("/ws/lobby").await);
        }
        node.app.begin_drain();
        soon(node.app.drain().drained()).await;
        assert_eq!(node.metric("fanout_drain_forced_total"), Some(3.0));
        assert_eq!(node.metric("fanout_node_connections"), Some(0.0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_wait_returns_when_the_node_is_empty() {
    with_sidecar(Setup::open(), async |node| {
        let mut client = node.connect("/ws/lobby").await;
        let url = node.admin_url("/drain/wait");
        let mut waiting =
            tokio::spawn(async move { http().get(url).send().await.unwrap().json::<Value>().await.unwrap() });
        assert!(timeout(Duration::from_millis(300), &mut waiting).await.is_err(), "no drain has begun");
        let timeout_of_its_own = http().post(node.admin_url("/drain?timeout=600")).send().await.unwrap();
        assert_eq!(timeout_of_its_own.status(), StatusCode::ACCEPTED);
        assert_eq!(client.closed().await.0, 1012);
        let state = timeout(SOON, waiting).await.unwrap().unwrap();
        assert_eq!(state, json!({"draining": true, "drained": true, "connections": 0}));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_before_a_client_leaves_is_confirmed_before_it_leaves() {
    with_sidecar(Setup::open().live("drain", pace(1, 3_600)), async |node| {
        // The oldest leaves first, so that the witness stays.
        let mut client = node.framed("/ws/room-1").await;
        let mut witness = node.connect("/ws/room-1").await;
        client.json().await;
        for number in 0..50 {
            let publish = json!({"channel": "room-1", "data": number, "id": number.to_string()});
            client.send_json(&json!({ "publish": publish })).await;
        }
        // The first answer: the rest is under way.
        while client.json().await.get("published").is_none() {}
        node.app.begin_drain();
        let mut confirmed = 1;
        loop {
            let message = client.json().await;
            if message.get("reconnect").is_some() {
                break;
            }
            confirmed += usize::from(message.get("published").is_some());
        }
        assert_eq!(client.closed().await.0, 1012);
        for number in 0..confirmed {
            assert_eq!(witness.text().await, number.to_string());
        }
        node.publish("room-1", &json!("the next")).await;
        assert_eq!(witness.text().await, r#""the next""#, "nothing was published that was not confirmed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_dropped_without_a_stop_ends_too() {
    // As when a shard died: what its runtimes do is not waited for, and may not be within another runtime.
    let node = Setup::open().start().await;
    let address = node.client_address();
    drop(node);
    eventually("nobody listens", async || TcpStream::connect(address).await.err()).await;
}
