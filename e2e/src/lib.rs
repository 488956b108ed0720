//! The tests' frame: finds the cluster, gives each test a namespace, reports what explains a failure.
//!
//! The tests themselves are in `tests/`; run them by `make e2e`. Without a cluster they are skipped, loudly, and with
//! `CI=true` a skip is a failure.

#![forbid(unsafe_code)]

use std::env;

use anyhow::Result;
use fanout_lab::{Cluster, Namespace};

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
        Err(reason) if env::var("CI").is_ok_and(|value| value == "true") => panic!("CI=true and {reason}"),
        Err(reason) => {
            eprintln!("SKIPPED: {reason}");
            None
        }
    }
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
    let namespace = cluster
        .namespace(prefix, security == PodSecurity::Restricted)
        .await
        .expect("a namespace can be made");
    if let Err(error) = test(&namespace).await {
        let report = namespace.report().await;
        panic!("{error:#}\n\n{report}");
    }
}
