//! The wire between the nodes of one cloud: an Ethernet segment of their second cards.
//!
//! QEMU carries the frames as UDP datagrams to a multicast group on the loopback device, which
//! needs no root. Group and port are the cloud's own, so that clouds do not hear each other.
//! Every program on the user's computer can join the group: what must stay secret there is
//! encrypted by the nodes (`fcap cloud up --encrypt`).

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{AtPath, CloudError, Result, random_hex};

/// Largest IP packet on the wire: a packet of 1,500 bytes fits with all that tunnels add.
pub(super) const MTU: u16 = 9000;
/// Bits of the wire's network.
pub(super) const PREFIX: u8 = 24;
/// In the cloud's folder.
const FILE: &str = "lan.json";

/// A cloud's wire.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Lan {
    /// Multicast group.
    group: Ipv4Addr,
    /// UDP port.
    port: u16,
    /// What the nodes share and nobody else knows.
    pub(super) secret: String,
    /// Whether they encrypt what they send each other.
    pub(super) encrypt: bool,
}

impl Lan {
    /// The wire of the cloud in `folder`, or none if it has none.
    pub(super) fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.join(FILE)).ok()?).ok()
    }

    /// Keeps it in the cloud's folder.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let (half, whole) = (folder.join("lan.json.half"), folder.join(FILE));
        let text = serde_json::to_vec_pretty(self).expect("a wire is serialized");
        fs::write(&half, text).at("write", &half)?;
        fs::rename(&half, &whole).at("write", &whole)
    }

    /// A wire of its own for a new cloud.
    pub(super) fn new(encrypt: bool) -> Result<Self> {
        let mut random = [0; 3];
        getrandom::fill(&mut random).map_err(|error| CloudError::Random(error.to_string()))?;
        let [a, b, c] = random;
        // A port that nobody else has at present, since a program that has it on all addresses
        // would be in the way. The group is what tells clouds apart.
        let port = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr());
        let port = port.at("find a free UDP port on", Path::new("127.0.0.1"))?.port();
        // Of the multicast groups that stay within an organization (RFC 2365).
        Ok(Self { group: Ipv4Addr::new(239, a, b, c), port, secret: random_hex(32)?, encrypt })
    }

    /// QEMU's end of it.
    pub(super) fn netdev(&self, id: &str) -> String {
        format!("socket,id={id},mcast={}:{},localaddr=127.0.0.1", self.group, self.port)
    }
}

/// Address of node number `index` on the wire.
pub(super) fn address(index: u16) -> Ipv4Addr {
    let [_, low] = index.to_be_bytes();
    Ipv4Addr::new(10, 99, 0, low)
}

/// Hardware address of node number `index`: within QEMU's own range.
pub(super) fn mac(index: u16) -> String {
    let [high, low] = index.to_be_bytes();
    format!("52:54:00:63:{high:02x}:{low:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wire_is_kept_with_its_cloud() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Lan::read(folder.path()).is_none());
        let lan = Lan::new(true).unwrap();
        lan.write(folder.path()).unwrap();
        let again = Lan::read(folder.path()).unwrap();
        assert_eq!(again.netdev("lan"), lan.netdev("lan"));
        assert!(again.encrypt);
        assert!(lan.group.is_multicast());
    }

    #[test]
    fn wires_and_nodes_differ() {
        let (one, two) = (Lan::new(false).unwrap(), Lan::new(false).unwrap());
        assert_ne!(one.netdev("lan"), two.netdev("lan"));
        assert_ne!(one.secret, two.secret);
        assert_eq!(address(7), Ipv4Addr::new(10, 99, 0, 7));
        assert_eq!(mac(0x107), "52:54:00:63:01:07");
    }
}
