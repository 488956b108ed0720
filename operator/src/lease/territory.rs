//! Which namespaces this operator may touch: a Lease in each that has FanoutClusters of its class.
//!
//! Two installations whose watched namespaces overlap would undo each other's writes for ever. So each asks for the
//! namespace first. The Lease names the installation, not the process: which process of an installation writes is
//! decided by its own Lease, and a successor goes on at once. It is not released at the end of a process, or every
//! restart of one installation would hand its namespaces to another that waits for them.
//!
//! [`Territory::enter`] is asked before each reconcile and [`Territory::check`] before each write; [`Territory::keep`] renews, looks after namespaces that others
//! hold, and lets go of those without FanoutClusters. Where the operator has no right to Leases it goes on without:
//! what it managed before it knew of them it manages after.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream};
use kube::Client;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::{Claim, Lease, LeaseArgs, Timing, Verdict};
use crate::{
    api::GROUP,
    health::{Obstacle, Readiness},
};

/// Time between two looks at each namespace.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Times of the Lease of a namespace. A write every 15 s is cheap for hundreds of namespaces. A request that was
/// sent while the Lease was ours has the 20 s between giving up and others' taking over to end.
const TIMING: Timing = Timing {
    duration: Duration::from_secs(60),
    renew_deadline: Duration::from_secs(40),
    retry: Duration::from_secs(15),
};

/// An answer that takes longer counts as none.
const PATIENCE: Duration = Duration::from_secs(10);

/// Namespaces asked for at one time.
const AT_ONCE: usize = 16;

/// The namespaces of one watched scope. Clones share them.
#[derive(Clone)]
pub struct Territory {
    client: Client,
    name: String,
    installation: String,
    leading: Claim,
    readiness: Readiness,
    plots: Arc<Mutex<HashMap<String, Plot>>>,
}

/// One namespace. Its claim is read without waiting for a request that is under way.
#[derive(Clone)]
struct Plot {
    claim: Claim,
    lease: Arc<tokio::sync::Mutex<Lease>>,
}

/// Why a namespace may not be touched.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Another installation holds it.
    #[error(
        "the FanoutClusters of namespace {namespace} are held by the operator {holder}: remove one of the two, give \
         each its own namespaces (watchNamespaces), or a class (operatorClass)"
    )]
    Held {
        /// The namespace.
        namespace: String,
        /// The other installation, as `<namespace>/<lease>`.
        holder: String,
    },
    /// The API server did not answer, or somebody was faster.
    #[error("failed to acquire the lease of namespace {namespace}")]
    Unknown {
        /// The namespace.
        namespace: String,
        /// What the API server said.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server took too long.
    #[error("the API server did not answer a request for the lease of namespace {namespace} in time")]
    Late {
        /// The namespace.
        namespace: String,
    },
    /// The Lease ran out while something was done in the namespace.
    #[error("the lease of namespace {namespace} ran out")]
    RunOut {
        /// The namespace.
        namespace: String,
    },
    /// This process does not lead its installation.
    #[error("this process does not lead")]
    NotLeading,
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_conflict())
}

/// Name of the Lease of the operators of a class, in each namespace that has FanoutClusters of theirs.
pub fn lease_name(class: Option<&str>) -> String {
    let all = format!("fanoutclusters.{GROUP}");
    class.map_or_else(|| all.clone(), |class| format!("{class}.{all}"))
}

// === impl Territory ===

impl Territory {
    /// No namespace is held yet. `leading` tells whether this process may write, `class` which FanoutClusters are its own.
    pub fn new(
        client: Client,
        installation: &str,
        class: Option<&str>,
        leading: Claim,
        readiness: Readiness,
    ) -> Self {
        Self {
            client,
            name: lease_name(class),
            installation: installation.to_owned(),
            leading,
            readiness,
            plots: Arc::default(),
        }
    }

    /// Asks for a namespace before it is touched.
    ///
    /// # Errors
    /// Another installation holds it, or the API server does not say.
    pub async fn enter(&self, namespace: &str) -> Result<(), Refused> {
        let plot = self.plot(namespace);
        if plot.claim.holds() {
            return Ok(());
        }
        let mut lease = plot.lease.lock().await;
        // Another reconcile may have asked meanwhile.
        if plot.claim.holds() {
            return Ok(());
        }
        let answer = self.ask(namespace, &mut lease).await;
        // The namespace may have been left while the API server was waited for: then nothing clears what was said of it.
        if !self.lock().get(namespace).is_some_and(|kept| Arc::ptr_eq(&kept.lease, &plot.lease)) {
            self.clear(namespace);
        }
        answer
    }

    /// Asked before each write: a reconcile may take longer than what is left of the Lease.
    ///
    /// # Errors
    /// This process does not lead, or the namespace is not held any more.
    pub fn check(&self, namespace: &str) -> Result<(), Refused> {
        if !self.leading.holds() {
            return Err(Refused::NotLeading);
        }
        let held = self.lock().get(namespace).is_some_and(|plot| plot.claim.holds());
        if held { Ok(()) } else { Err(Refused::RunOut { namespace: namespace.to_owned() }) }
    }

    /// Renews without end. `wanted` names the namespaces that have FanoutClusters.
    pub async fn keep(&self, wanted: impl Fn() -> BTreeSet<String>) {
        loop {
            sleep(LOOK_EVERY).await;
            let wanted = wanted();
            let left: Vec<_> = self.lock().extract_if(|namespace, _| !wanted.contains(namespace)).collect();
            for (namespace, plot) in left {
                self.leave(&namespace, plot).await;
            }
            stream::iter(wanted)
                .for_each_concurrent(AT_ONCE, async |namespace| self.renew(&namespace).await)
                .await;
        }
    }

    async fn renew(&self, namespace: &str) {
        let plot = self.plot(namespace);
        // As long as less than this is left, a renewal is due.
        let left = TIMING.renew_deadline.saturating_sub(TIMING.retry);
        if plot.claim.until().is_some_and(|until| until > Instant::now() + left) {
            return;
        }
        let mut lease = plot.lease.lock().await;
        match self.ask(namespace, &mut lease).await {
            // Told when it began.
            Ok(()) | Err(Refused::Held { .. } | Refused::NotLeading) => {}
            Err(error) => warn!(error = %crate::controller::chain(&error), "failed to renew a lease"),
        }
    }

    /// One request for a namespace, and what follows from the answer.
    async fn ask(&self, namespace: &str, lease: &mut Lease) -> Result<(), Refused> {
        if !self.leading.holds() {
            return Err(Refused::NotLeading);
        }
        let namespace = namespace.to_owned();
        let sent = Instant::now();
        let renewal = async {
            match lease.verdict() {
                Verdict::Ours => lease.renew().await,
                Verdict::Free | Verdict::Held { .. } => lease.try_acquire().await,
            }
        };
        let answer = timeout(PATIENCE, renewal).await;
        match answer {
            Ok(Ok(None)) => self.won(&namespace, lease, sent),
            Ok(Ok(Some(holder))) => return Err(self.lost(namespace, lease, holder)),
            Ok(Err(kube::Error::Api(status))) if status.is_forbidden() => {
                if lease.claim.until().is_none() {
                    warn!(namespace, error = %status, "two operators in this namespace would not notice each other");
                }
                self.won(&namespace, lease, sent);
            }
            Ok(Err(error)) => {
                let refused = Refused::Unknown { namespace, source: Box::new(error) };
                return Err(self.failed(lease, refused));
            }
            Err(_) => return Err(self.failed(lease, Refused::Late { namespace })),
        }
        Ok(())
    }

    /// Without the Lease nothing is done in the namespace, which is to be seen. A renewal that fails once, or that somebody
    /// was faster than, passes by itself.
    fn failed(&self, lease: &Lease, refused: Refused) -> Refused {
        let namespace = match &refused {
            Refused::Unknown { source, .. } if is_conflict(source) => return refused,
            Refused::Unknown { namespace, .. } | Refused::Late { namespace } => namespace,
            Refused::Held { .. } | Refused::RunOut { .. } | Refused::NotLeading => return refused,
        };
        if lease.claim.holds() {
            return refused;
        }
        let words = format!(
            "{}: its FanoutClusters are left alone until get, create and update of Lease {namespace}/{} \
             (leases.coordination.k8s.io) succeed",
            crate::controller::chain(&refused),
            self.name
        );
        if self.readiness.block(Obstacle::NamespaceLease(namespace.clone()), words.clone()) {
            warn!("{words}");
        }
        refused
    }

    fn won(&self, namespace: &str, lease: &Lease, sent: Instant) {
        lease.claim.set(Some(sent + TIMING.renew_deadline));
        self.readiness.clear(&Obstacle::NamespaceLease(namespace.to_owned()));
        if self.readiness.clear(&Obstacle::Namespace(namespace.to_owned())) {
            info!(namespace, "the other operator is gone, its FanoutClusters are taken over");
        }
    }

    fn lost(&self, namespace: String, lease: &Lease, holder: String) -> Refused {
        lease.claim.set(None);
        self.readiness.clear(&Obstacle::NamespaceLease(namespace.clone()));
        let obstacle = Obstacle::Namespace(namespace.clone());
        let refused = Refused::Held { namespace, holder };
        if self.readiness.block(obstacle, refused.to_string()) {
            warn!("{refused}");
        }
        refused
    }

    /// A namespace without FanoutClusters is everybody's.
    async fn leave(&self, namespace: &str, plot: Plot) {
        self.clear(namespace);
        if let (true, Some(lease)) = (self.leading.holds(), Arc::into_inner(plot.lease)) {
            lease.into_inner().release().await;
        }
    }

    fn clear(&self, namespace: &str) {
        self.readiness.clear(&Obstacle::Namespace(namespace.to_owned()));
        self.readiness.clear(&Obstacle::NamespaceLease(namespace.to_owned()));
    }

    fn plot(&self, namespace: &str) -> Plot {
        let mut plots = self.lock();
        let plot = plots.entry(namespace.to_owned()).or_insert_with(|| {
            let args = LeaseArgs {
                lease_name: self.name.clone(),
                lease_namespace: namespace.to_owned(),
                identity: Some(self.installation.clone()),
            };
            let lease = Lease::new(self.client.clone(), &args, TIMING);
            Plot { claim: lease.claim(), lease: Arc::new(tokio::sync::Mutex::new(lease)) }
        });
        plot.clone()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Plot>> {
        // Entries are replaced whole, so a panic elsewhere leaves nothing half done.
        self.plots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
