//! Ports and files: everything that the system may refuse, asked for before anything is started.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
};

use rustix::{
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use sidecar_config::Listen;
use socket2::{Domain, Protocol, Socket, Type};

use super::{ADMIN_BOUNDS, API_BOUNDS, StartError};

/// Connections that wait to be accepted: a crowd that comes back at once. The system caps it at its own limit.
const BACKLOG: i32 = 4_096;

/// Files that are no client's: connections to api and admin, and listeners, polls, wakers, Redis and settings.
const OTHER_FILES: u64 = (API_BOUNDS.connections + ADMIN_BOUNDS.connections) as u64 + 128;

/// Where a node listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// WebSocket and SSE.
    pub client: SocketAddr,
    /// Server API.
    pub api: SocketAddr,
    /// Probes and metrics.
    pub admin: SocketAddr,
}

/// All ports, bound.
pub(super) struct Listeners {
    pub(super) client: TcpListener,
    pub(super) api: TcpListener,
    pub(super) admin: TcpListener,
    pub(super) addresses: Addresses,
}

impl Listeners {
    pub(super) fn bind(listen: &Listen) -> Result<Self, StartError> {
        let bind = |field, address| {
            let bound = bind(address).and_then(|listener| Ok((listener.local_addr()?, listener)));
            bound.map_err(|source| StartError::Listen { field, address, source })
        };
        let (client_address, client) = bind("listen.client", listen.client)?;
        let (api_address, api) = bind("listen.api", listen.api)?;
        let (admin_address, admin) = bind("listen.admin", listen.admin)?;
        let addresses = Addresses { client: client_address, api: api_address, admin: admin_address };
        Ok(Self { client, api, admin, addresses })
    }
}

/// Binds an address. Where this machine has no IPv6 at all, `[::]` is what is left of every address.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let every_v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
    match bind_exactly(address) {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && is_without_ipv6(&error) => {
            bind_exactly(every_v4)
        }
        bound => bound,
    }
}

fn is_without_ipv6(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || Errno::from_io_error(error) == Some(Errno::AFNOSUPPORT)
}

fn bind_exactly(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the old process' closed connections; a living process still refuses.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `[::]` is every address, of both families.
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// What to do about an address that is not to be had.
pub(super) fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another process has this port: stop it, or choose another port",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege: choose a higher one",
        io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
        _ => "",
    }
}

/// Raises the open-files limit as far as it goes; how many connections it leaves room for.
pub(super) fn max_connections(asked: u32) -> Result<u32, StartError> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    // No limit at all is one more than can be counted.
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(_) => current,
    };
    let limit = limit.unwrap_or(u64::MAX);
    let room = limit.saturating_sub(OTHER_FILES);
    if room == 0 {
        return Err(StartError::OpenFiles { limit, needed: OTHER_FILES + 1 });
    }
    let most = u32::try_from(room).unwrap_or(u32::MAX);
    tracing::info!(open_files = limit, most, "open-files limit");
    tell_if_lowered(asked, most);
    Ok(most)
}

/// Tells of settings that ask for more connections than there are descriptors for.
pub(super) fn tell_if_lowered(asked: u32, most: u32) {
    if most < asked {
        tracing::warn!(
            asked,
            most,
            "the open-files limit is too low for hub.maxConnections, accepting fewer connections"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn every_address_is_of_both_families() {
        let listener = bind("[::]:0".parse().expect("an address")).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
        if listener.local_addr().is_ok_and(|address| address.is_ipv6()) {
            assert!(TcpStream::connect((Ipv6Addr::LOCALHOST, port)).is_ok());
        }
        assert!(is_without_ipv6(&Errno::AFNOSUPPORT.into()));
        assert!(!is_without_ipv6(&Errno::ADDRINUSE.into()));
    }
}
