//! How many nodes there are, by a source outside of the broker: the headless Service of all nodes, which names the
//! address of each. So a node that hears nobody can tell a split from solitude.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use tokio::{
    net::lookup_host,
    time::{sleep, timeout},
};

/// Between look-ups: the answers are kept for as long by resolvers.
const LOOK: Duration = Duration::from_secs(15);
/// Any: addresses are looked for, and nothing is sent.
const PORT: u16 = 9;
/// For one look-up.
const ANSWER: Duration = Duration::from_secs(5);

/// Looks `service` up, a host name, again and again, and tells how many other nodes it lists; `None` where that is not
/// known. Tells nothing without a service.
pub(super) async fn follow(service: Option<String>, tell: impl Fn(Option<usize>)) {
    let Some(service) = service else { return };
    let look_up = || async { Ok(lookup_host((service.as_str(), PORT)).await?.collect()) };
    follow_by(look_up, tell).await;
}

async fn follow_by<F>(look_up: impl Fn() -> F, tell: impl Fn(Option<usize>))
where
    F: Future<Output = io::Result<HashSet<SocketAddr>>>,
{
    loop {
        let found = timeout(ANSWER, look_up()).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if let Err(error) = &found {
            tracing::debug!(%error, "failed to look the nodes up");
        }
        // What could not be looked up is unknown, not empty.
        tell(found.ok().map(|found| others(found, is_own)));
        sleep(LOOK.mul_f64(rand::random_range(0.85..=1.0))).await;
    }
}

/// The other nodes behind these addresses. Where nodes have addresses of both families, all have.
fn others(found: HashSet<SocketAddr>, is_own: impl Fn(SocketAddr) -> bool) -> usize {
    let (v4, v6): (Vec<_>, Vec<_>) = found.into_iter().partition(SocketAddr::is_ipv4);
    let count = |family: Vec<SocketAddr>| family.into_iter().filter(|address| !is_own(*address)).count();
    count(v4).max(count(v6))
}

/// Whether an address is one of this host: then the way to it begins there. Nothing is sent.
fn is_own(address: SocketAddr) -> bool {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let way = || {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(address)?;
        socket.local_addr()
    };
    way().is_ok_and(|from| from.ip() == address.ip())
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    fn addresses(texts: &[&str]) -> HashSet<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn every_address_but_the_own_one_is_another_node_and_two_families_are_the_same_nodes() {
        let own = |address: SocketAddr| ["10.0.0.1", "fd00::1"].contains(&address.ip().to_string().as_str());
        let count = |texts: &[&str]| others(addresses(texts), own);
        assert_eq!(count(&["10.0.0.1:1"]), 0);
        assert_eq!(count(&["10.0.0.1:1", "10.0.0.2:1", "10.0.0.2:1", "10.0.0.3:1"]), 2);
        assert_eq!(count(&["10.0.0.1:1", "10.0.0.2:1", "[fd00::1]:1", "[fd00::2]:1"]), 1);
        assert_eq!(count(&[]), 0);
    }

    #[test]
    fn an_address_of_this_host_is_known_as_its_own() {
        assert!(is_own("127.0.0.1:9".parse().unwrap()));
        assert!(!is_own("192.0.2.1:9".parse().unwrap()), "kept for documents");
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_are_looked_up_again_and_again_and_a_failure_is_no_count() {
        let (looks, told) = (Cell::new(0), RefCell::new(Vec::new()));
        let look_up = || async {
            looks.set(looks.get() + 1);
            match looks.get() {
                1 => Ok(addresses(&["127.0.0.1:9", "192.0.2.1:9"])),
                2 => Err(io::ErrorKind::NotFound.into()),
                3 => std::future::pending().await,
                _ => Ok(addresses(&["127.0.0.1:9"])),
            }
        };
        let following = follow_by(look_up, |others| told.borrow_mut().push(others));
        assert!(timeout(Duration::from_secs(55), following).await.is_err(), "it goes on");
        assert_eq!(told.take()[..4], [Some(1), None, None, Some(0)]);
    }

    #[tokio::test]
    async fn without_a_service_nothing_is_told() {
        follow(None, |_| panic!("nothing is known")).await;
    }
}
