//! The controller as a whole.

use std::sync::Arc;
use std::time::Duration;

use fcap_http::metrics::Requests;
use fcap_tls::Authority;
use tokio::net::TcpListener;

use crate::api;
use crate::audit::Audit;
use crate::error::{Error, Result};
use crate::execute::{Executor, Limits};
use crate::members::Members;
use crate::nodes::{Nodes, Rhythm};
use crate::policies::Policies;
use crate::provider::Provider;
use crate::store::Store;

/// Who may ask the controller, and who it is to the nodes.
pub struct Security {
    /// The bearer token that operators show.
    pub token: String,
    /// The cluster's authority.
    pub authority: Arc<Authority>,
    /// How long certificates are good.
    pub validity: Duration,
}

fn failed(error: std::io::Error) -> Error {
    Error::WrongState(format!("machines cannot be served: {error}"))
}

/// All that serves a request.
pub struct Controller {
    /// What the API is served with: the bearer token that is wanted.
    pub(crate) token: String,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) executor: Arc<Executor>,
    pub(crate) policies: Arc<Policies>,
    pub(crate) audit: Arc<Audit>,
    pub(crate) limits: Limits,
    pub(crate) members: Arc<Members>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) requests: Requests,
}

impl Controller {
    /// Reads what was left, finds the nodes, and goes on with what was begun.
    ///
    /// # Errors
    /// When store or provider fail.
    pub async fn start(
        store: Arc<dyn Store>,
        provider: Arc<dyn Provider>,
        security: Security,
        rhythm: Rhythm,
        limits: Limits,
    ) -> Result<Arc<Self>> {
        let members = Arc::new(Members::new(security.authority, security.validity)?);
        tokio::spawn(members.clone().stay_valid());
        let nodes = Nodes::start(store.clone(), provider.clone(), members.clone(), rhythm).await?;
        let executor = Executor::start(store.clone(), nodes.clone(), provider, limits).await?;
        tokio::spawn(nodes.clone().watch_provider());
        let audit = Arc::new(Audit::new(store.clone()));
        let policies = Policies::start(store.clone(), nodes.clone(), executor.clone(), audit.clone()).await?;
        tokio::spawn(policies.clone().run());
        let (token, requests) = (security.token, Requests::default());
        Ok(Arc::new(Self { token, nodes, executor, policies, audit, limits, members, store, requests }))
    }

    /// Serves the API.
    ///
    /// # Errors
    /// When connections cannot be accepted any more.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) -> std::io::Result<()> {
        axum::serve(listener, api::router(self)).await
    }

    /// Serves machines: those that want to join, by TLS alone.
    ///
    /// # Errors
    /// When connections cannot be accepted any more.
    pub async fn serve_machines(self: Arc<Self>, listener: TcpListener) -> Result<()> {
        self.members.set_address(listener.local_addr().map_err(failed)?);
        let config = Arc::new(self.members.server()?);
        api::serve_tls(listener, config, api::router(self)).await.map_err(failed)
    }

    /// Whether there is something to do: nodes to look after, or an operation that is not over.
    pub fn is_needed(&self) -> bool {
        let nodes = self.nodes.list();
        let runs = nodes.iter().any(|node| !node.url.is_empty());
        runs || self.executor.list().iter().any(|operation| !operation.state.is_over())
    }
}
