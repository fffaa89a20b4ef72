//! Who may ask: whoever has the bearer token.

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use axum::middleware::{self, Next};
use axum::response::IntoResponse;
use fcap_api::ErrorCode;

use crate::refusal::Refusal;

/// What everybody may ask.
const OPEN: [&str; 2] = ["/v1/version", "/v1/openapi.json"];

/// Lets only those requests through that are accepted, with their token if they have one; others
/// hear that they need the token of `whose`: "the node".
pub fn guard(
    router: Router,
    whose: &'static str,
    accepts: impl Fn(&Request, Option<&[u8]>) -> bool + Clone + Send + Sync + 'static,
) -> Router {
    router.layer(middleware::from_fn(move |request: Request, next: Next| {
        let may = OPEN.contains(&request.uri().path()) || accepts(&request, bearer(request.headers()));
        async move {
            if may {
                return next.run(request).await;
            }
            let message = format!("this needs {whose}'s bearer token: none was given, or another one");
            Refusal::new(ErrorCode::Unauthorized, message).into_response()
        }
    }))
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

/// Compares in a time that tells nothing about where they differ.
pub fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_the_same_or_not() {
        assert!(same(b"abc", b"abc"));
        assert!(!same(b"abc", b"abd") && !same(b"abc", b"ab") && !same(b"", b"a"));
    }

    #[test]
    fn a_token_follows_the_word_bearer() {
        let of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, text.parse().unwrap());
            bearer(&headers).map(<[u8]>::to_vec)
        };
        assert_eq!(of("Bearer abc"), Some(b"abc".to_vec()));
        assert_eq!(of("bearer  abc "), Some(b"abc".to_vec()));
        assert_eq!((of("Basic abc"), of("abc"), bearer(&HeaderMap::new())), (None, None, None));
    }
}
