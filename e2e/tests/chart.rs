//! The chart: installed, tested by its own test, taken away.

use anyhow::ensure;
use fanout_e2e::{Fanout, PodSecurity, exchange, in_namespace, operator, warm_up, with_operator};
use serde_json::json;

#[tokio::test]
async fn the_charts_own_test_passes() {
    with_operator("helm-test", async |namespace| {
        let args =
            ["test", operator::RELEASE, "--namespace", operator::NAMESPACE, "--timeout", "150s", "--logs"];
        let printed = namespace.cluster().helm(&args).await?;
        eprintln!("{printed}");
        Ok(())
    })
    .await;
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
        fanout.scale(3).await?;
        let grown = fanout.ready(3).await?;
        ensure!(nodes.iter().all(|pod| grown.iter().any(|node| node.uid == pod.uid)), "pods were replaced");
        exchange(&mut clients).await?;
        Ok(())
    })
    .await;
}
