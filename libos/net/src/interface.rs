//! One interface: from IP packets to frames, and the neighbours between.

use crate::{
    flow::{self, Packet, Spoken, Upper},
    link::{Config, ETHERNET_HEADER_LEN, Features, Mac, Offload, Transmit},
    neighbor::{Answer, Neighbors},
};
use alloc::{collections::VecDeque, vec, vec::Vec};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use smoltcp::{
    iface::{Interface as Smoltcp, SocketSet},
    phy::{self, Checksum, DeviceCapabilities, Medium, PacketMeta},
    time::Instant,
    wire::{HardwareAddress, IpCidr, IpProtocol, Ipv4Cidr, Ipv4Packet, Ipv6Cidr, Ipv6Packet, checksum},
};

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];

/// Largest packet on the way from the capsule to itself.
const LOOPBACK_MTU: usize = 65_535;
/// Packets on that way, so that its memory is bounded.
const LOOPBACK_PACKETS_MAX: usize = 64;

/// Where an interface's packets go.
pub(crate) enum Out<T> {
    /// To a card, and its link.
    Card { card: T, config: Config, features: Features, neighbors: Neighbors },
    /// Back to where they came from.
    Loopback(VecDeque<Vec<u8>>),
}

/// One interface.
pub(crate) struct Interface<T> {
    smoltcp: Smoltcp,
    /// Our addresses here.
    addresses: Vec<IpAddr>,
    pub(crate) out: Out<T>,
    /// What the last segment said that was sent.
    said: Option<Spoken>,
}

impl<T: Transmit> Interface<T> {
    /// The interface of a card.
    pub(crate) fn card(config: Config, card: T, neighbors: Neighbors, seed: u64, now: Instant) -> Self {
        let cidrs: Vec<IpCidr> = [
            config.ipv4.map(|(address, prefix)| IpCidr::Ipv4(Ipv4Cidr::new(address, prefix))),
            config.ipv6.map(|(address, prefix)| IpCidr::Ipv6(Ipv6Cidr::new(address, prefix))),
        ]
        .into_iter()
        .flatten()
        .collect();
        let features = card.features();
        let out = Out::Card { card, config, features, neighbors };
        Self::new(out, &cidrs, seed, now)
    }

    /// The way from the capsule to itself, for its loopback addresses and `own` ones.
    pub(crate) fn loopback(own: impl Iterator<Item = IpAddr>, seed: u64, now: Instant) -> Self {
        let cidrs: Vec<IpCidr> = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
            .into_iter()
            .chain(own)
            .take(smoltcp::config::IFACE_MAX_ADDR_COUNT)
            .map(|address: IpAddr| match address {
                IpAddr::V4(address) => IpCidr::Ipv4(Ipv4Cidr::new(address, 32)),
                IpAddr::V6(address) => IpCidr::Ipv6(Ipv6Cidr::new(address, 128)),
            })
            .collect();
        Self::new(Out::Loopback(VecDeque::new()), &cidrs, seed, now)
    }

    fn new(out: Out<T>, cidrs: &[IpCidr], seed: u64, now: Instant) -> Self {
        let mut config = smoltcp::iface::Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut out = out;
        let mut said = None;
        let mut device = Device { received: None, out: &mut out, said: &mut said, now, refused: false };
        let mut smoltcp = Smoltcp::new(config, &mut device, now);
        smoltcp.update_ip_addrs(|addresses| {
            for cidr in cidrs {
                // There is room: a card has two, and the loopback as many as there is room for.
                let _ = addresses.push(*cidr);
            }
        });
        Self { smoltcp, addresses: cidrs.iter().map(|cidr| cidr.address().into()).collect(), out, said }
    }

    /// Whether the address is ours.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// Our address of the family of `remote`.
    pub(crate) fn source_for(&self, remote: IpAddr) -> Option<IpAddr> {
        // What is sent to an address of our own comes from the same one.
        if self.has(remote) {
            return Some(remote);
        }
        self.addresses.iter().copied().find(|address| address.is_ipv4() == remote.is_ipv4())
    }

    /// Whether the address is on the link.
    pub(crate) fn is_on_link(&self, address: IpAddr) -> bool {
        match &self.out {
            Out::Card { config, .. } => config.is_on_link(address),
            Out::Loopback(_) => self.has(address),
        }
    }

    /// Whether the address is on the link or behind its router.
    pub(crate) fn leads_to(&self, address: IpAddr) -> bool {
        self.next_hop(address).is_some()
    }

    /// Who on the link takes packets for the address.
    pub(crate) fn next_hop(&self, address: IpAddr) -> Option<IpAddr> {
        match &self.out {
            Out::Card { config, .. } => config.next_hop(address),
            Out::Loopback(_) => self.has(address).then_some(address),
        }
    }

    /// Largest IP packet in bytes.
    pub(crate) fn mtu(&self) -> usize {
        match &self.out {
            Out::Card { config, .. } => usize::from(config.mtu),
            Out::Loopback(_) => LOOPBACK_MTU,
        }
    }

    /// Whether a packet, as large as it may be, can be sent now.
    pub(crate) fn has_room(&mut self) -> bool {
        match &mut self.out {
            Out::Card { card, .. } => card.has_room(),
            Out::Loopback(packets) => packets.len() < LOOPBACK_PACKETS_MAX,
        }
    }

    /// What smoltcp's sockets refer to.
    pub(crate) fn context(&mut self) -> &mut smoltcp::iface::Context {
        self.smoltcp.context()
    }

    /// Gives a packet to the sockets of `set`; sends what must be answered at once.
    pub(crate) fn receive(&mut self, packet: &[u8], set: &mut SocketSet<'static>, now: Instant) {
        let Self { out, said, .. } = self;
        let mut device = Device { received: Some(packet), out, said, now, refused: false };
        self.smoltcp.poll_ingress_single(now, &mut device, set);
    }

    /// Sends what the sockets of `set` have to send; whether that was all.
    pub(crate) fn send(&mut self, set: &mut SocketSet<'static>, now: Instant) -> bool {
        let Self { out, said, .. } = self;
        let mut device = Device { received: None, out, said, now, refused: false };
        while self.smoltcp.poll_egress(now, &mut device, set) != smoltcp::iface::PollResult::None {}
        !device.refused
    }

    /// What the last segment said that was sent since this was asked last.
    pub(crate) fn take_said(&mut self) -> Option<Spoken> {
        self.said.take()
    }

    /// When the sockets of `set` have something to do.
    pub(crate) fn poll_at(&mut self, set: &SocketSet<'static>, now: Instant) -> Option<Instant> {
        self.smoltcp.poll_at(now, set)
    }

    /// Takes a frame apart: its IP packet, if it has one that is for this card.
    ///
    /// What ARP says is dealt with here.
    pub(crate) fn open_frame<'a>(&mut self, frame: &'a [u8], now: Instant) -> Option<&'a [u8]> {
        let Out::Card { card, config, neighbors, .. } = &mut self.out else { return Some(frame) };
        let (header, payload) = frame.split_at_checked(ETHERNET_HEADER_LEN)?;
        let to = Mac(header[..6].try_into().ok()?);
        if to != config.mac && to.is_unicast() {
            return None;
        }
        match [header[12], header[13]] {
            ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => Some(payload),
            ETHERTYPE_ARP => {
                let arp = Arp::parse(payload)?;
                let for_us = config.ipv4.is_some_and(|(address, _)| address == arp.target_ip);
                let asks = arp.operation == Arp::REQUEST && for_us;
                if !arp.sender_ip.is_unspecified() && config.is_on_link(arp.sender_ip.into()) {
                    let waiting = neighbors.learn(arp.sender_ip.into(), arp.sender, asks, now);
                    send_waiting(card, config, arp.sender, &waiting);
                }
                if asks {
                    let answer = Arp {
                        operation: Arp::REPLY,
                        sender: config.mac,
                        sender_ip: arp.target_ip,
                        target: arp.sender,
                        target_ip: arp.sender_ip,
                    };
                    answer.send(card, arp.sender);
                }
                None
            }
            _ => None,
        }
    }

    /// Deals with neighbour discovery; whether the packet was of that kind.
    pub(crate) fn receive_discovery(&mut self, ip: &[u8], packet: &Packet<'_>, now: Instant) -> bool {
        let (Upper::Icmpv6(message), IpAddr::V6(src), IpAddr::V6(dst)) =
            (packet.upper, packet.src, packet.dst)
        else {
            return false;
        };
        let Some(discovery) = Discovery::parse(message) else { return false };
        let Out::Card { card, config, neighbors, .. } = &mut self.out else { return true };
        // From the link itself, as no router lets it through (RFC 4861, 7.1).
        let hop_limit = Ipv6Packet::new_unchecked(ip).hop_limit();
        if hop_limit != 255 || discovery_checksum(src, dst, message) != 0xffff {
            return true;
        }
        let for_us = config.ipv6.is_some_and(|(address, _)| address == discovery.target);
        if discovery.solicits {
            if !for_us {
                return true;
            }
            if let Some(mac) = discovery.mac
                && !src.is_unspecified()
            {
                let waiting = neighbors.learn(src.into(), mac, true, now);
                send_waiting(card, config, mac, &waiting);
                advertise(card, config, discovery.target, (src, mac), true);
            } else {
                // Somebody checks whether the address is taken (RFC 4862).
                let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
                advertise(card, config, discovery.target, (all, multicast_mac6(all)), false);
            }
        } else if let Some(mac) = discovery.mac {
            let waiting = neighbors.learn(discovery.target.into(), mac, false, now);
            send_waiting(card, config, mac, &waiting);
        }
        true
    }

    /// Asks again who has not answered; returns who never has.
    pub(crate) fn ask_again(&mut self, now: Instant) -> Vec<IpAddr> {
        let Out::Card { card, config, neighbors, .. } = &mut self.out else { return Vec::new() };
        let due = neighbors.due(now);
        due.ask.into_iter().for_each(|address| ask(card, config, address));
        due.given_up
    }

    /// When [`Self::ask_again`] has something to do.
    pub(crate) fn ask_again_at(&self) -> Option<Instant> {
        match &self.out {
            Out::Card { neighbors, .. } => neighbors.due_at(),
            Out::Loopback(_) => None,
        }
    }

    /// Tells everybody on the link where our addresses are (RFC 5227, 3; RFC 4861, 7.2.6).
    pub(crate) fn announce(&mut self, now: Instant) {
        let Out::Card { card, config, neighbors, .. } = &mut self.out else { return };
        neighbors.doubt(now);
        if let Some((address, _)) = config.ipv4 {
            let announcement = Arp {
                operation: Arp::REQUEST,
                sender: config.mac,
                sender_ip: address,
                target: Mac([0; 6]),
                target_ip: address,
            };
            announcement.send(card, Mac::BROADCAST);
        }
        if let Some((address, _)) = config.ipv6 {
            let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            advertise(card, config, address, (all, multicast_mac6(all)), false);
        }
        card.flush();
    }

    /// Lets what was sent leave.
    pub(crate) fn flush(&mut self) {
        if let Out::Card { card, .. } = &mut self.out {
            card.flush();
        }
    }
}

impl Config {
    /// The addresses themselves.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let ipv4 = self.ipv4.map(|(address, _)| IpAddr::V4(address));
        ipv4.into_iter().chain(self.ipv6.map(|(address, _)| IpAddr::V6(address)))
    }

    fn is_on_link(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.ipv4.is_some_and(|(own, prefix)| {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
                (own.to_bits() ^ address.to_bits()) & mask == 0
            }),
            IpAddr::V6(address) => self.ipv6.is_some_and(|(own, prefix)| {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
                (own.to_bits() ^ address.to_bits()) & mask == 0
            }),
        }
    }

    /// Who on the link takes packets for the address.
    fn next_hop(&self, address: IpAddr) -> Option<IpAddr> {
        let family = match address {
            IpAddr::V4(_) => self.ipv4.is_some(),
            IpAddr::V6(_) => self.ipv6.is_some(),
        };
        let direct = address.is_multicast() || self.is_broadcast(address) || self.is_on_link(address);
        match address {
            _ if !family => None,
            _ if direct => Some(address),
            IpAddr::V4(_) => self.gateway4.map(IpAddr::V4),
            IpAddr::V6(_) => self.gateway6.map(IpAddr::V6),
        }
    }

    /// Whether the address means everybody on the link.
    pub(crate) fn is_broadcast(&self, address: IpAddr) -> bool {
        let IpAddr::V4(address) = address else { return false };
        let of_network = self.ipv4.is_some_and(|(own, prefix)| {
            let hosts = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
            prefix < 31 && address.to_bits() == own.to_bits() | hosts
        });
        address.is_broadcast() || of_network
    }
}

impl<T: Transmit> Out<T> {
    /// Sends an IP packet of `len` bytes that `fill` writes.
    ///
    /// Without room it is lost, as it could be on the way; who can wait asks before.
    pub(crate) fn send<R>(
        &mut self,
        len: usize,
        segment: Option<u16>,
        now: Instant,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        let (mut fill, mut result) = (Some(fill), None);
        self.write(len, segment, now, &mut |packet| result = fill.take().map(|fill| fill(packet)));
        match (result, fill) {
            (Some(result), _) => result,
            (None, Some(fill)) => fill(&mut vec![0; len]),
            (None, None) => unreachable!("a packet that was filled has a result"),
        }
    }

    /// As [`Self::send`], once for all that send.
    fn write(&mut self, len: usize, segment: Option<u16>, now: Instant, fill: &mut dyn FnMut(&mut [u8])) {
        match self {
            Self::Loopback(packets) => {
                if packets.len() < LOOPBACK_PACKETS_MAX {
                    let mut packet = vec![0; len];
                    fill(&mut packet);
                    packets.push_back(packet);
                }
            }
            Self::Card { card, config, features, neighbors } => {
                let mut question = None;
                card.send(ETHERNET_HEADER_LEN + len, &mut |frame| {
                    let (header, packet) = frame.split_at_mut(ETHERNET_HEADER_LEN);
                    fill(packet);
                    let to = destination(packet)?;
                    let hop = config.next_hop(to)?;
                    let mac = match multicast_mac(config, hop) {
                        Some(mac) => mac,
                        None => match neighbors.look_up(hop, now) {
                            Answer::Found(mac) => mac,
                            Answer::Confirm(mac) => {
                                question = Some(hop);
                                mac
                            }
                            Answer::Wait { ask } => {
                                question = ask.then_some(hop);
                                finish(packet, Features::default(), None);
                                neighbors.queue(hop, packet);
                                return None;
                            }
                        },
                    };
                    write_header(header, mac, config.mac, ethertype(to));
                    Some(finish(packet, *features, segment))
                });
                if let Some(address) = question {
                    ask(card, config, address);
                }
            }
        }
    }
}

/// smoltcp's view of an interface, for the time of one call.
struct Device<'a, T> {
    received: Option<&'a [u8]>,
    out: &'a mut Out<T>,
    said: &'a mut Option<Spoken>,
    now: Instant,
    /// Something could not be sent for want of room.
    refused: bool,
}

struct Received<'a>(&'a [u8]);

struct Sending<'a, T> {
    out: &'a mut Out<T>,
    said: &'a mut Option<Spoken>,
    now: Instant,
    segment: Option<u16>,
}

impl<T: Transmit> phy::Device for Device<'_, T> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Sending<'a, T>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sending<'_, T>)> {
        let packet = self.received.take()?;
        Some((Received(packet), Sending { out: self.out, said: self.said, now: self.now, segment: None }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_, T>> {
        let room = match &mut *self.out {
            Out::Card { card, .. } => card.has_room(),
            Out::Loopback(packets) => packets.len() < LOOPBACK_PACKETS_MAX,
        };
        if !room {
            self.refused = true;
            return None;
        }
        Some(Sending { out: self.out, said: self.said, now: self.now, segment: None })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        // Checked before smoltcp sees it, and completed after.
        capabilities.checksum.tcp = Checksum::None;
        capabilities.checksum.udp = Checksum::None;
        capabilities.max_transmission_unit = LOOPBACK_MTU;
        if let Out::Card { config, features, .. } = &self.out {
            capabilities.max_transmission_unit = config.mtu.into();
            // The header of the link is ours to add.
            let packet = features.segments4.map(|frame| usize::from(frame) - ETHERNET_HEADER_LEN);
            capabilities.segmentation.tcpv4 = packet.and_then(|len| len.try_into().ok());
        }
        capabilities
    }
}

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl<T: Transmit> phy::TxToken for Sending<'_, T> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let Self { out, said, now, segment } = self;
        out.send(len, segment, now, |packet| {
            let result = f(packet);
            *said = flow::parse(packet).and_then(|packet| Spoken::by(&packet)).or(*said);
            result
        })
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size.map(Into::into);
    }
}

/// Where a packet that we have made goes.
fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::V4(Ipv4Packet::new_unchecked(packet).dst_addr())),
        6 => Some(IpAddr::V6(Ipv6Packet::new_unchecked(packet).dst_addr())),
        _ => None,
    }
}

/// Brings the checksum of a packet that we have made to where the card goes on.
fn finish(packet: &mut [u8], features: Features, segment: Option<u16>) -> Offload {
    let (header_len, protocol, pseudo, offload) = match packet[0] >> 4 {
        4 => {
            let ip = Ipv4Packet::new_unchecked(&packet[..]);
            let (len, protocol) = (ip.payload().len() as u32, ip.next_header());
            let pseudo = checksum::pseudo_header_v4(&ip.src_addr(), &ip.dst_addr(), protocol, len);
            (usize::from(ip.header_len()), protocol, pseudo, features.checksum4)
        }
        _ => {
            let ip = Ipv6Packet::new_unchecked(&packet[..]);
            let (len, protocol) = (u32::from(ip.payload_len()), ip.next_header());
            let pseudo = checksum::pseudo_header_v6(&ip.src_addr(), &ip.dst_addr(), protocol, len);
            (ip.header_len(), protocol, pseudo, features.checksum6)
        }
    };
    let at = match protocol {
        IpProtocol::Tcp => 16,
        IpProtocol::Udp => 6,
        _ => return Offload::default(),
    };
    let segment_or_datagram = &mut packet[header_len..];
    let Some(place) = segment_or_datagram.get_mut(at..at + 2) else { return Offload::default() };
    if offload {
        place.copy_from_slice(&pseudo.to_be_bytes());
        return Offload { checksum: true, segment };
    }
    place.fill(0);
    let sum = !checksum::combine(&[pseudo, checksum::data(segment_or_datagram)]);
    // UDP sends the other zero, because 0 means that there is no checksum (RFC 768).
    let sum = if sum == 0 && protocol == IpProtocol::Udp { 0xffff } else { sum };
    segment_or_datagram[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    Offload { checksum: false, segment: None }
}

fn ethertype(address: IpAddr) -> [u8; 2] {
    if address.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 }
}

fn write_header(header: &mut [u8], to: Mac, from: Mac, ethertype: [u8; 2]) {
    header[..6].copy_from_slice(&to.0);
    header[6..12].copy_from_slice(&from.0);
    header[12..14].copy_from_slice(&ethertype);
}

/// The hardware address of a group, if it is one.
fn multicast_mac(config: &Config, address: IpAddr) -> Option<Mac> {
    match address {
        _ if config.is_broadcast(address) => Some(Mac::BROADCAST),
        IpAddr::V4(address) if address.is_multicast() => {
            let [_, b, c, d] = address.octets();
            Some(Mac([0x01, 0x00, 0x5e, b & 0x7f, c, d]))
        }
        IpAddr::V6(address) if address.is_multicast() => Some(multicast_mac6(address)),
        _ => None,
    }
}

fn multicast_mac6(address: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = address.octets();
    Mac([0x33, 0x33, a, b, c, d])
}

/// Sends packets that waited for a neighbour; they are complete but for the header.
fn send_waiting(card: &mut impl Transmit, config: &Config, mac: Mac, packets: &[Vec<u8>]) {
    for packet in packets {
        card.send(ETHERNET_HEADER_LEN + packet.len(), &mut |frame| {
            let (header, place) = frame.split_at_mut(ETHERNET_HEADER_LEN);
            write_header(header, mac, config.mac, ethertype(destination(packet)?));
            place.copy_from_slice(packet);
            Some(Offload::default())
        });
    }
}

/// Asks everybody on the link who has the address.
fn ask(card: &mut impl Transmit, config: &Config, address: IpAddr) {
    match (address, config.ipv4, config.ipv6) {
        (IpAddr::V4(address), Some((own, _)), _) => {
            let question = Arp {
                operation: Arp::REQUEST,
                sender: config.mac,
                sender_ip: own,
                target: Mac([0; 6]),
                target_ip: address,
            };
            question.send(card, Mac::BROADCAST);
        }
        (IpAddr::V6(address), _, Some((own, _))) => {
            let [.., a, b, c] = address.octets();
            let group =
                Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
            let question = Discovery { solicits: true, target: address, mac: Some(config.mac) };
            question.send(card, config.mac, own, (group, multicast_mac6(group)), 0);
        }
        _ => {}
    }
}

/// Says that the address is ours: in answer to a question, or unasked.
fn advertise(card: &mut impl Transmit, config: &Config, address: Ipv6Addr, to: (Ipv6Addr, Mac), asked: bool) {
    const SOLICITED: u8 = 0x40;
    const OVERRIDE: u8 = 0x20;
    let advertisement = Discovery { solicits: false, target: address, mac: Some(config.mac) };
    let flags = if asked { SOLICITED | OVERRIDE } else { OVERRIDE };
    advertisement.send(card, config.mac, address, to, flags);
}

/// An ARP packet for IPv4 over Ethernet (RFC 826).
#[derive(Debug, PartialEq, Eq)]
struct Arp {
    operation: u8,
    sender: Mac,
    sender_ip: Ipv4Addr,
    target: Mac,
    target_ip: Ipv4Addr,
}

impl Arp {
    const REQUEST: u8 = 1;
    const REPLY: u8 = 2;
    const LEN: usize = 28;
    /// Ethernet, IPv4, lengths of their addresses, and the operation's high byte.
    const HEAD: [u8; 7] = [0, 1, 0x08, 0x00, 6, 4, 0];

    fn parse(packet: &[u8]) -> Option<Self> {
        let packet = packet.first_chunk::<{ Self::LEN }>()?.strip_prefix(&Self::HEAD)?;
        let (&operation, packet) = packet.split_first()?;
        let (&sender, packet) = packet.split_first_chunk::<6>()?;
        let (&sender_ip, packet) = packet.split_first_chunk::<4>()?;
        let (&target, packet) = packet.split_first_chunk::<6>()?;
        let &target_ip = packet.first_chunk::<4>()?;
        Some(Self {
            operation,
            sender: Mac(sender),
            sender_ip: sender_ip.into(),
            target: Mac(target),
            target_ip: target_ip.into(),
        })
    }

    fn emit(&self, packet: &mut [u8]) {
        packet[..7].copy_from_slice(&Self::HEAD);
        packet[7] = self.operation;
        packet[8..14].copy_from_slice(&self.sender.0);
        packet[14..18].copy_from_slice(&self.sender_ip.octets());
        packet[18..24].copy_from_slice(&self.target.0);
        packet[24..28].copy_from_slice(&self.target_ip.octets());
    }

    fn send(&self, card: &mut impl Transmit, to: Mac) {
        card.send(ETHERNET_HEADER_LEN + Self::LEN, &mut |frame| {
            let (header, packet) = frame.split_at_mut(ETHERNET_HEADER_LEN);
            write_header(header, to, self.sender, ETHERTYPE_ARP);
            self.emit(packet);
            Some(Offload::default())
        });
    }
}

/// A neighbour solicitation or advertisement (RFC 4861, 4.3 and 4.4).
#[derive(Debug, PartialEq, Eq)]
struct Discovery {
    solicits: bool,
    target: Ipv6Addr,
    /// Of the one who asks, or of the target.
    mac: Option<Mac>,
}

impl Discovery {
    const SOLICITATION: u8 = 135;
    const ADVERTISEMENT: u8 = 136;
    const SOURCE_MAC: u8 = 1;
    const TARGET_MAC: u8 = 2;
    /// With the option that we send.
    const LEN: usize = 32;
    const IP_HEADER_LEN: usize = 40;

    fn parse(message: &[u8]) -> Option<Self> {
        let (head, mut options) = message.split_at_checked(24)?;
        let (solicits, wanted) = match (head[0], head[1]) {
            (Self::SOLICITATION, 0) => (true, Self::SOURCE_MAC),
            (Self::ADVERTISEMENT, 0) => (false, Self::TARGET_MAC),
            _ => return None,
        };
        let target = Ipv6Addr::from(*head[8..].first_chunk::<16>()?);
        let mut mac = None;
        while let [kind, units, ..] = *options {
            // A length of zero would never end (RFC 4861, 4.6).
            let (option, rest) = options.split_at_checked(usize::from(units) * 8)?;
            if kind == wanted {
                mac = option.get(2..8).and_then(|mac| mac.try_into().ok()).map(Mac);
            }
            if units == 0 {
                return None;
            }
            options = rest;
        }
        Some(Self { solicits, target, mac })
    }

    fn send(
        &self,
        card: &mut impl Transmit,
        from: Mac,
        src: Ipv6Addr,
        (dst, mac): (Ipv6Addr, Mac),
        flags: u8,
    ) {
        card.send(ETHERNET_HEADER_LEN + Self::IP_HEADER_LEN + Self::LEN, &mut |frame| {
            let (header, packet) = frame.split_at_mut(ETHERNET_HEADER_LEN);
            write_header(header, mac, from, ETHERTYPE_IPV6);
            packet[..Self::IP_HEADER_LEN].fill(0);
            let mut ip = Ipv6Packet::new_unchecked(&mut packet[..]);
            ip.set_version(6);
            ip.set_payload_len(Self::LEN as u16);
            ip.set_next_header(IpProtocol::Icmpv6);
            ip.set_hop_limit(255);
            ip.set_src_addr(src);
            ip.set_dst_addr(dst);
            let message = &mut packet[Self::IP_HEADER_LEN..];
            message.fill(0);
            message[0] = if self.solicits { Self::SOLICITATION } else { Self::ADVERTISEMENT };
            message[4] = flags;
            message[8..24].copy_from_slice(&self.target.octets());
            message[24] = if self.solicits { Self::SOURCE_MAC } else { Self::TARGET_MAC };
            message[25] = 1;
            message[26..32].copy_from_slice(&from.0);
            let sum = !discovery_checksum(src, dst, message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            Some(Offload::default())
        });
    }
}

/// The sum over a message with its pseudo-header: all ones if its checksum is right.
fn discovery_checksum(src: Ipv6Addr, dst: Ipv6Addr, message: &[u8]) -> u16 {
    let pseudo = checksum::pseudo_header_v6(&src, &dst, IpProtocol::Icmpv6, message.len() as u32);
    checksum::combine(&[pseudo, checksum::data(message)])
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    const REQUEST: [u8; Arp::LEN] =
        [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 88, 1, 5, 0, 0, 0, 0, 0, 0, 10, 88, 0, 1];

    #[test]
    fn arp_packets_are_read_and_written() {
        let arp = Arp::parse(&REQUEST).unwrap();
        assert_eq!(arp.operation, Arp::REQUEST);
        assert_eq!(arp.sender, Mac([2, 0, 0, 0, 0, 1]));
        assert_eq!(arp.target_ip, Ipv4Addr::new(10, 88, 0, 1));
        let mut written = [0; Arp::LEN];
        arp.emit(&mut written);
        assert_eq!(written, REQUEST);
        assert_eq!(Arp::parse(&REQUEST[..27]), None);
    }

    #[test]
    fn networks_have_an_end() {
        let config = Config {
            mac: Mac([2; 6]),
            mtu: 1500,
            ipv4: Some((Ipv4Addr::new(10, 88, 1, 5), 16)),
            gateway4: Some(Ipv4Addr::new(10, 88, 0, 1)),
            ipv6: Some(("fd88::a58:105".parse().unwrap(), 64)),
            gateway6: None,
        };
        let hop = |address: &str| config.next_hop(address.parse().unwrap()).map(|hop| std::format!("{hop}"));
        assert_eq!(hop("10.88.200.1").as_deref(), Some("10.88.200.1"));
        assert_eq!(hop("10.89.0.1").as_deref(), Some("10.88.0.1"));
        assert_eq!(hop("fd88::1").as_deref(), Some("fd88::1"));
        assert_eq!(hop("fd89::1"), None);
        assert!(config.is_broadcast("10.88.255.255".parse().unwrap()));
        assert!(!config.is_broadcast("10.88.1.255".parse().unwrap()));
        let wide = Config { ipv4: Some((Ipv4Addr::new(10, 0, 0, 1), 0)), ..config };
        assert!(wide.is_on_link("192.168.0.1".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn any_discovery_message_is_read_without_panic(mut message: std::vec::Vec<u8>, solicits: bool) {
            if let [kind, code, ..] = &mut message[..] {
                *kind = if solicits { Discovery::SOLICITATION } else { Discovery::ADVERTISEMENT };
                *code = 0;
            }
            let _ = Discovery::parse(&message);
        }

        #[test]
        fn any_arp_packet_is_read_without_panic(packet: std::vec::Vec<u8>) {
            let _ = Arp::parse(&packet);
        }
    }
}
