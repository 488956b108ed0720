//! Between nodes: what a broker does, and the contract that its conformance suite proves.
//!
//! [`open`] makes the broker of the settings. Callers are `bridge`, which takes the events, and `work`, which
//! sends. A broker knows neither shards nor clients.

use std::{future::Future, pin::Pin, sync::Arc};

use sidecar_config::BrokerKind;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::domain::{ChannelName, Origin, Publication, StreamPosition};

mod backoff;
#[doc(hidden)]
pub mod conformance;
pub mod envelope;
mod memory;
mod recent;
pub mod redis;
mod watchdog;

pub use memory::Bus;
pub use recent::Recent;
pub(crate) use watchdog::Watchdog;

/// Namespace of channels that belong to the nodes themselves: no settings may list it, so that no client and no
/// backend reaches them.
pub const INTERNAL_NAMESPACE: &str = sidecar_config::RESERVED_NAMESPACE;

/// What the nodes' own channels begin with, behind their namespace, that stand for the names of the first version:
/// `<prefix>:fanout:nodes` in Redis, where every backend that may publish below the prefix reaches them.
pub const FORMER_NAMES: &str = "former:";

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
pub type Reply<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Carries publications between nodes. At most once, unless a broker says otherwise.
///
/// - **Links**: a broker reaches its servers over one or more links; [`Broker::link`] tells which one carries a
///   channel. What is told of a link ([`BrokerEvent::Disconnected`], [`BrokerEvent::Resumed`]) concerns its channels
///   only.
/// - **Ordering**: publications that one node publishes on one channel arrive everywhere in that order. A call is
///   sent in the order of the calls, not of the polls; the returned future only waits for the answer, and
///   dropping it does not undo the call.
/// - **Subscribing**: each channel succeeds or fails by itself. Once it has succeeded, every publication accepted
///   from then on is delivered until `unsubscribe` is called. Interest outlives a lost connection: a broker
///   subscribes again by itself and reports it by [`BrokerEvent::Resumed`], because publications may have been lost
///   meanwhile.
/// - **Publishing**: see [`BrokerError`] for the three outcomes. While the link is down the answer is
///   [`BrokerError::Unavailable`], at once.
pub trait Broker: Send + Sync + 'static {
    /// Delivers these channels' publications from now on, except for those in the answer, each with its reason.
    fn subscribe(&self, channels: Vec<ChannelName>) -> Reply<Vec<NotSubscribed>>;
    /// Stops delivering them. Takes effect at once, whatever becomes of the broker.
    fn unsubscribe(&self, channels: Vec<ChannelName>);
    /// Sends a publication to all subscribers.
    fn publish(
        &self,
        publication: Publication,
        options: PublishOptions,
    ) -> Reply<Result<Published, BrokerError>>;
    /// The link that carries the channel.
    fn link(&self, channel: &ChannelName) -> LinkId;
    /// Number of links; their ids count from 0.
    fn links(&self) -> u16;
    /// Tears one side of a link down and connects it again, because what went in does not come out.
    fn rebuild(&self, link: LinkId, side: Side, reason: &str);
}

/// One way to a broker's server: a subscribing and a publishing connection with a fate of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u16);

/// One of a link's two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Brings publications.
    Subscriber,
    /// Takes publications.
    Publisher,
}

/// How a publication is to be sent.
#[derive(Debug, Default)]
pub struct PublishOptions {
    /// Publishes at most once per channel and key within the broker's window.
    pub idempotency: Option<IdempotencyKey>,
    /// Share of the memory that waiting publications may use; the broker drops it once the publication no longer
    /// waits.
    pub room: Option<OwnedSemaphorePermit>,
}

/// Digest of an idempotency key and of the publisher that it belongs to; two publishers' keys never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(pub [u8; 16]);

/// The broker has the publication.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Its position, where the channel has a stream.
    pub position: Option<StreamPosition>,
    /// An earlier publication had the same idempotency key: that one was published, this one was not.
    pub duplicate: bool,
}

/// A channel that could not be subscribed, and why.
pub type NotSubscribed = (ChannelName, BrokerError);

/// What a broker reports.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "a variant's text speaks of its fields")]
pub enum BrokerEvent {
    /// A publication of a subscribed channel.
    Publication(Publication),
    /// A publication repeated an earlier one and was not published; only its number counts.
    Void { channel: ChannelName, origin: Origin },
    /// The link is down and reconnects. Reported after each failed attempt.
    Disconnected { link: LinkId, reason: String },
    /// The link's subscriptions are live, for the first time or again.
    Connected { link: LinkId },
    /// Publications of any of the link's channels may have been lost, between a `Disconnected` and a `Connected`.
    Resumed { link: LinkId },
    /// The broker refuses a channel that was live before; it is subscribed again later, with back-off.
    ChannelLost { channel: ChannelName, reason: String },
    /// A lost channel is live again; its publications since then are lost.
    ChannelResumed { channel: ChannelName },
    /// A lost channel was unsubscribed: it is not tried any more. May come after the channel was subscribed anew.
    ChannelGivenUp { channel: ChannelName },
    /// A payload that claims to be an envelope but has no known version; dropped.
    Malformed { channel: ChannelName },
}

/// Why a call to the broker did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// The request was never written to a server: it was not executed.
    #[error("the broker is not available: {0}")]
    Unavailable(String),
    /// The server answered with an error: the request was not executed.
    #[error("the broker refused: {0}")]
    Refused(String),
    /// The request was written and no answer came: it may or may not have been executed.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// The broker is closed; nothing was executed.
    #[error("the broker is closed")]
    Closed,
}
