//! The command line.

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    time::Duration,
};

use clap::{ArgGroup, Parser, Subcommand, ValueEnum};
use fanout_sidecar::telemetry::LogFormat;

/// Node of a Fanout cluster: WebSocket hub and broker bridge.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the node. SIGTERM drains it, a second SIGTERM stops it at once, and SIGHUP reloads the live document.
    Run(Run),
    /// Validate settings documents without binding a port. Exits with code 64 if there are mistakes.
    Check(Check),
    /// Print the JSON Schema of a settings document, or the OpenAPI description of the server API.
    Schema {
        /// Document to describe.
        document: SchemaOf,
    },
    /// Drain the node on this machine and return when it has no clients left. Intended as a preStop hook.
    Drain(Drain),
    /// Print docs/protocol.md.
    Protocol,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    /// Boot document: ports, broker and runtime.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Live document, which is reloaded when it changes.
    #[arg(long, value_name = "FILE")]
    pub(crate) live: PathBuf,
    /// Name of this node. Defaults to the host name.
    #[arg(long, env = "FANOUT_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
    /// Host name that resolves to the addresses of all nodes, such as that of a headless Service. A node that receives
    /// no messages from other nodes uses it to find out whether it is alone. If unset, nothing is looked up.
    #[arg(long, env = "FANOUT_NODES_SERVICE", value_name = "HOST")]
    nodes_service: Option<String>,
    /// Seconds between the termination signal and the kill of this process. A drain ends 10 s earlier, regardless of
    /// the live document.
    #[arg(long, env = "FANOUT_TERMINATION_GRACE_SECONDS", value_name = "SECONDS")]
    termination_grace_seconds: Option<u32>,
    /// Format of log lines. Defaults to text on a terminal and JSON otherwise.
    #[arg(long, env = "FANOUT_LOG_FORMAT")]
    log_format: Option<LogFormat>,
}

#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("documents").required(true).multiple(true))]
pub(crate) struct Check {
    /// Boot document.
    #[arg(long, value_name = "FILE", group = "documents")]
    pub(crate) config: Option<PathBuf>,
    /// Live document.
    #[arg(long, value_name = "FILE", group = "documents")]
    pub(crate) live: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum SchemaOf {
    /// Boot document: ports, broker and runtime.
    Boot,
    /// Live document: settings that can change while the node runs.
    Live,
    /// Server API.
    Api,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Drain {
    /// Address of the node's admin port.
    #[arg(long, default_value = "127.0.0.1:8002", value_name = "HOST:PORT")]
    pub(crate) admin: String,
}

impl Run {
    pub(crate) fn node_name(&self) -> String {
        let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        self.node_name.clone().filter(|name| !name.is_empty()).unwrap_or_else(host)
    }

    pub(crate) fn nodes_service(&self) -> Option<String> {
        self.nodes_service.clone().filter(|host| !host.is_empty())
    }

    pub(crate) fn grace(&self) -> Option<Duration> {
        self.termination_grace_seconds.map(|seconds| Duration::from_secs(seconds.into()))
    }

    pub(crate) fn log_format(&self) -> LogFormat {
        let usual = if io::stderr().is_terminal() { LogFormat::Text } else { LogFormat::Json };
        self.log_format.unwrap_or(usual)
    }
}
