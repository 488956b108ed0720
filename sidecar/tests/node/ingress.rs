//! Behind nginx and HAProxy, set up by the very snippets of docs/ingress.md.

use std::{fs, net::SocketAddr, path::Path};

use reqwest::{
    Method, Response, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HeaderName, ORIGIN, VARY,
    },
};
use serde_json::{Value, json};
use tokio::net::TcpSocket;
use tokio_tungstenite::{MaybeTlsStream, client_async, tungstenite::client::IntoClientRequest};

use crate::{
    binary::Program,
    service::Service,
    support::{Client, Setup, eventually, http, soon},
};

const CLIENT: &str = "127.0.0.7";
/// A page that may connect.
const PAGE: &str = "https://app.example.com";
const FOREIGN: &str = "https://evil.example";

/// The code blocks of a language in docs/ingress.md.
fn snippets(language: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ingress.md");
    let text = fs::read_to_string(path).unwrap();
    let fence = format!("```{language}\n");
    let blocks = text.split(&fence).skip(1);
    blocks.map(|block| block.split("```").next().unwrap().to_owned()).collect()
}

async fn nginx(node: SocketAddr) -> Service {
    let [snippet] = &snippets("nginx")[..] else { panic!("one snippet for nginx") };
    let before = "daemon off;\nmaster_process off;\npid DIR/pid;\nerror_log stderr;\nevents {}\nhttp {\naccess_log off;\n\
        client_body_temp_path DIR/a;\nproxy_temp_path DIR/b;\nfastcgi_temp_path DIR/c;\nuwsgi_temp_path DIR/d;\n\
        scgi_temp_path DIR/e;";
    let arguments = ["-e", "stderr", "-p", "DIR", "-c", "DIR/conf"];
    Service::start("nginx", &arguments, &format!("{before}\n{snippet}\n}}\n"), node).await
}

async fn haproxy(kind: usize, node: SocketAddr) -> Service {
    let snippets = snippets("haproxy");
    assert_eq!(snippets.len(), 2, "HTTP and TCP");
    let configuration = format!("global\n    maxconn 200\n\n{}\n", snippets[kind]);
    Service::start("haproxy", &["-db", "-f", "DIR/conf"], &configuration, node).await
}

/// A client from an address of its own that claims to be somebody else.
async fn connect(proxy: SocketAddr) -> Client {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{CLIENT}:0").parse().unwrap()).unwrap();
    let stream = soon(socket.connect(proxy)).await.unwrap();
    let mut request = format!("ws://{proxy}/ws/lobby").into_client_request().unwrap();
    request.headers_mut().insert("x-forwarded-for", "203.0.113.9".parse().unwrap());
    request.headers_mut().insert("origin", PAGE.parse().unwrap());
    let (socket, _) = soon(client_async(request, MaybeTlsStream::Plain(stream))).await.unwrap();
    Client::new(socket)
}

/// An `EventSource` of a page.
async fn listen(proxy: SocketAddr, origin: &str) -> Response {
    let request = http().get(format!("http://{proxy}/sse/lobby")).header(ORIGIN, origin);
    soon(request.send()).await.unwrap()
}

/// A browser asks before a page's request with a token in its headers.
async fn preflights(proxy: SocketAddr) {
    let ask = async |origin: &str| {
        let request = http().request(Method::OPTIONS, format!("http://{proxy}/sse/lobby"));
        let request = request.header(ORIGIN, origin).header(ACCESS_CONTROL_REQUEST_METHOD, "GET");
        soon(request.header(ACCESS_CONTROL_REQUEST_HEADERS, "authorization").send()).await.unwrap()
    };
    let answer = ask(PAGE).await;
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    assert_eq!(header(&answer, ACCESS_CONTROL_ALLOW_ORIGIN), PAGE);
    assert_eq!(header(&answer, ACCESS_CONTROL_ALLOW_METHODS), "GET");
    assert!(header(&answer, ACCESS_CONTROL_ALLOW_HEADERS).contains("authorization"));
    assert_eq!(header(&ask(FOREIGN).await, ACCESS_CONTROL_ALLOW_ORIGIN), "");
}

/// A header of an answer; empty where it has none.
fn header(answer: &Response, name: HeaderName) -> &str {
    answer.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

/// What the log says of the connection that ended.
async fn logged_address(program: &Program, protocol: &str) -> String {
    let address = async || {
        let log = program.log();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let end = lines.find(|line| line["message"] == "connection ended" && line["protocol"] == protocol)?;
        let address: SocketAddr = end["client.addr"].as_str().unwrap().parse().unwrap();
        Some(address.ip().to_string())
    };
    eventually("the connection's line", address).await
}

/// WebSocket both ways, events at once for the pages that may, and the client's own address where the proxy is trusted.
async fn passes_through(start: impl AsyncFn(SocketAddr) -> Service, by_header: bool) {
    for trusted in [true, false] {
        let networks = if trusted { json!(["127.0.0.1/32"]) } else { json!([]) };
        let hub = json!({"trustedProxies": networks, "allowedOrigins": ["https://*.example.com"]});
        let program = Program::start(&Setup::open().live("hub", hub)).await;
        let proxy = start(program.addresses.client).await;
        if !trusted && !by_header {
            // A PROXY header of a stranger is no HTTP: the request is refused.
            let answer = http().get(format!("http://{}/sse/lobby", proxy.address)).send().await;
            assert!(answer.is_err() || answer.unwrap().status().is_client_error());
            continue;
        }
        let mut client = connect(proxy.address).await;
        preflights(proxy.address).await;
        let mut events = listen(proxy.address, PAGE).await;
        assert!(events.status().is_success());
        assert_eq!(header(&events, ACCESS_CONTROL_ALLOW_ORIGIN), PAGE);
        assert_eq!(header(&events, VARY), "origin");
        assert_eq!(listen(proxy.address, FOREIGN).await.status(), StatusCode::FORBIDDEN);
        client.send("through the proxy").await;
        assert_eq!(client.text().await, "through the proxy");
        let mut seen = String::new();
        while !seen.contains("data: through the proxy\n\n") {
            seen.push_str(std::str::from_utf8(&soon(events.chunk()).await.unwrap().expect("open")).unwrap());
        }
        drop((client, events));
        let expected = if trusted { CLIENT } else { "127.0.0.1" };
        assert_eq!(logged_address(&program, "raw_bare").await, expected, "trusted: {trusted}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_passes_sockets_and_events_on_and_is_believed_where_it_is_trusted() {
    passes_through(nginx, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_passes_sockets_and_events_on_and_is_believed_where_it_is_trusted() {
    passes_through(async |node| haproxy(0, node).await, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_s_proxy_header_is_believed_where_it_is_trusted() {
    passes_through(async |node| haproxy(1, node).await, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_s_code_passes_through_a_proxy() {
    let program = Program::start(&Setup::open()).await;
    let proxy = nginx(program.addresses.client).await;
    let mut client = connect(proxy.address).await;
    let drain = http().post(format!("http://{}/drain", program.addresses.admin)).send().await.unwrap();
    assert!(drain.status().is_success());
    assert_eq!(client.closed().await.0, 1012);
}
