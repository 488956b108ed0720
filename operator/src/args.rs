//! The command line: one struct per subcommand, each flattening its modules' own.

use clap::{Parser, Subcommand, ValueEnum};

use crate::{controller::build::OperatorConfig, health::HealthArgs, lease::LeaseArgs};

/// The operator of Fanout.
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Reconcile FanoutClusters until told to stop.
    Run(Box<RunArgs>),
    /// Print the CustomResourceDefinition.
    Crd,
}

/// How to run.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Namespaces to watch, separated by commas; by default all of them.
    #[arg(long, env = "FANOUT_WATCH_NAMESPACES", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,
    /// How logs are written.
    #[arg(long, env = "FANOUT_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
    /// Which logs are written, as `info` or `fanout_operator=debug,kube=warn`.
    #[arg(long, env = "FANOUT_LOG", default_value = "info,kube=warn")]
    pub log: String,
    /// What a FanoutCluster gets that does not say otherwise.
    #[command(flatten)]
    pub defaults: DefaultArgs,
    /// The Lease.
    #[command(flatten)]
    pub lease: LeaseArgs,
    /// The HTTP port.
    #[command(flatten)]
    pub health: HealthArgs,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// What a FanoutCluster gets that does not say otherwise.
#[derive(Clone, Debug, clap::Args)]
pub struct DefaultArgs {
    /// Repository of the sidecar's image, without a tag.
    #[arg(long, env = "FANOUT_SIDECAR_REPOSITORY", default_value_t = OperatorConfig::default().sidecar_repository)]
    pub sidecar_repository: String,
    /// Image of the managed Redis.
    #[arg(long, env = "FANOUT_REDIS_IMAGE", default_value_t = OperatorConfig::default().redis_image)]
    pub redis_image: String,
}

// === impl DefaultArgs ===

impl DefaultArgs {
    /// The same for the builders; `namespace` is where the operator runs.
    pub fn config(&self, namespace: &str) -> OperatorConfig {
        let Self { sidecar_repository, redis_image } = self;
        OperatorConfig {
            sidecar_repository: sidecar_repository.clone(),
            redis_image: redis_image.clone(),
            namespace: namespace.to_owned(),
        }
    }
}
