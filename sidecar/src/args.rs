//! The command line.

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    time::Duration,
};

use clap::{ArgGroup, Parser, Subcommand, ValueEnum};
use fanout_sidecar::telemetry::LogFormat;

/// A node of a Fanout cluster: WebSocket hub and broker bridge.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve until SIGTERM, which drains; a second one forces. SIGHUP reads the live document again.
    Run(Run),
    /// Look for mistakes in settings, without binding a port. Exit code 64 where there are any.
    Check(Check),
    /// Print the JSON Schema of a settings document, or the OpenAPI description of the server API.
    Schema {
        /// Which one.
        document: SchemaOf,
    },
    /// Drain the node on this machine and return when it is empty: a preStop hook.
    Drain(Drain),
    /// Print docs/protocol.md.
    Protocol,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    /// The boot document: ports, broker and runtime.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// The live document: followed while it changes.
    #[arg(long, value_name = "FILE")]
    pub(crate) live: PathBuf,
    /// Name of this node; the host name without it.
    #[arg(long, env = "FANOUT_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
    /// Host name that has the address of every node, as a headless Service has: by it a node that hears no other one
    /// tells whether it is alone. Nothing is looked up without it.
    #[arg(long, env = "FANOUT_NODES_SERVICE", value_name = "HOST")]
    nodes_service: Option<String>,
    /// Seconds after which this process is killed once it was told to end: a drain ends 10 s before, whatever the live
    /// document says.
    #[arg(long, env = "FANOUT_TERMINATION_GRACE_SECONDS", value_name = "SECONDS")]
    termination_grace_seconds: Option<u32>,
    /// Look of a log line; text on a terminal and JSON elsewhere without it.
    #[arg(long, env = "FANOUT_LOG_FORMAT")]
    log_format: Option<LogFormat>,
}

#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("documents").required(true).multiple(true))]
pub(crate) struct Check {
    /// The boot document.
    #[arg(long, value_name = "FILE", group = "documents")]
    pub(crate) config: Option<PathBuf>,
    /// The live document.
    #[arg(long, value_name = "FILE", group = "documents")]
    pub(crate) live: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum SchemaOf {
    /// Ports, broker and runtime.
    Boot,
    /// What may change while the node runs.
    Live,
    /// The server API.
    Api,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Drain {
    /// Where the node's admin port is.
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
