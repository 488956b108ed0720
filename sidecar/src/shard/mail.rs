//! What crosses the border of a shard, in both directions.

use std::{
    collections::HashSet,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{Delivery, Guest, Link, Visitor, metrics::Latencies};
use crate::domain::{
    ChannelName, CloseReason, CommandError, ConnectionId, Exposure, Identity, KeyId, Payload, Policies,
};

/// Mail to a shard. One queue, first in first out: a publication that is sent after a completion is seen after it.
#[derive(Debug)]
#[expect(missing_docs, reason = "a variant's text speaks of its fields")]
pub enum Mail {
    /// Publications of channels that this shard subscribed to, in order.
    Publications { batch: Vec<Arc<Delivery>>, sent: Instant },
    /// Publications of these channels were lost, or, where that is not `certain`, may have been: tell their subscribers.
    Gap { channels: Vec<ChannelName>, certain: bool, reason: &'static str },
    /// The broker refuses this channel, which was live, or brings it again: until then nobody new subscribes to it.
    Refused { channel: ChannelName, refused: bool },
    /// The answer to a [`Task`].
    Completion(Completion),
    /// A client's request passed the door: make it a place, subscribe, then say so, in this order, so that nothing
    /// published after the client saw its handshake answered can be missed.
    Reserve(Box<Reservation>),
    /// The transport of a reserved connection, and what the client has sent behind its handshake.
    Attach { connection: ConnectionId, link: Link, leftover: Bytes },
    /// A reserved connection's transport will not come.
    Abandon { connection: ConnectionId },
    /// The task at the other end of a pipe has made room, or is gone.
    Pipe { connection: ConnectionId },
    /// Close connections that were open `age` ago: one, or all of a user.
    Disconnect {
        connection: Option<ConnectionId>,
        user: Option<Arc<str>>,
        age: Duration,
        reason: CloseReason,
        count: oneshot::Sender<usize>,
    },
    /// Close this many connections with [`CloseReason::Drain`], the oldest first, and advise them to come back
    /// after `after` plus a random part of `jitter`.
    Shed { count: usize, after: Duration, jitter: Duration },
    /// Close all that are left: the deadline passed.
    Force,
    /// New settings. Subscriptions that they no longer allow end with [`CloseReason::PermissionDenied`].
    Settings { rules: Arc<Rules>, latencies: Latencies },
    /// Sessions whose token was signed with none of these keys end with [`CloseReason::TokenExpired`], one each `apart`.
    Keys { good: Arc<HashSet<KeyId>>, apart: Duration },
    /// Which channels have subscribers here, and how many.
    Channels { reply: oneshot::Sender<Vec<(ChannelName, u32)>> },
    /// Finish what can be written at once, then end the thread.
    Stop,
    /// Panic.
    #[cfg(test)]
    Panic,
}

/// The settings that a shard follows.
#[derive(Debug)]
pub struct Rules {
    /// Namespaces.
    pub policies: Policies,
    /// Connections and their limits.
    pub hub: sidecar_config::HubSettings,
    /// Clients that are closed and shall come back do so after a random part of this.
    pub reconnect_jitter: Duration,
}

/// A client's request that passed the door.
#[derive(Debug)]
pub struct Reservation {
    /// Who asks, and for what.
    pub visitor: Visitor,
    /// What it is counted under, if under anything.
    pub guest: Option<Box<Guest>>,
    /// What will carry its bytes.
    pub transport: Transport,
}

/// The transport of a client that is let in.
#[derive(Debug)]
pub enum Transport {
    /// Comes by [`Mail::Attach`], once this was told that the subscriptions are live; or why they are not.
    Later(oneshot::Sender<Result<Reserved, Refusal>>),
    /// Came along: the shard answers the handshake.
    Here(Arrived),
}

/// A transport whose client waits for the answer to its handshake.
#[derive(Debug)]
pub struct Arrived {
    /// What carries its bytes.
    pub link: Link,
    /// What the client has sent behind its handshake.
    pub leftover: Bytes,
    /// What it is answered.
    pub handshake: Box<dyn Handshake>,
}

/// A handshake that a shard answers, in the words of whoever read it.
pub trait Handshake: fmt::Debug + Send {
    /// What a client reads first that is let in.
    fn accepted(self: Box<Self>) -> Vec<u8>;

    /// All that a client reads that is not.
    fn refused(self: Box<Self>, refusal: Refusal) -> Vec<u8>;
}

/// A connection that waits for its transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// What to name in [`Mail::Attach`] or [`Mail::Abandon`].
    pub connection: ConnectionId,
}

/// Why a request found no place.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "a variant's text speaks of its fields")]
pub enum Refusal {
    /// A channel of the request was refused.
    Channel { channel: ChannelName, error: CommandError },
    /// The node holds as many connections as it may.
    Full,
    /// Its address holds as many connections as it may.
    AddressFull,
    /// Its user holds as many connections as it may.
    UserFull,
    /// The node is leaving.
    Draining,
}

/// What must wait, on its way to the control runtime. A shard asks for a channel with its first subscriber and
/// gives it back after its last.
#[derive(Debug)]
#[expect(missing_docs, reason = "a variant's text speaks of its fields")]
pub enum Task {
    /// Bring this channel's publications to this shard; answered by [`Completion::Subscribed`].
    Subscribe { channel: ChannelName },
    /// This shard has no subscriber of the channel left. Not answered.
    Unsubscribe { channel: ChannelName },
    /// Say who a token is for; answered by [`Completion::Refreshed`].
    Refresh { connection: ConnectionId, token: String, id: Option<String>, held: OwnedSemaphorePermit },
    /// Send a payload to the channel's subscribers; answered by [`Completion::Published`]. The tasks of a
    /// connection reach the broker in the order in which they were sent.
    Publish {
        connection: ConnectionId,
        channel: ChannelName,
        payload: Payload,
        id: Option<String>,
        idempotency_key: Option<String>,
        user: Option<Arc<str>>,
        /// Whether the publication names `connection`: decided here, where the policy was looked up anyway.
        exposure: Exposure,
        /// Its bytes, of those that a shard may have waiting; dropped once the broker has them.
        held: OwnedSemaphorePermit,
    },
}

/// A task and the shard that asks.
#[derive(Debug)]
pub struct Work {
    /// The shard that asks.
    pub shard: u16,
    /// For what.
    pub task: Task,
}

/// The answer to a task.
#[derive(Debug)]
#[expect(missing_docs, reason = "a variant's text speaks of its fields")]
pub enum Completion {
    /// From here on the channel's publications come to this shard, or why not.
    Subscribed { channel: ChannelName, result: Result<(), CommandError> },
    /// Who the connection is from here on, or why not. A stale connection's answer is dropped.
    Refreshed { connection: ConnectionId, id: Option<String>, result: Result<Identity, CommandError> },
    /// The broker has it, `true` if it had it before, or why not. A stale connection's answer is dropped.
    Published {
        connection: ConnectionId,
        channel: ChannelName,
        id: Option<String>,
        result: Result<bool, CommandError>,
    },
}
