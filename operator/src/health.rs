//! The operator's HTTP port: `/live`, `/ready` and `/metrics`. Started by `main`; it reads and changes nothing.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Router, extract::State, http::StatusCode, http::header::CONTENT_TYPE, response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Where to listen.
#[derive(Clone, Debug, clap::Args)]
pub struct HealthArgs {
    /// Address of /live, /ready and /metrics.
    #[arg(long, env = "FANOUT_HTTP", default_value = "0.0.0.0:8080")]
    pub http: SocketAddr,
}

/// Whether the operator does its work: it leads and its watches are in step, or it stands by. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicBool>);

#[derive(Clone, Debug)]
struct Parts {
    metrics: Metrics,
    readiness: Readiness,
}

// === impl Readiness ===

impl Readiness {
    /// The operator stands by or does its work.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Its watches are not in step yet.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Release);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Serves until `stop`.
///
/// # Errors
/// The port is taken, or the address is not ours.
pub async fn serve(
    HealthArgs { http }: HealthArgs,
    metrics: Metrics,
    readiness: Readiness,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let listener = TcpListener::bind(http).await?;
    tracing::info!(address = %listener.local_addr()?, "serving /live, /ready and /metrics");
    axum::serve(listener, router(metrics, readiness)).with_graceful_shutdown(stop.cancelled_owned()).await
}

fn router(metrics: Metrics, readiness: Readiness) -> Router {
    Router::new()
        // Answering is being alive: a stuck runtime does not answer.
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(page))
        .with_state(Parts { metrics, readiness })
}

async fn ready(State(parts): State<Parts>) -> impl IntoResponse {
    if parts.readiness.get() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the watches are not in step yet\n")
    }
}

async fn page(State(parts): State<Parts>) -> impl IntoResponse {
    let text = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, text)], parts.metrics.encode())
}
