//! A cluster of nodes: what its controller adds to a node's API.
//!
//! Prices and costs are whole millionths of the currency's unit (`price_micros`), so that sums do
//! not drift. Processor time is in thousandths of a processor (`cpu_milli`).

/// Header in which whoever asks the controller says who they are, for the record.
pub const BY_HEADER: &str = "x-fcap-by";

mod cost;
mod node;
mod operation;
mod plan;
mod policy;
mod target;
mod view;

pub use cost::{Bill, NodeCost};
pub use node::{
    AddNode, ClusterNode, Drain, Failure, Join, Joined, MakeToken, MoveTo, Replace, Token, UpdateClusterNode,
};
pub use operation::{AuditEntry, Operation, OperationKind, OperationState, Step, StepState, Work};
pub use plan::{Change, Considered, Placement, Plan, PlanStep, Proposal, Rejected};
pub use policy::{Policy, PolicyResult, PolicyRun, PolicySpec, PolicyState, Rules, Setting, TestPolicy};
pub use target::MetricsTarget;
pub use view::{
    Affinity, Capacity, CapsuleView, Flavor, FlavorSpec, NodeState, NodeView, Selector, Use, View, Windows,
};
