//! The tests' frame: finds the cluster, installs the operator once, gives each test a namespace, and reports what
//! explains a failure.
//!
//! The tests themselves are in `tests/`; run them by `make e2e`. Without a cluster they fail and say how to get one. Those
//! that need what only the lab has are named `lab_…`, by which `scripts/e2e.sh` leaves them out where it is given another
//! cluster, so that they count as skipped.

#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use fanout_lab::{AuditLog, Cluster, Namespace};

mod cli;
mod delivery;
mod fanout;
pub mod operator;
pub mod pods;

pub use cli::kubectl_fanout;
pub use delivery::{assert_silent, exchange, warm_up};
pub use fanout::{Condition, Fanout, open_lobby};

/// Which Pod Security Standard a test's namespace enforces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodSecurity {
    /// None: for pods of the test's own that need what the others forbid.
    Privileged,
    /// What a cautious platform team enforces, and what ours must satisfy.
    Restricted,
}

/// What RBAC refuses an operator from a moment on, as far as the API server says it: the lab's does.
#[derive(Debug)]
pub struct Refusals {
    log: Option<(AuditLog, u64)>,
    account: String,
}

/// The cluster.
///
/// # Panics
/// Where there is none.
pub async fn cluster() -> Cluster {
    Cluster::connect().await.unwrap_or_else(|reason| panic!("{reason}"))
}

/// What the API server was asked: for tests named `lab_…`.
///
/// # Errors
/// When the cluster is not the lab's.
pub fn audit_log(cluster: &Cluster) -> Result<AuditLog> {
    cluster.audit_log().context(
        "this test reads the lab's audit log, and KUBECONFIG names another cluster: run it by `make e2e` without KUBECONFIG",
    )
}

/// Runs `test` in a namespace of its own and removes it; a failure is reported with what explains it.
///
/// # Panics
/// When `test` fails.
pub async fn in_namespace(
    prefix: &str,
    security: PodSecurity,
    test: impl AsyncFnOnce(&Namespace) -> Result<()>,
) {
    run(&cluster().await, prefix, security, test).await;
}

/// The same with the operator installed, in a namespace that enforces the restricted Pod Security Standard. In the lab the
/// test fails, too, if RBAC refused the operator anything meanwhile.
///
/// # Panics
/// When `test` fails.
pub async fn with_operator(prefix: &str, test: impl AsyncFnOnce(&Namespace) -> Result<()>) {
    let cluster = cluster().await;
    operator::install_once(&cluster).await.expect("the chart can be installed");
    run(&cluster, prefix, PodSecurity::Restricted, async |namespace| {
        let refusals = Refusals::from_now_on(&cluster, operator::USER)?;
        test(namespace).await?;
        refusals.none()
    })
    .await;
}

async fn run(
    cluster: &Cluster,
    prefix: &str,
    security: PodSecurity,
    test: impl AsyncFnOnce(&Namespace) -> Result<()>,
) {
    let restricted = security == PodSecurity::Restricted;
    let namespace = cluster.namespace(prefix, restricted).await.expect("a namespace can be made");
    if let Err(error) = test(&namespace).await {
        let report = namespace.report().await;
        let operator = operator::log(cluster).await;
        panic!("{error:#}\n\n{report}\n--- the operator's log\n{operator}");
    }
}

// === impl Refusals ===

impl Refusals {
    /// Those of accounts whose name contains `account`.
    ///
    /// # Errors
    /// When the lab has no audit log.
    pub fn from_now_on(cluster: &Cluster, account: &str) -> Result<Self> {
        let log = cluster.audit_log().map(|log| log.position().map(|began| (log, began))).transpose()?;
        Ok(Self { log, account: account.to_owned() })
    }

    /// Checks that there were none; of another cluster than the lab nothing is known.
    ///
    /// # Errors
    /// When there were some.
    pub fn none(self) -> Result<()> {
        let Self { log, account } = self;
        let Some((log, began)) = log else { return Ok(()) };
        let mut refused = log.requests_since(began, &account).context("failed to read the audit log")?;
        refused.retain(|request| request.forbidden);
        ensure!(refused.is_empty(), "RBAC refused the operator: {refused:#?}");
        Ok(())
    }
}
