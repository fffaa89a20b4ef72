//! Event channels: where a port's bit is in the pending words (2-level layout).

use core::fmt;

/// A domain's own end of an event channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[doc(alias = "evtchn_port_t")]
#[repr(transparent)]
pub struct Port(pub u32);

/// How many ports the 2-level layout has.
pub const PORTS: u32 = 4096;

impl Port {
    /// Index of the pending word that has the port's bit, if the port is one that can be.
    pub fn word(self) -> Option<usize> {
        (self.0 < PORTS).then_some(self.0 as usize / 64)
    }

    /// The port's bit in that word.
    pub fn bit(self) -> u64 {
        1 << (self.0 % 64)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_one_bit_of_one_word() {
        assert_eq!((Port(0).word(), Port(0).bit()), (Some(0), 1));
        assert_eq!((Port(65).word(), Port(65).bit()), (Some(1), 2));
        assert_eq!((Port(4095).word(), Port(4095).bit()), (Some(63), 1 << 63));
        assert_eq!(Port(4096).word(), None);
    }
}
