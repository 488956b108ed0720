//! A running `kubectl fanout dev`.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
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
    port: u16,
}

impl Dev {
    /// Starts it on ports that are free.
    pub(crate) fn start(file: &Path) -> Self {
        let port = free_range();
        let mut process = Command::new(env!("CARGO_BIN_EXE_kubectl-fanout"))
            .args(["dev", "--playground-port", "0", "--port", &port.to_string(), "-f"])
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
        Self { process, lines, port }
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
        self.port
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

/// A port from which on a hundred are free.
fn free_range() -> u16 {
    let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    // Tests run side by side, each in a process of its own or in a thread of one: both count.
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let turn = TAKEN.fetch_add(1, Ordering::Relaxed);
    let start = 20_000 + (u16::try_from(std::process::id() % 200).expect("small") + 11 * turn) % 200 * 100;
    (start..50_000).step_by(100).find(|first| (*first..first + 60).all(free)).expect("a hundred free ports")
}
