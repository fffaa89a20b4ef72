//! The turns of policies: when, and what comes of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fcap_api::cluster::{
    Operation, OperationKind, OperationState, PlanStep, PolicyResult, PolicyRun, Proposal,
};

use super::history::History;
use super::{BY, MOST_FAILURES, PREFIX, Policies, Record, rules};
use crate::error::{Error, Result};
use crate::nodes::now_ms;
use crate::policy::Script;
use crate::store::{Transaction, Write};

/// It had nothing to propose.
const IDLE: &str = "idle";
/// What it proposed is recorded only.
const DRY_RUN: &str = "dry_run";
/// All that it proposed was rejected.
const REJECTED: &str = "rejected";
/// Something else has one of the nodes.
const BUSY: &str = "busy";
/// The script gives no answer.
const ERROR: &str = "error";
/// Its plan was carried out.
const DONE: &str = "done";
/// Its plan stopped at a failure.
const FAILED: &str = "failed";
/// Somebody has cancelled its plan.
const CANCELLED: &str = "cancelled";
/// All that can come of a run, as it is counted.
pub(super) const OUTCOMES: [&str; 8] = [IDLE, DRY_RUN, REJECTED, BUSY, ERROR, DONE, FAILED, CANCELLED];

/// How often is looked whether an operation is still under way.
const LOOK: Duration = Duration::from_millis(200);
/// Reasons of a plan that are told in one line.
const MOST_REASONS: usize = 3;

impl Policies {
    /// Runs policies at their intervals, for ever.
    pub async fn run(self: Arc<Self>) {
        self.settle_old().await;
        loop {
            let next = {
                let known = self.known();
                let due = known.iter().filter_map(|(name, known)| Some((self.due(known)?, name.clone())));
                due.min()
            };
            match next {
                Some((due, name)) if due <= Instant::now() => {
                    if let Err(error) = self.turn(&name).await {
                        tracing::warn!(policy = name, %error, "a policy did not come to its turn");
                    }
                }
                next => {
                    let wait = async {
                        match next {
                            Some((due, _)) => tokio::time::sleep_until(due.into()).await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        () = wait => {}
                        () = self.changed.notified() => {}
                    }
                }
            }
        }
    }

    /// Waits for the plans that an earlier controller has begun, and draws the conclusions.
    async fn settle_old(&self) {
        for operation in self.executor.list() {
            if operation.state.is_over() {
                continue;
            }
            if let Some(name) = operation.by.strip_prefix(BY)
                && let Some(operation) = self.end_of(&operation.id).await
                && let Err(error) = self.conclude(name, None, &operation).await
            {
                tracing::warn!(policy = name, %error, "what became of a plan is not written down");
            }
        }
    }

    /// Waits until no operation is under way, and what the last one did has been seen.
    async fn until_quiet(&self) {
        let seen = self.nodes.rhythm().ask;
        loop {
            match self.executor.quiet_for() {
                Some(quiet) if quiet >= seen => return,
                Some(quiet) => {
                    // Once, whatever the clock does.
                    tokio::time::sleep(seen - quiet).await;
                    if self.executor.quiet_for().is_some() {
                        return;
                    }
                }
                None => tokio::time::sleep(LOOK).await,
            }
        }
    }

    async fn turn(&self, name: &str) -> Result<()> {
        self.until_quiet().await;
        let record = {
            let mut known = self.known();
            let Some(known) = known.get_mut(name) else { return Ok(()) };
            known.last = Some((Instant::now(), now_ms()));
            if !known.record.spec.enabled || known.record.suspended {
                return Ok(());
            }
            known.record.clone()
        };
        let source = record.spec.source.clone().unwrap_or_default();
        let script = Script { name: name.to_owned(), source, settings: record.spec.settings.clone() };
        let limits = rules::limits(&record.spec.rules)?;
        let (parallel, dry_run) = (limits.moves_at_once as u32, record.spec.dry_run);
        match self.judge(script, limits, self.nodes.view()).await {
            Ok(result) if result.proposals.is_empty() => {
                self.count(name, IDLE);
                self.succeeded(name, &record, None).await
            }
            Ok(result) => {
                let run = self.history.run(name, dry_run, Ok(&result));
                if dry_run || result.plan.steps.is_empty() {
                    self.count(name, if dry_run { DRY_RUN } else { REJECTED });
                    return self.succeeded(name, &record, Some(run)).await;
                }
                self.execute(name, &record, &result, run, parallel).await
            }
            Err(Error::Policy(error)) => {
                self.count(name, ERROR);
                let run = self.history.run(name, dry_run, Err(error.to_string()));
                self.failed(name, Some(record.applied_ms), error.to_string(), Some(run)).await
            }
            // The cluster's fault, and not the policy's.
            Err(error) => Err(error),
        }
    }

    /// Does what a policy wants, and waits for the end.
    async fn execute(
        &self,
        name: &str,
        record: &Record,
        result: &PolicyResult,
        mut run: PolicyRun,
        parallel: u32,
    ) -> Result<()> {
        let groups: Vec<Vec<Proposal>> =
            result.plan.steps.iter().map(|step| step.proposals.clone()).collect();
        let (by, reason) = (format!("{BY}{name}"), reasons(groups.iter().flatten()));
        let what = said(groups.iter().flatten());
        let kind = OperationKind::Plan { groups, parallel, saving_micros: result.plan.saving_micros };
        let old = self.audit.old().await?;
        let submitted = {
            let _turn = self.writing.lock().await;
            if !self.is_still(name, record.applied_ms) {
                return Ok(());
            }
            let more = |operation: &Operation| {
                run.operation = Some(operation.id.clone());
                // With the names that nodes to be really get.
                if let OperationKind::Plan { groups, .. } = &operation.kind {
                    let step = |group: &Vec<Proposal>| PlanStep { proposals: group.clone() };
                    run.plan.steps = groups.iter().map(step).collect();
                }
                let mut writes = History::writes(&run);
                writes.push(self.audit.entry(&by, what, &reason, Some(&operation.id)));
                writes.extend(old);
                writes
            };
            self.executor.submit_with(kind, &by, &reason, more).await
        };
        match submitted {
            Ok(operation) => {
                tracing::info!(
                    policy = name,
                    operation = operation.id,
                    reason,
                    "a policy changes the cluster"
                );
                self.history.written(run);
                match self.end_of(&operation.id).await {
                    Some(operation) => self.conclude(name, Some(record.applied_ms), &operation).await,
                    None => Ok(()),
                }
            }
            // Somebody has begun something with one of the nodes meanwhile.
            Err(error @ Error::WrongState(_)) => {
                self.count(name, BUSY);
                let run = self.history.run(name, false, Err(error.to_string()));
                self.keep_run(run).await
            }
            Err(error) => Err(error),
        }
    }

    async fn end_of(&self, id: &str) -> Option<Operation> {
        let mut operation = self.executor.follow(id).ok()?;
        let ended = operation.wait_for(|operation| operation.state.is_over()).await;
        ended.ok().map(|operation| operation.clone())
    }

    async fn conclude(&self, name: &str, applied_ms: Option<u64>, operation: &Operation) -> Result<()> {
        let id = &operation.id;
        self.count(
            name,
            match operation.state {
                OperationState::Done => DONE,
                OperationState::Cancelled => CANCELLED,
                OperationState::Failed | OperationState::Running | OperationState::Undoing => FAILED,
            },
        );
        match operation.state {
            OperationState::Done => self.change(name, applied_ms, None, forgive).await,
            OperationState::Cancelled => {
                let message =
                    format!("its plan, operation {id}, was cancelled; `fcap policy enable {name}` goes on");
                let suspend =
                    |record: &mut Record| (record.suspended, record.message) = (true, Some(message));
                self.change(name, applied_ms, None, suspend).await
            }
            _ => {
                let why = operation.message.as_deref().unwrap_or("it failed");
                self.failed(name, applied_ms, format!("operation {id}: {why}"), None).await
            }
        }
    }

    fn count(&self, name: &str, outcome: &str) {
        // One that was removed meanwhile is to leave nothing.
        if self.known().contains_key(name) {
            self.runs.add(&[("outcome", outcome), ("policy", name)], 1.0);
        }
    }

    async fn succeeded(&self, name: &str, record: &Record, run: Option<PolicyRun>) -> Result<()> {
        self.change(name, Some(record.applied_ms), run, forgive).await
    }

    async fn failed(
        &self,
        name: &str,
        applied_ms: Option<u64>,
        error: String,
        run: Option<PolicyRun>,
    ) -> Result<()> {
        tracing::warn!(policy = name, error, "a policy fails");
        let count = |record: &mut Record| {
            record.failures += 1;
            record.suspended = record.failures >= MOST_FAILURES;
            record.message = Some(error);
        };
        self.change(name, applied_ms, run, count).await
    }

    fn is_still(&self, name: &str, applied_ms: u64) -> bool {
        self.known().get(name).is_some_and(|known| known.record.applied_ms == applied_ms)
    }

    async fn keep_run(&self, run: PolicyRun) -> Result<()> {
        self.store.commit(Transaction::of(History::writes(&run))).await?;
        self.history.written(run);
        Ok(())
    }

    /// Writes down what a run has changed of its policy, unless that is another one by now, and the
    /// run itself.
    async fn change(
        &self,
        name: &str,
        applied_ms: Option<u64>,
        run: Option<PolicyRun>,
        change: impl FnOnce(&mut Record),
    ) -> Result<()> {
        let _turn = self.writing.lock().await;
        let mut writes: Vec<Write> = run.as_ref().map(History::writes).unwrap_or_default();
        let before = self.known().get(name).map(|known| known.record.clone());
        let before = before.filter(|record| applied_ms.is_none_or(|time_ms| record.applied_ms == time_ms));
        let mut after = before.clone();
        if let Some(record) = &mut after {
            change(record);
            if after != before {
                writes.push(Write::json(format!("{PREFIX}{name}"), &after));
            }
        }
        if writes.is_empty() {
            return Ok(());
        }
        self.store.commit(Transaction::of(writes)).await?;
        if let (Some(record), Some(known)) = (after, self.known().get_mut(name)) {
            known.record = record;
        }
        if let Some(run) = run {
            self.history.written(run);
        }
        Ok(())
    }
}

/// Whatever failed before is over.
fn forgive(record: &mut Record) {
    (record.failures, record.message) = (0, None);
}

/// Why all this, in one line.
fn reasons<'a>(proposals: impl Iterator<Item = &'a Proposal>) -> String {
    let mut all: Vec<&str> = Vec::new();
    for proposal in proposals {
        if !all.contains(&proposal.reason.as_str()) {
            all.push(&proposal.reason);
        }
    }
    let more = all.len().saturating_sub(MOST_REASONS);
    all.truncate(MOST_REASONS);
    let mut text = all.join("; ");
    if more > 0 {
        text += &format!("; and {more} more reasons");
    }
    text
}

/// What is done, in one line.
fn said<'a>(proposals: impl Iterator<Item = &'a Proposal>) -> String {
    use fcap_api::cluster::Change;
    let (mut moves, mut resizes, mut parts) = (0, 0, Vec::new());
    for proposal in proposals {
        match &proposal.change {
            Change::Migrate { .. } => moves += 1,
            Change::Resize { .. } => resizes += 1,
            Change::StartNode { flavor, .. } => parts.push(format!("start a {flavor} node")),
            Change::StopNode { node } => parts.push(format!("stop node {node}")),
        }
    }
    let count = |number: u32, verb: &str| {
        (number > 0).then(|| format!("{verb} {number} capsule{}", if number == 1 { "" } else { "s" }))
    };
    parts.extend(count(moves, "move"));
    parts.extend(count(resizes, "resize"));
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policies::is_policy;
    use fcap_api::cluster::Change;

    #[test]
    fn a_plan_is_told_in_a_line() {
        let proposal = |change, reason: &str| Proposal { change, reason: reason.into(), line: None };
        let migrate = |capsule: &str| Change::Migrate { capsule: capsule.into(), to: "n".into() };
        let plan = [
            proposal(migrate("a"), "n1 is idle"),
            proposal(migrate("b"), "n1 is idle"),
            proposal(Change::StopNode { node: "n1".into() }, "it is empty"),
        ];
        assert_eq!(said(plan.iter()), "stop node n1, move 2 capsules");
        assert_eq!(reasons(plan.iter()), "n1 is idle; it is empty");
        let many: Vec<Proposal> = (0..5).map(|n| proposal(migrate("a"), &n.to_string())).collect();
        assert_eq!(reasons(many.iter()), "0; 1; 2; and 2 more reasons");
        assert!(is_policy(&format!("{BY}scale")) && !is_policy("operator"));
    }
}
