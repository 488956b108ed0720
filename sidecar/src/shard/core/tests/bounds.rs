//! Bounds of one connection that another bound would hide: each test leaves room in all but its own.

use super::*;

#[test]
fn a_flood_of_bytes_in_few_frames_closes_its_connection_and_no_other() {
    let mut bench = Bench::new();
    let mut settings = rules(SETTINGS);
    let hub = &mut Arc::get_mut(&mut settings).unwrap().hub;
    // Two seconds' worth of bytes is more than the message that always fits.
    hub.max_message_bytes = 1_000;
    (hub.limits.bytes_per_second, hub.limits.messages_per_second) = (1_000, 1_000);
    bench.set_rules(settings);
    let mut flood = bench.connect(Protocol::RawBare, &["a"]);
    let mut other = bench.connect(Protocol::RawBare, &["a"]);
    // With its header a hundred bytes.
    let payload = [b'x'; 94];
    for _ in 0..20 {
        bench.hear(&flood, Opcode::Ping, &payload);
    }
    assert_eq!(bench.frames(&mut flood).len(), 20, "two seconds' worth");
    bench.hear(&flood, Opcode::Ping, &payload);
    assert_eq!(bench.frames(&mut flood), ["close 3013"]);
    bench.hear(&other, Opcode::Ping, b"");
    assert_eq!(bench.frames(&mut other), ["pong "]);
}

#[test]
fn a_token_is_taken_while_publications_fill_the_memory_for_work_and_many_tokens_are_not() {
    let mut bench = Bench::new();
    let mut client = bench.connect(Protocol::RawFramed, &[]);
    bench.frames(&mut client);
    let all = u32::try_from(bench.core.max_work_bytes).unwrap();
    let _publications = Arc::clone(&bench.core.work_bytes).try_acquire_many_owned(all).unwrap();
    bench.hear(&client, Opcode::Text, br#"{"refresh":{"token":"t"}}"#);
    let Ok(Work { task: Task::Refresh { token, held, .. }, .. }) = bench.work.try_recv() else {
        panic!("it was not taken")
    };
    assert_eq!(token, "t");
    drop(held);
    let all = u32::try_from(bench.core.max_token_bytes).unwrap();
    let _tokens = Arc::clone(&bench.core.token_bytes).try_acquire_many_owned(all).unwrap();
    let mut other = bench.connect(Protocol::RawFramed, &[]);
    bench.frames(&mut other);
    bench.hear(&other, Opcode::Text, br#"{"refresh":{"token":"t"}}"#);
    let [told] = &bench.frames(&mut other)[..] else { panic!("one answer") };
    assert!(told.contains("overloaded"), "{told}");
}

/// A client that has read nothing of sixteen messages, where it may lag ten and as many bytes as it likes.
fn lagging(policy: &str) -> (Bench, Client) {
    let mut bench = Bench::new();
    let slow = format!("slowConsumer: {{policy: {policy}, maxLagBytes: 200000000, maxLagMessages: 10}}");
    bench.set_rules(rules(&format!("namespaces: [{{name: default, subscribe: allowed, {slow}}}]")));
    let client = bench.connect(Protocol::RawBare, &["a"]);
    // More than the pipe holds.
    bench.publish("a", &format!("0 {}", "x".repeat(20_000)));
    bench.turn();
    for number in 1..16 {
        bench.publish("a", &format!("{number} "));
        bench.turn();
    }
    (bench, client)
}

#[test]
fn drop_oldest_bounds_a_lag_in_messages_as_well() {
    let (mut bench, mut slow) = lagging("dropOldest");
    // The eleventh leaves five of the first eleven, and with the next five there are ten.
    assert_eq!(numbers(&bench.frames(&mut slow)), [0, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    assert_eq!((bench.core.metrics.slow_dropped.get(), bench.log_bytes()), (5, 0));
}

#[test]
fn drop_newest_bounds_a_lag_in_messages_as_well() {
    let (mut bench, mut slow) = lagging("dropNewest");
    assert_eq!(numbers(&bench.frames(&mut slow)), (0..10).collect::<Vec<_>>());
    assert_eq!((bench.core.metrics.slow_dropped_newest.get(), bench.log_bytes()), (6, 0));
    bench.publish("a", "16 ");
    assert_eq!(numbers(&bench.frames(&mut slow)), [16]);
}
