//! Starts what is measured, pinned to the first core, and the Redis beside it on the others.

use std::{
    fs::File,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::{
    bare,
    load::{Fleet, Target, publish::Publisher},
    peer::{Peer, Places},
    process,
};

/// Bytes of a publication's payload, as in the measurements that the design rests on.
pub(crate) const PAYLOAD_BYTES: usize = 128;

/// A running process; ends with its value.
pub(crate) struct Server {
    peer: Peer,
    redis: u16,
    /// Where clients connect, on loopback.
    port: u16,
    child: Child,
    folder: TempDir,
}

/// A running Redis; ends with its value.
pub(crate) struct Redis {
    pub(crate) port: u16,
    child: Child,
    _folder: TempDir,
}

impl Server {
    /// Starts a server on the first core and waits until it upgrades a client.
    pub(crate) fn start(peer: Peer, places: &Places) -> Result<Self> {
        Self::start_on("0", peer, places)
    }

    /// The same on cores of the caller's choice.
    pub(crate) fn start_on(cores: &str, peer: Peer, places: &Places) -> Result<Self> {
        let folder = TempDir::new()?;
        let port = free_port()?;
        let command = peer.command(places, folder.path(), port)?;
        let log = File::create(folder.path().join("log"))?;
        let child = pinned(cores, &command).stdout(Stdio::null()).stderr(log).spawn().with_context(|| {
            format!("failed to start {}: is `taskset` (util-linux) installed?", peer.label())
        })?;
        let mut server = Self { peer, redis: places.redis, port, child, folder };
        wait_until_it_listens(&mut server.child, port)
            .and_then(|()| server.wait_until_it_upgrades())
            .with_context(|| format!("{} does not run: {}", peer.label(), server.log()))?;
        Ok(server)
    }

    /// One that listens may still be on its way to Redis.
    fn wait_until_it_upgrades(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            match Fleet::connect(self.target(1), 1) {
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
                Ok(_) => return Ok(()),
            }
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Clients for the one channel of the rows.
    pub(crate) fn fleet(&self, count: usize) -> Result<Fleet> {
        Fleet::connect(self.target(1), count)
            .with_context(|| format!("clients of {}: {}", self.peer.label(), self.log()))
    }

    /// The one channel of the rows, for clients whose addresses begin with 127.`source`.
    pub(crate) fn target(&self, source: u8) -> Target {
        Target { port: self.port, path: self.peer.path("bench"), dialect: self.peer.dialect(), source }
    }

    pub(crate) fn publisher(&self) -> Result<Publisher> {
        let feed = self.peer.feed(self.port, self.redis);
        Publisher::connect(&feed, self.peer.channel(), PAYLOAD_BYTES)
    }

    /// CPU time used so far, in nanoseconds.
    pub(crate) fn cpu_nanos(&self) -> Result<u64> {
        process::cpu_nanos(self.child.id())
    }

    /// Anonymous resident memory, in bytes.
    pub(crate) fn anonymous_bytes(&self) -> Result<u64> {
        process::anonymous_bytes(self.child.id())
    }

    /// The longest turn of its loops since it started; of a sidecar, of the last half minute at least.
    pub(crate) fn longest_turn(&self) -> Result<Duration> {
        let read = |name| std::fs::read_to_string(self.folder.path().join(name));
        if self.peer == Peer::Bare {
            // It begins to tell after a second.
            let micros = read(bare::LONGEST_TURN).unwrap_or_default().parse().unwrap_or(0);
            return Ok(Duration::from_micros(micros));
        }
        let boot = read("boot.yaml")?;
        let admin = boot.split("admin: '").nth(1).and_then(|rest| rest.split('\'').next());
        let admin = admin.context("a sidecar has an admin port")?;
        let mut socket = TcpStream::connect(admin)?;
        socket.write_all(b"GET /metrics HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
        let mut page = String::new();
        socket.read_to_string(&mut page)?;
        let turns = page.lines().filter(|line| line.starts_with("fanout_shard_longest_turn_seconds{"));
        let seconds = turns.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(Duration::from_secs_f64(seconds.fold(0.0, f64::max)))
    }

    /// The last that it said.
    pub(crate) fn log(&self) -> String {
        let text = std::fs::read(self.folder.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(500)..]).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.child, self.peer == Peer::Nchan);
    }
}

impl Redis {
    /// Starts one without persistence, on the cores that servers do not use.
    pub(crate) fn start() -> Result<Self> {
        let folder = TempDir::new()?;
        let port = free_port()?;
        let program = if in_path("redis-server") { "redis-server" } else { "valkey-server" };
        let mut command = Command::new(program);
        command.args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ]);
        // A subscriber that is behind is what the saturated rows are about; Redis shall not cut it off.
        command.args(["--client-output-buffer-limit", "pubsub 0 0 0", "--dir"]).arg(folder.path());
        let mut child = pinned(&process::load_cores(), &command)
            .stdout(Stdio::null())
            .spawn()
            .context("failed to start redis-server or valkey-server: is one installed?")?;
        wait_until_it_listens(&mut child, port).context("Redis does not run")?;
        Ok(Self { port, child, _folder: folder })
    }

    pub(crate) fn cpu_nanos(&self) -> u64 {
        process::cpu_nanos(self.child.id()).unwrap_or(0)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        end(&mut self.child, false);
    }
}

/// The same command on chosen cores.
fn pinned(cores: &str, command: &Command) -> Command {
    let mut pinned = Command::new("taskset");
    pinned.args(["--cpu-list", cores]).arg(command.get_program()).args(command.get_args());
    // A Go or Node runtime counts the cores that it may use; the number of threads follows.
    pinned.stdin(Stdio::null());
    pinned
}

fn wait_until_it_listens(child: &mut Child, port: u16) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(15);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if let Some(status) = child.try_wait()? {
            bail!("it ended at once: {status}");
        }
        if Instant::now() > deadline {
            bail!("nothing listens on port {port} after 15 s");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Ends a process; one with workers is asked, so that it ends them too.
fn end(child: &mut Child, ask: bool) {
    if ask && let Some(pid) = rustix::process::Pid::from_raw(child.id() as i32) {
        // It may have ended by itself; either way it is gone afterwards.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| Path::new(&folder).join(program).exists())
}

/// A port outside the range from which clients' ports are taken, so that no client takes a server's.
pub(crate) fn free_port() -> Result<u16> {
    (20_000..32_000)
        .map(|port| port + (std::process::id() % 500) as u16)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok() && !recently_given(*port))
        .context("no port is free between 20,000 and 32,500")
}

/// Each port is given once in a run: a server that ended may still have connections on its own.
fn recently_given(port: u16) -> bool {
    use std::sync::atomic::{AtomicU16, Ordering};
    static LAST: AtomicU16 = AtomicU16::new(0);
    let given = port <= LAST.load(Ordering::Relaxed);
    if !given {
        LAST.store(port, Ordering::Relaxed);
    }
    given
}
