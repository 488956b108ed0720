//! The operator's HTTP port: `/live`, `/ready` and `/metrics`. Started by `main`; it reads and changes nothing.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
    /// Address to serve /live, /ready and /metrics on.
    #[arg(long, env = "FANOUT_HTTP", default_value = "[::]:8080")]
    pub http: SocketAddr,
}

/// Whether the operator does its work: nothing stands in its way, or it stands by. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<Obstacle, String>>>);

/// What keeps the operator from its work. Each is set and cleared by the part that knows of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// The FanoutClusters of a scope (a namespace, or all of them) cannot be listed.
    Clusters(String),
    /// The watches of a scope are not in step yet.
    Watches(String),
    /// Another operator holds a namespace.
    Namespace(String),
    /// The Lease of a namespace cannot be read or written.
    NamespaceLease(String),
}

#[derive(Clone, Debug)]
struct Parts {
    metrics: Metrics,
    readiness: Readiness,
}

// === impl Readiness ===

impl Readiness {
    /// Something stands in the way, in words that say how it is removed. Tells whether that is new.
    pub fn block(&self, obstacle: Obstacle, words: impl Into<String>) -> bool {
        let words = words.into();
        self.lock().insert(obstacle, words.clone()).is_none_or(|before| before != words)
    }

    /// It stands in the way no longer. Tells whether it did.
    pub fn clear(&self, obstacle: &Obstacle) -> bool {
        self.lock().remove(obstacle).is_some()
    }

    /// Whether this stands in the way.
    pub fn is_blocked_by(&self, obstacle: &Obstacle) -> bool {
        self.lock().contains_key(obstacle)
    }

    /// Everything that stands in the way; empty for an operator that is ready.
    pub fn obstacles(&self) -> Vec<String> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Obstacle, String>> {
        // Entries are replaced whole, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
    let listener = match TcpListener::bind(http).await {
        // A machine without IPv6 has no such address.
        Err(_) if http.ip() == Ipv6Addr::UNSPECIFIED => {
            TcpListener::bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), http.port())).await?
        }
        bound => bound?,
    };
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

async fn ready(State(parts): State<Parts>) -> (StatusCode, String) {
    let obstacles = parts.readiness.obstacles();
    if obstacles.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, obstacles.join("\n") + "\n")
}

async fn page(State(parts): State<Parts>) -> impl IntoResponse {
    let text = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, text)], parts.metrics.encode())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_operator_is_ready_once_nothing_stands_in_its_way_and_says_what_does() {
        let readiness = Readiness::default();
        let asked = async || {
            let parts = Parts { metrics: Metrics::new(), readiness: readiness.clone() };
            ready(State(parts)).await
        };
        assert_eq!(asked().await, (StatusCode::OK, "ready\n".to_owned()), "standing by is being ready");

        let [one, two] = ["one", "two"].map(|scope| Obstacle::Watches(scope.to_owned()));
        assert!(readiness.block(one.clone(), "one is not in step yet"));
        assert!(!readiness.block(one.clone(), "one is not in step yet"), "nothing new");
        readiness.block(two.clone(), "two is not in step yet");
        readiness.clear(&one);
        let expected = (StatusCode::SERVICE_UNAVAILABLE, "two is not in step yet\n".to_owned());
        assert_eq!(asked().await, expected, "one scope does not answer for another");

        readiness.clear(&two);
        assert_eq!(asked().await.0, StatusCode::OK);
    }
}
