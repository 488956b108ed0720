//! Envelope v1: the bytes of a publication between nodes, in Redis and in a stream entry.
//!
//! ```text
//! F5 46 4E 01 | flags: 1 byte | header length: varint | header: protobuf | payload
//! ```
//!
//! `F5` never occurs in UTF-8, so a text that somebody publishes with `redis-cli` is never taken for an
//! envelope: what does not begin with `F5 46 4E` is a bare publication. The fourth byte is the version; another
//! one is counted and told, never parsed. Of the flags, the upper four bits must be understood by a reader and
//! the lower four may be ignored; `0x10` is a void, an envelope without a message. Unknown header fields are skipped.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use crate::domain::{ChannelName, ConnectionId, NodeId, Origin, Payload, Publication, StreamPosition};

/// What every envelope of any version begins with.
pub const MAGIC: [u8; 3] = [0xF5, 0x46, 0x4E];
/// The version that this node writes, and the only one it reads.
pub const VERSION: u8 = 1;

/// Flags that a reader must understand.
const CRITICAL_FLAGS: u8 = 0xF0;
/// Of these: there is no message, only a sequence number that was used up.
const VOID: u8 = 0x10;
/// A header of version 1 is small; its free-form fields are bounded by what the API takes.
const MAX_HEADER_BYTES: u64 = 1 << 20;

/// Claims to be an envelope but is none that this node reads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Made by a newer version.
    #[error("envelope has version {0}, this node reads version {VERSION}")]
    Version(u8),
    /// Made by a newer version.
    #[error("envelope has flags {0:#04x} that this node does not know and may not ignore")]
    Flags(u8),
    /// Ends before its payload begins.
    #[error("envelope is truncated")]
    Truncated,
    /// The header is no protobuf.
    #[error("envelope header is broken: {0}")]
    Header(String),
    /// A void of nobody.
    #[error("envelope is a void and names no node")]
    Void,
    /// Says text, holds something else.
    #[error("envelope says that its payload is text, but it is no UTF-8")]
    Text,
}

/// The header. Fields are added, never renumbered.
#[derive(Clone, PartialEq, Message)]
pub struct Header {
    /// The node that published; 0 where it was none.
    #[prost(fixed64, tag = "1")]
    pub node_id: u64,
    /// When that run of it began, in Unix milliseconds.
    #[prost(uint64, tag = "2")]
    pub node_start: u64,
    /// The publication's number on its channel, by that run.
    #[prost(uint64, tag = "3")]
    pub sequence: u64,
    /// The number before it; 0 where the publisher does not know.
    #[prost(uint64, tag = "4")]
    pub previous_sequence: u64,
    /// Life of the channel's stream.
    #[prost(fixed64, tag = "5")]
    pub epoch: u64,
    /// Place in the stream, from 1; 0 on channels without one.
    #[prost(uint64, tag = "6")]
    pub offset: u64,
    /// By the publisher's clock, in Unix milliseconds; 0 where it is not known.
    #[prost(uint64, tag = "7")]
    pub published_at_ms: u64,
    /// The microseconds beyond these milliseconds.
    #[prost(uint32, tag = "16")]
    pub published_at_rest_us: u32,
    /// Whether the payload is binary, not text.
    #[prost(bool, tag = "8")]
    pub binary: bool,
    /// Name that the publisher gave it.
    #[prost(string, tag = "9")]
    pub id: String,
    /// Of publications with the same key the latest counts.
    #[prost(string, tag = "10")]
    pub key: String,
    /// Of publications with the same key, the one with the higher version counts.
    #[prost(uint64, tag = "11")]
    pub version: u64,
    /// Free labels; `map<string, string>` on the wire.
    #[prost(message, repeated, tag = "12")]
    pub tags: Vec<Tag>,
    /// Client id of the one connection that is not to receive it.
    #[prost(string, tag = "13")]
    pub exclude_connection: String,
    /// The client that published, where something is told of it.
    #[prost(message, optional, tag = "14")]
    pub client_info: Option<ClientInfo>,
    /// W3C `traceparent`.
    #[prost(string, tag = "15")]
    pub trace_context: String,
}

/// One label.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Tag {
    /// Its name.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Its value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// The client that published.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ClientInfo {
    /// Its user; empty where it has none.
    #[prost(string, tag = "1")]
    pub user: String,
    /// Its connection. Only where the publishing node exposes publishers: elsewhere no subscriber would be told it, and
    /// some nine bytes would be added to a header of thirty. The receiving node decides again, by its own settings.
    #[prost(message, optional, tag = "2")]
    pub connection: Option<Connection>,
}

/// A connection on the node that published. With that node's id it is a client id, in a third of the bytes of its text.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Connection {
    /// The shard that owns it; 16 bits.
    #[prost(uint32, tag = "1")]
    pub shard: u32,
    /// Its place there.
    #[prost(uint32, tag = "2")]
    pub slot: u32,
    /// How often the place was used before.
    #[prost(uint32, tag = "3")]
    pub generation: u32,
}

/// A decoded envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// A publication.
    Publication(Publication),
    /// No message: the publication of this origin repeated an earlier one.
    Void(Origin),
}

/// Returns the publication as an envelope.
pub fn encode(publication: &Publication) -> Bytes {
    put(&Header::of(publication), 0, publication.payload.bytes())
}

/// Returns the envelope that stands for the publication where it turns out to repeat an earlier one.
pub fn encode_void(publication: &Publication) -> Bytes {
    let Header { node_id, node_start, sequence, previous_sequence, .. } = Header::of(publication);
    put(&Header { node_id, node_start, sequence, previous_sequence, ..Header::default() }, VOID, &[])
}

fn put(header: &Header, flags: u8, payload: &[u8]) -> Bytes {
    let header_length = header.encoded_len();
    let mut bytes = BytesMut::with_capacity(MAGIC.len() + 7 + header_length + payload.len());
    bytes.put_slice(&MAGIC);
    bytes.put_u8(VERSION);
    bytes.put_u8(flags);
    prost::encoding::encode_varint(header_length as u64, &mut bytes);
    header.encode_raw(&mut bytes);
    bytes.put_slice(payload);
    bytes.freeze()
}

/// Decodes what was published on `channel`: an envelope, or a bare payload. The payload shares the memory of `bytes`.
///
/// # Errors
/// [`Malformed`] for bytes that claim to be an envelope and are none of version 1.
pub fn decode(channel: ChannelName, mut bytes: Bytes) -> Result<Decoded, Malformed> {
    if !bytes.starts_with(&MAGIC) {
        return Ok(Decoded::Publication(Publication::bare(channel, Payload::sniff(bytes))));
    }
    bytes.advance(MAGIC.len());
    match bytes.try_get_u8().map_err(|_| Malformed::Truncated)? {
        VERSION => {}
        version => return Err(Malformed::Version(version)),
    }
    let flags = bytes.try_get_u8().map_err(|_| Malformed::Truncated)?;
    if flags & CRITICAL_FLAGS & !VOID != 0 {
        return Err(Malformed::Flags(flags));
    }
    let header = take_header(&mut bytes)?;
    if flags & VOID != 0 {
        return header.origin().map(Decoded::Void).ok_or(Malformed::Void);
    }
    header.into_publication(channel, bytes).map(Decoded::Publication)
}

fn take_header(bytes: &mut Bytes) -> Result<Header, Malformed> {
    let length = prost::encoding::decode_varint(bytes).map_err(|_| Malformed::Truncated)?;
    if length > MAX_HEADER_BYTES {
        return Err(Malformed::Header(format!("{length} bytes, at most {MAX_HEADER_BYTES} are read")));
    }
    let length = usize::try_from(length).map_err(|_| Malformed::Truncated)?;
    if bytes.len() < length {
        return Err(Malformed::Truncated);
    }
    Header::decode(bytes.split_to(length)).map_err(|error| Malformed::Header(error.to_string()))
}

// === impl Header ===

impl Header {
    fn of(publication: &Publication) -> Self {
        let Publication {
            channel: _,
            payload,
            origin,
            position,
            published_at_us,
            id,
            key,
            tags,
            user,
            connection,
        } = publication;
        let published_at_us = published_at_us.unwrap_or(0);
        let origin =
            origin.unwrap_or(Origin { node: NodeId(0), node_start: 0, sequence: 0, previous_sequence: 0 });
        let position = position.unwrap_or(StreamPosition { epoch: 0, offset: 0 });
        let tag = |(key, value): &(String, String)| Tag { key: key.clone(), value: value.clone() };
        Self {
            node_id: origin.node.0,
            node_start: origin.node_start,
            sequence: origin.sequence,
            previous_sequence: origin.previous_sequence,
            epoch: position.epoch,
            offset: position.offset,
            published_at_ms: published_at_us / 1_000,
            published_at_rest_us: (published_at_us % 1_000) as u32,
            binary: matches!(payload, Payload::Binary(_)),
            id: id.clone().unwrap_or_default(),
            key: key.as_deref().unwrap_or_default().to_owned(),
            tags: tags.iter().map(tag).collect(),
            client_info: (user.is_some() || connection.is_some()).then(|| ClientInfo {
                user: user.as_deref().unwrap_or_default().to_owned(),
                connection: connection.map(Connection::from),
            }),
            ..Self::default()
        }
    }

    fn origin(&self) -> Option<Origin> {
        let &Self { node_id, node_start, sequence, previous_sequence, .. } = self;
        (node_id != 0).then_some(Origin { node: NodeId(node_id), node_start, sequence, previous_sequence })
    }

    fn into_publication(self, channel: ChannelName, payload: Bytes) -> Result<Publication, Malformed> {
        let payload = match Payload::sniff(payload) {
            Payload::Text(bytes) | Payload::Binary(bytes) if self.binary => Payload::Binary(bytes),
            Payload::Text(bytes) => Payload::Text(bytes),
            Payload::Binary(_) => return Err(Malformed::Text),
        };
        let origin = self.origin();
        let Self { epoch, offset, .. } = self;
        let ClientInfo { user, connection } = self.client_info.unwrap_or_default();
        Ok(Publication {
            channel,
            payload,
            origin,
            position: (offset != 0).then_some(StreamPosition { epoch, offset }),
            published_at_us: (self.published_at_ms != 0).then(|| {
                self.published_at_ms.saturating_mul(1_000).saturating_add(self.published_at_rest_us.into())
            }),
            id: (!self.id.is_empty()).then_some(self.id),
            key: (!self.key.is_empty()).then(|| self.key.into()),
            tags: self.tags.into_iter().map(|Tag { key, value }| (key, value)).collect(),
            user: (!user.is_empty()).then(|| user.into()),
            connection: connection.and_then(Connection::id),
        })
    }
}

// === impl Connection ===

impl Connection {
    /// The connection on its node; `None` for numbers that no node gives.
    fn id(self) -> Option<ConnectionId> {
        let Self { shard, slot, generation } = self;
        Some(ConnectionId { shard: u16::try_from(shard).ok()?, slot, generation })
    }
}

impl From<ConnectionId> for Connection {
    fn from(ConnectionId { shard, slot, generation }: ConnectionId) -> Self {
        Self { shard: shard.into(), slot, generation }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full() -> Publication {
        Publication {
            channel: "chat:room-1".parse().unwrap(),
            payload: Payload::Text(Bytes::from_static(b"hi")),
            origin: Some(Origin {
                node: NodeId(0x0102_0304_0506_0708),
                node_start: 1_700_000_000_000,
                sequence: 7,
                previous_sequence: 6,
            }),
            position: Some(StreamPosition { epoch: 9, offset: 300 }),
            published_at_us: Some(1_700_000_000_123_000),
            id: Some("m1".into()),
            key: None,
            tags: vec![("k".into(), "v".into())],
            user: Some("ann".into()),
            connection: None,
        }
    }

    /// Of a client without a user, in a namespace that exposes publishers.
    fn exposed() -> Publication {
        let connection = Some(ConnectionId { shard: 3, slot: 300, generation: 0 });
        let origin = full().origin.map(|origin| Origin { previous_sequence: 0, ..origin });
        let bare = Publication::bare(full().channel, full().payload);
        Publication { origin, connection, ..bare }
    }

    const GOLDEN: &[u8] = b"\xF5FN\x01\x00\x3a\
        \x09\x08\x07\x06\x05\x04\x03\x02\x01\
        \x10\x80\xd0\x95\xff\xbc\x31\
        \x18\x07\
        \x20\x06\
        \x29\x09\x00\x00\x00\x00\x00\x00\x00\
        \x30\xac\x02\
        \x38\xfb\xd0\x95\xff\xbc\x31\
        \x4a\x02m1\
        \x62\x06\x0a\x01k\x12\x01v\
        \x72\x05\x0a\x03ann\
        hi";

    const GOLDEN_EXPOSED: &[u8] = b"\xF5FN\x01\x00\x1b\
        \x09\x08\x07\x06\x05\x04\x03\x02\x01\
        \x10\x80\xd0\x95\xff\xbc\x31\
        \x18\x07\
        \x72\x07\x12\x05\x08\x03\x10\xac\x02\
        hi";

    #[test]
    fn the_bytes_are_those_of_version_1() {
        assert_eq!(encode(&full()).escape_ascii().to_string(), GOLDEN.escape_ascii().to_string());
        assert_eq!(decode(full().channel, Bytes::from_static(GOLDEN)), Ok(Decoded::Publication(full())));
        let finer = Publication { published_at_us: Some(1_700_000_000_123_456), ..full() };
        assert_eq!(decode(full().channel, encode(&finer)), Ok(Decoded::Publication(finer)));
        let bare = Publication::bare("a".parse().unwrap(), Payload::Binary(Bytes::from_static(b"\xff")));
        assert_eq!(encode(&bare), &b"\xF5FN\x01\x00\x02\x40\x01\xff"[..]);
        assert_eq!(encode(&exposed()).escape_ascii().to_string(), GOLDEN_EXPOSED.escape_ascii().to_string());
        assert_eq!(
            decode(full().channel, Bytes::from_static(GOLDEN_EXPOSED)),
            Ok(Decoded::Publication(exposed()))
        );
    }

    /// The header as a node reads it that knows no connections.
    #[derive(Clone, PartialEq, Message)]
    struct OlderHeader {
        #[prost(fixed64, tag = "1")]
        node_id: u64,
        #[prost(message, optional, tag = "14")]
        client_info: Option<OlderClientInfo>,
    }

    #[derive(Clone, PartialEq, Eq, Message)]
    struct OlderClientInfo {
        #[prost(string, tag = "1")]
        user: String,
    }

    #[test]
    fn an_older_node_skips_the_connection_and_this_one_numbers_that_are_none() {
        let both = Publication { user: Some("ann".into()), ..exposed() };
        assert_eq!(decode(both.channel.clone(), encode(&both)), Ok(Decoded::Publication(both.clone())));
        for (publication, user) in [(both, "ann"), (exposed(), "")] {
            let mut bytes = encode(&publication).slice(MAGIC.len() + 2..);
            let length = prost::encoding::decode_varint(&mut bytes).unwrap() as usize;
            let older = OlderHeader::decode(bytes.split_to(length)).unwrap();
            assert_eq!(older.node_id, publication.origin.unwrap().node.0);
            assert_eq!(older.client_info, Some(OlderClientInfo { user: user.to_owned() }));
        }
        let connection = Some(Connection { shard: 65_536, slot: 1, generation: 1 });
        let header =
            Header { client_info: Some(ClientInfo { user: String::new(), connection }), ..Header::default() };
        let bare = Publication::bare(full().channel, full().payload);
        assert_eq!(decode(full().channel, put(&header, 0, b"hi")), Ok(Decoded::Publication(bare)));
    }

    #[test]
    fn a_payload_without_the_magic_is_a_bare_publication() {
        let channel: ChannelName = "a".parse().unwrap();
        for (bytes, payload) in [
            (&b"{\"hi\":1}"[..], Payload::Text(Bytes::from_static(b"{\"hi\":1}"))),
            (b"", Payload::Text(Bytes::new())),
            (b"\xF5", Payload::Binary(Bytes::from_static(b"\xF5"))),
            (b"\xF5F\x00", Payload::Binary(Bytes::from_static(b"\xF5F\x00"))),
        ] {
            let expected = Decoded::Publication(Publication::bare(channel.clone(), payload));
            assert_eq!(decode(channel.clone(), Bytes::copy_from_slice(bytes)), Ok(expected));
        }
    }

    #[test]
    fn unknown_header_fields_and_harmless_flags_are_skipped() {
        let unknown = b"\xF5FN\x01\x0f\x08\xfa\x06\x03new\x40\x01hi";
        let bare = Publication::bare("a".parse().unwrap(), Payload::Binary(Bytes::from_static(b"hi")));
        let expected = Decoded::Publication(bare);
        assert_eq!(decode("a".parse().unwrap(), Bytes::from_static(unknown)), Ok(expected));
    }

    #[test]
    fn what_only_claims_to_be_an_envelope_is_malformed() {
        for (bytes, error) in [
            (&b"\xF5FN"[..], Malformed::Truncated),
            (b"\xF5FN\x02\x00\x00hi", Malformed::Version(2)),
            (b"\xF5FN\x01", Malformed::Truncated),
            (b"\xF5FN\x01\x20\x00hi", Malformed::Flags(0x20)),
            (b"\xF5FN\x01\x10\x00", Malformed::Void),
            (b"\xF5FN\x01\x00", Malformed::Truncated),
            (b"\xF5FN\x01\x00\xff", Malformed::Truncated),
            (b"\xF5FN\x01\x00\x05hi", Malformed::Truncated),
            (b"\xF5FN\x01\x00\x00\xff", Malformed::Text),
        ] {
            assert_eq!(decode("a".parse().unwrap(), Bytes::copy_from_slice(bytes)), Err(error), "{bytes:x?}");
        }
        let broken = decode("a".parse().unwrap(), Bytes::from_static(b"\xF5FN\x01\x00\x01\x0ahi"));
        assert!(matches!(broken, Err(Malformed::Header(_))), "{broken:?}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_decode_panic(tail: Vec<u8>, flags: u8, envelope: bool) {
            let mut bytes = Vec::new();
            if envelope {
                bytes.extend([0xF5, 0x46, 0x4E, 1, flags & 0x1f]);
            }
            bytes.extend(tail);
            let _ = decode("a".parse().unwrap(), bytes.into());
        }

        #[test]
        fn what_was_encoded_is_decoded(payload: Vec<u8>, sequence: u64, id in "[a-z]{1,9}", tags in prop::collection::vec(("[a-z]{0,3}", "\\PC{0,3}"), 0..4), connection: Option<(u16, u32, u32)>) {
            let mut publication = full();
            publication.payload = Payload::sniff(payload.into());
            publication.origin.as_mut().unwrap().sequence = sequence;
            (publication.id, publication.tags) = (Some(id), tags);
            publication.connection =
                connection.map(|(shard, slot, generation)| ConnectionId { shard, slot, generation });
            let void = Decoded::Void(publication.origin.unwrap());
            prop_assert_eq!(decode(publication.channel.clone(), encode_void(&publication)), Ok(void));
            let decoded = decode(publication.channel.clone(), encode(&publication));
            prop_assert_eq!(decoded, Ok(Decoded::Publication(publication)));
        }
    }
}
