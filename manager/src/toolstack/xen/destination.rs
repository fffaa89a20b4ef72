//! A domain that arrives, as the migration engine sees it.
//!
//! It is built empty, with all its memory, before anything else comes. Until it is complete its
//! handle is that of domains that belong to nobody, so that a daemon that finds it after a crash
//! removes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    mem::offset_of,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use fcap_migrate::{
    bitmap::PageBitmap,
    domain::{
        Description, DestinationDomain, DomainError, DomainResult, FinalState, Page, PfnRange, Refusal,
        RefusalCause, State, Table, state,
    },
    page::{Level, PageType},
};
use xen_proto::{
    DomId,
    balloon::NO_FRAME,
    boot,
    console::{HOST_EOF, HOST_NO_STORE, HOST_STDIN},
    frame::{Mfn, PAGE_SIZE, Pfn},
    gnttab,
    start_info::StartInfo,
    suspend,
};

use super::{
    Domain, Held, Late, Registration, SPARE, Shared, Steps, XenDomain, builder,
    source::{SUSPENDED_AT, failed, nonsense, toolstack_failed},
};
use crate::{
    clock::now_ns,
    toolstack::{Arrival, Error, Incoming},
    xen::{
        builder::{CONSOLE_PORT, STORE_PORT},
        console::Console,
        context::Context,
        shared_info,
        sys::{Mapping, TableOp, Window, Windows},
    },
};

/// Entries of a list of memory in a page.
const PER_PAGE: usize = PAGE_SIZE / 8;

/// A domain in the making; removed on drop unless it has been made to run.
pub(super) struct XenIncoming {
    shared: Arc<Shared>,
    arrival: Arrival,
    domid: u32,
    /// Frame of each page.
    p2m: Vec<u64>,
    /// Pages that the list is in.
    list: Vec<PfnRange>,
    vcpus: u32,
    memory_kib: u64,
    windows: Windows,
    /// Pages that are still as Xen gave them, which is zero.
    fresh: Mutex<PageBitmap>,
    /// Pages that Xen has been given as page tables already.
    pinned: Mutex<BTreeSet<u64>>,
    /// Whether xenstored knows it, and its interfaces are being made.
    known: AtomicBool,
    finished: Option<Arc<XenDomain>>,
    steps: Steps,
    kept: bool,
}

/// What is left to do about pins in the end.
#[derive(Debug, PartialEq, Eq)]
struct Pins {
    /// Tables to be pinned.
    lacking: Vec<(u64, Level)>,
    /// Those to be let go of afterwards: they are held by tables above them.
    needless: Vec<u64>,
}

impl Pins {
    /// `pinned` are tables of level 1 that were pinned beforehand, whose content is the last one.
    fn new(tables: &[Table], pinned: &BTreeSet<u64>) -> Self {
        let of_domain: BTreeMap<u64, Level> = tables
            .iter()
            .filter_map(|table| match table.page_type {
                PageType::Table { level, pinned: true } => Some((table.pfn.0, level)),
                _ => None,
            })
            .collect();
        // Xen refuses to pin a table once more. Linux has most of level 1 pinned itself.
        let is_done = |page, level| level == Level::L1 && pinned.contains(page);
        let lacking = of_domain.iter().filter(|&(page, &level)| !is_done(page, level));
        Self {
            lacking: lacking.map(|(&page, &level)| (page, level)).collect(),
            needless: pinned.iter().copied().filter(|page| !of_domain.contains_key(page)).collect(),
        }
    }
}

fn refused(cause: RefusalCause, message: String) -> DomainError {
    Refusal { cause, message }.into()
}

/// What a toolstack's error is to the other side.
fn refusal(error: Error) -> DomainError {
    match error {
        Error::NoRoom(message) => refused(RefusalCause::Memory, message),
        other => toolstack_failed(other),
    }
}

/// Whether a hypervisor with this command line clears memory before it gives it away: what it found
/// when it was booted, and what domains give back that run on.
fn is_scrubbed(command_line: &str) -> bool {
    is_on(command_line, "bootscrub", true) && is_on(command_line, "scrub-domheap", false)
}

/// Whether an option is on that is `default` where it is not given.
fn is_on(command_line: &str, name: &str, default: bool) -> bool {
    // The last one counts.
    let mut words = command_line.split_whitespace().filter_map(|option| {
        if let Some(option) = option.strip_prefix("no-") {
            return (option == name).then_some(false);
        }
        match option.strip_prefix(name)? {
            "" => Some(true),
            value => {
                value.strip_prefix('=').map(|value| !["0", "no", "off", "false", "disable"].contains(&value))
            }
        }
    });
    words.next_back().unwrap_or(default)
}

/// The first word with features that are wanted and are not here.
fn lacking(wanted: &[u32], here: &[u32]) -> Option<String> {
    wanted.iter().enumerate().find_map(|(word, &wanted)| {
        // Whether there are several processors (HTT, CMP_LEGACY) says nothing of any instruction.
        let of_topology = match word {
            0 => 1 << 28,
            3 => 1 << 1,
            _ => 0,
        };
        let lacking = wanted & !here.get(word).copied().unwrap_or(0) & !of_topology;
        (lacking != 0).then(|| format!("word {word}, bits {lacking:#x}"))
    })
}

/// Checks whether this machine can run what is described.
fn check(shared: &Shared, description: &Description) -> DomainResult<()> {
    let here = shared.host.hypercalls.cpu_features();
    let here = here.map_err(failed("asking Xen for the processor's features"))?;
    if let Some(lacking) = lacking(&description.cpu_features, &here) {
        let message = format!(
            "this node's processor lacks features that the capsule may use (of Xen's feature set: {lacking}); \
             choose a node with the same kind of processor"
        );
        return Err(refused(RefusalCause::Cpu, message));
    }
    Ok(())
}

impl XenIncoming {
    pub(super) fn create(
        shared: &Arc<Shared>,
        arrival: Arrival,
        description: &Description,
    ) -> DomainResult<Self> {
        check(shared, description)?;
        let memory: u64 = description.memory.iter().map(|range| range.count).sum();
        let mut steps = Steps::start();
        let host = &shared.host;
        builder::check_room(host, memory).map_err(refusal)?;
        let domid = builder::create_empty(
            host,
            SPARE,
            description.vcpus,
            memory.max(description.max_pages),
            arrival.is_capsule,
        );
        let domid = domid.map_err(refusal)?;
        let mut incoming = Self {
            shared: shared.clone(),
            arrival,
            domid,
            p2m: vec![NO_FRAME; description.nr_pages as usize],
            list: description.p2m.clone(),
            vcpus: description.vcpus,
            windows: Windows::new(&host.foreign, domid, true),
            memory_kib: builder::kib(description.max_pages),
            fresh: Mutex::new(PageBitmap::new(description.nr_pages)),
            pinned: Mutex::default(),
            known: AtomicBool::new(false),
            finished: None,
            steps: Steps::start(),
            kept: false,
        };
        steps.end("create");
        for range in &description.memory {
            let frames =
                builder::populate(&host.hypercalls, domid, range.first.0, range.count).map_err(refusal)?;
            let first = range.first.0 as usize;
            let slots = incoming.p2m.get_mut(first..first + frames.len());
            slots
                .ok_or_else(|| nonsense("memory beyond the domain's last page".into()))?
                .copy_from_slice(&frames);
        }
        steps.end("memory");
        if incoming.is_given_zero()? {
            let fresh = incoming.fresh.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
            description.memory.iter().for_each(|range| fresh.insert_range(*range));
        }
        incoming.write_list()?;
        steps.end("list of memory");
        incoming.grant()?;
        steps.end("grants");
        tracing::debug!(domid, steps = ?steps.list(), "made room for a domain");
        Ok(incoming)
    }

    fn host(&self) -> &builder::Host {
        &self.shared.host
    }

    fn frame(&self, page: u64) -> Option<u64> {
        self.p2m.get(usize::try_from(page).ok()?).copied().filter(|&frame| frame != NO_FRAME)
    }

    fn frames(&self, pages: impl Iterator<Item = u64>) -> DomainResult<Vec<u64>> {
        let frames = pages.map(|page| self.frame(page)).collect::<Option<Vec<_>>>();
        frames.ok_or_else(|| nonsense("a page without memory is named".into()))
    }

    /// Pages to be written, in passing.
    fn show(&self, pages: &[Pfn]) -> DomainResult<Window<'_>> {
        let frames = self.frames(pages.iter().map(|pfn| pfn.0))?;
        let (window, there) =
            self.windows.show(&frames).map_err(failed("mapping of the new domain's memory"))?;
        if there.iter().all(|&there| there) { Ok(window) } else { Err(DomainError::Ended) }
    }

    fn map(&self, frames: &[u64]) -> DomainResult<Mapping> {
        self.host().foreign.map(self.domid, frames).map_err(failed("mapping of the new domain's memory"))
    }

    /// Whether Xen has cleared the memory that it gave. It does unless it was told otherwise when
    /// it was booted, or is built to find errors: then there is a pattern in all pages.
    fn is_given_zero(&self) -> DomainResult<bool> {
        let command_line = self.host().hypercalls.command_line();
        let command_line = command_line.map_err(failed("asking Xen for its command line"))?;
        let sample = self.p2m.iter().find(|&&frame| frame != NO_FRAME);
        let Some(&frame) = sample else { return Ok(false) };
        let mut page = [0; PAGE_SIZE];
        self.map(&[frame])?.read(0, &mut page);
        Ok(is_scrubbed(&command_line) && page.iter().all(|&byte| byte == 0))
    }

    /// Notes that pages are not as Xen gave them any more.
    fn touch(&self, pfns: &[Pfn]) {
        let mut fresh = self.fresh.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        pfns.iter().for_each(|&pfn| fresh.remove(pfn));
    }

    /// Writes the list of memory into the guest.
    fn write_list(&self) -> DomainResult<()> {
        let pages = self.list.iter().flat_map(|range| range.first.0..range.first.0 + range.count);
        let frames = self.frames(pages)?;
        if frames.len() < self.p2m.len().div_ceil(PER_PAGE) {
            return Err(nonsense("the list of memory is too short for it".into()));
        }
        let mapping = self.map(&frames)?;
        mapping.write_words(0, &self.p2m);
        let used = self.p2m.len() * 8;
        mapping.zero(used, frames.len() * PAGE_SIZE - used);
        Ok(())
    }

    /// Lets go of tables that are about to be written.
    fn unpin(&self, pfns: &[Pfn]) -> DomainResult<()> {
        let mut pinned = self.pinned.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if pinned.is_empty() {
            return Ok(());
        }
        let ops: Vec<_> = pfns
            .iter()
            .filter(|pfn| pinned.remove(&pfn.0))
            .filter_map(|pfn| Some((TableOp::Unpin, self.frame(pfn.0)?)))
            .collect();
        if ops.is_empty() {
            return Ok(());
        }
        self.host().hypercalls.table_ops(self.domid, &ops).map_err(failed("release of page tables"))
    }

    fn state(states: &[State], kind: u16, index: u16) -> Option<&[u8]> {
        states.iter().find(|state| (state.kind, state.index) == (kind, index)).map(|state| &*state.bytes)
    }

    /// Pages that the domain had given back.
    fn give_back(&mut self, absent: &[PfnRange]) -> DomainResult<()> {
        if absent.is_empty() {
            return Ok(());
        }
        let pages: Vec<u64> =
            absent.iter().flat_map(|range| range.first.0..range.first.0 + range.count).collect();
        // What is pinned stays the domain's.
        self.unpin(&pages.iter().copied().map(Pfn).collect::<Vec<_>>())?;
        let mut frames = self.frames(pages.iter().copied())?;
        let taken = self.host().hypercalls.take_pages(self.domid, &mut frames);
        taken.map_err(failed("taking back of memory"))?;
        pages.into_iter().for_each(|page| self.p2m[page as usize] = NO_FRAME);
        self.write_list()
    }

    /// Has Xen check the page tables.
    fn pin(&mut self, tables: &[Table]) -> DomainResult<()> {
        let pinned = self.pinned.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        let pins = Pins::new(tables, &std::mem::take(pinned));
        let hypercalls = &self.host().hypercalls;
        let pin = |&(page, level)| Some((TableOp::Pin(level as u8), self.frame(page)?));
        let ops: Vec<_> = pins.lacking.iter().filter_map(pin).collect();
        hypercalls.table_ops(self.domid, &ops).map_err(failed("check of the domain's page tables"))?;
        let unpin = |&page| Some((TableOp::Unpin, self.frame(page)?));
        let ops: Vec<_> = pins.needless.iter().filter_map(unpin).collect();
        hypercalls.table_ops(self.domid, &ops).map_err(failed("release of page tables"))
    }

    fn vcpus(&self, states: &[State], start_info: u64) -> DomainResult<()> {
        let hypercalls = &self.host().hypercalls;
        let domid = self.domid;
        let what = || failed("setting of the processor's state");
        for vcpu in 0..self.vcpus {
            let index = vcpu as u16;
            let Some(bytes) = Self::state(states, state::VCPU_CONTEXT, index) else {
                // One that was never brought up.
                continue;
            };
            let context = Context::from_bytes(bytes);
            let mut context =
                context.ok_or_else(|| nonsense("a processor's state has another length".into()))?;
            context.translate(|page| self.frame(page)).map_err(|error| nonsense(error.to_string()))?;
            context.set_online();
            if vcpu == 0 {
                // Of the hypercall by which it suspended.
                context.set_rdx(start_info);
                context.set_result(0);
            }
            hypercalls.set_context(domid, vcpu, &context.0).map_err(what())?;
            if let Some(bytes) = Self::state(states, state::VCPU_EXTENDED, index) {
                hypercalls.set_extended_context(domid, vcpu, bytes).map_err(what())?;
            }
            if let Some(bytes) = Self::state(states, state::VCPU_XSAVE, index) {
                hypercalls.set_extended_state(domid, vcpu, bytes).map_err(what())?;
            }
        }
        Ok(())
    }

    /// Machine frames of console page and xenstore ring.
    fn shared_frames(&self) -> DomainResult<[u64; 2]> {
        let places = self.arrival.places;
        let lacking = || nonsense("console or xenstore ring are not in the domain's memory".into());
        Ok([self.frame(places.console).ok_or_else(lacking)?, self.frame(places.store).ok_or_else(lacking)?])
    }

    /// Lets dom0's daemons have the pages that they share with the guest.
    fn grant(&self) -> DomainResult<()> {
        let table =
            self.host().hypercalls.grant_frame(self.domid).map_err(failed("making of a grant table"))?;
        let table = self.map(&[table])?;
        for (reference, frame) in self.shared_frames()?.into_iter().enumerate() {
            let entry = gnttab::Entry { domid: DomId::DOM0, frame: Mfn(frame) };
            let word = entry.emit(gnttab::PERMIT_ACCESS);
            let word = word.ok_or_else(|| {
                refused(
                    RefusalCause::Memory,
                    "its memory lies above 16 TiB, where grants do not reach".into(),
                )
            })?;
            table.write_u64(reference * gnttab::ENTRY_LEN, word);
        }
        Ok(())
    }

    fn registration(&self) -> Registration {
        Registration {
            name: self.arrival.name.clone(),
            store_mfn: self.frame(self.arrival.places.store).unwrap_or(NO_FRAME),
            machine: (!self.arrival.is_capsule).then_some((self.memory_kib, self.vcpus)),
            vifs: self.arrival.vifs.clone(),
        }
    }

    /// Makes it known to xenstored, so that backends have time to make its interfaces.
    fn make_known(&self) -> DomainResult<()> {
        if !self.known.swap(true, Ordering::Relaxed) {
            builder::register(self.host(), self.domid, &self.registration()).map_err(toolstack_failed)?;
        }
        Ok(())
    }

    /// Tells the guest where everything is now.
    fn pages(&self, states: &[State], start_info: u64) -> DomainResult<()> {
        let info = self.host().hypercalls.domain(self.domid).map_err(failed("looking for the new domain"))?;
        let shared_info = info.ok_or(DomainError::Ended)?.shared_info;
        let mapping = self.map(&[start_info, shared_info])?;
        let [console, store] = self.shared_frames()?;
        mapping.write_u64(offset_of!(StartInfo, nr_pages), self.p2m.len() as u64);
        mapping.write_u64(offset_of!(StartInfo, shared_info), Mfn(shared_info).address());
        mapping.write_u32(offset_of!(StartInfo, flags), 0);
        mapping.write_u64(offset_of!(StartInfo, store_mfn), store);
        mapping.write_u32(offset_of!(StartInfo, store_evtchn), STORE_PORT);
        mapping.write_u64(offset_of!(StartInfo, console_mfn), console);
        mapping.write_u32(offset_of!(StartInfo, console_evtchn), CONSOLE_PORT);
        let old = Self::state(states, state::SHARED_INFO, 0).and_then(|bytes| bytes.try_into().ok());
        let old: &[u8; PAGE_SIZE] = old.ok_or_else(|| nonsense("there is no shared info".into()))?;
        let cr3 = self.frame(shared_info::p2m_cr3(old) >> 12).map_or(0, |frame| frame << 12);
        mapping.write(PAGE_SIZE, &shared_info::restored(old, cr3));
        Ok(())
    }

    /// What is new to a capsule that goes on, whose state came at that moment.
    fn records(&self, states: &[State], came: Instant) -> Vec<u8> {
        let suspended = Self::state(states, SUSPENDED_AT, 0).unwrap_or_default();
        let moves = self.arrival.reason == suspend::Reason::Migrate;
        let stood = stood_ns(suspended, moves.then(|| came.elapsed()), now_ns());
        records(stood, self.arrival.identity.as_ref())
    }

    fn hold(&self, states: &[State], came: Instant) -> DomainResult<Held> {
        let frame = self.frame(self.arrival.places.console);
        let page = self.map(&[frame.ok_or_else(|| nonsense("there is no console page".into()))?])?;
        let console = Console::adopt(page);
        let keep = console.flags() & (HOST_STDIN | HOST_EOF);
        let is_late = self.arrival.is_capsule && !self.known.load(Ordering::Relaxed);
        let late = if is_late { HOST_NO_STORE } else { 0 };
        let flags = keep | late | self.arrival.reason.bits();
        console.change_flags(flags, !flags);
        if self.arrival.is_capsule {
            console.write_resume(&self.records(states, came));
        }
        let port = self.shared.events.bind(self.domid, CONSOLE_PORT);
        Ok(Held { port: port.map_err(failed("binding of the console's event channel"))?, console })
    }
}

/// Records for a capsule that has stood still for so many nanoseconds, and for one that is new its
/// name and interfaces.
fn records(stood: u64, identity: Option<&(String, Vec<boot::Net>)>) -> Vec<u8> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).expect("the kernel gives randomness");
    let mut records = Vec::new();
    boot::begin(&mut records);
    boot::record(&mut records, boot::Kind::Seed, &seed);
    boot::record(&mut records, boot::Kind::Stood, &stood.to_le_bytes());
    if let Some((name, nets)) = identity {
        boot::record(&mut records, boot::Kind::Name, name.as_bytes());
        nets.iter().for_each(|net| boot::record(&mut records, boot::Kind::Net, &net.emit()));
    }
    boot::record(&mut records, boot::Kind::End, &[]);
    records
}

impl DestinationDomain for XenIncoming {
    fn mfn_of(&self, pfn: Pfn) -> Option<Mfn> {
        self.frame(pfn.0).map(Mfn)
    }

    fn write_pages(&self, pfns: &[Pfn], _types: &[PageType], pages: &[Page]) -> DomainResult<()> {
        self.unpin(pfns)?;
        self.touch(pfns);
        let window = self.show(pfns)?;
        for (index, (pfn, page)) in pfns.iter().zip(pages).enumerate() {
            // What xenstored has in its ring is newer.
            if pfn.0 != self.arrival.places.store || !self.known.load(Ordering::Relaxed) {
                window.write(index * PAGE_SIZE, page);
            }
        }
        Ok(())
    }

    fn clear_pages(&self, pages: PfnRange) -> DomainResult<()> {
        const AT_ONCE: usize = 256;
        let is_ours = |pfn: &u64| *pfn != self.arrival.places.store || !self.known.load(Ordering::Relaxed);
        let all = pages.first.0..pages.first.0 + pages.count;
        let pfns: Vec<Pfn> = {
            let fresh = self.fresh.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            all.filter(is_ours).map(Pfn).filter(|&pfn| !fresh.contains(pfn)).collect()
        };
        for pfns in pfns.chunks(AT_ONCE) {
            self.unpin(pfns)?;
            self.show(pfns)?.zero(0, pfns.len() * PAGE_SIZE);
        }
        Ok(())
    }

    fn prepare(&self, tables: &[Table]) -> DomainResult<()> {
        let lowest = |table: &&Table| table.page_type.level() == Some(Level::L1);
        let tables: Vec<(u64, u64)> = tables
            .iter()
            .filter(lowest)
            .filter_map(|table| Some((table.pfn.0, self.frame(table.pfn.0)?)))
            .collect();
        if !self.arrival.vifs.is_empty() {
            self.make_known()?;
        }
        // What may be written to is no page table for Xen.
        self.windows.clear();
        let hypercalls = &self.host().hypercalls;
        let mut pinned = self.pinned.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for &(page, frame) in tables.iter().filter(|(page, _)| !pinned.contains(page)).collect::<Vec<_>>() {
            // One that was caught in the midst of a change is checked in the end.
            if hypercalls.table_ops(self.domid, &[(TableOp::Pin(1), frame)]).is_ok() {
                pinned.insert(page);
            }
        }
        Ok(())
    }

    fn finish(&mut self, last: FinalState) -> DomainResult<()> {
        let came = Instant::now();
        self.steps = Steps::start();
        self.windows.clear();
        self.give_back(&last.absent)?;
        let start_info = Self::state(&last.states, state::START_INFO, 0);
        let start_info = start_info.and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)));
        let start_info = start_info.and_then(|page| self.frame(page));
        let start_info = start_info.ok_or_else(|| nonsense("there is no start info".into()))?;
        self.pages(&last.states, start_info)?;
        self.steps.end("pages");
        self.pin(&last.tables)?;
        self.steps.end("check tables");
        self.vcpus(&last.states, start_info)?;
        self.steps.end("processors");
        let held = self.hold(&last.states, came)?;
        let hypercalls = &self.host().hypercalls;
        hypercalls.set_handle(self.domid, self.arrival.uuid).map_err(failed("naming of the domain"))?;
        let late = if !self.arrival.is_capsule || self.known.load(Ordering::Relaxed) {
            self.make_known()?;
            None
        } else {
            Some(Late::Introduce(self.registration()))
        };
        super::set_scheduling(&self.shared, self.domid, self.arrival.cpu_cap, self.arrival.weight)
            .map_err(toolstack_failed)?;
        self.steps.end("console");
        let steps = self.steps.list();
        tracing::debug!(domid = self.domid, ?steps, "completed a domain");
        self.finished = Some(XenDomain::new(&self.shared, self.domid, self.arrival.uuid, held, late, steps));
        Ok(())
    }

    fn activate(&mut self) -> DomainResult<()> {
        let domain = self.finished.as_ref().ok_or_else(|| nonsense("it is not complete".into()))?;
        self.kept = true;
        domain.unpause().map_err(toolstack_failed)
    }

    fn destroy(&mut self) {
        if std::mem::replace(&mut self.kept, true) {
            return;
        }
        self.windows.clear();
        let removed = match self.finished.take() {
            Some(domain) => Domain::destroy(&*domain),
            None => builder::remove(&self.shared.host, self.domid),
        };
        if let Err(error) = removed {
            tracing::error!(domid = self.domid, %error, "half a domain stays behind");
        }
    }
}

impl Drop for XenIncoming {
    fn drop(&mut self) {
        DestinationDomain::destroy(self);
    }
}

impl Incoming for XenIncoming {
    fn domid(&self) -> u32 {
        self.domid
    }

    fn domain(&self) -> DomainResult<Arc<dyn Domain>> {
        match &self.finished {
            Some(domain) => Ok(domain.clone()),
            None => Err(DomainError::Failed {
                call: "taking over of a domain".into(),
                source: Box::new(io::Error::other("it is not complete")),
            }),
        }
    }
}

/// For how long a domain has stood still, by what its source says of that ([`SUSPENDED_AT`]), how long
/// it has been here if it came from another node, and the wall clock. Whatever the source says, it is
/// no moment before it was suspended.
fn stood_ns(suspended: &[u8], here: Option<Duration>, now_ns: u64) -> u64 {
    let (numbers, _) = suspended.as_chunks();
    match (numbers, here) {
        // Clocks of two nodes differ, by hours perhaps. So each says how long it took.
        (&[_, there, ..], Some(here)) => {
            let here = u64::try_from(here.as_nanos()).unwrap_or(u64::MAX);
            u64::from_le_bytes(there).saturating_add(here)
        }
        // It lay in a file, and nobody has looked at a clock meanwhile.
        (&[since, ..], _) => now_ns.saturating_sub(u64::from_le_bytes(since)),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use xen_proto::console::{RESUME_HEAD, RESUME_LEN};

    use super::*;

    #[test]
    fn the_clocks_of_nodes_say_nothing_of_how_long_a_move_took() {
        let state = [3_600_000_000_000_u64, 5_000_000].map(u64::to_le_bytes).concat();
        let here = Some(Duration::from_millis(7));
        // This node's clock is an hour behind, right, an hour ahead.
        for now in [0, 3_600_000_000_000, 7_200_000_000_000] {
            assert_eq!(stood_ns(&state, here, now), 12_000_000);
        }
        assert_eq!(stood_ns(&state, None, 3_600_000_000_009), 9);
        assert_eq!(stood_ns(&state, None, 0), 0, "time does not run backwards");
        let lies = [0, u64::MAX].map(u64::to_le_bytes).concat();
        assert_eq!(stood_ns(&lies, here, 0), u64::MAX);
        assert_eq!(stood_ns(&[], here, 9), 0);
    }

    #[test]
    fn tables_are_pinned_once_and_only_those_that_the_domain_has_pinned() {
        let table =
            |page, level, pinned| Table { pfn: Pfn(page), page_type: PageType::Table { level, pinned } };
        let tables = [
            table(1, Level::L1, false),
            table(2, Level::L1, true),
            table(3, Level::L1, false),
            table(4, Level::L1, true),
            table(5, Level::L2, false),
            table(6, Level::L4, true),
        ];
        let pins = Pins::new(&tables, &BTreeSet::from([1, 2]));
        let lacking = vec![(4, Level::L1), (6, Level::L4)];
        assert_eq!(pins, Pins { lacking, needless: vec![1] });
    }

    #[test]
    fn features_must_be_here_but_processors_need_not_be_as_many() {
        let (one, several) = ([0x0789_cbf5, 0, 0, 0], [0x1789_cbf5, 0, 0, 2]);
        assert_eq!(lacking(&several, &one), None);
        assert_eq!(lacking(&[0, 1 << 28, 0, 0], &one).unwrap(), "word 1, bits 0x10000000");
        assert_eq!(lacking(&[0, 0, 0, 0, 1], &one).unwrap(), "word 4, bits 0x1");
    }

    #[test]
    fn the_longest_name_and_all_interfaces_find_room() {
        let identity = ("x".repeat(fcap_api::MAX_NAME), vec![boot::Net::default(); fcap_api::MAX_NETWORKS]);
        let len = records(u64::MAX, Some(&identity)).len();
        assert!((RESUME_HEAD..=RESUME_LEN).contains(&len), "{len} bytes");
    }

    #[test]
    fn memory_is_zero_where_xen_was_told_to_clear_all_of_it() {
        for line in
            ["scrub-domheap", "scrub-domheap=1 bootscrub=idle", "bootscrub=0 scrub-domheap bootscrub=1"]
        {
            assert!(is_scrubbed(line), "{line}");
        }
        let boots = ["bootscrub=off", "no-bootscrub", "bootscrub=1 bootscrub=0"];
        let lines = boots.map(|boot| format!("scrub-domheap {boot}"));
        let others = ["", "console=com1 noreboot", "scrub-domheap no-scrub-domheap", "scrub-domheap=off"];
        for line in lines.iter().map(String::as_str).chain(others) {
            assert!(!is_scrubbed(line), "{line}");
        }
    }
}
