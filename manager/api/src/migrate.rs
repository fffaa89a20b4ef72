//! Moving, saving, restoring and copying running capsules.
//!
//! | method and path | request | response |
//! |---|---|---|
//! | `GET /v1/migrations/identity` | | [`MigrationIdentity`] |
//! | `POST /v1/migrations` | [`Invitation`] | 201 [`Ticket`]: a place for one capsule to come |
//! | `POST /v1/capsules/{id}/migrate` | [`Migrate`] | [`Progress`] as it is made, one JSON object a line; the last one is the end |
//! | `POST /v1/capsules/{id}/save?mode=` | | the image, as it is made; afterwards the capsule is held until one of the following |
//! | `GET /v1/capsules/{id}/save` | | why the last image broke off, an [`ErrorBody`] or null |
//! | `POST /v1/capsules/{id}/saved` | | 204; the image is in safety, the capsule ends |
//! | `POST /v1/restore?name=&clone=` | an image | 201 [`Capsule`](crate::Capsule) |
//!
//! A client that moves a capsule asks the destination for a [`Ticket`] and gives it to the source.
//! From then on the two nodes speak to each other; that the client goes away ends the attempt as
//! long as the source still has the capsule.

use serde::{Deserialize, Serialize};

use crate::ErrorBody;

/// The port that nodes move capsules over unless told otherwise.
pub const MIGRATION_PORT: u16 = 7072;
/// Media type of a saved capsule.
pub const IMAGE_MEDIA_TYPE: &str = "application/x-fcap-image";
/// Media type of [`Progress`], one a line.
pub const PROGRESS_MEDIA_TYPE: &str = "application/x-ndjson";

/// How other nodes know that they speak to this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MigrationIdentity {
    /// SHA-256 of the certificate that the node has made for itself, 64 hex digits.
    pub fingerprint: String,
    /// Its place in a cluster, if it has one.
    #[serde(default)]
    pub member: Option<Member>,
}

/// A node's place in a cluster: nodes of one cluster know each other by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// SHA-256 of the certificate of the cluster's authority, 64 hex digits.
    pub authority: String,
    /// The node's name.
    pub node: String,
}

/// Asks a node to take a capsule in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Invitation {
    /// Fingerprint of the node that it will come from; nobody else may use the ticket.
    pub source: String,
    /// The place of that node in its cluster: in the same one it is known by its name instead.
    #[serde(default)]
    pub member: Option<Member>,
}

/// Invites a capsule from this node.
impl From<MigrationIdentity> for Invitation {
    fn from(source: MigrationIdentity) -> Self {
        Self { source: source.fingerprint, member: source.member }
    }
}

/// A node's promise to take one capsule in. It is void after some minutes, or once it was used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Ticket {
    /// Name of the node.
    pub node: String,
    /// Where other nodes reach it, "10.99.0.2:7072".
    pub address: String,
    /// Fingerprint of the certificate that it has made for itself.
    pub fingerprint: String,
    /// The authority of the cluster that both nodes are in, 64 hex digits: they know each other by
    /// their names then, and not by fingerprints.
    #[serde(default)]
    pub authority: Option<String>,
    /// Number of the attempt, 32 hex digits.
    pub attempt: String,
}

/// Moves a capsule to another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Migrate {
    /// Where to.
    pub ticket: Ticket,
    /// How.
    #[serde(default)]
    pub how: Precopy,
}

/// How memory is copied while the capsule runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Precopy {
    /// The capsule is stopped once the rest should take no longer, in milliseconds; 100 when not
    /// given. When given and it cannot be had, the capsule stays.
    pub max_downtime_ms: Option<u64>,
    /// Most rounds while it runs; 20 when not given.
    pub max_rounds: Option<u32>,
    /// Most bytes a second; no limit when not given.
    pub rate: Option<u64>,
    /// Stop it first, then copy.
    pub stop_copy: bool,
    /// Who tells which pages it writes to.
    pub dirty: DirtyTracking,
    /// Ends once the destination has made room for it: only asks whether it could move.
    pub dry_run: bool,
}

/// Who tells which pages a capsule writes to while it is copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum DirtyTracking {
    /// The best that there is for it.
    #[default]
    Best,
    /// Its library OS.
    Guest,
    /// The node, by dirty bits of the page tables.
    Dbits,
    /// The hypervisor, where it can.
    Log,
}

/// What happens during a move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Progress {
    /// The destination has made room.
    Started {
        /// Pages that the capsule has.
        pages: u64,
        /// Who tells which pages it writes to.
        tracking: String,
    },
    /// A round is over.
    Round(Round),
    /// The capsule is being stopped.
    Suspending {
        /// Why now.
        why: String,
    },
    /// It could move, which was all that was asked.
    Possible,
    /// It runs at the destination.
    Done(Moved),
    /// It stays where it was.
    Failed {
        /// Why.
        error: ErrorBody,
    },
}

/// A round of copying.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Round {
    /// Its number, from 1.
    pub round: u32,
    /// Pages whose content was sent.
    pub pages: u64,
    /// Pages that need not be sent: void or zero.
    pub skipped: u64,
    /// Bytes on the wire.
    pub bytes: u64,
    /// How long it took.
    pub ms: f64,
    /// Pages written meanwhile, which the next round sends.
    pub dirty: u64,
    /// Pages written in a second.
    pub dirty_rate: f64,
    /// How long the rest would take if it were stopped now.
    pub expected_downtime_ms: f64,
}

/// How a move went.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Moved {
    /// Node that it runs on now.
    pub node: String,
    /// From the first word to the destination to the last one from it.
    pub total_ms: f64,
    /// From the request to suspend until the destination said that it runs.
    pub downtime_ms: f64,
    /// Rounds while it ran.
    pub rounds: u32,
    /// Pages whose content was sent.
    pub pages: u64,
    /// Pages that were zero or void.
    pub skipped: u64,
    /// Bytes on the wire.
    pub bytes: u64,
    /// Where the time went, in order.
    #[serde(default)]
    pub steps: Vec<MoveStep>,
    /// The source has not heard yet that the destination runs it; the nodes settle that by
    /// themselves, and until then the source holds its copy.
    #[serde(default)]
    pub unsettled: bool,
}

/// A part of a move, as the source sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MoveStep {
    /// What was done.
    pub name: String,
    /// How long it took.
    pub ms: f64,
    /// Whether the capsule stood still meanwhile.
    pub suspended: bool,
}

/// What becomes of a capsule that is saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum SaveMode {
    /// It is held, and ends once the image is said to be in safety. If nobody says so, it goes on.
    #[default]
    Save,
    /// It goes on.
    Checkpoint,
    /// It goes on, and the image is for a second one.
    Clone,
}
