//! Methods of the server API: their requests, behaviour and replies. Unknown fields are ignored, as in Centrifugo, so
//! that its clients may send fields that this server does not know.

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

/// Maximum number of channels in one broadcast.
const MAX_CHANNELS: usize = 10_000;
/// Maximum length of a conflation key or an idempotency key, in bytes.
const MAX_KEY: usize = 255;
/// Limits on the number of tags of a message and on the bytes of their names and values. Tags travel with the message
/// to every node.
const MAX_TAGS: usize = 64;
const MAX_TAG_BYTES: usize = 16 * 1_024;

/// Method of the server API.
pub(super) trait Method: 'static {
    /// Name in metrics and documents.
    const NAME: &'static str;
    /// Path of the endpoint.
    const PATH: &'static str;
    /// Summary for the OpenAPI document.
    const SUMMARY: &'static str;
    /// Body of the request.
    type Request: DeserializeOwned + JsonSchema + Send;
    /// Result of a successful call.
    type Reply: Serialize + JsonSchema;

    /// Executes the call.
    fn call(api: &Api, request: Self::Request) -> impl Future<Output = Result<Self::Reply, ApiError>> + Send;
}

// === publish ===

pub(super) struct Publish;

/// Request to publish a message to one channel.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct PublishRequest {
    /// Channel to publish to.
    channel: String,
    /// Message as a JSON value. Subscribers receive the JSON text exactly as it was sent.
    #[serde(default, deserialize_with = "given")]
    #[schemars(with = "Option<serde_json::Value>")]
    data: Option<Box<RawValue>>,
    /// Message as base64, instead of `data`. Subscribers receive the decoded bytes as a binary message.
    #[serde(default)]
    b64data: Option<String>,
    /// Idempotency key of the message. Within five minutes, a channel accepts only one message from backends with a
    /// given key. A repetition, on any node, returns the result of the first call with `duplicate` set.
    #[serde(default)]
    #[schemars(length(min = 1, max = 255))]
    idempotency_key: Option<String>,
    /// Conflation key. In namespaces that conflate, a slow client receives only the latest message of each key.
    #[serde(default)]
    #[schemars(length(max = 255))]
    key: Option<String>,
    /// Arbitrary labels of the message, limited to 16 KiB of names and values in total. Sent to framed subscribers if
    /// the namespace sets `exposePublisher`.
    #[serde(default)]
    #[schemars(extend("maxProperties" = MAX_TAGS))]
    tags: BTreeMap<String, String>,
}

/// Position of the message in its channel's stream. Empty for a channel without a stream.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(super) struct PublishReply {
    /// Offset of the message in the stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    /// Epoch of the stream. Changes when the stream is recreated.
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<String>,
    /// Set to `true` if the channel already received a message with this `idempotency_key`; the message was not
    /// published again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    duplicate: bool,
}

impl Method for Publish {
    const NAME: &'static str = "publish";
    const PATH: &'static str = "/api/publish";
    const SUMMARY: &'static str = "Publishes a message to the subscribers of a channel on all nodes.";
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

/// Request to publish a message to several channels.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct BroadcastRequest {
    /// Channels to publish to. Each is attempted, regardless of failures in other channels.
    #[schemars(length(min = 1, max = 10_000))]
    channels: Vec<String>,
    /// Message as a JSON value. Subscribers receive the JSON text exactly as it was sent.
    #[serde(default, deserialize_with = "given")]
    #[schemars(with = "Option<serde_json::Value>")]
    data: Option<Box<RawValue>>,
    /// Message as base64, instead of `data`. Subscribers receive the decoded bytes as a binary message.
    #[serde(default)]
    b64data: Option<String>,
    /// Idempotency key of the message. Within five minutes, a channel accepts only one message from backends with a
    /// given key. A repetition, on any node, returns the result of the first call with `duplicate` set.
    #[serde(default)]
    #[schemars(length(min = 1, max = 255))]
    idempotency_key: Option<String>,
    /// Conflation key. In namespaces that conflate, a slow client receives only the latest message of each key.
    #[serde(default)]
    #[schemars(length(max = 255))]
    key: Option<String>,
    /// Arbitrary labels of the message, limited to 16 KiB of names and values in total. Sent to framed subscribers if
    /// the namespace sets `exposePublisher`.
    #[serde(default)]
    #[schemars(extend("maxProperties" = MAX_TAGS))]
    tags: BTreeMap<String, String>,
}

/// Results of a broadcast.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct BroadcastReply {
    /// One result per channel, in the order of the request.
    responses: Vec<BroadcastPart>,
}

/// Result for one channel: either `result` or `error`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum BroadcastPart {
    /// The message was published.
    Result(PublishReply),
    /// The message was not published.
    Error(ErrorBody),
}

impl Method for Broadcast {
    const NAME: &'static str = "broadcast";
    const PATH: &'static str = "/api/broadcast";
    const SUMMARY: &'static str = "Publishes one message to the subscribers of several channels.";
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
            // Waits for room one channel at a time, which keeps their order; the answers are awaited together.
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

/// Request to list channels.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct ChannelsRequest {
    /// Pattern that channel names must match; `*` matches any sequence of characters. If unset, all channels are
    /// listed.
    #[serde(default)]
    pattern: Option<String>,
}

/// Channels with subscribers.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ChannelsReply {
    /// Channels, keyed by name.
    channels: BTreeMap<String, ChannelInfo>,
    /// Set to `true` if all nodes responded. If `false`, there may be more channels and more subscribers.
    complete: bool,
}

/// Information about one channel.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ChannelInfo {
    /// Number of subscribers on all nodes.
    num_clients: u32,
}

impl Method for Channels {
    const NAME: &'static str = "channels";
    const PATH: &'static str = "/api/channels";
    const SUMMARY: &'static str =
        "Lists the channels that have subscribers on any node, with the number of subscribers.";
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

/// Request for information about the cluster. Has no fields.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct InfoRequest {}

/// Information about the cluster.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct InfoReply {
    /// Nodes of the cluster, sorted by name.
    nodes: Vec<NodeReply>,
    /// Set to `true` if the list is known to be complete. `false` while Redis is unreachable, for five minutes after a
    /// node stopped responding without announcing its departure, and while DNS lists more nodes than this node hears
    /// from.
    complete: bool,
}

/// Information about one node.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct NodeReply {
    /// Unique ID of this run of the node. Changes when the node restarts.
    uid: String,
    /// Name of the pod.
    name: String,
    /// Version of the sidecar.
    version: String,
    /// Number of open connections.
    num_clients: u32,
    /// Number of channels with subscribers on the node.
    num_channels: u32,
    /// Time since the node started, in seconds.
    uptime: u64,
}

impl Method for Info {
    const NAME: &'static str = "info";
    const PATH: &'static str = "/api/info";
    const SUMMARY: &'static str =
        "Lists the nodes of the cluster, with their numbers of connections and channels.";
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

/// Selection of the connections to close. They are closed with a code that tells clients not to reconnect
/// automatically.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct DisconnectRequest {
    /// User whose connections are closed. Combined with `client`, only that connection is closed, and only if it
    /// belongs to this user.
    #[serde(default)]
    user: Option<String>,
    /// Client ID of the single connection to close, as sent to the client in `connected.client`. The log and
    /// `publisher.client` contain the same ID.
    #[serde(default)]
    client: Option<String>,
}

/// Result of a disconnect.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct DisconnectReply {
    /// Number of connections closed by the nodes that responded in time.
    num_clients: usize,
    /// Set to `true` if all nodes responded. If `false`, a node that did not respond closes the connections that are
    /// open now as soon as it is reachable again, within five minutes.
    complete: bool,
}

impl Method for Disconnect {
    const NAME: &'static str = "disconnect";
    const PATH: &'static str = "/api/disconnect";
    const SUMMARY: &'static str = "Closes all connections of a user, or a single connection, on any node.";
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
            (None, None) => return Err(ApiError::BadRequest("set `user`, `client` or both".to_owned())),
        };
        let Disconnected { closed, complete } = api.peers.disconnect(who, CloseReason::Disconnected).await;
        Ok(DisconnectReply { num_clients: closed, complete })
    }
}

// === shared ===

/// Deserializes a present value, including `null`, as `Some`: `null` is a valid message.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

fn payload(data: Option<Box<RawValue>>, b64data: Option<String>) -> Result<Payload, ApiError> {
    match (data, b64data) {
        // Clients that write every field send an empty `b64data` with `data`.
        (Some(data), None) => text_payload(data),
        (Some(data), Some(empty)) if empty.is_empty() => text_payload(data),
        (None, Some(text)) => match BASE64_STANDARD.decode(text) {
            Ok(bytes) => Ok(Payload::Binary(bytes.into())),
            Err(error) => Err(ApiError::BadRequest(format!("`b64data` is not valid base64: {error}"))),
        },
        (None, None) => Err(ApiError::BadRequest("`data` is missing".to_owned())),
        (Some(_), Some(_)) => Err(ApiError::BadRequest("set only one of `data` and `b64data`".to_owned())),
    }
}

fn text_payload(data: Box<RawValue>) -> Result<Payload, ApiError> {
    Ok(Payload::Text(Bytes::from(String::from(Box::<str>::from(data)))))
}

/// Metadata of a message.
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
        // Both are compared and stored with each message, so their length is limited.
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
        // Centrifugo's clients send an empty key for none.
        let idempotency_key = idempotency_key.filter(|key| !key.is_empty());
        Ok(Self { idempotency_key, key, tags: tags.into_iter().collect() })
    }

    /// Publishes once there is room. The inner future resolves to the outcome.
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

/// Returns the channel named by `text`, if it exists. Access rules are not checked.
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
            (r#"{"channel": "c", "data": 1, "b64data": "AA=="}"#, "set only one of"),
            (r#"{"channel": "c", "b64data": "A"}"#, "not valid base64"),
        ] {
            assert!(parse(json).unwrap_err().to_string().contains(text), "{json}");
        }
    }
}
