//! A WebSocket handshake, of HTTP/1.1 (RFC 6455 §4.2) or HTTP/2 (RFC 8441 §5), and the hand-over of its transport to
//! a shard: the socket itself, by a [`Claim`], or a pipe where TLS or HTTP/2 stand between.
//!
//! The place is taken before the handshake is answered: what is published after the client saw the answer
//! cannot be missed.

use std::future::pending;

use axum::{
    body::Body,
    extract::{Request, State},
    response::Response,
};
use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use hyper::{ext::Protocol as ExtendedConnect, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;

use super::{
    ClientPort,
    carry::carry,
    claim::{Claim, Claimed},
    error::RequestError,
    gate::Place,
    linger,
    request::{self, Asked},
    streams::Streams,
};
use crate::{
    protocol::{Protocol, raw, websocket},
    shard::{Door, Reserved, Visitor},
};

pub(super) async fn accept(
    State(port): State<ClientPort>,
    mut request: Request,
) -> Result<Response, RequestError> {
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let (parts, _) = request.into_parts();
    let headers = &parts.headers;
    let key = check_handshake(&parts)?;
    let (protocol, selected) = select(headers)?;
    let asked = request::read(&port, &parts, "/ws")?;
    check_mode(protocol, &asked)?;
    let Asked { identity, channels, remote, history: _ } = asked;
    let upgrade = upgrade.ok_or(RequestError::NoHandshake)?;
    let door = port.door().clone();
    let extension = extension(&door, headers);
    let deflate = extension.is_some();
    let ticket = door.enter(Visitor { protocol, deflate, identity, channels, remote })?;
    let switching = switching(key.as_deref(), selected, extension);
    if let Some(claim) = parts.extensions.get::<Claim>() {
        let place = parts.extensions.get::<Place>().cloned();
        claim.make(Claimed::new(&port, ticket, &switching, place));
        // Whoever serves this connection takes it from here.
        return pending().await;
    }
    let reserved = ticket.reserve().await?;
    // From now on it counts as a connection.
    if let Some(place) = parts.extensions.get::<Place>() {
        place.release();
    }
    let stream = parts.extensions.get().map(Streams::open);
    // What hyper sends with over HTTP/2 would wait for the client's window without its carrier.
    let (carried, over) = oneshot::channel::<()>();
    linger::set(over.map(drop));
    port.carriers().spawn(async move {
        hand_over(door, reserved, upgrade).await;
        drop((stream, carried));
    });
    Ok(switching)
}

/// The answer to the key of a right handshake; HTTP/2 needs none.
fn check_handshake(parts: &http::request::Parts) -> Result<Option<String>, RequestError> {
    let headers = &parts.headers;
    let over_http2 = parts.method == Method::CONNECT;
    let asks = if over_http2 {
        parts.extensions.get::<ExtendedConnect>().is_some_and(|protocol| protocol.as_str() == "websocket")
    } else {
        let has =
            |name, entry: &str| request::list(headers, name).any(|found| found.eq_ignore_ascii_case(entry));
        has(header::CONNECTION, "upgrade") && has(header::UPGRADE, "websocket")
    };
    if !asks {
        return Err(RequestError::NoHandshake);
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(RequestError::Version);
    }
    if over_http2 {
        return Ok(None);
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok()).unwrap_or_default();
    Ok(Some(websocket::accept_key(key)?))
}

/// The mode, and the entry of the client's list that says so: a browser fails the connection where it offered a
/// list and nothing of it was selected.
fn select(headers: &HeaderMap) -> Result<(Protocol, Option<&'static str>), RequestError> {
    let mut offered = false;
    let mut bare = false;
    for entry in request::subprotocols(headers) {
        offered = true;
        match entry {
            raw::FRAMED => return Ok((Protocol::RawFramed, Some(raw::FRAMED))),
            raw::BARE => bare = true,
            _ => {}
        }
    }
    match (offered, bare) {
        (false, _) => Ok((Protocol::RawBare, None)),
        (true, true) => Ok((Protocol::RawBare, Some(raw::BARE))),
        (true, false) => Err(RequestError::Subprotocol),
    }
}

/// The one extension that is spoken, if the client offers it and the settings want it.
fn extension(door: &Door, headers: &HeaderMap) -> Option<&'static str> {
    if !door.rules().hub.compression.enabled {
        return None;
    }
    websocket::deflate::negotiate(request::list(headers, header::SEC_WEBSOCKET_EXTENSIONS))
}

fn check_mode(protocol: Protocol, asked: &Asked) -> Result<(), RequestError> {
    match (protocol, asked.history) {
        (Protocol::RawFramed, None) => Ok(()),
        (Protocol::RawFramed, Some(_)) => Err(request::no_history()),
        (_, Some(parameter)) => Err(RequestError::NeedsFramed(parameter)),
        (_, None) => match asked.channels.len() {
            1 => Ok(()),
            channels => Err(RequestError::NotFramed { channels }),
        },
    }
}

fn switching(key: Option<&str>, selected: Option<&'static str>, extension: Option<&'static str>) -> Response {
    let mut response = Response::new(Body::empty());
    if let Some(key) = key {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        let key = HeaderValue::from_str(key).expect("base64 is a header value");
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, key);
    }
    let headers = response.headers_mut();
    if let Some(selected) = selected {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(selected));
    }
    if let Some(extension) = extension {
        headers.insert(header::SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(extension));
    }
    response
}

/// Waits for hyper to have written the answer, then carries what a shard cannot poll.
async fn hand_over(door: Door, reserved: Reserved, upgrade: OnUpgrade) {
    let stream = match upgrade.await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "client disconnected during the handshake");
            return door.abandon(reserved);
        }
    };
    let (link, far) = door.pipe(reserved);
    door.attach(reserved, link, Bytes::new());
    if let Err(error) = carry(TokioIo::new(stream), far).await {
        tracing::debug!(%error, "client stream failed");
    }
}
