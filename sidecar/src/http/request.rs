//! What every request to connect has in common: who asks, from where, and for which channels.

use std::net::SocketAddr;

use http::{HeaderMap, header, request::Parts};

use super::{
    ClientPort, Peer,
    error::{Refused, RequestError},
    head, remote,
};
use crate::{
    domain::{ChannelName, CommandError, Identity},
    protocol::raw,
};

/// A request that may become a connection.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) identity: Identity,
    /// Each once, in the order of the request.
    pub(super) channels: Vec<ChannelName>,
    pub(super) remote: SocketAddr,
    /// `since`, `last` or `durable`, which need a history.
    pub(super) history: Option<&'static str>,
}

#[derive(Default)]
struct Query {
    channels: Vec<String>,
    token: Option<String>,
    history: Option<&'static str>,
}

/// Checks origin, size and token, and reads what is asked for. `root` is the path to a channel's name, or to none.
pub(super) fn read(port: &ClientPort, parts: &Parts, root: &str) -> Result<Asked, RequestError> {
    head::check_no_body(&parts.headers)?;
    let rules = port.door().rules();
    check_size(parts, rules.hub.limits.header_bytes as usize)?;
    check_query(parts, rules.hub.limits.query_bytes as usize)?;
    let origin = parts.headers.get(header::ORIGIN).map(|origin| String::from_utf8_lossy(origin.as_bytes()));
    if !port.auth().origin(origin.as_deref()) {
        return Err(RequestError::Origin);
    }
    let path = channel_of(parts, root)?;
    let query = parse_query(parts)?;
    let token = bearer(&parts.headers).or(query.token).or_else(|| listed_token(&parts.headers));
    let identity = port.auth().identify(token.as_deref())?;
    let mut channels = Vec::new();
    for name in path.into_iter().chain(query.channels) {
        let channel: ChannelName = name.parse()?;
        if !channels.contains(&channel) {
            channels.push(channel);
        }
        // A longer list is refused in any case; this keeps the search above short.
        if channels.len() > rules.hub.limits.channels_per_connection as usize {
            let limit = rules.hub.limits.channels_per_connection;
            let error = CommandError::TooManyChannels { limit };
            let channel = channels[channels.len() - 1].to_string();
            return Err(Refused::Command { channel, error }.into());
        }
    }
    let Peer(peer) = parts.extensions.get().copied().expect("the listener says who it is");
    let remote = remote::client(peer, &parts.headers, &rules.hub.trusted_proxies);
    Ok(Asked { identity, channels, remote, history: query.history })
}

/// hyper bounds its buffer at 8 KiB or more; this is the setting itself.
fn check_size(parts: &Parts, limit: usize) -> Result<(), RequestError> {
    let line = parts.method.as_str().len() + parts.uri.path_and_query().map_or(0, |uri| uri.as_str().len());
    let header =
        |(name, value): (&http::HeaderName, &http::HeaderValue)| name.as_str().len() + value.len() + 4;
    let bytes = line + parts.headers.iter().map(header).sum::<usize>();
    if bytes > limit { Err(RequestError::HeadersTooLarge { bytes, limit }) } else { Ok(()) }
}

fn check_query(parts: &Parts, limit: usize) -> Result<(), RequestError> {
    let bytes = parts.uri.query().map_or(0, str::len);
    if bytes > limit { Err(RequestError::QueryTooLong { bytes, limit }) } else { Ok(()) }
}

/// The channel that the path names behind its root, decoded.
fn channel_of(parts: &Parts, root: &str) -> Result<Option<String>, RequestError> {
    let name =
        parts.uri.path().strip_prefix(root).and_then(|rest| rest.strip_prefix('/')).unwrap_or_default();
    if name.is_empty() { Ok(None) } else { head::decoded(name, "path").map(Some) }
}

/// Other keys are let pass, whatever they hold: proxies and caches add some.
fn parse_query(parts: &Parts) -> Result<Query, RequestError> {
    let mut query = Query::default();
    for pair in parts.uri.query().unwrap_or_default().split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = || head::decoded(&value.replace('+', " "), "query");
        match &*head::decoded(key, "query").unwrap_or_default() {
            "channel" => query.channels.push(value()?),
            "token" if query.token.is_some() => {
                return Err(RequestError::Query("`token` is given more than once".to_owned()));
            }
            "token" => query.token = Some(value()?),
            "since" => query.history = Some("since"),
            "last" => query.history = Some("last"),
            "durable" => query.history = Some("durable"),
            _ => {}
        }
    }
    Ok(query)
}

fn bearer(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
}

/// A browser's way to send a token: the only header that a page can set on a WebSocket.
fn listed_token(headers: &HeaderMap) -> Option<String> {
    subprotocols(headers).find_map(|entry| Some(entry.strip_prefix(raw::TOKEN_PREFIX)?.to_owned()))
}

/// Entries of `Sec-WebSocket-Protocol`, however many header lines they came in.
pub(super) fn subprotocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    list(headers, header::SEC_WEBSOCKET_PROTOCOL)
}

/// Entries of a comma-separated header.
pub(super) fn list(headers: &HeaderMap, name: http::HeaderName) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|entry| !entry.is_empty())
}

/// Which channels keep a history is not known here yet: none does.
pub(super) fn no_history() -> RequestError {
    Refused::History(CommandError::NoHistory).into()
}
