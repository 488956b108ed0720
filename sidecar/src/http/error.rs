//! Errors of requests that do not become a connection: an HTTP status and `{"error":{"code","message"}}`.

use std::{ops::RangeInclusive, time::SystemTime};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use rand::RngExt;
use serde_json::json;

use crate::{
    auth::TokenError,
    domain::{CommandError, InvalidChannelName},
    protocol::{raw, sse, websocket::BadHandshake},
    shard::Refusal,
};

/// A full node may have room again when clients left; a leaving one is out of its Service within a second or two.
const RETRY_AFTER_SECONDS: &str = "2";

/// Milliseconds after which a browser asks again for an event stream that was refused.
const RETRY_EVENTS: RangeInclusive<u64> = 2_000..=10_000;

/// Error of a request that does not become a connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RequestError {
    #[error("no such path: use /ws/{{channel}} or /sse/{{channel}}")]
    UnknownPath,
    #[error("method not allowed: use GET")]
    WrongMethod,
    #[error("{}", unparsed(*.0))]
    Unparsed(StatusCode),
    #[error("the `Host` header {0}")]
    Host(&'static str),
    #[error("the header `{0}` is given more than once")]
    Repeated(HeaderName),
    #[error("transfer coding not supported: only `chunked` is")]
    TransferCoding,
    #[error("a connection request must not have a body")]
    Body,
    #[error("the {0} is not percent-encoded UTF-8: encode each byte as `%` and two hexadecimal digits")]
    Encoding(&'static str),
    #[error("request line and headers have {bytes} bytes, at most {limit} are allowed")]
    HeadersTooLarge { bytes: usize, limit: usize },
    #[error("the query has {bytes} bytes, at most {limit} are allowed")]
    QueryTooLong { bytes: usize, limit: usize },
    #[error("origin not allowed: it is not listed in the setting `hub.allowedOrigins`")]
    Origin,
    #[error("{0}")]
    Token(#[from] TokenError),
    #[error("this path requires a WebSocket handshake: `Connection: Upgrade` and `Upgrade: websocket`")]
    NoHandshake,
    #[error("WebSocket version not supported: use `Sec-WebSocket-Version: 13`")]
    Version,
    #[error("{0}")]
    Key(#[from] BadHandshake),
    #[error("subprotocol not supported: offer `{framed}` or `{bare}` (beside a `{token}…`, if any)",
        framed = raw::FRAMED, bare = raw::BARE, token = raw::TOKEN_PREFIX)]
    Subprotocol,
    #[error("{channels} channels without `Sec-WebSocket-Protocol: {framed}`: a bare connection must have exactly one",
        framed = raw::FRAMED)]
    NotFramed { channels: usize },
    #[error("{0} requires `Sec-WebSocket-Protocol: {framed}`", framed = raw::FRAMED)]
    NeedsFramed(&'static str),
    #[error(
        "{channels} channels: an event stream must have exactly one, in the path (/sse/{{channel}}) or as ?channel="
    )]
    NotOneChannel { channels: usize },
    #[error("channel: {0}")]
    Channel(#[from] InvalidChannelName),
    #[error("query: {0}")]
    Query(String),
    #[error("{0}")]
    Refused(#[from] Refused),
}

/// A [`Refusal`] as text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("channel {channel}: {error}")]
    Command { channel: String, error: CommandError },
    #[error("{0}")]
    History(CommandError),
    #[error("this node is full, try again later")]
    Full,
    #[error("this address has reached its limit of connections, close some first")]
    AddressFull,
    #[error("this user has reached their limit of connections, close some first")]
    UserFull,
    #[error("this node is shutting down, connect again")]
    Draining,
}

impl RequestError {
    fn status(&self) -> StatusCode {
        match self {
            Self::UnknownPath => StatusCode::NOT_FOUND,
            Self::WrongMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::Unparsed(status) => *status,
            Self::TransferCoding => StatusCode::NOT_IMPLEMENTED,
            Self::HeadersTooLarge { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::QueryTooLong { .. } => StatusCode::URI_TOO_LONG,
            Self::Origin => StatusCode::FORBIDDEN,
            Self::Token(_) => StatusCode::UNAUTHORIZED,
            Self::NoHandshake | Self::Version => StatusCode::UPGRADE_REQUIRED,
            Self::Host(_)
            | Self::Repeated(_)
            | Self::Body
            | Self::Encoding(_)
            | Self::Key(_)
            | Self::Subprotocol
            | Self::NotFramed { .. }
            | Self::NeedsFramed(_)
            | Self::NotOneChannel { .. }
            | Self::Channel(_)
            | Self::Query(_) => StatusCode::BAD_REQUEST,
            Self::Refused(refused) => refused.status(),
        }
    }

    /// Name for metrics.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::UnknownPath => "path",
            Self::WrongMethod => "method",
            Self::HeadersTooLarge { .. } => "headers",
            Self::QueryTooLong { .. } => "query",
            Self::Origin => "origin",
            Self::Token(_) => "token",
            Self::Unparsed(_)
            | Self::Host(_)
            | Self::Repeated(_)
            | Self::TransferCoding
            | Self::Body
            | Self::Encoding(_)
            | Self::NoHandshake
            | Self::Version
            | Self::Key(_)
            | Self::Subprotocol
            | Self::NotFramed { .. }
            | Self::NeedsFramed(_)
            | Self::NotOneChannel { .. }
            | Self::Channel(_)
            | Self::Query(_) => "request",
            Self::Refused(Refused::Command { .. } | Refused::History(_)) => "channel",
            Self::Refused(Refused::Full) => "full",
            Self::Refused(Refused::AddressFull) => "address",
            Self::Refused(Refused::UserFull) => "user",
            Self::Refused(Refused::Draining) => "draining",
        }
    }

    /// Numbers of the server API's errors, where they say the same.
    fn code(&self) -> u16 {
        match self {
            Self::Token(TokenError::Expired) => 109,
            Self::Token(_) => 101,
            Self::Origin => 103,
            Self::UnknownPath => 104,
            Self::Refused(Refused::Command { error, .. } | Refused::History(error)) => error.code(),
            Self::Refused(Refused::Full | Refused::AddressFull | Refused::UserFull | Refused::Draining) => {
                111
            }
            Self::WrongMethod
            | Self::Unparsed(_)
            | Self::Host(_)
            | Self::Repeated(_)
            | Self::TransferCoding
            | Self::Body
            | Self::Encoding(_)
            | Self::HeadersTooLarge { .. }
            | Self::QueryTooLong { .. }
            | Self::NoHandshake
            | Self::Version
            | Self::Key(_)
            | Self::Subprotocol
            | Self::NotFramed { .. }
            | Self::NeedsFramed(_)
            | Self::NotOneChannel { .. }
            | Self::Channel(_)
            | Self::Query(_) => 107,
        }
    }
}

impl Refused {
    fn status(&self) -> StatusCode {
        match self {
            Self::Full | Self::Draining => StatusCode::SERVICE_UNAVAILABLE,
            Self::AddressFull | Self::UserFull => StatusCode::TOO_MANY_REQUESTS,
            Self::Command { error, .. } | Self::History(error) => match error {
                CommandError::Unavailable
                | CommandError::Overloaded
                | CommandError::BrokerRefused
                | CommandError::OutcomeUnknown { .. } => StatusCode::SERVICE_UNAVAILABLE,
                CommandError::UnknownChannel => StatusCode::NOT_FOUND,
                CommandError::PermissionDenied => StatusCode::FORBIDDEN,
                CommandError::Unauthorized(_) => StatusCode::UNAUTHORIZED,
                CommandError::TooManyRequests { .. } | CommandError::TooManyKeys { .. } => {
                    StatusCode::TOO_MANY_REQUESTS
                }
                CommandError::AlreadySubscribed
                | CommandError::Cancelled
                | CommandError::NotSubscribed
                | CommandError::TooManyChannels { .. }
                | CommandError::NoHistory
                | CommandError::BadRequest(_) => StatusCode::BAD_REQUEST,
            },
        }
    }
}

impl From<Refusal> for RequestError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(match refusal {
            Refusal::Channel { channel, error } => Refused::Command { channel: channel.to_string(), error },
            Refusal::Full => Refused::Full,
            Refusal::AddressFull => Refused::AddressFull,
            Refusal::UserFull => Refused::UserFull,
            Refusal::Draining => Refused::Draining,
        })
    }
}

/// Why a response is a refusal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reason(pub(super) &'static str);

impl RequestError {
    /// All that is answered.
    pub(super) fn answer(&self) -> http::Response<Vec<u8>> {
        let status = self.status();
        let body = json!({"error": {"code": self.code(), "message": self.to_string()}});
        let mut response = http::Response::new(body.to_string().into_bytes());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        let mut set = |name, value| headers.insert(name, HeaderValue::from_static(value));
        set(header::CONTENT_TYPE, "application/json");
        match status {
            StatusCode::SERVICE_UNAVAILABLE => drop(set(header::RETRY_AFTER, RETRY_AFTER_SECONDS)),
            StatusCode::UPGRADE_REQUIRED => {
                set(header::UPGRADE, "websocket");
                set(header::CONNECTION, "upgrade");
                set(header::SEC_WEBSOCKET_VERSION, "13");
            }
            StatusCode::UNAUTHORIZED => drop(set(header::WWW_AUTHENTICATE, "Bearer")),
            StatusCode::METHOD_NOT_ALLOWED => drop(set(header::ALLOW, "GET")),
            _ => {}
        }
        response
    }

    /// The whole answer as HTTP/1.1 writes it, the last of its connection.
    pub(super) fn message(&self) -> Vec<u8> {
        let (mut parts, body) = self.answer().into_parts();
        let date =
            HeaderValue::try_from(httpdate::fmt_http_date(SystemTime::now())).expect("a date is ASCII");
        parts.headers.insert(header::DATE, date);
        parts.headers.insert(header::CONTENT_LENGTH, body.len().into());
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        let mut message = head(parts.status, &parts.headers);
        message.extend(body);
        message
    }

    /// Whether the same request may succeed in a while.
    pub(super) fn is_temporary(&self) -> bool {
        matches!(self.status(), StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS)
    }

    /// An event stream that says it and ends. A browser whose `EventSource` is answered with another status than 200 gives
    /// up for good: this one comes back, after a time that is another for each.
    pub(super) fn into_events(self) -> Response {
        let retry = rand::rng().random_range(RETRY_EVENTS);
        let mut body = Vec::new();
        sse::put_refusal(&mut body, self.code(), &self.to_string(), retry);
        let mut response = Response::new(Body::from(body));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response.extensions_mut().insert(Reason(self.reason()));
        response
    }
}

/// What to say of a request that could not be read.
fn unparsed(status: StatusCode) -> &'static str {
    match status {
        StatusCode::URI_TOO_LONG => "the request line is too long",
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            "the request line and headers are too long, or there are too many headers"
        }
        _ => "not a valid HTTP/1.1 request: the request line or a header cannot be parsed",
    }
}

/// The head of an answer as HTTP/1.1 writes it (RFC 9112 §4 and §5).
pub(super) fn head(status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let mut head = Vec::with_capacity(256);
    let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| head.extend_from_slice(part));
    let reason = status.canonical_reason().unwrap_or_default();
    put(&[b"HTTP/1.1 ", status.as_str().as_bytes(), b" ", reason.as_bytes(), b"\r\n"]);
    for (name, value) in headers {
        put(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
    }
    put(&[b"\r\n"]);
    head
}

impl IntoResponse for RequestError {
    fn into_response(self) -> Response {
        let mut response = self.answer().map(Body::from);
        response.extensions_mut().insert(Reason(self.reason()));
        response
    }
}

pub(super) async fn unknown_path() -> RequestError {
    RequestError::UnknownPath
}

pub(super) async fn wrong_method() -> RequestError {
    RequestError::WrongMethod
}
