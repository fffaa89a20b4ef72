//! Streams and listeners.

use super::{
    Error, Network, SocketAddr, ToSocketAddrs, act,
    lookup::{own, resolve},
    now, with,
};
use alloc::rc::Rc;
use core::{
    fmt,
    future::poll_fn,
    net::{IpAddr, Ipv6Addr},
    task::{Context, Poll, Waker},
};
use embedded_io_async::{ErrorType, Read, Write};
use fcap_libos_net::{ConnectionId, ListenerId, Options};

/// Connections of a listener that have not been accepted, unless the application says otherwise.
const BACKLOG: usize = 1024;

fn duration(std: crate::time::Duration) -> fcap_libos_net::Duration {
    fcap_libos_net::Duration::from_micros(u64::try_from(std.as_micros()).unwrap_or(u64::MAX))
}

/// Accepts connections.
///
/// Dropping it resets those that have not been accepted.
pub struct TcpListener {
    id: ListenerId,
}

impl TcpListener {
    /// Listens at an address and port. The unspecified address `::` means IPv4 as well; port 0
    /// chooses one. Names other than `localhost` are not looked up: they are for others to find us.
    ///
    /// # Errors
    /// If another listener has the address, it is not one of the capsule's, or there is no network.
    pub async fn bind(address: impl ToSocketAddrs) -> Result<Self, Error> {
        let mut error = Error::InvalidName;
        for address in own(address)? {
            let mut socket = TcpSocket::new();
            socket.bind(address);
            match socket.listen(BACKLOG) {
                Ok(listener) => return Ok(listener),
                Err(found) => error = found,
            }
        }
        Err(error)
    }

    /// Waits for a connection.
    ///
    /// # Errors
    /// None so far: a connection that breaks before it is accepted says so when it is used.
    pub async fn accept(&self) -> Result<(TcpStream, SocketAddr), Error> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// As [`accept`](Self::accept), to be polled.
    ///
    /// # Errors
    /// As [`accept`](Self::accept).
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Result<(TcpStream, SocketAddr), Error>> {
        let accepted = with(|network| network.stack.poll_accept(self.id, cx.waker()));
        accepted.map(|(id, peer)| Ok((TcpStream { connection: Connection { id } }, peer)))
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        with(|network| network.stack.listener_address(self.id))
    }
}

impl fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TcpListener").field(&self.local_addr()).finish()
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        act(|network| network.stack.close_listener(self.id));
    }
}

/// A stream or listener to be, with other options than usual.
#[derive(Clone, Debug, Default)]
pub struct TcpSocket {
    local: Option<SocketAddr>,
    options: Options,
}

impl TcpSocket {
    /// Begins with the usual options.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes the peer may send ahead. Without this it depends on free memory: 64 KiB
    /// while there are few connections, 4 KiB when there are many. At most 4 MiB.
    pub fn set_recv_buffer_size(&mut self, bytes: usize) {
        self.options.receive_buffer = Some(bytes);
    }

    /// How many bytes may be written ahead; otherwise as
    /// [`set_recv_buffer_size`](Self::set_recv_buffer_size).
    pub fn set_send_buffer_size(&mut self, bytes: usize) {
        self.options.send_buffer = Some(bytes);
    }

    /// Asks a silent peer this often whether it is still there, so that a connection to one that
    /// has vanished ends. Off if not set.
    pub fn set_keepalive(&mut self, interval: Option<crate::time::Duration>) {
        self.options.keep_alive = interval.map(duration);
    }

    /// The address and port of this end; what is unspecified, or 0, is chosen.
    pub fn bind(&mut self, local: SocketAddr) {
        self.local = Some(local);
    }

    /// Listens at the address given to [`bind`](Self::bind), all if there was none; its
    /// connections get the options. At most `backlog` connections wait to be accepted.
    ///
    /// # Errors
    /// As [`TcpListener::bind`].
    pub fn listen(self, backlog: usize) -> Result<TcpListener, Error> {
        let local = self.local.unwrap_or(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0));
        let id = act(|network| network.stack.listen(local, backlog, self.options))?;
        Ok(TcpListener { id })
    }

    /// Connects.
    ///
    /// # Errors
    /// As [`TcpStream::connect`].
    pub async fn connect(self, to: SocketAddr) -> Result<TcpStream, Error> {
        let id = act(|network| network.stack.connect(to, self.local, self.options))?;
        let connection = Connection { id };
        poll_fn(|cx| with(|network| network.stack.poll_connected(id, cx.waker()))).await?;
        Ok(TcpStream { connection })
    }
}

/// What a stream, or its halves together, own: dropping it closes the connection.
struct Connection {
    id: ConnectionId,
}

impl Drop for Connection {
    fn drop(&mut self) {
        act(|network| network.stack.close(self.id, now()));
    }
}

impl Connection {
    async fn read(&self, bytes: &mut [u8]) -> Result<usize, Error> {
        self.wait(|network, waker| network.stack.poll_read(self.id, bytes, waker)).await
    }

    async fn write(&self, bytes: &[u8]) -> Result<usize, Error> {
        self.wait(|network, waker| network.stack.poll_write(self.id, bytes, waker)).await
    }

    async fn write_all(&self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            bytes = &bytes[self.write(bytes).await?..];
        }
        Ok(())
    }

    async fn read_exact(&self, mut bytes: &mut [u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            match self.read(bytes).await? {
                0 => return Err(Error::Closed),
                count => bytes = &mut bytes[count..],
            }
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), Error> {
        self.wait(|network, waker| network.stack.poll_flush(self.id, waker)).await
    }

    fn try_read(&self, bytes: &mut [u8]) -> Option<Result<usize, Error>> {
        ready(act(|network| network.stack.poll_read(self.id, bytes, Waker::noop())))
    }

    fn try_write(&self, bytes: &[u8]) -> Option<Result<usize, Error>> {
        ready(act(|network| network.stack.poll_write(self.id, bytes, Waker::noop())))
    }

    fn shutdown(&self) {
        act(|network| network.stack.shutdown(self.id));
    }

    async fn wait<T>(&self, mut poll: impl FnMut(&mut Network, &Waker) -> Poll<T>) -> T {
        poll_fn(|cx| act(|network| poll(network, cx.waker()))).await
    }

    fn local_addr(&self) -> SocketAddr {
        with(|network| network.stack.local_address(self.id))
    }

    fn peer_addr(&self) -> SocketAddr {
        with(|network| network.stack.remote_address(self.id))
    }
}

fn ready<T>(poll: Poll<T>) -> Option<T> {
    match poll {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// A connection.
///
/// Dropping it ends the connection in good order: what was written is still sent, then the peer
/// is told that no more comes. If something was received and not read, the connection is reset.
pub struct TcpStream {
    connection: Connection,
}

impl TcpStream {
    /// Connects to an address, or to the first of a name's addresses that answers.
    ///
    /// Gives up an address after 20 seconds; [`time::timeout`](crate::time::timeout) shortens that.
    ///
    /// # Errors
    /// If nobody listens there, nobody answers, or no interface leads there.
    pub async fn connect(address: impl ToSocketAddrs) -> Result<Self, Error> {
        let mut error = Error::InvalidName;
        for address in resolve(address).await? {
            match TcpSocket::new().connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(found) => error = found,
            }
        }
        Err(error)
    }

    /// This end.
    pub fn local_addr(&self) -> SocketAddr {
        self.connection.local_addr()
    }

    /// The other end.
    pub fn peer_addr(&self) -> SocketAddr {
        self.connection.peer_addr()
    }

    /// Waits for bytes and takes them; 0 if the peer has ended its direction.
    ///
    /// # Errors
    /// If the connection broke.
    pub async fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Error> {
        self.connection.read(bytes).await
    }

    /// Fills `bytes`.
    ///
    /// # Errors
    /// [`Error::Closed`] if the peer has ended its direction before; if the connection broke.
    pub async fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.connection.read_exact(bytes).await
    }

    /// Waits for room and writes as many bytes as fit.
    ///
    /// # Errors
    /// If the connection broke, or this direction was ended.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        self.connection.write(bytes).await
    }

    /// Writes everything.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn write_all(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.connection.write_all(bytes).await
    }

    /// Waits until the peer has acknowledged everything. Not needed for things to be sent.
    ///
    /// # Errors
    /// If the connection broke.
    pub async fn acknowledged(&self) -> Result<(), Error> {
        self.connection.flush().await
    }

    /// Takes bytes that are there; `None` if there are none yet.
    pub fn try_read(&self, bytes: &mut [u8]) -> Option<Result<usize, Error>> {
        self.connection.try_read(bytes)
    }

    /// Writes what there is room for; `None` if there is none.
    pub fn try_write(&self, bytes: &[u8]) -> Option<Result<usize, Error>> {
        self.connection.try_write(bytes)
    }

    /// Waits until reading does not wait.
    pub async fn readable(&self) {
        self.connection.wait(|network, waker| network.stack.poll_readable(self.connection.id, waker)).await;
    }

    /// Waits until writing does not wait.
    pub async fn writable(&self) {
        self.connection.wait(|network, waker| network.stack.poll_writable(self.connection.id, waker)).await;
    }

    /// Ends this direction, after everything written.
    pub fn shutdown(&mut self) {
        self.connection.shutdown();
    }

    /// Breaks the connection: what has not been sent is not, and the peer is told.
    pub fn abort(self) {
        let id = self.connection.id;
        core::mem::forget(self.connection);
        act(|network| network.stack.abort(id));
    }

    /// Whether small pieces are sent at once, which they are unless set otherwise.
    pub fn nodelay(&self) -> bool {
        with(|network| network.stack.no_delay(self.connection.id))
    }

    /// Sends small pieces at once (`true`), or waits meanwhile for the acknowledgement of those
    /// before (`false`).
    pub fn set_nodelay(&self, no_delay: bool) {
        act(|network| network.stack.set_no_delay(self.connection.id, no_delay));
    }

    /// See [`TcpSocket::set_keepalive`].
    pub fn set_keepalive(&self, interval: Option<crate::time::Duration>) {
        act(|network| network.stack.set_keep_alive(self.connection.id, interval.map(duration)));
    }

    /// Both directions by themselves, for one task.
    pub fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        (ReadHalf { connection: &self.connection }, WriteHalf { connection: &self.connection })
    }

    /// Both directions by themselves, for two tasks. The connection is closed when both are
    /// dropped; dropping the writing half ends that direction.
    pub fn into_split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        let connection = Rc::new(self.connection);
        (OwnedReadHalf { connection: connection.clone() }, OwnedWriteHalf { connection })
    }
}

impl fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (local, peer) = (self.local_addr(), self.peer_addr());
        f.debug_struct("TcpStream").field("local", &local).field("peer", &peer).finish()
    }
}

/// The reading half of a stream; from [`TcpStream::split`].
pub struct ReadHalf<'a> {
    connection: &'a Connection,
}

/// The writing half of a stream; from [`TcpStream::split`].
pub struct WriteHalf<'a> {
    connection: &'a Connection,
}

/// The reading half of a stream; from [`TcpStream::into_split`].
pub struct OwnedReadHalf {
    connection: Rc<Connection>,
}

/// The writing half of a stream; from [`TcpStream::into_split`]. Dropping it ends its direction.
pub struct OwnedWriteHalf {
    connection: Rc<Connection>,
}

impl Drop for OwnedWriteHalf {
    fn drop(&mut self) {
        self.connection.shutdown();
    }
}

/// What reading halves do.
macro_rules! reads {
    ($type:ty) => {
        impl $type {
            /// As [`TcpStream::read`].
            ///
            /// # Errors
            /// As [`TcpStream::read`].
            pub async fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Error> {
                self.connection.read(bytes).await
            }

            /// As [`TcpStream::read_exact`].
            ///
            /// # Errors
            /// As [`TcpStream::read_exact`].
            pub async fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
                self.connection.read_exact(bytes).await
            }
        }
        reads!(trait $type);
    };
    (trait $type:ty) => {
        impl Read for $type {
            async fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Error> {
                self.connection.read(bytes).await
            }
        }
    };
}

/// What writing halves do.
macro_rules! writes {
    ($type:ty) => {
        impl $type {
            /// As [`TcpStream::write`].
            ///
            /// # Errors
            /// As [`TcpStream::write`].
            pub async fn write(&mut self, bytes: &[u8]) -> Result<usize, Error> {
                self.connection.write(bytes).await
            }

            /// As [`TcpStream::write_all`].
            ///
            /// # Errors
            /// As [`TcpStream::write`].
            pub async fn write_all(&mut self, bytes: &[u8]) -> Result<(), Error> {
                self.connection.write_all(bytes).await
            }

            /// As [`TcpStream::shutdown`].
            pub fn shutdown(&mut self) {
                self.connection.shutdown();
            }
        }
        writes!(trait $type);
    };
    (trait $type:ty) => {
        impl Write for $type {
            async fn write(&mut self, bytes: &[u8]) -> Result<usize, Error> {
                self.connection.write(bytes).await
            }

            /// Does nothing: what is written is sent by itself.
            async fn flush(&mut self) -> Result<(), Error> {
                Ok(())
            }
        }
    };
}

reads!(ReadHalf<'_>);
reads!(OwnedReadHalf);
writes!(WriteHalf<'_>);
writes!(OwnedWriteHalf);
reads!(trait TcpStream);
writes!(trait TcpStream);

impl ErrorType for TcpStream {
    type Error = Error;
}

impl ErrorType for ReadHalf<'_> {
    type Error = Error;
}

impl ErrorType for WriteHalf<'_> {
    type Error = Error;
}

impl ErrorType for OwnedReadHalf {
    type Error = Error;
}

impl ErrorType for OwnedWriteHalf {
    type Error = Error;
}
