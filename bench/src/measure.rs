//! The measures: each starts fresh servers, drives them, and notes figures in the [`Book`].

use std::time::Duration;

use anyhow::Result;

use crate::{
    book::{Book, Figure, Measure},
    load::{Fleet, Outcome, Pace, publish::Publisher},
    peer::{Peer, Places},
    process,
    server::{Redis, Server},
};

/// Publications under way in a saturated run: enough to keep a server busy, fewer than the 256 that the plain Go
/// hub's queue holds.
const WINDOW: u64 = 128;
/// Isolated publications a second.
const PACED_RATE: f64 = 20.0;

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) subscribers: usize,
    pub(crate) idle: usize,
    pub(crate) step: Duration,
    pub(crate) rounds: usize,
}

/// What the measures share.
pub(crate) struct Bench<'a> {
    pub(crate) plan: Plan,
    pub(crate) places: &'a Places,
    pub(crate) redis: &'a Redis,
    pub(crate) peers: &'a [Peer],
    pub(crate) book: &'a mut Book,
}

/// One timed run and the CPU it took.
struct Timed {
    outcome: Outcome,
    cpu_nanos: u64,
    /// Share of the machine that others used meanwhile.
    foreign: f64,
}

impl Bench<'_> {
    /// Isolated and saturated fan-out to the plan's subscribers, interleaved.
    pub(crate) fn fan_out(&mut self) -> Result<()> {
        for round in 1..=self.plan.rounds {
            for peer in self.peers.iter().copied() {
                self.book.progress(&format!("fan-out, round {round}: {}", peer.label()));
                let result = self.fan_out_of(peer);
                self.note_failure(peer, result)?;
            }
        }
        Ok(())
    }

    fn fan_out_of(&mut self, peer: Peer) -> Result<()> {
        let server = Server::start(peer, self.places)?;
        let (mut fleet, mut publisher) = self.ready(&server, self.plan.subscribers)?;
        let paced = self.timed(&server, &mut fleet, &mut publisher, Pace::Rate(PACED_RATE))?;
        self.add(peer, Measure::PacedCpu, paced.cpu_us_per_delivery(), paced.foreign);
        self.add(peer, Measure::PacedP50, paced.millis(0.5), paced.foreign);
        self.add(peer, Measure::PacedP99, paced.millis(0.99), paced.foreign);
        let saturated = self.timed(&server, &mut fleet, &mut publisher, Pace::Window(WINDOW))?;
        let outcome = &saturated.outcome;
        self.add(peer, Measure::Saturated, outcome.deliveries_per_second(), saturated.foreign);
        self.add(peer, Measure::SaturatedCpu, saturated.cpu_us_per_delivery(), saturated.foreign);
        self.add(peer, Measure::MessagesPerFrame, outcome.messages_per_frame(), saturated.foreign);
        self.add(peer, Measure::Lost, (paced.outcome.lost + outcome.lost) as f64, saturated.foreign);
        if !outcome.clean() {
            let (lost, closed) = (outcome.lost, outcome.closed);
            self.book.remark(&format!("{}: saturated, {lost} lost, {closed} closed", peer.label()));
        }
        Ok(())
    }

    /// Set-up rate, then memory of connections before and after publications.
    pub(crate) fn connections(&mut self) -> Result<()> {
        for peer in self.peers.iter().copied() {
            self.book.progress(&format!("connections: {}", peer.label()));
            let result = self.connections_of(peer);
            self.note_failure(peer, result)?;
        }
        Ok(())
    }

    fn connections_of(&mut self, peer: Peer) -> Result<()> {
        let server = Server::start(peer, self.places)?;
        let count = self.plan.idle;
        std::thread::sleep(Duration::from_millis(500));
        let (anonymous, slab) = (server.anonymous_bytes()?, process::socket_slab_bytes());
        let (began, cpu) = (process::now(), server.cpu_nanos()?);
        let mut fleet = server.fleet(count)?;
        let took = (process::now() - began).as_secs_f64();
        let cpu = server.cpu_nanos()? - cpu;
        self.add(peer, Measure::Setup, count as f64 / took, 0.0);
        self.add(peer, Measure::SetupCpu, cpu as f64 / 1_000.0 / count as f64, 0.0);
        std::thread::sleep(Duration::from_secs(3));
        let per_connection = |now: u64| now.saturating_sub(anonymous) as f64 / count as f64;
        self.add(peer, Measure::IdleBytes, per_connection(server.anonymous_bytes()?), 0.0);
        if let (Some(before), Some(now)) = (slab, process::socket_slab_bytes()) {
            // Both ends of a connection are on this machine.
            self.add(peer, Measure::KernelBytes, now.saturating_sub(before) as f64 / count as f64 / 2.0, 0.0);
        }
        let mut publisher = server.publisher()?;
        fleet.settle(&mut publisher)?;
        fleet.run(&mut publisher, Duration::from_millis(2_500), Pace::Rate(2.0))?;
        std::thread::sleep(Duration::from_secs(1));
        self.add(peer, Measure::ActiveBytes, per_connection(server.anonymous_bytes()?), 0.0);
        Ok(())
    }

    fn ready(&self, server: &Server, count: usize) -> Result<(Fleet, Publisher)> {
        let mut fleet = server.fleet(count)?;
        let mut publisher = server.publisher()?;
        fleet.settle(&mut publisher)?;
        Ok((fleet, publisher))
    }

    fn timed(
        &self,
        server: &Server,
        fleet: &mut Fleet,
        publisher: &mut Publisher,
        pace: Pace,
    ) -> Result<Timed> {
        let own = std::process::id();
        let ours = |server_cpu: u64| server_cpu + self.redis.cpu_nanos() + process::thread_nanos(own);
        let (began, cpu, busy) = (process::now(), server.cpu_nanos()?, process::machine_busy_nanos());
        let before = ours(cpu);
        let outcome = fleet.run(publisher, self.plan.step, pace)?;
        let elapsed = process::now() - began;
        let cpu_after = server.cpu_nanos()?;
        let foreign = (process::machine_busy_nanos() - busy).saturating_sub(ours(cpu_after) - before);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let foreign = foreign as f64 / (elapsed.as_nanos() as f64 * cores as f64);
        Ok(Timed { outcome, cpu_nanos: cpu_after - cpu, foreign })
    }

    fn add(&mut self, peer: Peer, measure: Measure, value: f64, foreign: f64) {
        self.book.add(Figure { peer, measure, at: None, value, foreign });
    }

    /// A peer that fails is told and left out; the bare loop and the sidecar must not.
    fn note_failure(&mut self, peer: Peer, result: Result<()>) -> Result<()> {
        match result {
            Err(error) if matches!(peer, Peer::Bare | Peer::Sidecar) => Err(error),
            Err(error) => {
                self.book.remark(&format!("{}: {error:#}", peer.label()));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

impl Timed {
    fn cpu_us_per_delivery(&self) -> f64 {
        self.cpu_nanos as f64 / 1_000.0 / self.outcome.tally.deliveries().max(1) as f64
    }

    fn millis(&self, quantile: f64) -> f64 {
        self.outcome.tally.latency.value_at_quantile(quantile) as f64 / 1_000.0
    }
}
