use std::{collections::VecDeque, sync::Mutex as StdMutex, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::{Semaphore, oneshot},
    time::sleep,
};

use super::*;
use crate::{
    broker::{LinkId, PublishOptions, Published, Reply, Side},
    domain::{NodeId, Origin, Payload, Publication},
    shard::Inbox,
    tests::Written,
};

/// A broker that a test answers by hand.
#[derive(Default)]
struct Script {
    calls: StdMutex<Vec<String>>,
    publications: StdMutex<Vec<Publication>>,
    open: StdMutex<VecDeque<oneshot::Sender<Result<bool, BrokerError>>>>,
    /// What the publications that were not answered hold.
    rooms: StdMutex<Vec<PublishOptions>>,
}

impl Script {
    fn call(&self, text: String) -> oneshot::Receiver<Result<bool, BrokerError>> {
        let (sender, receiver) = oneshot::channel();
        self.calls.lock().unwrap().push(text);
        self.open.lock().unwrap().push_back(sender);
        receiver
    }

    fn answer(&self, result: Result<bool, BrokerError>) {
        self.open.lock().unwrap().pop_front().expect("a call is open").send(result).expect("it waits");
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

impl Broker for Script {
    /// An error is that of the first channel.
    fn subscribe(&self, channels: Vec<ChannelName>) -> Reply<Vec<NotSubscribed>> {
        let answer = self.call(format!("subscribe {channels:?}"));
        Box::pin(async move {
            let failed = answer.await.expect("answered").err();
            channels.into_iter().zip(failed).collect()
        })
    }

    fn unsubscribe(&self, channels: Vec<ChannelName>) {
        self.calls.lock().unwrap().push(format!("unsubscribe {channels:?}"));
    }

    fn publish(
        &self,
        publication: Publication,
        options: PublishOptions,
    ) -> Reply<Result<Published, BrokerError>> {
        let answer = self.call(format!("publish {}", publication.channel));
        self.publications.lock().unwrap().push(publication);
        self.rooms.lock().unwrap().push(options);
        Box::pin(async {
            answer.await.expect("answered").map(|duplicate| Published { position: None, duplicate })
        })
    }

    fn link(&self, _channel: &ChannelName) -> LinkId {
        LinkId(0)
    }

    fn links(&self) -> u16 {
        1
    }

    fn rebuild(&self, _link: LinkId, _side: Side, _reason: &str) {}
}

struct Fixture {
    script: Arc<Script>,
    work: mpsc::Sender<Work>,
    inboxes: Vec<Inbox>,
}

fn fixture() -> Fixture {
    let script = Arc::new(Script::default());
    let (mailboxes, inboxes): (Vec<_>, Vec<_>) = (0..2).map(|_| Mailbox::new(1 << 20, || {})).unzip();
    let node = NodeRun { id: NodeId(7), start: 8 };
    let publisher = Publisher::new(script.clone(), node, 10, None, Metrics::default());
    let desk = Desk::new(Hub::default(), script.clone(), publisher, mailboxes.into());
    let (work, receiver) = mpsc::channel(64);
    tokio::spawn(desk.run(receiver));
    Fixture { script, work, inboxes }
}

impl Fixture {
    async fn ask(&self, shard: u16, task: Task) {
        self.work.send(Work { shard, task }).await.unwrap();
        self.settle().await;
    }

    /// Lets the desk do what it can; paused time makes that certain.
    async fn settle(&self) {
        sleep(Duration::from_millis(1)).await;
    }

    fn told(&self, shard: usize) -> Vec<String> {
        let tell = |mail| match mail {
            Mail::Completion(Completion::Subscribed { channel, result }) => format!("{channel} {result:?}"),
            Mail::Completion(Completion::Published { id, result, .. }) => format!("{id:?} {result:?}"),
            other => panic!("unexpected {other:?}"),
        };
        self.inboxes[shard].take().into_iter().map(tell).collect()
    }
}

fn channel(name: &str) -> ChannelName {
    name.parse().unwrap()
}

fn subscribe(name: &str) -> Task {
    Task::Subscribe { channel: channel(name) }
}

fn unsubscribe(name: &str) -> Task {
    Task::Unsubscribe { channel: channel(name) }
}

fn publish(name: &str, id: &str, payload: &'static str) -> Task {
    Task::Publish {
        connection: ConnectionId { shard: 0, slot: 1, generation: 2 },
        channel: channel(name),
        payload: Payload::Text(Bytes::from_static(payload.as_bytes())),
        id: Some(id.into()),
        idempotency_key: None,
        user: None,
        exposure: Exposure::Hidden,
        held: Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap(),
    }
}

/// A publication with a key, always the same.
fn keyed(user: Option<&str>) -> Task {
    Task::Publish {
        connection: ConnectionId { shard: 0, slot: 1, generation: 2 },
        channel: channel("a"),
        payload: Payload::Text(Bytes::new()),
        id: None,
        idempotency_key: Some("k".to_owned()),
        user: user.map(Into::into),
        exposure: Exposure::Hidden,
        held: Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap(),
    }
}

#[tokio::test(start_paused = true)]
async fn shards_that_want_the_same_channel_share_one_subscription_and_its_answer() {
    let f = fixture();
    f.ask(0, subscribe("a")).await;
    f.ask(1, subscribe("a")).await;
    assert_eq!(f.script.calls(), ["subscribe [\"a\"]"]);
    assert!(f.told(0).is_empty() && f.told(1).is_empty(), "nobody is told before the broker answered");
    f.script.answer(Ok(false));
    f.settle().await;
    assert_eq!((f.told(0), f.told(1)), (vec!["a Ok(())".to_owned()], vec!["a Ok(())".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_refused_subscription_is_told_and_may_be_tried_again() {
    let f = fixture();
    f.ask(0, subscribe("a")).await;
    f.script.answer(Err(BrokerError::Unavailable("down".into())));
    f.settle().await;
    assert_eq!(f.told(0), ["a Err(Unavailable)"]);
    f.ask(0, subscribe("a")).await;
    assert_eq!(f.script.calls(), ["subscribe [\"a\"]", "subscribe [\"a\"]"]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_comes_back_within_the_grace_does_not_reach_the_broker() {
    let f = fixture();
    f.ask(0, subscribe("a")).await;
    f.script.answer(Ok(false));
    f.ask(0, unsubscribe("a")).await;
    f.ask(1, subscribe("a")).await;
    assert_eq!(f.told(1), ["a Ok(())"]);
    sleep(2 * grace::GRACE).await;
    assert_eq!(f.script.calls(), ["subscribe [\"a\"]"]);
    f.ask(1, unsubscribe("a")).await;
    sleep(2 * grace::GRACE).await;
    assert_eq!(f.script.calls(), ["unsubscribe [\"a\"]"]);
}

#[tokio::test(start_paused = true)]
async fn publications_do_not_wait_for_each_other_and_are_answered_one_by_one() {
    let f = fixture();
    for id in ["1", "2", "3"] {
        f.ask(0, publish("a", id, "x")).await;
    }
    assert_eq!(f.script.calls(), ["publish a"; 3]);
    f.script.answer(Ok(false));
    f.script.answer(Err(BrokerError::Unavailable("down".into())));
    f.script.answer(Err(BrokerError::Unknown("lost".into())));
    f.settle().await;
    assert_eq!(
        f.told(0),
        [
            "Some(\"1\") Ok(false)",
            "Some(\"2\") Err(Unavailable)",
            "Some(\"3\") Err(OutcomeUnknown { keyed: false })"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_refused_channel_is_told_alone() {
    let f = fixture();
    for name in ["a", "b", "c"] {
        f.work.send(Work { shard: 0, task: subscribe(name) }).await.unwrap();
    }
    f.settle().await;
    f.script.answer(Err(BrokerError::Refused("NOPERM".into())));
    f.settle().await;
    assert_eq!(f.told(0), ["a Err(BrokerRefused)", "b Ok(())", "c Ok(())"]);
}

#[tokio::test(start_paused = true)]
async fn refusals_by_the_broker_are_logged_with_their_channel_and_reason() {
    let written = Written::default();
    let writer = written.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let f = fixture();
    f.ask(0, subscribe("a")).await;
    f.script.answer(Err(BrokerError::Refused("NOPERM no channel".into())));
    f.settle().await;
    f.ask(0, publish("b", "1", "x")).await;
    f.script.answer(Err(BrokerError::Refused("NOPERM no key".into())));
    f.settle().await;
    let text = written.text();
    let warned = |channel: &str, reason: &str| {
        let is_it = |line: &str| line.contains("WARN") && line.contains(channel) && line.contains(reason);
        text.lines().filter(|line| is_it(line)).count()
    };
    assert_eq!(warned("channel=a", "NOPERM no channel"), 1, "{text}");
    assert_eq!(warned("channel=b", "NOPERM no key"), 1, "{text}");
}

#[tokio::test(start_paused = true)]
async fn publications_wait_for_room_in_order_and_backends_have_their_own() {
    let script = Arc::new(Script::default());
    let publisher = Publisher::new(
        script.clone(),
        NodeRun { id: NodeId(7), start: 8 },
        usize::MAX,
        None,
        Metrics::default(),
    );
    let (mailbox, inbox) = Mailbox::new(1 << 20, || {});
    let desk = Desk::new(Hub::default(), script.clone(), publisher.clone(), vec![mailbox].into());
    let (work, receiver) = mpsc::channel(64);
    tokio::spawn(desk.run(receiver));
    let f = Fixture { script, work, inboxes: vec![inbox] };
    let large: &'static str = Box::leak("x".repeat(20 << 20).into_boxed_str());
    f.ask(0, publish("a", "1", large)).await;
    f.ask(0, publish("a", "2", large)).await;
    f.ask(0, publish("a", "3", "small")).await;
    assert_eq!(f.script.calls(), ["publish a"], "the second waits for room, the third for its turn");
    f.ask(0, subscribe("other")).await;
    assert_eq!(f.script.calls(), ["subscribe [\"other\"]"], "who subscribes has no part in it");
    let draft = Draft::new(channel("b"), Payload::Text(Bytes::from_static(large.as_bytes())));
    let room = publisher.room(Lane::Api, &draft).now_or_never().expect("backends have room of their own");
    drop(publisher.publish(draft, room));
    assert_eq!(f.script.calls(), ["publish b"]);
    f.script.rooms.lock().unwrap().clear();
    f.settle().await;
    assert_eq!(f.script.calls(), ["publish a"; 2]);
    assert!(f.told(0).is_empty(), "waiting is no refusal");
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_redis_is_bounded_by_little_memory_too() {
    let node = NodeRun { id: NodeId(7), start: 8 };
    for (memory, fits) in [(None, 30 << 20), (Some(64 << 20), 3 << 20), (Some(1 << 20), 900 << 10)] {
        let script = Arc::new(Script::default());
        let publisher = Publisher::new(script, node, usize::MAX, memory, Metrics::default());
        let payload = Payload::Binary(Bytes::from(vec![0; fits]));
        let draft = Draft::new(channel("a"), payload);
        let room = publisher.room(Lane::Api, &draft).now_or_never();
        assert!(room.is_some(), "{memory:?}");
        assert!(publisher.room(Lane::Api, &draft).now_or_never().is_none(), "{memory:?}");
        drop(room);
        let large = Draft::new(channel("a"), Payload::Binary(Bytes::from(vec![0; 40 << 20])));
        assert!(publisher.room(Lane::Api, &large).now_or_never().is_some(), "alone it always fits");
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_the_broker_does_not_remember_counts_no_more() {
    let f = fixture();
    for outcome in
        [Err(BrokerError::Unavailable("down".into())), Err(BrokerError::Refused("NOPERM".into())), Ok(true)]
    {
        for _ in 0..10_001 {
            f.work.send(Work { shard: 0, task: keyed(Some("ann")) }).await.unwrap();
            f.settle().await;
            f.script.answer(outcome.clone());
        }
    }
    f.settle().await;
    assert!(f.told(0).iter().all(|told| !told.contains("TooManyKeys")));
    for _ in 0..10_001 {
        f.ask(0, keyed(Some("ann"))).await;
        f.script.open.lock().unwrap().drain(..).for_each(|open| open.send(Ok(false)).unwrap());
    }
    f.settle().await;
    let told = f.told(0);
    let refused: Vec<_> = told.iter().filter(|told| told.contains("TooManyKeys")).collect();
    assert_eq!(refused, ["None Err(TooManyKeys { limit: 10000 })"]);
}

#[tokio::test(start_paused = true)]
async fn a_publication_that_nobody_waits_for_is_not_named_by_the_next() {
    let script = Arc::new(Script::default());
    let node = NodeRun { id: NodeId(7), start: 8 };
    let publisher = Publisher::new(script.clone(), node, 10, None, Metrics::default());
    for _ in 0..2 {
        let draft = Draft::new(channel("a"), Payload::Text(Bytes::new()));
        let room = publisher.room(Lane::Api, &draft).await;
        // Never polled: the caller was gone before its turn.
        drop(publisher.publish(draft, room));
    }
    let publications = script.publications.lock().unwrap();
    let pairs: Vec<_> = publications.iter().map(|p| p.origin.unwrap()).collect();
    let pairs: Vec<_> = pairs.iter().map(|o| (o.previous_sequence, o.sequence)).collect();
    assert_eq!(pairs, [(0, 1), (0, 2)]);
}

#[tokio::test(start_paused = true)]
async fn a_token_counts_until_it_is_checked() {
    let f = fixture();
    let memory = Arc::new(Semaphore::new(1));
    let held = Arc::clone(&memory).try_acquire_owned().unwrap();
    let connection = ConnectionId { shard: 0, slot: 1, generation: 2 };
    let refresh = Task::Refresh { connection, token: "t".to_owned(), id: None, held };
    f.work.send(Work { shard: 0, task: refresh }).await.unwrap();
    assert_eq!(memory.available_permits(), 0);
    memory.acquire().await.unwrap().forget();
}

#[tokio::test(start_paused = true)]
async fn keys_of_two_publishers_never_meet() {
    let f = fixture();
    for user in [Some("ann"), Some("bob"), Some("ann"), None] {
        f.ask(0, keyed(user)).await;
    }
    let keys: Vec<_> =
        f.script.rooms.lock().unwrap().iter().map(|options| options.idempotency.unwrap()).collect();
    assert_eq!(keys[0], keys[2]);
    assert!(keys[0] != keys[1] && keys[0] != keys[3] && keys[1] != keys[3]);
    f.script.answer(Ok(true));
    f.settle().await;
    assert_eq!(f.told(0), ["None Ok(true)"]);
}

#[tokio::test(start_paused = true)]
async fn a_publication_names_its_connection_only_where_publishers_are_exposed() {
    let f = fixture();
    let by = |exposure| match publish("a", "i", "x") {
        Task::Publish { connection, channel, payload, id, idempotency_key, held, .. } => {
            let user = Some("ann".into());
            Task::Publish { connection, channel, payload, id, idempotency_key, user, exposure, held }
        }
        other => panic!("{other:?}"),
    };
    f.ask(0, by(Exposure::Hidden)).await;
    f.ask(0, by(Exposure::Exposed)).await;
    let publications = f.script.publications.lock().unwrap();
    let named: Vec<_> = publications.iter().map(|p| (p.user.as_deref(), p.connection)).collect();
    let connection = ConnectionId { shard: 0, slot: 1, generation: 2 };
    assert_eq!(named, [(Some("ann"), None), (Some("ann"), Some(connection))]);
}

#[tokio::test(start_paused = true)]
async fn each_publication_names_the_one_before_it_unless_that_one_failed() {
    let f = fixture();
    let (failed, unknown) = (BrokerError::Unavailable("down".into()), BrokerError::Unknown("lost".into()));
    for result in [Ok(false), Ok(true), Err(failed), Ok(false), Err(unknown), Ok(false)] {
        f.ask(0, publish("a", "i", "x")).await;
        f.script.answer(result);
        f.settle().await;
    }
    f.ask(0, publish("b", "i", "x")).await;
    let origins: Vec<_> = f.script.publications.lock().unwrap().iter().map(|p| p.origin.unwrap()).collect();
    let pairs: Vec<_> = origins.iter().map(|o| (o.previous_sequence, o.sequence)).collect();
    assert_eq!(pairs, [(0, 1), (1, 2), (2, 3), (0, 4), (4, 5), (5, 6), (0, 1)]);
    assert!(origins.iter().all(|Origin { node, node_start, .. }| (*node, *node_start) == (NodeId(7), 8)));
}

#[tokio::test(start_paused = true)]
async fn a_publication_with_a_key_is_named_once_it_is_certain() {
    let f = fixture();
    f.ask(0, publish("a", "1", "x")).await;
    f.ask(0, keyed(Some("ann"))).await;
    // Redis may still refuse the key.
    f.ask(0, publish("a", "3", "x")).await;
    (0..3).for_each(|_| f.script.answer(Ok(false)));
    f.settle().await;
    f.ask(0, keyed(Some("ann"))).await;
    f.script.answer(Ok(false));
    f.settle().await;
    f.ask(0, publish("a", "5", "x")).await;
    let publications = f.script.publications.lock().unwrap();
    let pairs: Vec<_> = publications.iter().map(|p| p.origin.unwrap()).collect();
    let pairs: Vec<_> = pairs.iter().map(|o| (o.previous_sequence, o.sequence)).collect();
    assert_eq!(pairs, [(0, 1), (1, 2), (0, 3), (3, 4), (4, 5)]);
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_or_meant_for_the_nodes_does_not_reach_the_broker() {
    let f = fixture();
    f.ask(0, publish("a", "large", "eleven byte")).await;
    f.ask(0, publish("fanout:nodes", "internal", "x")).await;
    let told = f.told(0);
    assert!(told[0].contains("message has 11 bytes, at most 10 are allowed"), "{told:?}");
    assert!(told[1].contains("channel fanout:nodes is reserved for internal use"), "{told:?}");
    assert!(f.script.calls().is_empty());
}
