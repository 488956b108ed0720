//! What each process is doing, for everyone who shows or waits for it.

use std::{collections::BTreeMap, time::Duration};

use tokio::sync::watch;

use super::printer::Source;

/// What a process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// It runs and is not ready yet.
    Starting,
    /// It serves.
    Ready,
    /// It was asked to end, and its clients leave.
    Draining,
    /// It was asked to end and did.
    Stopped,
    /// It ended without being asked, or could not start.
    Failed,
}

/// State of a process and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) state: State,
    /// Open client connections, of a node.
    pub(crate) connections: u64,
    /// Why it is not ready.
    pub(crate) detail: Option<String>,
}

/// State of every process. Clones show the same board.
#[derive(Clone, Debug)]
pub(crate) struct Board(watch::Sender<BTreeMap<Source, Status>>);

// === impl Status ===

impl Status {
    pub(crate) fn of(state: State) -> Self {
        Self { state, connections: 0, detail: None }
    }
}

// === impl Board ===

impl Board {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(BTreeMap::new()))
    }

    /// Changes the status of `source`; who watches is woken only by a real change.
    pub(crate) fn set(&self, source: Source, status: Status) {
        self.0.send_if_modified(|board| {
            let changed = board.get(&source) != Some(&status);
            board.insert(source, status);
            changed
        });
    }

    pub(crate) fn remove(&self, source: Source) {
        self.0.send_if_modified(|board| board.remove(&source).is_some());
    }

    pub(crate) fn get(&self, source: Source) -> Status {
        self.0.borrow().get(&source).cloned().unwrap_or_else(|| Status::of(State::Starting))
    }

    pub(crate) fn watch(&self) -> watch::Receiver<BTreeMap<Source, Status>> {
        self.0.subscribe()
    }

    /// Waits until `source` is in one of `states`; `None` when it takes longer than `patience`.
    pub(crate) async fn reaches(
        &self,
        source: Source,
        states: &[State],
        patience: Duration,
    ) -> Option<Status> {
        let mut watch = self.watch();
        let reached =
            watch.wait_for(|board| board.get(&source).is_some_and(|status| states.contains(&status.state)));
        let board = tokio::time::timeout(patience, reached).await.ok()?.ok()?;
        board.get(&source).cloned()
    }
}
