//! The one loop of a shard: poll → mail → reads → timers → visits. Alone touches the poll and reads the clock.

use std::{
    io,
    os::fd::AsRawFd,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use mio::{Events, Interest, Poll, Token, unix::SourceFd};

use super::{
    Inbox, Link, Mail,
    core::{Core, Now},
    pulse::{Pulse, Stage},
    read::{BUFFER, Ready},
};
use crate::{domain::ConnectionId, protocol::Advice};

/// The waker's token; slots are far below.
pub(crate) const WAKE: Token = Token(usize::MAX);

/// Channels that could not be given back are tried again this soon.
const RETRY: Duration = Duration::from_millis(20);
/// Events of one turn: mail waits for no more reads than these.
const EVENTS: usize = 256;

/// See the module.
pub(crate) struct Reactor {
    poll: Poll,
    inbox: Inbox,
    core: Core,
    pulse: Arc<Pulse>,
    /// When this turn began.
    turn: Instant,
    buffer: Vec<u8>,
    due: Vec<super::timer::Entry>,
    /// Mail was left in its box, and its wake-up is used up.
    held: bool,
}

impl Reactor {
    pub(crate) fn new(poll: Poll, inbox: Inbox, core: Core, pulse: Arc<Pulse>) -> Self {
        let (turn, buffer) = (Instant::now(), vec![0; BUFFER]);
        Self { poll, inbox, core, pulse, turn, buffer, due: Vec::new(), held: false }
    }

    /// Runs until [`Mail::Stop`].
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS);
        let mut retry = false;
        loop {
            let timeout = self.timeout(retry);
            self.wait(&mut events, timeout);
            self.begin_turn(timeout);
            if self.take_mail() {
                return;
            }
            self.pulse.enter(Stage::Read);
            self.take_events(&events);
            self.pulse.enter(Stage::Timers);
            self.core.wheel.expire(self.core.now.ms, &mut self.due);
            self.core.expire(&self.due);
            self.due.clear();
            self.pulse.enter(Stage::Visits);
            self.core.visits(|| self.pulse.clock_us());
            retry = self.core.retry_leaving();
            self.end_turn();
        }
    }

    fn timeout(&self, retry: bool) -> Option<Duration> {
        if self.core.is_busy() || self.held {
            return Some(Duration::ZERO);
        }
        let timer = self.core.wheel.next_in(self.core.now.ms).map(Duration::from_millis);
        if retry { Some(timer.map_or(RETRY, |timer| timer.min(RETRY))) } else { timer }
    }

    fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) {
        match self.poll.poll(events, timeout) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("epoll_wait fails only on a bad descriptor: {error}"),
        }
    }

    /// `timeout`: how long this turn was to be waited for.
    fn begin_turn(&mut self, timeout: Option<Duration>) {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.turn = Instant::now();
        let us = self.pulse.us_at(self.turn);
        let now = Now { ms: us / 1_000, us, unix_us: unix.as_micros() as u64 };
        self.core.begin_turn(now, timeout.map(|timeout| timeout.as_millis() as u64));
        self.pulse.begin(Stage::Mail, us);
    }

    fn end_turn(&self) {
        let us = self.pulse.clock_us();
        self.pulse.turned(us);
        self.pulse.begin(Stage::Poll, us);
    }

    fn take_events(&mut self, events: &Events) {
        let ready = events.iter().filter(|event| event.token() != WAKE).map(|event| Ready {
            slot: event.token().0 as u32,
            writable: event.is_writable(),
            readable: event.is_readable(),
            ended: event.is_read_closed() || event.is_error(),
        });
        self.core.take_events(ready, &mut self.buffer, || self.pulse.clock_us());
    }

    /// Whether the thread is to end.
    fn take_mail(&mut self) -> bool {
        self.core.press();
        self.held = self.core.is_full();
        if self.held {
            return false;
        }
        for mail in self.inbox.take() {
            if let Mail::Stop = mail {
                self.core.force();
                return true;
            }
            self.take(mail);
        }
        false
    }

    fn take(&mut self, mail: Mail) {
        let core = &mut self.core;
        match mail {
            Mail::Publications { batch, sent } => {
                let waited = self.turn.saturating_duration_since(sent).as_micros();
                let waited = u32::try_from(waited).unwrap_or(u32::MAX);
                core.metrics.queue.record(waited, batch.len() as u64);
                core.publications(&batch);
            }
            Mail::Gap { channels, certain, reason } => core.gap(&channels, certain, reason),
            Mail::Refused { channel, refused } => core.set_refused(&channel, refused),
            Mail::Completion(completion) => core.complete(completion),
            Mail::Reserve(reservation) => core.reserve(*reservation),
            Mail::Attach { connection, link, leftover } => self.attach(connection, link, &leftover),
            Mail::Abandon { connection } => core.abandon(connection),
            Mail::Pipe { connection } => {
                if let Some(slot) = core.find(connection) {
                    core.writable(slot);
                    core.readable(slot, false, &mut self.buffer);
                }
            }
            // Whoever asked may have stopped waiting.
            Mail::Disconnect { connection, user, age, reason, count } => {
                let _ = count.send(core.disconnect(connection, user.as_deref(), age, reason));
            }
            Mail::Shed { count, after, jitter } => core.shed(count, Advice { after, jitter }),
            Mail::Force => core.force(),
            Mail::Settings { rules, latencies } => core.set_rules(rules, latencies),
            Mail::Keys { good, apart } => core.set_keys(good, apart),
            Mail::Channels { reply } => drop(reply.send(core.channel_counts())),
            Mail::Stop => unreachable!("seen before"),
            #[cfg(test)]
            Mail::Panic => panic!("a test provokes it"),
        }
        while let Some((slot, arrived)) = self.core.next_arrived() {
            if self.watch(slot, &arrived.link) {
                self.core.welcome(slot, arrived);
            }
        }
    }

    fn attach(&mut self, connection: ConnectionId, link: Link, leftover: &bytes::Bytes) {
        if let Some(slot) = self.core.find(connection)
            && self.watch(slot, &link)
        {
            self.core.attach(slot, link, leftover);
        }
    }

    /// A socket is registered once, for both directions: edge-triggered, it says only what is new. One that cannot be
    /// is given up.
    fn watch(&mut self, slot: u32, link: &Link) -> bool {
        let Link::Socket(socket) = link else { return true };
        let interest = Interest::READABLE | Interest::WRITABLE;
        let (fd, token) = (socket.as_raw_fd(), Token(slot as usize));
        let registered = self.poll.registry().register(&mut SourceFd(&fd), token, interest);
        if let Err(error) = &registered {
            tracing::warn!(%error, "failed to register a connection for polling, closing it");
            self.core.abandon(self.core.id(slot));
        }
        registered.is_ok()
    }
}
