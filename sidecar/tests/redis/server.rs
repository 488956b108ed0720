//! A real redis-server of a test's own: a free port of the loopback, a temporary directory, gone with the test.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use rand::RngExt;
use rustix::process::{Pid, Signal, kill_process};
use sidecar_config::RedisBroker;
use tempfile::TempDir;

pub(crate) const PREFIX: &str = "test.site";

pub(crate) struct Server {
    pub(crate) directory: TempDir,
    pub(crate) port: u16,
    child: Child,
}

impl Server {
    /// Plain and without a password, as `redis-server` starts by default.
    pub(crate) fn start() -> Self {
        Self::prepared(tempfile::tempdir().expect("a temporary directory"), &[])
    }

    /// With these further lines of configuration; it runs in `directory`, which holds the files that they name.
    pub(crate) fn prepared(directory: TempDir, lines: &[&str]) -> Self {
        let port = free_port();
        let tls = lines.iter().any(|line| line.starts_with("tls-"));
        let ports = if tls { format!("port 0\ntls-port {port}") } else { format!("port {port}") };
        let dir = directory.path().display();
        let fixed =
            format!("{ports}\nbind 127.0.0.1\ndir {dir}\nsave \"\"\nappendonly no\nlogfile redis.log");
        fs::write(directory.path().join("redis.conf"), format!("{fixed}\n{}\n", lines.join("\n"))).unwrap();
        let child = launch(&directory);
        let server = Self { directory, port, child };
        server.wait();
        server
    }

    /// What a node's boot document says of it.
    pub(crate) fn settings(&self) -> RedisBroker {
        RedisBroker {
            address: format!("localhost:{}", self.port),
            database: 0,
            channel_prefix: PREFIX.to_owned(),
            username_file: None,
            password_file: None,
            tls: None,
        }
    }

    /// A file in its directory, written.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Dies at once, as by a power cut.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Comes back where it was.
    pub(crate) fn restart(&mut self) {
        self.child = launch(&self.directory);
        self.wait();
    }

    /// Stands still; its sockets stay open.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Goes on.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Runs `redis-cli` on it and gives what it prints.
    pub(crate) fn cli(&self, arguments: &[&str]) -> String {
        let run = Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(arguments).output();
        let output = run.expect(INSTALL);
        assert!(output.status.success(), "redis-cli {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts `redis-cli` on it, for a command that is not answered soon.
    pub(crate) fn client(&self, arguments: &[&str]) -> Child {
        let mut client = Command::new("redis-cli");
        client.args(["-p", &self.port.to_string()]).args(arguments);
        client.stdout(Stdio::null()).spawn().expect(INSTALL)
    }

    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            let log = || fs::read_to_string(self.directory.path().join("redis.log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "redis-server does not listen:\n{}", log());
            sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const INSTALL: &str = "redis-server and redis-cli are needed: apt-get install -y redis-server";

fn launch(directory: &TempDir) -> Child {
    Command::new("redis-server")
        .arg(directory.path().join("redis.conf"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect(INSTALL)
}

/// A port that nobody has now, and that the kernel gives to no connection that somebody opens: it stays free while the
/// server that it is for starts, or is away.
pub(crate) fn free_port() -> u16 {
    static TRIED: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(rand::rng().random()));
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").expect("Linux tells it");
    let first: u16 = range.split_whitespace().next().and_then(|port| port.parse().ok()).expect("two ports");
    // Below it, or anywhere on a machine that leaves nothing below.
    let (low, count) = if first > 11_000 { (10_000, first - 10_000) } else { (10_000, 50_000) };
    let tried = std::iter::repeat_with(|| low + TRIED.fetch_add(1, Ordering::Relaxed) % count);
    let mut free =
        tried.take(count.into()).filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok());
    free.next().expect("a free port")
}
