//! Start of day, top to bottom, and what the builder told us.

use crate::{
    arch, hypercall, mm,
    mm::SharedPage,
    shared_info,
    single::Single,
    suspend::{Mark, Resume, Subsystem},
};
use core::{
    cell::Cell,
    mem::offset_of,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};
use xen_proto::{
    balloon::{self, NO_FRAME},
    evtchn::Port,
    frame::{Mfn, Pfn},
    start_info::StartInfo,
};

static INFO: Single<Cell<Option<Info>>> = Single::new(Cell::new(None));

/// Called by the entry point, on the capsule's own stack; never returns.
///
/// Everything here is on the way from request to first output, so it does little:
/// what can wait is done by whoever needs it first.
pub(crate) extern "C" fn start(start_info: NonNull<StartInfo>) -> ! {
    // SAFETY: the builder has mapped the page for ever, and nothing has a reference to it.
    let page = unsafe { SharedPage::new(start_info.cast()) };
    let mut info = Info { page, console: Pfn(0), store: Pfn(0) };
    info.console = arch::own_frame(info.console_mfn());
    info.store = arch::own_frame(info.store_mfn());
    INFO.set(Some(info));
    // From here on the console works, and with it a report of what goes wrong.
    assert!(info.is_valid(), "the builder speaks Xen's 64-bit PV interface");
    // SAFETY: this is the one call.
    unsafe { shared_info::init() };
    arch::install_traps();
    hypercall::stop_periodic_timer();
    // SAFETY: this is the one call, and nothing has been allocated.
    unsafe { mm::heap::init(info) };

    unsafe extern "Rust" {
        /// Made by `#[libos::main]`.
        safe fn __fcap_main() -> !;
    }
    __fcap_main()
}

/// The start-info page ([`StartInfo`]), which the host changes while the domain is suspended.
#[derive(Clone, Copy)]
pub(crate) struct Info {
    page: SharedPage,
    console: Pfn,
    store: Pfn,
}

/// What the builder told us.
pub(crate) fn info() -> Info {
    INFO.get().expect("start of day has begun")
}

impl Info {
    fn u64(&self, offset: usize) -> &AtomicU64 {
        self.page.u64(offset)
    }

    fn get(self, offset: usize) -> u64 {
        self.u64(offset).load(Ordering::Relaxed)
    }

    fn port(self, offset: usize) -> Port {
        Port(self.page.u32(offset).load(Ordering::Relaxed))
    }

    /// Whether the builder speaks the interface that [`StartInfo`] describes.
    fn is_valid(self) -> bool {
        let mut magic = [0; xen_proto::start_info::MAGIC.len()];
        self.page.read(offset_of!(StartInfo, magic), &mut magic);
        magic == xen_proto::start_info::MAGIC
    }

    /// Address of the first byte behind the page.
    pub(crate) fn end(self) -> usize {
        self.page.address().addr().get() + xen_proto::frame::PAGE_SIZE
    }

    /// The frame that it is in.
    pub(crate) fn frame(self) -> Pfn {
        arch::frame_at(self.page.address().addr().get())
    }

    /// Frames of the domain: those with memory, and those that the balloon may give some.
    pub(crate) fn nr_pages(self) -> u64 {
        self.get(offset_of!(StartInfo, nr_pages))
    }

    /// The shared-info page.
    pub(crate) fn shared_info(self) -> Mfn {
        Mfn::at(self.get(offset_of!(StartInfo, shared_info)))
    }

    /// The console page.
    pub(crate) fn console(self) -> SharedPage {
        SharedPage::of_frame(self.console)
    }

    /// Its machine frame.
    pub(crate) fn console_mfn(self) -> Mfn {
        Mfn(self.get(offset_of!(StartInfo, console_mfn)))
    }

    /// The port towards the console.
    pub(crate) fn console_port(self) -> Port {
        self.port(offset_of!(StartInfo, console_evtchn))
    }

    /// The ring page towards xenstored.
    pub(crate) fn store(self) -> SharedPage {
        SharedPage::of_frame(self.store)
    }

    /// Its machine frame.
    pub(crate) fn store_mfn(self) -> Mfn {
        Mfn(self.get(offset_of!(StartInfo, store_mfn)))
    }

    /// The port towards xenstored.
    pub(crate) fn store_port(self) -> Port {
        self.port(offset_of!(StartInfo, store_evtchn))
    }

    /// Address of the top page table.
    pub(crate) fn page_tables(self) -> usize {
        self.get(offset_of!(StartInfo, pt_base)) as usize
    }

    /// How many frames the initial page tables have.
    pub(crate) fn nr_page_tables(self) -> u64 {
        self.get(offset_of!(StartInfo, nr_pt_frames))
    }

    /// Address of the p2m list: a machine frame for each frame.
    pub(crate) fn frame_list(self) -> usize {
        self.get(offset_of!(StartInfo, mfn_list)) as usize
    }

    /// Address and length of the boot module; 0 when there is none.
    pub(crate) fn module(self) -> (usize, usize) {
        let word = |offset| self.get(offset) as usize;
        (word(offset_of!(StartInfo, mod_start)), word(offset_of!(StartInfo, mod_len)))
    }

    /// The command line without its zero byte.
    pub(crate) fn command_line(self) -> &'static [u8] {
        let page = self.page.address().cast::<StartInfo>().as_ptr();
        // SAFETY: inside of the page; the host changes other parts of it alone.
        let line = unsafe { &(*page).cmd_line };
        line.split(|&byte| byte == 0).next().unwrap_or(&[])
    }
}

/// The entry of the p2m list for one of the domain's own frames.
///
/// # Panics
/// If the domain has no such frame.
fn frame_entry(pfn: Pfn) -> *mut u64 {
    let info = info();
    assert!(pfn.0 < info.nr_pages(), "the domain has the frame");
    let list = core::ptr::with_exposed_provenance_mut::<u64>(info.frame_list());
    // SAFETY: the builder's list has an entry for each of the domain's frames.
    unsafe { list.add(pfn.0 as usize) }
}

/// The machine frame behind one of the domain's own.
///
/// # Panics
/// If there is none.
#[inline(never)]
pub(crate) fn machine_frame(pfn: Pfn) -> Mfn {
    // SAFETY: an entry of the list.
    let frame = unsafe { frame_entry(pfn).read() };
    assert!(frame != NO_FRAME, "the frame has memory");
    Mfn(frame)
}

/// Notes which machine frame is behind one of the domain's own from now on, if there is any.
///
/// # Panics
/// If the domain has no such frame.
pub(crate) fn set_machine_frame(pfn: Pfn, frame: Option<Mfn>) {
    // SAFETY: an entry of the list, of which nothing holds references.
    unsafe { frame_entry(pfn).write(frame.map_or(NO_FRAME, |frame| frame.0)) }
}

/// Frames from 0 on that the builder has given memory; those behind have none yet.
pub(crate) fn populated() -> u64 {
    // SAFETY: an entry of the list.
    balloon::populated(info().nr_pages(), |frame| unsafe { frame_entry(Pfn(frame)).read() })
}

/// The boot module; empty if there is none.
pub(crate) fn module() -> &'static [u8] {
    let (address, len) = info().module();
    if address == 0 {
        return &[];
    }
    let start = core::ptr::with_exposed_provenance(address);
    // SAFETY: the builder has placed the module there, and nothing changes it: the
    // heap begins behind it.
    unsafe { core::slice::from_raw_parts(start, len) }
}

/// The start-info page, which the host expects to have our own frame numbers while the
/// domain is suspended, and the machine's when it goes on.
pub(crate) static SUBSYSTEM: Subsystem = Subsystem { suspend, resume, mark, ..Subsystem::NOTHING };

fn suspend() {
    let info = info();
    info.u64(offset_of!(StartInfo, console_mfn)).store(info.console.0, Ordering::Relaxed);
    info.u64(offset_of!(StartInfo, store_mfn)).store(info.store.0, Ordering::Relaxed);
}

fn resume(resume: &Resume<'_>) {
    if !resume.is_new() {
        // The host that cancels leaves it to us.
        let info = info();
        let restore = |offset, frame| info.u64(offset).store(machine_frame(frame).0, Ordering::Relaxed);
        restore(offset_of!(StartInfo, console_mfn), info.console);
        restore(offset_of!(StartInfo, store_mfn), info.store);
    }
}

fn mark(mark: &mut dyn FnMut(Mark, Pfn)) {
    let info = info();
    mark(Mark::Always, info.frame());
    mark(Mark::Always, info.console);
    mark(Mark::Always, info.store);
    let list = info.frame_list();
    let end = arch::frame_at(list + info.nr_pages() as usize * size_of::<u64>());
    // Whoever rebuilds the domain writes the list anew; its last page may have more in it.
    for frame in arch::frame_at(list).0..end.0 {
        mark(Mark::Void, Pfn(frame));
    }
}
