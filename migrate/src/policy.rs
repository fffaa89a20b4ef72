//! When to stop the domain: a pure function of what was measured.
//!
//! Each round sends what was written during the one before. If the domain writes more slowly than
//! the link carries, rounds shrink until the rest fits into the downtime that is allowed. If not,
//! further rounds gain nothing, and the policy ends them, one way or the other.

use std::time::Duration;

use xen_proto::frame::PAGE_SIZE;

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrecopyPolicy {
    /// The domain is stopped once the rest is expected to take no longer.
    pub max_downtime: Duration,
    /// The most rounds while it runs.
    pub max_rounds: u32,
    /// If `max_downtime` cannot be had: give up rather than exceed it.
    pub strict: bool,
    /// No rounds while it runs: it is stopped at once.
    pub stop_and_copy: bool,
}

impl Default for PrecopyPolicy {
    fn default() -> Self {
        Self { max_downtime: Duration::from_millis(100), max_rounds: 20, strict: false, stop_and_copy: false }
    }
}

/// What was measured by the end of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrecopyStats {
    /// Rounds done.
    pub rounds: u32,
    /// Pages that the last round had to send.
    pub sent_pages: u64,
    /// Pages written since, which the next round has to send.
    pub dirty_pages: u64,
    /// How long the last round took.
    pub round_time: Duration,
    /// Bytes of pages (before packing) that the link and the destination take in a second, as
    /// far as known.
    pub bytes_per_second: Option<u64>,
    /// Rounds in a row, the last one included, that left about as much as they found.
    pub stuck_rounds: u32,
}

impl PrecopyStats {
    /// Pages written in a second.
    pub fn dirty_rate(&self) -> u64 {
        (self.dirty_pages as f64 / self.round_time.as_secs_f64().max(1e-6)) as u64
    }

    /// How long the pages that are dirty now would take, with the domain stopped.
    pub fn expected_downtime(&self) -> Duration {
        let bytes = self.dirty_pages as f64 * PAGE_SIZE as f64;
        Duration::from_secs_f64(bytes / self.bytes_per_second.unwrap_or(u64::MAX).max(1) as f64)
    }

    /// Whether the last round left less than half of what it found, so that one more is worth it.
    pub fn is_gaining(&self) -> bool {
        self.dirty_pages * 2 < self.sent_pages
    }

    /// Whether the last round left about as much as it found.
    pub fn is_stuck(&self) -> bool {
        self.dirty_pages * 10 > self.sent_pages * 8
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Another round while the domain runs.
    Continue,
    /// Stop the domain and send the rest; says why.
    StopAndCopy(&'static str),
    /// Leave the domain where it is; says why.
    Abort(String),
}

/// So few pages that another round costs more than it saves.
const FEW_PAGES: u64 = 32;
/// After so many rounds that gain nothing there is no hope.
const STUCK_ROUNDS: u32 = 3;

impl PrecopyPolicy {
    /// What to do after a round.
    pub fn decide(&self, stats: &PrecopyStats) -> Decision {
        if stats.expected_downtime() <= self.max_downtime {
            // As long as rounds halve what is left, they cost little and spare downtime.
            return if stats.dirty_pages <= FEW_PAGES {
                Decision::StopAndCopy("hardly anything is left")
            } else if stats.is_gaining() && stats.rounds < self.max_rounds {
                Decision::Continue
            } else {
                Decision::StopAndCopy("the rest fits into the downtime")
            };
        }
        let why = if stats.rounds >= self.max_rounds {
            "the rounds are used up"
        } else if stats.stuck_rounds >= STUCK_ROUNDS {
            "further rounds gain nothing"
        } else {
            return Decision::Continue;
        };
        if !self.strict {
            return Decision::StopAndCopy(why);
        }
        Decision::Abort(format!(
            "{why}: it writes {} pages a second, and the rest would take {:.0} ms instead of {:.0} ms; \
             allow more downtime, or move it when it has less to do",
            stats.dirty_rate(),
            stats.expected_downtime().as_secs_f64() * 1e3,
            self.max_downtime.as_secs_f64() * 1e3,
        ))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A domain that writes `dirty` pages a second at random places of `memory` pages, over a
    /// link of `link` pages a second. Returns decisions made and pages left at the end.
    fn run(policy: &PrecopyPolicy, memory: f64, dirty: f64, link: f64) -> (u32, Decision, f64) {
        let (mut left, mut rounds, mut stuck) = (memory, 0, 0);
        loop {
            let time = left / link;
            let sent = left;
            left = memory * (1.0 - (-dirty * time / memory).exp());
            rounds += 1;
            let mut stats = PrecopyStats {
                rounds,
                sent_pages: sent as u64,
                dirty_pages: left as u64,
                round_time: Duration::from_secs_f64(time),
                bytes_per_second: Some((link * PAGE_SIZE as f64) as u64),
                stuck_rounds: 0,
            };
            stuck = if stats.is_stuck() { stuck + 1 } else { 0 };
            stats.stuck_rounds = stuck;
            match policy.decide(&stats) {
                Decision::Continue => assert!(rounds < 1000),
                decision => return (rounds, decision, left),
            }
        }
    }

    #[test]
    fn an_idle_domain_needs_one_round() {
        let (rounds, decision, _) = run(&PrecopyPolicy::default(), 1e5, 0.0, 1e4);
        assert_eq!((rounds, decision), (1, Decision::StopAndCopy("hardly anything is left")));
    }

    #[test]
    fn a_domain_that_writes_slowly_is_stopped_within_the_downtime() {
        let policy = PrecopyPolicy::default();
        let (rounds, decision, left) = run(&policy, 1e5, 7e3, 1e4);
        assert!((2..15).contains(&rounds), "{rounds} rounds");
        assert_eq!(decision, Decision::StopAndCopy("the rest fits into the downtime"));
        assert!(left / 1e4 <= policy.max_downtime.as_secs_f64());
    }

    #[test]
    fn rounds_that_halve_what_is_left_go_on_until_hardly_anything_is() {
        let (rounds, decision, left) = run(&PrecopyPolicy::default(), 1e5, 2e3, 1e4);
        assert!((2..10).contains(&rounds), "{rounds} rounds");
        assert_eq!(decision, Decision::StopAndCopy("hardly anything is left"));
        assert!(left <= FEW_PAGES as f64 + 1.0);
    }

    #[test]
    fn a_domain_that_writes_faster_than_the_link_is_stopped_or_left_as_wished() {
        let policy = PrecopyPolicy::default();
        let (rounds, decision, _) = run(&policy, 1e5, 1e6, 1e4);
        assert_eq!(decision, Decision::StopAndCopy("further rounds gain nothing"));
        assert!(rounds <= 5, "{rounds} rounds");
        let strict = PrecopyPolicy { strict: true, ..policy };
        let (_, decision, _) = run(&strict, 1e5, 1e6, 1e4);
        let Decision::Abort(why) = decision else { panic!("{decision:?}") };
        assert!(why.contains("gain nothing"), "{why}");
    }

    proptest! {
        #[test]
        fn it_always_comes_to_an_end(
            memory in 1.0..1e7f64, dirty in 0.0..1e8f64, link in 1.0..1e7f64,
            max_rounds in 1u32..50, strict: bool, max_downtime in 0u64..10_000,
        ) {
            let max_downtime = Duration::from_millis(max_downtime);
            let policy = PrecopyPolicy { max_downtime, max_rounds, strict, stop_and_copy: false };
            let (rounds, decision, left) = run(&policy, memory, dirty, link);
            prop_assert!(rounds <= max_rounds);
            if strict && matches!(decision, Decision::StopAndCopy(_)) {
                prop_assert!(left.floor() / link <= max_downtime.as_secs_f64() + 0.01);
            }
        }
    }
}
