//! Token buckets of one connection, one for each namespace that it publishes in; none until then.

use sidecar_config::RateLimit;
use smallvec::SmallVec;

/// See the module. A connection publishes in one namespace or two, so a list is searched.
#[derive(Debug, Default)]
pub struct Buckets(Option<Box<SmallVec<[Bucket; 1]>>>);

#[derive(Debug)]
struct Bucket {
    namespace: Box<str>,
    /// Thousandths of publications that are left.
    left: u64,
    at_ms: u64,
}

/// Thousandths make whole numbers of `per second × milliseconds`.
const ONE: u64 = 1_000;

impl Buckets {
    /// Takes one publication's worth; false when there is none left now.
    pub fn take(&mut self, namespace: &str, limit: &RateLimit, now_ms: u64) -> bool {
        let full = u64::from(limit.burst) * ONE;
        let buckets = self.0.get_or_insert_default();
        let bucket = match buckets.iter().position(|bucket| &*bucket.namespace == namespace) {
            Some(at) => &mut buckets[at],
            None => {
                buckets.push(Bucket { namespace: namespace.into(), left: full, at_ms: now_ms });
                buckets.last_mut().expect("one was pushed")
            }
        };
        let filled = now_ms.saturating_sub(bucket.at_ms) * u64::from(limit.publishes_per_second);
        bucket.left = bucket.left.saturating_add(filled).min(full);
        bucket.at_ms = now_ms;
        match bucket.left.checked_sub(ONE) {
            Some(left) => {
                bucket.left = left;
                true
            }
            None => false,
        }
    }
}
