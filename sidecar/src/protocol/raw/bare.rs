//! Bare mode: a message is a payload, both ways. There are no replies: what fails is told by the close code.

use bytes::Bytes;

use super::super::{Message, websocket::Opcode, websocket::frame};
use crate::domain::{ChannelName, CloseReason, Command, CommandError, Payload, Publication};

/// Appends a publication.
pub(in crate::protocol) fn put_publication(out: &mut Vec<u8>, publication: &Publication) {
    let (opcode, message) = message(publication);
    frame::put(out, opcode, message);
}

/// The message that a publication is.
pub(in crate::protocol) fn message(publication: &Publication) -> (Opcode, &[u8]) {
    match &publication.payload {
        Payload::Text(bytes) => (Opcode::Text, bytes),
        Payload::Binary(bytes) => (Opcode::Binary, bytes),
    }
}

/// What a client's message means: publish it in the connection's channel.
pub fn publish(channel: &ChannelName, payload: Payload) -> Message {
    let (channel, id, idempotency_key) = (channel.clone(), None, None);
    Message::Command(Command::Publish { channel, payload, id, idempotency_key })
}

/// A text message's payload.
pub fn text(message: &str) -> Payload {
    Payload::Text(Bytes::copy_from_slice(message.as_bytes()))
}

/// A binary message's payload.
pub fn binary(message: &[u8]) -> Payload {
    Payload::Binary(Bytes::copy_from_slice(message))
}

/// Why a connection closes whose publication failed.
pub fn close_reason(error: &CommandError) -> CloseReason {
    match error {
        CommandError::Unavailable | CommandError::Overloaded | CommandError::BrokerRefused => {
            CloseReason::Unavailable
        }
        CommandError::OutcomeUnknown { .. } => CloseReason::OutcomeUnknown,
        CommandError::TooManyRequests { .. } | CommandError::TooManyKeys { .. } => {
            CloseReason::TooManyRequests
        }
        CommandError::UnknownChannel | CommandError::PermissionDenied | CommandError::Unauthorized(_) => {
            CloseReason::PermissionDenied
        }
        CommandError::AlreadySubscribed
        | CommandError::Cancelled
        | CommandError::NotSubscribed
        | CommandError::TooManyChannels { .. }
        | CommandError::NoHistory
        | CommandError::BadRequest(_) => CloseReason::BadRequest,
    }
}
