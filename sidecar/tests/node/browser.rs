//! A real browser over TLS: it opens a WebSocket as a stream of its HTTP/2 connection (RFC 8441), and compresses.

use std::{fs, path::Path, process::Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::{
    io::AsyncReadExt,
    net::TcpListener,
    process::{Child, Command},
};

use crate::support::{OPEN, Setup, soon, with_sidecar};

/// Fetches once, so that there is an HTTP/2 connection to be used; then sends and receives its own messages, and tells.
const PAGE: &str = "<script>
(async () => {
  const tell = (text) => fetch('http://TELL/told?' + encodeURIComponent(text), {mode: 'no-cors'});
  await fetch('https://NODE/', {mode: 'no-cors', credentials: 'include'});
  const socket = new WebSocket('wss://NODE/ws/lobby');
  const sent = Array.from({length: 50}, (_, at) => at + 'x'.repeat(2000));
  const received = [];
  socket.onopen = () => sent.forEach((text) => socket.send(text));
  socket.onmessage = ({data}) => {
    received.push(data);
    if (received.length === sent.length)
      tell((received.join() === sent.join() ? 'in order' : 'not in order') + '; ' + socket.extensions.split(';')[0]);
  };
  socket.onclose = ({code}) => tell('closed ' + code);
})();
</script>";

fn chromium(profile: &Path, net_log: &Path, page: &Path) -> Child {
    let mut command = Command::new("chromium");
    command
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--disable-dev-shm-usage", "--ignore-certificate-errors", "--remote-debugging-port=0"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--log-net-log={}", net_log.display()))
        .arg(format!("file://{}", page.display()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command.spawn().expect("this test needs Chromium on the PATH (Debian: apt-get install chromium)")
}

/// What the page tells.
async fn told(listener: TcpListener) -> String {
    loop {
        let (mut client, _) = listener.accept().await.expect("a connection");
        let mut request = vec![0; 1_024];
        let length = client.read(&mut request).await.expect("a request");
        let request = String::from_utf8_lossy(&request[..length]).into_owned();
        if let Some((_, told)) = request.split_once("/told?") {
            return told.split(' ').next().unwrap_or_default().replace("%20", " ").replace("%3B", ";");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chromium_speaks_with_a_node_over_a_stream_of_http2() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| directory.path().join(name);
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    fs::write(at("tls.crt"), certified.cert.pem()).expect("written");
    fs::write(at("tls.key"), certified.signing_key.serialize_pem()).expect("written");
    let hub = json!({
        "allowedOrigins": ["*"],
        "compression": {"enabled": true},
        "tls": {"certFile": at("tls.crt"), "keyFile": at("tls.key")},
    });
    with_sidecar(Setup::new(OPEN).live("hub", hub), async |node| {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let here = listener.local_addr().expect("an address").to_string();
        let page = PAGE
            .replace("TELL", &here)
            .replace("NODE", &format!("localhost:{}", node.client_address().port()));
        fs::write(at("page.html"), page).expect("written");
        let mut browser = chromium(&at("profile"), &at("net.json"), &at("page.html"));
        assert_eq!(soon(told(listener)).await, "in order; permessage-deflate");
        // In good order, so that the log is written out.
        let pid = browser.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)).expect("it runs");
        kill_process(pid, Signal::TERM).expect("told to end");
        soon(browser.wait()).await.expect("it ends");
        let log = fs::read_to_string(at("net.json")).expect("a log");
        assert!(log.contains(":protocol: websocket"), "no WebSocket was opened as a stream of HTTP/2");
    })
    .await;
}
