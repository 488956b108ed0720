//! The end-to-end tests: one binary, a module a subject. Those whose name begins with `alone_` take away what the
//! others stand on; nextest runs them by themselves. Those with `lab_` in front need what only the lab has, its audit log or
//! the nodes' containerd; against another cluster they are left out and counted as skipped (`.config/nextest.toml`).

mod app;
mod chart;
mod delivery;
mod examples;
mod lab;
mod lifecycle;
mod plan;
mod policy;
mod redis;
mod repair;
mod rollout;
mod scale;
mod tls;
