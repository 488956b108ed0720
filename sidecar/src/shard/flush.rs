//! How long publications took from their publisher to the kernel, by namespace.
//!
//! Deliveries are noted as they are made and counted at the end of their stride, at one look at the clock for all:
//! most of them sent the same frames of the same lane, and are one note.

use std::sync::Arc;

use super::{
    core::Core,
    log::{Births, Moment},
};
use crate::{domain::Publication, latency::Histogram};

/// A publisher whose clock is behind by more than this, or a message that waited longer, counts as this much.
const LONGEST_US: u64 = 3_600 * 1_000_000;

/// The same frames, handed to one subscriber or many.
#[derive(Debug)]
pub(super) struct Flushed {
    lane: u32,
    first: u64,
    end: u64,
    subscribers: u64,
    births: Births,
    latency: Arc<[Histogram]>,
}

impl Core {
    /// When a publication was published, on this shard's clock. One without a time, as by `redis-cli`, is born here.
    pub(super) fn birth(&self, publication: &Publication) -> Moment {
        let age = publication.published_at_us.map_or(0, |at| self.now.unix_us.saturating_sub(at));
        Moment::of_us(self.now.us.wrapping_sub(age.min(LONGEST_US)))
    }

    /// The link of a subscriber took all frames of a lane from one number up to another.
    pub(super) fn flushed(&mut self, lane: u32, first: u64, end: u64) {
        if first == end {
            return;
        }
        if let Some(last) = self.flushed.last_mut()
            && (last.lane, last.first, last.end) == (lane, first, end)
        {
            last.subscribers += 1;
            return;
        }
        let Some(latency) = self.index.channel_of(lane).latency.clone() else { return };
        let births = self.index.lane(lane).log.births(first, end);
        self.flushed.push(Flushed { lane, first, end, subscribers: 1, births, latency });
    }

    /// Counts what was noted, at this time, in microseconds since the shard began; gives the time back.
    pub(super) fn settle(&mut self, now_us: u64) -> u64 {
        let now = Moment::of_us(now_us);
        for Flushed { subscribers, births, latency, .. } in self.flushed.drain(..) {
            let histogram = &latency[usize::from(self.shard)];
            for (born, frames) in births {
                histogram.record(born.until(now), frames * subscribers);
            }
        }
        now_us
    }
}
