//! The PROXY protocol, version 2: how a TCP proxy says whose connection it carries. Read only where the peer is a
//! trusted proxy, and only where the signature is there.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{io::AsyncReadExt, net::TcpStream, time::sleep};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const FIXED: usize = 16;
/// Addresses and TLVs that proxies send stay far below.
const MOST: usize = 2_048;

/// A header that is none, or none that we take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadHeader {
    #[error("version is not 2")]
    Version,
    #[error("command is neither LOCAL nor PROXY")]
    Command,
    #[error("{0} bytes of addresses and extensions, at most {MOST} are taken")]
    TooLong(usize),
    #[error("too short for the addresses of its family")]
    TooShort,
}

/// What the fixed part says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fixed {
    local: bool,
    family: u8,
    /// Bytes that follow.
    length: usize,
}

/// The address that a PROXY header gives, or `peer` where there is no header or it gives none.
pub(super) async fn read(socket: &mut TcpStream, peer: SocketAddr) -> io::Result<SocketAddr> {
    let mut start = [0; SIGNATURE.len()];
    loop {
        let seen = socket.peek(&mut start).await?;
        if seen == 0 || start[..seen] != SIGNATURE[..seen] {
            return Ok(peer);
        }
        if seen == SIGNATURE.len() {
            break;
        }
        // A part of the signature: the socket stays readable, so wait for the rest by time.
        sleep(Duration::from_millis(5)).await;
    }
    let mut fixed = [0; FIXED];
    socket.read_exact(&mut fixed).await?;
    let fixed = parse_fixed(&fixed).map_err(io::Error::other)?;
    let mut rest = vec![0; fixed.length];
    socket.read_exact(&mut rest).await?;
    Ok(parse_source(fixed, &rest).map_err(io::Error::other)?.unwrap_or(peer))
}

fn parse_fixed(bytes: &[u8; FIXED]) -> Result<Fixed, BadHeader> {
    let [.., version_command, family, high, low] = *bytes;
    if version_command >> 4 != 2 {
        return Err(BadHeader::Version);
    }
    let local = match version_command & 0xF {
        0 => true,
        1 => false,
        _ => return Err(BadHeader::Command),
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > MOST { Err(BadHeader::TooLong(length)) } else { Ok(Fixed { local, family, length }) }
}

/// The source address; `None` for a health check of the proxy itself or a family without ports.
fn parse_source(fixed: Fixed, rest: &[u8]) -> Result<Option<SocketAddr>, BadHeader> {
    if fixed.local {
        return Ok(None);
    }
    let (ip, port): (IpAddr, &[u8]) = match fixed.family >> 4 {
        1 => {
            let bytes = rest.first_chunk::<12>().ok_or(BadHeader::TooShort)?;
            (Ipv4Addr::from(*bytes.first_chunk::<4>().expect("12 bytes")).into(), &bytes[8..10])
        }
        2 => {
            let bytes = rest.first_chunk::<36>().ok_or(BadHeader::TooShort)?;
            (Ipv6Addr::from(*bytes.first_chunk::<16>().expect("36 bytes")).into(), &bytes[32..34])
        }
        _ => return Ok(None),
    };
    Ok(Some(SocketAddr::new(ip, u16::from_be_bytes([port[0], port[1]]))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(version_command: u8, family: u8, length: u16) -> Result<Fixed, BadHeader> {
        let mut bytes = [0; FIXED];
        bytes[..12].copy_from_slice(SIGNATURE);
        bytes[12] = version_command;
        bytes[13] = family;
        bytes[14..].copy_from_slice(&length.to_be_bytes());
        parse_fixed(&bytes)
    }

    #[test]
    fn the_source_of_either_family_is_read_and_extensions_are_passed_over() {
        let mut rest = vec![192, 0, 2, 1, 10, 0, 0, 1, 0x1F, 0x90, 0, 80];
        rest.extend_from_slice(&[3, 0, 1, 9]);
        let source = parse_source(fixed(0x21, 0x11, 16).unwrap(), &rest);
        assert_eq!(source, Ok(Some("192.0.2.1:8080".parse().unwrap())));
        let mut rest = vec![0; 36];
        rest[15] = 1;
        rest[33] = 99;
        let source = parse_source(fixed(0x21, 0x21, 36).unwrap(), &rest);
        assert_eq!(source, Ok(Some("[::1]:99".parse().unwrap())));
    }

    #[test]
    fn a_proxys_own_check_names_nobody() {
        assert_eq!(parse_source(fixed(0x20, 0x00, 0).unwrap(), &[]), Ok(None));
        assert_eq!(parse_source(fixed(0x21, 0x31, 216).unwrap(), &[0; 216]), Ok(None));
    }

    #[test]
    fn what_is_no_header_is_refused() {
        assert_eq!(fixed(0x11, 0x11, 12), Err(BadHeader::Version));
        assert_eq!(fixed(0x22, 0x11, 12), Err(BadHeader::Command));
        assert_eq!(fixed(0x21, 0x11, 5_000), Err(BadHeader::TooLong(5_000)));
        assert_eq!(parse_source(fixed(0x21, 0x11, 4).unwrap(), &[0; 4]), Err(BadHeader::TooShort));
    }
}
