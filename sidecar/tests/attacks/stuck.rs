//! Clients that do not read.

use std::{
    io::{Read, Write},
    time::{Duration, Instant},
};

use tokio::runtime::{Builder, Runtime};

use crate::{
    support::{Client, Sidecar, until},
    tls::{self, Tls},
};

const STUCK: usize = 1_000;
/// 8 MiB in all: far more than what lag bounds, sockets and pipes hold.
const PUBLICATIONS: usize = 500;
const BYTES: usize = 16 * 1_024;

/// Publishes much to those who do not read, and one who does; how much memory that took at most.
fn flood(sidecar: &Sidecar, good: &mut Client<impl Read + Write>) -> u64 {
    let before = sidecar.memory();
    let (payload, mut most) = (vec![7; BYTES], 0);
    for number in 0..PUBLICATIONS {
        good.send(0x82, &payload);
        assert_eq!(good.message().1.len(), BYTES);
        if number % 100 == 0 {
            most = most.max(sidecar.memory());
        }
    }
    most.max(sidecar.memory()) - before.min(most)
}

#[test]
fn a_thousand_stuck_websockets_cost_one_log() {
    let sidecar = Sidecar::start("{maxConnections: 2000}");
    let stuck: Vec<_> = (0..STUCK)
        .map(|_| Client::shake(sidecar.connect_narrow(), "/ws/oldest:a", "fanout.bare").unwrap())
        .collect();
    let memory = flood(&sidecar, &mut sidecar.bare("oldest:a"));
    // The log holds a mebibyte for all of them; each has the rest of a frame that is half sent.
    assert!(memory < 40, "{memory} MiB for {} stuck clients", stuck.len());
    assert!(sidecar.metric("fanout_node_connections") >= STUCK as u64, "all are still there");
}

#[test]
fn a_thousand_stuck_event_streams_cost_one_pipe_each() {
    let sidecar = Sidecar::start("{maxConnections: 2000}");
    let stuck: Vec<_> =
        (0..STUCK).map(|_| Sidecar::stuck_events(sidecar.connect_narrow(), "oldest:a")).collect();
    sidecar.until_metric("fanout_node_connections", STUCK as u64);
    let memory = flood(&sidecar, &mut sidecar.bare("oldest:a"));
    assert!(memory < 120, "{memory} MiB for {} stuck streams", stuck.len());
    assert!(sidecar.metric("fanout_node_connections") >= STUCK as u64, "all are still there");
}

#[test]
fn a_thousand_stuck_websockets_over_tls_cost_one_pipe_each() {
    let tls = Tls::new();
    let sidecar = tls.sidecar();
    let stuck: Vec<_> = (0..STUCK)
        .map(|_| Client::shake(tls.over(sidecar.connect_narrow()), "/ws/oldest:a", "fanout.bare").unwrap())
        .collect();
    let mut good = Client::shake(tls.over(sidecar.connect()), "/ws/oldest:a", "fanout.bare").unwrap();
    let memory = flood(&sidecar, &mut good);
    // A pipe of 16 KiB, rustls' records and what is half sent.
    assert!(memory < 120, "{memory} MiB for {} stuck clients", stuck.len());
    assert!(sidecar.metric("fanout_node_connections") >= STUCK as u64, "all are still there");
}

#[test]
fn the_memory_of_a_wave_of_connections_goes_back() {
    let tls = Tls::new();
    let sidecar = tls.sidecar();
    let before = sidecar.memory();
    let wave: Vec<_> = (0..STUCK)
        .map(|_| Client::shake(tls.over(sidecar.connect()), "/ws/lobby", "fanout.bare").unwrap())
        .collect();
    let most = sidecar.memory();
    assert!(most >= before + 8, "{before} MiB before the wave, {most} with it: too little to see anything");
    drop(wave);
    sidecar.until_metric("fanout_node_connections", 0);
    sidecar.until_memory(before + (most - before) / 3);
}

#[test]
fn a_thousand_stuck_websockets_over_http2_cost_one_pipe_each() {
    let tls = Tls::new();
    let sidecar = tls.sidecar();
    let stuck = tls::over_http2(&tls, sidecar.address(), STUCK, "/ws/oldest:a");
    sidecar.until_metric("fanout_node_connections", STUCK as u64);
    let mut good = Client::shake(tls.over(sidecar.connect()), "/ws/oldest:a", "fanout.bare").unwrap();
    let memory = flood(&sidecar, &mut good);
    // A pipe, and what HTTP/2 holds of a stream whose window is full.
    assert!(memory < 160, "{memory} MiB for {} stuck clients", stuck.len());
    assert!(sidecar.metric("fanout_node_connections") >= STUCK as u64, "all are still there");
}

#[test]
fn a_stuck_client_is_closed_by_the_default_policy_and_its_memory_goes() {
    let sidecar = Sidecar::start("{maxConnections: 2000}");
    let stuck: Vec<_> = (0..100)
        .map(|_| Client::shake(sidecar.connect_narrow(), "/ws/lobby", "fanout.bare").unwrap())
        .collect();
    let before = sidecar.memory();
    flood(&sidecar, &mut sidecar.bare("lobby"));
    // They are told why; who does not read even that is cut off after some seconds.
    sidecar.until_metric("fanout_node_connections", 0);
    sidecar.until_memory(before + 24);
    drop(stuck);
}

/// What a metric of write timeouts is called.
const WRITE_TIMEOUTS: &str = "fanout_client_slow_consumer_total{action=\"write_timeout\"}";

#[test]
fn who_takes_nothing_for_the_write_timeout_is_closed_and_holds_no_socket() {
    let sidecar = Sidecar::start("{limits: {writeTimeoutSeconds: 1}}");
    let mut good = sidecar.bare("oldest:a");
    let before = sidecar.sockets();
    let _socket = Client::shake(sidecar.connect_narrow(), "/ws/oldest:a", "fanout.bare").unwrap();
    let _events = Sidecar::stuck_events(sidecar.connect_narrow(), "oldest:a");
    sidecar.until_metric("fanout_node_connections", 3);
    until("each holds a socket", || sidecar.sockets() == before + 2);
    flood(&sidecar, &mut good);
    sidecar.until_metric(WRITE_TIMEOUTS, 2);
    until("none of them holds a socket", || {
        good.echo("still here");
        sidecar.sockets() == before
    });
}

#[test]
fn who_takes_nothing_behind_tls_or_http2_is_closed_and_holds_no_socket() {
    let tls = Tls::new();
    let sidecar = tls.sidecar_with("{writeTimeoutSeconds: 1, headerTimeoutSeconds: 2}");
    let mut good = Client::shake(tls.over(sidecar.connect()), "/ws/oldest:a", "fanout.bare").unwrap();
    let before = sidecar.sockets();
    let address = sidecar.address();
    let _socket = Client::shake(tls.over(sidecar.connect_narrow()), "/ws/oldest:a", "fanout.bare").unwrap();
    let _events = Sidecar::stuck_events(tls.over(sidecar.connect_narrow()), "oldest:a");
    let _socket_of_http2 = tls::over_http2(&tls, address, 1, "/ws/oldest:a");
    let runs = Runtime::new().unwrap();
    let _events_of_http2 = tls::events_over_http2(runs, &tls, address, "/sse/oldest:a");
    let stands = Builder::new_current_thread().enable_all().build().unwrap();
    let _silent = tls::events_over_http2(stands, &tls, address, "/sse/oldest:a");
    sidecar.until_metric("fanout_node_connections", 6);
    until("each holds a socket", || sidecar.sockets() == before + 5);
    flood(&sidecar, &mut good);
    sidecar.until_metric(WRITE_TIMEOUTS, 5);
    until("none of them holds a socket", || {
        good.echo("still here");
        sidecar.sockets() == before
    });
}

#[test]
fn one_stuck_client_delays_nobody() {
    let sidecar = Sidecar::start("{maxConnections: 2000}");
    let mut readers: Vec<_> = (0..50).map(|_| sidecar.bare("oldest:a")).collect();
    let alone = median(&mut readers);
    let stuck = Client::shake(sidecar.connect_narrow(), "/ws/oldest:a", "fanout.bare").unwrap();
    // Fills what it would take.
    let payload = vec![7; BYTES];
    for _ in 0..200 {
        readers[0].send(0x82, &payload);
        readers.iter_mut().for_each(|reader| assert_eq!(reader.message().0, 0x82));
    }
    let beside = median(&mut readers);
    assert!(
        beside < alone * 3 + Duration::from_millis(5),
        "{alone:?} alone, {beside:?} beside a stuck client"
    );
    drop(stuck);
}

/// The middle of how long a message takes to reach all of them.
fn median(readers: &mut [Client]) -> Duration {
    let mut times: Vec<Duration> = (0..101)
        .map(|number| {
            let (began, text) = (Instant::now(), number.to_string());
            readers[0].send_text(&text);
            readers.iter_mut().for_each(|reader| assert_eq!(reader.text(), text));
            began.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}
