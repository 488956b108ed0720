//! The command line. Each subcommand's own arguments live in its file.

use crate::{dev::DevArgs, helm_test::HelmTestArgs, plan::PlanArgs, restart::RestartArgs};

/// Run, inspect and drive FanoutClusters.
#[derive(Debug, clap::Parser)]
#[command(name = "kubectl-fanout", bin_name = "kubectl fanout", version, about)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Subcommand {
    /// Run a FanoutCluster on this machine, without Kubernetes: its nodes as processes, and a page to try them.
    Dev(DevArgs),
    /// Prove that an installed operator works: make a small FanoutCluster, send a message through it, remove it.
    HelmTest(HelmTestArgs),
    /// Show what the operator would do if a FanoutCluster were applied, or what it is about to do; change nothing.
    Plan(PlanArgs),
    /// Replace every node of a FanoutCluster by one of the same settings, its clients drained first.
    Restart(RestartArgs),
}
