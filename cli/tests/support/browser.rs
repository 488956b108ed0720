//! A real headless Chromium, driven over its DevTools protocol.

use std::{
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::sleep,
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

/// Time for anything in the page to happen; a loaded machine starts a browser in some seconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A browser with one page.
pub(crate) struct Browser {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    session: String,
    last_id: u64,
    /// Addresses of everything the page asked for.
    pub(crate) requested: Vec<String>,
    /// What the page said in the console, and its exceptions.
    pub(crate) complaints: Vec<String>,
    _process: Child,
    _profile: TempDir,
}

impl Browser {
    /// Starts the browser and opens `url`.
    pub(crate) async fn open(url: &str) -> Self {
        let profile = tempfile::tempdir().expect("a directory for the profile");
        let process = Command::new(program())
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-port=0"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("chromium starts");
        let address = devtools_address(&profile).await;
        let (socket, _) = connect_async(address).await.expect("the browser answers");
        let mut browser = Self {
            socket,
            session: String::new(),
            last_id: 0,
            requested: Vec::new(),
            complaints: Vec::new(),
            _process: process,
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"})).await;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.call("Target.attachToTarget", attach).await;
        browser.session = session["sessionId"].as_str().expect("a session").to_owned();
        for domain in ["Page.enable", "Network.enable", "Runtime.enable"] {
            browser.call(domain, json!({})).await;
        }
        browser.call("Page.navigate", json!({"url": url})).await;
        browser
    }

    /// Value of a JavaScript expression in the page.
    pub(crate) async fn eval(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let reply = self.call("Runtime.evaluate", params).await;
        assert!(reply.get("exceptionDetails").is_none(), "{expression} failed: {reply}");
        reply["result"]["value"].clone()
    }

    /// Waits until `expression` is true.
    pub(crate) async fn wait(&mut self, expression: &str) {
        let started = Instant::now();
        while self.eval(expression).await != Value::Bool(true) {
            if started.elapsed() > PATIENCE {
                let text = self.eval("document.body.innerText").await;
                panic!("never came true: {expression}\ncomplaints: {:?}\npage: {text}", self.complaints);
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Clicks in the middle of the element, as a mouse would.
    pub(crate) async fn click(&mut self, selector: &str) {
        let middle = format!(
            "(() => {{ const e = document.querySelector({selector:?}); e.scrollIntoView({{block: 'nearest'}}); \
             const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()"
        );
        let place = self.eval(&middle).await;
        for kind in ["mousePressed", "mouseReleased"] {
            let event =
                json!({"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", event).await;
        }
    }

    /// Types into what has the focus and presses Enter.
    pub(crate) async fn type_line(&mut self, text: &str) {
        self.call("Input.insertText", json!({"text": text})).await;
        for kind in ["keyDown", "keyUp"] {
            let key = json!({"type": kind, "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"});
            self.call("Input.dispatchKeyEvent", key).await;
        }
    }

    /// Shows the page in the `light` or `dark` scheme.
    pub(crate) async fn scheme(&mut self, scheme: &str) {
        let feature = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", feature).await;
    }

    /// Makes the window this large.
    pub(crate) async fn resize(&mut self, width: u32, height: u32, mobile: bool) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile});
        self.call("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// A picture of the whole page.
    pub(crate) async fn screenshot(&mut self) -> Vec<u8> {
        let reply = self
            .call("Page.captureScreenshot", json!({"format": "png", "captureBeyondViewport": true}))
            .await;
        STANDARD.decode(reply["data"].as_str().expect("a picture")).expect("base64")
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let id = self.last_id;
        let mut message = json!({"id": id, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = self.session.clone().into();
        }
        self.socket.send(Message::text(message.to_string())).await.expect("the browser listens");
        loop {
            let next = tokio::time::timeout(PATIENCE, self.socket.next()).await;
            let frame = next.unwrap_or_else(|_| panic!("no answer to {method}")).expect("the browser runs");
            let Message::Text(text) = frame.expect("the browser runs") else { continue };
            let reply: Value = serde_json::from_str(&text).expect("JSON");
            if reply["id"] == id {
                assert!(reply.get("error").is_none(), "{method} failed: {reply}");
                return reply["result"].clone();
            }
            self.note(&reply);
        }
    }

    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        match event["method"].as_str() {
            Some("Network.requestWillBeSent") => {
                self.requested.extend(params["request"]["url"].as_str().map(str::to_owned));
            }
            Some("Network.webSocketCreated") => {
                self.requested.extend(params["url"].as_str().map(str::to_owned))
            }
            Some("Runtime.exceptionThrown") => self.complaints.push(params["exceptionDetails"].to_string()),
            Some("Runtime.consoleAPICalled") => self.complaints.push(params["args"].to_string()),
            _ => {}
        }
    }
}

fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&path)
        .flat_map(|directory| names.map(|name| directory.join(name)))
        .find(|program| program.is_file())
        .expect("this test needs Chromium on the PATH (Debian: apt-get install chromium)")
}

async fn devtools_address(profile: &TempDir) -> String {
    let file = profile.path().join("DevToolsActivePort");
    let started = Instant::now();
    loop {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        if let Some((port, path)) = text.split_once('\n').filter(|(_, path)| !path.is_empty()) {
            return format!("ws://127.0.0.1:{port}{}", path.trim());
        }
        assert!(started.elapsed() < PATIENCE, "chromium did not open its DevTools port");
        sleep(Duration::from_millis(50)).await;
    }
}
