//! What a request is told that does not become a connection: a status and `{"error":{"code","message"}}`.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;

use crate::{
    auth::TokenError,
    domain::{CommandError, InvalidChannelName},
    protocol::{raw, websocket::BadHandshake},
    shard::Refusal,
};

/// A full node may have room again when clients left; a leaving one is out of its Service within a second or two.
const RETRY_AFTER_SECONDS: &str = "2";

/// Why a request does not become a connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RequestError {
    #[error("no such path: use /ws/{{channel}} or /sse/{{channel}}")]
    UnknownPath,
    #[error("method not allowed: use GET")]
    WrongMethod,
    #[error("request line and headers have {bytes} bytes, at most {limit} are allowed")]
    HeadersTooLarge { bytes: usize, limit: usize },
    #[error("the query has {bytes} bytes, at most {limit} are allowed")]
    QueryTooLong { bytes: usize, limit: usize },
    #[error("origin not allowed: the setting `hub.allowedOrigins` does not list it")]
    Origin,
    #[error("{0}")]
    Token(#[from] TokenError),
    #[error("this path wants a WebSocket handshake: `Connection: Upgrade` and `Upgrade: websocket`")]
    NoHandshake,
    #[error("WebSocket version not supported: use `Sec-WebSocket-Version: 13`")]
    Version,
    #[error("{0}")]
    Key(#[from] BadHandshake),
    #[error("subprotocol not supported: offer `{framed}` or `{bare}` (beside a `{token}…`, if any)",
        framed = raw::FRAMED, bare = raw::BARE, token = raw::TOKEN_PREFIX)]
    Subprotocol,
    #[error("{channels} channels without `Sec-WebSocket-Protocol: {framed}`: a bare connection has exactly one",
        framed = raw::FRAMED)]
    NotFramed { channels: usize },
    #[error("{0} needs `Sec-WebSocket-Protocol: {framed}`", framed = raw::FRAMED)]
    NeedsFramed(&'static str),
    #[error(
        "{channels} channels: an event stream has exactly one, in the path (/sse/{{channel}}) or as ?channel="
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
    #[error("this address has as many connections as it may, close some first")]
    AddressFull,
    #[error("this user has as many connections as it may, close some first")]
    UserFull,
    #[error("this node is leaving, connect again")]
    Draining,
}

impl RequestError {
    fn status(&self) -> StatusCode {
        match self {
            Self::UnknownPath => StatusCode::NOT_FOUND,
            Self::WrongMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::HeadersTooLarge { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::QueryTooLong { .. } => StatusCode::URI_TOO_LONG,
            Self::Origin => StatusCode::FORBIDDEN,
            Self::Token(_) => StatusCode::UNAUTHORIZED,
            Self::NoHandshake | Self::Version => StatusCode::UPGRADE_REQUIRED,
            Self::Key(_)
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
            Self::NoHandshake
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
                CommandError::TooManyRequests { .. } | CommandError::TooManyKeys { .. } => {
                    StatusCode::TOO_MANY_REQUESTS
                }
                CommandError::AlreadySubscribed
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
            _ => {}
        }
        response
    }
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
