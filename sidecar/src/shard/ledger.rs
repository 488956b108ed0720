//! Who holds how many connections of this node: by address and by user, counted while the settings bound them.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

use sidecar_config::Limits;

use super::Refusal;

/// Counts of a node. The locks are held to look up one entry.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    addresses: Mutex<HashMap<IpAddr, u32>>,
    users: Mutex<HashMap<Arc<str>, u32>>,
}

/// What a connection is counted under; taken out when it is dropped.
#[derive(Debug)]
pub struct Guest {
    ledger: Arc<Ledger>,
    address: Option<IpAddr>,
    user: Option<Arc<str>>,
}

impl Ledger {
    /// Counts a newcomer; nothing where no bound concerns it.
    pub(crate) fn enter(
        self: &Arc<Self>,
        address: IpAddr,
        user: Option<&Arc<str>>,
        limits: &Limits,
    ) -> Result<Option<Box<Guest>>, Refusal> {
        let Limits { connections_per_ip, connections_per_user, .. } = *limits;
        let mut guest = Guest { ledger: Arc::clone(self), address: None, user: None };
        if connections_per_ip > 0 {
            let address = network_of(address);
            count(&self.addresses, address, connections_per_ip).ok_or(Refusal::AddressFull)?;
            guest.address = Some(address);
        }
        if let Some(user) = user.filter(|_| connections_per_user > 0) {
            // Dropping the guest gives its address back.
            count(&self.users, Arc::clone(user), connections_per_user).ok_or(Refusal::UserFull)?;
            guest.user = Some(Arc::clone(user));
        }
        Ok((guest.address.is_some() || guest.user.is_some()).then(|| Box::new(guest)))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(address) = self.address {
            discount(&self.ledger.addresses, &address);
        }
        if let Some(user) = &self.user {
            discount(&self.ledger.users, user);
        }
    }
}

/// What counts as one address: whoever has one IPv6 address has the whole /64, but for those that only stand for another: all that come through a
/// translator (RFC 6052, RFC 8215) or a Teredo server (RFC 4380) share theirs, and the client is in the rest.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => match address.segments() {
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Ipv4Addr::from_bits(joined(high, low)).into(),
            [0x64, 0xff9b, 1, ..] => address.into(),
            [0x2001, 0, .., high, low] => Ipv4Addr::from_bits(!joined(high, low)).into(),
            _ => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        },
    }
}

fn joined(high: u16, low: u16) -> u32 {
    u32::from(high) << 16 | u32::from(low)
}

fn count<K: Eq + Hash>(counts: &Mutex<HashMap<K, u32>>, key: K, most: u32) -> Option<()> {
    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    let count = counts.entry(key).or_default();
    // An entry that was just made is 0 and below every bound, so none is left behind.
    (*count < most).then(|| *count += 1)
}

fn discount<K: Eq + Hash>(counts: &Mutex<HashMap<K, u32>>, key: &K) {
    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(connections_per_ip: u32, connections_per_user: u32) -> Limits {
        Limits { connections_per_ip, connections_per_user, ..Limits::default() }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_holds_so_many_and_a_network_of_ipv6_is_one_address() {
        let ledger = Arc::new(Ledger::default());
        let enter = |address: &str| ledger.enter(ip(address), None, &limits(2, 0));
        let first = enter("2001:db8::1").unwrap();
        let _second = enter("2001:db8::2").unwrap();
        assert_eq!(enter("2001:db8::3").unwrap_err(), Refusal::AddressFull);
        assert!(enter("2001:db8:0:1::3").is_ok() && enter("::ffff:192.0.2.1").is_ok());
        drop(first);
        assert!(enter("2001:db8::4").is_ok());
    }

    #[test]
    fn clients_behind_a_translator_are_counted_apart() {
        for (address, network) in [
            ("64:ff9b::192.0.2.1", "192.0.2.1"),
            ("64:ff9b:1:2:3::192.0.2.1", "64:ff9b:1:2:3::192.0.2.1"),
            // RFC 4380 §4: the client's address, each bit of it turned.
            ("2001:0:5ef5:79fb:1:2:3fff:fdfe", "192.0.2.1"),
            ("64:ff9b:2::1", "64:ff9b:2::"),
            ("2001:db8::1", "2001:db8::"),
        ] {
            assert_eq!(network_of(ip(address)), ip(network), "{address}");
        }
    }

    #[test]
    fn a_user_that_is_refused_does_not_count_under_its_address() {
        let ledger = Arc::new(Ledger::default());
        let user: Arc<str> = "ann".into();
        let enter = |user| ledger.enter(ip("192.0.2.1"), user, &limits(9, 1));
        let ann = enter(Some(&user)).unwrap();
        assert_eq!(enter(Some(&user)).unwrap_err(), Refusal::UserFull);
        assert_eq!(ledger.addresses.lock().unwrap().values().sum::<u32>(), 1);
        drop(ann);
        assert!(ledger.addresses.lock().unwrap().is_empty() && ledger.users.lock().unwrap().is_empty());
    }

    #[test]
    fn without_bounds_nothing_is_counted() {
        let ledger = Arc::new(Ledger::default());
        assert!(ledger.enter(ip("192.0.2.1"), Some(&"ann".into()), &limits(0, 0)).unwrap().is_none());
    }
}
