//! Starts what is measured, pinned to core 0; the load runs on the others.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::process;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// The floor.
    Bare,
    /// The product.
    Sidecar,
}

/// A running server; ends with its value.
pub(crate) struct Server {
    /// Where clients connect, on loopback.
    pub(crate) port: u16,
    child: Child,
    _settings: TempDir,
}

impl Server {
    /// Starts a server and waits until it listens.
    pub(crate) fn start(kind: Kind, sidecar: &Path) -> Result<Self> {
        let settings = TempDir::new()?;
        let port = free_port()?;
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", "0"]);
        match kind {
            Kind::Bare => {
                command.arg(std::env::current_exe()?).args(["bare", "--port", &port.to_string()]);
            }
            Kind::Sidecar => {
                let (boot, live) = (settings.path().join("boot.yaml"), settings.path().join("live.yaml"));
                fs::write(&boot, boot_document(port)?)?;
                fs::write(&live, LIVE_DOCUMENT)?;
                command.arg(sidecar).arg("run").arg("--config").arg(boot).arg("--live").arg(live);
            }
        }
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context(
            "failed to start the server: is `taskset` (util-linux) installed and the sidecar built?",
        )?;
        let mut server = Self { port, child, _settings: settings };
        server.wait_until_it_listens()?;
        Ok(server)
    }

    /// CPU time used so far, in nanoseconds.
    pub(crate) fn cpu_nanos(&self) -> Result<u64> {
        process::cpu_nanos(self.child.id())
    }

    /// Anonymous resident memory, in bytes.
    pub(crate) fn anonymous_bytes(&self) -> Result<u64> {
        process::anonymous_bytes(self.child.id())
    }

    fn wait_until_it_listens(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended at once: {status}");
            }
            if Instant::now() > deadline {
                bail!("the server does not listen on port {} after 10 s", self.port);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One shard: the server has one core.
fn boot_document(port: u16) -> Result<String> {
    let (api, admin) = (free_port()?, free_port()?);
    Ok(format!(
        "listen: {{client: '127.0.0.1:{port}', api: '127.0.0.1:{api}', admin: '127.0.0.1:{admin}'}}\n\
         runtime: {{shards: 1}}\n\
         broker: {{memory: {{}}}}\n"
    ))
}

/// Bounds far above the load, so that no policy steps in.
const LIVE_DOCUMENT: &str = "\
logLevel: error
hub: {maxConnections: 19000}
namespaces:
  - name: default
    publish: allowed
    subscribe: allowed
    rateLimit: {publishesPerSecond: 1000000, burst: 1000000}
    slowConsumer: {maxLagBytes: 268435456, maxLagMessages: 1000000}
";

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
