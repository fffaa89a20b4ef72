//! The REST API of a cluster.
//!
//! The paths of a node's API, for the capsules of all nodes, and those of [`fcap_api::cluster`].
//! What concerns one capsule is passed to the node that has it, as it came; what concerns all is
//! asked of all nodes. The OpenAPI document is made from the functions that serve.

mod capsules;
mod metrics;
mod nodes;
mod operations;
mod policies;
mod server;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use fcap_http::document::{self, Token};
use fcap_http::token;
use utoipa::OpenApi;
use utoipa::openapi::{RefOr, Response};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::controller::Controller;
pub(crate) use server::serve_tls;

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

/// Every response that reports an error.
pub(crate) struct Errors;

impl utoipa::IntoResponses for Errors {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        document::errors([
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
        ])
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
        .routes(routes!(metrics::controller))
        .routes(routes!(metrics::node))
        .routes(routes!(metrics::targets))
        .routes(routes!(operations::list))
        .routes(routes!(operations::get))
        .routes(routes!(operations::follow))
        .routes(routes!(operations::cancel))
        .routes(routes!(operations::resume))
        .routes(routes!(operations::audit))
        .routes(routes!(operations::follow_audit))
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
    let router = document::serve(routes()).with_state(controller.clone());
    let requests = controller.requests.clone();
    let accepts = move |request: &Request, token: Option<&[u8]>| {
        // Who wants to join shows another token, in the body.
        request.uri().path() == "/v1/join"
            || token.is_some_and(|token| token::same(token, controller.token.as_bytes()))
    };
    requests.count(token::guard(router, "the controller", accepts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_describes_every_path() {
        let document = document::of(routes());
        for path in ["/v1/nodes", "/v1/nodes/{name}/drain", "/v1/operations/{id}", "/v1/capsules/{id}/logs"] {
            assert!(document.paths.paths.contains_key(path), "{path}");
        }
    }
}
