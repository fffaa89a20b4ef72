//! What capsules used over the last minute, ten minutes and hour.
//!
//! Nodes give counters; what counts is how much they grew. A counter that went down began anew,
//! because the capsule was started again or has moved. Samples of the last minute are all kept,
//! of the rest of the hour one a minute.

use std::collections::VecDeque;

use fcap_api::Stats;
use fcap_api::cluster::{Use, Windows};

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;

/// A capsule's counters at one moment, as they would be had they never begun anew.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    time_ms: u64,
    cpu_ns: u64,
    net_bytes: u64,
    memory_kib: u64,
}

/// The last hour of one capsule.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Oldest first.
    samples: VecDeque<Sample>,
    /// Counters as the node gave them last.
    cpu_ns: u64,
    net_bytes: u64,
}

impl History {
    /// Takes counters in that came at `time_ms`.
    pub fn add(&mut self, time_ms: u64, stats: &Stats) {
        let net_bytes = stats.net.as_ref().map_or(0, |net| net.rx_bytes + net.tx_bytes);
        let last = self.samples.back().copied();
        let grown = |now: u64, before: u64| if now >= before { now - before } else { now };
        let sample = match last {
            None => Sample { time_ms, memory_kib: stats.memory_kib, ..Sample::default() },
            Some(last) if time_ms <= last.time_ms => return,
            Some(last) => Sample {
                time_ms,
                cpu_ns: last.cpu_ns + grown(stats.cpu_time_ns, self.cpu_ns),
                net_bytes: last.net_bytes + grown(net_bytes, self.net_bytes),
                memory_kib: stats.memory_kib,
            },
        };
        (self.cpu_ns, self.net_bytes) = (stats.cpu_time_ns, net_bytes);
        self.samples.push_back(sample);
        self.thin(time_ms);
    }

    /// When it was last heard of.
    pub fn last_ms(&self) -> u64 {
        self.samples.back().map_or(0, |sample| sample.time_ms)
    }

    fn thin(&mut self, now_ms: u64) {
        while self.samples.len() > 2 && self.samples[1].time_ms + HOUR_MS <= now_ms {
            self.samples.pop_front();
        }
        // What has just left the last minute goes, if a minute is covered without it.
        let old = self.samples.iter().take_while(|sample| sample.time_ms + MINUTE_MS < now_ms).count();
        if old >= 3 && self.samples[old - 1].time_ms - self.samples[old - 3].time_ms < MINUTE_MS {
            self.samples.remove(old - 2);
        }
    }

    /// What it used until its last sample.
    pub fn windows(&self) -> Windows {
        Windows {
            minute: self.over(MINUTE_MS),
            ten_minutes: self.over(10 * MINUTE_MS),
            hour: self.over(HOUR_MS),
        }
    }

    fn over(&self, window_ms: u64) -> Use {
        let Some(last) = self.samples.back() else { return Use::default() };
        let from = last.time_ms.saturating_sub(window_ms);
        // The window is at least whole: from the last sample before it began.
        let first = self.samples.iter().rposition(|sample| sample.time_ms <= from).unwrap_or(0);
        let samples = self.samples.range(first..);
        let count = samples.len() as u64;
        let memory_kib = samples.map(|sample| sample.memory_kib).sum::<u64>() / count.max(1);
        let begin = self.samples[first];
        let elapsed_ms = last.time_ms - begin.time_ms;
        if elapsed_ms == 0 {
            return Use { memory_kib, ..Use::default() };
        }
        Use {
            cpu_milli: (last.cpu_ns - begin.cpu_ns) / 1000 / elapsed_ms,
            memory_kib,
            // Bits in a millisecond are kilobits in a second.
            net_kbit: (last.net_bytes - begin.net_bytes) * 8 / elapsed_ms,
        }
    }
}

/// Of several capsules together.
pub fn sum(all: impl Iterator<Item = Windows>) -> Windows {
    let add = |a: Use, b: Use| Use {
        cpu_milli: a.cpu_milli + b.cpu_milli,
        memory_kib: a.memory_kib + b.memory_kib,
        net_kbit: a.net_kbit + b.net_kbit,
    };
    all.fold(Windows::default(), |a, b| Windows {
        minute: add(a.minute, b.minute),
        ten_minutes: add(a.ten_minutes, b.ten_minutes),
        hour: add(a.hour, b.hour),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(cpu_time_ns: u64, memory_kib: u64) -> Stats {
        Stats {
            id: "i".into(),
            name: "n".into(),
            monotonic_ns: 0,
            cpu_time_ns,
            memory_kib,
            max_memory_kib: memory_kib,
            vcpus: 1,
            cpu_cap: 0,
            weight: 256,
            output_bytes: 0,
            net: None,
        }
    }

    #[test]
    fn use_is_what_counters_grew_by() {
        let mut history = History::default();
        // Half a processor for ten minutes, then all of it for one.
        let mut cpu = 7_000_000_000;
        for second in (0..=660).step_by(10) {
            history.add(second * 1000, &stats(cpu, 1024));
            cpu += if second < 600 { 5_000_000_000 } else { 10_000_000_000 };
        }
        let windows = history.windows();
        assert_eq!(windows.minute.cpu_milli, 1000);
        // Of older samples one a minute is kept, so a window may be a little longer.
        assert!((545..=555).contains(&windows.ten_minutes.cpu_milli), "{windows:?}");
        assert_eq!(windows.hour.cpu_milli, 545);
        assert_eq!(windows.minute.memory_kib, 1024);
    }

    #[test]
    fn counters_that_begin_anew_do_not_run_backwards() {
        let mut history = History::default();
        history.add(0, &stats(50_000_000_000, 1));
        history.add(10_000, &stats(52_000_000_000, 1));
        history.add(20_000, &stats(2_000_000_000, 1));
        assert_eq!(history.windows().minute.cpu_milli, 200);
    }

    #[test]
    fn a_day_of_samples_takes_little_room() {
        let mut history = History::default();
        for sample in 0..8640 {
            history.add(sample * 10_000, &stats(sample * 1_000_000_000, 1));
        }
        assert!(history.samples.len() < 100, "{}", history.samples.len());
        let windows = history.windows();
        let within = |use_: Use| (99..=101).contains(&use_.cpu_milli);
        assert!(within(windows.minute) && within(windows.ten_minutes) && within(windows.hour), "{windows:?}");
    }
}
