//! The clients: many connections on one spinning thread, open-loop pacing, latency from the scheduled time. One
//! [`Fleet`] is one process's worth of subscribers; `measure` drives it, and `soak` where several are needed.

pub(crate) mod dialect;
pub(crate) mod publish;
pub(crate) mod tally;
pub(crate) mod wire;

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use mio::{Events, Interest, Poll, Token, net::TcpStream};

use self::{dialect::Dialect, publish::Publisher, tally::Tally, wire::Stamp};
use crate::process;

/// Handshakes in flight while connecting: fewer than the backlog of 128 that Rust's listeners have by default, beyond
/// which a handshake waits a second to be repeated.
const CONNECTING_AT_ONCE: usize = 100;
/// Connections from one source address.
const PER_SOURCE: usize = 20_000;
/// Source ports of an address begin here.
const FIRST_PORT: u16 = 10_000;
/// How long a run may take to finish after its last publication.
const GRACE: Duration = Duration::from_secs(5);

/// Fleets so far in this process; the third byte of their addresses, which may come round.
static FLEETS: AtomicU8 = AtomicU8::new(0);

/// Where and how a fleet connects.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) port: u16,
    pub(crate) path: String,
    pub(crate) dialect: Dialect,
    /// Second byte of the source addresses; fleets in several processes take different ones.
    pub(crate) source: u8,
}

/// Subscribers in this process.
pub(crate) struct Fleet {
    poll: Poll,
    events: Events,
    target: Target,
    subscribers: Vec<Subscriber>,
    /// Tells this fleet's addresses from those of earlier ones, whose ports may still be waiting.
    number: u8,
    bound: usize,
    joined: usize,
    closed: usize,
    frames: u64,
    buffer: Vec<u8>,
    scratch: Vec<u8>,
}

struct Subscriber {
    stream: TcpStream,
    state: State,
    /// The next sequence number.
    expected: u64,
    /// The start of a frame whose rest is still to come.
    partial: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Connecting,
    Upgrading,
    Joining,
    Joined,
    Closed,
}

/// When publications are made.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// So many a second, whether or not the server keeps up.
    Rate(f64),
    /// As fast as all receive, with so many under way.
    Window(u64),
}

/// What a run saw.
pub(crate) struct Outcome {
    pub(crate) tally: Tally,
    /// Deliveries within `elapsed`; later ones are in the tally only.
    pub(crate) deliveries: u64,
    pub(crate) elapsed: Duration,
    pub(crate) frames: u64,
    /// Deliveries that never came.
    pub(crate) lost: u64,
    /// Connections that the server closed.
    pub(crate) closed: usize,
}

impl Fleet {
    /// Connects, upgrades and subscribes `count` clients.
    pub(crate) fn connect(target: Target, count: usize) -> Result<Self> {
        let poll = Poll::new()?;
        let mut fleet = Self {
            poll,
            events: Events::with_capacity(4_096),
            target,
            subscribers: Vec::with_capacity(count),
            number: FLEETS.fetch_add(1, Ordering::Relaxed),
            bound: 0,
            joined: 0,
            closed: 0,
            frames: 0,
            buffer: vec![0; 262_144],
            scratch: Vec::new(),
        };
        let path = fleet.target.path.clone();
        fleet.add(count, |_| path.clone())?;
        Ok(fleet)
    }

    /// Connects `count` more, each to the path that `path` gives for its number.
    pub(crate) fn add(&mut self, count: usize, path: impl Fn(usize) -> String) -> Result<()> {
        let wanted = self.subscribers.len() + count;
        let mut idle = Tally::loose();
        let deadline = process::now() + Duration::from_secs(120);
        while self.joined < wanted {
            while self.subscribers.len() < wanted && self.subscribers.len() - self.joined < CONNECTING_AT_ONCE
            {
                self.open()?;
            }
            self.pump_with(Some(Duration::from_millis(100)), &mut idle, &path)?;
            if self.closed > 0 {
                bail!("the server closed a connection while others were still connecting");
            }
            if process::now() > deadline {
                bail!("only {} of {wanted} clients were subscribed within 120 s", self.joined);
            }
        }
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.subscribers.len()
    }

    /// Publishes probes until one reaches every subscriber, so that a run starts with everyone there.
    pub(crate) fn settle(&mut self, publisher: &mut Publisher) -> Result<()> {
        let deadline = process::now() + Duration::from_secs(60);
        for sequence in 0.. {
            let reached = self.probe(publisher, sequence)?;
            if reached == self.len() as u64 {
                return Ok(());
            }
            if self.closed > 0 || process::now() > deadline {
                let (all, closed) = (self.len(), self.closed);
                bail!("a publication reached {reached} of {all} subscribers, {closed} were closed");
            }
        }
        Ok(())
    }

    /// Publishes once and says how many it reached, when no more came for half a second.
    fn probe(&mut self, publisher: &mut Publisher, sequence: u64) -> Result<u64> {
        let mut tally = Tally::new(self.len());
        publisher.publish(Stamp { scheduled: process::now(), sequence });
        let (mut seen, mut last) = (0, process::now());
        while tally.deliveries() < self.len() as u64 && process::now() < last + Duration::from_millis(500) {
            publisher.pump()?;
            self.pump(Some(Duration::from_millis(10)), &mut tally)?;
            if tally.deliveries() > seen {
                (seen, last) = (tally.deliveries(), process::now());
            }
        }
        Ok(seen)
    }

    /// Publishes for `step` and counts deliveries; returns once all came, or the grace is over.
    pub(crate) fn run(&mut self, publisher: &mut Publisher, step: Duration, pace: Pace) -> Result<Outcome> {
        self.start_over();
        let frames = self.frames;
        let mut tally = Tally::new(self.len());
        let begin = process::now();
        let mut published = 0;
        let mut at_step: Option<(u64, Duration)> = None;
        loop {
            let now = process::now().saturating_sub(begin);
            if now >= step && at_step.is_none() {
                at_step = Some((tally.deliveries(), now));
            }
            let due = match pace {
                Pace::Rate(rate) => due_by(now, rate).min(due_by(step, rate) - 1),
                Pace::Window(window) if now < step => tally.complete() + window,
                Pace::Window(_) => published,
            };
            while published < due {
                let scheduled = match pace {
                    Pace::Rate(rate) => begin + Duration::from_secs_f64(published as f64 / rate),
                    Pace::Window(_) => begin + now,
                };
                publisher.publish(Stamp { scheduled, sequence: published });
                published += 1;
            }
            publisher.pump()?;
            if now >= step && tally.complete() >= published || self.closed > 0 || now > step + GRACE {
                break;
            }
            // A timeout of zero spins: a sleeping receiver would be woken at the sender's cost.
            self.pump(Some(Duration::ZERO), &mut tally)?;
        }
        let (deliveries, elapsed) =
            at_step.unwrap_or_else(|| (tally.deliveries(), process::now().saturating_sub(begin)));
        Ok(Outcome {
            deliveries,
            elapsed,
            frames: self.frames - frames,
            lost: (published * self.len() as u64).saturating_sub(tally.deliveries()),
            closed: self.closed,
            tally,
        })
    }

    /// Takes what has come in, at most once from each connection, or waits for it.
    pub(crate) fn pump(&mut self, timeout: Option<Duration>, tally: &mut Tally) -> Result<()> {
        // All have asked: no path is needed any more.
        self.pump_with(timeout, tally, &|_| String::new())
    }

    /// Sequence numbers start at 0 again.
    pub(crate) fn start_over(&mut self) {
        self.subscribers.iter_mut().for_each(|subscriber| subscriber.expected = 0);
    }

    /// Connections that the server closed.
    pub(crate) fn closed(&self) -> usize {
        self.closed
    }

    fn pump_with(
        &mut self,
        timeout: Option<Duration>,
        tally: &mut Tally,
        path: &impl Fn(usize) -> String,
    ) -> Result<()> {
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        self.poll.poll(&mut events, timeout)?;
        for event in &events {
            self.serve(event.token().0, tally, path)?;
        }
        self.events = events;
        Ok(())
    }

    fn open(&mut self) -> Result<()> {
        let at = self.subscribers.len();
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        self.bind(&socket)?;
        match socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, self.target.port)).into()) {
            Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
                return Err(error).context("failed to connect a subscriber");
            }
            _ => {}
        }
        let mut stream = TcpStream::from_std(socket.into());
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(at), interest)?;
        self.subscribers.push(Subscriber {
            stream,
            state: State::Connecting,
            expected: 0,
            partial: Vec::new(),
        });
        Ok(())
    }

    /// A source of our own: the kernel's search for a free port takes longer than the whole handshake once many
    /// are taken. A port may be someone's who listens on all addresses; then the next.
    fn bind(&mut self, socket: &socket2::Socket) -> Result<()> {
        loop {
            let (nth, port) = (self.bound / PER_SOURCE, self.bound % PER_SOURCE);
            self.bound += 1;
            let nth = u8::try_from(nth + 1).context("too many connections")?;
            let address = Ipv4Addr::new(127, self.target.source, self.number, nth);
            let port = FIRST_PORT + u16::try_from(port).expect("a source has fewer ports");
            match socket.bind(&SocketAddr::from((address, port)).into()) {
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                result => return result.context("failed to choose a source address"),
            }
        }
    }

    fn serve(&mut self, at: usize, tally: &mut Tally, path: &impl Fn(usize) -> String) -> Result<()> {
        let Self { subscribers, buffer, scratch, target, joined, closed, frames, .. } = self;
        let subscriber = &mut subscribers[at];
        if subscriber.state == State::Closed {
            return Ok(());
        }
        if subscriber.state == State::Connecting && !subscriber.ask(&path(at))? {
            return Ok(());
        }
        loop {
            let count = match subscriber.stream.read(buffer) {
                Ok(count) if count > 0 => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // The end, or a reset.
                _ => {
                    subscriber.state = State::Closed;
                    *closed += 1;
                    return Ok(());
                }
            };
            let before = subscriber.state;
            *frames += subscriber.feed(&buffer[..count], scratch, target.dialect, tally)?;
            *joined += usize::from(before != State::Joined && subscriber.state == State::Joined);
            *closed += usize::from(subscriber.state == State::Closed);
            // Less than asked for: the socket is empty, and the edge that follows will be reported.
            if count < buffer.len() || subscriber.state == State::Closed {
                return Ok(());
            }
        }
    }
}

impl Subscriber {
    /// Sends the request; false while the connection is not there yet.
    fn ask(&mut self, path: &str) -> Result<bool> {
        match self.stream.write(wire::upgrade(path).as_bytes()) {
            Ok(_) => {
                self.state = State::Upgrading;
                Ok(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                Ok(false)
            }
            Err(error) => Err(error).context("failed to send an upgrade request"),
        }
    }

    /// Takes bytes; returns the number of frames that carried publications.
    fn feed(
        &mut self,
        bytes: &[u8],
        scratch: &mut Vec<u8>,
        dialect: Dialect,
        tally: &mut Tally,
    ) -> Result<u64> {
        if self.partial.is_empty() {
            let (frames, used) = self.digest(bytes, dialect, tally)?;
            self.partial.extend_from_slice(&bytes[used..]);
            return Ok(frames);
        }
        scratch.clear();
        scratch.append(&mut self.partial);
        scratch.extend_from_slice(bytes);
        let (frames, used) = self.digest(scratch, dialect, tally)?;
        self.partial.extend_from_slice(&scratch[used..]);
        if self.partial.is_empty() {
            self.partial = Vec::new();
        }
        Ok(frames)
    }

    fn digest(&mut self, bytes: &[u8], dialect: Dialect, tally: &mut Tally) -> Result<(u64, usize)> {
        let mut used = 0;
        if self.state == State::Upgrading {
            let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else { return Ok((0, 0)) };
            if !bytes.starts_with(b"HTTP/1.1 101") {
                bail!("the server refused an upgrade: {}", String::from_utf8_lossy(&bytes[..end]));
            }
            used = end + 4;
            self.state = if dialect.joins_by_upgrade() { State::Joined } else { State::Joining };
            self.say(dialect.greeting())?;
        }
        let mut frames = 0;
        let now = process::now();
        while let Some(frame) = wire::frame(&bytes[used..]) {
            used += frame.length;
            let mut stamped = false;
            for Stamp { scheduled, sequence } in wire::stamps(frame.payload) {
                stamped = true;
                tally.receive(self.expected, sequence, now.saturating_sub(scheduled));
                self.expected = sequence + 1;
            }
            frames += u64::from(stamped);
            if !stamped || dialect.joins_pings() {
                let reaction = dialect.react(&frame);
                self.say(reaction.answer)?;
                match reaction {
                    _ if reaction.closed => self.state = State::Closed,
                    _ if reaction.joined => self.state = State::Joined,
                    _ => {}
                }
            }
        }
        Ok((frames, used))
    }

    /// Small answers on an otherwise silent direction: the socket's buffer always takes them.
    fn say(&mut self, text: Option<Vec<u8>>) -> Result<()> {
        match text.map(|text| self.stream.write(&text)) {
            Some(Err(error))
                if error.kind() != ErrorKind::BrokenPipe && error.kind() != ErrorKind::ConnectionReset =>
            {
                Err(error).context("failed to answer the server")
            }
            _ => Ok(()),
        }
    }
}

/// Publications that are due by `now` at so many a second; the first at once.
fn due_by(now: Duration, rate: f64) -> u64 {
    (now.as_secs_f64() * rate) as u64 + 1
}

impl Outcome {
    /// Nothing lost, nobody closed.
    pub(crate) fn clean(&self) -> bool {
        self.lost == 0 && self.closed == 0 && self.tally.disordered() == 0
    }

    pub(crate) fn deliveries_per_second(&self) -> f64 {
        self.deliveries as f64 / self.elapsed.as_secs_f64()
    }

    /// Publications that a frame carried, on average.
    pub(crate) fn messages_per_frame(&self) -> f64 {
        self.tally.deliveries() as f64 / self.frames.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publication_is_made_when_it_is_due_and_not_an_interval_later() {
        let due = |millis| due_by(Duration::from_millis(millis), 20.0);
        assert_eq!([due(0), due(49), due(50), due(99), due(100)], [1, 1, 2, 2, 3]);
    }
}
