//! The controller as a whole.

use std::sync::Arc;

use fcap_http::metrics::Requests;
use tokio::net::TcpListener;

use crate::api;
use crate::audit::Audit;
use crate::error::Result;
use crate::execute::{Executor, Limits};
use crate::nodes::{Nodes, Rhythm};
use crate::policies::Policies;
use crate::provider::Provider;
use crate::store::Store;

/// All that serves a request.
pub struct Controller {
    /// What the API is served with: the bearer token that is wanted.
    pub(crate) token: String,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) executor: Arc<Executor>,
    pub(crate) policies: Arc<Policies>,
    pub(crate) audit: Arc<Audit>,
    pub(crate) limits: Limits,
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
        token: String,
        rhythm: Rhythm,
        limits: Limits,
    ) -> Result<Arc<Self>> {
        let nodes = Nodes::start(store.clone(), provider.clone(), rhythm).await?;
        let executor = Executor::start(store.clone(), nodes.clone(), provider, limits).await?;
        tokio::spawn(nodes.clone().watch_provider());
        let audit = Arc::new(Audit::new(store.clone()));
        let policies = Policies::start(store, nodes.clone(), executor.clone(), audit.clone()).await?;
        tokio::spawn(policies.clone().run());
        let requests = Requests::default();
        Ok(Arc::new(Self { token, nodes, executor, policies, audit, limits, requests }))
    }

    /// Serves the API.
    ///
    /// # Errors
    /// When connections cannot be accepted any more.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) -> std::io::Result<()> {
        axum::serve(listener, api::router(self)).await
    }

    /// Whether there is something to do: nodes to look after, or an operation that is not over.
    pub fn is_needed(&self) -> bool {
        let nodes = self.nodes.list();
        let runs = nodes.iter().any(|node| !node.url.is_empty());
        runs || self.executor.list().iter().any(|operation| !operation.state.is_over())
    }
}
