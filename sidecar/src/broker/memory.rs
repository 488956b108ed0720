//! The memory broker: one process. Several handles may join one [`Bus`]; each is then a node of its own.

use std::{
    collections::{HashMap, HashSet},
    future::ready,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::mpsc::{self, error::TrySendError};

use super::{Broker, BrokerError, BrokerEvent, Events, Reply};
use crate::domain::{ChannelName, Publication, StreamPosition};

/// Batches that wait for the node. A node that is further behind loses publications, and is told so by
/// [`BrokerEvent::Resumed`] once it has caught up. Beyond any burst that one turn of the runtime can make.
const WAITING: usize = 65_536;

/// What the handles of a memory broker share. Cheap to clone.
#[derive(Clone, Default)]
pub struct Bus(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    nodes: Vec<Node>,
    channels: HashMap<ChannelName, HashSet<usize>>,
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
        events.try_send(vec![BrokerEvent::Connected]).expect("a new queue has room");
        let mut state = self.lock();
        let node = state.nodes.len();
        state.nodes.push(Node { events, behind: false });
        (Arc::new(Memory { bus: self.clone(), node }), receiver)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deliver(&self, publication: &Publication) {
        let mut state = self.lock();
        let State { nodes, channels } = &mut *state;
        for &at in channels.get(&publication.channel).into_iter().flatten() {
            let node = &mut nodes[at];
            if !node.behind && node.is_full_with(publication) {
                node.behind = true;
                tokio::spawn(self.clone().tell_gap(at, node.events.clone()));
            }
        }
    }

    /// Waits until the node takes events again, then tells that some are missing.
    async fn tell_gap(self, node: usize, events: mpsc::Sender<Vec<BrokerEvent>>) {
        let Ok(place) = events.reserve().await else { return };
        let mut state = self.lock();
        place.send(vec![BrokerEvent::Resumed]);
        state.nodes[node].behind = false;
    }
}

impl Node {
    fn is_full_with(&self, publication: &Publication) -> bool {
        let event = vec![BrokerEvent::Publication(publication.clone())];
        // A closed queue is a node that is gone: nobody is left to miss anything.
        matches!(self.events.try_send(event), Err(TrySendError::Full(_)))
    }
}

impl Broker for Memory {
    fn subscribe(&self, channels: Vec<ChannelName>) -> Reply<()> {
        let mut state = self.bus.lock();
        for channel in channels {
            state.channels.entry(channel).or_default().insert(self.node);
        }
        Box::pin(ready(Ok(())))
    }

    fn unsubscribe(&self, channels: Vec<ChannelName>) -> Reply<()> {
        let mut state = self.bus.lock();
        for channel in channels {
            if let Some(nodes) = state.channels.get_mut(&channel) {
                nodes.remove(&self.node);
                if nodes.is_empty() {
                    state.channels.remove(&channel);
                }
            }
        }
        Box::pin(ready(Ok(())))
    }

    fn publish(&self, publication: Publication) -> Reply<Option<StreamPosition>> {
        self.bus.deliver(&publication);
        Box::pin(ready(Ok::<_, BrokerError>(None)))
    }

    fn rebuild(&self, _reason: &str) {}
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
        broker.subscribe(vec![channel.clone()]).await.unwrap();
        let publish = || broker.publish(Publication::bare(channel.clone(), Payload::Text(Bytes::new())));
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
                    BrokerEvent::Connected,
                    BrokerEvent::Publication(_),
                    BrokerEvent::Resumed,
                    BrokerEvent::Publication(_)
                ]
            ),
            "{told:?}"
        );
    }
}
