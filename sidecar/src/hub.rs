//! This node's view of its channels: which shards have subscribers of a channel, and whether the broker brings it.
//!
//! `work` joins and leaves; `bridge` reads the routes. The hub knows neither sockets nor protocols and calls
//! nobody: it decides, its caller asks the broker.

use std::{
    collections::{HashMap, hash_map::Entry as Slot},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use smallvec::SmallVec;

use crate::domain::ChannelName;

/// The channels of this node. Cheap to clone. One lock, held for look-ups only and never across an await.
#[derive(Clone, Debug, Default)]
pub struct Hub(Arc<Mutex<Channels>>);

#[derive(Debug, Default)]
struct Channels {
    entries: HashMap<ChannelName, Entry>,
    /// Number of the last channel that was brought or emptied.
    last: u64,
    /// How often the lock was taken.
    #[cfg(test)]
    locked: usize,
}

#[derive(Debug)]
struct Entry {
    shards: SmallVec<[u16; 6]>,
    state: State,
    /// Tells this stay of the channel at this node from an earlier one.
    life: u64,
    /// Number of the last time that it lost its last shard.
    emptied: u64,
}

#[derive(Debug)]
enum State {
    /// The broker was asked; these shards wait, each as often as it asked.
    Joining(Vec<u16>),
    /// The broker brings it.
    Live,
    /// The broker brought it and refuses it now.
    Refused,
}

/// What a join asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// The node's first: ask the broker for the channel, then call [`Hub::joined`].
    First,
    /// The broker was asked already: [`Hub::joined`] will name this shard.
    Wait,
    /// The channel is live.
    Live,
    /// The broker refuses the channel although it was live: nobody is joined.
    Refused,
}

/// A channel without shards, still brought by the broker. Give it back to [`Hub::expire`] after a grace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emptied {
    /// The channel.
    pub channel: ChannelName,
    number: u64,
}

/// Who waited for a channel, and whether they all left meanwhile.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Joined {
    /// Shards to answer, each as often as it asked.
    pub waiting: Vec<u16>,
    /// No shard is left.
    pub emptied: Option<Emptied>,
}

/// The routes, locked: short-lived.
pub struct Routes<'a>(MutexGuard<'a, Channels>);

/// Where a channel's publications go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route<'a> {
    /// The shards that have subscribers.
    pub shards: &'a [u16],
    /// Tells this stay of the channel at this node from an earlier one.
    pub life: u64,
}

// === impl Hub ===

impl Hub {
    /// A shard has its first subscriber of the channel.
    pub fn join(&self, channel: &ChannelName, shard: u16) -> Join {
        let mut channels = self.lock();
        let Channels { entries, last, .. } = &mut *channels;
        match entries.entry(channel.clone()) {
            Slot::Vacant(slot) => {
                *last += 1;
                let shards = SmallVec::from_slice(&[shard]);
                slot.insert(Entry { shards, state: State::Joining(vec![shard]), life: *last, emptied: 0 });
                Join::First
            }
            Slot::Occupied(mut slot) => slot.get_mut().join(shard),
        }
    }

    /// The broker answered: the channel is live, or it is not and nobody is joined any more.
    pub fn joined(&self, channel: &ChannelName, live: bool) -> Joined {
        let mut channels = self.lock();
        let Some(entry) = channels.entries.get_mut(channel) else { return Joined::default() };
        let waiting = match std::mem::replace(&mut entry.state, State::Live) {
            State::Joining(waiting) => waiting,
            State::Live | State::Refused => Vec::new(),
        };
        if !live {
            channels.entries.remove(channel);
            return Joined { waiting, emptied: None };
        }
        let emptied = entry.shards.is_empty();
        Joined { waiting, emptied: emptied.then(|| channels.emptied(channel)) }
    }

    /// A shard lost its last subscriber of the channel. Names the channel if that was the node's last one.
    pub fn leave(&self, channel: &ChannelName, shard: u16) -> Option<Emptied> {
        let mut channels = self.lock();
        let entry = channels.entries.get_mut(channel)?;
        entry.shards.retain(|other| *other != shard);
        let emptied = entry.shards.is_empty() && !matches!(entry.state, State::Joining(_));
        emptied.then(|| channels.emptied(channel))
    }

    /// The broker refuses a channel that was live, or brings it again. Without an effect on other channels.
    pub fn set_refused(&self, channel: &ChannelName, refused: bool) {
        let mut channels = self.lock();
        let Some(Entry { state, .. }) = channels.entries.get_mut(channel) else { return };
        if !matches!(state, State::Joining(_)) {
            *state = if refused { State::Refused } else { State::Live };
        }
    }

    /// Returns `true` if the broker refuses a channel that was live.
    pub fn is_refused(&self, channel: &ChannelName) -> bool {
        self.lock().entries.get(channel).is_some_and(|entry| matches!(entry.state, State::Refused))
    }

    /// The grace is over. Whether nobody came back: then the channel is gone, tell the broker.
    pub fn expire(&self, emptied: &Emptied) -> bool {
        let mut channels = self.lock();
        let Slot::Occupied(slot) = channels.entries.entry(emptied.channel.clone()) else { return false };
        let over = slot.get().shards.is_empty() && slot.get().emptied == emptied.number;
        if over {
            slot.remove();
        }
        over
    }

    /// The routes, locked.
    pub fn routes(&self) -> Routes<'_> {
        Routes(self.lock())
    }

    /// Channels that the broker brings or is asked to bring.
    pub fn channels(&self) -> usize {
        self.lock().entries.len()
    }

    fn lock(&self) -> MutexGuard<'_, Channels> {
        let channels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        #[cfg(test)]
        let channels = {
            let mut channels = channels;
            channels.locked += 1;
            channels
        };
        channels
    }

    /// How often the lock was taken.
    #[cfg(test)]
    pub(crate) fn locked(&self) -> usize {
        self.lock().locked
    }
}

impl Entry {
    fn join(&mut self, shard: u16) -> Join {
        if matches!(self.state, State::Refused) {
            return Join::Refused;
        }
        if !self.shards.contains(&shard) {
            self.shards.push(shard);
        }
        match &mut self.state {
            State::Refused | State::Live => Join::Live,
            State::Joining(waiting) => {
                waiting.push(shard);
                Join::Wait
            }
        }
    }
}

impl Channels {
    fn emptied(&mut self, channel: &ChannelName) -> Emptied {
        self.last += 1;
        let number = self.last;
        if let Some(entry) = self.entries.get_mut(channel) {
            entry.emptied = number;
        }
        Emptied { channel: channel.clone(), number }
    }
}

impl Routes<'_> {
    /// All channels, and the shards that have subscribers of each.
    pub fn all(&self) -> impl Iterator<Item = (&ChannelName, &[u16])> {
        self.0.entries.iter().map(|(channel, entry)| (channel, &entry.shards[..]))
    }

    /// Where the channel's publications go; `None` where nobody here asked for it.
    pub fn of(&self, channel: &ChannelName) -> Option<Route<'_>> {
        self.0.entries.get(channel).map(|Entry { shards, life, .. }| Route { shards, life: *life })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel() -> ChannelName {
        "a".parse().unwrap()
    }

    fn shards(hub: &Hub) -> Vec<u16> {
        hub.routes().of(&channel()).map(|route| route.shards.to_vec()).unwrap_or_default()
    }

    #[test]
    fn only_the_first_shard_asks_the_broker_and_the_others_wait_for_its_answer() {
        let hub = Hub::default();
        assert_eq!(hub.join(&channel(), 0), Join::First);
        assert_eq!(hub.join(&channel(), 1), Join::Wait);
        assert_eq!(hub.joined(&channel(), true), Joined { waiting: vec![0, 1], emptied: None });
        assert_eq!(hub.join(&channel(), 2), Join::Live);
        assert_eq!(shards(&hub), [0, 1, 2]);
    }

    #[test]
    fn a_refused_channel_leaves_nothing_behind() {
        let hub = Hub::default();
        hub.join(&channel(), 0);
        hub.join(&channel(), 1);
        assert_eq!(hub.joined(&channel(), false).waiting, [0, 1]);
        assert_eq!(hub.channels(), 0);
        assert_eq!(hub.join(&channel(), 1), Join::First);
    }

    #[test]
    fn a_channel_outlives_its_last_shard_until_the_grace_is_over() {
        let hub = Hub::default();
        hub.join(&channel(), 0);
        hub.joined(&channel(), true);
        let emptied = hub.leave(&channel(), 0).expect("the last one");
        assert_eq!(hub.join(&channel(), 1), Join::Live, "back within the grace");
        assert!(!hub.expire(&emptied), "somebody came back");
        let again = hub.leave(&channel(), 1).expect("the last one");
        assert!(!hub.expire(&emptied), "an older grace does not end a newer one");
        assert!(hub.expire(&again));
        assert_eq!(hub.channels(), 0);
    }

    #[test]
    fn a_channel_that_all_left_while_it_was_joined_is_emptied_by_the_answer() {
        let hub = Hub::default();
        hub.join(&channel(), 0);
        assert_eq!(hub.leave(&channel(), 0), None, "the broker's answer is still out");
        let joined = hub.joined(&channel(), true);
        assert_eq!(joined.waiting, [0]);
        assert!(hub.expire(&joined.emptied.expect("nobody is left")));
    }

    #[test]
    fn nobody_joins_a_channel_that_is_refused_since_it_was_live_until_it_is_back_or_gone() {
        let hub = Hub::default();
        hub.join(&channel(), 0);
        hub.set_refused(&channel(), true);
        assert_eq!(hub.joined(&channel(), true).waiting, [0], "the answer is newer");
        hub.set_refused(&channel(), true);
        assert_eq!(hub.join(&channel(), 1), Join::Refused);
        assert_eq!(shards(&hub), [0]);
        hub.set_refused(&channel(), false);
        assert_eq!(hub.join(&channel(), 1), Join::Live);
        hub.set_refused(&channel(), true);
        hub.leave(&channel(), 0);
        assert!(hub.expire(&hub.leave(&channel(), 1).expect("the last one")));
        assert_eq!(hub.join(&channel(), 0), Join::First);
    }

    #[test]
    fn each_stay_of_a_channel_is_another_life() {
        let hub = Hub::default();
        let life = || {
            hub.join(&channel(), 0);
            hub.joined(&channel(), true);
            let life = hub.routes().of(&channel()).expect("joined").life;
            hub.expire(&hub.leave(&channel(), 0).expect("the last one"));
            life
        };
        assert_ne!(life(), life());
    }
}
