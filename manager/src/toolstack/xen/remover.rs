//! Removes the domains of capsules that have moved, in nobody's way.
//!
//! Xen looks at each page of a domain before it is free again, which takes longer than most moves.
//! A domain that is given here has lost its handle: nobody takes it for the capsule's any more, and
//! a later daemon removes what this one was killed in the midst of.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::{self, JoinHandle},
};

use super::{SPARE, builder, sys};

/// Of the thread: whatever else there is to do comes first.
const NICENESS: i32 = 10;

/// The thread and what it has to do.
pub(super) struct Remover {
    work: Arc<Work>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Work {
    host: Arc<builder::Host>,
    state: Mutex<State>,
    /// Signalled at every change.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<u32>,
    busy: bool,
    stop: bool,
}

impl Work {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// What the thread does.
    fn remove(&self) {
        if let Err(error) = sys::set_niceness(NICENESS) {
            tracing::warn!(%error, "domains that are removed take their time from others");
        }
        let mut state = self.state();
        while !state.stop {
            let Some(domid) = state.waiting.pop_front() else {
                state = self.wait(state);
                continue;
            };
            state.busy = true;
            drop(state);
            self.remove_one(domid);
            state = self.state();
            state.busy = false;
            self.changed.notify_all();
        }
    }

    fn remove_one(&self, domid: u32) {
        // Somebody else may have destroyed it, and its number be another one's.
        let removed = match self.host.hypercalls.domain(domid) {
            Ok(Some(other)) if other.handle != SPARE => return,
            Ok(_) => builder::remove(&self.host, domid).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = removed {
            tracing::error!(domid, %error, "the domain of a capsule that has moved stays behind");
        }
    }
}

impl Remover {
    /// Starts the thread.
    pub(super) fn start(host: Arc<builder::Host>) -> io::Result<Self> {
        let work = Arc::new(Work { host, state: Mutex::default(), changed: Condvar::new() });
        let done = work.clone();
        let thread = thread::Builder::new().name("remover".into()).spawn(move || done.remove())?;
        Ok(Self { work, thread: Mutex::new(Some(thread)) })
    }

    /// Has a domain removed, whose handle is [`SPARE`] and of which nothing is mapped.
    pub(super) fn remove(&self, domid: u32) {
        self.work.state().waiting.push_back(domid);
        self.work.changed.notify_all();
    }

    /// Waits until the memory of all of them is free; returns how many there were.
    pub(super) fn wait(&self) -> usize {
        let mut state = self.work.state();
        let under_way = state.waiting.len() + usize::from(state.busy);
        while state.busy || !state.waiting.is_empty() {
            state = self.work.wait(state);
        }
        under_way
    }

    /// Removes what waits, and ends the thread.
    pub(super) fn stop(&self) {
        self.wait();
        self.work.state().stop = true;
        self.work.changed.notify_all();
        let thread = self.thread.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(thread) = thread {
            // A panic of it has been reported already.
            let _ = thread.join();
        }
    }
}
