//! What a controller does in several steps.

use serde::{Deserialize, Serialize};

use super::{Failure, Proposal};

/// Something in several steps, which survives the controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Operation {
    /// Its number.
    pub id: String,
    /// What is to be done.
    pub kind: OperationKind,
    /// How far it is.
    pub state: OperationState,
    /// Whether somebody wants it to stop.
    #[serde(default)]
    pub cancelled: bool,
    /// Who wanted it: "operator", or "policy NAME".
    pub by: String,
    /// Why.
    pub reason: String,
    /// When it began.
    pub started_ms: u64,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// What was done, and what is being done.
    pub steps: Vec<Step>,
    /// Why it failed, or what is left.
    pub message: Option<String>,
}

/// What an operation is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum OperationKind {
    /// Start a node.
    Add {
        /// Its flavor.
        flavor: String,
        /// Its labels.
        labels: std::collections::BTreeMap<String, String>,
    },
    /// Destroy a node that is empty, or whatever it has when `force`.
    Remove {
        /// The node.
        node: String,
        /// Whether its capsules may end with it.
        force: bool,
    },
    /// Move all capsules of a node away.
    Drain {
        /// The node.
        node: String,
        /// Most capsules that move at the same time.
        parallel: u32,
        /// What becomes of those that have moved if not all can.
        on_failure: Failure,
    },
    /// Start a node, move everything to it, and destroy the old one.
    Replace {
        /// The old one.
        node: String,
        /// Flavor of the new one.
        flavor: String,
        /// Most capsules that move at the same time.
        parallel: u32,
    },
    /// Execute proposals, one group after the other; what is in a group may happen at the same time.
    Plan {
        /// The groups.
        groups: Vec<Vec<Proposal>>,
        /// Most capsules that move at the same time.
        parallel: u32,
        /// What an hour costs less afterwards.
        saving_micros: i64,
    },
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// It is being done.
    Running,
    /// It failed or was cancelled, and what it had done is being undone.
    Undoing,
    /// All is done.
    Done,
    /// It stopped at the first failure.
    Failed,
    /// Somebody has cancelled it.
    Cancelled,
}

impl OperationState {
    /// Whether nothing more happens.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// A step of an operation; written down before it is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
// A step of a capsule's start has the name already.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = OperationStep))]
pub struct Step {
    /// What it does.
    pub work: Work,
    /// How far it is.
    pub state: StepState,
    /// When it began.
    pub started_ms: u64,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// How it goes or went.
    pub note: Option<String>,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "work", rename_all = "snake_case")]
pub enum Work {
    /// Nothing new may come to a node.
    Cordon {
        /// The node.
        node: String,
    },
    /// New capsules may come to a node again.
    Uncordon {
        /// The node.
        node: String,
    },
    /// Start a node.
    Create {
        /// Its name.
        node: String,
        /// Its flavor.
        flavor: String,
    },
    /// Move a running capsule.
    Move {
        /// Id of the capsule.
        capsule: String,
        /// Its name.
        name: String,
        /// Where from.
        from: String,
        /// Where to.
        to: String,
    },
    /// Change what a running capsule may use.
    Resize {
        /// Id of the capsule.
        capsule: String,
        /// Its name.
        name: String,
        /// Memory it shall hold.
        memory_kib: Option<u64>,
        /// Most processor time, in percent of one processor; 0 is no limit.
        cpu_cap: Option<u16>,
        /// Share of processor time under contention.
        weight: Option<u16>,
    },
    /// Destroy a node.
    Destroy {
        /// The node.
        node: String,
    },
}

/// How far a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// It is being taken; after a crash it is taken again, from what there is then.
    Running,
    /// It is taken.
    Done,
    /// It could not be taken.
    Failed,
}

/// Who did what, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditEntry {
    /// When.
    pub time_ms: u64,
    /// Who.
    pub by: String,
    /// What.
    pub what: String,
    /// Why.
    pub reason: String,
    /// The operation that does it, if it takes one.
    pub operation: Option<String>,
}
