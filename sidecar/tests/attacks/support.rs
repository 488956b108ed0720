//! A sidecar process and clients that may do anything: plain sockets, bytes as they come.

use std::{
    fs,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

/// Nothing takes longer, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(30);
const MIB: u64 = 1_024 * 1_024;

/// Who may do all, with no limit that an attack would meet before the one it is about.
const NAMESPACES: &str = "
namespaces:
- name: default
  publish: allowed
  subscribe: allowed
  rateLimit: {publishesPerSecond: 1000000, burst: 1000000}
- name: oldest
  publish: allowed
  subscribe: allowed
  slowConsumer: {policy: dropOldest, maxLagBytes: 1048576}
  rateLimit: {publishesPerSecond: 1000000, burst: 1000000}
- name: wide
  publish: allowed
  subscribe: allowed
  slowConsumer: {maxLagBytes: 33554432}
- name: many
  publish: allowed
  subscribe: allowed
  slowConsumer: {maxLagBytes: 33554432, maxLagMessages: 1000000}
  rateLimit: {publishesPerSecond: 1000000, burst: 1000000}
- name: limited
  publish: allowed
  subscribe: allowed
  rateLimit: {publishesPerSecond: 100, burst: 100}
";

/// A sidecar process.
pub(crate) struct Sidecar {
    child: Child,
    client: SocketAddr,
    admin: SocketAddr,
    api: SocketAddr,
    _directory: TempDir,
}

/// A WebSocket client that sees frames.
pub(crate) struct Client<S = TcpStream> {
    pub(crate) socket: S,
    received: Vec<u8>,
}

// === impl Sidecar ===

impl Sidecar {
    /// Starts one whose live document has this `hub` section.
    pub(crate) fn start(hub: &str) -> Self {
        Self::start_with("shards: 1", "127.0.0.1", hub)
    }

    /// The same on all addresses of this machine.
    pub(crate) fn start_everywhere(hub: &str) -> Self {
        Self::start_with("shards: 1", "0.0.0.0", hub)
    }

    /// The same with so many MiB of memory, as in a container with that limit.
    pub(crate) fn start_within(mib: u64, hub: &str) -> Self {
        Self::start_with(&format!("shards: 1, memoryBytes: {}", mib * MIB), "127.0.0.1", hub)
    }

    fn start_with(runtime: &str, client: &str, hub: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let any = "'127.0.0.1:0'";
        let boot = format!(
            "broker: {{memory: {{}}}}\nlisten: {{client: '{client}:0', api: {any}, admin: {any}}}\nruntime: {{{runtime}}}\n"
        );
        fs::write(at("boot.yaml"), boot).unwrap();
        let mut live: Value = serde_yaml::from_str(&format!("hub: {hub}{NAMESPACES}")).unwrap();
        for limit in ["messagesPerSecond", "bytesPerSecond"] {
            live["hub"]["limits"][limit] = 100_000_000.into();
        }
        fs::write(at("live.yaml"), live.to_string()).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_fanout-sidecar"))
            .args(["run", "--log-format", "json", "--config"])
            .arg(at("boot.yaml"))
            .arg("--live")
            .arg(at("live.yaml"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let [client, admin, api] = addresses(&mut child);
        Self { child, client, admin, api, _directory: directory }
    }

    /// Bytes that the process holds of its own, as MiB.
    pub(crate) fn memory(&self) -> u64 {
        self.memory_kib() * 1_024 / MIB
    }

    /// The same as KiB.
    pub(crate) fn memory_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// What the process has used of all cores.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        // USER_HZ is 100 on every Linux.
        Duration::from_millis(ticks * 10)
    }

    /// Where clients connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.client
    }

    pub(crate) fn connect(&self) -> TcpStream {
        Self::connect_to(self.client)
    }

    /// To the port of probes and metrics.
    pub(crate) fn connect_admin(&self) -> TcpStream {
        Self::connect_to(self.admin)
    }

    fn connect_to(address: SocketAddr) -> TcpStream {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.set_write_timeout(Some(SOON)).unwrap();
        socket
    }

    /// From this address of the machine itself.
    pub(crate) fn connect_from(&self, last: u8) -> TcpStream {
        Self::connect_from_to(last, self.client)
    }

    /// To the port for backends.
    pub(crate) fn connect_api(&self, last: u8) -> TcpStream {
        Self::connect_from_to(last, self.api)
    }

    fn connect_from_to(last: u8, address: SocketAddr) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, last], 0)).into()).unwrap();
        socket.connect(&address.into()).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.into()
    }

    /// A client whose kernel takes little before it says that it is full.
    pub(crate) fn connect_narrow(&self) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        socket.connect(&self.client.into()).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.into()
    }

    /// An event stream that nobody reads.
    pub(crate) fn stuck_events(mut socket: impl Write, channel: &str) -> impl Write {
        socket.write_all(format!("GET /sse/{channel} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).unwrap();
        socket
    }

    pub(crate) fn bare(&self, channel: &str) -> Client {
        Client::shake(self.connect(), &format!("/ws/{channel}"), "fanout.bare").unwrap()
    }

    pub(crate) fn framed(&self, path: &str) -> Client {
        let mut client = Client::shake(self.connect(), path, "fanout.v1").unwrap();
        assert!(client.text().starts_with(r#"{"connected":"#));
        client
    }

    /// How many sockets the process holds.
    pub(crate) fn sockets(&self) -> usize {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        // One that is closed meanwhile is none.
        let targets = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
    }

    /// A metric's value, by its name and, where it has some, its labels as they are written.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let mut socket = TcpStream::connect(self.admin).unwrap();
        socket.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        let mut page = String::new();
        socket.read_to_string(&mut page).unwrap();
        let ends: &[char] = if name.contains('{') { &[' '] } else { &[' ', '{'] };
        let line = page.lines().find(|line| line.split(ends).next() == Some(name));
        let line = line.unwrap_or_else(|| panic!("{name} is no metric"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64
    }

    pub(crate) fn until_metric(&self, name: &str, value: u64) {
        until(&format!("{name} {value}"), || self.metric(name) == value);
    }

    /// Waits until so much memory has gone back. The allocator gives back what was free for some seconds, by a thread that
    /// a busy machine starves.
    pub(crate) fn until_memory(&self, most: u64) {
        until_by(Instant::now() + 3 * SOON, &format!("at most {most} MiB"), || self.memory() <= most);
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let ended = self.child.try_wait();
        // A test that fails already says so itself.
        if !thread::panicking() {
            assert!(matches!(ended, Ok(None)), "the sidecar is still there");
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads where it listens, and goes on reading so that it never waits for us.
fn addresses(child: &mut Child) -> [SocketAddr; 3] {
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (mut seen, mut found) = (Vec::new(), None);
    for line in lines.by_ref() {
        let line = line.unwrap();
        let value: Value = serde_json::from_str(&line).unwrap_or_default();
        if value["message"] == "node is listening" {
            found =
                Some(["client", "admin", "api"].map(|port| value[port].as_str().unwrap().parse().unwrap()));
            break;
        }
        seen.push(line);
    }
    thread::spawn(move || {
        lines.map_while(Result::ok).filter(|line| line.contains("panic")).for_each(|line| eprintln!("{line}"))
    });
    found.unwrap_or_else(|| panic!("it did not start: {seen:?}"))
}

/// As many descriptors as the system gives; the sidecars that come later have them too.
pub(crate) fn raise_open_files(needed: u64) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    assert!(
        limit.current.is_none_or(|limit| limit >= needed),
        "needs {needed} open files: ulimit -Hn {needed}"
    );
}

pub(crate) fn until(what: &str, check: impl FnMut() -> bool) {
    until_by(Instant::now() + SOON, what, check);
}

fn until_by(end: Instant, what: &str, mut check: impl FnMut() -> bool) {
    while !check() {
        assert!(Instant::now() < end, "not in time: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

// === impl Client ===

impl<S: Read + Write> Client<S> {
    /// Asks for a WebSocket; the status if it is refused.
    pub(crate) fn shake(socket: S, path: &str, subprotocol: &str) -> Result<Self, u16> {
        Self::shake_with(socket, path, &format!("sec-websocket-protocol: {subprotocol}\r\n"))
    }

    /// The same with these header lines.
    pub(crate) fn shake_with(mut socket: S, path: &str, lines: &str) -> Result<Self, u16> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{lines}\r\n"
        );
        socket.write_all(request.as_bytes()).unwrap();
        let mut client = Self { socket, received: Vec::new() };
        loop {
            if let Some(end) = client.received.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let status = std::str::from_utf8(&client.received[9..12]).unwrap().parse().unwrap();
                client.received.drain(..end + 4);
                return if status == 101 { Ok(client) } else { Err(status) };
            }
            assert!(client.read(), "an answer");
        }
    }

    /// Reads once; whether there is more to come.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 16 * 1_024];
        match self.socket.read(&mut buffer) {
            Ok(0) => false,
            Ok(bytes) => {
                self.received.extend_from_slice(&buffer[..bytes]);
                true
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("nothing came: {error}"),
        }
    }

    pub(crate) fn send(&mut self, first: u8, payload: &[u8]) {
        self.socket.write_all(&frame(first, payload)).unwrap();
    }

    pub(crate) fn send_text(&mut self, text: &str) {
        self.send(0x81, text.as_bytes());
    }

    /// The next frame, its first byte and its payload; `None` at the end.
    pub(crate) fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some((header, length)) = self.header()
                && self.received.len() >= header + length
            {
                let first = self.received[0];
                let payload = self.received[header..header + length].to_vec();
                self.received.drain(..header + length);
                return Some((first, payload));
            }
            if !self.read() {
                return None;
            }
        }
    }

    fn header(&self) -> Option<(usize, usize)> {
        match self.received[..] {
            [_, short @ 0..=125, ..] => Some((2, usize::from(short))),
            [_, 126, high, low, ..] => Some((4, usize::from(u16::from_be_bytes([high, low])))),
            [_, 127, ..] => {
                let length = self.received.get(2..10)?.try_into().unwrap();
                Some((10, u64::from_be_bytes(length) as usize))
            }
            _ => None,
        }
    }

    /// The next message, its first byte and its payload; pings are answered on the way.
    pub(crate) fn message(&mut self) -> (u8, Vec<u8>) {
        loop {
            match self.frame().expect("the connection is open") {
                (0x89, payload) => self.send(0x8A, &payload),
                (0x8A, _) => {}
                (0x88, payload) => panic!("closed: {}", String::from_utf8_lossy(&payload)),
                message => return message,
            }
        }
    }

    pub(crate) fn text(&mut self) -> String {
        String::from_utf8(self.message().1).unwrap()
    }

    /// The code by which the server ends it; what comes before is passed over. 0 where it ends without one.
    pub(crate) fn closed(&mut self) -> u16 {
        while let Some((first, payload)) = self.frame() {
            if first == 0x88 {
                return u16::from_be_bytes([payload[0], payload[1]]);
            }
        }
        0
    }

    /// How long a message takes to come back.
    pub(crate) fn echo(&mut self, text: &str) -> Duration {
        let began = Instant::now();
        self.send_text(text);
        while self.text() != text {}
        began.elapsed()
    }
}

/// A client's frame, masked with zeros.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        0..=125 => out.push(0x80 | payload.len() as u8),
        126..=0xFFFF => {
            out.push(0xFE);
            out.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        }
        _ => {
            out.push(0xFF);
            out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
    out
}

/// Writes until the other side takes no more or has ended; how many bytes it took.
pub(crate) fn flood(socket: &TcpStream, bytes: &[u8], most: usize) -> usize {
    let mut sent = 0;
    let mut socket: &TcpStream = socket;
    socket.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    while sent < most {
        match socket.write(&bytes[..bytes.len().min(most - sent)]) {
            Ok(moved) => sent += moved,
            Err(_) => break,
        }
    }
    sent
}
