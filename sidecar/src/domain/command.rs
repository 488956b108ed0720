//! What clients ask for, whatever protocol they speak.

use super::{ChannelName, Payload};

/// A client's request. `id` comes back in its reply or error.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "a variant's text speaks of its fields")]
pub enum Command {
    /// Send a payload to a channel's subscribers, the sender included where it subscribes.
    Publish { channel: ChannelName, payload: Payload, id: Option<String>, idempotency_key: Option<String> },
    /// Receive a channel's publications from now on.
    Subscribe { channel: ChannelName, id: Option<String> },
    /// Receive them no longer.
    Unsubscribe { channel: ChannelName, id: Option<String> },
    /// Confirm what was received on a durable subscription.
    Acknowledge { channel: ChannelName, offset: u64, id: Option<String> },
}

/// Why a command failed; the connection stays. Codes are Centrifuge's where it has one
/// (<https://centrifugal.dev/docs/server/codes>).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "a variant's text speaks of its fields")]
pub enum CommandError {
    /// The broker is out of reach; the command was not executed.
    #[error("the broker is not available and nothing was done, try again later")]
    Unavailable,
    /// The broker refuses what was asked, by its access rules; the command was not executed.
    #[error("the broker refused it and nothing was done; the server's log has the reason")]
    BrokerRefused,
    /// The publication was sent to the broker and no answer came; `keyed` if it carries an idempotency key, with which
    /// it is safe to repeat.
    #[error(
        "it is unknown whether the message was published, {}",
        if *keyed { "send it again with the same idempotencyKey" } else { "only with an idempotencyKey is it safe to send again" }
    )]
    OutcomeUnknown { keyed: bool },
    /// This node has more to do than it can.
    #[error("this node is overloaded, try again later")]
    Overloaded,
    /// The namespace is not listed, or the channel fits none of its patterns.
    #[error("no such channel: its namespace is not configured or the name fits none of its patterns")]
    UnknownChannel,
    /// Nobody may, or the token does not list the channel.
    #[error("not allowed by the channel's namespace or by the token")]
    PermissionDenied,
    /// A token that failed a check, or none where one is needed.
    #[error("unauthorized: {0}")]
    Unauthorized(String),
    /// A second subscription to the same channel.
    #[error("already subscribed to this channel")]
    AlreadySubscribed,
    /// A subscription that its client ended before it was live.
    #[error("the subscription was cancelled before it was live")]
    Cancelled,
    /// An unsubscription from a channel without subscription.
    #[error("not subscribed to this channel")]
    NotSubscribed,
    /// More subscriptions than a connection may have.
    #[error("too many channels on one connection: the limit is {limit}")]
    TooManyChannels { limit: u32 },
    /// More publications than the namespace's rate limit admits.
    #[error("too many publications: the limit of this namespace is {per_second} a second")]
    TooManyRequests { per_second: u32 },
    /// More idempotency keys than the broker is to remember of one user.
    #[error("too many idempotency keys: a user may use {limit} in five minutes on one node")]
    TooManyKeys { limit: u32 },
    /// `since`, `last`, `durable` or `ack` on a channel that keeps no history.
    #[error("not on this channel: its namespace keeps no history")]
    NoHistory,
    /// What was sent is no command.
    #[error("bad request: {0}")]
    BadRequest(String),
}

impl CommandError {
    /// Names of all kinds, for metrics.
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

    /// Its place in [`Self::KINDS`].
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

    /// The number that protocols send.
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
