//! Why a connection ends, told by each protocol in its own codes.

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The client closed, in good order.
    ClientClosed,
    /// The client went away without a word, or the transport failed.
    ConnectionLost,
    /// This node ends or is asked to empty itself.
    Drain,
    /// The node's deadline for a drain passed.
    DrainForced,
    /// The connection's token has expired.
    TokenExpired,
    /// The client read too slowly for its namespace's bounds.
    SlowConsumer,
    /// A ping was not answered in time.
    NoPong,
    /// Messages were lost and the protocol has no other way to tell it.
    Gap,
    /// A backend asked for it through the server API.
    Disconnected,
    /// New settings no longer allow what the connection does.
    PermissionDenied,
    /// More than the limits of a connection admit.
    TooManyRequests,
    /// No message went in either direction for too long.
    Idle,
    /// The connection has reached its age.
    MaxAge,
    /// The broker did not take a publication and the protocol has no error reply.
    Unavailable,
    /// It is unknown whether a publication was published and the protocol has no error reply.
    OutcomeUnknown,
    /// Clients together need more memory than this node has for them, and this one most of it.
    Overloaded,
    /// A frame against RFC 6455.
    ProtocolError,
    /// A message that is not what the protocol speaks.
    BadRequest,
    /// Text that is no UTF-8.
    InvalidUtf8,
    /// A message larger than the limit.
    MessageTooBig,
    /// A mistake in this program.
    Internal,
}

/// Whether and when a client should come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reconnect {
    /// After a random part of the time that it is advised with: others are closed for the same reason.
    Yes,
    /// With exponential back-off: the cause may last.
    WithBackOff,
    /// Not before the client or its token was mended.
    No,
}

impl CloseReason {
    /// All of them, for the generated documents.
    pub const ALL: [Self; 21] = [
        Self::ClientClosed,
        Self::ConnectionLost,
        Self::Drain,
        Self::DrainForced,
        Self::TokenExpired,
        Self::SlowConsumer,
        Self::NoPong,
        Self::Gap,
        Self::Disconnected,
        Self::PermissionDenied,
        Self::TooManyRequests,
        Self::Idle,
        Self::MaxAge,
        Self::Unavailable,
        Self::OutcomeUnknown,
        Self::Overloaded,
        Self::ProtocolError,
        Self::BadRequest,
        Self::InvalidUtf8,
        Self::MessageTooBig,
        Self::Internal,
    ];

    /// Name for logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::ClientClosed => "client_closed",
            Self::ConnectionLost => "connection_lost",
            Self::Drain => "drain",
            Self::DrainForced => "drain_forced",
            Self::TokenExpired => "token_expired",
            Self::SlowConsumer => "slow_consumer",
            Self::NoPong => "no_pong",
            Self::Gap => "gap",
            Self::Disconnected => "disconnected",
            Self::PermissionDenied => "permission_denied",
            Self::TooManyRequests => "too_many_requests",
            Self::Idle => "idle",
            Self::MaxAge => "max_age",
            Self::Unavailable => "unavailable",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::Overloaded => "overloaded",
            Self::ProtocolError => "protocol_error",
            Self::BadRequest => "bad_request",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::MessageTooBig => "message_too_big",
            Self::Internal => "internal",
        }
    }

    /// Whether and when the client should come back.
    pub fn reconnect(self) -> Reconnect {
        match self {
            Self::ConnectionLost
            | Self::Drain
            | Self::DrainForced
            | Self::NoPong
            | Self::Gap
            | Self::TokenExpired
            | Self::MaxAge => Reconnect::Yes,
            Self::SlowConsumer
            | Self::TooManyRequests
            | Self::Unavailable
            | Self::OutcomeUnknown
            | Self::Overloaded
            | Self::Internal => Reconnect::WithBackOff,
            Self::ClientClosed
            | Self::Idle
            | Self::Disconnected
            | Self::PermissionDenied
            | Self::ProtocolError
            | Self::BadRequest
            | Self::InvalidUtf8
            | Self::MessageTooBig => Reconnect::No,
        }
    }
}
