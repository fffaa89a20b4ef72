//! Holds [shells](Shell) ready for capsules with a network.
//!
//! There are some as soon as there has been such a capsule. A thread makes them, some time after
//! one was taken, so that it is not in the way of the capsule that took it. They have hardly any
//! memory, but what they have goes as soon as a capsule needs it.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{DomainSpec, ImageKind, Result, SPARE, Shared, builder, sys};
use crate::xen::shell::Shell;

/// Of the thread: whatever else there is to do comes first.
const NICENESS: i32 = 10;
/// How long after one was taken the next one is made: a capsule has mostly answered its first
/// request by then.
const QUIET: Duration = Duration::from_secs(1);

/// The shells.
pub(super) struct Shells {
    shared: Arc<Shared>,
    /// How many there are to be.
    size: usize,
    state: Mutex<State>,
    /// Signalled when there may be something for the thread to do.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    ready: Vec<Shell>,
    /// When the next one may be made; `None` while nobody needs any.
    due: Option<Instant>,
    stop: bool,
    thread: Option<JoinHandle<()>>,
}

impl State {
    /// Notes that one was needed, and takes one.
    fn take(&mut self, now: Instant) -> Option<Shell> {
        let taken = self.ready.pop();
        // Those that find none do not put off the next one for ever.
        if taken.is_some() || self.due.is_none() {
            self.due = Some(now + QUIET);
        }
        taken
    }

    /// When to make the next one.
    fn next(&self, size: usize) -> Option<Instant> {
        self.due.filter(|_| self.ready.len() < size)
    }
}

impl Shells {
    /// Starts the thread.
    pub(super) fn start(shared: Arc<Shared>, size: u32) -> io::Result<Arc<Self>> {
        let size = size as usize;
        let shells = Arc::new(Self { shared, size, state: Mutex::default(), changed: Condvar::new() });
        if size > 0 {
            let made = shells.clone();
            let thread = thread::Builder::new().name("shells".into()).spawn(move || made.make())?;
            shells.state().thread = Some(thread);
        }
        Ok(shells)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Ends the thread and removes what waits.
    pub(super) fn stop(&self) {
        let thread = {
            let mut state = self.state();
            state.stop = true;
            state.thread.take()
        };
        self.changed.notify_all();
        if let Some(thread) = thread {
            // A panic of it has been reported already.
            let _ = thread.join();
        }
        self.drain();
    }

    /// Takes one for a capsule, if it can use one and there is one.
    pub(super) fn take(&self, spec: &DomainSpec) -> Option<Shell> {
        let fits = spec.image.kind() == ImageKind::Capsule
            && spec.vcpus == 1
            && spec.vifs.iter().any(|vif| vif.handle == Shell::HANDLE);
        if self.size == 0 || !fits {
            return None;
        }
        let taken = self.state().take(Instant::now());
        self.changed.notify_all();
        taken
    }

    /// Removes what waits until a capsule needs one again; returns how many there were.
    pub(super) fn drain(&self) -> usize {
        let ready = {
            let mut state = self.state();
            state.due = None;
            std::mem::take(&mut state.ready)
        };
        ready.iter().for_each(|shell| self.remove(shell));
        ready.len()
    }

    fn remove(&self, shell: &Shell) {
        if let Err(error) = builder::remove(&self.shared.host, shell.domid) {
            tracing::error!(domid = shell.domid, %error, "a domain held ready stays behind");
        }
    }

    /// What the thread does.
    fn make(&self) {
        if let Err(error) = sys::set_niceness(NICENESS) {
            tracing::warn!(%error, "domains held ready take their time from others");
        }
        let mut state = self.state();
        while !state.stop {
            let Some(due) = state.next(self.size) else {
                state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
                continue;
            };
            let rest = due.saturating_duration_since(Instant::now());
            if !rest.is_zero() {
                let waited = self.changed.wait_timeout(state, rest);
                state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
                continue;
            }
            drop(state);
            let built = self.build();
            state = self.state();
            match built {
                // It was not needed any more.
                Ok(shell) if state.due.is_none() => {
                    drop(state);
                    self.remove(&shell);
                    state = self.state();
                }
                Ok(shell) => state.ready.push(shell),
                Err(error) => {
                    tracing::warn!(%error, "no domain is held ready");
                    state.due = None;
                }
            }
        }
    }

    fn build(&self) -> Result<Shell> {
        builder::check_room(&self.shared.host, 1)?;
        Shell::build(&self.shared.host, SPARE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gets_one_that_another_has_and_none_is_made_before_it_is_needed() {
        let mut state = State::default();
        let now = Instant::now();
        assert_eq!(state.next(1), None);
        assert_eq!(state.take(now), None);
        assert_eq!(state.next(1), Some(now + QUIET));
        let shell = Shell { domid: 7, store_mfn: 1 };
        state.ready.push(shell);
        assert_eq!(state.next(1), None);
        let later = now + QUIET;
        assert_eq!(state.take(later), Some(shell));
        assert_eq!(state.next(1), Some(later + QUIET));
        // A stream of starts does not keep the next one from being made.
        assert_eq!(state.take(later + QUIET / 2), None);
        assert_eq!(state.next(1), Some(later + QUIET));
    }
}
