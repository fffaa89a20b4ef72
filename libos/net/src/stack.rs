//! The stack: interfaces, and which of its parts a packet is for.

use crate::{
    Error,
    flow::{self, Upper},
    flows::Flows,
    interface::{Interface, Out},
    link::{Config, Transmit},
    neighbor::Neighbors,
    slab::Slab,
    tcp::{Segment, Tcp, register},
    udp::{self, Udp, UdpId},
};
use alloc::{vec, vec::Vec};
use core::{
    array, mem,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    task::{Poll, Waker},
};
use smoltcp::{iface::SocketSet, time::Instant};

/// The loopback is the first interface.
const LOOPBACK: usize = 0;
/// Ports for whoever does not ask for one (RFC 6335).
const EPHEMERAL_PORTS: RangeInclusive<u16> = 49_152..=65_535;
/// Rounds between the capsule and itself before others get their turn.
const LOOPBACK_ROUNDS: usize = 16;

/// TCP/IP over some cards.
pub struct Stack<T> {
    /// The loopback, then the cards.
    pub(crate) interfaces: Vec<Interface<T>>,
    pub(crate) tcp: Tcp,
    udp: Slab<Udp>,
    /// Datagram sockets that wait for room.
    udp_waiting: Vec<usize>,
    /// Whether datagrams have been given to cards that have not been told of them.
    udp_sent: bool,
    /// What smoltcp answers when nobody of ours does.
    nobody: SocketSet<'static>,
    random: Random,
}

/// An xorshift* generator (Marsaglia, Vigna): ports must differ, and be hard to guess.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Addresses of the capsule, as configured.
pub type Addresses = Config;

impl<T: Transmit> Stack<T> {
    /// A stack over cards with their addresses.
    ///
    /// `memory_max` bounds the buffers of all connections, in bytes. `random` must be hard to
    /// guess: ports and sequence numbers come from it.
    pub fn new(cards: Vec<(Config, T)>, memory_max: usize, random: u64, now: Instant) -> Self {
        // No generator takes zero.
        let mut random = Random(random | 1);
        let own = cards.iter().flat_map(|(config, _)| config.addresses());
        let mut interfaces = vec![Interface::loopback(own, random.next(), now)];
        for (config, card) in cards {
            interfaces.push(Interface::card(config, card, Neighbors::default(), random.next(), now));
        }
        Self {
            interfaces,
            tcp: Tcp::new(memory_max, Flows::new(array::from_fn(|_| random.next()))),
            udp: Slab::new(),
            udp_waiting: Vec::new(),
            udp_sent: false,
            nobody: SocketSet::new(vec![]),
            random,
        }
    }

    /// All ports that nobody has asked for by number, from a random one on.
    pub(crate) fn ephemeral_ports(&mut self) -> impl Iterator<Item = u16> + use<T> {
        let count = EPHEMERAL_PORTS.len() as u64;
        let first = self.random.next() % count;
        (0..count).map(move |step| EPHEMERAL_PORTS.start() + ((first + step) % count) as u16)
    }

    /// The cards' addresses, in order.
    pub fn addresses(&self) -> impl Iterator<Item = &Config> {
        self.interfaces.iter().filter_map(|interface| match &interface.out {
            Out::Card { config, .. } => Some(config),
            Out::Loopback(_) => None,
        })
    }

    /// Card number `card`, counted from 0.
    ///
    /// # Panics
    /// If there is no such card.
    pub fn card(&mut self, card: usize) -> &mut T {
        match &mut self.interfaces[LOOPBACK + 1 + card].out {
            Out::Card { card, .. } => card,
            Out::Loopback(_) => unreachable!("the loopback is the first interface"),
        }
    }

    /// Puts another card in the place of one, as after a move to another host. Connections stay.
    ///
    /// # Panics
    /// If there is no such card.
    pub fn replace_card(&mut self, card: usize, with: T, now: Instant) {
        let seed = self.random.next();
        let interface = &mut self.interfaces[LOOPBACK + 1 + card];
        if let Out::Card { config, neighbors, .. } = &mut interface.out {
            *interface = Interface::card(*config, with, mem::take(neighbors), seed, now);
        }
        self.tcp.touch_all();
    }

    /// Gives all cards other addresses, as in a copy of the capsule. Connections from addresses
    /// that are gone break. To be followed by [`Self::replace_card`] for each card.
    pub fn set_addresses(&mut self, configs: &[Config], now: Instant) {
        let seed = self.random.next();
        let own = configs.iter().flat_map(Config::addresses);
        self.interfaces[LOOPBACK] = Interface::loopback(own, seed, now);
        for (interface, new) in self.interfaces.iter_mut().skip(LOOPBACK + 1).zip(configs) {
            if let Out::Card { config, .. } = &mut interface.out {
                *config = *new;
            }
        }
        self.tcp
            .break_where(|local| !configs.iter().any(|config| config.addresses().any(|own| own == local)));
    }

    /// Tells the link of a card where its addresses are now. Both ends of each connection through it
    /// send again at once what was lost on the way between the two places. `again` repeats it, for
    /// connections that have not got an answer since.
    ///
    /// # Panics
    /// If there is no such card.
    pub fn announce(&mut self, card: usize, again: bool, now: Instant) {
        let at = LOOPBACK + 1 + card;
        self.interfaces[at].announce(now);
        self.tcp.recover(&mut self.interfaces[at], at, again, now);
    }

    /// Connections of all kinds, also those that nobody has accepted, or any longer wants.
    pub fn connections(&self) -> usize {
        self.tcp.connections()
    }

    /// Bytes in buffers of connections.
    pub fn memory(&self) -> usize {
        self.tcp.memory()
    }

    /// Takes a frame that card number `card` has received.
    ///
    /// `verified` says that checksums of TCP and UDP need not be checked.
    ///
    /// # Panics
    /// If there is no such card.
    pub fn receive(&mut self, card: usize, frame: &[u8], verified: bool, now: Instant) {
        let at = LOOPBACK + 1 + card;
        if let Some(packet) = self.interfaces[at].open_frame(frame, now) {
            self.receive_packet(at, packet, verified, now);
        }
    }

    fn receive_packet(&mut self, at: usize, bytes: &[u8], verified: bool, now: Instant) {
        let Some(packet) = flow::parse(bytes) else { return };
        let interface = &mut self.interfaces[at];
        let to_us = interface.has(packet.dst);
        let to_all = match &interface.out {
            Out::Card { config, .. } => packet.dst.is_multicast() || config.is_broadcast(packet.dst),
            Out::Loopback(_) => false,
        };
        if !to_us && !to_all {
            return;
        }
        // Nobody else has our addresses; they would speak to us through the loopback.
        if at != LOOPBACK && (self.interfaces[LOOPBACK].has(packet.src) || packet.src.is_loopback()) {
            return;
        }
        let interface = &mut self.interfaces[at];
        match packet.upper {
            Upper::Tcp { .. } | Upper::Udp { .. } if !verified && !flow::checksum_is_right(&packet) => {}
            Upper::Tcp { src_port, dst_port, opens, resets, .. } if to_us => {
                let segment = Segment {
                    local: SocketAddr::new(packet.dst, dst_port),
                    remote: SocketAddr::new(packet.src, src_port),
                    opens,
                    resets,
                };
                if !self.tcp.receive(&mut self.interfaces, at, bytes, segment, now) {
                    self.interfaces[at].receive(bytes, &mut self.nobody, now);
                }
            }
            Upper::Tcp { .. } | Upper::Fragment => {}
            Upper::Udp { src_port, dst_port, datagram } => {
                let from = SocketAddr::new(packet.src, src_port);
                let payload = &datagram[8..];
                if !self.receive_datagram(SocketAddr::new(packet.dst, dst_port), from, payload) && to_us {
                    self.interfaces[at].receive(bytes, &mut self.nobody, now);
                }
            }
            Upper::Icmpv6(_) if interface.receive_discovery(bytes, &packet, now) => {}
            Upper::Icmpv6(_) | Upper::Other if to_us => interface.receive(bytes, &mut self.nobody, now),
            Upper::Icmpv6(_) | Upper::Other => {}
        }
    }

    /// Gives a datagram to its socket; `false` if there is none.
    fn receive_datagram(&mut self, to: SocketAddr, from: SocketAddr, payload: &[u8]) -> bool {
        let takes = |&(_, udp): &(usize, &Udp)| udp.takes(to, from);
        let Some(id) = self.udp.iter().find(takes).map(|(id, _)| id) else { return false };
        self.udp[id].push(from, payload);
        true
    }

    /// Sends everything that can be sent now. To be called after frames have been received,
    /// after sockets have been used, when [`Self::next_deadline`] has come, and when there is
    /// room again after [`Self::is_stalled`].
    pub fn send(&mut self, now: Instant) {
        self.tcp.fire(now);
        for (at, interface) in self.interfaces.iter_mut().enumerate() {
            if interface.ask_again_at().is_some_and(|at| at <= now) {
                for neighbor in interface.ask_again(now) {
                    self.tcp.give_up(at, |remote| interface.next_hop(remote) == Some(neighbor));
                }
            }
        }
        for _ in 0..LOOPBACK_ROUNDS {
            self.tcp.send(&mut self.interfaces, now);
            if !self.deliver_loopback(now) {
                break;
            }
        }
        self.interfaces.iter_mut().for_each(Interface::flush);
        self.udp_sent = false;
        self.wake_udp_writers();
    }

    /// Delivers what the capsule has sent to itself; whether there was something.
    fn deliver_loopback(&mut self, now: Instant) -> bool {
        let Out::Loopback(packets) = &mut self.interfaces[LOOPBACK].out else { return false };
        let packets = core::mem::take(packets);
        let any = !packets.is_empty();
        for packet in packets {
            self.receive_packet(LOOPBACK, &packet, true, now);
        }
        any
    }

    fn wake_udp_writers(&mut self) {
        if !self.udp_waiting.is_empty() && self.interfaces.iter_mut().all(Interface::has_room) {
            for id in core::mem::take(&mut self.udp_waiting) {
                if let Some(waker) = self.udp.get_mut(id).and_then(|udp| udp.writer.take()) {
                    waker.wake();
                }
            }
        }
    }

    /// Whether something waits for room in a card, so that [`Self::send`] is to be called
    /// when there is some, or for its first turn.
    pub fn is_stalled(&self) -> bool {
        self.tcp.is_dirty() || !self.udp_waiting.is_empty() || self.udp_sent
    }

    /// When [`Self::send`] has something to do that is not caused by anything else.
    pub fn next_deadline(&self) -> Option<Instant> {
        let questions = self.interfaces.iter().filter_map(Interface::ask_again_at).min();
        self.tcp.next_timer().into_iter().chain(questions).min()
    }

    /// The interface that leads to an address.
    pub(crate) fn route(&self, to: IpAddr) -> Result<usize, Error> {
        let find = |test: fn(&Interface<T>, IpAddr) -> bool| {
            self.interfaces.iter().position(|interface| test(interface, to))
        };
        match find(Interface::is_on_link).or_else(|| find(Interface::leads_to)) {
            Some(at) => Ok(at),
            None if self.interfaces.len() == LOOPBACK + 1 => Err(Error::NoNetwork),
            None => Err(Error::Unreachable),
        }
    }

    /// Whether a socket may have the address.
    pub(crate) fn check_local(&self, address: IpAddr) -> Result<(), Error> {
        match self.interfaces.len() {
            _ if self.interfaces.iter().any(|interface| interface.has(address)) => Ok(()),
            1 => Err(Error::NoNetwork),
            _ if address.is_unspecified() => Ok(()),
            _ => Err(Error::AddressNotAvailable),
        }
    }

    /// Makes a datagram socket at an address, which may be unspecified, and a port; 0 chooses one.
    ///
    /// # Errors
    /// [`Error::AddressInUse`], [`Error::AddressNotAvailable`], [`Error::NoNetwork`].
    pub fn udp_bind(&mut self, local: SocketAddr) -> Result<UdpId, Error> {
        self.check_local(local.ip())?;
        let taken = |stack: &Self, port| {
            let wanted = SocketAddr::new(local.ip(), port);
            stack.udp.iter().any(|(_, udp)| udp::overlap(udp.local, wanted))
        };
        let port = match local.port() {
            // Answers to ports that can be guessed are how name servers are impersonated (RFC 5452).
            0 => {
                let mut ports = self.ephemeral_ports();
                ports.find(|&port| !taken(self, port)).ok_or(Error::AddressInUse)?
            }
            port if taken(self, port) => return Err(Error::AddressInUse),
            port => port,
        };
        Ok(UdpId(self.udp.insert(Udp::new(SocketAddr::new(local.ip(), port)))))
    }

    /// Where a datagram socket is.
    pub fn udp_address(&self, id: UdpId) -> SocketAddr {
        self.udp[id.0].local
    }

    /// Whom a datagram socket speaks with, if with one alone.
    pub fn udp_peer(&self, id: UdpId) -> Option<SocketAddr> {
        self.udp[id.0].peer
    }

    /// Has a datagram socket speak with one peer alone.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::NoNetwork`].
    pub fn udp_connect(&mut self, id: UdpId, peer: SocketAddr) -> Result<(), Error> {
        self.route(peer.ip())?;
        self.udp[id.0].peer = Some(peer);
        Ok(())
    }

    /// Sends a datagram.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::NoNetwork`], [`Error::MessageTooLong`].
    pub fn poll_send_to(
        &mut self,
        id: UdpId,
        payload: &[u8],
        to: SocketAddr,
        now: Instant,
        waker: &Waker,
    ) -> Poll<Result<(), Error>> {
        if to.port() == 0 || to.ip().is_unspecified() {
            return Poll::Ready(Err(Error::Unreachable));
        }
        let at = self.route(to.ip())?;
        let interface = &mut self.interfaces[at];
        let local = self.udp[id.0].local;
        let own = Some(local.ip()).filter(|address| !address.is_unspecified());
        let source = own.or_else(|| interface.source_for(to.ip())).ok_or(Error::Unreachable)?;
        if source.is_ipv4() != to.is_ipv4() {
            return Poll::Ready(Err(Error::Unreachable));
        }
        if !interface.has_room() {
            register(&mut self.udp[id.0].writer, waker);
            if !self.udp_waiting.contains(&id.0) {
                self.udp_waiting.push(id.0);
            }
            return Poll::Pending;
        }
        let from = SocketAddr::new(source, local.port());
        self.udp_sent = true;
        Poll::Ready(udp::send(interface, from, to, payload, now))
    }

    /// Takes the next datagram; what does not fit into `bytes` is lost.
    pub fn poll_receive_from(
        &mut self,
        id: UdpId,
        bytes: &mut [u8],
        waker: &Waker,
    ) -> Poll<(usize, SocketAddr)> {
        let udp = &mut self.udp[id.0];
        match udp.pop(bytes) {
            Some(received) => Poll::Ready(received),
            None => {
                register(&mut udp.reader, waker);
                Poll::Pending
            }
        }
    }

    /// Ends a datagram socket. The number means nothing afterwards.
    pub fn udp_close(&mut self, id: UdpId) {
        self.udp.remove(id.0);
        self.udp_waiting.retain(|&waiting| waiting != id.0);
    }
}
