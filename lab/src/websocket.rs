//! A WebSocket client as a test needs it: it reads in the background from the first frame on, so that what arrived,
//! in which order and when, can be asked afterwards.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use tokio::{net::TcpStream, sync::mpsc, task::JoinHandle, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest, http::HeaderValue},
};

use crate::await_condition;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// kube-proxy writes a Service's rules about a second after its pods are ready; until then it refuses.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// What a server sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A text message.
    Text(String),
    /// A binary message.
    Binary(Vec<u8>),
    /// The end: the server's close code and reason, or neither where the connection broke.
    Closed(Option<(u16, String)>),
}

/// An open WebSocket, read by a task of its own until it ends or is dropped.
#[derive(Debug)]
pub struct WebSocket {
    sender: SplitSink<Socket, Message>,
    frames: mpsc::UnboundedReceiver<(Instant, Frame)>,
    reader: JoinHandle<()>,
}

impl WebSocket {
    /// Connects to `url`, offering `protocols`; tries again while it is refused.
    ///
    /// # Errors
    /// When it is still refused after ten seconds.
    pub async fn open(url: &str, protocols: &[&str]) -> Result<Self> {
        let what = format!("a WebSocket at {url}");
        await_condition(&what, CONNECT_DEADLINE, async || Self::try_open(url, protocols).await.map(Some))
            .await
    }

    /// Connects once.
    ///
    /// # Errors
    /// When the address or the server refuses.
    pub async fn try_open(url: &str, protocols: &[&str]) -> Result<Self> {
        let mut request = url.into_client_request()?;
        if !protocols.is_empty() {
            let list = HeaderValue::from_str(&protocols.join(", "))?;
            request.headers_mut().insert("Sec-WebSocket-Protocol", list);
        }
        let connecting = timeout(Duration::from_secs(5), connect_async(request));
        let (socket, _) =
            connecting.await.context("no answer within 5 s")?.with_context(|| format!("{url} refused"))?;
        let (sender, receiver) = socket.split();
        let (received, frames) = mpsc::unbounded_channel();
        Ok(Self { sender, frames, reader: tokio::spawn(read(receiver, received)) })
    }

    /// Sends a text message.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn send(&mut self, text: &str) -> Result<()> {
        let sent = self.sender.send(Message::text(text)).await;
        sent.with_context(|| {
            format!("failed to send; received since it was last asked: {:?}", self.take_received())
        })
    }

    /// The next frame and when it came.
    ///
    /// # Errors
    /// When none comes within `deadline`, or the end was read before.
    pub async fn next_timed(&mut self, deadline: Duration) -> Result<(Instant, Frame)> {
        let next = timeout(deadline, self.frames.recv()).await;
        next.with_context(|| format!("no frame within {} ms", deadline.as_millis()))?
            .context("the connection has ended")
    }

    /// The next text message.
    ///
    /// # Errors
    /// When none comes within `deadline`, or something else comes.
    pub async fn next_text(&mut self, deadline: Duration) -> Result<String> {
        match self.next_timed(deadline).await? {
            (_, Frame::Text(text)) => Ok(text),
            (_, other) => bail!("expected a text message, got {other:?}"),
        }
    }

    /// All frames that have come and were not asked for yet; does not wait.
    pub fn take_received(&mut self) -> Vec<Frame> {
        std::iter::from_fn(|| self.frames.try_recv().ok()).map(|(_, frame)| frame).collect()
    }

    /// Whether the connection is still open.
    pub fn is_open(&self) -> bool {
        !self.reader.is_finished()
    }
}

impl Drop for WebSocket {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Reads until the end; a ping is answered by the library as it is read.
async fn read(mut receiver: SplitStream<Socket>, received: mpsc::UnboundedSender<(Instant, Frame)>) {
    let mut closed = None;
    while let Some(Ok(message)) = receiver.next().await {
        let frame = match message {
            Message::Text(text) => Frame::Text(text.as_str().to_owned()),
            Message::Binary(bytes) => Frame::Binary(bytes.to_vec()),
            Message::Close(reason) => {
                closed = reason.map(|close| (close.code.into(), close.reason.as_str().to_owned()));
                continue;
            }
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
        };
        if received.send((Instant::now(), frame)).is_err() {
            return;
        }
    }
    received.send((Instant::now(), Frame::Closed(closed))).ok();
}
