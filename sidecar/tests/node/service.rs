//! Programs of others around a node: proxies, Prometheus.

use std::{
    fs,
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::{redis_server::free_port, support::eventually};

/// A program that is gone with the test.
pub(crate) struct Service {
    child: Child,
    pub(crate) address: SocketAddr,
    _directory: TempDir,
}

impl Service {
    /// Runs `program`, of Debian's package of the same name. In arguments and `configuration`, which it
    /// finds in DIR/conf, DIR is a directory of its own, 127.0.0.1:8080 its address and 127.0.0.1:8000 the node's.
    pub(crate) async fn start(
        program: &str,
        arguments: &[&str],
        configuration: &str,
        node: SocketAddr,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let dir = directory.path().to_str().unwrap();
        let in_place = |text: &str| {
            let text = text.replace("127.0.0.1:8000", &node.to_string()).replace("DIR", dir);
            text.replace("127.0.0.1:8080", &address.to_string())
        };
        fs::write(directory.path().join("conf"), in_place(configuration)).unwrap();
        let arguments = arguments.iter().map(|argument| in_place(argument));
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let started = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(log).spawn();
        let child = started.unwrap_or_else(|error| {
            panic!("{program} does not start ({error}): apt-get install -y {program}");
        });
        let service = Self { child, address, _directory: directory };
        eventually("the service listens", async || TcpStream::connect(address).await.ok().map(drop)).await;
        service
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // nginx would leave its workers behind at a kill.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}
