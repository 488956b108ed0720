//! `dev --check`: sends messages through every node in every way and sees each arrive everywhere, once, in order.

use std::{
    fmt::Write,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use fanout_operator::api::FanoutCluster;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{
    channel,
    cluster::{Cluster, Options},
    ports::NodePorts,
    printer::Printer,
    programs,
};
use crate::client::{Arrival, Client};

/// Messages over HTTP on each node.
const MESSAGES: usize = 5;
/// Time for anything to happen on this machine.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time after the last message in which a duplicate would show.
const QUIET: Duration = Duration::from_millis(250);

/// One message that was published.
#[derive(Debug)]
struct Sent {
    way: String,
    data: Value,
    at: Instant,
}

/// What one subscriber received.
#[derive(Debug)]
struct Received {
    node: u16,
    arrivals: Vec<Arrival>,
}

/// Checks the cluster of `manifest` and prints what was seen.
pub(crate) async fn run(manifest: FanoutCluster, options: Options) -> anyhow::Result<()> {
    let printer = Printer::keeping();
    let started = Instant::now();
    let done = match Cluster::start(manifest, options, printer.clone()).await {
        Ok(mut cluster) => {
            let done = check(&cluster).await;
            cluster.end(false);
            cluster.ended().await;
            done
        }
        Err(error) => Err(error),
    };
    match done {
        Ok(table) => {
            println!(
                "{table}\neach message arrived on every node, once and in order ({:.1} s)",
                started.elapsed().as_secs_f64()
            );
            Ok(())
        }
        Err(error) => {
            printer.kept().iter().for_each(|line| eprintln!("{line}"));
            Err(error)
        }
    }
}

async fn check(cluster: &Cluster) -> anyhow::Result<String> {
    let channel = channel::open(cluster.manifest()).context(channel::NONE)?;
    ensure!(cluster.nodes().next().is_some(), "spec.replicas is 0: there is no node to check");
    ensure!(cluster.wait_ready().await, "not every node became ready: see its lines above");
    let expected = cluster.nodes().count() * MESSAGES + usize::from(cluster.redis_port().is_some());
    let mut subscribers = JoinSet::new();
    for (node, NodePorts { client, .. }) in cluster.nodes() {
        let client = Client::subscribe(&format!("ws://127.0.0.1:{client}"), &channel, PATIENCE).await?;
        // They read while others publish, or the times in the table would be those of a queue.
        subscribers.spawn(receive(node, client, expected));
    }
    let sent = publish_everywhere(cluster, &channel).await?;
    let mut received: Vec<_> = subscribers.join_all().await.into_iter().collect::<anyhow::Result<_>>()?;
    received.sort_unstable_by_key(|received| received.node);
    compare(&sent, &received)?;
    Ok(table(&sent, &received))
}

/// One message after the other, each sent once the one before is accepted, so that there is one right order.
async fn publish_everywhere(cluster: &Cluster, channel: &str) -> anyhow::Result<Vec<Sent>> {
    let http = reqwest::Client::builder()
        .no_proxy()
        .timeout(PATIENCE)
        .build()
        .context("failed to make an HTTP client")?;
    let mut sent = Vec::new();
    for (node, NodePorts { api, .. }) in cluster.nodes() {
        for number in 1..=MESSAGES {
            let message = Sent::new(format!("HTTP on node-{node}"), number);
            publish_http(&http, api, cluster.api_key(), channel, &message.data).await?;
            sent.push(message);
        }
    }
    if let Some(port) = cluster.redis_port() {
        let message = Sent::new("redis-cli PUBLISH".to_owned(), 1);
        publish_redis(port, &format!("{}:{channel}", cluster.manifest().channel_prefix()), &message.data)
            .await?;
        sent.push(message);
    }
    Ok(sent)
}

async fn publish_http(
    http: &reqwest::Client,
    port: u16,
    key: &str,
    channel: &str,
    data: &Value,
) -> anyhow::Result<()> {
    let url = format!("http://127.0.0.1:{port}/api/publish");
    let request = http.post(&url).header("X-API-Key", key).json(&json!({"channel": channel, "data": data}));
    let reply = request.send().await.with_context(|| format!("failed to publish at {url}"))?;
    let status = reply.status();
    let text = reply.text().await.with_context(|| format!("failed to read the answer of {url}"))?;
    let result = serde_json::from_str::<Value>(&text).ok().and_then(|reply| reply.get("result").cloned());
    ensure!(status.is_success() && result.is_some(), "{url} answered {status}: {text}");
    Ok(())
}

async fn publish_redis(port: u16, channel: &str, data: &Value) -> anyhow::Result<()> {
    let program = programs::redis_cli()?;
    let mut command = tokio::process::Command::new(&program);
    command.args(["-p", &port.to_string(), "PUBLISH", channel, &data.to_string()]).stdin(Stdio::null());
    let output = command.output().await.with_context(|| format!("failed to run {}", program.display()))?;
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "redis-cli PUBLISH {channel} failed: {said}");
    ensure!(said.trim() != "0", "redis-cli PUBLISH {channel} reached nobody: no node is subscribed in Redis");
    Ok(())
}

/// Waits for `expected` messages, and a little longer for any that should not come.
async fn receive(node: u16, mut client: Client, expected: usize) -> anyhow::Result<Received> {
    let mut arrivals = Vec::new();
    loop {
        let patience = if arrivals.len() < expected { PATIENCE } else { QUIET };
        match client.next(patience).await.with_context(|| format!("the subscriber on node-{node} failed"))? {
            Some(arrival) => arrivals.push(arrival),
            None => break,
        }
    }
    client.close().await;
    Ok(Received { node, arrivals })
}

fn compare(sent: &[Sent], received: &[Received]) -> anyhow::Result<()> {
    for Received { node, arrivals } in received {
        for (at, Sent { data, .. }) in sent.iter().enumerate() {
            match arrivals.get(at) {
                Some(arrival) if arrival.data == *data => {}
                Some(arrival) => bail!("node-{node} delivered {} where {data} was next", arrival.data),
                None => bail!("node-{node} delivered {at} of {} messages: {data} did not arrive", sent.len()),
            }
        }
        if let Some(extra) = arrivals.get(sent.len()) {
            bail!("node-{node} delivered {} a second time", extra.data);
        }
    }
    Ok(())
}

/// A row for each way of publishing, a column for each subscriber: messages and the median time they took.
fn table(sent: &[Sent], received: &[Received]) -> String {
    let mut text = format!("{:<20}", "published by");
    for Received { node, .. } in received {
        let _ = write!(text, "{:>18}", format!("node-{node} got"));
    }
    let mut first = 0;
    while let Some(Sent { way, .. }) = sent.get(first) {
        let count = sent[first..].iter().take_while(|message| message.way == *way).count();
        let _ = write!(text, "\n{way:<20}");
        for Received { arrivals, .. } in received {
            let rows = sent[first..first + count].iter().zip(&arrivals[first..first + count]);
            let mut times: Vec<_> =
                rows.map(|(message, arrival)| arrival.at.duration_since(message.at)).collect();
            times.sort_unstable();
            let median = times[times.len() / 2].as_secs_f64() * 1_000.0;
            let _ = write!(text, "{:>18}", format!("{count} in {median:.1} ms"));
        }
        first += count;
    }
    text
}

// === impl Sent ===

impl Sent {
    fn new(way: String, number: usize) -> Self {
        let data = json!({"from": way, "number": number});
        Self { way, data, at: Instant::now() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent() -> Vec<Sent> {
        (1..=3).map(|number| Sent::new("HTTP on node-1".to_owned(), number)).collect()
    }

    fn received(numbers: &[usize]) -> Vec<Received> {
        let arrivals = numbers.iter().map(|&number| {
            let Sent { data, at, .. } = Sent::new("HTTP on node-1".to_owned(), number);
            Arrival { data, at }
        });
        vec![Received { node: 2, arrivals: arrivals.collect() }]
    }

    fn verdict(numbers: &[usize]) -> String {
        compare(&sent(), &received(numbers)).map_or_else(|error| error.to_string(), |()| "good".to_owned())
    }

    #[test]
    fn what_is_missing_doubled_or_out_of_order_is_told() {
        assert_eq!(verdict(&[1, 2, 3]), "good");
        assert!(verdict(&[1, 2]).starts_with("node-2 delivered 2 of 3 messages"), "{}", verdict(&[1, 2]));
        assert!(verdict(&[1, 2, 3, 3]).ends_with("a second time"));
        assert!(verdict(&[2, 1, 3]).contains("was next"));
        assert!(verdict(&[1, 1, 2, 3]).contains("was next"));
    }
}
