//! The figures of a run: kept as they come, at the end medians, ratios and targets, in `results.json` and as a table.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    peer::{Peer, Places},
    process,
};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Measure {
    PacedCpu,
    PacedP50,
    PacedP99,
    Saturated,
    SaturatedCpu,
    MessagesPerFrame,
    Lost,
    Setup,
    SetupCpu,
    IdleBytes,
    ActiveBytes,
    LeftBytes,
    KernelBytes,
    HalfP99,
    LoadP50,
    LoadP99,
    LoadP999,
    Ceiling,
    FanOutCpu,
    FirstByte,
    LastByte,
    MemoryAt,
    PingIdleP95,
    PingIdleP99,
    PingHotP95,
    PingHotP99,
    CrowdAlone,
    CrowdBesideStuck,
    TimingPaced,
    TimingSaturated,
    FewCpu,
    SoakDeliveries,
    SoakLost,
    SoakClosed,
    SoakP50,
    SoakP99,
    SoakP999,
    SoakLongest,
    SoakTurn,
    SoakCpu,
    SoakBytes,
    SoakSetup,
}

/// One figure of one round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) peer: Peer,
    pub(crate) measure: Measure,
    /// Where on the axis, for measures that are curves.
    pub(crate) at: Option<u64>,
    pub(crate) value: f64,
    /// Share of the machine that others used meanwhile: other processes, and other machines on its host.
    pub(crate) foreign: f64,
}

/// A row of `results.json`: the sidecar's figure against a baseline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) value: Option<f64>,
    pub(crate) unit: String,
    pub(crate) baseline: Option<f64>,
    pub(crate) ratio: Option<f64>,
    pub(crate) target: Option<String>,
    /// None without a target, without what it compares, or where the interval holds the target.
    pub(crate) met: Option<bool>,
    /// In which the value lies by 95 %, where it is a mean that is judged by it.
    pub(crate) interval: Option<(f64, f64)>,
}

/// What a row asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// A ratio to the baseline of at most this.
    RatioAtMost(f64),
    /// A ratio to the baseline of at least this.
    RatioAtLeast(f64),
    /// A value of at most this.
    AtMost(f64),
    /// Below the baseline.
    Lower,
}

/// All figures of a run.
pub(crate) struct Book {
    figures: Vec<Figure>,
    remarks: Vec<String>,
    /// Before the bench added to it.
    load_average: f64,
    bar: ProgressBar,
}

impl Measure {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PacedCpu => "paced fan-out, CPU per delivery",
            Self::PacedP50 => "paced fan-out, p50 publish to receipt",
            Self::PacedP99 => "paced fan-out, p99 publish to receipt",
            Self::Saturated => "saturated fan-out",
            Self::SaturatedCpu => "saturated fan-out, CPU per delivery",
            Self::MessagesPerFrame => "saturated fan-out, messages in a frame",
            Self::Lost => "lost deliveries",
            Self::Setup => "connection set-up",
            Self::SetupCpu => "connection set-up, CPU per connection",
            Self::IdleBytes => "user-space memory of an idle connection",
            Self::ActiveBytes => "user-space memory of a connection that has received",
            Self::LeftBytes => "user-space memory left of a connection once all have gone",
            Self::KernelBytes => "kernel memory of a connection (one end)",
            Self::HalfP99 => "p99 publish to receipt at half of the best peer's saturation",
            Self::LoadP50 => "p50 publish to receipt",
            Self::LoadP99 => "p99 publish to receipt",
            Self::LoadP999 => "p99.9 publish to receipt",
            Self::Ceiling => "reached where more was offered",
            Self::FanOutCpu => "CPU per delivery by fan-out",
            Self::FirstByte => "publish to the first of 10,000 subscribers",
            Self::LastByte => "publish to the last of 10,000 subscribers",
            Self::MemoryAt => "user-space memory by connections",
            Self::PingIdleP95 => "p95 of a ping while nothing happens",
            Self::PingIdleP99 => "p99 of a ping while nothing happens",
            Self::PingHotP95 => "p95 of a ping while another channel has 18,000 subscribers",
            Self::PingHotP99 => "p99 of a ping while another channel has 18,000 subscribers",
            Self::CrowdAlone => "p99 publish to receipt of 10,000",
            Self::CrowdBesideStuck => "p99 publish to receipt of 10,000 beside a stuck client",
            Self::TimingPaced => "paced fan-out, CPU per delivery with its timing against without",
            Self::TimingSaturated => "saturated fan-out, CPU per delivery with its timing against without",
            Self::FewCpu => "1,000 connections of the same kind, CPU per delivery",
            Self::SoakDeliveries => "100,000 connections, deliveries",
            Self::SoakLost => "100,000 connections, lost deliveries",
            Self::SoakClosed => "100,000 connections, closed connections",
            Self::SoakP50 => "100,000 connections, p50 publish to receipt",
            Self::SoakP99 => "100,000 connections, p99 publish to receipt",
            Self::SoakP999 => "100,000 connections, p99.9 publish to receipt",
            Self::SoakLongest => "100,000 connections, longest publish to receipt",
            Self::SoakTurn => "100,000 connections, longest turn of a loop",
            Self::SoakCpu => "100,000 connections, CPU per delivery",
            Self::SoakBytes => "100,000 connections, user-space memory of one",
            Self::SoakSetup => "100,000 connections, set-up",
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::PacedCpu
            | Self::SaturatedCpu
            | Self::SetupCpu
            | Self::FanOutCpu
            | Self::FewCpu
            | Self::SoakCpu => "us",
            Self::PacedP50
            | Self::PacedP99
            | Self::HalfP99
            | Self::LoadP50
            | Self::LoadP99
            | Self::LoadP999
            | Self::FirstByte
            | Self::LastByte
            | Self::PingIdleP95
            | Self::PingIdleP99
            | Self::PingHotP95
            | Self::PingHotP99
            | Self::CrowdAlone
            | Self::CrowdBesideStuck
            | Self::SoakP50
            | Self::SoakP99
            | Self::SoakP999
            | Self::SoakLongest
            | Self::SoakTurn => "ms",
            Self::Saturated | Self::Ceiling => "deliveries/s",
            Self::MessagesPerFrame => "messages",
            Self::Lost | Self::SoakDeliveries | Self::SoakLost => "deliveries",
            Self::Setup | Self::SoakSetup => "connections/s",
            Self::IdleBytes | Self::ActiveBytes | Self::LeftBytes | Self::KernelBytes | Self::SoakBytes => {
                "B"
            }
            Self::MemoryAt => "MB",
            Self::TimingPaced | Self::TimingSaturated => "x",
            Self::SoakClosed => "connections",
        }
    }
}

impl Target {
    fn met(self, value: f64, ratio: Option<f64>) -> Option<bool> {
        match self {
            Self::RatioAtMost(bound) => ratio.map(|ratio| ratio <= bound),
            Self::RatioAtLeast(bound) => ratio.map(|ratio| ratio >= bound),
            Self::AtMost(bound) => Some(value <= bound),
            Self::Lower => ratio.map(|ratio| ratio < 1.0),
        }
    }

    fn text(self, unit: &str) -> String {
        match self {
            Self::RatioAtMost(bound) => format!("<= {bound} x"),
            Self::RatioAtLeast(bound) => format!(">= {bound} x"),
            Self::AtMost(bound) => format!("<= {bound} {unit}"),
            Self::Lower => "lower".to_owned(),
        }
    }
}

impl Book {
    /// Empty.
    pub(crate) fn new() -> Self {
        let style = ProgressStyle::with_template("[{elapsed_precise}] {bar:30} {pos}/{len} {msg}")
            .expect("the template is valid");
        let bar = ProgressBar::new(0).with_style(style);
        Self { figures: Vec::new(), remarks: Vec::new(), load_average: process::load_average(), bar }
    }

    /// Says how often [`Book::progress`] will be called.
    pub(crate) fn expect(&self, steps: usize) {
        self.bar.set_length(steps as u64);
    }

    /// Tells what comes next.
    pub(crate) fn progress(&self, message: &str) {
        self.bar.set_message(message.to_owned());
        self.bar.inc(1);
        if self.bar.is_hidden() {
            eprintln!("{message}");
        }
    }

    /// Keeps one round's figure.
    pub(crate) fn add(&mut self, figure: Figure) {
        let Figure { measure, value, .. } = &figure;
        self.bar.println(format!("    {}: {} {}", measure.name(), rounded(*value), measure.unit()));
        if self.bar.is_hidden() {
            eprintln!("    {}: {} {}", measure.name(), rounded(*value), measure.unit());
        }
        self.figures.push(figure);
    }

    /// Keeps what a reader of the figures has to know.
    pub(crate) fn remark(&mut self, text: &str) {
        if self.bar.is_hidden() {
            eprintln!("  ! {text}");
        }
        self.bar.println(format!("  ! {text}"));
        self.remarks.push(text.to_owned());
    }

    /// The median over the rounds.
    pub(crate) fn median(&self, peer: Peer, measure: Measure) -> Option<f64> {
        median(&self.figures, peer, measure, None)
    }

    /// The figures of all rounds.
    pub(crate) fn values(&self, peer: Peer, measure: Measure) -> Vec<f64> {
        let of = |figure: &&Figure| figure.peer == peer && figure.measure == measure;
        self.figures.iter().filter(of).map(|figure| figure.value).collect()
    }

    /// The sidecar's `measure` against `baseline`'s.
    pub(crate) fn row(&self, measure: Measure, baseline: Peer, target: Option<Target>) -> Row {
        let name = format!("{} against {}", measure.name(), baseline.label());
        let value = self.median(Peer::Sidecar, measure);
        Row::new(name, measure.unit(), value, self.median(baseline, measure), target)
    }

    /// Writes everything and prints the rows.
    pub(crate) fn finish(&self, profile: &str, rows: &[Row], places: &Places, out: &Path) -> Result<()> {
        self.bar.finish_and_clear();
        print_table(rows);
        let results = json!({
            "machine": machine(),
            "versions": versions(places),
            "commit": commit(),
            "date": date(),
            "profile": profile,
            "loadAverage": self.load_average,
            "foreignCpuShare": self.foreign(),
            "rows": rows,
            "figures": self.figures,
            "remarks": self.remarks,
        });
        fs::create_dir_all(out.parent().context("the results need a folder")?)?;
        fs::write(out, serde_json::to_vec_pretty(&results)?)
            .with_context(|| format!("failed to write {}", out.display()))?;
        for remark in &self.remarks {
            println!("! {remark}");
        }
        println!("{}", out.display());
        Ok(())
    }

    /// What others used of the machine, on average over the timed runs.
    fn foreign(&self) -> f64 {
        let shares: Vec<f64> =
            self.figures.iter().map(|figure| figure.foreign).filter(|share| *share > 0.0).collect();
        shares.iter().sum::<f64>() / shares.len().max(1) as f64
    }
}

impl Row {
    pub(crate) fn new(
        name: String,
        unit: &str,
        value: Option<f64>,
        baseline: Option<f64>,
        target: Option<Target>,
    ) -> Self {
        let ratio = value
            .zip(baseline)
            .filter(|(_, baseline)| *baseline != 0.0)
            .map(|(value, baseline)| value / baseline);
        let met = target.zip(value).and_then(|(target, value)| target.met(value, ratio));
        Self {
            name,
            value,
            unit: unit.to_owned(),
            baseline,
            ratio,
            target: target.map(|target| target.text(unit)),
            met,
            interval: None,
        }
    }

    /// A mean that is to be at most `bound`, which is decided only where its whole interval lies on one side.
    pub(crate) fn of_interval(
        name: String,
        unit: &str,
        mean: f64,
        (low, high): (f64, f64),
        bound: f64,
    ) -> Self {
        let row = Self::new(name, unit, Some(mean), None, Some(Target::AtMost(bound)));
        let met = match (low > bound, high <= bound) {
            (true, _) => Some(false),
            (_, true) => Some(true),
            _ => None,
        };
        Self { met, interval: Some((low, high)), ..row }
    }
}

/// The median over the rounds, at a point where the measure is a curve.
pub(crate) fn median(figures: &[Figure], peer: Peer, measure: Measure, at: Option<u64>) -> Option<f64> {
    let of = |figure: &&Figure| figure.peer == peer && figure.measure == measure && figure.at == at;
    let mut values: Vec<f64> = figures.iter().filter(of).map(|figure| figure.value).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        even if even % 2 == 0 => Some(f64::midpoint(values[middle - 1], values[middle])),
        _ => Some(values[middle]),
    }
}

fn print_table(rows: &[Row]) {
    println!("| measure | Fanout | baseline | ratio | target | met |\n|---|---|---|---|---|---|");
    rows.iter().for_each(|row| println!("{}", row.line()));
}

/// Three digits that count.
pub(crate) fn rounded(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => {
            let digits = format!("{value:.0}");
            let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |rest| ("-", rest));
            let mut grouped = String::new();
            for (at, digit) in digits.chars().enumerate() {
                if at > 0 && (digits.len() - at) % 3 == 0 {
                    grouped.push(',');
                }
                grouped.push(digit);
            }
            format!("{sign}{grouped}")
        }
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn machine() -> Value {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("unknown");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = memory.lines().next().and_then(|line| line.split_whitespace().nth(1)).unwrap_or("0");
    let cores = process::cores();
    let gib = memory.parse::<f64>().unwrap_or(0.0) / 1_048_576.0;
    json!({ "cpu": model, "cores": cores, "memoryGiB": gib.round(), "kernel": kernel.trim().split('-').next() })
}

/// Versions of what is compared.
fn versions(places: &Places) -> BTreeMap<&'static str, String> {
    let first_line = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().ok()?;
        let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
        String::from_utf8_lossy(&text).lines().next().map(str::to_owned)
    };
    let told = [
        ("sidecar", first_line(&places.sidecar.to_string_lossy(), &["--version"])),
        ("redis", first_line("redis-server", &["--version"])),
        ("go", first_line("go", &["version"])),
        ("node", first_line("node", &["--version"])),
        ("nginx", first_line("nginx", &["-v"])),
        ("nchan", first_line("dpkg-query", &["-W", "libnginx-mod-nchan"])),
    ];
    told.into_iter()
        .chain(locked_versions(&places.sources))
        .filter_map(|(name, version)| Some((name, version?)))
        .collect()
}

/// Versions of the peers' libraries, from the files that pin what is built: a manifest says only what is enough.
fn locked_versions(sources: &Path) -> [(&'static str, Option<String>); 8] {
    let read = |file: &str| fs::read_to_string(sources.join(file)).unwrap_or_default();
    let (go, cargo) = (read("go/go.mod"), read("socketioxide/Cargo.lock"));
    let npm = serde_json::from_str(&read("node/package-lock.json")).unwrap_or_default();
    [
        ("centrifuge", go_version(&go, "github.com/centrifugal/centrifuge")),
        ("gorilla", go_version(&go, "github.com/gorilla/websocket")),
        ("goRedis", go_version(&go, "github.com/redis/go-redis/v9")),
        ("ws", npm_version(&npm, "ws")),
        ("ioredis", npm_version(&npm, "ioredis")),
        ("socketIo", npm_version(&npm, "socket.io")),
        ("socketIoAdapter", npm_version(&npm, "@socket.io/redis-adapter")),
        ("socketioxide", cargo_version(&cargo, "socketioxide")),
    ]
}

/// Go takes exactly what `go.mod` requires.
fn go_version(module: &str, package: &str) -> Option<String> {
    let mut lines = module.lines().map(|line| line.trim().trim_start_matches("require "));
    let version = lines.find_map(|line| line.strip_prefix(package)?.strip_prefix(' '))?;
    Some(format!("{package} {}", version.split(' ').next()?))
}

fn npm_version(lock: &Value, package: &str) -> Option<String> {
    let version = lock["packages"][format!("node_modules/{package}")]["version"].as_str()?;
    Some(format!("{package} {version}"))
}

fn cargo_version(lock: &str, package: &str) -> Option<String> {
    let (_, entry) = lock.split_once(&format!("name = \"{package}\"\nversion = \""))?;
    Some(format!("{package} {}", entry.split('"').next()?))
}

fn commit() -> String {
    told_by("git", &["rev-parse", "--short", "HEAD"])
}

fn date() -> String {
    told_by("date", &["-u", "+%Y-%m-%d"])
}

fn told_by(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(values: &[(Peer, f64)]) -> Book {
        let mut book = Book::new();
        for (peer, value) in values {
            book.add(Figure {
                peer: *peer,
                measure: Measure::Saturated,
                at: None,
                value: *value,
                foreign: 0.0,
            });
        }
        book
    }

    #[test]
    fn a_row_compares_medians_and_says_whether_the_target_is_met() {
        let book =
            book(&[(Peer::Sidecar, 30.0), (Peer::Sidecar, 40.0), (Peer::Sidecar, 99.0), (Peer::Bare, 2.0)]);
        let row = book.row(Measure::Saturated, Peer::Bare, Some(Target::RatioAtLeast(15.0)));
        assert_eq!(
            (row.value, row.baseline, row.ratio, row.met),
            (Some(40.0), Some(2.0), Some(20.0), Some(true))
        );
        let row = book.row(Measure::Saturated, Peer::Bare, Some(Target::RatioAtLeast(21.0)));
        assert_eq!(row.met, Some(false));
    }

    #[test]
    fn a_row_without_its_peer_is_neither_met_nor_missed() {
        let row = book(&[(Peer::Sidecar, 1.0)]).row(
            Measure::Saturated,
            Peer::Nchan,
            Some(Target::RatioAtLeast(2.0)),
        );
        assert_eq!((row.value, row.baseline, row.ratio, row.met), (Some(1.0), None, None, None));
    }

    #[test]
    fn an_interval_that_holds_the_target_decides_nothing() {
        let row = |low, high| Row::of_interval("cost".to_owned(), "x", 1.0, (low, high), 1.02);
        let met =
            [(0.99, 1.02), (0.97, 1.12), (1.02, 1.05), (1.03, 1.05)].map(|(low, high)| row(low, high).met);
        assert_eq!(met, [Some(true), None, None, Some(false)]);
        assert!(row(0.97, 1.12).line().ends_with("| <= 1.02 x | undecided |"), "{}", row(0.97, 1.12).line());
        let absent = Row::new("cost".to_owned(), "x", None, None, Some(Target::AtMost(1.02)));
        assert!(absent.line().ends_with("| <= 1.02 x | - |"), "{}", absent.line());
    }

    #[test]
    fn versions_of_peers_are_those_that_the_lock_files_pin() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
        let read = |file: &str| fs::read_to_string(sources.join(file)).expect("a file of the repository");
        let locks = ["go/go.sum", "node/package-lock.json", "socketioxide/Cargo.lock"].map(read);
        for (name, told) in locked_versions(&sources) {
            let told = told.unwrap_or_else(|| panic!("{name} is not pinned"));
            let (package, version) = told.split_once(' ').expect("a name and a version");
            let entry = match name {
                "centrifuge" | "gorilla" | "goRedis" => format!("\n{package} {version} h1:"),
                "socketioxide" => format!("\nname = \"{package}\"\nversion = \"{version}\"\n"),
                _ => format!("\"node_modules/{package}\": {{\n      \"version\": \"{version}\",\n"),
            };
            assert!(locks.iter().any(|lock| lock.contains(&entry)), "{name}: {told}");
        }
    }

    #[test]
    fn figures_are_told_in_three_digits() {
        let told = [0.126, 7.0, 45.678, 1_234_567.8, -1_500.0].map(rounded);
        assert_eq!(told, ["0.13", "7.00", "45.7", "1,234,568", "-1,500"]);
    }
}
