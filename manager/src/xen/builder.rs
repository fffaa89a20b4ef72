//! Makes a domain, step by step.
//!
//! ```text
//! check         whether there is room
//! create        an empty domain with its vCPUs, limits and two ports for dom0
//! memory        pages from Xen
//! map           those pages that get content, mapped into fcapd
//! fill          kernel, boot module, p2m list, start info, page tables, shared info, grants
//! unmap         because Xen takes no page as a page table that somebody can write to
//! check tables  Xen looks at every entry
//! start         first state of the vCPU
//! ```
//!
//! The domain stays paused. [`register`] makes it known to xenstored: for a capsule only once
//! it runs, because xenstored takes longer for that than everything else does together. A
//! [`Shell`] was created and made known beforehand.
//!
//! Whatever step fails, what was made so far is removed: mappings first, because a mapped page
//! keeps the domain as a zombie.

use std::{io, mem::offset_of, path::Path, sync::Arc, time::Instant};

use xen_proto::{
    DomId,
    balloon::NO_FRAME,
    frame::{Mfn, PAGE_SIZE},
    gnttab,
    start_info::{self, StartInfo},
    xenstore::{Access, Perm, Request},
};

use super::{
    layout::{self, Layout},
    shell::Shell,
    sys::{Foreign, Hypercalls, Mapping, Start},
    vif,
    xenstore::{self, Client},
};
use crate::{
    image::{Image, Kernel},
    toolstack::{Error, Result, Vif},
};

/// Xen's largest extents that a domain gets: 2 MiB.
const MAX_ORDER: u32 = 9;
/// Ports of a new domain, in the order of their making.
pub const STORE_PORT: u32 = 1;
/// See [`STORE_PORT`].
pub const CONSOLE_PORT: u32 = 2;
/// Entries of a new domain's grant table.
pub const CONSOLE_GRANT: usize = 0;
/// See [`CONSOLE_GRANT`].
pub const STORE_GRANT: usize = 1;
/// Memory that Xen itself needs for a domain (structures, vCPU, grant table).
const OVERHEAD_PAGES: u64 = 64;
/// Memory that is never given away, so that Xen can still serve the domains that run.
pub const RESERVE_PAGES: u64 = (4 << 20) / PAGE_SIZE as u64;

/// The doors to the hypervisor and xenstored.
#[derive(Debug)]
pub struct Host {
    /// Hypercalls.
    pub hypercalls: Hypercalls,
    /// Foreign memory.
    pub foreign: Arc<Foreign>,
    /// xenstored.
    pub store: Client,
}

impl Host {
    /// Opens them.
    ///
    /// # Errors
    /// If this is no dom0, or xenstored does not run.
    pub fn open() -> Result<Self> {
        let hypercalls = Hypercalls::open().map_err(|error| failed("opening the door to Xen", error))?;
        let foreign = Foreign::open().map_err(|error| failed("opening /dev/xen/privcmd", error))?;
        let store = Client::connect(Path::new(xenstore::SOCKET)).map_err(store_failed)?;
        Ok(Self { hypercalls, foreign, store })
    }
}

/// Turns an error of a system call into one of the toolstack.
pub fn failed(call: impl Into<String>, source: io::Error) -> Error {
    let call = call.into();
    match source.raw_os_error() {
        Some(libc::ENOMEM) => {
            Error::NoRoom(format!("{call} found no memory; stop other capsules, or use a larger node"))
        }
        Some(libc::ENOSPC) => {
            Error::NoRoom(format!("{call} found no free entry in a table of Xen; stop other capsules"))
        }
        Some(libc::ESRCH) => Error::Gone,
        _ => Error::Failed { call, source },
    }
}

/// As [`failed`], for xenstored.
pub fn store_failed(error: xenstore::Error) -> Error {
    use xen_proto::xenstore::Error as Refusal;
    match &error {
        xenstore::Error::Refused { source: Refusal::Quota | Refusal::OutOfMemory, .. } => {
            Error::NoRoom("xenstored's quota is used up; remove capsules, or raise its limits".into())
        }
        _ => Error::Failed { call: "request to xenstored".into(), source: io::Error::other(error) },
    }
}

/// Where the time went, in order.
#[derive(Clone, Debug)]
pub struct Steps {
    list: Vec<(&'static str, u64)>,
    since: Instant,
}

impl Steps {
    /// Starts the clock.
    pub fn start() -> Self {
        Self { list: Vec::with_capacity(8), since: Instant::now() }
    }

    /// Ends a step.
    pub fn end(&mut self, step: &'static str) {
        let now = Instant::now();
        let took = now.duration_since(self.since);
        self.list.push((step, took.as_nanos() as u64));
        self.since = now;
    }

    /// Steps with nanoseconds.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        self.list.clone()
    }
}

/// What to build.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// The domain's handle.
    pub handle: [u8; 16],
    /// Where the kernel's bytes are.
    pub image: &'a Image,
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Pages set aside for the boot module, which may be longer than it is.
    pub module_pages: u64,
    /// The boot module; empty for none.
    pub module: &'a [u8],
    /// The kernel's command line.
    pub command_line: &'a str,
    /// Pages of memory.
    pub pages: u64,
    /// Pages that it can be given later, with those; a hole until then.
    pub max_pages: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// The domain to build it in, in place of a new one; it has one virtual processor, and is a
    /// capsule.
    pub shell: Option<Shell>,
}

/// Pages that a boot module takes.
pub fn module_pages(module: &[u8]) -> u64 {
    module.len().div_ceil(PAGE_SIZE) as u64
}

/// A domain in the making, removed on drop unless it is kept.
#[derive(Debug)]
struct Unfinished<'a> {
    host: &'a Host,
    domid: u32,
    /// Whether xenstored knows it.
    is_known: bool,
    finished: bool,
}

impl Unfinished<'_> {
    fn keep(mut self) -> u32 {
        self.finished = true;
        self.domid
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let remove = if self.is_known { remove } else { remove_unknown };
        if let Err(error) = remove(self.host, self.domid) {
            tracing::error!(domid = self.domid, %error, "half-built domain stays behind");
        }
    }
}

/// Ends a domain of which xenstored was never told. It may be gone already.
///
/// # Errors
/// If Xen fails.
pub fn remove_unknown(host: &Host, domid: u32) -> Result<()> {
    match host.hypercalls.destroy(domid) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
            Err(failed(format!("destruction of domain {domid}"), error))
        }
        _ => Ok(()),
    }
}

/// Ends a domain and removes its xenstore keys. Any of them may be gone already.
///
/// # Errors
/// If Xen or xenstored fails.
pub fn remove(host: &Host, domid: u32) -> Result<()> {
    use xen_proto::xenstore::Error as Refusal;
    // As long as netback has pages of it mapped, it would stay.
    vif::remove(host, domid)?;
    remove_unknown(host, domid)?;
    match host.store.request(Request::Rm(&home(domid))) {
        Ok(_) | Err(xenstore::Error::Refused { source: Refusal::NotFound, .. }) => Ok(()),
        Err(error) => Err(store_failed(error)),
    }
}

/// Where xenstore has a home for each domain.
const HOMES: &str = "/local/domain";

/// A domain's home in xenstore.
pub fn home(domid: u32) -> String {
    format!("{HOMES}/{domid}")
}

/// Numbers of the domains, dom0 too, that have a home in xenstore, whether they are still there or not.
///
/// # Errors
/// If xenstored fails.
pub fn homes(host: &Host) -> Result<Vec<u32>> {
    vif::children(host, HOMES)
}

/// A built domain, paused.
#[derive(Debug)]
pub struct Built {
    /// Its number.
    pub domid: u32,
    /// Where everything is in it.
    pub layout: Layout,
    /// Machine frames of its pages, but for the hole behind them.
    pub p2m: Vec<u64>,
}

impl Built {
    /// Maps pages of the domain.
    ///
    /// # Errors
    /// If Xen refuses.
    pub fn map(&self, host: &Host, pages: std::ops::Range<u64>) -> Result<Mapping> {
        let frames = &self.p2m[pages.start as usize..pages.end as usize];
        host.foreign.map(self.domid, frames).map_err(|error| failed("mapping of the domain's memory", error))
    }
}

/// Builds a domain.
///
/// # Errors
/// If the plan makes no sense, or the machine has no room. Nothing is left behind then.
pub fn build(host: &Host, plan: &Plan<'_>, steps: &mut Steps) -> Result<Built> {
    let unfinished = |domid, is_known| Unfinished { host, domid, is_known, finished: false };
    // From here on it is used up.
    let shell = plan.shell.map(|shell| unfinished(shell.domid, true));
    let layout = Layout::new(plan.kernel, plan.module_pages, plan.max_pages, plan.pages);
    let layout = layout.map_err(|error| match error {
        layout::Error::TooSmall(pages) => {
            Error::NotEnoughMemory { needed_kib: kib(pages), given_kib: kib(plan.pages) }
        }
        layout::Error::TooLarge(pages) => {
            Error::TooMuchMemory { limit_kib: kib(pages), given_kib: kib(plan.max_pages) }
        }
    })?;
    if plan.command_line.len() >= start_info::COMMAND_LINE_LEN {
        let most = start_info::COMMAND_LINE_LEN - 1;
        return Err(Error::BadSetting(format!(
            "the command line is {} bytes long, a kernel takes at most {most}",
            plan.command_line.len()
        )));
    }
    check_room(host, plan.pages)?;
    steps.end("check");

    let hypercalls = &host.hypercalls;
    let create = |error| failed("creation of a domain", error);
    let unfinished = match shell {
        Some(shell) => shell,
        None => {
            let (vcpus, is_capsule) = (plan.vcpus, plan.kernel.is_capsule);
            unfinished(create_empty(host, plan.handle, vcpus, plan.pages, is_capsule)?, false)
        }
    };
    let Unfinished { domid, is_known, .. } = unfinished;
    steps.end("create");

    let p2m = match plan.shell {
        Some(shell) => {
            hypercalls.set_handle(domid, plan.handle).map_err(create)?;
            hypercalls.set_max_memory(domid, kib(plan.pages)).map_err(create)?;
            populate_around(hypercalls, domid, plan.pages, (layout.store, shell.store_mfn))?
        }
        None => populate(hypercalls, domid, 0, plan.pages)?,
    };
    steps.end("memory");

    let shared_info = hypercalls.domain(domid).map_err(create)?.ok_or(Error::Gone)?.shared_info;
    let grants = hypercalls.grant_frame(domid).map_err(create)?;
    // One mapping for all that gets content: it is one page behind the other up to the page
    // tables, which come right before the stack.
    let first = layout.kernel.start;
    let mut frames = p2m[first as usize..layout.stack as usize].to_vec();
    frames.extend([shared_info, grants]);
    let mapping =
        host.foreign.map(domid, &frames).map_err(|error| failed("mapping of the domain's memory", error))?;
    steps.end("map");

    let elf = &plan.image.file;
    let filler = Filler { mapping: &mapping, first, layout: &layout, p2m: &p2m, elf, is_known };
    filler.fill(plan, shared_info);
    filler.shared_info_and_grants()?;
    steps.end("fill");

    drop(mapping);
    steps.end("unmap");
    let frame = |page: u64| p2m[page as usize];
    let start = |error| failed("start of the domain's first processor", error);
    if let Some(page) = plan.kernel.hypercall_page {
        hypercalls.init_hypercall_page(domid, frame(page)).map_err(start)?;
    }
    let top_table = frame(layout.tables.start);
    hypercalls
        .pin_top_table(domid, top_table)
        .map_err(|error| failed("check of the domain's page tables", error))?;
    steps.end("check tables");
    let state = Start {
        entry: plan.kernel.virt_base.wrapping_add(plan.kernel.entry),
        start_info: layout.address(layout.start_info),
        stack_end: layout.address(layout.stack + 1),
        top_table,
    };
    hypercalls.set_start(domid, &state).map_err(start)?;
    steps.end("start");

    Ok(Built { domid: unfinished.keep(), layout, p2m })
}

/// Checks whether there is room for a domain of so many pages.
///
/// # Errors
/// [`Error::NoRoom`] if there is not.
pub fn check_room(host: &Host, nr_pages: u64) -> Result<()> {
    let machine = host.hypercalls.phys_info().map_err(|error| failed("asking Xen for its memory", error))?;
    let available = machine.free_pages.saturating_sub(RESERVE_PAGES);
    if nr_pages.saturating_add(OVERHEAD_PAGES) > available {
        return Err(Error::NoRoom(format!(
            "the capsule is given {} KiB of memory, {} KiB are free; stop other capsules, or use a larger node",
            kib(nr_pages),
            kib(available.saturating_sub(OVERHEAD_PAGES)),
        )));
    }
    Ok(())
}

/// Makes a domain with vCPUs, limits and the two ports, but without memory.
///
/// # Errors
/// If Xen refuses. Nothing is left behind then.
pub fn create_empty(
    host: &Host,
    handle: [u8; 16],
    vcpus: u32,
    max_pages: u64,
    is_capsule: bool,
) -> Result<u32> {
    let hypercalls = &host.hypercalls;
    // Of the grant table, at most: a capsule's network interface takes a bit more than one, and
    // there are eight.
    let grant_frames = if is_capsule { 16 } else { 32 };
    let create = |error| failed("creation of a domain", error);
    let domid = hypercalls.create_domain(handle, vcpus, grant_frames).map_err(create)?;
    let unfinished = Unfinished { host, domid, is_known: false, finished: false };
    hypercalls.set_max_vcpus(domid, vcpus).map_err(create)?;
    hypercalls.set_max_memory(domid, kib(max_pages)).map_err(create)?;
    hypercalls.set_native_tsc(domid).map_err(create)?;
    for expected in [STORE_PORT, CONSOLE_PORT] {
        let port = hypercalls.alloc_unbound_port(domid).map_err(create)?;
        if port != expected {
            return Err(create(io::Error::other(format!("its port is {port} instead of {expected}"))));
        }
    }
    Ok(unfinished.keep())
}

/// KiB of pages.
pub fn kib(pages: u64) -> u64 {
    pages.saturating_mul(PAGE_SIZE as u64 / 1024)
}

/// Gives the domain `nr_pages` pages from page `first` on, in extents as large as there are;
/// returns their frames.
///
/// # Errors
/// If there is no room.
pub fn populate(hypercalls: &Hypercalls, domid: u32, first: u64, nr_pages: u64) -> Result<Vec<u64>> {
    let mut p2m = Vec::with_capacity(nr_pages as usize);
    for order in (0..=MAX_ORDER).rev() {
        let done = p2m.len() as u64;
        let mut extents: Vec<u64> =
            (0..(nr_pages - done) >> order).map(|extent| first + done + (extent << order)).collect();
        if extents.is_empty() {
            continue;
        }
        let done = hypercalls
            .populate(domid, order, &mut extents)
            .map_err(|error| failed("giving the domain its memory", error))?;
        // What there was none of in this size is tried in the next smaller one.
        for &frame in extents.iter().take(done) {
            p2m.extend(frame..frame + (1 << order));
        }
    }
    if p2m.len() as u64 == nr_pages {
        Ok(p2m)
    } else {
        Err(Error::NoRoom(format!(
            "only {} of {} KiB of memory were left; stop other capsules, or use a larger node",
            kib(p2m.len() as u64),
            kib(nr_pages)
        )))
    }
}

/// As [`populate`] from page 0 on, of a domain that has one page already: its number, which Xen is
/// told, and its frame.
fn populate_around(
    hypercalls: &Hypercalls,
    domid: u32,
    nr_pages: u64,
    (page, frame): (u64, u64),
) -> Result<Vec<u64>> {
    let mut p2m = populate(hypercalls, domid, 0, page)?;
    p2m.push(frame);
    p2m.extend(populate(hypercalls, domid, page + 1, nr_pages - page - 1)?);
    hypercalls
        .set_page_number(domid, frame, page)
        .map_err(|error| failed("numbering of the domain's pages", error))?;
    Ok(p2m)
}

/// Writes a new domain's pages.
struct Filler<'a> {
    /// Pages from `first` to the stack, then shared info, then the grant table.
    mapping: &'a Mapping,
    first: u64,
    layout: &'a Layout,
    p2m: &'a [u64],
    elf: &'a [u8],
    /// Whether xenstored has the domain's ring mapped: then neither the ring nor its grant changes.
    is_known: bool,
}

impl Filler<'_> {
    /// Where in the mapping a page of the domain is.
    fn offset(&self, page: u64) -> usize {
        (page - self.first) as usize * PAGE_SIZE
    }

    fn fill(&self, plan: &Plan<'_>, shared_info: u64) {
        let Self { mapping, layout, p2m, .. } = self;
        // Xen clears pages before it gives them away, but promises it nowhere.
        let mut cleared = self.offset(layout.kernel.start);
        for segment in &plan.kernel.segments {
            let start = segment.memory.start as usize - self.first as usize * PAGE_SIZE;
            let end = segment.memory.end as usize - self.first as usize * PAGE_SIZE;
            mapping.zero(cleared, start - cleared);
            mapping.write(start, &self.elf[segment.file.clone()]);
            cleared = start + segment.file.len();
            mapping.zero(cleared, end - cleared);
            cleared = end;
        }
        mapping.zero(cleared, self.offset(layout.kernel.end) - cleared);

        mapping.write(self.offset(layout.module.start), plan.module);
        let list = self.offset(layout.p2m.start);
        mapping.write_words(list, p2m);
        let hole = vec![NO_FRAME; layout.nr_pages as usize - p2m.len()];
        mapping.write_words(list + size_of_val(*p2m), &hole);
        let used = layout.nr_pages as usize * size_of::<u64>();
        mapping.zero(list + used, self.offset(layout.start_info) - list - used);
        mapping.zero(self.offset(layout.start_info), PAGE_SIZE);
        if !self.is_known {
            mapping.zero(self.offset(layout.store), PAGE_SIZE);
        }
        mapping.zero(self.offset(layout.console), PAGE_SIZE);
        mapping.write_words(self.offset(layout.tables.start), &layout.tables(p2m));

        let at = self.offset(layout.start_info);
        let frame = |page: u64| p2m[page as usize];
        mapping.write(at + offset_of!(StartInfo, magic), start_info::MAGIC);
        mapping.write_u64(at + offset_of!(StartInfo, nr_pages), layout.nr_pages);
        mapping.write_u64(at + offset_of!(StartInfo, shared_info), Mfn(shared_info).address());
        mapping.write_u64(at + offset_of!(StartInfo, store_mfn), frame(layout.store));
        mapping.write_u32(at + offset_of!(StartInfo, store_evtchn), STORE_PORT);
        mapping.write_u64(at + offset_of!(StartInfo, console_mfn), frame(layout.console));
        mapping.write_u32(at + offset_of!(StartInfo, console_evtchn), CONSOLE_PORT);
        mapping.write_u64(at + offset_of!(StartInfo, pt_base), layout.address(layout.tables.start));
        let tables = layout.tables.end - layout.tables.start;
        mapping.write_u64(at + offset_of!(StartInfo, nr_pt_frames), tables);
        mapping.write_u64(at + offset_of!(StartInfo, mfn_list), layout.address(layout.p2m.start));
        write_boot(mapping, at, layout, plan.module.len(), plan.command_line);
    }

    fn shared_info_and_grants(&self) -> Result<()> {
        let Self { mapping, layout, p2m, .. } = self;
        let shared_info = self.offset(layout.stack);
        mapping.zero(shared_info, PAGE_SIZE);
        for vcpu in 0..32 {
            // `evtchn_upcall_mask` of each `vcpu_info`.
            mapping.write(shared_info + 64 * vcpu + 1, &[1]);
        }
        // Xenstored maps its ring by grant, as xenconsoled would.
        let grants = shared_info + PAGE_SIZE;
        let frame = |page: u64| p2m[page as usize];
        grant_to_dom0(mapping, grants, CONSOLE_GRANT, frame(layout.console))?;
        if !self.is_known {
            grant_to_dom0(mapping, grants, STORE_GRANT, frame(layout.store))?;
        }
        Ok(())
    }
}

/// Writes an entry of the grant table at offset `table` of `mapping`, which gives dom0 a page.
///
/// # Errors
/// If the page is where grants do not reach.
pub fn grant_to_dom0(mapping: &Mapping, table: usize, reference: usize, mfn: u64) -> Result<()> {
    let entry = gnttab::Entry { domid: DomId::DOM0, frame: Mfn(mfn) };
    let word = entry.emit(gnttab::PERMIT_ACCESS).ok_or_else(|| {
        Error::NoRoom("the domain's memory lies above 16 TiB, where grants do not reach".into())
    })?;
    mapping.write_u64(table + reference * gnttab::ENTRY_LEN, word);
    Ok(())
}

/// Writes what differs between two starts of the same capsule into the start-info page at
/// offset `at` of `mapping`.
pub fn write_boot(mapping: &Mapping, at: usize, layout: &Layout, module_len: usize, command_line: &str) {
    let start = if module_len == 0 { 0 } else { layout.address(layout.module.start) };
    mapping.write_u64(at + offset_of!(StartInfo, mod_start), start);
    mapping.write_u64(at + offset_of!(StartInfo, mod_len), module_len as u64);
    // The rest of the field is zero since the page was cleared.
    mapping.write(at + offset_of!(StartInfo, cmd_line), command_line.as_bytes());
}

/// Machine frames of the console page and of the xenstore ring of any domain that was built
/// here, by the first entries of its grant table.
///
/// The domain can change the entries; it can only ever name pages of its own.
///
/// # Errors
/// If the domain is gone.
pub fn pages_for_dom0(host: &Host, domid: u32) -> io::Result<[u64; 2]> {
    let frame = host.hypercalls.grant_frame(domid)?;
    let grants = host.foreign.map(domid, &[frame])?;
    Ok([CONSOLE_GRANT, STORE_GRANT].map(|reference| grants.read_u64(reference * gnttab::ENTRY_LEN) >> 32))
}

/// What xenstored is told of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Its name.
    pub name: String,
    /// Machine frame of its xenstore ring.
    pub store_mfn: u64,
    /// For kernels that are not ours: their memory and processors, which they look for.
    pub machine: Option<(u64, u32)>,
    /// Its network interfaces.
    pub vifs: Vec<Vif>,
}

/// Writes the domain's keys in one transaction, and makes its ring known to xenstored.
///
/// # Errors
/// If xenstored refuses. Keys may be left behind then.
pub fn register(host: &Host, domid: u32, registration: &Registration) -> Result<()> {
    let home = home(domid);
    let node = |path: &str| format!("{home}/{path}");
    let guest = DomId(domid as u16);
    let for_reading =
        [Perm { access: Access::None, domid: DomId::DOM0 }, Perm { access: Access::Read, domid: guest }];
    let for_guest = [Perm { access: Access::None, domid: guest }];
    let (name, control) = (node("name"), node("control"));
    // Each message costs several switches between us and xenstored: parents come into being
    // with their first child, and children get the permissions of their parents.
    let mut requests = vec![
        Request::Write { path: &name, value: registration.name.as_bytes() },
        Request::SetPerms { path: &home, perms: &for_reading },
        // Requests to the guest come here; it acknowledges them, and says which it knows.
        Request::Mkdir(&control),
        Request::SetPerms { path: &control, perms: &for_guest },
    ];
    let mut more = Vec::new();
    if let Some((memory_kib, vcpus)) = registration.machine {
        more.push((node("domid"), domid.to_string()));
        more.push((node("memory/target"), memory_kib.to_string()));
        more.push((node("memory/static-max"), memory_kib.to_string()));
        more.extend((0..vcpus).map(|cpu| (node(&format!("cpu/{cpu}/availability")), "online".into())));
    }
    requests.extend(more.iter().map(|(path, value)| Request::Write { path, value: value.as_bytes() }));
    let vifs = vif::nodes(domid, &registration.vifs);
    requests.extend(vifs.iter().map(vif::Change::request));
    let introduce = Request::Introduce { domid: guest, mfn: registration.store_mfn, port: STORE_PORT };
    host.store.transaction(&requests, &[introduce]).map_err(store_failed)
}
