//! What can go wrong with a request to the controller, and how that is told.

use axum::response::{IntoResponse, Response};
use fcap_api::{ErrorBody, ErrorCode};
use fcap_client::ClientError;
use fcap_http::refusal::Refusal;
use fcap_tls::TlsError;

use crate::policy::PolicyError;
use crate::provider::ProviderError;
use crate::store::StoreError;
use crate::view::ViewError;

/// A request that failed. Messages name the object and, where there is one, the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request makes no sense.
    #[error("{0}")]
    BadRequest(String),
    /// No node has this name.
    #[error("no such node: {0}; `fcap node ls` shows all")]
    NoSuchNode(String),
    /// No operation has this number.
    #[error("no such operation: {0}; `fcap operation ls` shows all")]
    NoSuchOperation(String),
    /// No policy has this name.
    #[error("no such policy: {0}; `fcap policy ls` shows all")]
    NoSuchPolicy(String),
    /// A script gives no answer.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A view contradicts itself.
    #[error(transparent)]
    View(#[from] ViewError),
    /// No capsule has this id, prefix or name.
    #[error("no such capsule: {0}; `fcap ps -a` shows all")]
    NoSuchCapsule(String),
    /// It fits several capsules.
    #[error("{reference} is ambiguous, it fits several capsules: {}; give more of the id", .candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        reference: String,
        /// What it fits: ids, names and nodes.
        candidates: Vec<String>,
    },
    /// The name is another capsule's.
    #[error("{0}")]
    NameTaken(String),
    /// Not possible in the state that the object is in.
    #[error("{0}")]
    WrongState(String),
    /// More than the controller takes.
    #[error("{0}")]
    TooLarge(String),
    /// No node can take it.
    #[error("{0}")]
    NoRoom(String),
    /// A node that is needed does not answer.
    #[error("node {node} does not answer: {reason}; `fcap node ls` shows the state of all")]
    NodeUnreachable {
        /// The node.
        node: String,
        /// Why.
        reason: String,
    },
    /// A node says no, or the request cannot be read.
    #[error("{}", .0.message)]
    Refused(ErrorBody),
    /// The store fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The provider fails.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// A certificate cannot be made.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Something of the store is not what the controller has written.
    #[error("{0} of the store does not parse: {1}")]
    Corrupt(String, String),
}

/// Result of a request.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// What a node's client says, told of that node.
    pub fn from_node(node: &str) -> impl FnOnce(ClientError) -> Self + use<'_> {
        move |error| match error {
            ClientError::Refused(body) => Self::Refused(body),
            error => Self::NodeUnreachable { node: node.to_owned(), reason: error.to_string() },
        }
    }

    /// The kind of error for clients.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::BadRequest(_)
            | Self::Policy(_)
            | Self::View(_)
            | Self::Provider(ProviderError::NoSuchFlavor { .. }) => ErrorCode::BadRequest,
            Self::NoSuchNode(_) => ErrorCode::NoSuchNode,
            Self::NoSuchOperation(_) => ErrorCode::NoSuchOperation,
            Self::NoSuchPolicy(_) => ErrorCode::NoSuchPolicy,
            Self::NoSuchCapsule(_) => ErrorCode::NoSuchCapsule,
            Self::Ambiguous { .. } => ErrorCode::Ambiguous,
            Self::NameTaken(_) => ErrorCode::NameTaken,
            Self::WrongState(_) | Self::Provider(ProviderError::NameTaken(_)) => ErrorCode::WrongState,
            Self::TooLarge(_) => ErrorCode::TooLarge,
            Self::NoRoom(_) => ErrorCode::NoRoom,
            Self::NodeUnreachable { .. } => ErrorCode::NodeUnreachable,
            Self::Refused(body) => body.code,
            Self::Tls(TlsError::BadName(_)) => ErrorCode::BadRequest,
            Self::Store(_)
            | Self::Tls(_)
            | Self::Provider(ProviderError::Failed { .. })
            | Self::Corrupt(..) => ErrorCode::Internal,
        }
    }

    /// The error as it travels.
    pub fn body(&self) -> ErrorBody {
        ErrorBody { code: self.code(), message: self.to_string() }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal.0)
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        Refusal(self.body()).into_response()
    }
}
