//! Before there is a connection.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::support::{Client, SOON, Sidecar, flood, raise_open_files, until};

#[test]
fn requests_that_never_end_are_cut_off_and_a_good_client_comes_in_meanwhile() {
    let sidecar = Sidecar::start("{limits: {headerTimeoutSeconds: 2}}");
    let before = sidecar.memory();
    let mut slow: Vec<_> = (0..500).map(|_| sidecar.connect()).collect();
    let began = Instant::now();
    for socket in &mut slow {
        socket.write_all(b"GET /ws/lobby HTTP/1.1\r\nhost: a\r\nx-padding: ").unwrap();
    }
    // A byte now and then does not buy more time.
    while began.elapsed() < Duration::from_secs(1) {
        slow.iter_mut().for_each(|socket| socket.write_all(b"a").unwrap());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(sidecar.memory() < before + 24, "{} MiB for 500 half requests", sidecar.memory() - before);
    let mut good = sidecar.bare("lobby");
    good.echo("hello");
    for socket in &mut slow {
        // An answer that says so, or a reset; either way it is over.
        let _ = socket.read_to_end(&mut Vec::new());
    }
    assert!(began.elapsed() < SOON, "all were cut off");
    good.echo("still here");
}

#[test]
fn calls_of_an_inner_port_that_never_end_are_cut_off_and_a_probe_is_answered() {
    let sidecar = Sidecar::start("{}");
    let before = sidecar.memory();
    // More than the port holds at a time.
    let mut slow: Vec<_> = (0..600).map(|_| sidecar.connect_admin()).collect();
    for socket in &mut slow {
        socket.write_all(b"GET /live HTTP/1.1\r\nhost: ").unwrap();
    }
    sidecar.bare("lobby").echo("hello");
    let mut probe = sidecar.connect_admin();
    probe.write_all(b"GET /live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    probe.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(sidecar.memory() < before + 32, "{} MiB for 600 half requests", sidecar.memory() - before);
}

#[test]
fn headers_that_never_end_are_refused_at_their_bound() {
    let sidecar = Sidecar::start("{limits: {headerBytes: 4096}}");
    let before = sidecar.memory();
    for _ in 0..50 {
        let mut socket = sidecar.connect();
        socket.write_all(b"GET /ws/lobby HTTP/1.1\r\nhost: a\r\n").unwrap();
        let line = format!("x-padding: {}\r\n", "a".repeat(500));
        let sent = flood(&socket, line.repeat(100).as_bytes(), 100_000_000);
        assert!(sent < 100_000_000, "it took all of them");
    }
    assert!(sidecar.memory() < before + 16, "{} MiB", sidecar.memory() - before);
    sidecar.bare("lobby").echo("hello");
}

#[test]
fn a_node_at_its_limit_refuses_thousands_and_keeps_whom_it_has() {
    let sidecar = Sidecar::start("{maxConnections: 50}");
    let mut good = sidecar.bare("lobby");
    let _full: Vec<_> = (1..50).map(|_| sidecar.bare("other")).collect();
    let before = sidecar.memory();
    for _ in 0..2_000 {
        assert_eq!(Client::shake(sidecar.connect(), "/ws/lobby", "fanout.bare").map(drop), Err(503));
    }
    assert!(sidecar.memory() < before + 16, "{} MiB", sidecar.memory() - before);
    good.echo("still here");
}

/// Whether a client gets its WebSocket.
fn is_let_in(sidecar: &Sidecar) -> bool {
    let mut socket = sidecar.connect();
    let mut status = [0; 12];
    // Whoever is one too many may be reset.
    socket.write_all(HANDSHAKE).is_ok()
        && socket.read_exact(&mut status).is_ok()
        && &status == b"HTTP/1.1 101"
}

const HANDSHAKE: &[u8] =
    b"GET /ws/lobby HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const NOWHERE: &[u8] = b"GET /nowhere HTTP/1.1\r\nhost: a\r\n\r\n";

#[test]
fn requests_in_a_row_whose_answers_nobody_reads_keep_nobody_out() {
    let sidecar = Sidecar::start("{limits: {handshakesInFlight: 1, headerTimeoutSeconds: 1}}");
    let greedy = sidecar.connect_narrow();
    flood(&greedy, &NOWHERE.repeat(1_000), 100_000_000);
    until("there is a place", || is_let_in(&sidecar));
    drop(greedy);
}

#[test]
fn a_request_now_and_then_that_opens_nothing_keeps_nobody_out() {
    let sidecar = Sidecar::start("{limits: {handshakesInFlight: 1, headerTimeoutSeconds: 1}}");
    let mut asking = sidecar.connect();
    let mut answer = [0; 4_096];
    until("an end", || {
        std::thread::sleep(Duration::from_millis(300));
        asking.write_all(NOWHERE).is_err() || asking.read(&mut answer).is_ok_and(|bytes| bytes == 0)
    });
    until("there is a place", || is_let_in(&sidecar));
}

/// Their files are those of one process where all tests are.
static CROWDED: Mutex<()> = Mutex::new(());

/// A crowd that comes at once; how many of it are let in, in how long.
fn crowd(sidecar: &Sidecar, count: usize, first: &[u8]) -> (usize, Duration) {
    let began = Instant::now();
    let come = |_| {
        let mut socket = sidecar.connect();
        socket.write_all(&[first, HANDSHAKE].concat()).unwrap();
        socket
    };
    let crowd: Vec<TcpStream> = (0..count).map(come).collect();
    let let_in = |mut socket: &TcpStream| {
        let mut status = [0; 12];
        socket.read_exact(&mut status).is_ok() && &status == b"HTTP/1.1 101"
    };
    (crowd.iter().filter(|socket| let_in(socket)).count(), began.elapsed())
}

const CROWD: usize = 15_000;
const PROXIED: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\x0a\0\0\x01\x1f\x90\0\x50";

#[test]
fn a_crowd_that_comes_at_once_from_one_address_waits_and_all_are_let_in() {
    let _alone = CROWDED.lock().unwrap_or_else(PoisonError::into_inner);
    raise_open_files(CROWD as u64 + 1_000);
    let sidecar = Sidecar::start("{maxConnections: 20000}");
    let (let_in, took) = crowd(&sidecar, CROWD, b"");
    assert_eq!(let_in, CROWD, "in {took:?}");
}

#[test]
fn a_crowd_that_comes_by_one_trusted_proxy_waits_and_all_are_let_in() {
    let _alone = CROWDED.lock().unwrap_or_else(PoisonError::into_inner);
    raise_open_files(CROWD as u64 + 1_000);
    // Places for a few only, so that it has to wait.
    let hub = "{maxConnections: 20000, trustedProxies: ['127.0.0.0/8'], limits: {handshakesInFlight: 64}}";
    let sidecar = Sidecar::start(hub);
    let (let_in, took) = crowd(&sidecar, CROWD, PROXIED);
    assert_eq!(let_in, CROWD, "in {took:?}");
    assert!(sidecar.metric("fanout_client_accept_waits_total") > 0, "some had to wait");
}

#[test]
fn an_address_whose_connections_say_nothing_keeps_nobody_of_another_one_out() {
    let _alone = CROWDED.lock().unwrap_or_else(PoisonError::into_inner);
    raise_open_files(10_000);
    // As long as nothing is done about them they stay.
    let sidecar = Sidecar::start("{limits: {headerTimeoutSeconds: 300}}");
    let silent: Vec<_> = (0..5_000).map(|_| sidecar.connect()).collect();
    sidecar.until_metric("fanout_client_handshakes_inflight", 4_096);
    for _ in 0..20 {
        let began = Instant::now();
        let mut newcomer = Client::shake(sidecar.connect_from(2), "/ws/lobby", "fanout.bare").unwrap();
        newcomer.echo("hello");
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
    assert!(sidecar.metric("fanout_client_refused_total{reason=\"handshakes\"}") >= 904);
    drop(silent);
}

#[test]
fn calls_that_ask_for_nothing_keep_no_call_of_another_address_out() {
    let sidecar = Sidecar::start("{}");
    // They would stay for 75 seconds.
    let silent: Vec<_> = (0..600).map(|_| sidecar.connect_api(1)).collect();
    for _ in 0..20 {
        let mut call = sidecar.connect_api(2);
        call.write_all(b"GET /openapi.json HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        let began = Instant::now();
        call.read_to_string(&mut answer).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && began.elapsed() < Duration::from_secs(3),
            "{:?}",
            began.elapsed()
        );
    }
    drop(silent);
}
