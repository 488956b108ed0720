//! Figures that stand up: the sidecar beside a bare loop that writes the same bytes to the same sockets, and beside
//! its peers, in one run on one machine. Read the ratios; absolute values only give the order of magnitude. The
//! method and its limits are in `bench/README.md`.

#![forbid(unsafe_code)]

mod bare;
mod book;
mod load;
mod measure;
mod peer;
mod process;
mod server;

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{
    book::{Book, Measure, Row, Target},
    measure::{Bench, Plan},
    peer::{Peer, Places},
    server::Redis,
};

#[derive(Parser)]
#[command(about = "Measures the sidecar side by side with a bare write loop and with its peers")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run all measures and write `results.json`.
    Run(Run),
    /// The baseline: one thread, one `write` per subscriber and publication.
    Bare {
        /// Port on loopback.
        #[arg(long)]
        port: u16,
    },
}

#[derive(clap::Args)]
struct Run {
    /// The same rows, shorter.
    #[arg(long)]
    quick: bool,
    /// Only these servers, by name; the bare loop and the sidecar always.
    #[arg(long, value_delimiter = ',', value_parser = peer_named)]
    only: Option<Vec<Peer>>,
    /// The sidecar binary, a release build.
    #[arg(long, default_value = "target/release/fanout-sidecar")]
    sidecar: PathBuf,
    /// Where the peers' sources are.
    #[arg(long, default_value = "bench/peers")]
    peers: PathBuf,
    /// Where the peers' binaries are.
    #[arg(long, default_value = "target/bench/peers")]
    peer_binaries: PathBuf,
    /// Where the figures go.
    #[arg(long, default_value = "target/bench/results.json")]
    out: PathBuf,
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Bare { port } => bare::serve(port),
        Command::Run(run) => run.run(),
    }
}

impl Run {
    fn run(self) -> Result<()> {
        process::raise_open_files()?;
        let redis = Redis::start()?;
        let places = Places {
            sidecar: self.sidecar,
            sources: std::fs::canonicalize(&self.peers).unwrap_or(self.peers),
            binaries: self.peer_binaries,
            redis: redis.port,
        };
        process::keep_off_the_first_core()?;
        let plan = if self.quick { Plan::QUICK } else { Plan::FULL };
        let wanted = |peer: &Peer| {
            matches!(peer, Peer::Bare | Peer::Sidecar)
                || self.only.as_ref().is_none_or(|only| only.contains(peer))
        };
        let mut book = Book::new();
        let mut peers = Vec::new();
        for peer in Peer::ALL.into_iter().filter(wanted) {
            match peer.absent(&places) {
                Some(reason) => book.remark(&format!("{} is not measured: {reason}", peer.label())),
                None => peers.push(peer),
            }
        }
        book.expect(peers.len() * (plan.rounds + 1));
        let mut bench = Bench { plan, places: &places, redis: &redis, peers: &peers, book: &mut book };
        bench.fan_out()?;
        bench.connections()?;
        let rows = rows(&book);
        book.finish(if self.quick { "quick" } else { "full" }, &rows, &places, &self.out)
    }
}

/// The rows that the figures are judged by.
fn rows(book: &Book) -> Vec<Row> {
    use Target::{AtMost, Lower, RatioAtLeast, RatioAtMost};
    let mut rows = vec![
        book.row(Measure::PacedCpu, Peer::Bare, Some(RatioAtMost(1.15))),
        book.row(Measure::PacedP99, Peer::Bare, None),
        book.row(Measure::Saturated, Peer::Bare, Some(RatioAtLeast(15.0))),
    ];
    let faster = [
        (Peer::Centrifuge, 3.0),
        (Peer::GoHub, 15.0),
        (Peer::Socketioxide, 6.0),
        (Peer::Nchan, 20.0),
        (Peer::SocketIo, 30.0),
    ];
    rows.extend(faster.map(|(peer, bound)| book.row(Measure::Saturated, peer, Some(RatioAtLeast(bound)))));
    rows.push(book.row(Measure::Saturated, Peer::Ws, None));
    let peers = Peer::ALL.into_iter().filter(|peer| !matches!(peer, Peer::Bare | Peer::Sidecar));
    for measure in [Measure::PacedCpu, Measure::PacedP99] {
        rows.extend(peers.clone().map(|peer| book.row(measure, peer, Some(Lower))));
    }
    rows.push(book.row(Measure::IdleBytes, Peer::Bare, Some(AtMost(512.0))));
    rows.push(book.row(Measure::ActiveBytes, Peer::Bare, Some(AtMost(1_024.0))));
    let whole =
        |peer| Some(book.median(peer, Measure::IdleBytes)? + book.median(peer, Measure::KernelBytes)?);
    let name = "memory of an idle connection with the kernel's against bare loop".to_owned();
    rows.push(Row::new(name, "B", whole(Peer::Sidecar), whole(Peer::Bare), Some(AtMost(4_812.0))));
    rows.extend(peers.clone().map(|peer| book.row(Measure::IdleBytes, peer, Some(Lower))));
    rows.push(book.row(Measure::Setup, Peer::Bare, None));
    rows.extend(peers.map(|peer| book.row(Measure::Setup, peer, Some(RatioAtLeast(1.5)))));
    rows
}

fn peer_named(name: &str) -> Result<Peer, String> {
    let known = || Peer::ALL.map(|peer| serde_json::to_string(&peer).unwrap_or_default()).join(", ");
    serde_json::from_value(name.into()).map_err(|_| format!("it is none of {}", known()))
}

impl Plan {
    const QUICK: Self = Self { subscribers: 1_000, idle: 10_000, step: Duration::from_secs(3), rounds: 2 };
    const FULL: Self = Self { subscribers: 1_000, idle: 18_000, step: Duration::from_secs(8), rounds: 5 };
}
