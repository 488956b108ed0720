//! The command line: one struct per subcommand, each flattening its modules' own.

use clap::{Parser, Subcommand, ValueEnum};

use crate::{controller::build::OperatorConfig, health::HealthArgs, lease::LeaseArgs};

/// Kubernetes operator for Fanout.
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true)]
pub struct Args {
    /// Command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// Command to run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the operator until it receives a termination signal.
    Run(Box<RunArgs>),
    /// Print the CustomResourceDefinition.
    Crd,
}

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Namespaces to watch, separated by commas. Defaults to all namespaces.
    #[arg(long, env = "FANOUT_WATCH_NAMESPACES", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,
    /// Class of the FanoutClusters to manage, matched against their label `fanout.dev/operator-class`. Defaults to
    /// FanoutClusters without a class.
    #[arg(long, env = "FANOUT_OPERATOR_CLASS", value_parser = class)]
    pub operator_class: Option<String>,
    /// Log format.
    #[arg(long, env = "FANOUT_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
    /// Log filter, such as `info` or `fanout_operator=debug,kube=warn`.
    #[arg(long, env = "FANOUT_LOG", default_value = "info,kube=warn")]
    pub log: String,
    /// Defaults for FanoutClusters.
    #[command(flatten)]
    pub defaults: DefaultArgs,
    /// Lease of the operator.
    #[command(flatten)]
    pub lease: LeaseArgs,
    /// HTTP port of the operator.
    #[command(flatten)]
    pub health: HealthArgs,
}

/// Log format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// Human-readable text.
    Text,
}

/// Defaults for FanoutClusters.
#[derive(Clone, Debug, clap::Args)]
pub struct DefaultArgs {
    /// Image repository of the sidecar, without a tag.
    #[arg(long, env = "FANOUT_SIDECAR_REPOSITORY", default_value_t = OperatorConfig::default().sidecar_repository)]
    pub sidecar_repository: String,
    /// Image of the managed Redis.
    #[arg(long, env = "FANOUT_REDIS_IMAGE", default_value_t = OperatorConfig::default().redis_image)]
    pub redis_image: String,
    /// Set the user ID of new pods explicitly. Set to `false` on platforms that assign user IDs and reject others, such
    /// as OpenShift.
    #[arg(long, env = "FANOUT_FIXED_UIDS", default_value_t = true, action = clap::ArgAction::Set)]
    pub fixed_uids: bool,
}

/// Parses a class, which is the value of a label and part of the name of a Lease. An empty value, as a template may
/// leave it, means no class.
fn class(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.len() > 63 || text.starts_with('-') || text.ends_with('-') || !text.chars().all(allowed) {
        return Err(
            "a class must be at most 63 of a-z, 0-9 and '-', and must not start or end with '-'".to_owned()
        );
    }
    Ok(text.to_owned())
}

// === impl RunArgs ===

impl RunArgs {
    /// Returns the configuration of the controller and its builders.
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
