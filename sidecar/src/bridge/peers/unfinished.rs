//! Disconnects that some node may not have carried out: it did not answer, or could not be asked. It is asked again
//! when it is heard. Pure; time passes by ticks.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use super::{Who, members::TICK, message::Question};
use crate::domain::{CloseReason, NodeId};

/// How long one is remembered: 5 minutes.
const KEPT: u32 = (300_000 / TICK.as_millis()) as u32;
/// Remembered at a time; the oldest are forgotten.
const MOST: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    last: u64,
    open: VecDeque<Disconnect>,
}

/// Who has not carried one out, as far as is known.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Nodes that were asked, or were missed, and have not answered for all of their shards.
    pub(super) nodes: HashSet<NodeId>,
    /// Nodes that this one does not know may be there.
    pub(super) unknown: bool,
}

/// To be asked of a node now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Again {
    pub(super) number: u64,
    pub(super) question: Question,
}

#[derive(Debug)]
struct Disconnect {
    number: u64,
    who: Who,
    reason: CloseReason,
    asked_at: Instant,
    ticks: u32,
    left: Left,
    /// Nodes that need not be asked again: they have answered, or are gone.
    done: HashSet<NodeId>,
    /// Nodes that are being asked.
    asking: HashSet<NodeId>,
}

impl Left {
    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty() && !self.unknown
    }
}

impl Unfinished {
    /// Remembers a disconnect that was asked at `asked_at` and that the nodes in `done` have carried out.
    pub(super) fn add(
        &mut self,
        who: Who,
        reason: CloseReason,
        asked_at: Instant,
        left: Left,
        done: HashSet<NodeId>,
    ) {
        if self.open.len() >= MOST {
            self.open.pop_front();
            tracing::warn!(limit = MOST, "too many unfinished disconnects, forgot the oldest one");
        }
        self.last += 1;
        let (number, asking) = (self.last, HashSet::new());
        self.open.push_back(Disconnect { number, who, reason, asked_at, ticks: KEPT, left, done, asking });
    }

    /// What to ask of a node that was heard.
    pub(super) fn of(&mut self, node: NodeId, now: Instant) -> Vec<Again> {
        let due = self.open.iter_mut().filter(|disconnect| disconnect.concerns(node));
        due.map(|disconnect| disconnect.ask(node, now)).collect()
    }

    /// A node that was asked again has answered, or has not.
    pub(super) fn asked(&mut self, number: u64, node: NodeId, answered: bool) {
        let Some(disconnect) = self.open.iter_mut().find(|disconnect| disconnect.number == number) else {
            return;
        };
        disconnect.asking.remove(&node);
        if answered {
            disconnect.is_done_by(node);
            self.open.retain(|disconnect| !disconnect.left.is_empty());
        }
    }

    /// A node is gone, and its connections with it.
    pub(super) fn gone(&mut self, node: NodeId) {
        self.open.iter_mut().for_each(|disconnect| disconnect.is_done_by(node));
        self.open.retain(|disconnect| !disconnect.left.is_empty());
    }

    pub(super) fn tick(&mut self) {
        self.open.retain_mut(|disconnect| {
            disconnect.ticks -= 1;
            disconnect.ticks > 0
        });
    }

    pub(super) fn count(&self) -> usize {
        self.open.len()
    }
}

impl Disconnect {
    fn concerns(&self, node: NodeId) -> bool {
        let Self { who, left, done, asking, .. } = self;
        let is_named = match who {
            Who::User(_) => true,
            Who::Client { node: of, .. } => *of == node,
        };
        is_named
            && (left.unknown || left.nodes.contains(&node))
            && !done.contains(&node)
            && !asking.contains(&node)
    }

    fn ask(&mut self, node: NodeId, now: Instant) -> Again {
        self.asking.insert(node);
        let age: Duration = now.saturating_duration_since(self.asked_at);
        Again { number: self.number, question: Question::disconnect(self.who.clone(), self.reason, age) }
    }

    fn is_done_by(&mut self, node: NodeId) {
        self.left.nodes.remove(&node);
        self.done.insert(node);
        if matches!(&self.who, Who::Client { node: of, .. } if *of == node) {
            self.left = Left::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ann() -> Who {
        Who::User("ann".into())
    }

    fn left(nodes: &[u64], unknown: bool) -> Left {
        Left { nodes: nodes.iter().copied().map(NodeId).collect(), unknown }
    }

    fn add(unfinished: &mut Unfinished, left: Left, now: Instant) {
        unfinished.add(ann(), CloseReason::Disconnected, now, left, HashSet::from([NodeId(1)]));
    }

    #[test]
    fn a_node_that_did_not_answer_is_asked_again_with_the_age_of_the_question_until_it_answers() {
        let (mut unfinished, start) = (Unfinished::default(), Instant::now());
        add(&mut unfinished, left(&[2], false), start);
        assert_eq!(unfinished.of(NodeId(1), start), [], "it has answered");
        assert_eq!(unfinished.of(NodeId(3), start), [], "nobody asked it");
        let again = unfinished.of(NodeId(2), start + 7 * SECOND);
        let question = Question::disconnect(ann(), CloseReason::Disconnected, 7 * SECOND);
        assert_eq!(again, [Again { number: 1, question }]);
        assert_eq!(unfinished.of(NodeId(2), start + 8 * SECOND), [], "it is being asked");
        unfinished.asked(1, NodeId(2), false);
        assert_eq!(unfinished.of(NodeId(2), start + 9 * SECOND).len(), 1);
        unfinished.asked(1, NodeId(2), true);
        assert_eq!(unfinished.count(), 0);
    }

    #[test]
    fn where_unknown_nodes_may_be_there_each_one_that_is_heard_is_asked_once() {
        let (mut unfinished, start) = (Unfinished::default(), Instant::now());
        add(&mut unfinished, left(&[], true), start);
        assert_eq!(unfinished.of(NodeId(1), start), []);
        assert_eq!(unfinished.of(NodeId(2), start).len(), 1);
        unfinished.asked(1, NodeId(2), true);
        assert_eq!(unfinished.of(NodeId(2), start), []);
        assert_eq!(unfinished.of(NodeId(3), start).len(), 1, "there may be more");
    }

    #[test]
    fn a_client_is_asked_for_on_its_own_node_only() {
        let (mut unfinished, start) = (Unfinished::default(), Instant::now());
        let connection = crate::domain::ConnectionId { shard: 0, slot: 1, generation: 2 };
        let who = Who::Client { node: NodeId(2), connection, user: None };
        unfinished.add(who, CloseReason::Disconnected, start, left(&[], true), HashSet::new());
        assert_eq!(unfinished.of(NodeId(3), start), []);
        assert_eq!(unfinished.of(NodeId(2), start).len(), 1);
        unfinished.asked(1, NodeId(2), true);
        assert_eq!(unfinished.count(), 0);
    }

    #[test]
    fn what_is_remembered_is_bounded_in_number_and_time_and_ends_with_the_node() {
        let (mut unfinished, start) = (Unfinished::default(), Instant::now());
        for _ in 0..300 {
            add(&mut unfinished, left(&[2], false), start);
        }
        assert_eq!(unfinished.count(), MOST);
        unfinished.gone(NodeId(2));
        assert_eq!(unfinished.count(), 0);
        add(&mut unfinished, left(&[2], false), start);
        (0..KEPT - 1).for_each(|_| unfinished.tick());
        assert_eq!(unfinished.count(), 1);
        unfinished.tick();
        assert_eq!(unfinished.count(), 0);
    }
}
