//! What capsules write and read, as streams.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use fcap_api::stream::{Frame, MEDIA_TYPE};
use fcap_api::{CreateCapsule, State as CapsuleState};
use fcap_http::extract::{self, Path, Query};
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::sync::watch;
use utoipa::IntoParams;

use super::{Early, Errors};
use crate::capsule::console::Refused;
use crate::capsule::{Capsule, Phase};
use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::log::{Cursor, Item};

/// Largest piece of input that is given to a capsule at a time.
const PIECE: usize = 64 << 10;

/// Frames of a response.
struct Frames {
    /// What comes before anything else.
    head: Option<Frame>,
    cursor: Cursor,
    phase: watch::Receiver<Phase>,
    /// Whether to wait for more than there is.
    follow: bool,
    /// Whether the last frame says how the capsule ended.
    end: bool,
    done: bool,
}

impl Frames {
    fn response(self) -> Response {
        let stream = futures_util::stream::unfold(self, |mut frames| async move {
            let next = frames.next().await.transpose()?;
            Some((next, frames))
        });
        ([(header::CONTENT_TYPE, MEDIA_TYPE)], Body::from_stream(stream)).into_response()
    }

    /// The next frames; none when that was all.
    async fn next(&mut self) -> std::io::Result<Option<Bytes>> {
        let mut out = Vec::new();
        if let Some(head) = self.head.take() {
            head.encode(&mut out);
            return Ok(Some(out.into()));
        }
        while !self.done {
            // Asked before reading: all output is in the log by then.
            let ended = match &*self.phase.borrow_and_update() {
                Phase::Ended(end) | Phase::Gone(Some(end)) => Some(Some(end.clone())),
                Phase::Gone(None) => Some(None),
                Phase::Created | Phase::Alive => None,
            };
            for item in self.cursor.read()? {
                match item {
                    Item::Output { time_ns, bytes } => Frame::Output { time_ns, bytes }.encode(&mut out),
                    Item::Lost(count) => Frame::Lost(count).encode(&mut out),
                }
            }
            if !out.is_empty() {
                break;
            }
            match ended {
                Some(end) => {
                    self.done = true;
                    end.filter(|_| self.end).inspect(|end| Frame::End(end.clone()).encode(&mut out));
                }
                None if !self.follow => self.done = true,
                None => tokio::select! {
                    () = self.cursor.wait() => {}
                    changed = self.phase.changed() => self.done = changed.is_err(),
                },
            }
        }
        Ok((!out.is_empty()).then(|| out.into()))
    }
}

/// Makes a capsule, starts it, and gives what it writes, and in the end how it ended. A client
/// that does not read makes the capsule wait; one that goes away does not matter to it.
#[utoipa::path(post, path = "/v1/run", tag = "capsules", responses(
    (status = OK, body = [u8], content_type = "application/x-fcap-frames",
        description = "Frames: the capsule, its output, its end"),
    Errors))]
pub(crate) async fn run(
    State(daemon): State<Arc<Daemon>>,
    extract::Json(request): extract::Json<CreateCapsule>,
) -> Result<Response> {
    if request.no_start {
        return Err(Error::BadRequest("no_start is not for this path; use POST /v1/capsules".into()));
    }
    // On a task of its own: it is not to stop half-way when the client goes.
    let created = tokio::spawn(daemon.clone().create(request)).await.map_err(|_| Error::ShuttingDown)?;
    let (capsule, cursor) = created?;
    let shown = capsule.look(|record| record.api(&daemon.identity.name(), 0));
    let frames = Frames {
        head: Some(Frame::Capsule(Box::new(shown))),
        cursor,
        phase: capsule.phase(),
        follow: true,
        end: true,
        done: false,
    };
    Ok(frames.response())
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogsQuery {
    /// Go on with what comes, until the capsule has ended.
    #[serde(default)]
    follow: bool,
    /// Begin with so many last lines.
    tail: Option<u64>,
    /// Begin with this time, milliseconds since the Unix epoch.
    since_ms: Option<u64>,
}

/// What it wrote, and for followers in the end how it ended. The log is bounded: what came before
/// is gone.
#[utoipa::path(get, path = "/v1/capsules/{id}/logs", tag = "capsules", params(("id" = String, Path), LogsQuery),
    responses((status = OK, body = [u8], content_type = "application/x-fcap-frames", description = "Frames: output"), Errors))]
pub(crate) async fn logs(
    State(daemon): State<Arc<Daemon>>,
    Path(id): Path,
    Query(query): Query<LogsQuery>,
) -> Result<Response> {
    let capsule = daemon.find(&id)?;
    let log = &capsule.log;
    let find = || {
        let tail = query.tail.map_or(Ok(0), |lines| log.tail(lines))?;
        let since = query.since_ms.map_or(Ok(0), |ms| log.since(ms.saturating_mul(1_000_000)))?;
        Ok(tail.max(since))
    };
    let position = find().map_err(Error::disk(format!("read the log of capsule {id}")))?;
    let frames = Frames {
        head: None,
        cursor: log.cursor(position, false),
        phase: capsule.phase(),
        follow: query.follow,
        end: query.follow,
        done: false,
    };
    Ok(frames.response())
}

/// What it writes from now on, and in the end how it ended. A client that does not read makes
/// the capsule wait.
#[utoipa::path(get, path = "/v1/capsules/{id}/attach", tag = "capsules", params(("id" = String, Path)), responses(
    (status = OK, body = [u8], content_type = "application/x-fcap-frames", description = "Frames: output, its end"),
    Errors))]
pub(crate) async fn attach(State(daemon): State<Arc<Daemon>>, Path(id): Path) -> Result<Response> {
    let capsule = daemon.find(&id)?;
    if capsule.look(|record| record.state == CapsuleState::Exited) {
        let name = capsule.name();
        return Err(Error::WrongState(format!("capsule {name} has ended; its output is in its logs")));
    }
    let cursor = capsule.log.cursor(capsule.log.end(), true);
    let frames = Frames { head: None, cursor, phase: capsule.phase(), follow: true, end: true, done: false };
    Ok(frames.response())
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct StdinQuery {
    /// More input will come by another request.
    #[serde(default)]
    keep_open: bool,
}

/// Gives it input, as fast as it reads. The end of the body is the end of its input, unless
/// `keep_open`.
#[utoipa::path(post, path = "/v1/capsules/{id}/stdin", tag = "capsules", params(("id" = String, Path), StdinQuery),
    request_body(content = [u8], content_type = "application/octet-stream", description = "The bytes, as they come"),
    responses((status = NO_CONTENT), Errors))]
pub(crate) async fn stdin(
    State(daemon): State<Arc<Daemon>>,
    Path(id): Path,
    Query(query): Query<StdinQuery>,
    body: Body,
) -> std::result::Result<StatusCode, Early> {
    let capsule = daemon.find(&id)?;
    let refused = |refused| refuse(&capsule, refused);
    let Some(run) = capsule.look(|record| record.run.clone()) else {
        return Err(refused(Refused::Ended).into());
    };
    run.console.check_open().map_err(refused)?;
    let mut body = body.into_data_stream();
    // When it ends before the client is done, the client should know.
    let mut phase = capsule.phase();
    let ended = phase.wait_for(|phase| matches!(phase, Phase::Ended(_) | Phase::Gone(_)));
    tokio::pin!(ended);
    loop {
        let piece = tokio::select! {
            piece = body.next() => piece,
            _ = &mut ended => return Err(refused(Refused::Ended).into()),
        };
        match piece {
            Some(Ok(mut bytes)) => {
                while !bytes.is_empty() {
                    let piece = bytes.split_to(bytes.len().min(PIECE));
                    run.console.write(piece).await.map_err(refused)?;
                }
            }
            broken_or_over => {
                // A client that is gone writes no more either: like a pipe whose writer died.
                if !query.keep_open {
                    run.console.close().map_err(refused)?;
                }
                return match broken_or_over {
                    Some(Err(error)) => {
                        Err(Error::BadRequest(format!("the input broke off: {error}")).into())
                    }
                    _ => Ok(StatusCode::NO_CONTENT),
                };
            }
        }
    }
}

fn refuse(capsule: &Capsule, refused: Refused) -> Error {
    let (name, stdin) = capsule.look(|record| (record.config.name.clone(), record.config.stdin));
    Error::WrongState(match refused {
        Refused::Ended => format!("capsule {name} is not running, so it takes no input"),
        Refused::Closed if stdin => format!("the input of capsule {name} has been closed"),
        Refused::Closed => format!("capsule {name} was made without input; use `run -i`"),
    })
}
