//! Networks.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use fcap_api::{CreateNetwork, Network};
use fcap_http::extract::{self, Path};

use super::Errors;
use crate::daemon::{Daemon, blocking};
use crate::error::Result;

/// The node's networks, by name.
#[utoipa::path(get, path = "/v1/networks", tag = "networks", responses((status = OK, body = [Network]), Errors))]
pub(crate) async fn list(State(daemon): State<Arc<Daemon>>) -> Json<Vec<Network>> {
    Json(daemon.networks.list())
}

/// Makes a network.
#[utoipa::path(post, path = "/v1/networks", tag = "networks", responses((status = CREATED, body = Network), Errors))]
pub(crate) async fn create(
    State(daemon): State<Arc<Daemon>>,
    extract::Json(request): extract::Json<CreateNetwork>,
) -> Result<(StatusCode, Json<Network>)> {
    let network = blocking(move || daemon.networks.create(&daemon.store, &request)).await??;
    Ok((StatusCode::CREATED, Json(network)))
}

/// One network.
#[utoipa::path(get, path = "/v1/networks/{name}", tag = "networks", params(("name" = String, Path)),
    responses((status = OK, body = Network), Errors))]
pub(crate) async fn get(State(daemon): State<Arc<Daemon>>, Path(name): Path) -> Result<Json<Network>> {
    daemon.networks.get(&name).map(Json)
}

/// Removes a network that no capsule of the node is in.
#[utoipa::path(delete, path = "/v1/networks/{name}", tag = "networks", params(("name" = String, Path)),
    responses((status = NO_CONTENT), Errors))]
pub(crate) async fn remove(State(daemon): State<Arc<Daemon>>, Path(name): Path) -> Result<StatusCode> {
    blocking(move || daemon.networks.remove(&daemon.store, &name)).await??;
    Ok(StatusCode::NO_CONTENT)
}
