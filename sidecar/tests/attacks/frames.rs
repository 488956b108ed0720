//! Frames that cost the sender little.

use std::{
    io::Write,
    thread,
    time::{Duration, Instant},
};

use crate::support::{Client, Sidecar, flood, frame};

#[test]
fn half_a_frame_costs_no_more_than_was_sent() {
    let sidecar = Sidecar::start("{maxMessageBytes: 1048576}");
    let mut good = sidecar.bare("lobby");
    let before = sidecar.memory();
    // Announces a mebibyte and sends a hundred bytes.
    let half = &frame(0x82, &vec![0; 1_048_576])[..100];
    let mut slow: Vec<_> = (0..500).map(|_| sidecar.bare("other")).collect();
    slow.iter_mut().for_each(|client| client.socket.write_all(half).unwrap());
    good.echo("hello");
    assert!(sidecar.memory() < before + 8, "{} MiB for 500 half frames", sidecar.memory() - before);
}

#[test]
fn half_a_frame_is_no_sign_of_life_for_ever() {
    let sidecar = Sidecar::start("{pingIntervalSeconds: 1, pongTimeoutSeconds: 1}");
    let mut slow = sidecar.bare("lobby");
    let half = frame(0x82, &[0; 60_000]);
    let began = Instant::now();
    // A byte now and then, and no answer to any ping.
    for byte in &half {
        if slow.socket.write_all(&[*byte]).is_err() || began.elapsed() > Duration::from_secs(20) {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(slow.closed(), 3012);
    assert!(began.elapsed() < Duration::from_secs(15), "it was closed by its silence");
}

#[test]
fn a_frame_that_comes_in_crumbs_is_not_copied_for_each_of_them() {
    let sidecar = Sidecar::start("{maxMessageBytes: 16777216}");
    let mut client = sidecar.bare("wide:a");
    let whole = frame(0x82, &vec![7; 4 * 1_048_576]);
    let before = sidecar.cpu();
    for crumb in whole.chunks(512) {
        client.socket.write_all(crumb).unwrap();
    }
    assert_eq!(client.message().1.len(), 4 * 1_048_576);
    let used = sidecar.cpu() - before;
    // Copied for each, these are 16 GiB.
    assert!(used < Duration::from_secs(4), "{used:?} for 4 MiB");
}

#[test]
fn a_flood_of_pings_costs_little_memory_and_no_other_client_much_time() {
    let sidecar = Sidecar::start("{}");
    let mut good = sidecar.bare("lobby");
    let before = sidecar.memory();
    let attackers: Vec<_> = (0..4).map(|_| sidecar.bare("other")).collect();
    let pings = frame(0x89, &[0; 125]).repeat(1_000);
    let floods: Vec<_> = attackers
        .into_iter()
        .map(|client| {
            let pings = pings.clone();
            thread::spawn(move || flood(&client.socket, &pings, 100_000_000))
        })
        .collect();
    let mut slowest = Duration::ZERO;
    for number in 0..50 {
        slowest = slowest.max(good.echo(&number.to_string()));
    }
    assert!(slowest < Duration::from_secs(2), "a message took {slowest:?}");
    assert!(sidecar.memory() < before + 16, "{} MiB", sidecar.memory() - before);
    // Who asks and does not read is closed long before it has sent all.
    for flood in floods {
        assert!(flood.join().unwrap() < 100_000_000, "the flood was stopped");
    }
}

#[test]
fn frames_of_one_byte_are_stopped_by_the_rate_limit_or_by_what_they_do_not_read() {
    let sidecar = Sidecar::start("{}");
    let mut good = sidecar.bare("lobby");
    let before = sidecar.memory();
    let mut fast = sidecar.bare("limited:a");
    flood(&fast.socket, &frame(0x81, b"x").repeat(10_000), 70_000_000);
    assert_eq!(fast.closed(), 3013);
    // Each is a mistake, told in a hundred bytes.
    let deaf = sidecar.framed("/ws");
    let taken = flood(&deaf.socket, &frame(0x81, b"x").repeat(10_000), 70_000_000);
    assert!(taken < 70_000_000, "it took all {taken} bytes");
    // Fragments without content never make a message.
    let endless = sidecar.bare("other");
    flood(&endless.socket, &frame(0x02, b""), 6);
    flood(&endless.socket, &frame(0x00, b"").repeat(10_000), 6_000_000);
    assert!(sidecar.memory() < before + 16, "{} MiB", sidecar.memory() - before);
    good.echo("still here");
}

#[test]
fn a_compression_bomb_is_refused_before_it_is_unpacked() {
    let sidecar = Sidecar::start("{compression: {enabled: true}}");
    let mut good = sidecar.bare("lobby");
    let (memory, cpu) = (sidecar.memory(), sidecar.cpu());
    // 10 MiB of zeros in 64 KiB: as much as a message may have that is not compressed.
    let bomb = bomb();
    assert!(bomb.len() < 65_536);
    for _ in 0..100 {
        let request = Client::shake_with(
            sidecar.connect(),
            "/ws/lobby",
            "sec-websocket-extensions: permessage-deflate\r\n",
        );
        let mut client = request.unwrap();
        client.send(0xC2, &bomb);
        assert_eq!(client.closed(), 1009);
    }
    let (memory, cpu) = (sidecar.memory().saturating_sub(memory), sidecar.cpu() - cpu);
    assert!(memory < 16, "{memory} MiB");
    // Unpacked whole, these are a gibibyte.
    assert!(cpu < Duration::from_secs(5), "{cpu:?} for a hundred bombs");
    good.echo("still here");
}

/// One block of RFC 1951 with fixed codes: a literal 0, then matches of 258 bytes at distance 1, and no end.
fn bomb() -> Vec<u8> {
    let mut bits = vec![false, true, false];
    let mut code = |value: u16, length: u32| bits.extend((0..length).rev().map(|at| value >> at & 1 == 1));
    code(0b0011_0000, 8);
    for _ in 0..40_000 {
        code(0b1100_0101, 8);
        code(0, 5);
    }
    bits.chunks(8)
        .map(|byte| byte.iter().enumerate().fold(0, |sum, (at, bit)| sum | u8::from(*bit) << at))
        .collect()
}
