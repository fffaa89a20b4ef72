//! How a request is refused.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use fcap_api::{ErrorBody, ErrorCode};

use crate::text::printable;

/// Longest message, in bytes.
const MAX_MESSAGE: usize = 2000;

/// A request that is refused, as it is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.message)]
pub struct Refusal(pub ErrorBody);

impl Refusal {
    /// For this reason, with a message that names the object and the remedy.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(ErrorBody { code, message: message.into() })
    }

    /// Because the request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::BadRequest, message)
    }

    pub(crate) fn no_such_path() -> Self {
        Self::new(ErrorCode::NoSuchPath, "nothing is served at this path; see /v1/openapi.json")
    }

    pub(crate) fn no_such_method() -> Self {
        Self::new(ErrorCode::NoSuchMethod, "this path has no such method; see /v1/openapi.json")
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        if self.0.code == ErrorCode::Internal {
            tracing::error!(message = ?self.0.message, "request failed");
        }
        let status = StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // It may repeat what was asked for.
        let message = printable(&self.0.message, MAX_MESSAGE);
        (status, Json(ErrorBody { message, ..self.0 })).into_response()
    }
}
