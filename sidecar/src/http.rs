//! The client port: HTTP requests come in, connections of shards come out.
//!
//! Plain, or over TLS once it has a certificate; there HTTP/2 too, whose WebSockets (RFC 8441) and streams reach a
//! shard by a pipe.
//!
//! `GET /ws/{channel}` and `GET /ws?channel=…` become WebSockets, `GET /sse/{channel}` and `/sse?channel=…` event
//! streams; `GET /health` is for load balancers. A request is checked here (origin, token, form); what it may do in its channels is the shard's session.
//! Of the data plane this knows [`Door`] only.

mod carry;
mod claim;
mod error;
mod gate;
mod head;
mod linger;
mod listener;
mod metrics;
mod proxy_protocol;
mod remote;
mod request;
mod sse;
mod streams;
mod upgrade;
mod wire;

use std::{
    fmt,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
};

use arc_swap::ArcSwapOption;
use axum::{
    Router,
    extract::State,
    middleware::{map_response, map_response_with_state},
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderValue, StatusCode, header};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::{
    auth::{Auth, TlsIdentity},
    shard::Door,
};

pub(crate) use gate::{Gate, Place};
pub use head::checked;
pub use metrics::Metrics;
pub(crate) use wire::{Asked, Wire};

/// The client port. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ClientPort(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    door: Door,
    auth: Arc<Auth>,
    tls: ArcSwapOption<TlsIdentity>,
    /// Handshakes that are being answered, and the tasks of virtual WebSockets.
    carriers: TaskTracker,
    gate: Gate,
    metrics: Metrics,
    accepting: watch::Sender<bool>,
    /// Whether the node may get clients; who made the port knows it.
    health: OnceLock<Health>,
}

/// Asks whether the node may get clients.
struct Health(Box<dyn Fn() -> bool + Send + Sync>);

/// Who is at the other end of a TCP connection: the client, or a proxy that we may or may not trust.
#[derive(Clone, Copy, Debug)]
struct Peer(SocketAddr);

impl ClientPort {
    /// A port that leads to this door.
    pub fn new(door: Door, auth: Arc<Auth>, metrics: Metrics) -> Self {
        let accepting = watch::Sender::new(false);
        let (tls, carriers) = (ArcSwapOption::empty(), TaskTracker::new());
        let (gate, health) = (Gate::new(metrics.on_their_way.clone()), OnceLock::new());
        Self(Arc::new(Shared { door, auth, tls, carriers, gate, metrics, accepting, health }))
    }

    /// Answers `/health` by this; without it the node is well while it accepts clients.
    pub fn set_health(&self, is_well: impl Fn() -> bool + Send + Sync + 'static) {
        drop(self.0.health.set(Health(Box::new(is_well))));
    }

    /// Speaks TLS with whoever connects from now on, by this identity; without one, plain HTTP.
    pub fn set_tls(&self, identity: Option<TlsIdentity>) {
        self.0.tls.store(identity.map(Arc::new));
    }

    /// Returns once what the shards have written last has left, or cannot. Called when the shards have let go.
    pub async fn carried(&self) {
        self.0.carriers.close();
        self.0.carriers.wait().await;
    }

    /// Whether clients are accepted now: not before [`Self::serve`], not behind its stop, and not while the process
    /// has no descriptor left.
    pub fn is_accepting(&self) -> bool {
        *self.0.accepting.borrow()
    }

    /// The same, to be told when it changes.
    pub fn accepting(&self) -> watch::Receiver<bool> {
        self.0.accepting.subscribe()
    }

    /// Accepts clients until `stop`, then closes the listener and lets requests that are under way end; an event
    /// stream ends when its shard closes it.
    ///
    /// # Errors
    /// When the listener cannot be used.
    pub async fn serve(
        self,
        listener: std::net::TcpListener,
        stop: impl Future<Output = ()>,
    ) -> io::Result<()> {
        listener::serve(&self, listener, stop).await
    }

    /// Answers the requests of `peer` that come by another way than [`Self::serve`]: how fuzzing asks.
    #[doc(hidden)]
    pub fn answers(&self, peer: SocketAddr) -> Router {
        self.router().layer(axum::Extension(Peer(peer)))
    }

    fn router(&self) -> Router {
        // A GET would answer a HEAD too, and open what nobody reads.
        let socket = get(upgrade::accept).head(error::wrong_method).connect(upgrade::accept);
        let stream = get(sse::open).head(error::wrong_method).options(sse::preflight);
        let routes = Router::new()
            .route("/ws", socket.clone())
            .route("/ws/", socket.clone())
            .route("/ws/{*channel}", socket)
            .route("/sse", stream.clone())
            .route("/sse/", stream.clone())
            .route("/sse/{*channel}", stream)
            .route("/health", get(health))
            .fallback(error::unknown_path)
            .method_not_allowed_fallback(error::wrong_method);
        checked(routes)
            .layer(map_response_with_state(self.clone(), count_refusal))
            .layer(map_response(last))
            .with_state(self.clone())
    }

    fn tls(&self) -> Option<Arc<TlsIdentity>> {
        self.0.tls.load_full()
    }

    fn carriers(&self) -> &TaskTracker {
        &self.0.carriers
    }

    fn door(&self) -> &Door {
        &self.0.door
    }

    fn auth(&self) -> &Auth {
        &self.0.auth
    }

    /// A place among those on their way for a connection that has one no more.
    fn enter(&self) -> Option<Place> {
        self.0.gate.enter(self.most_on_their_way(), None)
    }

    /// A place among those on their way, once there is one.
    async fn place(&self, address: Option<IpAddr>) -> Place {
        self.0
            .gate
            .wait(
                || self.most_on_their_way(),
                address,
                || {
                    self.metrics().waits.inc();
                },
            )
            .await
    }

    /// Fewer than the system has descriptors left: then nobody could be answered.
    fn most_on_their_way(&self) -> u32 {
        self.door().rules().hub.limits.handshakes_in_flight.min(self.door().room().max(1))
    }

    fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    fn set_accepting(&self, accepting: bool) {
        self.0.metrics.accepting.set(accepting.into());
        self.0.accepting.send_if_modified(|before| std::mem::replace(before, accepting) != accepting);
    }
}

/// For load balancers that ask on the port that they send to. It says no more than they need: the port is public.
async fn health(State(port): State<ClientPort>) -> Response {
    let is_well = port.0.health.get().map_or_else(|| port.is_accepting(), |Health(is_well)| is_well());
    let (status, text) = if is_well {
        (StatusCode::OK, r#"{"status":"ready"}"#)
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, r#"{"error":{"code":111,"message":"this node is not ready"}}"#)
    };
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (status, headers, text).into_response()
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Health")
    }
}

async fn count_refusal(State(port): State<ClientPort>, response: Response) -> Response {
    if let Some(error::Reason(reason)) = response.extensions().get() {
        port.metrics().refused(reason);
    }
    response
}

/// An HTTP/1.1 connection carries one request: kept, it would be nobody's, and hold a place among those on their way as
/// long as it asks for something now and then. From the answers of HTTP/2 hyper takes the header away.
async fn last(mut response: Response) -> Response {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().append(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[cfg(test)]
mod tests;
