//! How to see that a process works.

use std::{net::Ipv4Addr, sync::LazyLock, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Everything is on this machine: what takes longer does not work.
const PATIENCE: Duration = Duration::from_secs(1);

static HTTP: LazyLock<reqwest::Client> = LazyLock::new(|| {
    reqwest::Client::builder()
        .no_proxy()
        .timeout(PATIENCE)
        .build()
        .expect("a client without TLS needs nothing")
});

/// How to see that a process works.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Probe {
    /// A node, by its admin port.
    Node { admin: u16 },
    /// A Redis, by `PING`.
    Redis { port: u16 },
    /// It runs, so it works.
    #[cfg(test)]
    Always,
}

/// What was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) ready: bool,
    /// Open client connections, of a node that answers.
    pub(crate) connections: Option<u64>,
}

// === impl Probe ===

impl Probe {
    pub(crate) async fn look(self) -> Seen {
        match self {
            Self::Node { admin } => {
                let ready = get(admin, "ready").await.is_some();
                let metrics = get(admin, "metrics").await;
                Seen { ready, connections: metrics.and_then(|text| gauge(&text, "fanout_node_connections")) }
            }
            Self::Redis { port } => Seen { ready: pong(port).await.unwrap_or(false), connections: None },
            #[cfg(test)]
            Self::Always => Seen { ready: true, connections: None },
        }
    }
}

/// Body of a page of the admin port; `None` unless it answers 200.
async fn get(port: u16, page: &str) -> Option<String> {
    let reply = HTTP.get(format!("http://127.0.0.1:{port}/{page}")).send().await.ok()?;
    if reply.status() != reqwest::StatusCode::OK {
        return None;
    }
    reply.text().await.ok()
}

/// Sum of a gauge over its labels in an OpenMetrics text.
fn gauge(text: &str, name: &str) -> Option<u64> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = match rest.strip_prefix('{') {
            Some(labels) => labels.rsplit_once("} ")?.1,
            None => rest.strip_prefix(' ')?,
        };
        value.split(' ').next()?.parse::<f64>().ok()
    });
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts of connections are whole"
    )]
    values.map(|value| value as u64).reduce(|sum, value| sum + value)
}

async fn pong(port: u16) -> std::io::Result<bool> {
    let ask = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.write_all(b"PING\r\n").await?;
        let mut reply = [0; 7];
        stream.read_exact(&mut reply).await?;
        Ok(reply == *b"+PONG\r\n")
    };
    tokio::time::timeout(PATIENCE, ask).await.unwrap_or(Ok(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_is_summed_over_its_labels_and_not_mistaken_for_a_longer_name() {
        let text = "# TYPE fanout_node_connections gauge\n\
                    fanout_node_connections{shard=\"0\"} 2\n\
                    fanout_node_connections{shard=\"1\"} 3\n\
                    fanout_node_connections_opened_total 9\n";
        assert_eq!(gauge(text, "fanout_node_connections"), Some(5));
        assert_eq!(gauge("fanout_node_connections 7\n", "fanout_node_connections"), Some(7));
        assert_eq!(gauge(text, "fanout_node_channels"), None);
    }
}
