//! Fuzz targets: what must hold for any bytes that a client, a broker or a settings file may hold. Each target is a
//! function that panics where it does not.
//!
//! `make fuzz` drives them by libFuzzer; `tests/corpus.rs` replays what it found worth keeping, without it.

#![forbid(unsafe_code)]

mod broker;
mod connection;
mod frames;
mod publication;
mod request;
mod settings;

/// A target and its name, which is that of its directory in `corpus/`.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 10] = [
    ("channel_name", settings::channel_name),
    ("commands", frames::commands),
    ("connection", connection::connection),
    ("deflate", frames::deflate),
    ("envelope", broker::envelope),
    ("frames", frames::frames),
    ("publication", publication::publication),
    ("request", request::request),
    ("resp", broker::resp),
    ("settings", settings::settings),
];

/// The first byte, as a parameter, and the rest.
fn parameter(data: &[u8]) -> Option<(u8, &[u8])> {
    data.split_first().map(|(first, rest)| (*first, rest))
}
