//! dom0's network on Linux.
//!
//! ```text
//!  capsule      capsule                      other nodes
//!     │            │                              │
//!  vif5.0       vif6.0   ── made by netback ──  tunnel (VXLAN, over WireGuard if encrypted)
//!     └─── bridge ─┴───────────┬──────────────────┘
//!                       gateway's addresses: dom0, and routing to the world
//! ```
//!
//! | part | what it does |
//! |---|---|
//! | `filter` | who may send what to whom: rules that stay, sets that change |
//! | `conntrack` | forgets connections through ports that are taken back |
//! | `route` | bridges, ports, addresses, neighbours |
//! | `ports` | takes up interfaces as netback makes them |
//! | `overlay` | tunnels to other nodes, and who is behind them |
//! | `wireguard` | encryption between nodes |
//! | `netlink` | how all of them speak to the kernel |
//!
//! dom0 knows every interface of a network, here and on other nodes. So nothing is learned from
//! frames and nothing flooded: the bridges' tables are written by us, the bridges answer ARP in
//! the name of all, and what nobody has been told of does not exist. A capsule can neither fill
//! these tables nor change them.
//!
//! No program is started and no script run, but `nft` once, to read the rules.

mod conntrack;
mod filter;
mod netlink;
mod overlay;
mod ports;
mod route;
mod wireguard;

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket};
use tokio::sync::watch;

use super::{
    Attachment, Counters, Error, Fabric, Network, Overlay, Protocol, Publish, Remote, Result, Wanted,
};
use crate::toolstack::Uuid;
use conntrack::Connections;
use filter::Filter;
use overlay::Joined;
pub use ports::Devices;
use ports::Watch;
use route::{Index, Link, Route};

/// Names of our bridges and tunnels begin with this.
const PREFIX: &str = "fcap";

/// What an interface of a domain is called in dom0: netback chooses the name.
pub fn port_name(domid: u32, handle: u32) -> String {
    format!("vif{domid}.{handle}")
}

/// dom0's network.
#[derive(Debug)]
pub struct Linux {
    shared: Arc<Shared>,
    /// Ends its thread when dropped.
    _watch: Watch,
}

#[derive(Debug)]
struct Shared {
    route: Route,
    filter: Filter,
    connections: Connections,
    state: Mutex<State>,
}

/// What is wanted, and the kernel's numbers for it.
#[derive(Debug, Default)]
struct State {
    /// By name.
    networks: BTreeMap<String, Made>,
    /// By capsule and handle.
    attachments: BTreeMap<(Uuid, u32), Attached>,
    /// Interfaces that are there or will be, by their names in dom0.
    ports: HashMap<String, (Uuid, u32)>,
    published: BTreeMap<(Protocol, u16), Published>,
    joined: Option<Joined>,
    /// By network and hardware address.
    remotes: HashMap<(String, [u8; 6]), Remote>,
}

/// A network that is there.
#[derive(Debug)]
struct Made {
    network: Network,
    bridge: Index,
    tunnel: Option<Index>,
}

/// An interface that may be there.
#[derive(Debug)]
struct Attached {
    attachment: Attachment,
    /// Its name in dom0, once its domain is known.
    name: Option<String>,
    /// Once netback has made it, and it is a port of its bridge.
    port: Option<Index>,
    /// Whether its capsule has connected to it.
    connected: watch::Sender<bool>,
}

/// A published port.
#[derive(Debug)]
struct Published {
    publish: Publish,
    /// Keeps dom0's other programs from using it.
    _reserved: OwnedFd,
}

/// Says what failed.
fn failed(call: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let call = call.into();
    |source| Error::Failed { call, source }
}

impl Linux {
    /// Loads the filter's rules and lets dom0 route packets.
    ///
    /// # Errors
    /// If this is not root, or the kernel lacks a part.
    pub fn new() -> Result<Self> {
        let route = Route::open().map_err(failed("opening of rtnetlink"))?;
        // Before anything is forwarded.
        let filter = Filter::open().map_err(failed("loading of the packet filter's rules by nft"))?;
        enable_forwarding().map_err(failed("turning on of packet forwarding"))?;
        let connections = Connections::open().map_err(failed("opening of the table of connections"))?;
        let shared = Arc::new(Shared { route, filter, connections, state: Mutex::default() });
        let watch = Watch::start(shared.clone()).map_err(failed("watching of network devices"))?;
        Ok(Self { shared, _watch: watch })
    }
}

/// Gives one of the node's own cards a hardware address, a packet size and an IP address, and turns
/// it on. What is so already stays.
///
/// # Errors
/// If there is no such card, or it cannot.
pub fn set_up_card(device: &str, mac: [u8; 6], mtu: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    let route = Route::open()?;
    let link = route.link(device)?.ok_or(io::ErrorKind::NotFound)?;
    route.execute(vec![
        route::set_mac(link.index, mac),
        route::set_mtu(link.index, mtu),
        route::add_address(link.index, address.into(), prefix),
        route::set_up(link.index),
    ])
}

/// Writes a setting below `/proc/sys/net`.
fn set(path: &str, value: &str) -> io::Result<()> {
    fs::write(format!("/proc/sys/net/{path}"), value)
}

fn enable_forwarding() -> io::Result<()> {
    set("ipv4/ip_forward", "1")?;
    // A router takes no advertisements of other routers, unless told so: the node's own way to
    // the world may come from one.
    for device in fs::read_dir("/proc/sys/net/ipv6/conf")? {
        let path = device?.path().join("accept_ra");
        if fs::read_to_string(&path)?.trim() == "1" {
            fs::write(path, "2")?;
        }
    }
    set("ipv6/conf/all/forwarding", "1")
}

/// The link-local address that is made of a hardware address (RFC 4291, appendix A).
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Makes the bridge, or finds it.
    fn bridge(&self, network: &Network) -> io::Result<Link> {
        if let Some(link) = self.route.link(&network.bridge)? {
            if link.kind != "bridge" {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "a device of its name is no bridge",
                ));
            }
            return Ok(link);
        }
        self.route.execute(vec![route::add_bridge(&network.bridge, network.gateway_mac)])?;
        let conf = format!("ipv6/conf/{}", network.bridge);
        // Its addresses are ours alone, and it is the router.
        set(&format!("{conf}/accept_dad"), "0")?;
        set(&format!("{conf}/accept_ra"), "0")?;
        // Programs of dom0 reach published ports at 127.0.0.1, too.
        set(&format!("ipv4/conf/{}/route_localnet", network.bridge), "1")?;
        self.route.link(&network.bridge)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn ensure(&self, state: &mut State, network: &Network) -> io::Result<()> {
        let link = self.bridge(network)?;
        let bridge = link.index;
        let (gateway4, gateway6) = (network.gateway4, network.gateway6);
        if let Some(before) = state.networks.get(&network.name)
            && before.network != *network
        {
            self.filter.remove(&elements_of(&before.network))?;
        }
        self.filter.add(&elements_of(network))?;
        let mut changes = vec![
            route::add_address(bridge, gateway4.0.into(), gateway4.1),
            route::add_address(bridge, gateway6.0.into(), gateway6.1),
        ];
        let mtu = u32::from(network.mtu);
        if link.mtu != mtu {
            changes.push(route::set_mtu(bridge, mtu));
        }
        changes.push(route::set_up(bridge));
        self.route.execute(changes)?;
        let tunnel = state.networks.get(&network.name).and_then(|made| made.tunnel);
        state.networks.insert(network.name.clone(), Made { network: network.clone(), bridge, tunnel });
        for attached in state.attachments.values().filter(|a| a.attachment.network == network.name) {
            attached.port.into_iter().for_each(|port| self.widen(port, mtu));
        }
        self.ensure_tunnel(state, &network.name)
    }

    fn remove(&self, state: &mut State, network: &str) -> io::Result<()> {
        let Some(made) = state.networks.get(network) else { return Ok(()) };
        for index in made.tunnel.into_iter().chain([made.bridge]) {
            self.route.remove(route::delete_link(index))?;
        }
        self.filter.remove(&elements_of(&made.network))?;
        state.networks.remove(network);
        Ok(())
    }

    /// Lets the interface use its addresses, and takes it up if it is there already.
    fn place(&self, state: &mut State, key: (Uuid, u32), name: String) -> io::Result<()> {
        let Some(attached) = state.attachments.get_mut(&key) else { return Ok(()) };
        if attached.name.as_ref() != Some(&name) {
            self.forget_name(&mut state.ports, attached)?;
        }
        attached.name = Some(name.clone());
        self.filter.add(&elements_of_interface(&name, &attached.attachment))?;
        // From here on the watch takes it up; it may have come before.
        state.ports.insert(name.clone(), key);
        let attachment = &attached.attachment;
        if let Some(made) = state.networks.get(&attachment.network) {
            self.route.execute(vec![
                route::add_neighbour(made.bridge, attachment.ipv4.into(), attachment.mac),
                route::add_neighbour(made.bridge, attachment.ipv6.into(), attachment.mac),
            ])?;
        }
        match self.route.link(&name)? {
            Some(link) => self.take_up(state, &link),
            None => Ok(()),
        }
    }

    /// Takes back what the interface may do under its present name.
    fn forget_name(
        &self,
        ports: &mut HashMap<String, (Uuid, u32)>,
        attached: &mut Attached,
    ) -> io::Result<()> {
        let Some(name) = attached.name.take() else { return Ok(()) };
        attached.port = None;
        attached.connected.send_replace(false);
        ports.remove(&name);
        self.filter.remove(&elements_of_interface(&name, &attached.attachment))
    }

    fn detach(&self, state: &mut State, key: (Uuid, u32)) -> io::Result<()> {
        let Some(attached) = state.attachments.get_mut(&key) else { return Ok(()) };
        self.forget_name(&mut state.ports, attached)?;
        let Some(Attached { attachment, .. }) = state.attachments.remove(&key) else { return Ok(()) };
        // It may live on at another node.
        let has_moved = state.remotes.contains_key(&(attachment.network.clone(), attachment.mac));
        match state.networks.get(&attachment.network) {
            Some(made) if !has_moved => self.forget_neighbour(made, attachment.ipv4, attachment.ipv6),
            _ => Ok(()),
        }
    }

    fn forget_neighbour(&self, made: &Made, ipv4: Ipv4Addr, ipv6: Ipv6Addr) -> io::Result<()> {
        self.route.remove(route::delete_neighbour(made.bridge, ipv4.into()))?;
        self.route.remove(route::delete_neighbour(made.bridge, ipv6.into()))
    }

    fn publish(&self, state: &mut State, publish: &Publish) -> Result<()> {
        let key = (publish.protocol, publish.node_port);
        let taken = || {
            let protocol = match publish.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
            };
            Error::PortTaken { port: publish.node_port, protocol }
        };
        let call = || format!("publishing of port {}", publish.node_port);
        match state.published.get(&key) {
            Some(published) if published.publish == *publish => return Ok(()),
            Some(_) => return Err(taken()),
            None => {}
        }
        let reserved = reserve(publish).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => taken(),
            _ => failed(call())(error),
        })?;
        let element = [filter::published(publish)];
        self.filter
            .add(&element)
            .or_else(|error| match error.raw_os_error() {
                // An earlier daemon let it lead elsewhere.
                Some(libc::EEXIST | libc::EBUSY) => {
                    self.filter.remove_keys(&element).and_then(|()| self.filter.add(&element))
                }
                _ => Err(error),
            })
            .map_err(failed(call()))?;
        state.published.insert(key, Published { publish: *publish, _reserved: reserved });
        Ok(())
    }

    fn unpublish(&self, state: &mut State, publish: &Publish) -> io::Result<()> {
        let key = (publish.protocol, publish.node_port);
        if state.published.get(&key).is_some_and(|published| published.publish == *publish) {
            self.filter.remove(&[filter::published(publish)])?;
            // From here on there are no new ones.
            if let Err(error) = self.connections.forget(publish) {
                tracing::warn!(port = publish.node_port, %error, "connections through a port outlive it");
            }
            state.published.remove(&key);
        }
        Ok(())
    }

    fn retain(&self, state: &mut State, wanted: &Wanted) -> io::Result<()> {
        let surplus: Vec<_> =
            state.published.values().map(|p| p.publish).filter(|p| !wanted.published.contains(p)).collect();
        surplus.iter().try_for_each(|publish| self.unpublish(state, publish))?;
        let surplus: Vec<_> =
            state.attachments.keys().filter(|key| !wanted.attachments.contains(key)).copied().collect();
        surplus.into_iter().try_for_each(|key| self.detach(state, key))?;
        let surplus: Vec<_> =
            state.networks.keys().filter(|name| !wanted.networks.contains(name)).cloned().collect();
        surplus.iter().try_for_each(|name| self.remove(state, name))?;

        // What an earlier daemon made and nobody has asked for since.
        let elements = state.elements();
        self.filter.retain(&|element| elements.binary_search(element).is_ok())?;
        let ours: Vec<Index> = state.links().collect();
        for link in self.route.links()? {
            let is_kind = ["bridge", "vxlan", "wireguard"].contains(&link.kind.as_str());
            if is_kind && link.name.starts_with(PREFIX) && !ours.contains(&link.index) {
                self.route.remove(route::delete_link(link.index))?;
            }
        }
        self.retain_neighbours(state)?;
        self.retain_remotes(state)
    }

    /// Removes neighbours of our bridges that are neither here nor at another node.
    fn retain_neighbours(&self, state: &State) -> io::Result<()> {
        let here = state.attachments.values().map(|attached| &attached.attachment);
        let here = here.flat_map(|a| [(&a.network, IpAddr::from(a.ipv4)), (&a.network, a.ipv6.into())]);
        let there = state.remotes.values();
        let there = there.flat_map(|r| [(&r.network, IpAddr::from(r.ipv4)), (&r.network, r.ipv6.into())]);
        let known: Vec<(&String, IpAddr)> = here.chain(there).collect();
        for neighbour in self.route.neighbours()?.into_iter().filter(|neighbour| neighbour.fixed) {
            let made = state.networks.values().find(|made| made.bridge == neighbour.index);
            if let (Some(made), Some(address)) = (made, neighbour.address)
                && !address.is_multicast()
                && !known.contains(&(&made.network.name, address))
            {
                self.route.remove(route::delete_neighbour(made.bridge, address))?;
            }
        }
        Ok(())
    }
}

impl State {
    /// All elements that the filter's sets should have, in order.
    fn elements(&self) -> Vec<filter::Element> {
        let mut elements: Vec<_> =
            self.networks.values().flat_map(|made| elements_of(&made.network)).collect();
        for attached in self.attachments.values() {
            let of = |name: &String| elements_of_interface(name, &attached.attachment);
            elements.extend(attached.name.iter().flat_map(of));
        }
        elements.extend(self.published.values().map(|published| filter::published(&published.publish)));
        elements.extend(self.joined.iter().flat_map(Joined::elements));
        elements.sort();
        elements
    }

    /// Bridges and tunnels.
    fn links(&self) -> impl Iterator<Item = Index> {
        let made = self.networks.values().flat_map(|made| made.tunnel.into_iter().chain([made.bridge]));
        made.chain(self.joined.iter().filter_map(|joined| joined.device))
    }
}

fn elements_of(network: &Network) -> Vec<filter::Element> {
    let gateways = [network.gateway4.0.into(), network.gateway6.0.into()];
    filter::network(&network.bridge, gateways, network.outbound)
}

fn elements_of_interface(name: &str, attachment: &Attachment) -> Vec<filter::Element> {
    let addresses = [attachment.ipv6, link_local(attachment.mac)];
    filter::interface(name, attachment.mac, attachment.ipv4, addresses)
}

/// Binds dom0's port, so that no other program can, and fails where one has.
fn reserve(publish: &Publish) -> io::Result<OwnedFd> {
    let kind = match publish.protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
    };
    let reserved = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None)?;
    bind(reserved.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, publish.node_port))?;
    Ok(reserved)
}

impl Fabric for Linux {
    fn ensure(&self, network: &Network) -> Result<()> {
        let call = format!("making of the network {}", network.name);
        self.shared.ensure(&mut self.shared.state(), network).map_err(failed(call))
    }

    fn remove(&self, network: &str) -> Result<()> {
        let call = format!("removal of the network {network}");
        self.shared.remove(&mut self.shared.state(), network).map_err(failed(call))
    }

    fn attach(&self, attachment: &Attachment) -> Result<()> {
        let mut state = self.shared.state();
        let key = (attachment.capsule, attachment.handle);
        if state.attachments.get(&key).is_some_and(|attached| attached.attachment == *attachment) {
            return Ok(());
        }
        let call = format!("attaching of {} to the network {}", attachment.ipv4, attachment.network);
        self.shared.detach(&mut state, key).map_err(failed(call))?;
        let connected = watch::Sender::new(false);
        let attached = Attached { attachment: attachment.clone(), name: None, port: None, connected };
        state.attachments.insert(key, attached);
        Ok(())
    }

    fn place(&self, capsule: Uuid, domid: u32) -> Result<()> {
        let mut state = self.shared.state();
        let keys: Vec<_> = state.of(capsule).collect();
        for key in keys {
            let name = port_name(domid, key.1);
            let call = format!("preparing for the interface {name}");
            self.shared.place(&mut state, key, name).map_err(failed(call))?;
        }
        Ok(())
    }

    fn detach(&self, capsule: Uuid) -> Result<()> {
        let mut state = self.shared.state();
        let keys: Vec<_> = state.of(capsule).collect();
        let call = "detaching of a capsule from its networks";
        keys.into_iter().try_for_each(|key| self.shared.detach(&mut state, key)).map_err(failed(call))
    }

    fn publish(&self, publish: &Publish) -> Result<()> {
        self.shared.publish(&mut self.shared.state(), publish)
    }

    fn unpublish(&self, publish: &Publish) -> Result<()> {
        let call = format!("taking back of port {}", publish.node_port);
        self.shared.unpublish(&mut self.shared.state(), publish).map_err(failed(call))
    }

    fn connection(&self, capsule: Uuid, handle: u32) -> Option<watch::Receiver<bool>> {
        Some(self.shared.state().attachments.get(&(capsule, handle))?.connected.subscribe())
    }

    fn counters(&self, capsule: Uuid, handle: u32) -> Result<Option<Counters>> {
        let name = match self.shared.state().attachments.get(&(capsule, handle)) {
            Some(Attached { name: Some(name), port: Some(_), .. }) => name.clone(),
            _ => return Ok(None),
        };
        let call = || failed(format!("reading of the counters of {name}"));
        let Some(link) = self.shared.route.link(&name).map_err(call())? else { return Ok(None) };
        let denied = self.shared.filter.denied(&name).map_err(call())?;
        // What dom0 receives from netback, the capsule has sent.
        Ok(Some(Counters {
            rx_bytes: link.bytes[1],
            rx_packets: link.packets[1],
            tx_bytes: link.bytes[0],
            tx_packets: link.packets[0],
            denied,
        }))
    }

    fn set_overlay(&self, overlay: &Overlay) -> Result<u16> {
        let call = format!("joining of the overlay as {}", overlay.address);
        self.shared.set_overlay(&mut self.shared.state(), overlay).map_err(failed(call))
    }

    fn set_remotes(&self, remotes: &[Remote]) -> Result<()> {
        let call = "setting of interfaces on other nodes";
        self.shared.set_remotes(&mut self.shared.state(), remotes).map_err(failed(call))
    }

    fn announce(&self, capsule: Uuid) -> Result<()> {
        let mut state = self.shared.state();
        let keys: Vec<_> = state.of(capsule).collect();
        let call = "taking over of frames for a capsule that has come";
        keys.into_iter().try_for_each(|key| self.shared.claim(&mut state, key)).map_err(failed(call))
    }

    fn retain(&self, wanted: &Wanted) -> Result<()> {
        let call = "removal of what an earlier daemon left in the network";
        self.shared.retain(&mut self.shared.state(), wanted).map_err(failed(call))
    }
}

impl State {
    /// Interfaces of a capsule.
    fn of(&self, capsule: Uuid) -> impl Iterator<Item = (Uuid, u32)> {
        self.attachments.range((capsule, 0)..=(capsule, u32::MAX)).map(|(key, _)| *key)
    }
}

#[cfg(test)]
mod tests;
