//! Whom a certificate is for.

use std::fmt;

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::GeneralName;

use crate::error::{PeerError, TlsError};

/// Begins the names in certificates, which are SPIFFE's: the role and the name follow.
const PREFIX: &str = "spiffe://fcap/";
/// Longest name; fcap's names have at most as many bytes.
const MAX_NAME: usize = 255;

/// What a machine is in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Runs capsules.
    Node,
    /// Says what is done; may do everything on each node.
    Controller,
}

impl Role {
    fn word(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Controller => "controller",
        }
    }
}

/// Whom a certificate is for: a role, and a name that is the only one in it.
///
/// In a certificate it is the one URI among the alternative names, `spiffe://fcap/node/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    role: Role,
    name: String,
}

impl Subject {
    /// In this role, by this name.
    ///
    /// # Errors
    /// When the name has other characters than letters, digits, `_`, `.` and `-`, or begins with
    /// none of the first two, or is too long.
    pub fn new(role: Role, name: &str) -> Result<Self, TlsError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if name.len() <= MAX_NAME
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(fits)
        {
            Ok(Self { role, name: name.to_owned() })
        } else {
            Err(TlsError::BadName(name.chars().take(MAX_NAME).collect()))
        }
    }

    /// A node.
    ///
    /// # Errors
    /// As [`Subject::new`].
    pub fn node(name: &str) -> Result<Self, TlsError> {
        Self::new(Role::Node, name)
    }

    /// The controller of the cluster: there is one.
    pub fn controller() -> Self {
        Self { role: Role::Controller, name: "controller".into() }
    }

    /// Its role.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// As it is in certificates.
    pub fn uri(&self) -> String {
        format!("{PREFIX}{}/{}", self.role.word(), self.name)
    }

    fn from_uri(uri: &str) -> Option<Self> {
        let (role, name) = uri.strip_prefix(PREFIX)?.split_once('/')?;
        let role = [Role::Node, Role::Controller].into_iter().find(|it| it.word() == role)?;
        Self::new(role, name).ok()
    }

    /// Whom a certificate is for. Says nothing about whether to believe it.
    ///
    /// # Errors
    /// [`PeerError::Unnamed`] when it is not one that an authority of fcap has made.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, PeerError> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|_| PeerError::Unnamed)?;
        let names = parsed.subject_alternative_name().ok().flatten().ok_or(PeerError::Unnamed)?;
        match names.value.general_names.as_slice() {
            [GeneralName::URI(uri)] => Self::from_uri(uri).ok_or(PeerError::Unnamed),
            _ => Err(PeerError::Unnamed),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.role {
            Role::Node => write!(f, "node {}", self.name),
            Role::Controller => f.write_str("the controller"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_refused() {
        for name in ["node1", "a.b-c_d", "0"] {
            let subject = Subject::node(name).unwrap();
            assert_eq!(Subject::from_uri(&subject.uri()), Some(subject));
        }
        assert_eq!(Subject::from_uri(&Subject::controller().uri()), Some(Subject::controller()));
        for bad in ["", "..", ".", "a/b", "a b", "ä", "-x", &"x".repeat(300)] {
            assert!(Subject::node(bad).is_err(), "{bad}");
            assert_eq!(Subject::from_uri(&format!("{PREFIX}node/{bad}")), None, "{bad}");
        }
        for bad in ["spiffe://fcap/node", "spiffe://fcap/king/a", "spiffe://other/node/a", "node/a"] {
            assert_eq!(Subject::from_uri(bad), None, "{bad}");
        }
    }
}
