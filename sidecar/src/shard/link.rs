//! What carries a connection's bytes.

use std::{
    io::{self, IoSlice, Read, Write},
    net::{Shutdown, TcpStream},
};

use super::pipe::NearEnd;

/// What carries a connection's bytes.
#[derive(Debug)]
pub enum Link {
    /// A socket, non-blocking, out of any other reactor.
    Socket(TcpStream),
    /// A virtual connection: a task carries the bytes on.
    Pipe(NearEnd),
}

/// What a write achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// So many bytes were taken.
    Moved(usize),
    /// No room now; the link says when there is.
    Blocked,
    /// Nobody is there any more.
    Broken,
}

impl Link {
    pub(crate) fn write(&self, slices: &[IoSlice<'_>]) -> Progress {
        match self {
            Self::Socket(socket) => loop {
                let written = match slices {
                    // A `send`, which costs the kernel a tenth less than a `writev` of one piece.
                    [slice] => (&mut { socket }).write(slice),
                    _ => (&mut { socket }).write_vectored(slices),
                };
                match written {
                    Ok(0) => return Progress::Broken,
                    Ok(moved) => return Progress::Moved(moved),
                    Err(error) => match error.kind() {
                        io::ErrorKind::Interrupted => {}
                        io::ErrorKind::WouldBlock => return Progress::Blocked,
                        _ => return Progress::Broken,
                    },
                }
            },
            Self::Pipe(pipe) => pipe.write(slices),
        }
    }

    /// Reads what is there: `Moved(0)` is the orderly end of what the client sends.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> Progress {
        match self {
            Self::Socket(socket) => loop {
                match (&mut { socket }).read(buffer) {
                    Ok(moved) => return Progress::Moved(moved),
                    Err(error) => match error.kind() {
                        io::ErrorKind::Interrupted => {}
                        io::ErrorKind::WouldBlock => return Progress::Blocked,
                        _ => return Progress::Broken,
                    },
                }
            },
            Self::Pipe(pipe) => pipe.read(buffer),
        }
    }

    /// Says that nothing more will be sent.
    pub(crate) fn finish(&self) {
        match self {
            // An error means that the other side is gone, which the next read tells.
            Self::Socket(socket) => drop(socket.shutdown(Shutdown::Write)),
            Self::Pipe(pipe) => pipe.finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    #[test]
    fn many_pieces_go_to_a_socket_in_one_call() {
        // Of datagrams, so that what each call wrote can be told apart.
        let (kind, flags) = (SocketType::DGRAM, SocketFlags::empty());
        let (near, far) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
        let (near, mut far) = (TcpStream::from(near), TcpStream::from(far));
        near.set_nonblocking(true).unwrap();
        let link = Link::Socket(near);
        let pieces: Vec<[u8; 3]> = (0..1_000_u16).map(|at| [b'#', (at >> 8) as u8, at as u8]).collect();
        let slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        assert_eq!(link.write(&slices), Progress::Moved(3_000));
        let mut received = [0; 4_000];
        assert_eq!(far.read(&mut received).unwrap(), 3_000);
        assert_eq!(received[..3_000], *pieces.concat());
    }
}
