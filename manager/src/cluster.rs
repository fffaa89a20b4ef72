//! The node's place in a cluster: who it is to the other machines, and how it gets to be that.
//!
//! | file in the state directory | holds |
//! |---|---|
//! | `cluster.pem` | the node's key, its certificate, and the certificate of the cluster's authority |
//! | `cluster.key` | the key with which it asked to join: the same one when it has to ask again |
//!
//! A node without these files stands alone. It gets them when it is adopted, or by a join token;
//! the controller replaces the certificate when a third of its time is left.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use axum::body::Bytes;
use fcap_api::cluster::{Join, Joined};
use fcap_api::{ErrorBody, NodeCertificate};
use fcap_tls::rustls::ServerConfig;
use fcap_tls::rustls::pki_types::ServerName;
use fcap_tls::tokio_rustls::TlsConnector;
use fcap_tls::{Clients, Credentials, Identity, JoinToken, Key, Role, TlsError, explain, pinned_client};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::clock::now_ms;
use crate::error::{Error, Result};
use crate::store::Store;

/// How long the controller may take to let the node join.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer of the controller.
const MAX_ANSWER: usize = 64 << 10;

/// The node's place in a cluster, if it has one.
pub struct Membership {
    file: PathBuf,
    current: RwLock<Option<Member>>,
}

#[derive(Clone)]
struct Member {
    credentials: Credentials,
    /// How others are accepted.
    server: Arc<ServerConfig>,
}

impl Member {
    fn new(identity: Identity) -> std::result::Result<Self, TlsError> {
        let credentials = Credentials::new(identity)?;
        let server = Arc::new(credentials.server(Clients::Known)?);
        Ok(Self { credentials, server })
    }
}

/// The identity that is kept, if there is one.
fn load(store: &Store) -> std::result::Result<Option<Identity>, TlsError> {
    Identity::load(&store.own("cluster.pem"))
}

/// The name that the node has in its cluster, if it is in one.
///
/// # Errors
/// When the file cannot be used.
pub fn name(store: &Store) -> std::result::Result<Option<String>, TlsError> {
    Ok(load(store)?.map(|identity| identity.subject().name().to_owned()))
}

/// Reads an identity that somebody gives to the node of that name.
///
/// # Errors
/// When it is none, or another one's.
pub fn parse(text: &str, name: &str) -> Result<Identity> {
    let identity = Identity::parse(text).map_err(|error| Error::BadRequest(error.to_string()))?;
    let subject = identity.subject();
    if subject.role() != Role::Node || subject.name() != name {
        return Err(Error::BadRequest(format!("the certificate is for {subject}, and not for node {name}")));
    }
    Ok(identity)
}

fn failed(error: TlsError) -> Error {
    Error::Disk { what: "keep the node's certificate".into(), source: std::io::Error::other(error) }
}

impl Membership {
    /// Reads what is kept of it.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn load(store: &Store) -> std::result::Result<Self, TlsError> {
        let current = load(store)?.map(Member::new).transpose()?;
        Ok(Self { file: store.own("cluster.pem"), current: RwLock::new(current) })
    }

    fn current(&self) -> Option<Member> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// With what the node connects to others of its cluster.
    pub fn credentials(&self) -> Option<Credentials> {
        self.current().map(|member| member.credentials)
    }

    /// The authority of the cluster that the node is in.
    pub fn authority(&self) -> Option<String> {
        self.current().map(|member| member.credentials.identity().authority().to_string())
    }

    /// How the node accepts others of its cluster.
    pub fn server(&self) -> Option<Arc<ServerConfig>> {
        self.current().map(|member| member.server)
    }

    /// Takes a place in a cluster.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn enter(&self, identity: Identity) -> Result<()> {
        // What cannot be used does not take the place of what is kept.
        let member = Member::new(identity).map_err(failed)?;
        member.credentials.identity().save(&self.file).map_err(failed)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(member);
        Ok(())
    }

    fn needed(&self) -> Result<Credentials> {
        self.credentials().ok_or_else(|| {
            Error::WrongState("this node is in no cluster; `fcapd --join TOKEN` has it join one".into())
        })
    }

    /// How the node is known at present.
    ///
    /// # Errors
    /// When it is in no cluster.
    pub fn certificate(&self) -> Result<NodeCertificate> {
        let identity = self.needed()?.identity();
        let ms = |time: SystemTime| {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        };
        let (from, until) = identity.validity();
        Ok(NodeCertificate {
            name: identity.subject().name().to_owned(),
            authority: identity.authority().to_string(),
            not_before_ms: ms(from),
            not_after_ms: ms(until),
            request: identity.key().request().map_err(failed)?,
        })
    }

    /// Uses a new certificate from the next connection on.
    ///
    /// # Errors
    /// When the node is in no cluster, the certificate is not for it, or the disk fails.
    pub fn renew(&self, chain: &str) -> Result<NodeCertificate> {
        let credentials = self.needed()?;
        let new = credentials.identity().renewed(chain);
        let new = new.map_err(|error| Error::BadRequest(error.to_string()))?;
        new.save(&self.file).map_err(failed)?;
        credentials.replace(new).map_err(failed)?;
        self.certificate()
    }
}

/// Where the controller is to reach the node.
pub struct Reached {
    /// Host; the address from which the node asks when not given.
    pub host: Option<String>,
    /// Port of the daemon.
    pub port: u16,
}

/// Has the node join the cluster of a token, before its daemon starts. One that is in this cluster
/// already, and whose certificate is still good, is left as it is.
///
/// # Errors
/// When the node is in another cluster, the controller cannot be reached or is not the token's, or
/// does not let the node join: nothing has changed then.
pub async fn join(store: &Store, node: &str, token: &JoinToken, reached: Reached) -> anyhow::Result<()> {
    let file = store.own("cluster.pem");
    if let Some(present) = Identity::load(&file)? {
        anyhow::ensure!(
            present.authority() == token.authority,
            "this node is in another cluster already, as {}; to leave that one, remove {}",
            present.subject(),
            file.display()
        );
        if present.validity().1 > SystemTime::now() {
            tracing::info!(node = present.subject().name(), "the node is in this cluster already");
            return Ok(());
        }
    }
    let key = Key::open(&store.own("cluster.key"))?;
    let join = Join {
        name: node.to_owned(),
        secret: token.secret(),
        request: key.request()?,
        host: reached.host,
        port: reached.port,
        time_ms: now_ms(),
    };
    let joined = timeout(PATIENCE, ask(token, &join)).await;
    let joined = joined
        .unwrap_or_else(|_| Err(anyhow::anyhow!("it takes too long")))
        .with_context(|| format!("failed to join the cluster of the controller at {}", token.controller()))?;
    let identity = key.certified(&joined.chain)?;
    anyhow::ensure!(
        identity.authority() == token.authority,
        "the controller at {} gives a certificate of another cluster",
        token.controller()
    );
    parse(&identity.to_pem(), node).map_err(|error| anyhow::anyhow!(error.body().message))?;
    identity.save(&file)?;
    tracing::info!(node, "the node has joined the cluster");
    Ok(())
}

/// Asks the token's controller, and nobody else.
async fn ask(token: &JoinToken, join: &Join) -> anyhow::Result<Joined> {
    let believed = |error: std::io::Error| match explain(&error) {
        Some(error) => anyhow::Error::new(error),
        None => error.into(),
    };
    let stream = TcpStream::connect(token.controller()).await?;
    let connector = TlsConnector::from(Arc::new(pinned_client(token.authority)));
    let stream = connector.connect(ServerName::try_from("fcap")?, stream).await.map_err(believed)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::post("/v1/join")
        .header(header::HOST, token.controller())
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(serde_json::to_vec(join)?)))?;
    let exchange = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("its answer breaks off: {error}"))?.to_bytes();
        if status.is_success() {
            return Ok(serde_json::from_slice(&body)?);
        }
        let said = serde_json::from_slice(&body).map(|body: ErrorBody| body.message);
        anyhow::bail!(said.unwrap_or_else(|_| format!("it answers {status}")))
    };
    tokio::select! {
        biased;
        done = exchange => done,
        broken = connection => match broken {
            Err(error) => Err(explain(&error).map_or_else(|| error.into(), anyhow::Error::new)),
            Ok(()) => Err(anyhow::anyhow!("it hung up")),
        },
    }
}
