//! The destination: a capsule comes over a connection, or out of an image.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard};

use fcap_api::{Action, ImageKind};
use fcap_migrate::destination::{Incoming as Stream, Options};
use fcap_migrate::domain::{
    Description, DestinationDomain, DestinationHost, DomainError, DomainResult, FinalState, Page, PfnRange,
    Refusal, RefusalCause, Table,
};
use fcap_migrate::handover::{Claim, DestinationState};
use fcap_migrate::page::PageType;
use fcap_migrate::wire::Reason;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use xen_proto::frame::{Mfn, Pfn};
use xen_proto::suspend;

use super::journal::{Attempt, Begun, In, Journal};
use super::luggage::{self, LOG_END};
use super::records::{Reader, Writer};
use super::tls::PeerId;
use super::{Passport, UnderWay, describe};
use crate::capsule::Capsule;
use crate::capsule::driver::{Begin, Driver};
use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::id::CapsuleId;
use crate::log::Log;
use crate::metrics::Move;
use crate::store::Saved;
use crate::toolstack::{Arrival, Incoming, Shutdown, Vif};

/// Takes a capsule in that comes over a connection. Whether all of it has come, and the connection
/// is as it was before.
pub(super) fn receive(
    daemon: &Arc<Daemon>,
    runtime: &Handle,
    under_way: UnderWay,
    from: &PeerId,
    reader: &mut Reader,
    writer: &mut Writer,
) -> bool {
    let attempt = under_way.attempt;
    let mut host = Landing::new(daemon, runtime, Some(attempt), Identity::Kept);
    let mut claim = TakenClaim {
        journal: daemon.migrations.journal.clone(),
        attempt,
        source: from.to_string(),
        saved: host.saved.clone(),
    };
    let received = Stream::connection(&mut *reader, &mut *writer, Options::default())
        .map_err(|error| describe(&error))
        .and_then(|stream| {
            match stream.header().id == attempt && stream.header().reason == Reason::Migrate {
                true => stream.receive(&mut host, &mut claim).map_err(|failure| describe(&failure.error)),
                false => Err("it is not the attempt that the ticket is for".into()),
            }
        });
    daemon.metrics.moved(if received.is_ok() { Move::Arrived } else { Move::NotArrived });
    match received {
        Ok(mut arrival) if arrival.state == DestinationState::Done => {
            // Who could not be taken up has said so.
            let taken_up =
                arrival.domain.taken_up.take().and_then(|taken_up| runtime.block_on(taken_up).ok());
            let Some(Ok(capsule)) = taken_up else { return false };
            let luggage = luggage::receive(daemon, runtime, &capsule, reader, writer);
            if let Err(error) = &luggage {
                tracing::warn!(capsule = %capsule.id, %error, "not all of a capsule's log and images has come");
            }
            return luggage.is_ok();
        }
        Ok(_) => {
            tracing::info!(attempt = %CapsuleId(attempt), "a capsule has come; its source does not know yet")
        }
        Err(error) => tracing::warn!(attempt = %CapsuleId(attempt), error, "a capsule did not come"),
    }
    false
}

/// Makes a capsule of an image. With `new_name` it is one of its own: with that name, its own
/// addresses, and told so.
///
/// # Errors
/// When the image is broken, or the capsule cannot be here; nothing is left of it then.
pub fn restore(
    daemon: &Arc<Daemon>,
    runtime: &Handle,
    new_name: Option<String>,
    image: impl Read,
) -> Result<Arc<Capsule>> {
    let identity = new_name.map_or(Identity::Fresh, Identity::Clone);
    let mut host = Landing::new(daemon, runtime, None, identity);
    let failed = |error: fcap_migrate::MigrateError| host_error(&error);
    let stream = Stream::file(image, Options::default()).map_err(failed)?;
    let mut arrival = stream.restore(&mut host).map_err(failed)?;
    if let Err(error) = arrival.domain.activate() {
        arrival.domain.destroy();
        return Err(Error::WrongState(describe(&error)));
    }
    let taken_up = arrival.domain.taken_up.take().ok_or(Error::ShuttingDown)?;
    runtime.block_on(taken_up).map_err(|_| Error::ShuttingDown)?
}

/// What an engine's error is to a client.
pub(super) fn host_error(error: &fcap_migrate::MigrateError) -> Error {
    use fcap_migrate::MigrateError as E;
    let text = describe(error);
    let refusal = match error {
        E::Refused(refusal) => Some(refusal),
        E::Domain { source: DomainError::Refused(refusal), .. } => Some(refusal),
        _ => None,
    };
    match (refusal.map(|refusal| refusal.cause), error) {
        (Some(RefusalCause::Memory), _) => Error::Toolstack(crate::toolstack::Error::NoRoom(text)),
        (Some(_), _) => Error::WrongState(text),
        (None, E::Stream { .. }) => Error::BadRequest(text),
        (None, _) => Error::WrongState(text),
    }
}

/// The destination's claim.
struct TakenClaim {
    journal: Journal,
    attempt: Attempt,
    source: String,
    saved: Arc<Mutex<Option<Saved>>>,
}

impl Claim for TakenClaim {
    fn write(&mut self) -> io::Result<()> {
        let saved = lock(&self.saved).clone().ok_or_else(|| io::Error::other("no capsule has come"))?;
        self.journal.write(&self.attempt, "in", &In { saved, source: self.source.clone() })
    }

    fn remove(&mut self) -> io::Result<()> {
        self.journal.remove(&self.attempt, "in")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Who the capsule is from now on.
enum Identity {
    /// The same as before, elsewhere.
    Kept,
    /// A new one with the old name and addresses.
    Fresh,
    /// A second one, of this name.
    Clone(String),
}

/// Where capsules arrive.
struct Landing {
    daemon: Arc<Daemon>,
    runtime: Handle,
    attempt: Option<Attempt>,
    identity: Identity,
    /// What is to be kept of the capsule, once that is known.
    saved: Arc<Mutex<Option<Saved>>>,
}

fn refused(cause: RefusalCause, message: impl Into<String>) -> DomainError {
    Refusal { cause, message: message.into() }.into()
}

/// Why this node does not take a capsule.
fn refusal(error: &Error) -> DomainError {
    let cause = match error {
        Error::NameTaken { .. } => RefusalCause::Name,
        Error::Toolstack(crate::toolstack::Error::NoRoom(_)) => RefusalCause::Memory,
        _ => RefusalCause::Other,
    };
    refused(cause, error.body().message)
}

impl Landing {
    fn new(daemon: &Arc<Daemon>, runtime: &Handle, attempt: Option<Attempt>, identity: Identity) -> Self {
        Self { daemon: daemon.clone(), runtime: runtime.clone(), attempt, identity, saved: Arc::default() }
    }

    /// What is kept of the capsule here.
    fn adjust(&self, saved: &mut Saved) -> Result<()> {
        match &self.identity {
            Identity::Kept => {
                saved.config.generation += 1;
                return Ok(());
            }
            Identity::Fresh => {
                self.daemon.networks.check_name(&saved.config.name)?;
                self.daemon.networks.allocate_again(&saved.config.networks)?;
            }
            Identity::Clone(name) => {
                self.daemon.networks.check_name(name)?;
                saved.config.name.clone_from(name);
                saved.config.ports.clear();
                let names: Vec<String> =
                    saved.config.networks.iter().map(|interface| interface.network.clone()).collect();
                saved.config.networks = self.daemon.networks.allocate(&names, false)?;
            }
        }
        saved.config.id = CapsuleId::random();
        saved.config.created_ms = self.daemon.creation_ms();
        Ok(())
    }
}

impl DestinationHost for Landing {
    type Domain = Landed;

    fn create(&mut self, description: &Description, reason: Reason) -> DomainResult<Landed> {
        let passport: Passport = serde_json::from_slice(&description.config).map_err(|error| {
            refused(RefusalCause::Other, format!("its description does not parse: {error}"))
        })?;
        let Passport { mut saved, places } = passport;
        let daemon = self.daemon.clone();
        if let (Identity::Kept, Ok(here)) = (&self.identity, daemon.find(&saved.config.id.to_string())) {
            let message = format!("the capsule is on this node already, as {}", here.name());
            return Err(refused(RefusalCause::Name, message));
        }
        if reason == Reason::Clone && !matches!(self.identity, Identity::Clone(_)) {
            return Err(refused(RefusalCause::Name, "the image is for a second capsule: give it a name"));
        }
        self.adjust(&mut saved).map_err(|error| refusal(&error))?;
        let mut landed = Landed {
            daemon: daemon.clone(),
            runtime: self.runtime.clone(),
            attempt: self.attempt,
            saved,
            log_end: 0,
            inner: None,
            runs: false,
            taken_up: None,
        };
        let config = &landed.saved.config;
        daemon.claim_name(&config.name, config.id).map_err(|error| refusal(&error))?;
        let owner = |id: CapsuleId| daemon.find(&id.to_string()).ok().map(|owner| owner.name());
        // A port that the node chose may be another one here.
        let ports = daemon.networks.publish(config, owner).map_err(|error| refusal(&error))?;
        landed.saved.config.ports = ports;
        *lock(&self.saved) = Some(landed.saved.clone());
        landed.prepare_for(description, reason, places, matches!(self.identity, Identity::Clone(_)))?;
        Ok(landed)
    }
}

/// A capsule that arrives. Nothing of it is left when it is dropped before it was let run.
struct Landed {
    daemon: Arc<Daemon>,
    runtime: Handle,
    attempt: Option<Attempt>,
    saved: Saved,
    /// Where its log has ended on the other node.
    log_end: u64,
    inner: Option<Box<dyn Incoming>>,
    runs: bool,
    /// The daemon's taking it up, once it runs.
    taken_up: Option<JoinHandle<Result<Arc<Capsule>>>>,
}

impl Landed {
    fn prepare_for(
        &mut self,
        description: &Description,
        reason: Reason,
        places: crate::toolstack::Places,
        is_clone: bool,
    ) -> DomainResult<()> {
        let config = &self.saved.config;
        let daemon = &self.daemon;
        let nets = daemon.networks.boot_records(&config.networks).map_err(|error| refusal(&error))?;
        let vif = |(handle, net): (u32, &xen_proto::boot::Net)| Vif {
            handle,
            mac: net.mac,
            rate_kbit: config.net_rate_kbit,
        };
        let vifs = (0..).zip(&nets).map(vif).collect();
        if let Some(attempt) = &self.attempt {
            let begun = daemon.migrations.journal.write(attempt, "begun", &Begun { capsule: config.id });
            begun.map_err(|error| refused(RefusalCause::Other, format!("the node's disk fails: {error}")))?;
        }
        if !nets.is_empty() {
            daemon.networks.attach(config).map_err(|error| refusal(&error))?;
        }
        let reason = match (is_clone, reason) {
            (true, _) => suspend::Reason::Clone,
            (_, Reason::Migrate) => suspend::Reason::Migrate,
            (_, Reason::Save) => suspend::Reason::Save,
            (_, Reason::Clone | Reason::Checkpoint) => suspend::Reason::Checkpoint,
        };
        let arrival = Arrival {
            uuid: config.id.0,
            name: config.name.clone(),
            is_capsule: config.kind == ImageKind::Capsule,
            places,
            cpu_cap: config.cpu_cap,
            weight: config.weight,
            vifs,
            reason,
            identity: is_clone.then(|| (config.name.clone(), nets)),
        };
        let incoming = daemon.toolstack.incoming(arrival, description)?;
        if !config.networks.is_empty() {
            daemon.networks.place(config, incoming.domid()).map_err(|error| refusal(&error))?;
        }
        self.inner = Some(incoming);
        Ok(())
    }

    fn inner(&self) -> DomainResult<&dyn Incoming> {
        self.inner.as_deref().ok_or(DomainError::Ended)
    }
}

/// Has the daemon take up a capsule that runs.
async fn take_up(
    daemon: Arc<Daemon>,
    saved: Saved,
    log_end: u64,
    attempt: Option<Attempt>,
    domain: Arc<dyn crate::toolstack::Domain>,
) -> Result<Arc<Capsule>> {
    let config = &saved.config;
    let log = Log::open(daemon.store.log_base(config.id), Vec::new(), daemon.log_bytes())
        .map_err(Error::disk(format!("begin the log of capsule {}", config.name)))?;
    log.go_on_from(log_end);
    let (capsule, commands) = Capsule::new(config.clone(), saved.progress.clone(), None, log);
    daemon.enter(&capsule);
    let info = daemon.domains()?.remove(&config.id.0);
    let info = info.filter(|info| info.domid == domain.domid()).ok_or(crate::toolstack::Error::Gone)?;
    let begin = Begin::Running(domain, info);
    let driver = Driver::new(daemon.clone(), capsule.clone(), begin).await;
    tokio::spawn(driver.drive(commands));
    daemon.event(&capsule, Action::Arrive, None);
    daemon.look_at_domains();
    forget_begun(&daemon, attempt);
    Ok(capsule)
}

/// The attempt is over.
fn forget_begun(daemon: &Daemon, attempt: Option<Attempt>) {
    if let Some(attempt) = attempt
        && let Err(error) = daemon.migrations.journal.remove(&attempt, "begun")
    {
        tracing::warn!(%error, "a file of a move is left behind");
    }
}

impl DestinationDomain for Landed {
    fn mfn_of(&self, pfn: Pfn) -> Option<Mfn> {
        self.inner.as_ref()?.mfn_of(pfn)
    }

    fn write_pages(&self, pfns: &[Pfn], types: &[PageType], pages: &[Page]) -> DomainResult<()> {
        self.inner()?.write_pages(pfns, types, pages)
    }

    fn clear_pages(&self, pages: PfnRange) -> DomainResult<()> {
        self.inner()?.clear_pages(pages)
    }

    fn prepare(&self, tables: &[Table]) -> DomainResult<()> {
        self.inner()?.prepare(tables)
    }

    fn finish(&mut self, mut state: FinalState) -> DomainResult<()> {
        // One of an image begins a log of its own.
        if self.attempt.is_some()
            && let Some(end) = state.states.iter().find(|piece| piece.kind == LOG_END)
            && let Ok(bytes) = end.bytes.as_slice().try_into()
        {
            self.log_end = u64::from_le_bytes(bytes);
        }
        state.states.retain(|piece| piece.kind != LOG_END);
        self.inner.as_mut().ok_or(DomainError::Ended)?.finish(state)
    }

    fn activate(&mut self) -> DomainResult<()> {
        if self.runs {
            return Ok(());
        }
        let inner = self.inner.as_mut().ok_or(DomainError::Ended)?;
        let domain = inner.domain()?;
        inner.activate()?;
        self.runs = true;
        let daemon = self.daemon.clone();
        daemon.networks.arrive(&daemon.store, &self.saved.config);
        // Before the source hears of it: from then on the claim may go.
        if let Err(error) = daemon.store.save(&self.saved) {
            tracing::error!(capsule = %self.saved.config.id, error = ?error.body().message,
                "a capsule has come, but will not be known to the next daemon");
        }
        // The rest is in nobody's way.
        let (saved, log_end, attempt) = (self.saved.clone(), self.log_end, self.attempt);
        self.taken_up = Some(self.runtime.spawn(async move {
            let id = saved.config.id;
            let taken_up = take_up(daemon, saved, log_end, attempt, domain).await;
            if let Err(error) = &taken_up {
                tracing::error!(capsule = %id, error = ?error.body().message,
                    "a capsule has come, but is not taken up until the daemon is started again");
            }
            taken_up
        }));
        Ok(())
    }

    fn destroy(&mut self) {
        if self.runs {
            return;
        }
        if let Some(mut inner) = self.inner.take() {
            inner.destroy();
        }
        let config = &self.saved.config;
        self.daemon.networks.unpublish(config.id);
        self.daemon.networks.detach(config);
        if self.attempt.is_none() {
            // They were given out for it; those of one that moves stay its own.
            self.daemon.networks.release(&config.networks);
        }
        self.daemon.release_claimed_name(&config.name, config.id);
        forget_begun(&self.daemon, self.attempt);
    }
}

impl Drop for Landed {
    fn drop(&mut self) {
        self.destroy();
    }
}

/// Takes up what an earlier daemon was killed in the midst of. Comes before everything else.
///
/// # Errors
/// When the disk or the hypervisor does not answer.
pub fn recover(daemon: &Daemon, found: &super::journal::Found) -> anyhow::Result<()> {
    let kept: Vec<CapsuleId> =
        daemon.store.load()?.into_iter().map(|loaded| loaded.saved.config.id).collect();
    let domains = daemon.domains()?;
    for (attempt, claim) in found.taken_now(&kept) {
        let id = claim.saved.config.id;
        let Some(info) = domains.get(&id.0) else { continue };
        if info.paused && info.shutdown.is_none() && !claim.saved.progress.paused {
            tracing::info!(capsule = %id, attempt = %CapsuleId(*attempt), "a capsule that has come is let run");
            daemon.toolstack.activate(info.domid)?;
        }
        // Not before it runs: whoever finds it kept takes it as it is.
        daemon.store.save(&claim.saved)?;
    }
    for (attempt, begun) in &found.begun {
        let taken = found.taken.iter().any(|(other, _)| other == attempt);
        if !taken
            && !kept.contains(&begun.capsule)
            && let Some(info) = domains.get(&begun.capsule.0)
            && info.shutdown != Some(Shutdown::Suspend)
        {
            daemon.toolstack.destroy(info.domid)?;
        }
        daemon.migrations.journal.remove(attempt, "begun")?;
    }
    Ok(())
}
