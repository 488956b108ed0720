//! Figures that stand up: the sidecar beside a bare loop that writes the same bytes to the same sockets, in one
//! run on one machine. Read the ratios; absolute values only give the order of magnitude.

#![forbid(unsafe_code)]

mod bare;
mod load;
mod process;
mod report;
mod server;

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{
    load::{Fleet, Publisher},
    report::{Report, Row},
    server::{Kind, Server},
};

/// Bytes of a publication's payload, as in the measurements that the design rests on.
const PAYLOAD_BYTES: usize = 128;

#[derive(Parser)]
#[command(about = "Measures the sidecar side by side with a bare write loop")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run all measures and write `results.json`.
    Run {
        /// The sidecar binary, a release build.
        #[arg(long, default_value = "target/release/fanout-sidecar")]
        sidecar: PathBuf,
        /// Subscribers of the fan-out rows.
        #[arg(long, default_value_t = 1_000)]
        subscribers: usize,
        /// Idle connections of the memory row; an open-files limit of 20,000 holds 19,000.
        #[arg(long, default_value_t = 10_000)]
        idle: usize,
        /// Seconds of each timed step.
        #[arg(long, default_value_t = 4)]
        seconds: u64,
        /// Interleaved repetitions; the median counts.
        #[arg(long, default_value_t = 3)]
        repeats: usize,
        /// Where the figures go.
        #[arg(long, default_value = "target/bench/results.json")]
        out: PathBuf,
    },
    /// The baseline: one thread, one `write` per subscriber and publication.
    Bare {
        /// Port on loopback.
        #[arg(long)]
        port: u16,
    },
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Bare { port } => bare::serve(port),
        Command::Run { sidecar, subscribers, idle, seconds, repeats, out } => {
            process::raise_open_files()?;
            let step = Duration::from_secs(seconds);
            let mut report = Report::default();
            for round in 1..=repeats {
                for kind in [Kind::Bare, Kind::Sidecar] {
                    eprintln!("round {round} of {repeats}: {kind:?}");
                    measure(kind, &sidecar, subscribers, idle, step, &mut report)?;
                }
            }
            report.finish(&out)
        }
    }
}

/// One fresh process of `kind` for the fan-out rows, another for memory and set-up.
fn measure(
    kind: Kind,
    sidecar: &std::path::Path,
    subscribers: usize,
    idle: usize,
    step: Duration,
    report: &mut Report,
) -> Result<()> {
    let server = Server::start(kind, sidecar)?;
    let mut fleet = Fleet::connect(server.port, subscribers)?;
    let mut publisher = Publisher::connect(server.port, PAYLOAD_BYTES)?;
    let paced = fleet.run(&mut publisher, &server, step, Some(20))?;
    report.add(kind, Row::PacedCpu, paced.cpu_us_per_delivery());
    report.add(kind, Row::PacedP99, paced.latency_ms(0.99));
    let saturated = fleet.run(&mut publisher, &server, step, None)?;
    report.add(kind, Row::Saturated, saturated.deliveries_per_second());
    drop((fleet, publisher, server));

    let server = Server::start(kind, sidecar)?;
    let before = server.anonymous_bytes()?;
    let started = std::time::Instant::now();
    let fleet = Fleet::connect(server.port, idle)?;
    report.add(kind, Row::Setup, idle as f64 / started.elapsed().as_secs_f64());
    std::thread::sleep(Duration::from_secs(3));
    report.add(
        kind,
        Row::IdleBytes,
        server.anonymous_bytes()?.saturating_sub(before) as f64 / fleet.len() as f64,
    );
    Ok(())
}
