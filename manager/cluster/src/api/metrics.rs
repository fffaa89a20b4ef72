//! Numbers for Prometheus: the controller's own, and those of the nodes.
//!
//! Prometheus asks for those of nodes here, too. So it needs one address and one token, whatever
//! nodes come and go, and no way to their network.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use fcap_api::cluster::MetricsTarget;
use fcap_http::extract::Path;
use fcap_http::metrics::Sheet;

use super::Errors;
use super::capsules::pass;
use crate::controller::Controller;
use crate::error::{Error, Result};
use crate::metrics;

/// Numbers for Prometheus: the controller's.
#[utoipa::path(get, path = "/metrics", tag = "metrics",
    responses((status = OK, body = String, content_type = "text/plain"), Errors))]
pub(crate) async fn controller(State(controller): State<Arc<Controller>>) -> Sheet {
    metrics::sheet(&controller)
}

/// Numbers for Prometheus: a node's.
#[utoipa::path(get, path = "/v1/nodes/{name}/metrics", tag = "metrics", params(("name" = String, Path)),
    responses((status = OK, body = String, content_type = "text/plain"), Errors))]
pub(crate) async fn node(
    State(controller): State<Arc<Controller>>,
    Path(name): Path,
    request: Request,
) -> Result<Response> {
    pass(&name, &controller.nodes.client(&name)?, "/metrics", request).await
}

/// What Prometheus is to ask for the numbers of all nodes: its service discovery over HTTP.
#[utoipa::path(get, path = "/v1/targets", tag = "metrics",
    responses((status = OK, body = [MetricsTarget]), Errors))]
pub(crate) async fn targets(
    State(controller): State<Arc<Controller>>,
    headers: HeaderMap,
) -> Result<Json<Vec<MetricsTarget>>> {
    // Whoever reaches the controller by this name reaches it so for the numbers, too.
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.ok_or_else(|| Error::BadRequest("the request has no Host header".into()))?;
    let nodes = controller.nodes.list().into_iter().filter(|node| !node.url.is_empty());
    let target = |node: fcap_api::cluster::ClusterNode| {
        let path = format!("/v1/nodes/{}/metrics", node.name);
        let mut labels = BTreeMap::from([
            ("__metrics_path__".to_owned(), path),
            ("instance".to_owned(), node.name.clone()),
            ("node".to_owned(), node.name),
        ]);
        labels.extend(node.flavor.map(|flavor| ("flavor".to_owned(), flavor)));
        MetricsTarget { targets: vec![host.to_owned()], labels }
    };
    Ok(Json(nodes.map(target).collect()))
}
