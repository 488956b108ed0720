//! The operator's process: logs, one HTTP port, the Lease, and the controller while this process leads.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use fanout_operator::{
    api_client,
    args::{Args, Command, LogFormat, RunArgs},
    controller::{self, Shared},
    events::Events,
    health::{self, Readiness},
    lease::{Lease, Timing},
    metrics::Metrics,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

/// Time for reconciles under way after a signal; the kubelet gives thirty seconds in all.
const GRACE: std::time::Duration = std::time::Duration::from_secs(10);

fn main() -> ExitCode {
    let ended = match Args::parse().command {
        Command::Run(args) => run(&args),
        Command::Crd => {
            print!("{}", fanout_operator::api::crd::yaml());
            Ok(())
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("fanout-operator: {failure:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(args: &RunArgs) -> anyhow::Result<()> {
    start_logs(args.log_format, &args.log)?;
    let stop = stop_on_signal()?;
    let client = api_client::connect()
        .await
        .context("failed to find the configuration of the Kubernetes API server")?;
    let (metrics, readiness) = (Metrics::new(), Readiness::default());
    let ended = CancellationToken::new();
    // Standing by is being ready; the leader is not until its watches are in step.
    let port =
        tokio::spawn(health::serve(args.health.clone(), metrics.clone(), readiness.clone(), ended.clone()));
    let mut lease = Lease::new(client.clone(), &args.lease, Timing::default());
    let work = async {
        tokio::select! {
            () = lease.acquire() => {}
            () = stop.cancelled() => return Ok(()),
        }
        metrics.leading.set(1);
        let shared = Shared {
            events: Events::new(client.clone(), lease.identity()),
            config: args.config(),
            claim: lease.claim(),
            client,
            metrics,
            readiness,
        };
        lead(lease, shared, &args.watch_namespaces, stop).await
    };
    tokio::select! {
        served = port => served?.context("failed to serve the HTTP port")?,
        worked = work => worked?,
    }
    ended.cancel();
    Ok(())
}

/// Reconciles while the Lease is ours. Losing it ends the process at once, and with it every write under way.
async fn lead(
    mut lease: Lease,
    shared: Shared,
    namespaces: &[String],
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let controller = async {
        let work = controller::run(shared, namespaces, stop.clone());
        tokio::pin!(work);
        tokio::select! {
            () = &mut work => return,
            () = stop.cancelled() => info!("stopping, waiting for running reconciles"),
        }
        if tokio::time::timeout(GRACE, work).await.is_err() {
            error!("reconciles took longer than {} s and were aborted", GRACE.as_secs());
        }
    };
    tokio::select! {
        lost = lease.keep() => {
            error!(%lost, "no longer leading");
            anyhow::bail!("no longer leading: {lost}");
        }
        () = controller => {}
    }
    lease.release().await;
    Ok(())
}

fn start_logs(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).context("--log is not a filter such as `info,kube=warn`")?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter);
    match format {
        LogFormat::Json => logs.json().flatten_event(true).init(),
        LogFormat::Text => logs.init(),
    }
    Ok(())
}

/// Cancelled by SIGTERM or SIGINT.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let signalled = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        signalled.cancel();
    });
    Ok(stop)
}
