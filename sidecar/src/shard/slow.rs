//! What happens to a connection that does not keep up: the namespace's policy moves its cursors, always to a frame's
//! edge, and a link that takes nothing at all is closed after a time.

use sidecar_config::{SlowConsumer, SlowConsumerPolicy};

use super::{
    backlog::Taken,
    connection::{Flags, Subscription},
    core::{Core, LANE_PART, MOST_PRESSURE},
    index::Subscriber,
    log::{Cursor, Lag},
    timer::{Entry, TICK_MS},
};
use crate::{domain::CloseReason, protocol::Reply};

impl Core {
    /// Applies the namespace's policy to a subscription of a connection that takes no more now.
    pub(super) fn bound_lag(&mut self, slot: u32, at: usize) {
        let Subscription { cursor, lane, .. } = self.slots[slot].subscription(at);
        let settings = &self.index.channel_of(lane).policy.slow_consumer;
        let (max, policy) = (self.max_lag(settings, self.index.lane(lane).pressure), settings.policy);
        let lag = match self.slots[slot].stop(lane) {
            // It skips what comes already; only where memory is short is there more to do.
            Some(stop) => Lag { bytes: stop - cursor, messages: 0 },
            None => self.index.lane(lane).log.lag(cursor),
        };
        if lag.is_within(max) {
            return;
        }
        match policy {
            SlowConsumerPolicy::Disconnect => {
                self.metrics.slow_disconnected.add(1);
                self.close(slot, CloseReason::SlowConsumer, None);
            }
            // Under whatever policy it was set: the log may hold nothing behind a stop.
            _ if self.slots[slot].stop(lane).is_some() => self.drop_newest(slot, at, max),
            SlowConsumerPolicy::DropOldest => self.drop_oldest(slot, at, max),
            SlowConsumerPolicy::DropNewest => self.drop_newest(slot, at, max),
            SlowConsumerPolicy::Conflate => self.conflate(slot, at, max),
        }
    }

    fn max_lag(&self, settings: &SlowConsumer, pressure: u32) -> Lag {
        let SlowConsumer { max_lag_bytes, max_lag_messages, policy: _ } = settings;
        // While the log, or all logs of the shard, are full, a sixteenth or less.
        let shift = 4 * self.pressure.max(pressure);
        Lag { bytes: u64::from(*max_lag_bytes) >> shift, messages: u64::from(*max_lag_messages) >> shift }
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

    /// Moves a cursor so far that half of each bound is free again.
    fn drop_oldest(&mut self, slot: u32, at: usize, max: Lag) {
        self.carry_half(slot, at);
        let Subscription { cursor: from, lane, .. } = self.slots[slot].subscription(at);
        let log = &self.index.lane(lane).log;
        let to = log.within(from, Lag { bytes: max.bytes / 2, messages: max.messages / 2 });
        let skipped = Lag { bytes: to - from, messages: log.messages_before(to) - log.messages_before(from) };
        self.move_cursor(slot, at, to);
        self.metrics.slow_dropped.add(skipped.messages);
        self.count_skipped(slot, skipped);
        self.tell_later(slot, lane);
    }

    /// Keeps what fits the bounds and lets go of the rest, and of all that comes until the former is sent.
    fn drop_newest(&mut self, slot: u32, at: usize, max: Lag) {
        if max.bytes == 0 {
            // What it still has to be sent of one message would hold a whole segment.
            self.carry_half(slot, at);
        }
        let Subscription { cursor, lane, .. } = self.slots[slot].subscription(at);
        let stop = self.index.lane(lane).log.reach(cursor, max);
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
                let before = backlog.lag();
                let is_whole = backlog.merge(log.frames(from), max);
                let kept = backlog.lag();
                let head = log.head();
                self.slots[slot].put_backlog(lane, backlog);
                self.held(kept.bytes as usize);
                self.freed(before.bytes as usize);
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
        self.tell_later(slot, lane);
        self.slots[slot].cool();
    }

    /// Frees what a subscription that ends has behind its cursor.
    pub(super) fn let_go(&mut self, slot: u32, lane: u32) {
        if let Some(stop) = self.slots[slot].stop(lane) {
            self.index.lane_mut(lane).log.unstop(stop);
            self.slots[slot].set_stop(lane, None);
        }
        if let Some(backlog) = self.slots[slot].take_backlog(lane) {
            self.freed(backlog.lag().bytes as usize);
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
    }

    /// Takes from the outbox what was sent.
    pub(super) fn advance_outbox(&mut self, slot: u32, sent: usize) {
        let outbox = &mut self.slots[slot].cold().outbox;
        let before = outbox.rest();
        outbox.advance(sent);
        let freed = before - outbox.rest();
        self.freed(freed);
        self.slots[slot].cool();
    }

    /// Takes from a backlog what was sent.
    pub(super) fn advance_backlog(&mut self, slot: u32, lane: u32, sent: usize) {
        if sent == 0 {
            return;
        }
        let mut backlog = self.slots[slot].take_backlog(lane).expect("it was sent from");
        let before = backlog.lag();
        let Taken { messages, rest } = backlog.take(sent);
        self.freed((before.bytes - backlog.lag().bytes) as usize);
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
            self.wheel.insert(Entry { slot, generation, tick, watch: true });
        }
    }

    fn stall_ends_ms(&self, slot: u32) -> u64 {
        let timeout = u64::from(self.rules.hub.limits.write_timeout_seconds) * 1_000;
        u64::from(self.slots[slot].stalled) * TICK_MS + timeout
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
