//! Keys of the server API: kept as digests and compared in constant time.

use std::path::PathBuf;

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::secret::{self, Reading, SecretError};

/// The keys that are good. Digests have one length, so that a comparison tells nothing of a key's.
#[derive(Debug, Default)]
pub(super) struct ApiKeys(Vec<[u8; 32]>);

impl ApiKeys {
    /// Reads key files, one key a line.
    pub(super) fn load(paths: &[PathBuf], reading: &mut Reading<'_>) -> Self {
        let mut keys = Vec::new();
        for (at, path) in paths.iter().enumerate() {
            let setting = format!("auth.apiKeyFiles[{at}]");
            for file in reading.files(&setting, path).unwrap_or_default() {
                let Some(bytes) = reading.secret(&setting, &file) else { continue };
                match parse_keys(&bytes, file) {
                    Ok(found) => keys.extend(found),
                    Err(text) => reading.mistake(&setting, text),
                }
            }
        }
        Self(keys)
    }

    /// Whether `key` is one of them. Looks at all of them, whatever it finds.
    pub(super) fn contain(&self, key: &str) -> bool {
        let digest = digest(key);
        let found = self.0.iter().fold(Choice::from(0), |found, known| found | known.ct_eq(&digest));
        found.into()
    }
}

fn parse_keys(bytes: &[u8], path: PathBuf) -> Result<Vec<[u8; 32]>, String> {
    if secret::is_marked(bytes) {
        return Err(secret::marked(&path));
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return Err(SecretError::NotText { path }.to_string()) };
    let keys: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(digest).collect();
    if keys.is_empty() { Err(SecretError::Empty { path }.to_string()) } else { Ok(keys) }
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_gives_a_key_a_line_and_a_directory_its_files() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("keys/..data")).unwrap();
        fs::write(dir.path().join("one"), "first\r\n\n  second  \n").unwrap();
        fs::write(dir.path().join("keys/a"), "third").unwrap();
        fs::write(dir.path().join("keys/.hidden"), "fourth").unwrap();
        fs::write(dir.path().join("keys/..data/a"), "fifth").unwrap();
        let mut reading = Reading::default();
        let keys = ApiKeys::load(&[dir.path().join("one"), dir.path().join("keys")], &mut reading);
        assert_eq!(reading.take_mistakes(), []);
        for (key, good) in [("first", true), ("second", true), ("third", true), ("fourth", false)] {
            assert_eq!(keys.contain(key), good, "{key}");
        }
        assert!(!keys.contain("fifth") && !keys.contain("") && !keys.contain("first\n"));
    }

    #[test]
    fn a_missing_an_empty_a_binary_and_a_marked_file_are_mistakes_with_their_setting() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["missing", "empty", "binary", "marked"].map(|name| dir.path().join(name));
        let [_, empty, binary, marked] = &files;
        fs::write(empty, "\n").unwrap();
        fs::write(binary, [0x80, 0x81]).unwrap();
        fs::write(marked, "\u{feff}key").unwrap();
        let mut reading = Reading::default();
        ApiKeys::load(&files, &mut reading);
        let told: Vec<_> = reading.take_mistakes().iter().map(ToString::to_string).collect();
        assert!(told[0].starts_with("auth.apiKeyFiles[0]: failed to read"), "{told:?}");
        assert!(told[1].contains("is empty") && told[2].contains("is not UTF-8"), "{told:?}");
        assert!(told[3].contains("byte order mark"), "{told:?}");
    }
}
