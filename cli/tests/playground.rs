//! The playground in a real browser: what a person would do, done by mouse and keyboard.

mod support {
    pub(super) mod browser;
    pub(super) mod dev;
}

use std::path::{Path, PathBuf};

use support::{browser::Browser, dev::Dev};

/// The manifest that `make demo` takes.
fn quickstart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/quickstart.yaml")
}

/// Whether each of three clients shows `text` as sent through node `node`.
fn everywhere(text: &str, node: u8) -> String {
    format!(
        "[...document.querySelectorAll('.client')].filter(c => [...c.querySelectorAll('.log li')].filter(l => \
         l.querySelector('.bubble')?.textContent === '{text}' && l.querySelector('.via')?.textContent === 'node {node}' \
         && /^[0-9.]+ ms$/.test(l.querySelector('.ms').textContent)).length === 1).length === 3"
    )
}

async fn type_in(browser: &mut Browser, client: u8, text: &str) {
    browser.click(&format!("[data-client='{client}'] input")).await;
    browser.type_line(text).await;
}

async fn save(name: &str, picture: &[u8]) {
    // `make screenshots` keeps them for the README; a plain test run leaves the tree alone.
    let directory = match std::env::var_os("FANOUT_SCREENSHOTS") {
        Some(directory) => PathBuf::from(directory),
        None => PathBuf::from(env!("CARGO_TARGET_TMPDIR")),
    };
    tokio::fs::create_dir_all(&directory).await.expect("a directory for pictures");
    tokio::fs::write(directory.join(name), picture).await.expect("a picture is written");
}

#[tokio::test]
async fn what_is_typed_in_one_client_arrives_in_all_and_a_stopped_nodes_client_moves() {
    let dev = Dev::start(&quickstart());
    let url = dev.url().await;
    let mut browser = Browser::open(&url).await;
    browser.resize(1240, 940, false).await;
    browser
        .wait(
            "[1, 2, 3].every(n => document.querySelector(`[data-client='${n}']`)?.dataset.on === String(n))",
        )
        .await;
    browser
        .wait("[...document.querySelectorAll('.node .count')].every(count => count.textContent === '1')")
        .await;

    type_in(&mut browser, 1, "Good morning from the first node").await;
    browser.wait(&everywhere("Good morning from the first node", 1)).await;
    type_in(&mut browser, 3, "Heard you here, on the third").await;
    browser.wait(&everywhere("Heard you here, on the third", 3)).await;

    browser.click("[data-node='2'] .toggle").await;
    browser.wait("document.querySelector(`[data-node='2']`).dataset.state === 'stopped'").await;
    browser.wait("['1', '3'].includes(document.querySelector(`[data-client='2']`).dataset.on)").await;
    let moved: u8 = browser
        .eval("document.querySelector(`[data-client='2']`).dataset.on")
        .await
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    type_in(&mut browser, 2, "My node went away, I did not").await;
    browser.wait(&everywhere("My node went away, I did not", moved)).await;
    browser
        .wait("[...document.querySelectorAll('.node .count')].some(count => count.textContent === '2')")
        .await;
    browser.wait("document.querySelectorAll('#wires circle').length === 0").await;
    for scheme in ["light", "dark"] {
        browser.scheme(scheme).await;
        // Colours fade into each other for a quarter of a second.
        browser.wait("document.getAnimations().length === 0").await;
        save(&format!("playground-{scheme}.png"), &browser.screenshot().await).await;
    }

    browser.click("[data-node='2'] .toggle").await;
    browser.wait("document.querySelector(`[data-client='2']`).dataset.on === '2'").await;
    type_in(&mut browser, 2, "Home again").await;
    browser.wait(&everywhere("Home again", 2)).await;

    browser.resize(390, 844, true).await;
    browser.wait("document.documentElement.scrollWidth <= innerWidth").await;
    save("playground-phone.png", &browser.screenshot().await).await;

    let foreign = browser.requested.iter().find(|url| !url.contains("//127.0.0.1:") && *url != "about:blank");
    assert_eq!(foreign, None, "the page asks nobody but this machine");
    assert_eq!(browser.complaints, Vec::<String>::new());
    assert!(dev.interrupt().await, "Ctrl-C ends it well");
}

#[tokio::test]
async fn a_message_from_elsewhere_names_its_publisher_only_where_the_namespace_exposes_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cluster.yaml");
    let hidden = std::fs::read_to_string(quickstart()).unwrap();
    let exposed = hidden.replace("subscribe: allowed\n", "subscribe: allowed\n    exposePublisher: true\n");
    assert_ne!(hidden, exposed);
    std::fs::write(&file, hidden).unwrap();
    let dev = Dev::start(&file);
    let mut browser = Browser::open(&dev.url().await).await;
    browser.wait("[1, 2, 3].every(n => document.querySelector(`[data-client='${n}']`)?.dataset.on)").await;
    browser.eval(&publisher(dev.port())).await;
    browser.wait("window.publisher.id !== undefined").await;

    browser.eval("window.publisher.publish('before')").await;
    browser.wait(&from_elsewhere("before", "'from outside the browser'")).await;

    std::fs::write(&file, exposed).unwrap();
    // Each node takes the settings over by itself: the first message that names its publisher proves that they did.
    let named = from_elsewhere("after", "`from ${window.publisher.id}`");
    browser.eval("window.again = setInterval(() => window.publisher.publish('after'), 500)").await;
    browser.wait(&named).await;
    browser.eval("clearInterval(window.again)").await;
    assert_eq!(browser.complaints, Vec::<String>::new());
    assert!(dev.interrupt().await, "Ctrl-C ends it well");
}

/// A framed client of the first node that is not the page's.
fn publisher(port: u16) -> String {
    format!(
        "(() => {{ const socket = new WebSocket('ws://127.0.0.1:{port}/ws/lobby', 'fanout.v1'); \
         window.publisher = {{ publish: data => socket.send(JSON.stringify({{ publish: {{ channel: 'lobby', data }} }})) }}; \
         socket.onmessage = ({{ data }}) => {{ const id = JSON.parse(data).connected?.client; if (id) window.publisher.id = id; }}; }})()"
    )
}

/// Whether each of three clients shows `text` beside `words`, an expression.
fn from_elsewhere(text: &str, words: &str) -> String {
    format!(
        "[...document.querySelectorAll('.client')].filter(c => [...c.querySelectorAll('.log li.outsider')].some(l => \
         l.querySelector('.bubble').textContent === '{text}' && l.querySelector('.meta').textContent === {words})).length === 3"
    )
}

#[tokio::test]
async fn the_playground_refuses_foreign_names_and_wrong_tokens() {
    let dev = Dev::start(&quickstart());
    let url = dev.url().await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let status = async |url: &str, host: Option<&str>| {
        let mut request = http.get(url);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(status(&url, None).await, 200);
    assert_eq!(status(&url, Some("rebound.example")).await, 403);
    let (root, _) = url.trim_end_matches('/').rsplit_once('/').unwrap();
    assert_eq!(status(&format!("{root}/"), None).await, 404);
    assert_eq!(status(&format!("{root}/{}/", "0".repeat(32)), None).await, 404);
    assert!(dev.interrupt().await, "Ctrl-C ends it well");
}
