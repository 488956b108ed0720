//! How many clients are asked to leave now: pure arithmetic of the time that is left.

use std::time::Duration;

/// The last part of a drain is for clients that answer late, not for asking more of them.
const REST: Duration = Duration::from_secs(1);

/// Spreads clients over the time of a drain: at the rate that is allowed, or faster where the deadline asks for it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// Fractions of a client that earlier ticks left over.
    credit: f64,
}

impl Pace {
    /// How many of `clients` leave in a tick of this length, with so much time `left` until the deadline.
    pub(super) fn tick(
        &mut self,
        tick: Duration,
        clients: usize,
        left: Duration,
        max_per_second: f64,
    ) -> usize {
        if clients == 0 {
            return 0;
        }
        let time = left.saturating_sub(REST.min(left / 10));
        if time <= tick {
            self.credit = 0.0;
            return clients;
        }
        let rate = max_per_second.max(clients as f64 / time.as_secs_f64());
        self.credit += rate * tick.as_secs_f64();
        let count = self.credit.floor();
        self.credit -= count;
        // What is left over is never more than there are clients: a newcomer finds no saved-up credit.
        (count as usize).min(clients)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TICK: Duration = Duration::from_millis(50);

    /// The number of clients that leave in each tick, until none is left or the deadline has passed.
    fn play(mut clients: usize, timeout: Duration, max_per_second: f64) -> (Vec<usize>, usize) {
        let (mut pace, mut counts, mut left) = (Pace::default(), Vec::new(), timeout);
        while clients > 0 && !left.is_zero() {
            let count = pace.tick(TICK, clients, left, max_per_second);
            clients -= count;
            counts.push(count);
            left = left.saturating_sub(TICK);
        }
        (counts, clients)
    }

    #[test]
    fn three_clients_leave_at_once() {
        assert_eq!(play(3, Duration::from_secs(60), 200.0).0, [3]);
    }

    #[test]
    fn many_leave_at_the_rate_that_is_allowed() {
        let (counts, left) = play(1_000, Duration::from_secs(60), 200.0);
        assert_eq!((counts.len(), left), (100, 0), "1,000 at 200 a second: five seconds of ticks");
        assert!(counts.iter().all(|count| *count == 10), "{counts:?}");
    }

    #[test]
    fn fifty_thousand_leave_evenly_before_the_deadline() {
        let (counts, left) = play(50_000, Duration::from_secs(60), 200.0);
        assert_eq!(left, 0);
        let mean = 50_000 / counts.len();
        assert!(counts.iter().all(|count| *count <= mean * 3 / 2), "no tick is a burst: {counts:?}");
        assert!(counts.len() > 1_100, "spread over nearly the whole minute: {} ticks", counts.len());
    }

    #[test]
    fn a_slow_rate_is_kept_by_leaving_ticks_out() {
        let mut pace = Pace::default();
        let counts = (0..100).map(|_| pace.tick(TICK, 5, Duration::from_secs(3_600), 1.0));
        assert!((4..=5).contains(&counts.sum::<usize>()), "one a second for five seconds");
    }

    proptest! {
        #[test]
        fn nobody_is_left_at_the_deadline(clients in 0usize..100_000, seconds in 1u64..600, rate in 1u32..10_000) {
            let (counts, left) = play(clients, Duration::from_secs(seconds), rate.into());
            prop_assert_eq!(left, 0);
            prop_assert_eq!(counts.iter().sum::<usize>(), clients);
        }
    }
}
