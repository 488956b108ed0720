//! UTF-8 that arrives in pieces.

use super::Violation;

/// Checks text piece by piece; a character may be cut between two pieces.
#[derive(Debug, Default)]
pub(super) struct Utf8 {
    /// The beginning of a character, at most three bytes.
    cut: [u8; 3],
    length: u8,
    finished: bool,
}

/// A whole text.
pub(super) fn check(bytes: &[u8]) -> Result<&str, Violation> {
    simdutf8::basic::from_utf8(bytes).map_err(|_| Violation::Utf8)
}

impl Utf8 {
    pub(super) fn push(&mut self, mut piece: &[u8], last: bool) -> Result<(), Violation> {
        self.finished = last;
        // Completes the character that was cut, byte by byte.
        while self.length > 0 && !piece.is_empty() {
            let mut character = [0; 4];
            let cut = usize::from(self.length);
            character[..cut].copy_from_slice(&self.cut[..cut]);
            character[cut] = piece[0];
            piece = &piece[1..];
            self.accept(&character[..=cut])?;
        }
        if self.length == 0 {
            self.accept(piece)?;
        }
        if last && self.length > 0 { Err(Violation::Utf8) } else { Ok(()) }
    }

    pub(super) fn finish(&mut self) {
        self.finished = true;
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Takes text that may end within a character, which is kept.
    fn accept(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        self.length = 0;
        let Err(error) = simdutf8::compat::from_utf8(bytes) else { return Ok(()) };
        if error.error_len().is_some() {
            return Err(Violation::Utf8);
        }
        let rest = &bytes[error.valid_up_to()..];
        self.cut[..rest.len()].copy_from_slice(rest);
        self.length = rest.len() as u8;
        Ok(())
    }
}
