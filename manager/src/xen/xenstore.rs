//! Requests to xenstored over its socket in dom0, and watches.
//!
//! A [`Client`] sends all of a batch in one write and then reads the replies, so that a batch
//! costs one round trip; the caller's own thread does both, so that no reply waits for a
//! switch to another thread. A transaction is two batches: xenstored chooses its number.
//!
//! [`watch`] has a connection of its own, because events come at any time.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Mutex,
};

use xen_proto::xenstore::{self as wire, EncodeError, Packet, Parser, Request, TxId};

/// Where xenstored listens in dom0.
pub const SOCKET: &str = "/run/xenstored/socket";

/// How often a transaction is tried that meets others.
const ATTEMPTS: u32 = 20;

/// A failed request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// xenstored cannot be reached or does not keep to its protocol.
    #[error("xenstored cannot be reached at {}", .0.display())]
    Connection(PathBuf, #[source] io::Error),
    /// A request that is none.
    #[error("request to xenstored cannot be sent")]
    Encode(#[from] EncodeError),
    /// xenstored said no.
    #[error("xenstored refused {request}")]
    Refused {
        /// What it refused: operation and path.
        request: String,
        /// Why.
        #[source]
        source: wire::Error,
    },
}

/// A connection for requests.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    /// `None` after an error that left unread replies behind; opened again at the next request.
    stream: Mutex<Option<UnixStream>>,
    /// Held by the one transaction that is under way: two that overlap change the same parents,
    /// and one of them would have to be made again.
    transaction: Mutex<()>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// If xenstored cannot be reached.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let connected = UnixStream::connect(path).map_err(|error| Error::Connection(path.into(), error))?;
        Ok(Self { path: path.into(), stream: Mutex::new(Some(connected)), transaction: Mutex::default() })
    }

    /// Makes one request and returns the payload of its reply.
    ///
    /// # Errors
    /// If xenstored refuses it or cannot be reached.
    pub fn request(&self, request: Request<'_>) -> Result<Vec<u8>, Error> {
        let mut replies = self.batch(TxId::NONE, &[request])?;
        refused_as_error(&request, replies.remove(0))
    }

    /// Makes the requests at once, outside of a transaction.
    ///
    /// # Errors
    /// If xenstored refuses one of them, where the others may have been done, or cannot be reached.
    pub fn all(&self, requests: &[Request<'_>]) -> Result<(), Error> {
        let replies = self.batch(TxId::NONE, requests)?;
        requests
            .iter()
            .zip(replies)
            .try_for_each(|(request, reply)| refused_as_error(request, reply).map(drop))
    }

    /// Makes the requests in one transaction, followed by those of `after`, which are outside
    /// of it but travel with its end.
    ///
    /// # Errors
    /// If xenstored refuses one of the requests or cannot be reached. The transaction is then
    /// without effect; requests of `after` may have had theirs.
    pub fn transaction(&self, requests: &[Request<'_>], after: &[Request<'_>]) -> Result<(), Error> {
        let commit = Request::TransactionEnd { commit: true };
        let mut after = after;
        let _turn = self.transaction.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for attempt in 1.. {
            let start = self.request(Request::TransactionStart)?;
            let tx = wire::tx_id(&start).ok_or_else(|| self.garbage("no transaction number"))?;
            let mut batch: Vec<_> = requests.iter().map(|&request| (tx, request)).collect();
            batch.push((tx, commit));
            batch.extend(after.iter().map(|&request| (TxId::NONE, request)));
            let mut replies = self.exchange(&batch)?.into_iter();
            let mut failed = None;
            for request in requests {
                let reply = replies.next().unwrap_or(Err(wire::Error::Io));
                if let (Err(error), None) = (refused_as_error(request, reply), &failed) {
                    failed = Some(error);
                }
            }
            let committed = replies.next().unwrap_or(Err(wire::Error::Io));
            if let Some(error) = failed {
                // xenstored commits what did succeed: the caller removes it.
                return Err(error);
            }
            for (request, reply) in after.iter().zip(replies) {
                refused_as_error(request, reply)?;
            }
            after = &[];
            match committed {
                Err(wire::Error::Again) if attempt < ATTEMPTS => continue,
                other => return refused_as_error(&commit, other).map(drop),
            }
        }
        unreachable!("the loop ends with its last attempt")
    }

    /// Makes requests at once; the replies are in the same order.
    ///
    /// # Errors
    /// If xenstored cannot be reached.
    pub fn batch(
        &self,
        tx: TxId,
        requests: &[Request<'_>],
    ) -> Result<Vec<Result<Vec<u8>, wire::Error>>, Error> {
        let batch: Vec<_> = requests.iter().map(|&request| (tx, request)).collect();
        self.exchange(&batch)
    }

    fn exchange(&self, requests: &[(TxId, Request<'_>)]) -> Result<Vec<Result<Vec<u8>, wire::Error>>, Error> {
        let mut bytes = Vec::new();
        for (id, (tx, request)) in (0..).zip(requests) {
            request.encode(id, *tx, &mut bytes)?;
        }
        let mut slot = self.stream.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut stream = match slot.take() {
            Some(stream) => stream,
            None => UnixStream::connect(&self.path)
                .map_err(|error| Error::Connection(self.path.clone(), error))?,
        };
        // On an error the stream is dropped: replies that are still under way would be taken
        // for those of the next request.
        let replies = exchange(&mut stream, &bytes, requests.len())
            .map_err(|error| Error::Connection(self.path.clone(), error))?;
        *slot = Some(stream);
        Ok(replies)
    }

    fn garbage(&self, what: &str) -> Error {
        Error::Connection(self.path.clone(), io::Error::new(io::ErrorKind::InvalidData, what))
    }
}

/// Sends messages with the ids 0 to `count` and reads as many replies.
fn exchange(
    stream: &mut UnixStream,
    bytes: &[u8],
    count: usize,
) -> io::Result<Vec<Result<Vec<u8>, wire::Error>>> {
    stream.write_all(bytes)?;
    let mut incoming = Incoming::default();
    (0..count as u32)
        .map(|id| {
            incoming.next(stream, |packet| {
                if packet.header.req_id == id {
                    Ok(packet.reply().map(<[u8]>::to_vec))
                } else {
                    Err(io::Error::new(io::ErrorKind::InvalidData, "xenstored answered another request"))
                }
            })?
        })
        .collect()
}

fn refused_as_error(request: &Request<'_>, reply: Result<Vec<u8>, wire::Error>) -> Result<Vec<u8>, Error> {
    reply.map_err(|source| Error::Refused { request: format!("{request:?}"), source })
}

/// Packets out of a stream, with few reads.
struct Incoming {
    parser: Parser,
    buffer: Box<[u8]>,
    unread: std::ops::Range<usize>,
}

impl Default for Incoming {
    fn default() -> Self {
        Self { parser: Parser::new(), buffer: vec![0; 4096].into(), unread: 0..0 }
    }
}

impl Incoming {
    /// Shows the next packet to `see`.
    fn next<T>(&mut self, stream: &mut impl Read, see: impl FnOnce(Packet<'_>) -> T) -> io::Result<T> {
        loop {
            if self.unread.is_empty() {
                match stream.read(&mut self.buffer) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(len) => self.unread = 0..len,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                }
            }
            let wanted = self.parser.wanted();
            let len = wanted.len().min(self.unread.len());
            wanted[..len].copy_from_slice(&self.buffer[self.unread.start..][..len]);
            self.unread.start += len;
            match self
                .parser
                .advance(len)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?
            {
                Some(packet) => return Ok(see(packet)),
                None => continue,
            }
        }
    }
}

/// Watches a path from a thread of its own, as long as xenstored lives; `fired` is called at
/// once, and whenever the path or something below it changes.
///
/// # Errors
/// If xenstored cannot be reached or refuses the watch.
pub fn watch(
    socket: &Path,
    path: &str,
    fired: impl Fn() + Send + 'static,
) -> Result<std::thread::JoinHandle<()>, Error> {
    let lost = |error| Error::Connection(socket.into(), error);
    let mut stream = UnixStream::connect(socket).map_err(lost)?;
    let request = Request::Watch { path, token: "fcap" };
    let mut bytes = Vec::new();
    request.encode(0, TxId::NONE, &mut bytes)?;
    stream.write_all(&bytes).map_err(lost)?;
    let mut incoming = Incoming::default();
    // The first event may come before the reply.
    loop {
        let reply = incoming.next(&mut stream, |packet| match packet.watch_event() {
            Some(_) => None,
            None => Some(packet.reply().map(<[u8]>::to_vec)),
        });
        if let Some(reply) = reply.map_err(lost)? {
            refused_as_error(&request, reply)?;
            break;
        }
    }
    fired();
    let name = path.to_owned();
    let run = move || {
        loop {
            match incoming.next(&mut stream, |packet| packet.watch_event().is_some()) {
                Ok(true) => fired(),
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(%error, "xenstored has gone: the ends of capsules go unnoticed");
                    return;
                }
            }
        }
    };
    std::thread::Builder::new().name(format!("watch {name}")).spawn(run).map_err(lost)
}

#[cfg(test)]
mod tests;
