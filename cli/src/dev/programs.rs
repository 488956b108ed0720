//! Where the programs are that this command starts.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

/// The sidecar: as told, else beside this program, else on the PATH.
pub(crate) fn sidecar(told: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(told) = told {
        let found = is_program(told);
        return if found {
            Ok(told.to_owned())
        } else {
            bail!(
                "{} is not an executable: set --sidecar or FANOUT_SIDECAR to fanout-sidecar",
                told.display()
            )
        };
    }
    let own = env::current_exe().context("failed to find out where this program is")?;
    let beside = own.parent().map(|directory| directory.join("fanout-sidecar"));
    beside
        .filter(|path| is_program(path))
        .or_else(|| on_path("fanout-sidecar"))
        .context("fanout-sidecar was not found beside this program or on the PATH: build it with `cargo build -p fanout-sidecar`, or set FANOUT_SIDECAR")
}

/// A server that speaks Redis.
pub(crate) fn redis_server() -> anyhow::Result<PathBuf> {
    on_path("valkey-server").or_else(|| on_path("redis-server")).context(
        "redis-server was not found on the PATH: install it (Debian and Ubuntu: apt-get install redis-server; macOS: brew install redis), or use `redis: {memory: {}}` with one replica",
    )
}

/// A command-line client that speaks Redis.
pub(crate) fn redis_cli() -> anyhow::Result<PathBuf> {
    on_path("valkey-cli").or_else(|| on_path("redis-cli")).context(
        "redis-cli was not found on the PATH: install it (Debian and Ubuntu: apt-get install redis-tools; macOS: brew install redis)",
    )
}

fn on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|directory| directory.join(name))
        .find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
