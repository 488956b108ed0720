//! All that a client sends over one connection to the client port, by a real socket: the request, the hand-over to a
//! shard, and what comes behind it, in one piece.

use std::{
    future::pending,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, LazyLock},
    time::Duration,
};

use fanout_sidecar::{
    auth::{Auth, AuthRules},
    domain::{CommandError, Publication},
    shard::{Completion, Mail, Mailbox, Shards, Task, Work},
};
use sidecar_config::LiveSettings;
use tokio::{
    runtime::{self, Runtime},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use crate::client_port;

/// No bound that an input could meet by coming fast.
const SETTINGS: &str = "
hub: {compression: {enabled: true, minBytes: 0}, limits: {acceptsPerSecond: 0, messagesPerSecond: 100000000, bytesPerSecond: 1000000000}}
namespaces:
- {name: default, publish: allowed, subscribe: allowed, rateLimit: {publishesPerSecond: 1000000, burst: 1000000}}";

/// For an answer that may not come: most inputs ask for nothing that has one.
const BRIEFLY: Duration = Duration::from_millis(20);
/// For the end, which has to come.
const PATIENCE: Duration = Duration::from_secs(9);

struct Node {
    address: SocketAddr,
    shards: Shards,
    _runtime: Runtime,
}

static NODE: LazyLock<Node> = LazyLock::new(|| {
    let settings: LiveSettings = sidecar_config::parse(SETTINGS).expect("settings");
    let auth = Auth::new(AuthRules::load(&settings).expect("no secrets"));
    let (sender, work) = mpsc::channel(1_024);
    let (shards, port) = client_port(settings, auth, &sender);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let runtime =
        runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let entered = runtime.enter();
    // Handled, so that it does not end the fuzzer: Rust's own start, which a fuzzer has not, ignores it.
    drop(signal(SignalKind::pipe()).expect("a signal that may be handled"));
    drop(entered);
    runtime.spawn(port.serve(listener, pending()));
    runtime.spawn(loop_back(work, shards.mailboxes()));
    Node { address, shards, _runtime: runtime }
});

/// A broker that brings back what was published.
async fn loop_back(mut work: mpsc::Receiver<Work>, mailboxes: Vec<Mailbox>) {
    while let Some(Work { shard, task }) = work.recv().await {
        let mailbox = &mailboxes[usize::from(shard)];
        let completion = match task {
            Task::Subscribe { channel } => Completion::Subscribed { channel, result: Ok(()) },
            Task::Unsubscribe { .. } => continue,
            Task::Refresh { connection, id, .. } => {
                let result = Err(CommandError::Unauthorized("no token is good here".to_owned()));
                Completion::Refreshed { connection, id, result }
            }
            Task::Publish { connection, channel, payload, id, .. } => {
                let publication = Publication::bare(channel.clone(), payload);
                // A full mailbox is a loss that nobody here counts.
                let _ = mailbox.publications(vec![Arc::new(publication.into())]);
                Completion::Published { connection, channel, id, result: Ok(false) }
            }
        };
        mailbox.send(Mail::Completion(completion));
    }
}

/// The connection ends (but for an event stream), no code of ours panicked, and behind a handshake come frames.
pub(crate) fn connection(data: &[u8]) {
    let Node { address, shards, _runtime } = &*NODE;
    let data = &data[..data.len().min(32 * 1_024)];
    let socket = TcpStream::connect(address).expect("it is accepted");
    let answer = converse(socket, data);
    assert_eq!(shards.totals().panics, 0);
    if let Some(behind) = accepted(&answer, data) {
        frames(behind);
    }
}

/// All that is answered. The client's end is told only once there was an answer, for it takes a request back.
fn converse(mut socket: TcpStream, data: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    // Whoever was refused may be gone already.
    if socket.write_all(data).is_ok() && head_ends(data).is_some() {
        hear(&mut socket, &mut answer, BRIEFLY, |answer| head_ends(answer).is_some());
    }
    let _ = socket.shutdown(Shutdown::Write);
    // A stream goes on where hyper has still to look at something that came behind its request, until a write fails.
    let is_stream = |answer: &[u8]| answer.windows(17).any(|text| text == b"text/event-stream");
    let ended = is_stream(&answer) || hear(&mut socket, &mut answer, PATIENCE, is_stream);
    assert!(ended, "it does not end: {}", String::from_utf8_lossy(&answer));
    answer
}

/// Reads until that is enough, or the end; false where nothing comes any more before.
fn hear(
    socket: &mut TcpStream,
    answer: &mut Vec<u8>,
    patience: Duration,
    enough: impl Fn(&[u8]) -> bool,
) -> bool {
    socket.set_read_timeout(Some(patience)).expect("not zero");
    let mut part = [0; 4_096];
    while !enough(answer) {
        match socket.read(&mut part) {
            Ok(read @ 1..) => answer.extend_from_slice(&part[..read]),
            Ok(_) => break,
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
    true
}

fn head_ends(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// What follows a handshake that was accepted.
fn accepted<'a>(answer: &'a [u8], data: &[u8]) -> Option<&'a [u8]> {
    // A server that answers 400 to a request behind another one, or an HTTP/1.0 client: whatever it is, it is no 101.
    let head = answer.get(..head_ends(answer)?)?;
    if !head.starts_with(b"HTTP/1.1 101 ") {
        return None;
    }
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    assert!(
        head.contains("\r\nupgrade: websocket\r\n") && head.contains("\r\nsec-websocket-accept: "),
        "{head}"
    );
    let offered = String::from_utf8_lossy(data).to_ascii_lowercase();
    for (header, value) in [("extensions", "permessage-deflate"), ("protocol", "fanout.v1")] {
        let named = head.contains(&format!("\r\nsec-websocket-{header}: {value}"));
        assert!(!named || offered.contains(value), "{value} was not offered: {head}");
    }
    Some(&answer[head.len()..])
}

/// Frames of a server (RFC 6455 §5.2): unmasked, of a known kind, and nothing behind a close. The last one may be torn:
/// the client has said that it is going.
fn frames(mut bytes: &[u8]) {
    while let [first, second, rest @ ..] = bytes {
        assert!(matches!(first & 0x0F, 0 | 1 | 2 | 8 | 9 | 10) && first & 0x30 == 0, "a frame of {first:x}");
        assert_eq!(second & 0x80, 0, "masked");
        let (long, short) = (rest.first_chunk::<8>(), rest.first_chunk::<2>());
        let (header, length) = match second {
            126 => (2, short.map(|length| u16::from_be_bytes(*length).into())),
            127 => (8, long.map(|length| u64::from_be_bytes(*length))),
            length => (0, Some((*length).into())),
        };
        let Some(next) = length.and_then(|length| rest.get(header + usize::try_from(length).ok()?..)) else {
            return;
        };
        assert!(first & 0x0F != 8 || next.is_empty(), "a frame behind the close");
        bytes = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The corpus has what this proves to be reached.
    #[test]
    fn a_good_handshake_is_accepted_and_what_comes_with_it_is_heard() {
        let Node { address, .. } = &*NODE;
        let data = include_bytes!("../corpus/connection/echo");
        let answer = converse(TcpStream::connect(address).unwrap(), data);
        let behind = accepted(&answer, data).expect("it is accepted");
        frames(behind);
        // Its pong; its own publication may come too late for it.
        assert!(behind.starts_with(b"\x8A\x01p"), "{behind:x?}");
        let head = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        assert!(head.contains("sec-websocket-extensions: permessage-deflate"), "{head}");
    }
}
