//! The client of the API server, whose requests all end in bounded time.
//!
//! An API server behind a broken load balancer, or a connection whose peer is gone, answers nothing and closes nothing.
//! Without a deadline a reconcile would wait for ever, and with it its cluster.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder},
};
use tokio::time::{Instant, timeout_at};
use tower::{BoxError, Layer, Service};

/// Time for a whole answer, and for the head of a watch. A list of thousands of pods fits in.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Time in which a watch must say something. The API server ends each after 290 s.
const WATCH_SILENCE: Duration = Duration::from_secs(295);

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
    let mut config = Config::infer().await?;
    config.read_timeout = Some(WATCH_SILENCE);
    Ok(ClientBuilder::try_from(config)?.with_layer(&DeadlineLayer).build())
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
