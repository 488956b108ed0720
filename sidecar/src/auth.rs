//! Who: origins of browsers, connection tokens and keys of the server API, and the certificate by which clients know
//! this node. Asked by `http` and `api`; `app` gives it new rules. What someone may do in a channel is
//! `domain::Policies`, not here.

mod api_key;
mod origin;
mod secret;
mod tls;
mod token;

use std::{collections::HashSet, time::Instant};

use arc_swap::ArcSwap;
use sidecar_config::{LiveSettings, Mistake};

use crate::domain::{Identity, KeyId};

pub use secret::{LastGood, Reading, SecretError, files as secret_files, read_secret};
pub use tls::{H2, TlsIdentity};
pub use token::TokenError;

use self::{api_key::ApiKeys, origin::Origins, token::Tokens};

/// Answers who someone is, by rules that may change at any time.
#[derive(Debug)]
pub struct Auth(ArcSwap<AuthRules>);

/// Rules with every secret read and every key parsed.
#[derive(Debug)]
pub struct AuthRules {
    origins: Origins,
    tokens: Option<Tokens>,
    api_keys: ApiKeys,
}

impl Auth {
    /// Begins with these rules.
    pub fn new(rules: AuthRules) -> Self {
        Self(ArcSwap::from_pointee(rules))
    }

    /// Follows other rules from now on. `tell` gets the keys of tokens that are good then, before a token by a new one is
    /// accepted: sessions of other keys have no right any more.
    pub fn replace(&self, mut rules: AuthRules, tell: impl FnOnce(HashSet<KeyId>)) {
        if let (Some(tokens), Some(before)) = (&mut rules.tokens, &self.0.load().tokens) {
            tokens.succeed(before, Instant::now());
        }
        tell(rules.tokens.as_ref().map(Tokens::ids).unwrap_or_default());
        self.0.store(rules.into());
    }

    /// Whether a request with this `Origin` may pass. Without one it comes from no browser and does.
    pub fn origin(&self, origin: Option<&str>) -> bool {
        origin.is_none_or(|origin| self.0.load().origins.admit(origin))
    }

    /// Whether the settings name this origin or its domain, where others may come in by `*`.
    pub fn names_origin(&self, origin: &str) -> bool {
        self.0.load().origins.name(origin)
    }

    /// Who a client with this connection token is; without one, nobody in particular.
    ///
    /// # Errors
    /// The check that the token failed; never a part of the token.
    pub fn identify(&self, token: Option<&str>) -> Result<Identity, TokenError> {
        match (token, &self.0.load().tokens) {
            (None, _) => Ok(Identity::default()),
            (Some(_), None) => Err(TokenError::NoneAccepted),
            (Some(token), Some(tokens)) => tokens.identify(token),
        }
    }

    /// Whether this is a key of the server API.
    pub fn api_key(&self, key: Option<&str>) -> bool {
        key.is_some_and(|key| self.0.load().api_keys.contain(key))
    }
}

impl AuthRules {
    /// Reads the secrets that checked settings name.
    ///
    /// # Errors
    /// Every secret that cannot be read and every key that is none, with the setting that names it.
    pub fn load(settings: &LiveSettings) -> Result<Self, Vec<Mistake>> {
        let mut reading = Reading::default();
        let rules = Self::read(settings, &mut reading);
        let mistakes = reading.take_mistakes();
        if mistakes.is_empty() { Ok(rules) } else { Err(mistakes) }
    }

    /// The same; good for something only where the reading has no mistake.
    pub fn read(settings: &LiveSettings, reading: &mut Reading<'_>) -> Self {
        let api_keys = ApiKeys::load(&settings.auth.api_key_files, reading);
        let tokens = settings.auth.jwt.as_ref().map(|jwt| Tokens::load(jwt, reading));
        Self { origins: Origins::new(&settings.hub.allowed_origins), tokens, api_keys }
    }
}
