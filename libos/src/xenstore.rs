//! xenstore: the tree of small values through which domains find each other.
//!
//! Paths that do not begin with `/` are below the capsule's own
//! `/local/domain/DOMID`. Requests of several tasks are under way at once. The
//! capsule may run before its ring is known to xenstored: requests then wait.
//!
//! When the capsule goes on in another domain (see [`lifecycle`](crate::lifecycle)), watches are
//! set again, and report a change each; transactions fail with [`Refusal::Again`].
//!
//! Keep use small: xenstored counts nodes, watches and requests of a guest, and
//! serves everybody on the node.

mod ring;

use crate::{
    console,
    evtchn::{self, Id},
    single::Single,
    suspend::{BoxFuture, Reason, Resume, Subsystem},
    task,
};
use alloc::{boxed::Box, collections::VecDeque, string::String, vec::Vec};
use core::{
    cell::RefCell,
    fmt,
    future::poll_fn,
    task::{Poll, Waker},
};
use xen_proto::xenstore::{EncodeError, Op, Packet, Parser, Request, TxId, strings, tx_id};

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
    /// Bytes that have not been put into the ring yet.
    outgoing: VecDeque<u8>,
    /// How many bytes have been. Positions in the stream of requests are counted like this.
    sent: i64,
    /// The position up to which requests may be sent while the capsule is about to be suspended,
    /// and who waits for their answers.
    hold: Option<(i64, Waker)>,
    /// Counts the domains that the capsule has been.
    epoch: u32,
    parser: Box<Parser>,
    calls: Vec<Call>,
    watches: Vec<Watched>,
    /// Numbers requests and watches.
    serial: u32,
}

/// A request that has not been answered, or whose answer has not been taken.
struct Call {
    id: u32,
    /// Where the request ends.
    end: i64,
    answer: Option<Result<Vec<u8>, Error>>,
    /// `None` if nobody is waiting any more.
    waker: Option<Waker>,
}

struct Watched {
    token: u32,
    path: String,
    /// Where the request ends that registers it, once there is one.
    end: i64,
    events: VecDeque<String>,
    waker: Option<Waker>,
}

impl Client {
    fn new() -> Self {
        // Beside what the tasks do by themselves: what arrives is looked at when it arrives.
        task::spawn(async {
            console::store_known().await;
            loop {
                with_client(Client::pump);
                evtchn::wait(Id::Store).await;
            }
        });
        Self {
            outgoing: VecDeque::new(),
            sent: 0,
            hold: None,
            epoch: 0,
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
        self.calls.push(Call { id, end: self.end(), answer: None, waker });
        self.pump();
        Ok(id)
    }

    /// The position behind everything that is to be sent.
    fn end(&self) -> i64 {
        self.sent + self.outgoing.len() as i64
    }

    /// Moves bytes in both directions, as far as they go.
    fn pump(&mut self) {
        let end = self.hold.as_ref().map_or(self.end(), |&(end, _)| end);
        // What is sent before xenstored knows us is lost.
        let known = console::store_is_known();
        let sent = if known { ring::send(&mut self.outgoing, (end - self.sent) as usize) } else { 0 };
        self.sent += sent as i64;
        let mut moved = sent > 0;
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
            // Toolstacks that tell xenstored of us late let it look at the ring then.
            evtchn::notify(Id::Store);
        }
        if let Some((_, waker)) = &self.hold {
            waker.wake_by_ref();
        }
    }

    /// Lets no more requests begin; returns whether all that have begun are answered.
    fn hold(&mut self, waker: &Waker) -> bool {
        let end = match &self.hold {
            Some((end, _)) => *end,
            // One may be in the ring in part. If not, one more does no harm.
            None if self.sent > 0 => self
                .calls
                .iter()
                .map(|call| call.end)
                .filter(|&end| end > self.sent)
                .min()
                .unwrap_or(self.sent),
            None => self.sent,
        };
        self.hold = Some((end, Waker::noop().clone()));
        self.pump();
        self.hold = Some((end, waker.clone()));
        self.sent == end && self.calls.iter().all(|call| call.end > end || call.answer.is_some())
    }

    /// Goes on, with another xenstored if the domain is new.
    fn resume(&mut self, is_new: bool) {
        self.hold = None;
        if is_new {
            self.epoch += 1;
            *self.parser = Parser::new();
            ring::reset();
            self.watch_again();
        }
        self.pump();
    }

    /// Asks for all watches that had been asked for, before everything else.
    fn watch_again(&mut self) {
        let mut requests = VecDeque::new();
        let mut ends = Vec::new();
        for at in 0..self.watches.len() {
            let id = self.next_serial();
            let watch = &self.watches[at];
            if watch.end <= self.sent {
                let token = token_text(watch.token);
                // It could be encoded before; nobody waits for the answer.
                let _ =
                    Request::Watch { path: &watch.path, token: &token }.encode(id, TxId::NONE, &mut requests);
                ends.push((at, requests.len() as i64));
            }
        }
        self.sent -= requests.len() as i64;
        for (at, end) in ends {
            self.watches[at].end = self.sent + end;
        }
        requests.append(&mut self.outgoing);
        self.outgoing = requests;
    }
}

/// The connection with xenstored, which is another one elsewhere.
pub(crate) static SUBSYSTEM: Subsystem = Subsystem { prepare, resume, ..Subsystem::NOTHING };

/// Waits for the answers to all requests that have been sent. What is asked later is sent later.
fn prepare(_: Reason) -> Option<BoxFuture> {
    CLIENT.borrow().as_ref()?;
    Some(Box::pin(poll_fn(|cx| match with_client(|client| client.hold(cx.waker())) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })))
}

fn resume(resume: &Resume<'_>) {
    let Some(client) = &mut *CLIENT.borrow_mut() else { return };
    client.resume(resume.is_new());
    if !console::store_is_known() {
        task::spawn(async {
            console::store_known().await;
            with_client(Client::pump);
        });
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

/// Sends a request whose answer will be taken.
fn begin(request: Request<'_>, tx: TxId) -> Result<Pending, Error> {
    let id = with_client(|client| client.send(request, tx, Some(Waker::noop().clone())))?;
    Ok(Pending(id))
}

/// Waits for the answer to a request.
async fn answer(pending: Pending) -> Result<Vec<u8>, Error> {
    poll_fn(|cx| {
        with_client(|client| {
            let call = client.calls.iter_mut().find(|call| call.id == pending.0);
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
        })
    })
    .await
}

/// Sends a request and waits for its answer.
async fn call(request: Request<'_>, tx: TxId) -> Result<Vec<u8>, Error> {
    answer(begin(request, tx)?).await
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
    /// Which xenstored it is with.
    epoch: u32,
    ended: bool,
}

impl Transaction {
    /// Opens a transaction.
    ///
    /// # Errors
    /// If the capsule has too many already.
    pub async fn start() -> Result<Self, Error> {
        let answer = call(Request::TransactionStart, TxId::NONE).await?;
        let epoch = with_client(|client| client.epoch);
        Ok(Self { id: tx_id(&answer).ok_or(Error::Answer)?, epoch, ended: false })
    }

    /// Whether xenstored is another one by now, which does not know it.
    fn is_lost(&self) -> bool {
        with_client(|client| client.epoch) != self.epoch
    }

    async fn call(&self, request: Request<'_>) -> Result<Vec<u8>, Error> {
        if self.is_lost() {
            return Err(Error::Refused(Refusal::Again));
        }
        let answer = call(request, self.id).await;
        if self.is_lost() { Err(Error::Refused(Refusal::Again)) } else { answer }
    }

    /// As [`read`], within the transaction.
    ///
    /// # Errors
    /// As [`read`].
    pub async fn read(&self, path: &str) -> Result<Vec<u8>, Error> {
        self.call(Request::Read(path)).await
    }

    /// As [`write()`], within the transaction.
    ///
    /// # Errors
    /// As [`write()`].
    pub async fn write(&self, path: &str, value: &[u8]) -> Result<(), Error> {
        self.call(Request::Write { path, value }).await.map(drop)
    }

    /// As [`directory`], within the transaction.
    ///
    /// # Errors
    /// As [`directory`].
    pub async fn directory(&self, path: &str) -> Result<Vec<String>, Error> {
        self.call(Request::Directory(path)).await.map(|names| texts(&names))
    }

    /// As [`rm`], within the transaction.
    ///
    /// # Errors
    /// As [`rm`].
    pub async fn rm(&self, path: &str) -> Result<(), Error> {
        self.call(Request::Rm(path)).await.map(drop)
    }

    /// Makes it all visible.
    ///
    /// # Errors
    /// [`Refusal::Again`] if it met another transaction; start anew then.
    pub async fn commit(mut self) -> Result<(), Error> {
        self.ended = true;
        self.call(Request::TransactionEnd { commit: true }).await.map(drop)
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.ended && !self.is_lost() {
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
        let (path, end) = (path.into(), i64::MAX);
        client.watches.push(Watched { token, path, end, events: VecDeque::new(), waker: None });
        token
    });
    // From here on, dropping it removes it again.
    let mut watch = Watch { path: path.into(), token, known: false };
    let pending = begin(Request::Watch { path, token: &token_text(token) }, TxId::NONE)?;
    with_client(|client| {
        let end = client.end();
        let asked = client.watches.iter_mut().find(|watch| watch.token == token);
        asked.expect("a watch is there until it is dropped").end = end;
    });
    answer(pending).await?;
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
