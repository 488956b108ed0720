//! What the allocator says of the process' memory.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use crate::profile::Allocator;

/// Asks the allocator when asked.
pub(super) struct MemoryMetrics(pub(super) Arc<dyn Allocator>);

impl Collector for MemoryMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Bytes by the allocator's account: allocated by the program, in active pages, of its own metadata, resident, mapped, and retained for later";
        let mut family =
            encoder.encode_descriptor("process_allocator_bytes", help, None, MetricType::Gauge)?;
        for (kind, bytes) in self.0.bytes() {
            ConstGauge::new(bytes as i64).encode(family.encode_family(&[("kind", kind)])?)?;
        }
        if let Some(requests) = self.0.requests() {
            let help = "Requests for memory that the allocator answered";
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
