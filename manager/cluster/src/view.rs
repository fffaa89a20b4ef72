//! The cluster at one moment, checked and indexed: what placement, plans and policies start from.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use fcap_api::State;
pub use fcap_api::cluster::{
    Affinity, Capacity, CapsuleView, Flavor, NodeState, NodeView, Selector, Use, View, Windows,
};

/// Begins the labels of a capsule that say where it wants to be.
const AFFINITY_PREFIX: &str = "fcap.";

/// A view that contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// Two of one name.
    #[error("the view has two {what} {name}")]
    Twice {
        /// Nodes, capsules or flavors.
        what: &'static str,
        /// Name or id.
        name: String,
    },
    /// A capsule on no node.
    #[error("capsule {capsule} is on node {node}, which the view does not have")]
    NoSuchNode {
        /// The capsule.
        capsule: String,
        /// The node.
        node: String,
    },
    /// A price of nothing.
    #[error(
        "the price of {what} {name} is 0: an hour must cost something; leave a node's price out where nobody pays"
    )]
    NoPrice {
        /// Node or flavor.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A number that nothing has.
    #[error("the view says that {what} {name} has {number}, which nothing has")]
    TooMuch {
        /// Node, capsule or flavor.
        what: &'static str,
        /// Its name.
        name: String,
        /// The number.
        number: u64,
    },
}

/// Larger than any real number of a view, and small enough that sums over a cluster cannot
/// overflow and scripts, whose numbers are floating, see it exactly.
const MOST: u64 = 1 << 44;

/// A view, found through.
#[derive(Debug)]
pub struct Index<'a> {
    /// The view.
    pub view: &'a View,
    nodes: HashMap<&'a str, usize>,
    ids: HashMap<&'a str, usize>,
    names: HashMap<&'a str, Option<usize>>,
    on_node: Vec<Vec<usize>>,
    flavors: HashMap<&'a str, usize>,
}

/// Why a name leads to no capsule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotFound {
    /// None has it.
    None,
    /// Several have it.
    Several,
}

impl<'a> Index<'a> {
    /// Checks a view and indexes it.
    ///
    /// # Errors
    /// When the view contradicts itself, or has numbers that cannot be.
    pub fn new(view: &'a View) -> Result<Self, ViewError> {
        let mut nodes = HashMap::with_capacity(view.nodes.len());
        for (index, node) in view.nodes.iter().enumerate() {
            if nodes.insert(node.name.as_str(), index).is_some() {
                return Err(ViewError::Twice { what: "nodes", name: node.name.clone() });
            }
            if node.price_micros == Some(0) {
                return Err(ViewError::NoPrice { what: "node", name: node.name.clone() });
            }
            bound("node", &node.name, &[node.capacity.cpu_milli, node.capacity.memory_kib])?;
            bound("node", &node.name, &[node.free_memory_kib, node.price_micros.unwrap_or(0)])?;
            bound("node", &node.name, &used(&node.used))?;
        }
        let mut ids = HashMap::with_capacity(view.capsules.len());
        let mut names = HashMap::with_capacity(view.capsules.len());
        let mut on_node = vec![Vec::new(); view.nodes.len()];
        for (index, capsule) in view.capsules.iter().enumerate() {
            if ids.insert(capsule.id.as_str(), index).is_some() {
                return Err(ViewError::Twice { what: "capsules", name: capsule.id.clone() });
            }
            match names.entry(capsule.name.as_str()) {
                Entry::Vacant(entry) => drop(entry.insert(Some(index))),
                Entry::Occupied(mut entry) => drop(entry.insert(None)),
            }
            let Some(&node) = nodes.get(capsule.node.as_str()) else {
                let (capsule, node) = (capsule.name.clone(), capsule.node.clone());
                return Err(ViewError::NoSuchNode { capsule, node });
            };
            on_node[node].push(index);
            bound("capsule", &capsule.name, &[capsule.memory_kib, capsule.max_memory_kib])?;
            bound("capsule", &capsule.name, &used(&capsule.used))?;
        }
        let mut flavors = HashMap::with_capacity(view.flavors.len());
        for (index, flavor) in view.flavors.iter().enumerate() {
            if flavors.insert(flavor.name.as_str(), index).is_some() {
                return Err(ViewError::Twice { what: "flavors", name: flavor.name.clone() });
            }
            if flavor.price_micros == 0 {
                return Err(ViewError::NoPrice { what: "flavor", name: flavor.name.clone() });
            }
            let numbers = [flavor.price_micros, flavor.capacity.cpu_milli, flavor.capacity.memory_kib];
            bound("flavor", &flavor.name, &numbers)?;
        }
        Ok(Self { view, nodes, ids, names, on_node, flavors })
    }

    /// Place of the node of that name.
    pub fn node(&self, name: &str) -> Option<usize> {
        self.nodes.get(name).copied()
    }

    /// Place of the capsule with that id or, where only one has it, that name.
    ///
    /// # Errors
    /// When there is none, or several have the name.
    pub fn capsule(&self, id_or_name: &str) -> Result<usize, NotFound> {
        if let Some(&index) = self.ids.get(id_or_name) {
            return Ok(index);
        }
        match self.names.get(id_or_name) {
            Some(Some(index)) => Ok(*index),
            Some(None) => Err(NotFound::Several),
            None => Err(NotFound::None),
        }
    }

    /// What proposals call a capsule: its name, or its id where others have the name too.
    pub fn handle(&self, capsule: usize) -> &'a str {
        let capsule = &self.view.capsules[capsule];
        match self.capsule(&capsule.name) {
            Ok(_) => &capsule.name,
            Err(_) => &capsule.id,
        }
    }

    /// The flavor of that name.
    pub fn flavor(&self, name: &str) -> Option<&'a Flavor> {
        self.flavors.get(name).map(|&index| &self.view.flavors[index])
    }

    /// Places of the capsules of a node.
    pub fn on_node(&self, node: usize) -> &[usize] {
        &self.on_node[node]
    }

    /// Place of the node that a capsule is on.
    pub fn node_of(&self, capsule: usize) -> usize {
        self.nodes[self.view.capsules[capsule].node.as_str()]
    }
}

fn used(windows: &Windows) -> [u64; 9] {
    let [a, b, c] = [windows.minute, windows.ten_minutes, windows.hour]
        .map(|window| [window.cpu_milli, window.memory_kib, window.net_kbit]);
    [a[0], a[1], a[2], b[0], b[1], b[2], c[0], c[1], c[2]]
}

fn bound(what: &'static str, name: &str, numbers: &[u64]) -> Result<(), ViewError> {
    match numbers.iter().find(|&&number| number > MOST) {
        Some(&number) => Err(ViewError::TooMuch { what, name: name.to_owned(), number }),
        None => Ok(()),
    }
}

/// Processor time that a capsule is expected to need soon: what it lately used at most.
pub fn expected_cpu_milli(capsule: &CapsuleView) -> u64 {
    capsule.used.minute.cpu_milli.max(capsule.used.ten_minutes.cpu_milli)
}

/// Memory that a capsule takes of its node in its state.
pub fn held_memory_kib(capsule: &CapsuleView) -> u64 {
    match capsule.state {
        State::Running | State::Paused | State::Stopping | State::Restarting => capsule.memory_kib,
        State::Created | State::Exited => 0,
    }
}

/// Whether any of the labels is picked.
pub fn selects<'l>(selector: &Selector, labels: impl IntoIterator<Item = (&'l String, &'l String)>) -> bool {
    labels.into_iter().any(|(key, value)| {
        *key == selector.key && selector.value.as_ref().is_none_or(|wanted| wanted == value)
    })
}

/// Reads where a capsule wants to be from its labels: `fcap.near`, `fcap.apart` and `fcap.nodes`,
/// each a list of labels such as `app=web,tier`.
///
/// # Errors
/// Names the label that cannot be read.
pub fn affinity<'l>(
    labels: impl IntoIterator<Item = (&'l String, &'l String)>,
) -> Result<Affinity, AffinityError> {
    let mut affinity = Affinity::default();
    for (key, value) in labels {
        let Some(kind) = key.strip_prefix(AFFINITY_PREFIX) else { continue };
        let list = match kind {
            "near" => &mut affinity.near,
            "apart" => &mut affinity.apart,
            "nodes" => &mut affinity.nodes,
            _ => return Err(AffinityError::Unknown { key: key.clone() }),
        };
        for part in value.split(',') {
            let (label, wanted) = match part.split_once('=') {
                Some((label, wanted)) => (label.trim(), Some(wanted.trim().to_owned())),
                None => (part.trim(), None),
            };
            if label.is_empty() {
                return Err(AffinityError::Selector { key: key.clone(), value: value.clone() });
            }
            list.push(Selector { key: label.to_owned(), value: wanted });
        }
    }
    Ok(affinity)
}

/// Labels that do not say where a capsule wants to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AffinityError {
    /// Not one of the three.
    #[error("label {key} means nothing: there are fcap.near, fcap.apart and fcap.nodes")]
    Unknown {
        /// The label's key.
        key: String,
    },
    /// Not a list of labels.
    #[error("label {key} is {value:?}; it takes labels such as app=web,tier")]
    Selector {
        /// The label's key.
        key: String,
        /// Its value.
        value: String,
    },
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A node of 4 processors and 4 GiB for 40000 micros.
    pub(crate) fn node(name: &str) -> NodeView {
        NodeView {
            name: name.into(),
            flavor: Some("large".into()),
            state: NodeState::Ready,
            cordoned: false,
            labels: BTreeMap::new(),
            price_micros: Some(40_000),
            started_ms: 0,
            capacity: Capacity { cpu_milli: 4000, memory_kib: 4 << 20 },
            free_memory_kib: 4 << 20,
            used: Windows::default(),
        }
    }

    /// A running capsule of so much memory that has used so much processor time for an hour.
    pub(crate) fn capsule(name: &str, node: &str, memory_mib: u64, cpu_milli: u64) -> CapsuleView {
        let window = Use { cpu_milli, memory_kib: memory_mib << 10, net_kbit: 0 };
        CapsuleView {
            id: format!("{:0>32}", name.bytes().map(|b| format!("{b:02x}")).collect::<String>()),
            name: name.into(),
            node: node.into(),
            state: State::Running,
            labels: BTreeMap::new(),
            affinity: Affinity::default(),
            memory_kib: memory_mib << 10,
            max_memory_kib: memory_mib << 10,
            vcpus: 1,
            cpu_cap: 0,
            weight: 256,
            used: Windows { minute: window, ten_minutes: window, hour: window },
            moved_ms: None,
        }
    }

    pub(crate) fn flavor(name: &str, vcpus: u32, memory_mib: u64, price_micros: u64) -> Flavor {
        let capacity = Capacity { cpu_milli: u64::from(vcpus) * 1000, memory_kib: memory_mib << 10 };
        Flavor { name: name.into(), vcpus, memory_mib, price_micros, capacity }
    }

    /// A view at 10:00 UTC of a Monday, with free memory and use of nodes summed up.
    pub(crate) fn view(nodes: Vec<NodeView>, capsules: Vec<CapsuleView>) -> View {
        let flavors = vec![
            flavor("small", 1, 1024, 10_000),
            flavor("medium", 2, 2048, 20_000),
            flavor("large", 4, 4096, 40_000),
        ];
        let time_ms = (4 * 24 + 10) * 3_600_000;
        let mut view = View { time_ms, nodes, capsules, flavors, ..View::default() };
        for node in &mut view.nodes {
            let here = view.capsules.iter().filter(|capsule| capsule.node == node.name);
            for capsule in here {
                node.free_memory_kib = node.free_memory_kib.saturating_sub(held_memory_kib(capsule));
                for (sum, part) in [
                    (&mut node.used.minute, &capsule.used.minute),
                    (&mut node.used.ten_minutes, &capsule.used.ten_minutes),
                    (&mut node.used.hour, &capsule.used.hour),
                ] {
                    sum.cpu_milli += part.cpu_milli;
                    sum.memory_kib += part.memory_kib;
                    sum.net_kbit += part.net_kbit;
                }
            }
        }
        view
    }

    #[test]
    fn capsules_are_found_by_id_and_by_names_that_only_one_has() {
        let mut twin = capsule("b", "n2", 16, 0);
        twin.id = "1".repeat(32);
        let view = view(
            vec![node("n1"), node("n2")],
            vec![capsule("a", "n1", 16, 0), capsule("b", "n1", 16, 0), twin],
        );
        let index = Index::new(&view).unwrap();
        assert_eq!(index.capsule("a"), Ok(0));
        assert_eq!(index.capsule("b"), Err(NotFound::Several));
        assert_eq!(index.capsule("c"), Err(NotFound::None));
        assert_eq!(index.capsule(&"1".repeat(32)), Ok(2));
        assert_eq!(index.handle(0), "a");
        assert_eq!(index.handle(2), "1".repeat(32));
        assert_eq!(index.on_node(0), [0, 1]);
        assert_eq!(index.node_of(2), 1);
    }

    #[test]
    fn views_that_contradict_themselves_are_refused() {
        let good = view(vec![node("n1")], vec![capsule("a", "n1", 16, 0)]);
        let refused = |change: &dyn Fn(&mut View), part: &str| {
            let mut bad = good.clone();
            change(&mut bad);
            let error = Index::new(&bad).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        refused(&|v| v.nodes.push(node("n1")), "two nodes n1");
        refused(&|v| v.capsules.push(v.capsules[0].clone()), "two capsules");
        refused(&|v| v.flavors.push(v.flavors[0].clone()), "two flavors small");
        refused(&|v| v.capsules[0].node = "n9".into(), "on node n9, which the view does not have");
        refused(&|v| v.flavors[0].price_micros = 0, "price of flavor small is 0");
        refused(&|v| v.nodes[0].price_micros = Some(0), "price of node n1 is 0");
        refused(&|v| v.nodes[0].free_memory_kib = u64::MAX, "n1 has 18446744073709551615");
        refused(&|v| v.capsules[0].used.hour.net_kbit = u64::MAX, "capsule a has");
    }

    #[test]
    fn a_saved_view_with_prices_or_sizes_that_are_none_is_no_view() {
        let text = serde_json::to_string(&view(vec![node("n1")], vec![])).unwrap();
        assert_eq!(serde_json::from_str::<View>(&text).unwrap(), view(vec![node("n1")], vec![]));
        for (from, to) in [
            ("\"price_micros\":10000", "\"price_micros\":-1"),
            ("\"price_micros\":10000", "\"price_micros\":1.5"),
            ("\"price_micros\":10000", "\"price_micros\":null"),
            ("\"vcpus\":1", "\"vcpus\":\"one\""),
            ("\"nodes\":", "\"knots\":"),
        ] {
            assert!(text.contains(from));
            assert!(serde_json::from_str::<View>(&text.replace(from, to)).is_err(), "{to}");
        }
    }

    #[test]
    fn affinity_is_read_from_labels() {
        let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
        };
        let read =
            affinity(&labels(&[("app", "web"), ("fcap.apart", "app=web"), ("fcap.near", "app=db, cache")]));
        let selector =
            |key: &str, value: Option<&str>| Selector { key: key.into(), value: value.map(Into::into) };
        let expected = Affinity {
            near: vec![selector("app", Some("db")), selector("cache", None)],
            apart: vec![selector("app", Some("web"))],
            nodes: vec![],
        };
        assert_eq!(read, Ok(expected));
        let error = affinity(&labels(&[("fcap.close", "x")])).unwrap_err().to_string();
        assert_eq!(error, "label fcap.close means nothing: there are fcap.near, fcap.apart and fcap.nodes");
        assert!(affinity(&labels(&[("fcap.near", "a,,b")])).is_err());
        assert!(affinity(&labels(&[("fcap.near", "=x")])).is_err());
    }
}
