//! More and fewer nodes: by hand and by an autoscaler, with clients connected.

use std::time::Duration;

use anyhow::{Result, ensure};
use fanout_e2e::{Fanout, exchange, pods::container, warm_up, with_operator};
use fanout_lab::{Frame, Namespace, WebSocket};
use serde_json::{Value, json};

#[tokio::test]
async fn kubectl_scale_adds_nodes_and_takes_them_out_without_a_lost_message_for_those_who_stay() {
    with_operator("scale", async |namespace| {
        let fanout = Fanout::apply(namespace, "chat", json!({"replicas": 2})).await?;
        fanout.ready(2).await?;
        fanout.scale(5).await?;
        let five = fanout.ready(5).await?;
        let mut clients = fanout.clients(&five).await?;
        warm_up(&mut clients).await?;
        exchange(&mut clients).await?;

        fanout.scale(2).await?;
        let left = fanout.ready(2).await?;
        let (mut stayed, gone): (Vec<_>, Vec<_>) =
            five.iter().zip(clients).partition(|(pod, _)| left.iter().any(|node| node.uid == pod.uid));
        ensure!(stayed.len() == 2, "{} clients stayed, not one a node", stayed.len());
        let events = fanout.events("ScaleDown").await?;
        for (pod, _) in &gone {
            ensure!(events.contains(&pod.name), "no Event names {}, which was removed:\n{events}", pod.name);
        }
        for (pod, mut client) in gone {
            asked_to_reconnect(&mut client).await.map_err(|error| error.context(pod.name.clone()))?;
        }
        let mut stayed: Vec<_> = stayed.drain(..).map(|(_, client)| client).collect();
        exchange(&mut stayed).await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn an_autoscaler_grows_a_busy_cluster_and_shrinks_it_when_idle() {
    with_operator("autoscale", async |namespace| {
        let app = json!({"spec": {"containers": [container("exec sleep 3600", "10m")]}});
        let mut app = app;
        app["spec"]["containers"][0]["name"] = "app".into();
        let fanout = Fanout::apply(namespace, "chat", json!({"replicas": 1, "podTemplate": app})).await?;
        let nodes = fanout.ready(1).await?;
        namespace.apply(&autoscaler("chat").to_string()).await?;
        let busy = nodes[0].name.as_str();
        namespace.exec(busy, Some("app"), &["sh", "-c", "yes >/dev/null 2>&1 &"]).await?;
        replicas(namespace, &fanout, |count| count >= 2, "more than one node").await?;
        // The busy pod may be the one that is taken out; a process that is gone is idle, too.
        let kill = ["exec", busy, "-c", "app", "--", "sh", "-c", "kill $(pidof yes)"];
        namespace.try_kubectl(&kill, None).await?;
        replicas(namespace, &fanout, |count| count == 1, "one node").await?;
        Ok(())
    })
    .await;
}

async fn replicas(
    namespace: &Namespace,
    fanout: &Fanout<'_>,
    is_met: impl Fn(u64) -> bool,
    what: &str,
) -> Result<()> {
    let what = format!("{} to have {what}", fanout.name());
    namespace
        .until(&what, Duration::from_secs(150), async || {
            let object = fanout.object().await?;
            Ok(object["status"]["readyReplicas"].as_u64().filter(|count| is_met(*count)).map(drop))
        })
        .await
}

async fn asked_to_reconnect(client: &mut WebSocket) -> Result<()> {
    loop {
        match client.next_timed(Duration::from_secs(5)).await?.1 {
            Frame::Closed(Some((1012, _))) => return Ok(()),
            Frame::Closed(other) => anyhow::bail!("closed with {other:?} instead of 1012"),
            Frame::Text(_) | Frame::Binary(_) => {}
        }
    }
}

/// Keeps the nodes' mean CPU at 100m: one busy container is at its limit of 200m.
fn autoscaler(name: &str) -> Value {
    json!({
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": {"apiVersion": "fanout.dev/v1alpha1", "kind": "FanoutCluster", "name": name},
            "minReplicas": 1,
            "maxReplicas": 3,
            "metrics": [{
                "type": "Resource",
                "resource": {"name": "cpu", "target": {"type": "AverageValue", "averageValue": "100m"}},
            }],
        },
    })
}
