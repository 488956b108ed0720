//! The other nodes: who is there, and what is asked of all of them. Everything goes over the broker, on channels
//! of the nodes' own namespace; with the broker away a node knows only itself, after a while.
//!
//! A message of an unknown kind is skipped, so that nodes of two versions get along. Those of the first version speak
//! by other names in Redis ([`FORMER_NAMES`]), so a node does too while one of them may be there.

mod former;
mod members;
mod message;
mod patience;
mod requests;
mod service;
mod unfinished;

use std::{
    collections::{BTreeMap, HashSet},
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
    join,
    sync::{Notify, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(super) use self::message::Names;
use self::{
    former::Former,
    members::{Members, TICK},
    message::{Announcement, Answer, Message, Question, Whom},
    patience::Patience,
    requests::Requests,
    unfinished::{Again, Left, Unfinished},
};
use super::{Metrics, Node};
use crate::{
    broker::{Broker, BrokerError, FORMER_NAMES, INTERNAL_NAMESPACE, PublishOptions},
    domain::{ChannelName, CloseReason, ConnectionId, NodeId, Payload, Publication},
    shard::{Mail, Mailbox},
    work::now_us,
};

/// Between announcements; jittered, or nodes that started together would speak together for ever.
const ANNOUNCE: Duration = Duration::from_secs(3);
/// Hellos that come within it are answered by one announcement.
const HELLO: Duration = Duration::from_millis(200);
/// What a node has not answered by then is not waited for.
const ANSWER: Duration = Duration::from_secs(2);
/// A tick that comes this much later than it should says that this process was stopped, or nearly.
const LATE: Duration = Duration::from_secs(1);
/// Between tries to listen.
const RETRY: Duration = Duration::from_millis(250);
/// Between tries to listen where Redis refuses it: somebody has to change its rules.
const REFUSED: Duration = Duration::from_secs(10);

/// The cluster as this node sees it. Cheap to clone.
#[derive(Clone)]
pub struct Peers(Arc<Shared>);

struct Shared {
    node: Node,
    broker: Arc<dyn Broker>,
    mailboxes: Arc<[Mailbox]>,
    counts: Box<dyn Fn() -> Counts + Send + Sync>,
    state: Mutex<State>,
    /// Whether the former names are in use, for the task that listens there.
    former: watch::Sender<bool>,
    requests: Requests,
    tasks: TaskTracker,
    /// This node has to announce itself before its turn, because it is new or was away...
    hello: AtomicBool,
    /// ... or because another one is.
    turn: Notify,
    metrics: Metrics,
}

/// What is known; each part is pure.
struct State {
    members: Members,
    former: Former,
    unfinished: Unfinished,
    /// The link to the broker is up.
    linked: bool,
    /// Other nodes that there are by a source outside of the broker, if there is one.
    listed: Option<usize>,
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

/// What is known of the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey<T> {
    /// What the nodes that are heard say.
    pub found: T,
    /// Every node has said it: none is silent, missed, or known from elsewhere without being heard.
    pub complete: bool,
}

/// What became of a disconnect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disconnected {
    /// Connections closed by the nodes that answered in time.
    pub closed: usize,
    /// Every node that may hold one has answered; others are asked when they are heard again.
    pub complete: bool,
}

/// What came of a question.
#[derive(Default)]
struct Asked {
    answers: Vec<Answer>,
    /// Nodes that have not answered for all of their shards.
    silent: HashSet<NodeId>,
    /// Nodes that have, this one included.
    done: HashSet<NodeId>,
}

/// Answers of other nodes, and the nodes that have not answered for all of their shards.
type Answers = (Vec<Answer>, HashSet<NodeId>);

/// Where every node listens.
pub(super) fn nodes_channel(names: Names) -> ChannelName {
    channel(names, "nodes")
}

pub(super) fn node_channel(names: Names, node: NodeId) -> ChannelName {
    channel(names, &format!("node:{node}"))
}

fn channel(names: Names, local: &str) -> ChannelName {
    let former = if names == Names::Former { FORMER_NAMES } else { "" };
    format!("{INTERNAL_NAMESPACE}:{former}{local}").parse().expect("a good name")
}

// === impl Peers: what others ask ===

impl Peers {
    /// All live nodes, this one included, by name.
    pub fn nodes(&self) -> Survey<Vec<NodeInfo>> {
        let now = now_us() / 1_000;
        let own = self.announcement(false, Vec::new()).info(now);
        let state = self.state();
        let mut nodes: Vec<_> =
            state.members.live().map(|(_, member)| member.announcement.info(now)).collect();
        let complete = state.left(HashSet::new(), None).is_empty();
        drop(state);
        nodes.push(own);
        nodes.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        Survey { found: nodes, complete }
    }

    /// Other nodes that were heard lately.
    pub fn others(&self) -> usize {
        self.state().members.count()
    }

    /// Other nodes that there are, at least, as the Service of all nodes lists them; `None` where it is not known.
    pub fn listed(&self) -> Option<usize> {
        self.state().listed
    }

    /// When another node last said that it hears this one.
    pub fn echoed_at(&self) -> Option<Instant> {
        self.state().members.echoed_at()
    }

    /// Whether there are other nodes and each is of a version that does not say whom it hears.
    pub fn are_mute(&self) -> bool {
        self.state().members.are_mute()
    }

    /// Closes the connections that are open now, wherever they are. What a node does not do in time it is asked again
    /// for some minutes.
    pub async fn disconnect(&self, who: Who, reason: CloseReason) -> Disconnected {
        let target = match &who {
            Who::User(_) => None,
            Who::Client { node, .. } => Some(*node),
        };
        let asked_at = Instant::now();
        let Asked { answers, silent, done } =
            self.ask(Question::disconnect(who.clone(), reason, Duration::ZERO), target).await;
        let closed = answers.into_iter().map(|answer| answer.closed).sum();
        let mut state = self.state();
        let left = match target {
            Some(target) if done.contains(&target) => Left::default(),
            _ => state.left(silent, target),
        };
        let complete = left.is_empty();
        if !complete {
            state.unfinished.add(who, reason, asked_at, left, done);
            self.0.metrics.unfinished_disconnects.set(state.unfinished.count() as i64);
        }
        Disconnected { closed, complete }
    }

    /// Channels with subscribers, of all nodes that answer in time, and how many subscribers each has.
    pub async fn channels(&self, pattern: Option<Pattern>) -> Survey<BTreeMap<ChannelName, u32>> {
        let question = Question::Channels { pattern: pattern.map(|pattern| pattern.to_string()) };
        let mut channels = BTreeMap::new();
        let Asked { answers, silent, done: _ } = self.ask(question, None).await;
        let complete = self.state().left(silent, None).is_empty();
        for (name, count) in answers.into_iter().flat_map(|answer| answer.channels) {
            // A name that is none can only come from a broken node.
            if let Ok(name) = name.parse() {
                *channels.entry(name).or_default() += count;
            }
        }
        Survey { found: channels, complete }
    }

    /// Asks every node, or only `target`; what came in time, this node's own answer included.
    async fn ask(&self, question: Question, target: Option<NodeId>) -> Asked {
        let own = self.id();
        let is_asked = |node: NodeId| target.is_none_or(|target| target == node);
        let here = async { if is_asked(own) { Some(self.answer_here(&question).await) } else { None } };
        let others: HashSet<_> =
            self.state().members.live().map(|(node, _)| node).filter(|node| is_asked(*node)).collect();
        let there = async {
            if others.is_empty() {
                Default::default()
            } else {
                self.ask_there(&question, &others, target).await
            }
        };
        let (here, (there, mut silent)) = join!(here, there);
        let mut done: HashSet<_> = others.difference(&silent).copied().collect();
        if let Some(here) = &here {
            (if here.partial { &mut silent } else { &mut done }).insert(own);
        }
        Asked { answers: here.into_iter().chain(there).collect(), silent, done }
    }

    /// Asks other nodes.
    async fn ask_there(
        &self,
        question: &Question,
        asked: &HashSet<NodeId>,
        target: Option<NodeId>,
    ) -> Answers {
        let request = self.0.requests.open(asked.clone());
        let ask = Message::Ask {
            from: self.id().0,
            request: request.number(),
            question: question.clone(),
            copy: false,
        };
        let said = match target {
            None => self.say(&ask).await,
            Some(target) => self.publish(node_channel(self.names_of(target), target), &ask).await,
        };
        if let Err(error) = said {
            tracing::warn!(%error, "the other nodes could not be asked");
            return (Vec::new(), asked.clone());
        }
        request.answers(Patience::new(ANSWER)).await
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
        metrics: Metrics,
    ) -> Self {
        let state = State {
            members: Members::default(),
            former: Former::new(),
            unfinished: Unfinished::default(),
            linked: false,
            listed: None,
        };
        Self(Arc::new(Shared {
            node,
            broker,
            mailboxes,
            counts,
            former: watch::Sender::new(state.former.is_wanted()),
            state: Mutex::new(state),
            requests: Requests::default(),
            tasks,
            hello: AtomicBool::new(true),
            turn: Notify::new(),
            metrics,
        }))
    }

    /// Another node says something on `channel`.
    pub(super) fn received(&self, channel: &ChannelName, bytes: &Bytes) {
        let names = if channel.local().starts_with(FORMER_NAMES) { Names::Former } else { Names::Present };
        if names == Names::Former && !self.state().former.is_wanted() {
            // It came just before the subscription ended.
            return;
        }
        let message = match serde_json::from_slice::<Message>(bytes) {
            Ok(message) if message.from() == self.id() => return,
            // It comes by the present names too, unless those are refused to this node alone.
            Ok(message) if message.is_copy() && !self.state().former.is_all() => return,
            Ok(message) => message,
            Err(error) => return tracing::debug!(%error, "skipped a node's message of an unknown kind"),
        };
        match message {
            Message::Node(announcement) => self.met(announcement, names),
            Message::Leave { from } => self.left(NodeId(from)),
            Message::Ask { from, request, question, copy: _ } => {
                let (peers, to) = (self.clone(), node_channel(names, NodeId(from)));
                self.0.tasks.spawn(async move { peers.reply(to, request, &question).await });
            }
            Message::Reply { from, request, answer, more } => {
                self.0.requests.answered(request, NodeId(from), answer, more);
            }
        }
    }

    /// The link to the broker is up; `anew` where it was before.
    pub(super) fn connected(&self, anew: bool) {
        self.state().linked = true;
        if anew {
            self.say_hello();
        }
    }

    /// The link to the broker is down.
    pub(super) fn disconnected(&self) {
        self.state().linked = false;
    }

    /// Keeps this node among the others, until the end: then they are told that it leaves.
    pub(super) async fn run(self, service: Option<String>, shutdown: CancellationToken) {
        let tasks = async {
            let listed = service::follow(service, |others| self.listed_are(others));
            join!(self.announce(), self.tick(), self.listen(), self.listen_formerly(), listed)
        };
        shutdown.run_until_cancelled(tasks).await;
        let leave = Message::Leave { from: self.id().0 };
        // The others notice by themselves, later, where the broker is away.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.say(&leave)).await;
    }
}

// === impl Peers: tasks ===

impl Peers {
    /// Announces this node, again and again.
    async fn announce(&self) {
        loop {
            self.turn().await;
            // The others are asked again when they announce themselves.
            let again = self.state().unfinished.of(self.id(), Instant::now());
            self.spawn_again(self.id(), again);
            let hello = self.0.hello.swap(false, Ordering::Relaxed);
            let heard = self.state().members.heard();
            let announced = self.say(&Message::Node(self.announcement(hello, heard))).await;
            if hello && announced.is_err() {
                // Said again at the next turn, which a new connection brings forward.
                self.0.hello.store(true, Ordering::Relaxed);
            }
        }
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

    /// Lets time pass.
    async fn tick(&self) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = Instant::now();
        loop {
            ticks.tick().await;
            let late = last.elapsed() > TICK + LATE;
            last = Instant::now();
            let mut state = self.state();
            state.members.tick(late);
            let linked = state.linked;
            state.former.tick(linked);
            state.unfinished.tick();
            self.follow_former(&state);
            self.0.metrics.nodes.set(state.members.count() as i64);
            self.0.metrics.unfinished_disconnects.set(state.unfinished.count() as i64);
        }
    }

    /// Listens by the present names, for as long as it takes, and then says hello.
    async fn listen(&self) {
        let mut channels = self.channels_by(Names::Present);
        loop {
            let failed = self.0.broker.subscribe(channels).await;
            let Some((_, error)) = failed.first() else { break };
            let refused = matches!(error, BrokerError::Refused(_));
            if refused {
                let grant = self.0.node.grant.as_deref();
                tracing::warn!(%error, grant, "Redis refuses the nodes' own channels to this node: grant them");
            } else {
                tracing::debug!(%error, "failed to subscribe to the nodes' channels");
            }
            self.set_refused(refused);
            channels = failed.into_iter().map(|(channel, _)| channel).collect();
            sleep(if refused { REFUSED } else { RETRY }).await;
        }
        self.set_refused(false);
        self.say_hello();
    }

    /// Listens by the former names while a node that knows no others may be there.
    async fn listen_formerly(&self) {
        let (channels, mut wanted) = (self.channels_by(Names::Former), self.0.former.subscribe());
        loop {
            // Its sender is never dropped before this.
            let _ = wanted.wait_for(|wanted| *wanted).await;
            if let Some((_, error)) = self.0.broker.subscribe(channels.clone()).await.into_iter().next() {
                tracing::debug!(%error, "failed to subscribe to the former names of the nodes' channels");
                sleep(if matches!(error, BrokerError::Refused(_)) { REFUSED } else { RETRY }).await;
                continue;
            }
            self.0.metrics.former_names.set(1);
            self.say_hello();
            let _ = wanted.wait_for(|wanted| !*wanted).await;
            self.0.metrics.former_names.set(0);
            self.0.broker.unsubscribe(channels.clone());
        }
    }
}

// === impl Peers: private ===

impl Peers {
    fn id(&self) -> NodeId {
        self.0.node.run.id
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn channels_by(&self, names: Names) -> Vec<ChannelName> {
        vec![nodes_channel(names), node_channel(names, self.id())]
    }

    /// Tells the others that this node is there, and asks them to do the same, soon.
    fn say_hello(&self) {
        self.0.hello.store(true, Ordering::Relaxed);
        self.0.turn.notify_one();
    }

    fn met(&self, announcement: Announcement, names: Names) {
        let (hello, node, is_mute) = (announcement.hello, announcement.node(), announcement.is_mute());
        let mut state = self.state();
        if names == Names::Former {
            state.former.heard();
            self.follow_former(&state);
        }
        state.members.met(announcement, names, self.id(), Instant::now());
        // One of the first version would disconnect younger connections too; it has got the question once.
        let again = if is_mute { Vec::new() } else { state.unfinished.of(node, Instant::now()) };
        drop(state);
        if hello {
            self.0.turn.notify_one();
        }
        self.spawn_again(node, again);
    }

    fn left(&self, node: NodeId) {
        let mut state = self.state();
        state.members.left(node);
        state.unfinished.gone(node);
    }

    fn spawn_again(&self, node: NodeId, again: Vec<Again>) {
        for again in again {
            let peers = self.clone();
            self.0.tasks.spawn(async move { peers.ask_again(node, again).await });
        }
    }

    async fn ask_again(&self, node: NodeId, again: Again) {
        let Again { number, question } = again;
        let Asked { answers, done, .. } = self.ask(question, Some(node)).await;
        let answered = done.contains(&node);
        self.state().unfinished.asked(number, node, answered);
        if answered {
            let closed: usize = answers.into_iter().map(|answer| answer.closed).sum();
            tracing::info!(%node, closed, "a node that had not answered before has carried out a disconnect");
        }
    }

    pub(super) fn listed_are(&self, others: Option<usize>) {
        self.state().listed = others;
    }

    fn set_refused(&self, refused: bool) {
        let mut state = self.state();
        state.former.set_refused(refused);
        self.follow_former(&state);
    }

    fn follow_former(&self, state: &State) {
        let wanted = state.former.is_wanted();
        self.0.former.send_if_modified(|last| std::mem::replace(last, wanted) != wanted);
    }

    fn names_of(&self, node: NodeId) -> Names {
        self.state().members.get(node).map_or(Names::Present, |member| member.names)
    }

    fn announcement(&self, hello: bool, heard: Vec<NodeId>) -> Announcement {
        let Node { run, name, version, .. } = &self.0.node;
        Announcement::new(*run, name, version, (self.0.counts)(), hello, Some(heard))
    }

    /// Says it to all nodes, by all names that they may know.
    async fn say(&self, message: &Message) -> Result<(), BrokerError> {
        let (present, former, is_needed) = {
            let State { former, members, .. } = &*self.state();
            (!former.is_all(), former.is_wanted(), former.is_all() || members.use_former_names())
        };
        let copy = if present { message.copied() } else { message.clone() };
        // Both are called before either is awaited, so that they leave in the order of the calls of this.
        let present = present.then(|| self.publish(nodes_channel(Names::Present), message));
        let former = former.then(|| self.publish(nodes_channel(Names::Former), &copy));
        let (present, former) = join!(said(present), said(former));
        // Who may speak by the present names may be refused the former ones, which does not matter while nobody is there.
        present.and(if is_needed { former } else { Ok(()) })
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

    async fn reply(&self, to: ChannelName, request: u64, question: &Question) {
        let mut parts = self.answer_here(question).await.into_parts().peekable();
        while let Some(answer) = parts.next() {
            let more = parts.peek().is_some();
            let reply = Message::Reply { from: self.id().0, request, answer, more };
            if let Err(error) = self.publish(to.clone(), &reply).await {
                // The node that asks waits no longer than its limit.
                return tracing::debug!(%error, "failed to answer another node");
            }
        }
    }

    /// This node's own answer.
    async fn answer_here(&self, question: &Question) -> Answer {
        match question {
            Question::Disconnect { .. } => self.close_here(question).await,
            Question::Channels { pattern } => {
                let pattern = pattern.as_ref().and_then(|pattern| pattern.parse::<Pattern>().ok());
                self.channels_here(pattern.as_ref()).await
            }
        }
    }

    async fn close_here(&self, question: &Question) -> Answer {
        let Some(Whom { connection, user, reason, age }) = question.whom() else { return Answer::default() };
        let mut counts = Vec::new();
        for (shard, mailbox) in self.0.mailboxes.iter().enumerate() {
            if connection.is_none_or(|connection| usize::from(connection.shard) == shard) {
                let (count, closed) = oneshot::channel();
                mailbox.send(Mail::Disconnect { connection, user: user.clone(), age, reason, count });
                counts.push(closed);
            }
        }
        let asked = counts.len();
        let came = in_time(counts).await;
        Answer { partial: came.len() < asked, closed: came.into_iter().sum(), ..Answer::default() }
    }

    async fn channels_here(&self, pattern: Option<&Pattern>) -> Answer {
        let ask = |mailbox: &Mailbox| {
            let (reply, channels) = oneshot::channel();
            mailbox.send(Mail::Channels { reply });
            channels
        };
        let came = in_time(self.0.mailboxes.iter().map(ask).collect()).await;
        let partial = came.len() < self.0.mailboxes.len();
        let mut channels = BTreeMap::new();
        for (name, count) in came.into_iter().flatten() {
            if pattern.is_none_or(|pattern| pattern.matches(name.as_str())) {
                *channels.entry(name.as_str().to_owned()).or_default() += count;
            }
        }
        Answer { channels, partial, ..Answer::default() }
    }
}

// === impl State ===

impl State {
    /// Who may hold connections, or those that a disconnect means, beside the nodes that have answered.
    fn left(&self, silent: HashSet<NodeId>, target: Option<NodeId>) -> Left {
        let mut nodes = silent;
        nodes.extend(self.members.missing().filter(|node| target.is_none_or(|target| target == *node)));
        Left { nodes, unknown: !self.linked || self.may_be_others() }
    }

    /// Whether there are nodes that this one does not hear.
    fn may_be_others(&self) -> bool {
        self.listed.is_some_and(|listed| listed > self.members.count())
    }
}

async fn said(published: Option<impl Future<Output = Result<(), BrokerError>>>) -> Result<(), BrokerError> {
    match published {
        Some(published) => published.await,
        None => Ok(()),
    }
}

/// What the shards answer before the other nodes stop waiting.
async fn in_time<T>(answers: Vec<oneshot::Receiver<T>>) -> Vec<T> {
    let mut patience = Patience::new(ANSWER / 2);
    let (asked, mut came) = (answers.len(), Vec::new());
    for answer in answers {
        if let Some(Ok(answer)) = patience.wait(answer).await {
            came.push(answer);
        }
    }
    if came.len() < asked {
        tracing::warn!(asked, answered = came.len(), "shards did not answer in time");
    }
    came
}

fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(rand::rng().random_range(0.85..=1.0))
}
