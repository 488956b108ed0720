//! The measures: each starts fresh servers, drives them, and notes figures in the [`Book`].

use std::time::Duration;

use anyhow::Result;

use crate::{
    book::{Book, Figure, Measure},
    load::{Fleet, Outcome, Pace, publish::Publisher, tally::Tally},
    peer::{Peer, Places},
    process,
    server::{Redis, Server},
    soak::{self, Shape},
};

/// Publications under way in a saturated run: enough to keep a server busy, fewer than the 256 that the plain Go
/// hub's queue holds.
pub(crate) const WINDOW: u64 = 128;
/// Isolated publications a second.
pub(crate) const PACED_RATE: f64 = 20.0;

/// Deliveries a second offered in the curve of latency against load.
const LOADS: [u64; 8] = [25_000, 50_000, 100_000, 200_000, 400_000, 800_000, 1_600_000, 3_200_000];
/// Subscribers in the curve of CPU against fan-out.
const FAN_OUTS: [usize; 4] = [10, 100, 1_000, 10_000];
/// A server whose latency is beyond this does not keep up: the curve ends there.
const HOPELESS_MS: f64 = 1_000.0;

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) subscribers: usize,
    pub(crate) idle: usize,
    pub(crate) step: Duration,
    pub(crate) rounds: usize,
    /// Of each point of a curve.
    pub(crate) point: Duration,
    /// Of the run with 100,000 connections,
    pub(crate) soak: Duration,
    /// and of the one with 1,000 of the same kind.
    pub(crate) few: Duration,
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
pub(crate) struct Timed {
    pub(crate) outcome: Outcome,
    cpu_nanos: u64,
    /// Share of the machine that others used meanwhile: other processes, and other machines on its host.
    pub(crate) foreign: f64,
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
        let paced =
            self.timed(&server, &mut fleet, &mut publisher, Pace::Rate(PACED_RATE), self.plan.step)?;
        self.add(peer, Measure::PacedCpu, paced.cpu_us_per_delivery(), paced.foreign);
        self.add(peer, Measure::PacedP50, paced.millis(0.5), paced.foreign);
        self.add(peer, Measure::PacedP99, paced.millis(0.99), paced.foreign);
        let saturated =
            self.timed(&server, &mut fleet, &mut publisher, Pace::Window(WINDOW), self.plan.step)?;
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
        let cpu = server.cpu_nanos()?;
        let mut fleet = server.fleet(0)?;
        let mut took = Duration::ZERO;
        let path = peer.path("bench");
        for quarter in 1..=4 {
            let began = process::now();
            fleet.add(count / 4, |_| path.clone())?;
            took += process::now() - began;
            if quarter < 4 {
                std::thread::sleep(Duration::from_millis(300));
                let grown = server.anonymous_bytes()?.saturating_sub(anonymous);
                self.add_at(peer, Measure::MemoryAt, fleet.len() as u64, grown as f64 / 1e6);
            }
        }
        let cpu = server.cpu_nanos()? - cpu;
        self.add(peer, Measure::Setup, count as f64 / took.as_secs_f64(), 0.0);
        self.add(peer, Measure::SetupCpu, cpu as f64 / 1_000.0 / count as f64, 0.0);
        let grown = settled_bytes(&server, &mut fleet)?.saturating_sub(anonymous) as f64;
        self.add_at(peer, Measure::MemoryAt, fleet.len() as u64, grown / 1e6);
        self.add(peer, Measure::IdleBytes, grown / count as f64, 0.0);
        if let (Some(before), Some(now)) = (slab, process::socket_slab_bytes()) {
            // Both ends of a connection are on this machine.
            self.add(peer, Measure::KernelBytes, now.saturating_sub(before) as f64 / count as f64 / 2.0, 0.0);
        }
        let mut publisher = server.publisher()?;
        fleet.settle(&mut publisher)?;
        fleet.run(&mut publisher, Duration::from_millis(2_500), Pace::Rate(2.0))?;
        std::thread::sleep(Duration::from_secs(2));
        let grown = server.anonymous_bytes()?.saturating_sub(anonymous) as f64;
        self.add(peer, Measure::ActiveBytes, grown / count as f64, 0.0);
        if peer == Peer::Sidecar {
            drop(fleet);
            let mut nobody = server.fleet(0)?;
            let left = settled_bytes(&server, &mut nobody)?.saturating_sub(anonymous) as f64;
            self.add(peer, Measure::LeftBytes, left / count as f64, 0.0);
        }
        Ok(())
    }

    /// Latency against load, and at half of what the best peer reaches.
    pub(crate) fn loads(&mut self) -> Result<()> {
        let saturated = |peer: &Peer| self.book.median(*peer, Measure::Saturated);
        let best = self.peers.iter().filter(|peer| peer.is_peer()).filter_map(saturated).fold(0.0, f64::max);
        let half = (best / 2.0) as u64;
        for peer in self.peers.iter().copied() {
            self.book.progress(&format!("latency against load: {}", peer.label()));
            let result = self.loads_of(peer, half);
            self.note_failure(peer, result)?;
        }
        Ok(())
    }

    fn loads_of(&mut self, peer: Peer, half: u64) -> Result<()> {
        let server = Server::start(peer, self.places)?;
        let (mut fleet, mut publisher) = self.ready(&server, self.plan.subscribers)?;
        let mut loads: Vec<u64> = LOADS.into_iter().chain((half > 0).then_some(half)).collect();
        loads.sort_unstable();
        for load in loads {
            let pace = Pace::Rate(load as f64 / fleet.len() as f64);
            let timed = self.timed(&server, &mut fleet, &mut publisher, pace, self.plan.point)?;
            if !timed.outcome.clean() || timed.millis(0.99) > HOPELESS_MS {
                let reached = timed.outcome.deliveries_per_second();
                self.add_at(peer, Measure::Ceiling, load, reached);
                return Ok(());
            }
            self.add_at(peer, Measure::LoadP50, load, timed.millis(0.5));
            self.add_at(peer, Measure::LoadP99, load, timed.millis(0.99));
            self.add_at(peer, Measure::LoadP999, load, timed.millis(0.999));
            if load == half {
                self.add(peer, Measure::HalfP99, timed.millis(0.99), timed.foreign);
            }
        }
        Ok(())
    }

    /// CPU against fan-out; with the most subscribers also the first and the last of each publication.
    pub(crate) fn fan_outs(&mut self) -> Result<()> {
        for fan_out in FAN_OUTS {
            for peer in self.peers.iter().copied() {
                self.book.progress(&format!("CPU against fan-out, {fan_out}: {}", peer.label()));
                let result = self.fan_out_at(peer, fan_out);
                self.note_failure(peer, result)?;
            }
        }
        Ok(())
    }

    fn fan_out_at(&mut self, peer: Peer, fan_out: usize) -> Result<()> {
        let server = Server::start(peer, self.places)?;
        let (mut fleet, mut publisher) = self.ready(&server, fan_out)?;
        // At most 20,000 deliveries a second, so that each publication stands alone.
        let rate = (20_000.0 / fan_out as f64).min(PACED_RATE);
        let step =
            if rate < PACED_RATE { self.plan.step.max(Duration::from_secs(5)) } else { self.plan.point };
        let timed = self.timed(&server, &mut fleet, &mut publisher, Pace::Rate(rate), step)?;
        self.add_at(peer, Measure::FanOutCpu, fan_out as u64, timed.cpu_us_per_delivery());
        if FAN_OUTS.last() == Some(&fan_out) {
            let tally = &timed.outcome.tally;
            let median =
                |histogram: &hdrhistogram::Histogram<u64>| histogram.value_at_quantile(0.5) as f64 / 1_000.0;
            self.add(peer, Measure::FirstByte, median(&tally.first), timed.foreign);
            self.add(peer, Measure::LastByte, median(&tally.last), timed.foreign);
        }
        Ok(())
    }

    /// 100,000 connections over several processes; beside them 1,000 of the same kind.
    pub(crate) fn soak(&mut self) -> Result<()> {
        for peer in [Peer::Bare, Peer::Sidecar] {
            self.book.progress(&format!("100,000 connections: {}", peer.label()));
            let shape = Shape::of(self.plan.soak);
            let few = soak::run(peer, self.places, shape.hundredth(self.plan.few))?;
            self.add(peer, Measure::FewCpu, few.cpu_us_per_delivery(), 0.0);
            let outcome = soak::run(peer, self.places, shape)?;
            let millis = |quantile| outcome.latency.value_at_quantile(quantile) as f64 / 1_000.0;
            let figures = [
                (Measure::SoakDeliveries, outcome.deliveries as f64),
                (Measure::SoakLost, outcome.lost as f64),
                (Measure::SoakClosed, outcome.closed as f64),
                (Measure::SoakP50, millis(0.5)),
                (Measure::SoakP99, millis(0.99)),
                (Measure::SoakP999, millis(0.999)),
                (Measure::SoakLongest, outcome.latency.max() as f64 / 1_000.0),
                (Measure::SoakTurn, outcome.longest_turn.as_secs_f64() * 1_000.0),
                (Measure::SoakCpu, outcome.cpu_us_per_delivery()),
                (Measure::SoakBytes, outcome.anonymous_bytes as f64 / shape.connections as f64),
                (Measure::SoakSetup, shape.connections as f64 / outcome.setup.as_secs_f64()),
            ];
            figures.into_iter().for_each(|(measure, value)| self.add(peer, measure, value, 0.0));
        }
        Ok(())
    }

    pub(crate) fn ready(&self, server: &Server, count: usize) -> Result<(Fleet, Publisher)> {
        let mut fleet = server.fleet(count)?;
        let mut publisher = server.publisher()?;
        fleet.settle(&mut publisher)?;
        Ok((fleet, publisher))
    }

    pub(crate) fn timed(
        &self,
        server: &Server,
        fleet: &mut Fleet,
        publisher: &mut Publisher,
        pace: Pace,
        step: Duration,
    ) -> Result<Timed> {
        let own = std::process::id();
        let ours = |server_cpu: u64| server_cpu + self.redis.cpu_nanos() + process::thread_nanos(own);
        let (began, cpu, busy) = (process::now(), server.cpu_nanos()?, process::machine_busy_nanos());
        let before = ours(cpu);
        let outcome = fleet.run(publisher, step, pace)?;
        let elapsed = process::now() - began;
        let cpu_after = server.cpu_nanos()?;
        let foreign = (process::machine_busy_nanos() - busy).saturating_sub(ours(cpu_after) - before);
        let cores = process::cores();
        let foreign = foreign as f64 / (elapsed.as_nanos() as f64 * cores as f64);
        Ok(Timed { outcome, cpu_nanos: cpu_after - cpu, foreign })
    }

    pub(crate) fn add(&mut self, peer: Peer, measure: Measure, value: f64, foreign: f64) {
        self.book.add(Figure { peer, measure, at: None, value, foreign });
    }

    fn add_at(&mut self, peer: Peer, measure: Measure, at: u64, value: f64) {
        self.book.add(Figure { peer, measure, at: Some(at), value, foreign: 0.0 });
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

/// Memory once an allocator has given back what it wants to: when it has not fallen for 6 s, or after 18 s. jemalloc
/// gives pages back over 5 s. The clients answer pings meanwhile, or they would be taken for dead.
fn settled_bytes(server: &Server, clients: &mut Fleet) -> Result<u64> {
    let began = process::now();
    let (mut least, mut since, mut idle) = (server.anonymous_bytes()?, began, Tally::loose());
    while process::now() < since + Duration::from_secs(6) && process::now() < began + Duration::from_secs(18)
    {
        let second = process::now() + Duration::from_secs(1);
        while process::now() < second {
            clients.pump(Some(Duration::from_millis(100)), &mut idle)?;
        }
        let bytes = server.anonymous_bytes()?;
        // A percent less is noise.
        if bytes < least - least / 100 {
            (least, since) = (bytes, process::now());
        }
    }
    Ok(least)
}

impl Timed {
    pub(crate) fn cpu_us_per_delivery(&self) -> f64 {
        self.cpu_nanos as f64 / 1_000.0 / self.outcome.tally.deliveries().max(1) as f64
    }

    pub(crate) fn millis(&self, quantile: f64) -> f64 {
        self.outcome.tally.latency.value_at_quantile(quantile) as f64 / 1_000.0
    }
}
