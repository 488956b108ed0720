//! What is measured side by side: how each is started, how its clients speak, and where it takes publications.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::load::{
    dialect::Dialect,
    publish::{Envelope, Feed},
};

/// A server that fans out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Peer {
    /// The floor: a loop of writes, without Redis.
    Bare,
    /// The product.
    Sidecar,
    /// The product, its deliveries not timed: only to tell what the timing costs.
    Untimed,
    /// Centrifugo's library behind its Redis broker.
    Centrifuge,
    /// The hub that articles describe: a map under a lock, a goroutine pair and a channel for each connection.
    GoHub,
    /// Socket.IO in Rust.
    Socketioxide,
    /// `ws` and `ioredis`.
    Ws,
    /// Socket.IO 4 and its Redis adapter.
    SocketIo,
    /// nginx with nchan.
    Nchan,
}

/// Where things are.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// The sidecar binary.
    pub(crate) sidecar: PathBuf,
    /// The peers' sources.
    pub(crate) sources: PathBuf,
    /// The peers' binaries, built by `scripts/bench.sh`.
    pub(crate) binaries: PathBuf,
    /// Port of the Redis that all but the bare loop listen to.
    pub(crate) redis: u16,
}

impl Peer {
    pub(crate) const ALL: [Self; 8] = [
        Self::Bare,
        Self::Sidecar,
        Self::Centrifuge,
        Self::GoHub,
        Self::Socketioxide,
        Self::Ws,
        Self::SocketIo,
        Self::Nchan,
    ];

    /// As tables and plots call it.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Bare => "bare loop",
            Self::Sidecar => "Fanout",
            Self::Untimed => "Fanout without timing",
            Self::Centrifuge => "Centrifugo's library",
            Self::GoHub => "plain Go hub",
            Self::Socketioxide => "socketioxide",
            Self::Ws => "ws + ioredis",
            Self::SocketIo => "Socket.IO",
            Self::Nchan => "Nchan",
        }
    }

    /// Whether it is neither the floor nor the product.
    pub(crate) fn is_peer(self) -> bool {
        !matches!(self, Self::Bare | Self::Sidecar | Self::Untimed)
    }

    pub(crate) fn dialect(self) -> Dialect {
        match self {
            Self::Centrifuge => Dialect::Centrifuge,
            Self::Socketioxide | Self::SocketIo => Dialect::SocketIo,
            Self::Bare | Self::Sidecar | Self::Untimed | Self::GoHub | Self::Ws | Self::Nchan => {
                Dialect::Bare
            }
        }
    }

    /// The path that subscribes to `channel`. All but the bare loop, the sidecar and nchan know one channel only.
    pub(crate) fn path(self, channel: &str) -> String {
        match self.dialect() {
            Dialect::SocketIo => "/socket.io/?EIO=4&transport=websocket".to_owned(),
            Dialect::Bare | Dialect::Centrifuge => format!("/ws/{channel}"),
        }
    }

    /// Where publications enter, for a server on `port`.
    pub(crate) fn feed(self, port: u16, redis: u16) -> Feed {
        let redis = |prefix, envelope| Feed::Redis { port: redis, prefix, envelope };
        match self {
            Self::Bare => Feed::Bare { port },
            Self::Sidecar => redis("fanout-bench:", Envelope::Plain),
            Self::Untimed => redis("fanout-untimed:", Envelope::Plain),
            Self::Centrifuge => redis("centrifuge.client.", Envelope::Centrifuge),
            // Its adapter listens to the default namespace as a whole.
            Self::SocketIo => redis("socket.io#/#", Envelope::SocketIo),
            Self::GoHub | Self::Socketioxide | Self::Ws => redis("", Envelope::Plain),
            Self::Nchan => Feed::Http { port, prefix: "/pub/" },
        }
    }

    /// The channel name to publish to; Socket.IO's broadcast to all has none.
    pub(crate) fn channel(self) -> &'static str {
        if self == Self::SocketIo { "" } else { "bench" }
    }

    /// Why it cannot run here, if so.
    pub(crate) fn absent(self, places: &Places) -> Option<String> {
        let missing = |path: &Path, how: &str| {
            (!path.exists()).then(|| format!("{} is missing: {how}", path.display()))
        };
        match self {
            Self::Bare => None,
            Self::Sidecar | Self::Untimed => {
                missing(&places.sidecar, "cargo build --release -p fanout-sidecar")
            }
            Self::Centrifuge | Self::GoHub => {
                missing(&places.binaries.join(self.binary()), "it needs Go 1.26")
            }
            Self::Socketioxide => {
                missing(&places.binaries.join(self.binary()), "it needs crates from the registry")
            }
            Self::Ws | Self::SocketIo => missing(
                &places.sources.join("node/node_modules/ws/package.json"),
                "it needs Node 20 and `npm ci` in bench/peers/node",
            ),
            Self::Nchan => missing(
                Path::new("/usr/share/nginx/modules-available/mod-nchan.conf"),
                "apt-get install nginx libnginx-mod-nchan",
            ),
        }
    }

    fn binary(self) -> &'static str {
        match self {
            Self::Centrifuge => "centrifuge",
            Self::GoHub => "gohub",
            _ => "socketioxide",
        }
    }

    /// What starts it on `port`; what it needs to read is written to `folder`.
    pub(crate) fn command(self, places: &Places, folder: &Path, port: u16) -> Result<Command> {
        let mut command;
        match self {
            Self::Bare => {
                command = Command::new(std::env::current_exe()?);
                command.args(["bare", "--port", &port.to_string(), "--folder"]).arg(folder);
            }
            Self::Sidecar | Self::Untimed => {
                let (boot, live) = (folder.join("boot.yaml"), folder.join("live.yaml"));
                fs::write(&boot, boot_document(port, places.redis, self == Self::Sidecar)?)?;
                fs::write(&live, LIVE_DOCUMENT)?;
                command = Command::new(&places.sidecar);
                command.arg("run").arg("--config").arg(boot).arg("--live").arg(live);
            }
            Self::Centrifuge | Self::GoHub | Self::Socketioxide => {
                command = Command::new(places.binaries.join(self.binary()));
                command.args([port.to_string(), places.redis.to_string()]);
            }
            Self::Ws | Self::SocketIo => {
                let script = if self == Self::Ws { "ws.js" } else { "socket-io.js" };
                command = Command::new("node");
                command.arg(places.sources.join("node").join(script));
                command.args([port.to_string(), places.redis.to_string()]);
            }
            Self::Nchan => {
                let template = fs::read_to_string(places.sources.join("nchan.conf"))
                    .context("bench/peers/nchan.conf")?;
                let settings = template
                    .replace("@PORT@", &port.to_string())
                    .replace("@REDIS@", &places.redis.to_string());
                fs::write(folder.join("nginx.conf"), settings)?;
                command = Command::new("nginx");
                command.arg("-p").arg(folder).arg("-c").arg("nginx.conf").args(["-e", "stderr"]);
            }
        }
        Ok(command)
    }
}

/// One shard: the server has one core.
fn boot_document(port: u16, redis: u16, timed: bool) -> Result<String> {
    // Both run beside each other.
    let prefix = if timed { "fanout-bench" } else { "fanout-untimed" };
    let (api, admin) = (crate::server::free_port()?, crate::server::free_port()?);
    Ok(format!(
        "listen: {{client: '127.0.0.1:{port}', api: '127.0.0.1:{api}', admin: '127.0.0.1:{admin}'}}\n\
         runtime: {{shards: 1, timeDeliveries: {timed}}}\n\
         broker: {{redis: {{address: '127.0.0.1:{redis}', channelPrefix: {prefix}}}}}\n"
    ))
}

/// Bounds far above the load, so that no policy steps in.
const LIVE_DOCUMENT: &str = "\
logLevel: error
hub: {maxConnections: 19000}
namespaces:
  - name: default
    subscribe: allowed
    slowConsumer: {maxLagBytes: 268435456, maxLagMessages: 1000000}
";
