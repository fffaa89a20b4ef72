//! Capsules of all nodes: what concerns one is its node's to answer.

use std::collections::HashSet;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use fcap_api::cluster::{Change, MoveTo, Operation, OperationKind, OperationState, Placement, Proposal};
use fcap_api::{Capsule, CreateCapsule, DEFAULT_MEMORY_KIB, End, ErrorCode, Event, Stats, UpdateCapsule};
use fcap_client::{Client, ClientError, Reference};
use fcap_http::extract::{self, By, Path, Query};
use futures_util::StreamExt;
use futures_util::future::join_all;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Errors;
use crate::controller::Controller;
use crate::error::{Error, Result};
use crate::placement::{self, Aim};
use crate::view::{Index, affinity, expected_cpu_milli};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    /// Those too that have ended or were never started.
    #[serde(default)]
    all: bool,
}

/// The capsules of all nodes, the oldest first. Of nodes that do not answer, what they said last.
#[utoipa::path(get, path = "/v1/capsules", tag = "capsules", params(ListQuery),
    responses((status = OK, body = [Capsule]), Errors))]
pub(crate) async fn list(
    State(controller): State<Arc<Controller>>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Vec<Capsule>>> {
    let all = query.all;
    let stale = |capsules: &[Capsule]| {
        capsules.iter().filter(|capsule| all || capsule.domid.is_some()).cloned().collect::<Vec<_>>()
    };
    let answers = controller.nodes.ask(|client| async move { client.capsules(all).await }, stale).await;
    let mut capsules = Vec::new();
    for (node, answer) in answers {
        capsules.extend(answer.map_err(Error::from_node(&node))?);
    }
    capsules.sort_by(|a, b| (a.created_ms, &a.id).cmp(&(b.created_ms, &b.id)));
    // While one is handed over, both nodes may list it.
    let mut seen = HashSet::new();
    capsules.retain(|capsule| seen.insert(capsule.id.clone()));
    Ok(Json(capsules))
}

/// What the running capsules of all nodes use.
#[utoipa::path(get, path = "/v1/stats", tag = "capsules", responses((status = OK, body = [Stats]), Errors))]
pub(crate) async fn stats(State(controller): State<Arc<Controller>>) -> Result<Json<Vec<Stats>>> {
    let answers = controller.nodes.ask(|client| async move { client.stats().await }, |_| Vec::new()).await;
    let mut stats = Vec::new();
    for (node, answer) in answers {
        stats.extend(answer.map_err(Error::from_node(&node))?);
    }
    Ok(Json(stats))
}

/// Finds a capsule and its node: first where it was last, then everywhere.
async fn find(controller: &Controller, id: &str) -> Result<(String, Client, Capsule)> {
    let reference: Reference = id.parse().map_err(|_| Error::NoSuchCapsule(id.chars().take(80).collect()))?;
    if let Some(node) = controller.nodes.whereabouts(id)
        && let Ok(client) = controller.nodes.client(&node)
        && let Ok(capsule) = client.capsule(&reference).await
    {
        return Ok((node, client, capsule));
    }
    let asked = controller.nodes.ready().into_iter().map(|(node, client)| {
        let reference = &reference;
        async move {
            let answer = client.capsule(reference).await;
            (node, client, answer)
        }
    });
    let mut found = Vec::new();
    let mut failure = None;
    for (node, client, answer) in join_all(asked).await {
        match answer {
            Ok(capsule) => found.push((node, client, capsule)),
            Err(error) if error.code() == Some(ErrorCode::NoSuchCapsule) => {}
            Err(error) => failure = Some(Error::from_node(&node)(error)),
        }
    }
    let is_whole = |capsule: &Capsule| capsule.id == id || capsule.name == id;
    if found.iter().any(|(_, _, capsule)| is_whole(capsule)) {
        found.retain(|(_, _, capsule)| is_whole(capsule));
    }
    // While one is handed over, both nodes may have it.
    let mut seen = HashSet::new();
    found.retain(|(_, _, capsule)| seen.insert(capsule.id.clone()));
    match (found.len(), failure) {
        (1, _) => Ok(found.swap_remove(0)),
        (0, Some(error)) => Err(error),
        // A node that answers has said that it is not there any more.
        (0, None) => match controller.nodes.whereabouts(id).filter(|node| !controller.nodes.answers(node)) {
            Some(node) => {
                let reason = controller.nodes.get(&node)?.message.unwrap_or_default();
                Err(Error::NodeUnreachable { node, reason })
            }
            None => Err(Error::NoSuchCapsule(id.to_owned())),
        },
        _ => {
            let candidates = found
                .iter()
                .map(|(node, _, capsule)| format!("{} ({} on {node})", &capsule.id[..12], capsule.name));
            Err(Error::Ambiguous { reference: id.to_owned(), candidates: candidates.collect() })
        }
    }
}

/// Passes a request on to a node, and its answer back.
pub(super) async fn pass(node: &str, client: &Client, path: &str, request: Request) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let path = match parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut headers = HeaderMap::new();
    for name in [header::CONTENT_TYPE, header::CONTENT_LENGTH] {
        if let Some(value) = parts.headers.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    let has_body = parts.headers.contains_key(header::TRANSFER_ENCODING)
        || parts.headers.contains_key(header::CONTENT_LENGTH);
    let body = if has_body && parts.method != Method::GET {
        reqwest::Body::wrap_stream(body.into_data_stream())
    } else {
        reqwest::Body::default()
    };
    let answer = client.forward(parts.method, &path, headers, body).await.map_err(Error::from_node(node))?;
    let mut response = Response::builder().status(answer.status());
    if let Some(kind) = answer.headers().get(header::CONTENT_TYPE) {
        response = response.header(header::CONTENT_TYPE, kind);
    }
    let body = Body::from_stream(answer.bytes_stream());
    response.body(body).map_err(|error| Error::BadRequest(error.to_string()))
}

/// Passes a request about a capsule on to its node. One that changes the capsule is recorded.
async fn pass_to(
    controller: &Controller,
    by: &str,
    id: &str,
    (verb, rest): (&str, &str),
    request: Request,
) -> Result<Response> {
    let changes = request.method() != Method::GET && rest != "/stdin";
    let (node, client, capsule) = find(controller, id).await?;
    let response = pass(&node, &client, &format!("/v1/capsules/{}{rest}", capsule.id), request).await?;
    controller.nodes.look(&node);
    if changes && response.status().is_success() {
        let what = format!("{verb} capsule {} on node {node}", capsule.name);
        controller.audit.write(by, what, "", None).await?;
    }
    Ok(response)
}

macro_rules! passed {
    ($(#[$doc:meta])* $name:ident, $method:ident, $path:literal, $rest:literal, $($about:tt)*) => {
        $(#[$doc])*
        #[utoipa::path($method, path = $path, tag = "capsules", params(("id" = String, Path)), $($about)*)]
        pub(crate) async fn $name(
            State(controller): State<Arc<Controller>>,
            By(by): By,
            Path(id): Path,
            request: Request,
        ) -> Result<Response> {
            pass_to(&controller, &by, &id, (stringify!($name), $rest), request).await
        }
    };
}

passed!(/// One capsule.
    get, get, "/v1/capsules/{id}", "", responses((status = OK, body = Capsule), Errors));
passed!(/// Removes it with its logs; a running one only with `force`.
    remove, delete, "/v1/capsules/{id}", "", responses((status = NO_CONTENT), Errors));
passed!(/// Starts it.
    start, post, "/v1/capsules/{id}/start", "/start", responses((status = OK, body = Capsule), Errors));
passed!(/// Asks it to stop, and ends it after `timeout_s`.
    stop, post, "/v1/capsules/{id}/stop", "/stop", responses((status = OK, body = Capsule), Errors));
passed!(/// Ends it.
    kill, post, "/v1/capsules/{id}/kill", "/kill", responses((status = OK, body = Capsule), Errors));
passed!(/// Holds it.
    pause, post, "/v1/capsules/{id}/pause", "/pause", responses((status = OK, body = Capsule), Errors));
passed!(/// Lets it go on.
    unpause, post, "/v1/capsules/{id}/unpause", "/unpause", responses((status = OK, body = Capsule), Errors));
passed!(/// Waits for its end.
    wait, get, "/v1/capsules/{id}/wait", "/wait", responses((status = OK, body = End), Errors));
passed!(/// What it has written, as frames.
    logs, get, "/v1/capsules/{id}/logs", "/logs",
    responses((status = OK, body = [u8], content_type = "application/x-fcap-frames"), Errors));
passed!(/// What it writes from now on, as frames.
    attach, get, "/v1/capsules/{id}/attach", "/attach",
    responses((status = OK, body = [u8], content_type = "application/x-fcap-frames"), Errors));
passed!(/// Feeds its standard input.
    stdin, post, "/v1/capsules/{id}/stdin", "/stdin",
    request_body(content = [u8], content_type = "application/octet-stream"), responses((status = NO_CONTENT), Errors));

/// Changes its name, memory, cap, weight or restart policy. One that is to have more memory than its
/// node has moves to one that has it; the answer comes when all is done.
#[utoipa::path(patch, path = "/v1/capsules/{id}", tag = "capsules", params(("id" = String, Path)),
    request_body = UpdateCapsule, responses((status = OK, body = Capsule), Errors))]
pub(crate) async fn update(
    State(controller): State<Arc<Controller>>,
    By(by): By,
    Path(id): Path,
    extract::Json(update): extract::Json<UpdateCapsule>,
) -> Result<Json<Capsule>> {
    let (node, client, capsule) = find(&controller, &id).await?;
    let answer = client.update(&capsule.id, &update).await;
    controller.nodes.look(&node);
    match (answer, update.memory_kib) {
        (Ok(capsule), _) => return Ok(Json(capsule)),
        (Err(error), Some(memory_kib))
            if error.code() == Some(ErrorCode::NoRoom) && capsule.state == fcap_api::State::Running =>
        {
            move_and_grow(&controller, &by, &node, &capsule, memory_kib).await?;
        }
        (Err(error), _) => return Err(Error::from_node(&node)(error)),
    }
    // It has its memory; the rest changes where it is now.
    let (node, client, capsule) = find(&controller, &capsule.id).await?;
    client.update(&capsule.id, &update).await.map(Json).map_err(Error::from_node(&node))
}

/// Moves a capsule to a node that has the memory that it is to have, and gives it that there.
async fn move_and_grow(
    controller: &Controller,
    by: &str,
    from: &str,
    capsule: &Capsule,
    memory_kib: u64,
) -> Result<()> {
    let (name, mib) = (&capsule.name, memory_kib >> 10);
    let view = controller.nodes.view();
    let index = Index::new(&view)?;
    let used = view.capsules.iter().find(|known| known.id == capsule.id);
    let request = placement::Request {
        memory_kib,
        cpu_milli: used.map_or(0, expected_cpu_milli),
        labels: capsule.labels.clone(),
        affinity: affinity(&capsule.labels).map_err(|error| Error::BadRequest(error.to_string()))?,
        except: vec![(from, "it is there now")],
    };
    let place = placement::place(&index, &request, Aim::Spread);
    let Some(to) = place.node else {
        let why: Vec<String> = place
            .considered
            .iter()
            .map(|node| format!("{}: {}", node.node, node.reasons.join(", ")))
            .collect();
        return Err(Error::NoRoom(format!(
            "node {from} has not so much memory, and no other can take {name} with {mib} MiB: {}; \
             add a node, or give it less",
            why.join("; ")
        )));
    };
    let reason = format!("node {from} has not so much memory");
    let resize = Change::Resize {
        capsule: capsule.id.clone(),
        memory_kib: Some(memory_kib),
        cpu_cap: None,
        weight: None,
    };
    let changes = [Change::Migrate { capsule: capsule.id.clone(), to: to.clone() }, resize];
    let groups = changes.map(|change| vec![Proposal { change, reason: reason.clone(), line: None }]).to_vec();
    let kind = OperationKind::Plan { groups, parallel: 1, saving_micros: 0 };
    let what = format!("move {name} to node {to} and give it {mib} MiB of memory");
    let (_, Json(operation)) = super::nodes::begin(controller, by, what, kind, Some(reason)).await?;
    let mut follow = controller.executor.follow(&operation.id)?;
    // It fails when the controller ends; then so does this.
    let ended = follow.wait_for(|operation| operation.state.is_over()).await;
    match ended.as_deref() {
        Ok(ended) if ended.state == OperationState::Done => Ok(()),
        Ok(ended) => Err(Error::WrongState(ended.message.clone().unwrap_or_default())),
        Err(_) => Err(Error::WrongState(format!("operation {} was broken off", operation.id))),
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateQuery {
    /// The node that it is to be on; the best one when not given.
    node: Option<String>,
}

/// Chooses the node of a new capsule.
async fn choose(controller: &Controller, spec: &CreateCapsule, wanted: Option<&str>) -> Result<String> {
    if let Some(name) = &spec.name
        && let Ok((node, _, capsule)) = find(controller, name).await
        && capsule.name == *name
    {
        let id = &capsule.id[..12];
        return Err(Error::NameTaken(format!(
            "the name {name} is taken by capsule {id} on node {node}; remove or rename that one"
        )));
    }
    if let Some(wanted) = wanted {
        return controller.nodes.get(wanted).map(|node| node.name);
    }
    let view = controller.nodes.view();
    let index = Index::new(&view).map_err(|error| Error::WrongState(error.to_string()))?;
    let request = placement::Request {
        memory_kib: spec.memory_kib.unwrap_or(DEFAULT_MEMORY_KIB),
        cpu_milli: u64::from(spec.cpu_cap) * 10,
        labels: spec.labels.clone(),
        affinity: affinity(&spec.labels).map_err(|error| Error::BadRequest(error.to_string()))?,
        except: Vec::new(),
    };
    let place = placement::place(&index, &request, Aim::Spread);
    place.node.ok_or_else(|| {
        let why: Vec<String> = place
            .considered
            .iter()
            .map(|node| format!("{}: {}", node.node, node.reasons.join(", ")))
            .collect();
        let why = if why.is_empty() { "there is none".into() } else { why.join("; ") };
        Error::NoRoom(format!("no node can take it: {why}"))
    })
}

async fn place_and_pass(
    controller: &Controller,
    by: &str,
    query: CreateQuery,
    path: &str,
    body: Body,
) -> Result<Response> {
    let body = extract::short(body).await?;
    let spec: CreateCapsule = extract::parse(&body)?;
    let node = choose(controller, &spec, query.node.as_deref()).await?;
    let client = controller.nodes.client(&node)?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONTENT_LENGTH, body.len())
        .body(Body::from(body))
        .map_err(|error| Error::BadRequest(error.to_string()))?;
    let response = pass(&node, &client, path, request).await?;
    controller.nodes.look(&node);
    if response.status().is_success() {
        let image = spec.image_name.unwrap_or(spec.image);
        let name = spec.name.map(|name| format!(" {name}")).unwrap_or_default();
        let what = format!("create capsule{name} of {image} on node {node}");
        controller.audit.write(by, what, "", None).await?;
    }
    Ok(response)
}

/// Makes a capsule on the best node, or the one that is named, and starts it unless `no_start`.
#[utoipa::path(post, path = "/v1/capsules", tag = "capsules", params(CreateQuery), request_body = CreateCapsule,
    responses((status = CREATED, body = Capsule), Errors))]
pub(crate) async fn create(
    State(controller): State<Arc<Controller>>,
    By(by): By,
    Query(query): Query<CreateQuery>,
    body: Body,
) -> Result<Response> {
    place_and_pass(&controller, &by, query, "/v1/capsules", body).await
}

/// The same, and gives what the capsule writes, as frames.
#[utoipa::path(post, path = "/v1/run", tag = "capsules", params(CreateQuery), request_body = CreateCapsule,
    responses((status = OK, body = [u8], content_type = "application/x-fcap-frames"), Errors))]
pub(crate) async fn run(
    State(controller): State<Arc<Controller>>,
    By(by): By,
    Query(query): Query<CreateQuery>,
    body: Body,
) -> Result<Response> {
    place_and_pass(&controller, &by, query, "/v1/run", body).await
}

/// Moves a running capsule to another node.
#[utoipa::path(post, path = "/v1/capsules/{id}/move", tag = "capsules", params(("id" = String, Path)),
    request_body = MoveTo, responses((status = ACCEPTED, body = Operation), Errors))]
pub(crate) async fn move_to(
    State(controller): State<Arc<Controller>>,
    By(by): By,
    Path(id): Path,
    extract::Json(move_to): extract::Json<MoveTo>,
) -> Result<(StatusCode, Json<Operation>)> {
    let to = controller.nodes.get(&move_to.node)?.name;
    let (from, _, capsule) = find(&controller, &id).await?;
    if from == to {
        return Err(Error::WrongState(format!("{} is on node {to} already", capsule.name)));
    }
    let what = format!("move {} from node {from} to node {to}", capsule.name);
    let reason = move_to.reason.clone().unwrap_or_default();
    let change = Change::Migrate { capsule: capsule.id, to };
    let groups = vec![vec![Proposal { change, reason, line: None }]];
    let kind = OperationKind::Plan { groups, parallel: 1, saving_micros: 0 };
    super::nodes::begin(&controller, &by, what, kind, move_to.reason).await
}

/// Why a capsule is where it is, and what else was considered.
#[utoipa::path(get, path = "/v1/capsules/{id}/placement", tag = "capsules", params(("id" = String, Path)),
    responses((status = OK, body = Placement), Errors))]
pub(crate) async fn placement(
    State(controller): State<Arc<Controller>>,
    Path(id): Path,
) -> Result<Json<Placement>> {
    let (node, _, capsule) = find(&controller, &id).await?;
    controller.nodes.until_listed(&node, &capsule.id).await;
    let view = controller.nodes.view();
    let index = Index::new(&view).map_err(|error| Error::WrongState(error.to_string()))?;
    let at = index
        .capsule(&capsule.id)
        .map_err(|_| Error::WrongState(format!("{} has ended, so it is nowhere", capsule.name)))?;
    Ok(Json(placement::explain(&index, at, Aim::Spread)))
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

/// What has happened lately on all nodes, one JSON object a line: first what is kept, in its
/// order, then, with `follow`, what comes.
#[utoipa::path(get, path = "/v1/events", tag = "cluster", params(EventsQuery),
    responses((status = OK, body = Event, content_type = "application/x-ndjson"), Errors))]
pub(crate) async fn events(
    State(controller): State<Arc<Controller>>,
    Query(query): Query<EventsQuery>,
) -> Result<Response> {
    // Listened to before the past is read, so that nothing falls between.
    let live = query.follow.then(|| controller.nodes.events());
    let since = query.since_ms.or((!query.follow).then_some(0));
    let mut past = Vec::new();
    if let Some(since) = since {
        let kept = async |client: Client| -> std::result::Result<Vec<Event>, ClientError> {
            let mut events = client.events(Some(since), false).await?;
            let mut all = Vec::new();
            while let Some(event) = events.next().await? {
                all.push(event);
            }
            Ok(all)
        };
        for (node, answer) in controller.nodes.ask(kept, |_| Vec::new()).await {
            past.extend(answer.map_err(Error::from_node(&node))?);
        }
        past.sort_by_key(|event| event.time_ms);
    }
    // What has happened while the past was read is heard of twice.
    let known = past.clone();
    let past = futures_util::stream::iter(past);
    let live = futures_util::stream::unfold((live, known), |(live, known)| async move {
        let mut live = live?;
        loop {
            match live.recv().await {
                Ok(event) if known.contains(&event) => {}
                Ok(event) => return Some((event, (Some(live), known))),
                // Whoever reads slowly misses some.
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return None,
            }
        }
    });
    let lines = past.chain(live).map(|event| {
        let mut line = serde_json::to_vec(&event).unwrap_or_default();
        line.push(b'\n');
        Ok::<_, std::convert::Infallible>(Bytes::from(line))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}
