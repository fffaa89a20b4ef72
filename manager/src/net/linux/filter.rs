//! The packet filter: rules that never change, and sets that say who there is.
//!
//! The rules are text, `filter.nft`, which `nft` loads when they are not there yet. Elements of
//! their sets come and go with every capsule; they are sent to the kernel directly, since a
//! program started for each would cost more than all else that a capsule's start takes
//! (`include/uapi/linux/netfilter/nf_tables.h`).

use std::{
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard},
};

use nix::sys::socket::SockProtocol;
use sha2::{Digest, Sha256};

use super::netlink::{Attributes, CREATE, DUMP, Message, Socket};
use crate::net::{Protocol, Publish};

/// The rules.
const RULES: &str = include_str!("filter.nft");
/// The program that reads them.
const NFT: &str = "nft";
/// Name of both tables.
const TABLE: &str = "fcap";

/// `struct nfgenmsg`.
const HEADER_LEN: usize = 4;

// linux/netfilter/nf_tables.h; what libc lacks.
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_EXPRESSION: u16 = 7;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_COUNTER_PACKETS: u16 = 2;

/// Family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Family {
    Inet = libc::NFPROTO_INET as u8,
    Bridge = libc::NFPROTO_BRIDGE as u8,
}

/// A set of the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Set {
    Ports,
    Denied,
    Ipv4Senders,
    Ipv6Senders,
    ArpSenders,
    NdTargets,
    Bridges,
    Outbound,
    Within,
    Gateways4,
    Gateways6,
    Nodes,
    Vteps4,
    Vteps6,
    Published,
}

impl Set {
    const ALL: [Self; 15] = [
        Self::Ports,
        Self::Denied,
        Self::Ipv4Senders,
        Self::Ipv6Senders,
        Self::ArpSenders,
        Self::NdTargets,
        Self::Bridges,
        Self::Outbound,
        Self::Within,
        Self::Gateways4,
        Self::Gateways6,
        Self::Nodes,
        Self::Vteps4,
        Self::Vteps6,
        Self::Published,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Ports => "ports",
            Self::Denied => "denied",
            Self::Ipv4Senders => "ipv4_senders",
            Self::Ipv6Senders => "ipv6_senders",
            Self::ArpSenders => "arp_senders",
            Self::NdTargets => "nd_targets",
            Self::Bridges => "bridges",
            Self::Outbound => "outbound",
            Self::Within => "within",
            Self::Gateways4 => "gateways4",
            Self::Gateways6 => "gateways6",
            Self::Nodes => "nodes",
            Self::Vteps4 => "vteps4",
            Self::Vteps6 => "vteps6",
            Self::Published => "published",
        }
    }

    fn family(self) -> Family {
        match self {
            Self::Ports
            | Self::Denied
            | Self::Ipv4Senders
            | Self::Ipv6Senders
            | Self::ArpSenders
            | Self::NdTargets => Family::Bridge,
            _ => Family::Inet,
        }
    }
}

/// An element of a set; of a map, with what it leads to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Element {
    set: Set,
    key: Vec<u8>,
    data: Vec<u8>,
}

/// A key of several parts: each begins at a multiple of four bytes.
#[derive(Default)]
struct Key(Vec<u8>);

impl Key {
    fn with(mut self, part: &[u8]) -> Self {
        self.0.extend(part);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A device's name fills its field.
    fn device(name: &str) -> Self {
        let mut field = [0; libc::IFNAMSIZ];
        // One byte stays for the end.
        let len = name.len().min(field.len() - 1);
        field[..len].copy_from_slice(&name.as_bytes()[..len]);
        Self::default().with(&field)
    }

    fn in_set(self, set: Set) -> Element {
        Element { set, key: self.0, data: Vec::new() }
    }
}

/// What an interface may send: frames from its hardware address and these addresses.
pub(super) fn interface(port: &str, mac: [u8; 6], ipv4: Ipv4Addr, ipv6: [Ipv6Addr; 2]) -> Vec<Element> {
    let mut elements = vec![
        Key::device(port).in_set(Set::Ports),
        Key::device(port).in_set(Set::Denied),
        Key::device(port).with(&mac).with(&ipv4.octets()).in_set(Set::Ipv4Senders),
        Key::device(port).with(&mac).with(&mac).with(&ipv4.octets()).in_set(Set::ArpSenders),
    ];
    for address in ipv6 {
        let key = || Key::device(port).with(&mac).with(&address.octets());
        elements.extend([key().in_set(Set::Ipv6Senders), key().in_set(Set::NdTargets)]);
    }
    elements
}

/// A network: its bridge, and the gateway's addresses.
pub(super) fn network(bridge: &str, gateways: [IpAddr; 2], outbound: bool) -> Vec<Element> {
    let within = [Key::device(bridge).0, Key::device(bridge).0].concat();
    let mut elements = vec![Key::device(bridge).in_set(Set::Bridges), Key(within).in_set(Set::Within)];
    elements.extend(outbound.then(|| Key::device(bridge).in_set(Set::Outbound)));
    elements.extend(gateways.map(|gateway| match gateway {
        IpAddr::V4(address) => Key::device(bridge).with(&address.octets()).in_set(Set::Gateways4),
        IpAddr::V6(address) => Key::device(bridge).with(&address.octets()).in_set(Set::Gateways6),
    }));
    elements
}

/// Another node, whose frames come from `tunnel`.
pub(super) fn node(address: Ipv4Addr, tunnel: IpAddr) -> [Element; 2] {
    let end = match tunnel {
        IpAddr::V4(address) => Key::default().with(&address.octets()).in_set(Set::Vteps4),
        IpAddr::V6(address) => Key::default().with(&address.octets()).in_set(Set::Vteps6),
    };
    [Key::default().with(&address.octets()).in_set(Set::Nodes), end]
}

/// As it is in the header of IP.
pub(super) fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => libc::IPPROTO_TCP as u8,
        Protocol::Udp => libc::IPPROTO_UDP as u8,
    }
}

/// A published port.
pub(super) fn published(publish: &Publish) -> Element {
    let key =
        Key::default().with(&[protocol_number(publish.protocol)]).with(&publish.node_port.to_be_bytes());
    let data = Key::default().with(&publish.ipv4.octets()).with(&publish.port.to_be_bytes());
    Element { set: Set::Published, key: key.0, data: data.0 }
}

/// The kernel's filter, with our rules in it.
#[derive(Debug)]
pub(super) struct Filter {
    socket: Mutex<Socket>,
}

impl Filter {
    /// Loads the rules if they are not there, in place of those of another version.
    pub(super) fn open() -> io::Result<Self> {
        let filter = Self { socket: Mutex::new(Socket::open(SockProtocol::NetlinkNetFilter)?) };
        let mark = mark();
        if !filter.has_chain(&mark)? {
            load(&mark)?;
        }
        Ok(filter)
    }

    fn socket(&self) -> MutexGuard<'_, Socket> {
        self.socket.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn has_chain(&self, name: &str) -> io::Result<bool> {
        let question = message(libc::NFT_MSG_GETCHAIN, 0, Family::Inet)
            .with_text(NFTA_CHAIN_TABLE, TABLE)
            .with_text(NFTA_CHAIN_NAME, name);
        match self.socket().query(question, |_| ()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Adds elements; those that are there stay, also where a map leads elsewhere.
    ///
    /// # Errors
    /// EEXIST or EBUSY if a map's element leads elsewhere; nothing has been added then.
    pub(super) fn add(&self, elements: &[Element]) -> io::Result<()> {
        self.change(libc::NFT_MSG_NEWSETELEM, CREATE, elements)
    }

    /// Removes elements, those that are there.
    pub(super) fn remove(&self, elements: &[Element]) -> io::Result<()> {
        match self.change(libc::NFT_MSG_DELSETELEM, 0, elements) {
            // All or nothing: one is missing, the others have to go all the same.
            Err(error) if error.kind() == io::ErrorKind::NotFound && elements.len() > 1 => {
                elements.iter().try_for_each(|element| self.remove(std::slice::from_ref(element)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Removes elements of maps, wherever they lead.
    pub(super) fn remove_keys(&self, elements: &[Element]) -> io::Result<()> {
        let keys: Vec<_> = elements.iter().map(|e| Element { data: Vec::new(), ..e.clone() }).collect();
        self.remove(&keys)
    }

    fn change(&self, kind: libc::c_int, flags: u16, elements: &[Element]) -> io::Result<()> {
        if elements.is_empty() {
            return Ok(());
        }
        let mut batch = vec![edge(libc::NFNL_MSG_BATCH_BEGIN)];
        batch.extend(elements.iter().map(|element| of_element(kind, flags, element)));
        batch.push(edge(libc::NFNL_MSG_BATCH_END));
        self.socket().execute_batch(batch)
    }

    /// Removes the elements of all sets that `keep` does not want.
    pub(super) fn retain(&self, keep: &dyn Fn(&Element) -> bool) -> io::Result<()> {
        for set in Set::ALL {
            let question = of_set(libc::NFT_MSG_GETSETELEM, DUMP, set);
            let mut surplus = Vec::new();
            self.socket().query(question, |reply| {
                surplus.extend(elements(reply.attributes(HEADER_LEN)).filter_map(|element| {
                    let element = parse(set, &element)?;
                    (!keep(&element)).then_some(element)
                }));
            })?;
            self.remove(&surplus)?;
        }
        Ok(())
    }

    /// Frames of an interface that were dropped.
    pub(super) fn denied(&self, port: &str) -> io::Result<u64> {
        let element = Key::device(port).in_set(Set::Denied);
        let question = of_element(libc::NFT_MSG_GETSETELEM, 0, &element);
        let mut packets = 0;
        let result = self.socket().query(question, |reply| {
            packets = elements(reply.attributes(HEADER_LEN)).find_map(|e| counter(&e)).unwrap_or(0);
        });
        match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            other => other.map(|()| packets),
        }
    }
}

/// Name of a chain that tells this version of the rules from others.
fn mark() -> String {
    let digest = Sha256::digest(RULES);
    let digest: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("version_{digest}")
}

/// Has `nft` load the rules.
fn load(mark: &str) -> io::Result<()> {
    let mut text = String::new();
    for family in ["inet", "bridge"] {
        text += &format!("add table {family} {TABLE}\ndelete table {family} {TABLE}\n");
    }
    text += RULES;
    text += &format!("add chain inet {TABLE} {mark}\n");
    let mut nft = Command::new(NFT).args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = nft.stdin.take() {
        stdin.write_all(text.as_bytes())?;
    }
    let output = nft.wait_with_output()?;
    if output.status.success() {
        Ok(())
    } else {
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

/// A request to nf_tables.
fn message(kind: libc::c_int, flags: u16, family: Family) -> Message {
    let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16;
    Message::new(kind, flags, &[family as u8, libc::NFNETLINK_V0 as u8, 0, 0])
}

/// Begin or end of a batch.
fn edge(kind: libc::c_int) -> Message {
    let subsystem = (libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes();
    Message::new(kind as u16, 0, &[0, libc::NFNETLINK_V0 as u8, subsystem[0], subsystem[1]])
}

fn of_set(kind: libc::c_int, flags: u16, set: Set) -> Message {
    message(kind, flags, set.family())
        .with_text(NFTA_SET_ELEM_LIST_TABLE, TABLE)
        .with_text(NFTA_SET_ELEM_LIST_SET, set.name())
}

fn of_element(kind: libc::c_int, flags: u16, element: &Element) -> Message {
    let value = |value: &[u8]| {
        let value = value.to_vec();
        move |data: Message| data.with(NFTA_DATA_VALUE, value)
    };
    of_set(kind, flags, element.set).with_nested(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
        list.with_nested(NFTA_LIST_ELEM, |item| {
            let item = item.with_nested(NFTA_SET_ELEM_KEY, value(&element.key));
            match element.data.is_empty() {
                true => item,
                false => item.with_nested(NFTA_SET_ELEM_DATA, value(&element.data)),
            }
        })
    })
}

/// The elements of an answer.
fn elements<'a>(attributes: Attributes<'a>) -> impl Iterator<Item = Attributes<'a>> {
    let list = attributes.nested(NFTA_SET_ELEM_LIST_ELEMENTS);
    list.into_iter()
        .flatten()
        .filter(|(kind, _)| *kind == NFTA_LIST_ELEM)
        .map(|(_, item)| Attributes::of(item))
}

fn parse(set: Set, item: &Attributes<'_>) -> Option<Element> {
    let value = |kind| Some(item.nested(kind)?.get(NFTA_DATA_VALUE)?.to_vec());
    Some(Element { set, key: value(NFTA_SET_ELEM_KEY)?, data: value(NFTA_SET_ELEM_DATA).unwrap_or_default() })
}

/// Packets counted by an element.
fn counter(item: &Attributes<'_>) -> Option<u64> {
    let expression = item.nested(NFTA_SET_ELEM_EXPRESSION)?;
    if expression.text(NFTA_EXPR_NAME) != Some("counter") {
        return None;
    }
    let packets = expression.nested(NFTA_EXPR_DATA)?.get(NFTA_COUNTER_PACKETS)?;
    Some(u64::from_be_bytes(packets.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::linux::netlink::answer;
    use proptest::prelude::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn keys_are_laid_out_as_nft_does_it() {
        let [ports, denied, ipv4, arp, ipv6, target, ..] = &interface(
            "vif5.0",
            [0x0a, 0xfc, 10, 88, 1, 2],
            Ipv4Addr::new(10, 88, 1, 2),
            [Ipv6Addr::LOCALHOST; 2],
        )[..] else {
            panic!("elements are missing")
        };
        let (device, mac, address) = ("766966352e3000000000000000000000", "0afc0a5801020000", "0a580102");
        assert_eq!((hex(&ports.key), hex(&denied.key)), (device.into(), device.into()));
        assert_eq!(hex(&ipv4.key), format!("{device}{mac}{address}"));
        assert_eq!(hex(&arp.key), format!("{device}{mac}{mac}{address}"));
        assert_eq!(hex(&ipv6.key), format!("{device}{mac}00000000000000000000000000000001"));
        assert_eq!(ipv6.key, target.key);
        let publish =
            Publish { protocol: Protocol::Tcp, node_port: 8080, ipv4: Ipv4Addr::new(10, 88, 1, 2), port: 80 };
        let element = published(&publish);
        assert_eq!(
            (hex(&element.key), hex(&element.data)),
            ("060000001f900000".into(), "0a58010200500000".into())
        );
    }

    #[test]
    fn all_sets_are_in_the_rules() {
        for set in Set::ALL {
            let keyword = if set == Set::Published { "map" } else { "set" };
            assert!(RULES.contains(&format!("\t{keyword} {} {{\n", set.name())), "{set:?}");
        }
    }

    #[test]
    fn what_is_asked_for_an_element_is_read_from_an_answer() {
        let publish = Publish { protocol: Protocol::Udp, node_port: 1, ipv4: Ipv4Addr::LOCALHOST, port: 2 };
        for element in interface("vif1.0", [2; 6], Ipv4Addr::LOCALHOST, [Ipv6Addr::LOCALHOST; 2])
            .into_iter()
            .chain([published(&publish)])
        {
            let message = of_element(libc::NFT_MSG_NEWSETELEM, CREATE, &element);
            let parsed = answer(message, |reply| {
                elements(reply.attributes(HEADER_LEN))
                    .filter_map(|item| parse(element.set, &item))
                    .collect::<Vec<_>>()
            });
            assert_eq!(parsed, [element]);
        }
    }

    #[test]
    fn packets_of_a_counter_are_read() {
        let message = of_set(libc::NFT_MSG_NEWSETELEM, 0, Set::Denied).with_nested(
            NFTA_SET_ELEM_LIST_ELEMENTS,
            |list| {
                list.with_nested(NFTA_LIST_ELEM, |item| {
                    item.with_nested(NFTA_SET_ELEM_EXPRESSION, |expression| {
                        expression.with_text(NFTA_EXPR_NAME, "counter").with_nested(NFTA_EXPR_DATA, |data| {
                            data.with(NFTA_COUNTER_PACKETS, 7u64.to_be_bytes())
                        })
                    })
                })
            },
        );
        let packets =
            answer(message, |reply| elements(reply.attributes(HEADER_LEN)).find_map(|item| counter(&item)));
        assert_eq!(packets, Some(7));
    }

    proptest! {
        #[test]
        fn no_answer_hurts(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for item in elements(Attributes::of(&bytes)) {
                parse(Set::Published, &item);
                counter(&item);
            }
            parse(Set::Ports, &Attributes::of(&bytes));
            counter(&Attributes::of(&bytes));
        }
    }
}
