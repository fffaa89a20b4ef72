//! Event channels: ports, and waiting for their events.
//!
//! Delivery stays masked for ever. The executor takes the pending bits of all
//! ports in use whenever it has run out of work, and sleeps in `SCHEDOP_poll`,
//! which returns at once if one of them has been set again. Between taking a bit
//! and sleeping nothing is lost:
//!
//! 1. The other side changes what is shared, then sets the bit.
//! 2. We clear the bit, then wake who waits, then they look at what is shared.
//! 3. A change after that look sets the bit again, and polling returns.

use crate::{
    hypercall::{self, Errno},
    shared_info,
    single::Single,
    start,
    suspend::{Resume, Subsystem},
};
use alloc::vec::Vec;
use core::{
    cell::{Cell, RefCell},
    future::poll_fn,
    mem,
    task::{Context, Poll, Waker},
};
use xen_proto::{DomId, evtchn::Port as Number, hypercall::sched::POLL_PORTS_MAX};

static LINES: Single<RefCell<Lines>> = Single::new(RefCell::new(Lines { lines: Vec::new(), serial: 0 }));

struct Lines {
    lines: Vec<Line>,
    /// Numbers our own lines.
    serial: u32,
}

/// An event channel in use.
struct Line {
    id: Id,
    end: End,
    /// An event has been taken, and nobody has been told who asks with [`Port::wait`].
    fired: bool,
    wakers: Vec<Waker>,
}

/// Which line it is, wherever the capsule runs: the numbers of ports change with the domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Id {
    /// The builder's, towards the console.
    Console,
    /// The builder's, towards xenstored.
    Store,
    /// One of [`Port`].
    Own(u32),
}

/// Our end of a line.
#[derive(Clone, Copy)]
enum End {
    /// The builder has made it, and tells its number.
    Builder,
    /// It is for the domain to connect to.
    Unbound(DomId, Number),
    /// It is connected.
    Bound(Number),
    /// It has stayed behind in another domain.
    Lost,
}

impl Line {
    fn number(&self) -> Option<Number> {
        match self.end {
            End::Builder => builders_number(self.id),
            End::Unbound(_, number) | End::Bound(number) => Some(number),
            End::Lost => None,
        }
    }
}

/// The port of a line that the builder has made.
fn builders_number(id: Id) -> Option<Number> {
    match id {
        Id::Console => Some(start::info().console_port()),
        Id::Store => Some(start::info().store_port()),
        Id::Own(_) => None,
    }
}

/// The port of a line, which need not be in use if it is the builder's.
fn number(id: Id) -> Option<Number> {
    builders_number(id).or_else(|| with_line(id, |line| line.number()))
}

/// Does something with the line `id`, which begins to be in use if it is one of the builder's.
fn with_line<T>(id: Id, f: impl FnOnce(&mut Line) -> T) -> T {
    let mut lines = LINES.borrow_mut();
    let at = lines.lines.iter().position(|line| line.id == id).unwrap_or_else(|| lines.add(id, End::Builder));
    f(&mut lines.lines[at])
}

impl Lines {
    fn add(&mut self, id: Id, end: End) -> usize {
        assert!(self.lines.len() < POLL_PORTS_MAX, "at most {POLL_PORTS_MAX} event channels are in use");
        self.lines.push(Line { id, end, fired: false, wakers: Vec::new() });
        self.lines.len() - 1
    }
}

/// Wakes `waker` at the next event of the line.
pub(crate) fn wake_on(id: Id, waker: &Waker) {
    with_line(id, |line| {
        if !line.wakers.iter().any(|known| known.will_wake(waker)) {
            line.wakers.push(waker.clone());
        }
    });
}

/// Sends an event to the other side of the line, if there is one.
pub(crate) fn notify(id: Id) {
    if let Some(number) = number(id) {
        // Fails while nobody is connected, who then looks for news when connecting.
        let _ = hypercall::notify(number);
    }
}

/// Takes all events that are pending, and wakes who waits for them.
pub(crate) fn dispatch() {
    let mut at = 0;
    loop {
        // What is woken may use ports itself: no borrow may be held meanwhile.
        let Some(id) = LINES.borrow().lines.get(at).map(|line| line.id) else { return };
        take(id);
        at += 1;
    }
}

/// Takes the event of the line, if there is one, and wakes who waits for it.
fn take(id: Id) {
    if !number(id).is_some_and(shared_info::take_event) {
        return;
    }
    let wakers = LINES.borrow_mut().lines.iter_mut().find(|line| line.id == id).map(Line::fire);
    wakers.into_iter().flatten().for_each(Waker::wake);
}

impl Line {
    /// Counts as an event; returns who is to be woken.
    fn fire(&mut self) -> Vec<Waker> {
        self.fired = true;
        mem::take(&mut self.wakers)
    }
}

static WAKEUPS: Single<Cell<u64>> = Single::new(Cell::new(0));

/// How often [`sleep`] has ended.
pub(crate) fn wakeups() -> u64 {
    WAKEUPS.get()
}

/// Sleeps until a line in use has an event, or until the absolute system time.
pub(crate) fn sleep(deadline_ns: Option<u64>) {
    let mut ports = [Number(0); POLL_PORTS_MAX];
    let mut count = 0;
    for number in LINES.borrow().lines.iter().filter_map(Line::number) {
        ports[count] = number;
        count += 1;
    }
    hypercall::poll(&ports[..count], deadline_ns).expect("all ports in use are open");
    WAKEUPS.set(WAKEUPS.get() + 1);
}

/// Blocks the whole capsule until `condition` holds, looking at it after each event of the line.
///
/// For output that cannot wait in a task.
///
/// # Errors
/// If the port cannot be waited for.
pub(crate) fn block_until(id: Id, mut condition: impl FnMut() -> bool) -> Result<(), Errno> {
    loop {
        take(id);
        if condition() {
            return Ok(());
        }
        hypercall::poll(number(id).as_slice(), None)?;
    }
}

/// Our end of an event channel.
///
/// Dropping it closes the channel.
///
/// When the capsule goes on in another domain (see [`lifecycle`](crate::lifecycle)), a port of
/// [`alloc_unbound`](Self::alloc_unbound) has another [`number`](Self::number), to which nobody is
/// connected yet, and one of [`bind`](Self::bind) is connected to nothing any more. Both have an
/// event then.
#[derive(Debug)]
pub struct Port {
    id: Id,
}

impl Port {
    /// Makes a port that domain `remote` may connect to, once it is told the number.
    ///
    /// # Errors
    /// If the domain has as many ports as it may have.
    pub fn alloc_unbound(remote: DomId) -> Result<Self, Errno> {
        hypercall::alloc_unbound_port(remote).map(|number| Self::new(End::Unbound(remote, number)))
    }

    /// Connects to `remote_port`, which domain `remote` has made for this one.
    ///
    /// # Errors
    /// If there is no such port, or it is for somebody else.
    pub fn bind(remote: DomId, remote_port: Number) -> Result<Self, Errno> {
        hypercall::bind_port(remote, remote_port).map(|number| Self::new(End::Bound(number)))
    }

    fn new(end: End) -> Self {
        let mut lines = LINES.borrow_mut();
        let id = Id::Own(lines.serial);
        lines.serial += 1;
        lines.add(id, end);
        Self { id }
    }

    /// The number by which the other domain connects.
    pub fn number(&self) -> Number {
        // No port has this number; it is what one that is lost is called.
        number(self.id).unwrap_or(Number(0))
    }

    /// Sends an event to the other side, if there is one by now.
    pub fn notify(&self) {
        notify(self.id);
    }

    /// Waits for an event; one that came since the last wait counts.
    pub async fn wait(&self) {
        wait(self.id).await;
    }
}

/// Waits for an event of the line; one that came since the last wait counts.
pub(crate) async fn wait(id: Id) {
    poll_fn(|cx: &mut Context<'_>| {
        if with_line(id, |line| mem::take(&mut line.fired)) {
            return Poll::Ready(());
        }
        wake_on(id, cx.waker());
        Poll::Pending
    })
    .await;
}

impl Drop for Port {
    fn drop(&mut self) {
        if let Some(number) = number(self.id) {
            // It is open, so there is nothing that could fail.
            let _ = hypercall::close_port(number);
        }
        LINES.borrow_mut().lines.retain(|line| line.id != self.id);
    }
}

/// Ports, which stay behind with the domain.
pub(crate) static SUBSYSTEM: Subsystem = Subsystem { resume, ..Subsystem::NOTHING };

fn resume(resume: &Resume<'_>) {
    let mut woken = Vec::new();
    for line in &mut LINES.borrow_mut().lines {
        if resume.is_new() {
            line.end = match line.end {
                End::Builder => End::Builder,
                End::Unbound(remote, _) => match hypercall::alloc_unbound_port(remote) {
                    Ok(number) => End::Unbound(remote, number),
                    Err(_) => End::Lost,
                },
                End::Bound(_) | End::Lost => End::Lost,
            };
        }
        // Whatever they wait for, it may have happened meanwhile.
        woken.append(&mut line.fire());
    }
    woken.into_iter().for_each(Waker::wake);
}
