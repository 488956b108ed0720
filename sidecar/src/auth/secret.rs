//! Secrets come in files, mounted from a Secret. One that cannot be read is unknown, not gone: what it held before stays
//! in force, and that is told.

use std::{
    collections::HashMap,
    fmt, fs, io, mem,
    path::{Path, PathBuf},
};

use sidecar_config::Mistake;

/// Error of a secret that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It cannot be read.
    #[error("failed to read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It holds nothing.
    #[error("`{}` is empty: write the secret into it", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// It holds a NUL or is not UTF-8 where text is expected.
    #[error("`{}` is not UTF-8 text", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
}

/// What secrets held when they were last good, from one reading of the settings to the next.
#[derive(Default)]
pub struct LastGood {
    files: HashMap<PathBuf, Vec<u8>>,
    directories: HashMap<PathBuf, Vec<PathBuf>>,
}

/// One reading of the settings: their secrets, and what there is to say of them.
#[derive(Debug, Default)]
pub struct Reading<'a> {
    before: Option<&'a LastGood>,
    now: LastGood,
    mistakes: Vec<Mistake>,
    warnings: Vec<Mistake>,
}

impl<'a> Reading<'a> {
    /// A reading behind an earlier one.
    pub fn after(before: &'a LastGood) -> Self {
        Self { before: Some(before), ..Self::default() }
    }

    /// The bytes of the secret that `setting` names, or those that it held before; `None` where there are neither, which
    /// is told.
    pub(super) fn secret(&mut self, setting: &str, path: &Path) -> Option<Vec<u8>> {
        let known = self.before.and_then(|before| before.files.get(path).cloned());
        let bytes = self.known_or(setting, read_secret(path), known)?;
        self.now.files.insert(path.to_owned(), bytes.clone());
        Some(bytes)
    }

    /// The files that `setting` names, as [`files`] has them, or those of before.
    pub(super) fn files(&mut self, setting: &str, path: &Path) -> Option<Vec<PathBuf>> {
        let known = self.before.and_then(|before| before.directories.get(path).cloned());
        let files = self.known_or(setting, files(path), known)?;
        self.now.directories.insert(path.to_owned(), files.clone());
        Some(files)
    }

    fn known_or<T>(&mut self, setting: &str, read: Result<T, SecretError>, known: Option<T>) -> Option<T> {
        match (read, known) {
            (Ok(read), _) => Some(read),
            (Err(error), Some(known)) => {
                self.warn(setting, format!("{error}; its previous value stays in effect"));
                Some(known)
            }
            (Err(error), None) => {
                self.mistake(setting, error.to_string());
                None
            }
        }
    }

    /// Tells what cannot be used.
    pub(super) fn mistake(&mut self, setting: &str, text: impl Into<String>) {
        self.mistakes.push(Mistake::new(setting, text));
    }

    /// Tells what can be used and is hardly meant.
    pub(super) fn warn(&mut self, setting: &str, text: impl Into<String>) {
        let warning = Mistake::new(setting, text);
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// The mistakes so far; they are told once.
    pub fn take_mistakes(&mut self) -> Vec<Mistake> {
        mem::take(&mut self.mistakes)
    }

    /// The warnings, and what to give to the next reading. For a reading without mistakes.
    pub fn finish(self) -> (Vec<Mistake>, LastGood) {
        (self.warnings, self.now)
    }
}

impl fmt::Debug for LastGood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not a byte of what they hold.
        f.debug_struct("LastGood").field("files", &self.files.len()).finish_non_exhaustive()
    }
}

/// What some editors put before a text, and no key begins with.
const BYTE_ORDER_MARKS: [&[u8]; 3] = [b"\xEF\xBB\xBF", b"\xFE\xFF", b"\xFF\xFE"];

/// Whether a file was written by an editor that marks its encoding.
pub(super) fn is_marked(bytes: &[u8]) -> bool {
    BYTE_ORDER_MARKS.iter().any(|mark| bytes.starts_with(mark))
}

/// What to say of such a file.
pub(super) fn marked(path: &Path) -> String {
    format!(
        "`{}` begins with a byte order mark, which is part of the secret: write it without",
        path.display()
    )
}

/// The bytes of a secret; one line break at its end is no part of it.
///
/// # Errors
/// A file that cannot be read or holds nothing.
pub fn read_secret(path: &Path) -> Result<Vec<u8>, SecretError> {
    let mut bytes = fs::read(path).map_err(|source| SecretError::Read { path: path.to_owned(), source })?;
    if bytes.ends_with(b"\n") {
        bytes.pop();
        if bytes.ends_with(b"\r") {
            bytes.pop();
        }
    }
    if bytes.is_empty() { Err(SecretError::Empty { path: path.to_owned() }) } else { Ok(bytes) }
}

/// The files that a setting names: itself, or of a directory each file. Hidden names are no secrets: a mounted
/// Secret keeps its versions in `..data` and `..2026_…`.
///
/// # Errors
/// What cannot be read, or a directory without a file.
pub fn files(path: &Path) -> Result<Vec<PathBuf>, SecretError> {
    let failed = |source| SecretError::Read { path: path.to_owned(), source };
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let is_file = || fs::metadata(entry.path()).is_ok_and(|metadata| metadata.is_file());
        if !entry.file_name().as_encoded_bytes().starts_with(b".") && is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    if files.is_empty() { Err(SecretError::Empty { path: path.to_owned() }) } else { Ok(files) }
}
