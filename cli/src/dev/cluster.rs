//! The nodes of one FanoutCluster on this machine and the Redis between them.

use std::{fmt::Write, path::PathBuf, time::Duration};

use anyhow::Context;
use fanout_operator::{api::FanoutCluster, controller::validate};
use sidecar_config::BootSettings;
use tokio::sync::watch;

use super::{
    board::{Board, State},
    channel,
    files::Files,
    playground::Facts,
    ports::{NodePorts, PortPlan, free},
    printer::{Printer, Source},
    probe::Probe,
    process::{Process, Program},
    programs,
    render::{self, Local},
};
use crate::manifest;

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
    /// Nodes that are too many and whose clients are still leaving.
    leaving: Vec<Node>,
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
        let (nodes, leaving) = (Vec::new(), Vec::new());
        let mut cluster = Self { manifest, options, files, redis, nodes, leaving, board, printer, facts };
        if cluster.manifest.spec.redis.external.is_some() {
            cluster.say("a redis-server of this command stands in for redis.external");
        }
        cluster.advise();
        cluster.write_live()?;
        cluster.scale()?;
        Ok(cluster)
    }

    /// What a FanoutCluster would have in its condition `Advisory`.
    fn advise(&self) {
        for advice in validate::advice(&self.manifest) {
            self.say(&format!("advice: {}", advice.message));
        }
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
    /// gets one, node after node. After an error everything is as it was before.
    pub(crate) async fn change(&mut self, manifest: FanoutCluster) -> anyhow::Result<()> {
        manifest::check_change(&self.manifest, &manifest).map_err(anyhow::Error::msg)?;
        self.files.link_secrets(&manifest, self.options.secrets.as_deref())?;
        let old = std::mem::replace(&mut self.manifest, manifest);
        let Err(error) = self.follow(&old).await else { return Ok(()) };
        self.manifest = old;
        match self.go_back().await {
            Ok(()) => Err(error),
            Err(again) => Err(error.context(format!("a part of the change may be in force: {again:#}"))),
        }
    }

    /// Brings everything from where `old` had it to where the manifest wants it. It says so once the steps that fail,
    /// if any does, are done.
    async fn follow(&mut self, old: &FanoutCluster) -> anyhow::Result<()> {
        let local = self.local();
        let hot = local.live(old) != local.live(&self.manifest);
        if hot {
            self.write_live()?;
        }
        self.scale()?;
        if hot {
            self.say("settings changed: the nodes take them over, clients stay");
        }
        if self.manifest.spec.replicas != old.spec.replicas {
            self.say(&format!("replicas: {} → {}", old.spec.replicas, self.manifest.spec.replicas));
        }
        if validate::advice(old) != validate::advice(&self.manifest) {
            self.advise();
        }
        self.roll().await
    }

    /// Undoes what a change that failed has done.
    async fn go_back(&mut self) -> anyhow::Result<()> {
        self.write_live()?;
        self.scale()?;
        self.roll().await
    }

    /// Forgets the nodes that have left.
    pub(crate) fn tidy(&mut self) {
        let Self { leaving, board, .. } = self;
        leaving.retain(|node| {
            let source = Source::Node(node.index);
            let left = board.get(source).state == State::Stopped;
            if left {
                board.remove(source);
            }
            !left
        });
    }

    /// Asks everything to end; [`Cluster::ended`] waits for it. Redis is the last.
    pub(crate) fn end(&self, forced: bool) {
        self.nodes.iter().chain(&self.leaving).for_each(|node| node.process.end(forced));
    }

    /// Waits until everything has ended, nodes that were leaving already included.
    pub(crate) async fn ended(&mut self) {
        for node in self.nodes.iter_mut().chain(&mut self.leaving) {
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

    /// Starts nodes that are missing and drains those that are too many, the last first.
    fn scale(&mut self) -> anyhow::Result<()> {
        let wanted = usize::try_from(self.manifest.spec.replicas).unwrap_or(0);
        while self.nodes.len() > wanted {
            let Some(node) = self.nodes.pop() else { break };
            node.process.set_running(false);
            self.leaving.push(node);
        }
        while self.nodes.len() < wanted {
            let index = u16::try_from(self.nodes.len() + 1).context("too many replicas for one machine")?;
            let node = match self.leaving.iter().position(|node| node.index == index) {
                Some(at) => self.take_back(at),
                None => self.start_node(index)?,
            };
            self.nodes.push(node);
        }
        self.show();
        Ok(())
    }

    /// A node that is leaving holds its ports: it starts again there once its clients have left. It has the boot
    /// settings it had; [`Cluster::roll`] sees whether others are wanted.
    fn take_back(&mut self, at: usize) -> Node {
        let node = self.leaving.swap_remove(at);
        node.process.set_running(true);
        node
    }

    fn start_node(&self, index: u16) -> anyhow::Result<Node> {
        let ports = self.options.ports.node(index)?;
        let boot = self.write_boot(index, ports)?;
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

    fn write_boot(&self, index: u16, ports: NodePorts) -> anyhow::Result<BootSettings> {
        let boot = self.local().boot(&self.manifest, ports);
        self.files.write(&self.files.boot(index), &boot)?;
        Ok(boot)
    }

    /// Gives each node whose boot settings changed a new process, one at a time.
    async fn roll(&mut self) -> anyhow::Result<()> {
        for at in 0..self.nodes.len() {
            let Node { index, ports, ref boot, .. } = self.nodes[at];
            if *boot == self.local().boot(&self.manifest, ports) {
                continue;
            }
            self.say(&format!("node-{index} needs a new process for its changed settings"));
            self.nodes[at].boot = self.write_boot(index, ports)?;
            self.nodes[at].process.restart();
            let source = Source::Node(index);
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tempfile::TempDir;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// A cluster of one node, whose program notes each start and each end, which takes it half a second.
    struct Stage {
        cluster: Cluster,
        printer: Printer,
        directory: TempDir,
        port: u16,
    }

    impl Stage {
        async fn set() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let notes = directory.path().join("notes");
            let script = format!(
                "#!/bin/sh\ntrap 'sleep 0.5; echo end >>{0}; exit 0' TERM\necho start >>{0}\nwhile :; do sleep 0.05; done\n",
                notes.display()
            );
            let sidecar = directory.path().join("sidecar");
            std::fs::write(&sidecar, script).unwrap();
            std::fs::set_permissions(&sidecar, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            let [port] = free().unwrap();
            let options =
                Options { sidecar, ports: PortPlan::From(port), origins: Vec::new(), secrets: None };
            let printer = Printer::keeping();
            let cluster = Cluster::start(manifest("replicas: 1"), options, printer.clone()).await.unwrap();
            let stage = Self { cluster, printer, directory, port };
            stage.noted("start\n").await;
            stage
        }

        fn notes(&self) -> String {
            std::fs::read_to_string(self.directory.path().join("notes")).unwrap_or_default()
        }

        async fn noted(&self, notes: &str) {
            let noted = async {
                while self.notes() != notes {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(PATIENCE, noted)
                .await
                .unwrap_or_else(|_| panic!("noted {:?}", self.notes()));
        }

        async fn left(&self) {
            let reached = self.cluster.board.reaches(Source::Node(1), &[State::Stopped], PATIENCE).await;
            reached.expect("it leaves");
        }

        async fn end(mut self) -> String {
            self.cluster.end(false);
            self.cluster.ended().await;
            self.notes()
        }
    }

    fn manifest(spec: &str) -> FanoutCluster {
        let text = format!(
            "apiVersion: fanout.dev/v1alpha1\nkind: FanoutCluster\nmetadata: {{name: demo}}\n\
             spec: {{redis: {{memory: {{}}}}, {spec}}}\n"
        );
        manifest::parse(Path::new("demo.yaml"), &text).unwrap()
    }

    #[tokio::test]
    async fn a_node_that_is_leaving_when_everything_ends_is_waited_for() {
        let mut stage = Stage::set().await;
        stage.cluster.change(manifest("replicas: 0")).await.unwrap();
        assert_eq!(stage.cluster.nodes().count(), 0);
        assert_eq!(stage.end().await, "start\nend\n");
    }

    #[tokio::test]
    async fn a_node_that_is_leaving_is_taken_back_once_it_has_left() {
        let mut stage = Stage::set().await;
        stage.cluster.change(manifest("replicas: 0")).await.unwrap();
        let draining = stage.cluster.board().reaches(Source::Node(1), &[State::Draining], PATIENCE).await;
        draining.expect("it leaves");
        stage.cluster.tidy();
        stage.cluster.change(manifest("replicas: 1")).await.unwrap();
        stage.noted("start\nend\nstart\n").await;
        assert_eq!(stage.end().await, "start\nend\nstart\nend\n");
    }

    #[tokio::test]
    async fn a_node_that_has_left_is_forgotten() {
        let mut stage = Stage::set().await;
        stage.cluster.change(manifest("replicas: 0")).await.unwrap();
        stage.left().await;
        stage.cluster.tidy();
        assert!(stage.cluster.board.watch().borrow().is_empty() && stage.cluster.leaving.is_empty());
    }

    #[tokio::test]
    async fn bounds_that_contradict_each_other_are_told_when_they_come_and_not_again() {
        let mut stage = Stage::set().await;
        let tight = "replicas: 1, namespaces: [{name: a, slowConsumer: {maxLagBytes: 1024}}]";
        for spec in [tight.to_owned(), format!("{tight}, logLevel: debug")] {
            stage.cluster.change(manifest(&spec)).await.unwrap();
        }
        let lines = stage.printer.kept();
        let advice: Vec<_> = lines.iter().filter(|line| line.contains("advice: ")).collect();
        assert!(
            advice.len() == 1 && advice[0].contains("spec.namespaces[0].slowConsumer.maxLagBytes"),
            "{advice:?}"
        );
        stage.end().await;
    }

    #[tokio::test]
    async fn a_change_that_fails_leaves_everything_as_it_was() {
        let mut stage = Stage::set().await;
        stage.cluster.change(manifest("replicas: 0")).await.unwrap();
        let before = std::fs::read_to_string(stage.cluster.files.live()).unwrap();
        stage.left().await;
        stage.cluster.tidy();
        let taken = std::net::TcpListener::bind(("127.0.0.1", stage.port)).unwrap();
        let printed = stage.printer.kept().len();
        let change = || manifest("replicas: 1, logLevel: debug");
        let error = stage.cluster.change(change()).await.unwrap_err().to_string();
        assert!(error.contains("(the client port of node-1) is in use"), "{error}");
        assert_eq!(stage.cluster.manifest().spec, manifest("replicas: 0").spec);
        assert_eq!(std::fs::read_to_string(stage.cluster.files.live()).unwrap(), before);
        assert_eq!(stage.printer.kept().len(), printed, "nothing is said of what was not done");
        drop(taken);
        stage.cluster.change(change()).await.unwrap();
        stage.noted("start\nend\nstart\n").await;
        stage.end().await;
    }
}
