//! The one way to publish, for clients and for the server API: checks the size, stamps where and when the
//! publication entered the cluster, and hands it to the broker.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use super::Metrics;
use crate::{
    broker::{Broker, BrokerError, INTERNAL_NAMESPACE, Recent},
    domain::{ChannelName, NodeId, Origin, Payload, Publication, StreamPosition},
};

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
    pub user: Option<String>,
}

/// Why a draft was not published.
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
    #[error("channel {0} is kept for the nodes themselves")]
    Reserved(ChannelName),
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
    metrics: Metrics,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sequence {
    last: u64,
    /// The last one did not reach the broker, and its publisher was told so: nobody is to miss it.
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
        Self { channel, payload, id: None, key: None, tags: Vec::new(), user: None }
    }
}

impl Publisher {
    /// Publishes for `node`, payloads of at most `max_bytes`.
    pub fn new(broker: Arc<dyn Broker>, node: NodeRun, max_bytes: usize, metrics: Metrics) -> Self {
        let sequences = Mutex::new(Recent::new(REMEMBERED_CHANNELS));
        Self(Arc::new(Shared { broker, node, max_bytes: max_bytes.into(), sequences, metrics }))
    }

    /// The node that it publishes for.
    pub fn node(&self) -> NodeRun {
        self.0.node
    }

    /// From now on payloads may have this many bytes.
    pub fn set_max_bytes(&self, max_bytes: usize) {
        self.0.max_bytes.store(max_bytes, Ordering::Relaxed);
    }

    /// Sends the draft, in the order of the calls; the future only waits for the broker's answer, and dropping it
    /// does not undo the call.
    ///
    /// # Errors
    /// Why it was not published.
    pub fn publish(
        &self,
        draft: Draft,
    ) -> impl Future<Output = Result<Option<StreamPosition>, PublishError>> + Send + use<> {
        let channel = draft.channel.clone();
        let sent = self.check(&draft).map(|()| self.send(draft));
        let shared = Arc::clone(&self.0);
        async move {
            let answer = match sent {
                Err(error) => Err(error),
                Ok(sent) => sent.await.map_err(|error| {
                    shared.failed(&channel);
                    PublishError::Broker(error)
                }),
            };
            shared.metrics.published.inc();
            if answer.is_err() {
                shared.metrics.errors.inc();
            }
            answer
        }
    }

    fn check(&self, draft: &Draft) -> Result<(), PublishError> {
        let (bytes, max) = (draft.payload.bytes().len(), self.0.max_bytes.load(Ordering::Relaxed));
        if bytes > max {
            return Err(PublishError::TooLarge { bytes, max });
        }
        if draft.channel.namespace() == INTERNAL_NAMESPACE {
            return Err(PublishError::Reserved(draft.channel.clone()));
        }
        Ok(())
    }

    fn send(&self, draft: Draft) -> crate::broker::Reply<Option<StreamPosition>> {
        let Draft { channel, payload, id, key, tags, user } = draft;
        let NodeRun { id: node, start: node_start } = self.0.node;
        let mut sequences = self.0.sequences.lock().unwrap_or_else(PoisonError::into_inner);
        let (previous_sequence, sequence) = sequences.entry(&channel, Sequence::default).next();
        let origin = Some(Origin { node, node_start, sequence, previous_sequence });
        let published_at_us = Some(now_us());
        self.0.metrics.sequences_forgotten.inc_by(sequences.take_forgotten());
        let publication =
            Publication { channel, payload, origin, position: None, published_at_us, id, key, tags, user };
        self.0.broker.publish(publication)
    }
}

impl Shared {
    fn failed(&self, channel: &ChannelName) {
        let mut sequences = self.sequences.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sequence) = sequences.get_mut(channel) {
            sequence.failed = true;
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
