//! Policies that the controller runs: which there are, when they run, and what came of it.
//!
//! Each policy has its turn at its interval, one after the other, while no operation is under way:
//! ```text
//! view ──script──▶ proposals ──plan──▶ steps ──one operation──▶ done, or stopped at the first failure
//!                                 └──▶ rejected, with reasons
//! ```
//! A run that proposed something, or failed, is recorded ([`history`]) in the same transaction that
//! begins its operation, so that nothing is done without a record of why. The operation survives the
//! controller as all do. Scripts run on threads of their own, one at a time: whatever they do, the
//! controller goes on.
//!
//! A policy that fails five times in a row, by itself or because its plans fail, is suspended; one
//! whose plan somebody cancels is so at once. To apply it again puts it to work again.

pub mod history;
mod rules;
mod turn;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use fcap_api::cluster::{Policy, PolicyResult, PolicyRun, PolicySpec, PolicyState, TestPolicy, View};
use fcap_http::metrics::Counters;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore};

use crate::audit::Audit;
use crate::error::{Error, Result};
use crate::execute::Executor;
use crate::flavor::is_name;
use crate::nodes::{Nodes, now_ms};
use crate::plan::Limits;
use crate::policy::{self, PolicyError, SHIPPED, Script, Shipped};
use crate::store::{Store, Transaction, Write};
use crate::view::Index;
use history::History;
pub use rules::limits;

/// Begins the keys of policies.
const PREFIX: &str = "policies/";
/// More than anybody needs.
const MOST: usize = 100;
/// Longest time from run to run.
const MOST_INTERVAL: Duration = Duration::from_secs(7 * 24 * 3600);
/// A policy that has failed so often in a row is suspended.
pub const MOST_FAILURES: u32 = 5;
/// Begins what a policy calls itself where it is said who did something.
const BY: &str = "policy ";

/// Whether a policy did it.
pub(crate) fn is_policy(by: &str) -> bool {
    policy_of(by).is_some()
}

/// Which policy did it, if one did.
pub(crate) fn policy_of(by: &str) -> Option<&str> {
    by.strip_prefix(BY)
}

/// What is kept of a policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    /// As it was asked for; with its source.
    spec: PolicySpec,
    by: String,
    /// Tells one form of a policy from the next, too: no two are of one moment.
    applied_ms: u64,
    failures: u32,
    suspended: bool,
    message: Option<String>,
}

struct Known {
    record: Record,
    /// When this controller last ran it.
    last: Option<(Instant, u64)>,
}

/// All policies.
pub struct Policies {
    store: Arc<dyn Store>,
    nodes: Arc<Nodes>,
    executor: Arc<Executor>,
    audit: Arc<Audit>,
    known: Mutex<BTreeMap<String, Known>>,
    history: History,
    /// Held while a policy is changed.
    writing: tokio::sync::Mutex<()>,
    /// Has the turns planned anew.
    changed: Notify,
    /// Scripts that run at the same time.
    scripts: Arc<Semaphore>,
    started: Instant,
    /// By `policy` and `outcome`.
    runs: Counters,
}

impl Policies {
    /// Reads which policies there are.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn start(
        store: Arc<dyn Store>,
        nodes: Arc<Nodes>,
        executor: Arc<Executor>,
        audit: Arc<Audit>,
    ) -> Result<Arc<Self>> {
        let mut known = BTreeMap::new();
        for entry in store.range(PREFIX).await?.entries {
            let record: Record = serde_json::from_slice(&entry.value)
                .map_err(|error| Error::Corrupt(entry.key.clone(), error.to_string()))?;
            known.insert(entry.key[PREFIX.len()..].to_owned(), Known { record, last: None });
        }
        let history = History::open(store.clone()).await?;
        Ok(Arc::new(Self {
            store,
            nodes,
            executor,
            audit,
            known: Mutex::new(known),
            history,
            writing: tokio::sync::Mutex::default(),
            changed: Notify::new(),
            scripts: Arc::new(Semaphore::new(1)),
            started: Instant::now(),
            runs: Counters::default(),
        }))
    }

    /// A panic while the lock is held leaves all policies as they were.
    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Has a policy be run from now on, in place of the one that had its name.
    ///
    /// # Errors
    /// When it makes no sense, or fails on the cluster as it is; or the store fails.
    pub async fn apply(&self, name: &str, mut spec: PolicySpec, by: &str) -> Result<Policy> {
        check_name(name)?;
        let source = spec.source.take().map_or_else(|| shipped(name), Ok)?;
        let least = self.nodes.rhythm().least_interval;
        let interval = Duration::from_millis(spec.interval_ms);
        if interval < least || interval > MOST_INTERVAL {
            return Err(Error::BadRequest(format!(
                "policy {name} cannot run every {} s; it can every {} s to every {} days",
                interval.as_secs_f64(),
                least.as_secs_f64(),
                MOST_INTERVAL.as_secs() / 86_400
            )));
        }
        let limits = rules::limits(&spec.rules)?;
        let script =
            Script { name: name.to_owned(), source: source.clone(), settings: spec.settings.clone() };
        // Better told now, to whoever wants it, than later in the history.
        match self.judge(script, limits, self.nodes.view()).await {
            Ok(_) | Err(Error::View(_)) => {}
            Err(error) => return Err(error),
        }
        spec.source = Some(source);
        let _turn = self.writing.lock().await;
        let before = {
            let known = self.known();
            if !known.contains_key(name) && known.len() >= MOST {
                return Err(Error::BadRequest(format!(
                    "there are {MOST} policies, which is the most: remove one"
                )));
            }
            known.get(name).map(|known| (known.record.applied_ms, known.last))
        };
        let record = Record {
            spec,
            by: by.to_owned(),
            applied_ms: now_ms().max(before.map_or(0, |(applied_ms, _)| applied_ms + 1)),
            failures: 0,
            suspended: false,
            message: None,
        };
        let mut writes = vec![
            Write::json(format!("{PREFIX}{name}"), &record),
            self.audit.entry(by, format!("apply policy {name}"), "", None),
        ];
        writes.extend(self.audit.old().await?);
        self.store.commit(Transaction::of(writes)).await?;
        // Whoever changes a policy wants to see what comes of it.
        self.known().insert(name.to_owned(), Known { record, last: None });
        self.changed.notify_one();
        self.get(name)
    }

    /// Has a policy not be run any more. A plan of it that is under way comes to its end.
    ///
    /// # Errors
    /// When there is none of this name, or the store fails.
    pub async fn remove(&self, name: &str, by: &str) -> Result<()> {
        let _turn = self.writing.lock().await;
        self.get(name)?;
        let writes = vec![
            Write::Delete(format!("{PREFIX}{name}")),
            self.audit.entry(by, format!("remove policy {name}"), "", None),
        ];
        self.store.commit(Transaction::of(writes)).await?;
        self.known().remove(name);
        turn::OUTCOMES.iter().for_each(|it| self.runs.forget(&[("outcome", it), ("policy", name)]));
        Ok(())
    }

    /// How many runs this controller has seen, by `policy` and `outcome`.
    pub fn runs(&self) -> &Counters {
        &self.runs
    }

    /// All policies, by name.
    pub fn list(&self) -> Vec<Policy> {
        self.known().iter().map(|(name, known)| self.show(name, known)).collect()
    }

    /// One policy.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn get(&self, name: &str) -> Result<Policy> {
        let known = self.known();
        let one = known.get(name).ok_or_else(|| Error::NoSuchPolicy(name.to_owned()))?;
        Ok(self.show(name, one))
    }

    fn show(&self, name: &str, known: &Known) -> Policy {
        let record = &known.record;
        let next = self.due(known).map(|due| {
            let wait = due.saturating_duration_since(Instant::now());
            now_ms() + u64::try_from(wait.as_millis()).unwrap_or(0)
        });
        Policy {
            name: name.to_owned(),
            spec: record.spec.clone(),
            state: match (record.suspended, record.spec.enabled) {
                (_, false) => PolicyState::Disabled,
                (true, true) => PolicyState::Suspended,
                (false, true) => PolicyState::Active,
            },
            failures: record.failures,
            message: record.message.clone(),
            by: record.by.clone(),
            applied_ms: record.applied_ms,
            last_run_ms: known.last.map(|(_, time_ms)| time_ms),
            next_run_ms: next,
        }
    }

    /// When it is a policy's turn, if it has any.
    fn due(&self, known: &Known) -> Option<Instant> {
        if !known.record.spec.enabled || known.record.suspended {
            return None;
        }
        let interval = Duration::from_millis(known.record.spec.interval_ms);
        let next = known.last.map_or(self.started, |(last, _)| last + interval);
        Some(next.max(self.started + self.nodes.rhythm().settle))
    }

    /// Says what a policy would do, or one that is not applied; nothing is done.
    ///
    /// # Errors
    /// When there is no such policy, or it or the view makes no sense.
    pub async fn test(&self, name: &str, test: TestPolicy) -> Result<PolicyResult> {
        check_name(name)?;
        let applied = self.known().get(name).map(|known| known.record.spec.clone());
        let spec = applied.unwrap_or_default();
        let source = test.source.or(spec.source);
        let source = source.map_or_else(|| shipped(name), Ok);
        let source = source.map_err(|_| Error::NoSuchPolicy(name.to_owned()))?;
        let limits = rules::limits(&test.rules.unwrap_or(spec.rules))?;
        let settings = test.settings.unwrap_or(spec.settings);
        let script = Script { name: name.to_owned(), source, settings };
        let view = test.view.unwrap_or_else(|| self.nodes.view());
        self.judge(script, limits, view).await
    }

    /// What policies did, or would have done, the latest first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn history(&self, policy: Option<&str>, limit: usize) -> Result<Vec<PolicyRun>> {
        let mut runs = self.history.list(policy, limit).await?;
        for run in &mut runs {
            let operation = run.operation.as_ref().and_then(|id| self.executor.get(id).ok());
            (run.state, run.message) =
                operation.map_or((None, None), |operation| (Some(operation.state), operation.message));
        }
        Ok(runs)
    }

    /// Runs a script on a thread of its own.
    async fn judge(&self, script: Script, limits: Limits, view: View) -> Result<PolicyResult> {
        let name = script.name.clone();
        // Given back when the script has ended, even if nobody waits for it any more.
        let turn = self.scripts.clone().acquire_owned().await;
        let budget = self.nodes.rhythm().budget;
        let judged = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let index = Index::new(&view)?;
            Ok(policy::test(&script, &index, &limits, &budget)?)
        });
        judged.await.unwrap_or_else(|error| {
            Err(PolicyError::Start { script: name, message: error.to_string() }.into())
        })
    }
}

fn check_name(name: &str) -> Result<()> {
    if is_name(name) {
        return Ok(());
    }
    let name: String = name.chars().take(64).collect();
    Err(Error::BadRequest(format!("{name:?} is no name for a policy: use letters, digits, '_', '.' and '-'")))
}

/// The script of a policy that comes with fcap.
fn shipped(name: &str) -> Result<String> {
    Shipped::named(name).map(|shipped| shipped.source.to_owned()).ok_or_else(|| {
        let all: Vec<&str> = SHIPPED.iter().map(|shipped| shipped.name).collect();
        Error::BadRequest(format!(
            "no policy {name} comes with fcap: give its script, or take one of {}",
            all.join(", ")
        ))
    })
}
