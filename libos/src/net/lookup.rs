//! From names to addresses.

use super::{Error, IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket, with};
use crate::{random, time};
use alloc::{string::String, vec, vec::Vec};
use core::time::Duration;
use fcap_libos_net::dns::{self, Answer, Kind};

/// How long a name server may think, the first time and later.
const PATIENCE: [Duration; 3] = [Duration::from_millis(1500), Duration::from_secs(2), Duration::from_secs(4)];

mod sealed {
    use super::{Error, SocketAddr, Vec};

    pub trait Resolve {
        fn resolve(&self) -> impl Future<Output = Result<Vec<SocketAddr>, Error>>;
    }
}

/// What can be turned into addresses with ports: an address with a port, or a name with a port,
/// as a text `"name:80"` or a pair `("name", 80)`.
pub trait ToSocketAddrs: sealed::Resolve {}

impl<T: sealed::Resolve + ?Sized> ToSocketAddrs for T {}

/// The addresses of a host.
///
/// IPv6 addresses come first. Numbers are understood without a name server, and so is
/// `localhost`.
///
/// # Errors
/// If there is no such name, or no name server that would know.
pub async fn lookup_host(host: impl ToSocketAddrs) -> Result<vec::IntoIter<SocketAddr>, Error> {
    host.resolve().await.map(Vec::into_iter)
}

async fn resolve_name(name: &str, port: u16) -> Result<Vec<SocketAddr>, Error> {
    let plain = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let addresses = match plain.parse() {
        Ok(address) => vec![address],
        Err(_) if name.eq_ignore_ascii_case("localhost") => {
            vec![IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::LOCALHOST)]
        }
        Err(_) => ask(name).await?,
    };
    Ok(addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect())
}

/// Asks the name servers for both kinds of addresses that the capsule can use.
async fn ask(name: &str) -> Result<Vec<IpAddr>, Error> {
    let (servers, families) = with(|network| {
        let has = |test: fn(&fcap_libos_net::Config) -> bool| network.stack.addresses().any(test);
        let kinds = [
            (Kind::Aaaa, has(|config| config.ipv6.is_some())),
            (Kind::A, has(|config| config.ipv4.is_some())),
        ];
        (network.name_servers.clone(), kinds)
    });
    if servers.is_empty() {
        return Err(Error::NoNameServer);
    }
    let kinds: Vec<Kind> = families.into_iter().filter_map(|(kind, used)| used.then_some(kind)).collect();
    let mut error = Error::TimedOut;
    for patience in PATIENCE {
        for &server in &servers {
            match ask_server(server, name, &kinds, patience).await {
                Ok(addresses) => return Ok(addresses),
                Err(found @ (Error::NameNotFound | Error::InvalidName)) => return Err(found),
                Err(found) => error = found,
            }
        }
    }
    Err(error)
}

/// Asks one name server for all kinds at once.
async fn ask_server(
    server: IpAddr,
    name: &str,
    kinds: &[Kind],
    patience: Duration,
) -> Result<Vec<IpAddr>, Error> {
    let unspecified = match server {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind(SocketAddr::new(unspecified, 0)).await?;
    let server = SocketAddr::new(server, dns::PORT);
    socket.connect(server).await?;
    let mut open = Vec::new();
    for &kind in kinds {
        let question = dns::question(random::u64() as u16, name, kind).ok_or(Error::InvalidName)?;
        socket.send(&question).await?;
        open.push(question);
    }
    let (mut ipv6, mut ipv4) = (Vec::new(), Vec::new());
    let answers = async {
        let mut message = [0; dns::MESSAGE_MAX];
        while !open.is_empty() {
            let len = socket.recv(&mut message).await?;
            let answered = open
                .iter()
                .enumerate()
                .find_map(|(at, question)| Some((at, dns::answer(question, &message[..len])?)));
            let Some((at, answer)) = answered else { continue };
            open.swap_remove(at);
            match answer {
                Answer::Addresses(found) if found.first().is_some_and(IpAddr::is_ipv6) => ipv6 = found,
                Answer::Addresses(found) => ipv4.extend(found),
                Answer::NoSuchName => {}
                Answer::Failed => return Err(Error::NameServerFailed),
            }
        }
        Ok(())
    };
    let in_time = time::timeout(patience, answers).await;
    ipv6.append(&mut ipv4);
    match in_time {
        Ok(Err(error)) => Err(error),
        // One kind of address is better than none.
        _ if !ipv6.is_empty() => Ok(ipv6),
        Ok(Ok(())) => Err(Error::NameNotFound),
        Err(_) => Err(Error::TimedOut),
    }
}

impl sealed::Resolve for SocketAddr {
    async fn resolve(&self) -> Result<Vec<SocketAddr>, Error> {
        Ok(vec![*self])
    }
}

impl sealed::Resolve for SocketAddrV4 {
    async fn resolve(&self) -> Result<Vec<SocketAddr>, Error> {
        Ok(vec![SocketAddr::V4(*self)])
    }
}

impl sealed::Resolve for SocketAddrV6 {
    async fn resolve(&self) -> Result<Vec<SocketAddr>, Error> {
        Ok(vec![SocketAddr::V6(*self)])
    }
}

impl sealed::Resolve for (IpAddr, u16) {
    async fn resolve(&self) -> Result<Vec<SocketAddr>, Error> {
        Ok(vec![SocketAddr::from(*self)])
    }
}

impl sealed::Resolve for (Ipv4Addr, u16) {
    async fn resolve(&self) -> Result<Vec<SocketAddr>, Error> {
        Ok(vec![SocketAddr::from(*self)])
    }
}

impl sealed::Resolve for (Ipv6Addr, u16) {
    async fn resolve(&self) -> Result<Vec<SocketAddr>, Error> {
        Ok(vec![SocketAddr::from(*self)])
    }
}

impl sealed::Resolve for (&str, u16) {
    async fn resolve(&self) -> Result<Vec<SocketAddr>, Error> {
        resolve_name(self.0, self.1).await
    }
}

impl sealed::Resolve for (String, u16) {
    async fn resolve(&self) -> Result<Vec<SocketAddr>, Error> {
        resolve_name(&self.0, self.1).await
    }
}

impl sealed::Resolve for str {
    async fn resolve(&self) -> Result<Vec<SocketAddr>, Error> {
        let (name, port) = self.rsplit_once(':').ok_or(Error::InvalidName)?;
        let port = port.parse().map_err(|_| Error::InvalidName)?;
        resolve_name(name, port).await
    }
}

impl sealed::Resolve for String {
    async fn resolve(&self) -> Result<Vec<SocketAddr>, Error> {
        self.as_str().resolve().await
    }
}

impl sealed::Resolve for [SocketAddr] {
    async fn resolve(&self) -> Result<Vec<SocketAddr>, Error> {
        Ok(self.to_vec())
    }
}

impl<T: sealed::Resolve + ?Sized> sealed::Resolve for &T {
    async fn resolve(&self) -> Result<Vec<SocketAddr>, Error> {
        (**self).resolve().await
    }
}
