//! Ports of the nodes on this machine: consecutive for a person, free ones for a check.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    ops::RangeInclusive,
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, bail};
use rand::RngExt;

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
/// Below it are the ports that services are known by.
const LOWEST: u16 = 10_000;
/// Ports for every node that a machine can run, with room for what others use.
const ENOUGH: usize = 1_000;

// === impl PortPlan ===

impl PortPlan {
    /// Ports of the node `index` (from 1), none of them in use.
    pub(crate) fn node(self, index: u16) -> anyhow::Result<NodePorts> {
        match self {
            Self::From(first) => {
                let client = first
                    .checked_add((index - 1).saturating_mul(STRIDE))
                    .filter(|client| *client <= u16::MAX - 2)
                    .with_context(|| {
                        format!("there is no port for node-{index}: lower --port or replicas")
                    })?;
                let ports = NodePorts { client, api: client + 1, admin: client + 2 };
                for (port, what) in [(ports.client, "client"), (ports.api, "api"), (ports.admin, "admin")] {
                    require_free(port, &format!("the {what} port of node-{index}"), "--port")?;
                }
                Ok(ports)
            }
            // They were tried a moment ago, and to try them again may find that very trial: another thread that
            // starts a child has all our descriptors copied, and the copies live until the child is another program.
            Self::Free => {
                let [client, api, admin] = free()?;
                Ok(NodePorts { client, api, admin })
            }
        }
    }
}

/// Some free ports, all different, and none that the kernel may give to a connection that somebody opens: what is free
/// now still is when a child binds it a moment later.
pub(crate) fn free<const N: usize>() -> anyhow::Result<[u16; N]> {
    // No port is found twice, for the child that got it may not have bound it yet; and two of these commands side by
    // side begin at different places.
    static TRIED: LazyLock<AtomicUsize> =
        LazyLock::new(|| AtomicUsize::new(rand::rng().random_range(..1 << 16)));
    let all = outside(&ephemeral());
    let next = || all.clone().nth(TRIED.fetch_add(1, Ordering::Relaxed) % all.len()).expect("one of them");
    let mut found = std::iter::repeat_with(next).take(all.len()).filter(|port| is_free(*port));
    let mut ports = [0; N];
    for port in &mut ports {
        *port = found.next().context("failed to find a free port")?;
    }
    Ok(ports)
}

/// Ports of which the kernel takes one for a connection that names none.
fn ephemeral() -> RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ends = text.split_whitespace().map_while(|end| end.parse().ok());
    // Where it is not told: from Linux' first to the last of the IANA's, which others use.
    ends.next().zip(ends.next()).map_or(32_768..=65_535, |(first, last)| first..=last)
}

/// Where to look for free ports: beside `ephemeral`, or anywhere if that leaves too few.
fn outside(ephemeral: &RangeInclusive<u16>) -> RangeInclusive<u16> {
    let below = LOWEST..=ephemeral.start().saturating_sub(1);
    let above = ephemeral.end().saturating_add(1)..=u16::MAX;
    [below, above].into_iter().find(|range| range.len() >= ENOUGH).unwrap_or(LOWEST..=u16::MAX)
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
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
    fn free_ports_are_different_and_none_that_a_connection_may_get() {
        let ports: [u16; 30] = free().unwrap();
        let different: std::collections::HashSet<_> = ports.iter().collect();
        assert_eq!(different.len(), ports.len());
        let ephemeral = ephemeral();
        if outside(&ephemeral) != (LOWEST..=u16::MAX) {
            assert!(!ports.iter().any(|port| ephemeral.contains(port)), "{ports:?} in {ephemeral:?}");
        }
    }

    #[test]
    fn free_ports_are_found_while_another_thread_starts_children() {
        std::thread::scope(|scope| {
            let children = scope.spawn(|| {
                for _ in 0..200 {
                    std::process::Command::new("true").status().expect("it runs");
                }
            });
            while !children.is_finished() {
                PortPlan::Free.node(1).expect("three free ports");
            }
        });
    }

    #[test]
    fn free_ports_are_looked_for_beside_those_of_connections() {
        assert_eq!(outside(&(32_768..=60_999)), 10_000..=32_767);
        assert_eq!(outside(&(10_500..=50_000)), 50_001..=65_535);
        assert_eq!(outside(&(1_024..=65_535)), 10_000..=65_535);
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
