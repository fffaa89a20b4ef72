//! Connections of other nodes.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::runtime::Handle;

use super::journal::{Attempt, In};
use super::kept::WAITED_FOR;
use super::records::{Reader, Writer};
use super::tls::PeerId;
use super::{ASK, BUSY, GONE, MOVE, RELEASED, TAKEN, WELCOME, arrive};
use crate::daemon::Daemon;

/// How long the other side may take for its first words.
const PATIENCE: Duration = Duration::from_secs(10);
/// The card towards other nodes.
const CARD: &str = "eth1";

/// Serves other nodes on a thread of its own, for as long as the process lives.
///
/// # Errors
/// When the thread cannot be started.
pub fn serve(daemon: Arc<Daemon>, listener: TcpListener) -> io::Result<()> {
    let runtime = Handle::current();
    daemon.migrations.set_address(listener.local_addr()?);
    // The thread waits for connections; it is not what keeps the daemon.
    let daemon = Arc::downgrade(&daemon);
    std::thread::Builder::new().name("other nodes".into()).spawn(move || {
        for socket in listener.incoming() {
            match socket {
                Ok(socket) => {
                    if daemon.strong_count() == 0 {
                        return;
                    }
                    let (daemon, runtime) = (daemon.clone(), runtime.clone());
                    let handle = move || {
                        if let Err(error) = handle(&daemon, &runtime, socket) {
                            tracing::warn!(%error, "a connection of another node came to nothing");
                        }
                    };
                    if let Err(error) = std::thread::Builder::new().name("other node".into()).spawn(handle) {
                        tracing::error!(%error, "no thread for another node");
                    }
                }
                Err(error) => tracing::warn!(%error, "another node could not connect"),
            }
        }
    })?;
    Ok(())
}

/// The address under which other nodes reach what listens on `bound`.
pub(super) fn reachable(bound: SocketAddr) -> SocketAddr {
    if !bound.ip().is_unspecified() {
        return bound;
    }
    if let Ok(address) = address_of_card() {
        return SocketAddr::new(address, bound.port());
    }
    let addresses = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|interface| {
        let address = interface.address?.as_sockaddr_in()?.ip();
        Some((interface.interface_name, address))
    });
    let usable: Vec<_> = addresses.filter(|(_, address)| !address.is_loopback()).collect();
    usable.first().map_or(bound, |&(_, address)| SocketAddr::new(IpAddr::V4(address), bound.port()))
}

/// The address that a datagram out of the card would have. The list of all interfaces has one for
/// each capsule.
fn address_of_card() -> io::Result<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    setsockopt(&socket, sockopt::BindToDevice, &CARD.into())?;
    // Nothing is sent (RFC 5737).
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
    let address = socket.local_addr()?.ip();
    if address.is_unspecified() || address.is_loopback() {
        return Err(io::ErrorKind::AddrNotAvailable.into());
    }
    Ok(address)
}

/// Reads as many bytes as there is room for.
pub(super) fn read_exact(reader: &mut Reader, bytes: &mut [u8], patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    let mut filled = 0;
    while filled < bytes.len() {
        match reader.read(&mut bytes[filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => filled += len,
            Err(error) if is_pause(&error) && Instant::now() < deadline => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes all bytes and sends them off.
pub(super) fn write_all(writer: &mut Writer, mut bytes: &[u8], patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let done = if bytes.is_empty() { writer.flush().map(|()| 0) } else { writer.write(bytes) };
        match done {
            Ok(0) if bytes.is_empty() => return Ok(()),
            Ok(len) => bytes = &bytes[len..],
            Err(error) if is_pause(&error) && Instant::now() < deadline => {}
            Err(error) => return Err(error),
        }
    }
}

fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

fn handle(daemon: &Weak<Daemon>, runtime: &Handle, socket: TcpStream) -> io::Result<()> {
    let Some(here) = daemon.upgrade() else { return Ok(()) };
    let identity = here.migrations.identity()?;
    let member = here.membership.credentials();
    let (mut reader, mut writer, from) = identity.accept(socket, member.as_ref())?;
    let authority = member.map(|member| member.identity().authority().to_string());
    drop((here, identity));
    let mut is_new = true;
    loop {
        // Whoever waits here keeps no daemon.
        let patience = if is_new { PATIENCE } else { WAITED_FOR };
        if !reader.wait(patience)? {
            return if is_new { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) };
        }
        let mut head = [0; 17];
        match read_exact(&mut reader, &mut head, PATIENCE) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !is_new => return Ok(()),
            other => other?,
        }
        let Some(daemon) = daemon.upgrade() else { return Ok(()) };
        if daemon.membership.authority() != authority {
            return Err(io::Error::other(
                "this node is not in the cluster any more in which it was accepted",
            ));
        }
        let attempt: Attempt = std::array::from_fn(|index| head[index + 1]);
        match head[0] {
            MOVE => {
                let Some(under_way) = daemon.migrations.admit(attempt, &from) else {
                    write_all(&mut writer, &[GONE], PATIENCE)?;
                    return Err(io::Error::other("it has no ticket, or one of somebody else"));
                };
                write_all(&mut writer, &[WELCOME], PATIENCE)?;
                if !arrive::receive(&daemon, runtime, under_way, &from, &mut reader, &mut writer) {
                    return Ok(());
                }
            }
            ASK => return answer(&daemon, &attempt, &from, &mut reader, &mut writer),
            _ => return Err(io::Error::other("it does not say what it wants")),
        }
        is_new = false;
    }
}

/// Says what became of an attempt.
fn answer(
    daemon: &Daemon,
    attempt: &Attempt,
    from: &PeerId,
    reader: &mut Reader,
    writer: &mut Writer,
) -> io::Result<()> {
    let journal = &daemon.migrations.journal;
    // In this order: a claim that is written meanwhile is one of an attempt that was under way.
    let busy = daemon.migrations.is_under_way(attempt);
    match journal.read::<In>(attempt, "in")? {
        Some(claim) if claim.source == from.to_string() => {
            write_all(writer, &[TAKEN], PATIENCE)?;
            let mut reply = [0];
            read_exact(reader, &mut reply, PATIENCE)?;
            if reply[0] == RELEASED && !daemon.migrations.is_under_way(attempt) {
                journal.remove(attempt, "in")?;
            }
            Ok(())
        }
        Some(_) => Err(io::Error::other("it asks for the capsule of another node")),
        None => write_all(writer, &[if busy { BUSY } else { GONE }], PATIENCE),
    }
}
