//! Who may do what in which channel: the namespaces of the settings, made ready for questions.

use std::{
    collections::HashMap,
    num::NonZeroU64,
    sync::{Arc, LazyLock},
};

use sidecar_config::{Access, Namespace, Pattern, RateLimit, SlowConsumer};

use super::ChannelName;

/// Who a client is and what its token grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The token's `sub`; `None` for a client without a token.
    pub user: Option<Arc<str>>,
    /// What the token grants.
    pub grants: Arc<Grants>,
    /// Unix second at which the token ends; `None` means never.
    pub expires_at: Option<u64>,
}

/// An entry among the keys of the settings, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyId(NonZeroU64);

impl KeyId {
    /// From a hash of its name.
    pub fn new(hash: u64) -> Self {
        Self(NonZeroU64::new(hash).unwrap_or(NonZeroU64::MIN))
    }
}

/// The channels that a token lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Channels that it may subscribe to.
    pub subscribe: Vec<Pattern>,
    /// Channels that it may publish in.
    pub publish: Vec<Pattern>,
    /// What the token was signed with; `None` without a token. It is here, behind a pointer that all clients without a
    /// token share, and not in each [`Identity`].
    pub key: Option<KeyId>,
}

/// The policy of every namespace.
#[derive(Debug, Default)]
pub struct Policies(HashMap<Box<str>, Arc<Policy>>);

/// The policy of one namespace.
#[derive(Debug)]
pub struct Policy {
    /// The namespace.
    pub name: Box<str>,
    /// What happens to a client that reads too slowly.
    pub slow_consumer: SlowConsumer,
    /// Publications of one connection.
    pub rate_limit: RateLimit,
    /// Whether its publications may be compressed.
    pub compression: bool,
    /// What subscribers are told of a publication beside its payload.
    pub exposure: Exposure,
    channels: Vec<Pattern>,
    publish: Access,
    subscribe: Access,
}

/// What framed subscribers are told of a publication beside its payload and where, when and through which node it was
/// published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exposure {
    /// Nothing else.
    #[default]
    Hidden,
    /// Its id, key and tags, and the user and client that published it.
    Exposed,
}

/// A no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The namespace is not listed, or the channel fits none of its patterns.
    UnknownChannel,
    /// Nobody may, or the token does not list the channel.
    Permission,
    /// A token may open it, and there is none.
    NeedsToken,
}

/// A client without a token. All of them share one list of grants, or each would hold an empty one of its own.
impl Default for Identity {
    fn default() -> Self {
        static NOTHING: LazyLock<Arc<Grants>> = LazyLock::new(Arc::default);
        Self { user: None, grants: Arc::clone(&NOTHING), expires_at: None }
    }
}

impl Policies {
    /// Policies of checked settings.
    pub fn new(namespaces: &[Namespace]) -> Self {
        let policy =
            |namespace: &Namespace| (namespace.name.as_str().into(), Arc::new(Policy::new(namespace)));
        Self(namespaces.iter().map(policy).collect())
    }

    /// The names of the namespaces.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(|name| &**name)
    }

    /// The policy of an existing channel.
    ///
    /// # Errors
    /// [`Denied::UnknownChannel`].
    pub fn channel(&self, channel: &ChannelName) -> Result<&Arc<Policy>, Denied> {
        let policy = self.0.get(channel.namespace()).ok_or(Denied::UnknownChannel)?;
        let exists = policy.channels.is_empty() || policy.channels.iter().any(|p| p.matches(channel.local()));
        if exists { Ok(policy) } else { Err(Denied::UnknownChannel) }
    }

    /// The policy of a channel that `identity` may subscribe to.
    ///
    /// # Errors
    /// Why it may not.
    pub fn subscribe(&self, identity: &Identity, channel: &ChannelName) -> Result<&Arc<Policy>, Denied> {
        let policy = self.channel(channel)?;
        permit(policy.subscribe, &identity.grants, &identity.grants.subscribe, channel).map(|()| policy)
    }

    /// The policy of a channel that `identity` may publish in.
    ///
    /// # Errors
    /// Why it may not.
    pub fn publish(&self, identity: &Identity, channel: &ChannelName) -> Result<&Arc<Policy>, Denied> {
        let policy = self.channel(channel)?;
        permit(policy.publish, &identity.grants, &identity.grants.publish, channel).map(|()| policy)
    }
}

impl Policy {
    fn new(namespace: &Namespace) -> Self {
        let Namespace {
            name,
            channels,
            publish,
            subscribe,
            slow_consumer,
            rate_limit,
            compression,
            expose_publisher,
        } = namespace;
        let parse = |text: &String| text.parse().expect("settings were checked before");
        Self {
            name: name.as_str().into(),
            slow_consumer: slow_consumer.clone(),
            rate_limit: rate_limit.clone(),
            compression: *compression,
            exposure: if *expose_publisher { Exposure::Exposed } else { Exposure::Hidden },
            channels: channels.iter().map(parse).collect(),
            publish: *publish,
            subscribe: *subscribe,
        }
    }
}

fn permit(access: Access, grants: &Grants, listed: &[Pattern], channel: &ChannelName) -> Result<(), Denied> {
    match access {
        Access::Allowed => Ok(()),
        Access::Token if listed.iter().any(|pattern| pattern.matches(channel.as_str())) => Ok(()),
        Access::Token if grants.key.is_none() => Err(Denied::NeedsToken),
        Access::Token | Access::Denied => Err(Denied::Permission),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policies(yaml: &str) -> Policies {
        Policies::new(&serde_yaml::from_str::<Vec<Namespace>>(yaml).unwrap())
    }

    fn channel(name: &str) -> ChannelName {
        name.parse().unwrap()
    }

    #[test]
    fn a_channel_of_an_unlisted_namespace_is_unknown() {
        let policies = policies("[{name: default, channels: [lobby], subscribe: allowed}]");
        let anyone = Identity::default();
        assert!(policies.subscribe(&anyone, &channel("lobby")).is_ok());
        assert_eq!(policies.publish(&anyone, &channel("lobby")).unwrap_err(), Denied::Permission);
        assert_eq!(policies.subscribe(&anyone, &channel("other")).unwrap_err(), Denied::UnknownChannel);
        assert_eq!(policies.subscribe(&anyone, &channel("chat:lobby")).unwrap_err(), Denied::UnknownChannel);
    }

    #[test]
    fn a_token_opens_the_channels_it_lists() {
        let policies = policies("[{name: chat, subscribe: token, publish: token}]");
        let subscribe = vec!["chat:room-*".parse().unwrap()];
        let grants = Grants { subscribe, publish: Vec::new(), key: Some(KeyId::new(1)) };
        let member = Identity { grants: Arc::new(grants), ..Identity::default() };
        assert!(policies.subscribe(&member, &channel("chat:room-1")).is_ok());
        assert_eq!(policies.publish(&member, &channel("chat:room-1")).unwrap_err(), Denied::Permission);
        assert_eq!(
            policies.subscribe(&Identity::default(), &channel("chat:room-1")).unwrap_err(),
            Denied::NeedsToken
        );
    }
}
