//! A transport that counts the bytes that moved, so that silence is told from slowness, and what was never written from
//! what was. The kernel takes bytes for a server that stands still or is gone, until its buffers are full: those that are
//! written show no life, unless there was no room for them before.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::coop,
};

/// The transport.
pub(super) struct Watched<T> {
    inner: T,
    progress: Progress,
    /// There was no room for the last write: what is taken next shows that the server has taken some.
    is_full: bool,
}

/// Bytes that moved so far. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    read: AtomicU64,
    written: AtomicU64,
    /// Of those written, the ones that there was no room for before.
    made_room: AtomicU64,
}

impl<T> Watched<T> {
    pub(super) fn new(inner: T) -> (Self, Progress) {
        let progress = Progress::default();
        (Self { inner, progress: progress.clone(), is_full: false }, progress)
    }
}

impl Progress {
    /// Bytes that the transport took. By TLS some may not have left yet.
    pub(super) fn written(&self) -> u64 {
        self.0.written.load(Ordering::Relaxed)
    }

    /// Changes with each sign of life: the server has answered, or made room for more.
    pub(super) fn signs(&self) -> u64 {
        self.0.read.load(Ordering::Relaxed) + self.0.made_room.load(Ordering::Relaxed)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        self.progress.0.read.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Poll::Ready(written) = Pin::new(&mut self.inner).poll_write(context, bytes)? else {
            // Tokio also holds up a task that has used up its turn.
            self.is_full |= coop::has_budget_remaining();
            return Poll::Pending;
        };
        self.progress.0.written.fetch_add(written as u64, Ordering::Relaxed);
        if std::mem::take(&mut self.is_full) {
            self.progress.0.made_room.fetch_add(written as u64, Ordering::Relaxed);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
