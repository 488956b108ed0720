//! `kubectl fanout`, as it is built beside the tests.

use std::env;

use anyhow::{Context, Result, ensure};
use fanout_lab::{Namespace, Output, run};

/// Runs `kubectl fanout` in a namespace, with `stdin` as its input; it may fail.
///
/// # Errors
/// When it is not built, or cannot be run.
pub async fn kubectl_fanout(namespace: &Namespace, args: &[&str], stdin: Option<&str>) -> Result<Output> {
    let test = env::current_exe().context("the test does not know where it is")?;
    let built =
        test.parent().and_then(|deps| deps.parent()).context("the test is in no directory of cargo")?;
    let program = built.join("kubectl-fanout");
    ensure!(program.exists(), "{} is missing: run `cargo build -p kubectl-fanout`", program.display());
    let program = program.to_str().context("the directory of the build is not UTF-8")?;
    run(program, &[args, &["--namespace", namespace.name()]].concat(), stdin).await
}
