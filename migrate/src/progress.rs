//! What is told while a domain moves, and afterwards.

use std::time::Duration;

/// What happens, in the order in which it does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// The destination has made room.
    Accepted,
    /// Pages of a round are on their way.
    Sending {
        /// The round, from 0.
        round: u32,
        /// Pages of it that are done.
        pages: u64,
        /// Pages that it has.
        of: u64,
        /// Bytes on the wire since the beginning.
        bytes: u64,
    },
    /// A round has arrived.
    RoundDone(RoundStats),
    /// The domain is asked to suspend.
    Suspending {
        /// Why now.
        why: &'static str,
    },
    /// It is suspended.
    Suspended,
    /// The last pages and the state are sent; it depends on the destination now.
    HandingOver,
}

/// What a round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundStats {
    /// Its number, from 0.
    pub round: u32,
    /// Pages sent with content.
    pub pages: u64,
    /// Pages sent as zero.
    pub zero_pages: u64,
    /// Pages left out because nobody needs their content.
    pub void_pages: u64,
    /// Bytes on the wire.
    pub bytes: u64,
    /// How long it took, until the destination had it.
    pub time: Duration,
    /// Pages written meanwhile, 0 after the last round.
    pub dirty_pages: u64,
    /// Pages written in a second.
    pub dirty_rate: u64,
    /// Downtime if the domain were stopped now.
    pub expected_downtime: Duration,
}

/// What a move was like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MigrateStats {
    /// All rounds; in the last one the domain was suspended.
    pub rounds: Vec<RoundStats>,
    /// Bytes on the wire.
    pub bytes: u64,
    /// From the beginning until the domain ran again.
    pub total_time: Duration,
    /// From the request to suspend until the domain had done so. It still runs in the first part.
    pub suspend_time: Duration,
    /// From then until it ran again, or until the image was complete if it does not run again.
    pub downtime: Duration,
    /// Who told what was written; "none" if the domain was stopped at once.
    pub dirty_source: &'static str,
    /// Where the time went, in order.
    pub steps: Vec<Step>,
}

/// A part of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What was done.
    pub name: &'static str,
    /// How long it took.
    pub time: Duration,
    /// Whether the domain stood still meanwhile.
    pub suspended: bool,
}

impl MigrateStats {
    /// Pages sent with content, in all rounds.
    pub fn pages(&self) -> u64 {
        self.rounds.iter().map(|round| round.pages).sum()
    }
}
