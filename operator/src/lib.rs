//! The operator of Fanout: it turns a `FanoutCluster` into pods, keeps them so, and tells the truth about them.
//!
//! [`api`] holds the custom resource, [`controller`] the reconcile in its five steps, [`resources`] a builder for
//! each child, [`redis`] the broker that was chosen. What is pure is public, so that `kubectl fanout dev` and `plan` run
//! the same code.

#![forbid(unsafe_code)]

pub mod api;
pub mod api_client;
pub mod args;
pub mod controller;
pub mod events;
pub mod health;
pub mod lease;
pub mod metrics;
pub mod plan;
pub mod redis;
pub mod resources;
pub mod scrape;
