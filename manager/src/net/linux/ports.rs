//! Takes up capsules' interfaces as netback makes them.
//!
//! netback makes an interface some time after its nodes were written to xenstore, and tells
//! nobody but whoever listens for network devices. So does a thread here: the interface becomes
//! a port of its bridge before its capsule can have connected to it.

use std::{
    io,
    os::fd::AsFd,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use super::{
    Shared, State,
    netlink::Socket,
    route::{self, Event, Index, Link, Port},
};

/// netback takes no larger packets before its guest has said that it can send them.
const MTU_UNCONNECTED: u32 = 1500;

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts it. What happens from now on is not missed.
    pub(super) fn start(shared: Arc<Shared>) -> io::Result<Self> {
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let mut socket = route::events()?;
        let stopped = stop.clone();
        let thread = thread::Builder::new().name("interfaces".into()).spawn(move || {
            while let Err(error) = watch(&shared, &mut socket, &stopped) {
                tracing::warn!(%error, "looking for new interfaces anew");
                shared.look_for_all();
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.stop.write(1).is_ok()
            && let Some(thread) = self.thread.take()
        {
            // A panic of it has been reported already.
            let _ = thread.join();
        }
    }
}

/// Returns when it is time to end; fails when something may have been missed.
fn watch(shared: &Shared, socket: &mut Socket, stop: &EventFd) -> io::Result<()> {
    loop {
        let mut fds =
            [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        if fds[1].any().unwrap_or(true) {
            return Ok(());
        }
        socket.events(|reply| match route::event(reply) {
            Some(Event::Changed(link)) => shared.changed(&link),
            Some(Event::Gone(name)) => shared.gone(&name),
            None => {}
        })?;
    }
}

/// Waits for network devices to come and go.
#[derive(Debug)]
pub struct Devices {
    events: Socket,
}

impl Devices {
    /// Starts to listen.
    ///
    /// # Errors
    /// If netlink fails.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { events: route::events()? })
    }

    /// Waits until the device is there, or is not; returns false when the time is over before.
    ///
    /// # Errors
    /// If netlink fails.
    pub fn wait_for(&mut self, name: &str, present: bool, until: Instant) -> io::Result<bool> {
        loop {
            if if_nametoindex(name).is_ok() == present {
                return Ok(true);
            }
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Ok(false);
            }
            let timeout = PollTimeout::try_from(rest.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.events.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) | Err(Errno::EINTR) => continue,
                other => other?,
            };
            match self.events.events(|_| ()) {
                // What was lost is looked up.
                Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => return Err(error),
                _ => {}
            }
        }
    }
}

impl Shared {
    fn changed(&self, link: &Link) {
        let mut state = self.state();
        if state.ports.contains_key(&link.name)
            && let Err(error) = self.take_up(&mut state, link)
        {
            tracing::error!(interface = link.name, %error, "a capsule's interface is not connected");
        }
    }

    fn gone(&self, name: &str) {
        let mut state = self.state();
        let State { ports, attachments, .. } = &mut *state;
        if let Some(attached) = ports.get(name).and_then(|key| attachments.get_mut(key)) {
            attached.port = None;
            attached.connected.send_replace(false);
        }
    }

    /// After events were lost.
    fn look_for_all(&self) {
        match self.route.links() {
            Ok(links) => links.iter().for_each(|link| self.changed(link)),
            Err(error) => tracing::error!(%error, "network devices cannot be listed"),
        }
    }

    /// Makes an interface a port of its bridge; later, lets it take packets as large as its
    /// network's once its capsule has connected.
    pub(super) fn take_up(&self, state: &mut State, link: &Link) -> io::Result<()> {
        let State { ports, attachments, networks, remotes, .. } = state;
        let attached = ports.get(&link.name).and_then(|key| attachments.get_mut(key));
        let Some(attached) = attached else { return Ok(()) };
        let attachment = &attached.attachment;
        let Some(made) = networks.get(&attachment.network) else { return Ok(()) };
        let mtu = u32::from(made.network.mtu);
        if attached.port == Some(link.index) {
            if link.carrier && link.mtu < mtu {
                self.widen(link.index, mtu);
            }
            attached
                .connected
                .send_if_modified(|before| std::mem::replace(before, link.carrier) != link.carrier);
            return Ok(());
        }
        let mut changes =
            vec![route::set_bridge(link.index, made.bridge), route::set_port(link.index, Port::Capsule)];
        if link.mtu != mtu.min(MTU_UNCONNECTED) {
            changes.push(route::set_mtu(link.index, mtu.min(MTU_UNCONNECTED)));
        }
        // One that still runs at another node gets its frames there until it has moved.
        if !remotes.contains_key(&(attachment.network.clone(), attachment.mac)) {
            changes.push(route::add_forwarding(link.index, attachment.mac));
        }
        changes.push(route::set_up(link.index));
        self.route.execute(changes)?;
        attached.port = Some(link.index);
        attached.connected.send_replace(link.carrier);
        tracing::debug!(
            interface = link.name,
            bridge = made.network.bridge,
            "connected a capsule's interface"
        );
        Ok(())
    }

    /// Lets a port take packets of this size, if its guest can.
    pub(super) fn widen(&self, port: Index, mtu: u32) {
        if let Err(error) = self.route.execute(vec![route::set_mtu(port, mtu)]) {
            tracing::debug!(port, mtu, %error, "an interface keeps its packet size");
        }
    }
}
