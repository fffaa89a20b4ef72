//! Devices, addresses and neighbours of dom0, by rtnetlink (`include/uapi/linux/rtnetlink.h`).
//!
//! Functions that return a [`Message`] describe one change; several are made at once with
//! [`Route::execute`]. All of them leave what is so already as it is.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Mutex, MutexGuard},
};

use nix::sys::socket::SockProtocol;

use super::netlink::{DUMP, EXCLUSIVE, Message, REPLACE, Reply, Socket};

/// A device's number.
pub(super) type Index = u32;

const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const NEIGHBOUR_HEADER: usize = 12;

const UP: u32 = libc::IFF_UP as u32;
/// The device can carry packets: for netback, its guest has connected.
const CARRIER: u32 = libc::IFF_LOWER_UP as u32;
/// And those who are to know it do: it is a port of its bridge that forwards.
const RUNNING: u32 = libc::IFF_RUNNING as u32;

const AF_BRIDGE: u8 = libc::AF_BRIDGE as u8;
const PERMANENT: u16 = libc::NUD_PERMANENT;
/// In a bridge: an entry that stays and is somebody else's; a permanent one would be dom0's own.
const STATIC: u16 = libc::NUD_NOARP;

// linux/if_link.h; what libc lacks.
const IFLA_INFO_DATA: u16 = 2;
const IFLA_BR_FORWARD_DELAY: u16 = 1;
const IFLA_BR_STP_STATE: u16 = 5;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;
const IFLA_BRPORT_LEARNING: u16 = 8;
const IFLA_BRPORT_UNICAST_FLOOD: u16 = 9;
const IFLA_BRPORT_MCAST_FLOOD: u16 = 27;
const IFLA_BRPORT_BCAST_FLOOD: u16 = 30;
const IFLA_BRPORT_NEIGH_SUPPRESS: u16 = 32;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LINK: u16 = 3;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_VXLAN_UDP_CSUM: u16 = 18;

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: Index,
    pub(super) name: String,
    /// "bridge", "vxlan", "wireguard"; empty for those of hardware.
    pub(super) kind: String,
    pub(super) mtu: u32,
    /// Our end of a tunnel.
    pub(super) local: Option<IpAddr>,
    /// Whether packets can go through it.
    pub(super) carrier: bool,
    /// Packets and bytes: received, then sent.
    pub(super) packets: [u64; 2],
    pub(super) bytes: [u64; 2],
}

impl Link {
    /// Reads what the kernel says of a device.
    fn parse(reply: Reply<'_>) -> Option<Self> {
        let header = reply.body.first_chunk::<LINK_HEADER>()?;
        let word =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let attributes = reply.attributes(LINK_HEADER);
        let info = attributes.nested(libc::IFLA_LINKINFO);
        let kind = info.as_ref().and_then(|info| info.text(libc::IFLA_INFO_KIND)).unwrap_or_default();
        let data = info.as_ref().and_then(|info| info.nested(IFLA_INFO_DATA)).filter(|_| kind == "vxlan");
        let local = data.and_then(|data| data.get(IFLA_VXLAN_LOCAL).or(data.get(IFLA_VXLAN_LOCAL6)));
        // `struct rtnl_link_stats64`.
        let statistic = |at: usize| {
            let bytes = attributes.get(libc::IFLA_STATS64)?.get(8 * at..8 * at + 8)?;
            Some(u64::from_ne_bytes(bytes.try_into().ok()?))
        };
        let statistics = |first: usize| [first, first + 1].map(|at| statistic(at).unwrap_or(0));
        Some(Self {
            index: word(4),
            name: attributes.text(libc::IFLA_IFNAME)?.to_owned(),
            kind: kind.to_owned(),
            local: local.and_then(ip_address),
            mtu: attributes.number(libc::IFLA_MTU).unwrap_or(0),
            carrier: word(8) & (CARRIER | RUNNING) == CARRIER | RUNNING,
            packets: statistics(0),
            bytes: statistics(2),
        })
    }
}

/// What the kernel tells of devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// It has come, or has changed.
    Changed(Link),
    /// It has gone.
    Gone(String),
}

/// A socket for [`Event`]s of all devices.
pub(super) fn events() -> io::Result<Socket> {
    let socket = Socket::listen(SockProtocol::NetlinkRoute, libc::RTMGRP_LINK as u32)?;
    // A thousand capsules may come or go at once.
    socket.set_receive_buffer(4 << 20)?;
    Ok(socket)
}

/// Reads an [`Event`]. Changes of a port within its bridge are none.
pub(super) fn event(reply: Reply<'_>) -> Option<Event> {
    if reply.body.first() == Some(&AF_BRIDGE) {
        return None;
    }
    let link = Link::parse(reply)?;
    match reply.kind {
        libc::RTM_NEWLINK => Some(Event::Changed(link)),
        libc::RTM_DELLINK => Some(Event::Gone(link.name)),
        _ => None,
    }
}

/// A neighbour of dom0, or an entry in a device's table of hardware addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub(super) index: Index,
    pub(super) address: Option<IpAddr>,
    pub(super) mac: Option<[u8; 6]>,
    /// Not learned.
    pub(super) fixed: bool,
}

impl Neighbour {
    fn parse(reply: Reply<'_>) -> Option<Self> {
        let header = reply.body.first_chunk::<NEIGHBOUR_HEADER>()?;
        let state = u16::from_ne_bytes([header[8], header[9]]);
        let attributes = reply.attributes(NEIGHBOUR_HEADER);
        Some(Self {
            index: u32::from_ne_bytes([header[4], header[5], header[6], header[7]]),
            address: attributes.get(libc::NDA_DST).and_then(ip_address),
            mac: attributes.get(libc::NDA_LLADDR).and_then(|mac| mac.try_into().ok()),
            fixed: state & (PERMANENT | STATIC) != 0,
        })
    }
}

/// An address from its bytes.
fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

/// The kernel's network.
#[derive(Debug)]
pub(super) struct Route {
    socket: Mutex<Socket>,
}

impl Route {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { socket: Mutex::new(Socket::open(SockProtocol::NetlinkRoute)?) })
    }

    fn socket(&self) -> MutexGuard<'_, Socket> {
        self.socket.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Makes these changes, all that can be made.
    ///
    /// # Errors
    /// The first one.
    pub(super) fn execute(&self, messages: Vec<Message>) -> io::Result<()> {
        self.socket().execute(messages)
    }

    /// As [`Self::execute`]; that something has gone is no error.
    pub(super) fn remove(&self, message: Message) -> io::Result<()> {
        match self.execute(vec![message]) {
            Err(error) if is_gone(&error) => Ok(()),
            other => other,
        }
    }

    /// The device of this name.
    pub(super) fn link(&self, name: &str) -> io::Result<Option<Link>> {
        let question = link_message(libc::RTM_GETLINK, 0, 0, 0).with_text(libc::IFLA_IFNAME, name);
        let mut link = None;
        match self.socket().query(question, |reply| link = Link::parse(reply)) {
            Err(error) if is_gone(&error) => Ok(None),
            other => other.map(|()| link),
        }
    }

    /// All devices.
    pub(super) fn links(&self) -> io::Result<Vec<Link>> {
        let mut links = Vec::new();
        let question = link_message(libc::RTM_GETLINK, DUMP, 0, 0);
        self.socket().query(question, |reply| links.extend(Link::parse(reply)))?;
        Ok(links)
    }

    /// The device that has this address.
    pub(super) fn link_with(&self, address: Ipv4Addr) -> io::Result<Option<Link>> {
        let mut index = None;
        let mut header = [0; ADDRESS_HEADER];
        header[0] = libc::AF_INET as u8;
        self.socket().query(Message::new(libc::RTM_GETADDR, DUMP, &header), |reply| {
            let local = reply.attributes(ADDRESS_HEADER).get(libc::IFA_LOCAL).and_then(ip_address);
            if local == Some(address.into()) {
                index = reply.body.get(4..8).and_then(|index| index.try_into().ok()).map(u32::from_ne_bytes);
            }
        })?;
        Ok(self.links()?.into_iter().find(|link| Some(link.index) == index))
    }

    /// dom0's neighbours.
    pub(super) fn neighbours(&self) -> io::Result<Vec<Neighbour>> {
        self.table(libc::AF_UNSPEC as u8)
    }

    /// Entries of bridges and tunnels.
    pub(super) fn forwarding(&self) -> io::Result<Vec<Neighbour>> {
        self.table(AF_BRIDGE)
    }

    fn table(&self, family: u8) -> io::Result<Vec<Neighbour>> {
        let mut neighbours = Vec::new();
        let mut header = [0; NEIGHBOUR_HEADER];
        header[0] = family;
        let question = Message::new(libc::RTM_GETNEIGH, DUMP, &header);
        self.socket().query(question, |reply| neighbours.extend(Neighbour::parse(reply)))?;
        Ok(neighbours)
    }
}

/// Whether the object of a request is not there.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL))
}

fn link_message(kind: u16, flags: u16, index: Index, set: u32) -> Message {
    link_message_of(libc::AF_UNSPEC as u8, kind, flags, index, set)
}

/// `struct ifinfomsg`; `set` are flags of the device to be set.
fn link_message_of(family: u8, kind: u16, flags: u16, index: Index, set: u32) -> Message {
    let mut header = [0; LINK_HEADER];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&set.to_ne_bytes());
    header[12..16].copy_from_slice(&set.to_ne_bytes());
    Message::new(kind, flags, &header)
}

/// Makes a bridge that forwards at once.
pub(super) fn add_bridge(name: &str, mac: [u8; 6]) -> Message {
    new_link(name, "bridge", |data| {
        data.with(IFLA_BR_FORWARD_DELAY, 0u32.to_ne_bytes())
            .with(IFLA_BR_STP_STATE, 0u32.to_ne_bytes())
            .with(IFLA_BR_MCAST_SNOOPING, [0])
    })
    .with(libc::IFLA_ADDRESS, mac)
}

/// Makes a tunnel to the other nodes, which learns nothing by itself. With a device, its
/// packets go through that one alone.
pub(super) fn add_vxlan(name: &str, vni: u32, local: IpAddr, device: Option<Index>) -> Message {
    /// RFC 7348, section 5.
    const PORT: u16 = 4789;
    new_link(name, "vxlan", |data| {
        let data = match local {
            // What is inside has checksums of its own (RFC 7348, section 5).
            IpAddr::V4(local) => data.with(IFLA_VXLAN_LOCAL, local.octets()).with(IFLA_VXLAN_UDP_CSUM, [0]),
            IpAddr::V6(local) => data.with(IFLA_VXLAN_LOCAL6, local.octets()),
        };
        let data = data
            .with(IFLA_VXLAN_ID, vni.to_ne_bytes())
            .with(IFLA_VXLAN_PORT, PORT.to_be_bytes())
            .with(IFLA_VXLAN_LEARNING, [0]);
        match device {
            Some(device) => data.with(IFLA_VXLAN_LINK, device.to_ne_bytes()),
            None => data,
        }
    })
}

/// Makes a device for encrypted packets.
pub(super) fn add_wireguard(name: &str) -> Message {
    new_link(name, "wireguard", |data| data)
}

fn new_link(name: &str, kind: &str, data: impl FnOnce(Message) -> Message) -> Message {
    let message = link_message(libc::RTM_NEWLINK, EXCLUSIVE, 0, 0).with_text(libc::IFLA_IFNAME, name);
    message.with_nested(libc::IFLA_LINKINFO, |info| {
        info.with_text(libc::IFLA_INFO_KIND, kind).with_nested(IFLA_INFO_DATA, data)
    })
}

/// Removes a device.
pub(super) fn delete_link(index: Index) -> Message {
    link_message(libc::RTM_DELLINK, 0, index, 0)
}

/// Sets the hardware address of a device.
pub(super) fn set_mac(index: Index, mac: [u8; 6]) -> Message {
    link_message(libc::RTM_NEWLINK, 0, index, 0).with(libc::IFLA_ADDRESS, mac)
}

/// Sets the largest packet of a device.
pub(super) fn set_mtu(index: Index, mtu: u32) -> Message {
    link_message(libc::RTM_NEWLINK, 0, index, 0).with(libc::IFLA_MTU, mtu.to_ne_bytes())
}

/// Lets packets through a device.
pub(super) fn set_up(index: Index) -> Message {
    link_message(libc::RTM_NEWLINK, 0, index, UP)
}

/// Makes a device a port of a bridge.
pub(super) fn set_bridge(index: Index, bridge: Index) -> Message {
    link_message(libc::RTM_NEWLINK, 0, index, 0).with(libc::IFLA_MASTER, bridge.to_ne_bytes())
}

/// How a bridge treats a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    /// A capsule: gets what is for it, and questions for neighbours on this node, which answer
    /// themselves: with a tunnel on the bridge, Linux takes IPv6's for answered where the port of
    /// the neighbour has proxy ARP, and answers none. Questions for those behind the tunnel the
    /// bridge answers.
    Capsule,
    /// A tunnel: gets what is for a capsule behind it, nothing else.
    Tunnel,
}

/// Sets how the bridge treats a port. It learns nothing from any: dom0 knows who is where.
pub(super) fn set_port(index: Index, port: Port) -> Message {
    let header = link_message_of(AF_BRIDGE, libc::RTM_SETLINK, 0, index, 0);
    let capsule = u8::from(port == Port::Capsule);
    header.with_nested(libc::IFLA_PROTINFO, |info| {
        info.with(IFLA_BRPORT_LEARNING, [0])
            .with(IFLA_BRPORT_UNICAST_FLOOD, [0])
            .with(IFLA_BRPORT_BCAST_FLOOD, [capsule])
            .with(IFLA_BRPORT_MCAST_FLOOD, [capsule])
            .with(IFLA_BRPORT_NEIGH_SUPPRESS, [1 - capsule])
    })
}

/// Gives dom0 an address, at once and without asking whether somebody has it already.
pub(super) fn add_address(index: Index, address: IpAddr, prefix: u8) -> Message {
    let (family, bytes) = parts(address);
    let mut header = [0; ADDRESS_HEADER];
    header[..2].copy_from_slice(&[family, prefix]);
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    Message::new(libc::RTM_NEWADDR, REPLACE, &header)
        .with(libc::IFA_LOCAL, &bytes)
        .with(libc::IFA_ADDRESS, &bytes)
        .with(libc::IFA_FLAGS, libc::IFA_F_NODAD.to_ne_bytes())
}

fn parts(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (libc::AF_INET as u8, address.octets().into()),
        IpAddr::V6(address) => (libc::AF_INET6 as u8, address.octets().into()),
    }
}

/// `struct ndmsg`.
fn neighbour_message(add: bool, family: u8, index: Index, state: u16, flags: u8) -> Message {
    let mut header = [0; NEIGHBOUR_HEADER];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = flags;
    let (kind, flags) = if add { (libc::RTM_NEWNEIGH, REPLACE) } else { (libc::RTM_DELNEIGH, 0) };
    Message::new(kind, flags, &header)
}

/// Tells dom0, and the bridge that answers in others' names, whose an address is.
pub(super) fn add_neighbour(bridge: Index, address: IpAddr, mac: [u8; 6]) -> Message {
    let (family, bytes) = parts(address);
    neighbour_message(true, family, bridge, PERMANENT, 0)
        .with(libc::NDA_DST, bytes)
        .with(libc::NDA_LLADDR, mac)
}

/// Undoes [`add_neighbour`].
pub(super) fn delete_neighbour(bridge: Index, address: IpAddr) -> Message {
    let (family, bytes) = parts(address);
    neighbour_message(false, family, bridge, 0, 0).with(libc::NDA_DST, bytes)
}

/// Tells a bridge behind which of its ports a hardware address is; if it was behind another one
/// before, it moves.
pub(super) fn add_forwarding(port: Index, mac: [u8; 6]) -> Message {
    neighbour_message(true, AF_BRIDGE, port, STATIC, libc::NTF_MASTER).with(libc::NDA_LLADDR, mac)
}

/// Undoes [`add_forwarding`], unless it has moved on.
pub(super) fn delete_forwarding(port: Index, mac: [u8; 6]) -> Message {
    neighbour_message(false, AF_BRIDGE, port, 0, libc::NTF_MASTER).with(libc::NDA_LLADDR, mac)
}

/// Tells a tunnel at which node a hardware address is.
pub(super) fn add_tunnel_end(tunnel: Index, mac: [u8; 6], node: IpAddr) -> Message {
    neighbour_message(true, AF_BRIDGE, tunnel, PERMANENT, libc::NTF_SELF)
        .with(libc::NDA_LLADDR, mac)
        .with(libc::NDA_DST, parts(node).1)
}

/// Undoes [`add_tunnel_end`].
pub(super) fn delete_tunnel_end(tunnel: Index, mac: [u8; 6]) -> Message {
    neighbour_message(false, AF_BRIDGE, tunnel, 0, libc::NTF_SELF).with(libc::NDA_LLADDR, mac)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::linux::netlink::answer;
    use proptest::prelude::*;

    #[test]
    fn a_device_is_read_as_it_was_described() {
        let local = IpAddr::from([10, 99, 0, 1]);
        let message = add_vxlan("fcapv1", 1, local, None)
            .with(libc::IFLA_MTU, 1450u32.to_ne_bytes())
            .with(libc::IFLA_STATS64, (1..=24u64).flat_map(u64::to_ne_bytes).collect::<Vec<_>>());
        let link = answer(message, Link::parse).unwrap();
        let expected = Link {
            index: 0,
            name: "fcapv1".into(),
            kind: "vxlan".into(),
            mtu: 1450,
            local: Some(local),
            carrier: false,
            packets: [1, 2],
            bytes: [3, 4],
        };
        assert_eq!(link, expected);
        // Also when it says no more than its name.
        let link =
            answer(link_message(libc::RTM_NEWLINK, 0, 7, 0).with_text(libc::IFLA_IFNAME, "eth0"), event);
        assert!(matches!(link, Some(Event::Changed(Link { index: 7, local: None, .. }))), "{link:?}");
    }

    #[test]
    fn a_neighbour_is_read_as_it_was_described() {
        let address = IpAddr::from(Ipv6Addr::LOCALHOST);
        let neighbour = answer(add_neighbour(3, address, [2; 6]), Neighbour::parse).unwrap();
        let expected = Neighbour { index: 3, address: Some(address), mac: Some([2; 6]), fixed: true };
        assert_eq!(neighbour, expected);
    }

    #[test]
    fn changes_of_a_port_within_its_bridge_are_no_events() {
        assert_eq!(answer(set_port(5, Port::Tunnel), event), None);
    }

    proptest! {
        #[test]
        fn no_answer_hurts(kind: u16, body in proptest::collection::vec(any::<u8>(), 0..200)) {
            answer(Message::new(kind, 0, &body), |reply| {
                event(reply);
                Neighbour::parse(reply);
            });
        }
    }
}
