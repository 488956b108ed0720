//! The Redis broker against a real redis-server: the contract, and what happens when Redis does not do its part.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod certificates;
mod proxy;
mod server;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use fanout_sidecar::{
    bridge::{self, Bridge, Counts, Disconnected, Node, Who},
    broker::{
        self, Broker, BrokerError, BrokerEvent, Events, IdempotencyKey, PublishOptions, Published,
        conformance::{self, publish, send, subscribe, text, texts},
        redis::resp::MAX_BULK,
    },
    domain::{ChannelName, CloseReason, NodeId, Origin, Payload, Publication},
    hub::Hub,
    shard::Packer,
    work::{self, Draft, Lane, NodeRun, Publisher},
};
use futures::future::join_all;
use sidecar_config::{BrokerKind, RedisBroker, RedisTls};
use tempfile::tempdir;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::{
    certificates::Certificates,
    proxy::Proxy,
    server::{PREFIX, Server},
};

type Handle = (Arc<dyn Broker>, Events);

fn open(settings: &RedisBroker) -> Handle {
    broker::open(BrokerKind::Redis(settings), "test")
}

async fn connected(settings: &RedisBroker) -> Handle {
    conformance::connected(&async || open(settings)).await
}

fn channel(name: &str) -> ChannelName {
    name.parse().unwrap()
}

async fn next_event(events: &mut Events) -> BrokerEvent {
    let mut batch =
        timeout(Duration::from_secs(20), events.recv()).await.expect("in time").expect("the broker lives");
    assert_eq!(batch.len(), 1, "{batch:?}");
    batch.remove(0)
}

/// The first reason why there is no connection.
async fn reason(settings: &RedisBroker) -> String {
    let (_broker, mut events) = open(settings);
    match next_event(&mut events).await {
        BrokerEvent::Disconnected { reason, .. } => reason,
        other => panic!("unexpected {other:?}"),
    }
}

async fn resumed(events: &mut Events) {
    let told = drain_until_resumed(events).await;
    assert!(told.iter().all(|event| matches!(event, BrokerEvent::Disconnected { .. })), "{told:?}");
}

async fn lost(events: &mut Events) -> String {
    match next_event(events).await {
        BrokerEvent::Disconnected { reason, .. } => reason,
        other => panic!("unexpected {other:?}"),
    }
}

// === the contract ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_keeps_the_contract() {
    let server = Server::start();
    let settings = server.settings();
    conformance::suite(async || open(&settings)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_keeps_the_contract_by_tls_with_a_client_certificate_and_an_acl_user() {
    let certificates = Certificates::make("redis.test");
    let lines = [
        "tls-cert-file server.crt",
        "tls-key-file server.key",
        "tls-ca-cert-file ca.crt",
        "tls-auth-clients yes",
        "user default off",
        "user fanout on >s3cret resetchannels &test.site:* -@all ~{test.site:* +publish +subscribe +unsubscribe +select +eval +set",
    ];
    let server = Server::prepared(certificates.directory, &lines);
    let at = |name: &str| Some(server.directory.path().join(name));
    let tls = RedisTls {
        ca_file: at("ca.crt"),
        cert_file: at("client.crt"),
        key_file: at("client.key"),
        server_name: Some("redis.test".to_owned()),
    };
    let settings = RedisBroker {
        username_file: Some(server.file("username", "fanout\n")),
        password_file: Some(server.file("password", "s3cret\n")),
        database: 3,
        tls: Some(tls.clone()),
        ..server.settings()
    };
    conformance::suite(async || open(&settings)).await;

    let other_name = RedisTls { server_name: None, ..tls.clone() };
    let told = reason(&RedisBroker { tls: Some(other_name), ..settings.clone() }).await;
    assert!(told.contains("as `localhost` failed") && told.contains("serverName"), "{told}");
    let no_ca = RedisTls { ca_file: at("none.crt"), ..tls.clone() };
    let told = reason(&RedisBroker { tls: Some(no_ca), ..settings.clone() }).await;
    assert!(told.contains("none.crt (broker.redis.tls.caFile)"), "{told}");
    let anonymous = RedisTls { cert_file: None, key_file: None, ..tls.clone() };
    let told = reason(&RedisBroker { tls: Some(anonymous), ..settings.clone() }).await;
    assert!(told.contains("check that Redis trusts broker.redis.tls.certFile"), "{told}");
    let told = reason(&RedisBroker { tls: None, ..settings }).await;
    assert!(told.contains("set broker.redis.tls if it is a TLS port"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publications_keep_their_order_under_load() {
    const COUNT: usize = 200_000;
    let server = Server::start();
    let (broker, mut events) = connected(&server.settings()).await;
    let busy = channel("busy");
    subscribe(&broker, [&busy]).await;
    let received = tokio::spawn(async move {
        let mut numbers = Vec::with_capacity(COUNT);
        while numbers.len() < COUNT {
            let batch = timeout(Duration::from_secs(20), events.recv()).await.expect("in time");
            for event in batch.expect("the broker lives") {
                let BrokerEvent::Publication(publication) = event else { panic!("unexpected {event:?}") };
                let text = std::str::from_utf8(publication.payload.bytes()).unwrap();
                numbers.push(text.parse::<usize>().unwrap());
            }
        }
        numbers
    });
    let mut answers = std::collections::VecDeque::new();
    for number in 0..COUNT {
        answers.push_back(send(&broker, &busy, &number.to_string()));
        // So many are under way that pipelines overlap.
        if answers.len() > 10_000 {
            answers.pop_front().unwrap().await.unwrap();
        }
    }
    let numbers = received.await.unwrap();
    let late = numbers.windows(2).position(|pair| pair[0] + 1 != pair[1]);
    assert_eq!(late.map(|at| &numbers[at..at + 2]), None);
}

#[tokio::test]
async fn what_redis_cli_publishes_arrives_bare() {
    let server = Server::start();
    let (broker, mut events) = connected(&server.settings()).await;
    subscribe(&broker, [&channel("lobby")]).await;
    assert_eq!(server.cli(&["PUBLISH", &format!("{PREFIX}:lobby"), "{\"hi\":1}"]).trim(), "1");
    let expected = Publication::bare(channel("lobby"), Payload::Text(Bytes::from_static(b"{\"hi\":1}")));
    assert_eq!(conformance::next(&mut events, 1).await, [expected]);
}

#[tokio::test]
async fn an_envelope_of_another_version_is_told_and_dropped() {
    let server = Server::start();
    let (broker, mut events) = connected(&server.settings()).await;
    subscribe(&broker, [&channel("lobby")]).await;
    let script = format!("return redis.call('PUBLISH', '{PREFIX}:lobby', '\\245FN\\2hi')");
    server.cli(&["EVAL", &script, "0"]);
    let event = next_event(&mut events).await;
    assert!(matches!(&event, BrokerEvent::Malformed { channel } if channel.as_str() == "lobby"), "{event:?}");
}

#[tokio::test]
async fn a_message_of_16_mib_passes_and_one_beyond_the_bound_costs_a_reconnect_and_a_gap() {
    // By default Redis itself hangs up at 32 MB.
    let server = Server::prepared(tempdir().unwrap(), &["client-output-buffer-limit pubsub 0 0 0"]);
    let (broker, mut events) = connected(&server.settings()).await;
    subscribe(&broker, [&channel("big")]).await;
    let payload = Bytes::from(vec![0xff; 16 << 20]);
    let publication = Publication::bare(channel("big"), Payload::Binary(payload));
    broker.publish(publication.clone(), PublishOptions::default()).await.unwrap();
    assert_eq!(conformance::next(&mut events, 1).await, [publication]);
    let script = format!("return redis.call('PUBLISH', '{PREFIX}:big', string.rep('x', {}))", MAX_BULK + 1);
    server.cli(&["EVAL", &script, "0"]);
    let told = lost(&mut events).await;
    assert!(told.contains("at most 67108864 are taken"), "{told}");
    resumed(&mut events).await;
    publish(&broker, &channel("big"), "on").await;
    assert_eq!(texts(&mut events, 1).await, ["on"]);
}

#[tokio::test]
async fn a_dropped_handle_closes_its_connections() {
    let server = Server::start();
    let (broker, events) = connected(&server.settings()).await;
    let clients = || server.cli(&["CLIENT", "LIST"]).matches("name=fanout-").count();
    assert_eq!(clients(), 2);
    drop((broker, events));
    timeout(Duration::from_secs(5), async {
        while clients() > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("both are closed");
}

// === when Redis goes away ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_everything_is_subscribed_anew_the_gap_is_told_and_meanwhile_publishing_fails_at_once()
{
    let mut server = Server::start();
    let (broker, mut events) = connected(&server.settings()).await;
    subscribe(&broker, [&channel("kept")]).await;
    let given_back = channel("given-back");
    subscribe(&broker, [&given_back]).await;
    server.kill();
    lost(&mut events).await;

    let started = Instant::now();
    let refused = send(&broker, &channel("kept"), "lost").await.unwrap_err();
    assert!(matches!(&refused, BrokerError::Unavailable(_)), "{refused:?}");
    assert!(started.elapsed() < Duration::from_millis(100), "at once: {:?}", started.elapsed());
    broker.unsubscribe(vec![given_back.clone()]);
    let early = broker.subscribe(vec![channel("early")]).await;
    assert!(matches!(&early[..], [(_, BrokerError::Unavailable(_))]), "{early:?}");
    let waited = started.elapsed();
    assert!(waited > Duration::from_secs(4) && waited < Duration::from_secs(7), "{waited:?}");
    let late = broker.subscribe(vec![channel("late")]);

    server.restart();
    assert_eq!(timeout(Duration::from_secs(10), late).await.expect("subscribed once Redis was back"), []);
    let told = drain_until_resumed(&mut events).await;
    assert!(told.iter().all(|event| matches!(event, BrokerEvent::Disconnected { .. })), "{told:?}");
    for name in ["kept", "late"] {
        eventually_published(&broker, &channel(name)).await;
        assert_eq!(texts(&mut events, 1).await, ["back"]);
    }
    let subscribed = server.cli(&["PUBSUB", "CHANNELS", "*"]);
    assert!(!subscribed.contains("given-back") && !subscribed.contains("early"), "{subscribed}");
}

async fn drain_until(events: &mut Events, last: impl Fn(&BrokerEvent) -> bool) -> Vec<BrokerEvent> {
    let mut told = Vec::new();
    loop {
        let batch =
            timeout(Duration::from_secs(20), events.recv()).await.expect("in time").expect("it lives");
        told.extend(batch);
        if told.last().is_some_and(&last) {
            told.pop();
            return told;
        }
    }
}

async fn drain_until_resumed(events: &mut Events) -> Vec<BrokerEvent> {
    let mut told = Vec::new();
    loop {
        let batch =
            timeout(Duration::from_secs(20), events.recv()).await.expect("in time").expect("it lives");
        if matches!(batch[..], [BrokerEvent::Connected { .. }, BrokerEvent::Resumed { .. }]) {
            return told;
        }
        told.extend(batch);
    }
}

/// The publisher's connection is its own, and may come back a little later.
async fn eventually_published(broker: &Arc<dyn Broker>, channel: &ChannelName) {
    timeout(Duration::from_secs(10), async {
        while send(broker, channel, "back").await.is_err() {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("publishing works again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_channels_are_subscribed_anew_by_a_few_commands() {
    let mut server = Server::start();
    let (broker, mut events) = connected(&server.settings()).await;
    let channels: Vec<_> = (0..10_000).map(|number| channel(&format!("room:{number}"))).collect();
    for part in channels.chunks(100) {
        subscribe(&broker, part).await;
    }
    server.kill();
    lost(&mut events).await;
    server.restart();
    let started = Instant::now();
    drain_until_resumed(&mut events).await;
    println!("10,000 channels live again {:?} after Redis was", started.elapsed());
    let stats = server.cli(&["INFO", "commandstats"]);
    assert!(stats.contains("cmdstat_subscribe:calls=10,"), "{stats}");
    for channel in channels.iter().step_by(1_999) {
        eventually_published(&broker, channel).await;
        assert_eq!(texts(&mut events, 1).await, ["back"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_redis_is_noticed_on_idle_connections_and_publishing_does_not_hang() {
    let server = Server::start();
    let (broker, mut events) = connected(&server.settings()).await;
    subscribe(&broker, [&channel("a")]).await;
    server.freeze();
    let started = Instant::now();
    let first = send(&broker, &channel("a"), "sent").await.unwrap_err();
    assert!(
        matches!(&first, BrokerError::Unknown(text) if text.contains("did not answer in 2 s")),
        "{first:?}"
    );
    sleep(Duration::from_millis(50)).await;
    let again = Instant::now();
    let second = send(&broker, &channel("a"), "not sent").await.unwrap_err();
    assert!(matches!(&second, BrokerError::Unavailable(_)), "{second:?}");
    assert!(again.elapsed() < Duration::from_millis(100), "the second fails at once: {:?}", again.elapsed());
    assert!(lost(&mut events).await.contains("PING"));
    assert!(started.elapsed() < Duration::from_secs(13), "{:?}", started.elapsed());
    server.thaw();
    drain_until_resumed(&mut events).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bridge_that_does_not_keep_up_costs_a_reconnect_and_a_gap_but_no_memory() {
    let limits = ["client-output-buffer-limit pubsub 4mb 0 0"];
    let server = Server::prepared(tempdir().unwrap(), &limits);
    let (broker, mut events) = connected(&server.settings()).await;
    subscribe(&broker, [&channel("flood")]).await;
    // More than what sockets, queue and Redis may hold.
    let megabyte = text(&channel("flood"), &"x".repeat(1 << 20));
    for _ in 0..200 {
        broker.publish(megabyte.clone(), PublishOptions::default()).await.unwrap();
    }
    let mut told = Vec::new();
    while let Ok(batch) = timeout(Duration::from_secs(2), events.recv()).await {
        told.extend(batch.expect("the broker lives"));
    }
    let taken = told.iter().filter(|event| matches!(event, BrokerEvent::Publication(_))).count();
    assert!((1..150).contains(&taken), "{taken} publications were held");
    assert!(told.iter().any(|event| matches!(event, BrokerEvent::Resumed { .. })), "the loss was told");
    publish(&broker, &channel("flood"), "on").await;
    assert_eq!(texts(&mut events, 1).await, ["on"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_that_keeps_redis_busy_costs_no_connection_and_what_is_asked_meanwhile_is_done_after_it() {
    let server = Server::prepared(tempdir().unwrap(), &["busy-reply-threshold 100"]);
    let (broker, mut events) = connected(&server.settings()).await;
    let (kept, given_back, asked) = (channel("kept"), channel("given-back"), channel("asked"));
    subscribe(&broker, [&kept, &given_back]).await;
    let mut script = server.client(&["EVAL", "while true do end", "0"]);
    until("Redis is busy", || server.cli(&["PING"]).contains("BUSY")).await;
    // Longer than the connection may be silent without being asked whether it lives.
    sleep(Duration::from_secs(7)).await;
    let refused = send(&broker, &kept, "not sent").await.unwrap_err();
    assert!(matches!(&refused, BrokerError::Unavailable(text) if text.contains("BUSY")), "{refused:?}");
    broker.unsubscribe(vec![given_back]);
    let subscribed = broker.subscribe(vec![asked.clone()]);
    sleep(Duration::from_secs(1)).await;
    server.cli(&["SCRIPT", "KILL"]);
    script.wait().unwrap();
    assert_eq!(subscribed.await, [], "within the deadline of the request");
    for channel in [&kept, &asked] {
        publish(&broker, channel, "on").await;
        assert_eq!(texts(&mut events, 1).await, ["on"], "and nothing was told before");
    }
    until("what was given back is given back", || {
        !server.cli(&["PUBSUB", "CHANNELS", "*"]).contains("given-back")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_connection_that_may_not_ping_is_kept() {
    let lines = ["user default on nopass allchannels -@all +publish +subscribe +unsubscribe"];
    let server = Server::prepared(tempdir().unwrap(), &lines);
    let (broker, mut events) = connected(&server.settings()).await;
    let kept = channel("kept");
    subscribe(&broker, [&kept]).await;
    sleep(Duration::from_secs(12)).await;
    assert!(events.try_recv().is_err(), "the refusal shows that Redis lives");
    publish(&broker, &kept, "on").await;
    assert_eq!(texts(&mut events, 1).await, ["on"]);
}

// === credentials ===

#[tokio::test]
async fn a_wrong_password_is_told_with_its_file_and_mending_the_file_heals() {
    let server = Server::prepared(tempdir().unwrap(), &["requirepass right"]);
    let password_file = server.file("password", "wrong\n");
    let settings = RedisBroker { password_file: Some(password_file.clone()), ..server.settings() };
    let (_broker, mut events) = open(&settings);
    let told = lost(&mut events).await;
    let named = format!("{} (broker.redis.passwordFile)", password_file.display());
    assert!(told.contains("WRONGPASS") && told.contains(&named) && told.contains("check that"), "{told}");
    server.file("password", "right\n");
    assert!(matches!(next_event(&mut events).await, BrokerEvent::Connected { .. }));
}

#[tokio::test]
async fn a_missing_password_and_an_unreachable_address_say_what_to_set() {
    let server = Server::prepared(tempdir().unwrap(), &["requirepass right"]);
    let told = reason(&server.settings()).await;
    assert!(told.contains("NOAUTH") && told.contains("set broker.redis.passwordFile"), "{told}");
    let told = reason(&RedisBroker { address: "nowhere.invalid:6379".into(), ..server.settings() }).await;
    assert!(told.contains("failed to resolve nowhere.invalid:6379 (broker.redis.address)"), "{told}");
    server.cli(&["-a", "right", "CONFIG", "SET", "maxclients", "1"]);
    let _the_one = std::net::TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    let password_file = Some(server.file("password", "right"));
    let told = reason(&RedisBroker { password_file, ..server.settings() }).await;
    assert!(told.contains("refused the connection: ERR max number of clients reached"), "{told}");
    let missing = RedisBroker { password_file: Some("/no/such/file".into()), ..server.settings() };
    let told = reason(&missing).await;
    assert!(told.contains("failed to read /no/such/file (broker.redis.passwordFile)"), "{told}");
}

#[tokio::test]
async fn a_channel_that_the_acl_does_not_grant_is_refused_and_others_go_on() {
    let lines = ["user default on nopass resetchannels &test.site:chat:* &test.site:conformance:* +@all"];
    let server = Server::prepared(tempdir().unwrap(), &lines);
    let (broker, mut events) = connected(&server.settings()).await;
    let rooms: Vec<_> = (1..=8).map(|number| channel(&format!("chat:{number}"))).collect();
    let asked = [&rooms[..4], &[channel("secret")], &rooms[4..]].concat();
    let refused = broker.subscribe(asked).await;
    assert!(
        matches!(&refused[..], [(name, BrokerError::Refused(text))] if name.as_str() == "secret" && text.contains("NOPERM")),
        "{refused:?}"
    );
    let refused = send(&broker, &channel("secret"), "x").await.unwrap_err();
    assert!(matches!(&refused, BrokerError::Refused(_)), "{refused:?}");
    for room in &rooms {
        publish(&broker, room, "on").await;
        assert_eq!(texts(&mut events, 1).await, ["on"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_whose_permission_is_revoked_is_lost_alone_and_comes_back_with_it() {
    let server = Server::start();
    let (broker, mut events) = connected(&server.settings()).await;
    let (kept, revoked) = (channel("kept"), channel("revoked"));
    subscribe(&broker, [&kept, &revoked]).await;
    let rule = format!("&{PREFIX}:kept");
    server.cli(&["ACL", "SETUSER", "default", "resetchannels", &rule]);
    // Redis closes the connection of a client that may no longer receive.
    let told = drain_until(&mut events, |event| matches!(event, BrokerEvent::Resumed { .. })).await;
    let lost: Vec<_> = told.iter().filter(|event| matches!(event, BrokerEvent::ChannelLost { .. })).collect();
    assert!(
        matches!(lost[..], [BrokerEvent::ChannelLost { channel, .. }] if *channel == revoked),
        "{told:?}"
    );
    eventually_published(&broker, &kept).await;
    assert_eq!(texts(&mut events, 1).await, ["back"]);
    let connections = server.cli(&["INFO", "stats"]);
    sleep(Duration::from_secs(3)).await;
    let again = server.cli(&["INFO", "stats"]);
    let made = |stats: &str| -> u32 {
        let line = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        line.unwrap().trim().parse().unwrap()
    };
    assert_eq!(made(&again), made(&connections) + 1, "but for redis-cli itself nothing connects again");
    server.cli(&["ACL", "SETUSER", "default", "allchannels"]);
    let told = drain_until(&mut events, |event| matches!(event, BrokerEvent::ChannelResumed { .. })).await;
    assert!(told.is_empty(), "{told:?}");
    publish(&broker, &revoked, "on").await;
    assert_eq!(texts(&mut events, 1).await, ["on"]);
}

// === outcomes ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_outcome_is_repeated_safely_with_a_key() {
    let server = Server::start();
    let (broker, mut events) = connected(&server.settings()).await;
    let room = channel("room");
    subscribe(&broker, [&room]).await;
    let keyed = || {
        let options = PublishOptions { idempotency: Some(IdempotencyKey([9; 16])), room: None };
        let origin = Origin { node: NodeId(7), node_start: 8, sequence: 2, previous_sequence: 1 };
        broker.publish(Publication { origin: Some(origin), ..text(&room, "once") }, options)
    };
    server.freeze();
    let first = keyed().await.unwrap_err();
    assert!(matches!(first, BrokerError::Unknown(_)), "{first:?}");
    server.thaw();
    let deadline = Instant::now() + Duration::from_secs(10);
    let outcome = loop {
        match keyed().await {
            Ok(published) => break published,
            Err(error) => assert!(Instant::now() < deadline, "{error:?}"),
        }
        sleep(Duration::from_millis(20)).await;
    };
    assert!(outcome.duplicate, "it was executed, once Redis went on");
    let mut came = Vec::new();
    while let Ok(batch) = timeout(Duration::from_secs(1), events.recv()).await {
        came.extend(batch.expect("the broker lives"));
    }
    assert!(matches!(came[..], [BrokerEvent::Publication(_), BrokerEvent::Void { .. }]), "{came:?}");
}

#[tokio::test]
async fn a_key_without_its_acl_rules_is_refused_and_never_published_unchecked() {
    let lines = ["user default on nopass allchannels ~other:* +@all"];
    let server = Server::prepared(tempdir().unwrap(), &lines);
    let (broker, mut events) = connected(&server.settings()).await;
    subscribe(&broker, [&channel("a")]).await;
    let options = PublishOptions { idempotency: Some(IdempotencyKey([9; 16])), room: None };
    let refused = broker.publish(text(&channel("a"), "x"), options).await.unwrap_err();
    let rules = format!("+eval +set +publish ~{{{PREFIX}:*");
    assert!(matches!(&refused, BrokerError::Refused(text) if text.contains(&rules)), "{refused:?}");
    server.cli(&[
        "ACL",
        "SETUSER",
        "default",
        "reset",
        "on",
        "nopass",
        &format!("&{PREFIX}:*"),
        &format!("~{{{PREFIX}:*"),
        "+subscribe",
        "+unsubscribe",
        "+publish",
        "+eval",
        "+set",
        "+ping",
    ]);
    publish(&broker, &channel("a"), "without a key").await;
    let options = PublishOptions { idempotency: Some(IdempotencyKey([9; 16])), room: None };
    let outcome = broker.publish(text(&channel("a"), "with a key"), options).await;
    assert_eq!(outcome, Ok(Published::default()), "the rules that were named suffice");
    assert_eq!(texts(&mut events, 2).await, ["without a key", "with a key"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_of_100_mb_waits_for_redis_and_loses_nothing() {
    let server = Server::start();
    let (broker, _events) = connected(&server.settings()).await;
    let publisher = Publisher::new(broker, NodeRun::begin(), 1 << 20, None, work::Metrics::default());
    let payload = Payload::Text(Bytes::from(vec![b'x'; 10_000]));
    let mut outcomes = Vec::new();
    for number in 0..10_000 {
        let draft = Draft::new(channel(&format!("c{number}")), payload.clone());
        let room = publisher.room(Lane::Api, &draft).await;
        outcomes.push(publisher.publish(draft, room));
    }
    let failed: Vec<_> = join_all(outcomes).await.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{} failed: {:?}", failed.len(), failed[0]);
}

// === the right server ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_not_served_by() {
    let (primary, replica) = (Server::start(), Server::start());
    replica.cli(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
    let told = reason(&replica.settings()).await;
    assert!(told.contains(&format!("is a replica of 127.0.0.1:{}", primary.port)), "{told}");
    // An ACL that lets nobody ask: a write tells it.
    let rules =
        ["reset", "on", "nopass", "allchannels", "allkeys", "+subscribe", "+publish", "+ping", "+set"];
    replica.cli(&[&["ACL", "SETUSER", "default"][..], &rules].concat());
    let told = reason(&replica.settings()).await;
    assert!(told.contains("is a replica"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_demoted_is_left_and_the_address_resolved_again() {
    let (old, new) = (Server::start(), Server::start());
    let proxy = Proxy::to(old.port, old.port).await;
    let settings = RedisBroker { address: format!("127.0.0.1:{}", proxy.port), ..old.settings() };
    let (broker, mut events) = connected(&settings).await;
    subscribe(&broker, [&channel("a")]).await;
    old.cli(&["REPLICAOF", "127.0.0.1", &new.port.to_string()]);
    let told = lost(&mut events).await;
    assert!(told.contains("is a replica of"), "{told}");
    let refused = send(&broker, &channel("a"), "nowhere").await.unwrap_err();
    assert!(matches!(refused, BrokerError::Unavailable(_)), "never published into nowhere: {refused:?}");
    proxy.point_to(new.port);
    drain_until_resumed(&mut events).await;
    eventually_published(&broker, &channel("a")).await;
    assert_eq!(texts(&mut events, 1).await, ["back"]);
}

// === the canary ===

fn bridge(settings: &RedisBroker) -> (Bridge, CancellationToken) {
    let (broker, events) = open(settings);
    let shutdown = CancellationToken::new();
    let bridge = bridge::start(bridge::Parts {
        node: Node { run: NodeRun::begin(), name: "a".into(), version: "1".into(), grant: None },
        broker,
        events,
        hub: Hub::default(),
        mailboxes: Vec::new().into(),
        packer: Packer::default(),
        max_message_bytes: Box::new(|| 1 << 16),
        counts: Box::new(Counts::default),
        nodes_service: None,
        metrics: bridge::Metrics::default(),
        shutdown: shutdown.clone(),
    });
    (bridge, shutdown)
}

/// Waits until it holds.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn verified(bridge: &Bridge, verified: bool, within: Duration) -> Duration {
    let started = Instant::now();
    let mut health = bridge.health.clone();
    let waited = timeout(within, health.wait_for(|health| health.verified == verified)).await;
    waited
        .unwrap_or_else(|_| panic!("not {verified} within {within:?}: {:?}", bridge.health.borrow()))
        .unwrap();
    started.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_verified_soon_after_its_start() {
    let server = Server::start();
    let (bridge, shutdown) = bridge(&server.settings());
    let took = verified(&bridge, true, Duration::from_secs(2)).await;
    println!("verified {took:?} after the start, round trip {:?}", bridge.health.borrow().round_trip);
    assert_eq!(bridge.peers.nodes().found.len(), 1);
    shutdown.cancel();
    timeout(Duration::from_secs(3), bridge.tasks.wait()).await.expect("the bridge ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_may_not_publish_is_told_and_keeps_its_connections() {
    let lines = ["user default on nopass allchannels allkeys +@all -publish"];
    let server = Server::prepared(tempdir().unwrap(), &lines);
    let (bridge, _shutdown) = bridge(&server.settings());
    let mut health = bridge.health.clone();
    let refused = timeout(Duration::from_secs(5), health.wait_for(|health| health.receive_only)).await;
    let reason = refused.expect("soon").unwrap().reason.clone().unwrap();
    assert!(reason.contains("NOPERM") && reason.contains("publish"), "{reason}");
    let clients = || server.cli(&["CLIENT", "LIST", "TYPE", "PUBSUB"]);
    let id = |clients: String| clients.split_whitespace().next().map(str::to_owned);
    let before = id(clients());
    sleep(Duration::from_secs(8)).await;
    assert_eq!(id(clients()), before, "the receiving connection is left alone");
    assert!(!health.borrow().verified);
    server.cli(&["ACL", "SETUSER", "default", "+publish"]);
    verified(&bridge, true, Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_may_not_subscribe_is_told_and_keeps_its_connections() {
    let lines = ["user default on nopass allchannels allkeys +@all -subscribe"];
    let server = Server::prepared(tempdir().unwrap(), &lines);
    let (bridge, _shutdown) = bridge(&server.settings());
    let is_told = || {
        let reason = bridge.health.borrow().reason.clone().unwrap_or_default();
        reason.contains("canary") && reason.contains("NOPERM")
    };
    until("it is told", is_told).await;
    let clients = || {
        let list = server.cli(&["CLIENT", "LIST"]);
        let own = list.lines().filter(|line| line.contains("name=fanout-"));
        own.map(|line| line.split_whitespace().next().map(str::to_owned)).collect::<Vec<_>>()
    };
    let before = clients();
    assert_eq!(before.len(), 2);
    // A canary that was taken is waited for 6 s.
    sleep(Duration::from_secs(9)).await;
    assert_eq!(clients(), before, "both connections are left alone");
    server.cli(&["ACL", "SETUSER", "default", "+subscribe"]);
    verified(&bridge, true, Duration::from_secs(12)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_redis_behind_one_address_are_noticed_and_the_connections_made_anew() {
    let (here, there) = (Server::start(), Server::start());
    let proxy = Proxy::to(here.port, there.port).await;
    let settings = RedisBroker { address: format!("127.0.0.1:{}", proxy.port), ..here.settings() };
    let (bridge, _shutdown) = bridge(&settings);
    // One connection went to each: both answer pings, and nothing that goes in comes out.
    sleep(Duration::from_secs(4)).await;
    assert!(!bridge.health.borrow().verified, "{:?}", bridge.health.borrow());
    proxy.point_to(there.port);
    let took = verified(&bridge, true, Duration::from_secs(10)).await;
    println!("verified {took:?} after the address was mended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_went_silent_is_noticed_and_heals() {
    let server = Server::start();
    let proxy = Proxy::to(server.port, server.port).await;
    let settings = RedisBroker { address: format!("127.0.0.1:{}", proxy.port), ..server.settings() };
    let (bridge, _shutdown) = bridge(&settings);
    verified(&bridge, true, Duration::from_secs(5)).await;
    proxy.swallow(true);
    let took = verified(&bridge, false, Duration::from_secs(18)).await;
    println!("no longer verified {took:?} after the connection went silent");
    proxy.swallow(false);
    let took = verified(&bridge, true, Duration::from_secs(15)).await;
    println!("verified again {took:?} after it spoke again");
}

// === what nodes say to each other ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_the_first_version_is_known_asked_and_answered_by_its_own_names() {
    let server = Server::start();
    let (bridge, shutdown) = bridge(&server.settings());
    // It speaks on `test.site:fanout:nodes`, and listens there and on a channel of its own.
    let old = RedisBroker { channel_prefix: format!("{PREFIX}:fanout"), ..server.settings() };
    let (old, events) = connected(&old).await;
    let mut heard = Heard { events, waiting: Vec::new() };
    subscribe(&old, [&channel("nodes"), &channel("node:000000000000000a")]).await;
    until("both listen", || server.cli(&["PUBSUB", "NUMSUB", "test.site:fanout:nodes"]).contains('2')).await;
    let node = r#"{"type":"node","from":10,"name":"old","version":"0.0.9","startedAtMs":5,"connections":1,"users":0,"channels":3,"hello":true}"#;
    publish(&old, &channel("nodes"), node).await;
    until("it is known", || bridge.peers.nodes().found.len() == 2).await;
    assert!(bridge.peers.are_mute());

    let peers = bridge.peers.clone();
    let who = Who::User("ann".into());
    let asked = tokio::spawn(async move { peers.disconnect(who, CloseReason::Disconnected).await });
    let ask = heard.next("ask").await;
    assert_eq!(ask["question"]["user"], "ann");
    let (request, from) = (&ask["request"], ask["from"].as_u64().unwrap());
    let reply = format!(
        r#"{{"type":"reply","from":10,"request":{request},"answer":{{"closed":2,"channels":{{}}}},"more":false}}"#
    );
    publish(&old, &channel(&format!("node:{from:016x}")), &reply).await;
    assert_eq!(asked.await.unwrap(), Disconnected { closed: 2, complete: true });

    let ask = r#"{"type":"ask","from":10,"request":7,"question":{"ask":"disconnect","user":"ann","connection":null,"reason":"disconnected"}}"#;
    publish(&old, &channel("nodes"), ask).await;
    assert_eq!(heard.next("reply").await["request"], 7);
    shutdown.cancel();
    heard.next("leave").await;
}

/// What an old node hears of others.
struct Heard {
    events: Events,
    waiting: Vec<serde_json::Value>,
}

impl Heard {
    /// The next message of this type; others before it are skipped.
    async fn next(&mut self, kind: &str) -> serde_json::Value {
        loop {
            if let Some(at) = self.waiting.iter().position(|words| words["type"] == kind) {
                return self.waiting.drain(..=at).next_back().unwrap();
            }
            let batch = timeout(Duration::from_secs(20), self.events.recv()).await.expect("in time");
            for event in batch.expect("the broker lives") {
                let BrokerEvent::Publication(publication) = event else { continue };
                let words: serde_json::Value = serde_json::from_slice(publication.payload.bytes()).unwrap();
                self.waiting.extend((words["from"] != 10).then_some(words));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nodes_say_is_out_of_reach_for_backends_and_for_nodes_of_other_clusters() {
    let own = "-@all +publish +subscribe +unsubscribe +ping";
    let lines = [
        format!("user node on >n resetchannels &test.site:* &fanout-nodes/test.site/* {own}"),
        format!("user backend on >b resetchannels &test.site:* {own}"),
        format!(
            "user other on >o resetchannels &test.sit:* &test:* &fanout-nodes/test.sit/* &fanout-nodes/test/* {own}"
        ),
        "user default on nopass allchannels +@all".to_owned(),
    ];
    let server = Server::prepared(tempdir().unwrap(), &lines.each_ref().map(String::as_str));
    let settings = RedisBroker {
        username_file: Some(server.file("username", "node")),
        password_file: Some(server.file("password", "n")),
        ..server.settings()
    };
    let (a, _a) = bridge(&settings);
    let (b, _b) = bridge(&settings);
    verified(&a, true, Duration::from_secs(10)).await;
    until("they hear each other", || a.peers.echoed_at().is_some() && b.peers.others() == 1).await;

    let said = server.cli(&["PUBSUB", "CHANNELS", "fanout-nodes/*"]);
    // Both by `nodes`, and each by a channel of its own and by its canary's.
    assert_eq!(said.lines().count(), 5, "{said}");
    for name in said.lines() {
        for (user, password) in [("backend", "b"), ("other", "o")] {
            let told =
                server.cli(&["--user", user, "--pass", password, "--no-auth-warning", "PUBLISH", name, "x"]);
            assert!(told.contains("NOPERM"), "{user} on {name}: {told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_whose_acl_does_not_grant_what_they_say_go_on_by_the_former_names() {
    let lines =
        ["user default on nopass resetchannels &test.site:* -@all +publish +subscribe +unsubscribe +ping"];
    let server = Server::prepared(tempdir().unwrap(), &lines);
    let (a, _a) = bridge(&server.settings());
    let (b, _b) = bridge(&server.settings());
    until("they hear each other", || a.peers.echoed_at().is_some() && b.peers.echoed_at().is_some()).await;
    let told = a.peers.disconnect(Who::User("ann".into()), CloseReason::Disconnected).await;
    assert!(told.complete, "{told:?}");
}
