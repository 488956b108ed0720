//! Reconcile, in five steps: dereference → validate → build → apply → status.
//!
//! [`run`] wires it: watches and the nodes' reports trigger `reconcile`, one at a time for each cluster. What
//! goes wrong is classified once, in [`Error::class`].

pub mod apply;
pub mod build;
mod debounce;
pub mod dereference;
pub mod diagnose;
mod mirror;
pub mod status;
pub mod survey;
pub mod validate;

use std::{
    any::Any,
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, stream};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    Client, Resource, ResourceExt,
    core::{DeserializeGuard, response::Status},
    runtime::controller::{Action, Config, Error as Reconcile, applier},
};
use serde_json::Value;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{debug, info, warn};

use self::{
    apply::Applier,
    build::OperatorConfig,
    dereference::SecretShapes,
    mirror::{Guarded, Mirrors, Scope, Stage, Trigger},
    status::Reporter,
    validate::Problem,
};
use crate::{
    api::{FanoutCluster, Reason},
    events::Events,
    health::{Obstacle, Readiness},
    lease::{
        Claim,
        territory::{self, Refused, Territory},
    },
    metrics::{Metrics, Outcome},
    scrape::{self, Reports, Scraper},
};

/// Clusters reconciled at one time.
const CONCURRENCY: u16 = 16;

/// Changes that come within this time after the first make one reconcile. Short, for a deleted child is to be back in a second.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// Time that a new leader waits for the nodes to answer.
const FIRST_ROUND: Duration = Duration::from_secs(3);

/// The next look at a cluster is never sooner, whatever asks for it.
const SOONEST: Duration = Duration::from_millis(50);

/// A look at a cluster that waits for something that is not watched: a name to become free, a quota to grow.
const WAITING: Duration = Duration::from_secs(10);

/// Conflicts that come further apart than this are not in a row.
const CONFLICTS_APART: Duration = Duration::from_secs(30);

/// Failures that pass by themselves are told once they have lasted for this long.
const LASTING: Duration = Duration::from_secs(10);

/// A look at a cluster that nothing asked for, should a change have been missed.
const RESYNC: Duration = Duration::from_secs(600);

/// `NamespaceTerminatingCause` of Kubernetes' API.
const NAMESPACE_TERMINATING: &str = "NamespaceTerminating";

/// What all clusters share.
#[derive(Clone)]
pub struct Shared {
    /// The API server.
    pub client: Client,
    /// What the operator was started with.
    pub config: OperatorConfig,
    /// Whether this process may write.
    pub claim: Claim,
    /// Where Events go.
    pub events: Events,
    /// What is counted.
    pub metrics: Metrics,
    /// What keeps the operator from its work.
    pub readiness: Readiness,
}

struct Context {
    config: OperatorConfig,
    metrics: Metrics,
    mirrors: Mirrors,
    territory: Territory,
    reports: Reports,
    secrets: SecretShapes,
    applier: Applier,
    reporter: Reporter,
    failures: Failures,
}

/// Why a reconcile failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The object is not a FanoutCluster that this operator can read.
    #[error("the FanoutCluster cannot be read: {0}")]
    Malformed(String),
    /// Another process leads.
    #[error("this process does not lead")]
    NotLeading,
    /// The FanoutCluster was changed or deleted after the plan was made.
    #[error("the FanoutCluster changed while its plan was made")]
    Superseded,
    /// The namespace is not held, or not any more.
    #[error(transparent)]
    Refused(Arc<Refused>),
    /// A child of that name was not made for this cluster.
    #[error("{}", not_ours(kind, name, owner.as_deref()))]
    NotOurs {
        /// Kind of the child.
        kind: String,
        /// Its name.
        name: String,
        /// Kind and name of its owner, where it has one.
        owner: Option<String>,
    },
    /// A child belongs to a FanoutCluster of this name that was deleted.
    #[error(
        "{kind} {name} is left of the FanoutCluster of this name that was deleted: Kubernetes' garbage collector removes it, and it is made again then"
    )]
    Predecessor {
        /// Kind of the child.
        kind: String,
        /// Its name.
        name: String,
    },
    /// A child is being deleted, and something holds it.
    #[error(
        "{kind} {name} is being deleted and waits for its finalizers ({finalizers}): let their controller finish or remove them; it is made again then"
    )]
    Leaving {
        /// Kind of the child.
        kind: String,
        /// Its name.
        name: String,
        /// What holds it.
        finalizers: String,
    },
    /// The API server refused or did not answer.
    #[error("{}", refused(verb, kind, name, fields, answer))]
    Api {
        /// What was tried.
        verb: &'static str,
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// The fields of the FanoutCluster that it is about, as far as that is known.
        fields: Vec<String>,
        /// What the API server said; part of the text already.
        answer: Arc<kube::Error>,
    },
    /// The reconcile panicked.
    #[error("the operator failed on this FanoutCluster ({0}): its log says where; please report it")]
    Panicked(String),
}

/// What to do about an error, what is due soonest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorClass {
    /// Nothing, until the object changes.
    Terminal,
    /// Nothing, until what it waits for changes; looked at again now and then.
    Waiting,
    /// Try again, later each time.
    Transient,
    /// Somebody was faster: look again at once.
    Conflict,
}

/// Failures in a row of each cluster, by its name; those of an earlier one of that name do not count.
#[derive(Debug, Default)]
struct Failures(Mutex<HashMap<Trigger, Row>>);

/// Failures in a row.
#[derive(Debug)]
struct Row {
    /// Which cluster of its name.
    uid: Option<String>,
    /// Those that may pass by themselves.
    count: u32,
    /// Conflicts, and the last of them.
    conflicts: u32,
    conflicted: tokio::time::Instant,
    since: tokio::time::Instant,
}

/// Reconciles every cluster of `namespaces` (none: of all) until `stop`; what is under way then is finished.
/// Dropping it aborts what is under way.
pub async fn run(shared: Shared, namespaces: &[String], stop: CancellationToken) {
    let scopes = Scope::all_of(namespaces);
    for scope in &scopes {
        shared
            .readiness
            .block(Obstacle::Watches(scope.to_string()), format!("{scope}: not all is known yet"));
    }
    let watched: Vec<_> = scopes.iter().map(|scope| watch(&shared, scope, &stop)).collect();
    futures::future::join_all(watched).await;
}

async fn watch(shared: &Shared, scope: &Scope, stop: &CancellationToken) {
    let (mirrors, changes) = Mirrors::start(&shared.client, scope, &shared.metrics, &shared.readiness);
    let context = Arc::new(Context::new(shared, mirrors.clone()));
    let news = reports(Scraper::new(shared.metrics.clone(), context.reports.clone()), context.clone());
    let triggers = debounce::from_the_first(stream::select(changes, news), DEBOUNCE).map(Ok::<_, Infallible>);
    let queue = triggers.take_until(stop.clone().cancelled_owned());
    let config = Config::default().concurrency(CONCURRENCY);
    let reconciles = applier(spawn, error_policy, context.clone(), mirrors.clusters(), queue, config);
    let in_step = async {
        mirrors.fill().await;
        // The nodes are asked once before anything is decided or told, but not waited for without end.
        _ = tokio::time::timeout(FIRST_ROUND, mirrors.reach(Stage::InStep)).await;
        mirrors.asked();
        info!(%scope, "watches are synced");
        shared.readiness.clear(&Obstacle::Watches(scope.to_string()));
        std::future::pending().await
    };
    // A watch that was away does not tell what went meanwhile.
    let sheds = async {
        loop {
            tokio::time::sleep(RESYNC).await;
            context.shed();
        }
    };
    tokio::select! {
        () = in_step => {}
        () = mirror::look_for_clusters(&shared.client, scope, &shared.readiness) => {}
        () = context.territory.keep(|| context.namespaces()) => {}
        () = sheds => {}
        () = reconciles.for_each(async |result| log(&context, result)) => {}
    }
}

/// Asks the nodes; yields the clusters of those that said something new. The nodes that do not answer are not waited for.
fn reports(scraper: Scraper, context: Arc<Context>) -> impl futures::Stream<Item = Trigger> + Send {
    let rounds = async |(mut scraper, context, mut tick): (Scraper, Arc<Context>, Interval)| {
        let mirrors = &context.mirrors;
        mirrors.reach(Stage::Filled).await;
        loop {
            let news = tokio::select! {
                _ = tick.tick() => {
                    let mut nodes = mirrors.nodes();
                    // Those of other operators do not let this one in.
                    nodes.retain(|pod| context.is_managed(pod));
                    scraper.ask(nodes);
                    None
                }
                news = scraper.news() => news,
            };
            if scraper.is_idle() {
                mirrors.asked();
            }
            if let Some(trigger) = news.and_then(|pod| mirror::labelled_cluster(pod.as_ref())) {
                return Some((trigger, (scraper, context, tick)));
            }
        }
    };
    let mut tick = tokio::time::interval(scrape::TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    stream::unfold((scraper, context, tick), rounds).boxed()
}

/// A reconcile is a task of its own, so that the watches go on; it ends with whoever waits for it.
fn spawn(
    cluster: Arc<Guarded>,
    context: Arc<Context>,
) -> impl Future<Output = Result<Action, Error>> + Unpin + Send {
    let task = AbortOnDropHandle::new(tokio::spawn(measured(cluster, context)));
    task.map(|ended| ended.unwrap_or_else(|panic| Err(Error::panicked(&*panic.into_panic())))).boxed()
}

async fn measured(cluster: Arc<Guarded>, context: Arc<Context>) -> Result<Action, Error> {
    let begun = Instant::now();
    let result = caught(reconcile(&cluster, &context)).await;
    let outcome = match &result {
        Ok(Done { failed: None, .. }) => Outcome::Success,
        Ok(Done { failed: Some(class), .. }) => (*class).into(),
        Err(Error::Panicked(_)) => Outcome::Panic,
        Err(error) => error.class().into(),
    };
    context.metrics.reconciled(outcome, begun.elapsed());
    if outcome == Outcome::Success {
        context.failures.forget(&Trigger::from_obj(&*cluster));
    }
    let lasting = context.failures.last(&cluster);
    if let Some(problem) = result.as_ref().err().and_then(|error| error.problem(lasting)) {
        // Telling it may fail in the same way.
        caught(context.reporter.broken(&cluster, &problem)).await?;
    }
    result.map(|done| done.again.map_or_else(Action::await_change, Action::requeue))
}

/// A panic in what one cluster needs is that cluster's error.
async fn caught<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let ended = AssertUnwindSafe(work).catch_unwind().await;
    ended.unwrap_or_else(|panic| Err(Error::panicked(&*panic)))
}

/// How a reconcile ended that went through.
struct Done {
    /// Time until the next one; `None` where only a change asks for it.
    again: Option<Duration>,
    /// What failed in it nevertheless; the soonest to try again.
    failed: Option<ErrorClass>,
}

impl Done {
    /// Nothing to do until the cluster changes.
    const IDLE: Self = Self { again: None, failed: None };
}

async fn reconcile(guarded: &Guarded, context: &Context) -> Result<Done, Error> {
    let Context { config, metrics, mirrors, territory, reports, secrets, applier, reporter, failures } =
        context;
    if !config.manages(guarded.meta()) {
        return Ok(Done::IDLE);
    }
    match territory.enter(guarded.meta().namespace.as_deref().unwrap_or_default()).await {
        Ok(()) => {}
        Err(Refused::Held { .. }) => return Ok(Done { again: Some(territory::LOOK_EVERY), failed: None }),
        Err(refused) => return Err(refused.into()),
    }
    let cluster = match guarded {
        DeserializeGuard(Ok(cluster)) => cluster,
        DeserializeGuard(Err(invalid)) => {
            metrics.malformed_objects.inc();
            reporter.malformed(invalid).await?;
            return Err(Error::Malformed(invalid.error.clone()));
        }
    };
    if is_collected(cluster) {
        // The garbage collector removes the children.
        return Ok(Done { again: Some(RESYNC), failed: None });
    }
    mirrors.reach(Stage::InStep).await;

    let found = dereference::dereference(cluster, mirrors, reports, secrets).await?;
    let verdict = match validate::validate(cluster, &found.named) {
        Ok(validated) => {
            let resources = build::build(cluster, &validated, config);
            let lasting = failures.last(guarded);
            applier.apply(cluster, &found, resources, validated.missing, lasting).await
        }
        Err(problems) => Ok(apply::Applied::refused(problems)),
    };
    let applied = match verdict {
        Ok(applied) => applied,
        // Its namespace takes nothing new, and takes the cluster with it: there is nothing to do or to tell.
        Err(error) if error.is_namespace_terminating() => return Ok(Done::IDLE),
        Err(error) => return Err(error),
    };
    let again = reporter.report(cluster, &found, &applied).await?;
    let failures = applied.failures().iter();
    let tries = failures.map(|(class, again)| again.unwrap_or_else(|| context.wait(*class, guarded)));
    let looks = [applied.look_again(Timestamp::now()), found.next_look(), again, Some(jittered(RESYNC))];
    Ok(Done {
        again: looks.into_iter().flatten().chain(tries).min().map(|wait| wait.max(SOONEST)),
        failed: applied.failures().iter().map(|(class, _)| *class).max(),
    })
}

/// Whether Kubernetes is removing a cluster and its children. One that a finalizer of somebody else holds still serves.
fn is_collected(cluster: &FanoutCluster) -> bool {
    const COLLECTOR: [&str; 2] = ["foregroundDeletion", "orphan"];
    let finalizers = cluster.finalizers();
    cluster.metadata.deletion_timestamp.is_some()
        && (finalizers.is_empty()
            || finalizers.iter().any(|finalizer| COLLECTOR.contains(&finalizer.as_str())))
}

#[expect(clippy::needless_pass_by_value, reason = "kube hands them over so")]
fn error_policy(cluster: Arc<Guarded>, error: &Error, context: Arc<Context>) -> Action {
    match error.class() {
        ErrorClass::Terminal => Action::await_change(),
        class => Action::requeue(context.wait(class, &cluster)),
    }
}

fn log(context: &Context, result: Result<(Trigger, Action), Reconcile<Error, Infallible>>) {
    match result {
        Ok((cluster, _)) => debug!(%cluster, "reconciled"),
        Err(Reconcile::ObjectNotFound(cluster)) => {
            debug!(%cluster, "gone");
            context.shed();
        }
        Err(Reconcile::ReconcilerFailed(error, cluster)) if error.class() == ErrorClass::Conflict => {
            debug!(%cluster, error = %chain(&error), "write conflict, retrying");
        }
        Err(Reconcile::ReconcilerFailed(error, cluster)) => {
            warn!(%cluster, error = %chain(&error), "failed to reconcile")
        }
        Err(error) => warn!(error = %chain(&error), "the reconcile queue failed"),
    }
}

fn class_of(status: u16) -> ErrorClass {
    match status {
        409 => ErrorClass::Conflict,
        // Only a change of a policy, a quota or our rights helps.
        403 => ErrorClass::Waiting,
        _ => ErrorClass::Transient,
    }
}

/// What the API server or the way to it says, once and in words.
fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        kube::Error::Api(status) => format!("{} ({})", status.reason, status.code),
        error => chain(error),
    }
}

fn refused(verb: &str, kind: &str, name: &str, fields: &[String], answer: &kube::Error) -> String {
    let fields = match fields {
        [] => String::new(),
        fields => format!("{}: ", fields.join(", ")),
    };
    match answer {
        kube::Error::Api(_) => {
            format!("{fields}the API server refuses to {verb} {kind} {name}: {}", said(answer))
        }
        _ => format!("{fields}failed to {verb} {kind} {name}: {}", said(answer)),
    }
}

fn not_ours(kind: &str, name: &str, owner: Option<&str>) -> String {
    match owner {
        Some(owner) => format!(
            "{kind} {name} belongs to {owner}: rename or delete it there, or give this FanoutCluster another name"
        ),
        None => format!(
            "{kind} {name} is there and has no owner: delete it, or hand it over by its annotation fanout.dev/adopt, whose value is the name of this FanoutCluster"
        ),
    }
}

/// An error and its causes, in one line. A cause that the text has already is not repeated, and of what the API server
/// said only its message is told: kube's text has all of the answer, twice.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = String::new();
    for cause in std::iter::successors(Some(error), |cause| cause.source()) {
        let text = cause.to_string();
        match cause.downcast_ref::<kube::Error>() {
            Some(api @ kube::Error::Api(_)) if line.contains(&text) => {
                return line.replace(&text, &said(api));
            }
            Some(api @ kube::Error::Api(_)) if line.is_empty() => return said(api),
            Some(api @ kube::Error::Api(_)) => return format!("{line}: {}", said(api)),
            _ if line.is_empty() => line = text,
            _ if !line.contains(&text) => line = format!("{line}: {text}"),
            _ => {}
        }
    }
    line
}

/// Up to a tenth more or less, so that clusters do not keep step.
fn jittered(time: Duration) -> Duration {
    time.mul_f64(rand::random_range(0.9..1.1))
}

// === impl Context ===

impl Context {
    fn new(shared: &Shared, mirrors: Mirrors) -> Self {
        let territory = Territory::new(
            shared.client.clone(),
            &shared.config.installation,
            shared.config.class.as_deref(),
            shared.claim.clone(),
            shared.readiness.clone(),
        );
        Self {
            config: shared.config.clone(),
            metrics: shared.metrics.clone(),
            reports: Reports::default(),
            secrets: SecretShapes::new(shared.client.clone()),
            applier: Applier::new(shared, territory.clone(), mirrors.clone()),
            reporter: Reporter::new(shared, territory.clone()),
            failures: Failures::default(),
            territory,
            mirrors,
        }
    }

    /// Namespaces that have FanoutClusters of this operator.
    fn namespaces(&self) -> BTreeSet<String> {
        let ours = self.mirrors.clusters().state_filter(|cluster| self.config.manages(cluster.meta()));
        ours.iter().filter_map(|cluster| cluster.meta().namespace.clone()).collect()
    }

    /// Whether a pod belongs to a FanoutCluster that this operator manages.
    fn is_managed(&self, pod: &Pod) -> bool {
        let cluster = mirror::labelled_cluster(pod).and_then(|cluster| self.mirrors.clusters().get(&cluster));
        cluster.is_some_and(|cluster| self.config.manages(cluster.meta()))
    }

    /// Time until something that failed is tried again.
    fn wait(&self, class: ErrorClass, cluster: &Guarded) -> Duration {
        let (trigger, uid) = (Trigger::from_obj(cluster), cluster.meta().uid.as_ref());
        match class {
            ErrorClass::Terminal => RESYNC,
            ErrorClass::Conflict => self.failures.after_conflict(trigger, uid),
            ErrorClass::Waiting => {
                self.failures.note(trigger, uid);
                jittered(WAITING)
            }
            ErrorClass::Transient => self.failures.next_try(trigger, uid),
        }
    }

    /// Sheds what is remembered of clusters and Secrets that are gone.
    fn shed(&self) {
        let clusters = self.mirrors.clusters();
        let lives =
            |namespace: &str, name: &str| clusters.get(&Trigger::new(name).within(namespace)).is_some();
        self.failures
            .keep_only(|cluster| lives(cluster.namespace.as_deref().unwrap_or_default(), &cluster.name));
        self.applier.keep_only(lives);
        self.reporter.keep_only(lives);
        self.secrets.keep_only(&self.mirrors);
    }
}

// === impl Error ===

impl Error {
    /// Turns what the API server said into an error that names what was tried.
    fn api(verb: &'static str, kind: &str, name: &str) -> impl FnOnce(kube::Error) -> Self + use<> {
        let (kind, name) = (kind.to_owned(), name.to_owned());
        move |source| Self::Api { verb, kind, name, fields: Vec::new(), answer: Arc::new(source) }
    }

    /// The same of a child as it was to be.
    fn refused(verb: &'static str, child: &Value) -> impl FnOnce(kube::Error) -> Self {
        move |source| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let fields = match &source {
                kube::Error::Api(status) if !status.is_conflict() => apply::fields_behind(child, status),
                _ => Vec::new(),
            };
            let (kind, name) = (text(&child["kind"]), text(&child["metadata"]["name"]));
            Self::Api { verb, kind, name, fields, answer: Arc::new(source) }
        }
    }

    fn panicked(panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Self::Panicked(text.unwrap_or("no reason was given").to_owned())
    }

    /// Whether there is nothing left to try for this cluster.
    fn ends_reconcile(&self) -> bool {
        matches!(self, Self::NotLeading | Self::Superseded | Self::Refused(_))
            || self.is_namespace_terminating()
    }

    /// Whether no object of this form can be written, whatever exists. A policy may deny one change and allow another.
    fn is_malformed(&self) -> bool {
        self.status().is_some_and(|status| apply::is_invalid(status) && !apply::is_denied(status))
    }

    /// Whether the API server refused an object for what it is.
    fn is_invalid(&self) -> bool {
        self.status().is_some_and(apply::is_invalid)
    }

    /// Whether the API server refused a request for want of a right.
    pub fn is_forbidden(&self) -> bool {
        self.status().is_some_and(|status| status.code == 403)
    }

    fn status(&self) -> Option<&Status> {
        let Self::Api { answer, .. } = self else { return None };
        let kube::Error::Api(status) = answer.as_ref() else { return None };
        Some(status)
    }

    /// What a person should know of it; `None` for what passes by itself, as long as it has not lasted: an API server that
    /// restarts or has too much to do, and a garbage collector that is on its way.
    fn problem(&self, lasting: bool) -> Option<Problem> {
        let (reason, kind, name) = match self {
            Self::NotOurs { kind, name, .. } => (Reason::NotOurs, kind, name),
            Self::Leaving { kind, name, .. } => (Reason::ChildLeaving, kind, name),
            Self::Predecessor { kind, name } if lasting => (Reason::ChildLeaving, kind, name),
            Self::Api { kind, name, .. } => match (self.status(), self.class()) {
                (_, ErrorClass::Conflict) => return None,
                (_, ErrorClass::Transient) if !lasting => return None,
                (Some(status), _) if apply::is_invalid(status) => (Reason::InvalidSpec, kind, name),
                _ => (Reason::ApplyFailed, kind, name),
            },
            Self::Panicked(_) => {
                let object = "FanoutCluster".to_owned();
                return Some(Problem {
                    reason: Reason::OperatorFailed,
                    object,
                    key: None,
                    message: self.to_string(),
                });
            }
            Self::Malformed(_)
            | Self::NotLeading
            | Self::Superseded
            | Self::Refused(_)
            | Self::Predecessor { .. } => return None,
        };
        Some(Problem { reason, object: format!("{kind}/{name}"), key: None, message: self.to_string() })
    }

    /// Whether the API server refused a new object because the namespace is being deleted.
    pub fn is_namespace_terminating(&self) -> bool {
        let causes = self.status().and_then(|status| status.details.as_ref()).map(|details| &details.causes);
        let causes = causes.into_iter().flatten();
        causes.into_iter().any(|cause| cause.reason == NAMESPACE_TERMINATING)
    }

    /// What to do about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Malformed(_) | Self::NotLeading => ErrorClass::Terminal,
            Self::NotOurs { .. } | Self::Predecessor { .. } | Self::Leaving { .. } => ErrorClass::Waiting,
            Self::Superseded => ErrorClass::Conflict,
            Self::Refused(refused) => match refused.as_ref() {
                Refused::NotLeading => ErrorClass::Terminal,
                Refused::Held { .. } => ErrorClass::Waiting,
                Refused::Unknown { source, .. } => match source.as_ref() {
                    kube::Error::Api(status) if status.is_conflict() => ErrorClass::Conflict,
                    _ => ErrorClass::Transient,
                },
                Refused::Late { .. } | Refused::RunOut { .. } => ErrorClass::Transient,
            },
            Self::Api { .. } => match self.status() {
                Some(status) if apply::is_invalid(status) => ErrorClass::Waiting,
                Some(status) => class_of(status.code),
                None => ErrorClass::Transient,
            },
            Self::Panicked(_) => ErrorClass::Transient,
        }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NotLeading => Self::NotLeading,
            refused => Self::Refused(Arc::new(refused)),
        }
    }
}

impl From<ErrorClass> for Outcome {
    fn from(class: ErrorClass) -> Self {
        match class {
            ErrorClass::Terminal => Self::Terminal,
            ErrorClass::Waiting => Self::Waiting,
            ErrorClass::Transient => Self::Transient,
            ErrorClass::Conflict => Self::Conflict,
        }
    }
}

// === impl Failures ===

impl Failures {
    /// Time until the next try: from a second to five minutes, and any part of it, so that clusters that failed
    /// together do not come back together.
    fn next_try(&self, cluster: Trigger, uid: Option<&String>) -> Duration {
        self.with_row(cluster, uid, |row| {
            row.count = row.count.saturating_add(1);
            let longest = Duration::from_secs(1 << row.count.min(9)).min(Duration::from_secs(300));
            longest.mul_f64(rand::random_range(0.1..1.0))
        })
    }

    /// Time until the next try after a conflict: at once, but later each time in a row, for a watch that lags shows a version
    /// that every write conflicts with.
    fn after_conflict(&self, cluster: Trigger, uid: Option<&String>) -> Duration {
        self.with_row(cluster, uid, |row| {
            let now = tokio::time::Instant::now();
            let in_row = now - row.conflicted < CONFLICTS_APART;
            row.conflicts = if in_row { row.conflicts.saturating_add(1) } else { 0 };
            row.conflicted = now;
            SOONEST * (1 << row.conflicts.min(7))
        })
    }

    /// A failure that is looked at again at regular times.
    fn note(&self, cluster: Trigger, uid: Option<&String>) {
        self.with_row(cluster, uid, |_| {});
    }

    fn with_row<T>(&self, cluster: Trigger, uid: Option<&String>, change: impl FnOnce(&mut Row) -> T) -> T {
        let now = tokio::time::Instant::now();
        let first = || Row { uid: uid.cloned(), count: 0, conflicts: 0, conflicted: now, since: now };
        let mut failures = self.lock();
        let row = failures.entry(cluster).or_insert_with(first);
        if row.uid.as_ref() != uid {
            *row = first();
        }
        change(row)
    }

    /// Whether a cluster has failed for so long that somebody should know.
    fn last(&self, cluster: &Guarded) -> bool {
        let failures = self.lock();
        let row = failures.get(&Trigger::from_obj(cluster)).filter(|row| row.uid == cluster.meta().uid);
        row.is_some_and(|row| row.since.elapsed() >= LASTING)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Trigger, Row>> {
        // Entries are replaced whole, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep_only(&self, lives: impl Fn(&Trigger) -> bool) {
        self.lock().retain(|cluster, _| lives(cluster));
    }

    fn forget(&self, cluster: &Trigger) {
        self.lock().remove(cluster);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn conflicts_in_a_row_are_tried_ever_more_seldom_and_what_is_waited_for_delays_nothing() {
        let failures = Failures::default();
        let cluster = || Trigger::new("chat").within("test");
        let waits: Vec<_> = (0..10).map(|_| failures.after_conflict(cluster(), None).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1_600, 3_200, 6_400, 6_400, 6_400, 6_400]);
        tokio::time::sleep(CONFLICTS_APART).await;
        assert_eq!(failures.after_conflict(cluster(), None), SOONEST);
        (0..20).for_each(|_| failures.note(cluster(), None));
        assert!(failures.next_try(cluster(), None) <= Duration::from_secs(2));
    }

    #[tokio::test]
    async fn what_is_remembered_of_a_cluster_that_is_gone_is_forgotten() {
        let silent = tower::service_fn(|_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, tower::BoxError>>()
        });
        let client = Client::new(silent, "test");
        let shared = Shared {
            config: OperatorConfig::default(),
            claim: Claim::default(),
            events: Events::new(client.clone(), "one"),
            metrics: Metrics::new(),
            readiness: Readiness::default(),
            client,
        };
        let scope = Scope::all_of(&["test".to_owned()]).remove(0);
        let (mirrors, _) = Mirrors::start(&shared.client, &scope, &shared.metrics, &shared.readiness);
        let context = Context::new(&shared, mirrors);
        context.failures.next_try(Trigger::new("gone").within("test"), None);
        assert_eq!(context.failures.lock().len(), 1);
        context.shed();
        assert_eq!(context.failures.lock().len(), 0);
    }

    #[tokio::test]
    async fn a_panic_is_the_error_of_the_cluster_that_it_happened_for() {
        let ended = caught(async { if true { panic!("no {}", "field") } else { Ok(()) } }).await;
        let Err(error) = ended else { panic!("it panicked") };
        assert!(matches!(&error, Error::Panicked(text) if text == "no field"), "{error}");
        assert_eq!(error.class(), ErrorClass::Transient, "it is tried again, later each time");
    }

    #[test]
    fn what_the_api_server_says_is_told_once_and_without_a_dump() {
        let status = Status {
            code: 422,
            message: "Service \"chat\" is invalid: spec.type: Unsupported value".to_owned(),
            reason: "Invalid".to_owned(),
            ..Status::default()
        };
        let child = serde_json::json!({"kind": "Service", "metadata": {"name": "chat"}});
        let error = Error::refused("apply", &child)(kube::Error::Api(Box::new(status)));
        let told = "spec.service: the API server refuses to apply Service chat: Service \"chat\" is invalid: spec.type: Unsupported value";
        assert_eq!(chain(&error), told);
        assert_eq!(error.problem(false).expect("a problem").reason, Reason::InvalidSpec);
    }

    #[test]
    fn a_log_line_has_no_dump_either() {
        let status = || Status { code: 404, message: "page not found".to_owned(), ..Status::default() };
        let listing = kube::runtime::watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status())));
        assert_eq!(chain(&listing), "failed to perform initial object list: page not found");
        assert_eq!(chain(&kube::Error::Api(Box::new(status()))), "page not found");
    }
}
