//! What travels: a payload, where it goes and where it came from.

use std::sync::Arc;

use bytes::Bytes;

use super::{ChannelName, ConnectionId, NodeId, StreamPosition};

/// What a client or a backend published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Valid UTF-8: whoever makes one has checked it.
    Text(Bytes),
    /// Any bytes.
    Binary(Bytes),
}

/// Where a publication entered the cluster. Sequences count per channel and node run, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The node that published.
    pub node: NodeId,
    /// When that run of it began, in Unix milliseconds.
    pub node_start: u64,
    /// This publication's number on its channel.
    pub sequence: u64,
    /// The number before it; 0 where the publisher does not know (first, or forgotten).
    pub previous_sequence: u64,
}

/// A message on its way to every subscriber of its channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Where to.
    pub channel: ChannelName,
    /// What.
    pub payload: Payload,
    /// Who published; `None` for a bare `redis-cli PUBLISH`.
    pub origin: Option<Origin>,
    /// Its place in the channel's stream; `None` on channels without one.
    pub position: Option<StreamPosition>,
    /// When it was published, in Unix microseconds by the publisher's clock.
    pub published_at_us: Option<u64>,
    /// Name that the publisher gave it, so that a repetition is recognised.
    pub id: Option<String>,
    /// What it is about: of publications with the same key the latest counts, where a namespace conflates.
    pub key: Option<Box<str>>,
    /// Free labels.
    pub tags: Vec<(String, String)>,
    /// User whose client published, where it was a client with an identity.
    pub user: Option<Arc<str>>,
    /// Connection of the client that published, on the node of `origin`; `None` where it was no client, or where its
    /// node does not expose publishers in this namespace.
    pub connection: Option<ConnectionId>,
}

/// Returns the bytes of tags and of the other labels that are there.
pub fn label_bytes<'a>(
    tags: &[(String, String)],
    labels: impl IntoIterator<Item = Option<&'a str>>,
) -> usize {
    let tags: usize = tags.iter().map(|(name, value)| name.len() + value.len()).sum();
    tags + labels.into_iter().flatten().map(str::len).sum::<usize>()
}

impl Payload {
    /// The bytes, of whatever kind.
    pub fn bytes(&self) -> &Bytes {
        let (Self::Text(bytes) | Self::Binary(bytes)) = self;
        bytes
    }

    /// Text where the bytes are valid UTF-8, else binary.
    pub fn sniff(bytes: Bytes) -> Self {
        if simdutf8::basic::from_utf8(&bytes).is_ok() { Self::Text(bytes) } else { Self::Binary(bytes) }
    }
}

impl Publication {
    /// Bytes that it holds beside its payload and its channel's name.
    pub fn label_bytes(&self) -> usize {
        label_bytes(&self.tags, [self.id.as_deref(), self.key.as_deref(), self.user.as_deref()])
    }

    /// A publication of which only channel and payload are known.
    pub fn bare(channel: ChannelName, payload: Payload) -> Self {
        Self {
            channel,
            payload,
            origin: None,
            position: None,
            published_at_us: None,
            id: None,
            key: None,
            tags: Vec::new(),
            user: None,
            connection: None,
        }
    }
}
