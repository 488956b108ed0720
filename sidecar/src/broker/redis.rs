//! Redis or Valkey Pub/Sub, standalone: at most once.
//!
//! Two connections. The subscriber's is read by our own parser, without a copy: a general client costs five times
//! as much a message. The publisher's is the `redis` crate's pipeline. Each is made anew by itself, with the files
//! of its credentials read again, so that a rotated password heals without a restart.
//!
//! A channel is `<prefix>:<channel>` in Redis. Where the bridge does not keep up, the subscriber stops reading;
//! Redis then closes the connection at its output buffer's limit, and what was lost is told as by any reconnect.

mod interests;
mod publisher;
pub mod resp;
mod subscriber;
mod tls;
mod topology;

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use sidecar_config::RedisBroker;
use tokio::sync::{mpsc, oneshot};

use self::{
    publisher::{Gate, Publish, PublishTask},
    subscriber::{Command, SubscribeTask},
    topology::Connector,
};
use super::{Broker, BrokerError, Events, Reply, envelope};
use crate::domain::{ChannelName, Publication, StreamPosition};

/// Batches between subscriber and bridge, each of one read: some MiB, or as many large messages.
const EVENTS: usize = 32;

/// The handle; its tasks end when it is dropped.
struct Redis {
    prefix: Prefix,
    commands: mpsc::UnboundedSender<Command>,
    queue: mpsc::UnboundedSender<Publish>,
    rebuild: mpsc::Sender<String>,
    gate: Arc<Gate>,
}

/// What stands before each channel name in Redis, the colon included.
#[derive(Clone, Debug)]
struct Prefix(Arc<str>);

/// Starts the broker's tasks on the current runtime.
pub(super) fn open(settings: &RedisBroker, client_name: &str) -> (Arc<dyn Broker>, Events) {
    let prefix = Prefix(format!("{}:", settings.channel_prefix).into());
    let connector = Connector::new(settings.clone(), client_name);
    let (commands, received) = mpsc::unbounded_channel();
    let (queue, queued) = mpsc::unbounded_channel();
    let (rebuild, rebuilds) = mpsc::channel(1);
    let (events, receiver) = mpsc::channel(EVENTS);
    let gate = Arc::new(Gate::default());
    tokio::spawn(SubscribeTask::new(connector.clone(), prefix.clone(), received, events).run());
    tokio::spawn(PublishTask::new(connector, queued, rebuilds, Arc::clone(&gate)).run());
    (Arc::new(Redis { prefix, commands, queue, rebuild, gate }), receiver)
}

impl Redis {
    fn ask<T: Send + 'static>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, BrokerError>>) -> Command,
    ) -> Reply<T> {
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(command(reply));
        Box::pin(async move {
            sent.map_err(|_| BrokerError::Closed)?;
            answer.await.unwrap_or(Err(BrokerError::Closed))
        })
    }
}

impl Broker for Redis {
    fn subscribe(&self, channels: Vec<ChannelName>) -> Reply<()> {
        self.ask(|reply| Command::Subscribe { channels, reply })
    }

    fn unsubscribe(&self, channels: Vec<ChannelName>) -> Reply<()> {
        self.ask(|reply| Command::Unsubscribe { channels, reply })
    }

    fn publish(&self, publication: Publication) -> Reply<Option<StreamPosition>> {
        let channel = self.prefix.name(&publication.channel);
        let (publish, answer) = Publish::new(channel, envelope::encode(&publication));
        let taken = self.gate.admit(publish, &self.queue);
        Box::pin(async move {
            taken?;
            // Its pipeline was dropped with the connection.
            let lost = |_| Err(BrokerError::Unavailable("the connection to Redis was lost".to_owned()));
            answer.await.unwrap_or_else(lost).map(|()| None)
        })
    }

    fn rebuild(&self, reason: &str) {
        // Fails only where the subscriber has ended, or a rebuild of the publisher waits already.
        let _ = self.commands.send(Command::Rebuild(reason.to_owned()));
        let _ = self.rebuild.try_send(reason.to_owned());
    }
}

impl Prefix {
    /// A channel's name in Redis.
    fn name(&self, channel: &ChannelName) -> Bytes {
        let mut name = BytesMut::with_capacity(self.0.len() + channel.as_str().len());
        name.put_slice(self.0.as_bytes());
        name.put_slice(channel.as_str().as_bytes());
        name.freeze()
    }
}
