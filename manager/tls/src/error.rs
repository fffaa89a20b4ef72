//! What can go wrong, in words that say what to do.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError};

use crate::subject::Subject;

/// An authority, an identity or a request cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be used.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file holds something else than it should.
    #[error("{} is damaged ({reason}): put back a copy of it, or move it away", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It is not what it should be.
    #[error("{what} makes no sense: {reason}")]
    Malformed {
        /// What was given.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Names in certificates are those of nodes.
    #[error("{0:?} is no name for a certificate: use letters, digits, '_', '.' and '-'")]
    BadName(String),
    /// A certificate is not what was asked for.
    #[error("the new certificate {0}")]
    Unexpected(String),
    /// The cryptographic library refuses.
    #[error("cannot {action}: {reason}")]
    Crypto {
        /// What was to be done.
        action: &'static str,
        /// Its answer.
        reason: String,
    },
    /// A certificate is not believed.
    #[error(transparent)]
    Peer(#[from] PeerError),
}

/// Why another machine is not believed, or does not believe us.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Another authority has signed its certificate.
    #[error("its certificate is of another cluster")]
    OtherCluster,
    /// Its authority is not the one of the token.
    #[error(
        "it is of another cluster than the token: its authority is not the one that the token names; \
         make a new token with `fcap node token`"
    )]
    OtherAuthority,
    /// It is too late for its certificate.
    #[error(
        "its certificate has expired {} ago by this machine's clock: set the clocks right, or give it a new \
         certificate",
        human(*.0)
    )]
    Expired(Duration),
    /// It is too early for its certificate.
    #[error(
        "its certificate will be valid in {} by this machine's clock: one of the two clocks is off by at least \
         that; set it right",
        human(*.0)
    )]
    NotYetValid(Duration),
    /// It is somebody else.
    #[error("it is {found}, and not {expected}")]
    WrongPeer {
        /// Whom we wanted.
        expected: Subject,
        /// Who it is.
        found: Subject,
    },
    /// Its certificate is for nobody in a cluster.
    #[error("its certificate names neither a node nor a controller of fcap")]
    Unnamed,
    /// It shows no certificate.
    #[error("it shows no certificate")]
    NoCertificate,
    /// It refuses ours, for this reason.
    #[error("it refuses this machine's certificate: {0}")]
    Refuses(&'static str),
    /// Something else is wrong with its certificate, or with the connection.
    #[error("{0}")]
    Other(String),
}

impl From<&rustls::Error> for PeerError {
    fn from(error: &rustls::Error) -> Self {
        use AlertDescription as Alert;
        match error {
            rustls::Error::InvalidCertificate(error) => Self::from(error),
            rustls::Error::NoCertificatesPresented => Self::NoCertificate,
            rustls::Error::AlertReceived(Alert::UnknownCA) => Self::Refuses("it is of another cluster"),
            rustls::Error::AlertReceived(Alert::CertificateExpired) => {
                Self::Refuses("it is expired or not valid yet by that machine's clock; compare the clocks")
            }
            rustls::Error::AlertReceived(Alert::CertificateRequired) => Self::Refuses("it has seen none"),
            rustls::Error::AlertReceived(
                Alert::CertificateUnknown | Alert::BadCertificate | Alert::AccessDenied,
            ) => Self::Refuses("it expects somebody else"),
            error => Self::Other(error.to_string()),
        }
    }
}

impl From<&CertificateError> for PeerError {
    fn from(error: &CertificateError) -> Self {
        match error {
            // An authority of the same name with another key is somebody else's, too.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::OtherCluster,
            CertificateError::ExpiredContext { time, not_after } => {
                Self::Expired(Duration::from_secs(time.as_secs().saturating_sub(not_after.as_secs())))
            }
            CertificateError::NotValidYetContext { time, not_before } => {
                Self::NotYetValid(Duration::from_secs(not_before.as_secs().saturating_sub(time.as_secs())))
            }
            CertificateError::Other(other) => match other.0.downcast_ref::<Self>() {
                Some(error) => error.clone(),
                None => Self::Other(error.to_string()),
            },
            error => Self::Other(error.to_string()),
        }
    }
}

impl From<PeerError> for rustls::Error {
    fn from(error: PeerError) -> Self {
        CertificateError::Other(rustls::OtherError(std::sync::Arc::new(error))).into()
    }
}

/// Finds what is wrong between two machines in an error of the libraries around TLS.
pub fn explain(error: &(dyn Error + 'static)) -> Option<PeerError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(error.into());
        }
        // Such an error passes over what it holds when it is asked for its cause.
        let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match held {
            Some(held) => Some(held),
            None => error.source(),
        };
    }
    None
}

/// A time in the two units that matter.
fn human(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, min, s) => format!("{min} min {s} s"),
        (0, h, min, _) => format!("{h} h {min} min"),
        (d, h, _, _) => format!("{d} d {h} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_two_units() {
        let told = |seconds| human(Duration::from_secs(seconds));
        assert_eq!(told(59), "59 s");
        assert_eq!(told(61), "1 min 1 s");
        assert_eq!(told(3 * 3600 + 120), "3 h 2 min");
        assert_eq!(told(50 * 3600), "2 d 2 h");
    }

    #[test]
    fn what_is_wrong_is_found_inside_of_other_errors() {
        let inner = rustls::Error::AlertReceived(AlertDescription::UnknownCA);
        let outer = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, inner));
        assert!(matches!(explain(&outer), Some(PeerError::Refuses(_))));
        let own = rustls::Error::from(PeerError::Unnamed);
        assert_eq!(explain(&io::Error::other(own)), Some(PeerError::Unnamed));
        assert_eq!(explain(&io::Error::other("something else")), None);
    }
}
