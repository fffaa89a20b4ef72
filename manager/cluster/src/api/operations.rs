//! Operations, and the record.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use fcap_api::cluster::{AuditEntry, Operation};
use fcap_api::migrate::PROGRESS_MEDIA_TYPE;
use fcap_http::extract::{By, Path, Query};
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

use super::Errors;
use crate::controller::Controller;
use crate::error::Result;

/// Entries of the record that are told first unless somebody wants more.
const ENTRIES: usize = 50;

/// JSON, one value a line.
fn lines<'a, T: Serialize + 'a>(values: impl IntoIterator<Item = &'a T>) -> Bytes {
    let mut lines = Vec::new();
    for value in values {
        lines.extend(serde_json::to_vec(value).unwrap_or_default());
        lines.push(b'\n');
    }
    lines.into()
}

/// All operations, the latest first.
#[utoipa::path(get, path = "/v1/operations", tag = "operations", responses((status = OK, body = [Operation]), Errors))]
pub(crate) async fn list(State(controller): State<Arc<Controller>>) -> Json<Vec<Operation>> {
    Json(controller.executor.list())
}

/// One operation.
#[utoipa::path(get, path = "/v1/operations/{id}", tag = "operations", params(("id" = String, Path)),
    responses((status = OK, body = Operation), Errors))]
pub(crate) async fn get(
    State(controller): State<Arc<Controller>>,
    Path(id): Path,
) -> Result<Json<Operation>> {
    controller.executor.get(&id).map(Json)
}

/// One operation, now and whenever something has changed, one JSON object a line, until it is over.
#[utoipa::path(get, path = "/v1/operations/{id}/follow", tag = "operations", params(("id" = String, Path)),
    responses((status = OK, body = Operation, content_type = "application/x-ndjson"), Errors))]
pub(crate) async fn follow(State(controller): State<Arc<Controller>>, Path(id): Path) -> Result<Response> {
    let mut receiver = controller.executor.follow(&id)?;
    receiver.mark_changed();
    let lines = futures_util::stream::unfold(Some(receiver), |receiver| async move {
        let mut receiver = receiver?;
        receiver.changed().await.ok()?;
        let operation = receiver.borrow_and_update().clone();
        let rest = (!operation.state.is_over()).then_some(receiver);
        Some((Ok::<_, Infallible>(lines([&operation])), rest))
    });
    Ok(([(header::CONTENT_TYPE, PROGRESS_MEDIA_TYPE)], Body::from_stream(lines)).into_response())
}

/// Has an operation stop; what it has done is undone where that is its way.
#[utoipa::path(post, path = "/v1/operations/{id}/cancel", tag = "operations", params(("id" = String, Path)),
    responses((status = OK, body = Operation), Errors))]
pub(crate) async fn cancel(
    State(controller): State<Arc<Controller>>,
    By(by): By,
    Path(id): Path,
) -> Result<Json<Operation>> {
    let operation = controller.executor.cancel(&id).await?;
    controller.audit.write(&by, format!("cancel operation {id}"), "", Some(&id)).await?;
    Ok(Json(operation))
}

/// Goes on with an operation that has stopped.
#[utoipa::path(post, path = "/v1/operations/{id}/resume", tag = "operations", params(("id" = String, Path)),
    responses((status = OK, body = Operation), Errors))]
pub(crate) async fn resume(
    State(controller): State<Arc<Controller>>,
    By(by): By,
    Path(id): Path,
) -> Result<Json<Operation>> {
    let operation = controller.executor.resume(&id).await?;
    controller.audit.write(&by, format!("resume operation {id}"), "", Some(&id)).await?;
    Ok(Json(operation))
}

/// Who did what, and why, the latest first.
#[utoipa::path(get, path = "/v1/audit", tag = "cluster", responses((status = OK, body = [AuditEntry]), Errors))]
pub(crate) async fn audit(State(controller): State<Arc<Controller>>) -> Result<Json<Vec<AuditEntry>>> {
    controller.audit.list().await.map(Json)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct FollowQuery {
    /// Begin with so many latest entries.
    latest: Option<usize>,
}

/// Who did what, and why, one JSON object a line: the latest, in their order, and then what comes.
#[utoipa::path(get, path = "/v1/audit/follow", tag = "cluster", params(FollowQuery),
    responses((status = OK, body = AuditEntry, content_type = "application/x-ndjson"), Errors))]
pub(crate) async fn follow_audit(
    State(controller): State<Arc<Controller>>,
    Query(query): Query<FollowQuery>,
) -> Result<Response> {
    let (past, news) = controller.audit.follow(query.latest.unwrap_or(ENTRIES)).await?;
    let stream = futures_util::stream::unfold((Some(past), news), |(past, mut news)| async move {
        let entries = match past {
            Some(past) => past,
            None => news.next().await.ok()??,
        };
        Some((Ok::<_, Infallible>(lines(&entries)), (None, news)))
    });
    Ok(([(header::CONTENT_TYPE, PROGRESS_MEDIA_TYPE)], Body::from_stream(stream)).into_response())
}
