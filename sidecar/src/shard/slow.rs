//! What happens to a connection that does not keep up: the namespace's policy moves its cursors, always to a frame's
//! edge, and a link that takes nothing at all is closed after a time.
//!
//! A lag is what waits behind the message that is being sent: that one alone is no backlog, however large. Where memory
//! is not short, a client that lags too far is left alone for a short time as long as its link takes something: a burst
//! is not its fault.

use sidecar_config::{SlowConsumer, SlowConsumerPolicy};

use super::{
    backlog::Taken,
    connection::{Flags, Slot, Subscription},
    core::{Core, LANE_PART, MOST_PRESSURE},
    index::Subscriber,
    log::{Cursor, Lag},
    timer::{Entry, Kind, TICK_MS},
};
use crate::{domain::CloseReason, protocol::Reply};

/// Time that a connection which takes something may lag beyond its bounds, once for each time that it had caught up: a
/// burst of some megabytes over a link of some megabytes a second.
pub(super) const GRACE_MS: u64 = 2_000;
/// A link that takes nothing for so long makes no progress: longer than a round trip to the other end of the world.
pub(super) const STILL_MS: u64 = 500;

impl Core {
    /// Applies the namespace's policy to a subscription of a connection that takes no more now.
    pub(super) fn bound_lag(&mut self, slot: u32, at: usize) {
        let Subscription { cursor, lane, .. } = self.slots[slot].subscription(at);
        let settings = &self.index.channel_of(lane).policy.slow_consumer;
        let pressure = self.pressure.max(self.index.lane(lane).pressure);
        let (max, policy) = (max_lag(settings, pressure), settings.policy);
        let lag = match self.slots[slot].stop(lane) {
            // It skips what comes already; only where memory is short is there more to do.
            Some(stop) => Lag { bytes: stop - cursor, messages: 0 },
            None => self.index.lane(lane).log.lag(cursor),
        };
        if lag.is_within(max)
            || (spares_first(pressure) && self.is_within_behind_first(lane, cursor, lag, max))
        {
            return;
        }
        // Whoever conflates wants the newest at once, not all of a burst.
        let may_wait = pressure == 0 && policy != SlowConsumerPolicy::Conflate;
        if may_wait && self.has_grace(slot) {
            return;
        }
        match policy {
            SlowConsumerPolicy::Disconnect => {
                self.metrics.slow_disconnected.add(1);
                self.close(slot, CloseReason::SlowConsumer, None);
            }
            // Under whatever policy it was set: the log may hold nothing behind a stop.
            _ if self.slots[slot].stop(lane).is_some() => self.drop_newest(slot, at, max, pressure),
            SlowConsumerPolicy::DropOldest => self.drop_oldest(slot, at, max, pressure),
            SlowConsumerPolicy::DropNewest => self.drop_newest(slot, at, max, pressure),
            SlowConsumerPolicy::Conflate => self.conflate(slot, at, max),
        }
    }

    /// Whether a lag is within its bounds but for the message that is being sent.
    fn is_within_behind_first(&self, lane: u32, cursor: Cursor, lag: Lag, max: Lag) -> bool {
        let first = self.index.lane(lane).log.next_edge(cursor) - cursor;
        let behind = Lag { bytes: lag.bytes.saturating_sub(first), messages: lag.messages.saturating_sub(1) };
        behind.bytes <= max.bytes && behind.messages <= max.messages.saturating_sub(1)
    }

    // === grace ===

    /// Whether a lag beyond the bounds is tolerated for now. The first time it begins; it is given again once the
    /// connection has caught up.
    fn has_grace(&mut self, slot: u32) -> bool {
        if self.grace_ms == 0 {
            return false;
        }
        if self.slots[slot].flags.raise(Flags::GRACED) {
            self.slots[slot].cold().grace_ends = self.wheel.tick_at(self.now.ms + self.grace_ms);
            self.watch_lag(slot);
        }
        self.makes_progress(slot)
    }

    fn makes_progress(&self, slot: u32) -> bool {
        let Slot { flags, cold, .. } = &self.slots[slot];
        let ends = cold.as_ref().map_or(0, |cold| u64::from(cold.grace_ends) * TICK_MS);
        let is_still = flags.has(Flags::STALLED) && self.now.ms >= self.stalled_ms(slot) + STILL_MS;
        self.now.ms < ends && !is_still
    }

    fn watch_lag(&mut self, slot: u32) {
        if self.slots[slot].flags.raise(Flags::LAG_WATCHED) {
            let Slot { flags, cold, .. } = &self.slots[slot];
            let moved_ms = if flags.has(Flags::STALLED) { self.stalled_ms(slot) } else { self.now.ms };
            let ends_ms = cold.as_ref().map_or(0, |cold| u64::from(cold.grace_ends) * TICK_MS);
            let tick = self.wheel.tick_at(ends_ms.min(moved_ms + STILL_MS));
            let generation = self.slots[slot].generation;
            self.wheel.insert(Entry { slot, generation, tick, kind: Kind::Lag });
        }
    }

    /// Nothing more may be published: that the grace is over is noticed here.
    pub(super) fn look_at_lag(&mut self, slot: u32) {
        self.slots[slot].flags.clear(Flags::LAG_WATCHED);
        if !self.slots[slot].flags.has(Flags::GRACED) {
            return;
        }
        if self.makes_progress(slot) {
            self.watch_lag(slot);
        } else {
            self.bound_lags(slot);
        }
    }

    /// All that there was is sent: the next burst is another one.
    pub(super) fn caught_up(&mut self, slot: u32) {
        if !self.slots[slot].flags.has(Flags::GRACED) {
            return;
        }
        self.slots[slot].flags.clear(Flags::GRACED);
        self.slots[slot].cold().grace_ends = 0;
        self.slots[slot].cool();
    }

    /// The same for all subscriptions of a connection, if it takes no more now.
    pub(super) fn bound_lags(&mut self, slot: u32) {
        for at in 0..self.slots[slot].subscriptions() {
            // A bound that was passed may have closed the connection.
            if at < self.slots[slot].subscriptions() && !self.can_write(slot) {
                self.bound_lag(slot, at);
            }
        }
    }

    /// Whether the log takes another publication. Where it does not, those who take nothing now are held to a part of
    /// their bounds, then to nothing; if that frees too little, the publication is lost to all, and they are told.
    pub(super) fn has_room(&mut self, key: u32) -> bool {
        let max_lag = self.index.channel_of(key).policy.slow_consumer.max_lag_bytes as usize;
        let max = (self.max_log_bytes / LANE_PART).max(2 * max_lag);
        // Some of it is free again before it takes more, or it would be full with each publication.
        let enough = max / 4 * 3;
        let lane = self.index.lane_mut(key);
        let was_full = lane.pressure > 0;
        if lane.log.held() < if was_full { enough } else { max } {
            lane.pressure = 0;
            return true;
        }
        if !was_full {
            for pressure in [1, MOST_PRESSURE] {
                self.press_lane(key, pressure);
                match self.index.lane_if_any(key) {
                    // All were too slow, and are gone.
                    None => return false,
                    Some(lane) if lane.log.held() < enough => {
                        lane.pressure = 0;
                        return true;
                    }
                    Some(_) => {}
                }
            }
            self.metrics.gaps.add(1);
            self.index.lane_mut(key).pressure = 1;
            self.gap_in(key, true, "the channel is overloaded");
        }
        self.metrics.log_full.add(1);
        false
    }

    fn press_lane(&mut self, key: u32, pressure: u32) {
        let lane = self.index.lane_mut(key);
        lane.pressure = pressure;
        for Subscriber { slot, at } in lane.subscribers.clone() {
            if !self.can_write(slot) {
                self.bound_lag(slot, at as usize);
            }
        }
    }

    // === policies ===

    /// Moves a cursor so far that half of each bound is free again, but not over the newest message.
    fn drop_oldest(&mut self, slot: u32, at: usize, max: Lag, pressure: u32) {
        self.carry_half(slot, at);
        let Subscription { cursor: from, lane, .. } = self.slots[slot].subscription(at);
        let log = &self.index.lane(lane).log;
        let mut to = log.within(from, Lag { bytes: max.bytes / 2, messages: max.messages / 2 });
        if spares_first(pressure) {
            to = to.min(log.within(from, Lag { bytes: u64::MAX, messages: 1 }));
        }
        if to == from {
            return;
        }
        let skipped = Lag { bytes: to - from, messages: log.messages_before(to) - log.messages_before(from) };
        self.move_cursor(slot, at, to);
        self.metrics.slow_dropped.add(skipped.messages);
        self.count_skipped(slot, skipped);
        self.tell_later(slot, lane);
    }

    /// Keeps what fits the bounds and lets go of the rest, and of all that comes until the former is sent.
    fn drop_newest(&mut self, slot: u32, at: usize, max: Lag, pressure: u32) {
        if !spares_first(pressure) {
            // What it still has to be sent of one message would hold a whole segment.
            self.carry_half(slot, at);
        }
        let Subscription { cursor, lane, .. } = self.slots[slot].subscription(at);
        let log = &self.index.lane(lane).log;
        let stop = if spares_first(pressure) {
            log.reach(log.next_edge(cursor), Lag { messages: max.messages.saturating_sub(1), ..max })
        } else {
            log.reach(cursor, max)
        };
        let before = self.slots[slot].stop(lane);
        let log = &mut self.index.lane_mut(lane).log;
        if let Some(before) = before {
            log.unstop(before);
        }
        if stop == cursor {
            self.slots[slot].set_stop(lane, None);
            self.skip_to_head(slot, at, stop);
            return;
        }
        let freed = log.stop(stop, &mut self.spares);
        self.freed(freed);
        self.slots[slot].set_stop(lane, Some(stop));
    }

    /// Keeps the newest frame of each key.
    fn conflate(&mut self, slot: u32, at: usize, max: Lag) {
        self.carry_half(slot, at);
        let Subscription { cursor: from, lane, .. } = self.slots[slot].subscription(at);
        let log = &self.index.lane(lane).log;
        let waiting = log.lag(from);
        let (to, kept, before) = match self.slots[slot].take_backlog(lane) {
            None if !log.has_keys(from) => {
                let to = log.within(from, Lag { bytes: u64::MAX, messages: 1 });
                (to, log.lag(to), Lag::default())
            }
            backlog => {
                let mut backlog = backlog.unwrap_or_default();
                let (before, freed) = (backlog.lag(), backlog.footprint());
                let is_whole = backlog.merge(log.frames(from), max);
                let (kept, held) = (backlog.lag(), backlog.footprint());
                let head = log.head();
                self.slots[slot].put_backlog(lane, backlog);
                self.held(held);
                self.freed(freed);
                if !is_whole {
                    self.tell_later(slot, lane);
                }
                (head, kept, before)
            }
        };
        self.move_cursor(slot, at, to);
        let skipped = Lag {
            bytes: waiting.bytes + before.bytes - kept.bytes,
            messages: waiting.messages + before.messages - kept.messages,
        };
        self.metrics.slow_conflated.add(skipped.messages);
        self.count_skipped(slot, skipped);
    }

    // === cursors ===

    /// Moves a cursor up to where all was sent; from its stop, on to the head.
    pub(super) fn move_cursor(&mut self, slot: u32, at: usize, to: Cursor) {
        let Subscription { cursor: from, lane, .. } = self.slots[slot].subscription(at);
        if self.slots[slot].stop(lane) == Some(to) {
            self.slots[slot].set_stop(lane, None);
            self.index.lane_mut(lane).log.unstop(to);
            self.skip_to_head(slot, at, to);
            return;
        }
        let freed = self.index.lane_mut(lane).log.advance(from, to, &mut self.spares);
        self.slots[slot].subscription_mut(at).cursor = to;
        self.freed(freed);
    }

    /// Moves a cursor, which was sent all before `sent`, to the head.
    fn skip_to_head(&mut self, slot: u32, at: usize, sent: Cursor) {
        let Subscription { cursor: from, lane, .. } = self.slots[slot].subscription(at);
        let log = &mut self.index.lane_mut(lane).log;
        let (head, skipped) = (log.head(), log.lag(sent));
        let freed = log.advance(from, head, &mut self.spares);
        self.slots[slot].subscription_mut(at).cursor = head;
        self.freed(freed);
        self.metrics.slow_dropped_newest.add(skipped.messages);
        self.count_skipped(slot, skipped);
        if skipped.messages > 0 {
            self.tell_later(slot, lane);
        }
        self.slots[slot].cool();
    }

    /// Frees what a subscription that ends has behind its cursor.
    pub(super) fn let_go(&mut self, slot: u32, lane: u32) {
        if let Some(stop) = self.slots[slot].stop(lane) {
            self.index.lane_mut(lane).log.unstop(stop);
            self.slots[slot].set_stop(lane, None);
        }
        if let Some(backlog) = self.slots[slot].take_backlog(lane) {
            self.freed(backlog.footprint());
            self.count_skipped(slot, backlog.lag());
        }
    }

    /// Moves the rest of a half-sent frame of this subscription into the outbox, so that its cursor is free.
    pub(super) fn carry_half(&mut self, slot: u32, at: usize) {
        if self.slots[slot].half() != Some(at) {
            return;
        }
        let Subscription { cursor, lane, .. } = self.slots[slot].subscription(at);
        let log = &self.index.lane(lane).log;
        let edge = log.edge(cursor);
        let rest: Vec<u8> = log.read(cursor, (edge - cursor) as usize).flatten().copied().collect();
        self.move_cursor(slot, at, edge);
        self.slots[slot].flags.clear(Flags::HALF);
        self.send_first(slot, &rest);
    }

    fn send_first(&mut self, slot: u32, rest: &[u8]) {
        self.slots[slot].cold().outbox.put_first(rest);
        self.held(rest.len());
        self.recount(slot);
    }

    /// Takes from the outbox what was sent.
    pub(super) fn advance_outbox(&mut self, slot: u32, sent: usize) {
        let outbox = &mut self.slots[slot].cold().outbox;
        let before = outbox.rest();
        outbox.advance(sent);
        let freed = before - outbox.rest();
        self.freed(freed);
        self.recount(slot);
    }

    /// Takes from a backlog what was sent.
    pub(super) fn advance_backlog(&mut self, slot: u32, lane: u32, sent: usize) {
        if sent == 0 {
            return;
        }
        let mut backlog = self.slots[slot].take_backlog(lane).expect("it was sent from");
        let before = backlog.footprint();
        let Taken { messages, rest } = backlog.take(sent);
        self.freed(before - backlog.footprint());
        self.metrics.messages_out.add(messages);
        self.slots[slot].put_backlog(lane, backlog);
        if !rest.is_empty() {
            self.send_first(slot, &rest);
        }
        self.slots[slot].cool();
    }

    /// Takes out of the passport's sum what was passed over: see [`Passport::sent`](super::connection::Passport).
    fn count_skipped(&mut self, slot: u32, skipped: Lag) {
        let sent = &mut self.slots[slot].passport.as_mut().expect("a taken slot").sent;
        sent.bytes = sent.bytes.wrapping_sub(skipped.bytes);
        sent.messages = sent.messages.wrapping_sub(skipped.messages);
    }

    // === telling ===

    fn tell_later(&mut self, slot: u32, lane: u32) {
        let slot = &mut self.slots[slot];
        if slot.protocol.has_replies() && !slot.cold().skipped.contains(&lane) {
            slot.cold().skipped.push(lane);
        }
    }

    /// Tells a client of what was skipped, before the next message.
    pub(super) fn tell_skipped(&mut self, slot: u32) {
        let Some(cold) = &mut self.slots[slot].cold else { return };
        for lane in std::mem::take(&mut cold.skipped) {
            let name = self.index.channel_of(lane).name.clone();
            self.reply(slot, &Reply::Gap { channel: &name, reason: "slowConsumer", from: None, to: None });
        }
        self.slots[slot].cool();
    }

    // === stalls ===

    /// Nothing more is taken now. Looked at again once the write timeout has passed.
    pub(super) fn stalled(&mut self, slot: u32) {
        let tick = self.wheel.tick_at(self.now.ms);
        if self.slots[slot].flags.raise(Flags::STALLED) {
            self.slots[slot].stalled = tick;
        }
        self.watch(slot);
    }

    fn watch(&mut self, slot: u32) {
        if self.slots[slot].flags.raise(Flags::WATCHED) {
            let tick = self.wheel.tick_at(self.stall_ends_ms(slot));
            let generation = self.slots[slot].generation;
            self.wheel.insert(Entry { slot, generation, tick, kind: Kind::Stall });
        }
    }

    /// Time since which a stalled connection took nothing, not counting a time in which nobody could offer it anything.
    fn stalled_ms(&self, slot: u32) -> u64 {
        (u64::from(self.slots[slot].stalled) * TICK_MS).max(self.resumed_ms)
    }

    fn stall_ends_ms(&self, slot: u32) -> u64 {
        let timeout = u64::from(self.rules.hub.limits.write_timeout_seconds) * 1_000;
        self.stalled_ms(slot) + timeout
    }

    pub(super) fn look_at_stall(&mut self, slot: u32) {
        let flags = &mut self.slots[slot].flags;
        flags.clear(Flags::WATCHED);
        if !flags.has(Flags::STALLED) || flags.has(Flags::CLOSING) {
            return;
        }
        if self.stall_ends_ms(slot) <= self.now.ms { self.close_stalled(slot) } else { self.watch(slot) }
    }

    /// Closes a connection that took nothing for too long.
    pub(super) fn close_stalled(&mut self, slot: u32) {
        self.metrics.write_timeouts.add(1);
        self.close(slot, CloseReason::SlowConsumer, None);
    }
}

fn max_lag(settings: &SlowConsumer, pressure: u32) -> Lag {
    let SlowConsumer { max_lag_bytes, max_lag_messages, policy: _ } = settings;
    // While the log, or all logs of the shard, are full, a sixteenth or less.
    let shift = 4 * pressure;
    Lag { bytes: u64::from(*max_lag_bytes) >> shift, messages: u64::from(*max_lag_messages) >> shift }
}

/// Whether the message that is being sent may be as large as it likes: not while nothing may be kept for anybody.
fn spares_first(pressure: u32) -> bool {
    pressure < MOST_PRESSURE
}
