//! The slab of connections. What every idle connection costs is a [`Slot`] of one cache line and a [`Passport`];
//! what only some need, and only for a while, is [`Cold`].

use std::{
    net::SocketAddr,
    ops::{Index, IndexMut},
};

use bytes::BytesMut;
use smallvec::SmallVec;

use super::{
    Guest, Link, Transport, backlog::Backlog, log::Cursor, outbox::Outbox, timer::Tick, turns::Turns,
    users::Users,
};
use crate::{
    domain::{CloseReason, ConnectionId},
    protocol::{Advice, Protocol, websocket::Decoder},
    session::Session,
};

/// No lane: the inline subscription is not in use.
pub(crate) const NONE: u32 = u32::MAX;

/// A subscription: its place in a log and in the log's list of subscribers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subscription {
    pub(crate) cursor: Cursor,
    pub(crate) lane: u32,
    /// Where the lane lists it.
    pub(crate) place: u32,
}

/// The idle part of a connection: one cache line.
#[derive(Debug)]
pub(crate) struct Slot {
    /// `None` until it is attached.
    pub(crate) link: Option<Link>,
    /// Nearly every connection has one; further ones are cold.
    pub(crate) first: Subscription,
    /// `None` where the slot is free.
    pub(crate) passport: Option<Box<Passport>>,
    pub(crate) cold: Option<Box<Cold>>,
    pub(crate) generation: u32,
    /// The deadline that counts; the wheel may hold older ones.
    pub(crate) timer: Tick,
    /// Since when the link takes nothing, where [`Flags::STALLED`] says so.
    pub(crate) stalled: Tick,
    pub(crate) flags: Flags,
    pub(crate) protocol: Protocol,
}

/// Who the client is, and what its `access` line will say; read when it speaks and when it ends.
#[derive(Debug)]
pub(crate) struct Passport {
    pub(crate) session: Session,
    pub(crate) remote: SocketAddr,
    pub(crate) opened_ms: u64,
    pub(crate) received: Count,
    /// Publications: sums of (cursor now − cursor at the start) over all subscriptions, so that a delivery need
    /// not touch this; only while none is open is it the number it says.
    pub(crate) sent: Count,
    /// What it is counted under; dropping it takes the connection out.
    pub(crate) _guest: Option<Box<Guest>>,
    /// The lower bits of the number of messages that had passed, and when that number was new.
    pub(crate) passed: u32,
    pub(crate) passed_s: u32,
    /// Once the end has begun.
    pub(crate) closing: Option<CloseReason>,
}

/// Bytes and messages; differences may pass through zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) bytes: u64,
    pub(crate) messages: u64,
}

/// What only some connections need, and only for a while.
#[derive(Debug, Default)]
pub(crate) struct Cold {
    pub(crate) outbox: Outbox,
    /// An incomplete frame, or frames that wait for their turn.
    pub(crate) partial: BytesMut,
    /// How long that was when the last ping was sent.
    pub(crate) at_ping: usize,
    pub(crate) decoder: Decoder,
    pub(crate) more: Vec<Subscription>,
    /// Whose frame is half sent, where [`Flags::HALF`] says that one is: counted as in [`Slot::subscription`].
    pub(crate) half: u32,
    /// Whose turn it is to send, where there are several subscriptions.
    pub(crate) turns: Turns,
    /// Lanes of which messages were skipped; to be told before the next message.
    pub(crate) skipped: SmallVec<[u32; 2]>,
    /// Lanes that are read up to a place only: what came behind it is skipped.
    pub(crate) stops: SmallVec<[(u32, Cursor); 1]>,
    /// Lanes of which the newest of each key is still to be sent, before what the log has.
    pub(crate) backlogs: Vec<(u32, Backlog)>,
    /// Until when a lag beyond the bounds is tolerated, where [`Flags::GRACED`] says that one is or was.
    pub(crate) grace_ends: Tick,
    /// Publications that the broker has yet to confirm.
    pub(crate) in_flight: u32,
    /// It has to end, as soon as its transport is there and what is in flight is answered.
    pub(crate) leaving: Option<(CloseReason, Option<Advice>)>,
    pub(crate) reserving: Option<Box<Reserving>>,
    /// What was last counted of [`Cold::own`].
    pub(crate) counted: usize,
    /// Listed among those who hold memory of their own.
    pub(crate) listed: bool,
}

/// A request that waits for its subscriptions.
#[derive(Debug)]
pub(crate) struct Reserving {
    pub(crate) transport: Transport,
    pub(crate) waiting_for: usize,
}

/// Booleans of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags(u16);

/// All connections of a shard.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Connections are numbered, so a greater generation is a younger connection.
    generation: u32,
    users: Users,
}

// === impl Flags ===

impl Flags {
    /// The link takes no more now.
    pub(crate) const BLOCKED: u16 = 1;
    /// A publication's frame is half sent; its rest goes before all else.
    pub(crate) const HALF: u16 = 1 << 1;
    /// In the list of connections to visit.
    pub(crate) const DIRTY: u16 = 1 << 2;
    /// A ping was sent, its deadline not reached.
    pub(crate) const PINGED: u16 = 1 << 3;
    /// Nothing was heard since the ping.
    pub(crate) const SILENT: u16 = 1 << 4;
    /// Nothing could be sent since [`Slot::stalled`].
    pub(crate) const STALLED: u16 = 1 << 5;
    /// The end has begun.
    pub(crate) const CLOSING: u16 = 1 << 6;
    /// Nothing more is waited for from the client: ends once all is sent.
    pub(crate) const HEARD_CLOSE: u16 = 1 << 7;
    /// Too many commands in flight: nothing more is read.
    pub(crate) const PAUSED: u16 = 1 << 8;
    /// In the list of connections to go on reading from.
    pub(crate) const UNREAD: u16 = 1 << 9;
    /// What the client sends can no longer be understood.
    pub(crate) const DEAF: u16 = 1 << 10;
    /// The wheel holds an entry that looks whether the link still takes nothing.
    pub(crate) const WATCHED: u16 = 1 << 11;
    /// The client negotiated compression.
    pub(crate) const DEFLATE: u16 = 1 << 13;
    /// Some subscription has a stop or a backlog.
    pub(crate) const BEHIND: u16 = 1 << 12;
    /// It lagged too far since it last had all: [`Cold::grace_ends`] says until when that is tolerated.
    pub(crate) const GRACED: u16 = 1 << 14;
    /// The wheel holds an entry that looks whether it still makes progress.
    pub(crate) const LAG_WATCHED: u16 = 1 << 15;

    pub(crate) fn has(self, flag: u16) -> bool {
        self.0 & flag != 0
    }

    pub(crate) fn set(&mut self, flag: u16) {
        self.0 |= flag;
    }

    pub(crate) fn clear(&mut self, flag: u16) {
        self.0 &= !flag;
    }

    /// Sets a flag; whether it was not set before.
    pub(crate) fn raise(&mut self, flag: u16) -> bool {
        let raised = !self.has(flag);
        self.set(flag);
        raised
    }
}

// === impl Slot ===

impl Slot {
    fn vacant() -> Self {
        Self {
            link: None,
            first: Subscription { cursor: 0, lane: NONE, place: 0 },
            passport: None,
            cold: None,
            generation: 0,
            timer: 0,
            stalled: 0,
            flags: Flags::default(),
            protocol: Protocol::RawBare,
        }
    }

    pub(crate) fn cold(&mut self) -> &mut Cold {
        self.cold.get_or_insert_default()
    }

    /// Frees the cold part when nothing is in it.
    pub(crate) fn cool(&mut self) {
        if self.cold.as_ref().is_some_and(|cold| cold.is_empty()) {
            self.cold = None;
        }
    }

    /// How many subscriptions it has. They are counted from 0, the inline one first.
    pub(crate) fn subscriptions(&self) -> usize {
        match self.first.lane {
            NONE => 0,
            _ => 1 + self.cold.as_ref().map_or(0, |cold| cold.more.len()),
        }
    }

    pub(crate) fn subscription(&self, at: usize) -> Subscription {
        match at {
            0 => self.first,
            at => self.cold.as_ref().expect("further subscriptions are cold").more[at - 1],
        }
    }

    pub(crate) fn subscription_mut(&mut self, at: usize) -> &mut Subscription {
        match at {
            0 => &mut self.first,
            at => &mut self.cold.as_mut().expect("further subscriptions are cold").more[at - 1],
        }
    }

    pub(crate) fn push_subscription(&mut self, subscription: Subscription) {
        match self.first.lane {
            NONE => self.first = subscription,
            _ => {
                let cold = self.cold();
                if cold.more.is_empty() {
                    // Alone it needed no turn.
                    cold.turns.add(0);
                }
                cold.more.push(subscription);
            }
        }
    }

    /// Takes a subscription out; the last one takes its number, if there is another.
    pub(crate) fn remove_subscription(&mut self, at: usize) -> Subscription {
        let removed = self.subscription(at);
        let last = self.subscriptions() - 1;
        if let Some(cold) = &mut self.cold {
            cold.turns.removed(at, last);
            if last <= 1 {
                cold.turns.clear();
            }
        }
        match self.cold.as_mut().and_then(|cold| cold.more.pop()) {
            Some(last) if at <= self.cold.as_ref().map_or(0, |cold| cold.more.len()) => {
                *self.subscription_mut(at) = last;
            }
            Some(_) => {}
            None => self.first.lane = NONE,
        }
        removed
    }

    /// Whether a client was promised this place and its transport is on its way.
    pub(crate) fn is_promised(&self) -> bool {
        self.link.is_none() && self.cold.as_ref().is_none_or(|cold| cold.reserving.is_none())
    }

    /// Whether it has to end as soon as it can.
    pub(crate) fn is_leaving(&self) -> bool {
        self.cold.as_ref().is_some_and(|cold| cold.leaving.is_some())
    }

    /// Up to where this lane is read, if not to its head.
    pub(crate) fn stop(&self, lane: u32) -> Option<Cursor> {
        if !self.flags.has(Flags::BEHIND) {
            return None;
        }
        let stops = &self.cold.as_ref()?.stops;
        stops.iter().find(|(of, _)| *of == lane).map(|(_, stop)| *stop)
    }

    pub(crate) fn set_stop(&mut self, lane: u32, stop: Option<Cursor>) {
        let stops = &mut self.cold().stops;
        stops.retain(|(of, _)| *of != lane);
        stops.extend(stop.map(|stop| (lane, stop)));
        self.look_behind();
    }

    /// What goes before this lane's log.
    pub(crate) fn backlog(&self, lane: u32) -> Option<&Backlog> {
        if !self.flags.has(Flags::BEHIND) {
            return None;
        }
        let backlogs = &self.cold.as_ref()?.backlogs;
        backlogs.iter().find(|(of, _)| *of == lane).map(|(_, backlog)| backlog)
    }

    pub(crate) fn take_backlog(&mut self, lane: u32) -> Option<Backlog> {
        let backlogs = &mut self.cold.as_mut()?.backlogs;
        let at = backlogs.iter().position(|(of, _)| *of == lane)?;
        let (_, backlog) = backlogs.swap_remove(at);
        self.look_behind();
        Some(backlog)
    }

    pub(crate) fn put_backlog(&mut self, lane: u32, backlog: Backlog) {
        if !backlog.is_empty() {
            self.cold().backlogs.push((lane, backlog));
            self.look_behind();
        }
    }

    fn look_behind(&mut self) {
        let cold = self.cold.as_ref();
        if cold.is_some_and(|cold| !cold.stops.is_empty() || !cold.backlogs.is_empty()) {
            self.flags.set(Flags::BEHIND);
        } else {
            self.flags.clear(Flags::BEHIND);
        }
    }

    pub(crate) fn has_outbox(&self) -> bool {
        self.cold.as_ref().is_some_and(|cold| !cold.outbox.is_empty())
    }
}

// === impl Cold ===

impl Cold {
    /// Memory that the connection has to itself: an unfinished message, frames that wait, and replies.
    pub(crate) fn own(&self) -> usize {
        self.partial.capacity() + self.decoder.held() + self.outbox.held()
    }

    fn is_empty(&self) -> bool {
        let Self { outbox, partial, decoder, more, half: _, turns: _, .. } = self;
        let Self { skipped, stops, backlogs, grace_ends, in_flight, leaving, reserving, .. } = self;
        let Self { counted, listed: _, .. } = self;
        outbox.is_empty()
            && partial.is_empty()
            && decoder.is_idle()
            && more.is_empty()
            && skipped.is_empty()
            && stops.is_empty()
            && backlogs.is_empty()
            && *grace_ends == 0
            && *counted == 0
            && *in_flight == 0
            && leaving.is_none()
            && reserving.is_none()
    }
}

// === impl Slots ===

impl Slots {
    pub(crate) fn open(&mut self, protocol: Protocol, passport: Passport) -> (u32, u32) {
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::vacant());
            u32::try_from(self.slots.len() - 1).expect("fewer connections than 2^32")
        });
        // 0 is never given, so that a vacant slot matches no id.
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        if let Some(user) = &passport.session.identity.user {
            self.users.add(user, at);
        }
        let slot = &mut self.slots[at as usize];
        *slot = Slot {
            passport: Some(Box::new(passport)),
            generation: self.generation,
            protocol,
            ..Slot::vacant()
        };
        (at, self.generation)
    }

    /// Frees a slot and returns what it held.
    pub(crate) fn close(&mut self, at: u32) -> Slot {
        self.free.push(at);
        let closed = std::mem::replace(&mut self.slots[at as usize], Slot::vacant());
        let user = closed.passport.as_ref().and_then(|passport| passport.session.identity.user.as_ref());
        if let Some(user) = user {
            self.users.remove(user, at);
        }
        closed
    }

    /// The slots of a user's connections.
    pub(crate) fn of_user(&self, user: &str) -> Vec<u32> {
        self.users.of(user)
    }

    /// Whether the slot still holds that connection.
    pub(crate) fn holds(&self, at: u32, generation: u32) -> bool {
        let slot = self.slots.get(at as usize);
        slot.is_some_and(|slot| slot.generation == generation && slot.passport.is_some())
    }

    /// The slot of a connection that is not over.
    pub(crate) fn find(&self, connection: ConnectionId) -> Option<u32> {
        let ConnectionId { shard: _, slot, generation } = connection;
        self.holds(slot, generation).then_some(slot)
    }

    /// Whether anybody is there.
    pub(crate) fn is_taken(&self, at: u32) -> bool {
        self.slots.get(at as usize).is_some_and(|slot| slot.passport.is_some())
    }

    /// All that are taken.
    pub(crate) fn taken(&self) -> Vec<u32> {
        (0..self.slots.len() as u32).filter(|at| self.is_taken(*at)).collect()
    }
}

impl Index<u32> for Slots {
    type Output = Slot;

    fn index(&self, at: u32) -> &Slot {
        &self.slots[at as usize]
    }
}

impl IndexMut<u32> for Slots {
    fn index_mut(&mut self, at: u32) -> &mut Slot {
        &mut self.slots[at as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_idle_part_fits_a_cache_line() {
        assert!(size_of::<Slot>() <= 64, "{}", size_of::<Slot>());
        assert!(size_of::<Passport>() <= 160, "{}", size_of::<Passport>());
    }

    #[test]
    fn the_last_subscription_takes_the_number_of_a_removed_one() {
        let mut slot = Slot::vacant();
        for lane in 0..4 {
            slot.push_subscription(Subscription { cursor: 0, lane, place: 0 });
        }
        let lanes = |slot: &Slot| -> Vec<u32> {
            (0..slot.subscriptions()).map(|at| slot.subscription(at).lane).collect()
        };
        assert_eq!(slot.remove_subscription(0).lane, 0);
        assert_eq!(lanes(&slot), [3, 1, 2]);
        assert_eq!(slot.remove_subscription(2).lane, 2);
        assert_eq!(lanes(&slot), [3, 1]);
        assert_eq!(slot.remove_subscription(0).lane, 3);
        assert_eq!(slot.remove_subscription(0).lane, 1);
        assert_eq!(slot.subscriptions(), 0);
    }
}
