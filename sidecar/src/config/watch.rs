//! The live document as a file that changes: by content, so that the swapped symbolic links of a ConfigMap and an
//! editor that writes in place look the same. The secrets it names are part of it.
//!
//! What is new is taken once two looks in a row have found the same: an editor, or whoever copies a file, may be in the
//! middle of it at the first.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use sidecar_config::{LiveSettings, Mistake};

use super::{ConfigError, Live, document, hash, read, told};
use crate::auth::{AuthRules, LastGood, Reading, TlsIdentity, secret_files};

/// The file of a live document.
#[derive(Debug)]
pub struct LiveFile {
    path: PathBuf,
    document: Option<Parsed>,
    /// What was last tried, good or bad.
    seen: Option<[u8; 32]>,
    /// What the last look found, where that was not tried yet.
    sighted: Option<[u8; 32]>,
    secrets: LastGood,
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
    /// Something new that may still be written: the next look tells.
    Unsettled,
    /// A new document, or new secrets.
    New(Box<Live>),
    /// Something new that cannot be used.
    Bad(ConfigError),
}

impl LiveFile {
    /// The document at `path`.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            document: None,
            seen: None,
            sighted: None,
            secrets: LastGood::default(),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the document and its secrets as they are.
    ///
    /// # Errors
    /// All mistakes.
    pub fn load(&mut self) -> Result<Live, ConfigError> {
        let fingerprint = self.fingerprint();
        self.take(fingerprint)
    }

    /// Forgets what was seen: the next looks find something new, be it the same.
    pub fn forget(&mut self) {
        self.seen = None;
    }

    /// Looks whether something changed. What changes behind this look is found by the next one.
    pub fn poll(&mut self) -> Poll {
        let fingerprint = self.fingerprint();
        if self.seen == Some(fingerprint) {
            self.sighted = None;
            return Poll::Same;
        }
        if self.sighted.replace(fingerprint) != Some(fingerprint) {
            return Poll::Unsettled;
        }
        let taken = self.take(fingerprint);
        if self.fingerprint() != fingerprint {
            // It changed while it was read, and what was read may be neither.
            self.seen = None;
            return Poll::Unsettled;
        }
        match taken {
            Ok(live) => Poll::New(Box::new(live)),
            Err(error) => Poll::Bad(error),
        }
    }

    /// Takes what was found, and remembers it.
    fn take(&mut self, fingerprint: [u8; 32]) -> Result<Live, ConfigError> {
        (self.seen, self.sighted) = (Some(fingerprint), None);
        let mut reading = Reading::after(&self.secrets);
        let taken = match self.document.as_ref().map(|document| (&document.text, &document.settings)) {
            Some((Ok(text), Ok(settings))) => load(text, settings, &mut reading),
            Some((Err(mistakes), _) | (_, Err(mistakes))) => Err(mistakes.clone()),
            None => unreachable!("its fingerprint was taken"),
        };
        let mut live = taken.map_err(|mistakes| told(&self.path, mistakes))?;
        let (mut warnings, secrets) = reading.finish();
        live.warnings.append(&mut warnings);
        self.secrets = secrets;
        Ok(live)
    }

    /// Of the document and of all that it names.
    fn fingerprint(&mut self) -> [u8; 32] {
        let Parsed { text, settings } = self.parsed();
        fingerprint(text, settings.as_ref().ok())
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

fn load(text: &[u8], settings: &LiveSettings, reading: &mut Reading<'_>) -> Result<Live, Vec<Mistake>> {
    let auth = AuthRules::read(settings, reading);
    let tls = settings.hub.tls.as_ref().map(|tls| TlsIdentity::read(tls, reading));
    let mistakes = reading.take_mistakes();
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let warnings = settings.warnings();
    Ok(Live { settings: settings.clone(), auth, tls: tls.flatten(), hash: hash(text), warnings })
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

    /// What two looks in a row find.
    fn settled(file: &mut LiveFile) -> Poll {
        assert!(matches!(file.poll(), Poll::Unsettled), "the first look only sees it");
        file.poll()
    }

    fn level(poll: &Poll) -> Option<sidecar_config::LogLevel> {
        match poll {
            Poll::New(live) => Some(live.settings.log_level),
            Poll::Same | Poll::Unsettled | Poll::Bad(_) => None,
        }
    }

    #[test]
    fn what_is_half_written_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("live.yaml");
        fs::write(&path, "logLevel: warn\nonUnavailable: NotReady\n").unwrap();
        let mut file = LiveFile::new(&path);
        file.load().unwrap();
        // Truncated, then line by line: each is a good document, but for the empty one.
        for half in ["", "logLevel: debug\n", "logLevel: debug\nonUnavailable: KeepClients\n"] {
            fs::write(&path, half).unwrap();
            assert!(matches!(file.poll(), Poll::Unsettled), "{half:?}");
        }
        let Poll::New(live) = file.poll() else { panic!("nobody writes any more") };
        assert_eq!(live.settings.on_unavailable, sidecar_config::OnUnavailable::KeepClients);
        assert!(matches!(file.poll(), Poll::Same));
        fs::write(&path, "").unwrap();
        assert!(matches!(settled(&mut file), Poll::Bad(_)), "an empty document is none of defaults");
    }

    #[test]
    fn what_is_there_again_was_never_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("live.yaml");
        fs::write(&path, "logLevel: warn").unwrap();
        let mut file = LiveFile::new(&path);
        file.load().unwrap();
        fs::remove_file(&path).unwrap();
        assert!(matches!(file.poll(), Poll::Unsettled));
        fs::write(&path, "logLevel: warn").unwrap();
        assert!(matches!(file.poll(), Poll::Same));
    }

    #[test]
    fn a_secret_that_cannot_be_read_is_unknown_and_the_rest_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (path, key) = (dir.path().join("live.yaml"), dir.path().join("key"));
        let document =
            |level: &str| format!("{{logLevel: {level}, auth: {{apiKeyFiles: ['{}']}}}}", key.display());
        fs::write(&key, "first").unwrap();
        fs::write(&path, document("info")).unwrap();
        let mut file = LiveFile::new(&path);
        file.load().unwrap();
        for (round, gone) in
            [|key: &Path| fs::remove_file(key), |key: &Path| fs::write(key, "")].iter().enumerate()
        {
            gone(&key).unwrap();
            fs::write(&path, document(["warn", "debug"][round])).unwrap();
            let Poll::New(live) = settled(&mut file) else { panic!("the document is good") };
            let auth = crate::auth::Auth::new(live.auth);
            assert!(auth.api_key(Some("first")), "what it held before stays in force");
            let told: Vec<_> = live.warnings.iter().map(ToString::to_string).collect();
            assert!(told.len() == 1 && told[0].starts_with("auth.apiKeyFiles[0]: "), "{told:?}");
        }
        fs::write(&key, "second").unwrap();
        let Poll::New(live) = settled(&mut file) else { panic!("the secret is back") };
        assert!(live.warnings.is_empty());
        let auth = crate::auth::Auth::new(live.auth);
        assert!(auth.api_key(Some("second")) && !auth.api_key(Some("first")));
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
        assert_eq!(level(&settled(&mut file)), Some(sidecar_config::LogLevel::Debug));
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
        let Poll::Bad(error) = settled(&mut file) else { panic!("a bad document") };
        assert!(error.to_string().contains("logLevel"), "{error}");
        assert!(matches!(file.poll(), Poll::Same), "told once");
        fs::write(&path, "logLevel: info").unwrap();
        assert!(matches!(settled(&mut file), Poll::New(_)), "so that it is known to be good again");
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
        assert!(matches!(settled(&mut file), Poll::New(_)));
        fs::write(keys.join("b"), "six").unwrap();
        assert!(matches!(settled(&mut file), Poll::New(_)));
        fs::remove_dir_all(&keys).unwrap();
        let Poll::New(live) = settled(&mut file) else { panic!("its keys are known") };
        assert!(crate::auth::Auth::new(live.auth).api_key(Some("six")));
        assert!(matches!(file.poll(), Poll::Same));
    }
}
