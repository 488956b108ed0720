//! The other nodes: who is there, and what is asked of all of them. Everything goes over the broker, on channels
//! of the nodes' own namespace; with the broker away a node knows only itself.
//!
//! A message of an unknown kind is skipped, so that nodes of two versions get along.

mod message;
mod requests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use rand::RngExt;
use sidecar_config::Pattern;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    message::{Announcement, Answer, Message, Question},
    requests::Requests,
};
use super::Node;
use crate::{
    broker::{Broker, BrokerError, INTERNAL_NAMESPACE, PublishOptions},
    domain::{ChannelName, CloseReason, ConnectionId, NodeId, Payload, Publication},
    shard::{Mail, Mailbox},
    work::now_us,
};

/// Between announcements; jittered, or nodes that started together would speak together for ever.
const ANNOUNCE: Duration = Duration::from_secs(3);
/// Hellos that come within it are answered by one announcement.
const HELLO: Duration = Duration::from_millis(200);
/// A node that was silent for this long is gone: three announcements, and some.
const EXPIRY: Duration = Duration::from_secs(10);
/// What a node has not answered by then is not waited for.
const ANSWER: Duration = Duration::from_secs(2);

/// The cluster as this node sees it. Cheap to clone.
#[derive(Clone)]
pub struct Peers(Arc<Shared>);

struct Shared {
    node: Node,
    own: ChannelName,
    broker: Arc<dyn Broker>,
    mailboxes: Arc<[Mailbox]>,
    counts: Box<dyn Fn() -> Counts + Send + Sync>,
    others: Mutex<HashMap<NodeId, (Announcement, Instant)>>,
    requests: Requests,
    tasks: TaskTracker,
    /// This node has to announce itself before its turn, because it is new or was away...
    hello: AtomicBool,
    /// ... or because another one is.
    turn: Notify,
}

/// What a node tells of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Open connections.
    pub connections: u32,
    /// Different users among them.
    pub users: u32,
    /// Channels with subscribers.
    pub channels: u32,
}

/// One node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// This run of it.
    pub id: NodeId,
    /// Its name: the pod's.
    pub name: String,
    /// Version of its program.
    pub version: String,
    /// How long it runs.
    pub uptime: Duration,
    /// What it holds.
    pub counts: Counts,
}

/// Whose connections.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "a variant's text speaks of its fields")]
pub enum Who {
    /// All connections of a user.
    User(Arc<str>),
    /// One connection of one node, if it is the user's where one is named.
    Client { node: NodeId, connection: ConnectionId, user: Option<Arc<str>> },
}

/// Where every node listens.
pub(super) fn nodes_channel() -> ChannelName {
    format!("{INTERNAL_NAMESPACE}:nodes").parse().expect("a good name")
}

fn node_channel(node: NodeId) -> ChannelName {
    format!("{INTERNAL_NAMESPACE}:node:{node}").parse().expect("a good name")
}

// === impl Peers: what others ask ===

impl Peers {
    /// All live nodes, this one included, by name.
    pub fn nodes(&self) -> Vec<NodeInfo> {
        let now = now_us() / 1_000;
        let mut nodes: Vec<_> =
            self.others().values().map(|(announcement, _)| announcement.info(now)).collect();
        nodes.push(self.announcement(false).info(now));
        nodes.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        nodes
    }

    /// Closes connections wherever they are; how many were closed by the nodes that answered in time.
    pub async fn disconnect(&self, who: Who, reason: CloseReason) -> usize {
        let target = match &who {
            Who::User(_) => None,
            Who::Client { node, .. } => Some(*node),
        };
        let answers = self.ask(Question::disconnect(who, reason), target).await;
        answers.into_iter().map(|answer| answer.closed).sum()
    }

    /// Channels with subscribers, of all nodes that answer in time, and how many subscribers each has.
    pub async fn channels(&self, pattern: Option<Pattern>) -> BTreeMap<ChannelName, u32> {
        let question = Question::Channels { pattern: pattern.map(|pattern| pattern.to_string()) };
        let mut channels = BTreeMap::new();
        for (name, count) in self.ask(question, None).await.into_iter().flat_map(|answer| answer.channels) {
            // A name that is none can only come from a broken node.
            if let Ok(name) = name.parse() {
                *channels.entry(name).or_default() += count;
            }
        }
        channels
    }

    /// Asks every node, or only `target`; the answers that came in time, this node's own included.
    async fn ask(&self, question: Question, target: Option<NodeId>) -> Vec<Answer> {
        let own = self.id();
        let asks_me = target.is_none_or(|target| target == own);
        let mut asked: Vec<_> = self.others().keys().copied().collect();
        asked.retain(|node| target.is_none_or(|target| target == *node));
        if asked.is_empty() {
            return if asks_me { vec![self.answer_here(&question).await] } else { Vec::new() };
        }
        let request = self.0.requests.open(asked);
        let to = target.map_or_else(nodes_channel, node_channel);
        let ask = Message::Ask { from: own.0, request: request.number(), question: question.clone() };
        let asked = self.publish(to, &ask);
        let here = async { if asks_me { Some(self.answer_here(&question).await) } else { None } };
        let there = async {
            match asked.await {
                Ok(()) => request.answers(ANSWER).await,
                Err(error) => {
                    tracing::warn!(%error, "the other nodes could not be asked");
                    Vec::new()
                }
            }
        };
        let (here, there) = tokio::join!(here, there);
        here.into_iter().chain(there).collect()
    }
}

// === impl Peers: what the bridge calls ===

impl Peers {
    pub(super) fn new(
        node: Node,
        broker: Arc<dyn Broker>,
        mailboxes: Arc<[Mailbox]>,
        counts: Box<dyn Fn() -> Counts + Send + Sync>,
        tasks: TaskTracker,
    ) -> Self {
        let (own, others, requests) = (node_channel(node.run.id), Mutex::default(), Requests::default());
        let (hello, turn) = (AtomicBool::new(true), Notify::new());
        Self(Arc::new(Shared { node, own, broker, mailboxes, counts, others, requests, tasks, hello, turn }))
    }

    /// Where answers to this node come.
    pub(super) fn own_channel(&self) -> &ChannelName {
        &self.0.own
    }

    /// Another node says something.
    pub(super) fn received(&self, bytes: &Bytes) {
        let message = match serde_json::from_slice::<Message>(bytes) {
            Ok(message) if message.from() != self.id() => message,
            Ok(_own) => return,
            Err(error) => return tracing::debug!(%error, "skipped a node's message of an unknown kind"),
        };
        match message {
            Message::Node(announcement) => self.met(announcement),
            Message::Leave { from } => drop(self.others().remove(&NodeId(from))),
            Message::Ask { from, request, question } => {
                let peers = self.clone();
                self.0.tasks.spawn(async move { peers.reply(NodeId(from), request, &question).await });
            }
            Message::Reply { from, request, answer, more } => {
                self.0.requests.answered(request, NodeId(from), answer, more);
            }
        }
    }

    /// Tells the others that this node is there, and asks them to do the same, soon.
    pub(super) fn say_hello(&self) {
        self.0.hello.store(true, Ordering::Relaxed);
        self.0.turn.notify_one();
    }

    /// Announces this node until the end, then that it leaves.
    pub(super) async fn announce(self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(self.turn()).await.is_some() {
            let hello = self.0.hello.swap(false, Ordering::Relaxed);
            let announced = self.publish(nodes_channel(), &Message::Node(self.announcement(hello))).await;
            if hello && announced.is_err() {
                // Said again at the next turn, which a new connection brings forward.
                self.0.hello.store(true, Ordering::Relaxed);
            }
        }
        let leave = self.publish(nodes_channel(), &Message::Leave { from: self.id().0 });
        // The others notice by themselves, later, where the broker is away.
        let _ = tokio::time::timeout(Duration::from_secs(1), leave).await;
    }

    /// Waits for the next announcement's time. All who say hello meanwhile share one answer, or a cluster whose
    /// Redis comes back would answer each node's hello by each node.
    async fn turn(&self) {
        let early = async {
            self.0.turn.notified().await;
            let pause = rand::rng().random_range(Duration::ZERO..HELLO);
            sleep(pause).await;
        };
        tokio::select! {
            () = sleep(jittered(ANNOUNCE)) => {}
            () = early => {}
        }
    }
}

// === impl Peers: private ===

impl Peers {
    fn id(&self) -> NodeId {
        self.0.node.run.id
    }

    /// The live ones; what has expired is forgotten first.
    fn others(&self) -> MutexGuard<'_, HashMap<NodeId, (Announcement, Instant)>> {
        let mut others = self.0.others.lock().unwrap_or_else(PoisonError::into_inner);
        others.retain(|_, (_, seen)| seen.elapsed() < EXPIRY);
        others
    }

    fn met(&self, announcement: Announcement) {
        let hello = announcement.hello;
        self.others().insert(NodeId(announcement.from), (announcement, Instant::now()));
        if hello {
            self.0.turn.notify_one();
        }
    }

    fn announcement(&self, hello: bool) -> Announcement {
        let Node { run, name, version } = &self.0.node;
        Announcement::new(*run, name, version, (self.0.counts)(), hello)
    }

    fn publish(
        &self,
        channel: ChannelName,
        message: &Message,
    ) -> impl Future<Output = Result<(), BrokerError>> + use<> {
        let payload = serde_json::to_vec(message).expect("messages are plain data");
        let publication = Publication::bare(channel, Payload::Text(payload.into()));
        let published = self.0.broker.publish(publication, PublishOptions::default());
        async { published.await.map(drop) }
    }

    async fn reply(&self, to: NodeId, request: u64, question: &Question) {
        let mut parts = self.answer_here(question).await.into_parts().peekable();
        while let Some(answer) = parts.next() {
            let more = parts.peek().is_some();
            let reply = Message::Reply { from: self.id().0, request, answer, more };
            if let Err(error) = self.publish(node_channel(to), &reply).await {
                // The node that asks waits no longer than its limit.
                return tracing::debug!(%error, "failed to answer another node");
            }
        }
    }

    /// This node's own answer.
    async fn answer_here(&self, question: &Question) -> Answer {
        match question {
            Question::Disconnect { .. } => {
                Answer { closed: self.close_here(question).await, ..Answer::default() }
            }
            Question::Channels { pattern } => {
                let pattern = pattern.as_ref().and_then(|pattern| pattern.parse::<Pattern>().ok());
                Answer { channels: self.channels_here(pattern.as_ref()).await, ..Answer::default() }
            }
        }
    }

    async fn close_here(&self, question: &Question) -> usize {
        let Some((connection, user, reason)) = question.whom() else { return 0 };
        let mut counts = Vec::new();
        for (shard, mailbox) in self.0.mailboxes.iter().enumerate() {
            if connection.is_none_or(|connection| usize::from(connection.shard) == shard) {
                let (count, closed) = oneshot::channel();
                let (user, age) = (user.clone(), Duration::ZERO);
                mailbox.send(Mail::Disconnect { connection, user, age, reason, count });
                counts.push(closed);
            }
        }
        in_time(counts).await.into_iter().sum()
    }

    async fn channels_here(&self, pattern: Option<&Pattern>) -> BTreeMap<String, u32> {
        let ask = |mailbox: &Mailbox| {
            let (reply, channels) = oneshot::channel();
            mailbox.send(Mail::Channels { reply });
            channels
        };
        let asked = self.0.mailboxes.iter().map(ask).collect();
        let mut channels = BTreeMap::new();
        for (name, count) in in_time(asked).await.into_iter().flatten() {
            if pattern.is_none_or(|pattern| pattern.matches(name.as_str())) {
                *channels.entry(name.as_str().to_owned()).or_default() += count;
            }
        }
        channels
    }
}

/// What the shards answer before the other nodes stop waiting.
async fn in_time<T>(answers: Vec<oneshot::Receiver<T>>) -> Vec<T> {
    let until = Instant::now() + ANSWER / 2;
    let mut came = Vec::new();
    for answer in answers {
        if let Ok(Ok(answer)) = tokio::time::timeout_at(until, answer).await {
            came.push(answer);
        }
    }
    came
}

fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(rand::rng().random_range(0.85..=1.0))
}
