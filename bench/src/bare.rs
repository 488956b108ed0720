//! The floor: one thread, a list of sockets, one `write` per subscriber and publication, nothing else. It speaks
//! just enough WebSocket that the same clients can measure it: `/ws/<channel>` subscribes, and what comes in at
//! `/publish` goes to all of its channel.

use std::{
    collections::HashMap,
    io::{ErrorKind, Read, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use mio::{Events, Interest, Poll, Token, net::TcpListener, net::TcpStream};

use crate::load::wire;

const LISTENER: Token = Token(usize::MAX);

struct Connection {
    socket: TcpStream,
    upgraded: bool,
    received: Vec<u8>,
}

struct Bare {
    poll: Poll,
    listener: TcpListener,
    connections: Vec<Option<Connection>>,
    channels: HashMap<String, Vec<usize>>,
    buffer: Vec<u8>,
}

/// Where it says how long the longest turn of its loop was, in microseconds.
pub(crate) const LONGEST_TURN: &str = "longest-turn";

/// Serves on loopback until it is killed.
pub(crate) fn serve(port: u16, folder: &Path) -> Result<()> {
    let longest = Arc::new(AtomicU64::new(0));
    let (told, file) = (Arc::clone(&longest), folder.join(LONGEST_TURN));
    std::thread::spawn(move || tell(&told, &file));
    let poll = Poll::new()?;
    let mut listener = TcpListener::bind(([127, 0, 0, 1], port).into())?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let (connections, channels) = (Vec::new(), HashMap::new());
    let mut bare = Bare { poll, listener, connections, channels, buffer: vec![0; 65_536] };
    let mut events = Events::with_capacity(1_024);
    loop {
        bare.poll.poll(&mut events, None)?;
        let began = Instant::now();
        for event in &events {
            match event.token() {
                LISTENER => bare.accept()?,
                Token(at) => bare.serve(at),
            }
        }
        longest.fetch_max(began.elapsed().as_micros() as u64, Ordering::Relaxed);
    }
}

/// Off the loop, which a slow disk must not hold up.
fn tell(longest: &AtomicU64, file: &Path) {
    loop {
        std::thread::sleep(Duration::from_secs(1));
        // Whoever reads it has a folder for it; without one nobody does.
        let _ = std::fs::write(file, longest.load(Ordering::Relaxed).to_string());
    }
}

impl Bare {
    fn accept(&mut self) -> Result<()> {
        while let Ok((mut socket, _)) = self.listener.accept() {
            socket.set_nodelay(true)?;
            let at = Token(self.connections.len());
            self.poll.registry().register(&mut socket, at, Interest::READABLE)?;
            self.connections.push(Some(Connection { socket, upgraded: false, received: Vec::new() }));
        }
        Ok(())
    }

    fn serve(&mut self, at: usize) {
        let Some(connection) = &mut self.connections[at] else { return };
        if !connection.read(&mut self.buffer) {
            self.connections[at] = None;
            return;
        }
        if !connection.upgraded
            && let Some(path) = connection.upgrade()
            && let Some(channel) = path.strip_prefix("/ws/")
        {
            self.channels.entry(channel.to_owned()).or_default().push(at);
        }
        for (channel, frame) in connection.publications() {
            self.broadcast(&channel, &frame);
        }
    }

    /// `WouldBlock` drops: the baseline keeps no queue.
    fn broadcast(&mut self, channel: &str, frame: &[u8]) {
        for at in self.channels.get(channel).map_or(&[][..], Vec::as_slice) {
            if let Some(connection) = &mut self.connections[*at] {
                let _ = connection.socket.write(frame);
            }
        }
    }
}

impl Connection {
    /// False at the end of the stream.
    fn read(&mut self, buffer: &mut [u8]) -> bool {
        loop {
            match self.socket.read(buffer) {
                Ok(0) => return false,
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
    }

    /// Answers the request once it is whole, and gives its path.
    fn upgrade(&mut self) -> Option<String> {
        let end = memchr::memmem::find(&self.received, b"\r\n\r\n")? + 4;
        let path =
            self.received.split(|byte| *byte == b' ').nth(1).map(String::from_utf8_lossy)?.into_owned();
        self.received.drain(..end);
        self.received.shrink_to_fit();
        self.upgraded = self.socket.write(wire::SWITCHING_PROTOCOLS.as_bytes()).is_ok();
        Some(path)
    }

    /// Client frames, each as its channel and the server frame to send there.
    fn publications(&mut self) -> Vec<(String, Vec<u8>)> {
        let (mut publications, mut used) = (Vec::new(), 0);
        while let Some(frame) = wire::frame(&self.received[used..]).filter(|_| self.upgraded) {
            used += frame.length;
            let mut parts = frame.payload.splitn(2, |byte| *byte == b'\n');
            if let (Some(channel), Some(payload)) = (parts.next(), parts.next()) {
                publications
                    .push((String::from_utf8_lossy(channel).into_owned(), wire::server_text(payload)));
            }
        }
        self.received.drain(..used);
        publications
    }
}
