//! fcap's REST API: request and response types, and paths.
//!
//! A node (`fcapd`) serves these paths for its own capsules; a cluster's
//! controller serves the same for all of them. All bodies are JSON unless said
//! otherwise. Errors are an [`ErrorBody`] with a fitting HTTP status.
//!
//! | method and path | request | response |
//! |---|---|---|
//! | `GET /v1/version` | | [`Version`] |
//! | `GET /v1/openapi.json` | | the OpenAPI document |
//! | `GET /v1/node` | | [`Node`] |
//! | `PATCH /v1/node` | [`NodeUpdate`] | [`Node`] |
//! | `POST /v1/node/adopt` | [`Adopt`] | 204 |
//! | `GET /v1/node/certificate` | | [`NodeCertificate`] |
//! | `PUT /v1/node/certificate` | [`RenewCertificate`] | [`NodeCertificate`] |
//! | `GET /v1/node/overlay` | | [`OverlayStatus`], or null |
//! | `PUT /v1/node/overlay` | [`Overlay`] | [`OverlayStatus`] |
//! | `GET /v1/overlay/endpoints?follow=` | | [`OverlayUpdate`]s, one JSON object a line; for nodes of the overlay |
//! | `GET /v1/networks` | | `[`[`Network`]`]` |
//! | `POST /v1/networks` | [`CreateNetwork`] | 201 [`Network`] |
//! | `GET /v1/networks/{name}` | | [`Network`] |
//! | `DELETE /v1/networks/{name}` | | 204 |
//! | `GET /v1/images` | | `[`[`Image`]`]` |
//! | `GET /v1/images/{digest}` | | [`Image`] |
//! | `PUT /v1/images/{digest}` | the bytes | 201 [`Image`] |
//! | `DELETE /v1/images/{digest}` | | 204 |
//! | `GET /v1/capsules?all=` | | `[`[`Capsule`]`]` |
//! | `POST /v1/capsules` | [`CreateCapsule`] | 201 [`Capsule`] |
//! | `POST /v1/run` | [`CreateCapsule`] | frames: the capsule, its output, its end ([`stream`]) |
//! | `GET /v1/capsules/{id}` | | [`Capsule`] |
//! | `PATCH /v1/capsules/{id}` | [`UpdateCapsule`] | [`Capsule`] |
//! | `DELETE /v1/capsules/{id}?force=` | | 204 |
//! | `POST /v1/capsules/{id}/start`, `/kill`, `/pause`, `/unpause` | | [`Capsule`] |
//! | `POST /v1/capsules/{id}/stop?timeout_s=` | | [`Capsule`] |
//! | `GET /v1/capsules/{id}/wait` | | [`End`], once it has ended and is not restarted |
//! | `GET /v1/capsules/{id}/logs?follow=&tail=&since_ms=` | | frames: output, with `follow` then the end ([`stream`]) |
//! | `GET /v1/capsules/{id}/attach` | | frames: output from now on, then the end |
//! | `POST /v1/capsules/{id}/stdin?keep_open=` | the bytes, as they come | 204; the end of the body is the end of input unless `keep_open` |
//! | `GET /v1/stats` | | `[`[`Stats`]`]` of all running capsules |
//! | `GET /v1/events?since_ms=&follow=` | | [`Event`]s, one JSON object a line |
//! | `POST /v1/prune` | | [`Pruned`] |
//! | `GET /metrics` | | numbers for Prometheus, as text |
//!
//! `{id}` is a full id, a unique prefix of one, or a name.
//!
//! Times are milliseconds (or, where a name says so, nanoseconds) since the Unix
//! epoch; sizes of memory are KiB.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub mod cluster;
pub mod migrate;
mod network;
pub mod stream;

pub use network::{
    CreateNetwork, DEFAULT_NETWORK, Endpoint, Lan, MAX_NETWORK_NAME, MAX_NETWORKS, MAX_PORTS, NetStats,
    Network, Overlay, OverlayEndpoint, OverlayPeer, OverlayStatus, OverlayUpdate, PeerStatus, Protocol,
    PublishPort, PublishedPort,
};

/// Where fcapd listens inside a node unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/fcap/fcapd.sock";
/// The TCP port of fcapd unless told otherwise.
pub const DEFAULT_PORT: u16 = 7070;
/// Memory of a capsule unless told otherwise.
pub const DEFAULT_MEMORY_KIB: u64 = 16 * 1024;
/// A capsule's scheduler weight unless told otherwise (credit2's own default).
pub const DEFAULT_WEIGHT: u16 = 256;
/// Longest name of a capsule, in bytes.
pub const MAX_NAME: usize = 63;

/// Body of every response that reports an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// For programs.
    pub code: ErrorCode,
    /// For people: the object and the remedy.
    pub message: String,
}

/// Kinds of errors that a client may want to tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// 400: the request makes no sense.
    BadRequest,
    /// 401: no token, or a wrong one.
    Unauthorized,
    /// 404: no such capsule.
    NoSuchCapsule,
    /// 404: no such image.
    NoSuchImage,
    /// 404: no such network.
    NoSuchNetwork,
    /// 404: the cluster has no such node.
    NoSuchNode,
    /// 404: the controller has no such operation.
    NoSuchOperation,
    /// 404: the controller has no such policy.
    NoSuchPolicy,
    /// 404: no such path.
    NoSuchPath,
    /// 405: the path has no such method.
    NoSuchMethod,
    /// 409: an id prefix that fits several capsules.
    Ambiguous,
    /// 409: the name is taken.
    NameTaken,
    /// 409: another capsule or program has the node's port.
    PortTaken,
    /// 409: capsules have addresses in the network.
    NetworkInUse,
    /// 409: not possible in the capsule's state.
    WrongState,
    /// 413: larger than the node takes.
    TooLarge,
    /// 422: the image cannot be run.
    BadImage,
    /// 422: the image needs more memory than the capsule is given.
    NotEnoughMemory,
    /// 507: the node has no room (memory, disk, xenstore quota).
    NoRoom,
    /// 507: the network has no address left for this node.
    NoAddress,
    /// 500: the hypervisor or the node failed.
    Internal,
    /// 503: a node that is needed does not answer the controller.
    NodeUnreachable,
}

impl ErrorCode {
    /// The HTTP status that goes with it.
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::NoSuchCapsule
            | Self::NoSuchImage
            | Self::NoSuchNetwork
            | Self::NoSuchNode
            | Self::NoSuchOperation
            | Self::NoSuchPolicy
            | Self::NoSuchPath => 404,
            Self::NoSuchMethod => 405,
            Self::Ambiguous | Self::NameTaken | Self::PortTaken | Self::NetworkInUse | Self::WrongState => {
                409
            }
            Self::TooLarge => 413,
            Self::BadImage | Self::NotEnoughMemory => 422,
            Self::Internal => 500,
            Self::NodeUnreachable => 503,
            Self::NoRoom | Self::NoAddress => 507,
        }
    }
}

/// What answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Version {
    /// Version of the server.
    pub version: String,
    /// Version of the API, "v1".
    pub api: String,
    /// Hypervisor and its version, "Xen 4.17.7" or "simulator".
    pub hypervisor: String,
}

/// A cloud VM that runs capsules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its flavor, if somebody said.
    pub flavor: Option<String>,
    /// As [`Version::hypervisor`].
    pub hypervisor: String,
    /// Processors.
    pub cpus: u32,
    /// All memory.
    pub memory_kib: u64,
    /// Memory that new capsules can have.
    pub free_memory_kib: u64,
    /// Capsules that run or are paused.
    pub capsules: u32,
    /// Time since the daemon's start.
    pub uptime_ms: u64,
    /// Whether the hypervisor can track dirty pages of PV guests itself.
    pub log_dirty: bool,
    /// Pre-built capsules to hold ready for each image in recent use; 0 turns the pool off.
    pub pool_size: u32,
    /// Pre-built capsules that are ready.
    pub pool_ready: u32,
    /// Processor time that dom0 itself has used since its boot.
    pub dom0_cpu_time_ns: u64,
}

/// Settings of a node that can change while it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NodeUpdate {
    /// As [`Node::pool_size`].
    pub pool_size: Option<u32>,
}

/// Gives a freshly cloned node its identity. Accepted once after a start.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Adopt {
    /// The node's name from now on.
    pub name: String,
    /// Its flavor.
    pub flavor: Option<String>,
    /// The bearer token that is valid from now on, in place of the present one.
    pub token: String,
    /// Hex, 64 digits: entropy of its own, so that clones differ.
    pub seed: String,
    /// The wall clock now, nanoseconds since the Unix epoch.
    pub wall_time_ns: u64,
    /// Its card on the wire between nodes, if it has one.
    #[serde(default)]
    pub lan: Option<Lan>,
    /// Who it is in its cluster, if it is in one: its key, its certificate and the certificate of
    /// the cluster's authority, in PEM. The certificate bears its name.
    #[serde(default)]
    pub identity: Option<String>,
}

/// How a node is known to the other machines of its cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeCertificate {
    /// The name in its certificate.
    pub name: String,
    /// SHA-256 of the certificate of the cluster's authority, 64 hex digits.
    pub authority: String,
    /// From when on its certificate is valid, milliseconds since the Unix epoch.
    pub not_before_ms: u64,
    /// Until when.
    pub not_after_ms: u64,
    /// A PKCS #10 request for the next one, in PEM.
    pub request: String,
}

/// A new certificate for a node, in the place of the one that it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RenewCertificate {
    /// The certificate and that of the cluster's authority, in PEM.
    pub chain: String,
}

/// An image that a node holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Image {
    /// `sha256:` and 64 hex digits.
    pub digest: String,
    /// Size of the file in bytes.
    pub size: u64,
    /// What it is.
    pub kind: ImageKind,
    /// Least memory to start it; for kernels only.
    pub min_memory_kib: Option<u64>,
}

/// What an uploaded image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ImageKind {
    /// An application linked with fcap's library OS.
    Capsule,
    /// Another PV kernel.
    Kernel,
    /// Anything else: an initrd.
    Data,
}

/// A capsule to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct CreateCapsule {
    /// Its name; one is made up when there is none. Letters, digits, `_`, `.`, `-`, at most [`MAX_NAME`].
    pub name: Option<String>,
    /// Digest of the image.
    pub image: String,
    /// What people call the image; its first argument too.
    pub image_name: Option<String>,
    /// Arguments after the program's name.
    pub args: Vec<String>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// Memory; [`DEFAULT_MEMORY_KIB`] when not given.
    pub memory_kib: Option<u64>,
    /// Memory that [`UpdateCapsule::memory_kib`] can give it while it runs; as much as its memory
    /// when not given. For capsules alone.
    pub max_memory_kib: Option<u64>,
    /// Virtual processors; 1 when not given.
    pub vcpus: Option<u32>,
    /// Most processor time it may use, in percent of one processor; 0 is no limit.
    pub cpu_cap: u16,
    /// Share of processor time under contention; [`DEFAULT_WEIGHT`] when not given.
    pub weight: Option<u16>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What to do when it ends.
    pub restart: RestartPolicy,
    /// Remove it with its logs when it ends.
    pub remove: bool,
    /// Whether standard input will come; otherwise it is at its end from the start.
    pub stdin: bool,
    /// Digest of an initrd, for kernels that are not capsules.
    pub initrd: Option<String>,
    /// Kernel command line, for kernels that are not capsules.
    pub append: Option<String>,
    /// Networks to be in; none when empty. When not given, [`DEFAULT_NETWORK`] for images that
    /// are linked with the library OS's network, and none for others.
    pub networks: Option<Vec<String>>,
    /// Ports of the node that lead to it, through its first network.
    pub ports: Vec<PublishPort>,
    /// Most it may send, in kilobits a second; no limit when not given.
    pub net_rate_kbit: Option<u32>,
    /// Make it, but do not start it (`POST /v1/capsules` only).
    pub no_start: bool,
}

/// What to do when a capsule ends by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Nothing.
    #[default]
    No,
    /// Start it again, unless it ended with exit code 0; at most so many times, when given.
    OnFailure {
        /// Most restarts in a row.
        max_retries: Option<u32>,
    },
    /// Start it again.
    Always,
    /// Start it again, but not after the operator stopped it and the daemon restarted.
    UnlessStopped,
}

/// A capsule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Capsule {
    /// 32 hex digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Node it is on.
    pub node: String,
    /// Digest of its image.
    pub image: String,
    /// What people call its image.
    pub image_name: String,
    /// Arguments after the program's name.
    pub args: Vec<String>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What it does now.
    pub state: State,
    /// Xen's number for it while it has one.
    pub domid: Option<u32>,
    /// When it was made.
    pub created_ms: u64,
    /// When it was last started.
    pub started_ms: Option<u64>,
    /// Memory it has, or will have when it is started.
    pub memory_kib: u64,
    /// Memory it can be given while it runs.
    #[serde(default)]
    pub max_memory_kib: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// As [`CreateCapsule::cpu_cap`].
    pub cpu_cap: u16,
    /// As [`CreateCapsule::weight`].
    pub weight: u16,
    /// Processor time used since its last start.
    pub cpu_time_ns: u64,
    /// As [`CreateCapsule::restart`].
    pub restart: RestartPolicy,
    /// How many times it was restarted by its policy.
    pub restarts: u32,
    /// As [`CreateCapsule::remove`].
    pub remove: bool,
    /// As [`CreateCapsule::stdin`].
    pub stdin: bool,
    /// Its places in networks.
    #[serde(default)]
    pub networks: Vec<Endpoint>,
    /// Ports of the node that lead to it while it runs.
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
    /// As [`CreateCapsule::net_rate_kbit`].
    #[serde(default)]
    pub net_rate_kbit: Option<u32>,
    /// What went through its interfaces; known while it runs, and left out of lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<NetStats>,
    /// How its last run ended.
    pub end: Option<End>,
    /// Where the time of its last start went, in order; known to the daemon that started it, and
    /// left out of lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
}

/// One step of starting a capsule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Step {
    /// What was done.
    pub name: String,
    /// How long it took.
    pub ns: u64,
}

/// What a capsule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Made and not started.
    Created,
    /// Runs.
    Running,
    /// Held by the operator.
    Paused,
    /// Was asked to stop.
    Stopping,
    /// Waits to be restarted by its policy.
    Restarting,
    /// Ended.
    Exited,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct End {
    /// The exit code, as a shell would see it.
    pub exit_code: i32,
    /// Why.
    pub reason: EndReason,
    /// What the capsule or the node had to say about it; printable text.
    pub message: Option<String>,
    /// Return addresses at a panic or fault, innermost first, as hex.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backtrace: Vec<String>,
    /// When.
    pub ended_ms: u64,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// `main` returned or the application exited.
    Exited,
    /// The application panicked: exit code 101.
    Panicked,
    /// It ran out of its memory: exit code 134.
    OutOfMemory,
    /// A processor exception or another crash: exit code 139.
    Crashed,
    /// It stopped when it was asked to: exit code 143 unless it chose its own.
    Stopped,
    /// It was killed: exit code 137.
    Killed,
    /// The node lost it (the node itself was restarted): exit code 137.
    Lost,
}

/// What can be changed while a capsule exists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct UpdateCapsule {
    /// A new name.
    pub name: Option<String>,
    /// Memory, in whole pages. A capsule that runs gives memory back or takes more, up to
    /// [`Capsule::max_memory_kib`]; what it uses it keeps: then the answer is an error
    /// ([`ErrorCode::WrongState`]) that says how much was given back, which holds. Where the node
    /// has too little, it is [`ErrorCode::NoRoom`].
    pub memory_kib: Option<u64>,
    /// As [`CreateCapsule::cpu_cap`].
    pub cpu_cap: Option<u16>,
    /// As [`CreateCapsule::weight`].
    pub weight: Option<u16>,
    /// As [`CreateCapsule::restart`].
    pub restart: Option<RestartPolicy>,
}

/// Use of resources by one capsule. Two samples make a rate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Stats {
    /// The capsule.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When the sample was taken, on a clock of the node that never runs backwards.
    pub monotonic_ns: u64,
    /// Processor time used since its start.
    pub cpu_time_ns: u64,
    /// Memory it holds now.
    pub memory_kib: u64,
    /// Memory it can be given while it runs.
    pub max_memory_kib: u64,
    /// Virtual processors online.
    pub vcpus: u32,
    /// As [`CreateCapsule::cpu_cap`].
    pub cpu_cap: u16,
    /// As [`CreateCapsule::weight`].
    pub weight: u16,
    /// Bytes it has written to its console since the daemon knows it.
    pub output_bytes: u64,
    /// What went through its interfaces, if it has any.
    #[serde(default)]
    pub net: Option<NetStats>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Event {
    /// When.
    pub time_ms: u64,
    /// What.
    pub action: Action,
    /// To which capsule.
    pub id: String,
    /// Its name then.
    pub name: String,
    /// On which node.
    pub node: String,
    /// How it ended, for [`Action::Die`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
}

/// What can happen to a capsule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // the words are docker's
pub enum Action {
    Create,
    Start,
    Pause,
    Unpause,
    Stop,
    Kill,
    Die,
    Restart,
    Rename,
    Update,
    Remove,
    /// It has moved to another node.
    Leave,
    /// It has come from another node, or out of an image.
    Arrive,
}

/// What [`POST /v1/prune`](crate) removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pruned {
    /// Ids of ended capsules.
    pub capsules: Vec<String>,
    /// Digests of images that no capsule uses.
    pub images: Vec<String>,
}
