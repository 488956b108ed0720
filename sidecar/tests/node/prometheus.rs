//! What a real Prometheus makes of the metrics: the very configuration and queries of docs/observability.md.

use std::{fs, net::SocketAddr, path::Path};

use serde_json::{Value, json};

use crate::{
    service::Service,
    support::{Setup, eventually, http, with_sidecar},
};

const NATIVE: &str = "--enable-feature=native-histograms";

async fn prometheus(node: SocketAddr, features: &[&str]) -> Service {
    let configuration = "global: {scrape_interval: 500ms}\n\
        scrape_configs: [{job_name: fanout, static_configs: [{targets: ['127.0.0.1:8000']}]}]\n";
    let arguments =
        ["--config.file=DIR/conf", "--storage.tsdb.path=DIR/data", "--web.listen-address=127.0.0.1:8080"];
    Service::start("prometheus", &[&arguments, features].concat(), configuration, node).await
}

/// The value of a query that has one.
async fn value(prometheus: SocketAddr, query: &str) -> Option<f64> {
    let url = format!("http://{prometheus}/api/v1/query");
    let url = reqwest::Url::parse_with_params(&url, [("query", query)]).unwrap();
    // Until it has started it answers otherwise.
    let answer: Value = http().get(url).send().await.ok()?.json().await.ok()?;
    assert_eq!(answer["status"], "success", "{query}: {answer}");
    let value = answer["data"]["result"][0]["value"][1].as_str()?.parse().unwrap();
    Some(value).filter(|value: &f64| value.is_finite())
}

/// Lines of the documented queries that name `part`, for the namespace of this test.
fn query(part: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/observability.md");
    let text = fs::read_to_string(path).unwrap();
    let queries = text.split("```promql\n").nth(1).unwrap().split("```").next().unwrap();
    let line = queries.lines().find(|line| line.contains(part)).expect("a documented query");
    line.replace("namespace=\"chat\"", "namespace=\"default\"")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_takes_both_kinds_of_histograms_and_answers_the_documented_queries() {
    with_sidecar(Setup::open(), async |node| {
        let mut client = node.connect("/ws/lobby").await;
        let admin = node.app.addresses().admin;
        for (features, part) in [(&[NATIVE][..], "histogram_fraction"), (&[], "_bucket")] {
            let prometheus = prometheus(admin, features).await;
            let query = query(part);
            let answer = eventually("the query has an answer", async || {
                node.publish("lobby", &json!(1)).await;
                client.text().await;
                value(prometheus.address, &query).await
            })
            .await;
            // The fraction below 100 ms, and a percentile in seconds.
            assert!(answer > 0.0 && answer <= 20.0, "{query}: {answer}");
            assert_eq!(value(prometheus.address, "up{job=\"fanout\"}").await, Some(1.0));
        }
    })
    .await;
}
