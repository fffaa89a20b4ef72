//! Listening on the gateways, and asking the node's own name server.
//!
//! Capsules are hostile: each may have only so many questions under way, all together only so
//! many more, and each for a short time.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use simple_dns::RCODE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::{MAX_QUERY, Reply, Zone, answer, failure};
use crate::daemon::Daemon;
use crate::net::Network;

/// Port of name servers.
const PORT: u16 = 53;
/// File with the node's own name servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How many of them are asked.
const MAX_SERVERS: usize = 2;
/// How long one of them has.
const ANSWER: Duration = Duration::from_secs(2);
/// Longest answer over UDP.
const MAX_ANSWER: usize = 4096;
/// How long a TCP connection may be idle.
const IDLE: Duration = Duration::from_secs(5);
/// Most questions that are under way, of all capsules and of one.
const UNDER_WAY: (usize, usize) = (128, 16);
/// How long it takes until binding is tried again: the address may not be there yet.
const AGAIN: Duration = Duration::from_secs(1);

/// Serves on the gateways of all networks as they come and go.
pub async fn serve(daemon: Arc<Daemon>) {
    let gate = Arc::<Gate>::default();
    let mut networks = daemon.networks.watch();
    let mut serving: BTreeMap<String, (Network, Vec<AbortHandle>)> = BTreeMap::new();
    loop {
        let now = networks.borrow_and_update().clone();
        serving.retain(|_, (network, tasks)| {
            let stays = now.contains(network);
            tasks.iter().filter(|_| !stays).for_each(AbortHandle::abort);
            stays
        });
        for network in now {
            if serving.contains_key(&network.name) {
                continue;
            }
            let gateways = [IpAddr::V4(network.gateway4.0), IpAddr::V6(network.gateway6.0)];
            let tasks = gateways.into_iter().flat_map(|gateway| {
                let here = Here {
                    daemon: daemon.clone(),
                    network: network.clone(),
                    at: SocketAddr::from((gateway, PORT)),
                    gate: gate.clone(),
                };
                let here = Arc::new(here);
                [tokio::spawn(here.clone().serve_udp()), tokio::spawn(here.serve_tcp())]
            });
            let tasks = tasks.map(|task| task.abort_handle()).collect();
            serving.insert(network.name.clone(), (network, tasks));
        }
        if networks.changed().await.is_err() {
            return;
        }
    }
}

/// One gateway address.
struct Here {
    daemon: Arc<Daemon>,
    network: Network,
    at: SocketAddr,
    gate: Arc<Gate>,
}

impl Zone for Here {
    fn addresses(&self, name: &str) -> Option<(Ipv4Addr, Ipv6Addr)> {
        self.daemon.networks.named(&self.network.name, name)
    }

    fn name(&self, address: IpAddr) -> Option<String> {
        self.daemon.networks.addressed(&self.network.name, address)
    }

    fn has(&self, address: IpAddr) -> bool {
        self.network.contains(address)
    }
}

impl Here {
    /// Tries until it works: addresses appear a moment after their bridge.
    async fn bind<T, F: Future<Output = io::Result<T>>>(&self, bind: impl Fn(SocketAddr) -> F) -> T {
        let mut told = false;
        loop {
            match bind(self.at).await {
                Ok(socket) => return socket,
                Err(error) if told => tracing::debug!(at = %self.at, %error, "still no name server"),
                Err(error) => {
                    tracing::warn!(at = %self.at, %error, "no name server yet");
                    told = true;
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn serve_udp(self: Arc<Self>) {
        let socket = Arc::new(self.bind(UdpSocket::bind).await);
        let mut buffer = [0; MAX_QUERY + 1];
        loop {
            let (len, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // An ICMP error about an earlier answer, or a lack of memory.
                Err(error) => {
                    tracing::debug!(at = %self.at, %error, "a question cannot be received");
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            if !self.network.contains(from.ip()) {
                continue;
            }
            let query = &buffer[..len];
            match answer(&*self, query) {
                // What does not fit into the socket's buffer is asked again.
                Reply::Answer(reply) => drop(socket.try_send_to(&reply, from)),
                Reply::Forward if !self.network.outbound => {
                    failure(query, RCODE::Refused).map(|reply| socket.try_send_to(&reply, from));
                }
                Reply::Forward => {
                    let Some(pass) = Gate::enter(&self.gate, from.ip()) else { continue };
                    let (socket, query) = (socket.clone(), query.to_vec());
                    tokio::spawn(async move {
                        let reply = forward(&servers(), &query, ask_udp).await;
                        let _ = socket.try_send_to(&reply, from);
                        drop(pass);
                    });
                }
                Reply::Nothing => {}
            }
        }
    }

    async fn serve_tcp(self: Arc<Self>) {
        let listener = self.bind(TcpListener::bind).await;
        loop {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(at = %self.at, %error, "a connection cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            if !self.network.contains(from.ip()) {
                continue;
            }
            let Some(pass) = Gate::enter(&self.gate, from.ip()) else { continue };
            let this = self.clone();
            tokio::spawn(async move {
                // Ends with an error when the other side is done, in one way or another.
                let _ = this.converse(stream).await;
                drop(pass);
            });
        }
    }

    /// Answers the questions of a connection, one after the other: RFC 1035, section 4.2.2.
    async fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let query = timeout(IDLE, read_message(&mut stream, MAX_QUERY)).await??;
            let reply = match answer(self, &query) {
                Reply::Answer(reply) => reply,
                Reply::Forward if self.network.outbound => forward(&servers(), &query, ask_tcp).await,
                Reply::Forward => failure(&query, RCODE::Refused).unwrap_or_default(),
                Reply::Nothing => return Ok(()),
            };
            timeout(IDLE, write_message(&mut stream, &reply)).await??;
        }
    }
}

async fn read_message(stream: &mut TcpStream, max: usize) -> io::Result<Vec<u8>> {
    let len = usize::from(stream.read_u16().await?);
    if len > max {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; len];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let len = u16::try_from(message.len()).map_err(io::Error::other)?;
    // In one piece, so that it goes out as one.
    stream.write_all(&[&len.to_be_bytes(), message].concat()).await
}

/// The node's own name servers.
fn servers() -> Vec<SocketAddr> {
    parse_servers(&std::fs::read_to_string(RESOLV_CONF).unwrap_or_default())
}

fn parse_servers(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| line.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok();
    text.lines().filter_map(address).take(MAX_SERVERS).map(|ip| SocketAddr::from((ip, PORT))).collect()
}

/// Asks one server after the other, each with a number of our own: who sees the question of a
/// capsule cannot answer in the server's place.
async fn forward<F: Future<Output = io::Result<Vec<u8>>>>(
    servers: &[SocketAddr],
    query: &[u8],
    ask: impl Fn(SocketAddr, Vec<u8>) -> F,
) -> Vec<u8> {
    for server in servers {
        let mut question = query.to_vec();
        let mut number = [0; 2];
        getrandom::fill(&mut number).expect("the kernel gives randomness");
        question[..2].copy_from_slice(&number);
        match timeout(ANSWER, ask(*server, question)).await {
            Ok(Ok(mut reply)) if reply.len() >= 2 => {
                reply[..2].copy_from_slice(&query[..2]);
                return reply;
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%server, %error, "the name server does not answer"),
            Err(_) => tracing::debug!(%server, "the name server takes too long"),
        }
    }
    failure(query, RCODE::ServerFailure).unwrap_or_default()
}

fn is_reply(question: &[u8], reply: &[u8]) -> bool {
    reply.len() >= super::HEADER && reply[..2] == question[..2] && reply[2] & 0x80 != 0
}

async fn ask_udp(server: SocketAddr, question: Vec<u8>) -> io::Result<Vec<u8>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&question).await?;
    let mut reply = vec![0; MAX_ANSWER];
    loop {
        let len = socket.recv(&mut reply).await?;
        if is_reply(&question, &reply[..len]) {
            reply.truncate(len);
            return Ok(reply);
        }
    }
}

async fn ask_tcp(server: SocketAddr, question: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, &question).await?;
    let reply = read_message(&mut stream, usize::from(u16::MAX)).await?;
    if is_reply(&question, &reply) { Ok(reply) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Counts what is under way.
#[derive(Default)]
struct Gate {
    inside: Mutex<HashMap<IpAddr, usize>>,
}

/// Leaves the gate when it is dropped.
struct Pass {
    gate: Arc<Gate>,
    who: IpAddr,
}

impl Gate {
    /// Lets somebody in, unless there are too many inside.
    fn enter(gate: &Arc<Self>, who: IpAddr) -> Option<Pass> {
        let mut inside = gate.inside.lock().unwrap();
        let (all, his) = (inside.values().sum::<usize>(), inside.get(&who).copied().unwrap_or(0));
        if all >= UNDER_WAY.0 || his >= UNDER_WAY.1 {
            return None;
        }
        inside.insert(who, his + 1);
        Some(Pass { gate: gate.clone(), who })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut inside = self.gate.inside.lock().unwrap();
        if let Some(count) = inside.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                inside.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_all_places() {
        let gate = Arc::<Gate>::default();
        let who = |n: u8| IpAddr::from([10, 88, 1, n]);
        let mut inside: Vec<_> = (0..100).filter_map(|_| Gate::enter(&gate, who(1))).collect();
        assert_eq!(inside.len(), UNDER_WAY.1);
        inside.extend((2..100).flat_map(|n| Gate::enter(&gate, who(n))));
        assert_eq!(inside.len(), UNDER_WAY.1 + 98);
        inside.extend((2..100).flat_map(|n| Gate::enter(&gate, who(n))));
        assert_eq!(inside.len(), UNDER_WAY.0);
        drop(inside);
        assert!(gate.inside.lock().unwrap().is_empty());
    }

    #[test]
    fn name_servers_are_read() {
        let text = "# nameserver 9.9.9.9\nsearch x\nnameserver 10.0.2.3\n nameserver fe80::zz\nnameserver ::1\nnameserver 1.1.1.1\n";
        let servers: Vec<_> = parse_servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.2.3:53", "[::1]:53"]);
    }

    #[tokio::test]
    async fn questions_are_passed_on_under_another_number() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = server.local_addr().unwrap();
        let question = [&[7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], b"\x01x\x01y\0\0\x01\0\x01"].concat();
        let respond = async {
            let mut buffer = [0; 100];
            let (len, from) = server.recv_from(&mut buffer).await.unwrap();
            assert_eq!(buffer[2..len], question[2..]);
            let mut reply = buffer[..len].to_vec();
            // Somebody guesses, and is not believed.
            let wrong = [&[!reply[0], reply[1], 0x80], &reply[3..]].concat();
            server.send_to(&wrong, from).await.unwrap();
            server.send_to(&reply, from).await.unwrap();
            reply[2] = 0x81;
            server.send_to(&reply, from).await.unwrap();
        };
        let servers = [at];
        let (reply, ()) = tokio::join!(forward(&servers, &question, ask_udp), respond);
        assert_eq!(reply[..3], [7, 7, 0x81]);
        assert_eq!(reply[3..], question[3..]);
    }

    #[tokio::test]
    async fn without_an_answer_it_says_so() {
        let question = [7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let reply = forward(&[], &question, ask_udp).await;
        assert_eq!((reply[0], reply[1], reply[3] & 0x0f), (7, 7, 2));
    }
}
