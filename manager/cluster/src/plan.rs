//! From proposals to a plan: what can be done, in which order, and why the rest is not done.
//!
//! 1. Each proposal by itself: are there such nodes, capsules and flavors, may they be touched,
//!    does it contradict one before it?
//! 2. Is it worth it? A move leaves a node that stops or is cordoned, or lightens one that is
//!    fuller than the other becomes, by more than a threshold; else the next run might move the
//!    capsule back. Nodes that replace others must be cheaper than those, or larger.
//! 3. In which order? In each step as many moves as the limits allow, each only where there is
//!    room at that time: what leaves a node in a step still counts there, what comes counts
//!    already. Nodes start in the first step, stop once they are empty.
//!
//! A capsule that is to get more memory than its node has moves first, to the node that placement
//! chooses for what it will hold; that move is the plan's own.
//!
//! What one proposal needs another may have promised: all is done again without those that were
//! rejected, until none is. So what remains can be executed whole, and stopping between any two
//! steps leaves no node with more than it can hold.

use std::collections::{HashMap, HashSet};

use fcap_api::State;
use fcap_api::cluster::{Change, Plan, PlanStep, Proposal, Rejected};

use crate::placement::{self, Aim};
use crate::room::{Refusal, Room, state_name};
use crate::view::{Index, NodeState, NotFound};

/// What a plan may do at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Moves in one step.
    pub moves_at_once: usize,
    /// Moves of one step that one node takes part in.
    pub moves_at_once_per_node: usize,
    /// Moves in the whole plan; the next run may do the rest.
    pub moves: usize,
    /// Nodes of the cluster, with those that are started.
    pub nodes: usize,
    /// Nodes that stay ready, however idle.
    pub least_nodes: usize,
    /// A capsule that was moved stays for so long.
    pub cooldown_ms: u64,
    /// A node that was started runs for at least so long.
    pub node_age_ms: u64,
    /// Part of a node's processors that may be in use after a move, in percent.
    pub cpu_percent: u64,
    /// How much fuller a node that is not stopped must be than the other one becomes, in percent
    /// of their sizes.
    pub gain_percent: u64,
    /// Least saving by nodes that replace others and are not larger, in percent of those' price.
    pub saving_percent: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            moves_at_once: 16,
            moves_at_once_per_node: 4,
            moves: 1000,
            nodes: 1000,
            least_nodes: 1,
            cooldown_ms: 10 * 60_000,
            node_age_ms: 10 * 60_000,
            cpu_percent: 100,
            gain_percent: 5,
            saving_percent: 5,
        }
    }
}

impl Limits {
    /// Whether a capsule may be moved at all, wherever to.
    ///
    /// # Errors
    /// Says why not.
    pub fn may_move(&self, index: &Index<'_>, capsule: usize) -> Result<(), String> {
        let (capsule, node) = (&index.view.capsules[capsule], &index.view.nodes[index.node_of(capsule)]);
        let name = &capsule.name;
        if capsule.state != State::Running {
            return Err(format!("capsule {name} does not run: only what runs can move"));
        }
        if node.state != NodeState::Ready {
            let state = state_name(node.state);
            return Err(format!("capsule {name} is on node {}, which is {state}", node.name));
        }
        // A node that the operator wants empty is left however often.
        if let Some(moved_ms) = capsule.moved_ms.filter(|_| !node.cordoned) {
            let ago_ms = index.view.time_ms.saturating_sub(moved_ms);
            if ago_ms < self.cooldown_ms {
                let (ago, least) = (ago_ms / 1000, self.cooldown_ms / 1000);
                return Err(format!("capsule {name} was moved {ago} s ago and stays for {least} s"));
            }
        }
        Ok(())
    }

    /// Whether a node may be stopped at all, once it is empty.
    ///
    /// # Errors
    /// Says why not.
    pub fn may_stop(&self, index: &Index<'_>, node: usize) -> Result<(), String> {
        let node = &index.view.nodes[node];
        let name = &node.name;
        if node.state != NodeState::Ready {
            return Err(format!("node {name} is {}: nobody knows what runs there", state_name(node.state)));
        }
        let age_ms = index.view.time_ms.saturating_sub(node.started_ms);
        if age_ms < self.node_age_ms && !node.cordoned {
            let (age, least) = (age_ms / 1000, self.node_age_ms / 1000);
            return Err(format!("node {name} was started {age} s ago and runs for {least} s at least"));
        }
        Ok(())
    }
}

/// How the reason of a move begins that only makes room; the node follows.
const OWN_MOVE: &str = "more memory than there is on node ";

/// Rounds after which proposals that still pull each other down are all rejected.
const MOST_ROUNDS: usize = 64;

/// Makes a plan of proposals.
pub fn plan(index: &Index<'_>, proposals: &[Proposal], limits: &Limits) -> Plan {
    let mut planner = Planner::new(index, proposals, limits);
    planner.check_each();
    let mut ordered = Ordered::default();
    for round in 0.. {
        let before = planner.rejected;
        if round == MOST_ROUNDS {
            for number in 0..proposals.len() {
                planner.reject(number, "it depends on others that were rejected".into());
            }
        }
        planner.check_worth();
        ordered = planner.order();
        if planner.rejected == before {
            break;
        }
    }
    let saving_micros = planner.saving();
    let rejected = planner
        .verdicts
        .into_iter()
        .enumerate()
        .filter_map(|(number, why)| {
            Some(Rejected { number: number + 1, proposal: proposals[number].clone(), why: why? })
        })
        .collect();
    let step =
        |numbers: Vec<usize>| numbers.into_iter().map(|number| proposals[number].clone()).collect::<Vec<_>>();
    let Ordered { steps, moves, grows } = ordered;
    // One of these may go where another one has left.
    let moves = moves.into_iter().map(|own| vec![own]);
    let steps = steps.into_iter().map(step).chain(moves).chain([step(grows)]);
    let steps = steps.filter(|step| !step.is_empty()).map(|proposals| PlanStep { proposals }).collect();
    Plan { steps, rejected, saving_micros }
}

/// What stands, in order: first the steps of proposals by their numbers, then the plan's own moves,
/// each by itself, then what gets more memory.
#[derive(Default)]
struct Ordered {
    steps: Vec<Vec<usize>>,
    moves: Vec<Proposal>,
    grows: Vec<usize>,
}

/// A proposal with its names looked up. Nodes are places in the room.
#[derive(Clone, Copy)]
enum Task {
    Move {
        capsule: usize,
        from: usize,
        to: usize,
    },
    Start {
        node: usize,
        price: u64,
    },
    Stop {
        node: usize,
    },
    Shrink {
        capsule: usize,
        memory_kib: u64,
    },
    Grow {
        capsule: usize,
        memory_kib: u64,
    },
    Tune,
    /// Rejected before it was understood.
    None,
}

struct Planner<'a, 'p> {
    index: &'p Index<'a>,
    limits: &'p Limits,
    proposals: &'p [Proposal],
    tasks: Vec<Task>,
    /// Why each is rejected, if it is.
    verdicts: Vec<Option<String>>,
    rejected: usize,
    /// The view, with the nodes that are to be started.
    room: Room<'a>,
}

impl<'a, 'p> Planner<'a, 'p> {
    fn new(index: &'p Index<'a>, proposals: &'p [Proposal], limits: &'p Limits) -> Self {
        Self {
            index,
            limits,
            proposals,
            tasks: vec![Task::None; proposals.len()],
            verdicts: vec![None; proposals.len()],
            rejected: 0,
            room: Room::new(index),
        }
    }

    fn reject(&mut self, number: usize, why: String) {
        if self.verdicts[number].is_none() {
            self.verdicts[number] = Some(why);
            self.rejected += 1;
        }
    }

    /// The proposals that stand, with their numbers.
    fn standing(&self) -> impl Iterator<Item = (usize, Task)> {
        let standing = self.tasks.iter().zip(&self.verdicts).enumerate();
        standing.filter(|(_, (_, verdict))| verdict.is_none()).map(|(number, (task, _))| (number, *task))
    }

    fn check_each(&mut self) {
        let mut started: HashMap<&'p str, usize> = HashMap::new();
        // By what it touches, the first proposal that does.
        let mut moved: HashMap<usize, usize> = HashMap::new();
        let mut resized: HashMap<usize, usize> = HashMap::new();
        let mut stopped: HashMap<usize, usize> = HashMap::new();
        let mut entered: HashMap<usize, usize> = HashMap::new();
        // Nodes can be moved to by proposals before the one that starts them.
        for (number, proposal) in self.proposals.iter().enumerate() {
            if let Change::StartNode { flavor, name } = &proposal.change {
                match self.check_start(flavor, name, &started) {
                    Ok(task) => {
                        let Task::Start { node, .. } = task else { continue };
                        started.insert(name, node);
                        self.tasks[number] = task;
                    }
                    Err(why) => self.reject(number, why),
                }
            }
        }
        let mut moves = 0;
        for (number, proposal) in self.proposals.iter().enumerate() {
            let contradicts = |first: usize| format!("it contradicts proposal {}", first + 1);
            let result = match &proposal.change {
                Change::StartNode { .. } => continue,
                Change::Migrate { capsule, to } => {
                    self.check_move(capsule, to, &started).and_then(|(capsule, from, to)| {
                        if let Some(first) = moved.get(&capsule).or(stopped.get(&to)) {
                            return Err(contradicts(*first));
                        }
                        if moves == self.limits.moves {
                            return Err(format!(
                                "{moves} moves are the most at a time; the next run may do it"
                            ));
                        }
                        moves += 1;
                        moved.insert(capsule, number);
                        entered.entry(to).or_insert(number);
                        Ok(Task::Move { capsule, from, to })
                    })
                }
                Change::StopNode { node } => self.check_stop(node).and_then(|node| {
                    if let Some(first) = stopped.get(&node).or(entered.get(&node)) {
                        return Err(contradicts(*first));
                    }
                    stopped.insert(node, number);
                    Ok(Task::Stop { node })
                }),
                Change::Resize { capsule, memory_kib, cpu_cap, weight } => self
                    .check_resize(capsule, *memory_kib, *cpu_cap, *weight)
                    .and_then(|(capsule, task)| match resized.insert(capsule, number) {
                        Some(first) => Err(contradicts(first)),
                        None => Ok(task),
                    }),
            };
            match result {
                Ok(task) => self.tasks[number] = task,
                Err(why) => self.reject(number, why),
            }
        }
    }

    fn find_capsule(&self, name: &str) -> Result<usize, String> {
        self.index.capsule(name).map_err(|not_found| match not_found {
            NotFound::None => format!("there is no capsule {name}"),
            NotFound::Several => format!("several capsules are named {name}: say its id"),
        })
    }

    fn check_move(
        &self,
        capsule: &str,
        to: &str,
        started: &HashMap<&str, usize>,
    ) -> Result<(usize, usize, usize), String> {
        let number = self.find_capsule(capsule)?;
        let to_node = self.index.node(to).or_else(|| started.get(to).copied());
        let to_node = to_node.ok_or_else(|| format!("there is no node {to}"))?;
        let from = self.index.node_of(number);
        let capsule = &self.index.view.capsules[number];
        if from == to_node {
            return Err(format!("capsule {} is on node {to} already", capsule.name));
        }
        self.limits.may_move(self.index, number)?;
        if let Some(why) = &self.room.nodes()[to_node].closed {
            return Err(format!("node {to} takes nothing: {why}"));
        }
        Ok((number, from, to_node))
    }

    fn check_start(
        &mut self,
        flavor: &str,
        name: &str,
        started: &HashMap<&str, usize>,
    ) -> Result<Task, String> {
        let Some(known) = self.index.flavor(flavor) else {
            let all: Vec<_> = self.index.view.flavors.iter().map(|flavor| flavor.name.as_str()).collect();
            return Err(format!("there is no flavor {flavor}; there are {}", all.join(", ")));
        };
        if name.is_empty() {
            return Err("the node to be started has no name".into());
        }
        if self.index.node(name).is_some() || started.contains_key(name) {
            return Err(format!("there is a node {name} already"));
        }
        let (nodes, most) = (self.room.nodes().len(), self.limits.nodes);
        if nodes >= most {
            return Err(format!("the cluster has {nodes} nodes then and may have {most}"));
        }
        let node = self.room.start(name.to_owned(), known);
        Ok(Task::Start { node, price: known.price_micros })
    }

    fn check_stop(&self, name: &str) -> Result<usize, String> {
        let number = self.index.node(name).ok_or_else(|| format!("there is no node {name}"))?;
        self.limits.may_stop(self.index, number)?;
        Ok(number)
    }

    fn check_resize(
        &self,
        capsule: &str,
        memory_kib: Option<u64>,
        cpu_cap: Option<u16>,
        weight: Option<u16>,
    ) -> Result<(usize, Task), String> {
        let number = self.find_capsule(capsule)?;
        let capsule = &self.index.view.capsules[number];
        let name = &capsule.name;
        if capsule.state != State::Running {
            return Err(format!("capsule {name} does not run: only what runs can be resized"));
        }
        if weight == Some(0) {
            return Err(format!("a weight of 0 would stop capsule {name}"));
        }
        let same = memory_kib.is_none_or(|memory| memory == capsule.memory_kib)
            && cpu_cap.is_none_or(|cap| cap == capsule.cpu_cap)
            && weight.is_none_or(|weight| weight == capsule.weight);
        if same {
            return Err(format!("capsule {name} has that already"));
        }
        let task = match memory_kib {
            Some(0) => return Err(format!("capsule {name} cannot live without memory")),
            Some(memory) if memory > capsule.max_memory_kib => {
                let (memory, most) = (memory.div_ceil(1024), capsule.max_memory_kib >> 10);
                return Err(format!("capsule {name} cannot have {memory} MiB: it was started with {most}"));
            }
            Some(memory_kib) if memory_kib > capsule.memory_kib => Task::Grow { capsule: number, memory_kib },
            Some(memory_kib) if memory_kib < capsule.memory_kib => {
                Task::Shrink { capsule: number, memory_kib }
            }
            _ => Task::Tune,
        };
        Ok((number, task))
    }

    /// Rejects what gains too little of what stands.
    fn check_worth(&mut self) {
        let mut leaving: HashMap<usize, usize> = HashMap::new();
        let mut coming: HashMap<usize, usize> = HashMap::new();
        let mut stops = vec![false; self.room.nodes().len()];
        let mut starts = HashSet::new();
        let mut ready = self.index.view.nodes.iter().filter(|node| node.state == NodeState::Ready).count();
        for (_, task) in self.standing() {
            match task {
                Task::Move { from, to, .. } => {
                    *leaving.entry(from).or_default() += 1;
                    *coming.entry(to).or_default() += 1;
                }
                Task::Stop { node } => stops[node] = true,
                Task::Start { node, .. } => drop(starts.insert(node)),
                _ => (),
            }
        }
        ready += starts.len();
        let wanted: HashSet<usize> = self
            .tasks
            .iter()
            .filter_map(|task| match task {
                Task::Move { to, .. } => Some(*to),
                _ => None,
            })
            .collect();
        let mut rejections = Vec::new();
        for (number, task) in self.standing() {
            match task {
                Task::Stop { node } => {
                    let stay = self.index.on_node(node).len() - leaving.get(&node).copied().unwrap_or(0);
                    let name = &self.room.nodes()[node].name;
                    if stay > 0 {
                        stops[node] = false;
                        rejections.push((number, still_has(name, stay)));
                    } else if ready <= self.limits.least_nodes {
                        stops[node] = false;
                        let least = count(self.limits.least_nodes, "node");
                        rejections.push((number, format!("the cluster keeps at least {least} ready")));
                    } else {
                        ready -= 1;
                    }
                }
                Task::Start { node, .. } if wanted.contains(&node) && !coming.contains_key(&node) => {
                    rejections.push((number, "nothing would come to it after all".into()));
                }
                _ => (),
            }
        }
        rejections.extend(self.replacements_without_gain());
        let mut room = self.room.clone();
        for (number, task) in self.standing() {
            let Task::Move { capsule, from, to } = task else { continue };
            if to >= self.index.view.nodes.len() && !starts.contains(&to) {
                let why = format!("node {} is not started after all", room.nodes()[to].name);
                rejections.push((number, why));
                continue;
            }
            let leaves = stops[from] || room.nodes()[from].closed.is_some();
            if !leaves && !self.evens_out(&room, capsule, from, to) {
                let why = format!(
                    "it gains too little: node {} stays, and is not {} % fuller than node {} would be",
                    room.nodes()[from].name,
                    self.limits.gain_percent,
                    room.nodes()[to].name
                );
                rejections.push((number, why));
                continue;
            }
            room.put(capsule, to);
            room.lift(capsule, from);
        }
        for (number, why) in rejections {
            self.reject(number, why);
        }
    }

    /// Whether a move between nodes that stay makes things better enough.
    fn evens_out(&self, room: &Room<'a>, capsule: usize, from: usize, to: usize) -> bool {
        let needs = room.needs(capsule);
        if room.near(needs, to).0 > room.near_others(needs, from) {
            return true;
        }
        let (cpu, memory) = room.share_with(&Default::default(), from);
        let (cpu_then, memory_then) = room.share_with(needs, to);
        let gain = cpu.max(memory) - cpu_then.max(memory_then);
        gain * 100.0 >= self.limits.gain_percent as f64
    }

    /// Nodes that would be started and stopped with next to no saving, and nothing larger.
    fn replacements_without_gain(&self) -> Vec<(usize, String)> {
        let (mut started, mut stopped, mut cpu, mut memory) = (0, 0, 0, 0);
        let mut numbers = Vec::new();
        for (number, task) in self.standing() {
            match task {
                Task::Start { node, price } => {
                    let capacity = self.room.nodes()[node].capacity;
                    (started, cpu, memory) = (
                        started + price,
                        cpu + capacity.cpu_milli as i64,
                        memory + capacity.memory_kib as i64,
                    );
                    numbers.push(number);
                }
                Task::Stop { node } if !self.index.view.nodes[node].cordoned => {
                    let node = &self.index.view.nodes[node];
                    stopped += node.price_micros.unwrap_or(0);
                    (cpu, memory) =
                        (cpu - node.capacity.cpu_milli as i64, memory - node.capacity.memory_kib as i64);
                    numbers.push(number);
                }
                _ => (),
            }
        }
        let larger = cpu > 0 || memory > 0;
        let saves = stopped.saturating_sub(started) * 100 >= stopped * self.limits.saving_percent
            && stopped > started;
        if started == 0 || stopped == 0 || larger || saves {
            return Vec::new();
        }
        let why = format!(
            "it gains too little: nodes for {} an hour would replace nodes for {}, and would not be larger",
            money(started as i64),
            money(stopped as i64)
        );
        numbers.into_iter().map(|number| (number, why.clone())).collect()
    }

    /// Puts what stands into steps, and rejects what there is never room for.
    fn order(&mut self) -> Ordered {
        let mut room = self.room.clone();
        let fresh = self.index.view.nodes.len();
        let (mut first, mut moves, mut grows, mut stops) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut at: HashMap<usize, usize> = HashMap::new();
        for (number, task) in self.standing() {
            match task {
                Task::Start { .. } | Task::Tune => first.push(number),
                Task::Shrink { capsule, memory_kib } => {
                    room.resize(capsule, self.index.node_of(capsule), memory_kib);
                    first.push(number);
                }
                Task::Move { capsule, from, to } => moves.push((number, capsule, from, to)),
                Task::Grow { capsule, memory_kib } => grows.push((number, capsule, memory_kib)),
                Task::Stop { node } => stops.push((number, node)),
                Task::None => (),
            }
        }
        // Shrinking takes effect once its step is over; no move may rely on it within.
        let mut hold_back = first.iter().any(|&number| matches!(self.tasks[number], Task::Shrink { .. }));
        let starting = first.iter().any(|&number| matches!(self.tasks[number], Task::Start { .. }));
        let mut steps = Vec::new();
        let mut rejections = Vec::new();
        loop {
            let mut step = std::mem::take(&mut first);
            stops.retain(|&(number, node)| {
                // Nothing is stopped before what is to replace it is there.
                let empty = room.nodes()[node].capsules == 0 && !(starting && steps.is_empty());
                if empty {
                    step.push(number);
                }
                !empty
            });
            let mut arrivals = Vec::new();
            let mut busy: HashMap<usize, usize> = HashMap::new();
            if !std::mem::take(&mut hold_back) {
                moves.retain(|&(number, capsule, from, to)| {
                    let few =
                        |node| busy.get(&node).is_none_or(|&n| n < self.limits.moves_at_once_per_node.max(1));
                    let goes = arrivals.len() < self.limits.moves_at_once.max(1)
                        && few(from)
                        && few(to)
                        && (to < fresh || !steps.is_empty())
                        && room.can(room.needs(capsule), to, self.limits.cpu_percent);
                    if goes {
                        room.put(capsule, to);
                        *busy.entry(from).or_default() += 1;
                        *busy.entry(to).or_default() += 1;
                        arrivals.push((capsule, from, to));
                        step.push(number);
                    }
                    !goes
                });
            }
            for (capsule, from, to) in arrivals {
                room.lift(capsule, from);
                at.insert(capsule, to);
            }
            if step.is_empty() {
                break;
            }
            steps.push(step);
        }
        for (number, capsule, _, to) in moves {
            // What fits now waits for a node whose start was just rejected: the next round says so.
            if let Err(why) = room.fits(room.needs(capsule), to, self.limits.cpu_percent) {
                let name = &room.nodes()[to].name;
                rejections.push((number, format!("node {name} has no room for it at any step: {why}")));
            }
        }
        let mut ordered = Ordered { steps, ..Ordered::default() };
        for (number, capsule, memory_kib) in grows {
            let here = at.get(&capsule).copied().unwrap_or_else(|| self.index.node_of(capsule));
            let more_kib = memory_kib - room.needs(capsule).memory_kib;
            let free_kib = room.nodes()[here].free_memory_kib;
            if more_kib <= free_kib {
                room.resize(capsule, here, memory_kib);
                ordered.grows.push(number);
                continue;
            }
            // Nothing is moved twice.
            let elsewhere = match at.contains_key(&capsule) {
                true => None,
                false => self.roomier(&room, capsule, memory_kib, ordered.moves.len()),
            };
            let name = &room.nodes()[here].name;
            match elsewhere {
                Some(to) => {
                    let change = Change::Migrate {
                        capsule: self.index.handle(capsule).to_owned(),
                        to: room.nodes()[to].name.clone(),
                    };
                    let reason = format!("{OWN_MOVE}{name}: {}", self.proposals[number].reason);
                    ordered.moves.push(Proposal { change, reason, line: self.proposals[number].line });
                    ordered.grows.push(number);
                    room.put(capsule, to);
                    room.lift(capsule, here);
                    room.resize(capsule, to, memory_kib);
                }
                None => {
                    let why = Refusal::Memory { needed_kib: more_kib, free_kib };
                    rejections
                        .push((number, format!("node {name} cannot give it, and it cannot move: {why}")));
                }
            }
        }
        for (number, node) in stops {
            let stay = room.nodes()[node].capsules;
            rejections.push((number, still_has(&room.nodes()[node].name, stay)));
        }
        for (number, why) in rejections {
            self.reject(number, why);
        }
        ordered
    }

    /// Where a capsule goes that is to get more memory than its node has, if it may move and there
    /// is such a node; beside `others` moves of the kind.
    fn roomier(&self, room: &Room<'a>, capsule: usize, memory_kib: u64, others: usize) -> Option<usize> {
        self.limits.may_move(self.index, capsule).ok()?;
        let mut stops = HashSet::new();
        let mut moves = others;
        for (_, task) in self.standing() {
            match task {
                Task::Stop { node } => drop(stops.insert(node)),
                Task::Move { .. } => moves += 1,
                _ => (),
            }
        }
        if moves >= self.limits.moves {
            return None;
        }
        let here = self.index.node_of(capsule);
        let mut needs = room.needs(capsule).clone();
        needs.memory_kib = memory_kib;
        let open = |node: usize| node != here && !stops.contains(&node);
        placement::best(room, &needs, Aim::Spread, self.limits.cpu_percent, open)
    }

    fn saving(&self) -> i64 {
        self.standing()
            .map(|(_, task)| match task {
                Task::Start { price, .. } => -(price as i64),
                Task::Stop { node } => self.index.view.nodes[node].price_micros.unwrap_or(0) as i64,
                _ => 0,
            })
            .sum()
    }
}

fn still_has(node: &str, capsules: usize) -> String {
    format!("node {node} would still have {}", count(capsules, "capsule"))
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Millionths as people read money: at least two decimals, and no needless ones.
pub fn money(micros: i64) -> String {
    let (sign, micros) = (if micros < 0 { "-" } else { "" }, micros.unsigned_abs());
    let decimals = format!("{:06}", micros % 1_000_000);
    let kept = decimals.trim_end_matches('0').len().max(2);
    format!("{sign}{}.{}", micros / 1_000_000, &decimals[..kept])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tests::{capsule, flavor, node, view};
    use crate::view::{Selector, View, held_memory_kib};
    use proptest::prelude::*;

    fn proposal(change: Change) -> Proposal {
        Proposal { change, reason: "a test".into(), line: None }
    }

    fn migrate(capsule: &str, to: &str) -> Proposal {
        proposal(Change::Migrate { capsule: capsule.into(), to: to.into() })
    }

    fn start(flavor: &str, name: &str) -> Proposal {
        proposal(Change::StartNode { flavor: flavor.into(), name: name.into() })
    }

    fn stop(node: &str) -> Proposal {
        proposal(Change::StopNode { node: node.into() })
    }

    fn memory(capsule: &str, memory_mib: u64) -> Proposal {
        let memory_kib = Some(memory_mib << 10);
        proposal(Change::Resize { capsule: capsule.into(), memory_kib, cpu_cap: None, weight: None })
    }

    fn planned(view: &View, proposals: &[Proposal]) -> Plan {
        plan(&Index::new(view).unwrap(), proposals, &Limits::default())
    }

    /// The reasons of rejections, by number.
    fn why(plan: &Plan) -> Vec<(usize, &str)> {
        plan.rejected.iter().map(|rejected| (rejected.number, rejected.why.as_str())).collect()
    }

    /// The steps, as text.
    fn steps(plan: &Plan) -> Vec<String> {
        let word = |proposal: &Proposal| match &proposal.change {
            Change::Migrate { capsule, to } => format!("{capsule}>{to}"),
            Change::StartNode { name, .. } => format!("+{name}"),
            Change::StopNode { node } => format!("-{node}"),
            Change::Resize { capsule, .. } => format!("={capsule}"),
        };
        plan.steps.iter().map(|s| s.proposals.iter().map(word).collect::<Vec<_>>().join(" ")).collect()
    }

    /// Two nodes of 4 GiB, each with two capsules of 1 GiB and little to do.
    fn half_idle() -> View {
        let on = |name, node| capsule(name, node, 1 << 10, 100);
        view(vec![node("n1"), node("n2")], vec![on("a", "n1"), on("b", "n1"), on("c", "n2"), on("d", "n2")])
    }

    #[test]
    fn a_node_is_emptied_and_stopped_and_its_price_saved() {
        let plan = planned(&half_idle(), &[migrate("a", "n2"), migrate("b", "n2"), stop("n1")]);
        assert_eq!(why(&plan), []);
        assert_eq!(steps(&plan), ["a>n2 b>n2", "-n1"]);
        assert_eq!(plan.saving_micros, 40_000);
    }

    #[test]
    fn nodes_are_started_before_anything_comes_to_them() {
        let proposals = [
            migrate("a", "new"),
            migrate("b", "new"),
            start("medium", "new"),
            stop("n1"),
            migrate("c", "new"),
        ];
        let mut view = half_idle();
        view.capsules.truncate(2);
        let plan = planned(&view, &proposals);
        assert_eq!(why(&plan), [(5, "there is no capsule c")]);
        assert_eq!(steps(&plan), ["+new", "a>new b>new", "-n1"]);
        assert_eq!(plan.saving_micros, 20_000);
    }

    #[test]
    fn what_cannot_be_is_rejected_with_the_reason() {
        let mut view = half_idle();
        view.capsules[1].state = State::Paused;
        view.capsules[2].moved_ms = Some(view.time_ms - 60_000);
        view.nodes.extend([node("n3"), node("n4"), node("n5")]);
        view.nodes[2].cordoned = true;
        view.nodes[3].state = NodeState::Suspect;
        view.nodes[4].started_ms = view.time_ms - 60_000;
        let mut twin = capsule("a", "n4", 16, 0);
        twin.id = "f".repeat(32);
        view.capsules.push(twin);
        for (bad, reason) in [
            (migrate("x", "n2"), "there is no capsule x"),
            (migrate("a", "n2"), "several capsules are named a: say its id"),
            (migrate(&"f".repeat(32), "n2"), "capsule a is on node n4, which is suspect"),
            (migrate("d", "x"), "there is no node x"),
            (migrate("d", "n2"), "capsule d is on node n2 already"),
            (migrate("b", "n2"), "capsule b does not run: only what runs can move"),
            (migrate("c", "n1"), "capsule c was moved 60 s ago and stays for 600 s"),
            (migrate("d", "n3"), "node n3 takes nothing: it is cordoned"),
            (migrate("d", "n4"), "node n4 takes nothing: it is suspect"),
            (start("huge", "new"), "there is no flavor huge; there are small, medium, large"),
            (start("small", "n1"), "there is a node n1 already"),
            (start("small", ""), "the node to be started has no name"),
            (stop("x"), "there is no node x"),
            (stop("n4"), "node n4 is suspect: nobody knows what runs there"),
            (stop("n5"), "node n5 was started 60 s ago and runs for 600 s at least"),
            (stop("n2"), "node n2 would still have 2 capsules"),
            (memory("x", 1), "there is no capsule x"),
            (memory("d", 0), "capsule d cannot live without memory"),
            (memory("d", 2048), "capsule d cannot have 2048 MiB: it was started with 1024"),
            (memory("d", 1024), "capsule d has that already"),
            (memory("b", 512), "capsule b does not run: only what runs can be resized"),
        ] {
            let plan = planned(&view, std::slice::from_ref(&bad));
            assert_eq!(why(&plan), [(1, reason)]);
            assert_eq!(plan.steps, []);
            assert_eq!(plan.saving_micros, 0);
        }
    }

    #[test]
    fn of_contradictions_the_first_stands() {
        let mut view = half_idle();
        view.nodes.push(node("n3"));
        let plan = planned(
            &view,
            &[
                migrate("a", "n2"),
                migrate("a", "n3"),
                migrate("b", "n2"),
                stop("n1"),
                stop("n1"),
                migrate("c", "n1"),
                stop("n2"),
                start("small", "new"),
                start("large", "new"),
                memory("d", 512),
                memory("d", 256),
            ],
        );
        assert_eq!(
            why(&plan),
            [
                (2, "it contradicts proposal 1"),
                (5, "it contradicts proposal 4"),
                (6, "it contradicts proposal 4"),
                (7, "it contradicts proposal 1"),
                (9, "there is a node new already"),
                (11, "it contradicts proposal 10"),
            ]
        );
        assert_eq!(steps(&plan), ["+new =d", "a>n2 b>n2", "-n1"]);
    }

    #[test]
    fn moves_for_a_stop_that_fails_are_not_made_either() {
        let mut view = half_idle();
        view.capsules[1].memory_kib = 2662 << 10;
        view.nodes[0].free_memory_kib = 410 << 10;
        view.capsules[2].memory_kib = 1536 << 10;
        view.nodes[1].free_memory_kib = 1536 << 10;
        let plan = planned(&view, &[migrate("a", "n2"), migrate("b", "n2"), stop("n1")]);
        let why = why(&plan);
        let no_room =
            "node n2 has no room for it at any step: it has 512 MiB of memory left of the 2662 needed";
        assert_eq!(why[1], (2, no_room));
        assert!(why[0].1.contains("gains too little"), "{why:?}");
        assert_eq!(why[2], (3, "node n1 would still have 1 capsule"));
        assert_eq!(plan.steps, []);
    }

    #[test]
    fn evening_out_must_gain_more_than_the_threshold_so_nothing_moves_back() {
        let load = |name: &str, node: &str, cpu| capsule(name, node, 16, cpu);
        let before = view(
            vec![node("n1"), node("n2")],
            vec![load("a", "n1", 1500), load("b", "n1", 1500), load("c", "n2", 1000)],
        );
        let plan = planned(&before, &[migrate("a", "n2")]);
        assert_eq!(steps(&plan), ["a>n2"]);
        let mut after = before;
        after.capsules[0].node = "n2".into();
        let plan = planned(&after, &[migrate("a", "n1")]);
        assert_eq!(
            why(&plan),
            [(1, "it gains too little: node n2 stays, and is not 5 % fuller than node n1 would be")]
        );
    }

    #[test]
    fn a_replacement_must_be_cheaper_or_larger() {
        let proposals = |flavor| [start(flavor, "new"), migrate("a", "new"), migrate("b", "new"), stop("n1")];
        let mut view = half_idle();
        view.flavors.push(flavor("same", 4, 4096, 39_000));
        view.flavors.push(flavor("larger", 8, 8192, 80_000));
        let plan = planned(&view, &proposals("same"));
        assert_eq!(plan.steps, []);
        assert_eq!(plan.rejected.len(), 4);
        let reason = "nodes for 0.039 an hour would replace nodes for 0.04, and would not be larger";
        assert!(why(&plan)[0].1.contains(reason), "{:?}", why(&plan));
        assert_eq!(planned(&view, &proposals("medium")).saving_micros, 20_000);
        assert_eq!(planned(&view, &proposals("larger")).saving_micros, -40_000);
        // The operator wants a cordoned node gone, whatever it costs.
        view.nodes[0].cordoned = true;
        assert_eq!(planned(&view, &proposals("same")).saving_micros, 1_000);
    }

    #[test]
    fn steps_keep_to_the_limits_on_moves() {
        let capsules: Vec<_> = (0..10).map(|number| capsule(&format!("c{number}"), "n1", 16, 10)).collect();
        let view = view(vec![node("n1"), node("n2"), node("n3")], capsules);
        let mut proposals: Vec<_> = (0..10)
            .map(|number| migrate(&format!("c{number}"), if number < 5 { "n2" } else { "n3" }))
            .collect();
        proposals.push(stop("n1"));
        let limits = Limits { moves_at_once: 3, moves_at_once_per_node: 2, ..Limits::default() };
        let index = Index::new(&view).unwrap();
        assert_eq!(plan(&index, &proposals, &limits).steps.len(), 6);
        let limits = Limits { moves: 9, ..limits };
        let plan = plan(&index, &proposals, &limits);
        assert_eq!(plan.steps, []);
        assert_eq!(why(&plan)[9], (10, "9 moves are the most at a time; the next run may do it"));
    }

    #[test]
    fn the_last_node_stays_unless_it_is_replaced_and_no_node_comes_above_the_limit() {
        let view = view(vec![node("n1")], vec![]);
        let plan_with = |proposals: &[Proposal], nodes| {
            plan(&Index::new(&view).unwrap(), proposals, &Limits { nodes, ..Limits::default() })
        };
        assert_eq!(why(&plan_with(&[stop("n1")], 9)), [(1, "the cluster keeps at least 1 node ready")]);
        assert_eq!(steps(&plan_with(&[stop("n1"), start("small", "x")], 9)), ["+x", "-n1"]);
        let plan = plan_with(&[start("small", "x"), start("small", "y")], 2);
        assert_eq!(why(&plan), [(2, "the cluster has 2 nodes then and may have 2")]);
    }

    #[test]
    fn a_full_pair_cannot_swap_but_can_by_way_of_a_third() {
        let big = |name: &str, node: &str| {
            let mut big = capsule(name, node, 3 << 10, 100);
            big.affinity.near = vec![Selector { key: name.into(), value: None }];
            big.labels.insert(if name == "a" { "b" } else { "a" }.into(), String::new());
            big
        };
        let mut third = node("n3");
        third.cordoned = true;
        let view = view(vec![node("n1"), node("n2"), third], vec![big("a", "n1"), big("b", "n2")]);
        let plan = planned(&view, &[migrate("a", "n2"), migrate("b", "n1")]);
        assert!(plan.steps.is_empty(), "{plan:?}");
        assert!(why(&plan).iter().all(|(_, why)| why.contains("no room for it at any step")), "{plan:?}");
    }

    #[test]
    fn memory_is_given_once_it_is_there() {
        let mut view = half_idle();
        view.capsules[0].memory_kib = 512 << 10;
        view.capsules[1].memory_kib = 3072 << 10;
        view.capsules[1].max_memory_kib = 3072 << 10;
        view.nodes[0].free_memory_kib = 512 << 10;
        let grow = memory("a", 1024);
        assert_eq!(steps(&planned(&view, &[grow.clone(), memory("b", 1024)])), ["=b", "=a"]);
        view.nodes[0].free_memory_kib = 0;
        view.nodes[1].cordoned = true;
        let plan = planned(&view, &[grow]);
        assert_eq!(
            why(&plan),
            [(
                1,
                "node n1 cannot give it, and it cannot move: it has 0 MiB of memory left of the 512 needed"
            )]
        );
    }

    #[test]
    fn a_capsule_moves_to_a_node_that_has_the_memory_that_it_is_to_get() {
        let mut view = half_idle();
        view.capsules[0].max_memory_kib = 3 << 20;
        view.nodes[0].free_memory_kib = 0;
        view.nodes[1].free_memory_kib = 3 << 20;
        let plan = planned(&view, &[memory("a", 3072)]);
        assert_eq!((steps(&plan), why(&plan)), (vec!["a>n2".to_owned(), "=a".to_owned()], vec![]));
        assert_eq!(plan.steps[0].proposals[0].reason, "more memory than there is on node n1: a test");
        // Not to one that is about to go, nor twice, nor before its time.
        let full = |plan: &Plan| why(plan).iter().any(|(_, why)| why.contains("and it cannot move"));
        view.nodes.push(node("n3"));
        view.nodes[1].free_memory_kib = 0;
        assert_eq!(steps(&planned(&view, &[memory("a", 3072)])), ["a>n3", "=a"]);
        assert!(full(&planned(&view, &[memory("a", 3072), stop("n3")])));
        view.capsules[0].moved_ms = Some(view.time_ms);
        assert!(full(&planned(&view, &[memory("a", 3072)])));
    }

    #[test]
    fn proposals_that_all_hang_on_each_other_come_to_an_end() {
        // Each stop needs the next node to stay, so one falls a round.
        let count = 200;
        let nodes = (0..count).map(|number| node(&format!("n{number}"))).collect();
        let capsules = (0..count)
            .map(|number| capsule(&format!("c{number}"), &format!("n{number}"), 3 << 10, 0))
            .collect();
        let view = view(nodes, capsules);
        let proposals: Vec<_> = (0..count)
            .map(|number| migrate(&format!("c{number}"), &format!("n{}", (number + 1) % count)))
            .collect();
        let plan = planned(&view, &proposals);
        assert_eq!(plan.steps, []);
        assert_eq!(plan.rejected.len(), count);
    }

    #[test]
    fn money_is_written_with_the_decimals_that_it_has() {
        for (micros, text) in
            [(0, "0.00"), (40_000, "0.04"), (39_500, "0.0395"), (-1, "-0.000001"), (1_500_000, "1.50")]
        {
            assert_eq!(money(micros), text);
        }
    }

    prop_compose! {
        fn any_case()(
            nodes in prop::collection::vec((1u32..8, 1u64..32, 0u8..8), 1..6),
            capsules in prop::collection::vec((0usize..6, 1u64..2048, 0u64..1500, 0u8..4), 0..24),
            changes in prop::collection::vec((0u8..8, 0usize..26, 0usize..8, 1u64..2048), 0..60),
        ) -> (View, Vec<Proposal>) {
            let count = nodes.len();
            let mut nodes: Vec<_> = nodes.into_iter().enumerate().map(|(number, (vcpus, size, kind))| {
                let mut node = node(&format!("n{number}"));
                node.capacity = flavor("f", vcpus, size * 256, 1).capacity;
                node.free_memory_kib = node.capacity.memory_kib;
                node.cordoned = kind == 0;
                if kind == 1 { node.state = NodeState::Lost; }
                node
            }).collect();
            let mut list = Vec::new();
            for (number, (on, memory, cpu, kind)) in capsules.into_iter().enumerate() {
                let node = &mut nodes[on % count];
                // Nodes of a view hold what they can.
                if node.free_memory_kib < memory << 10 { continue; }
                node.free_memory_kib -= memory << 10;
                let mut capsule = capsule(&format!("c{number}"), &node.name, memory, cpu);
                if kind == 0 { capsule.state = State::Paused; }
                if kind == 1 {
                    capsule.labels.insert("app".into(), "x".into());
                    capsule.affinity.apart = vec![Selector { key: "app".into(), value: None }];
                }
                list.push(capsule);
            }
            let proposals = changes.into_iter().map(|(kind, capsule, node, size)| match kind {
                0..=4 => migrate(&format!("c{capsule}"), &format!("n{node}")),
                5 => start(["small", "medium", "large"][capsule % 3], &format!("n{node}")),
                6 => stop(&format!("n{node}")),
                _ => memory(&format!("c{capsule}"), size),
            }).collect();
            let mut view = view(vec![], vec![]);
            view.nodes = nodes;
            view.capsules = list;
            (view, proposals)
        }
    }

    /// Executes a plan as plainly as can be, and says what a node ever held too much of.
    fn execute(view: &View, plan: &Plan) -> Result<(), String> {
        let mut capacity: HashMap<&str, u64> =
            view.nodes.iter().map(|node| (node.name.as_str(), node.capacity.memory_kib)).collect();
        let mut place: HashMap<&str, (&str, u64)> = view
            .capsules
            .iter()
            .map(|capsule| (capsule.name.as_str(), (capsule.node.as_str(), held_memory_kib(capsule))))
            .collect();
        for (number, step) in plan.steps.iter().enumerate() {
            // Before anything of the step is over: what grows and comes counts, what goes too.
            let mut held: HashMap<&str, u64> = HashMap::new();
            for (node, memory) in place.values() {
                *held.entry(node).or_default() += memory;
            }
            let existing = capacity.clone();
            for proposal in &step.proposals {
                match &proposal.change {
                    Change::Migrate { capsule, to } => {
                        existing.get(to.as_str()).ok_or(format!("step {number}: {to} is not there"))?;
                        *held.entry(to).or_default() += place[capsule.as_str()].1;
                    }
                    Change::Resize { capsule, memory_kib, .. } => {
                        let (node, had) = place[capsule.as_str()];
                        *held.entry(node).or_default() += memory_kib.unwrap_or(had).saturating_sub(had);
                    }
                    Change::StopNode { node } => {
                        if held.get(node.as_str()).is_some_and(|held| *held > 0) {
                            return Err(format!("step {number}: {node} stops and is not empty"));
                        }
                        capacity.remove(node.as_str());
                    }
                    Change::StartNode { flavor, name } => {
                        let flavor = view.flavors.iter().find(|f| f.name == *flavor).unwrap();
                        capacity.insert(name, flavor.capacity.memory_kib);
                    }
                }
            }
            for (node, held) in held.iter().filter(|(_, held)| **held > 0) {
                let most = existing.get(node).ok_or(format!("step {number}: {node} is not there"))?;
                if held > most {
                    return Err(format!("step {number}: {node} holds {held} of {most}"));
                }
            }
            for proposal in &step.proposals {
                match &proposal.change {
                    Change::Migrate { capsule, to } => place.get_mut(capsule.as_str()).unwrap().0 = to,
                    Change::Resize { capsule, memory_kib: Some(memory), .. } => {
                        place.get_mut(capsule.as_str()).unwrap().1 = *memory;
                    }
                    _ => (),
                }
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn executing_a_plan_never_overfills_a_node_at_any_step(
            (view, proposals) in any_case(), at_once in 1usize..8, gain in 0u64..20,
        ) {
            let limits = Limits {
                moves_at_once: at_once, moves_at_once_per_node: 2, gain_percent: gain, ..Limits::default()
            };
            let index = Index::new(&view).unwrap();
            let plan = plan(&index, &proposals, &limits);
            prop_assert_eq!(execute(&view, &plan), Ok(()));
            // Every proposal is in a step or rejected, once.
            let stepped = plan.steps.iter().flat_map(|step| &step.proposals);
            let stepped = stepped.filter(|proposal| !proposal.reason.starts_with(OWN_MOVE)).count();
            prop_assert_eq!(stepped + plan.rejected.len(), proposals.len());
            for step in &plan.steps {
                prop_assert!(!step.proposals.is_empty());
                let moves = step.proposals.iter().filter(|p| matches!(p.change, Change::Migrate { .. })).count();
                prop_assert!(moves <= at_once);
            }
        }
    }
}
