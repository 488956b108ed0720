//! Reconcile, in five steps: dereference → validate → build → apply → status.
//!
//! [`run`] wires it: watches and the nodes' reports trigger `reconcile`, one at a time for each cluster. What
//! goes wrong is classified once, in [`Error::class`].

pub mod apply;
pub mod build;
pub mod dereference;
pub mod diagnose;
mod mirror;
pub mod status;
pub mod validate;

use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, stream};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    Client, Resource,
    core::DeserializeGuard,
    runtime::controller::{Action, Config, Error as Reconcile, applier},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{debug, info, warn};

use self::{
    apply::Applier,
    build::OperatorConfig,
    dereference::SecretShapes,
    mirror::{Guarded, Mirrors, Scope, Stage, Trigger},
    status::Reporter,
};
use crate::{
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

/// Changes that come within this time make one reconcile. Short, for a deleted child is to be back in a second.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// Time that a new leader waits for the nodes to answer.
const FIRST_ROUND: Duration = Duration::from_secs(3);

/// A look at a cluster that waits for something that is not watched: a name to become free, a quota to grow.
const WAITING: Duration = Duration::from_secs(10);

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
#[derive(Debug, thiserror::Error)]
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
    /// It is not known whether another operator holds the namespace.
    #[error(transparent)]
    Refused(Box<Refused>),
    /// A child of that name was not made for this cluster.
    #[error(
        "{kind} {name} belongs to somebody else: rename or delete it, or give the FanoutCluster another name"
    )]
    NotOurs {
        /// Kind of the child.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The API server refused or did not answer.
    #[error("failed to {verb} {kind} {name}")]
    Api {
        /// What was tried.
        verb: &'static str,
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// What the API server said.
        #[source]
        source: Box<kube::Error>,
    },
}

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// Failures in a row of each cluster, by its uid.
#[derive(Debug, Default)]
struct Failures(Mutex<HashMap<Option<String>, u32>>);

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
    let triggers = stream::select(changes, news).map(Ok::<_, Infallible>);
    let queue = triggers.take_until(stop.clone().cancelled_owned());
    let config = Config::default().concurrency(CONCURRENCY).debounce(DEBOUNCE);
    let reconciles = applier(spawn, error_policy, context.clone(), mirrors.clusters(), queue, config);
    let in_step = async {
        mirrors.fill().await;
        // The nodes are asked once before anything is decided or told, but not waited for without end.
        _ = tokio::time::timeout(FIRST_ROUND, mirrors.reach(Stage::InStep)).await;
        mirrors.asked();
        info!(%scope, "the watches are in step");
        shared.readiness.clear(&Obstacle::Watches(scope.to_string()));
        std::future::pending().await
    };
    tokio::select! {
        () = in_step => {}
        () = context.territory.keep(|| context.namespaces()) => {}
        () = reconciles.for_each(log) => {}
    }
}

/// Asks the nodes; yields the clusters of those that said something new.
fn reports(scraper: Scraper, context: Arc<Context>) -> impl futures::Stream<Item = Trigger> + Send {
    let rounds =
        stream::unfold((scraper, context), async |(mut scraper, context): (Scraper, Arc<Context>)| {
            let mirrors = &context.mirrors;
            mirrors.reach(Stage::Filled).await;
            if mirrors.stage() == Stage::InStep {
                tokio::time::sleep(scrape::TICK).await;
            }
            let mut nodes = mirrors.nodes();
            // Those of other operators do not let this one in, and would each be waited for.
            nodes.retain(|pod| context.is_managed(pod));
            let news = scraper.round(nodes).await;
            mirrors.asked();
            let triggers: Vec<_> =
                news.iter().filter_map(|pod| mirror::labelled_cluster(pod.as_ref())).collect();
            Some((stream::iter(triggers), (scraper, context)))
        });
    rounds.flatten().boxed()
}

/// A reconcile is a task of its own, so that the watches go on; it ends with whoever waits for it.
fn spawn(
    cluster: Arc<Guarded>,
    context: Arc<Context>,
) -> impl Future<Output = Result<Action, Error>> + Unpin + Send {
    let task = AbortOnDropHandle::new(tokio::spawn(measured(cluster, context)));
    task.map(|ended| ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))).boxed()
}

async fn measured(cluster: Arc<Guarded>, context: Arc<Context>) -> Result<Action, Error> {
    let begun = Instant::now();
    let result = reconcile(&cluster, &context).await;
    let outcome = match &result {
        Ok(_) => Outcome::Success,
        Err(error) => error.class().into(),
    };
    context.metrics.reconciled(outcome, begun.elapsed());
    if result.is_ok() {
        context.failures.forget(&cluster.meta().uid);
    }
    result
}

async fn reconcile(cluster: &Guarded, context: &Context) -> Result<Action, Error> {
    let Context { config, metrics, mirrors, territory, reports, secrets, applier, reporter, failures: _ } =
        context;
    if !config.manages(cluster.meta()) {
        return Ok(Action::await_change());
    }
    match territory.enter(cluster.meta().namespace.as_deref().unwrap_or_default()).await {
        Ok(()) => {}
        Err(Refused::Held { .. }) => return Ok(Action::requeue(territory::LOOK_EVERY)),
        Err(refused) => return Err(Error::Refused(Box::new(refused))),
    }
    let cluster = match cluster {
        DeserializeGuard(Ok(cluster)) => cluster,
        DeserializeGuard(Err(invalid)) => {
            metrics.malformed_objects.inc();
            reporter.malformed(invalid).await?;
            return Err(Error::Malformed(invalid.error.clone()));
        }
    };
    if cluster.metadata.deletion_timestamp.is_some() {
        // The garbage collector removes the children.
        return Ok(Action::await_change());
    }
    mirrors.reach(Stage::InStep).await;

    let found = dereference::dereference(cluster, mirrors, reports, secrets).await?;
    let verdict = match validate::validate(cluster, &found.named) {
        Ok(validated) => {
            let resources = build::build(cluster, &validated, config);
            applier.apply(cluster, &found, resources).await
        }
        Err(problems) => Ok(apply::Applied::refused(problems)),
    };
    let applied = match verdict {
        Ok(applied) => applied,
        // Its namespace takes nothing new, and takes the cluster with it: there is nothing to do or to tell.
        Err(error) if error.is_namespace_terminating() => return Ok(Action::await_change()),
        Err(error) => {
            reporter.failed(cluster, &found, &error).await?;
            return Err(error);
        }
    };
    let again = reporter.report(cluster, &found, &applied).await?;
    let looks = [applied.look_again(Timestamp::now()), found.next_look(), again, Some(jittered(RESYNC))];
    Ok(Action::requeue(looks.into_iter().flatten().min().unwrap_or(RESYNC)))
}

#[expect(clippy::needless_pass_by_value, reason = "kube hands them over so")]
fn error_policy(cluster: Arc<Guarded>, error: &Error, context: Arc<Context>) -> Action {
    let cluster = cluster.meta().uid.clone();
    match error.class() {
        ErrorClass::Terminal => Action::await_change(),
        ErrorClass::Waiting => Action::requeue(jittered(WAITING)),
        ErrorClass::Conflict => Action::requeue(Duration::from_millis(50)),
        ErrorClass::Transient => Action::requeue(context.failures.next_try(cluster)),
    }
}

async fn log(result: Result<(Trigger, Action), Reconcile<Error, Infallible>>) {
    match result {
        Ok((cluster, _)) => debug!(%cluster, "reconciled"),
        Err(Reconcile::ObjectNotFound(cluster)) => debug!(%cluster, "gone"),
        Err(Reconcile::ReconcilerFailed(error, cluster)) if error.class() == ErrorClass::Conflict => {
            debug!(%cluster, error = %chain(&error), "somebody was faster");
        }
        Err(Reconcile::ReconcilerFailed(error, cluster)) => {
            warn!(%cluster, error = %chain(&error), "failed to reconcile")
        }
        Err(error) => warn!(%error, "the queue of reconciles failed"),
    }
}

fn class_of(status: u16) -> ErrorClass {
    match status {
        409 => ErrorClass::Conflict,
        // Refused for what it is: only a change of it, or of a policy or quota, helps.
        400 | 403 | 422 => ErrorClass::Waiting,
        _ => ErrorClass::Transient,
    }
}

/// An error and its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

/// Up to a tenth more or less, so that clusters do not keep step.
fn jittered(time: Duration) -> Duration {
    time.mul_f64(rand::random_range(0.9..1.1))
}

// === impl Context ===

impl Context {
    fn new(shared: &Shared, mirrors: Mirrors) -> Self {
        Self {
            config: shared.config.clone(),
            metrics: shared.metrics.clone(),
            reports: Reports::default(),
            secrets: SecretShapes::new(shared.client.clone()),
            applier: Applier::new(shared, mirrors.clone()),
            reporter: Reporter::new(shared),
            failures: Failures::default(),
            territory: Territory::new(
                shared.client.clone(),
                &shared.config.installation,
                shared.config.class.as_deref(),
                shared.claim.clone(),
                shared.readiness.clone(),
            ),
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
}

// === impl Error ===

impl Error {
    /// Turns what the API server said into an error that names what was tried.
    fn api(verb: &'static str, kind: &str, name: &str) -> impl FnOnce(kube::Error) -> Self + use<> {
        let (kind, name) = (kind.to_owned(), name.to_owned());
        move |source| Self::Api { verb, kind, name, source: Box::new(source) }
    }

    /// Whether the API server refused a new object because the namespace is being deleted.
    pub fn is_namespace_terminating(&self) -> bool {
        let Self::Api { source, .. } = self else { return false };
        let kube::Error::Api(status) = source.as_ref() else { return false };
        let causes = status.details.iter().flat_map(|details| &details.causes);
        causes.into_iter().any(|cause| cause.reason == NAMESPACE_TERMINATING)
    }

    /// What to do about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Malformed(_) | Self::NotLeading => ErrorClass::Terminal,
            Self::NotOurs { .. } => ErrorClass::Waiting,
            Self::Superseded => ErrorClass::Conflict,
            Self::Refused(refused) => match refused.as_ref() {
                Refused::NotLeading => ErrorClass::Terminal,
                Refused::Held { .. } => ErrorClass::Waiting,
                Refused::Unknown { source, .. } => match source.as_ref() {
                    kube::Error::Api(status) if status.is_conflict() => ErrorClass::Conflict,
                    _ => ErrorClass::Transient,
                },
                Refused::Late { .. } => ErrorClass::Transient,
            },
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => class_of(status.code),
                _ => ErrorClass::Transient,
            },
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
    fn next_try(&self, cluster: Option<String>) -> Duration {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(cluster).or_insert(0);
        *count = count.saturating_add(1);
        let longest = Duration::from_secs(1 << (*count).min(9)).min(Duration::from_secs(300));
        longest.mul_f64(rand::random_range(0.1..1.0))
    }

    fn forget(&self, cluster: &Option<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(cluster);
    }
}
