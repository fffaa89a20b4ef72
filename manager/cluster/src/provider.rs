//! Where nodes come from.
//!
//! A provider starts and destroys machines, and says which there are: what it says is so. A
//! machine bears a tag from its first moment on, the operation that wanted it, so that a
//! controller that was killed while it waited for the machine knows it again.

use fcap_api::PublishedPort;
use fcap_api::cluster::Flavor;
use futures_util::future::BoxFuture;

/// A machine that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Name of the node on it.
    pub name: String,
    /// Name of its flavor, if it has one.
    pub flavor: Option<String>,
    /// Base of the URLs of its daemon.
    pub url: String,
    /// The token that its daemon wants.
    pub token: String,
    /// When it was started, milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// The operation that wanted it; none if somebody else did.
    pub tag: Option<String>,
}

/// A machine that is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Name of the node on it.
    pub name: String,
    /// Name of its flavor.
    pub flavor: String,
    /// The operation that wants it.
    pub tag: String,
}

/// A provider cannot do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// There is no such flavor.
    #[error("no flavor {name:?}; there are {known}")]
    NoSuchFlavor {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A machine that another operation wanted, or nobody, has the name.
    #[error("there is a node {0} already")]
    NameTaken(String),
    /// It does not work.
    #[error("failed to {what}: {reason}")]
    Failed {
        /// What was to be done.
        what: String,
        /// Why not.
        reason: String,
    },
}

/// Result of asking a provider.
pub type Result<T> = std::result::Result<T, ProviderError>;

/// Starts and destroys machines.
pub trait Provider: Send + Sync {
    /// Sizes of machines that it has, the smallest first.
    fn flavors(&self) -> Vec<Flavor>;

    /// The machines that run.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Machine>>>;

    /// Starts a machine, or finds the one that an earlier call with the same tag has started.
    fn create(&self, wanted: Wanted) -> BoxFuture<'_, Result<Machine>>;

    /// Destroys a machine; that there is none is as good.
    fn destroy(&self, name: &str) -> BoxFuture<'_, Result<()>>;

    /// Has what leads to published ports of a capsule from outside lead to another node. Where
    /// ports of nodes are reached as they are there is nothing to do.
    fn move_ports(&self, ports: Vec<PublishedPort>, from: &str, to: &str) -> BoxFuture<'_, Result<()>>;
}
