//! The other nodes as this one heard them. Pure: time passes by ticks, and one that comes late counts as one, so that
//! nobody expires because this process was stopped.

use std::{collections::HashMap, time::Duration};

use rand::seq::SliceRandom;
use tokio::time::Instant;

use super::message::{Announcement, Names};
use crate::domain::NodeId;

/// Between ticks.
pub(super) const TICK: Duration = Duration::from_millis(500);
/// A node that was silent for this many ticks is no longer counted on: three announcements, and some. 10 s.
const EXPIRY: u32 = 20;
/// A node that fell silent without saying that it leaves may come back with its clients. 5 minutes.
const MISSING: u32 = 600;
/// Nodes of one kind; more than a cluster has, and a bound on what nonsense may cost.
const MOST: usize = 4_096;
/// Nodes that an announcement names as heard. Of more it names some by chance, others each time.
const MOST_HEARD: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Members {
    live: HashMap<NodeId, Member>,
    /// Expired, and for how many ticks they are still missed.
    missing: HashMap<NodeId, u32>,
    echoed_at: Option<Instant>,
}

/// A node that was heard lately.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) announcement: Announcement,
    /// By which names it speaks, and so is spoken to.
    pub(super) names: Names,
    /// Ticks since it was heard.
    silent: u32,
}

impl Members {
    /// A node announced itself.
    pub(super) fn met(&mut self, announcement: Announcement, names: Names, own: NodeId, now: Instant) {
        let node = announcement.node();
        if self.live.len() >= MOST && !self.live.contains_key(&node) {
            return;
        }
        if announcement.has_heard(own) {
            self.echoed_at = Some(now);
        }
        self.missing.remove(&node);
        self.live.insert(node, Member { announcement, names, silent: 0 });
    }

    /// A node said that it leaves.
    pub(super) fn left(&mut self, node: NodeId) {
        self.live.remove(&node);
        self.missing.remove(&node);
    }

    /// Time passed. After a late tick every node gets its whole time anew: what it said meanwhile may still lie unread.
    pub(super) fn tick(&mut self, late: bool) {
        if late {
            self.live.values_mut().for_each(|member| member.silent = 0);
            return;
        }
        self.missing.retain(|_, left| {
            *left -= 1;
            *left > 0
        });
        let expired = self.live.extract_if(|_, member| {
            member.silent += 1;
            member.silent >= EXPIRY
        });
        for (node, _) in expired {
            if self.missing.len() < MOST {
                self.missing.insert(node, MISSING);
            }
        }
    }

    pub(super) fn live(&self) -> impl Iterator<Item = (NodeId, &Member)> {
        self.live.iter().map(|(node, member)| (*node, member))
    }

    pub(super) fn get(&self, node: NodeId) -> Option<&Member> {
        self.live.get(&node)
    }

    pub(super) fn count(&self) -> usize {
        self.live.len()
    }

    /// Nodes that fell silent a while ago and have not said that they leave.
    pub(super) fn missing(&self) -> impl Iterator<Item = NodeId> {
        self.missing.keys().copied()
    }

    /// When another node last named this one among those that it hears.
    pub(super) fn echoed_at(&self) -> Option<Instant> {
        self.echoed_at
    }

    /// Whether there are other nodes and none of them can name those that it hears.
    pub(super) fn are_mute(&self) -> bool {
        !self.live.is_empty() && self.live.values().all(|member| member.announcement.is_mute())
    }

    /// Whether some node speaks by the former names.
    pub(super) fn use_former_names(&self) -> bool {
        self.live.values().any(|member| member.names == Names::Former)
    }

    /// Nodes that an announcement names as heard.
    pub(super) fn heard(&self) -> Vec<NodeId> {
        let mut heard: Vec<_> = self.live.keys().copied().collect();
        let (some, _) = heard.partial_shuffle(&mut rand::rng(), MOST_HEARD);
        some.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bridge::peers::Counts, work::NodeRun};

    const OWN: NodeId = NodeId(1);

    fn announcement(node: u64, heard: Option<&[u64]>) -> Announcement {
        let run = NodeRun { id: NodeId(node), start: 0 };
        let heard = heard.map(|heard| heard.iter().copied().map(NodeId).collect());
        Announcement::new(run, "n", "1", Counts::default(), false, heard)
    }

    fn met(members: &mut Members, node: u64, heard: Option<&[u64]>) {
        members.met(announcement(node, heard), Names::Present, OWN, Instant::now());
    }

    fn pass(members: &mut Members, time: Duration) {
        (0..time.as_millis() / TICK.as_millis()).for_each(|_| members.tick(false));
    }

    #[test]
    fn a_node_that_is_silent_for_ten_seconds_expires_and_is_missed_for_five_minutes() {
        let mut members = Members::default();
        met(&mut members, 2, None);
        pass(&mut members, Duration::from_millis(9_500));
        assert_eq!((members.count(), members.missing().count()), (1, 0));
        pass(&mut members, TICK);
        assert_eq!((members.count(), members.missing().count()), (0, 1));
        pass(&mut members, Duration::from_secs(299));
        assert_eq!(members.missing().count(), 1);
        pass(&mut members, Duration::from_secs(1));
        assert_eq!(members.missing().count(), 0);
    }

    #[test]
    fn a_node_that_comes_back_or_says_that_it_leaves_is_not_missed() {
        let mut members = Members::default();
        met(&mut members, 2, None);
        met(&mut members, 3, None);
        pass(&mut members, Duration::from_secs(10));
        met(&mut members, 2, None);
        members.left(NodeId(3));
        assert_eq!((members.count(), members.missing().count()), (1, 0));
    }

    #[test]
    fn a_process_that_was_stopped_expires_nobody_before_it_has_read_what_came_meanwhile() {
        let mut members = Members::default();
        met(&mut members, 2, None);
        pass(&mut members, Duration::from_secs(9));
        members.tick(true);
        pass(&mut members, Duration::from_secs(9));
        assert_eq!(members.count(), 1);
    }

    #[test]
    fn an_echo_of_any_one_node_counts_and_nodes_that_cannot_echo_are_told_apart() {
        let mut members = Members::default();
        assert!(!members.are_mute(), "nobody is there");
        met(&mut members, 2, None);
        assert!(members.are_mute() && members.echoed_at().is_none());
        met(&mut members, 3, Some(&[2]));
        assert!(!members.are_mute() && members.echoed_at().is_none(), "it hears another node only");
        met(&mut members, 3, Some(&[2, 1]));
        assert!(members.echoed_at().is_some());
    }

    #[test]
    fn of_many_nodes_some_are_named_as_heard_and_all_in_their_turn() {
        let mut members = Members::default();
        for node in 2..202 {
            met(&mut members, node, None);
        }
        let mut named = std::collections::HashSet::new();
        for _ in 0..200 {
            let heard = members.heard();
            assert_eq!(heard.len(), 64);
            named.extend(heard);
        }
        assert_eq!(named.len(), 200);
    }
}
