//! Counts of values over many orders of magnitude, for percentiles, in fixed memory.

use alloc::{vec, vec::Vec};

/// Each power of two is divided into so many buckets, as a power of two: values are told
/// apart to three per cent.
const PRECISION_BITS: u32 = 5;
const PER_POWER: usize = 1 << PRECISION_BITS;
/// Up to 2^40: some eighteen minutes in nanoseconds.
const POWERS: usize = 36;

/// Counts values, as latencies in nanoseconds.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    count: u64,
    sum: u64,
    max: u64,
}

impl Histogram {
    /// One without values.
    pub fn new() -> Self {
        Self { counts: vec![0; POWERS * PER_POWER], count: 0, sum: 0, max: 0 }
    }

    /// Counts `value`.
    pub fn record(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.count += 1;
        self.sum = self.sum.saturating_add(value);
        self.max = self.max.max(value);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The largest.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The mean, rounded down; 0 without values.
    pub fn mean(&self) -> u64 {
        self.sum.checked_div(self.count).unwrap_or(0)
    }

    /// The value below or at which so many of ten thousand are, to three per cent; 0
    /// without values.
    pub fn quantile(&self, of_ten_thousand: u64) -> u64 {
        let wanted = (self.count as u128 * u128::from(of_ten_thousand)).div_ceil(10_000).max(1) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return largest_of(bucket).min(self.max);
            }
        }
        0
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

/// The bucket of a value: the values below 32 have one each; after that, the place of the
/// highest bit and the five bits below it decide.
fn bucket(value: u64) -> usize {
    let power = value.checked_ilog2().unwrap_or(0).saturating_sub(PRECISION_BITS);
    let at = (power as usize) * PER_POWER + (value >> power) as usize;
    at.min(POWERS * PER_POWER - 1)
}

/// The largest value of a bucket.
fn largest_of(bucket: usize) -> u64 {
    let power = (bucket / PER_POWER).saturating_sub(1) as u32;
    let within = (bucket - power as usize * PER_POWER) as u64;
    ((within + 1) << power) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn percentiles_of_a_thousand_values_are_where_they_should_be() {
        let mut histogram = Histogram::new();
        (1..=1000).for_each(|value| histogram.record(value * 1000));
        assert_eq!(histogram.count(), 1000);
        assert_eq!(histogram.mean(), 500_500);
        assert_eq!(histogram.quantile(10_000), 1_000_000);
        for (quantile, exact) in [(5000, 500_000), (9000, 900_000), (9900, 990_000)] {
            let found = histogram.quantile(quantile);
            assert!(found >= exact && found <= exact + exact / 30, "{quantile}: {found}");
        }
    }

    #[test]
    fn nothing_counted_is_zero() {
        assert_eq!(Histogram::new().quantile(9900), 0);
        assert_eq!(Histogram::new().mean(), 0);
    }

    proptest! {
        #[test]
        fn a_value_is_in_a_bucket_that_ends_close_above_it(value in 0u64..1 << 40) {
            let largest = largest_of(bucket(value));
            prop_assert!(largest >= value);
            prop_assert!(largest - value <= value >> PRECISION_BITS);
        }

        #[test]
        fn values_of_any_size_are_counted(values: Vec<u64>) {
            let mut histogram = Histogram::new();
            values.iter().for_each(|&value| histogram.record(value));
            prop_assert_eq!(histogram.count(), values.len() as u64);
            prop_assert_eq!(histogram.max(), values.iter().copied().max().unwrap_or(0));
        }
    }
}
