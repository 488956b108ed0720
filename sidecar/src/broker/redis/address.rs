//! Whether the configured address still leads to the connected server. A name that moves to another primary is followed
//! even where the old server does not say that it was replaced.

use std::{io, net::SocketAddr, time::Duration};

use tokio::time::Instant;

/// Between look-ups. Twice in a row the server has to be missing from the answer.
const INTERVAL: Duration = Duration::from_secs(30);
/// Each move doubles the interval up to this: a name that answers with another address each time costs a reconnect an
/// hour.
const LONGEST: Duration = Duration::from_secs(3_600);

/// What the look-ups of one link's address told.
pub(super) struct AddressWatch {
    interval: Duration,
    next: Instant,
    /// The last answer did not name the server.
    missed: bool,
}

impl AddressWatch {
    pub(super) fn new(now: Instant) -> Self {
        Self { interval: INTERVAL, next: now + INTERVAL, missed: false }
    }

    /// A connection was made, by a fresh look-up.
    pub(super) fn connected(&mut self, now: Instant) {
        (self.next, self.missed) = (now + self.interval, false);
    }

    /// Returns `true` if it is time for a look-up; the next one is then an interval away.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let due = now >= self.next;
        if due {
            self.next = now + self.interval;
        }
        due
    }

    /// Takes the answer of a look-up; returns `true` if the address leads elsewhere. A failed look-up says nothing.
    pub(super) fn has_moved(&mut self, server: SocketAddr, found: io::Result<Vec<SocketAddr>>) -> bool {
        let Ok(found) = found else { return false };
        if found.is_empty() {
            return false;
        }
        let missing = !found.contains(&server);
        let moved = std::mem::replace(&mut self.missed, missing) && missing;
        if moved {
            self.interval = (2 * self.interval).min(LONGEST);
        } else if !missing {
            self.interval = (self.interval / 2).max(INTERVAL);
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, last], 6379))
    }

    #[test]
    fn an_address_has_moved_once_it_leads_elsewhere_twice_in_a_row() {
        let mut watch = AddressWatch::new(Instant::now());
        let mut told = |found| watch.has_moved(at(1), found);
        assert!(!told(Ok(vec![at(2), at(1)])));
        assert!(!told(Ok(vec![at(2)])));
        assert!(!told(Ok(vec![at(1)])));
        assert!(!told(Ok(vec![at(2)])));
        assert!(!told(Ok(Vec::new())));
        assert!(!told(Err(io::ErrorKind::NotFound.into())));
        assert!(told(Ok(vec![at(3)])));
    }

    #[test]
    fn an_address_that_always_moves_is_followed_less_and_less() {
        let (mut now, mut moves) = (Instant::now(), 0);
        let mut watch = AddressWatch::new(now);
        let end = now + Duration::from_secs(24 * 3_600);
        while now < end {
            now += Duration::from_secs(1);
            if watch.is_due(now) && watch.has_moved(at(1), Ok(vec![at(2)])) {
                moves += 1;
                watch.connected(now);
            }
        }
        assert!((12..24).contains(&moves), "{moves} reconnects a day");
    }
}
