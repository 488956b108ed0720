//! The playground: a page to try a cluster, and the two buttons on it.
//!
//! It belongs to `dev` alone. Whoever knows the token of this run may use it, from this machine: the token is in
//! the URL, `Host` must name this machine (so that no foreign name can be made to resolve to it), and the page
//! loads nothing from anywhere else.

use std::{collections::BTreeMap, convert::Infallible, net::Ipv4Addr};

use anyhow::{Context, bail};
use axum::{
    Router,
    extract::{Path, Request as HttpRequest, State as AxumState},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{get, post},
};
use futures::{Stream, stream};
use serde::Serialize;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};

use super::{
    Request,
    board::{Board, State, Status},
    channel,
    files::random_hex,
    printer::Source,
};

const PAGE: &str = include_str!("playground/index.html");
const STYLE: &str = include_str!("playground/style.css");
const SCRIPT: &str = include_str!("playground/app.js");
const ICON: &str = include_str!("playground/icon.svg");

/// Only this page's own files, and WebSockets to this machine.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self' ws://127.0.0.1:* ws://localhost:*; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the page shows that changes rarely.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Name of the cluster.
    pub(crate) name: String,
    /// A channel that everyone may use.
    pub(crate) channel: Option<String>,
    /// Whether nodes meet in a Redis.
    pub(crate) redis: bool,
    /// Commands that publish from outside.
    pub(crate) commands: Vec<String>,
    /// Client port of each node.
    pub(crate) ports: BTreeMap<u16, u16>,
}

/// The page's port, bound but not served yet: its origin goes into the nodes' settings first.
#[derive(Debug)]
pub(crate) struct Page {
    listener: TcpListener,
    port: u16,
}

#[derive(Clone)]
struct Shared {
    port: u16,
    board: Board,
    facts: watch::Receiver<Facts>,
    requests: mpsc::Sender<Request>,
}

/// What the page is told whenever it changes.
#[derive(Serialize)]
struct View<'a> {
    name: &'a str,
    channel: Option<&'a str>,
    broker: &'static str,
    commands: &'a [String],
    problem: Option<&'static str>,
    nodes: Vec<NodeView>,
}

#[derive(Serialize)]
struct NodeView {
    index: u16,
    port: u16,
    state: State,
    connections: u64,
    detail: Option<String>,
}

/// Listens on `port` of the loopback address.
pub(crate) async fn bind(port: u16) -> anyhow::Result<Page> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
        Ok(listener) => {
            let port = listener.local_addr().context("failed to listen for the playground")?.port();
            Ok(Page { listener, port })
        }
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            bail!(
                "port {port} (the playground) is in use: stop what listens there, or choose another with --playground-port"
            )
        }
        Err(error) => {
            Err(error).with_context(|| format!("failed to listen on port {port} for the playground"))
        }
    }
}

// === impl Page ===

impl Page {
    /// Origins that the page may have.
    pub(crate) fn origins(&self) -> Vec<String> {
        hosts(self.port).map(|host| format!("http://{host}")).to_vec()
    }

    /// Serves the page from now on; gives its URL.
    pub(crate) fn serve(
        self,
        board: Board,
        facts: watch::Receiver<Facts>,
        requests: mpsc::Sender<Request>,
    ) -> String {
        let Self { listener, port } = self;
        let token = random_hex();
        let router = router(&token, Shared { port, board, facts, requests });
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                eprintln!("error: the playground ended: {error}");
            }
        });
        format!("http://127.0.0.1:{port}/{token}/")
    }
}

fn router(token: &str, shared: Shared) -> Router {
    let port = shared.port;
    let under = |path: &str| format!("/{token}/{path}");
    Router::new()
        .route(&under(""), get(|| file("text/html; charset=utf-8", PAGE)))
        .route(&under("style.css"), get(|| file("text/css; charset=utf-8", STYLE)))
        .route(&under("app.js"), get(|| file("text/javascript; charset=utf-8", SCRIPT)))
        .route(&under("icon.svg"), get(|| file("image/svg+xml", ICON)))
        .route(&under("events"), get(events))
        .route(&under("nodes/{index}/stop"), post(stop))
        .route(&under("nodes/{index}/start"), post(start))
        .with_state(shared)
        .fallback(|| async {
            (
                StatusCode::NOT_FOUND,
                "Open the URL that `kubectl fanout dev` printed: it holds the token of this run.\n",
            )
        })
        .layer(middleware::from_fn_with_state(port, guard))
}

/// Lets only requests through that were sent to this machine by name, and tells browsers what the page may do.
async fn guard(AxumState(port): AxumState<u16>, request: HttpRequest, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    if !host.is_some_and(|host| hosts(port).iter().any(|ours| ours == host)) {
        return (StatusCode::FORBIDDEN, "This page answers to 127.0.0.1 and localhost only.\n")
            .into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn hosts(port: u16) -> [String; 2] {
    [format!("127.0.0.1:{port}"), format!("localhost:{port}")]
}

async fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    (headers, text)
}

async fn stop(shared: AxumState<Shared>, Path(index): Path<u16>) -> Response {
    ask(shared, Request::Stop(index), index).await
}

async fn start(shared: AxumState<Shared>, Path(index): Path<u16>) -> Response {
    ask(shared, Request::Start(index), index).await
}

async fn ask(AxumState(shared): AxumState<Shared>, request: Request, index: u16) -> Response {
    if !shared.facts.borrow().ports.contains_key(&index) {
        return (StatusCode::NOT_FOUND, format!("There is no node {index}.\n")).into_response();
    }
    match shared.requests.send(request).await {
        Ok(()) => StatusCode::ACCEPTED.into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "The command is ending.\n").into_response(),
    }
}

/// The state of the cluster, at once and whenever it changes.
async fn events(AxumState(shared): AxumState<Shared>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let Shared { board, facts, .. } = shared;
    let mut board = board.watch();
    board.mark_changed();
    let changes = stream::unfold((board, facts), |(mut board, mut facts)| async move {
        tokio::select! {
            changed = board.changed() => changed.ok()?,
            changed = facts.changed() => changed.ok()?,
        }
        let event = {
            let (board, facts) = (board.borrow_and_update(), facts.borrow_and_update());
            Event::default().json_data(View::of(&board, &facts)).expect("the view is JSON")
        };
        Some((Ok(event), (board, facts)))
    });
    Sse::new(changes).keep_alive(KeepAlive::default())
}

// === impl View ===

impl<'a> View<'a> {
    fn of(board: &BTreeMap<Source, Status>, facts: &'a Facts) -> Self {
        let Facts { name, channel, redis, commands, ports } = facts;
        let node = |(&index, &port): (&u16, &u16)| {
            let status =
                board.get(&Source::Node(index)).cloned().unwrap_or_else(|| Status::of(State::Starting));
            let Status { state, connections, detail } = status;
            NodeView { index, port, state, connections, detail }
        };
        Self {
            name,
            channel: channel.as_deref(),
            broker: if *redis { "redis" } else { "memory" },
            commands,
            problem: channel.is_none().then_some(channel::NONE),
            nodes: ports.iter().map(node).collect(),
        }
    }
}
