//! Changes of a running cluster: those that need new pods, those that do not, and those that cannot work.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fanout_e2e::{Fanout, exchange, open_lobby, pods::container, warm_up, with_operator};
use fanout_lab::{Namespace, Pod, WebSocket, sample};
use serde_json::{Value, json};

/// A node that starts on a busy machine.
const DEADLINE: Duration = Duration::from_secs(90);

#[tokio::test]
async fn a_new_revision_replaces_every_node_and_never_serves_with_fewer() {
    with_operator("rollout", async |namespace| {
        let fanout = Fanout::apply(namespace, "chat", json!({})).await?;
        let old = fanout.ready(2).await?;
        fanout.patch(json!({"spec": {"resources": {"limits": {"memory": "257Mi"}}}})).await?;
        let what = "the nodes to be of the new revision";
        namespace
            .until(what, Duration::from_secs(150), async || {
                let nodes = fanout.nodes().await?;
                let ready = nodes.iter().filter(|pod| pod.ready).count();
                ensure!(ready >= 2, "only {ready} nodes are ready");
                let replaced = nodes.iter().all(|pod| old.iter().all(|former| former.uid != pod.uid));
                Ok((replaced && nodes.len() == 2).then_some(()))
            })
            .await?;
        let nodes = fanout.ready(2).await?;
        let mut clients = fanout.clients(&nodes).await?;
        warm_up(&mut clients).await?;
        exchange(&mut clients).await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_revision_that_cannot_start_stops_there_and_says_why() {
    with_operator("bad-image", async |namespace| {
        let fanout = Fanout::apply(namespace, "chat", json!({})).await?;
        let old = fanout.ready(2).await?;
        let mut clients = fanout.clients(&old).await?;
        warm_up(&mut clients).await?;
        fanout.patch(json!({"spec": {"image": {"tag": "no-such-tag"}}})).await?;
        let told = fanout.condition("Degraded", "True").await?;
        ensure!(told.reason == "ImagePullFailed", "told {told:?}");
        ensure!(told.message.contains("no-such-tag"), "the image is not named: {}", told.message);
        let nodes = fanout.nodes().await?;
        let kept = old.iter().all(|former| nodes.iter().any(|pod| pod.uid == former.uid && pod.ready));
        ensure!(kept, "an old pod was touched");
        ensure!(clients.iter().all(WebSocket::is_open), "a client was disconnected");
        exchange(&mut clients).await?;
        fanout.patch(json!({"spec": {"image": {"tag": null}}})).await?;
        fanout.condition("Degraded", "False").await?;
        let healed = fanout.ready(2).await?;
        ensure!(
            healed.iter().all(|pod| old.iter().any(|former| former.uid == pod.uid)),
            "pods were replaced"
        );
        exchange(&mut clients).await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_revision_that_never_becomes_ready_leaves_old_nodes_alone_even_while_one_is_not_ready() {
    with_operator("never-ready", async |namespace| {
        let fanout = Fanout::apply(namespace, "chat", json!({"podTemplate": app_ready_by("ready")})).await?;
        let old = fanout.ready(2).await?;
        let mut clients = fanout.clients(&old).await?;
        warm_up(&mut clients).await?;
        fanout.patch(json!({"spec": {"podTemplate": app_ready_by("never")}})).await?;
        namespace
            .until("a node of the new revision to run", DEADLINE, async || {
                let is_new = |pod: &Pod| old.iter().all(|former| former.uid != pod.uid);
                let runs = |pod: &Pod| is_new(pod) && pod.object["status"]["phase"] == "Running";
                Ok(fanout.nodes().await?.iter().any(runs).then_some(()))
            })
            .await?;

        let (blip, file) = (old[0].name.as_str(), "/run/app/ready");
        namespace.exec(blip, Some("app"), &["rm", file]).await?;
        ready_is(namespace, &fanout, blip, false).await?;
        sample("every old node's being in service", Duration::from_secs(15), async || {
            let nodes = fanout.nodes().await?;
            Ok(old.iter().all(|former| nodes.iter().any(|pod| pod.uid == former.uid && serves(pod))))
        })
        .await?;
        namespace.exec(blip, Some("app"), &["touch", file]).await?;
        ready_is(namespace, &fanout, blip, true).await?;

        // A node is given two minutes.
        let late = Duration::from_secs(180);
        let told = fanout.says("Degraded", "True", &["is not ready"], late).await?;
        ensure!(told.reason == "NotReadyInTime", "told {told:?}");
        let told = fanout.condition("Progressing", "False").await?;
        ensure!(told.reason == "RolloutStuck", "told {told:?}");
        ensure!(clients.iter().all(WebSocket::is_open), "a client was disconnected");
        exchange(&mut clients).await?;

        fanout.patch(json!({"spec": {"podTemplate": app_ready_by("ready")}})).await?;
        fanout.condition("Degraded", "False").await?;
        let healed = fanout.ready(2).await?;
        ensure!(
            healed.iter().all(|pod| old.iter().any(|former| former.uid == pod.uid)),
            "pods were replaced"
        );
        exchange(&mut clients).await?;
        Ok(())
    })
    .await;
}

fn serves(pod: &Pod) -> bool {
    pod.object.pointer("/metadata/labels/fanout.dev~1serving").is_some_and(|serving| serving == "true")
}

async fn ready_is(namespace: &Namespace, fanout: &Fanout<'_>, name: &str, ready: bool) -> Result<()> {
    let what = format!("{name} to be {}", if ready { "ready" } else { "not ready" });
    namespace
        .until(&what, DEADLINE, async || {
            let nodes = fanout.nodes().await?;
            let pod = nodes.iter().find(|pod| pod.name == name).context("it is gone")?;
            Ok((pod.ready == ready).then_some(()))
        })
        .await
}

/// A container of the user's that makes the file `ready` and is ready while `file` exists.
fn app_ready_by(file: &str) -> Value {
    let script = "touch /run/app/ready; trap 'exit 0' TERM; while sleep 1; do :; done";
    let mut app = container(script, "10m");
    app["name"] = "app".into();
    app["volumeMounts"] = json!([{"name": "run", "mountPath": "/run/app"}]);
    let command = json!(["sh", "-c", format!("test -e /run/app/{file}")]);
    app["readinessProbe"] = json!({"exec": {"command": command}, "periodSeconds": 1, "failureThreshold": 1});
    json!({"spec": {"containers": [app], "volumes": [{"name": "run", "emptyDir": {}}]}})
}

#[tokio::test]
async fn a_new_namespace_is_live_on_every_node_without_a_restart() {
    with_operator("hot", async |namespace| {
        let fanout = Fanout::apply(namespace, "chat", json!({})).await?;
        let old = fanout.ready(2).await?;
        let mut witness = open_lobby(&old[0]).await?;
        let url = Fanout::node_url(&old[1], "ws", "/ws/news:today")?;
        ensure!(WebSocket::try_open(&url, &[]).await.is_err(), "a channel of an unlisted namespace was open");
        let open = json!({"publish": "allowed", "subscribe": "allowed"});
        let mut namespaces = fanout.object().await?["spec"]["namespaces"].clone();
        let mut news = open;
        news["name"] = "news".into();
        namespaces.as_array_mut().expect("namespaces are a list").push(news);
        fanout.patch(json!({"spec": {"namespaces": namespaces}})).await?;
        for pod in &old {
            let url = Fanout::node_url(pod, "ws", "/ws/news:today")?;
            namespace
                .until("the namespace to be live", Duration::from_secs(125), async || {
                    WebSocket::try_open(&url, &[]).await.map(Some)
                })
                .await?;
        }
        ensure!(witness.is_open(), "a client was disconnected");
        warm_up(std::slice::from_mut(&mut witness)).await?;
        let now = fanout.nodes().await?;
        ensure!(now.iter().map(|pod| &pod.uid).eq(old.iter().map(|pod| &pod.uid)), "pods were replaced");
        ensure!(now.iter().all(|pod| pod.restarts == 0), "containers were restarted");
        Ok(())
    })
    .await;
}
