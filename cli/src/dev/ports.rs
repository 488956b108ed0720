//! Ports of the nodes on this machine: consecutive for a person, free ones for a check.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context, bail};

/// Ports of one node on the loopback address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodePorts {
    pub(crate) client: u16,
    pub(crate) api: u16,
    pub(crate) admin: u16,
}

/// How nodes get their ports.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PortPlan {
    /// From this port on, ten a node, so that the last digit says what a port is for.
    From(u16),
    /// Any that nobody uses.
    Free,
}

/// Ports of one node lie this far from those of the next.
const STRIDE: u16 = 10;

// === impl PortPlan ===

impl PortPlan {
    /// Ports of the node `index` (from 1), none of them in use.
    pub(crate) fn node(self, index: u16) -> anyhow::Result<NodePorts> {
        let ports = match self {
            Self::From(first) => {
                let client = first
                    .checked_add((index - 1).saturating_mul(STRIDE))
                    .filter(|client| *client <= u16::MAX - 2)
                    .with_context(|| {
                        format!("there is no port for node-{index}: lower --port or replicas")
                    })?;
                NodePorts { client, api: client + 1, admin: client + 2 }
            }
            Self::Free => {
                let [client, api, admin] = free()?;
                NodePorts { client, api, admin }
            }
        };
        for (port, what) in [(ports.client, "client"), (ports.api, "api"), (ports.admin, "admin")] {
            require_free(port, &format!("the {what} port of node-{index}"), "--port")?;
        }
        Ok(ports)
    }
}

/// Some free ports, all different.
pub(crate) fn free<const N: usize>() -> anyhow::Result<[u16; N]> {
    let mut listeners = Vec::with_capacity(N);
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("failed to find a free port")?;
        *port = listener.local_addr().context("failed to find a free port")?.port();
        // Kept open until all are found, so that none is found twice.
        listeners.push(listener);
    }
    Ok(ports)
}

/// Fails, with what to do, where something listens on `port`.
fn require_free(port: u16, what: &str, flag: &str) -> anyhow::Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            bail!("port {port} ({what}) is in use: stop what listens there, or choose others with {flag}")
        }
        Err(error) => Err(error).with_context(|| format!("failed to listen on port {port} ({what})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_get_consecutive_ports_ten_apart() {
        // Others on this machine may have taken a port further on.
        let tried = std::iter::repeat_with(|| free::<1>().unwrap()).take(20);
        let found = tried.filter_map(|[base]| Some((base, PortPlan::From(base).node(2).ok()?))).next();
        let (base, second) = found.expect("three free ports in a row");
        assert_eq!(second, NodePorts { client: base + 10, api: base + 11, admin: base + 12 });
    }

    #[test]
    fn a_port_in_use_is_told_with_its_purpose_and_the_flag() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let error = PortPlan::From(port).node(1).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "port {port} (the client port of node-1) is in use: stop what listens there, or choose others with --port"
            )
        );
    }

    #[test]
    fn nodes_beyond_the_last_port_are_told() {
        let error = PortPlan::From(65_530).node(2).unwrap_err().to_string();
        assert_eq!(error, "there is no port for node-2: lower --port or replicas");
    }
}
