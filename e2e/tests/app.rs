//! The user's own containers beside the sidecar.

use std::time::Duration;

use anyhow::ensure;
use fanout_e2e::{Fanout, pods::container, with_operator};
use serde_json::json;

/// Publishes once a second, with nothing but what the operator put into its environment.
const APP: &str = r#"
while sleep 1; do
  timeout 5 wget -q -O - --header="X-API-Key: $FANOUT_API_KEY" --header="Content-Type: application/json" \
    --post-data="{\"channel\":\"lobby\",\"data\":{\"from\":\"$HOSTNAME\"}}" "$FANOUT_API_URL/api/publish"
done"#;

#[tokio::test]
async fn an_app_container_publishes_over_localhost_to_the_clients_of_another_node() {
    with_operator("app", async |namespace| {
        let mut app = container(APP, "10m");
        app["name"] = "app".into();
        let spec = json!({"replicas": 2, "podTemplate": {"spec": {"containers": [app]}}});
        let fanout = Fanout::apply(namespace, "chat", spec).await?;
        let nodes = fanout.ready(2).await?;
        let hub = nodes[0].object.pointer("/spec/initContainers/0/name").and_then(|name| name.as_str());
        ensure!(hub == Some("fanout"), "the hub is not the first native sidecar: {hub:?}");
        let mut clients = fanout.clients(&nodes).await?;
        for (client, publisher) in clients.iter_mut().zip(nodes.iter().rev()) {
            let expected = format!(r#"{{"from":"{}"}}"#, publisher.name);
            namespace
                .until("the other node's app to be heard", Duration::from_secs(20), async || {
                    Ok((client.next_text(Duration::from_secs(5)).await? == expected).then_some(()))
                })
                .await?;
        }
        Ok(())
    })
    .await;
}
