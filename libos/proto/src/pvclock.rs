//! The paravirtual clock: from the processor's counter to nanoseconds.

/// Byte offset in the record of `u32 version`: odd while Xen changes the record.
pub const VERSION: usize = 0;
/// Byte offset in the record of `u64 tsc_timestamp`.
pub const TSC_TIMESTAMP: usize = 8;
/// Byte offset in the record of `u64 system_time`.
pub const SYSTEM_TIME: usize = 16;
/// Byte offset in the record of `u32 tsc_to_system_mul`.
pub const MUL: usize = 24;
/// Byte offset in the record of `i8 tsc_shift`, in a word with flags above it.
pub const SHIFT: usize = 28;

/// How the counter relates to system time (`struct vcpu_time_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// The counter when the record was made.
    pub tsc_timestamp: u64,
    /// System time when the record was made, in nanoseconds.
    pub system_time_ns: u64,
    /// Nanoseconds for 2^32 counts, after the shift.
    pub mul: u32,
    /// Counts are shifted by this to the left, or to the right when negative.
    pub shift: i8,
}

impl Scale {
    /// System time in nanoseconds when the counter is `tsc`.
    ///
    /// A counter before the record's (another processor's, a little behind)
    /// counts as the record's.
    pub fn system_time_ns(&self, tsc: u64) -> u64 {
        let counts = u128::from(tsc.saturating_sub(self.tsc_timestamp));
        let shift = u32::from(self.shift.unsigned_abs()).min(63);
        let shifted = if self.shift < 0 { counts >> shift } else { counts << shift };
        let ns = shifted.saturating_mul(self.mul.into()) >> 32;
        self.system_time_ns.saturating_add(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

/// A clock over system time that goes on when the domain changes machines.
///
/// System time is how long the *machine* has been up: elsewhere it is another number, larger
/// or smaller. Here it is shifted so that it never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Monotonic {
    /// Added to system time, modulo 2^64.
    offset_ns: u64,
    /// The latest time that was seen.
    latest_ns: u64,
}

impl Monotonic {
    /// A clock that shows system time.
    pub const fn new() -> Self {
        Self { offset_ns: 0, latest_ns: 0 }
    }

    /// Time now, when system time is `system_ns`; never less than it was.
    ///
    /// System time may step back a little when the vCPU changes processors.
    pub fn now(&mut self, system_ns: u64) -> u64 {
        // What lies ahead by more than half of all numbers lies behind.
        let now = system_ns.wrapping_add(self.offset_ns);
        if (now.wrapping_sub(self.latest_ns) as i64) > 0 {
            self.latest_ns = now;
        }
        self.latest_ns
    }

    /// Goes on where system time is `system_ns` now, after standing still for `stood_ns`.
    pub fn rebase(&mut self, system_ns: u64, stood_ns: u64) {
        self.latest_ns = self.latest_ns.saturating_add(stood_ns);
        self.offset_ns = self.latest_ns.wrapping_sub(system_ns);
    }

    /// The system time at which this clock shows `time_ns`: 0 if that was before the machine started.
    pub fn system_time_ns(&self, time_ns: u64) -> u64 {
        let system = i128::from(time_ns) - i128::from(self.offset_ns as i64);
        system.clamp(0, u64::MAX.into()) as u64
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_counter_of_2_ghz_takes_half_a_nanosecond() {
        let scale = Scale { tsc_timestamp: 1000, system_time_ns: 77, mul: 1 << 31, shift: 0 };
        assert_eq!(scale.system_time_ns(1000), 77);
        assert_eq!(scale.system_time_ns(3000), 1077);
        assert_eq!(scale.system_time_ns(0), 77);
        let shifted = Scale { mul: 1 << 31, shift: -1, ..scale };
        assert_eq!(shifted.system_time_ns(5000), 1077);
    }

    #[test]
    fn a_clock_goes_on_where_the_machine_has_just_started() {
        let mut clock = Monotonic::new();
        assert_eq!(clock.now(5_000_000), 5_000_000);
        clock.rebase(100, 30);
        assert_eq!(clock.now(100), 5_000_030);
        assert_eq!(clock.now(150), 5_000_080);
        assert_eq!(clock.system_time_ns(5_001_030), 1100);
        assert_eq!(clock.system_time_ns(0), 0);
        clock.rebase(9_000_000, 0);
        assert_eq!(clock.now(9_000_001), 5_000_081);
        assert_eq!(clock.system_time_ns(5_000_081), 9_000_001);
    }

    proptest! {
        #[test]
        fn a_clock_never_goes_back_and_loses_no_time_but_the_downtime(
            // Each stay on a machine: its uptime then, how long the way there took as the host
            // knows, how long the stay is.
            stays in proptest::collection::vec((0u64..1 << 60, 0u64..1 << 40, 0u64..1 << 50), 1..10),
        ) {
            let mut clock = Monotonic::new();
            let mut expected = None;
            for (uptime, stood, stay) in stays {
                let before = match expected {
                    None => uptime,
                    Some(last) => {
                        clock.rebase(uptime, stood);
                        last + stood
                    }
                };
                prop_assert_eq!(clock.now(uptime), before);
                prop_assert_eq!(clock.now(uptime.saturating_sub(100)), before);
                let after = clock.now(uptime + stay);
                prop_assert_eq!(after, before + stay);
                prop_assert_eq!(clock.system_time_ns(after + 7), uptime + stay + 7);
                expected = Some(after);
            }
        }

        #[test]
        fn time_never_goes_back(tsc: u64, later: u32, mul: u32, shift: i8, system_time_ns: u64) {
            let scale = Scale { tsc_timestamp: 5, system_time_ns, mul, shift };
            let then = scale.system_time_ns(tsc);
            prop_assert!(scale.system_time_ns(tsc.saturating_add(later.into())) >= then);
        }
    }
}
