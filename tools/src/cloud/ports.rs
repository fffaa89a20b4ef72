//! Published ports of nodes on the user's own computer.
//!
//! QEMU's user network forwards a port of 127.0.0.1 to the same port of the node, where the
//! node's daemon leads it to a capsule. QEMU's table is the only record.

use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;

use fcap_api::{Protocol, PublishedPort};

use super::qmp::Qmp;
use super::{CloudError, Node, Result};

/// QEMU's name of the user network.
pub(super) const NETDEV: &str = "net0";
/// Command that shows the table.
pub(super) const TABLE: &str = "info usernet";

/// A line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Forward {
    protocol: Protocol,
    /// Port on 127.0.0.1.
    pub(super) outer: u16,
    /// Port of the node.
    pub(super) inner: u16,
}

/// Reads QEMU's table: protocol and state, descriptor, source address and port, destination
/// address and port.
pub(super) fn forwards(table: &str) -> Vec<Forward> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [kind, _, _, outer, _, inner, ..] = words[..] else { return None };
        let protocol = match kind {
            "TCP[HOST_FORWARD]" => Protocol::Tcp,
            "UDP[HOST_FORWARD]" => Protocol::Udp,
            _ => return None,
        };
        Some(Forward { protocol, outer: outer.parse().ok()?, inner: inner.parse().ok()? })
    };
    table.lines().filter_map(line).collect()
}

/// Forwards these ports, and with `only` no others.
pub(super) fn set(folder: &Path, node: &Node, ports: &[PublishedPort], only: bool) -> Result<()> {
    let mut qmp = Qmp::connect(&node.name, &folder.join("qmp"))?;
    let mut present = forwards(&qmp.monitor(TABLE)?);
    // Those of the node itself are nobody's to take.
    present.retain(|forward| forward.outer != node.port && Some(forward.outer) != node.shell_port);
    let wanted: Vec<Forward> = ports
        .iter()
        .map(|port| Forward { protocol: port.protocol, outer: port.host_port, inner: port.host_port })
        .collect();
    if only {
        for forward in present.iter().filter(|forward| !wanted.contains(forward)) {
            let Forward { protocol, outer, .. } = forward;
            qmp.monitor(&format!("hostfwd_remove {NETDEV} {protocol}:127.0.0.1:{outer}"))?;
        }
    }
    for forward in wanted.into_iter().filter(|forward| !present.contains(forward)) {
        add(&mut qmp, node, forward)?;
    }
    Ok(())
}

fn add(qmp: &mut Qmp, node: &Node, forward: Forward) -> Result<()> {
    let Forward { protocol, outer, inner } = forward;
    let command = format!("hostfwd_add {NETDEV} {protocol}:127.0.0.1:{outer}-:{inner}");
    // It says something only if it fails, and then not why.
    let answer = qmp.monitor(&command)?;
    if answer.trim().is_empty() {
        return Ok(());
    }
    match try_to_bind(protocol, outer) {
        Err(source) if source.kind() == io::ErrorKind::AddrInUse => {
            Err(CloudError::PortTaken { port: outer, protocol })
        }
        Err(source) => Err(CloudError::Port { port: outer, protocol, source }),
        Ok(()) => Err(CloudError::Qmp { node: node.name.clone(), command, answer }),
    }
}

fn try_to_bind(protocol: Protocol, port: u16) -> io::Result<()> {
    let address = (Ipv4Addr::LOCALHOST, port);
    match protocol {
        Protocol::Tcp => TcpListener::bind(address).map(drop),
        Protocol::Udp => UdpSocket::bind(address).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded_ports_are_read_from_qemus_table() {
        let table = "Hub -1 (net0):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n\
                     \x20 TCP[HOST_FORWARD]  13       127.0.0.1 36293       10.0.2.15  7070     0     0\r\n\
                     \x20 TCP[ESTABLISHED]   14       127.0.0.1 36293       10.0.2.15  7070     0     0\r\n\
                     \x20 UDP[HOST_FORWARD]  12       127.0.0.1 34915       10.0.2.15  53       0     0\r\n";
        let expected = [
            Forward { protocol: Protocol::Tcp, outer: 36293, inner: 7070 },
            Forward { protocol: Protocol::Udp, outer: 34915, inner: 53 },
        ];
        assert_eq!(forwards(table), expected);
        assert_eq!(forwards("nothing"), []);
    }

    #[test]
    fn a_taken_port_is_found_to_be_taken() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert_eq!(try_to_bind(Protocol::Tcp, port).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(taken);
        try_to_bind(Protocol::Tcp, port).unwrap();
    }
}
