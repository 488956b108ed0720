//! From the broker to the shards: delivery, known losses, and the proof that the way is open.
//!
//! One loop takes the broker's events in order, finds the shards of a channel in the `hub`, and mails each shard
//! one batch. A loss that it notices it tells: a hole in a node's sequence, a connection that was away, a mailbox
//! that was full. It waits for no shard. What the nodes say to each other goes to [`Peers`], a canary that comes
//! back to the [`canary`](self).

mod canary;
mod deliver;
mod gaps;
mod metrics;
mod peers;

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    canary::{Canary, Note},
    deliver::Deliver,
};
pub use self::{
    metrics::Metrics,
    peers::{Counts, NodeInfo, Peers, Who},
};
use crate::{
    broker::{Broker, BrokerEvent, Events, INTERNAL_NAMESPACE},
    domain::{ChannelName, Publication},
    hub::Hub,
    shard::{Mailbox, Packer},
    work::{NodeRun, now_us},
};

/// Events handled before what they brought is mailed: what is there by then, and no more than this.
const BATCH: usize = 4_096;

/// What `app` joins by a bridge.
pub struct Parts {
    /// This node.
    pub node: Node,
    /// What carries publications between nodes.
    pub broker: Arc<dyn Broker>,
    /// What it tells.
    pub events: Events,
    /// Which shard wants which channel.
    pub hub: Hub,
    /// The shards, in their order.
    pub mailboxes: Arc<[Mailbox]>,
    /// Compresses what several shards would.
    pub packer: Packer,
    /// What this node tells the others of itself.
    pub counts: Box<dyn Fn() -> Counts + Send + Sync>,
    /// Counters and gauges.
    pub metrics: Metrics,
    /// Ends the bridge; the other nodes are told that this one leaves.
    pub shutdown: CancellationToken,
}

/// This node, as the others know it.
#[derive(Clone, Debug)]
pub struct Node {
    /// This run of it.
    pub run: NodeRun,
    /// Its name: the pod's.
    pub name: Arc<str>,
    /// Version of this program.
    pub version: Arc<str>,
}

/// A running bridge.
pub struct Bridge {
    /// Whether publications get through.
    pub health: watch::Receiver<BrokerHealth>,
    /// The other nodes.
    pub peers: Peers,
    /// Ends after [`Parts::shutdown`].
    pub tasks: TaskTracker,
    /// Cancelled when a task that the bridge cannot do without has ended: before the shutdown, a failure.
    pub died: CancellationToken,
}

/// Whether publications get through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrokerHealth {
    /// All subscriptions are live.
    pub connected: bool,
    /// The last canary came back in time: what is published here arrives here, by the way of all publications.
    pub verified: bool,
    /// When a canary last came back.
    pub verified_at: Option<Instant>,
    /// How long it took.
    pub round_trip: Option<Duration>,
    /// Why it is not connected or not verified, for people.
    pub reason: Option<Arc<str>>,
}

/// Starts the bridge on the current runtime.
pub fn start(parts: Parts) -> Bridge {
    let Parts { node, broker, events, hub, mailboxes, packer, counts, metrics, shutdown } = parts;
    let tasks = TaskTracker::new();
    let (notes, canary_notes) = mpsc::unbounded_channel();
    let (canary, health) = Canary::new(node.run.id, Arc::clone(&broker), metrics.clone(), canary_notes);
    let channels = Internal { canary: canary.channel().clone() };
    let peers = Peers::new(node, Arc::clone(&broker), Arc::clone(&mailboxes), counts, tasks.clone());
    let internal = vec![channels.canary.clone(), peers::nodes_channel(), peers.own_channel().clone()];

    let died = CancellationToken::new();
    let needed = |task: BoxFuture<'static, ()>| {
        // Dropped by a panic too.
        let end = died.clone().drop_guard();
        tasks.spawn(async move {
            task.await;
            drop(end);
        });
    };
    let until_shutdown = |task| shutdown.clone().run_until_cancelled_owned(task).map(drop);
    needed(until_shutdown(canary.run().boxed()).boxed());
    needed(peers.clone().announce(shutdown.clone()).boxed());
    let deliver = Deliver::new(hub, &mailboxes, packer, metrics.clone());
    let pump = Pump {
        deliver,
        channels,
        peers: peers.clone(),
        notes: notes.clone(),
        metrics,
        was_connected: false,
        lost: false,
    };
    needed(until_shutdown(pump.run(events).boxed()).boxed());
    tasks.spawn(until_shutdown(listen(broker, internal, notes, peers.clone()).boxed()));
    tasks.close();
    Bridge { health, peers, tasks, died }
}

/// Subscribes to the nodes' own channels, for as long as it takes.
async fn listen(
    broker: Arc<dyn Broker>,
    channels: Vec<ChannelName>,
    notes: mpsc::UnboundedSender<Note>,
    peers: Peers,
) {
    while let Err(error) = broker.subscribe(channels.clone()).await {
        tracing::debug!(%error, "failed to subscribe to the nodes' channels");
        sleep(Duration::from_millis(250)).await;
    }
    peers.say_hello();
    // Refused only at the end, by a canary that is gone.
    let _ = notes.send(Note::Listening);
}

/// The loop.
struct Pump {
    deliver: Deliver,
    channels: Internal,
    peers: Peers,
    notes: mpsc::UnboundedSender<Note>,
    metrics: Metrics,
    was_connected: bool,
    /// The connection was lost and is not back.
    lost: bool,
}

struct Internal {
    canary: ChannelName,
}

impl Pump {
    async fn run(mut self, mut events: Events) {
        while let Some(batch) = events.recv().await {
            let mut handled = batch.len();
            self.handle(batch);
            while handled < BATCH
                && let Ok(batch) = events.try_recv()
            {
                handled += batch.len();
                self.handle(batch);
            }
            self.deliver.flush();
        }
    }

    fn handle(&mut self, batch: Vec<BrokerEvent>) {
        let now_us = now_us();
        for event in batch {
            match event {
                BrokerEvent::Publication(publication) => self.publication(publication, now_us),
                BrokerEvent::Connected => self.connected(),
                BrokerEvent::Disconnected { reason } => self.disconnected(reason),
                BrokerEvent::Resumed => self.deliver.resumed(),
                BrokerEvent::Malformed { channel } => {
                    self.metrics.malformed.inc();
                    tracing::debug!(%channel, "dropped a publication of an unknown envelope version");
                }
            }
        }
    }

    fn publication(&mut self, publication: Publication, now_us: u64) {
        if let Some(published) = publication.published_at_us {
            self.metrics.lag.record(now_us.saturating_sub(published));
        }
        if publication.channel.namespace() != INTERNAL_NAMESPACE {
            self.deliver.publication(publication);
        } else if publication.channel == self.channels.canary {
            let _ = self.notes.send(Note::Returned(publication.payload.bytes().clone()));
        } else {
            self.peers.received(publication.payload.bytes());
        }
    }

    fn connected(&mut self) {
        if std::mem::take(&mut self.lost) {
            self.metrics.reconnects.inc();
            self.peers.say_hello();
        }
        self.was_connected = true;
        self.metrics.connected.set(1);
        let _ = self.notes.send(Note::Connected);
    }

    fn disconnected(&mut self, reason: String) {
        self.lost = self.was_connected;
        self.metrics.connected.set(0);
        let _ = self.notes.send(Note::Disconnected(reason.into()));
    }
}

#[cfg(test)]
mod tests;
