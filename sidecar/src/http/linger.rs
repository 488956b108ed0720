//! Ends what carries a stream that its client does not take. Whoever writes to a full socket, or waits for a window of
//! HTTP/2, does not look at the pipe any more: without an end from outside it would hold its task, its buffers and its
//! descriptor for as long as the client likes, while its shard counts it no more.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
    time::Duration,
};

use hyper::rt::Executor;
use tokio::time::sleep;

use crate::shard::FarEnd;

/// Time that the last bytes have to leave once the shard has let go.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// Over when a task is to end that has not ended by itself.
type End = Pin<Box<dyn Future<Output = ()> + Send>>;

tokio::task_local! {
    /// The end of the task that runs. A handler sets it for its answer, which hyper sends in the same task.
    static END: RefCell<Option<End>>;
}

/// Runs what hyper asks to run for the streams of an HTTP/2 connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tasks;

/// Runs a task that answers requests; `None` where what a handler set was over first.
pub(super) fn until_over<T: Future>(task: T) -> impl Future<Output = Option<T::Output>> {
    until(task, None)
}

/// Gives the answer to this request as long as its shard sends something, and [`LINGER`].
pub(super) fn with_shard(far: &FarEnd) {
    let watch = far.watch();
    set(async move {
        poll_fn(|context| watch.poll_let_go(context)).await;
        // In a box, for most never come here.
        Box::pin(sleep(LINGER)).await;
    });
}

/// Ends what answers this request, and what hyper runs to carry on from there, once `end` is over.
pub(super) fn set(end: impl Future<Output = ()> + Send + 'static) {
    // Whoever asks by another way than a connection, as fuzzing does, ends by itself.
    let _ = END.try_with(|slot| slot.replace(Some(Box::pin(end))));
}

fn until<T: Future>(task: T, end: Option<End>) -> impl Future<Output = Option<T::Output>> {
    // In a box, for a future that is moved into another takes its room twice.
    let mut task = Box::pin(task);
    let either = poll_fn(move |context| {
        // First, for it may set the other.
        if let Poll::Ready(ended) = task.as_mut().poll(context) {
            return Poll::Ready(Some(ended));
        }
        END.with(|end| match &mut *end.borrow_mut() {
            Some(end) => end.as_mut().poll(context).map(|()| None),
            None => Poll::Pending,
        })
    });
    END.scope(RefCell::new(end), either)
}

impl<T> Executor<T> for Tasks
where
    T: Future + Send + 'static,
    T::Output: Send,
{
    fn execute(&self, task: T) {
        // What sends for a WebSocket is made by the task that answered its handshake, and goes on in its place.
        let end = END.try_with(RefCell::take).ok().flatten();
        tokio::spawn(until(task, end));
    }
}
