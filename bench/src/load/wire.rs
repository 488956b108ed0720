//! Just enough WebSocket (RFC 6455) for both ends of the bench, and the payload whose text says when it was due.

use std::time::Duration;

/// The key of RFC 6455's own example, so that its answer is known.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// The answer to that key.
pub(crate) const SWITCHING_PROTOCOLS: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
     Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Stands before the stamp; occurs nowhere else in a payload or in what a peer puts around it.
const MARK: u8 = b'@';
/// The mark, 16 digits of nanoseconds, 8 digits of a sequence number.
const STAMP_BYTES: usize = 25;
/// Digits of base 16 are letters from here on: eight at a time are read in a few instructions, which a load of ten
/// million deliveries a second needs, and JSON carries them as they are.
const ZERO: u8 = b'A';

/// When a publication was due, by the clock that all processes share, and its number in the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) scheduled: Duration,
    pub(crate) sequence: u64,
}

/// What a frame is, as far as the bench cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opcode {
    /// Text, binary or a continuation.
    Data,
    Ping,
    Close,
    Pong,
}

/// A frame in someone's buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) opcode: Opcode,
    pub(crate) payload: &'a [u8],
    /// Bytes of the whole frame.
    pub(crate) length: usize,
}

/// A client's request to upgrade.
pub(crate) fn upgrade(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    )
}

/// JSON of `bytes` bytes that carries the stamp.
pub(crate) fn payload(stamp: Stamp, bytes: usize) -> String {
    let Stamp { scheduled, sequence } = stamp;
    let digits = |number: u64, count: u32| {
        (0..count).rev().map(move |at| char::from(ZERO + (number >> (4 * at)) as u8 % 16)).collect::<String>()
    };
    let (due, sequence) = (digits(scheduled.as_nanos() as u64, 16), digits(sequence, 8));
    let head = format!("{{\"t\":\"@{due}{sequence}\",\"x\":\"");
    let filling = "x".repeat(bytes.saturating_sub(head.len() + 2));
    format!("{head}{filling}\"}}")
}

/// All stamps in a payload: one, or more where a server joins publications in one frame.
pub(crate) fn stamps(payload: &[u8]) -> impl Iterator<Item = Stamp> {
    memchr::memchr_iter(MARK, payload).filter_map(|at| stamp(payload.get(at..at + STAMP_BYTES)?))
}

fn stamp(text: &[u8]) -> Option<Stamp> {
    let (first, second, third) = (number(text, 1)?, number(text, 9)?, number(text, 17)?);
    Some(Stamp { scheduled: Duration::from_nanos(first << 32 | second), sequence: third })
}

/// The eight digits that begin at a place.
fn number(text: &[u8], at: usize) -> Option<u64> {
    let digits = u64::from_be_bytes(text.get(at..at + 8)?.try_into().ok()?);
    let nibbles = digits.wrapping_sub(u64::from_ne_bytes([ZERO; 8]));
    // A byte that is no digit leaves bits here; one below zero borrows from the next, and leaves some itself.
    if nibbles & 0xf0f0_f0f0_f0f0_f0f0 != 0 {
        return None;
    }
    let bytes = (nibbles | nibbles >> 4) & 0x00ff_00ff_00ff_00ff;
    let pairs = (bytes | bytes >> 8) & 0x0000_ffff_0000_ffff;
    Some((pairs | pairs >> 16) & 0xffff_ffff)
}

/// A whole frame at the start of `bytes`, masked or not; the payload stays masked.
pub(crate) fn frame(bytes: &[u8]) -> Option<Frame<'_>> {
    let (size, mut start): (u64, usize) = match *bytes.get(1)? & 0x7f {
        126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?), 10),
        short => (u64::from(short), 2),
    };
    if bytes[1] & 0x80 != 0 {
        start += 4;
    }
    let length = start.checked_add(usize::try_from(size).ok()?)?;
    let payload = bytes.get(start..length)?;
    let opcode = match bytes[0] & 0x0f {
        0x8 => Opcode::Close,
        0x9 => Opcode::Ping,
        0xa => Opcode::Pong,
        _ => Opcode::Data,
    };
    Some(Frame { opcode, payload, length })
}

/// A client's text frame. A mask of zeros leaves the payload as it is.
pub(crate) fn client_text(payload: &[u8]) -> Vec<u8> {
    framed(0x81, payload, true)
}

/// A client's answer to a ping.
pub(crate) fn client_pong(payload: &[u8]) -> Vec<u8> {
    framed(0x8a, payload, true)
}

/// A server's text frame.
pub(crate) fn server_text(payload: &[u8]) -> Vec<u8> {
    framed(0x81, payload, false)
}

fn framed(first: u8, payload: &[u8], masked: bool) -> Vec<u8> {
    let mask_bit = if masked { 0x80 } else { 0 };
    let mut frame = match u8::try_from(payload.len()) {
        Ok(short) if short < 126 => vec![first, mask_bit | short],
        _ => {
            let length = u16::try_from(payload.len()).expect("the bench sends payloads under 64 KiB");
            let [high, low] = length.to_be_bytes();
            vec![first, mask_bit | 126, high, low]
        }
    };
    if masked {
        frame.extend_from_slice(&[0; 4]);
    }
    frame.extend_from_slice(payload);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64, sequence: u64) -> Stamp {
        Stamp { scheduled: Duration::from_nanos(nanos), sequence }
    }

    #[test]
    fn a_payload_has_the_size_asked_for_and_tells_its_stamp() {
        let text = payload(at(1_234_567, 42), 128);
        assert_eq!(text.len(), 128);
        assert_eq!(stamps(text.as_bytes()).collect::<Vec<_>>(), [at(1_234_567, 42)]);
        serde_json::from_str::<serde_json::Value>(&text).unwrap();
        let last = at(u64::MAX, u32::MAX.into());
        assert_eq!(stamps(payload(last, 128).as_bytes()).collect::<Vec<_>>(), [last]);
    }

    #[test]
    fn publications_joined_in_one_frame_are_all_seen() {
        let lines: Vec<String> = (0..3)
            .map(|n| {
                format!(r#"{{"push":{{"channel":"bench","pub":{{"data":{}}}}}}}"#, payload(at(n, n), 64))
            })
            .collect();
        let sequences: Vec<u64> = stamps(lines.join("\n").as_bytes()).map(|stamp| stamp.sequence).collect();
        assert_eq!(sequences, [0, 1, 2]);
    }

    #[test]
    fn a_mark_without_a_stamp_is_no_publication() {
        assert_eq!(stamps(b"mail@example.org and @AB").count(), 0);
        let stamp = "@ABCDEFGHIJKLMNOPABCDEFGH";
        assert_eq!(stamps(stamp.as_bytes()).count(), 1);
        for at in 1..STAMP_BYTES {
            for other in ["@", "Q", "a", "0", "\u{1}"] {
                let mut text = stamp.to_owned();
                text.replace_range(at..=at, other);
                assert_eq!(stamps(text.as_bytes()).count(), 0, "{text}");
            }
        }
    }

    #[test]
    fn a_frame_is_whole_or_not_there() {
        for size in [0, 125, 126, 65_535] {
            for bytes in [server_text(&vec![7; size]), client_text(&vec![7; size])] {
                assert_eq!(frame(&bytes[..bytes.len() - 1]), None);
                let whole = frame(&bytes).unwrap();
                assert_eq!((whole.payload.len(), whole.length), (size, bytes.len()));
            }
        }
    }
}
