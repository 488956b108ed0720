//! Behind nginx and HAProxy, set up by the very snippets of docs/ingress.md.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpSocket;
use tokio_tungstenite::{MaybeTlsStream, client_async, tungstenite::client::IntoClientRequest};

use crate::{
    binary::Program,
    redis_server::free_port,
    support::{Client, Setup, eventually, http, soon},
};

const CLIENT: &str = "127.0.0.7";

/// A proxy that is gone with the test.
struct Proxy {
    child: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl Proxy {
    /// Runs `program` on the snippet, its addresses replaced, or says why not.
    async fn start(
        program: &str,
        arguments: &[&str],
        snippet: &str,
        around: (&str, &str),
        node: SocketAddr,
    ) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let snippet = snippet
            .replace("127.0.0.1:8000", &node.to_string())
            .replace("127.0.0.1:8080", &address.to_string());
        let dir = directory.path().to_str().unwrap();
        let (before, after) = (around.0.replace("DIR", dir), around.1);
        fs::write(directory.path().join("conf"), format!("{before}\n{snippet}\n{after}\n")).unwrap();
        let arguments = arguments.iter().map(|argument| argument.replace("DIR", dir));
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let started = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(log).spawn();
        let child = match started {
            Ok(child) => child,
            Err(error) => {
                let reason = format!("{program} does not start ({error}): apt-get install -y {program}");
                assert!(std::env::var_os("CI").is_none(), "{reason}");
                eprintln!("skipped: {reason}");
                return None;
            }
        };
        let proxy = Self { child, address, _directory: directory };
        eventually("the proxy listens", async || {
            tokio::net::TcpStream::connect(address).await.ok().map(drop)
        })
        .await;
        Some(proxy)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // nginx would leave its workers behind at a kill.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}

/// The code blocks of a language in docs/ingress.md.
fn snippets(language: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ingress.md");
    let text = fs::read_to_string(path).unwrap();
    let fence = format!("```{language}\n");
    let blocks = text.split(&fence).skip(1);
    blocks.map(|block| block.split("```").next().unwrap().to_owned()).collect()
}

async fn nginx(node: SocketAddr) -> Option<Proxy> {
    let [snippet] = &snippets("nginx")[..] else { panic!("one snippet for nginx") };
    let before = "daemon off;\nmaster_process off;\npid DIR/pid;\nerror_log stderr;\nevents {}\nhttp {\naccess_log off;\n\
        client_body_temp_path DIR/a;\nproxy_temp_path DIR/b;\nfastcgi_temp_path DIR/c;\nuwsgi_temp_path DIR/d;\n\
        scgi_temp_path DIR/e;";
    let arguments = ["-e", "stderr", "-p", "DIR", "-c", "DIR/conf"];
    Proxy::start("nginx", &arguments, snippet, (before, "}"), node).await
}

async fn haproxy(kind: usize, node: SocketAddr) -> Option<Proxy> {
    let snippets = snippets("haproxy");
    assert_eq!(snippets.len(), 2, "HTTP and TCP");
    let global = "global\n    maxconn 200\n";
    Proxy::start("haproxy", &["-db", "-f", "DIR/conf"], &snippets[kind], (global, ""), node).await
}

/// A client from an address of its own that claims to be somebody else.
async fn connect(proxy: SocketAddr) -> Client {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{CLIENT}:0").parse().unwrap()).unwrap();
    let stream = soon(socket.connect(proxy)).await.unwrap();
    let mut request = format!("ws://{proxy}/ws/lobby").into_client_request().unwrap();
    request.headers_mut().insert("x-forwarded-for", "203.0.113.9".parse().unwrap());
    request.headers_mut().insert("origin", "https://app.example.com".parse().unwrap());
    let (socket, _) = soon(client_async(request, MaybeTlsStream::Plain(stream))).await.unwrap();
    Client::new(socket)
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

/// WebSocket both ways, events at once, and the client's own address where the proxy is trusted.
async fn passes_through(start: impl AsyncFn(SocketAddr) -> Option<Proxy>, by_header: bool) {
    for trusted in [true, false] {
        let networks = if trusted { json!(["127.0.0.1/32"]) } else { json!([]) };
        let hub = json!({"trustedProxies": networks, "allowedOrigins": ["https://*.example.com"]});
        let program = Program::start(&Setup::open().live("hub", hub)).await;
        let Some(proxy) = start(program.addresses.client).await else { return };
        if !trusted && !by_header {
            // A PROXY header of a stranger is no HTTP: the request is refused.
            let answer = http().get(format!("http://{}/sse/lobby", proxy.address)).send().await;
            assert!(answer.is_err() || answer.unwrap().status().is_client_error());
            continue;
        }
        let mut client = connect(proxy.address).await;
        let mut events = http().get(format!("http://{}/sse/lobby", proxy.address)).send().await.unwrap();
        assert!(events.status().is_success());
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
    let Some(proxy) = nginx(program.addresses.client).await else { return };
    let mut client = connect(proxy.address).await;
    let drain = http().post(format!("http://{}/drain", program.addresses.admin)).send().await.unwrap();
    assert!(drain.status().is_success());
    assert_eq!(client.closed().await.0, 1012);
}
