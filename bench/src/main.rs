//! Figures that stand up: the sidecar beside a bare loop that writes the same bytes to the same sockets, and beside
//! its peers, in one run on one machine. Read the ratios; absolute values only give the order of magnitude. The
//! method and its limits are in `bench/README.md`.

#![forbid(unsafe_code)]

mod bare;
mod book;
mod load;
mod measure;
mod neighbours;
mod page;
mod peer;
mod plot;
mod process;
mod server;
mod soak;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, anyhow};
use clap::{Parser, Subcommand, ValueEnum};

use crate::{
    book::{Book, Measure, Row, Target},
    measure::{Bench, Plan},
    peer::{Peer, Places},
    server::Redis,
    soak::Work,
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
    /// Write `benchmarks.md` and its plots from `results.json`.
    Page {
        /// The figures.
        #[arg(long, default_value = "target/bench/results.json")]
        results: PathBuf,
        /// The folder to write to.
        #[arg(long, default_value = "target/bench/page")]
        out: PathBuf,
    },
    /// A load process of the run with 100,000 connections; `run` starts it.
    #[command(hide = true)]
    Work(Work),
    /// The baseline: one thread, one `write` per subscriber and publication.
    Bare {
        /// Port on loopback.
        #[arg(long)]
        port: u16,
        /// Where it tells of itself.
        #[arg(long)]
        folder: PathBuf,
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
    /// Only these measures; what others would have told is missing in the rows.
    #[arg(long, value_delimiter = ',')]
    measures: Option<Vec<Part>>,
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

/// What a run is made of, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Isolated and saturated fan-out.
    FanOut,
    /// Set-up rate and memory.
    Connections,
    /// Latency against load.
    Loads,
    /// CPU against fan-out.
    FanOuts,
    /// What a hot channel, a stuck client and the timing of deliveries cost.
    Neighbours,
    /// 100,000 connections.
    Soak,
}

impl Part {
    fn measure(self, bench: &mut Bench<'_>) -> Result<()> {
        match self {
            Self::FanOut => bench.fan_out(),
            Self::Connections => bench.connections(),
            Self::Loads => bench.loads(),
            Self::FanOuts => bench.fan_outs(),
            Self::Neighbours => bench.neighbours(),
            Self::Soak => bench.soak(),
        }
    }

    /// What the system must permit, asked before the first figure rather than late in the run.
    fn check(self) -> Result<()> {
        match self {
            Self::Neighbours => process::may_go_first().map_err(|error| {
                anyhow!("neighbours cannot be measured (--measures may leave them out): {error:#}")
            }),
            Self::FanOut | Self::Connections | Self::Loads | Self::FanOuts | Self::Soak => Ok(()),
        }
    }

    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Bare { port, folder } => bare::serve(port, &folder),
        Command::Page { results, out } => page::write(&results, &out),
        Command::Work(work) => work.run(),
        Command::Run(run) => run.run(),
    }
}

impl Run {
    fn run(self) -> Result<()> {
        let parts = self.parts();
        parts.iter().try_for_each(|part| part.check())?;
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
        // A round of each, its connections, its curve of latency, four points of fan-out; three of neighbours; the two with 100,000.
        book.expect(peers.len() * (plan.rounds + 1 + 1 + 4) + 3 + 2);
        let mut bench = Bench { plan, places: &places, redis: &redis, peers: &peers, book: &mut book };
        let measured = parts.iter().try_for_each(|part| {
            part.measure(&mut bench).with_context(|| format!("the run ended early: {} failed", part.name()))
        });
        // An hour's figures are not lost by what came after them.
        if let Err(error) = &measured {
            book.remark(&format!("{error:#}"));
        }
        let rows = rows(&book);
        book.finish(if self.quick { "quick" } else { "full" }, &rows, &places, &self.out)?;
        measured
    }

    fn parts(&self) -> Vec<Part> {
        let chosen = |part: &&Part| self.measures.as_ref().is_none_or(|chosen| chosen.contains(part));
        Part::value_variants().iter().filter(chosen).copied().collect()
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
    let peers = Peer::ALL.into_iter().filter(|peer| peer.is_peer());
    for measure in [Measure::PacedCpu, Measure::PacedP99, Measure::HalfP99] {
        rows.extend(peers.clone().map(|peer| book.row(measure, peer, Some(Lower))));
    }
    rows.push(book.row(Measure::IdleBytes, Peer::Bare, Some(AtMost(512.0))));
    rows.push(book.row(Measure::ActiveBytes, Peer::Bare, Some(AtMost(1_024.0))));
    rows.push(book.row(Measure::LeftBytes, Peer::Bare, None));
    let whole =
        |peer| Some(book.median(peer, Measure::IdleBytes)? + book.median(peer, Measure::KernelBytes)?);
    let name = "memory of an idle connection with the kernel's against bare loop".to_owned();
    rows.push(Row::new(name, "B", whole(Peer::Sidecar), whole(Peer::Bare), Some(AtMost(4_812.0))));
    rows.extend(peers.clone().map(|peer| book.row(Measure::IdleBytes, peer, Some(Lower))));
    rows.push(book.row(Measure::Setup, Peer::Bare, None));
    rows.extend(peers.clone().map(|peer| book.row(Measure::Setup, peer, Some(RatioAtLeast(1.5)))));
    rows.extend(peers.map(|peer| book.row(Measure::SetupCpu, peer, None)));
    rows.extend(neighbours::rows(book));
    rows.push(book.row(Measure::SoakLost, Peer::Bare, Some(AtMost(0.0))));
    rows.push(book.row(Measure::SoakClosed, Peer::Bare, Some(AtMost(0.0))));
    rows.push(book.row(Measure::SoakP99, Peer::Bare, None));
    rows.push(book.row(Measure::SoakTurn, Peer::Bare, Some(RatioAtMost(2.0))));
    rows.push(book.row(Measure::SoakLongest, Peer::Bare, None));
    rows.push(book.row(Measure::SoakCpu, Peer::Bare, None));
    for (from, what) in [
        (Measure::FewCpu, "1,000 to 100,000 connections of the same kind"),
        (Measure::PacedCpu, "a channel of 1,000 to 100,000 connections"),
    ] {
        let growth = |peer| Some(book.median(peer, Measure::SoakCpu)? / book.median(peer, from)?);
        let name = format!("growth of CPU per delivery from {what} against bare loop");
        rows.push(Row::new(name, "x", growth(Peer::Sidecar), growth(Peer::Bare), Some(RatioAtMost(1.15))));
    }
    rows.push(book.row(Measure::SoakBytes, Peer::Bare, None));
    rows.push(book.row(Measure::FirstByte, Peer::Bare, None));
    rows.push(book.row(Measure::LastByte, Peer::Bare, Some(RatioAtMost(1.2))));
    rows
}

fn peer_named(name: &str) -> Result<Peer, String> {
    let known = || Peer::ALL.map(|peer| serde_json::to_string(&peer).unwrap_or_default()).join(", ");
    serde_json::from_value(name.into()).map_err(|_| format!("it is none of {}", known()))
}

impl Plan {
    const QUICK: Self = Self {
        subscribers: 1_000,
        idle: 10_000,
        step: Duration::from_secs(2),
        rounds: 2,
        point: Duration::from_millis(1_200),
        soak: Duration::from_secs(30),
        few: Duration::from_secs(6),
    };
    const FULL: Self = Self {
        subscribers: 1_000,
        idle: 18_000,
        step: Duration::from_secs(8),
        rounds: 5,
        point: Duration::from_secs(6),
        soak: Duration::from_secs(300),
        few: Duration::from_secs(30),
    };
}
