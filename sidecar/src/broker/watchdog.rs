//! Deadlines that judge by evidence: silence counts only while this process was running to hear it.

use std::time::Duration;

use tokio::time::Instant;

/// A check that comes this much later than the one before it means that the process did not run meanwhile: it was
/// stopped, suspended with its machine, or starved. Whoever checks does so several times within it.
const LATE: Duration = Duration::from_secs(1);

/// Time since the last sign of life, not counting the time in which nobody could have noticed one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watchdog {
    heard: Instant,
    checked: Instant,
}

impl Watchdog {
    /// A sign of life was just seen.
    pub(crate) fn new(now: Instant) -> Self {
        Self { heard: now, checked: now }
    }

    /// A sign of life.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// To be called at regular times. After a late call the silence starts again at zero, because what arrived meanwhile
    /// has not been read yet, and the time that nobody watched is returned; zero otherwise.
    pub(crate) fn check(&mut self, now: Instant) -> Duration {
        let unwatched = now.saturating_duration_since(self.checked);
        self.checked = now;
        if unwatched <= LATE {
            return Duration::ZERO;
        }
        self.heard = now;
        unwatched
    }

    /// Returns the time since the last sign of life, or since a late check.
    pub(crate) fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_while_it_is_watched() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(start);
        for step in 1..=20_u32 {
            let now = start + step * LATE / 4;
            assert_eq!(watchdog.check(now), Duration::ZERO);
            assert_eq!(watchdog.silence(now), now - start);
        }
        watchdog.heard(start + 5 * LATE);
        assert_eq!(watchdog.silence(start + 6 * LATE), LATE);
    }

    #[test]
    fn a_late_check_starts_again() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(start);
        let resumed = start + 13 * LATE;
        assert_eq!(watchdog.check(resumed), 13 * LATE);
        assert_eq!(watchdog.silence(resumed), Duration::ZERO, "nobody could hear for 13 s");
        assert_eq!(watchdog.check(resumed + LATE), Duration::ZERO);
        assert_eq!(watchdog.silence(resumed + LATE), LATE);
    }
}
