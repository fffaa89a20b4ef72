//! Tells xenstored of capsules that run.
//!
//! To xenstored a new domain is a dozen messages, each with its switches between processes, and
//! a page to map; on a node with one processor that time would be the capsule's. It needs
//! xenstored for nothing until it is asked to stop, so it is told once the capsule has been
//! heard of, or some time later. Whoever needs it earlier does it himself
//! ([`XenDomain::register`]).

use std::{
    collections::VecDeque,
    io,
    sync::{Condvar, Mutex, MutexGuard, Weak},
    thread,
    time::{Duration, Instant},
};

use super::{Arc, XenDomain, sys};

/// How long a capsule that says nothing has the node for itself when it starts.
const HEAD_START: Duration = Duration::from_millis(100);

/// Of the thread. At the daemon's own it would get ahead of xenstored with each reply, and go
/// back to sleep until the next one; like this it finds all replies of a batch at once.
const NICENESS: i32 = 5;

/// The thread that does it. It ends when this is dropped.
pub(super) struct Registrar {
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Whose turn comes first is first.
    waiting: VecDeque<Waiting>,
    stop: bool,
}

struct Waiting {
    domid: u32,
    due: Instant,
    domain: Weak<XenDomain>,
}

impl Registrar {
    pub(super) fn start() -> io::Result<Self> {
        let queue = Arc::<Queue>::default();
        let served = queue.clone();
        thread::Builder::new().name("registrar".into()).spawn(move || {
            if let Err(error) = sys::set_niceness(NICENESS) {
                tracing::warn!(%error, "registration takes its time from others");
            }
            while let Some(next) = served.next() {
                let Some(domain) = next.domain.upgrade() else { continue };
                if let Err(error) = domain.register() {
                    tracing::error!(domid = next.domid, %error, "xenstored does not know the capsule");
                }
            }
        })?;
        Ok(Self { queue })
    }

    /// Registers `domain` soon, if it is not yet.
    pub(super) fn soon(&self, domain: &Arc<XenDomain>) {
        // Whoever holds the lock is at it.
        if domain.late.try_lock().is_ok_and(|late| late.is_none()) {
            return;
        }
        let due = Instant::now() + HEAD_START;
        let waiting = Waiting { domid: domain.domid, due, domain: Arc::downgrade(domain) };
        self.queue.state().waiting.push_back(waiting);
        self.queue.changed.notify_one();
    }

    /// The capsule has been heard of: its head start is over.
    pub(super) fn heard_of(&self, domid: u32) {
        let mut state = self.queue.state();
        let Some(at) = state.waiting.iter().position(|waiting| waiting.domid == domid) else { return };
        if let Some(mut waiting) = state.waiting.remove(at) {
            waiting.due = Instant::now();
            state.waiting.push_front(waiting);
            self.queue.changed.notify_one();
        }
    }
}

impl Drop for Registrar {
    fn drop(&mut self) {
        self.queue.state().stop = true;
        self.queue.changed.notify_one();
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits for the next one whose time has come; nothing when it is time to end.
    fn next(&self) -> Option<Waiting> {
        let mut state = self.state();
        while !state.stop {
            let Some(first) = state.waiting.front() else {
                state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
                continue;
            };
            let rest = first.due.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return state.waiting.pop_front();
            }
            let waited = self.changed.wait_timeout(state, rest);
            state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        None
    }
}
