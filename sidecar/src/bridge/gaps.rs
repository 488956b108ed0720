//! Notices what is missing: on a channel without a stream, each publication names the one before it from its node.

use smallvec::SmallVec;

use crate::{
    broker::Recent,
    domain::{ChannelName, NodeId, Origin},
};

/// Channels watched; those used least recently are forgotten, and a loss there is then not noticed.
const CHANNELS: usize = 100_000;
/// Nodes watched on one channel; more than a cluster has.
const NODES: usize = 256;

/// The last publication of each node on each channel.
pub(super) struct Gaps(Recent<ChannelName, Watched>);

#[derive(Default)]
struct Watched {
    /// The stay of the channel at this node that `seen` belongs to.
    life: u64,
    seen: SmallVec<[(NodeId, u64); 3]>,
}

impl Gaps {
    pub(super) fn new() -> Self {
        Self(Recent::new(CHANNELS))
    }

    /// A publication came. Whether one before it is missing.
    pub(super) fn is_gap(&mut self, channel: &ChannelName, life: u64, origin: Origin) -> bool {
        let watched = self.0.entry(channel, Watched::default);
        if watched.life != life {
            *watched = Watched { life, seen: SmallVec::new() };
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
        gap
    }

    /// Everything may be missing, and everybody was told so.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }

    /// Channels forgotten for want of room since the last call.
    pub(super) fn take_forgotten(&mut self) -> u64 {
        self.0.take_forgotten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds (life, node, previous, sequence); which of them told a gap.
    fn gaps(publications: &[(u64, u64, u64, u64)]) -> Vec<bool> {
        let mut gaps = Gaps::new();
        let channel: ChannelName = "a".parse().unwrap();
        let mut feed = |&(life, node, previous_sequence, sequence): &(u64, u64, u64, u64)| {
            let origin = Origin { node: NodeId(node), node_start: 1, sequence, previous_sequence };
            gaps.is_gap(&channel, life, origin)
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
