//! A limit on bytes per second, as a pure function of time.

use std::time::Duration;

/// Lets through so many bytes per second on average. Reads no clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenBucket {
    bytes_per_second: u64,
    /// When the bytes let through so far are paid for, since the beginning.
    paid: Duration,
}

/// With less, the other side would take the link for dead.
const LEAST_RATE: u64 = 64 << 10;
/// What may go through at once after a pause.
const BURST: Duration = Duration::from_millis(20);

impl TokenBucket {
    /// Lets through `bytes_per_second`, or the least that makes sense if that is more.
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(LEAST_RATE), paid: Duration::ZERO }
    }

    /// The limit.
    pub(crate) fn bytes_per_second(&self) -> u64 {
        self.bytes_per_second
    }

    /// Takes `bytes` at the time `now` (since the beginning): how long to wait before they may go.
    pub(crate) fn take(&mut self, bytes: u64, now: Duration) -> Duration {
        self.paid = self.paid.max(now.saturating_sub(BURST));
        let wait = self.paid.saturating_sub(now);
        let cost = Duration::from_nanos(
            (u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second)) as u64,
        );
        self.paid = self.paid.saturating_add(cost);
        wait
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_average_never_exceeds_the_limit(
            rate in 100_000u64..10_000_000,
            takes in proptest::collection::vec((1u64..1_000_000, 0u64..50), 1..100),
        ) {
            let mut bucket = TokenBucket::new(rate);
            let (mut now, mut sent) = (Duration::ZERO, 0);
            for (bytes, pause) in takes {
                now += Duration::from_millis(pause);
                now += bucket.take(bytes, now);
                // Whatever went before must have been paid for, but for the burst.
                let allowed = (now + BURST).as_secs_f64() * rate as f64;
                prop_assert!(sent as f64 <= allowed + 1.0, "{sent} bytes by {now:?}");
                sent += bytes;
            }
        }
    }

    #[test]
    fn a_steady_stream_gets_the_whole_rate() {
        let mut bucket = TokenBucket::new(1_000_000);
        let mut now = Duration::ZERO;
        for _ in 0..1000 {
            now += bucket.take(10_000, now);
        }
        assert!((9.9..10.1).contains(&now.as_secs_f64()), "{now:?}");
    }
}
