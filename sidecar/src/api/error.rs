//! Errors of the server API, with Centrifugo's codes and structure.

use axum::{
    Json,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    broker::BrokerError,
    domain::{Denied, InvalidChannelName},
    work::PublishError,
};

/// Reporting mode of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// HTTP 200 with an `error` in the body.
    Body,
    /// An `error` in the body and a matching HTTP status.
    Transport,
}

/// Body of a response.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Reply<T> {
    /// The call succeeded.
    Result(T),
    /// The call failed.
    Error(ErrorBody),
}

/// Error of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(super) struct ErrorBody {
    /// Error code. Centrifugo's codes: 100 internal error, 101 unauthorized, 102 unknown channel, 104 unknown method,
    /// 107 bad request, 111 too many requests. Specific to Fanout: 120, it is unknown whether the message was
    /// published.
    pub(super) code: u16,
    /// Description of the error for humans.
    pub(super) message: String,
}

/// Failure of a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ApiError {
    #[error("unauthorized: send an API key in the header `X-API-Key`")]
    Unauthorized,
    #[error("the body must be JSON with `Content-Type: application/json`")]
    MediaType,
    #[error("content codings are not supported: send the body uncompressed")]
    ContentCoding,
    #[error("no such method: see GET /openapi.json for the list of methods")]
    UnknownMethod,
    #[error("method not allowed: use {0}")]
    WrongVerb(&'static str),
    #[error("the body exceeds the limit of {max} bytes")]
    BodyTooLarge { max: usize },
    #[error(
        "unknown channel: its namespace is not configured or its name matches none of the namespace's patterns"
    )]
    UnknownChannel,
    #[error("bad request: {0}")]
    BadRequest(String),
    #[error("{0}; the message was not published, try again later")]
    Unavailable(String),
    #[error("{0}; the message was not published")]
    Refused(String),
    #[error("{0}; the message was not published")]
    TooMany(String),
    #[error("{error}: it is unknown whether the message was published; {}", if *.keyed {
        "repeat the call with the same `idempotency_key`"
    } else {
        "without an `idempotency_key` it is not safe to repeat the call"
    })]
    OutcomeUnknown { error: String, keyed: bool },
}

impl ApiError {
    pub(super) fn code(&self) -> u16 {
        match self {
            Self::Unavailable(_) | Self::Refused(_) => 100,
            Self::TooMany(_) => 111,
            Self::OutcomeUnknown { .. } => 120,
            Self::Unauthorized => 101,
            Self::UnknownChannel => 102,
            Self::UnknownMethod => 104,
            Self::MediaType
            | Self::ContentCoding
            | Self::WrongVerb(_)
            | Self::BodyTooLarge { .. }
            | Self::BadRequest(_) => 107,
        }
    }

    fn status(&self, mode: Mode) -> StatusCode {
        match (self, mode) {
            (Self::Unauthorized, _) => StatusCode::UNAUTHORIZED,
            (Self::UnknownMethod, _) => StatusCode::NOT_FOUND,
            (Self::WrongVerb(_), _) => StatusCode::METHOD_NOT_ALLOWED,
            (Self::MediaType | Self::ContentCoding, _) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            (Self::BodyTooLarge { .. }, _) => StatusCode::PAYLOAD_TOO_LARGE,
            (
                Self::UnknownChannel
                | Self::BadRequest(_)
                | Self::Unavailable(_)
                | Self::Refused(_)
                | Self::TooMany(_)
                | Self::OutcomeUnknown { .. },
                Mode::Body,
            ) => StatusCode::OK,
            (Self::UnknownChannel, Mode::Transport) => StatusCode::NOT_FOUND,
            (Self::BadRequest(_), Mode::Transport) => StatusCode::BAD_REQUEST,
            (Self::Unavailable(_), Mode::Transport) => StatusCode::SERVICE_UNAVAILABLE,
            (Self::TooMany(_), Mode::Transport) => StatusCode::TOO_MANY_REQUESTS,
            (Self::Refused(_), Mode::Transport) => StatusCode::BAD_GATEWAY,
            (Self::OutcomeUnknown { .. }, Mode::Transport) => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    pub(super) fn body(&self) -> ErrorBody {
        ErrorBody { code: self.code(), message: self.to_string() }
    }

    pub(super) fn into_response(self, mode: Mode) -> Response {
        let status = self.status(mode);
        let mut response = (status, Json(Reply::<()>::Error(self.body()))).into_response();
        let mut set =
            |name, value| response.headers_mut().insert(name, header::HeaderValue::from_static(value));
        match self {
            Self::Unauthorized => drop(set(header::WWW_AUTHENTICATE, "apikey")),
            // RFC 9110 §15.5.16.
            Self::ContentCoding => drop(set(header::ACCEPT_ENCODING, "identity")),
            Self::WrongVerb(allowed) => drop(set(header::ALLOW, allowed)),
            _ => {}
        }
        response
    }
}

impl Mode {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let transport = headers.get("x-centrifugo-error-mode").is_some_and(|mode| mode == "transport");
        if transport { Self::Transport } else { Self::Body }
    }
}

impl ApiError {
    /// Converts the error of a publication; `keyed` states whether the publication has an idempotency key.
    pub(super) fn of(error: PublishError, keyed: bool) -> Self {
        match error {
            PublishError::TooLarge { .. } | PublishError::Reserved(_) => Self::BadRequest(error.to_string()),
            PublishError::TooManyKeys { .. } => Self::TooMany(error.to_string()),
            PublishError::Broker(error) => match error {
                BrokerError::Unavailable(_) | BrokerError::Closed => Self::Unavailable(error.to_string()),
                BrokerError::Refused(_) => Self::Refused(error.to_string()),
                BrokerError::Unknown(_) => Self::OutcomeUnknown { error: error.to_string(), keyed },
            },
        }
    }
}

impl From<InvalidChannelName> for ApiError {
    fn from(error: InvalidChannelName) -> Self {
        Self::BadRequest(error.to_string())
    }
}

impl From<Denied> for ApiError {
    /// Backends may publish to every existing channel, so a denial always means that the channel does not exist.
    fn from(_: Denied) -> Self {
        Self::UnknownChannel
    }
}
