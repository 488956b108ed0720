//! Structured logs: one line an event, as text or JSON, on stderr. No payload, token or key ever gets here.
//!
//! A thread of its own writes them, for shards log the end of each connection and must not wait for whoever reads the
//! log. Where that one does not keep up, lines are dropped and counted.

use std::io::{self, IsTerminal};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::counter::ConstCounter,
    registry::Registry as Metrics,
};
use sidecar_config::LogLevel;
use tracing::{Level, level_filters::LevelFilter};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    Layer, Registry, filter::Targets, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// Human-readable text.
    Text,
}

/// Lines that wait to be written: what a crowd of connections that end together has to say, some MiB.
const LINES: usize = 16_384;

/// Changes what is logged while the process runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogControl(Option<Log>);

#[derive(Clone, Debug)]
struct Log {
    filter: reload::Handle<Targets, Registry>,
    dropped: ErrorCounter,
}

impl LogControl {
    /// Begins to log, until the guard is dropped: then what waits is written. Called once, by `main`; where somebody
    /// else logs already, it changes nothing.
    pub fn start(format: LogFormat, level: LogLevel) -> (Self, WorkerGuard) {
        let (filter, handle) = reload::Layer::new(targets(level));
        let (writer, guard) =
            NonBlockingBuilder::default().buffered_lines_limit(LINES).thread_name("log").finish(io::stderr());
        let dropped = writer.error_counter();
        let layer = fmt::layer().with_writer(writer);
        let layer = match format {
            LogFormat::Json => layer.json().flatten_event(true).with_filter(filter).boxed(),
            LogFormat::Text => layer.with_ansi(io::stderr().is_terminal()).with_filter(filter).boxed(),
        };
        let started = tracing_subscriber::registry().with(layer).try_init().is_ok();
        (Self(started.then_some(Log { filter: handle, dropped })), guard)
    }

    /// A control of nothing, where another part of the program logs.
    pub fn none() -> Self {
        Self(None)
    }

    /// Logs this level and what is more severe from now on.
    pub fn set(&self, level: LogLevel) {
        if let Some(Log { filter, .. }) = &self.0 {
            // Fails only when the subscriber is gone, at the end of the process.
            let _ = filter.reload(targets(level));
        }
    }

    /// Least severe level that is logged.
    pub fn level(&self) -> Option<LogLevel> {
        let ours =
            |targets: &Targets| targets.iter().find(|(target, _)| *target == OURS).map(|(_, level)| level);
        self.0.as_ref().and_then(|log| log.filter.with_current(ours).ok().flatten()).map(from_filter)
    }

    /// Registers the metrics under the prefix of `registry`.
    pub fn register(&self, registry: &mut Metrics) {
        registry.register_collector(Box::new(self.clone()));
    }
}

impl Collector for LogControl {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let lines = self.0.as_ref().map_or(0, |log| log.dropped.dropped_lines());
        let metric = ConstCounter::new(lines as u64);
        let help = "Log lines dropped because stderr was not read fast enough";
        metric.encode(encoder.encode_descriptor("log_lines_dropped", help, None, metric.metric_type())?)
    }
}

/// Our own lines, by the crate's name.
const OURS: &str = "fanout_sidecar";

/// One line for each connection, when it ends.
const ACCESS: &str = "access";

/// Libraries speak of their own affairs: they are heard from `trace` on, or when they warn.
fn targets(level: LogLevel) -> Targets {
    let own = into_level(level);
    let others = if own == Level::TRACE { Level::TRACE } else { own.min(Level::WARN) };
    Targets::new().with_default(others).with_target(OURS, own).with_target(ACCESS, own)
}

fn into_level(level: LogLevel) -> Level {
    match level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    }
}

fn from_filter(filter: LevelFilter) -> LogLevel {
    match filter.into_level() {
        None | Some(Level::ERROR) => LogLevel::Error,
        Some(Level::WARN) => LogLevel::Warn,
        Some(Level::INFO) => LogLevel::Info,
        Some(Level::DEBUG) => LogLevel::Debug,
        Some(Level::TRACE) => LogLevel::Trace,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_quiet_until_everything_is_asked_for() {
        for (level, hyper_warns, hyper_talks) in
            [(LogLevel::Error, false, false), (LogLevel::Info, true, false), (LogLevel::Trace, true, true)]
        {
            let targets = targets(level);
            assert_eq!(targets.would_enable("hyper::proto", &Level::WARN), hyper_warns, "{level:?}");
            assert_eq!(targets.would_enable("hyper::proto", &Level::DEBUG), hyper_talks, "{level:?}");
            for ours in ["fanout_sidecar::app", "access"] {
                assert!(targets.would_enable(ours, &into_level(level)), "{ours} {level:?}");
            }
        }
    }
}
