//! However many do not read, and whatever they subscribe to, what is kept for them is bounded.

use super::*;

const KIB: usize = 1_024;
const LOGS: usize = 4 * KIB * KIB;
const LOG: u64 = (LOGS / LANE_PART) as u64;
const MESSAGE: usize = 4 * KIB;

/// A shard with little memory, whose clients of `policy` may lag by `max_lag` bytes.
fn bench(policy: &str, max_lag: usize) -> Bench {
    let mut bench = Bench::with_room_for(10_000);
    bench.core.max_log_bytes = LOGS;
    bench.set_rules(rules(&format!(
        "namespaces:
- {{name: default, subscribe: allowed, slowConsumer: {{policy: {policy}, maxLagBytes: {max_lag}, maxLagMessages: 1000000}}}}
- {{name: other, subscribe: allowed}}"
    )));
    bench
}

impl Bench {
    /// As a shard does at the begin of each turn.
    fn press(&mut self) {
        self.core.press();
        self.turn();
    }

    fn flood(&mut self, channel: &str, bytes: usize) {
        for _ in 0..bytes / MESSAGE {
            self.publish(channel, &"x".repeat(MESSAGE));
        }
    }
}

#[test]
fn stuck_clients_of_one_channel_that_each_keep_another_part_of_it_share_a_bound() {
    let mut bench = bench("dropNewest", 128 * KIB);
    let mut stuck = Vec::new();
    for _ in 0..32 {
        stuck.push(bench.connect(Protocol::RawBare, &["a"]));
        // Its pipe is full, its bound is reached, and what comes next is not kept for it.
        bench.flood("a", 256 * KIB);
        bench.press();
        assert!(bench.log_bytes() <= LOG + MESSAGE as u64 + 100, "{}", bench.log_bytes());
    }
    assert_eq!(bench.core.metrics.log_full.get(), 0, "those who came last lost nothing to the others");
    assert!(stuck.iter().all(|client| !bench.is_over(client)));
}

#[test]
fn a_channel_that_is_published_to_faster_than_it_is_sent_loses_messages_which_is_told_and_others_do_not() {
    let mut bench = bench("dropOldest", 64 * KIB);
    let mut bare = bench.connect(Protocol::RawBare, &["a"]);
    let mut framed = bench.connect(Protocol::RawFramed, &["a"]);
    let mut other = bench.connect(Protocol::RawBare, &["b"]);
    bench.frames(&mut framed);
    // Nobody is offered anything meanwhile.
    bench.flood("a", 3 * LOG as usize);
    bench.publish("b", "for another channel");
    assert!(bench.log_bytes() <= 2 * LOG + 2 * MESSAGE as u64, "one log a wire form: {}", bench.log_bytes());
    assert!(bench.core.metrics.log_full.get() > 0);
    assert_eq!(bench.frames(&mut other), ["for another channel"]);

    let told = bench.frames(&mut framed);
    assert!(told.iter().any(|frame| frame.starts_with(r#"{"gap":{"channel":"a""#)), "{} frames", told.len());
    bench.publish("a", "later");
    assert_eq!(bench.frames(&mut framed).len(), 1, "it goes on");
    assert_eq!(
        bench.frames(&mut bare).last().map(String::as_str),
        Some("close 3010"),
        "it can only be closed"
    );
    assert_eq!(bench.log_bytes(), 0);
}

#[test]
fn stuck_clients_of_a_channel_each_share_a_bound() {
    for policy in ["dropOldest", "dropNewest", "conflate"] {
        let mut bench = bench(policy, 128 * KIB);
        let (mut stuck, mut pressure) = (Vec::new(), 0);
        for client in 0..200 {
            let channel = format!("channel{client}");
            stuck.push(bench.connect(Protocol::RawBare, &[&channel]));
            for message in 0..40 {
                let key = message.to_string();
                bench.publish_about(&channel, &key, &"x".repeat(MESSAGE));
                bench.press();
                pressure = pressure.max(bench.core.pressure);
            }
            let bound = LOGS + LOGS / 16 + MESSAGE * (client + 1);
            assert!(bench.log_bytes() as usize <= bound, "{policy}: {}", bench.log_bytes());
        }
        assert!(pressure > 0, "{policy}: memory was short");
        let mut quick = bench.connect(Protocol::RawBare, &["other:a"]);
        bench.publish("other:a", "x");
        assert_eq!(bench.frames(&mut quick), ["x"], "who reads receives");
        stuck.iter_mut().for_each(|client| bench.drain(client));
        bench.press();
        assert_eq!((bench.log_bytes(), bench.core.pressure), (0, 0), "{policy}");
    }
}

#[test]
fn while_the_logs_are_full_mail_waits_until_what_they_hold_was_offered() {
    let mut bench = bench("disconnect", 128 * KIB);
    let clients: Vec<_> =
        (0..8).map(|client| bench.connect(Protocol::RawBare, &[&format!("channel{client}")])).collect();
    for client in 0..8 {
        bench.flood(&format!("channel{client}"), LOGS / 7);
    }
    assert!(bench.core.is_full());
    bench.press();
    assert!(!bench.core.is_full());
    assert!(
        (bench.log_bytes() as usize) < 8 * (MESSAGE + 10),
        "all were too slow; what they began they receive"
    );
    assert_eq!(bench.core.metrics.slow_disconnected.get(), clients.len() as u64);
}

#[test]
fn a_client_that_is_closed_within_a_large_message_reads_the_rest_of_it_and_why() {
    let mut bench = bench("disconnect", 100 * KIB);
    let mut slow = bench.connect(Protocol::RawBare, &["a"]);
    let large = "x".repeat(2 * KIB * KIB);
    bench.publish("a", &large);
    bench.turn();
    bench.flood("a", 200 * KIB);
    bench.turn();
    assert!(bench.log_bytes() > 1_000_000, "the rest counts, wherever it is kept: {}", bench.log_bytes());
    assert_eq!(bench.frames(&mut slow), [large.as_str(), "close 3008"]);
    assert_eq!((bench.log_bytes(), bench.core.metrics.slow_disconnected.get()), (0, 1));

    let gone = bench.connect(Protocol::RawBare, &["a"]);
    bench.publish("a", &large);
    bench.turn();
    bench.flood("a", 200 * KIB);
    bench.turn();
    drop(gone.pipe);
    bench.turn();
    assert_eq!(bench.log_bytes(), 0, "it went without reading the rest");
}
