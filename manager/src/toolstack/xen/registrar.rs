//! Tells xenstored of capsules that run.
//!
//! To xenstored a new domain is a dozen messages, each with its switches between processes, and
//! a page to map; on a node with one processor that time would be the capsule's. It needs
//! xenstored for nothing until it is asked to stop, so it is told some time later. Whoever
//! needs it earlier does it himself ([`XenDomain::register`]).

use std::{
    io,
    sync::{
        Mutex, Weak,
        mpsc::{Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use super::{Arc, XenDomain, sys};

/// How long a capsule has the node for itself when it starts.
const HEAD_START: Duration = Duration::from_millis(15);

/// Of the thread. At the daemon's own it would get ahead of xenstored with each reply, and go
/// back to sleep until the next one; like this it finds all replies of a batch at once.
const NICENESS: i32 = 5;

/// The thread that does it. It ends when this is dropped.
pub(super) struct Registrar {
    queue: Mutex<Sender<(Instant, Weak<XenDomain>)>>,
}

impl Registrar {
    pub(super) fn start() -> io::Result<Self> {
        let (sender, queue) = channel::<(Instant, Weak<XenDomain>)>();
        thread::Builder::new().name("registrar".into()).spawn(move || {
            if let Err(error) = sys::set_niceness(NICENESS) {
                tracing::warn!(%error, "registration takes its time from others");
            }
            // In the order of their starts, and all have the same head start.
            for (start, domain) in queue {
                thread::sleep((start + HEAD_START).saturating_duration_since(Instant::now()));
                let Some(domain) = domain.upgrade() else { continue };
                if let Err(error) = domain.register() {
                    tracing::error!(domid = domain.domid, %error, "xenstored does not know the capsule");
                }
            }
        })?;
        Ok(Self { queue: Mutex::new(sender) })
    }

    /// Registers `domain` soon, if it is not yet.
    pub(super) fn soon(&self, domain: &Arc<XenDomain>) {
        // Whoever holds the lock is at it.
        if domain.late.try_lock().is_ok_and(|late| late.is_none()) {
            return;
        }
        let queue = self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // The thread ends with this value and not before.
        let _ = queue.send((Instant::now(), Arc::downgrade(domain)));
    }
}
