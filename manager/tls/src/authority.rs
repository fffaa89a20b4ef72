//! Who signs.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;

use crate::error::TlsError;
use crate::file;
use crate::fingerprint::Fingerprint;
use crate::identity::{Identity, Key, pem};
use crate::subject::Subject;

/// How long a certificate is good for a machine.
pub const VALIDITY: Duration = Duration::from_secs(30 * 24 * 3600);
/// Certificates are valid from so long before they are made, or a tenth of their time if that is
/// less: clocks differ a little.
pub const LEEWAY: Duration = Duration::from_secs(300);
/// How long the authority itself is good. Its end is the cluster's.
const AUTHORITY_VALIDITY: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// The cluster's own authority: its key is what the cluster is.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

/// What a machine wants signed. That it has the key is proved.
pub struct Request(CertificateSigningRequestParams);

impl Request {
    /// Reads a PKCS #10 request in PEM. All but the key in it is ignored.
    ///
    /// # Errors
    /// When it is none, or is not signed with the key in it.
    pub fn parse(text: &str) -> Result<Self, TlsError> {
        let malformed = |error: rcgen::Error| TlsError::Malformed {
            what: "the request for a certificate",
            reason: error.to_string(),
        };
        CertificateSigningRequestParams::from_pem(text).map(Self).map_err(malformed)
    }

    /// Of the public key.
    pub fn key(&self) -> Fingerprint {
        Fingerprint::of(&self.0.public_key.subject_public_key_info())
    }
}

impl Authority {
    /// Reads it from its file, or makes one there.
    ///
    /// # Errors
    /// When the file cannot be used, or holds something else.
    pub fn open(path: &Path) -> Result<Self, TlsError> {
        let text = match file::read(path)? {
            Some(text) => text,
            None => {
                file::create_secret(path, Self::generate()?.to_pem().as_bytes())?;
                file::read(path)?.unwrap_or_default()
            }
        };
        Self::parse(&text)
            .map_err(|reason| TlsError::Damaged { path: path.to_owned(), reason: reason.to_string() })
    }

    /// Makes one that is nowhere kept.
    ///
    /// # Errors
    /// When the cryptographic library refuses.
    pub fn generate() -> Result<Self, TlsError> {
        let key = KeyPair::generate().map_err(failed("make the cluster's key"))?;
        // Two authorities never have the same name: whose certificate it is can be told from it.
        let id: String =
            Fingerprint::of(&key.subject_public_key_info()).to_string().chars().take(16).collect();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("fcap cluster {id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        limit(&mut params, SystemTime::now(), AUTHORITY_VALIDITY);
        let certificate = params.self_signed(&key).map_err(failed("make the cluster's certificate"))?;
        Ok(Self { certificate: certificate.der().clone(), issuer: Issuer::new(params, key) })
    }

    fn parse(text: &str) -> Result<Self, TlsError> {
        let malformed = |reason: String| TlsError::Malformed { what: "the authority", reason };
        let key = KeyPair::from_pem(text).map_err(|error| malformed(error.to_string()))?;
        let certificate =
            CertificateDer::from_pem_slice(text.as_bytes()).map_err(|error| malformed(error.to_string()))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|error| malformed(error.to_string()))?;
        if parsed.tbs_certificate.subject_pki.raw != key.subject_public_key_info() {
            return Err(malformed("key and certificate do not belong together".into()));
        }
        let issuer =
            Issuer::from_ca_cert_der(&certificate, key).map_err(|error| malformed(error.to_string()))?;
        Ok(Self { issuer, certificate })
    }

    fn to_pem(&self) -> String {
        format!("{}{}", self.issuer.key().serialize_pem(), pem("CERTIFICATE", &self.certificate))
    }

    /// By what it is known.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// Signs a certificate for a machine, valid for so long from then on. Returned is the chain in
    /// PEM: the machine's certificate and the authority's.
    ///
    /// # Errors
    /// When the cryptographic library refuses.
    pub fn issue(
        &self,
        request: &Request,
        subject: &Subject,
        from: SystemTime,
        validity: Duration,
    ) -> Result<String, TlsError> {
        let uri = subject.uri().try_into().map_err(failed("put a name into a certificate"))?;
        let mut serial = [0; 16];
        getrandom::fill(&mut serial).map_err(|error| TlsError::Crypto {
            action: "number a certificate",
            reason: error.to_string(),
        })?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, subject.name());
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        limit(&mut params, from, validity);
        let made =
            params.signed_by(&request.0.public_key, &self.issuer).map_err(failed("sign a certificate"))?;
        Ok(format!("{}{}", pem("CERTIFICATE", made.der()), pem("CERTIFICATE", &self.certificate)))
    }

    /// Makes an identity, key and all.
    ///
    /// # Errors
    /// When the cryptographic library refuses.
    pub fn identity(&self, subject: &Subject, validity: Duration) -> Result<Identity, TlsError> {
        let key = Key::generate()?;
        let request = Request::parse(&key.request()?)?;
        key.certified(&self.issue(&request, subject, SystemTime::now(), validity)?)
    }
}

fn failed(action: &'static str) -> impl FnOnce(rcgen::Error) -> TlsError {
    move |error| TlsError::Crypto { action, reason: error.to_string() }
}

fn limit(params: &mut CertificateParams, from: SystemTime, validity: Duration) {
    let at = |time: SystemTime| {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        OffsetDateTime::UNIX_EPOCH
            .saturating_add(time::Duration::new(i64::try_from(since.as_secs()).unwrap_or(i64::MAX), 0))
    };
    params.not_before = at(from - LEEWAY.min(validity / 10));
    params.not_after = at(from + validity);
}
