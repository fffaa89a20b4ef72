//! How the machines of a cluster know each other.
//!
//! A cluster has an [`Authority`] of its own, which is the controller's. Each machine has a key and
//! a certificate of that authority with the machine's role and name in it ([`Subject`]): together
//! its [`Identity`]. With its [`Credentials`] it connects to, and accepts, machines of the same
//! authority alone, by TLS 1.3, and both sides show who they are.
//!
//! | part | what it is |
//! |---|---|
//! | [`Authority`] | signs; one file with key and certificate |
//! | [`Key`], [`Request`] | what a machine makes, and what it asks the authority to sign |
//! | [`Identity`] | key, certificate and the authority's certificate; one file |
//! | [`Credentials`] | an identity in use: configurations for both sides, and a new certificate without a restart |
//! | [`JoinToken`] | what a machine needs to get its first certificate |
//! | [`provider`] | the ciphers, the fastest first |
//! | [`PeerError`] | why another machine is not believed, or does not believe us |
//!
//! Nobody is asked whether a certificate was revoked: they are short-lived, and are not renewed for
//! a node that was removed.
// But for `cipher/scalar.rs`.
#![deny(unsafe_code)]

mod accept;
mod authority;
mod cipher;
mod credentials;
mod error;
mod file;
mod fingerprint;
mod identity;
mod subject;
mod token;

pub use accept::{Accepted, accept};
pub use authority::{Authority, LEEWAY, Request, VALIDITY};
pub use cipher::provider;
pub use credentials::{Clients, Credentials, pinned_client, plain_client};
pub use error::{PeerError, TlsError, explain};
pub use file::write_secret;
pub use fingerprint::Fingerprint;
pub use identity::{Identity, Key};
pub use rustls;
pub use subject::{Role, Subject};
pub use token::{BadToken, JoinToken};
pub use tokio_rustls;

#[cfg(test)]
mod tests;
