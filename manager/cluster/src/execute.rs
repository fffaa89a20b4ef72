//! What takes several steps: starting, emptying, replacing and destroying nodes, and plans.
//!
//! An operation is a list of steps in the store. Each is written down before it is taken, and can
//! be taken again: a controller that was killed reads the list, runs the operation from its top,
//! passes over what is done, and finds out what has become of what was under way from the nodes
//! and the provider. Where a capsule is, is always asked of the nodes.
//!
//! ```text
//! Running ──all steps──▶ Done
//!    │ first failure, or cancelled
//!    ▼
//! Undoing ──▶ Failed, Cancelled      (a drain that leaves what has moved has nothing to undo)
//! ```
//! | operation | undone by |
//! |---|---|
//! | add | destroying the machine |
//! | drain | nothing; or moving back what has moved, as asked |
//! | replace | moving everything back and destroying the new node; not once the old one is being destroyed |
//! | plan | destroying nodes that it has started and that are empty; nodes that it was to stop take capsules again |
//! | remove | nothing |

mod moves;
mod run;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use fcap_api::cluster::{Change, Operation, OperationKind, OperationState, StepState, Work};
use fcap_http::metrics::Counters;
use tokio::sync::{Semaphore, watch};

use crate::error::{Error, Result};
use crate::metrics::{self, OPERATION_KINDS};
use crate::nodes::{Nodes, now_ms};
use crate::policies;
use crate::provider::{Provider, ProviderError};
use crate::store::{Store, Transaction, Write};
use run::Run;

/// Begins the keys of operations.
const PREFIX: &str = "operations/";
/// Operations that are over and still kept.
const KEPT: usize = 1000;
/// How long the nodes have to be heard of before operations go on after a start.
const SETTLE_IN: Duration = Duration::from_secs(15);

fn key(number: u64) -> String {
    format!("{PREFIX}{number:012}")
}

/// An operation as it is kept, if it still is.
///
/// # Errors
/// When the store fails.
pub async fn kept(store: &dyn Store, id: &str) -> Result<Option<Operation>> {
    let Ok(number) = id.parse() else { return Ok(None) };
    let entry = store.get(&key(number)).await?;
    Ok(entry.and_then(|entry| serde_json::from_slice(&entry.value).ok()))
}

/// All operations as they are kept, the latest first.
///
/// # Errors
/// When the store fails.
pub async fn all_kept(store: &dyn Store) -> Result<impl Iterator<Item = Operation>> {
    let entries = store.range(PREFIX).await?.entries.into_iter().rev();
    Ok(entries.filter_map(|entry| serde_json::from_slice(&entry.value).ok()))
}

/// What may happen at the same time, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Capsules of one operation that move at the same time, unless it says otherwise.
    pub parallel: u32,
    /// Capsules of all operations that move at the same time.
    pub moves: usize,
    /// How long a node may take until it answers.
    pub start: Duration,
    /// How long nodes may take to agree on where a capsule is.
    pub settle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { parallel: 4, moves: 16, start: Duration::from_secs(180), settle: Duration::from_secs(90) }
    }
}

/// Runs operations.
pub struct Executor {
    store: Arc<dyn Store>,
    nodes: Arc<Nodes>,
    provider: Arc<dyn Provider>,
    limits: Limits,
    moves: Semaphore,
    known: Mutex<BTreeMap<u64, Entry>>,
    counts: Counts,
}

/// What this controller has done.
#[derive(Debug)]
pub struct Counts {
    /// Operations that are over, by `kind` and `outcome`.
    pub operations: Counters,
    /// Moves, by `policy`, which is empty where people wanted them, and `outcome`.
    pub moves: Counters,
}

impl Default for Counts {
    fn default() -> Self {
        let (operations, moves) = (Counters::default(), Counters::default());
        for outcome in ["done", "failed", "cancelled"] {
            for kind in OPERATION_KINDS {
                operations.add(&[("kind", kind), ("outcome", outcome)], 0.0);
            }
        }
        for outcome in ["done", "failed"] {
            moves.add(&[("outcome", outcome), ("policy", "")], 0.0);
        }
        Self { operations, moves }
    }
}

impl Counts {
    fn over(&self, kind: &OperationKind, state: OperationState) {
        let outcome = match state {
            OperationState::Done => "done",
            OperationState::Cancelled => "cancelled",
            OperationState::Failed | OperationState::Running | OperationState::Undoing => "failed",
        };
        self.operations.add(&[("kind", metrics::kind(kind)), ("outcome", outcome)], 1.0);
    }

    fn moved(&self, by: &str, outcome: &str) {
        let policy = policies::policy_of(by).unwrap_or_default();
        self.moves.add(&[("outcome", outcome), ("policy", policy)], 1.0);
    }
}

struct Entry {
    /// The operation as it is; what is kept, and how the steps under way go.
    operation: watch::Sender<Operation>,
    /// Whether it is to stop.
    cancel: watch::Sender<bool>,
}

impl Entry {
    fn new(operation: Operation) -> Self {
        Self { cancel: watch::Sender::new(operation.cancelled), operation: watch::Sender::new(operation) }
    }
}

impl Executor {
    /// Reads which operations there are, and goes on with those that are not over.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn start(
        store: Arc<dyn Store>,
        nodes: Arc<Nodes>,
        provider: Arc<dyn Provider>,
        limits: Limits,
    ) -> Result<Arc<Self>> {
        let moves = Semaphore::new(limits.moves);
        let (known, counts) = Default::default();
        let executor = Arc::new(Self { store, nodes, provider, limits, moves, known, counts });
        let mut unfinished = Vec::new();
        for entry in executor.store.range(PREFIX).await?.entries {
            let corrupt = |error: String| Error::Corrupt(entry.key.clone(), error);
            let operation: Operation =
                serde_json::from_slice(&entry.value).map_err(|error| corrupt(error.to_string()))?;
            let number: u64 =
                operation.id.parse().map_err(|_| corrupt(format!("{:?} is no number", operation.id)))?;
            if !operation.state.is_over() {
                executor.claim(&operation)?;
                unfinished.push(number);
            }
            // What has moved stays for a while, whoever was the controller then.
            for step in &operation.steps {
                if let (Work::Move { capsule, .. }, Some(ended_ms)) = (&step.work, step.ended_ms)
                    && step.state == StepState::Done
                {
                    executor.nodes.has_moved(capsule, ended_ms);
                }
            }
            executor.known().insert(number, Entry::new(operation));
        }
        if !unfinished.is_empty() {
            let executor = executor.clone();
            tokio::spawn(async move {
                executor.until_nodes_are_heard_of().await;
                for number in unfinished {
                    tracing::info!(operation = number, "going on with an operation");
                    executor.spawn(number);
                }
            });
        }
        Ok(executor)
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<u64, Entry>> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn until_nodes_are_heard_of(&self) {
        use fcap_api::cluster::NodeState;
        let heard_of = self
            .nodes
            .until(|nodes| nodes.list().iter().all(|node| node.state != NodeState::Starting).then_some(()));
        // Those that are silent are dealt with when they are needed.
        let _ = tokio::time::timeout(SETTLE_IN, heard_of).await;
    }

    /// Takes the nodes of an operation, those that it has started too.
    fn claim(&self, operation: &Operation) -> Result<()> {
        let own = match &operation.kind {
            OperationKind::Remove { node, .. }
            | OperationKind::Drain { node, .. }
            | OperationKind::Replace { node, .. } => vec![node.as_str()],
            OperationKind::Add { .. } | OperationKind::Plan { .. } => Vec::new(),
        };
        let planned = match &operation.kind {
            OperationKind::Plan { groups, .. } => groups.as_slice(),
            _ => &[],
        };
        let planned = planned.iter().flatten().filter_map(|proposal| match &proposal.change {
            Change::StartNode { name, .. } => Some(name.as_str()),
            Change::StopNode { node } => Some(node.as_str()),
            Change::Migrate { .. } | Change::Resize { .. } => None,
        });
        let started = operation.steps.iter().filter_map(|step| match &step.work {
            Work::Create { node, .. } => Some(node.as_str()),
            _ => None,
        });
        let all = own.into_iter().chain(planned).chain(started);
        let claimed = all.map(|node| self.nodes.claim(node, &operation.id)).collect::<Result<Vec<()>>>();
        if claimed.is_err() {
            self.nodes.release(&operation.id);
        }
        claimed.map(drop)
    }

    /// Begins an operation.
    ///
    /// # Errors
    /// When it makes no sense, another one has its nodes, or the store fails.
    pub async fn submit(self: &Arc<Self>, kind: OperationKind, by: &str, reason: &str) -> Result<Operation> {
        self.submit_with(kind, by, reason, |_| Vec::new()).await
    }

    /// Begins an operation, and writes more down together with it.
    ///
    /// # Errors
    /// As [`Executor::submit`].
    pub async fn submit_with(
        self: &Arc<Self>,
        kind: OperationKind,
        by: &str,
        reason: &str,
        more: impl FnOnce(&Operation) -> Vec<Write>,
    ) -> Result<Operation> {
        self.check(&kind)?;
        let (number, operation) = {
            let mut known = self.known();
            let number = known.last_key_value().map_or(1, |(last, _)| last + 1);
            let mut operation = Operation {
                id: number.to_string(),
                kind,
                state: OperationState::Running,
                cancelled: false,
                by: by.to_owned(),
                reason: reason.to_owned(),
                started_ms: now_ms(),
                ended_ms: None,
                steps: Vec::new(),
                message: None,
            };
            self.name_new_nodes(&mut operation);
            self.claim(&operation)?;
            known.insert(number, Entry::new(operation.clone()));
            (number, operation)
        };
        let mut writes = more(&operation);
        writes.push(Write::json(key(number), &operation));
        if let Err(error) = self.store.commit(Transaction::of(writes)).await {
            self.nodes.release(&operation.id);
            self.known().remove(&number);
            return Err(error.into());
        }
        self.forget_old().await?;
        self.spawn(number);
        Ok(operation)
    }

    fn check(&self, kind: &OperationKind) -> Result<()> {
        let flavors = self.provider.flavors();
        let has_flavor = |name: &str| -> Result<()> {
            if flavors.iter().any(|flavor| flavor.name == name) {
                return Ok(());
            }
            let known: Vec<&str> = flavors.iter().map(|flavor| flavor.name.as_str()).collect();
            let (name, known) = (name.to_owned(), known.join(", "));
            Err(ProviderError::NoSuchFlavor { name, known }.into())
        };
        let some = |parallel: u32| match parallel {
            1..=64 => Ok(()),
            _ => Err(Error::BadRequest(format!("{parallel} moves at the same time cannot be: 1 to 64 can"))),
        };
        match kind {
            OperationKind::Add { flavor, .. } => has_flavor(flavor),
            OperationKind::Remove { node, .. } => self.nodes.get(node).map(drop),
            OperationKind::Drain { node, parallel, .. } => {
                some(*parallel).and(self.nodes.get(node).map(drop))
            }
            OperationKind::Replace { node, flavor, parallel } => {
                some(*parallel).and(has_flavor(flavor)).and(self.nodes.get(node).map(drop))
            }
            OperationKind::Plan { parallel, .. } => some(*parallel),
        }
    }

    /// Gives nodes that a plan starts their real names.
    fn name_new_nodes(&self, operation: &mut Operation) {
        let OperationKind::Plan { groups, .. } = &mut operation.kind else { return };
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        for proposal in groups.iter_mut().flatten() {
            if let Change::StartNode { name, .. } = &mut proposal.change {
                let real = self.nodes.claim_free_name(&operation.id);
                names.insert(std::mem::replace(name, real.clone()), real);
            }
        }
        for proposal in groups.iter_mut().flatten() {
            if let Change::Migrate { to, .. } = &mut proposal.change
                && let Some(real) = names.get(to)
            {
                to.clone_from(real);
            }
        }
    }

    async fn keep(&self, operation: &Operation) -> Result<()> {
        let number: u64 = operation.id.parse().unwrap_or(u64::MAX);
        let write = Write::json(key(number), operation);
        self.store.commit(Transaction::of(vec![write])).await?;
        Ok(())
    }

    async fn forget_old(&self) -> Result<()> {
        let old: Vec<u64> = {
            let known = self.known();
            let over = known.iter().filter(|(_, entry)| entry.operation.borrow().state.is_over());
            let over: Vec<u64> = over.map(|(number, _)| *number).collect();
            over[..over.len().saturating_sub(KEPT)].to_vec()
        };
        for number in old {
            let delete = Write::Delete(key(number));
            self.store.commit(Transaction::of(vec![delete])).await?;
            self.known().remove(&number);
        }
        Ok(())
    }

    fn spawn(self: &Arc<Self>, number: u64) {
        let run = {
            let known = self.known();
            let Some(entry) = known.get(&number) else { return };
            Run::new(self.clone(), entry.operation.clone(), entry.cancel.subscribe())
        };
        tokio::spawn(run.drive());
    }

    /// What this controller has done.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// What each operation that is not over is to do, in a word.
    pub fn under_way(&self) -> Vec<&'static str> {
        let known = self.known();
        let operations = known.values().map(|entry| entry.operation.borrow());
        let under_way = operations.filter(|operation| !operation.state.is_over());
        under_way.map(|operation| metrics::kind(&operation.kind)).collect()
    }

    /// All operations, the latest first.
    pub fn list(&self) -> Vec<Operation> {
        self.known().values().rev().map(|entry| entry.operation.borrow().clone()).collect()
    }

    /// For how long there has been nothing to do; nothing while an operation is under way.
    pub fn quiet_for(&self) -> Option<Duration> {
        let known = self.known();
        let mut last_ms = 0;
        for entry in known.values() {
            let operation = entry.operation.borrow();
            if !operation.state.is_over() {
                return None;
            }
            last_ms = last_ms.max(operation.ended_ms.unwrap_or(0));
        }
        Some(Duration::from_millis(now_ms().saturating_sub(last_ms)))
    }

    fn entry<T>(&self, id: &str, look: impl FnOnce(u64, &Entry) -> T) -> Result<T> {
        let known = self.known();
        let number = id.parse().ok().filter(|number| known.contains_key(number));
        let number = number.ok_or_else(|| Error::NoSuchOperation(id.to_owned()))?;
        Ok(look(number, &known[&number]))
    }

    /// One operation.
    ///
    /// # Errors
    /// When there is none of this number.
    pub fn get(&self, id: &str) -> Result<Operation> {
        self.entry(id, |_, entry| entry.operation.borrow().clone())
    }

    /// One operation, as it goes on.
    ///
    /// # Errors
    /// When there is none of this number.
    pub fn follow(&self, id: &str) -> Result<watch::Receiver<Operation>> {
        self.entry(id, |_, entry| entry.operation.subscribe())
    }

    /// Has an operation stop. What is under way is broken off where that can be; what it is undone
    /// by happens.
    ///
    /// # Errors
    /// When there is none of this number, it is over, or the store fails.
    pub async fn cancel(&self, id: &str) -> Result<Operation> {
        let operation = self.get(id)?;
        if operation.state.is_over() {
            return Err(Error::WrongState(format!("operation {id} is over")));
        }
        // The one that runs it writes it down, in its turn.
        self.entry(id, |_, entry| entry.cancel.send_replace(true))?;
        self.get(id)
    }

    /// Goes on with an operation that has stopped.
    ///
    /// # Errors
    /// When there is none of this number, it cannot go on, or the store fails.
    pub async fn resume(self: &Arc<Self>, id: &str) -> Result<Operation> {
        let mut operation = self.get(id)?;
        let is_undone = match &operation.kind {
            OperationKind::Drain { on_failure, .. } => *on_failure == fcap_api::cluster::Failure::Back,
            OperationKind::Remove { .. } => false,
            OperationKind::Replace { .. } => !run::has_begun_to_destroy(&operation),
            OperationKind::Add { .. } | OperationKind::Plan { .. } => true,
        };
        match operation.state {
            OperationState::Failed | OperationState::Cancelled if !is_undone => {}
            OperationState::Failed | OperationState::Cancelled => {
                return Err(Error::WrongState(format!("operation {id} was undone: begin it anew")));
            }
            OperationState::Done => return Err(Error::WrongState(format!("operation {id} is done"))),
            OperationState::Running | OperationState::Undoing => {
                return Err(Error::WrongState(format!("operation {id} goes on already")));
            }
        }
        self.claim(&operation)?;
        (operation.state, operation.cancelled) = (OperationState::Running, false);
        (operation.ended_ms, operation.message) = (None, None);
        if let Err(error) = self.keep(&operation).await {
            self.nodes.release(id);
            return Err(error);
        }
        let number = self.entry(id, |number, entry| {
            entry.cancel.send_replace(false);
            entry.operation.send_replace(operation.clone());
            number
        })?;
        self.spawn(number);
        Ok(operation)
    }
}
