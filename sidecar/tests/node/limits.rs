//! What one connection and one node may do at most.

use std::{fs, process::Command};

use reqwest::StatusCode;
use serde_json::json;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    binary::Program,
    support::{Setup, eventually, http, soon, token, with_sidecar},
};

/// The metric of what is refused for this reason.
fn refused(reason: &str) -> String {
    format!("fanout_client_refused_total{{reason=\"{reason}\"}}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_node_refuses_until_somebody_leaves() {
    with_sidecar(Setup::open().live("hub", json!({"maxConnections": 2})), async |node| {
        let first = node.connect("/ws/lobby").await;
        let _second = node.connect("/ws/lobby").await;
        let (status, body) = node.try_connect("/ws/lobby", &[]).await.map(drop).unwrap_err();
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
        node.until_metric(&refused("full"), 1.0).await;
        drop(first);
        let again = async || node.try_connect("/ws/lobby", &[]).await.ok().map(drop);
        eventually("a place is free", again).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_above_the_limit_ends_the_connection_and_one_at_the_limit_does_not() {
    with_sidecar(Setup::open().live("hub", json!({"maxMessageBytes": 1_000})), async |node| {
        let mut client = node.connect("/ws/lobby").await;
        client.send(&"x".repeat(1_000)).await;
        assert_eq!(client.text().await.len(), 1_000);
        client.send(&"x".repeat(1_001)).await;
        assert_eq!(client.closed().await.0, 1009);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_may_be_bounded_below_its_message() {
    let hub = json!({"maxMessageBytes": 1_000, "limits": {"frameBytes": 600}});
    with_sidecar(Setup::open().live("hub", hub), async |node| {
        let mut client = node.connect("/ws/lobby").await;
        let fragments = ["x".repeat(600), "y".repeat(400)];
        client.send_fragments(&fragments).await;
        assert_eq!(client.text().await, fragments.concat());
        client.send(&"x".repeat(601)).await;
        assert_eq!(client.closed().await.0, 1009);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_names_and_headers_are_bounded() {
    let limits =
        json!({"limits": {"channelsPerConnection": 2, "channelNameBytes": 10, "headerBytes": 2_000}});
    with_sidecar(Setup::open().live("hub", limits), async |node| {
        let mut client = node.framed("/ws?channel=lobby&channel=room-1").await;
        client.json().await;
        client.json().await;
        client.send_json(&json!({"subscribe": {"channel": "room-2"}})).await;
        assert_eq!(client.json().await["error"]["code"], 106);
        client.send_json(&json!({"publish": {"channel": "room-34567890", "data": 1, "id": "1"}})).await;
        assert_eq!(client.json().await["error"]["code"], 107);
        for error in ["too_many_channels", "bad_request"] {
            node.until_metric(&format!("fanout_client_command_errors_total{{error=\"{error}\"}}"), 1.0).await;
        }
        let framed = [("sec-websocket-protocol", "fanout.v1")];
        for path in ["/ws/room-34567890", "/ws?channel=lobby&channel=room-1&channel=room-2"] {
            let (status, body) = node.try_connect(path, &framed).await.map(drop).unwrap_err();
            assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {body}");
        }
        node.until_metric(&refused("channel"), 2.0).await;
        let long = [("x-padding", "x".repeat(3_000))];
        let long: Vec<_> = long.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (status, _) = node.try_connect("/ws/lobby", &long).await.map(drop).unwrap_err();
        assert_eq!(status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        let longer = [("x-padding", "x".repeat(30_000))];
        let longer: Vec<_> = longer.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (status, _) = node.try_connect("/ws/lobby", &longer).await.map(drop).unwrap_err();
        assert_eq!(status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        // The second one by hyper, which does not get as far as to ask us.
        node.until_metric(&refused("headers"), 2.0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_accepted_at_the_pace_of_the_settings_and_half_requests_are_cut_off() {
    let limits = json!({"limits": {"acceptsPerSecond": 5, "headerTimeoutSeconds": 1}});
    with_sidecar(Setup::open().live("hub", limits), async |node| {
        let began = std::time::Instant::now();
        let mut clients = Vec::new();
        for _ in 0..12 {
            clients.push(node.connect("/ws/lobby").await);
        }
        // Five at once, then one each fifth of a second.
        assert!(began.elapsed().as_millis() >= 1_200, "{:?}", began.elapsed());
        assert!(node.metric("fanout_client_accept_waits_total").unwrap() >= 6.0);
        let mut half = soon(TcpStream::connect(node.client_address())).await.unwrap();
        half.write_all(b"GET /ws/lobby HTTP/1.1\r\nhost: ").await.unwrap();
        assert_eq!(soon(half.read_to_end(&mut Vec::new())).await.unwrap(), 0);
        node.until_metric(&refused("timeout"), 1.0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_low_limit_of_open_files_lowers_how_many_a_node_holds_and_is_told() {
    let program = Program::start_by(
        Command::new("sh")
            .args(["-c", r#"ulimit -n 900 && exec "$0" "$@""#])
            .arg(env!("CARGO_BIN_EXE_fanout-sidecar")),
        &Setup::open(),
    )
    .await;
    let metrics = format!("http://{}/metrics", program.addresses.admin);
    let page = soon(soon(http().get(&metrics).send()).await.unwrap().text()).await.unwrap();
    assert!(page.lines().any(|line| line == "fanout_node_capacity 4"), "{page}");
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(program.connect("/ws/lobby").await);
    }
    let refused = crate::support::connect(program.addresses.client, "/ws/lobby", &[]).await;
    assert_eq!(refused.map(drop).unwrap_err().0, StatusCode::SERVICE_UNAVAILABLE);
    let told = program.log();
    let line = |text| told.lines().find(|line| line.contains(text)).expect("it is told");
    let (limit, lowered) = (line("\"open-files limit\""), line("is too low for hub.maxConnections"));
    assert!(limit.contains("\"open_files\":900") && limit.contains("\"most\":4"), "{limit}");
    assert!(lowered.contains("\"asked\":50000,") && lowered.contains("\"most\":4"), "{lowered}");
    // A change that asks for more than there is again is told again.
    program.change(|live| live["hub"]["maxConnections"] = 5.into());
    eventually("it is told again", async || {
        let told = program.log();
        told.lines()
            .rfind(|line| line.contains("is too low for hub.maxConnections"))?
            .contains("\"asked\":5,")
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_publishes_too_fast_is_told_and_others_are_not_concerned() {
    let limited = json!([{
        "name": "default", "publish": "allowed", "subscribe": "allowed",
        "rateLimit": {"publishesPerSecond": 1, "burst": 5},
    }]);
    with_sidecar(Setup::open().live("namespaces", limited), async |node| {
        let mut fast = node.framed("/ws/lobby").await;
        fast.json().await;
        for number in 0..10 {
            fast.send_json(
                &json!({"publish": {"channel": "room-1", "data": number, "id": number.to_string()}}),
            )
            .await;
        }
        let mut codes = Vec::new();
        for _ in 0..10 {
            codes.push(fast.json().await["error"]["code"].as_u64());
        }
        assert!(codes.iter().filter(|code| **code == Some(111)).count() >= 4, "{codes:?}");
        assert!(codes.iter().filter(|code| code.is_none()).count() >= 5, "{codes:?}");
        let mut other = node.connect("/ws/room-2").await;
        other.send("1").await;
        assert_eq!(other.text().await, "1");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_and_a_user_hold_so_many_connections_and_no_more() {
    let setup =
        Setup::open().live("hub", json!({"limits": {"connectionsPerIp": 3, "connectionsPerUser": 1}}));
    with_sidecar(setup, async |node| {
        let ann = format!("Bearer {}", token(&json!({"sub": "ann"})));
        let ann = [("authorization", ann.as_str())];
        let first = node.try_connect("/ws/lobby", &ann).await.expect("connected");
        let (status, body) = node.try_connect("/ws/lobby", &ann).await.map(drop).unwrap_err();
        assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{body}");
        let _second = node.connect("/ws/lobby").await;
        let _third = node.events("/sse/lobby").await;
        let (status, body) = node.try_connect("/ws/lobby", &[]).await.map(drop).unwrap_err();
        assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{body}");
        node.until_metric(&refused("user"), 1.0).await;
        node.until_metric(&refused("address"), 1.0).await;
        drop(first);
        let again = async || node.try_connect("/ws/lobby", &ann).await.ok().map(drop);
        eventually("a place is free", again).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_requests_hold_a_bounded_number_of_places_and_connections_hold_none() {
    let setup = Setup::open().live("hub", json!({"limits": {"handshakesInFlight": 2}}));
    with_sidecar(setup, async |node| {
        let mut events = Vec::new();
        let mut sockets = Vec::new();
        for _ in 0..4 {
            events.push(
                eventually("let in", async || {
                    let response = http().get(node.client_url("/sse/lobby")).send().await.ok()?;
                    response.status().is_success().then_some(response)
                })
                .await,
            );
            sockets.push(eventually("let in", async || node.try_connect("/ws/lobby", &[]).await.ok()).await);
        }
        let mut silent = Vec::new();
        for _ in 0..6 {
            silent.push(soon(TcpStream::connect(node.client_address())).await.unwrap());
        }
        // Those who came first make room for those who wait, and all for whoever asks.
        soon(node.try_connect("/ws/lobby", &[])).await.expect("let in");
        let mut rest = Vec::new();
        let _ = soon(silent[0].read_to_end(&mut rest)).await;
        assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
        node.until_metric("fanout_client_handshakes_inflight", 1.0).await;
        assert!(node.metric(&refused("handshakes")).unwrap() >= 4.0);
        drop(silent);
        node.until_metric("fanout_client_handshakes_inflight", 0.0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_speak_tls_where_it_is_spoken_is_cut_off_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(at("tls.crt"), certified.cert.pem()).unwrap();
    fs::write(at("tls.key"), certified.signing_key.serialize_pem()).unwrap();
    let tls = json!({"certFile": at("tls.crt"), "keyFile": at("tls.key")});
    let hub = json!({"tls": tls, "limits": {"headerTimeoutSeconds": 1}});
    with_sidecar(Setup::open().live("hub", hub), async |node| {
        let mut silent = soon(TcpStream::connect(node.client_address())).await.unwrap();
        let mut plain = soon(TcpStream::connect(node.client_address())).await.unwrap();
        plain.write_all(b"GET /ws/lobby HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        node.until_metric(&refused("tls"), 1.0).await;
        assert_eq!(soon(silent.read(&mut [0; 16])).await.unwrap(), 0);
        node.until_metric(&refused("timeout"), 1.0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_whose_header_is_bad_or_does_not_come_whole_is_cut_off_and_counted() {
    let hub = json!({"trustedProxies": ["127.0.0.0/8"], "limits": {"headerTimeoutSeconds": 1}});
    with_sidecar(Setup::open().live("hub", hub), async |node| {
        let signature = b"\r\n\r\n\0\r\nQUIT\n";
        let mut half = soon(TcpStream::connect(node.client_address())).await.unwrap();
        half.write_all(signature).await.unwrap();
        let mut bad = soon(TcpStream::connect(node.client_address())).await.unwrap();
        // A version that there is not.
        bad.write_all(&[signature.as_slice(), &[0x11, 0x11, 0, 0]].concat()).await.unwrap();
        node.until_metric(&refused("proxy"), 1.0).await;
        assert_eq!(soon(half.read(&mut [0; 16])).await.unwrap(), 0);
        node.until_metric(&refused("timeout"), 1.0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_query_and_a_flood_are_refused() {
    let limits = json!({"limits": {"queryBytes": 100, "messagesPerSecond": 5}});
    with_sidecar(Setup::open().live("hub", limits), async |node| {
        let path = format!("/ws/lobby?x={}", "x".repeat(200));
        let (status, _) = node.try_connect(&path, &[]).await.map(drop).unwrap_err();
        assert_eq!(status, StatusCode::URI_TOO_LONG);
        node.until_metric(&refused("query"), 1.0).await;
        let mut flood = node.connect("/ws/lobby").await;
        for _ in 0..11 {
            flood.send("x").await;
        }
        assert_eq!(flood.closed().await.0, 3013);
        node.until_metric("fanout_client_disconnects_total{reason=\"too_many_requests\"}", 1.0).await;
    })
    .await;
}

/// The limit of a running program, changed from outside.
fn set_open_files(program: &Program, limit: u64) {
    let limit = Rlimit { current: Some(limit), maximum: Some(1_024) };
    prlimit(Some(Pid::from_child(&program.child)), Resource::Nofile, limit).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_descriptors_accepting_pauses_while_clients_stay_and_then_goes_on_by_itself() {
    let program = Program::start(&Setup::open()).await;
    let mut client = program.connect("/ws/lobby").await;
    // Made before: later there is no descriptor for it.
    let admin = http();
    let ready = format!("http://{}/ready", program.addresses.admin);
    assert!(soon(admin.get(&ready).send()).await.unwrap().status().is_success());
    set_open_files(&program, 3);
    let waiting = soon(TcpStream::connect(program.addresses.client)).await.unwrap();
    eventually("not ready", async || {
        let answer = admin.get(&ready).send().await.ok()?;
        (answer.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(())
    })
    .await;
    client.send("still here").await;
    assert_eq!(client.text().await, "still here");
    drop(waiting);
    set_open_files(&program, 1_024);
    eventually("ready", async || admin.get(&ready).send().await.ok()?.status().is_success().then_some(()))
        .await;
    let mut again = program.connect("/ws/lobby").await;
    again.send("again").await;
    assert_eq!(again.text().await, "again");
    assert!(program.log().contains("accepting connections again"));
}
