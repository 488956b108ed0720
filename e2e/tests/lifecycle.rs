//! The operator away, and the cluster gone.

use std::time::Duration;

use anyhow::ensure;
use fanout_e2e::{Fanout, exchange, operator, warm_up, with_operator};
use fanout_lab::WebSocket;
use serde_json::json;

#[tokio::test]
async fn alone_messages_flow_while_the_operator_is_killed_and_it_takes_up_its_work_again() {
    with_operator("operator-kill", async |namespace| {
        let fanout = Fanout::apply(namespace, "chat", json!({})).await?;
        let nodes = fanout.ready(2).await?;
        let mut clients = fanout.clients(&nodes).await?;
        warm_up(&mut clients).await?;
        operator::kill(namespace.cluster()).await?;
        for _ in 0..10 {
            exchange(&mut clients).await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        operator::ready(namespace.cluster()).await?;
        fanout.grow(&nodes, 3).await?;
        ensure!(clients.iter().all(WebSocket::is_open), "a client was disconnected");
        exchange(&mut clients).await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_deleted_cluster_leaves_nothing_but_the_volume_it_was_told_to_keep() {
    with_operator("delete", async |namespace| {
        let redis = json!({"managed": {"storage": {"size": "1Gi"}}});
        let fanout = Fanout::apply(namespace, "chat", json!({"redis": redis})).await?;
        fanout.ready(2).await?;
        namespace.exec("chat-redis-0", None, &["redis-cli", "SET", "kept", "yes"]).await?;
        // The log is written to disk once a second.
        tokio::time::sleep(Duration::from_secs(2)).await;
        namespace.kubectl(&["delete", "foc", "chat", "--timeout=60s"]).await?;
        fanout.gone().await?;
        let claims = namespace.kubectl(&["get", "pvc", "-o", "name"]).await?;
        ensure!(claims.trim() == "persistentvolumeclaim/chat-redis", "claims left: {claims:?}");

        let fanout =
            Fanout::apply(namespace, "chat", json!({"redis": {"managed": {"storage": {"size": "1Gi"}}}}))
                .await?;
        fanout.ready(2).await?;
        let kept = namespace.exec("chat-redis-0", None, &["redis-cli", "GET", "kept"]).await?;
        ensure!(kept.trim() == "yes", "the data did not outlive the cluster: {kept:?}");
        Ok(())
    })
    .await;
}
