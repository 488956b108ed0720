//! A shard: a thread that owns its connections. What others see of it: [`Shards`] to start and ask them all,
//! [`Door`] to bring a connection, [`Mailbox`] to send mail, and the [`Work`] that comes out; everything else is
//! private.
//!
//! A shard never blocks, locks (but for its mailbox, a pipe, and a look-up in the counts of bounded clients), awaits or
//! logs per message. It calls nobody: it
//! hands [`Work`] to a sender that `app` gave it.

mod backlog;
mod connection;
mod core;
mod door;
mod flush;
mod index;
mod ledger;
mod link;
mod log;
mod mail;
mod mailbox;
mod metrics;
#[cfg(test)]
mod model;
mod outbox;
mod own;
mod packing;
mod pipe;
mod pulse;
mod reactor;
mod read;
mod slow;
mod sync;
mod timer;
mod turns;
mod users;
mod visit;

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use mio::{Poll, Waker};
use tokio::sync::{mpsc, oneshot, watch};

use self::{metrics::ShardMetrics, packing::Wanted, pulse::Pulse, reactor::Reactor};
use crate::domain::{ChannelName, CloseReason, ConnectionId, KeyId, NodeId};

pub use door::{Door, Ticket, Visitor};
pub use ledger::{Guest, network_of};
pub use link::Link;
pub use mail::{
    Arrived, Completion, Handshake, Mail, Refusal, Reservation, Reserved, Rules, Task, Transport, Work,
};
pub use mailbox::{Full, Inbox, Mailbox};
pub use metrics::{Durations, Latencies, Totals};
pub use packing::{Delivery, Packer};
pub use pipe::{FarEnd, NearEnd, Watch};

/// How the shards are made.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How many; 0 means one for each core that the process may use.
    pub shards: u16,
    /// This run of this node, for client ids in the log.
    pub node: NodeId,
    /// Connections that the open-files limit allows.
    pub max_connections: u32,
    /// Bytes of publications that may wait for one shard.
    pub mailbox_bytes: usize,
    /// Bytes of clients' publications that may wait for one shard's broker.
    pub work_bytes: usize,
    /// Memory that one shard has for publications that someone has still to receive, for unfinished messages of clients
    /// and for replies to them.
    pub log_bytes: usize,
    /// Whether deliveries are timed.
    pub time_deliveries: bool,
}

/// All shards of a node.
#[derive(Debug)]
pub struct Shards {
    door: Door,
    members: Vec<Member>,
    /// `None` where deliveries are not timed.
    latencies: Option<Mutex<Latencies>>,
    wanted: Arc<Wanted>,
    died: watch::Receiver<Option<u16>>,
}

/// One shard, as its dump shows it: read without its help, so that it may be stuck.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardState {
    /// What its thread does: `poll`, `mail`, `read`, `timers` or `visits`.
    pub stage: &'static str,
    /// How long this poll, or this turn, takes already.
    pub since: Duration,
    /// The longest turn of the last 30 to 60 seconds.
    pub longest: Duration,
    /// Open or promised connections.
    pub connections: u32,
    /// Subscriptions that are held.
    pub subscriptions: u64,
    /// Channels with a subscriber.
    pub channels: u64,
    /// Bytes of publications that some subscriber has still to receive.
    pub log_bytes: u64,
    /// Mail that waits for it.
    pub mail: usize,
    /// Bytes of the publications in it.
    pub mail_bytes: usize,
}

#[derive(Debug)]
struct Member {
    mailbox: Mailbox,
    metrics: Arc<ShardMetrics>,
    pulse: Arc<Pulse>,
    seats: Arc<door::Seats>,
    /// Until it was told to stop.
    thread: Mutex<Option<JoinHandle<()>>>,
}

// === impl Config ===

impl Config {
    /// 16 MiB: some 10 ms of the fastest ingest, and far above what waits while a shard keeps up.
    pub const MOST_WAITING_BYTES: usize = 16 * 1_024 * 1_024;

    /// 256 MiB: what 256 clients of as many channels lag by at most, unless the settings say otherwise.
    pub const MOST_BYTES: usize = 256 * 1_024 * 1_024;

    /// Where the process may have `memory` bytes: each shard has a budget of its own, all together a quarter. An eighth
    /// of it is for what waits on its way in, an eighth for what waits on its way out.
    #[must_use]
    pub fn within(self, memory: Option<u64>) -> Self {
        let share = memory.map(|memory| memory / 4 / u64::from(Self::count(self.shards)));
        let budget = share.map_or(Self::MOST_BYTES, |share| (share as usize).min(Self::MOST_BYTES));
        let waiting = Self::MOST_WAITING_BYTES.min(budget / 8);
        Self { mailbox_bytes: waiting, work_bytes: waiting, log_bytes: budget - 2 * waiting, ..self }
    }

    /// Whether one unfinished message of so many bytes fits what connections have to themselves. It is kept in memory
    /// that grows by doubling.
    pub fn fits_message(&self, bytes: usize) -> bool {
        bytes.saturating_mul(2) <= self.log_bytes / own::OWN_PART
    }

    /// How many there are where the settings say `shards`.
    fn count(shards: u16) -> u16 {
        match shards {
            0 => thread::available_parallelism().map_or(1, |cores| cores.get().min(256) as u16),
            shards => shards,
        }
    }
}

// === impl Shards ===

impl Shards {
    /// Starts the threads. What must wait goes out by `work`; its receiver answers by [`Shards::mailboxes`].
    ///
    /// # Errors
    /// When the system has no poll, waker or thread left.
    pub fn spawn(config: Config, rules: Arc<Rules>, work: &mpsc::Sender<Work>) -> io::Result<Self> {
        let (death, died) = watch::channel(None);
        let latencies = match config.time_deliveries {
            true => Latencies::default().with(rules.policies.names(), Config::count(config.shards).into()),
            false => Latencies::default(),
        };
        let wanted = Arc::<Wanted>::default();
        wanted.set(&rules.hub.compression);
        let spawn = |shard| {
            let shared = core::Shared {
                metrics: Arc::default(),
                latencies: latencies.clone(),
                seats: Arc::default(),
                wanted: Arc::clone(&wanted),
            };
            Member::spawn(shard, config, Arc::clone(&rules), shared, work.clone(), death.clone())
        };
        let members = (0..Config::count(config.shards)).map(spawn).collect::<io::Result<Vec<_>>>()?;
        let hall = members.iter().map(|member| (member.mailbox.clone(), Arc::clone(&member.seats)));
        let door = Door::new(hall.collect(), rules, config.max_connections);
        let latencies = config.time_deliveries.then(|| Mutex::new(latencies));
        Ok(Self { door, members, latencies, wanted, died })
    }

    /// The way in for connections.
    pub fn door(&self) -> &Door {
        &self.door
    }

    /// The mailbox of each shard, by its number.
    pub fn mailboxes(&self) -> Vec<Mailbox> {
        self.members.iter().map(|member| member.mailbox.clone()).collect()
    }

    /// Puts new settings in force: at the door at once, in each shard with its next mail.
    pub fn set_rules(&self, rules: &Arc<Rules>) {
        self.door.set_rules(Arc::clone(rules));
        self.wanted.set(&rules.hub.compression);
        let latencies = self.latencies.as_ref().map(|latencies| {
            let mut latencies = latencies.lock().unwrap_or_else(PoisonError::into_inner);
            *latencies = latencies.with(rules.policies.names(), self.members.len());
            latencies.clone()
        });
        let latencies = latencies.unwrap_or_default();
        self.send_all(|| Mail::Settings { rules: Arc::clone(rules), latencies: latencies.clone() });
    }

    /// Ends the sessions whose token was signed with none of these keys, so many a second, and those that come later.
    pub fn set_keys(&self, good: HashSet<KeyId>, per_second: u32) {
        let good = Arc::new(good);
        let apart = Duration::from_secs(1) * u32::try_from(self.members.len()).unwrap_or(u32::MAX)
            / per_second.max(1);
        self.send_all(|| Mail::Keys { good: Arc::clone(&good), apart });
    }

    /// Counters of all shards.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::of(self.members.iter().map(|member| &*member.metrics));
        totals.deflate_in += self.wanted.bytes_in.get();
        totals.deflate_out += self.wanted.bytes_out.get();
        totals
    }

    /// What compresses for all shards; one a node.
    pub fn packer(&self) -> Packer {
        Packer::new(Arc::clone(&self.wanted))
    }

    /// How long things took.
    pub fn durations(&self) -> Durations {
        let mut durations = Durations::default();
        if let Some(latencies) = &self.latencies {
            durations.deliveries = latencies.lock().unwrap_or_else(PoisonError::into_inner).sums();
        }
        for member in &self.members {
            durations.queue.add(&member.metrics.queue);
            durations.turns.add(&member.pulse.turns);
        }
        durations
    }

    /// What each shard is doing.
    pub fn states(&self) -> Vec<ShardState> {
        self.members.iter().map(Member::state).collect()
    }

    /// Connections that are open or promised, without a look at the counters.
    pub fn connections(&self) -> u32 {
        self.members.iter().map(|member| member.seats.taken()).sum()
    }

    /// Closes `count` connections for a drain, spread over the shards by what they hold.
    pub fn shed(&self, count: usize, after: Duration, jitter: Duration) {
        let held: Vec<usize> = self.members.iter().map(|member| member.seats.taken() as usize).collect();
        for (member, count) in self.members.iter().zip(shares(count, &held)) {
            if count > 0 {
                member.mailbox.send(Mail::Shed { count, after, jitter });
            }
        }
    }

    /// Closes all connections: the deadline of a drain passed.
    pub fn force(&self) {
        self.send_all(|| Mail::Force);
    }

    /// Closes one connection, or those of a user; says how many there were.
    pub async fn disconnect(
        &self,
        connection: Option<ConnectionId>,
        user: Option<Arc<str>>,
        reason: CloseReason,
    ) -> usize {
        let concerned = |shard: usize| connection.is_none_or(|id| usize::from(id.shard) == shard);
        let members = self.members.iter().enumerate().filter(|(shard, _)| concerned(*shard));
        let ask = |(_, member): (usize, &Member)| {
            let (count, answer) = oneshot::channel();
            member.mailbox.send(Mail::Disconnect {
                connection,
                user: user.clone(),
                age: Duration::ZERO,
                reason,
                count,
            });
            answer
        };
        let answers: Vec<_> = members.map(ask).collect();
        let mut sum = 0;
        for answer in answers {
            sum += answer.await.unwrap_or(0);
        }
        sum
    }

    /// The channels with subscribers on this node, and how many each has.
    pub async fn channels(&self) -> HashMap<ChannelName, u32> {
        let ask = |member: &Member| {
            let (reply, answer) = oneshot::channel();
            member.mailbox.send(Mail::Channels { reply });
            answer
        };
        let answers: Vec<_> = self.members.iter().map(ask).collect();
        let mut sums = HashMap::new();
        for answer in answers {
            for (channel, count) in answer.await.unwrap_or_default() {
                *sums.entry(channel).or_default() += count;
            }
        }
        sums
    }

    /// Returns only when a shard's thread ended without being told to. Its connections are gone and its channels
    /// are served no more, so the process should end.
    pub async fn died(&self) -> u16 {
        let mut died = self.died.clone();
        let shard = died.wait_for(Option::is_some).await.map(|shard| *shard);
        match shard {
            Ok(shard) => shard.expect("waited for one"),
            // Every thread was told to stop.
            Err(_) => std::future::pending().await,
        }
    }

    /// Writes what can be written at once, then ends the threads.
    pub fn stop(&self) {
        self.send_all(|| Mail::Stop);
        for member in &self.members {
            let thread = member.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
            // A thread that panicked has told so by `died`.
            drop(thread.map(JoinHandle::join));
        }
    }

    fn send_all(&self, mail: impl Fn() -> Mail) {
        self.members.iter().for_each(|member| member.mailbox.send(mail()));
    }
}

impl Member {
    fn spawn(
        shard: u16,
        config: Config,
        rules: Arc<Rules>,
        shared: core::Shared,
        work: mpsc::Sender<Work>,
        death: watch::Sender<Option<u16>>,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), reactor::WAKE)?;
        // A failed wake-up of an eventfd would mean that its counter is full: then the shard is awake anyway.
        let (mailbox, inbox) = Mailbox::new(config.mailbox_bytes, move || drop(waker.wake()));
        let (metrics, seats) = (Arc::clone(&shared.metrics), Arc::clone(&shared.seats));
        let core = core::Core::new(shard, config, rules, work, shared);
        let pulse = Arc::new(Pulse::new(Instant::now()));
        let reactor = Reactor::new(poll, inbox, core, Arc::clone(&pulse));
        let thread = thread::Builder::new().name(format!("shard-{shard}")).spawn(move || {
            let _guard = DeathGuard { shard, death };
            reactor.run();
        })?;
        Ok(Self { mailbox, metrics, pulse, seats, thread: Mutex::new(Some(thread)) })
    }

    fn state(&self) -> ShardState {
        let (stage, since) = self.pulse.now();
        let (mail, mail_bytes) = self.mailbox.waiting();
        ShardState {
            stage: stage.name(),
            since,
            longest: self.pulse.longest(),
            connections: self.seats.taken(),
            subscriptions: self.metrics.subscriptions.get(),
            channels: self.metrics.channels.get(),
            log_bytes: self.metrics.log_bytes.get(),
            mail,
            mail_bytes,
        }
    }
}

/// Tells of a panic that unwinds the thread.
struct DeathGuard {
    shard: u16,
    death: watch::Sender<Option<u16>>,
}

impl Drop for DeathGuard {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        let shard = self.shard;
        tracing::error!(shard, "a shard thread panicked, its connections are lost and the process must exit");
        self.death.send_replace(Some(shard));
    }
}

/// `count` in parts as large as what each one holds, rounded up so that the sum is not below it.
fn shares(count: usize, held: &[usize]) -> Vec<usize> {
    let total = held.iter().sum::<usize>().max(1);
    let mut left = count;
    let mut share = |held: &usize| {
        let part = (count * held).div_ceil(total).min(*held).min(left);
        left -= part;
        part
    };
    held.iter().map(&mut share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Policies;

    #[test]
    fn without_a_number_there_is_a_shard_for_each_core() {
        let cores = thread::available_parallelism().unwrap().get();
        assert_eq!((usize::from(Config::count(0)), Config::count(3)), (cores.min(256), 3));
    }

    fn config() -> Config {
        Config {
            shards: 1,
            node: NodeId(1),
            max_connections: 10,
            mailbox_bytes: 1_000,
            work_bytes: 1_000,
            log_bytes: Config::MOST_BYTES,
            time_deliveries: false,
        }
    }

    #[test]
    fn all_shards_together_have_a_quarter_of_the_memory_with_what_waits_and_no_shard_more_than_most() {
        const MIB: usize = 1_024 * 1_024;
        let budget = |shards, mib: Option<u64>| {
            let config = Config { shards, ..config() }.within(mib.map(|mib| mib * MIB as u64));
            let Config { mailbox_bytes, work_bytes, log_bytes, .. } = config;
            assert_eq!(mailbox_bytes, work_bytes);
            (log_bytes + mailbox_bytes + work_bytes, mailbox_bytes)
        };
        assert_eq!(budget(1, Some(400)), (100 * MIB, 100 * MIB / 8));
        assert_eq!(budget(4, Some(400)), (25 * MIB, 25 * MIB / 8));
        let cores = usize::from(Config::count(0));
        assert_eq!(budget(0, Some(400)).0, 100 * MIB / cores, "a shard for each core");
        assert_eq!(budget(1, Some(8_000)), (Config::MOST_BYTES, Config::MOST_WAITING_BYTES));
        assert_eq!(budget(4, None).0, Config::MOST_BYTES, "no limit is known");
        let small = config().within(Some(64 * MIB as u64));
        assert!(small.fits_message(3 * MIB) && !small.fits_message(4 * MIB), "12 MiB, of which half");
    }

    #[tokio::test]
    async fn a_shard_whose_thread_panics_is_told_and_the_others_still_end() {
        let config = Config { shards: 2, ..config() };
        let settings = sidecar_config::LiveSettings::default();
        let rules = Rules {
            policies: Policies::new(&settings.namespaces),
            hub: settings.hub,
            reconnect_jitter: Duration::ZERO,
        };
        let (work, _) = mpsc::channel(1);
        let shards = Shards::spawn(config, Arc::new(rules), &work).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), shards.died()).await.is_err());
        shards.members[1].mailbox.send(Mail::Panic);
        let died = tokio::time::timeout(Duration::from_secs(20), shards.died()).await;
        assert_eq!(died.expect("told in time"), 1);
        shards.stop();
    }

    #[test]
    fn a_drain_takes_from_each_shard_by_what_it_holds() {
        assert_eq!(shares(10, &[10, 30]), [3, 7]);
        assert_eq!(shares(3, &[1, 1, 1]), [1, 1, 1]);
        assert_eq!(shares(1, &[0, 5]), [0, 1]);
        assert_eq!(shares(100, &[2, 3]), [2, 3]);
        assert_eq!(shares(5, &[0, 0]), [0, 0]);
    }
}
