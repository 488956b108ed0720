//! From the broker to the shards: delivery, known losses, and the proof that the way is open.
//!
//! One loop takes the broker's events in order, finds the shards of a channel in the `hub`, and mails each shard
//! one batch. A loss that it notices it tells: a hole in a node's sequence, a connection that was away, a mailbox
//! that was full. It waits for no shard. What the nodes say to each other goes to [`Peers`], a canary that comes
//! back to the [`canary`](self).

mod canary;
mod deliver;
mod echo;
mod gaps;
mod metrics;
mod peers;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

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
    peers::{Counts, Disconnected, NodeInfo, Peers, Survey, Who},
};
use crate::{
    broker::{Broker, BrokerError, BrokerEvent, Events, INTERNAL_NAMESPACE, LinkId},
    domain::{ChannelName, Publication},
    hub::Hub,
    shard::{Mailbox, Packer},
    work::{NodeRun, now_us},
};

/// Events handled before what they brought is mailed: what is there by then, and no more than this.
const BATCH: usize = 4_096;
/// Before the nodes' own channels are asked for again where the broker refuses them.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

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
    /// Payload bytes that a publication may have; asked for those that came from no node.
    pub max_message_bytes: Box<dyn Fn() -> usize + Send + Sync>,
    /// Host name that has the address of every node, if there is one.
    pub nodes_service: Option<String>,
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
    /// What the broker's rules have to grant it, so that it may speak with other nodes; for people.
    pub grant: Option<Arc<str>>,
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
    /// The broker refuses this node's publications, and brings those of others.
    pub receive_only: bool,
    /// The last canary came back in time: what is published here arrives here, by the way of all publications.
    pub verified: bool,
    /// When a canary last came back.
    pub verified_at: Option<Instant>,
    /// How long it took.
    pub round_trip: Option<Duration>,
    /// Why it is not connected or not verified, for people.
    pub reason: Option<Arc<str>>,
    /// There are other nodes, and none of them hears this one.
    pub unheard: bool,
}

/// Starts the bridge on the current runtime.
pub fn start(parts: Parts) -> Bridge {
    let Parts { node, broker, events, hub, mailboxes, packer, counts, .. } = parts;
    let Parts { max_message_bytes, nodes_service, metrics, shutdown, .. } = parts;
    let tasks = TaskTracker::new();
    let (notes, canary_notes) = mpsc::unbounded_channel();
    let id = node.run.id;
    let peers =
        Peers::new(node, Arc::clone(&broker), Arc::clone(&mailboxes), counts, tasks.clone(), metrics.clone());
    let (canary, health) = Canary::new(id, Arc::clone(&broker), peers.clone(), metrics.clone(), canary_notes);
    let canaries = canary.names();

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
    needed(peers.clone().run(nodes_service, shutdown.clone()).boxed());
    let deliver =
        Deliver::new(hub, Arc::clone(&broker), &mailboxes, packer, metrics.clone(), max_message_bytes);
    let pump = Pump {
        deliver,
        links: vec![Link::default(); broker.links().into()],
        canaries: names_of(&canaries),
        refused: HashSet::new(),
        peers: peers.clone(),
        notes: notes.clone(),
        metrics,
    };
    needed(until_shutdown(pump.run(events).boxed()).boxed());
    for (link, names) in canaries {
        tasks.spawn(until_shutdown(listen(Arc::clone(&broker), link, names, notes.clone()).boxed()));
    }
    tasks.close();
    Bridge { health, peers, tasks, died }
}

/// Which link a canary came over, by the name of its channel.
fn names_of(canaries: &[(LinkId, Vec<ChannelName>)]) -> HashMap<ChannelName, LinkId> {
    let names = |(link, names): &(LinkId, Vec<ChannelName>)| {
        let link = *link;
        names.clone().into_iter().map(move |name| (name, link))
    };
    canaries.iter().flat_map(names).collect()
}

/// Subscribes to the canary's channel, for as long as it takes: by the first of its names that the broker grants.
async fn listen(
    broker: Arc<dyn Broker>,
    link: LinkId,
    names: Vec<ChannelName>,
    notes: mpsc::UnboundedSender<(LinkId, Note)>,
) {
    let mut pause = Duration::from_millis(250);
    loop {
        for name in &names {
            match broker.subscribe(vec![name.clone()]).await.pop() {
                None => {
                    // Not taken only at the end, by a canary that is gone.
                    let _ = notes.send((link, Note::Listening(name.clone())));
                    return;
                }
                Some((channel, error @ BrokerError::Refused(_))) => {
                    tracing::warn!(%channel, %error, "the broker refuses a name of the canary's channel");
                    pause = (2 * pause).min(LONGEST_PAUSE);
                    let _ = notes.send((link, Note::NotListening(error.to_string().into())));
                }
                // The other name is no better.
                Some((_, error)) => {
                    let _ = notes.send((link, Note::NotListening(error.to_string().into())));
                    break;
                }
            }
        }
        sleep(pause).await;
    }
}

/// The loop.
struct Pump {
    deliver: Deliver,
    links: Vec<Link>,
    canaries: HashMap<ChannelName, LinkId>,
    /// Channels that the broker refuses, although they were live.
    refused: HashSet<ChannelName>,
    peers: Peers,
    notes: mpsc::UnboundedSender<(LinkId, Note)>,
    metrics: Metrics,
}

#[derive(Clone, Copy, Default)]
struct Link {
    is_connected: bool,
    was_connected: bool,
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
        // Of several that came at once, the first one tells the loss of all: this bounds what a flood costs.
        let mut unreadable = None;
        for event in batch {
            if !matches!(&event, BrokerEvent::Malformed { .. }) {
                unreadable = None;
            }
            match event {
                BrokerEvent::Publication(publication) => self.publication(publication, now_us),
                BrokerEvent::Void { channel, origin } => self.deliver.void(&channel, origin),
                BrokerEvent::Connected { link } => self.connected(link),
                BrokerEvent::Disconnected { link, reason } => self.disconnected(link, reason),
                BrokerEvent::Resumed { link } => self.deliver.resumed(link),
                BrokerEvent::ChannelLost { channel, reason } => self.channel_lost(channel, &reason),
                BrokerEvent::ChannelResumed { channel } => self.channel_resumed(&channel),
                BrokerEvent::ChannelGivenUp { channel } => self.channel_given_up(&channel),
                BrokerEvent::Malformed { channel } => {
                    self.metrics.malformed.inc();
                    if unreadable.as_ref() != Some(&channel) {
                        self.deliver.unreadable(&channel);
                        unreadable = Some(channel);
                    }
                }
            }
        }
        self.metrics.refused_channels.set(i64::try_from(self.refused.len()).unwrap_or(i64::MAX));
    }

    fn publication(&mut self, publication: Publication, now_us: u64) {
        if let Some(published) = publication.published_at_us {
            self.metrics.lag.record(now_us.saturating_sub(published));
        }
        if !self.refused.is_empty() && self.refused.contains(&publication.channel) {
            // It was told of an earlier stay of the channel at this node.
            self.channel_resumed(&publication.channel);
        }
        if publication.channel.namespace() != INTERNAL_NAMESPACE {
            self.deliver.publication(publication);
        } else if publication.origin.is_some() {
            // What nodes say for themselves has no origin. This went through a node for a client or a backend of another
            // cluster, whose prefix makes it a former name of this one.
            tracing::debug!(channel = %publication.channel, "skipped what no node said for itself");
        } else if let Some(link) = self.canaries.get(&publication.channel) {
            let _ = self.notes.send((*link, Note::Returned(publication.payload.bytes().clone())));
        } else {
            self.peers.received(&publication.channel, publication.payload.bytes());
        }
    }

    fn connected(&mut self, id: LinkId) {
        self.deliver.connected(id);
        let Some(link) = self.links.get_mut(usize::from(id.0)) else { return };
        let again = std::mem::replace(link, Link { is_connected: true, was_connected: true }).was_connected;
        if again {
            self.metrics.reconnects.inc();
        }
        self.peers.connected(again);
        self.metrics.connected.set(i64::from(self.links.iter().all(|link| link.is_connected)));
        let _ = self.notes.send((id, Note::Connected));
    }

    fn disconnected(&mut self, id: LinkId, reason: String) {
        self.deliver.disconnected(id);
        if let Some(link) = self.links.get_mut(usize::from(id.0)) {
            link.is_connected = false;
        }
        self.metrics.connected.set(0);
        self.peers.disconnected();
        let _ = self.notes.send((id, Note::Disconnected(reason.into())));
    }

    fn channel_lost(&mut self, channel: ChannelName, reason: &str) {
        tracing::warn!(%channel, reason, "the broker no longer delivers a channel, trying again with back-off");
        self.deliver.set_refused(&channel, true);
        if let Some(link) = self.canaries.get(&channel) {
            let _ = self.notes.send((*link, Note::NotListening(reason.into())));
        }
        self.refused.insert(channel);
    }

    fn channel_resumed(&mut self, channel: &ChannelName) {
        tracing::info!(%channel, "the broker delivers a channel again");
        self.deliver.set_refused(channel, false);
        if let Some(link) = self.canaries.get(channel) {
            let _ = self.notes.send((*link, Note::Listening(channel.clone())));
        }
        self.refused.remove(channel);
    }

    fn channel_given_up(&mut self, channel: &ChannelName) {
        self.deliver.given_up(channel);
        self.refused.remove(channel);
    }
}

#[cfg(test)]
mod tests;
