//! Parts of requests, refused with an error like all others.

use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use crate::error::Error;

/// How long the JSON body of a request may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);
/// Longest name of somebody who asks.
const MAX_BY: usize = 64;

/// A short body, as it came.
pub(crate) async fn short(body: Body) -> Result<Bytes, Error> {
    whole(body, super::MAX_JSON).await
}

async fn whole(body: Body, most: usize) -> Result<Bytes, Error> {
    let body = tokio::time::timeout(BODY_TIME, to_bytes(body, most))
        .await
        .map_err(|_| Error::BadRequest("the request's body does not come".into()))?;
    body.map_err(|error| {
        use std::error::Error as _;
        let too_long = error.source().is_some_and(|cause| cause.is::<http_body_util::LengthLimitError>());
        if too_long {
            Error::TooLarge(format!("the request's body has more than {most} bytes"))
        } else {
            Error::BadRequest(format!("the request's body broke off: {error}"))
        }
    })
}

/// Reads the JSON of a body.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body)
        .map_err(|error| Error::BadRequest(format!("the request's body does not parse: {error}")))
}

/// A JSON body. Its content type does not matter.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, _: &S) -> Result<Self, Error> {
        parse(&short(request.into_body()).await?).map(Self)
    }
}

/// A JSON body that may be long, because it may have a view.
pub(crate) struct Large<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Large<T> {
    type Rejection = Error;

    async fn from_request(request: Request, _: &S) -> Result<Self, Error> {
        parse(&whole(request.into_body(), super::MAX_VIEW).await?).map(Self)
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

/// Who asks, as they call themselves: the token says that they may.
pub(crate) struct By(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for By {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let name = parts.headers.get(fcap_api::cluster::BY_HEADER).and_then(|value| value.to_str().ok());
        let name: String =
            name.unwrap_or_default().chars().filter(|c| !c.is_control()).take(MAX_BY).collect();
        Ok(Self(if name.is_empty() { "operator".into() } else { name }))
    }
}
