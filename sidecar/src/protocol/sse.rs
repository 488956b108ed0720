//! Server-sent events (WHATWG HTML §9.2): publications to a client that cannot answer.
//!
//! A text payload is one event of `data:` lines; the format knows lines only, so CR and CRLF arrive as LF. Bytes
//! are base64 in an `event: binary`. A gap is `event: gap`, a mistake `event: error`, the end of the stream for a
//! reason `event: close`, a refusal for a while `event: refused`, each with a JSON object as its data.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;

use super::{Advice, Reply, raw};
use crate::domain::{CloseReason, Payload, Publication, Reconnect, StreamPosition};

/// A comment; keeps proxies from cutting an idle stream.
pub(super) const PING: &[u8] = b":\n\n";

/// How long a browser waits where nothing else was advised: long enough not to storm a node that comes back.
const RETRY_MS: u128 = 3_000;

/// The start of every stream.
pub fn put_head(out: &mut Vec<u8>) {
    out.extend_from_slice(format!("retry: {RETRY_MS}\n\n").as_bytes());
}

/// Appends a publication: its payload, whoever published it, for an event has no other place that `EventSource` shows.
pub(super) fn put_publication(out: &mut Vec<u8>, publication: &Publication) {
    if let Some(StreamPosition { epoch, offset }) = publication.position {
        out.extend_from_slice(format!("id: {epoch:x}-{offset}\n").as_bytes());
    }
    match &publication.payload {
        Payload::Text(bytes) => put_lines(out, bytes),
        Payload::Binary(bytes) => {
            out.extend_from_slice(b"event: binary\n");
            put_lines(out, STANDARD.encode(bytes).as_bytes());
        }
    }
    out.push(b'\n');
}

/// Appends what a stream can tell beside publications.
pub(super) fn put_reply(out: &mut Vec<u8>, reply: &Reply<'_>) {
    match reply {
        Reply::Connected { .. }
        | Reply::Subscribed { .. }
        | Reply::Unsubscribed { .. }
        | Reply::Published { .. }
        | Reply::Refreshed { .. } => {}
        Reply::Error { error, channel, .. } => put_event(
            out,
            "error",
            &json!({"code": error.code(), "message": error.to_string(),
                "channel": channel.map(ToString::to_string)}),
        ),
        Reply::Gap { channel, reason, from, to } => put_event(
            out,
            "gap",
            &json!({"channel": channel.as_str(), "reason": reason,
                "from": from.map(|position| position.offset), "to": to.map(|position| position.offset)}),
        ),
    }
}

/// Appends the end of the stream. Browsers come back by themselves, so a reason not to is told as an event that
/// the page acts on by closing its `EventSource`.
pub(super) fn put_close(out: &mut Vec<u8>, reason: CloseReason, advice: Option<Advice>) {
    if let Some(Advice { after, jitter }) = advice {
        // `retry` knows no random part: where it should have one, the caller has chosen it and left no jitter.
        out.extend_from_slice(format!("retry: {}\n\n", (after + jitter).as_millis()).as_bytes());
    }
    let (code, text) = raw::close_code(reason);
    let reconnect = reason.reconnect() != Reconnect::No;
    put_event(out, "close", &json!({"code": code, "reason": text, "reconnect": reconnect}));
}

/// A stream that ends before it began: why, and after how many milliseconds to ask again.
pub fn put_refusal(out: &mut Vec<u8>, code: u16, message: &str, retry_ms: u64) {
    out.extend_from_slice(format!("retry: {retry_ms}\n\n").as_bytes());
    put_event(out, "refused", &json!({"code": code, "message": message}));
}

fn put_event(out: &mut Vec<u8>, event: &str, data: &serde_json::Value) {
    out.extend_from_slice(format!("event: {event}\ndata: {data}\n\n").as_bytes());
}

/// One `data:` line for each line.
fn put_lines(out: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text;
    loop {
        let end = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(rest.len());
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(&rest[..end]);
        out.push(b'\n');
        rest = match &rest[end..] {
            [] => return,
            [b'\r', b'\n', rest @ ..] | [_, rest @ ..] => rest,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(payload: Payload, position: Option<StreamPosition>) -> String {
        let publication = Publication { position, ..Publication::bare("a".parse().unwrap(), payload) };
        let mut out = Vec::new();
        put_publication(&mut out, &publication);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_line_of_a_text_is_a_data_line_and_nothing_can_forge_a_field() {
        for (text, event) in [
            ("hello", "data: hello\n\n"),
            ("", "data: \n\n"),
            ("a\nb", "data: a\ndata: b\n\n"),
            ("a\r\nevent: gap\rid: 1\n", "data: a\ndata: event: gap\ndata: id: 1\ndata: \n\n"),
        ] {
            assert_eq!(encoded(Payload::Text(text.into()), None), event);
        }
    }

    #[test]
    fn bytes_are_base64_and_a_position_is_the_id() {
        let position = StreamPosition { epoch: 255, offset: 7 };
        assert_eq!(
            encoded(Payload::Binary(vec![0, 255].into()), Some(position)),
            "id: ff-7\nevent: binary\ndata: AP8=\n\n"
        );
    }

    #[test]
    fn the_end_of_a_stream_says_why_and_whether_to_come_back() {
        let mut out = Vec::new();
        let advice = Advice {
            after: std::time::Duration::from_secs(1),
            jitter: std::time::Duration::from_millis(500),
        };
        put_close(&mut out, CloseReason::Drain, Some(advice));
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "retry: 1500\n\nevent: close\ndata: {\"code\":1012,\"reason\":\"drain\",\"reconnect\":true}\n\n"
        );
    }
}
