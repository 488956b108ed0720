//! What one connection gets in one write: the rest of a half-sent frame, its outbox, and what each of its logs
//! has from the cursor on. Then the cursors move by what the kernel took.

use std::io::IoSlice;

use smallvec::SmallVec;

use super::{
    connection::{Flags, Slot, Subscription},
    core::Core,
    index::Index,
    link::Progress,
};
use crate::{domain::CloseReason, protocol::Reply};

/// Bytes of one visit, so that a connection far behind delays the others by one write only. With
/// `TCP_NOTSENT_LOWAT` at 16 KiB a socket seldom takes more at once.
const BUDGET: usize = 64 * 1_024;
/// Steps of one turn: some 300 µs, so that mail and commands that come meanwhile join the pass.
const STEPS: usize = 64;
/// Steps in one lane before the next has its turn.
const STRIDE: usize = 16;

/// Pieces of one write: what systems take in one call, so that a short write means that the link is full.
const MAX_PARTS: usize = 1_024;

/// Where the bytes of a write come from.
#[derive(Clone, Copy, Debug)]
enum Source {
    Outbox,
    /// What the conflating subscription to this lane kept.
    Backlog(u32),
    /// The log of the subscription of this number.
    Log(usize),
}

type Parts<'a> = SmallVec<[(Source, IoSlice<'a>); 8]>;

impl Core {
    /// Offers what is new to some of those who wait for it.
    pub(crate) fn visits(&mut self) {
        for _ in 0..STEPS {
            let Some(slot) = self.dirty.pop_front() else { break };
            if self.slots.is_taken(slot) && self.slots[slot].flags.has(Flags::DIRTY) {
                self.visit(slot);
            }
        }
        for _ in 0..STEPS / STRIDE {
            let Some(key) = self.dirty_lanes.pop_front() else { return };
            if self.pass(key) {
                self.dirty_lanes.push_back(key);
            }
        }
    }

    /// A stride of a pass over a lane's subscribers; whether some are left. Lanes take turns, so that one that has
    /// something new all the time does not starve the others.
    fn pass(&mut self, key: u32) -> bool {
        for _ in 0..STRIDE {
            let Some(lane) = self.index.lane_if_any(key) else { return false };
            let Some(subscriber) = lane.next() else {
                lane.dirty = false;
                return false;
            };
            self.offer(subscriber.slot);
        }
        true
    }

    /// Something new for a connection. One with several channels is visited once all lanes had their turn, so that
    /// what they have goes into one write.
    fn offer(&mut self, slot: u32) {
        if self.slots[slot].subscriptions() == 1 {
            self.visit(slot);
        } else {
            self.mark_dirty(slot);
        }
    }

    pub(super) fn mark_dirty(&mut self, slot: u32) {
        if self.slots[slot].flags.raise(Flags::DIRTY) {
            self.dirty.push_back(slot);
        }
    }

    /// One write to one connection, if it takes any.
    pub(super) fn visit(&mut self, slot: u32) {
        self.slots[slot].flags.clear(Flags::DIRTY);
        let Slot { link, flags, .. } = &self.slots[slot];
        if link.is_none() || flags.has(Flags::BLOCKED) {
            self.bound_lag(slot);
            return;
        }
        self.tell_skipped(slot);
        match write(&self.slots[slot], &self.index) {
            None => self.all_sent(slot),
            Some((Progress::Broken, ..)) => self.end(slot, CloseReason::ConnectionLost),
            Some((Progress::Blocked, ..)) => self.blocked(slot),
            Some((Progress::Moved(moved), lengths, offered)) => {
                self.moved(slot, moved, &lengths);
                if moved < offered {
                    self.blocked(slot);
                } else if offered >= BUDGET
                    || lengths.len() >= MAX_PARTS
                    || self.slots[slot].flags.has(Flags::CLOSING)
                {
                    self.mark_dirty(slot);
                }
            }
        }
    }

    fn blocked(&mut self, slot: u32) {
        self.slots[slot].flags.set(Flags::BLOCKED);
        self.stalled(slot);
        self.bound_lag(slot);
    }

    /// The link has room again.
    pub(crate) fn writable(&mut self, slot: u32) {
        if self.slots.is_taken(slot) && self.slots[slot].flags.has(Flags::BLOCKED) {
            self.slots[slot].flags.clear(Flags::BLOCKED);
            self.mark_dirty(slot);
        }
    }

    /// Moves cursors and outbox by what was taken.
    fn moved(&mut self, slot: u32, moved: usize, lengths: &[(Source, usize)]) {
        self.metrics.writes.add(1);
        self.metrics.bytes_out.add(moved as u64);
        self.slots[slot].flags.clear(Flags::STALLED);
        let mut left = moved;
        for (source, length) in lengths {
            let part = left.min(*length);
            left -= part;
            match source {
                Source::Outbox if part > 0 => {
                    self.slots[slot].cold().outbox.advance(part);
                    self.slots[slot].cool();
                }
                Source::Outbox => {}
                Source::Backlog(lane) => self.advance_backlog(slot, *lane, part),
                Source::Log(at) => self.advance(slot, *at, part),
            }
            if left == 0 {
                break;
            }
        }
    }

    fn advance(&mut self, slot: u32, at: usize, bytes: usize) {
        let Subscription { cursor: from, lane, .. } = self.slots[slot].subscription(at);
        let to = from + bytes as u64;
        let log = &self.index.lane(lane).log;
        let messages = log.messages_before(to) - log.messages_before(from);
        let half = !log.is_edge(to);
        self.move_cursor(slot, at, to);
        self.metrics.messages_out.add(messages);
        let slot = &mut self.slots[slot];
        if half {
            slot.flags.set(Flags::HALF);
            if slot.subscriptions() > 1 {
                slot.cold().half = at as u32;
            }
        } else {
            slot.flags.clear(Flags::HALF);
        }
    }

    /// Nothing is left to send: ends a connection whose end had begun.
    fn all_sent(&mut self, slot: u32) {
        let Slot { flags, protocol, .. } = &mut self.slots[slot];
        if !flags.has(Flags::CLOSING) {
            return;
        }
        // A stream without an answer ends with its last byte; a WebSocket with the client's close frame.
        if flags.has(Flags::HEARD_CLOSE) || !protocol.is_websocket() {
            if let Some(link) = &self.slots[slot].link {
                link.finish();
            }
            self.end(slot, CloseReason::ClientClosed);
        } else if flags.has(Flags::DEAF)
            && let Some(link) = &self.slots[slot].link
        {
            link.finish();
        }
    }

    // === replies ===

    /// Puts what `write` writes into the outbox, to be sent with the next visit.
    pub(super) fn send_with(&mut self, slot: u32, write: impl FnOnce(&mut Vec<u8>)) {
        self.scratch.clear();
        write(&mut self.scratch);
        if self.scratch.is_empty() {
            return;
        }
        let cold = self.slots[slot].cold();
        if cold.outbox.put(&self.scratch).is_err() {
            self.metrics.slow_disconnected.add(1);
            self.end(slot, CloseReason::SlowConsumer);
            return;
        }
        self.mark_dirty(slot);
    }

    pub(super) fn reply(&mut self, slot: u32, reply: &Reply<'_>) {
        if self.slots.is_taken(slot) && !self.slots[slot].flags.has(Flags::CLOSING) {
            let protocol = self.slots[slot].protocol;
            self.send_with(slot, |out| protocol.put_reply(out, reply));
        }
    }
}

impl Slot {
    /// Whose frame is half sent.
    pub(super) fn half(&self) -> Option<usize> {
        self.flags.has(Flags::HALF).then(|| {
            if self.subscriptions() > 1 { self.cold.as_ref().map_or(0, |cold| cold.half as usize) } else { 0 }
        })
    }
}

type Written = (Progress, SmallVec<[(Source, usize); 8]>, usize);

/// Gathers and writes; `None` where there is nothing to send.
fn write(slot: &Slot, index: &Index) -> Option<Written> {
    let mut parts = Parts::new();
    let offered = gather(slot, index, &mut parts);
    if offered == 0 {
        return None;
    }
    let slices: SmallVec<[IoSlice<'_>; 8]> = parts.iter().map(|(_, slice)| *slice).collect();
    let progress = slot.link.as_ref().expect("only attached connections are written to").write(&slices);
    let lengths = parts.iter().map(|(source, slice)| (*source, slice.len())).collect();
    Some((progress, lengths, offered))
}

fn gather<'a>(slot: &'a Slot, index: &'a Index, parts: &mut Parts<'a>) -> usize {
    let mut offered = 0;
    let mut put = |parts: &mut Parts<'a>, source, bytes: &'a [u8]| {
        offered += bytes.len();
        parts.push((source, IoSlice::new(bytes)));
        offered < BUDGET && parts.len() < MAX_PARTS
    };
    let half = slot.half();
    let mut ahead = 0;
    if let Some(at) = half {
        let subscription = slot.subscription(at);
        let log = &index.lane(subscription.lane).log;
        ahead = log.edge(subscription.cursor) - subscription.cursor;
        for bytes in log.read(subscription.cursor, ahead as usize) {
            put(parts, Source::Log(at), bytes);
        }
    }
    if slot.has_outbox() {
        let outbox = &slot.cold.as_ref().expect("it has an outbox").outbox;
        put(parts, Source::Outbox, outbox.unsent());
    }
    let (count, turn) = (slot.subscriptions(), slot.cold.as_ref().map_or(0, |cold| cold.turn as usize));
    for at in (0..count).map(|step| (turn + step) % count) {
        let subscription = slot.subscription(at);
        let from = subscription.cursor + if half == Some(at) { ahead } else { 0 };
        let lane = subscription.lane;
        if let Some(backlog) = slot.backlog(lane)
            && !put(parts, Source::Backlog(lane), backlog.unsent())
        {
            return offered;
        }
        let log = &index.lane(lane).log;
        let end = slot.stop(lane).unwrap_or(log.head());
        if from == end {
            continue;
        }
        for bytes in log.read(from, BUDGET.min((end - from) as usize)) {
            if !put(parts, Source::Log(at), bytes) {
                return offered;
            }
        }
    }
    offered
}
