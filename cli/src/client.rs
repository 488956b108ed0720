//! A client of the raw protocol, framed (`fanout.v1`): one JSON object a frame. For `dev --check` and `helm-test`.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::StreamExt;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest, http::HeaderValue},
};

/// A client that is subscribed to one channel.
#[derive(Debug)]
pub(crate) struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

/// A publication and when it arrived.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Arrival {
    pub(crate) data: Value,
    pub(crate) at: Instant,
}

// === impl Client ===

impl Client {
    /// Connects to `base` (`ws://host:port`) and subscribes to `channel`.
    pub(crate) async fn subscribe(base: &str, channel: &str, patience: Duration) -> anyhow::Result<Self> {
        let subscribed = async {
            let url = format!("{base}/ws/{channel}");
            let mut request =
                url.as_str().into_client_request().with_context(|| format!("{url} is not a valid URL"))?;
            request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("fanout.v1"));
            let (socket, _) =
                connect_async(request).await.with_context(|| format!("failed to connect to {url}"))?;
            let mut client = Self { socket };
            client.wait_subscribed().await?;
            Ok(client)
        };
        tokio::time::timeout(patience, subscribed)
            .await
            .with_context(|| format!("{base} did not confirm the subscription to {channel} in time"))?
    }

    /// The next publication, or `None` when none comes within `patience`.
    pub(crate) async fn next(&mut self, patience: Duration) -> anyhow::Result<Option<Arrival>> {
        let publication = async {
            loop {
                let frame = self.frame().await?;
                if let Some(publication) = frame.get("pub") {
                    return Ok(Arrival { data: payload(&publication["data"]), at: Instant::now() });
                }
                if let Some(gap) = frame.get("gap") {
                    bail!("the node says that publications were lost: {gap}");
                }
            }
        };
        tokio::time::timeout(patience, publication).await.map_or(Ok(None), |arrived| arrived.map(Some))
    }

    /// Leaves.
    pub(crate) async fn close(mut self) {
        // Whether the node answers does not matter to who leaves.
        let _ = self.socket.close(None).await;
    }

    async fn wait_subscribed(&mut self) -> anyhow::Result<()> {
        while self.frame().await?.get("subscribed").is_none() {}
        Ok(())
    }

    /// The next JSON object; an error told by the node is one here.
    async fn frame(&mut self) -> anyhow::Result<Value> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => {
                    let frame: Value = serde_json::from_str(&text)
                        .with_context(|| format!("a frame is not JSON: {text}"))?;
                    if let Some(error) = frame.get("error") {
                        bail!("the node refused: {error}");
                    }
                    return Ok(frame);
                }
                Some(Ok(Message::Close(reason))) => {
                    let told =
                        reason.map(|frame| format!("{}: {}", frame.code, frame.reason)).unwrap_or_default();
                    bail!("the node closed the connection ({told})");
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context("the connection was lost"),
                None => bail!("the connection ended"),
            }
        }
    }
}

/// What was published. JSON that went in as bytes may come out as text.
fn payload(data: &Value) -> Value {
    data.as_str().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_else(|| data.clone())
}
