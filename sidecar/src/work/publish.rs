//! The one way to publish, for clients and for the server API: checks the size, stamps where and when the
//! publication entered the cluster, and hands it to the broker.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use sha2::{Digest, Sha256};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::{
    Metrics,
    keys::{Counted, Keys, TooMany},
};
use crate::{
    broker::{
        Broker, BrokerError, INTERNAL_NAMESPACE, IdempotencyKey, PublishOptions, Published, Recent, Reply,
    },
    domain::{ChannelName, ConnectionId, NodeId, Origin, Payload, Publication, label_bytes},
};

/// Bytes of publications of one [`Lane`] that may wait for the broker, at most; beyond it their publishers wait.
const MAX_LANE_BYTES: usize = 32 << 20;
/// The same at least, however little memory there is.
const MIN_LANE_BYTES: usize = 1 << 20;
/// What a waiting publication holds beside its channel, payload and labels.
const OVERHEAD: usize = 256;

/// Channels whose last sequence is remembered; of the order of what a node sends in a minute, in a few MB.
const REMEMBERED_CHANNELS: usize = 100_000;

/// This run of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRun {
    /// Its id.
    pub id: NodeId,
    /// When it began, in Unix milliseconds.
    pub start: u64,
}

/// What is to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// Where to.
    pub channel: ChannelName,
    /// What.
    pub payload: Payload,
    /// Name that the publisher gave it.
    pub id: Option<String>,
    /// What it is about; where a namespace conflates, slow clients receive the latest of each key.
    pub key: Option<Box<str>>,
    /// Free labels.
    pub tags: Vec<(String, String)>,
    /// User whose client publishes.
    pub user: Option<Arc<str>>,
    /// That client's connection, where the namespace exposes publishers.
    pub connection: Option<ConnectionId>,
    /// Publishes at most once per key, channel and publisher: `user`, or the server API.
    pub idempotency_key: Option<String>,
}

/// Publishers that share the memory for publications that wait for the broker. What one lane has does not keep the
/// other waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Backends, by the server API.
    Api,
    /// Clients.
    Clients,
}

/// A draft's share of the memory of its lane.
#[derive(Debug)]
pub struct Room(OwnedSemaphorePermit);

/// Error of a publication.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// More than the settings allow.
    #[error("message has {bytes} bytes, at most {max} are allowed (hub.maxMessageBytes)")]
    TooLarge {
        /// What the message has.
        bytes: usize,
        /// What the settings allow.
        max: usize,
    },
    /// The channel belongs to the nodes.
    #[error("channel {0} is reserved for internal use by the nodes")]
    Reserved(ChannelName),
    /// The broker would have to remember more idempotency keys than this node may have there.
    #[error("too many idempotency keys within five minutes on this node, try again later")]
    TooManyKeys {
        /// Keys that the publisher may have at present.
        limit: u32,
    },
    /// The broker did not take it.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// Publishes for this node. Cheap to clone; all clones count one sequence a channel.
#[derive(Clone)]
pub struct Publisher(Arc<Shared>);

struct Shared {
    broker: Arc<dyn Broker>,
    node: NodeRun,
    max_bytes: AtomicUsize,
    /// Held while the broker is called, so that sequences and calls have one order.
    sequences: Mutex<Recent<ChannelName, Sequence>>,
    keys: Mutex<Keys>,
    /// Publications that the broker refused.
    refused: AtomicU64,
    lane_bytes: usize,
    api: Arc<Semaphore>,
    clients: Arc<Semaphore>,
    metrics: Metrics,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sequence {
    last: u64,
    /// The last one was not published, and its publisher was told so: nobody is to miss it.
    failed: bool,
}

impl NodeRun {
    /// A new id, from now on.
    pub fn begin() -> Self {
        // 0 in an envelope means "no node".
        Self { id: NodeId(rand::random::<u64>().max(1)), start: now_us() / 1_000 }
    }
}

impl Draft {
    /// A payload and where it goes.
    pub fn new(channel: ChannelName, payload: Payload) -> Self {
        let (id, key, tags, user, connection, idempotency_key) = (None, None, Vec::new(), None, None, None);
        Self { channel, payload, id, key, tags, user, connection, idempotency_key }
    }

    /// Bytes that it holds while it waits.
    fn weight(&self) -> usize {
        let Self { channel, payload, id, key, tags, user, connection: _, idempotency_key } = self;
        let labels = [id.as_deref(), key.as_deref(), user.as_deref(), idempotency_key.as_deref()];
        OVERHEAD + channel.as_str().len() + payload.bytes().len() + label_bytes(tags, labels)
    }

    fn idempotency(&self) -> Option<IdempotencyKey> {
        let key = self.idempotency_key.as_deref()?;
        let mut hash = Sha256::new();
        match &self.user {
            None => hash.update(b"api"),
            Some(user) => {
                hash.update(b"user");
                hash.update((user.len() as u64).to_be_bytes());
                hash.update(user.as_bytes());
            }
        }
        hash.update(key.as_bytes());
        let mut digest = [0; 16];
        digest.copy_from_slice(&hash.finalize()[..16]);
        Some(IdempotencyKey(digest))
    }
}

impl Publisher {
    /// Publishes for `node`, payloads of at most `max_bytes`. What waits for the broker has a sixteenth of `memory`,
    /// in each lane, where the process may have no more than that.
    pub fn new(
        broker: Arc<dyn Broker>,
        node: NodeRun,
        max_bytes: usize,
        memory: Option<u64>,
        metrics: Metrics,
    ) -> Self {
        let sequences = Mutex::new(Recent::new(REMEMBERED_CHANNELS));
        let share =
            memory.map_or(MAX_LANE_BYTES, |memory| usize::try_from(memory / 16).unwrap_or(usize::MAX));
        let lane_bytes = share.clamp(MIN_LANE_BYTES, MAX_LANE_BYTES);
        let lane = || Arc::new(Semaphore::new(lane_bytes));
        let (api, clients, keys) = (lane(), lane(), Mutex::new(Keys::new(Instant::now())));
        let max_bytes = max_bytes.into();
        let refused = AtomicU64::new(0);
        Self(Arc::new(Shared {
            broker,
            node,
            max_bytes,
            sequences,
            keys,
            refused,
            lane_bytes,
            api,
            clients,
            metrics,
        }))
    }

    /// The node that it publishes for.
    pub fn node(&self) -> NodeRun {
        self.0.node
    }

    /// From now on payloads may have this many bytes.
    pub fn set_max_bytes(&self, max_bytes: usize) {
        self.0.max_bytes.store(max_bytes, Ordering::Relaxed);
    }

    /// How many bytes a payload may have now.
    pub fn max_bytes(&self) -> usize {
        self.0.max_bytes.load(Ordering::Relaxed)
    }

    /// Waits until the lane has room for the draft; the waiting are served in their order. Holds nothing while it
    /// waits, and never waits for ever: a broker that takes nothing fails what it has.
    pub fn room(&self, lane: Lane, draft: &Draft) -> impl Future<Output = Room> + Send + use<> {
        let lane = match lane {
            Lane::Api => &self.0.api,
            Lane::Clients => &self.0.clients,
        };
        let lane = Arc::clone(lane);
        // A draft that is larger than the lane has it for itself.
        let weight = u32::try_from(draft.weight().min(self.0.lane_bytes)).unwrap_or(u32::MAX);
        async move { Room(lane.acquire_many_owned(weight).await.expect("a lane is never closed")) }
    }

    /// Sends the draft, in the order of the calls; the future only waits for the broker's answer, and dropping it
    /// does not undo the call.
    ///
    /// # Errors
    /// Why it was not published, or that this is unknown.
    pub fn publish(
        &self,
        draft: Draft,
        Room(room): Room,
    ) -> impl Future<Output = Result<Published, PublishError>> + Send + use<> {
        let shared = Arc::clone(&self.0);
        let sent = self.check(&draft).map(|counted| {
            let (channel, user) = (draft.channel.clone(), draft.user.clone());
            let (sequence, sent) = self.send(draft, room);
            // Made before the future is first polled, for it may be dropped before that.
            let awaited =
                Awaited { shared: Arc::clone(&self.0), channel, user, counted, sequence, over: false };
            (awaited, sent)
        });
        async move {
            let answer = match sent {
                Err(error) => Err(error),
                Ok((awaited, sent)) => awaited.judge(sent.await),
            };
            shared.count(&answer);
            answer
        }
    }

    /// Checks what is to be published, and counts its idempotency key, if it has one.
    fn check(&self, draft: &Draft) -> Result<Option<Counted>, PublishError> {
        let (bytes, max) = (draft.payload.bytes().len(), self.0.max_bytes.load(Ordering::Relaxed));
        if bytes > max {
            return Err(PublishError::TooLarge { bytes, max });
        }
        if draft.channel.namespace() == INTERNAL_NAMESPACE {
            return Err(PublishError::Reserved(draft.channel.clone()));
        }
        if draft.idempotency_key.is_none() {
            return Ok(None);
        }
        let mut keys = self.0.keys.lock().unwrap_or_else(PoisonError::into_inner);
        match keys.take(draft.user.as_deref(), Instant::now()) {
            Ok(counted) => Ok(Some(counted)),
            Err(TooMany { limit }) => Err(PublishError::TooManyKeys { limit }),
        }
    }

    /// The publication's number on its channel, and its outcome, later.
    fn send(&self, draft: Draft, room: OwnedSemaphorePermit) -> (u64, Reply<Result<Published, BrokerError>>) {
        let keyed = draft.idempotency_key.is_some();
        let options = PublishOptions { idempotency: draft.idempotency(), room: Some(room) };
        let Draft { channel, payload, id, key, tags, user, connection, idempotency_key: _ } = draft;
        let NodeRun { id: node, start: node_start } = self.0.node;
        let mut sequences = self.0.sequences.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = sequences.entry(&channel, Sequence::default);
        let (previous_sequence, sequence) = entry.next();
        // The broker may refuse the key and take the next publication, which is not to name this one before it is certain.
        entry.failed = keyed;
        let origin = Some(Origin { node, node_start, sequence, previous_sequence });
        let published_at_us = Some(now_us());
        self.0.metrics.sequences_forgotten.inc_by(sequences.take_forgotten());
        let publication = Publication {
            channel,
            payload,
            origin,
            position: None,
            published_at_us,
            id,
            key,
            tags,
            user,
            connection,
        };
        (sequence, self.0.broker.publish(publication, options))
    }
}

/// A publication whose outcome is not known yet. Dropped before that, it counts as failed on its channel, so that the next
/// publication does not name it.
struct Awaited {
    shared: Arc<Shared>,
    channel: ChannelName,
    user: Option<Arc<str>>,
    counted: Option<Counted>,
    sequence: u64,
    over: bool,
}

impl Awaited {
    /// Keeps the sequence of the channel, and the count of keys, in line with what became of the publication.
    fn judge(mut self, outcome: Result<Published, BrokerError>) -> Result<Published, PublishError> {
        self.over = true;
        let Self { shared, channel, .. } = &self;
        match &outcome {
            // Should an unknown one be lost, subscribers miss it.
            Ok(_) | Err(BrokerError::Unknown(_)) => shared.sent(channel, self.sequence),
            Err(BrokerError::Refused(text)) => {
                let refused = shared.refused.fetch_add(1, Ordering::Relaxed) + 1;
                // All are counted, every nth is told.
                if refused.is_power_of_two() || refused.is_multiple_of(10_000) {
                    tracing::warn!(%channel, error = %text, refused, "the broker rejects publications");
                }
                shared.failed(channel);
            }
            Err(BrokerError::Unavailable(_) | BrokerError::Closed) => shared.failed(channel),
        }
        // The broker remembers the key of a publication that it took, or may have taken, and of a repetition already.
        let is_remembered =
            matches!(outcome, Ok(Published { duplicate: false, .. }) | Err(BrokerError::Unknown(_)));
        if let Some(counted) = self.counted.filter(|_| !is_remembered) {
            let mut keys = shared.keys.lock().unwrap_or_else(PoisonError::into_inner);
            keys.give_back(self.user.as_deref(), counted);
        }
        outcome.map_err(PublishError::Broker)
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        if !self.over {
            self.shared.failed(&self.channel);
        }
    }
}

impl Shared {
    /// This number was used, so that the next publication may name it, if none was sent since.
    fn sent(&self, channel: &ChannelName, number: u64) {
        let mut sequences = self.sequences.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sequence) = sequences.get_mut(channel).filter(|sequence| sequence.last == number) {
            sequence.failed = false;
        }
    }

    fn failed(&self, channel: &ChannelName) {
        let mut sequences = self.sequences.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sequence) = sequences.get_mut(channel) {
            sequence.failed = true;
        }
    }

    fn count(&self, answer: &Result<Published, PublishError>) {
        let Metrics { published, errors, unknown, duplicates, .. } = &self.metrics;
        published.inc();
        match answer {
            Ok(Published { duplicate: false, .. }) => {}
            Ok(_) => drop(duplicates.inc()),
            Err(PublishError::Broker(BrokerError::Unknown(_))) => drop(unknown.inc()),
            Err(_) => drop(errors.inc()),
        }
    }
}

impl Sequence {
    /// The number before the next publication, 0 where it is not to be relied on, and the publication's own.
    fn next(&mut self) -> (u64, u64) {
        let previous = if self.failed { 0 } else { self.last };
        *self = Self { last: self.last + 1, failed: false };
        (previous, self.last)
    }
}

/// Now, in Unix microseconds; 0 for a clock before 1970.
pub(crate) fn now_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
