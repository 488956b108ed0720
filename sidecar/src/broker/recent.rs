//! A map that remembers what was used lately, and forgets the rest.

use std::{collections::HashMap, hash::Hash, mem};

/// Holds at most `capacity` entries, those used least recently forgotten first, in generations: reading moves an
/// entry into the young one; once that is half the capacity, the old one is forgotten as a whole. So a look-up
/// costs one or two hashes and no list is kept in order.
#[derive(Debug)]
pub struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    capacity: usize,
    forgotten: u64,
}

impl<K: Hash + Eq + Clone, V> Recent<K, V> {
    /// Remembers at most `capacity` entries, at least half as many.
    pub fn new(capacity: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), capacity: capacity.max(2), forgotten: 0 }
    }

    /// The value of `key`, made by `default` where there is none.
    pub fn entry(&mut self, key: &K, default: impl FnOnce() -> V) -> &mut V {
        if !self.young.contains_key(key) {
            let value = self.old.remove(key).unwrap_or_else(default);
            if self.young.len() >= self.capacity / 2 {
                self.forgotten += self.old.len() as u64;
                self.old = mem::take(&mut self.young);
            }
            self.young.insert(key.clone(), value);
        }
        self.young.get_mut(key).expect("it was inserted if it was not there")
    }

    /// The value of `key`, if it is remembered; it counts as no use.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.young.get_mut(key).or_else(|| self.old.get_mut(key))
    }

    /// Forgets everything; not counted.
    pub fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }

    /// Entries forgotten for want of room since the last call.
    pub fn take_forgotten(&mut self) -> u64 {
        mem::take(&mut self.forgotten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_what_is_not_is_forgotten_and_counted() {
        let mut recent = Recent::new(10);
        for number in 0..1_000 {
            *recent.entry(&-1, || 0) += 1;
            recent.entry(&number, || 0);
            assert!(recent.young.len() + recent.old.len() <= 10);
        }
        assert_eq!(*recent.entry(&-1, || 0), 1_000, "used each time, never forgotten");
        assert_eq!(recent.get_mut(&0), None);
        let kept = (recent.young.len() + recent.old.len()) as u64;
        assert_eq!(recent.take_forgotten(), 1_001 - kept);
    }
}
