//! The one way into a shard: a queue with a wake-up, publications bounded in bytes.

use std::{collections::VecDeque, fmt, sync::Arc, time::Instant};

use super::{
    Delivery, Mail,
    sync::{Mutex, PoisonError},
};

/// What a publication takes beside its payload: of those with a few bytes, nearly all.
const BESIDE: usize = size_of::<Delivery>() + size_of::<Mail>();

/// Sends mail to one shard. Cheap to clone; never blocks.
#[derive(Clone)]
pub struct Mailbox(Arc<Shared>);

/// The shard's end.
pub struct Inbox(Arc<Shared>);

/// The publications in the mailbox have reached its bound: these were not taken. The sender tells a gap.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the shard's mailbox is full")]
pub struct Full(pub Vec<Arc<Delivery>>);

struct Shared {
    queue: Mutex<Queue>,
    wake: Box<dyn Fn() + Send + Sync>,
    max_bytes: usize,
}

#[derive(Default)]
struct Queue {
    mail: VecDeque<Mail>,
    /// Of the publications in `mail`.
    bytes: usize,
}

impl Mailbox {
    /// A mailbox that calls `wake` when mail comes into an empty queue and holds `max_bytes` of publications.
    pub fn new(max_bytes: usize, wake: impl Fn() + Send + Sync + 'static) -> (Self, Inbox) {
        let shared = Arc::new(Shared { queue: Mutex::default(), wake: Box::new(wake), max_bytes });
        (Self(Arc::clone(&shared)), Inbox(shared))
    }

    /// Sends mail that is never refused: what others wait for, or what their number bounds.
    pub fn send(&self, mail: Mail) {
        assert!(self.0.push(mail, 0).is_ok(), "mail without bytes always fits");
    }

    /// Sends publications, in order.
    ///
    /// # Errors
    /// [`Full`]: none of them was taken.
    pub fn publications(&self, batch: Vec<Arc<Delivery>>) -> Result<(), Full> {
        let bytes =
            |delivery: &Arc<Delivery>| delivery.payload.bytes().len() + delivery.label_bytes() + BESIDE;
        let bytes = batch.iter().map(bytes).sum();
        match self.0.push(Mail::Publications { batch, sent: Instant::now() }, bytes) {
            Err(Mail::Publications { batch, .. }) => Err(Full(batch)),
            _ => Ok(()),
        }
    }

    /// Mail that waits, and the bytes of the publications in it.
    pub fn waiting(&self) -> (usize, usize) {
        let queue = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner);
        (queue.mail.len(), queue.bytes)
    }
}

impl Inbox {
    /// Takes everything that is there.
    pub fn take(&self) -> VecDeque<Mail> {
        let mut queue = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.bytes = 0;
        std::mem::take(&mut queue.mail)
    }
}

impl Shared {
    fn push(&self, mail: Mail, bytes: usize) -> Result<(), Mail> {
        let was_empty = {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            // One batch always fits an empty mailbox, or a message above the bound would never get through.
            if bytes > 0 && queue.bytes > 0 && queue.bytes + bytes > self.max_bytes {
                return Err(mail);
            }
            queue.bytes += bytes;
            queue.mail.push_back(mail);
            queue.mail.len() == 1
        };
        if was_empty {
            (self.wake)();
        }
        Ok(())
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").finish_non_exhaustive()
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use bytes::Bytes;

    use super::{super::sync::every_order, *};
    use crate::domain::{Payload, Publication};

    fn publication(bytes: usize) -> Arc<Delivery> {
        let payload = Payload::Binary(Bytes::from(vec![0; bytes]));
        Arc::new(Publication::bare("a".parse().unwrap(), payload).into())
    }

    #[test]
    fn a_full_mailbox_refuses_publications_but_no_other_mail() {
        every_order(|| {
            let (mailbox, inbox) = Mailbox::new(1_000, || {});
            assert_eq!(mailbox.publications(vec![publication(2_000)]), Ok(()), "one batch always fits");
            assert_eq!(mailbox.publications(vec![publication(1)]), Err(Full(vec![publication(1)])));
            mailbox.send(Mail::Stop);
            assert_eq!(inbox.take().len(), 2);
            assert_eq!(mailbox.publications(vec![publication(1)]), Ok(()));
        });
    }

    #[test]
    fn labels_count() {
        every_order(|| {
            let (mailbox, _inbox) = Mailbox::new(1_000, || {});
            let bare = Publication::bare("a".parse().unwrap(), Payload::Binary(Bytes::new()));
            let tags = vec![("name".to_owned(), "x".repeat(2_000))];
            let labelled = Publication { tags, user: Some("ann".into()), ..bare };
            assert_eq!(mailbox.publications(vec![Arc::new(labelled.into())]), Ok(()));
            assert_eq!(mailbox.waiting(), (1, 2_007 + BESIDE));
        });
    }

    #[test]
    fn a_shard_is_woken_once_for_all_that_comes_before_it_looks() {
        every_order(|| {
            let wakes = Arc::<AtomicU32>::default();
            let counter = Arc::clone(&wakes);
            let count = move || {
                counter.fetch_add(1, Ordering::Relaxed);
            };
            let (mailbox, inbox) = Mailbox::new(10_000, count);
            mailbox.publications(vec![publication(1), publication(1)]).unwrap();
            mailbox.publications(vec![publication(1)]).unwrap();
            mailbox.send(Mail::Stop);
            assert_eq!(wakes.load(Ordering::Relaxed), 1);
            assert_eq!(inbox.take().len(), 3);
            mailbox.send(Mail::Stop);
            assert_eq!(wakes.load(Ordering::Relaxed), 2, "it has looked");
        });
    }
}
