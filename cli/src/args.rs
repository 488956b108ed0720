//! The command line. Each subcommand's own arguments live in its file.

use crate::{dev::DevArgs, helm_test::HelmTestArgs, plan::PlanArgs, restart::RestartArgs};

/// Run, inspect and manage FanoutClusters.
#[derive(Debug, clap::Parser)]
#[command(name = "kubectl-fanout", bin_name = "kubectl fanout", version, about)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Subcommand {
    /// Run a FanoutCluster on this machine without Kubernetes, with its nodes as processes and a playground page.
    Dev(DevArgs),
    /// Verify an installed operator: create a small FanoutCluster, send a message through it and delete it.
    HelmTest(HelmTestArgs),
    /// Show what the operator would do if a FanoutCluster were applied, or what it is about to do, without changing
    /// anything.
    Plan(PlanArgs),
    /// Replace every node of a FanoutCluster with a new one of the same settings, draining its clients first.
    Restart(RestartArgs),
}
