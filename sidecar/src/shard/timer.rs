//! One timer wheel for all connections of a shard. Pure: the caller gives the time.
//!
//! A connection has one deadline, the nearest of all it waits for, kept in its slot as a tick. The wheel holds
//! entries that are checked against the slot when their bucket comes up: to cancel or delay is to write another
//! tick into the slot, nothing is searched for.

/// Milliseconds a tick: fine enough for pings and handshakes, which count in seconds.
pub(crate) const TICK_MS: u64 = 128;
/// Buckets: 65 s in one turn, more than the usual ping interval; a later deadline goes round again.
const BUCKETS: u64 = 512;

/// A moment in ticks since the shard began; 0 means none.
pub(crate) type Tick = u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
    pub(crate) tick: Tick,
    pub(crate) kind: Kind,
}

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The connection's deadline.
    Deadline,
    /// A look at whether its link takes anything: at most one for each connection.
    Stall,
    /// A look at whether it still makes progress while it lags too far: at most one for each connection.
    Lag,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Wheel {
    buckets: Vec<Vec<Entry>>,
    /// The next tick to look at.
    next: u64,
    entries: usize,
}

// === impl Wheel ===

impl Wheel {
    pub(crate) fn new() -> Self {
        Self { buckets: vec![Vec::new(); BUCKETS as usize], next: 1, entries: 0 }
    }

    /// The tick at which a deadline has certainly passed.
    pub(crate) fn tick_at(&self, at_ms: u64) -> Tick {
        let tick = at_ms.div_ceil(TICK_MS).max(self.next);
        // 17 years of ticks: a node is restarted before.
        Tick::try_from(tick).unwrap_or(Tick::MAX)
    }

    pub(crate) fn insert(&mut self, entry: Entry) {
        self.buckets[(u64::from(entry.tick) % BUCKETS) as usize].push(entry);
        self.entries += 1;
    }

    /// Takes out the entries whose tick has come into `due`.
    pub(crate) fn expire(&mut self, now_ms: u64, due: &mut Vec<Entry>) {
        let now = now_ms / TICK_MS;
        if now < self.next {
            return;
        }
        // After a long pause each bucket is looked at once, not once a turn.
        let span = (now - self.next + 1).min(BUCKETS);
        for tick in self.next..self.next + span {
            let bucket = &mut self.buckets[(tick % BUCKETS) as usize];
            let mut at = 0;
            while let Some(entry) = bucket.get(at) {
                if u64::from(entry.tick) <= now {
                    due.push(bucket.swap_remove(at));
                } else {
                    at += 1;
                }
            }
            // One bucket's peak is not kept for ever by all.
            if bucket.is_empty() && bucket.capacity() > 64 {
                *bucket = Vec::new();
            }
        }
        self.next = now + 1;
        self.entries -= due.len();
    }

    /// Milliseconds until the next tick with something in it; `None` where nothing is waited for.
    pub(crate) fn next_in(&self, now_ms: u64) -> Option<u64> {
        if self.entries == 0 {
            return None;
        }
        let bucket = |tick: u64| &self.buckets[(tick % BUCKETS) as usize];
        let tick = (self.next..self.next + BUCKETS).find(|tick| !bucket(*tick).is_empty())?;
        Some((tick * TICK_MS).saturating_sub(now_ms).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(slot: u32, tick: Tick) -> Entry {
        Entry { slot, generation: 1, tick, kind: Kind::Deadline }
    }

    #[test]
    fn an_entry_comes_out_at_its_tick_and_never_before() {
        let mut wheel = Wheel::new();
        let mut due = Vec::new();
        for (slot, at) in [(1, 1_000), (2, 70_000), (3, 200_000), (4, 0)] {
            let tick = wheel.tick_at(at);
            wheel.insert(entry(slot, tick));
        }
        let mut out = Vec::new();
        for now in (0..300_000).step_by(50) {
            wheel.expire(now, &mut due);
            out.extend(due.drain(..).map(|entry| (entry.slot, now)));
        }
        let slots: Vec<u32> = out.iter().map(|(slot, _)| *slot).collect();
        assert_eq!(slots, [4, 1, 2, 3]);
        for ((_, now), at) in out.into_iter().zip([0, 1_000, 70_000, 200_000]) {
            assert!((at..at + 300).contains(&now), "{now} for {at}");
        }
        assert_eq!(wheel.next_in(300_000), None);
    }

    #[test]
    fn a_long_pause_loses_nothing() {
        let mut wheel = Wheel::new();
        for slot in 0..1_000 {
            let tick = wheel.tick_at(u64::from(slot) * 777);
            wheel.insert(entry(slot, tick));
        }
        let mut due = Vec::new();
        wheel.expire(10_000_000, &mut due);
        assert_eq!(due.len(), 1_000);
    }

    #[test]
    fn the_next_wake_up_is_known() {
        let mut wheel = Wheel::new();
        let tick = wheel.tick_at(10_000);
        wheel.insert(entry(1, tick));
        let wait = wheel.next_in(0).unwrap();
        assert!((10_000..=10_128).contains(&wait), "{wait}");
    }
}
