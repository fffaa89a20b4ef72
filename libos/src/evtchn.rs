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
};
use alloc::vec::Vec;
use core::{
    cell::RefCell,
    future::poll_fn,
    mem,
    task::{Context, Poll, Waker},
};
use xen_proto::{DomId, evtchn::Port as Number, hypercall::sched::POLL_PORTS_MAX};

static LINES: Single<RefCell<Vec<Line>>> = Single::new(RefCell::new(Vec::new()));

/// A port in use.
struct Line {
    port: Number,
    /// An event has been taken, and nobody has been told who asks with [`Port::wait`].
    fired: bool,
    wakers: Vec<Waker>,
}

/// Does something with the line of `port`, which begins to be in use if it is not.
fn with_line<T>(port: Number, f: impl FnOnce(&mut Line) -> T) -> T {
    let mut lines = LINES.borrow_mut();
    let at = lines.iter().position(|line| line.port == port).unwrap_or_else(|| {
        assert!(lines.len() < POLL_PORTS_MAX, "at most {POLL_PORTS_MAX} event channels are in use");
        lines.push(Line { port, fired: false, wakers: Vec::new() });
        lines.len() - 1
    });
    f(&mut lines[at])
}

/// Wakes `waker` at the next event of `port`.
pub(crate) fn wake_on(port: Number, waker: &Waker) {
    with_line(port, |line| {
        if !line.wakers.iter().any(|known| known.will_wake(waker)) {
            line.wakers.push(waker.clone());
        }
    });
}

/// Takes all events that are pending, and wakes who waits for them.
pub(crate) fn dispatch() {
    let mut at = 0;
    loop {
        // What is woken may use ports itself: no borrow may be held meanwhile.
        let Some(port) = LINES.borrow().get(at).map(|line| line.port) else { return };
        take(port);
        at += 1;
    }
}

/// Takes the event of `port`, if there is one, and wakes who waits for it.
fn take(port: Number) {
    if !shared_info::take_event(port) {
        return;
    }
    let wakers = match LINES.borrow_mut().iter_mut().find(|line| line.port == port) {
        Some(line) => {
            line.fired = true;
            mem::take(&mut line.wakers)
        }
        None => return,
    };
    wakers.into_iter().for_each(Waker::wake);
}

/// Sleeps until a port in use has an event, or until the absolute system time.
pub(crate) fn sleep(deadline_ns: Option<u64>) {
    let mut ports = [Number(0); POLL_PORTS_MAX];
    let lines = LINES.borrow();
    for (place, line) in ports.iter_mut().zip(lines.iter()) {
        *place = line.port;
    }
    hypercall::poll(&ports[..lines.len()], deadline_ns).expect("all ports in use are open");
}

/// Blocks the whole capsule until `condition` holds, looking at it after each event of `port`.
///
/// For output that cannot wait in a task.
///
/// # Errors
/// If the port cannot be waited for.
pub(crate) fn block_until(port: Number, mut condition: impl FnMut() -> bool) -> Result<(), Errno> {
    loop {
        take(port);
        if condition() {
            return Ok(());
        }
        hypercall::poll(&[port], None)?;
    }
}

/// Our end of an event channel.
///
/// Dropping it closes the channel.
#[derive(Debug)]
pub struct Port {
    number: Number,
}

impl Port {
    /// Makes a port that domain `remote` may connect to, once it is told the number.
    ///
    /// # Errors
    /// If the domain has as many ports as it may have.
    pub fn alloc_unbound(remote: DomId) -> Result<Self, Errno> {
        hypercall::alloc_unbound_port(remote).map(Self::new)
    }

    /// Connects to `remote_port`, which domain `remote` has made for this one.
    ///
    /// # Errors
    /// If there is no such port, or it is for somebody else.
    pub fn bind(remote: DomId, remote_port: Number) -> Result<Self, Errno> {
        hypercall::bind_port(remote, remote_port).map(Self::new)
    }

    /// A port that the builder has made.
    pub(crate) fn new(number: Number) -> Self {
        with_line(number, |_| ());
        Self { number }
    }

    /// The number by which the other domain connects.
    pub fn number(&self) -> Number {
        self.number
    }

    /// Sends an event to the other side, if there is one by now.
    pub fn notify(&self) {
        // Fails while nobody is connected, who then has nothing to be told.
        let _ = hypercall::notify(self.number);
    }

    /// Waits for an event; one that came since the last wait counts.
    pub async fn wait(&self) {
        poll_fn(|cx| self.poll_wait(cx)).await;
    }

    fn poll_wait(&self, cx: &Context<'_>) -> Poll<()> {
        if with_line(self.number, |line| mem::take(&mut line.fired)) {
            return Poll::Ready(());
        }
        wake_on(self.number, cx.waker());
        Poll::Pending
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        LINES.borrow_mut().retain(|line| line.port != self.number);
        // It is open, so there is nothing that could fail.
        let _ = hypercall::close_port(self.number);
    }
}
