//! Commands of clients, independent of the protocol.

use super::{ChannelName, Payload};

/// Command of a client. `id` is returned in its reply or error.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "a variant's text speaks of its fields")]
pub enum Command {
    /// Send a payload to the subscribers of a channel, including the sender if it is subscribed.
    Publish { channel: ChannelName, payload: Payload, id: Option<String>, idempotency_key: Option<String> },
    /// Subscribe to the publications of a channel.
    Subscribe { channel: ChannelName, id: Option<String> },
    /// Unsubscribe from a channel.
    Unsubscribe { channel: ChannelName, id: Option<String> },
    /// Acknowledge publications received on a durable subscription.
    Acknowledge { channel: ChannelName, offset: u64, id: Option<String> },
}

/// Error of a command. The connection stays open. Codes are Centrifuge's where it has an equivalent
/// (<https://centrifugal.dev/docs/server/codes>).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "a variant's text speaks of its fields")]
pub enum CommandError {
    /// The broker is unreachable; the command was not executed.
    #[error("the broker is not available and the command was not executed, try again later")]
    Unavailable,
    /// The broker's access rules do not permit the command; it was not executed.
    #[error("the broker rejected the command, which was not executed; see the server's log for the reason")]
    BrokerRefused,
    /// The publication was sent to the broker, but no answer arrived. `keyed` is `true` if it carries an idempotency
    /// key, which makes it safe to repeat.
    #[error(
        "it is unknown whether the message was published; {}",
        if *keyed { "send it again with the same idempotencyKey" } else { "without an idempotencyKey it is not safe to send it again" }
    )]
    OutcomeUnknown { keyed: bool },
    /// The node is overloaded.
    #[error("this node is overloaded, try again later")]
    Overloaded,
    /// The namespace is not listed, or the channel matches none of its patterns.
    #[error("no such channel: its namespace is not configured or the name matches none of its patterns")]
    UnknownChannel,
    /// The namespace denies access, or the token does not grant it.
    #[error("not allowed by the channel's namespace or by the token")]
    PermissionDenied,
    /// The token failed a check, or is missing where one is required.
    #[error("unauthorized: {0}")]
    Unauthorized(String),
    /// The connection is already subscribed to the channel.
    #[error("already subscribed to this channel")]
    AlreadySubscribed,
    /// The client ended the subscription before it was live.
    #[error("the subscription was cancelled before it was live")]
    Cancelled,
    /// The connection is not subscribed to the channel.
    #[error("not subscribed to this channel")]
    NotSubscribed,
    /// The connection has reached the limit of subscriptions.
    #[error("too many channels on one connection: the limit is {limit}")]
    TooManyChannels { limit: u32 },
    /// The rate limit of the namespace was exceeded.
    #[error("too many publications: the limit of this namespace is {per_second} per second")]
    TooManyRequests { per_second: u32 },
    /// The user has used too many idempotency keys.
    #[error("too many idempotency keys: the limit on one node is {limit} per user in five minutes")]
    TooManyKeys { limit: u32 },
    /// `since`, `last`, `durable` or `ack` on a channel that keeps no history.
    #[error("not supported on this channel: its namespace keeps no history")]
    NoHistory,
    /// The message is not a valid command.
    #[error("bad request: {0}")]
    BadRequest(String),
}

impl CommandError {
    /// Names of all kinds, used in metrics.
    pub const KINDS: [&'static str; 15] = [
        "unavailable",
        "overloaded",
        "unknown_channel",
        "permission_denied",
        "already_subscribed",
        "not_subscribed",
        "too_many_channels",
        "too_many_requests",
        "no_history",
        "bad_request",
        "broker_refused",
        "outcome_unknown",
        "too_many_keys",
        "cancelled",
        "unauthorized",
    ];

    /// Returns the index of the error's kind in [`Self::KINDS`].
    pub fn kind(&self) -> usize {
        match self {
            Self::Unavailable => 0,
            Self::Overloaded => 1,
            Self::UnknownChannel => 2,
            Self::PermissionDenied => 3,
            Self::AlreadySubscribed => 4,
            Self::NotSubscribed => 5,
            Self::TooManyChannels { .. } => 6,
            Self::TooManyRequests { .. } => 7,
            Self::NoHistory => 8,
            Self::BadRequest(_) => 9,
            Self::BrokerRefused => 10,
            Self::OutcomeUnknown { .. } => 11,
            Self::TooManyKeys { .. } => 12,
            Self::Cancelled => 13,
            Self::Unauthorized(_) => 14,
        }
    }

    /// Returns the error code that protocols send.
    pub fn code(&self) -> u16 {
        match self {
            Self::Unavailable | Self::BrokerRefused => 100,
            Self::OutcomeUnknown { .. } => 120,
            Self::Overloaded => 111,
            Self::Unauthorized(_) => 101,
            Self::UnknownChannel => 102,
            Self::PermissionDenied => 103,
            Self::AlreadySubscribed => 105,
            Self::TooManyChannels { .. } => 106,
            Self::BadRequest(_) | Self::NotSubscribed | Self::Cancelled => 107,
            Self::NoHistory => 108,
            Self::TooManyRequests { .. } | Self::TooManyKeys { .. } => 111,
        }
    }

    /// Returns `true` if the same command may be sent again later.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unavailable
            | Self::Overloaded
            | Self::TooManyRequests { .. }
            | Self::TooManyKeys { .. } => true,
            Self::OutcomeUnknown { keyed } => *keyed,
            Self::BrokerRefused
            | Self::UnknownChannel
            | Self::PermissionDenied
            | Self::AlreadySubscribed
            | Self::NotSubscribed
            | Self::TooManyChannels { .. }
            | Self::NoHistory
            | Self::Cancelled
            | Self::Unauthorized(_)
            | Self::BadRequest(_) => false,
        }
    }
}
