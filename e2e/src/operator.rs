//! The operator as users install it: the chart, by helm, with no value set that a stranger would not set.

use std::{
    env,
    fs::File,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use fanout_lab::{Cluster, await_condition};

/// Name of the release, as in the README.
pub const RELEASE: &str = "fanout";
/// Its namespace, as in the README.
pub const NAMESPACE: &str = "fanout-system";
/// What the operator's name begins with in the audit log.
pub const USER: &str = "system:serviceaccount:fanout-system:";
/// Selects the operator's pods.
pub const SELECTOR: &str = "app.kubernetes.io/name=fanout-operator";

/// The directory of the chart.
pub fn chart() -> PathBuf {
    root().join("charts/fanout")
}

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace").to_owned()
}

/// Installs the chart once a test run, however many processes ask at the same time.
///
/// # Errors
/// When helm fails or the operator does not become ready.
pub async fn install_once(cluster: &Cluster) -> Result<()> {
    // One file for all processes of a run; a run without an id (`cargo test`) installs in each process.
    let run = env::var("NEXTEST_RUN_ID").unwrap_or_else(|_| std::process::id().to_string());
    let lock =
        File::create(env::temp_dir().join("fanout-e2e.lock")).context("failed to make the lock file")?;
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;
    let done = env::temp_dir().join(format!("fanout-e2e-{run}.installed"));
    if !done.exists() {
        install(cluster).await?;
        File::create(&done).context("failed to note that the chart is installed")?;
    }
    drop(lock);
    Ok(())
}

/// Installs the chart with its own values, or upgrades to it, and waits until the operator is ready. The images' names
/// do not change with their contents, so pods of an earlier installation are restarted.
///
/// # Errors
/// When helm fails or the operator does not become ready.
pub async fn install(cluster: &Cluster) -> Result<()> {
    let earlier = cluster.helm(&["status", RELEASE, "--namespace", NAMESPACE]).await.is_ok();
    // Without it helm keeps values of an upgrade before.
    upgrade(cluster, RELEASE, NAMESPACE, &["--install", "--create-namespace", "--reset-values"]).await?;
    if earlier {
        restart(cluster).await?;
    }
    Ok(())
}

/// `helm upgrade` of a release to the chart, with these further arguments; waits until its operator is ready.
///
/// # Errors
/// When helm fails or the operator does not become ready.
pub async fn upgrade(cluster: &Cluster, release: &str, namespace: &str, more: &[&str]) -> Result<()> {
    let chart = chart();
    let chart = chart.to_str().context("the chart's path is not UTF-8")?;
    let args = ["upgrade", release, chart, "--namespace", namespace, "--wait", "--timeout", "120s"];
    cluster.helm(&[&args[..], more].concat()).await.map(drop)
}

async fn restart(cluster: &Cluster) -> Result<()> {
    let all = ["--namespace", NAMESPACE, "-l", SELECTOR];
    cluster.kubectl(&[&["rollout", "restart", "deployment"][..], &all].concat()).await?;
    cluster.kubectl(&[&["rollout", "status", "deployment", "--timeout=120s"][..], &all].concat()).await?;
    Ok(())
}

/// Removes the release; the CustomResourceDefinition stays.
///
/// # Errors
/// When helm fails.
pub async fn uninstall(cluster: &Cluster) -> Result<()> {
    uninstall_release(cluster, RELEASE, NAMESPACE).await
}

/// Removes a release of another name.
///
/// # Errors
/// When helm fails.
pub async fn uninstall_release(cluster: &Cluster, release: &str, namespace: &str) -> Result<()> {
    let args = ["uninstall", release, "--namespace", namespace, "--wait", "--timeout", "120s"];
    cluster.helm(&args).await.map(drop)
}

/// Kills every pod of the operator at once, without asking it.
///
/// # Errors
/// When there is none, or it cannot be deleted.
pub async fn kill(cluster: &Cluster) -> Result<()> {
    let before = pod_names(cluster).await?;
    ensure!(!before.is_empty(), "no pod of the operator");
    let args = ["delete", "pods", "--namespace", NAMESPACE, "-l", SELECTOR, "--force", "--grace-period=0"];
    cluster.kubectl(&args).await?;
    Ok(())
}

/// Waits until the operator's Deployment is available again.
///
/// # Errors
/// When that takes more than a minute.
pub async fn ready(cluster: &Cluster) -> Result<()> {
    await_condition("the operator to be available", Duration::from_secs(60), async || {
        let args = ["wait", "deployment", "--namespace", NAMESPACE, "-l", SELECTOR];
        cluster.kubectl(&[&args[..], &["--for=condition=Available", "--timeout=5s"]].concat()).await.map(Some)
    })
    .await
    .map(drop)
}

/// The end of the operator's log; empty where it is not installed.
pub async fn log(cluster: &Cluster) -> String {
    let args = ["logs", "--namespace", NAMESPACE, "-l", SELECTOR, "--tail=60"];
    cluster.kubectl(&args).await.unwrap_or_default()
}

async fn pod_names(cluster: &Cluster) -> Result<Vec<String>> {
    let names =
        cluster.kubectl(&["get", "pods", "--namespace", NAMESPACE, "-l", SELECTOR, "-o", "name"]).await?;
    Ok(names.lines().map(str::to_owned).collect())
}
