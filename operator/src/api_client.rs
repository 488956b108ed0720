//! The client of the API server, whose requests all end in bounded time.
//!
//! An API server behind a broken load balancer, or a connection whose peer is gone, answers nothing and closes nothing.
//! Without a deadline a reconcile would wait for ever, and with it its cluster. A watch has none, for it may have nothing
//! to say; there the kernel asks whether the peer is alive.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use anyhow::ensure;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioExecutor};
use kube::{
    Client, Config,
    client::{Body, ConfigExt, retry::RetryPolicy},
};
use tokio::time::{Instant, timeout_at};
use tower::{BoxError, Layer, Service, ServiceBuilder, retry::RetryLayer};

/// Time for a whole answer, and for the head of a watch. A list of thousands of pods fits in.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// When the kernel asks the peer of a quiet connection whether it is alive, and how often before the connection counts as
/// broken. A control plane's machine that is lost takes watches with it without a word: that is noticed in 45 s, as by
/// Kubernetes' own clients, and not when the API server would have ended the watch, after 290 s.
const ASKED_AFTER: Duration = Duration::from_secs(30);
const ASKED_EVERY: Duration = Duration::from_secs(5);
const ASKED_TIMES: u32 = 3;

/// Body of an answer.
type Answer = UnsyncBoxBody<bytes::Bytes, BoxError>;

/// Adds [`DEADLINE`] to a client's requests.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeadlineLayer;

/// A client whose requests have a deadline.
#[derive(Clone, Debug)]
pub struct Deadline<S> {
    inner: S,
}

/// Why a request failed that got no answer.
#[derive(Debug, thiserror::Error)]
#[error("the API server did not answer within {} s", DEADLINE.as_secs())]
pub struct TooLate;

/// A client by the environment's configuration.
///
/// # Errors
/// None is configured, or it cannot be used.
pub async fn connect() -> anyhow::Result<Client> {
    client(&Config::infer().await?)
}

/// As kube builds one, but for the connector, which cannot be had with keepalive otherwise.
fn client(config: &Config) -> anyhow::Result<Client> {
    ensure!(
        config.proxy_url.is_none(),
        "the kubeconfig names a proxy, and proxies are not supported: remove proxy-url"
    );
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_keepalive(Some(ASKED_AFTER));
    connector.set_keepalive_interval(Some(ASKED_EVERY));
    connector.set_keepalive_retries(Some(ASKED_TIMES));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer)
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(RetryPolicy::server_retry()))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector));
    Ok(Client::new(service, config.default_namespace.clone()))
}

fn is_watch<B>(request: &Request<B>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    query.split('&').any(|pair| pair == "watch=true" || pair == "watch=1")
}

// === impl DeadlineLayer ===

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Deadline { inner }
    }
}

// === impl Deadline ===

impl<S, B> Service<Request<Body>> for Deadline<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Answer>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let deadline = Instant::now() + DEADLINE;
        let streams = is_watch(&request);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = timeout_at(deadline, answer).await.map_err(|_| TooLate)?.map_err(Into::into)?;
            let (head, body) = answer.into_parts();
            if streams {
                return Ok(Response::from_parts(head, body.map_err(Into::into).boxed_unsync()));
            }
            let whole = timeout_at(deadline, body.collect()).await.map_err(|_| TooLate)?;
            let whole = whole.map_err(Into::into)?.to_bytes();
            Ok(Response::from_parts(head, Full::new(whole).map_err(|never| match never {}).boxed_unsync()))
        })
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use kube::{Api, api::ListParams};

    use super::*;

    #[tokio::test]
    async fn the_kernel_asks_whether_a_silent_api_server_is_alive() {
        // The kernel accepts, and nobody ever answers.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = silent.local_addr().expect("an address");
        let config = Config::new(format!("http://{address}").parse().expect("a URL"));
        let pods: Api<Pod> = Api::default_namespaced(client(&config).expect("a client"));
        let asking = tokio::spawn(async move { pods.list(&ListParams::default()).await.map(drop) });
        let peer = format!(":{:04X}", address.port());
        let keepalive = || {
            let connections = std::fs::read_to_string("/proc/net/tcp").expect("Linux has it");
            let ours = connections.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            // Remote address, and the kind of timer and when it is due: 02 is keepalive, once all that was sent is
            // acknowledged, and it is due in hundredths of a second.
            let mut timers = ours
                .filter(|fields| fields[2].ends_with(&peer))
                .filter_map(|fields| u128::from_str_radix(fields[5].strip_prefix("02:")?, 16).ok());
            timers.any(|due| due <= ASKED_AFTER.as_millis() / 10)
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !keepalive() {
            assert!(Instant::now() < deadline, "no keepalive timer of 30 s runs");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        asking.abort();
    }
}
