//! The opening handshake's key (RFC 6455 §4.2.2).

use base64::{Engine, engine::general_purpose::STANDARD};
use sha1::{Digest, Sha1};

const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A `Sec-WebSocket-Key` that is not 16 bytes in base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Sec-WebSocket-Key is not the base64 of 16 bytes")]
pub struct BadHandshake;

/// The `Sec-WebSocket-Accept` that answers a `Sec-WebSocket-Key`.
///
/// # Errors
/// [`BadHandshake`].
pub fn accept_key(key: &str) -> Result<String, BadHandshake> {
    if STANDARD.decode(key).map_err(|_| BadHandshake)?.len() != 16 {
        return Err(BadHandshake);
    }
    Ok(STANDARD.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc_is_answered() {
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ==").as_deref(), Ok("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(accept_key("dGhl"), Err(BadHandshake));
        assert_eq!(accept_key("not base64"), Err(BadHandshake));
    }
}
