//! The way in for connections: counts them, chooses a shard and waits for its answer.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    Arrived, Guest, Link, Mail, Mailbox, Refusal, Reservation, Reserved, Rules, Transport, ledger::Ledger,
    pipe,
};
use crate::{
    domain::{ChannelName, Identity},
    protocol::Protocol,
};

/// Brings connections to shards. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Door(Arc<Hall>);

/// A client that asks to come in.
#[derive(Clone, Debug)]
pub struct Visitor {
    /// How the client speaks.
    pub protocol: Protocol,
    /// Whether it negotiated compression.
    pub deflate: bool,
    /// Who it is.
    pub identity: Identity,
    /// Channels that it asks for; it gets all or none.
    pub channels: Vec<ChannelName>,
    /// Where it comes from, behind trusted proxies.
    pub remote: SocketAddr,
}

/// A client that was let in and counted, on its way to its shard; where it goes no further it is counted no more.
#[derive(Debug)]
pub struct Ticket {
    visitor: Visitor,
    guest: Option<Box<Guest>>,
    mailbox: Mailbox,
    seat: Seat,
}

/// A taken seat, given back when dropped.
#[derive(Debug)]
struct Seat(Option<Arc<Seats>>);

#[derive(Debug)]
struct Hall {
    shards: Vec<(Mailbox, Arc<Seats>)>,
    rules: ArcSwap<Rules>,
    /// What the open-files limit allows, whatever the settings say.
    most: u32,
    shut: AtomicBool,
    ledger: Arc<Ledger>,
}

/// How many connections a shard holds or has promised to hold. A shard gives a seat back when it frees the slot.
#[derive(Debug, Default)]
pub(crate) struct Seats(AtomicU32);

// === impl Door ===

impl Door {
    pub(crate) fn new(shards: Vec<(Mailbox, Arc<Seats>)>, rules: Arc<Rules>, most: u32) -> Self {
        Self(Arc::new(Hall {
            shards,
            rules: ArcSwap::new(rules),
            most,
            shut: AtomicBool::new(false),
            ledger: Arc::default(),
        }))
    }

    /// Counts a client, at the shard with the fewest connections.
    ///
    /// # Errors
    /// Why there is no place for it.
    pub fn enter(&self, visitor: Visitor) -> Result<Ticket, Refusal> {
        let guest = {
            let limits = &self.0.rules.load().hub.limits;
            self.0.ledger.enter(visitor.remote.ip(), visitor.identity.user.as_ref(), limits)?
        };
        let (mailbox, seat) = self.take_seat()?;
        Ok(Ticket { visitor, guest, mailbox, seat })
    }

    /// Brings the transport of a reserved connection, and what the client has sent behind its handshake.
    pub fn attach(&self, reserved: Reserved, link: Link, leftover: Bytes) {
        let Reserved { connection } = reserved;
        self.mailbox(connection.shard).send(Mail::Attach { connection, link, leftover });
    }

    /// A virtual connection for a reserved place: attach the link, read the other end.
    pub fn pipe(&self, reserved: Reserved) -> (Link, pipe::FarEnd) {
        let Reserved { connection } = reserved;
        let (sender, receiver) = pipe::pipe(connection, self.mailbox(connection.shard).clone());
        (Link::Pipe(sender), receiver)
    }

    /// Says that no transport will come.
    pub fn abandon(&self, reserved: Reserved) {
        let Reserved { connection } = reserved;
        self.mailbox(connection.shard).send(Mail::Abandon { connection });
    }

    /// Lets nobody in any more: the node drains.
    pub fn shut(&self) {
        self.0.shut.store(true, Ordering::Release);
    }

    /// Whether clients are still let in.
    pub fn is_open(&self) -> bool {
        !self.0.shut.load(Ordering::Acquire)
    }

    /// The settings that hold now.
    pub fn rules(&self) -> Arc<Rules> {
        self.0.rules.load_full()
    }

    /// How many connections this node may hold now.
    pub fn capacity(&self) -> u32 {
        self.0.rules.load().hub.max_connections.min(self.0.most)
    }

    /// How many connections there is still room for.
    pub fn room(&self) -> u32 {
        let taken: u32 = self.0.shards.iter().map(|(_, seats)| seats.taken()).sum();
        self.0.most.saturating_sub(taken)
    }

    pub(crate) fn set_rules(&self, rules: Arc<Rules>) {
        self.0.rules.store(rules);
    }

    pub(crate) fn mailbox(&self, shard: u16) -> &Mailbox {
        &self.0.shards[usize::from(shard)].0
    }

    fn take_seat(&self) -> Result<(Mailbox, Seat), Refusal> {
        if !self.is_open() {
            return Err(Refusal::Draining);
        }
        let shards = &self.0.shards;
        let (mailbox, seats) =
            shards.iter().min_by_key(|(_, seats)| seats.taken()).expect("a node has a shard");
        seats.take();
        let seat = Seat(Some(Arc::clone(seats)));
        // Taken first and counted then, so that two newcomers cannot both get the last one.
        if shards.iter().map(|(_, seats)| seats.taken()).sum::<u32>() > self.capacity() {
            return Err(Refusal::Full);
        }
        Ok((mailbox.clone(), seat))
    }
}

// === impl Ticket ===

impl Ticket {
    /// A place for a client whose transport comes later. When this returns, its subscriptions are live: nothing
    /// that is published from now on is missed. Give the place back by [`Door::abandon`] if no transport comes.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn reserve(self) -> Result<Reserved, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.send(Transport::Later(reply));
        // A shard that has ended answers nobody.
        answer.await.unwrap_or(Err(Refusal::Draining))
    }

    /// A place for a client whose transport is here: once its subscriptions are live, or are not, the shard answers its
    /// handshake.
    pub fn admit(self, arrived: Arrived) {
        self.send(Transport::Here(arrived));
    }

    fn send(self, transport: Transport) {
        let Self { visitor, guest, mailbox, seat } = self;
        seat.hand_on();
        mailbox.send(Mail::Reserve(Box::new(Reservation { visitor, guest, transport })));
    }
}

// === impl Seat ===

impl Seat {
    /// From here on the shard gives it back.
    fn hand_on(mut self) {
        self.0 = None;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(seats) = &self.0 {
            seats.give_back();
        }
    }
}

// === impl Seats ===

impl Seats {
    pub(crate) fn taken(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn give_back(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn take(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Policies;

    #[test]
    fn a_client_comes_to_the_shard_with_the_fewest() {
        let settings = sidecar_config::LiveSettings::default();
        let rules = Rules {
            policies: Policies::new(&settings.namespaces),
            hub: settings.hub,
            reconnect_jitter: std::time::Duration::ZERO,
        };
        let seats: [Arc<Seats>; 3] = Default::default();
        let hall = seats.iter().map(|seats| (Mailbox::new(1, || {}).0, Arc::clone(seats)));
        let door = Door::new(hall.collect(), Arc::new(rules), 100);
        let enter = || {
            let (protocol, identity) = (Protocol::RawBare, Identity::default());
            let remote = "192.0.2.1:5".parse().unwrap();
            let visitor = Visitor { protocol, deflate: false, identity, channels: Vec::new(), remote };
            door.enter(visitor).unwrap()
        };
        let taken = || [0, 1, 2].map(|shard: usize| seats[shard].taken());
        let spread: Vec<Ticket> = (0..9).map(|_| enter()).collect();
        assert_eq!(taken(), [3, 3, 3]);
        seats[1].give_back();
        let last = enter();
        assert_eq!(taken(), [3, 3, 3], "it has the place that was free");
        seats[1].take();
        drop((spread, last));
        assert_eq!(taken(), [0, 0, 0]);
    }
}
