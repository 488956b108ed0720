//! What single connections have to themselves beside the logs: messages that have begun, frames that wait for their
//! turn, and replies that were not read. All of it together has a bound; whoever has most of it goes first.

use super::{
    connection::{Flags, Slots},
    core::Core,
};
use crate::{domain::CloseReason, protocol::websocket::Decoder};

/// Of what a shard may hold, connections have this part to themselves.
pub(super) const OWN_PART: usize = 2;
/// Whoever has less is not listed: some replies, or half a message of a chat.
const LISTED: usize = 512;
/// Entries below which nobody looks whether they still count.
const FEW: usize = 1_024;

/// Who has memory of their own. Some entries no longer count, some are there twice.
#[derive(Debug, Default)]
pub(super) struct Holders {
    entries: Vec<(u32, u32)>,
    /// How many there may be before those that no longer count are taken out.
    most: usize,
}

impl Holders {
    fn add(&mut self, slot: u32, slots: &Slots) {
        if self.entries.len() >= self.most.max(FEW) {
            self.tidy(slots);
            self.most = 2 * self.entries.len();
        }
        self.entries.push((slot, slots[slot].generation));
    }

    fn tidy(&mut self, slots: &Slots) {
        let listed = |slot: u32| slots[slot].cold.as_ref().is_some_and(|cold| cold.listed);
        self.entries.retain(|(slot, generation)| slots.holds(*slot, *generation) && listed(*slot));
        self.entries.sort_unstable();
        self.entries.dedup();
    }

    /// All of them, whoever has most first.
    fn by_size(&mut self, slots: &Slots) -> Vec<u32> {
        self.tidy(slots);
        let mut by_size: Vec<u32> = self.entries.iter().map(|(slot, _)| *slot).collect();
        let size = |slot: &u32| slots[*slot].cold.as_ref().map_or(0, |cold| cold.counted);
        by_size.sort_by_cached_key(|slot| std::cmp::Reverse(size(slot)));
        by_size
    }
}

impl Core {
    /// Counts what a connection has to itself now.
    pub(super) fn recount(&mut self, slot: u32) {
        let Some(cold) = &mut self.slots[slot].cold else { return };
        let own = cold.own();
        let before = std::mem::replace(&mut cold.counted, own);
        if own >= LISTED && !cold.listed {
            cold.listed = true;
            self.holders.add(slot, &self.slots);
        }
        self.own_is(before, own);
        self.slots[slot].cool();
    }

    /// A connection has so much where it had so much before.
    pub(super) fn own_is(&mut self, before: usize, own: usize) {
        self.own_bytes = self.own_bytes + own - before;
        self.metrics.own_bytes.add(own as u64);
        self.metrics.own_bytes.sub(before as u64);
    }

    /// Closes those who have most to themselves where all together have too much. Not to be called while something is
    /// done with other connections: it ends some.
    pub(super) fn bound_own(&mut self) {
        let most = self.max_log_bytes / OWN_PART;
        if self.own_bytes <= most {
            return;
        }
        // Some of it is free again afterwards, or it would be too much with each read.
        let enough = most - most / 16;
        for slot in self.holders.by_size(&self.slots) {
            if self.own_bytes <= enough {
                return;
            }
            self.shed_own(slot);
        }
    }

    fn shed_own(&mut self, slot: u32) {
        let Some(cold) = &self.slots[slot].cold else { return };
        let reads_nothing = cold.outbox.held() > cold.own() / 2;
        if reads_nothing || self.slots[slot].flags.has(Flags::CLOSING) {
            self.end(slot, CloseReason::Overloaded);
            return;
        }
        self.violated(slot, CloseReason::Overloaded);
        if self.slots.is_taken(slot) {
            // What it goes on with is thrown away unread.
            self.slots[slot].cold().decoder = Decoder::default();
            self.recount(slot);
        }
    }
}
