//! A domain that is about to leave, as the migration engine sees it.

use std::{
    io,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use fcap_migrate::{
    bitmap::PageBitmap,
    domain::{
        Description, DirtySource, DomainError, DomainResult, Page, PfnRange, SourceDomain, State, state,
    },
    page::{Level, PageType},
    wire::Reason,
};
use xen_proto::{
    console::{GUEST_SUSPENDS, HOST_REASON, HOST_SUSPEND},
    frame::{Mfn, PAGE_SIZE, Pfn},
    suspend,
};

use super::{Held, Shared, XenDomain, builder};
use crate::{
    clock::now_ns,
    toolstack::{Outgoing, Places, Tracking},
    xen::{
        builder::CONSOLE_PORT,
        context::Context,
        dirty,
        m2p::M2p,
        p2m::P2m,
        shared_info::{self, Arch},
        sys::{Mapping, Windows},
    },
};

/// Most frames of a capsule's list, with the hole for what its balloon may be given: what fits into
/// its address space of 2 GiB.
const CAPSULE_FRAMES_MAX: u64 = (2 << 30) / PAGE_SIZE as u64;
/// How long a capsule has to suspend itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// Kind of the piece of state that says when it was suspended, in nanoseconds since the Unix epoch,
/// and how many nanoseconds it had stood still when this was written.
pub(super) const SUSPENDED_AT: u16 = state::MANAGER;

/// What all parts of a departure look at.
pub(super) struct View {
    pub(super) domain: Arc<XenDomain>,
    pub(super) m2p: Arc<M2p>,
    p2m: OnceLock<P2m>,
}

/// For `map_err`: a call to the hypervisor that failed.
pub(super) fn failed(call: impl Into<String>) -> impl FnOnce(io::Error) -> DomainError {
    let call = call.into();
    move |error| match error.raw_os_error() {
        Some(libc::ESRCH) => DomainError::Ended,
        _ => DomainError::Failed { call, source: Box::new(error) },
    }
}

/// The same for errors of the toolstack.
pub(super) fn toolstack_failed(error: super::Error) -> DomainError {
    match error {
        super::Error::Gone => DomainError::Ended,
        other => DomainError::Failed { call: "request to the hypervisor".into(), source: Box::new(other) },
    }
}

impl View {
    pub(super) fn shared(&self) -> &Shared {
        &self.domain.shared
    }

    pub(super) fn host(&self) -> &builder::Host {
        &self.shared().host
    }

    pub(super) fn domid(&self) -> u32 {
        self.domain.domid
    }

    pub(super) fn p2m(&self) -> &P2m {
        // Nothing is asked for before the description, which sets it.
        static EMPTY: OnceLock<P2m> = OnceLock::new();
        self.p2m.get().unwrap_or_else(|| EMPTY.get_or_init(P2m::default))
    }

    pub(super) fn with<T>(&self, look: impl FnOnce(&Held) -> T) -> DomainResult<T> {
        self.domain.with(|held| Ok(look(held))).map_err(toolstack_failed)
    }

    /// Sends the domain an event on its console's port.
    pub(super) fn notify(&self) -> DomainResult<()> {
        self.with(|held| held.port.notify())?.map_err(failed("sending of an event"))
    }

    fn info(&self) -> DomainResult<crate::xen::sys::DomainInfo> {
        let info = self.host().hypercalls.domain(self.domid()).map_err(failed("looking for a domain"))?;
        info.filter(|info| info.handle == self.domain.uuid && !info.is_dying()).ok_or(DomainError::Ended)
    }

    /// The domain's end, if it has not ended in a suspend.
    fn check_alive(&self) -> DomainResult<bool> {
        match self.info()?.shutdown() {
            None => Ok(false),
            Some(SUSPEND) => Ok(true),
            Some(_) => Err(DomainError::Ended),
        }
    }

    /// Waits until `look` has found something; events on the console's port wake it up. Nothing
    /// when the time is up.
    pub(super) fn wait_for<T>(
        &self,
        time: Duration,
        mut look: impl FnMut() -> DomainResult<Option<T>>,
    ) -> DomainResult<Option<T>> {
        let bell = self.with(|held| held.port.bell())?;
        bell.wait_for(time, || match look()? {
            None => self.check_alive().map(|_| None),
            found => Ok(found),
        })
    }

    /// Reads words of the domain's memory, one page after the other.
    pub(super) fn map_page(&self, page: u64) -> DomainResult<crate::xen::sys::Mapping> {
        let frame = self.p2m().frame(page).ok_or(DomainError::Ended)?;
        let mapped = self.host().foreign.map(self.domid(), &[frame]);
        mapped.map_err(failed("mapping of the domain's memory"))
    }

    /// Pages of console and xenstore ring, which the toolstack's grants name.
    pub(super) fn places(&self) -> DomainResult<Places> {
        let frames = builder::pages_for_dom0(self.host(), self.domid());
        let [console, store] = frames.map_err(failed("looking for the console page"))?;
        let page = |frame, what: &str| {
            self.p2m().page_of(&self.m2p, frame).ok_or_else(|| nonsense(format!("its {what} is not its own")))
        };
        Ok(Places { console: page(console, "console page")?, store: page(store, "xenstore ring")? })
    }
}

/// `SHUTDOWN_suspend`
const SUSPEND: u32 = 2;

pub(super) fn nonsense(message: String) -> DomainError {
    DomainError::Failed {
        call: "reading of the domain's state".into(),
        source: Box::new(io::Error::new(io::ErrorKind::InvalidData, message)),
    }
}

/// A domain that is about to leave.
pub(super) struct XenSource {
    view: Arc<View>,
    dirty: Box<dyn Tracker>,
    windows: Windows,
    /// Nothing of the domain may be mapped when it is destroyed, neither this nor in windows.
    shared_info: Option<Mapping>,
    /// As the domain said by suspending itself.
    start_info: Option<u64>,
    /// Its first processor's state since then.
    context: Option<Context>,
    /// When it was suspended: nanoseconds since the Unix epoch, and by the clock that only goes on.
    suspended: (u64, Instant),
    vcpus: u32,
    /// The domain is nobody's any more, and still takes its memory.
    disowned: bool,
}

impl Drop for XenSource {
    fn drop(&mut self) {
        if self.disowned {
            self.view.shared().remover.remove(self.view.domid());
        }
    }
}

/// A source of dirty pages that also knows which pages need not travel.
pub(super) trait Tracker: DirtySource + Send + Sync {
    fn void_pages(&mut self, to: &mut PageBitmap) -> DomainResult<()>;
    /// For those who look themselves: what the suspended domain's last words are.
    fn suspended(&mut self, start_info: u64);
    /// What is about to be sent of a page.
    fn was_read(&self, _page: Pfn, _page_type: PageType, _content: &Page) {}
}

impl XenSource {
    pub(super) fn new(domain: &Arc<XenDomain>, m2p: Arc<M2p>, tracking: Tracking) -> DomainResult<Self> {
        let view = Arc::new(View { domain: domain.clone(), m2p, p2m: OnceLock::new() });
        let info = view.info()?;
        // Kept: while the domain stands still there is no time to map it.
        let shared_info = view.host().foreign.map(view.domid(), &[info.shared_info]);
        let shared_info = shared_info.map_err(failed("mapping of shared info"))?;
        let arch = Arch::read(&shared_info);
        // Room to balloon is no reason to read a list without bounds.
        let most = info.max_pages.saturating_mul(2).max(info.pages).max(CAPSULE_FRAMES_MAX);
        let p2m = P2m::read(&view.host().foreign, view.domid(), &arch, &view.m2p, most);
        let _ = view.p2m.set(p2m.map_err(failed("reading of the domain's list of memory"))?);
        let dirty = super::track::tracker(&view, tracking)?;
        Ok(Self {
            windows: Windows::new(&view.host().foreign, view.domid(), false),
            view,
            dirty,
            shared_info: Some(shared_info),
            start_info: None,
            context: None,
            suspended: (0, Instant::now()),
            vcpus: info.vcpus.max(1),
            disowned: false,
        })
    }

    fn listens(&self) -> DomainResult<bool> {
        self.view.with(|held| held.console.guest_flags() & GUEST_SUSPENDS != 0)
    }

    fn ask(&self, reason: Reason) -> DomainResult<()> {
        if self.listens()? {
            let bits = HOST_SUSPEND | reason_of(reason).bits();
            self.view.with(|held| held.console.change_flags(bits, HOST_REASON & !bits))?;
            return self.view.notify();
        }
        self.view.domain.register().map_err(toolstack_failed)?;
        self.view.domain.write("control/shutdown", "suspend").map_err(toolstack_failed)
    }

    /// Takes the request back.
    fn withdraw(&self) -> DomainResult<()> {
        if self.listens()? {
            self.view.with(|held| held.console.change_flags(0, HOST_SUSPEND))?;
            return self.view.notify();
        }
        self.view.domain.write("control/shutdown", "").map_err(toolstack_failed)
    }
}

/// The reason in the words of the contract with the library OS.
pub(super) fn reason_of(reason: Reason) -> suspend::Reason {
    match reason {
        Reason::Migrate => suspend::Reason::Migrate,
        Reason::Save => suspend::Reason::Save,
        Reason::Clone => suspend::Reason::Clone,
        Reason::Checkpoint => suspend::Reason::Checkpoint,
    }
}

impl Outgoing for XenSource {
    fn places(&self) -> DomainResult<Places> {
        self.view.places()
    }
}

impl SourceDomain for XenSource {
    fn describe(&mut self) -> DomainResult<Description> {
        let info = self.view.info()?;
        self.vcpus = info.vcpus.max(1);
        let host = self.view.host();
        let p2m = self.view.p2m();
        let range = |(first, count)| PfnRange { first: Pfn(first), count };
        let mut list: Vec<PfnRange> = Vec::new();
        for &page in &p2m.own_pages {
            match list.last_mut() {
                Some(last) if last.end() == Some(page) => last.count += 1,
                _ => list.push(range((page, 1))),
            }
        }
        let features = host.hypercalls.cpu_features();
        Ok(Description {
            hypervisor: self.view.shared().version_numbers(),
            vcpus: self.vcpus,
            nr_pages: p2m.len(),
            max_pages: info.max_pages,
            cpu_features: features.map_err(failed("asking Xen for the processor's features"))?,
            p2m: list,
            memory: p2m.ranges().into_iter().map(range).collect(),
            config: Vec::new(),
        })
    }

    fn dirty_source(&mut self) -> &mut dyn DirtySource {
        &mut *self.dirty
    }

    fn void_pages(&mut self, to: &mut PageBitmap) -> DomainResult<()> {
        self.dirty.void_pages(to)
    }

    fn read_pages(&self, pfns: &[Pfn], types: &mut [PageType], pages: &mut [Page]) -> DomainResult<()> {
        let frames: Vec<u64> =
            pfns.iter().map(|pfn| self.view.p2m().frame(pfn.0).unwrap_or(P2m::NONE)).collect();
        let (hypercalls, domid) = (&self.view.host().hypercalls, self.view.domid());
        let (window, there) = self.windows.show(&frames).map_err(failed("mapping of the domain's memory"))?;
        let kinds = hypercalls.page_types(domid, &frames).map_err(failed("asking Xen for page types"))?;
        for (index, ((page, page_type), kind)) in pages.iter_mut().zip(types).zip(kinds).enumerate() {
            *page_type = if there[index] {
                window.read(index * PAGE_SIZE, page);
                page_type_of(kind)
            } else {
                PageType::Absent
            };
            self.dirty.was_read(pfns[index], *page_type, page);
        }
        Ok(())
    }

    fn pfn_of(&self, mfn: Mfn) -> Option<Pfn> {
        self.view.p2m().page_of(&self.view.m2p, mfn.0).map(Pfn)
    }

    fn suspend(&mut self, reason: Reason) -> DomainResult<()> {
        let (host, domid) = (self.view.host(), self.view.domid());
        // Else xenstored is told of it, and that takes its time.
        host.hypercalls.tell_of_suspend(domid, CONSOLE_PORT).map_err(failed("preparation of the suspend"))?;
        self.ask(reason)?;
        let is_suspended = || self.view.check_alive().map(|suspended| suspended.then_some(()));
        if self.view.wait_for(PATIENCE, is_suspended)?.is_none() {
            self.withdraw()?;
            // It may have been about to.
            if !self.view.check_alive()? {
                return Err(DomainError::NoAnswer { seconds: PATIENCE.as_secs() });
            }
        }
        self.suspended = (now_ns(), Instant::now());
        let context =
            host.hypercalls.context(domid, 0).map_err(failed("reading of the processor's state"))?;
        let context = Context(Box::new(context));
        let start_info = context.rdx();
        self.context = Some(context);
        let page = self.view.p2m().page_of(&self.view.m2p, start_info);
        let page = page.ok_or_else(|| nonsense("its start info is not its own".into()))?;
        self.start_info = Some(page);
        self.dirty.suspended(page);
        Ok(())
    }

    fn state(&mut self) -> DomainResult<Vec<State>> {
        let host = self.view.host();
        let hypercalls = &host.hypercalls;
        let domid = self.view.domid();
        let what = || failed("reading of the processor's state");
        let to_page = |frame| self.view.p2m().page_of(&self.view.m2p, frame);
        let start_info = self.start_info.ok_or_else(|| nonsense("it is not suspended".into()))?;
        let mut states =
            vec![State { kind: state::START_INFO, index: 0, bytes: start_info.to_le_bytes().to_vec() }];
        let stood = u64::try_from(self.suspended.1.elapsed().as_nanos()).unwrap_or(u64::MAX);
        states.push(State {
            kind: SUSPENDED_AT,
            index: 0,
            bytes: [self.suspended.0, stood].map(u64::to_le_bytes).concat(),
        });
        for vcpu in 0..self.vcpus {
            let mut add = |kind, bytes| states.push(State { kind, index: vcpu as u16, bytes });
            let mut context = match self.context.take_if(|_| vcpu == 0) {
                Some(context) => context,
                None => Context(Box::new(hypercalls.context(domid, vcpu).map_err(what())?)),
            };
            context.translate(to_page).map_err(|error| nonsense(error.to_string()))?;
            add(state::VCPU_CONTEXT, context.0.to_vec());
            add(state::VCPU_EXTENDED, hypercalls.extended_context(domid, vcpu).map_err(what())?);
            let upper = hypercalls.extended_state(domid, vcpu).map_err(what())?;
            if !upper.is_empty() {
                add(state::VCPU_XSAVE, upper);
            }
        }
        let mut bytes = [0; PAGE_SIZE];
        let shared_info = self.shared_info.as_ref().ok_or(DomainError::Ended)?;
        shared_info.read(0, &mut bytes);
        let cr3 = to_page(shared_info::p2m_cr3(&bytes) >> 12).map_or(0, |page| page << 12);
        shared_info::set_p2m_cr3(&mut bytes, cr3);
        states.push(State { kind: state::SHARED_INFO, index: 0, bytes: bytes.to_vec() });
        Ok(states)
    }

    fn resume(&mut self) -> DomainResult<()> {
        self.start_info = None;
        self.context = None;
        super::Domain::resume(&*self.view.domain).map_err(toolstack_failed)
    }

    fn destroy(&mut self) -> DomainResult<()> {
        self.shared_info = None;
        self.windows.clear();
        self.disowned = self.view.domain.disown().map_err(toolstack_failed)?;
        Ok(())
    }
}

/// What Xen's word for a page (`XEN_DOMCTL_PFINFO_*`) is to the engine.
fn page_type_of(kind: u32) -> PageType {
    let level = match dirty::level(kind) {
        1 => Level::L1,
        2 => Level::L2,
        3 => Level::L3,
        4 => Level::L4,
        // Broken and foreign frames are above the tables.
        _ if kind >> 28 > 8 => return PageType::Absent,
        _ => return PageType::Data,
    };
    PageType::Table { level, pinned: kind >> 31 != 0 }
}
