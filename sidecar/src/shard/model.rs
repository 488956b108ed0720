//! The mailbox and the pipe under loom: their own files, over a lock that tries every order in which threads may take it.

use std::{
    io::IoSlice,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use bytes::Bytes;
use loom::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use self::{
    mailbox::{Full, Inbox, Mailbox},
    pipe::{FarEnd, NearEnd},
};
use super::{Delivery, Mail, link};
use crate::domain::{ConnectionId, Payload, Publication};

mod sync {
    pub(super) use std::sync::PoisonError;

    pub(super) use loom::sync::{Mutex, MutexGuard};

    /// Every order in which a thread is interrupted twice at most where it could have gone on: far more orders
    /// take far more time, and hardly a mistake needs them.
    pub(super) fn every_order(test: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(2);
        builder.check(test);
    }
}

#[path = "mailbox.rs"]
#[expect(clippy::duplicate_mod, unreachable_pub, reason = "the file, with another lock")]
mod mailbox;
#[path = "pipe.rs"]
#[expect(
    clippy::duplicate_mod,
    unreachable_pub,
    dead_code,
    reason = "the file, with another lock; not all is used"
)]
mod pipe;

/// What a wake-up leaves behind until it is seen: an eventfd, or a task's place in its runtime's queue.
#[derive(Debug)]
struct Woken(AtomicBool);

impl Woken {
    fn new(woken: bool) -> Arc<Self> {
        Arc::new(Self(AtomicBool::new(woken)))
    }

    fn take(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.swap(true, Ordering::AcqRel);
    }
}

fn publication(text: &'static str) -> Arc<Delivery> {
    let payload = Payload::Text(Bytes::from_static(text.as_bytes()));
    Arc::new(Publication::bare("a".parse().unwrap(), payload).into())
}

fn mailbox(max_bytes: usize) -> (Mailbox, Inbox, Arc<Woken>) {
    let woken = Woken::new(false);
    let waker = Arc::clone(&woken);
    let (mailbox, inbox) = Mailbox::new(max_bytes, move || waker.wake_by_ref());
    (mailbox, inbox, woken)
}

/// What a shard takes that looks only when it was woken.
fn take(inbox: &Inbox, woken: &Woken, received: &mut Vec<Vec<u8>>) {
    if !woken.take() {
        return;
    }
    for mail in inbox.take() {
        let Mail::Publications { batch, .. } = mail else { panic!("only publications were sent") };
        received.extend(batch.iter().map(|publication| publication.payload.bytes().to_vec()));
    }
}

#[test]
fn no_mail_waits_for_a_wake_up_that_does_not_come() {
    sync::every_order(|| {
        let (mailbox, inbox, woken) = mailbox(1_000_000);
        let senders = [["a1", "a2"], ["b1", "b2"]].map(|texts| {
            let mailbox = mailbox.clone();
            thread::spawn(move || {
                let _ = texts.map(|text| mailbox.publications(vec![publication(text)]).unwrap());
            })
        });
        let mut received = Vec::new();
        take(&inbox, &woken, &mut received);
        thread::yield_now();
        take(&inbox, &woken, &mut received);
        let _ = senders.map(|sender| sender.join().unwrap());
        take(&inbox, &woken, &mut received);
        for [first, second] in [["a1", "a2"], ["b1", "b2"]] {
            let place = |text: &str| {
                let mut places = received.iter().enumerate().filter(|(_, bytes)| *bytes == text.as_bytes());
                let (place, _) = places.next().unwrap_or_else(|| panic!("{text} is missing"));
                assert!(places.next().is_none(), "{text} came twice");
                place
            };
            assert!(place(first) < place(second), "a sender's order is kept");
        }
    });
}

#[test]
fn what_a_full_mailbox_took_arrives_and_what_it_refused_does_not() {
    sync::every_order(|| {
        // Room for one, at 128 bytes and its text each.
        let (mailbox, inbox, woken) = mailbox(140);
        let senders = ["a", "b"].map(|text| {
            let mailbox = mailbox.clone();
            thread::spawn(move || match mailbox.publications(vec![publication(text)]) {
                Ok(()) => Some(text),
                Err(Full(batch)) => {
                    assert_eq!(batch[0].payload.bytes(), text.as_bytes());
                    None
                }
            })
        });
        let mut received = Vec::new();
        take(&inbox, &woken, &mut received);
        let mut taken =
            senders.map(|sender| sender.join().unwrap()).into_iter().flatten().collect::<Vec<_>>();
        take(&inbox, &woken, &mut received);
        assert!(!taken.is_empty(), "one batch always fits an empty mailbox");
        taken.sort_unstable();
        received.sort_unstable();
        assert_eq!(received, taken.iter().map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>());
    });
}

/// The shard's side of a pipe: writes what is left, and after `Blocked` only when it was told to.
struct Shard {
    sender: NearEnd,
    left: Vec<u8>,
    inbox: Inbox,
    woken: Arc<Woken>,
    blocked: bool,
}

impl Shard {
    fn turn(&mut self) -> bool {
        if self.woken.take() && self.inbox.take().iter().any(|mail| matches!(mail, Mail::Pipe { .. })) {
            self.blocked = false;
        }
        if self.blocked || self.left.is_empty() {
            return false;
        }
        match self.sender.write(&[IoSlice::new(&self.left)]) {
            link::Progress::Moved(moved) => {
                drop(self.left.drain(..moved));
                // What was cut short waits to be told, as a socket that took a part does.
                self.blocked = !self.left.is_empty();
                true
            }
            link::Progress::Blocked => {
                self.blocked = true;
                false
            }
            link::Progress::Broken => panic!("the task is there"),
        }
    }
}

/// The task's side: polls only when it was woken.
struct Task {
    receiver: FarEnd,
    woken: Arc<Woken>,
    received: Vec<u8>,
}

impl Task {
    fn turn(&mut self) -> bool {
        let waker = Waker::from(Arc::clone(&self.woken));
        let mut moved = false;
        while self.woken.take() {
            match self.receiver.poll_bytes(&mut Context::from_waker(&waker)) {
                Poll::Ready(Some(bytes)) => {
                    self.received.extend_from_slice(&bytes);
                    self.woken.wake_by_ref();
                    moved = true;
                }
                Poll::Ready(None) => panic!("the shard has not finished"),
                Poll::Pending => {}
            }
        }
        moved
    }
}

#[test]
fn a_pipe_that_was_full_goes_on_on_both_sides() {
    sync::every_order(|| {
        let (mailbox, inbox, woken) = mailbox(1);
        let (sender, receiver) = pipe::pipe(ConnectionId { shard: 0, slot: 0, generation: 1 }, mailbox);
        let bytes: Vec<u8> = (0..40_000_u32).map(|at| (at % 251) as u8).collect();
        let mut shard = Shard { sender, left: bytes.clone(), inbox, woken, blocked: false };
        // A task is polled once when it is spawned.
        let mut task = Task { receiver, woken: Woken::new(true), received: Vec::new() };
        let other = thread::spawn(move || {
            task.turn();
            task.turn();
            task
        });
        shard.turn();
        shard.turn();
        let mut task = other.join().unwrap();
        // Whatever happened, neither waits for the other while something is left.
        while shard.turn() | task.turn() {}
        assert_eq!((task.received == bytes, shard.left.len()), (true, 0));
    });
}

/// The shard's side of a pipe the other way: reads what is there, and after `Blocked` only when it was told to.
struct Reader {
    near: NearEnd,
    received: Vec<u8>,
    inbox: Inbox,
    woken: Arc<Woken>,
}

impl Reader {
    fn turn(&mut self) -> bool {
        if !self.woken.take() || !self.inbox.take().iter().any(|mail| matches!(mail, Mail::Pipe { .. })) {
            return false;
        }
        // More than half of what the pipe holds, so that it is emptied in two parts.
        let mut buffer = [0; 10_000];
        loop {
            match self.near.read(&mut buffer) {
                link::Progress::Moved(moved) => self.received.extend_from_slice(&buffer[..moved]),
                link::Progress::Blocked => return true,
                link::Progress::Broken => panic!("the task is there"),
            }
        }
    }
}

/// The task's side: brings what there is room for, and polls only when it was woken.
struct Bringer {
    far: FarEnd,
    woken: Arc<Woken>,
    left: Vec<u8>,
}

impl Bringer {
    fn turn(&mut self) -> bool {
        let waker = Waker::from(Arc::clone(&self.woken));
        let mut moved = false;
        while self.woken.take() && !self.left.is_empty() {
            if let Poll::Ready(room) = self.far.poll_room(&mut Context::from_waker(&waker)) {
                let bytes: Vec<u8> = self.left.drain(..room.min(self.left.len())).collect();
                self.far.push(&bytes);
                self.woken.wake_by_ref();
                moved = true;
            }
        }
        moved
    }
}

#[test]
fn a_client_whose_pipe_was_full_goes_on_once_the_shard_has_read() {
    sync::every_order(|| {
        let (mailbox, inbox, woken) = mailbox(1);
        let (near, far) = pipe::pipe(ConnectionId { shard: 0, slot: 0, generation: 1 }, mailbox);
        let bytes: Vec<u8> = (0..40_000_u32).map(|at| (at % 251) as u8).collect();
        let mut shard = Reader { near, received: Vec::new(), inbox, woken };
        let mut task = Bringer { far, woken: Woken::new(true), left: bytes.clone() };
        let other = thread::spawn(move || {
            task.turn();
            task.turn();
            task
        });
        shard.turn();
        shard.turn();
        let mut task = other.join().unwrap();
        while shard.turn() | task.turn() {}
        assert_eq!((shard.received == bytes, task.left.len()), (true, 0));
    });
}
