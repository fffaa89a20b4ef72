//! The only accessor of the page that Xen shares with the domain.

use crate::{
    arch,
    mm::SharedPage,
    single::Single,
    start,
    suspend::{Mark, Resume, Subsystem},
};
use core::{cell::UnsafeCell, ptr::NonNull, sync::atomic::Ordering};
use xen_proto::{
    evtchn::Port,
    frame::{PAGE_SIZE, Pfn},
    pvclock::{self, Scale},
    shared_info::{
        CR2, EVTCHN_PENDING, MAX_PFN, NO_P2M_TREE, P2M_CR3, P2M_TREE, P2M_VADDR, VCPU_TIME, WC_NSEC, WC_SEC,
        WC_SEC_HI, WC_VERSION,
    },
};

#[repr(align(4096))]
struct Place(UnsafeCell<[u8; PAGE_SIZE]>);

/// Where the page gets mapped, instead of this one.
static PLACE: Single<Place> = Single::new(Place(UnsafeCell::new([0; PAGE_SIZE])));

fn place() -> usize {
    PLACE.0.get().expose_provenance()
}

/// Maps the page, and says where the p2m list is: who saves the domain looks for it there.
///
/// # Safety
/// To be called before any other function here.
pub(crate) unsafe fn init() {
    let info = start::info();
    // SAFETY: nothing refers to the page that gives way.
    unsafe { arch::map_at(place(), info.shared_info()) };
    let set = |offset, value| page().u64(offset).store(value, Ordering::Relaxed);
    set(P2M_TREE, NO_P2M_TREE);
    set(P2M_VADDR, info.frame_list() as u64);
    set(P2M_CR3, arch::top_table().address());
    set(MAX_PFN, info.nr_pages());
}

fn page() -> SharedPage {
    // SAFETY: a page, mapped for ever, of which there are no references.
    unsafe { SharedPage::new(NonNull::new(PLACE.0.get().cast()).expect("a static is not at 0")) }
}

/// The address of the last page fault.
pub(crate) fn fault_address() -> u64 {
    page().u64(CR2).load(Ordering::Relaxed)
}

/// Takes the event of `port`, if it has one: it is not pending afterwards.
pub(crate) fn take_event(port: Port) -> bool {
    let Some(word) = port.word() else { return false };
    let (page, bit) = (page(), port.bit());
    let pending = page.u64(EVTCHN_PENDING + word * 8);
    // A plain look first: the locked instruction is much the dearer one.
    pending.load(Ordering::Relaxed) & bit != 0 && pending.fetch_and(!bit, Ordering::AcqRel) & bit != 0
}

/// Reads something that Xen changes under a version number, which is odd meanwhile.
fn consistent<T>(version_at: usize, read: impl Fn(SharedPage) -> T) -> T {
    let page = page();
    let version = page.u32(version_at);
    loop {
        let before = version.load(Ordering::Acquire);
        let value = read(page);
        core::sync::atomic::fence(Ordering::Acquire);
        if before & 1 == 0 && version.load(Ordering::Relaxed) == before {
            return value;
        }
        core::hint::spin_loop();
    }
}

/// System time now, in nanoseconds, as the record of the vCPU has it.
pub(crate) fn system_time_ns() -> u64 {
    let (scale, counter) = consistent(VCPU_TIME + pvclock::VERSION, |page| {
        let scale = Scale {
            tsc_timestamp: page.u64(VCPU_TIME + pvclock::TSC_TIMESTAMP).load(Ordering::Relaxed),
            system_time_ns: page.u64(VCPU_TIME + pvclock::SYSTEM_TIME).load(Ordering::Relaxed),
            mul: page.u32(VCPU_TIME + pvclock::MUL).load(Ordering::Relaxed),
            shift: page.u32(VCPU_TIME + pvclock::SHIFT).load(Ordering::Relaxed) as i8,
        };
        (scale, arch::counter())
    });
    scale.system_time_ns(counter)
}

/// Wall clock at system time 0: seconds and nanoseconds since 1970.
pub(crate) fn wall_clock_base() -> (u64, u32) {
    consistent(WC_VERSION, |page| {
        let word = |offset| page.u32(offset).load(Ordering::Relaxed);
        (u64::from(word(WC_SEC_HI)) << 32 | u64::from(word(WC_SEC)), word(WC_NSEC))
    })
}

/// A page that is Xen's own and another one in each domain: it must not be mapped meanwhile.
pub(crate) static SUBSYSTEM: Subsystem = Subsystem { suspend, resume, mark, ..Subsystem::NOTHING };

fn suspend() {
    // SAFETY: the page is not used before `resume`.
    unsafe { arch::unmap(place()) };
}

fn resume(_: &Resume<'_>) {
    // SAFETY: the page is not in use.
    unsafe { init() };
}

fn mark(mark: &mut dyn FnMut(Mark, Pfn)) {
    mark(Mark::Replaced, arch::frame_at(place()));
}
