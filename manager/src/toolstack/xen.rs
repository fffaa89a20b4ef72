//! The toolstack on a real Xen.
//!
//! A domain is built by [`builder`], or taken from the pool, where it waits almost finished. One
//! with a network interface may be built into a [shell](crate::xen::shell), which has it already.
//! What the daemon holds of a domain (its console page and port) is given up before the domain
//! is destroyed, or it would stay as a zombie.
//!
//! xenstored learns of a capsule only some time after it has begun to run, because nobody needs
//! it for the capsule's first output, and it is slow.
//!
//! A later daemon finds a domain's console through the domain's grant table, whose first
//! entries are the toolstack's, and sees by its flags whether xenstored knows it. A domain that
//! has never run is half built.

mod destination;
mod pool;
mod registrar;
mod remover;
mod shells;
mod source;
mod track;

use std::{
    any::Any,
    collections::BTreeSet,
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock, Weak},
    time::Duration,
};

use bytes::Bytes;
use fcap_api::ImageKind;
use fcap_migrate::domain::{Description, DomainResult};
use xen_proto::{
    DomId,
    console::{GUEST_BALLOONS, GUEST_SUSPENDS, HOST_EOF, HOST_NO_STORE, HOST_STDIN, HOST_SUSPEND},
    xenstore::Request,
};

use super::{
    Arrival, Domain, DomainInfo, DomainSpec, Epitaph, Error, Event, EventSink, Host, Image, Incoming,
    Outgoing, Result, Shutdown, Toolstack, Tracking, Uuid, Vif,
};
use crate::{
    image,
    xen::{
        builder::{self, Built, CONSOLE_PORT, Plan, Registration, Steps, failed, kib, store_failed},
        console::Console,
        context::Context,
        events::{Events, Port},
        layout::Layout,
        m2p::M2p,
        shell::Shell,
        sys::{self, DOM0, Mapping},
        vif, xenstore,
    },
};
use destination::XenIncoming;
use pool::Pool;
use registrar::Registrar;
use remover::Remover;
use shells::Shells;
use source::XenSource;

/// Handle of domains that belong to nobody yet, or no more: those in the pool, shells, those of
/// capsules that have moved, and one to try things with.
/// A daemon that finds some at its start removes them.
const SPARE: Uuid = *b"fcap-spare\0\0\0\0\0\0";

/// Of the daemon's threads. xenstored wakes up whenever something happens to a domain, and
/// would have its turn before a capsule's output.
const NICENESS: i32 = -10;

/// How long a capsule has to change its memory; it cannot be asked while it computes.
const RESIZE_PATIENCE: Duration = Duration::from_secs(10);

/// Xen's largest number of a domain, plus one.
const MAX_DOMAINS: usize = 0x7ff0;

/// Domains of a real Xen.
pub struct Xen {
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    shells: Arc<Shells>,
}

/// What the toolstack and each of its domains need.
struct Shared {
    host: Arc<builder::Host>,
    events: Events,
    registrar: Registrar,
    remover: Remover,
    /// For ends of domains that xenstored does not tell of.
    sink: EventSink,
    /// "Xen 4.17.7".
    version: String,
    /// Whether the hypervisor can track dirty pages; found out when first asked.
    log_dirty: OnceLock<bool>,
    /// Mapped when something first leaves.
    m2p: Mutex<Option<Arc<M2p>>>,
}

impl Shared {
    fn has_log_dirty(&self) -> bool {
        *self.log_dirty.get_or_init(|| log_dirty(&self.host))
    }

    fn m2p(&self) -> io::Result<Arc<M2p>> {
        let mut mapped = self.m2p.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(m2p) = &*mapped {
            return Ok(m2p.clone());
        }
        let m2p = Arc::new(M2p::map(&self.host.hypercalls, &self.host.foreign)?);
        Ok(mapped.insert(m2p).clone())
    }

    /// Major and minor version of the hypervisor.
    fn version_numbers(&self) -> (u16, u16) {
        let mut numbers = self.version.split([' ', '.']).filter_map(|part| part.parse().ok());
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }
}

impl Xen {
    /// Opens the doors of dom0, and removes what an earlier daemon held ready. So many `shells`
    /// will be held ready for capsules with a network, once there has been one.
    ///
    /// The calling thread, and those that it starts from now on, take precedence over the other
    /// processes of dom0.
    ///
    /// # Errors
    /// If this is no dom0 of Xen, or xenstored does not run.
    pub fn new(sink: EventSink, shells: u32) -> Result<Self> {
        if let Err(error) = sys::set_niceness(NICENESS) {
            tracing::warn!(%error, "no precedence over other processes: capsules start slower");
        }
        let host = builder::Host::open()?;
        let events = Events::start(sink.clone()).map_err(|error| failed("opening /dev/xen/evtchn", error))?;
        let version =
            host.hypercalls.version().map_err(|error| failed("asking Xen for its version", error))?;
        // Looked for before the domains: of one that is made meanwhile nothing is known yet.
        let known: BTreeSet<u32> = vif::domains(&host)?.into_iter().chain(builder::homes(&host)?).collect();
        let domains = list(&host)?;
        // A daemon may have been killed while it removed a domain: there is half of it, or nothing
        // but what xenstore knows.
        let spare = domains.iter().filter(|domain| domain.handle == SPARE).map(|domain| domain.domid);
        let is_gone = |domid: &u32| domains.iter().all(|domain| domain.domid != *domid);
        for domid in spare.chain(known.into_iter().filter(is_gone)) {
            builder::remove(&host, domid)?;
        }
        let ended = sink.clone();
        xenstore::watch(Path::new(xenstore::SOCKET), "@releaseDomain", move || ended(Event::Domains))
            .map_err(store_failed)?;
        let version = format!("Xen {version}");
        let thread = |error| failed("start of a thread", error);
        let registrar = Registrar::start().map_err(thread)?;
        let host = Arc::new(host);
        let remover = Remover::start(host.clone()).map_err(thread)?;
        let shared = Arc::new(Shared {
            host,
            events,
            registrar,
            remover,
            sink,
            version,
            log_dirty: OnceLock::new(),
            m2p: Mutex::default(),
        });
        let pool = Pool::start(shared.clone()).map_err(thread)?;
        let shells = Shells::start(shared.clone(), shells).map_err(thread)?;
        Ok(Self { shared, pool, shells })
    }

    /// Gives up what is held ready, and waits for what is being removed; returns how many domains
    /// that were.
    fn drain(&self) -> usize {
        self.shared.remover.wait() + self.pool.drain() + self.shells.drain()
    }
}

impl Drop for Xen {
    fn drop(&mut self) {
        self.pool.stop();
        self.shells.stop();
        self.shared.remover.stop();
    }
}

/// All domains, dom0 too.
fn list(host: &builder::Host) -> Result<Vec<sys::DomainInfo>> {
    let mut most = 256;
    loop {
        let domains =
            host.hypercalls.domains_from(0, most).map_err(|error| failed("listing of domains", error))?;
        if domains.len() < most || most >= MAX_DOMAINS {
            return Ok(domains);
        }
        most *= 4;
    }
}

/// An image with what the builder thinks of it.
struct XenImage {
    image: image::Image,
    least_pages: u64,
}

impl Image for XenImage {
    fn kind(&self) -> ImageKind {
        self.image.kind()
    }

    fn min_memory_kib(&self) -> u64 {
        kib(self.least_pages)
    }

    fn size(&self) -> u64 {
        self.image.file_size
    }

    fn wants_network(&self) -> bool {
        self.image.wants_network
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn xen_image(image: &dyn Image) -> Result<&XenImage> {
    image.as_any().downcast_ref().ok_or_else(|| Error::BadImage("the image is of another toolstack".into()))
}

fn info(domain: &sys::DomainInfo) -> DomainInfo {
    DomainInfo {
        domid: domain.domid,
        uuid: domain.handle,
        paused: domain.is_paused(),
        shutdown: domain.shutdown().map(|reason| match reason {
            0 => Shutdown::Poweroff,
            1 => Shutdown::Reboot,
            2 => Shutdown::Suspend,
            4 => Shutdown::Watchdog,
            // Also "soft reset", which nobody here knows how to do.
            _ => Shutdown::Crash,
        }),
        dying: domain.is_dying(),
        cpu_time_ns: domain.cpu_time_ns,
        memory_kib: kib(domain.pages),
        vcpus: domain.vcpus,
    }
}

impl Toolstack for Xen {
    fn host(&self) -> Result<Host> {
        let hypercalls = &self.shared.host.hypercalls;
        let machine = hypercalls.phys_info().map_err(|error| failed("asking Xen for its memory", error))?;
        let dom0 = hypercalls.domain(DOM0).map_err(|error| failed("asking Xen for dom0", error))?;
        Ok(Host {
            hypervisor: self.shared.version.clone(),
            cpus: machine.cpus,
            memory_kib: kib(machine.total_pages),
            free_memory_kib: kib(machine.free_pages.saturating_sub(builder::RESERVE_PAGES)),
            log_dirty: self.shared.has_log_dirty(),
            dom0_cpu_time_ns: dom0.map_or(0, |dom0| dom0.cpu_time_ns),
        })
    }

    fn parse_image(&self, bytes: Bytes) -> Result<Arc<dyn Image>> {
        let image = image::parse(bytes).map_err(|error| Error::BadImage(error.to_string()))?;
        let least_pages = image.kernel.as_ref().map_or(0, |kernel| Layout::least_pages(kernel, 1));
        Ok(Arc::new(XenImage { image, least_pages }))
    }

    fn create(&self, spec: &DomainSpec) -> Result<Arc<dyn Domain>> {
        if let Some(domain) = self.pool.take(spec)? {
            return Ok(domain);
        }
        let shell = self.shells.take(spec);
        let domain = match create(&self.shared, spec, shell) {
            // What is held ready is there for speed alone.
            Err(error @ (Error::Gone | Error::Failed { .. })) if shell.is_some() => {
                // Somebody else may have destroyed it.
                tracing::warn!(%error, "a domain held ready is of no use");
                create(&self.shared, spec, None)?
            }
            Err(Error::NoRoom(_)) if self.drain() > 0 || shell.is_some() => create(&self.shared, spec, None)?,
            other => other?,
        };
        Ok(domain)
    }

    fn domains(&self) -> Result<Vec<DomainInfo>> {
        let domains = list(&self.shared.host)?;
        Ok(domains.iter().filter(|domain| domain.domid != DOM0 && domain.handle != SPARE).map(info).collect())
    }

    fn adopt(&self, domid: u32) -> Result<Arc<dyn Domain>> {
        let host = &self.shared.host;
        let failed = |error| failed(format!("adoption of domain {domid}"), error);
        let domain = host.hypercalls.domain(domid).map_err(failed)?;
        let domain = domain.filter(|domain| !domain.is_dying()).ok_or(Error::Gone)?;
        // Its maker was killed before it let it run, and nobody knows how far it had come.
        if domain.is_paused() && domain.cpu_time_ns == 0 && domain.shutdown().is_none() {
            return Err(failed(io::Error::other("it is only half built")));
        }
        let [console, store_mfn] = builder::pages_for_dom0(host, domid).map_err(failed)?;
        let console = Console::adopt(host.foreign.map(domid, &[console]).map_err(failed)?);
        let port = self.shared.events.bind(domid, CONSOLE_PORT).map_err(failed)?;
        let late = (console.flags() & HOST_NO_STORE != 0).then(|| {
            // The daemon that knew the name has gone; the handle is the next best.
            let name = domain.handle.iter().map(|byte| format!("{byte:02x}")).collect();
            // One with interfaces was made known before it ran.
            Late::Introduce(Registration { name, store_mfn, machine: None, vifs: Vec::new() })
        });
        let held = Held { port, console };
        let domain = XenDomain::new(&self.shared, domid, domain.handle, held, late, Vec::new());
        self.shared.registrar.soon(&domain);
        Ok(domain)
    }

    fn activate(&self, domid: u32) -> Result<()> {
        let hypercalls = &self.shared.host.hypercalls;
        hypercalls.unpause(domid).map_err(|error| failed("unpausing of the domain", error))
    }

    fn destroy(&self, domid: u32) -> Result<()> {
        builder::remove(&self.shared.host, domid)
    }

    fn incoming(&self, arrival: Arrival, description: &Description) -> DomainResult<Box<dyn Incoming>> {
        // What is held ready is there for speed alone; its memory comes back with it.
        let room =
            builder::check_room(&self.shared.host, description.memory.iter().map(|range| range.count).sum());
        if room.is_err() {
            self.drain();
        }
        Ok(Box::new(XenIncoming::create(&self.shared, arrival, description)?))
    }

    fn set_pool(&self, size: u32) -> Result<()> {
        self.pool.set_size(size);
        if size == 0 {
            self.shells.drain();
        }
        Ok(())
    }

    fn pool_ready(&self) -> u32 {
        self.pool.ready()
    }

    fn release_ready(&self) -> bool {
        self.drain() > 0
    }
}

/// Tries on an empty domain whether the hypervisor can track dirty pages.
fn log_dirty(host: &builder::Host) -> bool {
    let Ok(domid) = host.hypercalls.create_domain(SPARE, 1, 1) else { return false };
    let can =
        host.hypercalls.set_max_vcpus(domid, 1).is_ok() && host.hypercalls.enable_log_dirty(domid).is_ok();
    if let Err(error) = host.hypercalls.destroy(domid) {
        tracing::error!(domid, %error, "a domain made to try something stays behind");
    }
    can
}

/// What the daemon has of a running domain. The port is closed before the page is unmapped.
struct Held {
    port: Port,
    console: Console,
}

/// Takes the console of a domain that was just built.
fn hold(shared: &Shared, built: &Built, flags: u32) -> Result<Held> {
    let page = built.map(&shared.host, built.layout.console..built.layout.console + 1)?;
    let console = Console::new(page, flags);
    let port = shared
        .events
        .bind(built.domid, CONSOLE_PORT)
        .map_err(|error| failed("binding of the console's event channel", error))?;
    Ok(Held { port, console })
}

fn pages(memory_kib: u64) -> u64 {
    memory_kib / kib(1)
}

/// Builds a domain, from nothing or in a shell, which is used up however it ends.
fn create(shared: &Arc<Shared>, spec: &DomainSpec, shell: Option<Shell>) -> Result<Arc<XenDomain>> {
    let image = xen_image(&*spec.image)?;
    let kernel = image.image.kernel.as_ref().ok_or_else(no_kernel)?;
    let module = spec.module.as_deref().unwrap_or(&[]);
    let plan = Plan {
        handle: spec.uuid,
        image: &image.image,
        kernel,
        module_pages: builder::module_pages(module),
        module,
        command_line: &spec.command_line,
        pages: pages(spec.memory_kib),
        max_pages: pages(spec.max_memory_kib),
        vcpus: spec.vcpus,
        shell,
    };
    let mut steps = Steps::start();
    let built = builder::build(&shared.host, &plan, &mut steps)?;
    let registration = Registration {
        name: spec.name.clone(),
        store_mfn: built.p2m[built.layout.store as usize],
        machine: (!kernel.is_capsule).then_some((spec.memory_kib, spec.vcpus)),
        vifs: spec.vifs.clone(),
    };
    let domain = finish(shared, &built, spec, registration, shell.is_some(), &mut steps);
    if domain.is_err()
        && let Err(error) = builder::remove(&shared.host, built.domid)
    {
        tracing::error!(domid = built.domid, %error, "half-built domain stays behind");
    }
    domain
}

fn no_kernel() -> Error {
    Error::BadImage("the image is no kernel (no ELF file); build the application with `fcap build`".into())
}

/// The last steps: what the daemon holds of it, its scheduling, and xenstore if it has to be.
fn finish(
    shared: &Arc<Shared>,
    built: &Built,
    spec: &DomainSpec,
    registration: Registration,
    was_shell: bool,
    steps: &mut Steps,
) -> Result<Arc<XenDomain>> {
    let stdin = if spec.stdin { HOST_STDIN } else { 0 };
    // Our library OS waits for xenstored; others take it for granted.
    let is_capsule = registration.machine.is_none();
    let (flags, late) = if was_shell {
        (stdin | HOST_NO_STORE, Some(Late::Shell { name: registration.name, vifs: registration.vifs }))
    } else if is_capsule {
        (stdin | HOST_NO_STORE, Some(Late::Introduce(registration)))
    } else if !registration.vifs.is_empty() {
        (stdin, Some(Late::Introduce(registration)))
    } else {
        builder::register(&shared.host, built.domid, &registration)?;
        steps.end("register");
        (stdin, None)
    };
    let held = hold(shared, built, flags)?;
    steps.end("console");
    set_scheduling(shared, built.domid, spec.cpu_cap, spec.weight)?;
    steps.end("schedule");
    tracing::debug!(domid = built.domid, steps = ?steps.list(), "built a domain");
    Ok(XenDomain::new(shared, built.domid, spec.uuid, held, late, steps.list()))
}

/// Sets cap and weight where they are not Xen's defaults for a new domain.
fn set_scheduling(shared: &Shared, domid: u32, cpu_cap: u16, weight: u16) -> Result<()> {
    if (cpu_cap, weight) == (0, fcap_api::DEFAULT_WEIGHT) {
        return Ok(());
    }
    set_credit2(shared, domid, cpu_cap, weight)
}

fn set_credit2(shared: &Shared, domid: u32, cpu_cap: u16, weight: u16) -> Result<()> {
    if weight == 0 {
        return Err(Error::BadSetting("the weight is 0, it must be at least 1".into()));
    }
    shared.host.hypercalls.set_credit2(domid, weight, cpu_cap).map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => Error::BadSetting(format!(
            "Xen does not take a cap of {cpu_cap} %; it can be at most 100 % for each virtual processor"
        )),
        _ => failed("setting of cap and weight", error),
    })
}

/// A domain that is there.
struct XenDomain {
    shared: Arc<Shared>,
    domid: u32,
    uuid: Uuid,
    /// `None` once it is destroyed.
    held: RwLock<Option<Held>>,
    steps: Vec<(&'static str, u64)>,
    /// What xenstored is told when the domain runs.
    late: Mutex<Option<Late>>,
    /// Itself, for the registrar.
    this: Weak<Self>,
}

/// What xenstored does not know of a domain yet.
#[derive(Debug)]
enum Late {
    /// That it is there.
    Introduce(Registration),
    /// The name of one that was prepared. Its guest is kept from xenstored until then, as all
    /// are; and pages that were mapped are unmapped, which takes as long as all else that is
    /// left to do.
    Prepared {
        /// Its name.
        name: String,
        /// Its network interfaces.
        vifs: Vec<Vif>,
        /// Dropped, that is all.
        boot: Mapping,
    },
    /// Whose a shell has become.
    Shell {
        /// Its name.
        name: String,
        /// Its network interfaces.
        vifs: Vec<Vif>,
    },
}

impl Late {
    fn has_vifs(&self) -> bool {
        match self {
            Self::Introduce(Registration { vifs, .. })
            | Self::Prepared { vifs, .. }
            | Self::Shell { vifs, .. } => !vifs.is_empty(),
        }
    }
}

/// Whose a domain's number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Free,
    Ours,
    Reused,
}

impl XenDomain {
    fn new(
        shared: &Arc<Shared>,
        domid: u32,
        uuid: Uuid,
        held: Held,
        late: Option<Late>,
        steps: Vec<(&'static str, u64)>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            shared: shared.clone(),
            domid,
            uuid,
            held: RwLock::new(Some(held)),
            steps,
            late: Mutex::new(late),
            this: this.clone(),
        })
    }

    fn late(&self) -> MutexGuard<'_, Option<Late>> {
        self.late.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Tells xenstored what it does not know yet.
    fn register(&self) -> Result<()> {
        // Held to the end: whoever finds nothing to be late finds xenstored informed.
        let mut late = self.late();
        match late.take() {
            None => return Ok(()),
            Some(Late::Prepared { name, vifs, boot }) => {
                drop(boot);
                if vifs.is_empty() {
                    self.store_known()?;
                    return self.write("name", &name);
                }
                let path = format!("{}/name", builder::home(self.domid));
                let mut changes = vec![vif::Change::Write(path, name)];
                changes.extend(vif::nodes(self.domid, &vifs));
                let requests: Vec<_> = changes.iter().map(vif::Change::request).collect();
                self.shared.host.store.transaction(&requests, &[]).map_err(store_failed)?;
                return self.store_known();
            }
            Some(Late::Shell { name, vifs }) => {
                Shell::name(&self.shared.host, self.domid, &name, &vifs)?;
                return self.store_known();
            }
            Some(Late::Introduce(registration)) => {
                let look = self.shared.host.hypercalls.domain(self.domid);
                let domain = look.map_err(|error| failed("looking for a domain", error))?;
                if domain.is_some_and(|domain| domain.handle == self.uuid && domain.shutdown().is_none()) {
                    let mut steps = Steps::start();
                    if let Err(error) = builder::register(&self.shared.host, self.domid, &registration) {
                        *late = Some(Late::Introduce(registration));
                        return Err(error);
                    }
                    steps.end("xenstore");
                    self.store_known()?;
                    steps.end("notify");
                    tracing::debug!(domid = self.domid, steps = ?steps.list(), "registered a domain");
                } else {
                    // Ended already; its keys would only have to be removed again.
                    *late = Some(Late::Introduce(registration));
                }
            }
        }
        // Of an end before this xenstored has not told.
        (self.shared.sink)(Event::Domains);
        Ok(())
    }

    /// Shows what is held of the domain to `look`.
    fn with<T>(&self, look: impl FnOnce(&Held) -> Result<T>) -> Result<T> {
        let held = self.held.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        look(held.as_ref().ok_or(Error::Gone)?)
    }

    fn notify(&self, held: &Held) -> Result<()> {
        held.port.notify().map_err(|error| failed("sending of an event", error))
    }

    /// Tells the guest that xenstored takes its requests.
    fn store_known(&self) -> Result<()> {
        self.with(|held| {
            held.console.change_flags(0, HOST_NO_STORE);
            self.notify(held)
        })
    }

    /// Has the library OS go to so many pages, or as near as it can; `check` fails when the domain
    /// has ended.
    fn ask_for_memory(&self, pages: u64, check: impl Fn() -> Result<()>) -> Result<()> {
        let pages = u32::try_from(pages).map_err(|_| {
            Error::BadSetting(format!("{} KiB are more memory than a capsule can have", kib(pages)))
        })?;
        let bell = self.with(|held| Ok(held.port.bell()))?;
        let mut request = None;
        let answered = || -> Result<Option<()>> {
            check()?;
            self.with(|held| match request {
                Some(request) => Ok((held.console.memory_answer() == request).then_some(())),
                None => {
                    // One that has just been started listens when it first waits for anything.
                    let flags = held.console.guest_flags();
                    if flags & GUEST_BALLOONS != 0 {
                        request = Some(held.console.request_memory(pages));
                        self.notify(held)?;
                    } else if flags & GUEST_SUSPENDS != 0 {
                        return Err(Error::NoBalloon);
                    }
                    Ok(None)
                }
            })
        };
        if bell.wait_for(RESIZE_PATIENCE, answered)?.is_some() {
            return Ok(());
        }
        self.with(|held| {
            held.console.withdraw_memory();
            Ok(())
        })?;
        Err(Error::NoAnswer { seconds: RESIZE_PATIENCE.as_secs() })
    }

    /// Gives up what is held and mapped of it; says whether there may be something of it in xenstore.
    fn release(&self) -> bool {
        // An attempt to make interfaces may have left some.
        let is_known =
            !self.late().take().is_some_and(|late| matches!(late, Late::Introduce(_)) && !late.has_vifs());
        *self.held.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = None;
        is_known
    }

    /// Takes it from everybody who knows it by its handle; it is suspended, and will never run again.
    /// Says whether there is something left that [`Remover::remove`] has to remove.
    fn disown(&self) -> Result<bool> {
        self.release();
        match self.look()? {
            Number::Reused => Ok(false),
            Number::Free => builder::remove(&self.shared.host, self.domid).map(|()| false),
            Number::Ours => {
                // Connections break where one of these stays longer than the capsule.
                vif::remove(&self.shared.host, self.domid)?;
                let nobodys = self.shared.host.hypercalls.set_handle(self.domid, SPARE);
                nobodys.map(|()| true).map_err(|error| failed("taking of the domain's handle", error))
            }
        }
    }

    /// Whether the number is free, still this domain's, or that of a later one.
    fn look(&self) -> Result<Number> {
        let domain = self.shared.host.hypercalls.domain(self.domid);
        let domain = domain.map_err(|error| failed("looking for a domain", error))?;
        Ok(match domain {
            None => Number::Free,
            Some(domain) if domain.handle == self.uuid => Number::Ours,
            Some(_) => Number::Reused,
        })
    }

    fn write(&self, node: &str, value: &str) -> Result<()> {
        if self.look()? != Number::Ours {
            return Err(Error::Gone);
        }
        let path = format!("{}/{node}", builder::home(self.domid));
        let request = Request::Write { path: &path, value: value.as_bytes() };
        self.shared.host.store.request(request).map(drop).map_err(store_failed)
    }
}

impl Domain for XenDomain {
    fn domid(&self) -> u32 {
        self.domid
    }

    fn build_steps(&self) -> Vec<(&'static str, u64)> {
        self.steps.clone()
    }

    fn unpause(&self) -> Result<()> {
        if self.late().as_ref().is_some_and(Late::has_vifs) {
            // A daemon that takes it back must find all of it or, if it never ran, none. And
            // netback makes its interfaces while it starts.
            self.register()?;
        }
        let hypercalls = &self.shared.host.hypercalls;
        hypercalls.unpause(self.domid).map_err(|error| failed("unpausing of the domain", error))?;
        if let Some(this) = self.this.upgrade() {
            self.shared.registrar.soon(&this);
        }
        Ok(())
    }

    fn pause(&self) -> Result<()> {
        let hypercalls = &self.shared.host.hypercalls;
        hypercalls.pause(self.domid).map_err(|error| failed("pausing of the domain", error))
    }

    fn request_stop(&self) -> Result<()> {
        self.register()?;
        self.write("control/shutdown", "poweroff")
    }

    fn set_scheduling(&self, cpu_cap: u16, weight: u16) -> Result<()> {
        set_credit2(&self.shared, self.domid, cpu_cap, weight)
    }

    fn resize(&self, memory_kib: u64) -> Result<u64> {
        let Shared { host, .. } = &*self.shared;
        let failed = |error| failed("changing of the domain's memory", error);
        let held = || -> Result<u64> {
            let domain = host.hypercalls.domain(self.domid).map_err(failed)?;
            let alive = |domain: &sys::DomainInfo| {
                domain.handle == self.uuid && !domain.is_dying() && domain.shutdown().is_none()
            };
            Ok(domain.filter(alive).ok_or(Error::Gone)?.pages)
        };
        let (wanted, before) = (pages(memory_kib), held()?);
        if wanted > before && builder::check_room(host, wanted - before).is_err() {
            self.shared.remover.wait();
            builder::check_room(host, wanted - before)?;
        }
        let limit = |pages| host.hypercalls.set_max_memory(self.domid, kib(pages)).map_err(failed);
        limit(wanted.max(before))?;
        let asked = self.ask_for_memory(wanted, || held().map(drop));
        // Whatever it has made of it: it may keep what it has, and take nothing by itself.
        let now = held()?;
        limit(now)?;
        asked?;
        Ok(kib(now))
    }

    fn rename(&self, name: &str) -> Result<()> {
        match &mut *self.late() {
            Some(
                Late::Introduce(Registration { name: late, .. })
                | Late::Prepared { name: late, .. }
                | Late::Shell { name: late, .. },
            ) => *late = name.into(),
            None => return self.write("name", name),
        }
        Ok(())
    }

    fn destroy(&self) -> Result<()> {
        let mut steps = Steps::start();
        let is_known = self.release();
        steps.end("release");
        match self.look()? {
            Number::Reused => {}
            Number::Ours if !is_known => builder::remove_unknown(&self.shared.host, self.domid)?,
            // Somebody else may have destroyed it; its keys are still there.
            Number::Free | Number::Ours => builder::remove(&self.shared.host, self.domid)?,
        }
        steps.end("destroy");
        tracing::debug!(domid = self.domid, steps = ?steps.list(), "destroyed a domain");
        Ok(())
    }

    fn read_output(&self, max: usize, keep: &mut dyn FnMut(&[u8]) -> bool) -> Result<usize> {
        self.with(|held| {
            let outcome = held.console.read_output(max, keep);
            if outcome.notify {
                self.notify(held)?;
            }
            // Its first output, or its end, is out.
            self.shared.registrar.heard_of(self.domid);
            Ok(outcome.len)
        })
    }

    fn output_position(&self) -> Result<u32> {
        self.with(|held| Ok(held.console.output_position()))
    }

    fn write_input(&self, bytes: &[u8]) -> Result<usize> {
        self.with(|held| {
            let len = held.console.write_input(bytes);
            if len > 0 {
                self.notify(held)?;
            }
            Ok(len)
        })
    }

    fn close_input(&self) -> Result<()> {
        self.with(|held| {
            held.console.change_flags(HOST_EOF, 0);
            self.notify(held)
        })
    }

    fn epitaph(&self) -> Option<Epitaph> {
        self.with(|held| Ok(held.console.epitaph())).ok().flatten()
    }

    fn resume(&self) -> Result<()> {
        // `SHUTDOWN_suspend`
        const SUSPEND: u32 = 2;
        let hypercalls = &self.shared.host.hypercalls;
        let failed = |error| failed("resuming of the domain", error);
        self.with(|held| {
            held.console.change_flags(0, HOST_SUSPEND);
            Ok(())
        })?;
        let domain = hypercalls.domain(self.domid).map_err(failed)?.ok_or(Error::Gone)?;
        if domain.handle != self.uuid || domain.shutdown() != Some(SUSPEND) {
            return Ok(());
        }
        let mut context = Context(Box::new(hypercalls.context(self.domid, 0).map_err(failed)?));
        // What the suspend returns where it was cancelled: everything is as it was.
        context.set_result(1);
        hypercalls.set_context(self.domid, 0, &context.0).map_err(failed)?;
        hypercalls.resume(self.domid).map_err(failed)?;
        // If it has noticed this end, it would not tell of the next one.
        if self.late().is_none()
            && let Err(error) = self.shared.host.store.request(Request::Resume(DomId(self.domid as u16)))
        {
            tracing::warn!(domid = self.domid, %error, "xenstored may not notice the capsule's end");
        }
        Ok(())
    }

    fn outgoing(&self, tracking: Tracking) -> DomainResult<Box<dyn Outgoing>> {
        let this = self.this.upgrade().ok_or(fcap_migrate::domain::DomainError::Ended)?;
        let m2p = self.shared.m2p().map_err(source::failed("mapping of Xen's table of frames"))?;
        Ok(Box::new(XenSource::new(&this, m2p, tracking)?))
    }
}
