//! Bytes from a client → messages → commands → steps.

use std::sync::Arc;

use bytes::{Buf, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Task, Work, connection::Flags, core::Core, link::Progress};
use crate::{
    domain::{ChannelName, CloseReason, Command, CommandError, Exposure, Payload},
    protocol::{
        Incoming, Message, Reply,
        websocket::{Decoder, Inflater, MaxBytes, frame},
    },
    session::Step,
};

/// Bytes of one read; one buffer for all connections of a shard.
pub(crate) const BUFFER: usize = 64 * 1_024;
/// Publications of one connection that the broker has yet to confirm; then it is read from no more.
const MAX_IN_FLIGHT: u32 = 64;
/// A client's frame has so many bytes beside its payload at most: a message within its limit always fits.
const HEADER: usize = frame::MAX_HEADER + 4;
/// Reads after which those who wait for something new have their turn, so that they wait for few others.
const READS: usize = 16;
/// A frame that grows by less between a ping and its deadline is no sign of life.
const LIFE: usize = 1_024;

/// What a client has to send for the protocol's code to panic, in tests.
#[cfg(test)]
pub(super) const PANIC: &[u8] = b"now panic";
/// What has to be in a command's channel or at the end of an answer for the code behind the protocol's to panic.
#[cfg(test)]
pub(super) const PANIC_LATER: &[u8] = b"panic-later";

/// What the poll says of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    pub(crate) slot: u32,
    pub(crate) writable: bool,
    pub(crate) readable: bool,
    /// The end of the stream is there, perhaps behind bytes.
    pub(crate) ended: bool,
}

impl Core {
    /// Acts on what the poll says, then reads on where a turn ended before all was read. However many have something to
    /// say, those who wait for something new are offered it in between. `clock` as for [`Self::visits`].
    pub(crate) fn take_events(
        &mut self,
        events: impl IntoIterator<Item = Ready>,
        buffer: &mut [u8],
        clock: impl Fn() -> u64,
    ) {
        let mut reads = 0;
        for Ready { slot, writable, readable, ended } in events {
            if writable {
                self.writable(slot);
            }
            if readable || ended {
                self.readable(slot, ended, buffer);
                self.visit_between(&mut reads, &clock);
            }
        }
        for _ in 0..self.unread.len() {
            let Some(slot) = self.unread.pop_front() else { return };
            if self.slots.is_taken(slot) && self.slots[slot].flags.has(Flags::UNREAD) {
                self.readable(slot, true, buffer);
                self.visit_between(&mut reads, &clock);
            }
        }
    }

    fn visit_between(&mut self, reads: &mut usize, clock: &impl Fn() -> u64) {
        *reads += 1;
        if reads.is_multiple_of(READS) {
            self.visits(clock);
        }
    }

    /// Reads once. What does not come in one read waits until others had their turn. `ended` says that the end of the
    /// stream is known to be there, perhaps behind bytes.
    pub(crate) fn readable(&mut self, slot: u32, ended: bool, buffer: &mut [u8]) {
        if !self.slots.is_taken(slot) {
            return;
        }
        self.slots[slot].flags.clear(Flags::UNREAD);
        if self.slots[slot].flags.has(Flags::PAUSED) {
            return;
        }
        let Some(link) = &self.slots[slot].link else { return };
        match link.read(buffer) {
            // The client's end of it all: there is no half-open WebSocket, and an event stream has no other end.
            Progress::Moved(0) | Progress::Broken => {
                let websocket = self.slots[slot].protocol.is_websocket();
                let reason = if websocket { CloseReason::ConnectionLost } else { CloseReason::ClientClosed };
                self.end(slot, reason);
            }
            Progress::Blocked => {}
            Progress::Moved(bytes) => {
                // A short read has emptied the socket: what comes later, the end included, is an event of its own.
                if ended || bytes == buffer.len() {
                    self.read_later(slot);
                }
                self.take_bytes(slot, &mut buffer[..bytes]);
                self.bound_own();
            }
        }
    }

    fn read_later(&mut self, slot: u32) {
        if self.slots[slot].flags.raise(Flags::UNREAD) {
            self.unread.push_back(slot);
        }
    }

    pub(super) fn take_bytes(&mut self, slot: u32, bytes: &mut [u8]) {
        self.metrics.bytes_in.add(bytes.len() as u64);
        let passport = self.slots[slot].passport.as_mut().expect("a taken slot");
        passport.received.bytes += bytes.len() as u64;
        if self.slots[slot].flags.has(Flags::DEAF) {
            return;
        }
        if !self.admits(slot, 0, bytes.len()) {
            self.violated(slot, CloseReason::TooManyRequests);
            return;
        }
        match self.slots[slot].cold.as_mut().map(|cold| std::mem::take(&mut cold.partial)) {
            Some(mut partial) if !partial.is_empty() => {
                partial.extend_from_slice(bytes);
                self.take_kept(slot, partial);
            }
            _ => {
                let rest = self.take_frames(slot, bytes).and_then(|used| bytes.get(used..));
                if let Some(rest) = rest.filter(|rest| !rest.is_empty()) {
                    self.keep(slot, BytesMut::from(rest));
                }
                self.cool(slot);
            }
        }
    }

    /// Takes whole frames from bytes that were kept. What is left stays where it is: a frame that comes byte by byte
    /// must not be copied for each of them.
    fn take_kept(&mut self, slot: u32, mut partial: BytesMut) {
        if let Some(used) = self.take_frames(slot, &mut partial)
            && used < partial.len()
        {
            // What was taken would be kept with the rest: copied, where that is shorter.
            if used > partial.len() / 2 {
                partial = BytesMut::from(&partial[used..]);
            } else {
                partial.advance(used);
            }
            self.keep(slot, partial);
        }
        self.cool(slot);
    }

    /// Keeps an incomplete frame. That it grows is a sign of life, for nothing can be said within a frame; a byte now
    /// and then is none, or half a frame would be held for ever.
    fn keep(&mut self, slot: u32, partial: BytesMut) {
        let cold = self.slots[slot].cold();
        let grown = partial.len().saturating_sub(cold.at_ping);
        cold.partial = partial;
        if grown >= LIFE {
            self.slots[slot].flags.clear(Flags::SILENT);
        }
    }

    fn cool(&mut self, slot: u32) {
        if self.slots.is_taken(slot) {
            self.recount(slot);
            self.slots[slot].cool();
        }
    }

    /// Takes whole frames; says how many bytes they had if what is left is to be kept.
    fn take_frames(&mut self, slot: u32, bytes: &mut [u8]) -> Option<usize> {
        let mut inflater = std::mem::take(&mut self.inflater);
        let used = self.take_frames_by(slot, bytes, &mut inflater);
        self.inflater = inflater;
        used
    }

    fn take_frames_by(&mut self, slot: u32, bytes: &mut [u8], inflater: &mut Inflater) -> Option<usize> {
        let mut decoder = self.slots[slot].cold.as_mut().map(|cold| std::mem::take(&mut cold.decoder));
        let mut decoder = decoder.take().unwrap_or_default();
        let mut at = 0;
        while self.slots.is_taken(slot) && !self.slots[slot].flags.has(Flags::PAUSED | Flags::HEARD_CLOSE) {
            match self.next(slot, &mut decoder, &mut bytes[at..], inflater) {
                Ok(None) => break,
                Ok(Some((used, incoming))) => {
                    at += used;
                    self.slots[slot].flags.clear(Flags::SILENT);
                    if let Some(cold) = &mut self.slots[slot].cold {
                        cold.at_ping = 0;
                    }
                    // What a message unpacks to counts, not what it was packed in.
                    if !self.admits(slot, 1, inflater.take_gained()) {
                        self.violated(slot, CloseReason::TooManyRequests);
                        return None;
                    }
                    self.hear(slot, incoming);
                }
                Err(reason) => {
                    self.violated(slot, reason);
                    return None;
                }
            }
        }
        if !self.slots.is_taken(slot) || self.slots[slot].flags.has(Flags::HEARD_CLOSE) {
            return None;
        }
        if !decoder.is_idle() {
            self.slots[slot].cold().decoder = decoder;
        }
        Some(at)
    }

    /// Whether so much more is within what a client may send.
    fn admits(&mut self, slot: u32, frames: u32, bytes: usize) -> bool {
        let hub = &self.rules.hub;
        let max_message = self.slots[slot].protocol.max_message(hub.max_message_bytes as usize) + HEADER;
        let session = &mut self.slots[slot].passport.as_mut().expect("a taken slot").session;
        session.flow.take(frames, bytes, max_message, &hub.limits, self.now.ms)
    }

    /// The next frame.
    fn next(
        &self,
        slot: u32,
        decoder: &mut Decoder,
        bytes: &mut [u8],
        inflater: &mut Inflater,
    ) -> Result<Option<(usize, Incoming)>, CloseReason> {
        let protocol = self.slots[slot].protocol;
        let inflater = self.slots[slot].flags.has(Flags::DEFLATE).then_some(inflater);
        let first = self.slots[slot].subscriptions() > 0;
        let channel = first.then(|| &self.index.channel_of(self.slots[slot].first.lane).name);
        let hub = &self.rules.hub;
        let frame = match hub.limits.frame_bytes {
            0 => usize::MAX,
            bytes => bytes as usize,
        };
        let max = MaxBytes { message: hub.max_message_bytes as usize, frame };
        let read = || {
            #[cfg(test)]
            assert!(!bytes.ends_with(PANIC), "a test provokes it");
            protocol.read(decoder, bytes, channel, max, inflater)
        };
        self.guard(slot, read).unwrap_or(Err(CloseReason::Internal))
    }

    /// The stream cannot be read any further. Says so, and throws away what comes until the client ends it: to end
    /// with bytes unread would reset the connection before the client has seen why.
    pub(super) fn violated(&mut self, slot: u32, reason: CloseReason) {
        self.slots[slot].flags.set(Flags::DEAF);
        self.close(slot, reason, None);
        if self.slots.is_taken(slot) {
            self.mark_dirty(slot);
        }
    }

    fn hear(&mut self, slot: u32, incoming: Incoming) {
        if self.slots[slot].flags.has(Flags::CLOSING) {
            // Only the answer to our close frame still counts.
            if let Incoming::Close(_) = incoming {
                self.slots[slot].flags.set(Flags::HEARD_CLOSE);
                self.mark_dirty(slot);
            }
            return;
        }
        match incoming {
            Incoming::Nothing => {}
            Incoming::Ping(payload) => {
                self.send_with(slot, |out| frame::put(out, frame::Opcode::Pong, &payload));
            }
            Incoming::Close(code) => {
                self.begin_end(slot, CloseReason::ClientClosed);
                self.slots[slot].flags.set(Flags::HEARD_CLOSE);
                self.send_with(slot, |out| match code {
                    Some(code) => frame::put_close(out, code, ""),
                    None => frame::put(out, frame::Opcode::Close, b""),
                });
            }
            Incoming::Message(message) => self.obey(slot, message),
        }
    }

    fn obey(&mut self, slot: u32, message: Message) {
        self.metrics.messages_in.add(1);
        self.slots[slot].passport.as_mut().expect("a taken slot").received.messages += 1;
        match message {
            Message::Command(command) => self.command(slot, command),
            Message::Refresh { token, id } => self.refresh(slot, token, id),
            Message::Mistake { error, id } => self.fail(slot, &error, None, id.as_deref()),
        }
    }

    fn command(&mut self, slot: u32, command: Command) {
        let channel = command.channel();
        let now = crate::session::Circumstances {
            policies: &self.rules.policies,
            limits: &self.rules.hub.limits,
            subscriptions: self.slots[slot].subscriptions(),
            subscribed: self.has_channel(slot, channel).is_some(),
            now_ms: self.now.ms,
        };
        let mut passport = self.slots[slot].passport.take().expect("a taken slot");
        let step = self.guard(slot, || {
            #[cfg(test)]
            assert!(!command.channel().as_str().as_bytes().ends_with(PANIC_LATER), "a test provokes it");
            passport.session.on(command, &now)
        });
        self.slots[slot].passport = Some(passport);
        let Some(step) = step else { return self.violated(slot, CloseReason::Internal) };
        match step {
            Step::Publish { channel, payload, id, idempotency_key, exposure } => {
                self.publish(slot, channel, payload, id, idempotency_key, exposure);
            }
            Step::Subscribe { channel, id } => {
                if let Err(error) = self.subscribe(slot, &channel, id.clone()) {
                    self.fail(slot, &error, Some(&channel), id.as_deref());
                }
            }
            Step::Unsubscribe { channel, id } => {
                let at = self.has_channel(slot, &channel).expect("the session was told so");
                if let Some(id) = self.unsubscribe(slot, at) {
                    self.fail(slot, &CommandError::Cancelled, Some(&channel), Some(&id));
                }
                self.reply(slot, &Reply::Unsubscribed { channel: &channel, id: id.as_deref() });
            }
            Step::Refuse { error, channel, id } => self.fail(slot, &error, Some(&channel), id.as_deref()),
        }
    }

    fn publish(
        &mut self,
        slot: u32,
        channel: ChannelName,
        payload: Payload,
        id: Option<String>,
        idempotency_key: Option<String>,
        exposure: Exposure,
    ) {
        let bytes = payload.bytes().len() + idempotency_key.as_deref().map_or(0, str::len);
        let (Ok(room), Some(held)) =
            (self.work.try_reserve(), Self::hold(&self.work_bytes, self.max_work_bytes, bytes))
        else {
            self.fail(slot, &CommandError::Overloaded, Some(&channel), id.as_deref());
            return;
        };
        let passport = self.slots[slot].passport.as_ref().expect("a taken slot");
        let (connection, user) = (self.id(slot), passport.session.identity.user.clone());
        let task = Task::Publish { connection, channel, payload, id, idempotency_key, user, exposure, held };
        room.send(Work { shard: self.shard, task });
        let cold = self.slots[slot].cold();
        cold.in_flight += 1;
        if cold.in_flight >= MAX_IN_FLIGHT {
            self.slots[slot].flags.set(Flags::PAUSED);
        }
    }

    /// Memory for work with so many bytes of a client's, on its way to the control runtime; `None` if there is not enough.
    fn hold(memory: &Arc<Semaphore>, max: usize, bytes: usize) -> Option<OwnedSemaphorePermit> {
        // What it takes beside them is nearly all of a small one; one that is larger than all that may wait waits alone.
        let bytes = (bytes + size_of::<Work>() + 128).min(max);
        Arc::clone(memory).try_acquire_many_owned(bytes as u32).ok()
    }

    fn refresh(&mut self, slot: u32, token: String, id: Option<String>) {
        let connection = self.id(slot);
        let (Ok(room), Some(held)) =
            (self.work.try_reserve(), Self::hold(&self.token_bytes, self.max_token_bytes, token.len()))
        else {
            return self.fail(slot, &CommandError::Overloaded, None, id.as_deref());
        };
        room.send(Work { shard: self.shard, task: Task::Refresh { connection, token, id, held } });
        // A signature takes as long as many messages: one at a time.
        self.slots[slot].cold().in_flight += 1;
        self.slots[slot].flags.set(Flags::PAUSED);
    }

    /// The broker has answered: goes on with what the client has sent meanwhile.
    pub(super) fn resume_reading(&mut self, slot: u32) {
        if !self.slots.is_taken(slot) || !self.slots[slot].flags.has(Flags::PAUSED) {
            return;
        }
        self.slots[slot].flags.clear(Flags::PAUSED);
        if let Some(cold) = &mut self.slots[slot].cold {
            let partial = std::mem::take(&mut cold.partial);
            self.take_kept(slot, partial);
        }
        if self.slots.is_taken(slot) {
            self.read_later(slot);
        }
    }
}

impl Command {
    fn channel(&self) -> &ChannelName {
        let (Self::Publish { channel, .. }
        | Self::Subscribe { channel, .. }
        | Self::Unsubscribe { channel, .. }
        | Self::Acknowledge { channel, .. }) = self;
        channel
    }
}
