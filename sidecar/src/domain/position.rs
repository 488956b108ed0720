//! Places in a channel's stream.

/// A place in a durable channel's stream. Offsets of different epochs do not compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamPosition {
    /// Which life of the stream.
    pub epoch: u64,
    /// Publications since the epoch began, this one included.
    pub offset: u64,
}
