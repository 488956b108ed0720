//! An event stream: a response whose body is the far end of a pipe from a shard.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts};
use hyper::body::Frame;

use super::{
    ClientPort,
    error::RequestError,
    gate::Place,
    linger,
    request::{self, Asked},
    streams::{Stream, Streams},
};
use crate::{
    protocol::Protocol,
    shard::{FarEnd, Visitor},
};

/// What the pipe brings.
#[derive(Debug)]
struct Events {
    far: FarEnd,
    /// Over HTTP/2, so that its connection is waited for.
    _stream: Option<Stream>,
}

pub(super) async fn open(State(port): State<ClientPort>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let mut response = match subscribe(&port, &parts).await {
        Ok(response) => response,
        Err(error) if error.is_temporary() && wants_events(&parts.headers) => error.into_events(),
        Err(error) => error.into_response(),
    };
    allow_origin(&port, &parts.headers, response.headers_mut());
    response
}

/// Whether it is an `EventSource`, or what reads as one: it takes nothing else.
fn wants_events(headers: &HeaderMap) -> bool {
    let mut types = request::list(headers, header::ACCEPT);
    types.any(|kind| {
        kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/event-stream"))
    })
}

async fn subscribe(port: &ClientPort, parts: &Parts) -> Result<Response, RequestError> {
    let Asked { identity, channels, remote, history } = request::read(port, parts, "/sse")?;
    if channels.len() != 1 {
        return Err(RequestError::NotOneChannel { channels: channels.len() });
    }
    if history.is_some() {
        return Err(request::no_history());
    }
    let visitor = Visitor { protocol: Protocol::Sse, deflate: false, identity, channels, remote };
    let reserved = port.door().enter(visitor)?.reserve().await?;
    let (link, far) = port.door().pipe(reserved);
    linger::with_shard(&far);
    port.door().attach(reserved, link, Bytes::new());
    // From now on it counts as a connection.
    if let Some(place) = parts.extensions.get::<Place>() {
        place.release();
    }
    Ok(answer(Events { far, _stream: parts.extensions.get().map(Streams::open) }))
}

fn answer(events: Events) -> Response {
    let mut response = Response::new(Body::new(events));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    // nginx holds a response back until its buffer is full, unless told otherwise.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

/// The answer to a browser that asks whether a page may.
pub(super) async fn preflight(State(port): State<ClientPort>, headers: HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let answer = response.headers_mut();
    if allow_origin(&port, &headers, answer) {
        answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET"));
        let allowed = HeaderValue::from_static("authorization, cache-control, last-event-id");
        answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
        answer.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
    response
}

/// Lets an allowed page read the answer, be it an error. Nothing here goes by cookies, but an `EventSource` with
/// `withCredentials` (for a proxy in front that does) reads nothing without the second header: it is for origins that the
/// settings name, and never for whoever comes in by `*`.
fn allow_origin(port: &ClientPort, asked: &HeaderMap, answer: &mut HeaderMap) -> bool {
    answer.append(header::VARY, HeaderValue::from_static("origin"));
    let Some((value, origin)) =
        asked.get(header::ORIGIN).and_then(|value| Some((value, value.to_str().ok()?)))
    else {
        return false;
    };
    let allowed = port.auth().origin(Some(origin));
    if allowed {
        answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, value.clone());
    }
    if port.auth().names_origin(origin) {
        answer.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    allowed
}

impl hyper::body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.far.poll_bytes(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
