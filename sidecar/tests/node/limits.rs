//! What one connection and one node may do at most.

use reqwest::StatusCode;
use serde_json::json;

use crate::support::{Setup, eventually, with_sidecar};

#[tokio::test(flavor = "multi_thread")]
async fn a_full_node_refuses_until_somebody_leaves() {
    with_sidecar(Setup::open().live("hub", json!({"maxConnections": 2})), async |node| {
        let first = node.connect("/ws/lobby").await;
        let _second = node.connect("/ws/lobby").await;
        let (status, body) = node.try_connect("/ws/lobby", &[]).await.map(drop).unwrap_err();
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
        drop(first);
        let again = async || node.try_connect("/ws/lobby", &[]).await.ok().map(drop);
        eventually("a place is free", again).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_above_the_limit_ends_the_connection_and_one_at_the_limit_does_not() {
    with_sidecar(Setup::open().live("hub", json!({"maxMessageBytes": 1_000})), async |node| {
        let mut client = node.connect("/ws/lobby").await;
        client.send(&"x".repeat(1_000)).await;
        assert_eq!(client.text().await.len(), 1_000);
        client.send(&"x".repeat(1_001)).await;
        assert_eq!(client.closed().await.0, 1009);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_names_and_headers_are_bounded() {
    let limits =
        json!({"limits": {"channelsPerConnection": 2, "channelNameBytes": 10, "headerBytes": 2_000}});
    with_sidecar(Setup::open().live("hub", limits), async |node| {
        let mut client = node.framed("/ws?channel=lobby&channel=room-1").await;
        client.json().await;
        client.json().await;
        client.send_json(&json!({"subscribe": {"channel": "room-2"}})).await;
        assert_eq!(client.json().await["error"]["code"], 106);
        client.send_json(&json!({"publish": {"channel": "room-34567890", "data": 1, "id": "1"}})).await;
        assert_eq!(client.json().await["error"]["code"], 107);
        let long = [("x-padding", "x".repeat(3_000))];
        let long: Vec<_> = long.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (status, _) = node.try_connect("/ws/lobby", &long).await.map(drop).unwrap_err();
        assert_eq!(status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_publishes_too_fast_is_told_and_others_are_not_concerned() {
    let limited = json!([{
        "name": "default", "publish": "allowed", "subscribe": "allowed",
        "rateLimit": {"publishesPerSecond": 1, "burst": 5},
    }]);
    with_sidecar(Setup::open().live("namespaces", limited), async |node| {
        let mut fast = node.framed("/ws/lobby").await;
        fast.json().await;
        for number in 0..10 {
            fast.send_json(
                &json!({"publish": {"channel": "room-1", "data": number, "id": number.to_string()}}),
            )
            .await;
        }
        let mut codes = Vec::new();
        for _ in 0..10 {
            codes.push(fast.json().await["error"]["code"].as_u64());
        }
        assert!(codes.iter().filter(|code| **code == Some(111)).count() >= 4, "{codes:?}");
        assert!(codes.iter().filter(|code| code.is_none()).count() >= 5, "{codes:?}");
        let mut other = node.connect("/ws/room-2").await;
        other.send("1").await;
        assert_eq!(other.text().await, "1");
    })
    .await;
}
