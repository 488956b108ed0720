//! What one connection gets in one write: the rest of a half-sent frame, its outbox, and what each of its logs
//! has from the cursor on. Then the cursors move by what the kernel took.

use std::io::IoSlice;

use smallvec::SmallVec;

use super::{
    connection::{Flags, Slot, Subscription},
    core::Core,
    index::{Index, Subscriber},
    link::Progress,
};
use crate::{domain::CloseReason, protocol::Reply};

/// Bytes of one visit, so that a connection far behind delays the others by one write only. With
/// `TCP_NOTSENT_LOWAT` at 16 KiB a socket seldom takes more at once.
const BUDGET: usize = 64 * 1_024;
/// Steps of one turn, so that mail and commands that come meanwhile join the pass.
const STEPS: usize = 64;
/// A turn that has run for so long goes no further than to the end of a stride: what clients of other channels ask
/// meanwhile waits for no more, however slowly a machine writes.
const SLICE_US: u64 = 150;
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

type Lengths = SmallVec<[(Source, usize); 4]>;

impl Core {
    /// Offers what is new to some of those who wait for it. `clock` gives microseconds since the shard began.
    pub(crate) fn visits(&mut self, clock: impl Fn() -> u64) {
        let end = self.now.us + SLICE_US;
        for _ in 0..STEPS / STRIDE {
            if self.dirty.is_empty() {
                break;
            }
            self.dirty_ones();
            if self.settle(clock()) >= end {
                break;
            }
        }
        for _ in 0..STEPS / STRIDE {
            let Some(key) = self.dirty_lanes.pop_front() else { return };
            if self.pass(key) {
                self.dirty_lanes.push_back(key);
            }
            if self.settle(clock()) >= end {
                return;
            }
        }
    }

    fn dirty_ones(&mut self) {
        for _ in 0..STRIDE {
            let Some(slot) = self.dirty.pop_front() else { return };
            if self.slots.is_taken(slot) && self.slots[slot].flags.has(Flags::DIRTY) {
                self.visit(slot);
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
            self.offer(subscriber);
        }
        true
    }

    /// Something new for a connection. One with several channels is visited once all lanes had their turn, so that
    /// what they have goes into one write.
    fn offer(&mut self, Subscriber { slot, at }: Subscriber) {
        if self.slots[slot].subscriptions() == 1 {
            self.visit(slot);
            return;
        }
        self.slots[slot].cold().turns.add(at as usize);
        if self.can_write(slot) {
            self.mark_dirty(slot);
        } else {
            self.bound_lag(slot, at as usize);
        }
    }

    pub(super) fn can_write(&self, slot: u32) -> bool {
        let Slot { link, flags, .. } = &self.slots[slot];
        link.is_some() && !flags.has(Flags::BLOCKED)
    }

    pub(super) fn mark_dirty(&mut self, slot: u32) {
        if self.slots[slot].flags.raise(Flags::DIRTY) {
            self.dirty.push_back(slot);
        }
    }

    /// One write to one connection, if it takes any.
    pub(super) fn visit(&mut self, slot: u32) {
        self.slots[slot].flags.clear(Flags::DIRTY);
        if !self.can_write(slot) {
            // Each of several subscriptions was looked at when something new came to it.
            if self.slots[slot].subscriptions() == 1 {
                self.bound_lag(slot, 0);
            }
            return;
        }
        self.tell_skipped(slot);
        let Some(Written { progress, lengths, offered, turns }) = write(&self.slots[slot], &self.index)
        else {
            self.end_turns(slot, usize::MAX);
            self.caught_up(slot);
            self.all_sent(slot);
            return;
        };
        match progress {
            Progress::Broken => self.end(slot, CloseReason::ConnectionLost),
            Progress::Blocked => self.blocked(slot, turns),
            Progress::Moved(moved) => {
                self.moved(slot, moved, &lengths);
                if moved < offered {
                    self.blocked(slot, turns);
                    return;
                }
                self.end_turns(slot, turns);
                if offered >= BUDGET
                    || lengths.len() >= MAX_PARTS
                    || self.slots[slot].flags.has(Flags::CLOSING)
                {
                    self.mark_dirty(slot);
                } else {
                    self.caught_up(slot);
                }
            }
        }
    }

    /// Not all was taken of what the first so many turns had.
    fn blocked(&mut self, slot: u32, turns: usize) {
        self.slots[slot].flags.set(Flags::BLOCKED);
        self.stalled(slot);
        if self.slots[slot].subscriptions() == 1 {
            self.bound_lag(slot, 0);
            return;
        }
        self.end_turns(slot, turns);
        let cold = self.slots[slot].cold.as_ref();
        let offered: SmallVec<[usize; 8]> =
            cold.map(|cold| cold.turns.iter().take(turns).collect()).unwrap_or_default();
        for at in offered {
            // A bound that was passed may have closed the connection.
            if at < self.slots[slot].subscriptions() {
                self.bound_lag(slot, at);
            }
        }
    }

    /// The first so many subscriptions had their turn: those with more to send wait for another one.
    fn end_turns(&mut self, slot: u32, turns: usize) {
        let count = self.slots[slot].subscriptions();
        let Some(cold) = self.slots[slot].cold.as_mut().filter(|_| count > 1) else { return };
        let turns = turns.min(cold.turns.iter().count());
        for _ in 0..turns {
            let Some(at) = self.slots[slot].cold().turns.next() else { return };
            if self.has_more(slot, at) {
                self.slots[slot].cold().turns.add(at);
            }
        }
    }

    fn has_more(&self, slot: u32, at: usize) -> bool {
        let slot = &self.slots[slot];
        let Subscription { cursor, lane, .. } = slot.subscription(at);
        cursor != self.index.lane(lane).log.head() || slot.backlog(lane).is_some()
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
                Source::Outbox if part > 0 => self.advance_outbox(slot, part),
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
        let (first, end) = (log.messages_before(from), log.messages_before(to));
        let half = !log.is_edge(to);
        self.flushed(lane, first, end);
        self.move_cursor(slot, at, to);
        self.metrics.messages_out.add(end - first);
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
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        let written = self.guard(slot, || {
            write(&mut bytes);
            #[cfg(test)]
            assert!(!bytes.ends_with(super::read::PANIC_LATER), "a test provokes it");
        });
        self.scratch = bytes;
        if written.is_none() {
            // Nothing can be said that would not come from the same code.
            self.end(slot, CloseReason::Internal);
            return;
        }
        if self.scratch.is_empty() {
            return;
        }
        let cold = self.slots[slot].cold();
        if cold.outbox.put(&self.scratch).is_err() {
            self.metrics.slow_disconnected.add(1);
            self.end(slot, CloseReason::SlowConsumer);
            return;
        }
        self.recount(slot);
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

/// What was written.
struct Written {
    progress: Progress,
    lengths: Lengths,
    offered: usize,
    /// How many subscriptions had their turn.
    turns: usize,
}

/// Gathers and writes; `None` where there is nothing to send.
fn write(slot: &Slot, index: &Index) -> Option<Written> {
    let mut gathered = Gathered::default();
    let turns = gather(slot, index, &mut gathered);
    let Gathered { lengths, slices, offered } = gathered;
    if offered == 0 {
        return None;
    }
    let progress = slot.link.as_ref().expect("only attached connections are written to").write(&slices);
    Some(Written { progress, lengths, offered, turns })
}

/// The pieces of a write.
#[derive(Default)]
struct Gathered<'a> {
    /// Where each comes from, and its length.
    lengths: Lengths,
    slices: SmallVec<[IoSlice<'a>; 4]>,
    offered: usize,
}

impl<'a> Gathered<'a> {
    /// Adds a piece; whether there is room for another.
    fn put(&mut self, source: Source, bytes: &'a [u8]) -> bool {
        self.offered += bytes.len();
        self.lengths.push((source, bytes.len()));
        self.slices.push(IoSlice::new(bytes));
        self.has_room()
    }

    fn has_room(&self) -> bool {
        self.offered < BUDGET && self.slices.len() < MAX_PARTS
    }
}

/// The rest of a half-sent frame, the outbox, then each subscription that has something: so many had their turn.
fn gather<'a>(slot: &'a Slot, index: &'a Index, gathered: &mut Gathered<'a>) -> usize {
    let half = slot.half();
    let mut ahead = 0;
    if let Some(at) = half {
        let subscription = slot.subscription(at);
        let log = &index.lane(subscription.lane).log;
        ahead = log.edge(subscription.cursor) - subscription.cursor;
        for bytes in log.read(subscription.cursor, ahead as usize) {
            gathered.put(Source::Log(at), bytes);
        }
    }
    if slot.has_outbox() {
        let outbox = &slot.cold.as_ref().expect("it has an outbox").outbox;
        gathered.put(Source::Outbox, outbox.unsent());
    }
    let mut take = |at| {
        let sent = if half == Some(at) { ahead } else { 0 };
        gathered.has_room() && gather_subscription(slot, index, at, sent, gathered)
    };
    match slot.subscriptions() {
        0 => 0,
        1 => usize::from(take(0)),
        _ => {
            let turns = &slot.cold.as_ref().expect("further subscriptions are cold").turns;
            let mut count = 0;
            for at in turns.iter() {
                count += 1;
                if !take(at) {
                    break;
                }
            }
            count
        }
    }
}

/// What one subscription has, beyond the bytes `ahead` that were gathered; whether there is room for more.
fn gather_subscription<'a>(
    slot: &'a Slot,
    index: &'a Index,
    at: usize,
    ahead: u64,
    gathered: &mut Gathered<'a>,
) -> bool {
    let Subscription { cursor, lane, .. } = slot.subscription(at);
    if let Some(backlog) = slot.backlog(lane)
        && !gathered.put(Source::Backlog(lane), backlog.unsent())
    {
        return false;
    }
    let log = &index.lane(lane).log;
    let (from, end) = (cursor + ahead, slot.stop(lane).unwrap_or(log.head()));
    for bytes in log.read(from, BUDGET.min((end - from) as usize)) {
        if !gathered.put(Source::Log(at), bytes) {
            return false;
        }
    }
    true
}
