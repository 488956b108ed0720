//! Which channel lives on which link: today one link carries all.

use super::link::Link;
use crate::{broker::LinkId, domain::ChannelName};

/// The links of a broker, by their ids.
pub(super) struct Topology {
    only: Link,
}

impl Topology {
    /// One server for all channels.
    pub(super) fn standalone(only: Link) -> Self {
        Self { only }
    }

    /// Number of links.
    pub(super) fn links(&self) -> u16 {
        1
    }

    /// The link that carries the channel.
    pub(super) fn link_of(&self, _channel: &ChannelName) -> LinkId {
        LinkId(0)
    }

    /// A link by its id; `None` for an id that this topology never gave.
    pub(super) fn link(&self, id: LinkId) -> Option<&Link> {
        (id == LinkId(0)).then_some(&self.only)
    }

    /// Channels by the link that carries them.
    pub(super) fn split(&self, channels: Vec<ChannelName>) -> Vec<(&Link, Vec<ChannelName>)> {
        vec![(&self.only, channels)]
    }
}
