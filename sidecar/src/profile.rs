//! What this process spends its time and memory on, in the format of [pprof](https://github.com/google/pprof):
//! profiles that `go tool pprof` opens, with names where the binary has symbols.
//!
//! CPU time is sampled only while a profile is asked for. The heap is sampled by the program's allocator, if it
//! has one that can.

use std::{
    fs::File,
    io::{BufRead, BufReader, Cursor, Write},
    time::Duration,
};

use futures::future::BoxFuture;
use pprof::ProfilerGuardBuilder;
use pprof_util::{StackProfile, WeightedStack, parse_jeheap};
use tokio::{sync::Mutex, task::spawn_blocking, time::sleep};

/// Samples a second of CPU time: as Go's, but never in step with what happens every 10 ms.
const FREQUENCY: u16 = 99;
/// The longest profile that is taken.
pub const LONGEST: Duration = Duration::from_secs(300);

/// One profile at a time: the timer and the signal are the process'.
static TAKING: Mutex<()> = Mutex::const_new(());

/// The program's allocator, which the library does not choose.
pub trait Allocator: Send + Sync {
    /// Bytes by its own account, by kind.
    fn bytes(&self) -> Vec<(&'static str, u64)>;

    /// How often the program has asked it for memory; `None` where it keeps no count.
    fn requests(&self) -> Option<u64>;

    /// Its samples of the heap, in jemalloc's format.
    fn dump(&self) -> BoxFuture<'_, Result<File, ProfileError>>;
}

/// Which allocations a heap profile tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocations {
    /// Those that are still in use.
    InUse,
    /// All since the start.
    All,
}

/// Error of taking a profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Another one is being taken.
    #[error("another profile is being taken, try again later")]
    Busy,
    /// The allocator does not.
    #[error(
        "this process does not sample its heap: heap profiles require jemalloc configured with `prof:true`"
    )]
    NoHeap,
    /// It failed.
    #[error("failed to take a profile: {0}")]
    Failed(String),
}

/// Samples the CPU time of all threads for a time, at most [`LONGEST`]; gzipped protobuf.
///
/// # Errors
/// [`ProfileError`].
pub async fn cpu(duration: Duration) -> Result<Vec<u8>, ProfileError> {
    let _taking = TAKING.try_lock().map_err(|_| ProfileError::Busy)?;
    let guard = ProfilerGuardBuilder::default().frequency(FREQUENCY.into()).build().map_err(failed)?;
    sleep(duration.min(LONGEST)).await;
    let encode = move || {
        let report = guard.report().build_unresolved().map_err(failed)?;
        drop(guard);
        let nanoseconds = 1e9 / f64::from(FREQUENCY);
        let mut profile = with_mappings();
        for (stack, count) in report.data {
            // The innermost frame is where the thread was; the others are return addresses, of which one is subtracted.
            let mut addrs: Vec<_> = stack.frames.iter().map(|frame| frame.ip).collect();
            if let Some(innermost) = addrs.first_mut() {
                *innermost += 1;
            }
            addrs.reverse();
            let name = String::from_utf8_lossy(&stack.thread_name[..stack.thread_name_length]).into_owned();
            profile.push_stack(WeightedStack { addrs, weight: count as f64 * nanoseconds }, Some(&name));
        }
        Ok(profile.to_pprof(("cpu", "nanoseconds"), ("cpu", "nanoseconds"), Some("thread".to_owned())))
    };
    spawn_blocking(encode).await.map_err(failed)?
}

/// What the heap holds, or all that it ever held; gzipped protobuf.
///
/// # Errors
/// [`ProfileError`].
pub async fn heap(allocator: &dyn Allocator, which: Allocations) -> Result<Vec<u8>, ProfileError> {
    let _taking = TAKING.try_lock().map_err(|_| ProfileError::Busy)?;
    let dump = allocator.dump().await?;
    let encode = move || {
        let dump = selected(BufReader::new(dump), which).map_err(failed)?;
        let mappings = mappings::MAPPINGS.as_deref();
        let profile = parse_jeheap(Cursor::new(dump), mappings).map_err(failed)?;
        let kind = match which {
            Allocations::InUse => "inuse_space",
            Allocations::All => "alloc_space",
        };
        Ok(profile.to_pprof((kind, "bytes"), ("space", "bytes"), None))
    };
    spawn_blocking(encode).await.map_err(failed)?
}

#[expect(clippy::needless_pass_by_value, reason = "as `map_err` gives it")]
fn failed(error: impl ToString) -> ProfileError {
    ProfileError::Failed(error.to_string())
}

fn with_mappings() -> StackProfile {
    let mappings = mappings::MAPPINGS.as_deref().unwrap_or_default().to_vec();
    StackProfile { mappings, ..StackProfile::default() }
}

/// The dump with the stacks that have such allocations, counted where the parser looks: for each stack jemalloc writes
/// `t*: objects: bytes [all objects: all bytes]`.
fn selected(dump: impl BufRead, which: Allocations) -> std::io::Result<Vec<u8>> {
    let mut selected = Vec::new();
    let mut stack = None;
    for line in dump.lines() {
        let line = line?;
        let text = line.trim();
        if text.starts_with("heap_v2/") {
            writeln!(selected, "{line}")?;
        } else if text.starts_with('@') {
            stack = Some(line);
        } else if let Some(counts) = text.strip_prefix("t*:")
            && let Some(stack) = stack.take()
        {
            let Some((in_use, all)) = counts.split_once('[') else { continue };
            let counts = match which {
                Allocations::InUse => in_use.trim(),
                Allocations::All => all.trim_end_matches(']').trim(),
            };
            if !counts.starts_with("0:") {
                writeln!(selected, "{stack}\nt*: {counts}")?;
            }
        }
    }
    Ok(selected)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "heap_v2/524288\n  t*: 3: 300 [5: 700]\n  t1: 3: 300 [5: 700]\n\
        @ 0x10 0x20\n  t*: 3: 300 [4: 400]\n  t1: 3: 300 [4: 400]\n\
        @ 0x30\n  t*: 0: 0 [1: 300]\n  t1: 0: 0 [1: 300]\n\
        \nMAPPED_LIBRARIES:\n00400000-00500000 r-xp 00000000 00:00 0 /x\n";

    #[test]
    fn a_profile_has_the_stacks_that_were_asked_for() {
        let of = |which| String::from_utf8(selected(DUMP.as_bytes(), which).unwrap()).unwrap();
        assert_eq!(of(Allocations::InUse), "heap_v2/524288\n@ 0x10 0x20\nt*: 3: 300\n");
        assert_eq!(of(Allocations::All), "heap_v2/524288\n@ 0x10 0x20\nt*: 4: 400\n@ 0x30\nt*: 1: 300\n");
    }
}
