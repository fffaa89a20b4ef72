//! Connections that the kernel follows
//! (`include/uapi/linux/netfilter/nfnetlink_conntrack.h`).
//!
//! Only the first packet of a connection is looked up among the published ports; all later ones
//! go where it went. For UDP a connection is whatever one address sends to another, and lasts as
//! long as something comes: without being told, the kernel would never turn such a sender from a
//! capsule that has ended to the one that has its port now.

use std::{
    io,
    net::Ipv4Addr,
    sync::{Mutex, PoisonError},
};

use nix::sys::socket::SockProtocol;

use super::{
    filter,
    netlink::{Attributes, DUMP, Message, Reply, Socket},
    route::is_gone,
};
use crate::net::Publish;

/// `struct nfgenmsg`.
const HEADER_LEN: usize = 4;

const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// The kernel's table.
#[derive(Debug)]
pub(super) struct Connections {
    socket: Mutex<Socket>,
}

impl Connections {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { socket: Mutex::new(Socket::open(SockProtocol::NetlinkNetFilter)?) })
    }

    /// Forgets the connections that came through a published port.
    ///
    /// # Errors
    /// If the kernel lacks `nf_conntrack_netlink`.
    pub(super) fn forget(&self, publish: &Publish) -> io::Result<()> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        socket.query(message(IPCTNL_MSG_CT_GET, DUMP), |reply| found.extend(sender(reply, publish)))?;
        for tuple in found {
            let tuple = |message: Message| message.with_raw(&tuple);
            match socket.execute(vec![message(IPCTNL_MSG_CT_DELETE, 0).with_nested(CTA_TUPLE_ORIG, tuple)]) {
                // It has ended meanwhile.
                Err(error) if is_gone(&error) => {}
                other => other?,
            }
        }
        Ok(())
    }
}

fn message(kind: u16, flags: u16) -> Message {
    let kind = (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8 | kind;
    Message::new(kind, flags, &[libc::AF_INET as u8, libc::NFNETLINK_V0 as u8, 0, 0])
}

/// How the sender of a connection through this port is described, if it is one.
fn sender(reply: Reply<'_>, publish: &Publish) -> Option<Vec<u8>> {
    let attributes = reply.attributes(HEADER_LEN);
    let original = attributes.get(CTA_TUPLE_ORIG)?;
    let there = Attributes::of(original).nested(CTA_TUPLE_PROTO)?;
    let back = attributes.nested(CTA_TUPLE_REPLY)?;
    let address: [u8; 4] = back.nested(CTA_TUPLE_IP)?.get(CTA_IP_V4_SRC)?.try_into().ok()?;
    let port = |proto: &Attributes<'_>, kind| -> Option<u16> {
        Some(u16::from_be_bytes(proto.get(kind)?.try_into().ok()?))
    };
    let is_it = there.get(CTA_PROTO_NUM)? == [filter::protocol_number(publish.protocol)]
        && port(&there, CTA_PROTO_DST_PORT)? == publish.node_port
        && Ipv4Addr::from(address) == publish.ipv4
        && port(&back.nested(CTA_TUPLE_PROTO)?, CTA_PROTO_SRC_PORT)? == publish.port;
    is_it.then(|| original.to_vec())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::net::{Protocol, linux::netlink::answer};

    fn connection(protocol: u8, node_port: u16, from: [u8; 4], port: u16) -> Message {
        let tuple = |message: Message, address: [u8; 4], source: u16, destination: u16| {
            message.with_nested(CTA_TUPLE_IP, |ip| ip.with(CTA_IP_V4_SRC, address)).with_nested(
                CTA_TUPLE_PROTO,
                |proto| {
                    proto
                        .with(CTA_PROTO_NUM, [protocol])
                        .with(CTA_PROTO_SRC_PORT, source.to_be_bytes())
                        .with(CTA_PROTO_DST_PORT, destination.to_be_bytes())
                },
            )
        };
        message(IPCTNL_MSG_CT_GET, 0)
            .with_nested(CTA_TUPLE_ORIG, |m| tuple(m, [192, 0, 2, 2], 50_000, node_port))
            .with_nested(CTA_TUPLE_REPLY, |m| tuple(m, from, port, 50_000))
    }

    #[test]
    fn connections_through_a_port_are_told_from_others() {
        let capsule = Ipv4Addr::new(10, 88, 1, 2);
        let publish = Publish { protocol: Protocol::Udp, node_port: 53, ipv4: capsule, port: 5353 };
        let is_it = |message| answer(message, |reply| sender(reply, &publish)).is_some();
        assert!(is_it(connection(17, 53, capsule.octets(), 5353)));
        assert!(!is_it(connection(6, 53, capsule.octets(), 5353)));
        assert!(!is_it(connection(17, 54, capsule.octets(), 5353)));
        assert!(!is_it(connection(17, 53, [10, 88, 1, 3], 5353)));
        assert!(!is_it(connection(17, 53, capsule.octets(), 53)));
    }

    proptest! {
        #[test]
        fn no_answer_hurts(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let publish =
                Publish { protocol: Protocol::Tcp, node_port: 1, ipv4: Ipv4Addr::LOCALHOST, port: 1 };
            answer(Message::new(0, 0, &body), |reply| sender(reply, &publish));
        }
    }
}
