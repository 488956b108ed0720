//! What a connection costs, against the budget that is written down.

use std::fs;

use crate::support::{Sidecar, until};

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
