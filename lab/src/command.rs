//! Runs a program to its end, bounded in time, and keeps what it printed. Called by the rest of this crate and by
//! tests that need another tool than `kubectl` or `helm`.

use std::{ffi::OsStr, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

/// Longer than any single command of a test should take; `helm --wait` and `kubectl wait` carry shorter limits.
const LIMIT: Duration = Duration::from_secs(180);

/// What a finished program left.
#[derive(Debug, Clone)]
pub struct Output {
    /// Whether it exited with 0.
    pub success: bool,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output of a program that exited with 0; otherwise an error that shows what it said.
    ///
    /// # Errors
    /// When the program failed.
    pub fn ok(self, what: &str) -> Result<String> {
        if !self.success {
            bail!("{what} failed: {}{}", self.stderr.trim_end(), self.stdout.trim_end());
        }
        Ok(self.stdout)
    }
}

/// Runs `program` with `args`, `stdin` as its input.
///
/// # Errors
/// When it cannot be started or does not end in time.
pub async fn run<S: AsRef<OsStr>>(program: &str, args: &[S], stdin: Option<&str>) -> Result<Output> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("failed to start {program}"))?;
    let input = child.stdin.take();
    let feed = async {
        if let (Some(mut pipe), Some(text)) = (input, stdin) {
            // A program that fails early closes its input; its exit status tells more than the broken pipe.
            pipe.write_all(text.as_bytes()).await.ok();
        }
    };
    let finish = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = timeout(LIMIT, finish)
        .await
        .with_context(|| format!("{program} did not end within {} s", LIMIT.as_secs()))?
        .with_context(|| format!("failed to run {program}"))?;
    Ok(Output {
        success: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
