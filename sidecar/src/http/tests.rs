//! The client port over real shards and real sockets; the broker is a loop of ours.

mod form;
mod tls;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use sidecar_config::LiveSettings;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest},
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    auth::AuthRules,
    domain::{ChannelName, CommandError, NodeId, Payload, Policies, Publication},
    shard::{Completion, Config, Mail, Mailbox, Rules, Shards, Task, Work},
};

type Socket = WebSocketStream<TcpStream>;

/// Long enough for a busy machine; nothing waits it out when all is well.
const PATIENCE: Duration = Duration::from_secs(20);

const SETTINGS: &str = "
hub: {allowedOrigins: ['https://app.example'], trustedProxies: ['127.0.0.0/8'], maxConnections: 8, maxMessageBytes: 1000}
namespaces:
- {name: default, publish: allowed, subscribe: allowed}
- {name: quiet, subscribe: allowed}
- {name: secret, subscribe: token}
- {name: broken, subscribe: allowed}
- {name: tight, publish: allowed, subscribe: allowed, rateLimit: {publishesPerSecond: 1, burst: 2}}";

struct Node {
    address: SocketAddr,
    shards: Shards,
    port: ClientPort,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<io::Result<()>>,
    interest: Arc<Mutex<HashSet<(u16, ChannelName)>>>,
}

impl Node {
    async fn start() -> Self {
        Self::with(SETTINGS).await
    }

    async fn with(settings: &str) -> Self {
        let settings: LiveSettings = serde_yaml::from_str(settings).unwrap();
        let rules = Rules {
            policies: Policies::new(&settings.namespaces),
            hub: settings.hub.clone(),
            reconnect_jitter: Duration::from_secs(15),
        };
        let (sender, work) = mpsc::channel(1_000);
        let config = Config {
            shards: 2,
            node: NodeId(7),
            max_connections: 1_000,
            mailbox_bytes: Config::MOST_WAITING_BYTES,
            work_bytes: Config::MOST_WAITING_BYTES,
            log_bytes: Config::MOST_BYTES,
            time_deliveries: true,
        };
        let shards = Shards::spawn(config, Arc::new(rules), &sender).unwrap();
        let interest = Arc::default();
        tokio::spawn(loop_back(work, shards.mailboxes(), Arc::clone(&interest)));
        let auth = Arc::new(Auth::new(AuthRules::load(&settings).unwrap()));
        let port = ClientPort::new(shards.door().clone(), auth, Metrics::default());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let served = tokio::spawn(port.clone().serve(listener, stopped));
        Self { address, shards, port, stop, served, interest }
    }

    async fn try_connect(&self, path: &str, headers: &[(&'static str, &str)]) -> Result<Socket, Error> {
        let mut request = format!("ws://{}{path}", self.address).into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        let tcp = TcpStream::connect(self.address).await.unwrap();
        Ok(timeout(PATIENCE, client_async(request, tcp)).await.expect("an answer in time")?.0)
    }

    async fn bare(&self, channel: &str) -> Socket {
        self.try_connect(&format!("/ws/{channel}"), &[]).await.unwrap()
    }

    async fn framed(&self, path: &str) -> Socket {
        let mut socket = self.try_connect(path, &[("sec-websocket-protocol", "fanout.v1")]).await.unwrap();
        assert!(object(&mut socket).await["connected"]["client"].is_string());
        socket
    }

    async fn sse(&self, path: &str, headers: &str) -> TcpStream {
        let mut tcp = TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n{headers}\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        tcp
    }

    /// Status and body of a request that is refused.
    async fn refused(&self, path: &str, headers: &[(&'static str, &str)]) -> (u16, Value) {
        match self.try_connect(path, headers).await {
            Err(Error::Http(response)) => {
                let body = response.body().as_deref().unwrap_or_default();
                (response.status().as_u16(), serde_json::from_slice(body).unwrap())
            }
            other => panic!("{path}: {other:?}"),
        }
    }

    fn publish(&self, channel: &str, text: &str) {
        let publication = Publication::bare(channel.parse().unwrap(), Payload::Text(text.to_owned().into()));
        for mailbox in self.shards.mailboxes() {
            mailbox.publications(vec![Arc::new(publication.clone().into())]).unwrap();
        }
    }

    async fn settle(&self, done: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !done(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, waiting).await.expect("settles in time");
    }
}

/// Answers the shards' work as a broker of one node does. Namespace `broken` is out of reach.
async fn loop_back(
    mut work: mpsc::Receiver<Work>,
    mailboxes: Vec<Mailbox>,
    interest: Arc<Mutex<HashSet<(u16, ChannelName)>>>,
) {
    while let Some(Work { shard, task }) = work.recv().await {
        let mailbox = &mailboxes[usize::from(shard)];
        let completion = match task {
            Task::Subscribe { channel } if channel.namespace() == "broken" => {
                Completion::Subscribed { channel, result: Err(CommandError::Unavailable) }
            }
            Task::Subscribe { channel } => {
                assert!(interest.lock().unwrap().insert((shard, channel.clone())), "asked for once");
                Completion::Subscribed { channel, result: Ok(()) }
            }
            Task::Unsubscribe { channel } => {
                assert!(interest.lock().unwrap().remove(&(shard, channel)), "given back once");
                continue;
            }
            Task::Refresh { connection, id, .. } => {
                Completion::Refreshed { connection, id, result: Err(CommandError::PermissionDenied) }
            }
            Task::Publish { connection, channel, payload, id, .. } => {
                let publication = Arc::new(Publication::bare(channel.clone(), payload).into());
                for (shard, mailbox) in (0..).zip(&mailboxes) {
                    if interest.lock().unwrap().contains(&(shard, channel.clone())) {
                        mailbox.publications(vec![Arc::clone(&publication)]).unwrap();
                    }
                }
                Completion::Published { connection, channel, id, result: Ok(false) }
            }
        };
        mailbox.send(Mail::Completion(completion));
    }
}

async fn next(socket: &mut Socket) -> Message {
    loop {
        let message = timeout(PATIENCE, socket.next()).await.expect("a message in time");
        match message.expect("not the end").unwrap() {
            Message::Ping(_) | Message::Pong(_) => {}
            message => return message,
        }
    }
}

async fn text(socket: &mut Socket) -> String {
    match next(socket).await {
        Message::Text(text) => text.to_string(),
        other => panic!("{other:?}"),
    }
}

async fn object(socket: &mut Socket) -> Value {
    serde_json::from_str(&text(socket).await).unwrap()
}

/// A text frame as a client sends it, masked with zeros.
fn client_text(text: &str) -> Vec<u8> {
    assert!(text.len() <= 125);
    [&[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0], text.as_bytes()].concat()
}

async fn close_code(socket: &mut Socket) -> (u16, String) {
    match next(socket).await {
        Message::Close(Some(frame)) => (frame.code.into(), frame.reason.to_string()),
        other => panic!("{other:?}"),
    }
}

/// Reads until the text has come; returns all that came.
async fn until(stream: &mut TcpStream, text: &str) -> String {
    let mut seen = Vec::new();
    let mut buffer = [0; 4_096];
    while !String::from_utf8_lossy(&seen).contains(text) {
        let read = timeout(PATIENCE, stream.read(&mut buffer)).await.expect("bytes in time").unwrap();
        assert_ne!(read, 0, "ended before {text:?}: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_bare_client_sends_all_receive_in_order_itself_included() {
    let node = Node::start().await;
    let (mut a, mut b) = (node.bare("room").await, node.bare("room").await);
    for i in 0..100 {
        a.send(Message::text(format!("message {i}"))).await.unwrap();
    }
    a.send(Message::binary(vec![0, 255])).await.unwrap();
    for socket in [&mut a, &mut b] {
        for i in 0..100 {
            assert_eq!(text(socket).await, format!("message {i}"));
        }
        assert_eq!(next(socket).await, Message::binary(vec![0, 255]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_framed_client_subscribes_publishes_and_leaves() {
    let node = Node::start().await;
    let mut socket = node.framed("/ws?channel=a&channel=b&channel=a").await;
    assert_eq!(object(&mut socket).await, json!({"subscribed": {"channel": "a"}}));
    assert_eq!(object(&mut socket).await, json!({"subscribed": {"channel": "b"}}));
    socket.send(Message::text(r#"{"subscribe":{"channel":"c","id":"1"}}"#)).await.unwrap();
    assert_eq!(object(&mut socket).await, json!({"subscribed": {"channel": "c", "id": "1"}}));
    socket.send(Message::text(r#"{"publish":{"channel":"b","data":{"x":1},"id":"2"}}"#)).await.unwrap();
    let got = [object(&mut socket).await, object(&mut socket).await];
    assert!(got.contains(&json!({"published": {"channel": "b", "id": "2"}})), "{got:?}");
    assert!(got.contains(&json!({"pub": {"channel": "b", "data": {"x": 1}}})), "{got:?}");
    socket.send(Message::text(r#"{"unsubscribe":{"channel":"a","id":"3"}}"#)).await.unwrap();
    assert_eq!(object(&mut socket).await, json!({"unsubscribed": {"channel": "a", "id": "3"}}));
    node.publish("a", "unheard");
    node.publish("c", "heard");
    assert_eq!(object(&mut socket).await, json!({"pub": {"channel": "c", "data": "heard"}}));
    socket.send(Message::text(r#"{"publish":{"channel":"quiet:a","data":1,"id":"4"}}"#)).await.unwrap();
    assert_eq!(object(&mut socket).await["error"]["code"], 103);
    socket.send(Message::text(r#"{"ack":{"channel":"b","offset":1,"id":"5"}}"#)).await.unwrap();
    let error = object(&mut socket).await;
    assert_eq!((&error["error"]["code"], &error["error"]["id"]), (&json!(108), &json!("5")));
    drop(socket);
    node.settle(|node| node.interest.lock().unwrap().is_empty()).await;
    assert_eq!(node.shards.totals().subscriptions, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_stream_brings_publications_and_ends_with_the_drain() {
    let node = Node::start().await;
    let mut stream = node.sse("/sse/room", "origin: https://app.example\r\n").await;
    let head = until(&mut stream, "retry: 3000\n\n").await.to_ascii_lowercase();
    for header in [
        "http/1.1 200 ok",
        "content-type: text/event-stream",
        "cache-control: no-cache, no-transform",
        "x-accel-buffering: no",
        "access-control-allow-origin: https://app.example",
    ] {
        assert!(head.contains(header), "{header} in {head}");
    }
    node.publish("room", "two\nlines");
    until(&mut stream, "data: two\ndata: lines\n\n").await;
    node.shards.shed(1, Duration::from_secs(2), Duration::from_secs(1));
    let end = until(&mut stream, "0\r\n\r\n").await;
    let (_, retry) = end.split_once("retry: ").expect("when to come back");
    let retry: u64 = retry.split_once('\n').unwrap().0.parse().unwrap();
    assert!((2000..=3000).contains(&retry) && end.contains("\"code\":1012"), "{end}");
    node.settle(|node| node.shards.totals().open() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_says_why() {
    let node = Node::start().await;
    let framed = ("sec-websocket-protocol", "fanout.v1");
    for (path, headers, status, code) in [
        ("/ws/secret:a", vec![], 401, 101),
        ("/ws/nowhere:a", vec![], 404, 102),
        ("/ws/broken:a", vec![], 503, 100),
        ("/ws/a%20b", vec![], 400, 107),
        ("/ws?channel=a&channel=b", vec![], 400, 107),
        ("/ws", vec![], 400, 107),
        ("/ws/a?since=1", vec![], 400, 107),
        ("/ws/a?since=1", vec![framed], 400, 108),
        ("/ws/a?token=x", vec![], 401, 101),
        ("/ws/a", vec![("authorization", "Bearer x")], 401, 101),
        ("/ws/a", vec![("sec-websocket-protocol", "fanout.v1, fanout.token.x")], 401, 101),
        ("/ws/a", vec![("sec-websocket-protocol", "graphql-ws")], 400, 107),
        ("/ws/a", vec![("origin", "https://evil.example")], 403, 103),
        ("/elsewhere", vec![], 404, 104),
    ] {
        let (found, body) = node.refused(path, &headers).await;
        assert_eq!((found, &body["error"]["code"]), (status, &json!(code)), "{path} {headers:?}: {body}");
        assert!(body["error"]["message"].as_str().is_some_and(|message| message.len() > 5), "{body}");
    }
    node.settle(|node| node.shards.connections() == 0).await;
    assert!(node.interest.lock().unwrap().is_empty(), "what was refused holds nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_its_shard_refuses_gets_a_whole_answer_and_the_end() {
    let node = Node::start().await;
    let mut tcp = TcpStream::connect(node.address).await.unwrap();
    let handshake = "GET /ws/nowhere:a HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    tcp.write_all(handshake.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, tcp.read_to_string(&mut answer)).await.expect("an end in time").unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 404 Not Found\r\n"), "{head}");
    for header in
        [&format!("content-length: {}", body.len()), "connection: close", "content-type: application/json"]
    {
        assert!(head.lines().any(|line| line == header), "{header}: {head}");
    }
    assert!(head.contains("date: ") && head.contains(" GMT"), "{head}");
    assert_eq!(serde_json::from_str::<Value>(body).unwrap()["error"]["code"], 102);
    node.settle(|node| node.shards.connections() == 0 && node.port.0.gate.waiting() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_node_and_a_leaving_node_refuse_until_there_is_room() {
    let node = Node::start().await;
    let mut sockets = Vec::new();
    for _ in 0..8 {
        sockets.push(node.bare("room").await);
    }
    assert_eq!(node.refused("/ws/room", &[]).await.0, 503);
    sockets.pop();
    node.settle(|node| node.shards.connections() == 7).await;
    sockets.push(node.bare("room").await);
    node.port.door().shut();
    sockets.pop();
    assert_eq!(node.refused("/ws/room", &[]).await.0, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_port_accepts_nobody_and_keeps_its_clients() {
    let node = Node::start().await;
    let mut socket = node.bare("room").await;
    assert!(node.port.is_accepting());
    node.stop.cancel();
    timeout(PATIENCE, node.served).await.expect("ends in time").unwrap().unwrap();
    assert!(!node.port.is_accepting());
    assert!(TcpStream::connect(node.address).await.is_err(), "the listener is closed");
    let publication = Publication::bare("room".parse().unwrap(), Payload::Text("still here".into()));
    for mailbox in node.shards.mailboxes() {
        mailbox.publications(vec![Arc::new(publication.clone().into())]).unwrap();
    }
    assert_eq!(text(&mut socket).await, "still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_end_has_its_code() {
    let node = Node::start().await;
    let mut socket = node.bare("quiet:a").await;
    socket.send(Message::text("may I?")).await.unwrap();
    assert_eq!(close_code(&mut socket).await.0, 3507);

    let mut socket = node.bare("tight:a").await;
    for _ in 0..3 {
        socket.send(Message::text("x")).await.unwrap();
    }
    let mut codes = HashMap::new();
    loop {
        match next(&mut socket).await {
            Message::Close(frame) => {
                codes.insert("close", u16::from(frame.unwrap().code));
                break;
            }
            other => assert_eq!(other, Message::text("x")),
        }
    }
    assert_eq!(codes["close"], 3013);

    let mut socket = node.bare("room").await;
    socket.send(Message::text("x".repeat(1_001))).await.unwrap();
    assert_eq!(close_code(&mut socket).await.0, 1009);

    let mut socket = node.bare("room").await;
    node.shards.shed(10, Duration::ZERO, Duration::from_millis(1_500));
    assert_eq!(close_code(&mut socket).await, (1012, "drain after=0 jitter=1500".to_owned()));

    let mut socket = node.framed("/ws/room").await;
    assert_eq!(object(&mut socket).await, json!({"subscribed": {"channel": "room"}}));
    node.shards.shed(10, Duration::from_secs(1), Duration::ZERO);
    let advice = json!({"reconnect": {"afterMs": 1000, "jitterMs": 0, "positions": []}});
    assert_eq!(object(&mut socket).await, advice);
    assert_eq!(close_code(&mut socket).await.0, 1012);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preflight_is_answered_for_allowed_origins_only() {
    let node = Node::start().await;
    let ask = async |origin: &str| {
        let mut tcp = TcpStream::connect(node.address).await.unwrap();
        let request =
            format!("OPTIONS /sse/a HTTP/1.1\r\nhost: a\r\norigin: {origin}\r\nconnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.unwrap();
        answer.to_ascii_lowercase()
    };
    let answer = ask("https://app.example").await;
    assert!(answer.contains("access-control-allow-origin: https://app.example"), "{answer}");
    assert!(answer.contains("access-control-allow-headers: authorization"), "{answer}");
    assert!(!ask("https://evil.example").await.contains("access-control-allow"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxy_may_speak_the_proxy_protocol() {
    let node = Node::start().await;
    let mut tcp = TcpStream::connect(node.address).await.unwrap();
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    bytes.extend_from_slice(&[192, 0, 2, 1, 10, 0, 0, 1, 0x1F, 0x90, 0, 80]);
    // In two pieces, the first within the signature.
    tcp.write_all(&bytes[..5]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    tcp.write_all(&bytes[5..]).await.unwrap();
    tcp.write_all(b"GET /sse/room HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    until(&mut tcp, "retry: 3000").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_sends_behind_its_handshake_is_not_lost() {
    let node = Node::start().await;
    let mut listener = node.bare("room").await;
    let mut tcp = TcpStream::connect(node.address).await.unwrap();
    let mut bytes = b"GET /ws/room HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        .to_vec();
    bytes.extend(client_text("early"));
    bytes.extend(client_text("bird"));
    // All but the last bytes in one segment, so that the last frame is cut.
    let (first, rest) = bytes.split_at(bytes.len() - 3);
    tcp.write_all(first).await.unwrap();
    assert_eq!(text(&mut listener).await, "early");
    tcp.write_all(rest).await.unwrap();
    assert_eq!(text(&mut listener).await, "bird");
    let answer = until(&mut tcp, "bird").await;
    assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_for_a_while_gets_everything_in_order_and_delays_nobody() {
    let node = Node::with(
        "namespaces: [{name: default, subscribe: allowed, slowConsumer: {maxLagBytes: 268435456}}]",
    )
    .await;
    let (mut stuck, mut quick) = (node.bare("room").await, node.bare("room").await);
    let filler = "x".repeat(10_000);
    for i in 0..2_000 {
        node.publish("room", &format!("{i} {filler}"));
        assert_eq!(text(&mut quick).await.split(' ').next(), Some(i.to_string().as_str()));
    }
    let totals = node.shards.totals();
    assert!(totals.log_bytes > 5_000_000, "most of it waits in the log, not in the kernel: {totals:?}");
    for i in 0..2_000 {
        assert_eq!(text(&mut stuck).await.split(' ').next(), Some(i.to_string().as_str()));
    }
    node.settle(|node| node.shards.totals().log_bytes == 0).await;
}

/// What a client that reads at full speed gets of a burst, and of one message that is larger than it may lag behind.
#[tokio::test(flavor = "multi_thread")]
async fn neither_a_burst_nor_a_large_message_is_a_slowness_of_whoever_reads() {
    let node = Node::with("namespaces: [{name: default, subscribe: allowed}, {name: oldest, subscribe: allowed, slowConsumer: {policy: dropOldest, maxLagBytes: 65536}}]").await;
    for channel in ["room", "oldest:room"] {
        let (mut bare, mut framed) = (node.bare(channel).await, node.framed(&format!("/ws/{channel}")).await);
        assert!(object(&mut framed).await["subscribed"].is_object());
        let burst = |mailbox: &Mailbox| {
            let publication = |number: usize| {
                let payload = Payload::Text(format!("\"{number} {}\"", "x".repeat(1_000)).into());
                Arc::new(Publication::bare(channel.parse().unwrap(), payload).into())
            };
            mailbox.publications((0..3_000).map(publication).collect()).unwrap();
        };
        node.shards.mailboxes().iter().for_each(burst);
        let large = format!("\"{}\"", "x".repeat(3_000_000));
        for number in 0..3_000 {
            let start = format!("\"{number} x");
            assert!(text(&mut bare).await.starts_with(&start), "{channel}: {number}");
            let message = object(&mut framed).await;
            assert!(message["pub"]["data"].as_str().unwrap().starts_with(&start[1..]), "{channel}: {number}");
        }
        node.publish(channel, &large);
        assert_eq!(text(&mut bare).await, large, "{channel}");
        assert_eq!(object(&mut framed).await["pub"]["data"].as_str().map(str::len), Some(3_000_000));
        node.publish(channel, "later");
        assert_eq!(
            (text(&mut bare).await, &object(&mut framed).await["pub"]["data"]),
            ("later".to_owned(), &json!("later"))
        );
    }
    let totals = node.shards.totals();
    assert_eq!((totals.slow_disconnected, totals.slow_dropped), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_without_a_word_leaves_nothing_behind() {
    let node = Node::start().await;
    let socket = node.bare("room").await;
    let stream = node.sse("/sse/room", "").await;
    node.settle(|node| node.shards.totals().open() == 2).await;
    drop((socket, stream));
    node.settle(|node| node.shards.connections() == 0 && node.interest.lock().unwrap().is_empty()).await;
    let closed = node.shards.totals().closed;
    let count = |reason| closed.iter().find(|(other, _)| *other == reason).unwrap().1;
    assert_eq!(count(crate::domain::CloseReason::ConnectionLost), 1);
    assert_eq!(count(crate::domain::CloseReason::ClientClosed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_too_many_bytes_or_too_much_patience_is_turned_away() {
    let node = Node::with("hub: {limits: {headerBytes: 1024, headerTimeoutSeconds: 1}}").await;
    let mut tcp = node.sse("/sse/room", &format!("x-filler: {}\r\n", "x".repeat(2_000))).await;
    assert!(until(&mut tcp, "at most 1024").await.starts_with("HTTP/1.1 431"));
    let mut silent = TcpStream::connect(node.address).await.unwrap();
    silent.write_all(b"GET /sse/room HT").await.unwrap();
    let mut rest = Vec::new();
    timeout(PATIENCE, silent.read_to_end(&mut rest)).await.expect("is cut off in time").ok();
}
