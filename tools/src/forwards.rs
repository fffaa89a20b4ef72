//! Published ports of a local cloud's nodes on the user's own machine.
//!
//! On an ordinary node published ports are the node's own, and there is nothing to do here.

use crate::client::Client;
use crate::cloud::{Cloud, CloudError};
use anyhow::Context as _;
use fcap_api::{Capsule, PublishedPort};

/// The nodes of a local cloud whose ports are forwarded; none elsewhere.
#[derive(Debug, Default)]
pub struct Forwards {
    local: Option<(Cloud, Vec<(String, Client)>)>,
}

impl Forwards {
    /// For these nodes of a local cloud, with their names.
    pub fn local(cloud: Cloud, nodes: Vec<(String, Client)>) -> Self {
        Self { local: Some((cloud, nodes)) }
    }

    /// Whether there is anything to forward.
    pub fn any(&self) -> bool {
        self.local.is_some()
    }

    /// Has the ports of a capsule that runs lead to it.
    ///
    /// # Errors
    /// When another program of this machine has one of them.
    pub async fn add(&self, capsule: &Capsule) -> anyhow::Result<()> {
        let Some((cloud, _)) = self.local.as_ref().filter(|_| !capsule.ports.is_empty()) else {
            return Ok(());
        };
        let publish = async || {
            let (cloud, node, ports) = (cloud.clone(), capsule.node.clone(), capsule.ports.clone());
            blocking(move || cloud.publish(&node, &ports)).await
        };
        match publish().await {
            // It may be taken by a capsule of another node that has ended.
            Err(CloudError::PortTaken { .. }) => {
                self.tidy().await?;
                Ok(publish().await?)
            }
            outcome => Ok(outcome?),
        }
    }

    /// As [`Self::add`]; the capsule does not stay without its ports.
    ///
    /// # Errors
    /// As [`Self::add`]; the capsule has then been removed.
    pub async fn add_or_remove(&self, node: &Client, capsule: &Capsule) -> anyhow::Result<()> {
        let added = self.add(capsule).await;
        if added.is_err() {
            // What matters is why; that it could not be removed either would hide it.
            let _ = node.remove(&capsule.id, true).await;
        }
        added
    }

    /// Gives the ports free that lead to no capsule any more.
    ///
    /// # Errors
    /// When a node does not answer.
    pub async fn tidy(&self) -> anyhow::Result<()> {
        let Some((cloud, nodes)) = &self.local else { return Ok(()) };
        for (name, client) in nodes {
            let capsules = client.capsules(false).await?;
            let running = capsules.into_iter().filter(|capsule| capsule.domid.is_some());
            let ports: Vec<PublishedPort> = running.flat_map(|capsule| capsule.ports).collect();
            let (cloud, name) = (cloud.clone(), name.clone());
            blocking(move || cloud.unpublish_others(&name, &ports)).await?;
        }
        Ok(())
    }

    /// The same when a capsule with ports has ended. That it did not work is said, and no more:
    /// the capsule has ended all the same.
    pub async fn tidy_after(&self, had_ports: bool) {
        if !had_ports {
            return;
        }
        if let Err(error) = self.tidy().await.context("ports of this machine may still be taken") {
            eprintln!("fcap: {}", crate::terminal::one_line(&format!("{error:#}")));
        }
    }
}

/// Calls of a local cloud wait for QEMU.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}
