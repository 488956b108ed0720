//! Counters of a shard: written by its thread with relaxed stores, and summed when metrics are collected.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    domain::{CloseReason, CommandError},
    latency::{Cell, Histogram, Snapshot},
    protocol::Protocol,
};

/// Counters of one shard.
#[derive(Debug, Default)]
pub(crate) struct ShardMetrics {
    /// Time from the bridge to the shard, for each publication.
    pub(crate) queue: Histogram,
    pub(crate) connections: [Cell; Protocol::ALL.len()],
    pub(crate) accepted: [Cell; Protocol::ALL.len()],
    pub(crate) closed: [Cell; CloseReason::ALL.len()],
    pub(crate) failed: [Cell; CommandError::KINDS.len()],
    pub(crate) messages_in: Cell,
    pub(crate) bytes_in: Cell,
    pub(crate) messages_out: Cell,
    pub(crate) bytes_out: Cell,
    pub(crate) writes: Cell,
    pub(crate) publications: Cell,
    pub(crate) slow_disconnected: Cell,
    pub(crate) slow_dropped: Cell,
    pub(crate) slow_dropped_newest: Cell,
    pub(crate) slow_conflated: Cell,
    pub(crate) write_timeouts: Cell,
    pub(crate) panics: Cell,
    pub(crate) deflate_in: Cell,
    pub(crate) deflate_out: Cell,
    pub(crate) gaps: Cell,
    pub(crate) subscriptions: Cell,
    pub(crate) channels: Cell,
    pub(crate) log_bytes: Cell,
    pub(crate) own_bytes: Cell,
    pub(crate) log_full: Cell,
}

/// Time from publishing to the kernel, by namespace, in one histogram per shard. Namespaces are added but never
/// removed, so that counters never decrease. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Arc<BTreeMap<Box<str>, Arc<[Histogram]>>>);

/// Durations, summed over all shards.
#[derive(Debug, Default)]
pub struct Durations {
    /// Time from publishing to the kernel, by namespace.
    pub deliveries: Vec<(Box<str>, Snapshot)>,
    /// Time from the bridge to a shard.
    pub queue: Snapshot,
    /// Duration of a turn of a shard's event loop.
    pub turns: Snapshot,
}

/// Sums over all shards at one point in time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Open connections, by protocol.
    pub connections: Vec<(Protocol, u64)>,
    /// Connections ever handed to a shard, by protocol.
    pub accepted: Vec<(Protocol, u64)>,
    /// Closed connections, by reason.
    pub closed: Vec<(CloseReason, u64)>,
    /// Failed commands, by kind of error.
    pub failed: Vec<(&'static str, u64)>,
    /// Messages received from clients.
    pub messages_in: u64,
    /// Bytes received from clients, including framing.
    pub bytes_in: u64,
    /// Publications delivered: one publication sent to a thousand subscribers counts a thousand times.
    pub messages_out: u64,
    /// Bytes sent to clients, including framing.
    pub bytes_out: u64,
    /// Writes to sockets and pipes. `messages_out` divided by this number shows how well deliveries are batched.
    pub writes: u64,
    /// Publications that reached a shard with subscribers of the channel.
    pub publications: u64,
    /// Connections closed because the client lagged too far behind.
    pub slow_disconnected: u64,
    /// Oldest messages skipped because the client lagged too far behind.
    pub slow_dropped: u64,
    /// Newest messages skipped because the client lagged too far behind.
    pub slow_dropped_newest: u64,
    /// Messages skipped because a newer message with the same key arrived before the client had read them.
    pub slow_conflated: u64,
    /// Connections closed because they accepted no bytes for too long.
    pub write_timeouts: u64,
    /// Connections closed because the code serving them panicked.
    pub panics: u64,
    /// Payload bytes of compressed publications before compression, counted once for all subscribers that receive them
    /// compressed.
    pub deflate_in: u64,
    /// Bytes of these publications after compression.
    pub deflate_out: u64,
    /// Gaps that reached a shard.
    pub gaps: u64,
    /// Active subscriptions.
    pub subscriptions: u64,
    /// Channels with a subscriber, counted once per shard.
    pub channels: u64,
    /// Memory used by publications that have not yet been sent to all subscribers.
    pub log_bytes: u64,
    /// Memory used by incomplete messages from clients and by replies to them.
    pub own_bytes: u64,
    /// Publications that did not fit into the log of a channel, counted once per shard and wire form.
    pub log_full: u64,
}

// === impl ShardMetrics ===

impl ShardMetrics {
    pub(crate) fn opened(&self, protocol: Protocol) {
        self.connections[protocol as usize].add(1);
        self.accepted[protocol as usize].add(1);
    }

    pub(crate) fn ended(&self, protocol: Protocol, reason: CloseReason) {
        self.connections[protocol as usize].sub(1);
        let place = CloseReason::ALL.iter().position(|other| *other == reason);
        self.closed[place.expect("ALL lists every reason")].add(1);
    }
}

// === impl Latencies ===

impl Latencies {
    /// Returns the histograms with those of `namespaces` added.
    pub(crate) fn with<'a>(&self, namespaces: impl Iterator<Item = &'a str>, shards: usize) -> Self {
        let mut all = (*self.0).clone();
        for namespace in namespaces {
            if !all.contains_key(namespace) {
                all.insert(namespace.into(), (0..shards).map(|_| Histogram::default()).collect());
            }
        }
        Self(Arc::new(all))
    }

    pub(crate) fn of(&self, namespace: &str) -> Option<Arc<[Histogram]>> {
        self.0.get(namespace).cloned()
    }

    pub(crate) fn sums(&self) -> Vec<(Box<str>, Snapshot)> {
        let sum = |shards: &[Histogram]| {
            let mut sum = Snapshot::default();
            shards.iter().for_each(|shard| sum.add(shard));
            sum
        };
        self.0.iter().map(|(name, shards)| (name.clone(), sum(shards))).collect()
    }
}

// === impl Totals ===

impl Totals {
    pub(crate) fn of<'a>(shards: impl Iterator<Item = &'a ShardMetrics>) -> Self {
        let mut totals = Self {
            connections: Protocol::ALL.map(|protocol| (protocol, 0)).to_vec(),
            accepted: Protocol::ALL.map(|protocol| (protocol, 0)).to_vec(),
            closed: CloseReason::ALL.map(|reason| (reason, 0)).to_vec(),
            failed: CommandError::KINDS.map(|kind| (kind, 0)).to_vec(),
            ..Self::default()
        };
        shards.for_each(|shard| totals.add(shard));
        totals
    }

    /// Returns the number of open connections over all protocols.
    pub fn open(&self) -> u64 {
        self.connections.iter().map(|(_, count)| count).sum()
    }

    fn add(&mut self, shard: &ShardMetrics) {
        let ShardMetrics {
            queue: _,
            connections,
            accepted,
            closed,
            failed,
            messages_in,
            bytes_in,
            messages_out,
            bytes_out,
            writes,
            publications,
            slow_disconnected,
            slow_dropped,
            slow_dropped_newest,
            slow_conflated,
            write_timeouts,
            panics,
            deflate_in,
            deflate_out,
            gaps,
            subscriptions,
            channels,
            log_bytes,
            own_bytes,
            log_full,
        } = shard;
        add_each(&mut self.connections, connections);
        add_each(&mut self.accepted, accepted);
        add_each(&mut self.closed, closed);
        add_each(&mut self.failed, failed);
        for (sum, cell) in [
            (&mut self.messages_in, messages_in),
            (&mut self.bytes_in, bytes_in),
            (&mut self.messages_out, messages_out),
            (&mut self.bytes_out, bytes_out),
            (&mut self.writes, writes),
            (&mut self.publications, publications),
            (&mut self.slow_disconnected, slow_disconnected),
            (&mut self.slow_dropped, slow_dropped),
            (&mut self.slow_dropped_newest, slow_dropped_newest),
            (&mut self.slow_conflated, slow_conflated),
            (&mut self.write_timeouts, write_timeouts),
            (&mut self.panics, panics),
            (&mut self.deflate_in, deflate_in),
            (&mut self.deflate_out, deflate_out),
            (&mut self.gaps, gaps),
            (&mut self.subscriptions, subscriptions),
            (&mut self.channels, channels),
            (&mut self.log_bytes, log_bytes),
            (&mut self.own_bytes, own_bytes),
            (&mut self.log_full, log_full),
        ] {
            *sum += cell.get();
        }
    }
}

fn add_each<K>(sums: &mut [(K, u64)], cells: &[Cell]) {
    for ((_, sum), cell) in sums.iter_mut().zip(cells) {
        *sum += cell.get();
    }
}
