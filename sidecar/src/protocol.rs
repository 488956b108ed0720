//! What clients speak, sans-IO: bytes → commands, publications and replies → bytes. No tokio, no socket, no clock.
//!
//! A publication is encoded once for each [`WireForm`], framing included, and the same bytes go to everybody who
//! uses that form. Each protocol maps every [`CloseReason`] to a code of its own: a new reason does not compile
//! until each has given one.

pub mod raw;
pub mod sse;
pub mod websocket;

use std::time::Duration;

use self::websocket::{Decoder, Deflater, Inflater, MaxBytes, Opcode};
use crate::domain::{
    ChannelName, CloseReason, Command, CommandError, ConnectionId, Exposure, NodeId, Publication,
    StreamPosition,
};

/// The client protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// WebSocket whose messages are payloads, both ways.
    RawBare,
    /// WebSocket with one JSON object a message (`fanout.v1`).
    RawFramed,
    /// Server-sent events: publications only.
    Sse,
}

/// In which bytes a publication travels; a log holds one form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WireForm {
    /// A WebSocket message that is the payload.
    Bare,
    /// A WebSocket message with a JSON object.
    Framed,
    /// A server-sent event.
    Sse,
    /// As [`WireForm::Bare`], compressed where that is worth it.
    BareDeflated,
    /// As [`WireForm::Framed`], compressed where that is worth it.
    FramedDeflated,
}

/// What a server tells one client, apart from publications.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "a variant's text speaks of its fields")]
pub enum Reply<'a> {
    /// The connection is open; both together are its client id.
    Connected { node: NodeId, connection: ConnectionId },
    /// A subscription is live.
    Subscribed { channel: &'a ChannelName, id: Option<&'a str> },
    /// A subscription has ended.
    Unsubscribed { channel: &'a ChannelName, id: Option<&'a str> },
    /// The broker took a publication.
    Published { channel: &'a ChannelName, id: &'a str, duplicate: bool },
    /// The connection goes by its new token.
    Refreshed { id: Option<&'a str> },
    /// A command failed.
    Error { error: &'a CommandError, channel: Option<&'a ChannelName>, id: Option<&'a str> },
    /// Publications were lost, between these offsets where known.
    Gap {
        channel: &'a ChannelName,
        reason: &'a str,
        from: Option<StreamPosition>,
        to: Option<StreamPosition>,
    },
}

/// When a client that has to leave should come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advice {
    /// After this long,
    pub after: Duration,
    /// and a random part of this.
    pub jitter: Duration,
}

/// What a client's message means.
#[derive(Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "a variant's text speaks of its fields")]
pub enum Message {
    /// A command.
    Command(Command),
    /// A token in place of the one that opened the connection.
    Refresh { token: String, id: Option<String> },
    /// A mistake, answered where the protocol can.
    Mistake { error: CommandError, id: Option<String> },
}

/// What a client's frame brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A whole message.
    Message(Message),
    /// A ping to be answered with these bytes.
    Ping(Vec<u8>),
    /// The closing handshake, with the code to answer it with.
    Close(Option<u16>),
    /// A fragment, or a sign of life.
    Nothing,
}

// === impl Protocol ===

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::RawBare, Self::RawFramed, Self::Sse];

    /// Name for logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::RawBare => "raw_bare",
            Self::RawFramed => "raw_framed",
            Self::Sse => "sse",
        }
    }

    /// The form in which publications are sent to a client that negotiated compression, or did not.
    pub fn wire_form(self, deflate: bool) -> WireForm {
        match (self, deflate) {
            (Self::RawBare, false) => WireForm::Bare,
            (Self::RawBare, true) => WireForm::BareDeflated,
            (Self::RawFramed, false) => WireForm::Framed,
            (Self::RawFramed, true) => WireForm::FramedDeflated,
            (Self::Sse, _) => WireForm::Sse,
        }
    }

    /// Whether it runs over WebSocket frames.
    pub fn is_websocket(self) -> bool {
        match self {
            Self::RawBare | Self::RawFramed => true,
            Self::Sse => false,
        }
    }

    /// Whether a failed command or a gap can be told while the connection stays.
    pub fn has_replies(self) -> bool {
        match self {
            Self::RawFramed | Self::Sse => true,
            Self::RawBare => false,
        }
    }

    /// Whether one subscription can end while the connection stays.
    pub fn has_subscriptions(self) -> bool {
        match self {
            Self::RawFramed => true,
            Self::RawBare | Self::Sse => false,
        }
    }

    /// Whether a client that has to leave waits a random part of its advice by itself.
    pub fn has_jitter(self) -> bool {
        match self {
            Self::RawBare | Self::RawFramed => true,
            // An `EventSource` waits exactly as long as it is told.
            Self::Sse => false,
        }
    }

    /// Why the connection of a failed command has to close, where its client cannot be told while it stays.
    pub fn close_reason(self, error: &CommandError) -> Option<CloseReason> {
        match self {
            Self::RawBare => Some(raw::bare::close_reason(error)),
            Self::RawFramed | Self::Sse => None,
        }
    }

    /// The most bytes that a client's message may have where payloads may have `max_payload`.
    pub fn max_message(self, max_payload: usize) -> usize {
        match self {
            Self::RawBare => max_payload,
            Self::RawFramed => raw::framed::max_message(max_payload),
            Self::Sse => 0,
        }
    }

    /// Reads the frame at the start of `input` and says how many bytes it had; `None` while it is incomplete. `channel`
    /// is the connection's first, `inflater` there where messages may be compressed; of `max`, the message is a
    /// publication's payload.
    ///
    /// # Errors
    /// Why the connection has to close.
    pub fn read(
        self,
        decoder: &mut Decoder,
        input: &mut [u8],
        channel: Option<&ChannelName>,
        max: MaxBytes,
        inflater: Option<&mut Inflater>,
    ) -> Result<Option<(usize, Incoming)>, CloseReason> {
        match self {
            Self::RawBare | Self::RawFramed => raw::read(self, decoder, input, channel, max, inflater),
            // An event stream has no way in.
            Self::Sse => Err(CloseReason::ProtocolError),
        }
    }

    /// Appends what stands before all else.
    pub fn put_head(self, out: &mut Vec<u8>) {
        match self {
            Self::RawBare | Self::RawFramed => {}
            Self::Sse => sse::put_head(out),
        }
    }

    /// Appends a reply's bytes; nothing where the protocol has no such reply.
    pub fn put_reply(self, out: &mut Vec<u8>, reply: &Reply<'_>) {
        match self {
            Self::RawBare => {}
            Self::RawFramed => raw::framed::put_reply(out, reply),
            Self::Sse => sse::put_reply(out, reply),
        }
    }

    /// Appends the bytes that keep a connection alive and ask whether the client is there.
    pub fn put_ping(self, out: &mut Vec<u8>) {
        match self {
            Self::RawBare | Self::RawFramed => websocket::frame::put(out, websocket::Opcode::Ping, b""),
            Self::Sse => out.extend_from_slice(sse::PING),
        }
    }

    /// Appends the last bytes of a connection that the server ends.
    pub fn put_close(self, out: &mut Vec<u8>, reason: CloseReason, advice: Option<Advice>) {
        match self {
            Self::RawBare => raw::put_close(out, reason, advice),
            Self::RawFramed => {
                if let Some(advice) = advice {
                    raw::framed::put_reconnect(out, advice);
                }
                raw::put_close(out, reason, advice);
            }
            Self::Sse => sse::put_close(out, reason, advice),
        }
    }
}

// === impl WireForm ===

impl WireForm {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Bare, Self::Framed, Self::Sse, Self::BareDeflated, Self::FramedDeflated];

    /// The protocol that sends it.
    pub fn protocol(self) -> Protocol {
        match self {
            Self::Bare | Self::BareDeflated => Protocol::RawBare,
            Self::Framed | Self::FramedDeflated => Protocol::RawFramed,
            Self::Sse => Protocol::Sse,
        }
    }

    /// Whether its frames may be compressed.
    pub fn is_deflated(self) -> bool {
        match self {
            Self::BareDeflated | Self::FramedDeflated => true,
            Self::Bare | Self::Framed | Self::Sse => false,
        }
    }

    /// Appends a publication as clients of this form receive it, whole frames only, uncompressed.
    pub fn put_publication(self, out: &mut Vec<u8>, publication: &Publication, exposure: Exposure) {
        match self {
            Self::Bare | Self::BareDeflated => raw::bare::put_publication(out, publication),
            Self::Framed | Self::FramedDeflated => raw::framed::put_publication(out, publication, exposure),
            Self::Sse => sse::put_publication(out, publication),
        }
    }

    /// The same, compressed where the form knows that and the message becomes shorter.
    pub fn put_compressed(
        self,
        out: &mut Vec<u8>,
        publication: &Publication,
        exposure: Exposure,
        deflater: &mut Deflater,
        level: u32,
    ) {
        match self {
            Self::Bare | Self::Framed | Self::Sse => self.put_publication(out, publication, exposure),
            Self::BareDeflated => {
                let (opcode, message) = raw::bare::message(publication);
                deflater.put(out, opcode, message, level);
            }
            Self::FramedDeflated => deflater.put_with(out, Opcode::Text, level, |out| {
                raw::framed::put_message_of(out, publication, exposure);
            }),
        }
    }
}
