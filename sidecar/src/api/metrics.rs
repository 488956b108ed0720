//! Metrics of the server API.

use std::time::Instant;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

use super::error::ApiError;

/// Metrics of the server API, by method.
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

/// Timer of one call.
pub(super) struct Timer<'a> {
    metrics: &'a Metrics,
    method: &'static str,
    began: Instant,
}

impl Default for Metrics {
    fn default() -> Self {
        // From the memory broker to a distant Redis; above a second the caller has likely given up.
        let duration = || Histogram::new([0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0]);
        Self { duration: Family::new_with_constructor(duration), errors: Family::default() }
    }
}

impl Metrics {
    /// Registers the metrics under the prefix of `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let Self { duration, errors } = self;
        let registry = registry.sub_registry_with_prefix("api");
        registry.register(
            "command_duration_seconds",
            "Duration of server API calls, by method",
            duration.clone(),
        );
        registry.register(
            "command_errors",
            "Server API calls that returned an error, by method and error code",
            errors.clone(),
        );
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
