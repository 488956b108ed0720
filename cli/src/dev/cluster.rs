//! The nodes of one FanoutCluster on this machine and the Redis between them.

use std::{fmt::Write, path::PathBuf, time::Duration};

use anyhow::Context;
use fanout_operator::api::FanoutCluster;
use sidecar_config::BootSettings;
use tokio::sync::watch;

use super::{
    board::{Board, State},
    channel,
    files::Files,
    manifest,
    playground::Facts,
    ports::{NodePorts, PortPlan, free},
    printer::{Printer, Source},
    probe::Probe,
    process::{Process, Program},
    programs,
    render::{self, Local},
};

/// Time until a Redis on this machine answers; it takes a tenth of a second.
const REDIS_PATIENCE: Duration = Duration::from_secs(10);
/// Time until a node is ready.
const NODE_PATIENCE: Duration = Duration::from_secs(20);
/// Time to end on top of `drain.timeoutSeconds`.
const GRACE: Duration = Duration::from_secs(5);

/// What a cluster is started with besides its manifest.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) sidecar: PathBuf,
    pub(crate) ports: PortPlan,
    /// Origins of the playground.
    pub(crate) origins: Vec<String>,
    pub(crate) secrets: Option<PathBuf>,
}

/// The nodes of one FanoutCluster on this machine.
#[derive(Debug)]
pub(crate) struct Cluster {
    manifest: FanoutCluster,
    options: Options,
    files: Files,
    redis: Option<Redis>,
    nodes: Vec<Node>,
    board: Board,
    printer: Printer,
    facts: watch::Sender<Facts>,
}

#[derive(Debug)]
struct Redis {
    port: u16,
    process: Process,
}

#[derive(Debug)]
struct Node {
    index: u16,
    ports: NodePorts,
    boot: BootSettings,
    process: Process,
}

// === impl Cluster ===

impl Cluster {
    /// Starts Redis, waits for it, and starts the nodes.
    pub(crate) async fn start(
        manifest: FanoutCluster,
        options: Options,
        printer: Printer,
    ) -> anyhow::Result<Self> {
        let board = Board::new();
        let files = Files::create(&manifest)?;
        files.link_secrets(&manifest, options.secrets.as_deref())?;
        let redis = match render::needs_redis(&manifest) {
            true => Some(Redis::start(&files, &board, &printer).await?),
            false => None,
        };
        let facts = watch::Sender::new(Facts::default());
        let mut cluster = Self { manifest, options, files, redis, nodes: Vec::new(), board, printer, facts };
        if cluster.manifest.spec.redis.external.is_some() {
            cluster.say("a redis-server of this command stands in for redis.external");
        }
        cluster.write_live()?;
        cluster.scale()?;
        Ok(cluster)
    }

    pub(crate) fn board(&self) -> &Board {
        &self.board
    }

    /// What the playground shows, kept up to date.
    pub(crate) fn facts(&self) -> watch::Receiver<Facts> {
        self.facts.subscribe()
    }

    pub(crate) fn manifest(&self) -> &FanoutCluster {
        &self.manifest
    }

    pub(crate) fn api_key(&self) -> &str {
        self.files.api_key()
    }

    /// Port of the Redis between the nodes.
    pub(crate) fn redis_port(&self) -> Option<u16> {
        self.redis.as_ref().map(|redis| redis.port)
    }

    /// Number and ports of each node.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (u16, NodePorts)> {
        self.nodes.iter().map(|node| (node.index, node.ports))
    }

    /// Waits until every node is ready, or refused its settings, or a while has passed.
    pub(crate) async fn wait_ready(&self) -> bool {
        let mut ready = true;
        for node in &self.nodes {
            let source = Source::Node(node.index);
            let reached = self.board.reaches(source, &[State::Ready, State::Failed], NODE_PATIENCE).await;
            ready &= reached.is_some_and(|status| status.state == State::Ready);
        }
        ready
    }

    /// Drains a node, or starts it again.
    pub(crate) fn set_running(&self, index: u16, run: bool) {
        if let Some(node) = self.nodes.iter().find(|node| node.index == index) {
            self.say(&if run { format!("starting node-{index}") } else { format!("draining node-{index}") });
            node.process.set_running(run);
        }
    }

    /// Takes over a changed manifest: hot settings are reloaded, `replicas` scales, and what needs a new process
    /// gets one, node after node.
    pub(crate) async fn change(&mut self, manifest: FanoutCluster) -> anyhow::Result<()> {
        manifest::check_change(&self.manifest, &manifest).map_err(anyhow::Error::msg)?;
        self.files.link_secrets(&manifest, self.options.secrets.as_deref())?;
        let local = self.local();
        let old = std::mem::replace(&mut self.manifest, manifest);
        if local.live(&old) != local.live(&self.manifest) {
            self.write_live()?;
            self.say("settings changed: the nodes take them over, clients stay");
        }
        self.roll().await?;
        if self.manifest.spec.replicas != old.spec.replicas {
            self.say(&format!("replicas: {} → {}", old.spec.replicas, self.manifest.spec.replicas));
        }
        self.scale()
    }

    /// Asks everything to end; [`Cluster::ended`] waits for it. Redis is the last.
    pub(crate) fn end(&self, forced: bool) {
        self.nodes.iter().for_each(|node| node.process.end(forced));
    }

    /// Waits until everything has ended.
    pub(crate) async fn ended(&mut self) {
        for node in &mut self.nodes {
            node.process.ended().await;
        }
        if let Some(redis) = &mut self.redis {
            redis.process.end(false);
            redis.process.ended().await;
        }
    }

    /// The table that a person sees once everything runs.
    pub(crate) fn overview(&self, printer: &Printer, url: &str) -> String {
        let mut text =
            format!("\n{:<10}{:<10}{:<26}{:<24}{}\n", "", "state", "clients", "server API", "admin");
        for node in &self.nodes {
            let NodePorts { client, api, admin } = node.ports;
            let state = format!("{:?}", self.board.get(Source::Node(node.index)).state).to_lowercase();
            let _ = writeln!(
                text,
                "{:<10}{state:<10}{:<26}{:<24}http://127.0.0.1:{admin}",
                format!("node-{}", node.index),
                format!("ws://127.0.0.1:{client}"),
                format!("http://127.0.0.1:{api}"),
            );
        }
        if let Some(Redis { port, .. }) = self.redis {
            let _ = writeln!(text, "{:<10}{:<10}redis://127.0.0.1:{port}", "redis", "ready");
        }
        if let Some(channel) = channel::open(&self.manifest) {
            let _ = writeln!(text, "\npublish to the channel {channel}:");
            for command in self.commands(&channel) {
                let _ = writeln!(text, "  {command}");
            }
        }
        let _ = write!(text, "\nplayground: {}\n", printer.bold(url));
        text
    }

    /// Commands that publish to `channel`, for a terminal.
    fn commands(&self, channel: &str) -> Vec<String> {
        let api = self.nodes.first().map(|Node { ports: NodePorts { api, .. }, .. }| {
            format!(
                "curl -H 'X-API-Key: {}' -H 'Content-Type: application/json' -d '{{\"channel\":\"{channel}\",\"data\":\"hello over HTTP\"}}' http://127.0.0.1:{api}/api/publish",
                self.api_key(),
            )
        });
        let redis = self.redis.as_ref().map(|Redis { port, .. }| {
            format!(
                "redis-cli -p {port} PUBLISH {}:{channel} 'hello from redis-cli'",
                self.manifest.channel_prefix()
            )
        });
        redis.into_iter().chain(api).collect()
    }

    /// Starts nodes that are missing and ends those that are too many, the last first.
    fn scale(&mut self) -> anyhow::Result<()> {
        let wanted = usize::try_from(self.manifest.spec.replicas).unwrap_or(0);
        while self.nodes.len() > wanted {
            let Some(mut node) = self.nodes.pop() else { break };
            node.process.end(false);
            let board = self.board.clone();
            tokio::spawn(async move {
                node.process.ended().await;
                board.remove(Source::Node(node.index));
            });
        }
        while self.nodes.len() < wanted {
            let index = u16::try_from(self.nodes.len() + 1).context("too many replicas for one machine")?;
            let node = self.start_node(index)?;
            self.nodes.push(node);
        }
        self.show();
        Ok(())
    }

    fn start_node(&self, index: u16) -> anyhow::Result<Node> {
        let ports = self.options.ports.node(index)?;
        let boot = self.local().boot(&self.manifest, ports);
        self.files.write(&self.files.boot(index), &boot)?;
        let program = Program {
            source: Source::Node(index),
            path: self.options.sidecar.clone(),
            args: vec![
                "run".into(),
                "--config".into(),
                self.files.boot(index).into(),
                "--live".into(),
                self.files.live().into(),
                "--node-name".into(),
                format!("node-{index}").into(),
                "--log-format".into(),
                "text".into(),
            ],
            probe: Probe::Node { admin: ports.admin },
            grace: render::drain_timeout(&self.manifest) + GRACE,
        };
        let process = Process::start(program, self.board.clone(), self.printer.clone());
        Ok(Node { index, ports, boot, process })
    }

    /// Gives each node whose boot settings changed a new process, one at a time.
    async fn roll(&mut self) -> anyhow::Result<()> {
        let local = self.local();
        for at in 0..self.nodes.len() {
            let Node { index, ports, boot, process } = &mut self.nodes[at];
            let wanted = local.boot(&self.manifest, *ports);
            if *boot == wanted {
                continue;
            }
            self.printer
                .line(Source::Dev, &format!("node-{index} needs a new process for its changed settings"));
            self.files.write(&self.files.boot(*index), &wanted)?;
            *boot = wanted;
            process.restart();
            let source = Source::Node(*index);
            self.board.reaches(source, &[State::Draining], GRACE).await;
            self.board.reaches(source, &[State::Ready, State::Failed], NODE_PATIENCE).await;
        }
        Ok(())
    }

    fn write_live(&self) -> anyhow::Result<()> {
        self.files.write(&self.files.live(), &self.local().live(&self.manifest))
    }

    fn local(&self) -> Local {
        Local {
            redis: self.redis_port(),
            secrets: self.files.secrets(),
            origins: self.options.origins.clone(),
        }
    }

    fn show(&self) {
        let channel = channel::open(&self.manifest);
        let commands = channel.as_deref().map(|channel| self.commands(channel)).unwrap_or_default();
        self.facts.send_replace(Facts {
            name: self.manifest.name().to_owned(),
            channel,
            redis: self.redis.is_some(),
            commands,
            ports: self.nodes().map(|(index, ports)| (index, ports.client)).collect(),
        });
    }

    fn say(&self, text: &str) {
        self.printer.line(Source::Dev, text);
    }
}

// === impl Redis ===

impl Redis {
    async fn start(files: &Files, board: &Board, printer: &Printer) -> anyhow::Result<Self> {
        let [port] = free()?;
        let text = [
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--loglevel",
            "warning",
            "--dir",
        ]
        .map(Into::into);
        let program = Program {
            source: Source::Redis,
            path: programs::redis_server()?,
            args: text.into_iter().chain([files.redis().into()]).collect(),
            probe: Probe::Redis { port },
            grace: GRACE,
        };
        let process = Process::start(program, board.clone(), printer.clone());
        let reached = board.reaches(Source::Redis, &[State::Ready], REDIS_PATIENCE).await;
        reached
            .with_context(|| format!("redis-server did not answer on port {port}: see its lines above"))?;
        Ok(Self { port, process })
    }
}
