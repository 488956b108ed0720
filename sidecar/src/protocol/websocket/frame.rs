//! One frame: its header as clients send it, and frames as this server sends them.

/// The kinds of frames (RFC 6455 §5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the RFC's")]
pub enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

/// A client frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Last frame of its message.
    pub fin: bool,
    /// The message is compressed (RFC 7692); said by its first frame.
    pub compressed: bool,
    /// Kind.
    pub opcode: Opcode,
    /// What the payload is masked with.
    pub key: [u8; 4],
    /// Payload bytes.
    pub length: u64,
    /// Bytes of the header itself.
    pub bytes: usize,
}

/// What a client did against the RFC or the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A reserved bit without an extension that gives it a meaning.
    #[error("reserved bit set")]
    ReservedBit,
    /// An opcode that the RFC reserves.
    #[error("reserved opcode")]
    ReservedOpcode,
    /// Client frames must be masked.
    #[error("frame not masked")]
    NotMasked,
    /// A length in more bytes than it needs, or with its highest bit set.
    #[error("length not minimal")]
    Length,
    /// A control frame of more than 125 bytes, or in fragments.
    #[error("control frame too long or fragmented")]
    ControlFrame,
    /// A continuation without a message to continue.
    #[error("continuation of no message")]
    LoneContinuation,
    /// A new message before the last one has ended.
    #[error("message inside a message")]
    Interleaved,
    /// A close frame of one byte, or a code that may not be sent.
    #[error("bad close code")]
    CloseCode,
    /// Text or a close reason that is no UTF-8.
    #[error("text is not UTF-8")]
    Utf8,
    /// A compressed message that is not deflated.
    #[error("compressed message is broken")]
    Deflate,
    /// More payload than the limit.
    #[error("message too big")]
    TooBig,
}

// === impl Opcode ===

impl Opcode {
    /// Close, ping or pong.
    pub fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }

    fn from_bits(bits: u8) -> Result<Self, Violation> {
        Ok(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            _ => return Err(Violation::ReservedOpcode),
        })
    }

    fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0x0,
            Self::Text => 0x1,
            Self::Binary => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xA,
        }
    }
}

// === impl Header ===

impl Header {
    /// The header at the start of `input`; `None` while it is incomplete. `deflate` says that messages may be
    /// compressed.
    ///
    /// # Errors
    /// What it does against the RFC, as soon as the bytes that show it are there.
    pub fn parse(input: &[u8], deflate: bool) -> Result<Option<Self>, Violation> {
        let [first, second, rest @ ..] = input else {
            return input.first().map_or(Ok(None), |first| parse_first(*first, deflate).map(|_| None));
        };
        let (fin, compressed, opcode) = parse_first(*first, deflate)?;
        if second & 0x80 == 0 {
            return Err(Violation::NotMasked);
        }
        let short = second & 0x7F;
        if opcode.is_control() && short > 125 {
            return Err(Violation::ControlFrame);
        }
        let Some((length, used)) = parse_length(short, rest)? else { return Ok(None) };
        let Some(key) = rest.get(used..used + 4) else { return Ok(None) };
        let key = key.try_into().expect("a slice of four bytes");
        Ok(Some(Self { fin, compressed, opcode, key, length, bytes: 2 + used + 4 }))
    }
}

const FIN: u8 = 0x80;
const COMPRESSED: u8 = 0x40;
const RESERVED: u8 = 0x70;

fn parse_first(first: u8, deflate: bool) -> Result<(bool, bool, Opcode), Violation> {
    let (fin, compressed) = (first & FIN != 0, first & COMPRESSED != 0);
    let opcode = Opcode::from_bits(first & 0x0F);
    // Only a message's first frame says that it is compressed, never a control frame.
    let may_be = deflate && matches!(opcode, Ok(Opcode::Text | Opcode::Binary));
    if first & RESERVED & !COMPRESSED != 0 || compressed && !may_be {
        return Err(Violation::ReservedBit);
    }
    let opcode = opcode?;
    if opcode.is_control() && !fin { Err(Violation::ControlFrame) } else { Ok((fin, compressed, opcode)) }
}

/// The payload length and in how many bytes behind the second it was given.
fn parse_length(short: u8, rest: &[u8]) -> Result<Option<(u64, usize)>, Violation> {
    let (length, used, least) = match short {
        126 => match rest.first_chunk::<2>() {
            Some(bytes) => (u64::from(u16::from_be_bytes(*bytes)), 2, 126),
            None => return Ok(None),
        },
        127 => match rest.first_chunk::<8>() {
            Some(bytes) => (u64::from_be_bytes(*bytes), 8, 1 << 16),
            None => return Ok(None),
        },
        short => (u64::from(short), 0, 0),
    };
    if length < least || length >> 63 != 0 { Err(Violation::Length) } else { Ok(Some((length, used))) }
}

/// Code and reason of a close frame's payload.
pub(super) fn parse_close(payload: &[u8]) -> Result<Option<(u16, &str)>, Violation> {
    match payload {
        [] => Ok(None),
        [_] => Err(Violation::CloseCode),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !may_be_sent(code) {
                return Err(Violation::CloseCode);
            }
            Ok(Some((code, super::utf8::check(reason)?)))
        }
    }
}

/// RFC 6455 §7.4 and the IANA registry: 1004 to 1006 and 1015 never travel.
fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// The most bytes that a server frame's header takes.
pub const MAX_HEADER: usize = 10;

/// Appends an unmasked, unfragmented frame's header.
pub fn put_header(out: &mut Vec<u8>, opcode: Opcode, length: usize) {
    out.push(0x80 | opcode.bits());
    match length {
        0..=125 => out.push(length as u8),
        126..=0xFFFF => {
            out.push(126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

/// Appends a whole frame.
pub fn put(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    put_header(out, opcode, payload.len());
    out.extend_from_slice(payload);
}

/// Appends a whole frame whose payload is compressed.
pub(super) fn put_compressed(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    let start = out.len();
    put(out, opcode, payload);
    out[start] |= COMPRESSED;
}

/// Appends a frame whose payload `write` appends, its length known only then: the payload is moved where the
/// header turns out longer than guessed by `expected`.
pub fn put_with(out: &mut Vec<u8>, opcode: Opcode, expected: usize, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    put_header(out, opcode, expected);
    let body = out.len();
    write(out);
    let length = out.len() - body;
    let mut header = Vec::new();
    put_header(&mut header, opcode, length);
    if header.len() == body - start {
        out[start..body].copy_from_slice(&header);
    } else {
        out.splice(start..body, header);
    }
}

/// Appends a close frame; a reason is at most 123 bytes.
pub fn put_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    let reason = &reason.as_bytes()[..reason.len().min(123)];
    put_header(out, Opcode::Close, 2 + reason.len());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason);
}
