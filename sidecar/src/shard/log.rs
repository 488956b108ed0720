//! A channel's frames in one wire form, and the cursors that read them. Pure.
//!
//! Frames are appended to contiguous segments. A [`Cursor`] is a subscription's place and its send queue: what
//! lies between it and the head has yet to be sent. A segment is freed once no cursor needs it, so a log whose
//! readers keep up holds nothing between two publications. A reader that lets go of what comes after some frame says
//! so by [`Log::stop`]: then it needs nothing beyond, and segments in the middle may be freed.

use std::collections::VecDeque;

use smallvec::SmallVec;

/// A segment takes no more frames beyond this; a larger frame has one of its own. One write's worth of bytes.
const SEGMENT: usize = 64 * 1_024;

/// A place in a log: the bytes before it were sent. May lie within a frame.
pub(crate) type Cursor = u64;

/// How far a cursor is behind.
#[derive(Default, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lag {
    pub(crate) bytes: u64,
    /// Frames that were not sent whole.
    pub(crate) messages: u64,
}

/// Frames and who has yet to read them. Whoever holds a cursor says so by [`Log::join`] and [`Log::leave`].
#[derive(Debug, Default)]
pub(crate) struct Log {
    segments: VecDeque<Segment>,
    head: u64,
    /// Memory of all segments.
    held: usize,
    /// Frames that were ever appended.
    messages: u64,
    cursors: u32,
    /// Cursors behind the head.
    behind: u32,
    /// Cursors that have a stop.
    stops: u32,
}

#[derive(Debug)]
struct Segment {
    start: u64,
    /// Frames appended before this segment.
    first: u64,
    bytes: Vec<u8>,
    /// Where each frame ends, from `start`.
    ends: Vec<u32>,
    /// When frames were published: one for each run of frames of the same moment, by the number of its first frame.
    births: Vec<(u32, Moment)>,
    /// What each frame is about; shorter than `ends`, or empty, where the rest has [`NO_KEY`].
    keys: Vec<Key>,
    /// Cursors in here that are behind the head.
    cursors: u32,
    /// Cursors, here or before, that need nothing behind this segment.
    stops: u32,
}

/// What a publication is about, hashed: of frames with the same key the latest counts.
pub(crate) type Key = u64;

/// The key of publications without one: they are all about the same thing, the channel.
pub(crate) const NO_KEY: Key = 0;

/// Microseconds since the shard began, of which the lowest 32 bits are kept: differences of an hour are right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moment(pub(crate) u32);

/// Frames that were published in the same moment.
pub(crate) type Births = SmallVec<[(Moment, u64); 2]>;

/// Buffers of freed segments, for all logs of a shard: appending allocates only when more is held than before.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    segments: Vec<Spare>,
    /// Memory of all of them.
    held: usize,
    /// And how much that may be.
    most: usize,
}

#[derive(Debug, Default)]
struct Spare {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    births: Vec<(u32, Moment)>,
}

// === impl Moment ===

impl Moment {
    pub(crate) fn of_us(us: u64) -> Self {
        Self(us as u32)
    }

    /// Microseconds since then, one that is ahead by a rounding included.
    pub(crate) fn until(self, now: Self) -> u32 {
        now.0.wrapping_sub(self.0)
    }
}

// === impl Lag ===

impl Lag {
    pub(crate) fn is_within(self, max: Self) -> bool {
        self.bytes <= max.bytes && self.messages <= max.messages
    }
}

// === impl Log ===

impl Log {
    pub(crate) fn head(&self) -> Cursor {
        self.head
    }

    /// Memory of the frames that some cursor still needs and of what shares a segment with them, whatever it is for:
    /// of messages of a few bytes, most is for their ends and times.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Frames appended before `cursor`, one that it lies in not included.
    pub(crate) fn messages_before(&self, cursor: Cursor) -> u64 {
        // A cursor at the end of a segment belongs to that one here: what came behind may be gone.
        match self.segments.get(self.ending_at_or_after(cursor)) {
            Some(segment) => segment.first + segment.frames_before(cursor) as u64,
            None => self.messages,
        }
    }

    /// A cursor at the head.
    pub(crate) fn join(&mut self) -> Cursor {
        self.cursors += 1;
        self.head
    }

    /// Takes a cursor out; returns how much memory was freed.
    pub(crate) fn leave(&mut self, cursor: Cursor, spares: &mut Spares) -> usize {
        self.cursors -= 1;
        if cursor == self.head {
            return 0;
        }
        self.behind -= 1;
        self.segment_mut(cursor).expect("a cursor behind the head has a segment").cursors -= 1;
        self.trim(spares)
    }

    /// Appends the whole frames of one publication, which `write` writes. Returns how much memory that took; none where
    /// every cursor has a stop: then a single byte that nobody can read stands for them.
    pub(crate) fn append(
        &mut self,
        spares: &mut Spares,
        key: Key,
        born: Moment,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> usize {
        if self.cursors == self.stops {
            self.head += 1;
            self.messages += 1;
            return 0;
        }
        let fits = |last: &Segment| last.bytes.len() < SEGMENT && last.end() == self.head;
        let mut footprint = 0;
        match self.segments.back().filter(|last| fits(last)) {
            Some(last) => footprint = last.footprint(),
            None => self.push_segment(spares),
        }
        let at_head = self.cursors - self.behind;
        let last = self.segments.back_mut().expect("one was pushed");
        let before = last.bytes.len();
        write(&mut last.bytes);
        let added = last.bytes.len() - before;
        if last.births.last().is_none_or(|(_, before)| *before != born) {
            last.births.push((last.ends.len() as u32, born));
        }
        last.ends.push(u32::try_from(last.bytes.len()).expect("a publication is far below 4 GiB"));
        if key != NO_KEY {
            last.keys.resize(last.ends.len() - 1, NO_KEY);
            last.keys.push(key);
        }
        last.cursors += at_head;
        let grown = last.footprint() - footprint;
        self.behind = self.cursors;
        self.head += added as u64;
        self.held += grown;
        self.messages += 1;
        grown
    }

    /// Moves a cursor forward by what was sent, or to a frame's edge; returns how much memory was freed.
    pub(crate) fn advance(&mut self, from: Cursor, to: Cursor, spares: &mut Spares) -> usize {
        debug_assert!(from <= to && to <= self.head, "a cursor moves forward, up to the head");
        if from == to {
            return 0;
        }
        let same = self.segment(from).is_some_and(|segment| to < segment.end());
        if same {
            return 0;
        }
        self.segment_mut(from).expect("a cursor behind the head has a segment").cursors -= 1;
        match self.segment_mut(to) {
            Some(segment) => segment.cursors += 1,
            None => self.behind -= 1,
        }
        self.trim(spares)
    }

    /// Up to `budget` bytes from a cursor on, at least a piece of one if there is any.
    pub(crate) fn read(&self, cursor: Cursor, budget: usize) -> impl Iterator<Item = &[u8]> {
        let first = self.segments.partition_point(|segment| segment.end() <= cursor);
        let mut left = budget;
        self.segments.range(first..).map_while(move |segment| {
            if left == 0 {
                return None;
            }
            let start = cursor.saturating_sub(segment.start) as usize;
            let bytes = &segment.bytes[start..];
            let bytes = &bytes[..bytes.len().min(left)];
            left -= bytes.len();
            Some(bytes)
        })
    }

    /// The first edge between frames at or after a cursor.
    pub(crate) fn edge(&self, cursor: Cursor) -> Cursor {
        match self.segment(cursor) {
            Some(segment) if !segment.is_edge(cursor) => {
                segment.start + u64::from(segment.ends[segment.frames_before(cursor)])
            }
            _ => cursor,
        }
    }

    /// Where the frame ends that a cursor lies in or before; the cursor itself at the head.
    pub(crate) fn next_edge(&self, cursor: Cursor) -> Cursor {
        match self.segment(cursor) {
            Some(segment) => segment.start + u64::from(segment.ends[segment.frames_before(cursor)]),
            None => cursor,
        }
    }

    pub(crate) fn is_edge(&self, cursor: Cursor) -> bool {
        self.segment(cursor).is_none_or(|segment| segment.is_edge(cursor))
    }

    pub(crate) fn lag(&self, cursor: Cursor) -> Lag {
        Lag { bytes: self.head - cursor, messages: self.messages - self.messages_before(cursor) }
    }

    /// The first frame's edge at or after a cursor from which the lag is within both bounds.
    pub(crate) fn within(&self, cursor: Cursor, max: Lag) -> Cursor {
        let by_bytes = self.edge(cursor.max(self.head.saturating_sub(max.bytes)));
        let by_messages = self.cursor_of(self.messages.saturating_sub(max.messages));
        by_bytes.max(by_messages)
    }

    /// The last frame's edge at or behind a cursor for which both bounds hold from the cursor on.
    pub(crate) fn reach(&self, cursor: Cursor, max: Lag) -> Cursor {
        let by_messages = self.cursor_of(self.messages_before(cursor).saturating_add(max.messages));
        self.edge_before(cursor.saturating_add(max.bytes)).min(by_messages).max(self.edge(cursor))
    }

    /// A cursor before this edge, which has no stop so far, needs nothing beyond it and must not be read beyond.
    /// Returns how much memory was freed.
    pub(crate) fn stop(&mut self, stop: Cursor, spares: &mut Spares) -> usize {
        let at = self.ending_at_or_after(stop);
        self.segments[at].stops += 1;
        self.stops += 1;
        self.trim(spares)
    }

    /// Takes the stop of a cursor back; the cursor is then moved to the head, or leaves.
    pub(crate) fn unstop(&mut self, stop: Cursor) {
        let at = self.ending_at_or_after(stop);
        self.segments[at].stops -= 1;
        self.stops -= 1;
    }

    /// Whole frames from a cursor on, which is at an edge, with their keys.
    pub(crate) fn frames(&self, cursor: Cursor) -> impl Iterator<Item = (Key, &[u8])> {
        let first = self.segments.partition_point(|segment| segment.end() <= cursor);
        self.segments.range(first..).flat_map(move |segment| segment.frames_from(cursor))
    }

    /// When the frames between two numbers, counted as by [`Log::messages_before`], were published.
    pub(crate) fn births(&self, first: u64, end: u64) -> Births {
        let mut births = Births::new();
        let mut from = first;
        let at = self.segments.partition_point(|segment| segment.first <= first).saturating_sub(1);
        for segment in self.segments.range(at..) {
            if from >= end {
                break;
            }
            for (at, (frame, born)) in segment.births.iter().enumerate() {
                let next = segment.births.get(at + 1).map_or(segment.ends.len() as u32, |(frame, _)| *frame);
                let (frame, next) = (segment.first + u64::from(*frame), segment.first + u64::from(next));
                let count = next.min(end).saturating_sub(frame.max(from));
                if count > 0 {
                    births.push((*born, count));
                }
            }
            from = from.max(segment.first + segment.ends.len() as u64);
        }
        births
    }

    /// Whether a frame from this cursor on has a key.
    pub(crate) fn has_keys(&self, cursor: Cursor) -> bool {
        let first = self.segments.partition_point(|segment| segment.end() <= cursor);
        self.segments.range(first..).any(|segment| !segment.keys.is_empty())
    }

    /// Where the frame with this number begins, counted from the first that was ever appended.
    fn cursor_of(&self, message: u64) -> Cursor {
        let after = self.segments.partition_point(|segment| segment.first <= message);
        let Some(segment) = after.checked_sub(1).map(|at| &self.segments[at]) else { return 0 };
        match (message - segment.first) as usize {
            0 => segment.start,
            frames => segment.start + u64::from(segment.ends[frames.min(segment.ends.len()) - 1]),
        }
    }

    /// The last edge between frames at or before a place; 0 where all before it is gone.
    fn edge_before(&self, place: Cursor) -> Cursor {
        match self.segment(place) {
            Some(segment) if place <= segment.start => segment.start,
            Some(segment) => match segment.frames_before(place) {
                0 => segment.start,
                frames => segment.start + u64::from(segment.ends[frames - 1]),
            },
            None => self.head,
        }
    }

    fn ending_at_or_after(&self, place: Cursor) -> usize {
        self.segments.partition_point(|segment| segment.end() < place)
    }

    fn segment(&self, cursor: Cursor) -> Option<&Segment> {
        // Nearly always there is one, and the cursor is in it.
        self.segments.get(self.segments.partition_point(|segment| segment.end() <= cursor))
    }

    fn segment_mut(&mut self, cursor: Cursor) -> Option<&mut Segment> {
        let at = self.segments.partition_point(|segment| segment.end() <= cursor);
        self.segments.get_mut(at)
    }

    /// Gives back what was asked for ahead of need; returns how much memory was freed.
    pub(crate) fn shrink(&mut self) -> usize {
        let before = self.held;
        for Segment { bytes, ends, births, keys, .. } in &mut self.segments {
            bytes.shrink_to_fit();
            ends.shrink_to_fit();
            births.shrink_to_fit();
            keys.shrink_to_fit();
        }
        self.held = self.segments.iter().map(Segment::footprint).sum();
        before - self.held
    }

    fn push_segment(&mut self, spares: &mut Spares) {
        let Spare { bytes, ends, births } = spares.take();
        self.segments.push_back(Segment {
            start: self.head,
            first: self.messages,
            bytes,
            ends,
            births,
            keys: Vec::new(),
            cursors: 0,
            stops: 0,
        });
    }

    /// Frees segments that no cursor needs: at the front, and between a stop and the next cursor.
    fn trim(&mut self, spares: &mut Spares) -> usize {
        let (mut freed, mut at, mut readers) = (0, 0, 0);
        while let Some(segment) = self.segments.get(at) {
            readers += segment.cursors;
            let needed = readers > 0;
            readers -= segment.stops;
            if needed {
                // Without a stop, whoever reads this one reads all that follow.
                if readers > 0 && self.stops == 0 {
                    break;
                }
                at += 1;
                continue;
            }
            let segment = self.segments.remove(at).expect("it was just seen");
            freed += segment.footprint();
            let Segment { bytes, ends, births, .. } = segment;
            spares.put(Spare { bytes, ends, births });
        }
        self.held -= freed;
        freed
    }
}

impl Segment {
    /// The memory that it has, filled or not.
    fn footprint(&self) -> usize {
        let Self { bytes, ends, births, keys, .. } = self;
        size_of::<Self>() + footprint_of(bytes, ends, births) + keys.capacity() * size_of::<Key>()
    }

    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Whole frames of this segment before a cursor.
    fn frames_before(&self, cursor: Cursor) -> usize {
        let at = cursor.saturating_sub(self.start);
        self.ends.partition_point(|end| u64::from(*end) <= at)
    }

    fn frames_from(&self, cursor: Cursor) -> impl Iterator<Item = (Key, &[u8])> {
        let first = self.frames_before(cursor);
        (first..self.ends.len()).map(|at| {
            let start = at.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
            let key = self.keys.get(at).copied().unwrap_or(NO_KEY);
            (key, &self.bytes[start..self.ends[at] as usize])
        })
    }

    fn is_edge(&self, cursor: Cursor) -> bool {
        let at = cursor.saturating_sub(self.start);
        at == 0 || self.ends.binary_search_by(|end| u64::from(*end).cmp(&at)).is_ok()
    }
}

// === impl Spares ===

impl Spares {
    /// As many as a busy shard turns over at once.
    const MOST: usize = 16;
    /// Memory of all of them.
    const MOST_BYTES: usize = 2 * 1_024 * 1_024;

    /// Keeps a part of what the shard may have, and no more than pays.
    pub(crate) fn within(budget: usize) -> Self {
        Self { most: Self::MOST_BYTES.min(budget / 16), ..Self::default() }
    }

    /// Memory of what is kept.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    pub(crate) fn clear(&mut self) {
        self.segments = Vec::new();
        self.held = 0;
    }

    fn take(&mut self) -> Spare {
        let spare = self.segments.pop().unwrap_or_default();
        self.held -= spare.footprint();
        spare
    }

    fn put(&mut self, mut spare: Spare) {
        let footprint = spare.footprint();
        if self.segments.len() >= Self::MOST || self.held + footprint > self.most {
            return;
        }
        spare.bytes.clear();
        spare.ends.clear();
        spare.births.clear();
        self.held += footprint;
        self.segments.push(spare);
    }
}

impl Spare {
    fn footprint(&self) -> usize {
        footprint_of(&self.bytes, &self.ends, &self.births)
    }
}

fn footprint_of(bytes: &Vec<u8>, ends: &Vec<u32>, births: &Vec<(u32, Moment)>) -> usize {
    bytes.capacity() + ends.capacity() * size_of::<u32>() + births.capacity() * size_of::<(u32, Moment)>()
}

#[cfg(test)]
mod tests;
