//! Policies: scripts that change the cluster, what they did, and why.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{OperationState, Plan, Proposal, View};

/// A value that a policy is given by the operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(untagged)]
pub enum Setting {
    /// Yes or no.
    Bool(bool),
    /// A number.
    Number(f64),
    /// Text.
    Text(String),
}

/// A policy as somebody wants it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct PolicySpec {
    /// Its script; when not given, that of the policy of this name that comes with fcap.
    pub source: Option<String>,
    /// What the script is given.
    pub settings: BTreeMap<String, Setting>,
    /// How often it is run.
    pub interval_ms: u64,
    /// Whether it is run at all.
    pub enabled: bool,
    /// Whether what it proposes is recorded only, and not done.
    pub dry_run: bool,
    /// What its plans keep to.
    pub rules: Rules,
}

impl Default for PolicySpec {
    fn default() -> Self {
        Self {
            source: None,
            settings: BTreeMap::new(),
            interval_ms: 60_000,
            enabled: true,
            dry_run: false,
            rules: Rules::default(),
        }
    }
}

/// What plans of a policy keep to, where it is not the usual.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// A capsule that was moved stays for so many seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cooldown_s: Option<u64>,
    /// A node that was started runs for so many seconds at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_age_s: Option<u64>,
    /// Capsules that move at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel: Option<u64>,
    /// Moves at the same time that one node takes part in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel_per_node: Option<u64>,
    /// Moves in one plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moves: Option<u64>,
    /// Nodes of the cluster at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<u64>,
    /// Nodes that stay ready, however idle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub least_nodes: Option<u64>,
    /// Part of a node's processors that may be in use after a move, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u64>,
    /// How much fuller a node that stays must be than the other one becomes, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gain_percent: Option<u64>,
    /// Least saving by nodes that replace others and are not larger, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saving_percent: Option<u64>,
}

/// A policy that the controller runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// How it is wanted.
    pub spec: PolicySpec,
    /// Whether it is run.
    pub state: PolicyState,
    /// Failures in a row.
    pub failures: u32,
    /// What its last failure was, or why it is suspended.
    pub message: Option<String>,
    /// Who wanted it.
    pub by: String,
    /// Since when.
    pub applied_ms: u64,
    /// When this controller last ran it.
    pub last_run_ms: Option<u64>,
    /// When it is run next, if it is; it waits until no operation is under way.
    pub next_run_ms: Option<u64>,
}

/// Whether a policy is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PolicyState {
    /// It is.
    Active,
    /// The operator wants it not to be.
    Disabled,
    /// It has failed too often, or its plan was cancelled.
    Suspended,
}

/// What to try, with no effect.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct TestPolicy {
    /// A script; when not given, that of the policy of this name.
    pub source: Option<String>,
    /// What it is given; when not given, what the policy of this name is given.
    pub settings: Option<BTreeMap<String, Setting>>,
    /// What its plan keeps to; when not given, what the policy of this name keeps to.
    pub rules: Option<Rules>,
    /// What it looks at; the cluster as it is now, when not given.
    pub view: Option<View>,
}

/// What a policy came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PolicyResult {
    /// Name of the policy.
    pub policy: String,
    /// What it was given.
    pub settings: BTreeMap<String, Setting>,
    /// All that it proposed.
    pub proposals: Vec<Proposal>,
    /// What it printed.
    pub output: Vec<String>,
    /// What would be done, and what not.
    pub plan: Plan,
}

/// A run of a policy that proposed something, or failed. Runs one after the other of which the
/// same came, and nothing was done, are one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PolicyRun {
    /// Its number.
    pub id: String,
    /// Name of the policy.
    pub policy: String,
    /// When.
    pub time_ms: u64,
    /// How many runs in a row came to this.
    pub times: u32,
    /// When the last of them was.
    pub last_ms: u64,
    /// Whether it was to be recorded only.
    pub dry_run: bool,
    /// How many changes it proposed.
    pub proposed: usize,
    /// How many of them were rejected.
    pub rejected: usize,
    /// What was done, or would have been, with the reasons; and what not, and why: the first of it,
    /// where it is much.
    pub plan: Plan,
    /// The first lines of what it printed.
    pub output: Vec<String>,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// The operation that executes its plan.
    pub operation: Option<String>,
    /// How far that is, while it is known.
    pub state: Option<OperationState>,
    /// Why that failed, if it did.
    pub message: Option<String>,
}
