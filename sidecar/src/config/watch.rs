//! The live document as a file that changes: by content, so that the swapped symbolic links of a ConfigMap and an
//! editor that writes in place look the same. The secrets it names are part of it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use sidecar_config::{LiveSettings, Mistake};

use super::{ConfigError, Live, document, hash, read, told};
use crate::auth::{AuthRules, TlsIdentity, secret_files};

/// The file of a live document.
#[derive(Debug)]
pub struct LiveFile {
    path: PathBuf,
    document: Option<Parsed>,
    /// What was last tried, good or bad.
    seen: Option<[u8; 32]>,
}

/// A text and what it says, kept so that it is parsed once.
#[derive(Debug)]
struct Parsed {
    text: Result<Vec<u8>, Vec<Mistake>>,
    settings: Result<LiveSettings, Vec<Mistake>>,
}

/// What a look at the file found.
#[derive(Debug)]
pub enum Poll {
    /// Nothing new since the last look.
    Same,
    /// A new document, or new secrets.
    New(Box<Live>),
    /// Something new that cannot be used.
    Bad(ConfigError),
}

impl LiveFile {
    /// The document at `path`.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), document: None, seen: None }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the document and its secrets, whether they are new or not.
    ///
    /// # Errors
    /// All mistakes.
    pub fn load(&mut self) -> Result<Live, ConfigError> {
        self.seen = None;
        match self.poll() {
            Poll::New(live) => Ok(*live),
            Poll::Bad(error) => Err(error),
            Poll::Same => unreachable!("nothing was seen before"),
        }
    }

    /// Looks whether something changed. What changes behind this look is found by the next one.
    pub fn poll(&mut self) -> Poll {
        let seen = self.seen;
        let Parsed { text, settings } = self.parsed();
        let fingerprint = fingerprint(text, settings.as_ref().ok());
        if seen == Some(fingerprint) {
            return Poll::Same;
        }
        let answer = match (text, settings) {
            (Ok(text), Ok(settings)) => load(text, settings),
            (Err(mistakes), _) | (_, Err(mistakes)) => Err(mistakes.clone()),
        };
        self.seen = Some(fingerprint);
        match answer {
            Ok(live) => Poll::New(Box::new(live)),
            Err(mistakes) => Poll::Bad(told(&self.path, mistakes)),
        }
    }

    fn parsed(&mut self) -> &Parsed {
        let text = read(&self.path);
        if self.document.as_ref().is_none_or(|known| known.text != text) {
            let settings = text.clone().and_then(|text| document(&text));
            self.document = Some(Parsed { text, settings });
        }
        self.document.as_ref().expect("it was put there just now")
    }
}

fn load(text: &[u8], settings: &LiveSettings) -> Result<Live, Vec<Mistake>> {
    let auth = AuthRules::load(settings);
    let tls = settings.hub.tls.as_ref().map(TlsIdentity::load).transpose();
    match (auth, tls) {
        (Ok(auth), Ok(tls)) => Ok(Live { settings: settings.clone(), auth, tls, hash: hash(text) }),
        (auth, tls) => Err([auth.err(), tls.err()].into_iter().flatten().flatten().collect()),
    }
}

/// Of the document and of all that it names. Taken before the secrets are used: what is newer is new next time.
fn fingerprint(text: &Result<Vec<u8>, Vec<Mistake>>, settings: Option<&LiveSettings>) -> [u8; 32] {
    let mut digest = Sha256::new();
    let mut part = |bytes: &[u8]| {
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    match text {
        Ok(text) => part(text),
        Err(mistakes) => mistakes.iter().for_each(|mistake| part(mistake.to_string().as_bytes())),
    }
    for path in settings.into_iter().flat_map(secrets) {
        // That a secret cannot be read is a state of it, too.
        for file in secret_files(path).unwrap_or_default() {
            part(file.as_os_str().as_encoded_bytes());
            part(&fs::read(file).unwrap_or_default());
        }
    }
    digest.finalize().into()
}

fn secrets(settings: &LiveSettings) -> impl Iterator<Item = &Path> {
    let tokens = settings.auth.jwt.iter().flat_map(|jwt| &jwt.keys).map(|key| key.file.as_path());
    let tls = settings.hub.tls.iter().flat_map(|tls| [tls.cert_file.as_path(), tls.key_file.as_path()]);
    settings.auth.api_key_files.iter().map(PathBuf::as_path).chain(tokens).chain(tls)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn level(poll: &Poll) -> Option<sidecar_config::LogLevel> {
        match poll {
            Poll::New(live) => Some(live.settings.log_level),
            Poll::Same | Poll::Bad(_) => None,
        }
    }

    #[test]
    fn a_config_map_s_swapped_links_are_seen_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (version, level) in [("v1", "info"), ("v2", "debug")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("live.yaml"), format!("logLevel: {level}")).unwrap();
        }
        symlink("v1", at("..data")).unwrap();
        symlink("..data/live.yaml", at("live.yaml")).unwrap();
        let mut file = LiveFile::new(&at("live.yaml"));
        assert_eq!(file.load().unwrap().settings.log_level, sidecar_config::LogLevel::Info);
        assert!(matches!(file.poll(), Poll::Same));
        symlink("v2", at("..tmp")).unwrap();
        fs::rename(at("..tmp"), at("..data")).unwrap();
        assert_eq!(level(&file.poll()), Some(sidecar_config::LogLevel::Debug));
        assert!(matches!(file.poll(), Poll::Same));
    }

    #[test]
    fn a_bad_document_is_told_once_and_a_mended_one_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("live.yaml");
        fs::write(&path, "logLevel: info").unwrap();
        let mut file = LiveFile::new(&path);
        file.load().unwrap();
        fs::write(&path, "logLevel: loud").unwrap();
        let Poll::Bad(error) = file.poll() else { panic!("a bad document") };
        assert!(error.to_string().contains("logLevel"), "{error}");
        assert!(matches!(file.poll(), Poll::Same), "told once");
        fs::write(&path, "logLevel: info").unwrap();
        assert!(matches!(file.poll(), Poll::New(_)), "so that it is known to be good again");
    }

    #[test]
    fn a_secret_that_changes_is_a_change_of_the_document() {
        let dir = tempfile::tempdir().unwrap();
        let (path, keys) = (dir.path().join("live.yaml"), dir.path().join("keys"));
        fs::create_dir(&keys).unwrap();
        fs::write(keys.join("a"), "one").unwrap();
        fs::write(&path, format!("auth: {{apiKeyFiles: ['{}']}}", keys.display())).unwrap();
        let mut file = LiveFile::new(&path);
        file.load().unwrap();
        assert!(matches!(file.poll(), Poll::Same));
        fs::write(keys.join("b"), "two").unwrap();
        assert!(matches!(file.poll(), Poll::New(_)));
        fs::write(keys.join("b"), "six").unwrap();
        assert!(matches!(file.poll(), Poll::New(_)));
        fs::remove_dir_all(&keys).unwrap();
        assert!(matches!(file.poll(), Poll::Bad(_)));
        assert!(matches!(file.poll(), Poll::Same));
    }
}
