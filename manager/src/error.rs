//! What can go wrong with a request, and how that is told.

use std::io;

use axum::response::{IntoResponse, Response};
use fcap_api::{ErrorBody, ErrorCode};
use fcap_http::refusal::Refusal;

use crate::{net, toolstack};

/// A request that failed. Messages name the object and, where there is one, the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request makes no sense.
    #[error("{0}")]
    BadRequest(String),
    /// No capsule has this id, prefix or name.
    #[error("no such capsule: {0}")]
    NoSuchCapsule(String),
    /// The node does not hold this image.
    #[error("no such image: {0}; upload it first")]
    NoSuchImage(String),
    /// The node has no network of this name.
    #[error("no such network: {0}; `fcap network ls` shows all, `fcap network create` makes one")]
    NoSuchNetwork(String),
    /// The network cannot go, or not yet.
    #[error("{0}")]
    NetworkInUse(String),
    /// The network has no address left for this node.
    #[error("{0}")]
    NoAddress(String),
    /// Somebody has the node's port.
    #[error("{0}")]
    PortTaken(String),
    /// A prefix that fits several capsules.
    #[error("{prefix} is ambiguous, it fits several capsules: {}", .candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// What it fits: ids and names.
        candidates: Vec<String>,
    },
    /// The name is another capsule's.
    #[error("the name {name} is taken by capsule {owner}; remove or rename that one, or choose another name")]
    NameTaken {
        /// The name.
        name: String,
        /// Id of the capsule that has it.
        owner: String,
    },
    /// Not possible in the state that the object is in.
    #[error("{0}")]
    WrongState(String),
    /// More than the node takes.
    #[error("{0}")]
    TooLarge(String),
    /// The image cannot be run.
    #[error("{0}")]
    BadImage(String),
    /// The node's disk is full.
    #[error("the node has no room to {0}: its disk is full; `fcap prune` removes what is not used")]
    DiskFull(String),
    /// The node has no room for what was sent, or not now.
    #[error("{0}")]
    NoRoom(String),
    /// The node's disk fails.
    #[error("failed to {what}: {source}")]
    Disk {
        /// What was to be done.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The hypervisor refuses or fails.
    #[error(transparent)]
    Toolstack(#[from] toolstack::Error),
    /// dom0's network refuses or fails.
    #[error(transparent)]
    Network(#[from] net::Error),
    /// The daemon is about to end.
    #[error("the daemon is shutting down")]
    ShuttingDown,
}

/// Result of a request.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For `map_err` on file operations: `what` is an infinitive ("write the log of X").
    pub fn disk(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull(what.into()),
            _ => Self::Disk { what: what.into(), source },
        }
    }

    /// The kind of error for clients.
    pub fn code(&self) -> ErrorCode {
        use toolstack::Error as T;
        match self {
            Self::BadRequest(_) | Self::Toolstack(T::BadSetting(_) | T::TooMuchMemory { .. }) => {
                ErrorCode::BadRequest
            }
            Self::NoSuchCapsule(_) => ErrorCode::NoSuchCapsule,
            Self::NoSuchImage(_) => ErrorCode::NoSuchImage,
            Self::NoSuchNetwork(_) => ErrorCode::NoSuchNetwork,
            Self::NetworkInUse(_) => ErrorCode::NetworkInUse,
            Self::NoAddress(_) => ErrorCode::NoAddress,
            Self::PortTaken(_) | Self::Network(net::Error::PortTaken { .. }) => ErrorCode::PortTaken,
            Self::Ambiguous { .. } => ErrorCode::Ambiguous,
            Self::NameTaken { .. } => ErrorCode::NameTaken,
            Self::WrongState(_) | Self::Toolstack(T::Gone | T::NoBalloon | T::NoAnswer { .. }) => {
                ErrorCode::WrongState
            }
            Self::TooLarge(_) => ErrorCode::TooLarge,
            Self::BadImage(_) | Self::Toolstack(T::BadImage(_)) => ErrorCode::BadImage,
            Self::Toolstack(T::NotEnoughMemory { .. }) => ErrorCode::NotEnoughMemory,
            Self::DiskFull(_) | Self::NoRoom(_) | Self::Toolstack(T::NoRoom(_)) => ErrorCode::NoRoom,
            Self::Disk { .. }
            | Self::Toolstack(T::Failed { .. })
            | Self::Network(net::Error::Failed { .. })
            | Self::ShuttingDown => ErrorCode::Internal,
        }
    }

    /// The error as it travels: with its causes, since there is no other place for them.
    pub fn body(&self) -> ErrorBody {
        let mut message = self.to_string();
        let mut cause = match self {
            Self::Toolstack(inner) => std::error::Error::source(inner),
            Self::Network(inner) => std::error::Error::source(inner),
            _ => None,
        };
        while let Some(error) = cause {
            message.push_str(&format!(": {error}"));
            cause = error.source();
        }
        ErrorBody { code: self.code(), message }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        Refusal(self.body()).into_response()
    }
}
