//! A time limit that counts only time in which this process ran: one that was stopped has not waited meanwhile, and
//! the answer may lie there, unread.

use std::{pin::pin, time::Duration};

use tokio::time::{Instant, timeout};

/// A wait is made of slices; each counts with this at most, however long it took.
const SLICE: Duration = Duration::from_millis(100);

/// What is left of a limit, for several waits one after the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience(Duration);

impl Patience {
    pub(super) fn new(limit: Duration) -> Self {
        Self(limit)
    }

    /// Waits for `future`; `None` where patience is over before.
    pub(super) async fn wait<T>(&mut self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        loop {
            let (slice, start) = (self.0.min(SLICE), Instant::now());
            let waited = timeout(slice, &mut future).await;
            self.0 -= start.elapsed().min(slice);
            match waited {
                Ok(done) => return Some(done),
                Err(_elapsed) if self.0.is_zero() => return None,
                Err(_elapsed) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::{advance, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_limit_is_kept_over_several_waits() {
        let start = Instant::now();
        let mut patience = Patience::new(Duration::from_secs(2));
        for _ in 0..19 {
            assert_eq!(patience.wait(sleep(Duration::from_millis(99))).await, Some(()));
        }
        assert_eq!(patience.wait(pending::<()>()).await, None);
        assert_eq!(start.elapsed(), Duration::from_secs(2));
        assert_eq!(patience.wait(async { 1 }).await, Some(1), "what is there is taken");
        assert_eq!(patience.wait(pending::<()>()).await, None);
        assert_eq!(start.elapsed(), Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_was_stopped_has_not_waited_meanwhile() {
        let mut patience = Patience::new(Duration::from_secs(2));
        let (answer, answered) = tokio::sync::oneshot::channel();
        let waiting = tokio::spawn(async move { patience.wait(answered).await });
        tokio::task::yield_now().await;
        advance(Duration::from_secs(60)).await;
        sleep(Duration::from_secs(1)).await;
        answer.send(()).unwrap();
        assert_eq!(waiting.await.unwrap(), Some(Ok(())));
    }
}
