//! Use of resources as rates: what two samples of a capsule's counters make.

use crate::fleet::{Answers, Fleet};
use crate::human::size;
use fcap_api::{NetStats, Stats};
use serde::Serialize;
use std::collections::HashMap;

/// One capsule's use of resources.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Usage {
    /// Percent of one processor since the sample before; none for the first.
    pub(super) cpu_percent: Option<f64>,
    #[serde(flatten)]
    pub(super) stats: Stats,
}

/// Remembers the last sample of each capsule.
#[derive(Debug, Default)]
pub(super) struct Sampler {
    last: HashMap<String, Stats>,
}

impl Sampler {
    /// Asks all nodes.
    pub(super) async fn sample(&mut self, fleet: &Fleet) -> Answers<Usage> {
        let answers = fleet.ask(|node| node.stats()).await.flat();
        let values = self.rates(answers.values);
        Answers { values, failures: answers.failures }
    }

    fn rates(&mut self, now: Vec<Stats>) -> Vec<Usage> {
        let before = std::mem::take(&mut self.last);
        self.last = now.iter().map(|stats| (stats.id.clone(), stats.clone())).collect();
        now.into_iter()
            .map(|stats| {
                let cpu_percent = before.get(&stats.id).and_then(|before| percent(before, &stats));
                Usage { cpu_percent, stats }
            })
            .collect()
    }
}

/// None when no time has passed, or when the capsule was started anew in between.
fn percent(before: &Stats, now: &Stats) -> Option<f64> {
    let elapsed = now.monotonic_ns.checked_sub(before.monotonic_ns).filter(|&elapsed| elapsed > 0)?;
    let used = now.cpu_time_ns.checked_sub(before.cpu_time_ns)?;
    Some(used as f64 / elapsed as f64 * 100.0)
}

/// "12.5%", or "--" when it is not known yet.
pub(super) fn percent_text(percent: Option<f64>) -> String {
    percent.map_or_else(|| "--".into(), |percent| format!("{percent:.2}%"))
}

/// "1.5KiB / 64KiB": received and sent since the start.
pub(super) fn net_text(net: Option<NetStats>) -> String {
    net.map_or_else(|| "-".into(), |net| format!("{} / {}", size(net.rx_bytes), size(net.tx_bytes)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn stats(id: &str, monotonic_ns: u64, cpu_time_ns: u64) -> Stats {
        Stats {
            id: id.into(),
            name: format!("name-{id}"),
            monotonic_ns,
            cpu_time_ns,
            memory_kib: 1024,
            max_memory_kib: 2048,
            vcpus: 1,
            cpu_cap: 0,
            weight: 256,
            output_bytes: 0,
            net: Some(NetStats { rx_bytes: 1536, tx_bytes: 10, ..NetStats::default() }),
        }
    }

    #[test]
    fn a_rate_needs_two_samples_of_one_run() {
        let mut sampler = Sampler::default();
        let first = sampler.rates(vec![stats("a", 1000, 500)]);
        assert_eq!(first[0].cpu_percent, None);
        let second = sampler.rates(vec![stats("a", 2000, 750), stats("b", 2000, 0)]);
        assert_eq!(second[0].cpu_percent, Some(25.0));
        assert_eq!(second[1].cpu_percent, None);
        let restarted = sampler.rates(vec![stats("a", 3000, 10), stats("b", 2000, 5)]);
        assert_eq!(restarted[0].cpu_percent, None);
        assert_eq!(restarted[1].cpu_percent, None);
        assert_eq!(percent_text(Some(12.5)), "12.50%");
        assert_eq!(net_text(second[0].stats.net), "1.5KiB / 10B");
        assert_eq!(net_text(None), "-");
    }
}
