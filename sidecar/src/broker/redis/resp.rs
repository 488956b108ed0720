//! What Redis says on a subscriber connection (RESP2), found in the read buffer without a copy.

use std::ops::Range;

use smallvec::SmallVec;

/// No bulk string is longer: far above the largest message of any settings, its envelope included.
pub const MAX_BULK: usize = 64 << 20;
/// No line is longer; an error text is the longest.
const MAX_LINE: usize = 64 << 10;
/// Elements of an array. A push has three; `ROLE` lists the replicas.
const MAX_ELEMENTS: usize = 4_096;
/// Arrays within arrays; `ROLE` has one.
const MAX_DEPTH: u32 = 4;
/// Elements whose places are kept: `ROLE` of a replica has its primary's address in the second and third.
const KEPT: usize = 3;

/// One thing that Redis said; ranges are places in the parsed bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A publication.
    Message {
        /// Where to.
        channel: Range<usize>,
        /// What.
        payload: Range<usize>,
    },
    /// A subscription is live.
    Subscribed(Range<usize>),
    /// A subscription is over: asked for, or by the server's own decision (a slot moved, `CLUSTER FORGET`). Empty
    /// where there was none.
    Unsubscribed(Range<usize>),
    /// The answer to `ROLE`.
    Role(Role),
    /// A bulk string.
    Bulk(Range<usize>),
    /// An answer to `PING`.
    Pong,
    /// A status line, such as `+OK`.
    Status(Range<usize>),
    /// An error line, without its minus.
    Error(Range<usize>),
    /// Anything else.
    Other,
}

/// What a server is, by its answer to `ROLE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// It takes writes.
    Primary,
    /// It copies another server, whose host and port are given.
    Replica {
        /// The primary's host.
        host: Range<usize>,
        /// The primary's port.
        port: Range<usize>,
    },
    /// It watches over others.
    Sentinel,
}

/// These bytes are no RESP, or more than this node takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Unexpected.
    #[error("Redis sent the byte {0:#04x} where none such belongs")]
    Byte(u8),
    /// A length or an integer out of range.
    #[error("Redis sent a length or number that is none, or too large")]
    Number,
    /// A message beyond [`MAX_BULK`].
    #[error("Redis sent a message of {0} bytes, at most {MAX_BULK} are taken")]
    TooLong(i64),
    /// A line without an end.
    #[error("Redis sent a line without an end")]
    Line,
}

/// The item that begins at `at`, and where the next one begins; `None` while it is incomplete.
///
/// # Errors
/// [`Broken`]: nothing behind it can be read either.
pub fn parse(bytes: &[u8], at: usize) -> Result<Option<(Item, usize)>, Broken> {
    let mut cursor = Cursor { bytes, at };
    let item = match bytes.get(at) {
        None => return Ok(None),
        Some(b'*') => cursor.array(),
        Some(b'+') => cursor.status(),
        Some(b'-') => cursor.line().map(|line| line.map(Item::Error)),
        Some(b':') => cursor.number(b':').map(|number| number.map(|_| Item::Other)),
        Some(b'$') => cursor.bulk().map(|bulk| bulk.map(Item::Bulk)),
        Some(byte) => Err(Broken::Byte(*byte)),
    };
    Ok(item?.map(|item| (item, cursor.at)))
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// What was read, or nothing while it is incomplete.
type Read<T> = Result<Option<T>, Broken>;

impl Cursor<'_> {
    fn array(&mut self) -> Read<Item> {
        let Some(count) = self.count()? else { return Ok(None) };
        let mut kept = SmallVec::<[Range<usize>; KEPT]>::new();
        for _ in 0..count {
            let Some(element) = self.element(1)? else { return Ok(None) };
            if kept.len() < KEPT {
                kept.push(element);
            }
        }
        Ok(Some(self.classify(count, &kept)))
    }

    fn count(&mut self) -> Read<usize> {
        let Some(count) = self.number(b'*')? else { return Ok(None) };
        let count =
            usize::try_from(count).ok().filter(|count| *count <= MAX_ELEMENTS).ok_or(Broken::Number)?;
        Ok(Some(count))
    }

    /// An element's text; empty for an array.
    fn element(&mut self, depth: u32) -> Read<Range<usize>> {
        match self.bytes.get(self.at) {
            Some(b':') => self.digits(),
            Some(b'*') => self.nested(depth),
            _ => self.bulk(),
        }
    }

    fn digits(&mut self) -> Read<Range<usize>> {
        let start = self.at + 1;
        Ok(self.number(b':')?.map(|_| start..self.at - b"\r\n".len()))
    }

    fn nested(&mut self, depth: u32) -> Read<Range<usize>> {
        if depth >= MAX_DEPTH {
            return Err(Broken::Number);
        }
        let Some(count) = self.count()? else { return Ok(None) };
        for _ in 0..count {
            if self.element(depth + 1)?.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(0..0))
    }

    fn classify(&self, count: usize, kept: &[Range<usize>]) -> Item {
        let Some(kind) = kept.first() else { return Item::Other };
        match (&self.bytes[kind.clone()], count, kept) {
            (b"message" | b"smessage", 3, [_, channel, payload]) => {
                Item::Message { channel: channel.clone(), payload: payload.clone() }
            }
            (b"subscribe" | b"ssubscribe", 3, [_, channel, _]) => Item::Subscribed(channel.clone()),
            (b"unsubscribe" | b"sunsubscribe", 3, [_, channel, _]) => Item::Unsubscribed(channel.clone()),
            (b"pong", 2, _) => Item::Pong,
            (b"master", ..) => Item::Role(Role::Primary),
            (b"slave", _, [_, host, port]) => {
                Item::Role(Role::Replica { host: host.clone(), port: port.clone() })
            }
            (b"sentinel", ..) => Item::Role(Role::Sentinel),
            _ => Item::Other,
        }
    }

    fn status(&mut self) -> Read<Item> {
        let Some(line) = self.line()? else { return Ok(None) };
        Ok(Some(if &self.bytes[line.clone()] == b"PONG" { Item::Pong } else { Item::Status(line) }))
    }

    /// The text of a line, without the byte before it and the break behind it.
    fn line(&mut self) -> Read<Range<usize>> {
        let start = self.at + 1;
        let rest = self.bytes.get(start..).unwrap_or_default();
        match rest.iter().take(MAX_LINE).position(|byte| *byte == b'\r') {
            None if rest.len() >= MAX_LINE => Err(Broken::Line),
            None => Ok(None),
            Some(length) => {
                self.at = start + length;
                Ok(self.line_break()?.map(|()| start..start + length))
            }
        }
    }

    fn bulk(&mut self) -> Read<Range<usize>> {
        let Some(length) = self.number(b'$')? else { return Ok(None) };
        if length == -1 {
            return Ok(Some(0..0));
        }
        let length =
            usize::try_from(length).ok().filter(|n| *n <= MAX_BULK).ok_or(Broken::TooLong(length))?;
        let start = self.at;
        if self.bytes.len() < start + length {
            return Ok(None);
        }
        self.at = start + length;
        Ok(self.line_break()?.map(|()| start..start + length))
    }

    /// `<kind><digits>\r\n`.
    fn number(&mut self, kind: u8) -> Read<i64> {
        match self.bytes.get(self.at) {
            None => return Ok(None),
            Some(byte) if *byte == kind => {}
            Some(byte) => return Err(Broken::Byte(*byte)),
        }
        let mut at = self.at + 1;
        let negative = self.bytes.get(at) == Some(&b'-');
        at += usize::from(negative);
        let (first, mut value) = (at, 0_i64);
        while let Some(digit @ b'0'..=b'9') = self.bytes.get(at) {
            value = value
                .checked_mul(10)
                .and_then(|value| value.checked_add(i64::from(digit - b'0')))
                .ok_or(Broken::Number)?;
            at += 1;
        }
        if at == first && at < self.bytes.len() {
            return Err(Broken::Number);
        }
        self.at = at;
        Ok(self.line_break()?.map(|()| if negative { -value } else { value }))
    }

    fn line_break(&mut self) -> Read<()> {
        match self.bytes.get(self.at..).unwrap_or_default() {
            [] | [b'\r'] => Ok(None),
            [b'\r', b'\n', ..] => {
                self.at += 2;
                Ok(Some(()))
            }
            [byte, ..] => Err(Broken::Byte(*byte)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SAID: &[u8] = b"+OK\r\n*3\r\n$9\r\nsubscribe\r\n$3\r\np:a\r\n:1\r\n\
        *3\r\n$7\r\nmessage\r\n$3\r\np:a\r\n$4\r\n\r\n$1\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n+PONG\r\n\
        -NOPERM no\r\n*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n:7\r\n$2\r\nxy\r\n\
        *3\r\n$8\r\nsmessage\r\n$3\r\np:a\r\n$1\r\nx\r\n*3\r\n$10\r\nssubscribe\r\n$3\r\np:b\r\n:1\r\n\
        *3\r\n$12\r\nsunsubscribe\r\n$3\r\np:b\r\n:0\r\n\
        *3\r\n$6\r\nmaster\r\n:9\r\n*1\r\n*3\r\n$2\r\n::\r\n$4\r\n6380\r\n$1\r\n9\r\n\
        *5\r\n$5\r\nslave\r\n$5\r\nredis\r\n:6379\r\n$9\r\nconnected\r\n:9\r\n*0\r\n";

    fn read(bytes: &[u8]) -> (Vec<String>, usize) {
        let (mut told, mut at) = (Vec::new(), 0);
        while let Some((item, next)) = parse(bytes, at).expect("RESP") {
            let text = |range: Range<usize>| String::from_utf8_lossy(&bytes[range]).into_owned();
            told.push(match item {
                Item::Message { channel, payload } => format!("{} {:?}", text(channel), text(payload)),
                Item::Subscribed(channel) => format!("subscribed {}", text(channel)),
                Item::Status(line) => format!("+{}", text(line)),
                Item::Error(line) => format!("-{}", text(line)),
                Item::Unsubscribed(channel) => format!("unsubscribed {}", text(channel)),
                Item::Bulk(bulk) => format!("bulk {}", text(bulk)),
                Item::Role(Role::Replica { host, port }) => {
                    format!("replica of {} {}", text(host), text(port))
                }
                item @ (Item::Pong | Item::Other | Item::Role(_)) => format!("{item:?}"),
            });
            at = next;
        }
        (told, at)
    }

    #[test]
    fn everything_that_a_subscriber_hears_is_understood() {
        let told = [
            "+OK",
            "subscribed p:a",
            "p:a \"\\r\\n$1\"",
            "Pong",
            "Pong",
            "-NOPERM no",
            "unsubscribed ",
            "Other",
            "bulk xy",
            "p:a \"x\"",
            "subscribed p:b",
            "unsubscribed p:b",
            "Role(Primary)",
            "replica of redis 6379",
            "Other",
        ];
        assert_eq!(read(SAID), (told.map(str::to_owned).to_vec(), SAID.len()));
    }

    #[test]
    fn an_incomplete_item_waits_for_its_rest() {
        for end in 0..SAID.len() {
            let (told, at) = read(&SAID[..end]);
            let (rest, _) = read(&SAID[at..]);
            assert_eq!([told, rest].concat(), read(SAID).0, "cut at {end}");
        }
    }

    #[test]
    fn what_is_no_resp_or_too_much_is_refused() {
        for (bytes, error) in [
            (&b"hello"[..], Broken::Byte(b'h')),
            (b"*4097\r\n", Broken::Number),
            (b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n", Broken::Number),
            (b"*-1\r\n", Broken::Number),
            (b"$99999999999999999999\r\n", Broken::Number),
            (b"$67108865\r\n", Broken::TooLong(67_108_865)),
            (b"$-2\r\n", Broken::TooLong(-2)),
            (b"$\r\n", Broken::Number),
            (b"$1\r\nab\r\n", Broken::Byte(b'b')),
            (b"*1\r\n+a\r\n", Broken::Byte(b'+')),
        ] {
            assert_eq!(parse(bytes, 0), Err(error), "{}", bytes.escape_ascii());
        }
        let line = [b"+".as_slice(), &[b'a'; MAX_LINE]].concat();
        assert_eq!(parse(&line, 0), Err(Broken::Line));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in "[*$:+\\-0-9\r\na-z]{0,64}") {
            let _ = parse(bytes.as_bytes(), 0);
        }

        #[test]
        fn any_payload_is_found(payload: Vec<u8>) {
            let head = format!("*3\r\n$7\r\nmessage\r\n$1\r\na\r\n${}\r\n", payload.len());
            let bytes = [head.as_bytes(), &payload, b"\r\n"].concat();
            let Ok(Some((Item::Message { payload: found, .. }, _))) = parse(&bytes, 0) else { panic!("a message") };
            prop_assert_eq!(&bytes[found], &payload[..]);
        }
    }
}
