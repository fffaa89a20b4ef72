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

    proptest! {
        #[test]
        fn time_never_goes_back(tsc: u64, later: u32, mul: u32, shift: i8, system_time_ns: u64) {
            let scale = Scale { tsc_timestamp: 5, system_time_ns, mul, shift };
            let then = scale.system_time_ns(tsc);
            prop_assert!(scale.system_time_ns(tsc.saturating_add(later.into())) >= then);
        }
    }
}
