//! Requests in doubtful form: refused in one shape, and answered to clients that have sent their end.

use super::*;

const SHAKE: &str = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
    sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// All that is answered to these bytes.
async fn answer(node: &Node, request: &str) -> String {
    let mut tcp = TcpStream::connect(node.address).await.unwrap();
    tcp.write_all(request.as_bytes()).await.unwrap();
    rest(&mut tcp).await
}

async fn rest(tcp: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    timeout(PATIENCE, tcp.read_to_end(&mut answer)).await.expect("an end in time").unwrap();
    String::from_utf8(answer).unwrap()
}

fn status(answer: &str) -> u16 {
    answer
        .get(9..12)
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("no status: {answer:?}"))
}

/// The error in the body of an answer whose head fits it.
fn error(answer: &str) -> Value {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no body: {answer}"));
    let head = head.to_ascii_lowercase();
    assert!(head.contains("content-type: application/json"), "{answer}");
    assert!(head.contains(&format!("content-length: {}", body.len())), "{answer}");
    let body: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
    assert!(body["error"]["code"].is_u64() && body["error"]["message"].is_string(), "{answer}");
    body["error"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_the_same_shape_whoever_finds_the_fault() {
    let node = Node::start().await;
    let long = "x".repeat(20_000);
    let many: String = (0..200).map(|i| format!("x-{i}: 1\r\n")).collect();
    for (request, expected) in [
        (format!("GET /ws/room HTTP/1.1\r\n{SHAKE}\r\n"), 400),
        (format!("GET /ws/room HTTP/1.1\r\nhost: a\r\nhost: b\r\n{SHAKE}\r\n"), 400),
        (format!("GET /ws/room HTTP/1.1\r\nhost: a b\r\n{SHAKE}\r\n"), 400),
        (format!("HEAD /ws/room HTTP/1.1\r\nhost: a\r\n{SHAKE}\r\n"), 405),
        (format!("POST /ws/room HTTP/1.1\r\nhost: a\r\n{SHAKE}\r\n"), 405),
        (format!("GET /ws/room HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n{SHAKE}\r\nhi"), 400),
        (
            format!("GET /ws/room HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n{SHAKE}\r\n0\r\n\r\n"),
            400,
        ),
        (
            format!(
                "GET /ws/room HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n{SHAKE}\r\n0\r\n\r\n"
            ),
            501,
        ),
        (
            format!(
                "GET /ws/room HTTP/1.1\r\nhost: a\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{SHAKE}\r\n"
            ),
            400,
        ),
        (format!("GET /ws/room HTTP/1.1\r\nhost: a\r\nsec-websocket-version: 13\r\n{SHAKE}\r\n"), 400),
        (format!("GET /ws/ro%zzom HTTP/1.1\r\nhost: a\r\n{SHAKE}\r\n"), 400),
        (format!("GET /ws/room%ff HTTP/1.1\r\nhost: a\r\n{SHAKE}\r\n"), 400),
        (format!("GET /ws?channel=room%ff HTTP/1.1\r\nhost: a\r\n{SHAKE}\r\n"), 400),
        (format!("GET /ws/room?token=a&token=b HTTP/1.1\r\nhost: a\r\n{SHAKE}\r\n"), 400),
        ("GET /sse/room%f HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), 400),
        ("GET /sse/room HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx".to_owned(), 400),
        ("HEAD /nowhere HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n".to_owned(), 400),
        ("GET /nowhere HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), 404),
        // What hyper finds.
        ("GET /ws/room\r\n\r\n".to_owned(), 400),
        ("GET /ws/room HTTP/1.1\r\nho st: a\r\n\r\n".to_owned(), 400),
        (format!("GET /ws/room HTTP/1.1\r\nhost: a\r\nx: {long}\r\n\r\n"), 431),
        (format!("GET /ws/room HTTP/1.1\r\nhost: a\r\n{many}\r\n"), 431),
    ] {
        let answer = answer(&node, &request).await;
        let shown = &request[..request.len().min(150)];
        assert_eq!(status(&answer), expected, "{shown}: {answer}");
        if !request.starts_with("HEAD") {
            error(&answer);
        }
        let allow = answer.lines().filter(|line| line.to_ascii_lowercase().starts_with("allow:")).count();
        assert_eq!(allow, usize::from(expected == 405), "{answer}");
    }
    node.settle(|node| node.shards.connections() == 0).await;
    // In good order it goes all the same.
    let good = format!("GET /ws/r%6Fom HTTP/1.1\r\nhost: a:80\r\ncontent-length: 0\r\n{SHAKE}\r\n");
    let mut tcp = TcpStream::connect(node.address).await.unwrap();
    tcp.write_all(good.as_bytes()).await.unwrap();
    until(&mut tcp, "101 Switching").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_sent_its_end_gets_the_begin_of_its_answer() {
    let node = Node::start().await;
    for (path, part) in
        [("/sse/room", "retry: 3000"), ("/sse/nowhere:a", "\"code\":102"), ("/nowhere", "\"code\":104")]
    {
        let mut tcp = TcpStream::connect(node.address).await.unwrap();
        tcp.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
        tcp.shutdown().await.unwrap();
        let answer = rest(&mut tcp).await;
        // Of a stream the head: what follows may be cut.
        assert!(
            answer.starts_with("HTTP/1.1 ") && (answer.contains(part) || path == "/sse/room"),
            "{path}: {answer}"
        );
    }
    // Whoever asked for nothing is not waited for.
    let mut tcp = TcpStream::connect(node.address).await.unwrap();
    tcp.write_all(b"GET /sse/room HT").await.unwrap();
    tcp.shutdown().await.unwrap();
    assert_eq!(rest(&mut tcp).await, "");
    node.settle(|node| node.shards.connections() == 0 && node.port.0.gate.waiting() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_source_that_is_refused_for_a_while_comes_back() {
    let node =
        Node::with("{hub: {maxConnections: 1}, namespaces: [{name: default, subscribe: allowed}]}").await;
    let mut first = node.sse("/sse/room", "").await;
    until(&mut first, "retry: 3000").await;
    let mut retries = HashSet::new();
    for _ in 0..8 {
        let mut refused = node.sse("/sse/room", "accept: text/event-stream\r\n").await;
        let answer = rest(&mut refused).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("content-type: text/event-stream"), "{answer}");
        assert!(answer.contains("event: refused\ndata: {\"code\":111,"), "{answer}");
        let (_, retry) = answer.split_once("retry: ").unwrap();
        retries.insert(retry.split_once('\n').unwrap().0.parse::<u64>().unwrap());
    }
    assert!(retries.len() > 1 && retries.iter().all(|retry| (2_000..=10_000).contains(retry)), "{retries:?}");
    // Others read statuses, and so does whoever is refused for good.
    let mut refused = node.sse("/sse/room", "accept: */*\r\n").await;
    assert_eq!(status(&rest(&mut refused).await), 503);
    let mut refused = node.sse("/sse/a%20b", "accept: text/event-stream\r\n").await;
    assert_eq!(status(&rest(&mut refused).await), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_for_origins_that_the_settings_name() {
    let node = Node::with(
        "{hub: {allowedOrigins: ['*', 'https://app.example', 'https://*.example.com']}, namespaces: [{name: default, subscribe: allowed}]}",
    )
    .await;
    for (origin, named) in [
        ("https://app.example", true),
        ("https://a.example.com", true),
        ("https://other.test", false),
        ("null", false),
    ] {
        for method in ["GET", "OPTIONS"] {
            let mut tcp = TcpStream::connect(node.address).await.unwrap();
            let request = format!("{method} /sse/room HTTP/1.1\r\nhost: a\r\norigin: {origin}\r\n\r\n");
            tcp.write_all(request.as_bytes()).await.unwrap();
            let head = until(&mut tcp, "\r\n\r\n").await;
            assert!(head.contains(&format!("access-control-allow-origin: {origin}")), "{head}");
            assert_eq!(head.contains("access-control-allow-credentials: true"), named, "{origin}: {head}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_balancer_asks_on_the_port_it_sends_to() {
    let node = Node::start().await;
    let well = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let asked = Arc::clone(&well);
    node.port.set_health(move || asked.load(std::sync::atomic::Ordering::Relaxed));
    let ask =
        async |method: &str| answer(&node, &format!("{method} /health HTTP/1.1\r\nhost: a\r\n\r\n")).await;
    assert!(ask("GET").await.ends_with("{\"status\":\"ready\"}"));
    assert_eq!(status(&ask("HEAD").await), 200);
    well.store(false, std::sync::atomic::Ordering::Relaxed);
    let answer = ask("GET").await;
    assert_eq!((status(&answer), &error(&answer)["code"]), (503, &json!(111)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_may_speak_either_version_and_say_much() {
    let node = Node::with("{hub: {trustedProxies: ['127.0.0.0/8'], limits: {connectionsPerIp: 1}}, namespaces: [{name: default, subscribe: allowed}]}").await;
    let large = {
        let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
        bytes.extend_from_slice(&(12 + 8_000_u16).to_be_bytes());
        bytes.extend_from_slice(&[192, 0, 2, 7, 10, 0, 0, 1, 0x1F, 0x90, 0, 80]);
        bytes.extend(std::iter::repeat_n(0x04, 8_000));
        bytes
    };
    let line = b"PROXY TCP4 192.0.2.1 10.0.0.1 8080 80\r\n".to_vec();
    let mut open = Vec::new();
    for header in [line.clone(), large] {
        let mut tcp = TcpStream::connect(node.address).await.unwrap();
        let (begin, end) = header.split_at(4);
        tcp.write_all(begin).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        tcp.write_all(end).await.unwrap();
        tcp.write_all(b"GET /sse/room HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        until(&mut tcp, "retry: 3000").await;
        open.push(tcp);
    }
    // Each counts under the address that its header gave.
    let mut again = TcpStream::connect(node.address).await.unwrap();
    again.write_all(&[&line[..], b"GET /sse/room HTTP/1.1\r\nhost: a\r\n\r\n"].concat()).await.unwrap();
    assert_eq!(status(&rest(&mut again).await), 429);
}
