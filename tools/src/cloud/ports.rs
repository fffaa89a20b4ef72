//! Published ports of nodes on the user's own computer.
//!
//! QEMU's user network forwards a port of 127.0.0.1 to the same port of the node, where the
//! node's daemon leads it to a capsule. QEMU's table is the only record.

use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;

use fcap_api::{Protocol, PublishedPort};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::qmp::Qmp;
use super::{CloudError, Node, Result};

/// QEMU's name of the user network.
pub(super) const NETDEV: &str = "net0";
/// Command that shows the table.
pub(super) const TABLE: &str = "info usernet";
/// Clients of a port that QEMU has not accepted yet; the system has a limit of its own.
const BACKLOG: i32 = 4096;

/// A line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Forward {
    protocol: Protocol,
    /// Port on 127.0.0.1.
    pub(super) outer: u16,
    /// Port of the node.
    pub(super) inner: u16,
}

impl Forward {
    /// A published port is the same here and on the node.
    fn of(port: &PublishedPort) -> Self {
        Self { protocol: port.protocol, outer: port.host_port, inner: port.host_port }
    }
}

/// Reads QEMU's table.
pub(super) fn forwards(table: &str) -> Vec<Forward> {
    lines(table).map(|(forward, _)| forward).collect()
}

/// The lines of QEMU's table, each with QEMU's descriptor: protocol and state, descriptor, source
/// address and port, destination address and port.
fn lines(table: &str) -> impl Iterator<Item = (Forward, i32)> {
    table.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [kind, descriptor, _, outer, _, inner, ..] = words[..] else { return None };
        let protocol = match kind {
            "TCP[HOST_FORWARD]" => Protocol::Tcp,
            "UDP[HOST_FORWARD]" => Protocol::Udp,
            _ => return None,
        };
        let forward = Forward { protocol, outer: outer.parse().ok()?, inner: inner.parse().ok()? };
        Some((forward, descriptor.parse().ok()?))
    })
}

/// Gives the TCP ports in the table of the QEMU with this id room for many clients at once.
///
/// QEMU listens with room for one that it has not accepted. Of fifty that connect at once, most
/// would believe themselves connected while the system drops what they send, and would get in two
/// at a time after ever longer waits. A descriptor of the same socket can listen again.
///
/// Where the system gives one to QEMU's parent alone, as Yama does (`kernel.yama.ptrace_scope`),
/// later ports keep their little room.
pub(super) fn widen(qemu: u32, table: &str) {
    let pid = i32::try_from(qemu).ok().and_then(Pid::from_raw);
    let Some(Ok(process)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else { return };
    for (_, descriptor) in lines(table).filter(|(forward, _)| forward.protocol == Protocol::Tcp) {
        if let Ok(socket) = pidfd_getfd(&process, descriptor, PidfdGetfdFlags::empty()) {
            // Fails if it is no socket that listens, and then is none of ours.
            let _ = rustix::net::listen(socket, BACKLOG);
        }
    }
}

/// Forwards these ports too.
pub(super) fn add(folder: &Path, node: &Node, ports: &[PublishedPort]) -> Result<()> {
    let mut qmp = Qmp::connect(&node.name, &folder.join("qmp"))?;
    let present = forwards(&qmp.monitor(TABLE)?);
    for forward in ports.iter().map(Forward::of).filter(|forward| !present.contains(forward)) {
        add_one(&mut qmp, node, forward)?;
    }
    widen(node.pid, &qmp.monitor(TABLE)?);
    Ok(())
}

/// Forwards no other ports than these any more.
pub(super) fn retain(folder: &Path, node: &Node, ports: &[PublishedPort]) -> Result<()> {
    let mut qmp = Qmp::connect(&node.name, &folder.join("qmp"))?;
    let wanted: Vec<Forward> = ports.iter().map(Forward::of).collect();
    for forward in forwards(&qmp.monitor(TABLE)?) {
        let Forward { protocol, outer, .. } = forward;
        // Those of the node itself are nobody's to take.
        let is_the_nodes = outer == node.port || Some(outer) == node.shell_port;
        if !is_the_nodes && !wanted.contains(&forward) {
            qmp.monitor(&format!("hostfwd_remove {NETDEV} {protocol}:127.0.0.1:{outer}"))?;
        }
    }
    Ok(())
}

/// Forwards these ports no more; those that are not forwarded are as good.
pub(super) fn remove(folder: &Path, node: &Node, ports: &[PublishedPort]) -> Result<()> {
    let mut qmp = Qmp::connect(&node.name, &folder.join("qmp"))?;
    let present = forwards(&qmp.monitor(TABLE)?);
    for forward in ports.iter().map(Forward::of).filter(|forward| present.contains(forward)) {
        let Forward { protocol, outer, .. } = forward;
        qmp.monitor(&format!("hostfwd_remove {NETDEV} {protocol}:127.0.0.1:{outer}"))?;
    }
    Ok(())
}

fn add_one(qmp: &mut Qmp, node: &Node, forward: Forward) -> Result<()> {
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
    use std::net::TcpStream;
    use std::os::fd::AsRawFd;
    use std::time::Duration;

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
    fn many_clients_connect_at_once_to_a_port_with_room_for_one() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        let address = listener.local_addr().unwrap();
        let (descriptor, port) = (listener.as_raw_fd(), address.port());
        let table = format!("TCP[HOST_FORWARD] {descriptor} 127.0.0.1 {port} 10.0.2.15 80 0 0\r\n");
        widen(std::process::id(), &table);
        let connect = |_| TcpStream::connect_timeout(&address, Duration::from_secs(1)).unwrap();
        let clients: Vec<TcpStream> = (0..50).map(connect).collect();
        assert_eq!(clients.len(), 50);
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
