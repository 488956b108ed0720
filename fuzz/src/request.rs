//! What the client port is asked: bytes of an HTTP connection, up to the door of the shards, which is too busy to let
//! anybody in.

use std::sync::LazyLock;

use fanout_sidecar::{
    auth::{Auth, AuthRules},
    http::ClientPort,
    shard::Shards,
};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use sidecar_config::LiveSettings;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    runtime::{self, Runtime},
    sync::mpsc,
};

use crate::client_port;

const SETTINGS: &str = "
hub: {allowedOrigins: ['https://*.example'], trustedProxies: ['127.0.0.0/8'], limits: {channelsPerConnection: 4}}
namespaces:
- {name: default, publish: allowed, subscribe: allowed}
- {name: secret, subscribe: token}";

struct Bench {
    runtime: Runtime,
    port: ClientPort,
    /// Its threads end with the process.
    _shards: Shards,
}

static BENCH: LazyLock<Bench> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let secret = directory.path().join("secret");
    std::fs::write(&secret, "a secret of thirty-two bytes, yes").expect("written");
    let mut settings: LiveSettings = sidecar_config::parse(SETTINGS).expect("settings");
    let jwt = serde_json::json!({"keys": [{"algorithm": "HS256", "file": secret}]});
    settings.auth.jwt = Some(serde_json::from_value(jwt).expect("settings"));
    let auth = Auth::new(AuthRules::load(&settings).expect("the secret is there"));
    // Nobody takes the work: a request that asks for a channel is refused as by an overloaded node.
    let (work, _) = mpsc::channel(1);
    let (shards, port) = client_port(settings, auth, &work);
    let runtime = runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    Bench { runtime, port, _shards: shards }
});

/// Every request is answered, or the connection ends; no answer is a failure of ours.
pub(crate) fn request(data: &[u8]) {
    let Bench { runtime, port, _shards } = &*BENCH;
    let answer = runtime.block_on(async {
        let (mut client, server) = duplex(64 * 1_024);
        let service = TowerToHyperService::new(port.answers(([127, 0, 0, 1], 9).into()));
        client.write_all(&data[..data.len().min(32 * 1_024)]).await.expect("the pipe has room");
        client.shutdown().await.expect("shut down");
        // A broken request is an error of hyper's, which has answered it.
        drop(
            http1::Builder::new()
                .max_buf_size(8 * 1_024)
                .serve_connection(TokioIo::new(server), service)
                .await,
        );
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.expect("an in-memory pipe");
        answer
    });
    if answer.is_empty() {
        return;
    }
    let status = answer.strip_prefix(b"HTTP/1.1 ").or_else(|| answer.strip_prefix(b"HTTP/1.0 "));
    let status = status.and_then(|rest| rest.get(..3)).expect("an answer has a status");
    assert!(
        matches!(status, [b'2' | b'4', ..] | b"501" | b"503" | b"505"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
}
