//! Parts of requests, refused with an error like all others.

use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use crate::error::Error;

/// How long the JSON body of a request may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);

/// A JSON body. Its content type does not matter.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, _: &S) -> Result<Self, Error> {
        let body = to_bytes(request.into_body(), super::MAX_JSON);
        let body = tokio::time::timeout(BODY_TIME, body)
            .await
            .map_err(|_| Error::BadRequest("the request's body does not come".into()))?;
        let body = body.map_err(|error| {
            use std::error::Error as _;
            let too_long = error.source().is_some_and(|cause| cause.is::<http_body_util::LengthLimitError>());
            if too_long {
                Error::TooLarge(format!("the request's body has more than {} bytes", super::MAX_JSON))
            } else {
                Error::BadRequest(format!("the request's body broke off: {error}"))
            }
        })?;
        let parsed = serde_json::from_slice(&body);
        parsed
            .map(Self)
            .map_err(|error| Error::BadRequest(format!("the request's body does not parse: {error}")))
    }
}

/// The query.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|axum::extract::Query(query)| Self(query))
            .map_err(|error| Error::BadRequest(format!("the query does not parse: {}", error.body_text())))
    }
}

/// The variable part of the path.
pub(crate) struct Path(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Path {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        axum::extract::Path::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(text)| Self(text))
            .map_err(|_| Error::BadRequest("the path has bytes that are not UTF-8".into()))
    }
}
