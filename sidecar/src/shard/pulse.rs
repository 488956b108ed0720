//! What a shard's thread is doing, written by it and readable by any: also when it is stuck.

use std::time::{Duration, Instant};

use crate::latency::{Cell, Histogram};

/// The longest turn is that of this window and the one before it.
const WINDOW: Duration = Duration::from_secs(30);

/// A part of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Stage {
    /// Waiting for something to do.
    Poll,
    /// Taking mail: publications, new connections, answers.
    Mail,
    /// Reading from sockets and pipes.
    Read,
    /// Pings, timeouts and ages.
    Timers,
    /// Writing to sockets and pipes.
    Visits,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Pulse {
    /// Microseconds count from here.
    began: Instant,
    /// How long turns took, from the end of a poll to the next.
    pub(crate) turns: Histogram,
    stage: Cell,
    /// Since when this turn, or this poll, runs.
    since_us: Cell,
    window: Cell,
    longest_us: [Cell; 2],
}

// === impl Stage ===

impl Stage {
    const ALL: [Self; 5] = [Self::Poll, Self::Mail, Self::Read, Self::Timers, Self::Visits];

    /// In the dump.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Poll => "poll",
            Self::Mail => "mail",
            Self::Read => "read",
            Self::Timers => "timers",
            Self::Visits => "visits",
        }
    }
}

// === impl Pulse: by the shard's thread ===

impl Pulse {
    pub(crate) fn new(began: Instant) -> Self {
        Self {
            began,
            turns: Histogram::default(),
            stage: Cell::default(),
            since_us: Cell::default(),
            window: Cell::default(),
            longest_us: Default::default(),
        }
    }

    pub(crate) fn clock_us(&self) -> u64 {
        self.us_at(Instant::now())
    }

    pub(crate) fn us_at(&self, moment: Instant) -> u64 {
        moment.saturating_duration_since(self.began).as_micros() as u64
    }

    /// The turn goes on to another stage.
    pub(crate) fn enter(&self, stage: Stage) {
        self.stage.set(stage as u64);
    }

    /// A poll or a turn begins at this time.
    pub(crate) fn begin(&self, stage: Stage, now_us: u64) {
        self.since_us.set(now_us);
        self.enter(stage);
    }

    /// A turn has ended.
    pub(crate) fn turned(&self, now_us: u64) {
        let took = now_us.saturating_sub(self.since_us.get());
        self.turns.record(u32::try_from(took).unwrap_or(u32::MAX), 1);
        let (window, before) = (window(now_us), self.window.get());
        let [longest, previous] = &self.longest_us;
        if window != before {
            previous.set(if window == before + 1 { longest.get() } else { 0 });
            longest.set(0);
            self.window.set(window);
        }
        longest.set(longest.get().max(took));
    }
}

// === impl Pulse: by any ===

impl Pulse {
    /// What the thread does, and for how long already.
    pub(crate) fn now(&self) -> (Stage, Duration) {
        let stage = Stage::ALL[self.stage.get() as usize % Stage::ALL.len()];
        let since = self.clock_us().saturating_sub(self.since_us.get());
        (stage, Duration::from_micros(since))
    }

    /// The longest turn of the last 30 to 60 seconds, one that has not ended included.
    pub(crate) fn longest(&self) -> Duration {
        let age = window(self.clock_us()).saturating_sub(self.window.get());
        let ended = match (age, &self.longest_us) {
            (0, [longest, previous]) => longest.get().max(previous.get()),
            (1, [longest, _]) => longest.get(),
            _ => 0,
        };
        let running = match self.now() {
            (Stage::Poll, _) => Duration::ZERO,
            (_, since) => since,
        };
        running.max(Duration::from_micros(ended))
    }
}

fn window(us: u64) -> u64 {
    us / WINDOW.as_micros() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_turn_is_forgotten_after_two_windows() {
        let window = WINDOW.as_micros() as u64;
        let pulse = |windows_ago: u64| {
            let pulse = Pulse::new(Instant::now() - (1 + windows_ago as u32) * WINDOW);
            pulse.begin(Stage::Mail, window);
            pulse.turned(window + 5_000);
            pulse.begin(Stage::Poll, window + 5_000);
            pulse
        };
        assert_eq!(pulse(0).longest(), Duration::from_millis(5));
        assert_eq!(pulse(1).longest(), Duration::from_millis(5));
        assert_eq!(pulse(2).longest(), Duration::ZERO);
        let pulse = pulse(1);
        pulse.begin(Stage::Mail, 2 * window);
        pulse.turned(2 * window + 1_000);
        pulse.begin(Stage::Poll, 2 * window + 1_000);
        assert_eq!(pulse.longest(), Duration::from_millis(5), "of the window before");
    }

    #[test]
    fn a_turn_that_does_not_end_is_seen() {
        let pulse = Pulse::new(Instant::now() - Duration::from_secs(10));
        pulse.begin(Stage::Mail, 1_000_000);
        pulse.enter(Stage::Visits);
        let (stage, since) = pulse.now();
        assert_eq!(stage, Stage::Visits);
        assert!(since >= Duration::from_secs(9), "{since:?}");
        assert!(pulse.longest() >= Duration::from_secs(9));
    }
}
