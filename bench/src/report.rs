//! From figures to `results.json` and a table.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::server::Kind;

/// A measure.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Row {
    /// CPU of the server for an isolated delivery.
    PacedCpu,
    /// Publish to receipt, 99th percentile, isolated publications.
    PacedP99,
    /// Messages to subscribers a second, as fast as it goes.
    Saturated,
    /// Connections made a second.
    Setup,
    /// User-space memory of a subscribed, idle connection.
    IdleBytes,
}

/// Figures of all rounds.
#[derive(Default)]
pub(crate) struct Report(BTreeMap<(Row, Kind), Vec<f64>>);

impl Row {
    const ALL: [Self; 5] = [Self::PacedCpu, Self::PacedP99, Self::Saturated, Self::Setup, Self::IdleBytes];

    fn name(self) -> &'static str {
        match self {
            Self::PacedCpu => "paced fan-out, CPU per delivery",
            Self::PacedP99 => "paced fan-out, p99 publish to receipt",
            Self::Saturated => "saturated fan-out",
            Self::Setup => "connection set-up",
            Self::IdleBytes => "user-space memory of an idle connection",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::PacedCpu => "us",
            Self::PacedP99 => "ms",
            Self::Saturated => "deliveries/s",
            Self::Setup => "connections/s",
            Self::IdleBytes => "B",
        }
    }
}

impl Report {
    /// Keeps one round's figure.
    pub(crate) fn add(&mut self, kind: Kind, row: Row, value: f64) {
        eprintln!("  {}: {value:.2} {}", row.name(), row.unit());
        self.0.entry((row, kind)).or_default().push(value);
    }

    /// Writes the medians and prints them as a table.
    pub(crate) fn finish(&self, out: &Path) -> Result<()> {
        println!("| measure | bare loop | sidecar | ratio |\n|---|---|---|---|");
        let rows: Vec<Value> = Row::ALL.into_iter().map(|row| self.row(row)).collect();
        let results = json!({ "machine": machine(), "commit": commit(), "rows": rows });
        fs::create_dir_all(out.parent().context("the results need a folder")?)?;
        fs::write(out, serde_json::to_vec_pretty(&results)?)
            .with_context(|| format!("failed to write {}", out.display()))?;
        Ok(())
    }

    fn row(&self, row: Row) -> Value {
        let (baseline, value) = (self.median(row, Kind::Bare), self.median(row, Kind::Sidecar));
        let ratio = value / baseline;
        println!(
            "| {} | {baseline:.2} {unit} | {value:.2} {unit} | {ratio:.2} |",
            row.name(),
            unit = row.unit()
        );
        json!({ "name": row.name(), "unit": row.unit(), "value": value, "baseline": baseline, "ratio": ratio })
    }

    fn median(&self, row: Row, kind: Kind) -> f64 {
        let mut values = self.0.get(&(row, kind)).cloned().unwrap_or_default();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

fn machine() -> Value {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("unknown");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    json!({ "cpu": model, "cores": cores, "kernel": kernel.trim() })
}

fn commit() -> String {
    let output = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    output.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
