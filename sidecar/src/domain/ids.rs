//! Identities of nodes and connections.

use std::fmt;

/// One run of one node; random at start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

/// A connection on this node. A slot is used again; its generation tells the connections apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    /// The shard that owns the connection.
    pub shard: u16,
    /// Its place in the shard's slab.
    pub slot: u32,
    /// How often the place was used before.
    pub generation: u32,
}

/// Error for a text that is not a client ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid client ID: expected the ID shown in `connected`, in `publisher` or in the log")]
pub struct InvalidClientId;

/// What clients, the server API and the log call a connection, unique in the cluster.
pub fn client_id(node: NodeId, connection: ConnectionId) -> String {
    let ConnectionId { shard, slot, generation } = connection;
    format!("{node}-{shard:x}-{slot:x}-{generation:x}")
}

/// The node and connection that a client id names.
///
/// # Errors
/// [`InvalidClientId`] for a text that [`client_id`] did not make.
pub fn parse_client_id(text: &str) -> Result<(NodeId, ConnectionId), InvalidClientId> {
    let mut parts = text.split('-').map(|part| u64::from_str_radix(part, 16).ok());
    let mut next = || parts.next().flatten().ok_or(InvalidClientId);
    let small = |value: u64| u32::try_from(value).map_err(|_| InvalidClientId);
    let (node, shard, slot, generation) = (next()?, next()?, next()?, next()?);
    let shard = u16::try_from(shard).map_err(|_| InvalidClientId)?;
    let connection = ConnectionId { shard, slot: small(slot)?, generation: small(generation)? };
    if client_id(NodeId(node), connection) == text {
        Ok((NodeId(node), connection))
    } else {
        Err(InvalidClientId)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_id_survives_a_round_trip_and_nothing_else_does() {
        let connection = ConnectionId { shard: 3, slot: 77, generation: u32::MAX };
        let text = client_id(NodeId(0xabc), connection);
        assert_eq!(parse_client_id(&text), Ok((NodeId(0xabc), connection)));
        for text in ["", "abc", "0-0-0-0", "0000000000000abc-3-4d", "0000000000000abc-3-4d-0-0"] {
            assert_eq!(parse_client_id(text), Err(InvalidClientId), "{text}");
        }
    }
}
