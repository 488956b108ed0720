//! What clients ask for, whatever protocol they speak.

use super::{ChannelName, Payload};

/// A client's request. `id` comes back in its reply or error.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "a variant's text speaks of its fields")]
pub enum Command {
    /// Send a payload to a channel's subscribers, the sender included where it subscribes.
    Publish { channel: ChannelName, payload: Payload, id: Option<String> },
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
    /// The broker did not take it, or not in time.
    #[error("the broker is not available: the message was not published, try again later")]
    Unavailable,
    /// This node has more to do than it can.
    #[error("this node is overloaded, try again later")]
    Overloaded,
    /// The namespace is not listed, or the channel fits none of its patterns.
    #[error("no such channel: its namespace is not configured or the name fits none of its patterns")]
    UnknownChannel,
    /// Nobody may, or the token does not list the channel.
    #[error("not allowed by the channel's namespace or by the token")]
    PermissionDenied,
    /// A second subscription to the same channel.
    #[error("already subscribed to this channel")]
    AlreadySubscribed,
    /// An unsubscription from a channel without subscription.
    #[error("not subscribed to this channel")]
    NotSubscribed,
    /// More subscriptions than a connection may have.
    #[error("too many channels on one connection: the limit is {limit}")]
    TooManyChannels { limit: u32 },
    /// More publications than the namespace's rate limit admits.
    #[error("too many publications: the limit of this namespace is {per_second} a second")]
    TooManyRequests { per_second: u32 },
    /// `since`, `last`, `durable` or `ack` on a channel that keeps no history.
    #[error("not on this channel: its namespace keeps no history")]
    NoHistory,
    /// What was sent is no command.
    #[error("bad request: {0}")]
    BadRequest(String),
}

impl CommandError {
    /// Names of all kinds, for metrics.
    pub const KINDS: [&'static str; 10] = [
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
        }
    }

    /// The number that protocols send.
    pub fn code(&self) -> u16 {
        match self {
            Self::Unavailable => 100,
            Self::Overloaded => 111,
            Self::UnknownChannel => 102,
            Self::PermissionDenied => 103,
            Self::AlreadySubscribed => 105,
            Self::TooManyChannels { .. } => 106,
            Self::BadRequest(_) | Self::NotSubscribed => 107,
            Self::NoHistory => 108,
            Self::TooManyRequests { .. } => 111,
        }
    }

    /// Whether the same command may succeed later.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unavailable | Self::Overloaded | Self::TooManyRequests { .. })
    }
}
