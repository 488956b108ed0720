//! Connection tokens: JSON Web Tokens (RFC 7519) in compact form (RFC 7515).
//!
//! Each check has an error of its own, and none of them repeats a word of the token. The library verifies signatures; all
//! else is read here, strictly: a parameter or a claim that is given twice would be read by others in another way.

mod key;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, get_current_timestamp};
use serde_json::{Map, Value};
use sidecar_config::{JsonError, JwtSettings, Pattern, strict_json};

use self::key::Key;
use super::secret::Reading;
use crate::domain::{Grants, Identity, KeyId};

/// Clocks of issuers and nodes may differ by this much.
const LEEWAY_SECONDS: u64 = 5;

/// Patterns that one token may list: each is compared with each channel that the client asks for.
const MAX_PATTERNS: usize = 1_000;

/// Claims that may be named in an error; others are the token's own.
const CLAIMS: [&str; 7] = ["aud", "channels", "exp", "grants", "iss", "nbf", "sub"];

/// Check that a token failed. Contains nothing of the token itself, because it is sent to clients and logged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The settings name no keys.
    #[error("connection tokens are not accepted: no key is configured")]
    NoneAccepted,
    /// Not three parts with dots between.
    #[error("the token is not a JSON Web Token: it must have three parts separated by dots")]
    Parts,
    /// A part is padded, which base64url in tokens is not (RFC 7515 §2).
    #[error("the token's parts have padding (`=`): use base64url without padding")]
    Padding,
    /// A part is something else.
    #[error("the token's parts are not base64url")]
    Base64,
    /// No JSON object inside.
    #[error("the token's {0} is not a JSON object")]
    Json(&'static str),
    /// A parameter of the header stands twice (RFC 7515 §4).
    #[error("the token's header contains a duplicate parameter")]
    RepeatedParameter,
    /// A claim stands twice (RFC 7519 §4).
    #[error("the token contains {} twice", .0.map_or_else(|| "a claim".to_owned(), |claim| format!("the `{claim}` claim")))]
    RepeatedClaim(Option<&'static str>),
    /// It asks for what its readers must understand (RFC 7515 §4.1.11), and nothing of it is understood here.
    #[error("the token's `crit` requires extensions that are not supported")]
    Critical,
    /// The header gives no algorithm, or none as a text.
    #[error("the token's header has no `alg`")]
    NoAlgorithm,
    /// One that nobody here speaks, `none` among them.
    #[error("the token's `alg` is not one of HS256, HS384, HS512, RS256, ES256 and EdDSA")]
    UnknownAlgorithm,
    /// The key's name is no text.
    #[error("the token's `kid` must be a string")]
    KeyName,
    /// No key has the name that the header gives.
    #[error("the token's `kid` does not match a configured key")]
    UnknownKey,
    /// The header gives no name, and all keys have one.
    #[error("the token has no `kid`, but every configured key has one")]
    NoKey,
    /// The key is good for another algorithm.
    #[error("the token's `alg` does not match the algorithm of its key")]
    Algorithm,
    /// Signed by someone else, or changed.
    #[error("the token's signature does not match")]
    Signature,
    /// Too late.
    #[error("the token has expired (`exp`)")]
    Expired,
    /// Too early.
    #[error("the token is not valid yet (`nbf`)")]
    NotYetValid,
    /// Made by someone else.
    #[error("the token's `iss` is not the configured issuer")]
    Issuer,
    /// Made for someone else.
    #[error("the token's `aud` does not name the configured audience")]
    Audience,
    /// A claim that must be there is not.
    #[error("the token has no `{0}` claim")]
    Missing(&'static str),
    /// It says what it grants by the claim's old name, which means something else in Centrifuge's tokens.
    #[error("the token has no `grants` claim, only `channels`: list the channels that it grants in `grants`")]
    NoGrants,
    /// A claim of another shape.
    #[error("the token's `{claim}` claim must be {expected}")]
    Claim {
        /// Its name.
        claim: &'static str,
        /// What it should be.
        expected: &'static str,
    },
}

/// The keys and what a token must claim.
#[derive(Debug)]
pub(super) struct Tokens {
    named: HashMap<String, Key>,
    unnamed: Vec<Key>,
    issuer: Option<String>,
    audience: Option<String>,
    require_exp: bool,
}

/// A token, taken apart.
struct Parts<'a> {
    /// Header and claims with their dot: what is signed.
    signed: &'a str,
    signature: &'a str,
    claims: Vec<u8>,
    algorithm: Algorithm,
    kid: Option<String>,
}

// === impl Tokens ===

impl Tokens {
    /// Reads the keys of checked settings.
    pub(super) fn load(settings: &JwtSettings, reading: &mut Reading<'_>) -> Self {
        let JwtSettings { issuer, audience, require_exp, keys } = settings;
        let mut tokens = Self {
            named: HashMap::new(),
            unnamed: Vec::new(),
            issuer: issuer.clone(),
            audience: audience.clone(),
            require_exp: *require_exp,
        };
        for (at, key) in keys.iter().enumerate() {
            let path = |field: &str| format!("auth.jwt.keys[{at}].{field}");
            let Some(loaded) = Key::load(key, &path("file"), reading) else { continue };
            match &key.kid {
                None => tokens.unnamed.push(loaded),
                Some(kid) if tokens.named.contains_key(kid) => {
                    let text = format!("`{kid}` is listed twice: give each key its own `kid`");
                    reading.mistake(&path("kid"), text);
                }
                Some(kid) => {
                    tokens.named.insert(kid.clone(), loaded);
                }
            }
        }
        tokens
    }

    /// Takes over from the keys that were good until `now`: what a key was before its value changed stays good for a
    /// while.
    pub(super) fn succeed(&mut self, before: &Self, now: Instant) {
        for key in self.named.values_mut().chain(&mut self.unnamed) {
            if let Some(old) = before.keys().find(|old| old.id == key.id) {
                key.succeed(old, now);
            }
        }
    }

    /// Which keys there are.
    pub(super) fn ids(&self) -> HashSet<KeyId> {
        self.keys().map(|key| key.id).collect()
    }

    fn keys(&self) -> impl Iterator<Item = &Key> {
        self.named.values().chain(&self.unnamed)
    }

    /// Who a token is for.
    pub(super) fn identify(&self, token: &str) -> Result<Identity, TokenError> {
        let parts = Parts::of(token)?;
        let key = self.verified(&parts)?;
        let claims = claims_of(&parts.claims)?;
        self.check(&claims, get_current_timestamp())?;
        identity(&claims, key)
    }

    /// The key that the token was signed with.
    fn verified(&self, parts: &Parts<'_>) -> Result<KeyId, TokenError> {
        let now = Instant::now();
        if let Some(kid) = &parts.kid {
            let key = self.named.get(kid).ok_or(TokenError::UnknownKey)?;
            return key.verify(parts, now).map(|()| key.id);
        }
        // During a rotation two keys without names may both be good: the error of the last one that fits is told.
        let mut answer = Err(if self.unnamed.is_empty() { TokenError::NoKey } else { TokenError::Algorithm });
        for key in &self.unnamed {
            match key.verify(parts, now) {
                Ok(()) => return Ok(key.id),
                Err(TokenError::Algorithm) => {}
                Err(error) => answer = Err(error),
            }
        }
        answer
    }

    /// Time, issuer and audience.
    fn check(&self, claims: &Map<String, Value>, now: u64) -> Result<(), TokenError> {
        let now = now as f64;
        match time(claims, "exp")? {
            None if self.require_exp => return Err(TokenError::Missing("exp")),
            Some(exp) if exp + (LEEWAY_SECONDS as f64) < now => return Err(TokenError::Expired),
            _ => {}
        }
        if time(claims, "nbf")?.is_some_and(|nbf| nbf - LEEWAY_SECONDS as f64 > now) {
            return Err(TokenError::NotYetValid);
        }
        if let Some(issuer) = &self.issuer {
            match given(claims, "iss") {
                None => return Err(TokenError::Missing("iss")),
                Some(Value::String(found)) if found == issuer => {}
                Some(Value::String(_)) => return Err(TokenError::Issuer),
                Some(_) => return Err(TokenError::Claim { claim: "iss", expected: "a string" }),
            }
        }
        match &self.audience {
            Some(audience) => check_audience(given(claims, "aud"), audience),
            None => Ok(()),
        }
    }
}

fn check_audience(claim: Option<&Value>, audience: &str) -> Result<(), TokenError> {
    let named = match claim {
        None => return Err(TokenError::Missing("aud")),
        Some(Value::String(one)) => one == audience,
        Some(Value::Array(list)) if list.iter().all(Value::is_string) => {
            list.iter().any(|one| one == audience)
        }
        Some(_) => return Err(TokenError::Claim { claim: "aud", expected: "a string or a list of strings" }),
    };
    if named { Ok(()) } else { Err(TokenError::Audience) }
}

/// A claim that is there; `null` says nothing.
fn given<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    claims.get(name).filter(|value| !value.is_null())
}

fn time(claims: &Map<String, Value>, claim: &'static str) -> Result<Option<f64>, TokenError> {
    match given(claims, claim).map(Value::as_f64) {
        None => Ok(None),
        Some(Some(seconds)) => Ok(Some(seconds)),
        Some(None) => Err(TokenError::Claim { claim, expected: "a time in Unix seconds" }),
    }
}

// === impl Parts ===

impl<'a> Parts<'a> {
    fn of(token: &'a str) -> Result<Self, TokenError> {
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Parts)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Parts)?;
        if claims.contains('.') {
            return Err(TokenError::Parts);
        }
        let (header, claims) = (bytes_of(header)?, bytes_of(claims)?);
        bytes_of(signature)?;
        let (algorithm, kid) = read_header(&header)?;
        Ok(Self { signed, signature, claims, algorithm, kid })
    }
}

fn bytes_of(part: &str) -> Result<Vec<u8>, TokenError> {
    let error = |_| if part.contains('=') { TokenError::Padding } else { TokenError::Base64 };
    URL_SAFE_NO_PAD.decode(part).map_err(error)
}

fn read_header(bytes: &[u8]) -> Result<(Algorithm, Option<String>), TokenError> {
    let header = match strict_json(bytes) {
        Ok(Value::Object(header)) => header,
        Ok(_) | Err(JsonError::Syntax(_)) => return Err(TokenError::Json("header")),
        Err(JsonError::Repeated(_)) => return Err(TokenError::RepeatedParameter),
    };
    if header.contains_key("crit") {
        return Err(TokenError::Critical);
    }
    let algorithm = match header.get("alg") {
        Some(Value::String(name)) => key::named(name).ok_or(TokenError::UnknownAlgorithm)?,
        _ => return Err(TokenError::NoAlgorithm),
    };
    match header.get("kid") {
        None => Ok((algorithm, None)),
        Some(Value::String(kid)) => Ok((algorithm, Some(kid.clone()))),
        Some(_) => Err(TokenError::KeyName),
    }
}

fn claims_of(bytes: &[u8]) -> Result<Map<String, Value>, TokenError> {
    match strict_json(bytes) {
        Ok(Value::Object(claims)) => Ok(claims),
        Ok(_) | Err(JsonError::Syntax(_)) => Err(TokenError::Json("payload")),
        Err(JsonError::Repeated(path)) => {
            Err(TokenError::RepeatedClaim(CLAIMS.into_iter().find(|claim| *claim == path)))
        }
    }
}

// === claims ===

fn identity(claims: &Map<String, Value>, key: KeyId) -> Result<Identity, TokenError> {
    let user = match claims.get("sub") {
        None | Some(Value::Null) => None,
        // As for Centrifugo, nobody in particular.
        Some(Value::String(sub)) if sub.is_empty() => None,
        Some(Value::String(sub)) => Some(sub.as_str().into()),
        Some(_) => return Err(TokenError::Claim { claim: "sub", expected: "a string" }),
    };
    // Neither nothing nor everything: whoever made it meant these channels.
    if claims.contains_key("channels") && !claims.contains_key("grants") {
        return Err(TokenError::NoGrants);
    }
    let expires_at = claims.get("exp").and_then(Value::as_f64);
    Ok(Identity {
        user,
        grants: Arc::new(Grants { key: Some(key), ..grants(claims.get("grants").unwrap_or(&Value::Null))? }),
        // Within the leeway a token is good, also for a connection that it opened.
        expires_at: expires_at.map(|exp| (exp as u64).saturating_add(LEEWAY_SECONDS)),
    })
}

/// `["chat:*"]` for both, or `{"subscribe": ["news"], "publish": []}`.
fn grants(claim: &Value) -> Result<Grants, TokenError> {
    match claim {
        Value::Null => Ok(Grants::default()),
        Value::Array(list) => {
            let both = patterns(list)?;
            Ok(Grants { subscribe: both.clone(), publish: both, key: None })
        }
        Value::Object(object) if object.keys().all(|key| key == "subscribe" || key == "publish") => {
            let list = |key| match object.get(key) {
                None | Some(Value::Null) => Ok(Vec::new()),
                Some(Value::Array(list)) => patterns(list),
                Some(_) => Err(GRANTS),
            };
            Ok(Grants { subscribe: list("subscribe")?, publish: list("publish")?, key: None })
        }
        _ => Err(GRANTS),
    }
}

fn patterns(list: &[Value]) -> Result<Vec<Pattern>, TokenError> {
    if list.len() > MAX_PATTERNS {
        return Err(TokenError::Claim { claim: "grants", expected: "at most 1,000 patterns" });
    }
    list.iter().map(|value| value.as_str().and_then(|text| text.parse().ok()).ok_or(GRANTS)).collect()
}

const GRANTS: TokenError = TokenError::Claim {
    claim: "grants",
    expected: "a list of channel patterns or {\"subscribe\": […], \"publish\": […]}",
};

#[cfg(test)]
mod tests;
