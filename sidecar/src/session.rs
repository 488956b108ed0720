//! What a client is and may do now. Pure: commands and the time go in, a [`Step`] comes out; the shard acts.

mod flow;
mod rate;

use crate::domain::{
    ChannelName, Command, CommandError, Denied, Exposure, Identity, Payload, Policies, Policy,
};

pub use flow::Flow;
pub use rate::Buckets;

/// What to do about a command.
#[derive(Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "a variant's text speaks of its fields")]
pub enum Step {
    /// Hand it to the broker.
    Publish {
        channel: ChannelName,
        payload: Payload,
        id: Option<String>,
        idempotency_key: Option<String>,
        exposure: Exposure,
    },
    /// Make a subscription.
    Subscribe { channel: ChannelName, id: Option<String> },
    /// End a subscription.
    Unsubscribe { channel: ChannelName, id: Option<String> },
    /// Answer that it failed.
    Refuse { error: CommandError, channel: ChannelName, id: Option<String> },
}

/// A client's authenticated state.
#[derive(Debug, Default)]
pub struct Session {
    /// Who the client is.
    pub identity: Identity,
    /// What it sends.
    pub flow: Flow,
    buckets: Buckets,
}

/// What a session is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'a> {
    /// Namespaces.
    pub policies: &'a Policies,
    /// Limits of one connection.
    pub limits: &'a sidecar_config::Limits,
    /// Subscriptions that the connection has.
    pub subscriptions: usize,
    /// Whether one of them is the command's channel.
    pub subscribed: bool,
    /// Milliseconds on a clock that only goes forward.
    pub now_ms: u64,
}

// === impl Session ===

impl Session {
    /// The session of a client that was let in.
    pub fn new(identity: Identity) -> Self {
        Self { identity, flow: Flow::default(), buckets: Buckets::default() }
    }

    /// Decides about a command.
    pub fn on(&mut self, command: Command, now: &Circumstances<'_>) -> Step {
        match command {
            Command::Publish { channel, payload, id, idempotency_key } => {
                let keyed = idempotency_key.is_some();
                let policy = self.may_publish(&channel, now);
                match policy.and_then(|policy| self.may_use_key(keyed).map(|()| policy.exposure)) {
                    Ok(exposure) => Step::Publish { channel, payload, id, idempotency_key, exposure },
                    Err(error) => Step::Refuse { error, channel, id },
                }
            }
            Command::Subscribe { channel, id } => match self.may_subscribe(&channel, now) {
                Ok(()) => Step::Subscribe { channel, id },
                Err(error) => Step::Refuse { error, channel, id },
            },
            Command::Unsubscribe { channel, id } if now.subscribed => Step::Unsubscribe { channel, id },
            Command::Unsubscribe { channel, id } => {
                Step::Refuse { error: CommandError::NotSubscribed, channel, id }
            }
            Command::Acknowledge { channel, id, .. } => {
                Step::Refuse { error: CommandError::NoHistory, channel, id }
            }
        }
    }

    /// Whether one more subscription to this channel is allowed.
    ///
    /// # Errors
    /// Why it is not.
    pub fn may_subscribe(&self, channel: &ChannelName, now: &Circumstances<'_>) -> Result<(), CommandError> {
        check_length(channel, now)?;
        now.policies.subscribe(&self.identity, channel).map_err(error_of)?;
        let limit = now.limits.channels_per_connection;
        if now.subscribed {
            Err(CommandError::AlreadySubscribed)
        } else if now.subscriptions >= limit as usize {
            Err(CommandError::TooManyChannels { limit })
        } else {
            Ok(())
        }
    }

    /// A key is its user's: without one, any client could make another's message a repetition.
    fn may_use_key(&self, keyed: bool) -> Result<(), CommandError> {
        if keyed && self.identity.user.is_none() {
            let text = "an idempotencyKey needs a token that names a user (`sub`)";
            return Err(CommandError::BadRequest(text.to_owned()));
        }
        Ok(())
    }

    fn may_publish<'a>(
        &mut self,
        channel: &ChannelName,
        now: &Circumstances<'a>,
    ) -> Result<&'a Policy, CommandError> {
        check_length(channel, now)?;
        let policy = now.policies.publish(&self.identity, channel).map_err(error_of)?;
        let limit = &policy.rate_limit;
        if self.buckets.take(&policy.name, limit, now.now_ms) {
            Ok(policy)
        } else {
            Err(CommandError::TooManyRequests { per_second: limit.publishes_per_second })
        }
    }
}

fn check_length(channel: &ChannelName, now: &Circumstances<'_>) -> Result<(), CommandError> {
    let (length, limit) = (channel.as_str().len(), now.limits.channel_name_bytes);
    if length > limit as usize {
        let text = format!("channel name has {length} bytes, at most {limit} are allowed");
        return Err(CommandError::BadRequest(text));
    }
    Ok(())
}

fn error_of(denied: Denied) -> CommandError {
    match denied {
        Denied::UnknownChannel => CommandError::UnknownChannel,
        Denied::Permission => CommandError::PermissionDenied,
        Denied::NeedsToken => {
            CommandError::Unauthorized("this channel needs a token that lists it".to_owned())
        }
    }
}

#[cfg(test)]
mod tests;
