//! What the kernel says of processes and of the machine.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
};

/// The clock that all processes of a machine share.
pub(crate) fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// CPU time that all threads of a process have used, in nanoseconds (`/proc/PID/task/*/schedstat`).
fn own_cpu_nanos(pid: u32) -> Result<u64> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("failed to list the threads of a server")? {
        // A thread may end between the listing and the reading.
        if let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) {
            total += text.split(' ').next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Ok(total)
}

/// CPU time of one process, without its children, in nanoseconds.
pub(crate) fn thread_nanos(pid: u32) -> u64 {
    own_cpu_nanos(pid).unwrap_or(0)
}

/// CPU time of a process and its children, in nanoseconds.
pub(crate) fn cpu_nanos(pid: u32) -> Result<u64> {
    tree(pid).into_iter().map(own_cpu_nanos).sum()
}

/// Anonymous resident memory of a process and its children, in bytes: what they hold themselves, without
/// binaries and page cache.
pub(crate) fn anonymous_bytes(pid: u32) -> Result<u64> {
    tree(pid).into_iter().map(own_anonymous_bytes).sum()
}

fn own_anonymous_bytes(pid: u32) -> Result<u64> {
    let status =
        fs::read_to_string(format!("/proc/{pid}/status")).context("failed to read a server's status")?;
    let line =
        status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon in status")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1_024)
}

/// The process and those that it started.
fn tree(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(pid) = found.get(at).copied() {
        at += 1;
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    found
}

/// Nanoseconds since the machine started in which its cores were busy, whoever used them, or wanted to be and were
/// given to another machine on the same host.
pub(crate) fn machine_busy_nanos() -> u64 {
    busy_nanos(&fs::read_to_string("/proc/stat").unwrap_or_default())
}

fn busy_nanos(stat: &str) -> u64 {
    let fields: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or("")
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; a tick is 10 ms. Guests, behind them, are in user already.
    let busy: u64 = [0, 1, 2, 5, 6, 7].into_iter().filter_map(|at| fields.get(at)).sum();
    busy * 10_000_000
}

/// The load average over a minute.
pub(crate) fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or(f64::NAN)
}

/// Bytes of kernel objects of one TCP socket, by `/proc/slabinfo` (root only): its caches' growth since `before`.
pub(crate) fn socket_slab_bytes() -> Option<u64> {
    const CACHES: [&str; 6] =
        ["TCP", "sock_inode_cache", "filp", "eventpoll_epi", "eventpoll_pwq", "tcp_bind_bucket"];
    let text = fs::read_to_string("/proc/slabinfo").ok()?;
    let bytes = |line: &str| {
        let mut fields = line.split_whitespace();
        let name = fields.next().filter(|name| CACHES.contains(name))?;
        let _ = name;
        let numbers: Vec<u64> = fields.take(3).filter_map(|field| field.parse().ok()).collect();
        Some(numbers.first()? * numbers.get(2)?)
    };
    Some(text.lines().filter_map(bytes).sum())
}

/// Raises the soft limit of open files to the hard one; children inherit it.
pub(crate) fn raise_open_files() -> Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context("failed to raise the open-files limit")?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

/// Cores of the machine; the standard library would count those that this thread is kept on.
pub(crate) fn cores() -> usize {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let core = |line: &&str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    stat.lines().filter(core).count().max(1)
}

/// All cores.
pub(crate) fn all_cores() -> String {
    format!("0-{}", cores() - 1)
}

/// Cores that servers do not use: all but the first.
pub(crate) fn load_cores() -> String {
    match cores() {
        0 | 1 => "0".to_owned(),
        cores => format!("1-{}", cores - 1),
    }
}

/// Puts the calling thread on the second core, so that it does not share with the servers.
pub(crate) fn keep_off_the_first_core() -> Result<()> {
    if cores() > 1 { choose_core(1) } else { Ok(()) }
}

/// Runs on the servers' core whenever nothing else does.
pub(crate) fn keep_first_core_awake(until: Duration) -> Result<()> {
    choose_core(0)?;
    schedule(&["--idle", "--pid", "0"])?;
    while now() < until {
        std::hint::spin_loop();
    }
    Ok(())
}

/// Lets the calling thread run before all others on its core whenever it has something to do.
pub(crate) fn go_first() -> Result<()> {
    schedule(&["--fifo", "--pid", "1"])
}

/// Whether [`go_first`] is permitted, tried by a thread that ends at once.
pub(crate) fn may_go_first() -> Result<()> {
    std::thread::spawn(go_first).join().expect("it does not panic")
}

fn choose_core(core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).context("failed to choose a core")
}

/// Changes how the calling thread is scheduled.
fn schedule(how: &[&str]) -> Result<()> {
    let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
    let output = Command::new("chrt").args(how).arg(&thread).output();
    let output = output.context("failed to start `chrt` (util-linux)")?;
    let told = String::from_utf8_lossy(&output.stderr);
    let how = how.join(" ");
    ensure!(
        output.status.success(),
        "`chrt {how}` failed, run as root or with CAP_SYS_NICE: {}",
        told.trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_the_host_gave_to_others_counts_as_busy() {
        let stat = "cpu  1 20 300 9999 9999 4000 50000 600000 7 7\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(busy_nanos(stat), 654_321 * 10_000_000);
    }
}
