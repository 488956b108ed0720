//! Joins the parts to a node, and alone knows all of them.
//!
//! Three groups of threads: the shards, a tokio runtime `client` for the HTTP side of the client port, and the
//! runtime that calls [`App::start`], for all that may wait: admin, api, bridge, work. So probes and metrics answer
//! while the data plane is full.

mod inner;
mod listen;
mod memory;
mod ready;
mod settings;
mod threads;

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use serde_json::json;
use sidecar_config::{BootSettings, BrokerKind, DrainSettings, LiveSettings};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc, watch},
    task::{JoinSet, spawn_blocking},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{inner::Bounds, listen::Listeners, threads::Threads};
use crate::{
    admin::{self, Admin, BrokerRule, Readiness},
    api::{self, Api},
    auth::Auth,
    bridge::{self, Counts},
    broker::{self, Broker, Bus, Events},
    config::{Config, Live},
    domain::CommandError,
    drain::{self, DrainSignal, DrainWatch},
    http::{self, ClientPort},
    hub::Hub,
    metrics,
    profile::Allocator,
    shard::{self, Shards},
    telemetry::LogControl,
    work::{self, Desk, NodeRun, Publisher},
};

pub use listen::Addresses;

/// Work that may wait for the control runtime; beyond it a shard answers "overloaded".
const WORK_QUEUE: usize = 16_384;

/// The doors that answer what they have taken before the process ends.
const API_PORT: &str = "the API port";
const ADMIN_PORT: &str = "the admin port";

/// What backends keep open, and longer than they keep a connection that they do not use, so that they end it and not we.
const API_BOUNDS: Bounds = Bounds { connections: 512, patience: Duration::from_secs(75), half_close: true };
/// Probes, scrapers and the operator; a probe comes by a connection of its own and must not wait long for one that
/// somebody holds for nothing.
const ADMIN_BOUNDS: Bounds = Bounds { connections: 256, patience: Duration::from_secs(5), half_close: false };

/// What is still open when the process ends is not waited for any longer.
const STOP_TIME: Duration = Duration::from_secs(2);

/// What is not in the settings.
#[derive(Clone)]
pub struct Options {
    /// The node's name: the pod's.
    pub name: String,
    /// What is logged.
    pub log: LogControl,
    /// The bus of the memory broker: nodes of one process that share one are a cluster.
    pub bus: Option<Bus>,
    /// The allocator, if it tells of itself.
    pub allocator: Option<Arc<dyn Allocator>>,
    /// Host name that has the address of every node of the cluster, if there is one.
    pub nodes_service: Option<String>,
    /// Time after which the process is killed once it was told to end; `None` where nobody would.
    pub grace: Option<Duration>,
}

/// A running node.
pub struct App {
    addresses: Addresses,
    shards: Arc<Shards>,
    readiness: Readiness,
    signal: DrainSignal,
    drain: DrainWatch,
    live: watch::Receiver<Arc<LiveSettings>>,
    grace: Option<Duration>,
    reload: Arc<Notify>,
    metrics: metrics::Metrics,
    bridge: TaskTracker,
    bridge_died: CancellationToken,
    /// Ends the doors of backends and probes.
    closing: CancellationToken,
    /// Then ends what they lead to.
    shutdown: CancellationToken,
    tasks: JoinSet<&'static str>,
    http: ClientPort,
    client: Threads,
}

/// Error of a node that did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port cannot be bound.
    #[error("failed to listen on {address} ({field}): {source}{}", listen::hint(source))]
    Listen {
        /// The setting that names it.
        field: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No thread or poll is left.
    #[error("failed to start threads: {0}")]
    Threads(#[source] io::Error),
    /// Without open files there are no connections.
    #[error("the open-files limit is {limit}, but a node needs at least {needed}: raise it (`ulimit -n`)")]
    OpenFiles {
        /// What it is.
        limit: u64,
        /// What it must be.
        needed: u64,
    },
}

/// A part ended that must not: its clients are served no more, so the process has to end.
#[derive(Debug, thiserror::Error)]
pub enum Death {
    /// A shard's thread.
    #[error("shard {0} ended")]
    Shard(u16),
    /// A task.
    #[error("{0} ended")]
    Task(&'static str),
}

// === impl App ===

impl App {
    /// Starts a node on the current runtime.
    ///
    /// # Errors
    /// Why it cannot; then nothing is left behind.
    pub async fn start(config: Config, options: Options) -> Result<Self, StartError> {
        let Config { boot, live, file } = config;
        let Live { settings, auth, tls, hash, warnings } = live;
        let Options { name, log, bus, allocator, nodes_service, grace } = options;
        log.set(settings.log_level);
        let Listeners { client: client_port, api: api_port, admin: admin_port, addresses } =
            Listeners::bind(&boot.listen)?;
        let max_connections = listen::max_connections(settings.hub.max_connections)?;
        let run = NodeRun::begin();
        let (closing, shutdown) = (CancellationToken::new(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        let mut registry = metrics::Builder::default();

        // What has to be before clients may come.
        let readiness = Readiness::default();
        let serving = readiness.part("serving", "the node starts");
        let accepting = readiness.part("accepting", "the client port is not open yet");
        let broker_part = readiness.part("broker", "no message has come back from the broker yet");

        // The shards.
        let (work, work_queue) = mpsc::channel(WORK_QUEUE);
        let shard_config = shard::Config {
            shards: boot.runtime.shards,
            node: run.id,
            max_connections,
            mailbox_bytes: 0,
            work_bytes: 0,
            log_bytes: 0,
            time_deliveries: boot.runtime.time_deliveries,
        };
        let memory = boot.runtime.memory_bytes.or_else(memory::limit);
        let shard_config = shard_config.within(memory);
        tracing::info!(bytes = shard_config.log_bytes, "memory per shard for pending publications");
        if !shard_config.fits_message(settings.hub.max_message_bytes as usize) {
            let setting = settings.hub.max_message_bytes;
            tracing::warn!(
                setting,
                "not enough memory for messages of hub.maxMessageBytes, connections that send messages that do not fit are closed with 4013"
            );
        }
        let shards =
            Shards::spawn(shard_config, settings::rules(&settings), &work).map_err(StartError::Threads)?;
        let (mailboxes, shards) = (Arc::<[_]>::from(shards.mailboxes()), Arc::new(shards));

        // What goes between nodes.
        let hub = Hub::default();
        let (broker, events) = open_broker(&boot, bus.as_ref(), &name);
        let work_metrics = work::Metrics::default();
        let max_bytes = settings.hub.max_message_bytes as usize;
        let publisher = Publisher::new(Arc::clone(&broker), run, max_bytes, memory, work_metrics.clone());
        let (auth, reload) = (Arc::new(Auth::new(auth)), Arc::new(Notify::new()));
        let tokens = Arc::clone(&auth);
        let identify = move |token: &str| {
            tokens.identify(Some(token)).map_err(|error| CommandError::Unauthorized(error.to_string()))
        };
        let desk = Desk::new(hub.clone(), Arc::clone(&broker), publisher.clone(), Arc::clone(&mailboxes))
            .identifying(Arc::new(identify));
        tasks.spawn(named("the desk of waiting work", desk.run(work_queue)));
        let bridge_metrics = bridge::Metrics::default();
        let version = env!("CARGO_PKG_VERSION");
        let bridge = bridge::start(bridge::Parts {
            node: bridge::Node {
                run,
                name: name.as_str().into(),
                version: version.into(),
                grant: grant(&boot),
            },
            broker,
            events,
            hub: hub.clone(),
            packer: shards.packer(),
            mailboxes,
            counts: counts(&shards, &hub),
            max_message_bytes: max_message_bytes(&publisher),
            nodes_service,
            metrics: bridge_metrics.clone(),
            shutdown: shutdown.clone(),
        });

        // Settings that change.
        let about = about(&boot, &name, run, &addresses);
        let (live_sender, live) = watch::channel(Arc::new(settings));
        let http_metrics = http::Metrics::default();
        let http = ClientPort::new(shards.door().clone(), Arc::clone(&auth), http_metrics.clone());
        http.set_tls(tls);
        let parts = readiness.clone();
        http.set_health(move || parts.missing().is_empty());
        let settings_metrics = settings::Metrics::new(&hash);
        let (shown, doubts) = watch::channel(Arc::default());
        settings::tell(&warnings, &settings_metrics, &shown);
        let joined = settings::Joined {
            auth: Arc::clone(&auth),
            http: http.clone(),
            shards: Arc::clone(&shards),
            publisher: publisher.clone(),
            log: log.clone(),
            live: live_sender,
            warnings: shown,
            metrics: settings_metrics.clone(),
        };
        tasks.spawn(named("the watch of the settings", settings::follow(file, joined, Arc::clone(&reload))));

        // The end.
        let (signal, drain) = drain::channel();
        let drain_metrics = drain::Metrics::default();
        let pace = live.clone();
        let pace = move || pace.borrow().drain.clone();
        let draining =
            drain::run(Arc::clone(&shards), signal.clone(), drain.clone(), pace, drain_metrics.clone());
        tokio::spawn(draining);

        // The doors.
        let client = Threads::start("client")?;
        let api_metrics = api::Metrics::default();
        let channels = hub.clone();
        registry
            .shards(Arc::downgrade(&shards), move || channels.channels())
            .fanout(|registry| work_metrics.register(registry))
            .fanout(|registry| bridge_metrics.register(registry))
            .fanout(|registry| settings_metrics.register(registry))
            .fanout(|registry| drain_metrics.register(registry))
            .fanout(|registry| http_metrics.register(registry))
            .fanout(|registry| api_metrics.register(registry))
            .fanout(|registry| log.register(registry));
        if let Some(allocator) = &allocator {
            registry.allocator(Arc::clone(allocator));
        }
        let metrics = registry.build();
        let api = Api {
            auth,
            publisher,
            peers: bridge.peers.clone(),
            door: shards.door().clone(),
            metrics: api_metrics,
        };
        let timeout = live.clone();
        let admin = Admin {
            readiness: readiness.clone(),
            warnings: doubts,
            metrics: metrics.clone(),
            shards: Arc::clone(&shards),
            health: bridge.health.clone(),
            signal: signal.clone(),
            drain: drain.clone(),
            drain_timeout: Arc::new(move || drain_timeout(&timeout, grace)),
            log,
            runtimes: Arc::new([("control", Handle::current()), ("client", client.handle().clone())]),
            allocator,
            about: Arc::new(about),
        };
        tasks.spawn(named(
            API_PORT,
            inner::serve(api_port, http::checked(api::router(api)), API_BOUNDS, closing.clone()),
        ));
        tasks.spawn(named(
            ADMIN_PORT,
            inner::serve(admin_port, admin::router(admin), ADMIN_BOUNDS, closing.clone()),
        ));
        tokio::spawn(ready::follow_port(accepting, http.accepting(), drain.clone()));
        tasks.spawn_on(
            named("the client port", serve_clients(http.clone(), client_port, drain.clone())),
            client.handle(),
        );

        let rule = BrokerRule { app_containers: boot.app_containers, ..BrokerRule::default() };
        tokio::spawn(ready::follow_broker(broker_part, rule, bridge.health.clone(), live.clone()));
        tokio::spawn(ready::until_drain(serving, drain.clone()));
        let Addresses { client: client_address, api: api_address, admin: admin_address } = addresses;
        tracing::info!(
            node = name, run = %run.id, cluster = boot.cluster, version,
            client = %client_address, api = %api_address, admin = %admin_address,
            "node is listening"
        );
        let (bridge, bridge_died) = (bridge.tasks, bridge.died);
        Ok(Self {
            addresses,
            shards,
            readiness,
            signal,
            drain,
            live,
            grace,
            reload,
            metrics,
            bridge,
            bridge_died,
            closing,
            shutdown,
            tasks,
            http,
            client,
        })
    }

    /// Where it listens: port 0 in the settings is another here.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Which parts are ready.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// What it counts, as OpenMetrics text.
    pub fn metrics(&self) -> String {
        self.metrics.encode()
    }

    /// How far a drain is.
    pub fn drain(&self) -> &DrainWatch {
        &self.drain
    }

    /// Begins a drain, by the time that the settings give it.
    pub fn begin_drain(&self) {
        self.signal.begin(drain_timeout(&self.live, self.grace));
    }

    /// Ends a drain now: whoever is left is closed.
    pub fn force(&self) {
        self.signal.force();
    }

    /// Looks at the live document and its secrets now.
    pub fn reload(&self) {
        self.reload.notify_one();
    }

    /// Returns only when a part ended that must not.
    pub async fn died(&mut self) -> Death {
        let Self { shards, tasks, bridge_died, .. } = self;
        tokio::select! {
            () = bridge_died.cancelled() => Death::Task("a task of the bridge"),
            shard = shards.died() => Death::Shard(shard),
            Some(ended) = tasks.join_next() => Death::Task(ended.unwrap_or("a task that panicked")),
        }
    }

    /// Ends what is left: the other nodes are told, answers in flight are written.
    pub async fn stop(self) {
        let Self { shards, bridge, closing, shutdown, mut tasks, http, client, .. } = self;
        closing.cancel();
        if timeout(STOP_TIME, doors_closed(&mut tasks)).await.is_err() {
            tracing::warn!("aborting server API calls that did not finish in time");
        }
        shutdown.cancel();
        if timeout(STOP_TIME, bridge.wait()).await.is_err() {
            tracing::warn!("the broker connection did not close in time");
        }
        tasks.abort_all();
        while tasks.join_next().await.is_some() {}
        // It waits for threads; those write what they can at once and end.
        if spawn_blocking(move || shards.stop()).await.is_err() {
            tracing::warn!("a shard did not stop cleanly");
        }
        if timeout(STOP_TIME, http.carried()).await.is_err() {
            tracing::warn!("closing connections that did not flush");
        }
        drop(client);
    }
}

/// Returns once both doors have answered what they took.
async fn doors_closed(tasks: &mut JoinSet<&'static str>) {
    let mut open = 2;
    while open > 0
        && let Some(ended) = tasks.join_next().await
    {
        open -= i32::from(matches!(ended, Ok(API_PORT | ADMIN_PORT)));
    }
}

fn drain_timeout(live: &watch::Receiver<Arc<LiveSettings>>, grace: Option<Duration>) -> Duration {
    within_grace(Duration::from_secs(live.borrow().drain.timeout_seconds.into()), grace)
}

/// The time that a drain may take. The settings may be newer than the pod, whose kubelet keeps to what the pod was made
/// with: a drain that takes longer than that ends in a kill, for every client that was left.
fn within_grace(timeout: Duration, grace: Option<Duration>) -> Duration {
    grace.map(DrainSettings::longest_within).map_or(timeout, |longest| timeout.min(longest))
}

fn open_broker(boot: &BootSettings, bus: Option<&Bus>, name: &str) -> (Arc<dyn Broker>, Events) {
    match (boot.broker.kind().expect("settings were checked before"), bus) {
        (BrokerKind::Memory, Some(bus)) => bus.join(),
        (kind, _) => broker::open(kind, name),
    }
}

/// What this node tells the others of itself.
fn counts(shards: &Arc<Shards>, hub: &Hub) -> Box<dyn Fn() -> Counts + Send + Sync> {
    let (shards, hub) = (Arc::downgrade(shards), hub.clone());
    Box::new(move || Counts {
        connections: shards.upgrade().map_or(0, |shards| shards.connections()),
        users: 0,
        channels: u32::try_from(hub.channels()).unwrap_or(u32::MAX),
    })
}

/// What Redis' ACL has to grant beside the channels below the prefix.
fn grant(boot: &BootSettings) -> Option<Arc<str>> {
    let redis = boot.broker.redis.as_ref()?;
    Some(format!("&{}", broker::redis::nodes_pattern(&redis.channel_prefix)).into())
}

/// What clients and backends may publish, for what comes from neither.
fn max_message_bytes(publisher: &Publisher) -> Box<dyn Fn() -> usize + Send + Sync> {
    let publisher = publisher.clone();
    Box::new(move || publisher.max_bytes())
}

fn about(boot: &BootSettings, name: &str, run: NodeRun, addresses: &Addresses) -> serde_json::Value {
    json!({
        "name": name,
        "run": run.id.to_string(),
        "startedMs": run.start,
        "cluster": boot.cluster,
        "version": env!("CARGO_PKG_VERSION"),
        "listen": {"client": addresses.client, "api": addresses.api, "admin": addresses.admin},
    })
}

async fn named(name: &'static str, task: impl Future<Output = ()>) -> &'static str {
    task.await;
    name
}

/// Lets clients in until a drain begins; ends only by a failure.
async fn serve_clients(http: ClientPort, listener: std::net::TcpListener, drain: DrainWatch) {
    let stop = async {
        drain.begun().await;
    };
    match http.serve(listener, stop).await {
        Ok(()) => std::future::pending().await,
        Err(error) => tracing::error!(%error, "failed to serve the client port"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::shard::Mail;

    #[test]
    fn a_drain_ends_before_the_pod_is_killed_whatever_newer_settings_say() {
        let seconds = Duration::from_secs;
        assert_eq!(within_grace(seconds(300), Some(seconds(330))), seconds(300));
        assert_eq!(within_grace(seconds(900), Some(seconds(330))), seconds(320));
        assert_eq!(within_grace(seconds(900), Some(seconds(5))), seconds(1));
        assert_eq!(within_grace(seconds(900), None), seconds(900));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_shard_that_dies_is_a_death_of_the_node() {
        let directory = tempfile::tempdir().unwrap();
        let [boot, live] = ["boot.yaml", "live.yaml"].map(|name| directory.path().join(name));
        let any = "'127.0.0.1:0'";
        let listen = format!("listen: {{client: {any}, api: {any}, admin: {any}}}");
        fs::write(&boot, format!("{{broker: {{memory: {{}}}}, {listen}, runtime: {{shards: 2}}}}")).unwrap();
        fs::write(&live, "{}").unwrap();
        let config = Config::load(&boot, &live).unwrap();
        let options = Options {
            name: "node".to_owned(),
            log: LogControl::none(),
            bus: None,
            allocator: None,
            nodes_service: None,
            grace: None,
        };
        let mut app = App::start(config, options).await.unwrap();
        assert!(timeout(Duration::from_millis(50), app.died()).await.is_err(), "all is well");
        app.shards.mailboxes()[1].send(Mail::Panic);
        let death = timeout(Duration::from_secs(20), app.died()).await.expect("told in time");
        assert_eq!(death.to_string(), "shard 1 ended");
        app.stop().await;
    }
}
