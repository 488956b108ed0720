//! What the operator remembers of each child: what its last write made it, what the API server refused, and which
//! fields somebody else keeps changing. Pure: the time is given.
//!
//! It bounds the writes: a refused write is repeated with back-off, and so is a repair that does not last. What
//! comes back with or right after our write is another controller's will.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use super::compare::Path;
use crate::controller::{Error, ErrorClass};

/// Repairs of a field that follow each other within this time make a dispute, and so do this many of them.
const SAME_DISPUTE: Duration = Duration::from_secs(60);
const REPAIRS: u32 = 2;

/// Longest time between two attempts to end a dispute.
const LONGEST_DISPUTE: Duration = Duration::from_secs(3_600);

/// First and longest time until a refused write is sent again. What the API server refused for what it is will hardly
/// be taken a second later; a failure of its own may.
const FIRST_TRY: Duration = Duration::from_secs(1);
const LONGEST_TRY: Duration = Duration::from_secs(300);
const LASTING: u32 = 3;
const FIRST_WAIT: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// Refused attempts of one child that are remembered: in the stored form, in the form that exists, a resize and a delete.
const ATTEMPTS: usize = 4;

/// What is remembered of one child.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    /// What our last write of it made.
    pub(super) written: Option<Written>,
    /// Fields that were repaired.
    pub(super) disputes: Disputes,
    /// The last attempts that were refused, the newest last: a child may be tried in several forms.
    refused: Vec<Refused>,
}

/// What our last write of an object made it.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) uid: Option<String>,
    pub(super) version: u64,
    /// Hash of what we wanted.
    pub(super) wanted: String,
    /// Hash of the object.
    pub(super) fingerprint: String,
    /// Hash of the pod's specification in it, defaults included.
    pub(super) pod: Option<String>,
}

/// A write that the API server refused.
#[derive(Clone, Debug)]
struct Refused {
    attempt: Attempt,
    error: Error,
    count: u32,
    again: Instant,
}

/// What was tried: another wish, or another object, is another attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attempt {
    pub(super) wanted: String,
    pub(super) live: Option<String>,
}

/// Fields that were repaired, each with how often in a row.
#[derive(Clone, Debug, Default)]
pub(super) struct Disputes(BTreeMap<Path, Repairs>);

#[derive(Clone, Debug)]
struct Repairs {
    count: u32,
    last: Instant,
    /// Who else has a say in the field, as far as the API server knows.
    managers: Vec<String>,
}

// === impl Memory ===

impl Memory {
    /// The error of the same attempt and the time until it is due again, where that has not come yet.
    pub(super) fn refusal(&self, attempt: &Attempt, now: Instant) -> Option<(Error, Duration)> {
        let refused = self.refused.iter().find(|refused| refused.attempt == *attempt)?;
        let left = refused.again.checked_duration_since(now).filter(|left| !left.is_zero())?;
        Some((refused.error.clone(), left))
    }

    /// Remembers a refusal; gives the time until the next attempt. A conflict is no refusal.
    pub(super) fn refuse(&mut self, attempt: Attempt, error: &Error, now: Instant) -> Option<Duration> {
        let (first, longest) = match error.class() {
            ErrorClass::Transient => (FIRST_TRY, LONGEST_TRY),
            ErrorClass::Waiting => (FIRST_WAIT, LONGEST_WAIT),
            ErrorClass::Conflict | ErrorClass::Terminal => return None,
        };
        let before = self.refused.iter().position(|refused| refused.attempt == attempt);
        let before = before.map(|at| self.refused.remove(at));
        let count = before.map_or(0, |refused| refused.count.saturating_add(1));
        let wait = doubled(first, count, longest);
        if self.refused.len() == ATTEMPTS {
            self.refused.remove(0);
        }
        self.refused.push(Refused { attempt, error: error.clone(), count, again: now + wait });
        Some(wait)
    }

    /// Whether the same attempt has failed a few times in a row. Before that, what fails on the way to the API server
    /// mostly passes by itself.
    pub(super) fn is_lasting(&self) -> bool {
        self.refused.last().is_some_and(|refused| refused.count + 1 >= LASTING)
    }

    /// The last write went through.
    pub(super) fn accepted(&mut self, written: Written) {
        self.refused.clear();
        self.written = Some(written);
    }
}

// === impl Disputes ===

impl Disputes {
    /// Whether no field was repaired lately.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The disputed fields.
    pub(super) fn standing(&self) -> Vec<Path> {
        self.0.keys().filter(|path| self.is_disputed(path)).cloned().collect()
    }

    /// Whether a repair of this field would be in vain for now.
    pub(super) fn is_disputed(&self, path: &Path) -> bool {
        self.0.get(path).is_some_and(|repairs| repairs.count >= REPAIRS)
    }

    /// Whether it may be tried, or tried again.
    pub(super) fn may_repair(&self, path: &Path, now: Instant) -> bool {
        !self.is_disputed(path) || self.left(path, now).is_zero()
    }

    /// Time until a disputed field is tried again.
    pub(super) fn left(&self, path: &Path, now: Instant) -> Duration {
        self.0.get(path).map_or(Duration::ZERO, |repairs| {
            (repairs.last + repairs.wait()).checked_duration_since(now).unwrap_or_default()
        })
    }

    /// These fields were repaired.
    pub(super) fn repaired(&mut self, paths: &[Path], managers: &[String], now: Instant) {
        for path in paths {
            let repairs = self.entry(path, managers, now);
            repairs.count = if repairs.is_recent(now) { repairs.count.saturating_add(1) } else { 1 };
            repairs.last = now;
        }
    }

    /// These fields came back with our own write: there is no need to see it twice.
    pub(super) fn overruled(&mut self, paths: &[Path], managers: &[String], now: Instant) {
        for path in paths {
            let repairs = self.entry(path, managers, now);
            repairs.count = repairs.count.saturating_add(1).max(REPAIRS);
            repairs.last = now;
        }
    }

    /// Who else has a say in these fields.
    pub(super) fn managers(&self, paths: &[Path]) -> Vec<String> {
        let all: BTreeSet<_> =
            paths.iter().filter_map(|path| self.0.get(path)).flat_map(|it| &it.managers).collect();
        all.into_iter().cloned().collect()
    }

    fn entry(&mut self, path: &Path, managers: &[String], now: Instant) -> &mut Repairs {
        let repairs =
            self.0.entry(path.clone()).or_insert(Repairs { count: 0, last: now, managers: Vec::new() });
        if !managers.is_empty() {
            repairs.managers = managers.to_vec();
        }
        repairs
    }

    /// Forgets those that have held, or cannot count towards a dispute any more.
    pub(super) fn settle(&mut self, deviations: &[Path], now: Instant) {
        self.0.retain(|path, repairs| deviations.contains(path) || repairs.is_recent(now));
    }
}

// === impl Repairs ===

impl Repairs {
    /// A minute, and twice as long after each repair more.
    fn wait(&self) -> Duration {
        doubled(SAME_DISPUTE, self.count.saturating_sub(REPAIRS), LONGEST_DISPUTE)
    }

    fn is_recent(&self, now: Instant) -> bool {
        let window = if self.count < REPAIRS { SAME_DISPUTE } else { 2 * self.wait() };
        now.duration_since(self.last) <= window
    }
}

fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn path() -> Path {
        Path::of("spec.type")
    }

    #[test]
    fn a_field_that_is_repaired_a_third_time_within_a_minute_is_disputed_and_tried_ever_more_seldom() {
        let (mut disputes, mut now) = (Disputes::default(), Instant::now());
        for _ in 0..2 {
            assert!(disputes.may_repair(&path(), now));
            disputes.repaired(&[path()], &[], now);
            now += SECOND;
        }
        assert!(!disputes.may_repair(&path(), now));
        let mut waits = Vec::new();
        for _ in 0..8 {
            let left = disputes.left(&path(), now);
            waits.push(left.as_secs());
            now += left;
            assert!(disputes.may_repair(&path(), now));
            disputes.repaired(&[path()], &[], now);
        }
        assert_eq!(waits, [59, 120, 240, 480, 960, 1_920, 3_600, 3_600]);
    }

    #[test]
    fn repairs_that_hold_are_no_dispute() {
        let (mut disputes, mut now) = (Disputes::default(), Instant::now());
        for _ in 0..5 {
            assert!(disputes.may_repair(&path(), now));
            disputes.repaired(&[path()], &[], now);
            disputes.settle(&[], now);
            assert!(!disputes.is_empty());
            now += Duration::from_secs(61);
        }
        disputes.settle(&[], now);
        assert!(disputes.is_empty());
    }

    #[test]
    fn what_comes_back_with_our_own_write_is_disputed_at_once() {
        let (mut disputes, now) = (Disputes::default(), Instant::now());
        disputes.overruled(&[path()], &[], now);
        assert!(disputes.is_disputed(&path()) && !disputes.may_repair(&path(), now + 59 * SECOND));
        assert!(disputes.may_repair(&path(), now + 60 * SECOND));
    }

    #[test]
    fn a_refused_write_is_repeated_with_back_off_and_at_once_for_another_wish_or_object() {
        let (mut memory, mut now) = (Memory::default(), Instant::now());
        let attempt =
            |wanted: &str, live: &str| Attempt { wanted: wanted.to_owned(), live: Some(live.to_owned()) };
        let error = Error::NotOurs { kind: "Service".to_owned(), name: "chat".to_owned(), owner: None };
        let mut waits = Vec::new();
        for _ in 0..8 {
            let wait = memory.refuse(attempt("a", "1"), &error, now).expect("it waits");
            waits.push(wait.as_secs());
            assert!(memory.refusal(&attempt("a", "1"), now).is_some());
            assert_eq!(memory.is_lasting(), waits.len() >= 3);
            now += wait;
            assert!(memory.refusal(&attempt("a", "1"), now).is_none());
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 600, 600]);
        assert!(memory.refusal(&attempt("b", "1"), now - SECOND).is_none());
        assert!(memory.refusal(&attempt("a", "2"), now - SECOND).is_none());
        assert_eq!(memory.refuse(attempt("b", "1"), &error, now).expect("it waits").as_secs(), 10);
        assert!(memory.refusal(&attempt("b", "1"), now).is_some());
        assert_eq!(memory.refuse(attempt("a", "1"), &error, now).expect("it waits").as_secs(), 600);
        assert!(
            memory.refusal(&attempt("b", "1"), now).is_some(),
            "one form does not make the other forgotten"
        );
    }
}
