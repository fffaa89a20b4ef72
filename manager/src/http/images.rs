//! Images.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use fcap_api::Image;
use fcap_http::extract::Path;

use super::{Early, Errors};
use crate::daemon::Daemon;
use crate::error::{Error, Result};

/// All images that the node holds.
#[utoipa::path(get, path = "/v1/images", tag = "images", responses((status = OK, body = [Image]), Errors))]
pub(crate) async fn list(State(daemon): State<Arc<Daemon>>) -> Json<Vec<Image>> {
    Json(daemon.images.list())
}

/// One image.
#[utoipa::path(get, path = "/v1/images/{digest}", tag = "images",
    params(("digest" = String, Path, description = "`sha256:` and 64 hex digits")),
    responses((status = OK, body = Image), Errors))]
pub(crate) async fn get(State(daemon): State<Arc<Daemon>>, Path(digest): Path) -> Result<Json<Image>> {
    daemon.images.get(&digest).map(Json)
}

/// Stores an image. Its digest is checked; a kernel that could not be run is refused.
#[utoipa::path(put, path = "/v1/images/{digest}", tag = "images",
    params(("digest" = String, Path, description = "`sha256:` and 64 hex digits")),
    request_body(content = [u8], content_type = "application/octet-stream", description = "The file"),
    responses((status = CREATED, body = Image), Errors))]
pub(crate) async fn put(
    State(daemon): State<Arc<Daemon>>,
    Path(digest): Path,
    headers: HeaderMap,
    body: Body,
) -> std::result::Result<(StatusCode, Json<Image>), Early> {
    let size = headers.get(header::CONTENT_LENGTH).and_then(|size| size.to_str().ok()?.parse().ok());
    let in_use = |digest: &str| daemon.uses_image(digest);
    let image = daemon.images.put(&digest, size, body.into_data_stream(), in_use).await?;
    Ok((StatusCode::CREATED, Json(image)))
}

/// Removes an image that no capsule uses.
#[utoipa::path(delete, path = "/v1/images/{digest}", tag = "images",
    params(("digest" = String, Path, description = "`sha256:` and 64 hex digits")),
    responses((status = NO_CONTENT), Errors))]
pub(crate) async fn delete(State(daemon): State<Arc<Daemon>>, Path(digest): Path) -> Result<StatusCode> {
    if daemon.uses_image(&digest) {
        return Err(Error::WrongState(format!("image {digest} is used by a capsule; remove that first")));
    }
    daemon.images.delete(&digest)?;
    Ok(StatusCode::NO_CONTENT)
}
