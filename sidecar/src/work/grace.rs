//! A channel without subscribers is kept for a moment: a client that comes back at once then finds it live, and a
//! churn of one client does not reach the broker.

use std::{collections::VecDeque, future::pending, time::Duration};

use tokio::time::{Instant, sleep_until};

use crate::hub::Emptied;

/// Longer than a page takes to reload its socket, shorter than anybody pays for a channel nobody reads.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// Channels in their grace, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Grace(VecDeque<(Instant, Emptied)>);

impl Grace {
    /// Their grace begins now.
    pub(super) fn extend(&mut self, emptied: impl IntoIterator<Item = Emptied>) {
        let until = Instant::now() + GRACE;
        self.0.extend(emptied.into_iter().map(|emptied| (until, emptied)));
    }

    /// Those whose grace is over, once there are any. Loses nothing when dropped.
    pub(super) async fn next(&mut self) -> Vec<Emptied> {
        let Some((until, _)) = self.0.front() else { return pending().await };
        sleep_until(*until).await;
        let now = Instant::now();
        let over = self.0.iter().take_while(|(until, _)| *until <= now).count();
        self.0.drain(..over).map(|(_, emptied)| emptied).collect()
    }
}
