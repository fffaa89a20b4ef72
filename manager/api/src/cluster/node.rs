//! Nodes, as the controller knows them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{NodeState, Windows};

/// A node of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClusterNode {
    /// Its name.
    pub name: String,
    /// Name of its flavor, if it has one.
    pub flavor: Option<String>,
    /// Whether it can be relied on.
    pub state: NodeState,
    /// Why it is not ready, if it is not.
    pub message: Option<String>,
    /// Whether nothing new may come to it.
    pub cordoned: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What an hour of it costs; nothing where nobody pays for it.
    pub price_micros: Option<u64>,
    /// Base of its daemon's URLs, as the controller reaches it.
    pub url: String,
    /// Whether the controller has its machine from a provider, and can destroy it.
    pub provided: bool,
    /// When it was started, or joined.
    pub started_ms: u64,
    /// When it last answered.
    pub seen_ms: Option<u64>,
    /// Its hypervisor and version.
    pub hypervisor: Option<String>,
    /// Processors.
    pub cpus: u32,
    /// All memory.
    pub memory_kib: u64,
    /// Memory that new capsules can have.
    pub free_memory_kib: u64,
    /// Capsules that run or are paused.
    pub capsules: u32,
    /// What its capsules used.
    pub used: Windows,
    /// The operation that has it at present.
    pub operation: Option<String>,
}

/// Has the provider start a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct AddNode {
    /// Its flavor.
    pub flavor: String,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Why, for the record.
    #[serde(default)]
    pub reason: Option<String>,
}

/// Lets one machine join the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct MakeToken {
    /// How long the token is good, in seconds; an hour when not given, a week at most.
    pub ttl_s: Option<u64>,
    /// Host and port at which the machine reaches the controller; where the controller listens
    /// when not given.
    pub address: Option<String>,
}

/// With it one machine joins the cluster, once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Token {
    /// The text for `fcapd --join`. It is shown this once.
    pub token: String,
    /// When it expires, milliseconds since the Unix epoch.
    pub expires_ms: u64,
}

/// What a machine shows to join a cluster.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// The name that it wants.
    pub name: String,
    /// The token's secret.
    pub secret: String,
    /// A PKCS #10 request for its certificate, in PEM.
    pub request: String,
    /// Host at which the controller reaches its daemon; the address that it asks from when not
    /// given.
    #[serde(default)]
    pub host: Option<String>,
    /// The daemon's port.
    pub port: u16,
    /// What its clock shows, milliseconds since the Unix epoch.
    pub time_ms: u64,
}

/// A machine has joined the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Joined {
    /// Its certificate and that of the cluster's authority, in PEM.
    pub chain: String,
}

/// Changes what the controller keeps of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct UpdateClusterNode {
    /// Labels that are given, or taken away where there is no value.
    pub labels: BTreeMap<String, Option<String>>,
}

/// What becomes of capsules that have moved when an operation fails or is cancelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// They stay where they are.
    #[default]
    Leave,
    /// They go back.
    Back,
}

/// Moves all capsules of a node away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Drain {
    /// Most capsules that move at the same time; the controller's own limit when not given.
    pub parallel: Option<u32>,
    /// What becomes of those that have moved if not all can.
    pub on_failure: Failure,
    /// Why, for the record.
    pub reason: Option<String>,
}

/// Starts a node, moves everything to it, and destroys the old one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Replace {
    /// Flavor of the new one; that of the old one when not given.
    #[serde(default)]
    pub flavor: Option<String>,
    /// Most capsules that move at the same time; the controller's own limit when not given.
    #[serde(default)]
    pub parallel: Option<u32>,
    /// Why, for the record.
    #[serde(default)]
    pub reason: Option<String>,
}

/// Moves a running capsule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct MoveTo {
    /// The node to move to.
    pub node: String,
    /// Why, for the record.
    #[serde(default)]
    pub reason: Option<String>,
}
