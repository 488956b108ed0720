//! A virtual connection: a bounded pipe between a shard and the task that carries the bytes on.
//!
//! Each direction holds at most [`CAPACITY`] bytes and is allocated while it has content. The lock is held to copy
//! them. The shard never waits for the task: a full pipe is `Blocked`, an empty one too, and the task sends
//! [`Mail::Pipe`] once it has made room or has brought bytes.

use std::{
    io::IoSlice,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::{Buf, Bytes, BytesMut};

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
pub struct NearEnd(Arc<Mutex<State>>);

/// The task's end.
#[derive(Debug)]
pub struct FarEnd {
    state: Arc<Mutex<State>>,
    connection: ConnectionId,
    mailbox: Mailbox,
}

/// Tells of the end of what the shard writes, in the task that has the far end.
#[derive(Debug)]
pub struct Watch(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// To the client.
    outbound: Stream,
    /// From the client.
    inbound: Stream,
    /// The task is gone.
    closed: bool,
    waker: Option<Waker>,
}

/// One direction.
#[derive(Debug, Default)]
struct Stream {
    /// Allocated while it has content.
    bytes: BytesMut,
    /// Whoever writes waits for room.
    blocked: bool,
    /// Nothing more will be written.
    finished: bool,
}

/// A pipe for a reserved connection; `mailbox` is its shard's.
pub(crate) fn pipe(connection: ConnectionId, mailbox: Mailbox) -> (NearEnd, FarEnd) {
    let state = Arc::new(Mutex::new(State::default()));
    (NearEnd(Arc::clone(&state)), FarEnd { state, connection, mailbox })
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Stream ===

impl Stream {
    fn room(&self) -> usize {
        CAPACITY - self.bytes.len()
    }

    /// Takes as much as there is room for.
    fn put(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        self.bytes.extend_from_slice(&bytes[..taken]);
        taken
    }
}

// === impl State ===

impl State {
    fn poll_let_go(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.outbound.finished {
            return Poll::Ready(());
        }
        self.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

// === impl NearEnd ===

impl NearEnd {
    pub(crate) fn write(&self, slices: &[IoSlice<'_>]) -> Progress {
        let mut state = lock(&self.0);
        if state.closed {
            return Progress::Broken;
        }
        let moved = slices.iter().map(|slice| state.outbound.put(slice)).sum();
        // Whoever could not write all waits to be told of room.
        state.outbound.blocked = moved < slices.iter().map(|slice| slice.len()).sum();
        if moved == 0 && state.outbound.blocked {
            return Progress::Blocked;
        }
        wake(state);
        Progress::Moved(moved)
    }

    pub(crate) fn read(&self, buffer: &mut [u8]) -> Progress {
        let mut state = lock(&self.0);
        let State { inbound, closed, .. } = &mut *state;
        let moved = inbound.bytes.len().min(buffer.len());
        if moved == 0 {
            return match (inbound.finished, *closed) {
                (true, _) => Progress::Moved(0),
                (false, true) => Progress::Broken,
                (false, false) => Progress::Blocked,
            };
        }
        buffer[..moved].copy_from_slice(&inbound.bytes[..moved]);
        inbound.bytes.advance(moved);
        if inbound.bytes.is_empty() {
            inbound.bytes = BytesMut::new();
        }
        if std::mem::take(&mut inbound.blocked) {
            wake(state);
        }
        Progress::Moved(moved)
    }

    pub(crate) fn finish(&self) {
        let mut state = lock(&self.0);
        state.outbound.finished = true;
        wake(state);
    }
}

/// A shard that lets go of its end ends the stream, whatever the cause.
impl Drop for NearEnd {
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

// === impl FarEnd ===

/// One task polls both directions: the last waker is woken for either.
impl FarEnd {
    /// The next bytes for the client; `None` at the end.
    pub fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut state = lock(&self.state);
        if state.outbound.bytes.is_empty() {
            if state.outbound.finished {
                return Poll::Ready(None);
            }
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        let bytes = std::mem::take(&mut state.outbound.bytes).freeze();
        let was_blocked = std::mem::take(&mut state.outbound.blocked);
        drop(state);
        if was_blocked {
            self.tell();
        }
        Poll::Ready(Some(bytes))
    }

    /// How many bytes of the client [`Self::push`] takes, once it takes any.
    pub fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<usize> {
        let mut state = lock(&self.state);
        match state.inbound.room() {
            0 => {
                state.inbound.blocked = true;
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
            room => Poll::Ready(room),
        }
    }

    /// Brings bytes of the client, no more than there is room for.
    ///
    /// # Panics
    /// When there are more.
    pub fn push(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let taken = lock(&self.state).inbound.put(bytes);
        assert_eq!(taken, bytes.len(), "more than there was room for");
        self.tell();
    }

    /// Says that the client sends nothing more.
    pub fn finish(&mut self) {
        lock(&self.state).inbound.finished = true;
        self.tell();
    }

    /// Ready once the shard has written its last, be it read or not.
    pub fn poll_let_go(&mut self, context: &mut Context<'_>) -> Poll<()> {
        lock(&self.state).poll_let_go(context)
    }

    /// For a part of the same task that hears of the end while this end is not polled.
    pub fn watch(&self) -> Watch {
        Watch(Arc::clone(&self.state))
    }

    fn tell(&self) {
        self.mailbox.send(Mail::Pipe { connection: self.connection });
    }
}

impl Drop for FarEnd {
    fn drop(&mut self) {
        lock(&self.state).closed = true;
        self.tell();
    }
}

// === impl Watch ===

impl Watch {
    /// Ready once the shard has written its last, be it read or not.
    pub fn poll_let_go(&self, context: &mut Context<'_>) -> Poll<()> {
        lock(&self.0).poll_let_go(context)
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
    fn what_the_client_sends_comes_out_in_order_and_its_end_behind_it() {
        every_order(|| {
            let (mailbox, inbox) = Mailbox::new(1, || {});
            let (near, mut far) = pipe(ConnectionId { shard: 0, slot: 0, generation: 1 }, mailbox);
            let mut context = Context::from_waker(Waker::noop());
            let mut buffer = [0; CAPACITY];
            assert_eq!(near.read(&mut buffer), Progress::Blocked);
            assert_eq!(far.poll_room(&mut context), Poll::Ready(CAPACITY));
            far.push(b"ab");
            far.push(&[7; CAPACITY - 2]);
            assert_eq!(far.poll_room(&mut context), Poll::Pending);
            assert!(matches!(inbox.take().pop_front(), Some(Mail::Pipe { .. })));
            assert_eq!(near.read(&mut buffer[..1]), Progress::Moved(1));
            assert_eq!(far.poll_room(&mut context), Poll::Ready(1));
            far.finish();
            assert_eq!((near.read(&mut buffer), buffer[0]), (Progress::Moved(CAPACITY - 1), b'b'));
            assert_eq!(near.read(&mut buffer), Progress::Moved(0));
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
