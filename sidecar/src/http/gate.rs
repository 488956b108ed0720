//! How fast connections come in, and how many may be on their way: accepted, but neither a WebSocket nor an event
//! stream yet. Whoever sends half a request holds one of these places and nothing else.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// Counts connections on their way. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate(Arc<AtomicU32>);

/// A connection's place among those on their way, until it is let go or dropped. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Place(Arc<Mutex<Option<Counted>>>);

#[derive(Debug)]
struct Counted(Gate);

/// A token bucket for accepting: full at the start, and as large as one second.
#[derive(Debug)]
pub(super) struct Pace {
    left: f64,
    at: Instant,
}

// === impl Gate ===

impl Gate {
    /// A place, if fewer than `most` are taken.
    pub(super) fn enter(&self, most: u32) -> Option<Place> {
        let counted = Counted(self.clone());
        // Counted first, so that the guard gives back what was counted.
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        (before < most).then(|| Place(Arc::new(Mutex::new(Some(counted)))))
    }

    /// How many are on their way.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Place ===

impl Place {
    /// It is a connection now, and counted as such.
    pub(super) fn release(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

// === impl Pace ===

impl Pace {
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        Self { left: f64::from(per_second), at: now }
    }

    /// Takes one; how long to wait before the next where none is left. 0 a second means no bound.
    pub(super) fn take(&mut self, per_second: u32, now: Instant) -> Option<Duration> {
        if per_second == 0 {
            return None;
        }
        let rate = f64::from(per_second);
        let filled = now.saturating_duration_since(self.at).as_secs_f64() * rate;
        self.left = (self.left + filled).min(rate) - 1.0;
        self.at = now;
        (self.left < 0.0).then(|| Duration::from_secs_f64(-self.left / rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_once_its_connection_is_one_or_is_gone() {
        let gate = Gate::default();
        let (first, second) = (gate.enter(2).unwrap(), gate.enter(2).unwrap());
        assert!(gate.enter(2).is_none());
        assert_eq!(gate.waiting(), 2, "who was refused holds nothing");
        first.clone().release();
        let third = gate.enter(2).unwrap();
        drop((first, second, third));
        assert_eq!(gate.waiting(), 0);
    }

    #[test]
    fn connections_come_at_the_rate_after_a_burst_of_one_second() {
        let begin = Instant::now();
        let mut pace = Pace::new(10, begin);
        assert!((0..10).all(|_| pace.take(10, begin).is_none()));
        assert_eq!(pace.take(10, begin), Some(Duration::from_millis(100)));
        assert_eq!(pace.take(10, begin + Duration::from_millis(200)), None);
        assert!(pace.take(0, begin).is_none());
    }
}
