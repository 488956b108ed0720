//! The task of a virtual WebSocket: carries bytes between a stream that a shard cannot poll (TLS, or one of
//! HTTP/2's) and the pipe to the shard. It keeps nothing of its own but what the stream has not yet taken.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use super::linger::LINGER;
use crate::shard::FarEnd;

/// Bytes of one read.
const READ: usize = 16 * 1_024;

thread_local! {
    /// Read into before it is known how much there is, so that no idle connection needs a buffer.
    static SCRATCH: RefCell<[u8; READ]> = const { RefCell::new([0; READ]) };
}

struct Carrier<S> {
    stream: S,
    far: FarEnd,
    /// Taken from the pipe, not yet by the stream.
    outbound: Bytes,
    /// The client sends nothing more.
    heard_all: bool,
    linger: Option<Pin<Box<Sleep>>>,
}

/// Carries until either side ends.
///
/// # Errors
/// What broke the stream.
pub(super) async fn carry(stream: impl AsyncRead + AsyncWrite, far: FarEnd) -> io::Result<()> {
    let stream = pin!(stream);
    let mut carrier = Carrier { stream, far, outbound: Bytes::new(), heard_all: false, linger: None };
    poll_fn(|context| carrier.poll(context)).await
}

impl<S: AsyncRead + AsyncWrite> Carrier<Pin<&mut S>> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.heard_all {
            match self.poll_inbound(context) {
                Poll::Ready(Ok(())) => self.heard_all = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
        }
        if let Poll::Ready(ended) = self.poll_outbound(context) {
            return Poll::Ready(ended);
        }
        // The stream may take nothing: then only this hears of the end.
        ready!(self.far.poll_let_go(context));
        let linger = self.linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        ready!(linger.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// From the client. Ready once it sends nothing more.
    fn poll_inbound(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let room = ready!(self.far.poll_room(context)).min(READ);
            let read = SCRATCH.with_borrow_mut(|scratch| {
                let mut buffer = ReadBuf::new(&mut scratch[..room]);
                ready!(self.stream.as_mut().poll_read(context, &mut buffer))?;
                self.far.push(buffer.filled());
                Poll::Ready(Ok::<_, io::Error>(buffer.filled().len()))
            });
            if ready!(read)? == 0 {
                self.far.finish();
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// To the client. Ready once the shard has let go and all is sent.
    fn poll_outbound(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.outbound.is_empty() {
                match self.far.poll_bytes(context) {
                    Poll::Ready(Some(bytes)) => self.outbound = bytes,
                    Poll::Ready(None) => return self.stream.as_mut().poll_shutdown(context),
                    Poll::Pending => {
                        ready!(self.stream.as_mut().poll_flush(context))?;
                        return Poll::Pending;
                    }
                }
            }
            match ready!(self.stream.as_mut().poll_write(context, &self.outbound))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.outbound.advance(written),
            }
        }
    }
}
