//! What the nodes say of themselves: their `/metrics`, read every ten seconds, and for the first time as soon as they
//! run.
//!
//! The controller calls [`Scraper::ask`] every [`TICK`] and hears from [`Scraper::news`]; reconcile reads [`Reports`]. A report moves only when it says
//! something new (a flag flipped, a count changed by a twentieth, or half a minute passed), so that a busy cluster
//! does not turn into writes. A node that does not answer is an observation, never an error.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::ResourceExt;
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    controller::chain,
    metrics::{Metrics, Scrape},
};

/// Time between two rounds, in which those nodes are asked whose turn it is.
pub const TICK: Duration = Duration::from_secs(1);

/// Time between two looks at a node.
const INTERVAL: Duration = Duration::from_secs(10);

/// The same while a node has no broker.
const SOONER: Duration = Duration::from_secs(2);

/// A count that changed by less is reported after this long.
const SLOW_REPORT: Duration = Duration::from_secs(30);

/// A node that takes longer does not answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Nodes asked at one time; and as many of those that did not answer the last time, so that no node waits for the dead.
const AT_ONCE: usize = 32;

/// A page that is longer is not a node's.
const MAX_PAGE_BYTES: usize = 4 << 20;

/// What a node says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Whether it answered.
    pub answered: bool,
    /// Open client connections.
    pub connections: u64,
    /// Channels with a subscriber.
    pub channels: u64,
    /// Whether it has a connection to its broker; not known of a node that was not asked since its broker was away.
    pub broker_connected: Option<bool>,
    /// Whether its last canary came back.
    pub broker_verified: Option<bool>,
    /// The broker's access rules refuse its publications.
    pub publish_refused: bool,
    /// There are other nodes and none of them hears it.
    pub unheard: bool,
    /// Whether it refused its live settings.
    pub settings_rejected: bool,
    /// Number of settings that work and are hardly meant, and of secrets that it cannot read.
    pub settings_warnings: u64,
    /// Hash of the live settings it runs by.
    pub settings_hash: Option<String>,
    /// Whether its clients are leaving.
    pub draining: bool,
    /// Since when they all have left.
    pub drained_since: Option<Timestamp>,
}

/// The last report of each node, by the uid of its pod. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Reports(Arc<Mutex<HashMap<String, (Report, Instant)>>>);

/// Asks nodes.
pub struct Scraper {
    asker: Asker,
    /// When a pod was asked last, by its uid and by whether it was ready then.
    asked: HashMap<(String, bool), Instant>,
    asking: FuturesUnordered<BoxFuture<'static, (Arc<Pod>, bool)>>,
    /// Uids of the pods that are being asked.
    open: HashSet<String>,
    answering: Arc<Semaphore>,
    silent: Arc<Semaphore>,
}

/// What it takes to ask one node.
#[derive(Clone, Debug)]
struct Asker {
    client: Client<HttpConnector, Empty<bytes::Bytes>>,
    metrics: Metrics,
    reports: Reports,
}

// === impl Report ===

impl Report {
    /// Reads a page of metrics. A metric that is not there keeps its default.
    pub fn parse(page: &str) -> Self {
        let mut report = Self { answered: true, ..Self::default() };
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.split_once([' ', '{']) else { continue };
            // With labels the value stands behind the closing brace.
            let value = value.rsplit_once("} ").map_or(value, |(_, value)| value);
            let number = value.split(' ').next().and_then(|number| number.parse::<f64>().ok());
            let flag = number.map(|number| number > 0.0);
            match name {
                "fanout_node_connections" => report.connections += count(number),
                "fanout_node_channels" => report.channels += count(number),
                "fanout_broker_connected" => report.broker_connected = flag,
                "fanout_broker_verified" => report.broker_verified = flag,
                "fanout_broker_publish_refused" => report.publish_refused = flag == Some(true),
                "fanout_broker_unheard" => report.unheard = flag == Some(true),
                "fanout_settings_warnings" => report.settings_warnings = count(number),
                "fanout_settings_rejected" => report.settings_rejected = flag == Some(true),
                "fanout_drain_draining" => report.draining = flag == Some(true),
                "fanout_settings_info" => report.settings_hash = label(line, "hash"),
                _ => {}
            }
        }
        report
    }

    /// Whether the node answers and has its broker.
    fn is_well(&self) -> bool {
        self.answered && self.broker_connected == Some(true) && self.broker_verified == Some(true)
    }

    /// Whether `newer` should be told at once rather than in a while.
    fn differs_much(&self, newer: &Self) -> bool {
        let much = |old: u64, new: u64| old.abs_diff(new) * 20 > old.max(new) || (old == 0) != (new == 0);
        let flags = |report: &Self| Self { connections: 0, channels: 0, ..report.clone() };
        flags(self) != flags(newer)
            || much(self.connections, newer.connections)
            || much(self.channels, newer.channels)
    }
}

fn count(number: Option<f64>) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates, and counts are whole"
    )]
    number.map_or(0, |number| number as u64)
}

fn label(line: &str, name: &str) -> Option<String> {
    let (_, rest) = line.split_once(&format!("{name}=\""))?;
    rest.split_once('"').map(|(value, _)| value.to_owned())
}

// === impl Reports ===

impl Reports {
    /// What a node said last; `None` if it was never asked.
    pub fn of(&self, pod: &Pod) -> Option<Report> {
        let uid = pod.metadata.uid.as_deref()?;
        self.lock().get(uid).map(|(report, _)| report.clone())
    }

    /// The broker of this pod's node is away: what the node said of it before counts no more, and it is asked again
    /// soon.
    pub fn doubt(&self, pod: &Pod) {
        if let Some(uid) = pod.metadata.uid.as_deref()
            && let Some((report, _)) = self.lock().get_mut(uid)
        {
            (report.broker_connected, report.broker_verified) = (None, None);
        }
    }

    /// Takes a report over if it says something new, and tells whether it did.
    fn take(&self, uid: &str, mut report: Report, now: Instant) -> bool {
        let mut reports = self.lock();
        let before = reports.get(uid).and_then(|(known, _)| known.drained_since);
        let drained = report.answered && report.draining && report.connections == 0;
        report.drained_since = drained.then(|| before.unwrap_or_else(Timestamp::now));
        if let Some((known, since)) = reports.get(uid) {
            let late = now.duration_since(*since) >= SLOW_REPORT;
            if *known == report || !(late || known.differs_much(&report)) {
                return false;
            }
        }
        reports.insert(uid.to_owned(), (report, now));
        true
    }

    fn keep_only(&self, pods: &[Arc<Pod>]) {
        let alive: HashSet<_> = pods.iter().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        self.lock().retain(|uid, _| alive.contains(uid.as_str()));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Report, Instant)>> {
        // Each entry is replaced whole, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Scraper ===

impl Scraper {
    /// A scraper that fills `reports`.
    pub fn new(metrics: Metrics, reports: Reports) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(TIMEOUT));
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        let lane = || Arc::new(Semaphore::new(AT_ONCE));
        Self {
            asker: Asker { client, metrics, reports },
            asked: HashMap::new(),
            asking: FuturesUnordered::new(),
            open: HashSet::new(),
            answering: lane(),
            silent: lane(),
        }
    }

    /// Begins to ask those pods whose turn it is.
    pub fn ask(&mut self, pods: Vec<Arc<Pod>>) {
        self.asker.reports.keep_only(&pods);
        for pod in self.due(pods, Instant::now()) {
            let answered = self.asker.reports.of(&pod).is_none_or(|report| report.answered);
            let lane = if answered { &self.answering } else { &self.silent };
            let (lane, asker) = (lane.clone(), self.asker.clone());
            self.open.extend(pod.metadata.uid.clone());
            let asking = async move {
                let _place = lane.acquire().await;
                let news = asker.ask(&pod).await;
                (pod, news)
            };
            self.asking.push(asking.boxed());
        }
    }

    /// The next pod that says something new; `None` where the last that was asked does not. Dropping it loses nothing.
    pub async fn news(&mut self) -> Option<Arc<Pod>> {
        loop {
            let Some((pod, news)) = self.asking.next().await else { std::future::pending().await };
            if let Some(uid) = pod.metadata.uid.as_ref() {
                self.open.remove(uid);
            }
            if news || self.asking.is_empty() {
                return news.then_some(pod);
            }
        }
    }

    /// Whether nobody is being asked.
    pub fn is_idle(&self) -> bool {
        self.asking.is_empty()
    }

    /// A pod's turn comes every [`INTERVAL`], sooner while its node has no broker, and at once when it turns ready.
    fn due(&mut self, pods: Vec<Arc<Pod>>, now: Instant) -> Vec<Arc<Pod>> {
        self.asked.retain(|_, asked| now.duration_since(*asked) < INTERVAL);
        let mut due = pods;
        due.retain(|pod| {
            let Some(uid) = pod.metadata.uid.clone().filter(|_| metrics_address(pod).is_some()) else {
                return false;
            };
            if self.open.contains(&uid) {
                return false;
            }
            let well = self.asker.reports.of(pod).is_none_or(|report| report.is_well());
            let interval = if well { INTERVAL } else { SOONER };
            let turn = (uid, is_ready(pod));
            let is_due = self.asked.get(&turn).is_none_or(|asked| now.duration_since(*asked) >= interval);
            if is_due {
                self.asked.insert(turn, now);
            }
            is_due
        });
        due
    }
}

// === impl Asker ===

impl Asker {
    async fn ask(&self, pod: &Pod) -> bool {
        let Some(uid) = pod.metadata.uid.as_deref() else { return false };
        let Some(address) = metrics_address(pod) else { return false };
        let report = match self.fetch(&address).await {
            Ok(page) => {
                self.metrics.scraped(Scrape::Answered);
                Report::parse(&page)
            }
            Err(error) => {
                self.metrics.scraped(Scrape::Unreachable);
                tracing::debug!(pod = pod.name_any(), address, error = %chain(&*error), "node did not respond");
                Report::default()
            }
        };
        self.reports.take(uid, report, Instant::now())
    }

    async fn fetch(&self, address: &str) -> anyhow::Result<String> {
        let page = tokio::time::timeout(TIMEOUT, self.page(address)).await;
        page.unwrap_or_else(|_| anyhow::bail!("no answer within {} s", TIMEOUT.as_secs()))
    }

    async fn page(&self, address: &str) -> anyhow::Result<String> {
        let response = self.client.get(address.parse()?).await?;
        anyhow::ensure!(response.status().is_success(), "status {}", response.status());
        let body = Limited::new(response.into_body(), MAX_PAGE_BYTES).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
        Ok(String::from_utf8(body.into())?)
    }
}

/// Where a pod's metrics are; `None` where it does not run.
fn metrics_address(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    // Before, it has nothing to say; a pod that ends is asked as long as it answers.
    if status.phase.as_deref() != Some("Running") || !(is_ready(pod) || has_been_up(pod)) {
        return None;
    }
    let address: std::net::IpAddr = status.pod_ip.as_deref()?.parse().ok()?;
    let port = admin_port(pod)?;
    Some(format!("http://{}/metrics", std::net::SocketAddr::new(address, port)))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Whether the startup probes of a pod have passed.
fn has_been_up(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let init = status.and_then(|status| status.init_container_statuses.as_ref()).into_iter().flatten();
    let ordinary = status.and_then(|status| status.container_statuses.as_ref()).into_iter().flatten();
    init.chain(ordinary).any(|container| container.started == Some(true))
}

/// The port that the pod's sidecar calls `admin`: that of its own revision.
fn admin_port(pod: &Pod) -> Option<u16> {
    let spec = pod.spec.as_ref()?;
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let port = ports.find(|port| port.name.as_deref() == Some("admin"))?;
    u16::try_from(port.container_port).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_with_and_without_labels() {
        let page = "# TYPE fanout_node_connections gauge\nfanout_node_connections 12\nfanout_node_channels{shard=\"0\"} 3\n\
            fanout_node_channels{shard=\"1\"} 4\nfanout_broker_connected 1\nfanout_broker_verified 0\n\
            fanout_broker_publish_refused 1\nfanout_broker_unheard 0\nfanout_settings_warnings 2\n\
            fanout_settings_info{hash=\"ab12\"} 1\nfanout_settings_rejected 1 1700000000\nother 5\n# EOF\n";
        let report = Report::parse(page);
        let expected = Report {
            answered: true,
            connections: 12,
            channels: 7,
            broker_connected: Some(true),
            broker_verified: Some(false),
            publish_refused: true,
            unheard: false,
            settings_rejected: true,
            settings_warnings: 2,
            settings_hash: Some("ab12".to_owned()),
            draining: false,
            drained_since: None,
        };
        assert_eq!(report, expected);
    }

    #[test]
    fn a_small_change_is_told_in_a_while_and_a_large_one_at_once() {
        let begun = Instant::now();
        let report = |connections| Report { answered: true, connections, ..Report::default() };
        let reports = Reports::default();
        assert!(reports.take("a", report(1_000), begun));
        assert!(!reports.take("a", report(1_049), begun + INTERVAL));
        assert!(reports.take("a", report(1_049), begun + SLOW_REPORT));
        assert!(reports.take("a", report(1_200), begun + SLOW_REPORT));
        assert!(reports.take("a", report(0), begun + SLOW_REPORT));
        assert!(!reports.take("a", report(0), begun + SLOW_REPORT * 9), "it says nothing new");
    }

    #[test]
    fn what_a_node_said_of_its_broker_counts_no_more_once_that_is_away() {
        let (reports, now) = (Reports::default(), Instant::now());
        let said = Report {
            answered: true,
            broker_connected: Some(true),
            broker_verified: Some(true),
            ..Report::default()
        };
        assert!(reports.take("a", said.clone(), now));
        let mut pod = Pod::default();
        pod.metadata.uid = Some("a".to_owned());
        reports.doubt(&pod);
        let doubted = reports.of(&pod).unwrap();
        assert_eq!((doubted.broker_connected, doubted.is_well()), (None, false));
        assert!(reports.take("a", said, now), "the same is news then");
    }

    #[test]
    fn a_flag_that_flips_is_told_at_once() {
        let now = Instant::now();
        let report = |verified| Report { broker_verified: Some(verified), ..Report::default() };
        let reports = Reports::default();
        assert!(reports.take("a", report(true), now));
        assert!(reports.take("a", report(false), now));
    }

    fn pod(uid: &str, address: std::net::SocketAddr) -> Arc<Pod> {
        let admin = serde_json::json!({"name": "admin", "containerPort": address.port()});
        let pod = serde_json::json!({
            "metadata": {"name": uid, "uid": uid},
            "spec": {"containers": [{"name": "fanout", "ports": [admin]}]},
            "status": {"phase": "Running", "podIP": address.ip().to_string(), "conditions": [{"type": "Ready", "status": "True"}]},
        });
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    #[tokio::test]
    async fn why_a_node_does_not_answer_is_told_in_one_line_without_a_dump() {
        // Nobody listens at a port that was free a moment ago.
        let free =
            std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
        let refused = Scraper::new(Metrics::new(), Reports::default());
        let refused =
            refused.asker.fetch(&format!("http://{free}/metrics")).await.expect_err("nobody is there");
        let line = chain(&*refused);
        assert!(line.ends_with("Connection refused (os error 111)"), "{line}");
        assert!(!line.contains(['{', '\n', '"']), "{line}");
    }

    #[tokio::test]
    async fn a_node_that_answers_does_not_wait_for_a_hundred_that_do_not() {
        // The kernel accepts, and nobody ever answers.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let dead = |nth: usize| pod(&format!("dead-{nth}"), silent.local_addr().expect("an address"));
        let well = tokio::net::TcpListener::bind("[::1]:0").await.expect("a port");
        let address = well.local_addr().expect("an address");
        let page =
            axum::Router::new().route("/metrics", axum::routing::get(async || "fanout_node_connections 3\n"));
        let serving = tokio::spawn(async move { axum::serve(well, page).await });

        let reports = Reports::default();
        let mut scraper = Scraper::new(Metrics::new(), reports.clone());
        let dead: Vec<_> = (0..100).map(dead).collect();
        for pod in &dead {
            reports.take(pod.metadata.uid.as_deref().expect("a uid"), Report::default(), Instant::now());
        }
        let asked = Instant::now();
        for nth in 0..5 {
            let new = pod(&format!("well-{nth}"), address);
            scraper.ask(dead.iter().chain([&new]).cloned().collect());
            assert_eq!(scraper.news().await.and_then(|pod| pod.metadata.uid.clone()), new.metadata.uid);
            assert_eq!(reports.of(&new).map(|report| report.connections), Some(3));
        }
        assert!(asked.elapsed() < TIMEOUT, "{:?}", asked.elapsed());
        assert!(!scraper.is_idle(), "the dead are still being asked");
        serving.abort();
    }
}
