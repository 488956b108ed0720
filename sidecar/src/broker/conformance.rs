//! The contract of [`Broker`] as a suite that every broker passes. For tests only; it panics on a breach.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::timeout;

use super::{Broker, BrokerError, BrokerEvent, Events, IdempotencyKey, PublishOptions, Published, Reply};
use crate::domain::{ChannelName, ConnectionId, NodeId, Origin, Payload, Publication};

/// What a test calls a node: a handle and its events.
pub type Handle = (Arc<dyn Broker>, Events);

/// No answer and no delivery takes longer.
const SOON: Duration = Duration::from_secs(20);
/// What has not come by then does not come.
const NEVER: Duration = Duration::from_millis(300);

/// Runs every test, each on nodes of its own that `factory` joins to one broker.
///
/// # Panics
/// Where the broker breaks its contract.
pub async fn suite(factory: impl AsyncFn() -> Handle) {
    a_publication_reaches_every_subscribed_node_once(&factory).await;
    every_field_of_a_publication_survives(&factory).await;
    publications_keep_the_order_of_their_calls(&factory).await;
    an_unsubscribed_node_receives_nothing(&factory).await;
    nothing_is_missed_after_subscribe_is_answered(&factory).await;
    a_channel_may_be_left_and_joined_again_at_once(&factory).await;
    many_channels_are_subscribed_in_one_call(&factory).await;
    a_dropped_answer_does_not_undo_the_call(&factory).await;
    a_repeated_key_is_published_once_on_whatever_node(&factory).await;
}

async fn a_publication_reaches_every_subscribed_node_once(factory: &impl AsyncFn() -> Handle) {
    let channel = name("every-node");
    let mut nodes = Vec::new();
    for _ in 0..3 {
        let (broker, events) = connected(factory).await;
        subscribe(&broker, [&channel]).await;
        nodes.push((broker, events));
    }
    publish(&nodes[0].0, &channel, "first").await;
    publish(&nodes[2].0, &channel, "second").await;
    for (_, events) in &mut nodes {
        assert_eq!(texts(events, 2).await, ["first", "second"]);
        nothing_comes(events).await;
    }
}

async fn every_field_of_a_publication_survives(factory: &impl AsyncFn() -> Handle) {
    let (broker, mut events) = connected(factory).await;
    let publication = Publication {
        channel: name("fields"),
        payload: Payload::Binary(Bytes::from_static(b"\r\n\0\xff$5\r\n")),
        origin: Some(Origin { node: NodeId(7), node_start: 8, sequence: 2, previous_sequence: 1 }),
        position: None,
        published_at_us: Some(1_700_000_000_000_123),
        id: Some("id".into()),
        key: Some("key".into()),
        tags: vec![("b".into(), "1".into()), ("a".into(), "2".into())],
        user: Some("ann".into()),
        connection: Some(ConnectionId { shard: 1, slot: 2, generation: 3 }),
    };
    subscribe(&broker, [&publication.channel]).await;
    soon(broker.publish(publication.clone(), PublishOptions::default())).await.expect("published");
    assert_eq!(next(&mut events, 1).await, [publication]);
}

async fn publications_keep_the_order_of_their_calls(factory: &impl AsyncFn() -> Handle) {
    let channel = name("order");
    let (broker, mut events) = connected(factory).await;
    subscribe(&broker, [&channel]).await;
    let answers: Vec<_> = (0..2_000).map(|number| send(&broker, &channel, &number.to_string())).collect();
    for answer in answers.into_iter().rev() {
        soon(answer).await.expect("published");
    }
    let expected: Vec<_> = (0..2_000).map(|number| number.to_string()).collect();
    assert_eq!(texts(&mut events, 2_000).await, expected);
}

async fn an_unsubscribed_node_receives_nothing(factory: &impl AsyncFn() -> Handle) {
    let (left, kept) = (name("left"), name("kept"));
    let (broker, mut events) = connected(factory).await;
    subscribe(&broker, [&left, &kept]).await;
    broker.unsubscribe(vec![left.clone()]);
    broker.unsubscribe(vec![name("never-joined")]);
    publish(&broker, &left, "no").await;
    publish(&broker, &kept, "yes").await;
    assert_eq!(texts(&mut events, 1).await, ["yes"]);
    nothing_comes(&mut events).await;
}

async fn nothing_is_missed_after_subscribe_is_answered(factory: &impl AsyncFn() -> Handle) {
    let (publisher, _) = connected(factory).await;
    let (broker, mut events) = connected(factory).await;
    for number in 0..50 {
        let channel = name(&format!("at-once-{number}"));
        subscribe(&broker, [&channel]).await;
        publish(&publisher, &channel, "now").await;
        assert_eq!(texts(&mut events, 1).await, ["now"]);
    }
}

async fn a_channel_may_be_left_and_joined_again_at_once(factory: &impl AsyncFn() -> Handle) {
    let channel = name("again");
    let (broker, mut events) = connected(factory).await;
    for number in 0..20 {
        let first = broker.subscribe(vec![channel.clone()]);
        broker.unsubscribe(vec![channel.clone()]);
        let second = broker.subscribe(vec![channel.clone()]);
        assert_eq!(soon(second).await, []);
        soon(first).await;
        publish(&broker, &channel, &number.to_string()).await;
        assert_eq!(texts(&mut events, 1).await, [number.to_string()]);
    }
}

async fn many_channels_are_subscribed_in_one_call(factory: &impl AsyncFn() -> Handle) {
    let channels: Vec<_> = (0..3_500).map(|number| name(&format!("many-{number}"))).collect();
    let (broker, mut events) = connected(factory).await;
    subscribe(&broker, &channels).await;
    for channel in channels.iter().step_by(499) {
        publish(&broker, channel, channel.as_str()).await;
        assert_eq!(texts(&mut events, 1).await, [channel.as_str()]);
    }
    broker.unsubscribe(channels);
}

async fn a_dropped_answer_does_not_undo_the_call(factory: &impl AsyncFn() -> Handle) {
    let channel = name("dropped");
    let (broker, mut events) = connected(factory).await;
    subscribe(&broker, [&channel]).await;
    drop(send(&broker, &channel, "still"));
    assert_eq!(texts(&mut events, 1).await, ["still"]);
}

async fn a_repeated_key_is_published_once_on_whatever_node(factory: &impl AsyncFn() -> Handle) {
    let (channel, other) = (name("keyed"), name("keyed-elsewhere"));
    let (near, mut events) = connected(factory).await;
    let (far, _) = connected(factory).await;
    subscribe(&near, [&channel, &other]).await;
    let outcome = async |broker: &Arc<dyn Broker>, to: &ChannelName, key, sequence| {
        let origin = Origin { node: NodeId(7), node_start: 8, sequence, previous_sequence: sequence - 1 };
        let publication = Publication { origin: Some(origin), ..text(to, &sequence.to_string()) };
        let options = PublishOptions { idempotency: Some(IdempotencyKey([key; 16])), room: None };
        soon(broker.publish(publication, options)).await.expect("taken").duplicate
    };
    let told = [
        outcome(&near, &channel, 1, 1).await,
        outcome(&near, &channel, 1, 2).await,
        outcome(&far, &channel, 1, 3).await,
        outcome(&far, &channel, 2, 4).await,
        outcome(&far, &other, 1, 5).await,
    ];
    assert_eq!(told, [false, true, true, false, false]);
    let mut came = Vec::new();
    while came.len() < told.len() {
        for event in soon(events.recv()).await.expect("the broker lives") {
            came.push(match event {
                BrokerEvent::Publication(publication) => {
                    String::from_utf8_lossy(publication.payload.bytes()).into_owned()
                }
                BrokerEvent::Void { origin, .. } => format!("void {}", origin.sequence),
                other => panic!("unexpected {other:?}"),
            });
        }
    }
    assert_eq!(came, ["1", "void 2", "void 3", "4", "5"], "a repetition leaves no hole in the sequence");
}

// === what the tests are made of ===

/// A node whose broker takes publications.
///
/// # Panics
/// Where it does not connect.
pub async fn connected(factory: &impl AsyncFn() -> Handle) -> Handle {
    let (broker, mut events) = factory().await;
    let told = soon(events.recv()).await.expect("a broker tells that it is connected");
    assert!(
        matches!(told[..], [BrokerEvent::Connected { .. }]),
        "a node hears first that it is connected: {told:?}"
    );
    soon(async {
        while send(&broker, &name("probe"), "").await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    (broker, events)
}

/// Exactly `count` publications; other events are a failure.
///
/// # Panics
/// Where something else comes, or too little.
pub async fn next(events: &mut Events, count: usize) -> Vec<Publication> {
    let mut publications = Vec::new();
    while publications.len() < count {
        for event in soon(events.recv()).await.expect("the broker lives") {
            match event {
                BrokerEvent::Publication(publication) => publications.push(publication),
                other => panic!("unexpected {other:?}"),
            }
        }
    }
    assert_eq!(publications.len(), count, "{publications:?}");
    publications
}

/// The texts of exactly `count` publications.
pub async fn texts(events: &mut Events, count: usize) -> Vec<String> {
    let text = |publication: Publication| String::from_utf8_lossy(publication.payload.bytes()).into_owned();
    next(events, count).await.into_iter().map(text).collect()
}

/// Waits for a while.
///
/// # Panics
/// Where an event comes.
pub async fn nothing_comes(events: &mut Events) {
    if let Ok(event) = timeout(NEVER, events.recv()).await {
        panic!("unexpected {event:?}");
    }
}

/// Subscribes.
///
/// # Panics
/// Where the broker refuses.
pub async fn subscribe(broker: &Arc<dyn Broker>, channels: impl IntoIterator<Item = &ChannelName>) {
    assert_eq!(soon(broker.subscribe(channels.into_iter().cloned().collect())).await, []);
}

/// Publishes a text.
///
/// # Panics
/// Where the broker refuses.
pub async fn publish(broker: &Arc<dyn Broker>, channel: &ChannelName, payload: &str) {
    soon(send(broker, channel, payload)).await.expect("published");
}

/// Publishes a text; the outcome comes later.
pub fn send(
    broker: &Arc<dyn Broker>,
    channel: &ChannelName,
    payload: &str,
) -> Reply<Result<Published, BrokerError>> {
    broker.publish(text(channel, payload), PublishOptions::default())
}

/// A bare publication of a text.
pub fn text(channel: &ChannelName, payload: &str) -> Publication {
    Publication::bare(channel.clone(), Payload::Text(Bytes::copy_from_slice(payload.as_bytes())))
}

fn name(text: &str) -> ChannelName {
    format!("conformance:{text}").parse().expect("a good name")
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("the broker answers in time")
}
