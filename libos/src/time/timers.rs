//! The timers that tasks wait for, ordered by deadline.

use crate::{single::Single, time::now_ns};
use alloc::collections::BTreeMap;
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

static TIMERS: Single<RefCell<BTreeMap<Id, Waker>>> = Single::new(RefCell::new(BTreeMap::new()));

/// Wakes `waker` when the clock reaches `deadline_ns`.
pub(crate) fn set(deadline_ns: u64, waker: Waker) -> Id {
    static SERIAL: Single<Cell<u64>> = Single::new(Cell::new(0));
    let id = Id { deadline_ns, serial: SERIAL.replace(SERIAL.get() + 1) };
    TIMERS.borrow_mut().insert(id, waker);
    id
}

/// Forgets a timer that may have fired already.
pub(crate) fn cancel(id: Id) {
    let waker = TIMERS.borrow_mut().remove(&id);
    // Dropped without the borrow: it may be a task's last, which may have timers.
    drop(waker);
}

/// Wakes whose time has come, and returns the next deadline.
pub(crate) fn fire() -> Option<u64> {
    loop {
        let next = TIMERS.borrow().first_key_value().map(|(id, _)| id.deadline_ns)?;
        if next > now_ns() {
            return Some(next);
        }
        let first = TIMERS.borrow_mut().pop_first();
        if let Some((_, waker)) = first {
            waker.wake();
        }
    }
}
