//! The backends' door (port 8001), shaped like Centrifugo's server API so that its clients work.
//!
//! | route | does |
//! |---|---|
//! | `POST /api/publish` | sends a message to a channel |
//! | `POST /api/broadcast` | sends one message to many channels |
//! | `POST /api/channels` | lists channels with subscribers, of all nodes |
//! | `POST /api/info` | lists nodes |
//! | `POST /api/disconnect` | closes connections, of a user or one |
//! | `GET /openapi.json` | describes all of it |
//!
//! A key is needed always, also from loopback: port-forwards and web pages arrive from there too. A mistake of the
//! caller is answered with HTTP 200 and an `error`, as Centrifugo does, or with a status of its own where the
//! caller asks for it by `X-Centrifugo-Error-Mode: transport`. It calls `work` to publish and `bridge` for what
//! concerns other nodes; it knows neither sockets nor shards' threads.

mod error;
mod method;
mod metrics;
mod openapi;
mod request;

use std::{
    future::{Ready, ready},
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};

use crate::{auth::Auth, bridge::Peers, shard::Door, work::Publisher};

pub use metrics::Metrics;

use self::{
    error::ApiError,
    method::{Broadcast, Channels, Disconnect, Info, Method, Publish},
};

/// What the API needs. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    /// Whose key it is.
    pub auth: Arc<Auth>,
    /// To publish.
    pub publisher: Publisher,
    /// All nodes.
    pub peers: Peers,
    /// For the settings in force.
    pub door: Door,
    /// Counters.
    pub metrics: Metrics,
}

/// The API's routes.
pub fn router(api: Api) -> Router {
    Router::new()
        .route(Publish::PATH, endpoint::<Publish>())
        .route(Broadcast::PATH, endpoint::<Broadcast>())
        .route(Channels::PATH, endpoint::<Channels>())
        .route(Info::PATH, endpoint::<Info>())
        .route(Disconnect::PATH, endpoint::<Disconnect>())
        .route("/openapi.json", get(async || Json(openapi::document())).fallback(wrong_verb("GET")))
        .fallback(unknown)
        .with_state(api)
}

/// The API's description, as it is served.
pub fn description() -> serde_json::Value {
    openapi::document()
}

fn endpoint<M: Method>() -> MethodRouter<Api> {
    post(call::<M>).fallback(wrong_verb("POST"))
}

/// Key → body → method → reply, timed.
async fn call<M: Method>(State(api): State<Api>, request: Request) -> Response {
    let mode = error::Mode::of(request.headers());
    let timer = api.metrics.started(M::NAME);
    let answer = answer::<M>(&api, request).await;
    timer.finished(answer.as_ref().err());
    match answer {
        Ok(reply) => Json(error::Reply::Result(reply)).into_response(),
        Err(error) => error.into_response(mode),
    }
}

async fn answer<M: Method>(api: &Api, request: Request) -> Result<M::Reply, ApiError> {
    request::authorize(&api.auth, request.headers())?;
    let max = request::max_bytes(api.door.rules().hub.max_message_bytes);
    M::call(api, request::read(request, max).await?).await
}

/// The answer to another verb than the one that is allowed.
fn wrong_verb(allowed: &'static str) -> impl Fn() -> Ready<Response> + Clone + Send + Sync + 'static {
    move || ready(ApiError::WrongVerb(allowed).into_response(error::Mode::Body))
}

async fn unknown() -> Response {
    ApiError::UnknownMethod.into_response(error::Mode::Body)
}
