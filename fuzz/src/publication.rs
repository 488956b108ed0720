//! What clients are sent: no payload, whoever published it, breaks the frame or the event that carries it.

use std::collections::BTreeMap;

use bytes::Bytes;
use fanout_sidecar::{
    domain::{ConnectionId, Exposure, NodeId, Origin, Payload, Publication},
    protocol::WireForm,
};
use serde::Deserialize;
use serde_json::value::RawValue;

#[derive(Deserialize)]
struct Framed<'a> {
    #[serde(borrow, rename = "pub")]
    publication: Inner<'a>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Inner<'a> {
    channel: String,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    b64data: Option<String>,
    node: String,
    id: Option<String>,
    key: Option<String>,
    tags: Option<BTreeMap<String, String>>,
    publisher: Option<BTreeMap<String, String>>,
}

/// Each wire form gives the payload back, and framed ones what is exposed beside it.
pub(crate) fn publication(data: &[u8]) {
    let Some((split, rest)) = crate::parameter(data) else { return };
    let (name, payload) = rest.split_at(usize::from(split).min(rest.len()));
    let Some(channel) = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok()) else { return };
    let payload = Payload::sniff(Bytes::copy_from_slice(payload));
    // Whatever text is in a field, it stays there.
    let text = String::from_utf8_lossy(rest).into_owned();
    let publication = Publication {
        origin: Some(Origin { node: NodeId(1), node_start: 1, sequence: 1, previous_sequence: 0 }),
        id: Some(text.clone()),
        key: Some(text.as_str().into()),
        tags: vec![(text.clone(), text.clone())],
        user: Some(text.into()),
        connection: Some(ConnectionId { shard: 0, slot: u32::from(split), generation: 0 }),
        ..Publication::bare(channel, payload)
    };
    for (form, exposure) in
        WireForm::ALL.into_iter().flat_map(|form| [(form, Exposure::Hidden), (form, Exposure::Exposed)])
    {
        let mut out = Vec::new();
        form.put_publication(&mut out, &publication, exposure);
        match form {
            WireForm::Bare | WireForm::BareDeflated => {
                assert_eq!(payload_of(&out), &publication.payload.bytes()[..])
            }
            WireForm::Framed | WireForm::FramedDeflated => {
                check_framed(payload_of(&out), &publication, exposure)
            }
            WireForm::Sse => check_event(&out, &publication.payload),
        }
    }
}

/// The payload of the one frame that these bytes are.
pub(crate) fn payload_of(frame: &[u8]) -> &[u8] {
    assert!(matches!(frame[0], 0x81 | 0x82), "one whole message");
    let start = match frame[1] {
        short @ 0..=125 => (2, u64::from(short)),
        126 => (4, u64::from(u16::from_be_bytes([frame[2], frame[3]]))),
        127 => (10, u64::from_be_bytes(frame[2..10].try_into().expect("eight bytes"))),
        _ => panic!("a server does not mask"),
    };
    assert_eq!(frame.len() as u64, start.0 as u64 + start.1, "the length is right");
    &frame[start.0..]
}

fn check_framed(json: &[u8], publication: &Publication, exposure: Exposure) {
    let Framed { publication: inner } = serde_json::from_slice(json).expect("a publication is JSON");
    assert_eq!((inner.channel.as_str(), &*inner.node), (publication.channel.as_str(), "0000000000000001"));
    check_exposed(&inner, publication, exposure);
    match (&publication.payload, inner.data, inner.b64data) {
        (Payload::Text(text), Some(data), None) => {
            let as_it_is = data.get().as_bytes() == text.trim_ascii();
            let as_string =
                || serde_json::from_str::<String>(data.get()).is_ok_and(|data| data.as_bytes() == text);
            assert!(as_it_is || as_string(), "{} is not what was published", data.get());
        }
        (Payload::Binary(_), None, Some(_)) => {}
        _ => panic!("exactly one of data and b64data, by the payload's kind"),
    }
}

fn check_exposed(inner: &Inner<'_>, publication: &Publication, exposure: Exposure) {
    let Inner { id, key, tags, publisher, .. } = inner;
    match exposure {
        Exposure::Hidden => assert!(id.is_none() && key.is_none() && tags.is_none() && publisher.is_none()),
        Exposure::Exposed => {
            assert_eq!((id, key.as_deref()), (&publication.id, publication.key.as_deref()));
            assert_eq!(tags, &Some(publication.tags.iter().cloned().collect()));
            let publisher = publisher.as_ref().expect("a client published");
            assert_eq!(publisher.get("user").map(String::as_str), publication.user.as_deref());
            assert_eq!(publisher.len(), 2);
        }
    }
}

/// Reads the event as a browser does (WHATWG HTML §9.2.6).
fn check_event(event: &[u8], payload: &Payload) {
    let text = std::str::from_utf8(event).expect("an event is text");
    let body = text.strip_suffix("\n\n").expect("an event ends with an empty line");
    let (mut data, mut kind) = (Vec::new(), None);
    for line in body.split(['\n', '\r']) {
        match line.split_once(": ") {
            Some(("data", line)) => data.push(line),
            Some(("event", name)) => kind = Some(name),
            _ => panic!("`{line}` is no field"),
        }
    }
    match payload {
        Payload::Text(text) => {
            let text = std::str::from_utf8(text).expect("text");
            assert_eq!((data.join("\n"), kind), (text.replace("\r\n", "\n").replace('\r', "\n"), None));
        }
        Payload::Binary(_) => assert_eq!((data.len(), kind), (1, Some("binary"))),
    }
}
