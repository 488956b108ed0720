//! What a conflating subscription has still to send: of the frames with the same key the newest only. Pure.
//!
//! Allocated for a client that does not keep up, and only where publications have keys; without keys the newest
//! message is the end of the log and nothing is copied.

use std::collections::{HashSet, VecDeque};

use super::log::{Key, Lag};

/// Whole frames, oldest first; of the first one a part may have been taken.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    bytes: Vec<u8>,
    frames: VecDeque<(Key, u32)>,
    sent: usize,
}

/// What was taken from a backlog.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Frames whose first part or whole was sent.
    pub(crate) messages: u64,
    /// The rest of a frame that was sent in part: it goes before all else.
    pub(crate) rest: Vec<u8>,
}

impl Backlog {
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub(crate) fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// The memory that it has, filled or not.
    pub(crate) fn footprint(&self) -> usize {
        self.bytes.capacity() + self.frames.capacity() * size_of::<(Key, u32)>()
    }

    /// What it holds.
    pub(crate) fn lag(&self) -> Lag {
        Lag { bytes: self.unsent().len() as u64, messages: self.frames.len() as u64 }
    }

    /// Adds newer frames, keeps the newest of each key, and of these as many as fit the bounds (one at least). Whether
    /// all fitted.
    pub(crate) fn merge<'a>(&mut self, newer: impl Iterator<Item = (Key, &'a [u8])>, max: Lag) -> bool {
        let old = std::mem::take(self);
        let mut at = old.sent;
        let kept = old.frames.iter().map(|(key, length)| {
            let start = at;
            at += *length as usize;
            (*key, &old.bytes[start..at])
        });
        let mut all: Vec<(Key, &[u8])> = kept.collect();
        for (key, frame) in newer {
            all.push((key, frame));
        }
        let (mut seen, mut chosen, mut bytes, mut all_fit) = (HashSet::new(), Vec::new(), 0, true);
        for (key, frame) in all.into_iter().rev() {
            if !seen.insert(key) {
                continue;
            }
            bytes += frame.len() as u64;
            if !chosen.is_empty() && (bytes > max.bytes || chosen.len() as u64 >= max.messages) {
                all_fit = false;
                break;
            }
            chosen.push((key, frame));
        }
        for (key, frame) in chosen.into_iter().rev() {
            self.bytes.extend_from_slice(frame);
            self.frames.push_back((key, frame.len() as u32));
        }
        all_fit
    }

    /// Moves on by what was sent; once nothing is left, no memory is either.
    pub(crate) fn take(&mut self, sent: usize) -> Taken {
        let mut taken = Taken::default();
        let mut left = sent;
        while left > 0 {
            let (_, length) = self.frames.pop_front().expect("no more is sent than there is");
            let length = length as usize;
            taken.messages += 1;
            if left < length {
                taken.rest = self.bytes[self.sent + left..self.sent + length].to_vec();
            }
            self.sent += length;
            left = left.saturating_sub(length);
        }
        if self.frames.is_empty() {
            *self = Self::default();
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Lag = Lag { bytes: u64::MAX, messages: u64::MAX };

    fn backlog(frames: &[(Key, &str)], max: Lag) -> Backlog {
        let mut backlog = Backlog::default();
        let all_fit = backlog.merge(frames.iter().map(|(key, frame)| (*key, frame.as_bytes())), max);
        assert_eq!(all_fit, max == ALL);
        backlog
    }

    #[test]
    fn the_newest_of_each_key_is_kept_in_the_order_of_the_newest() {
        let mut backlog = backlog(&[(1, "a1 "), (2, "b1 "), (1, "a2 "), (3, "c1 ")], ALL);
        assert_eq!(backlog.unsent(), b"b1 a2 c1 ");
        assert!(backlog.merge([(2, &b"b2 "[..])].into_iter(), ALL));
        assert_eq!(backlog.unsent(), b"a2 c1 b2 ");
        assert_eq!(backlog.lag(), Lag { bytes: 9, messages: 3 });
    }

    #[test]
    fn what_does_not_fit_the_bounds_is_left_out_oldest_first_but_never_the_newest() {
        let frames = [(1, "a"), (2, "b"), (3, "c")];
        assert_eq!(backlog(&frames, Lag { bytes: 2, messages: 9 }).unsent(), b"bc");
        assert_eq!(backlog(&frames, Lag { bytes: 9, messages: 1 }).unsent(), b"c");
        assert_eq!(backlog(&frames, Lag { bytes: 0, messages: 0 }).unsent(), b"c");
    }

    #[test]
    fn the_rest_of_a_half_sent_frame_leaves_the_backlog() {
        let mut backlog = backlog(&[(1, "aaaa"), (2, "bbbb"), (3, "cccc")], ALL);
        assert_eq!(backlog.take(6), Taken { messages: 2, rest: b"bb".to_vec() });
        assert_eq!(backlog.unsent(), b"cccc");
        backlog.merge([(1, &b"a"[..])].into_iter(), ALL);
        assert_eq!(backlog.unsent(), b"cccca");
        assert_eq!(backlog.take(5), Taken { messages: 2, rest: Vec::new() });
        assert!(backlog.is_empty());
    }
}
