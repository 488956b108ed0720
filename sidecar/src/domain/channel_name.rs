//! Names of channels, parsed once at the edge.

use std::{fmt, str::FromStr, sync::Arc};

use sidecar_config::DEFAULT_NAMESPACE;

/// The name of a channel: an optional `namespace:` prefix and the rest. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelName(Arc<str>);

/// Error for a text that is not a channel name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidChannelName {
    /// Nothing at all, or nothing before or behind the colon.
    #[error("channel name is empty")]
    Empty,
    /// Longer than [`ChannelName::MAX_BYTES`]; the limit of a node is usually lower.
    #[error("channel name has {0} bytes, at most {max} are allowed", max = ChannelName::MAX_BYTES)]
    TooLong(usize),
    /// `{` and `}` are Redis Cluster's hash tags; white space and control characters break tools.
    #[error("channel name contains {0:?}; `{{`, `}}`, white space and control characters are not allowed")]
    Character(char),
}

impl ChannelName {
    /// No channel name is longer, whatever the settings say.
    pub const MAX_BYTES: usize = 1_024;

    /// The namespace whose policy holds: `chat` of `chat:room-1`, `default` of `lobby`.
    pub fn namespace(&self) -> &str {
        self.0.split_once(':').map_or(DEFAULT_NAMESPACE, |(namespace, _)| namespace)
    }

    /// The part that a namespace's channel patterns are matched with: `room-1` of `chat:room-1`.
    pub fn local(&self) -> &str {
        self.0.split_once(':').map_or(&*self.0, |(_, local)| local)
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ChannelName {
    type Err = InvalidChannelName;

    fn from_str(text: &str) -> Result<Self, InvalidChannelName> {
        if text.is_empty()
            || text.starts_with(':')
            || text.split_once(':').is_some_and(|(_, local)| local.is_empty())
        {
            return Err(InvalidChannelName::Empty);
        }
        if text.len() > Self::MAX_BYTES {
            return Err(InvalidChannelName::TooLong(text.len()));
        }
        match text.chars().find(|c| matches!(c, '{' | '}') || c.is_whitespace() || c.is_control()) {
            Some(character) => Err(InvalidChannelName::Character(character)),
            None => Ok(Self(text.into())),
        }
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_is_the_namespace() {
        let name: ChannelName = "chat:room:1".parse().unwrap();
        assert_eq!((name.namespace(), name.local()), ("chat", "room:1"));
        let name: ChannelName = "lobby".parse().unwrap();
        assert_eq!((name.namespace(), name.local()), ("default", "lobby"));
    }

    #[test]
    fn names_that_break_redis_or_tools_are_refused() {
        for text in ["", ":a", "a:", "a b", "{a}", "a\n", "a\u{a0}b", &"x".repeat(1_025)] {
            assert!(text.parse::<ChannelName>().is_err(), "{text:?}");
        }
    }
}
