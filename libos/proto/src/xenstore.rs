//! xenstore's wire format: requests, replies and watch events as bytes.
//!
//! The same messages travel through the ring page of a guest and through
//! xenstored's socket in dom0 (`xen/include/public/io/xs_wire.h`,
//! `docs/misc/xenstore.txt`). A message is a [`Header`] and at most
//! [`PAYLOAD_MAX`] bytes. Replies carry the request's `req_id`; watch events
//! come unasked, in between.
//!
//! Sending is [`Request::encode`]; receiving is [`Parser`], which tells the
//! transport how much it wants next and hands out one [`Packet`] at a time:
//!
//! ```
//! # use xen_proto::xenstore::{Parser, Request, TxId};
//! # let mut wire = Vec::new();
//! # Request::Read("name").encode(7, TxId::NONE, &mut wire).unwrap();
//! # let mut incoming = &wire[..];
//! let mut parser = Parser::new();
//! let packet = loop {
//!     // From a socket this would be one `read` into `wanted`.
//!     let wanted = parser.wanted();
//!     let (now, later) = incoming.split_at(wanted.len());
//!     wanted.copy_from_slice(now);
//!     incoming = later;
//!     let read = now.len();
//!     if let Some(packet) = parser.advance(read).unwrap() {
//!         break packet;
//!     }
//! };
//! assert_eq!(packet.header.req_id, 7);
//! assert_eq!(packet.payload, b"name\0");
//! ```

use crate::domid::DomId;
use core::fmt;

/// Bytes of a [`Header`].
pub const HEADER_LEN: usize = 16;
/// Most bytes that may follow a header.
#[doc(alias = "XENSTORE_PAYLOAD_MAX")]
pub const PAYLOAD_MAX: usize = 4096;
/// Longest absolute path that xenstored takes, in bytes.
#[doc(alias = "XENSTORE_ABS_PATH_MAX")]
pub const PATH_MAX: usize = 3072;

/// The ring page between a guest and xenstored: byte offsets of its fields.
///
/// All indexes are free-running `u32`s, and need not start at 0.
pub mod ring {
    /// Length of each of the two rings.
    pub const LEN: usize = 1024;
    /// Ring of requests, towards xenstored.
    pub const REQ: usize = 0;
    /// Ring of replies and watch events, towards the guest.
    pub const RSP: usize = 1024;
    /// Consumer index of the requests, written by xenstored.
    pub const REQ_CONS: usize = 2048;
    /// Producer index of the requests, written by the guest.
    pub const REQ_PROD: usize = 2052;
    /// Consumer index of the replies, written by the guest.
    pub const RSP_CONS: usize = 2056;
    /// Producer index of the replies, written by xenstored.
    pub const RSP_PROD: usize = 2060;
}

/// What a message asks for, or answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "the names are xenstore's own")]
#[doc(alias = "xsd_sockmsg_type")]
pub enum Op {
    Control = 0,
    Directory = 1,
    Read = 2,
    GetPerms = 3,
    Watch = 4,
    Unwatch = 5,
    TransactionStart = 6,
    TransactionEnd = 7,
    Introduce = 8,
    Release = 9,
    GetDomainPath = 10,
    Write = 11,
    Mkdir = 12,
    Rm = 13,
    SetPerms = 14,
    WatchEvent = 15,
    Error = 16,
    IsDomainIntroduced = 17,
    Resume = 18,
    SetTarget = 19,
    ResetWatches = 21,
    DirectoryPart = 22,
}

impl Op {
    /// The operation for a number read from a message.
    pub fn from_u32(n: u32) -> Option<Self> {
        use Op::*;
        [
            Control,
            Directory,
            Read,
            GetPerms,
            Watch,
            Unwatch,
            TransactionStart,
            TransactionEnd,
            Introduce,
            Release,
            GetDomainPath,
            Write,
            Mkdir,
            Rm,
            SetPerms,
            WatchEvent,
            Error,
            IsDomainIntroduced,
            Resume,
            SetTarget,
            ResetWatches,
            DirectoryPart,
        ]
        .into_iter()
        .find(|&op| op as u32 == n)
    }
}

/// A transaction's number, as xenstored gave it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TxId(pub u32);

impl TxId {
    /// Outside of any transaction.
    pub const NONE: Self = Self(0);
}

/// What every message begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "xsd_sockmsg")]
pub struct Header {
    /// The operation's number, perhaps not one of [`Op`].
    pub op: u32,
    /// Chosen by the asker, repeated in the reply; 0 in watch events.
    pub req_id: u32,
    /// The transaction that the request belongs to.
    pub tx_id: TxId,
    /// Bytes of payload.
    pub len: u32,
}

impl Header {
    /// Reads a header.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Self {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self { op: word(0), req_id: word(4), tx_id: TxId(word(8)), len: word(12) }
    }

    /// The header's bytes.
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        for (at, word) in [self.op, self.req_id, self.tx_id.0, self.len].into_iter().enumerate() {
            bytes[at * 4..at * 4 + 4].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// What a domain may do with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    None,
    /// Read it.
    Read,
    /// Write it.
    Write,
    /// Read and write it.
    Both,
}

/// One entry of a node's permissions.
///
/// The first entry of a list names the node's owner, who may do everything, and
/// what every domain that is not in the list may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "xs_permissions")]
pub struct Perm {
    /// What it may do.
    pub access: Access,
    /// Which domain.
    pub domid: DomId,
}

impl fmt::Display for Perm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.access {
            Access::None => 'n',
            Access::Read => 'r',
            Access::Write => 'w',
            Access::Both => 'b',
        };
        write!(f, "{letter}{}", self.domid)
    }
}

/// One request.
///
/// Paths that do not begin with `/` are below `/local/domain/DOMID` of the asker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Names of a node's children; see [`Packet::strings`].
    Directory(&'a str),
    /// A node's value.
    Read(&'a str),
    /// A node's permissions.
    GetPerms(&'a str),
    /// Sends a watch event now, and whenever the node or one below it changes.
    Watch {
        /// The node, or `@introduceDomain`, `@releaseDomain`.
        path: &'a str,
        /// Comes back in each event.
        token: &'a str,
    },
    /// Ends a watch.
    Unwatch {
        /// As it was given.
        path: &'a str,
        /// As it was given.
        token: &'a str,
    },
    /// Opens a transaction; see [`Packet::tx_id`].
    TransactionStart,
    /// Ends the transaction of this request; a commit may fail with [`Error::Again`].
    TransactionEnd {
        /// Whether its changes shall become visible.
        commit: bool,
    },
    /// Makes a guest's ring known to xenstored (dom0 only).
    Introduce {
        /// The guest.
        domid: DomId,
        /// Machine frame of its ring page.
        mfn: u64,
        /// The guest's end of the event channel.
        port: u32,
    },
    /// Makes xenstored forget a guest (dom0 only).
    Release(DomId),
    /// A domain's home, `/local/domain/DOMID`.
    GetDomainPath(DomId),
    /// Sets a node's value, and creates it and its parents.
    Write {
        /// The node.
        path: &'a str,
        /// Any bytes; xenstored takes about 2,000 from a guest.
        value: &'a [u8],
    },
    /// Creates a node without value, and its parents.
    Mkdir(&'a str),
    /// Removes a node and everything below.
    Rm(&'a str),
    /// Replaces a node's permissions.
    SetPerms {
        /// The node.
        path: &'a str,
        /// Owner first.
        perms: &'a [Perm],
    },
    /// Whether xenstored knows the domain: "T" or "F".
    IsDomainIntroduced(DomId),
    /// Has xenstored watch out again for the end of a domain that goes on after it had shut down.
    Resume(DomId),
    /// Ends all watches of the asker.
    ResetWatches,
}

/// A request that cannot be put into one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncodeError {
    /// A path or token holds a zero byte, which would end it early.
    ZeroByte,
    /// It takes more than [`PAYLOAD_MAX`] bytes.
    TooLong,
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ZeroByte => "xenstore path or token holds a zero byte",
            Self::TooLong => "xenstore request is longer than 4096 bytes",
        })
    }
}

impl core::error::Error for EncodeError {}

impl Request<'_> {
    /// The operation's number.
    pub fn op(&self) -> Op {
        match self {
            Self::Directory(_) => Op::Directory,
            Self::Read(_) => Op::Read,
            Self::GetPerms(_) => Op::GetPerms,
            Self::Watch { .. } => Op::Watch,
            Self::Unwatch { .. } => Op::Unwatch,
            Self::TransactionStart => Op::TransactionStart,
            Self::TransactionEnd { .. } => Op::TransactionEnd,
            Self::Introduce { .. } => Op::Introduce,
            Self::Release(_) => Op::Release,
            Self::GetDomainPath(_) => Op::GetDomainPath,
            Self::Write { .. } => Op::Write,
            Self::Mkdir(_) => Op::Mkdir,
            Self::Rm(_) => Op::Rm,
            Self::SetPerms { .. } => Op::SetPerms,
            Self::IsDomainIntroduced(_) => Op::IsDomainIntroduced,
            Self::Resume(_) => Op::Resume,
            Self::ResetWatches => Op::ResetWatches,
        }
    }

    /// Appends the message to `out`, which stays as it is when there is an error.
    ///
    /// # Errors
    /// If the request cannot be put into one message.
    pub fn encode(&self, req_id: u32, tx_id: TxId, out: &mut impl Extend<u8>) -> Result<(), EncodeError> {
        let mut payload = Payload { bytes: [0; PAYLOAD_MAX], len: 0 };
        self.fill(&mut payload)?;
        let header = Header { op: self.op() as u32, req_id, tx_id, len: payload.len as u32 };
        out.extend(header.emit());
        out.extend(payload.bytes[..payload.len].iter().copied());
        Ok(())
    }

    fn fill(&self, payload: &mut Payload) -> Result<(), EncodeError> {
        match *self {
            Self::Directory(path)
            | Self::Read(path)
            | Self::GetPerms(path)
            | Self::Mkdir(path)
            | Self::Rm(path) => payload.string(path),
            Self::Watch { path, token } | Self::Unwatch { path, token } => {
                payload.string(path)?;
                payload.string(token)
            }
            // xenstored takes no empty payload where it reads strings.
            Self::TransactionStart | Self::ResetWatches => payload.string(""),
            Self::TransactionEnd { commit } => payload.string(if commit { "T" } else { "F" }),
            Self::Introduce { domid, mfn, port } => {
                payload.number(domid.0.into())?;
                payload.number(mfn)?;
                payload.number(port.into())
            }
            Self::Release(domid)
            | Self::GetDomainPath(domid)
            | Self::IsDomainIntroduced(domid)
            | Self::Resume(domid) => payload.number(domid.0.into()),
            Self::Write { path, value } => {
                payload.string(path)?;
                payload.push(value)
            }
            Self::SetPerms { path, perms } => {
                payload.string(path)?;
                perms.iter().try_for_each(|perm| payload.formatted(format_args!("{perm}")))
            }
        }
    }
}

/// A payload being put together.
struct Payload {
    bytes: [u8; PAYLOAD_MAX],
    len: usize,
}

impl Payload {
    fn push(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        let end = self.len + bytes.len();
        self.bytes.get_mut(self.len..end).ok_or(EncodeError::TooLong)?.copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    fn string(&mut self, string: &str) -> Result<(), EncodeError> {
        if string.as_bytes().contains(&0) {
            return Err(EncodeError::ZeroByte);
        }
        self.push(string.as_bytes())?;
        self.push(&[0])
    }

    fn number(&mut self, number: u64) -> Result<(), EncodeError> {
        self.formatted(format_args!("{number}"))
    }

    fn formatted(&mut self, text: fmt::Arguments<'_>) -> Result<(), EncodeError> {
        fmt::write(self, text).map_err(|_| EncodeError::TooLong)?;
        self.push(&[0])
    }
}

impl fmt::Write for Payload {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes()).map_err(|_| fmt::Error)
    }
}

/// Why xenstored refused a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// EINVAL: malformed request or path.
    Invalid,
    /// EACCES: the node's permissions forbid it.
    Access,
    /// EEXIST: it is there already (a watch, say).
    Exists,
    /// ENOENT: no such node, watch or transaction.
    NotFound,
    /// ENOMEM: xenstored has no memory.
    OutOfMemory,
    /// ENOSPC: a quota of the asker is used up.
    Quota,
    /// EIO: xenstored failed.
    Io,
    /// ENOSYS: xenstored does not know the operation.
    Unsupported,
    /// EBUSY: too many transactions, or in use.
    Busy,
    /// EAGAIN: the transaction met another one; start it again.
    Again,
    /// EISCONN: the domain is known already.
    Connected,
    /// E2BIG: the value is too long.
    TooBig,
    /// EPERM: not for this domain.
    NotPermitted,
    /// A name that is in none of the above.
    Other,
}

impl Error {
    /// The error for the name that xenstored sends, "ENOENT" for one.
    pub fn from_name(name: &[u8]) -> Self {
        match name {
            b"EINVAL" => Self::Invalid,
            b"EACCES" => Self::Access,
            b"EEXIST" => Self::Exists,
            b"ENOENT" => Self::NotFound,
            b"ENOMEM" => Self::OutOfMemory,
            b"ENOSPC" => Self::Quota,
            b"EIO" => Self::Io,
            b"ENOSYS" => Self::Unsupported,
            b"EBUSY" => Self::Busy,
            b"EAGAIN" => Self::Again,
            b"EISCONN" => Self::Connected,
            b"E2BIG" => Self::TooBig,
            b"EPERM" => Self::NotPermitted,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Invalid => "malformed xenstore request or path",
            Self::Access => "xenstore node's permissions forbid it",
            Self::Exists => "exists already in xenstore",
            Self::NotFound => "no such xenstore node",
            Self::OutOfMemory => "xenstored is out of memory",
            Self::Quota => "xenstore quota is used up",
            Self::Io => "xenstored failed",
            Self::Unsupported => "xenstored does not know the operation",
            Self::Busy => "xenstored is busy",
            Self::Again => "xenstore transaction met another one",
            Self::Connected => "domain is known to xenstored already",
            Self::TooBig => "xenstore value is too long",
            Self::NotPermitted => "xenstored does not permit it to this domain",
            Self::Other => "xenstored refused the request",
        })
    }
}

impl core::error::Error for Error {}

/// One whole message from xenstored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// What and whose it is.
    pub header: Header,
    /// `header.len` bytes.
    pub payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// The payload of a reply, or the error it carries.
    ///
    /// # Errors
    /// If xenstored refused the request.
    pub fn reply(&self) -> Result<&'a [u8], Error> {
        match Op::from_u32(self.header.op) {
            Some(Op::Error) => Err(Error::from_name(self.payload.strip_suffix(&[0]).unwrap_or(self.payload))),
            _ => Ok(self.payload),
        }
    }

    /// Path and token, if this is a watch event.
    pub fn watch_event(&self) -> Option<(&'a [u8], &'a [u8])> {
        let mut strings = self.strings();
        (self.header.op == Op::WatchEvent as u32).then_some(())?;
        Some((strings.next()?, strings.next()?))
    }

    /// The payload's zero-terminated strings, without their ends.
    pub fn strings(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        strings(self.payload)
    }

    /// The new transaction, if this answers [`Request::TransactionStart`].
    pub fn tx_id(&self) -> Option<TxId> {
        tx_id(self.payload)
    }
}

/// The zero-terminated strings in `payload`, without their ends.
pub fn strings(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    let end = payload.iter().rposition(|&byte| byte == 0).unwrap_or(0);
    let terminated = payload.get(..=end).filter(|text| text.last() == Some(&0)).unwrap_or(&[]);
    terminated.split_inclusive(|&byte| byte == 0).map(|string| &string[..string.len() - 1])
}

/// The transaction that the payload of a reply names.
pub fn tx_id(payload: &[u8]) -> Option<TxId> {
    str::from_utf8(strings(payload).next()?).ok()?.parse().ok().map(TxId)
}

/// A message that cannot be one; the stream has no meaning from there on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// The length that its header claims.
    pub len: u32,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "xenstore message claims {} bytes, more than 4096", self.len)
    }
}

impl core::error::Error for ParseError {}

/// Puts messages together from whatever pieces they arrive in.
///
/// Fill (a part of) [`wanted`](Self::wanted), tell how much with
/// [`advance`](Self::advance), and take the packet when there is one.
#[derive(Clone, Debug)]
pub struct Parser {
    buffer: [u8; HEADER_LEN + PAYLOAD_MAX],
    filled: usize,
    broken: Option<ParseError>,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// Waits for the beginning of a message.
    pub const fn new() -> Self {
        Self { buffer: [0; HEADER_LEN + PAYLOAD_MAX], filled: 0, broken: None }
    }

    /// Whether no message has been begun.
    pub fn is_between_messages(&self) -> bool {
        self.filled == 0
    }

    /// Where the next bytes go: never empty, and never longer than the message.
    pub fn wanted(&mut self) -> &mut [u8] {
        let end = self.header().map_or(HEADER_LEN, |header| HEADER_LEN + header.len as usize);
        // An earlier error keeps `end` from being trusted; what is read then is ignored.
        let end = if self.broken.is_some() { self.buffer.len() } else { end };
        &mut self.buffer[self.filled..end]
    }

    /// Takes note that the first `len` bytes of [`wanted`](Self::wanted) have been
    /// filled, and returns the message that they complete.
    ///
    /// # Errors
    /// If the message claims to be longer than any may be; then for ever.
    ///
    /// # Panics
    /// If more was filled than wanted.
    pub fn advance(&mut self, len: usize) -> Result<Option<Packet<'_>>, ParseError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        assert!(len <= self.wanted().len(), "more was filled than wanted");
        self.filled += len;
        let Some(header) = self.header() else { return Ok(None) };
        if header.len as usize > PAYLOAD_MAX {
            self.broken = Some(ParseError { len: header.len });
            self.filled = 0;
            return Err(ParseError { len: header.len });
        }
        let end = HEADER_LEN + header.len as usize;
        if self.filled < end {
            return Ok(None);
        }
        self.filled = 0;
        Ok(Some(Packet { header, payload: &self.buffer[HEADER_LEN..end] }))
    }

    fn header(&self) -> Option<Header> {
        let bytes = self.buffer.first_chunk::<HEADER_LEN>()?;
        (self.filled >= HEADER_LEN).then(|| Header::parse(bytes))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::{string::String, vec, vec::Vec};

    /// Feeds `stream` in pieces of at most `piece` bytes; returns what came out.
    fn parse(mut stream: &[u8], piece: usize) -> Result<Vec<(Header, Vec<u8>)>, ParseError> {
        let mut parser = Parser::new();
        let mut packets = Vec::new();
        while !stream.is_empty() {
            let wanted = parser.wanted();
            let len = wanted.len().min(piece).min(stream.len());
            wanted[..len].copy_from_slice(&stream[..len]);
            stream = &stream[len..];
            if let Some(packet) = parser.advance(len)? {
                packets.push((packet.header, packet.payload.to_vec()));
            }
        }
        Ok(packets)
    }

    fn encoded(request: Request<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        request.encode(0x0102_0304, TxId(5), &mut bytes).unwrap();
        bytes
    }

    const WRITE_A_B: &[u8] = &[11, 0, 0, 0, 4, 3, 2, 1, 5, 0, 0, 0, 3, 0, 0, 0, b'a', 0, b'b'];

    #[test]
    fn a_write_is_the_bytes_of_the_specification() {
        assert_eq!(encoded(Request::Write { path: "a", value: b"b" }), WRITE_A_B);
    }

    #[test]
    fn a_packet_is_read_whole_and_byte_by_byte() {
        let header = Header { op: 11, req_id: 0x0102_0304, tx_id: TxId(5), len: 3 };
        for piece in [usize::MAX, 1] {
            assert_eq!(parse(WRITE_A_B, piece), Ok(vec![(header, b"a\0b".to_vec())]));
        }
    }

    #[test]
    fn an_empty_payload_completes_with_the_header() {
        let header = Header { op: 11, req_id: 1, tx_id: TxId::NONE, len: 0 };
        assert_eq!(parse(&header.emit(), usize::MAX), Ok(vec![(header, vec![])]));
    }

    #[test]
    fn payloads_have_the_documented_form() {
        let payload = |request| encoded(request)[HEADER_LEN..].to_vec();
        assert_eq!(payload(Request::Watch { path: "/a", token: "t" }), b"/a\0t\0");
        assert_eq!(payload(Request::TransactionStart), b"\0");
        assert_eq!(payload(Request::TransactionEnd { commit: true }), b"T\0");
        assert_eq!(payload(Request::Introduce { domid: DomId(7), mfn: 99, port: 3 }), b"7\x0099\x003\0");
        let perms =
            [Perm { access: Access::None, domid: DomId(0) }, Perm { access: Access::Both, domid: DomId(12) }];
        assert_eq!(payload(Request::SetPerms { path: "/a", perms: &perms }), b"/a\0n0\0b12\0");
    }

    #[test]
    fn a_zero_byte_in_a_path_is_refused() {
        let mut bytes = Vec::new();
        let request = Request::Write { path: "a\0b", value: b"" };
        assert_eq!(request.encode(0, TxId::NONE, &mut bytes), Err(EncodeError::ZeroByte));
        assert!(bytes.is_empty());
    }

    #[test]
    fn a_value_that_does_not_fit_is_refused() {
        let value = vec![0; PAYLOAD_MAX - 1];
        let request = Request::Write { path: "a", value: &value };
        assert_eq!(request.encode(0, TxId::NONE, &mut Vec::new()), Err(EncodeError::TooLong));
        let fits = Request::Write { path: "a", value: &value[1..] };
        assert_eq!(fits.encode(0, TxId::NONE, &mut Vec::new()), Ok(()));
    }

    #[test]
    fn errors_and_events_are_told_apart() {
        let header = Header { op: Op::Error as u32, req_id: 1, tx_id: TxId::NONE, len: 7 };
        assert_eq!(Packet { header, payload: b"ENOENT\0" }.reply(), Err(Error::NotFound));
        let header = Header { op: Op::WatchEvent as u32, req_id: 0, tx_id: TxId::NONE, len: 5 };
        let event = Packet { header, payload: b"/a\0t\0" };
        assert_eq!(event.watch_event(), Some((&b"/a"[..], &b"t"[..])));
        assert_eq!(Packet { header, payload: b"/a" }.watch_event(), None);
    }

    #[test]
    fn strings_without_an_end_are_not_returned() {
        assert_eq!(strings(b"a\0bc\0").collect::<Vec<_>>(), [&b"a"[..], b"bc"]);
        assert_eq!(strings(b"a\0bc").collect::<Vec<_>>(), [b"a"]);
        assert_eq!(strings(b"abc").count(), 0);
        assert_eq!(strings(b"").count(), 0);
        assert_eq!(tx_id(b"31\0"), Some(TxId(31)));
    }

    #[test]
    fn a_length_out_of_bounds_ends_the_stream() {
        let header = Header { op: 2, req_id: 1, tx_id: TxId::NONE, len: 4097 };
        let mut parser = Parser::new();
        parser.wanted().copy_from_slice(&header.emit());
        assert_eq!(parser.advance(HEADER_LEN), Err(ParseError { len: 4097 }));
        assert!(!parser.wanted().is_empty());
        assert_eq!(parser.advance(1), Err(ParseError { len: 4097 }));
    }

    proptest! {
        #[test]
        fn messages_survive_any_cutting(
            values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3000), 0..8),
            path in "[a-z/]{1,20}",
            piece in 1usize..5000,
        ) {
            let mut stream = Vec::new();
            for (id, value) in values.iter().enumerate() {
                Request::Write { path: &path, value }.encode(id as u32, TxId::NONE, &mut stream).unwrap();
            }
            let packets = parse(&stream, piece).unwrap();
            prop_assert_eq!(packets.len(), values.len());
            for (id, ((header, payload), value)) in packets.iter().zip(&values).enumerate() {
                prop_assert_eq!(header.req_id, id as u32);
                let mut expected = path.clone().into_bytes();
                expected.push(0);
                expected.extend(value);
                prop_assert_eq!(payload, &expected);
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(stream: Vec<u8>, piece in 1usize..64) {
            if let Ok(packets) = parse(&stream, piece) {
                for (header, payload) in packets {
                    let packet = Packet { header, payload: &payload };
                    let _ = (packet.reply(), packet.watch_event(), packet.tx_id());
                    prop_assert!(packet.strings().map(<[u8]>::len).sum::<usize>() <= payload.len());
                }
            }
        }

        #[test]
        fn any_path_is_encoded_or_refused(path: String, token: String) {
            let mut bytes = Vec::new();
            let result = Request::Watch { path: &path, token: &token }.encode(0, TxId::NONE, &mut bytes);
            prop_assert_eq!(result.is_ok(), !path.contains('\0') && !token.contains('\0'));
        }
    }
}
