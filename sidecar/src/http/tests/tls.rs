//! Virtual connections: WebSockets and event streams behind TLS and HTTP/2.

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};
use sidecar_config::TlsSettings;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;

type Http2 = hyper::client::conn::http2::SendRequest<Empty<Bytes>>;

/// A node that speaks TLS, and the certificate it shows.
async fn node() -> (Node, CertificateDer<'static>) {
    node_with(SETTINGS).await
}

async fn node_with(settings: &str) -> (Node, CertificateDer<'static>) {
    let node = Node::with(settings).await;
    let (identity, certificate) = identity();
    node.port.set_tls(Some(identity));
    (node, certificate)
}

fn identity() -> (TlsIdentity, CertificateDer<'static>) {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (cert_file, key_file) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
    std::fs::write(&cert_file, cert.pem()).unwrap();
    std::fs::write(&key_file, signing_key.serialize_pem()).unwrap();
    let identity = TlsIdentity::load(&TlsSettings { cert_file, key_file }).unwrap();
    (identity, cert.der().clone())
}

async fn connect(
    node: &Node,
    certificate: &CertificateDer<'static>,
    protocol: &[u8],
) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let tcp = TcpStream::connect(node.address).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), tcp).await
}

async fn http2(node: &Node, certificate: &CertificateDer<'static>) -> Http2 {
    // What hyper takes by itself.
    http2_with(node, certificate, 2 * 1_024 * 1_024).await
}

/// With a window of so many bytes for each stream.
async fn http2_with(node: &Node, certificate: &CertificateDer<'static>, window: u32) -> Http2 {
    let stream = connect(node, certificate, crate::auth::H2).await.unwrap();
    let (http, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(window)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    http
}

/// The handshake of RFC 8441, or another protocol's.
fn extended_connect(url: &str, protocol: &'static str) -> http::Request<Empty<Bytes>> {
    http::Request::connect(url)
        .header("sec-websocket-version", "13")
        .extension(hyper::ext::Protocol::from_static(protocol))
        .body(Empty::new())
        .unwrap()
}

async fn texts<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
    count: usize,
) -> Vec<String> {
    let texts = socket.filter_map(async |message| match message.unwrap() {
        Message::Text(text) => Some(text.to_string()),
        _ => None,
    });
    timeout(PATIENCE, texts.take(count).collect()).await.expect("messages in time")
}

/// Publishes more than windows and buffers hold, and waits until a client has taken nothing for a while.
async fn stick(node: &Node) {
    for message in numbered(200) {
        node.publish("room", &message);
    }
    node.settle(|node| node.shards.totals().write_timeouts == 1).await;
}

fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{number:04}{}", "x".repeat(900))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_over_tls_carries_more_than_a_pipe_holds_both_ways_and_in_order() {
    let (node, certificate) = node().await;
    let stream = connect(&node, &certificate, b"http/1.1").await.unwrap();
    let request = format!("wss://localhost:{}/ws/room", node.address.port());
    let (mut socket, _) = client_async(request, stream).await.unwrap();
    let messages = numbered(200);
    for message in &messages {
        node.publish("room", message);
    }
    assert_eq!(texts(&mut socket, 200).await, messages);
    // Sends without reading: its own messages come back and fill the way.
    let (mut sink, stream) = socket.split();
    let sent = stream::iter(messages.clone()).map(|text| Ok(Message::text(text)));
    let sending = tokio::spawn(async move {
        let mut sent = sent;
        sink.send_all(&mut sent).await.unwrap();
        sink
    });
    let heard: Vec<_> = timeout(
        PATIENCE,
        stream.take(200).map(|text| text.unwrap().into_text().unwrap().to_string()).collect(),
    )
    .await
    .expect("echoes in time");
    assert_eq!(heard, messages);
    drop(sending.await.unwrap());
    node.settle(|node| node.shards.totals().open() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_and_event_streams_share_one_http2_connection() {
    let (node, certificate) = node().await;
    let mut http = http2(&node, &certificate).await;
    let url = |path: &str| format!("https://localhost:{}{path}", node.address.port());
    let mut sockets = Vec::new();
    for _ in 0..2 {
        http.ready().await.unwrap();
        let answer = http.send_request(extended_connect(&url("/ws/room"), "websocket")).await.unwrap();
        assert_eq!(answer.status(), 200);
        let stream = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
        sockets.push(WebSocketStream::from_raw_socket(stream, Role::Client, None).await);
    }
    let request = http::Request::get(url("/sse/room")).body(Empty::new()).unwrap();
    let mut events = http.send_request(request).await.unwrap().into_body();
    node.settle(|node| node.shards.totals().open() == 3).await;

    let messages = numbered(100);
    for message in &messages {
        sockets[0].send(Message::text(message.clone())).await.unwrap();
    }
    for socket in &mut sockets {
        assert_eq!(texts(socket, 100).await, messages);
    }
    let mut seen = String::new();
    while !seen.contains(&messages[99]) {
        let frame = timeout(PATIENCE, events.frame()).await.expect("events in time").unwrap().unwrap();
        seen += std::str::from_utf8(frame.data_ref().unwrap()).unwrap();
    }
    node.shards.shed(3, Duration::ZERO, Duration::ZERO);
    for socket in &mut sockets {
        let Some(Ok(Message::Close(Some(close)))) = socket.next().await else { panic!("a close frame") };
        assert_eq!(u16::from(close.code), 1012);
    }
    drop((sockets, events));
    node.settle(|node| node.shards.totals().open() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http2_connection_that_carries_nothing_holds_a_place_and_is_closed() {
    let (node, certificate) =
        node_with(&SETTINGS.replace("maxConnections: 8", "limits: {headerTimeoutSeconds: 1}")).await;
    let waiting = |node: &Node| node.port.0.gate.waiting();
    // Not even a preface, and one with nothing behind it.
    let mut silent = connect(&node, &certificate, crate::auth::H2).await.unwrap();
    let stream = connect(&node, &certificate, crate::auth::H2).await.unwrap();
    let (_http, idle) = hyper::client::conn::http2::handshake::<_, _, Empty<Bytes>>(
        TokioExecutor::new(),
        TokioIo::new(stream),
    )
    .await
    .unwrap();
    let idle = tokio::spawn(idle);
    node.settle(|node| waiting(node) == 2).await;
    // An error is an end too: it need not be a polite one.
    let _ = timeout(PATIENCE, silent.read_to_end(&mut Vec::new())).await.expect("an end in time");
    let _ = timeout(PATIENCE, idle).await.expect("an end in time");
    node.settle(|node| waiting(node) == 0).await;

    let mut http = http2(&node, &certificate).await;
    let url = format!("https://localhost:{}/sse/room", node.address.port());
    let events = http.send_request(http::Request::get(url).body(Empty::new()).unwrap()).await.unwrap();
    node.settle(|node| node.shards.totals().open() == 1 && waiting(node) == 0).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(!http.is_closed(), "it carries an event stream");
    drop(events);
    node.settle(|node| waiting(node) == 1).await;
    node.settle(|node| waiting(node) == 0).await;
    // Its place is free before the client hears of the end.
    let ended = async {
        while http.ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, ended).await.expect("an end in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_make_room_whatever_they_were_to_speak() {
    let limits = "limits: {handshakesInFlight: 4, headerTimeoutSeconds: 300}";
    let (node, certificate) = node_with(&SETTINGS.replace("maxConnections: 8", limits)).await;
    // Before a PROXY header, within one, before a TLS handshake's end, and behind it.
    let _nothing = TcpStream::connect(node.address).await.unwrap();
    let mut proxied = TcpStream::connect(node.address).await.unwrap();
    proxied.write_all(b"\r\n\r\n\0").await.unwrap();
    let mut half = TcpStream::connect(node.address).await.unwrap();
    half.write_all(b"\x16\x03\x01").await.unwrap();
    let _silent = connect(&node, &certificate, crate::auth::H2).await.unwrap();
    node.settle(|node| node.port.0.gate.waiting() == 4).await;
    let url = format!("wss://localhost:{}/ws/room", node.address.port());
    let mut sockets = Vec::new();
    for _ in 0..3 {
        let stream = timeout(PATIENCE, connect(&node, &certificate, b"http/1.1")).await.expect("in time");
        sockets.push(client_async(&url, stream.unwrap()).await.unwrap());
    }
    // One that carried something and carries nothing more waits as they do.
    let mut http = http2(&node, &certificate).await;
    let url = format!("https://localhost:{}/sse/room", node.address.port());
    let events = http.send_request(http::Request::get(url).body(Empty::new()).unwrap()).await.unwrap();
    node.settle(|node| node.shards.totals().open() == 4 && node.port.0.gate.waiting() == 3).await;
    drop(events);
    node.settle(|node| node.port.0.gate.waiting() == 4).await;
    let mut more = Vec::new();
    for _ in 0..4 {
        more.push(TcpStream::connect(node.address).await.unwrap());
    }
    let ended = async {
        while http.ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, ended).await.expect("it made room");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http2_connection_that_opens_nothing_is_closed_however_often_it_asks() {
    let (node, certificate) =
        node_with(&SETTINGS.replace("maxConnections: 8", "limits: {headerTimeoutSeconds: 1}")).await;
    let mut http = http2(&node, &certificate).await;
    let url = format!("https://localhost:{}/nowhere", node.address.port());
    let asking = async {
        loop {
            let request = http::Request::get(&url).body(Empty::new()).unwrap();
            if http.ready().await.is_err() || http.send_request(request).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, asking).await.expect("an end in time");
    node.settle(|node| node.port.0.gate.waiting() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_stream_whose_window_stays_closed_ends_once_its_shard_has_let_go() {
    let (node, certificate) =
        node_with(&SETTINGS.replace("maxConnections: 8", "limits: {writeTimeoutSeconds: 1}")).await;
    let mut http = http2_with(&node, &certificate, 100).await;
    let url = format!("https://localhost:{}/sse/room", node.address.port());
    let request = http::Request::get(url).body(Empty::new()).unwrap();
    let _events = http.send_request(request).await.unwrap().into_body();
    node.settle(|node| node.shards.totals().open() == 1 && node.port.0.gate.waiting() == 0).await;
    stick(&node).await;
    node.shards.force();
    // A connection that carries nothing has a place again: the stream has ended, and not by an end of all.
    node.settle(|node| node.port.0.gate.waiting() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_whose_window_stays_closed_ends_once_its_shard_has_let_go() {
    let (node, certificate) =
        node_with(&SETTINGS.replace("maxConnections: 8", "limits: {writeTimeoutSeconds: 1}")).await;
    let mut http = http2_with(&node, &certificate, 100).await;
    let tasks = tokio::runtime::Handle::current().metrics();
    let before = tasks.num_alive_tasks();
    let url = format!("https://localhost:{}/ws/room", node.address.port());
    let answer = http.send_request(extended_connect(&url, "websocket")).await.unwrap();
    let _socket = hyper::upgrade::on(answer).await.unwrap();
    // A task of ours and one of hyper's carry it, and one of hyper's at the client.
    node.settle(|_| tasks.num_alive_tasks() == before + 3).await;
    stick(&node).await;
    node.shards.force();
    node.settle(|_| tasks.num_alive_tasks() == before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_over_tls_and_http2_hold_no_place() {
    let (node, certificate) = node().await;
    let stream = connect(&node, &certificate, b"http/1.1").await.unwrap();
    let request = format!("wss://localhost:{}/ws/room", node.address.port());
    let (_first, _) = client_async(request, stream).await.unwrap();
    let mut http = http2(&node, &certificate).await;
    let url = format!("https://localhost:{}/ws/room", node.address.port());
    let answer = http.send_request(extended_connect(&url, "websocket")).await.unwrap();
    let _second = hyper::upgrade::on(answer).await.unwrap();
    node.settle(|node| node.shards.totals().open() == 2 && node.port.0.gate.waiting() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_without_the_websocket_protocol_is_no_handshake() {
    let (node, certificate) = node().await;
    let mut http = http2(&node, &certificate).await;
    let url = format!("https://localhost:{}/ws/room", node.address.port());
    assert_eq!(http.send_request(extended_connect(&url, "connect-udp")).await.unwrap().status(), 426);
    assert_eq!(node.shards.totals().open(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_handshake_uses_the_certificate_in_force() {
    let (node, first) = node().await;
    let open = connect(&node, &first, b"http/1.1").await.unwrap();
    let (identity, second) = identity();
    node.port.set_tls(Some(identity));
    assert!(connect(&node, &first, b"http/1.1").await.is_err());
    connect(&node, &second, b"http/1.1").await.unwrap();
    let request = format!("wss://localhost:{}/ws/room", node.address.port());
    client_async(request, open).await.expect("who is connected stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_is_let_go_when_the_shard_has() {
    let (node, _) = node().await;
    let visitor = crate::shard::Visitor {
        protocol: crate::protocol::Protocol::RawBare,
        deflate: false,
        identity: crate::domain::Identity::default(),
        channels: vec!["room".parse().unwrap()],
        remote: node.address,
    };
    let reserved = node.shards.door().enter(visitor).unwrap().reserve().await.unwrap();
    let (link, far) = node.shards.door().pipe(reserved);
    node.shards.door().attach(reserved, link, Bytes::new());
    let (_stuck, stream) = tokio::io::duplex(16);
    let carried = tokio::spawn(carry::carry(stream, far));
    node.publish("room", &"x".repeat(900));
    // It holds what the stream does not take before the shard lets go.
    tokio::time::sleep(Duration::from_millis(200)).await;
    node.shards.force();
    let ended = timeout(PATIENCE, carried).await.expect("an end in time").unwrap();
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
}

#[test]
fn a_certificate_that_cannot_be_used_is_told_by_its_setting() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let pair = || rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
    let (one, other) = (pair(), pair());
    let certificate = file("tls.crt", &one.cert.pem());
    let key = file("tls.key", &other.signing_key.serialize_pem());
    let empty = file("empty", "no pem");
    let told = |cert_file: &std::path::PathBuf, key_file: &std::path::PathBuf| {
        let (cert_file, key_file) = (cert_file.clone(), key_file.clone());
        let mistakes = TlsIdentity::load(&TlsSettings { cert_file, key_file }).unwrap_err();
        mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    assert!(
        told(&certificate, &key).contains("hub.tls.keyFile: is not the key"),
        "{}",
        told(&certificate, &key)
    );
    let both = told(&empty, &empty);
    assert!(
        both.contains("hub.tls.certFile: contains no") && both.contains("hub.tls.keyFile: contains no"),
        "{both}"
    );
    assert!(told(&certificate, &dir.path().join("none")).contains("hub.tls.keyFile: failed to read"));
}
