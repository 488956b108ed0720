//! `kubectl fanout`: a file for each subcommand. It runs the operator's own code where it can, so that what it
//! shows is what a cluster would do.

#![forbid(unsafe_code)]

mod args;
mod client;
mod dev;
mod helm_test;
mod manifest;
mod plan;
mod restart;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Subcommand};

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let Args { command } = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let done = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            match command {
                Subcommand::Dev(args) => dev::run(args).await?,
                Subcommand::HelmTest(args) => helm_test::run(args).await?,
                Subcommand::Plan(args) => return plan::run(args).await,
                Subcommand::Restart(args) => restart::run(args).await?,
            }
            Ok(ExitCode::SUCCESS)
        })
    });
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
