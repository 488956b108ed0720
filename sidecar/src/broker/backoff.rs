//! How long to wait before the next try: one jittered type for all that connect.

use std::time::Duration;

use rand::RngExt;

/// Exponential back-off with jitter: each wait is a random part, at least half, of a bound that doubles.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// A first try after a loss may come this soon: a restarted Redis answers within it.
    const FIRST: Duration = Duration::from_millis(100);
    /// No wait is longer, so that nodes are back within seconds of the broker.
    const LONGEST: Duration = Duration::from_secs(5);

    pub(super) fn new() -> Self {
        Self { attempts: 0 }
    }

    /// Tries since the last success.
    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Whether this failure deserves a line in the log: all are counted, every nth is told.
    pub(super) fn tell(&self) -> bool {
        self.attempts.is_power_of_two() || self.attempts.is_multiple_of(20)
    }

    /// Counts a failure; how long to wait now.
    pub(super) fn next(&mut self) -> Duration {
        let bound = Self::LONGEST.min(Self::FIRST.saturating_mul(1 << self.attempts.min(16)));
        self.attempts = self.attempts.saturating_add(1);
        bound.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// It worked.
    pub(super) fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_longest_and_start_anew_after_a_success() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..100).map(|_| backoff.next()).collect();
        for (attempt, wait) in waits.iter().enumerate() {
            let bound = Backoff::LONGEST.min(Backoff::FIRST * (1 << attempt.min(16)));
            assert!(*wait <= bound && *wait >= bound / 2, "attempt {attempt}: {wait:?} of {bound:?}");
        }
        assert!(waits[50..].windows(2).any(|pair| pair[0] != pair[1]), "jittered");
        backoff.reset();
        assert!(backoff.next() <= Backoff::FIRST);
    }
}
