//! How many packets a card is to wait for before it tells of them.
//!
//! An event costs the host time beside the packet itself, and so does telling it of an answer.
//! Where many connections are busy, packets come in bursts if their answers go in bursts: so after
//! a burst one more of the same size is waited for, but for no longer than it should take.
//! Where there are few connections every packet may be the one that somebody waits for, and is
//! told of at once.

/// Most packets that are waited for.
const PACKETS_MAX: u32 = 32;
/// So many connections allow for one packet.
const CONNECTIONS: usize = 2;
/// Longest wait in nanoseconds.
const WAIT_MAX: u64 = 16_000_000;

/// What came lately.
#[derive(Debug, Default)]
pub struct Moderation {
    /// Packets since the last rest.
    taken: u32,
    /// When that was.
    rested_ns: u64,
    /// Nanoseconds between packets, on average.
    gap_ns: u64,
}

impl Moderation {
    /// Notes packets that were taken.
    pub fn took(&mut self, packets: usize) {
        self.taken = self.taken.saturating_add(packets as u32);
    }

    /// Nothing is left to do: how many packets to wait for, and the time by when to look for them
    /// in any case; `u64::MAX` if one is enough.
    pub fn rest(&mut self, now_ns: u64, connections: usize) -> (u32, u64) {
        let taken = core::mem::take(&mut self.taken);
        let passed = now_ns.saturating_sub(core::mem::replace(&mut self.rested_ns, now_ns));
        if taken > 0 {
            let gap = passed / u64::from(taken);
            // Half of what it was, and half of what it is.
            self.gap_ns = (self.gap_ns.min(WAIT_MAX) + gap.min(WAIT_MAX)) / 2;
        }
        let allowed = (connections / CONNECTIONS).min(PACKETS_MAX as usize) as u32;
        match taken.min(allowed) {
            0 | 1 => (1, u64::MAX),
            count => (count, now_ns + (2 * u64::from(count) * self.gap_ns).min(WAIT_MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: u64 = 1000;

    #[test]
    fn single_packets_and_few_connections_are_told_of_at_once() {
        let mut moderation = Moderation::default();
        for turn in 1..100 {
            moderation.took(1);
            assert_eq!(moderation.rest(turn * 100 * US, 1000), (1, u64::MAX));
        }
        for turn in 100..200 {
            moderation.took(10);
            assert_eq!(moderation.rest(turn * 100 * US, CONNECTIONS), (1, u64::MAX));
        }
    }

    #[test]
    fn a_burst_is_waited_for_once_more_and_not_for_long() {
        let mut moderation = Moderation::default();
        assert_eq!(moderation.rest(0, 100), (1, u64::MAX));
        for turn in 1..=20 {
            moderation.took(8);
            let now = turn * 80 * US;
            let (count, until) = moderation.rest(now, 100);
            assert_eq!(count, 8);
            assert!(until > now && until - now <= 2 * 8 * 10 * US, "{until} at {now}");
        }
        // It did not come whole, and then not at all.
        moderation.took(3);
        assert_eq!(moderation.rest(2000 * US, 100).0, 3);
        assert_eq!(moderation.rest(3000 * US, 100), (1, u64::MAX));
    }

    #[test]
    fn waiting_is_bounded_however_slowly_packets_come_and_clocks_go() {
        let mut moderation = Moderation::default();
        for now in [5_000_000_000, 60_000_000_000, 1_000, u64::MAX / 2] {
            moderation.took(1_000_000);
            let (count, until) = moderation.rest(now, usize::MAX);
            assert_eq!(count, PACKETS_MAX);
            assert!(until - now <= WAIT_MAX);
        }
    }
}
