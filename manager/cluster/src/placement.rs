//! Where a capsule goes: nodes that cannot take it are left out, the others are weighed.
//!
//! | what | weighs, in thousandths |
//! |---|---|
//! | how full the node is with it, processors or memory, whichever is more | 1000 for (pack) or against (spread) |
//! | capsules that it wants to be near | 300 each |
//! | the price of the node for its size, against the cheapest | up to 300 against |
//! | network use of the node, against the busiest | up to 100 against |

use std::cmp::Reverse;
use std::collections::BTreeMap;

use fcap_api::cluster::{Considered, Placement};

use crate::room::{Needs, Room, thousandths};
use crate::view::{Affinity, Index};

/// Part of a node's processors that may be in use after a placement.
pub const CPU_PERCENT: u64 = 90;

const NEAR: i64 = 300;
const PRICE: f64 = 300.0;
const NET: f64 = 100.0;

/// Which of the nodes that fit is better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aim {
    /// The fuller one: fewer nodes.
    Pack,
    /// The emptier one: more headroom.
    #[default]
    Spread,
}

/// A capsule that is to be placed.
#[derive(Clone, Debug, Default)]
pub struct Request<'a> {
    /// Memory that it will hold.
    pub memory_kib: u64,
    /// Processor time that it is expected to need; its cap, or nothing where nobody knows.
    pub cpu_milli: u64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Where it wants to be.
    pub affinity: Affinity,
    /// Nodes that are out of the question, with the reason.
    pub except: Vec<(&'a str, &'a str)>,
}

/// Finds a node for a new capsule.
pub fn place(index: &Index<'_>, request: &Request<'_>, aim: Aim) -> Placement {
    let (room, mut needs) = Room::with_newcomer(index, &request.labels, &request.affinity);
    needs.memory_kib = request.memory_kib;
    needs.cpu = [request.cpu_milli; 2];
    weigh(&room, index, &needs, aim, &request.except)
}

/// Says where a capsule would go if it were placed now, and how its node compares. Its own memory
/// and use count as free where it is.
pub fn explain(index: &Index<'_>, capsule: usize, aim: Aim) -> Placement {
    let mut room = Room::new(index);
    room.lift(capsule, index.node_of(capsule));
    let needs = room.needs(capsule).clone();
    let mut placement = weigh(&room, index, &needs, aim, &[]);
    let here = &index.view.capsules[capsule].node;
    for considered in &mut placement.considered {
        if considered.node == *here {
            considered.reasons.insert(0, "it is here".into());
        }
    }
    placement
}

/// The best node for a capsule of the room, of those that `among` lets pass.
pub fn best<'a>(
    room: &Room<'a>,
    needs: &Needs<'a>,
    aim: Aim,
    cpu_percent: u64,
    among: impl Fn(usize) -> bool,
) -> Option<usize> {
    let busiest = busiest(room);
    (0..room.nodes().len())
        .filter(|&node| among(node) && room.can(needs, node, cpu_percent))
        .max_by_key(|&node| (score(room, needs, node, aim, busiest), Reverse(node)))
}

fn weigh<'a>(
    room: &Room<'a>,
    index: &Index<'_>,
    needs: &Needs<'a>,
    aim: Aim,
    except: &[(&str, &str)],
) -> Placement {
    let busiest = busiest(room);
    let mut considered: Vec<Considered> = (0..room.nodes().len())
        .map(|node| {
            let name = room.nodes()[node].name.clone();
            if let Some((_, why)) = except.iter().find(|(other, _)| *other == name) {
                return Considered { node: name, score: None, reasons: vec![(*why).to_owned()] };
            }
            match room.fits(needs, node, CPU_PERCENT) {
                Ok(()) => {
                    let score = score(room, needs, node, aim, busiest);
                    Considered { node: name, score: Some(score), reasons: reasons(room, needs, node) }
                }
                Err(why) => Considered { node: name, score: None, reasons: vec![why.to_string()] },
            }
        })
        .collect();
    // Stable: of equals, the first of the view.
    considered.sort_by_key(|considered| Reverse(considered.score));
    let node = considered.first().filter(|first| first.score.is_some()).map(|first| first.node.clone());
    let flavor = index
        .view
        .flavors
        .iter()
        .filter(|flavor| {
            needs.memory_kib <= flavor.capacity.memory_kib
                && needs.cpu_milli() <= flavor.capacity.cpu_milli * CPU_PERCENT / 100
        })
        .min_by_key(|flavor| flavor.price_micros)
        .map(|flavor| flavor.name.clone());
    Placement { node, flavor, considered }
}

fn busiest(room: &Room<'_>) -> u64 {
    room.nodes().iter().map(|place| place.net_kbit).max().unwrap_or(0)
}

fn score<'a>(room: &Room<'a>, needs: &Needs<'a>, node: usize, aim: Aim, busiest: u64) -> i64 {
    let (cpu, memory) = room.share_with(needs, node);
    let full = match aim {
        // Of two nodes with as little left in all, the one that has it of both kinds: a node that
        // is full in one respect only has the rest of the other to waste.
        Aim::Pack => 1.0 - ((1.0 - cpu).powi(2) + (1.0 - memory).powi(2)).sqrt(),
        Aim::Spread => 1.0 - cpu.max(memory),
    };
    let full = (full * 1000.0) as i64;
    let near = NEAR * room.near(needs, node).0 as i64;
    let price = (100.0 * (room.price_ratio(node) - 1.0)).min(PRICE) as i64;
    let net = match busiest {
        0 => 0,
        most => (NET * room.nodes()[node].net_kbit as f64 / most as f64) as i64,
    };
    full + near - price - net
}

fn reasons<'a>(room: &Room<'a>, needs: &Needs<'a>, node: usize) -> Vec<String> {
    let place = &room.nodes()[node];
    let (cpu, memory) = room.share_with(needs, node);
    let mut reasons = vec![format!(
        "with it {:.0} % of {} processors are in use, and {:.0} % of {} MiB",
        cpu * 100.0,
        thousandths(place.capacity.cpu_milli),
        memory * 100.0,
        place.capacity.memory_kib >> 10
    )];
    if let (here, wanted @ 1..) = room.near(needs, node) {
        reasons.push(format!("{here} of {wanted} labels that it wants near are there"));
    }
    let ratio = room.price_ratio(node);
    if ratio > 1.005 {
        reasons.push(format!("costs {ratio:.2} times as much for its size as the cheapest"));
    }
    if place.net_kbit > 0 {
        reasons.push(format!("its capsules send and receive {} kbit/s", place.net_kbit));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tests::{capsule, flavor, node, view};
    use crate::view::{CapsuleView, NodeView, Selector, View};
    use proptest::prelude::*;

    fn request(memory_mib: u64, cpu_milli: u64) -> Request<'static> {
        Request { memory_kib: memory_mib << 10, cpu_milli, ..Request::default() }
    }

    #[test]
    fn packing_fills_and_spreading_evens_out() {
        let view = view(
            vec![node("n1"), node("n2"), node("n3")],
            vec![capsule("a", "n1", 16, 1000), capsule("b", "n2", 16, 3000)],
        );
        let index = Index::new(&view).unwrap();
        let placed = |cpu, aim| place(&index, &request(16, cpu), aim).node.unwrap();
        assert_eq!(placed(100, Aim::Pack), "n2");
        assert_eq!(placed(1000, Aim::Pack), "n1", "n2 keeps its headroom");
        assert_eq!(placed(100, Aim::Spread), "n3");
    }

    #[test]
    fn the_cheaper_of_equal_nodes_is_taken_and_the_reasons_are_told() {
        let mut dear = node("n1");
        dear.price_micros = Some(80_000);
        let view = view(vec![dear, node("n2")], vec![]);
        let index = Index::new(&view).unwrap();
        let placement = place(&index, &request(1024, 400), Aim::Pack);
        assert_eq!(placement.node.as_deref(), Some("n2"));
        assert_eq!(placement.considered[1].node, "n1");
        assert_eq!(
            placement.considered[1].reasons,
            [
                "with it 10 % of 4.00 processors are in use, and 25 % of 4096 MiB",
                "costs 2.00 times as much for its size as the cheapest"
            ]
        );
    }

    #[test]
    fn with_nowhere_to_go_every_node_says_why_and_a_flavor_is_named() {
        let mut cordoned = node("n2");
        cordoned.cordoned = true;
        let view = view(vec![node("n1"), cordoned], vec![capsule("a", "n1", 4000, 0)]);
        let index = Index::new(&view).unwrap();
        let mut request = request(1500, 0);
        let placement = place(&index, &request, Aim::Spread);
        assert_eq!(placement.node, None);
        assert_eq!(placement.flavor.as_deref(), Some("medium"));
        let reasons: Vec<_> = placement.considered.iter().flat_map(|c| &c.reasons).collect();
        assert_eq!(reasons, ["it has 96 MiB of memory left of the 1500 needed", "it is cordoned"]);
        request.memory_kib = 1 << 40;
        assert_eq!(place(&index, &request, Aim::Spread).flavor, None);
    }

    #[test]
    fn nodes_can_be_ruled_out_and_neighbours_sought() {
        let mut db = capsule("db", "n2", 16, 1000);
        db.labels.insert("app".into(), "db".into());
        let view = view(vec![node("n1"), node("n2")], vec![db]);
        let index = Index::new(&view).unwrap();
        let mut request = request(16, 100);
        request.affinity.near = vec![Selector { key: "app".into(), value: Some("db".into()) }];
        let placement = place(&index, &request, Aim::Spread);
        assert_eq!(placement.node.as_deref(), Some("n2"));
        assert_eq!(placement.considered[0].reasons[1], "1 of 1 labels that it wants near are there");
        request.except = vec![("n2", "it is being drained")];
        let placement = place(&index, &request, Aim::Spread);
        assert_eq!(placement.node.as_deref(), Some("n1"));
        assert_eq!(placement.considered[1].reasons, ["it is being drained"]);
    }

    #[test]
    fn an_explanation_counts_the_capsule_once() {
        let view = view(vec![node("n1"), node("n2")], vec![capsule("a", "n1", 3 << 10, 3000)]);
        let index = Index::new(&view).unwrap();
        let placement = explain(&index, 0, Aim::Pack);
        assert_eq!(placement.node.as_deref(), Some("n1"));
        assert_eq!(
            placement.considered[0].reasons,
            ["it is here", "with it 75 % of 4.00 processors are in use, and 75 % of 4096 MiB"]
        );
    }

    prop_compose! {
        fn any_view()(
            nodes in prop::collection::vec((1u32..8, 1u64..64, any::<bool>(), 0u8..6), 1..6),
            capsules in prop::collection::vec((0usize..6, 1u64..2048, 0u64..3000, 0u8..3, 0u8..3), 0..20),
        ) -> View {
            let count = nodes.len();
            let nodes: Vec<NodeView> = nodes.into_iter().enumerate().map(|(number, (vcpus, size, cordoned, state))| {
                let flavor = flavor("f", vcpus, size * 128, 1000 * size);
                NodeView {
                    cordoned: cordoned && state == 0,
                    capacity: flavor.capacity,
                    free_memory_kib: flavor.capacity.memory_kib,
                    ..node(&format!("n{number}"))
                }
            }).collect();
            let capsules: Vec<CapsuleView> = capsules.into_iter().enumerate().map(|(number, (on, memory, cpu, label, apart))| {
                let mut capsule = capsule(&format!("c{number}"), &format!("n{}", on % count), memory, cpu);
                capsule.labels.insert("app".into(), format!("a{label}"));
                if apart > 0 {
                    capsule.affinity.apart = vec![Selector { key: "app".into(), value: Some(format!("a{apart}")) }];
                }
                capsule
            }).collect();
            view(nodes, capsules)
        }
    }

    proptest! {
        #[test]
        fn a_placed_capsule_fits_and_is_only_refused_where_nothing_fits(
            view in any_view(), memory in 1u64..4096, cpu in 0u64..4000, label in 0u8..3, apart in 0u8..3, pack: bool,
        ) {
            let index = Index::new(&view).unwrap();
            let mut request = request(memory, cpu);
            request.labels.insert("app".into(), format!("a{label}"));
            request.affinity.apart = vec![Selector { key: "app".into(), value: Some(format!("a{apart}")) }];
            let aim = if pack { Aim::Pack } else { Aim::Spread };
            let placement = place(&index, &request, aim);
            prop_assert_eq!(placement.considered.len(), view.nodes.len());
            // The same said again, plainly.
            let can = |node: &NodeView| {
                let here = || view.capsules.iter().filter(|c| c.node == node.name);
                let held: u64 = here().map(|c| c.memory_kib).sum();
                let cpu_here: u64 = here().map(|c| c.used.minute.cpu_milli).sum();
                !node.cordoned
                    && held + request.memory_kib <= node.capacity.memory_kib
                    && cpu_here + cpu <= node.capacity.cpu_milli * CPU_PERCENT / 100
                    && here().all(|c| c.labels["app"] != format!("a{apart}"))
                    && here().all(|c| c.affinity.apart.iter().all(|s| s.value != Some(format!("a{label}"))))
            };
            for considered in &placement.considered {
                let node = view.nodes.iter().find(|n| n.name == considered.node).unwrap();
                prop_assert_eq!(considered.score.is_some(), can(node), "{}: {:?}", &node.name, &considered.reasons);
                prop_assert!(!considered.reasons.is_empty());
            }
            prop_assert!(placement.considered.is_sorted_by_key(|c| Reverse(c.score)));
            prop_assert_eq!(placement.node.is_some(), view.nodes.iter().any(can));
        }
    }
}
