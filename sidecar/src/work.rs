//! The waiting half of what clients ask for: takes [`Work`] from the shards, asks hub and broker, and mails the
//! [`Completion`] back. Runs on the control runtime; a shard reaches it by message only.
//!
//! One loop calls the hub and the broker, so that their calls have one order; answers are awaited beside it, so
//! that nothing waits for what came before it.

mod grace;
mod keys;
mod metrics;
mod publish;

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    pin::Pin,
    sync::Arc,
};

use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    task::spawn_blocking,
};

use self::grace::Grace;
pub(crate) use self::publish::now_us;
pub use self::{
    metrics::Metrics,
    publish::{Draft, Lane, NodeRun, PublishError, Publisher, Room},
};
use crate::{
    broker::{Broker, BrokerError, NotSubscribed},
    domain::{ChannelName, CommandError, ConnectionId, Exposure, Identity},
    hub::{Hub, Join},
    shard::{Completion, Mail, Mailbox, Task, Work},
};

/// Answers that are waited for at once. Beyond it no work is taken, the queue of work fills, and the shards answer
/// "overloaded". A second of a busy node's publications.
const MAX_WAITING: usize = 65_536;
/// Work taken at once: its subscriptions reach the broker as one command.
const BATCH: usize = 1_024;

/// Does what the shards ask for.
pub struct Desk {
    /// Publications behind one that waits for room, in their order. Bounded by what each shard may have waiting.
    held_back: VecDeque<Waiting>,
    hub: Hub,
    broker: Arc<dyn Broker>,
    publisher: Publisher,
    mailboxes: Arc<[Mailbox]>,
    grace: Grace,
    identify: Identify,
    waiting: FuturesUnordered<Pin<Box<dyn Future<Output = Answer> + Send>>>,
}

/// Says who a token is for.
pub type Identify = Arc<dyn Fn(&str) -> Result<Identity, CommandError> + Send + Sync>;

/// What the broker said.
enum Answer {
    Subscribed { channels: Vec<ChannelName>, failed: Vec<NotSubscribed> },
    Published { shard: u16, completion: Completion },
}

/// A publication that waits for room.
type Blocked = (Pin<Box<dyn Future<Output = Room> + Send>>, Waiting);

/// A publication to be sent, and all that goes with it.
struct Waiting {
    shard: u16,
    connection: ConnectionId,
    id: Option<String>,
    draft: Draft,
    held: OwnedSemaphorePermit,
}

impl Desk {
    /// A desk that answers to `mailboxes`, one a shard, in their order.
    pub fn new(hub: Hub, broker: Arc<dyn Broker>, publisher: Publisher, mailboxes: Arc<[Mailbox]>) -> Self {
        let nobody = |_: &str| Err(CommandError::Unauthorized("no token is accepted here".to_owned()));
        let (held_back, grace, waiting) = (VecDeque::new(), Grace::default(), FuturesUnordered::new());
        Self { held_back, hub, broker, publisher, mailboxes, grace, identify: Arc::new(nobody), waiting }
    }

    /// Asks this who a token is for.
    #[must_use]
    pub fn identifying(self, identify: Identify) -> Self {
        Self { identify, ..self }
    }

    /// Works until every shard has dropped its end of `work`, then answers what is left.
    pub async fn run(mut self, mut work: mpsc::Receiver<Work>) {
        let mut batch = Vec::new();
        let mut open = true;
        // The publication that waits for room. Those behind it wait too, so that they keep their order, and nothing else
        // does: whoever subscribes has no part in it.
        let mut blocked: Option<Blocked> = None;
        while open || blocked.is_some() || !self.waiting.is_empty() {
            let room = open && self.waiting.len() + self.held_back.len() < MAX_WAITING;
            tokio::select! {
                taken = work.recv_many(&mut batch, BATCH), if room => {
                    open = taken > 0;
                    self.take(batch.drain(..), &mut blocked);
                }
                room = until_room(&mut blocked), if blocked.is_some() => {
                    if let Some((_, waiting)) = blocked.take() {
                        self.publish(waiting, room);
                    }
                    self.resume(&mut blocked);
                }
                Some(answer) = self.waiting.next() => self.answer(answer),
                emptied = self.grace.next() => self.give_back(&emptied),
            }
        }
    }

    /// Begins what was taken, but for publications behind one that has to wait for room.
    fn take(&mut self, batch: impl Iterator<Item = Work>, blocked: &mut Option<Blocked>) {
        let mut first = Vec::new();
        for Work { shard, task } in batch {
            match task {
                Task::Subscribe { channel } => match self.hub.join(&channel, shard) {
                    Join::First => first.push(channel),
                    Join::Wait => {}
                    Join::Live => self.subscribed(shard, channel, Ok(())),
                    Join::Refused => self.subscribed(shard, channel, Err(CommandError::BrokerRefused)),
                },
                Task::Unsubscribe { channel } => self.grace.extend(self.hub.leave(&channel, shard)),
                Task::Refresh { connection, token, id, held } => {
                    self.refresh(shard, connection, token, id, held);
                }
                Task::Publish { connection, channel, payload, id, idempotency_key, user, exposure, held } => {
                    let draft = Draft {
                        id: id.clone(),
                        user,
                        connection: (exposure == Exposure::Exposed).then_some(connection),
                        idempotency_key,
                        ..Draft::new(channel, payload)
                    };
                    self.held_back.push_back(Waiting { shard, connection, id, draft, held });
                }
            }
        }
        self.resume(blocked);
        self.ask(first);
    }

    /// Publishes what is held back, up to the next one that has to wait for room.
    fn resume(&mut self, blocked: &mut Option<Blocked>) {
        while blocked.is_none()
            && let Some(waiting) = self.held_back.pop_front()
        {
            *blocked = self.publish_or_wait(waiting);
        }
    }

    fn publish_or_wait(&mut self, waiting: Waiting) -> Option<Blocked> {
        let mut room = Box::pin(self.publisher.room(Lane::Clients, &waiting.draft));
        match room.as_mut().now_or_never() {
            Some(room) => {
                self.publish(waiting, room);
                None
            }
            None => Some((room, waiting)),
        }
    }

    fn ask(&mut self, channels: Vec<ChannelName>) {
        if channels.is_empty() {
            return;
        }
        let asked = self.broker.subscribe(channels.clone());
        self.waiting.push(Box::pin(async { Answer::Subscribed { channels, failed: asked.await } }));
    }

    fn publish(&mut self, waiting: Waiting, room: Room) {
        let Waiting { shard, connection, id, draft, held } = waiting;
        let (channel, keyed) = (draft.channel.clone(), draft.idempotency_key.is_some());
        // Called here, in the order of the work; only its answer is awaited later.
        let published = self.publisher.publish(draft, room);
        drop(held);
        self.waiting.push(Box::pin(async move {
            let result = published.await.map(|published| published.duplicate);
            let result = result.map_err(|error| publish_error(&error, keyed));
            Answer::Published { shard, completion: Completion::Published { connection, channel, id, result } }
        }));
    }

    /// A signature is work for a thread of its own.
    fn refresh(
        &mut self,
        shard: u16,
        connection: ConnectionId,
        token: String,
        id: Option<String>,
        held: OwnedSemaphorePermit,
    ) {
        let identify = Arc::clone(&self.identify);
        let identified = spawn_blocking(move || {
            let identity = identify(&token);
            // It counts until it is gone, also while it waits for a thread.
            drop((token, held));
            identity
        });
        self.waiting.push(Box::pin(async move {
            let result = identified.await.unwrap_or(Err(CommandError::Overloaded));
            Answer::Published { shard, completion: Completion::Refreshed { connection, id, result } }
        }));
    }

    fn answer(&mut self, answer: Answer) {
        match answer {
            Answer::Published { shard, completion } => self.mail(shard, completion),
            Answer::Subscribed { channels, failed } => self.joined(channels, failed),
        }
    }

    fn joined(&mut self, channels: Vec<ChannelName>, failed: Vec<NotSubscribed>) {
        if let Some((channel, error)) = failed.first() {
            let (failed, of) = (failed.len(), channels.len());
            tracing::warn!(failed, of, %channel, %error, "failed to subscribe");
        }
        let failed: HashMap<_, _> = failed.into_iter().collect();
        for channel in channels {
            let error = failed.get(&channel);
            let joined = self.hub.joined(&channel, error.is_none());
            self.grace.extend(joined.emptied);
            for shard in joined.waiting {
                let result = error.map_or(Ok(()), |error| Err(subscribe_error(error)));
                self.subscribed(shard, channel.clone(), result);
            }
        }
    }

    fn give_back(&mut self, emptied: &[crate::hub::Emptied]) {
        let over = emptied.iter().filter(|emptied| self.hub.expire(emptied));
        let channels: Vec<_> = over.map(|emptied| emptied.channel.clone()).collect();
        if !channels.is_empty() {
            self.broker.unsubscribe(channels);
        }
    }

    fn subscribed(&self, shard: u16, channel: ChannelName, result: Result<(), CommandError>) {
        self.mail(shard, Completion::Subscribed { channel, result });
    }

    fn mail(&self, shard: u16, completion: Completion) {
        if let Some(mailbox) = self.mailboxes.get(usize::from(shard)) {
            mailbox.send(Mail::Completion(completion));
        }
    }
}

/// Resolves once there is room for the publication that waits; never without one. Loses nothing when dropped.
async fn until_room(blocked: &mut Option<Blocked>) -> Room {
    match blocked {
        Some((room, _)) => room.await,
        None => std::future::pending().await,
    }
}

/// What a client is told whose subscription failed.
fn subscribe_error(error: &BrokerError) -> CommandError {
    match error {
        BrokerError::Refused(_) => CommandError::BrokerRefused,
        // Subscribing again changes nothing, so that it does not matter whether the first attempt was executed.
        BrokerError::Unavailable(_) | BrokerError::Unknown(_) | BrokerError::Closed => {
            CommandError::Unavailable
        }
    }
}

/// What a client is told whose publication failed; `keyed` if it may be repeated without being published twice.
fn publish_error(error: &PublishError, keyed: bool) -> CommandError {
    match error {
        PublishError::TooLarge { .. } | PublishError::Reserved(_) => {
            CommandError::BadRequest(error.to_string())
        }
        PublishError::TooManyKeys { limit } => CommandError::TooManyKeys { limit: *limit },
        PublishError::Broker(BrokerError::Unknown(_)) => CommandError::OutcomeUnknown { keyed },
        PublishError::Broker(BrokerError::Refused(_)) => CommandError::BrokerRefused,
        PublishError::Broker(BrokerError::Unavailable(_) | BrokerError::Closed) => CommandError::Unavailable,
    }
}

#[cfg(test)]
mod tests;
