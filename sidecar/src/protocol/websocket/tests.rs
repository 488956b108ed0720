use proptest::{collection::vec, prelude::*};

use super::*;

const MAX: usize = 1_000;
const BOUNDS: MaxBytes = MaxBytes { message: MAX, frame: MAX };

/// An event that owns what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owned {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

impl From<Event<'_>> for Owned {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Text(text) => Self::Text(text.to_owned()),
            Event::Binary(bytes) => Self::Binary(bytes.to_vec()),
            Event::Ping(bytes) => Self::Ping(bytes.to_vec()),
            Event::Pong(bytes) => Self::Pong(bytes.to_vec()),
            Event::Close(close) => Self::Close(close.map(|(code, reason)| (code, reason.to_owned()))),
        }
    }
}

/// A client's frame.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let key = [9, 200, 7, 77];
    let mut out = vec![first];
    match payload.len() {
        0..=125 => out.push(0x80 | payload.len() as u8),
        126..=0xFFFF => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        }
        _ => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&key);
    out.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ key[at % 4]));
    out
}

/// Feeds pieces as a connection does: what was not consumed is offered again with more behind it.
fn decode(pieces: &[&[u8]]) -> Result<Vec<Owned>, (Vec<Owned>, Violation)> {
    decode_with(None, pieces)
}

/// The same for a client that negotiated compression.
fn decode_deflated(pieces: &[&[u8]]) -> Result<Vec<Owned>, (Vec<Owned>, Violation)> {
    decode_with(Some(Inflater::default()), pieces)
}

fn decode_with(
    mut inflater: Option<Inflater>,
    pieces: &[&[u8]],
) -> Result<Vec<Owned>, (Vec<Owned>, Violation)> {
    let (mut decoder, mut kept, mut events) = (Decoder::default(), Vec::new(), Vec::new());
    for piece in pieces {
        kept.extend_from_slice(piece);
        let mut at = 0;
        loop {
            match decoder.step(&mut kept[at..], BOUNDS, inflater.as_mut()) {
                Ok(Step::Incomplete) => break,
                Ok(Step::Consumed(used, event)) => {
                    at += used;
                    events.extend(event.map(Owned::from));
                }
                Err(violation) => return Err((events, violation)),
            }
        }
        kept.drain(..at);
    }
    Ok(events)
}

fn violation(bytes: &[u8]) -> Violation {
    decode(&[bytes]).unwrap_err().1
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), 0..20), vec(any::<u8>(), 120..400)]
}

/// A message's compressed payload, whether that is shorter or not.
fn deflated(message: &[u8]) -> Vec<u8> {
    let mut state = flate2::Compress::new(flate2::Compression::new(3), false);
    let mut packed = Vec::with_capacity(message.len() + 100);
    state.compress_vec(message, &mut packed, flate2::FlushCompress::Sync).unwrap();
    packed.truncate(packed.len() - 4);
    packed
}

/// One message as its frames, compressed or not, a ping between two fragments, and the events that it gives.
fn message() -> impl Strategy<Value = (Vec<u8>, Vec<Owned>)> {
    let fragments =
        (vec(any::<char>(), 0..120), any::<bool>(), vec(0_usize..400, 0..4), any::<bool>(), any::<bool>());
    let whole = prop_oneof![
        payload().prop_map(|bytes| (frame(0x82, &bytes), vec![Owned::Binary(bytes)])),
        vec(any::<u8>(), 0..125).prop_map(|bytes| (frame(0x89, &bytes), vec![Owned::Ping(bytes)])),
        vec(any::<u8>(), 0..125).prop_map(|bytes| (frame(0x8A, &bytes), vec![Owned::Pong(bytes)])),
    ];
    let split = fragments.prop_map(|(characters, text, mut cuts, ping, deflate)| {
        let content: String = characters.into_iter().collect();
        let packed = deflated(content.as_bytes());
        let bytes = if deflate { &packed } else { content.as_bytes() };
        cuts.iter_mut().for_each(|cut| *cut %= bytes.len() + 1);
        cuts.sort_unstable();
        cuts.push(bytes.len());
        let (mut out, mut events, mut start) = (Vec::new(), Vec::new(), 0);
        for (at, cut) in cuts.iter().enumerate() {
            let opcode = match (at, text) {
                (0, true) => 1,
                (0, false) => 2,
                _ => 0,
            };
            let compressed = if deflate && at == 0 { 0x40 } else { 0 };
            let fin = if at + 1 == cuts.len() { 0x80 } else { 0 };
            out.extend(frame(fin | compressed | opcode, &bytes[start..*cut]));
            if ping && fin == 0 {
                out.extend(frame(0x89, b"between"));
                events.push(Owned::Ping(b"between".to_vec()));
            }
            start = *cut;
        }
        events.push(if text { Owned::Text(content) } else { Owned::Binary(content.into_bytes()) });
        (out, events)
    });
    prop_oneof![whole, split]
}

proptest! {
    #[test]
    fn any_split_of_the_bytes_gives_the_same_events(
        messages in vec(message(), 1..8),
        cuts in vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let bytes: Vec<u8> = messages.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
        let expected: Vec<Owned> = messages.into_iter().flat_map(|(_, events)| events).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        cuts.push(bytes.len());
        let mut start = 0;
        let pieces: Vec<&[u8]> = cuts.iter().map(|cut| &bytes[std::mem::replace(&mut start, *cut)..*cut]).collect();
        prop_assert_eq!(decode_deflated(&pieces).unwrap(), expected);
    }

    #[test]
    fn any_bytes_give_events_or_a_violation_the_same_in_one_piece_and_byte_by_byte(bytes in vec(any::<u8>(), 0..300)) {
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(decode(&[&bytes]), decode(&single));
        prop_assert_eq!(decode_deflated(&[&bytes]), decode_deflated(&single));
    }
}

#[test]
fn frames_against_the_rfc_are_told_apart() {
    for (bytes, expected) in [
        (vec![0xC1, 0x80], Violation::ReservedBit),
        (vec![0x83, 0x80], Violation::ReservedOpcode),
        (vec![0x8B], Violation::ReservedOpcode),
        (vec![0x81, 0x01, b'a'], Violation::NotMasked),
        (vec![0x81, 0xFE, 0, 125], Violation::Length),
        (vec![0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF], Violation::Length),
        (vec![0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0], Violation::Length),
        (vec![0x89, 0xFE], Violation::ControlFrame),
        (vec![0x09], Violation::ControlFrame),
        (frame(0x80, b"a"), Violation::LoneContinuation),
        ([frame(0x01, b"a"), frame(0x81, b"b")].concat(), Violation::Interleaved),
        (frame(0x88, b"x"), Violation::CloseCode),
        (frame(0x88, &1005_u16.to_be_bytes()), Violation::CloseCode),
        (frame(0x88, &2999_u16.to_be_bytes()), Violation::CloseCode),
        (frame(0x88, &[3, 0xE8, 0xFF]), Violation::Utf8),
        (frame(0x81, &[0xFF]), Violation::Utf8),
        (frame(0x82, &[0; MAX + 1]), Violation::TooBig),
        ([frame(0x02, &[0; MAX]), frame(0x80, b"x")].concat(), Violation::TooBig),
    ] {
        assert_eq!(violation(&bytes), expected, "{:?}", &bytes[..bytes.len().min(12)]);
    }
}

#[test]
fn compressed_frames_against_the_rfc_are_told_apart() {
    let bomb = deflated(&[0; MAX + 1]);
    for (bytes, expected) in [
        (frame(0xC9, b""), Violation::ReservedBit),
        (frame(0xC8, b""), Violation::ReservedBit),
        (frame(0xA1, b""), Violation::ReservedBit),
        (frame(0x91, b""), Violation::ReservedBit),
        ([frame(0x01, b"a"), frame(0xC0, b"b")].concat(), Violation::ReservedBit),
        (frame(0xC1, b"\xFF\xFF"), Violation::Deflate),
        (frame(0xC1, &deflated(&[0xFF])), Violation::Utf8),
        (frame(0xC2, &bomb), Violation::TooBig),
        ([frame(0x42, &bomb[..4]), frame(0x80, &bomb[4..])].concat(), Violation::TooBig),
        (frame(0xC2, &[0; MAX * 2]), Violation::TooBig),
    ] {
        let found = decode_deflated(&[&bytes]).unwrap_err().1;
        assert_eq!(found, expected, "{:x?}", &bytes[..bytes.len().min(12)]);
    }
    assert_eq!(violation(&frame(0xC1, &deflated(b"a"))), Violation::ReservedBit, "nothing was negotiated");
}

#[test]
fn a_frame_too_big_is_refused_by_its_header_alone() {
    assert_eq!(violation(&[0x82, 0xFE, 0xFF, 0xFF, 0, 0, 0, 0]), Violation::TooBig);
}

#[test]
fn a_character_cut_between_fragments_is_whole_and_a_wrong_one_is_found_before_the_end() {
    let bytes = "a€😀".as_bytes();
    for cut in 0..=bytes.len() {
        let frames = [frame(0x01, &bytes[..cut]), frame(0x00, b""), frame(0x80, &bytes[cut..])].concat();
        assert_eq!(decode(&[&frames]).unwrap(), [Owned::Text("a€😀".to_owned())]);
    }
    assert_eq!(violation(&frame(0x01, &[b'a', 0xC0])), Violation::Utf8);
    let cut_off = [frame(0x01, &[0xE2, 0x82]), frame(0x80, b"")].concat();
    assert_eq!(violation(&cut_off), Violation::Utf8);
}

#[test]
fn a_close_frame_gives_its_code_and_reason() {
    assert_eq!(decode(&[&frame(0x88, b"")]).unwrap(), [Owned::Close(None)]);
    let bytes = frame(0x88, b"\x0F\xA0bye");
    assert_eq!(decode(&[&bytes]).unwrap(), [Owned::Close(Some((4000, "bye".to_owned())))]);
}

#[test]
fn a_decoder_keeps_nothing_between_whole_messages() {
    let mut decoder = Decoder::default();
    let mut bytes = [frame(0x01, b"a"), frame(0x80, b"b"), frame(0x81, b"c")].concat();
    let mut at = 0;
    while let Step::Consumed(used, _) = decoder.step(&mut bytes[at..], BOUNDS, None).unwrap() {
        at += used;
    }
    assert!(decoder.is_idle());
}
