//! The networks of this node, and which capsule has what in them.
//!
//! A capsule's addresses are its own from when it is made until it is removed, and kept with it
//! ([`crate::store`]). A node's port is a capsule's while it runs.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex};

use fcap_api::{CreateNetwork, DEFAULT_NETWORK, MAX_NETWORK_NAME, OverlayEndpoint, OverlayUpdate};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use xen_proto::boot;

use super::endpoints::{Key, Table};
use super::ipam::{self, Pool, Subnet};
use super::{Attachment, Fabric, Network, Protocol, Publish, Remote, Wanted, overlay};
use crate::capsule::config::{Config, Interface, Port};
use crate::error::{Error, Result};
use crate::id::CapsuleId;
use crate::store::Store;

/// File of the state directory with the networks that people have made.
const FILE: &str = "networks.json";
/// Most networks of a node.
const MAX_NETWORKS: usize = 64;
/// Largest IP packet where nothing says otherwise: Ethernet's.
const DEFAULT_MTU: u16 = 1500;
/// The default network's number on the wire.
const DEFAULT_VNI: u32 = 1;
/// The least number on the wire of all other networks, and how many there are.
const VNIS: (u32, u32) = (1 << 12, (1 << 24) - (1 << 12));
/// Ports that are chosen from when none is asked for: below those that Linux gives to outgoing
/// connections, one of which may have it at the moment, on the node or on a local cloud's computer.
const PORTS: std::ops::RangeInclusive<u16> = 20000..=32767;
/// How many of them are tried.
const PORT_ATTEMPTS: usize = 32;
/// Second bytes of the subnets `10.N.0.0/16` that are chosen from.
const SUBNETS: std::ops::RangeInclusive<u8> = 100..=227;

/// A network that was made, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    name: String,
    subnet: Subnet,
    internal: bool,
}

impl Definition {
    fn default_network() -> Self {
        Self { name: DEFAULT_NETWORK.into(), subnet: Subnet::DEFAULT, internal: false }
    }

    fn is_default(&self) -> bool {
        self.name == DEFAULT_NETWORK
    }

    /// Number of the network on the wire. It follows from the name, so that nodes agree on it
    /// without asking each other.
    fn vni(&self) -> u32 {
        if self.is_default() { DEFAULT_VNI } else { VNIS.0 + hash(&self.name) % VNIS.1 }
    }

    fn prefix6(&self) -> Ipv6Addr {
        let vni = if self.is_default() { 0 } else { self.vni() };
        Ipv6Addr::new(0xfd88, 0, (vni >> 16) as u16, vni as u16, 0, 0, 0, 0)
    }

    fn network(&self, mtu: u16) -> Network {
        let vni = self.vni();
        let gateway = self.subnet.gateway();
        Network {
            name: self.name.clone(),
            bridge: if self.is_default() { "fcap0".into() } else { format!("fcap-{vni:06x}") },
            vni,
            gateway4: (gateway, self.subnet.prefix()),
            gateway6: (Ipv6Addr::from(u128::from(self.prefix6()) | 1), 64),
            gateway_mac: ipam::mac(gateway),
            mtu,
            outbound: !self.internal,
        }
    }
}

fn hash(text: &str) -> u32 {
    let digest: [u8; 32] = Sha256::digest(text).into();
    u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]])
}

/// What is kept of the node's networks.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Saved {
    networks: Vec<Definition>,
    /// Addresses of this node's slices that capsules have taken to other nodes.
    #[serde(default)]
    away: Vec<(CapsuleId, String, Ipv4Addr)>,
}

/// The networks of this node.
pub struct Networks {
    fabric: Arc<dyn Fabric>,
    state: Mutex<State>,
    /// Held while it is said which endpoints are elsewhere, so that the last word is the newest.
    telling: Mutex<()>,
    /// Tells that endpoints of this node have changed.
    own: watch::Sender<()>,
    /// The networks, for those who serve in each of them.
    all: watch::Sender<Vec<Network>>,
}

struct State {
    index: u16,
    mtu: u16,
    networks: BTreeMap<String, Known>,
    ports: BTreeMap<(Protocol, u16), Claim>,
    endpoints: Table,
    away: BTreeMap<Key, Ipv4Addr>,
    /// The node's address on the wire between nodes.
    wire: Option<Ipv4Addr>,
}

struct Known {
    definition: Definition,
    pool: Pool,
}

/// A port of the node that a capsule has.
struct Claim {
    capsule: CapsuleId,
    publish: Publish,
}

impl State {
    fn known(&self, name: &str) -> Result<&Known> {
        self.networks.get(name).ok_or_else(|| no_such(name))
    }

    fn saved(&self) -> Saved {
        let definitions = self.networks.values().map(|known| known.definition.clone());
        Saved {
            networks: definitions.filter(|definition| !definition.is_default()).collect(),
            away: self.away.iter().map(|((id, network), ipv4)| (*id, network.clone(), *ipv4)).collect(),
        }
    }

    fn networks(&self) -> Vec<Network> {
        self.networks.values().map(|known| known.definition.network(self.mtu)).collect()
    }

    fn add(&mut self, definition: Definition) {
        let pool = Pool::new(definition.subnet);
        self.networks.insert(definition.name.clone(), Known { definition, pool });
    }

    fn endpoint(&self, config: &Config, interface: &Interface) -> Option<OverlayEndpoint> {
        let known = self.networks.get(&interface.network)?;
        Some(OverlayEndpoint {
            capsule: config.id.to_string(),
            name: config.name.clone(),
            network: interface.network.clone(),
            ipv4: interface.ipv4,
            ipv6: ipam::ipv6(known.definition.prefix6(), interface.ipv4),
            created_ms: config.created_ms,
            generation: config.generation,
            up: false,
        })
    }

    fn enter(&mut self, config: &Config) {
        for interface in &config.networks {
            if let Some(known) = self.networks.get_mut(&interface.network) {
                known.pool.reserve(interface.ipv4);
            }
            if let Some(endpoint) = self.endpoint(config, interface) {
                self.endpoints.set_own(config.id, endpoint);
            }
        }
    }

    /// Whether what another node says of an endpoint can be true here.
    fn is_sound(networks: &BTreeMap<String, Known>, endpoint: &OverlayEndpoint) -> bool {
        let fits = |known: &Known| {
            let definition = &known.definition;
            definition.subnet.contains(endpoint.ipv4)
                && endpoint.ipv4 != definition.subnet.gateway()
                && endpoint.ipv6 == ipam::ipv6(definition.prefix6(), endpoint.ipv4)
        };
        // One of a network that this node has not got is kept for when it gets it.
        crate::names::check(&endpoint.name).is_ok()
            && check_name(&endpoint.network).is_ok()
            && networks.get(&endpoint.network).is_none_or(fits)
    }
}

fn no_such(name: &str) -> Error {
    Error::NoSuchNetwork(crate::names::printable(name, 80))
}

/// Checks the name of a network.
fn check_name(name: &str) -> Result<()> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.len() > MAX_NETWORK_NAME
        || !name.starts_with(|c: char| c.is_ascii_lowercase())
        || !name.chars().all(inner)
    {
        return Err(Error::BadRequest(format!(
            "a network's name is a lower-case letter, then lower-case letters, digits and '-', \
             at most {MAX_NETWORK_NAME}"
        )));
    }
    Ok(())
}

impl Networks {
    /// The networks that were kept, none of them in dom0 yet; capsules that are taken back have
    /// addresses of the place that the node has had among others.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn load(fabric: Arc<dyn Fabric>, store: &Store) -> std::io::Result<Self> {
        let saved: Saved = store.read_own(FILE)?.unwrap_or_default();
        let mut state = State {
            index: overlay::kept(store).ok().flatten().map_or(1, |overlay| overlay.index),
            mtu: DEFAULT_MTU,
            networks: BTreeMap::new(),
            ports: BTreeMap::new(),
            endpoints: Table::default(),
            away: BTreeMap::new(),
            wire: None,
        };
        for definition in std::iter::once(Definition::default_network()).chain(saved.networks) {
            state.add(definition);
        }
        for (id, network, ipv4) in saved.away {
            if let Some(known) = state.networks.get_mut(&network) {
                known.pool.reserve(ipv4);
                state.away.insert((id, network), ipv4);
            }
        }
        Ok(Self {
            fabric,
            state: Mutex::new(state),
            telling: Mutex::default(),
            own: watch::Sender::new(()),
            all: watch::Sender::new(Vec::new()),
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap())
    }

    /// Makes all networks in dom0, where they are not there already. One that cannot be made
    /// keeps nobody from using the others.
    pub fn ensure(&self) {
        let networks = self.with(|state| state.networks());
        let made = networks.into_iter().filter(|network| match self.fabric.ensure(network) {
            Ok(()) => true,
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(network = %network.name, %error, cause, "a network cannot be made");
                false
            }
        });
        let made = made.collect();
        self.all.send_replace(made);
    }

    /// The networks that are there, as they come and go.
    pub fn watch(&self) -> watch::Receiver<Vec<Network>> {
        self.all.subscribe()
    }

    /// Removes from dom0 what nobody has asked for, after [`Self::resume`] of all that runs.
    pub fn retain(&self, running: impl IntoIterator<Item = (CapsuleId, usize)>) {
        let attachments = running
            .into_iter()
            .flat_map(|(id, count)| (0..count as u32).map(move |handle| (id.0, handle)))
            .collect();
        let wanted = self.with(|state| Wanted {
            networks: state.networks.keys().cloned().collect(),
            attachments,
            published: state.ports.values().map(|claim| claim.publish).collect(),
        });
        if let Err(error) = self.fabric.retain(&wanted) {
            tracing::error!(%error, "what an earlier daemon left in the network stays");
        }
    }

    // Networks.

    /// All networks, by name.
    pub fn list(&self) -> Vec<fcap_api::Network> {
        self.with(|state| state.networks.values().map(|known| show(state, known)).collect())
    }

    /// One network.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn get(&self, name: &str) -> Result<fcap_api::Network> {
        self.with(|state| state.known(name).map(|known| show(state, known)))
    }

    /// Makes a network.
    ///
    /// # Errors
    /// When its name or subnet is bad or taken, or dom0 refuses.
    pub fn create(&self, store: &Store, request: &CreateNetwork) -> Result<fcap_api::Network> {
        check_name(&request.name)?;
        if request.name == "none" {
            return Err(Error::BadRequest("\"none\" stands for no network; choose another name".into()));
        }
        let asked: Option<Subnet> = match &request.subnet {
            Some(text) => Some(text.parse().map_err(|error: ipam::BadSubnet| {
                Error::BadRequest(format!("{}: {error}", crate::names::printable(text, 40)))
            })?),
            None => None,
        };
        let network = self.with(|state| {
            if state.networks.contains_key(&request.name) {
                return Err(Error::WrongState(format!("there is a network {} already", request.name)));
            }
            if state.networks.len() >= MAX_NETWORKS {
                return Err(Error::TooLarge(format!(
                    "the node has {MAX_NETWORKS} networks, that is the most it takes; remove one that is not used"
                )));
            }
            let subnet = match asked {
                Some(subnet) => check_subnet(state, subnet).map(|()| subnet)?,
                None => free_subnet(state, &request.name)?,
            };
            let definition = Definition { name: request.name.clone(), subnet, internal: request.internal };
            if let Some(other) =
                state.networks.values().find(|known| known.definition.vni() == definition.vni())
            {
                return Err(Error::BadRequest(format!(
                    "the name {} has the same number on the wire as network {}; choose another name",
                    request.name, other.definition.name
                )));
            }
            let network = definition.network(state.mtu);
            state.add(definition);
            Ok(network)
        })?;
        let made = self.fabric.ensure(&network).map_err(Error::from);
        let kept = made.and_then(|()| store.write_own(FILE, &self.with(|state| state.saved())));
        if let Err(error) = kept {
            self.with(|state| state.networks.remove(&request.name));
            let _ = self.fabric.remove(&request.name);
            return Err(error);
        }
        self.all.send_modify(|networks| networks.push(network));
        // Other nodes may have told of capsules in it before.
        self.tell_elsewhere();
        self.get(&request.name)
    }

    /// Removes a network that no capsule is in.
    ///
    /// # Errors
    /// When there is none of this name, or it is in use, or dom0 refuses.
    pub fn remove(&self, store: &Store, name: &str) -> Result<()> {
        let removed = self.with(|state| {
            let known = state.known(name)?;
            if known.definition.is_default() {
                return Err(Error::NetworkInUse(format!("network {name} is every node's; it stays")));
            }
            let capsules = count(state, name);
            if capsules > 0 {
                return Err(Error::NetworkInUse(format!(
                    "network {name} is in use by capsules of this node ({capsules}); remove them first"
                )));
            }
            Ok(state.networks.remove(name))
        })?;
        let gone = self.fabric.remove(name).map_err(Error::from);
        let kept = gone.and_then(|()| store.write_own(FILE, &self.with(|state| state.saved())));
        if kept.is_err()
            && let Some(known) = removed
        {
            self.with(|state| state.networks.insert(name.to_owned(), known));
            return kept;
        }
        self.all.send_modify(|networks| networks.retain(|network| network.name != name));
        self.tell_elsewhere();
        kept
    }

    // Addresses.

    /// Gives a new capsule an address in each of these networks; it may want ports `published`.
    ///
    /// # Errors
    /// When a network is not there, has no address left, or may not be reached from outside; then
    /// no address is given.
    pub fn allocate(&self, names: &[String], published: bool) -> Result<Vec<Interface>> {
        self.with(|state| {
            if let Some(first) = names.first().filter(|_| published)
                && state.known(first)?.definition.internal
            {
                return Err(Error::BadRequest(format!(
                    "ports lead to a capsule through its first network, and {first} is internal; put \
                     another one first"
                )));
            }
            let mut given: Vec<Interface> = Vec::new();
            let allocated = names.iter().try_for_each(|name| {
                let State { networks, endpoints, index, .. } = state;
                let known = networks.get_mut(name).ok_or_else(|| no_such(name))?;
                let taken = |address| endpoints.is_used_elsewhere(name, address);
                let ipv4 = known.pool.allocate(*index, taken).ok_or_else(|| no_address(known, *index))?;
                given.push(Interface { network: name.clone(), ipv4 });
                Ok(())
            });
            if allocated.is_err() {
                release(state, &given);
            }
            allocated.map(|()| given)
        })
    }

    /// Gives addresses out once more that a capsule had when it was saved.
    ///
    /// # Errors
    /// When another capsule has one of them by now, or its network is not here; then none is given.
    pub fn allocate_again(&self, interfaces: &[Interface]) -> Result<()> {
        self.with(|state| {
            for Interface { network, ipv4 } in interfaces {
                let known = state.known(network)?;
                let subnet = known.definition.subnet;
                let taken = known.pool.is_used(*ipv4) || state.endpoints.is_used_elsewhere(network, *ipv4);
                if taken || !subnet.contains(*ipv4) || *ipv4 == subnet.gateway() {
                    return Err(Error::NoAddress(format!(
                        "its address {ipv4} in network {network} is not free any more; give it a name of \
                         its own, and it gets an address of its own with it"
                    )));
                }
            }
            for Interface { network, ipv4 } in interfaces {
                if let Some(known) = state.networks.get_mut(network) {
                    known.pool.reserve(*ipv4);
                }
            }
            Ok(())
        })
    }

    /// Takes addresses back that [`Self::allocate`] gave.
    pub fn release(&self, interfaces: &[Interface]) {
        self.with(|state| release(state, interfaces));
    }

    /// Takes note of a capsule that is there, or has changed its name.
    pub fn enter(&self, config: &Config) {
        if config.networks.is_empty() {
            return;
        }
        self.with(|state| {
            let key = config.networks.first().map(|first| (config.id, first.network.clone()));
            let up = key.and_then(|key| state.endpoints.own().get(&key)).is_some_and(|it| it.up);
            state.enter(config);
            state.endpoints.change_own(config.id, |it| it.up = up);
        });
        self.own.send_replace(());
    }

    /// Forgets a capsule that is gone, and takes its addresses back.
    pub fn forget(&self, config: &Config) {
        if config.networks.is_empty() {
            return;
        }
        self.with(|state| {
            state.endpoints.remove_own(config.id);
            release(state, &config.networks);
        });
        self.own.send_replace(());
    }

    /// Refuses a name that a capsule of another node has, as far as this node knows.
    ///
    /// # Errors
    /// [`Error::NameTaken`].
    pub fn check_name(&self, name: &str) -> Result<()> {
        match self.with(|state| state.endpoints.name_elsewhere(name)) {
            Some((owner, node)) => {
                Err(Error::NameTaken { name: name.to_owned(), owner: format!("{owner} on node {node}") })
            }
            None => Ok(()),
        }
    }

    // A capsule's interfaces.

    /// A capsule's places in networks, as the API shows them.
    pub fn endpoints(&self, interfaces: &[Interface]) -> Vec<fcap_api::Endpoint> {
        self.with(|state| {
            let show = |interface: &Interface| {
                let known = state.networks.get(&interface.network)?;
                Some(fcap_api::Endpoint {
                    network: interface.network.clone(),
                    mac: ipam::mac_text(ipam::mac(interface.ipv4)),
                    ipv4: interface.ipv4,
                    ipv6: ipam::ipv6(known.definition.prefix6(), interface.ipv4),
                })
            };
            interfaces.iter().filter_map(show).collect()
        })
    }

    /// What a capsule is told of its interfaces.
    ///
    /// # Errors
    /// When one of its networks is not there.
    pub fn boot_records(&self, interfaces: &[Interface]) -> Result<Vec<boot::Net>> {
        self.with(|state| {
            let record = |interface: &Interface| {
                let definition = &state.known(&interface.network)?.definition;
                let network = definition.network(state.mtu);
                let (gateway4, prefix4) = network.gateway4;
                let (gateway6, prefix6) = network.gateway6;
                Ok(boot::Net {
                    mac: ipam::mac(interface.ipv4),
                    mtu: network.mtu,
                    ipv4: interface.ipv4.octets(),
                    gateway4: gateway4.octets(),
                    dns4: gateway4.octets(),
                    prefix4,
                    prefix6,
                    ipv6: ipam::ipv6(definition.prefix6(), interface.ipv4).octets(),
                    gateway6: gateway6.octets(),
                    dns6: gateway6.octets(),
                })
            };
            interfaces.iter().map(record).collect()
        })
    }

    /// Lets the node's ports lead to a capsule that is about to start. Where the choice is this
    /// node's, another port is taken in place of one that is not free any more.
    ///
    /// # Errors
    /// When a port is taken; `owner` names the capsule that has it. Then none leads anywhere.
    pub fn publish(&self, config: &Config, owner: impl Fn(CapsuleId) -> Option<String>) -> Result<Vec<Port>> {
        let Some(first) = config.networks.first() else { return Ok(Vec::new()) };
        let mut ports = config.ports.clone();
        for port in &mut ports {
            if let Err(error) = self.publish_one(config.id, first.ipv4, port, &owner) {
                self.unpublish(config.id);
                return Err(error);
            }
        }
        Ok(ports)
    }

    fn publish_one(
        &self,
        id: CapsuleId,
        ipv4: Ipv4Addr,
        port: &mut Port,
        owner: &impl Fn(CapsuleId) -> Option<String>,
    ) -> Result<()> {
        let attempts = if port.chosen { PORT_ATTEMPTS } else { 1 };
        let mut refused = None;
        for attempt in 0..attempts {
            if port.chosen && (port.host_port == 0 || attempt > 0) {
                port.host_port = random_port();
            }
            let publish =
                Publish { protocol: port.protocol, node_port: port.host_port, ipv4, port: port.port };
            let key = (port.protocol, port.host_port);
            let other = self.with(|state| match state.ports.get(&key) {
                Some(claim) if claim.capsule == id && claim.publish == publish => None,
                Some(claim) => Some(claim.capsule),
                None => {
                    state.ports.insert(key, Claim { capsule: id, publish });
                    None
                }
            });
            if let Some(other) = other {
                let name = owner(other).unwrap_or_else(|| other.to_string());
                refused = Some(Error::PortTaken(format!(
                    "port {}/{} of the node leads to capsule {name} already; stop that one, or \
                     publish another port",
                    port.host_port, port.protocol
                )));
                continue;
            }
            match self.fabric.publish(&publish) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    self.with(|state| state.ports.remove(&key));
                    if !matches!(error, super::Error::PortTaken { .. }) {
                        return Err(error.into());
                    }
                    refused = Some(Error::from(error));
                }
            }
        }
        Err(refused.unwrap_or_else(|| Error::PortTaken("no port of the node is free".into())))
    }

    /// Takes a capsule's ports back; a failure is reported in the log.
    pub fn unpublish(&self, id: CapsuleId) {
        let claims: Vec<Claim> = self.with(|state| {
            state.ports.extract_if(.., |_, claim| claim.capsule == id).map(|(_, claim)| claim).collect()
        });
        for claim in claims {
            if let Err(error) = self.fabric.unpublish(&claim.publish) {
                tracing::error!(capsule = %id, %error, "a port of an ended capsule is left behind");
            }
        }
    }

    /// Admits a capsule's interfaces to its networks, before its domain is built.
    ///
    /// # Errors
    /// When dom0 refuses; then none is admitted.
    pub fn attach(&self, config: &Config) -> Result<()> {
        for (handle, interface) in (0u32..).zip(&config.networks) {
            let prefix6 =
                self.with(|state| state.known(&interface.network).map(|it| it.definition.prefix6()))?;
            let attachment = Attachment {
                capsule: config.id.0,
                handle,
                network: interface.network.clone(),
                mac: ipam::mac(interface.ipv4),
                ipv4: interface.ipv4,
                ipv6: ipam::ipv6(prefix6, interface.ipv4),
            };
            if let Err(error) = self.fabric.attach(&attachment) {
                self.detach(config);
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Says which domain is the capsule's.
    ///
    /// # Errors
    /// When dom0 refuses.
    pub fn place(&self, config: &Config, domid: u32) -> Result<()> {
        if config.networks.is_empty() {
            return Ok(());
        }
        self.fabric.place(config.id.0, domid)?;
        self.set_up(config.id, true);
        Ok(())
    }

    /// Waits until all interfaces of a capsule carry frames. Returns at once when they are taken
    /// from it, which is at its end.
    pub async fn connected(&self, config: &Config) {
        for handle in 0..config.networks.len() as u32 {
            if let Some(mut connection) = self.fabric.connection(config.id.0, handle) {
                // Fails when the interface goes.
                let _ = connection.wait_for(|&connected| connected).await;
            }
        }
    }

    /// Takes back what [`Self::attach`] and [`Self::place`] did; a failure is reported in the log.
    pub fn detach(&self, config: &Config) {
        if config.networks.is_empty() {
            return;
        }
        self.set_up(config.id, false);
        if let Err(error) = self.fabric.detach(config.id.0) {
            tracing::error!(capsule = %config.id, %error, "interfaces of an ended capsule are left behind");
        }
    }

    fn set_up(&self, id: CapsuleId, up: bool) {
        self.with(|state| state.endpoints.change_own(id, |it| it.up = up));
        self.own.send_replace(());
    }

    /// Says again what holds for a capsule that an earlier daemon started. What fails is
    /// reported in the log: the capsule runs on.
    pub fn resume(&self, config: &Config, domid: u32) {
        let published = self.publish(config, |_| None).map(drop);
        let attached = self.attach(config).and_then(|()| self.place(config, domid));
        for error in [published, attached].into_iter().filter_map(Result::err) {
            tracing::error!(capsule = %config.id, error = ?error.body().message, "its network is not whole");
        }
    }

    /// What went through a capsule's interfaces, all together; `None` when it has none.
    pub fn counters(&self, id: CapsuleId, interfaces: usize) -> Option<fcap_api::NetStats> {
        let mut sum = None;
        for handle in 0..interfaces as u32 {
            match self.fabric.counters(id.0, handle) {
                Ok(Some(counters)) => {
                    let sum: &mut fcap_api::NetStats = sum.get_or_insert_default();
                    sum.rx_bytes += counters.rx_bytes;
                    sum.rx_packets += counters.rx_packets;
                    sum.tx_bytes += counters.tx_bytes;
                    sum.tx_packets += counters.tx_packets;
                    sum.denied += counters.denied;
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(capsule = %id, %error, "no figures of an interface"),
            }
        }
        sum
    }

    // Names.

    /// The addresses of the capsule that bears a name in a network.
    pub fn named(&self, network: &str, name: &str) -> Option<(Ipv4Addr, Ipv6Addr)> {
        self.with(|state| state.endpoints.named(network, name).map(|it| (it.ipv4, it.ipv6)))
    }

    /// The name of the capsule that has an address in a network.
    pub fn addressed(&self, network: &str, address: IpAddr) -> Option<String> {
        self.with(|state| state.endpoints.addressed(network, address).map(|it| it.name.clone()))
    }

    // Other nodes.

    /// Tells the fabric which endpoints are elsewhere.
    fn tell_elsewhere(&self) {
        let _order = self.telling.lock().unwrap();
        let remotes: Vec<Remote> = self.with(|state| {
            let here = |network: &String| state.networks.contains_key(network);
            let elsewhere = state.endpoints.elsewhere().filter(|(it, _)| here(&it.network));
            let remote = |(it, node): (&OverlayEndpoint, Ipv4Addr)| Remote {
                network: it.network.clone(),
                mac: ipam::mac(it.ipv4),
                ipv4: it.ipv4,
                ipv6: it.ipv6,
                node,
            };
            elsewhere.map(remote).collect()
        });
        if let Err(error) = self.fabric.set_remotes(&remotes) {
            tracing::error!(%error, "dom0 does not learn where capsules of other nodes are");
        }
    }

    /// Tells when endpoints of this node change.
    pub(super) fn watch_own(&self) -> watch::Receiver<()> {
        self.own.subscribe()
    }

    /// The endpoints of this node.
    pub(super) fn own_endpoints(&self) -> BTreeMap<Key, OverlayEndpoint> {
        self.with(|state| state.endpoints.own().clone())
    }

    /// What is known of the other nodes.
    pub(super) fn peers(&self) -> (u16, Vec<fcap_api::PeerStatus>) {
        self.with(|state| (state.mtu, state.endpoints.peers()))
    }

    /// Takes another place among other nodes.
    ///
    /// # Errors
    /// When capsules of this node have addresses of the place that it had, or dom0 refuses.
    pub(super) fn join(
        &self,
        index: u16,
        peers: &[fcap_api::OverlayPeer],
        overlay: &super::Overlay,
    ) -> Result<()> {
        self.with(|state| {
            let stays = |known: &Known| {
                let subnet = known.definition.subnet;
                known.pool.used().any(|address| subnet.is_in_slice(address, state.index))
            };
            if index != state.index && state.networks.values().any(stays) {
                return Err(Error::WrongState(format!(
                    "capsules of this node have addresses that belong to node number {}; remove them \
                     before the node gets another number",
                    state.index
                )));
            }
            Ok(())
        })?;
        let mtu = self.fabric.set_overlay(overlay)?;
        let changed = self.with(|state| {
            state.index = index;
            state.wire = Some(overlay.address);
            state.endpoints.set_peers(index, peers);
            let mtu = if peers.is_empty() { DEFAULT_MTU } else { mtu };
            std::mem::replace(&mut state.mtu, mtu) != mtu
        });
        if changed {
            self.ensure();
        }
        self.tell_elsewhere();
        Ok(())
    }

    /// Takes in what another node tells of its endpoints.
    pub(super) fn hear(&self, store: &Store, peer: &str, update: OverlayUpdate) {
        let returned = self.with(|state| {
            let State { networks, endpoints, away, .. } = state;
            endpoints.apply(peer, update, |it| State::is_sound(networks, it));
            if !endpoints.hears_all() {
                return false;
            }
            // Nobody has them any more: their capsules were removed where they went.
            let before = away.len();
            away.retain(|key, ipv4| {
                let stays = endpoints.is_elsewhere(key);
                if let Some(known) = networks.get_mut(&key.1).filter(|_| !stays) {
                    known.pool.release(*ipv4);
                }
                stays
            });
            away.len() != before
        });
        if returned {
            self.save(store);
        }
        self.tell_elsewhere();
    }

    /// Notes that another node cannot be heard.
    pub(super) fn lost(&self, peer: &str) {
        self.with(|state| state.endpoints.lost(peer));
    }

    fn save(&self, store: &Store) {
        if let Err(error) = store.write_own(FILE, &self.with(|state| state.saved())) {
            tracing::error!(%error, "the networks are not kept");
        }
    }

    /// Says that a capsule has gone to another node of the overlay: from now on its packets go
    /// there, and its addresses stay its own. The caller has taken it off this node, or is about
    /// to; afterwards nothing here is in its name.
    pub fn depart(&self, store: &Store, config: &Config, node: &str) {
        self.unpublish(config.id);
        self.with(|state| {
            for mut endpoint in state.endpoints.remove_own(config.id) {
                endpoint.generation += 1;
                endpoint.up = true;
                let ours = state
                    .networks
                    .get(&endpoint.network)
                    .is_some_and(|known| known.definition.subnet.is_in_slice(endpoint.ipv4, state.index));
                if ours {
                    state.away.insert((config.id, endpoint.network.clone()), endpoint.ipv4);
                } else if let Some(known) = state.networks.get_mut(&endpoint.network) {
                    known.pool.release(endpoint.ipv4);
                }
                state.endpoints.place(node, config.id, endpoint);
            }
        });
        self.save(store);
        if let Err(error) = self.fabric.detach(config.id.0) {
            tracing::error!(capsule = %config.id, %error, "interfaces of a capsule that moved are left behind");
        }
        self.own.send_replace(());
        self.tell_elsewhere();
    }

    /// Says that a capsule has come from another node and runs here, in the domain that
    /// [`Self::place`] named; its `generation` is one more than it was there. Everybody is told.
    pub fn arrive(&self, store: &Store, config: &Config) {
        self.with(|state| {
            config.networks.iter().for_each(|it| {
                state.away.remove(&(config.id, it.network.clone()));
            });
            state.enter(config);
            state.endpoints.change_own(config.id, |it| it.up = true);
        });
        self.save(store);
        self.own.send_replace(());
        self.tell_elsewhere();
        if let Err(error) = self.fabric.announce(config.id.0) {
            tracing::warn!(capsule = %config.id, %error, "its neighbours do not learn at once that it moved");
        }
    }
}

fn count(state: &State, network: &str) -> u32 {
    let capsules = state.endpoints.own().keys().filter(|(_, name)| name == network).count();
    u32::try_from(capsules).unwrap_or(u32::MAX)
}

fn show(state: &State, known: &Known) -> fcap_api::Network {
    let network = known.definition.network(state.mtu);
    fcap_api::Network {
        subnet4: known.definition.subnet.to_string(),
        gateway4: network.gateway4.0,
        subnet6: format!("{}/{}", known.definition.prefix6(), network.gateway6.1),
        gateway6: network.gateway6.0,
        mtu: network.mtu,
        capsules: count(state, &network.name),
        outbound: network.outbound,
        name: network.name,
    }
}

fn release(state: &mut State, interfaces: &[Interface]) {
    for interface in interfaces {
        if let Some(known) = state.networks.get_mut(&interface.network) {
            known.pool.release(interface.ipv4);
        }
    }
}

fn no_address(known: &Known, index: u16) -> Error {
    let Definition { name, subnet, .. } = &known.definition;
    let last = subnet.last_slice();
    if u32::from(index) > last {
        return Error::NoAddress(format!(
            "network {name} ({subnet}) has addresses for nodes 1 to {last} and this is node {index}; \
             make a larger network"
        ));
    }
    Error::NoAddress(format!(
        "network {name} ({subnet}) has no address left for this node; remove capsules that are not \
         needed, or make another network"
    ))
}

fn check_subnet(state: &State, subnet: Subnet) -> Result<()> {
    if let Some(other) = state.networks.values().find(|known| known.definition.subnet.overlaps(subnet)) {
        let Definition { name, subnet: theirs, .. } = &other.definition;
        return Err(Error::BadRequest(format!(
            "{subnet} has addresses of network {name} ({theirs}) in it; choose another subnet"
        )));
    }
    if state.wire.is_some_and(|address| subnet.contains(address)) {
        return Err(Error::BadRequest(format!(
            "{subnet} has this node's own address in it; choose another subnet"
        )));
    }
    Ok(())
}

/// A subnet that is free here; nodes that have the same networks choose the same one.
fn free_subnet(state: &State, name: &str) -> Result<Subnet> {
    let all: Vec<u8> = SUBNETS.collect();
    let start = hash(name) as usize % all.len();
    let subnets = all[start..].iter().chain(&all[..start]).map(|&second| Subnet::ten(second));
    let free = subnets.into_iter().find(|&subnet| check_subnet(state, subnet).is_ok());
    free.ok_or_else(|| Error::NoAddress("no subnet is free; name one".into()))
}

fn random_port() -> u16 {
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes).expect("the kernel gives randomness");
    let count = PORTS.end() - PORTS.start() + 1;
    PORTS.start() + u16::from_le_bytes(bytes) % count
}

#[cfg(test)]
mod tests {
    use fcap_api::OverlayPeer;
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::sim::Sim;
    use super::super::{Overlay, Peer};
    use super::*;

    /// A node with a network in memory.
    struct Node {
        fabric: Arc<Sim>,
        store: Store,
        networks: Networks,
        _directory: tempfile::TempDir,
    }

    /// Node 1 or 2 of two.
    fn node(index: u8) -> Node {
        let (directory, fabric) = (tempfile::tempdir().unwrap(), Arc::<Sim>::default());
        let store = Store::open(directory.path()).unwrap();
        let networks = Networks::load(fabric.clone(), &store).unwrap();
        networks.ensure();
        let node = Node { fabric, store, networks, _directory: directory };
        node.join(index);
        node
    }

    impl Node {
        fn join(&self, index: u8) {
            let other = 3 - index;
            let address = Ipv4Addr::from([10, 99, 0, other]);
            let peer = OverlayPeer { name: format!("node{other}"), address, index: other.into(), url: None };
            let overlay = Overlay {
                address: Ipv4Addr::from([10, 99, 0, index]),
                peers: vec![Peer { address, public_key: None }],
                private_key: None,
            };
            self.networks.join(index.into(), &[peer], &overlay).unwrap();
        }

        fn capsule(&self, byte: u8, generation: u64) -> Config {
            let mut config = config(byte, generation);
            config.networks = self.networks.allocate(&[DEFAULT_NETWORK.into()], false).unwrap();
            self.networks.enter(&config);
            config
        }

        fn run(&self, config: &Config) {
            self.networks.attach(config).unwrap();
            self.networks.place(config, 7).unwrap();
        }

        /// Hears everything from the other one.
        fn hear(&self, from: &Node, name: &str) {
            let set = from.networks.own_endpoints().into_values().collect();
            self.networks.hear(&self.store, name, OverlayUpdate { all: true, set, gone: Vec::new() });
        }

        fn remotes(&self) -> Vec<Ipv4Addr> {
            self.fabric.with(|state| state.remotes.iter().map(|remote| remote.ipv4).collect())
        }
    }

    fn config(byte: u8, generation: u64) -> Config {
        serde_json::from_value(json!({
            "id": CapsuleId([byte; 16]), "name": format!("c{byte}"), "image": "sha256:0",
            "image_name": "i", "kind": "capsule", "args": [], "env": {}, "labels": {},
            "memory_kib": 512, "vcpus": 1, "cpu_cap": 0, "weight": 256, "restart": "no",
            "remove": false, "stdin": false, "initrd": null, "append": null, "created_ms": byte,
            "generation": generation
        }))
        .unwrap()
    }

    #[test]
    fn a_daemon_takes_its_place_again_with_capsules_of_other_places() {
        let (one, two) = (node(1), node(2));
        let capsule = one.capsule(1, 0);
        let joined: fcap_api::Overlay = serde_json::from_value(json!({
            "index": 2, "address": "10.99.0.2", "peers": [], "secret": "0123456789abcdef", "encrypt": false
        }))
        .unwrap();
        two.store.write_own("overlay.json", &joined).unwrap();

        let again = Networks::load(two.fabric.clone(), &two.store).unwrap();
        again.enter(&Config { generation: 1, ..capsule });
        let again = Node { networks: again, ..two };
        again.join(2);
        again.capsule(2, 0);
        let wire = Overlay { address: [10, 99, 0, 1].into(), peers: Vec::new(), private_key: None };
        let error = again.networks.join(1, &[], &wire).unwrap_err();
        assert!(error.to_string().contains("node number 2"), "{error}");
    }

    #[test]
    fn an_address_is_given_out_once_more_only_while_it_is_free() {
        let (one, two) = (node(1), node(2));
        let capsule = one.capsule(1, 0);
        two.hear(&one, "node1");
        for node in [&one, &two] {
            let error = node.networks.allocate_again(&capsule.networks).unwrap_err();
            assert!(error.to_string().contains(&capsule.networks[0].ipv4.to_string()), "{error}");
        }
        one.networks.forget(&capsule);
        two.hear(&one, "node1");
        two.networks.allocate_again(&capsule.networks).unwrap();
        assert!(two.networks.allocate_again(&capsule.networks).is_err());
        two.networks.release(&capsule.networks);
        let network = DEFAULT_NETWORK.to_owned();
        for bad in [[192, 168, 0, 1], [10, 88, 0, 1]] {
            let interface = Interface { network: network.clone(), ipv4: bad.into() };
            assert!(two.networks.allocate_again(&[interface]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_capsule_that_moves_keeps_its_address_and_everybody_learns_at_once() {
        let (one, two) = (node(1), node(2));
        let before = one.capsule(1, 0);
        one.run(&before);
        two.hear(&one, "node1");
        let address = before.networks[0].ipv4;
        assert_eq!(two.remotes(), [address]);

        // It runs there before it goes from here, and nobody is in doubt.
        let after = Config { generation: 1, ..before.clone() };
        two.networks.enter(&after);
        two.run(&after);
        two.networks.arrive(&two.store, &after);
        assert_eq!(two.remotes(), [Ipv4Addr::UNSPECIFIED; 0]);
        assert_eq!(two.fabric.with(|state| state.announced.clone()), [after.id.0]);
        one.networks.depart(&one.store, &before, "node2");
        assert_eq!(one.remotes(), [address]);
        assert!(one.fabric.with(|state| state.attachments.is_empty()));
        one.hear(&two, "node2");
        assert_eq!(one.remotes(), [address]);
        for node in [&one, &two] {
            assert_eq!(node.networks.named(DEFAULT_NETWORK, "C1").map(|(v4, _)| v4), Some(address));
            let name = node.networks.addressed(DEFAULT_NETWORK, address.into());
            assert_eq!(name.as_deref(), Some("c1"));
        }

        // The address stays its own where it came from, also for a new daemon.
        let others = |networks: &Networks| -> usize {
            let names = [DEFAULT_NETWORK.to_owned()];
            let given: Vec<_> =
                std::iter::from_fn(|| networks.allocate(&names, false).ok()).flatten().collect();
            assert!(given.iter().all(|it| it.ipv4 != address));
            networks.release(&given);
            given.len()
        };
        assert_eq!(others(&one.networks), 253);
        let again = Networks::load(one.fabric.clone(), &one.store).unwrap();
        assert_eq!(others(&again), 253);

        // Once it has been removed there, the address is free here.
        two.networks.detach(&after);
        one.hear(&two, "node2");
        assert_eq!((one.remotes().len(), others(&one.networks)), (0, 253));
        two.networks.forget(&after);
        one.hear(&two, "node2");
        let free = one.networks.allocate(&[DEFAULT_NETWORK.into()], false).unwrap();
        one.networks.release(&free);
        let again = Networks::load(one.fabric.clone(), &one.store).unwrap();
        let given: Vec<_> =
            std::iter::from_fn(|| again.allocate(&[DEFAULT_NETWORK.into()], false).ok()).flatten().collect();
        assert_eq!(given.len(), 254);
    }

    #[test]
    fn a_capsule_that_comes_back_has_its_address_still() {
        let (one, two) = (node(1), node(2));
        let mut config = one.capsule(1, 0);
        one.run(&config);
        for generation in 1..5 {
            let (from, to, name) =
                if generation % 2 == 1 { (&one, &two, "node2") } else { (&two, &one, "node1") };
            let before = config.clone();
            config.generation = generation;
            to.networks.enter(&config);
            to.run(&config);
            to.networks.arrive(&to.store, &config);
            from.networks.depart(&from.store, &before, name);
            from.hear(to, name);
            to.hear(from, if name == "node2" { "node1" } else { "node2" });
            assert_eq!((from.remotes().len(), to.remotes().len()), (1, 0), "{generation}");
        }
        assert_eq!(one.networks.get(DEFAULT_NETWORK).unwrap().capsules, 1);
    }

    #[test]
    fn names_make_numbers_and_bridges_that_linux_takes() {
        for name in ["a", "back", "n-1", &"x".repeat(MAX_NETWORK_NAME)] {
            assert!(check_name(name).is_ok());
            let definition = Definition { name: name.into(), subnet: Subnet::ten(9), internal: false };
            let network = definition.network(DEFAULT_MTU);
            assert!(network.bridge.len() <= 15, "{}", network.bridge);
            assert!((VNIS.0..1 << 24).contains(&network.vni));
            assert!(
                network.contains(network.gateway4.0.into()) && network.contains(network.gateway6.0.into())
            );
            assert!(!network.contains([10, 88, 0, 1].into()));
        }
        assert_eq!(Definition::default_network().network(1500).bridge, "fcap0");
    }

    proptest! {
        #[test]
        fn chosen_ports_are_below_those_of_outgoing_connections(_ in 0..100) {
            prop_assert!((20_000..32_768).contains(&random_port()));
        }
    }
}
