//! What an operator of the node looks at when it is slow: latencies, profiles, the dump.

use std::{
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use prometheus_client::encoding::prometheus_protobuf::prometheus_data_model::MetricFamily;
use prost::{Message, bytes::Bytes};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    binary::Program,
    support::{KEY, Setup, eventually, http, with_sidecar},
};

const PROTOBUF: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.9,*/*;q=0.1";

#[tokio::test(flavor = "multi_thread")]
async fn every_delivery_is_timed_from_its_publishing_by_namespace() {
    with_sidecar(Setup::open().boot("runtime", json!({"shards": 1})), async |node| {
        let mut clients = [node.connect("/ws/lobby").await, node.connect("/ws/lobby").await];
        let mut slow = node.framed("/ws/lobby").await;
        slow.json().await;
        for number in 0..20 {
            node.publish("lobby", &json!(number)).await;
        }
        for client in &mut clients {
            for _ in 0..20 {
                client.text().await;
            }
        }
        for _ in 0..20 {
            slow.json().await;
        }
        node.until_metric("fanout_node_delivery_seconds_count{namespace=\"default\"}", 60.0).await;
        let metric = |name: &str| node.metric(name).unwrap_or_else(|| panic!("{name}"));
        let bucket = |le: &str| {
            metric(&format!("fanout_node_delivery_seconds_bucket{{le=\"{le}\",namespace=\"default\"}}"))
        };
        assert_eq!(bucket("+Inf"), 60.0);
        assert!(bucket("30.0") == 60.0 && bucket("0.00005") <= bucket("0.001"), "classic buckets add up");
        let sum = metric("fanout_node_delivery_seconds_sum{namespace=\"default\"}");
        assert!(sum > 0.0 && sum < 60.0 * 30.0, "{sum}");
        assert_eq!(metric("fanout_node_queue_lag_seconds_count"), 20.0);
        // The nodes' own messages come from the broker too.
        assert!(metric("fanout_broker_lag_seconds_count") >= 20.0);
        assert!(metric("fanout_shard_turn_seconds_count") > 0.0);
        assert!(metric("fanout_shard_longest_turn_seconds{shard=\"0\"}") > 0.0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prometheus_that_prefers_protobuf_gets_native_histograms() {
    with_sidecar(Setup::open(), async |node| {
        let mut client = node.connect("/ws/lobby").await;
        client.send("1").await;
        client.text().await;
        node.until_metric("fanout_node_delivery_seconds_count{namespace=\"default\"}", 1.0).await;
        let response =
            http().get(node.admin_url("/metrics")).header("accept", PROTOBUF).send().await.unwrap();
        assert!(
            response.headers()["content-type"]
                .to_str()
                .unwrap()
                .starts_with("application/vnd.google.protobuf")
        );
        let mut page: Bytes = response.bytes().await.unwrap();
        let mut families = Vec::new();
        while !page.is_empty() {
            families.push(MetricFamily::decode_length_delimited(&mut page).unwrap());
        }
        let family = families.iter().find(|family| family.name == "fanout_node_delivery_seconds").unwrap();
        let metric = family
            .metric
            .iter()
            .find(|metric| {
                metric.label.iter().any(|label| label.name == "namespace" && label.value == "default")
            })
            .unwrap();
        let histogram = metric.histogram.as_ref().unwrap();
        assert_eq!((histogram.schema, histogram.sample_count), (3, 1));
        assert_eq!(histogram.positive_span.len(), 1, "one delivery is in one bucket");
        assert_eq!(histogram.positive_delta, [1]);
        // The bucket that Prometheus takes it to be in is the one that it took so long for.
        let bound = f64::from(histogram.positive_span[0].offset).exp2().powf(1.0 / 8.0);
        assert!(histogram.sample_sum <= bound && bound <= histogram.sample_sum * 1.2, "{histogram:?}");
        assert!(!histogram.bucket.is_empty(), "classic buckets are there too");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_are_not_timed_where_nobody_wants_to_know() {
    let setup = Setup::open().boot("runtime", json!({"shards": 1, "timeDeliveries": false}));
    with_sidecar(setup, async |node| {
        let mut client = node.connect("/ws/lobby").await;
        client.send("1").await;
        client.text().await;
        node.until_metric("fanout_transport_messages_sent_total", 1.0).await;
        assert_eq!(node.metric("fanout_node_delivery_seconds_count{namespace=\"default\"}"), None);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_namespace_is_timed_too() {
    with_sidecar(Setup::open(), async |node| {
        let namespaces = json!([{"name": "news", "publish": "allowed", "subscribe": "allowed"}]);
        node.change("namespaces", namespaces);
        let mut client =
            eventually("the namespace is there", async || node.try_connect("/ws/news:today", &[]).await.ok())
                .await;
        client.send("1").await;
        client.text().await;
        node.until_metric("fanout_node_delivery_seconds_count{namespace=\"news\"}", 1.0).await;
        assert_eq!(node.metric("fanout_node_delivery_seconds_count{namespace=\"default\"}"), Some(0.0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_tells_what_shards_and_threads_do() {
    with_sidecar(Setup::open().boot("runtime", json!({"shards": 2})), async |node| {
        let _client = node.connect("/ws/lobby").await;
        let (status, text) = node.admin("/debug/dump").await;
        assert_eq!(status, StatusCode::OK);
        let dump: Value = serde_json::from_str(&text).unwrap();
        let shards = dump["shards"].as_array().unwrap();
        assert_eq!(shards.len(), 2);
        assert_eq!(shards.iter().map(|shard| shard["connections"].as_u64().unwrap()).sum::<u64>(), 1);
        for shard in shards {
            let stages = ["poll", "mail", "read", "timers", "visits"];
            assert!(stages.contains(&shard["stage"].as_str().unwrap()), "{shard}");
        }
        let threads = dump["threads"].as_array().unwrap();
        let names: Vec<_> = threads.iter().map(|thread| thread["name"].as_str().unwrap()).collect();
        assert!(names.contains(&"shard-0") && names.contains(&"shard-1"), "{names:?}");
        assert!(dump["runtimes"]["client"]["workers"].as_u64() > Some(0), "{dump}");
    })
    .await;
}

/// Publishes until it is told to stop.
async fn keep_busy(program: &Program, stop: &AtomicBool) {
    let url = format!("http://{}/api/publish", program.addresses.api);
    let client = http();
    while !stop.load(Ordering::Relaxed) {
        let body = json!({"channel": "lobby", "data": "x".repeat(10_000)});
        client.post(&url).header("X-API-Key", KEY).json(&body).send().await.unwrap();
    }
}

/// What `go tool pprof` prints of a profile that it fetches itself.
async fn go_tool_pprof(program: &Program, path: &str) -> String {
    let url = format!("http://{}/debug/pprof/{path}", program.addresses.admin);
    let directory = program.directory.path().to_owned();
    let run = move || {
        let mut command = Command::new("go");
        command.args(["tool", "pprof", "-top", "-cum", "-nodecount=400", "-timeout=60", &url]);
        command.env("PPROF_TMPDIR", &directory).output().expect("Go is installed, for `go tool pprof`")
    };
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn go_tool_pprof_opens_profiles_of_cpu_and_heap_and_shows_names() {
    let program = Program::start(&Setup::open()).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(program.connect("/ws/lobby").await);
    }
    for mut client in clients {
        tokio::spawn(async move {
            loop {
                client.text().await;
            }
        });
    }
    let page = http().get(format!("http://{}/metrics", program.addresses.admin)).send().await.unwrap();
    let page = page.text().await.unwrap();
    assert!(page.contains("process_allocator_bytes{kind=\"allocated\"} "), "{page}");
    let allocations = page.lines().find_map(|line| line.strip_prefix("process_allocations_total "));
    // Each of the connections needed some.
    assert!(allocations.is_some_and(|count| count.parse::<u64>().unwrap() > 20), "{page}");
    let stop = AtomicBool::new(false);
    let look = async {
        let cpu = go_tool_pprof(&program, "profile?seconds=3").await;
        assert!(cpu.contains("Type: cpu"), "{cpu}");
        assert!(cpu.contains("shard::reactor::Reactor"), "{cpu}");
        let allocated = go_tool_pprof(&program, "allocs").await;
        assert!(
            allocated.contains("Type: alloc_space") && allocated.contains("fanout_sidecar"),
            "{allocated}"
        );
        let heap = go_tool_pprof(&program, "heap").await;
        assert!(heap.contains("Type: inuse_space"), "{heap}");
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(keep_busy(&program, &stop), look);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_profile_is_taken_at_a_time_and_of_a_time_that_makes_sense() {
    let program = Program::start(&Setup::open()).await;
    let get = async |path: &str| {
        let url = format!("http://{}/debug/pprof/{path}", program.addresses.admin);
        let response = http().get(url).send().await.unwrap();
        (response.status(), response.bytes().await.unwrap())
    };
    let second = async {
        sleep(Duration::from_millis(500)).await;
        get("heap").await
    };
    let (first, (status, text)) = tokio::join!(get("profile?seconds=2"), second);
    assert_eq!(first.0, StatusCode::OK);
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{}", text.escape_ascii());
    for seconds in ["0", "301"] {
        let (status, text) = get(&format!("profile?seconds={seconds}")).await;
        assert_eq!((status, &*text), (StatusCode::BAD_REQUEST, &b"seconds: give 1 to 300\n"[..]));
    }
}
