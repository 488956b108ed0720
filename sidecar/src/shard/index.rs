//! Channel → subscribers and logs. A [`Lane`] is one log (channel and wire form) and the list of those who read it.

use std::{collections::HashMap, sync::Arc};

use slab::Slab;

use super::{
    connection::{NONE, Subscription},
    log::{Log, Spares},
};
use crate::{
    domain::{ChannelName, Policy},
    latency::Histogram,
    protocol::WireForm,
};

/// See the module. The map's hash is keyed: clients choose names.
#[derive(Debug, Default)]
pub(crate) struct Index {
    by_name: HashMap<ChannelName, u32>,
    channels: Slab<Channel>,
    lanes: Slab<Lane>,
}

#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) name: ChannelName,
    pub(crate) policy: Arc<Policy>,
    /// Where its namespace's deliveries are counted, unless nobody wants to know.
    pub(crate) latency: Option<Arc<[Histogram]>>,
    pub(crate) state: State,
    /// The broker refuses it although it was live.
    pub(crate) refused: bool,
    /// By wire form; [`NONE`] where nobody uses it.
    lanes: [u32; WireForm::ALL.len()],
    pub(crate) subscribers: u32,
    /// Who is told once the channel is live.
    pub(crate) waiters: Vec<Waiter>,
}

/// What the control runtime knows of this shard's interest in a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Asked for, not answered.
    Pending,
    /// Asked for, not answered, and nobody is left: given back once it is answered.
    Unwanted,
    /// Publications come.
    Live,
    /// Nobody is left, but the way out was full: still to be given back.
    Leaving,
}

#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
    pub(crate) id: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) channel: u32,
    pub(crate) form: WireForm,
    pub(crate) log: Log,
    pub(crate) subscribers: Vec<Subscriber>,
    /// Where a pass over the subscribers is, and how many it has still to see.
    pub(crate) next: u32,
    pub(crate) left: u32,
    /// In the list of lanes with something new.
    pub(crate) dirty: bool,
    /// Its log is full where this is not 0: what is published meanwhile is lost here, which was told. How far the
    /// bounds of lag shrink.
    pub(crate) pressure: u32,
}

/// Whose subscription it is, and which one of theirs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subscriber {
    pub(crate) slot: u32,
    pub(crate) at: u32,
}

/// What leaving a lane changed elsewhere.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// This subscriber's place in the lane is new.
    pub(crate) moved: Option<(Subscriber, u32)>,
    /// This channel has no subscriber left.
    pub(crate) empty: Option<u32>,
    /// Log bytes that were freed.
    pub(crate) freed: usize,
}

// === impl Index ===

impl Index {
    pub(crate) fn find(&self, name: &ChannelName) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// A new channel, not yet asked for.
    pub(crate) fn open(
        &mut self,
        name: ChannelName,
        policy: Arc<Policy>,
        latency: Option<Arc<[Histogram]>>,
    ) -> u32 {
        let channel = Channel {
            name: name.clone(),
            policy,
            latency,
            state: State::Pending,
            refused: false,
            lanes: [NONE; WireForm::ALL.len()],
            subscribers: 0,
            waiters: Vec::new(),
        };
        let key = self.channels.insert(channel) as u32;
        self.by_name.insert(name, key);
        key
    }

    /// Forgets a channel without subscribers.
    pub(crate) fn close(&mut self, key: u32) -> ChannelName {
        let Channel { name, subscribers, .. } = self.channels.remove(key as usize);
        debug_assert_eq!(subscribers, 0);
        self.by_name.remove(&name);
        name
    }

    pub(crate) fn channel(&self, key: u32) -> &Channel {
        &self.channels[key as usize]
    }

    pub(crate) fn channel_mut(&mut self, key: u32) -> &mut Channel {
        &mut self.channels[key as usize]
    }

    pub(crate) fn lane(&self, key: u32) -> &Lane {
        &self.lanes[key as usize]
    }

    pub(crate) fn lane_mut(&mut self, key: u32) -> &mut Lane {
        &mut self.lanes[key as usize]
    }

    pub(crate) fn lane_if_any(&mut self, key: u32) -> Option<&mut Lane> {
        self.lanes.get_mut(key as usize)
    }

    /// The channel whose lane this is.
    pub(crate) fn channel_of(&self, lane: u32) -> &Channel {
        self.channel(self.lane(lane).channel)
    }

    /// The lanes of a channel that have subscribers.
    pub(crate) fn lanes_of(&self, channel: u32) -> impl Iterator<Item = u32> + use<> {
        self.channels[channel as usize].lanes.into_iter().filter(|lane| *lane != NONE)
    }

    pub(crate) fn channels(&self) -> impl Iterator<Item = (u32, &Channel)> {
        self.channels.iter().map(|(key, channel)| (key as u32, channel))
    }

    /// Gives back what logs asked for ahead of need; returns how much memory was freed.
    pub(crate) fn shrink(&mut self) -> usize {
        self.lanes.iter_mut().map(|(_, lane)| lane.log.shrink()).sum()
    }

    /// Adds a subscriber at the head of the channel's log.
    pub(crate) fn join(&mut self, key: u32, form: WireForm, subscriber: Subscriber) -> Subscription {
        let channel = &mut self.channels[key as usize];
        channel.subscribers += 1;
        let lane = &mut channel.lanes[form as usize];
        if *lane == NONE {
            *lane = self.lanes.insert(Lane::new(key, form)) as u32;
        }
        let (key, lane) = (*lane, &mut self.lanes[*lane as usize]);
        lane.subscribers.push(subscriber);
        // A pass goes round in a circle, which is longer by one now: it would end before its last one.
        if lane.left > 0 {
            lane.left += 1;
        }
        let place = lane.subscribers.len() as u32 - 1;
        Subscription { cursor: lane.log.join(), lane: key, place }
    }

    pub(crate) fn leave(&mut self, subscription: Subscription, spares: &mut Spares) -> Left {
        let Subscription { cursor, lane: key, place } = subscription;
        let lane = &mut self.lanes[key as usize];
        let freed = lane.log.leave(cursor, spares);
        lane.subscribers.swap_remove(place as usize);
        let moved = lane.subscribers.get(place as usize).map(|moved| (*moved, place));
        // The one that moved may not have been seen in this pass: go round once more, which costs those that
        // have nothing to receive next to nothing.
        if lane.left > 0 {
            lane.left = lane.subscribers.len() as u32;
        }
        let (channel_key, form, none_left) = (lane.channel, lane.form, lane.subscribers.is_empty());
        let channel = &mut self.channels[channel_key as usize];
        channel.subscribers -= 1;
        if none_left {
            channel.lanes[form as usize] = NONE;
            self.lanes.remove(key as usize);
        }
        let empty = (self.channels[channel_key as usize].subscribers == 0).then_some(channel_key);
        Left { moved, empty, freed }
    }
}

impl Lane {
    fn new(channel: u32, form: WireForm) -> Self {
        Self {
            channel,
            form,
            log: Log::default(),
            subscribers: Vec::with_capacity(1),
            next: 0,
            left: 0,
            dirty: false,
            pressure: 0,
        }
    }

    /// The next subscriber of a pass.
    pub(crate) fn next(&mut self) -> Option<Subscriber> {
        if self.left == 0 || self.subscribers.is_empty() {
            self.left = 0;
            return None;
        }
        self.left -= 1;
        if self.next as usize >= self.subscribers.len() {
            self.next = 0;
        }
        let subscriber = self.subscribers[self.next as usize];
        self.next += 1;
        Some(subscriber)
    }
}
