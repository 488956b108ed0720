//! Notices what is missing: on a channel without a stream, each publication names the one before it from its node.
//!
//! What was learned over a link ends with its connection. Until the link has resumed, publications are only learned
//! from: the loss of the time without a connection is told once, by the link.

use smallvec::SmallVec;

use crate::{
    broker::{LinkId, Recent},
    domain::{ChannelName, NodeId, Origin},
};

/// Channels watched; those used least recently are forgotten, and a loss there is then not noticed.
const CHANNELS: usize = 100_000;
/// Nodes watched on one channel; more than a cluster has.
const NODES: usize = 256;

/// The last publication of each node on each channel.
pub(super) struct Gaps {
    channels: Recent<ChannelName, Watched>,
    links: Vec<Connection>,
}

/// A link's present connection, or its last one.
#[derive(Clone, Copy, Default)]
struct Connection {
    number: u64,
    is_live: bool,
}

#[derive(Default)]
struct Watched {
    /// The stay of the channel at this node, and the connection of its link, that `seen` belongs to.
    life: u64,
    connection: u64,
    seen: SmallVec<[(NodeId, u64); 3]>,
}

impl Gaps {
    pub(super) fn new(links: u16) -> Self {
        Self { channels: Recent::new(CHANNELS), links: vec![Connection::default(); links.into()] }
    }

    /// Takes a publication in; returns `true` if one before it is missing.
    pub(super) fn is_gap(&mut self, channel: &ChannelName, life: u64, link: LinkId, origin: Origin) -> bool {
        let Connection { number: connection, is_live } =
            self.links.get(usize::from(link.0)).copied().unwrap_or_default();
        let watched = self.channels.entry(channel, Watched::default);
        if (watched.life, watched.connection) != (life, connection) {
            *watched = Watched { life, connection, seen: SmallVec::new() };
        }
        let Origin { node, node_start: _, sequence, previous_sequence: previous } = origin;
        let Some((_, last)) = watched.seen.iter_mut().find(|(seen, _)| *seen == node) else {
            if watched.seen.len() >= NODES {
                watched.seen.remove(0);
            }
            watched.seen.push((node, sequence));
            return false;
        };
        // 0: the publisher forgot, or told its client that the one before failed.
        let gap = previous > *last;
        *last = if previous == 0 { sequence } else { sequence.max(*last) };
        gap && is_live
    }

    /// The link's connection is gone, and with it what was learned over it.
    pub(super) fn disconnected(&mut self, link: LinkId) {
        if let Some(connection) = self.links.get_mut(usize::from(link.0)) {
            *connection = Connection { number: connection.number + 1, is_live: false };
        }
    }

    /// All subscriptions of the link are live.
    pub(super) fn connected(&mut self, link: LinkId) {
        if let Some(connection) = self.links.get_mut(usize::from(link.0)) {
            connection.is_live = true;
        }
    }

    /// Publications of this channel are missing, and its subscribers were told so: nothing is missed a second time.
    pub(super) fn lost(&mut self, channel: &ChannelName) {
        if let Some(watched) = self.channels.get_mut(channel) {
            watched.seen.clear();
        }
    }

    /// Channels forgotten for want of room since the last call.
    pub(super) fn take_forgotten(&mut self) -> u64 {
        self.channels.take_forgotten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: LinkId = LinkId(0);

    fn origin(previous_sequence: u64, sequence: u64) -> Origin {
        Origin { node: NodeId(1), node_start: 1, sequence, previous_sequence }
    }

    #[test]
    fn a_lost_connection_ends_what_was_learned_over_it_alone() {
        let mut gaps = Gaps::new(2);
        let channel: ChannelName = "a".parse().unwrap();
        let feed = |gaps: &mut Gaps, link, (previous, sequence)| {
            gaps.is_gap(&channel, 1, LinkId(link), origin(previous, sequence))
        };
        gaps.connected(LinkId(0));
        assert!(!feed(&mut gaps, 0, (0, 1)));
        gaps.disconnected(LinkId(1));
        assert!(feed(&mut gaps, 0, (2, 3)), "another link's loss changes nothing");
        gaps.disconnected(LinkId(0));
        assert!(!feed(&mut gaps, 0, (7, 8)), "while the link subscribes again");
        assert!(!feed(&mut gaps, 0, (9, 10)), "that loss is told by the link");
        gaps.connected(LinkId(0));
        assert!(!feed(&mut gaps, 0, (10, 11)));
        assert!(feed(&mut gaps, 0, (12, 13)));
    }

    /// Feeds (life, node, previous, sequence); which of them told a gap.
    fn gaps(publications: &[(u64, u64, u64, u64)]) -> Vec<bool> {
        let mut gaps = Gaps::new(1);
        gaps.connected(LINK);
        let channel: ChannelName = "a".parse().unwrap();
        let mut feed = |&(life, node, previous_sequence, sequence): &(u64, u64, u64, u64)| {
            let origin = Origin { node: NodeId(node), node_start: 1, sequence, previous_sequence };
            gaps.is_gap(&channel, life, LINK, origin)
        };
        publications.iter().map(&mut feed).collect()
    }

    #[test]
    fn a_hole_in_one_nodes_sequence_is_a_gap() {
        assert_eq!(
            gaps(&[(1, 1, 4, 5), (1, 1, 5, 6), (1, 2, 0, 1), (1, 1, 7, 8), (1, 2, 1, 2), (1, 1, 8, 9)]),
            [false, false, false, true, false, false]
        );
    }

    #[test]
    fn what_came_before_this_stay_of_the_channel_is_not_missed() {
        assert_eq!(gaps(&[(1, 1, 0, 1), (2, 1, 8, 9), (2, 1, 9, 10)]), [false, false, false]);
    }

    #[test]
    fn a_publisher_that_forgot_starts_anew() {
        assert_eq!(
            gaps(&[(1, 1, 6, 7), (1, 1, 0, 1), (1, 1, 1, 2), (1, 1, 3, 4)]),
            [false, false, false, true]
        );
    }

    #[test]
    fn a_repetition_is_no_gap() {
        assert_eq!(gaps(&[(1, 1, 6, 7), (1, 1, 7, 8), (1, 1, 6, 7), (1, 1, 8, 9)]), [false; 4]);
    }
}
