//! A real Kubernetes cluster for the end-to-end tests: connects to one, drives it by real `kubectl` and `helm`, and
//! opens the clients a test listens with.
//!
//! `lab/lab.sh` makes the cluster; tests run inside its network namespace (`lab/lab.sh exec cargo nextest …`) and find
//! it through `KUBECONFIG`, as they find any other cluster. Called by `e2e` and `bench`; knows nothing of the operator
//! or the sidecar beyond what a user of theirs knows.

#![forbid(unsafe_code)]

mod audit;
mod cluster;
mod command;
mod namespace;
mod pod;
mod sse;
mod wait;
mod websocket;

pub use audit::{ApiRequest, AuditLog};
pub use cluster::{Cluster, Unavailable};
pub use command::{Output, run};
pub use namespace::Namespace;
pub use pod::{Pod, pods};
pub use sse::{Event, EventStream};
pub use wait::{await_condition, sample};
pub use websocket::{Frame, WebSocket};
