//! Which packet is for whom: the little of a header that must be known before smoltcp sees it.

use alloc::{vec, vec::Vec};
use core::net::{IpAddr, SocketAddr};
use smoltcp::{
    phy::{Checksum, ChecksumCapabilities},
    wire::{
        IpProtocol, IpRepr, IpVersion, Ipv4Packet, Ipv6Packet, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
        UdpPacket,
    },
};

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

/// Where a segment says that the conversation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spoken {
    /// What the speaker will send next.
    pub(crate) next: TcpSeqNumber,
    /// What it expects next.
    pub(crate) expects: TcpSeqNumber,
    /// How much of that it has room for, as it is written in headers.
    pub(crate) window: u16,
}

impl Spoken {
    /// Reads it from a packet that has been parsed; `None` unless it has an acknowledgement.
    pub(crate) fn by(packet: &Packet<'_>) -> Option<Self> {
        let Upper::Tcp { segment, .. } = packet.upper else { return None };
        let tcp = TcpPacket::new_unchecked(segment);
        (tcp.ack() && !tcp.rst()).then(|| Self {
            next: tcp.seq_number() + tcp.segment_len(),
            expects: tcp.ack_number(),
            window: tcp.window_len(),
        })
    }

    /// A packet with nothing but an acknowledgement that says this; its checksum is not complete.
    pub(crate) fn acknowledgement(self, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
        let tcp = TcpRepr {
            src_port: from.port(),
            dst_port: to.port(),
            control: TcpControl::None,
            seq_number: self.next,
            ack_number: Some(self.expects),
            window_len: self.window,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let (src, dst) = (from.ip().into(), to.ip().into());
        let ip = IpRepr::new(src, dst, IpProtocol::Tcp, tcp.buffer_len(), 64);
        let mut checksums = ChecksumCapabilities::default();
        checksums.tcp = Checksum::None;
        let mut packet = vec![0; ip.buffer_len()];
        ip.emit(&mut packet, &checksums);
        let segment = &mut packet[ip.header_len()..];
        tcp.emit(&mut TcpPacket::new_unchecked(segment), &src, &dst, &checksums);
        packet
    }
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
