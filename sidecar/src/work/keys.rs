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
/// Of one user, so that none uses up what all share.
pub(super) const USER: u32 = 10_000;

/// Keys of the present window.
pub(super) struct Keys {
    since: Instant,
    api: u32,
    clients: u32,
    users: HashMap<String, u32>,
}

impl Keys {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, api: 0, clients: 0, users: HashMap::new() }
    }

    /// Counts a key of `user`, or of the server API; returns `false` if there were too many.
    pub(super) fn take(&mut self, user: Option<&str>, now: Instant) -> bool {
        if now - self.since >= WINDOW {
            *self = Self::new(now);
        }
        let Some(user) = user else { return count(&mut self.api, API) };
        if !self.users.contains_key(user) {
            if self.clients >= CLIENTS {
                return false;
            }
            self.users.insert(user.to_owned(), 0);
        }
        self.users
            .get_mut(user)
            .is_some_and(|used| *used < USER && count(&mut self.clients, CLIENTS) && count(used, USER))
    }
}

fn count(used: &mut u32, limit: u32) -> bool {
    let free = *used < limit;
    *used += u32::from(free);
    free
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_bounded_for_each_user_for_all_clients_and_for_backends_until_the_window_ends() {
        let now = Instant::now();
        let mut keys = Keys::new(now);
        let taken = |keys: &mut Keys, user: Option<&str>, tries: u32| {
            (0..tries).map(|_| u32::from(keys.take(user, now))).sum::<u32>()
        };
        assert_eq!(taken(&mut keys, Some("ann"), 2 * USER), USER);
        assert!(keys.take(Some("bob"), now), "another user is not kept from it");
        let others = (0..20).map(|user| taken(&mut keys, Some(&user.to_string()), USER)).sum::<u32>();
        assert_eq!(others + USER + 1, CLIENTS);
        keys.api = API - 1;
        assert_eq!(taken(&mut keys, None, 2), 1);
        assert!(keys.take(Some("ann"), now + WINDOW));
    }
}
