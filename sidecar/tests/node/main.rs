//! The whole node, in this process, on ports of its own choice, as clients, backends and the kubelet see it.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod admin;
mod api;
mod auth;
mod binary;
mod browser;
mod centrifugo;
mod debug;
mod deflate;
mod drain;
mod fanout;
mod hot;
mod ingress;
mod limits;
mod observability;
mod outage;
mod prometheus;
mod publisher;
#[path = "../redis/server.rs"]
#[expect(dead_code, reason = "made for the tests of the Redis broker, which use all of it")]
mod redis_server;
mod service;
mod settings;
mod support;
