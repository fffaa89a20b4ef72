//! Networks of capsules, their addresses, published ports, and the overlay of nodes.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// The network that every node has.
pub const DEFAULT_NETWORK: &str = "default";
/// Longest name of a network, in bytes.
pub const MAX_NETWORK_NAME: usize = 32;
/// Most networks of one capsule.
pub const MAX_NETWORKS: usize = 8;
/// Most published ports of one capsule.
pub const MAX_PORTS: usize = 64;

/// A protocol that has ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port of the node that is to lead to a capsule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PublishPort {
    /// The node's port; a free one of 20000 to 32767 when not given.
    #[serde(default)]
    pub host_port: Option<u16>,
    /// The capsule's port.
    pub port: u16,
    /// Protocol.
    #[serde(default)]
    pub protocol: Protocol,
}

/// A port of the node that leads to a capsule while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PublishedPort {
    /// The node's port.
    pub host_port: u16,
    /// The capsule's port.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// A capsule's place in a network; its own for all its life, on any node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Endpoint {
    /// [`Network::name`].
    pub network: String,
    /// Hardware address, as "0a:fc:0a:58:01:02".
    pub mac: String,
    /// IPv4 address.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub ipv4: Ipv4Addr,
    /// IPv6 address.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub ipv6: Ipv6Addr,
}

/// What went through a capsule's interfaces since its start, as the capsule sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NetStats {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets of the capsule that were dropped because it may not send them.
    pub denied: u64,
}

/// A network of capsules, the same on every node that has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Its IPv4 addresses, as "10.88.0.0/16".
    pub subnet4: String,
    /// IPv4 address of the gateway, which is the name server too.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub gateway4: Ipv4Addr,
    /// Its IPv6 addresses, as "fd88::/64".
    pub subnet6: String,
    /// IPv6 address of the gateway, which is the name server too.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub gateway6: Ipv6Addr,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// Capsules of this node that have an address in it, whether they run or not.
    pub capsules: u32,
    /// Whether its capsules reach what is beyond the node.
    pub outbound: bool,
}

/// A network to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateNetwork {
    /// Its name: a lower-case letter, then lower-case letters, digits and `-`, at most
    /// [`MAX_NETWORK_NAME`].
    pub name: String,
    /// Its private IPv4 addresses, as "10.90.0.0/16", of 8 to 28 bits; a free one when not given.
    #[serde(default)]
    pub subnet: Option<String>,
    /// Keeps its capsules from what is beyond the node.
    #[serde(default)]
    pub internal: bool,
}

/// A node's card on the wire between nodes: its second one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Lan {
    /// Hardware address, as "52:54:00:63:00:01".
    pub mac: String,
    /// IPv4 address.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub address: Ipv4Addr,
    /// Bits of the wire's network.
    pub prefix: u8,
    /// Largest IP packet in bytes.
    pub mtu: u16,
}

/// How a node takes part in an overlay: nodes that carry the frames of their networks to each
/// other.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Overlay {
    /// The node's number in the overlay, from 1: its slice of the addresses of each network.
    pub index: u16,
    /// The node's address on the wire between nodes.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub address: Ipv4Addr,
    /// The other nodes.
    pub peers: Vec<OverlayPeer>,
    /// What all nodes of the overlay share and nobody else knows: 16 to 256 printable characters.
    pub secret: String,
    /// Encrypts everything between nodes.
    #[serde(default)]
    pub encrypt: bool,
}

impl fmt::Debug for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, address, peers, secret: _, encrypt } = self;
        f.debug_struct("Overlay")
            .field("index", index)
            .field("address", address)
            .field("peers", peers)
            .field("encrypt", encrypt)
            .finish_non_exhaustive()
    }
}

/// Another node of the overlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct OverlayPeer {
    /// Its name.
    pub name: String,
    /// Its address on the wire between nodes.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub address: Ipv4Addr,
    /// Its number in the overlay.
    pub index: u16,
    /// Where its daemon is reached, as "https://10.99.0.2:7070"; that port of its address when not
    /// given, with TLS if the node that is told is in a cluster.
    #[serde(default)]
    pub url: Option<String>,
}

/// How a node takes part in the overlay, and what it hears of the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OverlayStatus {
    /// As [`Overlay::index`].
    pub index: u16,
    /// As [`Overlay::address`].
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub address: Ipv4Addr,
    /// As [`Overlay::encrypt`].
    pub encrypt: bool,
    /// Largest IP packet in bytes that fits between nodes.
    pub mtu: u16,
    /// The other nodes.
    pub peers: Vec<PeerStatus>,
}

/// What a node hears of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Its address on the wire between nodes.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub address: Ipv4Addr,
    /// Its number in the overlay.
    pub index: u16,
    /// Whether it tells at present which capsules it has.
    pub connected: bool,
    /// Endpoints that it has told of.
    pub endpoints: u32,
}

/// A capsule's place in a network, as nodes tell each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OverlayEndpoint {
    /// Id of the capsule.
    pub capsule: String,
    /// Its name.
    pub name: String,
    /// [`Network::name`].
    pub network: String,
    /// IPv4 address.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub ipv4: Ipv4Addr,
    /// IPv6 address.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub ipv6: Ipv6Addr,
    /// When the capsule was made, milliseconds since the Unix epoch: of two with one name, the
    /// older has it.
    pub created_ms: u64,
    /// How many times it has changed its node: the newest place is the right one.
    pub generation: u64,
    /// Whether it has a domain there.
    pub up: bool,
}

/// A line of what a node tells another one about its endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OverlayUpdate {
    /// What was told before is void; so in the first line.
    #[serde(default)]
    pub all: bool,
    /// Endpoints that are new or have changed.
    #[serde(default)]
    pub set: Vec<OverlayEndpoint>,
    /// Endpoints that are gone: ids of capsules and names of networks.
    #[serde(default)]
    pub gone: Vec<(String, String)>,
}
