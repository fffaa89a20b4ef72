//! What nodes would hold: a view in which capsules are moved about in thought.
//!
//! Placement, plans and policies all ask here whether a node can take a capsule, so they agree.
//! Memory, labels and the state of a node are firm. Processor time is what was measured lately,
//! against a share of the node that the asker chooses.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use crate::view::{Affinity, Capacity, Flavor, Index, NodeState, Selector, held_memory_kib, selects};

/// Nodes with what they would hold.
#[derive(Clone, Debug)]
pub struct Room<'a> {
    nodes: Vec<Place<'a>>,
    needs: Vec<Needs<'a>>,
    selectors: HashMap<(&'a str, Option<&'a str>), u32>,
    /// Price of a processor and a GiB on the cheapest node.
    least_unit_price: f64,
}

/// A node in thought: of the view, or one that would be started.
#[derive(Clone, Debug)]
pub struct Place<'a> {
    /// Its name.
    pub name: String,
    /// Why nothing may come to it, if nothing may.
    pub closed: Option<Refusal>,
    /// What its capsules can have in all.
    pub capacity: Capacity,
    /// Processor time that its capsules used in the last minute, and in the last ten.
    cpu: [u64; 2],
    /// Memory that is left.
    pub free_memory_kib: u64,
    /// How many capsules it has.
    pub capsules: usize,
    /// Network use of its capsules over the last ten minutes.
    pub net_kbit: u64,
    labels: Option<&'a BTreeMap<String, String>>,
    unit_price: Option<f64>,
    /// By selector: how many capsules it picks here, and how many keep away from those.
    picked: HashMap<u32, Picked>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Picked {
    by_label: u32,
    keep_apart: u32,
}

/// What a capsule needs of a node.
#[derive(Clone, Debug, Default)]
pub struct Needs<'a> {
    /// Memory.
    pub memory_kib: u64,
    /// Processor time in the last minute, and in the last ten.
    pub cpu: [u64; 2],
    /// Network use over the last ten minutes.
    pub net_kbit: u64,
    affinity: Option<&'a Affinity>,
    near: Vec<u32>,
    apart: Vec<u32>,
    picked_by: Vec<u32>,
}

/// Why a node cannot take a capsule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is not ready.
    State(NodeState),
    /// The operator wants nothing new on it.
    Cordoned,
    /// Too little memory.
    Memory {
        /// What is needed.
        needed_kib: u64,
        /// What is left.
        free_kib: u64,
    },
    /// Too little processor time.
    Cpu {
        /// What its capsules would need.
        would_milli: u64,
        /// What they may need.
        most_milli: u64,
    },
    /// It lacks a label that the capsule wants.
    Label(String),
    /// It has a capsule that must not be together with this one.
    Apart(String),
}

/// A [`Refusal`] before it is put into words.
enum Obstacle<'a> {
    Closed,
    Memory,
    Cpu { most_milli: u64 },
    Label(&'a Selector),
    Apart(u32),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(state) => write!(f, "it is {}", state_name(*state)),
            Self::Cordoned => write!(f, "it is cordoned"),
            Self::Memory { needed_kib, free_kib } => {
                write!(
                    f,
                    "it has {} MiB of memory left of the {} needed",
                    free_kib >> 10,
                    needed_kib.div_ceil(1024)
                )
            }
            Self::Cpu { would_milli, most_milli } => write!(
                f,
                "its capsules would need {} processors and may need {}",
                thousandths(*would_milli),
                thousandths(*most_milli)
            ),
            Self::Label(selector) => write!(f, "it has no label {selector}"),
            Self::Apart(selector) => write!(f, "{selector} must not be there twice"),
        }
    }
}

/// A state as people read it.
pub fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Starting => "starting",
        NodeState::Ready => "ready",
        NodeState::Suspect => "suspect",
        NodeState::Lost => "lost",
        NodeState::Stopping => "stopping",
    }
}

/// A number of thousandths with two decimals.
pub fn thousandths(milli: u64) -> String {
    format!("{}.{:02}", milli / 1000, milli % 1000 / 10)
}

impl Place<'_> {
    /// Processor time that its capsules are expected to need: the larger of what they used together
    /// in the last minute and in the last ten. The sums are compared and not each capsule's, so that
    /// what capsules do at different times makes up for each other.
    pub fn cpu_milli(&self) -> u64 {
        self.cpu_with(&Needs::default())
    }

    fn cpu_with(&self, needs: &Needs<'_>) -> u64 {
        (self.cpu[0] + needs.cpu[0]).max(self.cpu[1] + needs.cpu[1])
    }
}

impl Needs<'_> {
    /// Processor time that the capsule alone is expected to need.
    pub fn cpu_milli(&self) -> u64 {
        self.cpu[0].max(self.cpu[1])
    }
}

impl<'a> Room<'a> {
    /// As it is in the view.
    pub fn new(index: &Index<'a>) -> Self {
        Self::build(index, None).0
    }

    /// As it is in the view, and what a capsule with these labels and wishes would need there;
    /// memory and processor time are for the caller to fill in.
    pub fn with_newcomer(
        index: &Index<'a>,
        labels: &'a BTreeMap<String, String>,
        affinity: &'a Affinity,
    ) -> (Self, Needs<'a>) {
        Self::build(index, Some((labels, affinity)))
    }

    fn build(
        index: &Index<'a>,
        newcomer: Option<(&'a BTreeMap<String, String>, &'a Affinity)>,
    ) -> (Self, Needs<'a>) {
        let view = index.view;
        let mut selectors = HashMap::new();
        let affinities = view.capsules.iter().map(|capsule| &capsule.affinity);
        for affinity in affinities.chain(newcomer.map(|(_, affinity)| affinity)) {
            for selector in affinity.near.iter().chain(&affinity.apart) {
                let next = selectors.len() as u32;
                selectors.entry((selector.key.as_str(), selector.value.as_deref())).or_insert(next);
            }
        }
        let nodes = view
            .nodes
            .iter()
            .map(|node| Place {
                name: node.name.clone(),
                closed: match node.state {
                    NodeState::Ready => node.cordoned.then_some(Refusal::Cordoned),
                    state => Some(Refusal::State(state)),
                },
                capacity: node.capacity,
                cpu: [0; 2],
                free_memory_kib: node.free_memory_kib,
                capsules: 0,
                net_kbit: 0,
                labels: Some(&node.labels),
                unit_price: node.price_micros.and_then(|price| unit_price(price, node.capacity)),
                picked: HashMap::new(),
            })
            .collect();
        let mut room = Self { nodes, needs: Vec::new(), selectors, least_unit_price: f64::INFINITY };
        for node in 0..room.nodes.len() {
            room.know_price(node);
        }
        room.needs = Vec::with_capacity(view.capsules.len());
        for (number, capsule) in view.capsules.iter().enumerate() {
            let mut needs = room.wishes(&capsule.labels, &capsule.affinity);
            needs.memory_kib = held_memory_kib(capsule);
            needs.cpu = [capsule.used.minute.cpu_milli, capsule.used.ten_minutes.cpu_milli];
            needs.net_kbit = capsule.used.ten_minutes.net_kbit;
            room.needs.push(needs);
            let node = index.node_of(number);
            // Its memory is not free already.
            room.nodes[node].free_memory_kib += room.needs[number].memory_kib;
            room.put(number, node);
        }
        let needs = newcomer.map(|(labels, affinity)| room.wishes(labels, affinity)).unwrap_or_default();
        (room, needs)
    }

    fn wishes(&self, labels: &'a BTreeMap<String, String>, affinity: &'a Affinity) -> Needs<'a> {
        let numbers = |list: &'a [Selector]| {
            let number = |s: &'a Selector| self.selectors.get(&(s.key.as_str(), s.value.as_deref())).copied();
            list.iter().filter_map(number).collect()
        };
        let mut picked_by = Vec::new();
        if !self.selectors.is_empty() {
            for (key, value) in labels {
                for wanted in [None, Some(value.as_str())] {
                    picked_by.extend(self.selectors.get(&(key.as_str(), wanted)));
                }
            }
        }
        Needs {
            affinity: (!affinity.nodes.is_empty()).then_some(affinity),
            near: numbers(&affinity.near),
            apart: numbers(&affinity.apart),
            picked_by,
            ..Needs::default()
        }
    }

    fn know_price(&mut self, node: usize) {
        if let Some(price) = self.nodes[node].unit_price {
            self.least_unit_price = self.least_unit_price.min(price);
        }
    }

    /// Adds a fresh node, and returns its place.
    pub fn start(&mut self, name: String, flavor: &Flavor) -> usize {
        self.nodes.push(Place {
            name,
            closed: None,
            capacity: flavor.capacity,
            cpu: [0; 2],
            free_memory_kib: flavor.capacity.memory_kib,
            capsules: 0,
            net_kbit: 0,
            labels: None,
            unit_price: unit_price(flavor.price_micros, flavor.capacity),
            picked: HashMap::new(),
        });
        self.know_price(self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    /// Takes back the last [`start`](Self::start).
    pub fn unstart(&mut self) {
        self.nodes.pop();
    }

    /// All nodes: first those of the view, in its order, then those that were started.
    pub fn nodes(&self) -> &[Place<'a>] {
        &self.nodes
    }

    /// Lets nothing more come to a node.
    pub fn close(&mut self, node: usize, why: Option<Refusal>) {
        self.nodes[node].closed = why;
    }

    /// What a capsule of the view needs.
    pub fn needs(&self, capsule: usize) -> &Needs<'a> {
        &self.needs[capsule]
    }

    /// Counts a capsule on a node; without asking, and perhaps on several.
    pub fn put(&mut self, capsule: usize, node: usize) {
        let (needs, place) = (&self.needs[capsule], &mut self.nodes[node]);
        place.cpu = [place.cpu[0] + needs.cpu[0], place.cpu[1] + needs.cpu[1]];
        place.net_kbit += needs.net_kbit;
        place.free_memory_kib = place.free_memory_kib.saturating_sub(needs.memory_kib);
        place.capsules += 1;
        for selector in &needs.picked_by {
            place.picked.entry(*selector).or_default().by_label += 1;
        }
        for selector in &needs.apart {
            place.picked.entry(*selector).or_default().keep_apart += 1;
        }
    }

    /// Counts a capsule on a node no more.
    pub fn lift(&mut self, capsule: usize, node: usize) {
        let (needs, place) = (&self.needs[capsule], &mut self.nodes[node]);
        place.cpu = [place.cpu[0] - needs.cpu[0], place.cpu[1] - needs.cpu[1]];
        place.net_kbit -= needs.net_kbit;
        place.free_memory_kib += needs.memory_kib;
        place.capsules -= 1;
        for selector in &needs.picked_by {
            place.picked.entry(*selector).or_default().by_label -= 1;
        }
        for selector in &needs.apart {
            place.picked.entry(*selector).or_default().keep_apart -= 1;
        }
    }

    /// Gives a capsule other memory where it is.
    pub fn resize(&mut self, capsule: usize, node: usize, memory_kib: u64) {
        self.lift(capsule, node);
        self.needs[capsule].memory_kib = memory_kib;
        self.put(capsule, node);
    }

    /// Whether a node can take a capsule and has no more than `cpu_percent` of its processors in
    /// use then.
    pub fn can(&self, needs: &Needs<'a>, node: usize, cpu_percent: u64) -> bool {
        self.check(needs, node, cpu_percent).is_ok()
    }

    /// The same, with the reason.
    ///
    /// # Errors
    /// Says why not.
    pub fn fits(&self, needs: &Needs<'a>, node: usize, cpu_percent: u64) -> Result<(), Refusal> {
        let place = &self.nodes[node];
        self.check(needs, node, cpu_percent).map_err(|obstacle| match obstacle {
            Obstacle::Closed => place.closed.clone().unwrap_or(Refusal::Cordoned),
            Obstacle::Memory => {
                Refusal::Memory { needed_kib: needs.memory_kib, free_kib: place.free_memory_kib }
            }
            Obstacle::Cpu { most_milli } => Refusal::Cpu { would_milli: place.cpu_with(needs), most_milli },
            Obstacle::Label(selector) => Refusal::Label(written(&selector.key, selector.value.as_deref())),
            Obstacle::Apart(number) => Refusal::Apart(self.selector(number)),
        })
    }

    /// As [`fits`](Self::fits), without words: policies ask for each capsule of each node.
    fn check(&self, needs: &Needs<'a>, node: usize, cpu_percent: u64) -> Result<(), Obstacle<'a>> {
        let place = &self.nodes[node];
        if place.closed.is_some() {
            return Err(Obstacle::Closed);
        }
        if needs.memory_kib > place.free_memory_kib {
            return Err(Obstacle::Memory);
        }
        let most_milli = place.capacity.cpu_milli.saturating_mul(cpu_percent) / 100;
        if place.cpu_with(needs) > most_milli {
            return Err(Obstacle::Cpu { most_milli });
        }
        if let Some(affinity) = needs.affinity {
            let lacks = |selector: &&Selector| !place.labels.is_some_and(|labels| selects(selector, labels));
            if let Some(selector) = affinity.nodes.iter().find(lacks) {
                return Err(Obstacle::Label(selector));
            }
        }
        let stands_against = |selector: &u32| {
            place.picked.get(selector).is_some_and(|picked| {
                (needs.apart.contains(selector) && picked.by_label > 0)
                    || (needs.picked_by.contains(selector) && picked.keep_apart > 0)
            })
        };
        match needs.apart.iter().chain(&needs.picked_by).find(|selector| stands_against(selector)) {
            Some(selector) => Err(Obstacle::Apart(*selector)),
            None => Ok(()),
        }
    }

    /// How many of the capsule's wishes to be near others a node fulfils, of how many.
    pub fn near(&self, needs: &Needs<'a>, node: usize) -> (usize, usize) {
        (self.count_near(needs, node, |_| 0), needs.near.len())
    }

    /// The same of the node that it is on, where it is no neighbour of its own.
    pub fn near_others(&self, needs: &Needs<'a>, node: usize) -> usize {
        self.count_near(needs, node, |selector| u32::from(needs.picked_by.contains(selector)))
    }

    fn count_near(&self, needs: &Needs<'a>, node: usize, own: impl Fn(&u32) -> u32) -> usize {
        let picked = &self.nodes[node].picked;
        let here =
            |selector: &&u32| picked.get(selector).is_some_and(|picked| picked.by_label > own(selector));
        needs.near.iter().filter(here).count()
    }

    /// The part of a node's processors and of its memory that would be in use with the capsule.
    pub fn share_with(&self, needs: &Needs<'a>, node: usize) -> (f64, f64) {
        let place = &self.nodes[node];
        let part = |used: u64, of: u64| if of == 0 { 1.0 } else { used as f64 / of as f64 };
        let free = place.free_memory_kib.saturating_sub(needs.memory_kib);
        let memory = place.capacity.memory_kib;
        let cpu = part(place.cpu_with(needs), place.capacity.cpu_milli);
        (cpu, part(memory.saturating_sub(free), memory))
    }

    /// The part of a node's processors and of its memory that a capsule takes.
    pub fn part(&self, needs: &Needs<'a>, node: usize) -> (f64, f64) {
        let capacity = self.nodes[node].capacity;
        let part = |needed: u64, of: u64| needed as f64 / of.max(1) as f64;
        (part(needs.cpu_milli(), capacity.cpu_milli), part(needs.memory_kib, capacity.memory_kib))
    }

    /// How many times as much a node costs for its size as the cheapest; 1 where nobody pays.
    pub fn price_ratio(&self, node: usize) -> f64 {
        match self.nodes[node].unit_price {
            Some(price) if self.least_unit_price > 0.0 => price / self.least_unit_price,
            _ => 1.0,
        }
    }

    fn selector(&self, number: u32) -> String {
        let found = self.selectors.iter().find(|(_, other)| **other == number);
        found.map_or_else(String::new, |((key, value), _)| written(key, *value))
    }
}

fn written(key: &str, value: Option<&str>) -> String {
    match value {
        Some(value) => format!("{key}={value}"),
        None => key.to_owned(),
    }
}

fn unit_price(price_micros: u64, capacity: Capacity) -> Option<f64> {
    let size = capacity.cpu_milli as f64 / 1e3 + capacity.memory_kib as f64 / f64::from(1 << 20);
    (size > 0.0).then(|| price_micros as f64 / size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tests::{capsule, flavor, node, view};

    fn selector(key: &str, value: Option<&str>) -> Selector {
        Selector { key: key.into(), value: value.map(Into::into) }
    }

    #[test]
    fn a_node_takes_what_it_has_room_for() {
        let view = view(
            vec![node("n1"), node("n2")],
            vec![capsule("a", "n1", 3 << 10, 1000), capsule("b", "n2", 2 << 10, 3500)],
        );
        let index = Index::new(&view).unwrap();
        let room = Room::new(&index);
        let why = room.fits(room.needs(0), 1, 100).unwrap_err();
        assert_eq!(why.to_string(), "it has 2048 MiB of memory left of the 3072 needed");
        let why = room.fits(room.needs(1), 0, 100).unwrap_err();
        assert_eq!(why, Refusal::Memory { needed_kib: 2 << 20, free_kib: 1 << 20 });
        let mut room = room;
        room.resize(0, 0, 1 << 20);
        let why = room.fits(room.needs(1), 0, 100).unwrap_err();
        assert_eq!(why.to_string(), "its capsules would need 4.50 processors and may need 4.00");
        assert_eq!(room.fits(room.needs(1), 0, 120), Ok(()));
    }

    #[test]
    fn closed_nodes_take_nothing_and_fresh_ones_are_empty() {
        let mut lost = node("n2");
        lost.state = NodeState::Lost;
        let mut cordoned = node("n3");
        cordoned.cordoned = true;
        let view = view(vec![node("n1"), lost, cordoned], vec![capsule("a", "n1", 16, 0)]);
        let index = Index::new(&view).unwrap();
        let mut room = Room::new(&index);
        let needs = room.needs(0).clone();
        assert_eq!(room.fits(&needs, 1, 100).unwrap_err().to_string(), "it is lost");
        assert_eq!(room.fits(&needs, 2, 100).unwrap_err().to_string(), "it is cordoned");
        let fresh = room.start("new".into(), &flavor("small", 1, 1024, 1));
        assert_eq!(room.fits(&needs, fresh, 100), Ok(()));
        assert_eq!(room.nodes()[fresh].free_memory_kib, 1 << 20);
    }

    #[test]
    fn labels_keep_capsules_apart_in_both_directions_and_bind_them_to_nodes() {
        let mut shy = capsule("shy", "n1", 16, 0);
        shy.affinity.apart = vec![selector("app", Some("web"))];
        let mut web = capsule("web", "n2", 16, 0);
        web.labels.insert("app".into(), "web".into());
        let mut bound = capsule("bound", "n1", 16, 0);
        bound.affinity.nodes = vec![selector("disk", None)];
        bound.affinity.near = vec![selector("app", None), selector("app", Some("db"))];
        let mut with_disk = node("n3");
        with_disk.labels.insert("disk".into(), "fast".into());
        let view = view(vec![node("n1"), node("n2"), with_disk], vec![shy, web, bound]);
        let index = Index::new(&view).unwrap();
        let mut room = Room::new(&index);
        let [shy, web, bound] = [0, 1, 2].map(|capsule| room.needs(capsule).clone());
        assert_eq!(room.fits(&shy, 1, 100).unwrap_err().to_string(), "app=web must not be there twice");
        assert_eq!(room.fits(&web, 0, 100).unwrap_err().to_string(), "app=web must not be there twice");
        assert_eq!(room.fits(&web, 2, 100), Ok(()));
        assert_eq!(room.fits(&bound, 1, 100).unwrap_err().to_string(), "it has no label disk");
        assert_eq!(room.fits(&bound, 2, 100), Ok(()));
        assert_eq!(room.near(&bound, 1), (1, 2));
        room.lift(1, 1);
        assert_eq!(room.fits(&shy, 1, 100), Ok(()));
        assert_eq!(room.near(&bound, 1), (0, 2));
    }

    #[test]
    fn replicas_keep_away_from_each_other() {
        let replica = |name, node| {
            let mut replica = capsule(name, node, 16, 0);
            replica.labels.insert("app".into(), "web".into());
            replica.affinity.apart = vec![selector("app", Some("web"))];
            replica
        };
        let view =
            view(vec![node("n1"), node("n2"), node("n3")], vec![replica("a", "n1"), replica("b", "n2")]);
        let index = Index::new(&view).unwrap();
        let mut room = Room::new(&index);
        let needs = room.needs(0).clone();
        assert!(room.fits(&needs, 1, 100).is_err());
        assert!(room.fits(&needs, 2, 100).is_ok());
        room.lift(0, 0);
        assert!(room.fits(&needs, 0, 100).is_ok(), "not away from itself");
    }
}
