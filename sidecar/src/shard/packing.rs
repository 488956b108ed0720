//! Compressing a publication once for all shards.
//!
//! A shard that has to compress one asks that the next ones of the channel come compressed; then the bridge does it,
//! where several shards have subscribers, and mails the result along. An ask is good for some publications, so that
//! nobody has to take it back: of a channel whose clients do not want it any more a few are compressed in vain, and of
//! any other one in so many is compressed by each shard. What nobody asked for, or what came uncompressed, a shard
//! compresses itself: an ask that is lost costs time and nothing else.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    ops::Deref,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use sidecar_config::Compression;

use crate::{
    domain::{ChannelName, Exposure, Publication},
    latency::Cell,
    protocol::{WireForm, websocket::Deflater},
};

/// Channels that are remembered. Two that share a cell take it from each other.
const CELLS: usize = 8_192;
/// Publications that one ask is good for.
const USES: u8 = 255;

/// What may be compressed for all shards. A bare message is its payload, whatever its namespace exposes.
const FORMS: [(WireForm, Exposure); 3] = [
    (WireForm::BareDeflated, Exposure::Hidden),
    (WireForm::FramedDeflated, Exposure::Hidden),
    (WireForm::FramedDeflated, Exposure::Exposed),
];

/// A publication on its way to the shards.
#[derive(Debug, PartialEq, Eq)]
pub struct Delivery {
    publication: Publication,
    /// Its frames in each of [`FORMS`], where they were asked for.
    packed: [Option<Box<[u8]>>; FORMS.len()],
}

/// What shards ask for. Read and written without a lock; what is lost between two writers is asked for again.
pub(crate) struct Wanted {
    /// A channel's tag in the upper half, in the lower one a byte for each form: how many publications are still wanted.
    cells: Box<[AtomicU64]>,
    /// Places channels; keyed, for clients choose their names.
    keys: RandomState,
    /// Whether anything was ever asked for.
    any: AtomicBool,
    level: AtomicU32,
    min_bytes: AtomicU32,
    /// Payload bytes that were compressed for all, and what they became: written by the bridge.
    pub(crate) bytes_in: Cell,
    pub(crate) bytes_out: Cell,
}

/// The bridge's end: compresses what is asked for.
#[derive(Debug, Default)]
pub struct Packer {
    wanted: Arc<Wanted>,
    deflater: Deflater,
}

// === impl Delivery ===

impl Delivery {
    /// The whole frames of the publication in this form, if they came along. A shard asks by its own settings, so that it
    /// never sends frames that were made by others.
    pub(crate) fn packed(&self, form: WireForm, exposure: Exposure) -> Option<&[u8]> {
        self.packed[place(form, exposure)?].as_deref()
    }
}

impl From<Publication> for Delivery {
    fn from(publication: Publication) -> Self {
        Self { publication, packed: Default::default() }
    }
}

impl Deref for Delivery {
    type Target = Publication;

    fn deref(&self) -> &Publication {
        &self.publication
    }
}

/// Its place in [`FORMS`].
fn place(form: WireForm, exposure: Exposure) -> Option<usize> {
    match (form, exposure) {
        (WireForm::BareDeflated, _) => Some(0),
        (WireForm::FramedDeflated, Exposure::Hidden) => Some(1),
        (WireForm::FramedDeflated, Exposure::Exposed) => Some(2),
        (WireForm::Bare | WireForm::Framed | WireForm::Sse, _) => None,
    }
}

// === impl Wanted ===

impl Wanted {
    /// By which settings the bridge compresses.
    pub(crate) fn set(&self, compression: &Compression) {
        self.level.store(compression.level, Relaxed);
        self.min_bytes.store(compression.min_bytes, Relaxed);
    }

    /// Asks for the next publications of a channel in this form.
    pub(crate) fn ask(&self, channel: &ChannelName, form: WireForm, exposure: Exposure) {
        let Some(place) = place(form, exposure) else { return };
        let (cell, tag) = self.cell(channel);
        let mut uses = uses(cell.load(Relaxed), tag);
        uses[place] = USES;
        cell.store(with(tag, uses), Relaxed);
        self.any.store(true, Relaxed);
    }

    /// Which forms of this publication are asked for; counts it.
    fn take(&self, channel: &ChannelName) -> [bool; FORMS.len()] {
        if !self.any.load(Relaxed) {
            return Default::default();
        }
        let (cell, tag) = self.cell(channel);
        let uses = uses(cell.load(Relaxed), tag);
        let wanted = std::array::from_fn(|place| uses[place] > 0);
        if wanted != [false; FORMS.len()] {
            cell.store(with(tag, uses.map(|uses| uses.saturating_sub(1))), Relaxed);
        }
        wanted
    }

    fn cell(&self, channel: &ChannelName) -> (&AtomicU64, u32) {
        let hash = self.keys.hash_one(channel);
        (&self.cells[hash as usize % CELLS], (hash >> 32) as u32)
    }
}

fn uses(cell: u64, tag: u32) -> [u8; 4] {
    if (cell >> 32) as u32 == tag { (cell as u32).to_le_bytes() } else { [0; 4] }
}

fn with(tag: u32, uses: [u8; 4]) -> u64 {
    u64::from(tag) << 32 | u64::from(u32::from_le_bytes(uses))
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            cells: (0..CELLS).map(|_| AtomicU64::new(0)).collect(),
            keys: RandomState::new(),
            any: AtomicBool::new(false),
            level: AtomicU32::new(0),
            min_bytes: AtomicU32::new(0),
            bytes_in: Cell::default(),
            bytes_out: Cell::default(),
        }
    }
}

impl fmt::Debug for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wanted").finish_non_exhaustive()
    }
}

// === impl Packer ===

impl Packer {
    pub(crate) fn new(wanted: Arc<Wanted>) -> Self {
        Self { wanted, deflater: Deflater::default() }
    }

    /// Adds the forms of a publication that shards asked for; how many bytes were compressed.
    pub fn pack(&mut self, delivery: &mut Delivery) -> usize {
        let Self { wanted, deflater } = self;
        let bytes = delivery.payload.bytes().len();
        if bytes < wanted.min_bytes.load(Relaxed) as usize {
            return 0;
        }
        let asked = wanted.take(&delivery.channel);
        let mut sum = 0;
        for (place, (form, exposure)) in FORMS.into_iter().enumerate().filter(|(place, _)| asked[*place]) {
            let level = wanted.level.load(Relaxed);
            let packed = catch_unwind(AssertUnwindSafe(|| {
                let mut frames = Vec::new();
                form.put_compressed(&mut frames, delivery, exposure, deflater, level);
                frames
            }));
            // A shard meets the same, and can tell whoever should have received it.
            let Ok(frames) = packed else { continue };
            wanted.bytes_in.add(bytes as u64);
            wanted.bytes_out.add(frames.len() as u64);
            delivery.packed[place] = Some(frames.into_boxed_slice());
            sum += bytes;
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Payload;

    fn wanted() -> Arc<Wanted> {
        let wanted = Wanted::default();
        wanted.set(&Compression { enabled: true, level: 3, min_bytes: 100 });
        Arc::new(wanted)
    }

    fn delivery(channel: &str, bytes: usize) -> Delivery {
        let payload = Payload::Text("x".repeat(bytes).into());
        Publication::bare(channel.parse().unwrap(), payload).into()
    }

    fn packed(packer: &mut Packer, channel: &str, bytes: usize) -> [bool; FORMS.len()] {
        let mut delivery = delivery(channel, bytes);
        packer.pack(&mut delivery);
        FORMS.map(|(form, exposure)| delivery.packed(form, exposure).is_some())
    }

    #[test]
    fn what_was_asked_for_is_packed_for_a_while_and_nothing_else() {
        let wanted = wanted();
        let mut packer = Packer::new(Arc::clone(&wanted));
        assert_eq!(packed(&mut packer, "a", 200), [false; 3]);
        let channel = "a".parse().unwrap();
        wanted.ask(&channel, WireForm::BareDeflated, Exposure::Exposed);
        assert_eq!(packed(&mut packer, "a", 200), [true, false, false]);
        assert_eq!(packed(&mut packer, "b", 200), [false; 3], "another channel");
        assert_eq!(packed(&mut packer, "a", 99), [false; 3], "too short to be worth it");
        wanted.ask(&channel, WireForm::FramedDeflated, Exposure::Exposed);
        for _ in 1..USES {
            assert_eq!(packed(&mut packer, "a", 200), [true, false, true]);
        }
        assert_eq!(packed(&mut packer, "a", 200), [false, false, true], "asked for once, and not again");
        assert_eq!(packed(&mut packer, "a", 200), [false; 3]);
    }

    #[test]
    fn what_comes_packed_is_what_a_shard_would_make_of_it() {
        let wanted = wanted();
        let mut delivery =
            Delivery::from(Publication { user: Some("ann".into()), ..delivery("a", 2_000).publication });
        for (form, exposure) in FORMS {
            wanted.ask(&delivery.channel, form, exposure);
        }
        assert_eq!(Packer::new(Arc::clone(&wanted)).pack(&mut delivery), 6_000);
        let mut out = 0;
        for (form, exposure) in FORMS {
            let mut frames = Vec::new();
            form.put_compressed(&mut frames, &delivery, exposure, &mut Deflater::default(), 3);
            assert_eq!(delivery.packed(form, exposure), Some(&*frames));
            out += frames.len() as u64;
        }
        assert_eq!((wanted.bytes_in.get(), wanted.bytes_out.get()), (6_000, out));
        assert_eq!(delivery.packed(WireForm::Bare, Exposure::Hidden), None);
        let framed = |exposure| delivery.packed(WireForm::FramedDeflated, exposure);
        assert_ne!(framed(Exposure::Hidden), framed(Exposure::Exposed));
    }
}
