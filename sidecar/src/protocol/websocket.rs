//! WebSocket (RFC 6455), the server's side, sans-IO: bytes → messages and control frames.
//!
//! [`Decoder`] keeps only what must outlive a read: a fragmented message. An incomplete frame stays with the
//! caller, who offers it again with more bytes behind it.

pub mod deflate;
pub mod frame;
mod handshake;
mod mask;
mod utf8;

pub use deflate::{Deflater, Inflater};
pub use frame::{Header, Opcode, Violation};
pub use handshake::{BadHandshake, accept_key};

use self::utf8::Utf8;

/// What a client said.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole text message; valid UTF-8.
    Text(&'a str),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// A ping to be answered with these bytes.
    Ping(&'a [u8]),
    /// An answer to a ping.
    Pong(&'a [u8]),
    /// The closing handshake: its code and reason, where given.
    Close(Option<(u16, &'a str)>),
}

/// How far one step came.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// The frame is not complete: offer the same bytes again with more behind them.
    Incomplete,
    /// So many bytes were consumed; there is an event unless it was a fragment that more will follow.
    Consumed(usize, Option<Event<'a>>),
}

/// Bounds of what a client sends, in payload bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxBytes {
    /// Of a message, unpacked.
    pub message: usize,
    /// Of a frame, as it was sent.
    pub frame: usize,
}

/// The state between frames.
#[derive(Debug, Default)]
pub struct Decoder(Option<Box<Fragments>>);

#[derive(Debug)]
struct Fragments {
    text: bool,
    compressed: bool,
    bytes: Vec<u8>,
    utf8: Utf8,
}

// === impl Decoder ===

impl Decoder {
    /// Whether nothing has to be kept between reads.
    pub fn is_idle(&self) -> bool {
        self.0.is_none()
    }

    /// Memory of a message that has begun.
    pub fn held(&self) -> usize {
        self.0.as_ref().map_or(0, |fragments| fragments.bytes.capacity())
    }

    /// Reads the frame at the start of `input`, unmasking it in place. With an inflater messages may be compressed;
    /// it is needed within one step only, so one serves many connections.
    ///
    /// # Errors
    /// What the frame or message does against the RFC or against `max`. The stream cannot be read any further.
    pub fn step<'a>(
        &'a mut self,
        input: &'a mut [u8],
        max: MaxBytes,
        inflater: Option<&'a mut Inflater>,
    ) -> Result<Step<'a>, Violation> {
        let max_message = max.message;
        let Some(header) = Header::parse(input, inflater.is_some())? else { return Ok(Step::Incomplete) };
        self.admit(&header, max)?;
        let Header { fin, compressed, opcode, key, length, bytes: start } = header;
        // `admit` bounds the length by a usize.
        let end = start + length as usize;
        let Some(payload) = input.get_mut(start..end) else { return Ok(Step::Incomplete) };
        mask::apply(payload, key);
        let event = match opcode {
            Opcode::Ping => Some(Event::Ping(payload)),
            Opcode::Pong => Some(Event::Pong(payload)),
            Opcode::Close => Some(Event::Close(frame::parse_close(payload)?)),
            Opcode::Text | Opcode::Binary if fin => {
                let payload = if compressed { inflate(inflater, payload, max_message)? } else { payload };
                Some(whole(opcode == Opcode::Text, payload)?)
            }
            Opcode::Text | Opcode::Binary => {
                self.begin(opcode == Opcode::Text, compressed, payload)?;
                None
            }
            Opcode::Continuation => self.go_on(payload, fin, max_message, inflater)?,
        };
        Ok(Step::Consumed(end, event))
    }

    /// Checks a header before its payload has arrived, so that a bad frame is refused at once.
    fn admit(&mut self, header: &Header, max: MaxBytes) -> Result<(), Violation> {
        // A finished message's buffer was lent to its event until now.
        if self.0.as_ref().is_some_and(|fragments| fragments.utf8.is_finished()) {
            self.0 = None;
        }
        let (so_far, compressed) = match (&self.0, header.opcode) {
            (None, Opcode::Continuation) => return Err(Violation::LoneContinuation),
            (Some(_), Opcode::Text | Opcode::Binary) => return Err(Violation::Interleaved),
            (Some(fragments), Opcode::Continuation) => (fragments.bytes.len(), fragments.compressed),
            (_, _) => (0, header.compressed),
        };
        // What it unpacks to is bounded where it is unpacked.
        let max_message = if compressed { deflate::max_packed(max.message) } else { max.message };
        let most = max_message.saturating_sub(so_far).min(max.frame);
        if header.length > most as u64 && !header.opcode.is_control() {
            return Err(Violation::TooBig);
        }
        Ok(())
    }

    fn begin(&mut self, text: bool, compressed: bool, payload: &[u8]) -> Result<(), Violation> {
        let mut fragments = Fragments { text, compressed, bytes: Vec::new(), utf8: Utf8::default() };
        fragments.push(payload, false)?;
        self.0 = Some(Box::new(fragments));
        Ok(())
    }

    fn go_on<'a>(
        &'a mut self,
        payload: &[u8],
        fin: bool,
        max_message: usize,
        inflater: Option<&'a mut Inflater>,
    ) -> Result<Option<Event<'a>>, Violation> {
        let fragments = self.0.as_mut().expect("admit refuses a continuation of nothing");
        fragments.push(payload, fin)?;
        if !fin {
            return Ok(None);
        }
        let Fragments { text, compressed, bytes, .. } = &mut **fragments;
        let message = if *compressed { inflate(inflater, bytes, max_message)? } else { bytes };
        whole(*text, message).map(Some)
    }
}

fn whole(text: bool, message: &[u8]) -> Result<Event<'_>, Violation> {
    Ok(if text { Event::Text(utf8::check(message)?) } else { Event::Binary(message) })
}

/// Compressed frames are admitted only with an inflater.
fn inflate<'a>(
    inflater: Option<&'a mut Inflater>,
    packed: &[u8],
    max_message: usize,
) -> Result<&'a mut [u8], Violation> {
    inflater.ok_or(Violation::ReservedBit)?.message(packed, max_message)
}

impl Fragments {
    fn push(&mut self, payload: &[u8], fin: bool) -> Result<(), Violation> {
        if self.text && !self.compressed {
            self.utf8.push(payload, fin)?;
        } else if fin {
            self.utf8.finish();
        }
        self.bytes.extend_from_slice(payload);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
