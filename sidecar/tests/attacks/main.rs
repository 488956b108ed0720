//! What bad clients may cost: a real sidecar process under attack, its memory and CPU as the kernel counts them.
//!
//! Each test has a bound, and a good client that must not notice. Bounds are those of a debug build on a busy machine:
//! some times what is measured, and far below what a missing limit would cost.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod churn;
mod dead;
mod frames;
mod handshake;
mod memory;
mod stuck;
mod support;
mod tls;
