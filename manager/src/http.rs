//! The REST API.
//!
//! Paths, bodies and errors are those of [`fcap_api`]; the OpenAPI document is made from the
//! functions that serve them. Whoever reaches the Unix socket may do everything; over TCP a
//! bearer token is needed, except for the version and the document. Over TCP the port takes TLS
//! too, once the node is in a cluster: its controller needs no token then, and its other nodes need
//! none to ask where capsules are.

mod capsules;
mod images;
mod migration;
mod networks;
mod node;
mod server;
mod streams;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use fcap_http::document::{self, Token};
use fcap_http::token;
use fcap_tls::{Role, Subject};
use utoipa::OpenApi;
use utoipa::openapi::{RefOr, Response as Described};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::daemon::Daemon;
use crate::error::Error;
use crate::net::overlay;
pub use server::{bind_unix, serve_tcp, serve_unix};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "fcap",
        description = "Runs applications as capsules: unikernels that are Xen PV guests. \
                       `{id}` is a full id, a name, or a unique prefix of an id.",
        license(name = "GPL-3.0-only")
    ),
    modifiers(&Token),
    security(("token" = []), ())
)]
struct Document;

/// Every response that reports an error.
pub(crate) struct Errors;

impl utoipa::IntoResponses for Errors {
    fn responses() -> BTreeMap<String, RefOr<Described>> {
        document::errors([
            ("400", "The request makes no sense"),
            ("401", "No token, or a wrong one"),
            ("404", "No such capsule, image, network or path"),
            ("405", "The path has no such method"),
            ("409", "Not possible in the present state, name or port taken, or id ambiguous"),
            ("413", "Larger than the node takes"),
            ("422", "The image cannot be run, or needs more memory"),
            ("500", "The hypervisor or the node failed"),
            ("507", "The node has no room, or no address left"),
        ])
    }
}

/// An error before the request's body was read to its end. The connection ends with it, and
/// the client should know, or it would send its next request into nowhere.
pub(crate) struct Early(Error);

impl From<Error> for Early {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Early {
    fn into_response(self) -> Response {
        ([(header::CONNECTION, "close")], self.0).into_response()
    }
}

/// Everything that is served, and its description.
fn routes() -> OpenApiRouter<Arc<Daemon>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(node::version))
        .routes(routes!(node::node, node::update_node))
        .routes(routes!(node::adopt))
        .routes(routes!(node::certificate, node::renew))
        .routes(routes!(node::overlay, node::set_overlay))
        .routes(routes!(node::endpoints))
        .routes(routes!(node::stats))
        .routes(routes!(node::events))
        .routes(routes!(node::prune))
        .routes(routes!(node::metrics))
        .routes(routes!(images::list))
        .routes(routes!(images::get, images::put, images::delete))
        .routes(routes!(networks::list, networks::create))
        .routes(routes!(networks::get, networks::remove))
        .routes(routes!(capsules::list, capsules::create))
        .routes(routes!(capsules::get, capsules::update, capsules::remove))
        .routes(routes!(capsules::start))
        .routes(routes!(capsules::stop))
        .routes(routes!(capsules::kill))
        .routes(routes!(capsules::pause))
        .routes(routes!(capsules::unpause))
        .routes(routes!(capsules::wait))
        .routes(routes!(migration::identity))
        .routes(routes!(migration::invite))
        .routes(routes!(migration::migrate))
        .routes(routes!(migration::save, migration::broken))
        .routes(routes!(migration::saved))
        .routes(routes!(migration::restore))
        .routes(routes!(streams::run))
        .routes(routes!(streams::logs))
        .routes(routes!(streams::attach))
        .routes(routes!(streams::stdin))
}

/// The service for those who may do everything, and the one for those who need the token.
pub fn routers(daemon: Arc<Daemon>) -> (Router, Router) {
    let open = document::serve(routes()).with_state(daemon.clone());
    let of_daemon = daemon.clone();
    let accepts = move |request: &Request, token: Option<&[u8]>| {
        let is_overlay = request.uri().path() == overlay::PATH;
        let known = request.extensions().get::<Subject>().is_some_and(|peer| match peer.role() {
            Role::Controller => true,
            Role::Node => is_overlay,
        });
        let by_token =
            |token| of_daemon.identity.accepts(token) || is_overlay && of_daemon.links.accepts(token);
        known || token.is_some_and(by_token)
    };
    let guarded = token::guard(open.clone(), "the node", accepts);
    let requests = &daemon.metrics.requests;
    (requests.count(open), requests.count(guarded))
}
