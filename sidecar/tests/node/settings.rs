//! Settings that change while clients stay.

use reqwest::StatusCode;
use serde_json::json;

use crate::support::{Setup, with_sidecar};

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_document_is_in_force_without_closing_a_connection() {
    with_sidecar(Setup::open(), async |node| {
        let mut client = node.connect("/ws/lobby").await;
        assert_eq!(node.try_connect("/ws/new:a", &[]).await.map(drop).unwrap_err().0, StatusCode::NOT_FOUND);
        let namespaces = json!([
            {"name": "default", "publish": "allowed", "subscribe": "allowed"},
            {"name": "new", "publish": "allowed", "subscribe": "allowed"},
        ]);
        node.change("namespaces", namespaces);
        // Seen by itself: nobody says that the file changed.
        node.until_metric("fanout_settings_reloads_total", 1.0).await;
        node.connect("/ws/new:a").await;
        client.send("still here").await;
        assert_eq!(client.text().await, "still here");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_is_no_longer_allowed_ends() {
    with_sidecar(Setup::open(), async |node| {
        let mut lobby = node.connect("/ws/lobby").await;
        let mut room = node.connect("/ws/room-1").await;
        let open =
            json!([{"name": "default", "channels": ["lobby"], "publish": "allowed", "subscribe": "allowed"}]);
        node.change("namespaces", open);
        node.app.reload();
        assert_eq!(room.closed().await.0, 3507);
        lobby.send("1").await;
        assert_eq!(lobby.text().await, "1");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_document_is_refused_whole_and_the_old_one_stays() {
    with_sidecar(Setup::open(), async |node| {
        let before = node.app.metrics();
        let hash = |page: &str| {
            page.lines().find(|line| line.starts_with("fanout_settings_info")).map(str::to_owned)
        };
        node.write_live("{namespaces: [], hub: {maxConnections: none}}");
        node.until_metric("fanout_settings_rejected", 1.0).await;
        assert_eq!(hash(&node.app.metrics()), hash(&before));
        let mut client = node.connect("/ws/lobby").await;
        client.send("1").await;
        assert_eq!(client.text().await, "1", "the namespaces of the bad document are not in force");
        node.change("logLevel", json!("debug"));
        node.until_metric("fanout_settings_rejected", 0.0).await;
        assert_ne!(hash(&node.app.metrics()), hash(&before));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_goes_missing_leaves_the_old_keys_in_force() {
    with_sidecar(Setup::open(), async |node| {
        std::fs::remove_file(node.directory.path().join("key")).unwrap();
        node.until_metric("fanout_settings_rejected", 1.0).await;
        node.publish("lobby", &json!("by the old key")).await;
    })
    .await;
}
