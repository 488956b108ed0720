//! A shard whose clock, links and control runtime are turned by hand. Links are pipes: they hold 16 KiB and no byte
//! more, so that where a write is cut short is known.

mod bounds;
mod ends;
mod exposure;
mod grace;
mod late;
mod memory;
mod model;
mod own;
mod slices;

use std::{
    collections::HashSet,
    io::Read,
    net::{TcpListener, TcpStream},
    task::{Context, Poll, Waker},
};

use sidecar_config::LiveSettings;
use tokio::sync::oneshot;

use super::*;
use crate::{
    domain::{Grants, Identity, Payload, Policies, Publication},
    protocol::websocket::{Opcode, frame},
    shard::{FarEnd, Handshake, Inbox, Mail, Mailbox, pipe, read::BUFFER},
    tests::Written,
};

const SETTINGS: &str = "
hub: {pingIntervalSeconds: 20, pongTimeoutSeconds: 5, compression: {enabled: true, minBytes: 100}}
namespaces:
- {name: default, publish: allowed, subscribe: allowed}
- {name: small, subscribe: allowed, slowConsumer: {policy: disconnect, maxLagBytes: 20000, maxLagMessages: 1000000}}
- {name: few, subscribe: allowed, slowConsumer: {policy: disconnect, maxLagBytes: 200000000, maxLagMessages: 10}}
- {name: oldest, subscribe: allowed, slowConsumer: {policy: dropOldest, maxLagBytes: 20000, maxLagMessages: 1000000}}
- {name: images, subscribe: allowed, compression: false}
- {name: newest, subscribe: allowed, slowConsumer: {policy: dropNewest, maxLagBytes: 20000, maxLagMessages: 1000000}}
- {name: latest, subscribe: allowed, slowConsumer: {policy: conflate, maxLagBytes: 20000, maxLagMessages: 10}}";

struct Bench {
    core: Core,
    work: mpsc::Receiver<Work>,
    mailbox: Mailbox,
    inbox: Inbox,
    buffer: Vec<u8>,
    /// Whether the next clients negotiate compression.
    deflate: bool,
}

/// Answers that are easily told from frames.
#[derive(Debug)]
struct Words;

/// The far end of a connection.
struct Client {
    slot: u32,
    generation: u32,
    pipe: FarEnd,
    received: Vec<u8>,
}

fn rules(settings: &str) -> Arc<Rules> {
    let settings: LiveSettings = serde_yaml::from_str(settings).unwrap();
    Arc::new(Rules {
        policies: Policies::new(&settings.namespaces),
        hub: settings.hub,
        reconnect_jitter: Duration::from_secs(15),
    })
}

fn name(channel: &str) -> ChannelName {
    channel.parse().unwrap()
}

impl Handshake for Words {
    fn accepted(self: Box<Self>) -> Vec<u8> {
        b"welcome".to_vec()
    }

    fn refused(self: Box<Self>, refusal: Refusal) -> Vec<u8> {
        format!("{refusal:?}").into_bytes()
    }
}

impl Bench {
    fn new() -> Self {
        Self::with_room_for(1_000)
    }

    fn with_room_for(work: usize) -> Self {
        let (sender, work) = mpsc::channel(work);
        let (mailbox, inbox) = Mailbox::new(1, || {});
        let config = Config {
            shards: 1,
            node: NodeId(1),
            max_connections: 1_000,
            mailbox_bytes: 1,
            work_bytes: Config::MOST_WAITING_BYTES,
            log_bytes: Config::MOST_BYTES,
            time_deliveries: false,
        };
        let mut core = Core::new(0, config, rules(SETTINGS), sender, Shared::default());
        // Bounds are exact but where a test is about grace.
        core.grace_ms = 0;
        Self { core, work, mailbox, inbox, buffer: vec![0; BUFFER], deflate: false }
    }

    fn set_rules(&mut self, rules: Arc<Rules>) {
        let latencies = self.core.latencies.clone();
        self.core.set_rules(rules, latencies);
    }

    fn ask(
        &mut self,
        protocol: Protocol,
        identity: Identity,
        channels: &[&str],
    ) -> oneshot::Receiver<Result<Reserved, Refusal>> {
        let (reply, answer) = oneshot::channel();
        self.reserve(protocol, identity, channels, Transport::Later(reply));
        answer
    }

    fn reserve(&mut self, protocol: Protocol, identity: Identity, channels: &[&str], transport: Transport) {
        let channels = channels.iter().map(|channel| name(channel)).collect();
        let remote = "192.0.2.1:5".parse().unwrap();
        // As the door does; it is given back when the slot is.
        self.core.seats.take();
        let visitor = Visitor { protocol, deflate: self.deflate, identity, channels, remote };
        self.core.reserve(Reservation { visitor, guest: None, transport });
    }

    /// A client whose socket comes along; its end of it.
    fn arrive(&mut self, channels: &[&str]) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        let (link, leftover, handshake) = (Link::Socket(socket), Bytes::new(), Box::new(Words));
        let transport = Transport::Here(Arrived { link, leftover, handshake });
        self.reserve(Protocol::RawBare, Identity::default(), channels, transport);
        client
    }

    fn welcome(&mut self) {
        while let Some((slot, arrived)) = self.core.next_arrived() {
            self.core.welcome(slot, arrived);
        }
    }

    fn attach(&mut self, reserved: Reserved) -> Client {
        let ConnectionId { slot, generation, .. } = reserved.connection;
        let (sender, pipe) = pipe::pipe(reserved.connection, self.mailbox.clone());
        self.core.attach(slot, Link::Pipe(sender), &Bytes::new());
        Client { slot, generation, pipe, received: Vec::new() }
    }

    fn connect_as(&mut self, protocol: Protocol, identity: Identity, channels: &[&str]) -> Client {
        let mut answer = self.ask(protocol, identity, channels);
        self.answer_work(&Ok(()));
        let reserved = answer.try_recv().expect("answered").expect("let in");
        let client = self.attach(reserved);
        self.turn();
        client
    }

    fn connect(&mut self, protocol: Protocol, channels: &[&str]) -> Client {
        self.connect_as(protocol, Identity::default(), channels)
    }

    /// Answers what the shard asked for; returns it as text.
    fn answer_work(&mut self, result: &Result<(), CommandError>) -> Vec<String> {
        let mut asked = Vec::new();
        while let Ok(Work { task, .. }) = self.work.try_recv() {
            match task {
                Task::Subscribe { channel } => {
                    asked.push(format!("+{channel}"));
                    self.core.complete(Completion::Subscribed { channel, result: result.clone() });
                }
                Task::Unsubscribe { channel } => asked.push(format!("-{channel}")),
                Task::Refresh { token, .. } => asked.push(format!("?{token}")),
                Task::Publish { connection, channel, payload, id, .. } => {
                    asked.push(String::from_utf8_lossy(payload.bytes()).into_owned());
                    let result = result.clone().map(|()| false);
                    self.core.complete(Completion::Published { connection, channel, id, result });
                }
            }
        }
        asked
    }

    /// Everything that can be done without a client, at this moment.
    fn turn(&mut self) {
        loop {
            for mail in self.inbox.take() {
                let Mail::Pipe { connection } = mail else { panic!("{mail:?}") };
                if let Some(slot) = self.core.find(connection) {
                    self.core.writable(slot);
                    self.core.readable(slot, false, &mut self.buffer);
                }
            }
            if !self.core.is_busy() {
                return;
            }
            self.core.take_events([], &mut self.buffer, || 0);
            self.core.visits(|| 0);
        }
    }

    /// Lets time pass, in steps that no timer can be missed in.
    fn pass(&mut self, ms: u64) {
        let end = self.core.now.ms + ms;
        while self.core.now.ms < end {
            let step = 100.min(end - self.core.now.ms);
            self.core.now.ms += step;
            self.core.now.us += step * 1_000;
            self.core.now.unix_us += step * 1_000;
            let mut due = Vec::new();
            self.core.wheel.expire(self.core.now.ms, &mut due);
            self.core.expire(&due);
            self.turn();
        }
    }

    fn publish(&mut self, channel: &str, text: &str) {
        let payload = Payload::Text(text.to_owned().into());
        self.core.publications(&[Arc::new(Publication::bare(name(channel), payload).into())]);
    }

    fn publish_about(&mut self, channel: &str, key: &str, text: &str) {
        let payload = Payload::Text(text.to_owned().into());
        let publication = Publication { key: Some(key.into()), ..Publication::bare(name(channel), payload) };
        self.core.publications(&[Arc::new(publication.into())]);
    }

    fn hear(&mut self, client: &Client, opcode: Opcode, payload: &[u8]) {
        let mut bytes = Vec::new();
        frame::put(&mut bytes, opcode, payload);
        // A mask of zeros changes nothing.
        let header = bytes.len() - payload.len();
        bytes[1] |= 0x80;
        bytes.splice(header..header, [0; 4]);
        self.core.take_bytes(client.slot, &mut bytes);
    }

    /// Reads what the pipe holds now, and lets the shard fill it again, until nothing more comes.
    fn drain(&mut self, client: &mut Client) {
        loop {
            self.turn();
            let mut context = Context::from_waker(Waker::noop());
            match client.pipe.poll_bytes(&mut context) {
                Poll::Ready(Some(bytes)) => client.received.extend_from_slice(&bytes),
                Poll::Ready(None) | Poll::Pending => return,
            }
        }
    }

    /// The frames that have come since the last call: text as it is, others by their kind.
    fn frames(&mut self, client: &mut Client) -> Vec<String> {
        self.drain(client);
        let (mut bytes, mut frames) = (&*std::mem::take(&mut client.received), Vec::new());
        while !bytes.is_empty() {
            let (length, start) = match bytes[1] {
                126 => (usize::from(u16::from_be_bytes([bytes[2], bytes[3]])), 4),
                127 => (u64::from_be_bytes(bytes[2..10].try_into().unwrap()) as usize, 10),
                short => (usize::from(short), 2),
            };
            let payload = &bytes[start..start + length];
            frames.push(match bytes[0] {
                0x81 => String::from_utf8(payload.to_vec()).unwrap(),
                0xC1 => format!("deflated to {length}"),
                0x88 if payload.is_empty() => "close".to_owned(),
                0x88 => format!("close {}", u16::from_be_bytes([payload[0], payload[1]])),
                0x89 => "ping".to_owned(),
                0x8A => format!("pong {}", String::from_utf8_lossy(payload)),
                other => panic!("a frame of {other:x}"),
            });
            bytes = &bytes[start + length..];
        }
        frames
    }

    fn is_over(&self, client: &Client) -> bool {
        !self.core.slots.holds(client.slot, client.generation)
    }

    fn log_bytes(&self) -> u64 {
        self.core.metrics.log_bytes.get()
    }
}

// === coming ===

#[test]
fn a_framed_client_is_told_its_id_before_all_else_and_holds_nothing_for_it() {
    let mut bench = Bench::new();
    let mut client = bench.connect(Protocol::RawFramed, &[]);
    assert_eq!(bench.frames(&mut client), [r#"{"connected":{"client":"0000000000000001-0-0-1"}}"#]);
    assert!(bench.core.slots[client.slot].cold.is_none());
    let mut next = bench.connect(Protocol::RawFramed, &["a"]);
    let told = client_id(bench.core.node, bench.core.id(next.slot));
    assert_eq!(
        bench.frames(&mut next),
        [format!(r#"{{"connected":{{"client":"{told}"}}}}"#), r#"{"subscribed":{"channel":"a"}}"#.to_owned()]
    );
}

#[test]
fn a_client_is_let_in_once_its_channels_are_live_and_misses_nothing_from_then_on() {
    let mut bench = Bench::new();
    let mut answer = bench.ask(Protocol::RawBare, Identity::default(), &["a"]);
    assert!(answer.try_recv().is_err(), "not before the channel is live");
    assert_eq!(bench.answer_work(&Ok(())), ["+a"]);
    let reserved = answer.try_recv().unwrap().unwrap();
    bench.publish("a", "before the transport came");
    let mut client = bench.attach(reserved);
    assert_eq!(bench.frames(&mut client), ["before the transport came"]);
}

#[test]
fn a_channel_is_asked_for_once_and_given_back_after_its_last_subscriber() {
    let mut bench = Bench::new();
    let mut first = bench.ask(Protocol::RawBare, Identity::default(), &["a"]);
    let mut second = bench.ask(Protocol::Sse, Identity::default(), &["a"]);
    assert_eq!(bench.answer_work(&Ok(())), ["+a"]);
    let (first, second) = (first.try_recv().unwrap().unwrap(), second.try_recv().unwrap().unwrap());
    bench.core.abandon(first.connection);
    assert!(bench.answer_work(&Ok(())).is_empty());
    bench.core.abandon(second.connection);
    assert_eq!(bench.answer_work(&Ok(())), ["-a"]);
    assert_eq!((bench.core.metrics.channels.get(), bench.core.metrics.subscriptions.get()), (0, 0));
    assert_eq!(bench.core.seats.taken(), 0);
}

#[test]
fn a_channel_wanted_again_while_it_is_asked_for_is_not_asked_for_twice() {
    let mut bench = Bench::new();
    drop(bench.ask(Protocol::RawBare, Identity::default(), &["a"]));
    let left = bench.core.slots.taken()[0];
    bench.core.vacate(left);
    let mut answer = bench.ask(Protocol::RawBare, Identity::default(), &["a"]);
    assert_eq!(bench.answer_work(&Ok(())), ["+a"]);
    assert!(answer.try_recv().unwrap().is_ok());
}

#[test]
fn a_channel_left_before_it_was_live_is_given_back_then() {
    let mut bench = Bench::new();
    drop(bench.ask(Protocol::RawBare, Identity::default(), &["a"]));
    let left = bench.core.slots.taken()[0];
    bench.core.vacate(left);
    assert_eq!(bench.answer_work(&Ok(())), ["+a", "-a"]);
    assert_eq!(bench.core.metrics.channels.get(), 0);
}

#[test]
fn one_refused_channel_refuses_the_client_and_gives_back_the_others() {
    let mut bench = Bench::new();
    let mut answer = bench.ask(Protocol::RawFramed, Identity::default(), &["a", "nowhere:b"]);
    let refusal = Refusal::Channel { channel: name("nowhere:b"), error: CommandError::UnknownChannel };
    assert_eq!(answer.try_recv().unwrap(), Err(refusal));
    assert_eq!(bench.answer_work(&Ok(())), ["+a", "-a"]);
    let mut answer = bench.ask(Protocol::RawFramed, Identity::default(), &["a", "b"]);
    bench.answer_work(&Err(CommandError::Unavailable));
    assert!(matches!(answer.try_recv().unwrap(), Err(Refusal::Channel { .. })));
    assert_eq!((bench.core.seats.taken(), bench.core.metrics.channels.get()), (0, 0));
}

#[test]
fn a_client_whose_socket_came_along_is_answered_once_its_channel_is_live_and_before_all_else() {
    let mut bench = Bench::new();
    let mut client = bench.arrive(&["a"]);
    bench.welcome();
    bench.turn();
    assert_eq!(bench.core.metrics.writes.get(), 0, "the broker has not answered");
    bench.answer_work(&Ok(()));
    bench.publish("a", "first");
    bench.welcome();
    bench.turn();
    let mut received = [0; 14];
    client.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"welcome\x81\x05first");
    assert_eq!(bench.core.metrics.writes.get(), 1);
}

#[test]
fn a_client_whose_socket_came_along_and_is_refused_reads_why() {
    let mut bench = Bench::new();
    let mut unknown = bench.arrive(&["nowhere:b"]);
    let mut unavailable = bench.arrive(&["a"]);
    bench.answer_work(&Err(CommandError::Unavailable));
    for (client, error) in [(&mut unknown, "UnknownChannel"), (&mut unavailable, "Unavailable")] {
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("Channel") && answer.contains(error), "{answer}");
    }
    assert!(bench.core.next_arrived().is_none());
    assert_eq!((bench.core.seats.taken(), bench.core.metrics.channels.get()), (0, 0));
}

#[test]
fn what_cannot_be_given_back_at_once_is_given_back_later_and_never_twice() {
    let mut bench = Bench::with_room_for(1);
    let client = bench.connect(Protocol::RawBare, &["a"]);
    let _waiting = bench.ask(Protocol::RawBare, Identity::default(), &["b"]);
    bench.core.end(client.slot, CloseReason::ConnectionLost);
    assert!(bench.core.retry_leaving(), "the way out is full");
    assert_eq!(bench.answer_work(&Ok(())), ["+b"]);
    let again = bench.connect(Protocol::RawBare, &["a"]);
    assert!(!bench.core.retry_leaving());
    assert!(bench.answer_work(&Ok(())).is_empty(), "`a` is wanted again: neither given back nor asked for");
    bench.core.end(again.slot, CloseReason::ConnectionLost);
    assert_eq!(bench.answer_work(&Ok(())), ["-a"]);
}

#[test]
fn a_reservation_whose_transport_does_not_come_ends() {
    let mut bench = Bench::new();
    let mut answer = bench.ask(Protocol::RawBare, Identity::default(), &["a"]);
    bench.answer_work(&Ok(()));
    answer.try_recv().unwrap().unwrap();
    bench.pass(RESERVATION_MS + 500);
    assert_eq!(bench.core.seats.taken(), 0);
    assert_eq!(bench.answer_work(&Ok(())), ["-a"]);
}

// === delivery ===

#[test]
fn a_visit_takes_all_that_is_new_in_one_write() {
    let mut bench = Bench::new();
    let mut client = bench.connect(Protocol::RawBare, &["a"]);
    for i in 0..50 {
        bench.publish("a", &format!("message {i}"));
    }
    let before = bench.core.metrics.writes.get();
    assert_eq!(bench.frames(&mut client).len(), 50);
    assert_eq!(bench.core.metrics.writes.get() - before, 1);
    assert_eq!((bench.core.metrics.messages_out.get(), bench.log_bytes()), (50, 0));
}

#[test]
fn several_channels_go_into_one_write() {
    let mut bench = Bench::new();
    let mut client = bench.connect(Protocol::RawFramed, &["a", "b", "c"]);
    bench.frames(&mut client);
    let before = bench.core.metrics.writes.get();
    for channel in ["a", "b", "c"] {
        bench.publish(channel, "1");
    }
    assert_eq!(bench.frames(&mut client).len(), 3);
    assert_eq!(bench.core.metrics.writes.get() - before, 1);
}

#[test]
fn a_half_sent_frame_is_finished_before_a_reply_and_a_reply_goes_before_the_rest() {
    let mut bench = Bench::new();
    let mut client = bench.connect(Protocol::RawFramed, &["a"]);
    bench.frames(&mut client);
    for i in 0..3 {
        bench.publish("a", &format!("\"{i}{}\"", "x".repeat(10_000)));
    }
    // The pipe holds one and a half of them.
    bench.turn();
    bench.hear(&client, Opcode::Ping, b"are you there?");
    let frames = bench.frames(&mut client);
    let starts: Vec<_> = frames.iter().map(|frame| &frame[..36.min(frame.len())]).collect();
    assert_eq!(
        starts,
        [
            r#"{"pub":{"channel":"a","data":"0xxxxx"#,
            r#"{"pub":{"channel":"a","data":"1xxxxx"#,
            "pong are you there?",
            r#"{"pub":{"channel":"a","data":"2xxxxx"#,
        ]
    );
}

#[test]
fn a_subscription_left_in_the_middle_of_a_frame_sends_that_frame_to_its_end() {
    let mut bench = Bench::new();
    let mut client = bench.connect(Protocol::RawFramed, &["a", "b"]);
    bench.frames(&mut client);
    for i in 0..3 {
        bench.publish("a", &format!("\"{i}{}\"", "x".repeat(10_000)));
    }
    bench.turn();
    bench.hear(&client, Opcode::Text, br#"{"unsubscribe":{"channel":"a"}}"#);
    bench.publish("b", "\"after\"");
    let frames = bench.frames(&mut client);
    assert_eq!(frames.len(), 4, "{:?}", frames.iter().map(String::len).collect::<Vec<_>>());
    assert!(frames[1].contains("\"1xxx") && frames[1].ends_with("x\"}}"), "whole");
    assert_eq!(frames[2], r#"{"unsubscribed":{"channel":"a"}}"#);
    assert_eq!(frames[3], r#"{"pub":{"channel":"b","data":"after"}}"#);
    assert_eq!(bench.log_bytes(), 0);
}

#[test]
fn a_subscriber_that_leaves_in_the_middle_of_a_pass_costs_nobody_a_message() {
    let mut bench = Bench::new();
    let mut clients: Vec<_> = (0..100).map(|_| bench.connect(Protocol::RawBare, &["a"])).collect();
    bench.publish("a", "x");
    bench.core.visits(|| 0);
    let gone = clients.remove(0);
    bench.core.end(gone.slot, CloseReason::ConnectionLost);
    for client in &mut clients {
        assert_eq!(bench.frames(client), ["x"]);
    }
    assert_eq!(bench.log_bytes(), 0);
}

#[test]
fn a_busy_channel_does_not_starve_another() {
    let mut bench = Bench::new();
    let _crowd: Vec<_> = (0..500).map(|_| bench.connect(Protocol::RawBare, &["busy"])).collect();
    let mut quiet = bench.connect(Protocol::RawBare, &["quiet"]);
    bench.publish("busy", "0");
    bench.publish("quiet", "heard");
    for _ in 0..2 {
        bench.publish("busy", "more");
        bench.core.visits(|| 0);
    }
    let mut context = Context::from_waker(Waker::noop());
    assert!(quiet.pipe.poll_bytes(&mut context).is_ready(), "within two of the busy channel's turns");
}

#[test]
fn every_form_of_one_channel_gets_the_same_publication() {
    let mut bench = Bench::new();
    let mut bare = bench.connect(Protocol::RawBare, &["a"]);
    let mut framed = bench.connect(Protocol::RawFramed, &["a"]);
    let mut sse = bench.connect(Protocol::Sse, &["a"]);
    bench.publish("a", "hello");
    assert_eq!(bench.frames(&mut bare), ["hello"]);
    assert_eq!(bench.frames(&mut framed)[2], r#"{"pub":{"channel":"a","data":"hello"}}"#);
    bench.drain(&mut sse);
    assert_eq!(sse.received, b"retry: 3000\n\ndata: hello\n\n");
}

// === commands ===

#[test]
fn a_client_with_too_much_in_flight_is_read_on_once_the_broker_has_answered_in_order() {
    let mut bench = Bench::new();
    let client = bench.connect(Protocol::RawBare, &["a"]);
    for i in 0..200 {
        bench.hear(&client, Opcode::Text, i.to_string().as_bytes());
    }
    let mut first = Vec::new();
    while let Ok(work) = bench.work.try_recv() {
        first.push(work);
    }
    assert_eq!(first.len(), 64, "the rest waits");
    let id = bench.core.id(client.slot);
    for _ in first {
        let completion =
            Completion::Published { connection: id, channel: name("a"), id: None, result: Ok(false) };
        bench.core.complete(completion);
    }
    let mut rest = Vec::new();
    loop {
        let some = bench.answer_work(&Ok(()));
        if some.is_empty() {
            break;
        }
        rest.extend(some);
    }
    assert_eq!(rest, (64..200).map(|i| i.to_string()).collect::<Vec<_>>());
}

#[test]
fn an_answer_to_a_connection_that_is_gone_is_dropped() {
    let mut bench = Bench::new();
    let client = bench.connect(Protocol::RawFramed, &["a"]);
    let stale = bench.core.id(client.slot);
    bench.core.end(client.slot, CloseReason::ConnectionLost);
    let mut next = bench.connect(Protocol::RawFramed, &["a"]);
    assert_eq!(next.slot, client.slot, "the slot is used again");
    bench.frames(&mut next);
    let id = Some("1".to_owned());
    bench.core.complete(Completion::Published {
        connection: stale,
        channel: name("a"),
        id,
        result: Ok(false),
    });
    assert!(bench.frames(&mut next).is_empty());
}

#[test]
fn work_that_finds_no_room_is_refused_as_each_protocol_can() {
    let mut bench = Bench::with_room_for(1);
    let mut framed = bench.connect(Protocol::RawFramed, &["a"]);
    let mut bare = bench.connect(Protocol::RawBare, &["a"]);
    bench.frames(&mut framed);
    drop(bench.ask(Protocol::RawBare, Identity::default(), &["b"]));
    bench.hear(&framed, Opcode::Text, br#"{"publish":{"channel":"a","data":1,"id":"7"}}"#);
    let frames = bench.frames(&mut framed);
    assert!(frames[0].contains("\"code\":111") && frames[0].contains("\"id\":\"7\""), "{frames:?}");
    bench.hear(&bare, Opcode::Text, b"x");
    assert_eq!(bench.frames(&mut bare), ["close 4014"]);
}

#[test]
fn a_publication_is_compressed_once_for_those_who_negotiated_it_and_plain_for_the_others() {
    let mut bench = Bench::new();
    let mut plain = bench.connect(Protocol::RawBare, &["a"]);
    bench.deflate = true;
    let mut first = bench.connect(Protocol::RawBare, &["a"]);
    let mut second = bench.connect(Protocol::RawBare, &["a"]);
    let mut framed = bench.connect(Protocol::RawFramed, &["a", "images:a"]);
    bench.frames(&mut framed);
    let text = "x".repeat(1_000);
    bench.publish("a", &text);
    assert_eq!(bench.frames(&mut plain), std::slice::from_ref(&text));
    let deflated = bench.frames(&mut first);
    assert!(deflated[0].starts_with("deflated to "), "{deflated:?}");
    assert_eq!(bench.frames(&mut second), deflated);
    assert!(bench.frames(&mut framed)[0].starts_with("deflated to "));
    assert_eq!(bench.core.metrics.deflate_in.get(), 2_000, "once for each wire form");
    bench.publish("a", "short");
    assert_eq!(bench.frames(&mut first), ["short"]);
    bench.publish("images:a", &text);
    assert!(bench.frames(&mut framed)[0].starts_with("{\"pub\""), "the namespace does not want it");
    bench.hear(&first, Opcode::Ping, b"p");
    assert_eq!(bench.frames(&mut first), ["pong p"]);
}

#[test]
fn a_busy_channel_does_not_starve_another_of_the_same_connection() {
    let mut bench = Bench::new();
    let mut client = bench.connect(Protocol::RawFramed, &["busy", "calm"]);
    bench.frames(&mut client);
    for _ in 0..40 {
        bench.publish("busy", &"x".repeat(10_000));
    }
    bench.turn();
    bench.publish("calm", "1");
    for _ in 0..40 {
        bench.publish("busy", &"x".repeat(10_000));
    }
    let frames = bench.frames(&mut client);
    let calm = frames.iter().position(|frame| frame.contains("\"calm\"")).unwrap();
    assert!(calm < 20, "after two visits, not after all of the other channel: {calm}");
    assert_eq!(frames.len(), 81);
}

#[test]
fn a_blocked_connection_with_many_channels_keeps_each_within_its_bounds() {
    let mut bench = Bench::new();
    let mut slow = bench.connect(Protocol::RawFramed, &["a", "newest:a", "oldest:a", "latest:a", "b"]);
    bench.frames(&mut slow);
    bench.publish("a", &"x".repeat(30_000));
    for i in 0..100 {
        for channel in ["newest:a", "oldest:a", "latest:a"] {
            bench.publish(channel, &format!("\"{i} {}\"", "x".repeat(1_000)));
        }
        bench.turn();
        assert!(bench.log_bytes() < 400_000, "memory is bounded: {}", bench.log_bytes());
    }
    bench.hear(&slow, Opcode::Text, br#"{"unsubscribe":{"channel":"newest:a"}}"#);
    bench.publish("b", "1");
    let frames = bench.frames(&mut slow);
    let of = |channel: &str| {
        let start = format!("{{\"pub\":{{\"channel\":\"{channel}\"");
        frames.iter().filter(|frame| frame.starts_with(&start)).count()
    };
    assert!(of("oldest:a") > 5 && of("oldest:a") < 40, "{}", of("oldest:a"));
    assert!(of("latest:a") >= 1 && of("latest:a") < 20, "{}", of("latest:a"));
    assert_eq!((of("a"), of("b"), of("newest:a")), (1, 1, 0));
    assert_eq!(bench.log_bytes(), 0);
    bench.publish("latest:a", "2");
    assert_eq!(bench.frames(&mut slow).len(), 1);
}

#[test]
fn a_publication_that_cannot_be_made_into_frames_is_lost_to_its_subscribers_who_are_told_and_nobody_ends() {
    let mut bench = Bench::new();
    let mut bare = bench.connect(Protocol::RawBare, &["a"]);
    let mut framed = bench.connect(Protocol::RawFramed, &["a"]);
    let mut other = bench.connect(Protocol::RawBare, &["b"]);
    bench.frames(&mut framed);
    bench.publish("a", "1");
    assert_eq!(bench.frames(&mut bare), ["1"]);
    bench.publish("a", std::str::from_utf8(crate::shard::read::PANIC_LATER).unwrap());
    bench.publish("a", "2");
    bench.publish("b", "3");
    assert_eq!(bench.frames(&mut bare), ["close 3010"]);
    assert_eq!(bench.frames(&mut other), ["3"]);
    let gap = r#"{"gap":{"channel":"a","reason":"the message could not be sent"}}"#;
    let publication = |data| format!(r#"{{"pub":{{"channel":"a","data":{data}}}}}"#);
    assert_eq!(bench.frames(&mut framed), [&publication(1), "ping", gap, &publication(2)]);
    assert_eq!((bench.log_bytes(), bench.core.metrics.gaps.get()), (0, 2), "one for each form");
}

// === limits ===

fn with_limits(limits: &str) -> Bench {
    let mut bench = Bench::new();
    let start = format!("limits: {{{limits}}}, pingIntervalSeconds");
    bench.set_rules(rules(&SETTINGS.replacen("pingIntervalSeconds", &start, 1)));
    bench
}

#[test]
fn a_flood_of_frames_closes_its_connection_and_no_other() {
    let mut bench = with_limits("messagesPerSecond: 10, bytesPerSecond: 100000");
    let mut flood = bench.connect(Protocol::RawBare, &["a"]);
    let mut other = bench.connect(Protocol::RawBare, &["a"]);
    for _ in 0..20 {
        bench.hear(&flood, Opcode::Ping, b"");
    }
    assert_eq!(bench.frames(&mut flood).len(), 20, "two seconds' worth");
    bench.hear(&flood, Opcode::Ping, b"");
    assert_eq!(bench.frames(&mut flood), ["close 3013"]);
    bench.hear(&other, Opcode::Ping, b"");
    assert_eq!(bench.frames(&mut other), ["pong "]);
}

#[test]
fn a_connection_is_closed_after_its_age_which_differs_from_one_to_the_next() {
    let mut bench = with_limits("maxConnectionAgeSeconds: 1000");
    let mut clients: Vec<Client> = (0..20).map(|_| bench.connect(Protocol::Sse, &["a"])).collect();
    let mut left = Vec::new();
    for second in 0..1_150 {
        bench.pass(1_000);
        for client in &mut clients {
            bench.drain(client);
        }
        let gone = clients.iter().filter(|client| bench.is_over(client)).count();
        left.extend(std::iter::repeat_n(second, gone - left.len()));
    }
    assert_eq!(left.len(), 20);
    assert!(left[0] >= 895 && left[19] <= 1_110 && left[19] - left[0] > 100, "{left:?}");
    let closed = CloseReason::ALL.iter().position(|reason| *reason == CloseReason::MaxAge).unwrap();
    assert_eq!(bench.core.metrics.closed[closed].get(), 20);
}

#[test]
fn a_connection_is_idle_when_no_message_passes_in_either_direction_and_pings_do_not_count() {
    let mut bench = with_limits("idleTimeoutSeconds: 100");
    let mut hearing = bench.connect(Protocol::RawBare, &["a"]);
    let mut talking = bench.connect(Protocol::RawBare, &["b"]);
    let mut idle = bench.connect(Protocol::RawBare, &["c"]);
    let mut told = Vec::new();
    for second in 1..=200 {
        bench.pass(1_000);
        if second % 60 == 0 {
            bench.publish("a", "x");
            bench.hear(&talking, Opcode::Text, b"x");
            bench.answer_work(&Ok(()));
        }
        for client in [&mut hearing, &mut talking, &mut idle] {
            if bench.is_over(client) {
                continue;
            }
            let frames = bench.frames(client);
            if frames.iter().any(|frame| frame == "ping") {
                bench.hear(client, Opcode::Pong, b"");
            }
            told.extend(frames.into_iter().filter(|frame| frame.starts_with("close")).map(|_| second));
        }
    }
    assert!(matches!(told[..], [at] if (100..=103).contains(&at)), "{told:?}");
    assert!(bench.is_over(&idle) && !bench.is_over(&hearing) && !bench.is_over(&talking));
}

#[test]
fn a_panic_in_the_protocols_code_closes_that_connection_alone_and_is_counted() {
    let mut bench = Bench::new();
    let mut unlucky = bench.connect(Protocol::RawBare, &["a"]);
    let mut other = bench.connect(Protocol::RawBare, &["a"]);
    bench.hear(&unlucky, Opcode::Text, crate::shard::read::PANIC);
    assert_eq!(bench.frames(&mut unlucky), ["close 3004"]);
    assert_eq!(bench.core.metrics.panics.get(), 1);
    bench.publish("a", "x");
    assert_eq!(bench.frames(&mut other), ["x"]);
}

#[test]
fn a_panic_behind_the_protocol_ends_that_connection_alone_too() {
    let mut bench = Bench::new();
    let mut asking = bench.connect(Protocol::RawFramed, &["a"]);
    let pinging = bench.connect(Protocol::RawBare, &["a"]);
    let mut other = bench.connect(Protocol::RawBare, &["a"]);
    bench.frames(&mut asking);
    bench.hear(&asking, Opcode::Text, br#"{"publish":{"channel":"panic-later","data":1}}"#);
    assert_eq!(bench.frames(&mut asking), ["close 3004"], "its session");
    bench.hear(&pinging, Opcode::Ping, crate::shard::read::PANIC_LATER);
    assert!(bench.is_over(&pinging), "its answer");
    assert_eq!(bench.core.metrics.panics.get(), 2);
    bench.publish("a", "x");
    assert_eq!(bench.frames(&mut other), ["x"]);
}

#[test]
fn publications_that_wait_for_the_control_runtime_are_bounded_in_bytes() {
    let mut bench = Bench::new();
    let mut settings = rules(SETTINGS);
    let hub = &mut Arc::get_mut(&mut settings).unwrap().hub;
    (hub.max_message_bytes, hub.limits.bytes_per_second) = (Config::MOST_WAITING_BYTES as u32, u32::MAX);
    bench.set_rules(settings);
    let mut client = bench.connect(Protocol::RawFramed, &["a"]);
    bench.frames(&mut client);
    let half = json_of(1, Config::MOST_WAITING_BYTES / 2);
    let publish = format!(r#"{{"publish":{{"channel":"a","data":{half},"id":"1"}}}}"#);
    bench.hear(&client, Opcode::Text, publish.as_bytes());
    bench.hear(&client, Opcode::Text, publish.as_bytes());
    assert!(bench.frames(&mut client)[0].contains(r#""code":111"#), "the second is one too many");
    assert_eq!(bench.answer_work(&Ok(())).len(), 1);
    bench.hear(&client, Opcode::Text, publish.as_bytes());
    assert_eq!(bench.answer_work(&Ok(())).len(), 1, "there is room again");
}

#[test]
fn a_promised_connection_that_lags_too_far_holds_nothing_and_is_counted_once() {
    let mut bench = Bench::new();
    let mut answer = bench.ask(Protocol::RawFramed, Identity::default(), &["small:a"]);
    bench.answer_work(&Ok(()));
    let reserved = answer.try_recv().unwrap().unwrap();
    for _ in 0..100 {
        bench.publish("small:a", &"x".repeat(1_000));
        bench.turn();
    }
    assert_eq!((bench.log_bytes(), bench.core.metrics.slow_disconnected.get()), (0, 1));
    let mut client = bench.attach(reserved);
    assert_eq!(bench.frames(&mut client).last().map(String::as_str), Some("close 3008"));
}

#[test]
fn pings_of_clients_that_came_together_are_spread() {
    let mut bench = Bench::new();
    let mut clients: Vec<Client> = (0..200).map(|_| bench.connect(Protocol::RawBare, &["a"])).collect();
    let mut pinged = [0; 60];
    for second in &mut pinged {
        bench.pass(1_000);
        for client in &mut clients {
            for frame in bench.frames(client) {
                assert_eq!(frame, "ping");
                *second += 1;
                bench.hear(client, Opcode::Pong, b"");
            }
        }
    }
    // Over ten seconds, each time.
    assert!(*pinged.iter().max().unwrap() < 50, "{pinged:?}");
    assert!(pinged.iter().sum::<u32>() >= 400, "{pinged:?}");
}

#[test]
fn a_client_has_the_whole_time_for_its_pong_whatever_its_idle_time() {
    for idle in 6..40 {
        let mut bench = with_limits(&format!("idleTimeoutSeconds: {idle}"));
        let mut silent = bench.connect(Protocol::RawBare, &["a"]);
        let mut pinged = None;
        let waited = (0..400).find_map(|tenth| {
            bench.pass(100);
            if tenth % 40 == 0 {
                bench.publish("a", "x");
            }
            let frames = bench.frames(&mut silent);
            if frames.iter().any(|frame| frame == "ping") {
                pinged = Some(tenth);
            }
            frames.iter().any(|frame| frame == "close 3012").then(|| tenth - pinged.expect("a ping before"))
        });
        assert!((49..=55).contains(&waited.expect("closed")), "{waited:?} tenths with {idle} s");
    }
}

// === slow consumers ===

#[test]
fn slow_consumer_is_closed_and_others_still_receive() {
    let mut bench = Bench::new();
    let mut slow = bench.connect(Protocol::RawBare, &["small:a"]);
    let mut quick = bench.connect(Protocol::RawBare, &["small:a"]);
    let text = "x".repeat(1_000);
    let mut received = 0;
    for _ in 0..60 {
        bench.publish("small:a", &text);
        received += bench.frames(&mut quick).len();
    }
    assert_eq!(received, 60);
    assert_eq!(bench.core.metrics.slow_disconnected.get(), 1);
    assert!(bench.log_bytes() < 1_100, "nobody is behind by more than a message any more");
    let frames = bench.frames(&mut slow);
    assert_eq!((bench.log_bytes(), frames.last().map(String::as_str)), (0, Some("close 3008")));
    assert!(frames[..frames.len() - 1].iter().all(|frame| *frame == text), "whole frames only");
}

#[test]
fn a_lag_in_messages_is_bounded_as_well() {
    let mut bench = Bench::new();
    let mut slow = bench.connect(Protocol::RawBare, &["few:a"]);
    bench.publish("few:a", &"x".repeat(20_000));
    bench.turn();
    for _ in 0..9 {
        bench.publish("few:a", "y");
        bench.turn();
    }
    assert_eq!(bench.core.metrics.slow_disconnected.get(), 0);
    bench.publish("few:a", "y");
    bench.turn();
    assert_eq!(bench.core.metrics.slow_disconnected.get(), 1);
    assert_eq!(bench.frames(&mut slow).last().map(String::as_str), Some("close 3008"));
}

#[test]
fn a_burst_larger_than_the_bound_is_no_slowness_of_a_client_that_was_not_offered_it() {
    let mut bench = Bench::new();
    let mut client = bench.connect(Protocol::RawBare, &["small:a"]);
    for _ in 0..15 {
        bench.publish("small:a", &"x".repeat(1_000));
    }
    assert_eq!(bench.frames(&mut client).len(), 15);
    let text = "x".repeat(30_000);
    bench.publish("small:a", &text[..15_000]);
    assert_eq!(bench.frames(&mut client).len(), 1);
}

#[test]
fn drop_oldest_skips_whole_messages_and_tells_a_framed_client_once() {
    let mut bench = Bench::new();
    let mut slow = bench.connect(Protocol::RawFramed, &["oldest:a"]);
    bench.frames(&mut slow);
    for i in 0..200 {
        bench.publish("oldest:a", &format!("\"{i} {}\"", "x".repeat(1_000)));
        bench.turn();
        assert!(bench.log_bytes() < 200_000, "memory is bounded");
    }
    let frames = bench.frames(&mut slow);
    let gaps: Vec<_> = frames.iter().filter(|frame| frame.starts_with("{\"gap\"")).collect();
    assert_eq!(gaps, [r#"{"gap":{"channel":"oldest:a","reason":"slowConsumer"}}"#]);
    let numbers: Vec<u64> = frames
        .iter()
        .filter_map(|frame| frame.strip_prefix(r#"{"pub":{"channel":"oldest:a","data":""#))
        .map(|rest| rest.split(' ').next().unwrap().parse().unwrap())
        .collect();
    assert!(
        numbers.is_sorted() && numbers.last() == Some(&199),
        "in order, the newest included: {numbers:?}"
    );
    assert_eq!(numbers.len() as u64 + bench.core.metrics.slow_dropped.get(), 200);
    assert!(!bench.is_over(&slow));
    assert_eq!(bench.log_bytes(), 0);
}

#[test]
fn a_client_that_reads_nothing_is_closed_though_it_lags_little() {
    let mut bench = Bench::new();
    let mut stuck = bench.connect(Protocol::Sse, &["a"]);
    bench.publish("a", &"x".repeat(20_000));
    bench.turn();
    bench.pass(29_000);
    assert_eq!(bench.core.metrics.write_timeouts.get(), 0);
    bench.pass(2_000);
    assert_eq!(bench.core.metrics.write_timeouts.get(), 1);
    bench.pass(CLOSE_MS + 500);
    assert!(bench.is_over(&stuck), "it did not read its end either");
    bench.drain(&mut stuck);
}

// === gaps ===

fn numbers(frames: &[String]) -> Vec<u64> {
    frames.iter().filter_map(|frame| frame.split(' ').next()?.parse().ok()).collect()
}

#[test]
fn drop_newest_keeps_what_waits_and_goes_on_with_what_comes_once_that_is_sent() {
    let mut bench = Bench::new();
    let mut slow = bench.connect(Protocol::RawBare, &["newest:a"]);
    let mut quick = bench.connect(Protocol::RawBare, &["newest:a"]);
    for i in 0..200 {
        bench.publish("newest:a", &format!("{i} {}", "x".repeat(1_000)));
        assert_eq!(bench.frames(&mut quick).len(), 1);
        assert!(bench.log_bytes() < 200_000, "memory is bounded");
    }
    let kept = bench.frames(&mut slow);
    let kept = numbers(&kept);
    assert!(kept.len() > 30 && kept.len() < 40, "16 KiB in the pipe and 20 kB behind it: {kept:?}");
    assert_eq!(kept, (0..kept.len() as u64).collect::<Vec<_>>(), "the oldest, without a hole");
    assert_eq!(kept.len() as u64 + bench.core.metrics.slow_dropped_newest.get(), 200);
    assert_eq!(bench.log_bytes(), 0);
    bench.publish("newest:a", "200 ");
    assert_eq!((bench.frames(&mut slow).len(), bench.frames(&mut quick).len()), (1, 1));
    let sent = &bench.core.slots[slow.slot].passport.as_ref().unwrap().sent;
    let before = bench
        .core
        .index
        .lane(bench.core.slots[slow.slot].first.lane)
        .log
        .messages_before(bench.core.slots[slow.slot].first.cursor);
    assert_eq!(
        before.wrapping_add(sent.messages),
        kept.len() as u64 + 1,
        "skipped ones do not count as sent"
    );
    assert!(!bench.core.slots[slow.slot].flags.has(Flags::BEHIND));
}

#[test]
fn a_subscription_with_a_stop_that_ends_holds_no_memory_back() {
    let mut bench = Bench::new();
    let slow = bench.connect(Protocol::RawBare, &["newest:a"]);
    let mut quick = bench.connect(Protocol::RawBare, &["newest:a"]);
    for _ in 0..100 {
        bench.publish("newest:a", &"x".repeat(1_000));
        bench.frames(&mut quick);
    }
    assert!(bench.log_bytes() > 0);
    bench.core.end(slow.slot, CloseReason::ConnectionLost);
    assert_eq!(bench.log_bytes(), 0);
    bench.publish("newest:a", "x");
    assert_eq!(bench.frames(&mut quick), ["x"]);
}

#[test]
fn conflate_keeps_the_newest_message_of_a_channel() {
    let mut bench = Bench::new();
    let mut slow = bench.connect(Protocol::RawBare, &["latest:a"]);
    for i in 0..500 {
        bench.publish("latest:a", &format!("{i} {}", "x".repeat(1_000)));
        bench.turn();
        assert!(bench.log_bytes() < 300_000, "memory is bounded: {}", bench.log_bytes());
    }
    let received = numbers(&bench.frames(&mut slow));
    assert!(received.is_sorted() && received.last() == Some(&499), "{received:?}");
    assert!(received.len() < 30, "what the pipe held, and few behind it: {received:?}");
    assert_eq!(received.len() as u64 + bench.core.metrics.slow_conflated.get(), 500);
    assert!(!bench.is_over(&slow));
}

#[test]
fn conflate_keeps_the_newest_message_of_each_key() {
    let mut bench = Bench::new();
    let mut slow = bench.connect(Protocol::RawBare, &["latest:a"]);
    for i in 0..400 {
        let text = format!("{i} {}", "x".repeat(1_000));
        bench.publish_about("latest:a", &format!("key {}", i % 7), &text);
        bench.turn();
        assert!(bench.log_bytes() < 300_000, "memory is bounded: {}", bench.log_bytes());
    }
    let received = numbers(&bench.frames(&mut slow));
    assert!(received.is_sorted(), "{received:?}");
    for key in 0..7 {
        let newest = (0..400).rev().find(|i| i % 7 == key).unwrap();
        assert!(received.contains(&newest), "{newest} in {received:?}");
    }
    assert!(received.len() < 50, "{received:?}");
    assert_eq!(received.len() as u64 + bench.core.metrics.slow_conflated.get(), 400);
    assert_eq!((bench.log_bytes(), bench.core.slots[slow.slot].flags.has(Flags::BEHIND)), (0, false));
    bench.publish_about("latest:a", "key 1", "400 ");
    assert_eq!(numbers(&bench.frames(&mut slow)), [400]);
}

#[test]
fn what_a_conflating_client_is_kept_is_counted_and_what_does_not_fit_is_told() {
    let mut bench = Bench::new();
    let mut slow = bench.connect(Protocol::RawFramed, &["latest:a"]);
    bench.frames(&mut slow);
    for i in 0..400 {
        bench.publish_about("latest:a", &format!("key {}", i % 40), &json_of(i, 1_000));
        bench.turn();
    }
    let kept = bench.core.slots[slow.slot].backlog(bench.core.slots[slow.slot].first.lane).unwrap().lag();
    assert!(kept.messages <= 10 && kept.bytes <= 20_000, "{kept:?}");
    assert!(bench.log_bytes() >= kept.bytes, "{} bytes counted", bench.log_bytes());
    let frames = bench.frames(&mut slow);
    assert!(frames.iter().any(|frame| frame.contains("slowConsumer")), "{frames:?}");
    assert!(frames.last().unwrap().contains("399"), "{frames:?}");
    assert_eq!(bench.log_bytes(), 0);
    for i in 0..400 {
        bench.publish_about("latest:a", &format!("key {}", i % 40), &json_of(i, 1_000));
        bench.turn();
    }
    bench.core.force();
    assert_eq!(bench.log_bytes(), 0, "a client that ends lets go of it");
}

fn json_of(number: usize, bytes: usize) -> String {
    serde_json::json!({"number": number, "padding": "x".repeat(bytes)}).to_string()
}

#[test]
fn one_connection_takes_more_channels_in_a_turn_than_fit_one_write() {
    let mut bench = Bench::with_room_for(5_000);
    let mut settings = rules(SETTINGS);
    Arc::get_mut(&mut settings).unwrap().hub.limits.channels_per_connection = 5_000;
    bench.set_rules(settings);
    let channels: Vec<String> = (0..3_000).map(|i| format!("c{i}")).collect();
    let channels: Vec<&str> = channels.iter().map(String::as_str).collect();
    let mut client = bench.connect(Protocol::RawFramed, &channels);
    bench.frames(&mut client);
    for channel in &channels {
        bench.publish(channel, "1");
    }
    assert_eq!(bench.frames(&mut client).len(), 3_000);
}

#[test]
fn a_gap_is_told_in_order_by_message_by_event_or_by_closing() {
    let mut bench = Bench::new();
    let mut bare = bench.connect(Protocol::RawBare, &["a"]);
    let mut framed = bench.connect(Protocol::RawFramed, &["a"]);
    let mut sse = bench.connect(Protocol::Sse, &["a"]);
    bench.publish("a", "1");
    bench.core.gap(&[name("a")], true, "overflow");
    bench.publish("a", "2");
    assert_eq!(
        bench.frames(&mut framed)[2..],
        [
            r#"{"pub":{"channel":"a","data":1}}"#,
            r#"{"gap":{"channel":"a","reason":"overflow"}}"#,
            r#"{"pub":{"channel":"a","data":2}}"#
        ]
    );
    bench.drain(&mut sse);
    let text = String::from_utf8(sse.received).unwrap();
    assert!(text.contains("data: 1\n\nevent: gap\ndata: {"), "{text}");
    assert_eq!(bench.frames(&mut bare).last().map(String::as_str), Some("close 3010"));
}

#[test]
fn a_possible_gap_everywhere_closes_nobody() {
    let mut bench = Bench::new();
    let mut bare = bench.connect(Protocol::RawBare, &["a"]);
    let mut framed = bench.connect(Protocol::RawFramed, &["b"]);
    bench.core.gap(&[name("a"), name("b")], false, "brokerReconnected");
    assert!(bench.frames(&mut bare).is_empty());
    assert!(bench.frames(&mut framed)[2].starts_with("{\"gap\""));
}

// === ending ===

#[test]
fn a_ping_that_is_not_answered_ends_the_connection_and_any_sign_of_life_keeps_it() {
    let mut bench = Bench::new();
    let (mut dead, mut alive) =
        (bench.connect(Protocol::RawBare, &["a"]), bench.connect(Protocol::RawBare, &["a"]));
    let mut pings = 0;
    for _ in 0..600 {
        bench.pass(100);
        for frame in bench.frames(&mut alive) {
            assert_eq!(frame, "ping");
            pings += 1;
            bench.hear(&alive, Opcode::Pong, b"");
        }
    }
    assert!((2..=4).contains(&pings), "every 20 s in 60 s, the first one earlier: {pings}");
    assert_eq!(bench.frames(&mut dead), ["ping", "close 3012"]);
    assert!(bench.is_over(&dead) && !bench.is_over(&alive));
}

#[test]
fn a_connection_ends_with_its_token() {
    let mut bench = Bench::new();
    bench.core.now.unix_us = 1_000_000_000_000;
    let identity = Identity { expires_at: Some(1_000_003), ..Identity::default() };
    let mut client = bench.connect_as(Protocol::RawBare, identity, &["a"]);
    bench.pass(2_900);
    assert!(bench.frames(&mut client).is_empty());
    bench.pass(300);
    assert_eq!(bench.frames(&mut client), ["close 3005"]);
}

#[test]
fn the_closing_handshake_is_answered_with_the_same_code() {
    let mut bench = Bench::new();
    let mut client = bench.connect(Protocol::RawBare, &["a"]);
    bench.hear(&client, Opcode::Close, &[0x0F, 0xA0]);
    assert_eq!(bench.frames(&mut client), ["close 4000"]);
    assert!(bench.is_over(&client));
    assert_eq!(bench.answer_work(&Ok(())), ["-a"]);
}

#[test]
fn half_a_frame_that_grows_is_a_sign_of_life_and_a_byte_now_and_then_is_none() {
    let mut bench = Bench::new();
    let (growing, trickling) =
        (bench.connect(Protocol::RawBare, &["a"]), bench.connect(Protocol::RawBare, &["a"]));
    // The head of a frame of 60,000 bytes.
    for client in [&growing, &trickling] {
        bench.core.take_bytes(client.slot, &mut [0x82, 0xFE, 0xEA, 0x60, 0, 0, 0, 0]);
    }
    for _ in 0..40 {
        bench.pass(1_000);
        bench.core.take_bytes(growing.slot, &mut [0; 600]);
        if !bench.is_over(&trickling) {
            bench.core.take_bytes(trickling.slot, &mut [0]);
        }
    }
    assert!(!bench.is_over(&growing) && bench.is_over(&trickling));
}

#[test]
fn a_server_that_closes_waits_for_the_client_but_not_for_ever() {
    let mut bench = Bench::new();
    let (mut polite, mut silent) =
        (bench.connect(Protocol::RawBare, &["a"]), bench.connect(Protocol::RawBare, &["a"]));
    let advice = Advice { after: std::time::Duration::ZERO, jitter: std::time::Duration::ZERO };
    bench.core.shed(2, advice);
    assert_eq!(bench.frames(&mut polite), ["close 1012"]);
    assert_eq!(bench.frames(&mut silent), ["close 1012"]);
    bench.hear(&polite, Opcode::Close, &[0x03, 0xF4]);
    bench.turn();
    assert!(bench.is_over(&polite) && !bench.is_over(&silent));
    bench.pass(CLOSE_MS + 500);
    assert!(bench.is_over(&silent));
    assert_eq!(bench.core.seats.taken(), 0);
}

#[test]
fn what_comes_behind_a_violation_is_thrown_away() {
    let mut bench = Bench::new();
    let mut client = bench.connect(Protocol::RawBare, &["a"]);
    bench.core.take_bytes(client.slot, &mut [0x81, 0x01, b'a']);
    bench.hear(&client, Opcode::Text, b"published?");
    assert_eq!(bench.frames(&mut client), ["close 1002"]);
    assert!(bench.answer_work(&Ok(())).iter().all(|work| work == "-a"));
}

#[test]
fn a_client_on_its_way_in_when_the_drain_begins_is_told_so() {
    let mut bench = Bench::new();
    let mut answer = bench.ask(Protocol::RawBare, Identity::default(), &["a"]);
    bench.answer_work(&Ok(()));
    let reserved = answer.try_recv().unwrap().unwrap();
    let advice = Advice { after: std::time::Duration::ZERO, jitter: std::time::Duration::ZERO };
    bench.core.shed(1, advice);
    bench.turn();
    let mut client = bench.attach(reserved);
    assert_eq!(bench.frames(&mut client), ["close 1012"]);
    bench.pass(CLOSE_MS + 500);
    assert_eq!(bench.core.seats.taken(), 0);
}

#[test]
fn a_drain_takes_the_oldest_first() {
    let mut bench = Bench::new();
    let clients: Vec<_> = (0..5).map(|_| bench.connect(Protocol::Sse, &["a"])).collect();
    let advice = Advice { after: std::time::Duration::ZERO, jitter: std::time::Duration::ZERO };
    bench.core.shed(2, advice);
    bench.turn();
    let over: Vec<bool> = clients.iter().map(|client| bench.is_over(client)).collect();
    assert_eq!(over, [true, true, false, false, false]);
    bench.core.shed(100, advice);
    bench.turn();
    assert_eq!(bench.core.seats.taken(), 0);
}

#[test]
fn event_sources_are_asked_back_at_different_times() {
    let mut bench = Bench::new();
    let mut clients: Vec<_> = (0..8).map(|_| bench.connect(Protocol::Sse, &["a"])).collect();
    let advice =
        Advice { after: std::time::Duration::from_secs(1), jitter: std::time::Duration::from_secs(15) };
    bench.core.shed(8, advice);
    bench.turn();
    clients.iter_mut().for_each(|client| bench.drain(client));
    let retries: Vec<u64> = clients.iter().map(|client| last_retry(&client.received)).collect();
    assert!(retries.iter().all(|ms| (1_000..=16_000).contains(ms)), "{retries:?}");
    assert!(retries.iter().any(|ms| *ms != retries[0]), "{retries:?}");
}

fn last_retry(stream: &[u8]) -> u64 {
    let line = str::from_utf8(stream)
        .expect("text")
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("retry: "))
        .expect("the stream ends with one");
    line.parse().expect("milliseconds")
}

#[test]
fn a_forced_end_leaves_nobody() {
    let mut bench = Bench::new();
    let mut client = bench.connect(Protocol::RawBare, &["a"]);
    let mut stuck = bench.connect(Protocol::RawBare, &["a"]);
    bench.frames(&mut client);
    bench.publish("a", &"x".repeat(20_000));
    bench.turn();
    bench.drain(&mut client);
    client.received.clear();
    bench.core.force();
    assert_eq!(bench.frames(&mut client), ["close 1012"]);
    assert!(bench.is_over(&client) && bench.is_over(&stuck));
    bench.drain(&mut stuck);
    assert_eq!((bench.core.seats.taken(), bench.log_bytes()), (0, 0));
}

#[test]
fn a_backend_closes_one_connection_or_those_of_a_user() {
    let mut bench = Bench::new();
    let user = |name: &str| Identity { user: Some(name.into()), ..Identity::default() };
    let mut ann = bench.connect_as(Protocol::RawBare, user("ann"), &["a"]);
    let mut bob = bench.connect_as(Protocol::RawBare, user("bob"), &["a"]);
    let mut nobody = bench.connect(Protocol::RawBare, &["a"]);
    assert_eq!(bench.core.disconnect(None, Some("ann"), Duration::ZERO, CloseReason::Disconnected), 1);
    assert_eq!(
        bench.core.disconnect(None, Some("ann"), Duration::ZERO, CloseReason::Disconnected),
        0,
        "it is leaving already"
    );
    let id = bench.core.id(nobody.slot);
    assert_eq!(bench.core.disconnect(Some(id), Some("bob"), Duration::ZERO, CloseReason::Disconnected), 0);
    assert_eq!(bench.core.disconnect(Some(id), None, Duration::ZERO, CloseReason::Disconnected), 1);
    assert_eq!(bench.core.disconnect(None, None, Duration::ZERO, CloseReason::Disconnected), 0);
    assert_eq!(bench.frames(&mut ann), ["close 3503"]);
    assert_eq!(bench.frames(&mut nobody), ["close 3503"]);
    assert!(bench.frames(&mut bob).is_empty());
}

#[test]
fn a_disconnect_of_a_while_ago_leaves_the_connections_that_came_since() {
    let mut bench = Bench::new();
    let ann = || Identity { user: Some("ann".into()), ..Identity::default() };
    let mut before = bench.connect_as(Protocol::RawBare, ann(), &["a"]);
    bench.pass(5_000);
    let mut since = bench.connect_as(Protocol::RawBare, ann(), &["a"]);
    bench.pass(2_000);
    let (age, reason) = (Duration::from_secs(3), CloseReason::Disconnected);
    assert_eq!(bench.core.disconnect(None, Some("ann"), age, reason), 1);
    assert_eq!(bench.frames(&mut before), ["close 3503"]);
    assert!(bench.frames(&mut since).is_empty());
}

#[test]
fn a_connection_is_found_by_its_user_until_it_is_over() {
    let mut bench = Bench::new();
    let ann = || Identity { user: Some("ann".into()), ..Identity::default() };
    let clients: Vec<_> = (0..3).map(|_| bench.connect_as(Protocol::RawBare, ann(), &["a"])).collect();
    bench.connect(Protocol::RawBare, &["a"]);
    let slots: HashSet<_> = clients.iter().map(|client| client.slot).collect();
    assert_eq!(HashSet::from_iter(bench.core.slots.of_user("ann")), slots);
    bench.core.end(clients[1].slot, CloseReason::ConnectionLost);
    let _refused = bench.ask(Protocol::RawBare, ann(), &["none:of-these"]);
    let slots: HashSet<_> = [clients[0].slot, clients[2].slot].into();
    assert_eq!(HashSet::from_iter(bench.core.slots.of_user("ann")), slots);
}

#[test]
fn a_subscription_that_ends_before_it_is_live_is_answered_too() {
    let mut bench = Bench::new();
    let mut client = bench.connect(Protocol::RawFramed, &["a"]);
    bench.frames(&mut client);
    bench.hear(&client, Opcode::Text, br#"{"subscribe":{"channel":"small:b","id":"1"}}"#);
    bench.hear(&client, Opcode::Text, br#"{"unsubscribe":{"channel":"small:b","id":"2"}}"#);
    bench.hear(&client, Opcode::Text, br#"{"subscribe":{"channel":"small:b","id":"3"}}"#);
    let answers = |frames: Vec<String>| -> Vec<(String, serde_json::Value)> {
        let answer = |frame: &String| {
            let frame: serde_json::Value = serde_json::from_str(frame).unwrap();
            let (kind, answer) = frame.as_object().unwrap().iter().next().unwrap();
            (kind.clone(), answer["id"].clone())
        };
        frames.iter().map(answer).collect()
    };
    let before = [("error".to_owned(), "1".into()), ("unsubscribed".to_owned(), "2".into())];
    assert_eq!(answers(bench.frames(&mut client)), before);
    bench.answer_work(&Ok(()));
    assert_eq!(answers(bench.frames(&mut client)), [("subscribed".to_owned(), "3".into())]);
}

#[test]
fn a_subscription_that_new_settings_end_before_it_is_live_is_answered_by_its_id() {
    let mut bench = Bench::new();
    let mut client = bench.connect(Protocol::RawFramed, &["a"]);
    bench.frames(&mut client);
    bench.hear(&client, Opcode::Text, br#"{"subscribe":{"channel":"small:b","id":"1"}}"#);
    bench.set_rules(rules("namespaces: [{name: default, subscribe: allowed}]"));
    let frames = bench.frames(&mut client);
    assert!(frames[0].contains("\"code\":103") && frames[0].contains("\"id\":\"1\""), "{frames:?}");
}

#[test]
fn new_settings_end_what_they_no_longer_allow_and_nothing_else() {
    let mut bench = Bench::new();
    let mut bare = bench.connect(Protocol::RawBare, &["a"]);
    let mut framed = bench.connect(Protocol::RawFramed, &["a", "small:b"]);
    let grants = Grants { subscribe: vec!["a".parse().unwrap()], ..Grants::default() };
    let member = Identity { grants: Arc::new(grants), ..Identity::default() };
    let mut member = bench.connect_as(Protocol::RawBare, member, &["a"]);
    bench.frames(&mut framed);
    bench.set_rules(rules(
        "namespaces: [{name: default, subscribe: token}, {name: small, subscribe: allowed}]",
    ));
    assert_eq!(bench.frames(&mut bare), ["close 3507"]);
    let frames = bench.frames(&mut framed);
    assert!(frames[0].contains("\"code\":103") && frames[1] == r#"{"unsubscribed":{"channel":"a"}}"#);
    bench.publish("small:b", "1");
    bench.publish("a", "2");
    assert_eq!(bench.frames(&mut framed), [r#"{"pub":{"channel":"small:b","data":1}}"#]);
    assert_eq!(bench.frames(&mut member), ["2"]);
}

#[test]
fn an_idle_connection_holds_no_cold_part() {
    let mut bench = Bench::new();
    let mut client = bench.connect(Protocol::RawBare, &["a"]);
    bench.hear(&client, Opcode::Ping, b"x");
    bench.hear(&client, Opcode::Text, b"y");
    bench.answer_work(&Ok(()));
    bench.publish("a", "z");
    assert_eq!(bench.frames(&mut client), ["pong x", "z"]);
    assert!(bench.core.slots[client.slot].cold.is_none());
}

#[test]
fn what_was_sent_is_known_at_the_end_without_being_counted_on_the_way() {
    let mut bench = Bench::new();
    let mut client = bench.connect(Protocol::RawBare, &["a"]);
    for _ in 0..3 {
        bench.publish("a", "12345678");
        bench.frames(&mut client);
    }
    bench.core.begin_end(client.slot, CloseReason::ClientClosed);
    let sent = bench.core.slots[client.slot].passport.as_ref().unwrap().sent;
    assert_eq!(sent, Count { bytes: 30, messages: 3 });
}

#[test]
fn the_access_line_says_who_how_long_how_much_and_why_but_nothing_that_was_said() {
    let written = Written::default();
    let writer = written.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, || {
        let mut bench = Bench::new();
        let identity = Identity { user: Some("ann".into()), ..Identity::default() };
        let mut client = bench.connect_as(Protocol::RawBare, identity, &["a"]);
        bench.hear(&client, Opcode::Text, b"a secret");
        bench.publish("a", "a secret");
        bench.pass(1_000);
        bench.frames(&mut client);
        bench.hear(&client, Opcode::Close, b"");
        bench.frames(&mut client);
    });
    let text = written.text();
    let lines: Vec<_> = text.lines().filter(|line| line.contains("access")).collect();
    let [line] = lines[..] else { panic!("one line: {text}") };
    for part in [
        "client=\"0000000000000001-0-0-1\"",
        "client.addr=192.0.2.1:5",
        "protocol=\"raw_bare\"",
        "user=\"ann\"",
        "duration_ms=1000",
        "received_messages=1",
        "sent_bytes=10 sent_messages=1",
        "reason=\"client_closed\"",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(!text.contains("secret"));
}
