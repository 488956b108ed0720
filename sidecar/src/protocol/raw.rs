//! Our own protocol over WebSocket, in two modes: [`bare`], whose messages are payloads, and [`framed`], one JSON
//! object a message. Both close with the same codes.
//!
//! Codes follow Centrifuge's ranges, so that a client library can act on a number it does not know: 3000 to 3499
//! and 4000 to 4499 mean come back, 3500 to 3999 and 4500 to 4999 mean do not. 1012 is a drain.

pub mod bare;
pub mod framed;

use super::{
    Advice, Incoming, Protocol,
    websocket::{Decoder, Event, Inflater, MaxBytes, Step, Violation, frame},
};
use crate::domain::{ChannelName, CloseReason};

/// A mode's name in `Sec-WebSocket-Protocol`: bare.
pub const BARE: &str = "fanout.bare";
/// A mode's name in `Sec-WebSocket-Protocol`: framed.
pub const FRAMED: &str = "fanout.v1";
/// A token travels in the list as this and the token.
pub const TOKEN_PREFIX: &str = "fanout.token.";

/// The WebSocket close code and reason that a client sees.
pub fn close_code(reason: CloseReason) -> (u16, &'static str) {
    match reason {
        CloseReason::ClientClosed => (1000, ""),
        // Never travels; what a client's own library would report.
        CloseReason::ConnectionLost => (1006, "connection lost"),
        CloseReason::Drain => (1012, "drain"),
        CloseReason::DrainForced => (1012, "drain deadline"),
        CloseReason::TokenExpired => (3005, "token expired"),
        CloseReason::SlowConsumer => (3008, "slow consumer"),
        CloseReason::Gap => (3010, "messages were lost"),
        CloseReason::NoPong => (3012, "no pong"),
        CloseReason::TooManyRequests => (3013, "too many requests"),
        CloseReason::MaxAge => (3015, "connection age"),
        CloseReason::OutcomeUnknown => (4020, "publication outcome unknown"),
        // Not Centrifuge's: 3014 is "state invalidated" there.
        CloseReason::Overloaded => (4013, "overloaded"),
        CloseReason::Unavailable => (4014, "broker unavailable"),
        CloseReason::Idle => (3511, "idle"),
        CloseReason::Internal => (3004, "internal server error"),
        CloseReason::BadRequest => (3501, "bad request"),
        CloseReason::Disconnected => (3503, "disconnected"),
        CloseReason::PermissionDenied => (3507, "permission denied"),
        CloseReason::ProtocolError => (1002, "protocol error"),
        CloseReason::InvalidUtf8 => (1007, "text is not UTF-8"),
        CloseReason::MessageTooBig => (1009, "message too big"),
    }
}

/// What [`Protocol::read`] is for both modes. `channel` is the connection's only one in bare mode.
///
/// # Errors
/// Why the connection has to close.
pub fn read(
    protocol: Protocol,
    decoder: &mut Decoder,
    input: &mut [u8],
    channel: Option<&ChannelName>,
    max: MaxBytes,
    inflater: Option<&mut Inflater>,
) -> Result<Option<(usize, Incoming)>, CloseReason> {
    let whole = MaxBytes { message: protocol.max_message(max.message), ..max };
    let (used, event) = match decoder.step(input, whole, inflater).map_err(reason_of)? {
        Step::Incomplete => return Ok(None),
        Step::Consumed(used, None) => return Ok(Some((used, Incoming::Nothing))),
        Step::Consumed(used, Some(event)) => (used, event),
    };
    let message = match (event, channel) {
        (Event::Ping(payload), _) => return Ok(Some((used, Incoming::Ping(payload.to_vec())))),
        (Event::Pong(_), _) => return Ok(Some((used, Incoming::Nothing))),
        (Event::Close(close), _) => return Ok(Some((used, Incoming::Close(close.map(|(code, _)| code))))),
        (Event::Text(text), _) if protocol == Protocol::RawFramed => framed::parse(text, max.message),
        (Event::Binary(_), _) if protocol == Protocol::RawFramed => framed::binary(),
        (Event::Text(text), Some(channel)) => bare::publish(channel, bare::text(text)),
        (Event::Binary(bytes), Some(channel)) => bare::publish(channel, bare::binary(bytes)),
        // Its subscription has ended, and with it the connection.
        (Event::Text(_) | Event::Binary(_), None) => return Ok(Some((used, Incoming::Nothing))),
    };
    Ok(Some((used, Incoming::Message(message))))
}

fn reason_of(violation: Violation) -> CloseReason {
    match violation {
        Violation::Utf8 => CloseReason::InvalidUtf8,
        Violation::TooBig => CloseReason::MessageTooBig,
        Violation::ReservedBit
        | Violation::ReservedOpcode
        | Violation::NotMasked
        | Violation::Length
        | Violation::ControlFrame
        | Violation::LoneContinuation
        | Violation::Interleaved
        | Violation::Deflate
        | Violation::CloseCode => CloseReason::ProtocolError,
    }
}

/// Appends the close frame; where advice is given its reason carries it, as `drain after=0 jitter=15000`.
pub(super) fn put_close(out: &mut Vec<u8>, reason: CloseReason, advice: Option<Advice>) {
    let (code, text) = close_code(reason);
    match advice {
        Some(Advice { after, jitter }) => {
            let text = format!("{text} after={} jitter={}", after.as_millis(), jitter.as_millis());
            frame::put_close(out, code, &text);
        }
        None => frame::put_close(out, code, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Reconnect;

    #[test]
    fn the_range_of_each_code_says_whether_to_come_back() {
        for reason in CloseReason::ALL {
            let (code, text) = close_code(reason);
            let come_back = match code {
                1000 | 1002 | 1007 | 1009 | 3500..=3999 | 4500..=4999 => false,
                1006 | 1012 | 3000..=3499 | 4000..=4499 => true,
                code => panic!("{code} is in no range"),
            };
            assert_eq!(come_back, reason.reconnect() != Reconnect::No, "{code} {text}");
            assert!(text.len() < 60, "leaves room for the advice");
        }
    }
}
