//! Connection tokens: JSON Web Tokens (RFC 7519).

use std::{collections::HashMap, sync::Arc};

use jsonwebtoken::{
    Algorithm, DecodingKey, Header, Validation,
    crypto::rust_crypto::DEFAULT_PROVIDER,
    errors::{Error, ErrorKind},
};
use serde_json::{Map, Value};
use sidecar_config::{JwtAlgorithm, JwtKey, JwtSettings, Pattern};

use super::secret::{self, Reading};
use crate::domain::{Grants, Identity};

/// Clocks of issuers and nodes may differ by this much.
const LEEWAY_SECONDS: u64 = 5;

/// Patterns that one token may list: each is compared with each channel that the client asks for.
const MAX_PATTERNS: usize = 1_000;

/// The check that a token failed. Holds nothing of the token itself, for it is sent and logged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The settings name no keys.
    #[error("connection tokens are not accepted here: no key is configured")]
    NoneAccepted,
    /// Not three parts of base64 with JSON inside.
    #[error("the token is no JSON Web Token")]
    Malformed,
    /// No key has the name that the header gives.
    #[error("the token's `kid` names no configured key")]
    UnknownKey,
    /// The header gives no name, and all keys have one.
    #[error("the token has no `kid`, and every configured key has a name")]
    NoKey,
    /// The key is good for another algorithm.
    #[error("the token's `alg` is not the algorithm of its key")]
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
    #[error("the token has no `grants` claim, only `channels`: name the channels that it grants in `grants`")]
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
}

/// A key is good for one algorithm: a token cannot choose how it is checked.
#[derive(Debug)]
struct Key {
    key: DecodingKey,
    validation: Validation,
}

// === impl Tokens ===

impl Tokens {
    /// Reads the keys of checked settings.
    pub(super) fn load(settings: &JwtSettings, reading: &mut Reading<'_>) -> Self {
        let mut tokens = Self { named: HashMap::new(), unnamed: Vec::new() };
        for (at, key) in settings.keys.iter().enumerate() {
            let path = |field: &str| format!("auth.jwt.keys[{at}].{field}");
            let Some(loaded) = Key::load(key, settings, &path("file"), reading) else { continue };
            match &key.kid {
                None => tokens.unnamed.push(loaded),
                Some(kid) if tokens.named.contains_key(kid) => {
                    let text = format!("`{kid}` is listed twice: give each key a name of its own");
                    reading.mistake(&path("kid"), text);
                }
                Some(kid) => {
                    tokens.named.insert(kid.clone(), loaded);
                }
            }
        }
        tokens
    }

    /// Who a token is for.
    pub(super) fn identify(&self, token: &str) -> Result<Identity, TokenError> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Malformed)?;
        identity(&self.claims(token, &header)?)
    }

    fn claims(&self, token: &str, header: &Header) -> Result<Map<String, Value>, TokenError> {
        if let Some(kid) = &header.kid {
            return self.named.get(kid).ok_or(TokenError::UnknownKey)?.check(token);
        }
        // During a rotation two keys without names may both be good: the error of the last one that fits is told.
        let mut answer = Err(if self.unnamed.is_empty() { TokenError::NoKey } else { TokenError::Algorithm });
        for key in self.unnamed.iter().filter(|key| key.validation.algorithms.contains(&header.alg)) {
            answer = key.check(token);
            if answer != Err(TokenError::Signature) {
                break;
            }
        }
        answer
    }
}

// === impl Key ===

impl Key {
    /// `setting` names its file.
    fn load(settings: &JwtKey, jwt: &JwtSettings, setting: &str, reading: &mut Reading<'_>) -> Option<Self> {
        let path = &settings.file;
        let bytes = reading.secret(setting, path)?;
        let algorithm = algorithm(settings.algorithm);
        if let Some(least) = hmac_bytes(algorithm) {
            if is_pem(&bytes) {
                reading.mistake(setting, format!("`{}` {PEM_AS_SECRET}", path.display()));
                return None;
            }
            warn_of_secret(&bytes, least, settings, setting, reading);
        }
        let Some(key) = parse_key(algorithm, &bytes) else {
            let kind = kind(algorithm);
            let text = format!("`{}` holds no {kind} key: expected a public key in PEM", path.display());
            reading.mistake(setting, text);
            return None;
        };
        Some(Self { key, validation: validation(algorithm, jwt) })
    }

    fn check(&self, token: &str) -> Result<Map<String, Value>, TokenError> {
        jsonwebtoken::decode(token, &self.key, &self.validation)
            .map(|token| token.claims)
            .map_err(|error| classify(&error))
    }
}

/// What is said of a PEM as the secret of an HMAC: whoever has the public key could sign.
const PEM_AS_SECRET: &str = "holds a PEM, and an HMAC wants a secret that nobody else has: give the algorithm of that \
    key, as RS256, ES256 or EdDSA, or a random secret";

fn is_pem(bytes: &[u8]) -> bool {
    let text = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    text.trim_ascii_start().starts_with(b"-----BEGIN ")
}

/// Bytes that the secret of an HMAC must have: as many as its hash (RFC 7518 §3.2).
fn hmac_bytes(algorithm: Algorithm) -> Option<usize> {
    match algorithm {
        Algorithm::HS256 => Some(32),
        Algorithm::HS384 => Some(48),
        Algorithm::HS512 => Some(64),
        _ => None,
    }
}

/// Told and used all the same: a cluster runs by it.
fn warn_of_secret(bytes: &[u8], least: usize, key: &JwtKey, setting: &str, reading: &mut Reading<'_>) {
    let JwtKey { algorithm, file, .. } = key;
    if secret::is_marked(bytes) {
        reading.warn(setting, secret::marked(file));
    }
    if bytes.len() < least {
        let text = format!(
            "`{}` has {} bytes, and RFC 7518 wants {least} or more for {algorithm:?}: a short secret can be guessed",
            file.display(),
            bytes.len()
        );
        reading.warn(setting, text);
    }
}

fn validation(algorithm: Algorithm, jwt: &JwtSettings) -> Validation {
    let JwtSettings { issuer, audience, keys: _ } = jwt;
    let mut validation = Validation::new(algorithm);
    validation.leeway = LEEWAY_SECONDS;
    validation.validate_nbf = true;
    validation.validate_aud = audience.is_some();
    // A token may do without `exp`: then it never ends, as its issuer wished. What is configured must be there.
    let required: Vec<_> = issuer.iter().map(|_| "iss").chain(audience.iter().map(|_| "aud")).collect();
    validation.set_required_spec_claims(&required);
    validation.iss = issuer.clone().map(|issuer| [issuer].into());
    validation.aud = audience.clone().map(|audience| [audience].into());
    validation
}

fn algorithm(algorithm: JwtAlgorithm) -> Algorithm {
    match algorithm {
        JwtAlgorithm::HS256 => Algorithm::HS256,
        JwtAlgorithm::HS384 => Algorithm::HS384,
        JwtAlgorithm::HS512 => Algorithm::HS512,
        JwtAlgorithm::RS256 => Algorithm::RS256,
        JwtAlgorithm::ES256 => Algorithm::ES256,
        JwtAlgorithm::EdDSA => Algorithm::EdDSA,
    }
}

fn kind(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::ES256 => "P-256",
        Algorithm::EdDSA => "Ed25519",
        _ => "RSA",
    }
}

/// A key that works with the algorithm: what the library would find out at the first token, found out now.
fn parse_key(algorithm: Algorithm, bytes: &[u8]) -> Option<DecodingKey> {
    let key = match algorithm {
        Algorithm::RS256 => DecodingKey::from_rsa_pem(bytes),
        Algorithm::ES256 => DecodingKey::from_ec_pem(bytes),
        Algorithm::EdDSA => DecodingKey::from_ed_pem(bytes),
        _ => return Some(DecodingKey::from_secret(bytes)),
    };
    let key = key.ok()?;
    let raw = key.try_get_as_bytes().ok()?;
    let works = match algorithm {
        Algorithm::RS256 => (DEFAULT_PROVIDER.key_utils.rsa_pub_components_from_public_key)(raw).is_ok(),
        // The library slices the first 32 bytes without a look at the length.
        Algorithm::EdDSA => raw.len() == 32,
        _ => (DEFAULT_PROVIDER.verifier_factory)(&algorithm, &key).is_ok(),
    };
    works.then_some(key)
}

fn classify(error: &Error) -> TokenError {
    match error.kind() {
        ErrorKind::InvalidSignature => TokenError::Signature,
        ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm | ErrorKind::MissingAlgorithm => {
            TokenError::Algorithm
        }
        ErrorKind::ExpiredSignature => TokenError::Expired,
        ErrorKind::ImmatureSignature => TokenError::NotYetValid,
        ErrorKind::InvalidIssuer => TokenError::Issuer,
        ErrorKind::InvalidAudience => TokenError::Audience,
        ErrorKind::MissingRequiredClaim(claim) if claim == "iss" => TokenError::Missing("iss"),
        ErrorKind::MissingRequiredClaim(_) => TokenError::Missing("aud"),
        ErrorKind::InvalidClaimFormat(claim) if claim == "nbf" => {
            TokenError::Claim { claim: "nbf", expected: "a time in Unix seconds" }
        }
        ErrorKind::InvalidClaimFormat(_) => {
            TokenError::Claim { claim: "exp", expected: "a time in Unix seconds" }
        }
        _ => TokenError::Malformed,
    }
}

// === claims ===

fn identity(claims: &Map<String, Value>) -> Result<Identity, TokenError> {
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
        grants: Arc::new(grants(claims.get("grants").unwrap_or(&Value::Null))?),
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
            Ok(Grants { subscribe: both.clone(), publish: both })
        }
        Value::Object(object) if object.keys().all(|key| key == "subscribe" || key == "publish") => {
            let list = |key| match object.get(key) {
                None | Some(Value::Null) => Ok(Vec::new()),
                Some(Value::Array(list)) => patterns(list),
                Some(_) => Err(GRANTS),
            };
            Ok(Grants { subscribe: list("subscribe")?, publish: list("publish")? })
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
