//! The clients: many connections on one spinning thread, open-loop pacing, latency from the scheduled time.

pub(crate) mod wire;

use std::{
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use mio::{Events, Interest, Poll, Token, net::TcpStream};

use crate::server::Server;

/// Handshakes in flight while connecting.
const CONNECTING_AT_ONCE: usize = 200;
/// Publications under way in a saturated run: enough to keep the server busy, few enough for socket buffers.
const WINDOW: u64 = 128;

/// Subscribers of one channel.
pub(crate) struct Fleet {
    poll: Poll,
    sockets: Vec<Subscriber>,
    buffer: Vec<u8>,
}

struct Subscriber {
    stream: TcpStream,
    frames: wire::FrameCounter,
}

/// The connection that publishes; it is a subscriber too and drops what it receives.
pub(crate) struct Publisher {
    stream: std::net::TcpStream,
    payload_bytes: usize,
    buffer: Vec<u8>,
}

/// What a timed run saw.
pub(crate) struct Outcome {
    deliveries: u64,
    elapsed: Duration,
    cpu_nanos: u64,
    latencies_us: Vec<u32>,
}

impl Fleet {
    /// Connects and upgrades `count` subscribers.
    pub(crate) fn connect(port: u16, count: usize) -> Result<Self> {
        let poll = Poll::new()?;
        let mut fleet = Self { poll, sockets: Vec::with_capacity(count), buffer: vec![0; 262_144] };
        let mut answered = 0;
        let mut events = Events::with_capacity(1_024);
        let deadline = Instant::now() + Duration::from_secs(120);
        while answered < count {
            while fleet.sockets.len() < count && fleet.sockets.len() - answered < CONNECTING_AT_ONCE {
                fleet.open(port)?;
            }
            fleet.poll.poll(&mut events, Some(Duration::from_millis(100)))?;
            for event in &events {
                answered += usize::from(fleet.sockets[event.token().0].handshake()?);
            }
            if Instant::now() > deadline {
                bail!("only {answered} of {count} connections were upgraded within 120 s");
            }
        }
        Ok(fleet)
    }

    /// Number of connections.
    pub(crate) fn len(&self) -> usize {
        self.sockets.len()
    }

    /// Publishes for `step`, at `rate` a second or as fast as the fleet receives, and counts deliveries.
    pub(crate) fn run(
        &mut self,
        publisher: &mut Publisher,
        server: &Server,
        step: Duration,
        rate: Option<u32>,
    ) -> Result<Outcome> {
        let clock = Instant::now();
        let cpu_before = server.cpu_nanos()?;
        let mut outcome = Outcome { deliveries: 0, elapsed: step, cpu_nanos: 0, latencies_us: Vec::new() };
        let mut published = 0;
        let total = rate.map(|rate| (step.as_secs_f64() * f64::from(rate)) as u64);
        let mut events = Events::with_capacity(4_096);
        let give_up = step + Duration::from_secs(10);
        loop {
            let now = clock.elapsed();
            let complete = outcome.deliveries / self.sockets.len() as u64;
            let due = match (rate, total) {
                (Some(rate), Some(total)) => total.min((now.as_secs_f64() * f64::from(rate)) as u64),
                _ if now < step => complete + WINDOW,
                _ => published,
            };
            while published < due {
                let scheduled =
                    rate.map_or(now, |rate| Duration::from_secs_f64(published as f64 / f64::from(rate)));
                publisher.publish(scheduled)?;
                published += 1;
            }
            if now >= step && (rate.is_none() || complete >= published) {
                break;
            }
            if now > give_up {
                bail!("{complete} of {published} publications arrived everywhere within {give_up:?}");
            }
            // A timeout of zero spins: a sleeping receiver would be woken at the sender's cost.
            self.poll.poll(&mut events, Some(Duration::ZERO))?;
            for event in &events {
                self.receive(event.token().0, clock, rate.is_some(), &mut outcome)?;
            }
            publisher.discard()?;
        }
        outcome.elapsed = clock.elapsed();
        outcome.cpu_nanos = server.cpu_nanos()? - cpu_before;
        self.drain(publisher, published * self.sockets.len() as u64, &mut outcome, clock)?;
        Ok(outcome)
    }

    fn open(&mut self, port: u16) -> Result<()> {
        // A source address for each 20,000 connections: one has 64k ports at most, and fewer that are free.
        let source = 1 + self.sockets.len() / 20_000;
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::from(([127, 0, 0, source as u8], 0)).into())?;
        match socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into()) {
            Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
                return Err(error).context("failed to connect a subscriber");
            }
            _ => {}
        }
        let mut stream = TcpStream::from_std(socket.into());
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(self.sockets.len()), interest)?;
        self.sockets.push(Subscriber { stream, frames: wire::FrameCounter::default() });
        Ok(())
    }

    fn receive(&mut self, at: usize, clock: Instant, timed: bool, outcome: &mut Outcome) -> Result<()> {
        let Subscriber { stream, frames } = &mut self.sockets[at];
        loop {
            match stream.read(&mut self.buffer) {
                Ok(0) => bail!("the server closed a subscriber"),
                Ok(count) => {
                    let now = clock.elapsed();
                    outcome.deliveries += frames.feed(&self.buffer[..count], |scheduled| {
                        if timed {
                            outcome.latencies_us.push(now.saturating_sub(scheduled).as_micros() as u32);
                        }
                    });
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("failed to read from a subscriber"),
            }
        }
    }

    /// Takes what is still under way, so that the next run starts clean; it does not count.
    fn drain(
        &mut self,
        publisher: &mut Publisher,
        expected: u64,
        seen: &mut Outcome,
        clock: Instant,
    ) -> Result<()> {
        let mut rest = Outcome {
            deliveries: seen.deliveries,
            elapsed: Duration::ZERO,
            cpu_nanos: 0,
            latencies_us: Vec::new(),
        };
        let mut events = Events::with_capacity(4_096);
        let deadline = Instant::now() + Duration::from_secs(10);
        while rest.deliveries < expected && Instant::now() < deadline {
            self.poll.poll(&mut events, Some(Duration::ZERO))?;
            for event in &events {
                self.receive(event.token().0, clock, false, &mut rest)?;
            }
            publisher.discard()?;
        }
        if rest.deliveries < expected {
            bail!("{} of {expected} deliveries were lost", expected - rest.deliveries);
        }
        Ok(())
    }
}

impl Subscriber {
    /// Sends the request once connected; true once the answer is there, the first time only.
    fn handshake(&mut self) -> Result<bool> {
        if self.frames.upgraded() {
            return Ok(false);
        }
        if !self.frames.asked {
            match self.stream.write(wire::UPGRADE.as_bytes()) {
                Ok(_) => self.frames.asked = true,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    return Ok(false);
                }
                Err(error) => return Err(error).context("failed to send an upgrade request"),
            }
        }
        let mut buffer = [0; 4_096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!("the server closed during the handshake"),
                Ok(count) => {
                    self.frames.feed(&buffer[..count], |_| {});
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(self.frames.upgraded()),
                Err(error) => return Err(error).context("failed to read the upgrade's answer"),
            }
        }
    }
}

impl Publisher {
    /// Connects and upgrades.
    pub(crate) fn connect(port: u16, payload_bytes: usize) -> Result<Self> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.write_all(wire::UPGRADE.as_bytes())?;
        let mut answer = [0; 4_096];
        let count = stream.read(&mut answer)?;
        if !answer[..count].starts_with(b"HTTP/1.1 101") {
            bail!("the server refused the publisher: {}", String::from_utf8_lossy(&answer[..count]));
        }
        Ok(Self { stream, payload_bytes, buffer: vec![0; 262_144] })
    }

    fn publish(&mut self, scheduled: Duration) -> Result<()> {
        self.stream.write_all(&wire::publication(scheduled, self.payload_bytes)).context("failed to publish")
    }

    /// Drops what came in, without waiting.
    fn discard(&mut self) -> Result<()> {
        self.stream.set_nonblocking(true)?;
        while matches!(self.stream.read(&mut self.buffer), Ok(count) if count > 0) {}
        Ok(self.stream.set_nonblocking(false)?)
    }
}

impl Outcome {
    /// CPU time of the server for one message to one subscriber, in microseconds.
    pub(crate) fn cpu_us_per_delivery(&self) -> f64 {
        self.cpu_nanos as f64 / 1_000.0 / self.deliveries.max(1) as f64
    }

    /// Messages to subscribers a second.
    pub(crate) fn deliveries_per_second(&self) -> f64 {
        self.deliveries as f64 / self.elapsed.as_secs_f64()
    }

    /// Milliseconds from the scheduled time to receipt, at a quantile between 0 and 1.
    pub(crate) fn latency_ms(&self, quantile: f64) -> f64 {
        let mut sorted = self.latencies_us.clone();
        sorted.sort_unstable();
        let at = ((sorted.len() as f64 * quantile) as usize).min(sorted.len().saturating_sub(1));
        sorted.get(at).map_or(f64::NAN, |us| f64::from(*us) / 1_000.0)
    }
}
