//! What nodes say to each other, in JSON. Fields are added with a default, never renamed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Counts, NodeInfo, Who};
use crate::{
    domain::{CloseReason, ConnectionId, NodeId},
    work::NodeRun,
};

/// Channels in one reply: some hundred KB at most, so that one answer does not hold up publications.
const CHANNELS_PER_REPLY: usize = 2_000;

/// One message; `from` is the node that speaks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub(super) enum Message {
    /// A node is there.
    Node(Announcement),
    /// A node goes.
    Leave { from: u64 },
    /// A question, answered on the channel of the node that asks.
    Ask { from: u64, request: u64, question: Question },
    /// An answer, or a part of it.
    Reply { from: u64, request: u64, answer: Answer, more: bool },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Announcement {
    pub(super) from: u64,
    name: String,
    version: String,
    started_at_ms: u64,
    connections: u32,
    users: u32,
    channels: u32,
    /// Asks the others to announce themselves at once.
    #[serde(default)]
    pub(super) hello: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "camelCase")]
pub(super) enum Question {
    /// Close these connections.
    Disconnect { user: Option<Arc<str>>, connection: Option<(u16, u32, u32)>, reason: String },
    /// Which channels have subscribers?
    Channels { pattern: Option<String> },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Answer {
    pub(super) closed: usize,
    pub(super) channels: BTreeMap<String, u32>,
}

impl Message {
    pub(super) fn from(&self) -> NodeId {
        let (Self::Node(Announcement { from, .. })
        | Self::Leave { from }
        | Self::Ask { from, .. }
        | Self::Reply { from, .. }) = self;
        NodeId(*from)
    }
}

impl Announcement {
    pub(super) fn new(run: NodeRun, name: &str, version: &str, counts: Counts, hello: bool) -> Self {
        let Counts { connections, users, channels } = counts;
        let (name, version) = (name.to_owned(), version.to_owned());
        Self { from: run.id.0, name, version, started_at_ms: run.start, connections, users, channels, hello }
    }

    pub(super) fn info(&self, now_ms: u64) -> NodeInfo {
        let Self { from, name, version, started_at_ms, connections, users, channels, hello: _ } = self;
        NodeInfo {
            id: NodeId(*from),
            name: name.clone(),
            version: version.clone(),
            uptime: Duration::from_millis(now_ms.saturating_sub(*started_at_ms)),
            counts: Counts { connections: *connections, users: *users, channels: *channels },
        }
    }
}

impl Question {
    pub(super) fn disconnect(who: Who, reason: CloseReason) -> Self {
        let (user, connection) = match who {
            Who::User(user) => (Some(user), None),
            Who::Client { node: _, connection: ConnectionId { shard, slot, generation }, user } => {
                (user, Some((shard, slot, generation)))
            }
        };
        Self::Disconnect { user, connection, reason: reason.name().to_owned() }
    }

    /// Whom to disconnect, and why; `None` where this is another question, or names nobody.
    pub(super) fn whom(&self) -> Option<(Option<ConnectionId>, Option<Arc<str>>, CloseReason)> {
        let Self::Disconnect { user, connection, reason } = self else { return None };
        if user.is_none() && connection.is_none() {
            return None;
        }
        let connection = connection.map(|(shard, slot, generation)| ConnectionId { shard, slot, generation });
        // A newer node's reason is a request to disconnect all the same.
        let known = CloseReason::ALL.into_iter().find(|known| known.name() == reason);
        Some((connection, user.clone(), known.unwrap_or(CloseReason::Disconnected)))
    }
}

impl Answer {
    /// In messages of bounded size; at least one.
    pub(super) fn into_parts(self) -> impl Iterator<Item = Self> {
        let Self { closed, channels } = self;
        let mut channels = channels.into_iter();
        let mut next = Some(closed);
        std::iter::from_fn(move || {
            let part: BTreeMap<_, _> = channels.by_ref().take(CHANNELS_PER_REPLY).collect();
            match next.take() {
                Some(closed) => Some(Self { closed, channels: part }),
                None if part.is_empty() => None,
                None => Some(Self { closed: 0, channels: part }),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_answer_is_sent_in_parts_and_an_empty_one_is_still_sent() {
        let channels = (0..4_001).map(|number| (number.to_string(), 1)).collect();
        let parts: Vec<_> = Answer { closed: 3, channels }.into_parts().collect();
        assert_eq!(parts.iter().map(|part| part.channels.len()).collect::<Vec<_>>(), [2_000, 2_000, 1]);
        assert_eq!(parts.iter().map(|part| part.closed).sum::<usize>(), 3);
        assert_eq!(Answer::default().into_parts().count(), 1);
    }

    #[test]
    fn messages_stay_readable_for_other_versions() {
        let newer = r#"{"type":"node","from":1,"name":"n","version":"9","startedAtMs":5,"connections":1,
            "users":2,"channels":3,"load":0.5}"#;
        let Ok(Message::Node(announcement)) = serde_json::from_str(newer) else { panic!("a node") };
        assert_eq!(announcement.info(1_005).uptime, Duration::from_secs(1));
        let ask = Message::Ask {
            from: 1,
            request: 2,
            question: Question::disconnect(Who::User("ann".into()), CloseReason::Disconnected),
        };
        assert_eq!(
            serde_json::to_string(&ask).unwrap(),
            r#"{"type":"ask","from":1,"request":2,"question":{"ask":"disconnect","user":"ann","connection":null,"reason":"disconnected"}}"#
        );
    }

    #[test]
    fn a_question_that_names_nobody_disconnects_nobody() {
        let nobody = Question::Disconnect { user: None, connection: None, reason: "disconnected".into() };
        assert_eq!(nobody.whom(), None);
    }
}
