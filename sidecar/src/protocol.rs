//! What clients speak, sans-IO: bytes → commands, publications and replies → bytes. No tokio, no socket, no clock.

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
