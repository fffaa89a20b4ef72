//! What the controller must not forget.
//!
//! Keys with values, in the shape of etcd's API, so that etcd can serve a cluster whose controller
//! must survive its machine: every change has a revision, a transaction compares before it writes,
//! whoever watches hears of every change in order, and a key can hang on a lease that ends unless
//! it is kept alive.
//!
//! ```text
//! Store            what everybody asks
//!  └ Local         one state in memory, which answers      state   keys, revisions, history, leases: pure
//!      └ disk      each change durable before it counts    (nothing: for tests and simulations)
//! ```
//! The embedded store is read once, when it is opened: what a controller keeps is small, and is
//! asked for far more often than it changes.

mod disk;
mod local;
mod state;

use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

pub use local::Local;

/// Counts the changes of a store.
pub type Revision = u64;

/// Something that keys hang on; ends unless it is kept alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lease(pub u64);

/// The store cannot do what it should.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file is no store, or not all of one.
    #[error(
        "{} is damaged or cut off ({reason}): put back a copy of it, or move it away to begin with nothing \
         known; nodes and capsules run on, and are found again",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A later fcap has written it.
    #[error(
        "{} was written by a newer fcap (its version is {found}, this one knows up to {known}): use that one",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// The last one known here.
        known: u64,
    },
    /// Another controller has it.
    #[error("{} is in use by another controller of this cluster", .0.display())]
    InUse(PathBuf),
    /// The disk fails.
    #[error("cannot {action} {}: {reason}", path.display())]
    Disk {
        /// What was to be done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's answer.
        reason: String,
    },
    /// Changes from so long ago are no longer kept.
    #[error("changes since revision {asked} are not kept any more, the oldest is {oldest}: read anew")]
    Compacted {
        /// Where the watch was to begin.
        asked: Revision,
        /// Where it can.
        oldest: Revision,
    },
    /// It has ended, or there never was one.
    #[error("there is no lease {0:?} any more")]
    NoSuchLease(Lease),
}

/// Result of asking a store.
pub type Result<T> = std::result::Result<T, StoreError>;

/// A key and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// Revision at which it came to be.
    pub created: Revision,
    /// Revision of its last change.
    pub modified: Revision,
    /// What it hangs on.
    pub lease: Option<Lease>,
}

/// Keys at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The store's revision when it was asked.
    pub revision: Revision,
    /// In the order of their keys.
    pub entries: Vec<Entry>,
}

/// What must be so for a transaction to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// There is no such key.
    Absent(String),
    /// The key was last changed at this revision.
    Modified(String, Revision),
    /// The key has this value.
    Value(String, Vec<u8>),
}

/// A write of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Gives a key a value.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Vec<u8>,
        /// What it hangs on.
        lease: Option<Lease>,
    },
    /// Removes a key, if it is there.
    Delete(String),
}

impl Write {
    /// Gives a key the JSON of a value.
    pub fn json(key: impl Into<String>, value: &impl Serialize) -> Self {
        let value = serde_json::to_vec(value).expect("what is kept is serialized");
        Self::Put { key: key.into(), value, lease: None }
    }
}

/// Happens as a whole, or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// All must hold.
    pub when: Vec<Compare>,
    /// What happens then, in this order; no key twice.
    pub then: Vec<Write>,
}

impl Transaction {
    /// Without conditions.
    pub fn of(then: Vec<Write>) -> Self {
        Self { when: Vec::new(), then }
    }
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether all that was compared held.
    pub succeeded: bool,
    /// The store's revision afterwards.
    pub revision: Revision,
}

/// A key that has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The revision of the change.
    pub revision: Revision,
    /// The key.
    pub key: String,
    /// What it has become; nothing if it is gone.
    pub entry: Option<Entry>,
}

/// Changes as they happen. Dropping it ends the watch.
pub struct Watch(tokio::sync::mpsc::UnboundedReceiver<Vec<Change>>);

impl Watch {
    /// The changes of the next revision; none when the store is gone.
    pub async fn next(&mut self) -> Option<Vec<Change>> {
        self.0.recv().await
    }
}

/// Keys with values.
pub trait Store: Send + Sync {
    /// All keys that begin with `prefix`.
    fn range(&self, prefix: &str) -> BoxFuture<'_, Result<Snapshot>>;

    /// One key.
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>>>;

    /// Does a transaction. It is durable when this returns.
    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Outcome>>;

    /// Hears of all changes of keys that begin with `prefix`, from revision `from` on.
    fn watch(&self, prefix: &str, from: Revision) -> BoxFuture<'_, Result<Watch>>;

    /// Makes a lease that ends after `ttl` unless it is kept alive. A store that was closed
    /// meanwhile gives all of its leases their whole time again.
    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease>>;

    /// Gives a lease its whole time again.
    fn keep_alive(&self, lease: Lease) -> BoxFuture<'_, Result<()>>;

    /// Ends a lease, and the keys that hang on it.
    fn revoke(&self, lease: Lease) -> BoxFuture<'_, Result<()>>;
}

#[cfg(test)]
mod tests;
