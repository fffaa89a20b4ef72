//! Policies, what they did, and what the cluster costs.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use fcap_api::cluster::{Bill, Policy, PolicyResult, PolicyRun, PolicySpec, TestPolicy};
use fcap_http::extract::{self, By, Path, Query};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Errors;
use crate::controller::Controller;
use crate::error::Result;

/// Runs of policies that are listed unless somebody wants more.
const RUNS: usize = 50;

/// All policies.
#[utoipa::path(get, path = "/v1/policies", tag = "policies", responses((status = OK, body = [Policy]), Errors))]
pub(crate) async fn list(State(controller): State<Arc<Controller>>) -> Json<Vec<Policy>> {
    Json(controller.policies.list())
}

/// One policy.
#[utoipa::path(get, path = "/v1/policies/{name}", tag = "policies", params(("name" = String, Path)),
    responses((status = OK, body = Policy), Errors))]
pub(crate) async fn get(State(controller): State<Arc<Controller>>, Path(name): Path) -> Result<Json<Policy>> {
    controller.policies.get(&name).map(Json)
}

/// Has a policy be run, in place of the one that had its name. It must have an answer to the
/// cluster as it is.
#[utoipa::path(put, path = "/v1/policies/{name}", tag = "policies", params(("name" = String, Path)),
    request_body = PolicySpec, responses((status = OK, body = Policy), Errors))]
pub(crate) async fn apply(
    State(controller): State<Arc<Controller>>,
    By(by): By,
    Path(name): Path,
    extract::Json(spec): extract::Json<PolicySpec>,
) -> Result<Json<Policy>> {
    controller.policies.apply(&name, spec, &by).await.map(Json)
}

/// Has a policy not be run any more; what it has begun comes to its end.
#[utoipa::path(delete, path = "/v1/policies/{name}", tag = "policies", params(("name" = String, Path)),
    responses((status = NO_CONTENT), Errors))]
pub(crate) async fn remove(
    State(controller): State<Arc<Controller>>,
    By(by): By,
    Path(name): Path,
) -> Result<StatusCode> {
    controller.policies.remove(&name, &by).await.map(|()| StatusCode::NO_CONTENT)
}

/// Says what a policy would do, or one that is not applied, on the cluster as it is or on a view
/// of it. Nothing is done.
#[utoipa::path(post, path = "/v1/policies/{name}/test", tag = "policies", params(("name" = String, Path)),
    request_body = TestPolicy, responses((status = OK, body = PolicyResult), Errors))]
pub(crate) async fn test(
    State(controller): State<Arc<Controller>>,
    Path(name): Path,
    extract::Large(test): extract::Large<TestPolicy>,
) -> Result<Json<PolicyResult>> {
    controller.policies.test(&name, test).await.map(Json)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct HistoryQuery {
    /// Of this policy only.
    policy: Option<String>,
    /// At most so many.
    limit: Option<usize>,
}

/// What policies did, or would have done, and why, the latest first.
#[utoipa::path(get, path = "/v1/history", tag = "policies", params(HistoryQuery),
    responses((status = OK, body = [PolicyRun]), Errors))]
pub(crate) async fn history(
    State(controller): State<Arc<Controller>>,
    Query(query): Query<HistoryQuery>,
) -> Result<Json<Vec<PolicyRun>>> {
    controller.policies.history(query.policy.as_deref(), query.limit.unwrap_or(RUNS)).await.map(Json)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct CostQuery {
    /// From this time on, milliseconds since the Unix epoch; from the first node on, when not given.
    since_ms: Option<u64>,
}

/// What the cluster costs, what it has cost, and what policies have saved.
#[utoipa::path(get, path = "/v1/cost", tag = "cluster", params(CostQuery),
    responses((status = OK, body = Bill), Errors))]
pub(crate) async fn cost(
    State(controller): State<Arc<Controller>>,
    Query(query): Query<CostQuery>,
) -> Json<Bill> {
    controller.nodes.keep_books().await;
    Json(controller.nodes.bill(query.since_ms))
}
