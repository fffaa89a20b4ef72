//! All that the engine asks of a hypervisor.
//!
//! [`SourceDomain`] is the domain that moves away, [`DestinationHost`] and
//! [`DestinationDomain`] are where it arrives, and [`DirtySource`] tells which pages were written.
//! The engine calls them in the order of the phases (see the crate's documentation) and promises:
//!
//! - methods that take `&mut self` are called by one thread, while no other method runs;
//! - [`SourceDomain::read_pages`], [`SourceDomain::pfn_of`] and their counterparts at the
//!   destination are called by several threads at once, with batches of at most
//!   [`MAX_BATCH_PAGES`](crate::wire::MAX_BATCH_PAGES) pages in ascending order;
//! - no page is named twice in one round.
//!
//! Nothing here is asked for each page of the domain: what is large is ranges and bitmaps, so
//! that cost follows the memory that is used.

use xen_proto::frame::{Mfn, PAGE_SIZE, Pfn};

use crate::{bitmap::PageBitmap, page::PageType, wire::Reason};

/// One page of memory.
pub type Page = [u8; PAGE_SIZE];

/// Pages one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PfnRange {
    /// The first one.
    pub first: Pfn,
    /// How many there are, at least 1.
    pub count: u64,
}

impl PfnRange {
    /// The page behind the last one; `None` if there is no such number.
    pub fn end(&self) -> Option<u64> {
        self.first.0.checked_add(self.count)
    }
}

/// What a domain is: the destination decides by it before memory moves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// Major and minor version of the hypervisor that the domain runs on.
    pub hypervisor: (u16, u16),
    /// Virtual processors, at least 1.
    pub vcpus: u32,
    /// All of its pages have numbers below this.
    pub nr_pages: u64,
    /// Pages that it may have at most.
    pub max_pages: u64,
    /// Processor features that it may have seen, as the words of Xen's feature set
    /// (`xen/include/public/arch-x86/cpufeatureset.h`). The destination must have them all.
    pub cpu_features: Vec<u32>,
    /// Pages of the domain's p2m list, in the order of the list. They are not sent: the
    /// destination writes the list anew.
    pub p2m: Vec<PfnRange>,
    /// Pages that have memory, ascending. It must cover every page that may have content at any
    /// time until the domain is suspended.
    pub memory: Vec<PfnRange>,
    /// What the manager knows of the capsule (name, image, labels, addresses), in its own format.
    pub config: Vec<u8>,
}

/// A piece of state that is not memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// What it is; the numbers are in STREAM.md, "STATE".
    pub kind: u16,
    /// Which one of its kind: the number of a vCPU or device.
    pub index: u16,
    /// Its content, at most [`MAX_STATE`](crate::wire::MAX_STATE) bytes.
    pub bytes: Vec<u8>,
}

/// Numbers for [`State::kind`].
pub mod state {
    /// `struct vcpu_guest_context` (x86-64), frames as pfns.
    pub const VCPU_CONTEXT: u16 = 1;
    /// `struct xen_domctl_ext_vcpucontext`.
    pub const VCPU_EXTENDED: u16 = 2;
    /// Extended processor state as `XEN_DOMCTL_getvcpuextstate` gives it.
    pub const VCPU_XSAVE: u16 = 3;
    /// Array of `struct xen_domctl_vcpu_msr`.
    pub const VCPU_MSRS: u16 = 4;
    /// Time-stamp counter: mode, kHz, ns, incarnation.
    pub const TSC: u16 = 5;
    /// The shared-info page.
    pub const SHARED_INFO: u16 = 6;
    /// Pfn of the start-info page.
    pub const START_INFO: u16 = 7;
    /// Processor policy: CPUID leaves, then MSRs.
    pub const CPU_POLICY: u16 = 8;
    /// The console as the manager keeps it.
    pub const CONSOLE: u16 = 9;
    /// First of the kinds that belong to the manager.
    pub const MANAGER: u16 = 0x100;
    /// Set in kinds that a destination may skip when it does not know them.
    pub const OPTIONAL: u16 = 0x8000;
}

/// Why an operation on a domain failed.
#[derive(Debug, thiserror::Error)]
pub enum DomainError {
    /// The domain crashed, exited or was destroyed.
    #[error("the capsule ended while it was moving")]
    Ended,
    /// It never answered the request to suspend; it runs on.
    #[error("the capsule did not answer the request to suspend within {seconds} s; it runs on")]
    NoAnswer {
        /// How long it was given.
        seconds: u64,
    },
    /// The destination cannot or will not take it.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// Something that should have worked.
    #[error("{call} failed")]
    Failed {
        /// The operation and its object.
        call: String,
        /// The system's answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A destination's no, with the reason in words for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What kind of reason.
    pub cause: RefusalCause,
    /// Names the object and the remedy.
    pub message: String,
}

/// Why a destination refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalCause {
    /// No version of the stream, or a feature of it, in common.
    Version,
    /// The processor lacks features that the domain may use.
    Cpu,
    /// The hypervisor cannot run such a domain.
    Hypervisor,
    /// Not enough memory.
    Memory,
    /// The name or the identity is taken.
    Name,
    /// Anything else.
    Other,
}

/// Result of an operation on a domain.
pub type DomainResult<T> = Result<T, DomainError>;

/// Tells which pages were written.
///
/// Reporting a page too much is allowed, one too little is not. A page that the domain gave back,
/// or got back, counts as written.
pub trait DirtySource {
    /// "guest-assisted", "dirty bits" or "log-dirty".
    fn name(&self) -> &'static str;

    /// Starts: from now on writes are seen. What a daemon that was killed left on starts anew.
    ///
    /// # Errors
    /// If it is not possible with this domain or hypervisor; nothing is left on then.
    fn begin(&mut self) -> DomainResult<()>;

    /// Adds the pages that were written since the last call (or the beginning) to `dirty`, and
    /// forgets them. The domain runs.
    ///
    /// # Errors
    /// If the domain is gone or does not co-operate.
    fn take(&mut self, dirty: &mut PageBitmap) -> DomainResult<()>;

    /// The same once the domain is suspended, with all pages whose writes this source cannot see:
    /// those that others write to (granted, rings), those that Xen writes to, and page tables
    /// that may have changed in more than accessed and dirty bits. A page that became a page
    /// table, or ceased to be one, counts as written.
    ///
    /// This is in the downtime: name a page table only if nothing says that it is unchanged.
    ///
    /// # Errors
    /// If the domain is gone.
    fn take_last(&mut self, dirty: &mut PageBitmap) -> DomainResult<()>;

    /// Stops. Called exactly once after [`begin`](Self::begin), also after failures, when the
    /// domain may be gone. The source may run or be suspended.
    fn end(&mut self);
}

/// The domain at the source.
pub trait SourceDomain: Sync {
    /// Describes it. The domain runs.
    ///
    /// # Errors
    /// If the domain is gone, or is of a kind that cannot move.
    fn describe(&mut self) -> DomainResult<Description>;

    /// Who tells which pages were written.
    fn dirty_source(&mut self) -> &mut dyn DirtySource;

    /// Adds pages whose content nobody will read before it is written: free memory, empty
    /// buffers. Called at the beginning of each round after the dirty pages were taken, so that a
    /// page that is put to use afterwards counts as dirty in the next round. `void` is empty, and
    /// may be left so.
    ///
    /// # Errors
    /// If the domain is gone.
    fn void_pages(&mut self, void: &mut PageBitmap) -> DomainResult<()>;

    /// Copies pages as they are now, page tables with machine frames. `types` and `pages` are as
    /// long as `pfns`. For a page without memory the type is [`PageType::Absent`] and the content
    /// is ignored. The domain may be running and writing.
    ///
    /// # Errors
    /// If the domain is gone.
    fn read_pages(&self, pfns: &[Pfn], types: &mut [PageType], pages: &mut [Page]) -> DomainResult<()>;

    /// The domain's number for a machine frame, if it is one of its own: `p2m[m2p[mfn]] == mfn`.
    fn pfn_of(&self, mfn: Mfn) -> Option<Pfn>;

    /// Has it suspend, telling it why. Returns once it has.
    ///
    /// # Errors
    /// If it does not within the time that the implementation allows. The request is then
    /// withdrawn: the domain runs on as if it had never been asked.
    fn suspend(&mut self, reason: Reason) -> DomainResult<()>;

    /// All state besides memory, frames as pfns. The domain is suspended. Devices are held: what
    /// they would still write to its memory comes before this, or not at all.
    ///
    /// # Errors
    /// If the domain is gone.
    fn state(&mut self) -> DomainResult<Vec<State>>;

    /// Lets the suspended domain go on here as if nothing had happened.
    ///
    /// # Errors
    /// If the hypervisor fails; it can be called again.
    fn resume(&mut self) -> DomainResult<()>;

    /// Removes the domain, which runs elsewhere now. May be gone already.
    ///
    /// # Errors
    /// If the hypervisor fails; it can be called again.
    fn destroy(&mut self) -> DomainResult<()>;
}

/// The machine to which a domain comes.
pub trait DestinationHost {
    /// A domain in the making.
    type Domain: DestinationDomain;

    /// Checks processor, hypervisor, name and memory, and makes an empty paused domain with
    /// memory for all of [`Description::memory`], whose content does not matter yet. On failure
    /// nothing is left behind. What it makes must be told from other domains after a crash: a
    /// daemon that finds it paused and without a claim (see `handover`) removes it.
    ///
    /// # Errors
    /// [`DomainError::Refused`] with the reason; it is shown at the source.
    fn create(&mut self, description: &Description, reason: Reason) -> DomainResult<Self::Domain>;
}

/// A page that is a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// The page.
    pub pfn: Pfn,
    /// Level and whether it is pinned.
    pub page_type: PageType,
}

/// What comes last.
#[derive(Clone, Debug, Default)]
pub struct FinalState {
    /// All page tables, ascending by page.
    pub tables: Vec<Table>,
    /// Pages of [`Description::memory`] that the domain had given back by the end.
    pub absent: Vec<PfnRange>,
    /// State besides memory, in the order of the stream.
    pub states: Vec<State>,
}

/// The domain at the destination.
pub trait DestinationDomain: Sync {
    /// The machine frame behind a page; `None` if the page has no memory.
    fn mfn_of(&self, pfn: Pfn) -> Option<Mfn>;

    /// Sets type and content of pages; page tables have machine frames already. `types` and
    /// `pages` are as long as `pfns`, and all pages have memory. A page may come again in a later
    /// round, with another type.
    ///
    /// # Errors
    /// If the hypervisor fails.
    fn write_pages(&self, pfns: &[Pfn], types: &[PageType], pages: &[Page]) -> DomainResult<()>;

    /// Makes pages all zero, and no page tables; all of them have memory.
    ///
    /// # Errors
    /// If the hypervisor fails.
    fn clear_pages(&self, pages: PfnRange) -> DomainResult<()>;

    /// A round has arrived, the domain still runs at the source, and nothing is written meanwhile:
    /// time for what would otherwise be downtime, such as having Xen check the page tables that
    /// are not likely to change. `tables` are all page tables so far, ascending by page. Their
    /// content may make no sense yet.
    ///
    /// # Errors
    /// If the hypervisor fails; not for tables that make no sense.
    fn prepare(&self, tables: &[Table]) -> DomainResult<()> {
        let _ = tables;
        Ok(())
    }

    /// Completes the domain: writes what names machine frames (the p2m list may have been
    /// written since [`DestinationHost::create`]), has page tables pinned and contexts set,
    /// connects devices as far as they do not act yet. It stays paused.
    ///
    /// # Errors
    /// If the state makes no sense or the hypervisor refuses it.
    fn finish(&mut self, state: FinalState) -> DomainResult<()>;

    /// Lets it run, and tells the world that it is here. Does nothing if it runs already.
    ///
    /// # Errors
    /// If the hypervisor fails; it can be called again.
    fn activate(&mut self) -> DomainResult<()>;

    /// Removes the domain, which never ran. May be gone already.
    fn destroy(&mut self);
}
