//! Framed mode (`fanout.v1`): one JSON object with one key a message.
//!
//! A payload that is JSON text is embedded as it is, any other text as a JSON string, bytes as base64 (`b64data`).
//! `data` of a client's publication becomes the payload as the JSON text that was sent, so that a round trip
//! changes nothing.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::super::{
    Advice, Message, Reply,
    websocket::{Opcode, frame},
};
use crate::domain::{
    ChannelName, Command, CommandError, Exposure, Object, Payload, Publication, StreamPosition, client_id,
};

/// What a client sends.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum ClientMessage<'a> {
    #[serde(borrow)]
    Publish(Object<Publish<'a>>),
    Subscribe(Object<Target>),
    Unsubscribe(Object<Target>),
    Ack(Object<Acknowledge>),
    Refresh(Object<Refresh>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Publish<'a> {
    channel: String,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    b64data: Option<String>,
    id: Option<String>,
    idempotency_key: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Target {
    channel: String,
    id: Option<String>,
    // Asked for where a channel has a history: answered, not ignored.
    since: Option<serde_json::Value>,
    last: Option<serde_json::Value>,
    durable: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Acknowledge {
    channel: String,
    offset: u64,
    #[serde(default)]
    #[expect(dead_code, reason = "part of the language; acted on where a channel has a history")]
    cumulative: bool,
    id: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Refresh {
    token: String,
    id: Option<String>,
}

/// What the server sends beside publications.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum ServerMessage<'a> {
    Connected(Connected),
    Subscribed(Told<'a>),
    Unsubscribed(Told<'a>),
    Published(Published<'a>),
    Refreshed(Renewed<'a>),
    Gap(Gap<'a>),
    Error(Failed<'a>),
    Reconnect(ReconnectAt),
}

#[derive(Serialize)]
struct Connected {
    client: String,
}

#[derive(Serialize)]
struct Told<'a> {
    channel: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

#[derive(Serialize)]
struct Published<'a> {
    channel: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    duplicate: bool,
}

#[derive(Serialize)]
struct Renewed<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

#[derive(Serialize)]
struct Gap<'a> {
    channel: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<u64>,
    reason: &'a str,
}

#[derive(Serialize)]
struct Failed<'a> {
    code: u16,
    message: String,
    temporary: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReconnectAt {
    after_ms: u64,
    jitter_ms: u64,
    /// Where to resume on each channel; none while no channel keeps a history.
    positions: [(); 0],
}

/// Who published. A client without a token has no `user`, one whose node did not name it no `client`.
#[derive(Serialize)]
struct Publisher<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<String>,
}

/// An object of a publication's labels.
struct Tags<'a>(&'a [(String, String)]);

/// Bytes of a message around its payload: key names, a channel name with escapes, an id.
const ENVELOPE: usize = 8 * 1_024;
/// An id comes back in replies, so it is kept short.
const MAX_ID: usize = 128;
/// Far more than a token that fits a request's headers.
const MAX_TOKEN: usize = 64 * 1_024;
/// Enough for any scheme of unique names.
const MAX_IDEMPOTENCY_KEY: usize = 255;

/// The most bytes of a message that carries `max_payload` bytes, in base64 at worst.
pub(in crate::protocol) fn max_message(max_payload: usize) -> usize {
    max_payload.div_ceil(3) * 4 + ENVELOPE
}

// === from clients ===

/// What a client's text message means.
pub fn parse(message: &str, max_payload: usize) -> Message {
    let parsed: Result<ClientMessage<'_>, _> =
        serde_json::from_str(message.strip_prefix('\u{feff}').unwrap_or(message));
    let command = match parsed {
        Ok(ClientMessage::Publish(Object(publish))) => publish.into_command(max_payload),
        Ok(ClientMessage::Subscribe(Object(target))) => {
            target.into_command(|channel, id| Command::Subscribe { channel, id })
        }
        Ok(ClientMessage::Unsubscribe(Object(target))) => {
            target.into_command(|channel, id| Command::Unsubscribe { channel, id })
        }
        Ok(ClientMessage::Ack(Object(acknowledge))) => acknowledge.into_command(),
        Ok(ClientMessage::Refresh(Object(Refresh { token, id }))) => {
            return match short(id) {
                Ok(id) if token.len() > MAX_TOKEN => {
                    mistake(&format!("token has {} bytes, at most {MAX_TOKEN} are allowed", token.len()), id)
                }
                Ok(id) => Message::Refresh { token, id },
                Err((error, id)) => Message::Mistake { error, id },
            };
        }
        Err(error) => return mistake(&format!("no message of fanout.v1: {error}"), None),
    };
    match command {
        Ok(command) => Message::Command(command),
        Err((error, id)) => Message::Mistake { error, id },
    }
}

/// The answer to a binary message, which this mode does not know.
pub fn binary() -> Message {
    mistake("a binary message; fanout.v1 is one JSON object a text message, bytes go in `b64data`", None)
}

fn mistake(text: &str, id: Option<String>) -> Message {
    Message::Mistake { error: CommandError::BadRequest(text.to_owned()), id }
}

/// `null` is a payload too, not a missing one.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

type Mistake = (CommandError, Option<String>);

impl Publish<'_> {
    fn into_command(self, max_payload: usize) -> Result<Command, Mistake> {
        let Self { channel, data, b64data, id, idempotency_key } = self;
        let id = short(id)?;
        let channel = parse_channel(&channel, id.as_ref())?;
        let fail = |text: String| (CommandError::BadRequest(text), id.clone());
        let payload = match (data, b64data) {
            (Some(data), None) => Payload::Text(Bytes::copy_from_slice(data.get().as_bytes())),
            (None, Some(text)) => {
                let bytes = STANDARD.decode(text).map_err(|error| fail(format!("b64data: {error}")))?;
                Payload::Binary(bytes.into())
            }
            _ => return Err(fail("publish needs exactly one of `data` and `b64data`".to_owned())),
        };
        let length = payload.bytes().len();
        if length > max_payload {
            return Err(fail(format!("payload has {length} bytes, at most {max_payload} are allowed")));
        }
        let key_length = idempotency_key.as_ref().map(String::len);
        if key_length.is_some_and(|length| length == 0 || length > MAX_IDEMPOTENCY_KEY) {
            return Err(fail(format!("idempotencyKey must have 1 to {MAX_IDEMPOTENCY_KEY} bytes")));
        }
        Ok(Command::Publish { channel, payload, id, idempotency_key })
    }
}

impl Target {
    fn into_command(
        self,
        command: impl FnOnce(ChannelName, Option<String>) -> Command,
    ) -> Result<Command, Mistake> {
        let Self { channel, id, since, last, durable } = self;
        let id = short(id)?;
        let channel = parse_channel(&channel, id.as_ref())?;
        if since.is_some() || last.is_some() || durable.is_some() {
            return Err((CommandError::NoHistory, id));
        }
        Ok(command(channel, id))
    }
}

impl Acknowledge {
    fn into_command(self) -> Result<Command, Mistake> {
        let Self { channel, offset, cumulative: _, id } = self;
        let id = short(id)?;
        let channel = parse_channel(&channel, id.as_ref())?;
        Ok(Command::Acknowledge { channel, offset, id })
    }
}

fn parse_channel(text: &str, id: Option<&String>) -> Result<ChannelName, Mistake> {
    text.parse().map_err(|error| (CommandError::BadRequest(format!("channel: {error}")), id.cloned()))
}

fn short(id: Option<String>) -> Result<Option<String>, Mistake> {
    match id {
        Some(id) if id.len() > MAX_ID => {
            let text = format!("id has {} bytes, at most {MAX_ID} are allowed", id.len());
            Err((CommandError::BadRequest(text), None))
        }
        id => Ok(id),
    }
}

// === to clients ===

/// Appends a publication.
pub(in crate::protocol) fn put_publication(out: &mut Vec<u8>, publication: &Publication, exposure: Exposure) {
    let expected = publication.payload.bytes().len() + publication.channel.as_str().len() + 100;
    frame::put_with(out, Opcode::Text, expected, |out| put_message_of(out, publication, exposure));
}

/// Appends the message of a publication, without a frame. Written by hand, since a payload may be embedded as it is: it was checked to be JSON.
pub(in crate::protocol) fn put_message_of(out: &mut Vec<u8>, publication: &Publication, exposure: Exposure) {
    let Publication { channel, payload, origin, position, published_at_us, .. } = publication;
    out.extend_from_slice(br#"{"pub":{"channel":"#);
    put_json(out, channel.as_str());
    match payload {
        Payload::Text(bytes) => {
            out.extend_from_slice(br#","data":"#);
            put_data(out, bytes);
        }
        Payload::Binary(bytes) => {
            out.extend_from_slice(br#","b64data":""#);
            out.extend_from_slice(STANDARD.encode(bytes).as_bytes());
            out.push(b'"');
        }
    }
    if let Some(StreamPosition { epoch, offset }) = position {
        out.extend_from_slice(format!(r#","epoch":"{epoch:x}","offset":{offset}"#).as_bytes());
    }
    if let Some(origin) = origin {
        out.extend_from_slice(format!(r#","node":"{}""#, origin.node).as_bytes());
    }
    if let Some(at) = published_at_us {
        out.extend_from_slice(format!(r#","publishedAt":{}"#, at / 1_000).as_bytes());
    }
    match exposure {
        Exposure::Hidden => {}
        Exposure::Exposed => put_exposed(out, publication),
    }
    out.extend_from_slice(b"}}");
}

fn put_exposed(out: &mut Vec<u8>, publication: &Publication) {
    let Publication { id, key, tags, user, connection, origin, .. } = publication;
    if let Some(id) = id {
        put_field(out, "id", id);
    }
    if let Some(key) = key {
        put_field(out, "key", key);
    }
    if !tags.is_empty() {
        put_field(out, "tags", &Tags(tags));
    }
    let client = origin.zip(*connection).map(|(origin, connection)| client_id(origin.node, connection));
    if user.is_some() || client.is_some() {
        put_field(out, "publisher", &Publisher { user: user.as_deref(), client });
    }
}

/// Appends one more field of an object that has some.
fn put_field<T: Serialize + ?Sized>(out: &mut Vec<u8>, name: &str, value: &T) {
    out.push(b',');
    put_json(out, name);
    out.push(b':');
    put_json(out, value);
}

fn put_data(out: &mut Vec<u8>, text: &[u8]) {
    if serde_json::from_slice::<&RawValue>(text).is_ok() {
        out.extend_from_slice(text.trim_ascii());
    } else {
        put_json(out, &String::from_utf8_lossy(text));
    }
}

/// Appends a reply.
pub(in crate::protocol) fn put_reply(out: &mut Vec<u8>, reply: &Reply<'_>) {
    put_message(
        out,
        &match reply {
            Reply::Connected { node, connection } => {
                ServerMessage::Connected(Connected { client: client_id(*node, *connection) })
            }
            Reply::Subscribed { channel, id } => ServerMessage::Subscribed(Told::new(channel, *id)),
            Reply::Unsubscribed { channel, id } => ServerMessage::Unsubscribed(Told::new(channel, *id)),
            Reply::Published { channel, id, duplicate } => {
                ServerMessage::Published(Published { channel: channel.as_str(), id, duplicate: *duplicate })
            }
            Reply::Refreshed { id } => ServerMessage::Refreshed(Renewed { id: *id }),
            Reply::Error { error, channel, id } => ServerMessage::Error(Failed {
                code: error.code(),
                message: error.to_string(),
                temporary: error.is_temporary(),
                channel: channel.map(ChannelName::as_str),
                id: *id,
            }),
            Reply::Gap { channel, reason, from, to } => ServerMessage::Gap(Gap {
                channel: channel.as_str(),
                from: from.map(|position| position.offset),
                to: to.map(|position| position.offset),
                reason,
            }),
        },
    );
}

/// Appends the advice when to come back.
pub(in crate::protocol) fn put_reconnect(out: &mut Vec<u8>, advice: Advice) {
    let Advice { after, jitter } = advice;
    let ms = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    put_message(
        out,
        &ServerMessage::Reconnect(ReconnectAt { after_ms: ms(after), jitter_ms: ms(jitter), positions: [] }),
    );
}

impl<'a> Told<'a> {
    fn new(channel: &'a ChannelName, id: Option<&'a str>) -> Self {
        Self { channel: channel.as_str(), id }
    }
}

impl Serialize for Tags<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

fn put_message(out: &mut Vec<u8>, message: &ServerMessage<'_>) {
    frame::put_with(out, Opcode::Text, 100, |out| put_json(out, message));
}

fn put_json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("names and numbers always serialise, and a Vec takes all");
}

#[cfg(test)]
mod tests;
