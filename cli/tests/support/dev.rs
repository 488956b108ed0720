//! A running `kubectl fanout dev`.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

/// A running `kubectl fanout dev`, killed on drop.
pub(crate) struct Dev {
    process: Child,
    lines: Arc<Mutex<Vec<String>>>,
    ports: Ports,
}

impl Dev {
    /// Starts it on ports that are free.
    pub(crate) fn start(file: &Path) -> Self {
        let ports = Ports::take();
        let mut process = Command::new(env!("CARGO_BIN_EXE_kubectl-fanout"))
            .args(["dev", "--playground-port", "0", "--port", &ports.first.to_string(), "-f"])
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("kubectl-fanout starts");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let mut output = BufReader::new(process.stdout.take().expect("its output")).lines();
        let seen = lines.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = output.next_line().await {
                seen.lock().expect("no panic").push(line);
            }
        });
        Self { process, lines, ports }
    }

    /// The first line with `text`, once it is printed.
    pub(crate) async fn line(&self, text: &str) -> String {
        for _ in 0..600 {
            if let Some(line) = self.lines().into_iter().find(|line| line.contains(text)) {
                return line;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{text:?} was not printed, but:\n{}", self.lines().join("\n"));
    }

    /// Process id of one of its nodes.
    #[allow(dead_code, reason = "not every test needs it")]
    pub(crate) fn node_pid(&self, node: u16) -> Option<Pid> {
        let own = format!("\nPPid:\t{}\n", self.process.id()?);
        let name = format!("--node-name\0node-{node}\0");
        let pids = std::fs::read_dir("/proc")
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let mut found = pids.filter(|pid: &i32| {
            let read =
                |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            read("status").contains(&own) && read("cmdline").contains(&name)
        });
        found.next().and_then(Pid::from_raw)
    }

    /// Client port of its first node.
    #[allow(dead_code, reason = "not every test needs it")]
    pub(crate) fn port(&self) -> u16 {
        self.ports.first
    }

    /// URL of its playground.
    pub(crate) async fn url(&self) -> String {
        self.line("playground: ").await.replace("playground: ", "").trim().to_owned()
    }

    /// Everything printed so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("no panic").clone()
    }

    /// Ends it as Ctrl-C would; whether it ended well.
    pub(crate) async fn interrupt(mut self) -> bool {
        let pid = self.process.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        kill_process(pid.expect("it runs"), Signal::INT).expect("it runs");
        let ended = tokio::time::timeout(Duration::from_secs(30), self.process.wait()).await;
        ended.expect("it ends").expect("it ran").success()
    }
}

/// A hundred ports in a row, out of those that the kernel gives to no connection that somebody opens. Whoever holds the
/// last of them has them all: tests run side by side, in processes and in threads.
#[derive(Debug)]
struct Ports {
    first: u16,
    _last: TcpListener,
}

impl Ports {
    fn take() -> Self {
        let range =
            std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").expect("Linux tells it");
        let ephemeral: Vec<u16> = range.split_whitespace().map(|end| end.parse().expect("a port")).collect();
        // Above them first, for `dev --check` looks below them.
        let above = (ephemeral[1]..u16::MAX - 100).skip(1).step_by(100);
        let below = (10_000..ephemeral[0].saturating_sub(100)).step_by(100);
        above.chain(below).find_map(Self::at).expect("a hundred free ports")
    }

    fn at(first: u16) -> Option<Self> {
        let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok();
        let ports = Self { first, _last: free(first + 99)? };
        (first..first + 60).all(|port| free(port).is_some()).then_some(ports)
    }
}
