//! Who may write: one process of several, by a Lease of the API server; and where, see [`territory`].
//!
//! [`Lease::acquire`] waits until this process leads, [`Lease::keep`] renews until that is over, [`Lease::release`]
//! hands over. Every write to the Lease is a `replace` with the resourceVersion that was read, so two processes
//! cannot both win. Whether another holder is alive is judged by this machine's monotonic clock alone: the time
//! since we last *saw* its record change. Clocks of two machines are never compared.
//!
//! The holder stops by itself when it could not renew for [`Timing::renew_deadline`], which is shorter than the
//! time after which others take over. It does not try to lead again: the process ends, and with it every write
//! that was under way.

pub mod territory;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::{
    api::coordination::v1::{Lease as LeaseObject, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, info, warn};

use crate::controller::chain;

/// Where the Lease is and who we are in it.
#[derive(Clone, Debug, clap::Args)]
pub struct LeaseArgs {
    /// Name of the Lease for leader election between operators.
    #[arg(long, env = "FANOUT_LEASE_NAME", default_value = "fanout-operator")]
    pub lease_name: String,
    /// Namespace of the Lease. Defaults to the namespace of this pod.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub lease_namespace: String,
    /// Identity of this process in the Lease. Defaults to the name of its pod.
    #[arg(long, env = "POD_NAME")]
    pub identity: Option<String>,
}

/// The three times of a Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Others take over when the record has not changed for this long.
    pub duration: Duration,
    /// The holder gives up when it could not renew for this long.
    pub renew_deadline: Duration,
    /// Time between two attempts.
    pub retry: Duration,
}

/// Whether this process leads. Clones share the answer.
///
/// It runs out by itself: a process that was stopped or starved finds it expired in the moment it goes on, before
/// anybody told it.
#[derive(Clone, Debug, Default)]
pub struct Claim(Arc<Mutex<Option<Instant>>>);

/// The Lease and what is known of it.
#[derive(Debug)]
pub struct Lease {
    api: Api<LeaseObject>,
    name: String,
    identity: String,
    timing: Timing,
    claim: Claim,
    seen: Option<Seen>,
}

/// A record of the Lease, and when we first saw it as it is.
#[derive(Clone, Debug)]
struct Seen {
    object: LeaseObject,
    since: Instant,
}

/// Why this process leads no longer.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// Another process took over.
    #[error("the lease is held by {holder}")]
    Taken {
        /// Its identity.
        holder: String,
    },
    /// The API server did not take a renewal in time.
    #[error("the lease could not be renewed for {} s", .0.as_secs())]
    NotRenewed(Duration),
}

/// What a look at the Lease says.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Ours,
    Free,
    Held { by: String },
}

// === impl Timing ===

impl Default for Timing {
    fn default() -> Self {
        // As kube-controller-manager: a crash is noticed in 15 s, a slow API server is forgiven for 10 s.
        Self {
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

// === impl Claim ===

impl Claim {
    /// Whether this process may write.
    pub fn holds(&self) -> bool {
        self.until().is_some_and(|until| Instant::now() < until)
    }

    fn set(&self, until: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    fn until(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Lease ===

impl Lease {
    /// A Lease that this process does not hold yet.
    pub fn new(client: Client, args: &LeaseArgs, timing: Timing) -> Self {
        Self {
            api: Api::namespaced(client, &args.lease_namespace),
            name: args.lease_name.clone(),
            identity: args.identity.clone().unwrap_or_else(random_identity),
            timing,
            claim: Claim::default(),
            seen: None,
        }
    }

    /// The name of this process.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// What tells whether this process leads.
    pub fn claim(&self) -> Claim {
        self.claim.clone()
    }

    /// Waits until this process leads. It is safe to drop before.
    pub async fn acquire(&mut self) {
        let mut told = None;
        loop {
            let sent = Instant::now();
            match self.try_acquire().await {
                Ok(None) => return self.lead_since(sent),
                Ok(Some(holder)) if told.as_ref() != Some(&holder) => {
                    info!(holder, "waiting for the lease");
                    told = Some(holder);
                }
                Ok(Some(_)) => {}
                Err(error) => warn!(error = %chain(&error), "failed to acquire the lease"),
            }
            sleep(self.timing.retry).await;
        }
    }

    fn lead_since(&self, sent: Instant) {
        self.claim.set(Some(sent + self.timing.renew_deadline));
        info!(identity = self.identity, "leading");
    }

    /// Renews until it is over. The claim no longer holds when this returns.
    pub async fn keep(&mut self) -> Lost {
        let lost = loop {
            sleep(self.timing.retry).await;
            // From here, not from the answer: others count from when the record changed.
            let sent = Instant::now();
            let deadline = self.claim.until().unwrap_or(sent);
            match timeout_at(deadline, self.renew()).await {
                Ok(Ok(None)) => self.claim.set(Some(sent + self.timing.renew_deadline)),
                Ok(Ok(Some(holder))) => break Lost::Taken { holder },
                Ok(Err(error)) if Instant::now() < deadline => {
                    warn!(error = %chain(&error), "failed to renew the lease")
                }
                Ok(Err(_)) | Err(_) => break Lost::NotRenewed(self.timing.renew_deadline),
            }
        };
        self.claim.set(None);
        lost
    }

    /// Gives the Lease up, so that another process leads at its next attempt.
    pub async fn release(mut self) {
        self.claim.set(None);
        if self.verdict() != Verdict::Ours {
            return;
        }
        let Some(Seen { mut object, .. }) = self.seen.take() else { return };
        let spec = object.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        let params = PostParams::default();
        let released = timeout(self.timing.retry, self.api.replace(&self.name, &params, &object));
        match released.await {
            Ok(Ok(_)) => info!("released the lease"),
            Ok(Err(error)) => warn!(error = %chain(&error), "failed to release the lease"),
            Err(_) => warn!("releasing the lease took too long"),
        }
    }

    /// One attempt: reads, and takes the Lease if it is free. `Some` names the process that holds it instead.
    async fn try_acquire(&mut self) -> kube::Result<Option<String>> {
        let Some(object) = self.api.get_opt(&self.name).await? else {
            let object = self.api.create(&PostParams::default(), &self.fresh()).await?;
            self.observe(object);
            return Ok(None);
        };
        self.observe(object);
        match self.verdict() {
            Verdict::Held { by } => Ok(Some(by)),
            Verdict::Ours | Verdict::Free => self.write().await.map(|()| None),
        }
    }

    /// Renews; `Some` names the process that holds the Lease instead.
    async fn renew(&mut self) -> kube::Result<Option<String>> {
        match self.write().await {
            Ok(()) => Ok(None),
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {
                debug!("the lease changed under us");
                self.try_acquire().await
            }
            Err(error) => Err(error),
        }
    }

    /// Writes our record over the one we saw, or fails if it is no longer that one.
    async fn write(&mut self) -> kube::Result<()> {
        let Some(seen) = &self.seen else { return Ok(()) };
        let mut object = seen.object.clone();
        let spec = object.spec.get_or_insert_default();
        let now = MicroTime(Timestamp::now());
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            spec.holder_identity = Some(self.identity.clone());
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0) + 1);
            spec.acquire_time = Some(now.clone());
        }
        spec.lease_duration_seconds = Some(seconds(self.timing.duration));
        spec.renew_time = Some(now);
        let object = self.api.replace(&self.name, &PostParams::default(), &object).await?;
        self.observe(object);
        Ok(())
    }

    fn fresh(&self) -> LeaseObject {
        let now = MicroTime(Timestamp::now());
        let mut object = LeaseObject::default();
        object.metadata.name = Some(self.name.clone());
        object.spec = Some(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(seconds(self.timing.duration)),
            lease_transitions: Some(0),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            ..LeaseSpec::default()
        });
        object
    }

    fn observe(&mut self, object: LeaseObject) {
        let same = |seen: &&Seen| seen.object.metadata.resource_version == object.metadata.resource_version;
        let since = self.seen.as_ref().filter(same).map_or_else(Instant::now, |seen| seen.since);
        self.seen = Some(Seen { object, since });
    }

    fn verdict(&self) -> Verdict {
        let Some(seen) = &self.seen else { return Verdict::Free };
        let spec = seen.object.spec.as_ref();
        let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        // The holder's own promise counts, should its settings differ from ours.
        let promised = spec.and_then(|spec| spec.lease_duration_seconds).and_then(|s| u64::try_from(s).ok());
        let lifetime = promised.map_or(self.timing.duration, Duration::from_secs);
        match holder {
            _ if holder == self.identity => Verdict::Ours,
            "" => Verdict::Free,
            _ if seen.since.elapsed() >= lifetime => Verdict::Free,
            _ => Verdict::Held { by: holder.to_owned() },
        }
    }
}

fn seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)
}

fn random_identity() -> String {
    format!("fanout-operator-{:016x}", rand::random::<u64>())
}
