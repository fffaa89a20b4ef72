//! One operation, from its first step to its last.

use std::collections::BTreeMap;
use std::sync::Arc;

use fcap_api::cluster::{
    Change, Failure, NodeState, Operation, OperationKind, OperationState, Proposal, Step, StepState, Work,
};
use fcap_api::{Capsule, State, UpdateCapsule};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{Mutex, watch};

use super::Executor;
use crate::error::Error;
use crate::nodes::now_ms;
use crate::placement::{self, Aim};
use crate::provider::Wanted;
use crate::view::{Index, expected_cpu_milli};

/// Why an operation does not go on.
#[derive(Clone, Debug)]
pub(super) enum Stop {
    /// Somebody wants it to stop.
    Cancelled,
    /// A step cannot be taken.
    Failed(String),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error.to_string())
    }
}

pub(super) type Result<T> = std::result::Result<T, Stop>;

/// Whether an old node may be gone already.
pub(super) fn has_begun_to_destroy(operation: &Operation) -> bool {
    let OperationKind::Replace { node, .. } = &operation.kind else { return false };
    operation.steps.iter().any(|step| matches!(&step.work, Work::Destroy { node: gone } if gone == node))
}

/// Where capsules of a node that is emptied go.
#[derive(Clone, Copy)]
enum Target<'a> {
    Anywhere,
    Node(&'a str),
}

/// A capsule on its way to be.
#[derive(Clone)]
pub(super) struct Move {
    pub(super) capsule: String,
    pub(super) name: String,
    pub(super) from: String,
    pub(super) to: String,
}

/// An operation that runs.
pub(super) struct Run {
    pub(super) executor: Arc<Executor>,
    operation: watch::Sender<Operation>,
    pub(super) cancel: watch::Receiver<bool>,
    /// Held while the operation is written down: steps are taken at the same time.
    writing: Mutex<()>,
}

impl Run {
    pub(super) fn new(
        executor: Arc<Executor>,
        operation: watch::Sender<Operation>,
        cancel: watch::Receiver<bool>,
    ) -> Self {
        Self { executor, operation, cancel, writing: Mutex::default() }
    }

    pub(super) fn now(&self) -> Operation {
        self.operation.borrow().clone()
    }

    /// Writes a change of the operation down, and then has it be so.
    async fn write<T>(&self, change: impl FnOnce(&mut Operation) -> T) -> Result<T> {
        let _turn = self.writing.lock().await;
        let mut operation = self.now();
        let changed = change(&mut operation);
        self.executor.keep(&operation).await?;
        self.operation.send_replace(operation);
        Ok(changed)
    }

    /// Says how a step goes, to those who look.
    pub(super) fn note(&self, step: usize, note: String) {
        self.operation.send_modify(|operation| operation.steps[step].note = Some(note));
    }

    pub(super) fn go_on(&self) -> Result<()> {
        if *self.cancel.borrow() { Err(Stop::Cancelled) } else { Ok(()) }
    }

    /// Runs it to its end.
    pub(super) async fn drive(self) {
        let id = self.now().id;
        if let Err(Stop::Failed(error)) = self.drive_all().await {
            // What is written down stays so, and the next controller goes on from there.
            tracing::error!(operation = id, error, "an operation cannot be written down");
            self.operation.send_modify(|operation| {
                operation.state = OperationState::Failed;
                operation.message = Some(error);
            });
        }
        self.executor.nodes.release(&id);
    }

    async fn drive_all(&self) -> Result<()> {
        let operation = self.now();
        let stopped = match operation.state {
            OperationState::Undoing => {
                Err(Stop::Failed(operation.message.clone().unwrap_or_else(|| "it was cancelled".into())))
            }
            _ => self.forward(&operation.kind).await,
        };
        let stop = match stopped {
            Ok(message) => return self.finish(OperationState::Done, message).await,
            Err(stop) => stop,
        };
        let cancelled = *self.cancel.borrow();
        let mut message = match stop {
            Stop::Cancelled => "it was cancelled".to_owned(),
            Stop::Failed(message) => message,
        };
        tracing::warn!(operation = operation.id, message, "an operation stops");
        self.write(|operation| {
            operation.state = OperationState::Undoing;
            operation.cancelled = cancelled;
            operation.message = Some(message.clone());
        })
        .await?;
        match self.undo(&operation.kind).await {
            Ok(None) => {}
            Ok(Some(note)) => message = format!("{message}; {note}"),
            Err(Stop::Cancelled) => message += "; it was not undone",
            Err(Stop::Failed(error)) => message = format!("{message}; it could not be undone: {error}"),
        }
        let state = if cancelled { OperationState::Cancelled } else { OperationState::Failed };
        self.finish(state, Some(message)).await
    }

    async fn finish(&self, state: OperationState, message: Option<String>) -> Result<()> {
        // Given back before anybody hears that it is over, and may want them.
        self.executor.nodes.release(&self.now().id);
        self.write(|operation| {
            operation.state = state;
            operation.message = message;
            operation.ended_ms = Some(now_ms());
        })
        .await?;
        self.executor.counts.over(&self.now().kind, state);
        Ok(())
    }

    /// Does what is to be done. What is returned is worth saying.
    async fn forward(&self, kind: &OperationKind) -> Result<Option<String>> {
        match kind {
            OperationKind::Add { flavor, labels } => {
                let node = self.create(flavor, labels.clone()).await?;
                self.uncordon(&node).await?;
                Ok(Some(format!("node {node} is ready")))
            }
            OperationKind::Remove { node, force } => {
                self.cordon(node).await?;
                self.go_on()?;
                self.destroy(node, *force).await?;
                Ok(None)
            }
            OperationKind::Drain { node, parallel, .. } => {
                self.cordon(node).await?;
                let left = self.empty(node, Target::Anywhere, *parallel).await?;
                Ok((!left.is_empty()).then(|| format!("these do not run, and stay: {}", left.join(", "))))
            }
            OperationKind::Replace { node, flavor, parallel } => {
                if !has_begun_to_destroy(&self.now()) {
                    self.replace_old(node, flavor, *parallel).await?;
                }
                self.destroy(node, false).await?;
                let new = self.created().pop().unwrap_or_default();
                self.uncordon(&new).await?;
                Ok(Some(format!("node {new} has taken the place of {node}")))
            }
            OperationKind::Plan { groups, parallel, .. } => {
                for proposal in groups.iter().flatten() {
                    if let Change::StopNode { node } = &proposal.change {
                        self.cordon_for_stop(node).await?;
                    }
                }
                for group in groups {
                    self.go_on()?;
                    self.group(group, *parallel).await?;
                }
                Ok(None)
            }
        }
    }

    async fn replace_old(&self, node: &str, flavor: &str, parallel: u32) -> Result<()> {
        let labels = self.executor.nodes.get(node)?.labels;
        let new = self.create(flavor, labels).await?;
        self.go_on()?;
        self.cordon(node).await?;
        let left = self.empty(node, Target::Node(&new), parallel).await?;
        if !left.is_empty() {
            let left = left.join(", ");
            return Err(Stop::Failed(format!(
                "these do not run, and would be lost with node {node}: {left}; start or remove them"
            )));
        }
        self.go_on()
    }

    /// Undoes what an operation has done, where that is its way. What is returned is worth saying.
    async fn undo(&self, kind: &OperationKind) -> Result<Option<String>> {
        // It was cancelled once; that is over.
        match kind {
            OperationKind::Remove { .. } => Ok(None),
            OperationKind::Drain { node, on_failure: Failure::Leave, .. } => {
                Ok(Some(format!("what has moved stays where it is, and node {node} stays cordoned")))
            }
            OperationKind::Drain { node, parallel, .. } => {
                let steps = self.now().steps;
                let back = steps.into_iter().filter_map(|step| match (step.work, step.state) {
                    (Work::Move { capsule, name, from, to }, _) if from == *node => {
                        Some(Move { capsule, name, from: to, to: from })
                    }
                    _ => None,
                });
                let mut here = Vec::new();
                for back in back.collect::<Vec<_>>() {
                    if self.executor.has(&back.from, &back.capsule).await? {
                        here.push(back);
                    }
                }
                self.moves(here, *parallel).await?;
                self.uncordon(node).await?;
                Ok(Some("what had moved is back".into()))
            }
            OperationKind::Replace { node, parallel, .. } => {
                if has_begun_to_destroy(&self.now()) {
                    return Ok(Some(format!(
                        "node {node} is being destroyed; `fcap operation resume` goes on"
                    )));
                }
                for new in self.created() {
                    if self.executor.nodes.client(&new).is_ok() {
                        self.empty(&new, Target::Node(node), *parallel).await?;
                    }
                    self.destroy(&new, false).await?;
                }
                self.uncordon(node).await?;
                Ok(Some(format!("everything is on node {node} as before")))
            }
            OperationKind::Add { .. } | OperationKind::Plan { .. } => {
                let mut destroyed = Vec::new();
                for new in self.created() {
                    match self.executor.live_on(&new).await {
                        Ok(capsules) if !capsules.is_empty() => self.uncordon(&new).await?,
                        _ => {
                            self.destroy(&new, false).await?;
                            destroyed.push(new);
                        }
                    }
                }
                for node in self.cordoned() {
                    if self.executor.nodes.get(&node).is_ok_and(|it| it.state != NodeState::Stopping) {
                        self.uncordon(&node).await?;
                    }
                }
                let names = destroyed.join(", ");
                Ok((!destroyed.is_empty())
                    .then(|| format!("what it had started is destroyed again: {names}")))
            }
        }
    }

    /// Nodes that it has started, or wanted to.
    fn created(&self) -> Vec<String> {
        let steps = self.now().steps;
        let created = steps.into_iter().filter_map(|step| match step.work {
            Work::Create { node, .. } => Some(node),
            _ => None,
        });
        created.collect()
    }

    /// Nodes that it has cordoned, or wanted to.
    fn cordoned(&self) -> Vec<String> {
        let steps = self.now().steps;
        let cordoned = steps.into_iter().filter_map(|step| match step.work {
            Work::Cordon { node } => Some(node),
            _ => None,
        });
        cordoned.collect()
    }

    /// Lets nothing new come to a node that is to be stopped once it is empty. One that the operator
    /// has cordoned stays so, whatever becomes of the plan.
    async fn cordon_for_stop(&self, node: &str) -> Result<()> {
        let begun = self.cordoned().iter().any(|other| other == node);
        match self.executor.nodes.get(node) {
            Ok(known) if begun || !known.cordoned => self.cordon(node).await,
            // It is gone already, if an earlier controller has come so far.
            _ => Ok(()),
        }
    }

    /// Takes a step, unless it is taken already.
    async fn once(&self, work: Work, take: impl AsyncFnOnce(usize) -> Result<Option<String>>) -> Result<()> {
        let steps = self.now().steps;
        match steps.iter().rposition(|step| step.work == work) {
            Some(at) if steps[at].state == StepState::Done => Ok(()),
            _ => self.step(work, take).await,
        }
    }

    /// Takes a step: writes it down, does it, and writes down how it went.
    async fn step(&self, work: Work, take: impl AsyncFnOnce(usize) -> Result<Option<String>>) -> Result<()> {
        let at = self
            .write(|operation| {
                let unfinished = operation
                    .steps
                    .iter()
                    .position(|step| step.work == work && step.state != StepState::Done);
                let at = unfinished.unwrap_or(operation.steps.len());
                let step = Step {
                    work,
                    state: StepState::Running,
                    started_ms: now_ms(),
                    ended_ms: None,
                    note: None,
                };
                if at == operation.steps.len() {
                    operation.steps.push(step);
                } else {
                    operation.steps[at] = step;
                }
                at
            })
            .await?;
        let taken = take(at).await;
        self.write(|operation| {
            let step = &mut operation.steps[at];
            step.ended_ms = Some(now_ms());
            match &taken {
                Ok(note) => {
                    step.state = StepState::Done;
                    step.note.clone_from(note);
                }
                Err(Stop::Cancelled) => {
                    step.state = StepState::Failed;
                    step.note = Some("it was cancelled".into());
                }
                Err(Stop::Failed(error)) => {
                    step.state = StepState::Failed;
                    step.note = Some(error.clone());
                }
            }
        })
        .await?;
        taken.map(drop)
    }

    async fn cordon(&self, node: &str) -> Result<()> {
        self.once(Work::Cordon { node: node.to_owned() }, async |_| {
            self.executor.nodes.cordon(node, true).await?;
            Ok(None)
        })
        .await
    }

    async fn uncordon(&self, node: &str) -> Result<()> {
        self.once(Work::Uncordon { node: node.to_owned() }, async |_| {
            self.executor.nodes.cordon(node, false).await?;
            Ok(None)
        })
        .await
    }

    /// Starts a node, and waits until it answers. It is cordoned.
    async fn create(&self, flavor: &str, labels: BTreeMap<String, String>) -> Result<String> {
        let name = match self.created().pop() {
            Some(name) => name,
            None => self.executor.nodes.claim_free_name(&self.now().id),
        };
        self.create_named(&name, flavor, labels).await?;
        Ok(name)
    }

    async fn create_named(&self, name: &str, flavor: &str, labels: BTreeMap<String, String>) -> Result<()> {
        let work = Work::Create { node: name.to_owned(), flavor: flavor.to_owned() };
        self.once(work, async |step| {
            let (nodes, id) = (&self.executor.nodes, self.now().id);
            nodes.expect(name, flavor, labels).await?;
            self.note(step, "its machine starts".into());
            let wanted = Wanted { name: name.to_owned(), flavor: flavor.to_owned(), tag: id };
            self.executor.provider.create(wanted).await.map_err(Error::from)?;
            self.note(step, "its machine runs".into());
            nodes.reconcile().await?;
            let ready = nodes.until(|nodes| match nodes.get(name) {
                Ok(node) => (node.state == NodeState::Ready).then_some(Ok(None)),
                Err(error) => Some(Err(error.into())),
            });
            let Ok(outcome) = tokio::time::timeout(self.executor.limits.start, ready).await else {
                let why = nodes.get(name)?.message.unwrap_or_else(|| "it does not answer".into());
                return Err(Stop::Failed(format!("node {name} does not come up: {why}")));
            };
            outcome
        })
        .await
    }

    /// Destroys a node, which must be empty unless `force`.
    async fn destroy(&self, node: &str, force: bool) -> Result<()> {
        self.once(Work::Destroy { node: node.to_owned() }, async |_| {
            let Executor { nodes, provider, .. } = &*self.executor;
            let machines = provider.list().await.map_err(Error::from)?;
            let has_joined = nodes.has_joined(node);
            let runs = has_joined || machines.iter().any(|machine| machine.name == node);
            if runs && !force {
                let live = self.executor.live_on(node).await?;
                if !live.is_empty() {
                    let names: Vec<&str> = live.iter().map(|capsule| capsule.name.as_str()).collect();
                    return Err(Stop::Failed(format!(
                        "node {node} still has capsules: {}; `fcap node drain {node}` moves them away",
                        names.join(", ")
                    )));
                }
            }
            match nodes.stopping(node).await {
                Ok(()) | Err(Error::NoSuchNode(_)) => {}
                Err(error) => return Err(error.into()),
            }
            // What has joined by itself goes on running, and is nobody's node any more.
            if !has_joined {
                provider.destroy(node).await.map_err(Error::from)?;
            }
            nodes.forget(node).await?;
            nodes.keep_books().await;
            Ok(None)
        })
        .await
    }

    /// Moves everything that runs on a node away. Says what stays because it does not run.
    async fn empty(&self, node: &str, target: Target<'_>, parallel: u32) -> Result<Vec<String>> {
        loop {
            let capsules = self.executor.live_on(node).await?;
            let (movable, rest): (Vec<Capsule>, Vec<Capsule>) =
                capsules.into_iter().partition(|capsule| capsule.state == State::Running);
            if rest.iter().any(|capsule| capsule.state == State::Stopping) {
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            }
            if movable.is_empty() {
                let held: Vec<&str> = rest
                    .iter()
                    .filter(|capsule| capsule.state == State::Paused)
                    .map(|capsule| capsule.name.as_str())
                    .collect();
                if !held.is_empty() {
                    let held = held.join(", ");
                    return Err(Stop::Failed(format!(
                        "these are paused, and cannot move: {held}; unpause them"
                    )));
                }
                if rest.iter().all(|capsule| capsule.state != State::Stopping) {
                    return Ok(rest.into_iter().map(|capsule| capsule.name).collect());
                }
                self.go_on_or_undo()?;
                continue;
            }
            let (moves, stuck) = match target {
                Target::Anywhere => self.places(node, movable)?,
                Target::Node(to) => {
                    let to_there = movable.into_iter().map(|capsule| Move {
                        capsule: capsule.id,
                        name: capsule.name,
                        from: node.to_owned(),
                        to: to.to_owned(),
                    });
                    (to_there.collect(), Vec::new())
                }
            };
            let none = moves.is_empty();
            self.moves(moves, parallel).await?;
            if none {
                return Err(Stop::Failed(format!("nowhere to go for {}", stuck.join("; "))));
            }
        }
    }

    /// A cancelled operation that is being undone goes on being undone.
    fn go_on_or_undo(&self) -> Result<()> {
        if self.now().state == OperationState::Undoing { Ok(()) } else { self.go_on() }
    }

    /// Where each of these goes, the largest first; and for which there is no place, and why.
    fn places(&self, node: &str, mut capsules: Vec<Capsule>) -> Result<(Vec<Move>, Vec<String>)> {
        capsules.sort_by_key(|capsule| (std::cmp::Reverse(capsule.memory_kib), capsule.id.clone()));
        let mut view = self.executor.nodes.view();
        let (mut moves, mut stuck) = (Vec::new(), Vec::new());
        for capsule in capsules {
            let affinity = crate::view::affinity(&capsule.labels).unwrap_or_default();
            let known = view.capsules.iter().position(|known| known.id == capsule.id);
            let request = placement::Request {
                memory_kib: capsule.memory_kib,
                cpu_milli: known.map_or(0, |at| expected_cpu_milli(&view.capsules[at])),
                labels: capsule.labels.clone(),
                affinity,
                except: vec![(node, "it is being emptied")],
            };
            let index = Index::new(&view).map_err(|error| Stop::Failed(error.to_string()))?;
            let place = placement::place(&index, &request, Aim::Spread);
            match place.node {
                Some(to) => {
                    if let Some(there) = view.nodes.iter_mut().find(|other| other.name == to) {
                        there.free_memory_kib = there.free_memory_kib.saturating_sub(capsule.memory_kib);
                    }
                    if let Some(at) = known {
                        view.capsules[at].node.clone_from(&to);
                    }
                    let (capsule, name) = (capsule.id, capsule.name);
                    moves.push(Move { capsule, name, from: node.to_owned(), to });
                }
                None => {
                    let others = place.considered.iter().filter(|other| other.node != node);
                    let why: Vec<String> =
                        others.map(|other| format!("{}: {}", other.node, other.reasons.join(", "))).collect();
                    let why = if why.is_empty() { "there is no other node".into() } else { why.join("; ") };
                    stuck.push(format!("{} ({why})", capsule.name));
                }
            }
        }
        Ok((moves, stuck))
    }

    /// Moves capsules at the same time. After the first failure no other begins, and those under
    /// way come to their end.
    async fn moves(&self, moves: Vec<Move>, parallel: u32) -> Result<()> {
        let mut waiting = moves.into_iter();
        let mut under_way = FuturesUnordered::new();
        let mut stopped = Ok(());
        loop {
            while stopped.is_ok()
                && under_way.len() < parallel as usize
                && let Some(next) = waiting.next()
            {
                match self.go_on_or_undo() {
                    Ok(()) => under_way.push(self.one(next)),
                    stop => stopped = stop,
                }
            }
            match under_way.next().await {
                Some(Err(stop)) => stopped = stopped.and(Err(stop)),
                Some(Ok(())) => {}
                None => return stopped,
            }
        }
    }

    async fn one(&self, this: Move) -> Result<()> {
        let Move { capsule, name, from, to } = this.clone();
        let undoing = self.now().state == OperationState::Undoing;
        self.step(Work::Move { capsule, name, from, to }, async |step| {
            self.migrate(step, &this, !undoing).await.map_err(|stop| match stop {
                Stop::Failed(why) => {
                    self.executor.counts.moved(&self.now().by, "failed");
                    Stop::Failed(format!("{} stays on node {}: {why}", this.name, this.from))
                }
                cancelled @ Stop::Cancelled => cancelled,
            })
        })
        .await
    }

    /// Changes of a plan that may happen at the same time.
    async fn group(&self, group: &[Proposal], parallel: u32) -> Result<()> {
        let mut moves = Vec::new();
        for proposal in group {
            match &proposal.change {
                Change::Migrate { capsule, to } => {
                    if let Some(wanted) = self.wanted_move(capsule, to).await? {
                        moves.push(wanted);
                    }
                }
                Change::StartNode { flavor, name } => {
                    self.create_named(name, flavor, BTreeMap::new()).await?;
                    self.uncordon(name).await?;
                }
                Change::StopNode { node } => {
                    let left = self.empty_of_plan(node).await?;
                    if !left.is_empty() {
                        return Err(Stop::Failed(format!(
                            "node {node} is not empty: {} came to it meanwhile, or does not run",
                            left.join(", ")
                        )));
                    }
                    self.destroy(node, false).await?;
                }
                Change::Resize { capsule, memory_kib, cpu_cap, weight } => {
                    self.resize(capsule, *memory_kib, *cpu_cap, *weight).await?;
                }
            }
        }
        self.moves(moves, parallel).await
    }

    async fn empty_of_plan(&self, node: &str) -> Result<Vec<String>> {
        if self.executor.nodes.client(node).is_err() {
            return Ok(Vec::new());
        }
        Ok(self.executor.live_on(node).await?.into_iter().map(|capsule| capsule.name).collect())
    }

    /// A move of a plan, unless the capsule is there already, or has ended.
    async fn wanted_move(&self, capsule: &str, to: &str) -> Result<Option<Move>> {
        let Some((from, found)) = self.executor.find(capsule).await? else { return Ok(None) };
        let there = from == to || found.state != State::Running;
        let (capsule, name, to) = (found.id, found.name, to.to_owned());
        Ok((!there).then_some(Move { capsule, name, from, to }))
    }

    async fn resize(
        &self,
        capsule: &str,
        memory_kib: Option<u64>,
        cpu_cap: Option<u16>,
        weight: Option<u16>,
    ) -> Result<()> {
        let Some((node, found)) = self.executor.find(capsule).await? else { return Ok(()) };
        let work = Work::Resize { capsule: found.id.clone(), name: found.name, memory_kib, cpu_cap, weight };
        self.once(work, async |_| {
            let change = UpdateCapsule { memory_kib, cpu_cap, weight, ..UpdateCapsule::default() };
            let client = self.executor.nodes.client(&node)?;
            client.update(&found.id, &change).await.map_err(Error::from_node(&node))?;
            Ok(None)
        })
        .await
    }
}
