//! Nodes.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use fcap_api::Version;
use fcap_api::cluster::{
    AddNode, ClusterNode, Drain, Join, Joined, MakeToken, Operation, OperationKind, Replace, Token,
    UpdateClusterNode, View,
};
use fcap_http::extract::{self, By, Path, Query};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Errors;
use crate::controller::Controller;
use crate::error::{Error, Result};

/// What answers. Needs no token.
#[utoipa::path(get, path = "/v1/version", tag = "cluster", security(()), responses((status = OK, body = Version), Errors))]
pub(crate) async fn version() -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION").into(),
        api: "v1".into(),
        hypervisor: "cluster".into(),
    })
}

/// All nodes.
#[utoipa::path(get, path = "/v1/nodes", tag = "nodes", responses((status = OK, body = [ClusterNode]), Errors))]
pub(crate) async fn list(State(controller): State<Arc<Controller>>) -> Json<Vec<ClusterNode>> {
    Json(controller.nodes.list())
}

/// One node.
#[utoipa::path(get, path = "/v1/nodes/{name}", tag = "nodes", params(("name" = String, Path)),
    responses((status = OK, body = ClusterNode), Errors))]
pub(crate) async fn get(
    State(controller): State<Arc<Controller>>,
    Path(name): Path,
) -> Result<Json<ClusterNode>> {
    controller.nodes.get(&name).map(Json)
}

/// Changes labels of a node.
#[utoipa::path(patch, path = "/v1/nodes/{name}", tag = "nodes", params(("name" = String, Path)),
    responses((status = OK, body = ClusterNode), Errors))]
pub(crate) async fn update(
    State(controller): State<Arc<Controller>>,
    By(by): By,
    Path(name): Path,
    extract::Json(update): extract::Json<UpdateClusterNode>,
) -> Result<Json<ClusterNode>> {
    let keys: Vec<&str> = update.labels.keys().map(String::as_str).collect();
    let what = format!("change labels {} of node {name}", keys.join(", "));
    let node = controller.nodes.label(&name, update.labels).await?;
    controller.audit.write(&by, what, "", None).await?;
    Ok(Json(node))
}

async fn set_cordon(
    controller: &Controller,
    by: &str,
    name: &str,
    cordoned: bool,
) -> Result<Json<ClusterNode>> {
    let node = controller.nodes.cordon(name, cordoned).await?;
    let verb = if cordoned { "cordon" } else { "uncordon" };
    controller.audit.write(by, format!("{verb} node {name}"), "", None).await?;
    Ok(Json(node))
}

/// Lets nothing new come to a node.
#[utoipa::path(post, path = "/v1/nodes/{name}/cordon", tag = "nodes", params(("name" = String, Path)),
    responses((status = OK, body = ClusterNode), Errors))]
pub(crate) async fn cordon(
    State(controller): State<Arc<Controller>>,
    By(by): By,
    Path(name): Path,
) -> Result<Json<ClusterNode>> {
    set_cordon(&controller, &by, &name, true).await
}

/// Lets new capsules come to a node again.
#[utoipa::path(post, path = "/v1/nodes/{name}/uncordon", tag = "nodes", params(("name" = String, Path)),
    responses((status = OK, body = ClusterNode), Errors))]
pub(crate) async fn uncordon(
    State(controller): State<Arc<Controller>>,
    By(by): By,
    Path(name): Path,
) -> Result<Json<ClusterNode>> {
    set_cordon(&controller, &by, &name, false).await
}

/// Begins an operation, and writes down who wanted it.
pub(super) async fn begin(
    controller: &Controller,
    by: &str,
    what: String,
    kind: OperationKind,
    reason: Option<String>,
) -> Result<(StatusCode, Json<Operation>)> {
    let reason = reason.unwrap_or_default();
    let operation = controller.executor.submit(kind, by, &reason).await?;
    controller.audit.write(by, what, &reason, Some(&operation.id)).await?;
    Ok((StatusCode::ACCEPTED, Json(operation)))
}

/// Has the provider start a node.
#[utoipa::path(post, path = "/v1/nodes", tag = "nodes", request_body = AddNode,
    responses((status = ACCEPTED, body = Operation), Errors))]
pub(crate) async fn add(
    State(controller): State<Arc<Controller>>,
    By(by): By,
    extract::Json(add): extract::Json<AddNode>,
) -> Result<(StatusCode, Json<Operation>)> {
    let what = format!("add a {} node", add.flavor);
    let kind = OperationKind::Add { flavor: add.flavor, labels: add.labels };
    begin(&controller, &by, what, kind, add.reason).await
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct RemoveQuery {
    /// Even if it has capsules, which end with it.
    #[serde(default)]
    force: bool,
}

/// Destroys a node, which must be empty, or forgets one whose machine is gone.
#[utoipa::path(delete, path = "/v1/nodes/{name}", tag = "nodes", params(("name" = String, Path), RemoveQuery),
    responses((status = ACCEPTED, body = Operation), Errors))]
pub(crate) async fn remove(
    State(controller): State<Arc<Controller>>,
    By(by): By,
    Path(name): Path,
    Query(query): Query<RemoveQuery>,
) -> Result<(StatusCode, Json<Operation>)> {
    let what = format!("remove node {name}{}", if query.force { " by force" } else { "" });
    begin(&controller, &by, what, OperationKind::Remove { node: name, force: query.force }, None).await
}

/// Moves all capsules of a node away.
#[utoipa::path(post, path = "/v1/nodes/{name}/drain", tag = "nodes", params(("name" = String, Path)),
    request_body = Drain, responses((status = ACCEPTED, body = Operation), Errors))]
pub(crate) async fn drain(
    State(controller): State<Arc<Controller>>,
    By(by): By,
    Path(name): Path,
    extract::Json(drain): extract::Json<Drain>,
) -> Result<(StatusCode, Json<Operation>)> {
    let what = format!("drain node {name}");
    let parallel = drain.parallel.unwrap_or(controller.limits.parallel);
    let kind = OperationKind::Drain { node: name, parallel, on_failure: drain.on_failure };
    begin(&controller, &by, what, kind, drain.reason).await
}

/// Starts a node, moves everything to it, and destroys the old one.
#[utoipa::path(post, path = "/v1/nodes/{name}/replace", tag = "nodes", params(("name" = String, Path)),
    request_body = Replace, responses((status = ACCEPTED, body = Operation), Errors))]
pub(crate) async fn replace(
    State(controller): State<Arc<Controller>>,
    By(by): By,
    Path(name): Path,
    extract::Json(replace): extract::Json<Replace>,
) -> Result<(StatusCode, Json<Operation>)> {
    let old = controller.nodes.get(&name)?;
    let flavor = replace.flavor.or(old.flavor).ok_or_else(|| {
        Error::BadRequest(format!("node {name} has no flavor: say which one the new node is to have"))
    })?;
    let what = format!("replace node {name} by a {flavor} one");
    let parallel = replace.parallel.unwrap_or(controller.limits.parallel);
    begin(&controller, &by, what, OperationKind::Replace { node: name, flavor, parallel }, replace.reason)
        .await
}

/// Lets one machine join the cluster.
#[utoipa::path(post, path = "/v1/tokens", tag = "nodes", request_body = MakeToken,
    responses((status = CREATED, body = Token), Errors))]
pub(crate) async fn make_token(
    State(controller): State<Arc<Controller>>,
    By(by): By,
    extract::Json(make): extract::Json<MakeToken>,
) -> Result<(StatusCode, Json<Token>)> {
    let token = controller.members.make_token(&*controller.store, &make).await?;
    controller.audit.write(&by, "make a token for a machine to join".into(), "", None).await?;
    Ok((StatusCode::CREATED, Json(token)))
}

/// Has a machine join that has a token. Needs no other token.
#[utoipa::path(post, path = "/v1/join", tag = "nodes", security(()), request_body = Join,
    responses((status = OK, body = Joined), Errors))]
pub(crate) async fn join(
    State(controller): State<Arc<Controller>>,
    from: Option<Extension<SocketAddr>>,
    extract::Json(join): extract::Json<Join>,
) -> Result<Json<Joined>> {
    let from = from.ok_or_else(|| {
        Error::BadRequest("machines join by TLS, where `fcap node token` tells them to".into())
    })?;
    let audit = |name: &str, url: &str| {
        controller.audit.entry(&format!("node {name}"), format!("join the cluster from {url}"), "", None)
    };
    controller.nodes.join(from.ip(), &join, audit).await.map(Json)
}

/// The cluster as placement and policies see it.
#[utoipa::path(get, path = "/v1/view", tag = "cluster", responses((status = OK, body = View), Errors))]
pub(crate) async fn view(State(controller): State<Arc<Controller>>) -> Json<View> {
    Json(controller.nodes.view())
}
