//! What a client says before it is subscribed, and what it must answer to stay: one variant for each protocol that
//! the peers speak. Pure: frames in, answers out.

use super::wire::{self, Frame, Opcode};

/// A protocol above WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// A frame is a message; upgraded means subscribed.
    Bare,
    /// Centrifuge's JSON protocol: connect, subscribed by the server; pings are `{}` and may come joined with pushes.
    Centrifuge,
    /// Engine.IO 4 with Socket.IO 5 in it: open, then the default namespace; pings are `2`.
    SocketIo,
}

/// What a frame that carries no publication means to the client.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reaction {
    /// To be written.
    pub(crate) answer: Option<Vec<u8>>,
    /// The client is subscribed from here on.
    pub(crate) joined: bool,
    /// The server said goodbye.
    pub(crate) closed: bool,
}

impl Dialect {
    /// What the client sends right after the upgrade.
    pub(crate) fn greeting(self) -> Option<Vec<u8>> {
        match self {
            Self::Bare | Self::SocketIo => None,
            Self::Centrifuge => Some(wire::client_text(br#"{"connect":{},"id":1}"#)),
        }
    }

    /// Whether the upgrade alone subscribes.
    pub(crate) fn joins_by_upgrade(self) -> bool {
        self == Self::Bare
    }

    /// Whether a frame of publications may hold a ping too.
    pub(crate) fn joins_pings(self) -> bool {
        self == Self::Centrifuge
    }

    /// Reacts to a frame without publications, or to one that may hold a ping beside them.
    pub(crate) fn react(self, frame: &Frame<'_>) -> Reaction {
        match frame.opcode {
            Opcode::Close => Reaction { closed: true, ..Reaction::default() },
            Opcode::Ping => {
                Reaction { answer: Some(wire::client_pong(frame.payload)), ..Reaction::default() }
            }
            Opcode::Pong => Reaction::default(),
            Opcode::Data => self.react_to_text(frame.payload),
        }
    }

    fn react_to_text(self, text: &[u8]) -> Reaction {
        let answer = |text: &[u8]| Some(wire::client_text(text));
        match self {
            Self::Bare => Reaction::default(),
            Self::Centrifuge => Reaction {
                answer: text
                    .split(|byte| *byte == b'\n')
                    .any(|line| line == b"{}")
                    .then(|| wire::client_text(b"{}")),
                joined: text.starts_with(br#"{"id":1,"connect""#),
                closed: text.starts_with(br#"{"push":{"disconnect""#),
            },
            Self::SocketIo => match text {
                [b'0', ..] => Reaction { answer: answer(b"40"), ..Reaction::default() },
                [b'2'] => Reaction { answer: answer(b"3"), ..Reaction::default() },
                [b'4', b'0', ..] => Reaction { joined: true, ..Reaction::default() },
                [b'1', ..] | [b'4', b'1', ..] => Reaction { closed: true, ..Reaction::default() },
                _ => Reaction::default(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn react(dialect: Dialect, text: &str) -> Reaction {
        dialect.react(&wire::frame(&wire::server_text(text.as_bytes())).unwrap())
    }

    #[test]
    fn a_centrifuge_ping_is_answered_even_behind_a_push() {
        for text in ["{}", "{\"push\":{\"channel\":\"bench\",\"pub\":{\"data\":{}}}}\n{}"] {
            assert_eq!(react(Dialect::Centrifuge, text).answer, Some(wire::client_text(b"{}")), "{text}");
        }
    }

    #[test]
    fn a_centrifuge_client_is_subscribed_with_the_reply_to_connect() {
        assert!(
            react(Dialect::Centrifuge, r#"{"id":1,"connect":{"client":"c","subs":{"bench":{}}}}"#).joined
        );
        assert!(react(Dialect::Centrifuge, r#"{"push":{"disconnect":{"code":3012}}}"#).closed);
    }

    #[test]
    fn a_socket_io_client_opens_joins_and_answers_pings() {
        assert_eq!(react(Dialect::SocketIo, "0{\"sid\":\"x\"}").answer, Some(wire::client_text(b"40")));
        assert!(react(Dialect::SocketIo, "40{\"sid\":\"y\"}").joined);
        assert_eq!(react(Dialect::SocketIo, "2").answer, Some(wire::client_text(b"3")));
    }
}
