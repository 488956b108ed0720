//! What goes on over one HTTP/2 connection. A connection that carries nothing is no client: it is waited for as long as
//! for the head of a request, and holds a place among those on their way meanwhile.

use std::{
    future::{pending, poll_fn},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};

use super::gate::Place;

/// Counts what a connection carries: event streams and WebSockets. A request that opens none is answered beside, and
/// keeps nothing open. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Streams(watch::Sender<u32>);

/// Why a connection that carries nothing is waited for no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unused {
    /// It had its time.
    Late,
    /// Others wait for its place, or had taken it.
    Crowded,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Stream(watch::Sender<u32>);

impl Streams {
    pub(super) fn open(&self) -> Stream {
        self.0.send_modify(|open| *open += 1);
        Stream(self.0.clone())
    }

    /// Returns once nothing was carried for `patience`, or nothing is any more and `enter` has no place to wait in, or it
    /// has to make room there.
    pub(super) async fn unused(&self, patience: Duration, enter: impl Fn() -> Option<Place>) -> Unused {
        let mut open = self.0.subscribe();
        let mut place: Option<Place> = None;
        loop {
            let told = async {
                match &place {
                    Some(place) => poll_fn(|context| place.poll_told(context)).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                // A closed channel is not possible: its sender is here.
                waited = timeout(patience, open.wait_for(|open| *open > 0)) => {
                    if !matches!(waited, Ok(Ok(_))) {
                        return Unused::Late;
                    }
                }
                () = told => return Unused::Crowded,
            }
            drop(place.take());
            let _ = open.wait_for(|open| *open == 0).await;
            place = enter();
            match &place {
                Some(place) => place.looked(),
                None => return Unused::Crowded,
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::{super::gate::Gate, *};

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_waited_for_while_it_carries_something_and_a_time_beyond() {
        let (streams, gate, began) = (Streams::default(), Gate::default(), Instant::now());
        let carry = async {
            sleep(PATIENCE / 2).await;
            let stream = streams.open();
            sleep(PATIENCE * 3).await;
            assert_eq!(gate.waiting(), 0, "while it carries something it holds no place");
            drop(stream);
            sleep(PATIENCE / 2).await;
            assert_eq!(gate.waiting(), 1);
        };
        let (unused, ()) = tokio::join!(streams.unused(PATIENCE, || gate.enter(1, None)), carry);
        assert_eq!((unused, began.elapsed(), gate.waiting()), (Unused::Late, PATIENCE * 9 / 2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_carries_nothing_more_ends_at_once_where_all_places_are_taken() {
        let (streams, gate, began) = (Streams::default(), Gate::default(), Instant::now());
        let _other = gate.enter(1, None);
        let carry = async {
            let _stream = streams.open();
            sleep(PATIENCE / 2).await;
        };
        let (unused, ()) = tokio::join!(streams.unused(PATIENCE, || gate.enter(1, None)), carry);
        assert_eq!((unused, began.elapsed()), (Unused::Crowded, PATIENCE / 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_carries_nothing_more_makes_room_for_who_waits() {
        let (streams, gate) = (Streams::default(), Gate::default());
        drop(streams.open());
        let carry = async {
            let stream = streams.open();
            sleep(PATIENCE / 2).await;
            drop(stream);
            sleep(Duration::from_millis(1)).await;
            let began = Instant::now();
            gate.wait(|| 1, None, || {}).await;
            assert!(began.elapsed() < PATIENCE / 10, "{:?}", began.elapsed());
        };
        let (unused, ()) = tokio::join!(streams.unused(PATIENCE, || gate.enter(1, None)), carry);
        assert_eq!(unused, Unused::Crowded);
    }
}
