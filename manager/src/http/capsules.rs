//! Capsules.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use fcap_api::{Capsule, CreateCapsule, End, UpdateCapsule};
use fcap_http::extract::{self, Path, Query};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Errors;
use crate::capsule::{Command, Reply};
use crate::daemon::Daemon;
use crate::error::{Error, Result};

/// How long a capsule that is asked to stop has unless the request says otherwise.
const STOP_SECONDS: u64 = 10;
/// And at most.
const MAX_STOP_SECONDS: u64 = 24 * 60 * 60;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    /// Those too that have ended or were never started.
    #[serde(default)]
    all: bool,
}

/// The node's capsules, the oldest first.
#[utoipa::path(get, path = "/v1/capsules", tag = "capsules", params(ListQuery),
    responses((status = OK, body = [Capsule]), Errors))]
pub(crate) async fn list(
    State(daemon): State<Arc<Daemon>>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Vec<Capsule>>> {
    daemon.show_all(query.all).map(Json)
}

/// Makes a capsule, and starts it unless `no_start`. Answers once it can be reached through its
/// networks, or after two seconds.
#[utoipa::path(post, path = "/v1/capsules", tag = "capsules", responses((status = CREATED, body = Capsule), Errors))]
pub(crate) async fn create(
    State(daemon): State<Arc<Daemon>>,
    extract::Json(request): extract::Json<CreateCapsule>,
) -> Result<(StatusCode, Json<Capsule>)> {
    // On a task of its own: it is not to stop half-way when the client goes.
    let created = tokio::spawn(daemon.clone().create(request)).await.map_err(|_| Error::ShuttingDown)?;
    let (capsule, _) = created?;
    daemon.until_reachable(&capsule).await;
    Ok((StatusCode::CREATED, Json(daemon.show(&capsule)?)))
}

/// One capsule.
#[utoipa::path(get, path = "/v1/capsules/{id}", tag = "capsules", params(("id" = String, Path)),
    responses((status = OK, body = Capsule), Errors))]
pub(crate) async fn get(State(daemon): State<Arc<Daemon>>, Path(id): Path) -> Result<Json<Capsule>> {
    daemon.show(&*daemon.find(&id)?).map(Json)
}

async fn ask(daemon: &Daemon, id: &str, command: impl FnOnce(Reply) -> Command) -> Result<Json<Capsule>> {
    let capsule = daemon.find(id)?;
    capsule.ask(command).await?;
    daemon.show(&capsule).map(Json)
}

/// Changes its name, memory, cap, weight or restart policy. Memory of a running one changes before
/// the answer.
#[utoipa::path(patch, path = "/v1/capsules/{id}", tag = "capsules", params(("id" = String, Path)),
    responses((status = OK, body = Capsule), Errors))]
pub(crate) async fn update(
    State(daemon): State<Arc<Daemon>>,
    Path(id): Path,
    extract::Json(update): extract::Json<UpdateCapsule>,
) -> Result<Json<Capsule>> {
    ask(&daemon, &id, |reply| Command::Update(update, reply)).await
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct RemoveQuery {
    /// Kill it first if it runs.
    #[serde(default)]
    force: bool,
}

/// Removes it with its logs.
#[utoipa::path(delete, path = "/v1/capsules/{id}", tag = "capsules", params(("id" = String, Path), RemoveQuery),
    responses((status = NO_CONTENT), Errors))]
pub(crate) async fn remove(
    State(daemon): State<Arc<Daemon>>,
    Path(id): Path,
    Query(query): Query<RemoveQuery>,
) -> Result<StatusCode> {
    daemon.find(&id)?.ask(|reply| Command::Remove(query.force, reply)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Starts it, for the first time or again. Answers once it can be reached through its networks,
/// or after two seconds.
#[utoipa::path(post, path = "/v1/capsules/{id}/start", tag = "capsules", params(("id" = String, Path)),
    responses((status = OK, body = Capsule), Errors))]
pub(crate) async fn start(State(daemon): State<Arc<Daemon>>, Path(id): Path) -> Result<Json<Capsule>> {
    let capsule = daemon.find(&id)?;
    capsule.ask(Command::Start).await?;
    daemon.until_reachable(&capsule).await;
    daemon.show(&capsule).map(Json)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct StopQuery {
    /// Kill it when it has not stopped after so many seconds (10); at once when 0.
    timeout_s: Option<u64>,
}

/// Asks it to stop, kills it when it does not, and answers when it has ended.
#[utoipa::path(post, path = "/v1/capsules/{id}/stop", tag = "capsules", params(("id" = String, Path), StopQuery),
    responses((status = OK, body = Capsule), Errors))]
pub(crate) async fn stop(
    State(daemon): State<Arc<Daemon>>,
    Path(id): Path,
    Query(query): Query<StopQuery>,
) -> Result<Json<Capsule>> {
    let seconds = query.timeout_s.unwrap_or(STOP_SECONDS);
    if seconds > MAX_STOP_SECONDS {
        return Err(Error::BadRequest(format!(
            "timeout_s is {seconds}, at most {MAX_STOP_SECONDS} are possible"
        )));
    }
    ask(&daemon, &id, |reply| Command::Stop(seconds, reply)).await
}

/// Ends it at once.
#[utoipa::path(post, path = "/v1/capsules/{id}/kill", tag = "capsules", params(("id" = String, Path)),
    responses((status = OK, body = Capsule), Errors))]
pub(crate) async fn kill(State(daemon): State<Arc<Daemon>>, Path(id): Path) -> Result<Json<Capsule>> {
    ask(&daemon, &id, Command::Kill).await
}

/// Holds it.
#[utoipa::path(post, path = "/v1/capsules/{id}/pause", tag = "capsules", params(("id" = String, Path)),
    responses((status = OK, body = Capsule), Errors))]
pub(crate) async fn pause(State(daemon): State<Arc<Daemon>>, Path(id): Path) -> Result<Json<Capsule>> {
    ask(&daemon, &id, Command::Pause).await
}

/// Lets it go on.
#[utoipa::path(post, path = "/v1/capsules/{id}/unpause", tag = "capsules", params(("id" = String, Path)),
    responses((status = OK, body = Capsule), Errors))]
pub(crate) async fn unpause(State(daemon): State<Arc<Daemon>>, Path(id): Path) -> Result<Json<Capsule>> {
    ask(&daemon, &id, Command::Unpause).await
}

/// How it ended, once it has ended and its policy does not restart it.
#[utoipa::path(get, path = "/v1/capsules/{id}/wait", tag = "capsules", params(("id" = String, Path)),
    responses((status = OK, body = End), Errors))]
pub(crate) async fn wait(State(daemon): State<Arc<Daemon>>, Path(id): Path) -> Result<Json<End>> {
    daemon.find(&id)?.wait().await.map(Json)
}
