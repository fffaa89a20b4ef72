//! What benchmarks say of their samples.

use std::time::Duration;

/// The median; of an even number, the mean of the middle two.
///
/// # Panics
/// Without samples.
pub fn median(samples: &[f64]) -> f64 {
    assert!(!samples.is_empty(), "no samples, no median");
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// How many times the peer's samples ours are: the median of the ratios of samples that were taken
/// one after the other, so that what slows the machine for a while slows both.
///
/// # Panics
/// Without samples.
pub fn ratio(ours: &[f64], peer: &[f64]) -> f64 {
    let ratios: Vec<f64> = ours.iter().zip(peer).map(|(ours, peer)| ours / peer).collect();
    median(&ratios)
}

/// Least and most.
pub fn range(samples: &[f64]) -> (f64, f64) {
    samples.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &x| (low.min(x), high.max(x)))
}

/// A line that sums samples up, in their unit.
pub fn summary(name: &str, unit: &str, samples: &[f64]) -> String {
    let (low, high) = range(samples);
    format!(
        "{name:<24} median {:>9.2} {unit}   ({low:.2} to {high:.2}, n={})",
        median(samples),
        samples.len()
    )
}

/// Milliseconds.
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_of_neighbours() {
        // The machine became ten times as fast, and 2 was the ratio throughout but for once.
        assert_eq!(ratio(&[2.0, 20.0, 30.0], &[1.0, 10.0, 10.0]), 2.0);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(range(&[3.0, 1.0, 2.0]), (1.0, 3.0));
    }
}
