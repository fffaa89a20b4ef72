//! What a cluster costs.

use serde::{Deserialize, Serialize};

/// What the cluster costs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Bill {
    /// From when on.
    pub since_ms: u64,
    /// Until when.
    pub until_ms: u64,
    /// What an hour costs now.
    pub per_hour_micros: u64,
    /// What it has cost.
    pub cost_micros: u64,
    /// What policies have saved; negative when they have cost something.
    pub saved_micros: i64,
    /// What an hour costs less now because of policies; negative when it costs more.
    pub saving_per_hour_micros: i64,
    /// Each node that ran in this time, in the order of their starts.
    pub nodes: Vec<NodeCost>,
}

/// What a node costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeCost {
    /// Its name.
    pub node: String,
    /// Its flavor, if it has one.
    pub flavor: Option<String>,
    /// What an hour of it costs.
    pub price_micros: u64,
    /// When it was started.
    pub started_ms: u64,
    /// Whether a policy has started it.
    pub started_by_policy: bool,
    /// When it was stopped, if it was.
    pub stopped_ms: Option<u64>,
    /// Whether a policy has stopped it.
    pub stopped_by_policy: bool,
    /// What it has cost.
    pub cost_micros: u64,
}
