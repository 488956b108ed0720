//! Socket.IO in Rust (socketioxide), fed by Redis Pub/Sub. Usage: `fanout-bench-socketioxide PORT REDIS_PORT`

use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use socketioxide::{SocketIo, TransportType, extract::SocketRef};

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let port = arguments.next().context("PORT is missing")?;
    let redis_port = arguments.next().context("REDIS_PORT is missing")?;
    let (layer, io) = SocketIo::builder()
        .transports([TransportType::Websocket])
        // The window of the saturated rows fits: at the default of 128 a burst would be refused.
        .max_buffer_size(1_024)
        .ack_timeout(Duration::from_secs(5))
        .build_layer();
    io.ns("/", async |_: SocketRef| {});
    let redis = redis::Client::open(format!("redis://127.0.0.1:{redis_port}"))?;
    let (mut sink, mut stream) = redis.get_async_pubsub().await?.split();
    sink.subscribe("bench").await?;
    tokio::spawn(async move {
        while let Some(message) = stream.next().await {
            if let Ok(text) = message.get_payload::<String>() {
                // A client that is behind is skipped; the bench counts it as lost.
                let _ = io.emit("m", &text).await;
            }
        }
    });
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    axum::serve(listener, axum::Router::new().layer(layer)).await.context("failed to serve")
}
