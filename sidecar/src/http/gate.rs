//! How fast connections come in, and how many may be on their way: accepted, but neither a WebSocket nor an event
//! stream yet. Whoever sends half a request holds one of these places and nothing else.
//!
//! When all places are taken the next client waits to be let in, and nobody is refused for whom something is done.
//! Whoever says nothing makes room for it: of an address that has more than a share of the places the oldest, else the
//! oldest of all. Where clients come by a trusted proxy, theirs is the address that counts, once it is known. The ports
//! for backends and probes have such gates too.

use std::{
    collections::{BTreeMap, HashMap},
    future::{Future, poll_fn},
    net::IpAddr,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::task::AtomicWaker;
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

/// A client that has said nothing for so long may have to make room: longer than a slow network's round trip, for a
/// request comes right behind its connection.
const PATIENCE: Duration = Duration::from_millis(500);
/// Whoever is asked to leave looks first whether a request has come meanwhile. Another one is asked where that takes
/// longer than this.
const ANSWER: Duration = Duration::from_millis(50);
/// The part of all places that one address may have while none is free.
const SHARE: u32 = 8;

/// Counts connections on their way. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    table: Mutex<Table>,
    /// A place is free, or whoever was to leave stays.
    changed: Notify,
    count: Gauge,
}

/// A connection's place among those on their way, until it is let go or dropped. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Place(Arc<Seat>);

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct Answering(Place);

#[derive(Debug)]
struct Seat {
    gate: Gate,
    number: u64,
    /// It has to make room, unless a request has come.
    told: AtomicBool,
    waker: AtomicWaker,
}

/// By number, so in the order in which they came.
#[derive(Debug, Default)]
struct Table {
    places: BTreeMap<u64, Entry>,
    next: u64,
    /// How many of each address wait for a request.
    idle: HashMap<IpAddr, u32>,
}

#[derive(Debug)]
struct Entry {
    seat: Weak<Seat>,
    /// Since it said something, or came.
    since: Instant,
    /// Unknown where a trusted proxy has not said it.
    address: Option<IpAddr>,
    state: State,
    told: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nobody has looked yet whether it says something.
    New,
    /// It has not.
    Idle,
    /// So many requests are being answered.
    Busy(u32),
}

/// A token bucket for accepting: full at the start, and as large as one second.
#[derive(Debug)]
pub(super) struct Pace {
    left: f64,
    at: std::time::Instant,
}

// === impl Gate ===

impl Gate {
    /// One that shows how many are on their way.
    pub(super) fn new(count: Gauge) -> Self {
        Self(Arc::new(Shared { count, ..Shared::default() }))
    }

    /// A place, once fewer than `most` are taken; `wait` is told if that is not at once.
    pub(crate) async fn wait(
        &self,
        most: impl Fn() -> u32,
        address: Option<IpAddr>,
        wait: impl FnOnce(),
    ) -> Place {
        let mut wait = Some(wait);
        loop {
            let changed = self.0.changed.notified();
            if let Some(place) = self.enter(most(), address) {
                return place;
            }
            if let Some(wait) = wait.take() {
                wait();
            }
            let next = self.ask_one_to_leave(most());
            let _ = timeout(next, changed).await;
        }
    }

    /// A place, if fewer than `most` are taken.
    pub(super) fn enter(&self, most: u32, address: Option<IpAddr>) -> Option<Place> {
        let mut table = self.table();
        if table.places.len() >= most as usize {
            return None;
        }
        let number = table.next;
        table.next += 1;
        let seat =
            Seat { gate: self.clone(), number, told: AtomicBool::new(false), waker: AtomicWaker::new() };
        let seat = Arc::new(seat);
        let entry = Entry {
            seat: Arc::downgrade(&seat),
            since: Instant::now(),
            address,
            state: State::New,
            told: false,
        };
        table.places.insert(number, entry);
        self.0.count.inc();
        Some(Place(seat))
    }

    /// How many are on their way.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> u32 {
        self.table().places.len() as u32
    }

    /// Tells one that says nothing; when to try again at the latest.
    fn ask_one_to_leave(&self, most: u32) -> Duration {
        let mut table = self.table();
        let now = Instant::now();
        if let Some(number) = table.who_leaves(most, now) {
            let entry = table.places.get_mut(&number).expect("it was just found");
            entry.told = true;
            if let Some(seat) = entry.seat.upgrade() {
                seat.told.store(true, Ordering::Release);
                seat.waker.wake();
            }
            return ANSWER;
        }
        let idle = table.places.values().filter(|entry| entry.state == State::Idle && !entry.told);
        let next = idle.map(|entry| (entry.since + PATIENCE).saturating_duration_since(now)).min();
        next.map_or(PATIENCE, |next| next.clamp(Duration::from_millis(1), PATIENCE))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Table ===

impl Table {
    fn who_leaves(&self, most: u32, now: Instant) -> Option<u64> {
        let greedy = self.idle.iter().max_by_key(|(_, count)| **count);
        let greedy = greedy.filter(|(_, count)| **count > (most / SHARE).max(1)).map(|(address, _)| *address);
        let oldest = |of: Option<IpAddr>| {
            let silent = |entry: &Entry| entry.state == State::Idle && now >= entry.since + PATIENCE;
            let mut leaving = self.places.iter().filter(|(_, entry)| silent(entry) && !entry.told);
            leaving.find(|(_, entry)| of.is_none() || entry.address == of).map(|(number, _)| *number)
        };
        // All of the greedy one's may have been told already.
        greedy.and_then(|address| oldest(Some(address))).or_else(|| oldest(None))
    }

    /// Puts a place into another state, if it is still there.
    fn put(&mut self, number: u64, next: impl FnOnce(State) -> State) {
        let Some(entry) = self.places.get_mut(&number) else { return };
        let (before, after) = (entry.state, next(entry.state));
        entry.state = after;
        let address = entry.address;
        self.count(address, before, after);
    }

    fn count(&mut self, address: Option<IpAddr>, before: State, after: State) {
        let Some(address) = address else { return };
        match (before == State::Idle, after == State::Idle) {
            (false, true) => *self.idle.entry(address).or_default() += 1,
            (true, false) => {
                if let Some(count) = self.idle.get_mut(&address) {
                    *count -= 1;
                    if *count == 0 {
                        self.idle.remove(&address);
                    }
                }
            }
            (true, true) | (false, false) => {}
        }
    }

    fn remove(&mut self, number: u64) -> bool {
        self.put(number, |_| State::New);
        self.places.remove(&number).is_some()
    }
}

// === impl Place ===

impl Place {
    /// It is a connection now, and counted as such.
    pub(super) fn release(&self) {
        self.0.release();
    }

    /// All that has come was read, and it was no request.
    pub(super) fn looked(&self) {
        let next = |state| if state == State::New { State::Idle } else { state };
        self.0.gate.table().put(self.0.number, next);
    }

    /// Serves a connection in its place; `None` where it said nothing and had to make room.
    pub(crate) async fn hold<T>(&self, served: impl Future<Output = T>) -> Option<T> {
        let mut served = pin!(served);
        let mut looked = false;
        poll_fn(|context| {
            // First, for a request may have come that nobody has seen yet.
            if let Poll::Ready(served) = served.as_mut().poll(context) {
                return Poll::Ready(Some(served));
            }
            if !std::mem::replace(&mut looked, true) {
                self.looked();
            }
            self.poll_told(context).map(|()| None)
        })
        .await
    }

    /// A request has come; until the answer is made this place is nobody else's.
    pub(crate) fn answering(&self) -> Answering {
        self.keep();
        Answering(self.clone())
    }

    /// The same, for as long as the place is held.
    pub(super) fn keep(&self) {
        let next = |state| match state {
            State::New | State::Idle => State::Busy(1),
            State::Busy(requests) => State::Busy(requests + 1),
        };
        let mut table = self.0.gate.table();
        table.put(self.0.number, next);
        if let Some(entry) = table.places.get_mut(&self.0.number)
            && std::mem::take(&mut entry.told)
        {
            self.0.told.store(false, Ordering::Release);
            self.0.gate.0.changed.notify_one();
        }
    }

    /// It has said something that is no request yet: its time to say more begins again.
    pub(super) fn heard(&self) {
        if let Some(entry) = self.0.gate.table().places.get_mut(&self.0.number) {
            entry.since = Instant::now();
        }
    }

    /// Says whose connection a trusted proxy carries.
    pub(super) fn comes_from(&self, address: IpAddr) {
        let mut table = self.0.gate.table();
        let Some(entry) = table.places.get_mut(&self.0.number) else { return };
        entry.since = Instant::now();
        let (state, before) = (entry.state, entry.address.replace(address));
        table.count(before, state, State::New);
        table.count(Some(address), State::New, state);
    }

    /// Ready once it has to make room. To be asked after a look at what has come.
    pub(super) fn poll_told(&self, context: &mut Context<'_>) -> Poll<()> {
        self.0.waker.register(context.waker());
        if self.0.told.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Seat {
    fn release(&self) {
        self.told.store(false, Ordering::Release);
        if self.gate.table().remove(self.number) {
            self.gate.0.count.dec();
            self.gate.0.changed.notify_one();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.release();
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let next = |state| match state {
            State::Busy(requests) if requests > 1 => State::Busy(requests - 1),
            _ => State::Idle,
        };
        let Seat { gate, number, .. } = &*self.0.0;
        let mut table = gate.table();
        table.put(*number, next);
        // Its time to ask for more begins now.
        if let Some(entry) = table.places.get_mut(number) {
            entry.since = Instant::now();
        }
    }
}

// === impl Pace ===

impl Pace {
    pub(super) fn new(per_second: u32, now: std::time::Instant) -> Self {
        Self { left: f64::from(per_second), at: now }
    }

    /// Takes one; how long to wait before the next where none is left. 0 a second means no bound.
    pub(super) fn take(&mut self, per_second: u32, now: std::time::Instant) -> Option<Duration> {
        if per_second == 0 {
            return None;
        }
        let rate = f64::from(per_second);
        let filled = now.saturating_duration_since(self.at).as_secs_f64() * rate;
        self.left = (self.left + filled).min(rate) - 1.0;
        self.at = now;
        (self.left < 0.0).then(|| Duration::from_secs_f64(-self.left / rate))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn from(last: u8) -> Option<IpAddr> {
        Some([192, 0, 2, last].into())
    }

    fn is_told(place: &Place) -> bool {
        place.poll_told(&mut Context::from_waker(std::task::Waker::noop())).is_ready()
    }

    /// As many that have said nothing.
    fn silent(gate: &Gate, count: usize, most: u32, address: Option<IpAddr>) -> Vec<Place> {
        let enter = |_| gate.enter(most, address).expect("there is room");
        (0..count).map(enter).inspect(Place::looked).collect()
    }

    #[tokio::test]
    async fn a_place_is_free_again_once_its_connection_is_one_or_is_gone() {
        let gate = Gate::default();
        let (first, second) = (gate.enter(2, None).unwrap(), gate.enter(2, None).unwrap());
        assert!(gate.enter(2, None).is_none());
        assert_eq!(gate.waiting(), 2, "who has to wait holds nothing");
        first.clone().release();
        let third = gate.enter(2, None).unwrap();
        assert_eq!(gate.0.count.get(), 2);
        drop((first, second, third));
        assert_eq!((gate.waiting(), gate.0.count.get()), (0, 0));
        assert!(gate.table().idle.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_being_answered_is_waited_for_and_whoever_says_nothing_makes_room() {
        let gate = Gate::default();
        let busy = gate.enter(2, from(1)).unwrap();
        let request = busy.answering();
        let idle = silent(&gate, 1, 2, from(2)).remove(0);
        let waited = AtomicBool::new(false);
        let newcomer = gate.wait(|| 2, from(3), || waited.store(true, Ordering::Relaxed));
        let leaves = async {
            std::future::poll_fn(|context| idle.poll_told(context)).await;
            idle.release();
        };
        let began = Instant::now();
        let (newcomer, ()) = tokio::join!(newcomer, leaves);
        assert!(waited.into_inner() && !is_told(&busy));
        assert!((PATIENCE..PATIENCE + ANSWER).contains(&began.elapsed()), "{:?}", began.elapsed());
        newcomer.keep();
        advance(PATIENCE * 10).await;
        // All are being answered: nobody is told, and the first that is done makes room.
        let next = tokio::spawn({
            let gate = gate.clone();
            async move { gate.wait(|| 2, from(4), || {}).await }
        });
        advance(PATIENCE * 10).await;
        assert!(!next.is_finished() && !is_told(&busy) && !is_told(&newcomer));
        drop((request, busy));
        next.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_comes_meanwhile_keeps_its_place_and_another_one_leaves() {
        let gate = Gate::default();
        let places = silent(&gate, 2, 2, from(1));
        advance(PATIENCE).await;
        gate.ask_one_to_leave(2);
        assert_eq!(places.iter().map(is_told).collect::<Vec<_>>(), [true, false]);
        let _request = places[0].answering();
        gate.ask_one_to_leave(2);
        assert_eq!(places.iter().map(is_told).collect::<Vec<_>>(), [false, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_with_more_than_its_share_leaves_first_and_else_the_oldest_does() {
        let gate = Gate::default();
        let oldest = silent(&gate, 1, 16, from(1));
        let proxied = silent(&gate, 10, 16, None);
        let greedy = silent(&gate, 3, 16, from(3));
        let count = |places: &[Place]| places.iter().filter(|place| is_told(place)).count();
        advance(PATIENCE).await;
        gate.ask_one_to_leave(16);
        assert_eq!((count(&oldest), count(&proxied), count(&greedy)), (0, 0, 1), "3 are more than an eighth");
        assert!(is_told(&greedy[0]), "its oldest");
        drop(greedy);
        gate.ask_one_to_leave(16);
        assert_eq!((count(&oldest), count(&proxied)), (1, 0), "a proxy has no share");
        drop(oldest);
        // Once it is known for whom they are.
        proxied[4..8].iter().for_each(|place| place.comes_from([192, 0, 2, 9].into()));
        advance(PATIENCE).await;
        gate.ask_one_to_leave(16);
        assert_eq!(proxied.iter().position(is_told), Some(4));
    }

    #[test]
    fn connections_come_at_the_rate_after_a_burst_of_one_second() {
        let begin = std::time::Instant::now();
        let mut pace = Pace::new(10, begin);
        assert!((0..10).all(|_| pace.take(10, begin).is_none()));
        assert_eq!(pace.take(10, begin), Some(Duration::from_millis(100)));
        assert_eq!(pace.take(10, begin + Duration::from_millis(200)), None);
        assert!(pace.take(0, begin).is_none());
    }
}
