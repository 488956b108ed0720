//! What connections have to themselves, and that the others do not suffer from it.

use super::*;
use crate::shard::read::Ready;

const BUDGET: usize = 4 * 1_024 * 1_024;

fn bench() -> Bench {
    let mut bench = Bench::with_room_for(10_000);
    let mut settings = rules(SETTINGS);
    let hub = &mut Arc::get_mut(&mut settings).unwrap().hub;
    hub.max_message_bytes = 1_024 * 1_024;
    (hub.limits.bytes_per_second, hub.limits.messages_per_second) = (1_000_000_000, 1_000_000);
    bench.set_rules(settings);
    bench.core.max_log_bytes = BUDGET;
    bench
}

fn frame_of(first: u8, payload: &[u8], bytes: usize) -> Vec<u8> {
    let mut frame = vec![first, 0xFF];
    frame.extend_from_slice(&(payload.len() as u64).to_be_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame.truncate(14 + bytes);
    frame
}

impl Bench {
    /// Bytes that come by the link, as from a client.
    fn send(&mut self, client: &mut Client, mut bytes: &[u8]) {
        let mut context = Context::from_waker(Waker::noop());
        while !bytes.is_empty() && !self.is_over(client) {
            let Poll::Ready(room) = client.pipe.poll_room(&mut context) else { panic!("nobody reads") };
            let (some, rest) = bytes.split_at(room.min(bytes.len()));
            client.pipe.push(some);
            bytes = rest;
            self.turn();
        }
    }

    fn counted(&self) -> usize {
        let cold = |slot: &u32| self.core.slots[*slot].cold.as_ref().map_or(0, |cold| cold.own());
        self.core.slots.taken().iter().map(cold).sum()
    }
}

#[test]
fn unfinished_messages_are_bounded_together_and_who_has_most_of_them_goes() {
    let mut bench = bench();
    let mut small = bench.connect(Protocol::RawBare, &["a"]);
    bench.send(&mut small, &frame_of(0x81, &[b'y'; 70_000], 10_000));
    let mut greedy = Vec::new();
    for at in 0..40 {
        let mut client = bench.connect(Protocol::RawBare, &["a"]);
        // Half a frame, or a first fragment.
        match at % 2 {
            0 => bench.send(&mut client, &frame_of(0x81, &[b'x'; 700_000], 600_000)),
            _ => bench.send(&mut client, &frame_of(0x01, &[b'x'; 600_000], 600_000)),
        }
        greedy.push(client);
        assert_eq!(bench.core.own_bytes, bench.counted(), "all is counted");
        assert!(bench.core.own_bytes <= BUDGET / 2 + BUFFER, "{}", bench.core.own_bytes);
    }
    let overloaded = CloseReason::ALL.iter().position(|reason| *reason == CloseReason::Overloaded).unwrap();
    let frames: Vec<_> = greedy.iter_mut().map(|client| bench.frames(client)).collect();
    let told = frames.iter().filter(|frames| **frames == ["close 4013"]).count();
    assert!(told > 30, "{told}");
    bench.send(&mut small, &[b'y'; 60_000]);
    assert_eq!(bench.answer_work(&Ok(())).concat().len(), 70_000, "the others were let be");
    greedy.into_iter().for_each(|client| drop(client.pipe));
    bench.turn();
    assert_eq!(bench.core.own_bytes, 0);
    assert_eq!(bench.core.metrics.own_bytes.get(), 0);
    assert!(bench.core.metrics.closed[overloaded].get() >= told as u64);
}

#[test]
fn replies_that_nobody_reads_are_bounded_together() {
    let mut bench = bench();
    let mut stuck = Vec::new();
    for _ in 0..40 {
        let mut client = bench.connect(Protocol::RawBare, &["a"]);
        let mut pings = Vec::new();
        for _ in 0..1_500 {
            pings.extend_from_slice(&[0x89, 0xFD, 0, 0, 0, 0]);
            pings.extend_from_slice(&[b'p'; 125]);
        }
        bench.send(&mut client, &pings);
        stuck.push(client);
        assert_eq!(bench.core.own_bytes, bench.counted(), "all is counted");
        assert!(bench.core.own_bytes <= BUDGET / 2 + 2 * BUFFER, "{}", bench.core.own_bytes);
    }
    assert!(stuck.iter().filter(|client| bench.is_over(client)).count() > 20);
    for client in &mut stuck {
        bench.drain(client);
    }
    assert_eq!(bench.core.own_bytes, 0);
}

#[test]
fn frames_that_wait_hold_no_memory_of_those_that_were_taken() {
    let mut bench = bench();
    let mut client = bench.connect(Protocol::RawBare, &["a"]);
    let mut bytes = frame_of(0x81, &[b'x'; 500_000], 500_000);
    bytes.extend_from_slice(&frame_of(0x81, &[b'y'; 70_000], 10));
    bench.send(&mut client, &bytes);
    assert_eq!(bench.answer_work(&Ok(())).concat().len(), 500_000);
    assert!(bench.core.own_bytes > 0 && bench.core.own_bytes < 20_000, "{}", bench.core.own_bytes);
}

#[test]
fn who_waits_for_something_new_does_not_wait_for_all_who_have_something_to_say() {
    let mut bench = Bench::with_room_for(10_000);
    let mut talking: Vec<_> = (0..400).map(|_| bench.connect(Protocol::RawBare, &["b"])).collect();
    let listening: Vec<_> = (0..400).map(|_| bench.connect(Protocol::RawBare, &["a"])).collect();
    for client in &mut talking {
        client.pipe.push(&[0x89, 0x80, 0, 0, 0, 0]);
    }
    // Their news is theirs to tell.
    drop(bench.inbox.take());
    bench.publish("a", "news");
    let (mut served, mut events) = (Vec::new(), Vec::new());
    for client in &talking {
        events.push(Ready { slot: client.slot, writable: false, readable: true, ended: false });
    }
    let metrics = Arc::clone(&bench.core.metrics);
    let events = events.into_iter().inspect(|_| served.push(metrics.messages_out.get()));
    let mut buffer = std::mem::take(&mut bench.buffer);
    bench.core.take_events(events, &mut buffer, || 0);
    // A hundredth of the reads are enough for as many visits.
    assert!(served[200] >= 400, "{} of {} after half of the reads", served[200], listening.len());
}

#[test]
fn what_a_message_unpacks_to_counts_and_not_what_it_was_packed_in() {
    let mut bench = with_limits("bytesPerSecond: 100000");
    bench.deflate = true;
    let mut packing = bench.connect(Protocol::RawBare, &["a"]);
    let (mut deflater, mut packed) = (crate::protocol::websocket::Deflater::default(), Vec::new());
    deflater.put(&mut packed, Opcode::Text, &[b'x'; 60_000], 3);
    assert!((126..1_000).contains(&packed.len()), "{}", packed.len());
    packed[1] |= 0x80;
    packed.splice(4..4, [0; 4]);
    for _ in 0..3 {
        bench.core.take_bytes(packing.slot, &mut packed.clone());
        bench.answer_work(&Ok(()));
    }
    assert!(bench.frames(&mut packing).is_empty(), "less than two seconds' worth");
    bench.core.take_bytes(packing.slot, &mut packed.clone());
    assert_eq!(bench.frames(&mut packing), ["close 3013"]);
}
