//! Metrics of the process, under the names that Prometheus client libraries use.

use std::{
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

/// Collector that reads `/proc` on each scrape.
#[derive(Debug)]
pub(super) struct ProcessMetrics {
    started: f64,
}

impl Default for ProcessMetrics {
    fn default() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self { started: now.as_secs_f64() }
    }
}

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: f64| {
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        gauge(
            "process_start_time_seconds",
            "Start time of the process, in seconds since the Unix epoch",
            self.started,
        )?;
        if let Some(bytes) = resident_bytes() {
            gauge(
                "process_resident_memory_bytes",
                "Resident memory size of the process, in bytes",
                bytes as f64,
            )?;
        }
        if let Some(files) = open_files() {
            gauge("process_open_fds", "Number of open file descriptors", files as f64)?;
        }
        if let Some(limit) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
            gauge("process_max_fds", "Maximum number of open file descriptors", limit as f64)?;
        }
        let used = ConstCounter::new(cpu_seconds());
        let help = "Total user and system CPU time spent, in seconds";
        used.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, used.metric_type())?)
    }
}

/// Returns the resident memory of the process in bytes, or `None` if `/proc` is not available.
pub(crate) fn resident_bytes() -> Option<u64> {
    let pages: u64 = fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

fn open_files() -> Option<usize> {
    Some(fs::read_dir("/proc/self/fd").ok()?.count())
}

fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
