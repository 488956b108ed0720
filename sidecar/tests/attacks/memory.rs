//! What a connection costs, against the budget that is written down.

use std::{fs, io::Write};

use crate::support::{Sidecar, flood, frame, until};

const IDLE: u64 = 8_000;

/// Bytes of the row that begins so in the budget of `bench/README.md`.
fn budget(row: &str) -> u64 {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../bench/README.md");
    let text = fs::read_to_string(path).unwrap();
    let line =
        text.lines().find(|line| line.starts_with(&format!("| {row}"))).expect("the budget has the row");
    let digits: String = line.rsplit('|').nth(1).unwrap().chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

#[test]
fn an_idle_connection_is_within_its_budget() {
    let budget = budget("user-space, raw connection, one channel");
    let sidecar = Sidecar::start("{maxConnections: 10000}");
    let _first = sidecar.bare("lobby");
    let before = sidecar.memory_kib();
    let idle: Vec<_> = (0..IDLE).map(|_| sidecar.bare("lobby")).collect();
    let each = || sidecar.memory_kib().saturating_sub(before) * 1_024 / IDLE;
    // Handshakes took more, which the allocator gives back within seconds.
    until(&format!("{} idle connections of {budget} bytes", idle.len()), || each() <= budget);
    assert!(each() >= 100, "{} bytes each: nothing was measured", each());
}

/// What the process takes beside the budget: connections, sockets' buffers, and what the allocator has not given back.
const BESIDE: u64 = 8;

/// A process with so many MiB, of which a quarter is the budget; checks after each step that it keeps within it.
struct Budgeted {
    sidecar: Sidecar,
    before: u64,
    most: u64,
}

impl Budgeted {
    fn start(mib: u64, hub: &str) -> Self {
        let sidecar = Sidecar::start_within(mib, hub);
        // What the first connection needs once.
        sidecar.bare("lobby").echo("hello");
        let before = sidecar.memory();
        Self { sidecar, before, most: mib / 4 + BESIDE }
    }

    fn overloaded(&self) -> u64 {
        self.sidecar.metric("fanout_client_disconnects_total{reason=\"overloaded\"}")
    }

    fn check(&self, what: &str) {
        let grown = self.sidecar.memory().saturating_sub(self.before);
        assert!(grown <= self.most, "{grown} MiB where {} are allowed: {what}", self.most);
    }
}

#[test]
fn unfinished_messages_of_many_stay_within_the_budget() {
    let node = Budgeted::start(64, "{maxMessageBytes: 8388608}");
    let mut unfinished = Vec::new();
    for at in 0..40 {
        let mut client = node.sidecar.bare("lobby");
        let frame = match at % 2 {
            // A first fragment, or a frame that ends one byte too early.
            0 => frame(0x01, &vec![b'x'; 4_194_304]),
            _ => frame(0x81, &vec![b'x'; 4_194_304])[..4_194_303].to_vec(),
        };
        // Whoever has too much is closed, perhaps before all was sent.
        let _ = client.socket.write_all(&frame);
        unfinished.push(client);
        node.check(&format!("{at} unfinished messages"));
    }
    until("most were closed", || node.overloaded() > 20);
    node.sidecar.bare("lobby").echo("still here");
}

#[test]
fn replies_that_many_do_not_read_stay_within_the_budget() {
    let node = Budgeted::start(64, "{}");
    let pings = frame(0x89, &[b'p'; 125]).repeat(2_500);
    let mut stuck = Vec::new();
    for at in 0..200 {
        let socket = node.sidecar.connect_narrow();
        let client = crate::support::Client::shake(socket, "/ws/lobby", "fanout.bare").unwrap();
        flood(&client.socket, &pings, 230_000);
        stuck.push(client);
        if at % 10 == 0 {
            node.check(&format!("{at} clients that do not read"));
        }
    }
    until("most were closed", || node.overloaded() > 50);
    node.sidecar.bare("lobby").echo("still here");
}

#[test]
fn a_log_of_messages_of_one_byte_stays_within_the_budget() {
    let mut node = Budgeted::start(16, "{}");
    // One client takes next to nothing beside.
    node.most = 10;
    let socket = node.sidecar.connect_narrow();
    let _stuck = crate::support::Client::shake(socket, "/ws/many:a", "fanout.bare").unwrap();
    let mut publisher = node.sidecar.framed("/ws?channel=lobby");
    let batch = frame(0x81, br#"{"publish":{"channel":"many:a","data":1}}"#).repeat(20_000);
    for at in 0..36 {
        publisher.socket.write_all(&batch).unwrap();
        // An answer says that all before it was taken.
        publisher.send_text(r#"{"publish":{"channel":"many:a","data":1,"id":"last"}}"#);
        while !publisher.text().contains("published") {}
        node.check(&format!("{at} times 20,000 messages"));
    }
}
