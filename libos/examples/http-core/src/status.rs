//! Status codes, and the answers that consist of little more.

use crate::date::HttpDate;
use alloc::{format, vec::Vec};

/// A status code; see RFC 9110, section 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u16);

impl Status {
    /// 400: the request is not HTTP.
    pub const BAD_REQUEST: Self = Self(400);
    /// 404: there is no such file.
    pub const NOT_FOUND: Self = Self(404);
    /// 405: files can only be read.
    pub const METHOD_NOT_ALLOWED: Self = Self(405);
    /// 408: the request did not come in time.
    pub const REQUEST_TIMEOUT: Self = Self(408);
    /// 413: nobody wants this content.
    pub const CONTENT_TOO_LARGE: Self = Self(413);
    /// 431: the head of the request has no end.
    pub const HEADERS_TOO_LARGE: Self = Self(431);
    /// 501: the body comes in a coding that is not known.
    pub const NOT_IMPLEMENTED: Self = Self(501);
    /// 502: the server behind the proxy is not there, or speaks no HTTP.
    pub const BAD_GATEWAY: Self = Self(502);
    /// 503: there are too many connections.
    pub const UNAVAILABLE: Self = Self(503);
    /// 504: the server behind the proxy did not answer in time.
    pub const GATEWAY_TIMEOUT: Self = Self(504);
    /// 505: not HTTP/1.0 or 1.1.
    pub const VERSION_NOT_SUPPORTED: Self = Self(505);

    /// Its words, for people.
    pub fn reason(self) -> &'static str {
        match self.0 {
            200 => "OK",
            206 => "Partial Content",
            304 => "Not Modified",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            413 => "Content Too Large",
            416 => "Range Not Satisfiable",
            431 => "Request Header Fields Too Large",
            501 => "Not Implemented",
            502 => "Bad Gateway",
            503 => "Service Unavailable",
            504 => "Gateway Timeout",
            505 => "HTTP Version Not Supported",
            _ => "Error",
        }
    }
}

/// What the connection does after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Waits for the next request, as HTTP/1.1 does without a word.
    Stays,
    /// Does so for a client of HTTP/1.0, who wants to be told.
    KeepAlive,
    /// Ends.
    Close,
}

impl Connection {
    /// The header that tells the client; empty if there is nothing to tell.
    pub fn header(self) -> &'static str {
        match self {
            Self::Stays => "",
            Self::KeepAlive => "Connection: keep-alive\r\n",
            Self::Close => "Connection: close\r\n",
        }
    }
}

/// Appends `number` in decimal.
pub fn push_decimal(out: &mut Vec<u8>, number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends the status line and the headers that every answer has.
pub fn push_start(out: &mut Vec<u8>, status: Status, date: &HttpDate, connection: Connection) {
    out.extend_from_slice(b"HTTP/1.1 ");
    push_decimal(out, status.0.into());
    out.push(b' ');
    out.extend_from_slice(status.reason().as_bytes());
    out.extend_from_slice(b"\r\nDate: ");
    out.extend_from_slice(date.as_bytes());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(connection.header().as_bytes());
}

/// Appends a whole answer with this content; `head_only` leaves the content out, as the
/// answer to HEAD must.
pub fn push_content(
    out: &mut Vec<u8>,
    status: Status,
    headers: &str,
    content: &[u8],
    date: &HttpDate,
    connection: Connection,
    head_only: bool,
) {
    push_start(out, status, date, connection);
    out.extend_from_slice(headers.as_bytes());
    out.extend_from_slice(b"Content-Length: ");
    push_decimal(out, content.len() as u64);
    out.extend_from_slice(b"\r\n\r\n");
    if !head_only {
        out.extend_from_slice(content);
    }
}

/// Appends a whole answer that tells a person its status.
pub fn push_plain(
    out: &mut Vec<u8>,
    status: Status,
    extra_headers: &str,
    date: &HttpDate,
    connection: Connection,
    head_only: bool,
) {
    let headers = format!("{extra_headers}Content-Type: text/plain\r\n");
    let text = format!("{}\n", status.reason());
    push_content(out, status, &headers, text.as_bytes(), date, connection, head_only);
}
