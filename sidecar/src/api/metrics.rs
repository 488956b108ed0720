//! What is counted of the server API.

use std::time::Instant;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

use super::error::ApiError;

/// Counters and times of the server API, by method.
#[derive(Clone, Debug)]
pub struct Metrics {
    duration: Family<MethodLabels, Histogram, fn() -> Histogram>,
    errors: Family<ErrorLabels, Counter>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabels {
    method: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    method: &'static str,
    code: u16,
}

/// One call.
pub(super) struct Timer<'a> {
    metrics: &'a Metrics,
    method: &'static str,
    began: Instant,
}

impl Default for Metrics {
    fn default() -> Self {
        // From the memory broker to a Redis far away; above a second somebody has given up.
        let duration = || Histogram::new([0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0]);
        Self { duration: Family::new_with_constructor(duration), errors: Family::default() }
    }
}

impl Metrics {
    /// Registers them below `registry`'s prefix.
    pub fn register(&self, registry: &mut Registry) {
        let Self { duration, errors } = self;
        let registry = registry.sub_registry_with_prefix("api");
        registry.register("command_duration_seconds", "Time to answer a call", duration.clone());
        registry.register("command_errors", "Calls answered with an error", errors.clone());
    }

    pub(super) fn started(&self, method: &'static str) -> Timer<'_> {
        Timer { metrics: self, method, began: Instant::now() }
    }
}

impl Timer<'_> {
    pub(super) fn finished(self, error: Option<&ApiError>) {
        let Self { metrics, method, began } = self;
        metrics.duration.get_or_create(&MethodLabels { method }).observe(began.elapsed().as_secs_f64());
        if let Some(error) = error {
            metrics.errors.get_or_create(&ErrorLabels { method, code: error.code() }).inc();
        }
    }
}
