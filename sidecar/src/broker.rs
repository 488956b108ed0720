//! Between nodes: what a broker does, and the contract that its conformance suite proves.
//!
//! [`open`] makes the broker of the settings. Callers are `bridge`, which takes the events, and `work`, which
//! sends. A broker knows neither shards nor clients.

use std::{future::Future, pin::Pin, sync::Arc};

use sidecar_config::BrokerKind;
use tokio::sync::mpsc;

use crate::domain::{ChannelName, Publication, StreamPosition};

mod backoff;
#[doc(hidden)]
pub mod conformance;
pub mod envelope;
mod memory;
mod recent;
pub mod redis;

pub use memory::Bus;
pub use recent::Recent;

/// Namespace of channels that belong to the nodes themselves: no settings may list it, so that no client and no
/// backend reaches them.
pub const INTERNAL_NAMESPACE: &str = sidecar_config::RESERVED_NAMESPACE;

/// What a broker tells, in order and in batches. Bounded: what a broker does when it is full, it documents.
pub type Events = mpsc::Receiver<Vec<BrokerEvent>>;

/// Starts the broker that the settings chose on the current runtime; `client_name` is what it is called there. It
/// ends when the handle is dropped.
pub fn open(kind: BrokerKind<'_>, client_name: &str) -> (Arc<dyn Broker>, Events) {
    match kind {
        BrokerKind::Memory => Bus::default().join(),
        BrokerKind::Redis(settings) => redis::open(settings, client_name),
    }
}

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
    /// Tears the connections down and makes new ones, because what went in does not come out.
    fn rebuild(&self, reason: &str);
}

/// What a broker tells.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "a variant's text speaks of its fields")]
pub enum BrokerEvent {
    /// A publication of a subscribed channel.
    Publication(Publication),
    /// There is no connection, or it is lost; a new one is being made. Told again when the reason changes.
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
