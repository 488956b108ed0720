//! What nodes say to each other, in JSON. Fields are added with a default, never renamed: nodes of the first version
//! know none of those that have one.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Counts, NodeInfo, Who};
use crate::{
    domain::{CloseReason, ConnectionId, NodeId},
    work::NodeRun,
};

/// Channels in one reply: some hundred KB at most, so that one answer does not hold up publications.
const CHANNELS_PER_REPLY: usize = 2_000;

/// By which names a node speaks: see [`FORMER_NAMES`](crate::broker::FORMER_NAMES).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bridge) enum Names {
    Present,
    Former,
}

/// One message; `from` is the node that speaks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub(super) enum Message {
    /// A node is there.
    Node(Announcement),
    /// A node goes.
    Leave { from: u64 },
    /// A question, answered on the channel of the node that asks.
    Ask {
        from: u64,
        request: u64,
        question: Question,
        /// Said by the present names too: only nodes that know none but the former ones are to hear it.
        #[serde(default, skip_serializing_if = "is_false")]
        copy: bool,
    },
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
    /// Nodes that it has heard lately, or some of them; nothing from a node of the first version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    heard: Option<Vec<u64>>,
    /// Said by the present names too.
    #[serde(default, skip_serializing_if = "is_false")]
    copy: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "camelCase")]
pub(super) enum Question {
    /// Close these connections.
    Disconnect {
        user: Option<Arc<str>>,
        connection: Option<(u16, u32, u32)>,
        reason: String,
        /// How long ago it was asked first: younger connections stay.
        #[serde(default, skip_serializing_if = "is_zero")]
        age_ms: u64,
    },
    /// Which channels have subscribers?
    Channels { pattern: Option<String> },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Answer {
    pub(super) closed: usize,
    pub(super) channels: BTreeMap<String, u32>,
    /// Some of the node's shards did not answer in time.
    #[serde(skip_serializing_if = "is_false")]
    pub(super) partial: bool,
}

/// Whom a question disconnects, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Whom {
    pub(super) connection: Option<ConnectionId>,
    pub(super) user: Option<Arc<str>>,
    pub(super) reason: CloseReason,
    pub(super) age: Duration,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it by reference")]
fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it by reference")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl Message {
    /// The same, for nodes that know only the former names. What it does not matter to hear twice is no other.
    pub(super) fn copied(&self) -> Self {
        match self.clone() {
            Self::Node(announcement) => Self::Node(Announcement { copy: true, ..announcement }),
            Self::Ask { from, request, question, copy: _ } => {
                Self::Ask { from, request, question, copy: true }
            }
            message @ (Self::Leave { .. } | Self::Reply { .. }) => message,
        }
    }

    /// Whether whoever knows the present names has heard it by them.
    pub(super) fn is_copy(&self) -> bool {
        match self {
            Self::Node(Announcement { copy, .. }) | Self::Ask { copy, .. } => *copy,
            Self::Leave { .. } | Self::Reply { .. } => false,
        }
    }

    pub(super) fn from(&self) -> NodeId {
        let (Self::Node(Announcement { from, .. })
        | Self::Leave { from }
        | Self::Ask { from, .. }
        | Self::Reply { from, .. }) = self;
        NodeId(*from)
    }
}

impl Announcement {
    pub(super) fn new(
        run: NodeRun,
        name: &str,
        version: &str,
        counts: Counts,
        hello: bool,
        heard: Option<Vec<NodeId>>,
    ) -> Self {
        let Counts { connections, users, channels } = counts;
        Self {
            from: run.id.0,
            name: name.to_owned(),
            version: version.to_owned(),
            started_at_ms: run.start,
            connections,
            users,
            channels,
            hello,
            heard: heard.map(|heard| heard.into_iter().map(|node| node.0).collect()),
            copy: false,
        }
    }

    pub(super) fn node(&self) -> NodeId {
        NodeId(self.from)
    }

    /// Whether it names this node among those that it hears.
    pub(super) fn has_heard(&self, node: NodeId) -> bool {
        self.heard.as_ref().is_some_and(|heard| heard.contains(&node.0))
    }

    /// Whether it comes from a node of the first version, which does not say whom it hears.
    pub(super) fn is_mute(&self) -> bool {
        self.heard.is_none()
    }

    pub(super) fn info(&self, now_ms: u64) -> NodeInfo {
        let Self { from, name, version, started_at_ms, connections, users, channels, .. } = self;
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
    /// Asked `age` ago for the first time.
    pub(super) fn disconnect(who: Who, reason: CloseReason, age: Duration) -> Self {
        let (user, connection) = match who {
            Who::User(user) => (Some(user), None),
            Who::Client { node: _, connection: ConnectionId { shard, slot, generation }, user } => {
                (user, Some((shard, slot, generation)))
            }
        };
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        Self::Disconnect { user, connection, reason: reason.name().to_owned(), age_ms }
    }

    /// Whom to disconnect, and why; `None` where this is another question, or names nobody.
    pub(super) fn whom(&self) -> Option<Whom> {
        let Self::Disconnect { user, connection, reason, age_ms } = self else { return None };
        if user.is_none() && connection.is_none() {
            return None;
        }
        let connection = connection.map(|(shard, slot, generation)| ConnectionId { shard, slot, generation });
        // A newer node's reason is a request to disconnect all the same.
        let known = CloseReason::ALL.into_iter().find(|known| known.name() == reason);
        let reason = known.unwrap_or(CloseReason::Disconnected);
        Some(Whom { connection, user: user.clone(), reason, age: Duration::from_millis(*age_ms) })
    }
}

impl Answer {
    /// In messages of bounded size; at least one.
    pub(super) fn into_parts(self) -> impl Iterator<Item = Self> {
        let Self { closed, channels, partial } = self;
        let mut channels = channels.into_iter();
        let mut next = Some(Self { closed, partial, ..Self::default() });
        std::iter::from_fn(move || {
            let part: BTreeMap<_, _> = channels.by_ref().take(CHANNELS_PER_REPLY).collect();
            match next.take() {
                Some(first) => Some(Self { channels: part, ..first }),
                None if part.is_empty() => None,
                None => Some(Self { channels: part, ..Self::default() }),
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
        let parts: Vec<_> = Answer { closed: 3, channels, partial: true }.into_parts().collect();
        assert_eq!(parts.iter().map(|part| part.channels.len()).collect::<Vec<_>>(), [2_000, 2_000, 1]);
        assert_eq!(parts.iter().filter(|part| part.partial).count(), 1);
        assert_eq!(parts.iter().map(|part| part.closed).sum::<usize>(), 3);
        assert_eq!(Answer::default().into_parts().count(), 1);
    }

    #[test]
    fn messages_stay_readable_for_other_versions() {
        let newer = r#"{"type":"node","from":1,"name":"n","version":"9","startedAtMs":5,"connections":1,
            "users":2,"channels":3,"load":0.5}"#;
        let Ok(Message::Node(announcement)) = serde_json::from_str(newer) else { panic!("a node") };
        assert_eq!(announcement.info(1_005).uptime, Duration::from_secs(1));
        assert!(announcement.is_mute() && !announcement.copy);
    }

    fn ask(age: Duration) -> Message {
        let question = Question::disconnect(Who::User("ann".into()), CloseReason::Disconnected, age);
        Message::Ask { from: 1, request: 2, question, copy: false }
    }

    fn json(message: &Message) -> String {
        serde_json::to_string(message).unwrap()
    }

    #[test]
    fn a_question_is_that_of_the_first_version_unless_it_is_asked_again() {
        let first = r#"{"type":"ask","from":1,"request":2,"question":{"ask":"disconnect","user":"ann","connection":null,"reason":"disconnected"}}"#;
        assert_eq!(json(&ask(Duration::ZERO)), first);
        assert_eq!(
            json(&ask(Duration::from_secs(7))),
            r#"{"type":"ask","from":1,"request":2,"question":{"ask":"disconnect","user":"ann","connection":null,"reason":"disconnected","age_ms":7000}}"#
        );
        let Ok(Message::Ask { question, copy: false, .. }) = serde_json::from_str(first) else {
            panic!("a question")
        };
        assert_eq!(question.whom().map(|whom| whom.age), Some(Duration::ZERO));
    }

    #[test]
    fn a_copy_is_told_apart_and_an_announcement_says_who_was_heard() {
        let run = NodeRun { id: NodeId(u64::MAX), start: 5 };
        let node =
            Announcement::new(run, "n", "9", Counts::default(), true, Some(vec![NodeId(u64::MAX - 1)]));
        let message = Message::Node(node);
        assert_eq!(
            json(&message.copied()),
            r#"{"type":"node","from":18446744073709551615,"name":"n","version":"9","startedAtMs":5,"connections":0,"users":0,"channels":0,"hello":true,"heard":[18446744073709551614],"copy":true}"#
        );
        assert!(message.copied().is_copy() && !message.is_copy());
        assert!(ask(Duration::ZERO).copied().is_copy());
        let Ok(Message::Node(back)) = serde_json::from_str(&json(&message)) else { panic!("a node") };
        assert!(back.has_heard(NodeId(u64::MAX - 1)) && !back.has_heard(NodeId(5)) && !back.is_mute());
    }

    #[test]
    fn a_question_that_names_nobody_disconnects_nobody() {
        let nobody =
            Question::Disconnect { user: None, connection: None, reason: "disconnected".into(), age_ms: 0 };
        assert_eq!(nobody.whom(), None);
    }
}
