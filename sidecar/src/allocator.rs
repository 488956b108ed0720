//! jemalloc: the program's allocator, its account of memory and its samples of the heap. `.cargo/config.toml` configures
//! it where it is built.

use std::{fs::File, path::Path};

use fanout_sidecar::profile::{Allocator, ProfileError};
use futures::{FutureExt, future::BoxFuture};
use jemalloc_pprof::PROF_CTL;
use tikv_jemalloc_ctl::{Access, AsName, epoch, stats};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What the node asks of it.
#[derive(Debug)]
pub(crate) struct Jemalloc;

impl Jemalloc {
    /// From here on the heap is sampled.
    pub(crate) async fn sampling() -> Self {
        jemalloc_pprof::activate_jemalloc_profiling().await;
        Self
    }
}

impl Allocator for Jemalloc {
    fn bytes(&self) -> Vec<(&'static str, u64)> {
        // The statistics are those of the last epoch.
        if epoch::advance().is_err() {
            return Vec::new();
        }
        let kinds = [
            ("allocated", stats::allocated::read()),
            ("active", stats::active::read()),
            ("metadata", stats::metadata::read()),
            ("resident", stats::resident::read()),
            ("mapped", stats::mapped::read()),
            ("retained", stats::retained::read()),
        ];
        kinds.into_iter().filter_map(|(kind, bytes)| Some((kind, bytes.ok()? as u64))).collect()
    }

    fn requests(&self) -> Option<u64> {
        // All arenas together have the number `MALLCTL_ARENAS_ALL`, 4,096 (jemalloc(3)).
        let small: u64 = "stats.arenas.4096.small.nrequests\0".name().read().ok()?;
        let large: u64 = "stats.arenas.4096.large.nrequests\0".name().read().ok()?;
        Some(small + large)
    }

    fn dump(&self) -> BoxFuture<'_, Result<File, ProfileError>> {
        async {
            let control = PROF_CTL.as_ref().ok_or(ProfileError::NoHeap)?;
            use_writable_directory();
            control.lock().await.dump().map_err(|error| ProfileError::Failed(error.to_string()))
        }
        .boxed()
    }
}

/// jemalloc dumps into a file. A pod's root is read-only and has no `/tmp`, but its shared memory is there.
fn use_writable_directory() {
    const SHARED_MEMORY: &str = "/dev/shm";
    if !std::env::temp_dir().is_dir() && Path::new(SHARED_MEMORY).is_dir() {
        // Refused only where it was done before.
        let _ = tempfile::env::override_temp_dir(Path::new(SHARED_MEMORY));
    }
}
