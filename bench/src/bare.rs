//! The floor: one thread, a list of sockets, one `write` per subscriber and publication, nothing else. It speaks
//! just enough WebSocket that the same clients can measure it: every connection is a subscriber, and what one
//! sends goes to all.

use std::io::{ErrorKind, Read, Write};

use anyhow::Result;
use mio::{Events, Interest, Poll, Token, net::TcpListener, net::TcpStream};

use crate::load::wire;

const LISTENER: Token = Token(usize::MAX);

struct Connection {
    socket: TcpStream,
    subscribed: bool,
    received: Vec<u8>,
}

/// Serves on loopback until it is killed.
pub(crate) fn serve(port: u16) -> Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1_024);
    let mut listener = TcpListener::bind(([127, 0, 0, 1], port).into())?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut connections: Vec<Connection> = Vec::new();
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                accept(&listener, &poll, &mut connections)?;
            } else {
                for frame in read(&mut connections[event.token().0]) {
                    broadcast(&mut connections, &frame);
                }
            }
        }
    }
}

fn accept(listener: &TcpListener, poll: &Poll, connections: &mut Vec<Connection>) -> Result<()> {
    while let Ok((mut socket, _)) = listener.accept() {
        socket.set_nodelay(true)?;
        poll.registry().register(&mut socket, Token(connections.len()), Interest::READABLE)?;
        connections.push(Connection { socket, subscribed: false, received: Vec::new() });
    }
    Ok(())
}

/// Answers the handshake, then turns client frames into server frames.
fn read(connection: &mut Connection) -> Vec<Vec<u8>> {
    let mut buffer = [0; 65_536];
    loop {
        match connection.socket.read(&mut buffer) {
            Ok(0) => return Vec::new(),
            Ok(count) => connection.received.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(_) => return Vec::new(),
        }
    }
    if !connection.subscribed {
        let Some(end) = connection.received.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
            return Vec::new();
        };
        let _ = connection.socket.write(wire::SWITCHING_PROTOCOLS.as_bytes());
        connection.received.drain(..end + 4);
        connection.subscribed = true;
    }
    let mut frames = Vec::new();
    while let Some((payload, used)) = wire::client_frame(&connection.received) {
        frames.push(wire::server_frame(&payload));
        connection.received.drain(..used);
    }
    frames
}

/// `WouldBlock` drops: the baseline keeps no queue.
fn broadcast(connections: &mut [Connection], frame: &[u8]) {
    for connection in connections.iter_mut().filter(|connection| connection.subscribed) {
        let _ = connection.socket.write(frame);
    }
}
