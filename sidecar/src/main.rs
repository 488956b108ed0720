//! `fanout-sidecar`: the node of a Fanout cluster.
//!
//! Telemetry → settings → node → signals → drain. Exit codes: 0 a normal end, 1 a failure, 64 settings that cannot
//! be used, told before any port is bound.

#![forbid(unsafe_code)]

mod allocator;
mod args;
mod drain_client;
mod protocol_doc;

use std::{panic, process::ExitCode, sync::Arc};

use anyhow::{Context, Result};
use clap::Parser;
use fanout_sidecar::{
    api,
    app::{App, Options},
    config::{Config, ConfigError, LiveFile, load_boot},
    telemetry::LogControl,
};
use sidecar_config::{BootSettings, LiveSettings, schema};
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
};

use self::{
    allocator::Jemalloc,
    args::{Args, Check, Command, Run, SchemaOf},
};

/// `EX_USAGE` of sysexits.h: what was asked for cannot be done.
const BAD_SETTINGS: u8 = 64;

/// Threads for all that may wait: one for the bridge and one for whoever asks meanwhile.
const CONTROL_THREADS: usize = 2;

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Run(run) => self::run(&run),
        Command::Check(check) => self::check(&check),
        Command::Schema { document } => print_schema(document),
        Command::Drain(drain) => drain_client::drain(&drain.admin),
        Command::Protocol => protocol_doc::print(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<ConfigError>() => {
            eprintln!("{error}");
            ExitCode::from(BAD_SETTINGS)
        }
        Err(error) => {
            eprintln!("fanout-sidecar: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Run) -> Result<()> {
    let config = Config::load(&args.config, &args.live)?;
    let (log, _written) = LogControl::start(args.log_format(), config.live.settings.log_level);
    panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a thread panicked")));
    let control = runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .context("failed to start threads")?;
    control.block_on(async {
        let allocator = Arc::new(Jemalloc::sampling().await);
        let options = Options {
            name: args.node_name(),
            log,
            bus: None,
            allocator: Some(allocator),
            nodes_service: args.nodes_service(),
            grace: args.grace(),
        };
        serve(config, options).await
    })
}

async fn serve(config: Config, options: Options) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut app = App::start(config, options).await?;
    let mut leaving = false;
    loop {
        let drain = app.drain().clone();
        tokio::select! {
            Some(()) = terminate.recv() => leave(&app, &mut leaving),
            Some(()) = interrupt.recv() => leave(&app, &mut leaving),
            Some(()) = hang_up.recv() => app.reload(),
            // A drain that was asked for over the admin port leaves the process there, empty and not ready: its
            // container would only be started again.
            () = drain.drained(), if leaving => break,
            death = app.died() => {
                tracing::error!(%death, "an essential part of the node ended unexpectedly, exiting");
                return Err(death.into());
            }
        }
    }
    app.stop().await;
    tracing::info!("node stopped");
    Ok(())
}

/// The first signal drains, the second forces.
fn leave(app: &App, leaving: &mut bool) {
    if std::mem::replace(leaving, true) {
        tracing::warn!("second signal received, closing remaining connections");
        app.force();
    } else {
        app.begin_drain();
    }
}

fn check(args: &Check) -> Result<()> {
    let mut mistakes = Vec::new();
    if let Some(boot) = &args.config {
        match load_boot(boot) {
            Ok(loaded) => {
                loaded.warnings().iter().for_each(|it| eprintln!("{}: warning: {it}", boot.display()))
            }
            Err(error) => mistakes.extend(error.0),
        }
    }
    if let Some(live) = &args.live {
        match LiveFile::new(live).load() {
            Ok(loaded) => {
                loaded.warnings.iter().for_each(|it| eprintln!("{}: warning: {it}", live.display()))
            }
            Err(error) => mistakes.extend(error.0),
        }
    }
    if !mistakes.is_empty() {
        return Err(ConfigError(mistakes).into());
    }
    println!("settings are good");
    Ok(())
}

fn print_schema(document: SchemaOf) -> Result<()> {
    let schema = match document {
        SchemaOf::Boot => schema::<BootSettings>(),
        SchemaOf::Live => schema::<LiveSettings>(),
        SchemaOf::Api => api::description(),
    };
    println!("{}", serde_json::to_string_pretty(&schema)?);
    Ok(())
}
