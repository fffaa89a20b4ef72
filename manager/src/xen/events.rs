//! Event channels of consoles, waited for by one thread.

use std::{
    collections::HashMap,
    io,
    os::fd::AsFd,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use super::sys::EventChannels;
use crate::toolstack::{Event, EventSink};

/// How often [`Bell::wait_for`] looks without an event.
const LOOK: Duration = Duration::from_millis(500);

/// The consoles' event channels and the thread that waits for them.
#[derive(Debug)]
pub struct Events {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    channels: EventChannels,
    /// Whose console a local port is, and its bell.
    domains: Mutex<HashMap<u32, (u32, Arc<Bell>)>>,
    /// Written to when the thread shall end.
    stop: EventFd,
}

impl Shared {
    fn domains(&self) -> MutexGuard<'_, HashMap<u32, (u32, Arc<Bell>)>> {
        self.domains.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Counts the events of a port, for those who wait for the next one.
#[derive(Debug, Default)]
pub struct Bell {
    count: Mutex<u64>,
    rung: Condvar,
}

impl Bell {
    /// Waits until `look` has found something, and looks at each event; at least every half a
    /// second, for what there is no event of. Nothing when the time is up.
    ///
    /// # Errors
    /// As `look`.
    pub fn wait_for<T, E>(
        &self,
        time: Duration,
        mut look: impl FnMut() -> Result<Option<T>, E>,
    ) -> Result<Option<T>, E> {
        let deadline = Instant::now() + time;
        loop {
            let seen = self.count();
            if let Some(found) = look()? {
                return Ok(Some(found));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            self.wait(seen, deadline.min(Instant::now() + LOOK));
        }
    }

    /// Events so far. Ask first, then look for what is awaited, then [`Self::wait`].
    fn count(&self) -> u64 {
        *self.lock()
    }

    /// Waits until there were more than `seen` events, but not longer than `until`.
    fn wait(&self, seen: u64, until: Instant) {
        let mut count = self.lock();
        while *count == seen {
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return;
            }
            let waited = self.rung.wait_timeout(count, rest);
            count = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }

    fn ring(&self) {
        *self.lock() += 1;
        self.rung.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.count.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Events {
    /// Opens the device and starts the thread.
    ///
    /// # Errors
    /// If this is no dom0 of Xen.
    pub fn start(sink: EventSink) -> io::Result<Self> {
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        let shared = Arc::new(Shared { channels: EventChannels::open()?, domains: Mutex::default(), stop });
        let waiting = shared.clone();
        let thread = std::thread::Builder::new().name("event channels".into()).spawn(move || {
            if let Err(error) = wait(&waiting, &sink) {
                tracing::error!(%error, "event channels fail: consoles stand still");
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Binds the console port of a domain.
    ///
    /// # Errors
    /// If the domain is gone, or somebody else has bound the port.
    pub fn bind(&self, domid: u32, remote_port: u32) -> io::Result<Port> {
        // Held while binding: the first event may come before the entry is made.
        let mut domains = self.shared.domains();
        let local = self.shared.channels.bind(domid, remote_port)?;
        let bell = Arc::<Bell>::default();
        domains.insert(local, (domid, bell.clone()));
        Ok(Port { local, bell, shared: self.shared.clone() })
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if self.shared.stop.write(1).is_ok()
            && let Some(thread) = self.thread.take()
        {
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}

fn wait(shared: &Shared, sink: &EventSink) -> io::Result<()> {
    let mut ports = Vec::new();
    let mut domids = Vec::new();
    loop {
        let mut fds = [
            PollFd::new(shared.channels.as_fd(), PollFlags::POLLIN),
            PollFd::new(shared.stop.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        if fds[1].any().unwrap_or(true) {
            return Ok(());
        }
        shared.channels.wait(&mut ports)?;
        domids.clear();
        {
            let domains = shared.domains();
            let rung = ports.iter().filter_map(|port| domains.get(port));
            domids.extend(rung.inspect(|(_, bell)| bell.ring()).map(|&(domid, _)| domid));
        }
        for &domid in &domids {
            sink(Event::Console(domid));
        }
        // What came after the look at a ring is reported as soon as its port is unmasked. Ports
        // that were closed meanwhile are passed over.
        shared.channels.unmask(&ports)?;
    }
}

/// Our end of a console's event channel; closed on drop.
#[derive(Debug)]
pub struct Port {
    local: u32,
    bell: Arc<Bell>,
    shared: Arc<Shared>,
}

impl Port {
    /// Sends an event to the domain.
    ///
    /// # Errors
    /// If the device fails.
    pub fn notify(&self) -> io::Result<()> {
        self.shared.channels.notify(self.local)
    }

    /// Rings with each event from the domain.
    pub fn bell(&self) -> Arc<Bell> {
        self.bell.clone()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let mut domains = self.shared.domains();
        domains.remove(&self.local);
        // Xen has closed it already if the domain is gone.
        let _ = self.shared.channels.unbind(self.local);
    }
}
