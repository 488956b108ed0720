//! Keys that sign tokens. A key is known by the entry of the settings that names it: by its `kid`, or by its file where it
//! has none. A new value under the same name is a rotation.

use std::time::{Duration, Instant};

use jsonwebtoken::{
    Algorithm, DecodingKey,
    crypto::{rust_crypto::DEFAULT_PROVIDER, verify},
};
use sha2::{Digest, Sha256};
use sidecar_config::{JwtAlgorithm, JwtKey};

use super::{Parts, TokenError};
use crate::{
    auth::secret::{self, Reading},
    domain::KeyId,
};

/// How long the old value of a key is good once a new one has come: a Secret reaches all nodes within two minutes, and
/// tokens that were signed just before are used once more.
const OVERLAP: Duration = Duration::from_secs(600);

/// Old values of one key that are kept: more changes within the overlap are no rotation.
const MOST_BEFORE: usize = 4;

/// One entry of the settings.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) id: KeyId,
    now: Secret,
    /// Values that it had, and until when they are good.
    before: Vec<(Secret, Instant)>,
}

/// A value, good for one algorithm: a token cannot choose how it is checked.
#[derive(Clone, Debug)]
struct Secret {
    key: DecodingKey,
    algorithm: Algorithm,
    /// Tells values apart.
    digest: [u8; 32],
}

// === impl Key ===

impl Key {
    /// `setting` names its file.
    pub(super) fn load(settings: &JwtKey, setting: &str, reading: &mut Reading<'_>) -> Option<Self> {
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
        let now = Secret { key, algorithm, digest: Sha256::digest(&bytes).into() };
        Some(Self { id: id(settings), now, before: Vec::new() })
    }

    /// Takes over from the same entry before.
    pub(super) fn succeed(&mut self, old: &Self, now: Instant) {
        self.before = old.before.iter().filter(|(_, until)| *until > now).cloned().collect();
        if !old.now.is(&self.now) {
            self.before.retain(|(secret, _)| !secret.is(&self.now));
            self.before.insert(0, (old.now.clone(), now + OVERLAP));
            self.before.truncate(MOST_BEFORE);
        }
    }

    /// Whether the token was signed with it.
    pub(super) fn verify(&self, parts: &Parts<'_>, now: Instant) -> Result<(), TokenError> {
        let before = self.before.iter().filter(|(_, until)| *until > now).map(|(secret, _)| secret);
        let mut answer = Err(TokenError::Algorithm);
        for Secret { key, algorithm, .. } in std::iter::once(&self.now).chain(before) {
            if *algorithm == parts.algorithm {
                match verify(parts.signature, parts.signed.as_bytes(), key, *algorithm) {
                    Ok(true) => return Ok(()),
                    // A key that it cannot use was found out when it was loaded: what is left is the signature.
                    Ok(false) | Err(_) => answer = Err(TokenError::Signature),
                }
            }
        }
        answer
    }
}

impl Secret {
    fn is(&self, other: &Self) -> bool {
        self.digest == other.digest && self.algorithm == other.algorithm
    }
}

fn id(settings: &JwtKey) -> KeyId {
    let digest = match &settings.kid {
        Some(kid) => Sha256::new().chain_update("kid ").chain_update(kid),
        None => {
            Sha256::new().chain_update("file ").chain_update(settings.file.as_os_str().as_encoded_bytes())
        }
    };
    let bytes = digest.finalize();
    KeyId::new(u64::from_le_bytes(*bytes.first_chunk().expect("32 bytes")))
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

/// The algorithm of this name, where keys of it can be configured.
pub(super) fn named(name: &str) -> Option<Algorithm> {
    match name {
        "HS256" => Some(Algorithm::HS256),
        "HS384" => Some(Algorithm::HS384),
        "HS512" => Some(Algorithm::HS512),
        "RS256" => Some(Algorithm::RS256),
        "ES256" => Some(Algorithm::ES256),
        "EdDSA" => Some(Algorithm::EdDSA),
        _ => None,
    }
}
