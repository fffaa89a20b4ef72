//! The OpenAPI document, which is made from the functions that serve, and what is said where
//! nothing is served.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::http::header;
use axum::routing::get;
use fcap_api::{ErrorBody, ErrorCode};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder};
use utoipa_axum::router::OpenApiRouter;

use crate::refusal::Refusal;

/// Says in a document that requests have a bearer token; for `modifiers` of its description.
pub struct Token;

impl utoipa::Modify for Token {
    fn modify(&self, document: &mut OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme("token", scheme);
    }
}

/// Responses that report errors: an [`ErrorBody`] with each of these statuses.
pub fn errors<const N: usize>(texts: [(&str, &str); N]) -> BTreeMap<String, RefOr<Response>> {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
    let response =
        |text| ResponseBuilder::new().description(text).content("application/json", content.clone());
    texts.into_iter().map(|(status, text)| (status.to_owned(), response(text).build().into())).collect()
}

/// The description of what is served.
pub fn of<S: Clone + Send + Sync + 'static>(routes: OpenApiRouter<S>) -> OpenApi {
    finish(routes.split_for_parts().1)
}

/// Serves these, the document that describes them, and errors like all others for the rest.
pub fn serve<S: Clone + Send + Sync + 'static>(routes: OpenApiRouter<S>) -> Router<S> {
    let (router, document) = routes.split_for_parts();
    // Hardly anybody asks for it, so it need not hold up the start.
    let document = Arc::new(LazyLock::new(move || finish(document).to_json()));
    let serve_document = async move || {
        let failed = |error: &serde_json::Error| Refusal::new(ErrorCode::Internal, error.to_string());
        let text = document.as_ref().as_ref().map_err(failed)?;
        Ok::<_, Refusal>(([(header::CONTENT_TYPE, "application/json")], text.clone()))
    };
    router
        .route("/v1/openapi.json", get(serve_document))
        .fallback(async || Refusal::no_such_path())
        .method_not_allowed_fallback(async || Refusal::no_such_method())
}

/// Adds what the functions that serve do not mention.
fn finish(mut document: OpenApi) -> OpenApi {
    let components = document.components.get_or_insert_default();
    components.schemas.insert("ErrorBody".into(), <ErrorBody as utoipa::PartialSchema>::schema());
    let mut nested = Vec::new();
    <ErrorBody as utoipa::ToSchema>::schemas(&mut nested);
    components.schemas.extend(nested);
    document
}
