//! Connections and listeners.

use crate::{
    Error,
    flow::{FlowKey, Spoken},
    flows::Flows,
    interface::Interface,
    link::Transmit,
    slab::Slab,
    stack::Stack,
    udp::{listens_on, overlap},
};
use alloc::{
    collections::{BinaryHeap, VecDeque},
    vec,
    vec::Vec,
};
use core::{
    cmp::Reverse,
    net::{IpAddr, SocketAddr},
    task::{Poll, Waker},
};
use smoltcp::{
    iface::{SocketHandle, SocketSet},
    socket::tcp::{CongestionControl, Socket, SocketBuffer, State},
    time::{Duration, Instant},
    wire::{IpAddress, IpListenEndpoint},
};

/// Smallest buffer for each direction of a connection.
const BUFFER_MIN: usize = 4 * 1024;
/// Largest buffer that a connection gets when the application has not asked for more.
const BUFFER_DEFAULT_MAX: usize = 64 * 1024;
/// Largest buffer that an application gets when it asks.
const BUFFER_MAX: usize = 4 * 1024 * 1024;
/// The share of the memory for large buffers that one connection may take.
const SHARE: usize = 32;
/// Half-open connections of a listener, whatever memory there is.
const HALF_OPEN_MAX: usize = 1024;
/// The share of the memory that they take if their buffers are the smallest.
const HALF_OPEN_SHARE: usize = 4;
/// For a peer to answer the request to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// For a peer to acknowledge data.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(300);
/// Questions of keep-alive that a peer may leave unanswered.
const KEEP_ALIVE_QUESTIONS: u32 = 4;
/// For a connection to end that the application has let go of.
const LINGER: Duration = Duration::from_secs(30);
/// Timers that are there before those are looked for that nobody has any more.
const TIMERS_MIN: usize = 64;
/// What delayed acknowledgements wait for company.
const ACK_DELAY: Duration = Duration::from_millis(10);
/// So many repetitions of an acknowledgement have its receiver send again what it asks for (RFC 5681,
/// 3.2).
const DUPLICATES: u8 = 3;
/// The next look at a connection that seems to have something to do, and could not.
const RETRY: Duration = Duration::from_millis(1);

/// A connection of a [`Stack`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionId(usize);

/// A listener of a [`Stack`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerId(usize);

/// How a connection is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Bytes that the peer may send ahead; chosen by free memory if not given.
    pub receive_buffer: Option<usize>,
    /// Bytes that may wait to be sent or acknowledged; chosen by free memory if not given.
    pub send_buffer: Option<usize>,
    /// Asks a silent peer this often whether it is still there.
    pub keep_alive: Option<Duration>,
}

/// All connections and listeners.
pub(crate) struct Tcp {
    connections: Slab<Connection>,
    flows: Flows,
    listeners: Slab<Listener>,
    /// Connections that may have something to send.
    dirty: VecDeque<usize>,
    /// The earliest first. Those that their connection does not have any more are passed over.
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    /// Bytes in buffers.
    memory: usize,
    memory_max: usize,
}

struct Listener {
    local: SocketAddr,
    backlog: usize,
    options: Options,
    /// By age.
    half_open: VecDeque<usize>,
    ready: VecDeque<usize>,
    waker: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// Nobody yet: the peer has not confirmed that it wants to connect.
    HalfOpen {
        listener: usize,
    },
    /// The listener, until it is accepted.
    Listener,
    Application,
    /// Nobody any more.
    None,
}

struct Connection {
    set: SocketSet<'static>,
    handle: SocketHandle,
    interface: usize,
    local: SocketAddr,
    remote: SocketAddr,
    owner: Owner,
    /// Why it ended, if not in good order.
    error: Option<Error>,
    /// What we said last.
    said: Option<Spoken>,
    /// The peer has said something since the connection was to recover last.
    heard: bool,
    /// In the list of those that may have something to send.
    dirty: bool,
    /// Its entry among the timers; may be earlier than need be.
    timer: Option<Instant>,
    /// When it ends whatever the peer does.
    ends: Option<Instant>,
    memory: usize,
}

impl Connection {
    fn socket(&mut self) -> &mut Socket<'static> {
        self.set.get_mut(self.handle)
    }

    fn key(&self) -> FlowKey {
        key(self.local, self.remote)
    }

    /// Has smoltcp watch for a peer that is silent, while there is something that it ought to say.
    ///
    /// Left to itself, smoltcp takes silence on an idle connection for an answer that is missing.
    /// The end of a connection has a time limit of its own, [`LINGER`].
    fn watch_silence(&mut self) {
        let socket = self.socket();
        let timeout = match socket.state() {
            State::SynSent | State::SynReceived => Some(CONNECT_TIMEOUT),
            _ if socket.send_queue() > 0 => Some(ACKNOWLEDGE_TIMEOUT),
            _ => socket.keep_alive().map(|interval| interval * KEEP_ALIVE_QUESTIONS),
        };
        socket.set_timeout(timeout);
    }

    /// Has what the peer has not acknowledged sent again now, rather than when time has shown that it
    /// is lost: smoltcp is shown that time.
    fn send_again<T: Transmit>(&mut self, interface: &mut Interface<T>, now: Instant) {
        let socket = self.socket();
        let opens_or_ends = !matches!(socket.state(), State::Established | State::CloseWait);
        if socket.send_queue() == 0 && !opens_or_ends {
            return;
        }
        // Acknowledgements that were put off come first, and could be taken for it.
        let now = now + ACK_DELAY;
        interface.send(&mut self.set, now);
        if let Some(at) = interface.poll_at(&self.set, now)
            && at < now + ACKNOWLEDGE_TIMEOUT / 2
        {
            interface.send(&mut self.set, at);
        }
    }

    /// Whether there is nothing left to do for the peer.
    fn is_over(&mut self) -> bool {
        let unowned = !matches!(self.owner, Owner::Application | Owner::Listener);
        let socket = self.socket();
        match socket.state() {
            // A socket that is to send a reset has its peer until then.
            State::Closed => socket.remote_endpoint().is_none(),
            State::Listen => true,
            // The peer has everything, and so have we. Holding the port and the buffers
            // against segments that may be late would be dearer than answering them with
            // a reset, which no longer hurts anybody.
            State::TimeWait => unowned,
            _ => false,
        }
    }
}

fn key(local: SocketAddr, remote: SocketAddr) -> FlowKey {
    FlowKey::new((local.ip(), local.port()), (remote.ip(), remote.port()))
}

impl Tcp {
    pub(crate) fn new(memory_max: usize, flows: Flows) -> Self {
        Self {
            connections: Slab::new(),
            flows,
            listeners: Slab::new(),
            dirty: VecDeque::new(),
            timers: BinaryHeap::new(),
            memory: 0,
            memory_max,
        }
    }

    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub(crate) fn next_timer(&self) -> Option<Instant> {
        self.timers.peek().map(|&Reverse((at, _))| at)
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.len()
    }

    pub(crate) fn memory(&self) -> usize {
        self.memory
    }

    fn touch(&mut self, id: usize) {
        let connection = &mut self.connections[id];
        if !connection.dirty {
            connection.dirty = true;
            self.dirty.push_back(id);
        }
    }

    /// Breaks connections from local addresses that are gone.
    pub(crate) fn break_where(&mut self, is_gone: impl Fn(IpAddr) -> bool) {
        let all: Vec<usize> = self.connections.iter().map(|(id, _)| id).collect();
        for id in all {
            let connection = &mut self.connections[id];
            let local = connection.local.ip();
            if !local.is_loopback() && is_gone(local) {
                connection.error = Some(Error::Reset);
                // smoltcp closes it without a word to the peer, who knows us by another address.
                self.touch(id);
            }
        }
    }

    /// Breaks connections that are to be made through a neighbour on interface `at` who is not
    /// there. Those that have been made may outlast its absence.
    pub(crate) fn give_up(&mut self, at: usize, is_behind: impl Fn(IpAddr) -> bool) {
        let all: Vec<usize> = self.connections.iter().map(|(id, _)| id).collect();
        for id in all {
            let connection = &mut self.connections[id];
            let is_concerned = connection.interface == at && is_behind(connection.remote.ip());
            if is_concerned && connection.socket().state() == State::SynSent {
                connection.error = Some(Error::Unreachable);
                connection.socket().abort();
                self.touch(id);
            }
        }
    }

    /// Looks again at all connections, as when interfaces have changed.
    pub(crate) fn touch_all(&mut self) {
        let all: Vec<usize> = self.connections.iter().map(|(id, _)| id).collect();
        all.into_iter().for_each(|id| self.touch(id));
    }

    /// Has both ends of each connection through interface `at` send again at once what the other
    /// has not acknowledged. What was on its way while the interface led nowhere is lost, and their
    /// timers would notice a second later at the earliest. `again` leaves out those that have got
    /// an answer since.
    pub(crate) fn recover<T: Transmit>(
        &mut self,
        interface: &mut Interface<T>,
        at: usize,
        again: bool,
        now: Instant,
    ) {
        let concerned = |connection: &Connection| connection.interface == at && !(again && connection.heard);
        for (_, connection) in self.connections.iter_mut().filter(|(_, it)| concerned(it)) {
            connection.heard = false;
            let is_open = !matches!(connection.socket().state(), State::SynReceived | State::Closed);
            if let Some(said) = connection.said.filter(|_| is_open) {
                let duplicate = said.acknowledgement(connection.local, connection.remote);
                // The first may be news to the peer, if ours was lost.
                for _ in 0..=DUPLICATES {
                    let copy = |packet: &mut [u8]| packet.copy_from_slice(&duplicate);
                    interface.out.send(duplicate.len(), None, now, copy);
                }
            }
            connection.send_again(interface, now);
            connection.said = interface.take_said().or(connection.said);
        }
        self.touch_all();
    }

    /// Makes a socket with buffers, and says how much memory they take.
    ///
    /// The first connections get large buffers; the more there are, the smaller they get, so
    /// that few are fast and many fit.
    fn socket(&self, options: &Options) -> Result<(Socket<'static>, usize), Error> {
        let share = (self.memory_max / 2).saturating_sub(self.memory) / SHARE;
        let chosen = (share / 2).clamp(BUFFER_MIN, BUFFER_DEFAULT_MAX) & !(BUFFER_MIN - 1);
        let size = |asked: Option<usize>| asked.map_or(chosen, |asked| asked.clamp(BUFFER_MIN, BUFFER_MAX));
        let (receive, send) = (size(options.receive_buffer), size(options.send_buffer));
        if self.memory + receive + send > self.memory_max {
            return Err(Error::OutOfMemory);
        }
        let buffer = |len| SocketBuffer::new(vec![0; len]);
        let mut socket = Socket::new(buffer(receive), buffer(send));
        // What tasks write in one turn is sent together in any case.
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(ACK_DELAY));
        socket.set_keep_alive(options.keep_alive);
        Ok((socket, receive + send))
    }

    fn insert(&mut self, connection: Connection) -> usize {
        self.memory += connection.memory;
        let key = connection.key();
        let id = self.connections.insert(connection);
        self.flows.insert(key, id);
        id
    }

    fn remove(&mut self, id: usize) {
        let Some(connection) = self.connections.remove(id) else { return };
        self.memory -= connection.memory;
        self.flows.remove(&connection.key());
        if connection.dirty {
            self.dirty.retain(|&dirty| dirty != id);
        }
        if let Owner::HalfOpen { listener } = connection.owner
            && let Some(listener) = self.listeners.get_mut(listener)
        {
            listener.half_open.retain(|&half_open| half_open != id);
        }
    }

    /// The listener that takes connections to an address.
    fn listener_for(&self, to: SocketAddr) -> Option<usize> {
        let takes = |&(_, listener): &(usize, &Listener)| {
            listener.local.port() == to.port() && listens_on(listener.local.ip(), to.ip())
        };
        // One that is bound to the very address comes before one for all addresses.
        let candidates = self.listeners.iter().filter(takes);
        candidates.max_by_key(|(_, listener)| listener.local.ip() == to.ip()).map(|(id, _)| id)
    }

    fn is_listening(&self, local: SocketAddr) -> bool {
        self.listeners.iter().any(|(_, listener)| overlap(listener.local, local))
    }

    /// Gives a segment to the connection it belongs to; `false` if there is none and none is to be.
    pub(crate) fn receive<T: Transmit>(
        &mut self,
        interfaces: &mut [Interface<T>],
        at: usize,
        packet: &[u8],
        segment: Segment,
        now: Instant,
    ) -> bool {
        let Segment { local, remote, opens, resets } = segment;
        let Some(id) = self.flows.get(&key(local, remote)) else {
            return opens && self.open(interfaces, at, packet, local, remote, now);
        };
        let connection = &mut self.connections[id];
        // The same addresses through another interface are not the same peer.
        if connection.interface == at {
            let before = connection.socket().state();
            interfaces[at].receive(packet, &mut connection.set, now);
            connection.said = interfaces[at].take_said().or(connection.said);
            connection.heard = true;
            self.received(id, before, resets);
        }
        true
    }

    /// Begins a connection, if there is a listener with room; `false` if there is no listener.
    fn open<T: Transmit>(
        &mut self,
        interfaces: &mut [Interface<T>],
        at: usize,
        packet: &[u8],
        local: SocketAddr,
        remote: SocketAddr,
        now: Instant,
    ) -> bool {
        let Some(listener_id) = self.listener_for(local) else { return false };
        let listener = &self.listeners[listener_id];
        // The peer asks again, and there may be room then.
        if listener.ready.len() >= listener.backlog {
            return true;
        }
        let half_open_max = (self.memory_max / HALF_OPEN_SHARE / (2 * BUFFER_MIN)).clamp(1, HALF_OPEN_MAX);
        if listener.half_open.len() >= listener.backlog.min(half_open_max) {
            let oldest = listener.half_open.front().copied();
            oldest.into_iter().for_each(|id| self.remove(id));
        }
        let Ok((mut socket, memory)) = self.socket(&self.listeners[listener_id].options) else {
            return true;
        };
        let interface = &mut interfaces[at];
        socket.set_congestion_control(congestion_control(interface, remote));
        let endpoint = IpListenEndpoint { addr: Some(IpAddress::from(local.ip())), port: local.port() };
        if socket.listen(endpoint).is_err() {
            return false;
        }
        let mut set = SocketSet::new(Vec::with_capacity(1));
        let handle = set.add(socket);
        interface.receive(packet, &mut set, now);
        let socket: &mut Socket<'_> = set.get_mut(handle);
        if socket.state() != State::SynReceived {
            return true;
        }
        let owner = Owner::HalfOpen { listener: listener_id };
        let connection = Connection {
            set,
            handle,
            interface: at,
            local,
            remote,
            owner,
            error: None,
            said: None,
            heard: true,
            dirty: false,
            timer: None,
            ends: None,
            memory,
        };
        let id = self.insert(connection);
        self.listeners[listener_id].half_open.push_back(id);
        self.touch(id);
        true
    }

    /// Follows what a segment has changed.
    fn received(&mut self, id: usize, before: State, resets: bool) {
        let connection = &mut self.connections[id];
        let owner = connection.owner;
        let socket = connection.socket();
        let state = socket.state();
        if owner == Owner::None && socket.recv_queue() > 0 {
            // Nobody will ever read it (RFC 2525, 2.17).
            socket.abort();
        }
        if state == State::Closed && before != State::Closed && resets {
            let error = if before == State::SynSent { Error::Refused } else { Error::Reset };
            connection.error = Some(error);
        }
        if let Owner::HalfOpen { listener } = owner
            && !matches!(state, State::SynReceived | State::Listen | State::Closed)
        {
            connection.owner = Owner::Listener;
            let listener = &mut self.listeners[listener];
            listener.half_open.retain(|&half_open| half_open != id);
            listener.ready.push_back(id);
            if let Some(waker) = listener.waker.take() {
                waker.wake();
            }
        }
        self.touch(id);
    }

    /// Marks the connections whose time has come.
    pub(crate) fn fire(&mut self, now: Instant) {
        while let Some(&Reverse((at, id))) = self.timers.peek()
            && at <= now
        {
            self.timers.pop();
            let Some(connection) = self.connections.get_mut(id) else { continue };
            if connection.timer != Some(at) {
                continue;
            }
            connection.timer = None;
            if connection.ends.is_some_and(|ends| ends <= now) {
                connection.ends = None;
                connection.socket().abort();
            }
            self.touch(id);
        }
    }

    /// Sends what there is to send; `false` if something is left for want of room.
    pub(crate) fn send<T: Transmit>(&mut self, interfaces: &mut [Interface<T>], now: Instant) -> bool {
        let mut stalled = Vec::new();
        while let Some(id) = self.dirty.pop_front() {
            let connection = &mut self.connections[id];
            connection.dirty = false;
            let interface = &mut interfaces[connection.interface];
            connection.watch_silence();
            let before = connection.socket().state();
            let done = interface.send(&mut connection.set, now);
            connection.said = interface.take_said().or(connection.said);
            // Time alone ends what nobody has answered.
            if connection.socket().state() == State::Closed
                && !matches!(before, State::Closed | State::TimeWait)
            {
                connection.error.get_or_insert(Error::TimedOut);
            }
            if !done {
                stalled.push(id);
            } else if connection.is_over() {
                if !matches!(connection.owner, Owner::Application | Owner::Listener) {
                    self.remove(id);
                }
            } else {
                let at = interface.poll_at(&connection.set, now).map(|at| at.max(now + RETRY));
                let at = at.into_iter().chain(connection.ends).min();
                self.set_timer(id, at);
            }
        }
        let done = stalled.is_empty();
        stalled.into_iter().for_each(|id| self.touch(id));
        done
    }

    /// Has the connection looked at again at a time, or before.
    fn set_timer(&mut self, id: usize, at: Option<Instant>) {
        let Some(at) = at else { return };
        let connection = &mut self.connections[id];
        // It fires early, and is set again then: timers are mostly put off, as long as
        // acknowledgements come.
        if connection.timer.is_some_and(|earlier| earlier <= at) {
            return;
        }
        connection.timer = Some(at);
        self.timers.push(Reverse((at, id)));
        if self.timers.len() > TIMERS_MIN.max(2 * self.connections.len()) {
            let connections = &mut self.connections;
            self.timers.retain(|&Reverse((at, id))| {
                connections.get_mut(id).is_some_and(|connection| connection.timer == Some(at))
            });
        }
    }
}

/// What must be known of a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) opens: bool,
    pub(crate) resets: bool,
}

/// On one link there is no bottleneck to share but the link's own queues, which the windows
/// bound. Beyond a router there is the Internet.
fn congestion_control<T: Transmit>(interface: &Interface<T>, remote: SocketAddr) -> CongestionControl {
    if interface.is_on_link(remote.ip()) { CongestionControl::None } else { CongestionControl::Reno }
}

impl<T: Transmit> Stack<T> {
    /// Accepts connections to an address, which may be unspecified, and a port; 0 chooses one.
    ///
    /// `backlog` bounds the connections that have not been accepted, at least one.
    ///
    /// # Errors
    /// [`Error::AddressInUse`], [`Error::AddressNotAvailable`], [`Error::NoNetwork`].
    pub fn listen(
        &mut self,
        local: SocketAddr,
        backlog: usize,
        options: Options,
    ) -> Result<ListenerId, Error> {
        self.check_local(local.ip())?;
        let port = match local.port() {
            0 => self.free_port(|tcp, port| !tcp.is_listening(SocketAddr::new(local.ip(), port)))?,
            port => port,
        };
        let local = SocketAddr::new(local.ip(), port);
        if self.tcp.is_listening(local) {
            return Err(Error::AddressInUse);
        }
        let id = self.tcp.listeners.insert(Listener {
            local,
            backlog: backlog.max(1),
            options,
            half_open: VecDeque::new(),
            ready: VecDeque::new(),
            waker: None,
        });
        Ok(ListenerId(id))
    }

    /// Where a listener listens.
    pub fn listener_address(&self, id: ListenerId) -> SocketAddr {
        self.tcp.listeners[id.0].local
    }

    /// Takes the next connection, which then is the caller's to close.
    pub fn poll_accept(&mut self, id: ListenerId, waker: &Waker) -> Poll<(ConnectionId, SocketAddr)> {
        let listener = &mut self.tcp.listeners[id.0];
        match listener.ready.pop_front() {
            Some(id) => {
                let connection = &mut self.tcp.connections[id];
                connection.owner = Owner::Application;
                Poll::Ready((ConnectionId(id), connection.remote))
            }
            None => {
                register(&mut listener.waker, waker);
                Poll::Pending
            }
        }
    }

    /// Stops to listen. Connections that have not been accepted are reset.
    pub fn close_listener(&mut self, id: ListenerId) {
        let Some(listener) = self.tcp.listeners.remove(id.0) else { return };
        for connection in listener.half_open.into_iter().chain(listener.ready) {
            self.abort(ConnectionId(connection));
        }
    }

    /// Begins to connect; [`Self::poll_connected`] says when that is done.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::NoNetwork`], [`Error::OutOfMemory`], and those of a
    /// local address that is not free.
    pub fn connect(
        &mut self,
        remote: SocketAddr,
        from: Option<SocketAddr>,
        options: Options,
    ) -> Result<ConnectionId, Error> {
        if remote.port() == 0 || remote.ip().is_multicast() {
            return Err(Error::Unreachable);
        }
        let at = self.route(remote.ip())?;
        let address = match from.map(|from| from.ip()).filter(|address| !address.is_unspecified()) {
            Some(address) if self.interfaces[at].has(address) => address,
            Some(_) => return Err(Error::AddressNotAvailable),
            None => self.interfaces[at].source_for(remote.ip()).ok_or(Error::Unreachable)?,
        };
        let free = |tcp: &Tcp, port| {
            let local = SocketAddr::new(address, port);
            tcp.flows.get(&key(local, remote)).is_none() && local != remote
        };
        let port = match from.map_or(0, |from| from.port()) {
            0 => self.free_port(free)?,
            port if free(&self.tcp, port) => port,
            _ => return Err(Error::AddressInUse),
        };
        let local = SocketAddr::new(address, port);
        let (mut socket, memory) = self.tcp.socket(&options)?;
        let interface = &mut self.interfaces[at];
        socket.set_congestion_control(congestion_control(interface, remote));
        socket.connect(interface.context(), remote, local).map_err(|_| Error::Unreachable)?;
        let mut set = SocketSet::new(Vec::with_capacity(1));
        let handle = set.add(socket);
        let id = self.tcp.insert(Connection {
            set,
            handle,
            interface: at,
            local,
            remote,
            owner: Owner::Application,
            error: None,
            said: None,
            heard: true,
            dirty: false,
            timer: None,
            ends: None,
            memory,
        });
        self.tcp.touch(id);
        Ok(ConnectionId(id))
    }

    /// A port for which `free` holds.
    fn free_port(&mut self, free: impl Fn(&Tcp, u16) -> bool) -> Result<u16, Error> {
        self.ephemeral_ports().find(|&port| free(&self.tcp, port)).ok_or(Error::AddressInUse)
    }

    /// Whether a connection is there that [`Self::connect`] began.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::TimedOut`], [`Error::Reset`]; [`Error::Unreachable`] if nobody on
    /// the link has the address, or the router's.
    pub fn poll_connected(&mut self, id: ConnectionId, waker: &Waker) -> Poll<Result<(), Error>> {
        let connection = &mut self.tcp.connections[id.0];
        let error = connection.error;
        let socket = connection.socket();
        match socket.state() {
            State::SynSent | State::SynReceived => {
                socket.register_send_waker(waker);
                Poll::Pending
            }
            State::Closed => Poll::Ready(Err(error.unwrap_or(Error::Closed))),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Our end of a connection.
    pub fn local_address(&self, id: ConnectionId) -> SocketAddr {
        self.tcp.connections[id.0].local
    }

    /// The peer's end of a connection.
    pub fn remote_address(&self, id: ConnectionId) -> SocketAddr {
        self.tcp.connections[id.0].remote
    }

    /// Takes bytes that have arrived; 0 if the peer has closed its direction.
    ///
    /// # Errors
    /// [`Error::Reset`], [`Error::TimedOut`].
    pub fn poll_read(
        &mut self,
        id: ConnectionId,
        bytes: &mut [u8],
        waker: &Waker,
    ) -> Poll<Result<usize, Error>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let connection = &mut self.tcp.connections[id.0];
        let error = connection.error;
        let socket = connection.socket();
        let queued = socket.recv_queue();
        if queued > 0 {
            let opens_window = queued >= socket.recv_capacity() / 2;
            let count = socket.recv_slice(bytes).map_err(|_| error.unwrap_or(Error::Closed))?;
            if opens_window {
                self.tcp.touch(id.0);
            }
            return Poll::Ready(Ok(count));
        }
        match (socket.state(), error) {
            (_, Some(error)) => Poll::Ready(Err(error)),
            (State::SynSent | State::SynReceived, None) => {
                socket.register_recv_waker(waker);
                Poll::Pending
            }
            _ if socket.may_recv() => {
                socket.register_recv_waker(waker);
                Poll::Pending
            }
            _ => Poll::Ready(Ok(0)),
        }
    }

    /// Whether [`Self::poll_read`] has something to say.
    pub fn poll_readable(&mut self, id: ConnectionId, waker: &Waker) -> Poll<()> {
        let connection = &mut self.tcp.connections[id.0];
        let over = connection.error.is_some();
        let socket = connection.socket();
        let opening = matches!(socket.state(), State::SynSent | State::SynReceived);
        if over || socket.can_recv() || !(opening || socket.may_recv()) {
            return Poll::Ready(());
        }
        socket.register_recv_waker(waker);
        Poll::Pending
    }

    /// Puts bytes where they will be sent from; how many there was room for.
    ///
    /// # Errors
    /// [`Error::Reset`], [`Error::TimedOut`], [`Error::Closed`].
    pub fn poll_write(
        &mut self,
        id: ConnectionId,
        bytes: &[u8],
        waker: &Waker,
    ) -> Poll<Result<usize, Error>> {
        let connection = &mut self.tcp.connections[id.0];
        let error = connection.error;
        let socket = connection.socket();
        if socket.can_send() && !bytes.is_empty() {
            let count = socket.send_slice(bytes).map_err(|_| error.unwrap_or(Error::Closed))?;
            self.tcp.touch(id.0);
            return Poll::Ready(Ok(count));
        }
        let opening = matches!(socket.state(), State::SynSent | State::SynReceived);
        if !(opening || socket.may_send()) {
            return Poll::Ready(Err(error.unwrap_or(Error::Closed)));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        socket.register_send_waker(waker);
        Poll::Pending
    }

    /// Whether [`Self::poll_write`] has room or something to say.
    pub fn poll_writable(&mut self, id: ConnectionId, waker: &Waker) -> Poll<()> {
        let socket = self.tcp.connections[id.0].socket();
        let opening = matches!(socket.state(), State::SynSent | State::SynReceived);
        if socket.can_send() || !(opening || socket.may_send()) {
            return Poll::Ready(());
        }
        socket.register_send_waker(waker);
        Poll::Pending
    }

    /// Whether the peer has acknowledged everything written.
    ///
    /// # Errors
    /// [`Error::Reset`], [`Error::TimedOut`].
    pub fn poll_flush(&mut self, id: ConnectionId, waker: &Waker) -> Poll<Result<(), Error>> {
        let connection = &mut self.tcp.connections[id.0];
        if let Some(error) = connection.error {
            return Poll::Ready(Err(error));
        }
        let socket = connection.socket();
        if socket.send_queue() == 0 || socket.state() == State::Closed {
            return Poll::Ready(Ok(()));
        }
        socket.register_send_waker(waker);
        Poll::Pending
    }

    /// Ends our direction, after everything written.
    pub fn shutdown(&mut self, id: ConnectionId) {
        self.tcp.connections[id.0].socket().close();
        self.tcp.touch(id.0);
    }

    /// Lets go of a connection: it ends in good order, if nothing is left unread.
    ///
    /// The number means nothing afterwards.
    pub fn close(&mut self, id: ConnectionId, now: Instant) {
        let connection = &mut self.tcp.connections[id.0];
        connection.owner = Owner::None;
        connection.ends = Some(now + LINGER);
        let socket = connection.socket();
        if socket.recv_queue() > 0 {
            socket.abort();
        } else {
            socket.close();
        }
        self.tcp.touch(id.0);
    }

    /// Lets go of a connection, and tells the peer that it is broken.
    ///
    /// The number means nothing afterwards.
    pub fn abort(&mut self, id: ConnectionId) {
        let connection = &mut self.tcp.connections[id.0];
        connection.owner = Owner::None;
        connection.socket().abort();
        self.tcp.touch(id.0);
    }

    /// Has a silent peer asked this often whether it is still there.
    pub fn set_keep_alive(&mut self, id: ConnectionId, interval: Option<Duration>) {
        self.tcp.connections[id.0].socket().set_keep_alive(interval);
        self.tcp.touch(id.0);
    }

    /// Sends small pieces at once, or waits for acknowledgements of those before (RFC 896).
    pub fn set_no_delay(&mut self, id: ConnectionId, no_delay: bool) {
        self.tcp.connections[id.0].socket().set_nagle_enabled(!no_delay);
        self.tcp.touch(id.0);
    }

    /// Whether small pieces are sent at once.
    pub fn no_delay(&mut self, id: ConnectionId) -> bool {
        !self.tcp.connections[id.0].socket().nagle_enabled()
    }
}

/// Remembers a waker, unless it is the one already known.
pub(crate) fn register(place: &mut Option<Waker>, waker: &Waker) {
    if !place.as_ref().is_some_and(|known| known.will_wake(waker)) {
        *place = Some(waker.clone());
    }
}
