//! How nodes know each other when a capsule moves: TLS 1.3.
//!
//! Nodes of one cluster show the certificates that its authority has signed, and each takes the node
//! of the expected name alone. Others show certificates of their own making, which nobody signs: each
//! side is told the fingerprint of the other's by the client, who has authenticated both nodes, and
//! takes no other. Either way both are authenticated. The name that is asked for tells which
//! certificate is meant.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fcap_tls::{Credentials, Fingerprint, PeerError, Role, Subject, write_secret};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, DigitallySignedStruct, DistinguishedName,
    ServerConfig, ServerConnection, SignatureScheme,
};

use super::records::{self, Reader, Writer};

/// How long the other side may take to answer while the connection is made.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The name in certificates of nodes' own making, and the one that is asked for when one is meant.
const NAME: &str = "fcap-node";
/// The name that is asked for when a certificate of the cluster's authority is meant.
const MEMBER: &str = "fcap-member";

/// By what another node is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerId {
    /// Its own certificate.
    Pinned(Fingerprint),
    /// Its name in the cluster that both nodes are in.
    Member(String),
}

impl PeerId {
    /// What [`Display`](std::fmt::Display) has written.
    pub fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("member:") {
            Some(name) => Subject::node(name).ok().map(|subject| Self::Member(subject.name().to_owned())),
            None => Fingerprint::parse(text).map(Self::Pinned),
        }
    }
}

impl std::fmt::Display for PeerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pinned(fingerprint) => fingerprint.fmt(f),
            Self::Member(name) => write!(f, "member:{name}"),
        }
    }
}

/// The certificate that the node has made for itself, and its key.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl Identity {
    /// Reads it from a directory, or makes it there.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn load(directory: &Path) -> io::Result<Self> {
        let (certificate_file, key_file) = (directory.join("node.crt"), directory.join("node.key"));
        let provider = fcap_tls::provider();
        match (std::fs::read(&certificate_file), std::fs::read(&key_file)) {
            (Ok(certificate), Ok(key)) => {
                return Ok(Self { certificate: certificate.into(), key: key.into(), provider });
            }
            (Err(error), _) | (_, Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error);
            }
            _ => {}
        }
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).map_err(io::Error::other)?;
        let certificate = made.cert.der().clone();
        let key = made.signing_key.serialize_der();
        write_secret(&key_file, &key).map_err(io::Error::other)?;
        std::fs::write(&certificate_file, &certificate)?;
        Ok(Self { certificate, key: key.into(), provider })
    }

    /// Of the certificate.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone_key())
    }

    fn certified(&self) -> io::Result<Arc<CertifiedKey>> {
        let chain = vec![self.certificate.clone()];
        CertifiedKey::from_der(chain, self.key(), &self.provider).map(Arc::new).map_err(io::Error::other)
    }

    /// Connects to this node, and no other.
    ///
    /// # Errors
    /// When it cannot be reached, or is another one.
    pub fn connect(
        &self,
        address: SocketAddr,
        peer: &PeerId,
        member: Option<&Credentials>,
    ) -> io::Result<(Reader, Writer)> {
        let (mut config, name) = match peer {
            PeerId::Pinned(peer) => {
                let verifier = Arc::new(Pinned { peer: Some(*peer), provider: self.provider.clone() });
                let config = ClientConfig::builder_with_provider(self.provider.clone())
                    .with_protocol_versions(&[&rustls::version::TLS13])
                    .map_err(io::Error::other)?
                    .dangerous()
                    .with_custom_certificate_verifier(verifier)
                    .with_client_auth_cert(vec![self.certificate.clone()], self.key())
                    .map_err(io::Error::other)?;
                (config, NAME)
            }
            PeerId::Member(name) => {
                let member = member.ok_or_else(|| io::Error::other("this node is in no cluster any more"))?;
                (member.client(Subject::node(name).map_err(io::Error::other)?), MEMBER)
            }
        };
        config.enable_secret_extraction = true;
        let socket = TcpStream::connect_timeout(&address, HANDSHAKE)?;
        let name = ServerName::try_from(name).map_err(io::Error::other)?;
        let client = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        let (reader, writer, _) = split(socket, client.into())?;
        Ok((reader, writer))
    }

    /// Takes a connection; says whose it is. The caller decides whether it may go on.
    ///
    /// # Errors
    /// When the other side does not speak TLS, shows no certificate, or one of a cluster that is
    /// not to be believed.
    pub fn accept(
        &self,
        socket: TcpStream,
        member: Option<&Credentials>,
    ) -> io::Result<(Reader, Writer, PeerId)> {
        let verifier = Arc::new(Pinned { peer: None, provider: self.provider.clone() });
        let shown = Shown { own: self.certified()?, member: member.map(Credentials::certified) };
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(io::Error::other)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(shown));
        // Nobody comes back to an old session.
        config.send_tls13_tickets = 0;
        config.enable_secret_extraction = true;
        let server = ServerConnection::new(Arc::new(config)).map_err(io::Error::other)?;
        let (reader, writer, certificate) = split(socket, server.into())?;
        let peer = match (member, Subject::of(&certificate)) {
            (Some(member), Ok(_)) => {
                let subject = member.peer(&certificate).map_err(io::Error::other)?;
                if subject.role() != Role::Node {
                    return Err(io::Error::other(format!("{subject} moves no capsules")));
                }
                PeerId::Member(subject.name().to_owned())
            }
            _ => PeerId::Pinned(Fingerprint::of(&certificate)),
        };
        Ok((reader, writer, peer))
    }
}

/// Shows the certificate that is meant.
#[derive(Debug)]
struct Shown {
    own: Arc<CertifiedKey>,
    member: Option<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if hello.server_name() == Some(MEMBER) { self.member.clone() } else { Some(self.own.clone()) }
    }
}

/// Takes a certificate by its fingerprint alone; the handshake proves that the other side has its
/// key.
#[derive(Debug)]
struct Pinned {
    /// Anybody's, if the caller looks at it afterwards.
    peer: Option<Fingerprint>,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        match self.peer {
            Some(peer) if peer != Fingerprint::of(certificate) => {
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
            _ => Ok(()),
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }
}

/// Older versions than TLS 1.3 are not offered.
fn no_tls12() -> rustls::Error {
    rustls::Error::General("only TLS 1.3 is spoken".into())
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(certificate).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(certificate).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Makes the connection, takes the other side's certificate, and parts it in two.
fn split(
    socket: TcpStream,
    mut connection: Connection,
) -> io::Result<(Reader, Writer, CertificateDer<'static>)> {
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(HANDSHAKE))?;
    socket.set_write_timeout(Some(HANDSHAKE))?;
    records::shake_hands(&socket, &mut connection)?;
    let peer = connection.peer_certificates().and_then(|chain| chain.first());
    let peer = peer.ok_or_else(|| io::Error::other(PeerError::NoCertificate))?.clone().into_owned();
    let (reader, writer) = records::part(socket, connection)?;
    Ok((reader, writer, peer))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use fcap_tls::{Authority, VALIDITY};

    use super::*;

    fn identities() -> (tempfile::TempDir, Identity, Identity) {
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = directory.path().join(name);
            std::fs::create_dir(&path).unwrap();
            let first = Identity::load(&path).unwrap();
            let again = Identity::load(&path).unwrap();
            assert_eq!(first.fingerprint(), again.fingerprint(), "it is kept");
            again
        };
        let (a, b) = (make("a"), make("b"));
        (directory, a, b)
    }

    #[test]
    fn both_sides_know_each_other_and_carry_bytes_both_ways() {
        let (_directory, a, b) = identities();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (expected, peer) = (a.fingerprint(), b.fingerprint());
        let server = std::thread::spawn(move || {
            let (mut reader, mut writer, from) = b.accept(listener.accept().unwrap().0, None).unwrap();
            assert_eq!(from, PeerId::Pinned(expected));
            let mut bytes = vec![0; 300_000];
            // In small pieces: more comes than is taken.
            for piece in bytes.chunks_mut(1000) {
                reader.read_exact(piece).unwrap();
            }
            writer.write_all(&bytes).unwrap();
            writer.flush().unwrap();
        });
        let (mut reader, mut writer) = a.connect(address, &PeerId::Pinned(peer), None).unwrap();
        let sent: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        let sender = std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.flush().unwrap();
        });
        let mut back = vec![0; expected.len()];
        reader.read_exact(&mut back).unwrap();
        assert_eq!(back, expected);
        sender.join().unwrap();
        server.join().unwrap();
    }

    #[test]
    fn a_node_with_another_certificate_is_refused() {
        let (_directory, a, b) = identities();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let wrong = a.fingerprint();
        let server = std::thread::spawn(move || b.accept(listener.accept().unwrap().0, None).map(drop));
        assert!(a.connect(address, &PeerId::Pinned(wrong), None).is_err());
        assert!(server.join().unwrap().is_err());
    }

    #[test]
    fn nodes_of_one_cluster_know_each_other_by_name() {
        let (_directory, a, b) = identities();
        let (cluster, other) = (Authority::generate().unwrap(), Authority::generate().unwrap());
        let member = |authority: &Authority, name: &str| {
            let identity = authority.identity(&Subject::node(name).unwrap(), VALIDITY).unwrap();
            Credentials::new(identity).unwrap()
        };
        let (one, two, stranger) = (member(&cluster, "one"), member(&cluster, "two"), member(&other, "one"));
        // What the source and the destination say of each other.
        let meet = |ours: Option<&Credentials>, expected: &PeerId| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            std::thread::scope(|scope| {
                let server = scope.spawn(|| {
                    let (_, mut writer, from) = b.accept(listener.accept().unwrap().0, Some(&two))?;
                    writer.write_all(b"!")?;
                    writer.flush()?;
                    Ok::<_, io::Error>(from)
                });
                let client = a
                    .connect(address, expected, ours)
                    .and_then(|(mut reader, _writer)| reader.read_exact(&mut [0]));
                (client, server.join().unwrap())
            })
        };
        let named = |name: &str| PeerId::Member(name.into());
        let (client, server) = meet(Some(&one), &named("two"));
        client.unwrap();
        assert_eq!(server.unwrap(), named("one"));
        let (client, _) = meet(Some(&one), &named("three"));
        assert!(client.unwrap_err().to_string().contains("it is node two, and not node three"));
        let (client, server) = meet(Some(&stranger), &named("two"));
        assert!(client.unwrap_err().to_string().contains("another cluster") && server.is_err());
        // A client that has brought fingerprints is as good as ever.
        let (client, server) = meet(None, &PeerId::Pinned(b.fingerprint()));
        client.unwrap();
        assert_eq!(server.unwrap(), PeerId::Pinned(a.fingerprint()));
    }

    #[test]
    fn peers_are_read_back_and_others_refused() {
        for peer in [PeerId::Pinned(Fingerprint([0xa5; 32])), PeerId::Member("node-1".into())] {
            assert_eq!(PeerId::parse(&peer.to_string()), Some(peer));
        }
        for bad in ["", "a5", "member:", "member:a/b", &"g".repeat(64)] {
            assert_eq!(PeerId::parse(bad), None, "{bad}");
        }
    }
}
