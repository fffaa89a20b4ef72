//! The node as a whole.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use fcap_api::{
    Adopt, Event, Node, NodeCertificate, NodeUpdate, Overlay, OverlayStatus, OverlayUpdate, Pruned,
    RenewCertificate, Stats, Version,
};
use fcap_http::extract;
use fcap_http::metrics::Sheet;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Errors;
use crate::cluster;
use crate::daemon::{Daemon, blocking};
use crate::error::{Error, Result};
use crate::net::overlay;

/// What answers. Needs no token.
#[utoipa::path(get, path = "/v1/version", tag = "node", security(()), responses((status = OK, body = Version), Errors))]
pub(crate) async fn version(State(daemon): State<Arc<Daemon>>) -> Result<Json<Version>> {
    Ok(Json(Version {
        version: env!("CARGO_PKG_VERSION").into(),
        api: "v1".into(),
        hypervisor: daemon.toolstack.host()?.hypervisor,
    }))
}

/// The node.
#[utoipa::path(get, path = "/v1/node", tag = "node", responses((status = OK, body = Node), Errors))]
pub(crate) async fn node(State(daemon): State<Arc<Daemon>>) -> Result<Json<Node>> {
    daemon.node().map(Json)
}

/// Changes settings of the node.
#[utoipa::path(patch, path = "/v1/node", tag = "node", responses((status = OK, body = Node), Errors))]
pub(crate) async fn update_node(
    State(daemon): State<Arc<Daemon>>,
    extract::Json(update): extract::Json<NodeUpdate>,
) -> Result<Json<Node>> {
    daemon.update_node(update).await.map(Json)
}

/// Gives a freshly cloned node its identity: once after each boot.
#[utoipa::path(post, path = "/v1/node/adopt", tag = "node", responses((status = NO_CONTENT), Errors))]
pub(crate) async fn adopt(
    State(daemon): State<Arc<Daemon>>,
    extract::Json(adopt): extract::Json<Adopt>,
) -> Result<StatusCode> {
    let member = adopt.identity.as_deref().map(|text| cluster::parse(text, &adopt.name)).transpose()?;
    daemon.identity.adopt(&daemon.store, &adopt)?;
    if let Some(member) = member {
        daemon.membership.enter(member)?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// How the node is known to the other machines of its cluster.
#[utoipa::path(get, path = "/v1/node/certificate", tag = "node", responses((status = OK, body = NodeCertificate), Errors))]
pub(crate) async fn certificate(State(daemon): State<Arc<Daemon>>) -> Result<Json<NodeCertificate>> {
    daemon.membership.certificate().map(Json)
}

/// Puts a new certificate in the place of the present one.
#[utoipa::path(put, path = "/v1/node/certificate", tag = "node", responses((status = OK, body = NodeCertificate), Errors))]
pub(crate) async fn renew(
    State(daemon): State<Arc<Daemon>>,
    extract::Json(request): extract::Json<RenewCertificate>,
) -> Result<Json<NodeCertificate>> {
    blocking(move || daemon.membership.renew(&request.chain)).await?.map(Json)
}

/// The node's place in the overlay; null when it has none.
#[utoipa::path(get, path = "/v1/node/overlay", tag = "networks", responses((status = OK, body = Option<OverlayStatus>), Errors))]
pub(crate) async fn overlay(State(daemon): State<Arc<Daemon>>) -> Json<Option<OverlayStatus>> {
    Json(overlay::status(&daemon))
}

/// Gives the node a place in an overlay; with no peers it leaves.
#[utoipa::path(put, path = "/v1/node/overlay", tag = "networks", responses((status = OK, body = OverlayStatus), Errors))]
pub(crate) async fn set_overlay(
    State(daemon): State<Arc<Daemon>>,
    extract::Json(request): extract::Json<Overlay>,
) -> Result<Json<OverlayStatus>> {
    // On a task of its own: it is not to stop half-way when the client goes.
    let joined = tokio::spawn(async move { overlay::join(&daemon, request).await });
    joined.await.map_err(|_| Error::ShuttingDown)?.map(Json)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct EndpointsQuery {
    /// Go on with what changes, and an empty line now and then.
    #[serde(default)]
    follow: bool,
}

/// Where the node's capsules are in its networks, one JSON object a line. The nodes of the
/// overlay ask each other, with a token that is good for nothing else.
#[utoipa::path(get, path = "/v1/overlay/endpoints", tag = "networks", params(EndpointsQuery),
    responses((status = OK, body = OverlayUpdate, content_type = "application/x-ndjson"), Errors))]
pub(crate) async fn endpoints(
    State(daemon): State<Arc<Daemon>>,
    extract::Query(query): extract::Query<EndpointsQuery>,
) -> Response {
    let lines = overlay::tell(daemon, query.follow);
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

/// What the running capsules use.
#[utoipa::path(get, path = "/v1/stats", tag = "node", responses((status = OK, body = [Stats]), Errors))]
pub(crate) async fn stats(State(daemon): State<Arc<Daemon>>) -> Result<Json<Vec<Stats>>> {
    // It asks dom0 about each interface.
    blocking(move || daemon.stats()).await?.map(Json)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct EventsQuery {
    /// Begin with the kept events of this time, milliseconds since the Unix epoch.
    since_ms: Option<u64>,
    /// Go on with what happens from now on.
    #[serde(default)]
    follow: bool,
}

/// What has happened lately, one JSON object a line.
#[utoipa::path(get, path = "/v1/events", tag = "node", params(EventsQuery),
    responses((status = OK, body = Event, content_type = "application/x-ndjson"), Errors))]
pub(crate) async fn events(
    State(daemon): State<Arc<Daemon>>,
    extract::Query(query): extract::Query<EventsQuery>,
) -> Response {
    // Without either there would be nothing to give.
    let since = query.since_ms.or((!query.follow).then_some(0));
    let mut reader = daemon.events.reader(since);
    let first = reader.read();
    let stream = futures_util::stream::unfold((reader, Some(first)), move |(mut reader, first)| async move {
        let events = match first {
            Some(first) => first,
            None if !query.follow => return None,
            None => {
                reader.wait().await;
                reader.read()
            }
        };
        let mut lines = Vec::new();
        for event in events {
            lines.extend(serde_json::to_vec(&event).ok()?);
            lines.push(b'\n');
        }
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(lines)), (reader, None)))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(stream)).into_response()
}

/// Removes ended capsules, and images that no capsule uses.
#[utoipa::path(post, path = "/v1/prune", tag = "node", responses((status = OK, body = Pruned), Errors))]
pub(crate) async fn prune(State(daemon): State<Arc<Daemon>>) -> Result<Json<Pruned>> {
    daemon.prune().await.map(Json)
}

/// Numbers for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "node",
    responses((status = OK, body = String, content_type = "text/plain"), Errors))]
pub(crate) async fn metrics(State(daemon): State<Arc<Daemon>>) -> Result<Sheet> {
    // It asks dom0 about each interface.
    blocking(move || crate::metrics::sheet(&daemon)).await?
}
