//! Generates docs/protocol.md: prose from a template, tables from the code.

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
        CloseReason::ClientClosed => "the client closed the connection",
        CloseReason::ConnectionLost => {
            "the transport failed; never sent, but reported by the client's library"
        }
        CloseReason::Drain => {
            "the node is shutting down because of a deployment, a scale-down or a rebalance"
        }
        CloseReason::DrainForced => "the node is shutting down and the deadline of its drain passed",
        CloseReason::TokenExpired => "the connection's token has expired; get a new one first",
        CloseReason::SlowConsumer => {
            "the client read too slowly for the `slowConsumer` bounds of its namespace, or read nothing for `hub.limits.writeTimeoutSeconds`"
        }
        CloseReason::NoPong => "the client did not answer a ping within `hub.pongTimeoutSeconds`",
        CloseReason::Gap => {
            "messages were lost, and the mode has no other way to report it; fetch the current state again"
        }
        CloseReason::Disconnected => "a backend requested it with `/api/disconnect`",
        CloseReason::PermissionDenied => "new settings no longer permit what the connection does",
        CloseReason::TooManyRequests => {
            "the client sent more frames or bytes than `hub.limits` allows, or more publications than `rateLimit` allows (bare mode)"
        }
        CloseReason::Idle => "no message in either direction for `hub.limits.idleTimeoutSeconds`",
        CloseReason::MaxAge => "the connection reached `hub.limits.maxConnectionAgeSeconds`",
        CloseReason::Unavailable => "the broker did not accept a publication (bare mode)",
        CloseReason::OutcomeUnknown => {
            "the broker did not answer a publication, so it is unknown whether it was published (bare mode)"
        }
        CloseReason::Overloaded => {
            "all clients together use more memory than the node has for incomplete messages and unread replies, and this client uses the most"
        }
        CloseReason::ProtocolError => "the client sent a frame that violates RFC 6455",
        CloseReason::BadRequest => "the client sent a message that is invalid in the protocol",
        CloseReason::InvalidUtf8 => "the client sent a text message that is not UTF-8",
        CloseReason::MessageTooBig => "the client sent a message larger than `hub.maxMessageBytes`",
        CloseReason::Internal => "internal error of the server",
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
