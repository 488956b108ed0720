//! The memory broker: one process. Several handles may join one [`Bus`]; each is then a node of its own.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    future::ready,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::Instant,
};

use super::{
    Broker, BrokerError, BrokerEvent, Events, IdempotencyKey, LinkId, NotSubscribed, PublishOptions,
    Published, Reply, Side,
};
use crate::domain::{ChannelName, Publication};

/// Batches that wait for the node. A node that is further behind loses publications, and is told so by
/// [`BrokerEvent::Resumed`] once it has caught up. Beyond any burst that one turn of the runtime can make.
const WAITING: usize = 65_536;
/// An idempotency key is remembered for this long, as in Redis, ...
const IDEMPOTENCY_WINDOW: Duration = Duration::from_secs(300);
/// ... unless so many came since: some 15 MB.
const IDEMPOTENCY_KEYS: usize = 100_000;
/// There is one way only.
const LINK: LinkId = LinkId(0);

/// What the handles of a memory broker share. Cheap to clone.
#[derive(Clone, Default)]
pub struct Bus(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    nodes: Vec<Node>,
    channels: HashMap<ChannelName, HashSet<usize>>,
    seen: Seen,
}

/// Idempotency keys of late, the oldest first.
#[derive(Default)]
struct Seen {
    keys: HashSet<(ChannelName, IdempotencyKey)>,
    order: VecDeque<(Instant, ChannelName, IdempotencyKey)>,
}

struct Node {
    events: mpsc::Sender<Vec<BrokerEvent>>,
    /// Publications were dropped; a task waits for room to say so, and until then more are dropped.
    behind: bool,
}

/// One node's handle.
struct Memory {
    bus: Bus,
    node: usize,
}

impl Bus {
    /// Joins as a node.
    pub fn join(&self) -> (Arc<dyn Broker>, Events) {
        self.join_with(WAITING)
    }

    fn join_with(&self, waiting: usize) -> (Arc<dyn Broker>, Events) {
        let (events, receiver) = mpsc::channel(waiting);
        events.try_send(vec![BrokerEvent::Connected { link: LINK }]).expect("a new queue has room");
        let mut state = self.lock();
        let node = state.nodes.len();
        state.nodes.push(Node { events, behind: false });
        (Arc::new(Memory { bus: self.clone(), node }), receiver)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes, unless the key was seen before; returns whether it was.
    fn publish(&self, publication: Publication, key: Option<IdempotencyKey>) -> bool {
        let mut state = self.lock();
        let State { nodes, channels, seen } = &mut *state;
        let channel = publication.channel.clone();
        let duplicate = key.is_some_and(|key| seen.is_repeated(&channel, key, Instant::now()));
        let event = match publication.origin {
            _ if !duplicate => BrokerEvent::Publication(publication),
            Some(origin) => BrokerEvent::Void { channel: channel.clone(), origin },
            None => return true,
        };
        for &at in channels.get(&channel).into_iter().flatten() {
            let node = &mut nodes[at];
            if !node.behind && node.is_full_with(&event) {
                node.behind = true;
                tokio::spawn(self.clone().tell_gap(at, node.events.clone()));
            }
        }
        duplicate
    }

    /// Waits until the node takes events again, then tells that some are missing.
    async fn tell_gap(self, node: usize, events: mpsc::Sender<Vec<BrokerEvent>>) {
        let Ok(place) = events.reserve().await else { return };
        let mut state = self.lock();
        place.send(vec![BrokerEvent::Resumed { link: LINK }]);
        state.nodes[node].behind = false;
    }
}

impl Node {
    fn is_full_with(&self, event: &BrokerEvent) -> bool {
        // A closed queue is a node that is gone: nobody is left to miss anything.
        matches!(self.events.try_send(vec![event.clone()]), Err(TrySendError::Full(_)))
    }
}

impl Seen {
    /// Returns `true` if the channel's key is remembered, and remembers it otherwise.
    fn is_repeated(&mut self, channel: &ChannelName, key: IdempotencyKey, now: Instant) -> bool {
        while self.order.front().is_some_and(|(since, ..)| now - *since >= IDEMPOTENCY_WINDOW)
            || self.order.len() >= IDEMPOTENCY_KEYS
        {
            if let Some((_, channel, key)) = self.order.pop_front() {
                self.keys.remove(&(channel, key));
            }
        }
        if !self.keys.insert((channel.clone(), key)) {
            return true;
        }
        self.order.push_back((now, channel.clone(), key));
        false
    }
}

impl Broker for Memory {
    fn subscribe(&self, channels: Vec<ChannelName>) -> Reply<Vec<NotSubscribed>> {
        let mut state = self.bus.lock();
        for channel in channels {
            state.channels.entry(channel).or_default().insert(self.node);
        }
        Box::pin(ready(Vec::new()))
    }

    fn unsubscribe(&self, channels: Vec<ChannelName>) {
        let mut state = self.bus.lock();
        for channel in channels {
            if let Some(nodes) = state.channels.get_mut(&channel) {
                nodes.remove(&self.node);
                if nodes.is_empty() {
                    state.channels.remove(&channel);
                }
            }
        }
    }

    fn publish(
        &self,
        publication: Publication,
        options: PublishOptions,
    ) -> Reply<Result<Published, BrokerError>> {
        let duplicate = self.bus.publish(publication, options.idempotency);
        Box::pin(ready(Ok(Published { position: None, duplicate })))
    }

    fn link(&self, _channel: &ChannelName) -> LinkId {
        LINK
    }

    fn links(&self) -> u16 {
        1
    }

    fn rebuild(&self, _link: LinkId, _side: Side, _reason: &str) {}
}

impl Drop for Memory {
    fn drop(&mut self) {
        let mut state = self.bus.lock();
        state.channels.retain(|_, nodes| {
            nodes.remove(&self.node);
            !nodes.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{broker::conformance, domain::Payload};

    #[tokio::test]
    async fn the_memory_broker_keeps_the_contract() {
        let bus = Bus::default();
        conformance::suite(async || bus.join()).await;
    }

    #[tokio::test]
    async fn a_node_that_is_too_far_behind_is_told_that_it_lost_publications() {
        let (broker, mut events) = Bus::default().join_with(2);
        let channel: ChannelName = "a".parse().unwrap();
        assert_eq!(broker.subscribe(vec![channel.clone()]).await, []);
        let publication = || Publication::bare(channel.clone(), Payload::Text(Bytes::new()));
        let publish = || broker.publish(publication(), PublishOptions::default());
        for _ in 0..3 {
            publish().await.unwrap();
        }
        let mut told = Vec::new();
        for _ in 0..3 {
            told.extend(events.recv().await.unwrap());
        }
        publish().await.unwrap();
        told.extend(events.recv().await.unwrap());
        assert!(
            matches!(
                told[..],
                [
                    BrokerEvent::Connected { .. },
                    BrokerEvent::Publication(_),
                    BrokerEvent::Resumed { .. },
                    BrokerEvent::Publication(_)
                ]
            ),
            "{told:?}"
        );
    }
}
