//! The toolstack on a real Xen.
//!
//! A domain is built by [`builder`], or taken from the [pool], where it waits almost
//! finished. What the daemon holds of a domain ([`Held`]: its console page and port) is given
//! up before the domain is destroyed, or it would stay as a zombie.
//!
//! A later daemon finds a domain's console through the `fcap` node that the builder leaves in
//! the domain's part of xenstore. It is written before the domain can run; a domain without
//! it, or one that has never run, is half built.

mod pool;

use std::{
    any::Any,
    io,
    path::Path,
    sync::{Arc, Mutex, OnceLock, RwLock},
};

use fcap_api::ImageKind;
use xen_proto::xenstore::Request;

use super::{
    Domain, DomainInfo, DomainSpec, Epitaph, Error, Event, EventSink, Host, Image, Result, Shutdown, Toolstack,
    Uuid,
};
use crate::{
    image,
    xen::{
        builder::{self, Built, Plan, Record, Steps, failed, kib, store_failed},
        console::Console,
        events::{Events, Port},
        layout::Layout,
        sys::{self, DOM0},
        xenstore,
    },
};
use pool::Pool;

/// Handle of domains that belong to nobody yet: those in the pool, and one to try things with.
/// A daemon that finds some at its start removes them.
const SPARE: Uuid = *b"fcap-spare\0\0\0\0\0\0";

/// Xen's largest number of a domain, plus one.
const MAX_DOMAINS: usize = 0x7ff0;

/// Domains of a real Xen.
pub struct Xen {
    shared: Arc<Shared>,
    pool: Arc<Pool>,
}

/// What the toolstack and each of its domains need.
struct Shared {
    host: builder::Host,
    events: Events,
    /// "Xen 4.17.7".
    version: String,
    /// Whether the hypervisor can track dirty pages; found out when first asked.
    log_dirty: OnceLock<bool>,
}

impl Xen {
    /// Opens the doors of dom0, and removes what an earlier daemon had in its pool.
    ///
    /// # Errors
    /// If this is no dom0 of Xen, or xenstored does not run.
    pub fn new(sink: EventSink) -> Result<Self> {
        let host = builder::Host::open()?;
        let events =
            Events::start(sink.clone()).map_err(|error| failed("opening /dev/xen/evtchn", error))?;
        let version = host.hypercalls.version().map_err(|error| failed("asking Xen for its version", error))?;
        for domain in list(&host)?.iter().filter(|domain| domain.handle == SPARE && !domain.is_dying()) {
            builder::remove(&host, domain.domid)?;
        }
        xenstore::watch(Path::new(xenstore::SOCKET), "@releaseDomain", move || sink(Event::Domains))
            .map_err(store_failed)?;
        let version = format!("Xen {version}");
        let shared = Arc::new(Shared { host, events, version, log_dirty: OnceLock::new() });
        let pool = Pool::start(shared.clone()).map_err(|error| failed("start of a thread", error))?;
        Ok(Self { shared, pool })
    }
}

impl Drop for Xen {
    fn drop(&mut self) {
        self.pool.stop();
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
        max_memory_kib: kib(domain.max_pages),
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
            log_dirty: *self.shared.log_dirty.get_or_init(|| log_dirty(&self.shared.host)),
            dom0_cpu_time_ns: dom0.map_or(0, |dom0| dom0.cpu_time_ns),
        })
    }

    fn parse_image(&self, bytes: Arc<[u8]>) -> Result<Arc<dyn Image>> {
        let image = image::parse(bytes).map_err(|error| Error::BadImage(error.to_string()))?;
        let least_pages = image.kernel.as_ref().map_or(0, |kernel| Layout::least_pages(kernel, 1));
        Ok(Arc::new(XenImage { image, least_pages }))
    }

    fn create(&self, spec: &DomainSpec) -> Result<Arc<dyn Domain>> {
        if let Some(domain) = self.pool.take(spec)? {
            return Ok(domain);
        }
        let domain = match create(&self.shared, spec) {
            // The pool is there for speed alone.
            Err(Error::NoRoom(_)) if self.pool.drain() > 0 => create(&self.shared, spec)?,
            other => other?,
        };
        Ok(Arc::new(domain))
    }

    fn domains(&self) -> Result<Vec<DomainInfo>> {
        let domains = list(&self.shared.host)?;
        Ok(domains.iter().filter(|domain| domain.domid != DOM0 && domain.handle != SPARE).map(info).collect())
    }

    fn adopt(&self, domid: u32) -> Result<Arc<dyn Domain>> {
        let host = &self.shared.host;
        let failed = |error| failed(format!("adoption of domain {domid}"), error);
        let half_built = || failed(io::Error::other("it is only half built"));
        let domain = host.hypercalls.domain(domid).map_err(failed)?;
        let domain = domain.filter(|domain| !domain.is_dying()).ok_or(Error::Gone)?;
        // Its maker was killed before it let it run, and nobody knows how far it had come.
        if domain.is_paused() && domain.cpu_time_ns == 0 && domain.shutdown().is_none() {
            return Err(half_built());
        }
        let node = format!("{}/{}", builder::home(domid), Record::NODE);
        let record = match host.store.request(Request::Read(&node)) {
            Ok(record) => record,
            Err(xenstore::Error::Refused { source: xen_proto::xenstore::Error::NotFound, .. }) => {
                return Err(half_built());
            }
            Err(error) => return Err(store_failed(error)),
        };
        let record = Record::parse(&record).ok_or_else(half_built)?;
        let page = host.foreign.map(domid, &[record.console]).map_err(failed)?;
        let console = Console::adopt(page);
        let port = self.shared.events.bind(domid, record.console_port).map_err(failed)?;
        Ok(Arc::new(XenDomain::new(&self.shared, domid, domain.handle, Held { port, console }, Vec::new())))
    }

    fn destroy(&self, domid: u32) -> Result<()> {
        builder::remove(&self.shared.host, domid)
    }

    fn set_pool(&self, size: u32) -> Result<()> {
        self.pool.set_size(size);
        Ok(())
    }

    fn pool_ready(&self) -> u32 {
        self.pool.ready()
    }
}

/// Tries on an empty domain whether the hypervisor can track dirty pages.
fn log_dirty(host: &builder::Host) -> bool {
    let Ok(domid) = host.hypercalls.create_domain(SPARE, 1, 1) else { return false };
    let can = host.hypercalls.set_max_vcpus(domid, 1).is_ok() && host.hypercalls.enable_log_dirty(domid).is_ok();
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
fn hold(shared: &Shared, built: &Built, stdin: bool) -> Result<Held> {
    let page = built.map(&shared.host, built.layout.console..built.layout.console + 1)?;
    let console = Console::new(page, stdin);
    let port = shared
        .events
        .bind(built.domid, built.console_port)
        .map_err(|error| failed("binding of the console's event channel", error))?;
    Ok(Held { port, console })
}

fn pages(memory_kib: u64) -> u64 {
    memory_kib / kib(1)
}

/// Builds a domain from nothing.
fn create(shared: &Arc<Shared>, spec: &DomainSpec) -> Result<XenDomain> {
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
        nr_pages: pages(spec.memory_kib),
        vcpus: spec.vcpus,
    };
    let mut steps = Steps::start();
    let built = builder::build(&shared.host, &plan, &spec.name, &mut steps)?;
    let domain = finish(shared, &built, spec, &mut steps);
    if domain.is_err()
        && let Err(error) = builder::remove(&shared.host, built.domid)
    {
        tracing::error!(domid = built.domid, %error, "half-built domain stays behind");
    }
    domain
}

fn no_kernel() -> Error {
    Error::BadImage(
        "the image is no kernel (neither an ELF file nor a bzImage); build the application with `fcap build`"
            .into(),
    )
}

/// The last steps: what the daemon holds of it, and its scheduling.
fn finish(shared: &Arc<Shared>, built: &Built, spec: &DomainSpec, steps: &mut Steps) -> Result<XenDomain> {
    let held = hold(shared, built, spec.stdin)?;
    steps.end("console");
    set_scheduling(shared, built.domid, spec.cpu_cap, spec.weight)?;
    steps.end("schedule");
    tracing::debug!(domid = built.domid, steps = ?steps.list(), "built a domain");
    Ok(XenDomain::new(shared, built.domid, spec.uuid, held, steps.list()))
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
    /// A name that xenstore does not have yet: it is written only when the domain runs, because
    /// nobody waits for it.
    new_name: Mutex<Option<String>>,
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
        steps: Vec<(&'static str, u64)>,
    ) -> Self {
        let held = RwLock::new(Some(held));
        Self { shared: shared.clone(), domid, uuid, held, steps, new_name: Mutex::new(None) }
    }

    /// Shows what is held of the domain to `look`.
    fn with<T>(&self, look: impl FnOnce(&Held) -> Result<T>) -> Result<T> {
        let held = self.held.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        look(held.as_ref().ok_or(Error::Gone)?)
    }

    fn notify(&self, held: &Held) -> Result<()> {
        held.port.notify().map_err(|error| failed("sending of an event", error))
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
        let hypercalls = &self.shared.host.hypercalls;
        hypercalls.unpause(self.domid).map_err(|error| failed("unpausing of the domain", error))?;
        let name = self.new_name.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(name) = name
            && let Err(error) = self.rename(&name)
        {
            // Only people who look with other tools miss it.
            tracing::warn!(domid = self.domid, %error, "the domain's name is not in xenstore");
        }
        Ok(())
    }

    fn pause(&self) -> Result<()> {
        let hypercalls = &self.shared.host.hypercalls;
        hypercalls.pause(self.domid).map_err(|error| failed("pausing of the domain", error))
    }

    fn request_stop(&self) -> Result<()> {
        self.write("control/shutdown", "poweroff")
    }

    fn set_scheduling(&self, cpu_cap: u16, weight: u16) -> Result<()> {
        set_credit2(&self.shared, self.domid, cpu_cap, weight)
    }

    fn rename(&self, name: &str) -> Result<()> {
        self.write("name", name)
    }

    fn destroy(&self) -> Result<()> {
        let mut held = self.held.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        *held = None;
        match self.look()? {
            Number::Reused => Ok(()),
            // Somebody else has destroyed it; its keys may still be there.
            Number::Free | Number::Ours => builder::remove(&self.shared.host, self.domid),
        }
    }

    fn read_output(&self, max: usize, keep: &mut dyn FnMut(&[u8]) -> bool) -> Result<usize> {
        self.with(|held| {
            let outcome = held.console.read_output(max, keep);
            if outcome.notify {
                self.notify(held)?;
            }
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
            held.console.close_input();
            self.notify(held)
        })
    }

    fn epitaph(&self) -> Option<Epitaph> {
        self.with(|held| Ok(held.console.epitaph())).ok().flatten()
    }
}
