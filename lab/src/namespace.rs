//! A test's own namespace: applies YAML into it, reads it, explains it after a failure, removes it at the end.

use std::{
    env, process,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::Result;
use serde_json::Value;

use crate::{Cluster, Output, await_condition};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// Lines of each container's log in a report: enough for the last start of a process.
const LOG_LINES: &str = "--tail=40";

/// A namespace that goes away with this value, unless `FANOUT_E2E_KEEP` is set.
#[derive(Debug)]
pub struct Namespace {
    cluster: Cluster,
    name: String,
}

impl Namespace {
    pub(crate) async fn create(cluster: Cluster, prefix: &str, restricted: bool) -> Result<Self> {
        let name = format!("{prefix}-{}-{}", process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let namespace = Self { cluster, name };
        namespace.cluster.kubectl(&["create", "namespace", &namespace.name]).await?;
        if restricted {
            let label = "pod-security.kubernetes.io/enforce=restricted";
            namespace.cluster.kubectl(&["label", "namespace", &namespace.name, label]).await?;
        }
        await_condition("the namespace's service account", Duration::from_secs(20), async || {
            namespace.kubectl(&["get", "serviceaccount", "default"]).await.map(Some)
        })
        .await?;
        Ok(namespace)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster it is on.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Runs `kubectl` in this namespace.
    ///
    /// # Errors
    /// When it fails.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.try_kubectl(args, None).await?.ok(&format!("kubectl {}", args.join(" ")))
    }

    /// Runs `kubectl` in this namespace; it may fail.
    ///
    /// # Errors
    /// When it cannot be run at all.
    pub async fn try_kubectl(&self, args: &[&str], stdin: Option<&str>) -> Result<Output> {
        let mut all = vec!["--namespace", &self.name];
        all.extend(args);
        self.cluster.try_kubectl(&all, stdin).await
    }

    /// Reads one object or a list as JSON: `get(&["pods", "-l", "app=x"])`.
    ///
    /// # Errors
    /// When `kubectl get` fails, as it does for an object that is not there.
    pub async fn get(&self, args: &[&str]) -> Result<Value> {
        let mut all = vec!["--namespace", &self.name, "get"];
        all.extend(args);
        self.cluster.kubectl_json(&all).await
    }

    /// Applies YAML documents.
    ///
    /// # Errors
    /// When the API server refuses one of them.
    pub async fn apply(&self, yaml: &str) -> Result<String> {
        self.try_kubectl(&["apply", "-f", "-"], Some(yaml)).await?.ok("kubectl apply")
    }

    /// Runs a command in a pod's container and gives what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub async fn exec(&self, pod: &str, container: Option<&str>, command: &[&str]) -> Result<String> {
        let mut args = vec!["exec", pod];
        args.extend(container.map(|name| ["-c", name]).iter().flatten());
        args.push("--");
        args.extend(command);
        self.kubectl(&args).await
    }

    /// Waits for `probe` as [`await_condition`] does.
    ///
    /// # Errors
    /// When `deadline` passes first.
    pub async fn until<T>(
        &self,
        what: &str,
        deadline: Duration,
        probe: impl AsyncFnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        await_condition(what, deadline, probe).await
    }

    /// What explains a failure: objects, events, and the ends of the containers' logs.
    pub async fn report(&self) -> String {
        let mut report = format!("=== namespace {} ===\n", self.name);
        let kinds = "rs,sts,deploy,pods,svc,endpointslices,cm,secrets,pdb,netpol,pvc,hpa";
        // What tells most comes first: a report may be cut.
        for pod in self.show(&["get", "pods", "-o", "name"]).await.lines() {
            report += &format!(
                "--- logs of {pod}\n{}\n",
                self.show(&["logs", pod, "--all-containers", LOG_LINES]).await
            );
        }
        for (title, args) in [
            ("events", &["get", "events", "--sort-by=.lastTimestamp"][..]),
            ("objects", &["get", kinds, "-o", "wide"]),
            ("pods", &["describe", "pods"]),
            ("clusters", &["get", "foc", "-o", "yaml"]),
        ] {
            report += &format!("--- {title}\n{}\n", self.show(args).await);
        }
        report
    }

    /// What `kubectl` printed, its complaints included: a report shows both.
    async fn show(&self, args: &[&str]) -> String {
        match self.try_kubectl(args, None).await {
            Ok(output) => output.stdout + &output.stderr,
            Err(error) => format!("{error:#}"),
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if env::var_os("FANOUT_E2E_KEEP").is_some() {
            eprintln!("kept namespace {}", self.name);
            return;
        }
        let deletion = ["delete", "namespace", &self.name, "--wait=false", "--ignore-not-found"];
        // A failure leaves a namespace behind and nothing more: the lab goes away whole.
        process::Command::new("kubectl").args(deletion).stdout(process::Stdio::null()).status().ok();
    }
}
