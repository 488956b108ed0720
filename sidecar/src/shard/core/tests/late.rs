//! A turn that comes late: the process was stopped, and what clients did meanwhile has not been read yet.

use super::*;

impl Bench {
    /// Lets time pass without a turn, then runs the timers before anything is read or written.
    fn stop_for(&mut self, ms: u64) {
        let wait_ms = self.core.wheel.next_in(self.core.now.ms);
        let Now { ms: now_ms, us, unix_us } = self.core.now;
        let now = Now { ms: now_ms + ms, us: us + ms * 1_000, unix_us: unix_us + ms * 1_000 };
        self.core.begin_turn(now, wait_ms);
        let mut due = Vec::new();
        self.core.wheel.expire(self.core.now.ms, &mut due);
        self.core.expire(&due);
    }

    /// Passes time until the client was pinged.
    fn until_pinged(&mut self, client: &mut Client) {
        while self.frames(client) != ["ping"] {
            self.pass(100);
        }
    }
}

#[test]
fn a_pong_that_came_during_a_stop_counts() {
    let mut bench = Bench::new();
    let (mut alive, mut dead) =
        (bench.connect(Protocol::RawBare, &["a"]), bench.connect(Protocol::RawBare, &["a"]));
    bench.until_pinged(&mut alive);
    bench.until_pinged(&mut dead);
    bench.stop_for(13_000);
    bench.hear(&alive, Opcode::Pong, b"");
    bench.pass(6_000);
    assert!(!bench.is_over(&alive));
    assert_eq!(bench.frames(&mut dead), ["close 3012"], "it had its time once more");
}

#[test]
fn a_client_that_reads_again_after_a_stop_is_not_stalled() {
    let mut bench = Bench::new();
    bench.set_rules(rules(&SETTINGS.replace("hub: {", "hub: {limits: {writeTimeoutSeconds: 4}, ")));
    let mut reader = bench.connect(Protocol::RawBare, &["a"]);
    let mut still = bench.connect(Protocol::RawBare, &["a"]);
    for _ in 0..4 {
        bench.publish("a", &"x".repeat(20_000));
    }
    bench.turn();
    bench.pass(1_000);
    bench.stop_for(40_000);
    assert_eq!(bench.frames(&mut reader).iter().filter(|frame| frame.len() == 20_000).count(), 4);
    bench.pass(3_000);
    assert!(!bench.is_over(&still), "it has as long as if it had stalled now");
    bench.pass(2_000);
    let closed = bench.frames(&mut still).iter().any(|frame| frame == "close 3008");
    assert!(closed || bench.is_over(&still));
    assert!(!bench.is_over(&reader));
}

#[test]
fn a_message_that_came_during_a_stop_keeps_a_client_from_being_idle() {
    let mut bench = Bench::new();
    bench.set_rules(rules(&SETTINGS.replace("hub: {", "hub: {limits: {idleTimeoutSeconds: 10}, ")));
    let mut client = bench.connect(Protocol::RawBare, &["a"]);
    bench.pass(5_000);
    bench.stop_for(13_000);
    bench.hear(&client, Opcode::Text, b"x");
    bench.answer_work(&Ok(()));
    bench.pass(9_000);
    assert!(!bench.is_over(&client));
    // The message is noticed at the next look, and the time counts from there.
    bench.pass(12_000);
    assert!(bench.frames(&mut client).iter().any(|frame| frame == "close 3511"));
}

#[test]
fn a_transport_that_came_during_a_stop_is_taken() {
    let mut bench = Bench::new();
    let mut answer = bench.ask(Protocol::RawBare, Identity::default(), &["a"]);
    bench.answer_work(&Ok(()));
    let reserved = answer.try_recv().unwrap().unwrap();
    bench.stop_for(60_000);
    let mut client = bench.attach(reserved);
    bench.publish("a", "hello");
    assert_eq!(bench.frames(&mut client), ["hello"]);
}

#[test]
fn a_shard_that_is_always_late_closes_those_who_do_not_read_all_the_same() {
    let mut bench = Bench::new();
    bench.set_rules(rules(&SETTINGS.replace("hub: {", "hub: {limits: {writeTimeoutSeconds: 4}, ")));
    let still = bench.connect(Protocol::RawBare, &["a"]);
    for _ in 0..4 {
        bench.publish("a", &"x".repeat(20_000));
    }
    bench.turn();
    for _ in 0..10 {
        bench.stop_for(2_000);
        bench.turn();
    }
    assert!(bench.is_over(&still));
}

#[test]
fn a_turn_in_time_puts_nothing_off() {
    let mut bench = Bench::new();
    let mut dead = bench.connect(Protocol::RawBare, &["a"]);
    bench.until_pinged(&mut dead);
    let wait_ms = bench.core.wheel.next_in(bench.core.now.ms).unwrap();
    bench.stop_for(wait_ms + 500);
    assert_eq!(bench.frames(&mut dead), ["close 3012"]);
}
