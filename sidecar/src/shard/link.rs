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
