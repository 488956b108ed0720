//! Which subscriptions of one connection may have something to send, in the order of their turns. Pure.
//!
//! Kept only for connections with several subscriptions: a visit then costs what it sends, not what the connection
//! subscribed to.

use std::collections::VecDeque;

/// Numbers of subscriptions, each once.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    queue: VecDeque<u32>,
    /// A bit for each number: whether it is in the queue.
    listed: Vec<u64>,
}

impl Turns {
    /// Adds a number at the end, unless it is there.
    pub(crate) fn add(&mut self, at: usize) {
        let (word, bit) = (at / 64, 1 << (at % 64));
        if word >= self.listed.len() {
            self.listed.resize(word + 1, 0);
        }
        if self.listed[word] & bit == 0 {
            self.listed[word] |= bit;
            self.queue.push_back(at as u32);
        }
    }

    /// All, whose turn is next first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> {
        self.queue.iter().map(|at| *at as usize)
    }

    /// Takes out whose turn is next.
    pub(crate) fn next(&mut self) -> Option<usize> {
        let at = self.queue.pop_front()? as usize;
        self.clear_bit(at);
        Some(at)
    }

    /// A subscription was taken out, and the last one, if it was another, has its number now.
    pub(crate) fn removed(&mut self, at: usize, last: usize) {
        if self.is_listed(at) {
            self.queue.retain(|other| *other as usize != at);
            self.clear_bit(at);
        }
        if at != last && self.is_listed(last) {
            self.clear_bit(last);
            self.listed[at / 64] |= 1 << (at % 64);
            let moved = self.queue.iter_mut().find(|other| **other as usize == last);
            *moved.expect("it is listed") = at as u32;
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    fn is_listed(&self, at: usize) -> bool {
        self.listed.get(at / 64).is_some_and(|word| word & 1 << (at % 64) != 0)
    }

    fn clear_bit(&mut self, at: usize) {
        self.listed[at / 64] &= !(1 << (at % 64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_one_turn_and_keeps_it_under_another_number() {
        let mut turns = Turns::default();
        for at in [3, 200, 3, 0, 70] {
            turns.add(at);
        }
        assert_eq!(turns.iter().collect::<Vec<_>>(), [3, 200, 0, 70]);
        turns.removed(0, 200);
        assert_eq!(turns.iter().collect::<Vec<_>>(), [3, 0, 70]);
        turns.removed(70, 70);
        turns.removed(1, 199);
        assert_eq!((turns.next(), turns.next(), turns.next()), (Some(3), Some(0), None));
        turns.add(200);
        assert_eq!(turns.next(), Some(200));
    }
}
