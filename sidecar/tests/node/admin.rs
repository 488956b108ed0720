//! Probes, metrics and the small tools of the admin port.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::{
    binary::Program,
    redis_server::Server,
    support::{Setup, eventually, http, soon, with_sidecar},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_the_memory_broker_is_live_and_ready() {
    with_sidecar(Setup::open(), async |node| {
        assert_eq!(node.admin("/live").await, (StatusCode::OK, "live\n".to_owned()));
        assert_eq!(node.admin("/ready").await, (StatusCode::OK, "ready\n".to_owned()));
        let (_, report) = node.admin("/ready?verbose").await;
        let report: Value = serde_json::from_str(&report).unwrap();
        assert_eq!(report["ready"], true);
        for part in ["broker", "serving"] {
            assert_eq!(report["parts"][part], json!({"ready": true}), "{report}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_its_redis_is_live_and_says_why_it_is_not_ready() {
    let mut redis = Server::start();
    redis.kill();
    let node = Setup::open().boot("broker", json!({"redis": redis.settings()})).launch().await;
    assert_eq!(node.admin("/live").await.0, StatusCode::OK);
    let (status, text) = node.admin("/ready").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    // Whether clients are accepted already is another part.
    assert!(text.contains("not ready: broker: "), "{text}");
    redis.restart();
    node.until_ready().await;
    node.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn not_ready_follows_an_outage_while_clients_stay() {
    let mut redis = Server::start();
    let setup = Setup::open().boot("broker", json!({"redis": redis.settings()}));
    with_sidecar(setup.live("onUnavailable", json!("NotReady")), async |node| {
        let mut client = node.framed("/ws/lobby").await;
        client.json().await;
        redis.kill();
        let missing = async || (!node.app.readiness().missing().is_empty()).then_some(());
        eventually("not ready", missing).await;
        redis.restart();
        node.until_ready().await;
        node.publish("lobby", &json!(1)).await;
        while client.json().await.get("pub").is_none() {}
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_openmetrics_and_count_what_happens() {
    with_sidecar(Setup::open(), async |node| {
        let mut client = node.connect("/ws/lobby").await;
        client.send("1").await;
        client.text().await;
        let response = http().get(node.admin_url("/metrics")).send().await.unwrap();
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
        let page = response.text().await.unwrap();
        assert!(page.ends_with("# EOF\n"));
        // What the operator reads, by these names.
        for (name, value) in [
            ("fanout_node_connections", 1.0),
            ("fanout_node_channels", 1.0),
            ("fanout_broker_connected", 1.0),
            ("fanout_broker_verified", 1.0),
            ("fanout_settings_rejected", 0.0),
            ("fanout_drain_draining", 0.0),
            ("fanout_client_connections_accepted_total{protocol=\"raw_bare\"}", 1.0),
            ("fanout_transport_messages_received_total", 1.0),
            ("fanout_transport_messages_sent_total", 1.0),
        ] {
            node.until_metric(name, value).await;
        }
        let hash = page.lines().find(|line| line.starts_with("fanout_settings_info{")).unwrap();
        assert!(
            hash.ends_with(" 1") && hash.len() == "fanout_settings_info{hash=\"0123456789abcdef\"} 1".len(),
            "{hash}"
        );
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            assert!(!line.contains("lobby"), "a channel's name is no label: {line}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn times_without_a_descriptor_for_a_client_are_counted() {
    let program = Program::start(&Setup::open()).await;
    let allow = |files| {
        let limit = Rlimit { current: Some(files), maximum: Some(1_024) };
        prlimit(Some(Pid::from_child(&program.child)), Resource::Nofile, limit).unwrap();
    };
    let pauses = async || program.metric("fanout_client_accept_pauses_total").await;
    assert_eq!(pauses().await, 0);
    allow(3);
    let _waiting = soon(TcpStream::connect(program.addresses.client)).await.unwrap();
    let told = async || program.log().contains("accepting connections failed").then_some(());
    eventually("a pause", told).await;
    allow(1_024);
    assert_eq!(pauses().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn stats_tell_of_this_node() {
    with_sidecar(Setup::open(), async |node| {
        let _client = node.connect("/ws/lobby").await;
        let (status, text) = node.admin("/stats").await;
        let stats: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(status, StatusCode::OK);
        assert_eq!((&stats["node"]["name"], &stats["connections"]["open"]), (&json!("node-0"), &json!(1)));
        assert_eq!(
            (&stats["broker"]["verified"], &stats["drain"]["draining"]),
            (&json!(true), &json!(false))
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_cannot_drain_the_node_on_its_reader_s_machine() {
    with_sidecar(Setup::open(), async |node| {
        for (name, value) in [("origin", "http://evil.test"), ("sec-fetch-site", "cross-site")] {
            let post = http().post(node.admin_url("/drain")).header(name, value).send().await.unwrap();
            assert_eq!(post.status(), StatusCode::FORBIDDEN);
            for path in ["/debug/dump", "/debug/pprof/heap", "/debug/pprof/profile?seconds=1"] {
                let get = http().get(node.admin_url(path)).header(name, value).send().await.unwrap();
                assert_eq!(get.status(), StatusCode::FORBIDDEN, "{path}");
            }
        }
        assert_eq!(node.metric("fanout_drain_draining"), Some(0.0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_wait_returns_after_two_seconds_where_no_drain_begins() {
    with_sidecar(Setup::open(), async |node| {
        let began = Instant::now();
        let (status, text) = node.admin("/drain/wait").await;
        let waited = began.elapsed();
        assert_eq!(status, StatusCode::OK);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["draining"], false);
        assert!(waited > Duration::from_millis(1_900) && waited < Duration::from_secs(6), "{waited:?}");
    })
    .await;
}
