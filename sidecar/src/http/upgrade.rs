//! A WebSocket handshake (RFC 6455 §4.2) and the hand-over of its socket to a shard.
//!
//! The place is reserved before the handshake is answered: what is published after the client saw the answer
//! cannot be missed.

use axum::{
    body::Body,
    extract::{Path, Request, State},
    response::Response,
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Parts, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{
    ClientPort,
    error::RequestError,
    request::{self, Asked},
};
use crate::{
    protocol::{Protocol, raw, websocket},
    shard::{Door, Link, Reserved, Visitor},
};

pub(super) async fn accept(
    State(port): State<ClientPort>,
    path: Option<Path<String>>,
    mut request: Request,
) -> Result<Response, RequestError> {
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let (parts, _) = request.into_parts();
    let headers = &parts.headers;
    let key = check_handshake(headers)?;
    let (protocol, selected) = select(headers)?;
    let asked = request::read(&port, &parts, path.map(|Path(channel)| channel))?;
    check_mode(protocol, &asked)?;
    let Asked { identity, channels, remote, history: _ } = asked;
    let upgrade = upgrade.ok_or(RequestError::NoHandshake)?;
    let door = port.door().clone();
    let extension = extension(&door, headers);
    let deflate = extension.is_some();
    let reserved = door.reserve(Visitor { protocol, deflate, identity, channels, remote }).await?;
    tokio::spawn(hand_over(door, reserved, upgrade));
    Ok(switching(&key, selected, extension))
}

/// The answer to the key of a right handshake.
fn check_handshake(headers: &HeaderMap) -> Result<String, RequestError> {
    let has = |name, entry: &str| request::list(headers, name).any(|found| found.eq_ignore_ascii_case(entry));
    if !has(header::CONNECTION, "upgrade") || !has(header::UPGRADE, "websocket") {
        return Err(RequestError::NoHandshake);
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(RequestError::Version);
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok()).unwrap_or_default();
    Ok(websocket::accept_key(key)?)
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

fn switching(key: &str, selected: Option<&'static str>, extension: Option<&'static str>) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let key = HeaderValue::from_str(key).expect("base64 is a header value");
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, key);
    if let Some(selected) = selected {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(selected));
    }
    if let Some(extension) = extension {
        headers.insert(header::SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(extension));
    }
    response
}

/// Waits for hyper to have written the answer, then takes the socket out of tokio and gives it to the shard.
async fn hand_over(door: Door, reserved: Reserved, upgrade: OnUpgrade) {
    match upgrade.await.map_err(|error| error.to_string()).and_then(take_socket) {
        Ok((link, leftover)) => door.attach(reserved, link, leftover),
        Err(error) => {
            tracing::debug!(error, "a client went away during its handshake");
            door.abandon(reserved);
        }
    }
}

fn take_socket(upgraded: Upgraded) -> Result<(Link, bytes::Bytes), String> {
    let downcast = upgraded.downcast::<TokioIo<TcpStream>>();
    let Parts { io, read_buf, .. } = downcast.map_err(|_| "the transport is no socket".to_owned())?;
    let socket = io.into_inner().into_std().map_err(|error| error.to_string())?;
    Ok((Link::Socket(socket), read_buf))
}
