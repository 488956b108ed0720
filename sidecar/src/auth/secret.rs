//! Secrets come in files, mounted from a Secret.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Why a secret cannot be used.
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
    #[error("`{}` is no UTF-8 text", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
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
