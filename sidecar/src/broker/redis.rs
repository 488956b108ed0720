//! Redis or Valkey Pub/Sub, standalone: at most once.
//!
//! A `link` has two connections to a server. The subscriber's is read by our own parser, without a copy: a general
//! client costs five times as much a message. The publisher's is the `redis` crate's pipeline. Each is made again by
//! itself, with the address resolved and the files of its credentials read again, so that a moved primary and a rotated
//! password heal without a restart. Which channel lives on which link is the `topology`'s.
//!
//! A channel is `<prefix>:<channel>` in Redis; [`nodes_pattern`] names the nodes' own channels. Where the bridge does not
//! keep up, the subscriber stops reading; Redis then closes the connection at its output buffer's limit, and what was
//! lost is told as by any reconnect.

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
    Broker, BrokerError, Events, FORMER_NAMES, INTERNAL_NAMESPACE, IdempotencyKey, LinkId, NotSubscribed,
    PublishOptions, Published, Reply, Side,
};
use crate::domain::{ChannelName, Publication};

/// Batches between subscriber and bridge, each of one read: some MiB, or as many large messages.
const EVENTS: usize = 32;
/// What the names begin with by which nodes speak to each other.
const NODES: &str = "fanout-nodes";

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
        if channel.namespace() == INTERNAL_NAMESPACE {
            return self.name_of_nodes(channel.local());
        }
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

    /// A name for what nodes say to each other: it holds no colon, so it is no channel of any cluster, and no ACL
    /// pattern `<prefix>:*` grants it. One pattern, [`nodes_pattern`], grants those of one cluster.
    fn name_of_nodes(&self, local: &str) -> Bytes {
        let own = self.0.strip_suffix(':').unwrap_or(&self.0);
        let name = match local.strip_prefix(FORMER_NAMES) {
            Some(former) => format!("{}{INTERNAL_NAMESPACE}:{former}", self.0),
            None => format!("{NODES}/{}/{}", escaped(own), local.replace(':', "/")),
        };
        name.into()
    }
}

/// The ACL pattern of the names by which the nodes of one cluster speak to each other.
pub fn nodes_pattern(channel_prefix: &str) -> String {
    format!("{NODES}/{}/*", escaped(channel_prefix))
}

/// A prefix as one part of a name: what could end the part, or means something in a pattern, is percent-encoded.
fn escaped(prefix: &str) -> String {
    let mut text = String::with_capacity(prefix.len());
    for byte in prefix.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b'~' => text.push(byte.into()),
            byte => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(prefix: &str, channel: &str) -> String {
        let name = Prefix(format!("{prefix}:").into()).name(&channel.parse().unwrap());
        String::from_utf8(name.into()).unwrap()
    }

    #[test]
    fn what_nodes_say_has_names_of_its_own() {
        assert_eq!(name("prod.orders", "chat:room:1"), "prod.orders:chat:room:1");
        assert_eq!(name("prod.orders", "fanout:nodes"), "fanout-nodes/prod.orders/nodes");
        assert_eq!(name("prod.orders", "fanout:node:0a"), "fanout-nodes/prod.orders/node/0a");
        assert_eq!(name("pfx:team/*", "fanout:nodes"), "fanout-nodes/pfx%3Ateam%2F%2A/nodes");
        assert_eq!(nodes_pattern("prod.orders"), "fanout-nodes/prod.orders/*");
    }

    #[test]
    fn the_former_names_are_those_of_the_first_version() {
        assert_eq!(name("prod.orders", "fanout:former:nodes"), "prod.orders:fanout:nodes");
        assert_eq!(name("prod.orders", "fanout:former:node:0a"), "prod.orders:fanout:node:0a");
    }

    proptest! {
        #[test]
        fn no_channel_of_any_cluster_has_a_name_of_nodes_and_no_pattern_grants_those_of_two(
            own in "[^\\s{}\\x00-\\x1f\\x7f]{1,12}",
            other in "[^\\s{}\\x00-\\x1f\\x7f]{1,12}|fanout-nodes|fanout-nodes/[a-z%/:]{0,9}",
            local in "(nodes|node:[0-9a-f]{1,4}|canary:[0-9a-f]{1,4})",
        ) {
            let said = name(&own, &format!("fanout:{local}"));
            // Every channel of a cluster and every recipe `<prefix>:*` has a colon.
            prop_assert!(!said.contains(':'));
            let pattern = nodes_pattern(&other);
            let granted = pattern.strip_suffix('*').is_some_and(|start| said.starts_with(start));
            prop_assert_eq!(granted, own == other, "{} and {}", said, pattern);
            prop_assert!(!pattern.trim_end_matches('*').contains(['*', '?', '[', '\\']));
        }
    }
}
