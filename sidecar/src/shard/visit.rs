//! What one connection gets in one write: the rest of a half-sent frame, its outbox, and what each of its logs
//! has from the cursor on. Then the cursors move by what the kernel took.

use std::io::IoSlice;

use sidecar_config::SlowConsumerPolicy;
use smallvec::SmallVec;

use super::{
    connection::{Flags, Slot},
    core::Core,
    index::Index,
    link::Progress,
    log::Lag,
};
use crate::{domain::CloseReason, protocol::Reply};

/// Bytes of one visit, so that a connection far behind delays the others by one write only. With
/// `TCP_NOTSENT_LOWAT` at 16 KiB a socket seldom takes more at once.
const BUDGET: usize = 64 * 1_024;
/// Steps of one turn: some 300 µs, so that mail and commands that come meanwhile join the pass.
const STEPS: usize = 64;
/// Steps in one lane before the next has its turn.
const STRIDE: usize = 16;

/// Where the bytes of a write come from.
#[derive(Clone, Copy, Debug)]
enum Source {
    Outbox,
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
                } else if offered >= BUDGET || self.slots[slot].flags.has(Flags::CLOSING) {
                    self.mark_dirty(slot);
                }
            }
        }
    }

    fn blocked(&mut self, slot: u32) {
        self.slots[slot].flags.set(Flags::BLOCKED);
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
                Source::Log(at) => self.advance(slot, *at, part),
            }
            if left == 0 {
                break;
            }
        }
    }

    fn advance(&mut self, slot: u32, at: usize, bytes: usize) {
        let subscription = self.slots[slot].subscription_mut(at);
        let (from, to, lane) = (subscription.cursor, subscription.cursor + bytes as u64, subscription.lane);
        subscription.cursor = to;
        let log = &mut self.index.lane_mut(lane).log;
        let messages = log.messages_before(to) - log.messages_before(from);
        let half = !log.is_edge(to);
        let freed = log.advance(from, to, &mut self.spares);
        self.freed(freed);
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

    // === slow consumers ===

    /// Applies the namespace's policy to each subscription of a connection that takes no more now.
    fn bound_lag(&mut self, slot: u32) {
        for at in (0..self.slots[slot].subscriptions()).rev() {
            let subscription = self.slots[slot].subscription(at);
            let settings = &self.index.channel_of(subscription.lane).policy.slow_consumer;
            let max = self.max_lag(settings.max_lag_bytes, settings.max_lag_messages);
            let lag = self.index.lane(subscription.lane).log.lag(subscription.cursor);
            if lag.bytes <= max.bytes && lag.messages <= max.messages {
                continue;
            }
            match settings.policy {
                SlowConsumerPolicy::Disconnect => {
                    self.metrics.slow_disconnected.add(1);
                    self.close(slot, CloseReason::SlowConsumer, None);
                    return;
                }
                SlowConsumerPolicy::DropOldest => self.skip(slot, at, max),
            }
        }
    }

    fn max_lag(&self, bytes: u32, messages: u32) -> Lag {
        // While the logs of the shard are full, a sixteenth.
        let divisor = if self.is_pressed() { 16 } else { 1 };
        Lag { bytes: u64::from(bytes) / divisor, messages: u64::from(messages) / divisor }
    }

    /// Moves a cursor so far that half of each bound is free again, at a frame's edge.
    fn skip(&mut self, slot: u32, at: usize, max: Lag) {
        self.carry_half(slot, at);
        let subscription = self.slots[slot].subscription(at);
        let (lane, from) = (subscription.lane, subscription.cursor);
        let half = Lag { bytes: max.bytes / 2, messages: max.messages / 2 };
        let log = &mut self.index.lane_mut(lane).log;
        let to = log.within(from, half);
        let (before, after) = (log.messages_before(from), log.messages_before(to));
        let freed = log.advance(from, to, &mut self.spares);
        self.freed(freed);
        self.metrics.slow_dropped.add(after - before);
        let slot = &mut self.slots[slot];
        slot.subscription_mut(at).cursor = to;
        let sent = &mut slot.passport.as_mut().expect("a taken slot").sent;
        sent.bytes = sent.bytes.wrapping_sub(to - from);
        sent.messages = sent.messages.wrapping_sub(after - before);
        if slot.protocol.has_replies() && !slot.cold().skipped.contains(&lane) {
            slot.cold().skipped.push(lane);
        }
    }

    /// Moves the rest of a half-sent frame of this subscription into the outbox, so that its cursor is free.
    pub(super) fn carry_half(&mut self, slot: u32, at: usize) {
        if self.slots[slot].half() != Some(at) {
            return;
        }
        let subscription = self.slots[slot].subscription(at);
        let log = &mut self.index.lane_mut(subscription.lane).log;
        let edge = log.edge(subscription.cursor);
        let rest: Vec<u8> =
            log.read(subscription.cursor, (edge - subscription.cursor) as usize).flatten().copied().collect();
        let freed = log.advance(subscription.cursor, edge, &mut self.spares);
        self.freed(freed);
        let slot = &mut self.slots[slot];
        slot.flags.clear(Flags::HALF);
        slot.subscription_mut(at).cursor = edge;
        slot.cold().outbox.put_first(&rest);
    }

    /// Tells a client of what was skipped, before the next message.
    fn tell_skipped(&mut self, slot: u32) {
        let Some(cold) = &mut self.slots[slot].cold else { return };
        for lane in std::mem::take(&mut cold.skipped) {
            let name = self.index.channel_of(lane).name.clone();
            self.reply(slot, &Reply::Gap { channel: &name, reason: "slowConsumer", from: None, to: None });
        }
        self.slots[slot].cool();
    }
}

impl Slot {
    /// Whose frame is half sent.
    fn half(&self) -> Option<usize> {
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
        offered < BUDGET
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
        let log = &index.lane(subscription.lane).log;
        if from == log.head() {
            continue;
        }
        for bytes in log.read(from, BUDGET) {
            if !put(parts, Source::Log(at), bytes) {
                return offered;
            }
        }
    }
    offered
}
