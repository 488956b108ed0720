//! `docs/benchmarks.md` and its plots, from a `results.json`.

use std::{fmt::Write, fs, path::Path};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    book::{Figure, Measure, Row, median, rounded},
    peer::Peer,
    plot::{self, Series},
};

/// What is read of a `results.json`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Results {
    machine: Value,
    versions: std::collections::BTreeMap<String, String>,
    commit: String,
    date: String,
    profile: String,
    load_average: f64,
    foreign_cpu_share: f64,
    rows: Vec<Row>,
    figures: Vec<Figure>,
    remarks: Vec<String>,
}

/// Writes `benchmarks.md` and `images/bench/*.svg` into a folder.
pub(crate) fn write(results: &Path, folder: &Path) -> Result<()> {
    let text = fs::read(results).with_context(|| format!("failed to read {}", results.display()))?;
    let results: Results = serde_json::from_slice(&text).context("not a results file of the bench")?;
    let images = folder.join("images/bench");
    fs::create_dir_all(&images)?;
    let mut page = results.head();
    for (name, title, svg) in results.plots() {
        if let Some(svg) = svg {
            fs::write(images.join(format!("{name}.svg")), svg)?;
            let _ = writeln!(page, "![{title}](images/bench/{name}.svg)\n");
        }
    }
    page.push_str(&results.tables());
    fs::write(folder.join("benchmarks.md"), page).context("failed to write the page")
}

impl Results {
    fn head(&self) -> String {
        let Self { machine, commit, date, profile, foreign_cpu_share, load_average, .. } = self;
        let of = |name: &str| machine[name].as_str().map_or_else(|| machine[name].to_string(), str::to_owned);
        let target = if profile == "quick" { "make bench-quick" } else { "make bench" };
        format!(
            "# Benchmarks\n\n<!-- Written by `fanout-bench page`; do not edit. -->\n\n\
             One run of `{target}` on {date}, commit {commit}: {} ({} cores), {} GiB, Linux {}. Everything runs on this \
             machine over loopback, the server on one core. See [the method and its limits](../bench/README.md). \
             **Read the ratios.**\n\n\
             Other processes, and other machines on the same host, used {:.0} % of the machine meanwhile (load \
             average {load_average} at the start). This lowers the absolute rates and increases the latencies of \
             all servers alike.\n\n",
            of("cpu"),
            of("cores"),
            of("memoryGiB"),
            of("kernel"),
            foreign_cpu_share * 100.0
        )
    }

    fn plots(&self) -> Vec<(&'static str, &'static str, Option<String>)> {
        let lines = |title, x, y, measure| plot::lines(title, x, y, &self.curves(measure));
        let bars = |title, measure: Measure| plot::bars(title, measure.unit(), &self.bars(measure));
        let load = "offered deliveries a second";
        let throughput = "Saturated fan-out to 1,000 subscribers, one core";
        let bytes = "User-space memory of an idle connection";
        let memory = "User-space memory against connections";
        let cpu = "CPU per delivery against fan-out, isolated publications";
        let [p50, p99, p999] = ["p50 against load", "p99 against load", "p99.9 against load"];
        vec![
            ("throughput", throughput, bars(throughput, Measure::Saturated)),
            ("latency-p50", p50, lines(p50, load, "ms from due to receipt", Measure::LoadP50)),
            ("latency-p99", p99, lines(p99, load, "ms from due to receipt", Measure::LoadP99)),
            ("latency-p999", p999, lines(p999, load, "ms from due to receipt", Measure::LoadP999)),
            ("bytes", bytes, bars(bytes, Measure::IdleBytes)),
            ("memory", memory, lines(memory, "connections", "MB", Measure::MemoryAt)),
            ("cpu", cpu, lines(cpu, "subscribers", "µs", Measure::FanOutCpu)),
        ]
    }

    fn tables(&self) -> String {
        let mut page = "A line ends where a server can no longer keep up.\n\n## Targets\n\n".to_owned();
        page.push_str(
            "| measure | Fanout | baseline | ratio | target | met |\n|---|---:|---:|---:|---|---|\n",
        );
        for row in &self.rows {
            let _ = writeln!(page, "{}", row.line());
        }
        page.push_str("\n## Versions\n\n");
        for (name, version) in &self.versions {
            let _ = writeln!(page, "- {name}: {version}");
        }
        if !self.remarks.is_empty() {
            page.push_str("\n## Remarks\n\n");
            for remark in &self.remarks {
                let _ = writeln!(page, "- {}", remark.split_whitespace().collect::<Vec<_>>().join(" "));
            }
        }
        page
    }

    fn bars(&self, measure: Measure) -> Vec<Series> {
        let point = |peer| Some((0.0, median(&self.figures, peer, measure, None)?));
        series(|peer| point(peer).into_iter().collect())
    }

    fn curves(&self, measure: Measure) -> Vec<Series> {
        let mut places: Vec<u64> = self.figures.iter().filter_map(|figure| figure.at).collect();
        places.sort_unstable();
        places.dedup();
        series(|peer| {
            let value = |at: &u64| Some((*at as f64, median(&self.figures, peer, measure, Some(*at))?));
            places.iter().filter_map(value).collect()
        })
    }
}

fn series(points: impl Fn(Peer) -> Vec<(f64, f64)>) -> Vec<Series> {
    let one = |peer: Peer| Series {
        name: peer.label(),
        color: color(peer),
        strong: peer == Peer::Sidecar,
        points: points(peer),
    };
    Peer::ALL.into_iter().map(one).collect()
}

/// Told apart on light and on dark ground.
fn color(peer: Peer) -> &'static str {
    match peer {
        Peer::Bare => "#8c959f",
        Peer::Sidecar | Peer::Untimed => "#1f6feb",
        Peer::Centrifuge => "#d1242f",
        Peer::GoHub => "#1a9e96",
        Peer::Socketioxide => "#bc6c25",
        Peer::Ws => "#7d9f1f",
        Peer::SocketIo => "#8250df",
        Peer::Nchan => "#bf3989",
    }
}

impl Row {
    /// As a row of a Markdown table.
    pub(crate) fn line(&self) -> String {
        let Self { name, value, unit, baseline, ratio, target, met, interval } = self;
        let number = |value: &Option<f64>| value.map_or("-".to_owned(), rounded);
        let met = match (met, interval) {
            (Some(true), _) => "yes",
            (Some(false), _) => "**no**",
            (None, Some(_)) => "undecided",
            (None, None) => "-",
        };
        let target = target.as_deref().unwrap_or("-");
        format!(
            "| {name} | {} {unit} | {} | {} | {target} | {met} |",
            number(value),
            number(baseline),
            number(ratio)
        )
    }
}
