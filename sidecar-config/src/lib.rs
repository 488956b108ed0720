//! Settings of a node, written by the operator and read by the sidecar; sharing the types keeps the two from drifting
//! apart.
//!
//! There are two documents. [`BootSettings`] is read once, before any port is bound; changing it requires a new
//! process. [`LiveSettings`] holds the settings that may change while clients stay connected. Every field declares its
//! kind of change with the schema extension [`CHANGE_CLASS`]. Documents never contain secrets, only the names of files
//! that hold them.
//!
//! [`parse()`] reads a document: text → value tree → validation against the printed JSON Schema and the rules that a
//! schema cannot express, reporting every mistake with its path → deserialisation.

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

/// Name of the JSON Schema extension that declares how a change of a field is applied: `hot` (by the running process),
/// `inPlace` (by patching the running pod) or `roll` (with a new revision of pods).
pub const CHANGE_CLASS: &str = "x-fanout-change";

/// Name of the JSON Schema extension that declares the first sidecar version that reads a field; fields without it are
/// read by every version. Older versions reject a document with a key they do not know, so the operator omits the field
/// for them.
pub const SINCE: &str = "x-fanout-since";
