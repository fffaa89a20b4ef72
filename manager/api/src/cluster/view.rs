//! The cluster as placement and policies see it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::State;

/// A cluster at one moment: all that placement and policies may look at. `fcap policy test` takes
/// a saved one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct View {
    /// The moment.
    pub time_ms: u64,
    /// Since when use has been measured: windows reach back no further.
    #[serde(default)]
    pub watched_since_ms: u64,
    /// How far the cluster's people are east of Greenwich: business hours are theirs.
    #[serde(default)]
    pub utc_offset_minutes: i32,
    /// All nodes.
    pub nodes: Vec<NodeView>,
    /// All capsules that a node would take with it: those with a domain, and those that are made
    /// and not started.
    pub capsules: Vec<CapsuleView>,
    /// What nodes can be started.
    pub flavors: Vec<Flavor>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// Name of its flavor, if it has one.
    #[serde(default)]
    pub flavor: Option<String>,
    /// Whether it can be relied on.
    pub state: NodeState,
    /// Whether nothing new may come to it.
    #[serde(default)]
    pub cordoned: bool,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What an hour of it costs; not given where nobody pays for it.
    #[serde(default)]
    pub price_micros: Option<u64>,
    /// When it was started.
    pub started_ms: u64,
    /// What its capsules can have in all.
    pub capacity: Capacity,
    /// Memory that new capsules can have, as the node says.
    pub free_memory_kib: u64,
    /// What its capsules used.
    #[serde(default)]
    pub used: Windows,
}

/// Whether a node can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Was asked for, and has not answered yet.
    Starting,
    /// Answers.
    Ready,
    /// Has not answered lately.
    Suspect,
    /// Has not answered for long. Its capsules may still run.
    Lost,
    /// Is about to be destroyed.
    Stopping,
}

/// What capsules can have of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Capacity {
    /// Processor time.
    pub cpu_milli: u64,
    /// Memory.
    pub memory_kib: u64,
}

/// What was used, on average over the last minute, ten minutes and hour (or over its life, where
/// that is shorter).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Windows {
    /// The last minute.
    pub minute: Use,
    /// The last ten minutes.
    pub ten_minutes: Use,
    /// The last hour.
    pub hour: Use,
}

/// What was used in a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Use {
    /// Processor time.
    pub cpu_milli: u64,
    /// Memory held.
    pub memory_kib: u64,
    /// What went through network interfaces, in both directions, in kilobits a second.
    pub net_kbit: u64,
}

/// A capsule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CapsuleView {
    /// 32 hex digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Name of the node it is on.
    pub node: String,
    /// What it does. Only what runs can be moved.
    pub state: State,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Where it wants to be.
    #[serde(default)]
    pub affinity: Affinity,
    /// Memory it holds now.
    pub memory_kib: u64,
    /// Memory it may hold; its balloon moves below.
    pub max_memory_kib: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// Most processor time it may use, in percent of one processor; 0 is no limit.
    #[serde(default)]
    pub cpu_cap: u16,
    /// Share of processor time under contention.
    pub weight: u16,
    /// What it used.
    #[serde(default)]
    pub used: Windows,
    /// When it was last moved, if it ever was.
    #[serde(default)]
    pub moved_ms: Option<u64>,
}

/// Where a capsule wants to be, by labels of nodes and of other capsules. It is read from the
/// capsule's own labels `fcap.near`, `fcap.apart` and `fcap.nodes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Affinity {
    /// Rather on a node that has a capsule with one of these labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub near: Vec<Selector>,
    /// Never on a node that has another capsule with one of these labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub apart: Vec<Selector>,
    /// Only on nodes that have all of these labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<Selector>,
}

/// Picks what has a label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Selector {
    /// The label's key.
    pub key: String,
    /// The label's value; any, when not given.
    #[serde(default)]
    pub value: Option<String>,
}

/// A named size of node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Flavor {
    /// Its name.
    pub name: String,
    /// Processors.
    pub vcpus: u32,
    /// Memory of the whole machine: Xen, dom0 and capsules.
    pub memory_mib: u64,
    /// What an hour costs.
    pub price_micros: u64,
    /// What capsules can have of a fresh node.
    pub capacity: Capacity,
}

/// A flavor as people write it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct FlavorSpec {
    /// Its name: letters, digits, `_`, `.`, `-`.
    pub name: String,
    /// Processors.
    pub vcpus: u32,
    /// Memory of the whole machine.
    pub memory_mib: u64,
    /// Memory that Xen and dom0 keep; what nodes usually need, when not given.
    #[serde(default)]
    pub reserved_memory_mib: Option<u64>,
    /// What an hour costs, in the currency's unit. Must be given, and more than zero.
    #[serde(default)]
    pub price_per_hour: Option<f64>,
}
