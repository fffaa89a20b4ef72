//! What the stack asks of a network card.

use core::net::{Ipv4Addr, Ipv6Addr};

/// Bytes of an Ethernet header.
pub const ETHERNET_HEADER_LEN: usize = 14;

/// A hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Everybody on the link.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether it names one card alone.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

/// Addresses of an interface; `None` for a family that is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Hardware address.
    pub mac: Mac,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// IPv4 address and bits of its network.
    pub ipv4: Option<(Ipv4Addr, u8)>,
    /// IPv4 router.
    pub gateway4: Option<Ipv4Addr>,
    /// IPv6 address and bits of its network.
    pub ipv6: Option<(Ipv6Addr, u8)>,
    /// IPv6 router.
    pub gateway6: Option<Ipv6Addr>,
}

/// What a card does by itself when it sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Completes checksums of TCP and UDP over IPv4.
    pub checksum4: bool,
    /// Completes checksums of TCP and UDP over IPv6.
    pub checksum6: bool,
    /// Cuts TCP over IPv4 into segments: largest frame in bytes, at most 65,535.
    pub segments4: Option<u16>,
}

/// What the card is to do with one frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The checksum covers the pseudo-header alone so far.
    pub checksum: bool,
    /// The frame is to be cut into segments with this many bytes of data each.
    pub segment: Option<u16>,
}

/// The sending half of a card.
pub trait Transmit {
    /// What the card can do.
    fn features(&self) -> Features;

    /// Whether any frame, as large as it may be, can be sent now.
    fn has_room(&mut self) -> bool;

    /// Sends a frame of `len` bytes that `fill` writes, and says what to do with it.
    ///
    /// `fill` is called once at most, and finds arbitrary bytes; if it returns `None`, nothing is sent. It is not called if
    /// there is no room. The frame may wait until [`Self::flush`] is called.
    fn send(&mut self, len: usize, fill: &mut dyn FnMut(&mut [u8]) -> Option<Offload>);

    /// Lets everything sent leave.
    fn flush(&mut self);
}
