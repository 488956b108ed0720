//! The connection that takes publications: those that wait are sent as one pipeline.

use std::{
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use redis::{
    AsyncConnectionConfig, RedisConnectionInfo, RedisError, RedisResult, aio::MultiplexedConnection,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::unconstrained,
};

use super::topology::{Connector, Transport};
use crate::broker::{BrokerError, backoff::Backoff};

/// Publications of one pipeline.
const BATCH: usize = 512;
/// Pipelines under way: enough to fill the time that an answer takes, few enough that publications gather.
const PIPELINES: usize = 8;
/// Bytes that wait to be sent; beyond it publications are refused at once.
const MAX_WAITING: usize = 64 << 20;
/// An answer that takes longer is not waited for, and its connection is made anew.
const ANSWER: Duration = Duration::from_secs(2);

/// A publication on its way.
pub(super) struct Publish {
    channel: Bytes,
    body: Bytes,
    answer: oneshot::Sender<Result<(), BrokerError>>,
    /// Its share of what waits, given back in `Drop`.
    weight: Option<Weight>,
}

/// Lets publications in while there is a connection and room.
pub(super) struct Gate {
    /// Why there is no connection; `None` while there is one.
    down: Mutex<Option<Arc<str>>>,
    waiting: Arc<AtomicUsize>,
}

struct Weight {
    bytes: usize,
    waiting: Arc<AtomicUsize>,
}

/// The task.
pub(super) struct PublishTask {
    connector: Connector,
    queue: mpsc::UnboundedReceiver<Publish>,
    rebuild: mpsc::Receiver<String>,
    gate: Arc<Gate>,
}

/// Why serving a connection ended.
enum End {
    Closed,
    Lost(String),
}

/// A pipeline under way; resolves once all of its publications are answered.
type Sent = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

impl Publish {
    pub(super) fn new(channel: Bytes, body: Bytes) -> (Self, oneshot::Receiver<Result<(), BrokerError>>) {
        let (answer, receiver) = oneshot::channel();
        (Self { channel, body, answer, weight: None }, receiver)
    }
}

// === impl Gate ===

impl Default for Gate {
    fn default() -> Self {
        Self { down: Mutex::new(Some("not connected yet".into())), waiting: Arc::default() }
    }
}

impl Gate {
    /// Queues a publication, or says at once why not.
    pub(super) fn admit(
        &self,
        mut publish: Publish,
        queue: &mpsc::UnboundedSender<Publish>,
    ) -> Result<(), BrokerError> {
        // Held until it is queued: what is admitted is in the queue before the gate closes, and failed with it.
        let down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = &*down {
            return Err(BrokerError::Unavailable(reason.to_string()));
        }
        let bytes = publish.channel.len() + publish.body.len();
        if self.waiting.load(Ordering::Relaxed) + bytes > MAX_WAITING {
            return Err(BrokerError::Unavailable(format!("{MAX_WAITING} bytes wait for Redis already")));
        }
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
        publish.weight = Some(Weight { bytes, waiting: Arc::clone(&self.waiting) });
        queue.send(publish).map_err(|_| BrokerError::Closed)
    }

    fn set(&self, down: Option<&str>) {
        *self.down.lock().unwrap_or_else(PoisonError::into_inner) = down.map(Into::into);
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

// === impl PublishTask ===

impl PublishTask {
    pub(super) fn new(
        connector: Connector,
        queue: mpsc::UnboundedReceiver<Publish>,
        rebuild: mpsc::Receiver<String>,
        gate: Arc<Gate>,
    ) -> Self {
        Self { connector, queue, rebuild, gate }
    }

    /// Connects, serves, and connects anew, until the handle is dropped.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new();
        loop {
            let end = match self.connector.clone().connect("publisher").await {
                Ok(transport) => self.serve(transport, &mut backoff).await,
                Err(error) => End::Lost(error.to_string()),
            };
            let End::Lost(reason) = end else { return };
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

    /// Answers what came in just before the gate closed.
    fn fail_queued(&mut self, reason: &str) {
        while let Ok(Publish { answer, .. }) = self.queue.try_recv() {
            // Nobody waits for it.
            let _ = answer.send(Err(BrokerError::Unavailable(reason.to_owned())));
        }
    }

    async fn serve(&mut self, transport: Box<dyn Transport>, backoff: &mut Backoff) -> End {
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER));
        // The connector has shaken hands already.
        let info = RedisConnectionInfo::default().set_skip_set_lib_name();
        let (connection, driver) =
            match MultiplexedConnection::new_with_config(&info, transport, config).await {
                Ok(made) => made,
                Err(error) => return End::Lost(error.to_string()),
            };
        backoff.reset();
        // A wish for a new connection from before this one is fulfilled.
        while self.rebuild.try_recv().is_ok() {}
        self.gate.set(None);
        self.connector.serves();
        let mut driver = pin!(driver);
        let (mut batch, mut sent) = (Vec::new(), FuturesUnordered::new());
        loop {
            tokio::select! {
                () = &mut driver => return End::Lost("Redis closed the connection".to_owned()),
                taken = self.queue.recv_many(&mut batch, BATCH), if sent.len() < PIPELINES => {
                    if taken == 0 {
                        return End::Closed;
                    }
                    sent.push(send(&connection, std::mem::take(&mut batch)));
                }
                Some(answered) = sent.next() => if let Err(reason) = answered {
                    return End::Lost(reason);
                },
                Some(reason) = self.rebuild.recv() => return End::Lost(reason),
            }
        }
    }
}

/// Sends a batch. It is handed to the connection by the first poll, which is made here: so pipelines leave in the
/// order of their making. Unconstrained, or tokio would refuse that poll to a task that used up its turn, and a
/// later pipeline would overtake this one.
fn send(connection: &MultiplexedConnection, batch: Vec<Publish>) -> Sent {
    let mut connection = connection.clone();
    let mut sent: Sent = Box::pin(unconstrained(async move {
        let mut pipeline = redis::Pipeline::with_capacity(batch.len());
        for Publish { channel, body, .. } in &batch {
            pipeline.cmd("PUBLISH").arg(&channel[..]).arg(&body[..]);
        }
        let answers: RedisResult<Vec<RedisResult<i64>>> =
            pipeline.ignore_errors().query_async(&mut connection).await;
        answer(batch, answers)
    }));
    match futures::FutureExt::now_or_never(&mut sent) {
        Some(answered) => Box::pin(std::future::ready(answered)),
        None => sent,
    }
}

fn answer(batch: Vec<Publish>, answers: RedisResult<Vec<RedisResult<i64>>>) -> Result<(), String> {
    let lost = match answers {
        Ok(answers) if answers.len() == batch.len() => {
            for (Publish { answer, .. }, result) in batch.into_iter().zip(answers) {
                // Nobody waits for it.
                let _ = answer.send(result.map(drop).map_err(refused));
            }
            return Ok(());
        }
        Ok(answers) => format!("Redis answered {} of {} publications", answers.len(), batch.len()),
        Err(error) if error.is_timeout() => format!("Redis did not answer in {} s", ANSWER.as_secs()),
        Err(error) => error.to_string(),
    };
    for Publish { answer, .. } in batch {
        let _ = answer.send(Err(BrokerError::Unavailable(lost.clone())));
    }
    Err(lost)
}

#[expect(clippy::needless_pass_by_value, reason = "it is the argument of `map_err`")]
fn refused(error: RedisError) -> BrokerError {
    BrokerError::Refused(error.to_string())
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::AsyncReadExt,
        task::{coop, yield_now},
    };

    use super::*;

    #[tokio::test]
    async fn a_pipeline_of_a_task_that_used_up_its_turn_is_not_overtaken() {
        let (near, mut far) = tokio::io::duplex(4_096);
        let info = RedisConnectionInfo::default().set_skip_set_lib_name();
        let config = AsyncConnectionConfig::new();
        let (connection, driver) = MultiplexedConnection::new_with_config(&info, near, config).await.unwrap();
        tokio::spawn(driver);
        let batch =
            |body: &'static str| vec![Publish::new(Bytes::new(), Bytes::from_static(body.as_bytes())).0];

        while coop::has_budget_remaining() {
            let _ = futures::poll!(pin!(coop::consume_budget()));
        }
        let first = send(&connection, batch("first"));
        yield_now().await;
        let second = send(&connection, batch("second"));
        tokio::spawn(async { tokio::join!(second, first) });

        let mut written = String::new();
        while !(written.contains("first") && written.contains("second")) {
            let mut buffer = [0; 4_096];
            let read = far.read(&mut buffer).await.unwrap();
            assert!(read > 0, "both are written: {written}");
            written.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        }
        assert!(written.find("first") < written.find("second"), "{written}");
    }
}
