//! Reasons for closing a connection. Each protocol maps them to its own codes.

/// Reason for closing a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The client closed the connection cleanly.
    ClientClosed,
    /// The client disconnected without closing, or the transport failed.
    ConnectionLost,
    /// The node is shutting down or being drained.
    Drain,
    /// The deadline of the node's drain passed.
    DrainForced,
    /// The connection's token has expired.
    TokenExpired,
    /// The client read too slowly for the bounds of its namespace.
    SlowConsumer,
    /// The client did not answer a ping in time.
    NoPong,
    /// Messages were lost, and the protocol has no other way to report it.
    Gap,
    /// A backend requested it through the server API.
    Disconnected,
    /// New settings no longer permit what the connection does.
    PermissionDenied,
    /// The connection exceeded its rate limits.
    TooManyRequests,
    /// No message went in either direction for too long.
    Idle,
    /// The connection reached its maximum age.
    MaxAge,
    /// The broker did not accept a publication, and the protocol has no error reply.
    Unavailable,
    /// It is unknown whether a publication was published, and the protocol has no error reply.
    OutcomeUnknown,
    /// Clients together use more memory than the node has for them, and this client uses the most.
    Overloaded,
    /// The client sent a frame that violates RFC 6455.
    ProtocolError,
    /// The client sent a message that is invalid in the protocol.
    BadRequest,
    /// The client sent a text message that is not UTF-8.
    InvalidUtf8,
    /// The client sent a message larger than the limit.
    MessageTooBig,
    /// A bug in this program.
    Internal,
}

/// Reconnect advice for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reconnect {
    /// Reconnect after a random part of the advised time, because other clients are closed for the same reason.
    Yes,
    /// Reconnect with exponential back-off, because the cause may persist.
    WithBackOff,
    /// Do not reconnect until the client or its token has been fixed.
    No,
}

impl CloseReason {
    /// All reasons, for the generated documents.
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

    /// Returns the name used in logs and metrics.
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
