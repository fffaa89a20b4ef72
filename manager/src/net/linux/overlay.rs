//! Tunnels to other nodes, and who is behind them.
//!
//! Each network has one tunnel device, a port of its bridge. Which hardware address is at which
//! node is written into the tunnel's table, and into the bridge's that it is behind the tunnel.
//! The bridge answers questions for those neighbours itself. So no frame crosses the tunnel but
//! those for a capsule that is known to be there.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, Ipv4Addr},
};

use super::{
    Made, Overlay, Remote, Shared, State, Uuid, filter,
    route::{self, Index, Port},
    wireguard,
};
use crate::net::tunnel_address;

/// Largest packet where there is no overlay.
const MTU_ALONE: u16 = 1500;
/// What a tunnel adds to a packet: Ethernet, VXLAN, UDP, and IPv4 or IPv6.
const OVERHEAD_PLAIN: u32 = 14 + 8 + 8 + 20;
const OVERHEAD_INSIDE: u32 = 14 + 8 + 8 + 40;
/// What encryption adds: WireGuard's header and tag, UDP, IPv4.
const OVERHEAD_ENCRYPTION: u32 = 32 + 8 + 20;
/// Changes that are made at once.
const BATCH: usize = 256;

/// How this node takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Joined {
    overlay: Overlay,
    /// This node's end of all tunnels.
    local: IpAddr,
    /// WireGuard's device.
    pub(super) device: Option<Index>,
}

impl Joined {
    /// Where tunnels to a node end.
    fn end(&self, node: Ipv4Addr) -> IpAddr {
        end(&self.overlay, node)
    }

    /// Elements of the filter for the other nodes.
    pub(super) fn elements(&self) -> Vec<filter::Element> {
        elements(&self.overlay)
    }
}

fn end(overlay: &Overlay, node: Ipv4Addr) -> IpAddr {
    if overlay.private_key.is_some() { tunnel_address(node).into() } else { node.into() }
}

fn elements(overlay: &Overlay) -> Vec<filter::Element> {
    overlay.peers.iter().flat_map(|peer| filter::node(peer.address, end(overlay, peer.address))).collect()
}

fn tunnel_name(vni: u32) -> String {
    format!("{}v{vni}", super::PREFIX)
}

impl Shared {
    pub(super) fn set_overlay(&self, state: &mut State, overlay: &Overlay) -> io::Result<u16> {
        let before = state.joined.as_ref().map(|joined| joined.overlay.clone());
        if overlay.peers.is_empty() {
            self.leave(state)?;
            return Ok(MTU_ALONE);
        }
        let link = self.route.link_with(overlay.address)?;
        let link =
            link.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no device has this address"))?;
        let local = end(overlay, overlay.address);
        let (device, overhead) = match overlay.private_key {
            Some(_) => {
                let mtu = link.mtu.saturating_sub(OVERHEAD_ENCRYPTION);
                let device = if before.as_ref() == Some(overlay) {
                    state.joined.as_ref().and_then(|joined| joined.device)
                } else {
                    Some(wireguard::set_up(&self.route, overlay, mtu)?)
                };
                (device, OVERHEAD_ENCRYPTION + OVERHEAD_INSIDE)
            }
            None => (None, OVERHEAD_PLAIN),
        };
        self.filter.add(&elements(overlay))?;
        if let Some(before) = before {
            let kept = elements(overlay);
            let gone: Vec<_> =
                elements(&before).into_iter().filter(|element| !kept.contains(element)).collect();
            self.filter.remove(&gone)?;
            if before.private_key.is_some() && overlay.private_key.is_none() {
                wireguard::remove(&self.route)?;
            }
        }
        state.joined = Some(Joined { overlay: overlay.clone(), local, device });
        let names: Vec<String> = state.networks.keys().cloned().collect();
        names.iter().try_for_each(|name| self.ensure_tunnel(state, name))?;
        Ok(u16::try_from(link.mtu.saturating_sub(overhead)).unwrap_or(u16::MAX))
    }

    fn leave(&self, state: &mut State) -> io::Result<()> {
        for made in state.networks.values_mut() {
            if let Some(tunnel) = made.tunnel {
                self.route.remove(route::delete_link(tunnel))?;
                made.tunnel = None;
            }
        }
        if let Some(joined) = &state.joined {
            self.filter.remove(&joined.elements())?;
            if joined.device.is_some() {
                wireguard::remove(&self.route)?;
            }
        }
        state.joined = None;
        Ok(())
    }

    /// Makes a network's tunnel as the overlay wants it, if there is one.
    pub(super) fn ensure_tunnel(&self, state: &mut State, network: &str) -> io::Result<()> {
        let (Some(joined), Some(made)) = (&state.joined, state.networks.get_mut(network)) else {
            return Ok(());
        };
        let name = tunnel_name(made.network.vni);
        let mut link = self.route.link(&name)?;
        if let Some(other) = link.take_if(|link| link.local != Some(joined.local)) {
            self.route.remove(route::delete_link(other.index))?;
        }
        let link = match link {
            Some(link) => link,
            None => {
                let message = route::add_vxlan(&name, made.network.vni, joined.local, joined.device);
                self.route.execute(vec![message])?;
                made.tunnel = None;
                self.route.link(&name)?.ok_or(io::ErrorKind::NotFound)?
            }
        };
        let mut changes = Vec::new();
        if link.mtu != u32::from(made.network.mtu) {
            changes.push(route::set_mtu(link.index, made.network.mtu.into()));
        }
        if made.tunnel != Some(link.index) {
            changes.push(route::set_bridge(link.index, made.bridge));
            changes.push(route::set_port(link.index, Port::Tunnel));
            changes.push(route::set_up(link.index));
        }
        self.route.execute(changes)?;
        if made.tunnel.replace(link.index) == Some(link.index) {
            return Ok(());
        }
        let remotes: Vec<&Remote> =
            state.remotes.values().filter(|remote| remote.network == network).collect();
        self.point_to(state, &remotes)
    }

    /// Sends what is for these interfaces to their nodes.
    fn point_to(&self, state: &State, remotes: &[&Remote]) -> io::Result<()> {
        for remotes in remotes.chunks(BATCH) {
            let mut changes = Vec::new();
            for remote in remotes {
                let Some((joined, made, tunnel)) = state.way_to(remote) else { continue };
                changes.extend([
                    route::add_tunnel_end(tunnel, remote.mac, joined.end(remote.node)),
                    route::add_forwarding(tunnel, remote.mac),
                    route::add_neighbour(made.bridge, remote.ipv4.into(), remote.mac),
                    route::add_neighbour(made.bridge, remote.ipv6.into(), remote.mac),
                ]);
            }
            self.route.execute(changes)?;
        }
        Ok(())
    }

    /// Undoes [`Self::point_to`] for an interface that is no longer there, and perhaps here.
    fn forget(&self, state: &State, remote: &Remote) -> io::Result<()> {
        let Some(made) = state.networks.get(&remote.network) else { return Ok(()) };
        let is_it = |attached: &&super::Attached| {
            attached.attachment.network == remote.network && attached.attachment.mac == remote.mac
        };
        let here = state.attachments.values().find(is_it);
        if let Some(port) = here.and_then(|attached| attached.port) {
            self.route.execute(vec![route::add_forwarding(port, remote.mac)])?;
        }
        if let Some(tunnel) = made.tunnel {
            self.route.remove(route::delete_forwarding(tunnel, remote.mac))?;
            self.route.remove(route::delete_tunnel_end(tunnel, remote.mac))?;
        }
        match here {
            Some(_) => Ok(()),
            None => self.forget_neighbour(made, remote.ipv4, remote.ipv6),
        }
    }

    pub(super) fn set_remotes(&self, state: &mut State, remotes: &[Remote]) -> io::Result<()> {
        let key = |remote: &Remote| (remote.network.clone(), remote.mac);
        let new: HashMap<_, _> = remotes.iter().map(|remote| (key(remote), remote.clone())).collect();
        let before = std::mem::replace(&mut state.remotes, new);
        for (key, old) in &before {
            // One that has only moved on to another node is not forgotten in between.
            let new = state.remotes.get(key);
            if new.is_none_or(|new| (new.ipv4, new.ipv6) != (old.ipv4, old.ipv6)) {
                self.forget(state, old)?;
            }
        }
        let changed: Vec<_> = state
            .remotes
            .iter()
            .filter(|(key, new)| before.get(*key) != Some(new))
            .map(|(_, new)| new)
            .collect();
        self.point_to(state, &changed)
    }

    /// An interface is here now, whatever was said of other nodes.
    pub(super) fn claim(&self, state: &mut State, key: (Uuid, u32)) -> io::Result<()> {
        let Some(attached) = state.attachments.get(&key) else { return Ok(()) };
        let there = (attached.attachment.network.clone(), attached.attachment.mac);
        match state.remotes.remove(&there) {
            Some(remote) => self.forget(state, &remote),
            None => Ok(()),
        }
    }

    /// Removes entries of the tunnels for interfaces that are not behind them.
    pub(super) fn retain_remotes(&self, state: &State) -> io::Result<()> {
        let tunnels: HashMap<Index, &Made> =
            state.networks.values().filter_map(|made| Some((made.tunnel?, made))).collect();
        let known: HashSet<_> =
            state.remotes.values().filter_map(|r| Some((state.way_to(r)?.2, r.mac))).collect();
        for entry in self.route.forwarding()? {
            let Some(mac) = entry.mac.filter(|_| tunnels.contains_key(&entry.index)) else { continue };
            if !known.contains(&(entry.index, mac)) {
                self.route.remove(route::delete_forwarding(entry.index, mac))?;
                self.route.remove(route::delete_tunnel_end(entry.index, mac))?;
            }
        }
        Ok(())
    }
}

impl State {
    fn way_to(&self, remote: &Remote) -> Option<(&Joined, &Made, Index)> {
        let made = self.networks.get(&remote.network)?;
        Some((self.joined.as_ref()?, made, made.tunnel?))
    }
}
