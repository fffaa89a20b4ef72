//! Who may join the cluster, and the certificates of its machines.
//!
//! ```text
//! fcap node token ──▶ token: kept as a digest, with its end
//! fcapd --join    ──▶ its secret, a name, a request for a certificate
//!                 ◀── the certificate: the node is in the record
//! ```
//! A token is good for one machine. Token and node change in one transaction, so a machine whose
//! answer is lost asks again with the same token and the same key, and gets the same. Certificates
//! are renewed by the controller, which reaches each node anyway: a node need not know where its
//! controller is.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fcap_api::cluster::{Join, Joined, MakeToken, Token};
use fcap_api::{ErrorBody, ErrorCode, RenewCertificate};
use fcap_client::Client;
use fcap_tls::rustls::ServerConfig;
use fcap_tls::{Authority, Clients, Credentials, Fingerprint, JoinToken, LEEWAY, Request, Subject, TlsError};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::nodes::now_ms;
use crate::store::{Compare, Store, Transaction, Write};

/// Begins the keys of tokens; the digest of the secret follows.
const TOKENS: &str = "tokens/";
/// How long a token is good unless told otherwise, and at most.
const TTL: (Duration, Duration) = (Duration::from_secs(3600), Duration::from_secs(7 * 24 * 3600));
/// Expired tokens are known as such for so long.
const REMEMBERED_MS: u64 = 24 * 3_600_000;
/// Most tokens at a time.
const MAX_TOKENS: usize = 1024;
/// A clock may be set while a certificate's end is waited for, so waiting is cut in pieces.
const LOOK: Duration = Duration::from_secs(3600);

/// The cluster's authority, and the controller's own place in the cluster.
pub struct Members {
    authority: Arc<Authority>,
    credentials: Credentials,
    /// Of certificates.
    validity: Duration,
    /// Where nodes reach the controller, once it listens for them.
    address: OnceLock<SocketAddr>,
}

/// What is kept of a token.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    expires_ms: u64,
    used: Option<Used>,
}

/// Who has joined with it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Used {
    node: String,
    key: String,
}

/// A machine that may join.
pub(crate) struct Admitted {
    pub(crate) name: String,
    /// Of its public key.
    pub(crate) key: Fingerprint,
    /// Base of its daemon's URLs.
    pub(crate) url: String,
    request: Request,
    /// Holds if nobody else has used the token meanwhile.
    pub(crate) when: Compare,
    /// Uses the token up.
    pub(crate) then: Write,
}

fn unauthorized(message: String) -> Error {
    Error::Refused(ErrorBody { code: ErrorCode::Unauthorized, message })
}

fn bad(error: TlsError) -> Error {
    Error::BadRequest(error.to_string())
}

/// A span of time for people, in minutes, or hours and minutes.
fn span(ms: u64) -> String {
    match (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, min, _) => format!("{min} min"),
        (h, min, _) => format!("{h} h {min} min"),
    }
}

impl Members {
    /// With this authority; certificates are good for so long.
    ///
    /// # Errors
    /// When the cryptographic library refuses.
    pub fn new(authority: Arc<Authority>, validity: Duration) -> Result<Self> {
        let own = authority.identity(&Subject::controller(), validity)?;
        let credentials = Credentials::new(own)?;
        Ok(Self { authority, credentials, validity, address: OnceLock::new() })
    }

    /// How nodes' connections are accepted: those that are still to join show nothing.
    ///
    /// # Errors
    /// When the cryptographic library refuses.
    pub fn server(&self) -> Result<ServerConfig> {
        Ok(self.credentials.server(Clients::Anybody)?)
    }

    /// Says where nodes reach the controller.
    pub fn set_address(&self, address: SocketAddr) {
        let _ = self.address.set(address);
    }

    /// Speaks to a node of the cluster, and to nobody else.
    ///
    /// # Errors
    /// When the name or the URL is none.
    pub fn client(&self, node: &str, url: &str) -> Result<Client> {
        let config = self.credentials.client(Subject::node(node)?);
        Client::trusting(url, config).map_err(Error::from_node(node))
    }

    /// Renews the controller's own certificate, for ever.
    pub async fn stay_valid(self: Arc<Self>) {
        loop {
            let left = self.credentials.identity().renewal().duration_since(SystemTime::now());
            match left {
                Ok(left) if !left.is_zero() => tokio::time::sleep(left.min(LOOK)).await,
                _ => {
                    let renewed = self
                        .authority
                        .identity(&Subject::controller(), self.validity)
                        .and_then(|own| self.credentials.replace(own));
                    match renewed {
                        Ok(()) => tracing::info!("the controller has a new certificate"),
                        Err(error) => {
                            tracing::error!(%error, "the controller's certificate cannot be renewed");
                            tokio::time::sleep(LOOK).await;
                        }
                    }
                }
            }
        }
    }

    /// Looks at a node's certificate, and renews it if it is time. Returns when to look again.
    ///
    /// # Errors
    /// When the node does not answer, or does not take the certificate.
    pub(crate) async fn renew(&self, node: &str, client: &Client) -> Result<SystemTime> {
        let present = client.certificate().await.map_err(Error::from_node(node))?;
        let due = |not_before_ms: u64, not_after_ms: u64| {
            let third = not_after_ms.saturating_sub(not_before_ms) / 3;
            UNIX_EPOCH + Duration::from_millis(not_after_ms.saturating_sub(third))
        };
        let time = due(present.not_before_ms, present.not_after_ms);
        if time > SystemTime::now() {
            return Ok(time);
        }
        let request = Request::parse(&present.request).map_err(bad)?;
        let chain =
            self.authority.issue(&request, &Subject::node(node)?, SystemTime::now(), self.validity)?;
        let new = client.renew(&RenewCertificate { chain }).await.map_err(Error::from_node(node))?;
        tracing::info!(node, "a node has a new certificate");
        Ok(due(new.not_before_ms, new.not_after_ms))
    }

    /// Makes a token.
    ///
    /// # Errors
    /// When the controller does not listen for nodes, the request is bad, or the store fails.
    pub async fn make_token(&self, store: &dyn Store, make: &MakeToken) -> Result<Token> {
        let ttl = make.ttl_s.map_or(TTL.0, Duration::from_secs);
        if ttl.is_zero() || ttl > TTL.1 {
            return Err(Error::BadRequest(format!(
                "a token is good for {} s: from 1 s to 7 days are possible",
                ttl.as_secs()
            )));
        }
        let listens = self.address.get().ok_or_else(|| {
            Error::WrongState("this controller does not listen for nodes that want to join".into())
        })?;
        let address = match &make.address {
            Some(address) => address.clone(),
            None if listens.ip().is_unspecified() => {
                return Err(Error::BadRequest(
                    "the controller listens on all addresses: say with --address at which one the machine \
                     reaches it"
                        .into(),
                ));
            }
            None => listens.to_string(),
        };
        let token = JoinToken::new(self.authority.fingerprint(), &address)
            .map_err(|error| Error::BadRequest(error.to_string()))?;
        let expires_ms = now_ms() + u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let mut then = Vec::new();
        let mut count = 0;
        for entry in store.range(TOKENS).await?.entries {
            let kept: Kept = parse(&entry.key, &entry.value)?;
            if kept.expires_ms + REMEMBERED_MS < now_ms() {
                then.push(Write::Delete(entry.key));
            } else {
                count += 1;
            }
        }
        if count >= MAX_TOKENS {
            return Err(Error::WrongState(format!("there are {count} tokens already: use those first")));
        }
        let kept = Kept { expires_ms, used: None };
        then.push(Write::json(format!("{TOKENS}{}", token.digest()), &kept));
        store.commit(Transaction::of(then)).await?;
        Ok(Token { token: token.to_string(), expires_ms })
    }

    /// Looks whether a machine may join that asks from there. Nothing has changed yet.
    ///
    /// # Errors
    /// When its token is unknown, stale or somebody else's, its clock is off, or what it asks for
    /// makes no sense.
    pub(crate) async fn admit(&self, store: &dyn Store, from: IpAddr, join: &Join) -> Result<Admitted> {
        let subject = Subject::node(&join.name).map_err(bad)?;
        let request = Request::parse(&join.request).map_err(bad)?;
        let unknown =
            || unauthorized("this token is not known here: `fcap node token` makes a new one".into());
        let digest = JoinToken::digest_of(&join.secret).ok_or_else(unknown)?;
        let key = format!("{TOKENS}{digest}");
        let entry = store.get(&key).await?.ok_or_else(unknown)?;
        let mut kept: Kept = parse(&entry.key, &entry.value)?;
        let now = now_ms();
        if kept.expires_ms <= now {
            return Err(unauthorized(format!(
                "this token has expired {} ago: `fcap node token` makes a new one",
                span(now - kept.expires_ms)
            )));
        }
        let used = Used { node: subject.name().to_owned(), key: request.key().to_string() };
        if let Some(other) = kept.used.filter(|other| *other != used) {
            return Err(unauthorized(format!(
                "node {} has joined with this token already: `fcap node token` makes one for each machine",
                other.node
            )));
        }
        let off = now.abs_diff(join.time_ms);
        if Duration::from_millis(off) > LEEWAY {
            let direction = if join.time_ms > now { "ahead of" } else { "behind" };
            return Err(Error::WrongState(format!(
                "the clock of node {} is {} {direction} the controller's: set it right, then join again",
                join.name,
                span(off)
            )));
        }
        let host = match &join.host {
            Some(host) if host.parse::<std::net::Ipv6Addr>().is_ok() => format!("[{host}]"),
            Some(host) => host.clone(),
            None => SocketAddr::new(from.to_canonical(), 0).to_string().trim_end_matches(":0").to_owned(),
        };
        let url = format!("https://{host}:{}", join.port);
        url.parse::<fcap_client::Address>().map_err(|_| {
            Error::BadRequest(format!("{:?} is no host: give a name or an address", join.host))
        })?;
        kept.used = Some(used);
        Ok(Admitted {
            name: join.name.clone(),
            key: request.key(),
            url,
            request,
            when: Compare::Modified(key.clone(), entry.modified),
            then: Write::json(key, &kept),
        })
    }

    /// Signs for a machine that has joined.
    pub(crate) fn sign(&self, admitted: &Admitted) -> Result<Joined> {
        let subject = Subject::node(&admitted.name)?;
        let chain = self.authority.issue(&admitted.request, &subject, SystemTime::now(), self.validity)?;
        Ok(Joined { chain })
    }
}

fn parse(key: &str, value: &[u8]) -> Result<Kept> {
    serde_json::from_slice(value).map_err(|error| Error::Corrupt(key.to_owned(), error.to_string()))
}
