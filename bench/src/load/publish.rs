//! Where publications enter: as a command to the Redis that a server listens to, as an HTTP request, or as a frame
//! of the bare loop. Never blocks, so that the thread that measures is not held up by what it measures.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
};

use anyhow::{Context, Result, bail};

use super::wire::{self, Stamp};

/// The way in.
#[derive(Clone, Debug)]
pub(crate) enum Feed {
    /// The bare loop's own: a WebSocket at `/publish`, a frame is channel, line break, payload.
    Bare { port: u16 },
    /// `PUBLISH` to a channel.
    Redis { port: u16, prefix: &'static str, envelope: Envelope },
    /// `POST` to a path, pipelined on one connection.
    Http { port: u16, prefix: &'static str },
}

/// What a peer wants around the payload in Redis.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Envelope {
    /// Nothing.
    Plain,
    /// Centrifuge's protobuf `Publication` with nothing but `data`.
    Centrifuge,
    /// What `@socket.io/redis-emitter` sends: MessagePack of `[uid, packet, options]`.
    SocketIo,
}

/// Publishes to one channel or to many, over one connection.
pub(crate) struct Publisher {
    feed: Feed,
    channel: String,
    payload_bytes: usize,
    stream: TcpStream,
    outgoing: Vec<u8>,
    sent: usize,
    buffer: Vec<u8>,
    answered: bool,
}

impl Publisher {
    pub(crate) fn connect(feed: &Feed, channel: &str, payload_bytes: usize) -> Result<Self> {
        let (Feed::Bare { port } | Feed::Redis { port, .. } | Feed::Http { port, .. }) = feed;
        let mut stream =
            TcpStream::connect(("127.0.0.1", *port)).context("failed to connect the publisher")?;
        stream.set_nodelay(true)?;
        if let Feed::Bare { .. } = feed {
            stream.write_all(wire::upgrade("/publish").as_bytes())?;
            let mut answer = vec![0; wire::SWITCHING_PROTOCOLS.len()];
            stream.read_exact(&mut answer).context("the bare loop did not answer the publisher")?;
        }
        stream.set_nonblocking(true)?;
        Ok(Self {
            feed: feed.clone(),
            channel: channel.to_owned(),
            payload_bytes,
            stream,
            outgoing: Vec::new(),
            sent: 0,
            buffer: vec![0; 65_536],
            answered: false,
        })
    }

    /// To the channel given at first, with the next [`pump`](Self::pump).
    pub(crate) fn publish(&mut self, stamp: Stamp) {
        let channel = std::mem::take(&mut self.channel);
        self.publish_to(&channel, stamp);
        self.channel = channel;
    }

    /// To any channel, with the next [`pump`](Self::pump): what is due at the same time goes out together.
    pub(crate) fn publish_to(&mut self, channel: &str, stamp: Stamp) {
        let payload = wire::payload(stamp, self.payload_bytes);
        let outgoing = &mut self.outgoing;
        match &self.feed {
            Feed::Bare { .. } => {
                outgoing.extend_from_slice(&wire::client_text(format!("{channel}\n{payload}").as_bytes()));
            }
            Feed::Redis { prefix, envelope, .. } => {
                let message = envelope.wrap(&payload);
                let channel = format!("{prefix}{channel}");
                let head = format!(
                    "*3\r\n$7\r\nPUBLISH\r\n${}\r\n{channel}\r\n${}\r\n",
                    channel.len(),
                    message.len()
                );
                outgoing.extend_from_slice(head.as_bytes());
                outgoing.extend_from_slice(&message);
                outgoing.extend_from_slice(b"\r\n");
            }
            Feed::Http { prefix, .. } => outgoing.extend_from_slice(
                format!(
                    "POST {prefix}{channel} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n\
                     Content-Length: {}\r\n\r\n{payload}",
                    payload.len()
                )
                .as_bytes(),
            ),
        }
    }

    pub(crate) fn is_flushed(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// Sends what waited and drops the answers.
    pub(crate) fn pump(&mut self) -> Result<()> {
        self.flush()?;
        loop {
            match self.stream.read(&mut self.buffer) {
                Ok(0) => bail!("the way in for publications was closed"),
                Ok(count) => self.check(count)?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("failed to read the publisher's answers"),
            }
        }
    }

    /// The first answer tells whether publishing works at all.
    fn check(&mut self, count: usize) -> Result<()> {
        let answer = &self.buffer[..count];
        if !self.answered
            && (answer.starts_with(b"-")
                || answer.starts_with(b"HTTP/1.1 4")
                || answer.starts_with(b"HTTP/1.1 5"))
        {
            bail!("a publication was refused: {}", String::from_utf8_lossy(answer));
        }
        self.answered = true;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        while self.sent < self.outgoing.len() {
            match self.stream.write(&self.outgoing[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("failed to publish"),
            }
        }
        self.outgoing.clear();
        self.sent = 0;
        Ok(())
    }
}

impl Envelope {
    fn wrap(self, payload: &str) -> Vec<u8> {
        match self {
            Self::Plain => payload.as_bytes().to_vec(),
            Self::Centrifuge => {
                // Field 4, length-delimited.
                let mut message = vec![0x22];
                let mut length = payload.len();
                while length >= 0x80 {
                    message.push((length & 0x7f) as u8 | 0x80);
                    length >>= 7;
                }
                message.push(length as u8);
                message.extend_from_slice(payload.as_bytes());
                message
            }
            Self::SocketIo => {
                let mut message = Vec::with_capacity(payload.len() + 96);
                message.push(0x93);
                text(&mut message, "bench");
                message.push(0x83);
                text(&mut message, "type");
                message.push(2);
                text(&mut message, "data");
                message.push(0x92);
                text(&mut message, "m");
                text(&mut message, payload);
                text(&mut message, "nsp");
                text(&mut message, "/");
                message.push(0x83);
                for (name, empty) in [("rooms", 0x90), ("except", 0x90), ("flags", 0x80)] {
                    text(&mut message, name);
                    message.push(empty);
                }
                message
            }
        }
    }
}

/// A MessagePack string.
fn text(message: &mut Vec<u8>, text: &str) {
    match text.len() {
        length @ 0..32 => message.push(0xa0 | length as u8),
        length @ 32..256 => message.extend_from_slice(&[0xd9, length as u8]),
        length => {
            message.push(0xda);
            message.extend_from_slice(&u16::try_from(length).expect("under 64 KiB").to_be_bytes());
        }
    }
    message.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_centrifuge_publication_is_field_four_with_a_varint_length() {
        let payload = "x".repeat(300);
        let message = Envelope::Centrifuge.wrap(&payload);
        assert_eq!(message[..3], [0x22, 0xac, 0x02]);
        assert_eq!(&message[3..], payload.as_bytes());
    }

    #[test]
    fn a_socket_io_packet_is_an_array_of_sender_packet_and_options() {
        let message = Envelope::SocketIo.wrap("hi");
        assert!(message.starts_with(b"\x93\xa5bench\x83\xa4type\x02\xa4data\x92\xa1m\xa2hi\xa3nsp\xa1/\x83"));
    }
}
