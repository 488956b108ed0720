//! Sums over all shards, under Centrifugo's metric names where it has an equivalent.

use std::{fmt, sync::Weak};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use crate::{
    latency::Snapshot,
    shard::{Durations, ShardState, Shards, Totals},
};

/// Collector that sums the shards' counters on each scrape. Holds the shards weakly because they end before the
/// registry does.
pub(super) struct ShardsCollector {
    shards: Weak<Shards>,
    channels: Box<dyn Fn() -> usize + Send + Sync>,
}

impl ShardsCollector {
    pub(super) fn new(shards: Weak<Shards>, channels: impl Fn() -> usize + Send + Sync + 'static) -> Self {
        Self { shards, channels: Box::new(channels) }
    }
}

impl Collector for ShardsCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(shards) = self.shards.upgrade() else { return Ok(()) };
        let mut page = Page(encoder);
        let totals = shards.totals();
        page.gauge("node_connections", "Open connections", totals.open())?;
        page.gauge(
            "node_channels",
            "Channels that this node is subscribed to at the broker",
            (self.channels)() as u64,
        )?;
        page.gauge(
            "node_capacity",
            "Maximum number of connections of this node",
            shards.door().capacity().into(),
        )?;
        page.totals(totals)?;
        page.durations(shards.durations())?;
        page.states(&shards.states())
    }
}

struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn totals(&mut self, totals: Totals) -> Result<(), fmt::Error> {
        let Totals {
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
            channels: _,
            log_bytes,
            own_bytes,
            log_full,
        } = totals;
        self.gauge("node_subscriptions", "Active subscriptions", subscriptions)?;
        self.gauge(
            "node_log_bytes",
            "Memory used by publications that have not yet been sent to all subscribers, in bytes",
            log_bytes,
        )?;
        let help = "Memory used by incomplete messages from clients and by replies that clients have not read, in bytes";
        self.gauge("node_connection_bytes", help, own_bytes)?;
        let help = "Publications dropped because the log of a channel was full, counted once per shard and wire form; subscribers were notified of a gap";
        self.counter("node_log_full", help, log_full)?;
        let protocols = |counts: Vec<(crate::protocol::Protocol, u64)>| {
            counts.into_iter().map(|(protocol, count)| (protocol.name(), count)).collect::<Vec<_>>()
        };
        let help = "Open connections, by protocol";
        self.gauges("client_connections_inflight", help, "protocol", &protocols(connections))?;
        let help = "Connections accepted, by protocol";
        self.counters("client_connections_accepted", help, "protocol", &protocols(accepted))?;
        let closed: Vec<_> = closed.into_iter().map(|(reason, count)| (reason.name(), count)).collect();
        self.counters("client_disconnects", "Connections closed, by reason", "reason", &closed)?;
        self.counters(
            "client_command_errors",
            "Failed commands from clients, by kind of error",
            "error",
            &failed,
        )?;
        let actions = [
            ("disconnect", slow_disconnected),
            ("drop_oldest", slow_dropped),
            ("drop_newest", slow_dropped_newest),
            ("conflate", slow_conflated),
            ("write_timeout", write_timeouts),
        ];
        let help = "Connections closed (disconnect, write_timeout) and messages skipped (drop_oldest, drop_newest, conflate) because a client read too slowly";
        self.counters("client_slow_consumer", help, "action", &actions)?;
        let help = "Connections closed because the code serving them panicked";
        self.counter("client_panics", help, panics)?;
        self.counter(
            "compression_input_size",
            "Payload size of compressed publications before compression, in bytes; a publication is compressed once for all subscribers that receive it compressed",
            deflate_in,
        )?;
        self.counter(
            "compression_output_size",
            "Size of compressed publications after compression, in bytes",
            deflate_out,
        )?;
        self.counter("client_gaps", "Gaps that reached a shard with subscribers of the channel", gaps)?;
        self.counter(
            "node_publications",
            "Publications that reached a shard with subscribers of the channel",
            publications,
        )?;
        self.counter("transport_messages_received", "Messages received from clients", messages_in)?;
        self.counter("transport_messages_received_size", "Bytes received from clients", bytes_in)?;
        self.counter("transport_messages_sent", "Publications delivered to clients", messages_out)?;
        self.counter("transport_messages_sent_size", "Bytes sent to clients", bytes_out)?;
        self.counter("transport_writes", "Writes to sockets; each carries one or more messages", writes)
    }

    fn durations(&mut self, durations: Durations) -> Result<(), fmt::Error> {
        let Durations { deliveries, queue, turns } = durations;
        let help = "Time from publishing, by the clock of the publishing node, until the kernel or a pipe accepts the publication for a subscriber, by namespace; if the time of publishing is unknown, measured from arrival at the shard";
        let mut family =
            self.0.encode_descriptor("node_delivery_seconds", help, None, MetricType::Histogram)?;
        for (namespace, snapshot) in deliveries {
            snapshot.encode(family.encode_family(&[("namespace", &*namespace)])?)?;
        }
        self.histogram(
            "node_queue_lag_seconds",
            "Time that a publication takes from the bridge to a shard",
            &queue,
        )?;
        let help = "Duration of one turn of a shard's event loop: mail, reads, timers and writes";
        self.histogram("shard_turn_seconds", help, &turns)
    }

    fn states(&mut self, states: &[ShardState]) -> Result<(), fmt::Error> {
        let mut of_each = |name: &str, help: &str, value: fn(&ShardState) -> f64| {
            let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (shard, state) in states.iter().enumerate() {
                ConstGauge::new(value(state)).encode(family.encode_family(&[("shard", shard)])?)?;
            }
            Ok(())
        };
        of_each(
            "shard_longest_turn_seconds",
            "Longest turn of the shard's event loop in the last 30 to 60 seconds, including one that has not ended",
            |state| state.longest.as_secs_f64(),
        )?;
        of_each("shard_connections", "Open connections, by shard", |state| state.connections.into())?;
        of_each(
            "shard_mailbox_bytes",
            "Payload size of publications waiting in the shard's mailbox, in bytes",
            |state| state.mail_bytes as f64,
        )
    }

    fn histogram(&mut self, name: &str, help: &str, snapshot: &Snapshot) -> Result<(), fmt::Error> {
        snapshot.encode(self.0.encode_descriptor(name, help, None, snapshot.metric_type())?)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> Result<(), fmt::Error> {
        let metric = ConstGauge::new(value as i64);
        metric.encode(self.0.encode_descriptor(name, help, None, metric.metric_type())?)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> Result<(), fmt::Error> {
        let metric = ConstCounter::new(value);
        metric.encode(self.0.encode_descriptor(name, help, None, metric.metric_type())?)
    }

    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: &[(&str, u64)],
    ) -> Result<(), fmt::Error> {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (value, count) in values {
            ConstGauge::new(*count as i64).encode(family.encode_family(&[(label, *value)])?)?;
        }
        Ok(())
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: &[(&str, u64)],
    ) -> Result<(), fmt::Error> {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (value, count) in values {
            ConstCounter::new(*count).encode(family.encode_family(&[(label, *value)])?)?;
        }
        Ok(())
    }
}

impl fmt::Debug for ShardsCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardsCollector").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
