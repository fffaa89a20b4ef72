//! Nodes that carry the frames of their networks to each other, and tell each other where their
//! capsules are.
//!
//! Each node follows every other one: `GET /v1/overlay/endpoints?follow=true` gives all endpoints
//! of a node and then what changes, a JSON object a line, with an empty line now and then to show
//! that it is alive. Whoever breaks off is asked again. Nodes of a cluster ask by TLS with their
//! certificates, and take the node of the expected name alone; others show a token that follows from
//! the secret of the overlay. With encryption all of that goes through
//! the tunnel; the tunnel's keys follow from the secret that the nodes share, so that they need
//! not be exchanged.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use fcap_api::{DEFAULT_PORT, Overlay, OverlayPeer, OverlayStatus, OverlayUpdate};
use fcap_tls::rustls::pki_types::ServerName;
use fcap_tls::tokio_rustls::TlsConnector;
use fcap_tls::{Subject, explain};
use futures_util::Stream;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::endpoints::{Key, difference};
use super::tunnel_address;
use crate::daemon::{Daemon, blocking};
use crate::error::{Error, Result};
use crate::store::Store;

/// File of the state directory with the node's place in the overlay.
const FILE: &str = "overlay.json";
/// Path of what nodes tell each other.
pub const PATH: &str = "/v1/overlay/endpoints";
/// Most other nodes.
const MAX_PEERS: usize = 255;
/// Least and most length of the secret.
const SECRET_LEN: std::ops::RangeInclusive<usize> = 16..=256;
/// How often a node that has nothing to tell shows that it is alive.
const ALIVE: Duration = Duration::from_secs(15);
/// How long a node may show nothing.
const SILENCE: Duration = Duration::from_secs(40);
/// How long it may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// First and longest time until a node that broke off is asked again.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// Longest line.
const MAX_LINE: usize = 16 << 20;

/// This node's place in the overlay, and its connections to the others.
#[derive(Default)]
pub struct Links {
    /// Held while the place changes.
    changing: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    joined: Option<Overlay>,
    /// SHA-256 of the token that other nodes have.
    token: Option<[u8; 32]>,
    tasks: Vec<AbortHandle>,
}

impl Links {
    /// Whether this is the token by which other nodes ask for endpoints.
    pub fn accepts(&self, token: &[u8]) -> bool {
        let digest: [u8; 32] = Sha256::digest(token).into();
        self.state.lock().unwrap().token == Some(digest)
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.state.get_mut().unwrap().tasks.drain(..).for_each(|task| task.abort());
    }
}

/// Something that follows from the secret alone.
fn derive(secret: &str, purpose: &str) -> [u8; 32] {
    let hasher = Sha256::new().chain_update(b"fcap overlay\0").chain_update(purpose).chain_update(b"\0");
    hasher.chain_update(secret).finalize().into()
}

/// The token by which nodes ask each other. It tells nothing about the secret.
fn token(secret: &str) -> String {
    derive(secret, "token").iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// WireGuard's private key of the node with a number.
fn private_key(secret: &str, index: u16) -> [u8; 32] {
    derive(secret, &format!("wireguard {index}"))
}

fn public_key(secret: &str, index: u16) -> [u8; 32] {
    x25519_dalek::x25519(private_key(secret, index), x25519_dalek::X25519_BASEPOINT_BYTES)
}

fn check(overlay: &Overlay) -> Result<()> {
    let bad = |message: String| Err(Error::BadRequest(message));
    if !SECRET_LEN.contains(&overlay.secret.len()) || !overlay.secret.bytes().all(|b| b.is_ascii_graphic()) {
        return bad("secret must be 16 to 256 printable characters without spaces".into());
    }
    if overlay.peers.len() > MAX_PEERS {
        return bad(format!("{} peers are named, at most {MAX_PEERS} are possible", overlay.peers.len()));
    }
    let (mut names, mut indexes) = (BTreeSet::new(), BTreeSet::from([overlay.index]));
    let mut addresses = BTreeSet::from([overlay.address]);
    if overlay.index == 0 || overlay.peers.iter().any(|peer| peer.index == 0) {
        return bad("index is 0, nodes are numbered from 1".into());
    }
    if overlay.address.is_unspecified() || overlay.address.is_multicast() || overlay.address.is_broadcast() {
        return bad("address must be the node's own on the wire between nodes".into());
    }
    for peer in &overlay.peers {
        crate::names::check(&peer.name).map_err(Error::BadRequest)?;
        if !names.insert(&peer.name) || !indexes.insert(peer.index) || !addresses.insert(peer.address) {
            return bad(format!("peer {} has the name, index or address of another node", peer.name));
        }
        if peer.url.as_deref().is_some_and(|url| authority(url).is_none()) {
            return bad(format!(
                "the url of peer {} must be http://host:port, or https://host:port in a cluster",
                peer.name
            ));
        }
    }
    Ok(())
}

/// Host and port of a URL that has nothing else.
fn authority(url: &str) -> Option<&str> {
    let authority = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"))?;
    let authority = authority.trim_end_matches('/');
    let (host, port) = authority.rsplit_once(':')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
    (!host.is_empty() && host.chars().all(plain) && port.parse::<u16>().is_ok()).then_some(authority)
}

fn place(overlay: &Overlay) -> super::Overlay {
    let secret = &overlay.secret;
    let peers = overlay.peers.iter().map(|peer| super::Peer {
        address: peer.address,
        public_key: overlay.encrypt.then(|| public_key(secret, peer.index)),
    });
    super::Overlay {
        address: overlay.address,
        peers: peers.collect(),
        private_key: overlay.encrypt.then(|| private_key(secret, overlay.index)),
    }
}

/// Takes a place in an overlay, another one, or with no peers none.
///
/// # Errors
/// When it cannot be, or dom0 refuses.
pub async fn join(daemon: &Arc<Daemon>, overlay: Overlay) -> Result<OverlayStatus> {
    check(&overlay)?;
    let _changing = daemon.links.changing.lock().await;
    enter(daemon, &overlay).await?;
    let (this, kept) = (daemon.clone(), overlay.clone());
    blocking(move || this.store.write_own(FILE, &kept)).await??;
    Ok(show(daemon, &overlay))
}

/// The place that an earlier daemon had.
pub(super) fn kept(store: &Store) -> std::io::Result<Option<Overlay>> {
    store.read_own(FILE)
}

/// Takes that place again.
pub async fn resume(daemon: &Arc<Daemon>) {
    let overlay = match kept(&daemon.store) {
        Ok(Some(overlay)) => overlay,
        Ok(None) => return,
        Err(error) => return tracing::error!(%error, "the place in the overlay cannot be read"),
    };
    let _changing = daemon.links.changing.lock().await;
    if let Err(error) = enter(daemon, &overlay).await {
        tracing::error!(error = ?error.body().message, "the place in the overlay cannot be taken again");
    }
}

async fn enter(daemon: &Arc<Daemon>, overlay: &Overlay) -> Result<()> {
    let (this, wanted) = (daemon.clone(), overlay.clone());
    blocking(move || this.networks.join(wanted.index, &wanted.peers, &place(&wanted))).await??;
    let token = token(&overlay.secret);
    let mut state = daemon.links.state.lock().unwrap();
    state.tasks.drain(..).for_each(|task| task.abort());
    state.token = Some(Sha256::digest(&token).into());
    state.joined = Some(overlay.clone());
    for peer in &overlay.peers {
        let peer = Followed {
            name: peer.name.clone(),
            at: reach(peer, overlay.encrypt),
            is_plain: peer.url.as_ref().is_some_and(|url| url.starts_with("http://")),
            token: token.clone(),
        };
        // It ends with the links, which the daemon owns: a strong reference would keep both.
        let daemon = Arc::downgrade(daemon);
        let follow = async move {
            let mut again = AGAIN.0;
            while let Some(daemon) = daemon.upgrade() {
                let told = peer.listen(&daemon).await;
                daemon.networks.lost(&peer.name);
                drop(daemon);
                match told {
                    Told::Something(why) => {
                        tracing::info!(peer = %peer.name, why, "a node of the overlay broke off");
                        again = AGAIN.0;
                    }
                    Told::Nothing(why) => tracing::debug!(peer = %peer.name, why, "a node does not answer"),
                }
                tokio::time::sleep(again).await;
                again = (again * 2).min(AGAIN.1);
            }
        };
        state.tasks.push(tokio::spawn(follow).abort_handle());
    }
    Ok(())
}

/// Where a peer's daemon is reached.
fn reach(peer: &OverlayPeer, encrypt: bool) -> String {
    match &peer.url {
        Some(url) => authority(url).unwrap_or_default().to_owned(),
        None if encrypt => SocketAddr::from((tunnel_address(peer.address), DEFAULT_PORT)).to_string(),
        None => SocketAddr::from((peer.address, DEFAULT_PORT)).to_string(),
    }
}

/// The node's place in the overlay, if it has one.
pub fn status(daemon: &Daemon) -> Option<OverlayStatus> {
    let joined = daemon.links.state.lock().unwrap().joined.clone();
    joined.map(|overlay| show(daemon, &overlay))
}

fn show(daemon: &Daemon, overlay: &Overlay) -> OverlayStatus {
    let (mtu, peers) = daemon.networks.peers();
    OverlayStatus { index: overlay.index, address: overlay.address, encrypt: overlay.encrypt, mtu, peers }
}

/// What this node tells of its endpoints, and with `follow` what changes.
pub fn tell(daemon: Arc<Daemon>, follow: bool) -> impl Stream<Item = std::result::Result<Bytes, Infallible>> {
    let told: Option<BTreeMap<Key, fcap_api::OverlayEndpoint>> = None;
    let changed = daemon.networks.watch_own();
    futures_util::stream::unfold((daemon, changed, told), move |(daemon, mut changed, told)| async move {
        let Some(told) = told else {
            changed.mark_unchanged();
            let now = daemon.networks.own_endpoints();
            let first = OverlayUpdate { all: true, set: now.values().cloned().collect(), gone: Vec::new() };
            return Some((Ok(line(&first)), (daemon, changed, Some(now))));
        };
        if !follow {
            return None;
        }
        // Fails only when the networks are gone, and they are in the daemon.
        let news = timeout(ALIVE, changed.changed()).await;
        let now = daemon.networks.own_endpoints();
        let text = news.ok().and_then(|_| difference(&told, &now));
        let text = text.map_or_else(|| Bytes::from_static(b"\n"), |update| line(&update));
        Some((Ok(text), (daemon, changed, Some(now))))
    })
}

fn line(update: &OverlayUpdate) -> Bytes {
    let mut line = serde_json::to_vec(update).expect("texts and numbers have a JSON form");
    line.push(b'\n');
    line.into()
}

/// Another node, as it is asked.
struct Followed {
    name: String,
    at: String,
    /// It is to be asked without TLS, though this node may be in a cluster.
    is_plain: bool,
    token: String,
}

/// What a connection is made over.
trait Wire: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Wire for T {}

/// What went wrong: between the machines, if it is that.
fn described(error: &(dyn std::error::Error + 'static)) -> String {
    explain(error).map_or_else(|| error.to_string(), |why| why.to_string())
}

/// What became of asking.
enum Told {
    /// It told of its endpoints, and then broke off.
    Something(String),
    /// It did not answer.
    Nothing(String),
}

impl Followed {
    async fn listen(&self, daemon: &Arc<Daemon>) -> Told {
        let mut lines = 0;
        let why = match self.read(daemon, &mut lines).await {
            Ok(()) => "it ended its answer".into(),
            Err(why) => why,
        };
        if lines > 0 { Told::Something(why) } else { Told::Nothing(why) }
    }

    async fn read(&self, daemon: &Arc<Daemon>, lines: &mut u64) -> std::result::Result<(), String> {
        let late = |_| "it takes too long".to_owned();
        let stream = timeout(ANSWER, TcpStream::connect(&self.at)).await.map_err(late)?;
        let stream = stream.map_err(|error| error.to_string())?;
        let member = daemon.membership.credentials().filter(|_| !self.is_plain);
        let stream: Pin<Box<dyn Wire>> = match member {
            Some(member) => {
                let subject = Subject::node(&self.name).map_err(|error| error.to_string())?;
                let connector = TlsConnector::from(Arc::new(member.client(subject)));
                let name = ServerName::try_from("fcap").map_err(|error| error.to_string())?;
                let stream = timeout(ANSWER, connector.connect(name, stream)).await.map_err(late)?;
                Box::pin(stream.map_err(|error| described(&error))?)
            }
            None => Box::pin(stream),
        };
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| described(&error))?;
        let request = Request::get(format!("{PATH}?follow=true"))
            .header(header::HOST, &self.at)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let exchange = async {
            let answer = timeout(ANSWER, sender.send_request(request)).await.map_err(late)?;
            let answer = answer.map_err(|error| described(&error))?;
            if !answer.status().is_success() {
                return Err(format!("it answers {}", answer.status()));
            }
            let mut body = answer.into_body();
            let mut buffer = Vec::new();
            while let Some(frame) = timeout(SILENCE, body.frame()).await.map_err(late)? {
                let frame = frame.map_err(|error| error.to_string())?;
                let Ok(bytes) = frame.into_data() else { continue };
                buffer.extend_from_slice(&bytes);
                while let Some(end) = buffer.iter().position(|&byte| byte == b'\n') {
                    let line: Vec<u8> = buffer.drain(..=end).collect();
                    if line.len() > 1 {
                        self.hear(daemon, &line).await?;
                        *lines += 1;
                    }
                }
                if buffer.len() > MAX_LINE {
                    return Err("its lines are too long".into());
                }
            }
            Ok(())
        };
        tokio::select! {
            biased;
            done = exchange => done,
            broken = connection => Err(broken.map_or_else(|error| described(&error), |()| "it hung up".into())),
        }
    }

    async fn hear(&self, daemon: &Arc<Daemon>, line: &[u8]) -> std::result::Result<(), String> {
        let update: OverlayUpdate =
            serde_json::from_slice(line).map_err(|error| format!("it does not make sense: {error}"))?;
        let (daemon, name) = (daemon.clone(), self.name.clone());
        let heard = blocking(move || daemon.networks.hear(&daemon.store, &name, update)).await;
        heard.map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay() -> Overlay {
        let peer = |index: u8| OverlayPeer {
            name: format!("node{index}"),
            address: [10, 99, 0, index].into(),
            index: u16::from(index),
            url: None,
        };
        Overlay {
            index: 1,
            address: [10, 99, 0, 1].into(),
            peers: vec![peer(2), peer(3)],
            secret: "0123456789abcdef".into(),
            encrypt: true,
        }
    }

    #[test]
    fn places_that_cannot_be_are_refused() {
        assert!(check(&overlay()).is_ok());
        type Change = fn(&mut Overlay);
        let cases: [(Change, &str); 9] = [
            (|it| it.secret = "short".into(), "secret"),
            (|it| it.secret = "0123456789 abcdef".into(), "secret"),
            (|it| it.index = 0, "numbered from 1"),
            (|it| it.index = 2, "of another node"),
            (|it| it.peers[0].index = 3, "of another node"),
            (|it| it.peers[0].address = it.address, "of another node"),
            (|it| it.peers[0].name = "a b".into(), "name"),
            (|it| it.peers[0].url = Some("ftp://x:1/".into()), "http://host:port"),
            (|it| it.address = [0, 0, 0, 0].into(), "address"),
        ];
        for (change, word) in cases {
            let mut overlay = overlay();
            change(&mut overlay);
            let message = check(&overlay).unwrap_err().to_string();
            assert!(message.contains(word), "{word}: {message}");
        }
    }

    #[test]
    fn nodes_agree_on_keys_without_asking() {
        let one = overlay();
        let mut two = overlay();
        (two.index, two.address) = (2, [10, 99, 0, 2].into());
        two.peers[0] = OverlayPeer { name: "node1".into(), address: one.address, index: 1, url: None };
        let (one, two) = (place(&one), place(&two));
        let public =
            |key: Option<[u8; 32]>| x25519_dalek::x25519(key.unwrap(), x25519_dalek::X25519_BASEPOINT_BYTES);
        assert_eq!(one.peers[0].public_key, Some(public(two.private_key)));
        assert_eq!(two.peers[0].public_key, Some(public(one.private_key)));
        assert_ne!(one.private_key, two.private_key);
        assert_eq!(place(&Overlay { encrypt: false, ..overlay() }).private_key, None);
    }

    #[test]
    fn peers_are_reached_at_their_url_or_address() {
        let mut peer = overlay().peers[0].clone();
        assert_eq!(reach(&peer, false), "10.99.0.2:7070");
        assert!(reach(&peer, true).starts_with("[fdfc::"));
        peer.url = Some("http://localhost:81/".into());
        assert_eq!(reach(&peer, true), "localhost:81");
        peer.url = Some("https://localhost:82".into());
        assert_eq!(reach(&peer, true), "localhost:82");
        for bad in ["", "http://", "http://x", "http://x:y", "http://a b:1", "ftp://x:1", "http://x:1/y"] {
            assert_eq!(authority(bad), None, "{bad}");
        }
    }
}
