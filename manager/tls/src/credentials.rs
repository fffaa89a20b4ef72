//! An identity in use.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

use crate::cipher::provider;
use crate::error::{PeerError, TlsError};
use crate::fingerprint::Fingerprint;
use crate::identity::Identity;
use crate::subject::{Role, Subject};

/// Who may connect without showing a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Nobody.
    Known,
    /// Machines that are still to join.
    Anybody,
}

fn refused(error: impl std::fmt::Display) -> TlsError {
    TlsError::Crypto { action: "set TLS up", reason: error.to_string() }
}

/// An identity in use. All clones have the same one, and use a new one from the next connection
/// on.
#[derive(Clone, Debug)]
pub struct Credentials(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    current: RwLock<Current>,
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
}

#[derive(Debug)]
struct Current {
    identity: Arc<Identity>,
    certified: Arc<CertifiedKey>,
}

impl Current {
    fn new(identity: Identity) -> Result<Self, TlsError> {
        let (chain, key) = identity.parts();
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(refused)?;
        Ok(Self { identity: Arc::new(identity), certified: Arc::new(certified) })
    }
}

fn roots_of(authority: &CertificateDer<'_>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone().into_owned()).map_err(refused)?;
    Ok(roots)
}

impl Credentials {
    /// Of this identity.
    ///
    /// # Errors
    /// When the library does not take it.
    pub fn new(identity: Identity) -> Result<Self, TlsError> {
        let roots = Arc::new(roots_of(identity.authority_certificate())?);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider());
        let clients = clients.build().map_err(refused)?;
        let current = RwLock::new(Current::new(identity)?);
        Ok(Self(Arc::new(Inner { current, roots, clients })))
    }

    /// Puts a new certificate in the place of the present one.
    ///
    /// # Errors
    /// When the library does not take it.
    pub fn replace(&self, identity: Identity) -> Result<(), TlsError> {
        let new = Current::new(identity)?;
        *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// The present identity.
    pub fn identity(&self) -> Arc<Identity> {
        self.0.current.read().unwrap_or_else(PoisonError::into_inner).identity.clone()
    }

    /// What is shown to others at present.
    pub fn certified(&self) -> Arc<CertifiedKey> {
        self.0.current.read().unwrap_or_else(PoisonError::into_inner).certified.clone()
    }

    /// Connects to this machine alone.
    pub fn client(&self, expected: Subject) -> ClientConfig {
        let trust = Trust::Authority { roots: self.0.roots.clone(), expected };
        let mut config =
            client_builder(Arc::new(Server(trust))).with_client_cert_resolver(Arc::new(Shown(self.clone())));
        // A session that goes on would not show anew who the other side is.
        config.resumption = Resumption::disabled();
        config
    }

    /// Accepts machines of the same authority. Which one it is tells [`Credentials::peer`].
    ///
    /// # Errors
    /// When the library refuses.
    pub fn server(&self, clients: Clients) -> Result<ServerConfig, TlsError> {
        let verifier = match clients {
            Clients::Known => self.0.clients.clone(),
            Clients::Anybody => {
                let builder = WebPkiClientVerifier::builder_with_provider(self.0.roots.clone(), provider());
                builder.allow_unauthenticated().build().map_err(refused)?
            }
        };
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(refused)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(Shown(self.clone())));
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// Whose certificate this is, if the authority has signed it and it is valid now; for
    /// connections whose handshake takes any.
    ///
    /// # Errors
    /// Says why it is not believed.
    pub fn peer(&self, certificate: &CertificateDer<'_>) -> Result<Subject, PeerError> {
        let verified = self.0.clients.verify_client_cert(certificate, &[], UnixTime::now());
        verified.map_err(|error| PeerError::from(&error))?;
        Subject::of(certificate)
    }
}

fn client_builder(
    verifier: Arc<dyn ServerCertVerifier>,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the library speaks TLS 1.3 with its own cryptography")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
}

/// Connects to the controller whose authority has this fingerprint, without showing who one is:
/// for a machine that is still to join.
pub fn pinned_client(authority: Fingerprint) -> ClientConfig {
    let verifier = Server(Trust::Pinned(authority));
    let mut config = client_builder(Arc::new(verifier)).with_no_client_auth();
    config.resumption = Resumption::disabled();
    config
}

/// Trusts nobody: for clients that speak without TLS, whose library wants a configuration.
pub fn plain_client() -> ClientConfig {
    let nobody =
        Trust::Authority { roots: Arc::new(RootCertStore::empty()), expected: Subject::controller() };
    client_builder(Arc::new(Server(nobody))).with_no_client_auth()
}

/// Shows the present certificate.
#[derive(Debug)]
struct Shown(Credentials);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.certified())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Which servers are believed.
#[derive(Debug)]
enum Trust {
    /// This one, with a certificate of this authority.
    Authority { roots: Arc<RootCertStore>, expected: Subject },
    /// The controller, with an authority that is known by its fingerprint.
    Pinned(Fingerprint),
}

/// Verifies servers by who they are, and not by the address at which they are reached.
#[derive(Debug)]
struct Server(Trust);

impl ServerCertVerifier for Server {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        let parsed = ParsedCertificate::try_from(certificate)?;
        let verify = |roots: &RootCertStore| {
            verify_server_cert_signed_by_trust_anchor(&parsed, roots, &[], now, algorithms.all)
        };
        let found = Subject::of(certificate);
        match &self.0 {
            Trust::Authority { roots, expected } => {
                verify(roots)?;
                let (found, expected) = (found?, expected.clone());
                if found != expected {
                    return Err(PeerError::WrongPeer { expected, found }.into());
                }
            }
            Trust::Pinned(fingerprint) => {
                let authority = others.iter().find(|other| Fingerprint::of(other) == *fingerprint);
                let authority = authority.ok_or(PeerError::OtherAuthority)?;
                let mut roots = RootCertStore::empty();
                roots.add(authority.clone().into_owned())?;
                verify(&roots)?;
                let (found, expected) = (found?, Subject::controller());
                if found.role() != Role::Controller {
                    return Err(PeerError::WrongPeer { expected, found }.into());
                }
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
