//! Makes one of many: what is said again within a time after the first is dropped. kube's own debounce counts from the
//! last, so that a cluster whose children never rest would never be looked at.

use std::{
    collections::{HashSet, VecDeque},
    hash::Hash,
    pin::Pin,
    time::Duration,
};

use futures::{Stream, StreamExt, stream};
use tokio::time::{Instant, sleep_until};

struct Debounce<K> {
    input: Pin<Box<dyn Stream<Item = K> + Send>>,
    ended: bool,
    /// In the order in which they are due, for each waits equally long.
    due: VecDeque<(Instant, K)>,
    waiting: HashSet<K>,
    wait: Duration,
}

/// Each key of `input`, `wait` after the first time that it is said; what is said meanwhile is the same. At its end
/// `input` is drained of what waits.
pub(super) fn from_the_first<K>(
    input: impl Stream<Item = K> + Send + 'static,
    wait: Duration,
) -> impl Stream<Item = K> + Send
where
    K: Clone + Eq + Hash + Send + 'static,
{
    let all =
        Debounce { input: input.boxed(), ended: false, due: VecDeque::new(), waiting: HashSet::new(), wait };
    stream::unfold(all, async |mut all: Debounce<K>| all.next().await.map(|key| (key, all)))
}

// === impl Debounce ===

impl<K: Clone + Eq + Hash> Debounce<K> {
    async fn next(&mut self) -> Option<K> {
        loop {
            let next = self.due.front().map(|(at, _)| *at);
            if self.ended && next.is_none() {
                return None;
            }
            tokio::select! {
                // Before the input, which may never rest.
                biased;
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    let (_, key) = self.due.pop_front()?;
                    self.waiting.remove(&key);
                    return Some(key);
                }
                said = self.input.next(), if !self.ended => match said {
                    Some(key) => self.said(key),
                    None => self.ended = true,
                },
            }
        }
    }

    fn said(&mut self, key: K) {
        if self.waiting.insert(key.clone()) {
            self.due.push_back((Instant::now() + self.wait, key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_millis(100);

    #[tokio::test(start_paused = true)]
    async fn what_never_rests_is_heard_all_the_same() {
        let chatter = stream::unfold((), async |()| {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Some(("a", ()))
        });
        let began = Instant::now();
        let mut heard = Box::pin(from_the_first(chatter, WAIT));
        for nth in 1..=5 {
            assert_eq!(heard.next().await, Some("a"));
            let passed = began.elapsed().as_millis();
            assert!((nth * 100..=nth * 111).contains(&passed), "number {nth} after {passed} ms");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_said_twice_is_heard_once_and_in_the_order_of_the_first() {
        let heard: Vec<_> = from_the_first(stream::iter(["a", "b", "a", "c", "b"]), WAIT).collect().await;
        assert_eq!(heard, ["a", "b", "c"]);
    }
}
