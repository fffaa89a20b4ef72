//! Netlink: messages, attributes, and a socket that waits for the kernel's answer.
//!
//! The same format carries all that is asked of the kernel here: devices, addresses and
//! neighbours (rtnetlink), filters (nfnetlink), and keys (generic netlink). A message is a
//! header, the family's own header, and attributes, which may contain attributes
//! (`include/uapi/linux/netlink.h`). Numbers are in the byte order of the machine unless a
//! family says otherwise.
//!
//! The kernel has done what a message asks for when `send` returns; its answers then wait in
//! the socket.

use std::{
    io,
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt,
    socket, sockopt,
};

/// Bytes of a message's header.
const HEADER_LEN: usize = 16;
/// Bytes of an attribute's header.
const ATTRIBUTE_LEN: usize = 4;
/// The kernel's own limit for one datagram of a dump.
const RECEIVE_LEN: usize = 32 << 10;
/// Messages and attributes begin at multiples of this.
const ALIGN: usize = 4;

/// Asks for an answer when the message has been processed.
const ACK: u16 = libc::NLM_F_ACK as u16;
const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
/// Makes what is not there.
pub(super) const CREATE: u16 = libc::NLM_F_CREATE as u16;
/// Makes what is not there, changes what is.
pub(super) const REPLACE: u16 = CREATE | libc::NLM_F_REPLACE as u16;
/// Makes what must not be there yet.
pub(super) const EXCLUSIVE: u16 = CREATE | libc::NLM_F_EXCL as u16;
/// Asks for all objects.
pub(super) const DUMP: u16 = libc::NLM_F_DUMP as u16;

/// A message in the making.
#[derive(Clone, Debug)]
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// Starts a message with the family's own header.
    pub(super) fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER_LEN];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend(header);
        let mut message = Self { bytes };
        message.pad();
        message
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
    }

    /// Adds an attribute.
    #[must_use]
    pub(super) fn with(mut self, kind: u16, value: impl AsRef<[u8]>) -> Self {
        self.nested(kind, |message| message.bytes.extend(value.as_ref()));
        self
    }

    /// Adds an attribute that is a string.
    #[must_use]
    pub(super) fn with_text(mut self, kind: u16, value: &str) -> Self {
        self.nested(kind, |message| {
            message.bytes.extend(value.bytes());
            message.bytes.push(0);
        });
        self
    }

    /// Adds an attribute that contains attributes, which `fill` adds.
    #[must_use]
    pub(super) fn with_nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.bytes.extend([0; ATTRIBUTE_LEN]);
        self = fill(self);
        self.close(start, kind | libc::NLA_F_NESTED as u16);
        self
    }

    /// Adds attributes as they came from the kernel.
    #[must_use]
    pub(super) fn with_raw(mut self, attributes: &[u8]) -> Self {
        self.bytes.extend(attributes);
        self.pad();
        self
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; ATTRIBUTE_LEN]);
        fill(self);
        self.close(start, kind);
    }

    /// Ends the attribute that began at `start`.
    ///
    /// # Panics
    /// If it is longer than an attribute can be: 64 KiB. Nothing here comes near it.
    fn close(&mut self, start: usize, kind: u16) {
        let len = u16::try_from(self.bytes.len() - start).expect("attributes are short");
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self.pad();
    }

    /// The finished message.
    fn finish(mut self, sequence: u32, flags: u16) -> Vec<u8> {
        let len = self.bytes.len() as u32;
        let flags = flags | u16::from_ne_bytes([self.bytes[6], self.bytes[7]]);
        self.bytes[0..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// A message that came from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reply<'a> {
    pub(super) kind: u16,
    sequence: u32,
    /// What follows the header.
    pub(super) body: &'a [u8],
}

impl<'a> Reply<'a> {
    /// The attributes behind the family's own header of `header` bytes.
    pub(super) fn attributes(&self, header: usize) -> Attributes<'a> {
        Attributes { rest: self.body.get(header..).unwrap_or(&[]) }
    }
}

/// Messages of a datagram. A message that claims to be longer than what there is ends it.
#[derive(Clone, Debug)]
struct Replies<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Replies<'a> {
    type Item = Reply<'a>;

    fn next(&mut self) -> Option<Reply<'a>> {
        let header = self.rest.get(..HEADER_LEN)?;
        let word =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let len = word(0) as usize;
        let body = self.rest.get(HEADER_LEN..len)?;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let sequence = word(8);
        self.rest = self.rest.get(len.next_multiple_of(ALIGN)..).unwrap_or(&[]);
        Some(Reply { kind, sequence, body })
    }
}

/// Attributes, by kind and value. One that claims to be longer than what there is ends them.
#[derive(Clone, Debug)]
pub(super) struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// The attributes inside an attribute.
    pub(super) fn of(value: &'a [u8]) -> Self {
        Self { rest: value }
    }

    /// The value of the first attribute of this kind.
    pub(super) fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find(|(other, _)| *other == kind).map(|(_, value)| value)
    }

    /// As [`Self::get`], for one that contains attributes.
    pub(super) fn nested(&self, kind: u16) -> Option<Self> {
        self.get(kind).map(Self::of)
    }

    /// As [`Self::get`], for a string.
    pub(super) fn text(&self, kind: u16) -> Option<&'a str> {
        let value = self.get(kind)?;
        let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
        std::str::from_utf8(&value[..end]).ok()
    }

    /// As [`Self::get`], for a number.
    pub(super) fn number(&self, kind: u16) -> Option<u32> {
        Some(u32::from_ne_bytes(self.get(kind)?.try_into().ok()?))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.rest.get(..ATTRIBUTE_LEN)?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & libc::NLA_TYPE_MASK as u16;
        let value = self.rest.get(ATTRIBUTE_LEN..len)?;
        self.rest = self.rest.get(len.next_multiple_of(ALIGN)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

/// A connection to one family of the kernel.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens it.
    pub(super) fn open(family: SockProtocol) -> io::Result<Self> {
        Self::listen(family, 0)
    }

    /// Opens it for what the kernel tells these groups (a bit each).
    pub(super) fn listen(family: SockProtocol, groups: u32) -> io::Result<Self> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, family)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; RECEIVE_LEN] })
    }

    /// Makes room for so many bytes of messages that have not been read.
    pub(super) fn set_receive_buffer(&self, bytes: usize) -> io::Result<()> {
        Ok(setsockopt(&self.fd, sockopt::RcvBufForce, &bytes)?)
    }

    /// Has the kernel process all the messages.
    ///
    /// # Errors
    /// The first one that the kernel reports. The other messages have been processed all the
    /// same.
    pub(super) fn execute(&mut self, messages: Vec<Message>) -> io::Result<()> {
        let Some(last) = messages.len().checked_sub(1) else { return Ok(()) };
        let numbers = self.send(messages, last)?;
        self.answers(numbers.end - 1, None, |_| ())
    }

    /// As [`Self::execute`], for a batch of nfnetlink: all or nothing is done. Its first and last
    /// messages get no answer; but if the kernel cannot even begin, it says so to the first.
    pub(super) fn execute_batch(&mut self, batch: Vec<Message>) -> io::Result<()> {
        let last = batch.len() - 2;
        let numbers = self.send(batch, last)?;
        self.answers(numbers.end - 2, Some(numbers.start), |_| ())
    }

    /// Asks for one object, or with [`DUMP`] for all, and shows what comes to `see`.
    pub(super) fn query(&mut self, message: Message, see: impl FnMut(Reply<'_>)) -> io::Result<()> {
        let numbers = self.send(vec![message], 0)?;
        self.answers(numbers.end - 1, None, see)
    }

    /// Sends messages, of which the one at `last` is to be answered in any case, and returns
    /// their numbers.
    fn send(&mut self, messages: Vec<Message>, last: usize) -> io::Result<Range<u32>> {
        let count = messages.len() as u32;
        // No answer to an earlier request has a number of this one, and none is 0: the kernel's own.
        self.sequence = self.sequence.checked_add(count).map_or(1, |end| end - count).max(1);
        let numbers = self.sequence..self.sequence + count;
        self.sequence = numbers.end;
        let mut bytes = Vec::new();
        for (at, (message, number)) in messages.into_iter().zip(numbers.clone()).enumerate() {
            bytes.extend(message.finish(number, if at == last { ACK } else { 0 }));
        }
        sendto(self.fd.as_raw_fd(), &bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(numbers)
    }

    /// Reads until the kernel is done with the message `last`, or has refused `fatal`.
    fn answers(&mut self, last: u32, fatal: Option<u32>, mut see: impl FnMut(Reply<'_>)) -> io::Result<()> {
        let mut failed = None;
        loop {
            let len = self.receive()?;
            for reply in (Replies { rest: &self.buffer[..len] }) {
                match libc::c_int::from(reply.kind) {
                    libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                        // An answer without a number is good.
                        let code = reply.body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                        if code < 0 && failed.is_none() {
                            failed = Some(io::Error::from_raw_os_error(code.saturating_neg()));
                        }
                        if reply.sequence == last || code < 0 && Some(reply.sequence) == fatal {
                            return failed.map_or(Ok(()), Err);
                        }
                    }
                    _ => see(reply),
                }
            }
        }
    }

    /// Waits for what the kernel tells the groups, and shows it to `see`.
    ///
    /// # Errors
    /// ENOBUFS: some of it was lost.
    pub(super) fn events(&mut self, mut see: impl FnMut(Reply<'_>)) -> io::Result<()> {
        let len = self.receive()?;
        Replies { rest: &self.buffer[..len] }.for_each(&mut see);
        Ok(())
    }

    fn receive(&mut self) -> io::Result<usize> {
        loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => return Ok(other?),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Shows a message to `see` as if the kernel had sent it.
#[cfg(test)]
pub(super) fn answer<T>(message: Message, see: impl FnOnce(Reply<'_>) -> T) -> T {
    let bytes = message.finish(1, 0);
    see(Replies { rest: &bytes }.next().expect("a message"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_built_is_read_again() {
        let message = Message::new(16, EXCLUSIVE, &[1, 2, 3, 4])
            .with(1, [7])
            .with_text(3, "fcap0")
            .with_nested(18, |message| {
                message.with(1, 5u32.to_ne_bytes()).with_nested(2, |message| message.with(9, []))
            });
        let bytes = message.finish(77, ACK);
        let replies: Vec<_> = Replies { rest: &bytes }.collect();
        assert_eq!(replies.len(), 1);
        assert_eq!((replies[0].kind, replies[0].sequence), (16, 77));
        assert_eq!(&replies[0].body[..4], [1, 2, 3, 4]);
        let attributes = replies[0].attributes(4);
        assert_eq!(attributes.get(1), Some(&[7][..]));
        assert_eq!(attributes.text(3), Some("fcap0"));
        let inner = attributes.nested(18).unwrap();
        assert_eq!(inner.number(1), Some(5));
        assert_eq!(inner.nested(2).unwrap().get(9), Some(&[][..]));
        assert_eq!(inner.get(77), None);
    }

    #[test]
    fn the_kernel_answers() {
        let mut socket = Socket::open(SockProtocol::NetlinkRoute).unwrap();
        let mut names = Vec::new();
        let question = Message::new(libc::RTM_GETLINK, DUMP, &[0; 16]);
        socket
            .query(question, |link| {
                names.extend(link.attributes(16).text(libc::IFLA_IFNAME).map(str::to_owned));
            })
            .unwrap();
        assert!(names.iter().any(|name| name == "lo"), "{names:?}");
        let mut header = [0; 16];
        header[4..8].copy_from_slice(&i32::MAX.to_ne_bytes());
        let question = Message::new(libc::RTM_GETLINK, 0, &header);
        let error = socket.query(question, |_| ()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }

    proptest! {
        #[test]
        fn no_bytes_hurt(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for reply in (Replies { rest: &bytes }) {
                prop_assert!(reply.body.len() + HEADER_LEN <= bytes.len());
            }
            let mut total = 0;
            for (_, value) in Attributes::of(&bytes) {
                total += value.len() + ATTRIBUTE_LEN;
            }
            prop_assert!(total <= bytes.len());
        }

        #[test]
        fn attributes_arrive_whole(values in proptest::collection::vec((0u16..100, proptest::collection::vec(any::<u8>(), 0..50)), 0..20)) {
            let mut message = Message::new(1, 0, &[]);
            for (kind, value) in &values {
                message = message.with(*kind, value);
            }
            let bytes = message.finish(1, 0);
            let reply = Replies { rest: &bytes }.next().unwrap();
            let arrived: Vec<_> = reply.attributes(0).map(|(kind, value)| (kind, value.to_vec())).collect();
            prop_assert_eq!(arrived, values);
        }
    }
}
