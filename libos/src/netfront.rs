//! Network cards: the frontend of Xen's netif protocol, in copy mode.
//!
//! All pages are granted once and for ever. What is sent is built in pages that the backend may
//! read, which stay untouched until it has answered. What is received lies in pages that the
//! backend copies into, and is read there: packets of several pages are one slice, because the
//! pages of consecutive ring entries follow each other.
//!
//! Everything in the rings is checked by [`xen_proto::ring`] and [`xen_proto::netif`] before it
//! is used. A backend that breaks their rules is not spoken with any more.

use crate::{
    evtchn::Port,
    gnttab::{Access, Grant, GrantedPages},
    hypercall::{self, Errno},
    mm::{Page, Pages},
    xenbus::Device,
    xenstore,
};
use alloc::{rc::Rc, string::ToString, vec, vec::Vec};
use core::{
    cell::Cell,
    fmt,
    ops::Range,
    pin::pin,
    sync::atomic::{Ordering, fence},
    task::Context,
};
use fcap_libos_net::{Features, Moderation, Offload, Transmit};
use xen_proto::{
    DomId,
    frame::PAGE_SIZE,
    netif::{
        Assembler, Breach, FRAME_MAX, Gso, RING_ENTRIES, RX_LEN, RxPacket, RxRequest, SLOTS_MAX, TX_LEN,
        TxRequest, TxResponse, flags,
    },
    ring::{
        Front, Jumped,
        device::{REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD},
        wants_event,
    },
    xenbus::State,
};

/// Pages in each direction, for small capsules and large ones.
const PAGES_MIN: u64 = 64;
const PAGES_MAX: u64 = RING_ENTRIES as u64;
/// The share of all memory that the pages of one direction may take.
const PAGES_SHARE: u64 = 32;
/// Packets that are taken before others get their turn.
const TURN: usize = 64;

/// Why a card cannot be used, or not any more.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Failure {
    /// xenstore is not as it should be.
    Store(xenstore::Error),
    /// Xen refused a grant or a port.
    Xen(Errno),
    /// The capsule has no memory left for it.
    OutOfMemory,
    /// It is for dom0 to be the backend.
    Backend(DomId),
    /// The backend claims to have answered more than it was asked.
    Jumped,
    /// The backend has answered something that it was not asked.
    Unasked(u16),
    /// The backend has said something about a packet that cannot be.
    Breach(Breach),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => write!(f, "its nodes in xenstore: {error}"),
            Self::Xen(error) => error.fmt(f),
            Self::OutOfMemory => f.write_str("no memory is left for its pages: give the capsule more"),
            Self::Backend(domain) => write!(f, "its backend is domain {}, not dom0", domain.0),
            Self::Jumped => f.write_str("the backend claims to have answered more than it was asked"),
            Self::Unasked(id) => write!(f, "the backend has answered request {id}, which it was not asked"),
            Self::Breach(breach) => write!(f, "the backend breaks the rules: {breach}"),
        }
    }
}

impl From<xenstore::Error> for Failure {
    fn from(error: xenstore::Error) -> Self {
        Self::Store(error)
    }
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::Xen(error)
    }
}

impl From<Jumped> for Failure {
    fn from(_: Jumped) -> Self {
        Self::Jumped
    }
}

impl From<Breach> for Failure {
    fn from(breach: Breach) -> Self {
        Self::Breach(breach)
    }
}

/// A ring that is shared with the backend.
struct Ring {
    page: Grant,
    front: Front,
    /// Bytes of an entry.
    entry_len: usize,
}

impl Ring {
    fn new(entry_len: usize) -> Result<Self, Errno> {
        let page = Page::new();
        page.u32(REQ_EVENT).store(1, Ordering::Relaxed);
        page.u32(RSP_EVENT).store(1, Ordering::Relaxed);
        let page = Grant::new(page, DomId::DOM0, Access::ReadWrite)?;
        Ok(Self { page, front: Front::new(RING_ENTRIES), entry_len })
    }

    /// Writes the next request.
    fn produce<const N: usize>(&mut self, words: [u32; N]) {
        let index = self.front.produce();
        let offset = self.front.offset(index, self.entry_len);
        for (at, word) in words.into_iter().enumerate() {
            self.page.u32(offset + at * 4).store(word, Ordering::Relaxed);
        }
    }

    /// Shows the backend all requests; whether it wants an event.
    fn publish(&mut self) -> bool {
        let Some((before, now)) = self.front.publish() else { return false };
        self.page.u32(REQ_PROD).store(now, Ordering::Release);
        // The backend stores its wish before it looks at the requests for the last time. Were
        // our store behind our look, both could miss what the other has done.
        fence(Ordering::SeqCst);
        wants_event(before, now, self.page.u32(REQ_EVENT).load(Ordering::Relaxed))
    }

    /// How many responses there are.
    fn available(&self) -> Result<u32, Jumped> {
        self.front.available(self.page.u32(RSP_PROD).load(Ordering::Acquire))
    }

    /// Takes the next response: its index and first words.
    fn consume(&mut self) -> (u32, [u32; 2]) {
        let index = self.front.consume();
        let offset = self.front.offset(index, self.entry_len);
        (index, [0, 4].map(|at| self.page.u32(offset + at).load(Ordering::Relaxed)))
    }

    /// Asks for an event when there are `count` responses; how many there are by now.
    fn ask_for_event(&self, count: u32) -> u32 {
        let event = self.front.next_response().wrapping_add(count);
        self.page.u32(RSP_EVENT).store(event, Ordering::Relaxed);
        // As in `publish`, with the sides exchanged.
        fence(Ordering::SeqCst);
        self.page.u32(RSP_PROD).load(Ordering::Acquire).wrapping_sub(self.front.next_response())
    }
}

/// The sending half of a card: something between two connections is not connected to anything.
pub(crate) struct Sender {
    connected: Option<Sending>,
}

struct Sending {
    ring: Ring,
    buffers: GrantedPages,
    /// Which pages the backend has not answered for.
    busy: Vec<bool>,
    /// Pages given out so far, and pages that came back; their difference is in use. Pages are
    /// given out in order, so that those of one frame follow each other.
    given: u32,
    returned: u32,
    features: Features,
    /// The backend wants an event.
    notify: Rc<Cell<bool>>,
    failure: Option<Failure>,
}

impl Sender {
    /// One that sends nothing.
    pub(crate) const UNCONNECTED: Self = Self { connected: None };

    /// Takes back pages of what has been sent.
    ///
    /// # Errors
    /// If the backend has broken the rules.
    pub(crate) fn reclaim(&mut self) -> Result<(), Failure> {
        let Some(sending) = &mut self.connected else { return Ok(()) };
        sending.reclaim();
        sending.failure.map_or(Ok(()), Err)
    }

    /// Asks for an event when there is room again; whether there is by now.
    pub(crate) fn ask_for_room(&mut self) -> bool {
        match &mut self.connected {
            // When half of it has been sent, so that there is not an event for each frame.
            Some(sending) => {
                let open = RING_ENTRIES - sending.ring.front.free();
                sending.ring.ask_for_event((open / 2).max(1)) > 0 && sending.has_room()
            }
            None => false,
        }
    }
}

impl Sending {
    fn pages(&self) -> u32 {
        self.busy.len() as u32
    }

    /// Place of a page that is given out as number `count`.
    fn place(&self, count: u32) -> usize {
        (count & (self.pages() - 1)) as usize
    }

    /// The first of `pages` pages that follow each other, as a count; `None` if they are in use.
    fn find(&self, pages: u32) -> Option<u32> {
        let place = self.place(self.given) as u32;
        let skipped = if place + pages > self.pages() { self.pages() - place } else { 0 };
        let used = self.given.wrapping_sub(self.returned);
        let fits = used + skipped + pages <= self.pages() && self.ring.front.free() > pages;
        fits.then(|| self.given.wrapping_add(skipped))
    }

    fn largest(&self) -> u32 {
        let frame = self.features.segments4.map_or(PAGE_SIZE, usize::from);
        frame.div_ceil(PAGE_SIZE) as u32
    }

    fn has_room(&mut self) -> bool {
        if self.find(self.largest()).is_none() {
            self.reclaim();
        }
        self.failure.is_none() && self.find(self.largest()).is_some()
    }

    fn reclaim(&mut self) {
        match self.ring.available() {
            Ok(count) => (0..count).for_each(|_| self.take_back()),
            Err(jumped) => self.failure = Some(jumped.into()),
        }
        while self.returned != self.given && !self.busy[self.place(self.returned)] {
            self.returned = self.returned.wrapping_add(1);
        }
    }

    fn take_back(&mut self) {
        let (_, [word, _]) = self.ring.consume();
        let response = TxResponse::parse(word);
        // What could not be sent is lost, as it could be on the way.
        match self.busy.get_mut(usize::from(response.id)) {
            _ if response.status == TxResponse::NULL => {}
            Some(busy) if *busy => *busy = false,
            _ => self.failure = Some(Failure::Unasked(response.id)),
        }
    }

    fn send(&mut self, len: usize, fill: &mut dyn FnMut(&mut [u8]) -> Option<Offload>) {
        let pages = len.div_ceil(PAGE_SIZE) as u32;
        if self.find(pages).is_none() {
            self.reclaim();
        }
        let Some(first) = self.find(pages).filter(|_| len <= FRAME_MAX) else { return };
        let place = self.place(first);
        let start = place * PAGE_SIZE;
        // SAFETY: the pages are not in use: the backend has answered for what was in them
        // before, and it may only read them. Should it do so all the same, it is the one who
        // sees half of something.
        let bytes = unsafe { self.buffers.bytes_mut(start..start + len) };
        let Some(offload) = fill(bytes) else { return };

        self.given = first.wrapping_add(pages);
        let mut flags = if offload.checksum { flags::CSUM_BLANK | flags::DATA_VALIDATED } else { 0 };
        if offload.segment.is_some() {
            flags |= flags::EXTRA_INFO;
        }
        for page in 0..pages as usize {
            let last = page + 1 == pages as usize;
            let size = match page {
                0 => len,
                _ => PAGE_SIZE.min(len - page * PAGE_SIZE),
            };
            let request = TxRequest {
                grant: self.buffers.reference(place + page).0,
                offset: 0,
                flags: if last { flags } else { flags | flags::MORE_DATA },
                id: (place + page) as u16,
                size: size as u16,
            };
            self.busy[place + page] = true;
            self.ring.produce(request.emit());
            if let Some(size) = offload.segment.filter(|_| page == 0) {
                self.ring.produce(Gso { size, kind: Gso::TCPV4 }.emit());
            }
            flags = 0;
        }
    }
}

impl Transmit for Sender {
    fn features(&self) -> Features {
        self.connected.as_ref().map_or(Features::default(), |sending| sending.features)
    }

    fn has_room(&mut self) -> bool {
        self.connected.as_mut().is_some_and(Sending::has_room)
    }

    fn send(&mut self, len: usize, fill: &mut dyn FnMut(&mut [u8]) -> Option<Offload>) {
        if let Some(sending) = &mut self.connected {
            sending.send(len, fill);
        }
    }

    fn flush(&mut self) {
        if let Some(sending) = &mut self.connected
            && sending.ring.publish()
        {
            sending.notify.set(true);
        }
    }
}

/// The receiving half of a card, which also has its event channel.
pub(crate) struct Receiver {
    ring: Ring,
    buffers: GrantedPages,
    pages: u32,
    assembler: Assembler,
    /// Responses up to here belong to packets that are done with: their pages can be used again.
    done: u32,
    /// Requests so far.
    posted: u32,
    /// For packets that are not one slice.
    scratch: Vec<u8>,
    port: Port,
    /// The backend wants an event.
    notify: Rc<Cell<bool>>,
    /// The backend may be sent events.
    speaks: bool,
    moderation: Moderation,
}

impl Receiver {
    /// Has the task woken at the next event.
    pub(crate) fn register(&self, cx: &mut Context<'_>) {
        // What came before is looked at in any case.
        while pin!(self.port.wait()).poll(cx).is_ready() {}
    }

    /// Takes packets, and calls `deliver` with each and whether its checksum is known to be
    /// right. Returns whether there are more than one turn's. There is no event for those that
    /// come afterwards before [`Self::rest`].
    ///
    /// # Errors
    /// If the backend has broken the rules.
    pub(crate) fn receive(&mut self, mut deliver: impl FnMut(&[u8], bool)) -> Result<Received, Failure> {
        let mut packets = 0;
        loop {
            let available = self.ring.available()?;
            for _ in 0..available {
                let (index, words) = self.ring.consume();
                let packet = self.assembler.push(index, self.place(index) as u16, words)?;
                if let Some(packet) = packet {
                    deliver(self.bytes(&packet), packet.is_verified);
                    packets += 1;
                }
                if !self.assembler.is_within_packet() {
                    self.done = index.wrapping_add(1);
                }
                if packets == TURN {
                    self.post();
                    self.moderation.took(packets);
                    return Ok(Received { any: true, more: true });
                }
            }
            self.post();
            if available == 0 {
                self.moderation.took(packets);
                return Ok(Received { any: packets > 0, more: false });
            }
        }
    }

    /// Asks for an event, now that there is nothing to do; `connections` are those that packets
    /// may come from. Returns when to look without one, or `None` if there are packets now.
    pub(crate) fn rest(&mut self, now_ns: u64, connections: usize) -> Option<u64> {
        let (count, until_ns) = self.moderation.rest(now_ns, connections);
        (self.ring.ask_for_event(count) < count).then_some(until_ns)
    }

    /// Place of the page that belongs to an index of the ring.
    fn place(&self, index: u32) -> usize {
        (index & (self.pages - 1)) as usize
    }

    /// The packet as one slice.
    fn bytes(&mut self, packet: &RxPacket) -> &[u8] {
        let first = self.place(packet.first.index) * PAGE_SIZE + usize::from(packet.first.offset);
        let first = first..first + usize::from(packet.first.len);
        if packet.rest_count == 0 {
            return self.slice(first);
        }
        let rest = self.place(packet.rest);
        let wraps = rest + packet.rest_count as usize > self.pages as usize;
        if wraps || rest == 0 || !packet.is_dense {
            return self.gather(first, packet);
        }
        // The page before the rest is the first piece's, or of an extra entry, which uses none.
        let end = rest * PAGE_SIZE;
        let start = end - first.len();
        if first.end != end {
            // SAFETY: the backend has answered for both pages, so that it does not use them,
            // and the pieces are in different ones.
            unsafe {
                let piece = self.buffers.bytes(first).as_ptr();
                let place = self.buffers.bytes_mut(start..end);
                piece.copy_to_nonoverlapping(place.as_mut_ptr(), place.len());
            }
        }
        self.slice(start..start + packet.len)
    }

    /// Copies a packet together whose pages do not follow each other.
    ///
    /// Pieces that are not dense do not say how long they are any more, and no backend makes such.
    fn gather(&mut self, first: Range<usize>, packet: &RxPacket) -> &[u8] {
        let mut gathered = core::mem::take(&mut self.scratch);
        gathered.clear();
        if packet.is_dense {
            gathered.extend_from_slice(self.slice(first));
            for count in 0..packet.rest_count {
                let start = self.place(packet.rest.wrapping_add(count)) * PAGE_SIZE;
                let len = PAGE_SIZE.min(packet.len - gathered.len());
                gathered.extend_from_slice(self.slice(start..start + len));
            }
        }
        self.scratch = gathered;
        &self.scratch
    }

    fn slice(&self, range: Range<usize>) -> &[u8] {
        // SAFETY: the backend has answered for the pages, so that it does not use them until
        // they are posted again, which takes `self`. Were it to write all the same, what is
        // read would be wrong, as it could be in any case: dom0 owns all of our memory.
        unsafe { self.buffers.bytes(range) }
    }

    /// Gives pages to the backend again that are done with.
    fn post(&mut self) {
        while self.posted != self.done.wrapping_add(self.pages) {
            let place = self.place(self.posted);
            let request = RxRequest { id: place as u16, grant: self.buffers.reference(place).0 };
            self.ring.produce(request.emit());
            self.posted = self.posted.wrapping_add(1);
        }
        if self.ring.publish() {
            self.notify.set(true);
        }
    }

    /// Sends the event that the backend wants, for both directions.
    pub(crate) fn notify(&self) {
        if self.speaks && self.notify.take() {
            self.port.notify();
        }
    }

    /// Sends events from now on, and the one that the backend has wanted by now.
    pub(crate) fn speak(&mut self) {
        self.speaks = true;
        self.notify();
    }
}

/// What [`Receiver::receive`] has found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    /// There were packets.
    pub(crate) any: bool,
    /// There are more.
    pub(crate) more: bool,
}

/// Makes both halves of a card, and offers them to the backend.
///
/// # Errors
/// If something of it is not to be had.
pub(crate) async fn connect(device: &Device) -> Result<(Sender, Receiver), Failure> {
    if device.backend != DomId::DOM0 {
        return Err(Failure::Backend(device.backend));
    }
    let [scatter, segments4, checksum6] =
        device.features(["feature-sg", "feature-gso-tcpv4", "feature-ipv6-csum-offload"]).await;
    let wished = (hypercall::current_reservation() / PAGES_SHARE).clamp(PAGES_MIN, PAGES_MAX);
    let pages = 1u32 << wished.ilog2();
    // At most a quarter of the pages for one frame, so that there are always some under way.
    let longest = FRAME_MAX.min(pages as usize / 4 * PAGE_SIZE).min((SLOTS_MAX - 1) * PAGE_SIZE);
    let features =
        Features { checksum4: true, checksum6, segments4: (scatter && segments4).then_some(longest as u16) };
    let buffers = |access| {
        let pages = Pages::new(pages as usize).ok_or(Failure::OutOfMemory)?;
        GrantedPages::new(pages, access).map_err(Failure::Xen)
    };
    let notify = Rc::new(Cell::new(false));
    let ring = Ring::new(TX_LEN)?;
    let tx_ring = ring.page.reference().0;
    let sender = Sender {
        connected: Some(Sending {
            ring,
            buffers: buffers(Access::ReadOnly)?,
            busy: vec![false; pages as usize],
            given: 0,
            returned: 0,
            features,
            notify: notify.clone(),
            failure: None,
        }),
    };
    let mut receiver = Receiver {
        ring: Ring::new(RX_LEN)?,
        buffers: buffers(Access::ReadWrite)?,
        pages,
        assembler: Assembler::default(),
        done: 0,
        posted: 0,
        scratch: Vec::new(),
        port: Port::alloc_unbound(DomId::DOM0)?,
        notify,
        speaks: false,
        moderation: Moderation::default(),
    };
    receiver.post();
    let numbers = [tx_ring, receiver.ring.page.reference().0, receiver.port.number().0];
    let [tx_ring, rx_ring, port] = numbers.map(|number| number.to_string());
    let nodes = [
        ("tx-ring-ref", &*tx_ring),
        ("rx-ring-ref", &rx_ring),
        ("event-channel", &port),
        ("request-rx-copy", "1"),
        ("feature-rx-notify", "1"),
        ("feature-sg", "1"),
        ("feature-gso-tcpv4", "1"),
        ("feature-gso-tcpv6", "1"),
        ("feature-ipv6-csum-offload", "1"),
    ];
    device.publish(&nodes, State::Connected).await?;
    Ok((sender, receiver))
}
