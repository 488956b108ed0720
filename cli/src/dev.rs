//! `kubectl fanout dev`: a FanoutCluster as plain processes of this machine, without Kubernetes.
//!
//! It reads the same YAML that a cluster gets and renders each node's settings by the operator's own code. What
//! is different here is only where things are: ports and files of this machine, a `redis-server` of its own.

mod board;
mod channel;
mod check;
mod cluster;
mod files;
mod playground;
mod ports;
mod printer;
mod probe;
mod process;
mod programs;
mod render;

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use self::{
    cluster::{Cluster, Options},
    ports::PortPlan,
    printer::{Printer, Source},
};
use crate::manifest;

/// How often the file is read again; a save shows up as fast as a person looks at the terminal.
const READ_EVERY: Duration = Duration::from_millis(500);

/// Arguments of `kubectl fanout dev`.
#[derive(Debug, clap::Args)]
pub(crate) struct DevArgs {
    /// File with the FanoutCluster. Changes to the file are applied.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Client port of the first node. Its API and admin ports follow, and the ports of each further node are ten
    /// higher.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Port of the playground page.
    #[arg(long, default_value_t = 7900, value_name = "PORT")]
    playground_port: u16,
    /// Directory with the Secrets that the FanoutCluster refers to: one directory per Secret, with one file per key.
    #[arg(long, value_name = "DIR")]
    secrets: Option<PathBuf>,
    /// Send messages through every node, check that each arrives on all nodes once and in order, and exit.
    #[arg(long)]
    check: bool,
    /// Path of the sidecar executable. Defaults to the one next to this executable or on the PATH.
    #[arg(long, env = "FANOUT_SIDECAR", value_name = "FILE")]
    sidecar: Option<PathBuf>,
}

/// What the playground asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Drain this node and leave it down.
    Stop(u16),
    /// Start this node again.
    Start(u16),
}

/// Runs a FanoutCluster until Ctrl-C, or checks it and ends.
pub(crate) async fn run(args: DevArgs) -> anyhow::Result<()> {
    let manifest = manifest::read(&args.file)?;
    let sidecar = programs::sidecar(args.sidecar.as_deref())?;
    let options = |ports, origins| Options { sidecar, ports, origins, secrets: args.secrets.clone() };
    if args.check {
        return check::run(manifest, options(PortPlan::Free, Vec::new())).await;
    }
    let printer = Printer::stdout();
    let page = playground::bind(args.playground_port).await?;
    let cluster =
        Cluster::start(manifest, options(PortPlan::From(args.port), page.origins()), printer.clone()).await?;
    serve(cluster, page, &args, &printer).await
}

async fn serve(
    mut cluster: Cluster,
    page: playground::Page,
    args: &DevArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let (requests, mut asked) = mpsc::channel(16);
    let url = page.serve(cluster.board().clone(), cluster.facts(), requests);
    cluster.wait_ready().await;
    println!("{}", cluster.overview(printer, &url));

    let mut reread = tokio::time::interval(READ_EVERY);
    let mut text = std::fs::read_to_string(&args.file).unwrap_or_default();
    loop {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            Some(request) = asked.recv() => match request {
                Request::Stop(node) => cluster.set_running(node, false),
                Request::Start(node) => cluster.set_running(node, true),
            },
            _ = reread.tick() => {
                cluster.tidy();
                // Between two writes of an editor the file may be away; the next look finds it.
                let Ok(now) = std::fs::read_to_string(&args.file) else { continue };
                if now != text && !now.trim().is_empty() {
                    text = now;
                    take_over(&mut cluster, args, &text, printer).await;
                }
            }
        }
    }
    printer.line(Source::Dev, "stopping: draining clients; press Ctrl-C again to stop at once");
    cluster.end(false);
    tokio::select! {
        () = cluster.ended() => {}
        _ = interrupt.recv() => { cluster.end(true); cluster.ended().await; }
        _ = terminate.recv() => { cluster.end(true); cluster.ended().await; }
    }
    Ok(())
}

/// Applies a changed file. If it has mistakes, they are reported and nothing changes.
async fn take_over(cluster: &mut Cluster, args: &DevArgs, text: &str, printer: &Printer) {
    let changed = match manifest::parse(&args.file, text) {
        Ok(manifest) => cluster.change(manifest).await.map_err(|error| format!("{error:#}")),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = changed {
        for line in error.lines().chain(["the change was not applied"]) {
            printer.line(Source::Dev, line);
        }
    }
}
