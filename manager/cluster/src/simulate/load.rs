//! A day of load that nobody had: made of chance, but the same for the same seed.
//!
//! Seven of ten capsules serve people: they have most to do in the afternoon, each with an hour of
//! its own. Two of ten work at night. One of ten always does the same. All of them waver, by a
//! noise that lasts for some twenty minutes, and now and then each has a burst.

/// Standard deviation of the noise, as part of the load.
const NOISE: f64 = 0.2;
/// How much of the noise is left after a minute.
const KEPT: f64 = 0.95;
/// Bursts of a capsule in a minute: two a day.
const BURSTS: f64 = 2.0 / (24.0 * 60.0);
/// How many times as much there is to do in a burst.
const BURST: f64 = 2.5;

/// The load of all capsules.
pub struct Load {
    chance: Chance,
    capsules: Vec<Capsule>,
}

struct Capsule {
    memory_kib: u64,
    /// What it does at its busiest.
    peak_milli: f64,
    kind: Kind,
    /// Hour of its peak.
    hour: f64,
    noise: f64,
    burst_minutes: u32,
}

#[derive(Clone, Copy)]
enum Kind {
    Day,
    Night,
    Always,
}

impl Load {
    /// The load of so many capsules.
    pub fn new(capsules: usize, seed: u64) -> Self {
        let mut chance = Chance(seed);
        let capsules = (0..capsules)
            .map(|_| {
                let memory_mib = match chance.part() {
                    part if part < 0.40 => 16,
                    part if part < 0.70 => 32,
                    part if part < 0.90 => 64,
                    part if part < 0.98 => 128,
                    _ => 512,
                };
                let kind = match chance.part() {
                    part if part < 0.7 => Kind::Day,
                    part if part < 0.9 => Kind::Night,
                    _ => Kind::Always,
                };
                Capsule {
                    memory_kib: memory_mib << 10,
                    // Most do little, few do much: a log-normal, of mean 200.
                    peak_milli: (160.0 * (0.67 * chance.normal()).exp()).min(1000.0),
                    kind,
                    hour: 14.0 + 1.5 * chance.normal(),
                    noise: NOISE * chance.normal(),
                    burst_minutes: 0,
                }
            })
            .collect();
        Self { chance, capsules }
    }

    /// Memory of a capsule.
    pub fn memory_kib(&self, capsule: usize) -> u64 {
        self.capsules[capsule].memory_kib
    }

    /// Processor time that each wants in a minute; minutes are asked for one after the other.
    pub fn minute(&mut self, minute: u64) -> Vec<u64> {
        let hour = minute as f64 / 60.0 % 24.0;
        let chance = &mut self.chance;
        self.capsules
            .iter_mut()
            .map(|capsule| {
                capsule.noise = KEPT * capsule.noise + (1.0 - KEPT * KEPT).sqrt() * NOISE * chance.normal();
                if capsule.burst_minutes > 0 {
                    capsule.burst_minutes -= 1;
                } else if chance.part() < BURSTS {
                    capsule.burst_minutes = 5 + (chance.part() * 15.0) as u32;
                }
                let part = match capsule.kind {
                    Kind::Day => wave(hour - capsule.hour, 0.15),
                    Kind::Night => wave(hour - capsule.hour - 12.0, 0.1),
                    Kind::Always => 0.5,
                };
                let burst = if capsule.burst_minutes > 0 { BURST } else { 1.0 };
                let milli = capsule.peak_milli * part * burst * (1.0 + capsule.noise).max(0.1);
                (milli as u64).min(1000)
            })
            .collect()
    }
}

/// 1 at its hour, `low` half a day later.
fn wave(hours: f64, low: f64) -> f64 {
    let cosine = (hours * std::f64::consts::TAU / 24.0).cos();
    low + (1.0 - low) * (0.5 + 0.5 * cosine).powf(1.5)
}

/// SplitMix64: good enough to make a day up, and the same on every machine.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below 1.
    fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Of mean 0 and deviation 1, near enough: of four parts, whose sum has variance 1/3.
    fn normal(&mut self) -> f64 {
        (self.part() + self.part() + self.part() + self.part() - 2.0) * 3f64.sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_busier_than_nights_and_minutes_follow_from_those_before() {
        let mut load = Load::new(2000, 3);
        let mut sums = Vec::new();
        let mut last = Vec::new();
        let mut changed = 0.0;
        for minute in 0..24 * 60 {
            let wanted = load.minute(minute);
            sums.push(wanted.iter().sum::<u64>());
            if minute == 14 * 60 {
                let differences = wanted.iter().zip(&last).map(|(a, b): (&u64, &u64)| a.abs_diff(*b));
                changed = differences.sum::<u64>() as f64 / sums[sums.len() - 1] as f64;
            }
            last = wanted;
        }
        assert!(sums[14 * 60] > 2 * sums[2 * 60], "{} {}", sums[14 * 60], sums[2 * 60]);
        assert!((0.01..0.15).contains(&changed), "{changed}");
        let mean = sums[14 * 60] / 2000;
        assert!((100..200).contains(&mean), "{mean}");
    }
}
