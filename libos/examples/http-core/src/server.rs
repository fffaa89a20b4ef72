//! A server's side of a connection.

use crate::{
    body::Length,
    date::HttpDate,
    message::{HeadError, Headers, Request},
    status::{Connection, Status, push_plain},
};
use alloc::vec::Vec;

/// When so many bytes of answers have come together, they are sent before more requests
/// are looked at: a client that asks and does not read cannot make them more.
pub const BATCH: usize = 32 * 1024;

/// What [`answer`] did, and what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step<'b> {
    /// Bytes of the input that were dealt with.
    pub consumed: usize,
    /// Requests among them.
    pub requests: u32,
    /// What is to be sent after what was appended to the output.
    pub body: &'b [u8],
    /// What to do after that.
    pub next: Next,
}

/// What comes after what is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Read more.
    Read,
    /// Look at the rest of the input.
    Again,
    /// End the connection.
    Close,
}

/// Answers the requests that `input` starts with, all that are whole, with `handler`, and
/// appends the answers to `out`: one write answers a pipeline.
///
/// The handler appends its answer and returns what of the body it would not copy. Requests
/// with a body are answered 413 without it, if their method is one that has none.
pub fn answer<'b>(
    input: &[u8],
    date: &HttpDate,
    out: &mut Vec<u8>,
    mut handler: impl FnMut(&Request<'_, '_>, Connection, &mut Vec<u8>) -> &'b [u8],
) -> Step<'b> {
    let mut step = Step { consumed: 0, requests: 0, body: &[], next: Next::Read };
    while step.consumed < input.len() {
        let mut room = Headers::new();
        let request = match Request::parse(&input[step.consumed..], &mut room) {
            Ok(Some(request)) => request,
            Ok(None) => break,
            Err(error) => {
                refuse(error, date, out);
                return Step { next: Next::Close, ..step };
            }
        };
        step.consumed += request.len;
        step.requests += 1;
        let has_body = request.body != Length::Known(0);
        // Nobody reads the body, so where the next request starts will not be known.
        let connection = match (request.keep_alive && !has_body, request.minor_version) {
            (false, _) => Connection::Close,
            (true, 0) => Connection::KeepAlive,
            (true, _) => Connection::Stays,
        };
        if has_body && matches!(request.method, "GET" | "HEAD") {
            push_plain(out, Status::CONTENT_TOO_LARGE, "", date, connection, request.method == "HEAD");
        } else {
            step.body = handler(&request, connection, out);
        }
        if connection == Connection::Close {
            return Step { next: Next::Close, ..step };
        }
        if !step.body.is_empty() || out.len() >= BATCH {
            return Step { next: Next::Again, ..step };
        }
    }
    step
}

/// Appends the answer to what is no request.
pub fn refuse(error: HeadError, date: &HttpDate, out: &mut Vec<u8>) {
    push_plain(out, error.status(), "", date, Connection::Close, false);
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, string::String, vec};
    use proptest::prelude::*;

    const GET: &str = "GET /x HTTP/1.1\r\nHost: a\r\n\r\n";

    /// Answers with the target, and returns what was sent; `big` has a body of its own.
    fn talk(input: &str) -> (String, Step<'static>) {
        let mut out = Vec::new();
        let date = HttpDate::from_unix(0);
        let step = answer(input.as_bytes(), &date, &mut out, |request, _, out| {
            out.extend_from_slice(request.target.as_bytes());
            if request.target == "/big" { b"body" } else { b"" }
        });
        (String::from_utf8(out).unwrap(), step)
    }

    #[test]
    fn a_pipeline_is_answered_in_one_go() {
        let (out, step) = talk(&format!("{}GET /y", GET.repeat(3)));
        assert_eq!(out, "/x/x/x");
        assert_eq!(step, Step { consumed: GET.len() * 3, requests: 3, body: b"", next: Next::Read });
    }

    #[test]
    fn a_body_of_its_own_goes_before_the_next_answer() {
        let big = GET.replace("/x", "/big");
        let (out, step) = talk(&format!("{big}{GET}"));
        assert_eq!(out, "/big");
        assert_eq!(step, Step { consumed: big.len(), requests: 1, body: b"body", next: Next::Again });
    }

    #[test]
    fn answers_do_not_pile_up() {
        let long = GET.replace("/x", &"/".repeat(4000));
        let (out, step) = talk(&long.repeat(100));
        assert!(out.len() >= BATCH && out.len() < BATCH + 4000);
        assert_eq!(step.next, Next::Again);
    }

    #[test]
    fn what_is_no_request_gets_one_answer_and_ends_the_connection() {
        let (out, step) = talk(&format!("{GET}\0\0\0\r\n{GET}"));
        assert!(out.starts_with("/xHTTP/1.1 400 Bad Request\r\n"));
        assert_eq!(out.matches("HTTP/1.1").count(), 1);
        assert_eq!(step.next, Next::Close);
        let (out, step) = talk(&format!("GET /{} HTTP/1.1\r\n", "x".repeat(10_000)));
        assert!(out.starts_with("HTTP/1.1 431 "));
        assert_eq!(step.next, Next::Close);
    }

    #[test]
    fn bodies_that_nobody_wants_end_the_connection() {
        let (out, step) = talk("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
        assert!(out.starts_with("HTTP/1.1 413 "));
        assert_eq!(step.next, Next::Close);
        let (out, step) = talk("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
        assert_eq!((&*out, step.next), ("/", Next::Close));
    }

    #[test]
    fn who_wants_the_connection_to_end_gets_one_answer() {
        let close = "GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let (out, step) = talk(&close.repeat(2));
        assert_eq!((&*out, step.next), ("/x", Next::Close));
    }

    proptest! {
        #[test]
        fn a_pipeline_in_pieces_gets_the_same_answers(count in 1usize..20, piece in 1usize..60) {
            let input = GET.repeat(count);
            let (mut buffer, mut out) = (vec![], vec![]);
            let date = HttpDate::from_unix(0);
            for piece in input.as_bytes().chunks(piece) {
                buffer.extend_from_slice(piece);
                let step = answer(&buffer, &date, &mut out, |_, _, out| {
                    out.push(b'x');
                    b""
                });
                prop_assert_eq!(step.next, Next::Read);
                buffer.drain(..step.consumed);
            }
            prop_assert_eq!(out, vec![b'x'; count]);
        }
    }
}
