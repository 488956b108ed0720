//! Who has received what: counts each publication's receivers, in order, so that "all have it" is exact and a loss
//! is seen.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Publications that may be under way: far above any window or backlog that a run lasts through.
const RING: usize = 1 << 17;

/// Receipts of one run.
pub(crate) struct Tally {
    subscribers: u32,
    ring: Vec<Progress>,
    /// Publications that every subscriber has, in order from the first.
    complete: u64,
    deliveries: u64,
    /// Receipts out of order: something was lost, twice there, or overtaken.
    disordered: u64,
    /// Publish to receipt, each delivery, in microseconds.
    pub(crate) latency: Histogram<u64>,
    /// Publish to the first receipt of each publication.
    pub(crate) first: Histogram<u64>,
    /// Publish to the last receipt of each publication.
    pub(crate) last: Histogram<u64>,
}

#[derive(Clone, Copy, Default)]
struct Progress {
    sequence: u64,
    receivers: u32,
}

/// Up to an hour in microseconds, three digits exact.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("the bounds are valid")
}

impl Tally {
    pub(crate) fn new(subscribers: usize) -> Self {
        Self {
            subscribers: u32::try_from(subscribers).expect("a process holds fewer sockets"),
            ring: vec![Progress::default(); RING],
            complete: 0,
            deliveries: 0,
            disordered: 0,
            latency: histogram(),
            first: histogram(),
            last: histogram(),
        }
    }

    /// Without the count of who has what: for publications to several channels.
    pub(crate) fn loose() -> Self {
        Self { subscribers: 0, ring: Vec::new(), ..Self::new(0) }
    }

    pub(crate) fn complete(&self) -> u64 {
        self.complete
    }

    pub(crate) fn deliveries(&self) -> u64 {
        self.deliveries
    }

    pub(crate) fn disordered(&self) -> u64 {
        self.disordered
    }

    /// A subscriber that expected `expected` received `sequence`, `late` after it was due.
    pub(crate) fn receive(&mut self, expected: u64, sequence: u64, late: Duration) {
        let micros = late.as_micros() as u64;
        self.deliveries += 1;
        self.disordered += u64::from(expected != sequence);
        self.latency.saturating_record(micros);
        if self.ring.is_empty() {
            return;
        }
        let slot = &mut self.ring[sequence as usize % RING];
        if slot.sequence != sequence || slot.receivers == 0 {
            *slot = Progress { sequence, receivers: 0 };
            self.first.saturating_record(micros);
        }
        slot.receivers += 1;
        if slot.receivers == self.subscribers {
            self.last.saturating_record(micros);
            self.advance();
        }
    }

    fn advance(&mut self) {
        while self.is_complete(self.complete) {
            self.complete += 1;
        }
    }

    fn is_complete(&self, sequence: u64) -> bool {
        let slot = self.ring[sequence as usize % RING];
        slot.sequence == sequence && slot.receivers == self.subscribers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publication_is_complete_when_the_last_subscriber_has_it() {
        let mut tally = Tally::new(2);
        tally.receive(0, 0, Duration::from_micros(10));
        tally.receive(1, 1, Duration::from_micros(10));
        assert_eq!(tally.complete(), 0);
        tally.receive(0, 0, Duration::from_micros(30));
        assert_eq!((tally.complete(), tally.first.max(), tally.last.max()), (1, 10, 30));
        tally.receive(1, 1, Duration::from_micros(30));
        assert_eq!((tally.complete(), tally.deliveries(), tally.disordered()), (2, 4, 0));
    }

    #[test]
    fn a_lost_publication_is_seen_and_never_complete() {
        let mut tally = Tally::new(1);
        tally.receive(0, 1, Duration::ZERO);
        assert_eq!((tally.complete(), tally.disordered()), (0, 1));
    }
}
