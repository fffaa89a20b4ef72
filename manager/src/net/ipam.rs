//! Which addresses belong to whom.
//!
//! The addresses of a network are cut into slices, one for each node of an overlay by its number
//! there. So no two nodes give out the same address without having to ask each other, and an
//! address stays a capsule's own when it moves. Slice 0 holds the gateway's address and nobody
//! gives out any of it.
//!
//! All other addresses of an interface follow from its IPv4 address.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Most bits of an address within its slice.
const MAX_SLICE_BITS: u32 = 8;
/// How many bits the prefix of a network may have.
const PREFIX: std::ops::RangeInclusive<u8> = 8..=28;
/// What may be used freely: RFC 1918, and RFC 6598 as well.
const PRIVATE: [Subnet; 4] = [
    Subnet { base: 0x0a00_0000, bits: 8 },
    Subnet { base: 0xac10_0000, bits: 12 },
    Subnet { base: 0xc0a8_0000, bits: 16 },
    Subnet { base: 0x6440_0000, bits: 10 },
];

/// The IPv4 addresses of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    base: u32,
    bits: u8,
}

/// Why a text is no subnet for a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSubnet {
    /// It cannot be read.
    #[error("a subnet is written as 10.90.0.0/16")]
    Syntax,
    /// Too large or too small.
    #[error("a subnet's prefix has {} to {} bits", PREFIX.start(), PREFIX.end())]
    Prefix,
    /// Bits are set behind the prefix.
    #[error("the address has bits behind the prefix; the subnet is {0}")]
    HostBits(Subnet),
    /// It may be somebody's on the internet.
    #[error(
        "{0} is not private; take addresses of 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10"
    )]
    Public(Subnet),
}

impl Subnet {
    /// The default network's.
    pub const DEFAULT: Self = Self { base: 0x0a58_0000, bits: 16 };

    /// `10.SECOND.0.0/16`.
    pub const fn ten(second: u8) -> Self {
        Self { base: 0x0a00_0000 | (second as u32) << 16, bits: 16 }
    }

    /// Bits of the prefix.
    pub fn prefix(self) -> u8 {
        self.bits
    }

    /// The gateway's address: the first one.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base | 1)
    }

    /// Whether an address is in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.bits) == self.base
    }

    /// Whether an address is in both.
    pub fn overlaps(self, other: Self) -> bool {
        let mask = mask(self.bits.min(other.bits));
        self.base & mask == other.base & mask
    }

    fn slice_bits(self) -> u32 {
        ((32 - u32::from(self.bits)) / 2).min(MAX_SLICE_BITS)
    }

    /// The highest number of a node that has a slice.
    pub fn last_slice(self) -> u32 {
        (1 << (32 - u32::from(self.bits) - self.slice_bits())) - 1
    }

    /// First and last address that the node with this number gives out.
    fn slice(self, index: u16) -> Option<(u32, u32)> {
        let index = u32::from(index);
        let bits = self.slice_bits();
        (1..=self.last_slice()).contains(&index).then(|| {
            let start = self.base + (index << bits);
            (start + 1, start + (1 << bits) - 2)
        })
    }

    /// Whether the node with this number gives out the address.
    pub fn is_in_slice(self, address: Ipv4Addr, index: u16) -> bool {
        self.slice(index).is_some_and(|(first, last)| (first..=last).contains(&address.into()))
    }
}

fn mask(bits: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0)
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.bits)
    }
}

impl FromStr for Subnet {
    type Err = BadSubnet;

    fn from_str(text: &str) -> Result<Self, BadSubnet> {
        let (address, bits) = text.split_once('/').ok_or(BadSubnet::Syntax)?;
        let address: Ipv4Addr = address.parse().map_err(|_| BadSubnet::Syntax)?;
        let bits: u8 = bits.parse().map_err(|_| BadSubnet::Syntax)?;
        if !PREFIX.contains(&bits) {
            return Err(BadSubnet::Prefix);
        }
        let subnet = Self { base: u32::from(address) & mask(bits), bits };
        if subnet.base != u32::from(address) {
            return Err(BadSubnet::HostBits(subnet));
        }
        if !PRIVATE.iter().any(|private| private.bits <= bits && private.overlaps(subnet)) {
            return Err(BadSubnet::Public(subnet));
        }
        Ok(subnet)
    }
}

impl serde::Serialize for Subnet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Subnet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The hardware address that goes with an IPv4 address: locally administered, and the same on
/// any node.
pub fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0xfc, a, b, c, d]
}

/// The text of a hardware address.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The IPv6 address that goes with an IPv4 address in a network with this 64-bit prefix.
pub fn ipv6(prefix: Ipv6Addr, address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(prefix) | u128::from(u32::from(address)))
}

/// The addresses of a network that this node has given out, or that others have which came from
/// this node.
#[derive(Debug)]
pub struct Pool {
    subnet: Subnet,
    used: BTreeSet<Ipv4Addr>,
    /// Where to look next: an address that was released stays unused as long as possible, since
    /// others may still remember whose it was.
    next: u32,
}

impl Pool {
    /// With nothing given out.
    pub fn new(subnet: Subnet) -> Self {
        Self { subnet, used: BTreeSet::new(), next: 0 }
    }

    /// Gives out an address of this node that is not `taken`; `None` when there is none left.
    pub fn allocate(&mut self, index: u16, taken: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
        let (first, last) = self.subnet.slice(index)?;
        let start = if (first..=last).contains(&self.next) { self.next } else { first };
        let free = |address: &u32| {
            let address = Ipv4Addr::from(*address);
            !self.used.contains(&address) && !taken(address)
        };
        let address = (start..=last).chain(first..start).find(free)?;
        self.next = address + 1;
        let address = Ipv4Addr::from(address);
        self.used.insert(address);
        Some(address)
    }

    /// Says that an address is somebody's already.
    pub fn reserve(&mut self, address: Ipv4Addr) {
        self.used.insert(address);
    }

    /// Whether an address is somebody's.
    pub fn is_used(&self, address: Ipv4Addr) -> bool {
        self.used.contains(&address)
    }

    /// Takes an address back.
    pub fn release(&mut self, address: Ipv4Addr) {
        self.used.remove(&address);
    }

    /// Addresses that are somebody's.
    pub fn used(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.used.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn subnets_are_read_and_checked() {
        for good in ["10.0.0.0/8", "10.88.0.0/16", "172.31.255.0/24", "192.168.4.16/28", "100.64.0.0/10"] {
            assert_eq!(good.parse::<Subnet>().unwrap().to_string(), good);
        }
        for bad in ["", "10.0.0.0", "10.0.0.0/", "/8", "10.0.0/8", "10.0.0.0/8/8", "::/8", "10.0.0.0/x"] {
            assert_eq!(bad.parse::<Subnet>(), Err(BadSubnet::Syntax), "{bad}");
        }
        for bad in ["10.0.0.0/7", "10.0.0.0/29", "0.0.0.0/0"] {
            assert_eq!(bad.parse::<Subnet>(), Err(BadSubnet::Prefix), "{bad}");
        }
        assert_eq!("10.1.0.1/16".parse::<Subnet>(), Err(BadSubnet::HostBits(Subnet::ten(1))));
        for bad in ["8.8.8.0/24", "172.32.0.0/16", "172.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16"] {
            assert!(matches!(bad.parse::<Subnet>(), Err(BadSubnet::Public(_))), "{bad}");
        }
    }

    #[test]
    fn what_follows_from_an_address() {
        let address = Ipv4Addr::new(10, 88, 1, 2);
        assert_eq!(mac_text(mac(address)), "0a:fc:0a:58:01:02");
        assert_eq!(ipv6("fd88::".parse().unwrap(), address).to_string(), "fd88::a58:102");
        assert_eq!(Subnet::DEFAULT.gateway(), Ipv4Addr::new(10, 88, 0, 1));
        assert_eq!(Subnet::DEFAULT.last_slice(), 255);
    }

    #[test]
    fn a_slice_is_given_out_whole_and_then_no_more() {
        let mut pool = Pool::new(Subnet::DEFAULT);
        let given: Vec<_> = (0..).map_while(|_| pool.allocate(3, |_| false)).collect();
        assert_eq!(given.len(), 254);
        assert_eq!((given[0], given[253]), (Ipv4Addr::new(10, 88, 3, 1), Ipv4Addr::new(10, 88, 3, 254)));
        pool.release(given[7]);
        assert_eq!(pool.allocate(3, |_| false), Some(given[7]));
        assert_eq!(pool.allocate(256, |_| false), None);
        assert_eq!(pool.allocate(0, |_| false), None);
    }

    #[test]
    fn a_released_address_rests() {
        let mut pool = Pool::new("192.168.7.0/24".parse().unwrap());
        let first = pool.allocate(1, |_| false).unwrap();
        pool.release(first);
        let others: Vec<_> = (0..13).map(|_| pool.allocate(1, |_| false).unwrap()).collect();
        assert!(!others.contains(&first));
        assert_eq!(pool.allocate(1, |_| false), Some(first));
    }

    proptest! {
        #[test]
        fn slices_lie_in_the_subnet_and_apart(
            bits in PREFIX, low in 0u32..1 << 24, one in 1u16.., other in 1u16..
        ) {
            let subnet = Subnet { base: (0x0a00_0000 | low) & mask(bits), bits };
            prop_assert_eq!(subnet.to_string().parse::<Subnet>(), Ok(subnet));
            let (one_slice, other_slice) = (subnet.slice(one), subnet.slice(other));
            if let Some((first, last)) = one_slice {
                prop_assert!(first < last);
                for address in [first, last] {
                    let address = Ipv4Addr::from(address);
                    prop_assert!(subnet.contains(address) && subnet.is_in_slice(address, one));
                    prop_assert!(address != subnet.gateway());
                }
                if let (Some((start, end)), true) = (other_slice, one != other) {
                    prop_assert!(end < first || last < start);
                }
            }
        }

        #[test]
        fn an_address_is_one_capsules_at_a_time(steps in proptest::collection::vec((any::<bool>(), 0usize..20), 0..200)) {
            let mut pool = Pool::new("10.9.0.0/26".parse().unwrap());
            let mut held: Vec<Ipv4Addr> = Vec::new();
            for (allocate, which) in steps {
                if allocate {
                    match pool.allocate(2, |_| false) {
                        Some(address) => {
                            prop_assert!(!held.contains(&address));
                            held.push(address);
                        }
                        None => prop_assert_eq!(held.len(), 6),
                    }
                } else if !held.is_empty() {
                    let address = held.swap_remove(which % held.len());
                    pool.release(address);
                }
            }
            prop_assert_eq!(pool.used().count(), held.len());
        }
    }
}
