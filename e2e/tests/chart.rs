//! The chart: installed, tested by its own test, upgraded, confined to a namespace, taken away.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use fanout_e2e::{
    Fanout, PodSecurity, Refusals, exchange, in_namespace, operator, pods::IMAGE, warm_up, with_operator,
};
use fanout_lab::{Cluster, Namespace, Pod, WebSocket, await_condition, pods};
use serde_json::{Value, json};

/// For the operator to put back what was deleted.
const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn the_charts_own_test_passes() {
    with_operator("helm-test", async |namespace| {
        leave_what_a_killed_test_leaves(namespace.cluster()).await?;
        let args =
            ["test", operator::RELEASE, "--namespace", operator::NAMESPACE, "--timeout", "150s", "--logs"];
        let printed = namespace.cluster().helm(&args).await?;
        eprintln!("{printed}");
        Ok(())
    })
    .await;
}

/// The next test must remove it.
async fn leave_what_a_killed_test_leaves(cluster: &Cluster) -> Result<()> {
    let left = json!({
        "apiVersion": "fanout.dev/v1alpha1",
        "kind": "FanoutCluster",
        "metadata": {
            "name": "fanout-helm-test",
            "namespace": operator::NAMESPACE,
            "labels": {"fanout.dev/helm-test": "true"},
        },
        "spec": {"replicas": 1, "redis": {"memory": {}}},
    });
    cluster.try_kubectl(&["apply", "-f", "-"], Some(&left.to_string())).await?.ok("kubectl apply").map(drop)
}

#[tokio::test]
async fn alone_uninstalling_the_chart_leaves_clusters_serving_and_installing_it_again_takes_them_over() {
    // Not `with_operator`: helm takes the operator's rights before its pod has ended, and refusals are then in order.
    in_namespace("uninstall", PodSecurity::Restricted, async |namespace| {
        operator::install_once(namespace.cluster()).await?;
        let fanout = Fanout::apply(namespace, "chat", json!({})).await?;
        let nodes = fanout.ready(2).await?;
        let mut clients = fanout.clients(&nodes).await?;
        warm_up(&mut clients).await?;
        operator::uninstall(namespace.cluster()).await?;
        let definition = namespace.cluster().kubectl(&["get", "crd", "fanoutclusters.fanout.dev"]).await;
        let served = exchange(&mut clients).await;
        operator::install(namespace.cluster()).await?;
        definition?;
        served?;
        fanout.grow(&nodes, 3).await?;
        exchange(&mut clients).await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn alone_upgrading_the_chart_keeps_clusters_and_their_clients() {
    with_operator("upgrade", async |namespace| {
        let upgraded = upgrade(namespace).await;
        // Others go on with the chart's own values.
        operator::install(namespace.cluster()).await?;
        upgraded
    })
    .await;
}

async fn upgrade(namespace: &Namespace) -> Result<()> {
    let cluster = namespace.cluster();
    let fanout = Fanout::apply(namespace, "chat", json!({})).await?;
    let nodes = fanout.ready(2).await?;
    let mut clients = fanout.clients(&nodes).await?;
    warm_up(&mut clients).await?;
    let definition = definition(cluster).await?;
    let changes = ["--set", "replicas=2", "--set", "log.filter=fanout_operator=debug"];
    let (done, served) = tokio::join!(
        operator::upgrade(cluster, operator::RELEASE, operator::NAMESPACE, &changes),
        keep_talking(&mut clients),
    );
    done?;
    served?;
    let deployment = deployment(cluster).await?;
    ensure!(deployment["status"]["readyReplicas"] == 2, "not two operators: {}", deployment["status"]);
    ensure!(
        deployment.to_string().contains(r#"{"name":"FANOUT_LOG","value":"fanout_operator=debug"}"#),
        "{deployment}"
    );
    ensure!(self::definition(cluster).await? == definition, "the CRD is another one");
    // It is the new ones that do this.
    fanout.grow(&nodes, 3).await?;
    ensure!(clients.iter().all(WebSocket::is_open), "a client was disconnected");
    exchange(&mut clients).await.map(drop)
}

#[tokio::test]
async fn alone_lab_other_defaults_restart_nothing_until_the_spec_asks_for_it() {
    with_operator("defaults", async |namespace| {
        let moved = other_defaults(namespace).await;
        // Others go on with the chart's own values.
        operator::install(namespace.cluster()).await?;
        moved
    })
    .await;
}

/// Second names of the images that the lab has.
const OTHER_SIDECAR: &str = "registry.test/other/fanout-sidecar";
const OTHER_REDIS: &str = "registry.test/other/redis:moved";

async fn other_defaults(namespace: &Namespace) -> Result<()> {
    let cluster = namespace.cluster();
    let fanout = Fanout::apply(namespace, "chat", json!({})).await?;
    let nodes = fanout.ready(2).await?;
    let mut clients = fanout.clients(&nodes).await?;
    warm_up(&mut clients).await?;
    let sidecar = image(&nodes[0])?;
    let (_, version) = sidecar.rsplit_once(':').context("an image without a tag")?;
    cluster.tag_image(sidecar, &format!("{OTHER_SIDECAR}:{version}")).await?;
    cluster.tag_image(IMAGE, OTHER_REDIS).await?;
    let before = standing(namespace).await?;

    let [sidecar, redis] =
        [format!("defaults.sidecarRepository={OTHER_SIDECAR}"), format!("defaults.redisImage={OTHER_REDIS}")];
    operator::upgrade(cluster, operator::RELEASE, operator::NAMESPACE, &["--set", &sidecar, "--set", &redis])
        .await?;
    leads_with(cluster, OTHER_REDIS).await?;
    // What it puts back it has reconciled.
    let service = namespace.get(&["service", "chat-api"]).await?;
    namespace.kubectl(&["delete", "service", "chat-api", "--wait=false"]).await?;
    namespace
        .until("the Service to be put back", SOON, async || {
            let now = namespace.get(&["service", "chat-api"]).await?;
            Ok((now["metadata"]["uid"] != service["metadata"]["uid"]).then_some(()))
        })
        .await?;
    for _ in 0..10 {
        exchange(&mut clients).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = standing(namespace).await?;
        ensure!(before == now, "before:\n{before:#?}\nnow:\n{now:#?}");
    }

    fanout.patch(json!({"spec": {"restartedAt": "2026-01-31T12:00:00Z"}})).await?;
    let restarted = fanout.ready(2).await?;
    for node in &restarted {
        ensure!(nodes.iter().all(|former| former.uid != node.uid), "{} is an old node", node.name);
        ensure!(image(node)? == format!("{OTHER_SIDECAR}:{version}"), "it runs {}", image(node)?);
    }
    let redis = "chat-redis-0";
    ensure!(standing(namespace).await?.get(redis) == before.get(redis), "the Redis was restarted");

    let larger = json!({"resources": {"limits": {"memory": "129Mi"}}});
    fanout.patch(json!({"spec": {"redis": {"managed": larger}}})).await?;
    namespace
        .until("the Redis to be of the new default", Duration::from_secs(90), async || {
            let redis = pods(namespace, "fanout.dev/redis=chat").await?;
            Ok(redis
                .iter()
                .any(|pod| pod.ready && image(pod).is_ok_and(|image| image == OTHER_REDIS))
                .then_some(()))
        })
        .await?;
    // The nodes connect to it with back-off, and close a bare client whose message Redis does not get meanwhile.
    let mut clients = namespace
        .until("messages to go through the new Redis", Duration::from_secs(60), async || {
            let mut clients = fanout.clients(&fanout.ready(2).await?).await?;
            Ok(warm_up(&mut clients).await.is_ok().then_some(clients))
        })
        .await?;
    exchange(&mut clients).await.map(drop)
}

/// Every pod with the restarts of its containers, and every set with the generation of its spec, each with its unique id.
async fn standing(namespace: &Namespace) -> Result<BTreeMap<String, String>> {
    let pods = pods(namespace, "app.kubernetes.io/instance=chat").await?.into_iter();
    let pods = pods.map(|pod| (pod.name, format!("pod {}, {} restarts", pod.uid, pod.restarts)));
    let mut list = namespace.get(&["replicasets,statefulsets"]).await?;
    let sets = list["items"].as_array_mut().map(std::mem::take).context("a list without items")?;
    let sets = sets.into_iter().map(|set| {
        let metadata = &set["metadata"];
        let text = format!("set {}, generation {}", metadata["uid"], metadata["generation"]);
        (metadata["name"].to_string(), text)
    });
    Ok(pods.chain(sets).collect())
}

/// Image of a pod's first container.
fn image(pod: &Pod) -> Result<&str> {
    pod.object.pointer("/spec/containers/0/image").and_then(Value::as_str).context("a pod without an image")
}

/// Waits until the operator that leads was started with `setting`.
async fn leads_with(cluster: &Cluster, setting: &str) -> Result<()> {
    let name = deployment(cluster).await?["metadata"]["name"].take();
    let name = name.as_str().context("a Deployment without a name")?.to_owned();
    await_condition("the new operator to lead", Duration::from_secs(60), async || {
        let of = ["--namespace", operator::NAMESPACE];
        let lease = cluster.kubectl_json(&[&["get", "lease", &name][..], &of].concat()).await?;
        let holder = lease["spec"]["holderIdentity"].as_str().context("nobody leads")?;
        let pod = cluster.kubectl_json(&[&["get", "pod", holder][..], &of].concat()).await?;
        Ok(pod["spec"].to_string().contains(setting).then_some(()))
    })
    .await
}

/// Messages both ways for a few seconds.
async fn keep_talking(clients: &mut [WebSocket]) -> Result<()> {
    for _ in 0..20 {
        exchange(clients).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// The unique id of the CRD.
async fn definition(cluster: &Cluster) -> Result<Value> {
    let mut object = cluster.kubectl_json(&["get", "crd", "fanoutclusters.fanout.dev"]).await?;
    Ok(object["metadata"]["uid"].take())
}

async fn deployment(cluster: &Cluster) -> Result<Value> {
    let args = ["get", "deployments", "--namespace", operator::NAMESPACE, "-l", operator::SELECTOR];
    let mut list = cluster.kubectl_json(&args).await?;
    Ok(list["items"][0].take())
}

#[tokio::test]
async fn alone_an_operator_confined_to_a_namespace_leaves_the_others_alone() {
    in_namespace("watched", PodSecurity::Restricted, async |namespace| {
        let cluster = namespace.cluster();
        operator::install_once(cluster).await?;
        let home = cluster.namespace("confined", true).await?;
        let elsewhere = cluster.namespace("unwatched", true).await?;
        // It watches every namespace, so the second would wait for it.
        operator::uninstall(cluster).await?;
        let confined = confined(namespace, &home, &elsewhere).await;
        let removed = operator::uninstall_release(cluster, CONFINED, home.name()).await;
        // Else the first waits a minute until the second's time is over.
        let lease = ["delete", "lease", "fanoutclusters.fanout.dev", "--namespace", namespace.name()];
        cluster.kubectl(&lease).await.context("the operator held no Lease of its namespace")?;
        operator::install(cluster).await?;
        confined?;
        removed?;
        // That nobody cared was the confinement's doing, not the object's.
        Fanout::at(&elsewhere, "chat").ready(1).await.map(drop)
    })
    .await;
}

/// Name of the confined operator's release.
const CONFINED: &str = "confined";

async fn confined(namespace: &Namespace, home: &Namespace, elsewhere: &Namespace) -> Result<()> {
    let cluster = namespace.cluster();
    let account = format!("system:serviceaccount:{}:", home.name());
    let refusals = Refusals::from_now_on(cluster, &account)?;
    let watched = format!("watchNamespaces={{{}}}", namespace.name());
    // The CRD belongs to the first release.
    let values = ["--install", "--set", &watched, "--set", "crds.enabled=false"];
    operator::upgrade(cluster, CONFINED, home.name(), &values).await?;

    Fanout::apply(elsewhere, "chat", json!({"replicas": 1})).await?;
    let fanout = Fanout::apply(namespace, "chat", json!({})).await?;
    let nodes = fanout.ready(2).await?;
    let mut clients = fanout.clients(&nodes).await?;
    warm_up(&mut clients).await?;
    exchange(&mut clients).await?;

    let ignored = Fanout::at(elsewhere, "chat").object().await?;
    ensure!(ignored.get("status").is_none(), "it was reconciled: {}", ignored["status"]);
    Fanout::at(elsewhere, "chat").gone().await.context("children where the operator has no business")?;
    let account_name = format!("{account}{CONFINED}-operator");
    const CLUSTERS: &str = "fanoutclusters.fanout.dev";
    ensure!(
        may(namespace, &account_name, "list", CLUSTERS).await?,
        "its Role does not let it list FanoutClusters"
    );
    ensure!(!may(elsewhere, &account_name, "list", CLUSTERS).await?, "its rights reach beyond its namespace");
    ensure!(may(namespace, &account_name, "get", "nodes").await?, "it cannot tell whether a node is lost");
    ensure!(
        !may(namespace, &account_name, "list", "nodes").await?,
        "its rights on nodes are more than `get`"
    );
    refusals.none()
}

async fn may(namespace: &Namespace, account: &str, verb: &str, resource: &str) -> Result<bool> {
    let who = format!("--as={account}");
    let args = ["auth", "can-i", verb, resource, &who];
    Ok(namespace.try_kubectl(&args, None).await?.success)
}
