//! Parts of requests, refused with an error like all others.

use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use fcap_api::ErrorCode;
use serde::de::DeserializeOwned;

use crate::refusal::Refusal;

/// How long the body of a request may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);
/// Longest JSON body of a request.
const MAX_JSON: usize = 1 << 20;
/// The same of a request that may have a view: that of 1,000 nodes and 20,000 capsules has 16 MiB.
const MAX_LARGE: usize = 64 << 20;
/// Longest name of somebody who asks.
const MAX_BY: usize = 64;

/// A body that is no longer than JSON may be, as it came.
///
/// # Errors
/// When it is longer, breaks off, or does not come.
pub async fn short(body: Body) -> Result<Bytes, Refusal> {
    whole(body, MAX_JSON).await
}

async fn whole(body: Body, most: usize) -> Result<Bytes, Refusal> {
    let body = tokio::time::timeout(BODY_TIME, to_bytes(body, most))
        .await
        .map_err(|_| Refusal::bad_request("the request's body does not come"))?;
    body.map_err(|error| {
        use std::error::Error as _;
        let too_long = error.source().is_some_and(|cause| cause.is::<http_body_util::LengthLimitError>());
        if too_long {
            Refusal::new(ErrorCode::TooLarge, format!("the request's body has more than {most} bytes"))
        } else {
            Refusal::bad_request(format!("the request's body broke off: {error}"))
        }
    })
}

/// Reads the JSON of a body.
///
/// # Errors
/// When it is not JSON of this form.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body)
        .map_err(|error| Refusal::bad_request(format!("the request's body does not parse: {error}")))
}

/// A JSON body. Its content type does not matter.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        parse(&short(request.into_body()).await?).map(Self)
    }
}

/// A JSON body that may be long, because it may have a view.
pub struct Large<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Large<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        parse(&whole(request.into_body(), MAX_LARGE).await?).map(Self)
    }
}

/// The query.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|axum::extract::Query(query)| Self(query))
            .map_err(|error| Refusal::bad_request(format!("the query does not parse: {}", error.body_text())))
    }
}

/// The variable part of the path.
pub struct Path(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Path {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        axum::extract::Path::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(text)| Self(text))
            .map_err(|_| Refusal::bad_request("the path has bytes that are not UTF-8"))
    }
}

/// Who asks, as they call themselves: the token says that they may.
pub struct By(pub String);

impl<S: Send + Sync> FromRequestParts<S> for By {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let name = parts.headers.get(fcap_api::cluster::BY_HEADER).and_then(|value| value.to_str().ok());
        let name: String =
            name.unwrap_or_default().chars().filter(|c| !c.is_control()).take(MAX_BY).collect();
        Ok(Self(if name.is_empty() { "operator".into() } else { name }))
    }
}
