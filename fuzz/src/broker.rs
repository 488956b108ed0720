//! What a broker brings.

use bytes::Bytes;
use fanout_sidecar::{
    broker::{
        envelope::{self, Decoded},
        redis::resp,
    },
    domain::ChannelName,
};

/// What was decoded is decoded again from its own envelope.
pub(crate) fn envelope(data: &[u8]) {
    let channel: ChannelName = "a".parse().expect("a name");
    if let Ok(Decoded::Publication(publication)) =
        envelope::decode(channel.clone(), Bytes::copy_from_slice(data))
    {
        let again = envelope::decode(channel, envelope::encode(&publication));
        assert_eq!(again, Ok(Decoded::Publication(publication)));
    }
}

/// What Redis says does not depend on how its bytes were cut, and every range is within them.
pub(crate) fn resp(data: &[u8]) {
    let mut at = 0;
    while let Ok(Some((item, next))) = check_prefixes(data, at) {
        assert!(at < next && next <= data.len(), "an item goes forward");
        match item {
            resp::Item::Message { channel, payload } => {
                assert!(data.get(channel).is_some() && data.get(payload).is_some());
            }
            resp::Item::Role(resp::Role::Replica { host, port }) => {
                assert!(data.get(host).is_some() && data.get(port).is_some());
            }
            resp::Item::Subscribed(range)
            | resp::Item::Unsubscribed(range)
            | resp::Item::Bulk(range)
            | resp::Item::Status(range)
            | resp::Item::Error(range) => {
                assert!(data.get(range).is_some());
            }
            resp::Item::Role(_) | resp::Item::Pong | resp::Item::Other => {}
        }
        at = next;
    }
}

type Parsed = Result<Option<(resp::Item, usize)>, resp::Broken>;

fn check_prefixes(data: &[u8], at: usize) -> Parsed {
    let whole = resp::parse(data, at);
    // Long inputs are cut in fewer places.
    for end in (at..data.len()).step_by((data.len() - at).div_ceil(256).max(1)) {
        let part = resp::parse(&data[..end], at);
        assert!(part == Ok(None) || part == whole, "cut at {end}: {part:?}, whole: {whole:?}");
    }
    whole
}
