//! The lock of the mailbox and the pipe. `model` has another one, which tries every order.

pub(super) use std::sync::{Mutex, MutexGuard, PoisonError};

/// Runs a test; in `model` once for each order in which its threads may come.
#[cfg(test)]
pub(super) fn every_order(test: impl Fn() + Send + Sync + 'static) {
    test();
}
