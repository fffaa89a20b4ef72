//! What policies propose, and what becomes of it.

use serde::{Deserialize, Serialize};

/// One change that a policy, or an operator, wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Proposal {
    /// The change.
    #[serde(flatten)]
    pub change: Change,
    /// Why, for people.
    pub reason: String,
    /// Line of the script that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
}

/// A change of the cluster. Capsules are named by id, or by name where only one has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Change {
    /// Move a running capsule.
    Migrate {
        /// The capsule.
        capsule: String,
        /// The node, or one that the same proposals start.
        to: String,
    },
    /// Start a node.
    StartNode {
        /// Its flavor.
        flavor: String,
        /// What other proposals call it; the node's real name may become another one.
        name: String,
    },
    /// Stop a node that is empty once all is done.
    StopNode {
        /// The node.
        node: String,
    },
    /// Change what a running capsule may use.
    Resize {
        /// The capsule.
        capsule: String,
        /// Memory it shall hold.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        memory_kib: Option<u64>,
        /// Most processor time, in percent of one processor; 0 is no limit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cpu_cap: Option<u16>,
        /// Share of processor time under contention.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        weight: Option<u16>,
    },
}

/// Proposals that can be executed, in an order in which no node ever holds too much.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Plan {
    /// One after the other; what is in one step may happen at the same time.
    pub steps: Vec<PlanStep>,
    /// What will not be done.
    pub rejected: Vec<Rejected>,
    /// What an hour costs less afterwards; negative when it costs more.
    pub saving_micros: i64,
}

/// Changes that may happen at the same time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PlanStep {
    /// The changes.
    pub proposals: Vec<Proposal>,
}

/// A proposal that will not be executed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Rejected {
    /// Which of the proposals, counted from 1.
    pub number: usize,
    /// The proposal.
    pub proposal: Proposal,
    /// Why not.
    pub why: String,
}

/// Where a capsule goes, or would go, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Placement {
    /// The node, if one can take it.
    pub node: Option<String>,
    /// The cheapest flavor whose fresh node could take it.
    pub flavor: Option<String>,
    /// All nodes, the best first; those that cannot take it last.
    pub considered: Vec<Considered>,
}

/// A node that was looked at for a capsule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Considered {
    /// The node.
    pub node: String,
    /// How well it fits, in thousandths, more is better; nothing when it cannot take the capsule.
    pub score: Option<i64>,
    /// What speaks for and against it, or why it cannot.
    pub reasons: Vec<String>,
}
