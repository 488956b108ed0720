//! A runtime of its own, for what must not wait for all the rest.

use tokio::runtime::{Builder, Handle, Runtime};

use super::StartError;

/// A runtime, one thread for each core, which ends with its value: unlike tokio's, it may be dropped within another.
pub(super) struct Threads(Option<Runtime>);

impl Threads {
    pub(super) fn start(name: &str) -> Result<Self, StartError> {
        let runtime = Builder::new_multi_thread().thread_name(name).enable_all().build();
        Ok(Self(Some(runtime.map_err(StartError::Threads)?)))
    }

    pub(super) fn handle(&self) -> &Handle {
        self.0.as_ref().expect("taken only when dropped").handle()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
