//! Probes, metrics and the operator's small tools (port 8002), plain HTTP, never public.
//!
//! | route | from | does |
//! |---|---|---|
//! | `GET /live` | anywhere | 200 while the process works; also the startup probe: listening and settings loaded |
//! | `GET /ready` | anywhere | 200, or 503 and what is missing; `?verbose` gives every part, and warnings of the settings, as JSON |
//! | `GET /metrics` | anywhere | OpenMetrics |
//! | `GET /drain/wait` | anywhere | returns once this node has drained, or at once where none begins within 2 s |
//! | `GET /stats` | loopback | counters and states as JSON |
//! | `GET`, `PUT /log-level` | loopback | what is logged, until the next change of the settings |
//! | `POST /drain` | loopback | begins a drain; `?timeout=` seconds |
//! | `GET /debug/dump` | loopback | what each shard and thread is doing, as JSON: answers while a shard is stuck |
//! | `GET /debug/pprof/profile` | loopback | CPU time of `?seconds=` (30), for `go tool pprof` |
//! | `GET /debug/pprof/heap`, `/allocs` | loopback | what the heap holds, and all it ever held, likewise |
//!
//! Loopback is not enough against a browser on the same machine: what carries `Origin` or `Sec-Fetch-Site` is
//! refused there.

mod debug;
mod readiness;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{ConnectInfo, Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sidecar_config::LogLevel;
use tokio::{runtime::Handle, sync::watch, time::timeout};

use crate::{
    bridge::BrokerHealth,
    drain::{DrainSignal, DrainWatch, Stage},
    metrics::{self, Format, Metrics},
    profile::Allocator,
    shard::Shards,
    telemetry::LogControl,
};

pub use readiness::{BrokerRule, Part, Readiness};

/// The kubelet runs the preStop hooks of all containers at the same moment: this is what one may be late.
const DRAIN_TO_BEGIN: Duration = Duration::from_secs(2);

/// What the admin port shows and does. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    /// Which parts are ready.
    pub readiness: Readiness,
    /// What of the settings in force is hardly meant.
    pub warnings: watch::Receiver<Arc<[String]>>,
    /// All counters.
    pub metrics: Metrics,
    /// The shards, for `/stats`.
    pub shards: Arc<Shards>,
    /// Whether the broker works, for `/stats`.
    pub health: watch::Receiver<BrokerHealth>,
    /// Begins a drain.
    pub signal: DrainSignal,
    /// Sees it.
    pub drain: DrainWatch,
    /// How long a drain may take, by the settings in force.
    pub drain_timeout: Arc<dyn Fn() -> Duration + Send + Sync>,
    /// What is logged.
    pub log: LogControl,
    /// The runtimes, by name, for the dump.
    pub runtimes: Arc<[(&'static str, Handle)]>,
    /// The allocator, if it tells of itself.
    pub allocator: Option<Arc<dyn Allocator>>,
    /// Name, cluster, version and whatever does not change.
    pub about: Arc<Value>,
}

/// The admin port's routes.
pub fn router(admin: Admin) -> Router {
    let local = Router::new()
        .route("/stats", get(stats))
        .route("/log-level", get(log_level).put(set_log_level))
        .route("/drain", post(drain))
        .merge(debug::routes())
        .route_layer(from_fn(loopback_only));
    Router::new()
        .route("/live", get(async || "live\n"))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics_page))
        .route("/drain/wait", get(drain_wait))
        .merge(local)
        .with_state(admin)
}

async fn loopback_only(peer: ConnectInfo<SocketAddr>, request: Request, next: Next) -> Response {
    let browser =
        |headers: &HeaderMap| headers.contains_key(header::ORIGIN) || headers.contains_key("sec-fetch-site");
    if !peer.0.ip().to_canonical().is_loopback() {
        return (
            StatusCode::FORBIDDEN,
            "allowed only from loopback, for example with `kubectl exec` or `kubectl port-forward`\n",
        )
            .into_response();
    }
    if browser(request.headers()) {
        return (StatusCode::FORBIDDEN, "requests from web pages are not allowed\n").into_response();
    }
    next.run(request).await
}

// === anywhere ===

#[derive(Deserialize)]
struct Verbose {
    verbose: Option<String>,
}

async fn ready(State(admin): State<Admin>, Query(Verbose { verbose }): Query<Verbose>) -> Response {
    let missing = admin.readiness.missing();
    let status = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if verbose.is_some() {
        let mut report = admin.readiness.report();
        report["warnings"] = json!(&**admin.warnings.borrow());
        return (status, Json(report)).into_response();
    }
    let lines: String =
        missing.iter().map(|(part, reason)| format!("not ready: {part}: {reason}\n")).collect();
    (status, if lines.is_empty() { "ready\n".to_owned() } else { lines }).into_response()
}

async fn metrics_page(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = Format::of(accept.unwrap_or_default());
    ([(header::CONTENT_TYPE, format.content_type())], admin.metrics.encode_as(format)).into_response()
}

#[derive(Serialize)]
struct DrainState {
    draining: bool,
    drained: bool,
    connections: u32,
}

async fn drain_wait(State(admin): State<Admin>) -> Json<DrainState> {
    if timeout(DRAIN_TO_BEGIN, admin.drain.begun()).await.is_ok() {
        admin.drain.drained().await;
    }
    Json(admin.drain_state())
}

// === from loopback ===

async fn stats(State(admin): State<Admin>) -> Json<Value> {
    Json(admin.stats())
}

#[derive(Serialize, Deserialize)]
struct Level {
    level: LogLevel,
}

async fn log_level(State(admin): State<Admin>) -> Response {
    match admin.log.level() {
        Some(level) => Json(Level { level }).into_response(),
        None => (StatusCode::NOT_FOUND, "this process does not control its log level\n").into_response(),
    }
}

async fn set_log_level(State(admin): State<Admin>, body: String) -> Response {
    // `{"level": "debug"}` or just `debug`.
    let bare = || serde_json::from_value::<LogLevel>(Value::String(body.trim().to_owned())).ok();
    let level = serde_json::from_str::<Level>(&body).ok().map(|Level { level }| level).or_else(bare);
    let Some(level) = level else {
        return (StatusCode::BAD_REQUEST, "use one of error, warn, info, debug, trace\n").into_response();
    };
    admin.log.set(level);
    Json(Level { level }).into_response()
}

#[derive(Deserialize)]
struct Timeout {
    timeout: Option<u32>,
}

async fn drain(State(admin): State<Admin>, Query(Timeout { timeout }): Query<Timeout>) -> Response {
    let given = timeout.map(|seconds| Duration::from_secs(seconds.into()));
    let began = admin.signal.begin(given.unwrap_or_else(|| (admin.drain_timeout)()));
    if began {
        tracing::info!("drain requested on the admin port");
    }
    (StatusCode::ACCEPTED, Json(admin.drain_state())).into_response()
}

// === impl Admin ===

impl Admin {
    fn drain_state(&self) -> DrainState {
        let stage = self.drain.stage();
        let (draining, drained) = (stage != Stage::Serving, stage == Stage::Drained);
        DrainState { draining, drained, connections: self.shards.connections() }
    }

    fn stats(&self) -> Value {
        let totals = self.shards.totals();
        let by_protocol = |(protocol, count): &(crate::protocol::Protocol, u64)| (protocol.name(), *count);
        let health = self.health.borrow().clone();
        json!({
            "node": *self.about,
            "connections": {
                "open": totals.open(),
                "capacity": self.shards.door().capacity(),
                "byProtocol": totals.connections.iter().map(by_protocol).collect::<std::collections::BTreeMap<_, _>>(),
            },
            "subscriptions": totals.subscriptions,
            "messages": {
                "received": totals.messages_in,
                "receivedBytes": totals.bytes_in,
                "sent": totals.messages_out,
                "sentBytes": totals.bytes_out,
                "writes": totals.writes,
                "waitingBytes": totals.log_bytes,
            },
            "broker": {
                "connected": health.connected,
                "verified": health.verified,
                "unheard": health.unheard,
                "verifiedSecondsAgo": health.verified_at.map(|at| at.elapsed().as_secs_f64()),
                "roundTripSeconds": health.round_trip.map(|trip| trip.as_secs_f64()),
                "reason": health.reason,
            },
            "drain": self.drain_state(),
            "ready": self.readiness.report(),
            "memoryBytes": metrics::resident_bytes(),
        })
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use tower::ServiceExt;

    use super::*;

    async fn status(peer: &str, header: Option<&'static str>) -> StatusCode {
        let router: Router = Router::new().route("/", get(async || "in")).route_layer(from_fn(loopback_only));
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(ConnectInfo(peer.parse::<SocketAddr>().unwrap()));
        if let Some(name) = header {
            request.headers_mut().insert(name, header::HeaderValue::from_static("http://localhost"));
        }
        router.oneshot(request).await.unwrap().status()
    }

    #[tokio::test]
    async fn only_loopback_comes_in_and_no_web_page() {
        for peer in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(status(peer, None).await, StatusCode::OK, "{peer}");
            assert_eq!(status(peer, Some("origin")).await, StatusCode::FORBIDDEN, "{peer}");
            assert_eq!(status(peer, Some("sec-fetch-site")).await, StatusCode::FORBIDDEN, "{peer}");
        }
        for peer in ["10.0.0.1:1", "192.0.2.1:1", "[2001:db8::1]:1", "[::ffff:10.0.0.1]:1"] {
            assert_eq!(status(peer, None).await, StatusCode::FORBIDDEN, "{peer}");
        }
    }
}
