//! Which packet is for whom: the little of a header that must be known before smoltcp sees it.

use core::net::IpAddr;
use smoltcp::wire::{IpProtocol, IpVersion, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};

/// What an IP packet says about where it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet<'a> {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) upper: Upper<'a>,
}

/// What is inside of the IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upper<'a> {
    /// A segment, with its checked header.
    Tcp {
        src_port: u16,
        dst_port: u16,
        /// Opens a connection: SYN without ACK.
        opens: bool,
        resets: bool,
        segment: &'a [u8],
    },
    /// A datagram, with its checked header.
    Udp { src_port: u16, dst_port: u16, datagram: &'a [u8] },
    /// ICMPv6, of which neighbour discovery is a part.
    Icmpv6(&'a [u8]),
    /// A piece of a larger IPv4 packet.
    Fragment,
    /// Anything else.
    Other,
}

/// Reads an IP packet; `None` if it is malformed.
///
/// What follows the packet, as padding does in short frames, is left out.
pub(crate) fn parse(packet: &[u8]) -> Option<Packet<'_>> {
    // smoltcp looks at the first byte without asking whether there is one.
    packet.first()?;
    match IpVersion::of_packet(packet).ok()? {
        IpVersion::Ipv4 => {
            let ip = Ipv4Packet::new_checked(packet).ok()?;
            let (src, dst) = (IpAddr::V4(ip.src_addr()), IpAddr::V4(ip.dst_addr()));
            let upper = if ip.more_frags() || ip.frag_offset() != 0 {
                Upper::Fragment
            } else {
                upper(ip.next_header(), ip.payload())?
            };
            Some(Packet { src, dst, upper })
        }
        IpVersion::Ipv6 => {
            let ip = Ipv6Packet::new_checked(packet).ok()?;
            let (src, dst) = (IpAddr::V6(ip.src_addr()), IpAddr::V6(ip.dst_addr()));
            Some(Packet { src, dst, upper: upper(ip.next_header(), ip.payload())? })
        }
    }
}

fn upper(protocol: IpProtocol, payload: &[u8]) -> Option<Upper<'_>> {
    Some(match protocol {
        IpProtocol::Tcp => {
            let tcp = TcpPacket::new_checked(payload).ok()?;
            Upper::Tcp {
                src_port: tcp.src_port(),
                dst_port: tcp.dst_port(),
                opens: tcp.syn() && !tcp.ack() && !tcp.rst() && !tcp.fin(),
                resets: tcp.rst(),
                segment: payload,
            }
        }
        IpProtocol::Udp => {
            let udp = UdpPacket::new_checked(payload).ok()?;
            let datagram = payload.get(..usize::from(udp.len()))?;
            Upper::Udp { src_port: udp.src_port(), dst_port: udp.dst_port(), datagram }
        }
        IpProtocol::Icmpv6 => Upper::Icmpv6(payload),
        _ => Upper::Other,
    })
}

/// Whether the checksum of a segment or datagram is right.
pub(crate) fn checksum_is_right(packet: &Packet<'_>) -> bool {
    let (src, dst) = (&packet.src.into(), &packet.dst.into());
    match packet.upper {
        Upper::Tcp { segment, .. } => {
            TcpPacket::new_checked(segment).is_ok_and(|tcp| tcp.verify_checksum(src, dst))
        }
        Upper::Udp { datagram, .. } => {
            UdpPacket::new_checked(datagram).is_ok_and(|udp| udp.verify_checksum(src, dst))
        }
        _ => true,
    }
}

/// Both ends of a connection, as a key that compares quickly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowKey {
    remote: u128,
    local: u128,
    ports: u32,
}

impl FlowKey {
    pub(crate) fn new(local: (IpAddr, u16), remote: (IpAddr, u16)) -> Self {
        let bits = |address| match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
            IpAddr::V6(address) => address.to_bits(),
        };
        Self {
            remote: bits(remote.0),
            local: bits(local.0),
            ports: u32::from(remote.1) << 16 | u32::from(local.1),
        }
    }

    /// How many words [`Self::words`] gives.
    pub(crate) const WORDS: usize = 5;

    /// What tells most connections apart: all but our address, as we have few.
    pub(crate) fn words(&self) -> [u32; Self::WORDS] {
        let part = |at: u32| (self.remote >> (32 * at)) as u32;
        [self.ports, part(0), part(1), part(2), part(3)]
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(mut bytes: Vec<u8>, version in 4u8..=6) {
            if let Some(first) = bytes.first_mut() {
                *first = version << 4 | *first & 15;
            }
            if let Some(packet) = parse(&bytes) {
                checksum_is_right(&packet);
            }
        }
    }
}
