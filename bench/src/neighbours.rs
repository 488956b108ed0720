//! What one part of the product costs the others: a client that reads nothing, a channel that is hot, the timing of
//! deliveries. The baseline is the product itself without it.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;

use crate::{
    book::{Book, Measure, Row, Target},
    load::{Pace, tally, wire},
    measure::{Bench, WINDOW},
    peer::Peer,
    process,
    server::Server,
};

/// Subscribers among whom one is stuck.
const CROWD: usize = 10_000;
/// Publications a second to them; a pass over all takes a third of the time between two.
const CROWD_RATE: f64 = 4.0;
const CROWD_ROUNDS: usize = 3;
/// Subscribers of the hot channel.
const HOT: usize = 18_000;
/// Publications to them, and the time between two: a pass over all takes a good part of it.
const HOT_PUBLICATIONS: u64 = 60;
const HOT_INTERVAL: Duration = Duration::from_millis(200);
/// CPU of deliveries timed beside that of deliveries not timed, each summed over several slices.
const PAIRS: usize = 10;
/// The two sides of a pair take turns this often: a machine whose speed changes within seconds changes it for both.
const SLICE: Duration = Duration::from_millis(250);
/// What timing deliveries may cost of their CPU, against none.
const TIMING_COST: f64 = 1.02;
/// Student's t for 95 % and nine degrees of freedom.
const T_OF_PAIRS: f64 = 2.262;

impl Bench<'_> {
    /// All three.
    pub(crate) fn neighbours(&mut self) -> Result<()> {
        self.book.progress("a hot channel: pings on another");
        self.hot_channel()?;
        self.book.progress("a stuck client among 10,000");
        self.stuck_client()?;
        self.book.progress("timing of deliveries, on and off");
        self.timing()
    }

    /// Pings on a quiet channel while nothing happens, and while another one is hot.
    fn hot_channel(&mut self) -> Result<()> {
        let server = Server::start(Peer::Sidecar, self.places)?;
        let (mut fleet, mut publisher) = self.ready(&server, HOT)?;
        let time = HOT_INTERVAL * HOT_PUBLICATIONS as u32;
        // Both cores are as awake as later: one that sleeps answers later, and a machine whose cores are all busy may
        // be stopped for milliseconds by the one below it.
        let (idle, ()) = Probe::beside(server.port(), || {
            let over = process::now() + time;
            let awake = std::thread::spawn(move || process::keep_first_core_awake(over));
            let mut unread = tally::Tally::loose();
            while process::now() < over {
                fleet.pump(Some(Duration::ZERO), &mut unread)?;
            }
            awake.join().expect("it does not panic")
        })?;
        let pace = Pace::Rate(1.0 / HOT_INTERVAL.as_secs_f64());
        let (hot, run) = Probe::beside(server.port(), || fleet.run(&mut publisher, time, pace))?;
        ensure!(run.clean(), "messages of the hot channel were lost");
        for (measure, pings, quantile) in [
            (Measure::PingIdleP95, &idle, 0.95),
            (Measure::PingIdleP99, &idle, 0.99),
            (Measure::PingHotP95, &hot, 0.95),
            (Measure::PingHotP99, &hot, 0.99),
        ] {
            self.add(Peer::Sidecar, measure, pings.value_at_quantile(quantile) as f64 / 1_000.0, 0.0);
        }
        Ok(())
    }

    /// Rounds without and with one in turn: what else happens on the machine comes and goes.
    fn stuck_client(&mut self) -> Result<()> {
        let server = Server::start(Peer::Sidecar, self.places)?;
        let (mut fleet, mut publisher) = self.ready(&server, CROWD)?;
        let pace = Pace::Rate(CROWD_RATE);
        for _ in 0..CROWD_ROUNDS {
            let alone = self.timed(&server, &mut fleet, &mut publisher, pace, self.plan.step)?;
            let _stuck = stuck_client(server.port())?;
            // What fills its buffers and the kernel's, so that it has something waiting from then on.
            self.timed(&server, &mut fleet, &mut publisher, Pace::Window(WINDOW), Duration::from_secs(1))?;
            let beside = self.timed(&server, &mut fleet, &mut publisher, pace, self.plan.step)?;
            for (measure, run) in [(Measure::CrowdAlone, alone), (Measure::CrowdBesideStuck, beside)] {
                ensure!(run.outcome.clean(), "messages were lost beside a stuck client");
                self.add(Peer::Sidecar, measure, run.millis(0.99), run.foreign);
            }
        }
        Ok(())
    }

    /// CPU of a delivery with its timing on against off, isolated and saturated, in interleaved pairs.
    fn timing(&mut self) -> Result<()> {
        let mut sides = Vec::new();
        for peer in [Peer::Sidecar, Peer::Untimed] {
            let server = Server::start(peer, self.places)?;
            let (fleet, publisher) = self.ready(&server, self.plan.subscribers)?;
            sides.push((server, fleet, publisher));
        }
        let turns = (self.plan.point.as_millis() / 2 / SLICE.as_millis()).max(1);
        for (measure, pace) in [
            (Measure::TimingPaced, Pace::Rate(crate::measure::PACED_RATE)),
            (Measure::TimingSaturated, Pace::Window(WINDOW)),
        ] {
            for _ in 0..PAIRS {
                let mut cpu = [0.0; 2];
                for turn in 0..turns {
                    // Each runs first and last once, and who begins takes turns: what came before a run changes it.
                    let (one, other) = if turn % 2 == 0 { (0, 1) } else { (1, 0) };
                    for side in [one, other, other, one] {
                        let (server, fleet, publisher) = &mut sides[side];
                        cpu[side] += self.timed(server, fleet, publisher, pace, SLICE)?.cpu_us_per_delivery();
                    }
                }
                self.add(Peer::Sidecar, measure, cpu[0] / cpu[1], 0.0);
            }
        }
        for measure in [Measure::TimingPaced, Measure::TimingSaturated] {
            let (mean, (low, high)) = interval(&self.book.values(Peer::Sidecar, measure));
            let text =
                format!("{}: mean of {PAIRS} pairs {mean:.3}, 95 % {low:.3} to {high:.3}", measure.name());
            self.book.remark(&text);
        }
        Ok(())
    }
}

/// The rows of this module.
pub(crate) fn rows(book: &Book) -> Vec<Row> {
    let of = |measure: Measure| book.median(Peer::Sidecar, measure);
    let row = |measure: Measure, baseline: Measure, bound| {
        let name = format!("{} against {}", measure.name(), baseline.name());
        Row::new(name, measure.unit(), of(measure), of(baseline), Some(Target::RatioAtMost(bound)))
    };
    let timing = |measure: Measure| {
        let (name, ratios) = (measure.name().to_owned(), book.values(Peer::Sidecar, measure));
        // Of fewer pairs, in a run that ended early, the interval would be wider than this one.
        if ratios.len() < PAIRS {
            return Row::new(name, measure.unit(), None, None, Some(Target::AtMost(TIMING_COST)));
        }
        let (mean, bounds) = interval(&ratios);
        Row::of_interval(name, measure.unit(), mean, bounds, TIMING_COST)
    };
    vec![
        row(Measure::PingHotP95, Measure::PingIdleP95, 5.0),
        row(Measure::PingHotP99, Measure::PingIdleP99, 5.0),
        row(Measure::CrowdBesideStuck, Measure::CrowdAlone, 1.2),
        timing(Measure::TimingPaced),
        timing(Measure::TimingSaturated),
    ]
}

/// The mean, and its interval of 95 %.
fn interval(values: &[f64]) -> (f64, (f64, f64)) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    let half = T_OF_PAIRS * (variance / count).sqrt();
    (mean, (mean - half, mean + half))
}

/// A client that subscribes and reads nothing after its handshake.
fn stuck_client(port: u16) -> Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_recv_buffer_size(4_096)?;
    socket.connect(&std::net::SocketAddr::from(([127, 0, 0, 1], port)).into())?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(wire::upgrade("/ws/bench").as_bytes())?;
    // The rest of the answer may stay where it is.
    ensure!(stream.read(&mut [0; 64])? > 0, "the server refused a client");
    Ok(stream)
}

/// Pings a server and waits for the answer.
struct Probe(TcpStream);

impl Probe {
    const PING: [u8; 14] = [0x89, 0x88, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    const PONG: [u8; 10] = [0x8a, 8, 1, 2, 3, 4, 5, 6, 7, 8];
    const SERVER_PING: [u8; 2] = [0x89, 0];
    const INTERVAL: Duration = Duration::from_millis(7);

    /// Round trips of pings, in microseconds, while `work` runs; by a thread that goes before it on their core.
    fn beside<T>(port: u16, work: impl FnOnce() -> Result<T>) -> Result<(Histogram<u64>, T)> {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let pings = scope.spawn(|| {
                process::go_first()?;
                Self::connect(port)?.until(&over)
            });
            let done = work();
            over.store(true, Ordering::Relaxed);
            let pings = pings.join().expect("the probe does not panic")?;
            Ok((pings, done?))
        })
    }

    fn connect(port: u16) -> Result<Self> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(wire::upgrade("/ws/quiet").as_bytes())?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).context("the server did not answer the probe")?;
            answer.push(byte[0]);
        }
        Ok(Self(stream))
    }

    /// A ping every few milliseconds.
    fn until(mut self, over: &AtomicBool) -> Result<Histogram<u64>> {
        let (begin, mut trips) = (process::now(), tally::histogram());
        for sent in 0.. {
            if over.load(Ordering::Relaxed) {
                break;
            }
            let due = begin + Self::INTERVAL * sent;
            // A ping that waits for the one before waits for the server; the rest of its lateness is our own.
            let from = match due.checked_sub(process::now()) {
                Some(wait) => {
                    std::thread::sleep(wait);
                    process::now()
                }
                None => due,
            };
            self.0.write_all(&Self::PING)?;
            self.pong()?;
            trips.record((process::now() - from).as_micros() as u64)?;
        }
        Ok(trips)
    }

    fn pong(&mut self) -> Result<()> {
        let mut answer = Vec::new();
        while answer.len() < Self::PONG.len() {
            let mut bytes = [0; Self::PONG.len()];
            let count = self.0.read(&mut bytes).context("a ping was not answered")?;
            ensure!(count > 0, "the server closed the probe");
            answer.extend_from_slice(&bytes[..count]);
            // The server looks after its clients, too.
            if answer.starts_with(&Self::SERVER_PING) {
                answer.drain(..Self::SERVER_PING.len());
                self.0.write_all(&wire::client_pong(&[]))?;
            }
        }
        ensure!(answer == Self::PONG, "the server answered a ping with {answer:x?}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_as_wide_as_the_values_are_apart() {
        assert_eq!(interval(&[1.0; 10]), (1.0, (1.0, 1.0)));
        let (mean, (low, high)) = interval(&[0.9, 1.1, 0.9, 1.1, 0.9, 1.1, 0.9, 1.1, 0.9, 1.1]);
        let near = |value: f64, expected: f64| (value - expected).abs() < 1e-4;
        assert!(near(mean, 1.0) && near(low, 0.9246) && near(high, 1.0754), "{mean} {low} {high}");
    }
}
