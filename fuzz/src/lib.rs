//! Fuzz targets: what must hold for any bytes that a client, a broker or a settings file may hold. Each target is a
//! function that panics where it does not.
//!
//! `make fuzz` drives them by libFuzzer; `tests/corpus.rs` replays what it found worth keeping, without it.

#![forbid(unsafe_code)]

mod broker;
mod connection;
mod frames;
mod publication;
mod request;
mod settings;

use std::sync::Arc;

use fanout_sidecar::{
    auth::Auth,
    domain::{NodeId, Policies},
    http::{ClientPort, Metrics},
    shard::{Config, Rules, Shards, Work},
};
use sidecar_config::LiveSettings;
use tokio::sync::mpsc;

/// A target and its name, which is that of its directory in `corpus/`.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 10] = [
    ("channel_name", settings::channel_name),
    ("commands", frames::commands),
    ("connection", connection::connection),
    ("deflate", frames::deflate),
    ("envelope", broker::envelope),
    ("frames", frames::frames),
    ("publication", publication::publication),
    ("request", request::request),
    ("resp", broker::resp),
    ("settings", settings::settings),
];

/// The first byte, as a parameter, and the rest.
fn parameter(data: &[u8]) -> Option<(u8, &[u8])> {
    data.split_first().map(|(first, rest)| (*first, rest))
}

/// A shard, and the client port before it.
fn client_port(settings: LiveSettings, auth: Auth, work: &mpsc::Sender<Work>) -> (Shards, ClientPort) {
    let rules = Rules {
        policies: Policies::new(&settings.namespaces),
        hub: settings.hub,
        reconnect_jitter: std::time::Duration::ZERO,
    };
    let config = Config {
        shards: 1,
        node: NodeId(1),
        max_connections: 1_000,
        mailbox_bytes: Config::MOST_WAITING_BYTES,
        work_bytes: Config::MOST_WAITING_BYTES,
        log_bytes: Config::MOST_BYTES,
        time_deliveries: true,
    };
    let shards = Shards::spawn(config, Arc::new(rules), work).expect("a thread");
    let port = ClientPort::new(shards.door().clone(), Arc::new(auth), Metrics::default());
    (shards, port)
}
