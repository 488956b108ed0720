//! The waiting half of what clients ask for: takes [`Work`] from the shards, asks hub and broker, and mails the
//! [`Completion`] back. Runs on the control runtime; a shard reaches it by message only.
//!
//! One loop calls the hub and the broker, so that their calls have one order; answers are awaited beside it, so
//! that nothing waits for what came before it.

mod grace;
mod metrics;
mod publish;

use std::{future::Future, pin::Pin, sync::Arc};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::sync::mpsc;

use self::grace::Grace;
pub(crate) use self::publish::now_us;
pub use self::{
    metrics::Metrics,
    publish::{Draft, NodeRun, PublishError, Publisher},
};
use crate::{
    broker::{Broker, BrokerError},
    domain::{ChannelName, CommandError, ConnectionId},
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
    hub: Hub,
    broker: Arc<dyn Broker>,
    publisher: Publisher,
    mailboxes: Arc<[Mailbox]>,
    grace: Grace,
    waiting: FuturesUnordered<Pin<Box<dyn Future<Output = Answer> + Send>>>,
}

/// What the broker said.
enum Answer {
    Subscribed { channels: Vec<ChannelName>, result: Result<(), BrokerError> },
    Unsubscribed,
    Published { shard: u16, completion: Completion },
}

impl Desk {
    /// A desk that answers to `mailboxes`, one a shard, in their order.
    pub fn new(hub: Hub, broker: Arc<dyn Broker>, publisher: Publisher, mailboxes: Arc<[Mailbox]>) -> Self {
        Self { hub, broker, publisher, mailboxes, grace: Grace::default(), waiting: FuturesUnordered::new() }
    }

    /// Works until every shard has dropped its end of `work`, then answers what is left.
    pub async fn run(mut self, mut work: mpsc::Receiver<Work>) {
        let mut batch = Vec::new();
        let mut open = true;
        while open || !self.waiting.is_empty() {
            let room = open && self.waiting.len() < MAX_WAITING;
            tokio::select! {
                taken = work.recv_many(&mut batch, BATCH), if room => {
                    open = taken > 0;
                    self.take(batch.drain(..));
                }
                Some(answer) = self.waiting.next() => self.answer(answer),
                emptied = self.grace.next() => self.give_back(&emptied),
            }
        }
    }

    fn take(&mut self, batch: impl Iterator<Item = Work>) {
        let mut first = Vec::new();
        for Work { shard, task } in batch {
            match task {
                Task::Subscribe { channel } => match self.hub.join(&channel, shard) {
                    Join::First => first.push(channel),
                    Join::Wait => {}
                    Join::Live => self.subscribed(shard, channel, Ok(())),
                },
                Task::Unsubscribe { channel } => self.grace.extend(self.hub.leave(&channel, shard)),
                Task::Publish { connection, channel, payload, id, user, held } => {
                    let user = user.map(|user| user.to_string());
                    let draft = Draft { id: id.clone(), user, ..Draft::new(channel, payload) };
                    self.publish(shard, connection, id, draft);
                    drop(held);
                }
            }
        }
        self.ask(first);
    }

    fn ask(&mut self, channels: Vec<ChannelName>) {
        if channels.is_empty() {
            return;
        }
        let asked = self.broker.subscribe(channels.clone());
        self.waiting.push(Box::pin(async { Answer::Subscribed { channels, result: asked.await } }));
    }

    fn publish(&mut self, shard: u16, connection: ConnectionId, id: Option<String>, draft: Draft) {
        let channel = draft.channel.clone();
        // Called here, in the order of the work; only its answer is awaited later.
        let published = self.publisher.publish(draft);
        self.waiting.push(Box::pin(async move {
            let result = published.await.map(|_position| ()).map_err(|error| refusal(&error));
            Answer::Published { shard, completion: Completion::Published { connection, channel, id, result } }
        }));
    }

    fn answer(&mut self, answer: Answer) {
        match answer {
            Answer::Published { shard, completion } => self.mail(shard, completion),
            Answer::Unsubscribed => {}
            Answer::Subscribed { channels, result } => {
                if let Err(error) = &result {
                    tracing::warn!(channels = channels.len(), %error, "failed to subscribe");
                }
                for channel in channels {
                    let joined = self.hub.joined(&channel, result.is_ok());
                    self.grace.extend(joined.emptied);
                    for shard in joined.waiting {
                        let result = match &result {
                            Ok(()) => Ok(()),
                            Err(_) => Err(CommandError::Unavailable),
                        };
                        self.subscribed(shard, channel.clone(), result);
                    }
                }
            }
        }
    }

    fn give_back(&mut self, emptied: &[crate::hub::Emptied]) {
        let over = emptied.iter().filter(|emptied| self.hub.expire(emptied));
        let channels: Vec<_> = over.map(|emptied| emptied.channel.clone()).collect();
        if channels.is_empty() {
            return;
        }
        let asked = self.broker.unsubscribe(channels);
        self.waiting.push(Box::pin(async {
            // A broker that is out of reach brings nothing, and does not subscribe anew to what was given back.
            let _ = asked.await;
            Answer::Unsubscribed
        }));
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

/// What a client is told.
fn refusal(error: &PublishError) -> CommandError {
    match error {
        PublishError::TooLarge { .. } | PublishError::Reserved(_) => {
            CommandError::BadRequest(error.to_string())
        }
        PublishError::Broker(BrokerError::Unavailable(_) | BrokerError::Refused(_) | BrokerError::Closed) => {
            CommandError::Unavailable
        }
    }
}

#[cfg(test)]
mod tests;
