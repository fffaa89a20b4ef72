//! Encryption between nodes: WireGuard's device in the kernel, by generic netlink
//! (`include/uapi/linux/wireguard.h`).
//!
//! Each node has one address inside, made of its address outside ([`tunnel_address`]); tunnels
//! of networks go between those.

use std::{io, net::SocketAddrV4};

use nix::sys::socket::SockProtocol;

use super::{
    Overlay,
    netlink::{Message, Socket},
    route::{self, Index, Route},
};
use crate::net::{Peer, tunnel_address};

/// The device.
const NAME: &str = "fcapwg";
/// Where it listens, on all nodes.
const PORT: u16 = 51820;
/// Bits of the network of inner addresses.
const PREFIX: u8 = 96;
/// Peers that are set at once.
const BATCH: usize = 256;

const FAMILY: &str = "wireguard";
const VERSION: u8 = 1;
const WG_CMD_SET_DEVICE: u8 = 1;
const WGDEVICE_A_IFINDEX: u16 = 1;
const WGDEVICE_A_PRIVATE_KEY: u16 = 3;
const WGDEVICE_A_FLAGS: u16 = 5;
const WGDEVICE_A_LISTEN_PORT: u16 = 6;
const WGDEVICE_A_PEERS: u16 = 8;
const WGDEVICE_F_REPLACE_PEERS: u32 = 1;
const WGPEER_A_PUBLIC_KEY: u16 = 1;
const WGPEER_A_FLAGS: u16 = 3;
const WGPEER_A_ENDPOINT: u16 = 4;
const WGPEER_A_ALLOWEDIPS: u16 = 9;
const WGPEER_F_REPLACE_ALLOWEDIPS: u32 = 2;
const WGALLOWEDIP_A_FAMILY: u16 = 1;
const WGALLOWEDIP_A_IPADDR: u16 = 2;
const WGALLOWEDIP_A_CIDR_MASK: u16 = 3;

/// Makes the device, or brings it to this shape, and returns it.
pub(super) fn set_up(route: &Route, overlay: &Overlay, mtu: u32) -> io::Result<Index> {
    let link = match route.link(NAME)? {
        Some(link) => link,
        None => {
            route.execute(vec![route::add_wireguard(NAME)])?;
            route.link(NAME)?.ok_or(io::ErrorKind::NotFound)?
        }
    };
    let mut socket = Socket::open(SockProtocol::NetlinkGeneric)?;
    let family = family(&mut socket)?;
    let mut device = Message::new(family, 0, &[WG_CMD_SET_DEVICE, VERSION, 0, 0])
        .with(WGDEVICE_A_IFINDEX, link.index.to_ne_bytes())
        .with(WGDEVICE_A_FLAGS, WGDEVICE_F_REPLACE_PEERS.to_ne_bytes())
        .with(WGDEVICE_A_LISTEN_PORT, PORT.to_ne_bytes());
    if let Some(key) = overlay.private_key {
        device = device.with(WGDEVICE_A_PRIVATE_KEY, key);
    }
    let peers = overlay.peers.chunks(BATCH).map(|peers| {
        Message::new(family, 0, &[WG_CMD_SET_DEVICE, VERSION, 0, 0])
            .with(WGDEVICE_A_IFINDEX, link.index.to_ne_bytes())
            .with_nested(WGDEVICE_A_PEERS, |list| peers.iter().fold(list, add_peer))
    });
    socket.execute([device].into_iter().chain(peers).collect())?;
    route.execute(vec![
        route::set_mtu(link.index, mtu),
        route::add_address(link.index, tunnel_address(overlay.address).into(), PREFIX),
        route::set_up(link.index),
    ])?;
    Ok(link.index)
}

/// Removes the device.
pub(super) fn remove(route: &Route) -> io::Result<()> {
    match route.link(NAME)? {
        Some(link) => route.remove(route::delete_link(link.index)),
        None => Ok(()),
    }
}

/// The family's number.
fn family(socket: &mut Socket) -> io::Result<u16> {
    let question = Message::new(libc::GENL_ID_CTRL as u16, 0, &[libc::CTRL_CMD_GETFAMILY as u8, 1, 0, 0])
        .with_text(libc::CTRL_ATTR_FAMILY_NAME as u16, FAMILY);
    let mut family = None;
    socket.query(question, |reply| {
        let number = reply.attributes(4).get(libc::CTRL_ATTR_FAMILY_ID as u16);
        family = number.and_then(|number| number.try_into().ok()).map(u16::from_ne_bytes);
    })?;
    family.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Adds a peer that has a key.
fn add_peer(list: Message, peer: &Peer) -> Message {
    let Some(key) = peer.public_key else { return list };
    let inside = tunnel_address(peer.address);
    // Entries of a list have no kind.
    list.with_nested(0, |item| {
        item.with(WGPEER_A_PUBLIC_KEY, key)
            .with(WGPEER_A_FLAGS, WGPEER_F_REPLACE_ALLOWEDIPS.to_ne_bytes())
            .with(WGPEER_A_ENDPOINT, socket_address(SocketAddrV4::new(peer.address, PORT)))
            .with_nested(WGPEER_A_ALLOWEDIPS, |list| {
                list.with_nested(0, |item| {
                    item.with(WGALLOWEDIP_A_FAMILY, (libc::AF_INET6 as u16).to_ne_bytes())
                        .with(WGALLOWEDIP_A_IPADDR, inside.octets())
                        .with(WGALLOWEDIP_A_CIDR_MASK, [128])
                })
            })
    })
}

/// `struct sockaddr_in`.
fn socket_address(address: SocketAddrV4) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
    bytes[4..8].copy_from_slice(&address.ip().octets());
    bytes
}
