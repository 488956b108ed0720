//! Just enough WebSocket (RFC 6455) for both ends of the bench: unfragmented text frames.

use std::time::Duration;

/// A client's request, bare mode. The key is RFC 6455's own example.
pub(crate) const UPGRADE: &str = "GET /ws/bench HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// The answer to that key.
pub(crate) const SWITCHING_PROTOCOLS: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
     Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Digits at the start of a payload: the scheduled time in nanoseconds since the run began.
const TIMESTAMP_BYTES: usize = 16;

/// A masked client frame whose payload begins with the scheduled time.
pub(crate) fn publication(scheduled: Duration, payload_bytes: usize) -> Vec<u8> {
    let payload = format!(
        "{:0width$}{}",
        scheduled.as_nanos(),
        "x".repeat(payload_bytes - TIMESTAMP_BYTES),
        width = TIMESTAMP_BYTES
    );
    let mut frame = header(payload.len(), 0x80);
    // A mask of zeros leaves the payload as it is.
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload.as_bytes());
    frame
}

/// An unmasked server frame.
pub(crate) fn server_frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = header(payload.len(), 0);
    frame.extend_from_slice(payload);
    frame
}

/// The payload of a whole client frame at the start of `bytes`, and the bytes it took.
pub(crate) fn client_frame(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (length, start) = length(bytes)?;
    let mask: [u8; 4] = bytes.get(start..start + 4)?.try_into().ok()?;
    let payload = bytes.get(start + 4..start + 4 + length)?;
    let unmasked = payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
    Some((unmasked, start + 4 + length))
}

/// Counts the frames of one connection's stream, whatever pieces it comes in.
#[derive(Default)]
pub(crate) struct FrameCounter {
    /// Whether the upgrade was asked for.
    pub(crate) asked: bool,
    upgraded: bool,
    partial: Vec<u8>,
}

impl FrameCounter {
    /// Whether the answer to the upgrade was read.
    pub(crate) fn upgraded(&self) -> bool {
        self.upgraded
    }

    /// Takes bytes; tells each data frame's scheduled time and returns their number.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut on_frame: impl FnMut(Duration)) -> u64 {
        let mut joined = std::mem::take(&mut self.partial);
        let mut rest: &[u8] = if joined.is_empty() {
            bytes
        } else {
            joined.extend_from_slice(bytes);
            &joined
        };
        if !self.upgraded {
            let Some(end) = rest.windows(4).position(|four| four == b"\r\n\r\n") else {
                self.partial = rest.to_vec();
                return 0;
            };
            self.upgraded = true;
            rest = &rest[end + 4..];
        }
        let mut frames = 0;
        while let Some((length, start)) = length(rest) {
            let Some(payload) = rest.get(start..start + length) else { break };
            // Text and binary only: pings (0x9) are no deliveries.
            if rest[0] & 0x0f <= 2 {
                frames += 1;
                on_frame(scheduled(payload));
            }
            rest = &rest[start + length..];
        }
        self.partial = rest.to_vec();
        frames
    }
}

fn scheduled(payload: &[u8]) -> Duration {
    let digits = payload.get(..TIMESTAMP_BYTES).and_then(|digits| std::str::from_utf8(digits).ok());
    Duration::from_nanos(digits.and_then(|digits| digits.parse().ok()).unwrap_or(0))
}

fn header(length: usize, mask_bit: u8) -> Vec<u8> {
    match u8::try_from(length) {
        Ok(short) if short < 126 => vec![0x81, mask_bit | short],
        _ => {
            let length = u16::try_from(length).expect("the bench sends payloads under 64 KiB");
            let [high, low] = length.to_be_bytes();
            vec![0x81, mask_bit | 126, high, low]
        }
    }
}

/// The payload length of the frame at the start of `bytes`, and where its mask or payload begins.
fn length(bytes: &[u8]) -> Option<(usize, usize)> {
    match *bytes.get(1)? & 0x7f {
        126 => Some((usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4)),
        127 => Some((usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?, 10)),
        short => Some((usize::from(short), 2)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_whatever_pieces_they_come_in() {
        let mut stream = SWITCHING_PROTOCOLS.as_bytes().to_vec();
        for nanos in [7, 8, 9] {
            let (payload, _) = client_frame(&publication(Duration::from_nanos(nanos), 200)).unwrap();
            stream.extend_from_slice(&server_frame(&payload));
        }
        for piece in [1, 3, 50, stream.len()] {
            let (mut counter, mut seen) = (FrameCounter::default(), Vec::new());
            let frames: u64 =
                stream.chunks(piece).map(|bytes| counter.feed(bytes, |at| seen.push(at.as_nanos()))).sum();
            assert_eq!((frames, seen), (3, vec![7, 8, 9]), "pieces of {piece}");
        }
    }
}
