//! The source: a capsule moves to another node, or into an image.

use std::io::{self, Write};
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use fcap_api::migrate::{DirtyTracking, Migrate, MoveStep, Moved, Precopy, Progress, Round, SaveMode};
use fcap_api::{Action, ErrorBody};
use fcap_migrate::bitmap::PageBitmap;
use fcap_migrate::domain::{Description, DirtySource, DomainError, DomainResult, Page, SourceDomain, State};
use fcap_migrate::handover::{Claim, Message, SourceEvent, SourceParts, SourceState, drive_source};
use fcap_migrate::page::PageType;
use fcap_migrate::policy::PrecopyPolicy;
use fcap_migrate::progress::{MigrateStats, Progress as Step, RoundStats};
use fcap_migrate::source::{self, Options};
use fcap_migrate::wire::Reason;
use fcap_migrate::{Compression, MigrateError};
use fcap_tls::{Fingerprint, Subject};
use tokio::sync::{mpsc, oneshot};
use xen_proto::frame::{Mfn, Pfn};

use super::journal::{self, Attempt, Journal, Out};
use super::kept::{KEPT, Place};
use super::listen::{read_exact, write_all};
use super::luggage::{self, LOG_END};
use super::records::{Reader, Writer};
use super::tls::PeerId;
use super::{ASK, BUSY, GONE, MOVE, Passport, RELEASED, TAKEN, WELCOME, arrive, describe};
use crate::capsule::console::Console;
use crate::capsule::{Capsule, Command, Phase};
use crate::daemon::{Daemon, blocking};
use crate::error::{Error, Result};
use crate::log::Log;
use crate::metrics::Move;
use crate::store::Saved;
use crate::toolstack::{Domain, Outgoing, Tracking};

pub use fcap_migrate::source::Options as EngineOptions;

/// How long the other node may take for a word.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long before a node that could not be asked is asked again.
const RETRY: Duration = Duration::from_secs(2);
/// How long a saved capsule is held until its image is said to be in safety.
const HELD: Duration = Duration::from_secs(60);
/// Pieces of an image that may wait for a client.
const PIECES: usize = 16;

/// A capsule that its driver has given away for a while.
pub struct Leaving {
    /// Its domain.
    pub domain: Arc<dyn Domain>,
    /// Its console.
    pub console: Arc<Console>,
    /// Its log.
    pub log: Arc<Log>,
    /// What is kept of it.
    pub saved: Saved,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is here, as before.
    Kept,
    /// It is on another node.
    Moved(String),
    /// It is in an image, and no more here.
    Saved,
}

fn policy(how: &Precopy) -> PrecopyPolicy {
    let default = PrecopyPolicy::default();
    PrecopyPolicy {
        max_downtime: how.max_downtime_ms.map_or(default.max_downtime, Duration::from_millis),
        max_rounds: how.max_rounds.unwrap_or(default.max_rounds),
        strict: how.max_downtime_ms.is_some(),
        stop_and_copy: how.stop_copy,
    }
}

fn tracking(dirty: DirtyTracking) -> Tracking {
    match dirty {
        DirtyTracking::Best => Tracking::Best,
        DirtyTracking::Guest => Tracking::Guest,
        DirtyTracking::Dbits => Tracking::DirtyBits,
        DirtyTracking::Log => Tracking::LogDirty,
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn round(stats: &RoundStats) -> Round {
    Round {
        round: stats.round + 1,
        pages: stats.pages,
        skipped: stats.zero_pages + stats.void_pages,
        bytes: stats.bytes,
        ms: ms(stats.time),
        dirty: stats.dirty_pages,
        dirty_rate: stats.dirty_rate as f64,
        expected_downtime_ms: ms(stats.expected_downtime),
    }
}

fn moved(node: String, stats: &MigrateStats) -> Moved {
    Moved {
        node,
        total_ms: ms(stats.total_time),
        downtime_ms: ms(stats.downtime),
        rounds: stats.rounds.len().saturating_sub(1) as u32,
        pages: stats.pages(),
        skipped: stats.rounds.iter().map(|round| round.zero_pages + round.void_pages).sum(),
        bytes: stats.bytes,
        steps: stats
            .steps
            .iter()
            .map(|step| MoveStep { name: step.name.into(), ms: ms(step.time), suspended: step.suspended })
            .collect(),
        unsettled: false,
    }
}

/// Cancels on drop: when nobody listens any more.
pub struct CancelOnDrop(pub fcap_migrate::source::Options);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel.cancel();
    }
}

/// The other node, as the client has named it.
struct Peer {
    node: String,
    place: Place,
    attempt: Attempt,
}

fn peer(daemon: &Daemon, request: &Migrate) -> Result<Peer> {
    let ticket = &request.ticket;
    let bad = |what: &str| Error::BadRequest(format!("the ticket's {what} makes no sense"));
    let ours = daemon.membership.authority();
    let id = match &ticket.authority {
        Some(authority) => {
            if ours.as_ref() != Some(authority) {
                return Err(Error::BadRequest("the ticket is for a node of another cluster".into()));
            }
            let subject = Subject::node(&ticket.node).map_err(|_| bad("node"))?;
            PeerId::Member(subject.name().to_owned())
        }
        None => PeerId::Pinned(Fingerprint::parse(&ticket.fingerprint).ok_or_else(|| bad("fingerprint"))?),
    };
    let mut addresses = ticket.address.to_socket_addrs().map_err(|_| bad("address"))?;
    Ok(Peer {
        node: crate::names::printable(&ticket.node, fcap_api::MAX_NAME),
        place: Place { address: addresses.next().ok_or_else(|| bad("address"))?, id, authority: ours },
        attempt: journal::parse_name(&ticket.attempt).ok_or_else(|| bad("attempt"))?,
    })
}

/// Moves a capsule. Progress comes out of the receiver; dropping it ends the attempt as long as
/// the capsule is here.
///
/// # Errors
/// When the capsule is in no state to move, or the request makes no sense.
pub async fn migrate(
    daemon: &Arc<Daemon>,
    capsule: &Arc<Capsule>,
    request: Migrate,
) -> Result<(mpsc::UnboundedReceiver<Progress>, CancelOnDrop)> {
    let peer = peer(daemon, &request)?;
    let options = Options {
        policy: policy(&request.how),
        rate_limit: request.how.rate.filter(|&rate| rate > 0),
        ..Options::default()
    };
    let leaving = ask_to_leave(capsule, &options).await?;
    let (sender, receiver) = mpsc::unbounded_channel();
    let guard = CancelOnDrop(Options { cancel: options.cancel.clone(), ..Options::default() });
    let (daemon, capsule) = (daemon.clone(), capsule.clone());
    tokio::task::spawn_blocking(move || {
        let mut tell = |progress| drop(sender.send(progress));
        let result = travel(&daemon, &leaving, &peer, &request.how, &options, &mut tell);
        let (outcome, last) = match result {
            Ok(Travelled::Refrained) => (Some(Outcome::Kept), Progress::Possible),
            Ok(Travelled::Arrived(domain, stats, connection)) => {
                daemon.metrics.left(&stats);
                // Its log is removed with it, so it is read first.
                let log = capsule.log.segments();
                let mut phase = capsule.phase();
                capsule.tell(Command::Left(Outcome::Moved(peer.node.clone())));
                let config = &leaving.saved.config;
                let (mut reader, mut writer) = *connection;
                let sent = log.and_then(|log| luggage::send(&daemon, config, &log, &mut reader, &mut writer));
                match sent {
                    Ok(()) => keep(&daemon, &peer, (reader, writer)),
                    Err(error) => {
                        tracing::warn!(capsule = %capsule.id, %error, "not all of its log and images has gone with it");
                    }
                }
                // Whoever is told finds nothing of it here. Its driver may be gone already.
                let gone = phase.wait_for(|phase| matches!(phase, Phase::Gone(_)));
                let _ = daemon.runtime().block_on(gone);
                tell(Progress::Done(moved(peer.node.clone(), &stats)));
                return drop(domain);
            }
            Err((error, SourceState::HandedOver)) => {
                daemon.metrics.moved(Move::Unsettled);
                tracing::warn!(capsule = %capsule.id, error = ?error.body().message, "the destination must be asked");
                (None, Progress::Done(Moved { node: peer.node.clone(), unsettled: true, ..Moved::default() }))
            }
            Err((error, _)) => {
                daemon.metrics.moved(Move::Kept);
                (Some(Outcome::Kept), Progress::Failed { error: error.body() })
            }
        };
        match outcome {
            Some(outcome) => capsule.tell(Command::Left(outcome)),
            None => {
                let claim = Out {
                    capsule: capsule.id,
                    node: peer.node.clone(),
                    address: peer.place.address.to_string(),
                    peer: peer.place.id.to_string(),
                };
                daemon.runtime().spawn(settle(daemon.clone(), peer.attempt, claim, Some(leaving)));
            }
        }
        tell(last);
    });
    Ok((receiver, guard))
}

async fn ask_to_leave(capsule: &Arc<Capsule>, options: &Options) -> Result<Leaving> {
    let (reply, answer) = oneshot::channel();
    capsule.tell(Command::Leave(options.cancel.clone(), reply));
    answer.await.unwrap_or_else(|_| Err(Error::NoSuchCapsule(capsule.id.to_string())))
}

/// How a journey has ended well.
enum Travelled {
    /// The capsule is at its destination, to which this is the connection. What is left of its
    /// domain here goes when the traveller is dropped.
    Arrived(Box<Traveller>, MigrateStats, Box<(Reader, Writer)>),
    /// It was only asked whether it could go.
    Refrained,
}

/// Connects, and has the engine do the rest.
fn travel(
    daemon: &Arc<Daemon>,
    leaving: &Leaving,
    peer: &Peer,
    how: &Precopy,
    options: &Options,
    tell: &mut dyn FnMut(Progress),
) -> std::result::Result<Travelled, (Error, SourceState)> {
    let kept = |error| (error, SourceState::Kept);
    let unreachable = |error: io::Error| {
        let node = &peer.node;
        kept(Error::WrongState(format!("node {node} cannot be reached at {}: {error}", peer.place.address)))
    };
    // While one waits for the other node, there is something to do here.
    let (domain, connected) = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| connect_for_move(daemon, peer));
        let domain = Traveller::new(daemon, leaving, tracking(how.dirty)).map_err(kept);
        (domain, connecting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let mut domain = domain?;
    let (mut reader, mut writer) = connected.map_err(unreachable)?;
    let mut claim = OutClaim {
        journal: daemon.migrations.journal.clone(),
        attempt: peer.attempt,
        out: Out {
            capsule: leaving.saved.config.id,
            node: peer.node.clone(),
            address: peer.place.address.to_string(),
            peer: peer.place.id.to_string(),
        },
    };
    let pages = domain.pages;
    let name = domain.dirty_source().name();
    let mut observe = |step: Step| match step {
        Step::Accepted => {
            tell(Progress::Started { pages, tracking: name.into() });
            if how.dry_run {
                options.cancel.cancel();
            }
        }
        Step::RoundDone(stats) => tell(Progress::Round(round(&stats))),
        Step::Suspending { why } => tell(Progress::Suspending { why: why.into() }),
        _ => {}
    };
    let connection = (&mut reader, &mut writer);
    let id = peer.attempt;
    match source::migrate(&mut domain, &mut claim, connection, id, Reason::Migrate, options, &mut observe) {
        Ok(stats) => Ok(Travelled::Arrived(Box::new(domain), stats, Box::new((reader, writer)))),
        Err(failure) if how.dry_run && matches!(failure.error, MigrateError::Cancelled) => {
            Ok(Travelled::Refrained)
        }
        Err(failure) => Err((arrive::host_error(&failure.error), failure.state)),
    }
}

/// A connection over which the capsule may come: one that is left of an earlier move, or a new one.
fn connect_for_move(daemon: &Daemon, peer: &Peer) -> io::Result<(Reader, Writer)> {
    let Place { address, id, .. } = &peer.place;
    if let Some(mut kept) = daemon.migrations.kept.take(&peer.place) {
        match greet(&mut kept, &peer.attempt) {
            Ok(true) => return Ok(kept),
            Ok(false) => return Err(not_expected()),
            // The other node may have been started anew; it has not heard of this attempt then.
            Err(error) => {
                tracing::debug!(node = peer.node, %error, "a connection that was kept is of no use");
                daemon.migrations.kept.forget(&peer.place);
            }
        }
    }
    let member = daemon.membership.credentials();
    let mut connection = daemon.migrations.identity()?.connect(*address, id, member.as_ref())?;
    if greet(&mut connection, &peer.attempt)? { Ok(connection) } else { Err(not_expected()) }
}

fn not_expected() -> io::Error {
    io::Error::other("it does not expect the capsule (any more); try again")
}

/// Says what comes. Whether it may.
fn greet((reader, writer): &mut (Reader, Writer), attempt: &Attempt) -> io::Result<bool> {
    say(writer, MOVE, attempt)?;
    let mut answer = [0];
    read_exact(reader, &mut answer, PATIENCE)?;
    match answer[0] {
        WELCOME => Ok(true),
        GONE => Ok(false),
        _ => Err(io::Error::other("the destination's answer makes no sense")),
    }
}

/// Keeps a connection for the next capsule that goes there.
fn keep(daemon: &Arc<Daemon>, peer: &Peer, connection: (Reader, Writer)) {
    if connection.1.is_worn() {
        return;
    }
    daemon.migrations.kept.keep(peer.place.clone(), connection);
    let daemon_then = Arc::downgrade(daemon);
    daemon.runtime().spawn(async move {
        tokio::time::sleep(KEPT).await;
        if let Some(daemon) = daemon_then.upgrade() {
            daemon.migrations.kept.end_old();
        }
    });
}

fn say(writer: &mut Writer, what: u8, attempt: &Attempt) -> io::Result<()> {
    let head: Vec<u8> = std::iter::once(what).chain(*attempt).collect();
    write_all(writer, &head, PATIENCE)
}

/// The source's claim.
struct OutClaim {
    journal: Journal,
    attempt: Attempt,
    out: Out,
}

impl Claim for OutClaim {
    fn write(&mut self) -> io::Result<()> {
        self.journal.write(&self.attempt, "out", &self.out)
    }

    fn remove(&mut self) -> io::Result<()> {
        self.journal.remove(&self.attempt, "out")
    }
}

/// A domain on its way: the toolstack's, with what the daemon adds.
struct Traveller {
    inner: Box<dyn Outgoing>,
    console: Arc<Console>,
    log: Arc<Log>,
    daemon: Arc<Daemon>,
    passport: Vec<u8>,
    saved: Saved,
    pages: u64,
}

impl Traveller {
    fn new(daemon: &Arc<Daemon>, leaving: &Leaving, tracking: Tracking) -> Result<Self> {
        let failed = |error: DomainError| Error::WrongState(describe(&error));
        let inner = leaving.domain.outgoing(tracking).map_err(failed)?;
        let places = inner.places().map_err(failed)?;
        let passport = Passport { saved: leaving.saved.clone(), places };
        let passport = serde_json::to_vec(&passport).map_err(|error| Error::WrongState(error.to_string()))?;
        Ok(Self {
            inner,
            console: leaving.console.clone(),
            log: leaving.log.clone(),
            daemon: daemon.clone(),
            passport,
            saved: leaving.saved.clone(),
            pages: leaving.saved.config.memory_kib / 4,
        })
    }
}

impl SourceDomain for Traveller {
    fn describe(&mut self) -> DomainResult<Description> {
        let description = self.inner.describe()?;
        Ok(Description { config: self.passport.clone(), ..description })
    }

    fn dirty_source(&mut self) -> &mut dyn DirtySource {
        self.inner.dirty_source()
    }

    fn void_pages(&mut self, to: &mut PageBitmap) -> DomainResult<()> {
        self.inner.void_pages(to)
    }

    fn read_pages(&self, pfns: &[Pfn], types: &mut [PageType], pages: &mut [Page]) -> DomainResult<()> {
        self.inner.read_pages(pfns, types, pages)
    }

    fn pfn_of(&self, mfn: Mfn) -> Option<Pfn> {
        self.inner.pfn_of(mfn)
    }

    fn suspend(&mut self, reason: Reason) -> DomainResult<()> {
        self.inner.suspend(reason)?;
        // What is in the rings travels with the page.
        self.console.hold();
        Ok(())
    }

    fn state(&mut self) -> DomainResult<Vec<State>> {
        let mut state = self.inner.state()?;
        let end = self.log.end().to_le_bytes().to_vec();
        state.push(State { kind: LOG_END, index: 0, bytes: end });
        Ok(state)
    }

    fn resume(&mut self) -> DomainResult<()> {
        self.inner.resume()?;
        self.console.release();
        Ok(())
    }

    fn destroy(&mut self) -> DomainResult<()> {
        self.inner.destroy()?;
        forget_kept(&self.daemon, &self.saved)
    }
}

/// Removes what is kept of a capsule that runs elsewhere.
fn forget_kept(daemon: &Daemon, saved: &Saved) -> DomainResult<()> {
    daemon.store.remove(saved.config.id).map_err(|error| DomainError::Failed {
        call: "forgetting of the capsule".into(),
        source: error.body().message.into(),
    })
}

/// Asks the destination until it is clear who has the capsule, and acts upon it.
pub async fn settle(daemon: Arc<Daemon>, attempt: Attempt, out: Out, leaving: Option<Leaving>) {
    let leaving = Arc::new(leaving);
    loop {
        let (asked, there, claim) = (daemon.clone(), leaving.clone(), out.clone());
        let settled = blocking(move || settle_once(&asked, attempt, &claim, there.as_ref().as_ref())).await;
        match settled {
            Ok(Ok(Some(outcome))) => {
                tracing::info!(capsule = %out.capsule, ?outcome, "the move is settled");
                daemon.metrics.moved(if outcome == Outcome::Kept { Move::Kept } else { Move::Left });
                // One that was not held here for it has come back since, and may be moving again.
                if leaving.is_some()
                    && let Ok(capsule) = daemon.find(&out.capsule.to_string())
                {
                    capsule.tell(Command::Left(outcome));
                }
                return;
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => {
                tracing::debug!(capsule = %out.capsule, %error, "the destination does not answer")
            }
            // The daemon ends; the next one goes on.
            Err(_) => return,
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn settle_once(
    daemon: &Arc<Daemon>,
    attempt: Attempt,
    out: &Out,
    leaving: Option<&Leaving>,
) -> io::Result<Option<Outcome>> {
    let peer = PeerId::parse(&out.peer);
    let peer = peer.ok_or_else(|| io::Error::other("the claim does not say who the destination is"))?;
    let address = out.address.parse().map_err(io::Error::other)?;
    let member = daemon.membership.credentials();
    let (mut reader, mut writer) = daemon.migrations.identity()?.connect(address, &peer, member.as_ref())?;
    say(&mut writer, ASK, &attempt)?;
    let mut answer = [0];
    read_exact(&mut reader, &mut answer, PATIENCE)?;
    let (message, outcome) = match answer[0] {
        TAKEN => (Message::Taken, Outcome::Moved(out.node.clone())),
        GONE => (Message::Gone, Outcome::Kept),
        BUSY => return Ok(None),
        _ => return Err(io::Error::other("the destination's answer makes no sense")),
    };
    let claim = OutClaim { journal: daemon.migrations.journal.clone(), attempt, out: out.clone() };
    let mut parts = Parts { daemon: daemon.clone(), claim, leaving, writer };
    let mut state = SourceState::HandedOver;
    drive_source(&mut state, SourceEvent::Message(message), &mut parts).map_err(io::Error::other)?;
    Ok(Some(outcome))
}

/// A capsule that was handed over.
struct Parts<'a> {
    daemon: Arc<Daemon>,
    claim: OutClaim,
    leaving: Option<&'a Leaving>,
    writer: Writer,
}

impl SourceParts for Parts<'_> {
    fn claim(&mut self) -> &mut dyn Claim {
        &mut self.claim
    }

    fn resume(&mut self) -> std::result::Result<(), DomainError> {
        let Some(leaving) = self.leaving else { return Ok(()) };
        leaving.domain.resume().map_err(at("resuming of the capsule"))?;
        leaving.console.release();
        Ok(())
    }

    fn destroy(&mut self) -> std::result::Result<(), DomainError> {
        if let Some(leaving) = self.leaving {
            leaving.domain.destroy().map_err(at("destruction of the capsule"))?;
        }
        let id = self.claim.out.capsule;
        if self.leaving.is_none() && self.daemon.find(&id.to_string()).is_ok() {
            // It has come back before this was heard.
            return Ok(());
        }
        self.daemon.store.remove(id).map_err(|error| DomainError::Failed {
            call: "forgetting of the capsule".into(),
            source: error.body().message.into(),
        })
    }

    fn send(&mut self, message: Message) {
        if message == Message::Released {
            // Who does not hear it is asked by nobody any more, and keeps a file too many.
            let _ = write_all(&mut self.writer, &[RELEASED], PATIENCE);
        }
    }
}

fn at(call: &str) -> impl FnOnce(crate::toolstack::Error) -> DomainError {
    let call = call.to_owned();
    move |error| DomainError::Failed { call, source: Box::new(error) }
}

/// An image, piece by piece.
pub type Image = mpsc::Receiver<io::Result<Bytes>>;

/// Saves a capsule. With [`SaveMode::Save`] it is held afterwards until [`saved`] says that the
/// image is in safety; otherwise it goes on.
///
/// # Errors
/// When the capsule is in no state to be saved.
pub async fn save(
    daemon: &Arc<Daemon>,
    capsule: &Arc<Capsule>,
    mode: SaveMode,
) -> Result<(Image, CancelOnDrop)> {
    let reason = match mode {
        SaveMode::Save => Reason::Save,
        SaveMode::Checkpoint => Reason::Checkpoint,
        SaveMode::Clone => Reason::Clone,
    };
    // Each further round would put pages into the image a second time. One that ends here has
    // nothing to gain from a first one.
    let stop_and_copy = mode == SaveMode::Save;
    let policy = PrecopyPolicy { max_rounds: 1, stop_and_copy, ..PrecopyPolicy::default() };
    let compression = match mode {
        // A file takes its room for longer than it takes to write.
        SaveMode::Save | SaveMode::Checkpoint => Compression::Lz4,
        SaveMode::Clone => Compression::Adaptive,
    };
    let options = Options { policy, compression, ..Options::default() };
    let leaving = ask_to_leave(capsule, &options).await?;
    let (sender, receiver) = mpsc::channel(PIECES);
    let guard = CancelOnDrop(Options { cancel: options.cancel.clone(), ..Options::default() });
    let (daemon, capsule) = (daemon.clone(), capsule.clone());
    daemon.migrations.state().broken.remove(&capsule.id);
    let (confirm, confirmed) = oneshot::channel();
    if mode == SaveMode::Save {
        daemon.migrations.state().held.insert(capsule.id, confirm);
    }
    tokio::task::spawn_blocking(move || {
        let mut domain = match Traveller::new(&daemon, &leaving, Tracking::Best) {
            Ok(domain) => domain,
            Err(error) => {
                daemon.migrations.state().held.remove(&capsule.id);
                let _ = sender.blocking_send(Err(io::Error::other(error.body().message)));
                return capsule.tell(Command::Left(Outcome::Kept));
            }
        };
        let mut id = [0; 16];
        getrandom::fill(&mut id).expect("the kernel gives randomness");
        let written = source::save(&mut domain, Pieces(sender.clone()), id, reason, &options, &mut |_| ());
        if let Err(error) = &written {
            // Who reads the image only sees that it breaks off.
            let body = arrive::host_error(error).body();
            daemon.migrations.state().broken.insert(capsule.id, body);
            let _ = sender.blocking_send(Err(io::Error::other(describe(error))));
        }
        if written.is_ok() && reason == Reason::Save {
            // The image has been sent whole; whether it has arrived is for the client to say.
            daemon.runtime().clone().spawn(hold(daemon, capsule, domain, confirmed));
        } else {
            daemon.migrations.state().held.remove(&capsule.id);
            capsule.tell(Command::Left(Outcome::Kept));
        }
        // Whoever sees the end of the image can ask for the next one.
        drop(sender);
    });
    Ok((receiver, guard))
}

/// Waits until a saved capsule's image is said to be in safety; lets it go on if nobody says so.
async fn hold(
    daemon: Arc<Daemon>,
    capsule: Arc<Capsule>,
    mut domain: Traveller,
    confirmed: oneshot::Receiver<()>,
) {
    let in_safety = matches!(tokio::time::timeout(HELD, confirmed).await, Ok(Ok(())));
    daemon.migrations.state().held.remove(&capsule.id);
    if in_safety {
        return capsule.tell(Command::Left(Outcome::Saved));
    }
    let resumed = blocking(move || domain.resume()).await;
    if let Ok(Err(error)) = resumed {
        tracing::error!(capsule = %capsule.id, %error, "a capsule whose image was lost does not go on");
    }
    capsule.tell(Command::Left(Outcome::Kept));
}

/// Why the last image of a capsule broke off; nothing if it did not.
pub fn broken(daemon: &Daemon, capsule: &Capsule) -> Option<ErrorBody> {
    daemon.migrations.state().broken.get(&capsule.id).cloned()
}

/// The image of a capsule is in safety: it ends here.
///
/// # Errors
/// When it is not held for that.
pub async fn saved(daemon: &Arc<Daemon>, capsule: &Arc<Capsule>) -> Result<()> {
    let confirm = daemon.migrations.state().held.remove(&capsule.id);
    let told = confirm.is_some_and(|confirm| confirm.send(()).is_ok());
    if !told {
        return Err(Error::WrongState(format!(
            "capsule {} does not wait for its image to be in safety: it was not saved, or goes on since",
            capsule.name()
        )));
    }
    let mut phase = capsule.phase();
    // It is gone when its driver says so.
    let _ = phase.wait_for(|phase| matches!(phase, crate::capsule::Phase::Gone(_))).await;
    Ok(())
}

/// Sends what is written to whoever has the receiver.
struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The event that tells of a capsule that has left.
pub const LEFT: Action = Action::Leave;
