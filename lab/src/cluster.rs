//! The connection to a cluster: which one, and its `kubectl` and `helm`. Called by tests and by the other modules here.

use std::{env, path::PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{AuditLog, Namespace, Output, command::run};

/// Why there is no cluster to test on.
#[derive(Debug)]
pub struct Unavailable(String);

impl std::fmt::Display for Unavailable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no Kubernetes cluster: {}; run `make e2e`, or set KUBECONFIG", self.0)
    }
}

impl std::error::Error for Unavailable {}

/// A Kubernetes cluster that answers: the lab, or the one that `KUBECONFIG` names.
#[derive(Debug, Clone)]
pub struct Cluster {
    kubeconfig: PathBuf,
    lab_dir: Option<PathBuf>,
}

impl Cluster {
    /// Finds the cluster by `KUBECONFIG` and asks it whether it is ready.
    ///
    /// # Errors
    /// When none is named, or it does not answer from here.
    pub async fn connect() -> Result<Self, Unavailable> {
        let kubeconfig = env::var_os("KUBECONFIG")
            .map(PathBuf::from)
            .ok_or_else(|| Unavailable("KUBECONFIG is not set".into()))?;
        let lab_dir = env::var_os("LAB_DIR").map(PathBuf::from).filter(|dir| kubeconfig.starts_with(dir));
        let cluster = Self { kubeconfig, lab_dir };
        match cluster.kubectl(&["get", "--raw", "/readyz"]).await {
            Ok(_) => Ok(cluster),
            Err(error) => Err(Unavailable(format!("{error:#}"))),
        }
    }

    /// Whether this is the cluster that `lab.sh` made, so that its files and its processes are at hand.
    pub fn is_lab(&self) -> bool {
        self.lab_dir.is_some()
    }

    /// What the API server was asked, where it is the lab's.
    pub fn audit_log(&self) -> Option<AuditLog> {
        self.lab_dir.as_ref().map(|dir| AuditLog::at(dir.join("log/audit.log")))
    }

    /// Gives an image that the lab's nodes have a second name.
    ///
    /// # Errors
    /// When the cluster is not the lab's, or a node has no such image.
    pub async fn tag_image(&self, image: &str, name: &str) -> Result<()> {
        let lab = self.lab_dir.as_ref().context("only the lab's containerd is at hand")?;
        for node in self.kubectl(&["get", "nodes", "-o", "name"]).await?.lines() {
            let socket = lab.join(node.trim_start_matches("node/")).join("containerd.sock");
            let socket = socket.to_str().context("LAB_DIR is not UTF-8")?;
            let args = ["-a", socket, "-n", "k8s.io", "images", "tag", "--force", image, name];
            run("ctr", &args, None).await?.ok(&format!("ctr images tag {image} on {node}"))?;
        }
        Ok(())
    }

    /// Runs `kubectl` and gives what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.try_kubectl(args, None).await?.ok(&format!("kubectl {}", args.join(" ")))
    }

    /// Runs `kubectl`, which may fail, with `stdin` as its input.
    ///
    /// # Errors
    /// When it cannot be run at all.
    pub async fn try_kubectl(&self, args: &[&str], stdin: Option<&str>) -> Result<Output> {
        let mut all = vec!["--kubeconfig", self.kubeconfig.to_str().context("KUBECONFIG is not UTF-8")?];
        all.extend(args);
        run("kubectl", &all, stdin).await
    }

    /// Runs `kubectl … -o json` and parses what it printed.
    ///
    /// # Errors
    /// When it fails or prints no JSON.
    pub async fn kubectl_json(&self, args: &[&str]) -> Result<Value> {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        serde_json::from_str(&self.kubectl(&all).await?).context("kubectl printed no JSON")
    }

    /// Runs `helm` and gives what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub async fn helm(&self, args: &[&str]) -> Result<String> {
        let mut all = vec!["--kubeconfig", self.kubeconfig.to_str().context("KUBECONFIG is not UTF-8")?];
        all.extend(args);
        run("helm", &all, None).await?.ok(&format!("helm {}", args.join(" ")))
    }

    /// Makes a namespace of its own for a test, removed when dropped. With `restricted`, it enforces the restricted
    /// Pod Security Standard.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn namespace(&self, prefix: &str, restricted: bool) -> Result<Namespace> {
        Namespace::create(self.clone(), prefix, restricted).await
    }
}
