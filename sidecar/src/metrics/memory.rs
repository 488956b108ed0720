//! Metrics of the memory allocator.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use crate::profile::Allocator;

/// Collector that queries the allocator on each scrape.
pub(super) struct MemoryMetrics(pub(super) Arc<dyn Allocator>);

impl Collector for MemoryMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Memory as accounted by the allocator, in bytes, by kind: allocated by the program, in active pages, allocator metadata, resident, mapped, and retained for reuse";
        let mut family =
            encoder.encode_descriptor("process_allocator_bytes", help, None, MetricType::Gauge)?;
        for (kind, bytes) in self.0.bytes() {
            ConstGauge::new(bytes as i64).encode(family.encode_family(&[("kind", kind)])?)?;
        }
        if let Some(requests) = self.0.requests() {
            let help = "Memory allocations served by the allocator";
            let counter =
                encoder.encode_descriptor("process_allocations", help, None, MetricType::Counter)?;
            ConstCounter::new(requests).encode(counter)?;
        }
        Ok(())
    }
}

impl fmt::Debug for MemoryMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryMetrics").finish_non_exhaustive()
    }
}
