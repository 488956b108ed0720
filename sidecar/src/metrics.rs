//! Registry of metrics. Each module registers its own under the prefix `fanout_`; the counters that shards keep in
//! their own cells are summed on each scrape. Labels are fixed words, names from the settings and shard numbers, and
//! never channel names or ids.
//!
//! Native histograms are only exported in the Prometheus protobuf format, to servers that prefer it.

mod format;
mod memory;
mod process;
mod shards;

use std::sync::{Arc, Weak};

use prometheus_client::{
    encoding::{prometheus_protobuf, text},
    registry::Registry,
};

use crate::{profile::Allocator, shard::Shards};

use self::{memory::MemoryMetrics, process::ProcessMetrics, shards::ShardsCollector};
pub use format::Format;
pub(crate) use process::resident_bytes;

/// All metrics of this process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Registry>);

/// Builder that collects the metrics that modules register.
#[derive(Debug)]
pub struct Builder {
    registry: Registry,
}

impl Default for Builder {
    fn default() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessMetrics::default()));
        Self { registry }
    }
}

impl Builder {
    /// Registers metrics of a module. Every name gets the prefix `fanout_`.
    pub fn fanout(&mut self, register: impl FnOnce(&mut Registry)) -> &mut Self {
        register(self.registry.sub_registry_with_prefix("fanout"));
        self
    }

    /// Registers the metrics of the allocator.
    pub fn allocator(&mut self, allocator: Arc<dyn Allocator>) -> &mut Self {
        self.registry.register_collector(Box::new(MemoryMetrics(allocator)));
        self
    }

    /// Registers the counters of the shards, and the node's number of channels, which `channels` returns.
    pub fn shards(
        &mut self,
        shards: Weak<Shards>,
        channels: impl Fn() -> usize + Send + Sync + 'static,
    ) -> &mut Self {
        self.fanout(|registry| registry.register_collector(Box::new(ShardsCollector::new(shards, channels))))
    }

    /// Completes the registration.
    pub fn build(self) -> Metrics {
        Metrics(Arc::new(self.registry))
    }
}

impl Metrics {
    /// Encodes the metrics in a format.
    pub fn encode_as(&self, format: Format) -> Vec<u8> {
        match format {
            Format::Text => self.encode().into_bytes(),
            Format::Protobuf => {
                prometheus_protobuf::encode_to_vec(&self.0).expect("every metric has a protobuf form")
            }
        }
    }

    /// Encodes the metrics as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut page = String::with_capacity(16 * 1_024);
        text::encode(&mut page, &self.0).expect("a String takes everything");
        page
    }
}
