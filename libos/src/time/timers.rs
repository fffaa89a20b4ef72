//! The timers that tasks wait for, ordered by deadline.

use crate::{single::Single, time::now_ns};
use alloc::collections::VecDeque;
use core::{
    cell::{Cell, RefCell},
    task::Waker,
};

/// Tells timers of the same deadline apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id {
    deadline_ns: u64,
    serial: u64,
}

/// The earliest first. Most are set for later than all others, and go off in their order or are
/// cancelled soon, so that little is moved; a map with balanced trees is ten times the code.
static TIMERS: Single<RefCell<VecDeque<(Id, Waker)>>> = Single::new(RefCell::new(VecDeque::new()));

/// Wakes `waker` when the clock reaches `deadline_ns`.
pub(crate) fn set(deadline_ns: u64, waker: Waker) -> Id {
    static SERIAL: Single<Cell<u64>> = Single::new(Cell::new(0));
    let id = Id { deadline_ns, serial: SERIAL.replace(SERIAL.get() + 1) };
    let mut timers = TIMERS.borrow_mut();
    let at = timers.partition_point(|(other, _)| *other < id);
    timers.insert(at, (id, waker));
    id
}

/// Forgets a timer that may have fired already.
pub(crate) fn cancel(id: Id) {
    let mut timers = TIMERS.borrow_mut();
    let timer = timers.binary_search_by_key(&id, |(id, _)| *id).ok().and_then(|at| timers.remove(at));
    drop(timers);
    // Dropped without the borrow: it may be a task's last, which may have timers.
    drop(timer);
}

/// Wakes whose time has come, and returns the next deadline.
pub(crate) fn fire() -> Option<u64> {
    loop {
        let next = TIMERS.borrow().front().map(|(id, _)| id.deadline_ns)?;
        if next > now_ns() {
            return Some(next);
        }
        let first = TIMERS.borrow_mut().pop_front();
        if let Some((_, waker)) = first {
            waker.wake();
        }
    }
}
