//! What stands between hyper and a connection of HTTP/1.1, so that callers see the same whoever answers them.
//!
//! hyper answers by itself what it cannot parse, with a status and nothing else: its body is written here, in the shape
//! of all other errors. And it gives up a request whose client has sent its end before the answer began, which clients
//! may (`shutdown(SHUT_WR)`; `nc`, some proxies): the end is held back until the answer has begun.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::error::RequestError;

/// Requests that have come: their client is owed as many answers. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked(Arc<AtomicU32>);

/// A stream for hyper.
#[derive(Debug)]
pub(crate) struct Wire<S> {
    stream: S,
    asked: Asked,
    /// Bytes went out.
    wrote: bool,
    /// Requests whose answers have begun to leave.
    answered: u32,
    /// Waits for that, to hear of the end.
    held: Option<Waker>,
    /// Our words in place of hyper's, as far as they are not written.
    instead: Vec<u8>,
}

impl Asked {
    /// A request has come.
    pub(crate) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn requests(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl<S> Wire<S> {
    pub(crate) fn new(stream: S, asked: Asked) -> Self {
        Self { stream, asked, wrote: false, answered: 0, held: None, instead: Vec::new() }
    }

    pub(crate) fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncWrite + Unpin> Wire<S> {
    /// Writes what stands in place of `bytes`, which then count as written.
    fn poll_instead(&mut self, context: &mut Context<'_>, bytes: usize) -> Poll<io::Result<usize>> {
        while !self.instead.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.instead))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.instead.drain(..written);
        }
        self.wrote = true;
        Poll::Ready(Ok(bytes))
    }

    /// Whether `bytes` are not to be written, but what stands in their place. Only an answer begins so: what comes behind
    /// its begin may hold anything.
    fn replaces(&mut self, bytes: &[u8]) -> bool {
        if self.instead.is_empty()
            && !self.wrote
            && let Some(error) = answer_of_hyper(bytes)
        {
            self.instead = error.message();
        }
        !self.instead.is_empty()
    }

    fn begun(&mut self) {
        self.answered = self.asked.requests();
        if let Some(held) = self.held.take() {
            held.wake();
        }
    }
}

/// What hyper says by itself: three statuses, and no body. Ours all have one.
fn answer_of_hyper(bytes: &[u8]) -> Option<RequestError> {
    let rest = bytes.strip_prefix(b"HTTP/1.1 ").or_else(|| bytes.strip_prefix(b"HTTP/1.0 "))?;
    let error = match rest.get(..3)? {
        b"400" => RequestError::Unparsed(StatusCode::BAD_REQUEST),
        b"414" => RequestError::Unparsed(StatusCode::URI_TOO_LONG),
        b"431" => RequestError::Unparsed(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        _ => return None,
    };
    let head = std::str::from_utf8(rest).ok()?;
    let empty =
        head.ends_with("\r\n\r\n") && head.lines().any(|line| line.eq_ignore_ascii_case("content-length: 0"));
    empty.then_some(error)
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        let ended = buffer.filled().len() == before && buffer.remaining() > 0;
        // What came is another request, where the connection is kept, with an answer of its own.
        this.wrote &= ended;
        if ended && this.answered != this.asked.requests() {
            this.held = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.replaces(bytes) {
            return this.poll_instead(context, bytes.len());
        }
        let written = ready!(Pin::new(&mut this.stream).poll_write(context, bytes))?;
        this.wrote |= written > 0;
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(first) = slices.iter().find(|slice| !slice.is_empty())
            && this.replaces(first)
        {
            return this.poll_instead(context, first.len());
        }
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(context, slices))?;
        this.wrote |= written > 0;
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.stream).poll_flush(context))?;
        if this.wrote {
            this.begun();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hyper_says_by_itself_is_known_by_its_status_and_its_missing_body() {
        let hypers =
            b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        assert!(answer_of_hyper(hypers).is_some());
        for ours in [
            &b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 10\r\n\r\n"[..],
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n{}",
            b"content-length: 0\r\n\r\n",
            b"",
        ] {
            assert!(answer_of_hyper(ours).is_none());
        }
    }
}
