//! The tests' frame: finds the cluster, installs the operator once, gives each test a namespace, and reports what
//! explains a failure.
//!
//! The tests themselves are in `tests/`; run them by `make e2e`. Without a cluster they are skipped, loudly, and with
//! `CI=true` a skip is a failure.

#![forbid(unsafe_code)]

use std::env;

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

/// The cluster, or nothing where there is none and that may be.
///
/// # Panics
/// With `CI=true` where there is none: there, a skipped test is a failure.
pub async fn cluster() -> Option<Cluster> {
    match Cluster::connect().await {
        Ok(cluster) => Some(cluster),
        Err(reason) if in_ci() => panic!("CI=true and {reason}"),
        Err(reason) => {
            eprintln!("SKIPPED: {reason}");
            None
        }
    }
}

/// What the API server was asked, where it says so: of clusters that are not ours to configure, the lab alone.
///
/// # Panics
/// With `CI=true` where it is not to be had: there, a skipped check is a failure.
pub fn audit_log(cluster: &Cluster) -> Option<AuditLog> {
    let audit = cluster.audit_log();
    if audit.is_none() {
        let reason = "writes and refusals are read in the lab's audit log, and this is another cluster";
        assert!(!in_ci(), "CI=true and {reason}");
        eprintln!("SKIPPED: {reason}");
    }
    audit
}

fn in_ci() -> bool {
    env::var("CI").is_ok_and(|value| value == "true")
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
    let Some(cluster) = cluster().await else { return };
    run(&cluster, prefix, security, test).await;
}

/// The same with the operator installed, in a namespace that enforces the restricted Pod Security Standard. The test
/// fails, too, if RBAC refused the operator anything meanwhile.
///
/// # Panics
/// When `test` fails.
pub async fn with_operator(prefix: &str, test: impl AsyncFnOnce(&Namespace) -> Result<()>) {
    let Some(cluster) = cluster().await else { return };
    operator::install_once(&cluster).await.expect("the chart can be installed");
    run(&cluster, prefix, PodSecurity::Restricted, async |namespace| {
        let audit = audit_log(&cluster);
        let began = audit.as_ref().map(|log| log.position()).transpose()?;
        test(namespace).await?;
        let Some((audit, began)) = audit.zip(began) else { return Ok(()) };
        let mut refused =
            audit.requests_since(began, operator::USER).context("failed to read the audit log")?;
        refused.retain(|request| request.forbidden);
        ensure!(refused.is_empty(), "RBAC refused the operator: {refused:#?}");
        Ok(())
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
