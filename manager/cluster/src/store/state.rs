//! Keys, revisions, history and leases, without clock, disk or locks: what changes is computed
//! first and applied when it is durable.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::{Change, Compare, Entry, Lease, Result, Revision, Snapshot, StoreError, Transaction, Write};

/// Changes that are kept for watches that begin in the past.
pub(super) const HISTORY: usize = 10_000;

/// All that a store knows.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) revision: Revision,
    pub(super) entries: BTreeMap<String, Entry>,
    /// How long each lease lasts.
    pub(super) leases: BTreeMap<Lease, Duration>,
    /// The last changes, oldest first.
    pub(super) history: VecDeque<Change>,
    /// The first revision whose changes are all in the history.
    pub(super) oldest: Revision,
}

/// A step of a state: what is written down, and then applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// Changes, all of one revision.
    pub(super) changes: Vec<Change>,
    /// Leases that come, with their time, or go.
    pub(super) leases: Vec<(Lease, Option<Duration>)>,
}

impl State {
    pub(super) fn range(&self, prefix: &str) -> Snapshot {
        let from = self.entries.range(prefix.to_owned()..);
        let entries = from.take_while(|(key, _)| key.starts_with(prefix)).map(|(_, entry)| entry.clone());
        Snapshot { revision: self.revision, entries: entries.collect() }
    }

    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::Absent(key) => !self.entries.contains_key(key),
            Compare::Modified(key, revision) => {
                self.entries.get(key).is_some_and(|entry| entry.modified == *revision)
            }
            Compare::Value(key, value) => self.entries.get(key).is_some_and(|entry| entry.value == *value),
        }
    }

    /// What a transaction would do; nothing if a comparison fails.
    pub(super) fn plan(&self, transaction: Transaction) -> Result<Option<Step>> {
        if !transaction.when.iter().all(|compare| self.holds(compare)) {
            return Ok(None);
        }
        let revision = self.revision + 1;
        let mut step = Step::default();
        for write in transaction.then {
            match write {
                Write::Put { key, value, lease } => {
                    if let Some(lease) = lease
                        && !self.leases.contains_key(&lease)
                    {
                        return Err(StoreError::NoSuchLease(lease));
                    }
                    let created = self.entries.get(&key).map_or(revision, |entry| entry.created);
                    let entry = Entry { key: key.clone(), value, created, modified: revision, lease };
                    step.changes.push(Change { revision, key, entry: Some(entry) });
                }
                Write::Delete(key) if self.entries.contains_key(&key) => {
                    step.changes.push(Change { revision, key, entry: None });
                }
                Write::Delete(_) => {}
            }
        }
        let keys: BTreeSet<&str> = step.changes.iter().map(|change| change.key.as_str()).collect();
        assert_eq!(keys.len(), step.changes.len(), "a transaction writes no key twice");
        Ok(Some(step))
    }

    /// A new lease.
    pub(super) fn grant(&self, ttl: Duration) -> (Lease, Step) {
        let lease = Lease(self.leases.last_key_value().map_or(1, |(last, _)| last.0 + 1));
        (lease, Step { changes: Vec::new(), leases: vec![(lease, Some(ttl))] })
    }

    /// The end of a lease.
    pub(super) fn revoke(&self, lease: Lease) -> Result<Step> {
        if !self.leases.contains_key(&lease) {
            return Err(StoreError::NoSuchLease(lease));
        }
        let revision = self.revision + 1;
        let hanging = self.entries.values().filter(|entry| entry.lease == Some(lease));
        let changes = hanging.map(|entry| Change { revision, key: entry.key.clone(), entry: None });
        Ok(Step { changes: changes.collect(), leases: vec![(lease, None)] })
    }

    /// Does what was planned.
    pub(super) fn apply(&mut self, step: &Step) {
        for (lease, ttl) in &step.leases {
            match ttl {
                Some(ttl) => self.leases.insert(*lease, *ttl),
                None => self.leases.remove(lease),
            };
        }
        for change in &step.changes {
            self.revision = change.revision;
            match &change.entry {
                Some(entry) => self.entries.insert(change.key.clone(), entry.clone()),
                None => self.entries.remove(&change.key),
            };
            self.history.push_back(change.clone());
        }
        while self.history.len() > HISTORY {
            let gone = self.history.pop_front().map_or(0, |change| change.revision);
            self.oldest = gone + 1;
        }
    }

    /// Changes of keys that begin with `prefix`, from revision `from` on, by revision.
    pub(super) fn since(&self, prefix: &str, from: Revision) -> Result<Vec<Vec<Change>>> {
        if from < self.oldest {
            return Err(StoreError::Compacted { asked: from, oldest: self.oldest });
        }
        let wanted =
            self.history.iter().filter(|change| change.revision >= from && change.key.starts_with(prefix));
        let mut batches: Vec<Vec<Change>> = Vec::new();
        for change in wanted {
            match batches.last_mut() {
                Some(batch) if batch[0].revision == change.revision => batch.push(change.clone()),
                _ => batches.push(vec![change.clone()]),
            }
        }
        Ok(batches)
    }
}
