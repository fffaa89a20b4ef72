//! A cluster that is only simulated: real policies and real plans over a day of made-up load.
//!
//! What is real: the view, the script, the plan, the ledger. What is not: nodes and capsules. A
//! plan's steps take as long as they would (a start a minute, a move as long as its memory needs),
//! and the next decision waits for them. The policy sees what a controller would see: means of
//! past use, and of a capsule on an overloaded node only what it got, not what it wanted.
//!
//! The cost is compared with two that nobody can have, because they know the load of each moment
//! beforehand and move everything at once for nothing: all capsules packed anew in each interval
//! by best-fit decreasing onto the cheapest flavors; and their sums, as if they were liquid.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use fcap_api::State;
use fcap_api::cluster::{Bill, Change, Plan};

use crate::ledger::{Cause, Interval, bill};
use crate::plan::Limits;
use crate::policy::{Budget, PolicyError, Script, test};
use crate::view::{Affinity, CapsuleView, Flavor, Index, NodeState, NodeView, Use, View, Windows};

mod load;
mod pack;

pub use load::Load;

/// How long a node takes from being asked for to being ready.
const START_MS: u64 = 60_000;
/// What a move takes beside copying.
const MOVE_MS: u64 = 1_000;
/// Memory that a move copies in a millisecond, in KiB.
const MOVE_KIB_A_MS: u64 = 50;
const MINUTE_MS: u64 = 60_000;
/// A Monday, 00:00.
const BEGIN_MS: u64 = 4 * 24 * 3_600_000;

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Simulation {
    /// Nodes at the beginning, all of the last flavor.
    pub nodes: usize,
    /// Capsules, spread evenly over them at the beginning.
    pub capsules: usize,
    /// How long.
    pub hours: u64,
    /// Another number, another day.
    pub seed: u64,
    /// Flavors.
    pub flavors: Vec<Flavor>,
    /// How often the policy is asked.
    pub interval_minutes: u64,
    /// The policy.
    pub script: Script,
    /// Limits on plans.
    pub limits: Limits,
    /// Limits on the script.
    pub budget: Budget,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The longest time from a view to its plan.
    pub decide: Duration,
    /// How many decisions there were.
    pub decisions: u64,
    /// What the nodes have cost.
    pub bill: Bill,
    /// What they would have cost packed anew in each interval.
    pub packed_micros: u64,
    /// What capsules would have cost if they were liquid.
    pub liquid_micros: u64,
    /// Moves.
    pub moves: u64,
    /// Moves, per capsule and hour.
    pub moves_per_capsule_hour: f64,
    /// Part of the processor time that capsules wanted and did not get.
    pub unserved: f64,
    /// Proposals that were rejected.
    pub rejected: u64,
    /// Fewest and most nodes.
    pub nodes: (usize, usize),
}

/// How it stands, each simulated hour.
#[derive(Clone, Copy, Debug)]
pub struct Hour {
    /// Hours since the beginning.
    pub hour: u64,
    /// Nodes.
    pub nodes: usize,
    /// Processor time that capsules want.
    pub wanted_milli: u64,
    /// Cost of an hour, now.
    pub per_hour_micros: u64,
    /// Cost of an hour if all were packed anew now.
    pub packed_micros: u64,
    /// Moves since the beginning.
    pub moves: u64,
}

/// Runs a simulation.
///
/// # Errors
/// When the policy gives no answer.
///
/// # Panics
/// When a plan has a node hold more than it can: plans never do.
pub fn run(simulation: &Simulation, mut progress: impl FnMut(&Hour)) -> Result<Outcome, PolicyError> {
    let mut world = World::new(simulation);
    let mut outcome = Outcome {
        decide: Duration::ZERO,
        decisions: 0,
        bill: Bill::default(),
        packed_micros: 0,
        liquid_micros: 0,
        moves: 0,
        moves_per_capsule_hour: 0.0,
        unserved: 0.0,
        rejected: 0,
        nodes: (usize::MAX, 0),
    };
    // In micros times intervals an hour: divided once, at the end.
    let (mut packed, mut liquid) = (0u128, 0u128);
    let intervals = simulation.hours * 60 / simulation.interval_minutes;
    for interval in 0..intervals {
        for _ in 0..simulation.interval_minutes {
            world.minute();
        }
        let wanted = world.wanted_since();
        let (by_bins, by_sum) = pack::cost(&wanted, &simulation.flavors);
        packed += u128::from(by_bins);
        liquid += u128::from(by_sum);
        if world.idle() {
            let view = world.view();
            let begun = Instant::now();
            let index = Index::new(&view).expect("the simulated view is consistent");
            let result = test(&simulation.script, &index, &simulation.limits, &simulation.budget)?;
            outcome.decide = outcome.decide.max(begun.elapsed());
            outcome.decisions += 1;
            outcome.rejected += result.plan.rejected.len() as u64;
            world.take(&result.plan);
        }
        let nodes = world.nodes.len();
        outcome.nodes = (outcome.nodes.0.min(nodes), outcome.nodes.1.max(nodes));
        let per_hour = 60 / simulation.interval_minutes.min(60);
        if (interval + 1).is_multiple_of(per_hour) {
            progress(&Hour {
                hour: (interval + 1) / per_hour,
                nodes,
                wanted_milli: wanted.iter().map(|&(cpu, _)| cpu).sum(),
                per_hour_micros: world.nodes.iter().filter_map(|node| node.price_micros).sum(),
                packed_micros: by_bins,
                moves: world.moves,
            });
        }
    }
    let end_ms = BEGIN_MS + intervals * simulation.interval_minutes * MINUTE_MS;
    outcome.bill = bill(&world.intervals.into_values().flatten().collect::<Vec<_>>(), BEGIN_MS, end_ms);
    let intervals_an_hour = u128::from(60 / simulation.interval_minutes.min(60));
    outcome.packed_micros = (packed / intervals_an_hour) as u64;
    outcome.liquid_micros = (liquid / intervals_an_hour) as u64;
    outcome.moves = world.moves;
    outcome.moves_per_capsule_hour =
        world.moves as f64 / simulation.capsules.max(1) as f64 / simulation.hours.max(1) as f64;
    outcome.unserved = world.unserved / world.wanted.max(1.0);
    Ok(outcome)
}

/// The view that a simulation begins with, after an hour of load.
pub fn first_view(simulation: &Simulation) -> View {
    let mut world = World::new(simulation);
    for _ in 0..60 {
        world.minute();
    }
    world.view()
}

struct World<'a> {
    simulation: &'a Simulation,
    load: Load,
    now_ms: u64,
    nodes: Vec<NodeView>,
    capsules: Vec<CapsuleView>,
    /// Place of each capsule's node.
    on: Vec<usize>,
    /// What each wanted in the minutes since somebody last asked.
    wanted_now: Vec<u64>,
    wanted_minutes: u64,
    history: History,
    /// By name of node; names are not used twice at a time.
    intervals: HashMap<String, Vec<Interval>>,
    /// Steps that are being executed: when each begins and ends.
    steps: std::collections::VecDeque<(u64, u64, Vec<Change>)>,
    begun: bool,
    started: u64,
    moves: u64,
    wanted: f64,
    unserved: f64,
}

impl<'a> World<'a> {
    fn new(simulation: &'a Simulation) -> Self {
        let flavor = simulation.flavors.last().expect("a cluster has flavors");
        let load = Load::new(simulation.capsules, simulation.seed);
        let mut world = Self {
            simulation,
            now_ms: BEGIN_MS,
            nodes: Vec::new(),
            capsules: Vec::new(),
            on: (0..simulation.capsules).map(|number| number % simulation.nodes).collect(),
            wanted_now: vec![0; simulation.capsules],
            wanted_minutes: 0,
            history: History::new(simulation.capsules),
            intervals: HashMap::new(),
            steps: std::collections::VecDeque::new(),
            begun: false,
            started: 0,
            moves: 0,
            wanted: 0.0,
            unserved: 0.0,
            load,
        };
        for _ in 0..simulation.nodes {
            // Long ago, so that they may be stopped.
            world.start(flavor, NodeState::Ready, Cause::Operator);
            if let Some(node) = world.nodes.last_mut() {
                node.started_ms = 0;
            }
        }
        world.capsules = (0..simulation.capsules).map(|number| world.capsule(number)).collect();
        for (number, capsule) in world.capsules.iter().enumerate() {
            let node = &mut world.nodes[world.on[number]];
            node.free_memory_kib = node
                .free_memory_kib
                .checked_sub(capsule.memory_kib)
                .expect("the nodes hold all capsules at first");
        }
        world
    }

    fn capsule(&self, number: usize) -> CapsuleView {
        let memory_kib = self.load.memory_kib(number);
        CapsuleView {
            id: format!("{number:032x}"),
            name: format!("capsule-{number}"),
            node: self.nodes[self.on[number]].name.clone(),
            state: State::Running,
            labels: [("app".to_owned(), format!("app-{}", number % 200))].into(),
            affinity: Affinity::default(),
            memory_kib,
            max_memory_kib: memory_kib,
            vcpus: 1,
            cpu_cap: 0,
            weight: 256,
            used: Windows::default(),
            moved_ms: None,
        }
    }

    fn start(&mut self, flavor: &Flavor, state: NodeState, cause: Cause) -> String {
        self.started += 1;
        let name = format!("node-{}", self.started);
        self.nodes.push(NodeView {
            name: name.clone(),
            flavor: Some(flavor.name.clone()),
            state,
            cordoned: false,
            labels: Default::default(),
            price_micros: Some(flavor.price_micros),
            started_ms: self.now_ms,
            capacity: flavor.capacity,
            free_memory_kib: flavor.capacity.memory_kib,
            used: Windows::default(),
        });
        self.intervals.entry(name.clone()).or_default().push(Interval {
            node: name.clone(),
            flavor: Some(flavor.name.clone()),
            price_micros: flavor.price_micros,
            started: (self.now_ms, cause),
            stopped: None,
        });
        name
    }

    /// Whether no plan is being executed.
    fn idle(&self) -> bool {
        self.steps.is_empty()
    }

    /// Begins to execute a plan.
    fn take(&mut self, plan: &Plan) {
        let mut at_ms = self.now_ms;
        for step in &plan.steps {
            let changes: Vec<Change> =
                step.proposals.iter().map(|proposal| proposal.change.clone()).collect();
            let lasts = |change: &Change| match change {
                Change::StartNode { .. } => START_MS,
                Change::Migrate { capsule, .. } => {
                    MOVE_MS + self.capsules[number_of(capsule)].memory_kib / MOVE_KIB_A_MS
                }
                Change::StopNode { .. } | Change::Resize { .. } => MOVE_MS,
            };
            let end_ms = at_ms + changes.iter().map(lasts).max().unwrap_or(0);
            self.steps.push_back((at_ms, end_ms, changes));
            at_ms = end_ms;
        }
        self.begun = false;
    }

    /// Begins and ends the steps of which the time has come.
    fn advance(&mut self) {
        let now_ms = self.now_ms;
        while let Some((begin_ms, end_ms, _)) = self.steps.front() {
            let (begin_ms, end_ms) = (*begin_ms, *end_ms);
            if !self.begun && begin_ms <= now_ms {
                self.now_ms = begin_ms;
                self.begin_step();
                self.begun = true;
            }
            if end_ms > now_ms {
                break;
            }
            self.now_ms = end_ms;
            self.end_step();
            self.begun = false;
        }
        self.now_ms = now_ms;
    }

    fn begin_step(&mut self) {
        let (.., changes) = self.steps.front().expect("a step has begun");
        let mut changes = changes.clone();
        for change in &mut changes {
            match change {
                Change::StartNode { flavor, name } => {
                    let flavors = &self.simulation.flavors;
                    let flavor =
                        flavors.iter().find(|known| known.name == *flavor).expect("a plan knows its flavors");
                    let real = self.start(&flavor.clone(), NodeState::Starting, Cause::Policy);
                    self.rename(name, &real);
                }
                Change::Migrate { capsule, to } => {
                    // The memory is needed there from now on.
                    let memory_kib = self.capsules[number_of(capsule)].memory_kib;
                    let node =
                        self.nodes.iter_mut().find(|node| node.name == *to).expect("a plan knows its nodes");
                    let left = node.free_memory_kib.checked_sub(memory_kib);
                    node.free_memory_kib = left.expect("a plan overfills no node");
                }
                Change::StopNode { .. } | Change::Resize { .. } => (),
            }
        }
    }

    /// Gives a node of the plan the name that it got.
    fn rename(&mut self, name: &str, real: &str) {
        for (.., changes) in &mut self.steps {
            for change in changes {
                match change {
                    Change::Migrate { to, .. } if to == name => *to = real.to_owned(),
                    Change::StartNode { name: other, .. } if other == name => *other = real.to_owned(),
                    _ => (),
                }
            }
        }
    }

    fn end_step(&mut self) {
        let (.., changes) = self.steps.pop_front().expect("a step has ended");
        let places: HashMap<String, usize> =
            self.nodes.iter().enumerate().map(|(place, node)| (node.name.clone(), place)).collect();
        let mut stopped = Vec::new();
        for change in changes {
            match change {
                Change::StartNode { name, .. } => self.nodes[places[&name]].state = NodeState::Ready,
                Change::Migrate { capsule, to } => {
                    let number = number_of(&capsule);
                    let capsule = &mut self.capsules[number];
                    self.nodes[self.on[number]].free_memory_kib += capsule.memory_kib;
                    self.on[number] = places[&to];
                    capsule.node = to;
                    capsule.moved_ms = Some(self.now_ms);
                    self.moves += 1;
                }
                Change::StopNode { node } => stopped.push(places[&node]),
                Change::Resize { .. } => (),
            }
        }
        stopped.sort_unstable();
        for place in stopped.into_iter().rev() {
            assert!(!self.on.contains(&place), "a plan stops no node that has capsules");
            let node = self.nodes.swap_remove(place);
            let last = self.nodes.len();
            self.on.iter_mut().filter(|on| **on == last).for_each(|on| *on = place);
            if let Some(interval) = self.intervals.get_mut(&node.name).and_then(|list| list.last_mut()) {
                interval.stopped = Some((self.now_ms, Cause::Policy));
            }
        }
    }

    /// Lets a minute pass.
    fn minute(&mut self) {
        let wanted = self.load.minute((self.now_ms - BEGIN_MS) / MINUTE_MS);
        let mut per_node = vec![0u64; self.nodes.len()];
        for (number, &milli) in wanted.iter().enumerate() {
            per_node[self.on[number]] += milli;
            self.wanted_now[number] += milli;
        }
        self.wanted_minutes += 1;
        for (number, &milli) in wanted.iter().enumerate() {
            let (needed, capacity) =
                (per_node[self.on[number]], self.nodes[self.on[number]].capacity.cpu_milli);
            let got = if needed > capacity { milli * capacity / needed } else { milli };
            self.wanted += milli as f64;
            self.unserved += (milli - got) as f64;
            self.history.push(number, got);
        }
        self.history.next();
        self.now_ms += MINUTE_MS;
        self.advance();
    }

    /// Mean processor time that each capsule wanted since this was last asked, and its memory.
    fn wanted_since(&mut self) -> Vec<(u64, u64)> {
        let minutes = std::mem::take(&mut self.wanted_minutes).max(1);
        self.wanted_now
            .iter_mut()
            .zip(&self.capsules)
            .map(|(sum, capsule)| (std::mem::take(sum) / minutes, capsule.memory_kib))
            .collect()
    }

    fn view(&self) -> View {
        let mut nodes = self.nodes.clone();
        let mut capsules = self.capsules.clone();
        for (number, capsule) in capsules.iter_mut().enumerate() {
            let window = |minutes| Use {
                cpu_milli: self.history.mean(number, minutes),
                memory_kib: capsule.memory_kib,
                net_kbit: 0,
            };
            capsule.used = Windows { minute: window(1), ten_minutes: window(10), hour: window(60) };
            let node = &mut nodes[self.on[number]].used;
            for (sum, part) in [
                (&mut node.minute, capsule.used.minute),
                (&mut node.ten_minutes, capsule.used.ten_minutes),
                (&mut node.hour, capsule.used.hour),
            ] {
                sum.cpu_milli += part.cpu_milli;
                sum.memory_kib += part.memory_kib;
            }
        }
        View {
            time_ms: self.now_ms,
            nodes,
            capsules,
            flavors: self.simulation.flavors.clone(),
            ..View::default()
        }
    }
}

/// Capsules are named by their numbers.
fn number_of(capsule: &str) -> usize {
    let digits = capsule.strip_prefix("capsule-").expect("simulated capsules are named so");
    digits.parse().expect("simulated capsules are numbered")
}

/// What each capsule got in each minute of the last hour.
struct History {
    minutes: Vec<[u32; 60]>,
    at: usize,
    filled: usize,
}

impl History {
    fn new(capsules: usize) -> Self {
        Self { minutes: vec![[0; 60]; capsules], at: 0, filled: 0 }
    }

    fn push(&mut self, capsule: usize, milli: u64) {
        self.minutes[capsule][self.at] = milli as u32;
    }

    fn next(&mut self) {
        self.at = (self.at + 1) % 60;
        self.filled = (self.filled + 1).min(60);
    }

    fn mean(&self, capsule: usize, minutes: usize) -> u64 {
        let count = minutes.min(self.filled);
        let sum: u64 =
            (1..=count).map(|back| u64::from(self.minutes[capsule][(self.at + 60 - back) % 60])).sum();
        sum / count.max(1) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Shipped;
    use crate::view::tests::flavor;

    fn simulation(policy: &str, hours: u64) -> Simulation {
        let shipped = Shipped::named(policy).unwrap();
        Simulation {
            nodes: 20,
            capsules: 300,
            hours,
            seed: 1,
            flavors: vec![flavor("small", 1, 1024, 10_000), flavor("large", 4, 4096, 40_000)],
            interval_minutes: 5,
            script: Script {
                name: policy.into(),
                source: shipped.source.into(),
                settings: Default::default(),
            },
            limits: Limits::default(),
            budget: Budget::default(),
        }
    }

    #[test]
    fn a_policy_that_does_nothing_costs_what_the_nodes_cost() {
        let mut idle = simulation("scale", 2);
        idle.script.source = "return {}".into();
        let outcome = run(&idle, |_| ()).unwrap();
        assert_eq!(outcome.bill.cost_micros, 20 * 40_000 * 2);
        assert_eq!((outcome.moves, outcome.nodes, outcome.bill.saved_micros), (0, (20, 20), 0));
        assert!(outcome.packed_micros < outcome.bill.cost_micros);
        assert!(outcome.liquid_micros <= outcome.packed_micros);
    }

    #[test]
    fn scaling_costs_less_and_saves_what_it_costs_less() {
        let outcome = run(&simulation("scale", 6), |_| ()).unwrap();
        let without = 20 * 40_000 * 6;
        assert!(outcome.bill.cost_micros < without * 2 / 3, "{outcome:?}");
        assert_eq!(outcome.bill.saved_micros, (without - outcome.bill.cost_micros) as i64);
        assert!(outcome.nodes.0 < 10, "{outcome:?}");
        assert!(outcome.moves_per_capsule_hour < 1.0, "{outcome:?}");
    }

    #[test]
    fn one_seed_is_one_day() {
        let brief = |seed| {
            let outcome = run(&Simulation { seed, ..simulation("scale", 1) }, |_| ()).unwrap();
            (outcome.bill, outcome.packed_micros, outcome.moves)
        };
        assert_eq!(brief(7), brief(7));
        assert_ne!(brief(7), brief(8));
    }

    #[test]
    fn a_policy_that_fails_says_so() {
        let mut broken = simulation("scale", 1);
        broken.script.source = "return 1".into();
        assert!(run(&broken, |_| ()).is_err());
    }
}
