//! One link: a subscribing and a publishing connection to one server. Each is made again by itself, and its failures are
//! its own; only where the server turns out to be a replica do both leave it.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::{
    Prefix,
    connector::Connector,
    publisher::{Gate, Publish, PublishTask},
    subscriber::{Command, SubscribeTask},
};
use crate::{
    broker::{BrokerError, BrokerEvent, LinkId, NotSubscribed, PublishOptions, Published, Reply, Side},
    domain::{ChannelName, Publication},
};

/// The handle; its tasks end when it is dropped.
pub(super) struct Link {
    prefix: Prefix,
    commands: mpsc::UnboundedSender<Command>,
    queue: mpsc::UnboundedSender<Publish>,
    rebuild: mpsc::Sender<String>,
    gate: Arc<Gate>,
}

impl Link {
    /// Starts the link's tasks on the current runtime.
    pub(super) fn open(
        id: LinkId,
        connector: Connector,
        prefix: Prefix,
        events: mpsc::Sender<Vec<BrokerEvent>>,
    ) -> Self {
        let (commands, received) = mpsc::unbounded_channel();
        let (queue, queued) = mpsc::unbounded_channel();
        let (rebuild, rebuilds) = mpsc::channel(1);
        let gate = Arc::new(Gate::default());
        let subscriber = SubscribeTask::new(id, connector.clone(), prefix.clone(), received, events);
        let other_side = commands.downgrade();
        let publisher =
            PublishTask::new(connector, prefix.clone(), queued, rebuilds, Arc::clone(&gate), other_side);
        tokio::spawn(subscriber.run());
        tokio::spawn(publisher.run());
        Self { prefix, commands, queue, rebuild, gate }
    }

    pub(super) fn subscribe(&self, channels: Vec<ChannelName>) -> Reply<Vec<NotSubscribed>> {
        let (reply, answer) = oneshot::channel();
        // Kept for the case that the task has ended; names are cheap to clone.
        let all = channels.clone();
        // Where the task has ended, its end of `reply` is gone too.
        let _ = self.commands.send(Command::Subscribe { channels, reply });
        Box::pin(async move {
            let closed = |_| all.into_iter().map(|channel| (channel, BrokerError::Closed)).collect();
            answer.await.unwrap_or_else(closed)
        })
    }

    pub(super) fn unsubscribe(&self, channels: Vec<ChannelName>) {
        // A task that has ended delivers nothing.
        let _ = self.commands.send(Command::Unsubscribe { channels });
    }

    pub(super) fn publish(
        &self,
        publication: Publication,
        options: PublishOptions,
    ) -> Reply<Result<Published, BrokerError>> {
        let channel = self.prefix.name(&publication.channel);
        let (publish, answer) = Publish::new(channel, publication, options);
        let taken = self.gate.admit(publish, &self.queue);
        Box::pin(async move {
            taken?;
            // The task ended with its runtime; it tells every outcome otherwise.
            let lost = |_| Err(BrokerError::Unknown("the broker was closed".to_owned()));
            answer.await.unwrap_or_else(lost)
        })
    }

    pub(super) fn rebuild(&self, side: Side, reason: &str) {
        match side {
            // Fails only where the task has ended...
            Side::Subscriber => drop(self.commands.send(Command::Rebuild(reason.to_owned()))),
            // ... or where a rebuild waits already.
            Side::Publisher => drop(self.rebuild.try_send(reason.to_owned())),
        }
    }
}
