//! The REST API.
//!
//! Paths, bodies and errors are those of [`fcap_api`]; the OpenAPI document is made from the
//! functions that serve them. Whoever reaches the Unix socket may do everything; over TCP a
//! bearer token is needed, except for the version and the document. Over TCP the port takes TLS
//! too, once the node is in a cluster: its controller needs no token then, and its other nodes need
//! none to ask where capsules are.

mod capsules;
mod extract;
mod images;
mod migration;
mod networks;
mod node;
mod server;
mod streams;

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use fcap_api::ErrorBody;
use fcap_tls::{Role, Subject};
use utoipa::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::daemon::Daemon;
use crate::error::Error;
use crate::net::overlay;
pub use server::{bind_unix, serve_tcp, serve_unix};

/// Longest JSON body of a request.
const MAX_JSON: usize = 1 << 20;

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

struct Token;

impl utoipa::Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme("token", scheme);
    }
}

/// Every response that reports an error.
pub(crate) struct Errors;

impl utoipa::IntoResponses for Errors {
    fn responses() -> std::collections::BTreeMap<String, utoipa::openapi::RefOr<utoipa::openapi::Response>> {
        use utoipa::openapi::{ContentBuilder, Ref, ResponseBuilder};
        let texts = [
            ("400", "The request makes no sense"),
            ("401", "No token, or a wrong one"),
            ("404", "No such capsule, image, network or path"),
            ("405", "The path has no such method"),
            ("409", "Not possible in the present state, name or port taken, or id ambiguous"),
            ("413", "Larger than the node takes"),
            ("422", "The image cannot be run, or needs more memory"),
            ("500", "The hypervisor or the node failed"),
            ("507", "The node has no room, or no address left"),
        ];
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
        let response =
            |text| ResponseBuilder::new().description(text).content("application/json", content.clone());
        texts.into_iter().map(|(status, text)| (status.to_owned(), response(text).build().into())).collect()
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
    let (router, document) = routes().split_for_parts();
    // Hardly anybody asks for it, so it need not hold up the start.
    let document = Arc::new(LazyLock::new(move || finish(document).to_json()));
    let serve_document = async move || {
        let failed = |error: &serde_json::Error| Error::Disk {
            what: "write down the OpenAPI document".into(),
            source: std::io::Error::other(error.to_string()),
        };
        let text = document.as_ref().as_ref().map_err(failed)?;
        Ok::<_, Error>(([(header::CONTENT_TYPE, "application/json")], text.clone()))
    };
    let open = router
        .route("/v1/openapi.json", axum::routing::get(serve_document))
        .fallback(async || Error::NoSuchPath)
        .method_not_allowed_fallback(async || Error::NoSuchMethod)
        .with_state(daemon.clone());
    let guarded = open.clone().layer(middleware::from_fn_with_state(daemon, check_token));
    (open, guarded)
}

/// Adds what the functions that serve do not mention.
fn finish(mut document: utoipa::openapi::OpenApi) -> utoipa::openapi::OpenApi {
    let components = document.components.get_or_insert_default();
    components.schemas.insert("ErrorBody".into(), <ErrorBody as utoipa::PartialSchema>::schema());
    let mut nested = Vec::new();
    <ErrorBody as utoipa::ToSchema>::schemas(&mut nested);
    components.schemas.extend(nested);
    document
}

async fn check_token(
    State(daemon): State<Arc<Daemon>>,
    request: Request,
    next: Next,
) -> Result<Response, Error> {
    let path = request.uri().path();
    let open = ["/v1/version", "/v1/openapi.json"].contains(&path);
    let known = request.extensions().get::<Subject>().is_some_and(|peer| match peer.role() {
        Role::Controller => true,
        Role::Node => path == overlay::PATH,
    });
    let given = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let token = given.and_then(|value| {
        let (scheme, token) = value.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
    });
    let accepts =
        |token: &[u8]| daemon.identity.accepts(token) || path == overlay::PATH && daemon.links.accepts(token);
    if open || known || token.is_some_and(accepts) {
        Ok(next.run(request).await)
    } else {
        Err(Error::Unauthorized)
    }
}
