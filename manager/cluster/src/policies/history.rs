//! What policies did, and why.
//!
//! A run has a number, and the latest are kept. Runs of one policy that follow each other, come to
//! the same and do nothing are one: a policy that would do what cannot be done says so every minute.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use fcap_api::cluster::{Change, Plan, PolicyResult, PolicyRun};

use crate::error::{Error, Result};
use crate::nodes::now_ms;
use crate::store::{Store, Write};

/// Begins the keys of runs; their numbers follow.
const PREFIX: &str = "policy-runs/";
/// Runs that are kept.
pub const KEPT: u64 = 500;
/// Proposals of a run that are kept of those that were rejected.
const MOST_REJECTED: usize = 100;
/// Lines of a run's output that are kept.
const MOST_LINES: usize = 20;

/// The runs of all policies.
pub struct History {
    store: Arc<dyn Store>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    /// The last run of each policy.
    last: BTreeMap<String, PolicyRun>,
}

fn key(number: u64) -> String {
    format!("{PREFIX}{number:012}")
}

impl History {
    /// Reads what is kept.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self> {
        let mut state = State { next: 1, last: BTreeMap::new() };
        for run in read(&*store).await? {
            let number = run.id.parse().unwrap_or(0);
            state.next = state.next.max(number + 1);
            state.last.insert(run.policy.clone(), run);
        }
        Ok(Self { store, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A run that came to this, with a number of its own or that of the run before it.
    pub fn run(
        &self,
        policy: &str,
        dry_run: bool,
        came: std::result::Result<&PolicyResult, String>,
    ) -> PolicyRun {
        let now_ms = now_ms();
        let (result, error) = match came {
            Ok(result) => (Some(result), None),
            Err(error) => (None, Some(error)),
        };
        let mut plan = result.map_or_else(Plan::default, |result| result.plan.clone());
        let rejected = plan.rejected.len();
        plan.rejected.truncate(MOST_REJECTED);
        let output = result.map_or(&[][..], |result| &result.output);
        let mut run = PolicyRun {
            id: String::new(),
            policy: policy.to_owned(),
            time_ms: now_ms,
            times: 1,
            last_ms: now_ms,
            dry_run,
            proposed: result.map_or(0, |result| result.proposals.len()),
            rejected,
            plan,
            output: output.iter().take(MOST_LINES).cloned().collect(),
            error,
            operation: None,
            state: None,
            message: None,
        };
        let state = self.state();
        match state.last.get(policy).filter(|last| is_same(last, &run)) {
            Some(last) => {
                run.id.clone_from(&last.id);
                (run.time_ms, run.times) = (last.time_ms, last.times.saturating_add(1));
            }
            None => run.id = state.next.to_string(),
        }
        run
    }

    /// What writes a run down, and forgets an old one for it.
    pub fn writes(run: &PolicyRun) -> Vec<Write> {
        let number: u64 = run.id.parse().unwrap_or(0);
        let mut writes = vec![Write::json(key(number), run)];
        if let Some(old) = number.checked_sub(KEPT) {
            writes.push(Write::Delete(key(old)));
        }
        writes
    }

    /// Knows of a run that is written down.
    pub fn written(&self, run: PolicyRun) {
        let mut state = self.state();
        state.next = state.next.max(run.id.parse().map_or(0, |number: u64| number + 1));
        state.last.insert(run.policy.clone(), run);
    }

    /// The latest runs, of one policy or of all, the last first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn list(&self, policy: Option<&str>, limit: usize) -> Result<Vec<PolicyRun>> {
        let mut runs = read(&*self.store).await?;
        runs.reverse();
        runs.retain(|run| policy.is_none_or(|policy| run.policy == policy));
        runs.truncate(limit);
        Ok(runs)
    }
}

async fn read(store: &dyn Store) -> Result<Vec<PolicyRun>> {
    let parse = |entry: crate::store::Entry| {
        serde_json::from_slice(&entry.value).map_err(|error| Error::Corrupt(entry.key, error.to_string()))
    };
    store.range(PREFIX).await?.entries.into_iter().map(parse).collect()
}

/// Whether two runs came to the same, and nothing was done.
fn is_same(a: &PolicyRun, b: &PolicyRun) -> bool {
    // Reasons tell of percents and seconds, which are never the same.
    fn changes(run: &PolicyRun) -> impl Iterator<Item = &Change> {
        let steps = run.plan.steps.iter().flat_map(|step| &step.proposals).map(|proposal| &proposal.change);
        steps.chain(run.plan.rejected.iter().map(|rejected| &rejected.proposal.change))
    }
    let nothing_done = a.operation.is_none() && b.operation.is_none();
    let planned =
        |run: &PolicyRun| run.plan.steps.iter().map(|step| step.proposals.len()).collect::<Vec<_>>();
    nothing_done
        && (a.dry_run, &a.error, a.proposed, a.rejected) == (b.dry_run, &b.error, b.proposed, b.rejected)
        && planned(a) == planned(b)
        && changes(a).eq(changes(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Local, Transaction};
    use fcap_api::cluster::{PlanStep, Proposal, Rejected};

    fn result(node: &str, reason: &str, rejected: bool) -> PolicyResult {
        let change = Change::StopNode { node: node.into() };
        let proposal = Proposal { change, reason: reason.into(), line: None };
        let plan = if rejected {
            let rejected = Rejected { number: 1, proposal: proposal.clone(), why: reason.into() };
            Plan { rejected: vec![rejected], ..Plan::default() }
        } else {
            Plan { steps: vec![PlanStep { proposals: vec![proposal.clone()] }], ..Plan::default() }
        };
        let (settings, output) = (BTreeMap::new(), Vec::new());
        PolicyResult { policy: "p".into(), settings, proposals: vec![proposal], output, plan }
    }

    async fn keep(history: &History, store: &Local, run: PolicyRun) {
        store.commit(Transaction::of(History::writes(&run))).await.unwrap();
        history.written(run);
    }

    #[tokio::test]
    async fn the_same_again_is_counted_and_not_told_again() {
        let store = Arc::new(Local::in_memory());
        let history = History::open(store.clone()).await.unwrap();
        for reason in ["5 %", "6 %", "7 %"] {
            let run = history.run("p", false, Ok(&result("n1", reason, true)));
            keep(&history, &store, run).await;
        }
        // The same of another controller.
        let history = History::open(store.clone()).await.unwrap();
        let run = history.run("p", false, Ok(&result("n1", "8 %", true)));
        keep(&history, &store, run).await;
        let runs = history.list(None, 9).await.unwrap();
        assert_eq!((runs.len(), runs[0].times, runs[0].plan.rejected[0].why.as_str()), (1, 4, "8 %"));

        for other in [
            history.run("p", false, Ok(&result("n2", "9 %", true))),
            history.run("p", true, Ok(&result("n1", "9 %", true))),
            history.run("p", false, Ok(&result("n1", "9 %", false))),
            history.run("p", false, Err("no good".into())),
            history.run("q", false, Ok(&result("n1", "9 %", true))),
        ] {
            assert_eq!((other.id.as_str(), other.times), ("2", 1), "{other:?}");
        }
        // What was done is told each time.
        for id in ["2", "3"] {
            let mut run = history.run("p", false, Ok(&result("n1", "9 %", false)));
            assert_eq!(run.id, id);
            run.operation = Some("7".into());
            keep(&history, &store, run).await;
        }
        assert_eq!(history.list(Some("q"), 9).await.unwrap(), []);
        assert_eq!(history.list(Some("p"), 2).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn history_has_an_end() {
        let store = Arc::new(Local::in_memory());
        let history = History::open(store.clone()).await.unwrap();
        for number in 0..KEPT + 20 {
            let run = history.run("p", false, Err(number.to_string()));
            keep(&history, &store, run).await;
        }
        let runs = history.list(None, usize::MAX).await.unwrap();
        assert_eq!((runs.len() as u64, runs[0].error.as_deref()), (KEPT, Some("519")));
    }
}
