//! Being moved, saved and copied while running.
//!
//! A capsule can be moved to another node, saved to a file, or copied, at any time and
//! without its help: memory, tasks, timers, open connections go along. An
//! application that wants to know registers hooks:
//!
//! ```no_run
//! use libos::lifecycle::{self, Where};
//!
//! lifecycle::on_suspend(async |reason| {
//!     libos::println!("about to be suspended: {reason:?}");
//! });
//! lifecycle::on_resume(|place| {
//!     if place == Where::Cloned {
//!         libos::println!("I am the copy");
//!     }
//! });
//! ```
//!
//! What the library OS itself does: [`Instant`](crate::time::Instant)s go on and never back;
//! the wall clock is the node's. Random numbers are seeded anew. Watches in
//! [`xenstore`](crate::xenstore) are set again. Pages granted to dom0 stay so under the same
//! number; [`evtchn::Port`](crate::evtchn::Port)s must be made known to the other side again.
//!
//! A capsule that computes without ever waiting cannot be asked.

use crate::{
    single::Single,
    suspend::{self, BoxFuture, Resume, Slot, Subsystem},
};
use alloc::{boxed::Box, rc::Rc, vec::Vec};
use core::cell::RefCell;

pub use xen_proto::suspend::Reason;

/// Where the capsule goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Where {
    /// In a new domain, on this node or another, as the only one.
    NewHost,
    /// Where it was: it was saved and goes on, was copied, or it could not be moved.
    Cancelled,
    /// In a new domain, as the copy of one that goes on as well.
    Cloned,
}

type OnSuspend = Rc<dyn Fn(Reason) -> BoxFuture>;
type OnResume = Box<dyn FnMut(Where)>;

static ON_SUSPEND: Single<RefCell<Vec<OnSuspend>>> = Single::new(RefCell::new(Vec::new()));
static ON_RESUME: Single<RefCell<Vec<OnResume>>> = Single::new(RefCell::new(Vec::new()));

/// Runs `hook` whenever the capsule is about to be suspended, and waits for it.
///
/// Everything works meanwhile, and other tasks go on. Hooks run one after the other, the
/// latest first. How much time there is, is the operator's choice; if it is over, the hook
/// is dropped where it waits, and the capsule runs on: hooks of [`on_resume`] get
/// [`Where::Cancelled`] then.
pub fn on_suspend(hook: impl AsyncFn(Reason) + 'static) {
    suspend::register(Slot::Hooks, &SUBSYSTEM);
    let hook = Rc::new(hook);
    ON_SUSPEND.borrow_mut().push(Rc::new(move |reason| {
        let hook = hook.clone();
        Box::pin(async move { hook(reason).await })
    }));
}

/// Calls `hook` whenever the capsule goes on after it was, or was about to be, suspended.
///
/// Hooks are called one after the other, the earliest first, before any task goes on. What has to wait
/// for something belongs into a task that the hook spawns.
pub fn on_resume(hook: impl FnMut(Where) + 'static) {
    suspend::register(Slot::Hooks, &SUBSYSTEM);
    ON_RESUME.borrow_mut().push(Box::new(hook));
}

static SUBSYSTEM: Subsystem = Subsystem { prepare, resume, ..Subsystem::NOTHING };

fn prepare(reason: Reason) -> Option<BoxFuture> {
    let hooks = ON_SUSPEND.borrow().clone();
    Some(Box::pin(async move {
        for hook in hooks.iter().rev() {
            hook(reason).await;
        }
    }))
}

fn resume(resume: &Resume<'_>) {
    // Without the borrow: a hook may register another one, which is not called yet.
    let mut hooks = ON_RESUME.take();
    hooks.iter_mut().for_each(|hook| hook(resume.place));
    let mut registered = ON_RESUME.borrow_mut();
    hooks.append(&mut registered);
    *registered = hooks;
}
