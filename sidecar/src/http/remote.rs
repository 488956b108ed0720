//! Where a client really is, behind proxies. Pure.
//!
//! A header is believed only as far as the chain of trusted proxies reaches: from the right, the first address that
//! is none of theirs is the client, and what stands left of it anybody may have written.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, header};
use ipnet::IpNet;

/// The client's address. `peer` is who is at the other end of the TCP connection. Where `X-Forwarded-For` and
/// `Forwarded` are both there the former counts: nearly every proxy sets that one, and one that sets only the other
/// must remove it.
pub(super) fn client(peer: SocketAddr, headers: &HeaderMap, trusted: &[IpNet]) -> SocketAddr {
    let is_trusted = |ip: IpAddr| trusted.iter().any(|network| network.contains(&ip.to_canonical()));
    if !is_trusted(peer.ip()) {
        return peer;
    }
    let mut hops = forwarded_for(headers);
    if hops.is_empty() {
        hops = forwarded(headers);
    }
    let mut client = peer;
    for hop in hops.into_iter().rev() {
        // Unreadable, hidden or made up: the last one we know is the best answer.
        let Some(address) = hop else { return client };
        client = address;
        if !is_trusted(address.ip()) {
            return client;
        }
    }
    client
}

fn lines(headers: &HeaderMap, name: impl http::header::AsHeaderName) -> Vec<&str> {
    headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("")).collect()
}

/// Elements of a list; an empty one is none (RFC 9110 §5.6.1.2).
fn elements<'a>(lines: &[&'a str]) -> impl Iterator<Item = &'a str> {
    lines.iter().flat_map(|line| line.split(',')).map(str::trim).filter(|element| !element.is_empty())
}

fn forwarded_for(headers: &HeaderMap) -> Vec<Option<SocketAddr>> {
    elements(&lines(headers, "x-forwarded-for")).map(parse_node).collect()
}

/// RFC 7239. A quoted string may hold a comma, but no address does: such an element is unreadable anyway.
fn forwarded(headers: &HeaderMap) -> Vec<Option<SocketAddr>> {
    let element = |element: &str| {
        let mut pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
        let (_, node) = pairs.find(|(name, _)| name.eq_ignore_ascii_case("for"))?;
        parse_node(node)
    };
    elements(&lines(headers, header::FORWARDED)).map(element).collect()
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`, each perhaps in quotes. Port 0
/// where none was given.
fn parse_node(text: &str) -> Option<SocketAddr> {
    let text = text.trim().trim_matches('"');
    let ip = |text: &str| text.parse().ok().map(|ip: IpAddr| SocketAddr::new(ip, 0));
    let bracketed = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    text.parse().ok().or_else(|| ip(bracketed.unwrap_or(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client_of(peer: &str, headers: &[(&'static str, &'static str)]) -> String {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, http::HeaderValue::from_static(value));
        }
        client(peer.parse().unwrap(), &map, &trusted).to_string()
    }

    #[test]
    fn a_stranger_is_not_believed() {
        assert_eq!(client_of("192.0.2.9:1", &[("x-forwarded-for", "198.51.100.1")]), "192.0.2.9:1");
        assert_eq!(client_of("192.0.2.9:1", &[("forwarded", "for=198.51.100.1")]), "192.0.2.9:1");
    }

    #[test]
    fn the_first_stranger_from_the_right_is_the_client() {
        for (headers, client) in [
            (vec![("x-forwarded-for", "198.51.100.1")], "198.51.100.1:0"),
            (vec![("x-forwarded-for", "1.1.1.1, 198.51.100.1, 10.0.0.7")], "198.51.100.1:0"),
            (vec![("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "198.51.100.1:44")], "198.51.100.1:44"),
            (vec![("forwarded", "for=1.1.1.1, For=\"[2001:db8::1]:80\";proto=https")], "[2001:db8::1]:80"),
            (vec![("forwarded", "proto=http;for=198.51.100.1, for=10.1.1.1")], "198.51.100.1:0"),
            (vec![("x-forwarded-for", "198.51.100.1"), ("forwarded", "for=1.1.1.1")], "198.51.100.1:0"),
            (vec![("x-forwarded-for", "1.1.1.1, 198.51.100.1, ,, 10.0.0.7, ")], "198.51.100.1:0"),
            (vec![("x-forwarded-for", "198.51.100.1"), ("x-forwarded-for", "")], "198.51.100.1:0"),
            (vec![("x-forwarded-for", " , "), ("forwarded", "for=198.51.100.1,")], "198.51.100.1:0"),
        ] {
            assert_eq!(client_of("10.0.0.1:9", &headers), client, "{headers:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_ends_the_chain_at_what_is_known() {
        for (headers, client) in [
            (vec![], "10.0.0.1:9"),
            (vec![("x-forwarded-for", "unknown")], "10.0.0.1:9"),
            (vec![("forwarded", "for=_hidden")], "10.0.0.1:9"),
            (vec![("x-forwarded-for", "1.1.1.1, garbage, 10.0.0.8")], "10.0.0.8:0"),
            (vec![("x-forwarded-for", "10.0.0.5, 10.0.0.6")], "10.0.0.5:0"),
        ] {
            assert_eq!(client_of("10.0.0.1:9", &headers), client, "{headers:?}");
        }
    }

    #[test]
    fn an_ipv4_address_in_an_ipv6_socket_is_itself() {
        assert_eq!(client_of("[::ffff:10.0.0.1]:9", &[("x-forwarded-for", "192.0.2.1")]), "192.0.2.1:0");
    }
}
