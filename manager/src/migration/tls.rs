//! How nodes know each other when a capsule moves: TLS 1.3 with certificates of their own making.
//!
//! Nobody signs the certificates. Each side is told the fingerprint of the other's by the client,
//! who has authenticated both nodes, and takes no other: so both are authenticated.
//!
//! A connection is parted into a reader and a writer, for two threads.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, DigitallySignedStruct, DistinguishedName,
    ServerConfig, ServerConnection, SignatureScheme,
};
use sha2::{Digest, Sha256};

use super::cipher;

/// How long the other side may take to answer while the connection is made.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After so long without progress the engine is asked whether to go on.
const LOOK: Duration = Duration::from_secs(1);
/// Most bytes encrypted at a time.
const PIECE: usize = 64 << 10;
/// Most bytes that wait in the socket to be sent: the rest of a move would wait behind them, and
/// how long writes take would say nothing about the link. Enough for a gigabit over 5 ms.
const SEND_BUFFER: usize = 512 << 10;
/// The name in certificates; nobody looks at it.
const NAME: &str = "fcap-node";

/// SHA-256 of a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }

    /// The fingerprint in 64 hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        let mut bytes = [0; 32];
        if digits.len() != 64 {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
            let digit = |digit: u8| char::from(digit).to_digit(16);
            *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
        }
        Some(Self(bytes))
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The node's certificate and its key.
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
        let provider = cipher::provider();
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
        write_secret(&key_file, &key)?;
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

    /// Connects to the node with this fingerprint.
    ///
    /// # Errors
    /// When it cannot be reached, or is another one.
    pub fn connect(&self, address: SocketAddr, peer: Fingerprint) -> io::Result<(Reader, Writer)> {
        let socket = TcpStream::connect_timeout(&address, HANDSHAKE)?;
        let verifier = Arc::new(Pinned { peer: Some(peer), provider: self.provider.clone() });
        let config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(vec![self.certificate.clone()], self.key())
            .map_err(io::Error::other)?;
        let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
        let client = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        let (reader, writer, _) = split(socket, client.into())?;
        Ok((reader, writer))
    }

    /// Takes a connection; says whose it is. The caller decides whether it may go on.
    ///
    /// # Errors
    /// When the other side does not speak TLS, or shows no certificate.
    pub fn accept(&self, socket: TcpStream) -> io::Result<(Reader, Writer, Fingerprint)> {
        let verifier = Arc::new(Pinned { peer: None, provider: self.provider.clone() });
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(io::Error::other)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![self.certificate.clone()], self.key())
            .map_err(io::Error::other)?;
        // Nobody comes back to an old session.
        config.send_tls13_tickets = 0;
        let server = ServerConnection::new(Arc::new(config)).map_err(io::Error::other)?;
        split(socket, server.into())
    }
}

fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)
}

/// Takes a certificate by its fingerprint alone; the handshake proves that the other side has its
/// key.
#[derive(Debug)]
struct Pinned {
    /// Anybody's, if the caller looks at it afterwards.
    peer: Option<Fingerprint>,
    provider: Arc<CryptoProvider>,
}

impl std::fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
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

/// What reader and writer of a connection share.
struct Shared {
    connection: Mutex<Connection>,
    socket: TcpStream,
}

impl Shared {
    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Finishes the handshake and parts the connection in two.
fn split(socket: TcpStream, mut connection: Connection) -> io::Result<(Reader, Writer, Fingerprint)> {
    socket.set_nodelay(true)?;
    setsockopt(&socket, sockopt::SndBuf, &SEND_BUFFER)?;
    socket.set_read_timeout(Some(HANDSHAKE))?;
    socket.set_write_timeout(Some(HANDSHAKE))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut &socket)?;
    }
    while connection.wants_write() {
        connection.write_tls(&mut &socket)?;
    }
    let peer = connection.peer_certificates().and_then(|chain| chain.first()).map(Fingerprint::of);
    let peer = peer.ok_or_else(|| io::Error::other("the other side shows no certificate"))?;
    socket.set_read_timeout(Some(LOOK))?;
    socket.set_write_timeout(Some(LOOK))?;
    let shared = Arc::new(Shared { connection: Mutex::new(connection), socket });
    let writer = Writer { shared: shared.clone(), pending: Vec::new() };
    Ok((Reader { shared, arrived: Vec::new(), fed: 0 }, writer, peer))
}

/// Reads from a connection. Waits for a second at most.
pub struct Reader {
    shared: Arc<Shared>,
    /// What came from the socket.
    arrived: Vec<u8>,
    /// How much of it has been decrypted.
    fed: usize,
}

impl Reader {
    /// Decrypts until there is something to read or nothing left to decrypt; the library holds
    /// only so much, and takes no more before that is read.
    fn decrypt(&mut self, connection: &mut Connection) -> io::Result<()> {
        while self.fed < self.arrived.len() {
            let mut rest = &self.arrived[self.fed..];
            connection.read_tls(&mut rest)?;
            self.fed = self.arrived.len() - rest.len();
            let state = connection.process_new_packets().map_err(io::Error::other)?;
            if state.plaintext_bytes_to_read() > 0 {
                break;
            }
        }
        Ok(())
    }
}

impl Read for Reader {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let shared = self.shared.clone();
        loop {
            let mut connection = shared.connection();
            match connection.reader().read(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            if self.fed < self.arrived.len() {
                self.decrypt(&mut connection)?;
                continue;
            }
            // The writer can go on meanwhile.
            drop(connection);
            self.fed = 0;
            self.arrived.resize(PIECE, 0);
            let read = (&shared.socket).read(&mut self.arrived);
            self.arrived.truncate(read.as_ref().map_or(0, |len| *len));
            if read? == 0 {
                shared.connection().read_tls(&mut io::empty())?;
            }
        }
    }
}

/// Writes to a connection. Waits for a second at most.
pub struct Writer {
    shared: Arc<Shared>,
    /// Encrypted, but not yet sent.
    pending: Vec<u8>,
}

impl Writer {
    fn send_pending(&mut self) -> io::Result<()> {
        let mut sent = 0;
        let result = loop {
            if sent == self.pending.len() {
                break Ok(());
            }
            match (&self.shared.socket).write(&self.pending[sent..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => sent += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.pending.drain(..sent);
        result
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send_pending()?;
        let len = {
            let mut connection = self.shared.connection();
            let len = connection.writer().write(&bytes[..bytes.len().min(PIECE)])?;
            while connection.wants_write() {
                connection.write_tls(&mut self.pending)?;
            }
            len
        };
        match self.send_pending() {
            // What is encrypted is sent by and by.
            Err(error) if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(error)
            }
            _ => Ok(len),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send_pending()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

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
            let (mut reader, mut writer, from) = b.accept(listener.accept().unwrap().0).unwrap();
            assert_eq!(from, expected);
            let mut bytes = vec![0; 300_000];
            // In small pieces: more comes than is taken.
            for piece in bytes.chunks_mut(1000) {
                reader.read_exact(piece).unwrap();
            }
            writer.write_all(&bytes).unwrap();
            writer.flush().unwrap();
        });
        let (mut reader, mut writer) = a.connect(address, peer).unwrap();
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
        let server = std::thread::spawn(move || b.accept(listener.accept().unwrap().0).map(drop));
        assert!(a.connect(address, wrong).is_err());
        assert!(server.join().unwrap().is_err());
    }

    #[test]
    fn fingerprints_are_read_back_and_others_refused() {
        let fingerprint = Fingerprint([0xa5; 32]);
        assert_eq!(Fingerprint::parse(&fingerprint.to_string()), Some(fingerprint));
        for bad in ["", "a5", &"g".repeat(64), &"ü".repeat(32)] {
            assert_eq!(Fingerprint::parse(bad), None);
        }
    }
}
