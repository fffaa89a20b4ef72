//! Heads of requests and responses.
//!
//! `httparse` takes them apart; what is here decides what they mean for the
//! connection: how long the body is, and whether another message follows. Where two
//! readings are possible, the message is refused, because a proxy and the server
//! behind it might not read it in the same way (RFC 9112, section 11.2).

use crate::{body::Length, status::Status};
use core::mem::MaybeUninit;
pub use httparse::Header;

/// Bytes that the head of a message may have.
pub const MAX_HEAD: usize = 8 * 1024;
/// Headers that a message may have.
pub const MAX_HEADERS: usize = 64;

/// Room for the headers of one message. Making it costs nothing.
#[derive(Debug)]
pub struct Headers<'a>([MaybeUninit<Header<'a>>; MAX_HEADERS]);

impl Headers<'_> {
    /// Room, not filled.
    pub fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; MAX_HEADERS])
    }
}

impl Default for Headers<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// A message that cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Not HTTP.
    #[error("malformed head: {0}")]
    Malformed(httparse::Error),
    /// Not HTTP/1.0 or HTTP/1.1.
    #[error("HTTP version not supported")]
    Version,
    /// More than [`MAX_HEAD`] bytes or [`MAX_HEADERS`] headers.
    #[error("head larger than {MAX_HEAD} bytes or {MAX_HEADERS} headers")]
    TooLarge,
    /// A request of HTTP/1.1 has exactly one `Host`.
    #[error("a request has one Host header")]
    Host,
    /// `Content-Length` and `Transfer-Encoding` do not tell where the body ends.
    #[error("the length of the body is in doubt")]
    Framing,
    /// A transfer coding other than `chunked`.
    #[error("transfer coding not known")]
    Coding,
}

impl HeadError {
    /// The status that tells a client.
    pub fn status(self) -> Status {
        match self {
            Self::Malformed(_) | Self::Host | Self::Framing => Status::BAD_REQUEST,
            Self::Version => Status::VERSION_NOT_SUPPORTED,
            Self::TooLarge => Status::HEADERS_TOO_LARGE,
            Self::Coding => Status::NOT_IMPLEMENTED,
        }
    }
}

impl From<httparse::Error> for HeadError {
    fn from(error: httparse::Error) -> Self {
        match error {
            httparse::Error::TooManyHeaders => Self::TooLarge,
            httparse::Error::Version => Self::Version,
            other => Self::Malformed(other),
        }
    }
}

/// The head of a request.
#[derive(Debug)]
pub struct Request<'h, 'a> {
    /// GET and the like, as the client wrote it.
    pub method: &'a str,
    /// What is asked for, as the client wrote it.
    pub target: &'a str,
    /// The 1 of HTTP/1.1.
    pub minor_version: u8,
    /// All headers.
    pub headers: &'h [Header<'a>],
    /// How long the body is that follows.
    pub body: Length,
    /// The client means to send another request after this.
    pub keep_alive: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// Bytes of the head, the empty line included.
    pub len: usize,
}

impl<'h, 'a> Request<'h, 'a> {
    /// Reads the head that `bytes` start with, or returns `None` if its end is not there yet.
    ///
    /// # Errors
    /// When the request cannot be answered, and where the next one starts is not known.
    pub fn parse(bytes: &'a [u8], room: &'h mut Headers<'a>) -> Result<Option<Self>, HeadError> {
        let mut head = httparse::Request::new(&mut []);
        let status = head.parse_with_uninit_headers(bounded(bytes), &mut room.0)?;
        let httparse::Status::Complete(len) = status else { return incomplete(bytes) };
        let headers: &'h [Header<'a>] = head.headers;
        let minor_version = head.version.unwrap_or(0);
        let seen = Seen::of(headers, minor_version)?;
        if seen.hosts > 1 || (seen.hosts == 0 && minor_version >= 1) {
            return Err(HeadError::Host);
        }
        // A client cannot end a body by closing: it would get no answer.
        let body = seen.framing(minor_version)?.unwrap_or(Length::Known(0));
        Ok(Some(Self {
            method: head.method.unwrap_or(""),
            target: head.path.unwrap_or(""),
            minor_version,
            headers,
            body,
            keep_alive: seen.keep_alive,
            expects_continue: seen.expects_continue && minor_version >= 1 && body != Length::Known(0),
            len,
        }))
    }

    /// The value of the first header of this name.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        find(self.headers, name)
    }
}

/// The head of a response.
#[derive(Debug)]
pub struct Response<'h, 'a> {
    /// 200 and the like.
    pub status: u16,
    /// Words for people.
    pub reason: &'a str,
    /// The 1 of HTTP/1.1.
    pub minor_version: u8,
    /// All headers.
    pub headers: &'h [Header<'a>],
    /// How long the body is that follows.
    pub body: Length,
    /// The server will read another request on this connection.
    pub keep_alive: bool,
    /// Bytes of the head, the empty line included.
    pub len: usize,
}

impl<'h, 'a> Response<'h, 'a> {
    /// Reads the head that `bytes` start with, or returns `None` if its end is not there
    /// yet. `to_head` says that it answers HEAD, so that there is no body.
    ///
    /// # Errors
    /// When it is no response, or its end is in doubt.
    pub fn parse(
        bytes: &'a [u8],
        room: &'h mut Headers<'a>,
        to_head: bool,
    ) -> Result<Option<Self>, HeadError> {
        let mut head = httparse::Response::new(&mut []);
        let status = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut head,
            bounded(bytes),
            &mut room.0,
        )?;
        let httparse::Status::Complete(len) = status else { return incomplete(bytes) };
        let headers: &'h [Header<'a>] = head.headers;
        let minor_version = head.version.unwrap_or(0);
        let code = head.code.unwrap_or(0);
        let seen = Seen::of(headers, minor_version)?;
        // RFC 9112, section 6.3.
        let body = if to_head || matches!(code, 100..=199 | 204 | 304) {
            Length::Known(0)
        } else {
            seen.framing(minor_version)?.unwrap_or(Length::UntilClose)
        };
        Ok(Some(Self {
            status: code,
            reason: head.reason.unwrap_or(""),
            minor_version,
            headers,
            body,
            keep_alive: seen.keep_alive && body != Length::UntilClose,
            len,
        }))
    }
}

/// No more than a head can have.
fn bounded(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(MAX_HEAD)]
}

fn incomplete<T>(bytes: &[u8]) -> Result<Option<T>, HeadError> {
    if bytes.len() < MAX_HEAD { Ok(None) } else { Err(HeadError::TooLarge) }
}

fn find<'a>(headers: &[Header<'a>], name: &str) -> Option<&'a [u8]> {
    headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
}

/// The words of a header that is a list.
pub(crate) fn words(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|word| !word.is_empty())
}

/// What the headers say about the connection.
struct Seen {
    hosts: u32,
    length: Option<u64>,
    chunked: bool,
    keep_alive: bool,
    expects_continue: bool,
}

impl Seen {
    fn of(headers: &[Header<'_>], minor_version: u8) -> Result<Self, HeadError> {
        let mut seen = Self {
            hosts: 0,
            length: None,
            chunked: false,
            keep_alive: minor_version >= 1,
            expects_continue: false,
        };
        for header in headers {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            // Most headers end here, at the cost of one comparison.
            match header.name.len() {
                4 if is("host") => seen.hosts += 1,
                6 if is("expect") => {
                    seen.expects_continue |= header.value.eq_ignore_ascii_case(b"100-continue");
                }
                10 if is("connection") => seen.connection(header.value),
                14 if is("content-length") => {
                    let length = parse_length(header.value).ok_or(HeadError::Framing)?;
                    if seen.length.replace(length).is_some_and(|before| before != length) {
                        return Err(HeadError::Framing);
                    }
                }
                17 if is("transfer-encoding") => {
                    if seen.chunked || !header.value.eq_ignore_ascii_case(b"chunked") {
                        return Err(HeadError::Coding);
                    }
                    seen.chunked = true;
                }
                _ => {}
            }
        }
        Ok(seen)
    }

    fn connection(&mut self, value: &[u8]) {
        for word in words(value) {
            if word.eq_ignore_ascii_case(b"close") {
                self.keep_alive = false;
                return;
            }
            self.keep_alive |= word.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    /// The length of the body, or `None` if the head does not tell.
    fn framing(&self, minor_version: u8) -> Result<Option<Length>, HeadError> {
        match (self.chunked, self.length) {
            // HTTP/1.0 has no chunks: whoever stands between does not see them.
            (true, Some(_)) => Err(HeadError::Framing),
            (true, None) if minor_version == 0 => Err(HeadError::Framing),
            (true, None) => Ok(Some(Length::Chunked)),
            (false, length) => Ok(length.map(Length::Known)),
        }
    }
}

/// Digits alone: a sign, spaces or a list are read by some and not by others.
fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 {
        return None;
    }
    value
        .iter()
        .try_fold(0, |length, &byte| byte.is_ascii_digit().then(|| length * 10 + u64::from(byte - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, string::String, vec, vec::Vec};
    use proptest::prelude::*;

    /// Length of head and body, and whether the connection stays.
    fn request(text: &str) -> Result<Option<(usize, Length, bool)>, HeadError> {
        let mut room = Headers::new();
        Request::parse(text.as_bytes(), &mut room)
            .map(|head| head.map(|head| (head.len, head.body, head.keep_alive)))
    }

    fn response(text: &str, to_head: bool) -> Result<Option<(u16, Length, bool)>, HeadError> {
        let mut room = Headers::new();
        Response::parse(text.as_bytes(), &mut room, to_head)
            .map(|head| head.map(|head| (head.status, head.body, head.keep_alive)))
    }

    #[test]
    fn a_request_says_how_long_it_is_and_whether_more_follow() {
        let none = Length::Known(0);
        assert_eq!(request("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET"), Ok(Some((27, none, true))));
        assert_eq!(request("GET / HTTP/1.0\r\n\r\n"), Ok(Some((18, none, false))));
        assert_eq!(request("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"), Ok(Some((42, none, true))));
        assert_eq!(
            request("GET / HTTP/1.1\r\nHost: a\r\nConnection: te, close\r\n\r\n"),
            Ok(Some((50, none, false)))
        );
        assert_eq!(
            request("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\n"),
            Ok(Some((47, Length::Known(12), true)))
        );
        assert_eq!(
            request("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n"),
            Ok(Some((55, Length::Chunked, true)))
        );
    }

    #[test]
    fn requests_of_doubtful_length_are_refused() {
        let with = |headers: &str| request(&format!("PUT / HTTP/1.1\r\nHost: a\r\n{headers}\r\n"));
        for headers in [
            "Content-Length: 1\r\nContent-Length: 2\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Content-Length:\r\n",
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        ] {
            assert_eq!(with(headers), Err(HeadError::Framing), "{headers}");
        }
        assert_eq!(with("Transfer-Encoding: gzip, chunked\r\n"), Err(HeadError::Coding));
        assert_eq!(
            with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
            Err(HeadError::Coding)
        );
        assert_eq!(request("PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Err(HeadError::Framing));
        assert!(matches!(with("Content-Length : 3\r\n"), Err(HeadError::Malformed(_))));
        assert!(matches!(with("Name: folded\r\n over lines\r\n"), Err(HeadError::Malformed(_))));
    }

    #[test]
    fn a_request_names_its_host_once() {
        assert_eq!(request("GET / HTTP/1.1\r\n\r\n"), Err(HeadError::Host));
        assert_eq!(request("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"), Err(HeadError::Host));
    }

    #[test]
    fn heads_without_end_are_refused() {
        let long = |len: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nName: {}", "x".repeat(len));
        assert_eq!(request(&long(100)), Ok(None));
        assert_eq!(request(&long(MAX_HEAD)), Err(HeadError::TooLarge));
        assert_eq!(request(&format!("{}\r\n\r\n", long(MAX_HEAD))), Err(HeadError::TooLarge));
        let many = "A: b\r\n".repeat(MAX_HEADERS);
        assert_eq!(request(&format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n")), Err(HeadError::TooLarge));
        assert_eq!(Status::HEADERS_TOO_LARGE, HeadError::TooLarge.status());
    }

    #[test]
    fn only_the_versions_that_are_known_are_taken() {
        assert_eq!(request("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), Err(HeadError::Version));
        assert!(request("GET /\r\n\r\n").is_err());
    }

    #[test]
    fn a_response_says_where_it_ends() {
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(response(ok, false), Ok(Some((200, Length::Known(5), true))));
        assert_eq!(response(ok, true), Ok(Some((200, Length::Known(0), true))));
        assert_eq!(response("HTTP/1.1 200 OK\r\n\r\n", false), Ok(Some((200, Length::UntilClose, false))));
        assert_eq!(response("HTTP/1.1 304 \r\n\r\n", false), Ok(Some((304, Length::Known(0), true))));
        assert_eq!(response("HTTP/1.1 200 OK\r\nCont", false), Ok(None));
        assert!(response("SSH-2.0-OpenSSH\r\n", false).is_err());
    }

    /// Pieces that heads are made of, right ones and others.
    fn any_head() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just(b"GET / HTTP/1.1\r\n".to_vec()),
            Just(b"HTTP/1.1 200 OK\r\n".to_vec()),
            Just(b"Host: a\r\n".to_vec()),
            Just(b"Content-Length: 7\r\n".to_vec()),
            Just(b"Transfer-Encoding: chunked\r\n".to_vec()),
            Just(b"Connection: close\r\n".to_vec()),
            Just(b"\r\n".to_vec()),
            Just(b" : ,\0\xff".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..8),
        ];
        proptest::collection::vec(piece, 0..80).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in any_head()) {
            let mut room = Headers::new();
            if let Ok(Some(head)) = Request::parse(&bytes, &mut room) {
                prop_assert!(head.len <= bytes.len() && head.len <= MAX_HEAD);
            }
            let mut room = Headers::new();
            if let Ok(Some(head)) = Response::parse(&bytes, &mut room, false) {
                prop_assert!(head.len <= bytes.len() && head.len <= MAX_HEAD);
            }
        }

        #[test]
        fn a_head_that_comes_in_pieces_reads_the_same(
            names in proptest::collection::vec("[A-Za-z]{1,9}", 0..9), cut: prop::sample::Index
        ) {
            let mut head = String::from("GET /x?y HTTP/1.1\r\nHost: a\r\n");
            names.iter().for_each(|name| head += &format!("X-{name}: {name}\r\n"));
            head += "\r\n";
            let cut = cut.index(head.len());
            prop_assert_eq!(request(&head[..cut]), Ok(None));
            prop_assert_eq!(request(&head), Ok(Some((head.len(), Length::Known(0), true))));
        }
    }

    #[test]
    fn headers_are_found_by_name_in_any_case() {
        let mut room = Headers::new();
        let head = Request::parse(b"GET / HTTP/1.1\r\nhOST: a\r\nRange: bytes=1-\r\n\r\n", &mut room);
        let head = head.unwrap().unwrap();
        assert_eq!(head.header("range"), Some(&b"bytes=1-"[..]));
        assert_eq!(head.header("etag"), None);
        assert_eq!(words(b" a, ,b ").collect::<Vec<_>>(), vec![&b"a"[..], b"b"]);
    }
}
