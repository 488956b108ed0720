//! The connection that takes publications: those that wait are sent as one pipeline.
//!
//! Each publication ends in one of three outcomes. A connection that ends has counted the bytes that it took, so that
//! a publication of which none was written is known not to be published; for the others the outcome is unknown. Silence
//! ends a connection, not slowness: as long as Redis answers something, or makes room for what waits to be written, answers
//! are waited for.

mod watched;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use redis::{
    AsyncConnectionConfig, RedisConnectionInfo, RedisError, RedisResult, Value, aio::MultiplexedConnection,
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    task::unconstrained,
    time::{Instant, MissedTickBehavior, interval},
};

use self::watched::{Progress, Watched};
use super::{
    Prefix,
    address::AddressWatch,
    connector::{Connected, Connector},
    role::{self, Answer, Ask, ServerRole},
    subscriber::Command,
};
use crate::{
    broker::{BrokerError, IdempotencyKey, PublishOptions, Published, Watchdog, backoff::Backoff, envelope},
    domain::Publication,
};

/// Publications of one pipeline.
const BATCH: usize = 512;
/// Payload bytes of one pipeline, unless one publication has more: each pipeline under way is held twice.
const BATCH_BYTES: usize = 1 << 20;
/// Pipelines under way: enough to fill the time that an answer takes, few enough that publications gather.
const PIPELINES: usize = 8;
/// A connection without a sign of life for this long, although an answer is due, is given up.
const SILENCE: Duration = Duration::from_secs(2);
/// How often silence is looked for.
const TICK: Duration = Duration::from_millis(250);
/// How often the server is asked for its role: a demoted one is noticed within it.
const ROLE: Duration = Duration::from_secs(5);
/// An idempotency key is remembered for this long after its publication. Longer than anybody retries; short, for each
/// key costs Redis some 150 bytes until then, and its publication some twenty times the CPU of a `PUBLISH`.
const IDEMPOTENCY_WINDOW: Duration = Duration::from_secs(300);

/// Publishes once per key. A repetition uses up a sequence number too, which subscribers must not miss: the second
/// message tells them. `SET` is undone by `SET`, so that the ACL need not grant more.
const PUBLISH_ONCE: &str = "\
if not redis.call('SET', KEYS[1], '1', 'PX', ARGV[1], 'NX') then redis.call('PUBLISH', ARGV[2], ARGV[4]) return 1 end \
local sent = redis.pcall('PUBLISH', ARGV[2], ARGV[3]) \
if type(sent) == 'table' and sent.err then redis.call('SET', KEYS[1], '0', 'PX', 1) return sent end \
return 0";

/// A publication on its way.
pub(super) struct Publish {
    channel: Bytes,
    publication: Publication,
    idempotency: Option<IdempotencyKey>,
    answer: oneshot::Sender<Result<Published, BrokerError>>,
    /// Given back in `Drop`.
    _room: Option<OwnedSemaphorePermit>,
}

/// Lets publications in while there is a connection.
pub(super) struct Gate {
    /// Why there is no connection; `None` while there is one.
    down: Mutex<Option<Arc<str>>>,
}

/// The task.
pub(super) struct PublishTask {
    connector: Connector,
    prefix: Prefix,
    queue: mpsc::UnboundedReceiver<Publish>,
    rebuild: mpsc::Receiver<String>,
    gate: Arc<Gate>,
    /// The other side of the link: it is not to stay with a server that this side has left.
    subscriber: mpsc::WeakUnboundedSender<Command>,
    address: AddressWatch,
}

/// Why serving a connection ended.
enum End {
    Closed,
    Lost(String),
    /// The server is not the right one any more, for both sides of the link.
    Left(String),
}

/// One connection, and what is under way on it.
struct Wire {
    connection: MultiplexedConnection,
    /// Bytes of all commands that were handed to the connection; written in this order.
    handed: Arc<AtomicU64>,
    flights: VecDeque<Flight>,
    sent: FuturesUnordered<Sent>,
    last: u64,
    roles: FuturesUnordered<RoleAnswer>,
}

/// A pipeline under way.
struct Flight {
    number: u64,
    /// Each publication, and where its bytes begin on the connection.
    batch: Vec<(Publish, u64)>,
}

type Answers = RedisResult<Vec<RedisResult<i64>>>;
/// Resolves once all publications of the flight are answered.
type Sent = Pin<Box<dyn Future<Output = (u64, Answers)> + Send>>;
type RoleAnswer = Pin<Box<dyn Future<Output = RedisResult<ServerRole>> + Send>>;

impl Publish {
    pub(super) fn new(
        channel: Bytes,
        publication: Publication,
        options: PublishOptions,
    ) -> (Self, oneshot::Receiver<Result<Published, BrokerError>>) {
        let PublishOptions { idempotency, room } = options;
        let (answer, receiver) = oneshot::channel();
        (Self { channel, publication, idempotency, answer, _room: room }, receiver)
    }

    fn finish(self, outcome: Result<Published, BrokerError>) {
        // Nobody waits for it.
        let _ = self.answer.send(outcome);
    }
}

// === impl Gate ===

impl Default for Gate {
    fn default() -> Self {
        Self { down: Mutex::new(Some("not connected yet".into())) }
    }
}

impl Gate {
    /// Queues a publication, or says at once why not.
    pub(super) fn admit(
        &self,
        publish: Publish,
        queue: &mpsc::UnboundedSender<Publish>,
    ) -> Result<(), BrokerError> {
        // Held until it is queued: what is admitted is in the queue before the gate closes, and failed with it.
        let down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = &*down {
            return Err(BrokerError::Unavailable(reason.to_string()));
        }
        queue.send(publish).map_err(|_| BrokerError::Closed)
    }

    fn set(&self, down: Option<&str>) {
        *self.down.lock().unwrap_or_else(PoisonError::into_inner) = down.map(Into::into);
    }
}

// === impl PublishTask ===

impl PublishTask {
    pub(super) fn new(
        connector: Connector,
        prefix: Prefix,
        queue: mpsc::UnboundedReceiver<Publish>,
        rebuild: mpsc::Receiver<String>,
        gate: Arc<Gate>,
        subscriber: mpsc::WeakUnboundedSender<Command>,
    ) -> Self {
        let address = AddressWatch::new(Instant::now());
        Self { connector, prefix, queue, rebuild, gate, subscriber, address }
    }

    /// Connects, serves, and connects again, until the handle is dropped.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new();
        loop {
            let end = match self.connector.clone().connect("publisher").await {
                Ok(connected) => self.serve(connected, &mut backoff).await,
                Err(error) => End::Lost(error.to_string()),
            };
            let reason = match end {
                End::Closed => return,
                End::Lost(reason) => reason,
                End::Left(reason) => {
                    self.leave_with_subscriber(reason.clone());
                    reason
                }
            };
            self.gate.set(Some(&reason));
            self.fail_queued(&reason);
            if self.queue.is_closed() {
                return;
            }
            if backoff.tell() {
                let attempts = backoff.attempts();
                tracing::warn!(%reason, attempts, "no publisher connection to Redis");
            }
            self.connector.clone().pause(backoff.next()).await;
        }
    }

    fn leave_with_subscriber(&self, reason: String) {
        if let Some(subscriber) = self.subscriber.upgrade() {
            // It has ended where it does not take it.
            let _ = subscriber.send(Command::Rebuild(reason));
        }
    }

    /// Answers what came in just before the gate closed.
    fn fail_queued(&mut self, reason: &str) {
        while let Ok(publish) = self.queue.try_recv() {
            publish.finish(Err(BrokerError::Unavailable(reason.to_owned())));
        }
    }

    async fn serve(&mut self, connected: Connected, backoff: &mut Backoff) -> End {
        let Connected { transport, server } = connected;
        self.address.connected(Instant::now());
        let (transport, progress) = Watched::new(transport);
        // Silence is judged here, where signs of life are known.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        // The connector has shaken hands already.
        let info = RedisConnectionInfo::default().set_skip_set_lib_name();
        let made = MultiplexedConnection::new_with_config(&info, transport, config).await;
        let (mut wire, driver) = match made {
            Ok((connection, driver)) => (Wire::new(connection), driver),
            Err(error) => return End::Lost(error.to_string()),
        };
        backoff.reset();
        // A wish for a new connection from before this one is fulfilled.
        while self.rebuild.try_recv().is_ok() {}
        self.gate.set(None);
        self.connector.serves();
        let mut driver = Box::pin(driver);
        let end = self.pump(&mut wire, driver.as_mut(), &progress, server).await;
        let reason = match &end {
            End::Closed => "the node ends",
            End::Lost(reason) | End::Left(reason) => reason,
        };
        // Before the outcomes are told, or a caller's next publication would be queued for this connection.
        self.gate.set(Some(reason));
        // Nothing is written from here on.
        drop(driver);
        wire.settle(progress.written(), reason);
        end
    }

    async fn pump(
        &mut self,
        wire: &mut Wire,
        mut driver: Pin<&mut impl Future<Output = ()>>,
        progress: &Progress,
        server: SocketAddr,
    ) -> End {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut watchdog, mut signs) = (Watchdog::new(Instant::now()), progress.signs());
        let mut role_at = Instant::now() + ROLE;
        let mut look_ups = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = &mut driver => return End::Lost("Redis closed the connection".to_owned()),
                publish = self.queue.recv(), if wire.flights.len() < PIPELINES => {
                    let Some(first) = publish else { return End::Closed };
                    let batch = self.batch(first);
                    wire.send(batch, &self.prefix);
                }
                Some((number, answers)) = wire.sent.next() => {
                    if let Err(error) = wire.answered(number, answers, &self.prefix) {
                        return self.end(&error);
                    }
                }
                Some(role) = wire.roles.next() => match role.map(|role| self.connector.judge(role)) {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return End::Left(error.to_string()),
                    Err(error) => return self.end(&error),
                },
                Some(found) = look_ups.next() => if self.address.has_moved(server, found) {
                    let address = self.connector.address();
                    return End::Left(format!("{address} (broker.redis.address) no longer leads to {server}"));
                },
                _ = tick.tick() => {
                    let now = Instant::now();
                    watchdog.check(now);
                    let before = std::mem::replace(&mut signs, progress.signs());
                    if wire.is_idle() || before != signs {
                        watchdog.heard(now);
                    } else if watchdog.silence(now) >= SILENCE {
                        return End::Lost(format!("Redis did not answer in {} s", SILENCE.as_secs()));
                    }
                    if now >= role_at {
                        role_at = now + ROLE;
                        wire.ask_role(self.connector.prefix());
                    }
                    if self.address.is_due(now) {
                        look_ups.push(self.connector.clone().look_up());
                    }
                }
                Some(reason) = self.rebuild.recv() => return End::Lost(reason),
            }
        }
    }

    /// What waits, as far as one pipeline takes it.
    fn batch(&mut self, first: Publish) -> Vec<Publish> {
        let mut bytes = first.publication.payload.bytes().len();
        let mut batch = vec![first];
        while batch.len() < BATCH
            && bytes < BATCH_BYTES
            && let Ok(next) = self.queue.try_recv()
        {
            bytes += next.publication.payload.bytes().len();
            batch.push(next);
        }
        batch
    }

    fn end(&self, error: &RedisError) -> End {
        if error.code() != Some("READONLY") {
            return End::Lost(error.to_string());
        }
        match self.connector.judge(ServerRole::Replica(String::new())) {
            Err(error) => End::Left(error.to_string()),
            Ok(()) => End::Lost(error.to_string()),
        }
    }
}

// === impl Wire ===

impl Wire {
    fn new(connection: MultiplexedConnection) -> Self {
        Self {
            connection,
            handed: Arc::default(),
            flights: VecDeque::new(),
            sent: FuturesUnordered::new(),
            last: 0,
            roles: FuturesUnordered::new(),
        }
    }

    fn is_idle(&self) -> bool {
        self.flights.is_empty() && self.roles.is_empty()
    }

    fn send(&mut self, batch: Vec<Publish>, prefix: &Prefix) {
        let mut pipeline = redis::Pipeline::with_capacity(batch.len());
        let mut at = self.handed.load(Ordering::Relaxed);
        let begin = |publish: Publish| {
            let begins = at;
            at += add(&mut pipeline, &publish, prefix);
            (publish, begins)
        };
        let batch: Vec<_> = batch.into_iter().map(begin).collect();
        self.handed.store(at, Ordering::Relaxed);
        pipeline.ignore_errors();
        self.last += 1;
        self.flights.push_back(Flight { number: self.last, batch });
        self.sent.push(handed(self.connection.clone(), pipeline, self.last));
    }

    fn ask_role(&mut self, prefix: &str) {
        let (connection, handed) = (self.connection.clone(), Arc::clone(&self.handed));
        let prefix = prefix.to_owned();
        let role = async move { role::find(&mut Asking { connection, handed }, &prefix).await };
        self.roles.push(Box::pin(role));
    }

    /// Redis answered a pipeline.
    ///
    /// # Errors
    /// The connection is lost, or its server is no primary; what has no outcome stays for [`Self::settle`].
    fn answered(&mut self, number: u64, answers: Answers, prefix: &Prefix) -> Result<(), RedisError> {
        let answers = answers?;
        let Some(at) = self.flights.iter().position(|flight| flight.number == number) else { return Ok(()) };
        let Some(Flight { batch, .. }) = self.flights.remove(at) else { return Ok(()) };
        let (mut answers, mut demoted) = (answers.into_iter(), None);
        for (publish, _) in batch {
            let keyed = publish.idempotency.is_some();
            publish.finish(match answers.next() {
                Some(Ok(count)) => Ok(Published { position: None, duplicate: keyed && count == 1 }),
                Some(Err(error)) => {
                    let refused = refusal(&error, keyed, prefix);
                    if error.code() == Some("READONLY") {
                        demoted = Some(error);
                    }
                    Err(refused)
                }
                None => Err(BrokerError::Unknown("Redis answered too few commands".to_owned())),
            });
        }
        demoted.map_or(Ok(()), Err)
    }

    /// The connection has ended, after `written` bytes: tells the outcome of all that has none.
    fn settle(self, written: u64, reason: &str) {
        for (publish, begins) in self.flights.into_iter().flat_map(|flight| flight.batch) {
            let error = if begins < written { BrokerError::Unknown } else { BrokerError::Unavailable };
            publish.finish(Err(error(reason.to_owned())));
        }
    }
}

/// Asks for the server's role on the connection of the publications.
struct Asking {
    connection: MultiplexedConnection,
    handed: Arc<AtomicU64>,
}

impl Ask for Asking {
    type Error = RedisError;

    async fn ask(&mut self, command: &[&str]) -> RedisResult<Answer> {
        let (mut asked, mut lengths) = (redis::Cmd::new(), Vec::with_capacity(command.len()));
        for part in command {
            asked.arg(*part);
            lengths.push(part.len());
        }
        self.handed.fetch_add(encoded_length(&lengths), Ordering::Relaxed);
        let answer: RedisResult<Value> = unconstrained(asked.query_async(&mut self.connection)).await;
        let text = |value: &Value| match value {
            Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Value::Int(number) => number.to_string(),
            _ => String::new(),
        };
        match answer {
            Ok(Value::Array(parts)) => Ok(match parts.first().map(text).as_deref() {
                Some("master") => Answer::Role(ServerRole::Primary),
                Some("slave") => {
                    let parts: Vec<_> = parts.iter().map(text).collect();
                    Answer::Role(ServerRole::Replica(parts.get(1..3).unwrap_or_default().join(":")))
                }
                Some("sentinel") => Answer::Role(ServerRole::Sentinel),
                _ => Answer::Other,
            }),
            Ok(value @ Value::BulkString(_)) => Ok(Answer::Text(text(&value))),
            Ok(_) => Ok(Answer::Other),
            Err(error) if error.code().is_some() => Ok(Answer::Refused(text_of(&error))),
            Err(error) => Err(error),
        }
    }
}

/// Adds a publication's command to a pipeline; returns its length on the connection.
fn add(pipeline: &mut redis::Pipeline, publish: &Publish, prefix: &Prefix) -> u64 {
    let Publish { channel, publication, idempotency, .. } = publish;
    let body = envelope::encode(publication);
    let Some(key) = idempotency else {
        pipeline.cmd("PUBLISH").arg(&channel[..]).arg(&body[..]);
        return encoded_length(&["PUBLISH".len(), channel.len(), body.len()]);
    };
    let window = IDEMPOTENCY_WINDOW.as_millis().to_string();
    let (key, void) =
        (prefix.idempotency_key(&publication.channel, *key), envelope::encode_void(publication));
    let arguments: [&[u8]; 7] =
        [PUBLISH_ONCE.as_bytes(), b"1", &key, window.as_bytes(), channel, &body, &void];
    let command = pipeline.cmd("EVAL");
    let mut lengths = vec!["EVAL".len()];
    for argument in arguments {
        command.arg(argument);
        lengths.push(argument.len());
    }
    encoded_length(&lengths)
}

/// The length of a command as RESP, by the lengths of its parts.
fn encoded_length(parts: &[usize]) -> u64 {
    let digits = |number: usize| number.checked_ilog10().unwrap_or(0) as usize + 1;
    let framed = |length: usize| 1 + digits(length) + 2 + length + 2;
    (1 + digits(parts.len()) + 2 + parts.iter().copied().map(framed).sum::<usize>()) as u64
}

/// Sends a pipeline. It is handed to the connection by the first poll, which is made here: so pipelines leave in the
/// order of their making. Unconstrained, or tokio would refuse that poll to a task that used up its turn, and a
/// later pipeline would overtake this one.
fn handed(mut connection: MultiplexedConnection, pipeline: redis::Pipeline, number: u64) -> Sent {
    let mut sent: Sent =
        Box::pin(unconstrained(async move { (number, pipeline.query_async(&mut connection).await) }));
    match futures::FutureExt::now_or_never(&mut sent) {
        Some(answered) => Box::pin(std::future::ready(answered)),
        None => sent,
    }
}

/// An error that Redis answered: nothing was published.
fn refusal(error: &RedisError, keyed: bool, prefix: &Prefix) -> BrokerError {
    let text = text_of(error);
    match error.code() {
        // It passes.
        Some("LOADING" | "BUSY" | "MASTERDOWN" | "READONLY" | "OOM") => BrokerError::Unavailable(text),
        _ if keyed && (text.contains("NOPERM") || text.contains("ACL failure")) => {
            let keys = prefix.key_pattern();
            BrokerError::Refused(format!(
                "{text}; an idempotency key needs the ACL rules `+eval +set +publish {keys}`"
            ))
        }
        _ => BrokerError::Refused(text),
    }
}

/// An error in the server's own words; the crate's begin with a name of its own.
fn text_of(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
