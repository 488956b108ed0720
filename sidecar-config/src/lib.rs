//! The settings of a node: what the operator writes and the sidecar reads, so that the two cannot drift.
//!
//! There are two documents. [`BootSettings`] is read once, before any port is bound; a change of it needs a
//! new process. [`LiveSettings`] holds what may change while clients stay connected. Every field declares
//! which of the two it is by the schema extension [`CHANGE_CLASS`]. Secrets are never in a document: it names
//! the file that holds one.
//!
//! [`parse()`] reads a document: text → value tree → checked against the printed JSON Schema and for what a schema
//! cannot say, every mistake with its path → deserialised.

#![forbid(unsafe_code)]

mod boot;
mod bounds;
mod format;
mod live;
mod namespace;
mod parse;
mod pattern;
mod strict;
mod warnings;

pub use boot::{
    BootSettings, BrokerKind, BrokerSettings, Listen, MemoryBroker, RedisBroker, RedisTls, Runtime,
};
pub use live::{
    AuthSettings, Compression, DrainSettings, HubSettings, JwtAlgorithm, JwtKey, JwtSettings, Limits,
    LiveSettings, LogLevel, OnUnavailable, TlsSettings,
};
pub use namespace::{
    Access, DEFAULT_NAMESPACE, Namespace, RESERVED_NAMESPACE, RateLimit, SlowConsumer, SlowConsumerPolicy,
};
pub use parse::{Document, Mistake, Mistakes, parse, schema};
pub use pattern::Pattern;
pub use strict::{
    JsonError, YamlError, json as strict_json, merged as merged_yaml, visible, yaml as strict_yaml,
};

/// Name of the JSON Schema extension that says how a change of a field is carried out: `hot` (the running
/// process takes it over), `inPlace` (the running pod is patched) or `roll` (a new revision of pods).
pub const CHANGE_CLASS: &str = "x-fanout-change";

/// Name of the JSON Schema extension that says which version of the sidecar was the first to read a field; absent: every
/// version does. An older one refuses a document with a key that it does not know, so the operator leaves it out there.
pub const SINCE: &str = "x-fanout-since";
