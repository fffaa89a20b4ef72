//! Walks through everything that can happen in a hand-over.
//!
//! The network keeps every message for ever and may deliver it at any time, any number of times,
//! or never: so it loses, doubles, delays and swaps. Daemons are killed before any action, which
//! loses what they had in mind, and start again with what is on disk.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::{
    DestinationAction, DestinationEvent, DestinationState, FoundCopy, FoundDomain, Message, SourceAction,
    SourceEvent, SourceState,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Copy {
    None,
    Paused,
    Running,
    /// It ended by itself after it ran.
    Ended,
}

/// A daemon's mind, gone when it is killed: its state and the actions still to be carried out.
type Mind<State, Action> = Option<(State, &'static [Action])>;

#[derive(Clone, Debug, PartialEq, Eq)]
struct World {
    source: Mind<SourceState, SourceAction>,
    source_claim: bool,
    source_domain: FoundDomain,
    destination: Mind<DestinationState, DestinationAction>,
    destination_claim: bool,
    destination_domain: Copy,
    network: BTreeSet<Message>,
}

impl World {
    fn start() -> Self {
        Self {
            source: Some((SourceState::Sending, &[])),
            source_claim: false,
            source_domain: FoundDomain::Suspended,
            destination: Some((DestinationState::Receiving, &[])),
            destination_claim: false,
            destination_domain: Copy::Paused,
            network: BTreeSet::new(),
        }
    }

    fn ran_at_destination(&self) -> bool {
        matches!(self.destination_domain, Copy::Running | Copy::Ended)
    }

    fn is_settled(&self) -> bool {
        let kept = self.source_domain == FoundDomain::Running && self.destination_domain == Copy::None;
        let moved = self.source_domain == FoundDomain::Gone && self.ran_at_destination();
        (kept || moved) && !self.source_claim && !self.destination_claim
    }
}

/// What the walk may let happen besides the normal course.
#[derive(Clone, Copy)]
struct Faults {
    kills: bool,
    /// The destination's machine loses its disk and its domains, both at once.
    machine_loss: bool,
}

fn successors(world: &World, faults: Faults) -> Vec<World> {
    let mut next = Vec::new();
    source_steps(world, faults, &mut next);
    destination_steps(world, faults, &mut next);
    next
}

fn source_steps(world: &World, faults: Faults, next: &mut Vec<World>) {
    let mut step = |change: &dyn Fn(&mut World)| {
        let mut world = world.clone();
        change(&mut world);
        next.push(world);
    };
    let Some((state, actions)) = world.source else {
        step(&|world| {
            let (actions, state) = SourceState::recover(world.source_claim, world.source_domain);
            world.source = Some((state, actions));
        });
        return;
    };
    if faults.kills {
        step(&|world| world.source = None);
    }
    let Some((action, rest)) = actions.split_first() else {
        let messages = world.network.iter().map(|message| SourceEvent::Message(*message));
        for event in messages.chain([SourceEvent::Failure, SourceEvent::Tick]) {
            step(&|world| {
                let (actions, state) = state.on(event);
                world.source = Some((state, actions));
            });
        }
        return;
    };
    step(&|world| {
        world.source = Some((state, rest));
        match *action {
            SourceAction::WriteClaim => world.source_claim = true,
            SourceAction::RemoveClaim => world.source_claim = false,
            SourceAction::Resume => {
                let gone = world.source_domain == FoundDomain::Gone;
                assert!(!gone || faults.machine_loss, "nothing left to resume");
                world.source_domain = if gone { FoundDomain::Gone } else { FoundDomain::Running };
            }
            SourceAction::Destroy => world.source_domain = FoundDomain::Gone,
            SourceAction::Send(message) => {
                world.network.insert(message);
            }
        }
    });
    if *action == SourceAction::WriteClaim {
        for on_disk in [false, true] {
            step(&|world| {
                let (actions, state) = state.on(SourceEvent::ClaimFailed);
                world.source = Some((state, actions));
                world.source_claim |= on_disk;
            });
        }
    }
}

fn destination_steps(world: &World, faults: Faults, next: &mut Vec<World>) {
    let mut step = |change: &dyn Fn(&mut World)| {
        let mut world = world.clone();
        change(&mut world);
        next.push(world);
    };
    if world.destination_domain == Copy::Running {
        step(&|world| world.destination_domain = Copy::Ended);
    }
    if faults.machine_loss {
        step(&|world| {
            world.destination = None;
            world.destination_claim = false;
            world.destination_domain = Copy::None;
        });
    }
    let Some((state, actions)) = world.destination else {
        step(&|world| {
            let found = match world.destination_domain {
                Copy::Paused => FoundCopy::Incoming,
                Copy::Running => FoundCopy::Taken,
                Copy::None | Copy::Ended => FoundCopy::Gone,
            };
            let (actions, state) = DestinationState::recover(world.destination_claim, found);
            world.destination = Some((state, actions));
        });
        return;
    };
    if faults.kills {
        step(&|world| world.destination = None);
    }
    let Some((action, rest)) = actions.split_first() else {
        let messages = world.network.iter().map(|message| DestinationEvent::Message(*message));
        for event in
            messages.chain([DestinationEvent::Complete, DestinationEvent::Failure, DestinationEvent::Tick])
        {
            step(&|world| {
                let (actions, state) = state.on(event);
                world.destination = Some((state, actions));
            });
        }
        return;
    };
    step(&|world| {
        world.destination = Some((state, rest));
        match *action {
            DestinationAction::WriteClaim => world.destination_claim = true,
            DestinationAction::RemoveClaim => world.destination_claim = false,
            DestinationAction::Activate => {
                assert_ne!(world.destination_domain, Copy::None, "nothing there to run");
                if world.destination_domain == Copy::Paused {
                    world.destination_domain = Copy::Running;
                }
            }
            DestinationAction::Destroy => {
                assert!(!world.ran_at_destination(), "what runs is destroyed");
                world.destination_domain = Copy::None;
            }
            DestinationAction::Send(message) => {
                world.network.insert(message);
            }
        }
    });
    let fresh = world.destination_domain == Copy::Paused && rest.len() + 1 == actions.len();
    if fresh && matches!(action, DestinationAction::WriteClaim | DestinationAction::Activate) {
        for on_disk in [false, true] {
            step(&|world| {
                let (actions, state) = state.on(DestinationEvent::TakeFailed);
                world.destination = Some((state, actions));
                world.destination_claim |= on_disk;
            });
        }
    }
}

/// All worlds that can be reached, each with the numbers of those that follow.
fn walk(faults: Faults, check: impl Fn(&World)) -> (Vec<World>, Vec<Vec<usize>>) {
    let key = |world: &World| format!("{world:?}");
    let mut worlds = vec![World::start()];
    let mut numbers = HashMap::from([(key(&worlds[0]), 0)]);
    let mut follow = Vec::new();
    let mut queue = VecDeque::from([0]);
    while let Some(at) = queue.pop_front() {
        check(&worlds[at]);
        let next = successors(&worlds[at], faults);
        let next = next.into_iter().map(|world| {
            *numbers.entry(key(&world)).or_insert_with(|| {
                worlds.push(world);
                queue.push_back(worlds.len() - 1);
                worlds.len() - 1
            })
        });
        follow.push(next.collect());
    }
    (worlds, follow)
}

fn never_two(world: &World) {
    assert!(
        world.source_domain != FoundDomain::Running || world.destination_domain != Copy::Running,
        "both sides run it: {world:?}"
    );
}

#[test]
fn at_most_one_side_runs_it_whatever_is_lost_or_killed() {
    let (worlds, _) = walk(Faults { kills: true, machine_loss: false }, |world| {
        never_two(world);
        assert!(
            world.source_domain != FoundDomain::Running || !world.ran_at_destination(),
            "an old copy is back: {world:?}"
        );
    });
    // The walk did see the ends that it is about.
    let settled_at = |domain| worlds.iter().any(|world| world.is_settled() && world.source_domain == domain);
    assert!(settled_at(FoundDomain::Running) && settled_at(FoundDomain::Gone));
}

#[test]
fn at_most_one_side_runs_it_when_the_destination_loses_its_disk() {
    walk(Faults { kills: true, machine_loss: true }, never_two);
}

#[test]
fn one_side_always_comes_to_run_it() {
    let (worlds, _) = walk(Faults { kills: true, machine_loss: false }, |_| {});
    // Backwards from the ends, along steps that need no further kill.
    let numbers: HashMap<_, _> =
        worlds.iter().enumerate().map(|(number, world)| (format!("{world:?}"), number)).collect();
    let mut before = vec![Vec::new(); worlds.len()];
    for (number, world) in worlds.iter().enumerate() {
        for next in successors(world, Faults { kills: false, machine_loss: false }) {
            before[numbers[&format!("{next:?}")]].push(number);
        }
    }
    let mut reaches: Vec<bool> = worlds.iter().map(World::is_settled).collect();
    let mut queue: Vec<usize> = (0..worlds.len()).filter(|number| reaches[*number]).collect();
    while let Some(at) = queue.pop() {
        for &number in &before[at] {
            if !std::mem::replace(&mut reaches[number], true) {
                queue.push(number);
            }
        }
    }
    for (world, reaches) in worlds.iter().zip(reaches) {
        assert!(reaches, "nobody will ever run it: {world:?}");
    }
}
