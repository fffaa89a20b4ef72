//! The heap: all memory that nothing else uses, in one piece.

use crate::{arch, single::Single};
use core::{
    alloc::{GlobalAlloc, Layout},
    cell::Cell,
    ops::Range,
};
use talc::{TalcCell, source::Manual};
use xen_proto::{
    frame::{PAGE_SIZE, Pfn},
    start_info::StartInfo,
};

#[global_allocator]
static HEAP: Heap =
    Heap { talc: Single::new(TalcCell::new(Manual)), exhausted: Single::new(Cell::new(false)) };

struct Heap {
    talc: Single<TalcCell<Manual>>,
    /// The last allocation failed.
    exhausted: Single<Cell<bool>>,
}

impl Heap {
    fn noted(&self, allocation: *mut u8) -> *mut u8 {
        self.exhausted.set(allocation.is_null());
        allocation
    }
}

// SAFETY: passes everything on to an allocator.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the same contract.
        self.noted(unsafe { self.talc.alloc(layout) })
    }

    unsafe fn dealloc(&self, allocation: *mut u8, layout: Layout) {
        // SAFETY: the same contract.
        unsafe { self.talc.dealloc(allocation, layout) }
    }

    unsafe fn realloc(&self, allocation: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the same contract.
        self.noted(unsafe { self.talc.realloc(allocation, layout, size) })
    }
}

/// Maps all memory and makes a heap of what is free, without touching it.
///
/// # Safety
/// To be called once, before anything is allocated.
///
/// # Panics
/// If there is not even room for the allocator's own data.
pub(crate) unsafe fn init(info: &StartInfo) {
    // SAFETY: nothing uses memory beyond what the builder has placed.
    let free = unsafe { arch::map_missing(info, first_free(info)) };
    let Range { start, end } = free;
    let base = arch::BASE + start.0 as usize * PAGE_SIZE;
    let len = end.0.saturating_sub(start.0) as usize * PAGE_SIZE;
    // SAFETY: the range is mapped, and it is nobody else's.
    let heap = unsafe { HEAP.talc.claim(core::ptr::with_exposed_provenance_mut(base), len) };
    heap.expect("the domain has memory for a heap: give it more");
}

/// The first frame behind everything that the builder has placed.
///
/// Builders differ in the order of what they place, so the largest end counts. The
/// boot stack is not in use any more, and usually the last.
fn first_free(info: &StartInfo) -> Pfn {
    unsafe extern "C" {
        static __end: u8;
    }
    let page = PAGE_SIZE as u64;
    let in_space = |start: u64, len: u64| if start >= arch::BASE as u64 { start + len } else { 0 };
    let ring = |mfn| arch::address_of_mfn(xen_proto::frame::Mfn(mfn)) as u64 + page;
    let end = [
        (&raw const __end).addr() as u64,
        (&raw const *info).addr() as u64 + page,
        in_space(info.mod_start, info.mod_len),
        in_space(info.mfn_list, info.nr_pages * 8),
        info.pt_base + info.nr_pt_frames * page,
        ring(info.store_mfn),
        ring(info.console_mfn),
    ]
    .into_iter()
    .fold(0, u64::max);
    Pfn((end - arch::BASE as u64).div_ceil(page))
}

/// Whether the last allocation failed, which tells such a panic from others.
pub(crate) fn is_exhausted() -> bool {
    HEAP.exhausted.get()
}
