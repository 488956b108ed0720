//! How much of a hot channel is walked before others have their turn, on a machine that writes slowly.

use std::cell::Cell;

use super::*;

/// By it a stride takes a second.
fn slow_clock() -> impl Fn() -> u64 {
    let us = Cell::new(0);
    move || {
        us.set(us.get() + 1_000_000);
        us.get()
    }
}

/// How many were written to in one turn.
fn written(bench: &mut Bench) -> u64 {
    let before = bench.core.metrics.writes.get();
    bench.core.visits(slow_clock());
    bench.core.metrics.writes.get() - before
}

/// Who has something to read.
fn reached(clients: &mut [Client]) -> usize {
    let mut context = Context::from_waker(Waker::noop());
    clients
        .iter_mut()
        .filter_map(|client| client.pipe.poll_bytes(&mut context).is_ready().then_some(()))
        .count()
}

#[test]
fn a_turn_that_took_its_time_ends_with_its_stride_and_the_next_goes_on_from_there() {
    let mut bench = Bench::new();
    let mut crowd: Vec<_> = (0..40).map(|_| bench.connect(Protocol::RawBare, &["hot"])).collect();
    bench.publish("hot", "x");
    assert_eq!([0; 3].map(|_| written(&mut bench)), [16, 16, 8]);
    for client in &mut crowd {
        assert_eq!(bench.frames(client), ["x"]);
    }
}

#[test]
fn hot_channels_take_turns_however_short_each_is() {
    let mut bench = Bench::new();
    let [mut first, mut second] = ["hot", "warm"]
        .map(|name| (0..40).map(|_| bench.connect(Protocol::RawBare, &[name])).collect::<Vec<_>>());
    for channel in ["hot", "warm"] {
        bench.publish(channel, "x");
    }
    assert_eq!([0; 2].map(|_| written(&mut bench)), [16, 16]);
    assert_eq!((reached(&mut first), reached(&mut second)), (16, 16));
}

#[test]
fn answers_and_publications_both_have_a_stride_of_a_turn_that_took_its_time() {
    let mut bench = Bench::new();
    let _crowd: Vec<_> = (0..40).map(|_| bench.connect(Protocol::RawBare, &["hot"])).collect();
    let mut asking: Vec<_> = (0..40).map(|_| bench.connect(Protocol::RawBare, &["calm"])).collect();
    bench.publish("hot", "x");
    for client in &asking {
        bench.hear(client, Opcode::Ping, b"");
    }
    assert_eq!(written(&mut bench), 32);
    assert_eq!(reached(&mut asking), 16);
}
