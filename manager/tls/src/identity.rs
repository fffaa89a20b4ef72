//! Who a machine is.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::error::{PeerError, TlsError};
use crate::file;
use crate::fingerprint::Fingerprint;
use crate::subject::Subject;

/// A machine's key. It stays where it was made.
pub struct Key(KeyPair);

impl Key {
    /// Makes one.
    ///
    /// # Errors
    /// When the cryptographic library refuses.
    pub fn generate() -> Result<Self, TlsError> {
        let failed =
            |error: rcgen::Error| TlsError::Crypto { action: "make a key", reason: error.to_string() };
        KeyPair::generate().map(Self).map_err(failed)
    }

    /// Reads it from its file, or makes one there.
    ///
    /// # Errors
    /// When the file cannot be used, or holds something else.
    pub fn open(path: &Path) -> Result<Self, TlsError> {
        match file::read(path)? {
            Some(text) => KeyPair::from_pem(&text)
                .map(Self)
                .map_err(|error| TlsError::Damaged { path: path.to_owned(), reason: error.to_string() }),
            None => {
                let key = Self::generate()?;
                file::write_secret(path, key.0.serialize_pem().as_bytes())?;
                Ok(key)
            }
        }
    }

    /// Of its public half.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.0.subject_public_key_info())
    }

    /// Asks for a certificate, in PEM. Whom it is for is the authority's to say.
    ///
    /// # Errors
    /// When the cryptographic library refuses.
    pub fn request(&self) -> Result<String, TlsError> {
        let failed = |error: rcgen::Error| TlsError::Crypto {
            action: "ask for a certificate",
            reason: error.to_string(),
        };
        let request = CertificateParams::default().serialize_request(&self.0).map_err(failed)?;
        request.pem().map_err(failed)
    }

    /// With the chain that the authority has answered.
    ///
    /// # Errors
    /// When the chain is none, or for another key.
    pub fn certified(&self, chain: &str) -> Result<Identity, TlsError> {
        Identity::parse(&format!("{}{chain}", self.0.serialize_pem()))
    }
}

/// Who a machine is: its key, its certificate, and its authority's.
pub struct Identity {
    key: Key,
    subject: Subject,
    certificate: CertificateDer<'static>,
    authority: CertificateDer<'static>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Identity {
    /// Reads key, certificate and the authority's certificate, in PEM and in this order.
    ///
    /// # Errors
    /// When something is missing, or does not belong together.
    pub fn parse(text: &str) -> Result<Self, TlsError> {
        let malformed = |reason: &str| TlsError::Malformed { what: "the identity", reason: reason.into() };
        let key = KeyPair::from_pem(text).map_err(|error| malformed(&error.to_string()))?;
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(text.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| malformed(&error.to_string()))?;
        let [certificate, authority] = <[_; 2]>::try_from(chain)
            .map_err(|chain| malformed(&format!("it has {} certificates, and not 2", chain.len())))?;
        let subject = Subject::of(&certificate)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|error| malformed(&error.to_string()))?;
        if parsed.tbs_certificate.subject_pki.raw != key.subject_public_key_info() {
            return Err(malformed("the certificate is for another key"));
        }
        let (_, issuer) =
            x509_parser::parse_x509_certificate(&authority).map_err(|error| malformed(&error.to_string()))?;
        if parsed.verify_signature(Some(issuer.public_key())).is_err() {
            return Err(PeerError::OtherCluster.into());
        }
        let at = |time: x509_parser::time::ASN1Time| {
            UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
        };
        let (not_before, not_after) = (at(parsed.validity().not_before), at(parsed.validity().not_after));
        Ok(Self { key: Key(key), subject, not_before, not_after, certificate, authority })
    }

    /// The text that [`Identity::parse`] reads.
    pub fn to_pem(&self) -> String {
        format!("{}{}", self.key.0.serialize_pem(), self.chain())
    }

    /// The certificates alone.
    pub fn chain(&self) -> String {
        format!("{}{}", pem("CERTIFICATE", &self.certificate), pem("CERTIFICATE", &self.authority))
    }

    /// Reads it from a file, if it is there.
    ///
    /// # Errors
    /// When the file cannot be used, or holds something else.
    pub fn load(path: &Path) -> Result<Option<Self>, TlsError> {
        let Some(text) = file::read(path)? else { return Ok(None) };
        Self::parse(&text)
            .map(Some)
            .map_err(|reason| TlsError::Damaged { path: path.to_owned(), reason: reason.to_string() })
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn save(&self, path: &Path) -> Result<(), TlsError> {
        file::write_secret(path, self.to_pem().as_bytes())
    }

    /// With a new certificate for the same key.
    ///
    /// # Errors
    /// When the chain is none, or for another key, another machine or another cluster.
    pub fn renewed(&self, chain: &str) -> Result<Self, TlsError> {
        let new = self.key.certified(chain)?;
        if new.subject != self.subject {
            return Err(TlsError::Unexpected(format!(
                "is for {}, and not for {}",
                new.subject, self.subject
            )));
        }
        if new.authority() != self.authority() {
            return Err(PeerError::OtherCluster.into());
        }
        Ok(new)
    }

    /// Its key.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Who it is.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// By what its authority is known.
    pub fn authority(&self) -> Fingerprint {
        Fingerprint::of(&self.authority)
    }

    /// From when on its certificate is good, and until when.
    pub fn validity(&self) -> (SystemTime, SystemTime) {
        (self.not_before, self.not_after)
    }

    /// When a new certificate is due: when a third of this one's time is left.
    pub fn renewal(&self) -> SystemTime {
        renewal(self.not_before, self.not_after)
    }

    pub(crate) fn authority_certificate(&self) -> &CertificateDer<'static> {
        &self.authority
    }

    /// For the library: what is shown, and what proves it. The authority's certificate goes along
    /// for machines that know it by its fingerprint alone.
    pub(crate) fn parts(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let chain = vec![self.certificate.clone(), self.authority.clone()];
        (chain, PrivatePkcs8KeyDer::from(self.key.0.serialize_der()).into())
    }
}

/// When of this time a third is left.
pub(crate) fn renewal(not_before: SystemTime, not_after: SystemTime) -> SystemTime {
    not_after - not_after.duration_since(not_before).unwrap_or_default() / 3
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Identity");
        shown.field("subject", &self.subject).field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// One block of PEM.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    ::pem::encode_config(
        &::pem::Pem::new(label, der),
        ::pem::EncodeConfig::new().set_line_ending(::pem::LineEnding::LF),
    )
}
