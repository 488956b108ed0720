//! Prints docs/protocol.md: prose from a template, tables from what the code does.

use anyhow::Result;
use fanout_sidecar::{
    domain::{CloseReason, CommandError, Reconnect},
    protocol::{Protocol, raw},
};

const TEMPLATE: &str = include_str!("protocol_doc/template.md");

/// Prints the document.
pub(crate) fn print() -> Result<()> {
    print!("{}", document());
    Ok(())
}

fn document() -> String {
    TEMPLATE
        .replace("{{bare}}", raw::BARE)
        .replace("{{framed}}", raw::FRAMED)
        .replace("{{token_prefix}}", raw::TOKEN_PREFIX)
        .replace("{{protocols}}", &protocols())
        .replace("{{close_codes}}", &close_codes())
        .replace("{{errors}}", &errors())
}

fn protocols() -> String {
    let row = |protocol: Protocol| {
        let transport = if protocol.is_websocket() { "WebSocket" } else { "HTTP response" };
        let replies = if protocol.has_replies() { "yes" } else { "no: the connection closes instead" };
        format!("| `{}` | {transport} | {replies} |\n", protocol.name())
    };
    Protocol::ALL.map(row).concat()
}

fn close_codes() -> String {
    let mut rows = CloseReason::ALL.map(|reason| {
        let (code, text) = raw::close_code(reason);
        (
            code,
            format!(
                "| {code} | {} | `{}` | {} | {} |\n",
                or_dash(text),
                reason.name(),
                cause(reason),
                advice(reason)
            ),
        )
    });
    rows.sort();
    rows.map(|(_, row)| row).concat()
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "–".to_owned() } else { format!("`{text}`") }
}

fn cause(reason: CloseReason) -> &'static str {
    match reason {
        CloseReason::ClientClosed => "the client closed",
        CloseReason::ConnectionLost => "the transport failed; never sent, what the client's library reports",
        CloseReason::Drain => "the node is leaving: a deploy, a scale-down or a rebalance",
        CloseReason::DrainForced => "the node is leaving and its deadline passed",
        CloseReason::TokenExpired => "the connection's token has expired: get a new one first",
        CloseReason::SlowConsumer => {
            "the client read too slowly for its namespace's `slowConsumer` bounds, or nothing for `hub.limits.writeTimeoutSeconds`"
        }
        CloseReason::NoPong => "a ping was not answered in `hub.pongTimeoutSeconds`",
        CloseReason::Gap => {
            "messages were lost and the mode has no other way to tell it: fetch the state anew"
        }
        CloseReason::Disconnected => "a backend asked for it by `/api/disconnect`",
        CloseReason::PermissionDenied => "new settings no longer allow what the connection does",
        CloseReason::TooManyRequests => {
            "more frames or bytes than `hub.limits` admit, or more publications than `rateLimit` (bare mode)"
        }
        CloseReason::Idle => "no message in either direction for `hub.limits.idleTimeoutSeconds`",
        CloseReason::MaxAge => "the connection has reached `hub.limits.maxConnectionAgeSeconds`",
        CloseReason::Unavailable => "the broker did not take a publication (bare mode)",
        CloseReason::OutcomeUnknown => {
            "a publication was sent to the broker and not answered: it was published or not (bare mode)"
        }
        CloseReason::Overloaded => {
            "clients together take more memory than the node has for unfinished messages and unread replies, and this one took most"
        }
        CloseReason::ProtocolError => "a frame against RFC 6455",
        CloseReason::BadRequest => "a message that is not what the protocol speaks",
        CloseReason::InvalidUtf8 => "a text message that is not UTF-8",
        CloseReason::MessageTooBig => "a message larger than `hub.maxMessageBytes`",
        CloseReason::Internal => "a mistake in the server",
    }
}

fn advice(reason: CloseReason) -> &'static str {
    match reason.reconnect() {
        Reconnect::Yes => "yes, after a random part of the advised time",
        Reconnect::WithBackOff => "yes, with exponential back-off",
        Reconnect::No => "no",
    }
}

fn errors() -> String {
    let row = |error: CommandError| {
        let again = if error.is_temporary() { "yes, later" } else { "no" };
        format!("| {} | {error} | {again} |\n", error.code())
    };
    let mut rows: Vec<_> = every_error().into_iter().map(|error| (error.code(), row(error))).collect();
    rows.sort();
    rows.into_iter().map(|(_, row)| row).collect()
}

/// One of each; a new error does not compile until it is listed.
fn every_error() -> Vec<CommandError> {
    let next = |error: &CommandError| match error {
        CommandError::Unavailable => Some(CommandError::BrokerRefused),
        CommandError::BrokerRefused => Some(CommandError::OutcomeUnknown { keyed: false }),
        CommandError::OutcomeUnknown { keyed: false } => Some(CommandError::OutcomeUnknown { keyed: true }),
        CommandError::OutcomeUnknown { keyed: true } => Some(CommandError::Overloaded),
        CommandError::Overloaded => Some(CommandError::UnknownChannel),
        CommandError::UnknownChannel => Some(CommandError::PermissionDenied),
        CommandError::PermissionDenied => Some(CommandError::AlreadySubscribed),
        CommandError::AlreadySubscribed => Some(CommandError::Cancelled),
        CommandError::Cancelled => Some(CommandError::NotSubscribed),
        CommandError::NotSubscribed => Some(CommandError::TooManyChannels { limit: 128 }),
        CommandError::TooManyChannels { .. } => Some(CommandError::TooManyRequests { per_second: 500 }),
        CommandError::TooManyRequests { .. } => Some(CommandError::TooManyKeys { limit: 10_000 }),
        CommandError::TooManyKeys { .. } => Some(CommandError::NoHistory),
        CommandError::NoHistory => Some(CommandError::BadRequest("what is wrong".to_owned())),
        CommandError::BadRequest(_) => Some(CommandError::Unauthorized("what is wrong".to_owned())),
        CommandError::Unauthorized(_) => None,
    };
    std::iter::successors(Some(CommandError::Unavailable), next).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_printed_document_is_the_one_in_docs() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol.md");
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == document(),
            "docs/protocol.md is old: run `fanout-sidecar protocol > docs/protocol.md`"
        );
    }

    #[test]
    fn every_placeholder_is_filled_and_every_reason_and_error_is_listed() {
        let document = document();
        assert!(!document.contains("{{"));
        for reason in CloseReason::ALL {
            assert!(document.contains(&format!("`{}`", reason.name())), "{reason:?}");
        }
        let errors = every_error();
        let kinds: HashSet<_> = errors.iter().map(std::mem::discriminant).collect();
        assert_eq!(kinds.len(), CommandError::KINDS.len());
    }
}
