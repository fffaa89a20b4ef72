//! Who did what, and why.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use fcap_api::cluster::AuditEntry;

use crate::error::{Error, Result};
use crate::nodes::now_ms;
use crate::store::{Entry, Snapshot, Store, Transaction, Watch, Write};

/// Begins the keys of entries; the time follows, so that they are in its order.
const PREFIX: &str = "audit/";
/// Entries that are kept.
const KEPT: usize = 10_000;

/// The record of what was asked of the controller, and of what its policies did.
pub struct Audit {
    store: Arc<dyn Store>,
    /// Tells entries of one moment apart.
    count: AtomicU32,
    /// How many there were when old ones were last removed.
    pruned: AtomicU32,
}

impl Audit {
    /// Kept in this store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, count: AtomicU32::new(0), pruned: AtomicU32::new(0) }
    }

    /// Writes an entry.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn write(&self, by: &str, what: String, reason: &str, operation: Option<&str>) -> Result<()> {
        let mut writes = vec![self.entry(by, what, reason, operation)];
        writes.extend(self.old().await?);
        self.store.commit(Transaction::of(writes)).await?;
        Ok(())
    }

    /// An entry, to be written together with what it tells of.
    pub fn entry(&self, by: &str, what: String, reason: &str, operation: Option<&str>) -> Write {
        let time_ms = now_ms();
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let entry = AuditEntry {
            time_ms,
            by: by.to_owned(),
            what,
            reason: reason.to_owned(),
            operation: operation.map(str::to_owned),
        };
        Write::json(format!("{PREFIX}{time_ms:016}-{count:010}"), &entry)
    }

    /// Removes entries that are too many; now and then, and not with every new one.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn old(&self) -> Result<Vec<Write>> {
        let (count, pruned) = (self.count.load(Ordering::Relaxed), self.pruned.load(Ordering::Relaxed));
        if count.wrapping_sub(pruned) < 100 {
            return Ok(Vec::new());
        }
        self.pruned.store(count, Ordering::Relaxed);
        let entries = self.store.range(PREFIX).await?.entries;
        let old = entries.len().saturating_sub(KEPT);
        Ok(entries.into_iter().take(old).map(|entry| Write::Delete(entry.key)).collect())
    }

    /// All entries, the latest first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn list(&self) -> Result<Vec<AuditEntry>> {
        self.store.range(PREFIX).await?.entries.into_iter().rev().map(parse).collect()
    }

    /// The latest entries, the oldest of them first, and then those to come.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn follow(&self, latest: usize) -> Result<(Vec<AuditEntry>, News)> {
        let Snapshot { revision, mut entries } = self.store.range(PREFIX).await?;
        let watch = self.store.watch(PREFIX, revision + 1).await?;
        entries.drain(..entries.len().saturating_sub(latest));
        Ok((entries.into_iter().map(parse).collect::<Result<_>>()?, News(watch)))
    }
}

/// Entries as they are written.
pub struct News(Watch);

impl News {
    /// Those of the next change that has any; none when the store is gone.
    ///
    /// # Errors
    /// When one does not parse.
    pub async fn next(&mut self) -> Result<Option<Vec<AuditEntry>>> {
        while let Some(changes) = self.0.next().await {
            // What is gone is old.
            let new = changes.into_iter().filter_map(|change| change.entry);
            let new = new.map(parse).collect::<Result<Vec<_>>>()?;
            if !new.is_empty() {
                return Ok(Some(new));
            }
        }
        Ok(None)
    }
}

fn parse(entry: Entry) -> Result<AuditEntry> {
    serde_json::from_slice(&entry.value).map_err(|error| Error::Corrupt(entry.key, error.to_string()))
}
