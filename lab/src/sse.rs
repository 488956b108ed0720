//! A Server-Sent Events client: as much of the format as a browser's `EventSource` hands on.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{Stream, StreamExt};
use reqwest::Response;
use tokio::time::timeout;

use crate::await_condition;

/// As for a WebSocket: a Service refuses for about a second after its pods are ready.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// Its `event:` field; empty for a plain message.
    pub kind: String,
    /// Its `id:` field, empty where it has none.
    pub id: String,
    /// Its `data:` lines, joined.
    pub data: String,
}

/// An open event stream.
pub struct EventStream {
    body: std::pin::Pin<Box<dyn Stream<Item = reqwest::Result<Vec<u8>>> + Send>>,
    buffer: String,
}

impl EventStream {
    /// Opens `url`; tries again while it is refused.
    ///
    /// # Errors
    /// When it is still refused after ten seconds.
    pub async fn open(url: &str) -> Result<Self> {
        let what = format!("an event stream at {url}");
        let response =
            await_condition(&what, CONNECT_DEADLINE, async || request(url).await.map(Some)).await?;
        let body = Box::pin(response.bytes_stream().map(|chunk| chunk.map(|bytes| bytes.to_vec())));
        Ok(Self { body, buffer: String::new() })
    }

    /// The next event that carries data; comments and `retry:` are passed over.
    ///
    /// # Errors
    /// When none comes within `deadline`, or the stream ends.
    pub async fn next(&mut self, deadline: Duration) -> Result<Event> {
        let next = timeout(deadline, self.read_event()).await;
        next.with_context(|| format!("no event within {} ms", deadline.as_millis()))?
    }

    async fn read_event(&mut self) -> Result<Event> {
        loop {
            while let Some(end) = self.buffer.find("\n\n") {
                let block: String = self.buffer.drain(..end + 2).collect();
                if let Some(event) = parse(&block) {
                    return Ok(event);
                }
            }
            let chunk = self.body.next().await.context("the event stream has ended")??;
            self.buffer += &String::from_utf8_lossy(&chunk).replace("\r\n", "\n");
        }
    }
}

async fn request(url: &str) -> Result<Response> {
    let response = reqwest::Client::new().get(url).header("Accept", "text/event-stream").send().await?;
    ensure!(response.status().is_success(), "{url} answered {}", response.status());
    Ok(response)
}

fn parse(block: &str) -> Option<Event> {
    let mut event = Event::default();
    let mut data = Vec::new();
    for line in block.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => event.kind = value.to_owned(),
            "id" => event.id = value.to_owned(),
            "data" => data.push(value),
            _ => {}
        }
    }
    event.data = data.join("\n");
    (!data.is_empty()).then_some(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_with_all_its_fields() {
        let event = parse("event: gap\nid: e-7\ndata: one\ndata: two\n\n");
        let expected = Event { kind: "gap".into(), id: "e-7".into(), data: "one\ntwo".into() };
        assert_eq!(event, Some(expected));
    }

    #[test]
    fn a_comment_and_a_retry_are_no_events() {
        assert_eq!(parse(": keep-alive\n\n"), None);
        assert_eq!(parse("retry: 2000\n\n"), None);
    }
}
