//! The PROXY protocol: how a TCP proxy says whose connection it carries, as a line of text (version 1) or in bytes
//! (version 2). Read only where the peer is a trusted proxy, and only where a header begins.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{io::AsyncReadExt, net::TcpStream, time::sleep};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const FIXED: usize = 16;
/// The addresses of the largest family that we read; what follows are extensions, such as a client's certificate.
const ADDRESSES: usize = 36;

const WORD: &[u8; 6] = b"PROXY ";
/// Of version 1, its line break included: the longest that the specification allows.
const LINE: usize = 107;

/// A header that is none, or none that we take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadHeader {
    #[error("version is not 2")]
    Version,
    #[error("command is neither LOCAL nor PROXY")]
    Command,
    #[error("too short for the addresses of its family")]
    TooShort,
    #[error("a line of version 1 without an end within {LINE} bytes")]
    Endless,
    #[error("a line of version 1 that does not give two addresses and two ports")]
    Line,
}

/// What the fixed part says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fixed {
    local: bool,
    family: u8,
    /// Bytes that follow.
    length: usize,
}

/// What a connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begin {
    /// Perhaps a header, of which more has to come.
    Part,
    Line,
    Bytes,
    /// No header.
    Other,
}

/// The address that a PROXY header gives, or `peer` where there is no header or it gives none.
pub(super) async fn read(socket: &mut TcpStream, peer: SocketAddr) -> io::Result<SocketAddr> {
    let mut start = [0; SIGNATURE.len()];
    loop {
        let seen = socket.peek(&mut start).await?;
        match begin(&start[..seen]) {
            Begin::Other => return Ok(peer),
            Begin::Line => return Ok(read_line(socket).await?.unwrap_or(peer)),
            Begin::Bytes => return Ok(read_bytes(socket).await?.unwrap_or(peer)),
            // The socket stays readable, so wait for the rest by time.
            Begin::Part => sleep(Duration::from_millis(5)).await,
        }
    }
}

fn begin(seen: &[u8]) -> Begin {
    if seen.starts_with(WORD) {
        Begin::Line
    } else if seen == SIGNATURE {
        Begin::Bytes
    } else if !seen.is_empty() && (SIGNATURE.starts_with(seen) || WORD.starts_with(seen)) {
        Begin::Part
    } else {
        Begin::Other
    }
}

async fn read_line(socket: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut line = [0; LINE];
    loop {
        let seen = socket.peek(&mut line).await?;
        if let Some(end) = line[..seen].windows(2).position(|pair| pair == b"\r\n") {
            socket.read_exact(&mut line[..end + 2]).await?;
            return parse_line(&line[..end]).map_err(io::Error::other);
        }
        if seen == LINE {
            return Err(io::Error::other(BadHeader::Endless));
        }
        sleep(Duration::from_millis(5)).await;
    }
}

async fn read_bytes(socket: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut fixed = [0; FIXED];
    socket.read_exact(&mut fixed).await?;
    let fixed = parse_fixed(&fixed).map_err(io::Error::other)?;
    let mut addresses = [0; ADDRESSES];
    let known = fixed.length.min(ADDRESSES);
    socket.read_exact(&mut addresses[..known]).await?;
    skip(socket, fixed.length - known).await?;
    parse_source(fixed, &addresses[..known]).map_err(io::Error::other)
}

/// Passes over extensions, however long they are.
async fn skip(socket: &mut TcpStream, mut bytes: usize) -> io::Result<()> {
    let mut scratch = [0; 512];
    while bytes > 0 {
        let part = bytes.min(scratch.len());
        socket.read_exact(&mut scratch[..part]).await?;
        bytes -= part;
    }
    Ok(())
}

/// `PROXY TCP4 192.0.2.1 10.0.0.1 8080 80`, without its line break; `None` for `PROXY UNKNOWN …`.
fn parse_line(line: &[u8]) -> Result<Option<SocketAddr>, BadHeader> {
    let text = std::str::from_utf8(line).map_err(|_| BadHeader::Line)?;
    let words: Vec<_> = text.split(' ').collect();
    let (family, source, target, ports) = match words[..] {
        ["PROXY", "UNKNOWN", ..] => return Ok(None),
        ["PROXY", family, source, target, port, target_port] => (family, source, target, [port, target_port]),
        _ => return Err(BadHeader::Line),
    };
    let address = |text: &str| match family {
        "TCP4" => text.parse().ok().map(IpAddr::V4),
        "TCP6" => text.parse().ok().map(IpAddr::V6),
        _ => None,
    };
    // `parse` alone would take a sign.
    let port =
        |text: &str| text.parse::<u16>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    match (address(source), address(target), ports.map(port)) {
        (Some(source), Some(_), [Some(port), Some(_)]) => Ok(Some(SocketAddr::new(source, port))),
        _ => Err(BadHeader::Line),
    }
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
    Ok(Fixed { local, family, length })
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
    fn a_line_gives_its_source_and_nothing_of_another_form_does() {
        let line = |text: &str| parse_line(text.as_bytes());
        assert_eq!(
            line("PROXY TCP4 192.0.2.1 10.0.0.1 8080 80"),
            Ok(Some("192.0.2.1:8080".parse().unwrap()))
        );
        assert_eq!(line("PROXY TCP6 2001:db8::1 ::1 1 2"), Ok(Some("[2001:db8::1]:1".parse().unwrap())));
        assert_eq!(line("PROXY UNKNOWN"), Ok(None));
        assert_eq!(line("PROXY UNKNOWN ffff::1 ffff::2 1 2"), Ok(None));
        for text in [
            "PROXY TCP4 192.0.2.1 10.0.0.1 8080",
            "PROXY TCP4 192.0.2.1 10.0.0.1 8080 80 more",
            "PROXY TCP4  192.0.2.1 10.0.0.1 8080 80",
            "PROXY TCP4 2001:db8::1 ::1 1 2",
            "PROXY TCP6 192.0.2.1 10.0.0.1 1 2",
            "PROXY TCP4 192.0.2.1 10.0.0.1 +1 2",
            "PROXY TCP4 192.0.2.1 10.0.0.1 70000 2",
            "PROXY UDP4 192.0.2.1 10.0.0.1 1 2",
        ] {
            assert_eq!(line(text), Err(BadHeader::Line), "{text}");
        }
    }

    #[test]
    fn a_header_is_known_by_how_it_begins() {
        for (seen, expected) in [
            (&b"PROXY "[..], Begin::Line),
            (b"PROXY TCP4 1", Begin::Line),
            (b"PROX", Begin::Part),
            (b"PUT / HTTP/1", Begin::Other),
            (b"P", Begin::Part),
            (&SIGNATURE[..], Begin::Bytes),
            (&SIGNATURE[..5], Begin::Part),
            (b"GET / HTTP/1", Begin::Other),
            (b"", Begin::Other),
        ] {
            assert_eq!(begin(seen), expected, "{seen:?}");
        }
    }

    #[test]
    fn what_is_no_header_is_refused() {
        assert_eq!(fixed(0x11, 0x11, 12), Err(BadHeader::Version));
        assert_eq!(fixed(0x22, 0x11, 12), Err(BadHeader::Command));
        assert_eq!(parse_source(fixed(0x21, 0x11, 4).unwrap(), &[0; 4]), Err(BadHeader::TooShort));
    }
}
