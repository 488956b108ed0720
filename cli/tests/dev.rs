//! `kubectl fanout dev` as a person at a terminal uses it.

mod support {
    pub(super) mod dev;
}

use std::{
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use rustix::process::{Signal, kill_process};
use support::dev::Dev;
use tempfile::TempDir;
use tokio::process::Command;

/// A manifest in a file that a test may change.
struct Manifest {
    directory: TempDir,
}

impl Manifest {
    fn new(spec: &str) -> Self {
        let manifest = Self { directory: tempfile::tempdir().expect("a directory") };
        manifest.write(spec);
        manifest
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("cluster.yaml")
    }

    fn write(&self, spec: &str) {
        let head = "apiVersion: fanout.dev/v1alpha1\nkind: FanoutCluster\nmetadata: {name: demo}\nspec:\n";
        std::fs::write(self.path(), format!("{head}{spec}")).expect("a file");
    }
}

const OPEN: &str = "  namespaces: [{name: default, publish: allowed, subscribe: allowed}]\n";

fn replicas(count: u16) -> String {
    format!("  replicas: {count}\n{OPEN}")
}

/// Runs `dev` with these arguments until it ends.
async fn dev(file: &Path, arguments: &[&str], path: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-fanout"));
    command.arg("dev").arg("-f").arg(file).args(arguments).kill_on_drop(true);
    if let Some(path) = path {
        command.env("PATH", path);
    }
    let ended = tokio::time::timeout(Duration::from_secs(60), command.output()).await;
    ended.expect("it ends").expect("it runs")
}

/// Waits until the node with this admin port is ready, or is not.
async fn ready(dev: &Dev, admin: u16, wanted: bool) {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    for _ in 0..400 {
        let reply = client.get(format!("http://127.0.0.1:{admin}/ready")).send().await;
        if reply.is_ok_and(|reply| reply.status().is_success()) == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the node at {admin} is not as wanted ({wanted}):\n{}", dev.lines().join("\n"));
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn the_check_proves_delivery_from_every_node_to_every_node() {
    let output = dev(&Manifest::new(&replicas(3)).path(), &["--check"], None).await;
    assert!(output.status.success(), "{}", errors(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    for row in ["HTTP on node-1", "HTTP on node-2", "HTTP on node-3", "redis-cli PUBLISH"] {
        let row =
            text.lines().find(|line| line.starts_with(row)).unwrap_or_else(|| panic!("no {row} in {text}"));
        assert_eq!(row.matches(" ms").count(), 3, "{row}");
    }
}

#[tokio::test]
async fn one_node_without_redis_needs_no_redis() {
    let manifest = Manifest::new(&format!("  replicas: 1\n  redis: {{memory: {{}}}}\n{OPEN}"));
    let output = dev(&manifest.path(), &["--check"], Some("/nonexistent")).await;
    assert!(output.status.success(), "{}", errors(&output));
}

#[tokio::test]
async fn a_check_without_an_open_channel_fails_and_says_what_to_do() {
    let manifest = Manifest::new("  namespaces: [{name: default, subscribe: allowed}]\n");
    let output = dev(&manifest.path(), &["--check"], None).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        errors(&output).contains("give spec.namespaces one with `publish: allowed`"),
        "{}",
        errors(&output)
    );
}

#[tokio::test]
async fn mistakes_are_told_with_line_and_field_before_anything_starts() {
    let manifest = Manifest::new("  replica: 2\n");
    let output = dev(&manifest.path(), &[], None).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("line 5: spec.replica: unknown field"), "{}", errors(&output));
}

#[tokio::test]
async fn a_missing_redis_server_is_told_with_the_command_that_installs_it() {
    let output = dev(&Manifest::new(&replicas(2)).path(), &["--check"], Some("/nonexistent")).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("apt-get install redis-server"), "{}", errors(&output));
}

#[tokio::test]
async fn a_changed_file_scales_and_reloads_and_a_mistake_in_it_changes_nothing() {
    let manifest = Manifest::new(&replicas(2));
    let dev = Dev::start(&manifest.path());
    dev.url().await;
    let third = dev.port() + 22;

    manifest.write(&replicas(3));
    dev.line("replicas: 2 → 3").await;
    ready(&dev, third, true).await;

    manifest.write("  replicas: lots\n");
    dev.line("spec.replicas").await;
    dev.line("the change was not applied").await;
    ready(&dev, third, true).await;

    manifest.write(&format!("{}  logLevel: debug\n", replicas(3)));
    dev.line("settings changed: the nodes take them over, clients stay").await;

    manifest.write(&format!("{}  logLevel: debug\n", replicas(1)));
    dev.line("replicas: 3 → 1").await;
    ready(&dev, third, false).await;
    ready(&dev, dev.port() + 2, true).await;
    assert!(dev.interrupt().await, "Ctrl-C ends it well");
}

#[tokio::test]
async fn a_certificate_of_the_cluster_is_left_out_here_and_stays_so_when_the_file_changes() {
    let spec = |replicas: u16, level: &str| {
        format!(
            "  replicas: {replicas}\n  logLevel: {level}\n  hub: {{tls: {{secretRef: {{name: chat-tls}}}}}}\n{OPEN}"
        )
    };
    let manifest = Manifest::new(&spec(1, "info"));
    let dev = Dev::start(&manifest.path());
    dev.url().await;
    manifest.write(&spec(2, "debug"));
    dev.line("replicas: 1 → 2").await;
    ready(&dev, dev.port() + 12, true).await;
    let refused = dev.lines().into_iter().find(|line| line.contains("refused") || line.contains("certFile"));
    assert_eq!(refused, None);
    assert!(dev.interrupt().await, "Ctrl-C ends it well");
}

#[tokio::test]
async fn a_node_that_dies_is_reported_and_started_again() {
    let manifest = Manifest::new(&replicas(2));
    let dev = Dev::start(&manifest.path());
    dev.url().await;
    let first = dev.node_pid(2).expect("node-2 runs");
    kill_process(first, Signal::KILL).expect("it runs");
    dev.line("node-2 | ended by itself (signal: 9 (SIGKILL)); starts again in 500 ms").await;
    for _ in 0..400 {
        if dev.node_pid(2).is_some_and(|pid| pid != first) {
            assert!(dev.interrupt().await, "Ctrl-C ends it well");
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("node-2 was not started again:\n{}", dev.lines().join("\n"));
}

#[tokio::test]
async fn a_port_in_use_is_told_with_the_flag_that_moves_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output =
        dev(&Manifest::new(&replicas(1)).path(), &["--port", &port, "--playground-port", "0"], None).await;
    assert_eq!(output.status.code(), Some(1));
    let told = format!("port {port} (the client port of node-1) is in use");
    assert!(errors(&output).contains(&told), "{}", errors(&output));
}
