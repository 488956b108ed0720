//! A Fanout node: the WebSocket hub and the broker bridge.
//!
//! Bytes at the left, other nodes at the right, a thread per core between:
//! `http` hands a socket to a `shard`; the shard speaks the client's `protocol`, asks `session` what a client
//! may do and sends what must wait as work to the control runtime; `work` and `bridge` join it to the `hub` and
//! the `broker`. `app` alone knows every module.

#![forbid(unsafe_code)]

pub mod admin;
pub mod api;
pub mod app;
pub mod auth;
pub mod bridge;
pub mod broker;
pub mod config;
pub mod domain;
pub mod drain;
pub mod http;
pub mod hub;
pub mod latency;
pub mod metrics;
pub mod profile;
pub mod protocol;
pub mod session;
pub mod shard;
pub mod telemetry;
pub mod work;

#[cfg(test)]
mod tests;
