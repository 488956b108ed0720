use std::sync::Mutex;

use bytes::Bytes;
use tokio::time::timeout;

use super::{metrics::GapCause, peers::Names, *};
use crate::{
    broker::{Bus, NotSubscribed, PublishOptions, Published, Reply, Side, conformance::text},
    domain::{CloseReason, ConnectionId, NodeId, Origin},
    hub::Join,
    shard::{Delivery, Inbox, Mail},
};

/// One node of a cluster over a memory bus, with two shards that a test plays.
struct Fixture {
    broker: Arc<dyn Broker>,
    bridge: Bridge,
    hub: Hub,
    inboxes: Vec<Arc<Inbox>>,
    metrics: Metrics,
    id: NodeId,
    shutdown: CancellationToken,
}

fn node(bus: &Bus, name: &str) -> Fixture {
    let (broker, events) = bus.join();
    node_over(broker, events, name)
}

fn node_over(broker: Arc<dyn Broker>, events: Events, name: &str) -> Fixture {
    let (mailboxes, inboxes): (Vec<_>, Vec<_>) = (0..2).map(|_| Mailbox::new(1 << 16, || {})).unzip();
    let (hub, metrics, shutdown) = (Hub::default(), Metrics::default(), CancellationToken::new());
    let run = NodeRun::begin();
    let bridge = start(Parts {
        node: Node { run, name: name.into(), version: "1".into(), grant: None },
        broker: Arc::clone(&broker),
        events,
        hub: hub.clone(),
        mailboxes: mailboxes.into(),
        packer: Packer::default(),
        counts: Box::new(|| Counts { connections: 1, users: 1, channels: 2 }),
        max_message_bytes: Box::new(|| 1 << 16),
        nodes_service: None,
        metrics: metrics.clone(),
        shutdown: shutdown.clone(),
    });
    let inboxes = inboxes.into_iter().map(Arc::new).collect();
    Fixture { broker, bridge, hub, inboxes, metrics, id: run.id, shutdown }
}

impl Fixture {
    async fn publish(&self, publication: Publication) {
        self.broker.publish(publication, PublishOptions::default()).await.unwrap();
    }

    async fn join(&self, name: &str, shard: u16) {
        if self.hub.join(&channel(name), shard) == Join::First {
            assert_eq!(self.broker.subscribe(vec![channel(name)]).await, []);
            self.hub.joined(&channel(name), true);
        }
    }

    /// What came to a shard, as text.
    fn mail(&self, shard: usize) -> Vec<String> {
        let tell = |mail| match mail {
            Mail::Publications { batch, .. } => {
                let text = |p: &Arc<Delivery>| String::from_utf8_lossy(p.payload.bytes()).into_owned();
                batch.iter().map(text).collect::<Vec<_>>().join(" ")
            }
            Mail::Gap { channels, certain, reason } => {
                format!("gap {channels:?}: {reason}{}", if certain { "" } else { ", perhaps" })
            }
            Mail::Refused { channel, refused } => format!("refused {channel}: {refused}"),
            other => panic!("unexpected {other:?}"),
        };
        self.inboxes[shard].take().into_iter().map(tell).collect()
    }

    /// Answers what is asked of the shards, as a node with these channels and connections would.
    fn play_shards(&self, subscribers: &'static [(&'static str, u32)], closes: usize) {
        for inbox in self.inboxes.clone() {
            tokio::spawn(async move {
                loop {
                    for mail in inbox.take() {
                        play(mail, subscribers, closes);
                    }
                    sleep(Duration::from_millis(1)).await;
                }
            });
        }
    }
}

impl Fixture {
    /// Closes one connection for each disconnect that is asked of a shard, from now on.
    fn play_shard(&self, shard: usize) {
        let inbox = Arc::clone(&self.inboxes[shard]);
        tokio::spawn(async move {
            loop {
                for mail in inbox.take() {
                    let Mail::Disconnect { count, .. } = mail else { panic!("{mail:?}") };
                    // Nobody may wait for it any more.
                    let _ = count.send(1);
                }
                sleep(Duration::from_millis(1)).await;
            }
        });
    }

    /// Answers what is asked of the shards, which are whose disconnects, of what age.
    fn record_disconnects(&self) -> Arc<Mutex<Vec<(String, Duration)>>> {
        let asked = Arc::<Mutex<Vec<_>>>::default();
        for inbox in self.inboxes.clone() {
            let asked = Arc::clone(&asked);
            tokio::spawn(async move {
                loop {
                    for mail in inbox.take() {
                        let Mail::Disconnect { user, age, count, .. } = mail else { panic!("{mail:?}") };
                        asked.lock().unwrap().push((user.unwrap().to_string(), age));
                        count.send(1).unwrap();
                    }
                    sleep(Duration::from_millis(1)).await;
                }
            });
        }
        asked
    }
}

fn play(mail: Mail, subscribers: &[(&str, u32)], closes: usize) {
    match mail {
        Mail::Channels { reply } => {
            let answer = subscribers.iter().map(|(name, count)| (channel(name), *count)).collect();
            reply.send(answer).unwrap();
        }
        Mail::Disconnect { count, .. } => count.send(closes).unwrap(),
        other => panic!("unexpected {other:?}"),
    }
}

fn channel(name: &str) -> ChannelName {
    name.parse().unwrap()
}

fn stamped(name: &str, previous_sequence: u64, sequence: u64) -> Publication {
    let origin = Origin { node: NodeId(77), node_start: 1, sequence, previous_sequence };
    Publication { origin: Some(origin), ..text(&channel(name), &sequence.to_string()) }
}

/// Lets the bridge do what it can, and nodes meet; paused time makes that certain.
async fn settle() {
    sleep(Duration::from_millis(500)).await;
}

#[tokio::test(start_paused = true)]
async fn a_publication_goes_to_the_shards_that_want_its_channel_in_one_mail_a_batch() {
    let f = node(&Bus::default(), "a");
    f.join("a", 0).await;
    f.join("b", 0).await;
    f.join("b", 1).await;
    for (name, payload) in [("a", "1"), ("b", "2"), ("a", "3"), ("nobody", "4")] {
        f.publish(text(&channel(name), payload)).await;
    }
    settle().await;
    assert_eq!((f.mail(0), f.mail(1)), (vec!["1 2 3".to_owned()], vec!["2".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_hole_in_a_nodes_sequence_is_told_where_it_is() {
    let f = node(&Bus::default(), "a");
    f.join("a", 0).await;
    f.join("b", 1).await;
    for publication in [stamped("a", 0, 1), stamped("a", 2, 3), stamped("b", 4, 5), stamped("a", 3, 4)] {
        f.publish(publication).await;
    }
    settle().await;
    assert_eq!(f.mail(0), ["1", "gap [\"a\"]: lost between nodes", "3 4"]);
    assert_eq!(f.mail(1), ["5"]);
    assert_eq!(f.metrics.gaps_of(GapCause::Sequence), 1);
}

#[tokio::test(start_paused = true)]
async fn a_reconnect_is_a_gap_on_every_channel_of_every_shard() {
    let (events, receiver) = mpsc::channel(8);
    let (broker, _) = Bus::default().join();
    let f = node_over(broker, receiver, "a");
    f.join("a", 0).await;
    let link = LinkId(0);
    let disconnected = |reason: &str| BrokerEvent::Disconnected { link, reason: reason.into() };
    let lost = [
        disconnected("not there yet"),
        BrokerEvent::Connected { link },
        BrokerEvent::Publication(stamped("a", 1, 2)),
        disconnected("x"),
        disconnected("x"),
        // While other channels are subscribed again.
        BrokerEvent::Publication(stamped("a", 6, 7)),
        BrokerEvent::Connected { link },
        BrokerEvent::Resumed { link },
        BrokerEvent::Publication(stamped("a", 7, 8)),
    ];
    events.send(lost.into()).await.unwrap();
    settle().await;
    let told = "gap [\"a\"]: the broker was away, perhaps";
    assert_eq!(f.mail(0), ["2 7", told, "8"], "one gap, told once");
    assert!(f.mail(1).is_empty(), "it has no channel");
    assert_eq!(f.metrics.reconnects.get(), 1);
    assert_eq!(f.metrics.gaps_of(GapCause::Sequence), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lost_channel_is_told_alone_and_a_void_leaves_no_hole() {
    let (events, receiver) = mpsc::channel(8);
    let (broker, _) = Bus::default().join();
    let f = node_over(broker, receiver, "a");
    f.join("a", 0).await;
    f.join("b", 0).await;
    let Publication { origin, .. } = stamped("b", 2, 3);
    let told = [
        BrokerEvent::Connected { link: LinkId(0) },
        BrokerEvent::Publication(stamped("a", 0, 1)),
        BrokerEvent::Publication(stamped("b", 1, 2)),
        BrokerEvent::ChannelLost { channel: channel("a"), reason: "NOPERM".into() },
        BrokerEvent::Void { channel: channel("b"), origin: origin.unwrap() },
        BrokerEvent::Publication(stamped("b", 3, 4)),
    ];
    events.send(told.into()).await.unwrap();
    settle().await;
    let gap = "gap [\"a\"]: the broker refuses the channel";
    assert_eq!(f.mail(0), ["refused a: true", "1 2", gap, "4"]);
    assert_eq!(f.metrics.refused_channels.get(), 1);
    let told =
        [BrokerEvent::ChannelResumed { channel: channel("a") }, BrokerEvent::Publication(stamped("a", 5, 6))];
    events.send(told.into()).await.unwrap();
    settle().await;
    assert_eq!(f.mail(0), ["refused a: false", gap, "6"]);
    assert_eq!(f.metrics.refused_channels.get(), 0);
    // Told of an earlier stay of the channel: what comes in shows better.
    let told = [
        BrokerEvent::ChannelLost { channel: channel("a"), reason: "NOPERM".into() },
        BrokerEvent::Publication(stamped("a", 6, 7)),
    ];
    events.send(told.into()).await.unwrap();
    settle().await;
    assert_eq!(f.mail(0), ["refused a: true", gap, "refused a: false", gap, "7"]);
}

#[tokio::test(start_paused = true)]
async fn channels_that_are_refused_cost_no_more_for_each_other() {
    const COUNT: usize = 10_000;
    let (events, receiver) = mpsc::channel(8);
    let (broker, _) = Bus::default().join();
    let f = node_over(broker, receiver, "a");
    let channels: Vec<_> = (0..COUNT).map(|number| channel(&format!("c{number}"))).collect();
    for channel in &channels {
        f.hub.join(channel, 0);
        f.hub.joined(channel, true);
    }
    let cost = async |told: Vec<BrokerEvent>| {
        let before = f.hub.locked();
        events.send(told).await.unwrap();
        settle().await;
        f.hub.locked() - before
    };
    let lost = |channel: &ChannelName| BrokerEvent::ChannelLost {
        channel: channel.clone(),
        reason: "NOPERM".into(),
    };
    let took = cost(channels.iter().map(lost).collect()).await;
    assert!(took < 10 * COUNT, "{took} locks");
    assert_eq!(f.metrics.refused_channels.get(), 10_000);
    let took = cost(vec![BrokerEvent::Publication(text(&channel("other"), "x"))]).await;
    assert!(took < 10, "{took} locks for one publication");
    let resumed = |channel: &ChannelName| BrokerEvent::ChannelResumed { channel: channel.clone() };
    let took = cost(channels[1..].iter().map(resumed).collect()).await;
    assert!(took < 10 * COUNT, "{took} locks");
    assert_eq!(f.metrics.refused_channels.get(), 1);
    cost(vec![BrokerEvent::ChannelGivenUp { channel: channels[0].clone() }]).await;
    assert_eq!(f.metrics.refused_channels.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_loss_of_a_channel_that_was_given_up_is_not_that_of_its_next_stay() {
    let (events, receiver) = mpsc::channel(8);
    let (broker, _) = Bus::default().join();
    let f = node_over(broker, receiver, "a");
    // It was lost, left by all, and joined again before the loss came here.
    f.join("a", 0).await;
    let lost = BrokerEvent::ChannelLost { channel: channel("a"), reason: "NOPERM".into() };
    events.send(vec![lost, BrokerEvent::ChannelGivenUp { channel: channel("a") }]).await.unwrap();
    settle().await;
    assert_eq!(f.hub.join(&channel("a"), 1), Join::Live);
    f.mail(0);
    // The loss came in time, and the end of it is late.
    events.send(vec![BrokerEvent::ChannelGivenUp { channel: channel("a") }]).await.unwrap();
    settle().await;
    assert!(f.mail(0).is_empty(), "nothing is missing");
}

#[tokio::test(start_paused = true)]
async fn a_publication_that_this_version_cannot_read_is_a_gap_on_its_channel_told_once() {
    let (events, receiver) = mpsc::channel(8);
    let (broker, _) = Bus::default().join();
    let f = node_over(broker, receiver, "a");
    f.join("a", 0).await;
    f.join("b", 1).await;
    let unreadable = |name| BrokerEvent::Malformed { channel: channel(name) };
    let came = [
        BrokerEvent::Connected { link: LinkId(0) },
        BrokerEvent::Publication(stamped("a", 0, 1)),
        unreadable("a"),
        unreadable("a"),
        unreadable("nobody"),
        // The one before it was not read, which was told.
        BrokerEvent::Publication(stamped("a", 2, 3)),
        BrokerEvent::Publication(stamped("a", 4, 5)),
    ];
    events.send(came.into()).await.unwrap();
    settle().await;
    let gap = "gap [\"a\"]: the node cannot read the message";
    assert_eq!(f.mail(0), ["1", gap, "3", "gap [\"a\"]: lost between nodes", "5"]);
    assert_eq!(f.mail(1), Vec::<String>::new());
    assert_eq!((f.metrics.malformed.get(), f.metrics.gaps_of(GapCause::Unreadable)), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_publication_that_no_node_checked_is_not_delivered_beyond_the_limit_but_told() {
    let f = node(&Bus::default(), "a");
    f.join("a", 0).await;
    let (fits, beyond) = ("x".repeat(1 << 16), "x".repeat((1 << 16) + 1));
    let from_a_node = Publication { origin: stamped("a", 0, 1).origin, ..text(&channel("a"), &beyond) };
    let mut told = Vec::new();
    for publication in [text(&channel("a"), &fits), text(&channel("a"), &beyond), from_a_node] {
        f.publish(publication).await;
        settle().await;
        told.extend(f.mail(0).into_iter().map(|text| text.replace(&fits, "_")));
    }
    assert_eq!(told, ["_", "gap [\"a\"]: the message is larger than hub.maxMessageBytes", "_x"]);
    assert_eq!((f.metrics.too_large.get(), f.metrics.gaps_of(GapCause::TooLarge)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_does_not_keep_up_is_told_once_what_it_lost_and_delays_nobody() {
    let f = node(&Bus::default(), "a");
    f.join("big", 0).await;
    f.join("small", 0).await;
    f.join("small", 1).await;
    let big = "x".repeat(60_000);
    for payload in [&big, &big, "also lost"] {
        f.publish(text(&channel("big"), payload)).await;
        settle().await;
    }
    f.publish(text(&channel("small"), "fits")).await;
    settle().await;
    let mail = f.mail(0);
    assert_eq!(mail[0].len(), 60_000);
    assert_eq!(mail[1..], ["gap [\"big\"]: the node is overloaded", "also lost", "fits"]);
    assert_eq!(f.mail(1), ["fits"]);
    assert_eq!(f.metrics.mailbox_full.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_canary_verifies_a_broker_that_delivers() {
    let f = node(&Bus::default(), "a");
    let mut health = f.bridge.health.clone();
    let verified = timeout(Duration::from_secs(1), health.wait_for(|health| health.verified)).await;
    assert!(verified.expect("at once").unwrap().connected);
    sleep(Duration::from_secs(60)).await;
    let health = health.borrow().clone();
    assert!(health.verified_at.unwrap().elapsed() <= Duration::from_secs(5), "and goes on: {health:?}");
}

/// Takes everything and brings nothing.
struct Silent {
    events: mpsc::Sender<Vec<BrokerEvent>>,
    rebuilt: mpsc::UnboundedSender<String>,
    /// Refuses every subscription.
    refuses: bool,
}

impl Broker for Silent {
    fn subscribe(&self, channels: Vec<ChannelName>) -> Reply<Vec<NotSubscribed>> {
        let refused = channels.into_iter().filter(|_| self.refuses);
        let refused: Vec<_> =
            refused.map(|channel| (channel, BrokerError::Refused("NOPERM".into()))).collect();
        Box::pin(async { refused })
    }

    fn unsubscribe(&self, _channels: Vec<ChannelName>) {}

    fn publish(&self, _: Publication, _: PublishOptions) -> Reply<Result<Published, BrokerError>> {
        Box::pin(async { Ok(Published::default()) })
    }

    fn link(&self, _channel: &ChannelName) -> LinkId {
        LinkId(0)
    }

    fn links(&self) -> u16 {
        1
    }

    fn rebuild(&self, link: LinkId, side: Side, reason: &str) {
        assert_eq!(side, Side::Subscriber, "the publisher took all canaries");
        self.rebuilt.send(reason.to_owned()).unwrap();
        self.events.try_send(vec![BrokerEvent::Disconnected { link, reason: reason.to_owned() }]).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_torn_down_and_never_counts_as_verified() {
    let (events, receiver) = mpsc::channel(8);
    let (rebuilt, mut rebuilds) = mpsc::unbounded_channel();
    events.try_send(vec![BrokerEvent::Connected { link: LinkId(0) }]).unwrap();
    let f = node_over(Arc::new(Silent { events, rebuilt, refuses: false }), receiver, "a");
    let reason = timeout(Duration::from_secs(7), rebuilds.recv()).await.expect("within the deadline");
    assert_eq!(reason.as_deref(), Some("no canary came back"));
    settle().await;
    let health = f.bridge.health.borrow().clone();
    assert!(!health.verified && !health.connected && health.verified_at.is_none(), "{health:?}");
}

#[tokio::test(start_paused = true)]
async fn a_canary_that_may_not_be_received_is_told_and_nothing_is_torn_down() {
    for refuses in [false, true] {
        let (events, receiver) = mpsc::channel(8);
        let (rebuilt, mut rebuilds) = mpsc::unbounded_channel();
        events.try_send(vec![BrokerEvent::Connected { link: LinkId(0) }]).unwrap();
        let f = node_over(Arc::new(Silent { events: events.clone(), rebuilt, refuses }), receiver, "a");
        settle().await;
        let own = channel(&format!("fanout:canary:{}", f.id));
        if !refuses {
            // It was granted, and is no longer.
            let lost = BrokerEvent::ChannelLost { channel: own.clone(), reason: "NOPERM".into() };
            events.send(vec![lost]).await.unwrap();
        }
        sleep(Duration::from_secs(300)).await;
        assert!(rebuilds.try_recv().is_err(), "{refuses}");
        let health = f.bridge.health.borrow().clone();
        assert!(health.connected && !health.verified && !health.receive_only, "{health:?}");
        let reason = health.reason.as_deref().unwrap_or_default();
        assert!(reason.contains("canary") && reason.contains("NOPERM"), "{reason}");
        if !refuses {
            events.send(vec![BrokerEvent::ChannelResumed { channel: own }]).await.unwrap();
            let back = Instant::now();
            rebuilds.recv().await.expect("what is taken now has to come back");
            assert!(back.elapsed() >= Duration::from_secs(6), "{:?}", back.elapsed());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_know_each_other_and_notice_who_leaves() {
    let bus = Bus::default();
    let nodes: Vec<_> = ["a", "b", "c"].iter().map(|name| node(&bus, name)).collect();
    settle().await;
    for node in &nodes {
        let seen: Vec<_> = node.bridge.peers.nodes().found.into_iter().map(|info| info.name).collect();
        assert_eq!(seen, ["a", "b", "c"]);
        assert_eq!(node.bridge.peers.nodes().found[2].counts.channels, 2);
    }
    nodes[1].shutdown.cancel();
    nodes[1].bridge.tasks.wait().await;
    settle().await;
    assert_eq!(nodes[0].bridge.peers.nodes().found.len(), 2, "it said that it goes");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_falls_silent_is_forgotten() {
    let bus = Bus::default();
    let (here, gone) = (node(&bus, "here"), node(&bus, "gone"));
    settle().await;
    assert_eq!(here.bridge.peers.nodes().found.len(), 2);
    gone.broker.unsubscribe(vec![peers::nodes_channel(Names::Present)]);
    here.broker.unsubscribe(vec![peers::nodes_channel(Names::Present)]);
    sleep(Duration::from_secs(11)).await;
    let left: Vec<_> = here.bridge.peers.nodes().found.into_iter().map(|info| info.name).collect();
    assert_eq!(left, ["here"]);
}

#[tokio::test(start_paused = true)]
async fn channels_are_surveyed_over_all_nodes_by_pattern() {
    let bus = Bus::default();
    let nodes = [node(&bus, "a"), node(&bus, "b")];
    nodes[0].play_shards(&[("chat:1", 2), ("lobby", 1)], 0);
    nodes[1].play_shards(&[("chat:1", 3), ("chat:2", 1)], 0);
    settle().await;
    let all = nodes[0].bridge.peers.channels(None).await;
    // Each of a node's two shards tells the same.
    assert!(all.complete);
    assert_eq!(all.found, [("chat:1", 10), ("chat:2", 2), ("lobby", 2)].map(|(n, c)| (channel(n), c)).into());
    let chat = nodes[1].bridge.peers.channels(Some("chat:*".parse().unwrap())).await;
    assert_eq!((chat.found.len(), chat.complete), (2, true));
}

#[tokio::test(start_paused = true)]
async fn a_user_is_disconnected_everywhere_and_a_client_where_it_is() {
    let bus = Bus::default();
    let nodes = [node(&bus, "a"), node(&bus, "b")];
    nodes[0].play_shards(&[], 1);
    nodes[1].play_shards(&[], 10);
    settle().await;
    let peers = &nodes[0].bridge.peers;
    let told = peers.disconnect(Who::User("ann".into()), CloseReason::Disconnected).await;
    assert_eq!(told, Disconnected { closed: 22, complete: true });
    let connection = ConnectionId { shard: 1, slot: 0, generation: 0 };
    let closed = async |node| {
        let who = Who::Client { node, connection, user: None };
        let Disconnected { closed, complete } = peers.disconnect(who, CloseReason::Disconnected).await;
        assert!(complete);
        closed
    };
    assert_eq!(closed(nodes[1].id).await, 10, "one shard of the other node");
    assert_eq!(closed(nodes[0].id).await, 1);
    assert_eq!(closed(NodeId(5)).await, 0, "no such node");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_answer_is_not_waited_for_longer_than_the_limit() {
    let bus = Bus::default();
    let nodes = [node(&bus, "a"), node(&bus, "b")];
    nodes[0].play_shards(&[("lobby", 1)], 0);
    settle().await;
    nodes[1].broker.unsubscribe(vec![peers::nodes_channel(Names::Present)]);
    let started = Instant::now();
    let Survey { found, complete } = nodes[0].bridge.peers.channels(None).await;
    assert_eq!((found.len(), complete), (1, false));
    assert!(started.elapsed() < Duration::from_secs(3));
}

/// A node of the first version, played by a test with the words of that version.
struct Old {
    broker: Arc<dyn Broker>,
    events: Events,
}

impl Old {
    async fn join(bus: &Bus) -> Self {
        let (broker, events) = bus.join();
        let own = channel("fanout:former:node:000000000000000a");
        broker.subscribe(vec![channel("fanout:former:nodes"), own]).await;
        Self { broker, events }
    }

    async fn announce(&self) {
        self.say(
            "fanout:former:nodes",
            r#"{"type":"node","from":10,"name":"old","version":"0.0.9","startedAtMs":5,"connections":1,"users":0,"channels":3,"hello":true}"#,
        )
        .await;
    }

    async fn say(&self, on: &str, words: &str) {
        self.broker.publish(text(&channel(on), words), PublishOptions::default()).await.unwrap();
    }

    /// What it has heard of this type, by the fields that it knows.
    fn heard(&mut self, kind: &str) -> Vec<serde_json::Value> {
        let mut heard = Vec::new();
        while let Ok(batch) = self.events.try_recv() {
            for event in batch {
                let BrokerEvent::Publication(publication) = event else { continue };
                let words: serde_json::Value = serde_json::from_slice(publication.payload.bytes()).unwrap();
                heard.extend((words["type"] == kind && words["from"] != 10).then_some(words));
            }
        }
        heard
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_of_the_first_version_is_listed_and_hears_who_is_there() {
    let bus = Bus::default();
    let (f, mut old) = (node(&bus, "new"), Old::join(&bus).await);
    settle().await;
    old.heard("node");
    assert!(!f.bridge.peers.are_mute(), "nobody is there");
    old.announce().await;
    settle().await;
    let names: Vec<_> = f.bridge.peers.nodes().found.into_iter().map(|info| info.name).collect();
    assert_eq!(names, ["new", "old"]);
    assert!(f.bridge.peers.are_mute());
    let answer = old.heard("node");
    assert_eq!(answer.len(), 1, "its hello is answered: {answer:?}");
    let known = ["from", "name", "version", "startedAtMs", "connections", "users", "channels", "hello"];
    assert!(known.iter().all(|field| answer[0].get(field).is_some()), "{answer:?}");
    assert_eq!(answer[0]["name"], "new");
}

#[tokio::test(start_paused = true)]
async fn nodes_of_both_versions_disconnect_a_user_on_each_other() {
    let bus = Bus::default();
    let (f, mut old) = (node(&bus, "new"), Old::join(&bus).await);
    f.play_shards(&[("lobby", 1)], 3);
    settle().await;
    old.announce().await;
    settle().await;
    old.heard("ask");

    let peers = f.bridge.peers.clone();
    let asked =
        tokio::spawn(
            async move { peers.disconnect(Who::User("ann".into()), CloseReason::Disconnected).await },
        );
    settle().await;
    let heard = old.heard("ask");
    assert_eq!(heard.len(), 1, "once: {heard:?}");
    assert_eq!(heard[0]["question"]["user"], "ann");
    let (request, to) = (&heard[0]["request"], format!("fanout:former:node:{}", f.id));
    let reply = format!(
        r#"{{"type":"reply","from":10,"request":{request},"answer":{{"closed":2,"channels":{{}}}},"more":false}}"#
    );
    old.say(&to, &reply).await;
    assert_eq!(
        asked.await.unwrap(),
        Disconnected { closed: 8, complete: true },
        "two shards, and the old node"
    );

    let ask = r#"{"type":"ask","from":10,"request":7,"question":{"ask":"disconnect","user":"ann","connection":null,"reason":"disconnected"}}"#;
    old.say("fanout:former:nodes", ask).await;
    settle().await;
    let replies = old.heard("reply");
    assert_eq!(replies.len(), 1, "{replies:?}");
    assert_eq!((&replies[0]["request"], &replies[0]["answer"]["closed"]), (&7.into(), &6.into()));
}

#[tokio::test(start_paused = true)]
async fn the_former_names_are_used_while_an_old_node_speaks_and_not_30_s_longer() {
    let bus = Bus::default();
    let (f, mut old) = (node(&bus, "new"), Old::join(&bus).await);
    for _ in 0..20 {
        old.announce().await;
        sleep(Duration::from_secs(3)).await;
    }
    assert_eq!((f.metrics.former_names.get(), f.bridge.peers.nodes().found.len()), (1, 2));
    sleep(Duration::from_secs(31)).await;
    assert_eq!(f.metrics.former_names.get(), 0);
    old.heard("node");
    old.announce().await;
    sleep(Duration::from_secs(10)).await;
    assert_eq!(
        (old.heard("node").len(), f.bridge.peers.nodes().found.len()),
        (0, 1),
        "nobody listens or speaks there"
    );
}

#[tokio::test(start_paused = true)]
async fn neither_a_reconnect_nor_a_node_that_is_listed_but_not_heard_brings_the_former_names_back() {
    let (events, receiver) = mpsc::channel(8);
    let bus = Bus::default();
    let (broker, _) = bus.join();
    let old = Old::join(&bus).await;
    events.send(vec![BrokerEvent::Connected { link: LinkId(0) }]).await.unwrap();
    let f = node_over(broker, receiver, "a");
    settle().await;
    assert_eq!(f.metrics.former_names.get(), 1);
    for _ in 0..480 {
        f.bridge.peers.listed_are(Some(1));
        sleep(Duration::from_secs(15)).await;
    }
    assert_eq!(f.metrics.former_names.get(), 0);
    let again = [
        BrokerEvent::Disconnected { link: LinkId(0), reason: "x".into() },
        BrokerEvent::Connected { link: LinkId(0) },
    ];
    events.send(again.into()).await.unwrap();
    settle().await;
    f.bridge.peers.listed_are(Some(1));
    settle().await;
    old.announce().await;
    settle().await;
    assert_eq!((f.metrics.former_names.get(), f.bridge.peers.others()), (0, 0));
}

/// A bus whose rules do not grant the present names.
struct Refusing(Arc<dyn Broker>);

impl Refusing {
    fn is_refused(channel: &ChannelName) -> bool {
        let local = channel.local();
        channel.namespace() == INTERNAL_NAMESPACE
            && (local.starts_with("node") || local.starts_with("canary"))
    }
}

impl Broker for Refusing {
    fn subscribe(&self, channels: Vec<ChannelName>) -> Reply<Vec<NotSubscribed>> {
        let (refused, granted): (Vec<_>, Vec<_>) = channels.into_iter().partition(Self::is_refused);
        let granted = self.0.subscribe(granted);
        Box::pin(async {
            let refused = refused.into_iter().map(|channel| (channel, BrokerError::Refused("NOPERM".into())));
            refused.chain(granted.await).collect()
        })
    }

    fn unsubscribe(&self, channels: Vec<ChannelName>) {
        self.0.unsubscribe(channels);
    }

    fn publish(
        &self,
        publication: Publication,
        options: PublishOptions,
    ) -> Reply<Result<Published, BrokerError>> {
        if Self::is_refused(&publication.channel) {
            return Box::pin(async { Err(BrokerError::Refused("NOPERM".into())) });
        }
        self.0.publish(publication, options)
    }

    fn link(&self, channel: &ChannelName) -> LinkId {
        self.0.link(channel)
    }

    fn links(&self) -> u16 {
        self.0.links()
    }

    fn rebuild(&self, link: LinkId, side: Side, reason: &str) {
        self.0.rebuild(link, side, reason);
    }
}

#[tokio::test(start_paused = true)]
async fn where_redis_does_not_grant_the_present_names_nodes_go_on_by_the_former_ones() {
    let bus = Bus::default();
    let join = |name| {
        let (broker, events) = bus.join();
        node_over(Arc::new(Refusing(broker)), events, name)
    };
    let nodes = [join("a"), join("b")];
    nodes.iter().for_each(|node| node.play_shards(&[("lobby", 1)], 1));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(nodes[0].bridge.peers.others(), 1);
    assert!(nodes[0].bridge.health.borrow().verified);
    assert!(!nodes[0].bridge.peers.are_mute() && nodes[0].bridge.peers.echoed_at().is_some());
    let told = nodes[0].bridge.peers.disconnect(Who::User("ann".into()), CloseReason::Disconnected).await;
    assert_eq!(told, Disconnected { closed: 4, complete: true });
    assert_eq!(
        nodes[1].bridge.peers.channels(None).await.found,
        [(channel("lobby"), 4)].into(),
        "each node counts once"
    );
}

#[tokio::test(start_paused = true)]
async fn nodes_tell_each_other_that_they_are_heard() {
    let bus = Bus::default();
    let alone = node(&bus, "a");
    sleep(Duration::from_secs(20)).await;
    assert_eq!(alone.bridge.peers.echoed_at(), None);
    let other = node(&bus, "b");
    sleep(Duration::from_secs(60)).await;
    for peers in [&alone.bridge.peers, &other.bridge.peers] {
        assert!(peers.echoed_at().is_some_and(|at| at.elapsed() <= Duration::from_secs(4)));
        assert_eq!((peers.others(), peers.are_mute()), (1, false));
    }
    // It speaks, but hears nothing any more.
    other.broker.unsubscribe(vec![peers::nodes_channel(Names::Present)]);
    sleep(Duration::from_secs(30)).await;
    assert!(alone.bridge.peers.echoed_at().is_some_and(|at| at.elapsed() >= Duration::from_secs(16)));
    assert_eq!(alone.bridge.peers.others(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_stopped_forgets_no_node_that_spoke_meanwhile() {
    let bus = Bus::default();
    let nodes = [node(&bus, "a"), node(&bus, "b")];
    settle().await;
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(nodes[0].bridge.peers.nodes().found.len(), 2);
    settle().await;
    assert_eq!(nodes[0].bridge.peers.nodes().found.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_disconnect_that_a_node_did_not_hear_says_so_and_is_done_when_it_is_back_for_what_was_open_then() {
    let bus = Bus::default();
    let nodes = [node(&bus, "a"), node(&bus, "b")];
    nodes[0].play_shards(&[], 10);
    let asked = nodes[1].record_disconnects();
    settle().await;
    let here = &nodes[0].bridge.peers;
    let deaf = vec![peers::nodes_channel(Names::Present), peers::node_channel(Names::Present, nodes[1].id)];
    nodes[1].broker.unsubscribe(deaf.clone());
    nodes[0].broker.unsubscribe(vec![peers::nodes_channel(Names::Present)]);
    let told = here.disconnect(Who::User("ann".into()), CloseReason::Disconnected).await;
    assert_eq!(told, Disconnected { closed: 20, complete: false });
    sleep(Duration::from_secs(12)).await;
    assert_eq!(here.others(), 0, "it is not counted on any more");
    let told = here.disconnect(Who::User("bob".into()), CloseReason::Disconnected).await;
    assert_eq!(told, Disconnected { closed: 20, complete: false }, "but missed");

    nodes[0].broker.subscribe(vec![peers::nodes_channel(Names::Present)]).await;
    nodes[1].broker.subscribe(deaf).await;
    let back = Instant::now();
    while nodes[0].metrics.unfinished_disconnects.get() > 0 {
        sleep(Duration::from_millis(100)).await;
        assert!(back.elapsed() < Duration::from_secs(5), "it announces itself, is asked and answers");
    }
    let asked = std::mem::take(&mut *asked.lock().unwrap());
    let ages = |user: &str| -> Vec<u64> {
        asked.iter().filter(|(name, _)| name == user).map(|(_, age)| age.as_secs()).collect()
    };
    // The first one waited 2 s for answers, then 12 s passed until the second one.
    let ([ann, same_ann], [bob, same_bob]) = (&ages("ann")[..], &ages("bob")[..]) else {
        panic!("{asked:?}")
    };
    assert!(ann == same_ann && (14..19).contains(ann) && bob == same_bob && *bob < 5, "{asked:?}");
    assert!(here.disconnect(Who::User("bob".into()), CloseReason::Disconnected).await.complete);
}

#[tokio::test(start_paused = true)]
async fn a_disconnect_that_a_shard_has_not_answered_is_not_complete_and_is_asked_again() {
    for stuck in [0, 1] {
        let bus = Bus::default();
        let nodes = [node(&bus, "a"), node(&bus, "b")];
        for (number, f) in nodes.iter().enumerate() {
            f.play_shard(0);
            if number != stuck {
                f.play_shard(1);
            }
        }
        settle().await;
        let peers = &nodes[0].bridge.peers;
        let told = peers.disconnect(Who::User("ann".into()), CloseReason::Disconnected).await;
        assert_eq!(told, Disconnected { closed: 3, complete: false }, "node {stuck}");
        sleep(Duration::from_secs(10)).await;
        assert_eq!(nodes[0].metrics.unfinished_disconnects.get(), 1, "it is still stuck");
        nodes[stuck].play_shard(1);
        sleep(Duration::from_secs(10)).await;
        assert_eq!(nodes[0].metrics.unfinished_disconnects.get(), 0);
        let told = peers.disconnect(Who::User("ann".into()), CloseReason::Disconnected).await;
        assert_eq!(told, Disconnected { closed: 4, complete: true });
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_shard_has_not_answered_is_asked_for_again() {
    let f = node(&Bus::default(), "a");
    settle().await;
    let connection = ConnectionId { shard: 1, slot: 0, generation: 0 };
    let who = Who::Client { node: f.id, connection, user: None };
    let told = f.bridge.peers.disconnect(who, CloseReason::Disconnected).await;
    assert_eq!(told, Disconnected { closed: 0, complete: false });
    f.play_shard(1);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(f.metrics.unfinished_disconnects.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_disconnect_without_a_link_or_with_nodes_that_are_listed_only_is_not_complete() {
    let bus = Bus::default();
    let (broker, _) = bus.join();
    let (events, receiver) = mpsc::channel(8);
    let f = node_over(broker, receiver, "a");
    f.play_shards(&[], 1);
    let disconnect = || f.bridge.peers.disconnect(Who::User("ann".into()), CloseReason::Disconnected);
    assert_eq!(disconnect().await, Disconnected { closed: 2, complete: false }, "not connected yet");
    events.send(vec![BrokerEvent::Connected { link: LinkId(0) }]).await.unwrap();
    settle().await;
    assert!(disconnect().await.complete);
    f.bridge.peers.listed_are(Some(1));
    assert!(!disconnect().await.complete);
    f.bridge.peers.listed_are(None);
    assert!(disconnect().await.complete);
    events.send(vec![BrokerEvent::Disconnected { link: LinkId(0), reason: "x".into() }]).await.unwrap();
    settle().await;
    let other = ConnectionId { shard: 0, slot: 0, generation: 0 };
    let client = |node| Who::Client { node, connection: other, user: None };
    assert!(!f.bridge.peers.disconnect(client(NodeId(5)), CloseReason::Disconnected).await.complete);
    assert!(f.bridge.peers.disconnect(client(f.id), CloseReason::Disconnected).await.complete, "it is here");
}

#[tokio::test(start_paused = true)]
async fn nonsense_on_the_nodes_channel_is_skipped() {
    let f = node(&Bus::default(), "a");
    for payload in ["", "{}", r#"{"type":"later","from":1}"#] {
        f.publish(text(&peers::nodes_channel(Names::Present), payload)).await;
    }
    let binary = crate::domain::Payload::Binary(Bytes::from_static(b"\xff"));
    f.publish(Publication::bare(peers::nodes_channel(Names::Present), binary)).await;
    settle().await;
    assert_eq!(f.bridge.peers.nodes().found.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_client_or_a_backend_publishes_is_never_taken_for_what_a_node_says() {
    let bus = Bus::default();
    let (f, mut old) = (node(&bus, "a"), Old::join(&bus).await);
    settle().await;
    let origin = stamped("a", 0, 1).origin;
    for names in [Names::Present, Names::Former] {
        for words in [
            r#"{"type":"node","from":10,"name":"x","version":"1","startedAtMs":5,"connections":1,"users":0,"channels":3}"#,
            r#"{"type":"ask","from":10,"request":7,"question":{"ask":"disconnect","user":"ann","connection":null,"reason":"disconnected"}}"#,
        ] {
            let said = Publication { origin, ..text(&peers::nodes_channel(names), words) };
            old.broker.publish(said, PublishOptions::default()).await.unwrap();
        }
    }
    settle().await;
    assert_eq!(f.bridge.peers.others(), 0);
    assert!(f.mail(0).is_empty() && f.mail(1).is_empty(), "no shard is asked");
    assert!(old.heard("reply").is_empty());
}

#[tokio::test(start_paused = true)]
async fn nodes_that_come_back_together_answer_each_other_once() {
    let bus = Bus::default();
    let (listener, mut events) = bus.join();
    listener.subscribe(vec![peers::nodes_channel(Names::Present)]).await;
    let nodes: Vec<_> = (0..20).map(|number| node(&bus, &number.to_string())).collect();
    settle().await;
    assert!(nodes.iter().all(|node| node.bridge.peers.nodes().found.len() == 20));
    let mut announcements = 0;
    while events.try_recv().is_ok() {
        announcements += 1;
    }
    // Some 3 or 4 of each, by chance; an answer to every hello would be 20 of each.
    assert!(announcements <= 160, "{announcements} announcements of 20 nodes");
}

#[tokio::test(start_paused = true)]
async fn a_bridge_without_its_loop_is_dead_and_says_so() {
    let (broker, _) = Bus::default().join();
    let (events, stream) = mpsc::channel(1);
    let f = node_over(broker, stream, "a");
    settle().await;
    assert!(!f.bridge.died.is_cancelled());
    drop(events);
    timeout(Duration::from_secs(1), f.bridge.died.cancelled()).await.unwrap();
}
