//! Heads on their way through a proxy (RFC 9110, section 7.6).
//!
//! The body passes as it is, so what tells its length passes too. What was said of one
//! connection alone stays behind.

use crate::{
    message::{Header, Request, Response, words},
    status::{Connection, push_decimal},
};
use alloc::vec::Vec;
use core::net::IpAddr;

/// What this proxy calls itself.
const NAME: &str = "fcap";

/// Appends the head that the server behind the proxy gets, for a request of `client`.
pub fn push_request(out: &mut Vec<u8>, request: &Request<'_, '_>, client: IpAddr) {
    let (host, path) = split_target(request.target);
    push(out, &[request.method, " ", path, " HTTP/1."]);
    push_decimal(out, request.minor_version.into());
    push(out, &["\r\n"]);
    if let Some(host) = host {
        push(out, &["Host: ", host, "\r\n"]);
    }
    push_headers(out, request.headers, |name| {
        // The proxy has asked for the body itself, and the target names the host.
        name.eq_ignore_ascii_case("expect")
            || name.eq_ignore_ascii_case("x-forwarded-for")
            || (host.is_some() && name.eq_ignore_ascii_case("host"))
    });
    push(out, &["X-Forwarded-For: "]);
    let before = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("x-forwarded-for"));
    for header in before {
        out.extend_from_slice(header.value);
        push(out, &[", "]);
    }
    push_display(out, client);
    push(out, &["\r\nVia: 1."]);
    push_decimal(out, request.minor_version.into());
    push(out, &[" ", NAME, "\r\n\r\n"]);
}

/// Appends the head that the client gets; `connection` is what happens to its connection.
pub fn push_response(out: &mut Vec<u8>, response: &Response<'_, '_>, connection: Connection) {
    push(out, &["HTTP/1.1 "]);
    push_decimal(out, response.status.into());
    push(out, &[" ", response.reason, "\r\n"]);
    push_headers(out, response.headers, |_| false);
    push(out, &[connection.header(), "Via: 1."]);
    push_decimal(out, response.minor_version.into());
    push(out, &[" ", NAME, "\r\n\r\n"]);
}

/// Host, if the target names one, and path.
fn split_target(target: &str) -> (Option<&str>, &str) {
    let Some(rest) = target.strip_prefix("http://") else { return (None, target) };
    match rest.find(['/', '?']) {
        Some(at) if rest.as_bytes()[at] == b'/' => (Some(&rest[..at]), &rest[at..]),
        // A query without a path would stand where the path does.
        Some(at) => (Some(&rest[..at]), "/"),
        None => (Some(rest), "/"),
    }
}

/// Appends the headers that are not for one connection alone, or left out by `leave_out`.
fn push_headers(out: &mut Vec<u8>, headers: &[Header<'_>], leave_out: impl Fn(&str) -> bool) {
    for header in headers {
        if is_hop_by_hop(header.name)
            || leave_out(header.name)
            || is_named_by_connection(headers, header.name)
        {
            continue;
        }
        push(out, &[header.name, ": "]);
        out.extend_from_slice(header.value);
        push(out, &["\r\n"]);
    }
}

fn is_hop_by_hop(name: &str) -> bool {
    ["connection", "keep-alive", "proxy-connection", "te", "upgrade"]
        .iter()
        .any(|hop| name.eq_ignore_ascii_case(hop))
}

/// Whether the header `Connection` says that `name` is for this connection alone.
fn is_named_by_connection(headers: &[Header<'_>], name: &str) -> bool {
    // A client must not get a message's host or its length dropped.
    let is_needed = ["host", "content-length", "transfer-encoding"]
        .iter()
        .any(|needed| name.eq_ignore_ascii_case(needed));
    !is_needed
        && headers
            .iter()
            .filter(|header| header.name.eq_ignore_ascii_case("connection"))
            .flat_map(|header| words(header.value))
            .any(|word| word.eq_ignore_ascii_case(name.as_bytes()))
}

fn push(out: &mut Vec<u8>, texts: &[&str]) {
    texts.iter().for_each(|text| out.extend_from_slice(text.as_bytes()));
}

fn push_display(out: &mut Vec<u8>, value: impl core::fmt::Display) {
    use alloc::string::ToString;
    out.extend_from_slice(value.to_string().as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Headers;
    use alloc::string::String;
    use core::net::Ipv4Addr;
    use proptest::prelude::*;

    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 88, 1, 2));

    fn forwarded(request: &str) -> String {
        let mut room = Headers::new();
        let request = Request::parse(request.as_bytes(), &mut room).unwrap().unwrap();
        let mut out = Vec::new();
        push_request(&mut out, &request, CLIENT);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_is_for_one_connection_alone_stays_behind() {
        let request = "POST /x HTTP/1.1\r\nHost: a\r\nConnection: close, X-Secret\r\nKeep-Alive: 5\r\n\
                       X-Secret: 1\r\nExpect: 100-continue\r\nContent-Length: 3\r\nAccept: */*\r\n\r\n";
        assert_eq!(
            forwarded(request),
            "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nAccept: */*\r\n\
             X-Forwarded-For: 10.88.1.2\r\nVia: 1.1 fcap\r\n\r\n"
        );
    }

    #[test]
    fn clients_cannot_get_the_length_dropped() {
        let request =
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: content-length, host\r\nContent-Length: 3\r\n\r\n";
        let forwarded = forwarded(request);
        assert!(forwarded.contains("Content-Length: 3\r\n") && forwarded.contains("Host: a\r\n"));
    }

    #[test]
    fn proxies_before_this_one_are_told() {
        let forwarded = forwarded("GET / HTTP/1.1\r\nHost: a\r\nx-forwarded-for: 1.2.3.4\r\n\r\n");
        assert!(forwarded.contains("X-Forwarded-For: 1.2.3.4, 10.88.1.2\r\n"));
    }

    #[test]
    fn an_absolute_target_names_the_host() {
        let forwarded = forwarded("GET http://b:80/x?y HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(forwarded.starts_with("GET /x?y HTTP/1.1\r\nHost: b:80\r\n"));
        assert!(!forwarded.contains("Host: a"));
    }

    #[test]
    fn a_response_says_what_becomes_of_the_clients_connection() {
        let mut room = Headers::new();
        let bytes = b"HTTP/1.1 200 Fine\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n";
        let response = Response::parse(bytes, &mut room, false).unwrap().unwrap();
        let mut out = Vec::new();
        push_response(&mut out, &response, Connection::Close);
        assert_eq!(
            out,
            b"HTTP/1.1 200 Fine\r\nContent-Length: 2\r\nConnection: close\r\nVia: 1.1 fcap\r\n\r\n"
        );
    }

    proptest! {
        #[test]
        fn what_goes_on_reads_as_what_came(
            path in "/[a-z/?=%]{0,20}",
            headers in proptest::collection::vec(("[A-Z][a-z-]{0,8}", "[ -~]{0,12}"), 0..12),
            length in 0u32..1000,
        ) {
            let mut text = alloc::format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n");
            headers.iter().for_each(|(name, value)| text += &alloc::format!("X-{name}: {value}\r\n"));
            text += "\r\n";
            let forwarded = forwarded(&text);
            let mut room = Headers::new();
            let again = Request::parse(forwarded.as_bytes(), &mut room).unwrap().unwrap();
            prop_assert_eq!(again.len, forwarded.len());
            prop_assert_eq!(again.target, path);
            prop_assert_eq!(again.body, crate::body::Length::Known(length.into()));
        }
    }
}
