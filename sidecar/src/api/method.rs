//! The methods: what each takes, does and answers. Fields that are not listed are skipped, as Centrifugo does, so
//! that its clients may send what this server does not know.

use std::{collections::BTreeMap, future::Future};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures::future::join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use sidecar_config::Pattern;

use super::{
    Api,
    error::{ApiError, ErrorBody},
};
use crate::{
    bridge::{Disconnected, NodeInfo, Survey, Who},
    broker::Published,
    domain::{ChannelName, CloseReason, Payload, StreamPosition, parse_client_id},
    work::{Draft, Lane},
};

/// Channels of one broadcast.
const MAX_CHANNELS: usize = 10_000;
/// Bytes of a conflation key, or of an idempotency key.
const MAX_KEY: usize = 255;
/// Labels of a message, and bytes of their names and values: they travel with it to every node.
const MAX_TAGS: usize = 64;
const MAX_TAG_BYTES: usize = 16 * 1_024;

/// A method of the server API.
pub(super) trait Method: 'static {
    /// For metrics and documents.
    const NAME: &'static str;
    /// Where it is.
    const PATH: &'static str;
    /// What it does.
    const SUMMARY: &'static str;
    /// What it takes.
    type Request: DeserializeOwned + JsonSchema + Send;
    /// What it answers.
    type Reply: Serialize + JsonSchema;

    /// Does it.
    fn call(api: &Api, request: Self::Request) -> impl Future<Output = Result<Self::Reply, ApiError>> + Send;
}

// === publish ===

pub(super) struct Publish;

/// A message for one channel.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct PublishRequest {
    /// Where to.
    channel: String,
    /// The message, any JSON: subscribers get its text as it is sent here.
    #[serde(default, deserialize_with = "given")]
    #[schemars(with = "Option<serde_json::Value>")]
    data: Option<Box<RawValue>>,
    /// The message as base64, in place of `data`: subscribers get its bytes as a binary message.
    #[serde(default)]
    b64data: Option<String>,
    /// A name of the message. Within five minutes a channel takes one message of each name from backends; a repetition,
    /// on whatever node, is answered as the first one was, with `duplicate`.
    #[serde(default)]
    #[schemars(length(min = 1, max = 255))]
    idempotency_key: Option<String>,
    /// What the message is about: where the namespace conflates, a slow client receives the latest of each key.
    #[serde(default)]
    #[schemars(length(max = 255))]
    key: Option<String>,
    /// Free labels, at most 16 KiB of names and values, which framed subscribers receive where the namespace sets
    /// `exposePublisher`.
    #[serde(default)]
    #[schemars(extend("maxProperties" = MAX_TAGS))]
    tags: BTreeMap<String, String>,
}

/// Where the message is in its channel's stream; nothing on a channel without one.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(super) struct PublishReply {
    /// Its number.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    /// Which life of the stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<String>,
    /// The channel had the message already, by its `idempotency_key`; it was not published again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    duplicate: bool,
}

impl Method for Publish {
    const NAME: &'static str = "publish";
    const PATH: &'static str = "/api/publish";
    const SUMMARY: &'static str = "Sends a message to the subscribers of a channel, on every node.";
    type Request = PublishRequest;
    type Reply = PublishReply;

    async fn call(api: &Api, request: PublishRequest) -> Result<PublishReply, ApiError> {
        let PublishRequest { channel, data, b64data, idempotency_key, key, tags } = request;
        let labels = Labels::new(idempotency_key, key, tags)?;
        let payload = payload(data, b64data)?;
        let channel = channel_name(api, &channel)?;
        labels.publish(api, channel, payload).await.await
    }
}

// === broadcast ===

pub(super) struct Broadcast;

/// A message for many channels.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct BroadcastRequest {
    /// Where to; each is tried, whatever becomes of the others.
    #[schemars(length(min = 1, max = 10_000))]
    channels: Vec<String>,
    /// The message, any JSON: subscribers get its text as it is sent here.
    #[serde(default, deserialize_with = "given")]
    #[schemars(with = "Option<serde_json::Value>")]
    data: Option<Box<RawValue>>,
    /// The message as base64, in place of `data`: subscribers get its bytes as a binary message.
    #[serde(default)]
    b64data: Option<String>,
    /// A name of the message. Within five minutes a channel takes one message of each name from backends; a repetition,
    /// on whatever node, is answered as the first one was, with `duplicate`.
    #[serde(default)]
    #[schemars(length(min = 1, max = 255))]
    idempotency_key: Option<String>,
    /// What the message is about: where the namespace conflates, a slow client receives the latest of each key.
    #[serde(default)]
    #[schemars(length(max = 255))]
    key: Option<String>,
    /// Free labels, at most 16 KiB of names and values, which framed subscribers receive where the namespace sets
    /// `exposePublisher`.
    #[serde(default)]
    #[schemars(extend("maxProperties" = MAX_TAGS))]
    tags: BTreeMap<String, String>,
}

/// What became of the message in each channel.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct BroadcastReply {
    /// In the order of the request's channels.
    responses: Vec<BroadcastPart>,
}

/// What became of the message in one channel: one of both.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum BroadcastPart {
    /// It was published.
    Result(PublishReply),
    /// It was not.
    Error(ErrorBody),
}

impl Method for Broadcast {
    const NAME: &'static str = "broadcast";
    const PATH: &'static str = "/api/broadcast";
    const SUMMARY: &'static str = "Sends one message to the subscribers of many channels.";
    type Request = BroadcastRequest;
    type Reply = BroadcastReply;

    async fn call(api: &Api, request: BroadcastRequest) -> Result<BroadcastReply, ApiError> {
        let BroadcastRequest { channels, data, b64data, idempotency_key, key, tags } = request;
        let labels = Labels::new(idempotency_key, key, tags)?;
        if channels.is_empty() || channels.len() > MAX_CHANNELS {
            return Err(ApiError::BadRequest(format!("`channels` must list 1 to {MAX_CHANNELS} channels")));
        }
        let payload = payload(data, b64data)?;
        let mut answers = Vec::with_capacity(channels.len());
        for channel in channels {
            // Waits for room, one channel after the other, and leaves in their order; answers are awaited together.
            let published = match channel_name(api, &channel) {
                Ok(channel) => Ok(labels.publish(api, channel, payload.clone()).await),
                Err(error) => Err(error),
            };
            answers.push(async { published?.await });
        }
        let answers = join_all(answers).await;
        Ok(BroadcastReply { responses: answers.into_iter().map(BroadcastPart::from).collect() })
    }
}

// === channels ===

pub(super) struct Channels;

/// Which channels.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct ChannelsRequest {
    /// Only names that fit, `*` standing for any characters; all without it.
    #[serde(default)]
    pattern: Option<String>,
}

/// Channels with subscribers.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ChannelsReply {
    /// By name.
    channels: BTreeMap<String, ChannelInfo>,
    /// Whether every node has answered. Where not, there may be more channels and more subscribers.
    complete: bool,
}

/// One channel.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ChannelInfo {
    /// Its subscribers on all nodes.
    num_clients: u32,
}

impl Method for Channels {
    const NAME: &'static str = "channels";
    const PATH: &'static str = "/api/channels";
    const SUMMARY: &'static str = "Lists the channels that have subscribers, and how many, on all nodes.";
    type Request = ChannelsRequest;
    type Reply = ChannelsReply;

    async fn call(api: &Api, request: ChannelsRequest) -> Result<ChannelsReply, ApiError> {
        let parse = |text: String| text.parse::<Pattern>();
        let pattern = request.pattern.filter(|text| !text.is_empty()).map(parse).transpose();
        let pattern = pattern.map_err(|error| ApiError::BadRequest(format!("`pattern`: {error}")))?;
        let Survey { found, complete } = api.peers.channels(pattern).await;
        let info = |(name, num_clients): (ChannelName, u32)| (name.to_string(), ChannelInfo { num_clients });
        Ok(ChannelsReply { channels: found.into_iter().map(info).collect(), complete })
    }
}

// === info ===

pub(super) struct Info;

/// Nothing.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct InfoRequest {}

/// The cluster.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct InfoReply {
    /// Its nodes, by name.
    nodes: Vec<NodeReply>,
    /// Whether these are all. Not while Redis is away, for five minutes after a node fell silent without saying that it
    /// leaves, and where DNS lists more nodes than are heard.
    complete: bool,
}

/// One node.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct NodeReply {
    /// Another for each run of it.
    uid: String,
    /// The pod's name.
    name: String,
    /// Version of its program.
    version: String,
    /// Connections that are open.
    num_clients: u32,
    /// Channels with subscribers on it.
    num_channels: u32,
    /// Seconds since it began.
    uptime: u64,
}

impl Method for Info {
    const NAME: &'static str = "info";
    const PATH: &'static str = "/api/info";
    const SUMMARY: &'static str = "Lists the nodes of the cluster and what they hold.";
    type Request = InfoRequest;
    type Reply = InfoReply;

    async fn call(api: &Api, _: InfoRequest) -> Result<InfoReply, ApiError> {
        let node = |node: NodeInfo| NodeReply {
            uid: node.id.to_string(),
            name: node.name,
            version: node.version,
            num_clients: node.counts.connections,
            num_channels: node.counts.channels,
            uptime: node.uptime.as_secs(),
        };
        let Survey { found, complete } = api.peers.nodes();
        Ok(InfoReply { nodes: found.into_iter().map(node).collect(), complete })
    }
}

// === disconnect ===

pub(super) struct Disconnect;

/// Whose connections. They are closed with a code that tells the client not to come back by itself.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct DisconnectRequest {
    /// All connections of this user; with `client`, that one and only if it is this user's.
    #[serde(default)]
    user: Option<String>,
    /// This one connection, by the id that it was told as `connected.client`; the log and `publisher.client` have the same.
    #[serde(default)]
    client: Option<String>,
}

/// How many were closed.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct DisconnectReply {
    /// By all nodes that answered in time.
    num_clients: usize,
    /// Whether every node has answered. Where not, those that did not close the connections that are open now once they
    /// are heard again, for five minutes.
    complete: bool,
}

impl Method for Disconnect {
    const NAME: &'static str = "disconnect";
    const PATH: &'static str = "/api/disconnect";
    const SUMMARY: &'static str = "Closes the connections of a user, or one connection, on whatever node.";
    type Request = DisconnectRequest;
    type Reply = DisconnectReply;

    async fn call(api: &Api, request: DisconnectRequest) -> Result<DisconnectReply, ApiError> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let user = given(request.user).map(Into::into);
        let client = given(request.client).map(|client| parse_client_id(&client)).transpose();
        let client = client.map_err(|error| ApiError::BadRequest(format!("`client`: {error}")))?;
        let who = match (user, client) {
            (user, Some((node, connection))) => Who::Client { node, connection, user },
            (Some(user), None) => Who::User(user),
            (None, None) => return Err(ApiError::BadRequest("give `user`, `client` or both".to_owned())),
        };
        let Disconnected { closed, complete } = api.peers.disconnect(who, CloseReason::Disconnected).await;
        Ok(DisconnectReply { num_clients: closed, complete })
    }
}

// === shared ===

/// `null` is a message too; only what is not there is none.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

fn payload(data: Option<Box<RawValue>>, b64data: Option<String>) -> Result<Payload, ApiError> {
    match (data, b64data) {
        // Clients that write every field give an empty `b64data` beside `data`.
        (Some(data), None) => text_payload(data),
        (Some(data), Some(empty)) if empty.is_empty() => text_payload(data),
        (None, Some(text)) => match BASE64_STANDARD.decode(text) {
            Ok(bytes) => Ok(Payload::Binary(bytes.into())),
            Err(error) => Err(ApiError::BadRequest(format!("`b64data` is no base64: {error}"))),
        },
        (None, None) => Err(ApiError::BadRequest("`data` is missing".to_owned())),
        (Some(_), Some(_)) => Err(ApiError::BadRequest("give one of `data` and `b64data`".to_owned())),
    }
}

fn text_payload(data: Box<RawValue>) -> Result<Payload, ApiError> {
    Ok(Payload::Text(Bytes::from(String::from(Box::<str>::from(data)))))
}

/// What a message carries beside its payload.
struct Labels {
    idempotency_key: Option<String>,
    key: Option<String>,
    tags: Vec<(String, String)>,
}

impl Labels {
    fn new(
        idempotency_key: Option<String>,
        key: Option<String>,
        tags: BTreeMap<String, String>,
    ) -> Result<Self, ApiError> {
        // Both are compared and kept with each message, so they are short.
        for (name, text) in [("idempotency_key", &idempotency_key), ("key", &key)] {
            let length = text.as_ref().map_or(0, String::len);
            if length > MAX_KEY {
                let text = format!("`{name}` has {length} bytes, at most {MAX_KEY} are allowed");
                return Err(ApiError::BadRequest(text));
            }
        }
        let bytes: usize = tags.iter().map(|(name, value)| name.len() + value.len()).sum();
        if tags.len() > MAX_TAGS || bytes > MAX_TAG_BYTES {
            let text = format!(
                "`tags` has {} entries of {bytes} bytes, at most {MAX_TAGS} of {MAX_TAG_BYTES} bytes are allowed",
                tags.len()
            );
            return Err(ApiError::BadRequest(text));
        }
        // Centrifugo's clients send an empty one for none.
        let idempotency_key = idempotency_key.filter(|key| !key.is_empty());
        Ok(Self { idempotency_key, key, tags: tags.into_iter().collect() })
    }

    /// Publishes once there is room; the inner future resolves with the outcome.
    async fn publish(
        &self,
        api: &Api,
        channel: ChannelName,
        payload: Payload,
    ) -> impl Future<Output = Result<PublishReply, ApiError>> + Send + use<> {
        let Self { idempotency_key, key, tags } = self;
        let keyed = idempotency_key.is_some();
        let draft = Draft {
            id: idempotency_key.clone(),
            idempotency_key: idempotency_key.clone(),
            key: key.clone().map(Into::into),
            tags: tags.clone(),
            ..Draft::new(channel, payload)
        };
        let room = api.publisher.room(Lane::Api, &draft).await;
        let published = api.publisher.publish(draft, room);
        async move { published.await.map(PublishReply::from).map_err(|error| ApiError::of(error, keyed)) }
    }
}

/// A channel that exists, whoever may publish in it.
fn channel_name(api: &Api, text: &str) -> Result<ChannelName, ApiError> {
    let rules = api.door.rules();
    let max = rules.hub.limits.channel_name_bytes as usize;
    if text.len() > max {
        let bytes = text.len();
        return Err(ApiError::BadRequest(format!(
            "channel name has {bytes} bytes, at most {max} are allowed (hub.limits.channelNameBytes)"
        )));
    }
    let name: ChannelName = text.parse()?;
    rules.policies.channel(&name)?;
    Ok(name)
}

impl From<Published> for PublishReply {
    fn from(Published { position, duplicate }: Published) -> Self {
        let epoch = position.map(|StreamPosition { epoch, .. }| format!("{epoch:016x}"));
        Self { offset: position.map(|position| position.offset), epoch, duplicate }
    }
}

impl From<Result<PublishReply, ApiError>> for BroadcastPart {
    fn from(result: Result<PublishReply, ApiError>) -> Self {
        result.map_or_else(|error| Self::Error(error.body()), Self::Result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Payload, ApiError> {
        let request: PublishRequest = serde_json::from_str(json).unwrap();
        payload(request.data, request.b64data)
    }

    #[test]
    fn data_is_sent_as_the_text_it_came_in() {
        for text in [r#"{"b": 1,  "a":[1.50]}"#, r#""plain""#, "null", "0", r#""ü""#] {
            let payload = parse(&format!(r#"{{"channel": "c", "data": {text}, "skip_history": true}}"#));
            assert_eq!(payload, Ok(Payload::Text(Bytes::copy_from_slice(text.as_bytes()))), "{text}");
        }
    }

    #[test]
    fn tags_are_bounded_in_number_and_in_bytes() {
        let tags =
            |count: usize, bytes: usize| (0..count).map(|i| (format!("{i:02}"), "x".repeat(bytes))).collect();
        assert!(Labels::new(None, None, tags(64, 254)).is_ok());
        for (count, bytes) in [(65, 0), (64, 255), (1, 1_100_000)] {
            let error = Labels::new(None, None, tags(count, bytes)).map(drop).unwrap_err();
            assert!(error.to_string().contains("`tags` has"), "{error}");
        }
    }

    #[test]
    fn b64data_is_sent_as_bytes_and_one_of_both_is_needed() {
        let binary = parse(r#"{"channel": "c", "b64data": "AP8="}"#);
        assert_eq!(binary, Ok(Payload::Binary(Bytes::from_static(&[0, 255]))));
        for (json, text) in [
            (r#"{"channel": "c"}"#, "`data` is missing"),
            (r#"{"channel": "c", "data": 1, "b64data": "AA=="}"#, "give one of"),
            (r#"{"channel": "c", "b64data": "A"}"#, "no base64"),
        ] {
            assert!(parse(json).unwrap_err().to_string().contains(text), "{json}");
        }
    }
}
