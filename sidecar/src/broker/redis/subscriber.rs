//! The connection that brings publications.

use std::{pin::pin, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    Prefix,
    connector::{Connected, Connector, Transport},
    interests::{Change, Interests, Reply, Useless},
    resp::{self, Item},
};
use crate::{
    broker::{
        BrokerEvent, LinkId, Watchdog,
        backoff::Backoff,
        envelope::{self, Decoded},
    },
    domain::ChannelName,
};

/// Room for one read: what Redis sends in one turn under load.
const READ: usize = 64 << 10;
/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(250);
/// A connection that was silent for this long is asked whether it lives.
const SILENCE: Duration = Duration::from_secs(5);
/// And this long it has to answer.
const PONG: Duration = Duration::from_secs(5);

/// What the handle asks.
pub(super) enum Command {
    Subscribe { channels: Vec<ChannelName>, reply: Reply },
    Unsubscribe { channels: Vec<ChannelName> },
    Rebuild(String),
}

/// The task.
pub(super) struct SubscribeTask {
    link: LinkId,
    connector: Connector,
    commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::Sender<Vec<BrokerEvent>>,
    interests: Interests,
    /// All subscriptions of the present connection are live, ...
    is_live: bool,
    /// ... or were so on an earlier one.
    was_live: bool,
    /// Of the present connection, or of the attempts to make one.
    watchdog: Watchdog,
}

/// Why serving a connection ended.
enum End {
    /// The handle or the bridge is gone.
    Closed,
    /// The connection is lost.
    Lost(String),
}

/// One connection.
struct Connection {
    reader: ReadHalf<Box<dyn Transport>>,
    writer: WriteHalf<Box<dyn Transport>>,
    input: BytesMut,
    /// TLS may hold back what was written.
    unflushed: bool,
    pinged: bool,
}

impl SubscribeTask {
    pub(super) fn new(
        link: LinkId,
        connector: Connector,
        prefix: Prefix,
        commands: mpsc::UnboundedReceiver<Command>,
        events: mpsc::Sender<Vec<BrokerEvent>>,
    ) -> Self {
        let (interests, watchdog) = (Interests::new(prefix), Watchdog::new(Instant::now()));
        Self { link, connector, commands, events, interests, is_live: false, was_live: false, watchdog }
    }

    /// Connects, serves, and connects anew, until the handle is dropped.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new();
        loop {
            let end = match self.connect().await {
                Ok(connection) => self.serve(connection, &mut backoff).await,
                Err(end) => end,
            };
            let End::Lost(reason) = end else { return };
            if backoff.tell() {
                let attempts = backoff.attempts();
                tracing::warn!(%reason, attempts, "no subscriber connection to Redis");
            }
            let pause = self.connector.clone().pause(backoff.next());
            if self.lost(reason).await.is_err() || self.wait(pause).await.is_none() {
                return;
            }
        }
    }

    async fn lost(&mut self, reason: String) -> Result<(), mpsc::error::SendError<Vec<BrokerEvent>>> {
        self.interests.disconnected(reason.clone(), Instant::now());
        let link = self.link;
        self.events.send(vec![BrokerEvent::Disconnected { link, reason }]).await
    }

    async fn connect(&mut self) -> Result<Connection, End> {
        let connector = self.connector.clone();
        match self.wait(connector.connect("subscriber")).await {
            Some(Ok(Connected { transport, server: _ })) => Ok(Connection::new(transport)),
            Some(Err(error)) => Err(End::Lost(error.to_string())),
            None => Err(End::Closed),
        }
    }

    /// Waits for something while there is no connection. `None` where the handle is gone.
    async fn wait<T>(&mut self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        let mut tick = interval(TICK);
        loop {
            tokio::select! {
                done = &mut future => return Some(done),
                command = self.commands.recv() => { self.command(command?); }
                _ = tick.tick() => self.tick(Instant::now()),
            }
        }
    }

    /// Looks at the deadlines.
    fn tick(&mut self, now: Instant) {
        let unwatched = self.watchdog.check(now);
        self.interests.extend_deadlines(unwatched);
        self.interests.expire(now);
    }

    async fn serve(&mut self, mut connection: Connection, backoff: &mut Backoff) -> End {
        self.watchdog.heard(Instant::now());
        self.is_live = false;
        self.interests.connected();
        let mut events = Vec::new();
        self.take_changes(&mut events, backoff);
        if let Err(end) = self.send(events).await {
            return end;
        }
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let Connection { reader, writer, input, unflushed, .. } = &mut connection;
            let out = &mut self.interests.out;
            let step = tokio::select! {
                read = reader.read_buf(input) => match read {
                    Ok(0) => Err(End::Lost("Redis closed the connection".to_owned())),
                    Ok(_) => self.read(&mut connection, backoff).await,
                    Err(error) => Err(End::Lost(format!("failed to read from Redis: {error}"))),
                },
                written = write(writer, out, unflushed), if !out.is_empty() || *unflushed => {
                    written.map_err(|error| End::Lost(format!("failed to write to Redis: {error}")))
                }
                command = self.commands.recv() => command.and_then(|command| self.command(command)).map_or(Ok(()), Err),
                _ = tick.tick() => {
                    let now = Instant::now();
                    self.tick(now);
                    connection.check(self.watchdog.silence(now), &mut self.interests)
                }
            };
            if let Err(end) = step {
                return end;
            }
            if self.commands.is_closed() {
                return End::Closed;
            }
        }
    }

    /// Does what the handle asks, which ends a connection only where it asks for that.
    fn command(&mut self, command: Command) -> Option<End> {
        match command {
            Command::Subscribe { channels, reply } => {
                self.interests.subscribe(channels, reply, Instant::now())
            }
            // From here on their messages are dropped, whatever is still under way.
            Command::Unsubscribe { channels } => self.interests.unsubscribe(&channels),
            Command::Rebuild(reason) => return Some(End::Lost(reason)),
        }
        None
    }

    /// Handles all that is complete in the input.
    async fn read(&mut self, connection: &mut Connection, backoff: &mut Backoff) -> Result<(), End> {
        let (items, end) = connection.items()?;
        let bytes = connection.input.split_to(end).freeze();
        let mut events = Vec::with_capacity(items.len());
        for item in items {
            self.item(item, &bytes, &mut events).map_err(|error| End::Lost(error.to_string()))?;
            self.take_changes(&mut events, backoff);
        }
        connection.heard();
        self.send(events).await?;
        self.watchdog.heard(Instant::now());
        Ok(())
    }

    fn item(&mut self, item: Item, bytes: &Bytes, events: &mut Vec<BrokerEvent>) -> Result<(), Useless> {
        match item {
            Item::Message { channel, payload } => {
                if let Some(channel) = self.interests.wanted(&bytes[channel]) {
                    events.push(decode(channel, bytes.slice(payload)));
                }
            }
            Item::Subscribed(channel) => self.interests.subscribed(&bytes[channel])?,
            Item::Unsubscribed(channel) => self.interests.unsubscribed(&bytes[channel], Instant::now()),
            Item::Error(text) => {
                self.interests.refused(&String::from_utf8_lossy(&bytes[text]), Instant::now())?;
            }
            Item::Pong => self.interests.ponged()?,
            Item::Status(_) | Item::Bulk(_) | Item::Role(_) | Item::Other => {}
        }
        Ok(())
    }

    /// What changed, as events.
    fn take_changes(&mut self, events: &mut Vec<BrokerEvent>, backoff: &mut Backoff) {
        for change in self.interests.take_changes() {
            match change {
                Change::AllLive => {
                    self.is_live = true;
                    backoff.reset();
                    self.connector.serves();
                    events.push(BrokerEvent::Connected { link: self.link });
                    if std::mem::replace(&mut self.was_live, true) {
                        events.push(BrokerEvent::Resumed { link: self.link });
                    }
                }
                Change::Lost(channel, reason) => events.push(BrokerEvent::ChannelLost { channel, reason }),
                Change::Resumed(channel) => events.push(BrokerEvent::ChannelResumed { channel }),
                Change::GivenUp(channel) => events.push(BrokerEvent::ChannelGivenUp { channel }),
                Change::Postponed(reason) => {
                    tracing::warn!(%reason, "Redis does not take subscriptions now, trying again with back-off");
                    if !self.is_live {
                        events.push(BrokerEvent::Disconnected { link: self.link, reason });
                    }
                }
            }
        }
    }

    async fn send(&mut self, events: Vec<BrokerEvent>) -> Result<(), End> {
        if events.is_empty() {
            return Ok(());
        }
        self.events.send(events).await.map_err(|_| End::Closed)
    }
}

impl Connection {
    fn new(transport: Box<dyn Transport>) -> Self {
        let (reader, writer) = tokio::io::split(transport);
        Self { reader, writer, input: BytesMut::with_capacity(READ), unflushed: false, pinged: false }
    }

    /// What is complete in the input, and where it ends. Leaves room for the next read.
    fn items(&mut self) -> Result<(Vec<Item>, usize), End> {
        let (mut items, mut end) = (Vec::new(), 0);
        loop {
            match resp::parse(&self.input, end) {
                Ok(Some((item, next))) => {
                    items.push(item);
                    end = next;
                }
                Ok(None) => break,
                Err(error) => return Err(End::Lost(error.to_string())),
            }
        }
        Ok((items, end))
    }

    fn heard(&mut self) {
        self.pinged = false;
        if self.input.capacity() - self.input.len() < READ / 2 {
            self.input.reserve(READ);
        }
    }

    /// Asks a silent connection whether it lives, and ends it where it does not say so.
    fn check(&mut self, silent: Duration, interests: &mut Interests) -> Result<(), End> {
        if silent < SILENCE {
            self.pinged = false;
        }
        if silent >= SILENCE + PONG {
            return Err(End::Lost(format!("Redis did not answer a PING in {} s", PONG.as_secs())));
        }
        if silent >= SILENCE && !std::mem::replace(&mut self.pinged, true) {
            interests.ping();
        }
        Ok(())
    }
}

fn decode(channel: &ChannelName, payload: Bytes) -> BrokerEvent {
    match envelope::decode(channel.clone(), payload) {
        Ok(Decoded::Publication(publication)) => BrokerEvent::Publication(publication),
        Ok(Decoded::Void(origin)) => BrokerEvent::Void { channel: channel.clone(), origin },
        Err(error) => {
            tracing::debug!(%channel, %error, "dropped a publication");
            BrokerEvent::Malformed { channel: channel.clone() }
        }
    }
}

/// Writes some of `out`, or flushes once it is empty. Loses nothing when dropped.
async fn write(
    writer: &mut WriteHalf<Box<dyn Transport>>,
    out: &mut BytesMut,
    unflushed: &mut bool,
) -> std::io::Result<()> {
    if out.is_empty() {
        writer.flush().await?;
        *unflushed = false;
    } else {
        writer.write_buf(out).await?;
        *unflushed = true;
    }
    Ok(())
}
