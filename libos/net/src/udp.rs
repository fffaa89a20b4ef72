//! Datagram sockets.

use crate::{Error, interface::Interface, link::Transmit};
use alloc::{collections::VecDeque, vec::Vec};
use core::{
    net::{IpAddr, SocketAddr},
    task::Waker,
};
use smoltcp::{
    phy::ChecksumCapabilities,
    time::Instant,
    wire::{IpProtocol, IpRepr, UdpPacket},
};

const UDP_HEADER_LEN: usize = 8;
const HOP_LIMIT: u8 = 64;
/// Bytes of datagrams that nobody has read; more are dropped.
const QUEUED_BYTES_MAX: usize = 128 * 1024;
/// What a datagram costs beside its bytes.
const DATAGRAM_COST: usize = 64;

/// A datagram socket of a [`Stack`](crate::Stack).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpId(pub(crate) usize);

/// A datagram socket.
pub(crate) struct Udp {
    /// Its address may be unspecified.
    pub(crate) local: SocketAddr,
    /// The only one whose datagrams it takes.
    pub(crate) peer: Option<SocketAddr>,
    queue: VecDeque<(SocketAddr, Vec<u8>)>,
    queued_bytes: usize,
    pub(crate) reader: Option<Waker>,
    pub(crate) writer: Option<Waker>,
}

impl Udp {
    pub(crate) fn new(local: SocketAddr) -> Self {
        Self { local, peer: None, queue: VecDeque::new(), queued_bytes: 0, reader: None, writer: None }
    }

    /// Whether it takes what `from` sends to `to`.
    pub(crate) fn takes(&self, to: SocketAddr, from: SocketAddr) -> bool {
        self.local.port() == to.port()
            && listens_on(self.local.ip(), to.ip())
            && self.peer.is_none_or(|peer| peer == from)
    }

    /// Keeps a datagram for its reader, if there is room.
    pub(crate) fn push(&mut self, from: SocketAddr, payload: &[u8]) {
        let cost = payload.len() + DATAGRAM_COST;
        if self.queued_bytes + cost > QUEUED_BYTES_MAX {
            return;
        }
        self.queued_bytes += cost;
        self.queue.push_back((from, payload.to_vec()));
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// The next datagram, of which what does not fit is lost.
    pub(crate) fn pop(&mut self, bytes: &mut [u8]) -> Option<(usize, SocketAddr)> {
        let (from, payload) = self.queue.pop_front()?;
        self.queued_bytes -= payload.len() + DATAGRAM_COST;
        let len = payload.len().min(bytes.len());
        bytes[..len].copy_from_slice(&payload[..len]);
        Some((len, from))
    }
}

/// Whether a socket bound to `bound` takes what is sent to `to`.
///
/// The unspecified IPv6 address means IPv4 as well, as it does on other systems.
pub(crate) fn listens_on(bound: IpAddr, to: IpAddr) -> bool {
    match bound {
        IpAddr::V4(bound) => bound.is_unspecified() && to.is_ipv4() || bound == to,
        IpAddr::V6(bound) => bound.is_unspecified() || bound == to,
    }
}

/// Whether two sockets cannot be bound to these at the same time.
pub(crate) fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && (listens_on(a.ip(), b.ip()) || listens_on(b.ip(), a.ip()))
}

/// Sends one datagram.
pub(crate) fn send<T: Transmit>(
    interface: &mut Interface<T>,
    from: SocketAddr,
    to: SocketAddr,
    payload: &[u8],
    now: Instant,
) -> Result<(), Error> {
    let len = UDP_HEADER_LEN + payload.len();
    let ip = IpRepr::new(from.ip().into(), to.ip().into(), IpProtocol::Udp, len, HOP_LIMIT);
    if ip.buffer_len() > interface.mtu() {
        return Err(Error::MessageTooLong);
    }
    interface.out.send(ip.buffer_len(), None, now, |packet| {
        ip.emit(&mut *packet, &ChecksumCapabilities::default());
        let mut udp = UdpPacket::new_unchecked(&mut packet[ip.header_len()..]);
        udp.set_src_port(from.port());
        udp.set_dst_port(to.port());
        udp.set_len(len as u16);
        udp.set_checksum(0);
        udp.payload_mut().copy_from_slice(payload);
    });
    Ok(())
}
