//! Ends of connections, and what is counted of them up to the sums that the metrics page shows.

use super::*;
use crate::{domain::KeyId, shard::Totals};

/// How many connections ended so.
fn ended(bench: &Bench, reason: CloseReason) -> u64 {
    let totals = Totals::of(std::iter::once(&*bench.core.metrics));
    let of = |(other, count): &(CloseReason, u64)| (*other == reason).then_some(*count);
    totals.closed.iter().find_map(of).expect("every reason is counted")
}

#[test]
fn a_certain_gap_of_a_crowded_channel_closes_everyone_who_cannot_be_told_and_nobody_else() {
    const CROWD: usize = 300;
    let mut bench = Bench::new();
    let mut crowd: Vec<_> = (0..CROWD).map(|_| bench.connect(Protocol::RawBare, &["a"])).collect();
    let mut other = bench.connect(Protocol::RawBare, &["b"]);
    // A pass over it has begun.
    bench.publish("a", "x");
    bench.core.visits(|| 0);
    bench.core.gap(&[name("a")], true, "overflow");
    for client in &mut crowd {
        assert_eq!(bench.frames(client).last().map(String::as_str), Some("close 3010"));
        bench.hear(client, Opcode::Close, &3010_u16.to_be_bytes());
        bench.turn();
    }
    assert_eq!((ended(&bench, CloseReason::Gap), bench.core.seats.taken()), (CROWD as u64, 1));
    bench.publish("b", "x");
    assert_eq!(bench.frames(&mut other), ["x"]);
    assert_eq!(bench.log_bytes(), 0);
}

#[test]
fn each_end_is_counted_by_its_reason() {
    let mut bench = Bench::new();
    let mut settings = rules(SETTINGS);
    let hub = &mut Arc::get_mut(&mut settings).unwrap().hub;
    (hub.max_message_bytes, hub.limits.messages_per_second, hub.limits.idle_timeout_seconds) = (100, 1, 100);
    bench.set_rules(settings);
    let expiring = Identity { expires_at: Some(5), ..Identity::default() };
    let _expiring = bench.connect_as(Protocol::RawBare, expiring, &["a"]);
    let _silent = bench.connect(Protocol::RawBare, &["a"]);
    let _idle = bench.connect(Protocol::Sse, &["a"]);
    let (large, many) = (bench.connect(Protocol::RawBare, &["a"]), bench.connect(Protocol::RawBare, &["a"]));
    bench.hear(&large, Opcode::Text, &[b'x'; 101]);
    for _ in 0..3 {
        bench.hear(&many, Opcode::Ping, b"");
    }
    bench.pass(120_000);
    let counted = [
        CloseReason::MessageTooBig,
        CloseReason::TooManyRequests,
        CloseReason::TokenExpired,
        CloseReason::NoPong,
        CloseReason::Idle,
    ];
    assert_eq!(counted.map(|reason| ended(&bench, reason)), [1; 5]);
}

#[test]
fn what_is_done_about_slow_clients_has_a_sum_for_each_action() {
    let bench = Bench::new();
    let metrics = &*bench.core.metrics;
    metrics.slow_disconnected.add(1);
    metrics.slow_dropped.add(2);
    metrics.slow_dropped_newest.add(3);
    metrics.slow_conflated.add(4);
    metrics.write_timeouts.add(5);
    metrics.panics.add(6);
    let totals = Totals::of([metrics, metrics].into_iter());
    let Totals { slow_disconnected, slow_dropped, slow_dropped_newest, slow_conflated, .. } = totals;
    assert_eq!([slow_disconnected, slow_dropped, slow_dropped_newest, slow_conflated], [2, 4, 6, 8]);
    assert_eq!([totals.write_timeouts, totals.panics], [10, 12]);
}

#[test]
fn whoever_is_closed_with_many_others_is_told_when_to_come_back_and_browsers_at_different_times() {
    let reasons = [CloseReason::Gap, CloseReason::NoPong, CloseReason::MaxAge, CloseReason::TokenExpired];
    for reason in reasons.into_iter().chain([CloseReason::DrainForced]) {
        let mut bench = Bench::new();
        let mut bare = bench.connect(Protocol::RawBare, &["a"]);
        let mut framed = bench.connect(Protocol::RawFramed, &["a"]);
        let mut streams: Vec<_> = (0..20).map(|_| bench.connect(Protocol::Sse, &["a"])).collect();
        bench.frames(&mut framed);
        for slot in bench.core.slots.taken() {
            bench.core.close(slot, reason, None);
        }
        bench.drain(&mut bare);
        let text = String::from_utf8_lossy(&bare.received).into_owned();
        assert!(text.ends_with(" after=0 jitter=15000"), "{reason:?}: {text}");
        let told = bench.frames(&mut framed);
        assert_eq!(told[0], r#"{"reconnect":{"afterMs":0,"jitterMs":15000,"positions":[]}}"#, "{reason:?}");
        let mut retries = std::collections::HashSet::new();
        for stream in &mut streams {
            bench.drain(stream);
            retries.insert(last_retry(&stream.received));
        }
        assert!(
            retries.len() > 15 && retries.iter().all(|retry| *retry <= 15_000),
            "{reason:?}: {retries:?}"
        );
    }
}

#[test]
fn every_reason_that_is_documented_to_come_with_advice_does() {
    let bench = Bench::new();
    for reason in CloseReason::ALL {
        assert_eq!(bench.core.advice(reason).is_some(), reason.reconnect() == Reconnect::Yes, "{reason:?}");
    }
}

#[test]
fn sessions_of_a_removed_key_end_at_the_pace_that_is_given_and_no_others_do() {
    const MANY: u32 = 60;
    let [removed, kept] = [1, 2].map(KeyId::new);
    let mut bench = Bench::new();
    let by = |key| Identity {
        grants: Arc::new(Grants { key: Some(key), ..Grants::default() }),
        ..Identity::default()
    };
    let _ending: Vec<_> =
        (0..MANY).map(|_| bench.connect_as(Protocol::RawBare, by(removed), &["a"])).collect();
    let _staying = bench.connect_as(Protocol::RawBare, by(kept), &["a"]);
    let _anonymous = bench.connect(Protocol::RawBare, &["a"]);
    bench.core.set_keys(Arc::new([kept].into()), Duration::from_millis(100));
    // No client answers the close frame, so each end is counted after the time for that.
    let counts: Vec<_> = (0..14)
        .map(|_| {
            bench.pass(1_000);
            ended(&bench, CloseReason::TokenExpired)
        })
        .collect();
    // Tokens end at whole seconds, ten in each.
    let in_a_second: Vec<_> = counts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(counts[0] <= 20 && in_a_second.iter().all(|count| *count <= 10), "{counts:?}");
    assert_eq!(counts.last(), Some(&u64::from(MANY)));
}
