//! xenstore: the tree of small values through which domains find each other.
//!
//! Paths that do not begin with `/` are below the capsule's own
//! `/local/domain/DOMID`. Requests of several tasks are under way at once. The
//! capsule may run before its ring is known to xenstored: requests then wait.
//!
//! Keep use small: xenstored counts nodes, watches and requests of a guest, and
//! serves everybody on the node.

mod ring;

use crate::{console, evtchn::Port, single::Single, start, task};
use alloc::{boxed::Box, collections::VecDeque, string::String, vec::Vec};
use core::{
    cell::RefCell,
    fmt,
    future::poll_fn,
    task::{Poll, Waker},
};
use xen_proto::{
    evtchn,
    xenstore::{EncodeError, Op, Packet, Parser, Request, TxId, strings, tx_id},
};

pub use xen_proto::xenstore::Error as Refusal;

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// xenstored refused it.
    Refused(Refusal),
    /// It cannot be sent.
    Request(EncodeError),
    /// The answer makes no sense.
    Answer,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Request(error) => error.fmt(f),
            Self::Answer => f.write_str("xenstored's answer makes no sense"),
        }
    }
}

impl core::error::Error for Error {}

impl From<EncodeError> for Error {
    fn from(error: EncodeError) -> Self {
        Self::Request(error)
    }
}

static CLIENT: Single<RefCell<Option<Client>>> = Single::new(RefCell::new(None));

struct Client {
    port: evtchn::Port,
    /// Bytes that have not fit into the ring yet.
    outgoing: VecDeque<u8>,
    parser: Box<Parser>,
    calls: Vec<Call>,
    watches: Vec<Watched>,
    /// Numbers requests and watches.
    serial: u32,
}

/// A request that has not been answered, or whose answer has not been taken.
struct Call {
    id: u32,
    answer: Option<Result<Vec<u8>, Error>>,
    /// `None` if nobody is waiting any more.
    waker: Option<Waker>,
}

struct Watched {
    token: u32,
    events: VecDeque<String>,
    waker: Option<Waker>,
}

impl Client {
    fn new() -> Self {
        // Beside what the tasks do by themselves: what arrives is looked at when it arrives.
        task::spawn(async {
            let port = Port::new(evtchn::Port(start::info().store_evtchn));
            console::store_known().await;
            with_client(Client::pump);
            loop {
                port.wait().await;
                with_client(Client::pump);
            }
        });
        Self {
            port: evtchn::Port(start::info().store_evtchn),
            outgoing: VecDeque::new(),
            parser: Box::new(Parser::new()),
            calls: Vec::new(),
            watches: Vec::new(),
            serial: 0,
        }
    }

    fn next_serial(&mut self) -> u32 {
        // 0 is what events have.
        self.serial = self.serial.wrapping_add(1).max(1);
        self.serial
    }

    /// Sends a request; whoever passes a waker is woken by the answer and takes it.
    fn send(&mut self, request: Request<'_>, tx: TxId, waker: Option<Waker>) -> Result<u32, EncodeError> {
        let id = self.next_serial();
        request.encode(id, tx, &mut self.outgoing)?;
        self.calls.push(Call { id, answer: None, waker });
        self.pump();
        Ok(id)
    }

    /// Moves bytes in both directions, as far as they go.
    fn pump(&mut self) {
        // What is sent before xenstored knows us is lost.
        let mut moved = console::store_is_known() && ring::send(&mut self.outgoing) > 0;
        loop {
            let count = ring::receive(self.parser.wanted());
            if count == 0 {
                break;
            }
            moved = true;
            // The borrow of the parser ends before the answer is given out.
            let parser = &mut self.parser;
            let packet = parser.advance(count).expect("xenstored sends messages of its protocol");
            if let Some(packet) = packet {
                deliver(&mut self.calls, &mut self.watches, packet);
            }
        }
        if moved {
            // Fails under toolstacks that tell xenstored of us late; it looks at the ring then.
            let _ = crate::hypercall::notify(self.port);
        }
    }
}

/// Gives a message to who waits for it.
fn deliver(calls: &mut Vec<Call>, watches: &mut [Watched], packet: Packet<'_>) {
    if packet.header.op == Op::WatchEvent as u32 {
        let Some((path, token)) = packet.watch_event() else { return };
        let token = str::from_utf8(token).ok().and_then(|token| token.parse().ok());
        if let Some(watch) = watches.iter_mut().find(|watch| Some(watch.token) == token) {
            watch.events.push_back(String::from_utf8_lossy(path).into_owned());
            if let Some(waker) = &watch.waker {
                waker.wake_by_ref();
            }
        }
        return;
    }
    let Some(at) = calls.iter().position(|call| call.id == packet.header.req_id) else { return };
    let call = &mut calls[at];
    match &call.waker {
        Some(waker) => {
            call.answer = Some(packet.reply().map(<[u8]>::to_vec).map_err(Error::Refused));
            waker.wake_by_ref();
        }
        None => drop(calls.swap_remove(at)),
    }
}

fn with_client<T>(f: impl FnOnce(&mut Client) -> T) -> T {
    f(CLIENT.borrow_mut().get_or_insert_with(Client::new))
}

/// Ends a call whose future is dropped: its answer will not be taken.
struct Pending(u32);

impl Drop for Pending {
    fn drop(&mut self) {
        with_client(|client| {
            if let Some(at) = client.calls.iter().position(|call| call.id == self.0) {
                match client.calls[at].answer {
                    Some(_) => drop(client.calls.swap_remove(at)),
                    None => client.calls[at].waker = None,
                }
            }
        });
    }
}

/// Sends a request and waits for its answer.
async fn call(request: Request<'_>, tx: TxId) -> Result<Vec<u8>, Error> {
    let mut pending: Option<Pending> = None;
    poll_fn(|cx| {
        with_client(|client| match &pending {
            None => {
                pending = Some(Pending(client.send(request, tx, Some(cx.waker().clone()))?));
                Poll::Pending
            }
            Some(Pending(id)) => {
                let call = client.calls.iter_mut().find(|call| call.id == *id);
                let call = call.expect("an unanswered call is kept");
                match call.answer.take() {
                    Some(answer) => {
                        // Kept for `Pending` to remove.
                        call.answer = Some(Ok(Vec::new()));
                        Poll::Ready(answer)
                    }
                    None => {
                        call.waker = Some(cx.waker().clone());
                        Poll::Pending
                    }
                }
            }
        })
    })
    .await
}

/// Sends a request of whose answer nobody wants to know.
fn tell(request: Request<'_>, tx: TxId) {
    // Only what has been sent before is sent like this, so that it can be encoded.
    let _ = with_client(|client| client.send(request, tx, None));
}

fn texts(payload: &[u8]) -> Vec<String> {
    strings(payload).map(|text| String::from_utf8_lossy(text).into_owned()).collect()
}

/// The value of a node.
///
/// # Errors
/// If there is no such node, or it may not be read.
pub async fn read(path: &str) -> Result<Vec<u8>, Error> {
    call(Request::Read(path), TxId::NONE).await
}

/// Sets the value of a node, and creates it and its parents.
///
/// # Errors
/// If it may not be written, or a quota is used up.
pub async fn write(path: &str, value: &[u8]) -> Result<(), Error> {
    call(Request::Write { path, value }, TxId::NONE).await.map(drop)
}

/// Names of the children of a node.
///
/// # Errors
/// If there is no such node, or it may not be read.
pub async fn directory(path: &str) -> Result<Vec<String>, Error> {
    call(Request::Directory(path), TxId::NONE).await.map(|names| texts(&names))
}

/// Removes a node and everything below.
///
/// # Errors
/// If there is no such node, or it may not be written.
pub async fn rm(path: &str) -> Result<(), Error> {
    call(Request::Rm(path), TxId::NONE).await.map(drop)
}

/// Several reads and writes that take effect together or not at all.
///
/// Dropping it without [`commit`](Self::commit) takes everything back.
#[derive(Debug)]
pub struct Transaction {
    id: TxId,
    ended: bool,
}

impl Transaction {
    /// Opens a transaction.
    ///
    /// # Errors
    /// If the capsule has too many already.
    pub async fn start() -> Result<Self, Error> {
        let answer = call(Request::TransactionStart, TxId::NONE).await?;
        Ok(Self { id: tx_id(&answer).ok_or(Error::Answer)?, ended: false })
    }

    /// As [`read`], within the transaction.
    ///
    /// # Errors
    /// As [`read`].
    pub async fn read(&self, path: &str) -> Result<Vec<u8>, Error> {
        call(Request::Read(path), self.id).await
    }

    /// As [`write()`], within the transaction.
    ///
    /// # Errors
    /// As [`write()`].
    pub async fn write(&self, path: &str, value: &[u8]) -> Result<(), Error> {
        call(Request::Write { path, value }, self.id).await.map(drop)
    }

    /// As [`directory`], within the transaction.
    ///
    /// # Errors
    /// As [`directory`].
    pub async fn directory(&self, path: &str) -> Result<Vec<String>, Error> {
        call(Request::Directory(path), self.id).await.map(|names| texts(&names))
    }

    /// As [`rm`], within the transaction.
    ///
    /// # Errors
    /// As [`rm`].
    pub async fn rm(&self, path: &str) -> Result<(), Error> {
        call(Request::Rm(path), self.id).await.map(drop)
    }

    /// Makes it all visible.
    ///
    /// # Errors
    /// [`Refusal::Again`] if it met another transaction; start anew then.
    pub async fn commit(mut self) -> Result<(), Error> {
        self.ended = true;
        call(Request::TransactionEnd { commit: true }, self.id).await.map(drop)
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.ended {
            tell(Request::TransactionEnd { commit: false }, self.id);
        }
    }
}

/// Watches a node and everything below.
///
/// # Errors
/// If the path is malformed, or the capsule has too many watches.
pub async fn watch(path: &str) -> Result<Watch, Error> {
    let token = with_client(|client| {
        let token = client.next_serial();
        client.watches.push(Watched { token, events: VecDeque::new(), waker: None });
        token
    });
    // From here on, dropping it removes it again.
    let mut watch = Watch { path: path.into(), token, known: false };
    call(Request::Watch { path, token: &token_text(token) }, TxId::NONE).await?;
    watch.known = true;
    Ok(watch)
}

fn token_text(token: u32) -> String {
    alloc::format!("{token}")
}

/// Changes of a part of the tree; from [`watch`].
#[derive(Debug)]
pub struct Watch {
    path: String,
    token: u32,
    /// xenstored has it.
    known: bool,
}

impl Watch {
    /// Waits for a change, and returns the path of what changed.
    ///
    /// The first comes at once, without a change.
    pub async fn next(&mut self) -> String {
        poll_fn(|cx| {
            with_client(|client| {
                let watch = client.watches.iter_mut().find(|watch| watch.token == self.token);
                let watch = watch.expect("a watch is there until it is dropped");
                match watch.events.pop_front() {
                    Some(path) => Poll::Ready(path),
                    None => {
                        watch.waker = Some(cx.waker().clone());
                        Poll::Pending
                    }
                }
            })
        })
        .await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        with_client(|client| client.watches.retain(|watch| watch.token != self.token));
        if self.known {
            tell(Request::Unwatch { path: &self.path, token: &token_text(self.token) }, TxId::NONE);
        }
    }
}
