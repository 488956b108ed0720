//! What "every subscriber receives it" means, checked: each message once, at each client, in the sender's order.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use fanout_lab::{Frame, WebSocket, await_condition};

static ROUND: AtomicU32 = AtomicU32::new(0);

/// Messages of each client in a round: enough that an order can be wrong.
const MESSAGES: usize = 5;
/// Above what any delivery takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(10);

/// Waits until what the first client sends reaches all of them: a node subscribes at the broker when its first client
/// does, and what is published before that is not for it.
///
/// # Errors
/// When that does not come about.
pub async fn warm_up(clients: &mut [WebSocket]) -> Result<()> {
    await_condition("a first message to reach all clients", DEADLINE, async || {
        let text = format!("warm-up {}", ROUND.fetch_add(1, Ordering::Relaxed));
        clients[0].send(&text).await?;
        for client in clients.iter_mut() {
            while client.next_text(Duration::from_millis(500)).await? != text {}
        }
        Ok(Some(()))
    })
    .await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    clients.iter_mut().for_each(|client| drop(client.take_received()));
    Ok(())
}

/// Every client sends; every client must receive each message of all, once, and those of one sender in order. Gives the
/// median time from `send` to a client's socket.
///
/// # Errors
/// When a message is missing, comes twice, or overtakes another.
pub async fn exchange(clients: &mut [WebSocket]) -> Result<Duration> {
    let round = ROUND.fetch_add(1, Ordering::Relaxed);
    let mut sent = HashMap::new();
    for number in 0..MESSAGES {
        for (sender, client) in clients.iter_mut().enumerate() {
            let text = format!("round {round} sender {sender} message {number}");
            sent.insert(text.clone(), Instant::now());
            client.send(&text).await?;
        }
    }
    let mut latencies = Vec::new();
    for (index, client) in clients.iter_mut().enumerate() {
        latencies.extend(receive(client, index, &sent).await?);
    }
    latencies.sort();
    Ok(latencies[latencies.len() / 2])
}

async fn receive(
    client: &mut WebSocket,
    index: usize,
    sent: &HashMap<String, Instant>,
) -> Result<Vec<Duration>> {
    let mut times: HashMap<String, Instant> = HashMap::new();
    let mut order: HashMap<String, Vec<String>> = HashMap::new();
    while times.len() < sent.len() {
        let (at, text) = match client.next_timed(DEADLINE).await {
            Ok((at, Frame::Text(text))) => (at, text),
            Ok((_, other)) => bail!("client {index} got {other:?} instead of a message"),
            Err(error) => {
                let missing: Vec<_> = sent.keys().filter(|text| !times.contains_key(*text)).collect();
                bail!("client {index} never got {missing:?}: {error:#}");
            }
        };
        ensure!(sent.contains_key(&text), "client {index} got a stranger's message: {text}");
        ensure!(times.insert(text.clone(), at).is_none(), "client {index} got twice: {text}");
        let (sender, _) = text.rsplit_once(" message ").unwrap_or((&text, ""));
        order.entry(sender.to_owned()).or_default().push(text);
    }
    for texts in order.values() {
        ensure!(texts.is_sorted(), "client {index} got messages of one sender out of order: {texts:?}");
    }
    Ok(times.iter().map(|(text, at)| at.duration_since(sent[text])).collect())
}

/// Checks that nothing more comes for a moment: no second copy, no stray message.
///
/// # Errors
/// When something does.
pub async fn assert_silent(clients: &mut [WebSocket]) -> Result<()> {
    tokio::time::sleep(Duration::from_millis(500)).await;
    for (index, client) in clients.iter_mut().enumerate() {
        let more = client.take_received();
        ensure!(more.is_empty(), "client {index} got what nobody sent: {more:?}");
    }
    Ok(())
}
