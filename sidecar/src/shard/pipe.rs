//! A virtual connection: a bounded pipe from a shard to the task that carries the bytes on.
//!
//! The lock is held to copy at most [`CAPACITY`] bytes. The shard never waits for the task: a full pipe is
//! `Blocked`, and the task sends [`Mail::Pipe`] once it has made room.

use std::{
    io::IoSlice,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};

use super::{
    Mail, Mailbox,
    link::Progress,
    sync::{Mutex, MutexGuard, PoisonError},
};
use crate::domain::ConnectionId;

/// As much as a socket holds unsent (`TCP_NOTSENT_LOWAT`).
const CAPACITY: usize = 16 * 1_024;

/// The shard's end.
#[derive(Debug)]
pub struct Sender(Arc<Mutex<State>>);

/// The task's end.
#[derive(Debug)]
pub struct Receiver {
    state: Arc<Mutex<State>>,
    connection: ConnectionId,
    mailbox: Mailbox,
}

#[derive(Debug, Default)]
struct State {
    /// Allocated while it has content.
    bytes: BytesMut,
    blocked: bool,
    finished: bool,
    closed: bool,
    waker: Option<Waker>,
}

/// A pipe for a reserved connection; `mailbox` is its shard's.
pub(crate) fn pipe(connection: ConnectionId, mailbox: Mailbox) -> (Sender, Receiver) {
    let state = Arc::new(Mutex::new(State::default()));
    (Sender(Arc::clone(&state)), Receiver { state, connection, mailbox })
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Sender ===

impl Sender {
    pub(crate) fn write(&self, slices: &[IoSlice<'_>]) -> Progress {
        let mut state = lock(&self.0);
        if state.closed {
            return Progress::Broken;
        }
        let mut moved = 0;
        for slice in slices {
            let room = CAPACITY - state.bytes.len();
            state.bytes.extend_from_slice(&slice[..slice.len().min(room)]);
            moved += slice.len().min(room);
        }
        // Whoever could not write all waits to be told of room.
        state.blocked = moved < slices.iter().map(|slice| slice.len()).sum();
        if moved == 0 && state.blocked {
            return Progress::Blocked;
        }
        wake(state);
        Progress::Moved(moved)
    }

    pub(crate) fn finish(&self) {
        let mut state = lock(&self.0);
        state.finished = true;
        wake(state);
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.0).closed
    }
}

/// A shard that lets go of its end ends the stream, whatever the cause.
impl Drop for Sender {
    fn drop(&mut self) {
        self.finish();
    }
}

fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

// === impl Receiver ===

impl Receiver {
    /// The next bytes; `None` at the end.
    pub fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut state = lock(&self.state);
        if state.bytes.is_empty() {
            if state.finished {
                return Poll::Ready(None);
            }
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        let bytes = std::mem::take(&mut state.bytes).freeze();
        let was_blocked = std::mem::take(&mut state.blocked);
        drop(state);
        if was_blocked {
            self.mailbox.send(Mail::Pipe { connection: self.connection });
        }
        Poll::Ready(Some(bytes))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        lock(&self.state).closed = true;
        self.mailbox.send(Mail::Pipe { connection: self.connection });
    }
}

#[cfg(test)]
mod tests {
    use super::{super::sync::every_order, *};

    fn slices(bytes: &[u8]) -> [IoSlice<'_>; 1] {
        [IoSlice::new(bytes)]
    }

    #[test]
    fn a_full_pipe_blocks_until_the_task_has_read_and_says_so() {
        every_order(|| {
            let (mailbox, inbox) = Mailbox::new(1, || {});
            let (sender, mut receiver) = pipe(ConnectionId { shard: 0, slot: 0, generation: 1 }, mailbox);
            let big = vec![7; CAPACITY + 1];
            assert_eq!(sender.write(&slices(&big)), Progress::Moved(CAPACITY));
            let mut context = Context::from_waker(Waker::noop());
            let Poll::Ready(Some(bytes)) = receiver.poll_bytes(&mut context) else {
                panic!("bytes are there")
            };
            assert_eq!(bytes.len(), CAPACITY);
            assert!(matches!(inbox.take().pop_front(), Some(Mail::Pipe { .. })));
            assert_eq!(sender.write(&slices(b"x")), Progress::Moved(1));
            assert_eq!(sender.write(&slices(&big)), Progress::Moved(CAPACITY - 1));
            assert_eq!(sender.write(&slices(b"x")), Progress::Blocked);
            assert!(matches!(receiver.poll_bytes(&mut context), Poll::Ready(Some(_))));
            assert!(matches!(inbox.take().pop_front(), Some(Mail::Pipe { .. })));
            assert_eq!(sender.write(&slices(b"x")), Progress::Moved(1));
            drop(sender);
            assert_eq!(receiver.poll_bytes(&mut context), Poll::Ready(Some(Bytes::from_static(b"x"))));
            assert_eq!(receiver.poll_bytes(&mut context), Poll::Ready(None));
        });
    }

    #[test]
    fn a_task_that_went_away_breaks_the_pipe() {
        every_order(|| {
            let (mailbox, _inbox) = Mailbox::new(1, || {});
            let (sender, receiver) = pipe(ConnectionId { shard: 0, slot: 0, generation: 1 }, mailbox);
            drop(receiver);
            assert_eq!(sender.write(&slices(b"x")), Progress::Broken);
        });
    }
}
