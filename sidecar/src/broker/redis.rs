//! Redis or Valkey Pub/Sub, standalone: at most once.
//!
//! A [`link`] has two connections to a server. The subscriber's is read by our own parser, without a copy: a general
//! client costs five times as much a message. The publisher's is the `redis` crate's pipeline. Each is made again by
//! itself, with the address resolved and the files of its credentials read again, so that a moved primary and a rotated
//! password heal without a restart. Which channel lives on which link is the [`topology`]'s.
//!
//! A channel is `<prefix>:<channel>` in Redis. Where the bridge does not keep up, the subscriber stops reading;
//! Redis then closes the connection at its output buffer's limit, and what was lost is told as by any reconnect.

mod address;
mod connector;
mod interests;
mod link;
mod publisher;
pub mod resp;
mod role;
mod subscriber;
mod tls;
mod topology;

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::{BufMut, Bytes, BytesMut};
use futures::{FutureExt, future::join_all};
use sidecar_config::RedisBroker;
use tokio::sync::mpsc;

use self::{connector::Connector, link::Link, topology::Topology};
use super::{
    Broker, BrokerError, Events, IdempotencyKey, LinkId, NotSubscribed, PublishOptions, Published, Reply,
    Side,
};
use crate::domain::{ChannelName, Publication};

/// Batches between subscriber and bridge, each of one read: some MiB, or as many large messages.
const EVENTS: usize = 32;

/// The handle; its tasks end when it is dropped.
struct Redis(Topology);

/// What stands before each channel name in Redis, the colon included.
#[derive(Clone, Debug)]
struct Prefix(Arc<str>);

/// Starts the broker's tasks on the current runtime.
pub(super) fn open(settings: &RedisBroker, client_name: &str) -> (Arc<dyn Broker>, Events) {
    let prefix = Prefix(format!("{}:", settings.channel_prefix).into());
    let (events, receiver) = mpsc::channel(EVENTS);
    let link = Link::open(LinkId(0), Connector::new(settings.clone(), client_name), prefix, events);
    (Arc::new(Redis(Topology::standalone(link))), receiver)
}

impl Broker for Redis {
    fn subscribe(&self, channels: Vec<ChannelName>) -> Reply<Vec<NotSubscribed>> {
        let asked = self.0.split(channels).into_iter().map(|(link, channels)| link.subscribe(channels));
        Box::pin(join_all(asked).map(|answers| answers.into_iter().flatten().collect()))
    }

    fn unsubscribe(&self, channels: Vec<ChannelName>) {
        self.0.split(channels).into_iter().for_each(|(link, channels)| link.unsubscribe(channels));
    }

    fn publish(
        &self,
        publication: Publication,
        options: PublishOptions,
    ) -> Reply<Result<Published, BrokerError>> {
        match self.0.link(self.link(&publication.channel)) {
            Some(link) => link.publish(publication, options),
            None => Box::pin(std::future::ready(Err(BrokerError::Closed))),
        }
    }

    fn link(&self, channel: &ChannelName) -> LinkId {
        self.0.link_of(channel)
    }

    fn links(&self) -> u16 {
        self.0.links()
    }

    fn rebuild(&self, link: LinkId, side: Side, reason: &str) {
        if let Some(link) = self.0.link(link) {
            link.rebuild(side, reason);
        }
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

    /// The key that remembers an idempotency key of the channel: in the channel's slot, of bounded length.
    fn idempotency_key(&self, channel: &ChannelName, IdempotencyKey(digest): IdempotencyKey) -> Vec<u8> {
        let digest = BASE64_URL_SAFE_NO_PAD.encode(digest);
        format!("{{{}{}}}:idem:{digest}", self.0, channel.as_str()).into_bytes()
    }

    /// The ACL's pattern of all keys of the cluster.
    fn key_pattern(&self) -> String {
        format!("~{{{}*", self.0)
    }
}
