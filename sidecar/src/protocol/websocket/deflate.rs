//! permessage-deflate (RFC 7692), without context takeover in either direction: a message is compressed once for
//! everybody, and an idle connection keeps no window. One [`Deflater`] and one [`Inflater`] serve a whole shard.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::{Opcode, Violation, frame};

/// What every compressed message ends with and what is not sent (RFC 7692 §7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xFF, 0xFF];
/// Room for output is made in steps of this, so that a small message needs little and a bomb is seen early.
const STEP: usize = 16 * 1_024;
/// A buffer larger than this is not kept for the next message.
const KEPT: usize = 256 * 1_024;
/// A message compressed at random bytes is longer than itself by less than this, and a 256th.
const OVERHEAD: usize = 64;

/// Compresses messages, each by itself. Holds no memory before the first one.
#[derive(Debug, Default)]
pub struct Deflater {
    state: Option<(u32, Box<Compress>)>,
    plain: Vec<u8>,
    packed: Vec<u8>,
}

/// Decompresses messages, each by itself. Holds no memory before the first one.
#[derive(Debug, Default)]
pub struct Inflater {
    state: Option<Box<Decompress>>,
    plain: Vec<u8>,
    /// See [`Self::take_gained`].
    gained: usize,
}

/// The bytes of a compressed message that are worth reading where the message may have `max`.
pub(super) fn max_packed(max: usize) -> usize {
    max.saturating_add(max / 256).saturating_add(OVERHEAD)
}

// === negotiation ===

/// The `Sec-WebSocket-Extensions` that accepts the first of the offered extensions that is spoken here; `None` where
/// none is. `offers` are the entries of the client's list, each a name with its parameters.
pub fn negotiate<'a>(mut offers: impl Iterator<Item = &'a str>) -> Option<&'static str> {
    offers.find_map(accept)
}

/// An offer is declined where it asks for what we do not do (a smaller window of ours) or is not well formed.
fn accept(offer: &str) -> Option<&'static str> {
    let mut parts = offer.split(';').map(str::trim);
    if parts.next() != Some("permessage-deflate") {
        return None;
    }
    let (mut seen, mut window) = (Vec::new(), false);
    for part in parts {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.trim().trim_matches('"'))),
            None => (part, None),
        };
        if seen.contains(&name) {
            return None;
        }
        seen.push(name);
        match (name, value) {
            (
                "server_no_context_takeover" | "client_no_context_takeover" | "client_max_window_bits",
                None,
            ) => {}
            ("client_max_window_bits", Some(bits)) if is_window(bits) => {}
            ("server_max_window_bits", Some("15")) => window = true,
            _ => return None,
        }
    }
    Some(if window {
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=15"
    } else {
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
    })
}

fn is_window(bits: &str) -> bool {
    matches!(bits, "8" | "9" | "10" | "11" | "12" | "13" | "14" | "15")
}

// === impl Deflater ===

impl Deflater {
    /// Appends a message as one frame: compressed at `level` where that makes it shorter.
    pub fn put(&mut self, out: &mut Vec<u8>, opcode: Opcode, message: &[u8], level: u32) {
        if self.pack(message, level) && self.packed.len() < message.len() {
            frame::put_compressed(out, opcode, &self.packed);
        } else {
            frame::put(out, opcode, message);
        }
        if self.packed.capacity() > KEPT {
            self.packed = Vec::new();
        }
    }

    /// The same for a message that `write` writes.
    pub fn put_with(
        &mut self,
        out: &mut Vec<u8>,
        opcode: Opcode,
        level: u32,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let mut plain = std::mem::take(&mut self.plain);
        plain.clear();
        write(&mut plain);
        self.put(out, opcode, &plain, level);
        if plain.capacity() <= KEPT {
            self.plain = plain;
        }
    }

    /// Compresses into `packed`; false where the library could not.
    fn pack(&mut self, message: &[u8], level: u32) -> bool {
        let state = match &mut self.state {
            Some((of, state)) if *of == level => state,
            state => &mut state.insert((level, Box::new(Compress::new(Compression::new(level), false)))).1,
        };
        state.reset();
        self.packed.clear();
        self.packed.reserve(max_packed(message.len()));
        loop {
            let taken = state.total_in() as usize;
            let packed = state.compress_vec(&message[taken..], &mut self.packed, FlushCompress::Sync);
            if packed.is_err() {
                return false;
            }
            // Room that is left means that all is out.
            if self.packed.len() < self.packed.capacity() {
                break;
            }
            self.packed.reserve(STEP);
        }
        let body = self.packed.strip_suffix(&TAIL).map(<[u8]>::len);
        self.packed.truncate(body.unwrap_or_default());
        body.is_some()
    }
}

// === impl Inflater ===

impl Inflater {
    /// Decompresses a message of at most `max` bytes.
    ///
    /// # Errors
    /// [`Violation::TooBig`] as soon as it turns out to have more, [`Violation::Deflate`] for what is not deflated.
    pub(super) fn message(&mut self, packed: &[u8], max: usize) -> Result<&mut [u8], Violation> {
        if self.plain.capacity() > KEPT {
            self.plain = Vec::new();
        }
        self.plain.clear();
        self.start().reset(false);
        for part in [packed, &TAIL] {
            self.inflate(part, max)?;
        }
        self.gained += self.plain.len().saturating_sub(packed.len());
        Ok(&mut self.plain)
    }

    /// By how many bytes messages became longer since this was asked last.
    pub fn take_gained(&mut self) -> usize {
        std::mem::take(&mut self.gained)
    }

    fn start(&mut self) -> &mut Decompress {
        self.state.get_or_insert_with(|| Box::new(Decompress::new(false)))
    }

    fn inflate(&mut self, mut part: &[u8], max: usize) -> Result<(), Violation> {
        loop {
            self.plain.reserve(STEP.min(max + 1 - self.plain.len()));
            let (state, plain) = (self.state.as_mut().expect("it was started"), &mut self.plain);
            let before = (state.total_in(), plain.len());
            let status = state.decompress_vec(part, plain, FlushDecompress::Sync);
            let used = (state.total_in() - before.0) as usize;
            part = &part[used..];
            if plain.len() > max {
                return Err(Violation::TooBig);
            }
            match status.map_err(|_| Violation::Deflate)? {
                // A client may end its last block for good; what follows begins anew (RFC 7692 §7.2.3.4).
                Status::StreamEnd => state.reset(false),
                Status::Ok | Status::BufError if used > 0 || plain.len() > before.1 => {}
                Status::Ok | Status::BufError if part.is_empty() => return Ok(()),
                Status::Ok | Status::BufError => return Err(Violation::Deflate),
            }
            if part.is_empty() && plain.len() < plain.capacity() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn packed(message: &[u8], level: u32) -> Vec<u8> {
        let mut deflater = Deflater::default();
        assert!(deflater.pack(message, level));
        deflater.packed
    }

    #[test]
    fn the_first_offer_that_asks_for_nothing_we_do_not_do_is_accepted() {
        let plain = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        let window = format!("{plain}; server_max_window_bits=15");
        for (offers, answer) in [
            (vec!["permessage-deflate"], Some(plain)),
            (vec!["permessage-deflate; client_max_window_bits"], Some(plain)),
            (vec!["permessage-deflate; client_max_window_bits=10;server_no_context_takeover"], Some(plain)),
            (vec!["permessage-deflate; server_max_window_bits=\"15\""], Some(window.as_str())),
            (vec!["permessage-deflate; server_max_window_bits=10", "permessage-deflate"], Some(plain)),
            (vec!["permessage-deflate; server_max_window_bits=10"], None),
            (vec!["permessage-deflate; server_max_window_bits"], None),
            (vec!["permessage-deflate; client_max_window_bits=7"], None),
            (vec!["permessage-deflate; client_no_context_takeover=1"], None),
            (vec!["permessage-deflate; client_no_context_takeover; client_no_context_takeover"], None),
            (vec!["permessage-deflate; unknown"], None),
            (vec!["x-webkit-deflate-frame"], None),
            (vec![], None),
        ] {
            assert_eq!(negotiate(offers.iter().copied()), answer, "{offers:?}");
        }
    }

    #[test]
    fn the_examples_of_the_rfc_are_read() {
        let mut inflater = Inflater::default();
        for bytes in [
            // §7.2.3.1, §7.2.3.3 (no compression), §7.2.3.4 (a final block), §7.2.3.5 (two blocks).
            &b"\xf2\x48\xcd\xc9\xc9\x07\x00"[..],
            b"\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00",
            b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00",
            b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00",
        ] {
            assert_eq!(inflater.message(bytes, 5).map(|plain| plain.to_vec()), Ok(b"Hello".to_vec()));
        }
    }

    #[test]
    fn a_bomb_is_refused_before_it_is_unpacked() {
        let bomb = packed(&vec![0; 64 * 1_024 * 1_024], 9);
        assert!(bomb.len() < 70_000, "{}", bomb.len());
        let mut inflater = Inflater::default();
        assert_eq!(inflater.message(&bomb, 65_536).map(|_| ()), Err(Violation::TooBig));
        assert!(inflater.plain.capacity() <= 128 * 1_024, "{}", inflater.plain.capacity());
        let fits = packed(&vec![0; 65_536], 3);
        assert_eq!(inflater.message(&fits, 65_536).map(|plain| plain.len()), Ok(65_536));
        assert_eq!(inflater.message(&fits, 65_535).map(|_| ()), Err(Violation::TooBig));
    }

    #[test]
    fn what_is_not_deflated_is_refused() {
        let mut inflater = Inflater::default();
        for bytes in [&b"\xff\xff\xff"[..], b"\x06\x00", b"\x00\x05\x00\x00\x00hello"] {
            assert_eq!(inflater.message(bytes, 100).map(|_| ()), Err(Violation::Deflate), "{bytes:x?}");
        }
        assert!(inflater.message(&packed(b"Hello", 3), 5).is_ok(), "the next message is read");
    }

    #[test]
    fn a_message_that_does_not_shrink_is_sent_as_it_is() {
        let (mut deflater, mut out) = (Deflater::default(), Vec::new());
        deflater.put(&mut out, Opcode::Text, b"abc", 3);
        assert_eq!(out, b"\x81\x03abc");
        out.clear();
        deflater.put(&mut out, Opcode::Text, &[b'a'; 100], 3);
        assert_eq!(out[0], 0xC1);
        assert_eq!(usize::from(out[1]), out.len() - 2);
    }

    proptest! {
        #[test]
        fn what_was_packed_is_unpacked(
            pieces in vec((any::<u8>(), 1_usize..9_000, any::<bool>()), 0..12),
            level in 1_u32..=9,
        ) {
            let mut message = Vec::new();
            for (byte, length, same) in pieces {
                message.extend((0..length).map(|at| if same { byte } else { byte.wrapping_mul(at as u8) }));
            }
            let packed = packed(&message, level);
            prop_assert!(packed.len() <= max_packed(message.len()));
            let mut inflater = Inflater::default();
            prop_assert_eq!(inflater.message(&packed, message.len()).map(|plain| plain.to_vec()), Ok(message));
        }

        #[test]
        fn any_bytes_are_read_within_the_bound(bytes in vec(any::<u8>(), 0..2_000), max in 0_usize..5_000) {
            let mut inflater = Inflater::default();
            if let Ok(plain) = inflater.message(&bytes, max) {
                prop_assert!(plain.len() <= max);
            }
        }
    }
}
