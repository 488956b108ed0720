use serde_json::{Value, json};

use super::*;
use crate::domain::{ConnectionId, NodeId, Origin};

fn body(frame: &[u8]) -> Value {
    let start = match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    serde_json::from_slice(&frame[start..]).expect("a JSON object")
}

fn publication(payload: Payload) -> Publication {
    Publication::bare("chat:\"room\"".parse().unwrap(), payload)
}

fn encoded(publication: &Publication) -> Value {
    encoded_as(Exposure::Hidden, publication)
}

fn encoded_as(exposure: Exposure, publication: &Publication) -> Value {
    let mut out = Vec::new();
    put_publication(&mut out, publication, exposure);
    body(&out)
}

fn command(text: &str) -> Command {
    match parse(text, 100) {
        Message::Command(command) => command,
        other @ (Message::Mistake { .. } | Message::Refresh { .. }) => panic!("{text} gave {other:?}"),
    }
}

fn error(text: &str) -> (String, Option<String>) {
    match parse(text, 100) {
        Message::Mistake { error, id } => (error.to_string(), id),
        other @ (Message::Command(_) | Message::Refresh { .. }) => panic!("{text} gave {other:?}"),
    }
}

#[test]
fn a_json_payload_is_embedded_and_any_other_text_is_a_string() {
    for (text, data) in [
        (r#"{"a":[1,2.50]}"#, json!({"a": [1, 2.50]})),
        (" 1 ", json!(1)),
        ("hello", json!("hello")),
        ("{broken", json!("{broken")),
        ("a\nb\u{1}", json!("a\nb\u{1}")),
        ("", json!("")),
    ] {
        let value = encoded(&publication(Payload::Text(Bytes::from_static(text.as_bytes()))));
        assert_eq!(value, json!({"pub": {"channel": "chat:\"room\"", "data": data}}));
    }
}

#[test]
fn a_publication_tells_its_position_node_and_time_where_known() {
    let origin = Origin { node: NodeId(255), node_start: 1, sequence: 2, previous_sequence: 1 };
    let publication = Publication {
        origin: Some(origin),
        position: Some(StreamPosition { epoch: 16, offset: 3 }),
        published_at_us: Some(1_700_000_000_000_999),
        ..publication(Payload::Binary(Bytes::from_static(&[0, 255])))
    };
    assert_eq!(
        encoded(&publication),
        json!({"pub": {"channel": "chat:\"room\"", "b64data": "AP8=", "epoch": "10", "offset": 3,
            "node": "00000000000000ff", "publishedAt": 1_700_000_000_000_u64}})
    );
}

#[test]
fn what_is_known_of_a_publisher_is_told_where_it_is_exposed_and_nowhere_else() {
    let origin = Origin { node: NodeId(255), node_start: 1, sequence: 2, previous_sequence: 1 };
    let plain = Publication { origin: Some(origin), ..publication(Payload::Text("1".into())) };
    let hidden = json!({"channel": "chat:\"room\"", "data": 1, "node": "00000000000000ff"});
    let connection = Some(ConnectionId { shard: 1, slot: 2, generation: 3 });
    let (user, client) = (Some("ann \"x\""), "00000000000000ff-1-2-3");
    let labelled = Publication {
        id: Some("m,\"1".into()),
        key: Some("k".into()),
        tags: vec![("b".into(), "1".into()), ("\"a".into(), "{}".into())],
        ..plain.clone()
    };
    for (publication, told) in [
        (plain.clone(), json!({})),
        (labelled, json!({"id": "m,\"1", "key": "k", "tags": {"b": "1", "\"a": "{}"}})),
        (Publication { user: user.map(Into::into), ..plain.clone() }, json!({"publisher": {"user": user}})),
        (Publication { connection, ..plain.clone() }, json!({"publisher": {"client": client}})),
        (
            Publication { user: user.map(Into::into), connection, ..plain.clone() },
            json!({"publisher": {"user": user, "client": client}}),
        ),
    ] {
        assert_eq!(encoded(&publication), json!({"pub": hidden}));
        let mut exposed = hidden.clone();
        exposed.as_object_mut().unwrap().extend(told.as_object().unwrap().clone());
        assert_eq!(encoded_as(Exposure::Exposed, &publication), json!({"pub": exposed}));
    }
}

#[test]
fn frames_of_any_size_have_the_right_header() {
    for size in [0, 1, 60, 90, 100, 125, 126, 127, 200, 65_300, 65_500, 65_535, 65_536, 70_000] {
        let text = format!("\"{}\"", "x".repeat(size));
        let mut out = b"before".to_vec();
        put_publication(&mut out, &publication(Payload::Text(text.into())), Exposure::Hidden);
        let frame = &out[6..];
        let (length, start) = match frame[1] {
            126 => (u64::from(u16::from_be_bytes([frame[2], frame[3]])), 4),
            127 => (u64::from_be_bytes(frame[2..10].try_into().unwrap()), 10),
            short => (u64::from(short), 2),
        };
        assert_eq!(length, (frame.len() - start) as u64, "{size}");
        assert_eq!(body(frame)["pub"]["data"].as_str().unwrap().len(), size);
    }
}

#[test]
fn a_publish_carries_the_json_text_as_it_was_sent() {
    let channel: ChannelName = "a".parse().unwrap();
    assert_eq!(
        command(r#"{"publish":{"channel":"a","data":{ "x" : 1.0 },"id":"7"}}"#),
        Command::Publish {
            channel: channel.clone(),
            payload: Payload::Text(r#"{ "x" : 1.0 }"#.into()),
            id: Some("7".to_owned()),
            idempotency_key: None
        }
    );
    assert_eq!(
        command(r#"{"publish":{"channel":"a","b64data":"AP8="}}"#),
        Command::Publish {
            channel: channel.clone(),
            payload: Payload::Binary(vec![0, 255].into()),
            id: None,
            idempotency_key: None
        }
    );
    assert_eq!(
        command(r#"{"publish":{"channel":"a","data":1,"idempotencyKey":"k"}}"#),
        Command::Publish {
            channel: channel.clone(),
            payload: Payload::Text("1".into()),
            id: None,
            idempotency_key: Some("k".to_owned())
        }
    );
    assert_eq!(
        command(r#"{"publish":{"channel":"a","b64data":""}}"#),
        Command::Publish {
            channel: channel.clone(),
            payload: Payload::Binary("".into()),
            id: None,
            idempotency_key: None
        }
    );
    assert_eq!(
        command("\u{feff}{\"publish\":{\"channel\":\"a\",\"data\":null}}"),
        Command::Publish { channel, payload: Payload::Text("null".into()), id: None, idempotency_key: None }
    );
}

#[test]
fn a_token_is_bounded_whatever_a_message_may_have() {
    let refresh = |bytes| format!(r#"{{"refresh":{{"token":"{}","id":"9"}}}}"#, "x".repeat(bytes));
    assert!(matches!(parse(&refresh(65_536), 1 << 20), Message::Refresh { .. }));
    let (text, id) = error(&refresh(65_537));
    assert!(text.contains("token has 65537 bytes"), "{text}");
    assert_eq!(id.as_deref(), Some("9"));
}

#[test]
fn mistakes_say_what_is_wrong_and_keep_the_id() {
    for (text, expected, id) in [
        (r#"{"publish":{"channel":"a","id":"7"}}"#, "exactly one of `data` and `b64data`", Some("7")),
        (r#"{"publish":{"channel":"a b","data":1,"id":"7"}}"#, "white space", Some("7")),
        (r#"{"publish":{"channel":"a","b64data":"!"}}"#, "b64data", None),
        (r#"{"publish":{"channel":"a","data":1,"dta":2}}"#, "unknown field `dta`", None),
        (r#"{"publish":{"channel":"a","data":1,"publisher":{}}}"#, "unknown field `publisher`", None),
        (r#"{"subscribe":{"channel":"a","since":{},"id":"8"}}"#, "keeps no history", Some("8")),
        (r#"{"hello":{}}"#, "unknown variant `hello`", None),
        ("[]", "no message of fanout.v1", None),
        (r#"{"publish":["a",1]}"#, "expected an object", None),
        (r#"{"subscribe":["a","1",null,null,null]}"#, "expected an object", None),
        (r#"{"unsubscribe":["a","1",null,null,null]}"#, "expected an object", None),
        (r#"{"ack":["a",1,true,"1"]}"#, "expected an object", None),
        (r#"["publish",{"channel":"a","data":1}]"#, "no message of fanout.v1", None),
        ("", "no message of fanout.v1", None),
    ] {
        let (message, found) = error(text);
        assert!(message.contains(expected), "{text}: {message}");
        assert_eq!(found.as_deref(), id, "{text}");
    }
    let (message, _) = error(&format!(r#"{{"publish":{{"channel":"a","data":"{}"}}}}"#, "x".repeat(100)));
    assert!(message.contains("payload has 102 bytes, at most 100"), "{message}");
}

#[test]
fn replies_name_the_channel_and_the_id() {
    let channel: ChannelName = "a".parse().unwrap();
    let reply = |reply: Reply<'_>| {
        let mut out = Vec::new();
        put_reply(&mut out, &reply);
        body(&out)
    };
    let connection = ConnectionId { shard: 0, slot: 16, generation: 1 };
    assert_eq!(
        reply(Reply::Connected { node: NodeId(1), connection }),
        json!({"connected": {"client": "0000000000000001-0-10-1"}})
    );
    assert_eq!(
        reply(Reply::Subscribed { channel: &channel, id: Some("1") }),
        json!({"subscribed": {"channel": "a", "id": "1"}})
    );
    assert_eq!(
        reply(Reply::Error { error: &CommandError::Unavailable, channel: Some(&channel), id: None }),
        json!({"error": {"code": 100, "message": CommandError::Unavailable.to_string(), "temporary": true,
            "channel": "a"}})
    );
    assert_eq!(
        reply(Reply::Gap { channel: &channel, reason: "slowConsumer", from: None, to: None }),
        json!({"gap": {"channel": "a", "reason": "slowConsumer"}})
    );
}
