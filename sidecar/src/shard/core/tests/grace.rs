//! What is no slowness: a message larger than the bounds, and a burst to a client that reads.

use super::{
    super::super::slow::{GRACE_MS, STILL_MS},
    *,
};

const POLICIES: [&str; 4] = ["small:a", "oldest:a", "newest:a", "latest:a"];

/// A shard whose clients have their grace.
fn graceful() -> Bench {
    let mut bench = Bench::new();
    bench.core.grace_ms = GRACE_MS;
    bench
}

fn publish_numbers(bench: &mut Bench, channel: &str, count: usize, bytes: usize) {
    for number in 0..count {
        bench.publish(channel, &format!("{number} {}", "x".repeat(bytes)));
    }
}

fn read_some(bench: &mut Bench, client: &mut Client) {
    let mut context = Context::from_waker(Waker::noop());
    if let Poll::Ready(Some(bytes)) = client.pipe.poll_bytes(&mut context) {
        client.received.extend_from_slice(&bytes);
    }
    bench.turn();
}

#[test]
fn a_message_larger_than_the_bounds_reaches_whoever_reads_and_no_gap_is_told() {
    for channel in POLICIES {
        let mut bench = Bench::new();
        let mut readers: Vec<_> = (0..3).map(|_| bench.connect(Protocol::RawFramed, &[channel])).collect();
        for reader in &mut readers {
            bench.frames(reader);
        }
        for round in 0..3 {
            let text = format!("\"{round}{}\"", "x".repeat(300_000));
            bench.publish(channel, &text);
            // Those who come later find it half sent to the others.
            bench.turn();
            bench.press_none();
            for reader in &mut readers {
                let frames = bench.frames(reader);
                let starts: Vec<_> = frames.iter().map(|frame| &frame[..16.min(frame.len())]).collect();
                assert_eq!(frames.len(), 1, "{channel}: {starts:?}");
                assert!(frames[0].len() > 300_000, "{channel}: {starts:?}");
            }
        }
        assert_eq!(bench.log_bytes(), 0);
    }
}

#[test]
fn what_waits_behind_a_large_message_is_bounded_as_ever() {
    let mut bench = Bench::new();
    let mut slow = bench.connect(Protocol::RawBare, &["small:a"]);
    let mut oldest = bench.connect(Protocol::RawBare, &["oldest:a"]);
    for channel in ["small:a", "oldest:a"] {
        bench.publish(channel, &"x".repeat(300_000));
        bench.turn();
        publish_numbers(&mut bench, channel, 30, 1_000);
        bench.turn();
    }
    assert_eq!(bench.frames(&mut slow).last().map(String::as_str), Some("close 3008"));
    let frames = bench.frames(&mut oldest);
    let last = numbers(&frames[1..]);
    assert!(frames[0].len() == 300_000 && last.len() < 20 && last.last() == Some(&29), "{last:?}");
    assert_eq!(bench.core.metrics.slow_dropped.get(), 30 - last.len() as u64);
}

#[test]
fn a_newest_message_that_is_too_large_for_half_a_bound_is_not_dropped_as_an_old_one() {
    let mut bench = Bench::new();
    let mut slow = bench.connect(Protocol::RawBare, &["oldest:a"]);
    publish_numbers(&mut bench, "oldest:a", 30, 1_000);
    bench.turn();
    bench.publish("oldest:a", &format!("30 {}", "x".repeat(300_000)));
    bench.turn();
    bench.publish("oldest:a", "31 ");
    let last = numbers(&bench.frames(&mut slow));
    assert_eq!(last.last_chunk(), Some(&[30, 31]));
}

#[test]
fn a_burst_to_clients_that_read_at_full_speed_costs_them_nothing() {
    for channel in ["small:a", "oldest:a", "newest:a"] {
        let mut bench = graceful();
        let mut readers: Vec<_> = (0..2).map(|_| bench.connect(Protocol::RawBare, &[channel])).collect();
        publish_numbers(&mut bench, channel, 3_000, 1_000);
        // 3 MB over a link that takes a pipe of 16 KiB every 10 ms.
        for _ in 0..250 {
            bench.pass(10);
            for reader in &mut readers {
                read_some(&mut bench, reader);
            }
        }
        for reader in &mut readers {
            assert_eq!(numbers(&bench.frames(reader)), (0..3_000).collect::<Vec<_>>(), "{channel}");
        }
        assert!(
            bench.core.slots.taken().iter().all(|slot| bench.core.slots[*slot].cold.is_none()),
            "{channel}"
        );
        // It has caught up: the next burst is another one.
        publish_numbers(&mut bench, channel, 100, 1_000);
        bench.turn();
        for reader in &mut readers {
            assert_eq!(numbers(&bench.frames(reader)), (0..100).collect::<Vec<_>>(), "{channel}");
        }
    }
}

#[test]
fn a_client_that_takes_nothing_has_no_grace_though_nothing_more_is_published() {
    let mut bench = graceful();
    let mut stuck = bench.connect(Protocol::RawBare, &["small:a"]);
    publish_numbers(&mut bench, "small:a", 100, 1_000);
    bench.turn();
    assert!(!bench.core.slots[stuck.slot].flags.has(Flags::CLOSING), "it has just taken something");
    bench.pass(STILL_MS + 300);
    assert_eq!(bench.core.metrics.slow_disconnected.get(), 1);
    assert_eq!(bench.frames(&mut stuck).last().map(String::as_str), Some("close 3008"));
    assert_eq!(bench.log_bytes(), 0);

    // One that was stuck before is not even given that time.
    let mut stuck = bench.connect(Protocol::RawBare, &["small:a"]);
    publish_numbers(&mut bench, "small:a", 17, 1_000);
    bench.pass(2 * STILL_MS);
    publish_numbers(&mut bench, "small:a", 100, 1_000);
    bench.turn();
    assert_eq!(bench.core.metrics.slow_disconnected.get(), 2);
    assert_eq!(bench.frames(&mut stuck).last().map(String::as_str), Some("close 3008"));
}

#[test]
fn a_client_that_reads_too_slowly_all_the_time_has_one_grace() {
    let mut bench = graceful();
    let mut slow = bench.connect(Protocol::RawBare, &["small:a"]);
    let mut ended = None;
    for at in 0..100 {
        // Twice what it reads.
        publish_numbers(&mut bench, "small:a", 32, 1_000);
        bench.pass(100);
        read_some(&mut bench, &mut slow);
        if bench.core.metrics.slow_disconnected.get() > 0 {
            ended = Some(at * 100);
            break;
        }
    }
    let ended = ended.expect("it is closed");
    assert!((GRACE_MS..GRACE_MS + 600).contains(&ended), "{ended} ms");
}

#[test]
fn whoever_conflates_gets_the_newest_of_a_burst_at_once() {
    let mut bench = graceful();
    let mut reader = bench.connect(Protocol::RawBare, &["latest:a"]);
    publish_numbers(&mut bench, "latest:a", 3_000, 1_000);
    let received = numbers(&bench.frames(&mut reader));
    assert!(received.len() < 100 && received.last() == Some(&2_999), "{} messages", received.len());
}

#[test]
fn while_memory_is_short_there_is_no_grace() {
    let mut bench = graceful();
    bench.core.max_log_bytes = 4_000_000;
    let _stuck = bench.connect(Protocol::RawBare, &["small:a"]);
    publish_numbers(&mut bench, "small:a", 200, 1_000);
    bench.turn();
    assert_eq!(bench.core.metrics.slow_disconnected.get(), 0);
    bench.core.max_log_bytes = 100_000;
    bench.core.press();
    assert_eq!(bench.core.metrics.slow_disconnected.get(), 1);
}

impl Bench {
    /// That memory is not short is what these tests are about.
    fn press_none(&mut self) {
        self.core.press();
        assert_eq!(self.core.pressure, 0);
    }
}
