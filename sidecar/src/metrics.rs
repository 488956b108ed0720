//! The registry: each module registers its own below `fanout_`; what the shards count in cells of their own is
//! summed when somebody asks. Labels are enums; channel names and ids never are.

mod process;
mod shards;

use std::sync::{Arc, Weak};

use prometheus_client::{encoding::text, registry::Registry};

use crate::shard::Shards;

use self::{process::ProcessMetrics, shards::ShardsCollector};
pub(crate) use process::resident_bytes;

/// The content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

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
    /// OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut page = String::with_capacity(16 * 1_024);
        text::encode(&mut page, &self.0).expect("a String takes everything");
        page
    }
}
