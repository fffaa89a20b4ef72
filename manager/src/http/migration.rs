//! Capsules that move, and their images.

use std::io::{self, Read};
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use fcap_api::migrate::{
    IMAGE_MEDIA_TYPE, Invitation, Member, Migrate, MigrationIdentity, PROGRESS_MEDIA_TYPE, SaveMode, Ticket,
};
use fcap_api::{Capsule, ErrorBody};
use fcap_http::extract::{self, Path, Query};
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use super::{Early, Errors};
use crate::daemon::{Daemon, blocking};
use crate::error::{Error, Result};
use crate::migration::{arrive, leave};

/// Pieces of an image that may wait to be read.
const PIECES: usize = 16;

/// How other nodes know this one.
#[utoipa::path(get, path = "/v1/migrations/identity", tag = "migrations",
    responses((status = OK, body = MigrationIdentity), Errors))]
pub(crate) async fn identity(State(daemon): State<Arc<Daemon>>) -> Result<Json<MigrationIdentity>> {
    let member = daemon.membership.credentials().map(|ours| {
        let identity = ours.identity();
        Member { authority: identity.authority().to_string(), node: identity.subject().name().to_owned() }
    });
    let identity = blocking(move || daemon.migrations.identity()).await?;
    let identity = identity.map_err(Error::disk("make the node's certificate"))?;
    Ok(Json(MigrationIdentity { fingerprint: identity.fingerprint().to_string(), member }))
}

/// Promises to take one capsule in.
#[utoipa::path(post, path = "/v1/migrations", tag = "migrations",
    responses((status = CREATED, body = Ticket), Errors))]
pub(crate) async fn invite(
    State(daemon): State<Arc<Daemon>>,
    extract::Json(invitation): extract::Json<Invitation>,
) -> Result<(StatusCode, Json<Ticket>)> {
    let node = daemon.identity.name();
    let ticket = blocking(move || daemon.migrations.invite(node, &invitation)).await??;
    Ok((StatusCode::CREATED, Json(ticket)))
}

/// Moves it to another node. The response tells how that goes, one JSON object a line; a client
/// that goes away ends it.
#[utoipa::path(post, path = "/v1/capsules/{id}/migrate", tag = "migrations", params(("id" = String, Path)),
    responses((status = OK, body = fcap_api::migrate::Progress, content_type = "application/x-ndjson"), Errors))]
pub(crate) async fn migrate(
    State(daemon): State<Arc<Daemon>>,
    Path(id): Path,
    extract::Json(request): extract::Json<Migrate>,
) -> Result<Response> {
    let capsule = daemon.find(&id)?;
    let stream = leave::migrate(&daemon, &capsule, request).await?;
    let lines = futures_util::stream::unfold(stream, |(mut receiver, guard)| async move {
        let progress = receiver.recv().await?;
        let mut line = serde_json::to_vec(&progress).unwrap_or_default();
        line.push(b'\n');
        Some((Ok::<_, io::Error>(Bytes::from(line)), (receiver, guard)))
    });
    Ok(([(header::CONTENT_TYPE, PROGRESS_MEDIA_TYPE)], Body::from_stream(lines)).into_response())
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct SaveQuery {
    /// What becomes of it.
    #[serde(default)]
    #[param(inline)]
    mode: SaveMode,
}

/// Its image. With `mode=save` it is held afterwards until `POST .../saved`, and goes on if that
/// does not come.
#[utoipa::path(post, path = "/v1/capsules/{id}/save", tag = "migrations", params(("id" = String, Path), SaveQuery),
    responses((status = OK, body = [u8], content_type = "application/x-fcap-image"), Errors))]
pub(crate) async fn save(
    State(daemon): State<Arc<Daemon>>,
    Path(id): Path,
    Query(query): Query<SaveQuery>,
) -> Result<Response> {
    let capsule = daemon.find(&id)?;
    let (mut pieces, guard) = leave::save(&daemon, &capsule, query.mode).await?;
    // What fails before anything is sent can still be told.
    let first = match pieces.recv().await {
        Some(Err(error)) => return Err(Error::WrongState(error.to_string())),
        first => first,
    };
    let pieces =
        futures_util::stream::unfold((first, pieces, guard), |(first, mut pieces, guard)| async move {
            let piece = match first {
                Some(piece) => piece,
                None => pieces.recv().await?,
            };
            Some((piece, (None, pieces, guard)))
        });
    Ok(([(header::CONTENT_TYPE, IMAGE_MEDIA_TYPE)], Body::from_stream(pieces)).into_response())
}

/// Why its last image broke off: null if it did not. Whoever reads an image that breaks off asks this.
#[utoipa::path(get, path = "/v1/capsules/{id}/save", tag = "migrations", params(("id" = String, Path)),
    responses((status = OK, body = Option<ErrorBody>), Errors))]
pub(crate) async fn broken(
    State(daemon): State<Arc<Daemon>>,
    Path(id): Path,
) -> Result<Json<Option<ErrorBody>>> {
    let capsule = daemon.find(&id)?;
    Ok(Json(leave::broken(&daemon, &capsule)))
}

/// Its image is in safety: it ends here.
#[utoipa::path(post, path = "/v1/capsules/{id}/saved", tag = "migrations", params(("id" = String, Path)),
    responses((status = NO_CONTENT), Errors))]
pub(crate) async fn saved(State(daemon): State<Arc<Daemon>>, Path(id): Path) -> Result<StatusCode> {
    let capsule = daemon.find(&id)?;
    leave::saved(&daemon, &capsule).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct RestoreQuery {
    /// A name of its own: it becomes a capsule beside the one that was saved, with its own
    /// addresses.
    name: Option<String>,
}

/// Makes a capsule of an image, and lets it run.
#[utoipa::path(post, path = "/v1/restore", tag = "migrations", params(RestoreQuery),
    request_body(content = [u8], content_type = "application/x-fcap-image"),
    responses((status = CREATED, body = Capsule), Errors))]
pub(crate) async fn restore(
    State(daemon): State<Arc<Daemon>>,
    Query(query): Query<RestoreQuery>,
    body: Body,
) -> std::result::Result<(StatusCode, Json<Capsule>), Early> {
    let (sender, receiver) = mpsc::channel(PIECES);
    let reader = Pieces { receiver, rest: Bytes::new() };
    let runtime = tokio::runtime::Handle::current();
    let restored = {
        let daemon = daemon.clone();
        tokio::task::spawn_blocking(move || arrive::restore(&daemon, &runtime, query.name, reader))
    };
    let mut body = body.into_data_stream();
    // A body that breaks off ends the image early, which the reader notices.
    while let Some(Ok(piece)) = body.next().await {
        if sender.send(piece).await.is_err() {
            break;
        }
    }
    drop(sender);
    let capsule = restored.await.map_err(|_| Error::ShuttingDown)??;
    Ok((StatusCode::CREATED, Json(daemon.show(&capsule)?)))
}

/// Reads what comes out of a channel.
struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.rest = piece,
                None => return Ok(0),
            }
        }
        let len = bytes.len().min(self.rest.len());
        bytes[..len].copy_from_slice(&self.rest.split_to(len));
        Ok(len)
    }
}
