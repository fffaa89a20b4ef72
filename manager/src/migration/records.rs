//! The records of a connection that is made (RFC 8446, section 5), on their way through its socket.
//!
//! rustls makes the connection: it finds out who the other side is, and agrees with it on keys. What
//! goes over it then is nothing but bytes, as many as a capsule has. On its way out of the library's
//! own buffers each of them is copied twice more, and reader and writer wait for one lock. So from there
//! on the ciphers that the library has agreed on encrypt and decrypt here, where the bytes are. Nobody
//! asks for new keys, nor hands out tickets for later: a record that does is refused.
//!
//! A connection is parted into a reader and a writer, for two threads.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use fcap_tls::PeerError;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter, MessageEncrypter, OutboundChunks,
    OutboundPlainMessage, Tls13AeadAlgorithm,
};
use rustls::{AlertDescription, Connection, ConnectionTrafficSecrets, ContentType, Error, ProtocolVersion};

/// Bytes before a record: its type, a version, its length.
const HEADER: usize = 5;
/// Most bytes that a record carries.
const CONTENT: usize = 16 << 10;
/// Most bytes of a record.
const RECORD: usize = HEADER + CONTENT + 256;
/// Most bytes that are taken from the socket at once.
const PIECE: usize = 64 << 10;
/// Most bytes encrypted at a time. What the kernel gets at once it cuts into packets at once, and the
/// last of them is a small one.
const BATCH: usize = 256 << 10;
/// Most bytes that wait in the socket to be sent: the rest of a move would wait behind them, and
/// how long writes take would say nothing about the link. Enough for a gigabit over 5 ms.
const SEND_BUFFER: usize = 512 << 10;
/// After so long without progress the engine is asked whether to go on.
const LOOK: Duration = Duration::from_secs(1);

/// Makes the connection, and takes no byte that comes after that from the socket.
pub(super) fn shake_hands(mut socket: &TcpStream, connection: &mut Connection) -> io::Result<()> {
    // As a reader says it, and not in terms of a buffer.
    let ended = |error: io::Error| match error.kind() {
        ErrorKind::UnexpectedEof => ErrorKind::UnexpectedEof.into(),
        _ => error,
    };
    let mut record = Vec::new();
    loop {
        while connection.wants_write() {
            connection.write_tls(&mut socket)?;
        }
        if !connection.is_handshaking() {
            return Ok(());
        }
        record.resize(HEADER, 0);
        socket.read_exact(&mut record).map_err(ended)?;
        record.resize(HEADER + length(&record), 0);
        socket.read_exact(&mut record[HEADER..]).map_err(ended)?;
        let mut rest = &record[..];
        while !rest.is_empty() {
            connection.read_tls(&mut rest)?;
            if let Err(error) = connection.process_new_packets() {
                // It tells the other side why, if that still listens.
                let _ = connection.write_tls(&mut socket);
                return Err(io::Error::new(ErrorKind::InvalidData, PeerError::from(&error)));
            }
        }
    }
}

/// Takes over a connection that is made.
pub(super) fn part(socket: TcpStream, connection: Connection) -> io::Result<(Reader, Writer)> {
    setsockopt(&socket, sockopt::SndBuf, &SEND_BUFFER)?;
    socket.set_read_timeout(Some(LOOK))?;
    socket.set_write_timeout(Some(LOOK))?;
    let suite = connection.negotiated_cipher_suite().and_then(|suite| suite.tls13());
    let suite = suite.ok_or_else(|| io::Error::other("the connection does not speak TLS 1.3"))?;
    let secrets = connection.dangerous_extract_secrets().map_err(io::Error::other)?;
    let (from, to) = (secrets.rx, secrets.tx);
    let sealer = Sealer::new(suite.aead_alg, to, suite.common.confidentiality_limit)?;
    let opener = Opener::new(suite.aead_alg, from)?;
    let socket = Arc::new(socket);
    let reader = Reader {
        socket: socket.clone(),
        opener,
        arrived: vec![0; RECORD + PIECE].into(),
        plain: 0..0,
        fresh: 0..0,
    };
    Ok((reader, Writer { socket, sealer, sealed: VecDeque::new(), sent: 0 }))
}

/// Of a record's content and what belongs to its encryption, as its header says.
fn length(header: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([header[3], header[4]]))
}

fn keys(secrets: ConnectionTrafficSecrets) -> io::Result<(AeadKey, Iv)> {
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => Ok((key, iv)),
        _ => Err(io::Error::other("the connection's cipher is unknown here")),
    }
}

/// Encrypts.
struct Sealer {
    cipher: Box<dyn MessageEncrypter>,
    /// Of the next record.
    number: u64,
    /// So many records the key is good for.
    limit: u64,
}

impl Sealer {
    fn new(
        algorithm: &dyn Tls13AeadAlgorithm,
        (number, secrets): (u64, ConnectionTrafficSecrets),
        limit: u64,
    ) -> io::Result<Self> {
        let (key, iv) = keys(secrets)?;
        Ok(Self { cipher: algorithm.encrypter(key, iv), number, limit })
    }

    fn seal(&mut self, content: &[u8]) -> io::Result<Vec<u8>> {
        if self.number >= self.limit {
            return Err(io::Error::other("the connection has carried as much as is safe with its key"));
        }
        let message = OutboundPlainMessage {
            typ: ContentType::ApplicationData,
            version: ProtocolVersion::TLSv1_2,
            payload: OutboundChunks::Single(content),
        };
        let sealed = self.cipher.encrypt(message, self.number).map_err(io::Error::other)?;
        self.number += 1;
        Ok(sealed.encode())
    }
}

/// Decrypts.
struct Opener {
    cipher: Box<dyn MessageDecrypter>,
    /// Of the next record.
    number: u64,
}

impl Opener {
    fn new(
        algorithm: &dyn Tls13AeadAlgorithm,
        (number, secrets): (u64, ConnectionTrafficSecrets),
    ) -> io::Result<Self> {
        let (key, iv) = keys(secrets)?;
        Ok(Self { cipher: algorithm.decrypter(key, iv), number })
    }

    /// Decrypts the record that the bytes begin with, if all of it is there, in its place: its length,
    /// and where in it the content is.
    fn open(&mut self, bytes: &mut [u8]) -> io::Result<Option<(usize, Range<usize>)>> {
        let wrong = |error: &Error| io::Error::new(ErrorKind::InvalidData, PeerError::from(error));
        let Some((header, rest)) = bytes.split_at_mut_checked(HEADER) else { return Ok(None) };
        let len = length(header);
        if ContentType::from(header[0]) != ContentType::ApplicationData || HEADER + len > RECORD {
            return Err(wrong(&Error::General("what comes is no record of TLS 1.3".into())));
        }
        let Some(sealed) = rest.get_mut(..len) else { return Ok(None) };
        let start = sealed.as_ptr().addr();
        let message =
            InboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, sealed);
        let message = self.cipher.decrypt(message, self.number).map_err(|error| wrong(&error))?;
        self.number += 1;
        let content = message.payload;
        match (message.typ, content) {
            (ContentType::ApplicationData, _) => {
                let start = HEADER + content.as_ptr().addr() - start;
                Ok(Some((HEADER + len, start..start + content.len())))
            }
            // The first that comes may say that the other side does not believe us.
            (ContentType::Alert, &[_, alert]) => match AlertDescription::from(alert) {
                AlertDescription::CloseNotify => Err(ErrorKind::UnexpectedEof.into()),
                alert => Err(wrong(&Error::AlertReceived(alert))),
            },
            (kind, _) => Err(wrong(&Error::General(format!("nobody has asked for a record of {kind:?}")))),
        }
    }
}

/// Reads from a connection. Waits for a second at most.
pub struct Reader {
    socket: Arc<TcpStream>,
    opener: Opener,
    /// What came from the socket is in here:
    arrived: Box<[u8]>,
    /// what is decrypted and has not been read,
    plain: Range<usize>,
    /// and after it what is not decrypted.
    fresh: Range<usize>,
}

impl Reader {
    /// Whether something comes within this time, or is here. The end of the connection counts.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn wait(&mut self, time: Duration) -> io::Result<bool> {
        if self.holds_something() {
            return Ok(true);
        }
        self.socket.set_read_timeout(Some(time))?;
        let seen = self.socket.peek(&mut [0]);
        self.socket.set_read_timeout(Some(LOOK))?;
        nothing_yet(seen).map(|nothing| !nothing)
    }

    /// Whether nothing has come that was not read, and the connection has neither ended nor broken.
    pub fn is_silent(&mut self) -> bool {
        let look = || {
            self.socket.set_nonblocking(true)?;
            let seen = self.socket.peek(&mut [0]);
            self.socket.set_nonblocking(false)?;
            nothing_yet(seen)
        };
        !self.holds_something() && matches!(look(), Ok(true))
    }

    fn holds_something(&self) -> bool {
        !self.plain.is_empty() || !self.fresh.is_empty()
    }

    /// Waits for more from the socket, of which so many bytes come for sure. Whether it was its end.
    fn receive(&mut self, sure: usize) -> io::Result<bool> {
        self.arrived.copy_within(self.fresh.clone(), 0);
        self.fresh = 0..self.fresh.len();
        let room = &mut self.arrived[self.fresh.end..];
        // Who wants much is woken when it is here.
        let (most, flags) = match sure.min(PIECE) {
            0..RECORD => (room.len(), MsgFlags::empty()),
            sure => (sure, MsgFlags::MSG_WAITALL),
        };
        let len = recv(self.socket.as_raw_fd(), &mut room[..most], flags)?;
        self.fresh.end += len;
        Ok(len == 0)
    }
}

impl Read for Reader {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.plain.is_empty() {
                let len = self.plain.len().min(bytes.len());
                bytes[..len].copy_from_slice(&self.arrived[self.plain.start..][..len]);
                self.plain.start += len;
                return Ok(len);
            }
            let fresh = self.fresh.start;
            match self.opener.open(&mut self.arrived[self.fresh.clone()])? {
                Some((len, content)) => {
                    self.plain = fresh + content.start..fresh + content.end;
                    self.fresh.start += len;
                }
                // Encrypted it is more than what is wanted.
                None => {
                    if self.receive(bytes.len().saturating_sub(self.fresh.len()))? {
                        return Err(ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        }
    }
}

/// Whether a look into a socket has found neither bytes nor the end.
fn nothing_yet(seen: io::Result<usize>) -> io::Result<bool> {
    match seen {
        Ok(_) => Ok(false),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Writes to a connection. Waits for a second at most.
pub struct Writer {
    socket: Arc<TcpStream>,
    sealer: Sealer,
    /// Records to be sent,
    sealed: VecDeque<Vec<u8>>,
    /// and how much of the first has been.
    sent: usize,
}

impl Writer {
    /// Whether the connection has carried half of what is safe, and is of no use for more.
    pub fn is_worn(&self) -> bool {
        self.sealer.number > self.sealer.limit / 2
    }

    /// Sends what is encrypted.
    fn send(&mut self) -> io::Result<()> {
        while !self.sealed.is_empty() {
            let mut slices: Vec<_> = self.sealed.iter().map(|record| IoSlice::new(record)).collect();
            IoSlice::advance_slices(&mut &mut slices[..], self.sent);
            match (&*self.socket).write_vectored(&slices) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(len) => {
                    self.sent += len;
                    while let Some(first) = self.sealed.pop_front_if(|first| first.len() <= self.sent) {
                        self.sent -= first.len();
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send()?;
        let batch = &bytes[..bytes.len().min(BATCH)];
        for content in batch.chunks(CONTENT) {
            self.sealed.push_back(self.sealer.seal(content)?);
        }
        match self.send() {
            // What is encrypted is sent by and by.
            Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Err(error),
            _ => Ok(batch.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener};

    use proptest::prelude::*;

    use super::*;

    fn suite() -> (&'static dyn Tls13AeadAlgorithm, (u64, ConnectionTrafficSecrets)) {
        let suite = fcap_tls::provider().cipher_suites[0];
        let key = (AeadKey::from([7; 32]), Iv::from([9; 12]));
        let algorithm = suite.tls13().unwrap().aead_alg;
        (algorithm, (0, algorithm.extract_keys(key.0, key.1).unwrap()))
    }

    fn sealer(limit: u64) -> Sealer {
        let (algorithm, secrets) = suite();
        Sealer::new(algorithm, secrets, limit).unwrap()
    }

    fn opener() -> Opener {
        let (algorithm, secrets) = suite();
        Opener::new(algorithm, secrets).unwrap()
    }

    /// Both ends of one direction.
    fn direction(limit: u64) -> (Writer, Reader) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let theirs = listener.accept().unwrap().0;
        for socket in [&ours, &theirs] {
            socket.set_read_timeout(Some(LOOK)).unwrap();
            socket.set_write_timeout(Some(LOOK)).unwrap();
        }
        let writer = Writer { socket: ours.into(), sealer: sealer(limit), sealed: VecDeque::new(), sent: 0 };
        let arrived = vec![0; RECORD + PIECE].into();
        let reader = Reader { socket: theirs.into(), opener: opener(), arrived, plain: 0..0, fresh: 0..0 };
        (writer, reader)
    }

    /// A record of this kind.
    fn record(typ: ContentType, content: &[u8]) -> Vec<u8> {
        let (version, payload) = (ProtocolVersion::TLSv1_2, OutboundChunks::Single(content));
        let message = OutboundPlainMessage { typ, version, payload };
        sealer(1).cipher.encrypt(message, 0).unwrap().encode()
    }

    #[test]
    fn bytes_come_as_they_went_in_whatever_pieces() {
        let (mut writer, mut reader) = direction(u64::MAX);
        let sent: Vec<u8> = (0..3_000_000u32).map(|number| (number % 251) as u8).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for (index, mut piece) in sent.chunks(700_001).enumerate() {
                    // One of a byte, so that records are of all lengths.
                    if index % 2 == 0 {
                        writer.write_all(&piece[..1]).unwrap();
                        piece = &piece[1..];
                    }
                    while !piece.is_empty() {
                        match writer.write(piece) {
                            Ok(len) => piece = &piece[len..],
                            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                        }
                    }
                }
                while writer.flush().is_err() {}
            });
            let mut came = vec![0; sent.len()];
            let mut rest = &mut came[..];
            for len in [1, 24, 5000, 16 << 10, 300_000, 24, 1_000_000].into_iter().cycle() {
                let len = len.min(rest.len());
                let (piece, after) = rest.split_at_mut(len);
                reader.read_exact(piece).unwrap();
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            assert!(came == sent);
        });
        assert!(reader.is_silent() && !reader.wait(Duration::from_millis(1)).unwrap());
        writer.write_all(b"x").unwrap();
        assert!(reader.wait(Duration::from_secs(5)).unwrap() && !reader.is_silent());
        reader.read_exact(&mut [0]).unwrap();
        writer.socket.shutdown(Shutdown::Write).unwrap();
        assert_eq!(reader.read(&mut [0]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_key_is_used_for_so_many_records_and_no_more() {
        let (mut writer, _reader) = direction(2);
        writer.write_all(&[1; CONTENT]).unwrap();
        assert!(!writer.is_worn());
        writer.write_all(&[1; CONTENT]).unwrap();
        assert!(writer.is_worn());
        assert!(writer.write(&[1]).unwrap_err().to_string().contains("as much as is safe"));
    }

    #[test]
    fn what_is_no_bytes_is_refused() {
        let open = |mut record: Vec<u8>| opener().open(&mut record);
        assert_eq!(open(record(ContentType::ApplicationData, b"abc")).unwrap(), Some((5 + 3 + 17, 5..8)));
        let said = |record| open(record).unwrap_err().to_string();
        let end = open(record(ContentType::Alert, &[1, 0])).unwrap_err();
        assert_eq!(end.kind(), ErrorKind::UnexpectedEof);
        let refusal = said(record(ContentType::Alert, &[2, 48]));
        assert!(refusal.contains("another cluster"), "{refusal}");
        // New keys, a ticket, and an alert that is none.
        for (kind, content) in [
            (ContentType::Handshake, &[24, 0, 0, 1, 0][..]),
            (ContentType::Handshake, &[4]),
            (ContentType::Alert, &[2]),
        ] {
            let refusal = said(record(kind, content));
            assert!(refusal.contains("nobody has asked"), "{refusal}");
        }
        let plain = said([&[21, 3, 3, 0, 2], &[2, 48][..]].concat());
        assert!(plain.contains("no record of TLS 1.3"), "{plain}");
        let long = said(vec![23, 3, 3, 0xff, 0xff]);
        assert!(long.contains("no record of TLS 1.3"), "{long}");
    }

    proptest! {
        #[test]
        fn a_changed_record_is_refused_and_a_part_waited_for(
            content in proptest::collection::vec(any::<u8>(), 0..300),
            at: proptest::sample::Index,
            bit in 0..8u32,
        ) {
            let whole = record(ContentType::ApplicationData, &content);
            let part = at.index(whole.len());
            prop_assert_eq!(opener().open(&mut whole.clone()[..part]).unwrap(), None);
            let mut changed = whole.clone();
            changed[part] ^= 1 << bit;
            match opener().open(&mut changed) {
                // The version says nothing, and a record may say that it is longer.
                Ok(Some(_)) => prop_assert!((1..3).contains(&part)),
                Ok(None) => prop_assert!((3..5).contains(&part)),
                Err(_) => {}
            }
        }

        #[test]
        fn whatever_comes_is_an_error_or_waited_for(mut bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(!matches!(opener().open(&mut bytes), Ok(Some(_))));
        }
    }
}
