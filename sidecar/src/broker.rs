//! Between nodes: what a broker does, and the contract that its conformance suite proves.

use std::{future::Future, pin::Pin};

use crate::domain::{ChannelName, Publication, StreamPosition};

/// The answer of a broker, later.
pub type Reply<T> = Pin<Box<dyn Future<Output = Result<T, BrokerError>> + Send>>;

/// Carries publications between nodes. At most once, unless a broker says otherwise.
///
/// - **Ordering**: publications that one node publishes on one channel arrive everywhere in that order. A call is
///   sent in the order of the calls, not of the polls; the returned future only waits for the answer, and
///   dropping it does not undo the call.
/// - **Subscribing**: once `subscribe` is answered, every publication accepted from then on is delivered until
///   `unsubscribe` is called. Interest outlives a lost connection: a broker subscribes anew by itself and says so
///   by [`BrokerEvent::Resumed`], because what was published meanwhile may be lost.
/// - **Publishing**: an answer means the broker took it. While the broker is out of reach the answer is
///   [`BrokerError::Unavailable`], at once.
pub trait Broker: Send + Sync + 'static {
    /// Delivers these channels' publications from now on.
    fn subscribe(&self, channels: Vec<ChannelName>) -> Reply<()>;
    /// Delivers them no longer.
    fn unsubscribe(&self, channels: Vec<ChannelName>) -> Reply<()>;
    /// Sends a publication to all who subscribed; its position where the channel has a stream.
    fn publish(&self, publication: Publication) -> Reply<Option<StreamPosition>>;
}

/// What a broker tells, in order, over the channel it was made with.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "a variant's text speaks of its fields")]
pub enum BrokerEvent {
    /// A publication of a subscribed channel.
    Publication(Publication),
    /// The connection is lost; a new one is being made.
    Disconnected { reason: String },
    /// All subscriptions are live, for the first time or again.
    Connected,
    /// Publications may have been lost on every subscribed channel, between a `Disconnected` and a `Connected`.
    Resumed,
    /// A payload that claims to be an envelope but is none of a known version; dropped.
    Malformed { channel: ChannelName },
}

/// Why the broker did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// Out of reach; nothing was done, or it is not known whether it was.
    #[error("the broker is not available: {0}")]
    Unavailable(String),
    /// It answered with an error.
    #[error("the broker refused: {0}")]
    Refused(String),
    /// It was closed.
    #[error("the broker is closed")]
    Closed,
}
