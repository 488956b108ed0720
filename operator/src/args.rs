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
    /// Class of the FanoutClusters to manage, by their label `fanout.dev/operator-class`; by default those without one.
    #[arg(long, env = "FANOUT_OPERATOR_CLASS", value_parser = class)]
    pub operator_class: Option<String>,
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
    /// Whether new pods name the user they run as. False where the platform chooses one and refuses others, as OpenShift.
    #[arg(long, env = "FANOUT_FIXED_UIDS", default_value_t = true, action = clap::ArgAction::Set)]
    pub fixed_uids: bool,
}

/// A class: it is the value of a label, and part of the name of a Lease. Empty, as a template may leave it, is none.
fn class(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.len() > 63 || text.starts_with('-') || text.ends_with('-') || !text.chars().all(allowed) {
        return Err("a class is at most 63 of a-z, 0-9 and '-', which neither begins nor ends it".to_owned());
    }
    Ok(text.to_owned())
}

// === impl RunArgs ===

impl RunArgs {
    /// The same for the controller and its builders.
    pub fn config(&self) -> OperatorConfig {
        let DefaultArgs { sidecar_repository, redis_image, fixed_uids } = &self.defaults;
        let LeaseArgs { lease_name, lease_namespace, identity: _ } = &self.lease;
        OperatorConfig {
            sidecar_repository: sidecar_repository.clone(),
            redis_image: redis_image.clone(),
            fixed_uids: *fixed_uids,
            namespace: lease_namespace.clone(),
            class: self.operator_class.clone().filter(|class| !class.is_empty()),
            installation: format!("{lease_namespace}/{lease_name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(args: &[&str]) -> Result<OperatorConfig, clap::Error> {
        match Args::try_parse_from([&["fanout-operator", "run"], args].concat())?.command {
            Command::Run(args) => Ok(args.config()),
            Command::Crd => panic!("it is told to run"),
        }
    }

    #[test]
    fn an_operator_has_no_class_unless_it_is_given_one_that_a_lease_can_bear() {
        assert_eq!(config(&[]).expect("good").class, None);
        assert_eq!(config(&["--operator-class="]).expect("as a template leaves it").class, None);
        assert_eq!(config(&["--operator-class=blue-2"]).expect("good").class.as_deref(), Some("blue-2"));
        for bad in ["Blue", "a.b", "-a", "a-", &"a".repeat(64)] {
            assert!(config(&[&format!("--operator-class={bad}")]).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_installation_is_named_by_its_lease() {
        let config = config(&["--lease-namespace=ops", "--lease-name=two"]).expect("good");
        assert_eq!((config.installation.as_str(), config.namespace.as_str()), ("ops/two", "ops"));
    }
}
