//! From names to addresses.

use super::{Error, IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket, with};
use crate::{random, time};
use alloc::{string::String, vec, vec::Vec};
use core::{
    future::poll_fn,
    task::{Poll, ready},
    time::Duration,
};
use fcap_libos_net::dns::{self, Answer, Kind};

/// How long a name server may think, the first time and later.
const PATIENCE: [Duration; 3] = [Duration::from_millis(1500), Duration::from_secs(2), Duration::from_secs(4)];

/// What is known of a host without a name server.
#[derive(Debug)]
pub enum Host<'a> {
    /// Its addresses.
    Known(Vec<SocketAddr>),
    /// Its name and the port.
    Named(&'a str, u16),
}

mod sealed {
    use super::{Error, Host};

    pub trait Named {
        fn host(&self) -> Result<Host<'_>, Error>;
    }
}

/// What can be turned into addresses with ports: an address with a port, or a name with a port,
/// as a text `"name:80"` or a pair `("name", 80)`.
pub trait ToSocketAddrs: sealed::Named {}

impl<T: sealed::Named + ?Sized> ToSocketAddrs for T {}

/// The addresses of a host.
///
/// IPv6 addresses come first. Numbers are understood without a name server, and so is
/// `localhost`.
///
/// # Errors
/// If there is no such name, or no name server that would know.
pub async fn lookup_host(host: impl ToSocketAddrs) -> Result<vec::IntoIter<SocketAddr>, Error> {
    resolve(host).await.map(Vec::into_iter)
}

pub(super) async fn resolve(host: impl ToSocketAddrs) -> Result<Vec<SocketAddr>, Error> {
    match host.host()? {
        Host::Known(addresses) => Ok(addresses),
        Host::Named(name, port) => {
            let addresses = ask(name).await?;
            Ok(addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect())
        }
    }
}

/// The addresses of a place of our own. It has no name that a name server would have to tell, so
/// that servers are linked without all that asking takes.
pub(super) fn own(place: impl ToSocketAddrs) -> Result<Vec<SocketAddr>, Error> {
    match place.host()? {
        Host::Known(addresses) => Ok(addresses),
        Host::Named(..) => Err(Error::InvalidName),
    }
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
    let server = SocketAddr::new(server, dns::PORT);
    let socket = UdpSocket::bind_to(SocketAddr::new(unspecified, 0))?;
    socket.connect_to(server)?;
    let question = |&kind| dns::question(random::u64() as u16, name, kind).ok_or(Error::InvalidName);
    let open = kinds.iter().map(question).collect::<Result<Vec<_>, _>>()?;
    for question in &open {
        socket.send_to_address(question, server).await?;
    }
    let mut found = Found { open, ipv6: Vec::new(), ipv4: Vec::new() };
    let mut message = [0; dns::MESSAGE_MAX];
    let answers = poll_fn(|cx| {
        while !found.open.is_empty() {
            let (len, _) = ready!(socket.poll_recv_from(&mut message, cx));
            found.take(&message[..len])?;
        }
        Poll::Ready(Ok(()))
    });
    let in_time = time::timeout(patience, answers).await;
    let Found { mut ipv6, mut ipv4, .. } = found;
    ipv6.append(&mut ipv4);
    match in_time {
        Ok(Err(error)) => Err(error),
        // One kind of address is better than none.
        _ if !ipv6.is_empty() => Ok(ipv6),
        Ok(Ok(())) => Err(Error::NameNotFound),
        Err(_) => Err(Error::TimedOut),
    }
}

/// What name servers have answered.
struct Found {
    /// Questions without an answer so far.
    open: Vec<Vec<u8>>,
    ipv6: Vec<IpAddr>,
    ipv4: Vec<IpAddr>,
}

impl Found {
    /// Reads a message, which may be an answer.
    fn take(&mut self, message: &[u8]) -> Result<(), Error> {
        let questions = self.open.iter().enumerate();
        let mut answers = questions.filter_map(|(at, asked)| Some((at, dns::answer(asked, message)?)));
        let Some((at, answer)) = answers.next() else { return Ok(()) };
        self.open.swap_remove(at);
        match answer {
            Answer::Addresses(found) if found.first().is_some_and(IpAddr::is_ipv6) => self.ipv6 = found,
            Answer::Addresses(found) => self.ipv4.extend(found),
            Answer::NoSuchName => {}
            Answer::Failed => return Err(Error::NameServerFailed),
        }
        Ok(())
    }
}

/// The host of a name that may be an address as well.
fn host(name: &str, port: u16) -> Host<'_> {
    let plain = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    match plain.parse() {
        Ok(address) => Host::Known(vec![SocketAddr::new(address, port)]),
        Err(_) if name.eq_ignore_ascii_case("localhost") => {
            let own: [IpAddr; 2] = [Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()];
            Host::Known(own.map(|address| SocketAddr::new(address, port)).into())
        }
        Err(_) => Host::Named(name, port),
    }
}

/// What is an address with its port.
macro_rules! known {
    ($($type:ty),*) => {$(
        impl sealed::Named for $type {
            fn host(&self) -> Result<Host<'_>, Error> {
                Ok(Host::Known(vec![SocketAddr::from(*self)]))
            }
        }
    )*};
}

known!(SocketAddr, SocketAddrV4, SocketAddrV6, (IpAddr, u16), (Ipv4Addr, u16), (Ipv6Addr, u16));

impl sealed::Named for [SocketAddr] {
    fn host(&self) -> Result<Host<'_>, Error> {
        Ok(Host::Known(self.to_vec()))
    }
}

impl sealed::Named for (&str, u16) {
    fn host(&self) -> Result<Host<'_>, Error> {
        Ok(host(self.0, self.1))
    }
}

impl sealed::Named for (String, u16) {
    fn host(&self) -> Result<Host<'_>, Error> {
        Ok(host(&self.0, self.1))
    }
}

impl sealed::Named for str {
    fn host(&self) -> Result<Host<'_>, Error> {
        let (name, port) = self.rsplit_once(':').ok_or(Error::InvalidName)?;
        Ok(host(name, port.parse().map_err(|_| Error::InvalidName)?))
    }
}

impl sealed::Named for String {
    fn host(&self) -> Result<Host<'_>, Error> {
        self.as_str().host()
    }
}

impl<T: sealed::Named + ?Sized> sealed::Named for &T {
    fn host(&self) -> Result<Host<'_>, Error> {
        (**self).host()
    }
}
