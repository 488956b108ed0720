//! Polls until something is true. The only place where a test waits.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::time::sleep;

/// Short enough that a measured delay is worth reading, long enough that `kubectl` in a loop leaves the CPU to others.
const INTERVAL: Duration = Duration::from_millis(250);

/// Polls `probe` until it gives a value, for at most `deadline`. A probe's error counts as "not yet"; the last one is
/// part of the failure.
///
/// # Errors
/// When `deadline` passes first.
pub async fn await_condition<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let began = Instant::now();
    let mut last_error = None;
    while began.elapsed() < deadline {
        match probe().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => last_error = None,
            Err(error) => last_error = Some(error),
        }
        sleep(INTERVAL).await;
    }
    let failure = format!("gave up after {} s waiting for {what}", deadline.as_secs());
    match last_error {
        Some(error) => Err(error).context(failure),
        None => bail!(failure),
    }
}

/// Checks `holds` again and again for the whole of `span`: for what must stay true.
///
/// # Errors
/// At the first check that is false or fails.
pub async fn sample(what: &str, span: Duration, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < span {
        if !holds().await? {
            bail!("{what} ceased to hold after {:.1} s", began.elapsed().as_secs_f32());
        }
        sleep(INTERVAL).await;
    }
    Ok(())
}
