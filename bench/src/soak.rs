//! Many connections over several processes: as many servers and as many load processes ([`Work`] is one), channels
//! with few subscribers each, publications from one place at a steady rate.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::{
    load::{
        Fleet, Target,
        publish::Publisher,
        tally::{self, Tally},
        wire::Stamp,
    },
    peer::{Peer, Places},
    process,
    server::Server,
};

/// How much.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) processes: usize,
    pub(crate) connections: usize,
    pub(crate) channels: usize,
    /// Publications a second over all channels.
    pub(crate) rate: f64,
    pub(crate) duration: Duration,
}

/// What came of it.
pub(crate) struct Outcome {
    pub(crate) deliveries: u64,
    /// Deliveries that never came, or out of order.
    pub(crate) lost: u64,
    /// Connections that a server closed.
    pub(crate) closed: u64,
    pub(crate) cpu_nanos: u64,
    pub(crate) anonymous_bytes: u64,
    pub(crate) setup: Duration,
    pub(crate) latency: Histogram<u64>,
    /// Of the loops that write to clients: what everything else on a loop waits for.
    pub(crate) longest_turn: Duration,
}

/// What a load process is told, as arguments.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Work {
    /// Port of its server.
    #[arg(long)]
    port: u16,
    /// Its number, for addresses of its own.
    #[arg(long)]
    number: usize,
    /// Number of its first connection.
    #[arg(long)]
    first: usize,
    /// Connections that it makes.
    #[arg(long)]
    connections: usize,
    /// Channels over which all connections are spread.
    #[arg(long)]
    channels: usize,
}

/// What a load process tells at its end.
#[derive(Default, Serialize, Deserialize)]
struct Told {
    deliveries: u64,
    disordered: u64,
    closed: u64,
    /// Microseconds and how often.
    latency: Vec<(u64, u64)>,
}

struct Worker {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Shape {
    /// 100,000 connections, 10,000 channels, one message in two seconds for each channel.
    pub(crate) fn of(duration: Duration) -> Self {
        Self { processes: 6, connections: 100_000, channels: 10_000, rate: 5_000.0, duration }
    }

    /// A hundredth of the connections and channels: what differs is the number of connections alone.
    pub(crate) fn hundredth(self, duration: Duration) -> Self {
        Self { connections: self.connections / 100, channels: self.channels / 100, duration, ..self }
    }

    fn part(self, number: usize) -> usize {
        let (base, rest) = (self.connections / self.processes, self.connections % self.processes);
        base + usize::from(number < rest)
    }
}

impl Outcome {
    pub(crate) fn cpu_us_per_delivery(&self) -> f64 {
        self.cpu_nanos as f64 / 1_000.0 / self.deliveries.max(1) as f64
    }
}

/// Runs servers of one kind under the load.
pub(crate) fn run(peer: Peer, places: &Places, shape: Shape) -> Result<Outcome> {
    let cores = process::all_cores();
    let start = |_| Server::start_on(&cores, peer, places);
    let servers = (0..shape.processes).map(start).collect::<Result<Vec<_>>>()?;
    let bytes = |servers: &[Server]| servers.iter().map(Server::anonymous_bytes).sum::<Result<u64>>();
    let cpu = |servers: &[Server]| servers.iter().map(Server::cpu_nanos).sum::<Result<u64>>();
    let (bytes_before, began) = (bytes(&servers)?, process::now());
    let mut first = 0;
    let mut workers = Vec::new();
    for (number, server) in servers.iter().enumerate() {
        let connections = shape.part(number);
        workers.push(Worker::start(server.port(), number, first, connections, shape.channels)?);
        first += connections;
    }
    workers.iter_mut().try_for_each(Worker::wait_until_ready)?;
    let setup = process::now() - began;
    std::thread::sleep(Duration::from_secs(3));
    let mut publishers = match peer {
        // Each bare loop stands alone; the others share a Redis.
        Peer::Bare => servers.iter().map(Server::publisher).collect::<Result<Vec<_>>>()?,
        _ => vec![servers[0].publisher()?],
    };
    let cpu_before = cpu(&servers)?;
    let done = AtomicBool::new(false);
    let (published, longest_turn) = std::thread::scope(|scope| {
        let turns = scope.spawn(|| longest_turn(&servers, &done));
        let published = publish(&mut publishers, shape);
        std::thread::sleep(Duration::from_secs(2));
        done.store(true, Ordering::Relaxed);
        let longest = turns.join().expect("it does not panic");
        anyhow::Ok((published?, longest?))
    })?;
    let cpu_nanos = cpu(&servers)? - cpu_before;
    let anonymous_bytes = bytes(&servers)?.saturating_sub(bytes_before);
    let (mut told, mut latency) = (Told::default(), tally::histogram());
    for worker in workers {
        let part = worker.stop()?;
        told.deliveries += part.deliveries;
        told.disordered += part.disordered;
        told.closed += part.closed;
        part.latency.into_iter().for_each(|(micros, count)| latency.saturating_record_n(micros, count));
    }
    let expected = published * (shape.connections / shape.channels) as u64;
    Ok(Outcome {
        deliveries: told.deliveries,
        lost: expected.saturating_sub(told.deliveries) + told.disordered,
        closed: told.closed,
        cpu_nanos,
        anonymous_bytes,
        setup,
        latency,
        longest_turn,
    })
}

/// Asks the servers now and then, for a sidecar tells of the last half minute at least.
fn longest_turn(servers: &[Server], done: &AtomicBool) -> Result<Duration> {
    let mut longest = Duration::ZERO;
    loop {
        let last = done.load(Ordering::Relaxed);
        for server in servers {
            longest = longest.max(server.longest_turn()?);
        }
        if last {
            return Ok(longest);
        }
        let asked = process::now();
        while process::now() < asked + Duration::from_secs(20) && !done.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Round-robin over the channels; returns how many were made.
fn publish(publishers: &mut [Publisher], shape: Shape) -> Result<u64> {
    let begin = process::now();
    let total = (shape.duration.as_secs_f64() * shape.rate) as u64;
    let channels = shape.channels as u64;
    let mut published = 0;
    while published < total {
        let now = process::now() - begin;
        let due = total.min((now.as_secs_f64() * shape.rate) as u64 + 1);
        while published < due {
            let scheduled = begin + Duration::from_secs_f64(published as f64 / shape.rate);
            let channel = channel_name((published % channels) as usize);
            let stamp = Stamp { scheduled, sequence: published / channels };
            publishers.iter_mut().for_each(|publisher| publisher.publish_to(&channel, stamp));
            published += 1;
        }
        publishers.iter_mut().try_for_each(Publisher::pump)?;
        std::thread::sleep(Duration::from_micros(500));
    }
    while !publishers.iter().all(Publisher::is_flushed) {
        publishers.iter_mut().try_for_each(Publisher::pump)?;
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(published)
}

fn channel_name(number: usize) -> String {
    format!("c{number}")
}

impl Worker {
    fn start(port: u16, number: usize, first: usize, connections: usize, channels: usize) -> Result<Self> {
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", &process::all_cores()]).arg(std::env::current_exe()?);
        command.args(["work", "--port", &port.to_string(), "--number", &number.to_string()]);
        command.args(["--first", &first.to_string(), "--connections", &connections.to_string()]);
        command.args(["--channels", &channels.to_string()]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("failed to start a load process")?;
        let output = BufReader::new(child.stdout.take().context("stdout is piped")?);
        Ok(Self { child, output })
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        anyhow::ensure!(line == "ready\n", "a load process ended before all its clients were subscribed");
        Ok(())
    }

    fn stop(mut self) -> Result<Told> {
        self.child.stdin.take().context("stdin is piped")?.write_all(b"stop\n")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).context("a load process did not tell what it saw")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Work {
    /// A load process: connects, says `ready`, receives until `stop` comes in, tells what it saw.
    pub(crate) fn run(self) -> Result<()> {
        process::raise_open_files()?;
        let source = 64 + u8::try_from(self.number).context("too many load processes")?;
        let dialect = Peer::Sidecar.dialect();
        let target = Target { port: self.port, path: String::new(), dialect, source };
        let mut fleet = Fleet::connect(target, 0)?;
        let (first, channels) = (self.first, self.channels);
        fleet.add(self.connections, |at| Peer::Sidecar.path(&channel_name((first + at) % channels)))?;
        println!("ready");
        let stopped = Arc::new(AtomicBool::new(false));
        let told_to_stop = Arc::clone(&stopped);
        std::thread::spawn(move || {
            // The end of the input means that the one who started this is gone.
            let _ = std::io::stdin().read_line(&mut String::new());
            told_to_stop.store(true, Ordering::Relaxed);
        });
        let mut tally = Tally::loose();
        while !stopped.load(Ordering::Relaxed) {
            fleet.pump(Some(Duration::from_millis(20)), &mut tally)?;
        }
        let latency = tally.latency.iter_recorded();
        let told = Told {
            deliveries: tally.deliveries(),
            disordered: tally.disordered(),
            closed: fleet.closed() as u64,
            latency: latency.map(|value| (value.value_iterated_to(), value.count_at_value())).collect(),
        };
        println!("{}", serde_json::to_string(&told)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_is_given_to_exactly_one_process() {
        let shape = Shape::of(Duration::ZERO);
        let parts: Vec<usize> = (0..shape.processes).map(|number| shape.part(number)).collect();
        assert_eq!(parts.iter().sum::<usize>(), shape.connections);
        assert!(parts.iter().max().unwrap() - parts.iter().min().unwrap() <= 1);
    }
}
