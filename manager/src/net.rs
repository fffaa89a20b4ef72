//! What the daemon asks of dom0's network.
//!
//! A network is a bridge in dom0 whose own address is the capsules' gateway and name server.
//! The same network on several nodes is one network: nodes carry its frames to each other (an
//! overlay), the gateway has the same address and MAC everywhere, and a capsule keeps its
//! address on any node.
//!
//! Two implementations pass the same test suite: the real one on Linux, and one in memory.
//! Nothing is kept that cannot be rebuilt: after a restart the daemon says again what it wants
//! ([`Fabric::ensure`], [`Fabric::attach`], [`Fabric::publish`]), all of which change nothing
//! where it is so already, and then [`Fabric::retain`] removes what nobody has asked for.

pub mod dns;
pub mod endpoints;
pub mod ipam;
pub mod linux;
pub mod networks;
pub mod overlay;
pub mod sim;
#[cfg(test)]
mod suite;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use fcap_api::Protocol;
use tokio::sync::watch;

use crate::toolstack::Uuid;

/// A failed request to dom0's network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something else listens on the port that should be published.
    #[error("port {port}/{protocol} is already taken on the node")]
    PortTaken {
        /// The node's port.
        port: u16,
        /// "tcp" or "udp".
        protocol: &'static str,
    },
    /// Something that should have worked.
    #[error("{call} failed")]
    Failed {
        /// The operation and its object.
        call: String,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// Result of a request to dom0's network.
pub type Result<T> = std::result::Result<T, Error>;

/// A network, the same on every node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Its name; unique.
    pub name: String,
    /// Its bridge's name in dom0, at most 15 bytes.
    pub bridge: String,
    /// Number by which nodes tell networks apart on the wire: the VXLAN network identifier.
    pub vni: u32,
    /// The gateway's address, which is also the name server's, and the bits of the network.
    pub gateway4: (Ipv4Addr, u8),
    /// As [`Self::gateway4`].
    pub gateway6: (Ipv6Addr, u8),
    /// The gateway's MAC, the same on every node.
    pub gateway_mac: [u8; 6],
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// Whether capsules reach what is beyond the node.
    pub outbound: bool,
}

impl Network {
    /// Whether an address is one of the network's.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => {
                let ((gateway, bits), address) = (self.gateway4, u32::from(address));
                (u32::from(gateway) ^ address).checked_shr(32 - u32::from(bits)).unwrap_or(0) == 0
            }
            IpAddr::V6(address) => {
                let ((gateway, bits), address) = (self.gateway6, u128::from(address));
                (u128::from(gateway) ^ address).checked_shr(128 - u32::from(bits)).unwrap_or(0) == 0
            }
        }
    }
}

/// One interface of a capsule on this node, before its domain exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The capsule.
    pub capsule: Uuid,
    /// Number of the interface within the capsule.
    pub handle: u32,
    /// [`Network::name`].
    pub network: String,
    /// The only hardware address it may use.
    pub mac: [u8; 6],
    /// The only IPv4 address it may use.
    pub ipv4: Ipv4Addr,
    /// The only IPv6 address it may use, beside the link-local one made of its MAC.
    pub ipv6: Ipv6Addr,
}

/// A capsule's interface on another node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Remote {
    /// [`Network::name`].
    pub network: String,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address.
    pub ipv6: Ipv6Addr,
    /// The other node's address on the wire between nodes.
    pub node: Ipv4Addr,
}

/// A port of the node that leads to a capsule on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Publish {
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the node, on all its addresses.
    pub node_port: u16,
    /// The capsule's address.
    pub ipv4: Ipv4Addr,
    /// The capsule's port.
    pub port: u16,
}

/// What went through a capsule's interface; seen from the capsule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that the capsule received.
    pub rx_bytes: u64,
    /// Packets that the capsule received.
    pub rx_packets: u64,
    /// Bytes that the capsule sent.
    pub tx_bytes: u64,
    /// Packets that the capsule sent.
    pub tx_packets: u64,
    /// Packets of the capsule that were dropped because it may not send them.
    pub denied: u64,
}

/// How this node takes part in the overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// This node's address on the wire between nodes.
    pub address: Ipv4Addr,
    /// The other nodes.
    pub peers: Vec<Peer>,
    /// This node's WireGuard key, when everything between nodes is encrypted.
    pub private_key: Option<[u8; 32]>,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address on the wire between nodes.
    pub address: Ipv4Addr,
    /// Its WireGuard key.
    pub public_key: Option<[u8; 32]>,
}

/// A node's address inside the encryption between nodes, made of the one outside.
pub fn tunnel_address(outside: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = outside.octets();
    Ipv6Addr::from([0xfd, 0xfc, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d])
}

/// Everything that should be there, for [`Fabric::retain`].
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Names of networks.
    pub networks: Vec<String>,
    /// Interfaces: capsule and handle.
    pub attachments: Vec<(Uuid, u32)>,
    /// Published ports.
    pub published: Vec<Publish>,
}

/// dom0's network. All calls block for a short time.
pub trait Fabric: Send + Sync {
    /// Makes a network, or brings an existing one to this shape.
    fn ensure(&self, network: &Network) -> Result<()>;

    /// Removes a network that nothing is attached to.
    fn remove(&self, network: &str) -> Result<()>;

    /// Admits an interface: what it may use, and where its bridge port goes once netback has
    /// made it for the domain that [`Fabric::place`] names.
    fn attach(&self, attachment: &Attachment) -> Result<()>;

    /// Says which domain has the capsule's interfaces; called right after the domain was built
    /// and before its back ends appear in xenstore.
    fn place(&self, capsule: Uuid, domid: u32) -> Result<()>;

    /// Takes back everything that [`Fabric::attach`] and [`Fabric::place`] did for a capsule;
    /// does nothing if there is nothing.
    fn detach(&self, capsule: Uuid) -> Result<()>;

    /// Lets a port of the node lead to a capsule.
    fn publish(&self, publish: &Publish) -> Result<()>;

    /// Takes it back.
    fn unpublish(&self, publish: &Publish) -> Result<()>;

    /// Whether a capsule's interface carries frames, which it does once the capsule has connected
    /// to it; tells when that changes, and breaks off when the interface goes. `None` if there is
    /// none.
    fn connection(&self, capsule: Uuid, handle: u32) -> Option<watch::Receiver<bool>>;

    /// What went through an interface; `None` while it has none.
    fn counters(&self, capsule: Uuid, handle: u32) -> Result<Option<Counters>>;

    /// Joins, changes or (with no peers) leaves the overlay. Returns the largest IP packet in
    /// bytes that fits between nodes.
    fn set_overlay(&self, overlay: &Overlay) -> Result<u16>;

    /// All interfaces on other nodes, in place of what was said before.
    fn set_remotes(&self, remotes: &[Remote]) -> Result<()>;

    /// Turns what is for a capsule to this node, although [`Fabric::set_remotes`] may have said
    /// that it is at another one. Nothing is sent: a capsule keeps its addresses and its MAC
    /// wherever it goes, and nobody learns from frames where it is. Other nodes turn to this one
    /// when they hear that the capsule is here.
    fn announce(&self, capsule: Uuid) -> Result<()>;

    /// Removes what is there and not wanted: left by an earlier daemon.
    fn retain(&self, wanted: &Wanted) -> Result<()>;
}
