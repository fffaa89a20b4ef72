//! dom0's network in memory, for the simulated hypervisor.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::Mutex;

use tokio::sync::watch;

use super::{
    Attachment, Counters, Error, Fabric, Network, Overlay, Protocol, Publish, Remote, Result, Wanted,
};
use crate::toolstack::Uuid;

/// Largest IP packet between simulated nodes.
const OVERLAY_MTU: u16 = 1450;

/// A network of nobody's frames. It outlives daemons, as a real one does.
#[derive(Default)]
pub struct Sim {
    state: Mutex<State>,
    connections: Mutex<BTreeMap<(Uuid, u32), watch::Sender<bool>>>,
}

/// What the network is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// By name.
    pub networks: BTreeMap<String, Network>,
    /// By capsule and handle.
    pub attachments: BTreeMap<(Uuid, u32), Attachment>,
    /// Domains of capsules.
    pub placed: BTreeMap<Uuid, u32>,
    /// By the node's port.
    pub published: BTreeMap<(Protocol, u16), Publish>,
    /// Ports that other programs of the node listen on.
    pub occupied: BTreeSet<(Protocol, u16)>,
    /// How it takes part in an overlay.
    pub overlay: Option<Overlay>,
    /// Interfaces on other nodes.
    pub remotes: Vec<Remote>,
    /// Capsules whose presence was told.
    pub announced: Vec<Uuid>,
    /// Counters that tests have set.
    pub counters: HashMap<(Uuid, u32), Counters>,
    /// Whether capsules connect to their interfaces only when [`Sim::connect`] says so.
    pub slow: bool,
    /// The call that fails, if one is to.
    pub failing: Option<&'static str>,
}

impl Sim {
    /// Looks at it or changes it from outside, as other programs of the node may.
    pub fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap())
    }

    /// Lets a capsule connect to its interfaces, if it has not.
    pub fn connect(&self, capsule: Uuid) {
        for (_, it) in self.connections.lock().unwrap().range((capsule, 0)..=(capsule, u32::MAX)) {
            it.send_replace(true);
        }
    }

    fn call<T>(&self, name: &'static str, work: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        self.with(|state| {
            if state.failing == Some(name) {
                let source = io::Error::other("it was to fail");
                return Err(Error::Failed { call: name.into(), source });
            }
            work(state)
        })
    }
}

impl Fabric for Sim {
    fn ensure(&self, network: &Network) -> Result<()> {
        self.call("ensure", |state| {
            state.networks.insert(network.name.clone(), network.clone());
            Ok(())
        })
    }

    fn remove(&self, network: &str) -> Result<()> {
        self.call("remove", |state| {
            state.networks.remove(network);
            Ok(())
        })
    }

    fn attach(&self, attachment: &Attachment) -> Result<()> {
        self.call("attach", |state| {
            if !state.networks.contains_key(&attachment.network) {
                let source = io::Error::from(io::ErrorKind::NotFound);
                return Err(Error::Failed { call: format!("attach to {}", attachment.network), source });
            }
            let key = (attachment.capsule, attachment.handle);
            state.attachments.insert(key, attachment.clone());
            self.connections.lock().unwrap().insert(key, watch::Sender::new(!state.slow));
            Ok(())
        })
    }

    fn place(&self, capsule: Uuid, domid: u32) -> Result<()> {
        self.call("place", |state| {
            state.placed.insert(capsule, domid);
            Ok(())
        })
    }

    fn detach(&self, capsule: Uuid) -> Result<()> {
        self.call("detach", |state| {
            state.attachments.retain(|(owner, _), _| *owner != capsule);
            state.counters.retain(|(owner, _), _| *owner != capsule);
            state.placed.remove(&capsule);
            self.connections.lock().unwrap().retain(|(owner, _), _| *owner != capsule);
            Ok(())
        })
    }

    fn publish(&self, publish: &Publish) -> Result<()> {
        self.call("publish", |state| {
            let key = (publish.protocol, publish.node_port);
            let other = state.published.get(&key).is_some_and(|there| there != publish);
            if other || state.occupied.contains(&key) {
                let protocol = match publish.protocol {
                    Protocol::Tcp => "tcp",
                    Protocol::Udp => "udp",
                };
                return Err(Error::PortTaken { port: publish.node_port, protocol });
            }
            state.published.insert(key, *publish);
            Ok(())
        })
    }

    fn unpublish(&self, publish: &Publish) -> Result<()> {
        self.call("unpublish", |state| {
            let key = (publish.protocol, publish.node_port);
            if state.published.get(&key) == Some(publish) {
                state.published.remove(&key);
            }
            Ok(())
        })
    }

    fn connection(&self, capsule: Uuid, handle: u32) -> Option<watch::Receiver<bool>> {
        Some(self.connections.lock().unwrap().get(&(capsule, handle))?.subscribe())
    }

    fn counters(&self, capsule: Uuid, handle: u32) -> Result<Option<Counters>> {
        self.call("counters", |state| {
            let there =
                state.placed.contains_key(&capsule) && state.attachments.contains_key(&(capsule, handle));
            Ok(there.then(|| state.counters.get(&(capsule, handle)).copied().unwrap_or_default()))
        })
    }

    fn set_overlay(&self, overlay: &Overlay) -> Result<u16> {
        self.call("set_overlay", |state| {
            state.overlay = (!overlay.peers.is_empty()).then(|| overlay.clone());
            Ok(OVERLAY_MTU)
        })
    }

    fn set_remotes(&self, remotes: &[Remote]) -> Result<()> {
        self.call("set_remotes", |state| {
            state.remotes = remotes.to_vec();
            Ok(())
        })
    }

    fn announce(&self, capsule: Uuid) -> Result<()> {
        self.call("announce", |state| {
            state.announced.push(capsule);
            Ok(())
        })
    }

    fn retain(&self, wanted: &Wanted) -> Result<()> {
        self.call("retain", |state| {
            state.attachments.retain(|key, _| wanted.attachments.contains(key));
            self.connections.lock().unwrap().retain(|key, _| wanted.attachments.contains(key));
            let State { attachments, placed, .. } = state;
            placed.retain(|capsule, _| attachments.keys().any(|(owner, _)| owner == capsule));
            state.published.retain(|_, publish| wanted.published.contains(publish));
            state.networks.retain(|name, _| wanted.networks.contains(name));
            Ok(())
        })
    }
}
