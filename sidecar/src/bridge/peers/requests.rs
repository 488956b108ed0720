//! Questions that wait for the nodes' answers.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::mpsc;

use super::{message::Answer, patience::Patience};
use crate::domain::NodeId;

/// The open ones. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Requests(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    last: u64,
    open: HashMap<u64, mpsc::UnboundedSender<Part>>,
}

struct Part {
    from: NodeId,
    answer: Answer,
    more: bool,
}

/// One; closed when dropped.
pub(super) struct Request {
    number: u64,
    asked: HashSet<NodeId>,
    /// Bounded by what the asked nodes hold: only answers to this number come here.
    parts: mpsc::UnboundedReceiver<Part>,
    requests: Requests,
}

impl Requests {
    pub(super) fn open(&self, asked: HashSet<NodeId>) -> Request {
        let (sender, parts) = mpsc::unbounded_channel();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.last += 1;
        let number = state.last;
        state.open.insert(number, sender);
        Request { number, asked, parts, requests: self.clone() }
    }

    pub(super) fn answered(&self, request: u64, from: NodeId, answer: Answer, more: bool) {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = state.open.get(&request) {
            // Too late is as good as never.
            let _ = sender.send(Part { from, answer, more });
        }
    }
}

impl Request {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// What came until every node has answered or patience is over, and the nodes that have not answered then, or not for
    /// all of their shards.
    pub(super) async fn answers(mut self, mut patience: Patience) -> (Vec<Answer>, HashSet<NodeId>) {
        let (mut answers, mut partial) = (Vec::new(), HashSet::new());
        while !self.asked.is_empty()
            && let Some(Some(Part { from, answer, more })) = patience.wait(self.parts.recv()).await
        {
            if answer.partial {
                partial.insert(from);
            }
            answers.push(answer);
            if !more {
                self.asked.remove(&from);
            }
        }
        if !self.asked.is_empty() {
            tracing::warn!(silent = ?self.asked, "nodes did not answer in time");
        }
        partial.extend(std::mem::take(&mut self.asked));
        (answers, partial)
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let mut state = self.requests.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.open.remove(&self.number);
    }
}
