//! What WebSocket clients send.

use fanout_sidecar::{
    domain::{ChannelName, CloseReason, Command},
    protocol::{
        Incoming, Message, Protocol, Reply, raw,
        websocket::{Decoder, Deflater, Event, Inflater, MaxBytes, Opcode, Step, Violation},
    },
};

/// Small, so that the limit is reached.
const MAX_MESSAGE: usize = 300;
const MAX: MaxBytes = MaxBytes { message: MAX_MESSAGE, frame: usize::MAX };

#[derive(Debug, PartialEq, Eq)]
enum Owned {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

/// The events of a stream do not depend on how it was cut, and no message passes the limit, compressed or not.
pub(crate) fn frames(data: &[u8]) {
    let Some((step, stream)) = crate::parameter(data) else { return };
    check_stream(stream, step, &mut None);
    check_stream(stream, step, &mut Some(Inflater::default()));
}

fn check_stream(stream: &[u8], step: u8, inflater: &mut Option<Inflater>) {
    let whole = decode(stream, stream.len().max(1), inflater);
    assert_eq!(decode(stream, 1, inflater), whole, "byte by byte");
    assert_eq!(decode(stream, usize::from(step).max(2), inflater), whole, "in pieces of {step}");
    for event in &whole.0 {
        match event {
            Owned::Text(text) => assert!(text.len() <= MAX_MESSAGE),
            Owned::Binary(bytes) => assert!(bytes.len() <= MAX_MESSAGE),
            Owned::Ping(bytes) | Owned::Pong(bytes) => assert!(bytes.len() <= 125),
            Owned::Close(close) => assert!(close.as_ref().is_none_or(|(_, reason)| reason.len() <= 123)),
        }
    }
}

/// A message is unpacked as it was packed, and what a client calls packed is read within the limit however it was cut.
pub(crate) fn deflate(data: &[u8]) {
    let Some((choice, message)) = crate::parameter(data) else { return };
    let mut packed = Vec::new();
    Deflater::default().put(&mut packed, Opcode::Binary, message, u32::from(choice % 9) + 1);
    let compressed = packed[0] & 0x40 != 0;
    let mut stream =
        masked(packed[0], crate::publication::payload_of(&[&[packed[0] & !0x40], &packed[1..]].concat()));
    let mut inflater = Inflater::default();
    let max = MaxBytes { message: message.len(), frame: usize::MAX };
    match Decoder::default().step(&mut stream, max, Some(&mut inflater)) {
        Ok(Step::Consumed(_, Some(Event::Binary(plain)))) => {
            assert!(plain == message, "packed: {compressed}")
        }
        other => panic!("packed by ourselves: {other:?}"),
    }
    let (first, second) = message.split_at(usize::from(choice).min(message.len()));
    check_stream(&[masked(0xC2, message), masked(0x81, b"next")].concat(), choice, &mut Some(inflater));
    let fragments = [masked(0x41, first), masked(0x89, b"ping"), masked(0x80, second)].concat();
    check_stream(&fragments, choice, &mut Some(Inflater::default()));
}

/// A client's frame, masked with zeros.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        0..=125 => frame.push(0x80 | payload.len() as u8),
        length => {
            frame.push(0xFE);
            frame.extend_from_slice(&u16::try_from(length).expect("inputs are short").to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

/// Feeds a stream in pieces, as a connection does: what was not consumed is offered again with more behind it.
fn decode(stream: &[u8], piece: usize, inflater: &mut Option<Inflater>) -> (Vec<Owned>, Option<Violation>) {
    let (mut decoder, mut kept, mut events) = (Decoder::default(), Vec::new(), Vec::new());
    for piece in stream.chunks(piece) {
        kept.extend_from_slice(piece);
        let mut at = 0;
        loop {
            match decoder.step(&mut kept[at..], MAX, inflater.as_mut()) {
                Ok(Step::Incomplete) => break,
                Ok(Step::Consumed(used, event)) => {
                    assert!(used > 0, "a step goes forward");
                    at += used;
                    events.extend(event.map(Owned::from));
                }
                Err(violation) => return (events, Some(violation)),
            }
        }
        kept.drain(..at);
        // What is compressed may be a little longer than itself.
        assert!(kept.len() < MAX_MESSAGE + 14 + 66, "an incomplete frame is within the limit");
    }
    (events, None)
}

impl From<Event<'_>> for Owned {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Text(text) => Self::Text(text.to_owned()),
            Event::Binary(bytes) => Self::Binary(bytes.to_vec()),
            Event::Ping(bytes) => Self::Ping(bytes.to_vec()),
            Event::Pong(bytes) => Self::Pong(bytes.to_vec()),
            Event::Close(close) => Self::Close(close.map(|(code, reason)| (code, reason.to_owned()))),
        }
    }
}

/// A message of `fanout.v1` is a command within the limits or a mistake that can be told.
pub(crate) fn commands(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match raw::framed::parse(text, MAX_MESSAGE) {
        Message::Command(Command::Publish { channel, payload, id, idempotency_key: _ }) => {
            assert!(payload.bytes().len() <= MAX_MESSAGE);
            check_told(&channel, id.as_deref());
        }
        Message::Command(
            Command::Subscribe { channel, id }
            | Command::Unsubscribe { channel, id }
            | Command::Acknowledge { channel, id, .. },
        ) => check_told(&channel, id.as_deref()),
        Message::Refresh { token: _, id } => {
            assert_eq!(
                json_of(&Reply::Refreshed { id: id.as_deref() })["refreshed"]["id"].as_str(),
                id.as_deref()
            );
        }
        Message::Mistake { error, id } => {
            let reply = Reply::Error { error: &error, channel: None, id: id.as_deref() };
            assert_eq!(json_of(&reply)["error"]["id"].as_str(), id.as_deref());
        }
    }
    check_frame(text);
}

/// The answer names channel and id as they were sent.
fn check_told(channel: &ChannelName, id: Option<&str>) {
    assert!(id.is_none_or(|id| id.len() <= 128));
    let told = json_of(&Reply::Subscribed { channel, id });
    assert_eq!(told["subscribed"]["channel"], channel.as_str());
    assert_eq!(told["subscribed"]["id"].as_str(), id);
}

fn json_of(reply: &Reply<'_>) -> serde_json::Value {
    let mut out = Vec::new();
    Protocol::RawFramed.put_reply(&mut out, reply);
    serde_json::from_slice(crate::publication::payload_of(&out)).expect("a reply is JSON")
}

/// The same text in a frame reads as the same message, whichever way it came.
fn check_frame(text: &str) {
    if u16::try_from(text.len()).is_err() {
        return;
    }
    let mut frame = masked(0x81, text.as_bytes());
    let length = frame.len();
    match raw::read(Protocol::RawFramed, &mut Decoder::default(), &mut frame, None, MAX, None) {
        Ok(Some((used, Incoming::Message(message)))) => {
            assert_eq!((used, message), (length, raw::framed::parse(text, MAX_MESSAGE)));
        }
        Err(CloseReason::MessageTooBig) => assert!(text.len() > Protocol::RawFramed.max_message(MAX_MESSAGE)),
        other => panic!("a text frame gave {other:?}"),
    }
}
