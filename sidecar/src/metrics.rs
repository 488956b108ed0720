//! The registry: each module registers its own below `fanout_`; what the shards count in cells of their own is
//! summed when somebody asks. Labels are fixed words, names from the settings and numbers of shards;
//! channel names and ids never are.
//!
//! Native histograms go out in Prometheus' protobuf alone, to a server that prefers it.

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

/// All that this process counts. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Registry>);

/// Collects what modules register, until it is complete.
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
    /// Where a module registers its own: every name begins with `fanout_`.
    pub fn fanout(&mut self, register: impl FnOnce(&mut Registry)) -> &mut Self {
        register(self.registry.sub_registry_with_prefix("fanout"));
        self
    }

    /// What the allocator says.
    pub fn allocator(&mut self, allocator: Arc<dyn Allocator>) -> &mut Self {
        self.registry.register_collector(Box::new(MemoryMetrics(allocator)));
        self
    }

    /// The shards' counters, and how many channels `channels` says that the node has.
    pub fn shards(
        &mut self,
        shards: Weak<Shards>,
        channels: impl Fn() -> usize + Send + Sync + 'static,
    ) -> &mut Self {
        self.fanout(|registry| registry.register_collector(Box::new(ShardsCollector::new(shards, channels))))
    }

    /// Nothing more to register.
    pub fn build(self) -> Metrics {
        Metrics(Arc::new(self.registry))
    }
}

impl Metrics {
    /// The page in a format.
    pub fn encode_as(&self, format: Format) -> Vec<u8> {
        match format {
            Format::Text => self.encode().into_bytes(),
            Format::Protobuf => {
                prometheus_protobuf::encode_to_vec(&self.0).expect("every metric has a protobuf form")
            }
        }
    }

    /// OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut page = String::with_capacity(16 * 1_024);
        text::encode(&mut page, &self.0).expect("a String takes everything");
        page
    }
}
