//! A channel with thousands of subscribers and something new all the time.

use std::time::Duration;

use serde_json::json;
use tokio::{task::JoinSet, time::timeout};

use crate::{
    binary::Program,
    support::{KEY, Setup, eventually, http},
};

const CROWD: usize = 2_000;
/// Far above what anything here takes, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);

/// Publishes without a pause. The server API reads from no shard, so that nothing slows it down.
async fn publish_for_ever(api: String) {
    let client = http();
    let body = json!({"channel": "lobby", "data": 1});
    loop {
        let call = client.post(&api).header("x-api-key", KEY).json(&body);
        assert!(call.send().await.unwrap().status().is_success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_clients_of_other_channels_are_answered_while_a_hot_channel_is_walked() {
    let setup = Setup::open().boot("runtime", json!({"shards": 1}));
    let program = Program::start(&setup).await;
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        crowd.push(program.connect("/ws/lobby").await);
    }
    let mut other = program.connect("/ws/room-1").await;
    let mut publishers = JoinSet::new();
    for _ in 0..2 {
        publishers.spawn(publish_for_ever(format!("http://{}/api/publish", program.addresses.api)));
    }
    let sent = "fanout_transport_messages_sent_total";
    eventually("the walk has begun", async || (program.metric(sent).await > 0).then_some(())).await;
    for _ in 0..10 {
        let before = program.metric(sent).await;
        for probe in ["live", "ready"] {
            let request = http().get(format!("http://{}/{probe}", program.addresses.admin)).send();
            let answer = timeout(PATIENCE, request).await.expect("in time").unwrap();
            assert!(answer.status().is_success(), "{probe}: {}", answer.status());
        }
        timeout(PATIENCE, other.ping()).await.expect("in time");
        assert!(program.metric(sent).await > before, "it was walked meanwhile");
    }
    publishers.shutdown().await;
    assert_eq!(program.metric("fanout_node_connections").await, CROWD as u64 + 1);
}
