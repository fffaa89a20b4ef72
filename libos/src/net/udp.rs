//! Datagrams.

use super::{
    Error, SocketAddr, ToSocketAddrs, act,
    lookup::{own, resolve},
    now, with,
};
use core::{
    fmt,
    future::poll_fn,
    task::{Context, Poll},
};
use fcap_libos_net::UdpId;

/// Sends and receives datagrams.
///
/// Datagrams that arrive while nobody reads are kept up to 128 KiB; more are lost, as they can be
/// on the way. None is larger than a packet of the interface.
pub struct UdpSocket {
    id: UdpId,
}

impl UdpSocket {
    /// Takes an address and port. The unspecified address `::` means IPv4 as well; port 0 chooses
    /// one that nobody can guess. Names are as those of [`TcpListener::bind`](super::TcpListener::bind).
    ///
    /// # Errors
    /// If another socket has the address, it is not one of the capsule's, or there is no network.
    pub async fn bind(address: impl ToSocketAddrs) -> Result<Self, Error> {
        let mut error = Error::InvalidName;
        for address in own(address)? {
            match Self::bind_to(address) {
                Ok(socket) => return Ok(socket),
                Err(found) => error = found,
            }
        }
        Err(error)
    }

    pub(super) fn bind_to(address: SocketAddr) -> Result<Self, Error> {
        act(|network| network.stack.udp_bind(address)).map(|id| Self { id })
    }

    /// Where it is.
    pub fn local_addr(&self) -> SocketAddr {
        with(|network| network.stack.udp_address(self.id))
    }

    /// The peer given to [`connect`](Self::connect).
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        with(|network| network.stack.udp_peer(self.id))
    }

    /// Speaks with one peer alone from now on.
    ///
    /// # Errors
    /// If no interface leads there.
    pub async fn connect(&self, address: impl ToSocketAddrs) -> Result<(), Error> {
        self.connect_to(first(address).await?)
    }

    pub(super) fn connect_to(&self, address: SocketAddr) -> Result<(), Error> {
        act(|network| network.stack.udp_connect(self.id, address))
    }

    /// Sends a datagram to the peer of [`connect`](Self::connect); returns its length.
    ///
    /// # Errors
    /// [`Error::NotConnected`]; otherwise as [`send_to`](Self::send_to).
    pub async fn send(&self, bytes: &[u8]) -> Result<usize, Error> {
        let peer = self.peer_addr().ok_or(Error::NotConnected)?;
        self.send_to_address(bytes, peer).await
    }

    /// Sends a datagram; returns its length.
    ///
    /// # Errors
    /// If it is too large, or no interface leads there.
    pub async fn send_to(&self, bytes: &[u8], to: impl ToSocketAddrs) -> Result<usize, Error> {
        self.send_to_address(bytes, first(to).await?).await
    }

    pub(super) async fn send_to_address(&self, bytes: &[u8], to: SocketAddr) -> Result<usize, Error> {
        let id = self.id;
        poll_fn(|cx| act(|network| network.stack.poll_send_to(id, bytes, to, now(), cx.waker()))).await?;
        Ok(bytes.len())
    }

    /// Waits for a datagram; returns its length. What does not fit is lost.
    ///
    /// # Errors
    /// None so far.
    pub async fn recv(&self, bytes: &mut [u8]) -> Result<usize, Error> {
        self.recv_from(bytes).await.map(|(len, _)| len)
    }

    /// Waits for a datagram; returns its length and who sent it. What does not fit is lost.
    ///
    /// # Errors
    /// None so far.
    pub async fn recv_from(&self, bytes: &mut [u8]) -> Result<(usize, SocketAddr), Error> {
        Ok(poll_fn(|cx| self.poll_recv_from(bytes, cx)).await)
    }

    pub(super) fn poll_recv_from(&self, bytes: &mut [u8], cx: &mut Context<'_>) -> Poll<(usize, SocketAddr)> {
        with(|network| network.stack.poll_receive_from(self.id, bytes, cx.waker()))
    }
}

async fn first(address: impl ToSocketAddrs) -> Result<SocketAddr, Error> {
    resolve(address).await?.into_iter().next().ok_or(Error::InvalidName)
}

impl fmt::Debug for UdpSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UdpSocket").field(&self.local_addr()).finish()
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        with(|network| network.stack.udp_close(self.id));
    }
}
