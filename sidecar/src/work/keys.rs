//! How many idempotency keys this node may have in the broker's memory. Each one costs Redis some 150 bytes for as long as
//! it is remembered, which clients could otherwise use to fill a server that others share.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

/// Keys are counted for as long as the broker remembers one; by the turn of a window twice as many may be remembered.
const WINDOW: Duration = Duration::from_secs(300);
/// Of the server API: 3,333 a second for five minutes, up to 150 MB.
const API: u32 = 1_000_000;
/// Of all clients together: up to 15 MB.
const CLIENTS: u32 = 100_000;
/// Of one user.
const USER: u32 = 10_000;
/// The part of what the others leave of [`CLIENTS`] that one user may have, so that no number of users takes everything.
const SHARE: u32 = 10;

/// Keys of the present window.
pub(super) struct Keys {
    since: Instant,
    api: u32,
    clients: u32,
    users: HashMap<String, u32>,
}

/// A counted key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    /// Window that it was counted in.
    since: Instant,
}

/// There were too many keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMany {
    /// Keys that the publisher may have at present.
    pub(super) limit: u32,
}

impl Keys {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, api: 0, clients: 0, users: HashMap::new() }
    }

    /// Counts a key of `user`, or of the server API.
    ///
    /// # Errors
    /// [`TooMany`]: it was not counted.
    pub(super) fn take(&mut self, user: Option<&str>, now: Instant) -> Result<Counted, TooMany> {
        if now - self.since >= WINDOW {
            *self = Self::new(now);
        }
        let used = self.used(user);
        let limit = match user {
            None => API,
            Some(_) => USER.min((CLIENTS - (self.clients - used)) / SHARE),
        };
        if used >= limit {
            return Err(TooMany { limit });
        }
        match user {
            None => self.api += 1,
            Some(user) => {
                self.clients += 1;
                *self.users.entry(user.to_owned()).or_default() += 1;
            }
        }
        Ok(Counted { since: self.since })
    }

    /// Counts a key no longer, because the broker does not remember it, or did so before.
    pub(super) fn give_back(&mut self, user: Option<&str>, counted: Counted) {
        if counted.since != self.since {
            return;
        }
        match user {
            None => self.api -= 1,
            Some(user) => {
                self.clients -= 1;
                if let Some(used) = self.users.get_mut(user) {
                    *used -= 1;
                    if *used == 0 {
                        self.users.remove(user);
                    }
                }
            }
        }
    }

    fn used(&self, user: Option<&str>) -> u32 {
        user.map_or(self.api, |user| self.users.get(user).copied().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many tries are counted.
    fn take(keys: &mut Keys, user: Option<&str>, now: Instant, tries: u32) -> u32 {
        (0..tries).map(|_| u32::from(keys.take(user, now).is_ok())).sum()
    }

    #[test]
    fn each_publisher_has_a_bound_until_the_window_ends() {
        let now = Instant::now();
        let mut keys = Keys::new(now);
        assert_eq!(take(&mut keys, Some("ann"), now, 2 * USER), USER);
        assert_eq!(keys.take(Some("ann"), now), Err(TooMany { limit: USER }));
        keys.api = API - 1;
        assert_eq!(take(&mut keys, None, now, 2), 1);
        assert_eq!(keys.take(None, now), Err(TooMany { limit: API }));
        assert!(keys.take(Some("ann"), now + WINDOW).is_ok());
    }

    #[test]
    fn many_users_together_leave_something_for_another() {
        let now = Instant::now();
        let mut keys = Keys::new(now);
        for user in 0..30 {
            assert!(take(&mut keys, Some(&user.to_string()), now, USER) > 0, "user {user}");
        }
        assert!(keys.clients < CLIENTS);
        assert!(take(&mut keys, Some("bob"), now, USER) > 100);
        let TooMany { limit } = keys.take(Some("bob"), now).unwrap_err();
        assert!(limit < USER, "the limit of this moment is told: {limit}");
    }

    #[test]
    fn a_key_that_is_given_back_does_not_count_in_its_window_or_in_another() {
        let now = Instant::now();
        let mut keys = Keys::new(now);
        for user in [None, Some("ann")] {
            let counted = keys.take(user, now).unwrap();
            keys.give_back(user, counted);
            assert_eq!(keys.used(user), 0);
            let old = keys.take(user, now).unwrap();
            assert!(keys.take(user, now + WINDOW).is_ok());
            keys.give_back(user, old);
            assert_eq!(keys.used(user), 1);
            keys = Keys::new(now);
        }
    }
}
