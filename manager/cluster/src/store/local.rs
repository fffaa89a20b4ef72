//! A store of this process, in a file or in memory alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::disk::Disk;
use super::state::{State, Step};
use super::{
    Change, Entry, Lease, Outcome, Result, Revision, Snapshot, Store, StoreError, Transaction, Watch,
};

/// A store of this process.
pub struct Local {
    inner: Arc<Inner>,
}

struct Inner {
    state: RwLock<State>,
    /// Held from the planning of a change until everybody has heard of it.
    turn: Mutex<Turn>,
}

struct Turn {
    disk: Option<Disk>,
    watchers: Vec<(String, mpsc::UnboundedSender<Vec<Change>>)>,
    /// What ends each lease when its time is over.
    timers: BTreeMap<Lease, AbortHandle>,
}

impl Local {
    /// A store that is forgotten when it is dropped.
    pub fn in_memory() -> Self {
        Self::with(State::default(), None)
    }

    /// The store in a file, which is made if it is not there. Needs tokio's runtime, as leases do.
    ///
    /// # Errors
    /// When the file is damaged, of a newer version, in use, or cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let (disk, state) = Disk::open(path)?;
        Ok(Self::with(state, Some(disk)))
    }

    fn with(state: State, disk: Option<Disk>) -> Self {
        let leases: Vec<(Lease, Duration)> = state.leases.iter().map(|(lease, ttl)| (*lease, *ttl)).collect();
        let turn = Turn { disk, watchers: Vec::new(), timers: BTreeMap::new() };
        let inner = Arc::new(Inner { state: RwLock::new(state), turn: Mutex::new(turn) });
        for (lease, ttl) in leases {
            Inner::start_timer(&inner, &mut inner.turn(), lease, ttl);
        }
        Self { inner }
    }

    /// Runs what may wait for the disk where it holds nobody up.
    fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Inner>, &mut Turn) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'_, Result<T>> {
        let inner = self.inner.clone();
        Box::pin(async move {
            let work = tokio::task::spawn_blocking(move || {
                let mut turn = inner.turn();
                work(&inner, &mut turn)
            });
            work.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
        })
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        for timer in self.inner.turn().timers.values() {
            timer.abort();
        }
    }
}

impl Inner {
    /// A panic while the lock is held leaves the state as it was: a step is applied by itself.
    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Makes a step durable, then true, then known.
    fn take(&self, turn: &mut Turn, step: &Step) -> Result<()> {
        if let Some(disk) = &turn.disk {
            disk.write(step)?;
        }
        self.state.write().unwrap_or_else(std::sync::PoisonError::into_inner).apply(step);
        turn.watchers.retain(|(prefix, watcher)| {
            let concerns: Vec<Change> = step
                .changes
                .iter()
                .filter(|change| change.key.starts_with(prefix.as_str()))
                .cloned()
                .collect();
            if concerns.is_empty() { !watcher.is_closed() } else { watcher.send(concerns).is_ok() }
        });
        Ok(())
    }

    fn start_timer(inner: &Arc<Self>, turn: &mut Turn, lease: Lease, ttl: Duration) {
        let weak = Arc::downgrade(inner);
        let timer = tokio::spawn(async move {
            tokio::time::sleep(ttl).await;
            let Some(inner) = weak.upgrade() else { return };
            let ended = tokio::task::spawn_blocking(move || {
                let mut turn = inner.turn();
                Self::revoke(&inner, &mut turn, lease)
            });
            match ended.await {
                Ok(Ok(()) | Err(StoreError::NoSuchLease(_))) | Err(_) => {}
                Ok(Err(error)) => tracing::warn!(%error, "a lease that is over cannot be ended"),
            }
        });
        if let Some(former) = turn.timers.insert(lease, timer.abort_handle()) {
            former.abort();
        }
    }

    fn revoke(&self, turn: &mut Turn, lease: Lease) -> Result<()> {
        let step = self.read(|state| state.revoke(lease))?;
        self.take(turn, &step)?;
        if let Some(timer) = turn.timers.remove(&lease) {
            timer.abort();
        }
        Ok(())
    }
}

impl Store for Local {
    fn range(&self, prefix: &str) -> BoxFuture<'_, Result<Snapshot>> {
        let snapshot = self.inner.read(|state| state.range(prefix));
        Box::pin(async move { Ok(snapshot) })
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>>> {
        let entry = self.inner.read(|state| state.entries.get(key).cloned());
        Box::pin(async move { Ok(entry) })
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Outcome>> {
        self.change(move |inner, turn| {
            let step = inner.read(|state| state.plan(transaction))?;
            if let Some(step) = step.as_ref().filter(|step| !step.changes.is_empty()) {
                inner.take(turn, step)?;
            }
            Ok(Outcome { succeeded: step.is_some(), revision: inner.read(|state| state.revision) })
        })
    }

    fn watch(&self, prefix: &str, from: Revision) -> BoxFuture<'_, Result<Watch>> {
        let prefix = prefix.to_owned();
        self.change(move |inner, turn| {
            let (sender, receiver) = mpsc::unbounded_channel();
            for batch in inner.read(|state| state.since(&prefix, from))? {
                // The receiver is still here.
                let _ = sender.send(batch);
            }
            turn.watchers.push((prefix, sender));
            Ok(Watch(receiver))
        })
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease>> {
        let runtime = tokio::runtime::Handle::current();
        self.change(move |inner, turn| {
            let (lease, step) = inner.read(|state| state.grant(ttl));
            inner.take(turn, &step)?;
            let _runtime = runtime.enter();
            Inner::start_timer(inner, turn, lease, ttl);
            Ok(lease)
        })
    }

    fn keep_alive(&self, lease: Lease) -> BoxFuture<'_, Result<()>> {
        let runtime = tokio::runtime::Handle::current();
        self.change(move |inner, turn| {
            let ttl = inner.read(|state| state.leases.get(&lease).copied());
            let ttl = ttl.ok_or(StoreError::NoSuchLease(lease))?;
            let _runtime = runtime.enter();
            Inner::start_timer(inner, turn, lease, ttl);
            Ok(())
        })
    }

    fn revoke(&self, lease: Lease) -> BoxFuture<'_, Result<()>> {
        self.change(move |inner, turn| inner.revoke(turn, lease))
    }
}
