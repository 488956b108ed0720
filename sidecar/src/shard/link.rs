//! What carries a connection's bytes.

use std::net::TcpStream;

/// What carries a connection's bytes.
#[derive(Debug)]
pub enum Link {
    /// A socket, non-blocking, out of any other reactor.
    Socket(TcpStream),
}
