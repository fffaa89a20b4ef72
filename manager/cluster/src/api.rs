//! The REST API of a cluster.
//!
//! The paths of a node's API, for the capsules of all nodes, and those of [`fcap_api::cluster`].
//! What concerns one capsule is passed to the node that has it, as it came; what concerns all is
//! asked of all nodes. The OpenAPI document is made from the functions that serve.

mod capsules;
mod extract;
mod nodes;
mod operations;
mod policies;
mod server;

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::{self, Next};
use axum::response::Response;
use fcap_api::{ErrorBody, ErrorCode};
use utoipa::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::controller::Controller;
use crate::error::Error;
pub(crate) use server::serve_tls;

/// Longest JSON body of a request.
const MAX_JSON: usize = 1 << 20;
/// The same of a request that may have a view: that of 1,000 nodes and 20,000 capsules has 16 MiB.
const MAX_VIEW: usize = 64 << 20;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "fcap cluster",
        description = "Runs applications as capsules on the nodes of a cluster. \
                       `{id}` of a capsule is a full id, a name, or a unique prefix of an id.",
        license(name = "MIT OR Apache-2.0")
    ),
    modifiers(&Token),
    security(("token" = []))
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
            ("404", "No such node, capsule, image, network, operation, policy or path"),
            ("405", "The path has no such method"),
            ("409", "Not possible in the present state, name or port taken, or id ambiguous"),
            ("413", "Larger than is taken"),
            ("422", "The image cannot be run, or needs more memory"),
            ("500", "The controller, a hypervisor or a node failed"),
            ("503", "A node that is needed does not answer"),
            ("507", "No node has room, or no address is left"),
        ];
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
        let response =
            |text| ResponseBuilder::new().description(text).content("application/json", content.clone());
        texts.into_iter().map(|(status, text)| (status.to_owned(), response(text).build().into())).collect()
    }
}

/// Everything that is served, and its description.
fn routes() -> OpenApiRouter<Arc<Controller>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(nodes::version))
        .routes(routes!(nodes::list, nodes::add))
        .routes(routes!(nodes::get, nodes::update, nodes::remove))
        .routes(routes!(nodes::cordon))
        .routes(routes!(nodes::uncordon))
        .routes(routes!(nodes::drain))
        .routes(routes!(nodes::replace))
        .routes(routes!(nodes::view))
        .routes(routes!(nodes::make_token))
        .routes(routes!(nodes::join))
        .routes(routes!(operations::list))
        .routes(routes!(operations::get))
        .routes(routes!(operations::follow))
        .routes(routes!(operations::cancel))
        .routes(routes!(operations::resume))
        .routes(routes!(operations::audit))
        .routes(routes!(policies::list))
        .routes(routes!(policies::get, policies::apply, policies::remove))
        .routes(routes!(policies::test))
        .routes(routes!(policies::history))
        .routes(routes!(policies::cost))
        .routes(routes!(capsules::list, capsules::create))
        .routes(routes!(capsules::run))
        .routes(routes!(capsules::get, capsules::update, capsules::remove))
        .routes(routes!(capsules::start))
        .routes(routes!(capsules::stop))
        .routes(routes!(capsules::kill))
        .routes(routes!(capsules::pause))
        .routes(routes!(capsules::unpause))
        .routes(routes!(capsules::wait))
        .routes(routes!(capsules::logs))
        .routes(routes!(capsules::attach))
        .routes(routes!(capsules::stdin))
        .routes(routes!(capsules::move_to))
        .routes(routes!(capsules::placement))
        .routes(routes!(capsules::stats))
        .routes(routes!(capsules::events))
}

/// The service.
pub(crate) fn router(controller: Arc<Controller>) -> Router {
    let (router, document) = routes().split_for_parts();
    // Hardly anybody asks for it, so it need not hold up the start.
    let document = Arc::new(LazyLock::new(move || finish(document).to_json().unwrap_or_default()));
    let serve_document = async move || {
        let text: &String = &document;
        ([(header::CONTENT_TYPE, "application/json")], text.clone())
    };
    router
        .route("/v1/openapi.json", axum::routing::get(serve_document))
        .fallback(async || Error::NoSuchPath)
        .method_not_allowed_fallback(async || Error::NoSuchMethod)
        .with_state(controller.clone())
        .layer(middleware::from_fn_with_state(controller, check_token))
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
    State(controller): State<Arc<Controller>>,
    request: Request,
    next: Next,
) -> Result<Response, Error> {
    // Who wants to join shows another token, in the body.
    let is_open = ["/v1/version", "/v1/openapi.json", "/v1/join"].contains(&request.uri().path());
    let given = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let token = given.and_then(|value| {
        let (scheme, token) = value.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
    });
    if is_open || token.is_some_and(|token| same(token, controller.token.as_bytes())) {
        return Ok(next.run(request).await);
    }
    Err(Error::Refused(ErrorBody {
        code: ErrorCode::Unauthorized,
        message: "this needs the controller's bearer token: none was given, or another one".into(),
    }))
}

/// Compares in a time that tells nothing about where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_describes_every_path() {
        let (_, document) = routes().split_for_parts();
        let document = finish(document);
        for path in ["/v1/nodes", "/v1/nodes/{name}/drain", "/v1/operations/{id}", "/v1/capsules/{id}/logs"] {
            assert!(document.paths.paths.contains_key(path), "{path}");
        }
    }

    #[test]
    fn tokens_are_the_same_or_not() {
        assert!(same(b"abc", b"abc"));
        assert!(!same(b"abc", b"abd") && !same(b"abc", b"ab") && !same(b"", b"a"));
    }
}
