//! How long things took: a histogram that one thread writes and any reads, in Prometheus' native buckets and in
//! classic ones.
//!
//! Written with relaxed stores and without a lock, so that a shard can count every delivery. The native buckets are
//! those of schema 3 of Prometheus' [specification](https://prometheus.io/docs/specs/native_histograms/): each is
//! wider than the one before by 2^(1/8), so that a quantile is known to within 9 %.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NativeHistogram, NativeHistogramBuckets, NoLabelSet},
    metrics::MetricType,
};

/// Classic buckets: upper bounds in microseconds, from a message on one machine to a client that is nearly given up.
const CLASSIC_US: [u32; 16] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    5_000_000, 30_000_000,
];

const SCHEMA: i32 = 3;
/// Buckets of one octave.
const PER_OCTAVE: usize = 1 << SCHEMA;
/// Native buckets begin at 2^-20 s, some 0.95 µs; what is shorter is in the zero bucket.
const LOWEST_EXPONENT: i32 = -20;
/// They reach to 2^13 s: beyond what 32 bits of microseconds hold.
const OCTAVES: usize = 33;
const NATIVE: usize = OCTAVES * PER_OCTAVE + 1;

/// One number, written by one thread and read by any.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

/// Durations in microseconds, counted by one thread. See the module.
pub struct Histogram {
    /// Of the zero bucket first.
    native: [Cell; NATIVE],
    classic: [Cell; CLASSIC_US.len()],
    sum_us: Cell,
}

/// One that its writer and a registry share. Cheap to clone; still one thread writes.
#[derive(Clone, Debug, Default)]
pub struct SharedHistogram(Arc<Histogram>);

/// Sums of histograms at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    native: Vec<u64>,
    classic: [u64; CLASSIC_US.len()],
    sum_us: u64,
}

// === impl Cell ===

impl Cell {
    /// Only one thread writes, so that load and store need not be one step.
    pub fn add(&self, value: u64) {
        self.set(self.get().wrapping_add(value));
    }

    /// The same, downward.
    pub fn sub(&self, value: u64) {
        self.set(self.get().wrapping_sub(value));
    }

    /// Replaces it.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// What it is.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

// === impl Histogram ===

impl Default for Histogram {
    fn default() -> Self {
        Self {
            native: std::array::from_fn(|_| Cell::default()),
            classic: Default::default(),
            sum_us: Cell::default(),
        }
    }
}

impl Histogram {
    /// Counts `count` times a duration.
    pub fn record(&self, us: u32, count: u64) {
        self.native[native_bucket(us)].add(count);
        if let Some(classic) = self.classic.get(CLASSIC_US.partition_point(|bound| *bound < us)) {
            classic.add(count);
        }
        self.sum_us.add(u64::from(us) * count);
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram").finish_non_exhaustive()
    }
}

impl SharedHistogram {
    /// Counts a duration.
    pub fn record(&self, us: u64) {
        self.0.record(u32::try_from(us).unwrap_or(u32::MAX), 1);
    }
}

impl EncodeMetric for SharedHistogram {
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let mut snapshot = Snapshot::default();
        snapshot.add(&self.0);
        snapshot.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// 0 is the zero bucket; else the first bucket whose upper bound is not below the duration.
fn native_bucket(us: u32) -> usize {
    const MANTISSA_BITS: u32 = f64::MANTISSA_DIGITS - 1;
    let bits = (f64::from(us) * 1e-6).to_bits();
    let exponent = (bits >> MANTISSA_BITS) as i32 - 1_023;
    if exponent < LOWEST_EXPONENT {
        return 0;
    }
    let mantissa = f64::from_bits(bits & ((1 << MANTISSA_BITS) - 1) | 1.0_f64.to_bits());
    let within = OCTAVE.partition_point(|bound| *bound < mantissa);
    (exponent - LOWEST_EXPONENT) as usize * PER_OCTAVE + within
}

/// Upper bounds in an octave: 2^(n/8).
const OCTAVE: [f64; PER_OCTAVE] = [
    1.0,
    1.090_507_732_665_257_7,
    1.189_207_115_002_721,
    1.296_839_554_651_009_6,
    std::f64::consts::SQRT_2,
    1.542_210_825_407_940_7,
    1.681_792_830_507_429,
    1.834_008_086_409_342_4,
];

// === impl Snapshot ===

impl Default for Snapshot {
    fn default() -> Self {
        Self { native: vec![0; NATIVE], classic: Default::default(), sum_us: 0 }
    }
}

impl Snapshot {
    /// Adds what a histogram has counted so far.
    pub fn add(&mut self, histogram: &Histogram) {
        let Histogram { native, classic, sum_us } = histogram;
        self.native.iter_mut().zip(native).for_each(|(sum, cell)| *sum += cell.get());
        self.classic.iter_mut().zip(classic).for_each(|(sum, cell)| *sum += cell.get());
        self.sum_us = self.sum_us.wrapping_add(sum_us.get());
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.native.iter().sum()
    }

    /// Runs of buckets that counted anything, as gaps and lengths, and the difference of each bucket to the one
    /// before it.
    fn spans(&self) -> (Vec<(i32, u32)>, Vec<i64>) {
        let (mut spans, mut deltas) = (Vec::<(i32, u32)>::new(), Vec::new());
        let (mut end, mut before) = (0, 0);
        for (at, count) in self.native.iter().enumerate().skip(1).filter(|(_, count)| **count > 0) {
            let index = at as i32 + LOWEST_EXPONENT * PER_OCTAVE as i32;
            match spans.last_mut() {
                Some((_, length)) if index == end => *length += 1,
                _ => spans.push((index - end, 1)),
            }
            end = index + 1;
            deltas.push(*count as i64 - before);
            before = *count as i64;
        }
        (spans, deltas)
    }
}

impl EncodeMetric for Snapshot {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let count = self.count();
        let mut buckets: Vec<_> =
            CLASSIC_US.iter().map(|us| f64::from(*us) / 1e6).zip(self.classic).collect();
        // Read one after the other while they are written: the last bucket must not be below nothing.
        buckets.push((f64::INFINITY, count.saturating_sub(self.classic.iter().sum())));
        let (spans, deltas) = self.spans();
        let native = NativeHistogram {
            schema: SCHEMA,
            zero_threshold: f64::from(LOWEST_EXPONENT).exp2(),
            zero_count: self.native[0],
            negative: NativeHistogramBuckets { spans: &[], deltas: &[] },
            positive: NativeHistogramBuckets { spans: &spans, deltas: &deltas },
            created: None,
        };
        let sum = self.sum_us as f64 / 1e6;
        encoder.encode_histogram_with_native::<NoLabelSet>(sum, count, &buckets, None, native)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn upper_bound(bucket: usize) -> f64 {
        (f64::from(LOWEST_EXPONENT) + bucket as f64 / PER_OCTAVE as f64).exp2()
    }

    proptest! {
        #[test]
        fn a_duration_is_in_the_bucket_that_ends_at_or_above_it(us: u32) {
            let (bucket, seconds) = (native_bucket(us), f64::from(us) / 1e6);
            let near = 1e-12;
            if bucket == 0 {
                prop_assert!(seconds <= upper_bound(0) * (1.0 + near));
            } else {
                prop_assert!(seconds <= upper_bound(bucket) * (1.0 + near));
                prop_assert!(seconds > upper_bound(bucket - 1) * (1.0 - near));
            }
        }
    }

    #[test]
    fn runs_of_buckets_are_spans_and_counts_are_differences() {
        let histogram = Histogram::default();
        for (us, count) in [(0, 2), (1_000_000, 5), (1_050_000, 3), (4_000_000, 1)] {
            histogram.record(us, count);
        }
        let mut snapshot = Snapshot::default();
        snapshot.add(&histogram);
        assert_eq!(snapshot.count(), 11);
        assert_eq!(snapshot.native[0], 2);
        // 1 s is the upper bound of bucket 0; 1.05 s is in bucket 1; 4 s ends bucket 16.
        assert_eq!(snapshot.spans(), (vec![(0, 2), (14, 1)], vec![5, -2, -2]));
        assert_eq!(snapshot.sum_us, 5_000_000 + 3_150_000 + 4_000_000);
    }
}
