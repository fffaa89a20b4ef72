//! A web site out of a tar archive, and its answers.
//!
//! All that can be known of a file before anybody asks for it is worked out once: an
//! answer is then a few copies into the buffer that is sent.

use crate::{
    date::HttpDate,
    message::Request,
    status::{Connection, Status, push_decimal, push_plain, push_start},
};
use alloc::{borrow::Cow, format, string::String, vec::Vec};
use core::ops::Range;
pub use tar_no_std::CorruptDataError;
use tar_no_std::TarArchiveRef;

/// Bodies up to this size are copied behind their head, so that both are sent in one
/// piece. Larger ones are handed out where they are.
const MAX_COPIED: usize = 16 * 1024;

/// Files, by path.
#[derive(Debug)]
pub struct Site<'a> {
    /// Sorted by path.
    files: Vec<(String, File<'a>)>,
}

#[derive(Clone, Debug)]
struct File<'a> {
    body: &'a [u8],
    /// With its quotes.
    etag: String,
    /// `Content-Length` of the whole file.
    length_header: String,
    /// The headers that all answers have, and the empty line.
    headers: String,
}

impl<'a> Site<'a> {
    /// Takes the regular files of an archive. `index.html` is also the answer for its folder.
    ///
    /// # Errors
    /// When the archive is broken.
    pub fn from_tar(archive: &'a [u8]) -> Result<Self, CorruptDataError> {
        let archive = TarArchiveRef::new(archive)?;
        let modified = archive.headers().filter(|(_, header)| {
            header.typeflag.try_to_type_flag().is_ok_and(|kind| kind.is_regular_file())
        });
        let mut site = Self { files: Vec::new() };
        for (entry, (_, header)) in archive.entries().zip(modified) {
            let name = entry.filename();
            // A name that is no text can be in no URL that we would find it by.
            let Ok(name) = name.as_str() else { continue };
            let modified = header.mtime.as_inner().as_str().ok();
            let modified = modified.and_then(|octal| u64::from_str_radix(octal.trim(), 8).ok());
            let file = File::new(name, entry.data(), modified.unwrap_or(0));
            let path = format!("/{}", name.trim_start_matches("./").trim_start_matches('/'));
            if let Some(folder) = path.strip_suffix("index.html").filter(|folder| folder.ends_with('/')) {
                site.insert(folder.into(), file.clone());
            }
            site.insert(path, file);
        }
        Ok(site)
    }

    /// Files, and folders that have an index.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is nothing at all.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Appends the answer to `out`, and returns what of the body is to be sent after that.
    pub fn answer(
        &self,
        request: &Request<'_, '_>,
        date: &HttpDate,
        connection: Connection,
        out: &mut Vec<u8>,
    ) -> &'a [u8] {
        let head_only = request.method == "HEAD";
        if !head_only && request.method != "GET" {
            push_plain(out, Status::METHOD_NOT_ALLOWED, "Allow: GET, HEAD\r\n", date, connection, false);
            return &[];
        }
        let Some(file) = self.find(request.target) else {
            push_plain(out, Status::NOT_FOUND, "", date, connection, head_only);
            return &[];
        };
        let body = file.push_head(request, date, connection, out);
        if head_only {
            return &[];
        }
        if body.len() > MAX_COPIED {
            return body;
        }
        out.extend_from_slice(body);
        &[]
    }

    /// Adds a file, instead of one of the same path: an archive's last is what counts.
    fn insert(&mut self, path: String, file: File<'a>) {
        match self.place(&path) {
            Ok(at) => self.files[at].1 = file,
            Err(at) => self.files.insert(at, (path, file)),
        }
    }

    fn find(&self, target: &str) -> Option<&File<'a>> {
        let at = self.place(&path_of(target)?).ok()?;
        Some(&self.files[at].1)
    }

    /// Where a path is, or would be.
    fn place(&self, path: &str) -> Result<usize, usize> {
        self.files.binary_search_by(|(known, _)| known.as_str().cmp(path))
    }
}

impl<'a> File<'a> {
    fn new(name: &str, body: &'a [u8], modified: u64) -> Self {
        let etag = format!("\"{modified:x}-{:x}\"", body.len());
        let headers = format!(
            "Content-Type: {}\r\nLast-Modified: {}\r\nETag: {etag}\r\nAccept-Ranges: bytes\r\n\r\n",
            content_type(name),
            HttpDate::from_unix(modified),
        );
        Self { body, etag, length_header: format!("Content-Length: {}\r\n", body.len()), headers }
    }

    /// Appends the head that fits the request's conditions, and returns the body of it.
    fn push_head(
        &self,
        request: &Request<'_, '_>,
        date: &HttpDate,
        connection: Connection,
        out: &mut Vec<u8>,
    ) -> &'a [u8] {
        if request.header("if-none-match").is_some_and(|tags| names(tags, &self.etag)) {
            push_start(out, Status(304), date, connection);
            out.extend_from_slice(self.headers.as_bytes());
            return &[];
        }
        let is_same = request.header("if-range").is_none_or(|tag| tag == self.etag.as_bytes());
        match request.header("range").filter(|_| is_same).and_then(|range| part(range, self.body.len())) {
            None => {
                push_start(out, Status(200), date, connection);
                out.extend_from_slice(self.length_header.as_bytes());
                out.extend_from_slice(self.headers.as_bytes());
                self.body
            }
            Some(Some(range)) => {
                let body = &self.body[range.clone()];
                push_start(out, Status(206), date, connection);
                out.extend_from_slice(b"Content-Range: bytes ");
                push_decimal(out, range.start as u64);
                out.push(b'-');
                push_decimal(out, range.end as u64 - 1);
                out.push(b'/');
                push_decimal(out, self.body.len() as u64);
                out.extend_from_slice(b"\r\nContent-Length: ");
                push_decimal(out, body.len() as u64);
                out.extend_from_slice(b"\r\n");
                out.extend_from_slice(self.headers.as_bytes());
                body
            }
            Some(None) => {
                let range = format!("Content-Range: bytes */{}\r\n", self.body.len());
                push_plain(out, Status(416), &range, date, connection, request.method == "HEAD");
                &[]
            }
        }
    }
}

/// Whether a list of entity tags has this one (RFC 9110, section 13.1.2).
fn names(tags: &[u8], etag: &str) -> bool {
    crate::message::words(tags)
        .any(|tag| tag == b"*" || tag.strip_prefix(b"W/").unwrap_or(tag) == etag.as_bytes())
}

/// The part of `len` bytes that a `Range` asks for: `None` if it is to be ignored,
/// `Some(None)` if there is no such part (RFC 9110, section 14.1.2). One range alone is
/// understood.
fn part(range: &[u8], len: usize) -> Option<Option<Range<usize>>> {
    let range = core::str::from_utf8(range).ok()?.strip_prefix("bytes=")?;
    let (first, last) = range.split_once('-')?;
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<usize>().ok())?;
    let range = match (first, last) {
        ("", last) => len.saturating_sub(number(last)?)..len,
        (first, "") => number(first)?..len,
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return None;
            }
            first..last.saturating_add(1).min(len)
        }
    };
    Some((range.start < range.end).then_some(range))
}

/// The path of a request's target, with its escapes resolved; `None` if there is none.
///
/// Paths are only looked up among those of the archive, so `..` leads nowhere.
fn path_of(target: &str) -> Option<Cow<'_, str>> {
    let target = match target.strip_prefix("http://") {
        // A server must take the form that proxies get, too.
        Some(rest) => &rest[rest.find('/')?..],
        None => target,
    };
    let end = target.find(['?', '#']).unwrap_or(target.len());
    let path = &target[..end];
    if !path.contains('%') {
        return Some(path.into());
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let digits = core::str::from_utf8(after.get(..2)?).ok()?;
            if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return None;
            }
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "txt" | "md" => "text/plain; charset=utf-8",
        "json" => "application/json",
        "xml" => "application/xml",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "wasm" => "application/wasm",
        "pdf" => "application/pdf",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Headers;
    use alloc::{string::ToString, vec};
    use proptest::prelude::*;

    const INDEX: &[u8] = b"<p>Hello";

    fn archive() -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        let big = vec![7; MAX_COPIED + 1];
        for (name, body) in [
            ("index.html", INDEX),
            ("a b/index.html", b"x"),
            ("./data.bin", &big),
            ("no-index.html", b""),
            ("old", b"old"),
            ("old", b"new"),
        ] {
            let mut header = tar::Header::new_ustar();
            header.set_size(body.len() as u64);
            header.set_mtime(784_111_777);
            archive.append_data(&mut header, name, body).unwrap();
        }
        archive.into_inner().unwrap()
    }

    /// Head and body that go out at once, and the size of the rest.
    fn ask(request: &str) -> (String, String, usize) {
        let archive = archive();
        let site = Site::from_tar(&archive).unwrap();
        let mut room = Headers::new();
        let request = Request::parse(request.as_bytes(), &mut room).unwrap().unwrap();
        let mut out = Vec::new();
        let rest = site.answer(&request, &HttpDate::from_unix(0), Connection::Stays, &mut out).len();
        let text = String::from_utf8(out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.to_string(), body.to_string(), rest)
    }

    fn get(target: &str, headers: &str) -> (String, String, usize) {
        ask(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n{headers}\r\n"))
    }

    #[test]
    fn a_file_comes_with_all_that_is_known_of_it() {
        let (head, body, rest) = get("/", "");
        assert_eq!(
            head,
            "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Length: 8\r\n\
             Content-Type: text/html; charset=utf-8\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
             ETag: \"2ebc98a1-8\"\r\nAccept-Ranges: bytes"
        );
        assert_eq!((body.as_bytes(), rest), (INDEX, 0));
        assert_eq!(get("/index.html?x", "").1.as_bytes(), INDEX);
        assert_eq!(get("http://a/", "").1.as_bytes(), INDEX);
        assert_eq!(get("/a%20b/", "").1, "x");
    }

    #[test]
    fn of_two_files_with_one_name_the_last_counts() {
        assert_eq!(get("/old", "").1, "new");
    }

    #[test]
    fn large_files_are_not_copied() {
        let (head, body, rest) = get("/data.bin", "");
        assert!(head.contains(&format!("Content-Length: {}\r\n", MAX_COPIED + 1)));
        assert_eq!((body.len(), rest), (0, MAX_COPIED + 1));
    }

    #[test]
    fn head_has_no_body() {
        let (head, body, _) = ask("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(head.contains("Content-Length: 8\r\n"));
        assert_eq!(body, "");
        assert_eq!(ask("HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n").1, "");
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        for target in ["/x", "/a", "/../index.html", "/%", "/%zz", "/%+1", "/%ff", "*", "/no-", "http://a"] {
            assert!(get(target, "").0.starts_with("HTTP/1.1 404 Not Found\r\n"), "{target}");
        }
    }

    #[test]
    fn files_can_only_be_read() {
        let (head, ..) = ask("DELETE / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"));
        assert!(head.contains("Allow: GET, HEAD\r\n"));
    }

    #[test]
    fn who_has_the_file_is_told_so() {
        let (head, body, _) = get("/", "If-None-Match: \"x\", W/\"2ebc98a1-8\"\r\n");
        assert!(head.starts_with("HTTP/1.1 304 Not Modified\r\n"));
        assert_eq!(body, "");
        assert!(get("/", "If-None-Match: \"x\"\r\n").0.starts_with("HTTP/1.1 200"));
    }

    #[test]
    fn a_part_is_sent_to_who_asks_for_it() {
        let (head, body, _) = get("/", "Range: bytes=1-3\r\n");
        assert!(head.starts_with("HTTP/1.1 206 Partial Content\r\n"));
        assert!(head.contains("Content-Range: bytes 1-3/8\r\nContent-Length: 3\r\n"));
        assert_eq!(body, "p>H");
        assert_eq!(get("/", "Range: bytes=-3\r\n").1, "llo");
        assert_eq!(get("/", "Range: bytes=6-\r\n").1, "lo");
        assert_eq!(get("/", "Range: bytes=0-999\r\n").1.as_bytes(), INDEX);
        assert!(get("/", "Range: bytes=8-\r\n").0.starts_with("HTTP/1.1 416"));
        assert!(get("/", "Range: bytes=-0\r\n").0.starts_with("HTTP/1.1 416"));
        for ignored in ["bytes=3-1", "bytes=0-1,3-4", "lines=1-2", "bytes=", "bytes=x-", "bytes=+1-2"] {
            assert!(get("/", &format!("Range: {ignored}\r\n")).0.starts_with("HTTP/1.1 200"), "{ignored}");
        }
        assert_eq!(get("/", "Range: bytes=1-3\r\nIf-Range: \"old\"\r\n").1.as_bytes(), INDEX);
    }

    #[test]
    fn a_broken_archive_is_an_error() {
        let mut archive = archive();
        assert!(Site::from_tar(&archive[..700]).is_err());
        archive[3] ^= 1;
        assert!(Site::from_tar(&archive).is_err());
    }

    proptest! {
        #[test]
        fn parts_are_within_the_file(range in "bytes=[0-9]{0,20}-[0-9]{0,20}", len in 0usize..100) {
            if let Some(Some(part)) = part(range.as_bytes(), len) {
                prop_assert!(part.start < part.end && part.end <= len);
            }
        }

        #[test]
        fn any_path_is_found_by_its_escapes(path in "/\\PC{0,20}") {
            let escaped: String = path.bytes().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(path_of(&escaped), Some(Cow::Owned(path)));
        }

        #[test]
        fn no_target_panics(target in "\\PC*") {
            let _ = path_of(&target);
        }
    }
}
