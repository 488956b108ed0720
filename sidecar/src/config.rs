//! Settings from files: the two documents and the secrets that they name, read whole or refused whole. Called by
//! `main` and `app`; binds nothing and changes nothing.

mod watch;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use sidecar_config::{BootSettings, BrokerKind, Document, LiveSettings, Mistake, RedisBroker, parse};

use crate::auth::{AuthRules, TlsIdentity, read_secret};

pub use watch::{LiveFile, Poll};

/// Everything that a node needs to know before it binds a port.
#[derive(Debug)]
pub struct Config {
    /// The boot document.
    pub boot: BootSettings,
    /// The live document.
    pub live: Live,
    /// Where the live document came from, to see it change.
    pub file: LiveFile,
}

/// A live document that can be put in force.
#[derive(Debug)]
pub struct Live {
    /// What it says.
    pub settings: LiveSettings,
    /// Its origins, keys and tokens, with every secret read.
    pub auth: AuthRules,
    /// The certificate of the client port, if it speaks TLS.
    pub tls: Option<TlsIdentity>,
    /// First half of the SHA-256 of its text, in hex, so that others see which one is in force.
    pub hash: String,
    /// What can be used and is hardly meant.
    pub warnings: Vec<Mistake>,
}

/// The mistakes of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileMistakes {
    /// The file.
    pub file: PathBuf,
    /// What is wrong, never empty.
    pub mistakes: Vec<Mistake>,
}

/// The settings cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError(pub Vec<FileMistakes>);

impl Config {
    /// Reads both documents and every secret.
    ///
    /// # Errors
    /// All mistakes of both.
    pub fn load(boot: &Path, live: &Path) -> Result<Self, ConfigError> {
        let mut file = LiveFile::new(live);
        match (load_boot(boot), file.load()) {
            (Ok(boot), Ok(live)) => Ok(Self { boot, live, file }),
            (boot, live) => {
                Err(ConfigError([boot.err(), live.err()].into_iter().flatten().flat_map(|e| e.0).collect()))
            }
        }
    }
}

/// Reads the boot document and looks whether the secrets that it names can be read.
///
/// # Errors
/// All mistakes.
pub fn load_boot(path: &Path) -> Result<BootSettings, ConfigError> {
    let boot: BootSettings = read(path).and_then(|text| document(&text)).map_err(|e| told(path, e))?;
    let mistakes = match boot.broker.kind() {
        Some(BrokerKind::Redis(redis)) => check_redis(redis),
        Some(BrokerKind::Memory) | None => Vec::new(),
    };
    if mistakes.is_empty() { Ok(boot) } else { Err(told(path, mistakes)) }
}

/// Secrets of Redis are read again at each connect: a rotation needs no restart. That they are missing is told now.
fn check_redis(redis: &RedisBroker) -> Vec<Mistake> {
    let RedisBroker { username_file, password_file, tls, .. } = redis;
    let tls = tls.as_ref();
    [
        ("usernameFile", username_file.as_ref()),
        ("passwordFile", password_file.as_ref()),
        ("tls.caFile", tls.and_then(|tls| tls.ca_file.as_ref())),
        ("tls.certFile", tls.and_then(|tls| tls.cert_file.as_ref())),
        ("tls.keyFile", tls.and_then(|tls| tls.key_file.as_ref())),
    ]
    .into_iter()
    .filter_map(|(field, path)| Some((field, read_secret(path?).err()?)))
    .map(|(field, error)| Mistake::new(format!("broker.redis.{field}"), error.to_string()))
    .collect()
}

fn document<D: Document>(text: &[u8]) -> Result<D, Vec<Mistake>> {
    let text = std::str::from_utf8(text)
        .map_err(|error| vec![Mistake::new("", format!("is not UTF-8: {error}"))])?;
    parse(text).map_err(|mistakes| mistakes.0)
}

fn read(path: &Path) -> Result<Vec<u8>, Vec<Mistake>> {
    fs::read(path).map_err(|error| vec![Mistake::new("", format!("cannot be read: {error}"))])
}

fn told(file: &Path, mistakes: Vec<Mistake>) -> ConfigError {
    ConfigError(vec![FileMistakes { file: file.to_owned(), mistakes }])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Names a document by its text.
fn hash(text: &[u8]) -> String {
    hex(&Sha256::digest(text)[..8])
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for FileMistakes { file, mistakes } in &self.0 {
            for mistake in mistakes {
                let line_break = if std::mem::take(&mut first) { "" } else { "\n" };
                write!(f, "{line_break}{}: {mistake}", file.display())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_of_both_documents_and_their_secrets_are_told_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (boot, live) = (dir.path().join("boot.yaml"), dir.path().join("live.yaml"));
        fs::write(
            &boot,
            "broker: {redis: {address: 'r:1', channelPrefix: p, passwordFile: /nowhere/p, tls: {caFile: /nowhere/ca}}}",
        )
        .unwrap();
        fs::write(
            &live,
            "auth: {apiKeyFiles: [/nowhere/key], jwt: {keys: [{algorithm: ES256, file: live.yaml}]}}",
        )
        .unwrap();
        let told = Config::load(&boot, &live).unwrap_err().to_string();
        let lines: Vec<_> = told.lines().collect();
        for (at, part) in [
            "boot.yaml: broker.redis.passwordFile: failed to read `/nowhere/p`",
            "boot.yaml: broker.redis.tls.caFile: ",
            "live.yaml: auth.apiKeyFiles[0]: failed to read `/nowhere/key`",
            "live.yaml: auth.jwt.keys[0].file: ",
        ]
        .into_iter()
        .enumerate()
        {
            assert!(lines[at].contains(part), "{part} in {told}");
        }
        assert_eq!(lines.len(), 4, "{told}");
    }

    #[test]
    fn a_missing_document_is_told_by_its_name() {
        let told = load_boot(Path::new("/nowhere/boot.yaml")).unwrap_err().to_string();
        assert!(told.starts_with("/nowhere/boot.yaml: the document cannot be read: "), "{told}");
    }
}
