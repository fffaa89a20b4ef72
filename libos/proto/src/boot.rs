//! The boot module: what `fcapd` tells a capsule at start of day.
//!
//! It travels as the domain's boot module (`start_info.mod_start`, `mod_len`),
//! because the kernel command line holds only 1,024 bytes. A capsule started by
//! another toolstack has no such module and takes its arguments from the command
//! line instead.
//!
//! Layout: [`MAGIC`] (8 bytes), then records `{ u32 kind, u32 len, len bytes,
//! zero padding to 8 }`, little endian, ended by [`Kind::End`]. Records of an
//! unknown kind are skipped, so that newer managers can start older capsules.

/// "fcapboot" in memory order.
pub const MAGIC: u64 = u64::from_le_bytes(*b"fcapboot");

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// No more records.
    End = 0,
    /// 32 bytes of entropy for this start alone.
    Seed = 1,
    /// One argument, UTF-8; in order, the first is the program's name.
    Arg = 2,
    /// One environment variable, UTF-8, `NAME=value`.
    Env = 3,
    /// The capsule's name, UTF-8.
    Name = 4,
    /// One network interface, [`Net`]; in order, the first is `device/vif/0`.
    Net = 5,
    /// `u64`, little endian: nanoseconds that the capsule has stood still for, as far as the
    /// host knows; only in [`RESUME`](crate::console::RESUME).
    Stood = 6,
}

/// Addresses of a network interface, as they travel in a record of [`Kind::Net`].
///
/// All zero means "none" for each address; a family whose address is none is not used.
/// Layout, network byte order: MAC (6), MTU (2), IPv4 address (4), gateway (4), name server (4),
/// prefix lengths of IPv4 and IPv6 (1 each), zero (2), then IPv6 address, gateway and name server
/// (16 each): 72 bytes. Readers ignore what follows, so that more can be added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Net {
    /// Hardware address.
    pub mac: [u8; 6],
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// IPv4 address.
    pub ipv4: [u8; 4],
    /// IPv4 address of the router.
    pub gateway4: [u8; 4],
    /// IPv4 address of the name server.
    pub dns4: [u8; 4],
    /// Bits of the IPv4 network, at most 32.
    pub prefix4: u8,
    /// Bits of the IPv6 network, at most 128.
    pub prefix6: u8,
    /// IPv6 address.
    pub ipv6: [u8; 16],
    /// IPv6 address of the router.
    pub gateway6: [u8; 16],
    /// IPv6 address of the name server.
    pub dns6: [u8; 16],
}

/// Bytes of a [`Net`].
const NET_LEN: usize = 72;

impl Net {
    /// The record's body.
    pub fn emit(&self) -> [u8; NET_LEN] {
        let mut body = [0; NET_LEN];
        body[..6].copy_from_slice(&self.mac);
        body[6..8].copy_from_slice(&self.mtu.to_be_bytes());
        body[8..12].copy_from_slice(&self.ipv4);
        body[12..16].copy_from_slice(&self.gateway4);
        body[16..20].copy_from_slice(&self.dns4);
        body[20] = self.prefix4;
        body[21] = self.prefix6;
        body[24..40].copy_from_slice(&self.ipv6);
        body[40..56].copy_from_slice(&self.gateway6);
        body[56..].copy_from_slice(&self.dns6);
        body
    }

    /// Reads a record's body; `None` if it is too short or a prefix is too long.
    pub fn parse(body: &[u8]) -> Option<Self> {
        fn field<const N: usize>(body: &[u8; NET_LEN], at: usize) -> [u8; N] {
            core::array::from_fn(|i| body[at + i])
        }
        let body = body.first_chunk::<NET_LEN>()?;
        let net = Self {
            mac: field(body, 0),
            mtu: u16::from_be_bytes(field(body, 6)),
            ipv4: field(body, 8),
            gateway4: field(body, 12),
            dns4: field(body, 16),
            prefix4: body[20],
            prefix6: body[21],
            ipv6: field(body, 24),
            gateway6: field(body, 40),
            dns6: field(body, 56),
        };
        (net.prefix4 <= 32 && net.prefix6 <= 128).then_some(net)
    }
}

/// The records of a boot module: kind as a number, and body.
///
/// Yields nothing for bytes that do not begin with [`MAGIC`], and stops at the
/// first record that does not fit.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    /// Reads the module in `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes.strip_prefix(&MAGIC.to_le_bytes()).unwrap_or(&[]) }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = (u32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (head, rest) = self.rest.split_at_checked(8)?;
        let (kind, len) = head.split_at(4);
        let kind = u32::from_le_bytes(kind.try_into().ok()?);
        let len = u32::from_le_bytes(len.try_into().ok()?) as usize;
        let body = rest.get(..len)?;
        self.rest = rest.get(len.checked_next_multiple_of(8)?..).unwrap_or(&[]);
        (kind != Kind::End as u32).then_some((kind, body))
    }
}

/// Appends the magic, which comes before all records.
pub fn begin(module: &mut impl Extend<u8>) {
    module.extend(MAGIC.to_le_bytes());
}

/// Appends one record.
///
/// # Panics
/// If `body` is 4 GiB or longer.
pub fn record(module: &mut impl Extend<u8>, kind: Kind, body: &[u8]) {
    let len = u32::try_from(body.len()).expect("a record's body is under 4 GiB");
    module.extend((kind as u32).to_le_bytes());
    module.extend(len.to_le_bytes());
    module.extend(body.iter().copied());
    module.extend(core::iter::repeat_n(0, body.len().next_multiple_of(8) - body.len()));
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn records_come_back_as_written(bodies in proptest::collection::vec(any::<Vec<u8>>(), 0..20)) {
            let mut module = Vec::new();
            begin(&mut module);
            for body in &bodies {
                record(&mut module, Kind::Arg, body);
            }
            record(&mut module, Kind::End, &[]);
            let read: Vec<_> = Records::new(&module).collect();
            prop_assert_eq!(read.len(), bodies.len());
            for ((kind, body), expected) in read.into_iter().zip(&bodies) {
                prop_assert_eq!(kind, Kind::Arg as u32);
                prop_assert_eq!(body, &expected[..]);
            }
        }

        #[test]
        fn interfaces_come_back_as_written(body in proptest::collection::vec(any::<u8>(), 0..90)) {
            if let Some(net) = Net::parse(&body) {
                prop_assert_eq!(Net::parse(&net.emit()), Some(net));
                prop_assert_eq!(&net.emit()[24..], &body[24..NET_LEN]);
            } else {
                prop_assert!(body.len() < NET_LEN || body[20] > 32 || body[21] > 128);
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let mut module = MAGIC.to_le_bytes().to_vec();
            module.extend(bytes);
            for (_, body) in Records::new(&module) {
                prop_assert!(body.len() <= module.len());
            }
        }
    }
}
