//! Starts nodes and speaks to them. Nothing sleeps: what is not there yet is waited for, within a bound.

use std::{fs, future::Future, net::SocketAddr, path::PathBuf, time::Duration};

use bytes::Bytes;
pub(crate) use fanout_sidecar::app::Addresses;
use fanout_sidecar::{
    app::{App, Options},
    broker::Bus,
    config::Config,
    telemetry::LogControl,
};
use futures::{SinkExt, StreamExt};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{
        self, Message,
        client::IntoClientRequest,
        http::HeaderValue,
        protocol::{
            CloseFrame,
            frame::{
                Frame,
                coding::{Data, OpCode},
            },
        },
    },
};

use crate::redis_server::Server;

pub(crate) const KEY: &str = "a key of the server API";
/// The secret of the tests' tokens.
pub(crate) const SECRET: &str = "a secret of thirty-two bytes, yes";
/// No answer and no delivery takes longer, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// What has not come by then does not come.
pub(crate) const NEVER: Duration = Duration::from_millis(300);

/// Opens what most tests use.
pub(crate) const OPEN: &str = "
namespaces:
- {name: default, channels: [lobby, 'room-*'], publish: allowed, subscribe: allowed}
- {name: feed, subscribe: allowed}
- {name: chat, publish: token, subscribe: token}
hub: {allowedOrigins: ['https://*.example.com']}
";

/// The documents of a node.
#[derive(Clone)]
pub(crate) struct Setup {
    name: String,
    boot: Value,
    pub(crate) live: Value,
    bus: Option<Bus>,
}

/// A node.
pub(crate) struct Node {
    pub(crate) app: App,
    pub(crate) directory: TempDir,
    addresses: Addresses,
    pub(crate) live: Value,
}

/// A WebSocket client.
pub(crate) struct Client(WebSocketStream<MaybeTlsStream<TcpStream>>);

/// A reader of server-sent events.
pub(crate) struct Events {
    response: reqwest::Response,
    text: String,
}

/// Nodes that share a broker.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
}

/// Runs a test against a node that is ready.
pub(crate) async fn with_sidecar(setup: Setup, test: impl AsyncFnOnce(&mut Node)) {
    let mut node = setup.start().await;
    test(&mut node).await;
    node.app.stop().await;
}

/// Waits until `check` gives something.
pub(crate) async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + SOON;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < until, "not in time: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// What a future gives, which must be soon.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("in time")
}

pub(crate) fn http() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().expect("a client")
}

// === impl Setup ===

impl Setup {
    pub(crate) fn new(live: &str) -> Self {
        let live: Value = serde_yaml::from_str(live).expect("YAML");
        let any = "127.0.0.1:0";
        let boot = json!({
            "broker": {"memory": {}},
            "listen": {"client": any, "api": any, "admin": any},
            "runtime": {"shards": 2},
        });
        Self { name: "node-0".to_owned(), boot, live, bus: None }
    }

    pub(crate) fn open() -> Self {
        Self::new(OPEN)
    }

    /// With this in the boot document.
    pub(crate) fn boot(mut self, field: &str, value: Value) -> Self {
        self.boot[field] = value;
        self
    }

    /// With this in the live document.
    pub(crate) fn live(mut self, field: &str, value: Value) -> Self {
        self.live[field] = value;
        self
    }

    /// Files and documents in a directory of their own.
    pub(crate) fn write(&self) -> (TempDir, PathBuf, PathBuf, Value) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| directory.path().join(name);
        fs::write(at("key"), KEY).expect("written");
        fs::write(at("secret"), SECRET).expect("written");
        let mut live = self.live.clone();
        if live.get("auth").is_none() {
            live["auth"] = json!({
                "apiKeyFiles": [at("key")],
                "jwt": {"keys": [{"algorithm": "HS256", "file": at("secret")}]},
            });
        }
        fs::write(at("boot.yaml"), self.boot.to_string()).expect("written");
        fs::write(at("live.yaml"), live.to_string()).expect("written");
        let (boot_path, live_path) = (at("boot.yaml"), at("live.yaml"));
        (directory, boot_path, live_path, live)
    }

    /// Starts it, without a wait for its readiness.
    pub(crate) async fn launch(self) -> Node {
        let (directory, boot, live_path, live) = self.write();
        let config = Config::load(&boot, &live_path).unwrap_or_else(|error| panic!("{error}"));
        let options = Options {
            name: self.name,
            log: LogControl::none(),
            bus: self.bus,
            allocator: None,
            nodes_service: None,
            grace: None,
        };
        let app = App::start(config, options).await.unwrap_or_else(|error| panic!("{error}"));
        Node { addresses: app.addresses(), app, directory, live }
    }

    pub(crate) async fn start(self) -> Node {
        let node = self.launch().await;
        node.until_ready().await;
        node
    }
}

// === impl Node ===

impl Node {
    pub(crate) fn client_address(&self) -> SocketAddr {
        self.addresses.client
    }

    pub(crate) fn client_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addresses.client)
    }

    pub(crate) fn api_address(&self) -> SocketAddr {
        self.addresses.api
    }

    pub(crate) fn api_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addresses.api)
    }

    pub(crate) fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addresses.admin)
    }

    /// A client with these request headers.
    pub(crate) async fn try_connect(
        &self,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Client, (StatusCode, Value)> {
        connect(self.addresses.client, path, headers).await
    }

    pub(crate) async fn connect(&self, path: &str) -> Client {
        self.try_connect(path, &[]).await.expect("connected")
    }

    pub(crate) async fn framed(&self, path: &str) -> Client {
        self.framed_with_id(path).await.0
    }

    /// The client, and what it was told it is called.
    pub(crate) async fn framed_with_id(&self, path: &str) -> (Client, String) {
        let framed = [("sec-websocket-protocol", "fanout.v1")];
        let mut client = self.try_connect(path, &framed).await.expect("connected");
        let connected = client.json().await;
        let id = connected["connected"]["client"].as_str().expect("its id is the first it is told");
        (client, id.to_owned())
    }

    pub(crate) async fn events(&self, path: &str) -> Events {
        let response = soon(http().get(self.client_url(path)).send()).await.expect("answered");
        assert_eq!(response.status(), StatusCode::OK);
        Events { response, text: String::new() }
    }

    /// Calls the server API with a good key.
    pub(crate) async fn api(&self, method: &str, body: &Value) -> Value {
        let request =
            http().post(self.api_url(&format!("/api/{method}"))).header("x-api-key", KEY).json(body);
        let response = soon(request.send()).await.expect("answered");
        assert_eq!(response.status(), StatusCode::OK, "{method} {body}");
        response.json().await.expect("JSON")
    }

    pub(crate) async fn publish(&self, channel: &str, data: &Value) {
        let reply = self.api("publish", &json!({"channel": channel, "data": data})).await;
        assert_eq!(reply, json!({"result": {}}));
    }

    pub(crate) async fn admin(&self, path: &str) -> (StatusCode, String) {
        let response = soon(http().get(self.admin_url(path)).send()).await.expect("answered");
        (response.status(), response.text().await.expect("text"))
    }

    /// A metric's value, by name and labels as they are written.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let page = self.app.metrics();
        let line = page.lines().find(|line| line.split(' ').next() == Some(name))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    pub(crate) async fn until_metric(&self, name: &str, value: f64) {
        eventually(&format!("{name} {value}"), async || (self.metric(name) == Some(value)).then_some(()))
            .await;
    }

    pub(crate) async fn until_ready(&self) {
        eventually("ready", async || self.app.readiness().missing().is_empty().then_some(())).await;
    }

    /// Changes the live document and lets the node look.
    pub(crate) fn change(&mut self, field: &str, value: Value) {
        self.live[field] = value;
        self.write_live(&self.live.to_string());
    }

    /// Replaces the live document as a ConfigMap is: by a new file in its place.
    pub(crate) fn write_live(&self, text: &str) {
        let at = |name: &str| self.directory.path().join(name);
        fs::write(at("new"), text).expect("written");
        fs::rename(at("new"), at("live.yaml")).expect("renamed");
    }
}

/// A token with these claims, by the tests' secret.
pub(crate) fn token(claims: &Value) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), claims, &key).expect("a token")
}

// === clients ===

pub(crate) async fn connect(
    address: SocketAddr,
    path: &str,
    headers: &[(&'static str, &str)],
) -> Result<Client, (StatusCode, Value)> {
    let mut request = format!("ws://{address}{path}").into_client_request().expect("a request");
    for (name, value) in headers {
        request.headers_mut().append(*name, HeaderValue::from_str(value).expect("a header"));
    }
    match soon(connect_async(request)).await {
        Ok((socket, _)) => Ok(Client(socket)),
        Err(tungstenite::Error::Http(response)) => {
            let body = response.body().as_deref().unwrap_or_default();
            Err((response.status(), serde_json::from_slice(body).unwrap_or(Value::Null)))
        }
        Err(error) => panic!("{error}"),
    }
}

impl Client {
    pub(crate) fn new(socket: WebSocketStream<MaybeTlsStream<TcpStream>>) -> Self {
        Self(socket)
    }

    pub(crate) async fn send(&mut self, text: &str) {
        soon(self.0.send(Message::text(text))).await.expect("sent");
    }

    pub(crate) async fn send_binary(&mut self, bytes: &[u8]) {
        soon(self.0.send(Message::binary(bytes.to_vec()))).await.expect("sent");
    }

    /// Sends a ping and waits for its pong.
    pub(crate) async fn ping(&mut self) {
        soon(self.0.send(Message::Ping(Bytes::new()))).await.expect("sent");
        while !matches!(soon(self.0.next()).await, Some(Ok(Message::Pong(_)))) {}
    }

    /// One text message in several frames.
    pub(crate) async fn send_fragments(&mut self, fragments: &[String]) {
        for (at, fragment) in fragments.iter().enumerate() {
            let kind = if at == 0 { Data::Text } else { Data::Continue };
            let frame = Frame::message(fragment.clone(), OpCode::Data(kind), at + 1 == fragments.len());
            soon(self.0.send(Message::Frame(frame))).await.expect("sent");
        }
    }

    pub(crate) async fn send_json(&mut self, value: &Value) {
        self.send(&value.to_string()).await;
    }

    /// The next message; pings are answered on the way.
    pub(crate) async fn message(&mut self) -> Message {
        loop {
            match soon(self.0.next()).await.expect("the connection is open").expect("a message") {
                Message::Ping(_) | Message::Pong(_) => {}
                message => return message,
            }
        }
    }

    pub(crate) async fn text(&mut self) -> String {
        match self.message().await {
            Message::Text(text) => text.to_string(),
            other => panic!("no text: {other:?}"),
        }
    }

    pub(crate) async fn json(&mut self) -> Value {
        serde_json::from_str(&self.text().await).expect("JSON")
    }

    pub(crate) async fn nothing_comes(&mut self) {
        if let Ok(message) = timeout(NEVER, self.message()).await {
            panic!("unexpected {message:?}");
        }
    }

    /// The code and reason by which the server ends it; messages before it are skipped.
    pub(crate) async fn closed(&mut self) -> (u16, String) {
        loop {
            match soon(self.0.next()).await {
                Some(Ok(Message::Close(Some(CloseFrame { code, reason })))) => {
                    // Lets the close handshake end.
                    while let Some(Ok(_)) = soon(self.0.next()).await {}
                    return (code.into(), reason.to_string());
                }
                Some(Ok(_)) => {}
                other => panic!("ended without a code: {other:?}"),
            }
        }
    }
}

impl Events {
    /// The next event's lines; comments and the head of the stream are skipped.
    pub(crate) async fn event(&mut self) -> String {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                if event.lines().any(|line| line.starts_with("data:")) {
                    return event;
                }
                continue;
            }
            let chunk = soon(self.response.chunk()).await.expect("a chunk").expect("the stream is open");
            self.text.push_str(std::str::from_utf8(&chunk).expect("UTF-8"));
        }
    }
}

// === impl Cluster ===

impl Cluster {
    /// Nodes over one memory bus.
    pub(crate) async fn of(count: usize) -> Self {
        Self::start(count, &Setup { bus: Some(Bus::default()), ..Setup::open() }).await
    }

    /// Nodes over a Redis.
    pub(crate) async fn over(redis: &Server, count: usize) -> Self {
        Self::over_as(redis, count, &Setup::open()).await
    }

    /// Nodes over a Redis with these settings.
    pub(crate) async fn over_as(redis: &Server, count: usize, setup: &Setup) -> Self {
        let setup = setup.clone().boot("broker", json!({"redis": redis.settings()}));
        Self::start(count, &setup).await
    }

    async fn start(count: usize, setup: &Setup) -> Self {
        let mut nodes = Vec::new();
        for number in 0..count {
            let setup = Setup { name: format!("node-{number}"), ..setup.clone() };
            nodes.push(setup.start().await);
        }
        for node in &nodes {
            let known = async || {
                let info = node.api("info", &json!({})).await;
                (info["result"]["nodes"].as_array().map(Vec::len) == Some(count)).then_some(())
            };
            eventually("every node knows every other", known).await;
        }
        Self { nodes }
    }

    pub(crate) async fn stop(self) {
        for node in self.nodes {
            node.app.stop().await;
        }
    }
}
