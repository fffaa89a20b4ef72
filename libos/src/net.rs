//! The network: TCP, UDP and names, over the interfaces that fcapd has configured.
//!
//! The API is shaped like tokio's. Addresses are those of [`core::net`].
//!
//! ```no_run
//! # use libos::net::{TcpListener, Error};
//! # async fn example() -> Result<(), Error> {
//! let listener = TcpListener::bind("[::]:7").await?;
//! loop {
//!     let (mut stream, _) = listener.accept().await?;
//!     libos::spawn(async move {
//!         let mut bytes = [0; 1024];
//!         while let Ok(count @ 1..) = stream.read(&mut bytes).await {
//!             if stream.write_all(&bytes[..count]).await.is_err() {
//!                 break;
//!             }
//!         }
//!     });
//! }
//! # }
//! ```
//!
//! # How it works
//! The protocols are in the crate `fcap-libos-net`, the card in `netfront`. One task moves
//! everything: it takes what the card has received, lets the applications' tasks run that were
//! waiting for it, and then sends what they have written, all of it with one event to the host.
//! When there is nothing to do, it waits for the card's event or the next timer.
//!
//! All of this begins with the first use. Nothing here is linked into programs that use none of it.
//!
//! # Limits
//! The addresses come from fcapd, and cannot be changed. One task at a time waits for each
//! direction of a stream; of several, the last is woken. Streams send small pieces at once (see
//! [`TcpStream::set_nodelay`]): what a task writes before it waits leaves together.

mod lookup;
mod tcp;
mod udp;

use crate::{
    hypercall,
    netfront::{self, Failure, Receiver, Sender},
    println, random,
    single::Single,
    start,
    suspend::{self, Resume, Slot, Subsystem},
    task::{self, JoinHandle},
    time::{self, Sleep},
    xenbus::Device,
};
use alloc::{boxed::Box, vec::Vec};
use core::{
    cell::{RefCell, RefMut},
    future::poll_fn,
    hint::black_box,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};
use fcap_libos_net::{Config, Mac, Stack};
use xen_proto::{
    boot::{Kind, Net, Records},
    frame::PAGE_SIZE,
    xenbus::{State, Step, step},
};

pub use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
pub use fcap_libos_net::Error;
pub use lookup::{ToSocketAddrs, lookup_host};
pub use tcp::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, TcpListener, TcpSocket, TcpStream, WriteHalf};
pub use udp::UdpSocket;

/// By which builders see that an image wants a network: the section is there if and only if
/// this module is linked.
#[unsafe(link_section = ".fcap.net")]
static WANTED: u8 = 1;

/// The share of all memory that buffers of connections may take.
const MEMORY_SHARE: usize = 2;
/// When others are told that the capsule is elsewhere, each after the one before.
const ANNOUNCEMENTS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(50), Duration::from_millis(200)];
/// What fits into an Ethernet frame, should nobody have said.
const MTU: u16 = 1500;

static NETWORK: Single<RefCell<Option<Network>>> = Single::new(RefCell::new(None));

struct Network {
    stack: Stack<Sender>,
    cards: Vec<Card>,
    /// In the order in which they are asked.
    name_servers: Vec<IpAddr>,
    /// The task that moves everything.
    mover: Option<Waker>,
    /// Packets have come, and their readers have their turn before anything is sent.
    readers_first: bool,
}

/// A card, but for its sending half, which the stack has.
struct Card {
    /// While it is connected.
    receiver: Option<Receiver>,
    /// Keeps it connected.
    task: Option<JoinHandle<()>>,
}

/// An interface of the capsule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Hardware address.
    pub mac: [u8; 6],
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// IPv4 address, and bits of its network.
    pub ipv4: Option<(Ipv4Addr, u8)>,
    /// IPv4 address of the router.
    pub gateway4: Option<Ipv4Addr>,
    /// IPv6 address, and bits of its network.
    pub ipv6: Option<(Ipv6Addr, u8)>,
    /// IPv6 address of the router.
    pub gateway6: Option<Ipv6Addr>,
}

/// The capsule's interfaces, the loopback not among them.
pub fn interfaces() -> Vec<Interface> {
    let interface = |config: &Config| Interface {
        mac: config.mac.0,
        mtu: config.mtu,
        ipv4: config.ipv4,
        gateway4: config.gateway4,
        ipv6: config.ipv6,
        gateway6: config.gateway6,
    };
    with(|network| network.stack.addresses().map(interface).collect())
}

/// Does something with the network, which begins to be if there is none.
fn with<T>(f: impl FnOnce(&mut Network) -> T) -> T {
    f(&mut network())
}

/// The network; apart from what is done with it, so that it is in the image once.
#[inline(never)]
fn network() -> RefMut<'static, Network> {
    RefMut::map(NETWORK.borrow_mut(), |network| network.get_or_insert_with(Network::new))
}

/// Does something with the network that may leave it with something to send.
fn act<T>(f: impl FnOnce(&mut Network) -> T) -> T {
    with(|network| {
        let result = f(network);
        network.wake_if_stalled();
        result
    })
}

/// Connections, listeners and what they hold go along to another domain; rings and ports do
/// not, and are made anew there. If the capsule stays, so do they.
static SUBSYSTEM: Subsystem = Subsystem { resume, ..Subsystem::NOTHING };

fn resume(resume: &Resume<'_>) {
    if resume.is_new() {
        with(|network| network.resume(resume.records()));
    }
}

/// Now, on the stack's clock.
fn now() -> fcap_libos_net::Instant {
    fcap_libos_net::Instant::from_micros((time::now_ns() / 1000) as i64)
}

/// The addresses that the host has given, by interface, and the name servers.
fn configuration(records: Records<'_>) -> (Vec<Config>, Vec<IpAddr>) {
    let (mut configs, mut name_servers) = (Vec::new(), Vec::new());
    for (_, body) in records.filter(|&(kind, _)| kind == Kind::Net as u32) {
        let Some(net) = Net::parse(body) else { continue };
        let address4 = |octets: [u8; 4]| Some(Ipv4Addr::from(octets)).filter(|it| !it.is_unspecified());
        let address6 = |octets: [u8; 16]| Some(Ipv6Addr::from(octets)).filter(|it| !it.is_unspecified());
        configs.push(Config {
            mac: Mac(net.mac),
            mtu: if net.mtu == 0 { MTU } else { net.mtu },
            ipv4: address4(net.ipv4).map(|address| (address, net.prefix4)),
            gateway4: address4(net.gateway4),
            ipv6: address6(net.ipv6).map(|address| (address, net.prefix6)),
            gateway6: address6(net.gateway6),
        });
        name_servers.extend(address4(net.dns4).map(IpAddr::V4));
        name_servers.extend(address6(net.dns6).map(IpAddr::V6));
    }
    (configs, name_servers)
}

impl Network {
    fn new() -> Self {
        // Refers to it, so that it is in the image.
        black_box(&WANTED);
        suspend::register(Slot::Net, &SUBSYSTEM);
        let (configs, name_servers) = configuration(Records::new(start::module()));
        let cards = (0..configs.len()).map(|at| Card::begin(at, false)).collect();
        let configs = configs.into_iter().map(|config| (config, Sender::UNCONNECTED)).collect();
        let memory = hypercall::current_reservation() as usize * PAGE_SIZE / MEMORY_SHARE;
        task::spawn(async {
            let mut timer = None;
            poll_fn(|cx| with(|network| network.turn(&mut timer, cx))).await;
        });
        let stack = Stack::new(configs, memory, random::u64(), now());
        Self { stack, cards, name_servers, mover: None, readers_first: false }
    }

    /// One turn of the task that moves everything; never done.
    fn turn(&mut self, timer: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.mover.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            self.mover = Some(cx.waker().clone());
        }
        let (any, more) = self.receive(cx);
        // Those who have got something will mostly want to answer: one packet then has both
        // the answer and the acknowledgement.
        self.readers_first = any && !self.readers_first;
        if self.readers_first {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.stack.send(now());
        if more | self.wait_for_room() {
            cx.waker().wake_by_ref();
        }
        for receiver in self.cards.iter().filter_map(|card| card.receiver.as_ref()) {
            receiver.notify();
        }
        let rest = self.rest(cx);
        self.wait_for_deadline(rest, timer, cx);
        Poll::Pending
    }

    /// Has cards tell of packets that come from now on; returns when to look all the same.
    fn rest(&mut self, cx: &mut Context<'_>) -> Option<time::Instant> {
        let (now, connections) = (time::now_ns(), self.stack.connections());
        let mut earliest = u64::MAX;
        for receiver in self.cards.iter_mut().filter_map(|card| card.receiver.as_mut()) {
            match receiver.rest(now, connections) {
                Some(until) => earliest = earliest.min(until),
                None => cx.waker().wake_by_ref(),
            }
        }
        (earliest != u64::MAX).then(|| time::Instant::from_ns(earliest))
    }

    /// Takes what the cards have received: whether there was anything, and whether there is more.
    fn receive(&mut self, cx: &mut Context<'_>) -> (bool, bool) {
        let (mut any, mut more) = (false, false);
        for at in 0..self.cards.len() {
            let Some(receiver) = &mut self.cards[at].receiver else { continue };
            receiver.register(cx);
            let now = now();
            let received = receiver.receive(|frame, verified| self.stack.receive(at, frame, verified, now));
            match received.and_then(|received| self.stack.card(at).reclaim().map(|()| received)) {
                Ok(received) => {
                    any |= received.any;
                    more |= received.more;
                }
                Err(failure) => self.give_up(at, failure),
            }
        }
        (any, more)
    }

    /// Has cards that are full say when they are not; whether one is not by now.
    fn wait_for_room(&mut self) -> bool {
        self.stack.is_stalled()
            && (0..self.cards.len()).fold(false, |room, at| self.stack.card(at).ask_for_room() | room)
    }

    fn wait_for_deadline(
        &mut self,
        rest: Option<time::Instant>,
        timer: &mut Option<Pin<Box<Sleep>>>,
        cx: &mut Context<'_>,
    ) {
        let deadline = self.stack.next_deadline();
        let deadline = deadline.map(|at| time::Instant::from_ns(at.total_micros().unsigned_abs() * 1000));
        let Some(deadline) = deadline.into_iter().chain(rest).min() else {
            *timer = None;
            return;
        };
        if timer.as_ref().is_none_or(|timer| timer.deadline() != deadline) {
            *timer = Some(Box::pin(time::sleep_until(deadline)));
        }
        if let Some(timer) = timer
            && timer.as_mut().poll(cx).is_ready()
        {
            cx.waker().wake_by_ref();
        }
    }

    /// Stops using a card whose backend cannot be spoken with.
    fn give_up(&mut self, at: usize, failure: Failure) {
        println!("network interface {at}: {failure}; it is not used any more");
        self.disconnect(at);
        if let Some(task) = self.cards[at].task.take() {
            task.abort();
        }
    }

    #[inline(never)]
    fn wake_if_stalled(&self) {
        if self.stack.is_stalled() {
            self.wake_mover();
        }
    }

    fn wake_mover(&self) {
        if let Some(mover) = &self.mover {
            mover.wake_by_ref();
        }
    }

    /// Connects all cards anew, in another domain.
    fn resume(&mut self, records: Records<'_>) {
        let (configs, name_servers) = configuration(records);
        if configs.len() == self.cards.len() {
            self.stack.set_addresses(&configs, now());
            self.name_servers = name_servers;
        }
        for at in 0..self.cards.len() {
            self.disconnect(at);
            if let Some(task) = self.cards[at].task.take() {
                task.abort();
            }
            self.cards[at] = Card::begin(at, true);
        }
        self.wake_mover();
    }

    fn disconnect(&mut self, at: usize) {
        self.cards[at].receiver = None;
        self.stack.replace_card(at, Sender::UNCONNECTED, now());
    }
}

impl Card {
    /// A card that gets connected; `again` if others have known it before, elsewhere.
    fn begin(at: usize, again: bool) -> Self {
        Self { receiver: None, task: Some(task::spawn(attend(at, again))) }
    }
}

/// Tells the link of a card, and all peers, that the capsule is elsewhere now. The backend may be
/// connected before its bridge forwards, so this is said more than once.
async fn announce(at: usize) {
    for (times, delay) in ANNOUNCEMENTS.into_iter().enumerate() {
        time::sleep(delay).await;
        act(|network| {
            network.stack.announce(at, times > 0, now());
            network.wake_mover();
        });
    }
}

/// Keeps a card connected for as long as it has a backend.
async fn attend(at: usize, again: bool) {
    if let Err(failure) = follow_backend(at, again).await {
        act(|network| network.give_up(at, failure));
    }
}

async fn follow_backend(at: usize, mut again: bool) -> Result<(), Failure> {
    let mut device = Device::open("vif", at).await?;
    let mut own = State::Initialising;
    loop {
        match step(own, device.backend_state().await) {
            Step::Wait => device.changed().await,
            Step::Speak => {
                with(|network| network.cards[at].receiver.as_mut().map(Receiver::speak));
                device.changed().await;
            }
            Step::Connect => {
                let (sender, receiver) = netfront::connect(&device).await?;
                own = State::Connected;
                act(|network| {
                    network.cards[at].receiver = Some(receiver);
                    network.stack.replace_card(at, sender, now());
                    network.wake_mover();
                });
                if again {
                    task::spawn(announce(at));
                }
                again = true;
            }
            Step::Close => {
                own = State::Closed;
                with(|network| network.disconnect(at));
                device.publish(&[], own).await?;
            }
            Step::Begin => {
                own = State::Initialising;
                device.publish(&[], own).await?;
            }
        }
    }
}
