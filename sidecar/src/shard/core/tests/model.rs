//! Delivery against a naive queue: whatever slow readers, policies, and clients that come and go do, nothing comes
//! twice, out of order or torn, and nothing is skipped that the policy does not allow.

use proptest::{collection::vec, prelude::*};
use serde_json::{Value, json};

use super::*;

/// One channel for each policy; the bounds of all but `few` are under two pipes full.
const CHANNELS: [&str; 6] = ["small:a", "few:a", "oldest:a", "newest:a", "latest:a", KEYED];
/// Whose publications have keys.
const KEYED: &str = "latest:keyed";
const KEYS: usize = 3;
const CLIENTS: usize = 4;

#[derive(Clone, Debug)]
enum Op {
    Publish { channel: usize, bytes: usize },
    Read { client: usize },
    Turn,
    Pass,
    Connect { client: usize, framed: bool, channel: usize },
    Leave { client: usize },
    Subscribe { client: usize, channel: usize },
    Unsubscribe { client: usize, channel: usize },
}

/// What a client subscribed to: numbers of publications, from and, once it has left, up to.
struct Interval {
    channel: usize,
    from: usize,
    to: Option<usize>,
}

struct Reader {
    client: Client,
    framed: bool,
    intervals: Vec<Interval>,
}

#[derive(Default)]
struct Model {
    published: [usize; CHANNELS.len()],
    readers: [Option<Reader>; CLIENTS],
}

/// What a reader got, in order.
#[derive(Debug)]
enum Got {
    Message { channel: usize, number: usize },
    Gap { channel: usize },
    Close,
}

fn op() -> impl Strategy<Value = Op> {
    let (client, channel) = (|| 0..CLIENTS, || 0..CHANNELS.len());
    prop_oneof![
        8 => (channel(), 0_usize..9_000).prop_map(|(channel, bytes)| Op::Publish { channel, bytes }),
        4 => client().prop_map(|client| Op::Read { client }),
        4 => Just(Op::Turn),
        1 => Just(Op::Pass),
        2 => (client(), any::<bool>(), channel())
            .prop_map(|(client, framed, channel)| Op::Connect { client, framed, channel }),
        1 => client().prop_map(|client| Op::Leave { client }),
        3 => (client(), channel()).prop_map(|(client, channel)| Op::Subscribe { client, channel }),
        1 => (client(), channel()).prop_map(|(client, channel)| Op::Unsubscribe { client, channel }),
    ]
}

impl Model {
    fn apply(&mut self, bench: &mut Bench, op: &Op) {
        match *op {
            Op::Publish { channel, bytes } => {
                let number = self.published[channel];
                self.published[channel] += 1;
                let text = json!({"channel": CHANNELS[channel], "number": number, "padding": "x".repeat(bytes), "bytes": bytes});
                match CHANNELS[channel] {
                    KEYED => bench.publish_about(KEYED, &(number % KEYS).to_string(), &text.to_string()),
                    channel => bench.publish(channel, &text.to_string()),
                }
            }
            Op::Turn => bench.turn(),
            // A grace is over after some of these.
            Op::Pass => bench.pass(400),
            Op::Read { client } => {
                if let Some(reader) = &mut self.readers[client] {
                    let mut context = Context::from_waker(Waker::noop());
                    if let Poll::Ready(Some(bytes)) = reader.client.pipe.poll_bytes(&mut context) {
                        reader.client.received.extend_from_slice(&bytes);
                    }
                }
            }
            Op::Connect { client, framed, channel } => {
                self.leave(bench, client);
                let protocol = if framed { Protocol::RawFramed } else { Protocol::RawBare };
                let interval = Interval { channel, from: self.published[channel], to: None };
                let client_end = bench.connect(protocol, &[CHANNELS[channel]]);
                self.readers[client] = Some(Reader { client: client_end, framed, intervals: vec![interval] });
            }
            Op::Leave { client } => self.leave(bench, client),
            Op::Subscribe { client, channel } => self.subscribe(bench, client, channel),
            Op::Unsubscribe { client, channel } => self.unsubscribe(bench, client, channel),
        }
    }

    /// A client goes without a word; what it got until then was right too.
    fn leave(&mut self, bench: &mut Bench, client: usize) {
        if let Some(reader) = self.readers[client].take() {
            reader.check(&self.published, false);
            drop(reader.client.pipe);
            bench.turn();
        }
    }

    fn subscribe(&mut self, bench: &mut Bench, client: usize, channel: usize) {
        let Some(reader) = self.readers[client].as_mut().filter(|reader| reader.framed) else { return };
        if reader.open(channel).is_none() && !bench.is_over(&reader.client) {
            reader.intervals.push(Interval { channel, from: self.published[channel], to: None });
            let command = json!({"subscribe": {"channel": CHANNELS[channel]}}).to_string();
            bench.hear(&reader.client, Opcode::Text, command.as_bytes());
            bench.answer_work(&Ok(()));
        }
    }

    fn unsubscribe(&mut self, bench: &mut Bench, client: usize, channel: usize) {
        let Some(reader) = self.readers[client].as_mut().filter(|reader| reader.framed) else { return };
        let to = self.published[channel];
        if let Some(interval) = reader.open(channel) {
            interval.to = Some(to);
            if !bench.is_over(&reader.client) {
                let command = json!({"unsubscribe": {"channel": CHANNELS[channel]}}).to_string();
                bench.hear(&reader.client, Opcode::Text, command.as_bytes());
                bench.answer_work(&Ok(()));
            }
        }
    }

    /// Lets everybody read all there is, and checks it.
    fn settle(mut self, bench: &mut Bench) {
        for reader in self.readers.iter_mut().flatten() {
            bench.drain(&mut reader.client);
        }
        for reader in self.readers.iter().flatten() {
            reader.check(&self.published, true);
        }
        for client in 0..CLIENTS {
            self.leave(bench, client);
        }
        assert_eq!(bench.log_bytes(), 0, "with nobody left nothing is held");
    }
}

impl Reader {
    fn open(&mut self, channel: usize) -> Option<&mut Interval> {
        self.intervals.iter_mut().find(|interval| interval.channel == channel && interval.to.is_none())
    }

    fn check(&self, published: &[usize], is_drained: bool) {
        let got = self.got(is_drained);
        let is_closed = matches!(got.last(), Some(Got::Close));
        let closes = got.iter().filter(|got| matches!(got, Got::Close)).count();
        assert!(closes <= 1 && closes == usize::from(is_closed), "nothing comes behind a close frame");
        for (channel, published) in published.iter().enumerate() {
            let mut last = None;
            let mut is_told = true;
            for got in &got {
                match got {
                    Got::Message { channel: of, number } if *of == channel => {
                        self.check_step(channel, last, *number, is_told);
                        (last, is_told) = (Some(*number), false);
                    }
                    Got::Gap { channel: of } if *of == channel => is_told = true,
                    _ => {}
                }
            }
            // `dropNewest` alone may miss the end.
            let open =
                self.intervals.iter().find(|interval| interval.channel == channel && interval.to.is_none());
            if let Some(interval) = open.filter(|interval| {
                is_drained && !is_closed && CHANNELS[channel] != "newest:a" && interval.from < *published
            }) {
                assert!(
                    interval.from < *published && last == Some(*published - 1),
                    "{channel}: {last:?} is the last"
                );
                if CHANNELS[channel] == KEYED {
                    self.check_keys(&got, channel, interval.from, *published);
                }
            }
        }
    }

    fn check_step(&self, channel: usize, last: Option<usize>, number: usize, is_told: bool) {
        assert!(last.is_none_or(|last| last < number), "{number} behind {last:?}");
        let mut of_channel = self.intervals.iter().filter(|interval| interval.channel == channel);
        let interval =
            of_channel.find(|interval| interval.from <= number && interval.to.is_none_or(|to| number < to));
        let interval = interval.unwrap_or_else(|| panic!("{number} was not subscribed to"));
        let expected = last.map_or(interval.from, |last| interval.from.max(last + 1));
        if number == expected {
            return;
        }
        match CHANNELS[channel] {
            KEYED => {}
            "small:a" | "few:a" => panic!("{number} where {expected} is next, and nothing may be skipped"),
            "latest:a" => {}
            _ => assert!(is_told || !self.framed, "{expected} to {number} were skipped without a word"),
        }
    }

    /// Of each key the newest has come, unless the client was told that something is missing.
    fn check_keys(&self, got: &[Got], channel: usize, from: usize, published: usize) {
        let is_told = got.iter().any(|got| matches!(got, Got::Gap { channel: of } if *of == channel));
        for newest in
            (from.max(published.saturating_sub(KEYS))..published).filter(|_| self.framed && !is_told)
        {
            let came = |got: &Got| matches!(got, Got::Message { channel: of, number } if (*of, *number) == (channel, newest));
            assert!(got.iter().any(came), "{newest}, the newest of its key, is missing");
        }
    }

    /// Every frame, whole; a rest only where not all was read.
    fn got(&self, is_drained: bool) -> Vec<Got> {
        let (mut bytes, mut got) = (&*self.client.received, Vec::new());
        while let Some((first, payload, rest)) = split(bytes) {
            bytes = rest;
            match first {
                0x81 => got.extend(self.read(payload)),
                0x88 => got.push(Got::Close),
                0x89 => {}
                other => panic!("a frame of {other:x}"),
            }
        }
        assert!(!is_drained || bytes.is_empty(), "{} bytes of a torn frame", bytes.len());
        got
    }

    fn read(&self, payload: &[u8]) -> Option<Got> {
        let message: Value = serde_json::from_slice(payload).expect("a whole message");
        let place = |name: &Value| CHANNELS.iter().position(|channel| name == channel).expect("a channel");
        let data = if self.framed { &message["pub"]["data"] } else { &message };
        if let Some(number) = data["number"].as_u64() {
            assert_eq!(
                data["padding"].as_str().map(str::len),
                data["bytes"].as_u64().map(|bytes| bytes as usize)
            );
            return Some(Got::Message { channel: place(&data["channel"]), number: number as usize });
        }
        let gap = message.get("gap")?;
        Some(Got::Gap { channel: place(&gap["channel"]) })
    }
}

fn split(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (length, start) = match bytes.get(1)? {
        126 => (usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        short => (usize::from(*short), 2),
    };
    let payload = bytes.get(start..start + length)?;
    Some((bytes[0], payload, &bytes[start + length..]))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn everybody_gets_what_the_policy_promises_whole_once_and_in_order(
        ops in vec(op(), 1..150),
        has_grace: bool,
    ) {
        let (mut bench, mut model) = (Bench::new(), Model::default());
        bench.core.grace_ms = if has_grace { GRACE_MS } else { 0 };
        for op in &ops {
            model.apply(&mut bench, op);
        }
        model.settle(&mut bench);
    }
}
